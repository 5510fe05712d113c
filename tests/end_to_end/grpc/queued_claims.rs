//! Queued claims, quotas and demand over gRPC.

use std::time::{Duration, Instant};

use hotpool::api::grpc::proto::get_claim_response::Standing;
use hotpool::api::grpc::proto::*;
use tokio::task::JoinHandle;
use tonic::{Code, Request, Status};

use super::grpc_client::{GrpcClient, expect, register, take, until};
use crate::server::{Server, with_pool};

fn waits(key: &str, wait_ms: u64) -> TakeClaimRequest {
    TakeClaimRequest { wait_ms: Some(wait_ms), reserve_ms: Some(0), ..take(key) }
}

/// Returns the queued claim of a key, once it is queued.
async fn waiting(grpc: &mut GrpcClient, key: &str) -> Waiting {
    let get = GetClaimRequest { namespace: "ns".into(), key: key.into(), tenant: None };
    let mut found = None;
    until("the claim is queued", async || {
        let answer = grpc.claims.get_claim(get.clone()).await.ok();
        found = answer.and_then(|answer| answer.into_inner().standing);
        matches!(found, Some(Standing::Waiting(_)))
    })
    .await;
    let Some(Standing::Waiting(waiting)) = found else { unreachable!("it is queued") };
    waiting
}

fn begin(grpc: &GrpcClient, request: impl tonic::IntoRequest<TakeClaimRequest>) -> JoinHandle<Result<Claim, Status>> {
    let (mut grpc, request) = (grpc.clone(), request.into_request());
    tokio::spawn(
        async move { grpc.claims.take_claim(request).await.map(|new_claim| new_claim.into_inner().claim.unwrap()) },
    )
}

#[tokio::test]
async fn q02_a_queued_claim_is_visible_and_served_when_a_worker_arrives() {
    let (_dir, server, _http) = with_pool(1);
    let mut grpc = GrpcClient::open(server.address).await;
    grpc.claims.take_claim(waits("held", 0)).await.unwrap();
    let request = TakeClaimRequest { priority: Some(9), preemptible: Some(true), ..waits("a", 60_000) };
    let begun = begin(&grpc, request);
    let observed = waiting(&mut grpc, "a").await;
    assert_eq!(
        (observed.pools.as_slice(), observed.reason(), observed.priority),
        (&["warm".to_owned()][..], Reason::PoolExhausted, 9)
    );
    assert_eq!((observed.waited_ms + observed.left_ms, observed.ahead, observed.estimate_ms), (60_000, 0, None));
    let get = GetDemandRequest { namespace: "ns".into(), pool: "warm".into() };
    let demand = grpc.pools.get_demand(get).await.unwrap().into_inner();
    assert_eq!((demand.waiting, demand.workers_busy, demand.workers_needed, demand.workers_wanted), (1, 1, 1, 2));
    let [shape] = &demand.shapes[..] else { panic!("{demand:?}") };
    assert_eq!((shape.waiting, shape.reason(), shape.priority), (1, Reason::PoolExhausted, 9));
    assert_eq!(shape.resources, Some(Resources::default()));
    grpc.workers.register_worker(register("w1")).await.unwrap();
    let claim = begun.await.unwrap().unwrap();
    assert_eq!((claim.worker.as_str(), claim.priority, claim.preemptible), ("w1", 9, true));
    grpc.workers.register_worker(register("w2")).await.unwrap();
    let get = GetDemandRequest { namespace: "ns".into(), pool: "warm".into() };
    let demand = grpc.pools.get_demand(get).await.unwrap().into_inner();
    assert_eq!(demand.idle, [IdleWorker { worker: "w2".into(), cordoned: false }]);
}

