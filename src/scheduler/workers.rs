//! Workers: register, hear, look, steer, delete.

use std::sync::Arc;

use super::change_log::{self, ChangeDetails, ChangeKind, ChangeResult};
use super::held::view;
use super::{Scheduler, wait};
use crate::admission::keys::ShardRef;
use crate::admission::pools::Pool;
use crate::engine::WorkerLook;
use crate::limits;
use crate::model::rejection::{Refusal, What};
use crate::model::{
    Beat, Cleared, Heard, PoolName, Registered, Registration, RunningClaim, WorkerId, WorkerVerb, WorkerView,
};
use crate::shard::{Batch, ClaimAnswer, Command, Outcome, Payload, Reply};

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
        let registered = self.registered(&pool, shard, wait(answer).await?);
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
        workers: Vec<Registration>,
    ) -> Result<Vec<Result<Registered, Refusal>>, Refusal> {
        self.open()?;
        let pool = self.pool(pool)?;
        let worker = |worker, reply| (worker, reply);
        let outcomes = by_shard(&pool, workers, |worker| &worker.spec.id, check, worker, Command::Register).await;
        let registered: Vec<_> =
            outcomes.into_iter().map(|(shard, outcome)| self.registered(&pool, shard, outcome?)).collect();
        self.log_registrations(&pool, &registered);
        Ok(registered)
    }

    /// A worker as it stands.
    ///
    /// # Errors
    /// `NotFound`.
    pub async fn get_worker(&self, pool: &PoolName, id: &WorkerId) -> Result<WorkerView, Refusal> {
        let (pool, shard, payload) = self.on_worker(pool, id, Command::Worker).await?;
        self.registered(&pool, shard, payload).map(|registered| registered.worker)
    }

    /// A worker is gone; what it held is lost, and its keys are free.
    ///
    /// # Errors
    /// `NotFound`.
    pub async fn delete_worker(&self, pool: &PoolName, id: &WorkerId) -> Result<(), Refusal> {
        let mut change = self.change(ChangeKind::DeleteWorker, ChangeDetails::of_worker(pool, id));
        let deleted = self.on_worker(pool, id, Command::Delete).await;
        if let Ok((_, _, Payload::Deleted { claims_lost })) = deleted {
            change.details().claims_lost = Some(claims_lost);
        }
        change.outcome(ChangeResult::Done, deleted).map(drop)
    }

    /// A worker says that it is there, and perhaps what it runs. What it names and holds becomes active; what it
    /// should not run it is told to stop.
    ///
    /// # Errors
    /// `Invalid` for too many claims; `NotFound`; `State` for another incarnation than the registered one.
    pub async fn heartbeat(&self, pool: &PoolName, id: &WorkerId, beat: Beat) -> Result<Heard, Refusal> {
        check_named(beat.claims.as_deref())?;
        let ask = |id, reply| Command::Heartbeat(vec![(id, beat, reply)]);
        let (pool, _, payload) = self.on_worker(pool, id, ask).await?;
        Ok(heard(&pool, payload))
    }

    /// Many heartbeats in one call: each its own outcome, in order. Each shard is visited once.
    ///
    /// # Errors
    /// The pool does not exist.
    pub async fn heartbeat_batch(
        &self,
        pool: &PoolName,
        beats: Vec<(WorkerId, Beat)>,
    ) -> Result<Vec<Result<Heard, Refusal>>, Refusal> {
        self.open()?;
        let pool = self.pool(pool)?;
        let check = |(_, beat): &(WorkerId, Beat)| check_named(beat.claims.as_deref());
        let beat = |(id, beat), reply| (id, beat, reply);
        let outcomes = by_shard(&pool, beats, |(id, _)| id, check, beat, Command::Heartbeat).await;
        Ok(outcomes.into_iter().map(|(_, outcome)| Ok(heard(&pool, outcome?))).collect())
    }

    /// The owner of a worker wishes.
    ///
    /// # Errors
    /// `NotFound`; `State` for an uncordon while it drains, and for a clear while claims that the last stop may have
    /// lost can still be started.
    pub async fn steer(&self, pool: &PoolName, id: &WorkerId, verb: WorkerVerb) -> Result<WorkerView, Refusal> {
        let change = self.change(ChangeKind::Steer(verb), ChangeDetails::of_worker(pool, id));
        let ask = |id, reply| Command::Steer(id, verb, reply);
        let (pool, shard, payload) = change.outcome(ChangeResult::Done, self.on_worker(pool, id, ask).await)?;
        self.registered(&pool, shard, payload).map(|registered| registered.worker)
    }

    /// The owner of all workers of a pool speaks for them, as they stand. Says how many were not trusted, and how many
    /// are not yet.
    ///
    /// # Errors
    /// `NotFound`; the reason of a shard that does not serve.
    pub async fn clear_pool(&self, pool: &PoolName) -> Result<Cleared, Refusal> {
        let mut change = self.change(ChangeKind::ClearPool, ChangeDetails::of_pool(pool));
        let cleared = self.clear_shards(pool).await;
        if let Ok(Cleared { cleared, suspect }) = cleared {
            (change.details().cleared, change.details().suspect) = (Some(cleared), Some(suspect));
        }
        change.outcome(ChangeResult::Done, cleared)
    }

    async fn clear_shards(&self, pool: &PoolName) -> Result<Cleared, Refusal> {
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

    fn log_registrations(&self, pool: &Pool, registered: &[Result<Registered, Refusal>]) {
        if !change_log::are_registrations_logged() {
            return;
        }
        let workers = registered.iter().filter(|registered| registered.is_ok()).count() as u64;
        let details = ChangeDetails { workers: Some(workers), ..ChangeDetails::of_pool(&pool.name) };
        self.change(ChangeKind::RegisterWorkers, details).end(ChangeResult::Done);
    }

    /// A pool that is not being deleted.
    pub(super) fn pool(&self, name: &PoolName) -> Result<Arc<Pool>, Refusal> {
        let pools = self.dispatch().pools.load();
        pools.get(name).filter(|pool| !pool.is_closing()).cloned().ok_or(Refusal::NotFound(What::Pool))
    }

    fn registered(&self, pool: &Pool, shard: u16, payload: Payload) -> Result<Registered, Refusal> {
        match payload {
            Payload::Worker { created, look, stop } => {
                Ok(Registered { created, worker: self.worker_view(pool, shard, *look), stop })
            }
            _ => Err(Refusal::NotFound(What::Worker)),
        }
    }

    /// A worker as the service shows it.
    pub(super) fn worker_view(&self, pool: &Pool, shard: u16, look: WorkerLook) -> WorkerView {
        let claims = look.claims.into_iter().map(|(id, grant)| {
            let expires_at_ms = grant.deadline_ms.map(|at| self.dispatch().clock.unix_of(at));
            view(
                &id,
                &pool.name,
                ClaimAnswer { grant, created: false, shard: ShardRef { pool: pool.number, shard }, expires_at_ms },
            )
        });
        WorkerView {
            claims: claims.collect(),
            card: look.card,
            busy: look.axes.busy,
            schedulability: look.axes.schedulability,
            liveness: look.axes.liveness,
            trust: look.axes.trust,
            overcommitted: look.axes.overcommitted,
            version: look.version,
            shard,
        }
    }
}

