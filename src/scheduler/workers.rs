//! Workers: register, look, delete.

use std::sync::Arc;

use super::claims::view;
use super::{Scheduler, wait};
use crate::engine::WorkerLook;
use crate::limits;
use crate::model::{
    Beat, Cleared, Heard, PoolName, Registered, Registration, RunningClaim, WorkerId, WorkerVerb, WorkerView,
};
use crate::pools::Pool;
use crate::refusal::{Refusal, What};
use crate::shard::{Batch, ClaimAnswer, Command, Payload, Reply};

impl Scheduler {
    /// A worker is there. Upsert: what is said replaces what was known.
    ///
    /// # Errors
    /// `Invalid` naming the field; `State` for an older incarnation than the known one.
    pub async fn register(&self, pool: &PoolName, worker: impl Into<Registration>) -> Result<Registered, Refusal> {
        self.open()?;
        let worker: Registration = worker.into();
        check(&worker)?;
        let pool = self.pool(pool)?;
        let shard = worker.spec.id.shard(pool.ports.len() as u16);
        let (reply, answer) = Reply::one();
        pool.ports[shard as usize].ask(Command::Register(vec![(worker, reply)]));
        registered(&pool, shard, wait(answer).await?)
    }

    /// Many workers in one call: each its own outcome, in order. Each shard is visited once.
    ///
    /// # Errors
    /// The pool does not exist.
    pub async fn register_batch(
        &self,
        pool: &PoolName,
        workers: Vec<Registration>,
    ) -> Result<Vec<Result<Registered, Refusal>>, Refusal> {
        self.open()?;
        let pool = self.pool(pool)?;
        if workers.is_empty() {
            return Ok(Vec::new());
        }
        let (batch, answers) = Batch::new(workers.len());
        let mut by_shard: Vec<Vec<(Registration, Reply)>> = pool.ports.iter().map(|_| Vec::new()).collect();
        let mut shards = Vec::with_capacity(workers.len());
        for (place, worker) in (0..).zip(workers) {
            let reply = Reply::part(Arc::clone(&batch), place);
            let shard = worker.spec.id.shard(pool.ports.len() as u16);
            shards.push(shard);
            match check(&worker) {
                Ok(()) => by_shard[shard as usize].push((worker, reply)),
                Err(refusal) => drop(reply.send(Err(refusal))),
            }
        }
        drop(batch);
        for (port, workers) in pool.ports.iter().zip(by_shard).filter(|(_, workers)| !workers.is_empty()) {
            port.ask(Command::Register(workers));
        }
        let outcomes = answers.await.unwrap_or_default().into_iter().zip(shards);
        Ok(outcomes.map(|(outcome, shard)| registered(&pool, shard, outcome?)).collect())
    }

    /// A worker as it stands.
    ///
    /// # Errors
    /// `NotFound`.
    pub async fn get_worker(&self, pool: &PoolName, id: &WorkerId) -> Result<WorkerView, Refusal> {
        let (pool, shard, payload) = self.on_worker(pool, id, Command::Worker).await?;
        registered(&pool, shard, payload).map(|registered| registered.worker)
    }

    /// A worker is gone; what it held is lost, and its keys are free.
    ///
    /// # Errors
    /// `NotFound`.
    pub async fn delete_worker(&self, pool: &PoolName, id: &WorkerId) -> Result<(), Refusal> {
        self.on_worker(pool, id, Command::Delete).await.map(drop)
    }

    /// A worker says that it is there, and perhaps what it runs. What it names and holds becomes active; what it
    /// should not run it is told to stop.
    ///
    /// # Errors
    /// `Invalid` for too many claims; `NotFound`; `State` for another incarnation than the registered one.
    pub async fn heartbeat(&self, pool: &PoolName, id: &WorkerId, beat: Beat) -> Result<Heard, Refusal> {
        check_named(beat.claims.as_deref())?;
        let ask = |id, reply| Command::Heartbeat(id, beat, reply);
        let (pool, _, payload) = self.on_worker(pool, id, ask).await?;
        match payload {
            Payload::Heard(claims, stop) => {
                let claims = claims.into_iter().map(|(id, answer)| view(&id, &pool.name, answer)).collect();
                Ok(Heard { claims, stop })
            }
            _ => unreachable!("a heartbeat is heard or refused"),
        }
    }

