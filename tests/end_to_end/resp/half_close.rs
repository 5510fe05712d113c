//! Clients that close their sending side and continue to read, over RESP.

use std::net::{Shutdown, SocketAddr};

use redis::Value;

use super::wire::{Wire, frame, text, with_pool};
use crate::client::Client;
use crate::server::until;

/// Sends these commands, then closes the sending side.
fn send_and_half_close(address: SocketAddr, commands: &[&str]) -> Wire {
    let mut wire = Wire::connect(address);
    wire.send(&commands.iter().flat_map(|parts| frame(parts)).collect::<Vec<u8>>());
    wire.stream().shutdown(Shutdown::Write).unwrap();
    wire
}

fn waiting(client: &mut Client) -> u64 {
    client.metric(r#"hotpool_claims_pending{pool="ns/warm"}"#)
}

fn is_held(client: &mut Client, key: &str) -> bool {
    client.get(&format!("/v1/claims/ns/{key}")).status == 200
}

/// Whether no claim is held. A claim request would disclose the claim, which then would not be rolled back.
fn is_idle(client: &mut Client) -> bool {
    all_are_idle(client, "warm")
}

fn all_are_idle(client: &mut Client, pool: &str) -> bool {
    let workers = client.get(&format!("/v1/pools/ns/{pool}")).expect(200)["pool"]["workers"].take();
    workers["idle"] == workers["total"]
}

#[test]
fn c15_complete_commands_are_answered_after_a_half_close() {
    let (_dir, _server, mut client, wire) = with_pool(1);
    client.put("/v1/pools/ns/safe", &serde_json::json!({"shards": 2})).expect(201);
    let address = wire.stream().peer_addr().unwrap();
    client.put("/v1/pools/ns/safe/workers/s0", &serde_json::json!({})).expect(201);
    for round in 0..100 {
        let key = format!("k{round}");
        let claim = format!("CLAIM ns/warm KEY {key}");
        let waits = format!("CLAIM ns/safe KEY s{key} WAIT 60000 RESERVE 0");
        let (release, others) = (format!("RELEASE ns {key} *"), format!("RELEASE ns s{key} *"));
        let mut wire = send_and_half_close(address, &[&claim, &waits, &release, &others, "PING"]);
        let response: Vec<String> = (0..5).map(|_| text(&wire.receive())).collect();
        assert!(
            response[0].starts_with(&format!("[{key} ")) && response[1].starts_with(&format!("[s{key} ")),
            "{response:?}"
        );
        assert_eq!(response[2..], ["1", "1", "PONG"]);
        assert_eq!(wire.rest(), "");
    }
}

#[test]
fn c15_a_claim_stays_queued_after_a_half_close() {
    let (_dir, server, mut client, mut wire) = with_pool(1);
    let address = server.resp.unwrap();
    wire.call("CLAIM ns/warm KEY held");
    // The claim's own wait ends first.
    let mut short = send_and_half_close(address, &["CLAIM ns/warm KEY a WAIT 100", "PING"]);
    assert_eq!(text(&short.receive()), "-NOCAPACITY pool_exhausted no worker that the request allows is free");
    assert_eq!(text(&short.receive()), "PONG");
    // A worker arrives in time.
    let mut served = send_and_half_close(address, &["CLAIM ns/warm KEY b WAIT 60000 RESERVE 0", "PING"]);
    until("the claim waits", || waiting(&mut client) >= 1);
    assert_eq!(wire.reply_text("RELEASE ns held *"), "1");
    assert!(text(&served.receive()).starts_with("[b "));
    assert_eq!(text(&served.receive()), "PONG");
    assert_eq!(served.rest(), "");
    assert!(is_held(&mut client, "b"), "its client got the reply");
    // No worker arrives: the claim is abandoned with its reason, and later commands are executed.
    let commands = [
        "CLAIM ns/warm KEY c WAIT 60000",
        "CLAIMS 1 ns/warm KEYS d WAIT 60000",
        "RELEASE ns b *",
        "CLAIM ns/warm KEY e WAIT 60000",
    ];
    let mut late = send_and_half_close(address, &commands);
    assert_eq!(
        text(&late.receive()),
        "-TIMEOUT the client has closed its sending side, after which a claim is queued for at most 2000 ms"
    );
    assert_eq!(text(&late.receive()), "[-NOCAPACITY pool_exhausted no worker that the request allows is free]");
    assert_eq!(late.receive(), Value::Int(1));
    assert!(text(&late.receive()).starts_with("[e "));
    assert_eq!(late.rest(), "");
    assert_eq!(waiting(&mut client), 0);
}

/// Client that is gone, which has closed its sending side as well. Its claim is rolled back when its system rejects the
/// reply.
#[test]
fn c15_a_claim_is_rolled_back_when_its_client_is_gone() {
    let (_dir, server, mut client, mut wire) = with_pool(2);
    let held = ["h0", "h1"];
    for claim in ["CLAIM ns/warm KEY a WAIT 60000 RESERVE 0", "CLAIMS 2 ns/warm KEYS a b WAIT 60000 RESERVE 0"] {
        for key in held {
            assert!(wire.reply_text(&format!("CLAIM ns/warm KEY {key}")).starts_with('['));
        }
        let gone = send_and_half_close(server.resp.unwrap(), &[claim]);
        until("the claim waits", || waiting(&mut client) >= 1);
        drop(gone);
        for key in held {
            assert_eq!(wire.reply_text(&format!("RELEASE ns {key} *")), "1");
        }
        until("all claims are rolled back", || waiting(&mut client) == 0 && is_idle(&mut client));
    }
}

/// Reply that the client's system acknowledged: whether the client read it before the reset is unknown, and a rollback
/// could assign the worker twice.
#[test]
fn c12_a_claim_whose_answer_arrived_is_kept_after_a_reset() {
    let (_dir, server, mut client, _wire) = with_pool(1);
    let mut wire = Wire::connect(server.resp.unwrap());
    wire.send(&frame("CLAIM ns/warm KEY k RESERVE 0"));
    // The reply is in the client's socket buffer, so the client's end is a reset.
    wire.stream().peek(&mut [0; 1]).unwrap();
    drop(wire);
    until("the connection is over", || client.metric("hotpool_resp_connections") == 1);
    assert!(is_held(&mut client, "k"));
}

/// Claims that wait only for the store, and whose client is gone before they are answered.
#[test]
fn c12_an_unqueued_claim_is_rolled_back_when_its_client_is_gone() {
    let (_dir, server, mut client, _wire) = with_pool(2);
    let address = server.resp.unwrap();
    for round in 0..12 {
        let claim = |key: &str| format!("CLAIM ns/warm KEY {key}{round} RESERVE 0");
        let commands = match round % 3 {
            0 => vec![claim("k")],
            1 => vec![format!("CLAIMS 2 ns/warm KEYS k{round} l{round} RESERVE 0")],
            _ => vec!["MULTI".to_owned(), claim("k"), "EXEC".to_owned(), claim("l")],
        };
        let commands: Vec<&str> = commands.iter().map(String::as_str).collect();
        // Gone before the service reads the first byte, so its replies are rejected.
        server.paused(|| drop(send_and_half_close(address, &commands)));
        until("all claims are rolled back", || is_idle(&mut client));
    }
}

/// Connection that becomes deep and moves to another thread, with the claims that may have to be rolled back.
#[test]
fn c12_claims_of_a_deep_connection_whose_client_is_gone_are_rolled_back() {
    const PIPELINE: usize = 4;
    let (_dir, server, mut client, _wire) = with_pool(PIPELINE);
    client.put("/v1/pools/ns/quick", &serde_json::json!({"shards": 1, "ack": "memory"})).expect(201);
    for n in 0..PIPELINE {
        client.put(&format!("/v1/pools/ns/quick/workers/q{n}"), &serde_json::json!({})).expect(201);
    }
    // Answered after a wait for the store, and at once.
    for pool in ["warm", "quick"] {
        let mut wire = Wire::connect(server.resp.unwrap());
        for _ in 0..7 {
            wire.send(&frame("PING").repeat(PIPELINE));
            for _ in 0..PIPELINE {
                assert_eq!(text(&wire.receive()), "PONG");
            }
        }
        let claims = (0..PIPELINE).flat_map(|n| frame(&format!("CLAIM ns/{pool} KEY {pool}{n} RESERVE 0")));
        let claims: Vec<u8> = claims.collect();
        server.paused(|| {
            wire.send(&claims);
            drop(wire);
        });
        until("all claims are rolled back", || {
            client.metric("hotpool_resp_connections") == 1 && all_are_idle(&mut client, pool)
        });
    }
}
