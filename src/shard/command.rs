//! Commands that a shard executes.

use std::num::NonZeroU64;
use std::sync::Arc;

use tokio::sync::oneshot;

use super::address::{KeyTicket, PendingWrites};
use super::event::{ShardLife, UndecidedClaim};
use super::reply::{
    ClaimSlice, CommandReply, DeletedWorker, EndedWorkers, GangReply, HeartbeatReply, PreviewedPlacement,
    RegisteredWorker, ReplyAddress, ShardReport, SurveySlice, WorkerSlice,
};
use super::runner::reserved_keys;
use crate::engine::{
    ClaimHandle, ClaimTarget, EvictionPolicy, GangAction, ListedClaim, PlacementConstraints, PoolEligibility,
    ReservationId, Shard, VictimNeed, WorkerSnapshot,
};
use crate::limits;
use crate::model::request_error::RequestError;
use crate::model::{
    AckLevel, ClaimId, ClaimState, ClearResult, Fence, HeartbeatRequest, IdleWorker, Millis, RegistrationRequest,
    ResourceRequirements, RunningClaim, WorkerCommand, WorkerId,
};

/// Request to find a worker for a claim. The claim itself stays in the entry of its key.
#[derive(Debug)]
pub struct ClaimCall {
    /// Key of the claim.
    pub id: ClaimId,
    /// Ticket of the attempt.
    pub ticket: KeyTicket,
    /// Hash of the affinity key.
    pub affinity: u64,
    /// Time to confirm, in milliseconds.
    pub reserve_ms: Millis,
    /// Requested time to live without renewal, in milliseconds; `None` takes the pool's default.
    pub ttl_ms: Option<Millis>,
    /// Constraints on the worker; `None` accepts any.
    pub constraints: Option<Arc<PlacementConstraints>>,
    /// The only worker that will do; none: any that is offered.
    pub target: Option<Box<ClaimTarget>>,
    /// Level at which the reply acknowledges the claim.
    pub ack: AckLevel,
    /// Arrival time in nanoseconds, if timed.
    pub started_ns: Option<NonZeroU64>,
}

/// Request to show the holder of a key to a repeated claim, or to roll the holder back.
#[derive(Debug)]
pub struct ReacquireCall {
    /// Key of the claim.
    pub id: ClaimId,
    /// Number of the repeated claim among those of its key.
    pub number: u64,
    /// Handle of the claim that holds the key.
    pub handle: ClaimHandle,
    /// Whether the repeated claim may use this pool.
    pub eligibility: PoolEligibility,
    /// Constraints that the holder must meet.
    pub constraints: Option<Arc<PlacementConstraints>>,
    /// Level at which the reply acknowledges the claim.
    pub ack: AckLevel,
    /// Arrival time in nanoseconds, if timed.
    pub started_ns: Option<NonZeroU64>,
}

/// Set of shards. Most claims need only the first; the bits of the others are allocated on demand.
#[derive(Debug, Default)]
pub struct ShardSet {
    first: Option<u16>,
    more: Option<Box<[u64; Self::WORDS]>>,
}

impl ShardSet {
    const WORDS: usize = limits::SHARDS_MAX as usize / 64;

    /// Adds a shard to the set.
    pub fn insert(&mut self, shard: u16) {
        if self.first.is_none() {
            self.first = Some(shard);
        } else if self.first != Some(shard) {
            self.more.get_or_insert_default()[shard as usize / 64] |= 1 << (shard % 64);
        }
    }

    /// Members among the shards `64 * word ..`, as bits.
    #[must_use]
    pub fn bits(&self, word: usize) -> u64 {
        let first = self.first.filter(|&shard| shard as usize / 64 == word).map_or(0, |shard| 1 << (shard % 64));
        first | self.more.as_ref().map_or(0, |more| more[word])
    }

    /// Whether the set contains the shard.
    #[must_use]
    pub fn contains(&self, shard: u16) -> bool {
        self.bits(shard as usize / 64) & (1 << (shard % 64)) != 0
    }

