//! The engine decides. One [`Shard`] is the only writer of its workers: their idle queue, their ledger, their
//! claims. `Shard::on(event, now_ms, &mut effects)` changes the state and says what must be done about it; whoever
//! owns the shard does it, in order, and nowhere else.
//!
//! Purity contract: no clock, no I/O, no randomness, no locks, no task. Time is a number that is handed in
//! (monotonic milliseconds), a fence is handed in, and "random" is a hash of that fence. So the same engine runs in
//! the service, in tests against an oracle, and in somebody else's program, and a run can be repeated exactly. The
//! lints below hold it to that (`.clippy.toml` says what is banned and why).
//!
//! | file | question it answers |
//! |---|---|
//! | [`event`] | what can happen to a shard |
//! | [`effect`] | what must be done about it |
//! | `shard` | where each event goes; which worker a claim takes |
//! | `claim_life` | what becomes of a claim that is held, and how it ends |
//! | `roster` | which workers come and go |
//! | `rules` | what the specification of the pool sets, and what changes with it |
//! | `counters` | counts of what the shard did |
//! | `rows` | what the journal takes |
//! | `looks` | what is shown |
//! | `workers` | which workers are there, and in which state |
//! | `life` | may a worker be offered; what befalls it beside its claims |
//! | `heartbeat` | what a worker says of itself |
//! | `claims` | which claims are held |
//! | `stamps` | when a claim was created and became active |
//! | `idle` | which worker is taken next; which is warm for an affinity |
//! | `expiries` | which worker of an order lives for long enough |
//! | `shapes` | which worker is taken by a claim that asks for certain ones |
//! | `shares` | in a shared pool: which worker a claim takes a share of, and what is left of it |
//! | `resize` | a claim that needs more or less of its worker than before |
//! | [`fit`] | which worker has room for a share, and which of those gives it |
//! | `gangs` | claims that are all granted or none, over shards |
//! | `promises` | workers that are kept for claims that wait, and who is evicted for them |
//! | `profiles` | which workers have the same labels and node |
//! | [`wants`] | what it asks of a worker |
//! | `explain` | what a claim would find, and of the other workers why not |
//! | `timers` | which deadline has passed |
//! | `ledger` | how much there is and how much of it is held |
//! | `replay` | how rows become a shard again |
//! | `invariants` | what must be true between two events |
//! | `audit` | whether it is, while the shard is in use |
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
pub use claims::timestamps::ClaimTimestamps;
pub use counters::{LifecycleCounters, ShardCounters};
pub use effect::{ClaimGrant, Effect, EndReason, EngineReply, WorkerConditions, WorkerSnapshot};
pub use event::{ClaimHandle, Event, GangAction, HeartbeatReport, ReportedClaim};
pub use placement::constraints::{GpuFilter, NodeSet, PlacementConstraints, PlacementFailure};
pub use placement::reservations::EvictionPolicy;
pub use replay::{ResumePoint, ShardReplay};
pub use shard::Shard;
pub use shard_config::ShardConfig;
pub use views::{ListedClaim, ListingSlice};
pub use workers::conditions::UnschedulableSummary;

/// No worker, no claim, end of a list.
pub(crate) const NIL: u32 = u32::MAX;
