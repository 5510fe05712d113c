//! Protocol of the claims of one key, over the real scheduler: every order of the steps of callers, shards and the
//! store, where a step leads from one point of the protocol ([`ProtocolPoint`]) to the next: between two effects,
//! between a run's publication and its delivery, between its delivery and its replies. Callers may leave, shards may
//! panic and the store may be late at each of them.
//!
//! A schedule that breaks an invariant is printed with its choices, for [`explorer::replay`]. Schedules are exhaustive up
//! to a number of preemptions (switches away from a thread that could go on: Musuvathi and Qadeer, 2007), and each
//! rule that the protocol rests on is switched off once and found; except the checks of tickets and fences, which no
//! schedule explored here needs: a cancelled claim keeps its ticket until its shard has answered.
//!
//! [`ProtocolPoint`]: hotpool::shard::ProtocolPoint

#![cfg(debug_assertions)]

#[path = "claim_protocol/caller.rs"]
mod caller;
#[path = "claim_protocol/explorer.rs"]
mod explorer;
#[path = "claim_protocol/late_store.rs"]
mod late_store;
#[path = "claim_protocol/scene.rs"]
mod scene;
#[path = "claim_protocol/scene_threads.rs"]
mod scene_threads;
#[path = "claim_protocol/stepped_thread.rs"]
mod stepped_thread;

use hotpool::shard::ProtocolRule;

use explorer::{holds, holds_in_samples, is_found, replay};
use scene::Script::{Claim, ClaimAndRelease, Look, ReleaseHeld, ReleaseHeldAndClaim};
use scene::{Scenario, StoreTiming};

const LEAVES: Scenario = Scenario {
    callers: &[Claim, Claim, Look],
    leavers: &[0],
    pools: &["a", "b"],
    store: StoreTiming::Memory,
    panics: 0,
    preemptions: 3,
};

const BOTH_LEAVE: Scenario = Scenario { leavers: &[0, 1], ..LEAVES };

const LEAVES_ALONE: Scenario = Scenario { callers: &[Claim, Look], ..LEAVES };

const RELEASES: Scenario = Scenario {
    callers: &[ReleaseHeldAndClaim, ClaimAndRelease],
    leavers: &[],
    pools: &["a"],
    store: StoreTiming::Memory,
    panics: 0,
    preemptions: 3,
};

const PANICS: Scenario = Scenario {
    callers: &[ReleaseHeld, Claim, Look],
    leavers: &[],
    pools: &["a", "b"],
    store: StoreTiming::Prompt,
    panics: 1,
    preemptions: 1,
};

const RELEASED_IN_PANIC: Scenario = Scenario { callers: &[Look, ReleaseHeld], pools: &["a"], preemptions: 1, ..PANICS };

const IS_LATE: Scenario = Scenario {
    callers: &[ClaimAndRelease, Claim],
    leavers: &[1],
    pools: &["a", "b"],
    store: StoreTiming::Late,
    panics: 0,
    preemptions: 1,
};

const EVERYTHING: Scenario = Scenario {
    callers: &[Claim, ClaimAndRelease],
    leavers: &[0],
    pools: &["a", "b"],
    store: StoreTiming::Late,
    panics: 1,
    preemptions: 1,
};

#[test]
fn c12_k1_a_caller_leaves_at_any_moment() {
    holds(&LEAVES_ALONE);
    holds(&LEAVES);
    holds(&BOTH_LEAVE);
}

#[test]
fn k1_n1_a_release_meets_a_claim() {
    holds(&RELEASES);
}

#[test]
fn s16_k1_a_shard_panics_at_any_moment() {
    holds(&RELEASED_IN_PANIC);
    holds(&PANICS);
}

#[test]
fn j1_k1_the_store_is_late() {
    holds(&IS_LATE);
}

#[test]
fn k1_c12_leaving_panics_and_a_late_store_together() {
    holds(&EVERYTHING);
}

#[test]
fn k1_c12_many_callers_in_random_schedules() {
    let many = Scenario { callers: &[Claim, ClaimAndRelease, Look, Claim], leavers: &[0, 3], ..EVERYTHING };
    holds_in_samples(&Scenario { leavers: &[0, 1, 3], preemptions: 100, ..many.clone() });
    holds_in_samples(&Scenario { preemptions: 100, ..many });
    let held = Scenario { callers: &[ReleaseHeldAndClaim, Claim, Look, ClaimAndRelease], leavers: &[1], ..EVERYTHING };
    holds_in_samples(&Scenario { preemptions: 100, panics: 2, ..held });
}

#[test]
fn s16_the_life_check_is_needed() {
    is_found(&RELEASED_IN_PANIC, ProtocolRule::LifeCheck);
}

#[test]
fn n1_bounds_are_published_before_delivery() {
    is_found(&RELEASES, ProtocolRule::BoundsBeforeDelivery);
}

#[test]
fn k1_delivery_precedes_the_replies() {
    is_found(&RELEASES, ProtocolRule::DeliveryBeforeReplies);
}

#[test]
fn c12_the_roll_back_at_close_is_needed() {
    is_found(&LEAVES_ALONE, ProtocolRule::RollbackOnClose);
}

/// Two shards that panic one after the other had both granted the key, and nobody knew of either claim. The shard that
/// is back first holds the lower fence, and serves when the other takes the key over.
#[test]
fn c12_k1_a_claim_that_two_panics_left_to_nobody_is_relinquished() {
    let callers = &[ReleaseHeldAndClaim, Claim, Look, ClaimAndRelease];
    let scenario = Scenario { callers, leavers: &[1], preemptions: 100, panics: 2, ..EVERYTHING };
    let choices = [0, 0, 0, 0, 3, 2, 1, 1, 3, 1, 1, 2, 2, 1, 0, 0, 2, 1, 1, 0, 0, 2, 1];
    assert!(replay(&scenario, None, &choices).is_ok());
}

/// A claim that the next life still holds is shown to a caller that has left, before its roll-back is decided.
#[test]
fn c12_a_reply_that_nobody_reads_keeps_no_claim() {
    let callers = &[Claim, ClaimAndRelease, Look, Claim];
    let scenario = Scenario { callers, leavers: &[0, 3], preemptions: 100, ..EVERYTHING };
    let choices = [1, 0, 2, 1, 3, 1, 4, 0, 4, 2, 2, 1, 0, 0];
    assert!(replay(&scenario, None, &choices).is_ok());
}
