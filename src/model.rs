//! The nouns: names, amounts, specs, and what the service says about pools, workers and claims.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt;
use std::marker::PhantomData;
use std::sync::Arc;

use serde::de::value::MapAccessDeserializer;
use serde::de::{MapAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize};
use smallvec::SmallVec;
use xxhash_rust::xxh3::{xxh3_64, xxh3_64_with_seed};

use crate::ask::{ClaimAsk, PoolChoice};
use crate::limits;
use crate::refusal::Refusal;

/// Seed of the worker hash, version 1. Pinned: it decides which shard owns a worker, on disk too.
const WORKER_HASH_SEED: u64 = 0x686f_7470_6f6f_6c31;
/// Version of the worker-to-shard hash; stored with every pool.
pub const HASH_VERSION: u32 = 1;

/// Milliseconds: engine time (monotonic, pauses taken out) or unix time, as the name says.
pub type Millis = u64;
/// Position in a shard's record stream; 0 is before the first change.
pub type Seq = u64;
/// Grows with every grant of the process, also across restarts; below 2^53.
pub type Fence = u64;
/// Label key to value; sorted, so that equal sets are equal.
pub type Labels = BTreeMap<String, String>;

/// Which bytes a name may hold.
const NAME_BYTES: [bool; 256] = {
    let mut good = [false; 256];
    let mut b = 0;
    while b < 256 {
        good[b] = (b as u8).is_ascii_alphanumeric() || matches!(b as u8, b'.' | b'_' | b'-');
        b += 1;
    }
    good
};

/// Checks one name: 1..=255 bytes of `[A-Za-z0-9._-]`.
///
/// # Errors
/// `Invalid` naming `field` and the limit.
pub fn check_name(field: &'static str, value: &str) -> Result<(), Refusal> {
    if value.is_empty() || value.len() > limits::NAME_BYTES_MAX {
        return Err(Refusal::invalid(
            field,
            format!("must be 1..={} bytes, got {}", limits::NAME_BYTES_MAX, value.len()),
        ));
    }
    // The common case is all good: one branch at the end instead of one a byte.
    if value.bytes().fold(true, |good, b| good & NAME_BYTES[b as usize]) {
        return Ok(());
    }
    match value.bytes().position(|b| !NAME_BYTES[b as usize]) {
        None => Ok(()),
        Some(at) => Err(Refusal::invalid(field, format!("may hold only [A-Za-z0-9._-]; byte {at} is not one of them"))),
    }
}

/// `namespace/pool`.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PoolName(Arc<str>);

impl PoolName {
    /// Joins and checks the two parts.
    ///
    /// # Errors
    /// `Invalid` naming `namespace` or `pool`.
    pub fn new(namespace: &str, pool: &str) -> Result<Self, Refusal> {
        check_name("namespace", namespace)?;
        check_name("pool", pool)?;
        Ok(Self(format!("{namespace}/{pool}").into()))
    }

    /// Reads `ns/pool`.
    ///
    /// # Errors
    /// `Invalid` naming `pool`.
    pub fn parse(text: &str) -> Result<Self, Refusal> {
        let (namespace, pool) =
            text.split_once('/').ok_or_else(|| Refusal::invalid("pool", "must be namespace/pool"))?;
        Self::new(namespace, pool)
    }

    /// The part before the slash.
    #[must_use]
    pub fn namespace(&self) -> &str {
        self.0.split_once('/').map_or("", |(ns, _)| ns)
    }

    /// The part after the slash.
    #[must_use]
    pub fn pool(&self) -> &str {
        self.0.split_once('/').map_or("", |(_, pool)| pool)
    }

    /// `ns/pool`.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for PoolName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for PoolName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A worker's id, unique within its pool.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct WorkerId(Arc<str>);

impl WorkerId {
    /// Checks and takes the id.
    ///
    /// # Errors
    /// `Invalid` naming `id`.
    pub fn new(id: &str) -> Result<Self, Refusal> {
        check_name("id", id)?;
        Ok(Self(id.into()))
    }

