//! `memory:`, a store that keeps nothing, for tests and `hotpool-load`: everything else runs as in the service.

use futures::future::{BoxFuture, FutureExt as _, ready};

use super::{FenceSpan, LoadedShard, OwnershipRecord, RowSink, ShardKey, Store, StoreError, WriteBatch, WriteOutcome};

/// Store that answers `Ok` and keeps nothing.
#[derive(Debug, Default)]
pub struct MemoryStore;

impl Store for MemoryStore {
    fn kind(&self) -> &'static str {
        "memory"
    }

    fn keeps_rows(&self) -> bool {
        false
    }

    fn take_over(&self, _owner: uuid::Uuid) -> BoxFuture<'_, Result<OwnershipRecord, StoreError>> {
        ready(Ok(OwnershipRecord { epoch: 1, fence_ceiling: 0, fence_floor: 0 })).boxed()
    }

    fn raise_fence_ceiling(&self, _span: FenceSpan) -> BoxFuture<'_, Result<(), StoreError>> {
        ready(Ok(())).boxed()
    }

    fn load(&self, shards: Vec<ShardKey>, _sink: RowSink) -> BoxFuture<'_, Result<Vec<LoadedShard>, StoreError>> {
        ready(Ok(shards.into_iter().map(|shard| LoadedShard { shard, at: Ok(0) }).collect())).boxed()
    }

    fn apply(&self, batches: Vec<WriteBatch>) -> BoxFuture<'_, Result<Vec<WriteOutcome>, StoreError>> {
        ready(Ok(vec![WriteOutcome::Ok; batches.len()])).boxed()
    }

    fn snapshot_candidate(&self) -> Option<ShardKey> {
        None
    }
}
