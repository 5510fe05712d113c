//! The whole scheduler under deterministic simulation: the real facade, admission, shards, journal, recovery and stores, with
//! time, order, disks and networks drawn from a seed. One seed is one run, which repeats exactly (docs/PROOFS.md).
//!
//! - `HOTPOOL_SEED=17 cargo nextest run --test simulation --no-capture` repeats a seed and prints its trace; a failure prints that
//!   line, with the limits to which it was shrunk in `HOTPOOL_LIMITS`.
//! - `HOTPOOL_SEEDS=0..10000` runs a campaign; with `HOTPOOL_STATE` it writes a file, and goes on where it was interrupted. With
//!   `HOTPOOL_UNTIL=found` it ends at the first seed that fails.
//! - `tests/simulation/planted.sh` plants faults and counts the seeds until each is found.

#[path = "simulation/agents.rs"]
mod agents;
#[path = "simulation/callers.rs"]
mod callers;
#[path = "simulation/campaign.rs"]
mod campaign;
#[path = "simulation/checker.rs"]
mod checker;
#[path = "simulation/core.rs"]
mod core;
#[path = "simulation/invariants.rs"]
mod invariants;
#[allow(dead_code, reason = "the tests of the store use the rest")]
#[path = "store/model_disk.rs"]
mod model_disk;
#[allow(dead_code, unused_imports, reason = "the tests of the Redis store use the rest")]
#[path = "simulation/redis/mod.rs"]
mod redis_servers;
#[path = "simulation/run.rs"]
mod run;
#[path = "simulation/script.rs"]
mod script;
#[path = "simulation/settings.rs"]
mod settings;
#[path = "simulation/shrink.rs"]
mod shrink;
#[path = "simulation/stores.rs"]
mod stores;
#[path = "simulation/trace.rs"]
mod trace;
#[path = "simulation/world.rs"]
mod world;

use std::ops::Range;
use std::time::{SystemTime, UNIX_EPOCH};

use campaign::{Campaign, known_situations};
use run::run_seed;
use settings::Limits;
use shrink::describe_failure;
use trace::{KeepLines, LogWriter};

/// Fixed seeds that decide, in parts that run side by side.
const FIXED_SEEDS: u64 = 300;
const PARTS: u64 = 4;
/// Seeds drawn from the date.
const DAILY_SEEDS: u64 = 60;
/// Seeds that found faults in the scheduler (docs/PROOFS.md).
const FOUND_BY: [u64; 5] = [7, 440, 469, 1162, 2587];
/// Situations that the first part of the fixed seeds reaches. The campaign of docs/PROOFS.md reaches all.
const FIXED_SITUATIONS: &[&str] = &[
    "Redis: the functions are lost",
    "caller: leaves an answer unread",
    "claim: a shard has nothing, and the next is asked",
    "gang: a member is committed",
    "gang: a member is granted",
    "gang: a request to a shard is to be repeated",
    "gang: every member is stored as committed",
    "gang: refused before anything was recorded",
    "grant: rolled back",
    "journal: a batch has no answer",
    "journal: a gap",
    "journal: a lone caller is written for at once",
    "journal: a snapshot is installed",
    "key: a claim ends that does not hold its key",
    "key: a claim meets one that is queued",
    "key: a duplicate takes over",
    "key: granted with a valid ticket",
    "lease: lapsed while replies wait",
    "mailbox: full",
    "panic: a shard begins its next life",
    "panic: what was being decided is handed back",
    "queue: a claim behind an equal one is not searched for",
    "queue: a claim enters again",
    "queue: a claim has waited for too long",
    "queue: a claim stands still",
    "queue: full",
    "recovery: a key becomes unreadable",
    "recovery: a shard is refused",
    "rejection: waits for the record that it follows from",
    "reply: its caller has left",
    "reply: rejected because the process is fenced",
    "reply: waited too long for the store",
    "reply: waits for the record of another shard",
    "reservation: a claim of higher priority asks for a reserved worker",
    "resize: rejected by the shard",
    "shard: a command arrives between two lives",
    "snapshot: a chunk is stored",
    "takeover: another process is alive",
    "takeover: the lease of another process has ended",
    "takeover: the same machine, whose last process is dead",
];

/// Whether this run is asked for one seed or for a campaign, so that the usual tests have nothing to do.
fn is_special() -> bool {
    ["HOTPOOL_SEED", "HOTPOOL_SEEDS"].iter().any(|name| std::env::var_os(name).is_some())
}

fn check_seeds(seeds: Range<u64>) -> Campaign {
    let mut campaign = Campaign::default();
    for seed in seeds {
        let report = run_seed(seed, &Limits::default(), KeepLines::No);
        if report.problem.is_some() {
            panic!("{}", describe_failure(&report));
        }
        campaign.add(&report);
    }
    println!("{campaign}");
    campaign
}