    /// The text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Pinned hash of the id (xxh3, fixed seed, [`HASH_VERSION`]).
    #[must_use]
    pub fn hash64(&self) -> u64 {
        xxh3_64_with_seed(self.0.as_bytes(), WORKER_HASH_SEED)
    }

    /// The shard that owns this worker, of `shards` (a power of two). Invariant `P1`.
    #[must_use]
    pub fn shard(&self, shards: u16) -> u16 {
        debug_assert!(shards.is_power_of_two());
        (self.hash64() & u64::from(shards - 1)) as u16
    }
}

impl fmt::Display for WorkerId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for WorkerId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Who a claim belongs to: `(namespace, tenant, key)`, one text and its hash.
#[derive(Clone)]
pub struct ClaimId {
    /// The parts, joined by slashes; bytes, so that joining need not prove again that they are text.
    text: Arc<[u8]>,
    hash: u64,
}

impl ClaimId {
    /// Joins and checks the three parts.
    ///
    /// # Errors
    /// `Invalid` naming `namespace`, `tenant` or `key`.
    pub fn new(namespace: &str, tenant: &str, key: &str) -> Result<Self, Refusal> {
        check_name("namespace", namespace)?;
        check_name("tenant", tenant)?;
        check_name("key", key)?;
        Ok(Self::join(namespace, tenant, key))
    }

    /// Joins parts that are known to be good (they come from a row that this service wrote).
    pub(crate) fn join(namespace: &str, tenant: &str, key: &str) -> Self {
        // On the stack unless the names are long: the one allocation is that of the shared text.
        let mut text: SmallVec<[u8; 128]> = SmallVec::new();
        for (i, part) in [namespace, tenant, key].into_iter().enumerate() {
            if i > 0 {
                text.push(b'/');
            }
            text.extend_from_slice(part.as_bytes());
        }
        Self { hash: xxh3_64(&text), text: text.as_slice().into() }
    }

    fn text(&self) -> &str {
        std::str::from_utf8(&self.text).expect("joined from texts")
    }

    fn parts(&self) -> (&str, &str, &str) {
        let (namespace, rest) = self.text().split_once('/').unwrap_or_default();
        let (tenant, key) = rest.split_once('/').unwrap_or_default();
        (namespace, tenant, key)
    }

    /// Whether the pool is in the claim's namespace.
    #[must_use]
    pub fn is_in(&self, pool: &PoolName) -> bool {
        let same = self.text.iter().zip(pool.0.as_bytes()).take_while(|(a, b)| a == b && **a != b'/').count();
        self.text.get(same) == Some(&b'/') && pool.0.as_bytes().get(same) == Some(&b'/')
    }

    /// First part.
    #[must_use]
    pub fn namespace(&self) -> &str {
        self.parts().0
    }

    /// Second part.
    #[must_use]
    pub fn tenant(&self) -> &str {
        self.parts().1
    }

    /// Third part.
    #[must_use]
    pub fn key(&self) -> &str {
        self.parts().2
    }

    /// Hash of the whole identity; of this process only, never stored.
    #[must_use]
    pub const fn hash64(&self) -> u64 {
        self.hash
    }
}

impl PartialEq for ClaimId {
    fn eq(&self, other: &Self) -> bool {
        self.hash == other.hash && self.text == other.text
    }
}

impl Eq for ClaimId {}

impl std::hash::Hash for ClaimId {
    fn hash<H: std::hash::Hasher>(&self, state: &mut H) {
        state.write_u64(self.hash);
    }
}

impl fmt::Debug for ClaimId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.text())
    }
}

/// Hash of an affinity word; equal words are equal, and a collision only costs a preference.
#[must_use]
pub fn affinity_hash(word: &str) -> u64 {
    xxh3_64(word.as_bytes())
}

