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

use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures::FutureExt as _;
use rustix::io::Errno;
use rustix::net::{RecvFlags, Shutdown};
use tokio::io::Interest;
use tokio::net::TcpStream;
use tokio::time::{Sleep, sleep, timeout};

use super::error_table::{Failure, Outcome};
use crate::model::rejection::Refusal;
use crate::model::{ClaimId, Fence, Taken};
use crate::scheduler::Scheduler;

/// How long a claim goes on waiting whose client has closed its sending side.
pub(super) const GRACE: Duration = Duration::from_secs(2);
/// First and longest pause between two looks at what the client's system acknowledged.
const PAUSES: (Duration, Duration) = (Duration::from_millis(1), Duration::from_millis(50));

/// Claims whose answers may not arrive.
pub(super) type Untold = Vec<(ClaimId, Fence)>;

tokio::task_local! {
    /// Client of the request that this task carries out, where a connection carries one request at a time.
    pub(super) static CLIENT: Option<Arc<Client>>;
}

/// The client of a connection over HTTP/1.1.
#[derive(Debug)]
pub(super) struct Client {
    pub(super) stream: TcpStream,
    untold: Mutex<Untold>,
}

impl Client {
    pub(super) fn new(stream: TcpStream) -> Self {
        Self { stream, untold: Mutex::default() }
    }

    /// Resolves when a claim that waits is to wait no longer.
    pub(super) async fn departs(&self) {
        finished(&self.stream).await;
        sleep(GRACE).await;
    }

    /// Claims that were answered after it had closed its sending side.
    pub(super) fn untold(&self) -> Untold {
        std::mem::take(&mut *self.untold.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// Resolves when the client of this task's request has closed its sending side, or is gone.
pub(super) fn client_finished() -> impl Future<Output = ()> + Send + 'static {
    let client = CLIENT.try_with(Clone::clone).ok().flatten();
    async move {
        match client {
            Some(client) => finished(&client.stream).await,
            None => std::future::pending().await,
        }
    }
}

/// Notes claims that are about to be answered, if their client has closed its sending side.
pub(super) fn note<'t>(taken: impl Iterator<Item = &'t Taken>) {
    // Outside of a connection nobody has a client.
    let _ = CLIENT.try_with(|client| {
        let Some(client) = client else { return };
        let mut made = made(taken).peekable();
        if made.peek().is_some() && has_finished(&client.stream) {
            client.untold.lock().unwrap_or_else(PoisonError::into_inner).extend(made);
        }
    });
}

/// Claims that were made, of those that were answered.
pub(super) fn made<'t>(taken: impl Iterator<Item = &'t Taken>) -> impl Iterator<Item = (ClaimId, Fence)> {
    taken.filter(|taken| taken.created).map(|taken| (taken.claim.id.clone(), taken.claim.fence))
}

/// Why a claim waits no more.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Departure {
    /// The client is gone.
    Gone,
    /// The client has closed its sending side, and [`GRACE`] has passed since.
    Finished,
}

/// Whether the client has closed its sending side, or is gone.
pub(super) fn has_finished(stream: &TcpStream) -> bool {
    // The system is asked as well: the runtime may hear of it later. A reset shows as an error here, and once more when
    // the answer is written.
    let has_ended = || match rustix::net::recv(stream, &mut [0; 1], RecvFlags::PEEK | RecvFlags::DONTWAIT) {
        Ok((_, bytes)) => bytes == 0,
        Err(error) => !matches!(error, Errno::AGAIN | Errno::INTR),
    };
    finished(stream).now_or_never().is_some() || has_ended()
}

/// Resolves when the client has closed its sending side, or is gone.
pub(super) async fn finished(stream: &TcpStream) {
    // Not woken by what the client sends, which nobody reads meanwhile. An error here is the runtime's end.
    let _ = stream.ready(Interest::PRIORITY).await;
}

/// Resolves when the client is known to be gone.
pub(super) async fn gone(stream: &TcpStream) {
    let _ = stream.ready(Interest::ERROR).await;
}

/// Resolves when a claim of this client is to wait no longer. `grace` is kept over the claims of a connection.
pub(super) async fn departure(stream: &TcpStream, grace: &mut Option<Pin<Box<Sleep>>>) -> Departure {
    finished(stream).await;
    tokio::select! {
        biased;
        () = gone(stream) => Departure::Gone,
        () = grace.get_or_insert_with(|| Box::pin(sleep(GRACE))) => Departure::Finished,
    }
}

/// Answer to a claim that waits no longer.
pub(super) fn waits_no_more() -> Failure {
    let grace_ms = GRACE.as_millis();
    let message =
        format!("the client has closed its sending side, and a claim waits at most {grace_ms} ms from then on");
    Failure::new(Outcome::of(&Refusal::DeadlineExceeded), message)
}

/// Whether the client's system acknowledged all that was written, its sending side being closed and ours as well.
async fn arrived(stream: &TcpStream, within: Duration) -> bool {
    let acknowledged = async {
        let (mut pause, longest) = PAUSES;
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
pub(super) async fn settle(scheduler: &Scheduler, untold: Untold, stream: &TcpStream, within: Duration) {
    if untold.is_empty() {
        return;
    }
    // An error here is one that the look at the socket finds as well.
    let _ = rustix::net::shutdown(stream, Shutdown::Write);
    if !arrived(stream, within).await {
        give_back(scheduler, untold);
    }
}

/// Gives claims back that their client was not told of.
pub(super) fn give_back(scheduler: &Scheduler, untold: Untold) {
    for (id, fence) in untold {
        scheduler.roll_back_undelivered(&id, fence);
    }
}
