//! Shards as actors: `shard/` executes what the engine decides.
//!
//! Requests come through a bounded mailbox; who runs when is in [`ring`]: one at a time has the right to run the shard: it takes what is there,
//! decides it all, hands the changed rows to the journal, and only then lets answers leave. That is whoever pushed
//! while nobody ran it, or else the shard's actor, which also owns its life. The handle ([`ShardHandle`]) is the only way
//! in.

mod actor;
mod command;
mod handle;
mod mailbox;
mod notice;
mod reason_cells;
mod reply;
/// What [`ring`] is made of; its model brings its own.
mod atomic {
    pub(super) use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
}
mod counters;
mod paused_shard;
mod runner;
pub mod schedule;
mod supervisor;

pub use command::{ClaimOp, ClaimSieve, Command, ExplainQuery, GangItem, InjectedStep, PendingClaim, ShardSet};
pub use handle::{PushRejection, ShardHandle};
pub use paused_shard::PausedShard;
pub use reply::{
    BatchAnswers, ClaimAnswer, CompletionQueue, ReplyBatch, ReplyPayload, ReplySender, ShardOutcome, ShardReport,
};
pub use supervisor::{RestartShard, ShardSupervisor};

pub(crate) use supervisor::start_shard;
