//! `hotpool-load`: loads a scheduler in this process or a service over HTTP, and checks it meanwhile;
//! or packs a trace.

use std::path::Path;
use std::process::ExitCode;

use anyhow::Context as _;
use clap::Parser as _;
use clap::error::ErrorKind;
use hotpool::load::args::{Args, Command};
use hotpool::load::report::EXIT_USAGE;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    let args = match Args::try_parse() {
        Ok(args) => args,
        Err(error) => {
            let asked = matches!(error.kind(), ErrorKind::DisplayHelp | ErrorKind::DisplayVersion);
            // Nobody is left to tell if the terminal is gone.
            let _ = error.print();
            return if asked { ExitCode::SUCCESS } else { ExitCode::from(EXIT_USAGE) };
        }
    };
    if let Err(problem) = args.command.check() {
        eprintln!("error: {problem}");
        return ExitCode::from(EXIT_USAGE);
    }
    match run(&args) {
        Ok(exit) => exit,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(args: &Args) -> anyhow::Result<ExitCode> {
    let file = args.command.report_json();
    match &args.command {
        Command::Load(load) => {
            let runtime = tokio::runtime::Runtime::new().context("cannot start the runtime")?;
            let mut report = runtime.block_on(hotpool::load::load(load))?;
            if let Err(error) = write(file, &report) {
                report.failures.push(format!("{error:#}"));
            }
            println!("{}", report.table());
            Ok(report.exit())
        }
        Command::Pack(pack) => {
            let report = hotpool::load::pack::run(pack)?;
            println!("{}", report.table());
            write(file, &report).map(|()| ExitCode::SUCCESS)
        }
    }
}

fn write(file: Option<&Path>, report: &impl serde::Serialize) -> anyhow::Result<()> {
    let Some(file) = file else { return Ok(()) };
    let json = serde_json::to_vec_pretty(report)?;
    std::fs::write(file, json).with_context(|| format!("cannot write {}", file.display()))
}
