//! Workers: registration, heartbeats, queries, operator commands, deletion.

use std::sync::Arc;

use tokio::sync::oneshot;

use super::change_log::{self, ChangeDetails, ChangeKind, ChangeResult};
use super::{Scheduler, recv_outcome};
use crate::admission::pool_registry::Pool;
use crate::engine::WorkerSnapshot;
use crate::limits;
use crate::model::request_error::{ObjectKind, RequestError};
use crate::model::{
    ClearResult, HeartbeatRequest, HeartbeatResponse, PoolName, RegistrationRequest, RegistrationResponse,
    RunningClaim, WorkerCommand, WorkerId, WorkerView,
};
use crate::shard::{ClaimAnswer, Command, CommandReply, DeletedWorker, HeartbeatReply, RegisteredWorker, ShardRef};

impl Scheduler {
    /// Registers a worker, or replaces its registration.
    ///
    /// # Errors
    /// `Invalid` naming the field; `FailedPrecondition` for an older incarnation than the registered one.
    pub async fn register(
        &self,
        pool: &PoolName,
        worker: impl Into<RegistrationRequest>,
    ) -> Result<RegistrationResponse, RequestError> {
        self.check_serving()?;
        let worker: RegistrationRequest = worker.into();
        check_registration(&worker)?;
        let pool = self.pool(pool)?;
        let shard = worker.spec.id.shard(pool.shards.len() as u16);
        let keys = self.dispatch().report_keys(worker.claims.as_deref());
        let (reply, answer) = oneshot::channel();
        pool.shards[shard as usize].push_or_reject(Command::Register(vec![(worker, keys, reply)]));
        let registered = self.registration_response(&pool, shard, recv_outcome(answer).await?);
        self.log_registrations(&pool, 1);
        Ok(registered)
    }

    /// Registers many workers in one call. Returns one result each, in order. Visits each shard once.
    ///
    /// # Errors
    /// Fails if the pool does not exist.
    pub async fn register_batch(
        &self,
        pool: &PoolName,
        workers: Vec<RegistrationRequest>,
    ) -> Result<Vec<Result<RegistrationResponse, RequestError>>, RequestError> {
        self.check_serving()?;
        let pool = self.pool(pool)?;
        let worker = |worker: RegistrationRequest, reply| {
            let keys = self.dispatch().report_keys(worker.claims.as_deref());
            (worker, keys, reply)
        };
        let outcomes =
            ask_shards(&pool, workers, |worker| &worker.spec.id, check_registration, worker, Command::Register).await;
        let mut registered = Vec::with_capacity(outcomes.len());
        for (shard, outcome) in outcomes {
            registered.push(outcome.map(|worker| self.registration_response(&pool, shard, worker)));
        }
        self.log_registrations(&pool, registered.iter().flatten().count());
        Ok(registered)
    }

    /// State of a worker and its claims.
    ///
    /// # Errors
    /// `NotFound` if there is no such pool or worker.
    pub async fn get_worker(&self, pool: &PoolName, id: &WorkerId) -> Result<WorkerView, RequestError> {
        let (pool, shard, worker) = self.ask_worker_shard(pool, id, Command::GetWorker).await?;
        Ok(self.worker_view(&pool, shard, *worker))
    }

    /// Deletes a worker; its claims are lost and their keys are free.
    ///
    /// # Errors
    /// `NotFound` if there is no such pool or worker.
    pub async fn delete_worker(&self, pool: &PoolName, id: &WorkerId) -> Result<(), RequestError> {
        let mut change = self.change(ChangeKind::DeleteWorker, ChangeDetails::of_worker(pool, id));
        let deleted = self.ask_worker_shard(pool, id, Command::DeleteWorker).await;
        if let Ok((_, _, DeletedWorker { claims_lost })) = deleted {
            change.details().claims_lost = Some(claims_lost);
        }
        change.outcome(ChangeResult::Done, deleted).map(drop)
    }

