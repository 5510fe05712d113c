//! What answers tell browsers, whatever is in them; and answers to requests that no handler sees.

use axum::http::header::{CACHE_CONTROL, CONTENT_SECURITY_POLICY, CONTENT_TYPE, X_CONTENT_TYPE_OPTIONS};
use axum::http::{HeaderValue, StatusCode};
use axum::response::{IntoResponse as _, Response};

use crate::api::error_table::ApiError;
use crate::metrics::{HttpRoute, metrics};

/// What pages may do: run and show what this service serves, ask this service, and stand in no other page. Styles may stand in
/// attributes, and pictures in the style sheet, as the viewer has them.
const CONTENT_SECURITY: &str = "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; \
     img-src 'self' data:; connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

/// Whether a browser may keep an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::api) enum CachePolicy {
    /// What is true now may be wrong in a moment.
    NoStore,
    /// Nothing is said about it.
    Unspecified,
}

impl CachePolicy {
    /// By the path of the request.
    pub(in crate::api) fn for_path(path: &str) -> Self {
        if path.starts_with("/v1/") { Self::NoStore } else { Self::Unspecified }
    }
}

/// Adds the headers that browsers go by.
pub(in crate::api) fn add_security_headers(response: &mut Response, caching: CachePolicy) {
    let headers = response.headers_mut();
    headers.insert(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    if caching == CachePolicy::NoStore {
        headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    }
    if headers.get(CONTENT_TYPE).is_some_and(|kind| kind.as_bytes().starts_with(b"text/html")) {
        headers.insert(CONTENT_SECURITY_POLICY, HeaderValue::from_static(CONTENT_SECURITY));
    }
}

/// Answer to a request that is refused before it is routed. It is counted, as every answer is.
pub(in crate::api) fn reject_unrouted(failure: &ApiError) -> Response {
    let response = failure.clone().into_response();
    let status: StatusCode = response.status();
    metrics().http_requests(HttpRoute::Unmatched, status.as_u16()).increment(1);
    response
}
