//! Crash campaigns over real Redis servers, which are killed and paused too: every durable reply stays true, no key is held
//! twice, and no capacity leaks.

use std::path::Path;

use serde_json::json;
use tempfile::TempDir;

use crate::campaign::{Campaign, POOL};
use crate::client::Client;
use crate::server::Server;
use crate::servers::{Cluster, Server as Redis, signal, until};

/// Starts the service over this store, with a data directory of its own in `dir`.
fn start(dir: &Path, url: &str, more: &[&str], environment: &[(&str, &str)]) -> Server {
    let data = dir.join("data");
    let arguments = [&["--store", url, "--data-dir", data.to_str().unwrap()], more].concat();
    Server::start_with(dir, &arguments, environment)
}

/// Short lease, so that a test sees it end.
const SHORT: &[(&str, &str)] = &[("HOTPOOL__STORE__COMMAND_MS", "400"), ("HOTPOOL__STORE__LEASE_MS", "3000")];

fn is_ready(server: &Server) -> bool {
    server.client().get("/readyz").status == 200
}

/// Reads a counter of the service, summed over its labels.
fn counted(client: &mut Client, metric: &str) -> f64 {
    let text = client.get("/metrics").text().to_owned();
    let lines = text.lines().filter(|line| line.starts_with(metric));
    lines.filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok()).sum()
}

/// Waits until the store has everything.
fn flushed(client: &mut Client) {
    flushed_pool(client, POOL);
}

fn flushed_pool(client: &mut Client, pool: &str) {
    until("the store has everything", || {
        let shards = client.get(pool).expect(200)["pool"]["shards"].take();
        shards.as_array().unwrap().iter().all(|shard| shard["lag_ms"] == 0)
    });
}

#[test]
fn s01_every_durable_answer_survives_kill_9_of_the_service_on_a_cluster() {
    let cluster = Cluster::start(3, 0, &[]);
    let (dir, url) = (TempDir::new().unwrap(), cluster.url());
    let mut server = start(dir.path(), &url, &[], &[]);
    let mut campaign = Campaign::new(3);
    campaign.prepare(&mut server.client());
    for _ in 0..campaign.rounds {
        let load = campaign.load(server.address);
        load.answers(campaign.some_answers());
        server.kill();
        campaign.end(load);
        server = start(dir.path(), &url, &[], &[]);
        campaign.check(&mut server.client());
    }
    campaign.finish(&mut server.client());
    assert_eq!(server.stop().code(), Some(0));
}

#[test]
fn s04_a_server_that_restarts_without_its_last_writes_gets_snapshots() {
    let mut redis = Redis::start(&[]);
    let (dir, url) = (TempDir::new().unwrap(), redis.url());
    let mut server = start(dir.path(), &url, &[], SHORT);
    let mut campaign = Campaign::new(3);
    campaign.prepare(&mut server.client());
    for _ in 0..campaign.rounds {
        let load = campaign.load(server.address);
        load.answers(100);
        let _: () = redis.query(&["SAVE"]);
        // These claims are acknowledged, and then the server loses them.
        load.answers(300);
        redis.restart();
        load.answers(300);
        campaign.end(load);
        flushed(&mut server.client());
        assert!(counted(&mut server.client(), "hotpool_shard_snapshots_total") > 0.0, "nothing was lost: no test");
        campaign.check(&mut server.client());
        // Now only the store has them.
        server.kill();
        server = start(dir.path(), &url, &[], SHORT);
        campaign.check(&mut server.client());
    }
    campaign.finish(&mut server.client());
    assert_eq!(server.stop().code(), Some(0));
}

