//! RESP listener compared with Redis under an independent load generator: `redis-benchmark` alternates between `CLAIM`
//! here and `SPOP` on Redis, `RELEASE` here and `SADD` there. A `CLAIM` and its reply are longer than those of `SPOP`,
//! which costs the generator time. So Redis also serves requests of that length, an `MGET` of four values, and a bare
//! server answers `CLAIM` with as many bytes as the service and decides nothing: what the generator and the protocol
//! allow. Prints the figures in docs/BENCHMARKS.md; `-- rounds=5 claims=1000000 store=URL` sets rounds, claims, and the
//! store. The bare server is `hotpool-load echo`, so build that first: `cargo build --release`.

mod processor;
#[allow(dead_code, reason = "shared with the tests, which use all of it")]
#[path = "../tests/redis/servers.rs"]
mod servers;
mod service;

use std::io::{BufRead as _, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};

use bytes::Bytes;
use http_body_util::{BodyExt as _, Full};
use hyper::header::HOST;
use hyper::{Method, Request};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use processor::cpu_s;

type Http = Client<HttpConnector, Full<Bytes>>;

/// Measurement of one run of the generator.
#[derive(Clone, Copy)]
struct GeneratorRun {
    per_s: f64,
    p50_ms: f64,
    p99_ms: f64,
    /// Processor time of the server, in microseconds per request.
    server_us: f64,
}

/// Runs the generator once against a port.
fn run(pid: u32, port: u16, requests: usize, pipeline: usize, command: &[&str]) -> GeneratorRun {
    let before = cpu_s(pid);
    let output = Command::new("redis-benchmark")
        .args(["-p", &port.to_string(), "-c", "50", "-P", &pipeline.to_string()])
        .args(["-n", &requests.to_string(), "-r", &requests.to_string(), "--csv", "-e"])
        .args(command)
        .output()
        .expect("redis-benchmark is installed (Debian package redis-tools)");
    let server_us = (cpu_s(pid) - before) * 1e6 / requests as f64;
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success() && !text.contains("Error"), "{text}{}", String::from_utf8_lossy(&output.stderr));
    // test, rps, avg, min, p50, p95, p99, max
    let csv_row = text.lines().rfind(|csv_row| csv_row.starts_with('"')).expect("a row of figures");
    let figures: Vec<f64> =
        csv_row.split(',').rev().take(7).map(|word| word.trim_matches('"').parse().expect("a number")).collect();
    GeneratorRun { per_s: figures[6], p50_ms: figures[3], p99_ms: figures[1], server_us }
}

async fn send(http: &Http, method: Method, url: String, body: String) {
    let request =
        Request::builder().method(method).uri(url.as_str()).header(HOST, "localhost").body(Full::new(body.into()));
    let response = http.request(request.expect("a request")).await.expect("the service responds");
    let status = response.status();
    let body = response.into_body().collect().await.expect("a complete response").to_bytes();
    assert!(status.is_success(), "{url}: {}", String::from_utf8_lossy(&body));
}