#[tokio::test]
async fn w08_lists_show_who_waits_beside_who_holds() {
    let (_dir, server, _http) = with_pool(1);
    let mut grpc = GrpcClient::open(server.address).await;
    grpc.claims.take_claim(waits("held", 0)).await.unwrap();
    let begun = begin(&grpc, waits("a", 60_000));
    let shown = waiting(&mut grpc, "a").await;
    assert_eq!(shown.queued_at_ms, None);
    let states = |states: &[ClaimState]| ListClaimsRequest {
        states: states.iter().map(|state| *state as i32).collect(),
        ..ListClaimsRequest::default()
    };
    let mut list = async |request| {
        let page = grpc.claims.list_claims(request).await.unwrap().into_inner();
        let keys: Vec<_> = page.claims.iter().map(|claim| claim.key.clone()).collect();
        (keys, page.waiting, page.next_page_token)
    };
    assert_eq!(list(states(&[])).await, (vec!["held".into()], vec![], None));
    assert_eq!(list(states(&[ClaimState::Active])).await, (vec!["held".into()], vec![], None));
    let (held, listed, next) = list(states(&[ClaimState::Waiting])).await;
    assert_eq!((held, next), (vec![], None));
    let [item] = &listed[..] else { panic!("{listed:?}") };
    assert!(item.queued_at_ms.is_some_and(|at_ms| at_ms > 1_600_000_000_000));
    let plain = |item: &Waiting| Waiting { waited_ms: 0, left_ms: 0, queued_at_ms: None, ..item.clone() };
    assert_eq!((plain(item), item.waited_ms + item.left_ms), (plain(&shown), 60_000));
    let both = ListClaimsRequest { limit: Some(1), ..states(&[ClaimState::Waiting, ClaimState::Active]) };
    let (held, listed, mut next) = list(both.clone()).await;
    assert_eq!((held.len(), listed.len()), (1, 0));
    let mut keys = Vec::new();
    while let Some(page_token) = next {
        let (held, listed, after) = list(ListClaimsRequest { page_token: Some(page_token), ..both.clone() }).await;
        assert_eq!(held.len(), 0);
        keys.extend(listed.into_iter().map(|item| item.key));
        next = after;
    }
    assert_eq!(keys, ["a"]);
    let wrong = ListClaimsRequest { page_token: Some("ns/warm:0-0".into()), ..states(&[ClaimState::Waiting]) };
    expect(grpc.claims.list_claims(wrong).await, Code::InvalidArgument, None, Some("page_token"));
    grpc.workers.register_worker(register("w1")).await.unwrap();
    begun.await.unwrap().unwrap();
}

#[tokio::test]
async fn q01_a_quota_is_used_up_waited_for_and_raised() {
    let (_dir, server, _http) = with_pool(3);
    let mut grpc = GrpcClient::open(server.address).await;
    let put = |claims| PutQuotaRequest {
        namespace: "ns".into(),
        tenant: Some("default".into()),
        spec: Some(QuotaSpec { claims: Some(claims), ..QuotaSpec::default() }),
    };
    assert!(grpc.quotas.put_quota(put(1)).await.unwrap().into_inner().created);
    grpc.claims.take_claim(waits("a", 0)).await.unwrap();
    expect(grpc.claims.take_claim(waits("b", 0)).await, Code::ResourceExhausted, Some("QUOTA"), None);
    let begun = begin(&grpc, waits("b", 60_000));
    let observed = waiting(&mut grpc, "b").await;
    assert_eq!((observed.pools.len(), observed.reason()), (0, Reason::Quota));
    let get = GetQuotaRequest { namespace: "ns".into(), tenant: Some("default".into()) };
    assert_eq!(grpc.quotas.get_quota(get).await.unwrap().into_inner().quota.unwrap().waiting, 1);
    assert!(!grpc.quotas.put_quota(put(2)).await.unwrap().into_inner().created);
    begun.await.unwrap().unwrap();
    let put_default = PutQuotaRequest { namespace: "ns".into(), tenant: None, spec: None };
    grpc.quotas.put_quota(put_default).await.unwrap();
    let list = async |page_token| {
        let request = ListQuotasRequest { page_token, limit: Some(1) };
        grpc.quotas.clone().list_quotas(request).await.unwrap().into_inner()
    };
    let first = list(None).await;
    let second = list(first.next_page_token.clone()).await;
    assert_eq!((&first.quotas[0].tenant, second.quotas[0].tenant.as_deref()), (&None, Some("default")));
    assert_eq!((first.quotas[0].used, second.next_page_token), (None, None));
    let bad = ListQuotasRequest { page_token: Some("a/b/c".into()), limit: None };
    expect(grpc.quotas.list_quotas(bad).await, Code::InvalidArgument, None, Some("page_token"));
}

