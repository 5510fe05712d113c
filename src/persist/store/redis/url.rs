//! URLs of Redis: `redis://`, `rediss://`, `redis+unix://`, `redis-cluster://`, `redis-sentinel://`.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use percent_encoding::percent_decode_str;

/// Default port of Redis.
const PORT: u16 = 6379;
/// Default port of a sentinel.
const SENTINEL_PORT: u16 = 26_379;
/// Maximum number of addresses in one URL.
const HOSTS_MAX: usize = 64;

/// Accepted forms of a URL, for messages.
pub const FORMS: &str = "redis://[user:password@]host[:port][/db], redis+unix:///path, \
                         redis-cluster://host:port,host:port, redis-sentinel://host:port,host:port/master; \
                         rediss, rediss-cluster and rediss-sentinel with TLS";

/// Host and port of a server.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ServerAddress {
    /// Name or address of the host; an IPv6 address is without its brackets.
    pub host: String,
    /// TCP port of the server.
    pub port: u16,
}

impl fmt::Display for ServerAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.host.contains(':') {
            write!(f, "[{}]:{}", self.host, self.port)
        } else {
            write!(f, "{}:{}", self.host, self.port)
        }
    }
}

/// Kind of deployment behind the addresses.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RedisTopology {
    /// Single server, over TCP.
    Standalone(ServerAddress),
    /// Single server, over a Unix socket.
    Unix(PathBuf),
    /// Some nodes of a cluster; the others are discovered.
    Cluster(Vec<ServerAddress>),
    /// Sentinels, and the name of the master that they watch.
    Sentinel(Vec<ServerAddress>, String),
}

/// Parsed URL. It is shown without its password.
#[derive(Clone, PartialEq, Eq)]
pub struct RedisUrl {
    /// Kind of deployment, with its addresses.
    pub topology: RedisTopology,
    /// Whether connections are encrypted.
    pub tls: bool,
    /// User to authenticate as; none: `default`.
    pub user: Option<String>,
    /// Password of the user.
    pub password: Option<String>,
    /// Database number; a cluster has only 0.
    pub db: i64,
}

impl FromStr for RedisUrl {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (scheme, rest) = text.split_once("://").ok_or_else(|| format!("must be one of {FORMS}"))?;
        let (tls, form) = match scheme.strip_prefix("rediss") {
            Some(form) => (true, form),
            None => (false, scheme.strip_prefix("redis").ok_or_else(|| format!("must be one of {FORMS}"))?),
        };
        if rest.contains(['?', '#']) {
            return Err("takes no ?query; set TLS files with store.tls_ca_file and the like".to_owned());
        }
        // A password may contain an unescaped @, a path may not.
        let (login, rest) = match rest.rsplit_once('@') {
            Some((login, rest)) => (Some(login), rest),
            None => (None, rest),
        };
        let (user, password) = match login.map(|login| login.split_once(':').unwrap_or((login, ""))) {
            Some((user, password)) => (decoded(user)?, decoded(password)?),
            None => (None, None),
        };
        if form == "+unix" && !tls {
            if !rest.starts_with('/') {
                return Err("redis+unix:// needs an absolute path, as in redis+unix:///run/redis.sock".to_owned());
            }
            return Ok(Self { topology: RedisTopology::Unix(rest.into()), tls, user, password, db: 0 });
        }
        let (hosts, path) = rest.split_once('/').unwrap_or((rest, ""));
        let kind = match form {
            "" => RedisTopology::Standalone(single_address(addresses(hosts, PORT)?)?),
            "-cluster" => RedisTopology::Cluster(addresses(hosts, PORT)?),
            "-sentinel" => RedisTopology::Sentinel(addresses(hosts, SENTINEL_PORT)?, master(path)?),
            _ => return Err(format!("must be one of {FORMS}")),
        };
        let db = match &kind {
            RedisTopology::Sentinel(..) => 0,
            RedisTopology::Cluster(_) if !matches!(path, "" | "0") => {
                return Err(format!("a cluster has no databases; remove /{path}"));
            }
            _ if path.is_empty() => 0,
            _ => path.parse().map_err(|_| format!("the database must be a number, got /{path}"))?,
        };
        Ok(Self { topology: kind, tls, user, password, db })
    }
}

fn decoded(text: &str) -> Result<Option<String>, String> {
    let text = percent_decode_str(text).decode_utf8().map_err(|_| "user and password must be UTF-8".to_owned())?;
    Ok(Some(text.into_owned()).filter(|text| !text.is_empty()))
}

