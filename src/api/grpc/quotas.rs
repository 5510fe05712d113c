//! Methods of `QuotaService`: quotas of tenants and namespaces.

use tonic::{Request, Response, async_trait};

use super::proto::quota_service_server::QuotaService;
use super::proto::{
    DeleteQuotaRequest, DeleteQuotaResponse, GetQuotaRequest, GetQuotaResponse, ListQuotasRequest, ListQuotasResponse,
    PutQuotaRequest, PutQuotaResponse,
};
use super::{GrpcHandlers, RpcResult, from_proto};
use crate::api::error_table::ApiError;
use crate::model::check_name;

#[async_trait]
impl QuotaService for GrpcHandlers {
    async fn put_quota(&self, request: Request<PutQuotaRequest>) -> RpcResult<PutQuotaResponse> {
        let PutQuotaRequest { namespace, tenant, spec } = request.get_ref();
        let quota = from_proto::quota(spec.unwrap_or_default());
        // Names first: all other errors are within the specification.
        check_name("namespace", namespace).map_err(ApiError::from)?;
        tenant.as_ref().map_or(Ok(()), |tenant| check_name("tenant", tenant)).map_err(ApiError::from)?;
        let put = self.scheduler.put_quota(namespace, tenant.as_deref(), quota).await;
        let (created, status) = put.map_err(|error| error.with_field_prefix("spec")).map_err(ApiError::from)?;
        Ok(Response::new(PutQuotaResponse { quota: Some((&status).into()), created }))
    }

    async fn get_quota(&self, request: Request<GetQuotaRequest>) -> RpcResult<GetQuotaResponse> {
        let GetQuotaRequest { namespace, tenant } = request.get_ref();
        let status = self.scheduler.get_quota(namespace, tenant.as_deref()).map_err(ApiError::from)?;
        Ok(Response::new(GetQuotaResponse { quota: Some((&status).into()) }))
    }

    async fn delete_quota(&self, request: Request<DeleteQuotaRequest>) -> RpcResult<DeleteQuotaResponse> {
        let DeleteQuotaRequest { namespace, tenant } = request.get_ref();
        self.scheduler.delete_quota(namespace, tenant.as_deref()).await.map_err(ApiError::from)?;
        Ok(Response::new(DeleteQuotaResponse {}))
    }

    async fn list_quotas(&self, request: Request<ListQuotasRequest>) -> RpcResult<ListQuotasResponse> {
        let ListQuotasRequest { page_token, limit } = request.get_ref();
        let limit = from_proto::limit(*limit)?;
        let page = self.scheduler.list_quotas(page_token.as_deref(), limit).map_err(ApiError::from)?;
        let quotas = page.items.iter().map(Into::into).collect();
        Ok(Response::new(ListQuotasResponse { quotas, next_page_token: page.next }))
    }
}
