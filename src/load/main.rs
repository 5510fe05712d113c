//! `hotpool-load`: loads an in-process scheduler, a service or a baseline and checks every answer; packs a trace; or
//! serves bare edges.

use std::path::Path;
use std::process::ExitCode;

use anyhow::Context as _;
use clap::Parser as _;
use clap::error::ErrorKind;
use hotpool_load as load;
use hotpool_load::args::{HarnessArgs, HarnessCommand, ReportArgs};
use hotpool_load::html_report::ReportPage;
use hotpool_load::report::EXIT_USAGE;
use hotpool_load::run_report::{NamedRun, run_page};
use hotpool_load::terminal::TerminalText;

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
    let (json, pictures) = (args.command.report_json(), args.command.report());
    let terminal = TerminalText::detect();
    if let HarnessCommand::Pack(pack) = &args.command {
        let report = load::pack::run(pack)?;
        println!("{}", report.table());
        return write_json(json, &report).map(|()| 0);
    }
    prepare_outputs(json, pictures)?;
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
            let target = &load.common().target;
            let named = NamedRun { name: target.edge_name(), tone: target.tone(), report: &report };
            let page =
                run_page(&format!("{}: {}", report.command, target.edge_name()), &[named], report.parameters.clone());
            let written = write_json(json, &report).and_then(|()| write_page(pictures, &page));
            report.failures.extend(written.err().map(|error| format!("{error:#}")));
            println!("{}", report.table(terminal));
            Ok(report.exit_code())
        }
        HarnessCommand::Run(run) => {
            let outcomes = runtime.block_on(load::run_scenarios::run_scenarios(run, &stop))?;
            println!("{}", outcomes.table(terminal));
            write_json(json, &outcomes)?;
            write_page(pictures, &outcomes.page(serde_json::to_value(run)?))?;
            Ok(outcomes.exit_code())
        }
        HarnessCommand::Sweep(sweep) => {
            let report = runtime.block_on(load::sweep::sweep(sweep, &stop))?;
            let page = report.page();
            println!("{}", page.to_terminal());
            write_json(json, &report)?;
            write_page(pictures, &page)?;
            Ok(report.exit_code())
        }
        HarnessCommand::Compare(compare) => {
            let report = runtime.block_on(load::compare::compare(compare, &stop))?;
            let page = report.page();
            println!("{}", page.to_terminal());
            write_json(json, &report)?;
            write_page(pictures, &page)?;
            write(compare.report_md.as_deref(), || Ok(page.to_markdown().into_bytes()))?;
            Ok(report.exit_code())
        }
        HarnessCommand::Echo(echo) => runtime.block_on(load::echo::serve(echo, &stop)).map(|()| 0),
        HarnessCommand::Pack(_) => Ok(0), // above
    }
}

/// Checks that reports can be written, before there is anything to write.
fn prepare_outputs(json: Option<&Path>, pictures: Option<&ReportArgs>) -> anyhow::Result<()> {
    let html = pictures.and_then(|pictures| pictures.html.as_deref());
    for file in json.into_iter().chain(html) {
        let opened = std::fs::File::options().create(true).append(true).open(file);
        opened.with_context(|| format!("cannot write {}", file.display()))?;
    }
    match pictures.and_then(|pictures| pictures.plot.as_deref()) {
        Some(dir) => std::fs::create_dir_all(dir).with_context(|| format!("cannot create {}", dir.display())),
        None => Ok(()),
    }
}

fn write(file: Option<&Path>, bytes: impl FnOnce() -> anyhow::Result<Vec<u8>>) -> anyhow::Result<()> {
    let Some(file) = file else { return Ok(()) };
    std::fs::write(file, bytes()?).with_context(|| format!("cannot write {}", file.display()))
}

fn write_json(file: Option<&Path>, report: &impl serde::Serialize) -> anyhow::Result<()> {
    write(file, || Ok(serde_json::to_vec_pretty(report)?))
}

/// Writes a report as a page, and its charts as files of their own, where that was requested.
fn write_page(pictures: Option<&ReportArgs>, page: &ReportPage) -> anyhow::Result<()> {
    let Some(ReportArgs { html, plot, .. }) = pictures else { return Ok(()) };
    write(html.as_deref(), || Ok(page.to_html().into_bytes()))?;
    let Some(dir) = plot else { return Ok(()) };
    for (name, svg) in page.to_files() {
        write(Some(&dir.join(name)), || Ok(svg.into_bytes()))?;
    }
    Ok(())
}
