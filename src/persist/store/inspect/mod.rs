//! What a store holds, for people: read without taking it over. Every kind of row has its arm in a match without a rest, and
//! every field of a row is taken apart by name ([`rows`]): what is written and not shown does not compile.

mod rows;

use parking_lot::Mutex;
use std::collections::BTreeMap;
use std::sync::Arc;

use serde::Serialize;

use super::{LoadedShard, ShardKey, Store, StoreError};
use crate::model::PoolSpec;
use crate::persist::row::{self, PoolRow, QuotaRow, RowError, RowFrames, RowKind, ShardRow};

pub use self::rows::{ClaimContents, GangContents, WorkerContents};

/// Contents of a store, as far as they were asked for.
#[derive(Debug, Serialize)]
pub struct StoreContents {
    /// Properties of the store by name: its kind, who owns it, and which fences were given out.
    pub about: BTreeMap<String, String>,
    /// Pools, ordered by name.
    pub pools: Vec<PoolContents>,
    /// Quotas, ordered by name; none where only one pool was asked for.
    pub quotas: Vec<QuotaContents>,
}

/// Pool as the catalogue has it.
#[derive(Debug, Serialize)]
pub struct PoolContents {
    /// Name of the pool, `ns/pool`.
    pub name: String,
    /// Uid of the pool, part of the keys of its shards.
    pub uid: u64,
    /// Version of the specification.
    pub version: u64,
    /// Whether the pool is being deleted.
    pub deleting: bool,
    /// Version of the hash that gives workers their shards.
    pub hash_version: u32,
    /// Specification, as it is stored.
    pub spec: serde_json::Value,
    /// Shards, ordered by index.
    pub shards: Vec<ShardContents>,
}

/// Quota as the catalogue has it.
#[derive(Debug, Serialize)]
pub struct QuotaContents {
    /// Name of the quota: `namespace/tenant`, or `namespace` for its tenants without their own.
    pub name: String,
    /// Bounds of the quota, as they are stored.
    pub quota: serde_json::Value,
}

/// Shard as its rows have it.
#[derive(Debug, Default, Serialize)]
pub struct ShardContents {
    /// Index of the shard in its pool.
    pub shard: u16,
    /// Sequence number of the state that was read; none: the shard cannot be read.
    pub seq: Option<u64>,
    /// Reason for which the shard, or a row of it, cannot be read.
    pub error: Option<String>,
    /// Number of workers, without those that are deleted.
    pub workers: u64,
    /// Number of claims that are held.
    pub held: u64,
    /// Highest fence that the shard granted.
    pub fence_max: u64,
    /// Whether the shard acknowledges claims from memory.
    pub memory: bool,
    /// Time for which a claim that was lost may still be started, in milliseconds.
    pub reserve_ms: u64,
    /// Number of stops so far that may have lost claims.
    pub unclean: u64,
    /// Numbers of committed gangs whose members may still be provisional.
    pub gangs: Vec<u64>,
    /// Workers of the shard, if they were asked for.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub rows: Vec<WorkerContents>,
}

/// Reads a store. With `rows`: every worker of the pools whose name is `pool`, or of all.
///
/// # Errors
/// The store cannot be read, or its catalogue is damaged.
pub async fn inspect(store: &dyn Store, pool: Option<&str>, rows: bool) -> Result<StoreContents, StoreError> {
    let mut about = store.properties().await?;
    about.insert("kind".to_owned(), store.kind().to_owned());
    let StoredCatalog { pools: pool_rows, quotas } = catalogue(store).await?;
    let mut pools = Vec::new();
    for row in pool_rows.into_iter().filter(|row| pool.is_none_or(|pool| pool == row.name)) {
        let version = row.version();
        let PoolRow { uid, spec_json, hash_version, deleting, name, version: _ } = row;
        let wrong = |error| StoreError::Unusable(format!("the catalogue's row of {name}: {error}"));
        let PoolSpec { shards, .. } = serde_json::from_str(&spec_json).map_err(wrong)?;
        let spec = serde_json::from_str(&spec_json).map_err(wrong)?;
        let shards = self::shards(store, uid, shards, rows).await?;
        pools.push(PoolContents { name, uid, version, deleting, hash_version, spec, shards });
    }
    pools.sort_by(|a, b| a.name.cmp(&b.name));
    let quotas = quotas.into_iter().filter(|_| pool.is_none()).map(|QuotaRow { name, quota_json }| {
        let wrong = |error| StoreError::Unusable(format!("the catalogue's quota of {name}: {error}"));
        let quota = serde_json::from_str(&quota_json).map_err(wrong)?;
        Ok(QuotaContents { name, quota })
    });
    let mut quotas = quotas.collect::<Result<Vec<_>, StoreError>>()?;
    quotas.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(StoreContents { about, pools, quotas })
}

