//! Handlers of `/v1/claims` and `/v1/explain`.

use axum::body::Body;
use axum::extract::State;
use axum::http::{StatusCode, Uri};

use super::extract::{PathSegments, QueryParams};
use super::json::{
    BatchOutcomes, ClaimOutcome, ClaimPageBody, ClaimResponseBody, ReleaseResponseBody, WaitingResponseBody,
};
use super::read_body::read_body;
use super::{HandlerResult, SharedState, created_or_ok, json};
use crate::api::batch::{submit_all_or_none, submit_valid};
use crate::api::error_table::{ApiError, ErrorStatus};
use crate::api::request::{
    BatchMode, ClaimBody, ClaimsBatch, DEFAULT_TENANT, HolderBody, ReleaseBody, ReleasePhase, RenewBody, ResizeBody,
    holder, parse_item, parse_object, truncate,
};
use crate::api::response::ExplainResponseBody;
use crate::api::{deadline, half_close};
use crate::limits;
use crate::model::{ClaimFilter, ClaimId, ClaimStatus, ListedState};

/// Path parameters: namespace and key.
type KeyPath = PathSegments<(String, String)>;

/// Claims a worker, or returns the claim that the key already has.
pub(super) async fn claim(State(api): State<SharedState>, uri: Uri, sent: Body) -> HandlerResult {
    QueryParams::parse(&uri, &[])?;
    let request = {
        // A claim may be queued for a day: nothing of its body is kept meanwhile.
        let bytes = read_body(&api, sent).await?;
        parse_object::<ClaimBody<'_>>(&bytes)?.into_request().and_then(deadline::extend_for_wait)?
    };
    let result = api.scheduler.claim(request).await?;
    half_close::record_undelivered(std::iter::once(&result));
    Ok(json(created_or_ok(result.created), &ClaimResponseBody::from(&result.claim)))
}

/// Explains what a claim would get, without making it.
pub(super) async fn explain(State(api): State<SharedState>, uri: Uri, sent: Body) -> HandlerResult {
    QueryParams::parse(&uri, &[])?;
    let bytes = read_body(&api, sent).await?;
    let request = parse_object::<ClaimBody<'_>>(&bytes)?.into_request()?;
    let explanation = api.scheduler.explain(request).await?;
    Ok(json(StatusCode::OK, &ExplainResponseBody::from(&explanation)))
}

/// Makes many claims; an invalid one does not affect the others.
pub(super) async fn claim_batch(State(api): State<SharedState>, uri: Uri, sent: Body) -> HandlerResult {
    QueryParams::parse(&uri, &[])?;
    let (mode, requests) = {
        // The claims may be queued for a day: nothing of the body is kept meanwhile.
        let bytes = read_body(&api, sent).await?;
        api.budgets.responses.check_available()?;
        let batch: ClaimsBatch<'_> = parse_object(&bytes)?;
        let request = |raw| parse_item::<ClaimBody<'_>>(raw)?.into_request().and_then(deadline::extend_for_wait);
        let requests: Vec<_> = batch.items.0.into_iter().map(request).collect();
        (batch.mode, requests.into_iter())
    };
    let outcomes = match mode {
        BatchMode::Independent => {
            submit_valid("items", requests, async |requests| Ok(api.scheduler.claim_batch(requests).await)).await?
        }
        BatchMode::AllOrNothing => {
            submit_all_or_none("items", requests, async |requests| Ok(api.scheduler.claim_gang(requests).await)).await?
        }
    };
    half_close::record_undelivered(outcomes.iter().flatten());
    Ok(json(StatusCode::OK, &BatchOutcomes { items: outcomes.iter().map(ClaimOutcome::from).collect() }))
}

/// Returns the claim of a key, or its state in the queue.
pub(super) async fn get(State(api): State<SharedState>, uri: Uri, path: KeyPath) -> HandlerResult {
    let tenant = QueryParams::parse(&uri, &["tenant"])?.take("tenant");
    let id = ClaimId::new(&path.0.0, tenant.as_deref().unwrap_or(DEFAULT_TENANT), &path.0.1)?;
    Ok(match api.scheduler.claim_status(&id).await? {
        ClaimStatus::Held(claim) => json(StatusCode::OK, &ClaimResponseBody::from(&claim)),
        ClaimStatus::Queued(queued) => json(StatusCode::OK, &WaitingResponseBody::from(&queued)),
    })
}

