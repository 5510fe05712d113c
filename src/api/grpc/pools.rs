//! Methods of `PoolService`: pools, their demand and their events.

use futures::stream::{BoxStream, StreamExt as _};
use tonic::{Request, Response, Status, async_trait};

use super::proto::pool_service_server::PoolService;
use super::proto::{
    ClearPoolRequest, ClearPoolResponse, DeletePoolRequest, DeletePoolResponse, GetDemandRequest, GetDemandResponse,
    GetPoolRequest, GetPoolResponse, ListPoolsRequest, ListPoolsResponse, PoolEvent, PutPoolRequest, PutPoolResponse,
    UpdatePoolRequest, UpdatePoolResponse, WatchPoolRequest,
};
use super::to_proto::pool_with_shards;
use super::{GrpcHandlers, RpcResult, from_proto};
use crate::api::error_table::ApiError;
use crate::api::request::PoolPatch;
use crate::api::{event_stream, wait_for_stop};
use crate::limits;
use crate::model::{ClearResult, PoolName, PoolSpec};
use crate::scheduler::DeleteMode;
use crate::scheduler::caller::CallerContext;

#[async_trait]
impl PoolService for GrpcHandlers {
    async fn put_pool(&self, request: Request<PutPoolRequest>) -> RpcResult<PutPoolResponse> {
        self.responses.check_available()?;
        let PutPoolRequest { namespace, pool, spec } = request.into_inner();
        let name = PoolName::new(&namespace, &pool).map_err(ApiError::from)?;
        let spec = from_proto::pool_spec(spec.unwrap_or_default()).map_err(|failure| failure.nested_in("spec"))?;
        let put = self.scheduler.put_pool(name, spec).await;
        let (created, status) = put.map_err(|error| error.with_field_prefix("spec")).map_err(ApiError::from)?;
        Ok(Response::new(PutPoolResponse { pool: Some(pool_with_shards(&status)), created }))
    }

    async fn update_pool(&self, request: Request<UpdatePoolRequest>) -> RpcResult<UpdatePoolResponse> {
        self.responses.check_available()?;
        let UpdatePoolRequest { namespace, pool, spec, update_mask, version } = request.into_inner();
        let name = PoolName::new(&namespace, &pool).map_err(ApiError::from)?;
        let spec = from_proto::pool_spec(spec.unwrap_or_default()).map_err(|failure| failure.nested_in("spec"))?;
        let names = update_mask.map(|mask| mask.paths).filter(|names| !names.is_empty());
        let names = names.ok_or_else(|| ApiError::invalid("update_mask", "is required"))?;
        let patch = PoolPatch::from_fields(&spec, names, "update_mask")?;
        if version.is_some_and(|version| version > limits::FENCE_MAX) {
            return Err(ApiError::invalid("version", format!("must be 0 to {}", limits::FENCE_MAX)).into());
        }
        let change = move |spec: &PoolSpec| {
            let changed = patch.apply_replace(spec)?;
            changed.check().map(|()| changed).map_err(|error| error.with_field_prefix("spec"))
        };
        let status = self.scheduler.update_pool(name, version, change).await.map_err(ApiError::from)?;
        Ok(Response::new(UpdatePoolResponse { pool: Some(pool_with_shards(&status)) }))
    }

    async fn get_pool(&self, request: Request<GetPoolRequest>) -> RpcResult<GetPoolResponse> {
        let GetPoolRequest { namespace, pool } = request.get_ref();
        let name = PoolName::new(namespace, pool).map_err(ApiError::from)?;
        let status = self.scheduler.get_pool(&name).await.map_err(ApiError::from)?;
        Ok(Response::new(GetPoolResponse { pool: Some(pool_with_shards(&status)) }))
    }

    async fn list_pools(&self, request: Request<ListPoolsRequest>) -> RpcResult<ListPoolsResponse> {
        let ListPoolsRequest { page_token, limit } = request.get_ref();
        let limit = from_proto::limit(*limit)?;
        let page = self.scheduler.list_pools(page_token.as_deref(), limit).await.map_err(ApiError::from)?;
        let pools = page.items.iter().map(Into::into).collect();
        Ok(Response::new(ListPoolsResponse { pools, next_page_token: page.next }))
    }

    async fn delete_pool(&self, request: Request<DeletePoolRequest>) -> RpcResult<DeletePoolResponse> {
        let DeletePoolRequest { namespace, pool, force } = request.get_ref();
        let name = PoolName::new(namespace, pool).map_err(ApiError::from)?;
        let mode = if *force { DeleteMode::Force } else { DeleteMode::RequireEmpty };
        self.scheduler.delete_pool(&name, mode).await.map_err(ApiError::from)?;
        Ok(Response::new(DeletePoolResponse {}))
    }

    async fn clear_pool(&self, request: Request<ClearPoolRequest>) -> RpcResult<ClearPoolResponse> {
        let ClearPoolRequest { namespace, pool } = request.get_ref();
        let name = PoolName::new(namespace, pool).map_err(ApiError::from)?;
        let ClearResult { cleared, suspect } = self.scheduler.clear_pool(&name).await.map_err(ApiError::from)?;
        Ok(Response::new(ClearPoolResponse { cleared, suspect }))
    }

    type WatchPoolStream = BoxStream<'static, Result<PoolEvent, Status>>;

    async fn watch_pool(&self, request: Request<WatchPoolRequest>) -> RpcResult<Self::WatchPoolStream> {
        let WatchPoolRequest { namespace, pool, from } = request.get_ref();
        let name = PoolName::new(namespace, pool).map_err(ApiError::from)?;
        let from = from.as_deref().map(str::parse).transpose().map_err(ApiError::from)?;
        let watcher = self.scheduler.watch_pool(&name, from).map_err(ApiError::from)?;
        let events = event_stream::event_stream(watcher, wait_for_stop(&self.stopping));
        // The stream ends after the call was answered, when the task no longer knows the caller.
        let caller = CallerContext::current();
        let end_status =
            move |end| CallerContext::sync_scope_or_plain(caller.as_ref(), || ApiError::from(end).to_status());
        let events = events.map(move |event| event.map(PoolEvent::from).map_err(&end_status));
        Ok(Response::new(events.boxed()))
    }

    async fn get_demand(&self, request: Request<GetDemandRequest>) -> RpcResult<GetDemandResponse> {
        let GetDemandRequest { namespace, pool } = request.get_ref();
        let name = PoolName::new(namespace, pool).map_err(ApiError::from)?;
        let demand = self.scheduler.demand(&name).await.map_err(ApiError::from)?;
        Ok(Response::new((&demand).into()))
    }
}