#[test]
fn s04_a_failover_that_loses_acknowledged_writes_loses_no_durable_reply() {
    let mut cluster = Cluster::start(3, 1, &["--cluster-replica-validity-factor", "0"]);
    let (dir, url) = (TempDir::new().unwrap(), cluster.url());
    let mut server = start(dir.path(), &url, &[], &[]);
    let mut campaign = Campaign::new(1);
    campaign.prepare(&mut server.client());
    let load = campaign.load(server.address);
    load.answers(200);
    // From here on the replica of the first master receives nothing, because it cannot log in.
    let victim = &cluster.masters[0];
    let _: () = victim.query(&["CONFIG", "SET", "requirepass", "held-back"]);
    let _: i64 = victim_ask(victim, &["CLIENT", "KILL", "TYPE", "replica"]);
    load.answers(500);
    cluster.masters[0].kill();
    let replica = &cluster.replicas[0];
    until("the replica is promoted", || {
        replica.try_ask::<String>(&["INFO", "replication"]).is_ok_and(|about| about.contains("role:master"))
    });
    load.answers(500);
    campaign.end(load);
    until("the service is ready", || is_ready(&server));
    flushed(&mut server.client());
    assert!(counted(&mut server.client(), "hotpool_shard_snapshots_total") > 0.0, "nothing was lost: no test");
    campaign.check(&mut server.client());
    server.kill();
    // The old master is gone for good: the URL names others too.
    server = start(dir.path(), &url, &[], &[]);
    campaign.check(&mut server.client());
    campaign.finish(&mut server.client());
    assert_eq!(server.stop().code(), Some(0));
}

fn victim_ask<T: redis::FromRedisValue>(server: &Redis, command: &[&str]) -> T {
    let url = format!("redis://:held-back@127.0.0.1:{}", server.port);
    let mut connection = redis::Client::open(url).unwrap().get_connection().unwrap();
    redis::cmd(command[0]).arg(&command[1..]).query(&mut connection).unwrap()
}

#[test]
fn s03_a_standby_takes_over_from_a_paused_owner_which_stays_silent_when_it_wakes() {
    let redis = Redis::start(&[]);
    let url = redis.url();
    let (first_dir, second_dir) = (TempDir::new().unwrap(), TempDir::new().unwrap());
    let first = start(first_dir.path(), &url, &["--standby"], SHORT);
    let mut campaign = Campaign::new(1);
    campaign.prepare(&mut first.client());
    let load = campaign.load(first.address);
    load.answers(300);
    let second = std::thread::scope(|scope| {
        let second = scope.spawn(|| start(second_dir.path(), &url, &["--standby"], SHORT));
        load.answers(300);
        signal(first.child.0.id(), "STOP");
        second.join().expect("it takes over by itself")
    });
    let mut client = second.client();
    client.post("/v1/claims", &json!({"namespace": "ns", "pool": "warm", "key": "after"})).expect(201);
    signal(first.child.0.id(), "CONT");
    // The old owner must not answer about a claim any more.
    let mut old = first.client();
    for _ in 0..20 {
        let answer = old.get("/v1/claims/ns/after");
        assert_eq!(answer.status, 503, "{}", answer.json());
    }
    until("the old owner knows why", || {
        old.get("/readyz").json().to_string().contains("another process owns the store")
    });
    first.kill();
    campaign.end(load);
    let fence = client.get("/v1/claims/ns/after").expect(200)["claim"]["fence"].take();
    client.post("/v1/claims/ns/after:release", &json!({"fence": fence})).expect(200);
    campaign.check(&mut client);
    campaign.finish(&mut client);
    assert_eq!(second.stop().code(), Some(0));
}

