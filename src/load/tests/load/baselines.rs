//! Baselines on real Redis and PostgreSQL servers: they pass the same checks as any target, remove all their keys, and take the
//! documented number of round trips.

use serde_json::Value;

use crate::servers::{Cluster, Server};
use crate::{assert_clean, report};

fn bench(target: &str, more: &[&str]) -> Value {
    report(&[&["bench", "--target", target, "--duration-s", "0.5"][..], more].concat())
}

/// Documented round trips of a claim and a release, if each server has one page of workers.
fn documented_round_trips(scheme: &str, servers: f64) -> (f64, f64) {
    match scheme {
        "redis-scan" => (2.0 * servers + 6.0, 6.0),
        "redis-spop" => (8.0, 7.0),
        "redis-lock" => (2.0 * servers + 4.0, 6.0),
        "redis-batch" => (2.0 * servers + 5.0, 6.0),
        "redis-lua" => (1.0, 1.0),
        other => panic!("{other}"),
    }
}

const SCHEMES: [&str; 5] = ["redis-scan", "redis-spop", "redis-lock", "redis-batch", "redis-lua"];

fn assert_alone_and_contended(hosts: &str, servers: f64) {
    for scheme in SCHEMES {
        let target = format!("{scheme}://{hosts}");
        let alone = bench(&target, &["--clients", "1", "--workers", "200"]);
        assert_clean(&alone);
        let figure = |name: &str| alone[name].as_f64().expect("a number");
        let measured = (figure("round_trips_per_claim"), figure("round_trips_per_release"));
        assert_eq!((measured, &alone["retries"]), (documented_round_trips(scheme, servers), &0.into()), "{scheme}");

        // Fewer workers than claims in flight.
        let contended = bench(&target, &["--clients", "4", "--in-flight", "16", "--workers", "8"]);
        assert_clean(&contended);
        let signs = [&contended["claims_refused"], &contended["retries"]].map(|count| count.as_u64() > Some(0));
        assert!(signs.contains(&true), "{scheme}: no contention: {contended:#}");
    }
}

#[test]
fn baselines_are_correct_on_one_server() {
    let server = Server::start(&[]);
    assert_alone_and_contended(&format!("127.0.0.1:{}", server.port), 1.0);
    assert_eq!(server.query::<u64>(&["DBSIZE"]), 0, "all keys are removed");
}

#[test]
fn baselines_are_correct_on_a_cluster() {
    let cluster = Cluster::start(3, 0, &[]);
    let hosts: Vec<String> = cluster.masters.iter().map(|server| format!("127.0.0.1:{}", server.port)).collect();
    assert_alone_and_contended(&hosts.join(","), 3.0);
    for server in &cluster.masters {
        assert_eq!(server.query::<u64>(&["DBSIZE"]), 0, "all keys are removed");
    }
}

#[test]
fn batches_take_the_documented_round_trips() {
    let server = Server::start(&[]);
    let hosts = format!("127.0.0.1:{}", server.port);
    for (scheme, claim) in [
        // All workers are read once, and each is written on its own.
        ("redis-batch", (2.0 + 20.0 * 5.0) / 20.0),
        ("redis-batch?", (2.0 + 20.0 * 5.0) / 20.0),
        ("redis-lua", 1.0 / 20.0),
        ("redis-spop?", 8.0),
    ] {
        let query = if scheme.ends_with('?') { "?concurrent=8" } else { "" };
        let target = format!("{}://{hosts}{query}", scheme.trim_end_matches('?'));
        let report = bench(&target, &["--clients", "1", "--batch", "20", "--workers", "100"]);
        assert_clean(&report);
        assert_eq!(report["round_trips_per_claim"].as_f64(), Some(claim), "{target}");
    }
    assert_eq!(server.query::<u64>(&["DBSIZE"]), 0, "all keys are removed");
}

#[test]
fn a_table_in_postgresql_is_correct_and_takes_one_round_trip() {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let server = runtime.block_on(hotpool_load::servers::PostgresServer::start()).unwrap();
    for setting in ["on", "off"] {
        let target = format!("postgres://{}?synchronous_commit={setting}", server.host);
        let alone = bench(&target, &["--clients", "1", "--workers", "200"]);
        assert_clean(&alone);
        let figure = |name: &str| alone[name].as_f64().expect("a number");
        assert_eq!((figure("round_trips_per_claim"), figure("round_trips_per_release")), (1.0, 1.0));
        assert!(figure("server_processor_us_per_claim") > 0.0 && figure("client_processor_us_per_claim") > 0.0);
        // Fewer workers than claims in flight.
        let contended = bench(&target, &["--clients", "16", "--in-flight", "16", "--workers", "8"]);
        assert_clean(&contended);
        assert!(contended["claims_refused"].as_u64() > Some(0), "no contention: {contended:#}");
        assert_clean(&bench(&target, &["--clients", "2", "--batch", "10", "--workers", "100"]));
    }
    let left = runtime.block_on(async {
        let (host, port) = server.host.rsplit_once(':').unwrap();
        let url = format!("host={host} port={port} user=postgres dbname=postgres");
        let (client, connection) = tokio_postgres::connect(&url, tokio_postgres::NoTls).await.unwrap();
        tokio::spawn(connection);
        let tables = "SELECT count(*) FROM pg_tables WHERE tablename LIKE 'hotpool%'";
        client.query_one(tables, &[]).await.unwrap().get::<_, i64>(0)
    });
    assert_eq!(left, 0, "all tables are removed");
}
