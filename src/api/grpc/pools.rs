//! Pools.

use futures::stream::{BoxStream, StreamExt as _};
use tonic::{Request, Response, Status, async_trait};

use super::proto::pool_service_server::PoolService;
use super::proto::{
    ClearPoolRequest, ClearPoolResponse, DeletePoolRequest, DeletePoolResponse, GetDemandRequest, GetDemandResponse,
    GetPoolRequest, GetPoolResponse, ListPoolsRequest, ListPoolsResponse, PoolEvent, PutPoolRequest, PutPoolResponse,
    UpdatePoolRequest, UpdatePoolResponse, WatchPoolRequest,
};
use super::write::whole_pool;
use super::{Answer, Calls, read};
use crate::api::error_table::Failure;
use crate::api::http::json::PoolPatch;
use crate::api::{stopped, watch};
use crate::limits;
use crate::model::{Cleared, PoolName, PoolSpec};
use crate::scheduler::caller::Caller;

#[async_trait]
impl PoolService for Calls {
    async fn put_pool(&self, request: Request<PutPoolRequest>) -> Answer<PutPoolResponse> {
        self.answers.check()?;
        let PutPoolRequest { namespace, pool, spec } = request.into_inner();
        let name = PoolName::new(&namespace, &pool).map_err(Failure::from)?;
        let spec = read::pool_spec(spec.unwrap_or_default()).map_err(|failure| failure.inside("spec"))?;
        let put = self.scheduler.put_pool(name, spec).await;
        let (created, status) = put.map_err(|refusal| refusal.within("spec")).map_err(Failure::from)?;
        Ok(Response::new(PutPoolResponse { pool: Some(whole_pool(&status)), created }))
    }

    async fn update_pool(&self, request: Request<UpdatePoolRequest>) -> Answer<UpdatePoolResponse> {
        self.answers.check()?;
        let UpdatePoolRequest { namespace, pool, spec, update_mask, version } = request.into_inner();
        let name = PoolName::new(&namespace, &pool).map_err(Failure::from)?;
        let spec = read::pool_spec(spec.unwrap_or_default()).map_err(|failure| failure.inside("spec"))?;
        let names = update_mask.map(|mask| mask.paths).filter(|names| !names.is_empty());
        let names = names.ok_or_else(|| Failure::invalid("update_mask", "is required"))?;
        let patch = PoolPatch::of(&spec, names, "update_mask")?;
        if version.is_some_and(|version| version > limits::FENCE_MAX) {
            return Err(Failure::invalid("version", format!("must be 0..={}", limits::FENCE_MAX)).into());
        }
        let change = move |spec: &PoolSpec| {
            let changed = patch.replace(spec)?;
            changed.check().map(|()| changed).map_err(|refusal| refusal.within("spec"))
        };
        let status = self.scheduler.update_pool(name, version, change).await.map_err(Failure::from)?;
        Ok(Response::new(UpdatePoolResponse { pool: Some(whole_pool(&status)) }))
    }

    async fn get_pool(&self, request: Request<GetPoolRequest>) -> Answer<GetPoolResponse> {
        let GetPoolRequest { namespace, pool } = request.get_ref();
        let name = PoolName::new(namespace, pool).map_err(Failure::from)?;
        let status = self.scheduler.get_pool(&name).await.map_err(Failure::from)?;
        Ok(Response::new(GetPoolResponse { pool: Some(whole_pool(&status)) }))
    }

    async fn list_pools(&self, request: Request<ListPoolsRequest>) -> Answer<ListPoolsResponse> {
        let ListPoolsRequest { page_token, limit } = request.get_ref();
        let limit = read::limit(*limit)?;
        let page = self.scheduler.list_pools(page_token.as_deref(), limit).await.map_err(Failure::from)?;
        let pools = page.items.iter().map(Into::into).collect();
        Ok(Response::new(ListPoolsResponse { pools, next_page_token: page.next }))
    }

    async fn delete_pool(&self, request: Request<DeletePoolRequest>) -> Answer<DeletePoolResponse> {
        let DeletePoolRequest { namespace, pool, force } = request.get_ref();
        let name = PoolName::new(namespace, pool).map_err(Failure::from)?;
        self.scheduler.delete_pool(&name, *force).await.map_err(Failure::from)?;
        Ok(Response::new(DeletePoolResponse {}))
    }

    async fn clear_pool(&self, request: Request<ClearPoolRequest>) -> Answer<ClearPoolResponse> {
        let ClearPoolRequest { namespace, pool } = request.get_ref();
        let name = PoolName::new(namespace, pool).map_err(Failure::from)?;
        let Cleared { cleared, suspect } = self.scheduler.clear_pool(&name).await.map_err(Failure::from)?;
        Ok(Response::new(ClearPoolResponse { cleared, suspect }))
    }

    type WatchPoolStream = BoxStream<'static, Result<PoolEvent, Status>>;

    async fn watch_pool(&self, request: Request<WatchPoolRequest>) -> Answer<Self::WatchPoolStream> {
        let WatchPoolRequest { namespace, pool, from } = request.get_ref();
        let name = PoolName::new(namespace, pool).map_err(Failure::from)?;
        let from = from.as_deref().map(str::parse).transpose().map_err(Failure::from)?;
        let watcher = self.scheduler.watch_pool(&name, from).map_err(Failure::from)?;
        let told = watch::told(watcher, stopped(&self.stopping));
        // The end comes after the call was answered, when the task does not know the caller any more.
        let caller = Caller::current();
        let end = move |why| Caller::lend_kept(caller.as_ref(), || Failure::from(why).status());
        let events = told.map(move |told| told.map(PoolEvent::from).map_err(&end));
        Ok(Response::new(events.boxed()))
    }

    async fn get_demand(&self, request: Request<GetDemandRequest>) -> Answer<GetDemandResponse> {
        let GetDemandRequest { namespace, pool } = request.get_ref();
        let name = PoolName::new(namespace, pool).map_err(Failure::from)?;
        let demand = self.scheduler.demand(&name).await.map_err(Failure::from)?;
        Ok(Response::new((&demand).into()))
    }
}
