//! Connections beyond `server.max_connections`: each may send one probe or one scrape and is then closed, so that
//! clients that use up all connections cannot hide the service from its monitoring, or have it restarted by a failing
//! probe.
//!
//! Excess connections are few, and each has one second to send a request and one to receive the response. When all are
//! in use, the next one evicts the connection that has been idle for longest, so idle ones keep nobody out: it would
//! take [`EXCESS_CONNECTIONS_MAX`] new ones in the moment that a probe needs to send its request.

use parking_lot::{Mutex, MutexGuard};
use std::collections::VecDeque;
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper::{Method, Request};
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto;
use tokio::net::TcpStream;
use tokio::sync::{Notify, Semaphore, oneshot};
use tokio::time::sleep;

use super::ApiEdges;
use super::error_table::{ApiError, ErrorStatus};
use super::half_close::HttpPeer;
use super::listener::{self, LINGER};
use super::request_guard::{RequestHead, is_probe};
use super::request_id::with_request_id;
use super::routing::reject;
use super::socket::{ClientSocket, linger};
use crate::limits::EXCESS_CONNECTIONS_MAX;
use crate::metrics::{ExcessOutcome, HttpRoute, metrics};

/// Time limit for receiving the request, and again for sending the response.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(1);

/// Connections beyond the configured limit.
pub(super) struct ExcessConnections {
    queue: Mutex<ExcessQueue<oneshot::Sender<()>>>,
    /// Permits for open sockets; an evicted one keeps its permit until its task has noticed.
    open: Arc<Semaphore>,
    http: auto::Builder<TokioExecutor>,
    max_connections: usize,
}

impl ExcessConnections {
    /// Creates the set for a service with `max_connections` regular connections.
    pub(super) fn new(max_connections: usize) -> Arc<Self> {
        let mut http = listener::http_builder();
        http.http1().keep_alive(false);
        http.http2().max_concurrent_streams(1);
        let open = Arc::new(Semaphore::new(EXCESS_CONNECTIONS_MAX));
        Arc::new(Self { queue: Mutex::default(), open, http, max_connections })
    }

    /// Serves a connection in its own task, once the connection that it evicts is closed.
    pub(super) async fn accept(self: &Arc<Self>, stream: TcpStream, peer: SocketAddr, edges: ApiEdges) {
        let (evict, evicted) = oneshot::channel();
        let (id, oldest) = self.queue().admit(evict);
        // Closes that connection.
        drop(oldest);
        let permit = Arc::clone(&self.open).acquire_owned().await.expect("the semaphore is never closed");
        let excess = Arc::clone(self);
        tokio::spawn(async move {
            let outcome = match listener::configure_socket(&stream) {
                Ok(()) => excess.serve(id, stream, peer, edges, evicted).await,
                Err(_) => {
                    drop(stream);
                    ExcessOutcome::Silent
                }
            };
            excess.queue().remove(id);
            metrics().http_excess_connections(outcome).increment(1);
            if outcome != ExcessOutcome::Answered {
                metrics().http_connections_refused.increment(1);
            }
            drop(permit);
        });
    }

