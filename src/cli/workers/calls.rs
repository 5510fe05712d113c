//! Calls about workers one by one: those that are named, or those whose labels fit.

use std::collections::BTreeMap;

use futures::stream::{FuturesOrdered, StreamExt as _};
use hyper::Method;
use serde::Deserialize;
use serde_json::value::RawValue;

use super::{Chosen, Ids};
use crate::cli::Context;
use crate::cli::args::with_stdin;
use crate::cli::client::{Exit, Failure, Items};
use crate::cli::output::{Format, note, print, print_json};
use crate::cli::pools::path;
use crate::limits::PAGE_ITEMS_MAX;
use crate::model::PoolName;

/// Calls about single workers that are under way at a time.
const CALLS: usize = 16;

/// Extent to which a series of calls was made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Progress {
    /// Every call was made, whatever its outcome.
    Finished,
    /// The service was away or not ready, so no further call was begun.
    Stopped,
}

/// Calls of one kind, each about one worker.
struct Calls<'a> {
    context: &'a Context,
    pool: &'a PoolName,
    method: Method,
    verb: &'a str,
    /// Word for a worker whose call went well, as in `cordoned`.
    done: &'a str,
    exit: Exit,
    failed: usize,
    /// Workers that were never tried, because a call before them found the service away or not ready.
    left: usize,
    items: Vec<Box<RawValue>>,
}

impl<'a> Calls<'a> {
    fn new(context: &'a Context, pool: &'a PoolName, method: Method, verb: &'a str, done: &'a str) -> Self {
        Self { context, pool, method, verb, done, exit: Exit::Ok, failed: 0, left: 0, items: Vec::new() }
    }

    /// Makes the calls, several at a time, and shows their outcomes in order; one that is refused harms no other. When the
    /// service is away or not ready no further calls begin, for they would only say the same. Those that are under way are
    /// waited for, so that each worker either has its outcome or was left as it was.
    async fn make(&mut self, ids: Vec<String>) -> Result<Progress, Failure> {
        let Self { context, pool, verb, .. } = *self;
        let method = self.method.clone();
        let call = |id: String| {
            let (method, target) = (method.clone(), format!("{}/workers/{id}{verb}", path(pool)));
            async move { (id, context.client.call(method, &target, None).await) }
        };
        let mut ids = ids.into_iter();
        let mut calls: FuturesOrdered<_> = ids.by_ref().take(CALLS).map(&call).collect();
        let mut progress = Progress::Finished;
        while let Some((id, outcome)) = calls.next().await {
            match (outcome, context.output) {
                (Ok(answer), Format::Json) => self.items.push(answer.json),
                (Ok(_), Format::Table) => print(&format!("{pool} {id} {}", self.done))?,
                (Err(failure), _) => {
                    self.failed += 1;
                    let failure = failure.about(&id);
                    self.complain(&failure);
                    self.items.push(serde_json::value::to_raw_value(&failure).expect("a failure is plain data"));
                    if failure.exit == Exit::Error {
                        progress = Progress::Stopped;
                    }
                }
            }
            if progress == Progress::Finished {
                calls.extend(ids.next().map(&call));
            }
        }
        self.left += ids.len();
        Ok(progress)
    }

    /// Says what went wrong, and ends the command with the highest of the exit codes.
    fn complain(&mut self, failure: &Failure) {
        self.exit = self.exit.max(failure.exit);
        self.context.output.complain(failure);
    }

    /// Writes the items of JSON, and gives the exit code of the command.
    fn end(self) -> Result<Exit, Failure> {
        if self.context.output == Format::Json {
            print_json(&Items { items: self.items, next_page_token: None })?;
        }
        Ok(self.exit)
    }
}

impl Ids {
    pub(super) async fn each(self, context: &Context, method: Method, verb: &str, done: &str) -> Result<Exit, Failure> {
        let mut calls = Calls::new(context, &self.pool, method, verb, done);
        calls.make(with_stdin(&self.ids)?).await?;
        if calls.left > 0 && context.output == Format::Table {
            note(&format!("workers left as they are: {}", calls.left));
        }
        calls.end()
    }
}

impl Chosen {
    pub(super) async fn steer(self, context: &Context, verb: &str, done: &str) -> Result<Exit, Failure> {
        let Self { pool, ids, selector, dry_run } = self;
        let Some(selector) = selector else { return Ids { pool, ids }.each(context, Method::POST, verb, done).await };
        let mut calls = Calls::new(context, &pool, Method::POST, verb, done);
        let (mut fit, mut all, mut page_token) = (0, 0, None);
        let target = format!("{}/workers", path(&pool));
        loop {
            // A page at a time: the service never holds a list of the whole pool, and this process only what it writes
            // as JSON.
            let listed = async {
                let page = context.client.page(&target, &[], PAGE_ITEMS_MAX, page_token.as_deref()).await?;
                let workers = context.client.read_items::<Labelled>(&page)?;
                Ok((page, workers))
            };
            let (page, workers) = match listed.await {
                Err(failure) if page_token.is_some() => {
                    calls.complain(&failure);
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
                    (true, Format::Json) => calls.items.push(raw.clone()),
                    (true, Format::Table) => print(&format!("{pool} {} would be {done}", worker.id))?,
                }
            }
            let progress = calls.make(ids).await?;
            page_token = page.next_page_token;
            if progress == Progress::Stopped || page_token.is_none() {
                break;
            }
        }
        if context.output == Format::Table {
            let first = if page_token.is_some() { "the first " } else { "" };
            let failed = if calls.failed > 0 { format!(", {} failed", calls.failed) } else { String::new() };
            let is_whole = calls.left == 0 && page_token.is_none();
            let rest = if is_whole { "" } else { ", and the rest was left as it is" };
            print(&format!("{fit} of {first}{all} workers fit{failed}{rest}"))?;
        }
        calls.end()
    }
}

/// Fields of a worker that a selector reads.
#[derive(Deserialize)]
struct Labelled {
    id: String,
    #[serde(default)]
    labels: BTreeMap<String, String>,
}
