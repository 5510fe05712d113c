//! RESP, the protocol of Redis and its clients, for claims on the wire that people have already: `frame` takes commands
//! out of bytes, `read` makes checked values of them, `connection` decides which go to the scheduler together and writes
//! the answers, `call` carries out what comes one at a time, `session` and `commands` answer what clients ask before their
//! first claim, `transaction` keeps what stands between `MULTI` and `EXEC`, `failure` says the outcome table in the protocol's words.
//!
//! This is the edge for those who count microseconds, so a request costs no task, no timer and no copy of its words; while
//! a shard is free it is decided on the spot, in the task that read it. Connections have threads of their own (`threads`),
//! because tasks that move between cores cost a request as much as deciding it.

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
use threads::{AcceptedConnection, RespThreads};

/// Said when the room for large commands is used up.
const BODY_BUDGET_EXCEEDED: &str = "too many large requests at a time; retry later";

/// What every connection needs.
pub(super) struct RespContext {
    scheduler: Scheduler,
    bounds: RequestLimits,
    /// Room for large commands, in KiB, shared with the other edges.
    bodies: Arc<Semaphore>,
    limits: ConnectionLimits,
}

/// What bounds the connections.
#[derive(Debug, Clone)]
pub struct ConnectionLimits {
    /// How many there may be at a time.
    pub budget: ConnectionBudget,
    /// How long one may be silent between two commands, four times as long within a transaction; none: for ever.
    pub idle: Option<Duration>,
}

impl RespContext {
    fn try_reserve(&self, kib: usize) -> Option<OwnedSemaphorePermit> {
        Arc::clone(&self.bodies).try_acquire_many_owned(u32::try_from(kib).ok()?).ok()
    }
}

/// The RESP edge. Cheap to clone.
#[derive(Clone)]
pub struct RespEdge {
    scheduler: Scheduler,
    bounds: RequestLimits,
    bodies: Arc<Semaphore>,
}

impl RespEdge {
    /// `bodies`: room for large commands, in KiB, shared with the other edges.
    pub(super) const fn new(scheduler: Scheduler, bounds: RequestLimits, bodies: Arc<Semaphore>) -> Self {
        Self { scheduler, bounds, bodies }
    }

    /// Starts its threads, and a task that serves until `stopping` closes, within `limits`; that then accepts no more, and
    /// waits at most `grace` for the commands in flight.
    ///
    /// # Errors
    /// The system has no thread left.
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
}

async fn accept(
    listener: TcpListener,
    shared: Arc<RespContext>,
    threads: RespThreads,
    grace: Duration,
    mut stopping: watch::Receiver<()>,
) {
    let mut stop = pin!(async move {
        // Either outcome means the end: a word, or nobody left to say it.
        let _ = stopping.changed().await;
    });
    while let Some((stream, peer)) = listener::next_connection(&listener, stop.as_mut()).await {
        let refused = match shared.limits.budget.try_acquire() {
            Some(permit) => {
                let accepted = Box::new(AcceptedConnection { client: IdleConnection::new(stream, peer), permit });
                threads.assign(accepted).await.err().map(|accepted| accepted.client)
            }
            None => Some(IdleConnection::new(stream, peer)),
        };
        if let Some(client) = refused {
            metrics().resp_ended(RespCloseReason::TooMany).increment(1);
            // Who does not take it at once goes without.
            let _ = client.stream().try_write(b"-ERR max number of clients reached\r\n");
        }
    }
    drop(listener);
    if threads.join(grace).await.is_err() {
        tracing::warn!("commands were still in flight at the deadline of the shutdown");
    }
}

/// Serves a client. Gives it back when it might do better on another thread, if it may.
async fn serve(
    shared: &RespContext,
    client: IdleConnection,
    stopping: watch::Receiver<()>,
    may_move: bool,
) -> Option<IdleConnection> {
    if let Err(error) = listener::configure_socket(client.stream()) {
        tracing::debug!(%error, "a connection was gone before it was served");
        return None;
    }
    metrics().resp_connections.increment(1.0);
    let served = AssertUnwindSafe(RespConnection::new(shared, client, may_move).serve(stopping)).catch_unwind().await;
    metrics().resp_connections.decrement(1.0);
    served.unwrap_or_else(|_| {
        tracing::error!("the handler of a RESP connection panicked");
        metrics().resp_ended(RespCloseReason::Panic).increment(1);
        None
    })
}
