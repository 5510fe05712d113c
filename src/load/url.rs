//! Target of a load, as the command line names it.

use std::str::FromStr;

use hyper::http::uri::Authority;
use serde::Serialize;

use super::baseline::BaselineUrl;
use super::charts::ChartTone;
use super::postgres::{PostgresUrl, SynchronousCommit};

/// Target that a load is sent to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TargetUrl {
    /// A scheduler in this process.
    Inproc,
    /// A service at `HOST:PORT`, over HTTP.
    Http(String),
    /// Service over gRPC, one call a request.
    Grpc(String),
    /// Service over one gRPC stream a client.
    GrpcStream(String),
    /// Service over RESP, commands in pipelines.
    Resp {
        /// Port of the RESP edge.
        address: String,
        /// Port of the HTTP edge, over which the pool is created and checked.
        http: String,
    },
    /// Baseline: a claim protocol on Redis without a service.
    Baseline(BaselineUrl),
    /// Tables in PostgreSQL, without a service.
    Postgres(PostgresUrl),
    /// Bare server that answers like a service at this URL.
    Echo(Box<Self>),
}

/// Prefix of the URL of a bare server.
const ECHO: &str = "echo+";

fn wrong() -> String {
    "must be inproc, http://HOST:PORT, grpc://HOST:PORT, grpc-stream://HOST:PORT, resp://HOST:PORT[?http=HOST:PORT], \
     postgres://[USER@]HOST:PORT[/DATABASE][?synchronous_commit=on|off], redis-scan, -spop, -lock, -batch or -lua://HOST:PORT[,HOST:PORT...][?concurrent=N] with N from 1 to 1000, \
     or echo+ and the URL of a service"
        .to_owned()
}

fn authority(text: &str) -> Result<Authority, String> {
    let authority: Authority = text.parse().map_err(|_| wrong())?;
    authority.port_u16().ok_or_else(wrong)?;
    Ok(authority)
}

impl TargetUrl {
    /// Addresses of the servers, each `HOST:PORT`.
    #[must_use]
    pub fn addresses(&self) -> Vec<String> {
        match self {
            Self::Inproc => Vec::new(),
            Self::Http(authority) | Self::Grpc(authority) | Self::GrpcStream(authority) => vec![authority.clone()],
            Self::Resp { address, .. } => vec![address.clone()],
            Self::Baseline(url) => url.hosts.clone(),
            Self::Postgres(url) => vec![url.host.clone()],
            Self::Echo(url) => url.addresses(),
        }
    }

    /// Name of the edge or of the design, without addresses.
    #[must_use]
    pub fn edge_name(&self) -> String {
        match self {
            Self::Inproc => "in process".to_owned(),
            Self::Http(_) => "HTTP".to_owned(),
            Self::Grpc(_) => "gRPC".to_owned(),
            Self::GrpcStream(_) => "gRPC streams".to_owned(),
            Self::Resp { .. } => "RESP".to_owned(),
            Self::Baseline(url) => url.kind.into_str().to_owned(),
            Self::Postgres(url) => match url.synchronous_commit {
                SynchronousCommit::On => "PostgreSQL".to_owned(),
                SynchronousCommit::Off => "PostgreSQL without sync".to_owned(),
            },
            Self::Echo(service) => format!("bare {}", service.edge_name()),
        }
    }

    /// Colour of the edge in charts.
    #[must_use]
    pub const fn tone(&self) -> ChartTone {
        match self {
            Self::Inproc => ChartTone::Ink,
            Self::Http(_) => ChartTone::Http,
            Self::Grpc(_) => ChartTone::Grpc,
            Self::GrpcStream(_) => ChartTone::GrpcStream,
            Self::Resp { .. } => ChartTone::Resp,
            Self::Baseline(_) => ChartTone::Redis,
            Self::Postgres(_) => ChartTone::Postgres,
            Self::Echo(_) => ChartTone::Bare,
        }
    }

    /// Whether the target can only grant whole workers.
    #[must_use]
    pub const fn whole_workers(&self) -> bool {
        matches!(self, Self::Baseline(url) if url.whole_workers())
    }
}

