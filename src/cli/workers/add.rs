//! `hotpool workers add`: registrations in as many requests as they need.

use clap::Args;

use crate::cli::CommandContext;
use crate::cli::args::{self, CapacityArgs, LabelArgs, PoolNameArg, expand_stdin};
use crate::cli::failure::{CommandExit, CommandFailure};
use crate::cli::output::{OutputFormat, print, print_json, print_note};
use crate::client::{ItemList, ItemOutcome, NewWorker, RawJson, WorkerReply};
use crate::model::WorkerId;

/// Registrations in one request; a request also ends at [`BATCH_BYTES`].
const BATCH_ITEMS: usize = 1_000;
/// Registrations in one request, in bytes: below the smallest body limit that services usually have.
const BATCH_BYTES: usize = 1 << 20;
/// Largest number of ids that one command generates.
const COUNT_MAX: i64 = 1_000_000;
/// Failed registrations that a table reports one by one; the others are counted. JSON has all of them.
const FAILURES_SHOWN_MAX: usize = 20;

#[derive(Debug, Args)]
pub(super) struct AddWorkersArgs {
    #[command(flatten)]
    name: PoolNameArg,
    /// Ids of the workers; `-` reads ids from stdin
    #[arg(required_unless_present = "count", value_name = "ID", value_parser = args::parse_name)]
    ids: Vec<String>,
    /// Generate this many ids: the prefix and a number
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=COUNT_MAX))]
    count: Option<u32>,
    /// Prefix of generated ids
    #[arg(long, requires = "count", default_value = "w-", value_parser = args::parse_name)]
    prefix: String,
    /// Number of the first generated id
    #[arg(long, requires = "count", value_name = "N", default_value_t = 0)]
    from: u32,
    #[command(flatten)]
    capacity: CapacityArgs,
    #[command(flatten)]
    labels: LabelArgs,
    /// Node that the workers run on
    #[arg(long, value_name = "NODE")]
    node: Option<String>,
    /// Incarnation, which grows when a worker restarts; a higher one ends the claims of the lower
    #[arg(long, value_name = "N")]
    incarnation: Option<u64>,
    /// Unix time at which the workers end, in milliseconds
    #[arg(long, value_name = "UNIX_MS")]
    expires_at_ms: Option<u64>,
}

/// Outcomes of the registrations so far.
#[derive(Default)]
struct RegistrationTally {
    items: Vec<RawJson<ItemOutcome<WorkerReply>>>,
    created: usize,
    updated: usize,
    failures: Vec<CommandFailure>,
}

impl AddWorkersArgs {
    pub(super) async fn run(self, context: &CommandContext) -> Result<CommandExit, CommandFailure> {
        self.labels.check()?;
        let mut ids = expand_stdin(&self.ids)?;
        for number in (self.from..).take(self.count.unwrap_or_default() as usize) {
            let id = WorkerId::new(&format!("{}{number}", self.prefix));
            ids.push(id.map_err(|error| CommandFailure::usage("--prefix", error.to_string()))?);
        }
        if ids.is_empty() {
            return Err(CommandFailure::usage("ID", "no ids on stdin"));
        }
        let pool = self.name.pool;
        let worker = NewWorker {
            capacity: self.capacity.into(),
            labels: self.labels.into(),
            node: self.node,
            incarnation: self.incarnation.unwrap_or_default(),
            expires_at_ms: self.expires_at_ms,
            claims: None,
        };
        let worker_bytes = serde_json::to_string(&worker).expect("a registration is plain data").len();
        let mut tally = RegistrationTally::default();
        let mut pending = ids.as_slice();
        while !pending.is_empty() {
            let (batch, later) = pending.split_at(batch_len(pending, worker_bytes));
            let sent = context.client.register_workers(&pool, batch.iter().map(|id| (id, &worker))).await;
            // Earlier registrations stay, so they are reported. The command may be repeated.
            let sent = sent.inspect_err(|_| {
                let registered = tally.created + tally.updated;
                if registered > 0 {
                    print_note(&format!("{registered} of {} workers were registered before this:", ids.len()));
                }
            })?;
            tally.add(context, batch, sent.into_value())?;
            pending = later;
        }
        let RegistrationTally { items, created, updated, failures } = tally;
        match context.output {
            OutputFormat::Json => print_json(&ItemList { items, next_page_token: None })?,
            OutputFormat::Table => {
                if failures.len() > FAILURES_SHOWN_MAX {
                    print_note(&format!("... and {} more failed", failures.len() - FAILURES_SHOWN_MAX));
                }
                print(&format!("{pool}: {created} new, {updated} updated"))?;
            }
        }
        Ok(failures.iter().map(|failure| failure.exit).max().unwrap_or(CommandExit::Ok))
    }
}

impl RegistrationTally {
    /// Adds the outcomes of a batch and reports its failures.
    fn add(
        &mut self,
        context: &CommandContext,
        ids: &[WorkerId],
        outcomes: ItemList<ItemOutcome<WorkerReply>>,
    ) -> Result<(), CommandFailure> {
        if outcomes.items.len() != ids.len() {
            let (got, sent) = (outcomes.items.len(), ids.len());
            return Err(CommandFailure::unexpected_answer(&format!("the service answered {got} of {sent} items")));
        }
        for (id, item) in ids.iter().zip(&outcomes.items) {
            match &**item {
                ItemOutcome::Done(reply) if reply.created => self.created += 1,
                ItemOutcome::Done(_) => self.updated += 1,
                ItemOutcome::Failed { error } => {
                    let failure = CommandFailure::from(error.clone()).with_id(id.as_str());
                    if self.failures.len() < FAILURES_SHOWN_MAX {
                        context.output.print_failure(&failure);
                    }
                    self.failures.push(failure);
                }
            }
        }
        self.items.extend(outcomes.items);
        Ok(())
    }
}

/// Returns how many registrations fit into one request: at least one.
fn batch_len(ids: &[WorkerId], worker_bytes: usize) -> usize {
    let mut bytes = 0;
    let fits = |id: &&WorkerId| {
        bytes += id.as_str().len() + worker_bytes + 16;
        bytes <= BATCH_BYTES
    };
    ids.iter().take(BATCH_ITEMS).take_while(fits).count().max(1)
}
