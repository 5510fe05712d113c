//! Shards as actors: executes what the engine decides.
//!
//! Requests arrive in a bounded mailbox. One thread at a time has the right to run the shard ([`schedule`]): it takes
//! the requests, decides them, hands the changed rows to the journal, and only then sends the replies. That thread is
//! the caller that pushed while the shard was not running, or else the shard's actor, which also owns its lifetime.
//! The handle ([`ShardHandle`]) is the only way in.

mod actor;
mod address;
/// Atomics used by [`schedule`]; its model brings its own.
mod atomic {
    pub(super) use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
}
pub mod capacity_board;
mod command;
mod counters;
mod event;
mod handle;
mod mailbox;
mod notice;
mod paused_shard;
mod pool_context;
mod reason_cells;
mod reply;
mod runner;
pub mod schedule;
mod services;
mod step_injection;
mod supervisor;

pub use address::{KeyTicket, PendingWrite, PendingWrites, ShardRef};
pub use command::{
    ClaimCall, Command, GangCall, HeldOperation, HeldVerb, InjectedStep, KeyReport, KeyReports, PreviewQuery,
    ReacquireCall, ReserveCall, ShardClaimFilter, ShardSet, SurveyQuery, TenantSurvey, UnstoredRejection, VictimSurvey,
};
pub use event::{
    FreedMatch, GrantKind, NotGranted, ReplyIndex, ReservationOutcome, RunOrigin, RunReplies, ShardEvent, ShardLife,
    ShardSink, UndecidedClaim, UndecidedOutcome, UndecidedRequests,
};
pub use handle::{PushRejection, RejectedCommand, ShardHandle};
pub use notice::OfferedWorkers;
pub use paused_shard::PausedShard;
pub use pool_context::{PoolContext, QueueState};
pub use reply::{
    AwaitedReply, ClaimAnswer, ClaimReply, ClaimSlice, CommandReply, CommittedMembers, Completion, CompletionQueue,
    CompletionToken, DeletedWorker, EndedWorkers, GangAnswer, GangInbox, GangNumber, GangReply, GangReport,
    GangRequestNumber, HeartbeatReply, MembersWaker, PreviewedPlacement, RegisteredWorker, ReplyAddress, ShardOutcome,
    ShardReport, SurveySlice, WorkerSlice,
};
pub use services::ShardServices;
#[cfg(all(feature = "internals", debug_assertions))]
pub use step_injection::{PointHook, RunnerChoice, choose_runners_of_thread, inject_into_thread};
pub use step_injection::{ProtocolPoint, ProtocolRule, PushChoice};
pub use supervisor::{FindShard, RestartShard, ServedShard, ShardSupervisor};

pub(crate) use actor::SpawnArgs;
pub(crate) use supervisor::start_shard;
