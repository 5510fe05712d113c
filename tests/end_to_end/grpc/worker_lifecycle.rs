//! Worker life cycle, two-phase release and renewals over gRPC, with their errors.

use hotpool::api::grpc::proto::batch_heartbeat_workers_response::item::Outcome as Beat;
use hotpool::api::grpc::proto::batch_register_workers_response::item::Outcome as Registered;
use hotpool::api::grpc::proto::*;
use serde_json::json;
use tonic::Code;

use super::grpc_client::{GrpcClient, claim_of, expect, register, take, until};
use crate::server::with_pool;

fn heartbeat(id: &str, claims: Option<&[HeldClaim]>) -> HeartbeatWorkerRequest {
    HeartbeatWorkerRequest {
        namespace: "ns".into(),
        pool: "warm".into(),
        id: id.into(),
        incarnation: 0,
        seq: None,
        claims: claims.map(|claims| HeldClaims { claims: claims.to_vec() }),
    }
}

fn held(key: &str, fence: u64) -> HeldClaim {
    HeldClaim { tenant: Some("default".into()), key: key.into(), fence }
}

impl GrpcClient {
    async fn hold(&mut self, key: &str) -> Claim {
        let request = TakeClaimRequest { reserve_ms: Some(0), ..take(key) };
        self.claims.take_claim(request).await.unwrap().into_inner().claim.unwrap()
    }

    async fn get_worker(&mut self, id: &str) -> Worker {
        let request = GetWorkerRequest { namespace: "ns".into(), pool: "warm".into(), id: id.into() };
        self.workers.get_worker(request).await.unwrap().into_inner().worker.unwrap()
    }
}

#[tokio::test]
async fn w04_a_heartbeat_confirms_and_stops_claims_and_names_its_errors() {
    let (_dir, server, _http) = with_pool(1);
    let mut grpc = GrpcClient::open(server.address).await;
    let created = grpc.claims.take_claim(take("a")).await.unwrap().into_inner().claim.unwrap();
    let named = [held("a", created.fence), held("b", 7)];
    let heartbeat_response = grpc.workers.heartbeat_worker(heartbeat("w0", Some(&named))).await.unwrap().into_inner();
    assert_eq!((heartbeat_response.claims.len(), heartbeat_response.claims[0].state()), (1, ClaimState::Active));
    assert_eq!(heartbeat_response.stop, [held("b", 7)]);
    // A late heartbeat with a lower number gets the current state, and changes nothing.
    let numbered =
        |seq, claims: &[HeldClaim]| HeartbeatWorkerRequest { seq: Some(seq), ..heartbeat("w0", Some(claims)) };
    grpc.workers.heartbeat_worker(numbered(5, &named[..1])).await.unwrap();
    let before = grpc.get_worker("w0").await;
    let late = grpc.workers.heartbeat_worker(numbered(4, &named[1..])).await.unwrap().into_inner();
    assert_eq!((late.claims.len(), late.stop.len()), (1, 0));
    assert_eq!(grpc.get_worker("w0").await, before);
    // Another incarnation, an unknown worker, and invalid heartbeats.
    let other = HeartbeatWorkerRequest { incarnation: 1, ..heartbeat("w0", None) };
    expect(grpc.workers.heartbeat_worker(other).await, Code::FailedPrecondition, Some("STATE"), None);
    expect(grpc.workers.heartbeat_worker(heartbeat("none", None)).await, Code::NotFound, None, None);
    let many = vec![held("k", 1); 100_000];
    for (request, field) in [
        (heartbeat("w 0", None), "id"),
        (heartbeat("w0", Some(&many)), "claims"),
        (heartbeat("w0", Some(&[held("a", 1), held("", 1)])), "claims[1].key"),
        (heartbeat("w0", Some(&[held("a", 1 << 53)])), "claims[0].fence"),
    ] {
        expect(grpc.workers.heartbeat_worker(request).await, Code::InvalidArgument, None, Some(field));
    }
    assert_eq!(grpc.get_worker("w0").await, before);
}

