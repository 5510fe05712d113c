//! Clients that have closed their sending side. The operating system cannot tell a client that only stopped sending
//! from one that is gone: both sent FIN. Only a write tells them apart, because the system of a client that is gone
//! replies with a reset. Hence the rules for all edges on TCP:
//!
//! - A request that arrived completely before is executed and answered.
//! - A queued claim stays queued for [`HALF_CLOSE_GRACE`] and no longer, so that claims of dead clients do not block
//!   others.
//! - A claim that was answered after the FIN is rolled back unless the client's system acknowledged the response.
//! - An event stream goes on, and something is written to it at once.
//! - A reset, at any time, means that the client is gone. A claim whose response was acknowledged before is kept:
//!   whether the client read it is unknown, and a rollback could assign the worker twice.

use parking_lot::Mutex;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use futures::FutureExt as _;
use rustix::io::Errno;
use rustix::net::{RecvFlags, Shutdown};
use tokio::io::Interest;
use tokio::net::TcpStream;
use tokio::time::{Sleep, sleep, timeout};

use super::error_table::{ApiError, ErrorStatus};
use crate::model::request_error::RequestError;
use crate::model::{ClaimId, ClaimResult, Fence, UnreadReply};
use crate::scheduler::Scheduler;

/// Time for which a claim stays queued after its client has closed its sending side.
pub(super) const HALF_CLOSE_GRACE: Duration = Duration::from_secs(2);
/// First and longest pause between two checks of what the client's system has acknowledged.
const ACK_POLL_BACKOFF: (Duration, Duration) = (Duration::from_millis(1), Duration::from_millis(50));

/// Claims whose responses may not have arrived.
pub(super) type UndeliveredClaims = Vec<(ClaimId, Fence, UnreadReply)>;

tokio::task_local! {
    /// Client of the request that this task runs, where a connection carries one request at a time.
    pub(super) static CLIENT: Option<Arc<HttpPeer>>;
}

/// Client of an HTTP/1.1 connection.
#[derive(Debug)]
pub(super) struct HttpPeer {
    pub(super) stream: TcpStream,
    undelivered: Mutex<UndeliveredClaims>,
}

impl HttpPeer {
    pub(super) fn new(stream: TcpStream) -> Self {
        Self { stream, undelivered: Mutex::default() }
    }

    /// Resolves when a queued claim of this client should be abandoned.
    pub(super) async fn wait_for_departure(&self) {
        half_closed(&self.stream).await;
        sleep(HALF_CLOSE_GRACE).await;
    }

    /// Takes the claims that were answered after the client had closed its sending side.
    pub(super) fn take_undelivered(&self) -> UndeliveredClaims {
        std::mem::take(&mut *self.undelivered.lock())
    }
}

/// Resolves when the client of this task's request has closed its sending side, or is gone.
pub(super) fn client_half_closed() -> impl Future<Output = ()> + Send + 'static {
    let client = CLIENT.try_with(Clone::clone).ok().flatten();
    async move {
        match client {
            Some(client) => half_closed(&client.stream).await,
            None => std::future::pending().await,
        }
    }
}

/// Records claims that are about to be answered, if their client has closed its sending side.
pub(super) fn record_undelivered<'t>(results: impl Iterator<Item = &'t ClaimResult>) {
    // Outside of a connection there is no client.
    let _ = CLIENT.try_with(|client| {
        let Some(client) = client else { return };
        let mut shown = shown_claims(results).peekable();
        if shown.peek().is_some() && is_half_closed(&client.stream) {
            client.undelivered.lock().extend(shown);
        }
    });
}

/// Claims that an answer shows, and what it is to each of them.
pub(super) fn shown_claims<'t>(
    results: impl Iterator<Item = &'t ClaimResult>,
) -> impl Iterator<Item = (ClaimId, Fence, UnreadReply)> {
    results.map(|result| (result.claim.id.clone(), result.claim.fence, result.as_unread()))
}

/// Reason why a queued claim is abandoned.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum ClientDeparture {
    /// Connection was reset: the client is gone.
    Gone,
    /// Client closed its sending side more than [`HALF_CLOSE_GRACE`] ago.
    HalfClosed,
}

/// Whether the client has closed its sending side, or is gone.
pub(super) fn is_half_closed(stream: &TcpStream) -> bool {
    // Ask the operating system as well, because the runtime may notice later. A reset is an error here, and again when
    // the response is written.
    let has_ended = || match rustix::net::recv(stream, &mut [0; 1], RecvFlags::PEEK | RecvFlags::DONTWAIT) {
        Ok((_, bytes)) => bytes == 0,
        Err(error) => !matches!(error, Errno::AGAIN | Errno::INTR),
    };
    half_closed(stream).now_or_never().is_some() || has_ended()
}

/// Resolves when the client has closed its sending side, or is gone.
pub(super) async fn half_closed(stream: &TcpStream) {
    // Does not wake up for data, which nobody reads in the meantime. An error here means that the runtime shuts down.
    let _ = stream.ready(Interest::PRIORITY).await;
}

/// Resolves when the connection was reset by its client.
pub(super) async fn reset_by_peer(stream: &TcpStream) {
    let _ = stream.ready(Interest::ERROR).await;
}

/// Resolves when a queued claim of this client should be abandoned. `grace` lasts across the claims of a connection.
pub(super) async fn departure(stream: &TcpStream, grace: &mut Option<Pin<Box<Sleep>>>) -> ClientDeparture {
    half_closed(stream).await;
    tokio::select! {
        biased;
        () = reset_by_peer(stream) => ClientDeparture::Gone,
        () = grace.get_or_insert_with(|| Box::pin(sleep(HALF_CLOSE_GRACE))) => ClientDeparture::HalfClosed,
    }
}

/// Error for a queued claim that was abandoned.
pub(super) fn wait_abandoned_error() -> ApiError {
    let grace_ms = HALF_CLOSE_GRACE.as_millis();
    let message =
        format!("the client has closed its sending side, after which a claim is queued for at most {grace_ms} ms");
    ApiError::new(ErrorStatus::from_error(&RequestError::DeadlineExceeded), message)
}

/// Whether the client's system acknowledged everything that was written, once both sides have closed their sending
/// side.
async fn was_acknowledged(stream: &TcpStream, limit: Duration) -> bool {
    let acknowledged = async {
        let (mut pause, longest) = ACK_POLL_BACKOFF;
        loop {
            // A closed socket has no peer: without an error, everything was acknowledged, our FIN last.
            let closed = stream.peer_addr().is_err();
            if !matches!(stream.take_error(), Ok(None)) {
                return false;
            }
            if closed {
                return true;
            }
            sleep(pause).await;
            pause = (pause * 2).min(longest);
        }
    };
    timeout(limit, acknowledged).await.unwrap_or(false)
}

/// Rolls back claims whose responses did not arrive. The caller must have written everything.
pub(super) async fn roll_back_unacknowledged(
    scheduler: &Scheduler,
    undelivered: UndeliveredClaims,
    stream: &TcpStream,
    limit: Duration,
) {
    if undelivered.is_empty() {
        return;
    }
    // An error here shows up again in the check of the socket.
    let _ = rustix::net::shutdown(stream, Shutdown::Write);
    if !was_acknowledged(stream, limit).await {
        roll_back_all(scheduler, undelivered);
    }
}

/// Rolls back claims whose answers their clients never received, unless others know of them.
pub(super) fn roll_back_all(scheduler: &Scheduler, undelivered: UndeliveredClaims) {
    for (id, fence, reply) in undelivered {
        scheduler.discard_reply(&id, fence, reply);
    }
}
