//! What operators and probes ask.

use axum::extract::{Request, State};
use axum::http::StatusCode;
use axum::response::Response;
use serde::Serialize;

use super::{Answer, Shared, json};
use crate::api::outcome::{Failure, Outcome};
use crate::refusal::Unavailable;

/// The process lives.
pub(super) async fn healthz() -> Response {
    #[derive(Serialize)]
    struct Health {
        status: &'static str,
    }
    json(StatusCode::OK, &Health { status: "ok" })
}

/// Every shard serves.
pub(super) async fn readyz(State(api): State<Shared>) -> Answer {
    let readiness = api.scheduler.readiness();
    if readiness.ready {
        return Ok(json(StatusCode::OK, &readiness));
    }
    let mut failure = Failure::from(Unavailable::Loading);
    if !readiness.reasons.is_empty() {
        failure.message = readiness.reasons.join("; ").into();
    }
    Err(failure)
}

/// Every shard of every pool.
pub(super) async fn debug_shards(State(api): State<Shared>) -> Response {
    json(StatusCode::OK, &api.scheduler.debug_shards().await)
}

/// Nothing is served under this path.
pub(super) async fn no_route(request: Request) -> Failure {
    let path = request.uri().path();
    if path.starts_with("/v1/") && path.ends_with('/') {
        return Failure::invalid("path", "must not end in a slash: names are 1..=255 bytes");
    }
    Failure::new(Outcome::ROUTE, "no such route")
}

/// The path is served, but not with this method.
pub(super) async fn no_method() -> Failure {
    Failure::new(Outcome::METHOD, "this route does not take this method; see the Allow header")
}
