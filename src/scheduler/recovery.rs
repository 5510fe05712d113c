//! Recovery: turns rows into shards, before any mailbox opens, at start and after a panic.
//!
//! At start: take the store over under a fresh epoch ([`acquire_ownership`]), read the catalog, read all shards in
//! one pass, replay and check each, rebuild the key directory, raise the fence ceiling, serve. A shard that cannot be
//! read or violates an invariant is refused by name; the others serve. If two shards hold a key (freed in one but not
//! stored, claimed and stored in the other), the higher fence keeps it and the other claim is relinquished.

use parking_lot::Mutex;
use std::collections::BTreeMap;
use std::error::Error;
use std::sync::Arc;

use futures::StreamExt as _;
use futures::future::{BoxFuture, FutureExt as _};
use ractor::ActorCell;

use crate::admission::dispatch::ClaimDispatcher;
use crate::admission::gang::{MemberGrant, TransactionMember};
use crate::admission::key::{KeyHolder, PendingClaim};
use crate::admission::pool_registry::{Pool, ShardHandle};
use crate::collections::{HashMap, HashSet};
use crate::engine::{
    ClaimHandle, Effect, Event, GangAction, ReplayError, ResumePoint, Shard, ShardConfig, ShardReplay,
};
use crate::limits;
use crate::metrics::{PoolMetrics, ShardState};
use crate::model::GangRef;
use crate::model::request_error::RequestError;
use crate::model::{ClaimId, ClaimSpec, Fence, HASH_VERSION, Millis, PoolName, PoolSpec, Quota, Seq};
use crate::persist::catalog::{self, PoolCatalog};
use crate::persist::journal::Outbox;
use crate::persist::row::{self, PoolRow, RowFrames, RowKind};
use crate::persist::store::{FenceSpan, ShardDamage, ShardKey, StoreError};
use crate::scheduler::ownership;
use crate::shard::{self, PendingWrite, PoolContext, ServedShard, ShardRef, SpawnArgs};

/// Number of shards that are started concurrently.
const CONCURRENT_STARTS: usize = 64;

/// Creates a pool whose handles refuse commands until their shards start.
#[must_use]
pub fn make_pool(dispatch: &Arc<ClaimDispatcher>, uid: u64, version: u64, name: PoolName, spec: PoolSpec) -> Arc<Pool> {
    let number = dispatch.pools.next_number();
    let metrics = Arc::new(PoolMetrics::new(&name));
    let handles = (0..spec.shards)
        .map(|shard| {
            let outbox = Outbox::new(&dispatch.journal, ShardKey { pool: uid, shard }, 0);
            let shard = ShardRef { pool: number, shard };
            ShardHandle::new(shard, outbox, Arc::clone(&metrics), &dispatch.services, dispatch)
        })
        .collect();
    let context = PoolContext::new(number, version, name, spec, metrics);
    Arc::new(Pool::new(uid, Arc::new(context), handles))
}

/// Raises the stored fence ceiling if it is near. The first time it also stores where this owner's fences begin:
/// claims lost before the previous owner are lost for good from then on.
///
/// # Errors
/// Fails with the errors of the store.
pub async fn raise_fence_ceiling(dispatch: &ClaimDispatcher) -> Result<(), StoreError> {
    if let Some(ceiling) = dispatch.services.fences.next_ceiling(dispatch.clock.unix_us()) {
        let floor = dispatch.services.fences.floor();
        dispatch.journal.store().raise_fence_ceiling(FenceSpan { floor, ceiling }).await?;
        dispatch.services.fences.set_ceiling(ceiling);
    }
    Ok(())
}

/// Acquires ownership of the store; waits while it is unavailable or owned elsewhere.
///
/// # Errors
/// Fails if the store cannot be taken over.
pub async fn acquire_ownership(dispatch: &ClaimDispatcher) -> Result<(), StoreError> {
    let attempt = || {
        async {
            let ownership = ownership::take_over(dispatch).await?;
            dispatch.services.fences.start(ownership.fence_ceiling, ownership.fence_floor);
            Ok(())
        }
        .boxed()
    };
    ownership::retry_until_ready(dispatch, attempt).await
}

