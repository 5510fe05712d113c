//! Configuration: defaults, then a TOML file (only if one is named), then `HOTPOOL__SECTION__KEY` from the
//! environment, then flags. Everything is checked, and all problems are reported together, before a port is bound.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use config::{Environment, File, FileFormat};
use serde::Deserialize;
use serde_json::Value;
use serde_path_to_error::Segment;

pub use crate::api::HostNames;
use crate::limits;

mod listen;
mod pools;
mod store;

pub use listen::{ListenError, RespListen, address};
pub use pools::PoolConfig;
pub use store::{LEASE_MS, STANDBY_LEASE_MS, StoreConfig, StoreUrl};

use source_map::ConfigSourceMap;

/// Prefix of the environment variables that are read.
const ENV_PREFIX: &str = "HOTPOOL__";

/// Longest `server.idle_ms`: a week; 0 is unlimited.
const IDLE_MS_MAX: u64 = 7 * 86_400_000;

/// Configuration of the service.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// Settings of the servers, `[server]`.
    pub server: ServerConfig,
    /// Settings of the store, `[store]`.
    pub store: StoreConfig,
    /// Settings of the log, `[log]`.
    pub log: LogConfig,
    /// Pools that are created before the service is ready.
    pub pools: Vec<PoolConfig>,
}

/// Settings of the servers, section `[server]`.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ServerConfig {
    /// Address and port; a name is resolved, no host means all interfaces. Port 0 takes any free one.
    #[serde(deserialize_with = "listen::deserialize")]
    pub listen: SocketAddr,
    /// Address and port of RESP, or `off`.
    pub resp_listen: RespListen,
    /// Names by which clients and browsers may know the service, beside `localhost` and addresses.
    pub hosts: HostNames,
    /// Maximum number of open connections of HTTP and gRPC, and as many again of RESP. Excess connections of RESP are
    /// closed at once; others may get the answer to one probe.
    pub max_connections: usize,
    /// Longest time between two commands of a RESP connection, in milliseconds; 0: unlimited.
    pub idle_ms: u64,
    /// Maximum number of shards of all pools together; a pool that would exceed it is rejected.
    pub max_shards: usize,
    /// Largest request body, in bytes.
    pub max_body_bytes: usize,
    /// Longest time from the headers of a request to its answer, in milliseconds.
    pub request_timeout_ms: u64,
    /// Whether an address that is not loopback may be served, although clients are not authenticated.
    pub insecure: bool,
}

impl Default for ServerConfig {
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

/// Settings of the log, section `[log]`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct LogConfig {
    /// Format of log lines.
    pub format: LogFormat,
}

/// Format of log lines.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LogFormat {
    /// Plain text for people.
    #[default]
    Text,
    /// JSON object on each line.
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

/// Values of flags, which override everything else.
#[derive(Debug, Clone, Default)]
pub struct ConfigOverrides {
    /// Value of `--listen`, if given.
    pub listen: Option<SocketAddr>,
    /// Value of `--resp-listen`, if given.
    pub resp_listen: Option<RespListen>,
    /// Value of `--hosts`, if given.
    pub hosts: Option<HostNames>,
    /// Value of `--store`, if given.
    pub store: Option<StoreUrl>,
    /// Value of `--data-dir`, if given: the directory of the embedded store, or of a Redis store's lock.
    pub data_dir: Option<PathBuf>,
    /// Whether `--standby` is given.
    pub standby: bool,
    /// Whether `--insecure` is given.
    pub insecure: bool,
    /// Value of `--log`, if given.
    pub log: Option<LogFormat>,
}

impl ConfigOverrides {
    /// Keys whose values the flags set.
    fn keys(&self) -> impl Iterator<Item = &'static str> {
        let Self { listen, resp_listen, hosts, store, data_dir, standby, insecure, log } = self;
        let given = [
            (listen.is_some(), "server.listen"),
            (resp_listen.is_some(), "server.resp_listen"),
            (hosts.is_some(), "server.hosts"),
            (store.is_some() || data_dir.is_some(), "store.url"),
            (data_dir.is_some(), "store.data_dir"),
            (*standby, "store.standby"),
            (*insecure, "server.insecure"),
            (log.is_some(), "log.format"),
        ];
        given.into_iter().filter_map(|(is_given, key)| is_given.then_some(key))
    }
}