    fn queue(&self) -> MutexGuard<'_, ExcessQueue<oneshot::Sender<()>>> {
        self.queue.lock()
    }

    async fn serve(
        &self,
        id: u64,
        stream: TcpStream,
        peer: SocketAddr,
        edges: ApiEdges,
        evicted: oneshot::Receiver<()>,
    ) -> ExcessOutcome {
        let client = Arc::new(HttpPeer::new(stream));
        let (requested, served) = (Notify::new(), OnceLock::new());
        let service = service_fn(|request: Request<Incoming>| {
            let is_served = is_monitoring_request(&request);
            let outcome = if is_served { ExcessOutcome::Answered } else { ExcessOutcome::Refused };
            let is_served = served.set(outcome).is_ok() && is_served;
            requested.notify_one();
            let (edges, rejection) = (edges.clone(), self.rejection());
            with_request_id(peer, request, async move |request| {
                if is_served { edges.route(request).await } else { Ok(reject(&request, &rejection)) }
            })
        });
        let mut evicted = pin!(evicted);
        let outcome = {
            let serving = self.http.serve_connection(TokioIo::new(ClientSocket(Arc::clone(&client))), service);
            let (mut serving, mut timer) = (pin!(serving), pin!(sleep(REQUEST_TIMEOUT)));
            loop {
                tokio::select! {
                    biased;
                    _ = &mut serving => break served.get().copied().unwrap_or(ExcessOutcome::Silent),
                    () = requested.notified() => {
                        self.queue().note_request(id);
                        serving.as_mut().graceful_shutdown();
                        timer.set(sleep(REQUEST_TIMEOUT));
                    }
                    _ = &mut evicted => break ExcessOutcome::Displaced,
                    () = &mut timer => {
                        break if served.get().is_some() { ExcessOutcome::Late } else { ExcessOutcome::Silent };
                    }
                }
            }
        };
        if matches!(outcome, ExcessOutcome::Answered | ExcessOutcome::Refused) {
            tokio::select! {
                () = linger(&client.stream, LINGER) => {}
                _ = evicted => {}
            }
        }
        outcome
    }

    fn rejection(&self) -> ApiError {
        let message = format!(
            "all connections are in use (server.max_connections: {}, or fewer if the limit of open files is lower): others \
             are only for probes and /metrics; retry later",
            self.max_connections
        );
        ApiError::new(ErrorStatus::CONNECTIONS, message)
    }
}

/// Whether the request is a probe or a scrape.
fn is_monitoring_request(request: &Request<Incoming>) -> bool {
    is_probe(&RequestHead::from(request))
        || (request.method() == Method::GET && request.uri().path() == HttpRoute::Metrics.as_str())
}

/// Queue of excess connections, which decides which one is evicted for the next.
#[derive(Debug)]
struct ExcessQueue<H> {
    entries: VecDeque<ExcessEntry<H>>,
    next_id: u64,
}

#[derive(Debug)]
struct ExcessEntry<H> {
    id: u64,
    has_requested: bool,
    handle: H,
}

impl<H> Default for ExcessQueue<H> {
    fn default() -> Self {
        Self { entries: VecDeque::with_capacity(EXCESS_CONNECTIONS_MAX), next_id: 0 }
    }
}

impl<H> ExcessQueue<H> {
    /// Adds a connection and returns its id, with the handle of the one to evict: the oldest without a request, or else
    /// the oldest of all.
    fn admit(&mut self, handle: H) -> (u64, Option<H>) {
        let evicted = (self.entries.len() == EXCESS_CONNECTIONS_MAX).then(|| {
            let at = self.entries.iter().position(|entry| !entry.has_requested).unwrap_or(0);
            self.entries.remove(at).expect("the queue is full").handle
        });
        let id = self.next_id;
        self.next_id += 1;
        self.entries.push_back(ExcessEntry { id, has_requested: false, handle });
        assert!(self.entries.len() <= EXCESS_CONNECTIONS_MAX, "excess connections are bounded");
        (id, evicted)
    }

    fn note_request(&mut self, id: u64) {
        if let Some(entry) = self.entries.iter_mut().find(|entry| entry.id == id) {
            entry.has_requested = true;
        }
    }

    fn remove(&mut self, id: u64) {
        self.entries.retain(|entry| entry.id != id);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn h06_connections_without_a_request_are_evicted_first() {
        let mut queue = ExcessQueue::default();
        for handle in 0..EXCESS_CONNECTIONS_MAX {
            assert_eq!(queue.admit(handle), (handle as u64, None));
        }
        queue.note_request(0);
        queue.note_request(2);
        assert_eq!(queue.admit(100).1, Some(1));
        assert_eq!(queue.admit(101).1, Some(3));
        // A removed entry leaves space, so nothing is evicted.
        queue.remove(4);
        queue.remove(1);
        assert_eq!(queue.admit(102).1, None);
        // When all have sent a request, the oldest is evicted.
        (0..queue.next_id).for_each(|id| queue.note_request(id));
        assert_eq!(queue.admit(103).1, Some(0));
        assert_eq!(queue.admit(104).1, Some(103));
    }
}
