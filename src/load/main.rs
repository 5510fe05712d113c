//! `hotpool-load`: loads an in-process scheduler, a service or a Redis baseline and checks every answer; or packs a
//! trace.

use std::path::Path;
use std::process::ExitCode;

use anyhow::Context as _;
use clap::Parser as _;
use clap::error::ErrorKind;
use hotpool_load as load;
use hotpool_load::args::{HarnessArgs, HarnessCommand};
use hotpool_load::html_report::{ReportSection, run_sections, to_html, to_markdown};
use hotpool_load::report::{EXIT_USAGE, LoadReport};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    let args = match HarnessArgs::try_parse() {
        Ok(args) => args,
        Err(error) => {
            let requested = matches!(error.kind(), ErrorKind::DisplayHelp | ErrorKind::DisplayVersion);
            // Printing fails only if the terminal is gone; then there is nobody to report it to.
            let _ = error.print();
            return if requested { ExitCode::SUCCESS } else { ExitCode::from(EXIT_USAGE) };
        }
    };
    if let Err(problem) = args.command.check() {
        eprintln!("error: {problem}");
        return ExitCode::from(EXIT_USAGE);
    }
    match run(&args) {
        Ok(exit) => ExitCode::from(exit),
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(args: &HarnessArgs) -> anyhow::Result<u8> {
    let (json, html) = (args.command.report_json(), args.command.report_html());
    if let HarnessCommand::Pack(pack) = &args.command {
        let report = load::pack::run(pack)?;
        println!("{}", report.table());
        return write_json(json, &report).map(|()| 0);
    }
    let runtime = tokio::runtime::Runtime::new().context("cannot start the runtime")?;
    let _inside = runtime.enter();
    let stop = load::stop_on_signal()?;
    match &args.command {
        HarnessCommand::Load(load) => {
            if let Some(member) = &load.common().member {
                let part = runtime.block_on(load::run_generator(load, member, &stop))?;
                println!("{}", serde_json::to_string(&part)?);
                return Ok(0);
            }
            let mut report = runtime.block_on(load::run_load(load, &stop))?;
            let name = load.common().target.to_string();
            let written = write_json(json, &report).and_then(|()| write_runs(html, &[(name, &report)]));
            report.failures.extend(written.err().map(|error| format!("{error:#}")));
            println!("{}", report.table());
            Ok(report.exit_code())
        }
        HarnessCommand::Run(run) => {
            let outcomes = runtime.block_on(load::run_scenarios::run_scenarios(run, &stop))?;
            println!("{}", outcomes.table());
            write_json(json, &outcomes)?;
            write_runs(html, &outcomes.reports())?;
            Ok(outcomes.exit_code())
        }
        HarnessCommand::Sweep(sweep) => {
            let report = runtime.block_on(load::sweep::sweep(sweep, &stop))?;
            let sections = [report.section()?];
            println!("{}", to_markdown("hotpool-load sweep", &sections));
            write_json(json, &report)?;
            write_page(html, &sections)?;
            Ok(report.exit_code())
        }
        HarnessCommand::Compare(compare) => {
            let report = runtime.block_on(load::compare::compare(compare, &stop))?;
            let sections = report.sections()?;
            let text = to_markdown("hotpool-load compare", &sections);
            println!("{text}");
            write_json(json, &report)?;
            write_page(html, &sections)?;
            write(compare.report_md.as_deref(), || Ok(text.into_bytes()))?;
            Ok(report.exit_code())
        }
        HarnessCommand::Echo(echo) => runtime.block_on(load::echo::serve(echo, &stop)).map(|()| 0),
        HarnessCommand::Pack(_) => Ok(0), // above
    }
}

fn write(file: Option<&Path>, bytes: impl FnOnce() -> anyhow::Result<Vec<u8>>) -> anyhow::Result<()> {
    let Some(file) = file else { return Ok(()) };
    std::fs::write(file, bytes()?).with_context(|| format!("cannot write {}", file.display()))
}

fn write_json(file: Option<&Path>, report: &impl serde::Serialize) -> anyhow::Result<()> {
    write(file, || Ok(serde_json::to_vec_pretty(report)?))
}

fn write_runs(file: Option<&Path>, runs: &[(String, &LoadReport)]) -> anyhow::Result<()> {
    if file.is_none() {
        return Ok(());
    }
    write_page(file, &run_sections(runs)?)
}

fn write_page(file: Option<&Path>, sections: &[ReportSection]) -> anyhow::Result<()> {
    write(file, || Ok(to_html("hotpool-load", sections).into_bytes()))
}
