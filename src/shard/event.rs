//! Events that a run reports to the layer above, once, at its end: after its rows were handed over and its bounds published,
//! before its replies leave.
//!
//! A shard never calls the layer above in the middle of a run. It decides its commands, notes an event for each
//! decision that concerns a key, a tenant or the wait queue, and hands them to its [`ShardSink`] together. A reply that
//! depends on what is above (the address of the caller, the records of other shards that it must wait for) is prepared
//! by the run and completed by the sink through [`RunReplies`].

use std::sync::Arc;

use super::address::{KeyTicket, PendingWrite, PendingWrites, ShardRef};
use super::command::{ClaimCall, HeldOperation};
use super::reply::ReplyAddress;
use super::runner::PendingReply;
use crate::engine::{
    ClaimGrant, ClaimHandle, PlacementFailure, ReservationId, ReservedWorker, TenantVictim, WorkerOffer,
};
use crate::model::request_error::RequestError;
use crate::model::{ClaimId, ClaimSpec, Fence, Millis, Seq, UnreadReply};

/// Position of a reply among those that a run has prepared.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ReplyIndex(pub(super) u32);

/// Number of the life of a shard: it grows with each restart, and handles of an earlier life mean nothing in a later.
pub type ShardLife = u32;

/// Reason for which a shard did not grant a claim.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NotGranted {
    /// No worker is free.
    NoCapacity,
    /// No worker meets the claim's constraints.
    NotPlaced(PlacementFailure),
    /// The shard accepts no such claim at present, or never does.
    Rejected(RequestError),
}

/// Kind of a grant.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum GrantKind {
    /// Claim that holds its key from now on.
    Claim,
    /// Provisional member of a gang, whose key stays pending.
    Provisional,
}

