//! Clients that have closed their sending side. To the system a client that will send no more and reads on looks like one
//! that is gone: both sent FIN. Only what is written tells them apart, because the system of a client that is gone answers
//! it with a reset. Hence the rule of all edges on TCP:
//!
//! - What came as a whole before is carried out and answered.
//! - A claim that waits for room goes on waiting for [`GRACE`] and no longer, so that those of clients that died are not
//!   in the way of others for long.
//! - A claim that was answered after the FIN is given back unless the client's system acknowledged the answer.
//! - A stream of events goes on, and something is written to it at once.
//! - A reset, at any time, is a client that is gone. A claim whose answer its system had acknowledged before is kept: whether
//!   the client had read it cannot be known, and to give the worker back could give it out twice.

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
use crate::model::{ClaimId, ClaimResult, Fence};
use crate::scheduler::Scheduler;

/// How long a claim goes on waiting whose client has closed its sending side.
pub(super) const HALF_CLOSE_GRACE: Duration = Duration::from_secs(2);
/// First and longest pause between two looks at what the client's system acknowledged.
const ACK_POLL_BACKOFF: (Duration, Duration) = (Duration::from_millis(1), Duration::from_millis(50));

/// Claims whose answers may not arrive.
pub(super) type UndeliveredClaims = Vec<(ClaimId, Fence)>;

tokio::task_local! {
    /// Client of the request that this task carries out, where a connection carries one request at a time.
    pub(super) static CLIENT: Option<Arc<HttpPeer>>;
}

/// The client of a connection over HTTP/1.1.
#[derive(Debug)]
pub(super) struct HttpPeer {
    pub(super) stream: TcpStream,
    undelivered: Mutex<UndeliveredClaims>,
}

impl HttpPeer {
    pub(super) fn new(stream: TcpStream) -> Self {
        Self { stream, undelivered: Mutex::default() }
    }

    /// Resolves when a claim that waits is to wait no longer.
    pub(super) async fn wait_for_departure(&self) {
        half_closed(&self.stream).await;
        sleep(HALF_CLOSE_GRACE).await;
    }

    /// Claims that were answered after it had closed its sending side.
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

/// Notes claims that are about to be answered, if their client has closed its sending side.
pub(super) fn record_undelivered<'t>(taken: impl Iterator<Item = &'t ClaimResult>) {
    // Outside of a connection nobody has a client.
    let _ = CLIENT.try_with(|client| {
        let Some(client) = client else { return };
        let mut made = created_claims(taken).peekable();
        if made.peek().is_some() && is_half_closed(&client.stream) {
            client.undelivered.lock().extend(made);
        }
    });
}

/// Claims that were made, of those that were answered.
pub(super) fn created_claims<'t>(
    taken: impl Iterator<Item = &'t ClaimResult>,
) -> impl Iterator<Item = (ClaimId, Fence)> {
    taken.filter(|taken| taken.created).map(|taken| (taken.claim.id.clone(), taken.claim.fence))
}

/// Why a claim waits no more.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum ClientDeparture {
    /// The client is gone.
    Gone,
    /// The client has closed its sending side, and [`GRACE`] has passed since.
    HalfClosed,
}

/// Whether the client has closed its sending side, or is gone.
pub(super) fn is_half_closed(stream: &TcpStream) -> bool {
    // The system is asked as well: the runtime may hear of it later. A reset shows as an error here, and once more when
    // the answer is written.
    let has_ended = || match rustix::net::recv(stream, &mut [0; 1], RecvFlags::PEEK | RecvFlags::DONTWAIT) {
        Ok((_, bytes)) => bytes == 0,
        Err(error) => !matches!(error, Errno::AGAIN | Errno::INTR),
    };
    half_closed(stream).now_or_never().is_some() || has_ended()
}

/// Resolves when the client has closed its sending side, or is gone.
pub(super) async fn half_closed(stream: &TcpStream) {
    // Not woken by what the client sends, which nobody reads meanwhile. An error here is the runtime's end.
    let _ = stream.ready(Interest::PRIORITY).await;
}

/// Resolves when the client is known to be gone.
pub(super) async fn reset_by_peer(stream: &TcpStream) {
    let _ = stream.ready(Interest::ERROR).await;
}

/// Resolves when a claim of this client is to wait no longer. `grace` is kept over the claims of a connection.
pub(super) async fn departure(stream: &TcpStream, grace: &mut Option<Pin<Box<Sleep>>>) -> ClientDeparture {
    half_closed(stream).await;
    tokio::select! {
        biased;
        () = reset_by_peer(stream) => ClientDeparture::Gone,
        () = grace.get_or_insert_with(|| Box::pin(sleep(HALF_CLOSE_GRACE))) => ClientDeparture::HalfClosed,
    }
}

/// Answer to a claim that waits no longer.
pub(super) fn wait_abandoned_error() -> ApiError {
    let grace_ms = HALF_CLOSE_GRACE.as_millis();
    let message =
        format!("the client has closed its sending side, and a claim waits at most {grace_ms} ms from then on");
    ApiError::new(ErrorStatus::from_refusal(&RequestError::DeadlineExceeded), message)
}

/// Whether the client's system acknowledged all that was written, its sending side being closed and ours as well.
async fn was_acknowledged(stream: &TcpStream, within: Duration) -> bool {
    let acknowledged = async {
        let (mut pause, longest) = ACK_POLL_BACKOFF;
        loop {
            // A closed socket has no peer: without an error, all of it was acknowledged, our FIN last.
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
    timeout(within, acknowledged).await.unwrap_or(false)
}

/// Gives claims back whose answers did not arrive. Nothing more is to be written.
pub(super) async fn roll_back_unacknowledged(
    scheduler: &Scheduler,
    untold: UndeliveredClaims,
    stream: &TcpStream,
    within: Duration,
) {
    if untold.is_empty() {
        return;
    }
    // An error here is one that the look at the socket finds as well.
    let _ = rustix::net::shutdown(stream, Shutdown::Write);
    if !was_acknowledged(stream, within).await {
        roll_back_all(scheduler, untold);
    }
}

/// Gives claims back that their client was not told of.
pub(super) fn roll_back_all(scheduler: &Scheduler, untold: UndeliveredClaims) {
    for (id, fence) in untold {
        scheduler.roll_back_undelivered(&id, fence);
    }
}
