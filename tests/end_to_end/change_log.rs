//! Log of operators' changes: who, what, and the outcome.

use std::path::Path;

use hotpool::api::grpc::proto::{
    CordonWorkerRequest, DeletePoolRequest, DeleteQuotaRequest, DeleteWorkerRequest, PoolSpec, PutQuotaRequest,
    QuotaSpec,
};
use serde_json::{Value, json};
use tempfile::TempDir;
use tonic::Request;

use crate::client::Client;
use crate::grpc::grpc_client::{GrpcClient, put_pool, register};
use crate::server::Server;

/// Parses the log lines about changes.
fn logged(dir: &Path) -> Vec<Value> {
    let log = std::fs::read_to_string(dir.join("log")).unwrap();
    // The last line may be half written.
    let lines = log.split_inclusive('\n').filter(|line| line.ends_with('\n'));
    let lines = lines.map(|line| serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}")));
    lines.filter(|line: &Value| line["target"] == "hotpool::change").collect()
}

/// Starts a service that logs JSON.
fn start(dir: &Path) -> Server {
    Server::start_with(dir, &["--log", "json"], &[])
}

fn parts(line: &Value) -> (String, String, String) {
    let fields = &line["fields"];
    let word = |name: &str| fields[name].as_str().unwrap_or_default().to_owned();
    let subject = ["worker", "quota", "pool"].map(word).into_iter().find(|word| !word.is_empty());
    (word("change"), word("result"), subject.unwrap_or_default())
}

#[test]
fn every_change_is_logged_with_its_caller_and_its_outcome() {
    let dir = TempDir::new().unwrap();
    let server = start(dir.path());
    let mut client = server.client();
    let (pool, workers) = ("/v1/pools/ns/warm", "/v1/pools/ns/warm/workers");
    client.put(pool, &json!({"reserve_ms": 5_000})).expect(201);
    client.put(pool, &json!({"reserve_ms": 6_000, "preemption": true})).expect(200);
    client.put(pool, &json!({"reserve_ms": 6_000, "preemption": true})).expect(200);
    client.put(pool, &json!({"shards": 4})).expect(409);
    for id in ["w1", "w2"] {
        client.put(&format!("{workers}/{id}"), &json!({})).expect(201);
    }
    for _ in 0..2 {
        client.post("/v1/claims", &json!({"namespace": "ns", "pool": "warm", "key": "a"}));
    }
    client.put("/v1/quotas/ns/acme", &json!({"claims": 7})).expect(201);
    client.put("/v1/quotas/ns", &json!({"claims": 8})).expect(201);
    client.delete("/v1/quotas/ns/acme").expect(200);
    client.delete("/v1/quotas/ns/acme").expect(404);
    for verb in ["cordon", "uncordon", "drain", "clear"] {
        client.post(&format!("{workers}/w1:{verb}"), &json!({})).expect(200);
    }
    client.post(&format!("{workers}/none:drain"), &json!({})).expect(404);
    client.post(&format!("{pool}:clear"), &json!({})).expect(200);
    client.delete(&format!("{workers}/w1")).expect(200);
    client.delete(&format!("{workers}/w2")).expect(200);
    client.put(&format!("{workers}/w3"), &json!({})).expect(201);
    client.delete(pool).expect(409);
    client.delete(&format!("{pool}?force=true")).expect(200);
    assert_eq!(server.stop().code(), Some(0));

    let lines = logged(dir.path());
    let expected = [
        ("put_pool", "created", "ns/warm"),
        ("put_pool", "replaced", "ns/warm"),
        ("put_pool", "refused", "ns/warm"),
        ("put_quota", "created", "ns/acme"),
        ("put_quota", "created", "ns"),
        ("delete_quota", "done", "ns/acme"),
        ("delete_quota", "refused", "ns/acme"),
        ("cordon_worker", "done", "w1"),
        ("uncordon_worker", "done", "w1"),
        ("drain_worker", "done", "w1"),
        ("clear_worker", "done", "w1"),
        ("drain_worker", "refused", "none"),
        ("clear_pool", "done", "ns/warm"),
        ("delete_worker", "done", "w1"),
        ("delete_worker", "done", "w2"),
        ("delete_pool", "refused", "ns/warm"),
        ("delete_pool", "done", "ns/warm"),
    ];
    let expected = expected.map(|(change, result, subject)| (change.to_owned(), result.to_owned(), subject.to_owned()));
    assert_eq!(lines.iter().map(parts).collect::<Vec<_>>(), expected);
    for line in &lines {
        let fields = &line["fields"];
        assert_eq!((&line["level"], &fields["source"]), (&json!("INFO"), &json!("http")), "{line}");
        assert!(fields["peer"].as_str().unwrap().starts_with("127.0.0.1:"), "{line}");
        assert!(fields["request_id"].as_str().is_some_and(|id| !id.is_empty()), "{line}");
    }
    let fields = |at: usize| &lines[at]["fields"];
    let of = |at: usize, name: &str| serde_json::from_str::<Value>(fields(at)[name].as_str().unwrap()).unwrap();
    assert_eq!(of(0, "settings"), json!({"reserve_ms": 5_000, "policy": "lifo"}), "what differs from the default");
    assert_eq!(of(1, "settings"), json!({"reserve_ms": 6_000, "preemption": true}), "what changed");
    assert_eq!(of(1, "before"), json!({"reserve_ms": 5_000, "preemption": false}));
    assert!(fields(2)["error"].as_str().unwrap().contains("shards"), "{}", fields(2));
    assert_eq!(of(3, "settings"), json!({"claims": 7}));
    assert_eq!(fields(7)["pool"], "ns/warm", "a worker's id says nothing without its pool");
    let lost: u64 = [13, 14].map(|at| fields(at)["claims_lost"].as_u64().unwrap()).iter().sum();
    assert_eq!(lost, 1);
    assert_eq!((&fields(16)["forced"], &fields(16)["workers"]), (&json!(true), &json!(1)));
}

