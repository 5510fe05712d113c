//! Handlers for operators and probes.

use axum::extract::{Request, State};
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse as _, Redirect, Response};
use serde::Serialize;

use super::{HandlerResult, SharedState, json};
use crate::api::error_table::{ApiError, ErrorStatus};
use crate::api::request_guard::UnknownHost;
use crate::model::request_error::UnavailableReason;

/// Reports that the process is alive.
pub(super) async fn healthz() -> Response {
    #[derive(Serialize)]
    struct HealthBody {
        status: &'static str,
    }
    json(StatusCode::OK, &HealthBody { status: "ok" })
}

/// Serves the root: redirects a browser to the viewer, and gives `curl` a list of starting points.
pub(super) async fn root(headers: HeaderMap) -> Response {
    let accepts_pages = headers.get_all(header::ACCEPT).iter().any(|accept| {
        let kinds = accept.to_str().unwrap_or_default().split(',');
        kinds.into_iter().any(|kind| kind.split(';').next().is_some_and(|kind| kind.trim() == "text/html"))
    });
    let varies = [(header::VARY, HeaderValue::from_static("accept"))];
    match accepts_pages {
        true => (varies, Redirect::temporary("/docs")).into_response(),
        false => (varies, INDEX_TEXT).into_response(),
    }
}

/// Text of the root page.
const INDEX_TEXT: &str = concat!(
    "Hotpool ",
    env!("CARGO_PKG_VERSION"),
    "\n\
     /docs              the API, documented and ready to try in a browser\n\
     /v1/openapi.json   the API as an OpenAPI document\n\
     /readyz            readiness of the service\n\
     /metrics           metrics for Prometheus\n\
     hotpool --help     the commands; hotpool status shows the pools\n"
);

/// Reports whether every shard serves. Under an unknown host the reasons are omitted.
pub(super) async fn readyz(State(api): State<SharedState>, request: Request) -> HandlerResult {
    let readiness = api.scheduler.readiness();
    if readiness.ready {
        return Ok(json(StatusCode::OK, &readiness));
    }
    let mut failure = ApiError::from(UnavailableReason::Loading);
    if request.extensions().get::<UnknownHost>().is_none() && !readiness.reasons.is_empty() {
        failure.message = readiness.reasons.join("; ").into();
    }
    Err(failure)
}

/// Returns the state of every shard of every pool.
pub(super) async fn debug_shards(State(api): State<SharedState>) -> Response {
    json(StatusCode::OK, &api.scheduler.debug_shards().await)
}

/// Rejects a path that no route has.
pub(super) async fn route_not_found(request: Request) -> ApiError {
    let path = request.uri().path();
    if path.starts_with("/v1/") && path.ends_with('/') {
        return ApiError::invalid("path", "must not end in a slash: names are 1 to 255 bytes");
    }
    ApiError::new(ErrorStatus::ROUTE, "no such route")
}

/// Rejects a method that the path does not support.
pub(super) async fn method_not_allowed() -> ApiError {
    ApiError::new(ErrorStatus::METHOD, "this route does not support this method; see the Allow header")
}
