//! Bare tonic server of claim streams, and of unary claims and releases.

use std::future::{Ready, ready};
use std::sync::Arc;

use futures::StreamExt as _;
use futures::future::BoxFuture;
use futures::stream::{self, BoxStream};
use hotpool::api::grpc::proto::claim_stream_request::Request as StreamCall;
use hotpool::api::grpc::proto::claim_stream_response::Outcome;
use hotpool::api::grpc::proto::{
    Claim, ClaimState, ClaimStreamRequest, ClaimStreamResponse, ReleaseClaimRequest, ReleaseClaimResponse, Resources,
    TakeClaimRequest, TakeClaimResponse,
};
use hyper::body::Incoming;
use tonic::body::Body;
use tonic::server::{Grpc, StreamingService, UnaryService};
use tonic::{Request, Response, Status, Streaming};
use tonic_prost::ProstCodec;

use super::EchoState;

/// Largest number of requests that are answered together.
const TOGETHER_MAX: usize = 1_024;
/// Largest number of such groups of one stream that wait for the log.
const GROUPS_MAX: usize = 64;

/// Answers a call, unary or of a stream.
pub(super) async fn answer(request: hyper::Request<Incoming>, state: Arc<EchoState>) -> hyper::Response<Body> {
    let method = request.uri().path().rsplit('/').next().unwrap_or_default().to_owned();
    match method.as_str() {
        "ClaimStream" => Grpc::new(ProstCodec::default()).streaming(EchoStream(state), request).await,
        "TakeClaim" => Grpc::new(ProstCodec::default()).unary(EchoClaims(state), request).await,
        "ReleaseClaim" => Grpc::new(ProstCodec::default()).unary(EchoReleases(state), request).await,
        _ => Status::unimplemented("claims and releases only").into_http(),
    }
}

fn claim(state: &EchoState, key: String) -> TakeClaimResponse {
    let claim = state.grant(|fence, worker| Claim {
        key,
        tenant: "default".to_owned(),
        fence,
        namespace: "load".to_owned(),
        pool: "0123456789abcdef0123456789abcdef".to_owned(),
        worker: worker.to_owned(),
        state: ClaimState::Active.into(),
        resources: Some(Resources::default()),
        created_at_ms: Some(1_700_000_000_000),
        activated_at_ms: Some(1_700_000_000_000),
        ..Claim::default()
    });
    TakeClaimResponse { claim: Some(claim), created: true }
}

/// Claims and releases of one stream.
struct EchoStream(Arc<EchoState>);

impl StreamingService<ClaimStreamRequest> for EchoStream {
    type Response = ClaimStreamResponse;
    type ResponseStream = BoxStream<'static, Result<ClaimStreamResponse, Status>>;
    type Future = Ready<Result<Response<Self::ResponseStream>, Status>>;

    fn call(&mut self, request: Request<Streaming<ClaimStreamRequest>>) -> Self::Future {
        let state = Arc::clone(&self.0);
        let groups = request.into_inner().ready_chunks(TOGETHER_MAX);
        let answered = groups.map(move |group| {
            let state = Arc::clone(&state);
            async move {
                let responses: Vec<_> = group.into_iter().map(|call| Ok(respond(&state, call?))).collect();
                state.append(responses.len()).await;
                stream::iter(responses)
            }
        });
        ready(Ok(Response::new(answered.buffer_unordered(GROUPS_MAX).flatten().boxed())))
    }
}

fn respond(state: &EchoState, call: ClaimStreamRequest) -> ClaimStreamResponse {
    let outcome = match call.request {
        Some(StreamCall::Take(take)) => Some(Outcome::Taken(claim(state, take.key.unwrap_or_default()))),
        Some(StreamCall::Release(release)) => {
            state.release(release.fence);
            Some(Outcome::Released(ReleaseClaimResponse::default()))
        }
        _ => None,
    };
    ClaimStreamResponse { id: call.id, outcome }
}

/// Claims that are unary calls.
struct EchoClaims(Arc<EchoState>);

impl UnaryService<TakeClaimRequest> for EchoClaims {
    type Response = TakeClaimResponse;
    type Future = BoxFuture<'static, Result<Response<TakeClaimResponse>, Status>>;

    fn call(&mut self, request: Request<TakeClaimRequest>) -> Self::Future {
        let state = Arc::clone(&self.0);
        Box::pin(async move {
            let response = claim(&state, request.into_inner().key.unwrap_or_default());
            state.append(1).await;
            Ok(Response::new(response))
        })
    }
}

/// Releases that are unary calls.
struct EchoReleases(Arc<EchoState>);

impl UnaryService<ReleaseClaimRequest> for EchoReleases {
    type Response = ReleaseClaimResponse;
    type Future = BoxFuture<'static, Result<Response<ReleaseClaimResponse>, Status>>;

    fn call(&mut self, request: Request<ReleaseClaimRequest>) -> Self::Future {
        let state = Arc::clone(&self.0);
        Box::pin(async move {
            state.release(request.into_inner().fence);
            state.append(1).await;
            Ok(Response::new(ReleaseClaimResponse::default()))
        })
    }
}
