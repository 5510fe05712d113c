//! Queued claims, as clients see them.

use std::thread::{JoinHandle, spawn};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tempfile::TempDir;

use crate::client::{Client, Response};
use crate::server::{Server, until, with_pool};

const POOL: &str = "/v1/pools/ns/warm";

fn waits(key: &str, wait_ms: u64) -> Value {
    json!({"namespace": "ns", "pool": "warm", "key": key, "reserve_ms": 0, "wait_ms": wait_ms})
}

fn is_waiting(client: &mut Client, key: &str) -> bool {
    let answer = client.get(&format!("/v1/claims/ns/{key}"));
    answer.status == 200 && answer.json()["waiting"].is_object()
}

/// Sends a request on its own connection, and waits until its claim is queued.
fn queued(server: &Server, path: &'static str, body: Value, key: &str) -> JoinHandle<Response> {
    let mut client = server.client();
    let begun = spawn(move || client.post(path, &body));
    let mut client = server.client();
    until("the claim is queued", || is_waiting(&mut client, key));
    begun
}

fn pending(client: &mut Client) -> u64 {
    client.metric(r#"hotpool_claims_pending{pool="ns/warm"}"#)
}

fn full() -> (TempDir, Server, Client, Value) {
    let (dir, server, mut client) = with_pool(1);
    let held = client.post("/v1/claims", &waits("held", 0)).expect(201)["claim"].take();
    (dir, server, client, held)
}

#[test]
fn q02_a_queued_claim_is_visible_and_served_when_a_worker_arrives() {
    let (_dir, server, mut client, _) = full();
    let mut body = waits("a", 60_000);
    (body["priority"], body["preemptible"]) = (json!(7), json!(true));
    let first = queued(&server, "/v1/claims", body, "a");
    let second = queued(&server, "/v1/claims", waits("b", 50_000), "b");
    let mut view = client.get("/v1/claims/ns/b").expect(200)["waiting"].take();
    let (waited, left) = (view["waited_ms"].take().as_u64().unwrap(), view["left_ms"].take().as_u64().unwrap());
    assert_eq!(waited + left, 50_000);
    let expected = json!({"key": "b", "tenant": "default", "namespace": "ns", "pools": ["warm"], "reason": "pool_exhausted",
        "priority": 0, "ahead": 1, "waited_ms": null, "left_ms": null});
    assert_eq!(view, expected);
    assert_eq!(pending(&mut client), 2);
    // A claim without a wait fails at once; a queued one has nothing that could be confirmed.
    client.post("/v1/claims", &waits("c", 0)).expect_error(429, "RESOURCE_EXHAUSTED", Some("pool_exhausted"), None);
    client.post("/v1/claims", &waits("a", 0)).expect_error(409, "FAILED_PRECONDITION", Some("state"), None);
    client.post("/v1/claims/ns/a:confirm", &json!({"fence": 1})).expect_error(404, "NOT_FOUND", None, None);

    client.put(&format!("{POOL}/workers/w1"), &json!({})).expect(201);
    let created = first.join().unwrap().expect(201)["claim"].take();
    assert_eq!(
        (&created["worker"], &created["priority"], &created["preemptible"]),
        (&json!("w1"), &json!(7), &json!(true))
    );
    assert_eq!(client.get("/v1/claims/ns/a").expect(200)["claim"], created);
    let worker = client.get(&format!("{POOL}/workers/w1")).expect(200)["worker"]["claims"][0].take();
    assert_eq!(worker, created);
    client.post("/v1/claims/ns/a:release", &json!({"fence": created["fence"]})).expect(200);
    let created = second.join().unwrap().expect(201)["claim"].take();
    assert_eq!((created.get("priority"), created.get("preemptible")), (None, None));
    assert_eq!(pending(&mut client), 0);
}

#[test]
fn w08_lists_show_who_waits_where_the_state_is_named() {
    let (_dir, server, mut client, held) = full();
    let mut urgent = waits("b", 50_000);
    urgent["priority"] = json!(3);
    let waiters = [queued(&server, "/v1/claims", waits("a", 60_000), "a"), queued(&server, "/v1/claims", urgent, "b")];
    for query in ["", "?state=active", "?state=reserved,active,releasing", "?namespace=ns&pool=warm"] {
        assert_eq!(client.get(&format!("/v1/claims{query}")).expect(200), json!({"items": [held]}), "{query}");
    }
    let items = |client: &mut Client, query: &str| {
        let page = client.get(&format!("/v1/claims?{query}")).expect(200);
        (page["items"].as_array().unwrap().clone(), page["next_page_token"].as_str().map(str::to_owned))
    };
    let (mut waiting, next) = items(&mut client, "state=waiting&namespace=ns&pool=warm&tenant=default&older_than_ms=0");
    assert_eq!((waiting.len(), next), (2, None));
    let expected = |key: &str, priority: u64, ahead: u64| {
        json!({"state": "waiting", "key": key, "tenant": "default", "namespace": "ns", "pools": ["warm"],
            "reason": "pool_exhausted", "priority": priority, "ahead": ahead, "waited_ms": null, "left_ms": null,
            "queued_at_ms": null})
    };
    for (item, wait_ms) in waiting.iter_mut().zip([60_000, 50_000]) {
        let mut take = |name: &str| item[name].take().as_u64().unwrap();
        let (waited, left, queued_at) = (take("waited_ms"), take("left_ms"), take("queued_at_ms"));
        assert_eq!(waited + left, wait_ms);
        assert!(queued_at > held["created_at_ms"].as_u64().unwrap() - 1_000, "{queued_at}");
    }
    assert_eq!(waiting, [expected("a", 0, 1), expected("b", 3, 0)]);

    // Pages of both kinds: the held ones come first.
    let (mut keys, mut token) = (Vec::new(), String::new());
    loop {
        let (page, next) = items(&mut client, &format!("state=waiting,active&limit=1{token}"));
        assert!(page.len() <= 1);
        keys.extend(page.iter().map(|item| (item["key"].clone(), item["state"].clone())));
        let Some(next) = next else { break };
        token = format!("&page_token={next}");
    }
    let pairs = [("held", "active"), ("a", "waiting"), ("b", "waiting")];
    assert_eq!(keys, pairs.map(|(key, state)| (json!(key), json!(state))));
    for nobody in ["worker=w0", "tenant=other", "older_than_ms=50000"] {
        assert_eq!(items(&mut client, &format!("state=waiting&{nobody}")), (vec![], None));
    }
    let (_, next) = items(&mut client, "state=waiting&limit=1");
    for (query, field) in [
        (format!("page_token={}", next.unwrap()), "page_token"),
        ("state=waiting&page_token=ns/warm:0-0".to_owned(), "page_token"),
        ("state=waiting&pool=warm".to_owned(), "namespace"),
        ("state=waiting,queued".to_owned(), "state"),
        ("state=waiting,".to_owned(), "state"),
    ] {
        client.get(&format!("/v1/claims?{query}")).expect_error(400, "INVALID_ARGUMENT", None, Some(field));
    }
    let unknown = client.get("/v1/claims?state=queued").expect(400);
    let message = unknown["error"]["message"].as_str().unwrap();
    assert!(message.contains("reserved, active, releasing, waiting"), "{message}");
    for (worker, waiter) in ["w1", "w2"].into_iter().zip(waiters) {
        client.put(&format!("{POOL}/workers/{worker}"), &json!({})).expect(201);
        drop(waiter);
    }
    until("nobody waits", || items(&mut client, "state=waiting").0.is_empty());
}

#[test]
fn q02_a_client_that_disconnects_leaves_the_queue() {
    let (_dir, server, mut client, held) = full();
    let stays = queued(&server, "/v1/claims", waits("stays", 60_000), "stays");
    let bodies =
        [waits("gone", 60_000), json!({"mode": "independent", "items": [waits("x", 60_000), waits("y", 60_000)]})];
    for (path, body) in ["/v1/claims", "/v1/claims:batch"].into_iter().zip(bodies) {
        let mut leaves = server.client();
        let body = body.to_string();
        let head = format!("POST {path} HTTP/1.1\r\nhost: localhost\r\ncontent-length: {}\r\n\r\n", body.len());
        leaves.send(&[head.as_bytes(), body.as_bytes()].concat()).unwrap();
        until("it waits", || pending(&mut client) != 1);
        drop(leaves);
        until("it has left", || pending(&mut client) == 1);
    }
    client.get("/v1/claims/ns/gone").expect_error(404, "NOT_FOUND", None, None);
    client.post("/v1/claims/ns/held:release", &json!({"fence": held["fence"]})).expect(200);
    assert_eq!(stays.join().unwrap().expect(201)["claim"]["key"], "stays");
    assert_eq!(pending(&mut client), 0);
}

/// Starts a service whose request timeout is 200 ms.
fn with_short_timeout() -> (TempDir, Server, Client) {
    let dir = TempDir::new().unwrap();
    let limits = [("HOTPOOL__SERVER__REQUEST_TIMEOUT_MS", "200"), ("HOTPOOL__STORE__WAIT_MS", "100")];
    let server = Server::start_with(dir.path(), &["--store", "memory:"], &limits);
    let mut client = server.client();
    client.put(POOL, &json!({"shards": 1})).expect(201);
    client.put(&format!("{POOL}/workers/w0"), &json!({"node": "n0"})).expect(201);
    (dir, server, client)
}

#[test]
fn the_request_timeout_does_not_shorten_a_wait() {
    let (_dir, _server, mut client) = with_short_timeout();
    client.post("/v1/claims", &waits("held", 0)).expect(201);
    let begun = Instant::now();
    client.post("/v1/claims", &waits("a", 600)).expect_error(429, "RESOURCE_EXHAUSTED", Some("pool_exhausted"), None);
    assert!(begun.elapsed() > Duration::from_millis(400));
    // The longest wait of a batch counts.
    let batch = json!({"mode": "independent", "items": [waits("b", 500), waits("c", 0), waits("d", 300)]});
    let items = client.post("/v1/claims:batch", &batch).expect(200)["items"].take();
    assert!(items.as_array().unwrap().iter().all(|item| item["error"]["reason"] == "pool_exhausted"), "{items}");
}

#[test]
fn p05_preferred_then_wait_extends_the_request_timeout() {
    let (_dir, _server, mut client) = with_short_timeout();
    let mut near = waits("near", 0);
    near["node"] = json!({"preferred_then_wait": {"nodes": ["n1"], "ms": 500}});
    let begun = Instant::now();
    assert_eq!(client.post("/v1/claims", &near).expect(201)["claim"]["node"], "n0");
    assert!(begun.elapsed() > Duration::from_millis(300), "it waited for its node first");
    // The metrics count it as a wait, not as a slow request.
    let scrape = client.get("/metrics");
    let value = |name: &str| {
        let line = scrape.text().lines().find(|line| line.starts_with(name)).unwrap_or_else(|| panic!("{name}"));
        line.rsplit(' ').next().unwrap().parse::<f64>().unwrap()
    };
    assert_eq!(value(r#"hotpool_wait_seconds_count{pool="ns/warm"}"#), 1.0);
    assert!(value(r#"hotpool_claim_seconds_sum{pool="ns/warm"}"#) < 0.2);
}

#[test]
fn a_shutdown_answers_queued_claims_at_once() {
    let (_dir, server, _client, _) = full();
    let waits: Vec<_> = (0..3)
        .map(|n| {
            let key = format!("k{n}");
            queued(&server, "/v1/claims", self::waits(&key, 60_000), &key)
        })
        .collect();
    let begun = Instant::now();
    server.terminate();
    for waiting in waits {
        waiting.join().unwrap().expect_error(503, "UNAVAILABLE", Some("loading"), None);
    }
    assert!(begun.elapsed() < Duration::from_secs(3), "they were not let wait until requests in flight are given up");
    assert_eq!(server.wait().code(), Some(0));
}

#[test]
fn demand_shows_queued_claims_and_removable_workers() {
    let (_dir, server, mut client) = with_pool(2);
    let idle = client.get(&format!("{POOL}/demand")).expect(200);
    assert_eq!(idle["idle"].as_array().unwrap().len(), 2);
    client.post(&format!("{POOL}/workers/w1:cordon"), &json!({})).expect(200);
    client.post("/v1/claims", &waits("held", 0)).expect(201);
    client.put("/v1/quotas/ns/poor", &json!({"claims": 0})).expect(201);
    let mut body = waits("a", 60_000);
    body["selector"] = json!("zone=x");
    body["node"] = json!({"required": ["n1", "n2"]});
    let a = queued(&server, "/v1/claims", body, "a");
    let b = queued(&server, "/v1/claims", waits("b", 60_000), "b");
    let mut client_of_poor = server.client();
    let poor = json!({"namespace": "ns", "pool": "warm", "key": "p", "tenant": "poor", "wait_ms": 60_000});
    let poor = spawn(move || client_of_poor.post("/v1/claims", &poor));
    let waiting = |client: &mut Client| client.get("/v1/quotas/ns/poor").json()["quota"]["waiting"].as_u64();
    until("it waits for quota", || waiting(&mut client) == Some(1));

    let mut demand = client.get(&format!("{POOL}/demand")).expect(200);
    let numbers = ["waiting", "waiting_for_quota", "workers_busy", "workers_needed", "workers_wanted"];
    assert_eq!(numbers.map(|name| demand[name].as_u64().unwrap()), [2, 1, 1, 2, 4], "a cordoned worker is replaced");
    assert_eq!(demand["idle"], json!([{"worker": "w1", "cordoned": true}]));
    let mut shapes = demand["shapes"].take();
    for shape in shapes.as_array_mut().unwrap() {
        assert!(shape["oldest_ms"].take().is_u64());
    }
    let shape = |more: Value| {
        let mut shape = json!({"resources": {}, "reason": "pool_exhausted", "waiting": 1, "oldest_ms": null, "priority": 0,
            "workers_needed": 1});
        shape.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        shape
    };
    for expected in [
        shape(json!({"selector": "zone=x", "nodes": ["n1", "n2"]})),
        shape(json!({})),
        shape(json!({"reason": "quota", "workers_needed": 0})),
    ] {
        assert!(shapes.as_array().unwrap().contains(&expected), "{expected} is not in {shapes}");
    }
    client.get("/v1/pools/ns/none/demand").expect_error(404, "NOT_FOUND", None, None);

    // The suggested number of workers is enough.
    client.post(&format!("{POOL}/workers/w1:uncordon"), &json!({})).expect(200);
    b.join().unwrap().expect(201);
    let x = json!({"labels": {"zone": "x"}, "node": "n2"});
    client.put(&format!("{POOL}/workers/x1"), &x).expect(201);
    a.join().unwrap().expect(201);
    client.put("/v1/quotas/ns/poor", &json!({})).expect(200);
    client.put(&format!("{POOL}/workers/w2"), &json!({})).expect(201);
    poor.join().unwrap().expect(201);
}