    /// Number of shards in the set.
    #[must_use]
    pub fn len(&self) -> u32 {
        u32::from(self.first.is_some())
            + self.more.as_ref().map_or(0, |more| more.iter().map(|word| word.count_ones()).sum())
    }

    /// Set of the shards that are in one of both.
    #[must_use]
    pub fn union(&self, other: &Self) -> Self {
        let mut union = Self::default();
        for word in 0..Self::WORDS {
            let mut bits = self.bits(word) | other.bits(word);
            while bits != 0 {
                union.insert((word * 64) as u16 + bits.trailing_zeros() as u16);
                bits &= bits - 1;
            }
        }
        union
    }

    /// Whether the set has no shards.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.first.is_none()
    }
}

/// Operation on the claim that holds a key.
#[derive(Debug)]
pub struct HeldOperation {
    /// Identity of the claim.
    pub id: ClaimId,
    /// Handle of the claim in the shard.
    pub handle: ClaimHandle,
    /// Life of the shard that numbered the claim.
    pub life: ShardLife,
    /// Action on the claim.
    pub verb: HeldVerb,
    /// Records about the key that a durable reply waits for, besides that of the shard.
    pub pending_writes: PendingWrites,
    /// Arrival time in nanoseconds, if timed.
    pub started_ns: Option<NonZeroU64>,
    /// Address of the reply to the caller.
    pub reply: ReplyAddress,
}

/// Rejection of a request about a key, which follows from records that the store may lack.
#[derive(Debug)]
pub struct UnstoredRejection {
    /// Reason why the request is rejected.
    pub rejection: RequestError,
    /// Records that the store must have before the caller is told.
    pub pending_writes: PendingWrites,
    /// Address of the reply to the caller.
    pub reply: ReplyAddress,
}

/// Action of an operation on the claim that holds a key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum HeldVerb {
    /// Shows the claim without changing it.
    Get,
    /// Confirms the claim: the holder has started.
    Confirm,
    /// Renews the claim, with another time to live if given.
    Renew(Option<Millis>),
    /// Changes the resources that the claim holds.
    Resize(Box<ResourceRequirements>),
    /// Begins to release the claim; its worker must be cleaned before it is free.
    BeginRelease,
    /// Releases the claim and its worker.
    Release,
}

/// State of the keys that a worker reports, one for each reported claim; empty while no lost claim is adopted.
pub type KeyReports = Vec<KeyReport>;

/// State of the key of a claim that a worker reports.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum KeyReport {
    /// The key was vacant, and is reserved for the claim under this ticket.
    Reserved(KeyTicket),
    /// An older claim of the key is held.
    OlderHolder,
    /// The claim holds the key, or may not be adopted.
    NotAdoptable,
}

/// Request to reserve a worker for a claim that waits.
#[derive(Debug)]
pub struct ReserveCall {
    /// Id of the reservation.
    pub id: ReservationId,
    /// Constraints that the worker must meet.
    pub constraints: Arc<PlacementConstraints>,
    /// Time for which the claim needs the worker, in milliseconds.
    pub duration_ms: Millis,
    /// Claims that may be evicted, if any.
    pub evict: Option<EvictionPolicy>,
}

/// Request to find victims for claims that wait as a gang. Nothing is evicted.
#[derive(Debug)]
pub struct VictimSurvey {
    /// Id of the search.
    pub id: ReservationId,
    /// Needs of the members that lack a worker.
    pub needs: Arc<[VictimNeed]>,
    /// Priority below which claims may be evicted.
    pub below_priority: u16,
}

/// Request to find claims that may be evicted for another one of their tenant. Nothing is evicted.
#[derive(Debug)]
pub struct TenantSurvey {
    /// Id of the search.
    pub id: ReservationId,
    /// Claim of the tenant for which others may be evicted.
    pub owner: ClaimId,
    /// Priority below which claims may be evicted.
    pub below_priority: u16,
}

/// Request to take an action of a gang's two-phase commit at one shard.
#[derive(Debug)]
pub struct GangCall {
    /// Fence that identifies the gang.
    pub id: Fence,
    /// Action to take on the members in this shard, or on the gang's row.
    pub action: GangAction,
    /// Tickets of the members that were granted here; needed only to commit them.
    pub tickets: Vec<(ClaimId, KeyTicket)>,
    /// Sender of the answer.
    pub reply: GangReply,
}

