//! `[store]`: the store of the records, the lease of the process, and options of a Redis store.

use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::persist::store::redis::{FORMS, RedisOptions, RedisUrl};
use crate::scheduler;

/// Settings of the store, section `[store]`.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct StoreConfig {
    /// Store of the records.
    pub url: StoreUrl,
    /// Longest wait of a durable reply for the store, in milliseconds.
    pub wait_ms: u64,
    /// Directory whose lock proves that the previous owner is dead. This and the following fields are for Redis.
    pub data_dir: PathBuf,
    /// Prefix of all keys in Redis.
    pub key_prefix: String,
    /// Longest wait for a connection and for an answer of a server, in milliseconds.
    pub command_ms: u64,
    /// Whether the process waits until another owner ends, and then takes over.
    pub standby: bool,
    /// Time for which the process owns the store after its last renewal, in milliseconds; 0: [`LEASE_MS`], or with `standby`
    /// [`STANDBY_LEASE_MS`].
    pub lease_ms: u64,
    /// File with the certificates of trusted authorities, in PEM; empty: the system's.
    pub tls_ca_file: PathBuf,
    /// File with the client certificate, in PEM; empty: none.
    pub tls_cert_file: PathBuf,
    /// File with the private key of that certificate, in PEM.
    pub tls_key_file: PathBuf,
}

/// Lease of an owner without a standby, in milliseconds.
pub const LEASE_MS: u64 = 90_000;
/// Lease of an owner with a standby, in milliseconds.
pub const STANDBY_LEASE_MS: u64 = 5_000;

impl Default for StoreConfig {
    fn default() -> Self {
        Self {
            url: StoreUrl::default(),
            wait_ms: scheduler::SchedulerSettings::default().store_wait_ms,
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

impl StoreConfig {
    /// Options with which a Redis store at `url` is opened.
    #[must_use]
    pub fn redis_options(&self, url: RedisUrl) -> RedisOptions {
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

    /// Effective lease, in milliseconds.
    const fn lease_ms(&self) -> u64 {
        match (self.lease_ms, self.standby) {
            (0, true) => STANDBY_LEASE_MS,
            (0, false) => LEASE_MS,
            (lease_ms, _) => lease_ms,
        }
    }

    /// Problems of values that parsed, each with the path of its field.
    pub(super) fn validation_errors(&self) -> Vec<String> {
        let mut problems = Vec::new();
        let prefix = &self.key_prefix;
        let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b"._-:".contains(&byte);
        if !(1..=64).contains(&prefix.len()) || !prefix.bytes().all(is_plain) {
            problems.push(format!("store.key_prefix: must be 1 to 64 bytes of [A-Za-z0-9._:-], got {prefix:?}"));
        }
        if self.lease_ms() < 3 * self.command_ms {
            let lease_ms_min = 3 * self.command_ms;
            problems.push(format!(
                "store.lease_ms: must be at least 3 * store.command_ms ({lease_ms_min}), or one slow answer ends the lease, got {}",
                self.lease_ms()
            ));
        }
        let StoreUrl::Redis(url) = &self.url else {
            if self.standby {
                problems.push(format!("store.standby: {} does not support a standby; use a Redis store", self.url));
            }
            return problems;
        };
        let files = [("ca", &self.tls_ca_file), ("cert", &self.tls_cert_file), ("key", &self.tls_key_file)];
        for (name, path) in files.iter().filter(|(_, path)| !path.as_os_str().is_empty()) {
            if !url.tls {
                problems.push(format!(
                    "store.tls_{name}_file: {} does not use TLS; use a URL that begins with rediss",
                    self.url
                ));
            } else if let Err(error) = std::fs::File::open(path) {
                problems.push(format!("store.tls_{name}_file: cannot read {}: {error}", path.display()));
            }
        }
        if self.tls_cert_file.as_os_str().is_empty() != self.tls_key_file.as_os_str().is_empty() {
            problems.push("store.tls_cert_file: must be set together with store.tls_key_file".to_owned());
        }
        problems
    }
}

/// Store of the records, as a URL.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub enum StoreUrl {
    /// Embedded store in a directory, `file:DIR`; `redb:DIR` means the same.
    File(PathBuf),
    /// No store, `memory:`: nothing is kept.
    Memory,
    /// Redis in one of its forms, as in `redis://host:6379`.
    Redis(RedisUrl),
}

const DATA_DIR: &str = "./hotpool-data";

impl Default for StoreUrl {
    fn default() -> Self {
        Self::File(DATA_DIR.into())
    }
}

impl FromStr for StoreUrl {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.split_once(':') {
            Some(("file" | "redb", "")) => Err("file: needs a directory, as in file:./hotpool-data".to_owned()),
            Some(("file" | "redb", dir)) => Ok(Self::File(dir.into())),
            Some(("memory", "")) => Ok(Self::Memory),
            Some((scheme, _)) if scheme.starts_with("redis") => text.parse().map(Self::Redis),
            _ => Err(format!("must be file:DIR, memory: or one of {FORMS}")),
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
            Self::File(dir) => write!(f, "file:{}", dir.display()),
            Self::Memory => f.write_str("memory:"),
            Self::Redis(url) => url.fmt(f),
        }
    }
}
