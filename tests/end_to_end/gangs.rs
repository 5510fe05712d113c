//! Gangs of claims, as a client sees them.

use serde_json::{Value, json};

use crate::client::{Client, check_error};
use crate::server::fresh;

fn gang(client: &mut Client, items: &[Value]) -> Vec<Value> {
    let body = json!({"mode": "all_or_nothing", "items": items});
    let mut answer = client.post("/v1/claims:batch", &body).expect(200);
    let Value::Array(items) = answer["items"].take() else { panic!("{answer}") };
    items
}

fn item(key: &str) -> Value {
    json!({"namespace": "ns", "pool": "p", "key": key, "reserve_ms": 0})
}

#[test]
fn b02_a_gang_over_http() {
    let (_dir, _server, mut client) = fresh();
    client.put("/v1/pools/ns/p", &json!({"shards": 4})).expect(201);
    let workers: Vec<_> = (0..6).map(|n| json!({"id": format!("w{n}")})).collect();
    client.post("/v1/pools/ns/p/workers:batch", &json!({"workers": workers})).expect(200);
    let keys = |prefix: &str, n: usize| -> Vec<Value> { (0..n).map(|i| item(&format!("{prefix}{i}"))).collect() };

    let all = gang(&mut client, &keys("a", 4));
    assert!(all.iter().all(|item| item["created"] == true && item["claim"]["state"] == "active"), "{all:?}");
    let again = gang(&mut client, &keys("a", 4));
    for (one, two) in all.iter().zip(&again) {
        assert_eq!((&one["claim"]["fence"], &two["created"]), (&two["claim"]["fence"], &json!(false)));
    }
    // No capacity for three, and never for seven.
    let none = gang(&mut client, &keys("b", 3));
    let reasons: Vec<&str> = none.iter().map(|item| item["error"]["reason"].as_str().unwrap()).collect();
    assert!(reasons.contains(&"pool_exhausted") && reasons.iter().all(|r| ["pool_exhausted", "gang"].contains(r)));
    let none = gang(&mut client, &keys("c", 7));
    assert!(none.iter().any(|item| item["error"]["reason"] == "unsatisfiable"), "{none:?}");
    assert!(none.iter().all(|item| item["error"]["code"] != "RESOURCE_EXHAUSTED"));
    // An invalid item, a repeated key, a key that is held: that item has the reason, the others refer to it.
    let cases = [
        (json!({"namespace": "ns", "key": "x"}), "INVALID_ARGUMENT", None, Some("items[1].pool")),
        (item("d0"), "INVALID_ARGUMENT", None, Some("items[1].key")),
        (item("a0"), "FAILED_PRECONDITION", Some("state"), None),
    ];
    for (bad, code, reason, field) in cases {
        let outcomes = gang(&mut client, &[item("d0"), bad]);
        check_error(&outcomes[1], code, reason, field);
        check_error(&outcomes[0], "ABORTED", Some("gang"), None);
    }
    client.get("/v1/claims/ns/d0").expect(404);
    assert_eq!(gang(&mut client, &keys("b", 2)).iter().filter(|item| item["claim"].is_object()).count(), 2);
    assert!(gang(&mut client, &[]).is_empty());
    let metrics = client.get("/metrics");
    assert!(metrics.text().contains("hotpool_gangs_total{outcome=\"committed\"} 2"), "{}", metrics.text());
}
