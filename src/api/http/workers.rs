//! Handlers of `/v1/pools/{ns}/{pool}/workers`: registration, heartbeats and operator commands.

use axum::body::Body;
use axum::extract::State;
use axum::http::{StatusCode, Uri};

use super::extract::{PathSegments, QueryParams};
use super::json::{
    BatchOutcomes, HeartbeatOutcome, HeartbeatResponseBody, WorkerJson, WorkerOutcome, WorkerResponseBody,
};
use super::pools::PoolPath;
use super::read_body::read_body;
use super::{HandlerResult, SharedState, created_or_ok, empty_response, json};
use crate::api::batch::submit_valid;
use crate::api::error_table::{ApiError, ErrorStatus};
use crate::api::request::{
    HeartbeatBody, HeartbeatItem, NoBody, WorkerBody, WorkerItem, WorkersBatch, parse_item, parse_object,
};
use crate::api::response::PageJson;
use crate::model::{PoolName, WorkerCommand, WorkerId};

/// Path parameters: namespace, pool and worker.
type WorkerPath = PathSegments<(String, String, String)>;

/// Registers a worker under the id in the path.
pub(super) async fn put(State(api): State<SharedState>, uri: Uri, path: WorkerPath, sent: Body) -> HandlerResult {
    QueryParams::parse(&uri, &[])?;
    let PathSegments((namespace, pool, id)) = path;
    let pool = PoolName::new(&namespace, &pool)?;
    let bytes = read_body(&api, sent).await?;
    let worker = parse_object::<WorkerBody<'_>>(&bytes)?.into_registration(&namespace, &id)?;
    let registered = api.scheduler.register(&pool, worker).await?;
    Ok(json(created_or_ok(registered.created), &WorkerResponseBody::from(&registered)))
}

/// Registers many workers; an invalid one does not affect the others.
pub(super) async fn put_batch(State(api): State<SharedState>, uri: Uri, path: PoolPath, sent: Body) -> HandlerResult {
    QueryParams::parse(&uri, &[])?;
    let pool = PoolName::new(&path.0.0, &path.0.1)?;
    let bytes = read_body(&api, sent).await?;
    api.budgets.responses.check_available()?;
    let batch: WorkersBatch<'_> = parse_object(&bytes)?;
    let requests =
        batch.workers.0.iter().map(|raw| parse_item::<WorkerItem<'_>>(raw)?.into_registration(pool.namespace()));
    let outcomes =
        submit_valid("workers", requests, async |workers| api.scheduler.register_batch(&pool, workers).await).await?;
    Ok(json(StatusCode::OK, &BatchOutcomes { items: outcomes.iter().map(WorkerOutcome::from).collect() }))
}

/// Records heartbeats of many workers; an invalid one does not affect the others.
pub(super) async fn heartbeat_batch(
    State(api): State<SharedState>,
    uri: Uri,
    path: PoolPath,
    sent: Body,
) -> HandlerResult {
    QueryParams::parse(&uri, &[])?;
    let pool = PoolName::new(&path.0.0, &path.0.1)?;
    let bytes = read_body(&api, sent).await?;
    // Never rejected because other clients do not read their responses: workers would be lost.
    let batch: WorkersBatch<'_> = parse_object(&bytes)?;
    let requests =
        batch.workers.0.iter().map(|raw| parse_item::<HeartbeatItem<'_>>(raw)?.into_heartbeat(pool.namespace()));
    let outcomes =
        submit_valid("workers", requests, async |valid| api.scheduler.heartbeat_batch(&pool, valid).await).await?;
    Ok(json(StatusCode::OK, &BatchOutcomes { items: outcomes.iter().map(HeartbeatOutcome::from).collect() }))
}

/// Returns a worker with its claims.
pub(super) async fn get(State(api): State<SharedState>, uri: Uri, path: WorkerPath) -> HandlerResult {
    QueryParams::parse(&uri, &[])?;
    let (pool, id) = (PoolName::new(&path.0.0, &path.0.1)?, WorkerId::new(&path.0.2)?);
    let worker = api.scheduler.get_worker(&pool, &id).await?;
    Ok(json(StatusCode::OK, &WorkerResponseBody::from(&worker)))
}

/// Deletes a worker and ends its claims.
pub(super) async fn delete(State(api): State<SharedState>, uri: Uri, path: WorkerPath) -> HandlerResult {
    QueryParams::parse(&uri, &[])?;
    let (pool, id) = (PoolName::new(&path.0.0, &path.0.1)?, WorkerId::new(&path.0.2)?);
    api.scheduler.delete_worker(&pool, &id).await?;
    Ok(empty_response())
}

/// Dispatches `{id}:heartbeat` and the operator's commands. An id cannot contain a colon, so the last one starts the
/// verb.
pub(super) async fn worker_action(
    State(api): State<SharedState>,
    uri: Uri,
    path: WorkerPath,
    sent: Body,
) -> HandlerResult {
    QueryParams::parse(&uri, &[])?;
    let PathSegments((namespace, pool, segment)) = path;
    let (id, verb) = segment.rsplit_once(':').unwrap_or((&segment, ""));
    let verb = match verb {
        "heartbeat" => None,
        "cordon" => Some(WorkerCommand::Cordon),
        "uncordon" => Some(WorkerCommand::Uncordon),
        "drain" => Some(WorkerCommand::Drain),
        "clear" => Some(WorkerCommand::Clear),
        _ => {
            let message = "no such verb; known: :heartbeat, :cordon, :uncordon, :drain, :clear";
            return Err(ApiError::new(ErrorStatus::ROUTE, message));
        }
    };
    let (pool, id) = (PoolName::new(&namespace, &pool)?, WorkerId::new(id)?);
    let bytes = read_body(&api, sent).await?;
    if let Some(verb) = verb {
        parse_object::<NoBody>(&bytes)?;
        let worker = api.scheduler.command_worker(&pool, &id, verb).await?;
        return Ok(json(StatusCode::OK, &WorkerResponseBody::from(&worker)));
    }
    let heartbeat = parse_object::<HeartbeatBody<'_>>(&bytes)?.heartbeat(&namespace)?;
    let response = api.scheduler.heartbeat(&pool, &id, heartbeat).await?;
    Ok(json(StatusCode::OK, &HeartbeatResponseBody::from(&response)))
}

/// Lists the workers of a pool, page by page.
pub(super) async fn list(State(api): State<SharedState>, uri: Uri, path: PoolPath) -> HandlerResult {
    let mut params = QueryParams::parse(&uri, &["page_token", "limit"])?;
    let (token, limit) = (params.take("page_token"), params.limit()?);
    let pool = PoolName::new(&path.0.0, &path.0.1)?;
    let page = api.scheduler.list_workers(&pool, token.as_deref(), limit).await?;
    Ok(json(StatusCode::OK, &PageJson::<WorkerJson<'_>>::from(&page)))
}