/// Decision of a run that concerns the layer above.
#[derive(Debug)]
pub enum ShardEvent {
    /// A claim was granted. Its prepared reply needs the address of the caller.
    Granted {
        /// Whether the key becomes held, or stays pending for the gang of the claim.
        kind: GrantKind,
        /// Key of the claim.
        id: ClaimId,
        /// Ticket of the attempt.
        ticket: KeyTicket,
        /// Handle of the claim in this life of the shard.
        handle: ClaimHandle,
        /// Part of the request that is kept with the claim.
        spec: Option<Arc<ClaimSpec>>,
        /// Reply that the run prepared.
        reply: ReplyIndex,
    },
    /// A claim was not granted.
    NotGranted {
        /// Key of the claim.
        id: ClaimId,
        /// Ticket of the attempt.
        ticket: KeyTicket,
        /// Why it was not granted.
        reason: NotGranted,
    },
    /// A repeated claim was answered with the claim that holds the key, or rejected.
    Reacquired {
        /// Key of the claim.
        id: ClaimId,
        /// Number of the repeated claim among those of its key.
        number: u64,
        /// Reply that the run prepared.
        reply: ReplyIndex,
    },
    /// A repeated claim was not answered.
    NotReacquired {
        /// Key of the claim.
        id: ClaimId,
        /// Number of the repeated claim among those of its key.
        number: u64,
        /// Why it was not decided; `None` if the claim that it found is gone.
        rejection: Option<RequestError>,
    },
    /// A claim ended, for whatever reason.
    Ended {
        /// Key of the claim.
        id: ClaimId,
        /// Fence of the claim.
        fence: Fence,
        /// Last state of the grant, if it is shown for a while: the claim ended without its holder. Boxed, because such
        /// ends are rare.
        retained: Option<Box<ClaimGrant>>,
        /// Record of the end that the store lacks, if it keeps any.
        write: Option<PendingWrite>,
        /// Prepared reply to the request that ended it.
        reply: Option<ReplyIndex>,
    },
    /// A lost claim that a worker reported was adopted.
    Adopted {
        /// Key of the claim.
        id: ClaimId,
        /// Ticket under which the key was reserved.
        ticket: KeyTicket,
        /// Handle of the claim in this life of the shard.
        handle: ClaimHandle,
        /// Part of the request that is kept with the claim.
        spec: Option<Arc<ClaimSpec>>,
    },
    /// The keys that a worker's report had reserved are decided: those that were not adopted are vacant again.
    ReportDecided {
        /// Keys with the tickets that the report had.
        tickets: Vec<(ClaimId, KeyTicket)>,
    },
    /// A worker runs a claim whose predecessor this process still holds: the predecessor must be relinquished.
    PredecessorHeld {
        /// Key of the claim.
        id: ClaimId,
        /// Fence of the claim that the worker runs.
        fence: Fence,
    },
    /// A member of a gang became an ordinary claim.
    Committed {
        /// Key of the claim.
        id: ClaimId,
        /// Ticket of the pending key.
        ticket: KeyTicket,
        /// Handle of the claim in this life of the shard.
        handle: ClaimHandle,
        /// Part of the request that is kept with the claim.
        spec: Option<Arc<ClaimSpec>>,
        /// Prepared reply to the gang, once there is one.
        reply: Option<ReplyIndex>,
    },
    /// A request to change a claim's resources was decided.
    Resized {
        /// Key of the claim.
        id: ClaimId,
        /// Fence of the claim.
        fence: Fence,
        /// Part of the request that the claim has from now on, or had all along.
        spec: Option<Arc<ClaimSpec>>,
    },
    /// A reply shows a claim: a durable one waits for what the store lacks about its key.
    Shown {
        /// Key of the claim.
        id: ClaimId,
        /// Reply that the run prepared.
        reply: ReplyIndex,
    },
    /// The store has the record of a claim's end.
    EndStored {
        /// Key of the claim.
        id: ClaimId,
        /// Sequence number of the record.
        seq: Seq,
    },
    /// A request to change a claim's resources was not decided.
    ResizeRejected {
        /// Key of the claim.
        id: ClaimId,
        /// Fence of the claim.
        fence: Fence,
        /// Life of the shard for which the request was made.
        life: ShardLife,
    },
    /// A request to reserve a worker was decided.
    ReservationDecided {
        /// Id of the reservation.
        id: ReservationId,
        /// Whether a worker is reserved.
        outcome: ReservationOutcome,
    },
    /// A search for victims was carried out.
    VictimsFound {
        /// Id of the search.
        id: ReservationId,
        /// Needs that have a worker, by their positions, each with the ordinal of the worker.
        found: Vec<(usize, u32)>,
    },
    /// A search for claims of a tenant that may be evicted was carried out.
    TenantVictims {
        /// Id of the search.
        id: ReservationId,
        /// Claims that may be evicted, the cheapest first.
        victims: Vec<TenantVictim>,
    },
    /// Reservations ended without having served: their workers are unusable or gone.
    ReservationsVoid(Vec<ReservationId>),
    /// An operation names a claim by a handle of an earlier life: it was not decided.
    Stale(Box<HeldOperation>),
    /// The shard was asked whether it holds a key.
    ClaimFound {
        /// Key that was asked for.
        id: ClaimId,
        /// Claim of the shard that holds it, if any, and the part of its request that it keeps.
        holder: Option<(ClaimHandle, Option<Arc<ClaimSpec>>)>,
    },
    /// The shard panicked before the layer above learned what became of these requests.
    Panicked(UndecidedRequests),
    /// Reply about a claim of an earlier life that nobody reads.
    StaleUnread {
        /// Key of the claim.
        id: ClaimId,
        /// Fence of the claim.
        fence: Fence,
        /// Reply that nobody reads.
        reply: UnreadReply,
    },
}

impl ShardEvent {
    /// Keys whose entries the event may change.
    pub fn keys(&self) -> impl Iterator<Item = &ClaimId> {
        let (one, reported) = match self {
            Self::Granted { id, .. } | Self::NotGranted { id, .. } | Self::Ended { id, .. } => (Some(id), None),
            Self::Reacquired { id, .. } => (Some(id), None),
            Self::NotReacquired { id, .. } | Self::Adopted { id, .. } | Self::Committed { id, .. } => (Some(id), None),
            Self::Resized { id, .. } | Self::ResizeRejected { id, .. } => (Some(id), None),
            Self::EndStored { id, .. } | Self::ClaimFound { id, .. } => (Some(id), None),
            Self::ReportDecided { tickets } => (None, Some(tickets)),
            Self::PredecessorHeld { .. } | Self::Shown { .. } | Self::StaleUnread { .. } | Self::Stale(_) => {
                (None, None)
            }
            Self::ReservationDecided { .. } | Self::VictimsFound { .. } | Self::ReservationsVoid(_) => (None, None),
            Self::Panicked(_) | Self::TenantVictims { .. } => (None, None),
        };
        one.into_iter().chain(reported.into_iter().flatten().map(|(id, _)| id))
    }
}

/// Result of a request to reserve a worker.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ReservationOutcome {
    /// This worker is reserved.
    Reserved(Box<ReservedWorker>),
    /// No worker of the shard qualifies.
    NoWorker,
}

const _: () = assert!(size_of::<ShardEvent>() <= 88, "an event is moved several times");

