use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt as _;
use hotpool::api::grpc::proto::GetPoolRequest;
use hotpool::api::{ApiEdges, ConnectionBudget, RequestLimits, listener};
use hotpool::persist::store::memory::MemoryStore;
use hotpool::scheduler::{Scheduler, SchedulerSettings};
use hotpool::{limits, metrics};
use tokio::sync::watch;
use tonic::Code;
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_client::HealthClient;
use tonic_reflection::pb::v1::server_reflection_client::ServerReflectionClient;
use tonic_reflection::pb::v1::server_reflection_request::MessageRequest;
use tonic_reflection::pb::v1::server_reflection_response::MessageResponse;
use tonic_reflection::pb::v1::{ServerReflectionRequest, ServerReflectionResponse};

use super::grpc_client::{GrpcClient, expect, take, until};
use crate::server::fresh;

const SERVICES: [&str; 4] =
    ["hotpool.v1.ClaimService", "hotpool.v1.PoolService", "hotpool.v1.QuotaService", "hotpool.v1.WorkerService"];

fn of(service: &str) -> HealthCheckRequest {
    HealthCheckRequest { service: service.into() }
}

#[tokio::test]
async fn w06_health_reports_loading_ready_and_stopping() {
    let scheduler = Scheduler::new(Arc::new(MemoryStore), SchedulerSettings::default());
    let socket = listener::bind(SocketAddr::from(([127, 0, 0, 1], 0))).unwrap();
    let address = socket.local_addr().unwrap();
    let (running, mut stopping) = watch::channel(());
    let bounds = RequestLimits { body_bytes_max: 1 << 20, timeout: Duration::from_secs(10) };
    let edges = ApiEdges::new(scheduler.clone(), metrics::install().unwrap(), bounds, stopping.clone());
    let serving =
        tokio::spawn(listener::serve(socket, edges, ConnectionBudget::new(16), Duration::from_secs(60), async move {
            let _ = stopping.changed().await;
        }));

    let mut grpc = GrpcClient::open(address).await;
    let mut health = HealthClient::new(grpc.channel.clone());
    for service in SERVICES.into_iter().chain([""]) {
        let status = health.check(of(service)).await.unwrap().into_inner().status();
        assert_eq!(status, ServingStatus::NotServing, "{service}");
    }
    let get = GetPoolRequest { namespace: "ns".into(), pool: "warm".into() };
    expect(grpc.pools.get_pool(get).await, Code::Unavailable, Some("LOADING"), None);
    expect(grpc.claims.take_claim(take("a")).await, Code::Unavailable, Some("LOADING"), None);
    let mut watched = health.watch(of(SERVICES[0])).await.unwrap().into_inner();
    assert_eq!(watched.message().await.unwrap().unwrap().status(), ServingStatus::NotServing);
    let mut unknown = health.watch(of("hotpool.v1.Nothing")).await.unwrap().into_inner();
    assert_eq!(unknown.message().await.unwrap().unwrap().status(), ServingStatus::ServiceUnknown);

    scheduler.start().await.unwrap();
    assert_eq!(watched.message().await.unwrap().unwrap().status(), ServingStatus::Serving);
    for service in SERVICES.into_iter().chain([""]) {
        assert_eq!(health.check(of(service)).await.unwrap().into_inner().status(), ServingStatus::Serving);
    }
    let missing = health.check(of("hotpool.v1.Nothing")).await.unwrap_err();
    assert_eq!(missing.code(), Code::NotFound);

    let questions = futures::stream::once(async { listing() }).chain(futures::stream::pending());
    let mut reflection = ServerReflectionClient::new(grpc.channel.clone());
    let mut reflected = reflection.server_reflection_info(questions).await.unwrap().into_inner();
    assert!(reflected.message().await.unwrap().is_some());

    // Watchers get the state, and then their stream ends: the shutdown waits for no client that only listens.
    drop(running);
    let end = tokio::time::timeout(Duration::from_secs(20), reflected.message()).await.expect("reflection ends");
    assert!(end.unwrap().is_none());
    assert_eq!(watched.message().await.unwrap().unwrap().status(), ServingStatus::NotServing);
    assert!(watched.message().await.unwrap().is_none());
    assert!(unknown.message().await.unwrap().is_none());
    tokio::time::timeout(Duration::from_secs(20), serving).await.expect("the edge ends").unwrap();
    scheduler.stop().await;
}

