//! gRPC edge, package `hotpool.v1`. `guard` wraps every call (deadline, panics, counting), `unary_body` and `codec`
//! limit the input, `from_proto` and `to_proto` convert messages, `status` converts errors.
//!
//! The interface is `src/api/grpc/hotpool/v1/hotpool.proto`: its comments are the reference for client authors.

use std::convert::Infallible;
use std::sync::Arc;

use bytes::Bytes;
use hyper::{Request, Response};
use tokio::sync::{Semaphore, watch};
use tonic::body::Body;
use tonic::{Response as GrpcResponse, Status};
use tonic_health::pb::health_server::HealthServer;
use tower::Service as _;
use tower::util::BoxCloneSyncService;

use crate::api::error_table::ApiError;
use crate::api::response_body::ResponseClass;
use crate::api::{MemoryBudgets, RequestLimits, ResponseBudget};
use crate::limits;
use crate::metrics::{GrpcCode, GrpcMethod, metrics};
use crate::scheduler::Scheduler;

mod claims;
pub(crate) mod codec;
mod from_proto;
mod guard;
mod health;
mod long_lived;
mod pools;
mod quotas;
mod status;
mod stream;
mod to_proto;
mod unary_body;
mod workers;

use health::GrpcHealth;
use long_lived::LongLivedStreams;
use unary_body::{BodyError, MessagePermit, UnaryBody};

/// Code generated from the `.proto` file: messages, clients and servers.
#[allow(missing_docs, reason = "generated")]
#[allow(clippy::all, clippy::pedantic, reason = "generated")]
pub mod proto {
    include!("generated/hotpool.v1.rs");

    /// Encoded descriptors of the `.proto` file.
    pub const DESCRIPTORS: &[u8] = include_bytes!("generated/hotpool.v1.bin");
}

use proto::claim_service_server::ClaimServiceServer;
use proto::pool_service_server::PoolServiceServer;
use proto::quota_service_server::QuotaServiceServer;
use proto::worker_service_server::WorkerServiceServer;

/// Largest message of the health and reflection services, in bytes: each message is a name.
const NAME_MESSAGE_BYTES_MAX: usize = 16 << 10;

/// Method whose request is a stream of messages.
const CLAIM_STREAM: &str = "/hotpool.v1.ClaimService/ClaimStream";

/// Health method that replies for as long as its client listens.
const HEALTH_WATCH: &str = "/grpc.health.v1.Health/Watch";

/// Result of a gRPC handler.
type RpcResult<T> = Result<GrpcResponse<T>, Status>;

/// State that the handlers of all services share.
pub(crate) struct GrpcHandlers {
    scheduler: Scheduler,
    bounds: RequestLimits,
    /// Permits for claim streams.
    streams: Arc<Semaphore>,
    responses: ResponseBudget,
    stopping: watch::Receiver<()>,
}

/// Service whose concrete type its library does not export.
type BoxedService = BoxCloneSyncService<Request<Body>, Response<Body>, Infallible>;

/// Builds and counts the response to a call that is rejected before any service sees it.
pub(in crate::api) fn reject(path: &str, failure: &ApiError) -> Response<Body> {
    let status = failure.to_status();
    let code = GrpcCode::ALL.get(status.code() as usize).copied().unwrap_or(GrpcCode::Unknown);
    metrics().grpc_requests(GrpcMethod::of(path), code).increment(1);
    status.into_http()
}

/// Treatment of a method's response when the budget is used up. `None`: a long-lived stream with its own limits.
pub(in crate::api) fn response_class(path: &str) -> Option<ResponseClass> {
    match GrpcMethod::of(path) {
        GrpcMethod::ClaimStream
        | GrpcMethod::WatchPool
        | GrpcMethod::HealthWatch
        | GrpcMethod::Reflection
        | GrpcMethod::ReflectionAlpha => None,
        GrpcMethod::GetPool
        | GrpcMethod::ListPools
        | GrpcMethod::GetDemand
        | GrpcMethod::GetWorker
        | GrpcMethod::ListWorkers
        | GrpcMethod::ExplainClaim
        | GrpcMethod::GetClaim
        | GrpcMethod::ListClaims
        | GrpcMethod::GetQuota
        | GrpcMethod::ListQuotas
        | GrpcMethod::HealthCheck => Some(ResponseClass::Refusable),
        _ => Some(ResponseClass::MustDeliver),
    }
}

