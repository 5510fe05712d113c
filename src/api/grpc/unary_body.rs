//! Body of a call that sends a single message. Its size is limited like any body, and large ones are charged to the
//! budget that all edges share.

use parking_lot::Mutex;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bytes::{Buf as _, Bytes};
use hyper::body::{Body, Frame, SizeHint};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tonic::{Request, Status};

use crate::api::body_budget::{BODY_BUDGET_KIB, SMALL_BODY_BYTES, body_budget_exceeded, body_too_large};
use crate::api::error_table::ApiError;

/// Length of a message's prefix, in bytes: one flag, and four bytes of length.
const PREFIX_BYTES: usize = 5;
/// Factor by which a decoded message may exceed its encoded size.
const MEMORY_FACTOR: u64 = 8;
/// Limit on the charge of one message, in KiB: the largest allowed message must fit into the budget.
const MESSAGE_KIB_MAX: u64 = BODY_BUDGET_KIB as u64 / 4;

pub(super) type BodyError = tonic::codegen::StdError;

/// Body of a call that sends a single message.
pub(super) struct UnaryBody<B> {
    body: B,
    max_bytes: usize,
    budget: Arc<Semaphore>,
    prefix: [u8; PREFIX_BYTES],
    /// Number of bytes of the prefix received so far.
    prefix_bytes: usize,
    /// Number of bytes of the message still to come, once the prefix is complete.
    rest_bytes: usize,
    permit: MessagePermit,
}

/// Permit of a large message, held until the call is answered or [starts to wait](release_before_waiting).
#[derive(Debug, Clone, Default)]
pub(super) struct MessagePermit(Arc<Mutex<Option<OwnedSemaphorePermit>>>);

impl MessagePermit {
    fn set(&self, permit: Option<OwnedSemaphorePermit>) {
        *self.0.lock() = permit;
    }
}

/// Converts a message to what its call needs, then drops the message and its permit, because the call may be queued for
/// a day.
pub(super) fn release_before_waiting<M, T>(request: Request<M>, convert: impl FnOnce(M) -> T) -> T {
    let (_, mut extensions, message) = request.into_parts();
    let converted = convert(message);
    if let Some(permit) = extensions.remove::<MessagePermit>() {
        permit.set(None);
    }
    converted
}

impl<B> UnaryBody<B> {
    /// Wraps a body. `budget` has the KiB that large messages may take.
    pub(super) fn new(body: B, max_bytes: usize, budget: Arc<Semaphore>, permit: MessagePermit) -> Self {
        Self { body, max_bytes, budget, prefix: [0; PREFIX_BYTES], prefix_bytes: 0, rest_bytes: 0, permit }
    }

    /// Checks data as it arrives, before anything allocates memory for it.
    fn admit(&mut self, mut data: &[u8]) -> Result<(), ApiError> {
        if self.prefix_bytes < PREFIX_BYTES {
            let bytes = data.len().min(PREFIX_BYTES - self.prefix_bytes);
            data.copy_to_slice(&mut self.prefix[self.prefix_bytes..][..bytes]);
            self.prefix_bytes += bytes;
            if self.prefix_bytes == PREFIX_BYTES {
                let [_, length @ ..] = self.prefix;
                self.check_length(u32::from_be_bytes(length) as usize)?;
            }
        }
        self.rest_bytes = self
            .rest_bytes
            .checked_sub(data.len())
            .ok_or_else(|| ApiError::invalid("body", "must be exactly one message"))?;
        Ok(())
    }

    fn check_length(&mut self, bytes: usize) -> Result<(), ApiError> {
        if bytes > self.max_bytes {
            return Err(body_too_large(self.max_bytes));
        }
        self.rest_bytes = bytes;
        if bytes as u64 > SMALL_BODY_BYTES {
            let kib = ((bytes as u64 * MEMORY_FACTOR) >> 10).min(MESSAGE_KIB_MAX);
            let permit =
                Arc::clone(&self.budget).try_acquire_many_owned(kib as u32).map_err(|_| body_budget_exceeded())?;
            self.permit.set(Some(permit));
        }
        Ok(())
    }
}

impl<B: Body<Data = Bytes> + Unpin> Body for UnaryBody<B>
where
    B::Error: Into<BodyError>,
{
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        let Some(frame) = ready!(Pin::new(&mut self.body).poll_frame(context)) else { return Poll::Ready(None) };
        Poll::Ready(Some(match frame {
            Ok(frame) => match frame.data_ref().map_or(Ok(()), |data| self.admit(data)) {
                Ok(()) => Ok(frame),
                // Tonic replies with the status that it finds in a body's error.
                Err(failure) => Err(Status::from(failure).into()),
            },
            Err(error) => Err(error.into()),
        }))
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
