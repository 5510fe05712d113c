//! Clients that close their sending side after a whole request and continue to read, over HTTP/1.1.

use std::io::{Read as _, Write as _};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::time::Duration;

use serde_json::{Value, json};

use crate::client::Client;
use crate::server::{until, with_pool};

/// Timeout of one response: a test that reaches it has failed.
const TIMEOUT: Duration = Duration::from_secs(30);

/// Headers of a connection that ends after its response, and of one that is kept open.
const CLOSE: &str = "connection: close\r\n";
const KEEP: &str = "";

fn request(method: &str, path: &str, body: &Value, more: &str) -> Vec<u8> {
    let body = body.to_string();
    format!("{method} {path} HTTP/1.1\r\nhost: localhost\r\n{more}content-length: {}\r\n\r\n{body}", body.len())
        .into_bytes()
}

/// Sends these bytes, then closes the sending side.
fn send_and_half_close(address: SocketAddr, bytes: &[u8]) -> TcpStream {
    let mut stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(TIMEOUT)).unwrap();
    stream.write_all(bytes).unwrap();
    stream.shutdown(Shutdown::Write).unwrap();
    stream
}

/// Reads everything that the service sends.
fn answers(mut stream: TcpStream) -> String {
    let mut all = String::new();
    stream.read_to_string(&mut all).unwrap();
    all
}