/// What a worker has. A resource that was not reported is 0: it takes nothing that needs it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Capacity {
    /// Thousandths of a core.
    #[serde(skip_serializing_if = "is_zero")]
    pub cpu_milli: u64,
    /// Bytes of memory.
    #[serde(skip_serializing_if = "is_zero")]
    pub memory_bytes: u64,
    /// Places, in a unit that the pool's owner chooses.
    #[serde(skip_serializing_if = "is_zero")]
    pub slots: u64,
    /// Cards of one model.
    #[serde(skip_serializing_if = "Option::is_none", deserialize_with = "some_object")]
    pub gpu: Option<GpuCapacity>,
}

#[allow(clippy::trivially_copy_pass_by_ref, reason = "serde's signature")]
fn is_zero(n: &u64) -> bool {
    *n == 0
}

/// The cards of a worker.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GpuCapacity {
    /// Model name, e.g. `A10`.
    pub model: Arc<str>,
    /// Number of cards, 1..=64.
    pub count: u32,
}

impl Capacity {
    /// Checks every amount against its limit. `name`: what the caller calls it, e.g. `capacity`.
    ///
    /// # Errors
    /// `Invalid` naming the field.
    pub fn check(&self, name: &str) -> Result<(), Refusal> {
        let amounts = [("cpu_milli", self.cpu_milli), ("memory_bytes", self.memory_bytes), ("slots", self.slots)];
        for (field, amount) in amounts {
            if amount > limits::AMOUNT_MAX {
                let message = format!("must be at most {}", limits::AMOUNT_MAX);
                return Err(Refusal::invalid(format!("{name}.{field}"), message));
            }
        }
        if let Some(gpu) = &self.gpu {
            check_name("gpu.model", &gpu.model).map_err(|refusal| refusal.within(name))?;
            if gpu.count == 0 || gpu.count > limits::GPUS_MAX {
                let message = format!("must be 1..={}", limits::GPUS_MAX);
                return Err(Refusal::invalid(format!("{name}.gpu.count"), message));
            }
        }
        Ok(())
    }

    /// Whether there is at least this much of everything.
    #[must_use]
    pub fn covers(&self, asked: &Self) -> bool {
        let cards = |asked: &GpuCapacity| {
            self.gpu.as_ref().is_some_and(|gpu| gpu.model == asked.model && gpu.count >= asked.count)
        };
        self.cpu_milli >= asked.cpu_milli
            && self.memory_bytes >= asked.memory_bytes
            && self.slots >= asked.slots
            && asked.gpu.as_ref().is_none_or(cards)
    }
}

/// Checks a label set: at most 64, keys are names, values at most 255 bytes without control characters.
///
/// # Errors
/// `Invalid` naming `labels`.
pub fn check_labels(labels: &Labels) -> Result<(), Refusal> {
    if labels.len() > limits::LABELS_MAX {
        return Err(Refusal::invalid("labels", format!("at most {} labels, got {}", limits::LABELS_MAX, labels.len())));
    }
    for (key, value) in labels {
        check_name("labels", key)?;
        if value.len() > limits::LABEL_VALUE_BYTES_MAX || value.chars().any(char::is_control) {
            let message = format!(
                "value of {key:?} must be at most {} bytes without control characters",
                limits::LABEL_VALUE_BYTES_MAX
            );
            return Err(Refusal::invalid("labels", message));
        }
    }
    Ok(())
}

/// How claims of a pool use workers. Never changes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Mode {
    /// A claim takes a whole worker.
    #[default]
    Exclusive,
}

/// Which idle worker a claim takes when affinity does not say.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Policy {
    /// The one that became idle last: the warmest.
    #[default]
    Lifo,
    /// The one that became idle first.
    Fifo,
    /// Any, by a hash of the claim's fence.
    Random,
}

/// When an answer leaves.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Ack {
    /// At once; lost with the process if the store does not have it yet.
    Memory,
    /// After the store has it.
    #[default]
    Durable,
}