impl FromStr for TargetUrl {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text == "inproc" {
            return Ok(Self::Inproc);
        }
        if let Some(service) = text.strip_prefix(ECHO) {
            return match service.parse()? {
                url @ (Self::Http(_) | Self::Grpc(_) | Self::GrpcStream(_) | Self::Resp { .. }) => {
                    Ok(Self::Echo(Box::new(url)))
                }
                _ => Err(wrong()),
            };
        }
        let (kind, rest) = text.split_once("://").ok_or_else(wrong)?;
        let (rest, query) = rest.split_once('?').map_or((rest, None), |(rest, query)| (rest, Some(query)));
        let hosts = rest.strip_suffix('/').unwrap_or(rest);
        if let Some(baseline) = BaselineUrl::read(kind, hosts, query) {
            return Ok(Self::Baseline(baseline));
        }
        if let Some(postgres) = PostgresUrl::read(kind, hosts, query) {
            return Ok(Self::Postgres(postgres));
        }
        let address = authority(hosts)?;
        match (kind, query) {
            ("http", None) => Ok(Self::Http(address.to_string())),
            ("grpc", None) => Ok(Self::Grpc(address.to_string())),
            ("grpc-stream", None) => Ok(Self::GrpcStream(address.to_string())),
            ("resp", Some(query)) => {
                let http = authority(query.strip_prefix("http=").ok_or_else(wrong)?)?;
                Ok(Self::Resp { address: address.to_string(), http: http.to_string() })
            }
            // Where the service puts it unless configured otherwise.
            ("resp", None) => {
                let below = address.port_u16().and_then(|port| port.checked_sub(1)).ok_or_else(wrong)?;
                Ok(Self::Resp { address: address.to_string(), http: format!("{}:{below}", address.host()) })
            }
            _ => Err(wrong()),
        }
    }
}

impl std::fmt::Display for TargetUrl {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Inproc => f.write_str("inproc"),
            Self::Http(authority) => write!(f, "http://{authority}"),
            Self::Grpc(authority) => write!(f, "grpc://{authority}"),
            Self::GrpcStream(authority) => write!(f, "grpc-stream://{authority}"),
            Self::Resp { address, http } => write!(f, "resp://{address}?http={http}"),
            Self::Baseline(baseline) => baseline.fmt(f),
            Self::Postgres(postgres) => postgres.fmt(f),
            Self::Echo(service) => write!(f, "{ECHO}{service}"),
        }
    }
}

impl Serialize for TargetUrl {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_are_read_and_written() {
        for (text, written) in [
            ("inproc", "inproc"),
            ("http://127.0.0.1:7070/", "http://127.0.0.1:7070"),
            ("grpc://[::1]:80", "grpc://[::1]:80"),
            ("grpc-stream://a:1", "grpc-stream://a:1"),
            ("resp://[::1]:7071", "resp://[::1]:7071?http=[::1]:7070"),
            ("resp://a:1?http=b:2", "resp://a:1?http=b:2"),
            ("redis-spop://a:1", "redis-spop://a:1"),
            ("redis-batch://a:1,b:2/?concurrent=8", "redis-batch://a:1,b:2?concurrent=8"),
            ("echo+http://a:1", "echo+http://a:1"),
            ("echo+resp://a:1?http=b:2", "echo+resp://a:1?http=b:2"),
            ("postgres://a:1", "postgres://postgres@a:1/postgres?synchronous_commit=on"),
            ("postgres://me@[::1]:1/db?synchronous_commit=off", "postgres://me@[::1]:1/db?synchronous_commit=off"),
        ] {
            let url: TargetUrl = text.parse().unwrap();
            assert_eq!(url.to_string(), written, "{text}");
            assert_eq!(url.to_string().parse(), Ok(url));
        }
    }

    #[test]
    fn what_is_no_target_is_refused() {
        for text in [
            "",
            "https://x:1",
            "http://x",
            "grpc://x",
            "grpc:x:1",
            "http://x:1/path",
            "http://x:1?a=b",
            "resp://x",
            "resp://x:0",
            "resp://x:1?http=y",
            "resp://x:1?grpc=y:1",
            "redis://x:1",
            "redis-spop://x",
            "redis-spop://x:1,",
            "redis-lock://x:1?concurrent=0",
            "redis-lock://x:1?concurrent=1001",
            "redis-lock://x:1?at_once=2",
            "echo+inproc",
            "echo+echo+http://a:1",
            "echo+postgres://a:1",
            "postgres://x",
            "postgres://x:1/a-b",
            "postgres://me:secret@x:1",
            "postgres://x:1?synchronous_commit=local",
        ] {
            assert!(text.parse::<TargetUrl>().is_err(), "{text}");
        }
    }
}
