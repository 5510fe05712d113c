//! `redis://` and its kin: one server, a cluster, or a master that sentinels watch. Redis records, it never arbitrates.
//!
//! # Keys
//!
//! With the key prefix `hotpool`, pool uid 42 and shard 3:
//!
//! ```text
//! hotpool:{TAG}:42.3:a     hash: the shard's state, or a rewrite under way, or not there
//! hotpool:{TAG}:42.3:b     the same; exactly one of the two is live
//! hotpool:{TAG}:0.0:a      pool 0 is the catalogue: one row a pool
//! hotpool:{TAG}:owner      hash: the record of ownership (owner, epoch, beat, lease_ms, fence_ceiling, fence_floor, node, who)
//! ```
//!
//! Fields of a state: `#` is its header, `<epoch> <owner> 1 live <seq> <generation>`; `w:<worker id>` a worker with
//! its claims, `p:<pool uid>` a pool of the catalogue, `q:<hash of its name>` a quota, `s:` what the shard remembers of itself,
//! `g:<number>` a gang that is committed. A value is the body of the row as [`crate::persist::row`] writes it, its version first. `hotpool store inspect URL` prints them.
//!
//! Both keys of a shard have one hash tag, chosen so that the shards of a pool lie at equal distances around the slots
//! ([`keys`]): one step is one slot, and a hot pool is written evenly to all masters.
//!
//! # Steps
//!
//! A step is one call of a function in Redis (`library.lua`), so it is applied wholly or not at all, and only if the
//! header says that it continues what is there. A rewrite fills the side that is not live, chunk by chunk; the flip
//! makes it live and unlinks the other in one call.
//!
//! Redis keeps what it says that it keeps: how many writes a crash of Redis itself may lose is set by `appendfsync`
//! and `min-replicas-to-write` there. While this process lives it finds out (a *gap*) and writes the shard anew.

mod connect;
mod keys;
mod library;
mod load;
mod nodes;
mod owner;
mod url;
mod writes;

use parking_lot::{Mutex, MutexGuard};
use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use futures::future::{BoxFuture, FutureExt as _};
use redis::{ClientTlsConfig, TlsCertificates, Value, cmd};
use uuid::Uuid;

use self::connect::RedisConnector;
use self::load::ShardRead;
use self::nodes::RedisNodes;
use self::owner::{OwnerFields, OwnerWatch, TakeoverCandidate, TakeoverDecision};
pub use self::url::{FORMS, RedisTopology, RedisUrl, ServerAddress};
use self::writes::{KeySide, OwnerEpoch, ShardProbe};
use super::data_dir;
use super::{
    FenceSpan, LoadedShard, OwnershipRecord, RenewalOutcome, RowSink, ShardKey, Store, StoreError, WriteBatch,
    WriteKind, WriteOutcome,
};
use crate::clock::Clock;
use crate::model::Millis;

/// Bytes of rows in one step; more goes as a rewrite. One step keeps a server busy for a few milliseconds.
const STEP_BYTES_MAX: usize = 1 << 20;
/// How long a take-over waits for a replica to have it.
const REPLICA_WAIT: Duration = Duration::from_millis(500);

/// What a Redis store must know.
#[derive(Debug, Clone)]
pub struct RedisOptions {
    /// Where it is.
    pub url: RedisUrl,
    /// What its keys begin with: two services may share a server under two prefixes.
    pub key_prefix: String,
    /// Longest wait for a connection, and for an answer, in milliseconds.
    pub command_ms: Millis,
    /// How long this process is the owner after the last renewal, in milliseconds.
    pub lease_ms: Millis,
    /// Whether to wait for the end of another owner.
    pub standby: bool,
    /// Directory whose lock shows that an earlier process of this place is dead.
    pub data_dir: PathBuf,
    /// Certificates of the authorities to trust, in PEM; none: the system's.
    pub tls_ca_file: Option<PathBuf>,
    /// Certificate to show, in PEM.
    pub tls_cert_file: Option<PathBuf>,
    /// Its private key, in PEM.
    pub tls_key_file: Option<PathBuf>,
}