/// Step that a test injects in the middle of a run.
pub struct InjectedStep(pub Box<dyn FnOnce(&mut Shard) + Send>);

impl std::fmt::Debug for InjectedStep {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("InjectedStep")
    }
}

/// Request to one shard.
#[derive(Debug)]
pub enum Command {
    /// Finds a worker for the claim.
    Claim(ClaimCall),
    /// Finds workers for many claims: one slot of the mailbox, one wake-up.
    Claims(Vec<ClaimCall>),
    /// Shows the holder of the key to a repeated claim, or rolls the holder back.
    Reacquire(ReacquireCall),
    /// Does something with a held claim.
    Operation(HeldOperation),
    /// Does something with many held claims: one slot of the mailbox, one wake-up.
    Operations(Vec<HeldOperation>),
    /// Replies once the store has the records that the reply follows from.
    ReplyWhenStored(Box<UnstoredRejection>),
    /// Reserves a worker for a claim that waits.
    Reserve(ReserveCall),
    /// Finds victims for a gang that waits.
    SurveyVictims(VictimSurvey),
    /// Finds claims that may be evicted for another one of their tenant.
    SurveyTenant(TenantSurvey),
    /// Evicts claims for another one of their tenant, as far as they may be evicted still.
    EvictClaims(Vec<ClaimHandle>),
    /// Takes an action on the members of a gang.
    Gang(Box<GangCall>),
    /// Relinquishes the claim: a worker runs a later claim of its key, whose record was lost.
    Relinquish(ClaimHandle),
    /// Reports whether the shard holds the key, whose entry is not trusted.
    FindClaim(ClaimId),
    /// Registers workers, or updates their registrations.
    Register(Vec<(RegistrationRequest, KeyReports, CommandReply<RegisteredWorker>)>),
    /// Handles heartbeats of workers.
    Heartbeat(Vec<(WorkerId, HeartbeatRequest, KeyReports, CommandReply<HeartbeatReply>)>),
    /// Operator command: cordon, uncordon, drain or clear.
    CommandWorker(WorkerId, WorkerCommand, CommandReply<Box<WorkerSnapshot>>),
    /// Clears suspicion from all workers of the shard.
    ClearWorkers(CommandReply<ClearResult>),
    /// Deletes a worker and ends its claims.
    DeleteWorker(WorkerId, CommandReply<DeletedWorker>),
    /// Shows a worker of the shard.
    GetWorker(WorkerId, CommandReply<Box<WorkerSnapshot>>),
    /// Lists workers from an ordinal on, up to a limit.
    ListWorkers(u32, usize, CommandReply<WorkerSlice>),
    /// Lists claims that pass the filter from an ordinal on, up to a limit.
    ListClaims(u32, usize, ShardClaimFilter, CommandReply<ClaimSlice>),
    /// Reports the figures of the shard.
    Report(CommandReply<ShardReport>),
    /// Lists the workers that have been idle longest, up to a limit.
    IdleLongest(usize, CommandReply<Vec<IdleWorker>>),
    /// Previews which worker a claim would get, without taking it.
    Preview(PreviewQuery, CommandReply<PreviewedPlacement>),
    /// Surveys which workers a claim could use, as many as one run may.
    Survey(SurveyQuery, CommandReply<SurveySlice>),
    /// Serialises rows for a snapshot: from a cursor on, about this many bytes.
    SnapshotRows(u32, usize, oneshot::Sender<(Vec<u8>, Option<u32>)>),
    /// Stops acknowledging claims from memory, and records that, because the service stops.
    Seal(CommandReply<()>),
    /// Ends all workers from an ordinal on, a slice at a time, because the pool is being deleted.
    EndWorkers(u32, CommandReply<EndedWorkers>),
    /// Executes a step of a test in the middle of a run, or panics in it. No edge can send this.
    Inject(InjectedStep),
}

