//! Configuration: defaults, then a TOML file (only if one is named), then `HOTPOOL__SECTION__KEY` from the
//! environment, then flags. Everything is checked, and every problem told at once, before a port is bound.

use std::collections::{HashMap, HashSet};
use std::fmt;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use config::{Environment, File, FileFormat};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use serde_path_to_error::Segment;

pub use crate::api::HostNames;
use crate::limits;
use crate::scheduler;
use crate::store::redis::{FORMS, RedisOptions, RedisUrl};

mod lines;
mod listen;
mod pools;

pub use listen::{ListenError, address};
pub use pools::Pool;

use lines::Lines;

/// Prefix of the variables that are read.
const ENV_PREFIX: &str = "HOTPOOL__";

/// Longest `server.idle_ms`: a week. Who wants longer says 0.
const IDLE_MS_MAX: u64 = 7 * 86_400_000;

/// The whole configuration.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// The HTTP server.
    pub server: Server,
    /// The store.
    pub store: Store,
    /// Logging.
    pub log: Log,
    /// Pools that are there before the service is ready.
    pub pools: Vec<Pool>,
}

/// `[server]`.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Server {
    /// Address and port; a name is resolved, no host means all interfaces. Port 0 takes any free one.
    #[serde(deserialize_with = "listen::deserialize")]
    pub listen: SocketAddr,
    /// The same for RESP.
    pub resp_listen: RespListen,
    /// Names by which clients and browsers may know the service, beside `localhost` and addresses.
    pub hosts: HostNames,
    /// Most connections at a time, of HTTP and gRPC and again of RESP; of more, those of RESP are closed at once, and the
    /// others are answered one probe.
    pub max_connections: usize,
    /// How long a RESP connection may be silent between two commands, in milliseconds; 0: for ever.
    pub idle_ms: u64,
    /// Most shards of all pools together; a pool that would bring more is refused.
    pub max_shards: usize,
    /// Largest request body, in bytes.
    pub max_body_bytes: usize,
    /// From a request's head to its answer, in milliseconds.
    pub request_timeout_ms: u64,
    /// Whether an address that is not loopback may be served, though nobody is asked who they are.
    pub insecure: bool,
}

impl Default for Server {
    fn default() -> Self {
        Self {
            listen: SocketAddr::from(([127, 0, 0, 1], 7070)),
            resp_listen: RespListen(Some(SocketAddr::from(([127, 0, 0, 1], 7071)))),
            hosts: HostNames::default(),
            max_connections: 16_384,
            idle_ms: 3_600_000,
            max_shards: limits::TOTAL_SHARDS_DEFAULT,
            max_body_bytes: 8 << 20,
            request_timeout_ms: 10_000,
            insecure: false,
        }
    }
}

/// Where RESP is served, or `off`.
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

/// `[store]`.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Store {
    /// Where records go.
    pub url: StoreUrl,
    /// How long a durable answer waits for the store, in milliseconds.
    pub wait_ms: u64,
    /// The rest is for Redis. Directory whose lock shows that the process that was the owner before is dead.
    pub data_dir: PathBuf,
    /// What the keys begin with.
    pub key_prefix: String,
    /// Longest wait for a connection and for an answer of a server, in milliseconds.
    pub command_ms: u64,
    /// Whether to wait for the end of another owner and take over then.
    pub standby: bool,
    /// How long the process owns the store after its last renewal, in milliseconds; 0: [`LEASE_MS`], or with `standby`
    /// [`STANDBY_LEASE_MS`].
    pub lease_ms: u64,
    /// Certificates of the authorities to trust, in PEM; empty: the system's.
    pub tls_ca_file: PathBuf,
    /// Certificate to show, in PEM; empty: none.
    pub tls_cert_file: PathBuf,
    /// Its private key, in PEM.
    pub tls_key_file: PathBuf,
}

/// Lease of an owner that nobody waits for.
pub const LEASE_MS: u64 = 90_000;
/// Lease of an owner that others stand by for, as each of them does for the other.
pub const STANDBY_LEASE_MS: u64 = 5_000;

impl Default for Store {
    fn default() -> Self {
        Self {
            url: StoreUrl::default(),
            wait_ms: scheduler::Settings::default().store_wait_ms,
            data_dir: DATA_DIR.into(),
            key_prefix: "hotpool".to_owned(),
            command_ms: 1_000,
            standby: false,
            lease_ms: 0,
            tls_ca_file: PathBuf::new(),
            tls_cert_file: PathBuf::new(),
            tls_key_file: PathBuf::new(),
        }
    }
}

