//! Idle timeout of connections.

use std::thread::sleep;
use std::time::{Duration, Instant};

use super::wire::{Wire, text, with_pool_in};

const IDLE: usize = 2_000;
const ENDED: &str = r#"hotpool_resp_connections_ended_total{reason="idle"}"#;

#[test]
fn h06_idle_connections_end_and_used_ones_stay() {
    let expected = IDLE as u64 + 500;
    assert!(rlimit::increase_nofile_limit(expected).unwrap() >= expected, "{expected} open files are needed");
    let (_dir, server, mut client, mut holder) = with_pool_in(1, &[("HOTPOOL__SERVER__IDLE_MS", "1000")]);
    let address = server.resp.unwrap();
    assert_eq!(holder.reply_text("CONFIG GET timeout"), "[timeout 1]");
    assert!(holder.reply_text("CLAIM ns/warm KEY a RESERVE 0").starts_with("[a "));
    // A connection has a queued claim, and another sends a command now and then.
    let mut waiting = Wire::connect(address);
    waiting.send(b"CLAIM ns/warm KEY b WAIT 60000\r\n");
    let mut busy = Wire::connect(address);
    let mut idle: Vec<Wire> = (0..IDLE).map(|_| Wire::connect(address)).collect();
    for wire in idle.iter_mut().step_by(2) {
        assert_eq!(wire.reply_text("PING"), "PONG");
    }
    while client.metric(ENDED) < IDLE as u64 {
        assert_eq!(busy.reply_text("PING"), "PONG");
        assert_eq!(holder.reply_text("PING"), "PONG");
    }
    for wire in &mut idle {
        assert_eq!(wire.rest(), "", "no word that a client could take for an answer");
    }
    assert_eq!(holder.reply_text("RELEASE ns a *"), "1");
    assert!(text(&waiting.receive()).starts_with("[b "));
    assert_eq!(client.metric(ENDED), IDLE as u64);
}

/// Transactions may be silent for longer than other connections, but not forever.
#[test]
fn h06_a_transaction_that_is_silent_for_four_timeouts_is_discarded() {
    let (_dir, server, mut client, mut other) = with_pool_in(1, &[("HOTPOOL__SERVER__IDLE_MS", "1000")]);
    let [mut transaction, mut busy] = [(); 2].map(|()| Wire::connect(server.resp.unwrap()));
    assert_eq!(busy.reply_text("MULTI"), "OK");
    assert_eq!(transaction.reply_text("MULTI"), "OK");
    let begun = Instant::now();
    assert_eq!(transaction.reply_text("CLAIM ns/warm KEY a RESERVE 0"), "QUEUED");
    while client.metric(ENDED) < 1 {
        assert_eq!(other.reply_text("PING"), "PONG");
        // The pace of the busy transaction: slower than a command may queue up, faster than the timeout.
        sleep(Duration::from_millis(100));
        assert_eq!(busy.reply_text("PING"), "QUEUED");
        assert!(begun.elapsed() < Duration::from_secs(30), "the transaction is kept for ever");
    }
    assert!(begun.elapsed() >= Duration::from_secs(4), "ended after {:?}", begun.elapsed());
    assert_eq!(transaction.rest(), "");
    let pongs = busy.reply_text("EXEC");
    assert!(pongs.starts_with("[PONG"), "{pongs}");
    client.get("/v1/claims/ns/a").expect_error(404, "NOT_FOUND", None, None);
}

#[test]
fn h06_without_a_timeout_idle_connections_stay() {
    let (_dir, _server, _client, mut wire) = with_pool_in(1, &[("HOTPOOL__SERVER__IDLE_MS", "0")]);
    assert_eq!(wire.reply_text("CONFIG GET timeout"), "[timeout 0]");
    assert_eq!(wire.reply_text("PING"), "PONG");
}
