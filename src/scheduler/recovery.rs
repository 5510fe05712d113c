//! Rows become shards again, before any ring opens: at start, and after a panic.
//!
//! At start: take the store over under a fresh epoch ([`own`]), read the catalogue, read all shards in one pass, replay and
//! check each, rebuild the key directory, raise the ceiling of fences, open. A shard that cannot be read or
//! violates an invariant is refused by name; the others serve. A key that two shards hold (freed here but not
//! stored, claimed there and stored) stays with the higher fence and is given back by the other.

use parking_lot::Mutex;
use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};
use std::sync::Arc;

use futures::StreamExt as _;
use futures::future::{BoxFuture, FutureExt as _};
use ractor::ActorCell;

use crate::admission::dispatch::{ClaimDispatcher, InDoubtGang, InDoubtMember};
use crate::admission::key_directory::{KeyHolder, PendingWrite, ShardRef};
use crate::admission::pool_registry::Pool;
use crate::engine::{ClaimHandle, Effect, Event, GangAction, ResumePoint, Shard, ShardConfig, ShardReplay};
use crate::metrics::{PoolMetrics, ShardState};
use crate::model::GangRef;
use crate::model::{ClaimId, ClaimSpec, Fence, HASH_VERSION, Millis, PoolName, PoolSpec, Quota, Seq};
use crate::persist::catalog::{self, PoolCatalog};
use crate::persist::journal::Outbox;
use crate::persist::row::{self, PoolRow, RowFrames, RowKind};
use crate::persist::store::{FenceSpan, ShardKey, StoreError};
use crate::scheduler::ownership;
use crate::shard::{self, ShardHandle};

/// Shards that are started at the same time.
const CONCURRENT_STARTS: usize = 64;

/// A pool with handles that refuse until their shards are started.
#[must_use]
pub fn make_pool(dispatch: &Arc<ClaimDispatcher>, uid: u64, version: u64, name: PoolName, spec: PoolSpec) -> Arc<Pool> {
    let number = dispatch.pools.next_number();
    let metrics = Arc::new(PoolMetrics::new(&name));
    let ports = (0..spec.shards)
        .map(|shard| {
            let outbox = Outbox::new(&dispatch.journal, ShardKey { pool: uid, shard }, 0);
            ShardHandle::new(ShardRef { pool: number, shard }, outbox, Arc::clone(&metrics), dispatch)
        })
        .collect();
    Arc::new(Pool::new(number, uid, version, name, spec, ports, metrics))
}

/// Raises the ceiling of fences in the store if it is near. The first time the store also learns where this owner's fences
/// begin: from then on what was lost before the last owner is lost for good.
///
/// # Errors
/// Those of the store.
pub async fn raise_fence_ceiling(dispatch: &ClaimDispatcher) -> Result<(), StoreError> {
    if let Some(ceiling) = dispatch.fences.next_ceiling(dispatch.clock.unix_us()) {
        let floor = dispatch.fences.floor();
        dispatch.journal.store().raise_fence_ceiling(FenceSpan { floor, ceiling }).await?;
        dispatch.fences.set_ceiling(ceiling);
    }
    Ok(())
}

/// Becomes the owner of the store: waits while it is away or somebody else's.
///
/// # Errors
/// It cannot be taken over.
pub async fn acquire_ownership(dispatch: &ClaimDispatcher) -> Result<(), StoreError> {
    let attempt = || {
        async {
            let ownership = ownership::take_over(dispatch).await?;
            dispatch.fences.start(ownership.fence_ceiling, ownership.fence_floor);
            Ok(())
        }
        .boxed()
    };
    ownership::retry_until_ready(dispatch, attempt).await
}

