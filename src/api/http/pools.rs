//! Pools.

use axum::body::Body;
use axum::extract::State;
use axum::http::{StatusCode, Uri};

use super::json::{ClearedAnswer, DemandAnswer, NoBody, PageJson, PoolAnswer, PoolJson, PoolPatch};
use super::read::{Params, Segments, body, object};
use super::{Answer, Shared, created, done, json};
use crate::api::error_table::{Failure, Outcome};
use crate::limits::FENCE_MAX;
use crate::model::{Cleared, PoolName, PoolSpec};

/// Namespace and pool, as the path has them.
pub(super) type PoolPath = Segments<(String, String)>;

/// Creates or replaces.
pub(super) async fn put(State(api): State<Shared>, uri: Uri, path: PoolPath, sent: Body) -> Answer {
    Params::read(&uri, &[])?;
    let name = PoolName::new(&path.0.0, &path.0.1)?;
    let spec: PoolSpec = object(&body(&api, sent).await?)?;
    api.rooms.answers.check()?;
    let (new, status) = api.scheduler.put_pool(name, spec).await?;
    Ok(json(created(new), &PoolAnswer::from(&status)))
}

/// Changes single fields, if the pool is still at the version that was read.
pub(super) async fn patch(State(api): State<Shared>, uri: Uri, path: PoolPath, sent: Body) -> Answer {
    let version = Params::read(&uri, &["version"])?.number("version", FENCE_MAX)?;
    let name = PoolName::new(&path.0.0, &path.0.1)?;
    let patch: PoolPatch = object(&body(&api, sent).await?)?;
    api.rooms.answers.check()?;
    let status = api.scheduler.update_pool(name, version, move |spec| patch.merge(spec)).await?;
    Ok(json(StatusCode::OK, &PoolAnswer::from(&status)))
}

/// Spec, counts and figures by shard.
pub(super) async fn get(State(api): State<Shared>, uri: Uri, path: PoolPath) -> Answer {
    Params::read(&uri, &[])?;
    let name = PoolName::new(&path.0.0, &path.0.1)?;
    let status = api.scheduler.get_pool(&name).await?;
    Ok(json(StatusCode::OK, &PoolAnswer::from(&status)))
}

/// Deletes a pool without workers, or with `force=true` any pool.
pub(super) async fn delete(State(api): State<Shared>, uri: Uri, path: PoolPath) -> Answer {
    let force = Params::read(&uri, &["force"])?.flag("force")?;
    let name = PoolName::new(&path.0.0, &path.0.1)?;
    api.scheduler.delete_pool(&name, force).await?;
    Ok(done())
}

/// `{pool}:clear`: its owner speaks for all workers.
pub(super) async fn verb(State(api): State<Shared>, uri: Uri, path: PoolPath, sent: Body) -> Answer {
    Params::read(&uri, &[])?;
    let Segments((namespace, segment)) = path;
    let Some(pool) = segment.strip_suffix(":clear") else {
        return Err(Failure::new(Outcome::ROUTE, "no such verb; known: :clear"));
    };
    let name = PoolName::new(&namespace, pool)?;
    object::<NoBody>(&body(&api, sent).await?)?;
    let Cleared { cleared, suspect } = api.scheduler.clear_pool(&name).await?;
    Ok(json(StatusCode::OK, &ClearedAnswer { cleared, suspect }))
}

/// What waits for a pool.
pub(super) async fn demand(State(api): State<Shared>, uri: Uri, path: PoolPath) -> Answer {
    Params::read(&uri, &[])?;
    let name = PoolName::new(&path.0.0, &path.0.1)?;
    let demand = api.scheduler.demand(&name).await?;
    Ok(json(StatusCode::OK, &DemandAnswer::from(&demand)))
}

/// Page by page.
pub(super) async fn list(State(api): State<Shared>, uri: Uri) -> Answer {
    let mut params = Params::read(&uri, &["page_token", "limit"])?;
    let (token, limit) = (params.take("page_token"), params.limit()?);
    let page = api.scheduler.list_pools(token.as_deref(), limit).await?;
    Ok(json(StatusCode::OK, &PageJson::<PoolJson<'_>>::from(&page)))
}