#[test]
fn patches_are_logged_and_rejected_ones_with_their_reason() {
    let dir = TempDir::new().unwrap();
    let server = start(dir.path());
    let mut client = server.client();
    let (pool, too_long) = ("/v1/pools/ns/warm", json!({"reserve_ms": 86_400_001}));
    let mut patch = |path: &str, body: &Value| client.request("PATCH", path, body.to_string().as_bytes());
    patch(pool, &json!({"reserve_ms": 7})).expect(404);
    server.client().put(pool, &json!({"reserve_ms": 5})).expect(201);
    let version = patch(pool, &json!({"reserve_ms": 7})).expect(200)["pool"]["version"].as_u64().unwrap();
    patch(&format!("{pool}?version={version}"), &json!({"reserve_ms": 7})).expect(200);
    patch(&format!("{pool}?version={}", version - 1), &json!({"reserve_ms": 8})).expect(409);
    patch(pool, &too_long).expect(400);
    patch(pool, &json!({"shards": 4})).expect(409);
    client.put(pool, &too_long).expect(400);
    client.put("/v1/quotas/ns", &json!({"weight": 0})).expect(400);
    assert_eq!(server.stop().code(), Some(0));

    let lines = logged(dir.path());
    let found: Vec<_> = lines
        .iter()
        .map(|line| {
            let (change, result, subject) = parts(line);
            (change, result, subject, line["fields"]["error"].as_str().unwrap_or_default().to_owned())
        })
        .collect();
    let expected = [
        ("put_pool", "refused", "ns/warm", "pool not found"),
        ("put_pool", "created", "ns/warm", ""),
        ("put_pool", "replaced", "ns/warm", ""),
        ("put_pool", "refused", "ns/warm", "version"),
        ("put_pool", "refused", "ns/warm", "must be"),
        ("put_pool", "refused", "ns/warm", "shards"),
        ("put_pool", "refused", "ns/warm", "must be"),
        ("put_quota", "refused", "ns", "must be"),
    ];
    assert_eq!(found.len(), expected.len(), "{found:?}");
    for ((change, result, subject, error), (kind, outcome, name, reason)) in found.iter().zip(expected) {
        assert_eq!((&**change, &**result, &**subject), (kind, outcome, name), "{found:?}");
        assert!(error.contains(reason) && error.is_empty() == reason.is_empty(), "{error:?} is not {reason:?}");
    }
    assert!(lines.iter().all(|line| line["fields"]["source"] == "http"), "{lines:?}");
}