impl Store {
    /// What a Redis store must know.
    #[must_use]
    pub fn redis(&self, url: RedisUrl) -> RedisOptions {
        let file = |path: &Path| Some(path.to_owned()).filter(|path| !path.as_os_str().is_empty());
        RedisOptions {
            url,
            key_prefix: self.key_prefix.clone(),
            command_ms: self.command_ms,
            lease_ms: self.lease_ms(),
            standby: self.standby,
            data_dir: self.data_dir.clone(),
            tls_ca_file: file(&self.tls_ca_file),
            tls_cert_file: file(&self.tls_cert_file),
            tls_key_file: file(&self.tls_key_file),
        }
    }

    /// The lease that holds.
    const fn lease_ms(&self) -> u64 {
        match (self.lease_ms, self.standby) {
            (0, true) => STANDBY_LEASE_MS,
            (0, false) => LEASE_MS,
            (lease_ms, _) => lease_ms,
        }
    }

    fn problems(&self) -> Vec<String> {
        let mut problems = Vec::new();
        let prefix = &self.key_prefix;
        let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b"._-:".contains(&byte);
        if !(1..=64).contains(&prefix.len()) || !prefix.bytes().all(is_plain) {
            problems.push(format!("store.key_prefix: must be 1..=64 bytes of [A-Za-z0-9._:-], got {prefix:?}"));
        }
        if self.lease_ms() < 3 * self.command_ms {
            let least = 3 * self.command_ms;
            problems.push(format!(
                "store.lease_ms: must be at least 3 * store.command_ms ({least}), or one slow answer ends it, got {}",
                self.lease_ms()
            ));
        }
        let StoreUrl::Redis(url) = &self.url else {
            if self.standby {
                problems.push(format!("store.standby: {} has one owner at a time by its lock; use Redis", self.url));
            }
            return problems;
        };
        let files = [("ca", &self.tls_ca_file), ("cert", &self.tls_cert_file), ("key", &self.tls_key_file)];
        for (name, path) in files.iter().filter(|(_, path)| !path.as_os_str().is_empty()) {
            if !url.tls {
                problems.push(format!(
                    "store.tls_{name}_file: {} is not encrypted; its TLS form begins with rediss",
                    self.url
                ));
            } else if let Err(error) = std::fs::File::open(path) {
                problems.push(format!("store.tls_{name}_file: cannot read {}: {error}", path.display()));
            }
        }
        if self.tls_cert_file.as_os_str().is_empty() != self.tls_key_file.as_os_str().is_empty() {
            problems.push("store.tls_cert_file: it and store.tls_key_file go together".to_owned());
        }
        problems
    }
}

/// `[log]`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Log {
    /// How lines are written.
    pub format: LogFormat,
}

/// Where records go.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub enum StoreUrl {
    /// `redb:DIR`: embedded, in a directory.
    Redb(PathBuf),
    /// `memory:`: nothing is kept.
    Memory,
    /// Redis, in one of its forms.
    Redis(RedisUrl),
}

const DATA_DIR: &str = "./hotpool-data";

impl Default for StoreUrl {
    fn default() -> Self {
        Self::Redb(DATA_DIR.into())
    }
}

impl FromStr for StoreUrl {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.split_once(':') {
            Some(("redb", "")) => Err("redb: needs a directory, as in redb:./hotpool-data".to_owned()),
            Some(("redb", dir)) => Ok(Self::Redb(dir.into())),
            Some(("memory", "")) => Ok(Self::Memory),
            Some((scheme, _)) if scheme.starts_with("redis") => text.parse().map(Self::Redis),
            _ => Err(format!("must be redb:DIR, memory: or one of {FORMS}")),
        }
    }
}

impl TryFrom<String> for StoreUrl {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

impl Serialize for StoreUrl {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl fmt::Display for StoreUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Redb(dir) => write!(f, "redb:{}", dir.display()),
            Self::Memory => f.write_str("memory:"),
            Self::Redis(url) => url.fmt(f),
        }
    }
}

/// How log lines are written.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LogFormat {
    /// For people.
    #[default]
    Text,
    /// One JSON object a line.
    Json,
}

impl FromStr for LogFormat {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "text" => Ok(Self::Text),
            "json" => Ok(Self::Json),
            _ => Err("must be text or json".to_owned()),
        }
    }
}

