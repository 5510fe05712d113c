use serde_json::{Value, json};

use crate::client::{Client, check_error};
use crate::server::{Server, with_pool};

fn claim(client: &mut Client, key: &str) -> crate::client::Response {
    client.post("/v1/claims", &json!({"namespace": "ns", "pool": "warm", "key": key}))
}

fn holder(client: &mut Client, verb: &str, claim: &Value) -> crate::client::Response {
    let key = claim["key"].as_str().unwrap();
    client.post(&format!("/v1/claims/ns/{key}:{verb}"), &json!({"fence": claim["fence"], "tenant": claim["tenant"]}))
}

fn worker_of(client: &mut Client, claim: &Value) -> Value {
    let worker = claim["worker"].as_str().unwrap();
    client.get(&format!("/v1/pools/ns/warm/workers/{worker}")).expect(200)["worker"].take()
}

fn count(client: &mut Client) -> (u64, usize) {
    let busy = client.get("/v1/pools/ns/warm").expect(200)["pool"]["workers"]["busy"].as_u64().unwrap();
    let claims = client.get("/v1/claims?namespace=ns&pool=warm").expect(200)["items"].as_array().unwrap().len();
    (busy, claims)
}

#[test]
fn a_claim_is_created_confirmed_and_released() {
    let (_dir, _server, mut client) = with_pool(1);
    client.get("/v1/claims/ns/a").expect_error(404, "NOT_FOUND", None, None);
    let created = claim(&mut client, "a").expect(201)["claim"].take();
    assert_eq!(
        (&created["key"], &created["tenant"], &created["worker"]),
        (&json!("a"), &json!("default"), &json!("w0"))
    );
    assert_eq!((&created["state"], &created["pool"]), (&json!("reserved"), &json!("warm")));
    assert!(created["expires_at_ms"].as_u64().is_some());
    assert!((1..1 << 53).contains(&created["fence"].as_u64().unwrap()));
    claim(&mut client, "b").expect_error(429, "RESOURCE_EXHAUSTED", Some("pool_exhausted"), None);
    let confirmed = holder(&mut client, "confirm", &created).expect(200)["claim"].take();
    assert_eq!(confirmed["state"], "active");
    assert_eq!(confirmed.get("expires_at_ms"), None);
    assert_eq!(client.get("/v1/claims/ns/a").expect(200)["claim"], confirmed);
    assert_eq!(holder(&mut client, "release", &created).expect(200), json!({"released": true}));
    client.get("/v1/claims/ns/a").expect_error(404, "NOT_FOUND", None, None);
    let next = claim(&mut client, "b").expect(201)["claim"].take();
    assert!(next["fence"].as_u64() > created["fence"].as_u64());
}

#[test]
fn without_a_key_the_service_generates_one() {
    let (_dir, _server, mut client) = with_pool(2);
    let mut keys = Vec::new();
    for _ in 0..2 {
        let body = json!({"namespace": "ns", "pool": "warm", "reserve_ms": 0, "ack": "durable", "affinity": "image-1"});
        let created = client.post("/v1/claims", &body).expect(201)["claim"].take();
        assert_eq!(created["state"], "active");
        keys.push(created["key"].as_str().unwrap().to_owned());
    }
    assert_ne!(keys[0], keys[1]);
    assert_eq!(keys[0].len(), 36);
    client.get(&format!("/v1/claims/ns/{}", keys[0])).expect(200);
}

#[test]
fn a_request_cannot_exceed_or_weaken_the_settings_of_its_pool() {
    let (_dir, _server, mut client) = with_pool(1);
    let rejects = |client: &mut Client, name: &str, value: Value| {
        let mut body = json!({"namespace": "ns", "pool": "warm", "key": "a"});
        body[name] = value;
        client.post("/v1/claims", &body).expect_error(400, "INVALID_ARGUMENT", None, Some(name));
    };
    rejects(&mut client, "reserve_ms", json!(30_001));
    rejects(&mut client, "ack", json!("memory"));
    assert_eq!(count(&mut client), (0, 0));
}

