//! Metrics of pools: their size, and that none of them outlives its pool (case H04).

use std::io::Read as _;

use serde_json::json;

use crate::client::{Client, Response};
use crate::server::{Server, fresh, until};

/// Size limit for the exposition of an unused pool, in bytes.
const IDLE_BYTES_MAX: usize = 500;
/// Size limit for the exposition of a pool in use, in bytes.
const USED_BYTES_MAX: usize = 6_000;
/// Size limit for what a pool in use adds besides its own series, in bytes: headings, and process counters that start
/// with their first count.
const HEADINGS_BYTES_MAX: usize = 6_000;
/// Limit on the growth of resident memory while pools are created and deleted, in KiB.
const RESIDENT_KIB_MORE_MAX: u64 = 24 << 10;
/// Number of pools created and deleted: more than ever had series at a time.
const POOLS: usize = 4_300;

/// Returns the lines of the scrape that belong to this pool.
fn lines_of<'a>(scrape: &'a str, pool: &str) -> Vec<&'a str> {
    let label = format!("pool=\"{pool}\"");
    scrape.lines().filter(|line| line.contains(&label)).collect()
}

fn bytes_of(scrape: &str, pool: &str) -> usize {
    lines_of(scrape, pool).iter().map(|line| line.len() + 1).sum()
}

fn make_and_delete(client: &mut Client, pools: std::ops::Range<usize>) {
    for i in pools {
        let pool = format!("/v1/pools/ci/run-{i}");
        client.put(&pool, &json!({"shards": 1})).expect(201);
        if i % 500 == 0 {
            client.put(&format!("{pool}/workers/w"), &json!({})).expect(201);
            client.post("/v1/claims", &json!({"namespace": "ci", "pool": format!("run-{i}"), "key": "k"})).expect(201);
            assert!(
                client.get("/metrics").text().contains(&format!("pool=\"ci/run-{i}\"")),
                "a living pool has series"
            );
        }
        client.delete(&format!("{pool}?force=true")).expect(200);
    }
}

#[test]
fn h04_series_and_memory_are_freed_with_their_pool() {
    let dir = tempfile::TempDir::new().unwrap();
    let server = Server::start_with(dir.path(), &["--store", "memory:"], &[]);
    let mut client = server.client();
    // Memory that a process allocates at its first use stays.
    make_and_delete(&mut client, 0..300);
    let before = (client.get("/metrics").body.len(), server.resident_kib());
    make_and_delete(&mut client, 300..POOLS);
    client.put("/v1/pools/prod/main", &json!({"shards": 1})).expect(201);
    client.put("/v1/pools/prod/main/workers/w1", &json!({})).expect(201);
    client.post("/v1/claims", &json!({"namespace": "prod", "pool": "main", "key": "x"})).expect(201);
    let scrape = client.get("/metrics");
    let after = (scrape.body.len(), server.resident_kib());
    let own = lines_of(scrape.text(), "prod/main").len();
    assert!(
        after.0 < before.0 + USED_BYTES_MAX + HEADINGS_BYTES_MAX
            && after.1 < before.1 + RESIDENT_KIB_MORE_MAX
            && own > 5
            && !scrape.text().contains("ci/run-"),
        "bytes and resident KiB: {before:?}, and {after:?} after {POOLS} pools came and went; the new pool has {own} series"
    );
    assert!(scrape.text().contains("hotpool_claims_total{pool=\"prod/main\",outcome=\"created\"} 1\n"));
}