/// Use of a worker of which something came free, because claims wait.
#[derive(Debug)]
pub enum FreedMatch {
    /// A claim takes something of it: the call is decided in the same run, before any claim that does not wait.
    Claim(ClaimCall),
    /// The worker is reserved.
    Reserve(ReservationId),
}

/// Layer above the shards, as far as they know it.
pub trait ShardSink: Sized + Send + Sync + 'static {
    /// Effects that are worked off by whoever started the run.
    type Work: Default + Send;

    /// Takes the events of a run, completes its replies, and adds what must be done to `work`.
    fn deliver(
        &self,
        from: RunOrigin,
        events: &mut Vec<ShardEvent>,
        replies: &mut RunReplies<'_>,
        work: &mut Self::Work,
    );

    /// Offers a worker of which something came free to the claims that wait, in the order of their rank.
    fn match_freed(&self, from: RunOrigin, offer: &WorkerOffer) -> Option<FreedMatch>;

    /// Works off effects until none is left.
    fn carry_out(&self, work: &mut Self::Work);
}

/// Run that delivers events.
#[derive(Debug, Clone, Copy)]
pub struct RunOrigin {
    /// Shard that made the run.
    pub shard: ShardRef,
    /// Life of the shard.
    pub life: ShardLife,
    /// Engine time of the run.
    pub now_ms: Millis,
}

/// Request whose decision the layer above waits for, and which no shard will decide: its shard panicked or stopped.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum UndecidedClaim {
    /// New claim, or member of a gang, with its ticket.
    Ticket(ClaimId, KeyTicket),
    /// Key that was reserved for a claim which a worker reported, with its ticket.
    Report(ClaimId, KeyTicket),
    /// Request to change the resources of the claim with this fence, made for this life of its shard.
    Resize(ClaimId, Fence, ShardLife),
    /// Repeated claim, with its number among those of its key.
    Repeated(ClaimId, u64),
    /// Request to reserve a worker.
    Reservation(ReservationId),
    /// Search for victims for a gang.
    VictimSurvey(ReservationId),
    /// Search for claims of a tenant that may be evicted.
    TenantSurvey(ReservationId),
}

/// Requests that a shard was deciding when it panicked.
#[derive(Debug, Default)]
pub struct UndecidedRequests {
    /// Tickets of the claims.
    pub tickets: Vec<KeyTicket>,
    /// Keys that are reserved for claims which workers reported, with their tickets.
    pub reports: Vec<(ClaimId, KeyTicket)>,
    /// Outcome of these requests.
    pub outcome: UndecidedOutcome,
}

/// Outcome of requests that a shard was deciding when it panicked.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum UndecidedOutcome {
    /// Requests without an effect: no row tells of them.
    #[default]
    Undone,
    /// Rows may tell of grants: the shard had handed them over, and not delivered their events.
    Unknown,
}

impl UndecidedClaim {
    /// Event that rejects the claim.
    pub(super) fn reject(self, rejection: RequestError) -> ShardEvent {
        match self {
            Self::Ticket(id, ticket) => ShardEvent::NotGranted { id, ticket, reason: NotGranted::Rejected(rejection) },
            Self::Repeated(id, number) => ShardEvent::NotReacquired { id, number, rejection: Some(rejection) },
            Self::Reservation(id) => ShardEvent::ReservationDecided { id, outcome: ReservationOutcome::NoWorker },
            Self::VictimSurvey(id) => ShardEvent::VictimsFound { id, found: Vec::new() },
            Self::TenantSurvey(id) => ShardEvent::TenantVictims { id, victims: Vec::new() },
            Self::Resize(id, fence, life) => ShardEvent::ResizeRejected { id, fence, life },
            Self::Report(id, ticket) => ShardEvent::ReportDecided { tickets: vec![(id, ticket)] },
        }
    }
}

/// Replies that a run has prepared, for the sink to complete.
pub struct RunReplies<'r>(&'r mut [PendingReply]);

impl<'r> RunReplies<'r> {
    pub(super) fn new(replies: &'r mut [PendingReply]) -> Self {
        Self(replies)
    }

    /// Sets the caller of a reply and the records that a durable reply waits for besides that of its shard. A reply
    /// without a caller is discarded, and what it granted is rolled back.
    pub fn address(&mut self, reply: ReplyIndex, caller: ReplyAddress, writes: PendingWrites) {
        let reply = &mut self.0[reply.0 as usize];
        reply.address(caller);
        reply.wait_for(writes);
    }

    /// Adds records that a durable reply waits for.
    pub fn wait_for(&mut self, reply: ReplyIndex, writes: PendingWrites) {
        self.0[reply.0 as usize].wait_for(writes);
    }
}
