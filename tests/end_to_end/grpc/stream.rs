//! Claim stream: many requests in flight, answered by id.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use futures::channel::mpsc::{UnboundedSender, unbounded};
use hotpool::api::grpc::proto::claim_stream_request::Request as StreamRequest;
use hotpool::api::grpc::proto::claim_stream_response::Outcome;
use hotpool::api::grpc::proto::*;
use hotpool::limits;
use serde_json::json;
use tokio::time::timeout;
use tonic::{Code, Status, Streaming};

use super::grpc_client::{GrpcClient, Raw, expect, framed, register, take};
use crate::client::Client;
use crate::server::{Server, with_pool};

const STREAM: &str = "/hotpool.v1.ClaimService/ClaimStream";
const TIMEOUT: Duration = Duration::from_secs(30);

/// Both halves of a claim stream.
struct Stream {
    requests: Option<UnboundedSender<ClaimStreamRequest>>,
    answers: Streaming<ClaimStreamResponse>,
}

impl Stream {
    async fn open(grpc: &GrpcClient) -> Self {
        let (requests, sent) = unbounded();
        let answers = grpc.claims.clone().claim_stream(sent).await.unwrap().into_inner();
        Self { requests: Some(requests), answers }
    }

    fn send(&self, id: u64, request: StreamRequest) {
        let request = ClaimStreamRequest { id, request: Some(request) };
        self.requests.as_ref().unwrap().unbounded_send(request).unwrap();
    }

    async fn next(&mut self) -> Result<Option<(u64, Outcome)>, Status> {
        let answer = timeout(TIMEOUT, self.answers.message()).await.expect("an answer or an end")?;
        Ok(answer.map(|answer| (answer.id, answer.outcome.unwrap())))
    }

    async fn answer(&mut self) -> (u64, Outcome) {
        self.next().await.unwrap().expect("an answer")
    }

    /// Returns the outcomes of so many requests, by id.
    async fn answers(&mut self, n: usize) -> BTreeMap<u64, Outcome> {
        let mut answers = BTreeMap::new();
        for _ in 0..n {
            let (id, outcome) = self.answer().await;
            assert!(answers.insert(id, outcome).is_none(), "{id} is answered twice");
        }
        answers
    }

    /// Closes the sending half of the stream.
    fn finish(&mut self) {
        self.requests = None;
    }

    /// Whether no response is available for now.
    async fn is_silent(&mut self) -> bool {
        timeout(Duration::from_millis(100), self.answers.message()).await.is_err()
    }
}

fn claim(key: &str) -> StreamRequest {
    StreamRequest::Take(TakeClaimRequest { reserve_ms: Some(0), ..take(key) })
}

fn waits(key: &str) -> StreamRequest {
    StreamRequest::Take(TakeClaimRequest { reserve_ms: Some(0), wait_ms: Some(60_000), ..take(key) })
}

fn release(key: &str, fence: u64) -> StreamRequest {
    StreamRequest::Release(ReleaseClaimRequest { namespace: "ns".into(), key: key.into(), fence, ..Default::default() })
}

fn confirm(key: &str, fence: u64) -> StreamRequest {
    StreamRequest::Confirm(ConfirmClaimRequest { namespace: "ns".into(), key: key.into(), fence, ..Default::default() })
}

fn renew(key: &str, fence: u64, ttl_ms: u64) -> StreamRequest {
    let ttl_ms = Some(ttl_ms);
    StreamRequest::Renew(RenewClaimRequest {
        namespace: "ns".into(),
        key: key.into(),
        fence,
        ttl_ms,
        ..Default::default()
    })
}

fn created(outcome: &Outcome) -> &Claim {
    match outcome {
        Outcome::Taken(created) => created.claim.as_ref().unwrap(),
        other => panic!("{other:?}"),
    }
}

#[track_caller]
fn rejected(outcome: &Outcome, code: Code, reason: Reason, field: &str) {
    let Outcome::Error(error) = outcome else { panic!("{outcome:?}") };
    assert_eq!((error.code, error.reason(), error.field.as_str()), (code as i32, reason, field), "{error:?}");
    assert!(!error.message.is_empty(), "{error:?}");
}