/// Asks each shard once about those of `items` that are its own and pass `check`. Every item's shard and outcome, in
/// order.
async fn by_shard<T, A>(
    pool: &Pool,
    items: Vec<T>,
    id: impl Fn(&T) -> &WorkerId,
    check: impl Fn(&T) -> Result<(), Refusal>,
    ask: impl Fn(T, Reply) -> A,
    command: impl Fn(Vec<A>) -> Command,
) -> Vec<(u16, Outcome)> {
    if items.is_empty() {
        return Vec::new();
    }
    let (batch, answers) = Batch::new(items.len());
    let mut asks: Vec<Vec<A>> = pool.ports.iter().map(|_| Vec::new()).collect();
    let mut shards = Vec::with_capacity(items.len());
    for (place, item) in (0..).zip(items) {
        let reply = Reply::part(Arc::clone(&batch), place);
        let shard = id(&item).shard(pool.ports.len() as u16);
        shards.push(shard);
        match check(&item) {
            Ok(()) => asks[shard as usize].push(ask(item, reply)),
            Err(refusal) => drop(reply.send(Err(refusal))),
        }
    }
    drop(batch);
    for (port, asks) in pool.ports.iter().zip(asks).filter(|(_, asks)| !asks.is_empty()) {
        port.ask(command(asks));
    }
    shards.into_iter().zip(answers.await).collect()
}

fn heard(pool: &Pool, payload: Payload) -> Heard {
    match payload {
        Payload::Heard { claims, stop, late_for } => {
            let claims = claims.into_iter().map(|(id, answer)| view(&id, &pool.name, answer)).collect();
            Heard { claims, stop, late_for }
        }
        _ => unreachable!("a heartbeat is heard or refused"),
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
