//! Redis store on a cluster of three masters that this program starts: durable claims compared with claims made in
//! Redis directly, the balance of one hot pool over the masters, the cost of `ack: memory` compared with `memory:`,
//! lag, and recovery. Prints the figures in docs/BENCHMARKS.md; `-- baseline alone http durable spread steady
//! recovery` selects some.

mod baseline;
mod processor;
#[allow(dead_code, reason = "shared with the tests, which use all of it")]
#[path = "../tests/redis/servers.rs"]
mod servers;
mod service;

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use baseline::{ClaimCost, measure_baseline};
use bytes::Bytes;
use hdrhistogram::Histogram;
use hotpool::environment::Environment;
use hotpool::model::{AckLevel, ClaimId, ClaimRequest, PoolName, PoolSpec, WorkerId, WorkerSpec};
use hotpool::persist::store::SharedStore;
use hotpool::persist::store::memory::MemoryStore;
use hotpool::persist::store::redis::RedisStore;
use hotpool::scheduler::{Scheduler, SchedulerSettings};
use hotpool::server::config;
use http_body_util::{BodyExt as _, Full};
use hyper::client::conn::http1;
use hyper::header::HOST;
use hyper::{Method, Request, StatusCode};
use hyper_util::rt::TokioIo;
use servers::Cluster;
use service::Server;
use tempfile::TempDir;
use tokio::net::TcpStream;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

const TIME: Duration = Duration::from_secs(4);

fn pool() -> PoolName {
    PoolName::new("bench", "hot").expect("a name")
}

fn request(pool: &PoolName, key: &str) -> ClaimRequest {
    let id = ClaimId::new("bench", "default", key).expect("a name");
    let affinity = id.hash64();
    ClaimRequest { affinity, reserve_ms: Some(0), ..ClaimRequest::new(id, pool.clone()) }
}

fn open(url: &str, dir: &TempDir) -> SharedStore {
    let settings = config::StoreConfig { data_dir: dir.path().to_owned(), ..config::StoreConfig::default() };
    Arc::new(
        RedisStore::open(settings.redis_options(url.parse().expect("a URL")), Environment::system()).expect("opens"),
    )
}

async fn scheduler(store: SharedStore, shards: u16, ack: AckLevel, workers: usize) -> Scheduler {
    let scheduler = Scheduler::new(store, SchedulerSettings { store_wait_ms: 60_000, ..SchedulerSettings::default() });
    scheduler.start().await.expect("starts");
    let spec = PoolSpec { shards, ack, lag_max_ms: 60_000, ..PoolSpec::default() };
    scheduler.put_pool(pool(), spec).await.expect("a pool");
    for first in (0..workers).step_by(10_000) {
        let specs = (first..workers.min(first + 10_000))
            .map(|n| WorkerSpec::with_id(WorkerId::new(&format!("worker-{n:07}")).expect("a name")));
        let outcomes = scheduler.register_batch(&pool(), specs.map(Into::into).collect()).await.expect("a pool");
        assert!(outcomes.iter().all(Result::is_ok), "{outcomes:?}");
    }
    scheduler
}

/// Pairs of claim and release per second, each awaited, by `clients` tasks.
async fn pairs(scheduler: &Scheduler, clients: usize, time: Duration) -> f64 {
    let start = Instant::now();
    let tasks: Vec<_> = (0..clients)
        .map(|client| {
            let (scheduler, pool) = (scheduler.clone(), pool());
            tokio::spawn(async move {
                let keys: Vec<String> = (0..64).map(|n| format!("{client}-{n}")).collect();
                let mut pairs = 0_usize;
                while start.elapsed() < time {
                    let result = scheduler.claim(request(&pool, &keys[pairs % keys.len()])).await.expect("capacity");
                    scheduler.release(&result.claim.id, result.claim.fence).await.expect("held");
                    pairs += 1;
                }
                pairs
            })
        })
        .collect();
    let mut total = 0;
    for task in tasks {
        total += task.await.expect("no panic");
    }
    total as f64 / start.elapsed().as_secs_f64()
}

