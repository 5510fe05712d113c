//! Quotas, as a client sets them and runs into them.

use serde_json::{Value, json};

use crate::client::{Client, Response};
use crate::server::{Server, with_pool};

const ACME: &str = "/v1/quotas/ns/acme";

fn claim(client: &mut Client, tenant: &str, key: &str) -> Response {
    client.post("/v1/claims", &json!({"namespace": "ns", "pool": "warm", "key": key, "tenant": tenant}))
}

fn quota(answer: &Response, status: u16) -> Value {
    answer.expect(status)["quota"].take()
}

fn used(claims: u64) -> Value {
    json!({"claims": claims, "cpu_milli": 0, "memory_bytes": 0, "gpu_milli": 0})
}

#[test]
fn q01_a_quota_is_set_used_up_raised_and_deleted() {
    let (dir, server, mut client) = with_pool(4);
    // No quota is set.
    let none =
        json!({"namespace": "ns", "tenant": "acme", "source": "none", "weight": 1, "used": used(0), "waiting": 0});
    assert_eq!(quota(&client.get(ACME), 200), none);
    let set = json!({"claims": 2, "gpu_milli": 500, "weight": 7});
    let mut shown = json!({"namespace": "ns", "tenant": "acme", "source": "tenant", "claims": 2, "gpu_milli": 500, "weight": 7,
        "used": used(0), "waiting": 0});
    assert_eq!(quota(&client.put(ACME, &set), 201), shown);
    claim(&mut client, "acme", "a").expect(201);
    let b = claim(&mut client, "acme", "b").expect(201)["claim"].take();
    let rejected = claim(&mut client, "acme", "c");
    rejected.expect_error(429, "RESOURCE_EXHAUSTED", Some("quota"), None);
    assert!(rejected.text().contains("claims"), "{}", rejected.text());
    claim(&mut client, "acme", "a").expect(200);
    claim(&mut client, "other", "a").expect(201);
    let scrape = client.get("/metrics");
    assert!(scrape.text().contains(r#"hotpool_claims_total{pool="ns/warm",outcome="quota"} 1"#), "{}", scrape.text());
    shown["used"] = used(2);
    assert_eq!(quota(&client.get(ACME), 200), shown);
    // Below the current usage: nothing is evicted. PUT replaces: omitted resources are unlimited.
    let lower = quota(&client.put(ACME, &json!({"claims": 1})), 200);
    assert_eq!((&lower["claims"], &lower["weight"], &lower["used"]["claims"]), (&json!(1), &json!(1), &json!(2)));
    assert_eq!(lower.get("gpu_milli"), None);
    client.post("/v1/claims/ns/b:release", &json!({"fence": b["fence"], "tenant": "acme"})).expect(200);
    claim(&mut client, "acme", "c").expect_error(429, "RESOURCE_EXHAUSTED", Some("quota"), None);

    // A quota is as durable as a pool.
    server.kill();
    let server = Server::start(dir.path());
    let mut client = server.client();
    let after = quota(&client.get(ACME), 200);
    assert_eq!((&after["claims"], &after["used"]["claims"]), (&json!(1), &json!(1)));
    assert_eq!(client.delete(ACME).expect(200), json!({}));
    client.delete(ACME).expect_error(404, "NOT_FOUND", None, None);
    assert_eq!(quota(&client.get(ACME), 200)["source"], "none");
    claim(&mut client, "acme", "c").expect(201);
}

#[test]
fn a_namespace_quota_applies_to_tenants_without_their_own_and_all_are_listed() {
    let (_dir, _server, mut client) = with_pool(4);
    let set = quota(&client.put("/v1/quotas/ns", &json!({"claims": 1})), 201);
    assert_eq!(set, json!({"namespace": "ns", "source": "namespace", "claims": 1, "weight": 1}));
    claim(&mut client, "acme", "a").expect(201);
    claim(&mut client, "acme", "b").expect_error(429, "RESOURCE_EXHAUSTED", Some("quota"), None);
    claim(&mut client, "other", "a").expect(201);
    assert_eq!(quota(&client.get(ACME), 200)["source"], "namespace");
    client.put(ACME, &json!({"claims": 2})).expect(201);
    claim(&mut client, "acme", "b").expect(201);
    client.put("/v1/quotas/other/t", &json!({})).expect(201);
    let name =
        |item: &Value| format!("{}/{}", item["namespace"].as_str().unwrap(), item["tenant"].as_str().unwrap_or("-"));
    let names: Vec<_> = client.pages("/v1/quotas?limit=2").iter().flatten().map(name).collect();
    assert_eq!(names, ["ns/-", "ns/acme", "other/t"]);
    assert_eq!(client.delete("/v1/quotas/ns").expect(200), json!({}));
    assert_eq!(quota(&client.get("/v1/quotas/ns"), 200), json!({"namespace": "ns", "source": "none", "weight": 1}));
    client.delete("/v1/quotas/ns").expect_error(404, "NOT_FOUND", None, None);
}
