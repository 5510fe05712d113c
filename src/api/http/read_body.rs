//! Reads the body of a request, within its own limit and the budget of large bodies.

use axum::body::Body;
use bytes::{Bytes, BytesMut};
use http_body_util::BodyExt as _;
use hyper::body::Body as _;
use tokio::sync::{Semaphore, SemaphorePermit};

use super::HttpState;
use crate::api::body_budget::{SMALL_BODY_BYTES, body_budget_exceeded, body_too_large};
use crate::api::error_table::ApiError;

/// Body of a request with its permit. A handler that waits for long drops it first.
pub(super) struct RequestBody<'a> {
    bytes: Bytes,
    _permit: BodyPermit<'a>,
}

impl std::ops::Deref for RequestBody<'_> {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.bytes
    }
}

/// Permit of one body from the budget for large bodies.
struct BodyPermit<'a> {
    bodies: &'a Semaphore,
    permit: Option<SemaphorePermit<'a>>,
}

impl<'a> BodyPermit<'a> {
    fn new(bodies: &'a Semaphore) -> Self {
        Self { bodies, permit: None }
    }

    /// Extends the permit to a body of so many bytes in all.
    fn grow_to(&mut self, bytes: u64) -> Result<(), ApiError> {
        if bytes <= SMALL_BODY_BYTES {
            return Ok(());
        }
        let held_kib = self.permit.as_ref().map_or(0, SemaphorePermit::num_permits) as u64;
        let missing_kib = bytes.div_ceil(1 << 10).saturating_sub(held_kib);
        let extension = self
            .bodies
            .try_acquire_many(u32::try_from(missing_kib).unwrap_or(u32::MAX))
            .map_err(|_| body_budget_exceeded())?;
        match &mut self.permit {
            Some(permit) => permit.merge(extension),
            None => self.permit = Some(extension),
        }
        Ok(())
    }
}

/// Reads a body. One with a content length takes its whole permit before it is read; a chunked one takes it as data
/// arrives, so that a slow sender does not reserve memory that others need.
pub(super) async fn read_body(api: &HttpState, mut body: Body) -> Result<RequestBody<'_>, ApiError> {
    let max = api.bounds.body_bytes_max;
    // A body whose announced length exceeds the limit is rejected unread.
    let announced = body.size_hint();
    if announced.lower() > max as u64 {
        return Err(body_too_large(max));
    }
    let mut permit = BodyPermit::new(&api.budgets.bodies);
    let announced_bytes = announced.upper().unwrap_or(announced.lower());
    permit.grow_to(announced_bytes)?;
    // Most bodies are a single frame, which is not copied.
    let (mut first, mut joined) = (Bytes::new(), BytesMut::new());
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|error| ApiError::invalid("body", format!("could not be read: {error}")))?;
        let Ok(data) = frame.into_data() else { continue };
        let bytes = first.len() + joined.len() + data.len();
        if bytes > max {
            return Err(body_too_large(max));
        }
        permit.grow_to(bytes as u64)?;
        if first.is_empty() && joined.is_empty() {
            first = data;
            continue;
        }
        if joined.is_empty() {
            joined.reserve(bytes.max(announced_bytes as usize));
            joined.extend_from_slice(&std::mem::take(&mut first));
        }
        joined.extend_from_slice(&data);
    }
    let bytes = if joined.is_empty() { first } else { joined.freeze() };
    Ok(RequestBody { bytes, _permit: permit })
}