/// Reads as the owner; takes the store over once more if its epoch turns out to have been given out before.
async fn read<'a, T>(
    dispatch: &ClaimDispatcher,
    mut attempt: impl FnMut() -> BoxFuture<'a, Result<T, StoreError>> + Send,
) -> Result<T, StoreError> {
    loop {
        match ownership::retry_until_ready(dispatch, &mut attempt).await {
            Err(StoreError::Superseded(why)) => {
                tracing::warn!("{why}");
                acquire_ownership(dispatch).await?;
            }
            done => return done,
        }
    }
}

/// Result of a recovery.
pub struct RecoveredState {
    /// Catalogue of pools and quotas.
    pub catalogue: Arc<PoolCatalog>,
    /// Pools that were being deleted.
    pub deleting: Vec<Arc<Pool>>,
    /// Committed gangs, to be forgotten when the store has their members.
    pub gangs: Vec<(ShardRef, Fence)>,
}

/// Reads everything from the store, which is ours, and starts the shards.
///
/// # Errors
/// The store cannot be read at all, or the catalogue is damaged.
pub async fn recover(dispatch: &Arc<ClaimDispatcher>, supervisor: &ActorCell) -> Result<RecoveredState, StoreError> {
    let (at, rows) = read(dispatch, || read_catalogue(dispatch).boxed()).await?;
    let mut pools = Vec::new();
    let mut deleting = Vec::new();
    for row in rows.quotas.values() {
        let quota: Quota = serde_json::from_str(&row.quota_json)
            .map_err(|e| StoreError::Unusable(format!("the catalogue's quota of {}: {e}", row.name)))?;
        dispatch.keys.tenants.set_quota(&row.name, Some(quota));
    }
    for row in rows.pools.values() {
        let (name, spec) = parse_pool_row(row).map_err(StoreError::Unusable)?;
        let pool = make_pool(dispatch, row.uid, row.version(), name, spec);
        dispatch.pools.insert(&pool);
        if row.deleting {
            deleting.push(pool);
        } else {
            pools.push(pool);
        }
    }
    warn_total_shards(dispatch);
    // By name from now on: an id is that of a row only.
    let quotas = rows.quotas.into_values().map(|row| (row.name.clone(), row)).collect();
    let catalogue = PoolCatalog::new(&dispatch.journal, at, catalog::CatalogRows { quotas, ..rows });
    let shards = pools.iter().flat_map(|pool| pool.shards.iter().map(|port| (Arc::clone(pool), Arc::clone(port))));
    let shards: Vec<_> = shards.collect();
    let mut found = read(dispatch, || load(dispatch, shards.clone()).boxed()).await?;
    let gangs = resolve_gangs(dispatch, &mut found);
    reconcile_keys(dispatch, &mut found);
    warn_suspects(&found);
    open_adoption(dispatch, &found);
    // As late as can be: whoever dies before this has granted nothing, and leaves what was lost before it to be adopted.
    ownership::retry_until_ready(dispatch, || raise_fence_ceiling(dispatch).boxed()).await?;
    futures::stream::iter(found)
        .for_each_concurrent(CONCURRENT_STARTS, |found| open(Arc::clone(dispatch), found, supervisor.clone()))
        .await;
    Ok(RecoveredState { catalogue, deleting, gangs })
}

/// A shard that panicked, from its journal's tail over the store. Until it serves its port refuses.
pub async fn restart_shard(
    dispatch: Arc<ClaimDispatcher>,
    pool: Arc<Pool>,
    port: Arc<ShardHandle>,
    supervisor: ActorCell,
) {
    // The tail: what was handed over before the panic is as good as stored, it only has to arrive.
    if !port.outbox.wait_drained().await {
        if port.outbox.is_unrecoverable() {
            let why = "it panicked when the store lacked part of it, which it alone knew";
            port.set_state(
                ShardState::Refused,
                Some(format!("shard {} of {} does not serve: {why}", port.shard.shard, pool.name)),
            );
            port.reject_all();
        }
        return;
    }
    let mut found = loop {
        match load(&dispatch, vec![(Arc::clone(&pool), Arc::clone(&port))]).await {
            Ok(found) => break found,
            Err(error) => {
                let why =
                    format!("shard {} of {} panicked and cannot be read yet: {error}", port.shard.shard, pool.name);
                tracing::warn!("{why}");
                port.set_state(ShardState::Loading, Some(why));
                tokio::time::sleep(std::time::Duration::from_secs(1)).await;
            }
        }
        if port.state() == ShardState::Stopped {
            return;
        }
    };
    reconcile_keys(&dispatch, &mut found);
    if dispatch.pools.load().by_number(pool.number).is_none() {
        // The pool was deleted meanwhile, and what it held is entered again.
        dispatch.keys.forget_pool(pool.number);
        return;
    }
    // What the run that panicked had to tell is lost.
    pool.event_log.reset(dispatch.clock.unix_us());
    for found in found {
        open(Arc::clone(&dispatch), found, supervisor.clone()).await;
    }
}

