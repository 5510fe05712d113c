//! W09, W10, Q12: agents that restart and count from 1, that never report a claim, or that never come back.

use hotpool::model::request_error::{ObjectKind, RequestError};
use hotpool::model::{
    AckLevel, ClaimRequest, ClaimState, HeartbeatRequest, LivenessState, PoolSpec, RegistrationRequest, TrustState,
    WorkerCommand, WorkerId,
};

use crate::heartbeats::running;
use crate::shared_pool_helpers::{cpu, shared, sized};
use crate::world::{FULL, World, done, id, name, request, spec, worker};

const GONE: RequestError = RequestError::NotFound(ObjectKind::Claim);
const NO_WORKER: RequestError = RequestError::NotFound(ObjectKind::Worker);

/// Pool whose workers may omit a claim from their lists for 2 s before they reported it, and for 0.5 s after that.
fn quick() -> PoolSpec {
    PoolSpec { reserve_ms: 1_000, heartbeat_ttl_ms: 1_000, ..spec(1, AckLevel::Durable) }
}

fn w() -> WorkerId {
    WorkerId::new("w").unwrap()
}

fn numbered(seq: u64, claims: &[(&str, u64)]) -> HeartbeatRequest {
    HeartbeatRequest { incarnation: 0, seq: Some(seq), claims: Some(running(claims)) }
}

impl World {
    async fn take_at_once(&self, key: &str) -> u64 {
        let request = ClaimRequest { reserve_ms: Some(0), ..request("p", key) };
        self.s.claim(request).await.unwrap().claim.fence
    }

    /// Reports these claims repeatedly for `ms`.
    async fn report_for(&self, ms: u64, claims: &[(&str, u64)]) {
        for _ in 0..ms / 200 {
            self.pass(200).await;
            self.heartbeat("w", Some(claims)).await;
        }
    }

    /// Registers the worker again without mentioning claims.
    async fn register_again(&self) {
        assert!(!self.s.register(&name("p"), worker("w")).await.unwrap().created);
    }
}

#[tokio::test]
async fn w10_a_claim_that_is_never_reported_ends_after_the_grace_and_frees_its_worker() {
    let world = World::on_memory().await;
    world.pool("p", quick(), &["w"]).await;
    for confirmed in [false, true] {
        world.heartbeat("w", Some(&[])).await;
        if confirmed {
            world.hold("p", "k").await
        } else {
            world.take_at_once("k").await
        };
        world.heartbeat("w", Some(&[])).await;
        world.report_for(1_800, &[]).await;
        assert_eq!(world.state("k").await, ClaimState::Active, "the grant may not have reached the worker yet");
        world.report_for(200, &[]).await;
        assert_eq!(world.s.get_claim(&id("k")).await, Err(GONE), "confirmed by its holder: {confirmed}");
        assert_eq!((world.counts("p").await, world.view_worker("w").await.trust), ((1, 0, 0), TrustState::Trusted));
    }
}

#[tokio::test]
async fn w10_of_two_claims_on_a_shared_worker_the_unreported_one_ends() {
    let world = World::on_memory().await;
    let spec =
        PoolSpec { reserve_ms: 1_000, heartbeat_ttl_ms: 1_000, ..shared(1, hotpool::model::PlacementPolicy::BestFit) };
    world.shared(spec, vec![sized("w", 4_000, None)]).await;
    let named = world.share("named", &cpu(1_000)).await.unwrap().claim.fence;
    world.share("silent", &cpu(3_000)).await.unwrap();
    world.heartbeat("w", Some(&[("named", named)])).await;
    world.report_for(2_000, &[("named", named)]).await;
    assert_eq!(world.s.get_claim(&id("silent")).await, Err(GONE));
    assert_eq!(world.state("named").await, ClaimState::Active);
    world.share("next", &cpu(3_000)).await.unwrap();
}

#[tokio::test]
async fn w10_a_registration_with_claims_is_a_full_list_too() {
    let world = World::on_memory().await;
    world.pool("p", quick(), &["w"]).await;
    world.take_at_once("k").await;
    let nothing = || RegistrationRequest { claims: Some(Vec::new()), ..worker("w").into() };
    world.s.register(&name("p"), nothing()).await.unwrap();
    world.pass(2_000).await;
    assert_eq!(world.s.get_claim(&id("k")).await, Err(GONE), "it never sent a heartbeat, and needs none");
    assert_eq!(world.counts("p").await, (1, 0, 0));
}