#[test]
fn h04_an_idle_pool_is_a_few_lines_and_one_in_use_a_few_kilobytes() {
    let (_dir, _server, mut client) = fresh();
    let put = |client: &mut Client, path: &str, body: &serde_json::Value| client.put(path, body).expect(201);
    put(&mut client, "/v1/pools/prod/idle", &json!({}));
    put(&mut client, "/v1/pools/prod/warm", &json!({}));
    put(&mut client, "/v1/pools/prod/used", &json!({"preemption": true, "reserve_ms": 100}));
    for worker in ["a", "b", "c"] {
        put(&mut client, &format!("/v1/pools/prod/warm/workers/{worker}"), &json!({}));
        put(&mut client, &format!("/v1/pools/prod/used/workers/{worker}"), &json!({}));
    }
    let claim = |key: &str| json!({"namespace": "prod", "pool": "used", "key": key, "reserve_ms": 0});
    let mut fences = Vec::new();
    for key in ["1", "2", "3"] {
        fences.push(client.post("/v1/claims", &claim(key)).expect(201)["claim"]["fence"].clone());
    }
    client.post("/v1/claims", &claim("1")).expect(200);
    client.post("/v1/claims", &claim("4")).expect_error(429, "RESOURCE_EXHAUSTED", Some("pool_exhausted"), None);
    let mut waiting = claim("5");
    waiting["wait_ms"] = json!(10_000);
    let body = waiting.to_string();
    let head = format!("POST /v1/claims HTTP/1.1\r\nhost: localhost\r\ncontent-length: {}\r\n\r\n{body}", body.len());
    let mut waiter = _server.client();
    waiter.send(head.as_bytes()).unwrap();
    let waits = "hotpool_claims_pending{pool=\"prod/used\"} 1\n";
    until("the claim waits", || client.get("/metrics").text().contains(waits));
    client.post("/v1/claims/prod/1:release", &json!({"fence": fences[0]})).expect(200);
    assert_eq!(waiter.receive().unwrap().status, 201);
    for worker in ["a", "b", "c"] {
        let heartbeat = json!({"seq": 1, "claims": []});
        client.post(&format!("/v1/pools/prod/used/workers/{worker}:heartbeat"), &heartbeat).expect(200);
        client.post(&format!("/v1/pools/prod/used/workers/{worker}:cordon"), &json!({})).expect(200);
    }
    let scrape = client.get("/metrics");
    let text = scrape.text();
    for pool in ["prod/idle", "prod/warm"] {
        assert!(
            bytes_of(text, pool) <= IDLE_BYTES_MAX,
            "{pool} has {} bytes:\n{}",
            bytes_of(text, pool),
            lines_of(text, pool).join("\n")
        );
        // Series for an autoscaler and the alerts exist from the beginning.
        for series in ["hotpool_workers{state=\"idle\",", "hotpool_workers{state=\"busy\",", "hotpool_claims_pending{"]
        {
            assert!(text.contains(&format!("{series}pool=\"{pool}\"}} ")), "{series} of {pool}");
        }
    }
    assert!(
        bytes_of(text, "prod/used") <= USED_BYTES_MAX,
        "{} bytes:\n{}",
        bytes_of(text, "prod/used"),
        lines_of(text, "prod/used").join("\n")
    );
    for line in [
        "hotpool_wait_seconds_count{pool=\"prod/used\"} 1\n",
        "hotpool_claims_total{pool=\"prod/used\",outcome=\"created\"} 4\n",
    ] {
        assert!(text.contains(line), "{line} is not in\n{text}");
    }
}

fn scrape_as(client: &mut Client, accept: &str) -> Response {
    let header = if accept.is_empty() { String::new() } else { format!("accept-encoding: {accept}\r\n") };
    client.send(format!("GET /metrics HTTP/1.1\r\nhost: localhost\r\n{header}\r\n").as_bytes()).unwrap();
    client.receive().unwrap()
}

#[test]
fn h04_a_scrape_is_compressed_if_the_client_accepts_it() {
    let (_dir, _server, mut client) = fresh();
    for i in 0..50 {
        client.put(&format!("/v1/pools/ns/p{i}"), &json!({"shards": 1})).expect(201);
    }
    for (accept, gzip) in [("gzip", true), ("", false), ("gzip;q=0", false), ("deflate, gzip;q=0.8", true)] {
        let answer = scrape_as(&mut client, accept);
        assert_eq!(answer.header("content-encoding"), gzip.then_some("gzip"), "{accept:?}");
        assert_eq!(answer.header("vary"), Some("accept-encoding"), "{accept:?}");
        assert!(answer.header("content-type").unwrap().starts_with("text/plain; version=0.0.4"));
        let mut text = String::new();
        if gzip {
            flate2::read::GzDecoder::new(&answer.body[..]).read_to_string(&mut text).unwrap();
            assert!(answer.body.len() * 5 < text.len(), "{} of {}", answer.body.len(), text.len());
        } else {
            text = answer.text().to_owned();
        }
        assert!(text.contains("hotpool_workers{state=\"idle\",pool=\"ns/p49\"} 0\n"));
        assert!(text.contains("process_start_time_seconds"));
    }
    let other = "GET /v1/pools HTTP/1.1\r\nhost: localhost\r\naccept-encoding: gzip\r\n\r\n";
    client.send(other.as_bytes()).unwrap();
    assert_eq!(client.receive().unwrap().header("content-encoding"), None, "only the scrape is worth it");
}