/// A pool's specification. `shards` and `mode` never change.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct PoolSpec {
    /// Number of shards: a power of two, 1..=1024.
    pub shards: u16,
    /// How claims use workers.
    pub mode: Mode,
    /// Which idle worker a claim takes.
    pub policy: Policy,
    /// When answers leave, unless a request asks for more.
    pub ack: Ack,
    /// Free labels of the pool.
    pub labels: Labels,
    /// Class of the pool, if it has one.
    #[serde(skip_serializing_if = "Option::is_none", deserialize_with = "present")]
    pub class: Option<String>,
    /// How long an unconfirmed claim is held, in milliseconds; also the most a request may ask for.
    pub reserve_ms: u64,
    /// How long a release that was begun may take, in milliseconds; then its worker is suspect.
    pub releasing_ms: u64,
    /// How long a worker that sends heartbeats may be silent, in milliseconds; then it is lost.
    pub heartbeat_ttl_ms: u64,
    /// How far the store may lag behind before memory-acknowledged claims are refused, in milliseconds.
    pub lag_max_ms: u64,
}

impl Default for PoolSpec {
    fn default() -> Self {
        Self {
            shards: limits::SHARDS_DEFAULT,
            mode: Mode::default(),
            policy: Policy::default(),
            ack: Ack::default(),
            labels: Labels::new(),
            class: None,
            reserve_ms: 30_000,
            releasing_ms: 60_000,
            heartbeat_ttl_ms: 60_000,
            lag_max_ms: 10_000,
        }
    }
}

impl PoolSpec {
    /// Checks every field against its limit.
    ///
    /// # Errors
    /// `Invalid` naming the field.
    pub fn check(&self) -> Result<(), Refusal> {
        if !self.shards.is_power_of_two() || self.shards > limits::SHARDS_MAX {
            let message = format!("must be a power of two, 1..={}, got {}", limits::SHARDS_MAX, self.shards);
            return Err(Refusal::invalid("shards", message));
        }
        if let Some(class) = &self.class {
            check_name("class", class)?;
        }
        check_labels(&self.labels)?;
        if self.reserve_ms > limits::RESERVE_MS_MAX {
            return Err(Refusal::invalid("reserve_ms", format!("must be at most {}", limits::RESERVE_MS_MAX)));
        }
        let times = [
            ("releasing_ms", self.releasing_ms),
            ("heartbeat_ttl_ms", self.heartbeat_ttl_ms),
            ("lag_max_ms", self.lag_max_ms),
        ];
        for (field, ms) in times {
            if ms == 0 || ms > limits::RESERVE_MS_MAX {
                return Err(Refusal::invalid(field, format!("must be 1..={}", limits::RESERVE_MS_MAX)));
            }
        }
        Ok(())
    }
}

/// A worker as its registrar describes it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WorkerSpec {
    /// Unique within the pool.
    pub id: WorkerId,
    /// What it has.
    pub capacity: Capacity,
    /// Free labels.
    pub labels: Labels,
    /// The machine it runs on, if known.
    pub node: Option<Arc<str>>,
    /// Grows when the worker starts anew; a higher one ends what the old one held.
    pub incarnation: u64,
    /// Its own end of life, in unix milliseconds: it is not offered to a claim that needs it for longer.
    pub expires_at_ms: Option<Millis>,
}

impl WorkerSpec {
    /// A worker with nothing but its id.
    #[must_use]
    pub fn bare(id: WorkerId) -> Self {
        Self {
            id,
            capacity: Capacity::default(),
            labels: Labels::new(),
            node: None,
            incarnation: 0,
            expires_at_ms: None,
        }
    }

    /// Checks every field against its limit.
    ///
    /// # Errors
    /// `Invalid` naming the field.
    pub fn check(&self) -> Result<(), Refusal> {
        self.capacity.check("capacity")?;
        check_labels(&self.labels)?;
        if let Some(node) = &self.node {
            check_name("node", node)?;
        }
        if self.incarnation > limits::AMOUNT_MAX {
            return Err(Refusal::invalid("incarnation", format!("must be at most {}", limits::AMOUNT_MAX)));
        }
        if self.expires_at_ms.is_some_and(|at| at > limits::AMOUNT_MAX) {
            return Err(Refusal::invalid("expires_at_ms", format!("must be at most {}", limits::AMOUNT_MAX)));
        }
        Ok(())
    }
}

