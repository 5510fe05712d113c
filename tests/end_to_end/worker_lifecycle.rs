//! Heartbeats, operator commands, two-phase release and renewals, over HTTP.

use serde_json::{Value, json};

use crate::client::{Client, check_error};
use crate::server::{fresh, with_pool};

const POOL: &str = "/v1/pools/ns/warm";
const WORKER: &str = "/v1/pools/ns/warm/workers/w0";

fn claim(client: &mut Client, body: Value) -> crate::client::Response {
    let mut all = json!({"namespace": "ns", "pool": "warm"});
    all.as_object_mut().unwrap().extend(body.as_object().unwrap().clone());
    client.post("/v1/claims", &all)
}

fn command_worker(client: &mut Client, verb: &str) -> Value {
    client.request("POST", &format!("{WORKER}:{verb}"), b"").expect(200)["worker"].take()
}

#[test]
fn w04_a_heartbeat_returns_the_claims_to_run_and_to_stop() {
    let (_dir, _server, mut client) = with_pool(1);
    let created = claim(&mut client, json!({"key": "a"})).expect(201)["claim"].take();
    let named = json!({"key": "a", "fence": created["fence"]});
    let other = json!({"key": "b", "tenant": "acme", "fence": 7});
    let heartbeat = json!({"incarnation": 0, "seq": 1, "claims": [named, other]});
    let response = client.post(&format!("{WORKER}:heartbeat"), &heartbeat).expect(200);
    assert_eq!(response["claims"][0]["state"], "active");
    assert_eq!((&response["claims"][0]["key"], &response["claims"][0]["fence"]), (&json!("a"), &created["fence"]));
    assert_eq!(response["stop"], json!([other]));
    // An empty heartbeat only reports that the worker is alive.
    let response = client.request("POST", &format!("{WORKER}:heartbeat"), b"").expect(200);
    assert_eq!((response["claims"].as_array().unwrap().len(), &response["stop"]), (1, &json!([])));
    let worker = client.get(WORKER).expect(200)["worker"].take();
    assert_eq!((&worker["occupancy"], &worker["liveness"]), (&json!("busy"), &json!("live")));
    client.post(&format!("{WORKER}:heartbeat"), &json!({"incarnation": 1})).expect_error(
        409,
        "FAILED_PRECONDITION",
        Some("state"),
        None,
    );
    client.post(&format!("{POOL}/workers/none:heartbeat"), &json!({})).expect_error(404, "NOT_FOUND", None, None);
    let text = String::from_utf8(client.request("GET", "/metrics", b"").body).unwrap();
    for line in [
        r#"hotpool_heartbeats_total{pool="ns/warm"} 2"#,
        r#"hotpool_claim_revocations_total{pool="ns/warm"} 1"#,
        r#"hotpool_http_requests_total{route="/v1/pools/{ns}/{pool}/workers/{id}:heartbeat",status="200"} 2"#,
    ] {
        assert!(text.contains(line), "{line} is not in\n{text}");
    }
}

#[test]
fn w04_an_invalid_heartbeat_names_its_field() {
    let (_dir, _server, mut client) = with_pool(1);
    let path = format!("{WORKER}:heartbeat");
    let many: Vec<Value> = (0..100_000).map(|i| json!({"key": format!("k{i}"), "fence": i})).collect();
    for (body, field) in [
        (json!({"claims": many}), "claims"),
        (json!({"claims": null}), "claims"),
        (json!({"claims": {}}), "claims"),
        (json!({"claims": [{"key": "a"}]}), "claims[0].fence"),
        (json!({"claims": [{"key": "a", "fence": 1}, {"key": "", "fence": 1}]}), "claims[1].key"),
        (json!({"claims": [{"key": "a", "fence": 1_u64 << 53}]}), "claims[0].fence"),
        (json!({"claims": [{"key": "a", "fence": 1, "namespace": "x"}]}), "claims[0].namespace"),
        (json!({"incarnation": -1}), "incarnation"),
        (json!({"seq": "1"}), "seq"),
        (json!({"load": 0.5}), "load"),
    ] {
        let answer = client.post(&path, &body);
        assert_eq!(answer.json()["error"]["field"], field, "{}", answer.text());
        answer.expect_error(400, "INVALID_ARGUMENT", None, Some(field));
    }
    assert!(client.post(&path, &json!({"claims": many})).text().contains("at most 10000 items"));
    client.post(&format!("{WORKER}:cordon"), &json!({"force": true})).expect_error(
        400,
        "INVALID_ARGUMENT",
        None,
        Some("force"),
    );
    for path in [WORKER, &format!("{WORKER}:reboot"), POOL, &format!("{POOL}:cordon")] {
        client.post(path, &json!({})).expect_error(404, "NOT_FOUND", Some("route"), None);
    }
    let worker = client.get(WORKER).expect(200)["worker"].take();
    assert_eq!((&worker["occupancy"], &worker["version"]), (&json!("idle"), &json!(1)), "nothing was changed");
}

