//! Quotas: of a tenant, and of a namespace for its tenants without their own.

use axum::body::Body;
use axum::extract::State;
use axum::http::{StatusCode, Uri};

use super::json::{PageJson, QuotaAnswer, QuotaJson};
use super::read::{Params, Segments, body, object};
use super::{Answer, Shared, created, done, json};
use crate::model::Quota;

/// Namespace and tenant, as the path has them.
type TenantPath = Segments<(String, String)>;

/// Sets that of a tenant.
pub(super) async fn put(State(api): State<Shared>, uri: Uri, path: TenantPath, sent: Body) -> Answer {
    set(&api, &uri, &path.0.0, Some(&path.0.1), sent).await
}

/// Sets that of a namespace.
pub(super) async fn put_default(State(api): State<Shared>, uri: Uri, path: Segments<String>, sent: Body) -> Answer {
    set(&api, &uri, &path.0, None, sent).await
}

/// What a tenant may hold, and what it holds.
pub(super) async fn get(State(api): State<Shared>, uri: Uri, path: TenantPath) -> Answer {
    look(&api, &uri, &path.0.0, Some(&path.0.1))
}

/// What tenants of a namespace may hold that have no quota of their own.
pub(super) async fn get_default(State(api): State<Shared>, uri: Uri, path: Segments<String>) -> Answer {
    look(&api, &uri, &path.0, None)
}

/// Takes that of a tenant away.
pub(super) async fn delete(State(api): State<Shared>, uri: Uri, path: TenantPath) -> Answer {
    take_away(&api, &uri, &path.0.0, Some(&path.0.1)).await
}

/// Takes that of a namespace away.
pub(super) async fn delete_default(State(api): State<Shared>, uri: Uri, path: Segments<String>) -> Answer {
    take_away(&api, &uri, &path.0, None).await
}

/// Page by page.
pub(super) async fn list(State(api): State<Shared>, uri: Uri) -> Answer {
    let mut params = Params::read(&uri, &["page_token", "limit"])?;
    let (token, limit) = (params.take("page_token"), params.limit()?);
    let page = api.scheduler.list_quotas(token.as_deref(), limit)?;
    Ok(json(StatusCode::OK, &PageJson::<QuotaJson<'_>>::from(&page)))
}

async fn set(api: &Shared, uri: &Uri, namespace: &str, tenant: Option<&str>, sent: Body) -> Answer {
    Params::read(uri, &[])?;
    let quota: Quota = object(&body(api, sent).await?)?;
    let (new, status) = api.scheduler.put_quota(namespace, tenant, quota).await?;
    Ok(json(created(new), &QuotaAnswer::from(&status)))
}

fn look(api: &Shared, uri: &Uri, namespace: &str, tenant: Option<&str>) -> Answer {
    Params::read(uri, &[])?;
    let status = api.scheduler.get_quota(namespace, tenant)?;
    Ok(json(StatusCode::OK, &QuotaAnswer::from(&status)))
}

async fn take_away(api: &Shared, uri: &Uri, namespace: &str, tenant: Option<&str>) -> Answer {
    Params::read(uri, &[])?;
    api.scheduler.delete_quota(namespace, tenant).await?;
    Ok(done())
}