/// A claim that a worker says it runs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RunningClaim {
    /// Whose.
    pub id: ClaimId,
    /// Number of the grant, as the worker was told.
    pub fence: Fence,
}

/// A worker is there (again).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Registration {
    /// As its registrar describes it.
    pub spec: WorkerSpec,
    /// What it runs; none: nothing is said about that.
    pub claims: Option<Vec<RunningClaim>>,
}

impl From<WorkerSpec> for Registration {
    fn from(spec: WorkerSpec) -> Self {
        Self { spec, claims: None }
    }
}

/// What a worker says of itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Beat {
    /// Which life of the worker speaks.
    pub incarnation: u64,
    /// Grows from one to the next: what comes later with a lower one is ignored.
    pub seq: Option<u64>,
    /// What it runs; none: it says nothing about that. Empty: nothing.
    pub claims: Option<Vec<RunningClaim>>,
}

/// Answer to a heartbeat.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Heard {
    /// What the worker holds, so what it should run.
    pub claims: Vec<ClaimView>,
    /// What it named and should not run.
    pub stop: Vec<RunningClaim>,
}

/// Answer to [`WorkerVerb::Clear`] for a whole pool.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Cleared {
    /// Workers that are trusted since.
    pub cleared: u64,
    /// Workers that are not yet: claims that the last stop may have lost can still be started.
    pub suspect: u64,
}

/// A request for one worker.
#[derive(Debug, Clone)]
pub struct ClaimRequest {
    /// Who asks.
    pub id: ClaimId,
    /// Where.
    pub pools: PoolChoice,
    /// Hash of the affinity word ([`affinity_hash`]); by default that of the key.
    pub affinity: u64,
    /// How long the claim may stay unconfirmed, in milliseconds: at most that of every pool that it may use; by default
    /// that of the pool that it is taken from. 0: active at once.
    pub reserve_ms: Option<u64>,
    /// How long it may stay active without a renewal, in milliseconds; none: as long as its worker lives.
    pub ttl_ms: Option<u64>,
    /// A stronger acknowledgement than the pool's; a weaker one is refused.
    pub ack: Option<Ack>,
    /// What else it asks for; none: any worker will do.
    pub ask: Option<Box<ClaimAsk>>,
}

impl ClaimRequest {
    /// For any worker, with the defaults of the pool.
    #[must_use]
    pub fn new(id: ClaimId, pools: impl Into<PoolChoice>) -> Self {
        let affinity = affinity_hash(id.key());
        Self { id, pools: pools.into(), affinity, reserve_ms: None, ttl_ms: None, ack: None, ask: None }
    }
}

/// What a claim keeps of its request.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ClaimSpec {
    /// Free labels, shown with the claim.
    pub labels: Labels,
    /// What it asked for. The claim holds its whole worker, which may have more.
    pub resources: Capacity,
}

/// Life of a claim.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ClaimState {
    /// Held until its deadline, unless confirmed.
    Reserved,
    /// In use.
    Active,
    /// Its holder is done; its worker is being cleaned.
    Releasing,
    /// Its worker is gone. It is not held any more, only remembered for a while.
    Lost,
}

/// The registration of a worker, shared by the engine and the answers that name it.
#[derive(Debug, PartialEq, Eq)]
pub struct WorkerCard {
    /// What the registrar said.
    pub spec: WorkerSpec,
}

/// What the service says about a claim.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClaimView {
    /// Whose it is.
    pub id: ClaimId,
    /// Number of this grant.
    pub fence: Fence,
    /// The pool it was taken from.
    pub pool: PoolName,
    /// The worker: id, node, capacity.
    pub worker: Arc<WorkerCard>,
    /// Where it is in its life.
    pub state: ClaimState,
    /// Unix time in milliseconds at which it ends if nothing is heard, if it has one.
    pub expires_at_ms: Option<Millis>,
    /// What it keeps of its request, if anything.
    pub spec: Option<Arc<ClaimSpec>>,
}

