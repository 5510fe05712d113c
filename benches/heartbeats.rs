//! Cost of heartbeats for the service: processor time of the `hotpool` process over its listeners, by kind of call.
//! Prints the figures in docs/BENCHMARKS.md; `-- workers=N` for another size.

mod processor;
mod service;

use std::ops::Range;

use bytes::Bytes;
use futures::future::join_all;
use http_body_util::{BodyExt as _, Full};
use hyper::{Method, Request};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use processor::cpu_s;
use serde_json::{Value, json};
use service::Server;
use tonic::transport::Endpoint;

use hotpool::api::grpc::proto::batch_heartbeat_workers_response::item::Outcome;
use hotpool::api::grpc::proto::worker_service_client::WorkerServiceClient;
use hotpool::api::grpc::proto::{
    BatchHeartbeatWorkersRequest, HeartbeatWorkerRequest, HeldClaim, HeldClaims, WorkerHeartbeat,
};

const POOL: &str = "/v1/pools/bench/beats";
/// Number of concurrent callers.
const CALLERS: usize = 8;
/// Largest response to decode, in bytes.
const ANSWER_BYTES_MAX: usize = 64 << 20;

/// Workers by index, each with the key and fence of its claim, if any.
type Fleet = Vec<Option<(String, u64)>>;

fn worker_id(n: usize) -> String {
    format!("worker-{n:06}")
}

/// HTTP/1.1 client of the service.
#[derive(Clone)]
struct Http {
    client: Client<HttpConnector, Full<Bytes>>,
    address: String,
}

impl Http {
    fn new(address: &str) -> Self {
        Self { client: Client::builder(TokioExecutor::new()).build_http(), address: address.to_owned() }
    }

    async fn call(&self, method: Method, path: &str, body: Vec<u8>) -> Bytes {
        let request = Request::builder().method(method).uri(format!("http://{}{path}", self.address));
        let response = self.client.request(request.body(Full::new(body.into())).expect("a request")).await;
        let response = response.expect("the service responds");
        let status = response.status();
        let body = response.into_body().collect().await.expect("a complete response").to_bytes();
        assert!(status.is_success(), "{path}: {status} {}", String::from_utf8_lossy(&body));
        body
    }

    async fn items(&self, path: &str, body: &Value) -> Vec<Value> {
        let response = self.call(Method::POST, path, body.to_string().into_bytes()).await;
        let mut response: Value = serde_json::from_slice(&response).expect("JSON");
        match response["items"].take() {
            Value::Array(items) => items,
            other => panic!("{other}"),
        }
    }

    /// Creates a pool of workers, every second of them claimed.
    async fn set_up(&self, workers: usize) -> Fleet {
        self.call(Method::PUT, POOL, b"{}".to_vec()).await;
        let mut fleet: Fleet = vec![None; workers];
        for first in (0..workers).step_by(10_000) {
            let end = workers.min(first + 10_000);
            let new: Vec<_> = (first..end).map(|n| json!({"id": worker_id(n)})).collect();
            self.items(&format!("{POOL}/workers:batch"), &json!({"workers": new})).await;
            let claim =
                |n| json!({"namespace": "bench", "pool": "beats", "key": format!("job-{n:06}"), "reserve_ms": 0});
            let claims: Vec<_> = (first..end).step_by(2).map(claim).collect();
            let body = json!({"mode": "independent", "items": claims});
            for item in self.items("/v1/claims:batch", &body).await {
                let claim = &item["claim"];
                let worker = claim["worker"].as_str().unwrap_or_else(|| panic!("{item}"));
                let index: usize = worker.trim_start_matches("worker-").parse().expect("a worker of this bench");
                let key = claim["key"].as_str().expect("a key").to_owned();
                fleet[index] = Some((key, claim["fence"].as_u64().expect("a fence")));
            }
        }
        fleet
    }

    async fn unary(&self, fleet: &Fleet, workers: Range<usize>, seq: u64) {
        for n in workers {
            let body = json!({"seq": seq, "claims": claims_json(&fleet[n])}).to_string();
            let path = format!("{POOL}/workers/{}:heartbeat", worker_id(n));
            self.call(Method::POST, &path, body.into_bytes()).await;
        }
    }

