//! Heartbeats out of order, and heartbeats of many workers in one call, over HTTP.

use serde_json::{Value, json};

use crate::client::{Client, check_error};
use crate::server::with_pool;

const POOL: &str = "/v1/pools/ns/warm";
const BEATS: &str = "/v1/pools/ns/warm/workers:heartbeat";

fn hold(client: &mut Client, key: &str, worker: &str) -> Value {
    let body = json!({"namespace": "ns", "pool": "warm", "key": key, "worker": worker, "reserve_ms": 0});
    let claim = client.post("/v1/claims", &body).expect(201)["claim"].take();
    json!({"key": key, "tenant": "default", "fence": claim["fence"]})
}

fn heartbeat(client: &mut Client, worker: &str, body: &Value) -> Value {
    client.post(&format!("{POOL}/workers/{worker}:heartbeat"), body).expect(200)
}

/// Returns a worker with its version: an equal value means that nothing has changed.
fn get_worker(client: &mut Client, worker: &str) -> Value {
    client.get(&format!("{POOL}/workers/{worker}")).expect(200)
}

#[test]
fn w04_heartbeats_that_are_late_or_out_of_order_change_nothing() {
    let (_dir, _server, mut client) = with_pool(1);
    let held = hold(&mut client, "a", "w0");
    let stranger = json!({"key": "b", "tenant": "default", "fence": 3});
    heartbeat(&mut client, "w0", &json!({"seq": 7, "claims": [held]}));
    let before = get_worker(&mut client, "w0");
    for body in [
        json!({"seq": 6, "claims": []}),
        json!({"seq": 1, "claims": [stranger]}),
        json!({"seq": 0}),
        json!({"seq": 6, "claims": [held, stranger]}),
    ] {
        let response = heartbeat(&mut client, "w0", &body);
        assert_eq!((&response["claims"][0]["fence"], &response["stop"]), (&held["fence"], &json!([])), "{body}");
        assert_eq!((&response["ignored"], &response["last_seq"]), (&json!(true), &json!(7)), "{body}");
        assert_eq!(get_worker(&mut client, "w0"), before, "{body}");
    }
    // An equal number is accepted: a heartbeat may be sent twice.
    heartbeat(&mut client, "w0", &json!({"seq": 7, "claims": [held]}));
    assert_eq!(get_worker(&mut client, "w0"), before);
    let response = heartbeat(&mut client, "w0", &json!({"seq": 8, "claims": [held, stranger]}));
    assert_eq!(
        (&response["stop"], response.get("ignored"), response.get("last_seq")),
        (&json!([stranger]), None, None)
    );
    let scrape = client.get("/metrics");
    assert!(scrape.text().contains("hotpool_heartbeats_ignored_total{pool=\"ns/warm\"} 4\n"), "{}", scrape.text());
}

#[test]
fn w04_heartbeats_of_another_incarnation_are_rejected_and_change_nothing() {
    let (_dir, _server, mut client) = with_pool(0);
    let path = format!("{POOL}/workers/w0");
    client.put(&path, &json!({"incarnation": 5})).expect(201);
    let held = hold(&mut client, "a", "w0");
    let before = get_worker(&mut client, "w0");
    for (incarnation, parts) in [(4, "at least 5"), (0, "at least 5"), (6, "the last one registered is 5")] {
        let body = json!({"incarnation": incarnation, "seq": 99, "claims": []});
        let rejected = client.post(&format!("{path}:heartbeat"), &body);
        rejected.expect_error(409, "FAILED_PRECONDITION", Some("state"), None);
        assert!(rejected.text().contains(parts), "{}", rejected.text());
    }
    assert_eq!(get_worker(&mut client, "w0"), before);
    heartbeat(&mut client, "w0", &json!({"incarnation": 5, "seq": 1, "claims": [held]}));
    // A deleted worker does not return by its heartbeat, nor by its late registration.
    client.delete(&path).expect(200);
    let gone = client.post(&format!("{path}:heartbeat"), &json!({"incarnation": 5}));
    gone.expect_error(404, "NOT_FOUND", None, None);
    for incarnation in [0, 5] {
        let late = client.put(&path, &json!({"incarnation": incarnation}));
        late.expect_error(409, "FAILED_PRECONDITION", Some("state"), None);
    }
    client.put(&path, &json!({"incarnation": 6})).expect(201);
}