/// A Redis server, cluster, or master behind sentinels.
pub struct RedisStore {
    options: RedisOptions,
    nodes: RedisNodes,
    /// Id of the data directory, and its lock.
    node: String,
    _lock: Option<File>,
    owner_label: String,
    clock: Clock,
    ours: Mutex<Option<OwnerEpoch>>,
    /// Held while ownership changes or is renewed.
    ownership_lock: tokio::sync::Mutex<()>,
    owner_watch: Mutex<OwnerWatch>,
    /// An epoch that some shard was found at, above that of the record: a take-over that Redis lost.
    epoch_floor: AtomicU64,
    fence_ceiling: AtomicU64,
    /// Of this owner; 0 until it is about to give fences out.
    fence_floor: AtomicU64,
    /// Why a step was not taken last.
    fault: Mutex<String>,
    /// Live sides, of the shards that this owner has taken.
    sides: Mutex<HashMap<ShardKey, KeySide>>,
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
    /// `Unusable` if another process has the directory, or a file cannot be read.
    pub fn open(options: RedisOptions) -> Result<Self, StoreError> {
        let (lock, node) = data_dir::lock_and_identify(&options.data_dir)?;
        Self::with(options, Some(lock), node)
    }

    /// To look only: takes no directory, and cannot take the store over.
    ///
    /// # Errors
    /// A TLS file cannot be read.
    pub fn open_read_only(options: RedisOptions) -> Result<Self, StoreError> {
        Self::with(options, None, String::new())
    }

    fn with(options: RedisOptions, lock: Option<File>, node: String) -> Result<Self, StoreError> {
        let tls = if options.url.tls { Some(certificates(&options)?) } else { None };
        let connector = RedisConnector::new(&options.url, tls, Duration::from_millis(options.command_ms));
        let host = rustix::system::uname().nodename().to_string_lossy().into_owned();
        Ok(Self {
            nodes: RedisNodes::new(options.url.topology.clone(), connector),
            node,
            _lock: lock,
            owner_label: format!("{host}, pid {}", std::process::id()),
            clock: Clock::system(),
            ours: Mutex::default(),
            ownership_lock: tokio::sync::Mutex::new(()),
            fault: Mutex::default(),
            owner_watch: Mutex::default(),
            epoch_floor: AtomicU64::new(0),
            fence_ceiling: AtomicU64::new(0),
            fence_floor: AtomicU64::new(0),
            sides: Mutex::default(),
            options,
        })
    }

    fn prefix(&self) -> &str {
        &self.options.key_prefix
    }

    fn fence_span(&self) -> FenceSpan {
        let of = |bound: &AtomicU64| bound.load(Ordering::Relaxed);
        FenceSpan { floor: of(&self.fence_floor), ceiling: of(&self.fence_ceiling) }
    }

    fn owner(&self) -> Option<OwnerEpoch> {
        *lock_unpoisoned(&self.ours)
    }