#[test]
fn s05_without_redis_memory_claims_go_on_until_the_lease_ends_and_all_are_stored_later() {
    let redis = Redis::start(&[]);
    let dir = TempDir::new().unwrap();
    let server = start(dir.path(), &redis.url(), &[], SHORT);
    let mut client = server.client();
    client.put("/v1/pools/ns/memory", &json!({"shards": 4, "ack": "memory", "lag_max_ms": 60_000})).expect(201);
    client.put("/v1/pools/ns/durable", &json!({"shards": 4})).expect(201);
    for pool in ["memory", "durable"] {
        let workers: Vec<_> = (0..100).map(|i| json!({"id": format!("w{i}")})).collect();
        client.post(&format!("/v1/pools/ns/{pool}/workers:batch"), &json!({"workers": workers})).expect(200);
    }
    redis.signal("STOP");
    let claim = |pool: &str, key: String| json!({"namespace": "ns", "pool": pool, "key": key});
    client.post("/v1/claims", &claim("memory", "first".into())).expect(201);
    let mut taken = 1;
    until("the lease ends", || {
        let answer = client.post("/v1/claims", &claim("memory", format!("k{taken}")));
        taken += u64::from(answer.status == 201);
        assert!(matches!(answer.status, 201 | 429 | 503), "{}", answer.json());
        answer.status == 503
    });
    let why = client.get("/readyz").json().to_string();
    assert!(why.contains("does not answer within 400 ms") && why.contains("has lapsed"), "{why}");
    redis.signal("CONT");
    until("the service is ready again", || client.get("/readyz").status == 200);
    client.post("/v1/claims", &claim("durable", "after".into())).expect(201);
    client.get("/v1/claims/ns/first").expect(200);
    let busy = client.get("/v1/pools/ns/memory").expect(200)["pool"]["workers"]["busy"].as_u64();
    // Claims without a reply were rolled back.
    assert_eq!(busy, Some(taken.min(100)));
    until("the store has everything", || {
        let shards = client.get("/v1/pools/ns/memory").expect(200)["pool"]["shards"].take();
        shards.as_array().unwrap().iter().all(|shard| shard["lag_ms"] == 0)
    });
    assert_eq!(server.stop().code(), Some(0));
}

#[test]
fn flushall_under_a_running_owner_is_detected_and_all_rows_are_rewritten() {
    let cluster = Cluster::start(3, 0, &[]);
    let (dir, url) = (TempDir::new().unwrap(), cluster.url());
    let mut server = start(dir.path(), &url, &[], SHORT);
    let mut campaign = Campaign::new(1);
    campaign.prepare(&mut server.client());
    server.client().put("/v1/pools/ns/idle", &json!({"shards": 16})).expect(201);
    server.client().put("/v1/pools/ns/idle/workers/w", &json!({})).expect(201);
    let load = campaign.load(server.address);
    load.answers(200);
    for master in &cluster.masters {
        let _: () = master.query(&["FLUSHALL"]);
    }
    load.answers(200);
    campaign.end(load);
    // The catalog, the ownership record and unused shards are written again within a third of the lease.
    until("all rows are stored again: two pools, catalog, owner", || {
        cluster.masters.iter().map(|master| master.query::<i64>(&["DBSIZE"])).sum::<i64>() == 4 + 16 + 2
    });
    flushed(&mut server.client());
    // The key of a shard is there with the first of its rows.
    flushed_pool(&mut server.client(), "/v1/pools/ns/idle");
    server.kill();
    server = start(dir.path(), &url, &[], SHORT);
    let mut client = server.client();
    campaign.check(&mut client);
    client.get("/v1/pools/ns/idle/workers/w").expect(200);
    campaign.finish(&mut client);
    assert_eq!(server.stop().code(), Some(0));
}

#[test]
fn a_node_is_added_and_slots_move_while_claims_go_on() {
    let cluster = Cluster::start(3, 0, &[]);
    let (dir, url) = (TempDir::new().unwrap(), cluster.url());
    let mut server = start(dir.path(), &url, &[], &[]);
    let mut campaign = Campaign::new(1);
    campaign.prepare(&mut server.client());
    let load = campaign.load(server.address);
    load.answers(200);
    let added = cluster.add();
    cluster.rebalance();
    until("it has slots", || added.query::<i64>(&["DBSIZE"]) > 0);
    load.answers(500);
    campaign.end(load);
    until("the service is ready", || is_ready(&server));
    flushed(&mut server.client());
    campaign.check(&mut server.client());
    server.kill();
    server = start(dir.path(), &url, &[], &[]);
    campaign.check(&mut server.client());
    campaign.finish(&mut server.client());
    assert_eq!(server.stop().code(), Some(0));
}