    /// Handles the heartbeat of a worker, which may report its claims. Reported claims that it holds become active;
    /// the response lists those that it must stop.
    ///
    /// # Errors
    /// `Invalid` for too many claims; `NotFound`; `FailedPrecondition` for another incarnation than the registered
    /// one.
    pub async fn heartbeat(
        &self,
        pool: &PoolName,
        id: &WorkerId,
        heartbeat: HeartbeatRequest,
    ) -> Result<HeartbeatResponse, RequestError> {
        check_reported_claims(heartbeat.claims.as_deref())?;
        let command = |id, reply| {
            let keys = self.dispatch().report_keys(heartbeat.claims.as_deref());
            Command::Heartbeat(vec![(id, heartbeat, keys, reply)])
        };
        let (pool, _, reply) = self.ask_worker_shard(pool, id, command).await?;
        Ok(self.heartbeat_response(&pool, reply))
    }

    /// Handles many heartbeats in one call. Returns one result each, in order. Visits each shard once.
    ///
    /// # Errors
    /// Fails if the pool does not exist.
    pub async fn heartbeat_batch(
        &self,
        pool: &PoolName,
        heartbeats: Vec<(WorkerId, HeartbeatRequest)>,
    ) -> Result<Vec<Result<HeartbeatResponse, RequestError>>, RequestError> {
        self.check_serving()?;
        let pool = self.pool(pool)?;
        let check = |(_, heartbeat): &(WorkerId, HeartbeatRequest)| check_reported_claims(heartbeat.claims.as_deref());
        let heartbeat = |(id, heartbeat): (WorkerId, HeartbeatRequest), reply| {
            let keys = self.dispatch().report_keys(heartbeat.claims.as_deref());
            (id, heartbeat, keys, reply)
        };
        let outcomes = ask_shards(&pool, heartbeats, |(id, _)| id, check, heartbeat, Command::Heartbeat).await;
        Ok(outcomes.into_iter().map(|(_, outcome)| Ok(self.heartbeat_response(&pool, outcome?))).collect())
    }

    /// Executes an operator command on a worker: cordon, uncordon, drain or clear.
    ///
    /// # Errors
    /// `NotFound`; `FailedPrecondition` for an uncordon while the worker drains, and for a clear while claims that the
    /// last stop may have lost can still start.
    pub async fn command_worker(
        &self,
        pool: &PoolName,
        id: &WorkerId,
        verb: WorkerCommand,
    ) -> Result<WorkerView, RequestError> {
        let change = self.change(ChangeKind::CommandWorker(verb), ChangeDetails::of_worker(pool, id));
        let command = |id, reply| Command::CommandWorker(id, verb, reply);
        let (pool, shard, worker) =
            change.outcome(ChangeResult::Done, self.ask_worker_shard(pool, id, command).await)?;
        Ok(self.worker_view(&pool, shard, *worker))
    }

    /// Clears suspicion from all workers of a pool. Returns how many were cleared, and how many stay suspect.
    ///
    /// # Errors
    /// `NotFound`; the reason of a shard that does not serve.
    pub async fn clear_pool(&self, pool: &PoolName) -> Result<ClearResult, RequestError> {
        let mut change = self.change(ChangeKind::ClearPool, ChangeDetails::of_pool(pool));
        let cleared = self.clear_shards(pool).await;
        if let Ok(ClearResult { cleared, suspect }) = cleared {
            (change.details().cleared, change.details().suspect) = (Some(cleared), Some(suspect));
        }
        change.outcome(ChangeResult::Done, cleared)
    }

    async fn clear_shards(&self, pool: &PoolName) -> Result<ClearResult, RequestError> {
        self.check_serving()?;
        let pool = self.pool(pool)?;
        let answers = futures::future::join_all(pool.shards.iter().map(|handle| {
            let (reply, answer) = oneshot::channel();
            handle.push_or_reject(Command::ClearWorkers(reply));
            recv_outcome(answer)
        }));
        let mut sum = ClearResult::default();
        for answer in answers.await {
            let ClearResult { cleared, suspect } = answer?;
            sum.cleared += cleared;
            sum.suspect += suspect;
        }
        Ok(sum)
    }

    async fn ask_worker_shard<T>(
        &self,
        pool: &PoolName,
        id: &WorkerId,
        command: impl FnOnce(WorkerId, CommandReply<T>) -> Command,
    ) -> Result<(Arc<Pool>, u16, T), RequestError> {
        self.check_serving()?;
        let pool = self.pool(pool)?;
        let shard = id.shard(pool.shards.len() as u16);
        let (reply, answer) = oneshot::channel();
        pool.shards[shard as usize].push_or_reject(command(id.clone(), reply));
        let answer = recv_outcome(answer).await?;
        Ok((pool, shard, answer))
    }

