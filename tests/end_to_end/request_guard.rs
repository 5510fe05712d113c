//! Requests that the guard accepts: by host, by origin, by fetch metadata of browsers. On every edge of the port,
//! before any of the body is read.

use std::net::{SocketAddr, TcpListener};

use bytes::Bytes;
use http_body_util::{BodyExt as _, Full};
use hyper::client::conn::http2::handshake;
use hyper::{Request, Response as HyperResponse};
use hyper_util::rt::{TokioExecutor, TokioIo};
use serde_json::json;
use tempfile::TempDir;
use tokio::net::TcpStream;
use tonic::Code;
use tonic::transport::Endpoint;
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_client::HealthClient;

use crate::client::{Client, Response};
use crate::grpc::grpc_client::{error_of, take};
use crate::server::{Running, Server, command, until, with_pool};
use hotpool::api::grpc::proto::claim_service_client::ClaimServiceClient;

const CLAIM: &str = r#"{"namespace":"ns","pool":"warm","key":"foreign"}"#;

/// Sends a head unchanged, with this body, and returns the response.
fn send(address: SocketAddr, head: &str, body: &str) -> Response {
    let mut client = Client::connect(address).unwrap();
    let head = head.replace('\n', "\r\n");
    client.send(format!("{head}\r\ncontent-length: {}\r\n\r\n{body}", body.len()).as_bytes()).unwrap();
    client.receive().unwrap_or_else(|error| panic!("{head}: {error}"))
}

fn get(address: SocketAddr, path: &str, headers: &str) -> Response {
    send(address, &format!("GET {path} HTTP/1.1\n{headers}"), "")
}

/// Sends a claim with these headers.
fn claim(address: SocketAddr, headers: &str) -> Response {
    send(address, &format!("POST /v1/claims HTTP/1.1\n{headers}"), CLAIM)
}

/// Checks that nothing was claimed, the worker is open and the pool exists.
#[track_caller]
fn expect_untouched(client: &mut Client) {
    assert_eq!(client.get("/v1/claims").expect(200)["items"], json!([]));
    assert_eq!(client.get("/v1/pools/ns/warm/workers/w0").expect(200)["worker"]["schedulability"], "open");
}

/// Sends a request over HTTP/2, with the `:authority` of its URI.
async fn over_http2(address: SocketAddr, request: Request<Full<Bytes>>) -> HyperResponse<Bytes> {
    let io = TokioIo::new(TcpStream::connect(address).await.unwrap());
    let (mut sender, connection) = handshake(TokioExecutor::new(), io).await.unwrap();
    tokio::spawn(connection);
    let (parts, body) = sender.send_request(request).await.unwrap().into_parts();
    HyperResponse::from_parts(parts, body.collect().await.unwrap().to_bytes())
}

fn no_body() -> Full<Bytes> {
    Full::new(Bytes::new())
}