/// Edge that serves gRPC calls.
pub struct GrpcEdge {
    claims: ClaimServiceServer<GrpcHandlers>,
    /// Server of `ClaimService` for its streaming method.
    claim_stream: ClaimServiceServer<GrpcHandlers>,
    workers: WorkerServiceServer<GrpcHandlers>,
    pools: PoolServiceServer<GrpcHandlers>,
    quotas: QuotaServiceServer<GrpcHandlers>,
    health: HealthServer<GrpcHealth>,
    reflection: BoxedService,
    reflection_alpha: BoxedService,
    bounds: RequestLimits,
    bodies: Arc<Semaphore>,
    long_lived: LongLivedStreams,
}

impl GrpcEdge {
    /// Creates the edge. `budgets` are shared with the other edges. `stopping` closes when the service begins to stop.
    /// Until then a task of the current tokio runtime polls readiness for watchers of the health service.
    #[must_use]
    pub fn new(
        scheduler: Scheduler,
        bounds: RequestLimits,
        budgets: MemoryBudgets,
        stopping: watch::Receiver<()>,
    ) -> Self {
        let MemoryBudgets { bodies, responses } = budgets;
        let max_bytes = bounds.body_bytes_max;
        let builder = || {
            tonic_reflection::server::Builder::configure()
                .register_encoded_file_descriptor_set(proto::DESCRIPTORS)
                .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
        };
        let reflection = builder().build_v1().expect("the generated descriptors are valid");
        let reflection_alpha = builder().build_v1alpha().expect("the generated descriptors are valid");
        let streams = Arc::new(Semaphore::new(limits::STREAMS_MAX));
        let handlers = Arc::new(GrpcHandlers {
            scheduler: scheduler.clone(),
            bounds,
            streams,
            responses,
            stopping: stopping.clone(),
        });
        let claims =
            |max_bytes| ClaimServiceServer::from_arc(Arc::clone(&handlers)).max_decoding_message_size(max_bytes);
        Self {
            claims: claims(max_bytes),
            claim_stream: claims(limits::STREAM_MESSAGE_BYTES_MAX),
            workers: WorkerServiceServer::from_arc(Arc::clone(&handlers)).max_decoding_message_size(max_bytes),
            pools: PoolServiceServer::from_arc(Arc::clone(&handlers)).max_decoding_message_size(max_bytes),
            quotas: QuotaServiceServer::from_arc(Arc::clone(&handlers)).max_decoding_message_size(max_bytes),
            long_lived: LongLivedStreams::new(stopping.clone()),
            health: HealthServer::new(GrpcHealth::new(scheduler, stopping))
                .max_decoding_message_size(NAME_MESSAGE_BYTES_MAX),
            reflection: BoxedService::new(reflection.max_decoding_message_size(NAME_MESSAGE_BYTES_MAX)),
            reflection_alpha: BoxedService::new(reflection_alpha.max_decoding_message_size(NAME_MESSAGE_BYTES_MAX)),
            bounds,
            bodies,
        }
    }

    /// Dispatches one call to a clone of its service, which costs a few reference-count increments.
    async fn dispatch<B>(&self, request: Request<B>, permit: MessagePermit) -> Response<Body>
    where
        B: hyper::body::Body<Data = Bytes> + Send + Unpin + 'static,
        B::Error: Into<BodyError> + Send,
    {
        let service = request.uri().path().split('/').nth(1).unwrap_or_default();
        let bounded = |mut request: Request<B>| {
            let budget = Arc::clone(&self.bodies);
            request.extensions_mut().insert(MessagePermit::clone(&permit));
            request.map(|body| UnaryBody::new(body, self.bounds.body_bytes_max, budget, permit))
        };
        let response = match service {
            "hotpool.v1.ClaimService" if request.uri().path() == CLAIM_STREAM => {
                self.claim_stream.clone().call(request.map(Body::new)).await
            }
            "hotpool.v1.ClaimService" => self.claims.clone().call(bounded(request)).await,
            "hotpool.v1.WorkerService" => self.workers.clone().call(bounded(request)).await,
            "hotpool.v1.PoolService" => self.pools.clone().call(bounded(request)).await,
            "hotpool.v1.QuotaService" => self.quotas.clone().call(bounded(request)).await,
            "grpc.health.v1.Health" if request.uri().path() == HEALTH_WATCH => {
                self.long_lived.serve(self.health.clone().call(request)).await
            }
            "grpc.health.v1.Health" => self.health.clone().call(request).await,
            "grpc.reflection.v1.ServerReflection" => {
                self.long_lived.serve(self.reflection.clone().call(self.long_lived.until_stop(request))).await
            }
            "grpc.reflection.v1alpha.ServerReflection" => {
                self.long_lived.serve(self.reflection_alpha.clone().call(self.long_lived.until_stop(request))).await
            }
            _ => Ok(Status::unimplemented("no such service; see grpc.reflection.v1.ServerReflection").into_http()),
        };
        response.unwrap_or_else(|never| match never {})
    }
}
