//! The RESP edge beside the server whose protocol it speaks, under a load generator that nobody here wrote: `redis-benchmark`
//! sends `CLAIM` here and `SPOP` to Redis, `RELEASE` here and `SADD` there, in turns. A `CLAIM` and its answer are longer than
//! an `SPOP` and its own, which the generator pays for, so Redis is also asked for something as long: an `MGET` of four
//! values. Prints the figures in docs/BENCHMARKS.md; `-- rounds=5 claims=1000000 store=URL` changes how often, how many, and where records go.

mod processor;
#[allow(dead_code, reason = "shared with the tests, which use all of it")]
#[path = "../tests/redis/servers.rs"]
mod servers;
mod service;

use std::process::Command;

use bytes::Bytes;
use http_body_util::{BodyExt as _, Full};
use hyper::header::HOST;
use hyper::{Method, Request};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use processor::cpu_s;

type Http = Client<HttpConnector, Full<Bytes>>;

/// What one run of the generator found.
#[derive(Clone, Copy)]
struct Found {
    per_s: f64,
    p50_ms: f64,
    p99_ms: f64,
    /// Processor time of the server, in microseconds a request.
    server_us: f64,
}

/// One run of the generator against a port.
fn run(pid: u32, port: u16, requests: usize, pipeline: usize, command: &[&str]) -> Found {
    let before = cpu_s(pid);
    let said = Command::new("redis-benchmark")
        .args(["-p", &port.to_string(), "-c", "50", "-P", &pipeline.to_string()])
        .args(["-n", &requests.to_string(), "-r", &requests.to_string(), "--csv", "-e"])
        .args(command)
        .output()
        .expect("redis-benchmark is there: Debian has it in redis-tools");
    let server_us = (cpu_s(pid) - before) * 1e6 / requests as f64;
    let text = String::from_utf8_lossy(&said.stdout);
    assert!(said.status.success() && !text.contains("Error"), "{text}{}", String::from_utf8_lossy(&said.stderr));
    // test, rps, avg, min, p50, p95, p99, max
    let line = text.lines().rfind(|line| line.starts_with('"')).expect("a line of figures");
    let figures: Vec<f64> =
        line.split(',').rev().take(7).map(|word| word.trim_matches('"').parse().expect("a number")).collect();
    Found { per_s: figures[6], p50_ms: figures[3], p99_ms: figures[1], server_us }
}

async fn send(http: &Http, method: Method, url: String, body: String) {
    let request =
        Request::builder().method(method).uri(url.as_str()).header(HOST, "bench").body(Full::new(body.into()));
    let answer = http.request(request.expect("a request")).await.expect("the service answers");
    let status = answer.status();
    let body = answer.into_body().collect().await.expect("a whole answer").to_bytes();
    assert!(status.is_success(), "{url}: {}", String::from_utf8_lossy(&body));
}

/// A pool with so many idle workers.
async fn fill(http: &Http, address: &str, workers: usize) {
    let pool = format!("http://{address}/v1/pools/bench/hot");
    send(http, Method::PUT, pool.clone(), r#"{"ack":"memory"}"#.into()).await;
    for from in (0..workers).step_by(10_000) {
        let ids: Vec<String> = (from..workers.min(from + 10_000)).map(|n| format!("{{\"id\":\"w{n}\"}}")).collect();
        send(http, Method::POST, format!("{pool}/workers:batch"), format!("{{\"workers\":[{}]}}", ids.join(","))).await;
    }
}

fn fill_redis(redis: &servers::Server, members: usize) {
    let _: () = redis.ask(&["FLUSHALL"]);
    for from in (0..members).step_by(1_000) {
        let names: Vec<String> = (from..from + 1_000).map(|n| format!("w{n}")).collect();
        let words: Vec<&str> = ["SADD", "idle"].into_iter().chain(names.iter().map(String::as_str)).collect();
        let _: i64 = redis.ask(&words);
    }
    // As long as what a claim is answered: a key, a fence, a worker.
    let _: () = redis.ask(&["MSET", "b", "000000012345", "c", "12345678", "d", "w123456"]);
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_unstable_by(f64::total_cmp);
    values[values.len() / 2]
}

fn print(pair: &str, pipeline: usize, rounds: &[(Found, Found)]) {
    let of = |pick: fn(&Found) -> f64| {
        let (ours, theirs): (Vec<_>, Vec<_>) = rounds.iter().map(|(ours, theirs)| (pick(ours), pick(theirs))).unzip();
        (median(ours), median(theirs))
    };
    let ratio = median(rounds.iter().map(|(ours, theirs)| ours.per_s / theirs.per_s).collect());
    let (least, most) = rounds
        .iter()
        .map(|(ours, theirs)| ours.per_s / theirs.per_s)
        .fold((f64::MAX, 0.0_f64), |(least, most), r| (least.min(r), most.max(r)));
    let (per_s, p50_ms, p99_ms, us) = (of(|f| f.per_s), of(|f| f.p50_ms), of(|f| f.p99_ms), of(|f| f.server_us));
    println!(
        "{pair:<16} -P {pipeline:<2} {:>9.0}/s beside {:>9.0}/s, ratio {ratio:.2} ({least:.2} to {most:.2}); p50 {:.3} beside {:.3} ms, p99 {:.3} beside {:.3} ms; server us a request {:.2} beside {:.2}",
        per_s.0, per_s.1, p50_ms.0, p50_ms.1, p99_ms.0, p99_ms.1, us.0, us.1
    );
}

fn main() {
    let asked: Vec<String> = std::env::args().skip(1).collect();
    let number = |name: &str, default: usize| {
        asked.iter().find_map(|arg| arg.strip_prefix(name)?.parse().ok()).unwrap_or(default)
    };
    let (rounds, claims) = (number("rounds=", 5), number("claims=", 1_000_000));
    let store = asked.iter().find_map(|arg| arg.strip_prefix("store=")).unwrap_or("memory:");
    let redis = servers::Server::start(&["--save", "", "--appendonly", "no"]);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    let http: Http = Client::builder(TokioExecutor::new()).build_http();
    for pipeline in [1, 16] {
        let requests = if pipeline == 1 { claims / 4 } else { claims };
        let (mut taken, mut alike, mut given) = (Vec::new(), Vec::new(), Vec::new());
        for _ in 0..rounds {
            // A new one each time, as Redis forgets all: a pool that is deleted with its claims is remembered for a while.
            let port = servers::free_port();
            let server = service::Server::start(&["--store", store, "--resp-listen", &format!("127.0.0.1:{port}")]);
            runtime.block_on(fill(&http, &server.address, requests));
            fill_redis(&redis, requests);
            let here = |command: &[&str]| run(server.child.id(), port, requests, pipeline, command);
            let there = |command: &[&str]| run(redis.pid(), redis.port, requests, pipeline, command);
            let theirs = there(&["SPOP", "idle"]);
            let ours = here(&["CLAIM", "bench/hot", "KEY", "__rand_int__"]);
            taken.push((ours, theirs));
            alike.push((ours, there(&["MGET", "__rand_int__", "b", "c", "d"])));
            let theirs = there(&["SADD", "idle", "__rand_int__"]);
            given.push((here(&["RELEASE", "bench", "__rand_int__", "*"]), theirs));
        }
        print("CLAIM / SPOP", pipeline, &taken);
        print("CLAIM / MGET", pipeline, &alike);
        print("RELEASE / SADD", pipeline, &given);
    }
}
