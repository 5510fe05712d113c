//! Workers: their registration, their reports, and their representation in replies.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::{ClaimId, ClaimView, Fence, Labels, Millis, Seq, WorkerCapacity, WorkerId, check_labels, check_name};
use crate::limits;
use crate::model::request_error::RequestError;

/// Description of a worker by its registrar.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WorkerSpec {
    /// Id, unique within the pool.
    pub id: WorkerId,
    /// Capacity of the worker.
    pub capacity: WorkerCapacity,
    /// User-defined labels of the worker.
    pub labels: Labels,
    /// Machine that it runs on, if known.
    pub node: Option<Arc<str>>,
    /// Incarnation, increased when the worker restarts; a higher one ends the claims of the one before.
    pub incarnation: u64,
    /// End of its life in unix milliseconds: it is not offered to a claim that needs it for longer.
    pub expires_at_ms: Option<Millis>,
}

impl WorkerSpec {
    /// Describes a worker by its id only.
    #[must_use]
    pub fn with_id(id: WorkerId) -> Self {
        Self {
            id,
            capacity: WorkerCapacity::default(),
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
    pub fn check(&self) -> Result<(), RequestError> {
        self.capacity.check("capacity")?;
        check_labels(&self.labels)?;
        if let Some(node) = &self.node {
            check_name("node", node)?;
        }
        if self.incarnation > limits::AMOUNT_MAX {
            return Err(RequestError::invalid("incarnation", format!("must be at most {}", limits::AMOUNT_MAX)));
        }
        if self.expires_at_ms.is_some_and(|at| at > limits::AMOUNT_MAX) {
            return Err(RequestError::invalid("expires_at_ms", format!("must be at most {}", limits::AMOUNT_MAX)));
        }
        Ok(())
    }
}

/// Claim that a worker reports as running.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RunningClaim {
    /// Identity of the running claim.
    pub id: ClaimId,
    /// Fence of the grant, as disclosed to the worker.
    pub fence: Fence,
}

/// Registration of a worker, new or known.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RegistrationRequest {
    /// Description by its registrar.
    pub spec: WorkerSpec,
    /// Claims that the worker runs; none: it does not report them.
    pub claims: Option<Vec<RunningClaim>>,
}

impl From<WorkerSpec> for RegistrationRequest {
    fn from(spec: WorkerSpec) -> Self {
        Self { spec, claims: None }
    }
}

/// Heartbeat of a worker.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HeartbeatRequest {
    /// Incarnation of the worker that sends it.
    pub incarnation: u64,
    /// Sequence number, increasing: a lower one than before is ignored. A registration restarts it.
    pub seq: Option<u64>,
    /// Claims that the worker runs; none: it does not report them. Empty: it runs none.
    pub claims: Option<Vec<RunningClaim>>,
}

impl HeartbeatRequest {
    /// Checks the numbers against their limits.
    ///
    /// # Errors
    /// `Invalid` naming the field.
    pub fn check(&self) -> Result<(), RequestError> {
        for (field, number) in [("incarnation", self.incarnation), ("seq", self.seq.unwrap_or(0))] {
            if number > limits::AMOUNT_MAX {
                return Err(RequestError::invalid(field, format!("must be at most {}", limits::AMOUNT_MAX)));
            }
        }
        Ok(())
    }
}

/// Reply to a heartbeat.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HeartbeatResponse {
    /// Live claims of the worker, which it should run.
    pub claims: Vec<ClaimView>,
    /// Reported claims that it must stop.
    pub stop: Vec<RunningClaim>,
    /// Higher sequence number that was handled before; this heartbeat was ignored. The next must exceed it, or the
    /// worker must register again.
    pub superseded_by: Option<u64>,
}

/// Registration of a worker, shared by the engine and the replies that show it.
#[derive(Debug, PartialEq, Eq)]
pub struct WorkerRegistration {
    /// Description by its registrar.
    pub spec: WorkerSpec,
}

/// Schedulability of a worker, as set by its operator.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SchedulingState {
    /// Schedulable, as far as its operator is concerned.
    #[default]
    Open,
    /// Not schedulable; keeps its claims. Outlives registrations and restarts.
    Cordoned,
    /// Not schedulable in this incarnation; keeps its claims.
    Draining,
}

/// Liveness of a worker by its heartbeats.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LivenessState {
    /// Heard from in time, or never expected to send heartbeats.
    #[default]
    Live,
    /// Silent for too long.
    Lost,
}

/// Trust in the recorded state of a worker.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TrustState {
    /// Trusted: it runs what is recorded.
    #[default]
    Trusted,
    /// Suspect: it may run something else, and is unschedulable until it is verified.
    Suspect,
}

/// Operator command for a worker.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum WorkerCommand {
    /// Makes the worker unschedulable.
    Cordon,
    /// Makes the worker schedulable again.
    Uncordon,
    /// Makes the worker unschedulable for the rest of its incarnation.
    Drain,
    /// Clears suspicion of the worker.
    Clear,
}

/// Worker as replies show it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WorkerView {
    /// Registration of the worker.
    pub registration: Arc<WorkerRegistration>,
    /// True while the worker holds a claim, or runs one that it should not.
    pub busy: bool,
    /// Schedulability set by its operator.
    pub schedulability: SchedulingState,
    /// Liveness by its heartbeats and registrations.
    pub liveness: LivenessState,
    /// Trust in its recorded state.
    pub trust: TrustState,
    /// True if the worker has less capacity than its claims were granted.
    pub overcommitted: bool,
    /// Sequence number, in its shard, of its last change.
    pub version: Seq,
    /// Index of its shard.
    pub shard: u16,
    /// Live claims of the worker.
    pub claims: Vec<ClaimView>,
}

/// Reply to a registration.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RegistrationResponse {
    /// True if the worker is new, false if it was registered before.
    pub created: bool,
    /// Worker after the registration.
    pub worker: WorkerView,
    /// Reported claims that it must stop.
    pub stop: Vec<RunningClaim>,
}