#[test]
fn a_batch_is_answered_in_order_and_an_invalid_item_affects_no_other() {
    let (_dir, _server, mut client) = with_pool(4);
    let good = |key: &str| json!({"namespace": "ns", "pool": "warm", "key": key});
    let mut unknown = good("c");
    unknown["wait_ms"] = json!(86_400_001);
    let items = json!([
        good("a"), {"namespace": "ns", "pool": 5}, good("b"), unknown, [], good(""), good("a"),
        {"namespace": "ns", "pool": "cold", "key": "d"}, good("e"), good("f"),
    ]);
    let answer = client.post("/v1/claims:batch", &json!({"mode": "independent", "items": items})).expect(200);
    let items = answer["items"].as_array().unwrap();
    assert_eq!(items.len(), 10);
    for (index, key) in [(0, "a"), (2, "b"), (6, "a"), (8, "e"), (9, "f")] {
        assert_eq!(items[index]["claim"]["key"], key, "{answer}");
    }
    assert_eq!(items[0]["claim"]["fence"], items[6]["claim"]["fence"]);
    for (index, field) in [(1, "items[1].pool"), (3, "items[3].wait_ms"), (4, "items[4]"), (5, "items[5].key")] {
        check_error(&items[index], "INVALID_ARGUMENT", None, Some(field));
    }
    check_error(&items[7], "NOT_FOUND", None, None);
    assert_eq!(count(&mut client), (4, 4));
    let more = json!({"mode": "independent", "items": [good("g"), good("a")]});
    let answer = client.post("/v1/claims:batch", &more).expect(200);
    check_error(&answer["items"][0], "RESOURCE_EXHAUSTED", Some("pool_exhausted"), None);
    assert_eq!((&answer["items"][1]["claim"]["key"], &answer["items"][1]["created"]), (&json!("a"), &json!(false)));
}

#[test]
fn claims_are_listed_by_filter_and_page() {
    let (_dir, _server, mut client) = with_pool(6);
    for (i, tenant) in ["x", "x", "x", "y", "y"].iter().enumerate() {
        let body = json!({"namespace": "ns", "pool": "warm", "key": format!("k{i}"), "tenant": tenant});
        client.post("/v1/claims", &body).expect(201);
    }
    let list = |client: &mut Client, query: &str| client.pages(&format!("/v1/claims?limit=2&{query}")).concat();
    let all = list(&mut client, "namespace=ns");
    assert_eq!(all.len(), 5);
    assert_eq!(list(&mut client, "namespace=ns&pool=warm&tenant=x").len(), 3);
    assert_eq!(list(&mut client, "namespace=other").len(), 0);
    let worker = all[0]["worker"].as_str().unwrap();
    let on_worker = list(&mut client, &format!("namespace=ns&pool=warm&worker={worker}"));
    assert_eq!(on_worker.len(), 1);
    assert_eq!(on_worker[0]["fence"], all[0]["fence"]);
}

#[test]
fn c03_one_key_claimed_by_many_at_once_has_one_holder() {
    let (_dir, server, mut client) = with_pool(2);
    let answers: Vec<_> = std::thread::scope(|scope| {
        let call = || {
            let mut client = server.client();
            scope.spawn(move || claim(&mut client, "one"))
        };
        let callers: Vec<_> = (0..16).map(|_| call()).collect();
        callers.into_iter().map(|caller| caller.join().unwrap()).collect()
    });
    let statuses: Vec<_> = answers.iter().map(|answer| answer.status).collect();
    assert_eq!(statuses.iter().filter(|&&status| status == 201).count(), 1, "{statuses:?}");
    assert_eq!(statuses.iter().filter(|&&status| status == 200).count(), 15, "{statuses:?}");
    let first = answers[0].json();
    for answer in &answers {
        let answer = answer.json();
        assert_eq!(
            (&answer["claim"]["fence"], &answer["claim"]["worker"]),
            (&first["claim"]["fence"], &first["claim"]["worker"])
        );
    }
    assert_eq!(count(&mut client), (1, 1));
}

