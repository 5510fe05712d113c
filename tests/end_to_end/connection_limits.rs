//! Responses of the service while one peer occupies all connections that it can.

use std::fs::File;
use std::net::SocketAddr;
use std::process::Command;

use serde_json::json;
use tempfile::TempDir;
use tonic::transport::Endpoint;
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_client::HealthClient;

use crate::client::{Client, Response};
use crate::server::{Server, command, until};

/// Connection limit of the services in these tests.
const MAX: usize = 3_000;
/// Number of idle connections beyond the limit.
const BEYOND: usize = 500;

/// Raises the limit of open files of this process.
fn allow_files(expected: u64) {
    let allowed = rlimit::increase_nofile_limit(expected).unwrap();
    assert!(allowed >= expected, "this test needs {expected} open files, and the hard limit is {allowed}: raise it");
}

fn get(address: SocketAddr, path: &str) -> std::io::Result<Response> {
    let mut client = Client::connect(address)?;
    client.send(format!("GET {path} HTTP/1.1\r\nhost: localhost\r\n\r\n").as_bytes())?;
    client.receive()
}

/// Waits until the service has accepted so many HTTP connections: the accept queue counts for nothing.
fn wait_until_taken(client: &mut Client, connections: usize) {
    let expected = format!("\nhotpool_http_connections {connections}\n");
    until("the connections are accepted", || client.get("/metrics").text().contains(&expected));
}

fn expect_probes(address: SocketAddr) {
    for path in ["/healthz", "/readyz", "/metrics"] {
        let answer = get(address, path).unwrap_or_else(|error| panic!("{path} is not answered: {error}"));
        assert_eq!((answer.status, answer.header("connection")), (200, Some("close")), "{path}");
    }
}

#[tokio::test]
async fn h06_probes_answer_while_one_peer_holds_all_connections() {
    allow_files((MAX + BEYOND + 500) as u64);
    let dir = TempDir::new().unwrap();
    let max = MAX.to_string();
    let server = Server::start_with(dir.path(), &[], &[("HOTPOOL__SERVER__MAX_CONNECTIONS", &max)]);
    let mut first = server.client();
    let idle: Vec<Client> = (1..MAX).map(|_| server.client()).collect();
    wait_until_taken(&mut first, MAX);
    let beyond: Vec<Client> = (0..BEYOND).map(|_| server.client()).collect();
    for _ in 0..3 {
        expect_probes(server.address);
        let endpoint = Endpoint::from_shared(format!("http://{}", server.address)).unwrap();
        let mut health = HealthClient::new(endpoint.connect().await.unwrap());
        health.check(HealthCheckRequest::default()).await.unwrap();
    }
    // Every other request is rejected with its reason, however much of it is sent.
    let body = json!({"items": vec![json!({"namespace": "ns", "pool": "warm"}); 9_000]});
    for mut client in [server.client(), server.client()] {
        let rejected = client.post("/v1/claims:batch", &body);
        rejected.expect_error(503, "UNAVAILABLE", Some("connections"), None);
        assert_eq!(rejected.header("connection"), Some("close"));
        assert!(client.is_closed());
    }
    // Excess connections without a request are closed.
    for mut client in beyond {
        assert!(client.is_closed());
    }
    let counted = |client: &mut Client, outcome: &str| {
        client.metric(&format!(r#"hotpool_http_excess_connections_total{{outcome="{outcome}"}}"#))
    };
    let (answered, rejected) = (counted(&mut first, "answered"), counted(&mut first, "refused"));
    assert_eq!((answered, rejected), (12, 2));
    // Every excess connection is counted once, by its outcome.
    until("every excess connection is counted", || {
        counted(&mut first, "silent") + counted(&mut first, "displaced") >= BEYOND as u64
    });
    // A returned permit can be taken by anyone.
    drop(idle);
    until("a connection is accepted again", || {
        get(server.address, "/v1/pools").is_ok_and(|answer| answer.status == 200)
    });
}

#[test]
fn h06_probes_answer_when_open_files_are_few() {
    const FILES: usize = 700;
    allow_files(2_000);
    let dir = TempDir::new().unwrap();
    let serve = command(dir.path(), &["--resp-listen", "127.0.0.1:0"], &[]);
    let mut limited = Command::new("sh");
    limited.arg("-c").arg(format!("ulimit -n {FILES} && exec \"$0\" \"$@\"")).arg(serve.get_program());
    limited.args(serve.get_args()).stderr(File::create(dir.path().join("log")).unwrap());
    let server = Server::start_command(dir.path(), limited);
    // More connections than both ports together may have.
    let resp = server.resp.unwrap();
    let _idle: Vec<Client> =
        [server.address, resp].iter().flat_map(|at| (0..FILES).map(|_| Client::connect(*at).unwrap())).collect();
    for _ in 0..3 {
        expect_probes(server.address);
    }
    let log = std::fs::read_to_string(dir.path().join("log")).unwrap();
    assert!(log.contains("server.max_connections") && !log.contains("cannot accept a connection"), "{log}");
}

/// Probe whose client has sent more than is read.
#[test]
fn h06_an_excess_connection_is_answered_before_it_is_closed() {
    let dir = TempDir::new().unwrap();
    let server = Server::start_with(dir.path(), &[], &[("HOTPOOL__SERVER__MAX_CONNECTIONS", "1")]);
    let mut only = server.client();
    only.get("/healthz").expect(200);
    let rest = vec![b' '; 4 << 20];
    for path in ["/healthz", "/readyz", "/metrics"] {
        let mut client = server.client();
        let head = format!("GET {path} HTTP/1.1\r\nhost: localhost\r\ncontent-length: {}\r\n\r\n", rest.len());
        client.send(head.as_bytes()).unwrap();
        // A reset would end this early, and lose the response.
        client.send(&rest).unwrap_or_else(|error| panic!("{path}: {error}"));
        assert_eq!(client.receive().unwrap_or_else(|error| panic!("{path}: {error}")).status, 200);
    }
}
