//! Typed replies of the commands that are not about one claim: about workers, listings, figures and gangs.

use std::sync::Arc;

use tokio::sync::oneshot;

use super::ClaimAnswer;
use crate::engine::{ListingSlice, PlacementFailure, WorkerSnapshot};
use crate::model::request_error::RequestError;
use crate::model::{ClaimId, RunningClaim, WorkerRegistration, WorkerSurvey};

/// Sender of the reply to a command that is not about one claim. If it is dropped unsent (its shard panicked), the
/// outcome is unknown, which the caller treats like a missed deadline.
pub type CommandReply<T> = oneshot::Sender<Result<T, RequestError>>;

/// State of a worker after its registration.
#[derive(Debug, Clone, PartialEq)]
pub struct RegisteredWorker {
    /// True if the worker is new, false if it was known.
    pub created: bool,
    /// Current state of the worker.
    pub worker: Box<WorkerSnapshot>,
    /// Reported claims that the worker must stop.
    pub revoked: Vec<RunningClaim>,
}

/// Result of a heartbeat.
#[derive(Debug, Clone, PartialEq)]
pub struct HeartbeatReply {
    /// Claims that the worker holds.
    pub claims: Vec<(ClaimId, ClaimAnswer)>,
    /// Reported claims that the worker must stop.
    pub revoked: Vec<RunningClaim>,
    /// Higher sequence number that was handled before; this heartbeat was ignored.
    pub late_for: Option<u64>,
}

/// Result of the deletion of a worker.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DeletedWorker {
    /// Claims that ended with the worker.
    pub claims_lost: u64,
}

/// Result of one step of ending all workers of a shard.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct EndedWorkers {
    /// Ordinal at which the next step continues; none once all workers are ended.
    pub next: Option<u32>,
}

/// Slice of the list of workers, with their ordinals.
pub type WorkerSlice = ListingSlice<(u32, WorkerSnapshot)>;

/// Slice of the list of claims.
pub type ClaimSlice = ListingSlice<(ClaimId, ClaimAnswer)>;

/// Worker that a claim would get, or why it would get none; no reason if none is free.
pub type PreviewedPlacement = Result<Arc<WorkerRegistration>, Option<PlacementFailure>>;

/// Survey of some workers for a claim.
#[derive(Debug, Clone, PartialEq)]
pub struct SurveySlice {
    /// Results for the workers of this slice.
    pub survey: WorkerSurvey,
    /// Ordinal at which the survey continues; none at its end.
    pub next: Option<u32>,
}

/// Members of a committed gang, which are ordinary claims from now on.
pub type CommittedMembers = Vec<(ClaimId, ClaimAnswer)>;