#[tokio::test]
async fn w09_a_registration_restarts_the_count_of_heartbeats() {
    let world = World::on_memory().await;
    world.pool("p", quick(), &["w"]).await;
    let fence = world.hold("p", "k").await;
    let batch = || vec![worker("w").into()];
    for in_a_batch in [false, true] {
        for seq in 1_000..1_004 {
            world.try_heartbeat("w", numbered(seq, &[("k", fence)])).await.unwrap();
        }
        // Nothing differs from the registration before.
        if in_a_batch {
            world.s.register_batch(&name("p"), batch()).await.unwrap().remove(0).unwrap();
        } else {
            world.register_again().await;
        }
        for seq in 1..=8 {
            world.try_heartbeat("w", numbered(seq, &[("k", fence)])).await.unwrap();
            world.pass(400).await;
        }
        assert_eq!(
            (world.state("k").await, world.view_worker("w").await.liveness),
            (ClaimState::Active, LivenessState::Live)
        );
    }
}

#[tokio::test]
async fn w09_a_registration_ends_lost_and_restarts_the_silence_but_not_the_trust() {
    let world = World::on_memory().await;
    world.pool("p", quick(), &["w"]).await;
    world.heartbeat("w", None).await;
    world.pass(1_000).await;
    assert_eq!((world.view_worker("w").await.liveness, world.counts("p").await), (LivenessState::Lost, (0, 0, 0)));
    world.register_again().await;
    assert_eq!((world.view_worker("w").await.liveness, world.counts("p").await), (LivenessState::Live, (1, 0, 0)));
    world.pass(999).await;
    assert_eq!(world.view_worker("w").await.liveness, LivenessState::Live);
    world.pass(1).await;
    assert_eq!(world.view_worker("w").await.liveness, LivenessState::Lost, "it was silent again");
    // Its claims may still run, and a registration without claims says nothing about them.
    world.register_again().await;
    world.hold("p", "k").await;
    world.pass(1_000).await;
    world.register_again().await;
    let back = world.view_worker("w").await;
    assert_eq!(
        (back.liveness, back.trust, world.claim("p", "l").await),
        (LivenessState::Live, TrustState::Suspect, Err(FULL))
    );
    world.heartbeat("w", Some(&[])).await;
    world.hold("p", "l").await;
}

#[tokio::test]
async fn q12_a_lost_idle_worker_is_deleted_after_a_while_and_may_return() {
    let world = World::on_store().await;
    world.pool("p", quick(), &["w"]).await;
    world.heartbeat("w", None).await;
    world.hold("p", "k").await;
    world.pass(1_000).await;
    world.pass(599_999).await;
    assert_eq!(world.view_worker("w").await.liveness, LivenessState::Lost);
    world.pass(1).await;
    assert_eq!(world.s.get_worker(&name("p"), &w()).await, Err(NO_WORKER));
    assert_eq!(world.shards("p").await[0].workers, 0);
    assert_eq!(world.try_heartbeat("w", numbered(1, &[])).await, Err(NO_WORKER), "a heartbeat does not bring it back");
    // The worker was only silent and not deleted by an operator, so its next registration is accepted.
    world.add("p", &["w"]).await;
    world.hold("p", "k").await;
    let world = world.restarted().await;
    assert_eq!((world.counts("p").await, world.view_worker("w").await.liveness), ((0, 1, 0), LivenessState::Live));
}

#[tokio::test]
async fn w10_a_claim_reported_within_the_grace_stays_and_has_the_short_grace_from_then_on() {
    let world = World::on_memory().await;
    world.pool("p", PoolSpec { unnamed_ms: Some(5_000), ..quick() }, &["w"]).await;
    let fence = world.take_at_once("k").await;
    world.heartbeat("w", Some(&[])).await;
    world.report_for(4_600, &[]).await;
    world.report_for(6_000, &[("k", fence)]).await;
    assert_eq!(world.state("k").await, ClaimState::Active);
    world.heartbeat("w", Some(&[])).await;
    world.pass(499).await;
    assert_eq!(world.state("k").await, ClaimState::Active);
    world.pass(1).await;
    assert_eq!(world.s.get_claim(&id("k")).await, Err(GONE), "half of the time of silence, as before");
}

