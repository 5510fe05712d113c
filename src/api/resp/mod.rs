//! RESP edge: the protocol of Redis and its clients, for claims over client libraries that people already have. `frame`
//! parses commands, `parse_args` checks their arguments, `connection` batches them for the scheduler and writes the
//! replies, `single_call` executes commands one at a time, `session` and `commands` answer what clients send before
//! their first claim, `transaction` stores commands between `MULTI` and `EXEC`, `error_reply` maps the error table to
//! the protocol.
//!
//! This edge is for callers that count microseconds, so a request costs no task, no timer and no copy of its arguments;
//! if the shard is idle, it is decided inline, in the task that read it. Connections have their own threads
//! (`threads`), because moving a task between cores costs as much as deciding a request.

use std::panic::AssertUnwindSafe;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use futures::FutureExt as _;
use tokio::net::TcpListener;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio::task::JoinHandle;

use super::{ConnectionBudget, RequestLimits, listener};
use crate::metrics::{RespCloseReason, metrics};
use crate::scheduler::Scheduler;

mod command_batch;
mod commands;
mod connection;
mod error_reply;
pub mod frame;
mod parse_args;
mod reply_buffer;
mod session;
mod single_call;
mod threads;
mod transaction;

use connection::{IdleConnection, RespConnection};
use threads::{AcceptedConnection, RespThreads, ThreadAffinity};

/// Error text when the budget for large commands is used up.
const BODY_BUDGET_EXCEEDED: &str = "large requests use up their memory budget; retry later";

/// State that all connections share.
pub(super) struct RespContext {
    scheduler: Scheduler,
    bounds: RequestLimits,
    /// Budget for large commands, in KiB, shared with the other edges.
    bodies: Arc<Semaphore>,
    limits: ConnectionLimits,
}

/// Limits of RESP connections.
#[derive(Debug, Clone)]
pub struct ConnectionLimits {
    /// Limit on open connections.
    pub budget: ConnectionBudget,
    /// Idle timeout between two commands, and four times as long within a transaction. `None`: no timeout.
    pub idle: Option<Duration>,
}

impl RespContext {
    fn try_reserve(&self, kib: usize) -> Option<OwnedSemaphorePermit> {
        Arc::clone(&self.bodies).try_acquire_many_owned(u32::try_from(kib).ok()?).ok()
    }
}

/// Edge for Redis clients. Cheap to clone.
#[derive(Clone)]
pub struct RespEdge {
    scheduler: Scheduler,
    bounds: RequestLimits,
    bodies: Arc<Semaphore>,
}

impl RespEdge {
    /// Creates the edge. `bodies` has the KiB for large commands, shared with the other edges.
    pub(super) const fn new(scheduler: Scheduler, bounds: RequestLimits, bodies: Arc<Semaphore>) -> Self {
        Self { scheduler, bounds, bodies }
    }

    /// Starts the threads, and a task that serves within `limits` until `stopping` closes; then it accepts no more, and
    /// waits at most `grace` for the commands in flight.
    ///
    /// # Errors
    /// The system cannot start another thread.
    pub fn start(
        self,
        listener: TcpListener,
        limits: ConnectionLimits,
        grace: Duration,
        stopping: watch::Receiver<()>,
    ) -> std::io::Result<JoinHandle<()>> {
        let Self { scheduler, bounds, bodies } = self;
        let shared = Arc::new(RespContext { scheduler, bounds, bodies, limits });
        let threads = RespThreads::start(&shared, &stopping)?;
        Ok(tokio::spawn(accept(listener, shared, threads, grace, stopping)))
    }

    /// Serves one connection in the calling task instead of a thread of the edge, until its client leaves: a benchmark
    /// counts the instructions of its commands and of nothing else.
    #[cfg(feature = "internals")]
    pub async fn serve_connection(
        self,
        stream: tokio::net::TcpStream,
        limits: ConnectionLimits,
        stopping: watch::Receiver<()>,
    ) {
        let Self { scheduler, bounds, bodies } = self;
        let shared = RespContext { scheduler, bounds, bodies, limits };
        if let Ok(peer) = stream.peer_addr() {
            serve(&shared, IdleConnection::new(stream, peer), stopping, ThreadAffinity::Pinned).await;
        }
    }
}

async fn accept(
    listener: TcpListener,
    shared: Arc<RespContext>,
    threads: RespThreads,
    grace: Duration,
    mut stopping: watch::Receiver<()>,
) {
    let mut stop = pin!(async move {
        // Both outcomes mean stop: a message, or a dropped sender.
        let _ = stopping.changed().await;
    });
    while let Some((stream, peer)) = listener::next_connection(&listener, stop.as_mut()).await {
        let rejected = match shared.limits.budget.try_acquire() {
            Some(permit) => {
                let accepted = Box::new(AcceptedConnection { client: IdleConnection::new(stream, peer), permit });
                threads.assign(accepted).await.err().map(|accepted| accepted.client)
            }
            None => Some(IdleConnection::new(stream, peer)),
        };
        if let Some(client) = rejected {
            metrics().resp_ended(RespCloseReason::TooMany).increment(1);
            // A client that cannot take the error at once does not get it.
            let _ = client.stream().try_write(b"-ERR max number of clients reached\r\n");
        }
    }
    drop(listener);
    if threads.join(grace).await.is_err() {
        tracing::warn!("commands were still in flight at the shutdown deadline");
    }
}

/// Serves a client. Returns it if it should move to another thread and may.
async fn serve(
    shared: &RespContext,
    client: IdleConnection,
    stopping: watch::Receiver<()>,
    affinity: ThreadAffinity,
) -> Option<IdleConnection> {
    if let Err(error) = listener::configure_socket(client.stream()) {
        tracing::debug!(%error, "connection closed before it was served");
        return None;
    }
    metrics().resp_connections.increment(1.0);
    let served = AssertUnwindSafe(RespConnection::new(shared, client, affinity).serve(stopping)).catch_unwind().await;
    metrics().resp_connections.decrement(1.0);
    served.unwrap_or_else(|_| {
        tracing::error!("the handler of a RESP connection panicked");
        metrics().resp_ended(RespCloseReason::Panic).increment(1);
        None
    })
}
