//! Effects and output of the commands about worker life cycle, two-phase release and renewals.

use serde_json::{Value, json};

use super::Ran;
use crate::client::Client;
use crate::server::{Server, fresh, until, with_pool};

const POOL: &str = "/v1/pools/ns/warm";

fn worker(client: &mut Client, id: &str) -> Value {
    client.get(&format!("{POOL}/workers/{id}")).expect(200)["worker"].take()
}

fn created(server: &Server, line: &str) -> (String, String) {
    let ran = server.cli(line);
    ran.stdout();
    (ran.row("fence")[1].to_owned(), ran.row("worker")[1].to_owned())
}

#[test]
fn workers_are_cordoned_uncordoned_and_drained() {
    let (_dir, server, mut client) = with_pool(2);
    assert_eq!(server.cli("workers cordon ns/warm w0 w1").stdout(), "ns/warm w0 cordoned\nns/warm w1 cordoned\n");
    assert_eq!(worker(&mut client, "w0")["schedulability"], "cordoned");
    server.cli("claims take ns/warm --key a").failed(3, &["RESOURCE_EXHAUSTED, pool_exhausted"]);
    assert!(server.cli("pools ls").row("ns/warm").contains(&"cordoned=2"));
    assert!(server.cli("workers ls ns/warm").row("w0").contains(&"idle,cordoned"));
    // A repeated command has the same output.
    assert_eq!(server.cli("workers cordon ns/warm w0").stdout(), "ns/warm w0 cordoned\n");
    assert_eq!(server.cli_with("workers uncordon ns/warm -", "w0\n").stdout(), "ns/warm w0 uncordoned\n");
    assert_eq!(worker(&mut client, "w0")["schedulability"], "open");
    assert_eq!(created(&server, "claims take ns/warm --key a").1, "w0");

    let output = server.cli("workers drain ns/warm w0 -o json").json();
    assert_eq!(
        (&output["items"][0]["worker"]["schedulability"], &output["items"][0]["worker"]["occupancy"]),
        (&json!("draining"), &json!("busy"))
    );
    let shown = server.cli("workers show ns/warm w0");
    shown.stdout();
    assert!(shown.out.contains("draining"), "{shown:?}");
    // Draining is final; of several workers the highest exit code counts, and a failure does not affect the others.
    let some = server.cli("workers uncordon ns/warm w0 none w1");
    assert_eq!((some.code, some.out.as_str()), (Some(4), "ns/warm w1 uncordoned\n"));
    assert!(
        some.err.contains("hotpool: w0: the worker is draining")
            && some.err.contains("hotpool: none: worker not found"),
        "{some:?}"
    );
    server.cli("workers uncordon ns/warm w0").failed(3, &["FAILED_PRECONDITION, state", "higher incarnation"]);
    server.cli("workers add ns/warm w0 --incarnation 1").stdout();
    assert_eq!(worker(&mut client, "w0")["schedulability"], "open");

    server.cli("workers cordon ns/none w0").failed(4, &["pool not found"]);
    server.cli("workers cordon ns/warm").failed(64, &["ID"]);
    server.cli("workers cordon ns/warm w/0").failed(64, &["[A-Za-z0-9._-]"]);
    server.cli("workers reboot ns/warm w0").failed(64, &["reboot"]);
}

/// Service with two workers whose cleaning took too long.
fn suspects() -> (tempfile::TempDir, Server, Client) {
    let (dir, server, mut client) = fresh();
    server.cli("pools put ns/warm --shards 1 --releasing-ms 1").stdout();
    server.cli("workers add ns/warm w0 w1").stdout();
    for key in ["a", "b"] {
        let (fence, _) = created(&server, &format!("claims take ns/warm --key {key} --reserve-ms 0"));
        let line = format!("claims release ns/{key} --fence {fence} --phase begin");
        assert_eq!(server.cli(&line).stdout(), format!("ns/{key} releasing\n"));
        until("the clean-up times out", || client.get(&format!("/v1/claims/ns/{key}")).status != 200);
    }
    (dir, server, client)
}

