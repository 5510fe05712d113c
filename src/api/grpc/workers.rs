//! Workers.

use tonic::{Request, Response, async_trait};

use super::proto::batch_heartbeat_workers_response as heartbeats;
use super::proto::batch_register_workers_response as registrations;
use super::proto::worker_service_server::WorkerService;
use super::proto::{
    BatchHeartbeatWorkersRequest, BatchHeartbeatWorkersResponse, BatchRegisterWorkersRequest,
    BatchRegisterWorkersResponse, ClearWorkerRequest, ClearWorkerResponse, CordonWorkerRequest, CordonWorkerResponse,
    DeleteWorkerRequest, DeleteWorkerResponse, DrainWorkerRequest, DrainWorkerResponse, GetWorkerRequest,
    GetWorkerResponse, HeartbeatWorkerRequest, HeartbeatWorkerResponse, ListWorkersRequest, ListWorkersResponse,
    RegisterWorkerRequest, RegisterWorkerResponse, UncordonWorkerRequest, UncordonWorkerResponse, Worker,
};
use super::{Answer, Calls, read};
use crate::api::error_table::Failure;
use crate::api::http::read::merge;
use crate::model::{Heard, PoolName, Registered, WorkerVerb};

#[async_trait]
impl WorkerService for Calls {
    async fn register_worker(&self, request: Request<RegisterWorkerRequest>) -> Answer<RegisterWorkerResponse> {
        let RegisterWorkerRequest { namespace, pool, worker } = request.into_inner();
        let pool = PoolName::new(&namespace, &pool).map_err(Failure::from)?;
        let worker = worker.ok_or_else(|| Failure::invalid("worker", "is required"))?;
        let spec = read::worker(&namespace, worker).map_err(|failure| failure.inside("worker"))?;
        let registered = self.scheduler.register(&pool, spec).await;
        let registered = registered.map_err(|refusal| Failure::from(refusal).inside("worker"))?;
        Ok(Response::new((&registered).into()))
    }

    async fn batch_register_workers(
        &self,
        request: Request<BatchRegisterWorkersRequest>,
    ) -> Answer<BatchRegisterWorkersResponse> {
        self.answers.check()?;
        let BatchRegisterWorkersRequest { namespace, pool, workers } = request.into_inner();
        let pool = PoolName::new(&namespace, &pool).map_err(Failure::from)?;
        read::batch_size("workers", workers.len())?;
        let specs = workers.into_iter().map(|worker| read::worker(&namespace, worker));
        let outcomes = merge("workers", specs, async |specs| self.scheduler.register_batch(&pool, specs).await).await?;
        let item = |outcome: &Result<Registered, Failure>| match outcome {
            Ok(registered) => registrations::item::Outcome::Registered(registered.into()),
            Err(failure) => registrations::item::Outcome::Error(failure.into()),
        };
        let items = outcomes.iter().map(|outcome| registrations::Item { outcome: Some(item(outcome)) }).collect();
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

    async fn heartbeat_worker(&self, request: Request<HeartbeatWorkerRequest>) -> Answer<HeartbeatWorkerResponse> {
        let request = request.get_ref();
        let (pool, id) = read::worker_id(&request.namespace, &request.pool, &request.id)?;
        let heard = self.scheduler.heartbeat(&pool, &id, read::beat(request)?).await.map_err(Failure::from)?;
        Ok(Response::new((&heard).into()))
    }

    async fn batch_heartbeat_workers(
        &self,
        request: Request<BatchHeartbeatWorkersRequest>,
    ) -> Answer<BatchHeartbeatWorkersResponse> {
        // Never refused for answers that others do not read: workers would be lost.
        let BatchHeartbeatWorkersRequest { namespace, pool, workers } = request.get_ref();
        let pool = PoolName::new(namespace, pool).map_err(Failure::from)?;
        read::batch_size("workers", workers.len())?;
        let beats = workers.iter().map(|beat| read::beat_of(namespace, beat));
        let outcomes =
            merge("workers", beats, async |beats| self.scheduler.heartbeat_batch(&pool, beats).await).await?;
        let item = |outcome: &Result<Heard, Failure>| match outcome {
            Ok(heard) => heartbeats::item::Outcome::Heard(heard.into()),
            Err(failure) => heartbeats::item::Outcome::Error(failure.into()),
        };
        let items = outcomes.iter().map(|outcome| heartbeats::Item { outcome: Some(item(outcome)) }).collect();
        Ok(Response::new(BatchHeartbeatWorkersResponse { items }))
    }

    async fn cordon_worker(&self, request: Request<CordonWorkerRequest>) -> Answer<CordonWorkerResponse> {
        let CordonWorkerRequest { namespace, pool, id } = request.get_ref();
        let worker = self.steer(namespace, pool, id, WorkerVerb::Cordon).await?;
        Ok(Response::new(CordonWorkerResponse { worker: Some(worker) }))
    }

    async fn uncordon_worker(&self, request: Request<UncordonWorkerRequest>) -> Answer<UncordonWorkerResponse> {
        let UncordonWorkerRequest { namespace, pool, id } = request.get_ref();
        let worker = self.steer(namespace, pool, id, WorkerVerb::Uncordon).await?;
        Ok(Response::new(UncordonWorkerResponse { worker: Some(worker) }))
    }

    async fn drain_worker(&self, request: Request<DrainWorkerRequest>) -> Answer<DrainWorkerResponse> {
        let DrainWorkerRequest { namespace, pool, id } = request.get_ref();
        let worker = self.steer(namespace, pool, id, WorkerVerb::Drain).await?;
        Ok(Response::new(DrainWorkerResponse { worker: Some(worker) }))
    }

    async fn clear_worker(&self, request: Request<ClearWorkerRequest>) -> Answer<ClearWorkerResponse> {
        let ClearWorkerRequest { namespace, pool, id } = request.get_ref();
        let worker = self.steer(namespace, pool, id, WorkerVerb::Clear).await?;
        Ok(Response::new(ClearWorkerResponse { worker: Some(worker) }))
    }
}

impl Calls {
    async fn steer(&self, namespace: &str, pool: &str, id: &str, verb: WorkerVerb) -> Result<Worker, Failure> {
        let (pool, id) = read::worker_id(namespace, pool, id)?;
        Ok((&self.scheduler.steer(&pool, &id, verb).await?).into())
    }
}
