//! HTTP edge with JSON bodies. `guard` wraps every request (deadline, panics, counting), `extract` reads bodies and
//! parameters, `json` holds the response bodies, and the handlers call the scheduler.

use std::sync::Arc;

use axum::Router;
use axum::http::{HeaderValue, StatusCode, header};
use axum::middleware;
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post, put};
use serde::Serialize;

use crate::api::error_table::{ApiError, ErrorCode, ErrorStatus};
use crate::api::{MemoryBudgets, RequestLimits};
use crate::metrics::{HttpRoute, MetricsExporter};
use crate::scheduler::Scheduler;
use crate::scheduler::caller::CallerContext;

mod admin;
mod claims;
mod events;
mod extract;
mod guard;
mod json;
mod openapi;
mod pools;
mod quotas;
mod read_body;
mod scrape;
mod security_headers;
mod workers;

pub(in crate::api) use security_headers::{CachePolicy, add_security_headers, reject_unrouted};

/// State that all handlers share.
pub struct HttpState {
    scheduler: Scheduler,
    exporter: MetricsExporter,
    bounds: RequestLimits,
    budgets: MemoryBudgets,
    scrape_cache: scrape::ScrapeCache,
    stopping: StopReceiver,
}

/// Closes when the service begins to stop.
type StopReceiver = tokio::sync::watch::Receiver<()>;

impl HttpState {
    /// Creates the state. `budgets` are shared with the other edges. `stopping` closes when the service begins to stop.
    #[must_use]
    pub fn new(
        scheduler: Scheduler,
        exporter: MetricsExporter,
        bounds: RequestLimits,
        budgets: MemoryBudgets,
        stopping: StopReceiver,
    ) -> Self {
        Self { scheduler, exporter, bounds, budgets, scrape_cache: scrape::ScrapeCache::default(), stopping }
    }
}

type SharedState = Arc<HttpState>;
type HandlerResult = Result<Response, ApiError>;

/// Builds the router with every route of the service.
pub fn router(api: HttpState) -> Router {
    let api = Arc::new(api);
    // `{key}:verb` is one segment to the router; `claims::claim_action` splits it at the last colon.
    Router::new()
        .route(HttpRoute::Root.as_str(), get(admin::root))
        .route(HttpRoute::Pools.as_str(), get(pools::list))
        .route(
            HttpRoute::Pool.as_str(),
            put(pools::put).patch(pools::patch).get(pools::get).delete(pools::delete).post(pools::pool_action),
        )
        .route(HttpRoute::Demand.as_str(), get(pools::demand))
        .route(HttpRoute::Events.as_str(), get(events::events))
        .route(HttpRoute::Workers.as_str(), get(workers::list))
        .route(HttpRoute::WorkersBatch.as_str(), post(workers::put_batch))
        .route(HttpRoute::WorkersHeartbeat.as_str(), post(workers::heartbeat_batch))
        .route(
            HttpRoute::Worker.as_str(),
            put(workers::put).get(workers::get).delete(workers::delete).post(workers::worker_action),
        )
        .route(HttpRoute::Claims.as_str(), post(claims::claim).get(claims::list))
        .route(HttpRoute::ClaimsBatch.as_str(), post(claims::claim_batch))
        .route(HttpRoute::Explain.as_str(), post(claims::explain))
        .route(HttpRoute::Claim.as_str(), get(claims::get).post(claims::claim_action))
        .route(HttpRoute::Quotas.as_str(), get(quotas::list))
        .route(
            HttpRoute::NamespaceQuota.as_str(),
            put(quotas::put_default).get(quotas::get_default).delete(quotas::delete_default),
        )
        .route(HttpRoute::Quota.as_str(), put(quotas::put).get(quotas::get).delete(quotas::delete))
        .route(HttpRoute::OpenApi.as_str(), get(openapi::document))
        .route(HttpRoute::Docs.as_str(), get(openapi::viewer))
        .route(HttpRoute::DocsFile.as_str(), get(openapi::viewer_file))
        .route(HttpRoute::Healthz.as_str(), get(admin::healthz))
        .route(HttpRoute::Readyz.as_str(), get(admin::readyz))
        .route(HttpRoute::Metrics.as_str(), get(scrape::metrics))
        .route(HttpRoute::DebugShards.as_str(), get(admin::debug_shards))
        .fallback(admin::route_not_found)
        .method_not_allowed_fallback(admin::method_not_allowed)
        .layer(middleware::from_fn_with_state(Arc::clone(&api), guard::guard))
        .with_state(api)
}

/// Serialises a JSON response.
fn json(status: StatusCode, body: &impl Serialize) -> Response {
    let body = serde_json::to_vec(body).expect("every body is structs, strings and numbers");
    let mut response = Response::new(body.into());
    *response.status_mut() = status;
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}

/// Response to a request that failed.
pub(in crate::api) fn error_response(failure: ApiError) -> Response {
    failure.into_response()
}

/// Returns `{}`: success, without details.
fn empty_response() -> Response {
    json(StatusCode::OK, &json::EmptyBody {})
}

/// Status of a write: 201 for a new object, 200 for an existing one.
const fn created_or_ok(created: bool) -> StatusCode {
    if created { StatusCode::CREATED } else { StatusCode::OK }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let ErrorStatus { code, status, .. } = self.status;
        let status = StatusCode::from_u16(status).expect("the table holds valid statuses");
        let mut response = CallerContext::with_request_id(|request_id| json(status, &self.body(request_id)));
        if code == ErrorCode::Unavailable {
            response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from_static("1"));
        }
        response
    }
}