/// Starts the empty shards of a new pool.
pub async fn open_pool_shards(dispatch: &Arc<ClaimDispatcher>, pool: &Arc<Pool>, supervisor: &ActorCell) {
    let rules = ShardConfig::from(&**pool.spec.load());
    for port in &pool.shards {
        let shard = Ok(Shard::new(rules.clone(), dispatch.clock.engine_ms()));
        let found = RecoveredShard { pool: Arc::clone(pool), port: Arc::clone(port), shard, relinquished: Vec::new() };
        open(Arc::clone(dispatch), found, supervisor.clone()).await;
    }
}

struct RecoveredShard {
    pool: Arc<Pool>,
    port: Arc<ShardHandle>,
    /// Or why it must not serve, and what could be read of it.
    shard: Result<Shard, (String, Box<Shard>)>,
    /// Claims whose keys are held elsewhere.
    relinquished: Vec<ClaimHandle>,
}

fn parse_pool_row(row: &PoolRow) -> Result<(PoolName, PoolSpec), String> {
    let name = PoolName::parse(&row.name).map_err(|e| format!("the catalogue names a pool {:?}: {e}", row.name))?;
    if row.hash_version != HASH_VERSION {
        return Err(format!(
            "pool {name} uses version {} of the worker hash, this build {HASH_VERSION}",
            row.hash_version
        ));
    }
    let spec: PoolSpec =
        serde_json::from_str(&row.spec_json).map_err(|e| format!("the catalogue's row of {name}: {e}"))?;
    let spec = spec.with_defaults().map_err(|e| format!("the catalogue's row of {name}: {e}"))?;
    Ok((name, spec))
}

async fn read_catalogue(dispatch: &ClaimDispatcher) -> Result<(u64, catalog::CatalogRows), StoreError> {
    /// The rows, and the first thing that was wrong with one.
    type Read = (catalog::CatalogRows, Option<String>);
    let read: Arc<Mutex<Read>> = Arc::default();
    let into = Arc::clone(&read);
    let sink = move |_: ShardKey, frames: &[u8]| {
        let mut read = into.lock();
        for frame in RowFrames::new(frames) {
            if let Err(wrong) = take_row(&mut read.0, frame) {
                read.1.get_or_insert(wrong);
            }
        }
    };
    let loaded = dispatch.journal.store().load(vec![ShardKey::CATALOG], Box::new(sink)).await?;
    let (rows, wrong) = std::mem::take(&mut *read.lock());
    let at = loaded.into_iter().next().map_or(Ok(0), |loaded| loaded.at);
    match (at, wrong) {
        (Ok(at), None) => Ok((at, rows)),
        (Err(wrong), _) | (_, Some(wrong)) => Err(StoreError::Unusable(format!("the catalogue is damaged: {wrong}"))),
    }
}

