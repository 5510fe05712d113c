//! Baselines as the command line names them.

use hyper::http::uri::Authority;

/// Which of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BaselineKind {
    /// Read every worker, pick, write under its version.
    Scan,
    /// A set of idle workers.
    Spop,
    /// The pool's lock a claim.
    Lock,
    /// A lock a worker and batch.
    Batch,
    /// One script.
    Lua,
}

impl BaselineKind {
    /// All of them.
    pub const ALL: [Self; 5] = [Self::Scan, Self::Spop, Self::Lock, Self::Batch, Self::Lua];

    /// The word before `://`.
    #[must_use]
    pub const fn scheme(self) -> &'static str {
        match self {
            Self::Scan => "redis-scan",
            Self::Spop => "redis-spop",
            Self::Lock => "redis-lock",
            Self::Batch => "redis-batch",
            Self::Lua => "redis-lua",
        }
    }
}

/// `redis-WAY://HOST:PORT[,HOST:PORT...][?concurrent=N]`. Whether it is a cluster is asked of the first host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BaselineUrl {
    /// Which way.
    pub kind: BaselineKind,
    /// `HOST:PORT` of servers to ask; at least one.
    pub hosts: Vec<String>,
    /// Most claims (`redis-batch`: workers) of one batch that are handled at the same time.
    pub concurrent: usize,
}

impl BaselineUrl {
    /// Most that are handled at the same time.
    pub const CONCURRENT_MAX: usize = 1_000;

    /// Whether it can only give workers whole.
    #[must_use]
    pub const fn whole_workers(&self) -> bool {
        matches!(self.kind, BaselineKind::Spop | BaselineKind::Lua)
    }

    /// Of the parts of a URL; none if they are not one.
    pub(crate) fn read(word: &str, hosts: &str, query: Option<&str>) -> Option<Self> {
        let way = BaselineKind::ALL.into_iter().find(|way| way.scheme() == word)?;
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
        hosts.filter(|_| fits).map(|hosts| Self { kind: way, hosts, concurrent })
    }
}

impl std::fmt::Display for BaselineUrl {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}://{}", self.kind.scheme(), self.hosts.join(","))?;
        if self.concurrent > 1 {
            write!(f, "?concurrent={}", self.concurrent)?;
        }
        Ok(())
    }
}
