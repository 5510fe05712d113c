//! Decides what happens in a shard. One [`Shard`] is the only writer of its workers, their idle queue, their
//! accounting and their claims. [`Shard::handle_event`] changes the state, returns the reply, and appends the effects
//! that its owner must execute, in order.
//!
//! Purity contract: no clock, no I/O, no randomness, no locks, no tasks. Time is a parameter (monotonic
//! milliseconds), so is a fence, and "random" is a hash of that fence. So the same engine runs in the service, in
//! tests against an oracle, and in an embedding program, and every run can be repeated exactly. The lints below
//! enforce it (`.clippy.toml` lists what is banned and why).
//!
//! | file | what it decides |
//! |---|---|
//! | [`event`] | inputs of a shard |
//! | [`effect`] | replies, and what else to execute |
//! | `shard` | dispatch of events; how a claim gets a worker |
//! | `shard_config` | rules from the pool's specification, and changes of them |
//! | `claims` | the live claims |
//! | `claims::lifecycle`, `timestamps` | their states and ends; when they were created and activated |
//! | `claims::gangs`, `resize` | all-or-nothing groups across shards; changes of their resources |
//! | `workers`, `workers::registration` | the workers: added, replaced, deleted |
//! | `workers::heartbeat` | reconciliation with what workers report |
//! | `workers::liveness`, `workers::schedulability` | whether a worker is schedulable, alive and trusted |
//! | [`placement`] | the worker for a claim: constraints, classes, reservations |
//! | `placement::idle_queue`, `idle_classes` | in exclusive pools |
//! | `placement::shared`, [`bin_packing`](placement::bin_packing) | in shared pools |
//! | `explain` | what a claim would get, and why other workers are filtered out |
//! | `timer_wheel` | which deadlines have passed |
//! | `accounting` | total and used capacity, and the counts of workers |
//! | `dirty_rows` | sequence numbers, and rows for the journal |
//! | `replay` | a shard rebuilt from its rows |
//! | `views`, `counters` | queries and statistics |
//! | `invariants`, `audit` | what must hold between two events, and checks of it |
#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

mod accounting;
mod audit;
mod claims;
mod counters;
mod dirty_rows;
pub mod effect;
pub mod event;
mod explain;
mod invariants;
pub mod placement;
mod replay;
mod shard;
mod shard_config;
mod timer_wheel;
mod views;
mod workers;

pub use accounting::CapacityUsage;
pub use audit::AccountingAudit;
pub use claims::ClaimDisclosure;
pub use claims::timestamps::ClaimTimestamps;
pub use counters::{LifecycleCounters, ShardCounters};
pub use effect::{ClaimGrant, Effect, EndReason, EngineReply, WorkerConditions, WorkerSnapshot};
pub use event::{
    ClaimHandle, ClaimTarget, Event, GangAction, HeartbeatReport, PoolEligibility, ReportedClaim, ReservationFate,
    ReservationId,
};
pub use invariants::InvariantViolation;
pub use placement::constraints::{GpuFilter, NodeSet, PlacementConstraints, PlacementFailure};
pub use placement::eviction::{EvictionPolicy, TenantVictim, VictimNeed};
pub use placement::offers::{ReservedWorker, WorkerOffer};
pub use replay::{ReplayError, ResumePoint, ShardReplay};
pub use shard::Shard;
pub use shard_config::ShardConfig;
pub use views::{ListedClaim, ListingSlice, earlier};
pub use workers::schedulability::UnschedulableSummary;

/// Null ordinal: no worker, no claim, end of a list.
pub(crate) const NIL: u32 = u32::MAX;