fn take_row(rows: &mut catalog::CatalogRows, frame: Result<row::RowFrame<'_>, row::RowError>) -> Result<(), String> {
    let frame = frame.map_err(|e| e.to_string())?;
    match (frame.kind, frame.body) {
        (RowKind::Pool, body) => {
            let uid: u64 = frame.id.parse().map_err(|_| format!("a pool's row has the id {:?}", frame.id))?;
            match body {
                Some(body) => {
                    drop(rows.pools.insert(uid, row::decode_pool(frame.id, body).map_err(|e| e.to_string())?))
                }
                None => drop(rows.pools.remove(&uid)),
            }
        }
        (RowKind::Quota, Some(body)) => {
            rows.quotas.insert(frame.id.to_owned(), row::decode_quota(frame.id, body).map_err(|e| e.to_string())?);
        }
        (RowKind::Quota, None) => drop(rows.quotas.remove(frame.id)),
        (RowKind::Worker | RowKind::Shard | RowKind::Gang, _) => {
            return Err(format!("a shard's row {:?} in the catalogue", frame.id));
        }
    }
    Ok(())
}

async fn load(
    dispatch: &Arc<ClaimDispatcher>,
    shards: Vec<(Arc<Pool>, Arc<ShardHandle>)>,
) -> Result<Vec<RecoveredShard>, StoreError> {
    let now_ms = dispatch.clock.engine_ms();
    let replays: HashMap<ShardKey, ShardReplay> = shards
        .iter()
        .map(|(pool, port)| (port.outbox.key(), ShardReplay::new(&**pool.spec.load(), pool.name.namespace(), now_ms)))
        .collect();
    let replays = Arc::new(Mutex::new(replays));
    let into = Arc::clone(&replays);
    let sink = move |key: ShardKey, frames: &[u8]| {
        if let Some(replay) = into.lock().get_mut(&key) {
            replay.rows(frames);
        }
    };
    let keys = shards.iter().map(|(_, port)| port.outbox.key()).collect();
    let loaded = dispatch.journal.store().load(keys, Box::new(sink)).await?;
    let mut loaded: HashMap<ShardKey, Result<u64, String>> =
        loaded.into_iter().map(|loaded| (loaded.shard, loaded.at)).collect();
    let mut replays = std::mem::take(&mut *replays.lock());
    let found = shards.into_iter().map(|(pool, port)| {
        let key = port.outbox.key();
        let at = loaded.remove(&key).unwrap_or(Ok(0));
        let replay = replays.remove(&key).unwrap_or_else(|| ShardReplay::new(&**pool.spec.load(), "", now_ms));
        let seq = *at.as_ref().unwrap_or(&u64::MAX);
        let resume = ResumePoint {
            seq,
            now_ms,
            unix_ms: dispatch.clock.unix_ms(),
            fence_floor: dispatch.fences.floor(),
            previous_fence_floor: dispatch.fences.previous_floor(),
            restarted: port.restarts() > 0,
        };
        let shard = match (at, replay.finish(resume)) {
            (Ok(at), Ok(mut shard)) => {
                port.outbox.restart(at);
                let untold = port.take_undisclosed();
                if !untold.is_empty() {
                    shard.restore_undisclosed(|fence| untold.contains(&fence));
                }
                Ok(shard)
            }
            (Err(wrong), Ok(shard)) => Err((wrong, Box::new(shard))),
            (Err(wrong), Err((_, shard))) | (Ok(_), Err((wrong, shard))) => Err((wrong, shard)),
        };
        RecoveredShard { pool, port, shard, relinquished: Vec::new() }
    });
    Ok(found.collect())
}

