//! Large numbers of connections at a time.

use super::wire::{Wire, with_pool, with_pool_in};
use crate::server::until;

#[test]
fn ten_thousand_idle_connections_take_little_memory() {
    const IDLE: usize = 10_000;
    let expected = IDLE as u64 + 500;
    match rlimit::increase_nofile_limit(expected) {
        Ok(limit) if limit >= expected => {}
        other => {
            eprintln!(
                "SKIPPED ten_thousand_idle_connections_take_little_memory: {expected} open files are not allowed: {other:?}"
            );
            return;
        }
    }
    let (_dir, server, mut client, mut good) = with_pool(1);
    let before = client.metric("process_resident_memory_bytes");
    let address = server.resp.unwrap();
    let mut idle: Vec<Wire> = (0..IDLE).map(|_| Wire::connect(address)).collect();
    for wire in &mut idle {
        // Each was used once.
        let response = wire.reply_text("CLAIM ns/warm KEY a");
        assert!(response.starts_with("[a "), "{response}");
    }
    let after = client.metric("process_resident_memory_bytes");
    let each = (after - before) / IDLE as u64;
    assert!(each < 16 << 10, "{each} bytes a connection");
    assert_eq!(client.metric("hotpool_resp_connections"), IDLE as u64 + 1);
    assert_eq!(good.reply_text("RELEASE ns a *"), "1");
    drop(idle);
    until("one connection is left", || client.metric("hotpool_resp_connections") <= 1);
    assert_eq!(good.reply_text("PING"), "PONG");
}

#[test]
fn an_excess_connection_gets_an_error_and_is_counted() {
    let (_dir, server, mut client, mut first) = with_pool_in(1, &[("HOTPOOL__SERVER__MAX_CONNECTIONS", "3")]);
    let address = server.resp.unwrap();
    let mut held = vec![Wire::connect(address), Wire::connect(address)];
    for wire in &mut held {
        assert_eq!(wire.reply_text("PING"), "PONG");
    }
    for _ in 0..2 {
        assert_eq!(Wire::connect(address).rest(), "-ERR max number of clients reached\r\n");
    }
    // HTTP has its own limit.
    let series = r#"hotpool_resp_connections_ended_total{reason="too_many"}"#;
    assert_eq!(client.metric(series), 2);
    assert!(first.reply_text("INFO").contains("connected_clients:3\r\nmaxclients:3\r\n"));
    // A returned permit can be taken.
    held.pop();
    until("two connections are left", || client.metric("hotpool_resp_connections") <= 2);
    assert_eq!(Wire::connect(address).reply_text("PING"), "PONG");
}
