//! Connections to one server, and the diagnosis of a failed one.

use std::error::Error as _;
use std::fmt;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use redis::{ConnectionAddr, ErrorKind, RedisConnectionInfo, RedisError, ServerErrorKind, cmd, from_redis_value};

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use super::super::StoreError;
use super::transport::{RedisTransport, ServerConnection, query};
use super::url::{RedisTopology, RedisUrl, ServerAddress};
use crate::environment::Environment;

/// First major version of Redis with functions.
const MAJOR_MIN: u32 = 7;
/// Number of connections in a row that a server closes without an answer, and none ever served, after which it counts as
/// another kind of server. That takes about five seconds, in which a proxy may still have been starting.
const CLOSED_MAX: u32 = 12;

/// Reason for which a server cannot be used.
#[derive(Debug, Clone)]
pub(super) enum ServerFault {
    /// Server that may recover, with the error text.
    Unavailable(String),
    /// Server that will not, such as one of another kind or with another password.
    Unusable(String),
}

impl ServerFault {
    pub fn text(&self) -> &str {
        match self {
            Self::Unavailable(text) | Self::Unusable(text) => text,
        }
    }
}

impl From<ServerFault> for StoreError {
    fn from(fault: ServerFault) -> Self {
        match fault {
            ServerFault::Unavailable(text) => Self::Unavailable(text),
            ServerFault::Unusable(text) => Self::Unusable(text),
        }
    }
}

/// Mode in which a server must run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, strum::IntoStaticStr)]
#[strum(serialize_all = "snake_case", const_into_str)]
enum ServerMode {
    Standalone,
    Cluster,
    Sentinel,
}

/// Protection of what is sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum ServerEncryption {
    Plaintext,
    Tls,
}

/// Address and credentials of one server, and the way to it.
#[derive(Clone)]
pub(super) struct RedisConnector {
    address: ConnectionAddr,
    login: RedisConnectionInfo,
    encryption: ServerEncryption,
    mode: ServerMode,
    limit: Duration,
    transport: Arc<dyn RedisTransport>,
    environment: Environment,
    /// Number of connections closed without an answer while none was ever served; shared by all connectors.
    closed: Arc<AtomicU32>,
    /// Number at which the server counts as unusable.
    closed_max: u32,
}

/// Value of [`RedisConnector::closed`] once a connection was served.
const CONNECTED_ONCE: u32 = u32::MAX;

impl RedisConnector {
    /// Creates a connector to the first server of the URL; every connect and every answer takes at most `limit`.
    pub fn new(url: &RedisUrl, transport: Arc<dyn RedisTransport>, environment: Environment, limit: Duration) -> Self {
        let mut login = RedisConnectionInfo::default().set_db(url.db);
        if let Some(user) = &url.user {
            login = login.set_username(user);
        }
        if let Some(password) = &url.password {
            login = login.set_password(password);
        }
        let servers = match &url.topology {
            RedisTopology::Standalone(_) | RedisTopology::Unix(_) => 1,
            RedisTopology::Cluster(addresses) | RedisTopology::Sentinel(addresses, _) => addresses.len() as u32,
        };
        let encryption = if url.tls { ServerEncryption::Tls } else { ServerEncryption::Plaintext };
        let (address, mode) = match &url.topology {
            RedisTopology::Standalone(address) => (tcp(address, encryption), ServerMode::Standalone),
            RedisTopology::Unix(path) => (ConnectionAddr::Unix(path.clone()), ServerMode::Standalone),
            RedisTopology::Cluster(addresses) => (tcp(&addresses[0], encryption), ServerMode::Cluster),
            RedisTopology::Sentinel(addresses, _) => (tcp(&addresses[0], encryption), ServerMode::Standalone),
        };
        let closed_max = CLOSED_MAX * servers;
        Self { address, login, encryption, mode, limit, transport, environment, closed: Arc::default(), closed_max }
    }

    /// Connector with these settings to another address.
    pub fn with_address(&self, address: &ServerAddress) -> Self {
        Self { address: tcp(address, self.encryption), ..self.clone() }
    }

    /// Connector to a sentinel, which does not have the users and databases of the servers that it watches.
    pub fn to_sentinel(&self, address: &ServerAddress) -> Self {
        Self { login: RedisConnectionInfo::default(), mode: ServerMode::Sentinel, ..self.with_address(address) }
    }