#[tokio::test]
async fn w10_a_confirm_or_a_renew_restarts_the_grace() {
    let world = World::on_memory().await;
    world.pool("p", quick(), &["w"]).await;
    let fence = world.take_at_once("k").await;
    world.heartbeat("w", Some(&[])).await;
    for confirms in [true, false, true] {
        world.report_for(1_800, &[]).await;
        if confirms {
            world.s.confirm(&id("k"), fence).await.unwrap();
        } else {
            world.s.renew(&id("k"), fence, None).await.unwrap();
        }
        world.heartbeat("w", Some(&[])).await;
    }
    world.report_for(1_800, &[]).await;
    assert_eq!(world.state("k").await, ClaimState::Active);
    world.report_for(200, &[]).await;
    assert_eq!(world.s.get_claim(&id("k")).await, Err(GONE));
    assert_eq!(world.s.renew(&id("k"), fence, None).await, Err(GONE), "its holder learns of it");
}

#[tokio::test]
async fn w10_a_claim_that_is_being_prepared_or_cleaned_does_not_end() {
    let world = World::on_memory().await;
    let slow = PoolSpec { reserve_ms: 30_000, releasing_ms: 30_000, unnamed_ms: Some(1), ..quick() };
    world.pool("p", slow, &["w"]).await;
    let fence = world.claim("p", "k").await.unwrap().claim.fence;
    world.heartbeat("w", Some(&[])).await;
    world.report_for(29_800, &[]).await;
    assert_eq!(world.state("k").await, ClaimState::Reserved);
    world.s.begin_release(&id("k"), fence).await.unwrap();
    world.report_for(29_800, &[]).await;
    assert_eq!(world.state("k").await, ClaimState::Releasing);
    world.s.release(&id("k"), fence).await.unwrap();
    assert_eq!(world.counts("p").await, (1, 0, 0));
}

/// W05: a claim that was missing from a list just before its clean-up began keeps its worker until the clean-up ends.
#[tokio::test]
async fn w10_a_clean_up_that_began_within_the_grace_does_not_end() {
    let world = World::on_memory().await;
    world.pool("p", PoolSpec { releasing_ms: 30_000, ..quick() }, &["w"]).await;
    for named in [false, true] {
        let fence = world.take_at_once("k").await;
        if named {
            world.heartbeat("w", Some(&[("k", fence)])).await;
        }
        world.heartbeat("w", Some(&[])).await;
        world.s.begin_release(&id("k"), fence).await.unwrap();
        world.report_for(10_000, &[]).await;
        assert_eq!(world.state("k").await, ClaimState::Releasing, "named before: {named}");
        assert_eq!(world.claim("p", "other").await, Err(FULL));
        world.s.release(&id("k"), fence).await.unwrap();
    }
}

/// A member is not disclosed before its gang is committed, so no list can contain it.
#[tokio::test]
async fn w10_a_gang_that_is_not_committed_yet_does_not_end() {
    let world = World::on_store().await;
    world.pool("p", PoolSpec { unnamed_ms: Some(1), ..quick() }, &["w", "v"]).await;
    world.stored("p").await;
    world.gate().hold_all();
    let at_once = |key| ClaimRequest { reserve_ms: Some(0), ..request("p", key) };
    let begun =
        world.begin(move |s| Box::pin(async move { s.claim_gang(vec![at_once("a"), at_once("b")]).await })).await;
    world.gate().stopped().await;
    let list = world.begin(|s| Box::pin(async move { s.heartbeat(&name("p"), &w(), numbered(1, &[])).await })).await;
    world.pass(400).await;
    assert_eq!(world.counts("p").await, (0, 2, 0));
    world.gate().open_gate();
    done(list).await.unwrap();
    let outcomes = done(begun).await;
    assert!(outcomes.iter().all(Result::is_ok), "{outcomes:?}");
    assert_eq!(world.counts("p").await, (0, 2, 0));
}

#[tokio::test]
async fn w10_a_restart_restarts_the_grace_and_shorter_times_of_the_pool_apply_to_the_next_list() {
    let world = World::on_store().await;
    world.pool("p", quick(), &["w"]).await;
    world.take_at_once("k").await;
    world.heartbeat("w", Some(&[])).await;
    world.report_for(1_800, &[]).await;
    let world = world.crashed().await;
    world.heartbeat("w", Some(&[])).await;
    world.report_for(1_800, &[]).await;
    assert_eq!(world.state("k").await, ClaimState::Active);
    world.report_for(200, &[]).await;
    assert_eq!(world.s.get_claim(&id("k")).await, Err(GONE));
    // Once reported, it has half a day.
    let day = PoolSpec { heartbeat_ttl_ms: 86_400_000, ..quick() };
    world.s.put_pool(name("p"), day).await.unwrap();
    let fence = world.hold("p", "l").await;
    world.heartbeat("w", Some(&[("l", fence)])).await;
    world.heartbeat("w", Some(&[])).await;
    world.s.put_pool(name("p"), quick()).await.unwrap();
    world.heartbeat("w", Some(&[])).await;
    world.pass(500).await;
    assert_eq!(world.s.get_claim(&id("l")).await, Err(GONE));
}

