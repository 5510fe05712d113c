//! Bytes that no well-behaved client would send.

use std::io::{ErrorKind, Read as _, Write as _};
use std::time::{Duration, Instant};

use super::wire::{Wire, frame, text, with_pool, with_pool_in};
use crate::server::until;

fn ended(client: &mut crate::client::Client, reason: &str) -> u64 {
    client.metric(&format!(r#"hotpool_resp_connections_ended_total{{reason="{reason}"}}"#))
}

#[test]
fn an_invalid_frame_gets_an_error_and_ends_only_its_connection() {
    let (_dir, _server, mut client, mut good) = with_pool(1);
    let address = good.stream().peer_addr().unwrap();
    let table: [(&[u8], &str); 13] = [
        (b"*1\r\n$9223372036854775808\r\n", "invalid bulk length"),
        (b"*1\r\n$9223372036854775807\r\n", "invalid bulk length"),
        (b"*1\r\n$-5\r\n", "invalid bulk length"),
        (b"*1\r\n$65537\r\n", "invalid bulk length"),
        (b"*9223372036854775807\r\n", "invalid multibulk length"),
        (b"*-2\r\n", "invalid multibulk length"),
        (b"*1\r\n$2\r\nPING\r\n", "expected CRLF"),
        (b"*1\r\n$9\r\nPING\r\n*1\r\n$4\r\nPING\r\n", "expected CRLF"),
        (b"*1\r\n:5\r\n", "expected '$', got ':'"),
        (b"*2\r\n$4\r\nPING\r\n#t\r\n", "expected '$', got '#'"),
        (b"%1\r\n+a\r\n+b\r\n", "expected '*' or a command name, got '%'"),
        (b"\x16\x03\x01\x02\x00\x01", "got 0x16"),
        (&[b'a'; (64 << 10) + 1], "too big inline request"),
    ];
    for (bytes, parts) in table {
        let mut wire = Wire::connect(address);
        // Earlier commands are answered.
        wire.send(&[&frame("PING"), bytes].concat());
        assert_eq!(text(&wire.receive()), "PONG");
        let rest = wire.rest();
        assert!(rest.starts_with("-ERR Protocol error: ") && rest.contains(parts), "{parts}: {rest}");
        assert!(rest.ends_with("\r\n") && rest.lines().count() == 1, "{rest}");
    }
    assert_eq!(ended(&mut client, "protocol"), table.len() as u64);
    assert!(good.reply_text("CLAIM ns/warm KEY a").starts_with("[a "), "nothing of it was a claim");
}

#[test]
fn h01_requests_that_a_browser_can_send_end_the_connection() {
    let (_dir, _server, mut client, mut good) = with_pool(1);
    let address = good.stream().peer_addr().unwrap();
    let behind = "Host: localhost:7071\r\nContent-Length: 99\r\n\r\nCLAIM ns/warm KEY page\r\n";
    let lines = [
        "POST / HTTP/1.1",
        "post / http/1.1",
        "GET / HTTP/1.1",
        "HEAD / HTTP/1.0",
        "PUT / HTTP/1.1",
        "DELETE / HTTP/1.1",
        "OPTIONS / HTTP/1.1",
        "PATCH / HTTP/1.1",
        "CONNECT a:1 HTTP/1.1",
        "TRACE / HTTP/1.1",
        "POST",
        "PRI * HTTP/2.0",
        "Host: localhost",
        "host:",
        "BREW /pot HTTP/1.1",
    ];
    for line in lines {
        let mut wire = Wire::connect(address);
        wire.send(format!("{line}\r\n{behind}").as_bytes());
        let rest = wire.rest();
        assert_eq!(rest, "-ERR Protocol error: this port does not speak HTTP\r\n", "{line}");
    }
    assert_eq!(ended(&mut client, "http"), lines.len() as u64);
    // People may try a Redis command by hand, and any word may be sent as a frame.
    assert!(good.reply_text("GET HTTP/1.1").contains("unknown command 'GET'"));
    good.send(b"GET key\r\n");
    assert!(text(&good.receive()).contains("unknown command 'GET'"));
    assert!(good.reply_text("CLAIM ns/warm KEY a").starts_with("[a "), "nothing of it was a claim");
}

#[test]
fn commands_may_arrive_byte_by_byte() {
    let (_dir, _server, _client, mut wire) = with_pool(2);
    let bytes = [frame("CLAIM ns/warm KEY a"), b"CLAIM ns/warm KEY b\r\n".to_vec(), frame("RELEASE ns a *")].concat();
    for byte in bytes {
        wire.send(&[byte]);
    }
    assert!(text(&wire.receive()).starts_with("[a "));
    assert!(text(&wire.receive()).starts_with("[b "));
    assert_eq!(text(&wire.receive()), "1");
}

#[test]
fn an_incomplete_command_times_out() {
    let waits = [("HOTPOOL__SERVER__REQUEST_TIMEOUT_MS", "300"), ("HOTPOOL__STORE__WAIT_MS", "100")];
    let (_dir, _server, mut client, mut idle) = with_pool_in(1, &waits);
    let mut wire = Wire::connect(idle.stream().peer_addr().unwrap());
    wire.send(b"*2\r\n$4\r\nPING\r\n$2\r\nh");
    assert_eq!(wire.rest(), "-ERR Protocol error: the command was not complete in time\r\n");
    assert_eq!(ended(&mut client, "slow_writer"), 1);
    // Silence between commands is allowed.
    assert_eq!(idle.reply_text("PING"), "PONG");
}

#[test]
fn a_client_that_never_reads_is_dropped() {
    let waits = [("HOTPOOL__SERVER__REQUEST_TIMEOUT_MS", "500"), ("HOTPOOL__STORE__WAIT_MS", "100")];
    let (_dir, _server, mut client, mut good) = with_pool_in(1, &waits);
    let wire = Wire::connect(good.stream().peer_addr().unwrap());
    let mut to = wire.stream().try_clone().unwrap();
    let before = client.metric("process_resident_memory_bytes");
    // A few bytes request a large reply.
    let chunk = frame("COMMAND DOCS").repeat(100);
    let begun = Instant::now();
    let error = loop {
        if let Err(error) = to.write_all(&chunk) {
            break error;
        }
        assert!(begun.elapsed().as_secs() < 25, "it is not dropped");
    };
    assert!(matches!(error.kind(), ErrorKind::ConnectionReset | ErrorKind::BrokenPipe), "{error}");
    assert_eq!(ended(&mut client, "slow_reader"), 1);
    let after = client.metric("process_resident_memory_bytes");
    assert!(after < before + (32 << 20), "{before} -> {after}");
    assert_eq!(good.reply_text("PING"), "PONG");
}

#[test]
fn a_slow_reader_is_not_dropped() {
    const REQUEST_TIMEOUT: Duration = Duration::from_secs(1);
    let waits = [("HOTPOOL__SERVER__REQUEST_TIMEOUT_MS", "1000"), ("HOTPOOL__STORE__WAIT_MS", "100")];
    let (_dir, _server, _client, wire) = with_pool_in(1, &waits);
    let (mut to, mut from) = (wire.stream().try_clone().unwrap(), wire.stream().try_clone().unwrap());
    const ASKED: usize = 2_000;
    let sender = std::thread::spawn(move || to.write_all(&frame("COMMAND DOCS").repeat(ASKED)));
    let mut bytes = vec![0; 256 << 10];
    let (mut read, mut size) = (0, None);
    // The whole reply takes twice as long as a request may, while the client keeps reading.
    let begun = Instant::now();
    while size.is_none_or(|size: usize| read < size * ASKED) {
        let took = from.read(&mut bytes).unwrap();
        assert!(took > 0, "closed after {read}");
        read += took;
        if size.is_none() {
            let more = bytes[1..took].windows(8).position(|part| part == b"*50\r\n$5\r");
            size = more.map(|at| at + 1);
        }
        if let Some(size) = size {
            let due = 2 * REQUEST_TIMEOUT.mul_f64(read as f64 / (size * ASKED) as f64);
            until("the next part is due", || begun.elapsed() >= due);
        }
    }
    assert!(begun.elapsed() > REQUEST_TIMEOUT, "read within {:?}", begun.elapsed());
    sender.join().unwrap().unwrap();
}

#[test]
fn large_commands_share_a_budget() {
    let (_dir, _server, mut client, mut good) = with_pool(1);
    let address = good.stream().peer_addr().unwrap();
    // Each announces arguments of 64 KiB up to the largest command, and sends nearly all of them.
    let word = [format!("${}\r\n", 64 << 10).into_bytes(), vec![b'a'; 64 << 10], b"\r\n".to_vec()].concat();
    let most = [b"*127\r\n".to_vec(), word.repeat(126)].concat();
    let mut held = Vec::new();
    let rejected = loop {
        assert!(held.len() < 64, "the number of connections is not bounded");
        let wire = Wire::connect(address);
        let mut to = wire.stream().try_clone().unwrap();
        let sent = to.write_all(&most);
        held.push(wire);
        if sent.is_err() || ended(&mut client, "no_room") > 0 {
            break held.pop();
        }
    };
    let response = rejected.unwrap().rest();
    assert!(response.is_empty() || response.starts_with("-OVERLOADED "), "{response}");
    assert!(client.metric("process_resident_memory_bytes") < 900 << 20);
    // Small commands need no permit.
    assert!(good.reply_text("CLAIM ns/warm KEY a").starts_with("[a "));
    // A client that leaves frees its permit.
    drop(held);
    let mut wire = Wire::connect(address);
    let n = 9_000;
    let keys: String = (0..n).map(|i| format!(" key-{i}-{}", "k".repeat(100))).collect();
    let response = loop {
        let response = text(&wire.call(&format!("CLAIMS {n} ns/warm KEYS{keys}")));
        if !response.starts_with("-OVERLOADED") {
            break response;
        }
        wire = Wire::connect(address);
    };
    assert!(response.contains("-NOCAPACITY"), "{}", &response[..100]);
}
