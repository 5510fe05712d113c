//! Clients that disconnect in the middle, over HTTP: of every kind of request half is sent, or all of it without
//! waiting for the response. Started requests end, nothing stays pending, and other clients notice nothing.

use serde_json::{Value, json};

use crate::server::{until, with_pool};

const POOL: &str = "/v1/pools/ns/warm";

/// Requests of every kind, about one worker and one key.
fn all_requests(fence: &Value) -> Vec<(&'static str, String, Value)> {
    let claim = json!({"namespace": "ns", "pool": "warm", "key": "k"});
    let worker = format!("{POOL}/workers/w0");
    let named = json!([{"key": "k", "fence": fence}]);
    let holder = json!({"fence": fence});
    let waits = json!({"namespace": "ns", "pool": "warm", "key": "waits", "wait_ms": 60_000});
    vec![
        ("PUT", POOL.to_owned(), json!({"shards": 4, "reserve_ms": 500})),
        ("PUT", worker.clone(), json!({})),
        ("POST", format!("{POOL}/workers:batch"), json!({"workers": [{"id": "w0"}, {"id": "w1"}]})),
        ("POST", "/v1/claims".to_owned(), claim.clone()),
        ("POST", "/v1/claims:batch".to_owned(), json!({"mode": "independent", "items": [claim, claim, {}]})),
        ("PUT", "/v1/quotas/ns/default".to_owned(), json!({"claims": 100})),
        ("POST", "/v1/claims".to_owned(), waits.clone()),
        ("POST", "/v1/claims:batch".to_owned(), json!({"mode": "independent", "items": [waits, claim]})),
        ("GET", format!("{POOL}/demand"), Value::Null),
        ("DELETE", "/v1/quotas/ns/default".to_owned(), Value::Null),
        ("POST", "/v1/claims/ns/k:confirm".to_owned(), holder.clone()),
        ("POST", "/v1/claims/ns/k:renew".to_owned(), json!({"fence": fence, "ttl_ms": 60_000})),
        ("POST", format!("{worker}:heartbeat"), json!({"claims": named})),
        (
            "POST",
            format!("{POOL}/workers:heartbeat"),
            json!({"workers": [{"id": "w0", "claims": named}, {"id": "w1"}]}),
        ),
        ("POST", format!("{worker}:cordon"), json!({})),
        ("POST", format!("{worker}:uncordon"), json!({})),
        ("POST", format!("{worker}:clear"), json!({})),
        ("POST", format!("{POOL}:clear"), json!({})),
        ("GET", "/v1/claims".to_owned(), Value::Null),
        ("GET", format!("{POOL}/workers"), Value::Null),
        ("POST", "/v1/claims/ns/k:release".to_owned(), json!({"fence": fence, "phase": "begin"})),
        ("POST", "/v1/claims/ns/k:release".to_owned(), holder),
        ("DELETE", format!("{POOL}/workers/w1"), Value::Null),
    ]
}

fn sent(method: &str, path: &str, body: &Value) -> Vec<u8> {
    let body = if body.is_null() { String::new() } else { body.to_string() };
    format!("{method} {path} HTTP/1.1\r\nhost: localhost\r\ncontent-length: {}\r\n\r\n{body}", body.len()).into_bytes()
}

