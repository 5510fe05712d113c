//! Program with the service and its client commands. The service parses arguments and configuration, then calls
//! [`Service::build`] and [`Service::run`]; exit codes: 0 success, 1 startup failed, 64 usage or configuration error. The client
//! commands are in [`cli`].
#![warn(missing_docs)]

use std::ffi::OsString;
use std::io::Write as _;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::error::ErrorKind;
use clap::{Args, CommandFactory as _, Parser, Subcommand};
use clap_complete::Shell;
use hotpool::cli;
use hotpool::server::config::{self, Config, ConfigOverrides, HostNames, LogFormat, RespListen, StoreUrl};
use hotpool::server::service::{ListenAddresses, Service};
use hotpool::server::signals::HarmlessSignals;
use hotpool::server::{shutdown, telemetry};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Exit code for usage and configuration errors, as in `sysexits.h`.
const EXIT_USAGE: u8 = 64;
/// Longest time that remaining tasks may delay the exit.
const RUNTIME_SHUTDOWN_TIMEOUT: Duration = Duration::from_secs(1);

/// Assigns work to warm workers: the service, and commands for its clients.
///
/// Exit codes of the commands: 0 success; 1 an error, or the service is unreachable or not ready; 3 rejected; 4 not found;
/// 64 usage or configuration error.
#[derive(Parser)]
#[command(name = "hotpool", version, arg_required_else_help = true)]
struct ProgramArgs {
    #[command(flatten)]
    leading: cli::LeadingOptions,
    #[command(subcommand)]
    command: ProgramCommand,
}

#[derive(Subcommand)]
enum ProgramCommand {
    /// Run the scheduler as a service
    Serve(ServeArgs),
    #[command(flatten)]
    Client(cli::ClientCommand),
    /// Print a completion script for a shell
    #[command(after_help = "Example, for the current bash:\n  source <(hotpool completions bash)")]
    Completions { shell: Shell },
}

#[derive(Args)]
struct ServeArgs {
    /// Configuration file (TOML). Without it no file is read.
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Address and port to listen on, as in 127.0.0.1:7070, localhost:7070, or :7070 for all interfaces; port 0 takes any
    /// free one.
    #[arg(long, value_name = "HOST:PORT", value_parser = config::address)]
    listen: Option<SocketAddr>,
    /// Address and port for Redis clients (RESP), or off.
    #[arg(long, value_name = "HOST:PORT|off")]
    resp_listen: Option<RespListen>,
    /// Host names that clients use for the service, separated by commas; localhost and addresses are always served.
    #[arg(long, value_name = "NAME,...")]
    hosts: Option<HostNames>,
    /// Directory of the embedded store, which one process may use at a time. With a Redis store it holds only a lock and an id,
    /// so that a restart with the same directory takes the store over at once. Not used with memory:.
    #[arg(long, value_name = "DIR")]
    data_dir: Option<PathBuf>,
    /// Store of the records: file:DIR, memory:, redis://HOST, redis-cluster://HOST:PORT,HOST:PORT and similar.
    // Parsed by hand, because an error message of clap would show the password.
    #[arg(long, value_name = "URL")]
    store: Option<String>,
    /// Wait until another process that owns the Redis store ends, and then take over.
    #[arg(long)]
    standby: bool,
    /// Allow an address that other machines can reach, although clients are not authenticated.
    #[arg(long)]
    insecure: bool,
    /// Format of log lines: text or json.
    #[arg(long, value_name = "FORMAT")]
    log: Option<LogFormat>,
}

fn main() -> ExitCode {
    let parsed = ProgramArgs::try_parse().and_then(|ProgramArgs { leading, command }| {
        let client = if let ProgramCommand::Client(command) = &command { Some(command) } else { None };
        match leading.unused_option(client) {
            None => Ok(command),
            Some(option) => {
                let message = format!("{option} cannot be used with this command, which does not call a service");
                Err(ProgramArgs::command().error(ErrorKind::UnknownArgument, message))
            }
        }
    });
    match parsed {
        Ok(ProgramCommand::Serve(arguments)) => serve(arguments),
        Ok(ProgramCommand::Client(command)) => cli::run(command),
        Ok(ProgramCommand::Completions { shell }) => {
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut ProgramArgs::command(), "hotpool", &mut script);
            // A closed stream cannot be reported.
            let _ = std::io::stdout().write_all(&script);
            ExitCode::SUCCESS
        }
        Err(error) => {
            // A closed stream cannot be reported.
            let _ = error.print();
            match error.kind() {
                ErrorKind::DisplayHelp | ErrorKind::DisplayVersion => ExitCode::SUCCESS,
                _ => ExitCode::from(EXIT_USAGE),
            }
        }
    }
}

