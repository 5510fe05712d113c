//! Calls about single workers, which are named by id or selected by label.

use futures::stream::{FuturesOrdered, StreamExt as _};
use serde::Serialize;
use serde_json::value::RawValue;

use super::{WorkerIdArgs, WorkerSelectionArgs};
use crate::cli::CommandContext;
use crate::cli::args::{PoolNameArg, expand_stdin};
use crate::cli::failure::{CommandExit, CommandFailure};
use crate::cli::output::{OutputFormat, print, print_json, print_note};
use crate::client::ClientError;
use crate::model::label_selector::LabelSelector;
use crate::model::{PoolName, WorkerCommand, WorkerId};

/// Largest number of concurrent calls about single workers.
const CONCURRENT_CALLS_MAX: usize = 16;

/// Action on one worker.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum WorkerAction {
    Cordon,
    Uncordon,
    Drain,
    Clear,
    Delete,
}

impl WorkerAction {
    /// Past participle of the action, for messages.
    const fn done(self) -> &'static str {
        match self {
            Self::Cordon => "cordoned",
            Self::Uncordon => "uncordoned",
            Self::Drain => "draining",
            Self::Clear => "cleared",
            Self::Delete => "removed",
        }
    }

    /// Makes the call and returns the answer as JSON.
    async fn call(
        self,
        context: &CommandContext,
        pool: &PoolName,
        id: &WorkerId,
    ) -> Result<Box<RawValue>, ClientError> {
        let client = &context.client;
        let command = match self {
            Self::Cordon => WorkerCommand::Cordon,
            Self::Uncordon => WorkerCommand::Uncordon,
            Self::Drain => WorkerCommand::Drain,
            Self::Clear => WorkerCommand::Clear,
            Self::Delete => return Ok(client.delete_worker(pool, id).await?.into_json()),
        };
        Ok(client.command_worker(pool, id, command).await?.into_json())
    }
}

/// Extent to which a series of calls was made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum CallProgress {
    /// Every call was made, whatever its outcome.
    Finished,
    /// No further call began, because the service was unreachable or not ready.
    Stopped,
}

/// Calls with the same action, each about one worker.
struct WorkerCalls<'a> {
    context: &'a CommandContext,
    pool: &'a PoolName,
    action: WorkerAction,
    exit: CommandExit,
    failed: usize,
    /// Number of workers without a call, because an earlier call found the service unreachable or not ready.
    skipped: usize,
    /// Answers and failures for JSON.
    items: Vec<Box<RawValue>>,
    /// Whether workers are only listed.
    dry_run: bool,
}

/// Outcomes of all calls, as a batch of the service has them.
#[derive(Serialize)]
struct CallOutcomes<'a> {
    items: &'a [Box<RawValue>],
}

/// Result of reading a pool page by page and calling about the workers that match.
struct SelectionSummary {
    matched: usize,
    read: usize,
    has_unread: bool,
}

impl<'a> WorkerCalls<'a> {
    const fn new(context: &'a CommandContext, pool: &'a PoolName, action: WorkerAction) -> Self {
        Self { context, pool, action, exit: CommandExit::Ok, failed: 0, skipped: 0, items: Vec::new(), dry_run: false }
    }

    /// Makes the calls, several at a time, and prints their outcomes in order. A failed call does not affect the others,
    /// unless the service is unreachable or not ready: then no further calls begin, because they would fail alike, and
    /// those under way are completed, so that every worker has an outcome or is unchanged.
    async fn run_all(&mut self, ids: Vec<WorkerId>) -> Result<CallProgress, CommandFailure> {
        let Self { context, pool, action, .. } = *self;
        let call = |id: WorkerId| async move {
            let outcome = action.call(context, pool, &id).await;
            (id, outcome)
        };
        let mut ids = ids.into_iter();
        let mut calls: FuturesOrdered<_> = ids.by_ref().take(CONCURRENT_CALLS_MAX).map(&call).collect();
        let mut progress = CallProgress::Finished;
        while let Some((id, outcome)) = calls.next().await {
            match (outcome, context.output) {
                (Ok(json), OutputFormat::Json) => self.items.push(json),
                (Ok(_), OutputFormat::Table) => print(&format!("{pool} {id} {}", action.done()))?,
                (Err(error), _) => {
                    self.failed += 1;
                    let failure = CommandFailure::from(error).with_id(id.as_str());
                    self.report_failure(&failure);
                    self.items.push(serde_json::value::to_raw_value(&failure).expect("a failure is plain data"));
                    if failure.exit == CommandExit::Error {
                        progress = CallProgress::Stopped;
                    }
                }
            }
            if progress == CallProgress::Finished {
                calls.extend(ids.next().map(&call));
            }
        }
        self.skipped += ids.len();
        Ok(progress)
    }