/// What flags say; it goes over everything else.
#[derive(Debug, Clone, Default)]
pub struct Overrides {
    /// `--listen`.
    pub listen: Option<SocketAddr>,
    /// `--resp-listen`.
    pub resp_listen: Option<RespListen>,
    /// `--hosts`.
    pub hosts: Option<HostNames>,
    /// `--store`.
    pub store: Option<StoreUrl>,
    /// `--data-dir`: of the embedded store, or of a Redis store's lock.
    pub data_dir: Option<PathBuf>,
    /// `--standby`.
    pub standby: bool,
    /// `--insecure`.
    pub insecure: bool,
    /// `--log`.
    pub log: Option<LogFormat>,
}

impl Overrides {
    /// Keys that flags go over.
    fn keys(&self) -> impl Iterator<Item = &'static str> {
        let said = [
            (self.listen.is_some(), "server.listen"),
            (self.resp_listen.is_some(), "server.resp_listen"),
            (self.store.is_some() || self.data_dir.is_some(), "store.url"),
            (self.data_dir.is_some(), "store.data_dir"),
            (self.standby, "store.standby"),
            (self.insecure, "server.insecure"),
            (self.log.is_some(), "log.format"),
        ];
        said.into_iter().filter_map(|(said, key)| said.then_some(key))
    }
}

/// The key that a variable goes over: `server.listen` for `HOTPOOL__SERVER__LISTEN`.
fn key_of(variable: &str) -> String {
    variable.trim_start_matches(ENV_PREFIX).to_lowercase().replace("__", ".")
}

/// The configuration cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("cannot read {path}: {error}")]
    Read {
        /// Which.
        path: PathBuf,
        /// Why.
        error: std::io::Error,
    },
    /// The file is not TOML.
    #[error("{path}:{line}: {message}")]
    Toml {
        /// Which.
        path: PathBuf,
        /// The line that is wrong, from 1.
        line: usize,
        /// Why.
        message: String,
    },
    /// The parts cannot be put together.
    #[error("{0}")]
    Parse(#[from] config::ConfigError),
    /// Every problem, one a line.
    #[error("{}", .0.join("\n"))]
    Problems(Vec<String>),
}

impl Config {
    /// Puts the parts together and checks the result.
    ///
    /// # Errors
    /// Every problem that can be seen at once.
    pub fn load(
        file: Option<&Path>,
        environment: impl IntoIterator<Item = (String, String)>,
        flags: Overrides,
    ) -> Result<Self, ConfigError> {
        let mut sources = config::Config::builder();
        let read = |path: &Path| {
            std::fs::read_to_string(path).map_err(|error| ConfigError::Read { path: path.to_owned(), error })
        };
        let text = file.map(read).transpose()?;
        let mut lines = None;
        if let (Some(path), Some(text)) = (file, &text) {
            let wrong = |(line, message)| ConfigError::Toml { path: path.to_owned(), line, message };
            lines = Some((path, Lines::parse(text).map_err(wrong)?));
            sources = sources.add_source(File::from_str(text, FileFormat::Toml));
        }
        let ours: HashMap<_, _> = environment.into_iter().filter(|(name, _)| name.starts_with(ENV_PREFIX)).collect();
        let variables = Environment::with_prefix("HOTPOOL").prefix_separator("__").separator("__");
        let mut elsewhere: HashSet<String> = ours.keys().map(|name| key_of(name)).collect();
        elsewhere.extend(flags.keys().map(str::to_owned));
        sources = sources.add_source(variables.try_parsing(true).source(Some(ours)));
        let (mut config, mut problems) = parse(sources.build()?.try_deserialize()?);
        config.overlay(flags);
        problems.extend(config.problems());
        for problem in &mut problems {
            let key = problem.split(": ").next().unwrap_or_default();
            let in_file = lines.as_ref().filter(|_| !elsewhere.contains(key));
            if let Some((path, line)) = in_file.and_then(|(path, lines)| Some((path, lines.of(key)?))) {
                *problem = format!("{}:{line}: {problem}", path.display());
            }
        }
        if problems.is_empty() { Ok(config) } else { Err(ConfigError::Problems(problems)) }
    }

