//! Service `grpc.health.v1`: health of the whole service, or of one of its gRPC services.

use std::pin::Pin;
use std::time::Duration;

use futures::stream::{self, Stream, StreamExt as _};
use tokio::sync::watch;
use tokio::time::{MissedTickBehavior, interval};
use tonic::{Request, Response, Status, async_trait};
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_server::Health as HealthService;
use tonic_health::pb::{HealthCheckRequest, HealthCheckResponse};

use super::proto::{claim_service_server, pool_service_server, quota_service_server, worker_service_server};
use crate::scheduler::Scheduler;

/// Service names that a client may check. All have the same health, because they share the shards.
const SERVICES: [&str; 5] = [
    "",
    claim_service_server::SERVICE_NAME,
    worker_service_server::SERVICE_NAME,
    pool_service_server::SERVICE_NAME,
    quota_service_server::SERVICE_NAME,
];
/// Interval at which watchers learn about changes.
const POLL_INTERVAL: Duration = Duration::from_millis(200);

/// Health service, shared by all connections.
pub(super) struct GrpcHealth {
    scheduler: Scheduler,
    stopping: watch::Receiver<()>,
    watched: watch::Receiver<ServingStatus>,
}

impl GrpcHealth {
    /// Starts the task that polls readiness for watchers; it ends when `stopping` closes, and so do their streams.
    pub(super) fn new(scheduler: Scheduler, mut stopping: watch::Receiver<()>) -> Self {
        let (sender, watched) = watch::channel(ServingStatus::NotServing);
        let health = Self { scheduler: scheduler.clone(), stopping: stopping.clone(), watched };
        tokio::spawn(async move {
            let mut ticks = interval(POLL_INTERVAL);
            ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
            loop {
                let status = tokio::select! {
                    _ = ticks.tick() => serving_status(&scheduler),
                    // The channel carries no values: it can only close.
                    _ = stopping.changed() => break,
                };
                sender.send_if_modified(|last| std::mem::replace(last, status) != status);
            }
            sender.send_if_modified(|last| {
                std::mem::replace(last, ServingStatus::NotServing) != ServingStatus::NotServing
            });
        });
        health
    }

    fn is_stopping(&self) -> bool {
        self.stopping.has_changed().is_err()
    }
}

fn serving_status(scheduler: &Scheduler) -> ServingStatus {
    if scheduler.readiness().ready { ServingStatus::Serving } else { ServingStatus::NotServing }
}

fn health_response(status: ServingStatus) -> HealthCheckResponse {
    HealthCheckResponse { status: status as i32 }
}

#[async_trait]
impl HealthService for GrpcHealth {
    type WatchStream = Pin<Box<dyn Stream<Item = Result<HealthCheckResponse, Status>> + Send>>;

    async fn check(&self, request: Request<HealthCheckRequest>) -> Result<Response<HealthCheckResponse>, Status> {
        if !SERVICES.contains(&request.get_ref().service.as_str()) {
            return Err(Status::not_found("no such service"));
        }
        let status = if self.is_stopping() { ServingStatus::NotServing } else { serving_status(&self.scheduler) };
        Ok(Response::new(health_response(status)))
    }

    async fn watch(&self, request: Request<HealthCheckRequest>) -> Result<Response<Self::WatchStream>, Status> {
        if !SERVICES.contains(&request.get_ref().service.as_str()) {
            // The protocol wants a stream for an unknown name too, which may become known. Here it never does.
            let mut stopping = self.stopping.clone();
            let unknown = stream::once(async { Ok(health_response(ServingStatus::ServiceUnknown)) });
            let until_stop = stream::once(async move { stopping.changed().await }).filter_map(async |_| None);
            return Ok(Response::new(Box::pin(unknown.chain(until_stop))));
        }
        let mut watched = self.watched.clone();
        // The first state is sent whether it has changed or not.
        watched.mark_changed();
        let statuses = stream::unfold(watched, async |mut watched| {
            watched.changed().await.ok()?;
            let status = *watched.borrow_and_update();
            Some((Ok(health_response(status)), watched))
        });
        Ok(Response::new(Box::pin(statuses)))
    }
}