#[tokio::test]
async fn w04_heartbeats_in_one_call_have_separate_outcomes() {
    let (_dir, server, _http) = with_pool(3);
    let mut grpc = GrpcClient::open(server.address).await;
    let claim = grpc.hold("a").await;
    let holder = claim.worker.as_str();
    let idle = if holder == "w1" { "w2" } else { "w1" };
    let of = |id: &str, claims: Option<&[HeldClaim]>| {
        let HeartbeatWorkerRequest { id, incarnation, seq, claims, .. } = heartbeat(id, claims);
        WorkerHeartbeat { id, incarnation, seq, claims }
    };
    let named = [held("a", claim.fence)];
    let workers = vec![
        of(holder, Some(&named)),
        of("none", None),
        of("w:1", None),
        of(idle, Some(&named)),
        WorkerHeartbeat { incarnation: 3, ..of(idle, None) },
        of(idle, Some(&[held("", 1)])),
        of(idle, Some(&vec![held("k", 1); 10_001])),
        of(idle, Some(&[])),
    ];
    let batch = |workers| BatchHeartbeatWorkersRequest { namespace: "ns".into(), pool: "warm".into(), workers };
    let items = grpc.workers.batch_heartbeat_workers(batch(workers)).await.unwrap().into_inner().items;
    let late = [9, 8].map(|seq| WorkerHeartbeat { seq: Some(seq), ..of(idle, None) }).to_vec();
    let late = grpc.workers.batch_heartbeat_workers(batch(late)).await.unwrap().into_inner().items;
    let ignored = |item: &hotpool::api::grpc::proto::batch_heartbeat_workers_response::Item| match &item.outcome {
        Some(Beat::Heard(heartbeat_response)) => (heartbeat_response.ignored, heartbeat_response.last_seq),
        other => panic!("{other:?}"),
    };
    assert_eq!(late.iter().map(ignored).collect::<Vec<_>>(), [(false, None), (true, Some(9))]);
    let response: Vec<_> = items
        .into_iter()
        .map(|item| match item.outcome.unwrap() {
            Beat::Heard(heartbeat_response) => {
                (0, heartbeat_response.claims.len(), heartbeat_response.stop, String::new())
            }
            Beat::Error(error) => (error.code, 0, Vec::new(), error.field),
        })
        .collect();
    let bad = |code: Code, field: &str| (code as i32, 0, Vec::new(), field.to_owned());
    let good = |claims, stop: &[HeldClaim]| (0, claims, stop.to_vec(), String::new());
    assert_eq!(
        response,
        [
            good(1, &[]),
            bad(Code::NotFound, ""),
            bad(Code::InvalidArgument, "workers[2].id"),
            good(0, &named),
            bad(Code::FailedPrecondition, ""),
            bad(Code::InvalidArgument, "workers[5].claims[0].key"),
            bad(Code::InvalidArgument, "workers[6].claims"),
            good(0, &[]),
        ]
    );
    assert!(grpc.workers.batch_heartbeat_workers(batch(Vec::new())).await.unwrap().into_inner().items.is_empty());
    let too_many = batch(vec![of("w0", None); 10_001]);
    expect(grpc.workers.batch_heartbeat_workers(too_many).await, Code::InvalidArgument, None, Some("workers"));
    let nowhere = BatchHeartbeatWorkersRequest { pool: "none".into(), ..batch(vec![of("w0", None)]) };
    expect(grpc.workers.batch_heartbeat_workers(nowhere).await, Code::NotFound, None, None);
}

