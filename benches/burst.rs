//! A burst onto shares of workers: 100 claims that need cores only, on 10 to 40 workers; and a gang of 1,000 on 16 shards.
//! In process on `memory:` and on redb, and durable over HTTP, as one batch and as 100 calls at once. After each round all
//! is released. Touches are counted from the pool's own figures. The figures in docs/BENCHMARKS.md come from here.

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
use hotpool::persist::store::memory::MemoryStore;
use hotpool::persist::store::redb::RedbStore;
use hotpool::scheduler::{Scheduler, SchedulerSettings};

const CLAIMS: usize = 100;
const ROUNDS: usize = 400;
/// Thousandths of a core of each claim; a worker of 40 holds 8 of them, one of 10 holds 32.
const CPU_MILLI: u64 = 500;

fn histogram() -> Histogram<u64> {
    Histogram::new_with_bounds(1, 60_000_000_000, 3).expect("three digits")
}

fn print(what: &str, workers: usize, took: &Histogram<u64>, touches: f64) {
    let ms = |quantile| took.value_at_quantile(quantile) as f64 / 1e6;
    let (p50, p99, most) = (ms(0.5), ms(0.99), took.max() as f64 / 1e6);
    println!("{what:<34} {workers:>8} {p50:>10.3} {p99:>10.3} {most:>10.3} {touches:>10.1}");
}

/// Just enough for all of them on 40 workers; on 10 more of each.
fn capacity(workers: usize) -> u64 {
    (CLAIMS as u64 * CPU_MILLI).div_ceil(workers as u64).next_multiple_of(CPU_MILLI) + CPU_MILLI
}

fn pool() -> PoolName {
    PoolName::new("bench", "burst").expect("a name")
}