/// Creates a pool of that many idle workers.
async fn fill(http: &Http, address: &str, workers: usize) {
    let pool = format!("http://{address}/v1/pools/bench/hot");
    send(http, Method::PUT, pool.clone(), r#"{"ack":"memory"}"#.into()).await;
    for first in (0..workers).step_by(10_000) {
        let ids: Vec<String> = (first..workers.min(first + 10_000)).map(|n| format!("{{\"id\":\"w{n}\"}}")).collect();
        send(http, Method::POST, format!("{pool}/workers:batch"), format!("{{\"workers\":[{}]}}", ids.join(","))).await;
    }
}

fn fill_redis(redis: &servers::Server, members: usize) {
    let _: () = redis.query(&["FLUSHALL"]);
    for first in (0..members).step_by(1_000) {
        let names: Vec<String> = (first..first + 1_000).map(|n| format!("w{n}")).collect();
        let words: Vec<&str> = ["SADD", "idle"].into_iter().chain(names.iter().map(String::as_str)).collect();
        let _: i64 = redis.query(&words);
    }
    // Values as long as the reply to a claim: a key, a fence, a worker.
    let _: () = redis.query(&["MSET", "b", "000000012345", "c", "1234567812345678", "d", "w123456"]);
}

/// Bare server, killed when dropped.
struct BareServer(Child);

impl BareServer {
    fn start(port: u16) -> Self {
        let binary = Path::new(env!("CARGO_BIN_EXE_hotpool")).with_file_name("hotpool-load");
        let mut command = Command::new(binary);
        command.args(["echo", "--resp-listen", &format!("127.0.0.1:{port}")]).stdout(Stdio::piped());
        let mut child = command.spawn().expect("hotpool-load is built: cargo build --release");
        let mut ready = String::new();
        BufReader::new(child.stdout.take().expect("piped")).read_line(&mut ready).expect("a ready line");
        assert!(ready.starts_with("echo "), "hotpool-load of this version is built: cargo build --release");
        Self(child)
    }
}

impl Drop for BareServer {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_unstable_by(f64::total_cmp);
    values[values.len() / 2]
}

fn print(pair: &str, pipeline: usize, rounds: &[(GeneratorRun, GeneratorRun)]) {
    let of = |figure: fn(&GeneratorRun) -> f64| {
        let (hotpool, redis): (Vec<_>, Vec<_>) =
            rounds.iter().map(|(hotpool, redis)| (figure(hotpool), figure(redis))).unzip();
        (median(hotpool), median(redis))
    };
    let ratio = median(rounds.iter().map(|(hotpool, redis)| hotpool.per_s / redis.per_s).collect());
    let (least, most) = rounds
        .iter()
        .map(|(hotpool, redis)| hotpool.per_s / redis.per_s)
        .fold((f64::MAX, 0.0_f64), |(least, most), r| (least.min(r), most.max(r)));
    let (per_s, p50_ms, p99_ms, us) = (of(|f| f.per_s), of(|f| f.p50_ms), of(|f| f.p99_ms), of(|f| f.server_us));
    println!(
        "{pair:<18} -P {pipeline:<2} {:>9.0}/s vs. {:>9.0}/s, ratio {ratio:.2} ({least:.2} to {most:.2}); p50 {:.3} vs. {:.3} ms, p99 {:.3} vs. {:.3} ms; server us a request {:.2} vs. {:.2}",
        per_s.0, per_s.1, p50_ms.0, p50_ms.1, p99_ms.0, p99_ms.1, us.0, us.1
    );
}

fn main() {
    let options: Vec<String> = std::env::args().skip(1).collect();
    let number = |name: &str, default: usize| {
        options.iter().find_map(|arg| arg.strip_prefix(name)?.parse().ok()).unwrap_or(default)
    };
    let (rounds, claims) = (number("rounds=", 5), number("claims=", 1_000_000));
    let store = options.iter().find_map(|arg| arg.strip_prefix("store=")).unwrap_or("memory:");
    let redis = servers::Server::start(&["--save", "", "--appendonly", "no"]);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    let http: Http = Client::builder(TokioExecutor::new()).build_http();
    for pipeline in [1, 16] {
        let requests = if pipeline == 1 { claims / 4 } else { claims };
        let (mut claims_spop, mut claims_mget, mut releases_sadd) = (Vec::new(), Vec::new(), Vec::new());
        let (mut claims_bare, mut bare_spop) = (Vec::new(), Vec::new());
        for _ in 0..rounds {
            // A new service each time, as Redis is flushed: the claims of a deleted pool are remembered for a while.
            let port = servers::free_port();
            let server = service::Server::start(&["--store", store, "--resp-listen", &format!("127.0.0.1:{port}")]);
            runtime.block_on(fill(&http, &server.address, requests));
            fill_redis(&redis, requests);
            let on_hotpool = |command: &[&str]| run(server.child.id(), port, requests, pipeline, command);
            let on_redis = |command: &[&str]| run(redis.pid(), redis.port, requests, pipeline, command);
            let spop = on_redis(&["SPOP", "idle"]);
            let command = ["CLAIM", "bench/hot", "KEY", "__rand_int__"];
            let claim = on_hotpool(&command);
            claims_spop.push((claim, spop));
            let bare_port = servers::free_port();
            let bare_server = BareServer::start(bare_port);
            let bare = run(bare_server.0.id(), bare_port, requests, pipeline, &command);
            drop(bare_server);
            claims_bare.push((claim, bare));
            bare_spop.push((bare, spop));
            claims_mget.push((claim, on_redis(&["MGET", "__rand_int__", "b", "c", "d"])));
            let sadd = on_redis(&["SADD", "idle", "__rand_int__"]);
            releases_sadd.push((on_hotpool(&["RELEASE", "bench", "__rand_int__", "*"]), sadd));
        }
        print("CLAIM / SPOP", pipeline, &claims_spop);
        print("CLAIM / bare CLAIM", pipeline, &claims_bare);
        print("bare CLAIM / SPOP", pipeline, &bare_spop);
        print("CLAIM / MGET", pipeline, &claims_mget);
        print("RELEASE / SADD", pipeline, &releases_sadd);
    }
}