#[test]
fn suspect_workers_are_cleared_one_by_one_or_all_together() {
    let (_dir, server, mut client) = suspects();
    assert!(server.cli("workers ls ns/warm").row("w1").contains(&"idle,suspect"));
    server.cli("claims take ns/warm --key c").failed(3, &["pool_exhausted"]);
    assert_eq!(server.cli("workers clear ns/warm w1").stdout(), "ns/warm w1 cleared\n");
    assert_eq!(
        (worker(&mut client, "w1")["trust"].take(), worker(&mut client, "w0")["trust"].take()),
        (json!("trusted"), json!("suspect"))
    );
    assert_eq!(created(&server, "claims take ns/warm --key c").1, "w1");
    let cleared = server.cli("pools clear ns/warm");
    assert!(cleared.stdout().starts_with("ns/warm") && cleared.out.contains('1'), "{cleared:?}");
    assert_eq!(worker(&mut client, "w0")["trust"], "trusted");
    assert_eq!(server.cli("pools clear ns/warm -o json").json(), json!({"cleared": 0, "suspect": 0}));
    server.cli("pools clear ns/none").failed(4, &["pool not found"]);
    server.cli("pools clear warm").failed(64, &["NAMESPACE/POOL"]);
}

#[test]
fn a_claim_is_confirmed_renewed_and_released_in_two_phases() {
    let (_dir, server, mut client) = with_pool(1);
    let state = |client: &mut Client| client.get("/v1/claims/ns/a").expect(200)["claim"].take();
    let (fence, _) = created(&server, "claims take ns/warm --key a --ttl-ms 3600000");
    server
        .cli(&format!("claims renew ns/a --fence {fence}"))
        .failed(3, &["FAILED_PRECONDITION, state", "confirm it first"]);
    server.cli("claims confirm ns/a --fence 1").failed(3, &["ABORTED, fence"]);
    assert_eq!(state(&mut client)["state"], "reserved");
    let confirmed = server.cli(&format!("claims confirm ns/a --fence {fence}"));
    confirmed.stdout();
    assert_eq!(confirmed.row("state"), ["state", "active"]);

    let before = state(&mut client)["expires_at_ms"].as_u64().unwrap();
    let renewed = server.cli(&format!("claims renew ns/a --fence {fence} --ttl-ms 7200000 -o json")).json();
    assert!(renewed["claim"]["expires_at_ms"].as_u64().unwrap() >= before + 3_500_000);
    assert_eq!(state(&mut client), renewed["claim"]);
    let again = server.cli("claims renew ns/a --current");
    again.stdout();
    assert_eq!(again.row("ends")[..2], ["ends", "in"]);
    server
        .cli("claims renew ns/a --current --ttl-ms 31536000000")
        .failed(64, &["ttl_ms: ", "2592000000", "INVALID_ARGUMENT"]);
    server.cli("claims renew ns/a").failed(64, &["--fence"]);
    server.cli("claims renew ns/none --current").failed(4, &["claim not found"]);

    server
        .cli(&format!("claims release ns/a --fence {fence} --phase end"))
        .failed(64, &["--phase", "[possible values: begin, finish]"]);
    let release = |phase: &str| -> Ran { server.cli(&format!("claims release ns/a --fence {fence} --phase {phase}")) };
    assert_eq!(release("begin").stdout(), "ns/a releasing\n");
    assert_eq!(state(&mut client)["state"], "releasing");
    server.cli("claims take ns/warm --key a").failed(3, &["FAILED_PRECONDITION, releasing"]);
    // The output suggests the next command.
    let shown = server.cli("claims show ns/a");
    let next = shown.row("next")[2..].join(" ");
    assert_eq!(next, format!("claims release ns/a --fence {fence} --phase finish"));
    assert_eq!(server.cli(&next).stdout(), "ns/a released\n");
    client.get("/v1/claims/ns/a").expect_error(404, "NOT_FOUND", None, None);
    assert_eq!(client.get(POOL).expect(200)["pool"]["workers"]["idle"], 1);
    assert_eq!(release("finish").stdout(), "ns/a holds no claim: nothing to release\n");
}

#[test]
fn an_unreachable_or_failing_service_has_its_exit_code() {
    let (_dir, server, _client) = with_pool(1);
    let commands = [
        "workers cordon ns/warm w0",
        "pools clear ns/warm",
        "claims confirm ns/a --fence 1",
        "claims renew ns/a --fence 1",
        "claims release ns/a --fence 1 --phase begin",
    ];
    assert_eq!(commands.map(|line| server.cli(line).code), [Some(0), Some(0), Some(4), Some(4), Some(0)]);
    let address = server.address.to_string();
    server.kill();
    for line in commands {
        let arguments: Vec<&str> = line.split_whitespace().collect();
        let ran = super::run(super::command(&arguments).env("HOTPOOL_ADDR", &address), "");
        ran.failed(1, &[&address]);
    }
}
