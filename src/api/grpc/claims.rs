//! Methods of `ClaimService`: claims, batches and the claim stream.

use std::sync::Arc;

use tonic::{Request, Response, Streaming, async_trait};

use super::proto::batch_take_claims_response::Item;
use super::proto::batch_take_claims_response::item::Outcome;
use super::proto::claim_service_server::ClaimService;
use super::proto::get_claim_response::Standing as ClaimStanding;
use super::proto::{
    BatchTakeClaimsRequest, BatchTakeClaimsResponse, ClaimStreamRequest, ConfirmClaimRequest, ConfirmClaimResponse,
    ExplainClaimRequest, ExplainClaimResponse, GetClaimRequest, GetClaimResponse, ListClaimsRequest,
    ListClaimsResponse, ReleaseClaimRequest, ReleaseClaimResponse, RenewClaimRequest, RenewClaimResponse,
    ResizeClaimRequest, ResizeClaimResponse, TakeClaimRequest, TakeClaimResponse,
};
use super::unary_body::release_before_waiting;
use super::{GrpcHandlers, RpcResult, from_proto, stream};
use crate::api::batch::{submit_all_or_none, submit_valid};
use crate::api::error_table::ApiError;
use crate::api::request::{BatchMode, ReleasePhase};
use crate::api::{deadline, wait_for_stop};
use crate::limits;
use crate::model::{ClaimResult, ClaimStatus};

#[async_trait]
impl ClaimService for GrpcHandlers {
    type ClaimStreamStream = stream::ClaimStreamResponses;

    async fn claim_stream(
        &self,
        request: Request<Streaming<ClaimStreamRequest>>,
    ) -> RpcResult<stream::ClaimStreamResponses> {
        let permit = Arc::clone(&self.streams).try_acquire_owned();
        let permit = permit.map_err(|_| {
            ApiError::overloaded(format!(
                "{} claim streams are open, which is the limit: close one, or use unary calls",
                limits::STREAMS_MAX
            ))
        })?;
        let limit = self.bounds.timeout;
        let requests = self.scheduler.request_stream(u64::try_from(limit.as_millis()).unwrap_or(u64::MAX));
        let responses = stream::ClaimStreamResponses::new(
            request.into_inner(),
            requests,
            limit,
            wait_for_stop(&self.stopping),
            permit,
        );
        Ok(Response::new(responses))
    }

    async fn take_claim(&self, request: Request<TakeClaimRequest>) -> RpcResult<TakeClaimResponse> {
        let request =
            release_before_waiting(request, |claim| from_proto::claim(&claim).and_then(deadline::extend_for_wait))?;
        let result = self.scheduler.claim(request).await.map_err(ApiError::from)?;
        Ok(Response::new((&result).into()))
    }

    async fn batch_take_claims(&self, request: Request<BatchTakeClaimsRequest>) -> RpcResult<BatchTakeClaimsResponse> {
        self.responses.check_available()?;
        let (mode, requests) = release_before_waiting(request, |BatchTakeClaimsRequest { mode, items }| {
            let mode = from_proto::batch_mode(mode, items.len())?;
            let requests: Vec<_> =
                items.iter().map(|item| from_proto::claim(item).and_then(deadline::extend_for_wait)).collect();
            Ok::<_, ApiError>((mode, requests.into_iter()))
        })?;
        let outcomes = match mode {
            BatchMode::AllOrNothing => {
                submit_all_or_none("items", requests, async |requests| Ok(self.scheduler.claim_gang(requests).await))
                    .await?
            }
            BatchMode::Independent => {
                submit_valid("items", requests, async |requests| Ok(self.scheduler.claim_batch(requests).await)).await?
            }
        };
        let item = |outcome: &Result<ClaimResult, ApiError>| match outcome {
            Ok(result) => Outcome::Taken(result.into()),
            Err(failure) => Outcome::Error(failure.into()),
        };
        let items = outcomes.iter().map(|outcome| Item { outcome: Some(item(outcome)) }).collect();
        Ok(Response::new(BatchTakeClaimsResponse { items }))
    }

