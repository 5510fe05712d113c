//! Host names and addresses, as request heads, origins of pages and the configuration contain them.
//!
//! Parsed strictly and by hand: `http::uri::Authority` accepts user names and invalid ports, and `url::Host` turns
//! `127.1` and `0x7f.1` into addresses. Browsers normalise addresses before they send them, so everything else that
//! arrives here is a name.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

use serde::de::{Deserialize, Deserializer, SeqAccess, Visitor};

use crate::limits::{HOST_BYTES_MAX, HOST_LABEL_BYTES_MAX, HOSTS_MAX};

/// Host name that always means this machine.
const LOCALHOST: &str = "localhost";

/// Host with an optional port: the value of `Host`, of `:authority`, or the end of an origin.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct HostPort<'a> {
    pub(super) host: HostAddress<'a>,
    pub(super) port: Option<u16>,
}

/// Host by address or by name.
#[derive(Debug, Clone, Copy)]
pub(super) enum HostAddress<'a> {
    /// IP address in its usual notation.
    Address(IpAddr),
    /// Name without its final dot, in its original case.
    Name(&'a str),
}

impl PartialEq for HostAddress<'_> {
    fn eq(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Address(one), Self::Address(other)) => one == other,
            (Self::Name(one), Self::Name(other)) => one.eq_ignore_ascii_case(other),
            _ => false,
        }
    }
}

impl Eq for HostAddress<'_> {}

impl<'a> HostPort<'a> {
    /// Parses an authority. Returns `None` if it is invalid or has a user name.
    pub(super) fn parse(text: &'a str) -> Option<Self> {
        let (host, port) = match text.strip_prefix('[') {
            Some(rest) => {
                let (address, port) = rest.split_once(']')?;
                (HostAddress::Address(address.parse::<Ipv6Addr>().ok()?.into()), port)
            }
            None => {
                let (host, port) = text.split_at(text.find(':').unwrap_or(text.len()));
                (HostAddress::parse(host)?, port)
            }
        };
        let digits = match port.strip_prefix(':') {
            Some(digits) => digits,
            None if port.is_empty() => "",
            None => return None,
        };
        if !digits.bytes().all(|byte| byte.is_ascii_digit()) {
            return None;
        }
        let port = if digits.is_empty() { None } else { Some(digits.parse().ok()?) };
        Some(Self { host, port })
    }
}

impl<'a> HostAddress<'a> {
    /// Parses an IPv4 address or a name, which may be empty.
    fn parse(text: &'a str) -> Option<Self> {
        if let Ok(address) = text.parse::<Ipv4Addr>() {
            return Some(Self::Address(address.into()));
        }
        let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b"._-".contains(&byte);
        text.bytes().all(is_plain).then(|| Self::Name(text.strip_suffix('.').unwrap_or(text)))
    }

    /// Whether only this machine's administrator decides what the host means: DNS rebinding always carries a name.
    pub(super) fn is_local_or_address(&self) -> bool {
        match self {
            Self::Address(_) => true,
            Self::Name(name) => name.eq_ignore_ascii_case(LOCALHOST),
        }
    }

    /// Whether the host is one of these names.
    pub(super) fn matches_any(&self, names: &[HostName]) -> bool {
        match self {
            Self::Address(_) => false,
            Self::Name(name) => names.iter().any(|known| known.0.eq_ignore_ascii_case(name)),
        }
    }
}

/// Reason why a text is not a host name for the configuration.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum HostNameError {
    /// Name contains a wildcard.
    #[error("{0:?} is a pattern: list each name, wildcards are not supported")]
    Wildcard(String),
    /// Name contains characters outside of ASCII.
    #[error("{0:?} is not ASCII: write the name as browsers send it, as in xn--e1afmkfd.example")]
    NotAscii(String),
    /// Text is an IP address, which needs no entry.
    #[error("{0:?} is an IP address: addresses are always accepted, list only names")]
    Address(String),
    /// Text has a scheme, a user or a port.
    #[error("{0:?} is more than a name: leave out scheme, user and port; any port is accepted")]
    NotOnlyName(String),
    /// Name or one of its labels has a wrong length or character.
    #[error(
        "{0:?} is not a host name: 1 to {HOST_BYTES_MAX} bytes, labels of 1 to {HOST_LABEL_BYTES_MAX} of [A-Za-z0-9_-] \
         separated by dots"
    )]
    Malformed(String),
    /// Last label is a number, so browsers take the text for an address.
    #[error("{0:?} ends like an IP address: browsers take it for one, and addresses are always accepted")]
    EndsInNumber(String),
    /// List is longer than [`HOSTS_MAX`].
    #[error("at most {HOSTS_MAX} names")]
    TooMany,
    /// Several names of a list are invalid.
    #[error("{}", .0.iter().map(ToString::to_string).collect::<Vec<_>>().join("; "))]
    Several(Vec<Self>),
}

/// Host name from the configuration: lower case, without a final dot.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostName(Box<str>);

impl FromStr for HostName {
    type Err = HostNameError;

    fn from_str(text: &str) -> Result<Self, HostNameError> {
        let reject = |error: fn(String) -> HostNameError| Err(error(text.to_owned()));
        let name = text.strip_suffix('.').unwrap_or(text);
        if text.contains('*') {
            return reject(HostNameError::Wildcard);
        }
        if !text.is_ascii() {
            return reject(HostNameError::NotAscii);
        }
        if text.parse::<IpAddr>().is_ok() || text.starts_with('[') {
            return reject(HostNameError::Address);
        }
        if text.contains(['/', ':', '@']) {
            return reject(HostNameError::NotOnlyName);
        }
        let is_label = |label: &str| {
            (1..=HOST_LABEL_BYTES_MAX).contains(&label.len())
                && label.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"_-".contains(&byte))
        };
        if name.len() > HOST_BYTES_MAX || !name.split('.').all(is_label) {
            return Err(HostNameError::Malformed(text[..text.len().min(HOST_BYTES_MAX)].to_owned()));
        }
        let last = name.rsplit('.').next().unwrap_or_default().to_ascii_lowercase();
        let is_number = match last.strip_prefix("0x") {
            Some(digits) => digits.bytes().all(|byte| byte.is_ascii_hexdigit()),
            None => last.bytes().all(|byte| byte.is_ascii_digit()),
        };
        if is_number {
            return reject(HostNameError::EndsInNumber);
        }
        Ok(Self(name.to_ascii_lowercase().into()))
    }
}

