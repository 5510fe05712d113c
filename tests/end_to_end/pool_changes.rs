//! Single fields of a pool's specification are changed over HTTP, and only by a caller that knows the current version.

use serde_json::{Value, json};

use crate::client::{Client, Response};
use crate::server::{Server, fresh};

const POOL: &str = "/v1/pools/ns/warm";

fn patch(client: &mut Client, query: &str, body: &Value) -> Response {
    client.request("PATCH", &format!("{POOL}{query}"), body.to_string().as_bytes())
}

/// Returns the pool's version and specification.
fn read(client: &mut Client) -> (u64, Value) {
    let mut pool = client.get(POOL).expect(200)["pool"].take();
    (pool["version"].as_u64().unwrap_or_else(|| panic!("no version: {pool}")), pool["spec"].take())
}

#[test]
fn a_patch_changes_only_the_named_fields() {
    let (_dir, _server, mut client) = fresh();
    let spec =
        json!({"shards": 2, "preemption": true, "reserve_ms": 7, "class": "gold", "labels": {"a": "1", "b": "2"}});
    client.put(POOL, &spec).expect(201);
    let (first, before) = read(&mut client);
    let change = json!({"reserve_ms": 8, "class": null, "labels": {"b": null, "example.com/c": "3"}});
    let changed = patch(&mut client, "", &change).expect(200);
    let mut expected = before;
    expected["reserve_ms"] = json!(8);
    expected["labels"] = json!({"a": "1", "example.com/c": "3"});
    expected.as_object_mut().unwrap().remove("class");
    assert_eq!(changed["pool"]["spec"], expected);
    let (second, after) = read(&mut client);
    assert_eq!((&after, changed["pool"]["version"].as_u64()), (&expected, Some(second)));
    assert!(second > first, "{second} is not above {first}");
    // Null means the default, and an empty patch is no change.
    assert_eq!(patch(&mut client, "", &json!({"reserve_ms": null})).expect(200)["pool"]["spec"]["reserve_ms"], 30_000);
    let (third, _) = read(&mut client);
    assert_eq!(patch(&mut client, "", &json!({})).expect(200)["pool"]["version"], third);
    assert_eq!(patch(&mut client, "", &json!({"shards": 2})).expect(200)["pool"]["version"], third);
    // Replacing the specification is a change too.
    assert!(client.put(POOL, &json!({"shards": 2})).expect(200)["pool"]["version"].as_u64() > Some(third));
}

#[test]
fn an_invalid_patch_changes_nothing_and_names_its_field() {
    let (_dir, _server, mut client) = fresh();
    patch(&mut client, "", &json!({"reserve_ms": 1})).expect_error(404, "NOT_FOUND", None, None);
    client.put(POOL, &json!({"shards": 2})).expect(201);
    let before = read(&mut client);
    for (body, field) in [
        (json!({"frobnicate": 1}), "frobnicate"),
        (json!({"frobnicate": null}), "frobnicate"),
        (json!({"reserve_ms": "1"}), "reserve_ms"),
        (json!({"reserve_ms": 86_400_001}), "reserve_ms"),
        (json!({"labels": 7}), "labels"),
        (json!({"labels": {"a b": "1"}}), "labels"),
        (json!({"labels": {"a": {"b": "c"}}}), "labels.a"),
        (json!({"policy": "spread"}), "policy"),
        (json!([]), "body"),
    ] {
        patch(&mut client, "", &body).expect_error(400, "INVALID_ARGUMENT", None, Some(field));
    }
    for body in [json!({"shards": 4}), json!({"mode": "shared", "policy": null})] {
        patch(&mut client, "", &body).expect_error(409, "FAILED_PRECONDITION", Some("state"), None);
    }
    for query in ["?version=", "?version=x", "?version=-1", "?version=1.5"] {
        patch(&mut client, query, &json!({})).expect_error(400, "INVALID_ARGUMENT", None, Some("version"));
    }
    patch(&mut client, "?versoin=1", &json!({})).expect_error(400, "INVALID_ARGUMENT", None, Some("versoin"));
    assert_eq!(read(&mut client), before);
}

#[test]
fn a_patch_of_an_outdated_version_is_rejected() {
    let (dir, server, mut client) = fresh();
    client.put(POOL, &json!({"shards": 2})).expect(201);
    let (first, _) = read(&mut client);
    let at = |version: u64| format!("?version={version}");
    patch(&mut client, &at(first), &json!({"preemption": true})).expect(200);
    let rejected = patch(&mut client, &at(first), &json!({"preemption": false}));
    rejected.expect_error(409, "ABORTED", Some("version"), None);
    let (second, spec) = read(&mut client);
    assert!(rejected.text().contains(&second.to_string()), "{}", rejected.text());
    assert_eq!(spec["preemption"], true);
    // The version survives a restart, and is not reused by another pool of the same name.
    assert_eq!(server.stop().code(), Some(0));
    let server = Server::start(dir.path());
    let mut client = server.client();
    assert_eq!(read(&mut client).0, second);
    patch(&mut client, &at(second), &json!({"preemption": false})).expect(200);
    client.delete(POOL).expect(200);
    patch(&mut client, &at(second), &json!({})).expect_error(404, "NOT_FOUND", None, None);
    client.put(POOL, &json!({"shards": 2})).expect(201);
    patch(&mut client, &at(second), &json!({})).expect_error(409, "ABORTED", Some("version"), None);
}

#[test]
fn concurrent_changes_of_different_fields_are_all_made() {
    let (_dir, server, mut client) = fresh();
    client.put(POOL, &json!({"shards": 2})).expect(201);
    let fields = ["reserve_ms", "releasing_ms", "heartbeat_ttl_ms", "lag_max_ms", "lost_keep_ms", "waiters_max"];
    std::thread::scope(|scope| {
        for field in fields {
            let mut client = server.client();
            scope.spawn(move || patch(&mut client, "", &json!({field: 77})).expect(200));
        }
    });
    let (_, spec) = read(&mut client);
    assert_eq!(fields.map(|field| spec[field].clone()), [77; 6].map(|ms| json!(ms)));
}
