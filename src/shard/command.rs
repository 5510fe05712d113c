//! What can be asked of a shard.

use std::sync::Arc;

use tokio::sync::oneshot;

use super::reply::ReplySender;
use crate::admission::candidate_plan::CandidatePlan;
use crate::admission::key_directory::KeyTicket;
use crate::admission::wait_queue::{ReservationRequest, WaitState};
use crate::engine::{ClaimHandle, GangAction, ListedClaim, PlacementConstraints, Shard};
use crate::limits;
use crate::model::request_error::UnavailableReason;
use crate::model::{
    ClaimId, ClaimState, Fence, HeartbeatRequest, Millis, QuotaResource, RegistrationRequest, ResourceRequirements,
    WorkerCommand, WorkerId,
};

/// A claim on its way. It goes from shard to shard by itself until one grants or none is left to ask, whether or not
/// its caller still listens; so a caller that hangs up leaves nothing pending.
#[derive(Debug)]
pub struct PendingClaim {
    /// Whose.
    pub id: ClaimId,
    /// Number, in this process, of the pool that it wants.
    pub pool: u32,
    /// What it asks beyond any worker of that pool. Boxed: most claims have none.
    pub plan: Option<Box<CandidatePlan>>,
    /// The right to decide for its key, once [`crate::admission::key_directory::KeyDirectory::begin`] gave it.
    pub ticket: KeyTicket,
    /// Hash of its affinity word.
    pub affinity: u64,
    /// How long it may stay unconfirmed.
    pub reserve_ms: Millis,
    /// How long it asks to stay active without a renewal; none: as long as its pool says.
    pub ttl_ms: Option<Millis>,
    /// Its answer leaves after the store has it.
    pub durable: bool,
    /// Breaks ties between shards.
    pub tie_break: u64,
    /// Shards asked so far.
    pub tried_shards: ShardSet,
    /// A shard that might have had room could not be asked: the answer cannot be "full".
    pub unreachable: Option<UnavailableReason>,
    /// When it came in; 0: it is not timed ([`crate::admission::dispatch::ClaimDispatcher::arrival_ns`]).
    pub started_ns: u64,
    /// Where the answer goes.
    pub reply: ReplySender,
    /// How it waits, if it does or did. Boxed: most claims do not.
    pub wait: Option<Box<WaitState>>,
    /// What its tenant would hold too much of, if it got its ticket in spite of that.
    pub over_quota: Option<QuotaResource>,
}

/// A set of shards. Most claims need only the first; the rest is allocated when that one said no.
#[derive(Debug, Default)]
pub struct ShardSet {
    first: Option<u16>,
    more: Option<Box<[u64; Self::WORDS]>>,
}

impl ShardSet {
    const WORDS: usize = limits::SHARDS_MAX as usize / 64;

    /// Adds a shard.
    pub fn insert(&mut self, shard: u16) {
        if self.first.is_none() {
            self.first = Some(shard);
        } else if self.first != Some(shard) {
            self.more.get_or_insert_default()[shard as usize / 64] |= 1 << (shard % 64);
        }
    }

    /// The shards `64 * word ..` in it, as bits.
    #[must_use]
    pub fn bits(&self, word: usize) -> u64 {
        let first = self.first.filter(|&shard| shard as usize / 64 == word).map_or(0, |shard| 1 << (shard % 64));
        first | self.more.as_ref().map_or(0, |more| more[word])
    }

    /// Whether the shard is in it.
    #[must_use]
    pub fn contains(&self, shard: u16) -> bool {
        self.bits(shard as usize / 64) & (1 << (shard % 64)) != 0
    }

    /// How many.
    #[must_use]
    pub fn len(&self) -> u32 {
        u32::from(self.first.is_some())
            + self.more.as_ref().map_or(0, |more| more.iter().map(|word| word.count_ones()).sum())
    }

    /// Whether there are none.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.first.is_none()
    }
}

/// Something about a key that is held.
#[derive(Debug)]
pub struct ClaimOp {
    /// Whose.
    pub id: ClaimId,
    /// Where it is held.
    pub handle: ClaimHandle,
    /// When it came in; 0: it is not timed ([`crate::admission::dispatch::ClaimDispatcher::arrival_ns`]).
    pub started_ns: u64,
    /// Where the answer goes.
    pub reply: ReplySender,
}

/// A step of a gang at one shard.
#[derive(Debug)]
pub struct GangItem {
    /// Number of the gang.
    pub id: Fence,
    /// What happens.
    pub act: GangAction,
    /// To commit: the members that were granted here, each with the right to decide for its key.
    pub tickets: Vec<(ClaimId, KeyTicket)>,
    /// Where the answer goes.
    pub reply: ReplySender,
}

/// Step that a test injects in the middle of a run.
pub struct InjectedStep(pub Box<dyn FnOnce(&mut Shard) + Send>);

impl std::fmt::Debug for InjectedStep {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("InjectedStep")
    }
}

