//! URLs of baselines on the command line.

use hyper::http::uri::Authority;
use strum::{IntoStaticStr, VariantArray};

/// Methods of claiming on Redis without Hotpool.
#[derive(Debug, Clone, Copy, PartialEq, Eq, IntoStaticStr, VariantArray)]
#[strum(prefix = "redis-", serialize_all = "snake_case", const_into_str)]
pub enum BaselineKind {
    /// Reads every worker, picks one, and writes it under its version.
    Scan,
    /// Pops a worker from a set of idle ones.
    Spop,
    /// Locks the pool for each claim.
    Lock,
    /// Locks each selected worker once per batch.
    Batch,
    /// Runs one script per claim.
    Lua,
}

impl BaselineKind {
    /// All methods, in the order of the documentation.
    pub const ALL: &'static [Self] = Self::VARIANTS;
}

/// Baseline URL: `redis-KIND://HOST:PORT[,HOST:PORT...][?concurrent=N]`. The first host decides whether it is a
/// cluster.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BaselineUrl {
    /// Method of claiming on Redis.
    pub kind: BaselineKind,
    /// Servers as `HOST:PORT`; at least one.
    pub hosts: Vec<String>,
    /// Claims (`redis-batch`: workers) of one batch handled concurrently.
    pub concurrent: usize,
}

impl BaselineUrl {
    /// Upper limit of `concurrent`.
    pub const CONCURRENT_MAX: usize = 1_000;

    /// Returns true if the method can only grant whole workers.
    #[must_use]
    pub const fn whole_workers(&self) -> bool {
        matches!(self.kind, BaselineKind::Spop | BaselineKind::Lua)
    }

    /// Parses the parts of a URL; `None` if they are invalid.
    pub(crate) fn read(scheme: &str, hosts: &str, query: Option<&str>) -> Option<Self> {
        let kind = BaselineKind::ALL.iter().copied().find(|kind| kind.into_str() == scheme)?;
        let host = |host: &str| {
            let host: Authority = host.parse().ok()?;
            host.port_u16().map(|_| host.to_string())
        };
        let hosts: Option<Vec<String>> = hosts.split(',').map(host).collect();
        let concurrent = match query {
            None => 1,
            Some(query) => query.strip_prefix("concurrent=")?.parse().ok()?,
        };
        let fits = (1..=Self::CONCURRENT_MAX).contains(&concurrent);
        hosts.filter(|_| fits).map(|hosts| Self { kind, hosts, concurrent })
    }
}

impl std::fmt::Display for BaselineUrl {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}://{}", self.kind.into_str(), self.hosts.join(","))?;
        if self.concurrent > 1 {
            write!(f, "?concurrent={}", self.concurrent)?;
        }
        Ok(())
    }
}