fn counted(http: &mut Client, method: &str, code: &str) -> u64 {
    let line = format!(r#"hotpool_grpc_requests_total{{method="hotpool.v1.ClaimService/{method}",code="{code}"}} "#);
    let scrape = http.get("/metrics");
    scrape.text().lines().find_map(|text| text.strip_prefix(&line)).map_or(0, |count| count.parse().unwrap())
}

#[tokio::test]
async fn a_thousand_in_flight_are_answered_by_id_and_released() {
    let (_dir, server, mut http) = with_pool(1_000);
    let grpc = GrpcClient::open(server.address).await;
    let mut stream = Stream::open(&grpc).await;
    let key = |id: u64| format!("k{id}");
    // Ids are chosen by the client: these start anywhere, including 0.
    let ids = || (0..1_000).map(|i| i * i);
    ids().for_each(|id| stream.send(id, claim(&key(id))));
    let answers = stream.answers(1_000).await;
    assert!(ids().eq(answers.keys().copied()));
    assert!(answers.iter().all(|(id, outcome)| created(outcome).key == key(*id)));
    let workers: BTreeSet<_> = answers.values().map(|outcome| &created(outcome).worker).collect();
    assert_eq!(workers.len(), 1_000);
    // An id may be reused after its response. Three kinds of requests at once.
    for (id, outcome) in &answers {
        let fence = created(outcome).fence;
        match id % 3 {
            0 => stream.send(*id, release(&key(*id), fence)),
            1 => stream.send(*id, confirm(&key(*id), fence)),
            _ => stream.send(*id, renew(&key(*id), fence, 60_000)),
        }
    }
    for (id, outcome) in stream.answers(1_000).await {
        match (id % 3, outcome) {
            (0, Outcome::Released(_)) => {}
            (1, Outcome::Confirmed(answer)) => assert_eq!(answer.claim.as_ref(), Some(created(&answers[&id]))),
            (2, Outcome::Renewed(answer)) => {
                let claim = answer.claim.unwrap();
                assert!(claim.key == key(id) && claim.expires_at_ms.is_some(), "{claim:?}");
            }
            other => panic!("{other:?}"),
        }
    }
    let held = ids().filter(|id| id % 3 != 0).count();
    assert_eq!(http.get("/v1/pools/ns/warm").expect(200)["pool"]["workers"]["busy"], held);
    for (id, outcome) in answers.iter().filter(|(id, _)| *id % 3 != 0) {
        stream.send(*id, release(&key(*id), created(outcome).fence));
    }
    stream.finish();
    stream.answers(held).await;
    assert!(stream.next().await.unwrap().is_none(), "the stream ends after the last answer");
    assert_eq!(http.get("/debug/shards").json()["keys"], 0);
    for (method, count) in [("TakeClaim", 1_000), ("ReleaseClaim", 1_000), ("ClaimStream", 1)] {
        assert_eq!(counted(&mut http, method, "OK"), count, "{method}");
    }
    assert_eq!(counted(&mut http, "ConfirmClaim", "OK") + counted(&mut http, "RenewClaim", "OK"), held as u64);
}

#[tokio::test]
async fn an_invalid_request_affects_only_itself_and_names_its_error() {
    let (_dir, server, mut http) = with_pool(2);
    let grpc = GrpcClient::open(server.address).await;
    let mut stream = Stream::open(&grpc).await;
    stream.send(1, claim("a"));
    let fence = created(&stream.answer().await.1).fence;
    stream.requests.as_ref().unwrap().unbounded_send(ClaimStreamRequest { id: 10, request: None }).unwrap();
    stream.send(11, claim("no key"));
    stream.send(12, StreamRequest::Take(TakeClaimRequest { candidates: None, ..take("x") }));
    stream.send(13, StreamRequest::Take(TakeClaimRequest { class: Some("none".into()), ..take("x") }));
    stream.send(14, release("a", fence + 1));
    stream.send(15, confirm("gone", 7));
    stream.send(16, renew("a", fence, 0));
    stream.send(17, release("a", limits::FENCE_MAX + 1));
    stream.send(18, release("gone", 7));
    let phase = 9;
    let strange = ReleaseClaimRequest { namespace: "ns".into(), key: "a".into(), fence, phase, ..Default::default() };
    stream.send(20, StreamRequest::Release(strange));
    stream.send(21, claim("b"));
    let answers = stream.answers(11).await;
    for (id, code, reason, field) in [
        (10, Code::InvalidArgument, Reason::Unspecified, "request"),
        (11, Code::InvalidArgument, Reason::Unspecified, "take.key"),
        (12, Code::InvalidArgument, Reason::Unspecified, "take.pool"),
        (13, Code::ResourceExhausted, Reason::NoEligiblePool, ""),
        (14, Code::Aborted, Reason::Fence, ""),
        (15, Code::NotFound, Reason::Unspecified, ""),
        (16, Code::InvalidArgument, Reason::Unspecified, "renew.ttl_ms"),
        (17, Code::InvalidArgument, Reason::Unspecified, "release.fence"),
        (20, Code::InvalidArgument, Reason::Unspecified, "release.phase"),
    ] {
        rejected(&answers[&id], code, reason, field);
    }
    assert!(matches!(answers[&18], Outcome::Released(_)));
    assert_eq!(created(&answers[&21]).key, "b");
    assert_eq!(http.get("/v1/claims/ns/a").expect(200)["claim"]["fence"], fence);
    assert_eq!(counted(&mut http, "ReleaseClaim", "ABORTED"), 1);
    assert_eq!(counted(&mut http, "ClaimStream", "INVALID_ARGUMENT"), 1);
}

#[tokio::test]
async fn a_queued_request_blocks_no_other_and_its_id_stays_in_use() {
    let (_dir, server, _http) = with_pool(1);
    let grpc = GrpcClient::open(server.address).await;
    let mut stream = Stream::open(&grpc).await;
    stream.send(1, claim("a"));
    stream.send(2, waits("b"));
    stream.send(2, claim("c"));
    stream.send(3, claim("d"));
    let answers = stream.answers(3).await;
    let fence = created(&answers[&1]).fence;
    rejected(&answers[&2], Code::InvalidArgument, Reason::Unspecified, "id");
    rejected(&answers[&3], Code::ResourceExhausted, Reason::PoolExhausted, "");
    stream.send(4, release("a", fence));
    let answers = stream.answers(2).await;
    assert!(matches!(answers[&4], Outcome::Released(_)));
    assert_eq!(created(&answers[&2]).key, "b");
}

#[tokio::test]
async fn requests_beyond_the_window_wait_in_the_stream_and_are_not_lost() {
    let (_dir, server, mut http) = with_pool(1);
    let grpc = GrpcClient::open(server.address).await;
    let mut stream = Stream::open(&grpc).await;
    let held = http.post("/v1/claims", &json!({"namespace": "ns", "pool": "warm", "key": "held"})).expect(201);
    let window = limits::STREAM_REQUESTS_MAX as u64;
    (0..window).for_each(|id| stream.send(id, waits(&format!("w{id}"))));
    (window..window + 100).for_each(|id| stream.send(id, release("nobody", 1)));
    assert!(stream.is_silent().await, "the window is full of claims that wait");
    http.post("/v1/claims/ns/held:release", &json!({"fence": held["claim"]["fence"]})).expect(200);
    // The first queued claim is served, which admits all that waited behind it.
    let mut answers = stream.answers(101).await;
    assert!(answers.remove(&0).is_some_and(|first| created(&first).key == "w0"));
    assert!(answers.values().all(|outcome| matches!(outcome, Outcome::Released(_))));
    assert!(answers.into_keys().eq(window..window + 100));
}

#[tokio::test]
async fn an_invalid_message_ends_the_stream_after_earlier_requests() {
    let (_dir, server, _http) = with_pool(2);
    let mut raw = Raw::open(server.address).await;
    let good = framed(&ClaimStreamRequest { id: 7, request: Some(claim("a")) });
    let large = ClaimStreamRequest {
        id: 8,
        request: Some(StreamRequest::Take(TakeClaimRequest { affinity: Some("x".repeat(17 << 10)), ..take("b") })),
    };
    let garbage = [0, 0, 0, 0, 2, 0x0a, 0x05].to_vec();
    for (bad, reason, field) in [(framed(&large), Some("BODY_TOO_LARGE"), None), (garbage, None, Some("body"))] {
        let answer = raw.begin(STREAM, &[], [&good[..], &bad, &good].concat()).await;
        let body = http_body_util::BodyExt::collect(answer.into_body()).await.unwrap();
        let status = Status::from_header_map(body.trailers().unwrap()).unwrap();
        expect::<()>(Err(status), Code::InvalidArgument, reason, field);
        let bytes = body.to_bytes();
        let answer = <ClaimStreamResponse as prost::Message>::decode(&bytes[5..]).unwrap();
        assert_eq!((answer.id, created(&answer.outcome.unwrap()).key.as_str()), (7, "a"));
    }
}

#[tokio::test]
async fn streams_of_disconnected_clients_leave_nothing() {
    let (_dir, server, mut http) = with_pool(4);
    http.put("/v1/pools/ns/warm", &json!({"shards": 4, "reserve_ms": 300})).expect(200);
    for round in 0..30 {
        let grpc = GrpcClient::open(server.address).await;
        let mut stream = Stream::open(&grpc).await;
        for id in 0..20 {
            let wait_ms = (id % 2 == 1).then_some(60_000);
            stream
                .send(id, StreamRequest::Take(TakeClaimRequest { wait_ms, ..take(&format!("k{round}-{}", id % 15)) }));
        }
        // Some clients leave before the first response, some after a few, some close only the sending half.
        for _ in 0..round % 4 {
            stream.answer().await;
        }
        if round % 3 == 0 {
            stream.finish();
            tokio::task::yield_now().await;
        }
    }
    let begun = std::time::Instant::now();
    while http.get("/debug/shards").json()["keys"] != 0 {
        assert!(begun.elapsed() < TIMEOUT, "{}", http.get("/debug/shards").json());
        tokio::task::yield_now().await;
    }
    let pool = http.get("/v1/pools/ns/warm").expect(200)["pool"].take();
    assert_eq!((&pool["workers"]["idle"], &pool["claims"]["reserved"]), (&json!(4), &json!(0)), "{pool}");
    let scrape = http.get("/metrics");
    assert!(scrape.text().contains(r#"hotpool_claims_pending{pool="ns/warm"} 0"#), "{}", scrape.text());
    assert!(scrape.text().contains(r#"hotpool_accounting_mismatch{pool="ns/warm"} 0"#), "{}", scrape.text());
    assert_eq!(server.stop().code(), Some(0));
}

#[tokio::test]
async fn a_shutdown_answers_requests_in_flight_and_ends_the_stream() {
    let (_dir, server, _http) = with_pool(1);
    let grpc = GrpcClient::open(server.address).await;
    let mut idle = Stream::open(&grpc).await;
    let mut stream = Stream::open(&grpc).await;
    stream.send(1, claim("a"));
    stream.send(2, waits("b"));
    assert_eq!(stream.answer().await.0, 1);
    server.terminate();
    let (id, outcome) = stream.answer().await;
    rejected(&outcome, Code::Unavailable, Reason::Loading, "");
    assert_eq!(id, 2);
    for stream in [&mut stream, &mut idle] {
        expect(stream.next().await, Code::Unavailable, Some("LOADING"), None);
    }
    assert_eq!(server.wait().code(), Some(0));
}

#[tokio::test]
async fn a_queued_claim_gets_a_worker_registered_by_another_call() {
    let dir = tempfile::TempDir::new().unwrap();
    let limits = [("HOTPOOL__SERVER__REQUEST_TIMEOUT_MS", "200"), ("HOTPOOL__STORE__WAIT_MS", "100")];
    let server = Server::start_with(dir.path(), &["--store", "memory:"], &limits);
    let mut grpc = GrpcClient::open(server.address).await;
    grpc.pools.put_pool(super::grpc_client::put_pool("warm", PoolSpec::default())).await.unwrap();
    let mut stream = Stream::open(&grpc).await;
    stream.send(1, StreamRequest::Take(TakeClaimRequest { wait_ms: Some(500), ..take("a") }));
    let (_, outcome) = stream.answer().await;
    // The wait is added to the timeout of any request.
    rejected(&outcome, Code::ResourceExhausted, Reason::PoolExhausted, "");
    stream.send(2, waits("b"));
    assert!(stream.is_silent().await);
    grpc.workers.register_worker(register("w1")).await.unwrap();
    assert_eq!(created(&stream.answer().await.1).worker, "w1");
}
