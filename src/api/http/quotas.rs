//! Handlers of `/v1/quotas`: quotas of tenants, and of namespaces for their tenants without one.

use axum::body::Body;
use axum::extract::State;
use axum::http::{StatusCode, Uri};

use super::extract::{PathSegments, QueryParams};
use super::json::{QuotaJson, QuotaResponseBody};
use super::read_body::read_body;
use super::{HandlerResult, SharedState, created_or_ok, empty_response, json};
use crate::api::request::parse_object;
use crate::api::response::PageJson;
use crate::model::Quota;

/// Path parameters: namespace and tenant.
type TenantPath = PathSegments<(String, String)>;

/// Sets the quota of a tenant.
pub(super) async fn put(State(api): State<SharedState>, uri: Uri, path: TenantPath, sent: Body) -> HandlerResult {
    put_quota(&api, &uri, &path.0.0, Some(&path.0.1), sent).await
}

/// Sets the quota of a namespace.
pub(super) async fn put_default(
    State(api): State<SharedState>,
    uri: Uri,
    path: PathSegments<String>,
    sent: Body,
) -> HandlerResult {
    put_quota(&api, &uri, &path.0, None, sent).await
}

/// Returns the quota and the usage of a tenant.
pub(super) async fn get(State(api): State<SharedState>, uri: Uri, path: TenantPath) -> HandlerResult {
    get_quota(&api, &uri, &path.0.0, Some(&path.0.1))
}

/// Returns the quota of each tenant in the namespace without its own.
pub(super) async fn get_default(State(api): State<SharedState>, uri: Uri, path: PathSegments<String>) -> HandlerResult {
    get_quota(&api, &uri, &path.0, None)
}

/// Deletes the quota of a tenant.
pub(super) async fn delete(State(api): State<SharedState>, uri: Uri, path: TenantPath) -> HandlerResult {
    delete_quota(&api, &uri, &path.0.0, Some(&path.0.1)).await
}

/// Deletes the quota of a namespace.
pub(super) async fn delete_default(
    State(api): State<SharedState>,
    uri: Uri,
    path: PathSegments<String>,
) -> HandlerResult {
    delete_quota(&api, &uri, &path.0, None).await
}

/// Lists all quotas, page by page.
pub(super) async fn list(State(api): State<SharedState>, uri: Uri) -> HandlerResult {
    let mut params = QueryParams::parse(&uri, &["page_token", "limit"])?;
    let (token, limit) = (params.take("page_token"), params.limit()?);
    let page = api.scheduler.list_quotas(token.as_deref(), limit)?;
    Ok(json(StatusCode::OK, &PageJson::<QuotaJson<'_>>::from(&page)))
}

async fn put_quota(api: &SharedState, uri: &Uri, namespace: &str, tenant: Option<&str>, sent: Body) -> HandlerResult {
    QueryParams::parse(uri, &[])?;
    let quota: Quota = parse_object(&read_body(api, sent).await?)?;
    let (new, status) = api.scheduler.put_quota(namespace, tenant, quota).await?;
    Ok(json(created_or_ok(new), &QuotaResponseBody::from(&status)))
}

fn get_quota(api: &SharedState, uri: &Uri, namespace: &str, tenant: Option<&str>) -> HandlerResult {
    QueryParams::parse(uri, &[])?;
    let status = api.scheduler.get_quota(namespace, tenant)?;
    Ok(json(StatusCode::OK, &QuotaResponseBody::from(&status)))
}

async fn delete_quota(api: &SharedState, uri: &Uri, namespace: &str, tenant: Option<&str>) -> HandlerResult {
    QueryParams::parse(uri, &[])?;
    api.scheduler.delete_quota(namespace, tenant).await?;
    Ok(empty_response())
}
