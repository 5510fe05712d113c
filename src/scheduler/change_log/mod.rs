//! Log of what operators change: who asked, for what, and what became of it. Every edge goes through the facade, so the
//! lines are written here, once for all of them. Claims and releases are not an operator's changes and have no line;
//! registrations of workers have one at debug.
//!
//! A change whose caller leaves before its outcome is known has a line as well: it may have been made. Of many changes of one
//! kind that come in a row, [`ChangeBudget`] lets the first ones have a line of their own, and the rest a count; at debug each
//! has its line.

mod budget;
mod difference;

use parking_lot::{Mutex, MutexGuard};
use std::net::SocketAddr;

use self::budget::{ChangeBudget, ChangeGroup, ChangeLine};
pub(super) use self::difference::SpecDiff;
use super::Scheduler;
use crate::model::request_error::RequestError;
use crate::model::{Millis, PoolName, WorkerCommand, WorkerId};
use crate::scheduler::caller::{CallerContext, ChangeSource};

/// Target of the lines, by which `RUST_LOG` chooses them.
const TARGET: &str = "hotpool::change";

/// Kind of change.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum ChangeKind {
    PutPool,
    DeletePool,
    ClearPool,
    PutQuota,
    DeleteQuota,
    CommandWorker(WorkerCommand),
    DeleteWorker,
    /// Registration of workers, which has a line at debug only.
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

/// Outcome of a change.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum ChangeResult {
    Created,
    Replaced,
    /// Everything was so before, so the line is one at debug only.
    Unchanged,
    Done,
    Rejected,
    /// Begun, and with an outcome that is not known.
    Unknown,
}

impl ChangeResult {
    const fn as_str(self) -> &'static str {
        match self {
            Self::Created => "created",
            Self::Replaced => "replaced",
            Self::Unchanged => "unchanged",
            Self::Done => "done",
            Self::Rejected => "refused",
            Self::Unknown => "unknown",
        }
    }
}

/// Details of a change, which its line has beside kind and result.
#[derive(Debug, Default)]
pub(super) struct ChangeDetails {
    pub pool: Option<PoolName>,
    pub worker: Option<WorkerId>,
    /// Name of a quota: `namespace/tenant`, or `namespace`.
    pub quota: Option<String>,
    /// Whether a pool may be deleted with its workers.
    pub forced: Option<bool>,
    /// Workers that the change is about.
    pub workers: Option<u64>,
    /// Workers that are trusted since.
    pub cleared: Option<u64>,
    /// Workers that are not trusted yet.
    pub suspect: Option<u64>,
    /// Claims that ended with their worker.
    pub claims_lost: Option<u64>,
    /// Settings that the change sets, and what they were.
    pub difference: Option<SpecDiff>,
    /// Reason for which the change was refused.
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

/// A change that was begun. Dropped before its end, its outcome is not known, and the line says so.
#[must_use]
pub(super) struct PendingChange<'s> {
    scheduler: &'s Scheduler,
    kind: ChangeKind,
    caller: Option<CallerContext>,
    details: ChangeDetails,
    is_logged: bool,
}

impl PendingChange<'_> {
    /// Details of the line, to be added to.
    pub fn details(&mut self) -> &mut ChangeDetails {
        &mut self.details
    }

    /// Writes the line of a change that was made.
    pub fn end(mut self, result: ChangeResult) {
        self.log(result);
    }

    /// Writes the line of a change that was `made` or refused, and passes the outcome on.
    pub fn outcome<T>(mut self, made: ChangeResult, outcome: Result<T, RequestError>) -> Result<T, RequestError> {
        let result = match &outcome {
            Ok(_) => made,
            Err(RequestError::DeadlineExceeded) => ChangeResult::Unknown,
            Err(_) => ChangeResult::Rejected,
        };
        self.details.error = outcome.as_ref().err().map(|refusal| match refusal {
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
    /// Begins a change on behalf of the present task's caller.
    pub(super) fn change(&self, kind: ChangeKind, details: ChangeDetails) -> PendingChange<'_> {
        PendingChange { scheduler: self, kind, caller: CallerContext::current(), details, is_logged: false }
    }
}

/// Log of changes, with the counts that are still to be written.
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

    /// Writes the counts that are due.
    pub(super) fn log_counted(&self, now_ms: Millis) {
        let due = self.budget().take_due(now_ms);
        for (ChangeGroup { kind, result, pool, peer }, more) in due {
            tracing::info!(
                target: TARGET,
                change = kind.as_str(),
                result = result.as_str(),
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

/// Whether registrations have lines: they are frequent, and an operator's only where a controller fails.
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
    // Texts are written as such, not as they would be displayed: so whatever stands in them, they stay inside of their line.
    macro_rules! line {
        ($write:ident) => {
            tracing::$write!(
                target: TARGET,
                change = kind.as_str(),
                result = result.as_str(),
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
                source = caller.map(|caller| caller.source).map(ChangeSource::as_str),
                peer = caller.and_then(|caller| caller.peer).as_ref().map(SocketAddr::to_string),
                request_id = caller.and_then(|caller| caller.request_id.as_ref()).map(ToString::to_string),
                "{} {}",
                kind.as_str(),
                result.as_str()
            )
        };
    }
    match line {
        ChangeLine::Own => line!(info),
        ChangeLine::Detail => line!(debug),
    }
}