/// Reads as the owner. Takes the store over again if its epoch turns out to have been assigned before.
async fn read<'a, T>(
    dispatch: &ClaimDispatcher,
    mut attempt: impl FnMut() -> BoxFuture<'a, Result<T, StoreError>> + Send,
) -> Result<T, StoreError> {
    loop {
        match ownership::retry_until_ready(dispatch, &mut attempt).await {
            Err(StoreError::Superseded(reason)) => {
                crate::reached!("ownership: an epoch was assigned before");
                tracing::warn!("{reason}");
                acquire_ownership(dispatch).await?;
            }
            result => return result,
        }
    }
}

/// Result of a recovery at start.
pub struct RecoveredState {
    /// Catalog of pools and quotas.
    pub catalog: Arc<PoolCatalog>,
    /// Pools whose deletion was in progress.
    pub deleting: Vec<Arc<Pool>>,
    /// Committed gangs that are forgotten once their members are stored.
    pub gangs: Vec<GangRef>,
}

/// Reads everything from the store, which this process owns, and starts the shards.
///
/// # Errors
/// Fails if the store cannot be read at all, or the catalog is damaged.
pub async fn recover(dispatch: &Arc<ClaimDispatcher>, supervisor: &ActorCell) -> Result<RecoveredState, StoreError> {
    let (applied_seq, rows) = read(dispatch, || read_catalog(dispatch).boxed()).await?;
    let mut pools = Vec::new();
    let mut deleting = Vec::new();
    for row in rows.quotas.values() {
        let quota: Quota = serde_json::from_str(&row.quota_json)
            .map_err(|e| StoreError::Unusable(format!("the catalog's quota of {}: {e}", row.name)))?;
        dispatch.keys.tenants.set_quota(&row.name, Some(quota));
    }
    for row in rows.pools.values() {
        let (name, spec) = parse_pool_row(row).map_err(|error| StoreError::Unusable(error.to_string()))?;
        let pool = make_pool(dispatch, row.uid, row.version(), name, spec);
        dispatch.pools.insert(&pool);
        if row.deleting {
            deleting.push(pool);
        } else {
            pools.push(pool);
        }
    }
    warn_total_shards(dispatch);
    // Keyed by name from now on; ids identify rows only.
    let numbers = rows.pools.values().map(|row| row.uid.max(row.version()));
    let newest_row = numbers.filter(|number| *number <= limits::FENCE_MAX).max();
    let quotas = rows.quotas.into_values().map(|row| (row.name.clone(), row)).collect();
    let catalog = PoolCatalog::new(&dispatch.journal, applied_seq, catalog::CatalogRows { quotas, ..rows });
    let shards =
        pools.iter().flat_map(|pool| pool.shards.iter().map(|handle| (Arc::clone(&pool.context), Arc::clone(handle))));
    let shards: Vec<_> = shards.collect();
    let mut recovered = read(dispatch, || load(dispatch, shards.clone()).boxed()).await?;
    let fences = recovered.iter().map(RecoveredShard::highest_fence).chain(newest_row);
    fences.max().into_iter().for_each(|fence| dispatch.services.fences.raise_last(fence));
    let gangs = resolve_gangs(dispatch, &mut recovered);
    // Nobody has claimed anything yet.
    drop(reconcile_keys(dispatch, &mut recovered));
    warn_suspects(&recovered);
    open_adoption(dispatch, &recovered);
    // As late as possible: a process that dies before this has granted nothing, and claims lost before it can still be
    // readopted.
    ownership::retry_until_ready(dispatch, || raise_fence_ceiling(dispatch).boxed()).await?;
    futures::stream::iter(recovered)
        .for_each_concurrent(CONCURRENT_STARTS, |recovered| open(Arc::clone(dispatch), recovered, supervisor.clone()))
        .await;
    Ok(RecoveredState { catalog, deleting, gangs })
}