    async fn batch(&self, fleet: &Fleet, workers: Range<usize>, seq: u64) {
        let heartbeat = |n| json!({"id": worker_id(n), "seq": seq, "claims": claims_json(&fleet[n])});
        let count = workers.len();
        let body = json!({"workers": workers.map(heartbeat).collect::<Vec<_>>()});
        let items = self.items(&format!("{POOL}/workers:heartbeat"), &body).await;
        assert!(items.len() == count && items.iter().all(|item| item["stop"] == json!([])), "no claim is revoked");
    }
}

fn claims_json(held: &Option<(String, u64)>) -> Value {
    held.iter().map(|(key, fence)| json!({"key": key, "fence": fence})).collect()
}

/// gRPC client of the service.
type Grpc = WorkerServiceClient<tonic::transport::Channel>;

fn claims_proto(held: &Option<(String, u64)>) -> Option<HeldClaims> {
    let claims = held.iter().map(|(key, fence)| HeldClaim { tenant: None, key: key.clone(), fence: *fence });
    Some(HeldClaims { claims: claims.collect() })
}

async fn grpc_unary(mut client: Grpc, fleet: &Fleet, workers: Range<usize>, seq: u64) {
    for n in workers {
        let request = HeartbeatWorkerRequest {
            namespace: "bench".into(),
            pool: "beats".into(),
            id: worker_id(n),
            incarnation: 0,
            seq: Some(seq),
            claims: claims_proto(&fleet[n]),
        };
        client.heartbeat_worker(request).await.expect("accepted");
    }
}

async fn grpc_batch(mut client: Grpc, fleet: &Fleet, workers: Range<usize>, seq: u64) {
    let heartbeat =
        |n| WorkerHeartbeat { id: worker_id(n), incarnation: 0, seq: Some(seq), claims: claims_proto(&fleet[n]) };
    let workers = workers.map(heartbeat).collect();
    let request = BatchHeartbeatWorkersRequest { namespace: "bench".into(), pool: "beats".into(), workers };
    let items = client.batch_heartbeat_workers(request).await.expect("accepted").into_inner().items;
    assert!(items.iter().all(|item| matches!(&item.outcome, Some(Outcome::Heard(heard)) if heard.stop.is_empty())));
}

/// Sends one heartbeat of each of `workers`, `size` per task, and prints the cost for the service.
async fn measure<F: Future<Output = ()>>(
    server: &Server,
    label: &str,
    workers: usize,
    size: usize,
    send: impl Fn(Range<usize>) -> F,
) {
    let (before, start) = (cpu_s(server.child.id()), std::time::Instant::now());
    let chunks: Vec<_> = (0..workers).step_by(size).map(|first| first..workers.min(first + size)).collect();
    for batch in chunks.chunks(CALLERS) {
        join_all(batch.iter().cloned().map(&send)).await;
    }
    let cpu_used_s = cpu_s(server.child.id()) - before;
    let us_per_heartbeat = cpu_used_s * 1e6 / workers as f64;
    println!(
        "{label}: {workers} heartbeats in {:.2} s, {cpu_used_s:.3} s of processor, {us_per_heartbeat:.2} us each; 100,000 every 15 s: {:.1} % of a core",
        start.elapsed().as_secs_f64(),
        us_per_heartbeat * 100_000.0 / 15.0 / 1e4,
    );
}

#[tokio::main]
async fn main() {
    let workers = std::env::args().find_map(|arg| arg.strip_prefix("workers=")?.parse().ok()).unwrap_or(100_000);
    let server = Server::start(&[]);
    let http = Http::new(&server.address);
    let fleet = http.set_up(workers).await;
    let channel = Endpoint::from_shared(format!("http://{}", server.address)).expect("an address");
    let channel = channel.connect().await.expect("the service listens");
    let grpc = WorkerServiceClient::new(channel).max_decoding_message_size(ANSWER_BYTES_MAX);
    let mut seq = 0;
    for round in 1..=3 {
        println!("round {round}");
        for size in [10_000, 1_000, 100] {
            seq += 1;
            let send = |range| http.batch(&fleet, range, seq);
            measure(&server, &format!("HTTP, batches of {size}"), workers, size, send).await;
            seq += 1;
            let send = |range| grpc_batch(grpc.clone(), &fleet, range, seq);
            measure(&server, &format!("gRPC, batches of {size}"), workers, size, send).await;
        }
        seq += 1;
        measure(&server, "HTTP, one by one", workers, 1_000, |range| http.unary(&fleet, range, seq)).await;
        seq += 1;
        let send = |range| grpc_unary(grpc.clone(), &fleet, range, seq);
        measure(&server, "gRPC, one by one", workers, 1_000, send).await;
    }
}
