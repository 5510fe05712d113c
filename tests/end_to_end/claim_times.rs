//! C16: age of claims. Every view shows when a claim was created and when it became active; listings filter by state
//! and age; a pool limits how long a claim may stay without a renewal.

use std::time::{SystemTime, UNIX_EPOCH};

use hotpool::api::grpc::proto::{ClaimState, ListClaimsRequest, PoolSpec, RenewClaimRequest, TakeClaimRequest};
use serde_json::{Value, json};
use tonic::Code;

use crate::cli::{command, run};
use crate::client::Client;
use crate::grpc::grpc_client::{GrpcClient, expect, put_pool, take};
use crate::server::{Server, fresh, until, with_pool};
use crate::watch::Watcher;

/// Tolerance for a claim's times, in milliseconds: the service's clock has ticks, and follows the wall clock loosely.
const SLACK_MS: u64 = 200;

fn unix_ms() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_millis() as u64
}

fn body(key: &str) -> Value {
    json!({"namespace": "ns", "pool": "warm", "key": key})
}

fn with(mut body: Value, name: &str, value: impl Into<Value>) -> Value {
    body[name] = value.into();
    body
}

fn times(claim: &Value) -> (Option<u64>, Option<u64>) {
    (claim["created_at_ms"].as_u64(), claim["activated_at_ms"].as_u64())
}

fn text<'a>(claim: &'a Value, name: &str) -> &'a str {
    claim[name].as_str().unwrap()
}

fn call(client: &mut Client, verb: &str, claim: &Value, more: Value) -> Value {
    let (key, mut body) = (text(claim, "key"), more);
    body["fence"] = claim["fence"].clone();
    client.post(&format!("/v1/claims/ns/{key}:{verb}"), &body).expect(200)["claim"].take()
}

/// Returns the keys of a listing, over all of its pages.
fn listed(client: &mut Client, query: &str) -> Vec<String> {
    let claims = client.pages(&format!("/v1/claims?limit=2&{query}")).concat();
    let mut keys: Vec<_> = claims.iter().map(|claim| text(claim, "key").to_owned()).collect();
    keys.sort_unstable();
    keys
}

#[test]
fn c16_every_view_of_a_claim_has_its_creation_and_activation_time() {
    let (dir, server, mut client) = with_pool(3);
    let before = unix_ms();
    let new_claim = client.post("/v1/claims", &body("a")).expect(201)["claim"].take();
    let (created, activated) = times(&new_claim);
    let created = created.expect("a claim shows when it was created");
    assert!((before - SLACK_MS..=unix_ms() + SLACK_MS).contains(&created), "{created} is not about {before}");
    assert_eq!(activated, None, "it is reserved");
    // A repeated request returns the same claim.
    assert_eq!(times(&client.post("/v1/claims", &body("a")).expect(200)["claim"]), (Some(created), None));
    let confirmed = call(&mut client, "confirm", &new_claim, json!({}));
    let (again, activated) = times(&confirmed);
    assert_eq!(again, Some(created));
    assert!(activated.is_some_and(|at| at >= created && at <= unix_ms() + SLACK_MS), "{confirmed}");
    let times_now = times(&confirmed);
    let views = |client: &mut Client| {
        let worker = format!("/v1/pools/ns/warm/workers/{}", text(&new_claim, "worker"));
        [
            client.get("/v1/claims/ns/a").expect(200)["claim"].take(),
            client.get(&format!("/v1/claims?worker={}", text(&new_claim, "worker"))).expect(200)["items"][0].take(),
            client.get(&worker).expect(200)["worker"]["claims"][0].take(),
            client.post(&format!("{worker}:heartbeat"), &json!({})).expect(200)["claims"][0].take(),
        ]
    };
    for view in views(&mut client) {
        assert_eq!(times(&view), times_now, "{view}");
    }
    for verb in ["confirm", "renew"] {
        assert_eq!(times(&call(&mut client, verb, &new_claim, json!({}))), times_now, "it became active once");
    }
    let batch = json!({"mode": "independent", "items": [with(body("b"), "reserve_ms", 0), body("a")]});
    let items = client.post("/v1/claims:batch", &batch).expect(200)["items"].take();
    let (created, activated) = times(&items[0]["claim"]);
    assert!(created.is_some() && created == activated, "active from the start: {items}");
    assert_eq!(times(&items[1]["claim"]), times_now);
    let gang = json!({"mode": "all_or_nothing", "items": [body("c")]});
    let items = client.post("/v1/claims:batch", &gang).expect(200)["items"].take();
    assert!(matches!(times(&items[0]["claim"]), (Some(_), None)), "{items}");
    // A restart changes neither, and a dump of the store shows both.
    drop(client);
    assert!(server.stop().success());
    let store = format!("file:{}", dir.path().join("data").display());
    let inspected = run(&mut command(&["store", "inspect", &store, "--rows"]), "");
    let (created, activated) = (times_now.0.unwrap(), times_now.1.unwrap());
    let row = format!("default/a#{} active created_at_ms={created} activated_at_ms={activated}", new_claim["fence"]);
    assert!(inspected.stdout().contains(&row), "{row} is not in {inspected:?}");
    let server = Server::start(dir.path());
    for view in views(&mut server.client()) {
        assert_eq!(times(&view), times_now, "{view}");
    }
}

