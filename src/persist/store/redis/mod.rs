//! `redis://` and similar URLs: one server, a cluster, or a master behind sentinels. Redis records, it never arbitrates.
//!
//! # Keys
//!
//! With the key prefix `hotpool`, pool uid 42 and shard 3:
//!
//! ```text
//! hotpool:{TAG}:42.3:a     hash: the state of the shard, or a snapshot under way, or missing
//! hotpool:{TAG}:42.3:b     likewise; exactly one of the two is live
//! hotpool:{TAG}:0.0:a      pool 0 is the catalog: one row for each pool and quota
//! hotpool:{TAG}:owner      hash: the ownership record (owner, epoch, beat, lease_ms, fence_ceiling, fence_floor, node, who)
//! ```
//!
//! Fields of a state: `#` is its header, `<epoch> <owner> 1 live <seq> <generation>`; `w:<worker id>` a worker with
//! its claims, `p:<pool uid>` a pool of the catalog, `q:<hash of its name>` a quota, `s:` the shard's own state,
//! `g:<number>` a committed gang. A value is the body of the row as [`crate::persist::row`] writes it, its version first. `hotpool store inspect URL` prints them.
//!
//! Both keys of a shard have one hash tag, chosen so that the shards of a pool are equally spaced in the slots ([`keys`]): a
//! batch touches one slot, and a hot pool is written evenly to all masters.
//!
//! # Batches
//!
//! A batch is one call of a function in Redis (`library.lua`), so it is applied atomically, and only if the header shows
//! that it continues the stored state. A snapshot fills the side that is not live, chunk by chunk; the install makes it live
//! and unlinks the other in one call.
//!
//! `appendfsync` and `min-replicas-to-write` determine how many writes a crash of Redis itself may lose. While this process
//! lives it detects that (a *gap*) and writes a snapshot of the shard.

mod connect;
mod keys;
mod library;
mod load;
mod nodes;
mod owner;
mod transport;
mod url;
mod writes;

use parking_lot::Mutex;
use std::collections::BTreeMap;
use std::fs::File;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use futures::future::{BoxFuture, FutureExt as _};
use redis::{ClientTlsConfig, TlsCertificates, Value, cmd};
use uuid::Uuid;

use self::connect::RedisConnector;
use self::load::ShardRead;
use self::nodes::RedisNodes;
use self::owner::{OwnerFields, OwnerWatch, TakeoverCandidate, TakeoverDecision};
use self::transport::SocketTransport;
#[doc(hidden)]
pub use self::transport::{RedisTransport, ServerConnection};
pub use self::url::{FORMS, RedisTopology, RedisUrl, ServerAddress};
use self::writes::{KeySide, OwnerEpoch, ShardProbe};
use super::data_dir;
use super::{
    FenceSpan, LoadedShard, MissingRecord, OwnershipRecord, RenewalOutcome, RowSink, ShardKey, Store, StoreError,
    WriteBatch, WriteKind, WriteOutcome,
};
use crate::environment::Environment;
use crate::model::Millis;

/// Maximum number of bytes of rows in one batch, which keeps a server busy for a few milliseconds; more goes as a
/// snapshot.
const BATCH_BYTES_MAX: usize = 1 << 20;
/// Longest wait of a takeover for a replica to confirm it.
const REPLICA_WAIT: Duration = Duration::from_millis(500);

/// Options of a Redis store.
#[derive(Debug, Clone)]
pub struct RedisOptions {
    /// URL of the server or servers.
    pub url: RedisUrl,
    /// Prefix of all keys: two services may share a server under two prefixes.
    pub key_prefix: String,
    /// Longest wait for a connection and for an answer, in milliseconds.
    pub command_ms: Millis,
    /// Time for which this process is the owner after a renewal, in milliseconds.
    pub lease_ms: Millis,
    /// Whether to wait until another owner ends.
    pub standby: bool,
    /// Directory whose lock proves that the earlier process that used it is dead.
    pub data_dir: PathBuf,
    /// File with the certificates of trusted authorities, in PEM; none: the system's.
    pub tls_ca_file: Option<PathBuf>,
    /// File with the client certificate, in PEM.
    pub tls_cert_file: Option<PathBuf>,
    /// File with the private key of that certificate, in PEM.
    pub tls_key_file: Option<PathBuf>,
}

