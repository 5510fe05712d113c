//! HTTP/JSON. `guard` stands around every request (deadline, panics, counting), `read`
//! turns bytes into checked values, `json` holds the shapes on the wire, and the handlers call the scheduler.

use std::sync::Arc;

use axum::Router;
use axum::http::{HeaderValue, StatusCode, header};
use axum::middleware;
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post, put};
use serde::Serialize;

use crate::api::error_table::{Code, Failure, Outcome};
use crate::api::{Bounds, Rooms};
use crate::metrics::{Exporter, Route};
use crate::scheduler::Scheduler;
use crate::scheduler::caller::Caller;

mod admin;
mod claims;
mod guard;
pub(in crate::api) mod json;
mod openapi;
mod parse_errors;
mod pools;
mod protect;
mod quotas;
pub(in crate::api) mod read;
mod scrape;
mod watch;
mod workers;

pub(in crate::api) use protect::{Caching, protect, refuse};
pub(in crate::api) use read::BODIES_KIB_MAX;

/// What the edge needs.
pub struct Api {
    scheduler: Scheduler,
    exporter: Exporter,
    bounds: Bounds,
    rooms: Rooms,
    scrapes: scrape::Renders,
    stopping: Stopping,
}

/// Closes when the service begins to stop.
type Stopping = tokio::sync::watch::Receiver<()>;

impl Api {
    /// `rooms` are shared with the other edges. `stopping` closes when the service begins to stop.
    #[must_use]
    pub fn new(scheduler: Scheduler, exporter: Exporter, bounds: Bounds, rooms: Rooms, stopping: Stopping) -> Self {
        Self { scheduler, exporter, bounds, rooms, scrapes: scrape::Renders::default(), stopping }
    }
}

type Shared = Arc<Api>;
type Answer = Result<Response, Failure>;

/// Every route of the service.
pub fn router(api: Api) -> Router {
    let api = Arc::new(api);
    // `{key}:verb` is one segment to the router: `claims::verb` splits it at the last colon.
    Router::new()
        .route(Route::Root.word(), get(admin::root))
        .route(Route::Pools.word(), get(pools::list))
        .route(
            Route::Pool.word(),
            put(pools::put).patch(pools::patch).get(pools::get).delete(pools::delete).post(pools::verb),
        )
        .route(Route::Demand.word(), get(pools::demand))
        .route(Route::Events.word(), get(watch::events))
        .route(Route::Workers.word(), get(workers::list))
        .route(Route::WorkersBatch.word(), post(workers::put_batch))
        .route(Route::WorkersHeartbeat.word(), post(workers::heartbeat_batch))
        .route(Route::Worker.word(), put(workers::put).get(workers::get).delete(workers::delete).post(workers::verb))
        .route(Route::Claims.word(), post(claims::claim).get(claims::list))
        .route(Route::ClaimsBatch.word(), post(claims::claim_batch))
        .route(Route::Explain.word(), post(claims::explain))
        .route(Route::Claim.word(), get(claims::get).post(claims::verb))
        .route(Route::Quotas.word(), get(quotas::list))
        .route(
            Route::NamespaceQuota.word(),
            put(quotas::put_default).get(quotas::get_default).delete(quotas::delete_default),
        )
        .route(Route::Quota.word(), put(quotas::put).get(quotas::get).delete(quotas::delete))
        .route(Route::OpenApi.word(), get(openapi::document))
        .route(Route::Docs.word(), get(openapi::viewer))
        .route(Route::DocsFile.word(), get(openapi::file))
        .route(Route::Healthz.word(), get(admin::healthz))
        .route(Route::Readyz.word(), get(admin::readyz))
        .route(Route::Metrics.word(), get(scrape::metrics))
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

/// Answer to a request that failed.
pub(in crate::api) fn answer(failure: Failure) -> Response {
    failure.into_response()
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
        let mut response = Caller::with_request_id(|request_id| json(status, &self.answer(request_id)));
        if code == Code::Unavailable {
            response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from_static("1"));
        }
        response
    }
}
