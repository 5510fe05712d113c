//! Workers: how they are described, what they say of themselves, and what the service says about them.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::{ClaimId, ClaimView, Fence, Labels, Millis, Seq, WorkerCapacity, WorkerId, check_labels, check_name};
use crate::limits;
use crate::model::request_error::RequestError;

/// A worker as its registrar describes it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WorkerSpec {
    /// Unique within the pool.
    pub id: WorkerId,
    /// What it has.
    pub capacity: WorkerCapacity,
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
pub struct RegistrationRequest {
    /// As its registrar describes it.
    pub spec: WorkerSpec,
    /// What it runs; none: nothing is said about that.
    pub claims: Option<Vec<RunningClaim>>,
}

impl From<WorkerSpec> for RegistrationRequest {
    fn from(spec: WorkerSpec) -> Self {
        Self { spec, claims: None }
    }
}

/// What a worker says of itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HeartbeatRequest {
    /// Which life of the worker speaks.
    pub incarnation: u64,
    /// Grows from one to the next: what comes later with a lower one is ignored. A registration begins the count anew.
    pub seq: Option<u64>,
    /// What it runs; none: it says nothing about that. Empty: nothing.
    pub claims: Option<Vec<RunningClaim>>,
}

/// Answer to a heartbeat.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HeartbeatResponse {
    /// What the worker holds, so what it should run.
    pub claims: Vec<ClaimView>,
    /// What it named and should not run.
    pub stop: Vec<RunningClaim>,
    /// Nothing of it was taken, because one with this higher `seq` was: the next has to exceed it, or the worker to be
    /// registered again.
    pub superseded_by: Option<u64>,
}

/// The registration of a worker, shared by the engine and the answers that name it.
#[derive(Debug, PartialEq, Eq)]
pub struct WorkerRegistration {
    /// What the registrar said.
    pub spec: WorkerSpec,
}

/// Whether a worker may be offered, as its owner wishes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SchedulingState {
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
pub enum LivenessState {
    /// It is, or it never promised to be.
    #[default]
    Live,
    /// It was silent for too long.
    Lost,
}

/// Whether a worker can be what it is thought to be.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TrustState {
    /// It can.
    #[default]
    Trusted,
    /// It may still run something: not offered until something has spoken for it.
    Suspect,
}

/// What the owner of a worker may wish.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum WorkerCommand {
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
    pub registration: Arc<WorkerRegistration>,
    /// It holds a claim, or runs what it should not.
    pub busy: bool,
    /// As its owner wishes.
    pub schedulability: SchedulingState,
    /// Whether it is heard of.
    pub liveness: LivenessState,
    /// Whether it can be what it is thought to be.
    pub trust: TrustState,
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
pub struct RegistrationResponse {
    /// False if the worker was known.
    pub created: bool,
    /// The worker after the registration.
    pub worker: WorkerView,
    /// What it said that it runs and should not.
    pub stop: Vec<RunningClaim>,
}
