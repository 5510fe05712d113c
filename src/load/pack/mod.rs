//! `hotpool-load pack`: measures how well a fleet is packed. Simulates a list of requests against the engine's
//! placement alone: no service, no releases, no retries.
//!
//! ```text
//! args -> input (nodes, requests, arrivals) -> simulate (bin packing, or the published scores) -> curve -> report,
//! plot
//! ```

pub mod args;
pub mod curve;
pub mod input;
pub mod plot;
pub mod published;
pub mod report;
pub mod simulate;

use anyhow::{Context as _, Result};
use indicatif::{ProgressBar, ProgressStyle};

use self::args::{PackArgs, PolicyArg};
use self::input::PackInput;
use self::published::PublishedPolicy;
use self::report::PackReport;
use self::simulate::{MixSource, PlacementDecider, SimulationResult, simulate};

/// Simulates the chosen policy, and with `--plot` the other policies too.
///
/// # Errors
/// Fails if a file cannot be used.
pub fn run(args: &PackArgs) -> Result<PackReport> {
    let input = PackInput::read(args)?;
    let result = simulate_policy(args, &input, args.policy)?;
    let report = PackReport::new(&input, &result, serde_json::to_value(args)?);
    if let Some(file) = &args.plot {
        let mut curves = Vec::new();
        for &policy in PolicyArg::ALL {
            if policy == args.policy {
                curves.push((policy.into_str().to_owned(), report.curve.clone()));
            } else if !(args.protocol && policy == PolicyArg::Spread) {
                let other = simulate_policy(args, &input, policy)?;
                curves.push((policy.into_str().to_owned(), curve::curve(&other.points, input.gpus())));
            }
        }
        let requests = args.requests.file_name().unwrap_or_default().to_string_lossy();
        plot::draw(file, &requests, &curves).with_context(|| format!("cannot draw {}", file.display()))?;
    }
    Ok(report)
}

fn simulate_policy(args: &PackArgs, input: &PackInput, policy: PolicyArg) -> Result<SimulationResult> {
    let mix = if args.learn { MixSource::Learned } else { MixSource::Given };
    let mut decider = match (args.protocol, policy) {
        (true, PolicyArg::Fgd) => PlacementDecider::published(input, PublishedPolicy::fgd(input)),
        (true, _) => PlacementDecider::published(input, PublishedPolicy::BestFit),
        (false, _) => PlacementDecider::service(input, policy.into(), args.shards, mix)?,
    };
    let style = ProgressStyle::with_template("{msg} [{bar:30}] {pos}/{len}")?.progress_chars("=> ");
    let bar = ProgressBar::new(input.events.len() as u64).with_style(style).with_message(policy.into_str());
    let result = simulate(input, &mut decider, |done| bar.set_position(done));
    bar.finish_and_clear();
    Ok(result)
}