fn listing() -> ServerReflectionRequest {
    let message_request = Some(MessageRequest::ListServices(String::new()));
    ServerReflectionRequest { host: String::new(), message_request }
}

#[tokio::test]
async fn h06_streams_of_health_and_reflection_share_a_limit() {
    let (_dir, server, _http) = fresh();
    let grpc = GrpcClient::open(server.address).await;
    let mut health = HealthClient::new(grpc.channel.clone());
    let mut reflection = ServerReflectionClient::new(grpc.channel.clone());
    let mut watches = Vec::new();
    for _ in 1..limits::LASTING_STREAMS_MAX {
        watches.push(health.watch(of("")).await.unwrap());
    }
    let open = reflection.server_reflection_info(futures::stream::pending()).await.unwrap();
    for _ in 0..2 {
        expect(health.watch(of("")).await, Code::Unavailable, Some("OVERLOADED"), None);
        let rejected = reflection.server_reflection_info(futures::stream::pending()).await;
        expect(rejected, Code::Unavailable, Some("OVERLOADED"), None);
    }
    // Unary checks are answered all the same, and a returned permit can be taken by anyone.
    health.check(of("")).await.unwrap();
    drop(open);
    until("a returned permit is taken", async || health.watch(of("")).await.is_ok()).await;
}

async fn reflected(grpc: &GrpcClient, question: MessageRequest) -> MessageResponse {
    let request = ServerReflectionRequest { host: String::new(), message_request: Some(question) };
    let questions = futures::stream::iter([request]);
    let mut client = ServerReflectionClient::new(grpc.channel.clone());
    let mut answers = client.server_reflection_info(questions).await.unwrap().into_inner();
    let answer: ServerReflectionResponse = answers.message().await.unwrap().unwrap();
    answer.message_response.unwrap()
}

#[tokio::test]
async fn reflection_lists_and_describes_the_services() {
    let (_dir, server, _http) = fresh();
    let grpc = GrpcClient::open(server.address).await;
    let MessageResponse::ListServicesResponse(list) =
        reflected(&grpc, MessageRequest::ListServices(String::new())).await
    else {
        panic!("services are asked for")
    };
    let names: Vec<_> = list.service.iter().map(|service| service.name.as_str()).collect();
    for name in SERVICES.into_iter().chain(["grpc.health.v1.Health", "grpc.reflection.v1.ServerReflection"]) {
        assert!(names.contains(&name), "{name} is not in {names:?}");
    }
    let symbol = MessageRequest::FileContainingSymbol("hotpool.v1.ClaimService.TakeClaim".into());
    let MessageResponse::FileDescriptorResponse(files) = reflected(&grpc, symbol).await else {
        panic!("a file is asked for")
    };
    let file = String::from_utf8_lossy(&files.file_descriptor_proto[0]).into_owned();
    assert!(file.contains("hotpool/v1/hotpool.proto") && file.contains("BatchTakeClaims"), "{file}");
    // Older tools use the alpha version of the service.
    let mut alpha =
        tonic_reflection::pb::v1alpha::server_reflection_client::ServerReflectionClient::new(grpc.channel.clone());
    let request = tonic_reflection::pb::v1alpha::ServerReflectionRequest {
        host: String::new(),
        message_request: Some(tonic_reflection::pb::v1alpha::server_reflection_request::MessageRequest::ListServices(
            String::new(),
        )),
    };
    let mut answers = alpha.server_reflection_info(futures::stream::iter([request])).await.unwrap().into_inner();
    assert!(answers.message().await.unwrap().is_some());
}
