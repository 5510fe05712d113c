//! W02, W04, W05: heartbeats of a worker, its silence, and their effects.

use hotpool::limits;
use hotpool::model::request_error::{ObjectKind, RequestError};
use hotpool::model::{
    AckLevel, ClaimId, ClaimState, HeartbeatRequest, HeartbeatResponse, LivenessState, PoolSpec, RunningClaim,
    TrustState, WorkerId, WorkerView,
};

use crate::world::{FULL, World, id, name, spec, worker};

const GONE: RequestError = RequestError::NotFound(ObjectKind::Claim);

pub fn running(claims: &[(&str, u64)]) -> Vec<RunningClaim> {
    claims.iter().map(|(key, fence)| RunningClaim { id: id(key), fence: *fence }).collect()
}

impl World {
    pub async fn heartbeat(&self, worker: &str, claims: Option<&[(&str, u64)]>) -> HeartbeatResponse {
        self.try_heartbeat(worker, HeartbeatRequest { incarnation: 0, seq: None, claims: claims.map(running) })
            .await
            .unwrap()
    }

    pub async fn try_heartbeat(
        &self,
        worker: &str,
        heartbeat: HeartbeatRequest,
    ) -> Result<HeartbeatResponse, RequestError> {
        self.s.heartbeat(&name("p"), &WorkerId::new(worker).unwrap(), heartbeat).await
    }

    pub async fn view_worker(&self, worker: &str) -> WorkerView {
        self.s.get_worker(&name("p"), &WorkerId::new(worker).unwrap()).await.unwrap()
    }

    pub async fn state(&self, key: &str) -> ClaimState {
        self.s.get_claim(&id(key)).await.unwrap().state
    }
}

fn keys(claims: &[RunningClaim]) -> Vec<(&str, u64)> {
    claims.iter().map(|claim| (claim.id.key(), claim.fence)).collect()
}

async fn one_worker() -> World {
    let world = World::on_memory().await;
    world.pool("p", spec(1, AckLevel::Durable), &["w"]).await;
    world
}

#[tokio::test]
async fn w04_reported_claims_are_active_and_claims_no_longer_reported_end_after_a_grace() {
    let world = one_worker().await;
    let fence = world.claim("p", "k").await.unwrap().claim.fence;
    // The claim has not reached the worker yet: that it is not reported means nothing.
    let response = world.heartbeat("w", Some(&[])).await;
    assert_eq!(
        (response.claims.len(), response.claims[0].fence, response.claims[0].state),
        (1, fence, ClaimState::Reserved)
    );
    let response = world.heartbeat("w", Some(&[("k", fence)])).await;
    assert_eq!((response.claims[0].state, response.stop.len()), (ClaimState::Active, 0));
    world.pass(31_000).await;
    assert_eq!(world.state("k").await, ClaimState::Active, "it was confirmed, so it does not expire");
    // A late heartbeat says nothing, and the next one reports the claim again.
    world.heartbeat("w", Some(&[])).await;
    world.pass(29_999).await;
    world.heartbeat("w", Some(&[("k", fence)])).await;
    world.pass(29_999).await;
    assert_eq!(world.counts("p").await, (0, 1, 0));
    world.heartbeat("w", Some(&[])).await;
    world.pass(29_999).await;
    assert_eq!(world.counts("p").await, (0, 1, 0), "no heartbeat ends a claim by itself");
    world.pass(1).await;
    assert_eq!(world.counts("p").await, (1, 0, 0));
    assert_eq!(world.s.get_claim(&id("k")).await, Err(GONE));
    world.is_clean().await;
}

#[tokio::test]
async fn w04_a_late_heartbeat_changes_nothing() {
    let world = one_worker().await;
    let fence = world.hold("p", "k").await;
    let numbered = |seq, claims: &[(&str, u64)]| HeartbeatRequest {
        incarnation: 0,
        seq: Some(seq),
        claims: Some(running(claims)),
    };
    world.try_heartbeat("w", numbered(7, &[("k", fence)])).await.unwrap();
    let rows = world.rows("p").await;
    for heartbeat in [numbered(6, &[]), numbered(3, &[("other", 1)])] {
        let response = world.try_heartbeat("w", heartbeat).await.unwrap();
        assert_eq!((response.claims.len(), response.stop.len()), (1, 0), "the response lists the current claims");
    }
    world.pass(59_999).await;
    assert_eq!(world.state("k").await, ClaimState::Active);
    world.try_heartbeat("w", numbered(6, &[("k", fence)])).await.unwrap();
    assert_eq!(world.rows("p").await, rows);
    world.pass(1).await;
    assert_eq!(world.state("k").await, ClaimState::Lost, "what comes late is no sign of life");
}

