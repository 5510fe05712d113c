//! Shards as actors: executes what the engine decides.
//!
//! Requests arrive in a bounded mailbox. One thread at a time has the right to run the shard ([`schedule`]): it takes
//! the requests, decides them, hands the changed rows to the journal, and only then sends the replies. That thread is
//! the caller that pushed while the shard was not running, or else the shard's actor, which also owns its lifetime.
//! The handle ([`ShardHandle`]) is the only way in.

mod actor;
mod address;
pub mod capacity_board;
mod command;
mod handle;
mod mailbox;
mod notice;
mod reason_cells;
mod reply;
/// Atomics used by [`schedule`]; its model brings its own.
mod atomic {
    pub(super) use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
}
mod counters;
mod paused_shard;
mod runner;
pub mod schedule;
mod supervisor;

pub use address::{KeyTicket, PendingWrite, PendingWrites, ShardRef};
pub use command::{ClaimOp, Command, ExplainQuery, GangItem, InjectedStep, PendingClaim, ShardClaimFilter, ShardSet};
pub use handle::{PushRejection, ShardHandle};
pub use paused_shard::PausedShard;
pub use reply::{
    BatchAnswers, ClaimAnswer, CompletionQueue, ReplyBatch, ReplyPayload, ReplySender, ShardOutcome, ShardReport,
};
pub use supervisor::{RestartShard, ShardSupervisor};

pub(crate) use supervisor::start_shard;