/// Identity under which a process owns a store.
#[derive(Debug, Clone)]
pub struct OwnerIdentity {
    /// Id of the data directory whose lock the process holds; empty: it holds none.
    pub node: String,
    /// Host and process id, for messages.
    pub label: String,
}

impl OwnerIdentity {
    fn of_this_process(node: String) -> Self {
        let host = rustix::system::uname().nodename().to_string_lossy().into_owned();
        Self { node, label: format!("{host}, pid {}", std::process::id()) }
    }
}

/// Store in a Redis server, cluster, or master behind sentinels.
pub struct RedisStore {
    options: RedisOptions,
    nodes: RedisNodes,
    identity: OwnerIdentity,
    /// Lock of the data directory.
    _lock: Option<File>,
    environment: Environment,
    owner: Mutex<Option<OwnerEpoch>>,
    /// Held while ownership changes or is renewed.
    ownership_lock: tokio::sync::Mutex<()>,
    owner_watch: Mutex<OwnerWatch>,
    /// Highest epoch of a shard above that of the ownership record, from a takeover that Redis lost.
    epoch_floor: AtomicU64,
    fence_ceiling: AtomicU64,
    /// Floor of this owner; 0 until its first grant is near.
    fence_floor: AtomicU64,
    /// Reason for the last unanswered batch.
    fault: Mutex<String>,
    /// Live sides of the shards that this owner has taken.
    sides: Mutex<BTreeMap<ShardKey, KeySide>>,
}

impl std::fmt::Debug for RedisStore {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RedisStore").field("url", &self.options.url).finish_non_exhaustive()
    }
}

impl RedisStore {
    /// Locks the data directory and reads the TLS files; connects later. Blocks.
    ///
    /// # Errors
    /// [`StoreError::Unusable`] if another process uses the directory, or a file cannot be read.
    pub fn open(options: RedisOptions, environment: Environment) -> Result<Self, StoreError> {
        let (lock, node) = data_dir::lock_and_identify(&options.data_dir, &environment)?;
        Self::over_sockets(options, environment, Some(lock), node)
    }

    /// Opens the store for reading only: uses no data directory, and cannot take the store over.
    ///
    /// # Errors
    /// [`StoreError::Unusable`] if a TLS file cannot be read.
    pub fn open_read_only(options: RedisOptions, environment: Environment) -> Result<Self, StoreError> {
        Self::over_sockets(options, environment, None, String::new())
    }

    /// Opens the store over a transport, with an identity that nobody else has. Uses neither the data directory nor the TLS
    /// files of the options.
    #[cfg(feature = "internals")]
    #[doc(hidden)]
    #[must_use]
    pub fn open_on(
        options: RedisOptions,
        transport: Arc<dyn RedisTransport>,
        environment: Environment,
        identity: OwnerIdentity,
    ) -> Self {
        Self::with(options, transport, environment, None, identity)
    }

    fn over_sockets(
        options: RedisOptions,
        environment: Environment,
        lock: Option<File>,
        node: String,
    ) -> Result<Self, StoreError> {
        let tls = if options.url.tls { Some(certificates(&options)?) } else { None };
        let transport = Arc::new(SocketTransport::new(tls));
        Ok(Self::with(options, transport, environment, lock, OwnerIdentity::of_this_process(node)))
    }

    fn with(
        options: RedisOptions,
        transport: Arc<dyn RedisTransport>,
        environment: Environment,
        lock: Option<File>,
        identity: OwnerIdentity,
    ) -> Self {
        let limit = Duration::from_millis(options.command_ms);
        let connector = RedisConnector::new(&options.url, transport, environment.clone(), limit);
        Self {
            nodes: RedisNodes::new(options.url.topology.clone(), connector, environment.clone()),
            identity,
            _lock: lock,
            environment,
            owner: Mutex::default(),
            ownership_lock: tokio::sync::Mutex::new(()),
            fault: Mutex::default(),
            owner_watch: Mutex::default(),
            epoch_floor: AtomicU64::new(0),
            fence_ceiling: AtomicU64::new(0),
            fence_floor: AtomicU64::new(0),
            sides: Mutex::default(),
            options,
        }
    }

    fn prefix(&self) -> &str {
        &self.options.key_prefix
    }

    fn fence_span(&self) -> FenceSpan {
        let load = |bound: &AtomicU64| bound.load(Ordering::Relaxed);
        FenceSpan { floor: load(&self.fence_floor), ceiling: load(&self.fence_ceiling) }
    }

    fn owner(&self) -> Option<OwnerEpoch> {
        *self.owner.lock()
    }