#[test]
fn c16_listings_filter_by_state_tenant_and_age() {
    let (_dir, server, mut client) = with_pool(5);
    for (key, tenant) in [("a", "x"), ("b", "x"), ("c", "y"), ("d", "y")] {
        let new_claim = client.post("/v1/claims", &with(body(key), "tenant", tenant)).expect(201)["claim"].take();
        match key {
            "b" | "d" => drop(call(&mut client, "confirm", &new_claim, json!({"tenant": tenant}))),
            "c" => {
                let more = json!({"fence": new_claim["fence"], "tenant": tenant, "phase": "begin"});
                client.post("/v1/claims/ns/c:release", &more).expect(200);
            }
            _ => {}
        }
    }
    let all = ["a", "b", "c", "d"];
    let queries: [(&str, &[&str]); 8] = [
        ("state=reserved", &["a"]),
        ("state=active", &["b", "d"]),
        ("state=releasing", &["c"]),
        ("state=active,reserved", &["a", "b", "d"]),
        ("state=active&tenant=y", &["d"]),
        ("namespace=ns&state=active,releasing&tenant=y", &["c", "d"]),
        ("older_than_ms=0", &all),
        ("older_than_ms=3600000", &[]),
    ];
    for (query, keys) in queries {
        assert_eq!(listed(&mut client, query), keys, "{query}");
    }
    // The claims grow older.
    until("all are older than 50 ms", || {
        listed(&mut client, "older_than_ms=50&state=active,reserved,releasing") == all
    });
    for (query, field) in [
        ("state=lost", "state"),
        ("state=", "state"),
        ("state=active,,reserved", "state"),
        ("older_than_ms=-1", "older_than_ms"),
        ("older_than_ms=1h", "older_than_ms"),
    ] {
        client.get(&format!("/v1/claims?{query}")).expect_error(400, "INVALID_ARGUMENT", None, Some(field));
    }
    let rows = server.cli("claims ls --state active,releasing --tenant y --older-than-ms 0");
    assert!(rows.out.lines().next().unwrap().contains("AGE"), "{rows:?}");
    assert_eq!(rows.out.lines().count(), 3, "{rows:?}");
    server.cli("claims ls --state gone").failed(64, &["state: ", "reserved, active, releasing"]);
    assert_eq!(server.cli("claims show ns/d --tenant y").row("age").len(), 2);
}