#[tokio::test]
async fn w04_another_incarnation_of_the_worker_is_rejected_by_its_number() {
    let world = one_worker().await;
    let of = |incarnation| HeartbeatRequest { incarnation, seq: None, claims: Some(Vec::new()) };
    let spec = hotpool::model::WorkerSpec { incarnation: 5, ..worker("w") };
    world.s.register(&name("p"), spec).await.unwrap();
    let fence = world.hold("p", "k").await;
    let older = world.try_heartbeat("w", of(4)).await.unwrap_err().to_string();
    assert!(older.contains("at least 5"), "{older}");
    let newer = world.try_heartbeat("w", of(6)).await.unwrap_err().to_string();
    assert!(newer.contains("the last one registered is 5"), "{newer}");
    assert_eq!(world.try_heartbeat("v", of(0)).await, Err(RequestError::NotFound(ObjectKind::Worker)));
    assert_eq!(world.s.get_claim(&id("k")).await.unwrap().fence, fence);
    world.s.delete_worker(&name("p"), &WorkerId::new("w").unwrap()).await.unwrap();
    assert_eq!(
        world.try_heartbeat("w", of(5)).await,
        Err(RequestError::NotFound(ObjectKind::Worker)),
        "it does not come back by it"
    );
}

#[tokio::test]
async fn w05_a_worker_that_runs_revoked_claims_is_notified_and_unschedulable_until_it_stops_them() {
    let world = one_worker().await;
    let fence = world.hold("p", "k").await;
    world.heartbeat("w", Some(&[("k", fence)])).await;
    world.s.release(&id("k"), fence).await.unwrap();
    let response = world.heartbeat("w", Some(&[("k", fence)])).await;
    assert_eq!((response.claims.len(), keys(&response.stop)), (0, vec![("k", fence)]));
    assert_eq!((world.claim("p", "next").await, world.view_worker("w").await.busy), (Err(FULL), true));
    // It does not mention claims: nothing changes.
    world.heartbeat("w", None).await;
    assert_eq!(world.claim("p", "next").await, Err(FULL));
    // Also after a restart of the worker's registrar, which knows nothing of it.
    world.s.register(&name("p"), worker("w")).await.unwrap();
    assert_eq!(world.claim("p", "next").await, Err(FULL));
    assert_eq!(
        world.heartbeat("w", Some(&[])).await,
        HeartbeatResponse { claims: vec![], stop: vec![], superseded_by: None }
    );
    world.hold("p", "next").await;
}

#[tokio::test]
async fn w05_foreign_claims_and_stale_fences_are_revoked_without_harm() {
    let world = World::on_memory().await;
    world.pool("p", spec(2, AckLevel::Durable), &["v", "w"]).await;
    let first = world.hold("p", "k").await;
    let holder = world.s.get_claim(&id("k")).await.unwrap().worker.spec.id.to_string();
    let other = if holder == "v" { "w" } else { "v" };
    let response = world.heartbeat(other, Some(&[("k", first), ("never", 3), ("k", first + 1)])).await;
    assert_eq!(keys(&response.stop), [("k", first), ("never", 3), ("k", first + 1)]);
    let response = world.heartbeat(&holder, Some(&[("k", first - 1), ("k", first)])).await;
    assert_eq!((response.claims.len(), keys(&response.stop)), (1, vec![("k", first - 1)]));
    assert_eq!(world.s.get_claim(&id("k")).await.unwrap().fence, first);
    // The same key of another tenant is another claim.
    let tenant = ClaimId::new("ns", "acme", "k").unwrap();
    let claims = Some(vec![RunningClaim { id: tenant.clone(), fence: first }]);
    let response = world.try_heartbeat(&holder, HeartbeatRequest { incarnation: 0, seq: None, claims }).await.unwrap();
    assert_eq!(response.stop[0].id, tenant);
    assert_eq!(world.s.keys().pending_len(), 0);
}

#[tokio::test]
async fn w04_a_heartbeat_with_a_hundred_thousand_claims_is_rejected_by_name() {
    let world = one_worker().await;
    let many: Vec<RunningClaim> = (0..100_000).map(|i| RunningClaim { id: id(&format!("k{i}")), fence: i }).collect();
    let most = many[..limits::REPORTED_CLAIMS_MAX].to_vec();
    let heartbeat = |claims| HeartbeatRequest { incarnation: 0, seq: None, claims: Some(claims) };
    match world.try_heartbeat("w", heartbeat(many)).await {
        Err(RequestError::Invalid { field, message }) => {
            assert_eq!((&*field, &*message), ("claims", "must list at most 10000 claims"));
        }
        other => panic!("{other:?}"),
    }
    assert_eq!(world.claim("p", "k").await.unwrap().claim.state, ClaimState::Reserved, "nothing of it was taken");
    assert_eq!(world.try_heartbeat("w", heartbeat(most)).await.unwrap().stop.len(), limits::REPORTED_CLAIMS_MAX);
}

