//! Extractors of the HTTP edge: body, query and path. Each error names its field.

use axum::body::Body;
use axum::extract::{FromRequestParts, Path, Query};
use axum::http::Uri;
use axum::http::request::Parts;
use bytes::{Bytes, BytesMut};
use http_body_util::BodyExt as _;
use hyper::body::Body as _;
use serde::de::DeserializeOwned;
use tokio::sync::{Semaphore, SemaphorePermit};

use super::HttpState;
use crate::api::body_budget::{SMALL_BODY_BYTES, body_budget_exceeded, body_too_large};
use crate::api::error_table::ApiError;
use crate::api::request::truncate;
use crate::limits;

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

/// Segments of a path, percent-decoded.
pub(super) struct PathSegments<T>(pub(super) T);

impl<S: Send + Sync, T: DeserializeOwned + Send> FromRequestParts<S> for PathSegments<T> {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, ApiError> {
        match Path::<T>::from_request_parts(parts, state).await {
            Ok(Path(segments)) => Ok(Self(segments)),
            Err(_) => Err(ApiError::invalid("path", "must be UTF-8 when percent-decoded")),
        }
    }
}

/// Query parameters, which a handler takes by name.
pub(super) struct QueryParams(Vec<(String, String)>);

impl QueryParams {
    /// Parses the query; unknown and repeated parameters are rejected.
    pub(super) fn parse(uri: &Uri, known: &[&str]) -> Result<Self, ApiError> {
        let Ok(Query(pairs)) = Query::<Vec<(String, String)>>::try_from_uri(uri) else {
            return Err(ApiError::invalid("query", "must be name=value pairs"));
        };
        for (i, (name, _)) in pairs.iter().enumerate() {
            if !known.contains(&name.as_str()) {
                let known =
                    if known.is_empty() { "none is known".to_owned() } else { format!("known: {}", known.join(", ")) };
                return Err(ApiError::invalid(truncate(name), format!("unknown query parameter; {known}")));
            }
            if pairs[..i].iter().any(|(earlier, _)| earlier == name) {
                return Err(ApiError::invalid(name.clone(), "is given twice"));
            }
        }
        Ok(Self(pairs))
    }

    /// Takes one parameter by its name.
    pub(super) fn take(&mut self, name: &str) -> Option<String> {
        let at = self.0.iter().position(|(known, _)| known == name)?;
        Some(self.0.swap_remove(at).1)
    }

    /// Takes `limit`, the number of items on a page.
    pub(super) fn limit(&mut self) -> Result<usize, ApiError> {
        let Some(text) = self.take("limit") else { return Ok(limits::PAGE_ITEMS_DEFAULT) };
        match text.parse() {
            Ok(limit) if (1..=limits::PAGE_ITEMS_MAX).contains(&limit) => Ok(limit),
            _ => {
                Err(ApiError::invalid("limit", format!("must be a whole number from 1 to {}", limits::PAGE_ITEMS_MAX)))
            }
        }
    }

    /// Takes an integer that is at most `max`.
    pub(super) fn number(&mut self, name: &'static str, max: u64) -> Result<Option<u64>, ApiError> {
        let Some(text) = self.take(name) else { return Ok(None) };
        match text.parse() {
            Ok(number) if number <= max && text.bytes().all(|byte| byte.is_ascii_digit()) => Ok(Some(number)),
            _ => Err(ApiError::invalid(
                name,
                format!("must be a whole number from 0 to {max}, got {:?}", truncate(&text)),
            )),
        }
    }

    /// Takes a parameter that is `true` or `false`.
    pub(super) fn flag(&mut self, name: &'static str) -> Result<bool, ApiError> {
        match self.take(name).as_deref() {
            None | Some("false") => Ok(false),
            Some("true") => Ok(true),
            Some(_) => Err(ApiError::invalid(name, "must be true or false")),
        }
    }
}