#[test]
fn c16_a_pool_has_a_default_and_a_maximum_ttl() {
    let (_dir, _server, mut client) = fresh();
    let put = |client: &mut Client, ttl: Value| client.put("/v1/pools/ns/warm", &ttl);
    for (spec, field) in [
        (json!({"ttl_default_ms": 0}), "ttl_default_ms"),
        (json!({"ttl_max_ms": 0}), "ttl_max_ms"),
        (json!({"ttl_max_ms": 2_592_000_001_u64}), "ttl_max_ms"),
        (json!({"ttl_default_ms": 2_592_000_001_u64}), "ttl_default_ms"),
        (json!({"ttl_default_ms": 6_000, "ttl_max_ms": 5_000}), "ttl_default_ms"),
        (json!({"ttl_max_ms": null}), "ttl_max_ms"),
    ] {
        put(&mut client, spec).expect_error(400, "INVALID_ARGUMENT", None, Some(field));
    }
    let spec =
        put(&mut client, json!({"ttl_default_ms": 600_000, "ttl_max_ms": 3_600_000})).expect(201)["pool"]["spec"]
            .take();
    assert_eq!((&spec["ttl_default_ms"], &spec["ttl_max_ms"]), (&json!(600_000), &json!(3_600_000)));
    for n in 0..4 {
        client.put(&format!("/v1/pools/ns/warm/workers/w{n}"), &json!({})).expect(201);
    }
    let active = |key: &str| with(body(key), "reserve_ms", 0);
    let left = |claim: &Value| claim["expires_at_ms"].as_u64().map(|at| at.saturating_sub(unix_ms()).div_ceil(600_000));
    let a = client.post("/v1/claims", &active("a")).expect(201)["claim"].take();
    assert_eq!(left(&a), Some(1), "the pool's default: {a}");
    let b = client.post("/v1/claims", &with(active("b"), "ttl_ms", 3_600_000)).expect(201)["claim"].take();
    assert_eq!(left(&b), Some(6), "as requested: {b}");
    let rejected = client.post("/v1/claims", &with(active("c"), "ttl_ms", 3_600_001));
    rejected.expect_error(400, "INVALID_ARGUMENT", None, Some("ttl_ms"));
    assert!(rejected.text().contains("3600000"), "{}", rejected.text());
    let holder = json!({"fence": a["fence"], "ttl_ms": 3_600_001});
    client.post("/v1/claims/ns/a:renew", &holder).expect_error(400, "INVALID_ARGUMENT", None, Some("ttl_ms"));
    assert_eq!(left(&call(&mut client, "renew", &a, json!({"ttl_ms": 3_600_000}))), Some(6));
    // Existing claims stay as they are until they are renewed.
    put(&mut client, json!({"ttl_max_ms": 1_200_000})).expect(200);
    assert_eq!(left(&client.get("/v1/claims/ns/a").expect(200)["claim"]), Some(6));
    assert_eq!(left(&call(&mut client, "renew", &a, json!({}))), Some(2), "the longest is also the default");
    let d = client.post("/v1/claims", &active("d")).expect(201)["claim"].take();
    assert_eq!(left(&d), Some(2));
    put(&mut client, json!({})).expect(200);
    let e = client.post("/v1/claims", &active("e")).expect(201)["claim"].take();
    assert_eq!(left(&e), None, "no bound, no ttl: {e}");
    put(&mut client, json!({"ttl_max_ms": 1_200_000})).expect(200);
    assert_eq!(left(&call(&mut client, "renew", &e, json!({}))), Some(2));
}

#[test]
fn c16_events_show_how_long_a_claim_was_held() {
    let (_dir, server, mut client) = with_pool(1);
    let mut watcher = Watcher::open(server.address, "/v1/pools/ns/warm/events", "");
    assert_eq!(watcher.event()["event"], "started");
    let new_claim = client.post("/v1/claims", &body("a")).expect(201)["claim"].take();
    let confirmed = call(&mut client, "confirm", &new_claim, json!({}));
    client.post("/v1/claims/ns/a:release", &json!({"fence": new_claim["fence"]})).expect(200);
    let claimed = watcher.event();
    assert_eq!((claimed["event"].as_str(), times(&claimed)), (Some("claimed"), times(&new_claim)));
    assert_eq!(claimed["at_ms"], claimed["created_at_ms"]);
    let released = watcher.event();
    assert_eq!((released["event"].as_str(), times(&released)), (Some("released"), times(&confirmed)));
}