/// Decides what a crash left undecided: provisional claims whose gang's home has its row are claims like any other, the
/// rest is given back. Whose home cannot be read stays as it is, and its key is unreadable. Returns the gangs whose rows
/// may go when the store has their members: none, if some member may not have been seen.
fn resolve_gangs(dispatch: &ClaimDispatcher, found: &mut [RecoveredShard]) -> Vec<(ShardRef, Fence)> {
    let mut rows: Vec<(ShardRef, Fence)> = Vec::new();
    let mut homes: HashMap<ShardKey, HashSet<Fence>> = HashMap::new();
    for found in &*found {
        if let Ok(shard) = &found.shard {
            let committed: HashSet<Fence> = shard.committed_gangs().collect();
            rows.extend(committed.iter().map(|&id| (found.port.shard, id)));
            homes.insert(found.port.outbox.key(), committed);
        }
    }
    let unread: HashSet<ShardKey> =
        found.iter().filter(|found| found.shard.is_err()).map(|found| found.port.outbox.key()).collect();
    let now_ms = dispatch.clock.engine_ms();
    let mut in_doubt: BTreeMap<Fence, InDoubtGang> = BTreeMap::new();
    for found in found.iter_mut() {
        let own = found.port.shard;
        let Ok(shard) = &mut found.shard else { continue };
        let members: Vec<(GangRef, ClaimId, ClaimHandle)> =
            shard.provisional().map(|(gang, id, place)| (gang, id.clone(), place)).collect();
        for (gang, id, place) in members {
            let home = ShardKey { pool: gang.pool, shard: gang.shard };
            if homes.get(&home).is_some_and(|committed| committed.contains(&gang.id)) {
                // Of a gang with several members here the first brings all.
                shard.handle_event(
                    Event::Gang { id: gang.id, action: GangAction::Commit, to: () },
                    now_ms,
                    &mut Vec::new(),
                );
            } else if unread.contains(&home) {
                let spec = shard.grant(place).and_then(|grant| grant.spec);
                dispatch.keys.recover_unreadable(id.clone(), own, place.fence, spec);
                let member = InDoubtMember { id, ticket: None, shard: own, fence: place.fence };
                let doubtful = in_doubt.entry(gang.id).or_insert(InDoubtGang { home: gang, members: Vec::new() });
                doubtful.members.push(member);
            } else {
                found.relinquished.push(place);
            }
        }
    }
    dispatch.gangs_in_doubt().extend(in_doubt.into_values());
    if unread.is_empty() { rows } else { Vec::new() }
}

/// Enters what the shards hold into the directory; of two holders of a key the lower fence yields.
fn reconcile_keys(dispatch: &ClaimDispatcher, found: &mut [RecoveredShard]) {
    let mut losers: Vec<KeyHolder> = Vec::new();
    for found in &*found {
        let own = found.port.shard;
        match &found.shard {
            Ok(shard) => {
                let mut held: HashMap<ClaimId, Kept> = held_keys(shard).collect();
                if found.port.restarts() > 0 {
                    // A gang's member may be committed in the directory and not in the rows: then it stays, and whoever
                    // commits does it again.
                    let members: HashMap<ClaimId, Kept> = shard
                        .provisional()
                        .map(|(_, id, place)| (id.clone(), (place, shard.grant(place).and_then(|grant| grant.spec))))
                        .collect();
                    held.extend(members.clone());
                    dispatch.keys.rebind_shard(|shard| shard == own, Some(&mut held));
                    held.retain(|id, _| !members.contains_key(id));
                }
                let enter =
                    |(id, (place, spec))| dispatch.keys.recover(id, KeyHolder { shard: own, handle: place }, spec);
                losers.extend(held.into_iter().filter_map(enter));
            }
            Err((_, readable)) => {
                if found.port.restarts() > 0 {
                    dispatch.keys.rebind_shard(|shard| shard == own, None);
                }
                let enter =
                    |(id, (place, spec)): (ClaimId, Kept)| dispatch.keys.recover_unreadable(id, own, place.fence, spec);
                losers.extend(held_keys(readable).filter_map(enter));
            }
        }
    }
    for loser in losers {
        // A loser among shards that serve already (a revival) keeps its claim: it is not in `found`, and cannot be,
        // because a serving shard's entry has the higher fence or is pending.
        if let Some(found) = found.iter_mut().find(|found| found.port.shard == loser.shard) {
            found.relinquished.push(loser.handle);
        }
    }
}

