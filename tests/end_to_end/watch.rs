//! Watching a pool: over server-sent events, gRPC and the command line.

use std::io::{BufRead as _, BufReader, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use hotpool::api::grpc::proto::{PoolEvent, PoolEventReason, PoolEventType, WatchPoolRequest};
use hotpool::limits;
use serde_json::{Value, json};
use tonic::{Code, Streaming};

use crate::client::Client;
use crate::grpc::grpc_client::{GrpcClient, expect};
use crate::server::{Running, Server, with_pool};

const POOL: &str = "/v1/pools/ns/warm";
const EVENTS: &str = "/v1/pools/ns/warm/events";
const TIMEOUT: Duration = Duration::from_secs(30);

/// Watcher of a pool over HTTP.
pub struct Watcher(BufReader<TcpStream>);

impl Watcher {
    pub fn open(address: SocketAddr, path: &str, headers: &str) -> Self {
        let mut stream = TcpStream::connect(address).unwrap();
        stream.set_read_timeout(Some(TIMEOUT)).unwrap();
        write!(stream, "GET {path} HTTP/1.1\r\nhost: localhost\r\n{headers}\r\n").unwrap();
        let mut reader = BufReader::new(stream);
        let mut head = String::new();
        while !head.ends_with("\r\n\r\n") {
            assert!(reader.read_line(&mut head).unwrap() > 0, "{head}");
        }
        assert!(head.starts_with("HTTP/1.1 200") && head.contains("content-type: text/event-stream"), "{head}");
        Self(reader)
    }

    /// Returns the next event, or `None` at the end of the stream. Comments and chunk sizes are skipped.
    fn next(&mut self) -> Option<Value> {
        let (mut id, mut kind, mut data) = (None, None, None::<Value>);
        loop {
            let mut line = String::new();
            if self.0.read_line(&mut line).unwrap() == 0 {
                return None;
            }
            match line.trim_end().split_once(": ") {
                Some(("id", value)) => id = Some(value.to_owned()),
                Some(("event", value)) => kind = Some(value.to_owned()),
                Some(("data", value)) => data = Some(serde_json::from_str(value).unwrap()),
                _ if line.trim_end().is_empty() && data.is_some() => break,
                _ => {}
            }
        }
        let data = data.unwrap();
        assert_eq!((data["position"].as_str(), data["event"].as_str()), (id.as_deref(), kind.as_deref()));
        Some(data)
    }

    pub fn event(&mut self) -> Value {
        self.next().expect("an event")
    }

    /// Returns so many events in short form.
    fn summaries(&mut self, n: usize) -> Vec<String> {
        (0..n).map(|_| summary(&self.event())).collect()
    }
}

fn summary(event: &Value) -> String {
    let parts = ["event", "worker", "key", "reason"].map(|name| event[name].as_str());
    parts.into_iter().flatten().collect::<Vec<_>>().join(" ")
}

fn position(event: &Value) -> String {
    event["position"].as_str().unwrap().to_owned()
}

fn claim(key: &str, worker: &str) -> Value {
    json!({"namespace": "ns", "pool": "warm", "key": key, "worker": worker, "reserve_ms": 0})
}

fn take(client: &mut Client, key: &str, worker: &str) -> Value {
    client.post("/v1/claims", &claim(key, worker)).expect(201)["claim"]["fence"].take()
}

fn release(client: &mut Client, key: &str, fence: &Value) {
    client.post(&format!("/v1/claims/ns/{key}:release"), &json!({"fence": fence})).expect(200);
}

#[test]
fn all_events_arrive_in_order() {
    let (_dir, server, mut client) = with_pool(1);
    let mut watcher = Watcher::open(server.address, EVENTS, "");
    let started = watcher.event();
    assert_eq!(summary(&started), "started");
    let worker = format!("{POOL}/workers/w0");
    let fence = take(&mut client, "a", "w0");
    client.post("/v1/claims", &claim("a", "w0")).expect(200);
    release(&mut client, "a", &fence);
    release(&mut client, "a", &fence);
    for verb in ["cordon", "cordon", "uncordon", "drain"] {
        client.post(&format!("{worker}:{verb}"), &json!({})).expect(200);
    }
    client.put(&worker, &json!({"incarnation": 2})).expect(200);
    client.put(&worker, &json!({"incarnation": 2})).expect(200);
    let lost = take(&mut client, "b", "w0");
    client.put(&worker, &json!({"incarnation": 3})).expect(200);
    take(&mut client, "c", "w0");
    client.delete(&worker).expect(200);
    client.put(&format!("{POOL}/workers/w9"), &json!({})).expect(201);
    let received: Vec<Value> = (0..13).map(|_| watcher.event()).collect();
    let all: Vec<String> = received.iter().map(summary).collect();
    // An upsert without a change is no event.
    assert_eq!(
        all,
        [
            "claimed w0 a",
            "released w0 a",
            "cordoned w0",
            "uncordoned w0",
            "draining w0",
            "registered w0",
            "claimed w0 b",
            "lost w0 b",
            "registered w0",
            "claimed w0 c",
            "lost w0 c",
            "deleted w0",
            "registered w9",
        ]
    );
    assert_eq!((&received[0]["fence"], &received[0]["tenant"]), (&fence, &json!("default")));
    assert_eq!(received[7]["fence"], lost);
    let shard = client.get(&format!("{POOL}/workers/w9")).expect(200);
    assert!(received.iter().all(|event| event["shard"].as_u64().is_some_and(|shard| shard < 4)), "{shard}");
    let now_ms = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_millis();
    assert!(
        received.iter().all(|event| now_ms.abs_diff(event["at_ms"].as_u64().unwrap().into()) < 60_000),
        "{received:?}"
    );
    // Positions grow by one.
    let number = |event: &Value| position(event).split_once('-').unwrap().1.parse::<u64>().unwrap();
    assert!((number(&started)..).zip([&started].into_iter().chain(&received)).all(|(n, event)| number(event) == n));
}

#[test]
fn claims_that_end_by_themselves_have_a_reason() {
    let (_dir, server, mut client) = with_pool(3);
    client
        .put(POOL, &json!({"shards": 4, "reserve_ms": 100, "releasing_ms": 100, "heartbeat_ttl_ms": 1000}))
        .expect(200);
    let mut watcher = Watcher::open(server.address, EVENTS, "");
    watcher.event();
    client.post("/v1/claims", &json!({"namespace": "ns", "pool": "warm", "key": "a", "worker": "w0"})).expect(201);
    assert_eq!(watcher.summaries(2), ["claimed w0 a", "released w0 a reserve"]);
    let mut ttl = claim("b", "w0");
    ttl["ttl_ms"] = json!(50);
    client.post("/v1/claims", &ttl).expect(201);
    assert_eq!(watcher.summaries(2), ["claimed w0 b", "released w0 b ttl"]);
    let fence = take(&mut client, "c", "w0");
    client.post("/v1/claims/ns/c:release", &json!({"fence": fence, "phase": "begin"})).expect(200);
    assert_eq!(watcher.summaries(2), ["claimed w0 c", "released w0 c releasing"]);
    // A silent worker is lost, and so are its claims.
    take(&mut client, "d", "w1");
    client.post(&format!("{POOL}/workers/w1:heartbeat"), &json!({})).expect(200);
    assert_eq!(watcher.summaries(3), ["claimed w1 d", "lost w1", "lost w1 d"]);
}

#[test]
fn a_reconnecting_watcher_gets_exactly_what_it_missed() {
    let (_dir, server, mut client) = with_pool(1);
    let mut watcher = Watcher::open(server.address, EVENTS, "");
    watcher.event();
    let fences: Vec<Value> = (0..20)
        .map(|i| {
            let fence = take(&mut client, &format!("k{i}"), "w0");
            release(&mut client, &format!("k{i}"), &fence);
            fence
        })
        .collect();
    let observed: Vec<Value> = (0..7).map(|_| watcher.event()).collect();
    drop(watcher);
    // By the header as a browser does, which takes precedence over the address; or by the address.
    let from = position(&observed[6]);
    let header = format!("Last-Event-ID: {from}\r\n");
    let first = position(&observed[0]);
    for (path, header) in [(format!("{EVENTS}?from={first}"), header.as_str()), (format!("{EVENTS}?from={from}"), "")] {
        let mut again = Watcher::open(server.address, &path, header);
        let rest: Vec<Value> = (0..33).map(|_| again.event()).collect();
        for (i, event) in observed.iter().chain(&rest).enumerate() {
            let word = if i % 2 == 0 { "claimed" } else { "released" };
            assert_eq!(summary(event), format!("{word} w0 k{}", i / 2));
            assert_eq!(event["fence"], fences[i / 2]);
        }
    }
    // Two watchers of two event streams see the same.
    let last = Watcher::open(server.address, EVENTS, "").event();
    assert_eq!(position(&last).split_once('-').unwrap().1, "40");
}

#[test]
fn a_watcher_beyond_the_event_buffer_or_a_restart_learns_what_it_missed() {
    let (dir, server, mut client) = with_pool(10);
    let mut watcher = Watcher::open(server.address, EVENTS, "");
    let started = position(&watcher.event());
    drop(watcher);
    // Ten claims and ten releases in each round, in two calls.
    let items: Vec<Value> = (0..10).map(|i| claim(&format!("k{i}"), &format!("w{i}"))).collect();
    let rounds = limits::WATCH_EVENTS_MAX / 20 + 5;
    for round in 0..rounds {
        // Events are kept for a minute after the last watcher, and a slow machine takes longer than that.
        if round % 250 == 0 {
            Watcher::open(server.address, EVENTS, "").event();
        }
        let answer = client.post("/v1/claims:batch", &json!({"mode": "independent", "items": items})).expect(200);
        for item in answer["items"].as_array().unwrap() {
            release(&mut client, item["claim"]["key"].as_str().unwrap(), &item["claim"]["fence"]);
        }
    }
    let mut late = Watcher::open(server.address, &format!("{EVENTS}?from={started}"), "");
    let missed = late.event();
    let count = rounds * 20 - limits::WATCH_EVENTS_MAX;
    assert_eq!((summary(&missed).as_str(), &missed["count"]), ("missed", &json!(count)));
    let first = late.event();
    assert_eq!(position(&first).split_once('-').unwrap().1, (count + 1).to_string());
    drop(late);
    assert_eq!(server.stop().code(), Some(0));
    let server = Server::start(dir.path());
    let mut again = Watcher::open(server.address, &format!("{EVENTS}?from={}", position(&first)), "");
    let missed = again.event();
    assert_eq!((summary(&missed).as_str(), &missed["count"]), ("missed", &Value::Null));
    take(&mut server.client(), "k", "w0");
    assert_eq!(summary(&again.event()), "claimed w0 k");
}

#[test]
fn invalid_positions_are_rejected_and_watchers_are_limited() {
    let (_dir, server, mut client) = with_pool(1);
    client.get("/v1/pools/ns/none/events").expect_error(404, "NOT_FOUND", None, None);
    for from in ["", "x", "1-", "1-2-3", "-1-1"] {
        let rejected = client.get(&format!("{EVENTS}?from={from}"));
        rejected.expect_error(400, "INVALID_ARGUMENT", None, Some("from"));
        client
            .send(format!("GET {EVENTS} HTTP/1.1\r\nhost: localhost\r\nlast-event-id: {from}\r\n\r\n").as_bytes())
            .unwrap();
        let rejected = client.receive().unwrap();
        rejected.expect_error(400, "INVALID_ARGUMENT", None, Some("Last-Event-ID"));
    }
    let mut watchers: Vec<Watcher> =
        (0..limits::POOL_WATCHERS_MAX).map(|_| Watcher::open(server.address, EVENTS, "")).collect();
    let epoch = position(&watchers[0].event());
    let epoch = epoch.split_once('-').unwrap().0;
    let rejected = client.get(EVENTS);
    rejected.expect_error(429, "RESOURCE_EXHAUSTED", Some("watchers"), None);
    let watching = format!(r#"hotpool_watchers{{pool="ns/warm"}} {}"#, limits::POOL_WATCHERS_MAX);
    assert!(client.get("/metrics").text().contains(&watching), "{}", client.get("/metrics").text());
    let early = format!("{EVENTS}?from={epoch}-1");
    // A watcher that leaves makes space for another.
    watchers.truncate(1);
    let begun = Instant::now();
    let rejected = loop {
        // A closed watcher is noticed by the next write.
        let fence = take(&mut client, "k", "w0");
        release(&mut client, "k", &fence);
        let answer = client.get("/metrics");
        if answer.text().contains("hotpool_watchers{pool=\"ns/warm\"} 1\n") {
            break client.get(&format!("{EVENTS}?from={epoch}-99999999"));
        }
        assert!(begun.elapsed() < TIMEOUT, "{}", answer.text());
    };
    rejected.expect_error(400, "INVALID_ARGUMENT", None, Some("from"));
    drop(Watcher::open(server.address, &early, ""));
}

#[test]
fn a_shutdown_and_the_end_of_the_pool_end_the_stream() {
    let (_dir, server, mut client) = with_pool(1);
    client.put("/v1/pools/ns/other", &json!({"shards": 1})).expect(201);
    let mut other = Watcher::open(server.address, "/v1/pools/ns/other/events", "");
    let mut warm = Watcher::open(server.address, EVENTS, "");
    assert_eq!((summary(&other.event()), summary(&warm.event())), ("started".to_owned(), "started".to_owned()));
    client.delete("/v1/pools/ns/other").expect(200);
    // The last chunk of the body ends it.
    other.0.get_ref().set_read_timeout(Some(TIMEOUT)).unwrap();
    let mut rest = String::new();
    while other.0.read_line(&mut rest).unwrap() > 0 && !rest.ends_with("0\r\n") {}
    assert!(rest.ends_with("0\r\n"), "{rest:?}");
    server.terminate();
    assert!(warm.next().is_none());
    assert_eq!(server.wait().code(), Some(0));
}

#[test]
fn a_client_that_does_not_read_is_dropped_and_blocks_no_other_client() {
    let dir = tempfile::TempDir::new().unwrap();
    let limits = [("HOTPOOL__SERVER__REQUEST_TIMEOUT_MS", "1000"), ("HOTPOOL__STORE__WAIT_MS", "100")];
    let server = Server::start_with(dir.path(), &["--store", "memory:"], &limits);
    let mut client = server.client();
    client.put(POOL, &json!({"shards": 1})).expect(201);
    let workers: Vec<Value> = (0..500).map(|i| json!({"id": format!("w{i}")})).collect();
    client.post(&format!("{POOL}/workers:batch"), &json!({"workers": workers})).expect(200);
    let _deaf = Watcher::open(server.address, EVENTS, "");
    let mut good = Watcher::open(server.address, EVENTS, "");
    let items: Vec<Value> = (0..500).map(|i| claim(&format!("{}{i}", "k".repeat(200)), &format!("w{i}"))).collect();
    let mut observed = 0;
    let begun = Instant::now();
    loop {
        let answer = client.post("/v1/claims:batch", &json!({"mode": "independent", "items": items})).expect(200);
        for item in answer["items"].as_array().unwrap() {
            release(&mut client, item["claim"]["key"].as_str().unwrap(), &item["claim"]["fence"]);
        }
        while observed < 1_000 {
            observed += u64::from(summary(&good.event()).contains('k'));
        }
        observed = 0;
        if client.get("/metrics").text().contains("hotpool_watchers{pool=\"ns/warm\"} 1\n") {
            break;
        }
        assert!(begun.elapsed() < 2 * TIMEOUT, "the one who does not read is still there");
    }
}

async fn watch(grpc: &GrpcClient, from: Option<&str>) -> Streaming<PoolEvent> {
    let from = from.map(str::to_owned);
    let request = WatchPoolRequest { namespace: "ns".into(), pool: "warm".into(), from };
    grpc.pools.clone().watch_pool(request).await.unwrap().into_inner()
}

#[tokio::test]
async fn grpc_tells_the_same() {
    let (_dir, server, mut client) = with_pool(1);
    let grpc = GrpcClient::open(server.address).await;
    let mut stream = watch(&grpc, None).await;
    let mut http = Watcher::open(server.address, EVENTS, "");
    let fence = take(&mut client, "a", "w0");
    release(&mut client, "a", &fence);
    client.post(&format!("{POOL}/workers/w0:cordon"), &json!({})).expect(200);
    client.delete(&format!("{POOL}/workers/w0")).expect(200);
    let mut positions = Vec::new();
    for of in [
        PoolEventType::Started,
        PoolEventType::Claimed,
        PoolEventType::Released,
        PoolEventType::Cordoned,
        PoolEventType::Deleted,
    ] {
        let (event, json) = (stream.message().await.unwrap().unwrap(), http.event());
        assert_eq!((event.r#type(), event.reason()), (of, PoolEventReason::Unspecified));
        assert_eq!(
            event.r#type().as_str_name(),
            format!("POOL_EVENT_TYPE_{}", summary(&json).split(' ').next().unwrap().to_uppercase())
        );
        assert_eq!(
            (event.position.as_str(), event.key.as_deref()),
            (json["position"].as_str().unwrap(), json["key"].as_str())
        );
        assert_eq!(
            (event.fence, event.worker.as_str()),
            (json["fence"].as_u64(), json["worker"].as_str().unwrap_or_default())
        );
        assert_eq!(
            (event.at_ms, u64::from(event.shard)),
            (json["at_ms"].as_u64().unwrap_or_default(), json["shard"].as_u64().unwrap_or_default())
        );
        positions.push(event.position);
    }
    let mut again = watch(&grpc, Some(&positions[2])).await;
    assert_eq!(again.message().await.unwrap().unwrap().r#type(), PoolEventType::Cordoned);
    let mut lost = watch(&grpc, Some("1-1")).await;
    let missed = lost.message().await.unwrap().unwrap();
    assert_eq!((missed.r#type(), missed.count), (PoolEventType::Missed, None));
    let request = |pool: &str, from: &str| WatchPoolRequest {
        namespace: "ns".into(),
        pool: pool.into(),
        from: Some(from.into()),
    };
    expect(grpc.pools.clone().watch_pool(request("warm", "x")).await, Code::InvalidArgument, None, Some("from"));
    expect(grpc.pools.clone().watch_pool(request("none", "1-1")).await, Code::NotFound, None, None);
    client.delete(&format!("{POOL}?force=true")).expect(200);
    expect(again.message().await.map(|_| ()).and(again.message().await), Code::NotFound, None, None);
    server.terminate();
    assert_eq!(server.wait().code(), Some(0));
}

#[test]
fn the_command_writes_one_line_for_each_event() {
    let (_dir, server, mut client) = with_pool(1);
    let watch = |more: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_hotpool"));
        command.args(["pools", "watch", "ns/warm", "--addr", &server.address.to_string()]).args(more);
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = Running(command.spawn().unwrap());
        let lines = BufReader::new(child.0.stdout.take().unwrap()).lines();
        (child, lines.map(Result::unwrap))
    };
    let (mut people, mut lines) = watch(&[]);
    let (_scripts, mut json) = watch(&["--output", "json"]);
    let started = lines.next().unwrap();
    assert!(started.ends_with("  started"), "{started}");
    let from = started.split(' ').next().unwrap().to_owned();
    let first: Value = serde_json::from_str(&json.next().unwrap()).unwrap();
    assert_eq!((&first["event"], &first["position"]), (&json!("started"), &json!(from)));
    let fence = take(&mut client, "a", "w0");
    let line = lines.next().unwrap();
    assert!(line.contains("  claimed     w0  default/a  fence "), "{line}");
    let event: Value = serde_json::from_str(&json.next().unwrap()).unwrap();
    assert_eq!((&event["event"], &event["fence"]), (&json!("claimed"), &fence));
    let (_again, mut again) = watch(&["--from", &from]);
    assert_eq!(again.next().unwrap(), line);
    let (mut bad, mut none) = watch(&["--from", "x"]);
    assert!(none.next().is_none());
    assert_eq!(bad.0.wait().unwrap().code(), Some(64));
    server.terminate();
    assert!(lines.next().is_none());
    assert_eq!(people.0.wait().unwrap().code(), Some(1));
    let mut response = String::new();
    std::io::Read::read_to_string(&mut people.0.stderr.take().unwrap(), &mut response).unwrap();
    assert!(response.contains("--from "), "{response}");
}
