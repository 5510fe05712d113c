use std::time::Duration;

use hotpool::api::grpc::proto::{GetClaimRequest, GetPoolRequest, PoolSpec, TakeClaimRequest};
use serde_json::json;
use tempfile::TempDir;
use tonic::Code;

use super::grpc_client::{GrpcClient, Raw, expect, framed, put_pool, status, take, until};
use crate::server::{Server, with_pool};

const TAKE: &str = "/hotpool.v1.ClaimService/TakeClaim";

/// Encodes a message of this length that is no claim: one unknown field.
fn sized(bytes: usize) -> Vec<u8> {
    let message = prost_bytes(bytes);
    assert_eq!(message.len(), bytes);
    [&[0][..], &u32::try_from(bytes).unwrap().to_be_bytes(), &message].concat()
}

/// Encodes field 1000 with so many bytes in all.
fn prost_bytes(bytes: usize) -> Vec<u8> {
    let mut message = Vec::new();
    let head = |payload: usize| {
        let mut head = Vec::new();
        prost::encoding::encode_key(1000, prost::encoding::WireType::LengthDelimited, &mut head);
        prost::encoding::encode_varint(payload as u64, &mut head);
        head
    };
    let payload = (0..=bytes).rev().find(|&payload| head(payload).len() + payload == bytes).unwrap();
    message.extend(head(payload));
    message.resize(bytes, b'x');
    message
}

#[tokio::test]
async fn a_message_beyond_the_limit_is_rejected_unread() {
    let dir = TempDir::new().unwrap();
    let server = Server::start_with(dir.path(), &[], &[("HOTPOOL__SERVER__MAX_BODY_BYTES", "4096")]);
    let mut raw = Raw::open(server.address).await;
    let rejected = raw.call(TAKE, &[], sized(4097)).await;
    assert!(rejected.message().contains("4096"), "{rejected:?}");
    expect::<()>(Err(rejected), Code::InvalidArgument, Some("BODY_TOO_LARGE"), None);
    // The announced length is enough.
    let announced = raw.begin(TAKE, &[], vec![0, 0xff, 0xff, 0xff, 0xff]).await;
    expect::<()>(Err(status(announced).await), Code::InvalidArgument, Some("BODY_TOO_LARGE"), None);
    // A message of exactly the limit is read.
    let read = raw.call(TAKE, &[], sized(4096)).await;
    expect::<()>(Err(read), Code::InvalidArgument, None, Some("namespace"));
}

#[tokio::test]
async fn large_messages_share_a_budget_and_do_not_block_small_ones() {
    let (_dir, server, mut http) = with_pool(1);
    let mut raw = Raw::open(server.address).await;
    // Four messages announce 8 MiB each, which decoded may use up the budget, and send nothing.
    let mut slow: Vec<_> = (0..4).map(|_| Box::pin(raw.begin(TAKE, &[], vec![0, 0, 0x80, 0, 0]))).collect();
    let mut other = Raw::open(server.address).await;
    let rejected = loop {
        for slow in &mut slow {
            // This one may have met the request below, which takes a little of the budget.
            if futures::poll!(slow.as_mut()).is_ready() {
                *slow = Box::pin(raw.begin(TAKE, &[], vec![0, 0, 0x80, 0, 0]));
            }
        }
        let status = other.call(TAKE, &[], sized(20_000)).await;
        if status.code() == Code::Unavailable {
            break status;
        }
    };
    expect::<()>(Err(rejected), Code::Unavailable, Some("OVERLOADED"), None);
    // HTTP shares the budget.
    http.request("POST", "/v1/claims", &[b' '; 20_000]).expect_error(503, "UNAVAILABLE", Some("overloaded"), None);
    let mut grpc = GrpcClient::open(server.address).await;
    grpc.claims.take_claim(take("a")).await.unwrap();
    drop(slow);
    until("the budget is free again", async || other.call(TAKE, &[], sized(20_000)).await.code() != Code::Unavailable)
        .await;
}

