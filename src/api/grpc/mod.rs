//! gRPC, `hotpool.v1`. `guard` stands around every call (deadline, panics, counting), `body` and `codec` bound what comes
//! in, `read` and `write` turn messages into what the scheduler takes and back, `status` says what went wrong.
//!
//! The interface is `src/api/grpc/hotpool/v1/hotpool.proto`: its comments are the client author's reference.

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

use crate::api::answer_body::AnswerClass;
use crate::api::error_table::Failure;
use crate::api::{AnswerRoom, Bounds, Rooms};
use crate::limits;
use crate::metrics::{GrpcCode, GrpcMethod, metrics};
use crate::scheduler::Scheduler;

mod body;
mod claims;
pub(crate) mod codec;
mod guard;
mod health;
mod lasting;
mod pools;
mod quotas;
mod read;
mod status;
mod stream;
mod workers;
mod write;

use body::{BodyError, OneMessage, Permit};
use health::Health;
use lasting::LastingStreams;

/// What is made of the `.proto` file: messages, clients and servers.
#[allow(missing_docs, reason = "generated")]
#[allow(clippy::all, clippy::pedantic, reason = "generated")]
pub mod proto {
    tonic::include_proto!("hotpool.v1");

    /// The descriptors of the file, encoded.
    pub const DESCRIPTORS: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/hotpool.v1.bin"));
}

use proto::claim_service_server::ClaimServiceServer;
use proto::pool_service_server::PoolServiceServer;
use proto::quota_service_server::QuotaServiceServer;
use proto::worker_service_server::WorkerServiceServer;

/// Largest message to the services that are not ours: each asks for a name.
const NAME_MESSAGE_BYTES_MAX: usize = 16 << 10;

/// The method whose requests are not one message each.
const CLAIM_STREAM: &str = "/hotpool.v1.ClaimService/ClaimStream";

/// The method of health that answers for as long as its client listens.
const HEALTH_WATCH: &str = "/grpc.health.v1.Health/Watch";

/// What a handler says.
type Answer<T> = Result<GrpcResponse<T>, Status>;

/// What the handlers of all services need.
pub(crate) struct Calls {
    scheduler: Scheduler,
    bounds: Bounds,
    /// Places for claim streams.
    streams: Arc<Semaphore>,
    answers: AnswerRoom,
    stopping: watch::Receiver<()>,
}

/// A service whose type the library keeps to itself.
type Unnamed = BoxCloneSyncService<Request<Body>, Response<Body>, Infallible>;

/// Answer to a call that is refused before any service sees it. It is counted, as every answer is.
pub(in crate::api) fn refuse(path: &str, failure: &Failure) -> Response<Body> {
    let status = failure.status();
    let code = GrpcCode::ALL.get(status.code() as usize).copied().unwrap_or(GrpcCode::Unknown);
    metrics().grpc_requests(GrpcMethod::of(path), code).increment(1);
    status.into_http()
}

/// What the answer to a call of this method may be, or none: it is a stream that lasts, with bounds of its own.
pub(in crate::api) fn answer_class(path: &str) -> Option<AnswerClass> {
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
        | GrpcMethod::HealthCheck => Some(AnswerClass::Refusable),
        _ => Some(AnswerClass::Owed),
    }
}

/// The gRPC edge.
pub struct Grpc {
    claims: ClaimServiceServer<Calls>,
    /// The same, for the one of its methods that takes more than one message.
    claim_stream: ClaimServiceServer<Calls>,
    workers: WorkerServiceServer<Calls>,
    pools: PoolServiceServer<Calls>,
    quotas: QuotaServiceServer<Calls>,
    health: HealthServer<Health>,
    reflection: Unnamed,
    reflection_alpha: Unnamed,
    bounds: Bounds,
    bodies: Arc<Semaphore>,
    lasting: LastingStreams,
}

