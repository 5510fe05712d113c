use hotpool::api::grpc::proto::batch_register_workers_response::item::Outcome as Registered;
use hotpool::api::grpc::proto::batch_take_claims_response::item::Outcome as Taken;
use hotpool::api::grpc::proto::*;
use tonic::Code;

use super::grpc_client::{GrpcClient, claim_of, put_pool, register, take};
use crate::server::{fresh, with_pool};

#[tokio::test]
async fn pools_are_put_shown_listed_and_deleted() {
    let (_dir, server, _http) = fresh();
    let mut grpc = GrpcClient::open(server.address).await;
    let spec = PoolSpec {
        shards: Some(2),
        policy: Policy::Fifo as i32,
        ack: Ack::Memory as i32,
        labels: [("tier".into(), "gold".into())].into(),
        class: Some("gpu".into()),
        reserve_ms: Some(5_000),
        lag_max_ms: Some(700),
        unnamed_ms: Some(800),
        lost_keep_ms: Some(0),
        ..PoolSpec::default()
    };
    let put = grpc.pools.put_pool(put_pool("warm", spec.clone())).await.unwrap().into_inner();
    assert!(put.created);
    let pool = put.pool.unwrap();
    let filled = PoolSpec { mode: Mode::Exclusive as i32, spare_gpu_workers: Some(true), ..spec };
    let response = PoolSpec {
        releasing_ms: filled.releasing_ms,
        heartbeat_ttl_ms: filled.heartbeat_ttl_ms,
        waiters_max: filled.waiters_max,
        waiters_tenant_max: filled.waiters_tenant_max,
        preemption: filled.preemption,
        hold_max_ms: filled.hold_max_ms,
        ..pool.spec.clone().unwrap()
    };
    assert_eq!((pool.namespace.as_str(), pool.name.as_str(), response), ("ns", "warm", filled));
    assert_eq!(pool.shards.len(), 2);
    assert!(pool.shards.iter().all(|shard| shard.state() == ShardState::Serving), "{pool:?}");
    // Omitted fields get their defaults, as over HTTP.
    let again = grpc.pools.put_pool(put_pool("warm", PoolSpec { shards: Some(2), ..PoolSpec::default() })).await;
    let again = again.unwrap().into_inner();
    let spec = again.pool.unwrap().spec.unwrap();
    assert_eq!((again.created, spec.reserve_ms, spec.lag_max_ms), (false, Some(30_000), Some(10_000)));
    assert_eq!((spec.unnamed_ms, spec.lost_keep_ms), (None, Some(600_000)));
    assert_eq!((spec.policy(), spec.ack(), spec.class), (Policy::Lifo, Ack::Durable, None));

    grpc.pools.put_pool(put_pool("cold", PoolSpec::default())).await.unwrap();
    let list = async |page_token: Option<String>| {
        let request = ListPoolsRequest { page_token, limit: Some(1) };
        grpc.pools.clone().list_pools(request).await.unwrap().into_inner()
    };
    let first = list(None).await;
    let second = list(first.next_page_token.clone()).await;
    assert_eq!((first.pools[0].name.as_str(), second.pools[0].name.as_str()), ("cold", "warm"));
    assert!(first.pools[0].shards.is_empty() && second.next_page_token.is_none());

    let named = || GetPoolRequest { namespace: "ns".into(), pool: "warm".into() };
    assert_eq!(grpc.pools.get_pool(named()).await.unwrap().into_inner().pool.unwrap().shards.len(), 2);
    let delete = DeletePoolRequest { namespace: "ns".into(), pool: "warm".into(), force: false };
    grpc.pools.delete_pool(delete).await.unwrap();
    assert_eq!(grpc.pools.get_pool(named()).await.unwrap_err().code(), Code::NotFound);
}

