//! The client commands of the `hotpool` program: they speak the HTTP API that `docs/API.md` describes, to a service that
//! runs elsewhere, and know nothing that it does not say. One, [`store`], reads the store itself.
//!
//! [`args`] reads words of the command line, [`client`] makes calls and turns what can come of one into an exit code,
//! [`output`] writes tables for people; one file a noun does the rest. `--output json` writes what the service
//! answered, unchanged, so scripts need one description for both ways in.

use std::process::ExitCode;

use clap::Subcommand;

pub mod args;
mod claims;
pub mod client;
mod demand;
mod explain;
mod output;
mod pools;
mod quotas;
mod status;
mod store;
mod watch;
mod workers;

use client::{ApiClient, CommandExit, CommandFailure, ItemList, ServiceResponse};
use output::OutputFormat;

/// What the client can do.
#[derive(Debug, Subcommand)]
pub enum ClientCommand {
    /// Pools: make, look at, remove
    Pools(pools::PoolsCommand),
    /// Workers of a pool: register, look at, take out of service
    Workers(workers::WorkersCommand),
    /// Claims: take a worker, keep it, give it back
    Claims(claims::ClaimsCommand),
    /// What a claim would get, and why; takes nothing
    Explain(Box<explain::ExplainCommand>),
    /// Quotas: how much tenants may hold, and their weights
    Quotas(quotas::QuotasCommand),
    /// What waits for a pool, how many workers would clear it, and which could go
    Demand(demand::DemandCommand),
    /// Whether the service is ready, and every pool with its counts; live with --watch
    Status(status::StatusCommand),
    /// The store behind a service: what it holds
    Store(store::StoreCommand),
}

/// Where the service is, and how to write what it says.
#[derive(Debug, clap::Args)]
struct ConnectionArgs {
    /// Where the service is: http://HOST:PORT or HOST:PORT
    #[arg(
        long, global = true, env = "HOTPOOL_ADDR", value_name = "URL", help_heading = "Common options",
        default_value_t = args::ServiceUrl::default()
    )]
    addr: args::ServiceUrl,
    /// How long to wait for one answer, in milliseconds
    #[arg(
        long, global = true, value_name = "MS", help_heading = "Common options", default_value_t = 15_000,
        value_parser = timeout_ms()
    )]
    timeout_ms: u64,
    /// A table for people, or what the service answered as JSON for scripts
    #[arg(
        long, short, global = true, value_enum, value_name = "table|json", help_heading = "Common options",
        default_value_t = OutputFormat::Table, hide_possible_values = true
    )]
    output: OutputFormat,
}

/// Options of [`Connection`] that stand before the command. They have the same ids, so a command finds what was said here
/// where nothing nearer to it was said.
#[derive(Debug, clap::Args)]
#[command(next_help_heading = "Options of commands, which may also stand behind them")]
pub struct LeadingOptions {
    /// Where the service is: http://HOST:PORT or HOST:PORT
    #[arg(long, value_name = "URL")]
    addr: Option<args::ServiceUrl>,
    /// How long to wait for one answer, in milliseconds
    #[arg(long, value_name = "MS", value_parser = timeout_ms())]
    timeout_ms: Option<u64>,
    /// A table for people, or what the service answered as JSON for scripts
    #[arg(long, short, value_enum, value_name = "table|json", hide_possible_values = true)]
    output: Option<OutputFormat>,
}

impl LeadingOptions {
    /// The first that was said though the command, or the service itself, has no use for it.
    #[must_use]
    pub const fn unused_option(&self, command: Option<&ClientCommand>) -> Option<&'static str> {
        match (self, command) {
            (_, Some(command)) if !matches!(command, ClientCommand::Store(_)) => None,
            (Self { addr: Some(_), .. }, _) => Some("--addr"),
            (Self { timeout_ms: Some(_), .. }, _) => Some("--timeout-ms"),
            (Self { output: Some(_), .. }, None) => Some("--output"),
            _ => None,
        }
    }
}

/// How long a command may be told to wait for an answer, in milliseconds.
fn timeout_ms() -> clap::builder::RangedU64ValueParser<u64> {
    clap::value_parser!(u64).range(1..=600_000)
}

/// What every command needs.
struct CommandContext {
    client: ApiClient,
    output: OutputFormat,
}

impl CommandContext {
    /// Shows an answer that says no more than "done".
    fn print_done(&self, answer: &ServiceResponse, text: &str) -> Result<(), CommandFailure> {
        match self.output {
            OutputFormat::Json => output::print(answer.json.get()),
            OutputFormat::Table => output::print(text),
        }
    }

    /// Says that a listing has more than its limit let through.
    fn warn_if_truncated(&self, all: &ItemList) {
        if all.next_page_token.is_some() {
            output::print_note(&format!("... and more: these are the first {}", all.items.len()));
        }
    }
}

/// Runs one command to its end, and says on stderr what went wrong.
#[must_use]
pub fn run(command: ClientCommand) -> ExitCode {
    let (output, connection) = match &command {
        ClientCommand::Pools(command) => (command.connection.output, Some(&command.connection)),
        ClientCommand::Workers(command) => (command.connection.output, Some(&command.connection)),
        ClientCommand::Claims(command) => (command.connection.output, Some(&command.connection)),
        ClientCommand::Explain(command) => (command.connection.output, Some(&command.connection)),
        ClientCommand::Quotas(command) => (command.connection.output, Some(&command.connection)),
        ClientCommand::Demand(command) => (command.connection.output, Some(&command.connection)),
        ClientCommand::Status(command) => (command.connection.output, Some(&command.connection)),
        ClientCommand::Store(command) => (command.output(), None),
    };
    let context = connection.map(|connection| CommandContext { client: ApiClient::new(connection), output });
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let done = runtime.map_err(CommandFailure::from_local).and_then(|runtime| {
        runtime.block_on(async {
            match (command, &context) {
                (ClientCommand::Pools(command), Some(context)) => command.run(context).await,
                (ClientCommand::Workers(command), Some(context)) => command.run(context).await,
                (ClientCommand::Claims(command), Some(context)) => command.run(context).await,
                (ClientCommand::Explain(command), Some(context)) => command.run(context).await,
                (ClientCommand::Quotas(command), Some(context)) => command.run(context).await,
                (ClientCommand::Demand(command), Some(context)) => command.run(context).await,
                (ClientCommand::Status(command), Some(context)) => command.run(context).await,
                (ClientCommand::Store(command), _) => command.run().await,
                (_, None) => unreachable!("a command that speaks to the service has a connection"),
            }
        })
    });
    done.unwrap_or_else(|failure| {
        output.print_failure(&failure);
        failure.exit
    })
    .into()
}

impl From<CommandExit> for ExitCode {
    fn from(exit: CommandExit) -> Self {
        Self::from(exit as u8)
    }
}