#[test]
fn w03_cordon_uncordon_drain_and_clear() {
    let (_dir, _server, mut client) = with_pool(1);
    for (verb, says) in [("cordon", "cordoned"), ("cordon", "cordoned"), ("uncordon", "open"), ("cordon", "cordoned")] {
        assert_eq!(command_worker(&mut client, verb)["schedulability"], says);
    }
    claim(&mut client, json!({"key": "a"})).expect_error(429, "RESOURCE_EXHAUSTED", Some("pool_exhausted"), None);
    let pool = client.get(POOL).expect(200)["pool"].take();
    assert_eq!((&pool["workers"]["cordoned"], &pool["workers"]["idle"]), (&json!(1), &json!(0)));
    command_worker(&mut client, "uncordon");
    claim(&mut client, json!({"key": "a"})).expect(201);
    assert_eq!(command_worker(&mut client, "drain")["schedulability"], "draining");
    let rejected = client.post(&format!("{WORKER}:uncordon"), &json!({}));
    rejected.expect_error(409, "FAILED_PRECONDITION", Some("state"), None);
    assert_eq!(command_worker(&mut client, "clear")["trust"], "trusted");
    let cleared = client.post(&format!("{POOL}:clear"), &json!({})).expect(200);
    assert_eq!(cleared, json!({"cleared": 0, "suspect": 0}));
    client.post("/v1/pools/ns/none:clear", &json!({})).expect_error(404, "NOT_FOUND", None, None);
}

#[test]
fn w05_a_release_in_two_phases() {
    let (_dir, _server, mut client) = with_pool(1);
    let created = claim(&mut client, json!({"key": "a", "reserve_ms": 0})).expect(201)["claim"].take();
    let release = |client: &mut Client, phase: &str, tenant: &str| {
        let body = json!({"fence": created["fence"], "phase": phase, "tenant": tenant});
        client.post("/v1/claims/ns/a:release", &body)
    };
    // Another tenant's claim with this key never existed.
    assert_eq!(release(&mut client, "begin", "acme").expect(200), json!({"released": false}));
    assert_eq!(client.get("/v1/claims/ns/a").expect(200)["claim"]["state"], "active");
    assert_eq!(release(&mut client, "begin", "default").expect(200), json!({"released": true}));
    assert_eq!(client.get("/v1/claims/ns/a").expect(200)["claim"]["state"], "releasing");
    claim(&mut client, json!({"key": "a"})).expect_error(409, "FAILED_PRECONDITION", Some("releasing"), None);
    claim(&mut client, json!({"key": "b"})).expect_error(429, "RESOURCE_EXHAUSTED", Some("pool_exhausted"), None);
    release(&mut client, "end", "default").expect_error(400, "INVALID_ARGUMENT", None, Some("phase"));
    assert_eq!(client.get(POOL).expect(200)["pool"]["claims"], json!({"reserved": 0, "active": 0, "releasing": 1}));
    assert_eq!(release(&mut client, "finish", "default").expect(200), json!({"released": true}));
    claim(&mut client, json!({"key": "a"})).expect(201);
}