/// Key that a variable sets: `server.listen` for `HOTPOOL__SERVER__LISTEN`.
fn key_of(variable: &str) -> String {
    variable.strip_prefix(ENV_PREFIX).unwrap_or(variable).to_lowercase().replace("__", ".")
}

/// Whether a key is `outer` or part of its value, as `server.listen` is of `server`.
fn is_within(key: &str, outer: &str) -> bool {
    key.strip_prefix(outer).is_some_and(|rest| rest.is_empty() || rest.starts_with(['.', '[']))
}

/// Prefixes problems with file name and line, unless one of the `overridden` keys has set the value or part of it.
fn with_locations(
    problems: Vec<String>,
    file: Option<&(&Path, ConfigSourceMap<'_>)>,
    overridden: &[String],
) -> Vec<String> {
    let locate = |problem: String| {
        let key = problem.split(": ").next().unwrap_or_default();
        let is_overridden = overridden.iter().any(|other| is_within(key, other) || is_within(other, key));
        let line = file.filter(|_| !is_overridden).and_then(|(path, lines)| Some((path, lines.line_of(key)?)));
        match line {
            Some((path, line)) => format!("{}:{line}: {problem}", path.display()),
            None => problem,
        }
    };
    problems.into_iter().map(locate).collect()
}

/// Reason for which the configuration cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// File that cannot be read.
    #[error("cannot read {path}: {error}")]
    Read {
        /// Path of that file.
        path: PathBuf,
        /// Error of the operating system.
        error: std::io::Error,
    },
    /// File that is not TOML.
    #[error("{path}:{line}: {message}")]
    Toml {
        /// Path of that file.
        path: PathBuf,
        /// Number of the invalid line, from 1.
        line: usize,
        /// Message of the parser.
        message: String,
    },
    /// Sources that cannot be merged.
    #[error("{0}")]
    Parse(#[from] config::ConfigError),
    /// All problems, one per line.
    #[error("{}", .0.join("\n"))]
    Problems(Vec<String>),
}

impl Config {
    /// Merges the sources and checks the result.
    ///
    /// # Errors
    /// [`ConfigError`] with all problems that can be found together.
    pub fn load(
        file: Option<&Path>,
        environment: impl IntoIterator<Item = (String, String)>,
        flags: ConfigOverrides,
    ) -> Result<Self, ConfigError> {
        let mut sources = config::Config::builder();
        let read = |path: &Path| {
            std::fs::read_to_string(path).map_err(|error| ConfigError::Read { path: path.to_owned(), error })
        };
        let text = file.map(read).transpose()?;
        let mut lines = None;
        if let (Some(path), Some(text)) = (file, &text) {
            let invalid = |(line, message)| ConfigError::Toml { path: path.to_owned(), line, message };
            lines = Some((path, ConfigSourceMap::parse(text).map_err(invalid)?));
            sources = sources.add_source(File::from_str(text, FileFormat::Toml));
        }
        let ours: HashMap<_, _> = environment.into_iter().filter(|(name, _)| name.starts_with(ENV_PREFIX)).collect();
        let variables = Environment::with_prefix("HOTPOOL").prefix_separator("__").separator("__");
        let mut overridden: Vec<String> = ours.keys().map(|name| key_of(name)).collect();
        sources = sources.add_source(variables.try_parsing(true).source(Some(ours)));
        let (mut config, parse_problems) = parse(sources.build()?.try_deserialize()?);
        // Parse errors do not depend on flags, which are parsed already and applied later.
        let mut problems = with_locations(parse_problems, lines.as_ref(), &overridden);
        overridden.extend(flags.keys().map(str::to_owned));
        config.apply_overrides(flags);
        problems.extend(with_locations(config.validation_errors(), lines.as_ref(), &overridden));
        if problems.is_empty() { Ok(config) } else { Err(ConfigError::Problems(problems)) }
    }

    fn apply_overrides(&mut self, flags: ConfigOverrides) {
        let ConfigOverrides { listen, resp_listen, hosts, store, data_dir, standby, insecure, log } = flags;
        self.server.listen = listen.unwrap_or(self.server.listen);
        self.server.resp_listen = resp_listen.unwrap_or(self.server.resp_listen);
        self.server.hosts = hosts.unwrap_or_else(|| std::mem::take(&mut self.server.hosts));
        self.server.insecure |= insecure;
        self.log.format = log.unwrap_or(self.log.format);
        self.store.standby |= standby;
        match (store, data_dir) {
            (None, Some(dir)) if !matches!(self.store.url, StoreUrl::Redis(_)) => self.store.url = StoreUrl::File(dir),
            (store, dir) => {
                self.store.url = store.unwrap_or_else(|| std::mem::take(&mut self.store.url));
                self.store.data_dir = dir.unwrap_or_else(|| std::mem::take(&mut self.store.data_dir));
            }
        }
    }

    /// Problems of values that parsed, each with the path of its field.
    fn validation_errors(&self) -> Vec<String> {
        let Self { server, store, pools, .. } = self;
        let mut problems = Vec::new();
        let mut range = |key: &str, value: u64, min: u64, max: u64| {
            if !(min..=max).contains(&value) {
                problems.push(format!("{key}: must be {min} to {max}, got {value}"));
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
            let message = "store.wait_ms: must not be above server.request_timeout_ms, or requests time out before they can report it";
            problems.push(message.to_owned());
        }
        let listens = [("listen", Some(server.listen)), ("resp_listen", server.resp_listen.0)];
        for (key, address) in listens.into_iter().filter_map(|(key, address)| Some((key, address?))) {
            if !address.ip().is_loopback() && !server.insecure {
                problems.push(format!(
                    "server.{key}: {address} can be reached from other machines, and clients are not authenticated; use \
                     --insecure (server.insecure = true) to allow that"
                ));
            }
        }
        problems.extend(store.validation_errors());
        problems.extend(pools::validation_errors(pools, server.max_shards));
        problems
    }
}

/// Parses the tree. Each value that cannot be parsed is reported and removed, until the rest can be.
fn parse(mut tree: Value) -> (Config, Vec<String>) {
    let mut problems = Vec::new();
    loop {
        match serde_path_to_error::deserialize::<_, Config>(&tree) {
            Ok(config) => return (config, problems),
            Err(error) => {
                problems.push(format!("{}: {}", error.path(), error.inner()));
                let path: Vec<&Segment> = error.path().iter().collect();
                if !remove_value(&mut tree, &path, problems.len()) {
                    return (Config::default(), problems);
                }
            }
        }
    }
}

/// Removes the value at this path from the tree; false if it does not exist. `number` is unique per call.
fn remove_value(tree: &mut Value, path: &[&Segment], number: usize) -> bool {
    let Some((last, before)) = path.split_last() else { return false };
    let inner = before.iter().try_fold(tree, |tree, step| match step {
        Segment::Map { key } => tree.get_mut(key),
        Segment::Seq { index } => tree.get_mut(*index),
        _ => None,
    });
    match (inner, last) {
        // Removing the name of a pool would cause another problem.
        (Some(pool), Segment::Map { key }) if key == "name" && matches!(before.last(), Some(Segment::Seq { .. })) => {
            let removed = pool.as_object_mut().and_then(|pool| pool.remove(key));
            pools::replace_with_placeholder(pool, number);
            removed.is_some()
        }
        (Some(Value::Object(table)), Segment::Map { key }) => table.remove(key).is_some(),
        (Some(Value::Array(pools)), Segment::Seq { index }) => {
            pools.get_mut(*index).map(|pool| pools::replace_with_placeholder(pool, number)).is_some()
        }
        _ => false,
    }
}

mod source_map;
#[cfg(test)]
mod tests;
