//! Timeouts for clients that do not read what is sent to them. The kernel finds a peer that is gone, because nothing is
//! acknowledged; these find one that is alive but does not read.

use std::cell::Cell;
use std::future::poll_fn;
use std::io::{self, IoSlice};
use std::pin::{Pin, pin};
use std::task::{Context, Poll};
use std::time::Duration;

use hyper::rt::Executor;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Sleep, sleep};

use super::socket::ClientSocket;

tokio::task_local! {
    /// State of the response on the HTTP/2 stream that this task serves.
    static LAST_FRAME: Cell<FrameState>;
}

/// State of the last frame that a body yielded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum FrameState {
    /// Frame was consumed, or none was yielded yet.
    Consumed,
    /// Frame was yielded since the last check of the timer.
    Yielded,
    /// Frame is waiting, with the timer running.
    Stalled,
}

/// Records that a body is polled for a frame, so the last one was consumed.
pub(super) fn record_frame_consumed() {
    // Outside of a timed stream there is nothing to record.
    let _ = LAST_FRAME.try_with(|frame| frame.set(FrameState::Consumed));
}

/// Records that a body yields a frame.
pub(super) fn record_frame_yielded() {
    let _ = LAST_FRAME.try_with(|frame| frame.set(FrameState::Yielded));
}

/// Runs each HTTP/2 stream in a task, and drops one whose client leaves a frame waiting for `write_timeout`, which
/// resets the stream.
#[derive(Debug, Clone)]
pub(super) struct WriteTimeoutExecutor {
    pub(super) write_timeout: Duration,
}

impl<F> Executor<F> for WriteTimeoutExecutor
where
    F: Future<Output: Send> + Send + 'static,
{
    fn execute(&self, stream: F) {
        tokio::spawn(run_with_write_timeout(self.write_timeout, stream));
    }
}

async fn run_with_write_timeout<F: Future>(limit: Duration, stream: F) {
    let run = async move {
        let mut stream = pin!(stream);
        let mut timer: Option<Pin<Box<Sleep>>> = None;
        poll_fn(|context| {
            if stream.as_mut().poll(context).is_ready() {
                return Poll::Ready(());
            }
            match LAST_FRAME.with(Cell::get) {
                FrameState::Consumed => timer = None,
                FrameState::Yielded => {
                    LAST_FRAME.with(|frame| frame.set(FrameState::Stalled));
                    timer = Some(Box::pin(sleep(limit)));
                }
                FrameState::Stalled => {}
            }
            let Some(timer) = &mut timer else { return Poll::Pending };
            timer.as_mut().poll(context).map(|()| tracing::debug!("a response was not read in time"))
        })
        .await;
    };
    LAST_FRAME.scope(Cell::new(FrameState::Consumed), run).await;
}

/// Socket on which writing fails when the peer has accepted nothing for `write_timeout`.
pub(super) struct WriteTimeoutSocket {
    socket: ClientSocket,
    write_timeout: Duration,
    deadline: Option<Pin<Box<Sleep>>>,
}

impl WriteTimeoutSocket {
    pub(super) const fn new(socket: ClientSocket, write_timeout: Duration) -> Self {
        Self { socket, write_timeout, deadline: None }
    }

    fn check_write<T>(&mut self, context: &mut Context<'_>, written: Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        if written.is_ready() {
            self.deadline = None;
            return written;
        }
        let timer = self.deadline.get_or_insert_with(|| Box::pin(sleep(self.write_timeout)));
        timer.as_mut().poll(context).map(|()| Err(io::ErrorKind::TimedOut.into()))
    }
}

impl AsyncRead for WriteTimeoutSocket {
    fn poll_read(self: Pin<&mut Self>, context: &mut Context<'_>, into: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().socket).poll_read(context, into)
    }
}

impl AsyncWrite for WriteTimeoutSocket {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let written = Pin::new(&mut this.socket).poll_write(context, bytes);
        this.check_write(context, written)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let written = Pin::new(&mut this.socket).poll_write_vectored(context, slices);
        this.check_write(context, written)
    }

    fn is_write_vectored(&self) -> bool {
        self.socket.is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().socket).poll_flush(context)
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().socket).poll_shutdown(context)
    }
}