#[test]
fn c10_a_claim_with_a_ttl_is_renewed() {
    let (_dir, _server, mut client) = with_pool(1);
    let year: u64 = 365 * 86_400_000;
    for ttl_ms in [json!(year), json!(0), json!(-1), json!("1"), json!(null)] {
        let answer = claim(&mut client, json!({"key": "a", "ttl_ms": ttl_ms}));
        answer.expect_error(400, "INVALID_ARGUMENT", None, Some("ttl_ms"));
    }
    assert!(claim(&mut client, json!({"key": "a", "ttl_ms": year})).text().contains("1 to 2592000000"));
    let body = json!({"key": "a", "reserve_ms": 0, "ttl_ms": 3_600_000});
    let created = claim(&mut client, body).expect(201)["claim"].take();
    assert!(created["expires_at_ms"].as_u64().is_some());
    let renew = |client: &mut Client, body: Value| client.post("/v1/claims/ns/a:renew", &body);
    let renewed =
        renew(&mut client, json!({"fence": created["fence"], "ttl_ms": 7_200_000})).expect(200)["claim"].take();
    let at = |claim: &Value| claim["expires_at_ms"].as_u64().unwrap();
    assert!(at(&renewed) >= at(&created) + 3_500_000);
    // Every view shows the same times.
    let shown = client.get("/v1/claims/ns/a").expect(200)["claim"].take();
    let listed = client.get("/v1/claims").expect(200)["items"][0].take();
    let of_worker = client.get(WORKER).expect(200)["worker"]["claims"][0].take();
    let response = client.request("POST", &format!("{WORKER}:heartbeat"), b"").expect(200)["claims"][0].take();
    for claim in [shown, listed, of_worker, response] {
        assert_eq!(claim, renewed);
    }
    renew(&mut client, json!({"fence": 1})).expect_error(409, "ABORTED", Some("fence"), None);
    renew(&mut client, json!({"fence": 1, "ttl_ms": year})).expect_error(400, "INVALID_ARGUMENT", None, Some("ttl_ms"));
    renew(&mut client, json!({"fence": 1, "phase": "begin"})).expect_error(
        400,
        "INVALID_ARGUMENT",
        None,
        Some("phase"),
    );
    client.post("/v1/claims/ns/none:renew", &json!({"fence": 1})).expect_error(404, "NOT_FOUND", None, None);
}

#[test]
fn w02_claims_of_a_deleted_worker_are_lost() {
    let (_dir, _server, mut client) = with_pool(1);
    let created = claim(&mut client, json!({"key": "a", "reserve_ms": 0})).expect(201)["claim"].take();
    client.delete(WORKER).expect(200);
    let lost = client.get("/v1/claims/ns/a").expect(200)["claim"].take();
    assert_eq!((&lost["state"], &lost["fence"]), (&json!("lost"), &created["fence"]));
    assert_eq!(client.get("/v1/claims").expect(200)["items"], json!([]), "it is not held any more");
    claim(&mut client, json!({"key": "a"})).expect_error(429, "RESOURCE_EXHAUSTED", Some("pool_exhausted"), None);
    client.put(WORKER, &json!({})).expect_error(409, "FAILED_PRECONDITION", Some("state"), None);
}

#[test]
fn w01_a_registration_may_report_claims_and_the_end_of_the_worker() {
    let (_dir, _server, mut client) = fresh();
    client.put(POOL, &json!({"releasing_ms": 5_000, "heartbeat_ttl_ms": 15_000})).expect(201);
    let named = json!({"key": "a", "tenant": "default", "fence": 5});
    let body = json!({"expires_at_ms": 4_000_000_000_000_u64, "claims": [named]});
    let answer = client.put(WORKER, &body).expect(201);
    assert_eq!((&answer["stop"], &answer["worker"]["expires_at_ms"]), (&json!([named]), &body["expires_at_ms"]));
    assert_eq!(answer["worker"]["occupancy"], "busy", "it runs what it should not");
    let answer = client.put(WORKER, &json!({"claims": []})).expect(200);
    assert_eq!((answer.get("stop"), &answer["worker"]["occupancy"]), (None, &json!("idle")));
    assert_eq!(answer["worker"].get("expires_at_ms"), None, "a registration replaces the one before");
    let batch = json!({"workers": [{"id": "w0", "claims": [named]}, {"id": "w1", "claims": [{"key": "a"}]}]});
    let items = client.post(&format!("{POOL}/workers:batch"), &batch).expect(200)["items"].take();
    assert_eq!(items[0]["stop"], json!([named]));
    check_error(&items[1], "INVALID_ARGUMENT", None, Some("workers[1].claims[0].fence"));
    for (field, value) in [
        ("releasing_ms", 0_u64),
        ("heartbeat_ttl_ms", 0),
        ("heartbeat_ttl_ms", 86_400_001),
        ("unnamed_ms", 0),
        ("unnamed_ms", 86_400_001),
        ("lost_keep_ms", 2_592_000_001),
    ] {
        client.put(POOL, &json!({field: value})).expect_error(400, "INVALID_ARGUMENT", None, Some(field));
    }
    let worker = json!({"expires_at_ms": 1_u64 << 53});
    client.put(WORKER, &worker).expect_error(400, "INVALID_ARGUMENT", None, Some("expires_at_ms"));
}
