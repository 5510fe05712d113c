//! What a store holds, for people: read without taking it over.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use serde::Serialize;

use super::{ShardKey, Store, StoreError};
use crate::model::PoolSpec;
use crate::row::{self, Frames, PoolRow, RowKind};

/// Everything that was found.
#[derive(Debug, Serialize)]
pub struct Contents {
    /// What the store says of itself: its kind, and who owns it.
    pub about: BTreeMap<String, String>,
    /// Its pools, by name.
    pub pools: Vec<PoolContents>,
}

/// One pool.
#[derive(Debug, Serialize)]
pub struct PoolContents {
    /// `ns/pool`.
    pub name: String,
    /// Part of its shards' keys.
    pub uid: u64,
    /// It is being deleted.
    pub deleting: bool,
    /// Its specification, as it is stored.
    pub spec: serde_json::Value,
    /// Its shards, in order.
    pub shards: Vec<ShardContents>,
}

/// One shard.
#[derive(Debug, Default, Serialize)]
pub struct ShardContents {
    /// Index.
    pub shard: u16,
    /// Sequence number of its state; none: it cannot be read.
    pub seq: Option<u64>,
    /// Why it cannot be read.
    pub error: Option<String>,
    /// Rows of workers, without those that are deleted.
    pub workers: u64,
    /// Workers that are held.
    pub held: u64,
    /// Highest fence that it granted.
    pub fence_max: u64,
    /// Its workers, if they were asked for.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub rows: Vec<WorkerContents>,
}

/// One worker.
#[derive(Debug, Serialize)]
pub struct WorkerContents {
    /// Its id.
    pub id: String,
    /// Grows with every change.
    pub version: u64,
    /// Grows when it starts anew.
    pub incarnation: u64,
    /// It is gone; the row keeps late words of it out.
    pub deleted: bool,
    /// What it holds, as `tenant/key#fence state created_at_ms=N activated_at_ms=N`, without the times that are not known.
    pub claims: Vec<String>,
}

/// Reads a store. With `rows`: every worker of the pools whose name is `pool`, or of all.
///
/// # Errors
/// The store cannot be read, or its catalogue is damaged.
pub async fn inspect(store: &dyn Store, pool: Option<&str>, rows: bool) -> Result<Contents, StoreError> {
    let mut about = store.about().await?;
    about.insert("kind".to_owned(), store.kind().to_owned());
    let mut pools = Vec::new();
    for row in catalogue(store).await? {
        if pool.is_some_and(|pool| pool != row.name) {
            continue;
        }
        let spec: PoolSpec = serde_json::from_str(&row.spec_json)
            .map_err(|error| StoreError::Unusable(format!("the catalogue's row of {}: {error}", row.name)))?;
        let shards = shards(store, row.uid, spec.shards, rows).await?;
        let spec = serde_json::from_str(&row.spec_json).unwrap_or_default();
        pools.push(PoolContents { name: row.name, uid: row.uid, deleting: row.deleting, spec, shards });
    }
    pools.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(Contents { about, pools })
}

async fn catalogue(store: &dyn Store) -> Result<Vec<PoolRow>, StoreError> {
    let read: Arc<Mutex<BTreeMap<String, Result<PoolRow, String>>>> = Arc::default();
    let into = Arc::clone(&read);
    let sink = move |_: ShardKey, frames: &[u8]| {
        let mut into = into.lock().unwrap_or_else(PoisonError::into_inner);
        for frame in Frames::new(frames) {
            match frame.map(|frame| (frame.id.to_owned(), frame.body.map(|body| row::pool(frame.id, body)))) {
                Ok((id, None)) => drop(into.remove(&id)),
                Ok((id, Some(row))) => drop(into.insert(id, row.map_err(|error| error.to_string()))),
                Err(error) => drop(into.insert(String::new(), Err(error.to_string()))),
            }
        }
    };
    let damaged = |why| StoreError::Unusable(format!("the catalogue is damaged: {why}"));
    for loaded in store.load(vec![ShardKey::CATALOGUE], Box::new(sink)).await? {
        loaded.at.map_err(damaged)?;
    }
    let rows = std::mem::take(&mut *read.lock().unwrap_or_else(PoisonError::into_inner));
    rows.into_values().map(|row| row.map_err(damaged)).collect()
}

async fn shards(store: &dyn Store, uid: u64, shards: u16, rows: bool) -> Result<Vec<ShardContents>, StoreError> {
    type Bodies = BTreeMap<(ShardKey, RowKind, String), Vec<u8>>;
    let read: Arc<Mutex<Bodies>> = Arc::default();
    let into = Arc::clone(&read);
    let sink = move |key: ShardKey, frames: &[u8]| {
        let mut into = into.lock().unwrap_or_else(PoisonError::into_inner);
        for frame in Frames::new(frames).flatten() {
            let name = (key, frame.kind, frame.id.to_owned());
            match frame.body {
                Some(body) => drop(into.insert(name, body.to_vec())),
                None => drop(into.remove(&name)),
            }
        }
    };
    let keys = (0..shards).map(|shard| ShardKey { pool: uid, shard }).collect();
    let loaded = store.load(keys, Box::new(sink)).await?;
    let mut found: Vec<ShardContents> = loaded
        .into_iter()
        .map(|loaded| {
            let (seq, error) = match loaded.at {
                Ok(seq) => (Some(seq), None),
                Err(error) => (None, Some(error)),
            };
            ShardContents { shard: loaded.shard.shard, seq, error, ..ShardContents::default() }
        })
        .collect();
    let bodies = std::mem::take(&mut *read.lock().unwrap_or_else(PoisonError::into_inner));
    for ((key, kind, id), body) in bodies {
        let Some(shard) = found.iter_mut().find(|shard| shard.shard == key.shard) else { continue };
        if let Err(error) = add(shard, kind, &id, &body, rows) {
            shard.error.get_or_insert(error.to_string());
        }
    }
    Ok(found)
}

fn add(shard: &mut ShardContents, kind: RowKind, id: &str, body: &[u8], rows: bool) -> Result<(), row::RowError> {
    match kind {
        RowKind::Worker => {
            let worker = row::worker(id, body)?;
            shard.workers += u64::from(!worker.deleted);
            shard.held += worker.claims.len() as u64;
            if rows {
                let claims = worker.claims.iter().map(|claim| {
                    let state = match (claim.active, claim.releasing) {
                        (_, true) => "releasing",
                        (true, false) => "active",
                        (false, false) => "reserved",
                    };
                    let time = |name: &str, at_ms: Option<u64>| {
                        at_ms.map(|at_ms| format!(" {name}={at_ms}")).unwrap_or_default()
                    };
                    let created = time("created_at_ms", claim.created_at_ms);
                    let activated = time("activated_at_ms", claim.activated_at_ms);
                    format!("{}/{}#{} {state}{created}{activated}", claim.tenant, claim.key, claim.fence)
                });
                shard.rows.push(WorkerContents {
                    id: id.to_owned(),
                    version: worker.version,
                    incarnation: worker.incarnation,
                    deleted: worker.deleted,
                    claims: claims.collect(),
                });
            }
        }
        RowKind::Shard => shard.fence_max = row::shard(body)?.fence_max,
        RowKind::Pool | RowKind::Gang | RowKind::Quota => {}
    }
    Ok(())
}