    fn log_registrations(&self, pool: &Pool, workers: usize) {
        if !change_log::are_registrations_logged() {
            return;
        }
        let details = ChangeDetails { workers: Some(workers as u64), ..ChangeDetails::of_pool(&pool.name) };
        self.change(ChangeKind::RegisterWorkers, details).end(ChangeResult::Done);
    }

    /// Pool with this name that is not being deleted.
    pub(super) fn pool(&self, name: &PoolName) -> Result<Arc<Pool>, RequestError> {
        let pools = self.dispatch().pools.load();
        pools.get(name).filter(|pool| !pool.is_closing()).cloned().ok_or(RequestError::NotFound(ObjectKind::Pool))
    }

    fn registration_response(&self, pool: &Pool, shard: u16, registered: RegisteredWorker) -> RegistrationResponse {
        let RegisteredWorker { created, worker, revoked } = registered;
        RegistrationResponse { created, worker: self.worker_view(pool, shard, *worker), stop: revoked }
    }

    fn heartbeat_response(&self, pool: &Pool, reply: HeartbeatReply) -> HeartbeatResponse {
        let HeartbeatReply { claims, revoked, late_for } = reply;
        let claims = claims.into_iter().map(|(id, answer)| self.view(&id, &pool.name, answer)).collect();
        HeartbeatResponse { claims, stop: revoked, superseded_by: late_for }
    }

    /// View of a worker for callers.
    pub(super) fn worker_view(&self, pool: &Pool, shard: u16, snapshot: WorkerSnapshot) -> WorkerView {
        let claims = snapshot.claims.into_iter().map(|(id, grant)| {
            let shard = ShardRef { pool: pool.number, shard };
            self.view(&id, &pool.name, ClaimAnswer::existing(grant, shard))
        });
        WorkerView {
            claims: claims.collect(),
            registration: snapshot.registration,
            busy: snapshot.conditions.busy,
            schedulability: snapshot.conditions.schedulability,
            liveness: snapshot.conditions.liveness,
            trust: snapshot.conditions.trust,
            overcommitted: snapshot.conditions.overcommitted,
            version: snapshot.version,
            shard,
        }
    }
}

/// Sends each shard one command with those of `items` that it owns and that pass `check`. Returns the shard and
/// outcome of every item, in order.
async fn ask_shards<T, A, R>(
    pool: &Pool,
    items: Vec<T>,
    id: impl Fn(&T) -> &WorkerId,
    check: impl Fn(&T) -> Result<(), RequestError>,
    pair: impl Fn(T, CommandReply<R>) -> A,
    command: impl Fn(Vec<A>) -> Command,
) -> Vec<(u16, Result<R, RequestError>)> {
    let mut groups: Vec<Vec<A>> = pool.shards.iter().map(|_| Vec::new()).collect();
    let mut answers = Vec::with_capacity(items.len());
    for item in items {
        let (reply, answer) = oneshot::channel();
        let shard = id(&item).shard(pool.shards.len() as u16);
        answers.push((shard, answer));
        match check(&item) {
            Ok(()) => groups[shard as usize].push(pair(item, reply)),
            Err(error) => drop(reply.send(Err(error))),
        }
    }
    for (handle, groups) in pool.shards.iter().zip(groups).filter(|(_, groups)| !groups.is_empty()) {
        handle.push_or_reject(command(groups));
    }
    let mut outcomes = Vec::with_capacity(answers.len());
    for (shard, answer) in answers {
        outcomes.push((shard, recv_outcome(answer).await));
    }
    outcomes
}

fn check_registration(worker: &RegistrationRequest) -> Result<(), RequestError> {
    worker.spec.check()?;
    check_reported_claims(worker.claims.as_deref())
}

fn check_reported_claims(claims: Option<&[RunningClaim]>) -> Result<(), RequestError> {
    match claims {
        Some(claims) if claims.len() > limits::REPORTED_CLAIMS_MAX => {
            Err(RequestError::invalid("claims", format!("must list at most {} claims", limits::REPORTED_CLAIMS_MAX)))
        }
        _ => Ok(()),
    }
}
