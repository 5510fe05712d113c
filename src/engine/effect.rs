//! What must be done about an event, in order.

use std::sync::Arc;

use super::event::Place;
use super::wants::NoFit;
use crate::model::{ClaimId, ClaimSpec, ClaimState, Fence, Millis, Seq, WorkerCard};

/// Something to do.
#[derive(Debug, PartialEq, Eq)]
pub enum Effect<R> {
    /// Answer a request.
    Reply {
        /// Whom.
        to: R,
        /// What.
        answer: Answer,
    },
    /// A claim is over: its key is free.
    Ended {
        /// Whose.
        id: ClaimId,
        /// Number of the grant that is over.
        fence: Fence,
        /// Why.
        end: End,
    },
}

/// What a request is told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Answer {
    /// The claim is made.
    Granted(Grant),
    /// No idle worker here; another shard may have one. Nothing was changed.
    NoRoom,
    /// The same, for a claim that asked for certain workers.
    NoFit(NoFit),
    /// It is held as it was; with the deadline as it stands.
    Held(Grant),
    /// What was held at the place is gone. Nothing was changed.
    Gone,
    /// The held claim did not satisfy the request and was given back: the key may be claimed anew.
    GivenBack,
    /// The held claim does not satisfy the request and is active. Nothing was changed.
    ActiveElsewhere,
    /// The held claim asked for other resources, and the request must have the same. Nothing was changed.
    Mismatch,
    /// The claim is over.
    Released,
    /// The worker is registered.
    Registered {
        /// False if it was known.
        created: bool,
        /// As it stands now.
        worker: Box<WorkerLook>,
    },
    /// The worker is deleted.
    Deleted,
    /// There is no such worker.
    UnknownWorker,
    /// The registration comes from an older life of the worker. Nothing was changed.
    StaleIncarnation {
        /// The incarnation that is known.
        known: u64,
        /// True: that one was deleted, so a higher one is needed.
        deleted: bool,
    },
    /// The shard holds as many workers as it can number.
    ShardFull,
}

/// A held claim.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Grant {
    /// Where it is.
    pub place: Place,
    /// On which worker.
    pub worker: Arc<WorkerCard>,
    /// Where it is in its life.
    pub state: ClaimState,
    /// How long it may stay unconfirmed from when the answer leaves.
    pub reserve_ms: Millis,
    /// Its deadline, if it runs already.
    pub deadline_ms: Option<Millis>,
    /// What it keeps of its request, if anything.
    pub spec: Option<Arc<ClaimSpec>>,
}

/// A worker as it stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WorkerLook {
    /// Its registration.
    pub card: Arc<WorkerCard>,
    /// Sequence number of its last change.
    pub version: Seq,
    /// What it holds.
    pub claims: Vec<(ClaimId, Grant)>,
}

/// How a claim ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// The holder released it.
    Released,
    /// It was never confirmed.
    Swept,
    /// Its worker is gone.
    Lost,
    /// Nobody was ever told of it, or its key is held elsewhere.
    GivenBack,
}