impl Grpc {
    /// `rooms` are shared with the other edges.
    /// `stopping` closes when the service begins to stop. Until then a task of the present tokio runtime looks out for
    /// those who watch the health of the service.
    #[must_use]
    pub fn new(scheduler: Scheduler, bounds: Bounds, rooms: Rooms, stopping: watch::Receiver<()>) -> Self {
        let Rooms { bodies, answers } = rooms;
        let max_bytes = bounds.body_bytes_max;
        let described = || {
            tonic_reflection::server::Builder::configure()
                .register_encoded_file_descriptor_set(proto::DESCRIPTORS)
                .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
        };
        let reflection = described().build_v1().expect("descriptors that the build has made");
        let reflection_alpha = described().build_v1alpha().expect("descriptors that the build has made");
        let streams = Arc::new(Semaphore::new(limits::STREAMS_MAX));
        let calls =
            Arc::new(Calls { scheduler: scheduler.clone(), bounds, streams, answers, stopping: stopping.clone() });
        let claims = |max_bytes| ClaimServiceServer::from_arc(Arc::clone(&calls)).max_decoding_message_size(max_bytes);
        Self {
            claims: claims(max_bytes),
            claim_stream: claims(limits::STREAM_MESSAGE_BYTES_MAX),
            workers: WorkerServiceServer::from_arc(Arc::clone(&calls)).max_decoding_message_size(max_bytes),
            pools: PoolServiceServer::from_arc(Arc::clone(&calls)).max_decoding_message_size(max_bytes),
            quotas: QuotaServiceServer::from_arc(Arc::clone(&calls)).max_decoding_message_size(max_bytes),
            lasting: LastingStreams::new(stopping.clone()),
            health: HealthServer::new(Health::new(scheduler, stopping))
                .max_decoding_message_size(NAME_MESSAGE_BYTES_MAX),
            reflection: Unnamed::new(reflection.max_decoding_message_size(NAME_MESSAGE_BYTES_MAX)),
            reflection_alpha: Unnamed::new(reflection_alpha.max_decoding_message_size(NAME_MESSAGE_BYTES_MAX)),
            bounds,
            bodies,
        }
    }

    /// One call, to its service: a copy of it, which costs a few counted references.
    async fn dispatch<B>(&self, request: Request<B>, permit: Permit) -> Response<Body>
    where
        B: hyper::body::Body<Data = Bytes> + Send + Unpin + 'static,
        B::Error: Into<BodyError> + Send,
    {
        let service = request.uri().path().split('/').nth(1).unwrap_or_default();
        let bounded = |mut request: Request<B>| {
            let room = Arc::clone(&self.bodies);
            request.extensions_mut().insert(Permit::clone(&permit));
            request.map(|body| OneMessage::new(body, self.bounds.body_bytes_max, room, permit))
        };
        let answer = match service {
            "hotpool.v1.ClaimService" if request.uri().path() == CLAIM_STREAM => {
                self.claim_stream.clone().call(request.map(Body::new)).await
            }
            "hotpool.v1.ClaimService" => self.claims.clone().call(bounded(request)).await,
            "hotpool.v1.WorkerService" => self.workers.clone().call(bounded(request)).await,
            "hotpool.v1.PoolService" => self.pools.clone().call(bounded(request)).await,
            "hotpool.v1.QuotaService" => self.quotas.clone().call(bounded(request)).await,
            "grpc.health.v1.Health" if request.uri().path() == HEALTH_WATCH => {
                self.lasting.serve(self.health.clone().call(request)).await
            }
            "grpc.health.v1.Health" => self.health.clone().call(request).await,
            "grpc.reflection.v1.ServerReflection" => {
                self.lasting.serve(self.reflection.clone().call(self.lasting.until_stop(request))).await
            }
            "grpc.reflection.v1alpha.ServerReflection" => {
                self.lasting.serve(self.reflection_alpha.clone().call(self.lasting.until_stop(request))).await
            }
            _ => Ok(Status::unimplemented("no such service; see grpc.reflection.v1.ServerReflection").into_http()),
        };
        answer.unwrap_or_else(|never| match never {})
    }
}
