use std::time::{Duration, Instant};

use hotpool::api::grpc::proto::take_claim_request::Candidates;
use hotpool::api::grpc::proto::*;
use tonic::Code;

use super::grpc_client::{GrpcClient, Raw, expect, framed, put_pool, register, status, take};
use crate::server::with_pool;

/// Claim that waits for preferred nodes.
fn then_wait(nodes: &[&str], ms: u64, preferred: &[&str]) -> TakeClaimRequest {
    let names = |names: &[&str]| names.iter().map(ToString::to_string).collect();
    let preferred_then_wait = Some(PreferredThenWait { nodes: names(nodes), ms });
    let node = NodeChoice { preferred: names(preferred), preferred_then_wait, ..NodeChoice::default() };
    TakeClaimRequest { node: Some(node), ..take("k") }
}

#[tokio::test]
async fn every_bad_field_is_named() {
    let (_dir, server, mut http) = with_pool(1);
    let mut grpc = GrpcClient::open(server.address).await;
    let long = "x".repeat(300);
    let claims: Vec<(TakeClaimRequest, &str)> = vec![
        (TakeClaimRequest::default(), "namespace"),
        (TakeClaimRequest { namespace: String::new(), ..take("k") }, "namespace"),
        (TakeClaimRequest { candidates: None, ..take("k") }, "pool"),
        (TakeClaimRequest { candidates: Some(Candidates::Pool("a/b".into())), ..take("k") }, "pool"),
        (take(""), "key"),
        (take(&long), "key"),
        (take("a b"), "key"),
        (TakeClaimRequest { tenant: Some(String::new()), ..take("k") }, "tenant"),
        (TakeClaimRequest { affinity: Some(String::new()), ..take("k") }, "affinity"),
        (TakeClaimRequest { reserve_ms: Some(u64::MAX), ..take("k") }, "reserve_ms"),
        (TakeClaimRequest { ack: 7, ..take("k") }, "ack"),
        (TakeClaimRequest { ack: Ack::Memory as i32, ..take("k") }, "ack"),
        (TakeClaimRequest { wait_ms: Some(86_400_001), ..take("k") }, "wait_ms"),
        (TakeClaimRequest { priority: Some(1_001), ..take("k") }, "priority"),
        (TakeClaimRequest { priority: Some(-1), ..take("k") }, "priority"),
        (then_wait(&[], 1, &[]), "node.preferred_then_wait"),
        (then_wait(&["n"], 0, &[]), "node.preferred_then_wait"),
        (then_wait(&["n"], 1, &["m"]), "node.preferred_then_wait"),
        (then_wait(&["n"], 86_400_001, &[]), "node.preferred_then_wait.ms"),
        (then_wait(&["n"; 257], 1, &[]), "node.preferred_then_wait.nodes"),
    ];
    for (request, field) in claims {
        expect(grpc.claims.take_claim(request).await, Code::InvalidArgument, None, Some(field));
    }
    let pools = [
        (PoolSpec { shards: Some(3), ..PoolSpec::default() }, "spec.shards"),
        (PoolSpec { shards: Some(0), ..PoolSpec::default() }, "spec.shards"),
        (PoolSpec { shards: Some(1 << 16), ..PoolSpec::default() }, "spec.shards"),
        (PoolSpec { mode: 9, ..PoolSpec::default() }, "spec.mode"),
        (PoolSpec { mode: Mode::Shared as i32, policy: Policy::Fifo as i32, ..PoolSpec::default() }, "spec.policy"),
        (PoolSpec { policy: -1, ..PoolSpec::default() }, "spec.policy"),
        (PoolSpec { class: Some(String::new()), ..PoolSpec::default() }, "spec.class"),
        (PoolSpec { labels: [("a".into(), long.clone())].into(), ..PoolSpec::default() }, "spec.labels"),
        (PoolSpec { reserve_ms: Some(86_400_001), ..PoolSpec::default() }, "spec.reserve_ms"),
        (PoolSpec { lag_max_ms: Some(0), ..PoolSpec::default() }, "spec.lag_max_ms"),
        (PoolSpec { unnamed_ms: Some(0), ..PoolSpec::default() }, "spec.unnamed_ms"),
        (PoolSpec { lost_keep_ms: Some(u64::MAX), ..PoolSpec::default() }, "spec.lost_keep_ms"),
        (PoolSpec { waiters_max: Some(1_000_001), ..PoolSpec::default() }, "spec.waiters_max"),
        (PoolSpec { waiters_tenant_max: Some(u64::MAX), ..PoolSpec::default() }, "spec.waiters_tenant_max"),
    ];
    for (spec, field) in pools {
        expect(grpc.pools.put_pool(put_pool("other", spec)).await, Code::InvalidArgument, None, Some(field));
    }
    let bad = put_pool("o/ther", PoolSpec::default());
    expect(grpc.pools.put_pool(bad).await, Code::InvalidArgument, None, Some("pool"));
    let gpu = |model: &str, count| Capacity { gpu: Some(Gpu { model: model.into(), count }), ..Capacity::default() };
    let workers = [
        (WorkerSpec::default(), "worker.id"),
        (WorkerSpec { id: "w:1".into(), ..WorkerSpec::default() }, "worker.id"),
        (WorkerSpec { id: "w".into(), node: Some(String::new()), ..WorkerSpec::default() }, "worker.node"),
        (WorkerSpec { id: "w".into(), incarnation: 1 << 53, ..WorkerSpec::default() }, "worker.incarnation"),
        (
            WorkerSpec {
                id: "w".into(),
                capacity: Some(Capacity { slots: 1 << 53, ..Capacity::default() }),
                ..WorkerSpec::default()
            },
            "worker.capacity.slots",
        ),
        (
            WorkerSpec { id: "w".into(), capacity: Some(gpu("a", 0)), ..WorkerSpec::default() },
            "worker.capacity.gpu.count",
        ),
        (
            WorkerSpec { id: "w".into(), capacity: Some(gpu("", 1)), ..WorkerSpec::default() },
            "worker.capacity.gpu.model",
        ),
    ];
    for (worker, field) in workers {
        let request = RegisterWorkerRequest { worker: Some(worker), ..register("") };
        expect(grpc.workers.register_worker(request).await, Code::InvalidArgument, None, Some(field));
    }
    let none = RegisterWorkerRequest { worker: None, ..register("") };
    expect(grpc.workers.register_worker(none).await, Code::InvalidArgument, None, Some("worker"));

    for (mode, items, field) in [
        (BatchMode::Unspecified as i32, 0, "mode"),
        (BatchMode::AllOrNothing as i32, 10_001, "items"),
        (9, 0, "mode"),
        (BatchMode::Independent as i32, 10_001, "items"),
        (BatchMode::Independent as i32, 100_000, "body"),
    ] {
        let request = BatchTakeClaimsRequest { mode, items: vec![TakeClaimRequest::default(); items] };
        expect(grpc.claims.batch_take_claims(request).await, Code::InvalidArgument, None, Some(field));
    }
    let workers = vec![WorkerSpec::default(); 10_001];
    let request = BatchRegisterWorkersRequest { namespace: "ns".into(), pool: "warm".into(), workers };
    expect(grpc.workers.batch_register_workers(request).await, Code::InvalidArgument, None, Some("workers"));

    let release =
        |fence, phase| ReleaseClaimRequest { namespace: "ns".into(), key: "k".into(), tenant: None, fence, phase };
    for (request, field) in [(release(1 << 53, 0), "fence"), (release(1, 9), "phase")] {
        expect(grpc.claims.release_claim(request).await, Code::InvalidArgument, None, Some(field));
    }
    let lists = [
        (ListClaimsRequest { pool: Some("warm".into()), ..ListClaimsRequest::default() }, "namespace"),
        (ListClaimsRequest { tenant: Some(String::new()), ..ListClaimsRequest::default() }, "tenant"),
        (ListClaimsRequest { limit: Some(0), ..ListClaimsRequest::default() }, "limit"),
        (ListClaimsRequest { limit: Some(1_001), ..ListClaimsRequest::default() }, "limit"),
        (ListClaimsRequest { page_token: Some("/".into()), ..ListClaimsRequest::default() }, "page_token"),
    ];
    for (request, field) in lists {
        expect(grpc.claims.list_claims(request).await, Code::InvalidArgument, None, Some(field));
    }
    // None of these requests had an effect.
    http.get("/v1/pools/ns/other").expect_error(404, "NOT_FOUND", None, None);
    assert_eq!(http.get("/v1/pools/ns/warm").expect(200)["pool"]["workers"]["total"], 1);
    assert_eq!(http.get("/v1/claims").expect(200)["items"], serde_json::json!([]));
}

