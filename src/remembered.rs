//! Claims that ended without their holder's doing, for those who ask: what a lost worker held (`GET` says `lost`), and
//! what was never cleaned up (a late finish is accepted). Kept in memory, for a while, and only so many.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use hashbrown::HashMap;

use crate::engine::Grant;
use crate::keys::ShardRef;
use crate::limits;
use crate::model::{ClaimId, Fence, Millis, PoolName};

/// A claim that is over.
#[derive(Debug, Clone)]
pub struct Ended {
    /// Where it was held.
    pub shard: ShardRef,
    /// In which pool.
    pub pool: PoolName,
    /// As it was, but for its state: `lost`, or `releasing` if its clean-up was given up.
    pub grant: Grant,
}

#[derive(Debug, Default)]
struct Inner {
    /// Each with the time at which it is forgotten.
    by_id: HashMap<ClaimId, (Millis, Ended)>,
    /// The same in the order of their ends.
    order: VecDeque<(Millis, ClaimId, Fence)>,
}

/// What is remembered.
#[derive(Debug, Default)]
pub struct Remembered {
    inner: Mutex<Inner>,
    len: AtomicUsize,
}

impl Remembered {
    /// Remembers the last claim of a key.
    pub fn put(&self, id: ClaimId, ended: Ended, now_ms: Millis) {
        let mut inner = self.lock();
        let until_ms = now_ms + limits::REMEMBERED_MS;
        inner.order.push_back((until_ms, id.clone(), ended.grant.place.fence));
        inner.by_id.insert(id, (until_ms, ended));
        while inner.order.front().is_some_and(|(until_ms, ..)| *until_ms <= now_ms)
            || inner.order.len() > limits::REMEMBERED_MAX
        {
            let Some((_, id, fence)) = inner.order.pop_front() else { break };
            // A later one of the same key stays.
            if inner.by_id.get(&id).is_some_and(|(_, ended)| ended.grant.place.fence == fence) {
                inner.by_id.remove(&id);
            }
        }
        self.len.store(inner.by_id.len(), Ordering::Release);
    }

    /// The last claim of the key, if it ended so and nobody claimed the key since.
    #[must_use]
    pub fn find(&self, id: &ClaimId, now_ms: Millis) -> Option<Ended> {
        self.lock().by_id.get(id).filter(|(until_ms, _)| *until_ms > now_ms).map(|(_, ended)| ended.clone())
    }

    /// The key is claimed again. Costs one load while nothing is remembered.
    pub fn forget(&self, id: &ClaimId) {
        if self.len.load(Ordering::Acquire) > 0 {
            let mut inner = self.lock();
            inner.by_id.remove(id);
            self.len.store(inner.by_id.len(), Ordering::Release);
        }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
