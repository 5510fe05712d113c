//! Queued claims, quotas and demand, as commands.

use std::io::Read as _;
use std::process::Stdio;

use super::command;
use crate::server::{Running, Server, with_pool};

/// Starts a command whose claim is queued.
fn waiting(server: &Server, key: &str, flags: &str) -> Running {
    let line = format!("claims take ns/warm --key {key} --reserve-ms 0 {flags}");
    let arguments: Vec<&str> = line.split_whitespace().collect();
    let mut taking = command(&arguments);
    taking.env("HOTPOOL_ADDR", server.address.to_string()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut taking = Running(taking.spawn().unwrap());
    while server.cli(&format!("claims show ns/{key}")).code != Some(0) {
        assert!(taking.0.try_wait().unwrap().is_none(), "it waits");
    }
    taking
}

#[test]
fn a_queued_claim_extends_the_timeout_of_the_command() {
    let (_dir, server, _client) = with_pool(1);
    server.cli("claims take ns/warm --key held --reserve-ms 0").stdout();
    let rejected = server.cli("claims take ns/warm --key a --wait-ms 600 --timeout-ms 300");
    rejected.failed(3, &["RESOURCE_EXHAUSTED, pool_exhausted"]);
    let many = server.cli("claims take ns/warm --key a --count 2 --wait-ms 600 --timeout-ms 300");
    assert_eq!((many.code, many.err.matches("pool_exhausted").count()), (Some(3), 2), "{many:?}");

    let mut taking = waiting(&server, "a", "--wait-ms 60000 --priority 7 --preemptible --timeout-ms 300");
    let observed = server.cli("claims show ns/a");
    observed.stdout();
    assert_eq!(observed.row("state"), ["state", "waiting"]);
    assert_eq!((observed.row("for"), observed.row("pools")), (vec!["for", "pool_exhausted"], vec!["pools", "ns/warm"]));
    assert_eq!((observed.row("priority"), observed.row("ahead")), (vec!["priority", "7"], vec!["ahead", "0"]));
    // Claim, tenant, state, reason, pools, priority, ahead, waited, left; nobody was served, so there is no estimate.
    let listed = server.cli("claims ls ns/warm --state waiting");
    assert_eq!(listed.stdout().lines().count(), 2, "{listed:?}");
    let row = listed.row("ns/a");
    assert_eq!(row[1..7], ["default", "waiting", "pool_exhausted", "warm", "7", "0"]);
    assert_eq!((row.len(), row[9]), (10, "-"));
    let both = server.cli("claims ls --state waiting,active");
    assert_eq!((both.row("ns/held")[2], both.row("ns/a")[2]), ("active", "waiting"), "{both:?}");
    assert_eq!(server.cli("claims ls").stdout().lines().count(), 2, "those that wait are not listed unasked");
    let json = server.cli("claims ls --state waiting -o json").json();
    assert_eq!((&json["items"][0]["key"], &json["items"][0]["state"]), (&"a".into(), &"waiting".into()));
    server.cli("claims release ns/a --current").failed(3, &["the key is queued", "FAILED_PRECONDITION, state"]);
    let demand = server.cli("demand ns/warm");
    demand.stdout();
    assert_eq!((demand.row("waiting"), demand.row("needed")), (vec!["waiting", "1"], vec!["needed", "1"]));
    assert_eq!(demand.row("wanted"), ["wanted", "2"]);
    // Resources, selector, nodes, reason, waiting, and after the oldest: priority, needed.
    let shape = demand.row("-");
    assert_eq!((&shape[..5], &shape[6..]), (&["-", "-", "-", "pool_exhausted", "1"][..], &["7", "1"][..]));
    assert_eq!(server.cli("demand ns/warm -o json").json()["workers_needed"], 1);

    server.cli("claims release ns/held --current").stdout();
    assert_eq!(taking.0.wait().unwrap().code(), Some(0));
    let mut out = String::new();
    taking.0.stdout.take().unwrap().read_to_string(&mut out).unwrap();
    assert!(out.contains("preemptible") && out.contains("active"), "{out}");
    server.cli("demand ns/none").failed(4, &["pool not found"]);
}

#[test]
fn quotas_are_set_shown_listed_and_deleted() {
    let (_dir, server, _client) = with_pool(2);
    let none = server.cli("quotas ls");
    assert_eq!((none.code, none.out.as_str()), (Some(0), ""));
    assert!(none.err.contains("hotpool quotas put"), "{none:?}");
    let line = "quotas put ns/acme --claims 1 --cpu-milli 1500 --memory-bytes 64Gi --gpu-milli 2500 --weight 3";
    assert_eq!(server.cli(line).stdout(), "ns/acme set\n");
    assert_eq!(server.cli(line).stdout(), "ns/acme changed\n");
    assert_eq!(server.cli("quotas put ns --claims 9").stdout(), "ns set\n");
    server.cli("claims take ns/warm --key a --tenant acme").stdout();
    server.cli("claims take ns/warm --key b --tenant acme").failed(3, &["RESOURCE_EXHAUSTED, quota"]);
    let shown = server.cli("quotas show ns/acme");
    shown.stdout();
    assert_eq!((shown.row("source"), shown.row("claims")), (vec!["source", "tenant"], vec!["claims", "1", "of", "1"]));
    assert_eq!((shown.row("cpu"), shown.row("gpu")), (vec!["cpu", "0", "of", "1.5"], vec!["gpu", "0", "of", "2.5"]));
    assert_eq!((shown.row("memory"), shown.row("weight")), (vec!["memory", "0", "of", "64Gi"], vec!["weight", "3"]));
    let other = server.cli("quotas show ns/other");
    assert_eq!(
        (other.row("source"), other.row("claims")),
        (vec!["source", "namespace"], vec!["claims", "0", "of", "9"])
    );
    assert_eq!(other.row("cpu"), ["cpu", "0"]);
    let all = server.cli("quotas ls");
    all.stdout();
    assert_eq!(all.row("ns"), ["ns", "9", "-", "-", "-", "1", "-"]);
    assert_eq!(all.row("ns/acme")[1..4], ["1", "of", "1"]);
    assert_eq!(server.cli("quotas ls -o json").json()["items"].as_array().unwrap().len(), 2);
    assert_eq!(server.cli("quotas show ns -o json").json()["quota"]["claims"], 9);
    server.cli("quotas put ns --weight 0").failed(64, &["weight: ", "1 to 1000"]);
    assert_eq!(server.cli("quotas rm ns/acme").stdout(), "ns/acme removed\n");
    server.cli("quotas rm ns/acme").failed(4, &["quota not found"]);
}
