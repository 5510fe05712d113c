//! Client commands of the `hotpool` program. They call a running service through [`crate::client`] and know nothing that
//! `docs/API.md` does not say. One of them, [`store`], reads the store itself.
//!
//! [`args`] parses values of the command line, [`failure`] maps failures to exit codes, [`output`] formats tables; there
//! is one file for each noun. `--output json` prints what the service answered, unchanged, so one description serves
//! scripts of both interfaces.
#![allow(clippy::disallowed_methods, reason = "what waits for sockets uses the timers and tasks of the runtime")]

use std::process::ExitCode;
use std::time::Duration;

use clap::Subcommand;

pub mod args;
mod claims;
mod demand;
mod explain;
pub mod failure;
mod output;
mod pools;
mod quotas;
mod status;
mod store;
mod watch;
mod workers;

use failure::{CommandExit, CommandFailure};
use output::{OutputFormat, print, print_json, print_note, table};

use crate::client::{Client, ItemList, RawJson, ServiceUrl};

/// Client command with its arguments.
#[derive(Debug, Subcommand)]
pub enum ClientCommand {
    /// Pools: create, inspect, change, delete
    Pools(pools::PoolsCommand),
    /// Workers of a pool: register, inspect, take out of service
    Workers(workers::WorkersCommand),
    /// Claims: take a worker, keep it, release it
    Claims(claims::ClaimsCommand),
    /// Show what a claim would get, and why; claims nothing
    Explain(Box<explain::ExplainCommand>),
    /// Quotas: how much tenants may hold, and their weights
    Quotas(quotas::QuotasCommand),
    /// Show the demand for a pool: what waits, how many workers would clear it, and which could go
    Demand(demand::DemandCommand),
    /// Show whether the service is ready, and every pool with its counts; live with --watch
    Status(status::StatusCommand),
    /// The store behind a service: what it holds
    Store(store::StoreCommand),
}

/// Options of every command that calls the service.
#[derive(Debug, clap::Args)]
struct ConnectionArgs {
    /// Address of the service: http://HOST:PORT or HOST:PORT
    #[arg(
        long, global = true, env = "HOTPOOL_ADDR", value_name = "URL", help_heading = "Common options",
        default_value_t = ServiceUrl::default()
    )]
    addr: ServiceUrl,
    /// Deadline for each answer, in milliseconds
    #[arg(
        long, global = true, value_name = "MS", help_heading = "Common options", default_value_t = 15_000,
        value_parser = timeout_ms()
    )]
    timeout_ms: u64,
    /// Print a table for people, or the service's answer as JSON for scripts
    #[arg(
        long, short, global = true, value_enum, value_name = "table|json", help_heading = "Common options",
        default_value_t = OutputFormat::Table, hide_possible_values = true
    )]
    output: OutputFormat,
}

/// Options of [`ConnectionArgs`] before the command. Both have the same ids, so a command uses these unless it has its own.
#[derive(Debug, clap::Args)]
#[command(next_help_heading = "Options of commands, which may also follow the command")]
pub struct LeadingOptions {
    /// Address of the service: http://HOST:PORT or HOST:PORT
    #[arg(long, value_name = "URL")]
    addr: Option<ServiceUrl>,
    /// Deadline for each answer, in milliseconds
    #[arg(long, value_name = "MS", value_parser = timeout_ms())]
    timeout_ms: Option<u64>,
    /// Print a table for people, or the service's answer as JSON for scripts
    #[arg(long, short, value_enum, value_name = "table|json", hide_possible_values = true)]
    output: Option<OutputFormat>,
}

impl LeadingOptions {
    /// Returns the first option that is set although the command, or the service itself, does not use it.
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

/// Parser of deadlines, in milliseconds.
fn timeout_ms() -> clap::builder::RangedU64ValueParser<u64> {
    clap::value_parser!(u64).range(1..=600_000)
}

/// Client and output format of a command.
struct CommandContext {
    client: Client,
    output: OutputFormat,
}

impl CommandContext {
    /// Prints an answer, as JSON or as the text that `text` makes of it.
    fn print_reply<T>(&self, reply: &RawJson<T>, text: impl FnOnce(&T) -> String) -> Result<(), CommandFailure> {
        match self.output {
            OutputFormat::Json => print(reply.json()),
            OutputFormat::Table => print(&text(reply)),
        }
    }

    /// Prints a listing, as JSON or as a table. An empty table is replaced by the note `if_empty`.
    fn print_list<T>(
        &self,
        list: &ItemList<T>,
        if_empty: &str,
        headings: &str,
        row: impl Fn(&T) -> Vec<String>,
    ) -> Result<(), CommandFailure> {
        self.print_list_text(list, if_empty, &table(headings, list.items.iter().map(|item| row(item))))
    }

    /// Prints a listing, as JSON or as the text of its tables. An empty list is replaced by the note `if_empty`.
    fn print_list_text<T>(&self, list: &ItemList<T>, if_empty: &str, text: &str) -> Result<(), CommandFailure> {
        if self.output == OutputFormat::Json {
            return print_json(list);
        }
        if list.items.is_empty() {
            print_note(if_empty);
            return Ok(());
        }
        print(text)?;
        if list.next_page_token.is_some() {
            print_note(&format!("... and more: these are the first {}", list.items.len()));
        }
        Ok(())
    }
}

/// Runs a command to its end and reports failures on stderr.
#[must_use]
pub fn run(command: ClientCommand) -> ExitCode {
    let connection = match &command {
        ClientCommand::Pools(command) => Some(&command.connection),
        ClientCommand::Workers(command) => Some(&command.connection),
        ClientCommand::Claims(command) => Some(&command.connection),
        ClientCommand::Explain(command) => Some(&command.connection),
        ClientCommand::Quotas(command) => Some(&command.connection),
        ClientCommand::Demand(command) => Some(&command.connection),
        ClientCommand::Status(command) => Some(&command.connection),
        ClientCommand::Store(_) => None,
    };
    let output = match &command {
        ClientCommand::Store(command) => command.output(),
        _ => connection.map_or(OutputFormat::Table, |connection| connection.output),
    };
    let context = connection.map(|ConnectionArgs { addr, timeout_ms, output }| CommandContext {
        client: Client::new(addr.clone()).with_timeout(Duration::from_millis(*timeout_ms)),
        output: *output,
    });
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
                (_, None) => unreachable!("a command that calls the service has a connection"),
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
