//! Stores on a server, and batches for them.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use hotpool::environment::Environment;
use hotpool::persist::row::{PoolRow, RowFrames, RowKind, put_deletion, put_pool};
use hotpool::persist::store::redis::{RedisOptions, RedisStore};
use hotpool::persist::store::{ShardDamage, ShardKey, Store, StoreError, WriteBatch, WriteKind, WriteOutcome};
use hotpool::server::config;
use tempfile::TempDir;
use uuid::Uuid;

/// Default options, with a data directory of its own.
pub fn options(url: &str, dir: &TempDir) -> RedisOptions {
    let settings = config::StoreConfig { data_dir: dir.path().to_owned(), ..config::StoreConfig::default() };
    settings.redis_options(url.parse().expect("a URL"))
}

/// Opens a store and takes it over.
pub async fn owned(url: &str, dir: &TempDir) -> RedisStore {
    let store = RedisStore::open(options(url, dir), Environment::system()).expect("open");
    store.take_over(Uuid::now_v7()).await.expect("take over");
    store
}

/// Encodes rows as frames: `uid` with a mark, or a deletion without one.
pub fn frames(rows: &[(u64, Option<u32>)]) -> Vec<u8> {
    let mut out = Vec::new();
    for (uid, mark) in rows {
        match mark {
            Some(mark) => put_pool(&mut out, &PoolRow { uid: *uid, hash_version: *mark, ..PoolRow::default() }),
            None => put_deletion(&mut out, RowKind::Pool, &uid.to_string()),
        }
    }
    out
}

pub fn rows(shard: ShardKey, from: u64, to: u64, rows: &[(u64, Option<u32>)]) -> WriteBatch {
    WriteBatch { shard, from, to, kind: WriteKind::Rows(frames(rows).into()) }
}

pub fn chunk(shard: ShardKey, generation: u64, number: u32, rows: &[(u64, Option<u32>)]) -> WriteBatch {
    WriteBatch { shard, from: 0, to: 0, kind: WriteKind::Chunk { generation, number, rows: frames(rows).into() } }
}

pub fn install(shard: ShardKey, to: u64, generation: u64, chunks: u32, rows: &[(u64, Option<u32>)]) -> WriteBatch {
    WriteBatch { shard, from: 0, to, kind: WriteKind::Install { generation, chunks, rows: frames(rows).into() } }
}

pub fn drop_of(shard: ShardKey) -> WriteBatch {
    WriteBatch { shard, from: 0, to: 0, kind: WriteKind::Drop }
}

pub async fn one(store: &RedisStore, batch: WriteBatch) -> WriteOutcome {
    store.apply(vec![batch]).await.expect("apply")[0]
}

/// Sequence number of a shard, and its rows by uid.
pub type State = (Result<u64, ShardDamage>, BTreeMap<u64, u32>);

pub async fn load(store: &RedisStore, shard: ShardKey) -> State {
    try_load(store, shard).await.expect("load")
}

pub async fn try_load(store: &RedisStore, shard: ShardKey) -> Result<State, StoreError> {
    let read: Arc<Mutex<BTreeMap<u64, u32>>> = Arc::default();
    let into = Arc::clone(&read);
    let sink = move |_: ShardKey, frames: &[u8]| {
        for frame in RowFrames::new(frames) {
            let frame = frame.expect("a frame");
            let row: PoolRow = prost::Message::decode(&frame.body.expect("a state")[1..]).expect("a row");
            into.lock().unwrap().insert(row.uid, row.hash_version);
        }
    };
    let at = store.load(vec![shard], Box::new(sink)).await?.remove(0).at;
    let rows = std::mem::take(&mut *read.lock().unwrap());
    Ok((at, rows))
}

pub fn is(at: u64, rows: &[(u64, u32)]) -> State {
    (Ok(at), rows.iter().copied().collect())
}
