//! Methods of `WorkerService`: worker registration and heartbeats.

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
use super::{GrpcHandlers, RpcResult, from_proto};
use crate::api::batch::submit_valid;
use crate::api::error_table::ApiError;
use crate::model::{HeartbeatResponse, PoolName, RegistrationResponse, WorkerCommand};

#[async_trait]
impl WorkerService for GrpcHandlers {
    async fn register_worker(&self, request: Request<RegisterWorkerRequest>) -> RpcResult<RegisterWorkerResponse> {
        let RegisterWorkerRequest { namespace, pool, worker } = request.into_inner();
        let pool = PoolName::new(&namespace, &pool).map_err(ApiError::from)?;
        let worker = worker.ok_or_else(|| ApiError::invalid("worker", "is required"))?;
        let spec = from_proto::worker(&namespace, worker).map_err(|failure| failure.nested_in("worker"))?;
        let registered = self.scheduler.register(&pool, spec).await;
        let registered = registered.map_err(|error| ApiError::from(error).nested_in("worker"))?;
        Ok(Response::new((&registered).into()))
    }

    async fn batch_register_workers(
        &self,
        request: Request<BatchRegisterWorkersRequest>,
    ) -> RpcResult<BatchRegisterWorkersResponse> {
        self.responses.check_available()?;
        let BatchRegisterWorkersRequest { namespace, pool, workers } = request.into_inner();
        let pool = PoolName::new(&namespace, &pool).map_err(ApiError::from)?;
        from_proto::check_batch_size("workers", workers.len())?;
        let specs = workers.into_iter().map(|worker| from_proto::worker(&namespace, worker));
        let outcomes =
            submit_valid("workers", specs, async |specs| self.scheduler.register_batch(&pool, specs).await).await?;
        let item = |outcome: &Result<RegistrationResponse, ApiError>| match outcome {
            Ok(registered) => registrations::item::Outcome::Registered(registered.into()),
            Err(failure) => registrations::item::Outcome::Error(failure.into()),
        };
        let items = outcomes.iter().map(|outcome| registrations::Item { outcome: Some(item(outcome)) }).collect();
        Ok(Response::new(BatchRegisterWorkersResponse { items }))
    }

    async fn get_worker(&self, request: Request<GetWorkerRequest>) -> RpcResult<GetWorkerResponse> {
        let GetWorkerRequest { namespace, pool, id } = request.get_ref();
        let (pool, id) = from_proto::worker_id(namespace, pool, id)?;
        let worker = self.scheduler.get_worker(&pool, &id).await.map_err(ApiError::from)?;
        Ok(Response::new(GetWorkerResponse { worker: Some((&worker).into()) }))
    }

    async fn list_workers(&self, request: Request<ListWorkersRequest>) -> RpcResult<ListWorkersResponse> {
        let ListWorkersRequest { namespace, pool, page_token, limit } = request.get_ref();
        let limit = from_proto::limit(*limit)?;
        let pool = PoolName::new(namespace, pool).map_err(ApiError::from)?;
        let page = self.scheduler.list_workers(&pool, page_token.as_deref(), limit).await.map_err(ApiError::from)?;
        let workers = page.items.iter().map(Into::into).collect();
        Ok(Response::new(ListWorkersResponse { workers, next_page_token: page.next }))
    }

    async fn delete_worker(&self, request: Request<DeleteWorkerRequest>) -> RpcResult<DeleteWorkerResponse> {
        let DeleteWorkerRequest { namespace, pool, id } = request.get_ref();
        let (pool, id) = from_proto::worker_id(namespace, pool, id)?;
        self.scheduler.delete_worker(&pool, &id).await.map_err(ApiError::from)?;
        Ok(Response::new(DeleteWorkerResponse {}))
    }

    async fn heartbeat_worker(&self, request: Request<HeartbeatWorkerRequest>) -> RpcResult<HeartbeatWorkerResponse> {
        let request = request.get_ref();
        let (pool, id) = from_proto::worker_id(&request.namespace, &request.pool, &request.id)?;
        let response =
            self.scheduler.heartbeat(&pool, &id, from_proto::heartbeat(request)?).await.map_err(ApiError::from)?;
        Ok(Response::new((&response).into()))
    }

    async fn batch_heartbeat_workers(
        &self,
        request: Request<BatchHeartbeatWorkersRequest>,
    ) -> RpcResult<BatchHeartbeatWorkersResponse> {
        // Never rejected because other clients do not read their responses: workers would be lost.
        let BatchHeartbeatWorkersRequest { namespace, pool, workers } = request.get_ref();
        let pool = PoolName::new(namespace, pool).map_err(ApiError::from)?;
        from_proto::check_batch_size("workers", workers.len())?;
        let requests = workers.iter().map(|heartbeat| from_proto::batch_heartbeat(namespace, heartbeat));
        let outcomes =
            submit_valid("workers", requests, async |valid| self.scheduler.heartbeat_batch(&pool, valid).await).await?;
        let item = |outcome: &Result<HeartbeatResponse, ApiError>| match outcome {
            Ok(response) => heartbeats::item::Outcome::Heard(response.into()),
            Err(failure) => heartbeats::item::Outcome::Error(failure.into()),
        };
        let items = outcomes.iter().map(|outcome| heartbeats::Item { outcome: Some(item(outcome)) }).collect();
        Ok(Response::new(BatchHeartbeatWorkersResponse { items }))
    }

    async fn cordon_worker(&self, request: Request<CordonWorkerRequest>) -> RpcResult<CordonWorkerResponse> {
        let CordonWorkerRequest { namespace, pool, id } = request.get_ref();
        let worker = self.run_worker_command(namespace, pool, id, WorkerCommand::Cordon).await?;
        Ok(Response::new(CordonWorkerResponse { worker: Some(worker) }))
    }

    async fn uncordon_worker(&self, request: Request<UncordonWorkerRequest>) -> RpcResult<UncordonWorkerResponse> {
        let UncordonWorkerRequest { namespace, pool, id } = request.get_ref();
        let worker = self.run_worker_command(namespace, pool, id, WorkerCommand::Uncordon).await?;
        Ok(Response::new(UncordonWorkerResponse { worker: Some(worker) }))
    }

    async fn drain_worker(&self, request: Request<DrainWorkerRequest>) -> RpcResult<DrainWorkerResponse> {
        let DrainWorkerRequest { namespace, pool, id } = request.get_ref();
        let worker = self.run_worker_command(namespace, pool, id, WorkerCommand::Drain).await?;
        Ok(Response::new(DrainWorkerResponse { worker: Some(worker) }))
    }

    async fn clear_worker(&self, request: Request<ClearWorkerRequest>) -> RpcResult<ClearWorkerResponse> {
        let ClearWorkerRequest { namespace, pool, id } = request.get_ref();
        let worker = self.run_worker_command(namespace, pool, id, WorkerCommand::Clear).await?;
        Ok(Response::new(ClearWorkerResponse { worker: Some(worker) }))
    }
}

impl GrpcHandlers {
    async fn run_worker_command(
        &self,
        namespace: &str,
        pool: &str,
        id: &str,
        verb: WorkerCommand,
    ) -> Result<Worker, ApiError> {
        let (pool, id) = from_proto::worker_id(namespace, pool, id)?;
        Ok((&self.scheduler.command_worker(&pool, &id, verb).await?).into())
    }
}
