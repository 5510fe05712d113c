//! Parsing of addresses to listen on.

use std::io;
use std::net::{Ipv6Addr, SocketAddr, ToSocketAddrs as _};
use std::str::FromStr;

use serde::{Deserialize, Deserializer};

/// Reason for which a text is no address to listen on.
#[derive(Debug, thiserror::Error)]
pub enum ListenError {
    /// Text that is not a host and a port.
    #[error("must be HOST:PORT, as in 127.0.0.1:7070, localhost:7070 or :7070 for all interfaces, got {0:?}")]
    Form(String),
    /// IPv6 address without brackets, whose end could be a port.
    #[error("must have the address in brackets, as in [::1]:7070, got {0:?}")]
    Brackets(String),
    /// Name that has no address on this machine.
    #[error("cannot find the host {host:?}: {error}")]
    Host {
        /// Host that was to be resolved.
        host: String,
        /// Error of the resolver.
        error: io::Error,
    },
}

/// Parses `HOST:PORT`. A name is resolved, with IPv4 preferred; without a host it means all interfaces.
///
/// # Errors
/// [`ListenError`] if the text is not of that form, or the name has no address.
pub fn address(text: &str) -> Result<SocketAddr, ListenError> {
    if let Ok(address) = text.parse() {
        return Ok(address);
    }
    let form = || ListenError::Form(text.to_owned());
    let (host, port) = text.rsplit_once(':').ok_or_else(form)?;
    let port: u16 = port.parse().map_err(|_| form())?;
    if host.contains(':') && !host.contains('[') {
        return Err(ListenError::Brackets(text.to_owned()));
    }
    if host.is_empty() {
        return Ok(SocketAddr::from((Ipv6Addr::UNSPECIFIED, port)));
    }
    if host.contains(|c: char| c.is_whitespace() || c.is_control() || "[]/@".contains(c)) {
        return Err(form());
    }
    let failed = |error| ListenError::Host { host: host.to_owned(), error };
    let addresses: Vec<SocketAddr> = (host, port).to_socket_addrs().map_err(failed)?.collect();
    let first = addresses.iter().find(|address| address.is_ipv4()).or(addresses.first());
    first.copied().ok_or_else(|| failed(io::ErrorKind::NotFound.into()))
}

/// Deserializes an address with [`address`].
///
/// # Errors
/// Errors of [`address`].
pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<SocketAddr, D::Error> {
    address(&String::deserialize(deserializer)?).map_err(serde::de::Error::custom)
}

/// Address on which RESP is served; none: `off`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub struct RespListen(pub Option<SocketAddr>);

impl FromStr for RespListen {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "off" => Ok(Self(None)),
            _ => match address(text) {
                Ok(address) => Ok(Self(Some(address))),
                Err(ListenError::Form(_)) => Err(format!("must be HOST:PORT or off, got {text:?}")),
                Err(error) => Err(error.to_string()),
            },
        }
    }
}

impl TryFrom<String> for RespListen {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}
