//! Examples of the operations, which build on each other: on a new service each works unchanged, in the order of the
//! viewer's sections, the deletions last. A test runs them.

use serde_json::{Value, json};

/// Value of a path parameter in the example of an operation.
pub(super) fn path(operation: &str, parameter: &str) -> &'static str {
    match (operation, parameter) {
        (_, "namespace") => "demo",
        (_, "pool") => "shared",
        // These workers cannot serve again before they register anew.
        ("drainWorker" | "deleteWorker", "id") => "w3",
        (_, "id") => "w1",
        (_, "key") => "job-1",
        (_, "tenant") => "acme",
        (_, other) => unreachable!("{other} is no parameter of a path"),
    }
}

/// Example body of an operation. Its pool is shared, because only there a claim can be resized; its times are long
/// enough for a reader.
pub(super) fn body(operation: &str) -> Value {
    let claim = |key: &str| json!({"namespace": "demo", "pool": "shared", "key": key, "resources": {"cpu_milli": 500}});
    let worker = json!({"capacity": {"cpu_milli": 4000, "memory_bytes": 8_589_934_592_u64}, "labels": {"zone": "a"}});
    let with_id = |id: &str| {
        let mut worker = worker.clone();
        worker["id"] = id.into();
        worker
    };
    match operation {
        "putPool" => json!({"mode": "shared", "shards": 4, "reserve_ms": 600_000, "heartbeat_ttl_ms": 600_000}),
        "updatePool" => json!({"preemption": true, "labels": {"tier": "gold"}}),
        "registerWorker" => worker,
        "registerWorkers" => json!({"workers": [with_id("w2"), with_id("w3")]}),
        "heartbeat" => json!({"incarnation": 0}),
        "heartbeats" => json!({"workers": [{"id": "w1"}, {"id": "w2"}]}),
        "claim" | "explainClaim" => claim("job-1"),
        "claimMany" => json!({"mode": "independent", "items": [claim("job-2"), claim("job-3")]}),
        "confirmClaim" | "releaseClaim" => json!({"fence": 1}),
        "renewClaim" => json!({"fence": 1, "ttl_ms": 600_000}),
        "resizeClaim" => json!({"fence": 1, "resources": {"cpu_milli": 1000}}),
        "putQuota" => json!({"claims": 100, "weight": 2}),
        "putNamespaceQuota" => json!({"claims": 1000}),
        _ => json!({}),
    }
}