#[tokio::test]
async fn a_wait_extends_the_request_timeout_but_not_the_callers_deadline() {
    let dir = tempfile::TempDir::new().unwrap();
    let limits = [("HOTPOOL__SERVER__REQUEST_TIMEOUT_MS", "200"), ("HOTPOOL__STORE__WAIT_MS", "100")];
    let server = Server::start_with(dir.path(), &["--store", "memory:"], &limits);
    let mut grpc = GrpcClient::open(server.address).await;
    grpc.pools.put_pool(super::grpc_client::put_pool("warm", PoolSpec::default())).await.unwrap();
    let begun = Instant::now();
    expect(grpc.claims.take_claim(waits("a", 500)).await, Code::ResourceExhausted, Some("POOL_EXHAUSTED"), None);
    assert!(begun.elapsed() > Duration::from_millis(300));
    let batch =
        BatchTakeClaimsRequest { mode: BatchMode::Independent as i32, items: vec![waits("b", 400), waits("c", 0)] };
    assert_eq!(grpc.claims.batch_take_claims(batch).await.unwrap().into_inner().items.len(), 2);
    let mut request = Request::new(waits("d", 60_000));
    request.set_timeout(Duration::from_millis(300));
    let status = begin(&grpc, request).await.unwrap().unwrap_err();
    // Either timer may be first: the client's own yields CANCELLED.
    assert!([Code::DeadlineExceeded, Code::Cancelled].contains(&status.code()), "{status:?}");
    let get = GetClaimRequest { namespace: "ns".into(), key: "d".into(), tenant: None };
    until("the claim has left the queue", async || grpc.claims.get_claim(get.clone()).await.is_err()).await;
}

#[tokio::test]
async fn a_shutdown_answers_queued_claims_at_once() {
    let (_dir, server, _http) = with_pool(1);
    let mut grpc = GrpcClient::open(server.address).await;
    grpc.claims.take_claim(waits("held", 0)).await.unwrap();
    let begun = begin(&grpc, waits("a", 60_000));
    waiting(&mut grpc, "a").await;
    let stopped = Instant::now();
    server.terminate();
    expect(begun.await.unwrap(), Code::Unavailable, Some("LOADING"), None);
    assert!(stopped.elapsed() < Duration::from_secs(3));
    drop(grpc);
    assert_eq!(server.wait().code(), Some(0));
}

/// Queued calls occupy streams of their channel and leave some for other calls: a release is answered next to as many
/// queued claims as a channel may hold.
#[tokio::test]
async fn q02_a_release_overtakes_the_queued_claims_of_its_channel() {
    const WAIT: usize = 1_500;
    let (_dir, server, mut http) = with_pool(1);
    let mut grpc = GrpcClient::open(server.address).await;
    let held = grpc.claims.take_claim(waits("held", 0)).await.unwrap().into_inner().claim.unwrap();
    let waiting: Vec<_> = (0..WAIT).map(|n| begin(&grpc, waits(&format!("w{n}"), 600_000))).collect();
    let parked = |http: &mut crate::client::Client| {
        http.get("/v1/pools/ns/warm/demand").expect(200)["waiting"].as_u64().unwrap() as usize
    };
    let begun = Instant::now();
    while parked(&mut http) < 1_024 {
        assert!(begun.elapsed() < Duration::from_secs(60), "{} wait", parked(&mut http));
        tokio::task::yield_now().await;
    }
    let release = ReleaseClaimRequest {
        namespace: "ns".into(),
        key: "held".into(),
        fence: held.fence,
        ..ReleaseClaimRequest::default()
    };
    let released = tokio::time::timeout(Duration::from_secs(20), grpc.claims.release_claim(release)).await;
    released.expect("a release beside 1,024 claims that wait is answered").unwrap();
    let served = tokio::time::timeout(Duration::from_secs(20), futures::future::select_all(waiting)).await;
    assert!(served.expect("one of those that wait is served").0.unwrap().is_ok());
}
