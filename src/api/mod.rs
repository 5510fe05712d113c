//! Edges of the service: they translate between the wire and the [scheduler](crate::scheduler), and decide nothing. One
//! table, [`error_table`], names every error on the wire; [`request`] holds the request forms of all edges. One port
//! serves HTTP and gRPC ([`listener`]), another RESP.
#![allow(clippy::disallowed_methods, reason = "what waits for sockets uses the timers and tasks of the runtime")]

use std::sync::Arc;
use std::time::Duration;

use futures::future::{BoxFuture, FutureExt as _};
use tokio::sync::Semaphore;

pub use self::connection_budget::ConnectionBudget;
pub use self::host::{HostName, HostNameError, HostNames};
use self::request_guard::RequestGuard;
pub use self::response_budget::ResponseBudget;
use crate::metrics::MetricsExporter;
use crate::scheduler::Scheduler;

mod batch;
mod body_budget;
mod connection_budget;
mod deadline;
pub mod error_table;
mod event_stream;
mod excess_connections;
pub mod grpc;
mod half_close;
mod host;
pub mod http;
pub mod listener;
mod request;
mod request_guard;
mod request_id;
pub mod resp;
mod response;
mod response_body;
mod response_budget;
mod routing;
mod socket;
mod write_timeout;

/// All edges of the service. Cheap to clone.
#[derive(Clone)]
pub struct ApiEdges {
    guard: RequestGuard,
    http: axum::Router,
    grpc: Arc<grpc::GrpcEdge>,
    scheduler: Scheduler,
    response_budget: ResponseBudget,
    /// Time for which a client may accept nothing of what was written to it.
    write_timeout: Duration,
    response_timeout: Duration,
    /// Edge for Redis clients.
    pub resp: resp::RespEdge,
}

/// Limits of a request on any edge.
#[derive(Debug, Clone, Copy)]
pub struct RequestLimits {
    /// Largest request body, in bytes.
    pub body_bytes_max: usize,
    /// Time limit from a request's head to its response, without the time in a queue; beyond it the outcome is unknown
    /// to the caller.
    pub timeout: Duration,
}

/// Factor on `server.request_timeout_ms` for the time that a chunk of a response may wait for its client: the responses
/// of many streams share one connection, and each waits while the others are sent.
const RESPONSE_TIMEOUT_FACTOR: u32 = 6;

/// Memory budgets that all requests share. Cheap to clone.
#[derive(Debug, Clone)]
pub struct MemoryBudgets {
    /// Budget for large request bodies, in KiB.
    pub bodies: Arc<Semaphore>,
    /// Budget for large responses, in bytes.
    pub responses: ResponseBudget,
}

impl ApiEdges {
    /// Creates the edges over a scheduler. `stopping` closes when the service begins to stop. Needs a tokio runtime.
    #[must_use]
    pub fn new(
        scheduler: Scheduler,
        exporter: MetricsExporter,
        bounds: RequestLimits,
        stopping: tokio::sync::watch::Receiver<()>,
    ) -> Self {
        // Many connections times the largest body would exceed all memory.
        let bodies = Arc::new(Semaphore::new(body_budget::BODY_BUDGET_KIB));
        let responses = ResponseBudget::default();
        let budgets = MemoryBudgets { bodies: Arc::clone(&bodies), responses: responses.clone() };
        let api = http::HttpState::new(scheduler.clone(), exporter, bounds, budgets.clone(), stopping.clone());
        let resp = resp::RespEdge::new(scheduler.clone(), bounds, bodies);
        Self {
            guard: RequestGuard::new(HostNames::default()),
            write_timeout: bounds.timeout,
            response_timeout: bounds.timeout * RESPONSE_TIMEOUT_FACTOR,
            http: http::router(api),
            grpc: Arc::new(grpc::GrpcEdge::new(scheduler.clone(), bounds, budgets, stopping)),
            scheduler,
            response_budget: responses,
            resp,
        }
    }

    /// Accepts requests under these host names, in addition to `localhost` and IP addresses.
    #[must_use]
    pub fn with_hosts(self, hosts: HostNames) -> Self {
        Self { guard: RequestGuard::new(hosts), ..self }
    }
}

/// Resolves when the service begins to stop.
fn wait_for_stop(stopping: &tokio::sync::watch::Receiver<()>) -> BoxFuture<'static, ()> {
    let mut stopping = stopping.clone();
    async move {
        // Both outcomes mean stop: a message, or a dropped sender.
        let _ = stopping.changed().await;
    }
    .boxed()
}