#[tokio::test]
async fn w03_cordon_uncordon_drain_and_clear() {
    let (_dir, server, _http) = with_pool(1);
    let mut grpc = GrpcClient::open(server.address).await;
    let (namespace, pool, id) = (|| "ns".to_owned(), || "warm".to_owned(), || "w0".to_owned());
    let cordon = || CordonWorkerRequest { namespace: namespace(), pool: pool(), id: id() };
    let uncordon = || UncordonWorkerRequest { namespace: namespace(), pool: pool(), id: id() };
    for _ in 0..2 {
        let cordoned = grpc.workers.cordon_worker(cordon()).await.unwrap().into_inner().worker.unwrap();
        assert_eq!((cordoned.schedulability(), cordoned.occupancy()), (Schedulability::Cordoned, Occupancy::Idle));
    }
    expect(grpc.claims.take_claim(take("a")).await, Code::ResourceExhausted, Some("POOL_EXHAUSTED"), None);
    let open = grpc.workers.uncordon_worker(uncordon()).await.unwrap().into_inner().worker.unwrap();
    assert_eq!(open.schedulability(), Schedulability::Open);
    grpc.hold("a").await;
    let drain = DrainWorkerRequest { namespace: namespace(), pool: pool(), id: id() };
    let draining = grpc.workers.drain_worker(drain).await.unwrap().into_inner().worker.unwrap();
    assert_eq!((draining.schedulability(), draining.claims.len()), (Schedulability::Draining, 1));
    expect(grpc.workers.uncordon_worker(uncordon()).await, Code::FailedPrecondition, Some("STATE"), None);
    let nobody = CordonWorkerRequest { id: "none".into(), ..cordon() };
    expect(grpc.workers.cordon_worker(nobody).await, Code::NotFound, None, None);
    let wrong = ClearWorkerRequest { namespace: namespace(), pool: pool(), id: "w 0".into() };
    expect(grpc.workers.clear_worker(wrong).await, Code::InvalidArgument, None, Some("id"));
}

#[tokio::test]
async fn w05_a_release_in_two_phases_times_out_and_workers_are_cleared() {
    let (_dir, server, mut http) = with_pool(2);
    let mut grpc = GrpcClient::open(server.address).await;
    let release = |claim: &Claim, phase: ReleasePhase| ReleaseClaimRequest {
        namespace: "ns".into(),
        key: claim.key.clone(),
        tenant: None,
        fence: claim.fence,
        phase: phase as i32,
    };
    let get = |key: &str| GetClaimRequest { namespace: "ns".into(), key: key.into(), tenant: None };
    // Release in time.
    http.put("/v1/pools/ns/warm", &json!({"shards": 4})).expect(200);
    let a = grpc.hold("a").await;
    grpc.claims.release_claim(release(&a, ReleasePhase::Begin)).await.unwrap();
    let shown = claim_of(grpc.claims.get_claim(get("a")).await.unwrap().into_inner());
    assert_eq!((shown.state(), shown.fence), (ClaimState::Releasing, a.fence));
    expect(grpc.claims.take_claim(take("a")).await, Code::FailedPrecondition, Some("RELEASING"), None);
    let wrong = ReleaseClaimRequest { fence: a.fence - 1, ..release(&a, ReleasePhase::Finish) };
    expect(grpc.claims.release_claim(wrong).await, Code::Aborted, Some("FENCE"), None);
    grpc.claims.release_claim(release(&a, ReleasePhase::Finish)).await.unwrap();
    expect(grpc.claims.get_claim(get("a")).await, Code::NotFound, None, None);
    assert_eq!(grpc.get_worker(&a.worker).await.trust(), Trust::Trusted);
    // Release too late: the workers are suspect until they are cleared, one by one or all together.
    http.put("/v1/pools/ns/warm", &json!({"shards": 4, "releasing_ms": 1})).expect(200);
    let (b, c) = (grpc.hold("b").await, grpc.hold("c").await);
    for claim in [&b, &c] {
        grpc.claims.release_claim(release(claim, ReleasePhase::Begin)).await.unwrap();
        until("the clean-up times out", async || grpc.claims.get_claim(get(&claim.key)).await.is_err()).await;
        assert_eq!(grpc.get_worker(&claim.worker).await.trust(), Trust::Suspect);
    }
    expect(grpc.claims.take_claim(take("d")).await, Code::ResourceExhausted, Some("POOL_EXHAUSTED"), None);
    let clear = ClearWorkerRequest { namespace: "ns".into(), pool: "warm".into(), id: b.worker.clone() };
    let cleared = grpc.workers.clear_worker(clear).await.unwrap().into_inner().worker.unwrap();
    assert_eq!(cleared.trust(), Trust::Trusted);
    let all = ClearPoolRequest { namespace: "ns".into(), pool: "warm".into() };
    let cleared = grpc.pools.clear_pool(all.clone()).await.unwrap().into_inner();
    assert_eq!((cleared.cleared, cleared.suspect), (1, 0));
    assert_eq!(grpc.pools.clear_pool(all).await.unwrap().into_inner().cleared, 0);
    assert_eq!(grpc.get_worker(&c.worker).await.trust(), Trust::Trusted);
    grpc.hold("d").await;
    grpc.hold("e").await;
    let nowhere = ClearPoolRequest { namespace: "ns".into(), pool: "none".into() };
    expect(grpc.pools.clear_pool(nowhere).await, Code::NotFound, None, None);
}