/// Hypothetical claim whose placement is previewed.
#[derive(Debug, Clone)]
pub struct PreviewQuery {
    /// Constraints on the worker; `None` accepts any.
    pub constraints: Option<Arc<PlacementConstraints>>,
    /// Hash of the affinity key.
    pub affinity: u64,
    /// Time for which the claim would need the worker, in milliseconds.
    pub duration_ms: Millis,
    /// Level at which the reply would acknowledge the claim.
    pub ack: AckLevel,
    /// The only worker that will do; none: any that is offered.
    pub target: Option<ClaimTarget>,
}

/// Hypothetical claim for which workers are surveyed.
#[derive(Debug, Clone)]
pub struct SurveyQuery {
    /// Constraints on the worker; `None` accepts any.
    pub constraints: Option<Arc<PlacementConstraints>>,
    /// Time for which the claim would need the worker, in milliseconds.
    pub duration_ms: Millis,
    /// Ordinal from which workers are surveyed.
    pub from_ordinal: u32,
}

/// Filter of a listing of claims.
#[derive(Debug, Clone, Default)]
pub struct ShardClaimFilter {
    /// Only claims on this worker.
    pub worker: Option<WorkerId>,
    /// Only claims of this tenant.
    pub tenant: Option<String>,
    /// Only claims in one of these states; empty allows any.
    pub states: Vec<ClaimState>,
    /// Only claims known to be created by this unix time in milliseconds.
    pub created_by_ms: Option<Millis>,
}

impl ShardClaimFilter {
    /// Whether the claim passes the filter.
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
    /// New claims in the command.
    pub fn claim_calls(&self) -> &[ClaimCall] {
        match self {
            Self::Claim(call) => std::slice::from_ref(call),
            Self::Claims(calls) => calls,
            _ => &[],
        }
    }

    /// Adds what the layer above waits for, and what a panic in the middle of the command leaves undecided.
    pub(super) fn add_undecided(&self, undecided: &mut Vec<UndecidedClaim>) {
        let ticket = |call: &ClaimCall| UndecidedClaim::Ticket(call.id.clone(), call.ticket);
        let mut add_keys = |claims: &Option<Vec<RunningClaim>>, keys: &KeyReports| {
            let reserved = reserved_keys(claims.as_deref().unwrap_or_default(), keys);
            undecided.extend(reserved.map(|(id, ticket)| UndecidedClaim::Report(id, ticket)));
        };
        match self {
            Self::Claim(call) => undecided.push(ticket(call)),
            Self::Claims(calls) => undecided.extend(calls.iter().map(ticket)),
            Self::Reacquire(call) => undecided.push(UndecidedClaim::Repeated(call.id.clone(), call.number)),
            Self::Operation(HeldOperation { id, handle, life, verb: HeldVerb::Resize(_), .. }) => {
                undecided.push(UndecidedClaim::Resize(id.clone(), handle.fence, *life));
            }
            Self::Reserve(call) => undecided.push(UndecidedClaim::Reservation(call.id)),
            Self::SurveyVictims(survey) => undecided.push(UndecidedClaim::VictimSurvey(survey.id)),
            Self::SurveyTenant(survey) => undecided.push(UndecidedClaim::TenantSurvey(survey.id)),
            Self::Register(workers) => workers.iter().for_each(|(worker, keys, _)| add_keys(&worker.claims, keys)),
            Self::Heartbeat(workers) => workers.iter().for_each(|(_, beat, keys, _)| add_keys(&beat.claims, keys)),
            _ => {}
        }
    }

    /// Operations on held claims in the command.
    #[must_use]
    pub fn held_operations(&self) -> &[HeldOperation] {
        match self {
            Self::Operation(operation) => std::slice::from_ref(operation),
            Self::Operations(operations) => operations,
            _ => &[],
        }
    }

    /// Handles of the held claims in the command.
    pub fn handles(&self) -> impl Iterator<Item = ClaimHandle> + Clone {
        self.held_operations().iter().map(|operation| operation.handle)
    }

    /// Number of fences that the command may need.
    #[must_use]
    pub const fn fences_needed(&self) -> u64 {
        match self {
            Self::Claim(_) => 1,
            Self::Claims(calls) => calls.len() as u64,
            _ => 0,
        }
    }
}