    fn owner_fields(&self, owner: OwnerEpoch) -> OwnerFields<'_> {
        let (prefix, node, who) = (self.prefix(), self.identity.node.as_str(), self.identity.label.as_str());
        OwnerFields { prefix, owner: owner.id, epoch: owner.epoch, node, who, lease_ms: self.options.lease_ms }
    }

    /// Sends one call in the slot of the ownership record; no answer is an error.
    async fn ask(&self, call: nodes::RedisCall) -> Result<Value, StoreError> {
        match self.nodes.call(&[call]).await?.pop() {
            Some(answer) => expect_reply(answer?),
            None => Err(StoreError::Unavailable("a call got no answer".to_owned())),
        }
    }

    async fn take(&self, id: Uuid) -> Result<OwnershipRecord, StoreError> {
        // A renewal during the takeover would use the old epoch.
        let _exclusive = self.ownership_lock.lock().await;
        let read = self.ask(owner::read(self.prefix())).await?;
        let record = owner::parse_record(&read)?;
        let RedisOptions { standby, lease_ms, .. } = self.options;
        let candidate = TakeoverCandidate { node: self.identity.node.clone(), standby, lease_ms };
        let now_ms = self.environment.clock().mono_ns() / 1_000_000;
        let decision = self.owner_watch.lock().decide(&candidate, record.as_ref(), now_ms);
        match decision {
            TakeoverDecision::Take => {}
            TakeoverDecision::Wait(text) => return Err(StoreError::OwnedElsewhere(text)),
            TakeoverDecision::Refuse(text) => return Err(StoreError::Unusable(text)),
        }
        let last_epoch = record.as_ref().map_or(0, |record| record.epoch).max(self.owner_watch.lock().epoch());
        let owner = OwnerEpoch { id, epoch: last_epoch.max(self.epoch_floor.load(Ordering::Relaxed)) + 1 };
        let answer = self.ask(self.owner_fields(owner).take(record.as_ref())).await?;
        let Some(fence_ceiling) = owner::parse_take(&answer).map_err(StoreError::Unusable)? else {
            return Err(StoreError::OwnedElsewhere("another process has just taken the store over".to_owned()));
        };
        self.sides.lock().clear();
        self.fence_ceiling.fetch_max(fence_ceiling, Ordering::Relaxed);
        *self.owner.lock() = Some(owner);
        self.reach_replica(owner).await?;
        // The record that was taken is the one that was read.
        let fence_floor = record.map_or(0, |record| record.fence_floor);
        Ok(OwnershipRecord { epoch: owner.epoch, fence_ceiling, fence_floor })
    }

    /// Waits until a replica has the new epoch, if there are replicas: a failover must not assign it again.
    async fn reach_replica(&self, owner: OwnerEpoch) -> Result<(), StoreError> {
        // `WAIT` covers the writes of its own connection, so role, write and wait use the same one.
        let connection = self.nodes.connection(owner::slot()).await?;
        let about =
            expect_reply(self.nodes.call_on(&connection, &owner::call(cmd("INFO").arg("replication").take())).await?)?;
        let about: String = redis::from_redis_value(about).unwrap_or_default();
        let field = |name: &str| about.lines().find_map(|line| line.strip_prefix(name)).map(str::trim);
        if field("role:") != Some("master") {
            return Err(StoreError::Unavailable(
                "the server that accepted the takeover is no longer the master".to_owned(),
            ));
        }
        if field("connected_slaves:").is_none_or(|replicas| replicas == "0") {
            return Ok(());
        }
        let limit_ms = (REPLICA_WAIT.as_millis() as u64).min(self.options.command_ms / 2);
        let write = self.owner_fields(owner).renew(self.fence_span(), MissingRecord::Report);
        let written =
            self.nodes.call_on(&connection, &write).await?.is_ok_and(|answer| writes::text(&answer) == Some("ok"));
        let wait = owner::call(cmd("WAIT").arg(1).arg(limit_ms).take());
        match self.nodes.call_on(&connection, &wait).await? {
            Ok(Value::Int(reached)) if written && reached > 0 => Ok(()),
            _ => Err(StoreError::Unavailable("no replica has confirmed the takeover yet".to_owned())),
        }
    }

    async fn renew_for(&self, lease_ms: Millis, missing: MissingRecord) -> Result<RenewalOutcome, StoreError> {
        let _exclusive = self.ownership_lock.lock().await;
        let owner =
            self.owner().ok_or_else(|| StoreError::Unusable("the store is not owned before a takeover".into()))?;
        let fields = OwnerFields { lease_ms, ..self.owner_fields(owner) };
        let answer = self.ask(fields.renew(self.fence_span(), missing)).await?;
        match writes::text(&answer) {
            Some("ok") => Ok(RenewalOutcome::Renewed),
            Some("missing") => Ok(RenewalOutcome::Missing),
            Some("fenced") => Ok(RenewalOutcome::Fenced),
            _ => Err(StoreError::Unusable(format!("unexpected answer to a renewal: {answer:?}"))),
        }
    }

    /// Finds the unknown live sides of the shards of these batches. Returns the outcomes of those that failed.
    async fn find_sides(
        &self,
        owner: OwnerEpoch,
        batches: &[WriteBatch],
    ) -> Result<BTreeMap<ShardKey, WriteOutcome>, StoreError> {
        // A shard need not exist to be dropped.
        let needed = batches.iter().filter(|batch| !matches!(batch.kind, WriteKind::Drop)).map(|batch| batch.shard);
        let unknown: Vec<ShardKey> = {
            let sides = self.sides.lock();
            needed.filter(|shard| !sides.contains_key(shard)).collect()
        };
        let mut failed = BTreeMap::new();
        if unknown.is_empty() {
            return Ok(failed);
        }
        let probes: Vec<_> = unknown.iter().map(|&shard| writes::probe(self.prefix(), Some(owner), shard)).collect();
        for (shard, answer) in unknown.into_iter().zip(self.nodes.call(&probes).await?) {
            let answer = match answer {
                Ok(answer) => answer,
                Err(fault) => {
                    failed.insert(shard, self.unanswered(fault.text()));
                    continue;
                }
            };
            match writes::parse_probe(answer)? {
                ShardProbe::Live { side, .. } => {
                    self.sides.lock().insert(shard, side);
                }
                ShardProbe::Fenced { .. } => {
                    failed.insert(shard, WriteOutcome::Fenced);
                }
                // This owner's memory is authoritative; a snapshot will replace the stored rows.
                ShardProbe::Absent | ShardProbe::Damaged(_) => {
                    self.sides.lock().insert(shard, KeySide::A);
                }
            }
        }
        Ok(failed)
    }

    fn unanswered(&self, fault: &str) -> WriteOutcome {
        fault.clone_into(&mut self.fault.lock());
        WriteOutcome::Unanswered
    }

    async fn apply_all(&self, batches: &[WriteBatch]) -> Result<Vec<WriteOutcome>, StoreError> {
        let owner =
            self.owner().ok_or_else(|| StoreError::Unusable("no batch may be applied before a takeover".into()))?;
        let failed = self.find_sides(owner, batches).await?;
        let side = |shard| self.sides.lock().get(&shard).copied().unwrap_or(KeySide::A);
        let sent: Vec<&WriteBatch> = batches.iter().filter(|batch| !failed.contains_key(&batch.shard)).collect();
        let calls: Vec<_> =
            sent.iter().map(|batch| writes::call(self.prefix(), owner, batch, side(batch.shard))).collect();
        let mut answers = self.nodes.call(&calls).await?.into_iter();
        let mut outcomes = Vec::with_capacity(batches.len());
        for batch in batches {
            if let Some(&outcome) = failed.get(&batch.shard) {
                outcomes.push(outcome);
                continue;
            }
            let outcome = match answers.next() {
                Some(Ok(answer)) => writes::parse_outcome(answer).unwrap_or_else(|error| self.unanswered(error.text())),
                Some(Err(fault)) => self.unanswered(fault.text()),
                None => self.unanswered("a batch got no answer"),
            };
            let mut sides = self.sides.lock();
            match (&batch.kind, outcome) {
                (_, WriteOutcome::Gap) | (WriteKind::Drop, _) => {
                    sides.remove(&batch.shard);
                }
                (WriteKind::Install { .. }, WriteOutcome::Ok | WriteOutcome::Duplicate) => {
                    sides.entry(batch.shard).and_modify(|side| *side = side.other());
                }
                _ => {}
            }
            outcomes.push(outcome);
        }
        Ok(outcomes)
    }
}

