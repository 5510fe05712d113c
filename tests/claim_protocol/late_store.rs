//! Store whose answers arrive when the test says so. Keeps the present rows of each shard in memory.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Mutex, MutexGuard};

use futures::FutureExt as _;
use futures::future::BoxFuture;
use hotpool::model::Seq;
use hotpool::persist::row::{RowFrames, RowKind};
use hotpool::persist::store::{
    FenceSpan, LoadedShard, OwnershipRecord, RowSink, ShardKey, Store, StoreError, WriteBatch, WriteKind, WriteOutcome,
};
use tokio::sync::Semaphore;

#[derive(Default)]
struct StoredShard {
    at: Seq,
    /// Frames of the rows that exist, in the order of their ids.
    rows: BTreeMap<(RowKind, String), Vec<u8>>,
}

impl StoredShard {
    fn put(&mut self, rows: &[u8]) {
        let mut frames = RowFrames::new(rows);
        loop {
            let before = frames.rest();
            let Some(frame) = frames.next() else { break };
            let frame = frame.expect("rows of a shard can be read");
            let id = (frame.kind, frame.id.to_owned());
            match frame.body {
                Some(_) => drop(self.rows.insert(id, before[..before.len() - frames.rest().len()].to_vec())),
                None => drop(self.rows.remove(&id)),
            }
        }
    }
}

#[derive(Default)]
struct Gate {
    is_late: bool,
    /// Calls whose answer is not due yet.
    waiting: usize,
}

pub struct LateStore {
    shards: Mutex<HashMap<ShardKey, StoredShard>>,
    gate: Mutex<Gate>,
    answers: Semaphore,
}

impl LateStore {
    pub fn new() -> Self {
        Self { shards: Mutex::default(), gate: Mutex::default(), answers: Semaphore::new(0) }
    }

    /// Sets whether calls wait for [`Self::answer`] from now on.
    pub fn set_late(&self, late: bool) {
        self.gate.lock().unwrap().is_late = late;
    }

    pub fn waiting(&self) -> usize {
        self.gate.lock().unwrap().waiting
    }

    /// Carries out the oldest call that waits.
    pub fn answer(&self) {
        let mut gate = self.gate.lock().unwrap();
        assert!(gate.waiting > 0, "no call waits");
        gate.waiting -= 1;
        self.answers.add_permits(1);
    }

    /// Rows of a shard, back to back, and the sequence number of its state.
    pub fn rows(&self, shard: ShardKey) -> (Vec<u8>, Seq) {
        let shards = self.shards();
        let stored = &shards[&shard];
        (stored.rows.values().flatten().copied().collect(), stored.at)
    }

    fn shards(&self) -> MutexGuard<'_, HashMap<ShardKey, StoredShard>> {
        self.shards.lock().unwrap()
    }

    fn write(&self, batch: WriteBatch) -> WriteOutcome {
        let mut shards = self.shards();
        let shard = shards.entry(batch.shard).or_default();
        match batch.kind {
            WriteKind::Rows(_) if shard.at < batch.from => WriteOutcome::Gap,
            WriteKind::Rows(_) if batch.to <= shard.at => WriteOutcome::Duplicate,
            WriteKind::Rows(rows) => {
                shard.put(&rows);
                shard.at = batch.to;
                WriteOutcome::Ok
            }
            WriteKind::Drop => {
                shards.remove(&batch.shard);
                WriteOutcome::Ok
            }
            WriteKind::Chunk { .. } | WriteKind::Install { .. } => {
                unreachable!("no snapshot is due in so short a run")
            }
        }
    }
}

impl Store for LateStore {
    fn kind(&self) -> &'static str {
        "late"
    }

    fn keeps_rows(&self) -> bool {
        true
    }

    fn take_over(&self, _owner: uuid::Uuid) -> BoxFuture<'_, Result<OwnershipRecord, StoreError>> {
        std::future::ready(Ok(OwnershipRecord { epoch: 1, fence_ceiling: 0, fence_floor: 0 })).boxed()
    }

    fn raise_fence_ceiling(&self, _span: FenceSpan) -> BoxFuture<'_, Result<(), StoreError>> {
        std::future::ready(Ok(())).boxed()
    }

    fn load(&self, keys: Vec<ShardKey>, mut sink: RowSink) -> BoxFuture<'_, Result<Vec<LoadedShard>, StoreError>> {
        let shards = self.shards();
        let loaded = keys.into_iter().map(|key| {
            let stored = shards.get(&key);
            stored.into_iter().flat_map(|shard| shard.rows.values()).for_each(|row| sink(key, row));
            LoadedShard { shard: key, at: Ok(stored.map_or(0, |shard| shard.at)) }
        });
        std::future::ready(Ok(loaded.collect())).boxed()
    }

    fn apply(&self, batches: Vec<WriteBatch>) -> BoxFuture<'_, Result<Vec<WriteOutcome>, StoreError>> {
        async move {
            let waits = {
                let mut gate = self.gate.lock().unwrap();
                gate.waiting += usize::from(gate.is_late);
                gate.is_late
            };
            if waits {
                let answer = self.answers.acquire().await;
                answer.expect("the semaphore is never closed").forget();
            }
            Ok(batches.into_iter().map(|batch| self.write(batch)).collect())
        }
        .boxed()
    }

    fn snapshot_candidate(&self) -> Option<ShardKey> {
        None
    }
}