#[tokio::test]
async fn a_change_over_grpc_is_logged_as_well() {
    let dir = TempDir::new().unwrap();
    let server = start(dir.path());
    let mut grpc = GrpcClient::open(server.address).await;
    grpc.pools.put_pool(put_pool("warm", PoolSpec::default())).await.unwrap();
    grpc.workers.register_worker(register("w1")).await.unwrap();
    let (namespace, pool, id) = ("ns".to_owned(), "warm".to_owned(), "w1".to_owned());
    let worker = CordonWorkerRequest { namespace: namespace.clone(), pool: pool.clone(), id: id.clone() };
    let mut named = Request::new(worker);
    named.metadata_mut().insert("x-request-id", "ticket-17".parse().unwrap());
    grpc.workers.cordon_worker(named).await.unwrap();
    let spec = Some(QuotaSpec { claims: Some(1), ..QuotaSpec::default() });
    grpc.quotas.put_quota(PutQuotaRequest { namespace: namespace.clone(), tenant: None, spec }).await.unwrap();
    grpc.quotas.delete_quota(DeleteQuotaRequest { namespace: namespace.clone(), tenant: None }).await.unwrap();
    let worker = DeleteWorkerRequest { namespace: namespace.clone(), pool: pool.clone(), id };
    grpc.workers.delete_worker(worker).await.unwrap();
    grpc.pools.delete_pool(DeletePoolRequest { namespace, pool, force: false }).await.unwrap();
    assert_eq!(server.stop().code(), Some(0));
    let lines = logged(dir.path());
    let changes: Vec<_> = lines.iter().map(|line| parts(line).0).collect();
    let expected = ["put_pool", "cordon_worker", "put_quota", "delete_quota", "delete_worker", "delete_pool"];
    assert_eq!(changes, expected);
    assert!(lines.iter().all(|line| line["fields"]["source"] == "grpc"), "{lines:?}");
    assert_eq!(lines[1]["fields"]["request_id"], "ticket-17");
}

#[test]
fn declared_pools_are_logged_when_they_change_something() {
    let dir = TempDir::new().unwrap();
    let file = dir.path().join("config.toml");
    std::fs::write(&file, "[[pools]]\nname = \"ns/declared\"\nshards = 2\n").unwrap();
    // The log of each start is a new file.
    let arguments = ["--log", "json", "--config", file.to_str().unwrap()];
    assert_eq!(Server::start_with(dir.path(), &arguments, &[]).stop().code(), Some(0));
    let made = logged(dir.path());
    assert!(matches!(&made[..], [line] if line["fields"]["source"] == "configuration"), "{made:?}");
    assert_eq!(parts(&made[0]), ("put_pool".into(), "created".into(), "ns/declared".into()));
    assert_eq!(Server::start_with(dir.path(), &arguments, &[]).stop().code(), Some(0));
    assert_eq!(logged(dir.path()), [Value::Null; 0], "nothing was changed");
}

/// A selector that matches thousands of workers must not fill the disk with log lines.
#[test]
fn many_similar_changes_are_a_few_lines_and_a_count() {
    const WORKERS: u64 = 400;
    let dir = TempDir::new().unwrap();
    let server = start(dir.path());
    let mut client = server.client();
    client.put("/v1/pools/ns/warm", &json!({})).expect(201);
    let all: Vec<_> = (0..WORKERS).map(|i| json!({"id": format!("w{i}")})).collect();
    client.post("/v1/pools/ns/warm/workers:batch", &json!({"workers": all})).expect(200);
    for i in 0..WORKERS {
        client.post(&format!("/v1/pools/ns/warm/workers/w{i}:drain"), &json!({})).expect(200);
    }
    assert_eq!(server.stop().code(), Some(0));
    let drained = logged(dir.path()).into_iter().filter(|line| parts(line).0 == "drain_worker");
    let (counts, singles): (Vec<_>, Vec<_>) = drained.partition(|line| line["fields"].get("more").is_some());
    let more: u64 = counts.iter().map(|line| line["fields"]["more"].as_u64().unwrap()).sum();
    assert_eq!(singles.len() as u64 + more, WORKERS);
    assert!(counts.iter().all(|line| line["fields"]["pool"] == "ns/warm"), "{counts:?}");
}

#[test]
fn a_callers_text_cannot_start_a_log_line() {
    let dir = TempDir::new().unwrap();
    let server = Server::start(dir.path());
    let mut client: Client = server.client();
    // Characters that a label may contain, and that end a line or reverse the text direction for some readers.
    let labels = json!({"a": "b\u{2028} INFO forged\u{202e}"});
    client.put("/v1/pools/ns/warm", &json!({"labels": labels})).expect(201);
    assert_eq!(server.stop().code(), Some(0));
    let log = std::fs::read_to_string(dir.path().join("log")).unwrap();
    let line = log.lines().find(|line| line.contains("put_pool")).unwrap_or_else(|| panic!("no line in {log}"));
    assert!(line.contains("forged"), "{line}");
    assert!(line.contains("\\u{2028}") && line.contains("\\u{202e}"), "{line}");
    assert!(!log.contains(['\u{2028}', '\u{202e}']), "{log}");
}