impl Store for RedisStore {
    fn kind(&self) -> &'static str {
        "redis"
    }

    fn keeps_rows(&self) -> bool {
        true
    }

    fn lease_ms(&self) -> Option<Millis> {
        Some(self.options.lease_ms)
    }

    fn batch_bytes_max(&self) -> usize {
        BATCH_BYTES_MAX
    }

    fn last_fault(&self) -> String {
        self.fault.lock().clone()
    }

    fn writer_partition(&self, shard: ShardKey) -> usize {
        self.nodes.writer_partition(keys::slot(shard))
    }

    fn take_over(&self, owner: Uuid) -> BoxFuture<'_, Result<OwnershipRecord, StoreError>> {
        self.take(owner).boxed()
    }

    fn raise_fence_ceiling(&self, span: FenceSpan) -> BoxFuture<'_, Result<(), StoreError>> {
        async move {
            self.fence_floor.fetch_max(span.floor, Ordering::Relaxed);
            self.fence_ceiling.fetch_max(span.ceiling, Ordering::Relaxed);
            match self.renew_for(self.options.lease_ms, MissingRecord::Report).await? {
                RenewalOutcome::Renewed => Ok(()),
                RenewalOutcome::Missing => Err(StoreError::Unavailable("the ownership record is gone".into())),
                RenewalOutcome::Fenced => Err(StoreError::Unusable("another process owns the store".into())),
            }
        }
        .boxed()
    }

    fn renew(&self, missing: MissingRecord) -> BoxFuture<'_, Result<RenewalOutcome, StoreError>> {
        self.renew_for(self.options.lease_ms, missing).boxed()
    }

    fn resign(&self) -> BoxFuture<'_, Result<(), StoreError>> {
        // A lease of 0 ms: the next owner need not wait.
        async move {
            if self.owner().is_none() {
                return Ok(());
            }
            self.renew_for(0, MissingRecord::Report).await.map(|_| ())
        }
        .boxed()
    }

    fn load(&self, shards: Vec<ShardKey>, sink: RowSink) -> BoxFuture<'_, Result<Vec<LoadedShard>, StoreError>> {
        async move {
            let owner = self.owner();
            let mut loaded = Vec::with_capacity(shards.len());
            for read in load::load(&self.nodes, self.prefix(), owner, shards, sink).await? {
                match read {
                    ShardRead::Done(one, side) => {
                        if let (Some(side), Some(_)) = (side, owner) {
                            self.sides.lock().insert(one.shard, side);
                        }
                        loaded.push(one);
                    }
                    ShardRead::Fenced(epoch) => {
                        // The record names this process, so a failover lost the takeover that assigned that epoch.
                        self.epoch_floor.fetch_max(epoch, Ordering::Relaxed);
                        let text = format!("a shard is at epoch {epoch}, above that of this owner: taking over again");
                        return Err(StoreError::Superseded(text));
                    }
                }
            }
            Ok(loaded)
        }
        .boxed()
    }

    fn apply(&self, batches: Vec<WriteBatch>) -> BoxFuture<'_, Result<Vec<WriteOutcome>, StoreError>> {
        async move { self.apply_all(&batches).await }.boxed()
    }

    fn properties(&self) -> BoxFuture<'_, Result<BTreeMap<String, String>, StoreError>> {
        async move {
            let read = self.ask(owner::read(self.prefix())).await?;
            let mut about: BTreeMap<String, String> =
                redis::from_redis_value(read).map_err(|error| StoreError::Unusable(error.to_string()))?;
            about.insert("library".to_owned(), library::LIBRARY.name.clone());
            Ok(about)
        }
        .boxed()
    }

    fn snapshot_candidate(&self) -> Option<ShardKey> {
        None
    }
}

/// Value of an answer to a call that no server has a reason to reject.
fn expect_reply(answer: nodes::Answer) -> Result<Value, StoreError> {
    answer.map_err(|error| StoreError::Unusable(error.text))
}

fn certificates(options: &RedisOptions) -> Result<TlsCertificates, StoreError> {
    // Fails if the process has a provider already.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let read = |path: &PathBuf| {
        let failed = |error| StoreError::Unusable(format!("cannot read {}: {error}", path.display()));
        std::fs::read(path).map_err(failed)
    };
    let client_tls = match (&options.tls_cert_file, &options.tls_key_file) {
        (Some(cert), Some(key)) => Some(ClientTlsConfig { client_cert: read(cert)?, client_key: read(key)? }),
        _ => None,
    };
    let root_cert = options.tls_ca_file.as_ref().map(read).transpose()?;
    Ok(TlsCertificates { client_tls, root_cert })
}