/// Restarts a shard that panicked, from the store and the tail in its journal. Its handle refuses commands until it
/// serves.
pub async fn restart_shard(
    dispatch: Arc<ClaimDispatcher>,
    (pool, handle): ServedShard<ClaimDispatcher>,
    supervisor: ActorCell,
) {
    // The tail counts as stored: rows handed over before the panic only have to arrive.
    if !handle.outbox.wait_drained().await {
        if handle.outbox.is_unrecoverable() {
            let reason = "it panicked while only it had rows that the store lacks";
            handle.set_state(
                ShardState::Refused,
                Some(format!("shard {} of {} does not serve: {reason}", handle.shard.shard, pool.name)),
            );
            handle.reject_all();
        }
        return;
    }
    let mut recovered = loop {
        match load(&dispatch, vec![(Arc::clone(&pool), Arc::clone(&handle))]).await {
            Ok(recovered) => break recovered,
            Err(error) => {
                let reason =
                    format!("shard {} of {} panicked and cannot be read yet: {error}", handle.shard.shard, pool.name);
                tracing::warn!("{reason}");
                handle.set_state(ShardState::Loading, Some(reason));
                dispatch.services.environment.sleep(std::time::Duration::from_secs(1)).await;
            }
        }
        if handle.state() == ShardState::Stopped {
            return;
        }
    };
    let unanswered = reconcile_keys(&dispatch, &mut recovered);
    if dispatch.pools.load().by_number(pool.number).is_none() {
        // The pool was deleted meanwhile, and its keys were entered again.
        dispatch.forget_pool(pool.number);
        return dispatch.submit_again(unanswered);
    }
    // Events of the run that panicked are lost.
    pool.event_log.reset(dispatch.clock.unix_us());
    for recovered in recovered {
        open(Arc::clone(&dispatch), recovered, supervisor.clone()).await;
    }
    dispatch.submit_again(unanswered);
}

/// Starts the empty shards of a new pool.
pub async fn open_pool_shards(dispatch: &Arc<ClaimDispatcher>, pool: &Arc<Pool>, supervisor: &ActorCell) {
    let config = ShardConfig::from(&**pool.spec.load());
    for handle in &pool.shards {
        let shard = Ok(Shard::new(config.clone(), dispatch.clock.engine_ms()));
        let recovered = RecoveredShard {
            pool: Arc::clone(&pool.context),
            handle: Arc::clone(handle),
            shard,
            relinquished: Vec::new(),
        };
        open(Arc::clone(dispatch), recovered, supervisor.clone()).await;
    }
}

struct RecoveredShard {
    pool: Arc<PoolContext>,
    handle: Arc<ShardHandle>,
    /// Recovered shard, or the reason why it must not serve together with what could be read of it.
    shard: Result<Shard, (UnreadableShard, Box<Shard>)>,
    /// Claims whose keys are held elsewhere.
    relinquished: Vec<ClaimHandle>,
}

impl RecoveredShard {
    /// Highest fence in its rows.
    fn highest_fence(&self) -> Fence {
        match &self.shard {
            Ok(shard) => shard.highest_fence(),
            Err((_, readable)) => readable.highest_fence(),
        }
    }
}

