//! Log of operator changes: who requested what, and with which result. Every edge calls the facade, so the lines are
//! written here, once for all edges. Claims and releases are not operator changes and get no line; registrations of
//! workers get one at debug.
//!
//! A change whose caller leaves before the outcome is known gets a line too: it may have been made. In a series of
//! changes of one kind, [`ChangeBudget`] gives the first ones a line of their own and the others a count; at debug
//! each gets its line.

mod budget;
mod difference;

use parking_lot::{Mutex, MutexGuard};
use std::net::SocketAddr;

use self::budget::{ChangeBudget, ChangeGroup, ChangeLine};
pub(super) use self::difference::SpecDiff;
use super::Scheduler;
use crate::model::request_error::RequestError;
use crate::model::{Millis, PoolName, WorkerCommand, WorkerId};
use crate::scheduler::caller::CallerContext;

/// Target of the lines, for selection with `RUST_LOG`.
const TARGET: &str = "hotpool::change";

/// Kind of an operator change.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum ChangeKind {
    PutPool,
    DeletePool,
    ClearPool,
    PutQuota,
    DeleteQuota,
    CommandWorker(WorkerCommand),
    DeleteWorker,
    /// Registration of workers, which is logged at debug only.
    RegisterWorkers,
}

impl ChangeKind {
    const fn as_str(self) -> &'static str {
        match self {
            Self::PutPool => "put_pool",
            Self::DeletePool => "delete_pool",
            Self::ClearPool => "clear_pool",
            Self::PutQuota => "put_quota",
            Self::DeleteQuota => "delete_quota",
            Self::CommandWorker(WorkerCommand::Cordon) => "cordon_worker",
            Self::CommandWorker(WorkerCommand::Uncordon) => "uncordon_worker",
            Self::CommandWorker(WorkerCommand::Drain) => "drain_worker",
            Self::CommandWorker(WorkerCommand::Clear) => "clear_worker",
            Self::DeleteWorker => "delete_worker",
            Self::RegisterWorkers => "register_workers",
        }
    }
}

/// Result of an operator change.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, strum::IntoStaticStr)]
#[strum(serialize_all = "snake_case", const_into_str)]
pub(super) enum ChangeResult {
    Created,
    Replaced,
    /// Change without a difference, which is logged at debug only.
    Unchanged,
    Done,
    #[strum(serialize = "refused")]
    Rejected,
    /// The change was begun, and its outcome is unknown.
    Unknown,
}

/// Details of a change, logged in addition to kind and result.
#[derive(Debug, Default)]
pub(super) struct ChangeDetails {
    pub pool: Option<PoolName>,
    pub worker: Option<WorkerId>,
    /// Name of a quota: `namespace/tenant`, or `namespace`.
    pub quota: Option<String>,
    /// Whether a pool may be deleted with its workers.
    pub forced: Option<bool>,
    /// Number of workers that the change is about.
    pub workers: Option<u64>,
    /// Number of workers that were cleared.
    pub cleared: Option<u64>,
    /// Number of workers that stay suspect.
    pub suspect: Option<u64>,
    /// Number of claims that ended with their worker.
    pub claims_lost: Option<u64>,
    /// Settings that the change sets, and their old values.
    pub difference: Option<SpecDiff>,
    /// Reason why the change was rejected.
    pub error: Option<String>,
}

impl ChangeDetails {
    /// Details of a change of a pool.
    pub fn of_pool(pool: &PoolName) -> Self {
        Self { pool: Some(pool.clone()), ..Self::default() }
    }

    /// Details of a change of a worker.
    pub fn of_worker(pool: &PoolName, worker: &WorkerId) -> Self {
        Self { worker: Some(worker.clone()), ..Self::of_pool(pool) }
    }

    /// Details of a change of a quota.
    pub fn of_quota(name: &str) -> Self {
        Self { quota: Some(name.to_owned()), ..Self::default() }
    }
}

/// Change that was begun. If it is dropped early its outcome is unknown, and the line says so.
#[must_use]
pub(super) struct PendingChange<'s> {
    scheduler: &'s Scheduler,
    kind: ChangeKind,
    caller: Option<CallerContext>,
    details: ChangeDetails,
    is_logged: bool,
}

