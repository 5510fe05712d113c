//! Shared pools, as a client sees them.

use serde_json::{Value, json};

use crate::client::{Client, Response, check_error};
use crate::server::{Server, fresh};

const POOL: &str = "/v1/pools/ns/p";

fn shared(client: &mut Client, shards: u16, workers: &Value) {
    client.put(POOL, &json!({"mode": "shared", "shards": shards})).expect(201);
    let answer = client.post(&format!("{POOL}/workers:batch"), &json!({"workers": workers})).expect(200);
    assert!(answer["items"].as_array().unwrap().iter().all(|item| item["created"] == true), "{answer}");
}

fn item(key: &str, resources: &Value) -> Value {
    json!({"namespace": "ns", "pool": "p", "key": key, "reserve_ms": 0, "resources": resources})
}

fn share(client: &mut Client, key: &str, resources: &Value) -> Response {
    client.post("/v1/claims", &item(key, resources))
}

fn resize(client: &mut Client, claim: &Value, resources: &Value) -> Response {
    let key = claim["key"].as_str().unwrap();
    client.post(&format!("/v1/claims/ns/{key}:resize"), &json!({"fence": claim["fence"], "resources": resources}))
}

fn pool(client: &mut Client) -> Value {
    client.get(POOL).expect(200)["pool"].take()
}

fn gpus(count: u32) -> Value {
    json!({"id": "g1", "capacity": {"cpu_milli": 8000, "slots": 4, "gpu": {"model": "a100", "count": count}}})
}

#[test]
fn c04_an_allocation_is_created_repeated_resized_and_released() {
    let (dir, server, mut client) = fresh();
    shared(&mut client, 2, &json!([gpus(2)]));
    assert_eq!(
        (&pool(&mut client)["spec"]["mode"], &pool(&mut client)["spec"]["policy"]),
        (&json!("shared"), &json!("best_fit"))
    );
    let resources = json!({"cpu_milli": 2000, "gpu": {"models": ["h100", "a100"], "milli": 250}});
    let created = share(&mut client, "a", &resources).expect(201)["claim"].take();
    let held = json!({"cpu_milli": 2000, "gpu": {"model": "a100", "count": 1, "milli": 250, "cards": [0]}});
    assert_eq!((&created["resources"], &created["worker"]), (&held, &json!("g1")));
    // Other resources: the existing claim, or 409 if they must match.
    let mut other = item("a", &json!({"cpu_milli": 1}));
    assert_eq!(client.post("/v1/claims", &other).expect(200)["claim"], created);
    other["must_match"] = json!(true);
    client.post("/v1/claims", &other).expect_error(409, "FAILED_PRECONDITION", Some("state"), None);
    // Best fit: the GPU that is in use already.
    let second = share(&mut client, "b", &json!({"gpu": {"milli": 500}})).expect(201)["claim"].take();
    assert_eq!(second["resources"]["gpu"]["cards"], json!([0]));
    share(&mut client, "c", &json!({"gpu": {"count": 2}})).expect_error(
        429,
        "RESOURCE_EXHAUSTED",
        Some("pool_exhausted"),
        None,
    );
    share(&mut client, "c", &json!({"gpu": {"count": 3}})).expect_error(
        400,
        "INVALID_ARGUMENT",
        Some("unsatisfiable"),
        Some("resources"),
    );
    let shown = pool(&mut client);
    assert_eq!(
        (&shown["free"], &shown["gpus"]),
        (&json!({"cpu_milli": 6000, "slots": 4}), &json!({"a100": {"total": 2, "free": 1, "free_milli": 1250}}))
    );
    assert_eq!((&shown["workers"]["busy"], &shown["claims"]["active"]), (&json!(1), &json!(2)));

    // Absolute, in place, with the same fence.
    let whole = json!({"gpu": {"count": 1}});
    let resized = resize(&mut client, &created, &whole).expect(200)["claim"].take();
    assert_eq!((&resized["fence"], &resized["resources"]["gpu"]["cards"]), (&created["fence"], &json!([1])));
    assert_eq!(client.get("/v1/claims/ns/a").expect(200)["claim"], resized);
    assert_eq!(resize(&mut client, &created, &whole).expect(200)["claim"], resized);
    let rejected = resize(&mut client, &second, &json!({"gpu": {"milli": 501}, "slots": 5}));
    rejected.expect_error(400, "INVALID_ARGUMENT", None, Some("resources"));
    let rejected = resize(&mut client, &second, &json!({"gpu": {"count": 2}}));
    rejected.expect_error(429, "RESOURCE_EXHAUSTED", Some("pool_exhausted"), None);
    assert_eq!(client.get("/v1/claims/ns/b").expect(200)["claim"], second, "nothing changed");
    let mut stranger = created.clone();
    stranger["fence"] = json!(1);
    resize(&mut client, &stranger, &whole).expect_error(409, "ABORTED", Some("fence"), None);

    // The allocation survives kill -9, GPU indexes included.
    let before = pool(&mut client);
    server.kill();
    let server = Server::start(dir.path());
    let mut client = server.client();
    let after = pool(&mut client);
    assert_eq!((&after["free"], &after["gpus"]), (&before["free"], &before["gpus"]));
    assert_eq!(client.get("/v1/claims/ns/a").expect(200)["claim"], resized);
    let worker = client.get(&format!("{POOL}/workers/g1")).expect(200)["worker"].take();
    assert_eq!(worker["claims"].as_array().unwrap().len(), 2);
    for claim in [&resized, &second] {
        let path = format!("/v1/claims/ns/{}:release", claim["key"].as_str().unwrap());
        client.post(&path, &json!({"fence": claim["fence"]})).expect(200);
    }
    assert_eq!(pool(&mut client)["gpus"]["a100"]["free_milli"], 2000);
}