/// Host names from the configuration, a bounded number.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct HostNames(pub Vec<HostName>);

impl HostNames {
    fn parse_all<'t>(texts: impl Iterator<Item = &'t str>) -> Result<Self, HostNameError> {
        let (mut names, mut errors) = (Vec::new(), Vec::new());
        for (index, text) in texts.enumerate() {
            if index == HOSTS_MAX {
                return Err(HostNameError::TooMany);
            }
            match text.parse() {
                Ok(name) => names.push(name),
                Err(error) => errors.push(error),
            }
        }
        if errors.is_empty() { Ok(Self(names)) } else { Err(HostNameError::Several(errors)) }
    }
}

impl FromStr for HostNames {
    type Err = HostNameError;

    /// Parses names separated by commas; an empty text means none.
    fn from_str(text: &str) -> Result<Self, HostNameError> {
        if text.trim().is_empty() {
            return Ok(Self::default());
        }
        Self::parse_all(text.split(',').map(str::trim))
    }
}

impl<'de> Deserialize<'de> for HostNames {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct HostNamesVisitor;
        impl<'de> Visitor<'de> for HostNamesVisitor {
            type Value = HostNames;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a list of host names")
            }

            fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<HostNames, E> {
                text.parse().map_err(E::custom)
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<HostNames, A::Error> {
                let mut names: Vec<String> = Vec::new();
                // Every error is reported for the whole list, so that its path is the configuration key.
                while let Some(value) = seq.next_element::<serde_json::Value>()? {
                    match value {
                        serde_json::Value::String(name) if names.len() <= HOSTS_MAX => names.push(name),
                        serde_json::Value::String(_) => {}
                        other => return Err(serde::de::Error::custom(format!("{other} is not a host name"))),
                    }
                }
                HostNames::parse_all(names.iter().map(String::as_str)).map_err(serde::de::Error::custom)
            }
        }
        deserializer.deserialize_any(HostNamesVisitor)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn h01_names_of_the_configuration_are_names() {
        for (text, name) in [
            ("Pool.Example.COM.", "pool.example.com"),
            ("hotpool", "hotpool"),
            ("hot_pool-1.default.svc.cluster.local", "hot_pool-1.default.svc.cluster.local"),
            ("xn--e1afmkfd.example", "xn--e1afmkfd.example"),
            ("localhost", "localhost"),
            ("1.example", "1.example"),
        ] {
            assert_eq!(text.parse(), Ok(HostName(name.into())), "{text}");
        }
        let (long_label, long_name) = (format!("{}.example", "a".repeat(64)), "a.".repeat(127) + "example");
        for (text, reason) in [
            ("", "is not a host name"),
            (".", "is not a host name"),
            ("a..b", "is not a host name"),
            ("a b", "is not a host name"),
            ("a,b", "is not a host name"),
            (long_label.as_str(), "is not a host name"),
            (long_name.as_str(), "is not a host name"),
            ("*.example.com", "wildcards are not supported"),
            ("pool.example.com:7070", "leave out scheme, user and port"),
            ("http://pool.example.com", "leave out scheme, user and port"),
            ("user@pool.example.com", "leave out scheme, user and port"),
            ("127.0.0.1", "addresses are always accepted"),
            ("::1", "addresses are always accepted"),
            ("[::1]", "addresses are always accepted"),
            ("127.1", "addresses are always accepted"),
            ("0x7f", "addresses are always accepted"),
            ("пример.example", "is not ASCII"),
        ] {
            let error = text.parse::<HostName>().expect_err(text).to_string();
            assert!(error.contains(reason), "{text}: {error}");
        }
    }

    #[test]
    fn h01_lists_of_names_are_bounded_and_report_every_problem() {
        let names = |text: &str| text.parse::<HostNames>().map(|names| names.0.len());
        assert_eq!((names(""), names(" "), names("a"), names("a, b ,c.d")), (Ok(0), Ok(0), Ok(1), Ok(3)));
        let problems = names("a:1,b,*").unwrap_err().to_string();
        assert!(
            problems.contains("\"a:1\"") && problems.contains("\"*\"") && !problems.contains("\"b\""),
            "{problems}"
        );
        assert_eq!(names(&vec!["a"; HOSTS_MAX].join(",")), Ok(HOSTS_MAX));
        assert!(names(&vec!["a"; HOSTS_MAX + 1].join(",")).unwrap_err().to_string().contains("at most 64"));
        let list = |json: serde_json::Value| serde_json::from_value::<HostNames>(json).map(|names| names.0.len());
        assert_eq!(list(serde_json::json!(["a", "b"])).unwrap(), 2);
        assert_eq!(list(serde_json::json!("a,b")).unwrap(), 2);
        assert!(list(serde_json::json!(["a", 1])).unwrap_err().to_string().contains("1 is not a host name"));
        assert!(list(serde_json::json!(7)).unwrap_err().to_string().contains("a list of host names"));
        assert!(list(serde_json::json!(vec!["a"; 100])).unwrap_err().to_string().contains("at most 64"));
    }
}