fn addresses(text: &str, port: u16) -> Result<Vec<ServerAddress>, String> {
    let addresses = text.split(',').map(|text| address(text, port)).collect::<Result<Vec<_>, _>>()?;
    if addresses.len() > HOSTS_MAX {
        return Err(format!("at most {HOSTS_MAX} addresses, got {}", addresses.len()));
    }
    Ok(addresses)
}

fn address(text: &str, port: u16) -> Result<ServerAddress, String> {
    let wrong = || format!("must be host:port, got {text:?}");
    let (host, rest) = match text.strip_prefix('[') {
        Some(inner) => inner.split_once(']').ok_or_else(wrong)?,
        None => text.split_at(text.find(':').unwrap_or(text.len())),
    };
    let port = match rest.strip_prefix(':') {
        Some(port) => port.parse().ok().filter(|port| *port > 0).ok_or_else(wrong)?,
        None if rest.is_empty() => port,
        None => return Err(wrong()),
    };
    if host.is_empty() {
        return Err("needs a host, as in redis://127.0.0.1:6379".to_owned());
    }
    Ok(ServerAddress { host: host.to_owned(), port })
}

fn single_address(mut addresses: Vec<ServerAddress>) -> Result<ServerAddress, String> {
    match addresses.pop() {
        Some(address) if addresses.is_empty() => Ok(address),
        _ => Err("several addresses are a cluster's (redis-cluster://) or sentinels' (redis-sentinel://)".to_owned()),
    }
}

fn master(path: &str) -> Result<String, String> {
    if path.is_empty() || path.contains('/') {
        return Err("needs the name of the master, as in redis-sentinel://host:26379/mymaster".to_owned());
    }
    Ok(path.to_owned())
}

impl fmt::Display for RedisUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let s = if self.tls { "s" } else { "" };
        let form = match &self.topology {
            RedisTopology::Standalone(_) => "",
            RedisTopology::Unix(_) => "+unix",
            RedisTopology::Cluster(_) => "-cluster",
            RedisTopology::Sentinel(..) => "-sentinel",
        };
        write!(f, "redis{s}{form}://")?;
        match (&self.user, &self.password) {
            (user, Some(_)) => write!(f, "{}:***@", user.as_deref().unwrap_or(""))?,
            (Some(user), None) => write!(f, "{user}@")?,
            (None, None) => {}
        }
        let list =
            |addresses: &[ServerAddress]| addresses.iter().map(ServerAddress::to_string).collect::<Vec<_>>().join(",");
        match &self.topology {
            RedisTopology::Standalone(address) => write!(f, "{address}")?,
            RedisTopology::Unix(path) => write!(f, "{}", path.display())?,
            RedisTopology::Cluster(addresses) => f.write_str(&list(addresses))?,
            RedisTopology::Sentinel(addresses, master) => write!(f, "{}/{master}", list(addresses))?,
        }
        if self.db != 0 { write!(f, "/{}", self.db) } else { Ok(()) }
    }
}

impl fmt::Debug for RedisUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_are_parsed_and_shown_without_the_password() {
        for (text, shown) in [
            ("redis://localhost", "redis://localhost:6379"),
            ("rediss://u:p%40ss@h:1/2", "rediss://u:***@h:1/2"),
            ("redis://:secret@h", "redis://:***@h:6379"),
            ("redis://[::1]:7000", "redis://[::1]:7000"),
            ("redis+unix:///run/redis.sock", "redis+unix:///run/redis.sock"),
            ("redis-cluster://a:1,b:2", "redis-cluster://a:1,b:2"),
            ("redis-sentinel://a,b:2/main", "redis-sentinel://a:26379,b:2/main"),
        ] {
            let url: RedisUrl = text.parse().expect(text);
            assert_eq!(url.to_string(), shown);
        }
        let url: RedisUrl = "rediss://u:p%40s:s@h:1/2".parse().expect("a URL");
        assert_eq!((url.user.as_deref(), url.password.as_deref()), (Some("u"), Some("p@s:s")));
    }

    #[test]
    fn invalid_urls_are_rejected_with_the_reason() {
        for (text, part) in [
            ("redis:h", "must be one of"),
            ("redis-x://h", "must be one of"),
            ("redis://", "needs a host"),
            ("redis://h:0", "host:port"),
            ("redis://h:70000", "host:port"),
            ("redis://[::1", "host:port"),
            ("redis://a,b", "several addresses"),
            ("redis://h/x", "must be a number"),
            ("redis-cluster://h/1", "no databases"),
            ("redis-sentinel://h", "name of the master"),
            ("redis+unix://relative", "absolute path"),
            ("redis://h?db=1", "no ?query"),
        ] {
            let error = text.parse::<RedisUrl>().expect_err(text);
            assert!(error.contains(part), "{text}: {error}");
        }
    }
}