    /// Host name or address, as configured.
    pub fn host(&self) -> String {
        match &self.address {
            ConnectionAddr::Tcp(host, _) | ConnectionAddr::TcpTls { host, .. } => host.clone(),
            _ => String::new(),
        }
    }

    /// Connects, authenticates, and checks mode and version of the server.
    pub async fn connect(&self) -> Result<Arc<dyn ServerConnection>, ServerFault> {
        let connecting = async {
            let connection = self.transport.connect(&self.address, &self.login, self.limit).await?;
            let about: String = from_redis_value(query(&*connection, cmd("INFO").arg("server").take()).await?)?;
            Ok::<_, RedisError>((connection, about))
        };
        // The limits of the transport cover the parts; this one covers whatever lies between them.
        match self.environment.timeout(2 * self.limit, connecting).await {
            Some(Ok((connection, about))) => {
                self.closed.store(CONNECTED_ONCE, Ordering::Relaxed);
                self.check(&about)?;
                Ok(connection)
            }
            Some(Err(error)) if !error.is_timeout() => Err(self.map_connect_error(&error)),
            Some(Err(_)) | None if self.is_plaintext().await => {
                Err(ServerFault::Unusable(format!("{self} speaks without TLS; its URL begins with redis, not rediss")))
            }
            Some(Err(_)) | None => Err(ServerFault::Unavailable(self.timeout_message())),
        }
    }

    /// Whether the server answers a plaintext PING. A server without TLS takes a TLS hello for an unfinished line and waits, so
    /// a timeout alone does not tell. Asked only while no connection was ever served.
    #[allow(clippy::disallowed_methods, reason = "a socket of its own, outside of the transport")]
    async fn is_plaintext(&self) -> bool {
        let ConnectionAddr::TcpTls { host, port, .. } = &self.address else { return false };
        if self.closed.load(Ordering::Relaxed) == CONNECTED_ONCE {
            return false;
        }
        let ping = async {
            let mut stream = TcpStream::connect((host.as_str(), *port)).await?;
            stream.write_all(b"PING\r\n").await?;
            let mut first = [0];
            stream.read_exact(&mut first).await?;
            Ok::<_, io::Error>(matches!(first[0], b'+' | b'-'))
        };
        matches!(tokio::time::timeout(self.limit, ping).await, Ok(Ok(true)))
    }

    /// Asks a sentinel for the address of a master.
    pub async fn ask_master(&self, name: &str) -> Result<ServerAddress, ServerFault> {
        let connection = self.connect().await?;
        let question = cmd("SENTINEL").arg("GET-MASTER-ADDR-BY-NAME").arg(name).take();
        let answer = query(&*connection, question).await;
        match answer.and_then(|address| Ok(from_redis_value::<Option<(String, u16)>>(address)?)) {
            Ok(Some((host, port))) => Ok(ServerAddress { host, port }),
            Ok(None) => Err(ServerFault::Unavailable(format!("the sentinel {self} knows no master {name:?}"))),
            Err(error) => Err(self.map_call_error(&error)),
        }
    }

    /// Classifies the failure of a call.
    pub fn map_call_error(&self, error: &RedisError) -> ServerFault {
        match (error.kind(), error.code()) {
            (_, Some("NOAUTH" | "WRONGPASS" | "NOPERM")) | (ErrorKind::AuthenticationFailed, _) => {
                ServerFault::Unusable(format!("{self}: {error}"))
            }
            _ if error.is_timeout() => ServerFault::Unavailable(self.timeout_message()),
            _ => ServerFault::Unavailable(format!("{self}: {error}")),
        }
    }

