//! Address of a service, as people write it.

use std::fmt;
use std::str::FromStr;

use hyper::Uri;
use thiserror::Error;

/// Port of an address that names none.
pub const PORT_DEFAULT: u16 = 7070;

/// Address of a service: `http://HOST:PORT`. The default is this machine with [`PORT_DEFAULT`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServiceUrl(String);

/// Defect of an address.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum UrlError {
    /// Scheme that needs TLS.
    #[error("the service speaks no TLS; use http://HOST:PORT")]
    Tls,
    /// Scheme other than `http`.
    #[error("unknown scheme {0}; use http://HOST:PORT")]
    UnknownScheme(String),
    /// Text that is no address, or has more than host and port.
    #[error("must be http://HOST:PORT or HOST:PORT")]
    Malformed,
}

impl Default for ServiceUrl {
    fn default() -> Self {
        Self(format!("http://127.0.0.1:{PORT_DEFAULT}"))
    }
}

impl FromStr for ServiceUrl {
    type Err = UrlError;

    fn from_str(text: &str) -> Result<Self, UrlError> {
        let authority = match text.split_once("://") {
            Some(("http", authority)) => authority,
            Some(("https", _)) => return Err(UrlError::Tls),
            Some((scheme, _)) => return Err(UrlError::UnknownScheme(scheme.to_owned())),
            None => text,
        };
        let authority = authority.strip_suffix('/').unwrap_or(authority);
        let uri: Uri = format!("http://{authority}").parse().map_err(|_| UrlError::Malformed)?;
        let host = uri.host().filter(|host| !host.is_empty()).ok_or(UrlError::Malformed)?;
        // Without a port, the rest is one that is no number, or an IPv6 address without brackets: `::1`.
        let has_bad_port = uri.port_u16().is_none() && authority != host;
        if has_bad_port || authority.contains(['/', '?', '#', '@']) {
            return Err(UrlError::Malformed);
        }
        Ok(Self(format!("http://{host}:{}", uri.port_u16().unwrap_or(PORT_DEFAULT))))
    }
}

impl fmt::Display for ServiceUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_completed_and_others_refused() {
        let good = [
            ("http://127.0.0.1:7070", "http://127.0.0.1:7070"),
            ("http://127.0.0.1:7070/", "http://127.0.0.1:7070"),
            ("127.0.0.1:80", "http://127.0.0.1:80"),
            ("localhost", "http://localhost:7070"),
            ("[::1]:7171", "http://[::1]:7171"),
            ("[::1]", "http://[::1]:7070"),
        ];
        for (text, address) in good {
            assert_eq!(text.parse::<ServiceUrl>().unwrap().to_string(), address);
        }
        for bad in ["", "http://", "https://h:1", "ftp://h", "h:x", "h:99999", "h/v1", "u@h:1", "a b", "::1", "h:1?x"] {
            assert!(bad.parse::<ServiceUrl>().is_err(), "{bad}");
        }
    }
}
