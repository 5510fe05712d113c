//! HTTP/JSON. [`listener`] accepts, `guard` stands around every request (deadline, panics, counting), `read`
//! turns bytes into checked values, `json` holds the shapes on the wire, and the handlers call the scheduler.

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::http::{HeaderValue, StatusCode, header};
use axum::middleware;
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post, put};
use serde::Serialize;
use tokio::sync::Semaphore;

use crate::api::outcome::{Code, Failure, Outcome};
use crate::metrics::{Exporter, Route};
use crate::scheduler::Scheduler;

mod admin;
mod claims;
mod guard;
mod json;
pub mod listener;
mod mend;
mod pools;
mod read;
mod workers;

/// What the edge needs.
pub struct Api {
    scheduler: Scheduler,
    exporter: Exporter,
    max_body_bytes: usize,
    request_timeout: Duration,
    /// Room for large bodies, in KiB: many connections times the largest body would be all of memory.
    bodies: Semaphore,
}

impl Api {
    /// `max_body_bytes`: largest request body; past it the answer is 413. `request_timeout`: from a request's
    /// head to its answer; past it the answer is 504.
    #[must_use]
    pub fn new(scheduler: Scheduler, exporter: Exporter, max_body_bytes: usize, request_timeout: Duration) -> Self {
        Self { scheduler, exporter, max_body_bytes, request_timeout, bodies: Semaphore::new(read::BODIES_KIB_MAX) }
    }
}

type Shared = Arc<Api>;
type Answer = Result<Response, Failure>;

/// Every route of the service.
pub fn router(api: Api) -> Router {
    let api = Arc::new(api);
    // `{key}:verb` is one segment to the router: `claims::verb` splits it at the last colon.
    Router::new()
        .route(Route::Pools.word(), get(pools::list))
        .route(Route::Pool.word(), put(pools::put).get(pools::get).delete(pools::delete).post(pools::verb))
        .route(Route::Workers.word(), get(workers::list))
        .route(Route::WorkersBatch.word(), post(workers::put_batch))
        .route(Route::Worker.word(), put(workers::put).get(workers::get).delete(workers::delete).post(workers::verb))
        .route(Route::Claims.word(), post(claims::claim).get(claims::list))
        .route(Route::ClaimsBatch.word(), post(claims::claim_batch))
        .route(Route::Claim.word(), get(claims::get).post(claims::verb))
        .route(Route::Healthz.word(), get(admin::healthz))
        .route(Route::Readyz.word(), get(admin::readyz))
        .route(Route::Metrics.word(), get(admin::metrics))
        .route(Route::DebugShards.word(), get(admin::debug_shards))
        .fallback(admin::no_route)
        .method_not_allowed_fallback(admin::no_method)
        .layer(middleware::from_fn_with_state(Arc::clone(&api), guard::guard))
        .with_state(api)
}

/// A JSON answer.
fn json(status: StatusCode, body: &impl Serialize) -> Response {
    let body = serde_json::to_vec(body).expect("every body is structs, strings and numbers");
    let mut response = Response::new(body.into());
    *response.status_mut() = status;
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}

/// `{}`: done, and there is nothing to say.
fn done() -> Response {
    json(StatusCode::OK, &json::Empty {})
}

/// 201 for what is new, 200 for what was there.
const fn created(created: bool) -> StatusCode {
    if created { StatusCode::CREATED } else { StatusCode::OK }
}

impl IntoResponse for Failure {
    fn into_response(self) -> Response {
        let Outcome { code, status, .. } = self.outcome;
        let status = StatusCode::from_u16(status).expect("the table holds valid statuses");
        let mut response = json(status, &self);
        if code == Code::Unavailable {
            response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from_static("1"));
        }
        response
    }
}