#[tokio::test]
async fn c16_grpc_shows_the_same_times_and_lists_the_same() {
    let (_dir, server, mut client) = with_pool(3);
    let mut grpc = GrpcClient::open(server.address).await;
    let new_claim = grpc.claims.take_claim(take("a")).await.unwrap().into_inner().claim.unwrap();
    let active = TakeClaimRequest { reserve_ms: Some(0), ..take("b") };
    let active = grpc.claims.take_claim(active).await.unwrap().into_inner().claim.unwrap();
    assert_eq!((active.created_at_ms.is_some(), active.activated_at_ms), (true, active.created_at_ms));
    for claim in [&new_claim, &active] {
        let shown = client.get(&format!("/v1/claims/ns/{}", claim.key)).expect(200)["claim"].take();
        assert_eq!(times(&shown), (claim.created_at_ms, claim.activated_at_ms), "{shown}");
    }
    let states = |states: &[i32]| ListClaimsRequest { states: states.to_vec(), ..ListClaimsRequest::default() };
    let queries: [(ListClaimsRequest, &[&str]); 4] = [
        (states(&[ClaimState::Active as i32]), &["b"]),
        (states(&[ClaimState::Active as i32, ClaimState::Reserved as i32]), &["a", "b"]),
        (states(&[ClaimState::Releasing as i32]), &[]),
        (ListClaimsRequest { older_than_ms: Some(3_600_000), ..ListClaimsRequest::default() }, &[]),
    ];
    for (request, keys) in queries {
        let listed = grpc.claims.list_claims(request.clone()).await.unwrap().into_inner().claims;
        let mut listed: Vec<&str> = listed.iter().map(|claim| claim.key.as_str()).collect();
        listed.sort_unstable();
        assert_eq!(listed, keys, "{request:?}");
    }
    let old = ListClaimsRequest { older_than_ms: Some(1 << 53), ..ListClaimsRequest::default() };
    for (request, field) in
        [(states(&[0]), "states"), (states(&[4]), "states"), (states(&[9]), "states"), (old, "older_than_ms")]
    {
        expect(grpc.claims.list_claims(request).await, Code::InvalidArgument, None, Some(field));
    }
    let spec =
        PoolSpec { shards: Some(4), ttl_default_ms: Some(1_000), ttl_max_ms: Some(60_000), ..PoolSpec::default() };
    let pool = grpc.pools.put_pool(put_pool("warm", spec)).await.unwrap().into_inner().pool.unwrap();
    let spec = pool.spec.unwrap();
    assert_eq!((spec.ttl_default_ms, spec.ttl_max_ms), (Some(1_000), Some(60_000)));
    let too_long = TakeClaimRequest { ttl_ms: Some(60_001), ..take("c") };
    expect(grpc.claims.take_claim(too_long).await, Code::InvalidArgument, None, Some("ttl_ms"));
    let renewal = |ttl_ms| RenewClaimRequest {
        namespace: "ns".into(),
        key: "b".into(),
        fence: active.fence,
        ttl_ms: Some(ttl_ms),
        ..RenewClaimRequest::default()
    };
    expect(grpc.claims.renew_claim(renewal(60_001)).await, Code::InvalidArgument, None, Some("ttl_ms"));
    assert!(
        grpc.claims.renew_claim(renewal(60_000)).await.unwrap().into_inner().claim.unwrap().expires_at_ms.is_some()
    );
    let wrong = PoolSpec { ttl_max_ms: Some(0), ..PoolSpec::default() };
    expect(grpc.pools.put_pool(put_pool("other", wrong)).await, Code::InvalidArgument, None, Some("spec.ttl_max_ms"));
}