fn serve(arguments: ServeArgs) -> ExitCode {
    // First, because signals can be caught only in a runtime.
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return exit_with_error(1, &error),
    };
    let caught = {
        let _on_runtime = runtime.enter();
        HarmlessSignals::catch()
    };
    let harmless = match caught {
        Ok(harmless) => harmless,
        Err(error) => return exit_with_error(1, &format!("cannot catch signals: {error}")),
    };
    let ServeArgs { config, listen, resp_listen, hosts, data_dir, store, standby, insecure, log } = arguments;
    let store = match store.map(|url| url.parse()).transpose() {
        Ok(store) => store,
        Err(error) => return exit_with_error(EXIT_USAGE, &format!("--store: {error}")),
    };
    let unused_dir = data_dir.clone().filter(|_| matches!(store, Some(StoreUrl::Memory)));
    if data_dir.is_some() && matches!(store, Some(StoreUrl::File(_))) {
        return exit_with_error(
            EXIT_USAGE,
            &"--data-dir cannot be used with --store file:DIR; use one of them, or a Redis store",
        );
    }
    let flags = ConfigOverrides { listen, resp_listen, hosts, store, data_dir, standby, insecure, log };
    // Lossy: a value that is not Unicode is invalid and is rejected where it is used.
    let lossy = |text: OsString| text.to_string_lossy().into_owned();
    let environment = std::env::vars_os().map(|(name, value)| (lossy(name), lossy(value)));
    let config = match Config::load(config.as_deref(), environment, flags) {
        Ok(config) => config,
        Err(error) => return exit_with_error(EXIT_USAGE, &error),
    };
    if let Err(error) = telemetry::start(config.log.format) {
        return exit_with_error(EXIT_USAGE, &error);
    }
    runtime.spawn(harmless.log());
    if let Some(dir) = unused_dir {
        tracing::warn!(dir = %dir.display(), "--data-dir is not used: the store memory: keeps nothing");
    }
    let ended = runtime.block_on(run(config));
    runtime.shutdown_timeout(RUNTIME_SHUTDOWN_TIMEOUT);
    match ended {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => exit_with_error(1, &error),
    }
}

async fn run(config: Config) -> anyhow::Result<()> {
    let stop = shutdown::shutdown_signal()?;
    let store = config.store.url.clone();
    let service = Service::build(config).await?;
    Ok(service.run(move |addresses| print_welcome(addresses, &store), stop).await?)
}

fn exit_with_error(code: u8, error: &dyn std::fmt::Display) -> ExitCode {
    // A closed stream cannot be reported.
    let _ = writeln!(std::io::stderr(), "hotpool: {error}");
    ExitCode::from(code)
}

/// Prints the addresses of the service and commands to try.
fn print_welcome(addresses: ListenAddresses, store: &StoreUrl) {
    let ListenAddresses { http: address, resp } = addresses;
    let resp = resp.map_or_else(String::new, |resp| format!(" and redis://{resp}"));
    let text = format!(
        "hotpool is ready on http://{address}{resp} (store: {store})\n\
         try:\n  \
         curl -X PUT http://{address}/v1/pools/demo/warm -d '{{}}'\n  \
         curl -X PUT http://{address}/v1/pools/demo/warm/workers/w1 -d '{{\"capacity\":{{\"cpu_milli\":1000}}}}'\n  \
         curl -X POST http://{address}/v1/claims -d '{{\"namespace\":\"demo\",\"pool\":\"warm\",\"key\":\"job-1\"}}'\n"
    );
    // A closed stream does not stop the service.
    let _ = std::io::stdout().write_all(text.as_bytes());
    let _ = std::io::stdout().flush();
}
