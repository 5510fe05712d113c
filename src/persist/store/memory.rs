//! `memory:` keeps nothing. For tests and `hotpool-load`: everything else runs as in the service.

use futures::future::{BoxFuture, FutureExt as _, ready};

use super::{FenceSpan, Loaded, Ownership, RowSink, ShardKey, Step, StepOutcome, Store, StoreError};

/// A store that answers `Ok` and keeps nothing.
#[derive(Debug, Default)]
pub struct MemoryStore;

impl Store for MemoryStore {
    fn kind(&self) -> &'static str {
        "memory"
    }

    fn keeps_rows(&self) -> bool {
        false
    }

    fn take_over(&self, _owner: uuid::Uuid) -> BoxFuture<'_, Result<Ownership, StoreError>> {
        ready(Ok(Ownership { epoch: 1, fence_ceiling: 0, fence_floor: 0 })).boxed()
    }

    fn raise_fence_ceiling(&self, _span: FenceSpan) -> BoxFuture<'_, Result<(), StoreError>> {
        ready(Ok(())).boxed()
    }

    fn load(&self, shards: Vec<ShardKey>, _sink: RowSink) -> BoxFuture<'_, Result<Vec<Loaded>, StoreError>> {
        ready(Ok(shards.into_iter().map(|shard| Loaded { shard, at: Ok(0) }).collect())).boxed()
    }

    fn apply(&self, steps: Vec<Step>) -> BoxFuture<'_, Result<Vec<StepOutcome>, StoreError>> {
        ready(Ok(vec![StepOutcome::Ok; steps.len()])).boxed()
    }

    fn wants_rewrite(&self) -> Option<ShardKey> {
        None
    }
}
