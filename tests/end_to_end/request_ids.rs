//! Request ids of responses: the caller's own, or one that the service generates.

use std::collections::BTreeSet;

use hotpool::api::grpc::proto::claim_stream_request::Request as Ask;
use hotpool::api::grpc::proto::{
    ClaimStreamRequest, GetClaimRequest, ListPoolsRequest, TakeClaimRequest, WatchPoolRequest,
};
use serde_json::json;
use tonic::{Code, Request, Status};
use tonic_types::StatusExt as _;

use crate::client::{Client, Response};
use crate::grpc::grpc_client::{GrpcClient, Raw, take};
use crate::server::{fresh, with_pool};

const HEADER: &str = "x-request-id";

fn send(client: &mut Client, path: &str, headers: &[&[u8]]) -> Response {
    let mut head = format!("GET {path} HTTP/1.1\r\nhost: localhost\r\n").into_bytes();
    for header in headers {
        head.extend_from_slice(header);
        head.extend_from_slice(b"\r\n");
    }
    head.extend_from_slice(b"\r\n");
    client.send(&head).unwrap();
    client.receive().unwrap()
}

#[test]
fn every_response_has_a_request_id_and_every_error_repeats_it() {
    let (_dir, _server, mut client) = with_pool(1);
    let mut observed = BTreeSet::new();
    let claim = json!({"namespace": "ns", "pool": "warm", "key": "a"});
    let answers = [
        client.get("/healthz"),
        client.get("/readyz"),
        client.get("/metrics"),
        client.get("/docs"),
        client.get("/v1/openapi.json"),
        client.get("/v1/nothing"),
        client.request("PATCH", "/healthz", b""),
        client.post("/v1/claims", &claim),
        client.post("/v1/claims", &claim),
        client.post("/v1/claims", &json!({"namespace": "ns"})),
        client.post("/v1/claims", &json!({"namespace": "ns", "pool": "warm", "key": "b"})),
        client.post("/v1/claims/ns/a:confirm", &json!({"fence": 1})),
        client.get("/v1/claims/ns/none"),
    ];
    for answer in &answers {
        let id = answer.header(HEADER).unwrap_or_else(|| panic!("{} {:?}", answer.status, answer.headers)).to_owned();
        assert!((8..=64).contains(&id.len()) && id.bytes().all(|b| b.is_ascii_graphic()), "{id}");
        if answer.status >= 400 {
            assert_eq!(answer.json()["error"]["request_id"], id.as_str());
        } else {
            assert!(!answer.text().contains(&id), "an answer that says more than it said");
        }
        assert!(observed.insert(id), "two requests have the same id");
    }
    // The items of a batch belong to one request, whose id the response has.
    let batch = client.post("/v1/claims:batch", &json!({"mode": "independent", "items": [{}, claim]}));
    assert_eq!(batch.expect(200)["items"][0]["error"].get("request_id"), None);
    assert!(batch.header(HEADER).is_some());
}

#[test]
fn the_callers_own_id_is_used_if_it_is_short_ascii() {
    let (_dir, _server, mut client) = fresh();
    let longest = "x".repeat(128);
    for id in ["1", "0197c2f6-7a1e-7b4e-9d0b-3c5a7d1e2f40", r##"!"#$%&'()*+,-./:;<=>?@[\]^_`{|}~"##, &longest] {
        for path in ["/healthz", "/v1/claims/ns/none"] {
            let answer = send(&mut client, path, &[format!("X-Request-Id: {id}").as_bytes()]);
            assert_eq!(answer.header(HEADER), Some(id));
            if answer.status == 404 {
                assert_eq!(answer.json()["error"]["request_id"], id);
            }
        }
    }
    let too_long = format!("x-request-id: {}", "x".repeat(129));
    for headers in [
        &[&b"x-request-id: "[..]][..],
        &[too_long.as_bytes()],
        &[b"x-request-id: a b"],
        &[b"x-request-id: a\tb"],
        &[b"x-request-id: \xc3\xa9"],
        &[b"x-request-id: one", b"x-request-id: two"],
    ] {
        let answer = send(&mut client, "/healthz", headers);
        let id = answer.header(HEADER).unwrap();
        let sent = headers.iter().any(|header| header.ends_with(id.as_bytes()));
        assert!(!sent && id.len() > 8, "{id} for {:?}", String::from_utf8_lossy(headers[0]));
    }
}

