//! Constraints of claims, as a client sends them.

use serde_json::{Value, json};

use crate::client::{Client, Response};
use crate::server::{Server, fresh};

fn claim(client: &mut Client, more: Value) -> Response {
    let mut body = json!({"namespace": "ns"});
    body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    client.post("/v1/claims", &body)
}

/// Creates two pools: `cpu` with w1 (zone a, node n1, 1 core) and w2 (zone b), `gpu` with g1.
fn pools(client: &mut Client) {
    client.put("/v1/pools/ns/cpu", &json!({"shards": 2, "class": "small", "labels": {"tier": "hot"}})).expect(201);
    client.put("/v1/pools/ns/gpu", &json!({"shards": 2, "class": "large", "labels": {"tier": "hot"}})).expect(201);
    let w1 = json!({"labels": {"zone": "a"}, "node": "n1", "capacity": {"cpu_milli": 1000}});
    client.put("/v1/pools/ns/cpu/workers/w1", &w1).expect(201);
    client.put("/v1/pools/ns/cpu/workers/w2", &json!({"labels": {"zone": "b"}})).expect(201);
    let g1 = json!({"capacity": {"gpu": {"model": "A10", "count": 2}}});
    client.put("/v1/pools/ns/gpu/workers/g1", &g1).expect(201);
}

#[test]
fn p01_p04_p05_w07_a_claim_gets_what_it_requests_or_the_reason_why_not() {
    let (_dir, _server, mut client) = fresh();
    pools(&mut client);
    let exhausted = |answer: Response, reason: &str| {
        answer.expect_error(429, "RESOURCE_EXHAUSTED", Some(reason), None);
    };
    exhausted(claim(&mut client, json!({"pool": "cpu", "selector": "zone=c"})), "pool_exhausted");
    exhausted(claim(&mut client, json!({"pool": "cpu", "node": {"required": ["n2"]}})), "node_locality");
    exhausted(claim(&mut client, json!({"pool": "cpu", "class": "large"})), "no_eligible_pool");
    exhausted(claim(&mut client, json!({"pool_selector": "tier=cold"})), "no_eligible_pool");
    claim(&mut client, json!({"pools": ["cpu", "gpu"], "resources": {"cpu_milli": 1001}})).expect_error(
        400,
        "INVALID_ARGUMENT",
        Some("unsatisfiable"),
        Some("resources"),
    );
    claim(&mut client, json!({"pool": "cpu", "worker": "w9"})).expect_error(404, "NOT_FOUND", None, None);
    let all = json!({
        "key": "k", "pools": ["gpu", "cpu"], "selector": "zone in (a, c), !spot", "class": "small",
        "resources": {"cpu_milli": 500}, "node": {"required": [], "preferred": ["n9", "n1"]}, "worker": "w1",
        "labels": {"job": "42"}, "must_match": true, "wait_ms": 0,
    });
    let created = claim(&mut client, all.clone()).expect(201)["claim"].take();
    assert_eq!((&created["worker"], &created["pool"]), (&json!("w1"), &json!("cpu")));
    assert_eq!((&created["labels"], &created["resources"]), (&json!({"job": "42"}), &json!({"cpu_milli": 1000})));
    assert_eq!(claim(&mut client, all.clone()).expect(200)["claim"]["fence"], created["fence"]);
    let mut other = all;
    other["resources"]["cpu_milli"] = json!(501);
    claim(&mut client, other).expect_error(409, "FAILED_PRECONDITION", Some("state"), None);
    let shown = client.get("/v1/claims/ns/k").expect(200)["claim"].take();
    assert_eq!(shown["labels"], created["labels"]);
    assert_eq!(client.get("/v1/claims?namespace=ns").expect(200)["items"][0]["labels"], created["labels"]);
    // In the order of their names.
    let by_label = json!({"pool_selector": "tier=hot"});
    assert_eq!(claim(&mut client, by_label.clone()).expect(201)["claim"]["worker"], "w2");
    assert_eq!(claim(&mut client, by_label.clone()).expect(201)["claim"]["worker"], "g1");
    exhausted(claim(&mut client, by_label), "pool_exhausted");
    let scraped = client.get("/metrics");
    let counted = scraped.text();
    for line in [
        r#"hotpool_claims_total{pool="ns/cpu",outcome="node_locality"} 1"#,
        r#"hotpool_claims_total{pool="ns/cpu",outcome="no_eligible_pool"} 1"#,
        r#"hotpool_claims_total{pool="none",outcome="no_eligible_pool"} 1"#,
        r#"hotpool_claims_total{pool="ns/cpu",outcome="unsatisfiable"} 1"#,
        r#"hotpool_claims_total{pool="ns/cpu",outcome="existing"} 1"#,
    ] {
        assert!(counted.contains(line), "{line} is not in\n{counted}");
    }
}

#[test]
fn c04_requested_resources_and_labels_survive_kill_9() {
    let (dir, server, mut client) = fresh();
    pools(&mut client);
    let body =
        json!({"key": "k", "pool": "cpu", "resources": {"cpu_milli": 7}, "labels": {"job": "1"}, "must_match": true});
    let created = claim(&mut client, body.clone()).expect(201)["claim"].take();
    server.kill();
    let server = Server::start(dir.path());
    let mut client = server.client();
    let again = claim(&mut client, body.clone()).expect(200)["claim"].take();
    assert_eq!((&again["fence"], &again["labels"]), (&created["fence"], &json!({"job": "1"})));
    let mut other = body;
    other["resources"] = json!({});
    claim(&mut client, other).expect_error(409, "FAILED_PRECONDITION", Some("state"), None);
}

#[test]
fn b01_a_batch_mixes_different_requests() {
    let (_dir, _server, mut client) = fresh();
    pools(&mut client);
    let items = json!([
        {"namespace": "ns", "pool": "cpu", "selector": "zone=b"},
        {"namespace": "ns", "pool": "cpu", "selector": "zone=b,"},
        {"namespace": "ns", "pools": ["cpu", "none"]},
        {"namespace": "ns", "pool": "gpu", "worker": "g1", "labels": {"i": "3"}},
        {"namespace": "ns", "pool": "cpu", "pools": ["cpu"]},
        {"namespace": "ns", "pool": "cpu", "node": {"required": ["n1"]}},
        {"namespace": "ns", "pool": "cpu", "resources": {"slots": 1}},
    ]);
    let answer = client.post("/v1/claims:batch", &json!({"mode": "independent", "items": items})).expect(200);
    let response = |i: usize, path: &str| answer.pointer(&format!("/items/{i}/{path}")).cloned().unwrap_or_default();
    assert_eq!(
        (response(0, "claim/worker"), response(3, "claim/worker"), response(5, "claim/worker")),
        (json!("w2"), json!("g1"), json!("w1"))
    );
    assert_eq!(response(3, "claim/labels"), json!({"i": "3"}));
    let fields = [(1, "items[1].selector"), (2, "items[2].pools[1]"), (4, "items[4].pools"), (6, "items[6].resources")];
    for (i, field) in fields {
        assert_eq!(response(i, "error/field"), json!(field), "{answer}");
    }
    assert_eq!(response(6, "error/reason"), json!("unsatisfiable"));
}
