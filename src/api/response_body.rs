//! Response body with a limit on how long it waits for a client that does not read. Long-lived streams (events, claim
//! streams, health, reflection) are not included: they are few, and have their own limits.
//!
//! Over HTTP/2 hyper takes a frame of the body and waits until the client has opened its window, and then h2 keeps the
//! frame until all of it is sent. Neither has a timeout. So a large body is split into chunks: the next one is yielded
//! only when h2 has sent the previous one, and the end when everything is sent, which a chunk notices when it is
//! dropped. In the meantime the body's own timer resets a late stream. While a chunk waits inside hyper, which does not
//! poll the body then, [`WriteTimeoutExecutor`](super::write_timeout::WriteTimeoutExecutor) has the timer. Over
//! HTTP/1.1 the socket waits, and [`WriteTimeoutSocket`](super::write_timeout::WriteTimeoutSocket) has the timeout.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use futures::FutureExt as _;
use futures::task::AtomicWaker;
use http_body_util::BodyExt as _;
use hyper::Version;
use hyper::body::{Body, Frame, SizeHint};
use tokio::time::{Sleep, sleep};

use super::error_table::ApiError;
use super::response_budget::{ResponseBudget, ResponsePermit, SMALL_RESPONSE_BYTES};
use super::write_timeout;

type StdError = Box<dyn std::error::Error + Send + Sync>;

/// Largest chunk of a body over HTTP/2, in bytes: a client must read this much within the timeout.
const CHUNK_BYTES_MAX: usize = 32 << 10;

/// Treatment of a large response when the response budget is used up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum ResponseClass {
    /// Request changed nothing, so its response may be replaced by an error.
    Refusable,
    /// Response reports a change, or is a scrape: it is charged even beyond the budget.
    MustDeliver,
    /// All clients receive the same bytes, so nothing is charged.
    Shared,
}

/// Body that is abandoned when its client does not read for `read_timeout`.
struct ResponseBody<B> {
    /// Remaining bytes of the first frame.
    data: Bytes,
    /// First frame, if it holds trailers instead of data.
    trailers: Option<Frame<Bytes>>,
    rest: B,
    large: Option<LargeBody>,
    read_timeout: Duration,
}

/// Additional state of a large body.
struct LargeBody {
    permit: Option<Arc<ResponsePermit>>,
    chunk: Arc<ChunkState>,
    version: Version,
    read_timeout: Option<Pin<Box<Sleep>>>,
}

/// Whether a chunk has been yielded and not been dropped yet.
#[derive(Default)]
struct ChunkState {
    in_flight: AtomicBool,
    dropped: AtomicWaker,
}

/// Bytes of one chunk, which wake the body when they are dropped.
struct BodyChunk {
    bytes: Bytes,
    state: Arc<ChunkState>,
    _permit: Option<Arc<ResponsePermit>>,
}

impl AsRef<[u8]> for BodyChunk {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

impl Drop for BodyChunk {
    fn drop(&mut self) {
        // Free the bytes before the body is woken.
        self.bytes = Bytes::new();
        self.state.in_flight.store(false, Ordering::Release);
        self.state.dropped.wake();
    }
}

/// Limits how long a response waits for its client, and charges a large one to the budget.
///
/// # Errors
/// `overloaded`: the budget cannot take a response of this size.
pub(super) fn bound_response<B>(
    mut body: B,
    version: Version,
    class: ResponseClass,
    budget: &ResponseBudget,
    read_timeout: Duration,
) -> Result<axum::body::Body, ApiError>
where
    B: Body<Data = Bytes> + Send + Unpin + 'static,
    B::Error: Into<StdError>,
{
    if body.is_end_stream() {
        return Ok(axum::body::Body::new(body));
    }
    // Bodies are complete. A gRPC response would otherwise be encoded only when its client opens the window, with its
    // size unknown until then.
    let (data, trailers) = match body.frame().now_or_never() {
        Some(Some(Ok(frame))) => match frame.into_data() {
            Ok(data) => (data, None),
            Err(trailers) => (Bytes::new(), Some(trailers)),
        },
        Some(Some(Err(error))) => return Ok(axum::body::Body::new(FailedBody(Some(error.into())))),
        Some(None) => return Ok(axum::body::Body::empty()),
        None => (Bytes::new(), None),
    };
    let large = if data.len() <= SMALL_RESPONSE_BYTES {
        None
    } else {
        let charge = match class {
            ResponseClass::Refusable => Some(budget.try_acquire(data.len())?),
            ResponseClass::MustDeliver => Some(budget.acquire(data.len())),
            ResponseClass::Shared => None,
        };
        Some(LargeBody { permit: charge.map(Arc::new), chunk: Arc::default(), version, read_timeout: None })
    };
    Ok(axum::body::Body::new(ResponseBody { data, trailers, rest: body, large, read_timeout }))
}

impl LargeBody {
    /// Size of the next chunk, in bytes.
    fn chunk_bytes(&self, remaining: usize) -> usize {
        if self.version == Version::HTTP_2 { remaining.min(CHUNK_BYTES_MAX) } else { remaining }
    }

    fn next_chunk(&self, bytes: Bytes) -> Bytes {
        self.chunk.in_flight.store(true, Ordering::Relaxed);
        Bytes::from_owner(BodyChunk { bytes, state: Arc::clone(&self.chunk), _permit: self.permit.clone() })
    }

