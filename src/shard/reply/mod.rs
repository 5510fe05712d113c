//! Where an answer goes: to one caller, into one place of a batch that answers when all of its places are filled, or into
//! an inbox that has each as soon as it is there.

mod batch;
mod inbox;

use std::sync::Arc;

use tokio::sync::oneshot;

use crate::admission::keys::ShardRef;
use crate::engine::{Grant, LedgerLine, NoFit, Slice, WorkerLook};
use crate::model::rejection::Refusal;
use crate::model::{Capacity, ClaimId, Cleared, IdleWorker, Millis, RunningClaim, ShardStatus, Survey, WorkerCard};

pub use self::batch::{Batch, BatchAnswers};
pub use self::inbox::Inbox;

/// What a shard says.
#[derive(Debug, Clone, PartialEq)]
pub enum Payload {
    /// A held claim.
    Claim(ClaimAnswer),
    /// Members of a gang, which are claims from now on.
    Gang(Vec<(ClaimId, ClaimAnswer)>),
    /// How many members of a gang the shard holds.
    Members(usize),
    /// Done; there is nothing to add.
    Done,
    /// A worker was deleted.
    Deleted {
        /// Claims that ended with it.
        claims_lost: u64,
    },
    /// Done with workers up to this ordinal, at which it goes on.
    Unfinished(u32),
    /// A worker.
    Worker {
        /// False if it was known.
        created: bool,
        /// As it stands.
        look: Box<WorkerLook>,
        /// What it named and should not run.
        stop: Vec<RunningClaim>,
    },
    /// Of a worker that sent a heartbeat.
    Heard {
        /// What it holds.
        claims: Vec<(ClaimId, ClaimAnswer)>,
        /// What it named and should not run.
        stop: Vec<RunningClaim>,
        /// Nothing of it was taken, because one with this higher number was.
        late_for: Option<u64>,
    },
    /// Workers of the shard that are trusted since, and those that are not yet.
    Cleared(Cleared),
    /// Workers with their ordinals, a part of the list.
    Workers(Slice<(u32, WorkerLook)>),
    /// Claims, a part of the list.
    Claims(Slice<(ClaimId, ClaimAnswer)>),
    /// The shard's figures.
    Report(Box<ShardReport>),
    /// Workers that hold nothing.
    Idle(Vec<IdleWorker>),
    /// The worker that a claim would be given, or why none; no reason: none is free.
    WouldTake(Result<Arc<WorkerCard>, Option<NoFit>>),
    /// What a claim finds among some workers, and the ordinal at which to go on.
    Survey(Box<Survey>, Option<u32>),
}

/// A shard's figures.
#[derive(Debug, Clone, PartialEq)]
pub struct ShardReport {
    /// Counts and positions.
    pub status: ShardStatus,
    /// Sums by capacity vector.
    pub ledger: Vec<LedgerLine>,
    /// In a shared pool: what can be claimed.
    pub left: Option<Left>,
    /// Must be 0.
    pub drift: u64,
}

/// What can be claimed of workers that are offered.
#[derive(Debug, Clone, PartialEq)]
pub struct Left {
    /// Cores, memory and places.
    pub capacity: Capacity,
    /// Per GPU model: cards of which nothing is held, and thousandths of cards.
    pub cards: Vec<(Arc<str>, u64, u64)>,
}

/// A held claim as it is answered.
#[derive(Debug, Clone, PartialEq)]
pub struct ClaimAnswer {
    /// What the engine said.
    pub grant: Grant,
    /// It was made by this request.
    pub created: bool,
    /// Shard that holds it.
    pub shard: ShardRef,
    /// Unix time of its end if nothing is heard; set when the answer leaves.
    pub expires_at_ms: Option<Millis>,
}

/// An answer.
pub type Outcome = Result<Payload, Refusal>;

#[derive(Debug)]
enum Address {
    One(oneshot::Sender<Outcome>),
    Part(Arc<Batch>, u32),
    Inbox(Arc<Inbox>, u32),
    Nobody,
}

/// Sends one answer. Dropped without one (its shard panicked), it says that the outcome is unknown.
#[derive(Debug)]
pub struct Reply(Address);

impl Reply {
    /// To one caller.
    #[must_use]
    pub fn one() -> (Self, oneshot::Receiver<Outcome>) {
        let (to, answer) = oneshot::channel();
        (Self(Address::One(to)), answer)
    }

    /// Into a place of a batch.
    #[must_use]
    pub const fn part(batch: Arc<Batch>, place: u32) -> Self {
        Self(Address::Part(batch, place))
    }

    /// To a caller who has many requests in flight, and calls this one `place`.
    #[must_use]
    pub const fn to(inbox: Arc<Inbox>, place: u32) -> Self {
        Self(Address::Inbox(inbox, place))
    }

    /// To nobody: what is asked for is done for its own sake.
    #[must_use]
    pub const fn nobody() -> Self {
        Self(Address::Nobody)
    }

    /// The caller is known to be gone: an answer would reach nobody.
    #[must_use]
    pub fn is_closed(&self) -> bool {
        match &self.0 {
            Address::One(to) => to.is_closed(),
            Address::Inbox(inbox, _) => inbox.is_closed(),
            // Whether anybody listens to a batch is seen when the answer is put there: a lock less.
            Address::Part(..) | Address::Nobody => false,
        }
    }

    /// The answer leaves with others: when the last of them is there, not when this one is sent.
    #[must_use]
    pub const fn is_part(&self) -> bool {
        matches!(self.0, Address::Part(..))
    }

    /// The same, also of a batch, at the price of its lock.
    #[must_use]
    pub fn is_gone(&self) -> bool {
        match &self.0 {
            Address::Part(batch, _) => batch.is_closed(),
            _ => self.is_closed(),
        }
    }

    /// Sends. False: the caller is gone.
    pub fn send(mut self, outcome: Outcome) -> bool {
        match std::mem::replace(&mut self.0, Address::Nobody) {
            Address::One(to) => to.send(outcome).is_ok(),
            Address::Part(batch, place) => batch.fill(place, outcome),
            Address::Inbox(inbox, place) => inbox.put(place, outcome),
            Address::Nobody => true,
        }
    }
}

impl Drop for Reply {
    fn drop(&mut self) {
        match std::mem::replace(&mut self.0, Address::Nobody) {
            Address::One(to) => drop(to.send(Err(Refusal::DeadlineExceeded))),
            Address::Part(batch, place) => drop(batch.fill(place, Err(Refusal::DeadlineExceeded))),
            Address::Inbox(inbox, place) => drop(inbox.put(place, Err(Refusal::DeadlineExceeded))),
            Address::Nobody => {}
        }
    }
}