/// Dispatches `{key}:confirm`, `:renew`, `:resize` and `:release`. A key cannot contain a colon, so the last one starts
/// the verb.
pub(super) async fn claim_action(State(api): State<SharedState>, uri: Uri, path: KeyPath, sent: Body) -> HandlerResult {
    QueryParams::parse(&uri, &[])?;
    let PathSegments((namespace, segment)) = path;
    let (key, verb) = match segment.rsplit_once(':') {
        Some((key, verb @ ("confirm" | "renew" | "release" | "resize"))) => (key, verb),
        _ => return Err(ApiError::new(ErrorStatus::ROUTE, "no such verb; known: :confirm, :renew, :resize, :release")),
    };
    let bytes = read_body(&api, sent).await?;
    let claim = match verb {
        "confirm" => {
            let (id, fence) = parse_object::<HolderBody<'_>>(&bytes)?.claim_and_fence(&namespace, key)?;
            api.scheduler.confirm(&id, fence).await?
        }
        "renew" => {
            let body: RenewBody<'_> = parse_object(&bytes)?;
            let (id, fence) = holder(&namespace, body.tenant.as_ref(), key, body.fence)?;
            api.scheduler.renew(&id, fence, body.ttl_ms).await?
        }
        "resize" => {
            let body: ResizeBody<'_> = parse_object(&bytes)?;
            let (id, fence) = holder(&namespace, body.tenant.as_ref(), key, body.fence)?;
            api.scheduler.resize(&id, fence, body.resources).await?
        }
        _ => {
            let body: ReleaseBody<'_> = parse_object(&bytes)?;
            let (id, fence) = holder(&namespace, body.tenant.as_ref(), key, body.fence)?;
            let released = match body.phase {
                Some(ReleasePhase::Begin) => api.scheduler.begin_release_held(&id, Some(fence)).await?,
                Some(ReleasePhase::Finish) | None => api.scheduler.release_held(&id, Some(fence)).await?,
            };
            return Ok(json(StatusCode::OK, &ReleaseResponseBody { released }));
        }
    };
    Ok(json(StatusCode::OK, &ClaimResponseBody::from(&claim)))
}

/// Parses states separated by commas; none without the parameter.
fn parse_states(text: Option<String>) -> Result<Vec<ListedState>, ApiError> {
    let Some(text) = text else { return Ok(Vec::new()) };
    let state = |name: &str| {
        let found = ListedState::ALL.into_iter().find(|state| state.as_str() == name);
        found.ok_or_else(|| {
            let known = ListedState::ALL.map(ListedState::as_str).join(", ");
            ApiError::invalid(
                "state",
                format!("must be one or more of {known}, separated by commas, got {:?}", truncate(name)),
            )
        })
    };
    text.split(',').map(state).collect()
}

/// Lists claims that match the filter, page by page.
pub(super) async fn list(State(api): State<SharedState>, uri: Uri) -> HandlerResult {
    let known = ["namespace", "pool", "worker", "tenant", "state", "older_than_ms", "page_token", "limit"];
    let mut params = QueryParams::parse(&uri, &known)?;
    let (token, limit) = (params.take("page_token"), params.limit()?);
    let (states, older_than_ms) =
        (parse_states(params.take("state"))?, params.number("older_than_ms", limits::AMOUNT_MAX)?);
    let mut take = |name| params.take(name);
    let (namespace, pool, worker, tenant) = (take("namespace"), take("pool"), take("worker"), take("tenant"));
    let filter = ClaimFilter { namespace, pool, worker, tenant, older_than_ms, ..ClaimFilter::default() };
    let filter = filter.in_states(&states).checked()?;
    let page = api.scheduler.list_claims(&filter, token.as_deref(), limit).await?;
    Ok(json(StatusCode::OK, &ClaimPageBody::from(&page)))
}
