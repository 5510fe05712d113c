//! The whole scheduler under deterministic simulation: the real facade, admission, shards, journal, recovery and stores, with
//! time, order, disks and networks drawn from a seed. One seed is one run, which repeats exactly.
//!
//! - `HOTPOOL_SEED=17 cargo nextest run --test simulation --no-capture` repeats a seed with its trace; `HOTPOOL_LIMITS` is what
//!   a failure was shrunk to.
//! - `HOTPOOL_SEEDS=0..10000` runs a campaign, which goes on where it was interrupted if `HOTPOOL_STATE` names a file.

#[path = "simulation/agents.rs"]
mod agents;
#[path = "simulation/callers.rs"]
mod callers;
#[path = "simulation/checker.rs"]
mod checker;
#[path = "simulation/core.rs"]
mod core;
#[path = "simulation/invariants.rs"]
mod invariants;
#[allow(dead_code, reason = "the tests of the store use the rest")]
#[path = "store/model_disk.rs"]
mod model_disk;
#[path = "simulation/run.rs"]
mod run;
#[path = "simulation/script.rs"]
mod script;
#[path = "simulation/settings.rs"]
mod settings;
#[path = "simulation/stores.rs"]
mod stores;
#[path = "simulation/trace.rs"]
mod trace;
#[path = "simulation/world.rs"]
mod world;

use run::run_seed;
use settings::Limits;
use trace::KeepLines;

fn requested_limits() -> Limits {
    let text = std::env::var("HOTPOOL_LIMITS").unwrap_or_default();
    Limits::parse(&text).expect("HOTPOOL_LIMITS")
}

#[test]
fn a_seed_that_is_named_runs_with_its_trace() {
    let Ok(seed) = std::env::var("HOTPOOL_SEED") else { return };
    let seed = seed.parse().expect("HOTPOOL_SEED is a number");
    let report = run_seed(seed, &requested_limits(), KeepLines::Yes);
    report.lines.iter().for_each(|line| println!("{line}"));
    println!("{}", report.summary());
    assert_eq!(report.problem, None, "HOTPOOL_SEED={seed}");
}

#[test]
fn seeds_agree_with_the_checker() {
    let seeds = std::env::var("HOTPOOL_SEEDS").unwrap_or_else(|_| "0..20".to_owned());
    let (from, to) = seeds.split_once("..").expect("HOTPOOL_SEEDS is FROM..TO");
    let (from, to): (u64, u64) = (from.parse().expect("a number"), to.parse().expect("a number"));
    let mut failed = Vec::new();
    for seed in from..to {
        let report = run_seed(seed, &Limits::default(), KeepLines::No);
        println!("{}", report.summary());
        if report.problem.is_some() {
            failed.push(seed);
        }
    }
    assert!(failed.is_empty(), "failed: {failed:?}");
}

#[test]
fn a_seed_repeats_exactly() {
    for seed in [1, 2, 3] {
        let [first, again] = [(), ()].map(|()| run_seed(seed, &Limits::default(), KeepLines::No));
        assert_eq!((first.hash, first.steps), (again.hash, again.steps), "seed {seed} took another way");
    }
}