#[test]
fn a_client_that_disconnects_at_any_point_leaves_nothing_behind() {
    let (_dir, server, mut good) = with_pool(1);
    good.put(POOL, &json!({"shards": 4, "reserve_ms": 500, "releasing_ms": 500})).expect(200);
    let mut fence = json!(1);
    for round in 0..6 {
        for (method, path, body) in all_requests(&fence) {
            let bytes = sent(method, &path, &body);
            // Half of it, all but the last byte, and all of it.
            for length in [bytes.len() / 2, bytes.len() - 1, bytes.len()] {
                let mut client = server.client();
                client.send(&bytes[..length]).unwrap();
                drop(client);
            }
            if round % 2 == 0 {
                good.get("/healthz").expect(200);
            }
        }
        // A claim in between whose response is awaited, so that the next round finds it held.
        let claim = json!({"namespace": "ns", "pool": "warm", "key": "k", "worker": "w0"});
        let answer = good.post("/v1/claims", &claim);
        if let Some(new) = answer.json()["claim"]["fence"].as_u64() {
            fence = json!(new);
        }
    }
    // Started work ends: reservations expire, cleanups time out.
    let worker = format!("{POOL}/workers/w0");
    let mut client = server.client();
    until("the key is free", || {
        let claim = client.get("/v1/claims/ns/k");
        // Its worker may have been deleted: then the claim is remembered as lost.
        let lost = claim.status == 200 && claim.json()["claim"]["state"] == "lost";
        if claim.status == 200 && !lost {
            let body = json!({"fence": claim.json()["claim"]["fence"]});
            client.post("/v1/claims/ns/k:release", &body);
        }
        claim.status == 404 || lost
    });
    until("the directory is empty", || client.get("/debug/shards").json()["keys"] == 0);
    good.post(&format!("{worker}:uncordon"), &json!({})).expect(200);
    good.post(&format!("{POOL}:clear"), &json!({})).expect(200);
    let view = good.get(&worker).expect(200)["worker"].take();
    assert_eq!((&view["occupancy"], &view["claims"]), (&json!("idle"), &json!([])));
    let pool = good.get(POOL).expect(200)["pool"].take();
    assert_eq!(pool["claims"], json!({"reserved": 0, "active": 0, "releasing": 0}));
    assert_eq!(pool["workers"]["idle"], pool["workers"]["total"], "{pool}");
    let claim = json!({"namespace": "ns", "pool": "warm", "key": "k", "worker": "w0"});
    assert_eq!(good.post("/v1/claims", &claim).expect(201)["claim"]["worker"], "w0");
    let scrape = good.get("/metrics");
    assert!(scrape.text().contains(r#"hotpool_accounting_mismatch{pool="ns/warm"} 0"#), "{}", scrape.text());
    assert!(scrape.text().contains(r#"hotpool_claims_pending{pool="ns/warm"} 0"#), "{}", scrape.text());
    assert_eq!(server.stop().code(), Some(0));
}

/// Cordon and uncordon from two clients at once: each is answered by its own command, and the last one stands.
#[test]
fn w03_conflicting_cordons_leave_one_of_both() {
    let (_dir, server, mut good) = with_pool(1);
    let worker = format!("{POOL}/workers/w0");
    let callers = ["cordon", "uncordon"].map(|verb| {
        let (mut client, path) = (server.client(), format!("{worker}:{verb}"));
        std::thread::spawn(move || {
            let response = if verb == "cordon" { "cordoned" } else { "open" };
            for _ in 0..200 {
                let answer = client.post(&path, &json!({})).expect(200);
                assert_eq!(answer["worker"]["schedulability"], response);
            }
        })
    });
    for caller in callers {
        caller.join().unwrap();
    }
    let schedulability = good.get(&worker).expect(200)["worker"]["schedulability"].take();
    let idle = good.get(POOL).expect(200)["pool"]["workers"]["idle"].take();
    assert!(
        (schedulability == "open" && idle == 1) || (schedulability == "cordoned" && idle == 0),
        "{schedulability} {idle}"
    );
    // Draining cannot be undone: a later uncordon is rejected.
    good.post(&format!("{worker}:cordon"), &json!({})).expect(200);
    assert_eq!(good.post(&format!("{worker}:drain"), &json!({})).expect(200)["worker"]["schedulability"], "draining");
    let rejected = good.post(&format!("{worker}:uncordon"), &json!({}));
    rejected.expect_error(409, "FAILED_PRECONDITION", Some("state"), None);
}

/// Another tenant has another claim, whatever the fence.
#[test]
fn c07_another_tenant_ends_confirms_and_renews_nothing() {
    let (_dir, _server, mut client) = with_pool(1);
    let claim = json!({"namespace": "ns", "pool": "warm", "key": "k", "tenant": "acme", "ttl_ms": 60_000});
    let held = client.post("/v1/claims", &claim).expect(201)["claim"].take();
    for tenant in [json!({"fence": held["fence"]}), json!({"fence": held["fence"], "tenant": "other"})] {
        // Releasing an absent claim succeeds and ends nothing.
        assert_eq!(client.post("/v1/claims/ns/k:release", &tenant).expect(200), json!({"released": false}));
        for verb in ["confirm", "renew"] {
            let rejected = client.post(&format!("/v1/claims/ns/k:{verb}"), &tenant);
            rejected.expect_error(404, "NOT_FOUND", None, None);
        }
    }
    assert_eq!(client.get("/v1/claims/ns/k?tenant=acme").expect(200)["claim"], held);
}
