//! The edges: they translate between the wire and the [scheduler](crate::scheduler), and decide nothing.
//! What a refusal is called on the wire stands in one table, [`outcome`]. One port serves HTTP and gRPC, another RESP:
//! [`listener`].

use std::sync::Arc;
use std::time::Duration;

use futures::future::{BoxFuture, FutureExt as _};
use tokio::sync::Semaphore;

pub use self::answer_room::AnswerRoom;
pub use self::connection_budget::ConnectionBudget;
pub use self::host::{HostName, HostNames};
use self::request_guard::RequestGuard;
use crate::metrics::Exporter;
use crate::scheduler::Scheduler;

mod answer_body;
mod answer_room;
mod connection_budget;
mod deadline;
pub mod error_table;
mod excess_connections;
pub mod grpc;
mod half_close;
mod host;
pub mod http;
pub mod listener;
mod patience;
mod request_guard;
mod request_id;
pub mod resp;
mod routing;
mod socket;
mod watch;

/// Every edge of the service. Cheap to clone.
#[derive(Clone)]
pub struct Edges {
    guard: RequestGuard,
    http: axum::Router,
    grpc: Arc<grpc::Grpc>,
    scheduler: Scheduler,
    answers: AnswerRoom,
    /// How long a client may take nothing of what was written to it.
    patience: Duration,
    /// Longest time for which a piece of an answer may wait for its client.
    answer_patience: Duration,
    /// RESP.
    pub resp: resp::Resp,
}

/// What bounds a request, on any edge.
#[derive(Debug, Clone, Copy)]
pub struct Bounds {
    /// Largest request body, in bytes.
    pub body_bytes_max: usize,
    /// From a request's head to its answer, beside the time that it waits for room; past it the outcome is unknown to the
    /// caller.
    pub timeout: Duration,
}

/// Times `server.request_timeout_ms` for which a piece of an answer may wait for its client: the answers of many streams share
/// one connection, and each waits while the others are sent.
const ANSWER_PATIENCE_TIMEOUTS: u32 = 6;

/// Memory that all requests share. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Rooms {
    /// Room for large bodies, in KiB.
    pub bodies: Arc<Semaphore>,
    /// Room for large answers.
    pub answers: AnswerRoom,
}

impl Edges {
    /// Over a scheduler. `stopping` closes when the service begins to stop. Needs a tokio runtime.
    #[must_use]
    pub fn new(
        scheduler: Scheduler,
        exporter: Exporter,
        bounds: Bounds,
        stopping: tokio::sync::watch::Receiver<()>,
    ) -> Self {
        // Many connections times the largest body would be all of memory.
        let bodies = Arc::new(Semaphore::new(http::BODIES_KIB_MAX));
        let answers = AnswerRoom::default();
        let rooms = Rooms { bodies: Arc::clone(&bodies), answers: answers.clone() };
        let api = http::Api::new(scheduler.clone(), exporter, bounds, rooms.clone(), stopping.clone());
        let resp = resp::Resp::new(scheduler.clone(), bounds, bodies);
        let (patience, answer_patience) = (bounds.timeout, bounds.timeout * ANSWER_PATIENCE_TIMEOUTS);
        Self {
            guard: RequestGuard::new(HostNames::default()),
            patience,
            answer_patience,
            http: http::router(api),
            grpc: Arc::new(grpc::Grpc::new(scheduler.clone(), bounds, rooms, stopping)),
            scheduler,
            answers,
            resp,
        }
    }

    /// Serves requests under these host names as well, beside `localhost` and addresses.
    #[must_use]
    pub fn with_hosts(self, hosts: HostNames) -> Self {
        Self { guard: RequestGuard::new(hosts), ..self }
    }
}

/// Resolves when the service begins to stop.
fn stopped(stopping: &tokio::sync::watch::Receiver<()>) -> BoxFuture<'static, ()> {
    let mut stopping = stopping.clone();
    async move {
        // Either outcome means the end: a word, or nobody left to say it.
        let _ = stopping.changed().await;
    }
    .boxed()
}