fn request(key: &str) -> ClaimRequest {
    let resources = ResourceRequirements { cpu_milli: CPU_MILLI, ..ResourceRequirements::default() };
    let ask = ClaimConstraints { spec: ClaimSpec { resources, ..ClaimSpec::default() }, ..ClaimConstraints::default() };
    let id = ClaimId::new("bench", "default", key).expect("a key");
    ClaimRequest { constraints: Some(Box::new(ask)), ..ClaimRequest::new(id, pool()) }
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

async fn release(scheduler: &Scheduler, taken: &[Result<ClaimResult, RequestError>]) {
    let held = taken.iter().map(|taken| {
        let claim = &taken.as_ref().expect("room for all").claim;
        (claim.id.clone(), claim.fence)
    });
    for done in scheduler.release_batch(held.collect()).await {
        done.expect("a release");
    }
}

/// Distinct workers that hold these.
fn workers_of(taken: &[Result<ClaimResult, RequestError>]) -> usize {
    let ids = taken.iter().map(|taken| taken.as_ref().expect("room for all").claim.worker.spec.id.to_string());
    let mut ids: Vec<String> = ids.collect();
    ids.sort_unstable();
    ids.dedup();
    ids.len()
}

async fn in_process(what: &str, store: SharedStore, workers: usize) {
    let scheduler = scheduler(store, workers, capacity(workers)).await;
    let (mut took, mut touched) = (histogram(), 0);
    for round in 0..ROUNDS {
        let requests = (0..CLAIMS).map(|n| request(&format!("r{round}-{n}"))).collect();
        let begun = Instant::now();
        let taken = scheduler.claim_batch(requests).await;
        took.saturating_record(begun.elapsed().as_nanos() as u64);
        touched += workers_of(&taken);
        release(&scheduler, &taken).await;
    }
    print(what, workers, &took, touched as f64 / ROUNDS as f64);
    scheduler.stop().await;
}

async fn gang(what: &str, store: SharedStore) {
    let scheduler = scheduler(store, 400, 4 * CPU_MILLI).await;
    let mut took = histogram();
    for round in 0..ROUNDS / 4 {
        let requests = (0..1_000).map(|n| request(&format!("g{round}-{n}"))).collect();
        let begun = Instant::now();
        let taken = scheduler.claim_gang(requests).await;
        took.saturating_record(begun.elapsed().as_nanos() as u64);
        release(&scheduler, &taken).await;
    }
    print(what, 400, &took, f64::NAN);
    scheduler.stop().await;
}

/// The service, and a way to it.
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
        let answer = self.client.request(request).await.expect("the service answers");
        let status = answer.status();
        let body = answer.into_body().collect().await.expect("a whole answer").to_bytes();
        assert!(status.is_success(), "{path}: {status} {}", String::from_utf8_lossy(&body));
        serde_json::from_slice(&body).unwrap_or(Value::Null)
    }

    async fn set_up(&self, workers: usize) {
        let path = "/v1/pools/bench/burst";
        self.call(Method::DELETE, &format!("{path}?force=true"), &json!({})).await;
        self.call(Method::PUT, path, &json!({"mode": "shared"})).await;
        let each = json!({"cpu_milli": capacity(workers)});
        let all: Vec<_> = (0..workers).map(|n| json!({"id": format!("worker-{n:04}"), "capacity": each})).collect();
        self.call(Method::POST, &format!("{path}/workers:batch"), &json!({"workers": all})).await;
    }

    async fn touches(&self) -> f64 {
        let request =
            Request::get(format!("http://{}/metrics", self.server.address)).body(Full::default()).expect("a request");
        let answer = self.client.request(request).await.expect("metrics").into_body().collect().await.expect("a body");
        let text = String::from_utf8(answer.to_bytes().to_vec()).expect("text");
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

    /// One batch, or 100 calls at once.
    async fn burst(&self, what: &str, workers: usize, batch: bool) {
        self.set_up(workers).await;
        let (mut took, mut touched) = (histogram(), 0.0);
        for round in 0..ROUNDS {
            let claim = |n| {
                json!({"namespace": "bench", "pool": "burst", "key": format!("h{round}-{n}"),
                       "resources": {"cpu_milli": CPU_MILLI}})
            };
            let bodies: Vec<Value> = (0..CLAIMS).map(claim).collect();
            let before = self.touches().await;
            let begun = Instant::now();
            let claims: Vec<Value> = if batch {
                let body = json!({"mode": "independent", "items": bodies});
                let mut answer = self.call(Method::POST, "/v1/claims:batch", &body).await;
                let Value::Array(items) = answer["items"].take() else { panic!("{answer}") };
                items.into_iter().map(|mut item| item["claim"].take()).collect()
            } else {
                let calls = bodies.iter().map(|body| self.call(Method::POST, "/v1/claims", body));
                join_all(calls).await.into_iter().map(|mut answer| answer["claim"].take()).collect()
            };
            took.saturating_record(begun.elapsed().as_nanos() as u64);
            assert!(claims.iter().all(Value::is_object), "room for all");
            touched += self.touches().await - before;
            self.release(&claims).await;
        }
        print(what, workers, &took, touched / ROUNDS as f64);
    }
}

fn redb() -> (SharedStore, tempfile::TempDir) {
    let dir = tempfile::tempdir().expect("a directory of our own");
    (Arc::new(RedbStore::open(dir.path()).expect("a store")), dir)
}

#[tokio::main(flavor = "multi_thread", worker_threads = 2)]
async fn main() {
    println!(
        "{:<34} {:>8} {:>10} {:>10} {:>10} {:>10}",
        "100 claims; milliseconds", "workers", "p50", "p99", "max", "touched"
    );
    for workers in [10, 20, 40] {
        in_process("one batch, in process, memory:", Arc::new(MemoryStore), workers).await;
    }
    for workers in [10, 40] {
        let (store, _dir) = redb();
        in_process("one batch, in process, redb", store, workers).await;
    }
    let server = Service::start();
    server.call(Method::PUT, "/v1/pools/bench/burst", &json!({"mode": "shared"})).await;
    for workers in [10, 40] {
        server.burst("one batch, HTTP, durable (redb)", workers, true).await;
        server.burst("100 calls at once, HTTP, durable", workers, false).await;
    }
    gang("a gang of 1,000, in process, memory:", Arc::new(MemoryStore)).await;
    let (store, _dir) = redb();
    gang("a gang of 1,000, in process, redb", store).await;
}
