//! Wraps every request: deadline, panics, and counting of responses.

use std::panic::AssertUnwindSafe;
use std::sync::Arc;

use axum::extract::{MatchedPath, Request, State};
use axum::middleware::Next;
use axum::response::{IntoResponse as _, Response};
use futures::FutureExt as _;
use futures::future::OptionFuture;

use super::SharedState;
use crate::api::deadline::{self, AbandonReason};
use crate::api::error_table::{ApiError, ErrorStatus};
use crate::api::half_close::{self, HttpPeer};
use crate::metrics::{HttpRoute, metrics};
use crate::model::request_error::RequestError;
use crate::scheduler::caller::CallerContext;

/// Runs one request, with its deadline.
pub(super) async fn guard(State(api): State<SharedState>, request: Request, next: Next) -> Response {
    let route = route_of(&request);
    // Claims are driven by the scheduler, not by this future: dropping it at the deadline leaves nothing half done.
    let client = request.extensions().get::<Arc<HttpPeer>>().cloned();
    let departs = OptionFuture::from(client.as_ref().map(|client| client.wait_for_departure()));
    let departs = async {
        if departs.await.is_none() {
            std::future::pending().await
        }
    };
    let run = deadline::run_until_client_leaves(departs, api.bounds.timeout, None, next.run(request));
    let answer = AssertUnwindSafe(half_close::CLIENT.scope(client.clone(), run)).catch_unwind().await;
    let response = match answer {
        Ok(Ok(response)) => response,
        Ok(Err(AbandonReason::TimedOut)) => ApiError::from(RequestError::DeadlineExceeded).into_response(),
        Ok(Err(AbandonReason::ClientGone)) => half_close::wait_abandoned_error().into_response(),
        Err(_panic) => {
            let request_id = CallerContext::with_request_id(|id| id.map(ToString::to_string));
            tracing::error!(route = route.as_str(), request_id, "a handler panicked");
            ApiError::new(ErrorStatus::PANIC, "a defect of the service, which keeps running").into_response()
        }
    };
    metrics().http_requests(route, response.status().as_u16()).increment(1);
    response
}

fn route_of(request: &Request) -> HttpRoute {
    let Some(matched) = request.extensions().get::<MatchedPath>() else { return HttpRoute::Unmatched };
    match HttpRoute::ALL.iter().find(|route| route.as_str() == matched.as_str()) {
        Some(route) => action_route(*route, request.uri().path()),
        None => HttpRoute::Unmatched,
    }
}

/// Distinguishes the verb of a `{name}:{verb}` segment, which is a single segment to the router.
fn action_route(route: HttpRoute, path: &str) -> HttpRoute {
    let verb = path.rsplit_once(':').map_or("", |(_, verb)| verb);
    match (route, verb) {
        (HttpRoute::Claim, "confirm") => HttpRoute::Confirm,
        (HttpRoute::Claim, "renew") => HttpRoute::Renew,
        (HttpRoute::Claim, "resize") => HttpRoute::Resize,
        (HttpRoute::Claim, "release") => HttpRoute::Release,
        (HttpRoute::Worker, "heartbeat") => HttpRoute::Heartbeat,
        (HttpRoute::Worker, "cordon" | "uncordon" | "drain" | "clear") => HttpRoute::Steer,
        (HttpRoute::Pool, "clear") => HttpRoute::ClearPool,
        _ => route,
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::time::Duration;

    use axum::body::Body;
    use axum::routing::get;
    use axum::{Router, middleware};
    use http_body_util::BodyExt as _;
    use tokio::sync::Semaphore;
    use tower::ServiceExt as _;

    use super::*;
    use crate::api::http::HttpState;
    use crate::api::{MemoryBudgets, RequestLimits, ResponseBudget};
    use crate::metrics::install;
    use crate::persist::store::memory::MemoryStore;
    use crate::scheduler::{Scheduler, SchedulerSettings};

    async fn panics() -> Response {
        panic!("a test's own")
    }

    async fn hangs() -> Response {
        std::future::pending().await
    }

    #[tokio::test]
    async fn a_panic_and_a_hang_are_answered_and_counted() {
        let exporter = install().unwrap();
        let scheduler = Scheduler::new(Arc::new(MemoryStore), SchedulerSettings::default());
        let bounds = RequestLimits { body_bytes_max: 1024, timeout: Duration::from_millis(10) };
        let (_running, stopping) = tokio::sync::watch::channel(());
        let budgets = MemoryBudgets { bodies: Arc::new(Semaphore::new(1)), responses: ResponseBudget::default() };
        let api = Arc::new(HttpState::new(scheduler, exporter.clone(), bounds, budgets, stopping));
        let router = Router::new()
            .route(HttpRoute::DebugShards.as_str(), get(panics))
            .route(HttpRoute::Readyz.as_str(), get(hangs))
            .layer(middleware::from_fn_with_state(Arc::clone(&api), guard))
            .with_state(api);
        let table = [
            (HttpRoute::DebugShards, 500, r#"{"error":{"code":"INTERNAL","reason":"panic","message":"#),
            (HttpRoute::Readyz, 504, r#"{"error":{"code":"DEADLINE_EXCEEDED","message":"#),
        ];
        for (route, status, prefix) in table {
            let request = Request::get(route.as_str()).body(Body::empty()).unwrap();
            let response = router.clone().oneshot(request).await.unwrap();
            assert_eq!(response.status(), status);
            let body = response.into_body().collect().await.unwrap().to_bytes();
            assert!(body.starts_with(prefix.as_bytes()), "{body:?}");
            let counted = format!(r#"http_requests_total{{route="{}",status="{status}"}} 1"#, route.as_str());
            let mut text = Vec::new();
            exporter.write(&[], &mut text).unwrap();
            assert!(String::from_utf8(text).unwrap().contains(&counted), "{counted}");
        }
    }
}
