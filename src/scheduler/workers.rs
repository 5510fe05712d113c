//! Workers: register, hear, look, steer, delete.

use std::sync::Arc;

use super::change_log::{self, ChangeDetails, ChangeKind, ChangeResult};
use super::claim_operations::claim_view;
use super::{Scheduler, recv_outcome};
use crate::admission::key_directory::ShardRef;
use crate::admission::pool_registry::Pool;
use crate::engine::WorkerSnapshot;
use crate::limits;
use crate::model::request_error::{ObjectKind, RequestError};
use crate::model::{
    ClearResult, HeartbeatRequest, HeartbeatResponse, PoolName, RegistrationRequest, RegistrationResponse,
    RunningClaim, WorkerCommand, WorkerId, WorkerView,
};
use crate::shard::{ClaimAnswer, Command, ReplyBatch, ReplyPayload, ReplySender, ShardOutcome};

impl Scheduler {
    /// A worker is there. Upsert: what is said replaces what was known.
    ///
    /// # Errors
    /// `Invalid` naming the field; `State` for an older incarnation than the known one.
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
        let (reply, answer) = ReplySender::oneshot();
        pool.shards[shard as usize].push_or_reject(Command::Register(vec![(worker, reply)]));
        let registered = self.registered(&pool, shard, recv_outcome(answer).await?);
        self.log_registrations(&pool, std::slice::from_ref(&registered));
        registered
    }

    /// Many workers in one call: each its own outcome, in order. Each shard is visited once.
    ///
    /// # Errors
    /// The pool does not exist.
    pub async fn register_batch(
        &self,
        pool: &PoolName,
        workers: Vec<RegistrationRequest>,
    ) -> Result<Vec<Result<RegistrationResponse, RequestError>>, RequestError> {
        self.check_serving()?;
        let pool = self.pool(pool)?;
        let worker = |worker, reply| (worker, reply);
        let outcomes =
            ask_shards(&pool, workers, |worker| &worker.spec.id, check_registration, worker, Command::Register).await;
        let registered: Vec<_> =
            outcomes.into_iter().map(|(shard, outcome)| self.registered(&pool, shard, outcome?)).collect();
        self.log_registrations(&pool, &registered);
        Ok(registered)
    }

    /// A worker as it stands.
    ///
    /// # Errors
    /// `NotFound`.
    pub async fn get_worker(&self, pool: &PoolName, id: &WorkerId) -> Result<WorkerView, RequestError> {
        let (pool, shard, payload) = self.ask_worker_shard(pool, id, Command::GetWorker).await?;
        self.registered(&pool, shard, payload).map(|registered| registered.worker)
    }

    /// A worker is gone; what it held is lost, and its keys are free.
    ///
    /// # Errors
    /// `NotFound`.
    pub async fn delete_worker(&self, pool: &PoolName, id: &WorkerId) -> Result<(), RequestError> {
        let mut change = self.change(ChangeKind::DeleteWorker, ChangeDetails::of_worker(pool, id));
        let deleted = self.ask_worker_shard(pool, id, Command::DeleteWorker).await;
        if let Ok((_, _, ReplyPayload::Deleted { claims_lost })) = deleted {
            change.details().claims_lost = Some(claims_lost);
        }
        change.outcome(ChangeResult::Done, deleted).map(drop)
    }

    /// A worker says that it is there, and perhaps what it runs. What it names and holds becomes active; what it
    /// should not run it is told to stop.
    ///
    /// # Errors
    /// `Invalid` for too many claims; `NotFound`; `State` for another incarnation than the registered one.
    pub async fn heartbeat(
        &self,
        pool: &PoolName,
        id: &WorkerId,
        beat: HeartbeatRequest,
    ) -> Result<HeartbeatResponse, RequestError> {
        check_reported_claims(beat.claims.as_deref())?;
        let ask = |id, reply| Command::Heartbeat(vec![(id, beat, reply)]);
        let (pool, _, payload) = self.ask_worker_shard(pool, id, ask).await?;
        Ok(heartbeat_response(&pool, payload))
    }

    /// Many heartbeats in one call: each its own outcome, in order. Each shard is visited once.
    ///
    /// # Errors
    /// The pool does not exist.
    pub async fn heartbeat_batch(
        &self,
        pool: &PoolName,
        beats: Vec<(WorkerId, HeartbeatRequest)>,
    ) -> Result<Vec<Result<HeartbeatResponse, RequestError>>, RequestError> {
        self.check_serving()?;
        let pool = self.pool(pool)?;
        let check = |(_, beat): &(WorkerId, HeartbeatRequest)| check_reported_claims(beat.claims.as_deref());
        let beat = |(id, beat), reply| (id, beat, reply);
        let outcomes = ask_shards(&pool, beats, |(id, _)| id, check, beat, Command::Heartbeat).await;
        Ok(outcomes.into_iter().map(|(_, outcome)| Ok(heartbeat_response(&pool, outcome?))).collect())
    }

    /// The owner of a worker wishes.
    ///
    /// # Errors
    /// `NotFound`; `State` for an uncordon while it drains, and for a clear while claims that the last stop may have
    /// lost can still be started.
    pub async fn command_worker(
        &self,
        pool: &PoolName,
        id: &WorkerId,
        verb: WorkerCommand,
    ) -> Result<WorkerView, RequestError> {
        let change = self.change(ChangeKind::CommandWorker(verb), ChangeDetails::of_worker(pool, id));
        let ask = |id, reply| Command::CommandWorker(id, verb, reply);
        let (pool, shard, payload) = change.outcome(ChangeResult::Done, self.ask_worker_shard(pool, id, ask).await)?;
        self.registered(&pool, shard, payload).map(|registered| registered.worker)
    }

    /// The owner of all workers of a pool speaks for them, as they stand. Says how many were not trusted, and how many
    /// are not yet.
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
        let answers = futures::future::join_all(pool.shards.iter().map(|port| {
            let (reply, answer) = ReplySender::oneshot();
            port.push_or_reject(Command::ClearWorkers(reply));
            recv_outcome(answer)
        }));
        let mut sum = ClearResult::default();
        for answer in answers.await {
            if let ReplyPayload::Cleared(shard) = answer? {
                sum.cleared += shard.cleared;
                sum.suspect += shard.suspect;
            }
        }
        Ok(sum)
    }

    async fn ask_worker_shard(
        &self,
        pool: &PoolName,
        id: &WorkerId,
        ask: impl FnOnce(WorkerId, ReplySender) -> Command,
    ) -> Result<(Arc<Pool>, u16, ReplyPayload), RequestError> {
        self.check_serving()?;
        let pool = self.pool(pool)?;
        let shard = id.shard(pool.shards.len() as u16);
        let (reply, answer) = ReplySender::oneshot();
        pool.shards[shard as usize].push_or_reject(ask(id.clone(), reply));
        let payload = recv_outcome(answer).await?;
        Ok((pool, shard, payload))
    }

    fn log_registrations(&self, pool: &Pool, registered: &[Result<RegistrationResponse, RequestError>]) {
        if !change_log::are_registrations_logged() {
            return;
        }
        let workers = registered.iter().filter(|registered| registered.is_ok()).count() as u64;
        let details = ChangeDetails { workers: Some(workers), ..ChangeDetails::of_pool(&pool.name) };
        self.change(ChangeKind::RegisterWorkers, details).end(ChangeResult::Done);
    }

    /// A pool that is not being deleted.
    pub(super) fn pool(&self, name: &PoolName) -> Result<Arc<Pool>, RequestError> {
        let pools = self.dispatch().pools.load();
        pools.get(name).filter(|pool| !pool.is_closing()).cloned().ok_or(RequestError::NotFound(ObjectKind::Pool))
    }

    fn registered(&self, pool: &Pool, shard: u16, payload: ReplyPayload) -> Result<RegistrationResponse, RequestError> {
        match payload {
            ReplyPayload::Worker { created, worker: look, revoked: stop } => {
                Ok(RegistrationResponse { created, worker: self.worker_view(pool, shard, *look), stop })
            }
            _ => Err(RequestError::NotFound(ObjectKind::Worker)),
        }
    }

    /// A worker as the service shows it.
    pub(super) fn worker_view(&self, pool: &Pool, shard: u16, look: WorkerSnapshot) -> WorkerView {
        let claims = look.claims.into_iter().map(|(id, grant)| {
            let expires_at_ms = grant.deadline_ms.map(|at| self.dispatch().clock.unix_of(at));
            claim_view(
                &id,
                &pool.name,
                ClaimAnswer { grant, created: false, shard: ShardRef { pool: pool.number, shard }, expires_at_ms },
            )
        });
        WorkerView {
            claims: claims.collect(),
            registration: look.registration,
            busy: look.conditions.busy,
            schedulability: look.conditions.schedulability,
            liveness: look.conditions.liveness,
            trust: look.conditions.trust,
            overcommitted: look.conditions.overcommitted,
            version: look.version,
            shard,
        }
    }
}

