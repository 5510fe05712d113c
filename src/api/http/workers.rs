//! Workers.

use axum::body::Body;
use axum::extract::State;
use axum::http::{StatusCode, Uri};

use super::json::{
    HeartbeatAnswer, HeartbeatBody, HeartbeatItem, HeartbeatOutcome, NoBody, Outcomes, PageJson, WorkerAnswer,
    WorkerBody, WorkerItem, WorkerJson, WorkerOutcome, WorkersBatch,
};
use super::pools::PoolPath;
use super::read::{Params, Segments, body, item, merge, object};
use super::{Answer, Shared, created, done, json};
use crate::api::error_table::{Failure, Outcome};
use crate::model::{PoolName, WorkerId, WorkerVerb};

/// Namespace, pool and worker, as the path has them.
type WorkerPath = Segments<(String, String, String)>;

/// Registers one.
pub(super) async fn put(State(api): State<Shared>, uri: Uri, path: WorkerPath, sent: Body) -> Answer {
    Params::read(&uri, &[])?;
    let Segments((namespace, pool, id)) = path;
    let pool = PoolName::new(&namespace, &pool)?;
    let bytes = body(&api, sent).await?;
    let worker = object::<WorkerBody<'_>>(&bytes)?.registration(&namespace, &id)?;
    let registered = api.scheduler.register(&pool, worker).await?;
    Ok(json(created(registered.created), &WorkerAnswer::from(&registered)))
}

/// Registers many; a bad one harms no other.
pub(super) async fn put_batch(State(api): State<Shared>, uri: Uri, path: PoolPath, sent: Body) -> Answer {
    Params::read(&uri, &[])?;
    let pool = PoolName::new(&path.0.0, &path.0.1)?;
    let bytes = body(&api, sent).await?;
    api.rooms.answers.check()?;
    let batch: WorkersBatch<'_> = object(&bytes)?;
    let read = batch.workers.0.iter().map(|raw| item::<WorkerItem<'_>>(raw)?.registration(pool.namespace()));
    let outcomes = merge("workers", read, async |workers| api.scheduler.register_batch(&pool, workers).await).await?;
    Ok(json(StatusCode::OK, &Outcomes { items: outcomes.iter().map(WorkerOutcome::from).collect() }))
}

/// Many that are there; a bad one harms no other.
pub(super) async fn heartbeat_batch(State(api): State<Shared>, uri: Uri, path: PoolPath, sent: Body) -> Answer {
    Params::read(&uri, &[])?;
    let pool = PoolName::new(&path.0.0, &path.0.1)?;
    let bytes = body(&api, sent).await?;
    // Never refused for answers that others do not read: workers would be lost.
    let batch: WorkersBatch<'_> = object(&bytes)?;
    let read = batch.workers.0.iter().map(|raw| item::<HeartbeatItem<'_>>(raw)?.beat(pool.namespace()));
    let outcomes = merge("workers", read, async |beats| api.scheduler.heartbeat_batch(&pool, beats).await).await?;
    Ok(json(StatusCode::OK, &Outcomes { items: outcomes.iter().map(HeartbeatOutcome::from).collect() }))
}

/// One, with what it holds.
pub(super) async fn get(State(api): State<Shared>, uri: Uri, path: WorkerPath) -> Answer {
    Params::read(&uri, &[])?;
    let (pool, id) = (PoolName::new(&path.0.0, &path.0.1)?, WorkerId::new(&path.0.2)?);
    let worker = api.scheduler.get_worker(&pool, &id).await?;
    Ok(json(StatusCode::OK, &WorkerAnswer::from(&worker)))
}

/// Ends one and what it holds.
pub(super) async fn delete(State(api): State<Shared>, uri: Uri, path: WorkerPath) -> Answer {
    Params::read(&uri, &[])?;
    let (pool, id) = (PoolName::new(&path.0.0, &path.0.1)?, WorkerId::new(&path.0.2)?);
    api.scheduler.delete_worker(&pool, &id).await?;
    Ok(done())
}

/// `{id}:heartbeat` and what its owner wishes. An id holds no colon, so the last one begins the verb.
pub(super) async fn verb(State(api): State<Shared>, uri: Uri, path: WorkerPath, sent: Body) -> Answer {
    Params::read(&uri, &[])?;
    let Segments((namespace, pool, segment)) = path;
    let (id, verb) = segment.rsplit_once(':').unwrap_or((&segment, ""));
    let verb = match verb {
        "heartbeat" => None,
        "cordon" => Some(WorkerVerb::Cordon),
        "uncordon" => Some(WorkerVerb::Uncordon),
        "drain" => Some(WorkerVerb::Drain),
        "clear" => Some(WorkerVerb::Clear),
        _ => {
            let known = "no such verb; known: :heartbeat, :cordon, :uncordon, :drain, :clear";
            return Err(Failure::new(Outcome::ROUTE, known));
        }
    };
    let (pool, id) = (PoolName::new(&namespace, &pool)?, WorkerId::new(id)?);
    let bytes = body(&api, sent).await?;
    if let Some(verb) = verb {
        object::<NoBody>(&bytes)?;
        let worker = api.scheduler.steer(&pool, &id, verb).await?;
        return Ok(json(StatusCode::OK, &WorkerAnswer::from(&worker)));
    }
    let beat = object::<HeartbeatBody<'_>>(&bytes)?.beat(&namespace)?;
    let heard = api.scheduler.heartbeat(&pool, &id, beat).await?;
    Ok(json(StatusCode::OK, &HeartbeatAnswer::from(&heard)))
}

/// Page by page.
pub(super) async fn list(State(api): State<Shared>, uri: Uri, path: PoolPath) -> Answer {
    let mut params = Params::read(&uri, &["page_token", "limit"])?;
    let (token, limit) = (params.take("page_token"), params.limit()?);
    let pool = PoolName::new(&path.0.0, &path.0.1)?;
    let page = api.scheduler.list_workers(&pool, token.as_deref(), limit).await?;
    Ok(json(StatusCode::OK, &PageJson::<WorkerJson<'_>>::from(&page)))
}
