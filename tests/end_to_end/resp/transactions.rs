//! Transactions from `MULTI` to `EXEC`: all commands with their replies, or none of them.

use super::wire::{Wire, frame, text, texts, with_pool};
use crate::client::Client;

const ABORTED: &str = "-EXECABORT Transaction discarded because of previous errors.";

/// Sends all commands at once, and reads as many replies.
fn all(wire: &mut Wire, commands: &[&str]) -> Vec<String> {
    wire.send(&commands.iter().flat_map(|parts| frame(parts)).collect::<Vec<u8>>());
    commands.iter().map(|_| text(&wire.receive())).collect()
}

/// Returns the keys of all claims that are held.
fn held(client: &mut Client) -> Vec<String> {
    let page = client.get("/v1/claims?limit=1000").expect(200)["items"].take();
    let mut keys: Vec<_> =
        page.as_array().unwrap().iter().map(|claim| claim["key"].as_str().unwrap().to_owned()).collect();
    keys.sort();
    keys
}

#[test]
fn c14_a_transaction_is_answered_as_its_commands_would_be() {
    let (_dir, _server, mut client, mut wire) = with_pool(2);
    let response =
        all(&mut wire, &["MULTI", "CLAIM ns/warm KEY a", "ECHO hi", "CLAIM ns/warm KEY b", "CLAIM ns/warm KEY c"]);
    assert_eq!(response, ["OK", "QUEUED", "QUEUED", "QUEUED", "QUEUED"]);
    assert_eq!(held(&mut client), [""; 0], "nothing is carried out before EXEC");
    let answers = texts(&wire.call("EXEC"));
    assert!(answers[0].starts_with("[a ") && answers[2].starts_with("[b "), "{answers:?}");
    assert_eq!((&*answers[1], answers.len()), ("hi", 4));
    assert_eq!(answers[3], "-NOCAPACITY pool_exhausted no worker that the request allows is free");
    // The connection keeps nothing of it.
    assert_eq!(wire.reply_text("EXEC"), "-ERR EXEC without MULTI");
    let response = all(
        &mut wire,
        &[
            "MULTI",
            "RELEASE ns a *",
            "CLAIM ns/warm KEY c",
            "RELEASE ns b *",
            "CLAIMS 2 ns/warm KEYS c d",
            "EXEC",
            "PING",
        ],
    );
    assert_eq!(response[..5], ["OK", "QUEUED", "QUEUED", "QUEUED", "QUEUED"]);
    assert!(
        response[5].starts_with("[1 [c ") && response[5].contains(" 1 [[c ") && response[5].contains(" [d "),
        "{response:?}"
    );
    assert_eq!(response[6], "PONG");
    assert_eq!(held(&mut client), ["c", "d"]);
    let series = |command| format!(r#"hotpool_resp_commands_total{{command="{command}",outcome="OK"}}"#);
    let counted = ["multi", "exec", "claim"].map(|command| client.metric(&series(command)));
    assert_eq!(counted, [2, 2, 3]);
}

#[test]
fn c14_a_rejected_command_discards_the_transaction() {
    let (_dir, _server, mut client, mut wire) = with_pool(3);
    for wrong in ["SET a b", "CLAIM", "CLAIM ns/warm TTL soon", "RELEASE ns a", "CONFIRM ns a *", "MULTI x"] {
        let response =
            all(&mut wire, &["MULTI", "CLAIM ns/warm KEY a RESERVE 0", wrong, "CLAIM ns/warm KEY b", "EXEC"]);
        assert_eq!((&*response[1], &*response[3], &*response[4]), ("QUEUED", "QUEUED", ABORTED), "{wrong}");
        assert!(response[2].starts_with("-ERR ") || response[2].starts_with("-BADREQ "), "{response:?}");
        assert_eq!(held(&mut client), [""; 0], "{wrong}");
    }
    assert_eq!(
        all(&mut wire, &["MULTI", "CLAIM ns/warm KEY a", "DISCARD", "EXEC"])[2..],
        ["OK", "-ERR EXEC without MULTI"]
    );
    assert_eq!(wire.reply_text("DISCARD"), "-ERR DISCARD without MULTI");
    assert_eq!(
        all(&mut wire, &["MULTI", "CLAIM ns/warm KEY a", "RESET", "EXEC"])[2..],
        ["RESET", "-ERR EXEC without MULTI"]
    );
    assert_eq!(held(&mut client), [""; 0]);
    assert_eq!(all(&mut wire, &["MULTI", "EXEC"]), ["OK", "[]"]);
    // A protocol error ends all of it.
    wire.send(&[frame("MULTI"), frame("CLAIM ns/warm KEY a"), b"*1\r\n:1\r\n".to_vec()].concat());
    assert!(wire.rest().contains("Protocol error"));
    assert_eq!(held(&mut client), [""; 0]);
}

#[test]
fn c14_nested_and_watched_transactions_are_answered_as_by_redis() {
    let (_dir, _server, mut client, mut wire) = with_pool(3);
    let response = all(&mut wire, &["MULTI", "MULTI", "WATCH a", "UNWATCH", "CLAIM ns/warm KEY a", "EXEC"]);
    assert_eq!(
        response[1..4],
        ["-ERR MULTI calls can not be nested", "-ERR WATCH inside MULTI is not allowed", "QUEUED"]
    );
    assert!(response[5].starts_with("[OK [a "), "{response:?}");
    // A client that watches something does not want this to be executed unwatched.
    let response =
        all(&mut wire, &["WATCH a", "MULTI", "CLAIM ns/warm KEY b", "EXEC", "MULTI", "CLAIM ns/warm KEY b", "EXEC"]);
    assert!(response[0].starts_with("-ERR WATCH "), "{response:?}");
    assert_eq!((&*response[2], &*response[3]), ("QUEUED", ABORTED));
    assert!(response[6].starts_with("[[b "), "{response:?}");
    assert_eq!(all(&mut wire, &["WATCH a", "UNWATCH", "MULTI", "PING", "EXEC"])[4], "[PONG]");
    assert_eq!(held(&mut client), ["a", "b"]);
}

#[test]
fn c14_a_transaction_that_is_not_executed_changes_nothing() {
    let (_dir, _server, mut client, mut wire) = with_pool(3);
    let address = wire.stream().peer_addr().unwrap();
    assert_eq!(all(&mut wire, &["MULTI", "CLAIM ns/warm KEY a RESERVE 0", "CLAIM ns/warm KEY b"])[2], "QUEUED");
    wire.send(&frame("EXEC")[..10]);
    drop(wire);
    let mut wire = Wire::connect(address);
    assert_eq!(all(&mut wire, &["MULTI", "CLAIM ns/warm KEY a RESERVE 0", "QUIT"])[2], "OK");
    assert_eq!(wire.rest(), "");
    assert_eq!(held(&mut client), [""; 0]);
}

/// Sent byte by byte, inline, in both protocol versions, and on a connection that has moved to another thread.
#[test]
fn c14_a_transaction_may_be_sent_in_any_form() {
    let (_dir, server, _client, mut wire) = with_pool(8);
    let bytes =
        [frame("HELLO 3"), frame("MULTI"), frame("CLAIM ns/warm KEY a"), b"ECHO hi\r\n\r\n".to_vec(), frame("EXEC")]
            .concat();
    for byte in bytes {
        wire.send(&[byte]);
    }
    wire.receive();
    let response: Vec<String> = (0..4).map(|_| text(&wire.receive())).collect();
    assert!(
        response[3].starts_with("[{key=a ")
            && response[3].contains(" node=nil created_at_ms=")
            && response[3].ends_with("} hi]"),
        "{response:?}"
    );
    // The protocol version changes at its command in the transaction.
    let response = all(&mut wire, &["MULTI", "CLAIM ns/warm KEY a", "HELLO 2", "CLAIM ns/warm KEY a", "EXEC"]);
    assert!(response[4].starts_with("[{key=a ") && response[4].contains("] [a "), "{response:?}");
    let mut deep = Wire::connect(server.resp.unwrap());
    assert_eq!(all(&mut deep, &["CLIENT SETNAME me", "MULTI", "CLAIM ns/warm KEY b"])[2], "QUEUED");
    for _ in 0..20 {
        assert_eq!(all(&mut deep, &["PING"; 8]), ["QUEUED"; 8]);
    }
    let answers = texts(&deep.call("EXEC"));
    assert!(answers[0].starts_with("[b "), "{answers:?}");
    assert_eq!(answers[1..], ["PONG"; 160]);
    assert_eq!(deep.reply_text("CLIENT GETNAME"), "me");
}

#[test]
fn c14_a_transaction_is_bounded() {
    let (_dir, _server, mut client, mut wire) = with_pool(1);
    let mut commands = vec!["MULTI", "CLAIM ns/warm KEY a"];
    commands.extend(vec!["PING"; 10_000]);
    commands.push("EXEC");
    let response = all(&mut wire, &commands);
    assert_eq!(response[10_000], "QUEUED");
    assert_eq!(response[10_001], "-ERR a transaction has at most 10000 commands and 4194304 bytes");
    assert_eq!(response[10_002], ABORTED);
    assert_eq!(held(&mut client), [""; 0]);
    let commands = [vec!["MULTI"], vec!["PING"; 10_000], vec!["EXEC"]].concat();
    let response = all(&mut wire, &commands);
    assert_eq!(response[10_001], format!("[{}]", ["PONG"; 10_000].join(" ")));
    let long = format!("ECHO {}", "x".repeat(60_000));
    let commands = [vec!["MULTI"], vec![&*long; 70], vec!["EXEC"]].concat();
    let response = all(&mut wire, &commands);
    assert_eq!((&*response[69], &*response[71]), ("QUEUED", ABORTED));
    assert!(response[70].starts_with("-ERR a transaction has at most "), "{}", response[70]);
    assert_eq!(wire.reply_text("PING"), "PONG");
}

/// As in Redis nothing blocks within a transaction: earlier replies would grow stale in an incomplete array.
#[test]
fn c14_no_command_waits_within_a_transaction() {
    let (_dir, server, mut client, mut wire) = with_pool(1);
    let mut other = Wire::connect(server.resp.unwrap());
    assert!(other.reply_text("CLAIM ns/warm KEY held").starts_with("[held "));
    wire.send(
        &["MULTI", "PING", "CLAIM ns/warm KEY a WAIT 60000", "CLAIMS 1 ns/warm KEYS b WAIT 60000", "EXEC"]
            .map(frame)
            .concat(),
    );
    let response: Vec<String> = (0..5).map(|_| text(&wire.receive())).collect();
    let full = "-NOCAPACITY pool_exhausted no worker that the request allows is free";
    assert_eq!(response[4], format!("[PONG {full} [{full}]]"));
    assert_eq!(client.metric(r#"hotpool_claims_pending{pool="ns/warm"}"#), 0);
    assert_eq!(other.reply_text("RELEASE ns held *"), "1");
    assert!(other.reply_text("CLAIM ns/warm KEY d").starts_with("[d "));
}

/// A rejected command must not change the meaning of the next.
#[test]
fn c14_a_client_that_disables_replies_is_not_served() {
    let (_dir, server, mut client, mut wire) = with_pool(1);
    assert_eq!(wire.reply_text("CLIENT REPLY ON"), "OK");
    for mode in ["OFF", "SKIP"] {
        let mut wire = Wire::connect(server.resp.unwrap());
        wire.send(&[frame(&format!("CLIENT REPLY {mode}")), frame("CLAIM ns/warm KEY a")].concat());
        assert_eq!(wire.rest(), "-ERR CLIENT REPLY is always ON: every command is answered; the connection ends\r\n");
    }
    assert_eq!(held(&mut client), [""; 0]);
}
