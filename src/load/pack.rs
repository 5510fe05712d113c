//! `hotpool-load pack`: how well is a fleet packed? Plays a list of requests against the engine's placement alone: no
//! service, no release, no retry.
//!
//! ```text
//! args -> input (nodes, requests, arrivals) -> play (engine::fit, or the published scores over it) -> curve -> report, plot
//! ```

pub mod args;
pub mod curve;
pub mod input;
pub mod play;
pub mod plot;
pub mod published;
pub mod report;

use anyhow::{Result, anyhow};
use indicatif::{ProgressBar, ProgressStyle};

use self::args::{PackArgs, PolicyArg};
use self::input::Input;
use self::play::{Decider, Played, play};
use self::published::Published;
use self::report::Report;

/// Plays the run, and with `--plot` those of the other policies too.
///
/// # Errors
/// A file cannot be used.
pub fn run(args: &PackArgs) -> Result<Report> {
    let input = Input::read(args)?;
    let played = play_one(args, &input, args.policy)?;
    let report = Report::new(&input, &played, serde_json::to_value(args)?);
    if let Some(file) = &args.plot {
        let mut curves = Vec::new();
        for policy in PolicyArg::ALL {
            if policy == args.policy {
                curves.push((policy.word().to_owned(), report.curve.clone()));
            } else if !(args.protocol && policy == PolicyArg::Spread) {
                let other = play_one(args, &input, policy)?;
                curves.push((policy.word().to_owned(), curve::curve(&other.points, input.cards())));
            }
        }
        let requests = args.requests.file_name().unwrap_or_default().to_string_lossy();
        plot::draw(file, &requests, &curves).map_err(|problem| anyhow!(problem))?;
    }
    Ok(report)
}

fn play_one(args: &PackArgs, input: &Input, policy: PolicyArg) -> Result<Played> {
    let mut decider = match (args.protocol, policy) {
        (true, PolicyArg::Fgd) => Decider::published(input, Published::fgd(input)),
        (true, _) => Decider::published(input, Published::BestFit),
        (false, _) => {
            Decider::own(input, policy.into(), args.shards, args.learn).map_err(|problem| anyhow!(problem))?
        }
    };
    let style = ProgressStyle::with_template("{msg} [{bar:30}] {pos}/{len}")?.progress_chars("=> ");
    let bar = ProgressBar::new(input.events.len() as u64).with_style(style).with_message(policy.word());
    let played = play(input, &mut decider, |done| bar.set_position(done));
    bar.finish_and_clear();
    Ok(played)
}
