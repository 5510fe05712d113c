//! Protocol of the wait queue, over the real scheduler: every order of the steps of claims that wait, releases, and claims
//! that do not wait, where a step leads from one point of the protocol ([`ProtocolPoint`]) to the next: between the
//! entry into a queue and the search that follows, between a run's publication and its look at the queue, between two
//! shards of a search.
//!
//! What must hold when nothing is left to do: nobody waits while a worker that fits is free, and no claim that does not
//! wait has got what a claim that stood still could use. Schedules are exhaustive up to a number of preemptions, and each
//! rule is switched off once and found.
//!
//! [`ProtocolPoint`]: hotpool::shard::ProtocolPoint

#![cfg(debug_assertions)]

#[path = "claim_protocol/caller.rs"]
mod caller;
#[path = "claim_protocol/explorer.rs"]
mod explorer;
#[path = "wait_protocol/scene.rs"]
mod scene;
#[path = "claim_protocol/stepped_thread.rs"]
mod stepped_thread;

use std::time::Duration;

use hotpool::shard::ProtocolRule;

use explorer::{Explored, Limits, explore, replay, sample};
use scene::Scenario;
use scene::Script::{Claim, Look, Release, Wait, WaitAndRelease};

const LIMITS: Limits = Limits { schedules: 100_000, time: Duration::from_secs(15) };
const SAMPLE: Limits = Limits { schedules: 3_000, time: Duration::from_secs(10) };

fn explored(scenario: &Scenario, broken: Option<ProtocolRule>) -> Explored {
    let explored = explore(scenario, broken, LIMITS);
    let extent = if explored.is_complete { "all" } else { "the first" };
    println!("{extent} {} schedules of {scenario:?}, broken: {broken:?}", explored.schedules);
    if let Some(violation) = &explored.violation {
        println!("{violation}");
        let again = replay(scenario, broken, &violation.choices).expect_err("a schedule can be replayed");
        assert_eq!(again.choices, violation.choices);
    }
    explored
}

fn holds(scenario: &Scenario) {
    let explored = explored(scenario, None);
    assert!(explored.violation.is_none(), "{}", explored.violation.unwrap());
}

/// Explores random schedules. `HOTPOOL_SEED` sets the first seed.
fn holds_in_samples(scenario: &Scenario) {
    let seed = std::env::var("HOTPOOL_SEED").map_or(1, |seed| seed.parse().expect("HOTPOOL_SEED is a number"));
    let sampled = sample(scenario, seed, SAMPLE);
    println!("{} random schedules of {scenario:?} from seed {seed} on", sampled.schedules);
    assert!(sampled.violation.is_none(), "{}", sampled.violation.unwrap());
}

fn is_found(scenario: &Scenario, broken: ProtocolRule) {
    assert!(explored(scenario, Some(broken)).violation.is_some(), "{broken:?} is not needed in {scenario:?}");
}

/// A claim begins to wait while the only worker is released.
const BEGINS: Scenario = Scenario {
    callers: &[Wait(0), Release(0)],
    stand_still: 0,
    leavers: &[],
    pools: &["a"],
    odd_pools: &[],
    preemptions: 4,
    panics: 0,
};

/// A claim begins to wait while its search is on the way through a pool whose idle worker does not fit.
const IS_TRIED: Scenario = Scenario { pools: &["a", "b"], odd_pools: &["b"], preemptions: 3, ..BEGINS };

/// A claim stands still; a release and a claim that does not wait are in the mailbox together.
const NEWCOMER: Scenario =
    Scenario { callers: &[Wait(0), Look, Release(0), Claim], stand_still: 1, preemptions: 1, ..BEGINS };

/// Two claims wait for two pools, and one of them may leave.
const TWO_WAIT: Scenario = Scenario {
    callers: &[Wait(0), WaitAndRelease(5), Release(0), Release(1)],
    leavers: &[0],
    pools: &["a", "b"],
    preemptions: 2,
    ..BEGINS
};

#[test]
fn q05_a_claim_that_begins_to_wait_meets_a_release() {
    holds(&BEGINS);
}

#[test]
fn q05_a_claim_that_is_being_tried_misses_nothing() {
    holds(&IS_TRIED);
}

#[test]
fn q02_a_newcomer_passes_nobody_who_stands_still() {
    holds(&NEWCOMER);
}

#[test]
fn q05_claims_that_wait_for_two_pools_and_leave() {
    holds(&TWO_WAIT);
    let many = Scenario {
        callers: &[Wait(0), WaitAndRelease(5), Wait(5), Release(0), Release(1), Claim],
        leavers: &[0, 2],
        preemptions: 100,
        ..TWO_WAIT
    };
    holds_in_samples(&many);
    holds_in_samples(&Scenario { odd_pools: &["b"], ..many });
}

#[test]
fn q05_the_search_after_the_entry_is_needed() {
    is_found(&BEGINS, ProtocolRule::SearchAfterEntry);
}

#[test]
fn q05_the_publication_before_the_match_is_needed() {
    is_found(&BEGINS, ProtocolRule::PublishBeforeMatch);
}

#[test]
fn q05_missed_offers_are_needed() {
    is_found(&IS_TRIED, ProtocolRule::MissedOffers);
}

#[test]
fn q02_the_match_before_the_decision_is_needed() {
    is_found(&NEWCOMER, ProtocolRule::MatchBeforeDecision);
}
