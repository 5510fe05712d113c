//! Headers that every response carries for browsers, and responses to requests that no handler sees.

use axum::http::header::{CACHE_CONTROL, CONTENT_SECURITY_POLICY, CONTENT_TYPE, X_CONTENT_TYPE_OPTIONS};
use axum::http::{HeaderValue, StatusCode};
use axum::response::{IntoResponse as _, Response};

use crate::api::error_table::ApiError;
use crate::metrics::{HttpRoute, metrics};

/// Content security policy: pages run and show only what this service serves, call only this service, and cannot be
/// framed. The viewer needs styles in attributes and images in its style sheet.
const CONTENT_SECURITY: &str = "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; \
     img-src 'self' data:; connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

/// Whether a browser may cache a response.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::api) enum CachePolicy {
    /// Response that is outdated at once.
    NoStore,
    /// Response without a cache header.
    Unspecified,
}

impl CachePolicy {
    /// Chooses the policy by the path of the request.
    pub(in crate::api) fn for_path(path: &str) -> Self {
        if path.starts_with("/v1/") { Self::NoStore } else { Self::Unspecified }
    }
}

/// Adds the security headers and the cache header.
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

/// Builds and counts the response to a request that is rejected before it is routed.
pub(in crate::api) fn reject_unrouted(failure: &ApiError) -> Response {
    let response = failure.clone().into_response();
    let status: StatusCode = response.status();
    metrics().http_requests(HttpRoute::Unmatched, status.as_u16()).increment(1);
    response
}
