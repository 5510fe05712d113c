//! Handlers of `/v1/pools` and of demand.

use axum::body::Body;
use axum::extract::State;
use axum::http::{StatusCode, Uri};

use super::extract::{PathSegments, QueryParams};
use super::json::DemandResponseBody;
use super::read_body::read_body;
use super::{HandlerResult, SharedState, created_or_ok, empty_response, json};
use crate::api::error_table::{ApiError, ErrorStatus};
use crate::api::request::{NoBody, PoolPatch, parse_object};
use crate::api::response::{ClearResponseBody, PageJson, PoolJson, PoolResponseBody};
use crate::limits::FENCE_MAX;
use crate::model::{ClearResult, PoolName, PoolSpec};
use crate::scheduler::DeleteMode;

/// Path parameters: namespace and pool.
pub(super) type PoolPath = PathSegments<(String, String)>;

/// Creates a pool, or replaces its specification.
pub(super) async fn put(State(api): State<SharedState>, uri: Uri, path: PoolPath, sent: Body) -> HandlerResult {
    QueryParams::parse(&uri, &[])?;
    let name = PoolName::new(&path.0.0, &path.0.1)?;
    let spec: PoolSpec = parse_object(&read_body(&api, sent).await?)?;
    api.budgets.responses.check_available()?;
    let (new, status) = api.scheduler.put_pool(name, spec).await?;
    Ok(json(created_or_ok(new), &PoolResponseBody::from(&status)))
}

/// Changes single fields of a specification, if the pool still has the given version.
pub(super) async fn patch(State(api): State<SharedState>, uri: Uri, path: PoolPath, sent: Body) -> HandlerResult {
    let version = QueryParams::parse(&uri, &["version"])?.number("version", FENCE_MAX)?;
    let name = PoolName::new(&path.0.0, &path.0.1)?;
    let patch: PoolPatch = parse_object(&read_body(&api, sent).await?)?;
    api.budgets.responses.check_available()?;
    let status = api.scheduler.update_pool(name, version, move |spec| patch.apply_merge(spec)).await?;
    Ok(json(StatusCode::OK, &PoolResponseBody::from(&status)))
}

/// Returns a pool with its specification, counts and shards.
pub(super) async fn get(State(api): State<SharedState>, uri: Uri, path: PoolPath) -> HandlerResult {
    QueryParams::parse(&uri, &[])?;
    let name = PoolName::new(&path.0.0, &path.0.1)?;
    let status = api.scheduler.get_pool(&name).await?;
    Ok(json(StatusCode::OK, &PoolResponseBody::from(&status)))
}

/// Deletes a pool without workers, or with `force=true` any pool.
pub(super) async fn delete(State(api): State<SharedState>, uri: Uri, path: PoolPath) -> HandlerResult {
    let force = QueryParams::parse(&uri, &["force"])?.flag("force")?;
    let name = PoolName::new(&path.0.0, &path.0.1)?;
    let mode = if force { DeleteMode::Force } else { DeleteMode::RequireEmpty };
    api.scheduler.delete_pool(&name, mode).await?;
    Ok(empty_response())
}

/// Dispatches `{pool}:clear`, by which the owner vouches for all workers.
pub(super) async fn pool_action(State(api): State<SharedState>, uri: Uri, path: PoolPath, sent: Body) -> HandlerResult {
    QueryParams::parse(&uri, &[])?;
    let PathSegments((namespace, segment)) = path;
    let Some(pool) = segment.strip_suffix(":clear") else {
        return Err(ApiError::new(ErrorStatus::ROUTE, "no such verb; known: :clear"));
    };
    let name = PoolName::new(&namespace, pool)?;
    parse_object::<NoBody>(&read_body(&api, sent).await?)?;
    let ClearResult { cleared, suspect } = api.scheduler.clear_pool(&name).await?;
    Ok(json(StatusCode::OK, &ClearResponseBody { cleared, suspect }))
}

/// Returns the demand of a pool.
pub(super) async fn demand(State(api): State<SharedState>, uri: Uri, path: PoolPath) -> HandlerResult {
    QueryParams::parse(&uri, &[])?;
    let name = PoolName::new(&path.0.0, &path.0.1)?;
    let demand = api.scheduler.demand(&name).await?;
    Ok(json(StatusCode::OK, &DemandResponseBody::from(&demand)))
}

/// Lists all pools, page by page.
pub(super) async fn list(State(api): State<SharedState>, uri: Uri) -> HandlerResult {
    let mut params = QueryParams::parse(&uri, &["page_token", "limit"])?;
    let (token, limit) = (params.take("page_token"), params.limit()?);
    let page = api.scheduler.list_pools(token.as_deref(), limit).await?;
    Ok(json(StatusCode::OK, &PageJson::<PoolJson<'_>>::from(&page)))
}