#[tokio::test]
async fn workers_are_registered_shown_listed_and_deleted() {
    let (_dir, server, _http) = with_pool(0);
    let mut grpc = GrpcClient::open(server.address).await;
    let spec = WorkerSpec {
        id: "w1".into(),
        capacity: Some(Capacity {
            cpu_milli: 1_000,
            memory_bytes: 1 << 30,
            slots: 4,
            gpu: Some(Gpu { model: "a100".into(), count: 2 }),
        }),
        labels: [("zone".into(), "a".into())].into(),
        node: Some("n1".into()),
        incarnation: 7,
        ..WorkerSpec::default()
    };
    let request = RegisterWorkerRequest { namespace: "ns".into(), pool: "warm".into(), worker: Some(spec.clone()) };
    let registered = grpc.workers.register_worker(request.clone()).await.unwrap().into_inner();
    let worker = registered.worker.unwrap();
    assert!(registered.created);
    assert_eq!((&worker.id, &worker.capacity, &worker.labels), (&spec.id, &spec.capacity, &spec.labels));
    assert_eq!((&worker.node, worker.incarnation), (&spec.node, 7));
    assert_eq!((worker.occupancy(), worker.schedulability()), (Occupancy::Idle, Schedulability::Open));
    assert_eq!((worker.liveness(), worker.trust()), (Liveness::Live, Trust::Trusted));
    assert!(!grpc.workers.register_worker(request).await.unwrap().into_inner().created);

    let ids = ["w2", "w 3", "w4"];
    let workers = ids.map(|id| WorkerSpec { id: id.into(), ..WorkerSpec::default() }).into();
    let batch = BatchRegisterWorkersRequest { namespace: "ns".into(), pool: "warm".into(), workers };
    let items = grpc.workers.batch_register_workers(batch).await.unwrap().into_inner().items;
    let outcomes: Vec<_> = items.into_iter().map(|item| item.outcome.unwrap()).collect();
    let [Registered::Registered(w2), Registered::Error(bad), Registered::Registered(w4)] = &outcomes[..] else {
        panic!("{outcomes:?}")
    };
    assert_eq!((w2.worker.as_ref().unwrap().id.as_str(), w2.created, w4.created), ("w2", true, true));
    assert_eq!((bad.code, bad.field.as_str()), (Code::InvalidArgument as i32, "workers[1].id"));

    let mut observed = Vec::new();
    let mut page_token = None;
    loop {
        let request = ListWorkersRequest { namespace: "ns".into(), pool: "warm".into(), page_token, limit: Some(2) };
        let page = grpc.workers.list_workers(request).await.unwrap().into_inner();
        observed.extend(page.workers.into_iter().map(|worker| worker.id));
        page_token = page.next_page_token;
        if page_token.is_none() {
            break;
        }
    }
    observed.sort();
    assert_eq!(observed, ["w1", "w2", "w4"]);

    let new_claim = grpc.claims.take_claim(take("a")).await.unwrap().into_inner().claim.unwrap();
    let get = || GetWorkerRequest { namespace: "ns".into(), pool: "warm".into(), id: new_claim.worker.clone() };
    let holder = grpc.workers.get_worker(get()).await.unwrap().into_inner().worker.unwrap();
    assert_eq!((holder.occupancy(), holder.claims[0].fence), (Occupancy::Busy, new_claim.fence));
    let delete = DeleteWorkerRequest { namespace: "ns".into(), pool: "warm".into(), id: new_claim.worker.clone() };
    grpc.workers.delete_worker(delete).await.unwrap();
    assert_eq!(grpc.workers.get_worker(get()).await.unwrap_err().code(), Code::NotFound);
}

#[tokio::test]
async fn c03_c05_a_claim_is_created_repeated_confirmed_and_released() {
    let (_dir, server, _http) = with_pool(2);
    let mut grpc = GrpcClient::open(server.address).await;
    let request = TakeClaimRequest { reserve_ms: Some(20_000), affinity: Some("fn".into()), ..take("a") };
    let new_claim = grpc.claims.take_claim(request.clone()).await.unwrap().into_inner();
    let claim = new_claim.claim.unwrap();
    assert!(new_claim.created);
    assert_eq!((claim.key.as_str(), claim.tenant.as_str()), ("a", "default"));
    assert_eq!((claim.namespace.as_str(), claim.pool.as_str()), ("ns", "warm"));
    assert!(claim.state() == ClaimState::Reserved && claim.expires_at_ms.is_some(), "{claim:?}");
    let again = grpc.claims.take_claim(request).await.unwrap().into_inner();
    assert!(!again.created);
    let again = again.claim.unwrap();
    assert_eq!((again.fence, &again.worker), (claim.fence, &claim.worker));
    // Another tenant makes another claim; without a key a new one; without a reservation an active one.
    let other = TakeClaimRequest { tenant: Some("acme".into()), key: None, reserve_ms: Some(0), ..take("") };
    let other = grpc.claims.take_claim(other).await.unwrap().into_inner().claim.unwrap();
    assert_eq!((other.tenant.as_str(), other.state()), ("acme", ClaimState::Active));
    assert_eq!(other.key.len(), 36);
    assert!(other.fence > claim.fence && other.worker != claim.worker);

    let get = GetClaimRequest { namespace: "ns".into(), key: "a".into(), tenant: None };
    assert_eq!(claim_of(grpc.claims.get_claim(get.clone()).await.unwrap().into_inner()).fence, claim.fence);
    let confirm = ConfirmClaimRequest {
        namespace: "ns".into(),
        key: "a".into(),
        tenant: Some("default".into()),
        fence: claim.fence,
    };
    let confirmed = grpc.claims.confirm_claim(confirm).await.unwrap().into_inner().claim.unwrap();
    assert_eq!((confirmed.state(), confirmed.expires_at_ms), (ClaimState::Active, None));

    let of = |tenant: Option<&str>| ListClaimsRequest {
        namespace: Some("ns".into()),
        pool: Some("warm".into()),
        tenant: tenant.map(Into::into),
        ..ListClaimsRequest::default()
    };
    let mut list = grpc.clone();
    let mut keys = async |request| {
        let page = list.claims.list_claims(request).await.unwrap().into_inner();
        page.claims.into_iter().map(|claim| claim.key).collect::<Vec<_>>()
    };
    assert_eq!(keys(of(None)).await.len(), 2);
    assert_eq!(keys(of(Some("acme"))).await, [other.key]);
    assert_eq!(keys(ListClaimsRequest { worker: Some(claim.worker.clone()), ..of(None) }).await, ["a"]);

    let release = ReleaseClaimRequest {
        namespace: "ns".into(),
        key: "a".into(),
        tenant: None,
        fence: claim.fence,
        phase: ReleasePhase::Unspecified as i32,
    };
    for _ in 0..2 {
        grpc.claims.release_claim(release.clone()).await.unwrap();
    }
    assert_eq!(grpc.claims.get_claim(get).await.unwrap_err().code(), Code::NotFound);
}