/// Bodies of the rows that are there, in the order of their keys, and the first frame of each shard that could not be read.
#[derive(Default)]
struct LatestRows {
    bodies: BTreeMap<(ShardKey, RowKind, String), Vec<u8>>,
    errors: BTreeMap<ShardKey, String>,
}

/// Reads shards to their last state.
async fn read(store: &dyn Store, keys: Vec<ShardKey>) -> Result<(Vec<LoadedShard>, LatestRows), StoreError> {
    let read: Arc<Mutex<LatestRows>> = Arc::default();
    let into = Arc::clone(&read);
    let sink = move |key: ShardKey, frames: &[u8]| {
        let mut into = into.lock();
        for frame in RowFrames::new(frames) {
            match frame {
                Ok(frame) => {
                    let name = (key, frame.kind, frame.id.to_owned());
                    match frame.body {
                        Some(body) => drop(into.bodies.insert(name, body.to_vec())),
                        None => drop(into.bodies.remove(&name)),
                    }
                }
                Err(error) => drop(into.errors.entry(key).or_insert_with(|| error.to_string())),
            }
        }
    };
    let loaded = store.load(keys, Box::new(sink)).await?;
    let found = std::mem::take(&mut *read.lock());
    Ok((loaded, found))
}

#[derive(Default)]
struct StoredCatalog {
    pools: Vec<PoolRow>,
    quotas: Vec<QuotaRow>,
}

async fn catalogue(store: &dyn Store) -> Result<StoredCatalog, StoreError> {
    let damaged = |why: String| StoreError::Unusable(format!("the catalogue is damaged: {why}"));
    let (loaded, found) = read(store, vec![ShardKey::CATALOG]).await?;
    for loaded in loaded {
        loaded.at.map_err(damaged)?;
    }
    if let Some(wrong) = found.errors.into_values().next() {
        return Err(damaged(wrong));
    }
    let mut catalogue = StoredCatalog::default();
    for ((_, kind, id), body) in found.bodies {
        let taken = match kind {
            RowKind::Pool => row::decode_pool(&id, &body).map(|row| catalogue.pools.push(row)),
            RowKind::Quota => row::decode_quota(&id, &body).map(|row| catalogue.quotas.push(row)),
            RowKind::Worker | RowKind::Shard | RowKind::Gang => {
                return Err(damaged(format!("a shard's row {id:?} in the catalogue")));
            }
        };
        taken.map_err(|error| damaged(error.to_string()))?;
    }
    Ok(catalogue)
}

async fn shards(store: &dyn Store, uid: u64, shards: u16, rows: bool) -> Result<Vec<ShardContents>, StoreError> {
    let keys = (0..shards).map(|shard| ShardKey { pool: uid, shard }).collect();
    let (loaded, mut found) = read(store, keys).await?;
    let mut contents: Vec<ShardContents> = loaded
        .into_iter()
        .map(|LoadedShard { shard, at }| {
            let wrong = found.errors.remove(&shard);
            let (seq, error) = match at {
                Ok(seq) => (Some(seq), wrong),
                Err(error) => (None, Some(error)),
            };
            ShardContents { shard: shard.shard, seq, error, ..ShardContents::default() }
        })
        .collect();
    // The shard's own row first: it says which of its workers nothing has spoken for.
    let (heads, others): (Vec<_>, Vec<_>) =
        found.bodies.into_iter().partition(|((_, kind, _), _)| *kind == RowKind::Shard);
    for ((key, kind, id), body) in heads.into_iter().chain(others) {
        let Some(shard) = contents.iter_mut().find(|shard| shard.shard == key.shard) else { continue };
        if let Err(error) = shard.add(kind, &id, &body, rows) {
            shard.error.get_or_insert(error);
        }
    }
    Ok(contents)
}

impl ShardContents {
    fn add(&mut self, kind: RowKind, id: &str, body: &[u8], rows: bool) -> Result<(), String> {
        let wrong = |error: RowError| error.to_string();
        match kind {
            RowKind::Worker => {
                let worker = WorkerContents::of_row(id, row::decode_worker(id, body).map_err(wrong)?, self.unclean)?;
                self.workers += u64::from(!worker.deleted);
                self.held += worker.held.len() as u64;
                if rows {
                    self.rows.push(worker);
                }
            }
            RowKind::Shard => {
                let ShardRow { fence_max, memory_acks: memory, reserve_ms, unclean_stops: unclean } =
                    row::decode_shard(body).map_err(wrong)?;
                (self.fence_max, self.memory, self.reserve_ms, self.unclean) = (fence_max, memory, reserve_ms, unclean);
            }
            RowKind::Gang => self.gangs.push(id.parse().map_err(|_| format!("a gang's row has the id {id:?}"))?),
            RowKind::Pool | RowKind::Quota => {
                return Err(format!("a row of the catalogue, {id:?}, among those of a shard"));
            }
        }
        Ok(())
    }
}