#[tokio::test]
async fn w09_an_ignored_heartbeat_says_so_and_what_it_has_to_exceed() {
    let world = World::on_memory().await;
    world.pool("p", quick(), &["w"]).await;
    let fence = world.hold("p", "k").await;
    let named: &[(&str, u64)] = &[("k", fence)];
    let late_for = async |seq| world.try_heartbeat("w", numbered(seq, named)).await.unwrap().superseded_by;
    assert_eq!((late_for(7).await, late_for(6).await, late_for(7).await), (None, Some(7), None));
    world.register_again().await;
    assert_eq!((late_for(1).await, late_for(2).await), (None, None));
    // The number precedes the registration and arrives after it: it counts, and the response to the next one says so.
    assert_eq!((late_for(1_004).await, late_for(3).await, late_for(1_005).await), (None, Some(1_004), None));
    let pair = [3, 1_006].map(|seq| (w(), numbered(seq, named)));
    let responses = world.s.heartbeat_batch(&name("p"), pair.to_vec()).await.unwrap();
    let responses: Vec<_> = responses.into_iter().map(|response| response.unwrap().superseded_by).collect();
    assert_eq!(responses, [Some(1_005), None]);
}

#[tokio::test]
async fn q12_a_cordoned_worker_is_kept_and_a_draining_one_is_not() {
    let world = World::on_store().await;
    world.pool("p", PoolSpec { lost_keep_ms: 1_000, ..quick() }, &["w", "v"]).await;
    let command_worker =
        async |id: &str, verb| world.s.command_worker(&name("p"), &WorkerId::new(id).unwrap(), verb).await.unwrap();
    command_worker("w", WorkerCommand::Cordon).await;
    command_worker("v", WorkerCommand::Drain).await;
    world.heartbeat("w", None).await;
    world.heartbeat("v", None).await;
    world.pass(1_000).await;
    world.pass(1_000).await;
    assert_eq!(world.shards("p").await[0].workers, 1, "a cordon outlives the lives of a worker, and a drain does not");
    assert_eq!(world.view_worker("w").await.liveness, LivenessState::Lost);
    // A later cordon keeps the worker too; without it the time starts over.
    command_worker("w", WorkerCommand::Uncordon).await;
    world.pass(900).await;
    command_worker("w", WorkerCommand::Cordon).await;
    world.pass(900).await;
    command_worker("w", WorkerCommand::Uncordon).await;
    world.pass(900).await;
    world.stored("p").await;
    let world = world.crashed().await;
    world.pass(999).await;
    assert_eq!(world.shards("p").await[0].workers, 1, "a restart resets it, too");
    world.pass(1).await;
    assert_eq!(world.shards("p").await[0].workers, 0);
}

#[tokio::test]
async fn q12_the_time_for_lost_workers_may_change_and_workers_that_report_are_not_deleted() {
    let world = World::on_memory().await;
    let keep = |lost_keep_ms| PoolSpec { lost_keep_ms, ..quick() };
    world.pool("p", keep(0), &["w"]).await;
    let mut watcher = world.s.watch_pool(&name("p"), None).unwrap();
    world.heartbeat("w", None).await;
    world.pass(1_200_000).await;
    assert_eq!(world.view_worker("w").await.liveness, LivenessState::Lost, "0: for ever");
    world.s.put_pool(name("p"), keep(2_000)).await.unwrap();
    world.pass(1_999).await;
    world.heartbeat("w", None).await;
    world.pass(1_000).await;
    world.pass(1_999).await;
    assert_eq!(world.view_worker("w").await.liveness, LivenessState::Lost);
    world.pass(1).await;
    assert_eq!(world.shards("p").await[0].workers, 0);
    assert_eq!(crate::watch::read_items(&mut watcher).await.0, ["started", "lost w", "lost w", "deleted w lost"]);
}