fn check_part(part: u64) -> Option<Campaign> {
    let each = FIXED_SEEDS / PARTS;
    (!is_special()).then(|| check_seeds(part * each..(part + 1) * each))
}

#[test]
fn fixed_seeds_agree_with_the_checker_and_reach_what_is_listed() {
    let Some(campaign) = check_part(0) else { return };
    let missed: Vec<_> = FIXED_SITUATIONS.iter().filter(|situation| !campaign.has_reached(situation)).collect();
    assert!(missed.is_empty(), "not reached: {missed:?}");
}

#[test]
fn fixed_seeds_agree_with_the_checker_second_part() {
    check_part(1);
}

#[test]
fn fixed_seeds_agree_with_the_checker_third_part() {
    check_part(2);
}

#[test]
fn fixed_seeds_agree_with_the_checker_last_part() {
    check_part(3);
}

#[test]
fn seeds_that_found_faults_agree_with_the_checker() {
    if !is_special() {
        FOUND_BY.into_iter().for_each(|seed| drop(check_seeds(seed..seed + 1)));
    }
}

/// Runs seeds that nobody has run before. They are printed and do not fail the run: what they find is for people to look at.
#[test]
fn seeds_of_the_day_are_printed() {
    if is_special() {
        return;
    }
    let days = SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970").as_secs() / 86_400;
    for seed in (0..DAILY_SEEDS).map(|number| 1_000_000 + days * DAILY_SEEDS + number) {
        let report = run_seed(seed, &Limits::default(), KeepLines::No);
        match &report.problem {
            None => println!("{}", report.summary()),
            Some(_) => println!("FOUND BY A SEED OF THE DAY\n{}", describe_failure(&report)),
        }
    }
}

#[test]
fn a_seed_repeats_exactly() {
    if is_special() {
        return;
    }
    for seed in 0..8 {
        let [first, again] = [(), ()].map(|()| run_seed(seed, &Limits::default(), KeepLines::No));
        assert_eq!((first.hash, first.steps), (again.hash, again.steps), "seed {seed} took another way");
    }
}

#[test]
fn a_seed_that_is_named_runs_with_its_trace() {
    let Ok(seed) = std::env::var("HOTPOOL_SEED") else { return };
    let seed = seed.parse().expect("HOTPOOL_SEED is a number");
    tracing_subscriber::fmt().with_ansi(false).without_time().with_writer(|| LogWriter).init();
    let limits = Limits::parse(&std::env::var("HOTPOOL_LIMITS").unwrap_or_default()).expect("HOTPOOL_LIMITS");
    let report = run_seed(seed, &limits, KeepLines::Yes);
    report.lines.iter().for_each(|line| println!("{line}"));
    report.situations.iter().for_each(|(situation, count)| println!("{count:>10}  {situation}"));
    println!("{}", report.summary());
    assert_eq!(report.problem, None, "HOTPOOL_SEED={seed}");
}

#[test]
fn a_campaign_that_is_asked_for_runs_its_seeds() {
    let Ok(seeds) = std::env::var("HOTPOOL_SEEDS") else { return };
    let (from, to) = seeds.split_once("..").expect("HOTPOOL_SEEDS is FROM..TO");
    let seeds: Range<u64> = from.parse().expect("a number")..to.parse().expect("a number");
    let until_found = std::env::var_os("HOTPOOL_UNTIL").is_some();
    let state = std::env::var_os("HOTPOOL_STATE").map(std::path::PathBuf::from);
    let campaign = campaign::run(seeds.clone(), state.as_deref(), until_found);
    println!("{campaign}");
    let missed: Vec<_> = known_situations().into_iter().filter(|situation| !campaign.has_reached(situation)).collect();
    println!("situations not reached: {missed:?}");
    assert!(campaign.failed().is_empty(), "failed: {:?}", campaign.failed());
    let is_long = seeds.end - seeds.start >= 10_000;
    assert!(!is_long || missed.is_empty(), "not reached: {missed:?}");
}

#[test]
fn planted_faults_still_apply() {
    let root = env!("CARGO_MANIFEST_DIR");
    let mut count = 0;
    for entry in std::fs::read_dir(format!("{root}/tests/simulation/planted")).expect("the directory of the patches") {
        let path = entry.expect("an entry").path();
        if path.extension().is_some_and(|extension| extension == "patch") {
            let check =
                std::process::Command::new("git").args(["apply", "--check"]).arg(&path).current_dir(root).output();
            let check = check.expect("git is installed");
            assert!(check.status.success(), "{}: {}", path.display(), String::from_utf8_lossy(&check.stderr));
            count += 1;
        }
    }
    assert!(count >= 30, "{count} patches");
}
