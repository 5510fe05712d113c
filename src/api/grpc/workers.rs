//! Workers.

use tonic::{Request, Response, Status, async_trait};

use super::proto::batch_register_workers_response::Item;
use super::proto::batch_register_workers_response::item::Outcome;
use super::proto::worker_service_server::WorkerService;
use super::proto::{
    BatchRegisterWorkersRequest, BatchRegisterWorkersResponse, ClearWorkerRequest, ClearWorkerResponse,
    CordonWorkerRequest, CordonWorkerResponse, DeleteWorkerRequest, DeleteWorkerResponse, DrainWorkerRequest,
    DrainWorkerResponse, GetWorkerRequest, GetWorkerResponse, HeartbeatWorkerRequest, HeartbeatWorkerResponse,
    ListWorkersRequest, ListWorkersResponse, RegisterWorkerRequest, RegisterWorkerResponse, UncordonWorkerRequest,
    UncordonWorkerResponse,
};
use super::{Answer, Calls, read};
use crate::api::http::read::merge;
use crate::api::outcome::Failure;
use crate::model::{PoolName, Registered};

#[async_trait]
impl WorkerService for Calls {
    async fn register_worker(&self, request: Request<RegisterWorkerRequest>) -> Answer<RegisterWorkerResponse> {
        let RegisterWorkerRequest { namespace, pool, worker } = request.into_inner();
        let pool = PoolName::new(&namespace, &pool).map_err(Failure::from)?;
        let worker = worker.ok_or_else(|| Failure::invalid("worker", "is required"))?;
        let spec = read::worker(worker).map_err(|failure| failure.inside("worker"))?;
        let registered = self.scheduler.register(&pool, spec).await;
        let registered = registered.map_err(|refusal| Failure::from(refusal).inside("worker"))?;
        Ok(Response::new((&registered).into()))
    }

    async fn batch_register_workers(
        &self,
        request: Request<BatchRegisterWorkersRequest>,
    ) -> Answer<BatchRegisterWorkersResponse> {
        let BatchRegisterWorkersRequest { namespace, pool, workers } = request.into_inner();
        let pool = PoolName::new(&namespace, &pool).map_err(Failure::from)?;
        read::batch_size("workers", workers.len())?;
        let specs = workers.into_iter().map(read::worker);
        let outcomes = merge("workers", specs, async |specs| self.scheduler.register_batch(&pool, specs).await).await?;
        let item = |outcome: &Result<Registered, Failure>| match outcome {
            Ok(registered) => Outcome::Registered(registered.into()),
            Err(failure) => Outcome::Error(failure.into()),
        };
        let items = outcomes.iter().map(|outcome| Item { outcome: Some(item(outcome)) }).collect();
        Ok(Response::new(BatchRegisterWorkersResponse { items }))
    }

    async fn get_worker(&self, request: Request<GetWorkerRequest>) -> Answer<GetWorkerResponse> {
        let GetWorkerRequest { namespace, pool, id } = request.get_ref();
        let (pool, id) = read::worker_id(namespace, pool, id)?;
        let worker = self.scheduler.get_worker(&pool, &id).await.map_err(Failure::from)?;
        Ok(Response::new(GetWorkerResponse { worker: Some((&worker).into()) }))
    }

    async fn list_workers(&self, request: Request<ListWorkersRequest>) -> Answer<ListWorkersResponse> {
        let ListWorkersRequest { namespace, pool, page_token, limit } = request.get_ref();
        let limit = read::limit(*limit)?;
        let pool = PoolName::new(namespace, pool).map_err(Failure::from)?;
        let page = self.scheduler.list_workers(&pool, page_token.as_deref(), limit).await.map_err(Failure::from)?;
        let workers = page.items.iter().map(Into::into).collect();
        Ok(Response::new(ListWorkersResponse { workers, next_page_token: page.next }))
    }

    async fn delete_worker(&self, request: Request<DeleteWorkerRequest>) -> Answer<DeleteWorkerResponse> {
        let DeleteWorkerRequest { namespace, pool, id } = request.get_ref();
        let (pool, id) = read::worker_id(namespace, pool, id)?;
        self.scheduler.delete_worker(&pool, &id).await.map_err(Failure::from)?;
        Ok(Response::new(DeleteWorkerResponse {}))
    }

    async fn heartbeat_worker(&self, _: Request<HeartbeatWorkerRequest>) -> Answer<HeartbeatWorkerResponse> {
        Err(Status::unimplemented("HeartbeatWorker is not built in this version"))
    }

    async fn cordon_worker(&self, _: Request<CordonWorkerRequest>) -> Answer<CordonWorkerResponse> {
        Err(Status::unimplemented("CordonWorker is not built in this version"))
    }

    async fn uncordon_worker(&self, _: Request<UncordonWorkerRequest>) -> Answer<UncordonWorkerResponse> {
        Err(Status::unimplemented("UncordonWorker is not built in this version"))
    }

    async fn drain_worker(&self, _: Request<DrainWorkerRequest>) -> Answer<DrainWorkerResponse> {
        Err(Status::unimplemented("DrainWorker is not built in this version"))
    }

    async fn clear_worker(&self, _: Request<ClearWorkerRequest>) -> Answer<ClearWorkerResponse> {
        Err(Status::unimplemented("ClearWorker is not built in this version"))
    }
}
