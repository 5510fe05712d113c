//! Memory budgets that all requests share: queued requests and slow readers do not block others.

use std::io::{Read as _, Write as _};
use std::thread::spawn;
use std::time::Duration;

use bytes::Bytes;
use hotpool::api::grpc::proto::TakeClaimRequest;
use http_body_util::{BodyExt as _, Empty};
use hyper::client::conn::http2;
use hyper::{Request, StatusCode};
use hyper_util::rt::{TokioExecutor, TokioIo};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::net::TcpStream;
use tokio::time::timeout;
use tonic::Code;

use crate::client::Client;
use crate::grpc::grpc_client::{Raw, framed, take};
use crate::server::{Server, until, with_pool};

const CLAIMS: &str = "/v1/claims";
/// Number of requests without an announced length, each of which could be a quarter of the budget.
const LARGE: usize = 4;
const MESSAGE_BYTES_MAX: usize = 8 << 20;
const TIMEOUT: Duration = Duration::from_secs(30);

/// Starts a service that accepts bodies of 64 MiB, with one worker, which is held.
fn full() -> (TempDir, Server, Client) {
    let dir = TempDir::new().unwrap();
    let server = Server::start_with(dir.path(), &[], &[("HOTPOOL__SERVER__MAX_BODY_BYTES", "67108864")]);
    let mut client = server.client();
    client.put("/v1/pools/ns/warm", &json!({"shards": 1})).expect(201);
    client.put("/v1/pools/ns/warm/workers/w0", &json!({})).expect(201);
    client.post(CLAIMS, &json!({"namespace": "ns", "pool": "warm", "key": "held", "reserve_ms": 0})).expect(201);
    (dir, server, client)
}

fn chunked(path: &str) -> String {
    format!("POST {path} HTTP/1.1\r\nhost: localhost\r\ntransfer-encoding: chunked\r\n\r\n")
}

/// Waits until so many claims are queued.
fn until_waiting(client: &mut Client, expected: usize) {
    let demand = "/v1/pools/ns/warm/demand";
    until("the claims wait", || client.get(demand).expect(200)["waiting"] == json!(expected));
}

/// Whether the budget has space for a large body: then the request itself is rejected as invalid.
fn has_free_budget(client: &mut Client) -> bool {
    let answer = client.request("POST", CLAIMS, &[b' '; 20_000]);
    assert!([400, 503].contains(&answer.status), "{}", answer.text());
    answer.status == 400
}

#[test]
fn q02_queued_claims_do_not_occupy_the_body_budget() {
    let (_dir, server, mut client) = full();
    let claim = |key: String| json!({"namespace": "ns", "pool": "warm", "key": key, "wait_ms": 60_000});
    let single = (0..LARGE).map(|i| (CLAIMS, claim(format!("single{i}"))));
    let batches =
        (0..LARGE).map(|i| ("/v1/claims:batch", json!({"mode": "independent", "items": [claim(format!("batch{i}"))]})));
    let mut waiting = Vec::new();
    for (path, body) in single.chain(batches) {
        let (mut client, body) = (server.client(), body.to_string());
        client.send(format!("{}{:x}\r\n{body}\r\n0\r\n\r\n", chunked(path), body.len()).as_bytes()).unwrap();
        waiting.push(client);
        // Sent one after the other: while several are read, their announced lengths would exceed the budget.
        until_waiting(&mut server.client(), waiting.len());
    }
    assert!(has_free_budget(&mut client), "calls that wait hold the budget");
}

#[test]
fn h06_a_body_of_unknown_length_is_charged_by_its_received_bytes() {
    let (_dir, server, mut client) = full();
    let mut slow: Vec<Client> = (0..LARGE).map(|_| server.client()).collect();
    for client in &mut slow {
        let head = chunked(CLAIMS).replace("\r\n\r\n", "\r\nexpect: 100-continue\r\n\r\n");
        client.send(head.as_bytes()).unwrap();
        // The body is being read.
        assert_eq!(client.receive().unwrap().status, 100);
        client.send(b"1\r\n{\r\n").unwrap();
    }
    assert!(has_free_budget(&mut client), "bodies of a byte hold the budget");
    // All received data counts, up to the limit.
    let mut long = server.client();
    long.send(chunked(CLAIMS).as_bytes()).unwrap();
    let piece = [b"100000\r\n".as_slice(), &[b' '; 1 << 20], b"\r\n"].concat();
    let rejected = spawn(move || {
        while long.send(&piece).is_ok() {}
        long.receive()
    });
    if let Ok(answer) = rejected.join().unwrap() {
        answer.expect_error(413, "INVALID_ARGUMENT", Some("body_too_large"), None);
    }
    until("the budget is free again", || has_free_budget(&mut client));
}

