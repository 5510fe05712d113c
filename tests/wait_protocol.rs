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
#[path = "claim_protocol/scene_threads.rs"]
mod scene_threads;
#[path = "claim_protocol/stepped_thread.rs"]
mod stepped_thread;

use hotpool::shard::ProtocolRule;

use explorer::{holds, holds_in_samples, is_found};
use scene::Scenario;
use scene::Script::{Claim, Look, Release, Wait, WaitAndRelease};

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

/// A claim begins to wait behind another one of the same request, which may stand still already.
const BEGINS_BEHIND: Scenario =
    Scenario { callers: &[WaitAndRelease(0), Wait(0), Release(0)], preemptions: 3, ..BEGINS };

#[test]
fn q05_a_claim_that_begins_to_wait_meets_a_release() {
    holds(&BEGINS);
}

#[test]
fn q05_a_claim_begins_to_wait_behind_another_one_of_its_request() {
    holds(&BEGINS_BEHIND);
    holds(&Scenario { stand_still: 1, preemptions: 4, ..BEGINS_BEHIND });
    holds(&Scenario {
        callers: &[WaitAndRelease(0), WaitAndRelease(0), Wait(0), Release(0)],
        stand_still: 1,
        preemptions: 2,
        ..BEGINS_BEHIND
    });
    // The other one may be about to leave.
    let leaves = Scenario { callers: &[Wait(0), Wait(0), Release(0)], stand_still: 1, leavers: &[0], ..BEGINS_BEHIND };
    holds(&leaves);
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
fn q05_the_offer_after_the_search_is_needed() {
    is_found(&IS_TRIED, ProtocolRule::OfferAgain);
}

#[test]
fn q02_the_match_before_the_decision_is_needed() {
    is_found(&NEWCOMER, ProtocolRule::MatchBeforeDecision);
}
