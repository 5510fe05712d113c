//! Contents of a store for people, read without taking it over. Every kind of row has an arm in an exhaustive match, and every
//! field of a row is destructured by name ([`rows`]): a field that is written and not shown does not compile.

mod rows;

use parking_lot::Mutex;
use std::collections::BTreeMap;
use std::error::Error;
use std::sync::Arc;

use serde::Serialize;

use super::{LoadedShard, ShardKey, Store, StoreError};
use crate::model::PoolSpec;
use crate::persist::row::{self, PoolRow, QuotaRow, RowError, RowFrames, RowKind, ShardRow};

pub use self::rows::{ClaimContents, GangContents, WorkerContents};

/// Contents of a store, as far as they were requested.
#[derive(Debug, Serialize)]
pub struct StoreContents {
    /// Properties of the store by name: its kind, who owns it, and which fences were granted.
    pub about: BTreeMap<String, String>,
    /// Pools, ordered by name.
    pub pools: Vec<PoolContents>,
    /// Quotas, ordered by name; empty where only one pool was requested.
    pub quotas: Vec<QuotaContents>,
}

/// Pool, as stored in the catalog.
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
    /// Version of the hash that maps workers to shards.
    pub hash_version: u32,
    /// Specification of the pool, as stored.
    pub spec: serde_json::Value,
    /// Shards, ordered by index.
    pub shards: Vec<ShardContents>,
}

/// Quota, as stored in the catalog.
#[derive(Debug, Serialize)]
pub struct QuotaContents {
    /// Name of the quota: `namespace/tenant`, or `namespace` for its tenants without their own.
    pub name: String,
    /// Limits of the quota, as stored.
    pub quota: serde_json::Value,
}

/// Shard, as its rows describe it.
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
    /// Number of claims of the workers.
    pub held: u64,
    /// Highest fence that the shard granted.
    pub fence_max: u64,
    /// Whether the shard acknowledges claims from memory.
    pub memory: bool,
    /// Time for which a lost claim may still be started, in milliseconds.
    pub reserve_ms: u64,
    /// Number of stops so far that may have lost claims.
    pub unclean: u64,
    /// Numbers of committed gangs whose members may still be provisional.
    pub gangs: Vec<u64>,
    /// Workers of the shard, if they were requested.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub rows: Vec<WorkerContents>,
}

/// Amount of detail in [`StoreContents`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RowDetail {
    /// Counts of each shard, without its workers.
    Summary,
    /// Every worker of each shard.
    Workers,
}

/// Reads a store: the pool whose name is `pool`, or all.
///
/// # Errors
/// The store cannot be read, or its catalog is damaged.
pub async fn inspect(store: &dyn Store, pool: Option<&str>, detail: RowDetail) -> Result<StoreContents, StoreError> {
    let mut about = store.properties().await?;
    about.insert("kind".to_owned(), store.kind().to_owned());
    let StoredCatalog { pools: pool_rows, quotas } = read_catalog(store).await?;
    let mut pools = Vec::new();
    for row in pool_rows.into_iter().filter(|row| pool.is_none_or(|pool| pool == row.name)) {
        let version = row.version();
        let PoolRow { uid, spec_json, hash_version, deleting, name, version: _ } = row;
        let damaged =
            |error| StoreError::Unusable(format!("the row of the pool {name} in the catalog is damaged: {error}"));
        let PoolSpec { shards, .. } = serde_json::from_str(&spec_json).map_err(damaged)?;
        let spec = serde_json::from_str(&spec_json).map_err(damaged)?;
        let shards = read_shards(store, uid, shards, detail).await?;
        pools.push(PoolContents { name, uid, version, deleting, hash_version, spec, shards });
    }
    pools.sort_by(|a, b| a.name.cmp(&b.name));
    let quotas = quotas.into_iter().filter(|_| pool.is_none()).map(|QuotaRow { name, quota_json }| {
        let damaged =
            |error| StoreError::Unusable(format!("the row of the quota {name} in the catalog is damaged: {error}"));
        let quota = serde_json::from_str(&quota_json).map_err(damaged)?;
        Ok(QuotaContents { name, quota })
    });
    let mut quotas = quotas.collect::<Result<Vec<_>, StoreError>>()?;
    quotas.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(StoreContents { about, pools, quotas })
}

