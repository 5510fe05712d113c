//! What stands around every request: a deadline, a net for panics, and the count of answers.

use std::panic::AssertUnwindSafe;
use std::sync::Arc;

use axum::extract::{MatchedPath, Request, State};
use axum::middleware::Next;
use axum::response::{IntoResponse as _, Response};
use futures::FutureExt as _;
use futures::future::OptionFuture;

use super::Shared;
use crate::api::deadline::{self, GivenUp};
use crate::api::error_table::{Failure, Outcome};
use crate::api::half_close::{self, Client};
use crate::metrics::{Route, metrics};
use crate::model::rejection::Refusal;
use crate::scheduler::caller::Caller;

/// Runs one request.
pub(super) async fn guard(State(api): State<Shared>, request: Request, next: Next) -> Response {
    let route = route_of(&request);
    // Claims are driven by the scheduler, not by this future: dropping it at the deadline leaves nothing half done.
    let client = request.extensions().get::<Arc<Client>>().cloned();
    let departs = OptionFuture::from(client.as_ref().map(|client| client.departs()));
    let departs = async {
        if departs.await.is_none() {
            std::future::pending().await
        }
    };
    let run = deadline::run_for(departs, api.bounds.timeout, None, next.run(request));
    let answer = AssertUnwindSafe(half_close::CLIENT.scope(client.clone(), run)).catch_unwind().await;
    let response = match answer {
        Ok(Ok(response)) => response,
        Ok(Err(GivenUp::Late)) => Failure::from(Refusal::DeadlineExceeded).into_response(),
        Ok(Err(GivenUp::Departed)) => half_close::waits_no_more().into_response(),
        Err(_panic) => {
            let request_id = Caller::with_request_id(|id| id.map(ToString::to_string));
            tracing::error!(route = route.word(), request_id, "a handler panicked");
            Failure::new(Outcome::PANIC, "a defect of the service; the process goes on").into_response()
        }
    };
    metrics().http_requests(route, response.status().as_u16()).increment(1);
    response
}

fn route_of(request: &Request) -> Route {
    let Some(matched) = request.extensions().get::<MatchedPath>() else { return Route::Unmatched };
    match Route::ALL.iter().find(|route| route.word() == matched.as_str()) {
        Some(route) => with_verb(*route, request.uri().path()),
        None => Route::Unmatched,
    }
}

/// A name and its verb are one segment to the router, and two things to people.
fn with_verb(route: Route, path: &str) -> Route {
    let verb = path.rsplit_once(':').map_or("", |(_, verb)| verb);
    match (route, verb) {
        (Route::Claim, "confirm") => Route::Confirm,
        (Route::Claim, "renew") => Route::Renew,
        (Route::Claim, "resize") => Route::Resize,
        (Route::Claim, "release") => Route::Release,
        (Route::Worker, "heartbeat") => Route::Heartbeat,
        (Route::Worker, "cordon" | "uncordon" | "drain" | "clear") => Route::Steer,
        (Route::Pool, "clear") => Route::ClearPool,
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
    use crate::api::http::Api;
    use crate::api::{AnswerRoom, Bounds, Rooms};
    use crate::metrics::install;
    use crate::persist::store::memory::MemoryStore;
    use crate::scheduler::{Scheduler, Settings};

    async fn panics() -> Response {
        panic!("a test's own")
    }

    async fn hangs() -> Response {
        std::future::pending().await
    }

    #[tokio::test]
    async fn a_panic_and_a_hang_are_answered_and_counted() {
        let exporter = install().unwrap();
        let scheduler = Scheduler::new(Arc::new(MemoryStore), Settings::default());
        let bounds = Bounds { body_bytes_max: 1024, timeout: Duration::from_millis(10) };
        let (_running, stopping) = tokio::sync::watch::channel(());
        let rooms = Rooms { bodies: Arc::new(Semaphore::new(1)), answers: AnswerRoom::default() };
        let api = Arc::new(Api::new(scheduler, exporter.clone(), bounds, rooms, stopping));
        let router = Router::new()
            .route(Route::DebugShards.word(), get(panics))
            .route(Route::Readyz.word(), get(hangs))
            .layer(middleware::from_fn_with_state(Arc::clone(&api), guard))
            .with_state(api);
        let table = [
            (Route::DebugShards, 500, r#"{"error":{"code":"INTERNAL","reason":"panic","message":"#),
            (Route::Readyz, 504, r#"{"error":{"code":"DEADLINE_EXCEEDED","message":"#),
        ];
        for (route, status, words) in table {
            let request = Request::get(route.word()).body(Body::empty()).unwrap();
            let response = router.clone().oneshot(request).await.unwrap();
            assert_eq!(response.status(), status);
            let body = response.into_body().collect().await.unwrap().to_bytes();
            assert!(body.starts_with(words.as_bytes()), "{body:?}");
            let counted = format!(r#"http_requests_total{{route="{}",status="{status}"}} 1"#, route.word());
            let mut text = Vec::new();
            exporter.write(&[], &mut text).unwrap();
            assert!(String::from_utf8(text).unwrap().contains(&counted), "{counted}");
        }
    }
}