#[tokio::test]
async fn over_grpc_the_id_is_in_the_metadata_and_in_error_details() {
    let (_dir, server, _http) = with_pool(1);
    let mut grpc = GrpcClient::open(server.address).await;
    let good = grpc.pools.list_pools(ListPoolsRequest::default()).await.unwrap();
    assert!(good.metadata().get(HEADER).is_some(), "{:?}", good.metadata());
    let none = GetClaimRequest { namespace: "ns".into(), key: "none".into(), ..GetClaimRequest::default() };
    let mut named = Request::new(none.clone());
    named.metadata_mut().insert(HEADER, "ticket-17".parse().unwrap());
    for (request, sent) in [(Request::new(none), None), (named, Some("ticket-17"))] {
        let status = grpc.claims.get_claim(request).await.unwrap_err();
        assert_eq!(status.code(), Code::NotFound);
        let id = status.metadata().get(HEADER).unwrap().to_str().unwrap();
        assert_eq!(status.get_details_request_info().unwrap().request_id, id);
        assert!(sent.is_none_or(|sent| sent == id));
    }
    let watch = WatchPoolRequest { namespace: "ns".into(), pool: "warm".into(), from: None };
    assert!(grpc.pools.watch_pool(watch).await.unwrap().metadata().get(HEADER).is_some());
    // Errors of the library itself.
    let mut raw = Raw::open(server.address).await;
    for path in ["/hotpool.v1.ClaimService/Nothing", "/no.such.Service/Method"] {
        let status = raw.call(path, &[(HEADER, "ticket-18")], Vec::new()).await;
        assert_eq!(
            (status.code(), status.metadata().get(HEADER).unwrap().as_bytes()),
            (Code::Unimplemented, &b"ticket-18"[..])
        );
    }
}

/// Streams end long after their call was answered, and often with an error.
#[tokio::test]
async fn the_final_status_of_a_stream_has_the_request_id() {
    let (_dir, server, mut http) = with_pool(1);
    let mut grpc = GrpcClient::open(server.address).await;
    let named = |request| {
        let mut request = Request::new(request);
        request.metadata_mut().insert(HEADER, "ticket-19".parse().unwrap());
        request
    };
    let id = |status: &Status| status.get_details_request_info().map(|info| info.request_id);
    // A message beyond the limit of a stream.
    let large = TakeClaimRequest { class: Some("x".repeat(17 << 10)), ..take("a") };
    let large = ClaimStreamRequest { id: 1, request: Some(Ask::Take(large)) };
    let mut request = Request::new(futures::stream::iter([large]));
    request.metadata_mut().insert(HEADER, "ticket-18".parse().unwrap());
    let mut answers = grpc.claims.claim_stream(request).await.unwrap().into_inner();
    let end = answers.message().await.unwrap_err();
    assert_eq!((end.code(), id(&end).as_deref()), (Code::InvalidArgument, Some("ticket-18")), "{end:?}");
    // An invalid message.
    let mut raw = Raw::open(server.address).await;
    let garbage = [0, 0, 0, 0, 2, 0x0a, 0x05].to_vec();
    let answer = raw.begin("/hotpool.v1.ClaimService/ClaimStream", &[(HEADER, "ticket-20")], garbage).await;
    let body = http_body_util::BodyExt::collect(answer.into_body()).await.unwrap();
    let end = Status::from_header_map(body.trailers().unwrap()).unwrap();
    assert_eq!((end.code(), id(&end).as_deref()), (Code::InvalidArgument, Some("ticket-20")), "{end:?}");
    assert!(end.get_details_bad_request().is_some(), "its other details are kept: {end:?}");
    // A deleted pool.
    let watch = WatchPoolRequest { namespace: "ns".into(), pool: "warm".into(), from: None };
    let mut events = grpc.pools.watch_pool(named(watch)).await.unwrap().into_inner();
    events.message().await.unwrap().unwrap();
    http.request("DELETE", "/v1/pools/ns/warm?force=true", b"").expect(200);
    let end = loop {
        match events.message().await {
            Ok(event) => drop(event.unwrap()),
            Err(end) => break end,
        }
    };
    assert_eq!((end.code(), id(&end).as_deref()), (Code::NotFound, Some("ticket-19")), "{end:?}");
}
