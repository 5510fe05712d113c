//! Campaigns of many seeds: what they met, how long they took, and a file from which an interrupted one goes on.

use std::collections::BTreeMap;
use std::fmt;
use std::ops::Range;
use std::path::Path;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::run::{Report, run_seed};
use crate::settings::Limits;
use crate::shrink::describe_failure;
use crate::trace::KeepLines;

/// Seeds between two writes of the state.
const SAVE_INTERVAL: u64 = 50;

/// Sums over the seeds of a campaign.
#[derive(Debug, Default, Serialize, Deserialize)]
pub struct Campaign {
    seeds: u64,
    /// First seed that has not run.
    next: u64,
    steps: u64,
    grants: u64,
    panics: u64,
    simulated_ms: u64,
    elapsed_ms: u64,
    situations: BTreeMap<String, u64>,
    failed: BTreeMap<u64, String>,
}

impl fmt::Display for Campaign {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (simulated_s, elapsed_s) = (self.simulated_ms as f64 / 1e3, self.elapsed_ms as f64 / 1e3);
        writeln!(
            f,
            "{} seeds, {:.1} simulated hours in {elapsed_s:.0} s ({:.0} x real time), {} steps, {} grants, {} panics, {} failed",
            self.seeds,
            simulated_s / 3_600.0,
            simulated_s / elapsed_s.max(0.001),
            self.steps,
            self.grants,
            self.panics,
            self.failed.len()
        )?;
        for (situation, count) in &self.situations {
            writeln!(f, "{count:>10}  {situation}")?;
        }
        for (seed, problem) in &self.failed {
            writeln!(f, "seed {seed}: {problem}")?;
        }
        Ok(())
    }
}

impl Campaign {
    pub fn add(&mut self, report: &Report) {
        self.seeds += 1;
        self.next = report.seed + 1;
        self.steps += report.steps;
        self.grants += report.grants as u64;
        self.panics += u64::from(report.panics);
        self.simulated_ms += millis(report.simulated);
        self.elapsed_ms += millis(report.elapsed);
        for (situation, count) in &report.situations {
            *self.situations.entry((*situation).to_owned()).or_default() += count;
        }
        if let Some(problem) = &report.problem {
            self.failed.insert(report.seed, problem.clone());
        }
    }

    pub fn has_reached(&self, situation: &str) -> bool {
        self.situations.contains_key(situation)
    }

    pub fn failed(&self) -> Vec<u64> {
        self.failed.keys().copied().collect()
    }

    fn load(path: &Path) -> Option<Self> {
        let text = std::fs::read_to_string(path).ok()?;
        Some(serde_json::from_str(&text).expect("the state of a campaign"))
    }

    fn save(&self, path: &Path) {
        let text = serde_json::to_string_pretty(self).expect("it has no keys that JSON has not");
        let new = path.with_extension("new");
        std::fs::write(&new, text).and_then(|()| std::fs::rename(&new, path)).expect("the state is written");
    }
}

fn millis(duration: Duration) -> u64 {
    duration.as_millis().try_into().unwrap_or(u64::MAX)
}

/// Runs the seeds, from where the state of an interrupted campaign ends. With `until_found` the first failure ends it.
pub fn run(seeds: Range<u64>, state: Option<&Path>, until_found: bool) -> Campaign {
    let mut campaign = state.and_then(Campaign::load).unwrap_or_default();
    for seed in seeds.start.max(campaign.next)..seeds.end {
        let report = run_seed(seed, &Limits::default(), KeepLines::No);
        campaign.add(&report);
        println!("{}", report.summary());
        if report.problem.is_some() {
            if until_found {
                println!("FOUND by seed {seed}, after {} seeds", seed + 1 - seeds.start);
                break;
            }
            println!("{}", describe_failure(&report));
        }
        if let Some(path) = state
            && (campaign.next.is_multiple_of(SAVE_INTERVAL) || campaign.next == seeds.end)
        {
            campaign.save(path);
        }
    }
    campaign
}

/// Names of all situations that the source marks.
pub fn known_situations() -> Vec<String> {
    let mut found = Vec::new();
    let mut directories = vec![std::path::PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/src"))];
    while let Some(directory) = directories.pop() {
        for entry in std::fs::read_dir(&directory).expect("a directory of the source") {
            let path = entry.expect("an entry").path();
            if path.is_dir() {
                directories.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                let text = std::fs::read_to_string(&path).expect("a source file");
                let marks = text.split("reached!(\"").skip(1);
                found.extend(marks.filter_map(|mark| mark.split_once('"')).map(|(name, _)| name.to_owned()));
            }
        }
    }
    found.sort();
    found.dedup();
    found
}