#[tokio::test]
async fn c10_a_claim_with_a_ttl_is_renewed() {
    let (_dir, server, _http) = with_pool(1);
    let mut grpc = GrpcClient::open(server.address).await;
    let year: u64 = 365 * 86_400_000;
    for ttl_ms in [0, year, u64::MAX] {
        let request = TakeClaimRequest { ttl_ms: Some(ttl_ms), ..take("a") };
        expect(grpc.claims.take_claim(request).await, Code::InvalidArgument, None, Some("ttl_ms"));
    }
    let created = TakeClaimRequest { ttl_ms: Some(3_600_000), ..take("a") };
    let created = grpc.claims.take_claim(created).await.unwrap().into_inner().claim.unwrap();
    let renew =
        |fence, ttl_ms| RenewClaimRequest { namespace: "ns".into(), key: "a".into(), tenant: None, fence, ttl_ms };
    expect(grpc.claims.renew_claim(renew(created.fence, None)).await, Code::FailedPrecondition, Some("STATE"), None);
    let (namespace, key, fence) = ("ns".into(), "a".into(), created.fence);
    let confirmed = ConfirmClaimRequest { namespace, key, tenant: None, fence };
    let confirmed = grpc.claims.confirm_claim(confirmed).await.unwrap().into_inner().claim.unwrap();
    let renewed = grpc.claims.renew_claim(renew(fence, Some(7_200_000))).await.unwrap().into_inner().claim.unwrap();
    assert!(renewed.expires_at_ms.unwrap() >= confirmed.expires_at_ms.unwrap() + 3_500_000);
    expect(grpc.claims.renew_claim(renew(fence, Some(year))).await, Code::InvalidArgument, None, Some("ttl_ms"));
    expect(grpc.claims.renew_claim(renew(fence - 1, None)).await, Code::Aborted, Some("FENCE"), None);
    // Another tenant has another claim.
    let other = RenewClaimRequest { tenant: Some("acme".into()), ..renew(fence, None) };
    expect(grpc.claims.renew_claim(other).await, Code::NotFound, None, None);
    let (namespace, key, tenant) = ("ns".into(), "a".into(), Some("acme".into()));
    grpc.claims.release_claim(ReleaseClaimRequest { namespace, key, tenant, fence, phase: 0 }).await.unwrap();
    let get = GetClaimRequest { namespace: "ns".into(), key: "a".into(), tenant: None };
    assert_eq!(claim_of(grpc.claims.get_claim(get).await.unwrap().into_inner()), renewed);
}

#[tokio::test]
async fn w02_a_late_registration_does_not_restore_a_deleted_worker() {
    let (_dir, server, _http) = with_pool(1);
    let mut grpc = GrpcClient::open(server.address).await;
    let delete = DeleteWorkerRequest { namespace: "ns".into(), pool: "warm".into(), id: "w0".into() };
    grpc.workers.delete_worker(delete).await.unwrap();
    expect(grpc.workers.register_worker(register("w0")).await, Code::FailedPrecondition, Some("STATE"), None);
    expect(grpc.workers.heartbeat_worker(heartbeat("w0", None)).await, Code::NotFound, None, None);
    let of = |id: &str, incarnation| WorkerSpec { id: id.into(), incarnation, ..WorkerSpec::default() };
    let workers = vec![of("w0", 0), of("w1", 0), of("w0", 1)];
    let batch = BatchRegisterWorkersRequest { namespace: "ns".into(), pool: "warm".into(), workers };
    let items = grpc.workers.batch_register_workers(batch).await.unwrap().into_inner().items;
    let good: Vec<_> = items.iter().map(|item| matches!(item.outcome, Some(Registered::Registered(_)))).collect();
    assert_eq!(good, [false, true, true]);
}