/// Reason for which a shard must not serve.
#[derive(Debug, thiserror::Error)]
enum UnreadableShard {
    #[error(transparent)]
    Store(#[from] ShardDamage),
    #[error(transparent)]
    Replay(#[from] ReplayError),
}

/// Error in a row of the catalog.
#[derive(Debug, thiserror::Error)]
enum CatalogRowError {
    #[error(transparent)]
    Row(#[from] row::RowError),
    #[error("the row of a pool has the name {name:?}: {error}")]
    PoolName { name: String, error: RequestError },
    #[error("pool {name} uses version {version} of the worker hash, and this build {HASH_VERSION}")]
    HashVersion { name: PoolName, version: u32 },
    #[error("the specification of pool {name} is not JSON of this build: {error}")]
    PoolJson { name: PoolName, error: serde_json::Error },
    #[error("the specification of pool {name} is invalid: {error}")]
    PoolSpec { name: PoolName, error: RequestError },
}

fn parse_pool_row(row: &PoolRow) -> Result<(PoolName, PoolSpec), CatalogRowError> {
    let name =
        PoolName::parse(&row.name).map_err(|error| CatalogRowError::PoolName { name: row.name.clone(), error })?;
    if row.hash_version != HASH_VERSION {
        return Err(CatalogRowError::HashVersion { name, version: row.hash_version });
    }
    let spec: PoolSpec = match serde_json::from_str(&row.spec_json) {
        Ok(spec) => spec,
        Err(error) => return Err(CatalogRowError::PoolJson { name, error }),
    };
    match spec.with_defaults() {
        Ok(spec) => Ok((name, spec)),
        Err(error) => Err(CatalogRowError::PoolSpec { name, error }),
    }
}

async fn read_catalog(dispatch: &ClaimDispatcher) -> Result<(u64, catalog::CatalogRows), StoreError> {
    /// Rows of the catalog, and the first error in one of them.
    type Read = (catalog::CatalogRows, Option<CatalogRowError>);
    let read: Arc<Mutex<Read>> = Arc::default();
    let into = Arc::clone(&read);
    let sink = move |_: ShardKey, frames: &[u8]| {
        let mut read = into.lock();
        for frame in RowFrames::new(frames) {
            if let Err(error) = take_row(&mut read.0, frame) {
                read.1.get_or_insert(error);
            }
        }
    };
    let loaded = dispatch.journal.store().load(vec![ShardKey::CATALOG], Box::new(sink)).await?;
    let (rows, error) = std::mem::take(&mut *read.lock());
    let applied_seq = loaded.into_iter().next().map_or(Ok(0), |loaded| loaded.at);
    let damaged = |error: &dyn Error| StoreError::Unusable(format!("the catalog is damaged: {error}"));
    match (applied_seq, error) {
        (Ok(applied_seq), None) => Ok((applied_seq, rows)),
        (Err(error), _) => Err(damaged(&error)),
        (_, Some(error)) => Err(damaged(&error)),
    }
}

fn take_row(
    rows: &mut catalog::CatalogRows,
    frame: Result<row::RowFrame<'_>, row::RowError>,
) -> Result<(), CatalogRowError> {
    let frame = frame?;
    match (frame.kind, frame.body) {
        (RowKind::Pool, body) => {
            let uid: u64 = frame.id.parse().map_err(|_| row::RowError::Id("pool", frame.id.to_owned()))?;
            match body {
                Some(body) => drop(rows.pools.insert(uid, row::decode_pool(frame.id, body)?)),
                None => drop(rows.pools.remove(&uid)),
            }
        }
        (RowKind::Quota, Some(body)) => {
            rows.quotas.insert(frame.id.to_owned(), row::decode_quota(frame.id, body)?);
        }
        (RowKind::Quota, None) => drop(rows.quotas.remove(frame.id)),
        (RowKind::Worker | RowKind::Shard | RowKind::Gang, _) => {
            return Err(row::RowError::OfShard(frame.id.to_owned()).into());
        }
    }
    Ok(())
}

async fn load(
    dispatch: &Arc<ClaimDispatcher>,
    shards: Vec<ServedShard<ClaimDispatcher>>,
) -> Result<Vec<RecoveredShard>, StoreError> {
    let now_ms = dispatch.clock.engine_ms();
    let replays: HashMap<ShardKey, ShardReplay> = shards
        .iter()
        .map(|(pool, handle)| {
            (handle.outbox.key(), ShardReplay::new(&**pool.spec.load(), pool.name.namespace(), now_ms))
        })
        .collect();
    let replays = Arc::new(Mutex::new(replays));
    let into = Arc::clone(&replays);
    let sink = move |key: ShardKey, frames: &[u8]| {
        if let Some(replay) = into.lock().get_mut(&key) {
            replay.rows(frames);
        }
    };
    let keys = shards.iter().map(|(_, handle)| handle.outbox.key()).collect();
    let loaded = dispatch.journal.store().load(keys, Box::new(sink)).await?;
    let mut loaded: HashMap<_, _> = loaded.into_iter().map(|loaded| (loaded.shard, loaded.at)).collect();
    let mut replays = std::mem::take(&mut *replays.lock());
    // Reading may have taken long: deadlines start in full now, not when it began, nor at the last tick. At a start nothing has
    // ticked yet.
    let now_ms = dispatch.clock.engine_now_ms();
    let recovered = shards.into_iter().map(|(pool, handle)| {
        let key = handle.outbox.key();
        let applied_seq = loaded.remove(&key).unwrap_or(Ok(0));
        let replay = replays.remove(&key).unwrap_or_else(|| ShardReplay::new(&**pool.spec.load(), "", now_ms));
        let seq = applied_seq.as_ref().copied().unwrap_or_else(|_| replay.last_version());
        let resume = ResumePoint {
            seq,
            now_ms,
            unix_ms: dispatch.clock.unix_ms(),
            fence_floor: dispatch.services.fences.floor(),
            previous_fence_floor: dispatch.services.fences.previous_floor(),
            restarted: handle.restarts() > 0,
        };
        let shard = match (applied_seq, replay.finish(resume)) {
            (Ok(applied_seq), Ok(mut shard)) => {
                handle.outbox.restart(applied_seq);
                let revocable = handle.take_revocable();
                if !revocable.is_empty() {
                    shard.restore_disclosure(|fence| revocable.get(&fence).copied());
                }
                Ok(shard)
            }
            (Err(damage), Ok(shard)) => Err((damage.into(), Box::new(shard))),
            (Err(damage), Err((_, shard))) => Err((damage.into(), shard)),
            (Ok(_), Err((error, shard))) => Err((error.into(), shard)),
        };
        RecoveredShard { pool, handle, shard, relinquished: Vec::new() }
    });
    Ok(recovered.collect())
}

/// Decides provisional claims that a crash left undecided: they are committed if their gang's home has its record, and
/// relinquished otherwise. If the home cannot be read, they stay provisional and their keys are unreadable. Returns
/// the gangs whose records can be deleted once their members are stored; none if a shard was not read.
fn resolve_gangs(dispatch: &ClaimDispatcher, recovered: &mut [RecoveredShard]) -> Vec<GangRef> {
    let mut rows: Vec<GangRef> = Vec::new();
    let mut homes: HashMap<ShardKey, HashSet<Fence>> = HashMap::default();
    for recovered in &*recovered {
        if let Ok(shard) = &recovered.shard {
            let committed: HashSet<Fence> = shard.committed_gangs().collect();
            let ShardKey { pool, shard } = recovered.handle.outbox.key();
            rows.extend(committed.iter().map(|&id| GangRef { id, pool, shard }));
            homes.insert(recovered.handle.outbox.key(), committed);
        }
    }
    let unread: HashSet<ShardKey> = recovered
        .iter()
        .filter(|recovered| recovered.shard.is_err())
        .map(|recovered| recovered.handle.outbox.key())
        .collect();
    let now_ms = dispatch.clock.engine_now_ms();
    let mut in_doubt: BTreeMap<GangRef, Vec<TransactionMember>> = BTreeMap::new();
    for recovered in recovered.iter_mut() {
        let this_shard = recovered.handle.shard;
        let Ok(shard) = &mut recovered.shard else { continue };
        let members: Vec<(GangRef, ClaimId, ClaimHandle)> =
            shard.provisional().map(|(gang, id, handle)| (gang, id.clone(), handle)).collect();
        for (gang, id, handle) in members {
            let home = ShardKey { pool: gang.pool, shard: gang.shard };
            if homes.get(&home).is_some_and(|committed| committed.contains(&gang.id)) {
                crate::reached!("recovery: a gang is committed");
                // The first member of a gang in this shard commits all of them.
                shard.handle_event(Event::Gang { id: gang.id, action: GangAction::Commit }, now_ms, &mut Vec::new());
                // No answer will start the deadline of a member that must be confirmed.
                shard.note_reply_sent(handle, now_ms);
            } else if unread.contains(&home) {
                let spec = shard.grant(handle).and_then(|grant| grant.spec);
                dispatch.keys.recover_unreadable(id.clone(), this_shard, handle.fence, spec);
                crate::reached!("recovery: a gang is in doubt");
                let grant = MemberGrant { shard: this_shard, fence: handle.fence, answer: None };
                in_doubt.entry(gang).or_default().push(TransactionMember::new(id, None, Some(grant)));
            } else {
                crate::reached!("recovery: a gang is rolled back");
                recovered.relinquished.push(handle);
            }
        }
    }
    dispatch.suspend_gangs(in_doubt);
    if unread.is_empty() { rows } else { Vec::new() }
}

/// Enters the claims of the shards into the directory; of two holders of a key the lower fence is relinquished.
///
/// Returns the repeated claims whose holders a panic undid: they must be submitted again once the shards serve.
#[allow(clippy::vec_box, reason = "claims stay boxed from entry to entry")]
fn reconcile_keys(dispatch: &ClaimDispatcher, recovered: &mut [RecoveredShard]) -> Vec<Box<PendingClaim>> {
    let (mut losers, mut unanswered): (Vec<KeyHolder>, Vec<_>) = (Vec::new(), Vec::new());
    for recovered in &*recovered {
        let this_shard = recovered.handle.shard;
        match &recovered.shard {
            Ok(shard) => {
                let mut held: HashMap<ClaimId, HeldKey> = held_keys(shard).collect();
                if recovered.handle.restarts() > 0 {
                    // Rows go before events, so a member that is committed in the directory is so in the rows.
                    unanswered.extend(dispatch.keys.rebind_shard(this_shard, recovered.handle.life(), &mut held));
                }
                let enter = |(id, (handle, spec))| {
                    let life = recovered.handle.life();
                    dispatch.keys.recover(id, KeyHolder { shard: this_shard, life, handle }, spec)
                };
                losers.extend(held.into_iter().filter_map(enter));
            }
            Err((_, readable)) => {
                if recovered.handle.restarts() > 0 {
                    unanswered.extend(dispatch.keys.forget_shards(|shard| shard == this_shard));
                }
                let enter = |(id, (handle, spec)): (ClaimId, HeldKey)| {
                    dispatch.keys.recover_unreadable(id, this_shard, handle.fence, spec)
                };
                losers.extend(held_keys(readable).filter_map(enter));
            }
        }
    }
    for loser in losers {
        match recovered.iter_mut().find(|recovered| recovered.handle.shard == loser.shard) {
            Some(recovered) => recovered.relinquished.push(loser.handle),
            // The loser serves already: both shards panicked, and each had granted the key to nobody's knowledge.
            None => {
                if let Some(handle) = dispatch.pools.load().shard(loser.shard) {
                    handle.relinquish(loser.handle, loser.life);
                }
            }
        }
    }
    unanswered
}

/// Warns that the limit of shards was lowered below the stored total: existing pools are served, new ones are
/// rejected.
fn warn_total_shards(dispatch: &ClaimDispatcher) {
    let (current, max) = (dispatch.pools.load().total_shards(), dispatch.settings.shards_max);
    if current > max {
        tracing::warn!(
            shards = current,
            "the stored pools have more shards than server.max_shards ({max}): new pools are rejected"
        );
    }
}

/// Warns about suspect workers, so that operators do not learn of them from rejected claims.
fn warn_suspects(recovered: &[RecoveredShard]) {
    let mut suspects: BTreeMap<&PoolName, u64> = BTreeMap::new();
    for recovered in recovered {
        let suspect = recovered.shard.as_ref().map_or(0, |shard| shard.unschedulable().by_reason.suspect);
        *suspects.entry(&recovered.pool.name).or_default() += suspect;
    }
    for (pool, workers) in suspects.into_iter().filter(|&(_, workers)| workers > 0) {
        tracing::warn!(%pool, workers, "suspect workers get no claims until they are confirmed or cleared");
    }
}

/// Opens the adoption window if claims may have been lost, and counts the workers that may report one.
fn open_adoption(dispatch: &ClaimDispatcher, recovered: &[RecoveredShard]) {
    let shards = || recovered.iter().filter_map(|recovered| Some((&recovered.handle, recovered.shard.as_ref().ok()?)));
    let now_ms = dispatch.clock.engine_ms();
    for (handle, shard) in shards() {
        handle.set_unreconciled(shard.unverified());
    }
    if let Some(reserve_ms) = shards().filter_map(|(_, shard)| shard.may_have_lost()).max() {
        dispatch.keys.adoption.open(now_ms, now_ms + reserve_ms);
    }
}

async fn open(dispatch: Arc<ClaimDispatcher>, recovered: RecoveredShard, supervisor: ActorCell) {
    let RecoveredShard { pool, handle, shard, relinquished } = recovered;
    match shard {
        Ok(mut shard) => {
            // The ends are stored in the shard's first write batch, all at once.
            let ended = relinquish_claims(&mut shard, relinquished.into_iter(), dispatch.clock.engine_ms());
            for (seq, id) in &ended {
                dispatch.keys.add_pending_write(id, PendingWrite { shard: handle.shard, seq: *seq });
            }
            let services = Arc::clone(&dispatch.services);
            let spawn = SpawnArgs {
                sink: dispatch,
                services,
                pool,
                handle: Arc::clone(&handle),
                shard,
                pending_ends: ended.into(),
            };
            let started = shard::start_shard(spawn, supervisor);
            if let Err(error) = started.await {
                handle.set_state(ShardState::Refused, Some(format!("the actor did not start: {error}")));
                handle.reject_all();
            }
        }
        Err((error, _)) => {
            crate::reached!("recovery: a shard is refused");
            let reason = format!("shard {} of {} does not serve: {error}", handle.shard.shard, pool.name);
            tracing::error!("{reason}");
            handle.set_state(ShardState::Refused, Some(reason));
            handle.reject_all();
        }
    }
}

/// Claims that the directory must know of a shard that is about to serve.
fn held_keys(shard: &Shard) -> impl Iterator<Item = (ClaimId, HeldKey)> {
    shard.list_claims().map(|(_, id, grant)| (id, (grant.handle, grant.spec)))
}

/// Handle of a held claim, and the part of its request that is kept.
type HeldKey = (ClaimHandle, Option<Arc<ClaimSpec>>);

/// Ends claims whose keys are held elsewhere, before the shard serves. Returns the keys, each with the sequence number
/// of its record.
fn relinquish_claims(
    shard: &mut Shard,
    handles: impl Iterator<Item = ClaimHandle>,
    now_ms: Millis,
) -> Vec<(Seq, ClaimId)> {
    let mut effects: Vec<Effect> = Vec::new();
    let mut ended = Vec::new();
    for handle in handles {
        shard.handle_event(Event::Relinquish { handle }, now_ms, &mut effects);
        for effect in effects.drain(..) {
            if let Effect::ClaimEnded { id, .. } = effect {
                ended.push((shard.seq(), id));
            }
        }
    }
    ended
}