/// A request to one shard.
#[derive(Debug)]
pub enum Command {
    /// Find it a worker.
    Claim(Box<PendingClaim>),
    /// The same for many: one place in the ring, one wake.
    Claims(Vec<Box<PendingClaim>>),
    /// Its key is held here already.
    Reacquire(Box<PendingClaim>, ClaimHandle),
    /// The holder is done.
    Release(ClaimOp),
    /// The same for many.
    Releases(Vec<ClaimOp>),
    /// The holder has started.
    Confirm(ClaimOp),
    /// The holder still needs it, and may need it for another time than before.
    Renew(ClaimOp, Option<Millis>),
    /// The holder needs that much from now on.
    Resize(ClaimOp, Box<ResourceRequirements>),
    /// The holder is done, but the worker has to be cleaned.
    BeginRelease(ClaimOp),
    /// Keep a worker for a claim that waits.
    Reserve(Box<ReservationRequest>),
    /// A step of a gang.
    Gang(Box<GangItem>),
    /// The claim there is over: a worker runs a later one of its key, whose record was lost.
    Relinquish(ClaimHandle),
    /// What is held?
    GetClaim(ClaimOp),
    /// Workers are there.
    Register(Vec<(RegistrationRequest, ReplySender)>),
    /// Workers say that they are there.
    Heartbeat(Vec<(WorkerId, HeartbeatRequest, ReplySender)>),
    /// The owner of a worker wishes.
    CommandWorker(WorkerId, WorkerCommand, ReplySender),
    /// The owner of all workers speaks for them.
    ClearWorkers(ReplySender),
    /// A worker is gone.
    DeleteWorker(WorkerId, ReplySender),
    /// What about this worker?
    GetWorker(WorkerId, ReplySender),
    /// A part of the list of workers, from an ordinal on.
    ListWorkers(u32, usize, ReplySender),
    /// A part of the list of claims that pass the filter, from an ordinal on.
    ListClaims(u32, usize, ClaimSieve, ReplySender),
    /// The shard's figures.
    Report(ReplySender),
    /// Workers that hold nothing, at most so many.
    IdleLongest(usize, ReplySender),
    /// What would a claim find? Nothing is taken.
    Explain(ExplainQuery, ReplySender),
    /// Rows for a rewrite: from a cursor on, about so many bytes.
    SnapshotRows(u32, usize, oneshot::Sender<(Vec<u8>, Option<u32>)>),
    /// The service stops: from now on no claim is acknowledged from memory, and the store is told so.
    Seal(ReplySender),
    /// End all workers from an ordinal on, a part at a time: the pool is being deleted.
    EndWorkers(u32, ReplySender),
    /// Does this in the middle of a run, or panics in it: for tests. No edge can send it.
    Inject(InjectedStep),
}

/// What a claim would ask.
#[derive(Debug, Clone)]
pub struct ExplainQuery {
    /// Of a worker; none: any will do.
    pub constraints: Option<Arc<PlacementConstraints>>,
    /// Hash of its affinity word.
    pub affinity: u64,
    /// For how long it would need it.
    pub duration_ms: Millis,
    /// Its answer would wait for the store.
    pub durable: bool,
    /// Which workers would do, from this ordinal on; none: which one it would be given.
    pub from_ordinal: Option<u32>,
}

/// Which claims a listing wants.
#[derive(Debug, Clone, Default)]
pub struct ClaimSieve {
    /// Only on this worker.
    pub worker: Option<WorkerId>,
    /// Only of this tenant.
    pub tenant: Option<String>,
    /// Only in one of these states; empty: in any.
    pub states: Vec<ClaimState>,
    /// Only those of which it is known that they were created by then, in unix milliseconds.
    pub created_by_ms: Option<Millis>,
}

impl ClaimSieve {
    /// Whether the listing wants this claim.
    #[must_use]
    pub fn matches(&self, claim: &ListedClaim<'_>) -> bool {
        let is_old = |by_ms| claim.times.created_at_ms().is_some_and(|at_ms| at_ms <= by_ms);
        (self.states.is_empty() || self.states.contains(&claim.state))
            && self.created_by_ms.is_none_or(is_old)
            && self.tenant.as_ref().is_none_or(|tenant| claim.id.tenant() == tenant)
            && self.worker.as_ref().is_none_or(|worker| claim.worker.id == *worker)
    }
}

impl Command {
    /// The claims in it that want a worker.
    pub fn claim_items(&self) -> impl Iterator<Item = &PendingClaim> + Clone {
        let items = match self {
            Self::Claim(item) => std::slice::from_ref(item),
            Self::Claims(items) => items.as_slice(),
            _ => &[],
        };
        items.iter().map(AsRef::as_ref)
    }

    /// The requests in it about keys that are held.
    #[must_use]
    pub fn key_items(&self) -> &[ClaimOp] {
        match self {
            Self::Release(item)
            | Self::Confirm(item)
            | Self::GetClaim(item)
            | Self::Renew(item, _)
            | Self::Resize(item, _)
            | Self::BeginRelease(item) => std::slice::from_ref(item),
            Self::Releases(items) => items,
            _ => &[],
        }
    }

    /// The places that it is about.
    pub fn handles(&self) -> impl Iterator<Item = ClaimHandle> + Clone {
        self.key_items().iter().map(|item| item.handle)
    }

    /// How many fences it may need.
    #[must_use]
    pub const fn fences_needed(&self) -> u64 {
        match self {
            Self::Claim(_) => 1,
            Self::Claims(items) => items.len() as u64,
            _ => 0,
        }
    }
}
