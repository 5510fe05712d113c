//! Events of the claim of a gang, and what follows from them. Plain data.

#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;

use super::transaction::{CommittedMember, TransactionEffect, TransactionEvent};
use crate::admission::key::PendingClaim;
use crate::admission::queue::{ArrivalNumber, LastAttempt, WaitingGang};
use crate::model::request_error::{ExhaustionReason, RequestError};
use crate::model::{ClaimId, ClaimRequest, Fence, GangRef, Millis};
use crate::shard::{CompletionQueue, KeyTicket, ReplyAddress, ShardOutcome, ShardRef};

/// Gang whose members are checked and ready to be placed.
#[derive(Debug)]
pub struct PreparedGang {
    /// Identity of the attempt, and the shard of its record.
    pub home: GangRef,
    /// Claims of the members, in the order of the call.
    #[allow(clippy::vec_box, reason = "claims stay boxed from entry to entry")]
    pub items: Vec<Box<PendingClaim>>,
    /// Numbers of all candidate pools.
    pub pools: Vec<u32>,
    /// Collects the outcomes of the members.
    pub grants: Arc<CompletionQueue>,
}

/// Answer to the caller of a gang.
#[derive(Debug)]
pub enum GangVerdict {
    /// The gang is committed.
    Committed(Vec<CommittedMember>),
    /// No claim was made; the reason by member.
    Refused(Vec<RequestError>),
    /// Whether the gang is committed is not known yet.
    InDoubt,
}

/// Wait that a gang is about to begin.
#[derive(Debug)]
pub struct GangWait {
    /// Requests of the members.
    pub requests: Arc<[ClaimRequest]>,
    /// Why the last attempt failed.
    pub exhausted: ExhaustionReason,
    /// Beginning and end of the wait, in engine time.
    pub wait_ms: Range<Millis>,
    /// Attempt after which it waits.
    pub last_attempt: LastAttempt,
    /// Arrival number that it had in the queues before, if it was in any.
    pub arrival: Option<ArrivalNumber>,
}

/// Event of a gang.
#[derive(Debug)]
pub enum GangEvent {
    /// The call of the gang begins.
    Begin,
    /// The requests were checked; otherwise the rejections by member.
    Prepared(Result<PreparedGang, BTreeMap<usize, RequestError>>),
    /// No other gang is placed in its pools.
    LocksGranted,
    /// The keys of all members were acquired under these tickets, and shards are asked.
    KeysAcquired(Vec<(ClaimId, KeyTicket)>),
    /// A key is taken, or a quota used up: nothing is left of the attempt.
    KeysRejected(BTreeMap<usize, RequestError>),
    /// Every member was granted or rejected; with the shards that may hold one whose outcome is unknown.
    MembersDecided(Vec<ShardOutcome>, Vec<ShardRef>),
    /// Event of the transaction of the gang.
    Transaction(TransactionEvent),
    /// The gang entered the queues of its pools; otherwise the rejections by member.
    Queued(Result<Arc<WaitingGang>, BTreeMap<usize, RequestError>>),
    /// Capacity or quota that the gang waits for seems to be free.
    MayFit,
    /// Time has come for what is due.
    Tick,
    /// A pool of the gang is being deleted, or the service stops.
    Closing,
    /// Other pools than before may be its candidates.
    PoolsChanged,
    /// The caller has left.
    CallerLeft,
}

/// Consequence of a step of a gang.
#[derive(Debug)]
pub enum GangEffect {
    /// Check the requests against the pools, and note in the queues that the gang is being tried.
    Prepare(Arc<[ClaimRequest]>, Option<Arc<WaitingGang>>),
    /// Wait until no other gang is placed in these pools.
    RequestLocks(Vec<u32>),
    /// Let other gangs be placed.
    ReleaseLocks,
    /// Acquire the keys of the members, and ask shards for workers: first those that are held for the gang.
    Place(PreparedGang, Option<Arc<WaitingGang>>),
    /// Enter the queues of the candidate pools.
    Enqueue(GangWait),
    /// Leave the queues of the candidate pools.
    Dequeue(Arc<WaitingGang>),
    /// Note that an attempt has failed.
    Postpone(Arc<WaitingGang>, LastAttempt),
    /// Carry out an effect of the transaction.
    Transaction(TransactionEffect),
    /// Roll back these claims as far as they exist and nobody knows of them: the caller has left.
    Discard(Vec<(ClaimId, Fence)>),
    /// Answer the caller at these addresses, if there is one.
    Answer(Vec<ReplyAddress>, Arc<[ClaimRequest]>, GangVerdict),
}