impl PendingChange<'_> {
    /// Details of the line, for additions.
    pub fn details(&mut self) -> &mut ChangeDetails {
        &mut self.details
    }

    /// Logs a change that was made.
    pub fn end(mut self, result: ChangeResult) {
        self.log(result);
    }

    /// Logs a change with the result `success`, or as rejected, and passes the outcome on.
    pub fn outcome<T>(mut self, success: ChangeResult, outcome: Result<T, RequestError>) -> Result<T, RequestError> {
        let result = match &outcome {
            Ok(_) => success,
            Err(RequestError::DeadlineExceeded) => ChangeResult::Unknown,
            Err(_) => ChangeResult::Rejected,
        };
        self.details.error = outcome.as_ref().err().map(|error| match error {
            RequestError::Invalid { field, message } => format!("{field}: {message}"),
            other => other.to_string(),
        });
        self.log(result);
        outcome
    }

    fn log(&mut self, result: ChangeResult) {
        self.is_logged = true;
        let now_ms = self.scheduler.dispatch().clock.engine_ms();
        self.scheduler.shared.changes.log(self.kind, result, self.caller.as_ref(), &self.details, now_ms);
    }
}

impl Drop for PendingChange<'_> {
    fn drop(&mut self) {
        if !self.is_logged {
            self.log(ChangeResult::Unknown);
        }
    }
}

impl Scheduler {
    /// Begins a change on behalf of the current task's caller.
    pub(super) fn change(&self, kind: ChangeKind, details: ChangeDetails) -> PendingChange<'_> {
        PendingChange { scheduler: self, kind, caller: CallerContext::current(), details, is_logged: false }
    }
}

/// Log of changes, with the counts that are not yet logged.
#[derive(Debug, Default)]
pub(super) struct ChangeLog {
    budget: Mutex<ChangeBudget>,
}

impl ChangeLog {
    fn log(
        &self,
        kind: ChangeKind,
        result: ChangeResult,
        caller: Option<&CallerContext>,
        details: &ChangeDetails,
        now_ms: Millis,
    ) {
        let is_quiet = result == ChangeResult::Unchanged || kind == ChangeKind::RegisterWorkers;
        let peer = caller.and_then(|caller| caller.peer);
        let line = match is_quiet {
            true => ChangeLine::Detail,
            false => {
                let group = ChangeGroup { kind, result, pool: details.pool.clone(), peer: peer.map(|peer| peer.ip()) };
                self.budget().on_change(group, now_ms)
            }
        };
        write_line(line, kind, result, caller, details);
    }

    /// Logs the counts that are due.
    pub(super) fn log_counted(&self, now_ms: Millis) {
        let due = self.budget().take_due(now_ms);
        for (ChangeGroup { kind, result, pool, peer }, more) in due {
            tracing::info!(
                target: TARGET,
                change = kind.as_str(),
                result = result.into_str(),
                more,
                pool = pool.as_ref().map(PoolName::as_str),
                peer = peer.map(|peer| peer.to_string()),
                "more changes of the same kind"
            );
        }
    }

    fn budget(&self) -> MutexGuard<'_, ChangeBudget> {
        self.budget.lock()
    }
}

/// Whether registrations are logged: they are frequent, and of interest to operators only when a controller fails.
pub(super) fn are_registrations_logged() -> bool {
    tracing::enabled!(target: TARGET, tracing::Level::DEBUG)
}

fn write_line(
    line: ChangeLine,
    kind: ChangeKind,
    result: ChangeResult,
    caller: Option<&CallerContext>,
    details: &ChangeDetails,
) {
    let ChangeDetails { pool, worker, quota, forced, workers, cleared, suspect, claims_lost, difference, error } =
        details;
    // Texts are logged as quoted values, so that their contents cannot break out of the line.
    macro_rules! line {
        ($write:ident) => {
            tracing::$write!(
                target: TARGET,
                change = kind.as_str(),
                result = result.into_str(),
                pool = pool.as_ref().map(PoolName::as_str),
                worker = worker.as_ref().map(WorkerId::as_str),
                quota = quota.as_deref(),
                forced,
                workers,
                cleared,
                suspect,
                claims_lost,
                settings = difference.as_ref().map(SpecDiff::settings),
                before = difference.as_ref().and_then(SpecDiff::before),
                error = error.as_deref(),
                source = caller.map(|caller| caller.source.as_str()),
                peer = caller.and_then(|caller| caller.peer).as_ref().map(SocketAddr::to_string),
                request_id = caller.and_then(|caller| caller.request_id.as_ref()).map(ToString::to_string),
                "{} {}",
                kind.as_str(),
                result.into_str()
            )
        };
    }
    match line {
        ChangeLine::Own => line!(info),
        ChangeLine::Detail => line!(debug),
    }
}
