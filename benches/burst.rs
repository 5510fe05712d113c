//! A burst onto shared workers: 100 claims for cores only, on 10 to 40 workers; and a gang of 1,000 on 16 shards. In
//! process on `memory:` and on `file:`, and durable over HTTP, as one batch and as 100 concurrent calls. All claims are
//! released after each round. Updates of workers are read from the service's metrics. Prints the figures in
//! docs/BENCHMARKS.md.

mod service;

use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;
use futures::future::join_all;
use hdrhistogram::Histogram;
use http_body_util::{BodyExt as _, Full};
use hyper::{Method, Request};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use serde_json::{Value, json};
use service::Server;

use hotpool::model::claim_request::ClaimConstraints;
use hotpool::model::request_error::RequestError;
use hotpool::model::{
    ClaimId, ClaimRequest, ClaimResult, ClaimSpec, PoolMode, PoolName, PoolSpec, RegistrationRequest,
    ResourceRequirements, WorkerCapacity, WorkerId, WorkerSpec,
};
use hotpool::persist::store::SharedStore;
use hotpool::persist::store::file::FileStore;
use hotpool::persist::store::memory::MemoryStore;
use hotpool::scheduler::{Scheduler, SchedulerSettings};

const CLAIMS: usize = 100;
const ROUNDS: usize = 400;
/// Thousandths of a core per claim; one of 40 workers holds 8 claims, one of 10 holds 32.
const CPU_MILLI: u64 = 500;

fn histogram() -> Histogram<u64> {
    Histogram::new_with_bounds(1, 60_000_000_000, 3).expect("three digits")
}

fn print(label: &str, workers: usize, latency: &Histogram<u64>, worker_updates: f64) {
    let ms = |quantile| latency.value_at_quantile(quantile) as f64 / 1e6;
    let (p50, p99, max) = (ms(0.5), ms(0.99), latency.max() as f64 / 1e6);
    println!("{label:<34} {workers:>8} {p50:>10.3} {p99:>10.3} {max:>10.3} {worker_updates:>10.1}");
}

/// Cores of each worker: enough for all claims on 40 workers, proportionally more on 10.
fn capacity(workers: usize) -> u64 {
    (CLAIMS as u64 * CPU_MILLI).div_ceil(workers as u64).next_multiple_of(CPU_MILLI) + CPU_MILLI
}

fn pool() -> PoolName {
    PoolName::new("bench", "burst").expect("a name")
}

fn request(key: &str) -> ClaimRequest {
    let resources = ResourceRequirements { cpu_milli: CPU_MILLI, ..ResourceRequirements::default() };
    let constraints =
        ClaimConstraints { spec: ClaimSpec { resources, ..ClaimSpec::default() }, ..ClaimConstraints::default() };
    let id = ClaimId::new("bench", "default", key).expect("a key");
    ClaimRequest { constraints: Some(Box::new(constraints)), ..ClaimRequest::new(id, pool()) }
}

async fn scheduler(store: SharedStore, workers: usize, cpu_milli: u64) -> Scheduler {
    let scheduler = Scheduler::new(store, SchedulerSettings::default());
    scheduler.start().await.expect("a start");
    let spec = PoolSpec { mode: PoolMode::Shared, ..PoolSpec::default() };
    scheduler.put_pool(pool(), spec).await.expect("a pool");
    let workers = (0..workers).map(|n| {
        let capacity = WorkerCapacity { cpu_milli, ..WorkerCapacity::default() };
        let id = WorkerId::new(&format!("worker-{n:04}")).expect("an id");
        RegistrationRequest::from(WorkerSpec { capacity, ..WorkerSpec::with_id(id) })
    });
    for done in scheduler.register_batch(&pool(), workers.collect()).await.expect("the pool") {
        done.expect("a worker");
    }
    scheduler
}

async fn release(scheduler: &Scheduler, results: &[Result<ClaimResult, RequestError>]) {
    let claims = results.iter().map(|result| {
        let claim = &result.as_ref().expect("capacity for all").claim;
        (claim.id.clone(), claim.fence)
    });
    for done in scheduler.release_batch(claims.collect()).await {
        done.expect("a release");
    }
}

/// Number of distinct workers that hold the claims.
fn workers_of(results: &[Result<ClaimResult, RequestError>]) -> usize {
    let ids = results.iter().map(|result| result.as_ref().expect("capacity for all").claim.worker.spec.id.to_string());
    let mut ids: Vec<String> = ids.collect();
    ids.sort_unstable();
    ids.dedup();
    ids.len()
}

async fn in_process(label: &str, store: SharedStore, workers: usize) {
    let scheduler = scheduler(store, workers, capacity(workers)).await;
    let (mut latency, mut updates) = (histogram(), 0);
    for round in 0..ROUNDS {
        let requests = (0..CLAIMS).map(|n| request(&format!("r{round}-{n}"))).collect();
        let start = Instant::now();
        let results = scheduler.claim_batch(requests).await;
        latency.saturating_record(start.elapsed().as_nanos() as u64);
        updates += workers_of(&results);
        release(&scheduler, &results).await;
    }
    print(label, workers, &latency, updates as f64 / ROUNDS as f64);
    scheduler.stop().await;
}

async fn gang(label: &str, store: SharedStore) {
    let scheduler = scheduler(store, 400, 4 * CPU_MILLI).await;
    let mut latency = histogram();
    for round in 0..ROUNDS / 4 {
        let requests = (0..1_000).map(|n| request(&format!("g{round}-{n}"))).collect();
        let start = Instant::now();
        let results = scheduler.claim_gang(requests).await;
        latency.saturating_record(start.elapsed().as_nanos() as u64);
        release(&scheduler, &results).await;
    }
    print(label, 400, &latency, f64::NAN);
    scheduler.stop().await;
}

