//! The baselines on real Redis servers: they check out like any target, leave nothing behind, and take the round trips
//! that their descriptions say.

use serde_json::Value;

use crate::servers::{Cluster, Server};
use crate::{assert_clean, report};

fn bench(target: &str, more: &[&str]) -> Value {
    report(&[&["bench", "--target", target, "--duration-s", "0.5"][..], more].concat())
}

/// Round trips of a claim and a release, with one page of workers on each of so many servers.
fn essay(way: &str, servers: f64) -> (f64, f64) {
    match way {
        "redis-scan" => (2.0 * servers + 6.0, 6.0),
        "redis-spop" => (8.0, 7.0),
        "redis-lock" => (2.0 * servers + 4.0, 6.0),
        "redis-batch" => (2.0 * servers + 5.0, 6.0),
        "redis-lua" => (1.0, 1.0),
        other => panic!("{other}"),
    }
}

const WAYS: [&str; 5] = ["redis-scan", "redis-spop", "redis-lock", "redis-batch", "redis-lua"];

fn alone_and_together(hosts: &str, servers: f64) {
    for way in WAYS {
        let target = format!("{way}://{hosts}");
        let alone = bench(&target, &["--clients", "1", "--workers", "200"]);
        assert_clean(&alone);
        let trips = |name: &str| alone[name].as_f64().expect("a number");
        let found = (trips("round_trips_per_claim"), trips("round_trips_per_release"));
        assert_eq!((found, &alone["retries"]), (essay(way, servers), &0.into()), "{way}");

        // Fewer workers than claims under way.
        let together = bench(&target, &["--clients", "4", "--in-flight", "16", "--workers", "8"]);
        assert_clean(&together);
        let contended = [&together["claims_refused"], &together["retries"]].map(|count| count.as_u64() > Some(0));
        assert!(contended.contains(&true), "{way}: nobody met anybody: {together:#}");
    }
}

#[test]
fn on_one_server() {
    let server = Server::start(&[]);
    alone_and_together(&format!("127.0.0.1:{}", server.port), 1.0);
    assert_eq!(server.ask::<u64>(&["DBSIZE"]), 0, "everything is removed");
}

#[test]
fn on_a_cluster() {
    let cluster = Cluster::start(3, 0, &[]);
    let hosts: Vec<String> = cluster.masters.iter().map(|server| format!("127.0.0.1:{}", server.port)).collect();
    alone_and_together(&hosts.join(","), 3.0);
    for server in &cluster.masters {
        assert_eq!(server.ask::<u64>(&["DBSIZE"]), 0, "everything is removed");
    }
}

#[test]
fn batches() {
    let server = Server::start(&[]);
    let hosts = format!("127.0.0.1:{}", server.port);
    for (way, claim) in [
        // Read once, and each worker as if it were alone.
        ("redis-batch", (2.0 + 20.0 * 5.0) / 20.0),
        ("redis-batch?", (2.0 + 20.0 * 5.0) / 20.0),
        ("redis-lua", 1.0 / 20.0),
        ("redis-spop?", 8.0),
    ] {
        let query = if way.ends_with('?') { "?concurrent=8" } else { "" };
        let target = format!("{}://{hosts}{query}", way.trim_end_matches('?'));
        let report = bench(&target, &["--clients", "1", "--batch", "20", "--workers", "100"]);
        assert_clean(&report);
        assert_eq!(report["round_trips_per_claim"].as_f64(), Some(claim), "{target}");
    }
    assert_eq!(server.ask::<u64>(&["DBSIZE"]), 0, "everything is removed");
}
