//! Scenario files: valid ones, and the problems of invalid ones.

use super::*;

fn parse(text: &str) -> Result<LoadScenario, Vec<String>> {
    LoadScenario::from_tree(toml::from_str(text).expect("TOML"))
}

const STEADY: &str = "about = 'x'\n[pool]\nworkers = 10\n[[phases]]\nduration_s = 1\nrate = 100\n";

#[test]
fn a_minimal_file_uses_defaults() {
    let scenario = parse(STEADY).unwrap();
    assert_eq!((scenario.pool.shards, scenario.clients.count, scenario.duration_s()), (16, 8, 1.0));
    let schedule = scenario.schedule().unwrap();
    assert_eq!(schedule.len(), 100);
    assert_eq!(schedule[50], (Duration::from_millis(500), LoadOperation::whole_workers(1)));
}

#[test]
fn phases_follow_one_another() {
    let text = format!(
        "{STEADY}hold_ms = 5\n[[phases]]\nduration_s = 1\nburst = {{ claims = 4, every_ms = 400 }}\nbatch = 2\n"
    );
    let schedule = parse(&text).unwrap().schedule().unwrap();
    assert_eq!(schedule.len(), 100 + 3 * 2);
    assert_eq!(schedule[0].1.hold, Duration::from_millis(5));
    let burst: Vec<u128> = schedule[100..].iter().map(|(at, _)| at.as_millis()).collect();
    assert_eq!(burst, [1_000, 1_000, 1_400, 1_400, 1_800, 1_800]);
    assert_eq!(schedule[100].1, LoadOperation::whole_workers(2));
}

#[test]
fn sizes_follow_their_weights_and_are_interleaved() {
    let text = "about = 'x'\n[pool]\nworkers = 10\nslots = 8\n[[phases]]\nduration_s = 1\nrate = 1000\n\
                sizes = [{ slots = 1, weight = 7 }, { slots = 4, weight = 2 }, { slots = 8, weight = 1 }]\n";
    let schedule = parse(text).unwrap().schedule().unwrap();
    let count = |slots| schedule.iter().filter(|(_, operation)| operation.params.slots == slots).count();
    assert_eq!((count(1), count(4), count(8)), (700, 200, 100));
    let in_row = schedule.chunk_by(|(_, a), (_, b)| a == b).map(<[_]>::len).max();
    assert!(in_row < Some(10), "{in_row:?} of one size in a row");
}

#[test]
fn every_problem_is_reported() {
    let text = "about = 'x'\nname = 'y'\n[pool]\nworkers = 0\nshards = 3\nsize = 1\n[clients]\ncount = 0\n\
                [[phases]]\nduration_s = -1\nrate = 0\nburst = { claims = 3, every_ms = 0 }\nbatch = 2\n\
                sizes = [{ slots = 1, weight = 1 }]\n[[phases]]\nduration_s = 1\ngang = true\nhold_s = 1\n\
                [churn]\nevery_ms = 0\nworkers = 5\n[failover]\nat_s = 9\nhow = { pause_ms = 1 }\n";
    let problems = parse(text).unwrap_err();
    for key in [
        "name: unknown field",
        "pool.size: unknown field",
        "hold_s: unknown field",
        "pool.workers: must be 1 to 10000000, got 0",
        "pool.shards:",
        "clients.count:",
        "phases[0].duration_s:",
        "phases[0].rate:",
        "phases[0].rate, burst, trace: exactly one",
        "phases[0].burst.claims: must be a multiple of batch, 2, got 3",
        "phases[0].burst.every_ms:",
        "phases[0].sizes:",
        "phases[1].rate, burst, trace: exactly one",
        "phases[1].gang:",
        "churn.every_ms:",
        "churn.workers:",
        "failover.at_s:",
    ] {
        assert!(problems.iter().any(|message| message.contains(key)), "{key} in {problems:#?}");
    }
}

#[test]
fn unsupported_scenarios_are_rejected_per_target() {
    let gang = parse(&format!("{STEADY}batch = 2\ngang = true\n")).unwrap();
    let queueing = parse(&format!("{STEADY}wait_ms = 5\n")).unwrap();
    let shared = parse(
        &STEADY
            .replace("workers = 10", "workers = 10\nslots = 2")
            .replace("rate", "sizes = [{slots=1,weight=1}]\nrate"),
    )
    .unwrap();
    let rejected = |scenario: &LoadScenario, url: &str| scenario.unsupported_by(&url.parse().unwrap()).is_some();
    for (url, gang_rejected, queueing_rejected, shared_rejected) in [
        ("inproc", false, false, false),
        ("grpc://a:1", false, false, false),
        ("resp://a:1", true, true, false),
        ("redis-spop://a:1", true, true, true),
        ("redis-lock://a:1", true, true, false),
    ] {
        assert_eq!(rejected(&gang, url), gang_rejected, "gang on {url}");
        assert_eq!(rejected(&queueing, url), queueing_rejected, "queueing on {url}");
        assert_eq!(rejected(&shared, url), shared_rejected, "shares on {url}");
    }
}
