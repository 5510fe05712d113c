use std::collections::BTreeSet;

use serde_json::json;

use crate::client::check_error;
use crate::server::{fresh, with_pool};

const WORKER: &str = "/v1/pools/ns/warm/workers/w0";

#[test]
fn a_worker_is_registered_replaced_read_and_deleted() {
    let (_dir, _server, mut client) = fresh();
    client.put(WORKER, &json!({})).expect_error(404, "NOT_FOUND", None, None);
    client.put("/v1/pools/ns/warm", &json!({})).expect(201);
    let spec = json!({
        "capacity": {"cpu_milli": 2000, "memory_bytes": 1_u64 << 40, "slots": 3, "gpu": {"model": "A10", "count": 2}},
        "labels": {"zone": "a"}, "node": "n-1", "incarnation": 3,
    });
    let made = client.put(WORKER, &spec).expect(201)["worker"].take();
    for key in ["capacity", "labels", "node", "incarnation"] {
        assert_eq!(made[key], spec[key]);
    }
    assert_eq!(
        (&made["id"], &made["occupancy"], &made["schedulability"]),
        (&json!("w0"), &json!("idle"), &json!("open"))
    );
    client.put(WORKER, &spec).expect(200);
    assert_eq!(client.get(WORKER).expect(200)["worker"]["claims"], json!([]));
    // Without a body the worker has only its id.
    assert_eq!(client.request("PUT", "/v1/pools/ns/warm/workers/w1", b"").expect(201)["worker"]["capacity"], json!({}));
    assert_eq!(client.delete(WORKER).expect(200), json!({}));
    client.get(WORKER).expect_error(404, "NOT_FOUND", None, None);
    client.delete(WORKER).expect_error(404, "NOT_FOUND", None, None);
}

#[test]
fn a_busy_worker_shows_its_claim() {
    let (_dir, _server, mut client) = with_pool(1);
    let created = client.post("/v1/claims", &json!({"namespace": "ns", "pool": "warm", "key": "a"})).expect(201);
    let worker = client.get(WORKER).expect(200)["worker"].take();
    assert_eq!(worker["occupancy"], "busy");
    let claims = worker["claims"].as_array().unwrap();
    assert_eq!(claims.len(), 1);
    for key in ["key", "tenant", "fence", "pool", "worker", "state"] {
        assert_eq!(claims[0][key], created["claim"][key]);
    }
}

#[test]
fn an_invalid_registration_affects_no_other() {
    let (_dir, _server, mut client) = with_pool(0);
    let batch = br#"{"workers":[{"id":"a"},{"id":"b","capacity":{"slots":-1}},{"id":"c","disk":1},{},7,
        {"id":""},{"id":"d","capacity":{"gpu":{"model":"A10","count":65}}},{"id":"e","node":"n"}]}"#;
    let answer = client.request("POST", "/v1/pools/ns/warm/workers:batch", batch).expect(200);
    let items = answer["items"].as_array().unwrap();
    for (index, field) in [
        (1, "workers[1].capacity.slots"),
        (2, "workers[2].disk"),
        (3, "workers[3].id"),
        (4, "workers[4]"),
        (5, "workers[5].id"),
        (6, "workers[6].capacity.gpu.count"),
    ] {
        check_error(&items[index], "INVALID_ARGUMENT", None, Some(field));
    }
    for (index, id) in [(0, "a"), (7, "e")] {
        assert_eq!((&items[index]["worker"]["id"], &items[index]["created"]), (&json!(id), &json!(true)));
    }
    assert_eq!(items.len(), 8);
    let total = client.get("/v1/pools/ns/warm").expect(200)["pool"]["workers"]["total"].take();
    assert_eq!(total, 2);
    let again = client.post("/v1/pools/ns/warm/workers:batch", &json!({"workers": [{"id": "a"}]})).expect(200);
    assert_eq!(again["items"][0]["created"], false);
    let nowhere = client.post("/v1/pools/ns/cold/workers:batch", &json!({"workers": [{"id": "a"}]}));
    nowhere.expect_error(404, "NOT_FOUND", None, None);
}

#[test]
fn workers_are_listed_page_by_page_without_duplicates() {
    let (_dir, _server, mut client) = with_pool(25);
    let mut observed = BTreeSet::new();
    let pages = client.pages("/v1/pools/ns/warm/workers?limit=10");
    for worker in pages.iter().flatten() {
        assert!(observed.insert(worker["id"].as_str().unwrap()), "{worker} comes twice");
    }
    assert_eq!(observed.len(), 25);
    assert!((3..=4).contains(&pages.len()));
}