fn waiting(client: &mut Client) -> bool {
    !client.get("/metrics").text().contains(r#"hotpool_claims_pending{pool="ns/warm"} 0"#)
}

fn is_held(client: &mut Client, key: &str) -> bool {
    let claim = client.get(&format!("/v1/claims/ns/{key}"));
    claim.status == 200 && claim.json()["claim"]["state"] != "waiting"
}

#[test]
fn c15_a_complete_request_is_answered_after_a_half_close() {
    let (_dir, server, mut client) = with_pool(1);
    client.put("/v1/pools/ns/memory", &json!({"shards": 2, "ack": "memory"})).expect(201);
    client.put("/v1/pools/ns/memory/workers/m0", &json!({})).expect(201);
    let mut empty = Vec::new();
    for round in 0..200 {
        for (pool, close) in [("warm", CLOSE), ("warm", KEEP), ("memory", CLOSE), ("memory", KEEP)] {
            let key = format!("{pool}{round}");
            let claim = json!({"namespace": "ns", "pool": pool, "key": key, "reserve_ms": 0});
            let response = answers(send_and_half_close(server.address, &request("POST", "/v1/claims", &claim, close)));
            if !response.starts_with("HTTP/1.1 20") {
                empty.push(format!("{pool} {close:?}: {response:?}"));
                continue;
            }
            let body = json!({"items": [claim, claim], "mode": "independent"});
            let response =
                answers(send_and_half_close(server.address, &request("POST", "/v1/claims:batch", &body, close)));
            if response.matches(r#""fence""#).count() != 2 {
                empty.push(format!("batch {pool} {close:?}: {response:?}"));
            }
            // A claim that was answered stays.
            let fence = client.get(&format!("/v1/claims/ns/{key}")).expect(200)["claim"]["fence"].take();
            let release = request("POST", &format!("/v1/claims/ns/{key}:release"), &json!({"fence": fence}), close);
            let response = answers(send_and_half_close(server.address, &release));
            if !response.starts_with("HTTP/1.1 200") {
                empty.push(format!("release {pool} {close:?}: {response:?}"));
                client.post(&format!("/v1/claims/ns/{key}:release"), &json!({"fence": fence}));
            }
        }
    }
    assert!(empty.is_empty(), "{} requests of 2,400 were not answered, the first: {:?}", empty.len(), empty.first());
}

#[test]
fn c15_pipelined_requests_are_answered_after_a_half_close() {
    let (_dir, server, mut client) = with_pool(3);
    for round in 0..20 {
        let claim = |i: usize| json!({"namespace": "ns", "pool": "warm", "key": format!("k{i}"), "reserve_ms": 0});
        let all: Vec<u8> = (0..3).flat_map(|i| request("POST", "/v1/claims", &claim(i), KEEP)).collect();
        let response = answers(send_and_half_close(server.address, &all));
        assert_eq!(response.matches("HTTP/1.1 201 ").count(), 3, "round {round}: {response}");
        for i in 0..3 {
            let key = format!("/v1/claims/ns/k{i}");
            let fence = client.get(&key).expect(200)["claim"]["fence"].take();
            client.post(&format!("{key}:release"), &json!({"fence": fence})).expect(200);
        }
    }
}

#[test]
fn c15_a_claim_stays_queued_after_a_half_close() {
    let (_dir, server, mut client) = with_pool(1);
    let claim = |key: &str, wait_ms: u64| {
        request(
            "POST",
            "/v1/claims",
            &json!({"namespace": "ns", "pool": "warm", "key": key, "reserve_ms": 0, "wait_ms": wait_ms}),
            KEEP,
        )
    };
    let held = client.post("/v1/claims", &json!({"namespace": "ns", "pool": "warm", "key": "held"})).expect(201);
    // The claim's own wait ends first.
    let response = answers(send_and_half_close(server.address, &claim("a", 100)));
    assert!(response.starts_with("HTTP/1.1 429 ") && response.contains("pool_exhausted"), "{response}");
    // A worker arrives in time.
    let served = send_and_half_close(server.address, &claim("b", 60_000));
    until("the claim waits", || waiting(&mut client));
    client.post("/v1/claims/ns/held:release", &json!({"fence": held["claim"]["fence"]})).expect(200);
    let response = answers(served);
    assert!(response.starts_with("HTTP/1.1 201 "), "{response}");
    assert!(is_held(&mut client, "b"), "its client got the reply");
    // No worker arrives.
    let response = answers(send_and_half_close(server.address, &claim("c", 60_000)));
    assert!(response.starts_with("HTTP/1.1 504 "), "{response}");
    let why = "the client has closed its sending side, after which a claim is queued for at most 2000 ms";
    assert!(response.contains(why), "{response}");
    until("the claim waits no more", || !waiting(&mut client));
}

/// Whether no claim is held. A claim request would disclose the claim, which then would not be rolled back.
fn is_idle(client: &mut Client) -> bool {
    let workers = client.get("/v1/pools/ns/warm").expect(200)["pool"]["workers"].take();
    workers["idle"] == workers["total"]
}

/// Client that is gone, which has closed its sending side as well. Its claim is rolled back when its system rejects the
/// response.
#[test]
fn c15_a_claim_is_rolled_back_when_its_client_is_gone() {
    let (_dir, server, mut client) = with_pool(2);
    let claim = |key: &str, wait_ms: u64| json!({"namespace": "ns", "pool": "warm", "key": key, "reserve_ms": 0, "wait_ms": wait_ms});
    let take =
        |client: &mut Client, key: &str| client.post("/v1/claims", &claim(key, 0)).expect(201)["claim"]["fence"].take();
    let mut fences = [take(&mut client, "held0"), take(&mut client, "held1")];
    let one = request("POST", "/v1/claims", &claim("a", 60_000), KEEP);
    let items = json!({"mode": "independent", "items": [claim("a", 60_000), claim("b", 60_000)]});
    let many = request("POST", "/v1/claims:batch", &items, KEEP);
    let items = json!({"mode": "all_or_nothing", "items": [claim("a", 60_000), claim("b", 60_000)]});
    let gang = request("POST", "/v1/claims:batch", &items, KEEP);
    for (name, bytes) in [("one", one), ("many", many), ("gang", gang)] {
        let gone = send_and_half_close(server.address, &bytes);
        until("the claim waits", || waiting(&mut client));
        drop(gone);
        for (i, fence) in fences.iter().enumerate() {
            client.post(&format!("/v1/claims/ns/held{i}:release"), &json!({"fence": fence})).expect(200);
        }
        until(&format!("what was claimed for {name} is rolled back"), || !waiting(&mut client) && is_idle(&mut client));
        fences = [take(&mut client, "held0"), take(&mut client, "held1")];
    }
}

/// Claims without a wait, whose client is gone before they are answered: it has closed or reset its connection.
#[test]
fn c12_an_unqueued_claim_is_rolled_back_when_its_client_is_gone() {
    let (_dir, server, mut client) = with_pool(2);
    client.put("/v1/pools/ns/safe", &json!({"shards": 1})).expect(201);
    client.put("/v1/pools/ns/safe/workers/s0", &json!({})).expect(201);
    for round in 0..16 {
        let pool = if round % 4 < 2 { "warm" } else { "safe" };
        let claim = json!({"namespace": "ns", "pool": pool, "key": format!("k{round}"), "reserve_ms": 0});
        // Gone before the service reads the first byte.
        server.paused(|| {
            let mut stream = TcpStream::connect(server.address).unwrap();
            stream.write_all(&request("POST", "/v1/claims", &claim, KEEP)).unwrap();
            if round % 2 == 0 {
                rustix::net::sockopt::set_socket_linger(&stream, Some(Duration::ZERO)).unwrap();
            }
        });
        until(&format!("the claim of round {round} is rolled back"), || {
            let workers = client.get(&format!("/v1/pools/ns/{pool}")).expect(200)["pool"]["workers"].take();
            workers["idle"] == workers["total"]
        });
    }
}

/// Watcher that is removed as soon as its client is gone, though nothing happens in the pool.
#[test]
fn c15_a_stream_of_events_ends_with_its_client() {
    let (_dir, server, _client) = with_pool(1);
    let request = b"GET /v1/pools/ns/warm/events HTTP/1.1\r\nhost: localhost\r\n\r\n";
    for opened in 0..300 {
        let mut stream = TcpStream::connect(server.address).unwrap();
        stream.set_read_timeout(Some(TIMEOUT)).unwrap();
        stream.write_all(request).unwrap();
        let mut begin = [0; 15];
        stream.read_exact(&mut begin).unwrap();
        assert_eq!(String::from_utf8_lossy(&begin), "HTTP/1.1 200 OK", "after {opened} others");
    }
    // A client that has only finished sending continues to read.
    let mut stream = send_and_half_close(server.address, request);
    let mut client = server.client();
    let mut response = String::new();
    while !response.contains("event: claimed") {
        client.post("/v1/claims", &json!({"namespace": "ns", "pool": "warm"}));
        let mut more = [0; 1024];
        let read = stream.read(&mut more).unwrap();
        assert!(read > 0, "{response}");
        response.push_str(&String::from_utf8_lossy(&more[..read]));
    }
}