/// A claim that was taken, or found to be held already.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Taken {
    /// The claim.
    pub claim: ClaimView,
    /// False if the key held it before this request.
    pub created: bool,
}

/// Whether a worker may be offered, as its owner wishes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Schedulability {
    /// Offered.
    #[default]
    Open,
    /// Not offered; keeps what it holds. Outlives registrations and restarts.
    Cordoned,
    /// Not offered any more in this incarnation; keeps what it holds.
    Draining,
}

/// Whether a worker is heard of.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Liveness {
    /// It is, or it never promised to be.
    #[default]
    Live,
    /// It was silent for too long.
    Lost,
}

/// Whether a worker can be what it is thought to be.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Trust {
    /// It can.
    #[default]
    Trusted,
    /// It may still run something: not offered until something has spoken for it.
    Suspect,
}

/// What the owner of a worker may wish.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum WorkerVerb {
    /// Offer it no more.
    Cordon,
    /// Offer it again.
    Uncordon,
    /// Offer it no more in this incarnation.
    Drain,
    /// Trust it as it stands.
    Clear,
}

/// What the service says about a worker.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WorkerView {
    /// Its registration.
    pub card: Arc<WorkerCard>,
    /// It holds a claim, or runs what it should not.
    pub busy: bool,
    /// As its owner wishes.
    pub schedulability: Schedulability,
    /// Whether it is heard of.
    pub liveness: Liveness,
    /// Whether it can be what it is thought to be.
    pub trust: Trust,
    /// It has less than its claim was promised.
    pub overcommitted: bool,
    /// Sequence number, in its shard, of the last change to this worker.
    pub version: Seq,
    /// Its shard.
    pub shard: u16,
    /// The claims that it holds.
    pub claims: Vec<ClaimView>,
}

/// Answer to a registration.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Registered {
    /// False if the worker was known.
    pub created: bool,
    /// The worker after the registration.
    pub worker: WorkerView,
    /// What it said that it runs and should not.
    pub stop: Vec<RunningClaim>,
}

/// One shard's figures.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct ShardStatus {
    /// Index in the pool.
    pub shard: u16,
    /// `loading`, `serving`, `refused` or `stopped`.
    pub state: Cow<'static, str>,
    /// Why it does not serve.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// Workers it owns.
    pub workers: u64,
    /// Of them idle.
    pub idle: u64,
    /// Of them held.
    pub busy: u64,
    /// Of them cordoned.
    pub cordoned: u64,
    /// Of them draining.
    pub draining: u64,
    /// Of them lost.
    pub lost: u64,
    /// Of them suspect.
    pub suspect: u64,
    /// Claims not confirmed yet.
    pub reserved: u64,
    /// Claims whose worker is being cleaned.
    pub releasing: u64,
    /// Last change decided.
    pub seq: Seq,
    /// Last change that the store has.
    pub applied_seq: Seq,
    /// Age of the oldest change that the store does not have, in milliseconds.
    pub lag_ms: u64,
    /// Requests waiting in the ring.
    pub ring_depth: u64,
    /// Durable answers that wait for the store.
    pub answers_waiting: u64,
    /// Times its actor was restarted after a panic.
    pub restarts: u64,
}

/// A pool: spec, counts and figures by shard.
#[derive(Debug, Clone, PartialEq)]
pub struct PoolStatus {
    /// Its name.
    pub name: PoolName,
    /// Its specification.
    pub spec: PoolSpec,
    /// Sum of what the workers have. GPUs by model are summed in `gpus`.
    pub capacity: Capacity,
    /// Sum of what idle workers have.
    pub free: Capacity,
    /// Per GPU model: cards in all, cards free.
    pub gpus: BTreeMap<String, (u64, u64)>,
    /// Figures by shard.
    pub shards: Vec<ShardStatus>,
}