    fn overlay(&mut self, flags: Overrides) {
        let Overrides { listen, resp_listen, hosts, store, data_dir, standby, insecure, log } = flags;
        self.server.listen = listen.unwrap_or(self.server.listen);
        self.server.resp_listen = resp_listen.unwrap_or(self.server.resp_listen);
        self.server.hosts = hosts.unwrap_or_else(|| std::mem::take(&mut self.server.hosts));
        self.server.insecure |= insecure;
        self.log.format = log.unwrap_or(self.log.format);
        self.store.standby |= standby;
        match (store, data_dir) {
            (None, Some(dir)) if !matches!(self.store.url, StoreUrl::Redis(_)) => self.store.url = StoreUrl::Redb(dir),
            (store, dir) => {
                self.store.url = store.unwrap_or_else(|| std::mem::take(&mut self.store.url));
                self.store.data_dir = dir.unwrap_or_else(|| std::mem::take(&mut self.store.data_dir));
            }
        }
    }

    /// What is wrong with values that parsed.
    fn problems(&self) -> Vec<String> {
        let Self { server, store, pools, .. } = self;
        let mut problems = Vec::new();
        let mut range = |key: &str, value: u64, min: u64, max: u64| {
            if !(min..=max).contains(&value) {
                problems.push(format!("{key}: must be {min}..={max}, got {value}"));
            }
        };
        range("server.max_connections", server.max_connections as u64, 1, 1_000_000);
        range("server.idle_ms", server.idle_ms, 0, IDLE_MS_MAX);
        range("server.max_shards", server.max_shards as u64, 1, limits::TOTAL_SHARDS_MAX as u64);
        range("server.max_body_bytes", server.max_body_bytes as u64, 1 << 10, 64 << 20);
        range("server.request_timeout_ms", server.request_timeout_ms, 10, 600_000);
        range("store.wait_ms", store.wait_ms, 1, 600_000);
        range("store.command_ms", store.command_ms, 10, 60_000);
        range("store.lease_ms", store.lease_ms, 0, 3_600_000);
        if store.wait_ms > server.request_timeout_ms {
            let message = "store.wait_ms: must not be above server.request_timeout_ms, or no answer could tell of it";
            problems.push(message.to_owned());
        }
        let listens = [("listen", Some(server.listen)), ("resp_listen", server.resp_listen.0)];
        for (key, address) in listens.into_iter().filter_map(|(key, address)| Some((key, address?))) {
            if !address.ip().is_loopback() && !server.insecure {
                problems.push(format!(
                    "server.{key}: {address} can be reached from other machines, and this version asks nobody who they \
                     are; say --insecure (server.insecure = true) if that is meant"
                ));
            }
        }
        problems.extend(store.problems());
        problems.extend(pools::problems(pools, server.max_shards));
        problems
    }
}

/// Reads the tree; what cannot be read is told and taken out, until the rest can.
fn parse(mut tree: Value) -> (Config, Vec<String>) {
    let mut problems = Vec::new();
    loop {
        match serde_path_to_error::deserialize::<_, Config>(&tree) {
            Ok(config) => return (config, problems),
            Err(error) => {
                problems.push(format!("{}: {}", error.path(), error.inner()));
                let path: Vec<&Segment> = error.path().iter().collect();
                if !remove(&mut tree, &path, problems.len()) {
                    return (Config::default(), problems);
                }
            }
        }
    }
}

/// Takes the value at this path out of the tree; false if there is none. `number` is one that no other call had.
fn remove(tree: &mut Value, path: &[&Segment], number: usize) -> bool {
    let Some((last, before)) = path.split_last() else { return false };
    let inner = before.iter().try_fold(tree, |tree, step| match step {
        Segment::Map { key } => tree.get_mut(key),
        Segment::Seq { index } => tree.get_mut(*index),
        _ => None,
    });
    match (inner, last) {
        // A pool without a name would be one more problem.
        (Some(pool), Segment::Map { key }) if key == "name" && matches!(before.last(), Some(Segment::Seq { .. })) => {
            let wrong = pool.as_object_mut().and_then(|pool| pool.remove(key));
            pools::stand_in(pool, number);
            wrong.is_some()
        }
        (Some(Value::Object(table)), Segment::Map { key }) => table.remove(key).is_some(),
        (Some(Value::Array(pools)), Segment::Seq { index }) => {
            pools.get_mut(*index).map(|pool| pools::stand_in(pool, number)).is_some()
        }
        _ => false,
    }
}

#[cfg(test)]
#[path = "config_tests.rs"]
mod tests;