#[tokio::test]
async fn invalid_calls_are_rejected() {
    let (_dir, server, mut http) = with_pool(1);
    let mut raw = Raw::open(server.address).await;
    let good = framed(&take("a"));
    let twice = [&good[..], &good[..]].concat();
    for (headers, body, field) in [
        (&[][..], twice, "body"),
        (&[], [&good[..], b"x"].concat(), "body"),
        (&[], vec![0, 0, 0, 0, 1, 0xff], "body"),
        (&[], vec![0, 0, 0, 0, 3, 0x0a, 0x01, 0xff], "body"),
        (&[("grpc-timeout", "1s")], good.clone(), "grpc-timeout"),
        (&[("grpc-timeout", "123456789n")], good.clone(), "grpc-timeout"),
    ] {
        let status = raw.call(TAKE, headers, body).await;
        expect::<()>(Err(status), Code::InvalidArgument, None, Some(field));
    }
    // These codes come from the protocol itself.
    for (headers, body, code) in [
        (&[][..], Vec::new(), Code::Internal),
        (&[], good[..good.len() - 1].to_vec(), Code::Internal),
        (&[], [&[1], &good[1..]].concat(), Code::Internal),
        (&[], [&[7], &good[1..]].concat(), Code::Internal),
        (&[("grpc-encoding", "gzip")], good.clone(), Code::Unimplemented),
    ] {
        assert_eq!(raw.call(TAKE, headers, body).await.code(), code);
    }
    assert_eq!(http.get("/v1/claims").expect(200)["items"], json!([]), "nothing of all that was carried out");
    // Another content type is not gRPC, and gRPC needs HTTP/2.
    let body = http_body_util::Full::new(bytes::Bytes::new());
    let io = hyper_util::rt::TokioIo::new(tokio::net::TcpStream::connect(server.address).await.unwrap());
    let (mut sender, connection) =
        hyper::client::conn::http2::handshake(hyper_util::rt::TokioExecutor::new(), io).await.unwrap();
    tokio::spawn(connection);
    for kind in ["application/json", "application/grpc-web", "application/grpc-web+proto"] {
        let request = hyper::Request::post(format!("http://localhost{TAKE}")).header("content-type", kind);
        assert_eq!(sender.send_request(request.body(body.clone()).unwrap()).await.unwrap().status(), 404, "{kind}");
    }
    let request = hyper::Request::get("http://localhost/v1/pools/ns/warm").body(body).unwrap();
    assert_eq!(sender.send_request(request).await.unwrap().status(), 200, "JSON over the same HTTP/2 connection");
    let head = format!(
        "POST {TAKE} HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/grpc\r\ncontent-length: 0\r\n\r\n"
    );
    http.send(head.as_bytes()).unwrap();
    http.receive().unwrap().expect_error(404, "NOT_FOUND", Some("route"), None);
}

#[tokio::test]
async fn a_message_that_never_arrives_meets_the_request_timeout() {
    let dir = TempDir::new().unwrap();
    let waits = [("HOTPOOL__SERVER__REQUEST_TIMEOUT_MS", "200"), ("HOTPOOL__STORE__WAIT_MS", "100")];
    let server = Server::start_with(dir.path(), &[], &waits);
    let mut raw = Raw::open(server.address).await;
    let late = raw.begin(TAKE, &[], vec![0, 0, 0, 0, 60, 0x0a]).await;
    expect::<()>(Err(status(late).await), Code::DeadlineExceeded, None, None);
}

#[tokio::test]
async fn a_client_that_disconnects_leaves_nothing_pending() {
    let (_dir, server, _http) = with_pool(1);
    let mut grpc = GrpcClient::open(server.address).await;
    grpc.pools
        .put_pool(put_pool("warm", PoolSpec { shards: Some(4), reserve_ms: Some(100), ..PoolSpec::default() }))
        .await
        .unwrap();
    for round in 0..20 {
        let mut raw = Raw::open(server.address).await;
        let whole = framed(&take("a"));
        // Half a message, and a whole one whose response is not awaited.
        let half = Box::pin(raw.begin(TAKE, &[], whole[..whole.len() / 2].to_vec()));
        let call = Box::pin(raw.begin(TAKE, &[], whole));
        for call in [half, call] {
            let mut call = call;
            let _ = futures::poll!(call.as_mut());
        }
        if round % 2 == 0 {
            tokio::task::yield_now().await;
        }
        drop(raw);
    }
    // The key is not stuck: every caller gets a response, and abandoned claims are rolled back.
    let get = GetPoolRequest { namespace: "ns".into(), pool: "warm".into() };
    let idle = async {
        while grpc.pools.get_pool(get.clone()).await.unwrap().into_inner().pool.unwrap().workers.unwrap().idle != 1 {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(Duration::from_secs(20), idle).await.expect("the worker comes back");
    let key = GetClaimRequest { namespace: "ns".into(), key: "a".into(), tenant: None };
    assert_eq!(grpc.claims.get_claim(key).await.unwrap_err().code(), Code::NotFound);
    let again = TakeClaimRequest { reserve_ms: Some(0), ..take("a") };
    assert!(grpc.claims.take_claim(again).await.unwrap().into_inner().created);
}