/// A pool's workers and claims by state.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PoolCounts {
    /// Workers.
    pub total: u64,
    /// Of them idle.
    pub idle: u64,
    /// Of them held.
    pub busy: u64,
    /// Claims not confirmed yet.
    pub reserved: u64,
    /// Claims in use.
    pub active: u64,
    /// Claims whose worker is being cleaned.
    pub releasing: u64,
    /// Workers that are cordoned.
    pub cordoned: u64,
    /// Workers that are draining.
    pub draining: u64,
    /// Workers that were silent for too long.
    pub lost: u64,
    /// Workers that nothing has spoken for.
    pub suspect: u64,
}

impl PoolStatus {
    /// The sums over its shards.
    #[must_use]
    pub fn counts(&self) -> PoolCounts {
        let sum = |figure: fn(&ShardStatus) -> u64| self.shards.iter().map(figure).sum::<u64>();
        let (busy, reserved) = (sum(|shard| shard.busy), sum(|shard| shard.reserved));
        let releasing = sum(|shard| shard.releasing);
        PoolCounts {
            total: sum(|shard| shard.workers),
            idle: sum(|shard| shard.idle),
            busy,
            reserved,
            // One claim a busy worker. Shards are read one after another, so the difference is kept above zero.
            active: busy.saturating_sub(reserved + releasing),
            releasing,
            cordoned: sum(|shard| shard.cordoned),
            draining: sum(|shard| shard.draining),
            lost: sum(|shard| shard.lost),
            suspect: sum(|shard| shard.suspect),
        }
    }
}

/// One page of a listing.
#[derive(Debug, Clone, PartialEq)]
pub struct Page<T> {
    /// The rows.
    pub items: Vec<T>,
    /// Opaque start of the next page; none on the last.
    pub next: Option<String>,
}

/// Which claims a listing shows.
#[derive(Debug, Clone, Default)]
pub struct ClaimFilter {
    /// Only of this namespace.
    pub namespace: Option<String>,
    /// Only of this pool (needs `namespace`).
    pub pool: Option<String>,
    /// Only on this worker.
    pub worker: Option<String>,
    /// Only of this tenant.
    pub tenant: Option<String>,
}

impl ClaimFilter {
    /// Checks every name, and that a pool comes with its namespace.
    ///
    /// # Errors
    /// `Invalid` naming the field.
    pub fn checked(self) -> Result<Self, Refusal> {
        let names =
            [("namespace", &self.namespace), ("pool", &self.pool), ("worker", &self.worker), ("tenant", &self.tenant)];
        for (field, name) in names {
            name.as_deref().map_or(Ok(()), |name| check_name(field, name))?;
        }
        if self.pool.is_some() && self.namespace.is_none() {
            return Err(Refusal::invalid("namespace", "is required with pool"));
        }
        Ok(self)
    }
}

/// Deserializes an optional field that, when present, must not be `null`.
///
/// # Errors
/// Those of `T`.
pub fn present<'de, D: Deserializer<'de>, T: Deserialize<'de>>(deserializer: D) -> Result<Option<T>, D::Error> {
    T::deserialize(deserializer).map(Some)
}

/// For a nested struct that must be an object: a derived one would also take an array of its fields in order.
///
/// # Errors
/// Those of `T`.
pub fn json_object<'de, D: Deserializer<'de>, T: Deserialize<'de>>(deserializer: D) -> Result<T, D::Error> {
    struct Object<T>(PhantomData<T>);
    impl<'de, T: Deserialize<'de>> Visitor<'de> for Object<T> {
        type Value = T;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("a map")
        }

        fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<T, A::Error> {
            T::deserialize(MapAccessDeserializer::new(map))
        }
    }
    deserializer.deserialize_map(Object(PhantomData))
}

/// The same for an optional one.
///
/// # Errors
/// Those of `T`.
pub fn some_object<'de, D: Deserializer<'de>, T: Deserialize<'de>>(deserializer: D) -> Result<Option<T>, D::Error> {
    json_object(deserializer).map(Some)
}
