use serde_json::json;
use tempfile::TempDir;

use crate::server::{Server, until, with_pool};

#[test]
fn idle_connections_do_not_stop_others() {
    const IDLE: usize = 10_000;
    let expected = IDLE as u64 + 500;
    let allowed = rlimit::increase_nofile_limit(expected).unwrap();
    assert!(allowed >= expected, "this test needs {expected} open files, and the hard limit is {allowed}: raise it");
    let (_dir, server, mut client) = with_pool(1);
    let idle: Vec<_> = (0..IDLE).map(|_| server.client()).collect();
    for i in 0..50 {
        let key = format!("k{i}");
        let created = client.post("/v1/claims", &json!({"namespace": "ns", "pool": "warm", "key": key})).expect(201);
        let body = json!({"fence": created["claim"]["fence"]});
        client.post(&format!("/v1/claims/ns/{key}:release"), &body).expect(200);
    }
    // A new client is served too, and the idle ones can still be used.
    server.client().get("/healthz").expect(200);
    let scrape = client.get("/metrics");
    let open = scrape.text().lines().find_map(|line| line.strip_prefix("hotpool_http_connections ")).unwrap();
    assert!(open.parse::<usize>().unwrap() > IDLE, "{open}");
    for mut sleeper in idle.into_iter().step_by(1_000) {
        sleeper.get("/healthz").expect(200);
    }
}

#[test]
fn an_excess_connection_is_rejected_closed_and_counted() {
    let dir = TempDir::new().unwrap();
    let server = Server::start_with(dir.path(), &[], &[("HOTPOOL__SERVER__MAX_CONNECTIONS", "3")]);
    let mut held: Vec<_> = (0..3).map(|_| server.client()).collect();
    for client in &mut held {
        client.get("/healthz").expect(200);
    }
    for sends_request in [true, false] {
        let mut client = server.client();
        if sends_request {
            client.get("/v1/pools").expect_error(503, "UNAVAILABLE", Some("connections"), None);
        }
        assert!(client.is_closed());
    }
    until("both are counted", || held[0].get("/metrics").text().contains("hotpool_http_connections_refused_total 2\n"));
    // A returned permit can be taken.
    held.pop();
    until("a connection is accepted again", || {
        let answer = server.client().get("/v1/pools");
        assert!([200, 503].contains(&answer.status), "{}", answer.text());
        answer.status == 200
    });
}

#[test]
fn half_a_request_blocks_no_other() {
    let (_dir, server, mut good) = with_pool(1);
    let halves: [&[u8]; 5] = [
        b"",
        b"P",
        b"PRI * HTTP/2.0\r\n",
        b"POST /v1/claims HTTP/1.1\r\nhost: localhost\r\ncontent-le",
        b"POST /v1/claims HTTP/1.1\r\nhost: localhost\r\ncontent-length: 60\r\n\r\n{\"namespace\":\"ns\",",
    ];
    let mut waiting = Vec::new();
    for half in halves {
        let mut client = server.client();
        client.send(half).unwrap();
        waiting.push(client);
    }
    let created = good.post("/v1/claims", &json!({"namespace": "ns", "pool": "warm", "key": "a"})).expect(201);
    // The client with half a body disconnects: it claimed nothing.
    drop(waiting.pop());
    let claims = good.get("/v1/claims").expect(200)["items"].take();
    assert_eq!(claims.as_array().unwrap().len(), 1);
    assert_eq!(claims[0]["fence"], created["claim"]["fence"]);
    // The half head continues where it stopped.
    let mut slow = waiting.pop().unwrap();
    let body = r#"{"namespace":"ns","pool":"warm","key":"a"}"#;
    slow.send(format!("ngth: {}\r\n\r\n{body}", body.len()).as_bytes()).unwrap();
    slow.receive().unwrap().expect(200);
}

#[test]
fn a_body_that_never_arrives_is_504() {
    let dir = TempDir::new().unwrap();
    let waits = [("HOTPOOL__SERVER__REQUEST_TIMEOUT_MS", "200"), ("HOTPOOL__STORE__WAIT_MS", "100")];
    let server = Server::start_with(dir.path(), &[], &waits);
    let mut client = server.client();
    client.send(b"POST /v1/claims HTTP/1.1\r\nhost: localhost\r\ncontent-length: 60\r\n\r\n{").unwrap();
    client.receive().unwrap().expect_error(504, "DEADLINE_EXCEEDED", None, None);
    server.client().get("/healthz").expect(200);
}

#[test]
fn requests_can_be_pipelined() {
    let (_dir, server, _good) = with_pool(1);
    let mut client = server.client();
    client.send("GET /healthz HTTP/1.1\r\nhost: localhost\r\n\r\n".repeat(100).as_bytes()).unwrap();
    for _ in 0..100 {
        client.receive().unwrap().expect(200);
    }
}