#[tokio::test]
async fn b01_an_invalid_item_of_a_batch_affects_no_other() {
    let (_dir, server, _http) = with_pool(2);
    let mut grpc = GrpcClient::open(server.address).await;
    let items = vec![
        take("a"),
        take("a b"),
        TakeClaimRequest { candidates: None, ..take("c") },
        take("d"),
        TakeClaimRequest { wait_ms: Some(86_400_001), ..take("e") },
        TakeClaimRequest { candidates: Some(take_claim_request::Candidates::Pool("none".into())), ..take("f") },
    ];
    let request = BatchTakeClaimsRequest { mode: BatchMode::Independent as i32, items };
    let items = grpc.claims.batch_take_claims(request).await.unwrap().into_inner().items;
    let response: Vec<_> = items
        .iter()
        .map(|item| match item.outcome.as_ref().unwrap() {
            Taken::Taken(new_claim) => (0, Reason::Unspecified, new_claim.claim.as_ref().unwrap().key.clone()),
            Taken::Error(error) => (error.code, error.reason(), error.field.clone()),
        })
        .collect();
    let bad = Code::InvalidArgument as i32;
    let expected = [
        (0, Reason::Unspecified, "a"),
        (bad, Reason::Unspecified, "items[1].key"),
        (bad, Reason::Unspecified, "items[2].pool"),
        (0, Reason::Unspecified, "d"),
        (bad, Reason::Unspecified, "items[4].wait_ms"),
        (Code::NotFound as i32, Reason::Unspecified, ""),
    ];
    assert_eq!(response, expected.map(|(code, reason, field)| (code, reason, field.to_owned())));
    // The pool is full now, so the next item fails.
    let request = BatchTakeClaimsRequest { mode: BatchMode::Independent as i32, items: vec![take("g")] };
    let items = grpc.claims.batch_take_claims(request).await.unwrap().into_inner().items;
    let Some(Taken::Error(error)) = &items[0].outcome else { panic!("{items:?}") };
    assert_eq!((error.code, error.reason()), (Code::ResourceExhausted as i32, Reason::PoolExhausted));
    // An empty batch is valid.
    let none = BatchTakeClaimsRequest { mode: BatchMode::Independent as i32, items: Vec::new() };
    assert!(grpc.claims.batch_take_claims(none).await.unwrap().into_inner().items.is_empty());
}

#[tokio::test]
async fn calls_are_counted_by_method_and_code() {
    let (_dir, server, mut http) = with_pool(1);
    let mut grpc = GrpcClient::open(server.address).await;
    grpc.claims.take_claim(take("a")).await.unwrap();
    for _ in 0..2 {
        grpc.claims.take_claim(take("b")).await.unwrap_err();
    }
    grpc.workers.register_worker(register("")).await.unwrap_err();
    let scrape = http.get("/metrics");
    for (method, code, count) in [
        ("ClaimService/TakeClaim", "OK", 1),
        ("ClaimService/TakeClaim", "RESOURCE_EXHAUSTED", 2),
        ("WorkerService/RegisterWorker", "INVALID_ARGUMENT", 1),
    ] {
        let line = format!(r#"hotpool_grpc_requests_total{{method="hotpool.v1.{method}",code="{code}"}} {count}"#);
        assert!(scrape.text().contains(&line), "{line} is not in\n{}", scrape.text());
    }
    assert!(!scrape.text().contains(r#"route="unmatched""#), "gRPC is not counted as HTTP");
}
