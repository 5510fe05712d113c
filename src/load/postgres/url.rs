//! URLs of PostgreSQL servers on the command line.

use hyper::http::uri::Authority;
use strum::{IntoStaticStr, VariantArray};

/// Setting of the server for the durability of a commit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, IntoStaticStr, VariantArray)]
#[strum(serialize_all = "snake_case", const_into_str)]
pub enum SynchronousCommit {
    /// Commit that is answered once it is on the disk.
    On,
    /// Commit that is answered before it is on the disk.
    Off,
}

impl SynchronousCommit {
    /// Value of the setting.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        self.into_str()
    }
}

/// PostgreSQL URL: `postgres://[USER@]HOST:PORT[/DATABASE][?synchronous_commit=on|off]`, without a password and without TLS.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PostgresUrl {
    /// Name of the user; `postgres` unless the URL has one.
    pub user: String,
    /// Address of the server, as `HOST:PORT`.
    pub host: String,
    /// Name of the database; `postgres` unless the URL has one.
    pub database: String,
    /// Durability of a commit; on unless the URL turns it off.
    pub synchronous_commit: SynchronousCommit,
}

const DEFAULT_NAME: &str = "postgres";

impl PostgresUrl {
    /// Parses the parts of a URL; `None` if they are invalid.
    pub(crate) fn read(scheme: &str, hosts: &str, query: Option<&str>) -> Option<Self> {
        if scheme != "postgres" {
            return None;
        }
        let (user, rest) = hosts.split_once('@').unwrap_or((DEFAULT_NAME, hosts));
        let (host, database) = rest.split_once('/').unwrap_or((rest, DEFAULT_NAME));
        let is_name =
            |name: &str| !name.is_empty() && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_');
        let host: Authority = host.parse().ok()?;
        host.port_u16()?;
        let synchronous_commit = match query {
            None => SynchronousCommit::On,
            Some(query) => {
                let value = query.strip_prefix("synchronous_commit=")?;
                SynchronousCommit::VARIANTS.iter().copied().find(|setting| setting.as_str() == value)?
            }
        };
        let url = Self { user: user.into(), host: host.to_string(), database: database.into(), synchronous_commit };
        (is_name(user) && is_name(database)).then_some(url)
    }

    /// Parameters of a connection.
    pub(super) fn config(&self) -> tokio_postgres::Config {
        let mut config = tokio_postgres::Config::new();
        let (host, port) = self.host.rsplit_once(':').unwrap_or((&self.host, "5432"));
        let host = host.trim_start_matches('[').trim_end_matches(']');
        config.user(&self.user).dbname(&self.database).host(host).port(port.parse().unwrap_or(5432));
        config
    }
}

impl std::fmt::Display for PostgresUrl {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { user, host, database, synchronous_commit } = self;
        write!(f, "postgres://{user}@{host}/{database}?synchronous_commit={}", synchronous_commit.as_str())
    }
}