#[tokio::test]
async fn every_error_has_its_code_and_reason() {
    let (_dir, server, _http) = with_pool(1);
    let mut grpc = GrpcClient::open(server.address).await;
    // Unknown objects.
    let elsewhere = TakeClaimRequest { candidates: Some(Candidates::Pool("none".into())), ..take("k") };
    expect(grpc.claims.take_claim(elsewhere).await, Code::NotFound, None, None);
    let get = GetClaimRequest { namespace: "ns".into(), key: "k".into(), tenant: None };
    expect(grpc.claims.get_claim(get).await, Code::NotFound, None, None);
    let get = GetWorkerRequest { namespace: "ns".into(), pool: "warm".into(), id: "none".into() };
    expect(grpc.workers.get_worker(get).await, Code::NotFound, None, None);
    let get = GetPoolRequest { namespace: "ns".into(), pool: "none".into() };
    expect(grpc.pools.get_pool(get).await, Code::NotFound, None, None);
    // No capacity.
    let held = grpc.claims.take_claim(take("a")).await.unwrap().into_inner().claim.unwrap();
    expect(grpc.claims.take_claim(take("b")).await, Code::ResourceExhausted, Some("POOL_EXHAUSTED"), None);
    // Stale fence.
    let fence = held.fence - 1;
    let release = ReleaseClaimRequest { namespace: "ns".into(), key: "a".into(), tenant: None, fence, phase: 0 };
    expect(grpc.claims.release_claim(release).await, Code::Aborted, Some("FENCE"), None);
    let confirm = ConfirmClaimRequest { namespace: "ns".into(), key: "a".into(), tenant: None, fence };
    expect(grpc.claims.confirm_claim(confirm).await, Code::Aborted, Some("FENCE"), None);
    // State that does not allow it.
    let delete = DeletePoolRequest { namespace: "ns".into(), pool: "warm".into(), force: false };
    expect(grpc.pools.delete_pool(delete).await, Code::FailedPrecondition, Some("STATE"), None);
    let other = put_pool("warm", PoolSpec { shards: Some(8), ..PoolSpec::default() });
    expect(grpc.pools.put_pool(other).await, Code::FailedPrecondition, Some("STATE"), None);
    // Timeout: half a message, whose end does not arrive within the caller's own deadline.
    let mut raw = Raw::open(server.address).await;
    let begun = Instant::now();
    let half = framed(&take("late"))[..10].to_vec();
    let late = raw.begin("/hotpool.v1.ClaimService/TakeClaim", &[("grpc-timeout", "20m")], half).await;
    expect::<()>(Err(status(late).await), Code::DeadlineExceeded, None, None);
    assert!(begun.elapsed() < Duration::from_secs(5), "the service's own limit is 10 s");
    // Unknown methods.
    for path in ["/hotpool.v1.ClaimService/Frobnicate", "/hotpool.v2.ClaimService/TakeClaim", "/", "/v1/claims"] {
        let status = raw.call(path, &[], framed(&take("k"))).await;
        assert_eq!(status.code(), Code::Unimplemented, "{path}: {status:?}");
    }
}