#[test]
fn c05_retries_and_late_cleanups_change_nothing() {
    let (_dir, _server, mut client) = with_pool(1);
    let first = claim(&mut client, "a").expect(201)["claim"].take();
    // The reply was lost: the retry returns the same claim.
    let again = claim(&mut client, "a").expect(200)["claim"].take();
    assert_eq!((&again["fence"], &again["worker"]), (&first["fence"], &first["worker"]));

    let version = worker_of(&mut client, &first)["version"].clone();
    let mut stranger = first.clone();
    stranger["fence"] = json!(first["fence"].as_u64().unwrap() - 1);
    for verb in ["release", "confirm"] {
        holder(&mut client, verb, &stranger).expect_error(409, "ABORTED", Some("fence"), None);
    }
    assert_eq!(worker_of(&mut client, &first)["version"], version);

    holder(&mut client, "release", &first).expect(200);
    let version = worker_of(&mut client, &first)["version"].clone();
    holder(&mut client, "release", &first).expect(200);
    assert_eq!(worker_of(&mut client, &first)["version"], version);

    // The earlier holder's cleanup arrives when the key has a new claim.
    let second = claim(&mut client, "a").expect(201)["claim"].take();
    holder(&mut client, "release", &first).expect_error(409, "ABORTED", Some("fence"), None);
    assert_eq!(client.get("/v1/claims/ns/a").expect(200)["claim"]["fence"], second["fence"]);
    assert_eq!(count(&mut client), (1, 1));
}

#[test]
fn c06_a_rejected_claim_leaves_nothing_behind() {
    let (dir, server, mut client) = with_pool(1);
    let held = claim(&mut client, "held").expect(201)["claim"].take();
    let version = worker_of(&mut client, &held)["version"].clone();
    claim(&mut client, "refused").expect_error(429, "RESOURCE_EXHAUSTED", Some("pool_exhausted"), None);
    client.post("/v1/claims", &json!({"namespace": "ns", "pool": "cold", "key": "refused"})).expect_error(
        404,
        "NOT_FOUND",
        None,
        None,
    );
    let nothing_behind = |client: &mut Client| {
        client.get("/v1/claims/ns/refused").expect_error(404, "NOT_FOUND", None, None);
        assert_eq!(count(client), (1, 1));
    };
    nothing_behind(&mut client);
    assert_eq!(worker_of(&mut client, &held)["version"], version);
    // The store has no claim either, even after a power cut.
    server.kill();
    let server = Server::start(dir.path());
    let mut client = server.client();
    nothing_behind(&mut client);
    holder(&mut client, "release", &held).expect(200);
    assert_eq!(count(&mut client), (0, 0));
    claim(&mut client, "refused").expect(201);
}

#[test]
fn c07_tenants_and_namespaces_are_independent() {
    let (_dir, _server, mut client) = with_pool(2);
    client.put("/v1/pools/other/warm", &json!({})).expect(201);
    client.put("/v1/pools/other/warm/workers/w0", &json!({})).expect(201);
    let mut fences = Vec::new();
    for (namespace, tenant) in [("ns", "x"), ("ns", "y"), ("other", "x")] {
        let body = json!({"namespace": namespace, "pool": "warm", "key": "k", "tenant": tenant});
        fences.push(client.post("/v1/claims", &body).expect(201)["claim"]["fence"].clone());
    }
    // The release of one leaves the others.
    client.post("/v1/claims/ns/k:release", &json!({"fence": fences[0], "tenant": "x"})).expect(200);
    client.get("/v1/claims/ns/k?tenant=x").expect_error(404, "NOT_FOUND", None, None);
    client.get("/v1/claims/ns/k").expect_error(404, "NOT_FOUND", None, None);
    assert_eq!(client.get("/v1/claims/ns/k?tenant=y").expect(200)["claim"]["fence"], fences[1]);
    assert_eq!(client.get("/v1/claims/other/k?tenant=x").expect(200)["claim"]["fence"], fences[2]);
    // The fence of a tenant does not work for another's claim.
    client.post("/v1/claims/ns/k:release", &json!({"fence": fences[2], "tenant": "y"})).expect_error(
        409,
        "ABORTED",
        Some("fence"),
        None,
    );
}
