//! Claims.

use axum::body::Body;
use axum::extract::State;
use axum::http::{StatusCode, Uri};

use super::json::{
    BatchMode, ClaimAnswer, ClaimBody, ClaimJson, ClaimOutcome, ClaimsBatch, ExplainAnswer, HolderBody, Outcomes,
    PageJson, Phase, ReleaseAnswer, ReleaseBody, RenewBody, ResizeBody, TENANT_DEFAULT, WaitingAnswer, holder,
};
use super::parse_errors::short;
use super::read::{Params, Segments, body, item, merge, merge_all, object};
use super::{Answer, Shared, created, json};
use crate::api::error_table::{Failure, Outcome};
use crate::api::{deadline, half_close};
use crate::limits;
use crate::model::{ClaimFilter, ClaimId, ClaimState, Standing};

/// Namespace and key, as the path has them.
type KeyPath = Segments<(String, String)>;

/// Takes a worker, or finds that the key has one.
pub(super) async fn claim(State(api): State<Shared>, uri: Uri, sent: Body) -> Answer {
    Params::read(&uri, &[])?;
    let request = {
        // A claim may wait for a day: nothing of its body is kept meanwhile.
        let bytes = body(&api, sent).await?;
        object::<ClaimBody<'_>>(&bytes)?.request().and_then(deadline::allow)?
    };
    let taken = api.scheduler.claim(request).await?;
    half_close::note(std::iter::once(&taken));
    Ok(json(created(taken.created), &ClaimAnswer::from(&taken.claim)))
}

/// What a claim would find.
pub(super) async fn explain(State(api): State<Shared>, uri: Uri, sent: Body) -> Answer {
    Params::read(&uri, &[])?;
    let bytes = body(&api, sent).await?;
    let request = object::<ClaimBody<'_>>(&bytes)?.request()?;
    let explanation = api.scheduler.explain(request).await?;
    Ok(json(StatusCode::OK, &ExplainAnswer::from(&explanation)))
}

/// Many claims; a bad one harms no other.
pub(super) async fn claim_batch(State(api): State<Shared>, uri: Uri, sent: Body) -> Answer {
    Params::read(&uri, &[])?;
    let (mode, requests) = {
        // Its claims may wait for a day: nothing of the body is kept meanwhile.
        let bytes = body(&api, sent).await?;
        api.rooms.answers.check()?;
        let batch: ClaimsBatch<'_> = object(&bytes)?;
        let request = |raw| item::<ClaimBody<'_>>(raw)?.request().and_then(deadline::allow);
        let requests: Vec<_> = batch.items.0.into_iter().map(request).collect();
        (batch.mode, requests.into_iter())
    };
    let outcomes = match mode {
        BatchMode::Independent => {
            merge("items", requests, async |requests| Ok(api.scheduler.claim_batch(requests).await)).await?
        }
        BatchMode::AllOrNothing => {
            merge_all("items", requests, async |requests| Ok(api.scheduler.claim_gang(requests).await)).await?
        }
    };
    half_close::note(outcomes.iter().flatten());
    Ok(json(StatusCode::OK, &Outcomes { items: outcomes.iter().map(ClaimOutcome::from).collect() }))
}

/// Who holds the key, or what it waits for.
pub(super) async fn get(State(api): State<Shared>, uri: Uri, path: KeyPath) -> Answer {
    let tenant = Params::read(&uri, &["tenant"])?.take("tenant");
    let id = ClaimId::new(&path.0.0, tenant.as_deref().unwrap_or(TENANT_DEFAULT), &path.0.1)?;
    Ok(match api.scheduler.standing(&id).await? {
        Standing::Held(claim) => json(StatusCode::OK, &ClaimAnswer::from(&claim)),
        Standing::Waiting(waiting) => json(StatusCode::OK, &WaitingAnswer::from(&waiting)),
    })
}

/// `{key}:confirm`, `{key}:renew`, `{key}:resize` and `{key}:release`. A key holds no colon, so the last one begins the verb.
pub(super) async fn verb(State(api): State<Shared>, uri: Uri, path: KeyPath, sent: Body) -> Answer {
    Params::read(&uri, &[])?;
    let Segments((namespace, segment)) = path;
    let (key, verb) = match segment.rsplit_once(':') {
        Some((key, verb @ ("confirm" | "renew" | "release" | "resize"))) => (key, verb),
        _ => return Err(Failure::new(Outcome::ROUTE, "no such verb; known: :confirm, :renew, :resize, :release")),
    };
    let bytes = body(&api, sent).await?;
    let claim = match verb {
        "confirm" => {
            let (id, fence) = object::<HolderBody<'_>>(&bytes)?.holder(&namespace, key)?;
            api.scheduler.confirm(&id, fence).await?
        }
        "renew" => {
            let body: RenewBody<'_> = object(&bytes)?;
            let (id, fence) = holder(&namespace, body.tenant.as_ref(), key, body.fence)?;
            api.scheduler.renew(&id, fence, body.ttl_ms).await?
        }
        "resize" => {
            let body: ResizeBody<'_> = object(&bytes)?;
            let (id, fence) = holder(&namespace, body.tenant.as_ref(), key, body.fence)?;
            api.scheduler.resize(&id, fence, body.resources).await?
        }
        _ => {
            let body: ReleaseBody<'_> = object(&bytes)?;
            let (id, fence) = holder(&namespace, body.tenant.as_ref(), key, body.fence)?;
            let released = match body.phase {
                Some(Phase::Begin) => api.scheduler.begin_release_held(&id, Some(fence)).await?,
                Some(Phase::Finish) | None => api.scheduler.release_held(&id, Some(fence)).await?,
            };
            return Ok(json(StatusCode::OK, &ReleaseAnswer { released }));
        }
    };
    Ok(json(StatusCode::OK, &ClaimAnswer::from(&claim)))
}

/// States with commas between them; none: any.
fn states(words: Option<String>) -> Result<Vec<ClaimState>, Failure> {
    let Some(words) = words else { return Ok(Vec::new()) };
    let state = |word: &str| {
        let found = ClaimState::HELD.into_iter().find(|state| state.word() == word);
        found.ok_or_else(|| {
            let known = ClaimState::HELD.map(ClaimState::word).join(", ");
            Failure::invalid("state", format!("must be of {known}, with commas between them, got {:?}", short(word)))
        })
    };
    words.split(',').map(state).collect()
}

/// Page by page.
pub(super) async fn list(State(api): State<Shared>, uri: Uri) -> Answer {
    let known = ["namespace", "pool", "worker", "tenant", "state", "older_than_ms", "page_token", "limit"];
    let mut params = Params::read(&uri, &known)?;
    let (token, limit) = (params.take("page_token"), params.limit()?);
    let (states, older_than_ms) = (states(params.take("state"))?, params.number("older_than_ms", limits::AMOUNT_MAX)?);
    let mut take = |name| params.take(name);
    let (namespace, pool, worker, tenant) = (take("namespace"), take("pool"), take("worker"), take("tenant"));
    let filter = ClaimFilter { namespace, pool, worker, tenant, states, older_than_ms }.checked()?;
    let page = api.scheduler.list_claims(&filter, token.as_deref(), limit).await?;
    Ok(json(StatusCode::OK, &PageJson::<ClaimJson<'_>>::from(&page)))
}