/// Asks each shard once about those of `items` that are its own and pass `check`. Every item's shard and outcome, in
/// order.
async fn ask_shards<T, A>(
    pool: &Pool,
    items: Vec<T>,
    id: impl Fn(&T) -> &WorkerId,
    check: impl Fn(&T) -> Result<(), RequestError>,
    ask: impl Fn(T, ReplySender) -> A,
    command: impl Fn(Vec<A>) -> Command,
) -> Vec<(u16, ShardOutcome)> {
    if items.is_empty() {
        return Vec::new();
    }
    let (batch, answers) = ReplyBatch::new(items.len());
    let mut asks: Vec<Vec<A>> = pool.shards.iter().map(|_| Vec::new()).collect();
    let mut shards = Vec::with_capacity(items.len());
    for (place, item) in (0..).zip(items) {
        let reply = ReplySender::batch_part(Arc::clone(&batch), place);
        let shard = id(&item).shard(pool.shards.len() as u16);
        shards.push(shard);
        match check(&item) {
            Ok(()) => asks[shard as usize].push(ask(item, reply)),
            Err(refusal) => drop(reply.send(Err(refusal))),
        }
    }
    drop(batch);
    for (port, asks) in pool.shards.iter().zip(asks).filter(|(_, asks)| !asks.is_empty()) {
        port.push_or_reject(command(asks));
    }
    shards.into_iter().zip(answers.await).collect()
}

fn heartbeat_response(pool: &Pool, payload: ReplyPayload) -> HeartbeatResponse {
    match payload {
        ReplyPayload::Heartbeat { claims, revoked: stop, late_for } => {
            let claims = claims.into_iter().map(|(id, answer)| claim_view(&id, &pool.name, answer)).collect();
            HeartbeatResponse { claims, stop, superseded_by: late_for }
        }
        _ => unreachable!("a heartbeat is heard or refused"),
    }
}

fn check_registration(worker: &RegistrationRequest) -> Result<(), RequestError> {
    worker.spec.check()?;
    check_reported_claims(worker.claims.as_deref())
}

fn check_reported_claims(claims: Option<&[RunningClaim]>) -> Result<(), RequestError> {
    match claims {
        Some(claims) if claims.len() > limits::REPORTED_CLAIMS_MAX => {
            Err(RequestError::invalid("claims", format!("at most {} claims", limits::REPORTED_CLAIMS_MAX)))
        }
        _ => Ok(()),
    }
}
