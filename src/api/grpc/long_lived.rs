//! Long-lived streams of third-party services: watched health, and reflection. Each takes one of its connection's
//! streams, so the total is limited, and none outlasts the service.

use std::convert::Infallible;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Bytes;
use futures::future::{BoxFuture, FutureExt as _};
use hyper::body::{Body as HttpBody, Frame};
use hyper::{Request, Response};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tonic::body::Body;

use crate::api::error_table::ApiError;
use crate::api::wait_for_stop;
use crate::limits;

/// Limits long-lived streams and ends them when the service stops.
pub(super) struct LongLivedStreams {
    permits: Arc<Semaphore>,
    stopping: watch::Receiver<()>,
}

impl LongLivedStreams {
    /// Creates the limiter. `stopping` closes when the service begins to stop.
    pub(super) fn new(stopping: watch::Receiver<()>) -> Self {
        Self { permits: Arc::new(Semaphore::new(limits::LASTING_STREAMS_MAX)), stopping }
    }

    /// Serves a call if a stream is available for it.
    pub(super) async fn serve(
        &self,
        call: impl Future<Output = Result<Response<Body>, Infallible>>,
    ) -> Result<Response<Body>, Infallible> {
        let Ok(permit) = Arc::clone(&self.permits).try_acquire_owned() else {
            let message = format!(
                "{} streams of health and reflection are open, which is the limit: close one, or call \
                 grpc.health.v1.Health/Check at intervals",
                limits::LASTING_STREAMS_MAX
            );
            return Ok(ApiError::overloaded(message).to_status().into_http());
        };
        Ok(call.await?.map(|stream| Body::new(PermittedBody { stream, _permit: permit })))
    }

    /// Ends the requests of a call once the service begins to stop, so that its handler ends as well.
    pub(super) fn until_stop<B>(&self, call: Request<B>) -> Request<Body>
    where
        B: HttpBody<Data = Bytes> + Send + Unpin + 'static,
        B::Error: Into<tonic::codegen::StdError>,
    {
        let stop = wait_for_stop(&self.stopping);
        call.map(|requests| Body::new(StoppableBody { requests, stop: Some(stop) }))
    }
}

/// Response body that holds its stream's permit.
struct PermittedBody {
    stream: Body,
    _permit: OwnedSemaphorePermit,
}

impl HttpBody for PermittedBody {
    type Data = Bytes;
    type Error = tonic::Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        Pin::new(&mut self.stream).poll_frame(context)
    }

    fn is_end_stream(&self) -> bool {
        self.stream.is_end_stream()
    }
}

/// Request body that ends when the service begins to stop.
struct StoppableBody<B> {
    requests: B,
    /// Absent once the service has begun to stop.
    stop: Option<BoxFuture<'static, ()>>,
}

impl<B: HttpBody<Data = Bytes> + Unpin> HttpBody for StoppableBody<B> {
    type Data = Bytes;
    type Error = B::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        let Some(stop) = &mut self.stop else { return Poll::Ready(None) };
        if stop.poll_unpin(context).is_ready() {
            self.stop = None;
            return Poll::Ready(None);
        }
        Pin::new(&mut self.requests).poll_frame(context)
    }
}