/// A bound that was lowered takes no pool away: what is there is served, and new pools are refused.
fn warn_total_shards(dispatch: &ClaimDispatcher) {
    let (there, most) = (dispatch.pools.load().total_shards(), dispatch.settings.shards_max);
    if there > most {
        tracing::warn!(
            shards = there,
            "the store has pools of more shards than server.max_shards ({most}): no more are made"
        );
    }
}

/// Operators should not have to find out by claims that are refused.
fn warn_suspects(found: &[RecoveredShard]) {
    let mut suspects: BTreeMap<&PoolName, u64> = BTreeMap::new();
    for found in found {
        let suspect = found.shard.as_ref().map_or(0, |shard| shard.unschedulable().by_reason.suspect);
        *suspects.entry(&found.pool.name).or_default() += suspect;
    }
    for (pool, workers) in suspects.into_iter().filter(|&(_, workers)| workers > 0) {
        tracing::warn!(%pool, workers, "suspect workers: not offered until something has spoken for them");
    }
}

/// Lost claims are adopted if there can be any. Workers that may name one are counted from now on.
fn open_adoption(dispatch: &ClaimDispatcher, found: &[RecoveredShard]) {
    let shards = || found.iter().filter_map(|found| Some((&found.port, found.shard.as_ref().ok()?)));
    let now_ms = dispatch.clock.engine_ms();
    for (port, shard) in shards() {
        port.set_unreconciled(shard.unverified());
    }
    if let Some(reserve_ms) = shards().filter_map(|(_, shard)| shard.may_have_lost()).max() {
        dispatch.keys.adoption.open(now_ms, now_ms + reserve_ms);
    }
}

async fn open(dispatch: Arc<ClaimDispatcher>, found: RecoveredShard, supervisor: ActorCell) {
    let RecoveredShard { pool, port, shard, relinquished: yields } = found;
    match shard {
        Ok(mut shard) => {
            // These go to the store in the shard's first step, all at once. So whoever still waits for a record that a
            // panic undid (which was above what had been handed over) waits at least until these are stored.
            let gone = relinquish_claims(&mut shard, yields.into_iter(), dispatch.clock.engine_ms());
            for (seq, id) in &gone {
                dispatch.keys.add_pending_write(id, PendingWrite { shard: port.shard, seq: *seq });
            }
            let started = shard::start_shard(Arc::clone(&dispatch), pool, Arc::clone(&port), shard, gone, supervisor);
            if let Err(error) = started.await {
                port.set_state(ShardState::Refused, Some(format!("its actor did not start: {error}")));
                port.reject_all();
            }
        }
        Err((wrong, _)) => {
            let reason = format!("shard {} of {} does not serve: {wrong}", port.shard.shard, pool.name);
            tracing::error!("{reason}");
            port.set_state(ShardState::Refused, Some(reason));
            port.reject_all();
        }
    }
}

/// What the directory must know of a shard that is about to serve.
fn held_keys(shard: &Shard) -> impl Iterator<Item = (ClaimId, Kept)> {
    shard.list_claims().map(|(_, id, grant)| (id, (grant.handle, grant.spec)))
}

/// A held claim, and what it keeps of its request.
type Kept = (ClaimHandle, Option<Arc<ClaimSpec>>);

/// Ends claims whose keys are held elsewhere, before the shard serves. Returns the keys, each with its record.
fn relinquish_claims(
    shard: &mut Shard,
    places: impl Iterator<Item = ClaimHandle>,
    now_ms: Millis,
) -> VecDeque<(Seq, ClaimId)> {
    let mut effects: Vec<Effect<()>> = Vec::new();
    let mut gone = VecDeque::new();
    for place in places {
        shard.handle_event(Event::Relinquish { place }, now_ms, &mut effects);
        for effect in effects.drain(..) {
            if let Effect::ClaimEnded { id, .. } = effect {
                gone.push_back((shard.seq(), id));
            }
        }
    }
    gone
}