    /// Classifies a failure to connect.
    fn map_connect_error(&self, error: &RedisError) -> ServerFault {
        match error.kind() {
            ErrorKind::Io if is_tls(error) => ServerFault::Unusable(format!("{self}: TLS failed: {error}")),
            ErrorKind::Io if error.is_connection_refusal() => {
                ServerFault::Unavailable(format!("{self} refuses connections"))
            }
            ErrorKind::Io | ErrorKind::Parse => {
                let increment = |count: u32| (count != CONNECTED_ONCE).then_some(count.saturating_add(1));
                let closed = self.closed.fetch_update(Ordering::Relaxed, Ordering::Relaxed, increment);
                let is_plain = !matches!(self.address, ConnectionAddr::TcpTls { .. });
                if error.is_connection_dropped() && closed.is_ok_and(|before| before + 1 >= self.closed_max) && is_plain
                {
                    let hint = "is it a TLS port (rediss://)?";
                    return ServerFault::Unusable(format!("{self} closes every connection without an answer: {hint}"));
                }
                ServerFault::Unavailable(format!("{self}: {error}"))
            }
            ErrorKind::Server(
                ServerErrorKind::BusyLoading | ServerErrorKind::MasterDown | ServerErrorKind::ClusterDown,
            ) => ServerFault::Unavailable(format!("{self}: {error}")),
            // Temporary, although the library reports a failure to authenticate if this answers the password.
            _ if error.to_string().contains("max number of clients") || error.code() == Some("BUSY") => {
                ServerFault::Unavailable(format!("{self}: {error}"))
            }
            ErrorKind::AuthenticationFailed => {
                ServerFault::Unusable(format!("{self} rejects the user or password of the URL: {error}"))
            }
            _ => ServerFault::Unusable(format!("{self}: {error}")),
        }
    }

    fn timeout_message(&self) -> String {
        format!("{self} does not answer within {} ms", self.limit.as_millis())
    }

    fn check(&self, about: &str) -> Result<(), ServerFault> {
        let field = |name: &str| about.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
        // Valkey has its own name for the field.
        let mode = field("redis_mode").or_else(|| field("server_mode")).unwrap_or("standalone");
        if mode != self.mode.into_str() {
            let advice = match mode {
                "cluster" => "redis-cluster://",
                "sentinel" => "redis-sentinel://",
                _ => "redis://",
            };
            return Err(ServerFault::Unusable(format!(
                "{self} is a {mode} server, not a {} one; its URL begins with {advice}",
                self.mode.into_str()
            )));
        }
        let version = field("redis_version").unwrap_or("unknown");
        let major = version.split('.').next().and_then(|major| major.parse().ok());
        if self.mode != ServerMode::Sentinel && major.is_none_or(|major: u32| major < MAJOR_MIN) {
            return Err(ServerFault::Unusable(format!("{self} is Redis {version}; use version {MAJOR_MIN} or newer")));
        }
        Ok(())
    }
}

impl fmt::Display for RedisConnector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.address.fmt(f)
    }
}

fn tcp(address: &ServerAddress, encryption: ServerEncryption) -> ConnectionAddr {
    let ServerAddress { host, port } = address.clone();
    match encryption {
        ServerEncryption::Tls => ConnectionAddr::TcpTls { host, port, insecure: false, tls_params: None },
        ServerEncryption::Plaintext => ConnectionAddr::Tcp(host, port),
    }
}

/// Whether the error comes from TLS, which reports invalid data.
fn is_tls(error: &RedisError) -> bool {
    let inner = error.source().and_then(|error| error.downcast_ref::<Arc<dyn std::error::Error + Send + Sync>>());
    let io = inner.and_then(|error| error.downcast_ref::<io::Error>());
    io.is_some_and(|error| error.kind() == io::ErrorKind::InvalidData)
}

#[cfg(test)]
mod tests {
    use super::super::transport::SocketTransport;
    use super::*;

    #[test]
    fn the_mode_of_a_valkey_server_is_read_from_its_own_field() {
        let url = "redis://h".parse().expect("a URL");
        let transport = Arc::new(SocketTransport::new(None));
        let connector = RedisConnector::new(&url, transport, Environment::system(), Duration::from_secs(1));
        let about = |mode: &str| format!("# Server\r\nredis_version:7.2.4\r\nserver_name:valkey\r\n{mode}\r\n");
        for mode in ["server_mode:standalone", "redis_mode:standalone"] {
            assert!(connector.check(&about(mode)).is_ok(), "{mode}");
        }
        for (mode, scheme) in [("cluster", "redis-cluster://"), ("sentinel", "redis-sentinel://")] {
            let refused = connector.check(&about(&format!("server_mode:{mode}"))).expect_err("of another mode");
            assert!(matches!(&refused, ServerFault::Unusable(text) if text.contains(scheme)), "{refused:?}");
        }
    }
}