    /// Becomes ready when the previous chunk is sent, or its timeout has elapsed.
    fn poll_sent(&mut self, context: &mut Context<'_>, limit: Duration) -> Poll<Result<(), ClientReadTimeout>> {
        self.chunk.dropped.register(context.waker());
        if !self.chunk.in_flight.load(Ordering::Acquire) {
            self.read_timeout = None;
            return Poll::Ready(Ok(()));
        }
        let timer = self.read_timeout.get_or_insert_with(|| Box::pin(sleep(limit)));
        timer.as_mut().poll(context).map(|()| Err(ClientReadTimeout))
    }
}

/// Error of a response that its client did not read in time.
#[derive(Debug, thiserror::Error)]
#[error("the client has not read the response in time")]
struct ClientReadTimeout;

impl<B> Body for ResponseBody<B>
where
    B: Body<Data = Bytes> + Unpin,
    B::Error: Into<StdError>,
{
    type Data = Bytes;
    type Error = StdError;

    fn poll_frame(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        let this = self.get_mut();
        write_timeout::record_frame_consumed();
        if let Some(large) = &mut this.large
            && let Err(unread) = ready!(large.poll_sent(context, this.read_timeout))
        {
            return Poll::Ready(Some(Err(unread.into())));
        }
        if !this.data.is_empty() {
            let chunk = match &this.large {
                Some(large) => large.next_chunk(this.data.split_to(large.chunk_bytes(this.data.len()))),
                None => std::mem::take(&mut this.data),
            };
            write_timeout::record_frame_yielded();
            return Poll::Ready(Some(Ok(Frame::data(chunk))));
        }
        if let Some(trailers) = this.trailers.take() {
            return Poll::Ready(Some(Ok(trailers)));
        }
        let frame = ready!(Pin::new(&mut this.rest).poll_frame(context));
        if frame.as_ref().is_some_and(|frame| frame.as_ref().is_ok_and(Frame::is_data)) {
            write_timeout::record_frame_yielded();
        }
        Poll::Ready(frame.map(|frame| frame.map_err(Into::into)))
    }

    fn is_end_stream(&self) -> bool {
        // Over HTTP/2 the end of a large body follows when all of it is sent.
        let ends_with_data = self.large.as_ref().is_none_or(|large| large.version != Version::HTTP_2);
        ends_with_data && self.data.is_empty() && self.trailers.is_none() && self.rest.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        let (rest, data) = (self.rest.size_hint(), self.data.len() as u64);
        let mut all = SizeHint::new();
        all.set_lower(rest.lower() + data);
        if let Some(upper) = rest.upper() {
            all.set_upper(upper + data);
        }
        all
    }
}

/// Body that could not be created.
struct FailedBody(Option<StdError>);

impl Body for FailedBody {
    type Data = Bytes;
    type Error = StdError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        Poll::Ready(self.0.take().map(Err))
    }
}

#[cfg(test)]
mod tests {
    use http_body_util::Full;

    use super::*;

    const READ_TIMEOUT: Duration = Duration::from_millis(20);

    fn body(bytes: usize, version: Version, budget: &ResponseBudget) -> axum::body::Body {
        let full = Full::new(Bytes::from(vec![b'x'; bytes]));
        bound_response(full, version, ResponseClass::Refusable, budget, READ_TIMEOUT).unwrap()
    }

    async fn next_bytes(body: &mut axum::body::Body) -> Option<Result<usize, String>> {
        let frame = body.frame().await?;
        Some(frame.map(|frame| frame.into_data().unwrap().len()).map_err(|error| error.to_string()))
    }

    #[tokio::test]
    async fn h06_the_next_chunk_follows_when_the_previous_one_is_sent() {
        let budget = ResponseBudget::default();
        let mut body = body(CHUNK_BYTES_MAX + 1, Version::HTTP_2, &budget);
        assert_eq!(body.size_hint().exact(), Some(CHUNK_BYTES_MAX as u64 + 1));
        let first = body.frame().await.unwrap().unwrap().into_data().unwrap();
        assert_eq!(first.len(), CHUNK_BYTES_MAX);
        assert!(body.frame().now_or_never().is_none() && !body.is_end_stream());
        drop(first);
        assert_eq!(next_bytes(&mut body).await, Some(Ok(1)));
        assert!(!body.is_end_stream(), "the end is a frame of its own");
        assert_eq!(next_bytes(&mut body).await, None);
    }

    #[tokio::test]
    async fn h06_an_unsent_chunk_fails_the_response_and_stays_charged() {
        let budget = ResponseBudget::default();
        for bytes in [CHUNK_BYTES_MAX, 3 * CHUNK_BYTES_MAX] {
            let mut body = body(bytes, Version::HTTP_2, &budget);
            let unsent = body.frame().await.unwrap().unwrap().into_data().unwrap();
            assert_eq!(next_bytes(&mut body).await, Some(Err(ClientReadTimeout.to_string())));
            drop(body);
            let all = 256 << 20;
            assert!(budget.try_acquire(all).is_err(), "the chunk is still in memory");
            drop(unsent);
            drop(budget.try_acquire(all).unwrap());
        }
    }

    #[tokio::test]
    async fn h06_small_responses_and_those_over_http_1_are_one_frame() {
        let budget = ResponseBudget::default();
        for (bytes, version) in [(1 << 20, Version::HTTP_11), (SMALL_RESPONSE_BYTES, Version::HTTP_2)] {
            let mut body = body(bytes, version, &budget);
            assert_eq!(next_bytes(&mut body).await, Some(Ok(bytes)));
            assert!(body.is_end_stream());
        }
    }
}
