//! Workers: register, look, delete.

use std::sync::Arc;

use super::claims::view;
use super::{Scheduler, wait};
use crate::engine::WorkerLook;
use crate::model::{PoolName, Registered, Schedulability, WorkerId, WorkerSpec, WorkerView};
use crate::pools::Pool;
use crate::refusal::{Refusal, What};
use crate::shard::{Batch, ClaimAnswer, Command, Payload, Reply};

impl Scheduler {
    /// A worker is there. Upsert: what is said replaces what was known.
    ///
    /// # Errors
    /// `Invalid` naming the field; `State` for an older incarnation than the known one.
    pub async fn register(&self, pool: &PoolName, spec: WorkerSpec) -> Result<Registered, Refusal> {
        self.open()?;
        spec.check()?;
        let pool = self.pool(pool)?;
        let shard = spec.id.shard(pool.ports.len() as u16);
        let (reply, answer) = Reply::one();
        pool.ports[shard as usize].ask(Command::Register(vec![(spec, reply)]));
        registered(&pool, shard, wait(answer).await?)
    }

    /// Many workers in one call: each its own outcome, in order. Each shard is visited once.
    ///
    /// # Errors
    /// The pool does not exist.
    pub async fn register_batch(
        &self,
        pool: &PoolName,
        specs: Vec<WorkerSpec>,
    ) -> Result<Vec<Result<Registered, Refusal>>, Refusal> {
        self.open()?;
        let pool = self.pool(pool)?;
        if specs.is_empty() {
            return Ok(Vec::new());
        }
        let (batch, answers) = Batch::new(specs.len());
        let mut by_shard: Vec<Vec<(WorkerSpec, Reply)>> = pool.ports.iter().map(|_| Vec::new()).collect();
        let mut shards = Vec::with_capacity(specs.len());
        for (place, spec) in (0..).zip(specs) {
            let reply = Reply::part(Arc::clone(&batch), place);
            let shard = spec.id.shard(pool.ports.len() as u16);
            shards.push(shard);
            match spec.check() {
                Ok(()) => by_shard[shard as usize].push((spec, reply)),
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

    async fn on_worker(
        &self,
        pool: &PoolName,
        id: &WorkerId,
        ask: fn(WorkerId, Reply) -> Command,
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
        Payload::Worker { created, look } => Ok(Registered { created, worker: worker_view(pool, shard, *look) }),
        _ => Err(Refusal::NotFound(What::Worker)),
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
        busy: !claims.is_empty(),
        schedulability: Schedulability::Open,
        version: look.version,
        shard,
        claims,
    }
}