#[test]
fn w05_a_worker_that_reports_claims_of_others_must_stop_them_and_changes_no_other_worker() {
    let (_dir, _server, mut client) = with_pool(2);
    let held = hold(&mut client, "a", "w0");
    let of = |tenant: &str, fence: &Value| json!({"key": "a", "tenant": tenant, "fence": fence});
    let higher = json!(held["fence"].as_u64().unwrap() + 1);
    let before = get_worker(&mut client, "w0");
    for named in [held.clone(), of("acme", &held["fence"]), of("default", &higher), of("default", &json!(1))] {
        let response = heartbeat(&mut client, "w1", &json!({"claims": [named]}));
        assert_eq!((&response["claims"], &response["stop"]), (&json!([]), &json!([named])));
        assert_eq!(get_worker(&mut client, "w0"), before);
        assert_eq!(get_worker(&mut client, "w1")["worker"]["occupancy"], "busy", "it runs what it should not");
    }
    let full = client.post("/v1/claims", &json!({"namespace": "ns", "pool": "warm", "key": "b"}));
    full.expect_error(429, "RESOURCE_EXHAUSTED", Some("pool_exhausted"), None);
    heartbeat(&mut client, "w1", &json!({"claims": []}));
    hold(&mut client, "b", "w1");
}

#[test]
fn w04_heartbeats_in_one_call_have_separate_outcomes() {
    let (_dir, _server, mut client) = with_pool(4);
    let (a, b) = (hold(&mut client, "a", "w0"), hold(&mut client, "b", "w1"));
    let many: Vec<Value> = (0..10_001).map(|i| json!({"key": format!("k{i}"), "fence": i})).collect();
    let workers = json!([
        {"id": "w0", "seq": 1, "claims": [a]},
        {"id": "none"},
        {"id": "w 1"},
        {"id": "w1", "claims": [a]},
        {"id": "w2", "incarnation": 1},
        {"id": "w2", "claims": [{"key": "a"}]},
        {"id": "w2", "claims": many},
        {"id": "w2", "load": 1},
        {"id": "w2", "claims": null},
        {},
        7,
        {"id": "w3"},
        {"id": "w0", "seq": 0, "claims": []},
    ]);
    let answer = client.post(BEATS, &json!({"workers": workers})).expect(200);
    let items = answer["items"].as_array().unwrap();
    assert_eq!(items.len(), 13);
    let response = |at: usize| {
        let item = items[at].as_object().unwrap();
        // A heartbeat out of order also has the number to exceed.
        assert_eq!(item.len(), if item.contains_key("ignored") { 4 } else { 2 }, "{item:?}");
        let claims = item["claims"].as_array().unwrap().iter().map(|claim| claim["key"].clone()).collect::<Vec<_>>();
        (claims, item["stop"].clone())
    };
    assert_eq!(response(0), (vec![json!("a")], json!([])));
    assert_eq!(response(3), (vec![json!("b")], json!([a])), "b is not named yet: it may not have arrived");
    assert_eq!(response(11), (vec![], json!([])));
    assert_eq!(response(12), (vec![json!("a")], json!([])), "it came late");
    assert_eq!((&items[12]["ignored"], &items[12]["last_seq"]), (&json!(true), &json!(1)));
    assert!(items[..12].iter().all(|item| item.get("ignored").is_none()));
    check_error(&items[1], "NOT_FOUND", None, None);
    check_error(&items[4], "FAILED_PRECONDITION", Some("state"), None);
    for (at, field) in [
        (2, "workers[2].id"),
        (5, "workers[5].claims[0].fence"),
        (6, "workers[6].claims"),
        (7, "workers[7].load"),
        (8, "workers[8].claims"),
        (9, "workers[9].id"),
        (10, "workers[10]"),
    ] {
        check_error(&items[at], "INVALID_ARGUMENT", None, Some(field));
    }
    // An empty batch is valid; an unknown pool fails the whole call.
    assert_eq!(client.post(BEATS, &json!({"workers": []})).expect(200), json!({"items": []}));
    client.post("/v1/pools/ns/none/workers:heartbeat", &json!({"workers": [{"id": "w0"}]})).expect_error(
        404,
        "NOT_FOUND",
        None,
        None,
    );
    let scrape = client.get("/metrics");
    for line in [
        r#"hotpool_heartbeats_total{pool="ns/warm"} 4"#,
        r#"hotpool_claim_revocations_total{pool="ns/warm"} 1"#,
        r#"hotpool_http_requests_total{route="/v1/pools/{ns}/{pool}/workers:heartbeat",status="200"} 2"#,
    ] {
        assert!(scrape.text().contains(line), "{line} is not in\n{}", scrape.text());
    }
    assert_eq!(client.get("/v1/claims/ns/b").expect(200)["claim"]["fence"], b["fence"]);
}

#[test]
fn w04_ten_thousand_heartbeats_fit_into_one_call() {
    let (_dir, _server, mut client) = with_pool(0);
    let ids: Vec<Value> = (0..10_000).map(|i| json!({"id": format!("w{i}")})).collect();
    client.post(&format!("{POOL}/workers:batch"), &json!({"workers": ids})).expect(200);
    let answer = client.post(BEATS, &json!({"workers": ids})).expect(200);
    let items = answer["items"].as_array().unwrap();
    assert_eq!(items.len(), 10_000);
    assert!(items.iter().all(|item| *item == json!({"claims": [], "stop": []})));
}