/// Claims per second without releases, each awaited, under fresh keys, as the baseline makes them.
async fn claims(scheduler: &Scheduler, clients: usize, time: Duration) -> f64 {
    let start = Instant::now();
    let tasks: Vec<_> = (0..clients)
        .map(|client| {
            let (scheduler, pool) = (scheduler.clone(), pool());
            tokio::spawn(async move {
                let mut claims = 0_usize;
                while start.elapsed() < time {
                    scheduler.claim(request(&pool, &format!("{client}-{claims}"))).await.expect("capacity");
                    claims += 1;
                }
                claims
            })
        })
        .collect();
    let mut total = 0;
    for task in tasks {
        total += task.await.expect("no panic");
    }
    total as f64 / start.elapsed().as_secs_f64()
}

/// Waits until the store has every record.
async fn wait_for_store(scheduler: &Scheduler) {
    while scheduler.get_pool(&pool()).await.expect("a pool").shards.iter().any(|shard| shard.lag_ms > 0) {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

async fn baseline(cluster: &Cluster) {
    for clients in [16, 64, 256] {
        let cost = measure_baseline(cluster, clients, TIME).await;
        cost.print(&format!("SPOP and versioned rows, {clients} clients"));
    }
}

async fn durable(cluster: &Cluster) {
    for shards in [16, 64] {
        for clients in [64, 1_024, 4_096] {
            flush(cluster);
            let dir = TempDir::new().expect("a directory");
            let scheduler = scheduler(open(&cluster.url(), &dir), shards, AckLevel::Durable, 20_000).await;
            let rate = pairs(&scheduler, clients, TIME).await;
            println!(
                "{:<56} {rate:>10.0} pairs/s",
                format!("durable, in process, {shards} shards, {clients} in flight")
            );
            scheduler.stop().await;
        }
    }
}

/// Workers for claims that are never released, more than can be claimed in the time.
const CLAIMS_ALONE_MAX: usize = 2_500_000;

/// Alternates the workload of [`baseline`] at its best with durable claims: the speed of the host varies, so only
/// neighbours compare.
async fn alone(cluster: &Cluster) {
    let (mut rate_ratios, mut cost_ratios) = (Vec::new(), Vec::new());
    for round in 1..=5 {
        let mut best: Option<ClaimCost> = None;
        for clients in [16, 64] {
            let cost = measure_baseline(cluster, clients, Duration::from_secs(2)).await;
            best = best.filter(|best| best.per_s > cost.per_s).or(Some(cost));
        }
        let baseline_cost = best.expect("two");
        baseline_cost.print(&format!("{round}: SPOP and versioned rows, the better of 16 and 64 clients"));
        flush(cluster);
        let dir = TempDir::new().expect("a directory");
        let scheduler = scheduler(open(&cluster.url(), &dir), 16, AckLevel::Durable, CLAIMS_ALONE_MAX).await;
        wait_for_store(&scheduler).await;
        let cost = ClaimCost::measure(cluster, claims(&scheduler, 1_024, Duration::from_secs(3))).await;
        cost.print(&format!("{round}: durable claims alone, in process, 16 shards, 1024 in flight"));
        scheduler.stop().await;
        rate_ratios.push(cost.per_s / baseline_cost.per_s);
        cost_ratios.push(baseline_cost.us() / cost.us());
    }
    for (what, mut ratios) in [("claims/s", rate_ratios), ("processor time per claim", cost_ratios)] {
        ratios.sort_unstable_by(f64::total_cmp);
        println!("ratio by {what}: median {:.1}, least {:.1}, most {:.1}", ratios[2], ratios[0], ratios[4]);
    }
}

/// Sends one request on a connection, and reads the whole response.
async fn send(sender: &mut http1::SendRequest<Full<Bytes>>, method: Method, path: &str, body: String) -> StatusCode {
    let request = Request::builder().method(method).uri(path).header(HOST, "localhost").body(Full::new(body.into()));
    sender.ready().await.expect("a connection");
    let response = sender.send_request(request.expect("a request")).await.expect("a response");
    let status = response.status();
    response.into_body().collect().await.expect("a complete response");
    status
}

async fn connect(address: &str) -> http1::SendRequest<Full<Bytes>> {
    let stream = TcpStream::connect(address).await.expect("the service listens");
    let _ = stream.set_nodelay(true);
    let (sender, connection) = http1::handshake(TokioIo::new(stream)).await.expect("HTTP/1.1");
    tokio::spawn(connection);
    sender
}

/// Claims as in [`alone`], through the service: one per request, one request in flight per connection.
async fn http(cluster: &Cluster) {
    const WORKERS: usize = 300_000;
    for clients in [64, 256, 64, 256] {
        flush(cluster);
        let server = Server::start(&["--store", &cluster.url()]);
        let address = server.address.clone();
        let mut sender = connect(&address).await;
        let status = send(&mut sender, Method::PUT, "/v1/pools/bench/http", "{}".into()).await;
        assert!(status.is_success(), "{status}");
        for first in (0..WORKERS).step_by(10_000) {
            let ids: Vec<String> = (first..first + 10_000).map(|n| format!("{{\"id\":\"w{n}\"}}")).collect();
            let body = format!("{{\"workers\":[{}]}}", ids.join(","));
            let completed = send(&mut sender, Method::POST, "/v1/pools/bench/http/workers:batch", body).await;
            assert!(completed.is_success(), "{completed}");
        }
        let start = Instant::now();
        let tasks: Vec<_> = (0..clients)
            .map(|client| {
                let address = address.clone();
                tokio::spawn(async move {
                    let mut sender = connect(&address).await;
                    let mut claims = 0_usize;
                    while start.elapsed() < TIME {
                        let body =
                            format!("{{\"namespace\":\"bench\",\"pool\":\"http\",\"key\":\"{client}-{claims}\"}}");
                        let status = send(&mut sender, Method::POST, "/v1/claims", body).await;
                        assert_eq!(status, StatusCode::CREATED);
                        claims += 1;
                    }
                    claims
                })
            })
            .collect();
        let mut total = 0;
        for task in tasks {
            total += task.await.expect("no panic");
        }
        let rate = total as f64 / start.elapsed().as_secs_f64();
        println!("{:<56} {rate:>10.0} claims/s", format!("durable claims alone, unary HTTP, {clients} clients"));
    }
}

async fn balance(cluster: &Cluster) {
    for shards in [64, 16] {
        flush(cluster);
        let dir = TempDir::new().expect("a directory");
        let scheduler = scheduler(open(&cluster.url(), &dir), shards, AckLevel::Durable, 100_000).await;
        for master in &cluster.masters {
            let _: () = master.query(&["CONFIG", "RESETSTAT"]);
        }
        pairs(&scheduler, 1_024, TIME).await;
        let figure = |section: &str, name: &str| -> Vec<f64> {
            let read = |text: String| {
                let line = text.lines().find_map(|line| line.strip_prefix(name).map(str::to_owned)).unwrap_or_default();
                line.split(',').next().and_then(|n| n.trim().parse().ok()).unwrap_or(0.0)
            };
            cluster.masters.iter().map(|master| read(master.query(&["INFO", section]))).collect()
        };
        for (what, values) in [
            ("writes", figure("commandstats", "cmdstat_fcall:calls=")),
            ("bytes", figure("stats", "total_net_input_bytes:")),
            ("rows", figure("commandstats", "cmdstat_hset:calls=")),
        ] {
            let mean = values.iter().sum::<f64>() / values.len() as f64;
            let ratio = values.iter().copied().fold(0.0, f64::max) / mean;
            println!("{:<56} {ratio:>10.3} max/mean {values:?}", format!("{shards} shards, {what} per master"));
        }
        scheduler.stop().await;
    }
}

/// Whether a run samples the lag of the store.
#[derive(Clone, Copy, PartialEq, Eq)]
enum LagSampling {
    Off,
    On,
}

/// Claims and releases at a fixed rate, acknowledged from memory. Latency counts from the intended time. Prints p50,
/// p99, and the lag.
async fn steady(name: &str, store: SharedStore, rate: usize, lag_sampling: LagSampling) {
    const CLIENTS: usize = 64;
    let scheduler = scheduler(store, 16, AckLevel::Memory, 20_000).await;
    wait_for_store(&scheduler).await;
    let start = Instant::now();
    let completed = Arc::new(AtomicUsize::new(0));
    let tasks: Vec<_> = (0..CLIENTS)
        .map(|client| {
            let (scheduler, pool, completed) = (scheduler.clone(), pool(), Arc::clone(&completed));
            tokio::spawn(async move {
                let mut latency_us = Histogram::<u64>::new(3).expect("bounds");
                let keys: Vec<String> = (0..64).map(|n| format!("{client}-{n}")).collect();
                let per_ms = rate as f64 / CLIENTS as f64 / 1_000.0;
                let mut sent = 0_usize;
                while start.elapsed() < TIME {
                    let due = (start.elapsed().as_secs_f64() * 1_000.0 * per_ms) as usize;
                    while sent < due {
                        let intended = start + Duration::from_secs_f64(sent as f64 / per_ms / 1_000.0);
                        let result = scheduler.claim(request(&pool, &keys[sent % keys.len()])).await.expect("capacity");
                        latency_us.saturating_record(intended.elapsed().as_micros() as u64);
                        scheduler.release(&result.claim.id, result.claim.fence).await.expect("held");
                        sent += 1;
                    }
                    tokio::time::sleep(Duration::from_millis(1)).await;
                }
                completed.fetch_add(sent, Ordering::Relaxed);
                latency_us
            })
        })
        .collect();
    let mut lags = Histogram::<u64>::new(3).expect("bounds");
    while lag_sampling == LagSampling::On && start.elapsed() < TIME {
        tokio::time::sleep(Duration::from_millis(5)).await;
        let status = scheduler.get_pool(&pool()).await.expect("a pool");
        lags.saturating_record(status.shards.iter().map(|shard| shard.lag_ms).max().unwrap_or(0));
    }
    let mut total = Histogram::<u64>::new(3).expect("bounds");
    for task in tasks {
        total.add(task.await.expect("no panic")).expect("same bounds");
    }
    let reached = completed.load(Ordering::Relaxed) as f64 / start.elapsed().as_secs_f64();
    let lag = match lag_sampling {
        LagSampling::On => format!(", lag p99 {} ms", lags.value_at_quantile(0.99)),
        LagSampling::Off => String::new(),
    };
    println!(
        "{:<56} {reached:>10.0} pairs/s, p50 {} us, p99 {} us{lag}",
        format!("memory-acknowledged at {rate}/s, {name}"),
        total.value_at_quantile(0.5),
        total.value_at_quantile(0.99)
    );
    scheduler.stop().await;
}

async fn recovery(cluster: &Cluster, workers: usize) {
    flush(cluster);
    let dir = TempDir::new().expect("a directory");
    let url = cluster.url();
    let first = scheduler(open(&url, &dir), 16, AckLevel::Durable, workers).await;
    first.stop().await;
    drop(first);
    let settings = config::StoreConfig { data_dir: dir.path().to_owned(), ..config::StoreConfig::default() };
    let store = loop {
        // The actors release the store when their tasks have ended.
        match RedisStore::open(settings.redis_options(url.parse().expect("a URL")), Environment::system()) {
            Ok(store) => break store,
            Err(_) => tokio::task::yield_now().await,
        }
    };
    let start = Instant::now();
    let second = Scheduler::new(Arc::new(store), SchedulerSettings::default());
    second.start().await.expect("recovers");
    println!("{:<56} {:>10.2} s", format!("recovery of {workers} workers"), start.elapsed().as_secs_f64());
    let status = second.get_pool(&pool()).await.expect("recovered");
    assert_eq!(status.shards.iter().map(|shard| shard.workers).sum::<u64>(), workers as u64);
    second.stop().await;
}

fn flush(cluster: &Cluster) {
    for master in &cluster.masters {
        let _: () = master.query(&["FLUSHALL"]);
    }
}

fn main() {
    let selected: Vec<String> = std::env::args().skip(1).filter(|arg| !arg.starts_with('-')).collect();
    let is_selected = |name: &str| selected.is_empty() || selected.iter().any(|selected| selected == name);
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().expect("a runtime");
    let cluster = Cluster::start(3, 0, &[]);
    runtime.block_on(async {
        if is_selected("baseline") {
            baseline(&cluster).await;
        }
        if is_selected("alone") {
            alone(&cluster).await;
        }
        if is_selected("http") {
            http(&cluster).await;
        }
        if is_selected("durable") {
            durable(&cluster).await;
        }
        if is_selected("spread") {
            balance(&cluster).await;
        }
        if is_selected("steady") {
            for rate in [100_000, 200_000] {
                flush(&cluster);
                let dir = TempDir::new().expect("a directory");
                steady("memory:", Arc::new(MemoryStore), rate, LagSampling::Off).await;
                steady("Redis", open(&cluster.url(), &dir), rate, LagSampling::On).await;
            }
        }
        if is_selected("recovery") {
            recovery(&cluster, 1_000_000).await;
        }
    });
}