#[tokio::test]
async fn h01_a_foreign_host_is_misdirected_on_every_edge() {
    let (_dir, server, mut client) = with_pool(1);
    let at = server.address;
    // HTTP/1.1, and server-sent events.
    let rejected = claim(at, "host: evil.test:7070");
    rejected.expect_error(421, "INVALID_ARGUMENT", Some("host"), Some("host"));
    for fragments in ["evil.test", "server.hosts", "HOTPOOL__SERVER__HOSTS", "--hosts"] {
        assert!(rejected.text().contains(fragments), "{fragments}: {}", rejected.text());
    }
    get(at, "/v1/pools/ns/warm/events", "host: evil.test").expect_error(
        421,
        "INVALID_ARGUMENT",
        Some("host"),
        Some("host"),
    );
    // The echo of the host is bounded and plain.
    let long = get(at, "/v1/pools", &format!("host: {}.test", "e".repeat(5_000)));
    long.expect_error(421, "INVALID_ARGUMENT", Some("host"), Some("host"));
    // HTTP/2, by authority; and an authority that differs from the Host is rejected.
    let request = Request::post("http://evil.test/v1/claims").body(Full::new(CLAIM.into())).unwrap();
    assert_eq!(over_http2(at, request).await.status(), 421);
    let request = Request::get("http://localhost/v1/pools").header("host", "evil.test").body(no_body()).unwrap();
    assert_eq!(over_http2(at, request).await.status(), 400);
    let request = Request::get(format!("http://{at}/v1/pools")).body(no_body()).unwrap();
    assert_eq!(over_http2(at, request).await.status(), 200);
    // gRPC has the same rejection with its own code.
    let endpoint = Endpoint::from_shared(format!("http://{at}")).unwrap();
    let foreign = endpoint.clone().origin("http://evil.test".parse().unwrap()).connect().await.unwrap();
    let status = ClaimServiceClient::new(foreign).take_claim(take("foreign")).await.unwrap_err();
    assert_eq!(error_of(&status), (Code::InvalidArgument, Some("HOST".to_owned()), Some("host".to_owned())));
    assert!(status.message().contains("evil.test") && status.message().contains("server.hosts"), "{status:?}");
    expect_untouched(&mut client);
    let local = endpoint.origin("http://localhost:1".parse().unwrap()).connect().await.unwrap();
    ClaimServiceClient::new(local).take_claim(take("local")).await.unwrap();
    let scrape = client.get("/metrics");
    assert!(scrape.text().contains(r#"hotpool_requests_refused_total{reason="host"} 5"#), "{}", scrape.text());
    assert!(scrape.text().contains(r#"http_requests_total{route="unmatched",status="421"} 4"#), "{}", scrape.text());
}

#[test]
fn h01_names_of_the_configuration_are_served() {
    let dir = TempDir::new().unwrap();
    let hosts = [("HOTPOOL__SERVER__HOSTS", "Pool.example.com, hot_pool")];
    let server = Server::start_with(dir.path(), &[], &hosts);
    for host in ["pool.example.com", "POOL.EXAMPLE.COM.:80", "hot_pool:7070", "localhost", "[::1]:9", "10.1.2.3"] {
        get(server.address, "/v1/pools", &format!("host: {host}")).expect(200);
    }
    for host in ["example.com", "a.pool.example.com", "pool.example.com.evil.test", "evil.test"] {
        assert_eq!(get(server.address, "/v1/pools", &format!("host: {host}")).status, 421, "{host}");
    }
    // A page of such a host may send requests, whatever its port and scheme.
    let own = "host: 10.1.2.3:7070\norigin: https://pool.example.com";
    get(server.address, "/v1/pools", own).expect(200);
    // The flag takes precedence over the variable.
    let dir = TempDir::new().unwrap();
    let server = Server::start_with(dir.path(), &["--hosts", "a.test,b.test"], &hosts);
    get(server.address, "/v1/pools", "host: b.test").expect(200);
    assert_eq!(get(server.address, "/v1/pools", "host: pool.example.com").status, 421);
}

#[tokio::test]
async fn h01_probes_answer_under_any_host() {
    let (_dir, server, _client) = with_pool(1);
    let at = server.address;
    for path in ["/healthz", "/readyz"] {
        for head in ["HTTP/1.0", "HTTP/1.0\nhost: evil.test", "HTTP/1.1\nhost: evil.test:1", "HTTP/1.1\nhost: "] {
            assert_eq!(send(at, &format!("GET {path} {head}"), "").status, 200, "{path} {head}");
        }
        let page = "host: a.test\norigin: http://evil.test\nsec-fetch-site: cross-site";
        assert_eq!(get(at, path, page).status, 200);
        let request = Request::get(format!("http://evil.test{path}")).body(no_body()).unwrap();
        assert_eq!(over_http2(at, request).await.status(), 200);
    }
    let endpoint = Endpoint::from_shared(format!("http://{at}")).unwrap().origin("http://evil.test".parse().unwrap());
    let mut health = HealthClient::new(endpoint.connect().await.unwrap());
    health.check(HealthCheckRequest::default()).await.unwrap();
    // Only probes are answered without a host.
    for path in ["/metrics", "/v1/pools", "/", "/docs"] {
        assert_eq!(send(at, &format!("GET {path} HTTP/1.0"), "").status, 421, "{path}");
    }
    assert_eq!(send(at, "GET /metrics HTTP/1.0\nhost: 127.0.0.1", "").status, 200);
}

/// Probe under an unknown host, whose reasons would contain names of pools that a page may read.
#[test]
fn h01_a_probe_under_an_unknown_host_gets_no_reasons() {
    let dir = TempDir::new().unwrap();
    let free = || TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    // The store's address is not served, so the service never becomes ready.
    let (at, nowhere) = (free(), format!("redis://{}", free()));
    let listen = at.to_string();
    let _service = Running(command(dir.path(), &["--store", &nowhere, "--listen", &listen], &[]).spawn().unwrap());
    until("it answers", || Client::connect(at).is_ok());
    let reason = "recovering from the store";
    let known = get(at, "/readyz", "host: localhost");
    known.expect_error(503, "UNAVAILABLE", Some("loading"), None);
    assert!(known.text().contains(reason), "{}", known.text());
    for head in ["HTTP/1.0", "HTTP/1.0\nhost: evil.test", "HTTP/1.1\nhost: evil.test:1"] {
        let unknown = send(at, &format!("GET /readyz {head}"), "");
        unknown.expect_error(503, "UNAVAILABLE", Some("loading"), None);
        assert!(!unknown.text().contains(reason), "{head}: {}", unknown.text());
    }
}

#[test]
fn h01_a_request_has_one_host() {
    let (_dir, server, mut client) = with_pool(1);
    for (head, status) in [
        ("GET /v1/pools HTTP/1.1", 400),
        ("GET /healthz HTTP/1.1", 400),
        ("GET /v1/pools HTTP/1.1\nhost: localhost\nhost: localhost", 400),
        ("GET /v1/pools HTTP/1.1\nhost: localhost\nhost: evil.test", 400),
        ("GET /healthz HTTP/1.1\nhost: a.test\nhost: a.test", 400),
        ("GET /v1/pools HTTP/1.0\nhost: localhost\nhost: localhost", 400),
        ("GET /v1/pools HTTP/1.1\nhost: user@localhost", 400),
        ("GET /v1/pools HTTP/1.1\nhost: localhost:port", 400),
        ("GET /v1/pools HTTP/1.1\nhost: localhost, evil.test", 400),
        // The target may name it as well, and then both must agree.
        ("GET http://localhost/v1/pools HTTP/1.1\nhost: localhost", 200),
        ("GET http://evil.test/v1/pools HTTP/1.1\nhost: localhost", 400),
        ("GET http://localhost/v1/pools HTTP/1.1\nhost: evil.test", 400),
        ("GET http://evil.test/v1/pools HTTP/1.1\nhost: evil.test", 421),
        ("GET http://user@localhost/v1/pools HTTP/1.1\nhost: localhost", 400),
        ("GET http://localhost/v1/pools HTTP/1.1", 400),
        ("OPTIONS * HTTP/1.1\nhost: localhost", 404),
        ("OPTIONS * HTTP/1.1\nhost: evil.test", 421),
        ("CONNECT evil.test:80 HTTP/1.1\nhost: evil.test:80", 421),
        ("CONNECT localhost:80 HTTP/1.1\nhost: localhost:80", 404),
    ] {
        let answer = send(server.address, head, "");
        assert_eq!(answer.status, status, "{head}: {}", answer.text());
    }
    expect_untouched(&mut client);
}

#[test]
fn h01_foreign_pages_are_forbidden() {
    let (_dir, server, mut client) = with_pool(1);
    let at = server.address;
    let host = format!("host: {at}");
    for page in [
        "origin: http://evil.test".to_owned(),
        "origin: null".to_owned(),
        "origin: ".to_owned(),
        format!("origin: http://127.0.0.1:{}", at.port() ^ 1),
        format!("origin: http://localhost:{}", at.port()),
        format!("origin: file://{at}"),
        format!("origin: http://{at}\norigin: http://evil.test"),
        "sec-fetch-site: cross-site\nsec-fetch-mode: no-cors".to_owned(),
        "sec-fetch-site: same-site".to_owned(),
        "sec-fetch-site: whatever".to_owned(),
        format!("origin: http://{at}\nsec-fetch-site: cross-site"),
        // A form that is submitted at the top level.
        "sec-fetch-site: cross-site\nsec-fetch-mode: navigate\nsec-fetch-dest: document".to_owned(),
    ] {
        claim(at, &format!("{host}\n{page}")).expect_error(403, "PERMISSION_DENIED", Some("origin"), None);
    }
    // A browser sends a preflight first, which is never granted.
    for (method, page) in [
        ("OPTIONS", "origin: http://evil.test\naccess-control-request-method: DELETE"),
        ("OPTIONS", "access-control-request-method: DELETE"),
        ("GET", "origin: http://evil.test"),
    ] {
        let answer = send(at, &format!("{method} /v1/pools/ns/warm HTTP/1.1\n{host}\n{page}"), "");
        assert!([403, 405].contains(&answer.status), "{page}: {}", answer.status);
        let cors = answer.headers.iter().find(|(name, _)| name.starts_with("access-control-"));
        assert!(cors.is_none(), "{cors:?}");
    }
    expect_untouched(&mut client);
    // Links to a page may be followed; nothing else may be opened that way, and no page within another.
    let link = "sec-fetch-site: cross-site\nsec-fetch-mode: navigate\nsec-fetch-dest: document";
    assert_eq!(get(at, "/docs", &format!("{host}\n{link}")).status, 200);
    assert!([200, 303, 307, 308].contains(&get(at, "/", &format!("{host}\n{link}")).status));
    assert_eq!(get(at, "/v1/pools", &format!("{host}\n{link}")).status, 403);
    let framed = link.replace("document", "iframe");
    assert_eq!(get(at, "/docs", &format!("{host}\n{framed}")).status, 403);
    // Fetch metadata for the service's own page, and for an address that was typed.
    for page in [format!("origin: http://{at}\nsec-fetch-site: same-origin"), "sec-fetch-site: none".to_owned()] {
        get(at, "/v1/pools", &format!("{host}\n{page}")).expect(200);
    }
    let scrape = client.get("/metrics");
    for counted in [r#"{reason="origin"} 9"#, r#"{reason="fetch_site"} 7"#] {
        assert!(scrape.text().contains(&format!("hotpool_requests_refused_total{counted}")), "{}", scrape.text());
    }
}

#[test]
fn h01_a_rejected_body_is_not_read() {
    let (_dir, server, _client) = with_pool(1);
    for headers in ["host: evil.test", "host: localhost\norigin: null", "host: localhost\ncontent-encoding: br"] {
        let mut client = server.client();
        let head = format!("POST /v1/claims HTTP/1.1\n{headers}\nexpect: 100-continue\ncontent-length: 8000000\n\n");
        client.send(head.replace('\n', "\r\n").as_bytes()).unwrap();
        let answer = client.receive().unwrap();
        assert!([421, 403, 415].contains(&answer.status), "{headers}: {}", answer.status);
        assert_eq!(answer.header("connection"), Some("close"), "{headers}");
        assert!(client.is_closed());
    }
    // A client that sends everything without waiting is answered too, and not reset.
    let mut client = server.client();
    let _ = client.send(b"POST /v1/claims HTTP/1.1\r\nhost: evil.test\r\ncontent-length: 4000000\r\n\r\n");
    let _ = client.send(&vec![b' '; 4_000_000]);
    assert_eq!(client.receive().unwrap().status, 421);
}

#[tokio::test]
async fn h01_an_unknown_content_encoding_is_rejected() {
    let (_dir, server, mut client) = with_pool(1);
    for coding in ["gzip", "br", "x-gzip, identity", "identity, deflate", "unknown"] {
        let answer = claim(server.address, &format!("host: localhost\ncontent-encoding: {coding}"));
        answer.expect_error(415, "INVALID_ARGUMENT", Some("content_encoding"), Some("content-encoding"));
    }
    expect_untouched(&mut client);
    claim(server.address, "host: localhost\ncontent-encoding: Identity").expect(201);
    // gRPC has its own code and response.
    let mut raw = crate::grpc::grpc_client::Raw::open(server.address).await;
    let body = crate::grpc::grpc_client::framed(&take("b"));
    let call = "/hotpool.v1.ClaimService/TakeClaim";
    let compressed = [&[1][..], &body[1..]].concat();
    let status = raw.call(call, &[("grpc-encoding", "gzip")], compressed).await;
    assert_eq!(status.code(), Code::Unimplemented, "{status:?}");
    let status = raw.call(call, &[("content-encoding", "gzip")], body).await;
    assert_eq!(error_of(&status).1.as_deref(), Some("CONTENT_ENCODING"), "{status:?}");
}

#[test]
fn h01_responses_have_headers_that_restrict_browsers() {
    let (_dir, server, mut client) = with_pool(1);
    for path in ["/v1/pools", "/v1/claims/ns/none", "/v1/openapi.json", "/healthz", "/metrics", "/docs", "/none"] {
        let answer = client.get(path);
        assert_eq!(answer.header("x-content-type-options"), Some("nosniff"), "{path}");
        let no_store = answer.header("cache-control") == Some("no-store");
        assert_eq!(no_store, path.starts_with("/v1/"), "{path}");
        let policy = answer.header("content-security-policy");
        assert_eq!(policy.is_some_and(|policy| policy.contains("frame-ancestors 'none'")), path == "/docs", "{path}");
    }
    // Rejections too.
    let rejected = get(server.address, "/v1/pools", "host: evil.test");
    assert_eq!(rejected.header("x-content-type-options"), Some("nosniff"));
    assert_eq!(rejected.header("cache-control"), Some("no-store"));
}