/// Last bodies of the rows, in the order of their keys, and the first error of each shard.
#[derive(Default)]
struct LatestRows {
    bodies: BTreeMap<(ShardKey, RowKind, String), Vec<u8>>,
    errors: BTreeMap<ShardKey, RowError>,
}

/// Reads the last state of these shards.
async fn read(store: &dyn Store, keys: Vec<ShardKey>) -> Result<(Vec<LoadedShard>, LatestRows), StoreError> {
    let rows: Arc<Mutex<LatestRows>> = Arc::default();
    let into = Arc::clone(&rows);
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
                Err(error) => drop(into.errors.entry(key).or_insert(error)),
            }
        }
    };
    let loaded = store.load(keys, Box::new(sink)).await?;
    let rows = std::mem::take(&mut *rows.lock());
    Ok((loaded, rows))
}

#[derive(Default)]
struct StoredCatalog {
    pools: Vec<PoolRow>,
    quotas: Vec<QuotaRow>,
}

async fn read_catalog(store: &dyn Store) -> Result<StoredCatalog, StoreError> {
    let damaged = |error: &dyn Error| StoreError::Unusable(format!("the catalog is damaged: {error}"));
    let (loaded, rows) = read(store, vec![ShardKey::CATALOG]).await?;
    for loaded in loaded {
        loaded.at.map_err(|error| damaged(&error))?;
    }
    if let Some(error) = rows.errors.into_values().next() {
        return Err(damaged(&error));
    }
    let mut catalog = StoredCatalog::default();
    for ((_, kind, id), body) in rows.bodies {
        let added = match kind {
            RowKind::Pool => row::decode_pool(&id, &body).map(|row| catalog.pools.push(row)),
            RowKind::Quota => row::decode_quota(&id, &body).map(|row| catalog.quotas.push(row)),
            RowKind::Worker | RowKind::Shard | RowKind::Gang => Err(RowError::OfShard(id)),
        };
        added.map_err(|error| damaged(&error))?;
    }
    Ok(catalog)
}

async fn read_shards(
    store: &dyn Store,
    uid: u64,
    shards: u16,
    detail: RowDetail,
) -> Result<Vec<ShardContents>, StoreError> {
    let keys = (0..shards).map(|shard| ShardKey { pool: uid, shard }).collect();
    let (loaded, mut rows) = read(store, keys).await?;
    let mut contents: Vec<ShardContents> = loaded
        .into_iter()
        .map(|LoadedShard { shard, at }| {
            let row_error = rows.errors.remove(&shard);
            let (seq, error) = match at {
                Ok(seq) => (Some(seq), row_error.map(|error| error.to_string())),
                Err(damage) => (None, Some(damage.to_string())),
            };
            ShardContents { shard: shard.shard, seq, error, ..ShardContents::default() }
        })
        .collect();
    // The shard's own row first: it says which of the workers are unverified.
    let (headers, others): (Vec<_>, Vec<_>) =
        rows.bodies.into_iter().partition(|((_, kind, _), _)| *kind == RowKind::Shard);
    for ((key, kind, id), body) in headers.into_iter().chain(others) {
        let Some(shard) = contents.iter_mut().find(|shard| shard.shard == key.shard) else { continue };
        if let Err(error) = shard.add(kind, &id, &body, detail) {
            shard.error.get_or_insert_with(|| error.to_string());
        }
    }
    Ok(contents)
}

impl ShardContents {
    fn add(&mut self, kind: RowKind, id: &str, body: &[u8], detail: RowDetail) -> Result<(), RowError> {
        match kind {
            RowKind::Worker => {
                let worker = WorkerContents::of_row(id, row::decode_worker(id, body)?, self.unclean)?;
                self.workers += u64::from(!worker.deleted);
                self.held += worker.held.len() as u64;
                if detail == RowDetail::Workers {
                    self.rows.push(worker);
                }
            }
            RowKind::Shard => {
                let ShardRow { fence_max, memory_acks: memory, reserve_ms, unclean_stops: unclean } =
                    row::decode_shard(body)?;
                (self.fence_max, self.memory, self.reserve_ms, self.unclean) = (fence_max, memory, reserve_ms, unclean);
            }
            RowKind::Gang => self.gangs.push(id.parse().map_err(|_| RowError::Id("gang", id.to_owned()))?),
            RowKind::Pool | RowKind::Quota => return Err(RowError::OfCatalog(id.to_owned())),
        }
        Ok(())
    }
}
