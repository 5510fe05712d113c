//! Clients of all gRPC services on one connection, and helpers for their errors.

use std::net::SocketAddr;
use std::time::Instant;

use bytes::Bytes;
use http_body_util::{BodyExt as _, Full, StreamBody};
use hyper::body::Frame;
use hyper::client::conn::http2::{SendRequest, handshake};
use hyper::{Request, Response};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::net::TcpStream;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Status};
use tonic_types::StatusExt as _;

use crate::server::TIMEOUT;

use hotpool::api::grpc::proto::claim_service_client::ClaimServiceClient;
use hotpool::api::grpc::proto::get_claim_response::Standing;
use hotpool::api::grpc::proto::pool_service_client::PoolServiceClient;
use hotpool::api::grpc::proto::quota_service_client::QuotaServiceClient;
use hotpool::api::grpc::proto::take_claim_request::Candidates;
use hotpool::api::grpc::proto::worker_service_client::WorkerServiceClient;
use hotpool::api::grpc::proto::{
    Claim, GetClaimResponse, PoolSpec, PutPoolRequest, RegisterWorkerRequest, TakeClaimRequest, WorkerSpec,
};

/// Polls for the effect of another task; fails with `what` after [`TIMEOUT`].
pub async fn until(what: &str, mut is_so: impl AsyncFnMut() -> bool) {
    let begun = Instant::now();
    while !is_so().await {
        assert!(begun.elapsed() < TIMEOUT, "not within {TIMEOUT:?}: {what}");
        tokio::task::yield_now().await;
    }
}

/// Clients of all gRPC services.
#[derive(Clone)]
pub struct GrpcClient {
    pub channel: Channel,
    pub claims: ClaimServiceClient<Channel>,
    pub workers: WorkerServiceClient<Channel>,
    pub pools: PoolServiceClient<Channel>,
    pub quotas: QuotaServiceClient<Channel>,
}

impl GrpcClient {
    pub async fn open(address: SocketAddr) -> Self {
        let channel = Endpoint::from_shared(format!("http://{address}")).unwrap().connect().await.unwrap();
        Self {
            claims: ClaimServiceClient::new(channel.clone()),
            workers: WorkerServiceClient::new(channel.clone()),
            pools: PoolServiceClient::new(channel.clone()),
            quotas: QuotaServiceClient::new(channel.clone()),
            channel,
        }
    }
}

/// Request for a claim in `ns/warm`.
pub fn take(key: &str) -> TakeClaimRequest {
    TakeClaimRequest {
        namespace: "ns".into(),
        key: Some(key.into()),
        candidates: Some(Candidates::Pool("warm".into())),
        ..TakeClaimRequest::default()
    }
}

/// Registration of a worker of `ns/warm`.
pub fn register(id: &str) -> RegisterWorkerRequest {
    let worker = Some(WorkerSpec { id: id.into(), ..WorkerSpec::default() });
    RegisterWorkerRequest { namespace: "ns".into(), pool: "warm".into(), worker }
}

/// Request to put the pool `ns/{pool}`.
pub fn put_pool(pool: &str, spec: PoolSpec) -> PutPoolRequest {
    PutPoolRequest { namespace: "ns".into(), pool: pool.into(), spec: Some(spec) }
}

/// Returns the claim that a key holds.
pub fn claim_of(answer: GetClaimResponse) -> Claim {
    match answer.standing {
        Some(Standing::Claim(claim)) => claim,
        other => panic!("{other:?}"),
    }
}

/// Returns the code, reason and field of an error.
pub fn error_of(status: &Status) -> (Code, Option<String>, Option<String>) {
    let details = status.get_error_details();
    assert!(!status.message().is_empty() && status.message().len() < 1_000, "{status:?}");
    assert_eq!(details.retry_info().is_some(), status.code() == Code::Unavailable, "{status:?}");
    let reason = details.error_info().map(|info| {
        assert_eq!(info.domain, "hotpool");
        info.reason.clone()
    });
    let field = details.bad_request().map(|bad| bad.field_violations[0].field.clone());
    (status.code(), reason, field)
}

#[track_caller]
pub fn expect<T: std::fmt::Debug>(answer: Result<T, Status>, code: Code, reason: Option<&str>, field: Option<&str>) {
    let status = answer.unwrap_err();
    let (said_code, said_reason, said_field) = error_of(&status);
    assert_eq!((said_code, said_reason.as_deref(), said_field.as_deref()), (code, reason, field), "{status:?}");
}

type RawBody = http_body_util::combinators::UnsyncBoxBody<Bytes, std::convert::Infallible>;

/// HTTP/2 client without gRPC, to send what no well-behaved client would.
#[derive(Clone)]
pub struct Raw(SendRequest<RawBody>);

impl Raw {
    pub async fn open(address: SocketAddr) -> Self {
        let io = TokioIo::new(TcpStream::connect(address).await.unwrap());
        let (sender, connection) = handshake(TokioExecutor::new(), io).await.unwrap();
        tokio::spawn(connection);
        Self(sender)
    }

    /// Sends these bytes as the whole body of a call.
    pub async fn call(&mut self, path: &str, headers: &[(&str, &str)], body: Vec<u8>) -> Status {
        let answer = self.send(path, headers, Full::new(Bytes::from(body)).boxed_unsync()).await;
        status(answer).await
    }

    /// Sends the bytes, and leaves the body open until the returned value is dropped.
    pub fn begin(
        &mut self,
        path: &str,
        headers: &[(&str, &str)],
        body: Vec<u8>,
    ) -> impl Future<Output = Response<hyper::body::Incoming>> + use<> {
        let frame = futures::stream::once(async { Ok(Frame::data(Bytes::from(body))) });
        let open = futures::StreamExt::chain(frame, futures::stream::pending());
        self.send(path, headers, StreamBody::new(open).boxed_unsync())
    }

    fn send(
        &mut self,
        path: &str,
        headers: &[(&str, &str)],
        body: RawBody,
    ) -> impl Future<Output = Response<hyper::body::Incoming>> + use<> {
        let mut request = Request::post(format!("http://localhost{path}")).header("te", "trailers");
        if !headers.iter().any(|(name, _)| *name == "content-type") {
            request = request.header("content-type", "application/grpc");
        }
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let answer = self.0.send_request(request.body(body).unwrap());
        async move { answer.await.unwrap() }
    }
}

/// Returns the status of a response, from its head or its trailers.
pub async fn status(answer: Response<hyper::body::Incoming>) -> Status {
    assert_eq!(answer.status(), 200);
    if let Some(status) = Status::from_header_map(answer.headers()) {
        return status;
    }
    let body = answer.into_body().collect().await.unwrap();
    Status::from_header_map(body.trailers().expect("trailers")).expect("a status")
}

/// Encodes a message with its length prefix.
pub fn framed(message: &impl prost::Message) -> Vec<u8> {
    let bytes = message.encode_to_vec();
    [&[0][..], &u32::try_from(bytes.len()).unwrap().to_be_bytes(), &bytes].concat()
}