/// Sums the lines of the scrape about the pool.
fn scraped(client: &mut Client, name: &str) -> u64 {
    let scrape = client.get("/metrics");
    let lines = scrape.text().lines().filter(|line| line.starts_with(name) && line.contains(r#"pool="ns/p""#));
    lines.map(|line| line.rsplit(' ').next().unwrap().parse::<f64>().unwrap() as u64).sum()
}

#[test]
fn b03_a_hundred_claims_on_twenty_workers_are_twenty_worker_updates() {
    let (_dir, _server, mut client) = fresh();
    let workers: Vec<_> = (0..20).map(|i| json!({"id": format!("w{i}"), "capacity": {"slots": 5}})).collect();
    shared(&mut client, 4, &json!(workers));
    let counted = |client: &mut Client| {
        let shards = pool(client)["shards"].take();
        let seq: u64 = shards.as_array().unwrap().iter().map(|shard| shard["seq"].as_u64().unwrap()).sum();
        (scraped(client, "hotpool_worker_updates_total"), scraped(client, "hotpool_claims_total"), seq)
    };
    let before = counted(&mut client);
    let items: Vec<_> = (0..100).map(|i| item(&format!("k{i}"), &json!({"slots": 1}))).collect();
    let answer = client.post("/v1/claims:batch", &json!({"mode": "independent", "items": items})).expect(200);
    assert!(answer["items"].as_array().unwrap().iter().all(|item| item["created"] == true), "{answer}");
    let after = counted(&mut client);
    assert_eq!((after.0 - before.0, after.1 - before.1, after.2 - before.2), (20, 100, 20));
    share(&mut client, "more", &json!({"slots": 1})).expect_error(
        429,
        "RESOURCE_EXHAUSTED",
        Some("pool_exhausted"),
        None,
    );
}

#[test]
fn b01_invalid_items_are_named_by_index_and_affect_no_other() {
    let (_dir, _server, mut client) = fresh();
    shared(&mut client, 4, &json!([gpus(2)]));
    let terms = vec!["a"; 10_000].join(",");
    let mut selecting = item("s", &json!({"slots": 1}));
    selecting["selector"] = json!(terms);
    let items = json!([
        item("a", &json!({"cpu_milli": 1000})),
        item("b", &json!({"cpu_milli": -1})),
        item("c", &json!({"memory_bytes": 18_446_744_073_709_551_615_u64})),
        item("d", &json!({"gpu": {"milli": 1500}})),
        item("e", &json!({"gpu": {"count": 2, "milli": 500}})),
        item("f", &json!({"gpu": {"models": ["a100", "a100"]}})),
        item("g", &json!({"gpu": {"model": "a100", "models": ["a100"]}})),
        item("h", &json!({})),
        {"namespace": "ns", "pool": "p", "key": "i"},
        selecting,
        item("j", &json!({"gpu": {"models": ["h100", "a100"], "milli": 1}})),
        item("k", &json!({"memory_bytes": 1})),
    ]);
    let answer = client.post("/v1/claims:batch", &json!({"mode": "independent", "items": items})).expect(200);
    let response = answer["items"].as_array().unwrap();
    for (at, field) in
        [(1, "cpu_milli"), (2, "memory_bytes"), (3, "gpu.milli"), (4, "gpu.milli"), (5, "gpu.models[1]"), (6, "gpu")]
    {
        check_error(&response[at], "INVALID_ARGUMENT", None, Some(&format!("items[{at}].resources.{field}")));
    }
    check_error(&response[7], "INVALID_ARGUMENT", None, Some("items[7].resources"));
    check_error(&response[8], "INVALID_ARGUMENT", None, Some("items[8].resources"));
    check_error(&response[9], "INVALID_ARGUMENT", None, Some("items[9].selector"));
    check_error(&response[11], "INVALID_ARGUMENT", Some("unsatisfiable"), Some("items[11].resources"));
    assert_eq!((&response[0]["claim"]["key"], &response[10]["claim"]["key"]), (&json!("a"), &json!("j")));
    assert_eq!(pool(&mut client)["claims"]["active"], 2);
}

#[test]
fn a_pool_stays_in_its_mode() {
    let (_dir, _server, mut client) = fresh();
    shared(&mut client, 2, &json!([gpus(1)]));
    let rejected = client.put(POOL, &json!({"shards": 2}));
    rejected.expect_error(409, "FAILED_PRECONDITION", Some("state"), None);
    assert!(rejected.text().contains("it is shared, got exclusive"), "{}", rejected.text());
    // The policy may change while claims are held.
    share(&mut client, "a", &json!({"gpu": {"milli": 300}})).expect(201);
    for policy in ["spread", "fgd", "best_fit"] {
        let spec = json!({"mode": "shared", "shards": 2, "policy": policy});
        assert_eq!(client.put(POOL, &spec).expect(200)["pool"]["spec"]["policy"], policy);
        share(&mut client, policy, &json!({"gpu": {"milli": 200}})).expect(201);
    }
    share(&mut client, "b", &json!({"gpu": {"milli": 101}})).expect_error(
        429,
        "RESOURCE_EXHAUSTED",
        Some("pool_exhausted"),
        None,
    );
}

#[test]
fn the_commands_claim_resources_and_show_them() {
    let (_dir, server, mut client) = fresh();
    server.cli("pools put ns/p --mode shared --policy fgd --shards 1 --spare-gpu-workers false").stdout();
    assert_eq!(pool(&mut client)["spec"]["spare_gpu_workers"], false);
    server.cli("workers add ns/p g1 --cpu-milli 8000 --memory-bytes 16Gi --gpu a100=2").stdout();
    let created = server.cli("claims take ns/p --key a --reserve-ms 0 --cpu-milli 1500 --gpu h100,a100:1:250");
    created.stdout();
    assert_eq!(created.row("holds")[1..], ["cpu", "1.5,", "gpu", "0.25", "a100", "(card", "0)"]);
    let resized = server.cli("claims resize ns/a --current --memory-bytes 4Gi --gpu a100:2");
    resized.stdout();
    assert_eq!(resized.row("holds")[1..].join(" "), "memory 4Gi, gpu 2 a100 (cards 0,1)");
    assert_eq!(resized.row("fence"), created.row("fence"));
    server.cli("claims resize ns/a --current --gpu a100:3").failed(64, &["resources: "]);
    server.cli("claims resize ns/a --current").failed(64, &["resources: must not be empty"]);
    server.cli("claims take ns/p --key b --gpu a100:1").failed(3, &["pool_exhausted"]);
    server.cli("claims take ns/p --key b").failed(64, &["resources: is required: the pool is shared"]);
    server.cli("claims resize ns/a --current --gpu a100:1:700").stdout();
    assert!(server.cli("claims ls ns").row("ns/a").join(" ").contains("gpu 0.7 a100 (card 0)"));
    let shown = server.cli("pools show ns/p");
    assert_eq!(shown.row("free")[1..].join(" "), "cpu 8, memory 16Gi, gpu 1 a100 (1.3 in all)");
    let worker = server.cli("workers show ns/p g1");
    assert_eq!(worker.row("left")[1..].join(" "), "cpu 8, memory 16Gi, gpu 1 a100 (1.3 in all)");
    assert!(worker.row("holds").join(" ").ends_with("gpu 0.7 a100 (card 0)"), "{worker:?}");
    for key in ["c", "d", "e", "f"] {
        server.cli(&format!("claims take ns/p --key {key} --cpu-milli 1")).stdout();
    }
    assert!(server.cli("workers ls ns/p").row("g1")[2].ends_with(",+2"), "{:?}", server.cli("workers ls ns/p"));
}

/// A worker is registered again with other GPUs, or with none: its claims still show those that they were granted,
/// across every restart, and no view has an empty name.
#[test]
fn c04_a_claim_shows_its_granted_gpus_after_its_worker_has_lost_them() {
    let (dir, server, mut client) = fresh();
    shared(&mut client, 1, &json!([gpus(2)]));
    let resources = json!({"cpu_milli": 2000, "gpu": {"models": ["h100", "a100"], "milli": 250}});
    let created = share(&mut client, "a", &resources).expect(201)["claim"].take();
    client.put(&format!("{POOL}/workers/g1"), &json!({"capacity": {"cpu_milli": 8000}})).expect(200);
    let views = |client: &mut Client| {
        let listed = client.get("/v1/claims?namespace=ns").expect(200)["items"][0].take();
        let of_worker = client.get(&format!("{POOL}/workers/g1")).expect(200)["worker"].take();
        assert_eq!(of_worker["overcommitted"], true);
        let again = client.post("/v1/claims", &item("a", &resources)).expect(200)["claim"].take();
        let strict = client.post("/v1/claims", &{
            let mut strict = item("a", &resources);
            strict["must_match"] = json!(true);
            strict
        });
        let strict = strict.expect(200)["claim"].take();
        [
            client.get("/v1/claims/ns/a").expect(200)["claim"].take(),
            listed,
            of_worker["claims"][0].clone(),
            again,
            strict,
        ]
    };
    for view in views(&mut client) {
        assert_eq!(view, created);
    }
    server.kill();
    let server = Server::start(dir.path());
    let mut client = server.client();
    for view in views(&mut client) {
        assert_eq!(view, created);
    }
    // The released part is free, and the kept part is shown as before.
    let resized = resize(&mut client, &created, &json!({"cpu_milli": 1000, "gpu": {"model": "a100", "milli": 250}}));
    assert_eq!(resized.expect(200)["claim"]["resources"]["gpu"], created["resources"]["gpu"]);
    let other = resize(&mut client, &created, &json!({"cpu_milli": 1000, "gpu": {"model": "h100", "milli": 250}}));
    other.expect_error(400, "INVALID_ARGUMENT", None, Some("resources.gpu.models"));
    // Other GPUs are not those that were granted; once the claim requests them it gets them.
    let others = json!({"capacity": {"cpu_milli": 8000, "gpu": {"model": "h100", "count": 1}}});
    client.put(&format!("{POOL}/workers/g1"), &others).expect(200);
    let observed = client.get("/v1/claims/ns/a").expect(200)["claim"].take();
    assert_eq!(observed["resources"]["gpu"]["model"], "a100");
    let resized = resize(&mut client, &created, &json!({"gpu": {"model": "h100", "milli": 500}})).expect(200);
    assert_eq!(
        resized["claim"]["resources"],
        json!({"gpu": {"model": "h100", "count": 1, "milli": 500, "cards": [0]}})
    );
}
