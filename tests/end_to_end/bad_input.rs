use serde_json::json;

use crate::server::{Server, until, with_pool};

const CLAIMS: &str = "/v1/claims";
const QUOTA: &str = "/v1/quotas/ns/acme";
const BEATS: &str = "/v1/pools/ns/warm/workers:heartbeat";

/// Body `{"namespace":"ns","pool":"warm",` with the given rest.
fn claim_with(rest: &str) -> String {
    format!(r#"{{"namespace":"ns","pool":"warm",{rest}}}"#)
}

/// Body of a claim with this `node.preferred_then_wait`.
fn then_wait(what: &str) -> String {
    claim_with(&format!(r#""node":{{"preferred_then_wait":{what}}}"#))
}

#[test]
fn every_invalid_body_names_its_field() {
    let (_dir, _server, mut client) = with_pool(1);
    let long = "x".repeat(300);
    let pool = "/v1/pools/ns/other";
    let worker = "/v1/pools/ns/warm/workers/w9";
    let release = "/v1/claims/ns/k:release";
    let resize = "/v1/claims/ns/k:resize";
    let fgd = |kinds: &str| format!(r#"{{"mode":"shared","policy":"fgd","typical_requests":[{kinds}]}}"#);
    client.put("/v1/pools/ns/shared", &json!({"mode": "shared"})).expect(201);
    let cases: Vec<(&str, &str, String, &str)> = vec![
        ("POST", CLAIMS, String::new(), "namespace"),
        ("POST", CLAIMS, "{}".into(), "namespace"),
        ("POST", CLAIMS, "[]".into(), "body"),
        ("POST", CLAIMS, "null".into(), "body"),
        ("POST", CLAIMS, "7".into(), "body"),
        ("POST", CLAIMS, r#"["ns","k","t","warm"]"#.into(), "body"),
        ("POST", CLAIMS, r#"{"namespace":"ns""#.into(), "body"),
        ("POST", CLAIMS, "namespace=ns&pool=warm".into(), "body"),
        ("POST", CLAIMS, "[".repeat(200_000), "body"),
        ("POST", CLAIMS, r#"{"a":"#.repeat(200_000), "a"),
        ("POST", CLAIMS, claim_with(r#""key":"#).replace("}", &"[".repeat(200_000)), "key"),
        ("POST", CLAIMS, r#"{"namespace":null,"pool":"warm"}"#.into(), "namespace"),
        ("POST", CLAIMS, r#"{"namespace":"ns","pool":null}"#.into(), "pool"),
        ("POST", CLAIMS, r#"{"namespace":"","pool":"warm"}"#.into(), "namespace"),
        ("POST", CLAIMS, r#"{"namespace":"ns","pool":"ns/warm"}"#.into(), "pool"),
        ("POST", CLAIMS, claim_with(r#""key":null"#), "key"),
        ("POST", CLAIMS, claim_with(r#""key":"""#), "key"),
        ("POST", CLAIMS, claim_with(&format!(r#""key":"{long}""#)), "key"),
        ("POST", CLAIMS, claim_with(r#""key":"a b""#), "key"),
        ("POST", CLAIMS, claim_with(r#""key":"a\u0000b""#), "key"),
        ("POST", CLAIMS, claim_with(r#""key":"a:release""#), "key"),
        ("POST", CLAIMS, claim_with(r#""key":"ü""#), "key"),
        ("POST", CLAIMS, claim_with(r#""key":"\ud800""#), "body"),
        ("POST", CLAIMS, claim_with(r#""tenant":"""#), "tenant"),
        ("POST", CLAIMS, claim_with(r#""affinity":"""#), "affinity"),
        ("POST", CLAIMS, claim_with(&format!(r#""affinity":"{long}""#)), "affinity"),
        ("POST", CLAIMS, claim_with(r#""reserve_ms":-1"#), "reserve_ms"),
        ("POST", CLAIMS, claim_with(r#""reserve_ms":1.5"#), "reserve_ms"),
        ("POST", CLAIMS, claim_with(r#""reserve_ms":18446744073709551616"#), "reserve_ms"),
        ("POST", CLAIMS, claim_with(r#""reserve_ms":18446744073709551615"#), "reserve_ms"),
        ("POST", CLAIMS, claim_with(r#""reserve_ms":"1""#), "reserve_ms"),
        ("POST", CLAIMS, claim_with(r#""reserve_ms":null"#), "reserve_ms"),
        ("POST", CLAIMS, claim_with(r#""ttl_ms":31536000000"#), "ttl_ms"),
        ("POST", CLAIMS, claim_with(r#""ack":"never""#), "ack"),
        ("POST", CLAIMS, claim_with(r#""wait_ms":86400001"#), "wait_ms"),
        ("POST", CLAIMS, claim_with(r#""wait_ms":-1"#), "wait_ms"),
        ("POST", CLAIMS, claim_with(r#""wait_ms":null"#), "wait_ms"),
        ("POST", CLAIMS, claim_with(r#""waits":1"#), "waits"),
        ("POST", CLAIMS, claim_with(r#""priority":1001"#), "priority"),
        ("POST", CLAIMS, claim_with(r#""priority":5000000000"#), "priority"),
        ("POST", CLAIMS, claim_with(r#""priority":-1"#), "priority"),
        ("POST", CLAIMS, claim_with(r#""priority":null"#), "priority"),
        ("POST", CLAIMS, claim_with(r#""preemptible":1"#), "preemptible"),
        ("POST", CLAIMS, claim_with(r#""preemptible":null"#), "preemptible"),
        ("POST", CLAIMS, r#"{"namespace":"ns"}"#.into(), "pool"),
        ("POST", CLAIMS, claim_with(r#""pools":["warm"]"#), "pools"),
        ("POST", CLAIMS, claim_with(r#""pool_selector":"a""#), "pool_selector"),
        ("POST", CLAIMS, r#"{"namespace":"ns","pools":["warm"],"pool_selector":"a"}"#.into(), "pools"),
        ("POST", CLAIMS, r#"{"namespace":"ns","pools":[]}"#.into(), "pools"),
        ("POST", CLAIMS, r#"{"namespace":"ns","pools":"warm"}"#.into(), "pools"),
        ("POST", CLAIMS, r#"{"namespace":"ns","pools":["warm","warm"]}"#.into(), "pools[1]"),
        ("POST", CLAIMS, r#"{"namespace":"ns","pools":["warm","none"]}"#.into(), "pools[1]"),
        ("POST", CLAIMS, r#"{"namespace":"ns","pools":["warm",""]}"#.into(), "pools[1]"),
        ("POST", CLAIMS, r#"{"namespace":"ns","pools":["warm",7]}"#.into(), "pools[1]"),
        ("POST", CLAIMS, format!(r#"{{"namespace":"ns","pools":[{}"warm"]}}"#, r#""warm","#.repeat(64)), "pools"),
        ("POST", CLAIMS, r#"{"namespace":"ns","pool_selector":""}"#.into(), "pool_selector"),
        ("POST", CLAIMS, r#"{"namespace":"","pool_selector":"a"}"#.into(), "namespace"),
        ("POST", CLAIMS, claim_with(r#""selector":"""#), "selector"),
        ("POST", CLAIMS, claim_with(r#""selector":null"#), "selector"),
        ("POST", CLAIMS, claim_with(r#""selector":{"a":"b"}"#), "selector"),
        ("POST", CLAIMS, claim_with(r#""selector":"a=b,""#), "selector"),
        ("POST", CLAIMS, claim_with(r#""selector":"a=\u0000""#), "selector"),
        ("POST", CLAIMS, claim_with(&format!(r#""selector":"{}""#, vec!["a"; 10_000].join(","))), "selector"),
        ("POST", CLAIMS, claim_with(&format!(r#""selector":"{}""#, vec!["a"; 65].join(","))), "selector"),
        ("POST", CLAIMS, claim_with(&format!(r#""selector":"{long}=a""#)), "selector"),
        (
            "POST",
            CLAIMS,
            claim_with(&format!(r#""selector":"{}a{}""#, "a in ".repeat(500), "(".repeat(500))),
            "selector",
        ),
        ("POST", CLAIMS, claim_with(&format!(r#""class":"{long}""#)), "class"),
        ("POST", CLAIMS, claim_with(r#""class":"""#), "class"),
        ("POST", CLAIMS, claim_with(r#""class":null"#), "class"),
        ("POST", CLAIMS, claim_with(r#""resources":null"#), "resources"),
        ("POST", CLAIMS, claim_with(r#""resources":[1]"#), "resources"),
        ("POST", CLAIMS, claim_with(r#""resources":{"disk":1}"#), "resources.disk"),
        ("POST", CLAIMS, claim_with(r#""resources":{"cpu_milli":-1}"#), "resources.cpu_milli"),
        ("POST", CLAIMS, claim_with(r#""resources":{"cpu_milli":9007199254740992}"#), "resources.cpu_milli"),
        ("POST", CLAIMS, claim_with(r#""resources":{"gpu":{"model":"A10","count":65}}"#), "resources.gpu.count"),
        ("POST", CLAIMS, claim_with(r#""resources":{"gpu":{"count":1.5}}"#), "resources.gpu.count"),
        ("POST", CLAIMS, claim_with(r#""resources":{"gpu":{"milli":0}}"#), "resources.gpu.milli"),
        ("POST", CLAIMS, claim_with(r#""resources":{"gpu":{"milli":1500}}"#), "resources.gpu.milli"),
        ("POST", CLAIMS, claim_with(r#""resources":{"gpu":{"count":2,"milli":500}}"#), "resources.gpu.milli"),
        ("POST", CLAIMS, claim_with(r#""resources":{"gpu":{"model":"A10","models":["T4"]}}"#), "resources.gpu"),
        ("POST", CLAIMS, claim_with(r#""resources":{"gpu":{"models":["T4","T4"]}}"#), "resources.gpu.models[1]"),
        (
            "POST",
            CLAIMS,
            claim_with(r#""resources":{"gpu":{"models":["a","b","c","d","e","f","g","h","i"]}}"#),
            "resources.gpu.models",
        ),
        ("POST", CLAIMS, claim_with(r#""resources":{"gpu":{"cards":[0]}}"#), "resources.gpu.cards"),
        ("POST", CLAIMS, claim_with(r#""resources":{"gpu":["A10",1]}"#), "resources.gpu"),
        ("POST", CLAIMS, claim_with(r#""resources":{"memory_bytes":18446744073709551616}"#), "resources.memory_bytes"),
        ("POST", resize, "{}".into(), "fence"),
        ("POST", resize, r#"{"fence":1}"#.into(), "resources"),
        ("POST", resize, r#"{"fence":1,"resources":null}"#.into(), "resources"),
        ("POST", resize, r#"{"fence":1,"resources":{}}"#.into(), "resources"),
        ("POST", resize, r#"{"fence":1,"resources":{"slots":-1}}"#.into(), "resources.slots"),
        ("POST", resize, r#"{"fence":1,"resources":{"gpu":{"milli":1500}}}"#.into(), "resources.gpu.milli"),
        ("POST", resize, r#"{"fence":1,"resources":{"slots":1},"ttl_ms":1}"#.into(), "ttl_ms"),
        ("POST", CLAIMS, r#"{"namespace":"ns","pool":"shared"}"#.into(), "resources"),
        ("POST", CLAIMS, r#"{"namespace":"ns","pool":"shared","resources":{}}"#.into(), "resources"),
        ("POST", CLAIMS, r#"{"namespace":"ns","pools":["warm","shared"]}"#.into(), "resources"),
        ("PUT", "/v1/pools/ns/shared", r#"{"mode":"shared","policy":"lifo"}"#.into(), "policy"),
        ("PUT", pool, r#"{"policy":"spread"}"#.into(), "policy"),
        ("PUT", pool, r#"{"typical_requests":[{"weight":1}]}"#.into(), "typical_requests"),
        ("PUT", pool, fgd(r#"{"weight":1},{"weight":0}"#), "typical_requests[1].weight"),
        ("PUT", pool, fgd(r#"{"cpu_milli":1}"#), "typical_requests[0].weight"),
        ("PUT", pool, fgd(r#"{"weight":1,"slots":1}"#), "typical_requests[0].slots"),
        ("PUT", pool, fgd(r#"{"weight":1,"gpu":{"milli":1500}}"#), "typical_requests[0].gpu.milli"),
        ("PUT", pool, fgd(r#"{"weight":1,"gpu":{"count":2,"milli":500}}"#), "typical_requests[0].gpu.milli"),
        ("PUT", pool, fgd(&vec![r#"{"weight":1}"#; 257].join(",")), "typical_requests"),
        ("PUT", pool, r#"{"spare_gpu_workers":"yes"}"#.into(), "spare_gpu_workers"),
        ("POST", CLAIMS, claim_with(r#""resources":{"gpu":{"model":"A10","count":0}}"#), "resources.gpu.count"),
        ("POST", CLAIMS, claim_with(r#""resources":{"gpu":{"model":"","count":1}}"#), "resources.gpu.model"),
        ("POST", CLAIMS, claim_with(r#""node":[]"#), "node"),
        ("POST", CLAIMS, claim_with(r#""node":"n1""#), "node"),
        ("POST", CLAIMS, claim_with(r#""node":{"near":[]}"#), "node.near"),
        ("POST", CLAIMS, claim_with(r#""node":{"required":"n1"}"#), "node.required"),
        ("POST", CLAIMS, claim_with(r#""node":{"required":[""]}"#), "node.required"),
        ("POST", CLAIMS, claim_with(&format!(r#""node":{{"preferred":["{long}"]}}"#)), "node.preferred"),
        (
            "POST",
            CLAIMS,
            claim_with(&format!(r#""node":{{"required":[{}"n"]}}"#, r#""n","#.repeat(256))),
            "node.required",
        ),
        ("POST", CLAIMS, then_wait(r#"{"nodes":[],"ms":1}"#), "node.preferred_then_wait"),
        ("POST", CLAIMS, then_wait(r#"{"nodes":["n"],"ms":0}"#), "node.preferred_then_wait"),
        ("POST", CLAIMS, then_wait(r#"{"nodes":["n"]}"#), "node.preferred_then_wait.ms"),
        ("POST", CLAIMS, then_wait(r#"{"ms":1}"#), "node.preferred_then_wait.nodes"),
        ("POST", CLAIMS, then_wait(r#"{"nodes":["n"],"ms":86400001}"#), "node.preferred_then_wait.ms"),
        ("POST", CLAIMS, then_wait(r#"{"nodes":["n"],"ms":1,"s":1}"#), "node.preferred_then_wait.s"),
        ("POST", CLAIMS, then_wait("[]"), "node.preferred_then_wait"),
        ("POST", CLAIMS, then_wait(r#"{"nodes":["n"],"ms":1},"preferred":["m"]"#), "node.preferred_then_wait"),
        ("PUT", QUOTA, r#"{"claims":-1}"#.into(), "claims"),
        ("PUT", QUOTA, r#"{"claims":null}"#.into(), "claims"),
        ("PUT", QUOTA, r#"{"cpu_milli":9007199254740992}"#.into(), "cpu_milli"),
        ("PUT", QUOTA, r#"{"memory_bytes":"1Gi"}"#.into(), "memory_bytes"),
        ("PUT", QUOTA, r#"{"gpu_milli":1.5}"#.into(), "gpu_milli"),
        ("PUT", QUOTA, r#"{"weight":0}"#.into(), "weight"),
        ("PUT", QUOTA, r#"{"weight":1001}"#.into(), "weight"),
        ("PUT", QUOTA, r#"{"gpus":1}"#.into(), "gpus"),
        ("PUT", QUOTA, "[]".into(), "body"),
        ("PUT", "/v1/quotas/ns", r#"{"weight":-1}"#.into(), "weight"),
        ("POST", CLAIMS, claim_with(r#""worker":"""#), "worker"),
        ("POST", CLAIMS, claim_with(r#""worker":"a b""#), "worker"),
        ("POST", CLAIMS, claim_with(r#""must_match":1"#), "must_match"),
        ("POST", CLAIMS, claim_with(r#""must_match":null"#), "must_match"),
        ("POST", CLAIMS, claim_with(r#""labels":[]"#), "labels"),
        ("POST", CLAIMS, claim_with(r#""labels":{"a":1}"#), "labels.a"),
        ("POST", CLAIMS, claim_with(r#""labels":{"a b":"c"}"#), "labels"),
        ("POST", CLAIMS, claim_with(&format!(r#""labels":{{"a":"{long}"}}"#)), "labels"),
        ("POST", CLAIMS, claim_with(r#""key":"a","key":"b""#), "key"),
        ("POST", release, "{}".into(), "fence"),
        ("POST", release, r#"{"fence":-1}"#.into(), "fence"),
        ("POST", release, r#"{"fence":0.5}"#.into(), "fence"),
        ("POST", release, r#"{"fence":18446744073709551616}"#.into(), "fence"),
        ("POST", release, r#"{"fence":9007199254740992}"#.into(), "fence"),
        ("POST", release, r#"{"fence":null}"#.into(), "fence"),
        ("POST", release, r#"{"fence":"1"}"#.into(), "fence"),
        ("POST", release, r#"{"fence":1,"tenant":""}"#.into(), "tenant"),
        ("POST", release, r#"{"fence":1,"force":true}"#.into(), "force"),
        ("PUT", pool, r#"{"shards":0}"#.into(), "shards"),
        ("PUT", pool, r#"{"shards":3}"#.into(), "shards"),
        ("PUT", pool, r#"{"shards":4096}"#.into(), "shards"),
        ("PUT", pool, r#"{"shards":65536}"#.into(), "shards"),
        ("PUT", pool, r#"{"shards":-1}"#.into(), "shards"),
        ("PUT", pool, r#"{"shards":1.5}"#.into(), "shards"),
        ("PUT", pool, r#"{"shards":null}"#.into(), "shards"),
        ("PUT", pool, r#"{"mode":"both"}"#.into(), "mode"),
        ("PUT", pool, r#"{"policy":"best"}"#.into(), "policy"),
        ("PUT", pool, r#"{"class":""}"#.into(), "class"),
        ("PUT", pool, r#"{"class":null}"#.into(), "class"),
        ("PUT", pool, r#"{"labels":[]}"#.into(), "labels"),
        ("PUT", pool, r#"{"labels":{"a":1}}"#.into(), "labels.a"),
        ("PUT", pool, r#"{"labels":{"":"x"}}"#.into(), "labels"),
        ("PUT", pool, format!(r#"{{"labels":{{"a":"{long}"}}}}"#), "labels"),
        ("PUT", pool, r#"{"reserve_ms":86400001}"#.into(), "reserve_ms"),
        ("PUT", pool, r#"{"lag_max_ms":0}"#.into(), "lag_max_ms"),
        ("PUT", pool, r#"{"unnamed_ms":0}"#.into(), "unnamed_ms"),
        ("PUT", pool, r#"{"unnamed_ms":null}"#.into(), "unnamed_ms"),
        ("PUT", pool, r#"{"lost_keep_ms":-1}"#.into(), "lost_keep_ms"),
        ("PUT", pool, r#"{"shard":1}"#.into(), "shard"),
        ("PUT", pool, r#"{"waiters_max":1000001}"#.into(), "waiters_max"),
        ("PUT", pool, r#"{"waiters_max":-1}"#.into(), "waiters_max"),
        ("PUT", pool, r#"{"waiters_tenant_max":1000001}"#.into(), "waiters_tenant_max"),
        ("PUT", worker, r#"{"id":"w9"}"#.into(), "id"),
        ("PUT", worker, r#"{"capacity":[]}"#.into(), "capacity"),
        ("PUT", worker, r#"{"capacity":{"disk":1}}"#.into(), "capacity.disk"),
        ("PUT", worker, r#"{"capacity":{"slots":-1}}"#.into(), "capacity.slots"),
        ("PUT", worker, r#"{"capacity":{"slots":9007199254740992}}"#.into(), "capacity.slots"),
        ("PUT", worker, r#"{"capacity":{"cpu_milli":18446744073709551616}}"#.into(), "capacity.cpu_milli"),
        ("PUT", worker, r#"{"capacity":{"gpu":{"model":"A10"}}}"#.into(), "capacity.gpu.count"),
        ("PUT", worker, r#"{"capacity":{"gpu":{"model":"A10","count":0}}}"#.into(), "capacity.gpu.count"),
        ("PUT", worker, r#"{"capacity":{"gpu":{"model":"","count":1}}}"#.into(), "capacity.gpu.model"),
        ("PUT", worker, r#"{"node":""}"#.into(), "node"),
        ("PUT", worker, r#"{"incarnation":-1}"#.into(), "incarnation"),
        ("PUT", worker, r#"{"incarnation":9007199254740992}"#.into(), "incarnation"),
        ("POST", "/v1/claims:batch", "{}".into(), "mode"),
        ("POST", "/v1/claims:batch", r#"{"mode":"independent"}"#.into(), "items"),
        ("POST", "/v1/claims:batch", r#"{"mode":"independent","items":{}}"#.into(), "items"),
        ("POST", "/v1/claims:batch", r#"{"mode":"some","items":[]}"#.into(), "mode"),
        ("POST", "/v1/claims:batch", r#"{"mode":"some","items":[]}"#.into(), "mode"),
        ("POST", "/v1/claims:batch", r#"{"mode":"independent","items":[{]}"#.into(), "body"),
        ("POST", "/v1/claims:batch", r#"{"mode":"independent","items":[],"more":1}"#.into(), "more"),
        (
            "POST",
            "/v1/claims:batch",
            format!(r#"{{"mode":"independent","items":[{}]}}"#, vec!["{}"; 100_000].join(",")),
            "items",
        ),
        (
            "POST",
            "/v1/pools/ns/warm/workers:batch",
            format!(r#"{{"workers":[{}]}}"#, vec!["{}"; 10_001].join(",")),
            "workers",
        ),
        ("POST", BEATS, "{}".into(), "workers"),
        ("POST", BEATS, r#"{"workers":{}}"#.into(), "workers"),
        ("POST", BEATS, r#"{"workers":null}"#.into(), "workers"),
        ("POST", BEATS, r#"{"workers":[],"seq":1}"#.into(), "seq"),
        ("POST", BEATS, format!(r#"{{"workers":[{}]}}"#, vec!["{}"; 10_001].join(",")), "workers"),
    ];
    for (method, path, body, field) in cases {
        let answer = client.request(method, path, body.as_bytes());
        let response = &answer.json()["error"]["field"];
        let shown: String = body.chars().take(200).collect();
        assert_eq!(response, field, "{method} {path} {shown}: {}", answer.text());
        answer.expect_error(400, "INVALID_ARGUMENT", None, Some(field));
    }
    // The limit is in the message.
    let answer = client.request("POST", CLAIMS, claim_with(r#""reserve_ms":-1"#).as_bytes());
    assert!(answer.text().contains("86400000"), "{}", answer.text());
    let answer = client.request("PUT", pool, br#"{"shards":3}"#);
    assert!(answer.text().contains("1024"), "{}", answer.text());
    for (body, limit) in [(r#""wait_ms":-1"#, "86400000"), (r#""priority":1001"#, "1000")] {
        let answer = client.request("POST", CLAIMS, claim_with(body).as_bytes());
        assert!(answer.text().contains(limit), "{}", answer.text());
    }
    let answer = client.request("PUT", QUOTA, br#"{"weight":-1}"#);
    assert!(answer.text().contains("1000,"), "{}", answer.text());
    // None of these requests had an effect.
    assert_eq!(client.get("/v1/quotas").expect(200)["items"], json!([]));
    client.get(pool).expect_error(404, "NOT_FOUND", None, None);
    client.get(worker).expect_error(404, "NOT_FOUND", None, None);
    assert_eq!(client.get("/v1/claims").expect(200)["items"], json!([]));
}

#[test]
fn every_invalid_path_and_query_is_rejected() {
    let (_dir, _server, mut client) = with_pool(1);
    let long = "x".repeat(300);
    let invalid = [
        ("GET", format!("/v1/pools/{long}/warm"), "namespace"),
        ("GET", format!("/v1/pools/ns/{long}"), "pool"),
        ("GET", "/v1/pools/ns/a%20b".into(), "pool"),
        ("GET", "/v1/pools/ns/a%2Fb".into(), "pool"),
        ("GET", "/v1/pools/ns/%00".into(), "pool"),
        ("GET", "/v1/pools/ns/%ff".into(), "path"),
        ("GET", "/v1/pools/ns/".into(), "path"),
        ("GET", "/v1/pools//warm".into(), "namespace"),
        ("PUT", "/v1/pools/ns/a:b".into(), "pool"),
        ("PUT", format!("/v1/pools/ns/warm/workers/{long}"), "id"),
        ("PUT", "/v1/pools/ns/warm/workers/".into(), "path"),
        ("PUT", "/v1/pools/ns/warm/workers/a%3Ab".into(), "id"),
        ("GET", format!("/v1/claims/ns/{long}"), "key"),
        ("GET", "/v1/claims/ns/a:release".into(), "key"),
        ("POST", format!("/v1/claims/ns/{long}:release"), "key"),
        ("POST", "/v1/claims/ns/:release".into(), "key"),
        ("POST", "/v1/claims/ns/a:b:release".into(), "key"),
        ("GET", "/v1/claims/ns/a?tenant=".into(), "tenant"),
        ("GET", "/v1/claims/ns/a?tennant=x".into(), "tennant"),
        ("GET", "/v1/claims?namespace=%ff".into(), "namespace"),
        ("GET", "/v1/claims?pool=warm".into(), "namespace"),
        ("GET", "/v1/claims?limit=0".into(), "limit"),
        ("GET", "/v1/claims?limit=1001".into(), "limit"),
        ("GET", "/v1/claims?limit=-1".into(), "limit"),
        ("GET", "/v1/claims?limit=ten".into(), "limit"),
        ("GET", "/v1/claims?limit=1&limit=2".into(), "limit"),
        ("GET", "/v1/pools?limit=18446744073709551616".into(), "limit"),
        ("GET", "/v1/pools?page=2".into(), "page"),
        ("GET", "/v1/pools?page_token=".into(), "page_token"),
        ("GET", "/v1/pools?page_token=warm".into(), "page_token"),
        ("GET", "/v1/pools?page_token=ns%2Fa%20b".into(), "page_token"),
        ("GET", "/v1/claims?page_token=warm:0-0".into(), "page_token"),
        ("GET", "/v1/claims?page_token=ns%2Fwarm:0-x".into(), "page_token"),
        ("GET", "/v1/pools/ns/warm?verbose=1".into(), "verbose"),
        ("GET", "/v1/pools/ns/warm/workers?page_token=%2F%2F".into(), "page_token"),
        ("DELETE", "/v1/pools/ns/warm?force=yes".into(), "force"),
        ("GET", "/v1/pools/ns/a%20b/demand".into(), "pool"),
        ("GET", "/v1/pools/ns/warm/demand?limit=1".into(), "limit"),
        ("GET", "/v1/quotas/a%20b".into(), "namespace"),
        ("GET", "/v1/quotas/ns/a%20b".into(), "tenant"),
        ("DELETE", format!("/v1/quotas/ns/{long}"), "tenant"),
        ("GET", "/v1/quotas/ns/".into(), "path"),
        ("GET", "/v1/quotas/ns/acme?tenant=x".into(), "tenant"),
        ("GET", "/v1/quotas?limit=0".into(), "limit"),
        ("GET", "/v1/quotas?page_token=a%2Fb%2Fc".into(), "page_token"),
        ("GET", "/v1/quotas?page_token=".into(), "page_token"),
        ("DELETE", "/v1/pools/ns/warm?forced=true".into(), "forced"),
    ];
    for (method, path, field) in invalid {
        let body: &[u8] = if method == "POST" { br#"{"fence":1}"# } else { b"" };
        let answer = client.request(method, &path, body);
        assert_eq!(answer.json()["error"]["field"], field, "{method} {path}: {}", answer.text());
        answer.expect_error(400, "INVALID_ARGUMENT", None, Some(field));
    }
    for (method, path) in [
        ("GET", "/v1"),
        ("GET", "/v2/pools"),
        ("GET", "/v1/pools/ns"),
        ("POST", "/v1/claims/ns/a"),
        ("POST", "/v1/claims/ns/a:shrink"),
        ("POST", "/v1/claims/ns/a:"),
        ("GET", "/v1/claims/ns/a/b"),
    ] {
        client.request(method, path, b"").expect_error(404, "NOT_FOUND", Some("route"), None);
    }
    for (method, path) in [
        ("POST", "/v1/pools"),
        ("POST", "/"),
        ("PATCH", "/v1/claims/ns/a"),
        ("DELETE", "/v1/claims"),
        ("GET", "/v1/claims:batch"),
        ("POST", "/metrics"),
        ("POST", "/v1/quotas/ns/acme"),
        ("PUT", "/v1/quotas"),
        ("PUT", "/v1/pools/ns/warm/demand"),
    ] {
        let answer = client.request(method, path, b"");
        answer.expect_error(405, "INVALID_ARGUMENT", Some("method"), None);
        assert!(answer.header("allow").is_some(), "{method} {path}");
    }
    client.get("/v1/pools/ns/warm").expect(200);
}

#[test]
fn invalid_utf8_is_rejected() {
    let (_dir, _server, mut client) = with_pool(1);
    for body in [
        &b"{\"namespace\":\"\xff\xfe\"}"[..],
        b"{\"\xc3\x28\":1}",
        b"\x00\x01\x02",
        b"\xef\xbb\xbf{}",
        b"{\"a\":\"\x01\"}",
    ] {
        let answer = client.request("POST", CLAIMS, body);
        assert_eq!(answer.status, 400, "{body:?}: {}", answer.text());
        answer.expect_error(400, "INVALID_ARGUMENT", None, answer.json()["error"]["field"].as_str());
    }
    let batch = b"{\"mode\":\"independent\",\"items\":[{\"namespace\":\"\xff\"}]}";
    client.request("POST", "/v1/claims:batch", batch).expect_error(400, "INVALID_ARGUMENT", None, Some("body"));
}

#[test]
fn the_content_type_does_not_matter() {
    let (_dir, _server, mut client) = with_pool(2);
    for (key, kind) in [("a", "application/x-www-form-urlencoded"), ("b", "image/png")] {
        let body = claim_with(&format!(r#""key":"{key}""#));
        let head = format!(
            "POST {CLAIMS} HTTP/1.1\r\nhost: localhost\r\ncontent-type: {kind}\r\ncontent-length: {}\r\n\r\n{body}",
            body.len()
        );
        client.send(head.as_bytes()).unwrap();
        client.receive().unwrap().expect(201);
    }
}

#[test]
fn a_large_body_is_413_and_the_service_keeps_running() {
    let dir = tempfile::TempDir::new().unwrap();
    let server = Server::start_with(dir.path(), &[], &[("HOTPOOL__SERVER__MAX_BODY_BYTES", "4096")]);
    let large = vec![b' '; 4097];
    let rejected = server.client().request("POST", CLAIMS, &large);
    rejected.expect_error(413, "INVALID_ARGUMENT", Some("body_too_large"), None);
    assert!(rejected.text().contains("4096"));
    // Sent in chunks, so that the length is not announced.
    let mut client = server.client();
    client
        .send(format!("POST {CLAIMS} HTTP/1.1\r\nhost: localhost\r\ntransfer-encoding: chunked\r\n\r\n").as_bytes())
        .unwrap();
    for _ in 0..5 {
        let _ = client.send(&[&b"400\r\n"[..], &large[..1024], b"\r\n"].concat());
    }
    client.receive().unwrap().expect_error(413, "INVALID_ARGUMENT", Some("body_too_large"), None);
    // A body of exactly the limit is read.
    server.client().request("POST", CLAIMS, &large[..4096]).expect_error(
        400,
        "INVALID_ARGUMENT",
        None,
        Some("namespace"),
    );
    server.client().get("/healthz").expect(200);
}

#[test]
fn large_bodies_share_a_budget_and_do_not_block_small_ones() {
    let dir = tempfile::TempDir::new().unwrap();
    let server = Server::start_with(dir.path(), &[], &[("HOTPOOL__SERVER__MAX_BODY_BYTES", "67108864")]);
    // Four requests announce 64 MiB each, which uses up the budget, and send nothing.
    let announce = format!(
        "POST {CLAIMS} HTTP/1.1\r\nhost: localhost\r\nexpect: 100-continue\r\ncontent-length: 67108864\r\n\r\n"
    );
    let mut slow: Vec<_> = (0..4).map(|_| server.client()).collect();
    for client in &mut slow {
        client.send(announce.as_bytes()).unwrap();
        assert_eq!(client.receive().unwrap().status, 100);
    }
    let large = vec![b' '; 20_000];
    let mut client = server.client();
    client.request("POST", CLAIMS, &large).expect_error(503, "UNAVAILABLE", Some("overloaded"), None);
    server.client().request("POST", CLAIMS, b"{}").expect_error(400, "INVALID_ARGUMENT", None, Some("namespace"));
    // They disconnect, and their budget is free again.
    drop(slow);
    until("the body's bytes are free again", || server.client().request("POST", CLAIMS, &large).status != 503);
}

#[test]
fn invalid_http_is_rejected() {
    let (_dir, server, mut good) = with_pool(1);
    for bytes in [
        &b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03 hello"[..],
        b"GET\r\n\r\n",
        b"GET / HTTP/9.9\r\n\r\n",
        b"\0\0\0\0\0\0\r\n\r\n",
    ] {
        let mut client = server.client();
        client.send(bytes).unwrap();
        // A response of 4xx, or just the end.
        if let Ok(answer) = client.receive() {
            assert!((400..500).contains(&answer.status), "{bytes:?}: {}", answer.status);
        }
    }
    let mut client = server.client();
    let _ = client.send(format!("GET / HTTP/1.1\r\nhost: localhost\r\nx: {}\r\n\r\n", "y".repeat(2 << 20)).as_bytes());
    if let Ok(answer) = client.receive() {
        assert_eq!(answer.status, 431);
    }
    good.get("/healthz").expect(200);
}