    async fn explain_claim(&self, request: Request<ExplainClaimRequest>) -> RpcResult<ExplainClaimResponse> {
        let claim = request.get_ref().claim.as_ref().ok_or(ApiError::invalid("claim", "is required"))?;
        let explanation = self.scheduler.explain(from_proto::claim(claim)?).await.map_err(ApiError::from)?;
        Ok(Response::new((&explanation).into()))
    }

    async fn get_claim(&self, request: Request<GetClaimRequest>) -> RpcResult<GetClaimResponse> {
        let GetClaimRequest { namespace, key, tenant } = request.get_ref();
        let id = from_proto::claim_id(namespace, tenant.as_deref(), key)?;
        let standing = match self.scheduler.claim_status(&id).await.map_err(ApiError::from)? {
            ClaimStatus::Held(claim) => ClaimStanding::Claim((&claim).into()),
            ClaimStatus::Queued(queued) => ClaimStanding::Waiting((&queued).into()),
        };
        Ok(Response::new(GetClaimResponse { standing: Some(standing) }))
    }

    async fn list_claims(&self, request: Request<ListClaimsRequest>) -> RpcResult<ListClaimsResponse> {
        let mut request = request.into_inner();
        let (token, limit) = (request.page_token.take(), from_proto::limit(request.limit)?);
        let filter = from_proto::filter(request)?;
        let page = self.scheduler.list_claims(&filter, token.as_deref(), limit).await.map_err(ApiError::from)?;
        Ok(Response::new(page.into()))
    }

    async fn confirm_claim(&self, request: Request<ConfirmClaimRequest>) -> RpcResult<ConfirmClaimResponse> {
        let ConfirmClaimRequest { namespace, key, tenant, fence } = request.get_ref();
        let (id, fence) = from_proto::claim_and_fence(namespace, tenant.as_deref(), key, *fence)?;
        let claim = self.scheduler.confirm(&id, fence).await.map_err(ApiError::from)?;
        Ok(Response::new(ConfirmClaimResponse { claim: Some((&claim).into()) }))
    }

    async fn renew_claim(&self, request: Request<RenewClaimRequest>) -> RpcResult<RenewClaimResponse> {
        let RenewClaimRequest { namespace, key, tenant, fence, ttl_ms } = request.get_ref();
        let (id, fence) = from_proto::claim_and_fence(namespace, tenant.as_deref(), key, *fence)?;
        let claim = self.scheduler.renew(&id, fence, *ttl_ms).await.map_err(ApiError::from)?;
        Ok(Response::new(RenewClaimResponse { claim: Some((&claim).into()) }))
    }

    async fn resize_claim(&self, request: Request<ResizeClaimRequest>) -> RpcResult<ResizeClaimResponse> {
        let ResizeClaimRequest { namespace, key, tenant, fence, resources } = request.into_inner();
        let (id, fence) = from_proto::claim_and_fence(&namespace, tenant.as_deref(), &key, fence)?;
        let resources = resources.ok_or(ApiError::invalid("resources", "is required"))?;
        let claim =
            self.scheduler.resize(&id, fence, from_proto::resources(resources)?).await.map_err(ApiError::from)?;
        Ok(Response::new(ResizeClaimResponse { claim: Some((&claim).into()) }))
    }

    async fn release_claim(&self, request: Request<ReleaseClaimRequest>) -> RpcResult<ReleaseClaimResponse> {
        let ReleaseClaimRequest { namespace, key, tenant, fence, phase } = request.get_ref();
        let phase = from_proto::phase(*phase)?;
        let (id, fence) = from_proto::claim_and_fence(namespace, tenant.as_deref(), key, *fence)?;
        let released = match phase {
            Some(ReleasePhase::Begin) => self.scheduler.begin_release_held(&id, Some(fence)).await,
            Some(ReleasePhase::Finish) | None => self.scheduler.release_held(&id, Some(fence)).await,
        };
        let released = released.map_err(ApiError::from)?;
        Ok(Response::new(ReleaseClaimResponse { released }))
    }
}