    fn owner_fields(&self, owner: OwnerEpoch) -> OwnerFields<'_> {
        let (prefix, node, who) = (self.prefix(), self.node.as_str(), self.owner_label.as_str());
        OwnerFields { prefix, owner: owner.id, epoch: owner.epoch, node, who, lease_ms: self.options.lease_ms }
    }

    /// One call in the slot of the record of ownership, which must be answered.
    async fn ask(&self, call: nodes::RedisCall) -> Result<Value, StoreError> {
        match self.nodes.call(&[call]).await?.pop() {
            Some(answer) => expect_reply(answer?),
            None => Err(StoreError::Unavailable("a call was left without an answer".to_owned())),
        }
    }

    async fn take(&self, id: Uuid) -> Result<OwnershipRecord, StoreError> {
        // A renewal in the middle of it would go out under the old epoch.
        let _alone = self.ownership_lock.lock().await;
        let read = self.ask(owner::read(self.prefix())).await?;
        let record = owner::parse_record(&read).map_err(StoreError::Unusable)?;
        let RedisOptions { standby, lease_ms, .. } = self.options;
        let candidate = TakeoverCandidate { node: self.node.clone(), standby, lease_ms };
        let now_ms = self.clock.mono_ns() / 1_000_000;
        let verdict = lock_unpoisoned(&self.owner_watch).decide(&candidate, record.as_ref(), now_ms);
        match verdict {
            TakeoverDecision::Take => {}
            TakeoverDecision::Wait(why) => return Err(StoreError::OwnedElsewhere(why)),
            TakeoverDecision::Refuse(why) => return Err(StoreError::Unusable(why)),
        }
        let known = record.as_ref().map_or(0, |record| record.epoch).max(lock_unpoisoned(&self.owner_watch).epoch());
        let owner = OwnerEpoch { id, epoch: known.max(self.epoch_floor.load(Ordering::Relaxed)) + 1 };
        let taken = self.ask(self.owner_fields(owner).take(record.as_ref())).await?;
        let Some(fence_ceiling) = owner::parse_take(&taken).map_err(StoreError::Unusable)? else {
            return Err(StoreError::OwnedElsewhere("somebody else took the store over at this moment".to_owned()));
        };
        lock_unpoisoned(&self.sides).clear();
        self.fence_ceiling.fetch_max(fence_ceiling, Ordering::Relaxed);
        *lock_unpoisoned(&self.ours) = Some(owner);
        self.reach_replica(owner).await?;
        // What was taken is what was read.
        let fence_floor = record.map_or(0, |record| record.fence_floor);
        Ok(OwnershipRecord { epoch: owner.epoch, fence_ceiling, fence_floor })
    }

    /// An epoch counts once a replica has it, where there are replicas: a failover must not give it out again.
    async fn reach_replica(&self, owner: OwnerEpoch) -> Result<(), StoreError> {
        // `WAIT` speaks of the writes of its own connection: so role, write and wait go down the same one.
        let connection = self.nodes.connection(owner::slot()).await?;
        let about =
            expect_reply(self.nodes.call_on(&connection, &owner::call(cmd("INFO").arg("replication").take())).await?)?;
        let about: String = redis::from_redis_value(about).unwrap_or_default();
        let field = |name: &str| about.lines().find_map(|line| line.strip_prefix(name)).map(str::trim);
        if field("role:") != Some("master") {
            return Err(StoreError::Unavailable("the server that took the take-over is no master any more".to_owned()));
        }
        if field("connected_slaves:").is_none_or(|replicas| replicas == "0") {
            return Ok(());
        }
        let limit_ms = (REPLICA_WAIT.as_millis() as u64).min(self.options.command_ms / 2);
        let write = self.owner_fields(owner).renew(self.fence_span(), false);
        let written =
            self.nodes.call_on(&connection, &write).await?.is_ok_and(|answer| writes::text(&answer) == Some("ok"));
        let wait = owner::call(cmd("WAIT").arg(1).arg(limit_ms).take());
        match self.nodes.call_on(&connection, &wait).await? {
            Ok(Value::Int(reached)) if written && reached > 0 => Ok(()),
            _ => Err(StoreError::Unavailable("no replica has confirmed the take-over yet".to_owned())),
        }
    }

    async fn renewed(&self, lease_ms: Millis, create: bool) -> Result<RenewalOutcome, StoreError> {
        let _alone = self.ownership_lock.lock().await;
        let owner = self.owner().ok_or_else(|| StoreError::Unusable("nothing is owned before a take-over".into()))?;
        let claimant = OwnerFields { lease_ms, ..self.owner_fields(owner) };
        let answer = self.ask(claimant.renew(self.fence_span(), create)).await?;
        match writes::text(&answer) {
            Some("ok") => Ok(RenewalOutcome::Renewed),
            Some("missing") => Ok(RenewalOutcome::Missing),
            Some("fenced") => Ok(RenewalOutcome::Fenced),
            _ => Err(StoreError::Unusable(format!("a renewal was answered {answer:?}"))),
        }
    }

    /// Finds the live sides of shards that are not known. Says what of that failed, by shard.
    async fn find_sides(
        &self,
        owner: OwnerEpoch,
        steps: &[WriteBatch],
    ) -> Result<HashMap<ShardKey, WriteOutcome>, StoreError> {
        // To be dropped, a shard need not be there.
        let sided = steps.iter().filter(|step| !matches!(step.kind, WriteKind::Drop)).map(|step| step.shard);
        let unknown: Vec<ShardKey> = {
            let sides = lock_unpoisoned(&self.sides);
            sided.filter(|shard| !sides.contains_key(shard)).collect()
        };
        let mut failed = HashMap::new();
        if unknown.is_empty() {
            return Ok(failed);
        }
        let looks: Vec<_> = unknown.iter().map(|&shard| writes::probe(self.prefix(), Some(owner), shard)).collect();
        for (shard, answer) in unknown.into_iter().zip(self.nodes.call(&looks).await?) {
            let answer = match answer {
                Ok(answer) => answer,
                Err(fault) => {
                    failed.insert(shard, self.unanswered(fault.text()));
                    continue;
                }
            };
            match writes::parse_probe(answer).map_err(StoreError::Unusable)? {
                ShardProbe::Live { side, .. } => {
                    lock_unpoisoned(&self.sides).insert(shard, side);
                }
                ShardProbe::Fenced { .. } => {
                    failed.insert(shard, WriteOutcome::Fenced);
                }
                // What this owner has in memory counts; a rewrite puts it in the place of what is there.
                ShardProbe::Absent | ShardProbe::Damaged(_) => {
                    lock_unpoisoned(&self.sides).insert(shard, KeySide::A);
                }
            }
        }
        Ok(failed)
    }

    fn unanswered(&self, fault: &str) -> WriteOutcome {
        fault.clone_into(&mut lock_unpoisoned(&self.fault));
        WriteOutcome::Unanswered
    }

    async fn apply_all(&self, steps: &[WriteBatch]) -> Result<Vec<WriteOutcome>, StoreError> {
        let owner =
            self.owner().ok_or_else(|| StoreError::Unusable("nothing may be applied before a take-over".into()))?;
        let failed = self.find_sides(owner, steps).await?;
        let side = |shard| lock_unpoisoned(&self.sides).get(&shard).copied().unwrap_or(KeySide::A);
        let sent: Vec<&WriteBatch> = steps.iter().filter(|step| !failed.contains_key(&step.shard)).collect();
        let calls: Vec<_> =
            sent.iter().map(|step| writes::call(self.prefix(), owner, step, side(step.shard))).collect();
        let mut answers = self.nodes.call(&calls).await?.into_iter();
        let mut outcomes = Vec::with_capacity(steps.len());
        for step in steps {
            if let Some(&outcome) = failed.get(&step.shard) {
                outcomes.push(outcome);
                continue;
            }
            let outcome = match answers.next() {
                Some(Ok(answer)) => writes::parse_outcome(answer).unwrap_or_else(|fault| self.unanswered(&fault)),
                Some(Err(fault)) => self.unanswered(fault.text()),
                None => self.unanswered("a step was left without an answer"),
            };
            let mut sides = lock_unpoisoned(&self.sides);
            match (&step.kind, outcome) {
                (_, WriteOutcome::Gap) | (WriteKind::Drop, _) => {
                    sides.remove(&step.shard);
                }
                (WriteKind::Install { .. }, WriteOutcome::Ok | WriteOutcome::Duplicate) => {
                    sides.entry(step.shard).and_modify(|side| *side = side.other());
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
        STEP_BYTES_MAX
    }

    fn last_fault(&self) -> String {
        lock_unpoisoned(&self.fault).clone()
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
            match self.renewed(self.options.lease_ms, false).await? {
                RenewalOutcome::Renewed => Ok(()),
                RenewalOutcome::Missing => Err(StoreError::Unavailable("the record of ownership is gone".into())),
                RenewalOutcome::Fenced => Err(StoreError::Unusable("the store has another owner".into())),
            }
        }
        .boxed()
    }

    fn renew(&self, create: bool) -> BoxFuture<'_, Result<RenewalOutcome, StoreError>> {
        self.renewed(self.options.lease_ms, create).boxed()
    }

    fn resign(&self) -> BoxFuture<'_, Result<(), StoreError>> {
        // A lease of nothing: whoever comes next need not wait.
        async move {
            if self.owner().is_none() {
                return Ok(());
            }
            self.renewed(0, false).await.map(|_| ())
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
                            lock_unpoisoned(&self.sides).insert(one.shard, side);
                        }
                        loaded.push(one);
                    }
                    ShardRead::Fenced(epoch) => {
                        // The record says that the store is ours, so its owner of that epoch lost it in a failover.
                        self.epoch_floor.fetch_max(epoch, Ordering::Relaxed);
                        let why = format!("a shard is at epoch {epoch}, above ours: taking over once more");
                        return Err(StoreError::Superseded(why));
                    }
                }
            }
            Ok(loaded)
        }
        .boxed()
    }

    fn apply(&self, steps: Vec<WriteBatch>) -> BoxFuture<'_, Result<Vec<WriteOutcome>, StoreError>> {
        async move { self.apply_all(&steps).await }.boxed()
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

/// What was answered to a call that no server has a reason to refuse.
fn expect_reply(answer: nodes::Answer) -> Result<Value, StoreError> {
    answer.map_err(|refused| StoreError::Unusable(refused.text))
}

fn certificates(options: &RedisOptions) -> Result<TlsCertificates, StoreError> {
    // The process may have a provider already.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let read = |path: &PathBuf| {
        let wrong = |error| StoreError::Unusable(format!("cannot read {}: {error}", path.display()));
        std::fs::read(path).map_err(wrong)
    };
    let client_tls = match (&options.tls_cert_file, &options.tls_key_file) {
        (Some(cert), Some(key)) => Some(ClientTlsConfig { client_cert: read(cert)?, client_key: read(key)? }),
        _ => None,
    };
    let root_cert = options.tls_ca_file.as_ref().map(read).transpose()?;
    Ok(TlsCertificates { client_tls, root_cert })
}

fn lock_unpoisoned<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock()
}