    /// Reads the pool page by page and calls about the workers that match; in a dry run, prints them instead. Neither the
    /// service nor this process holds a list of the whole pool.
    async fn run_selected(&mut self, selector: &LabelSelector) -> Result<SelectionSummary, CommandFailure> {
        let (mut matched, mut read, mut page_token) = (0, 0, None::<String>);
        loop {
            let page = match self.context.client.list_worker_page(self.pool, page_token.as_deref()).await {
                Err(error) if page_token.is_some() => {
                    self.report_failure(&error.into());
                    break;
                }
                page => page?,
            };
            read += page.items.len();
            let mut ids = Vec::new();
            for worker in page.items.iter().filter(|worker| selector.matches(&worker.labels)) {
                matched += 1;
                match (self.dry_run, self.context.output) {
                    (false, _) => ids.push(WorkerId::new(&worker.id).map_err(CommandFailure::from_local)?),
                    (true, OutputFormat::Json) => self.items.push(worker.clone().into_json()),
                    (true, OutputFormat::Table) => {
                        print(&format!("{} {} would be {}", self.pool, worker.id, self.action.done()))?;
                    }
                }
            }
            let progress = self.run_all(ids).await?;
            page_token = page.next_page_token;
            if progress == CallProgress::Stopped || page_token.is_none() {
                break;
            }
        }
        Ok(SelectionSummary { matched, read, has_unread: page_token.is_some() })
    }

    fn report_failure(&mut self, failure: &CommandFailure) {
        self.exit = self.exit.max(failure.exit);
        self.context.output.print_failure(failure);
    }

    /// Prints the items as JSON and returns the highest exit code.
    fn finish(self) -> Result<CommandExit, CommandFailure> {
        if self.context.output == OutputFormat::Json {
            print_json(&CallOutcomes { items: &self.items })?;
        }
        Ok(self.exit)
    }
}

impl WorkerIdArgs {
    pub(super) async fn call(
        self,
        context: &CommandContext,
        action: WorkerAction,
    ) -> Result<CommandExit, CommandFailure> {
        let mut calls = WorkerCalls::new(context, &self.name.pool, action);
        calls.run_all(expand_stdin(&self.ids)?).await?;
        if calls.skipped > 0 && context.output == OutputFormat::Table {
            print_note(&format!("workers left unchanged: {}", calls.skipped));
        }
        calls.finish()
    }
}

impl WorkerSelectionArgs {
    pub(super) async fn call(
        self,
        context: &CommandContext,
        action: WorkerAction,
    ) -> Result<CommandExit, CommandFailure> {
        let Self { name, ids, selector, dry_run } = self;
        let Some(selector) = selector else {
            return WorkerIdArgs { name, ids }.call(context, action).await;
        };
        let PoolNameArg { pool } = name;
        let mut calls = WorkerCalls { dry_run, ..WorkerCalls::new(context, &pool, action) };
        let SelectionSummary { matched, read, has_unread } = calls.run_selected(&selector).await?;
        if context.output == OutputFormat::Table {
            let first = if has_unread { "the first " } else { "" };
            let failed = if calls.failed > 0 { format!(", {} failed", calls.failed) } else { String::new() };
            let skipped = match calls.skipped {
                0 => String::new(),
                skipped => format!("; {skipped} matching workers were not tried"),
            };
            let unread = if has_unread { "; the remaining workers of the pool were not read" } else { "" };
            print(&format!("{matched} of {first}{read} workers match{failed}{skipped}{unread}"))?;
        }
        calls.finish()
    }
}
