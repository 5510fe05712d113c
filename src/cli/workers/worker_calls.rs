//! Calls about workers one by one: those that are named, or those whose labels fit.

use std::collections::BTreeMap;

use futures::stream::{FuturesOrdered, StreamExt as _};
use hyper::Method;
use serde::Deserialize;
use serde_json::value::RawValue;

use super::{WorkerIdArgs, WorkerSelectionArgs};
use crate::cli::CommandContext;
use crate::cli::args::expand_stdin;
use crate::cli::client::{CommandExit, CommandFailure, ItemList};
use crate::cli::output::{OutputFormat, print, print_json, print_note};
use crate::cli::pools::path;
use crate::limits::PAGE_ITEMS_MAX;
use crate::model::PoolName;

/// Calls about single workers that are under way at a time.
const CONCURRENT_CALLS_MAX: usize = 16;

/// Extent to which a series of calls was made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum CallProgress {
    /// Every call was made, whatever its outcome.
    Finished,
    /// The service was away or not ready, so no further call was begun.
    Stopped,
}

/// Calls of one kind, each about one worker.
struct WorkerCalls<'a> {
    context: &'a CommandContext,
    pool: &'a PoolName,
    method: Method,
    verb: &'a str,
    /// Word for a worker whose call went well, as in `cordoned`.
    done: &'a str,
    exit: CommandExit,
    failed: usize,
    /// Workers that were never tried, because a call before them found the service away or not ready.
    skipped: usize,
    items: Vec<Box<RawValue>>,
}

impl<'a> WorkerCalls<'a> {
    fn new(context: &'a CommandContext, pool: &'a PoolName, method: Method, verb: &'a str, done: &'a str) -> Self {
        Self { context, pool, method, verb, done, exit: CommandExit::Ok, failed: 0, skipped: 0, items: Vec::new() }
    }

    /// Makes the calls, several at a time, and shows their outcomes in order; one that is refused harms no other. When the
    /// service is away or not ready no further calls begin, for they would only say the same. Those that are under way are
    /// waited for, so that each worker either has its outcome or was left as it was.
    async fn run_all(&mut self, ids: Vec<String>) -> Result<CallProgress, CommandFailure> {
        let Self { context, pool, verb, .. } = *self;
        let method = self.method.clone();
        let call = |id: String| {
            let (method, target) = (method.clone(), format!("{}/workers/{id}{verb}", path(pool)));
            async move { (id, context.client.call(method, &target, None).await) }
        };
        let mut ids = ids.into_iter();
        let mut calls: FuturesOrdered<_> = ids.by_ref().take(CONCURRENT_CALLS_MAX).map(&call).collect();
        let mut progress = CallProgress::Finished;
        while let Some((id, outcome)) = calls.next().await {
            match (outcome, context.output) {
                (Ok(answer), OutputFormat::Json) => self.items.push(answer.json),
                (Ok(_), OutputFormat::Table) => print(&format!("{pool} {id} {}", self.done))?,
                (Err(failure), _) => {
                    self.failed += 1;
                    let failure = failure.with_id(&id);
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

    /// Says what went wrong, and ends the command with the highest of the exit codes.
    fn report_failure(&mut self, failure: &CommandFailure) {
        self.exit = self.exit.max(failure.exit);
        self.context.output.print_failure(failure);
    }

    /// Writes the items of JSON, and gives the exit code of the command.
    fn finish(self) -> Result<CommandExit, CommandFailure> {
        if self.context.output == OutputFormat::Json {
            print_json(&ItemList { items: self.items, next_page_token: None })?;
        }
        Ok(self.exit)
    }
}

impl WorkerIdArgs {
    pub(super) async fn call_each(
        self,
        context: &CommandContext,
        method: Method,
        verb: &str,
        done: &str,
    ) -> Result<CommandExit, CommandFailure> {
        let mut calls = WorkerCalls::new(context, &self.pool, method, verb, done);
        calls.run_all(expand_stdin(&self.ids)?).await?;
        if calls.skipped > 0 && context.output == OutputFormat::Table {
            print_note(&format!("workers left as they are: {}", calls.skipped));
        }
        calls.finish()
    }
}

impl WorkerSelectionArgs {
    pub(super) async fn call_selected(
        self,
        context: &CommandContext,
        verb: &str,
        done: &str,
    ) -> Result<CommandExit, CommandFailure> {
        let Self { pool, ids, selector, dry_run } = self;
        let Some(selector) = selector else {
            return WorkerIdArgs { pool, ids }.call_each(context, Method::POST, verb, done).await;
        };
        let mut calls = WorkerCalls::new(context, &pool, Method::POST, verb, done);
        let (mut fit, mut all, mut page_token) = (0, 0, None);
        let target = format!("{}/workers", path(&pool));
        loop {
            // A page at a time: the service never holds a list of the whole pool, and this process only what it writes
            // as JSON.
            let listed = async {
                let page = context.client.page(&target, &[], PAGE_ITEMS_MAX, page_token.as_deref()).await?;
                let workers = context.client.read_items::<LabeledWorker>(&page)?;
                Ok((page, workers))
            };
            let (page, workers) = match listed.await {
                Err(failure) if page_token.is_some() => {
                    calls.report_failure(&failure);
                    break;
                }
                listed => listed?,
            };
            let mut ids = Vec::new();
            for (raw, worker) in page.items.iter().zip(workers) {
                all += 1;
                if !selector.matches(&worker.labels) {
                    continue;
                }
                fit += 1;
                match (dry_run, context.output) {
                    (false, _) => ids.push(worker.id),
                    (true, OutputFormat::Json) => calls.items.push(raw.clone()),
                    (true, OutputFormat::Table) => print(&format!("{pool} {} would be {done}", worker.id))?,
                }
            }
            let progress = calls.run_all(ids).await?;
            page_token = page.next_page_token;
            if progress == CallProgress::Stopped || page_token.is_none() {
                break;
            }
        }
        if context.output == OutputFormat::Table {
            let first = if page_token.is_some() { "the first " } else { "" };
            let failed = if calls.failed > 0 { format!(", {} failed", calls.failed) } else { String::new() };
            let is_whole = calls.skipped == 0 && page_token.is_none();
            let rest = if is_whole { "" } else { ", and the rest was left as it is" };
            print(&format!("{fit} of {first}{all} workers fit{failed}{rest}"))?;
        }
        calls.finish()
    }
}

/// Fields of a worker that a selector reads.
#[derive(Deserialize)]
struct LabeledWorker {
    id: String,
    #[serde(default)]
    labels: BTreeMap<String, String>,
}