#[tokio::test]
async fn w02_a_silent_worker_is_lost_with_its_claims() {
    let world = World::on_store().await;
    world.pool("p", spec(1, AckLevel::Durable), &["w"]).await;
    let fence = world.hold("p", "k").await;
    world.pass(120_000).await;
    assert_eq!(world.state("k").await, ClaimState::Active, "it never sent a heartbeat: it is in its registrar's care");
    world.heartbeat("w", None).await;
    world.pass(59_999).await;
    world.heartbeat("w", None).await;
    world.pass(59_999).await;
    assert_eq!(world.state("k").await, ClaimState::Active);
    world.pass(1).await;
    let lost = world.s.get_claim(&id("k")).await.unwrap();
    assert_eq!((lost.state, lost.fence, lost.worker.spec.id.as_str()), (ClaimState::Lost, fence, "w"));
    assert_eq!(world.s.confirm(&id("k"), fence).await, Err(GONE));
    assert_eq!(world.view_worker("w").await.liveness, LivenessState::Lost);
    assert_eq!(world.shards("p").await[0].lost, 1);
    assert_eq!(world.claim("p", "other").await, Err(FULL), "it is not offered");
    // The key is free at once.
    world.add("p", &["v"]).await;
    let next = world.hold("p", "k").await;
    assert!(next > fence);
    assert_eq!(world.s.release(&id("k"), fence).await, Err(RequestError::FenceMismatch));
    // The worker comes back and still runs the claim: it is alive, but must stop it first.
    world.heartbeat("w", None).await;
    let back = world.view_worker("w").await;
    assert_eq!((back.liveness, back.trust), (LivenessState::Live, TrustState::Suspect));
    assert_eq!(world.claim("p", "other").await, Err(FULL));
    assert_eq!(keys(&world.heartbeat("w", Some(&[("k", fence)])).await.stop), [("k", fence)]);
    assert_eq!(world.claim("p", "other").await, Err(FULL));
    world.heartbeat("w", Some(&[])).await;
    world.hold("p", "other").await;
    world.s.release(&id("k"), next).await.unwrap();
    assert_eq!(world.s.get_claim(&id("k")).await, Err(GONE), "the later claim of the key was not lost");
}

#[tokio::test]
async fn w02_a_lost_claim_is_remembered_for_a_while() {
    let world = one_worker().await;
    let fence = world.hold("p", "k").await;
    world.s.delete_worker(&name("p"), &WorkerId::new("w").unwrap()).await.unwrap();
    assert_eq!(world.state("k").await, ClaimState::Lost);
    world.s.release(&id("k"), fence).await.unwrap();
    assert_eq!(world.state("k").await, ClaimState::Lost, "the release of an ended claim changes nothing");
    world.pass(limits::ENDED_CLAIMS_MS - 1).await;
    assert_eq!(world.state("k").await, ClaimState::Lost);
    world.pass(1).await;
    assert_eq!(world.s.get_claim(&id("k")).await, Err(GONE));
    world.is_clean().await;
}

#[tokio::test]
async fn s09_a_restart_restarts_every_silence_and_a_suspension_ends_none() {
    let world = World::on_store().await;
    world.pool("p", spec(1, AckLevel::Durable), &["w"]).await;
    let fence = world.hold("p", "k").await;
    world.heartbeat("w", Some(&[("k", fence)])).await;
    world.pass(50_000).await;
    // The whole machine is suspended for an hour: one tick sees all of it.
    world.clock.advance(std::time::Duration::from_secs(3_600));
    world.clock.tick();
    world.quiet().await;
    assert_eq!(world.state("k").await, ClaimState::Active);
    let world = world.crashed().await;
    world.pass(59_999).await;
    assert_eq!(world.state("k").await, ClaimState::Active);
    world.pass(1).await;
    assert_eq!(world.state("k").await, ClaimState::Lost, "it has to be reported again");
    let world = world.restarted().await;
    assert_eq!(world.view_worker("w").await.liveness, LivenessState::Lost, "a restart does not find what was lost");
    assert_eq!(world.s.get_claim(&id("k")).await, Err(GONE), "what is remembered is remembered by the process");
}

/// Heartbeats write nothing, so they are handled while the store of a durable pool is unavailable.
#[tokio::test]
async fn w04_a_heartbeat_that_says_nothing_new_writes_nothing() {
    let world = World::on_store().await;
    world.pool("p", PoolSpec { heartbeat_ttl_ms: 10_000, ..spec(1, AckLevel::Durable) }, &["w"]).await;
    let fence = world.hold("p", "k").await;
    world.heartbeat("w", Some(&[("k", fence)])).await;
    world.stored("p").await;
    let before = world.shards("p").await[0].seq;
    world.gate().hold_all();
    for _ in 0..5 {
        world.heartbeat("w", Some(&[("k", fence)])).await;
        world.pass(9_000).await;
    }
    assert_eq!(world.shards("p").await[0].seq, before);
    assert_eq!(world.state("k").await, ClaimState::Active);
}