    /// The owner of a worker wishes.
    ///
    /// # Errors
    /// `NotFound`; `State` for an uncordon while it drains, and for a clear while claims that the last stop may have
    /// lost can still be started.
    pub async fn steer(&self, pool: &PoolName, id: &WorkerId, verb: WorkerVerb) -> Result<WorkerView, Refusal> {
        let ask = |id, reply| Command::Steer(id, verb, reply);
        let (pool, shard, payload) = self.on_worker(pool, id, ask).await?;
        registered(&pool, shard, payload).map(|registered| registered.worker)
    }

    /// The owner of all workers of a pool speaks for them, as they stand. Says how many were not trusted, and how many
    /// are not yet.
    ///
    /// # Errors
    /// `NotFound`; the reason of a shard that does not serve.
    pub async fn clear_pool(&self, pool: &PoolName) -> Result<Cleared, Refusal> {
        self.open()?;
        let pool = self.pool(pool)?;
        let answers = futures::future::join_all(pool.ports.iter().map(|port| {
            let (reply, answer) = Reply::one();
            port.ask(Command::ClearAll(reply));
            wait(answer)
        }));
        let mut sum = Cleared::default();
        for answer in answers.await {
            if let Payload::Cleared(shard) = answer? {
                sum.cleared += shard.cleared;
                sum.suspect += shard.suspect;
            }
        }
        Ok(sum)
    }

    async fn on_worker(
        &self,
        pool: &PoolName,
        id: &WorkerId,
        ask: impl FnOnce(WorkerId, Reply) -> Command,
    ) -> Result<(Arc<Pool>, u16, Payload), Refusal> {
        self.open()?;
        let pool = self.pool(pool)?;
        let shard = id.shard(pool.ports.len() as u16);
        let (reply, answer) = Reply::one();
        pool.ports[shard as usize].ask(ask(id.clone(), reply));
        let payload = wait(answer).await?;
        Ok((pool, shard, payload))
    }

    /// A pool that is not being deleted.
    pub(super) fn pool(&self, name: &PoolName) -> Result<Arc<Pool>, Refusal> {
        let pools = self.dispatch().pools.load();
        pools.get(name).filter(|pool| !pool.is_closing()).cloned().ok_or(Refusal::NotFound(What::Pool))
    }
}

fn registered(pool: &Pool, shard: u16, payload: Payload) -> Result<Registered, Refusal> {
    match payload {
        Payload::Worker { created, look, stop } => {
            Ok(Registered { created, worker: worker_view(pool, shard, *look), stop })
        }
        _ => Err(Refusal::NotFound(What::Worker)),
    }
}

fn check(worker: &Registration) -> Result<(), Refusal> {
    worker.spec.check()?;
    check_named(worker.claims.as_deref())
}

fn check_named(claims: Option<&[RunningClaim]>) -> Result<(), Refusal> {
    match claims {
        Some(claims) if claims.len() > limits::NAMED_CLAIMS_MAX => {
            Err(Refusal::invalid("claims", format!("at most {} claims", limits::NAMED_CLAIMS_MAX)))
        }
        _ => Ok(()),
    }
}

/// A worker as the service shows it.
pub(super) fn worker_view(pool: &Pool, shard: u16, look: WorkerLook) -> WorkerView {
    let claims = look.claims.into_iter().map(|(id, grant)| {
        let answer = ClaimAnswer { grant, created: false, pool: pool.number, expires_at_ms: None };
        view(&id, &pool.name, answer)
    });
    let claims: Vec<_> = claims.collect();
    WorkerView {
        card: look.card,
        busy: look.axes.busy,
        schedulability: look.axes.schedulability,
        liveness: look.axes.liveness,
        trust: look.axes.trust,
        overcommitted: look.axes.overcommitted,
        version: look.version,
        shard,
        claims,
    }
}