/// Requests in which a burst arrives.
#[derive(Clone, Copy, PartialEq, Eq)]
enum BurstShape {
    OneBatch,
    ConcurrentCalls,
}

/// Service process with an HTTP client.
struct Service {
    server: Server,
    client: Client<HttpConnector, Full<Bytes>>,
}

impl Service {
    fn start() -> Self {
        Self { server: Server::start(&[]), client: Client::builder(TokioExecutor::new()).build_http() }
    }

    async fn call(&self, method: Method, path: &str, body: &Value) -> Value {
        let request = Request::builder().method(method).uri(format!("http://{}{path}", self.server.address));
        let request = request.body(Full::new(body.to_string().into())).expect("a request");
        let response = self.client.request(request).await.expect("the service responds");
        let status = response.status();
        let body = response.into_body().collect().await.expect("a complete response").to_bytes();
        assert!(status.is_success(), "{path}: {status} {}", String::from_utf8_lossy(&body));
        serde_json::from_slice(&body).unwrap_or(Value::Null)
    }

    async fn set_up(&self, workers: usize) {
        let path = "/v1/pools/bench/burst";
        self.call(Method::DELETE, &format!("{path}?force=true"), &json!({})).await;
        self.call(Method::PUT, path, &json!({"mode": "shared"})).await;
        let capacity = json!({"cpu_milli": capacity(workers)});
        let all: Vec<_> = (0..workers).map(|n| json!({"id": format!("worker-{n:04}"), "capacity": capacity})).collect();
        self.call(Method::POST, &format!("{path}/workers:batch"), &json!({"workers": all})).await;
    }

    async fn worker_updates(&self) -> f64 {
        let request =
            Request::get(format!("http://{}/metrics", self.server.address)).body(Full::default()).expect("a request");
        let response =
            self.client.request(request).await.expect("metrics").into_body().collect().await.expect("a body");
        let text = String::from_utf8(response.to_bytes().to_vec()).expect("text");
        let line = text.lines().find(|line| line.starts_with("hotpool_worker_updates_total")).expect("the counter");
        line.rsplit(' ').next().and_then(|count| count.parse().ok()).expect("a number")
    }

    async fn release(&self, claims: &[Value]) {
        join_all(claims.iter().map(|claim| async move {
            let path = format!("/v1/claims/bench/{}:release", claim["key"].as_str().expect("a key"));
            self.call(Method::POST, &path, &json!({"fence": claim["fence"]})).await;
        }))
        .await;
    }

    async fn burst(&self, label: &str, workers: usize, shape: BurstShape) {
        self.set_up(workers).await;
        let (mut latency, mut updates) = (histogram(), 0.0);
        for round in 0..ROUNDS {
            let claim = |n| {
                json!({"namespace": "bench", "pool": "burst", "key": format!("h{round}-{n}"),
                       "resources": {"cpu_milli": CPU_MILLI}})
            };
            let bodies: Vec<Value> = (0..CLAIMS).map(claim).collect();
            let before = self.worker_updates().await;
            let start = Instant::now();
            let claims: Vec<Value> = if shape == BurstShape::OneBatch {
                let body = json!({"mode": "independent", "items": bodies});
                let mut response = self.call(Method::POST, "/v1/claims:batch", &body).await;
                let Value::Array(items) = response["items"].take() else { panic!("{response}") };
                items.into_iter().map(|mut item| item["claim"].take()).collect()
            } else {
                let calls = bodies.iter().map(|body| self.call(Method::POST, "/v1/claims", body));
                join_all(calls).await.into_iter().map(|mut response| response["claim"].take()).collect()
            };
            latency.saturating_record(start.elapsed().as_nanos() as u64);
            assert!(claims.iter().all(Value::is_object), "capacity for all");
            updates += self.worker_updates().await - before;
            self.release(&claims).await;
        }
        print(label, workers, &latency, updates / ROUNDS as f64);
    }
}

fn file_store() -> (SharedStore, tempfile::TempDir) {
    let dir = tempfile::tempdir().expect("a directory of our own");
    (Arc::new(FileStore::open(dir.path()).expect("a store")), dir)
}

#[tokio::main(flavor = "multi_thread", worker_threads = 2)]
async fn main() {
    println!(
        "{:<34} {:>8} {:>10} {:>10} {:>10} {:>10}",
        "100 claims; milliseconds", "workers", "p50", "p99", "max", "updates"
    );
    for workers in [10, 20, 40] {
        in_process("one batch, in process, memory:", Arc::new(MemoryStore), workers).await;
    }
    for workers in [10, 40] {
        let (store, _dir) = file_store();
        in_process("one batch, in process, file", store, workers).await;
    }
    let server = Service::start();
    server.call(Method::PUT, "/v1/pools/bench/burst", &json!({"mode": "shared"})).await;
    for workers in [10, 40] {
        server.burst("one batch, HTTP, durable (file)", workers, BurstShape::OneBatch).await;
        server.burst("100 concurrent calls, HTTP, durable", workers, BurstShape::ConcurrentCalls).await;
    }
    gang("a gang of 1,000, in process, memory:", Arc::new(MemoryStore)).await;
    let (store, _dir) = file_store();
    gang("a gang of 1,000, in process, file", store).await;
}
