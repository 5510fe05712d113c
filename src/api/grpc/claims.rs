//! Claims.

use std::sync::Arc;

use tonic::{Request, Response, Streaming, async_trait};

use super::body::before_waiting;
use super::proto::batch_take_claims_response::Item;
use super::proto::batch_take_claims_response::item::Outcome;
use super::proto::claim_service_server::ClaimService;
use super::proto::get_claim_response::Standing as Shown;
use super::proto::{
    BatchTakeClaimsRequest, BatchTakeClaimsResponse, ClaimStreamRequest, ConfirmClaimRequest, ConfirmClaimResponse,
    ExplainClaimRequest, ExplainClaimResponse, GetClaimRequest, GetClaimResponse, ListClaimsRequest,
    ListClaimsResponse, ReleaseClaimRequest, ReleaseClaimResponse, RenewClaimRequest, RenewClaimResponse,
    ResizeClaimRequest, ResizeClaimResponse, TakeClaimRequest, TakeClaimResponse,
};
use super::{Answer, Calls, read, stream};
use crate::api::error_table::Failure;
use crate::api::http::json::Phase;
use crate::api::http::read::{merge, merge_all};
use crate::api::{deadline, stopped};
use crate::limits;
use crate::model::{Standing, Taken};

#[async_trait]
impl ClaimService for Calls {
    type ClaimStreamStream = stream::Answers;

    async fn claim_stream(&self, request: Request<Streaming<ClaimStreamRequest>>) -> Answer<stream::Answers> {
        let place = Arc::clone(&self.streams).try_acquire_owned();
        let place = place.map_err(|_| {
            Failure::overloaded(format!(
                "{} claim streams are open, which is as many as may be: close one, or make calls of one request each",
                limits::STREAMS_MAX
            ))
        })?;
        let limit = self.bounds.timeout;
        let flight = self.scheduler.flight(u64::try_from(limit.as_millis()).unwrap_or(u64::MAX));
        let answers = stream::Answers::new(request.into_inner(), flight, limit, stopped(&self.stopping), place);
        Ok(Response::new(answers))
    }

    async fn take_claim(&self, request: Request<TakeClaimRequest>) -> Answer<TakeClaimResponse> {
        let request = before_waiting(request, |claim| read::claim(&claim).and_then(deadline::allow))?;
        let taken = self.scheduler.claim(request).await.map_err(Failure::from)?;
        Ok(Response::new((&taken).into()))
    }

    async fn batch_take_claims(&self, request: Request<BatchTakeClaimsRequest>) -> Answer<BatchTakeClaimsResponse> {
        self.answers.check()?;
        let (whole, requests) = before_waiting(request, |BatchTakeClaimsRequest { mode, items }| {
            let whole = read::batch(mode, items.len())?;
            let requests: Vec<_> = items.iter().map(|item| read::claim(item).and_then(deadline::allow)).collect();
            Ok::<_, Failure>((whole, requests.into_iter()))
        })?;
        let outcomes = if whole {
            merge_all("items", requests, async |requests| Ok(self.scheduler.claim_gang(requests).await)).await?
        } else {
            merge("items", requests, async |requests| Ok(self.scheduler.claim_batch(requests).await)).await?
        };
        let item = |outcome: &Result<Taken, Failure>| match outcome {
            Ok(taken) => Outcome::Taken(taken.into()),
            Err(failure) => Outcome::Error(failure.into()),
        };
        let items = outcomes.iter().map(|outcome| Item { outcome: Some(item(outcome)) }).collect();
        Ok(Response::new(BatchTakeClaimsResponse { items }))
    }

    async fn explain_claim(&self, request: Request<ExplainClaimRequest>) -> Answer<ExplainClaimResponse> {
        let claim = request.get_ref().claim.as_ref().ok_or(Failure::invalid("claim", "is required"))?;
        let explanation = self.scheduler.explain(read::claim(claim)?).await.map_err(Failure::from)?;
        Ok(Response::new((&explanation).into()))
    }

    async fn get_claim(&self, request: Request<GetClaimRequest>) -> Answer<GetClaimResponse> {
        let GetClaimRequest { namespace, key, tenant } = request.get_ref();
        let id = read::claim_id(namespace, tenant.as_deref(), key)?;
        let standing = match self.scheduler.standing(&id).await.map_err(Failure::from)? {
            Standing::Held(claim) => Shown::Claim((&claim).into()),
            Standing::Waiting(waiting) => Shown::Waiting((&waiting).into()),
        };
        Ok(Response::new(GetClaimResponse { standing: Some(standing) }))
    }

    async fn list_claims(&self, request: Request<ListClaimsRequest>) -> Answer<ListClaimsResponse> {
        let mut request = request.into_inner();
        let (token, limit) = (request.page_token.take(), read::limit(request.limit)?);
        let filter = read::filter(request)?;
        let page = self.scheduler.list_claims(&filter, token.as_deref(), limit).await.map_err(Failure::from)?;
        let claims = page.items.iter().map(Into::into).collect();
        Ok(Response::new(ListClaimsResponse { claims, next_page_token: page.next }))
    }

    async fn confirm_claim(&self, request: Request<ConfirmClaimRequest>) -> Answer<ConfirmClaimResponse> {
        let ConfirmClaimRequest { namespace, key, tenant, fence } = request.get_ref();
        let (id, fence) = read::holder(namespace, tenant.as_deref(), key, *fence)?;
        let claim = self.scheduler.confirm(&id, fence).await.map_err(Failure::from)?;
        Ok(Response::new(ConfirmClaimResponse { claim: Some((&claim).into()) }))
    }

    async fn renew_claim(&self, request: Request<RenewClaimRequest>) -> Answer<RenewClaimResponse> {
        let RenewClaimRequest { namespace, key, tenant, fence, ttl_ms } = request.get_ref();
        let (id, fence) = read::holder(namespace, tenant.as_deref(), key, *fence)?;
        let claim = self.scheduler.renew(&id, fence, *ttl_ms).await.map_err(Failure::from)?;
        Ok(Response::new(RenewClaimResponse { claim: Some((&claim).into()) }))
    }

    async fn resize_claim(&self, request: Request<ResizeClaimRequest>) -> Answer<ResizeClaimResponse> {
        let ResizeClaimRequest { namespace, key, tenant, fence, resources } = request.into_inner();
        let (id, fence) = read::holder(&namespace, tenant.as_deref(), &key, fence)?;
        let resources = resources.ok_or(Failure::invalid("resources", "is required"))?;
        let claim = self.scheduler.resize(&id, fence, read::resources(resources)?).await.map_err(Failure::from)?;
        Ok(Response::new(ResizeClaimResponse { claim: Some((&claim).into()) }))
    }

    async fn release_claim(&self, request: Request<ReleaseClaimRequest>) -> Answer<ReleaseClaimResponse> {
        let ReleaseClaimRequest { namespace, key, tenant, fence, phase } = request.get_ref();
        let phase = read::phase(*phase)?;
        let (id, fence) = read::holder(namespace, tenant.as_deref(), key, *fence)?;
        let released = match phase {
            Some(Phase::Begin) => self.scheduler.begin_release_held(&id, Some(fence)).await,
            Some(Phase::Finish) | None => self.scheduler.release_held(&id, Some(fence)).await,
        };
        let released = released.map_err(Failure::from)?;
        Ok(Response::new(ReleaseClaimResponse { released }))
    }
}
