//! `hotpool-load`: loads a scheduler in this process or a service over HTTP, and checks it meanwhile.

use std::process::ExitCode;

use anyhow::Context as _;
use clap::Parser as _;
use clap::error::ErrorKind;
use hotpool::load::args::Args;
use hotpool::load::report::{EXIT_USAGE, Report};

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
        Ok(report) => report.exit(),
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(args: &Args) -> anyhow::Result<Report> {
    let runtime = tokio::runtime::Runtime::new().context("cannot start the runtime")?;
    let mut report = runtime.block_on(hotpool::load::run(args))?;
    if let Some(file) = &args.command.common().report_json {
        let json = serde_json::to_vec_pretty(&report)?;
        if let Err(error) = std::fs::write(file, json) {
            report.failures.push(format!("cannot write {}: {error}", file.display()));
        }
    }
    println!("{}", report.table());
    Ok(report)
}
