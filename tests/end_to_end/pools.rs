use serde_json::{Value, json};

use crate::server::{fresh, with_pool};

#[test]
fn a_pool_is_created_replaced_read_and_deleted() {
    let (_dir, _server, mut client) = fresh();
    let pool = "/v1/pools/ns/warm";
    client.get(pool).expect_error(404, "NOT_FOUND", None, None);
    let made = client.put(pool, &json!({"shards": 2, "labels": {"zone": "a"}})).expect(201);
    assert_eq!(made["pool"]["namespace"], "ns");
    assert_eq!(made["pool"]["name"], "warm");
    assert_eq!(made["pool"]["spec"]["shards"], 2);
    assert_eq!(made["pool"]["spec"]["mode"], "exclusive");
    assert_eq!(made["pool"]["spec"]["ack"], "durable");
    assert_eq!(made["pool"]["shards"].as_array().unwrap().len(), 2);
    // The response of GET can be sent back.
    let mut spec = made["pool"]["spec"].clone();
    spec["policy"] = json!("fifo");
    client.put(pool, &spec).expect(200);
    let read = client.get(pool).expect(200);
    assert_eq!(read["pool"]["spec"], spec);
    let reasons = ["draining", "cordoned", "lost", "suspect", "ended", "stopping", "reserved"];
    let none = |names: &[&str]| names.iter().map(|of| (*of, 0)).collect::<Value>();
    assert_eq!(read["pool"]["workers"], none(&[&["total", "idle", "busy"], &reasons[..]].concat()));
    assert_eq!(read["pool"]["unschedulable"], none(&reasons));
    assert_eq!(client.delete(pool).expect(200), json!({}));
    client.delete(pool).expect_error(404, "NOT_FOUND", None, None);
    client.get(pool).expect_error(404, "NOT_FOUND", None, None);
}