#[tokio::test]
async fn q02_queued_calls_do_not_occupy_the_message_budget() {
    let (_dir, server, mut client) = with_pool(1);
    client.post(CLAIMS, &json!({"namespace": "ns", "pool": "warm", "key": "held", "reserve_ms": 0})).expect(201);
    let mut raw = Raw::open(server.address).await;
    let mut waiting = Vec::new();
    for i in 0..LARGE {
        let request = TakeClaimRequest { wait_ms: Some(60_000), ..take(&format!("a{i}")) };
        let mut message = framed(&request);
        // The rest of 8 MiB is an unknown field.
        prost::encoding::encode_key(1000, prost::encoding::WireType::LengthDelimited, &mut message);
        // Four bytes hold its length; five precede the message.
        let rest = MESSAGE_BYTES_MAX - (message.len() - 5) - 4;
        prost::encoding::encode_varint(rest as u64, &mut message);
        message.resize(message.len() + rest, b'x');
        assert_eq!(message.len() - 5, MESSAGE_BYTES_MAX);
        let length = u32::try_from(message.len() - 5).unwrap();
        message[1..5].copy_from_slice(&length.to_be_bytes());
        let mut call = raw.clone();
        waiting.push(tokio::spawn(async move { call.call("/hotpool.v1.ClaimService/TakeClaim", &[], message).await }));
        let mut server_client = server.client();
        tokio::task::spawn_blocking(move || until_waiting(&mut server_client, i + 1)).await.unwrap();
    }
    let status = raw.call("/hotpool.v1.ClaimService/GetClaim", &[], vec![0, 0, 0, 0x50, 0]).await;
    assert_ne!(status.code(), Code::Unavailable, "calls that wait hold the budget: {status:?}");
    assert!(has_free_budget(&mut client));
    waiting.iter().for_each(tokio::task::JoinHandle::abort);
}

/// Opens an HTTP/2 connection that grants each response a window of so many bytes.
async fn windowed(server: &Server, bytes: u32) -> http2::SendRequest<Empty<Bytes>> {
    let io = TokioIo::new(TcpStream::connect(server.address).await.unwrap());
    let mut builder = http2::Builder::new(TokioExecutor::new());
    let (sender, connection) =
        builder.initial_stream_window_size(bytes).adaptive_window(false).handshake(io).await.unwrap();
    tokio::spawn(connection);
    sender
}

#[tokio::test]
async fn h06_an_unread_response_is_abandoned() {
    let dir = TempDir::new().unwrap();
    let limits = [("HOTPOOL__SERVER__REQUEST_TIMEOUT_MS", "500"), ("HOTPOOL__STORE__WAIT_MS", "100")];
    let server = Server::start_with(dir.path(), &["--store", "memory:"], &limits);
    let get = |path: &str| Request::get(format!("http://localhost{path}")).body(Empty::new()).unwrap();
    for path in ["/metrics", "/healthz", "/v1/openapi.json"] {
        let mut sender = windowed(&server, 0).await;
        let answer = sender.send_request(get(path)).await.unwrap();
        assert_eq!(answer.status(), StatusCode::OK);
        let ended = timeout(TIMEOUT, answer.into_body().collect()).await;
        ended.expect("the stream ends").expect_err("the answer did not fit into the window");
        // A client that reads gets all of it.
        let answer = windowed(&server, 1 << 16).await.send_request(get(path)).await.unwrap();
        let body = answer.into_body().collect().await.unwrap().to_bytes();
        assert!(body.len() > 10, "{path}: {} bytes", body.len());
    }
}

/// Reads a response slowly but steadily: far more than the kernel buffers, for much longer than one chunk may wait.
#[test]
fn h06_a_response_that_is_read_slowly_arrives_completely() {
    // Times six, the limit for a chunk, is 3 s.
    let limits = [("HOTPOOL__SERVER__REQUEST_TIMEOUT_MS", "500"), ("HOTPOOL__STORE__WAIT_MS", "100")];
    let dir = TempDir::new().unwrap();
    let server = Server::start_with(dir.path(), &["--store", "memory:"], &limits);
    let mut client = server.client();
    client.put("/v1/pools/ns/warm", &json!({"shards": 1})).expect(201);
    let labels: serde_json::Map<String, Value> = (0..45).map(|i| (format!("l{i}"), json!("x".repeat(220)))).collect();
    for from in [0, 250] {
        let workers: Vec<_> = (from..from + 250).map(|i| json!({"id": format!("w{i}"), "labels": labels})).collect();
        client.post("/v1/pools/ns/warm/workers:batch", &json!({"workers": workers})).expect(200);
    }
    let mut stream = std::net::TcpStream::connect(server.address).unwrap();
    rustix::net::sockopt::set_socket_recv_buffer_size(&stream, 32 << 10).unwrap();
    stream.set_read_timeout(Some(TIMEOUT)).unwrap();
    let head = b"GET /v1/pools/ns/warm/workers?limit=1000 HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n";
    stream.write_all(head).unwrap();
    let (mut answer, mut piece) = (Vec::new(), vec![0; 64 << 10]);
    loop {
        match stream.read(&mut piece).unwrap() {
            0 => break,
            bytes => answer.extend_from_slice(&piece[..bytes]),
        }
        // The pace of the client, which is what the test is about.
        std::thread::sleep(Duration::from_millis(200));
    }
    let body = answer.windows(4).position(|four| four == b"\r\n\r\n").unwrap() + 4;
    let body: Value = serde_json::from_slice(&answer[body..]).expect("the whole answer");
    assert_eq!(body["items"].as_array().unwrap().len(), 500);
    assert!(answer.len() > 4 << 20, "{} bytes are too few to be kept unread", answer.len());
}
