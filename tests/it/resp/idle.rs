//! Connections on which nothing happens.

use super::wire::{Wire, metric, text, with_pool_in};

const IDLE: usize = 2_000;
const ENDED: &str = r#"hotpool_resp_connections_ended_total{reason="idle"}"#;

#[test]
fn h06_idle_connections_end_and_those_in_use_stay() {
    let wanted = IDLE as u64 + 500;
    assert!(rlimit::increase_nofile_limit(wanted).unwrap() >= wanted, "{wanted} open files are needed");
    let (_dir, server, mut client, mut holder) = with_pool_in(1, &[("HOTPOOL__SERVER__IDLE_MS", "1000")]);
    let address = server.resp.unwrap();
    assert_eq!(holder.said("CONFIG GET timeout"), "[timeout 1]");
    assert!(holder.said("CLAIM ns/warm KEY a RESERVE 0").starts_with("[a "));
    // One waits for room, one is in a transaction, one asks for something now and then.
    let mut waiting = Wire::connect(address);
    waiting.send(b"CLAIM ns/warm KEY b WAIT 60000\r\n");
    let mut transaction = Wire::connect(address);
    assert_eq!(transaction.said("MULTI"), "OK");
    let mut busy = Wire::connect(address);
    let mut idle: Vec<Wire> = (0..IDLE).map(|_| Wire::connect(address)).collect();
    for wire in idle.iter_mut().step_by(2) {
        assert_eq!(wire.said("PING"), "PONG");
    }
    while metric(&mut client, ENDED) < IDLE as u64 {
        assert_eq!(busy.said("PING"), "PONG");
        assert_eq!(holder.said("PING"), "PONG");
    }
    for wire in &mut idle {
        assert_eq!(wire.rest(), "", "no word that a client could take for an answer");
    }
    assert_eq!(transaction.said("RELEASE ns a *"), "QUEUED");
    assert_eq!(transaction.said("EXEC"), "[1]");
    assert!(text(&waiting.receive()).starts_with("[b "));
    assert_eq!(metric(&mut client, ENDED), IDLE as u64);
}

#[test]
fn h06_without_a_limit_nobody_is_idle_for_too_long() {
    let (_dir, _server, _client, mut wire) = with_pool_in(1, &[("HOTPOOL__SERVER__IDLE_MS", "0")]);
    assert_eq!(wire.said("CONFIG GET timeout"), "[timeout 0]");
    assert_eq!(wire.said("PING"), "PONG");
}