/// Counts of workers add up: in HTTP, gRPC, metrics and commands, and in an explanation.
#[tokio::test]
async fn w11_the_counts_of_a_pool_add_up_wherever_they_are_shown() {
    let (_dir, server, mut client) = with_pool(4);
    let pool = "/v1/pools/ns/warm";
    for (id, expires_at_ms) in [("past", 1), ("cordoned-past", 1), ("far", 4_000_000_000_000_u64)] {
        client.put(&format!("{pool}/workers/{id}"), &json!({"expires_at_ms": expires_at_ms})).expect(201);
    }
    let claim = json!({"namespace": "ns", "pool": "warm", "key": "k", "worker": "w0", "reserve_ms": 0});
    client.post("/v1/claims", &claim).expect(201);
    for (worker, verb) in [("w0", "drain"), ("w1", "drain"), ("w1", "cordon"), ("cordoned-past", "cordon")] {
        client.request("POST", &format!("{pool}/workers/{worker}:{verb}"), b"").expect(200);
    }
    let free = json!({"draining": 1, "cordoned": 1, "lost": 0, "suspect": 0, "ended": 1, "stopping": 0, "reserved": 0});
    let all = json!({"total": 7, "idle": 3, "busy": 1, "draining": 2, "cordoned": 1, "lost": 0, "suspect": 0, "ended": 2,
        "stopping": 0, "reserved": 0});
    for shown in [client.get(pool).expect(200)["pool"].take(), client.get("/v1/pools").expect(200)["items"][0].take()] {
        assert_eq!((&shown["workers"], &shown["unschedulable"]), (&all, &free));
    }

    let mut grpc = crate::grpc::grpc_client::GrpcClient::open(server.address).await;
    let get = hotpool::api::grpc::proto::GetPoolRequest { namespace: "ns".into(), pool: "warm".into() };
    let shown = grpc.pools.get_pool(get).await.unwrap().into_inner().pool.unwrap();
    let workers = shown.workers.unwrap();
    assert_eq!((workers.total, workers.idle, workers.busy), (7, 3, 1));
    assert_eq!((workers.draining, workers.cordoned, workers.ended), (2, 1, 2));
    let free = shown.unschedulable.unwrap();
    assert_eq!((free.draining, free.cordoned, free.ended, free.reserved), (1, 1, 1, 0));
    assert_eq!(shown.shards.iter().map(|shard| shard.unschedulable.unwrap().ended).sum::<u64>(), 1);

    let scrape = client.get("/metrics");
    let text = scrape.text();
    let value = |line: &str| line.rsplit(' ').next().unwrap().parse::<f64>().unwrap() as u64;
    let of_pool = |line: &&str| line.contains(r#"pool="ns/warm""#);
    let states = text.lines().filter(|line| line.starts_with("hotpool_workers{")).filter(of_pool);
    assert_eq!(states.map(value).sum::<u64>(), 7);
    for (name, label, workers) in [
        ("hotpool_workers{", r#"state="ended""#, 1),
        ("hotpool_workers{", r#"state="draining""#, 1),
        ("hotpool_workers_unschedulable{", r#"reason="ended""#, 2),
        ("hotpool_workers_unschedulable{", r#"reason="draining""#, 2),
    ] {
        let mut of_name = text.lines().filter(|line| line.starts_with(name)).filter(of_pool);
        let shown = of_name.find(|line| line.contains(label)).map(value);
        assert_eq!(shown, Some(workers), "{name} {label} in\n{text}");
    }

    let explained = client.post("/v1/explain", &json!({"namespace": "ns", "pool": "warm"})).expect(200);
    let survey = &explained["pools"][0];
    assert_eq!((&survey["workers"], &survey["fits"]), (&json!(7), &json!(3)));
    assert_eq!(survey["ruled_out"], json!({"draining": 2, "cordoned": 1, "ended": 1}));
}

#[test]
fn shards_never_change() {
    let (_dir, _server, mut client) = fresh();
    client.put("/v1/pools/ns/warm", &json!({"shards": 2})).expect(201);
    let status = client.put("/v1/pools/ns/warm", &json!({"shards": 4})).status;
    assert!(status == 409 || status == 400, "{status}");
    assert_eq!(client.get("/v1/pools/ns/warm").expect(200)["pool"]["spec"]["shards"], 2);
}

#[test]
fn counts_follow_claims() {
    let (_dir, _server, mut client) = with_pool(3);
    let capacity = json!({"cpu_milli": 1000, "gpu": {"model": "A10", "count": 2}});
    client.put("/v1/pools/ns/warm/workers/big", &json!({"capacity": capacity})).expect(201);
    for (key, reserve_ms) in [("a", 0), ("b", 30_000)] {
        let claim = json!({"namespace": "ns", "pool": "warm", "key": key, "reserve_ms": reserve_ms});
        client.post("/v1/claims", &claim).expect(201);
    }
    let pool = client.get("/v1/pools/ns/warm").expect(200)["pool"].take();
    let counts = ["total", "idle", "busy"].map(|of| pool["workers"][of].as_u64().unwrap());
    assert_eq!(counts, [4, 2, 2]);
    assert_eq!(pool["claims"], json!({"reserved": 1, "active": 1, "releasing": 0}));
    assert_eq!(pool["capacity"]["cpu_milli"], 1000);
    assert_eq!(pool["gpus"]["A10"]["total"], 2);
}

#[test]
fn a_pool_with_workers_is_deleted_only_by_force() {
    let (_dir, _server, mut client) = with_pool(2);
    client.delete("/v1/pools/ns/warm").expect_error(409, "FAILED_PRECONDITION", Some("state"), None);
    client.delete("/v1/pools/ns/warm?force=false").expect_error(409, "FAILED_PRECONDITION", Some("state"), None);
    client.delete("/v1/pools/ns/warm?force=true").expect(200);
    client.get("/v1/pools/ns/warm/workers/w0").expect_error(404, "NOT_FOUND", None, None);
    // The name is free again, and the new pool has nothing of the old one.
    client.put("/v1/pools/ns/warm", &json!({})).expect(201);
    assert_eq!(client.get("/v1/pools/ns/warm").expect(200)["pool"]["workers"]["total"], 0);
}

#[test]
fn pools_are_listed_page_by_page() {
    let (_dir, _server, mut client) = fresh();
    for i in 0..7 {
        client.put(&format!("/v1/pools/ns/p{i}"), &json!({"shards": 1})).expect(201);
    }
    let pages = client.pages("/v1/pools?limit=3");
    assert!(pages.iter().all(|items| items.len() <= 3));
    let mut names: Vec<_> = pages.iter().flatten().map(|pool| pool["name"].as_str().unwrap()).collect();
    names.sort_unstable();
    assert_eq!(names, ["p0", "p1", "p2", "p3", "p4", "p5", "p6"]);
}

#[test]
fn operators_can_inspect_a_service() {
    let (_dir, _server, mut client) = with_pool(1);
    client.get("/healthz").expect(200);
    assert_eq!(client.get("/readyz").expect(200)["ready"], true);
    client.get("/debug/shards").expect(200);
    let claim = json!({"namespace": "ns", "pool": "warm", "key": "a"});
    client.post("/v1/claims", &claim).expect(201);
    let scrape = client.get("/metrics");
    assert_eq!(scrape.status, 200);
    assert!(scrape.header("content-type").unwrap().starts_with("text/plain"));
    for line in [
        r#"hotpool_http_requests_total{route="/v1/claims",status="201"} 1"#,
        r#"hotpool_claims_total{pool="ns/warm",outcome="created"} 1"#,
        "hotpool_http_connections 1",
        "# TYPE hotpool_claim_seconds histogram",
    ] {
        assert!(scrape.text().contains(line), "{line} is not in\n{}", scrape.text());
    }
}
