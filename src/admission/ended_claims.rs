//! Claims that ended without their holder's doing, for those who ask: what a lost worker held (`GET` says `lost`), and
//! what was never cleaned up (a late finish is accepted). Kept in memory, for a while, and only so many.

use parking_lot::{Mutex, MutexGuard};
use std::collections::VecDeque;
use std::sync::atomic::{AtomicU32, Ordering};

use hashbrown::HashMap;

use crate::admission::key_directory::ShardRef;
use crate::engine::ClaimGrant;
use crate::limits;
use crate::model::{ClaimId, Fence, Millis, PoolName};

/// A claim that is over.
#[derive(Debug, Clone)]
pub struct EndedClaim {
    /// Where it was held.
    pub shard: ShardRef,
    /// In which pool.
    pub pool: PoolName,
    /// As it was, but for its state: `lost`, or `releasing` if its clean-up was given up.
    pub grant: ClaimGrant,
}

#[derive(Debug, Default)]
struct EndedClaimIndex {
    /// Each with the time at which it is forgotten.
    by_id: HashMap<ClaimId, (Millis, EndedClaim)>,
    /// The same in the order of their ends.
    order: VecDeque<(Millis, ClaimId, Fence)>,
}

/// Slots that keys fall into by their hash.
const FILTER_SLOTS: usize = 4096;

/// What is remembered.
#[derive(Debug)]
pub struct EndedClaims {
    inner: Mutex<EndedClaimIndex>,
    /// Remembered keys by slot: every grant asks whether its key is remembered, and nearly none is, so nearly none may
    /// take the lock that all shards share.
    filter: Box<[AtomicU32]>,
}

impl Default for EndedClaims {
    fn default() -> Self {
        Self {
            inner: Mutex::default(),
            filter: std::iter::repeat_with(AtomicU32::default).take(FILTER_SLOTS).collect(),
        }
    }
}

impl EndedClaims {
    /// Remembers the last claim of a key.
    pub fn insert(&self, id: ClaimId, ended: EndedClaim, now_ms: Millis) {
        let mut inner = self.lock();
        let until_ms = now_ms + limits::ENDED_CLAIMS_MS;
        inner.order.push_back((until_ms, id.clone(), ended.grant.handle.fence));
        // Before the entry is there: who finds the slot empty later than this has not missed it.
        self.slot(&id).fetch_add(1, Ordering::AcqRel);
        if inner.by_id.insert(id.clone(), (until_ms, ended)).is_some() {
            self.slot(&id).fetch_sub(1, Ordering::AcqRel);
        }
        while inner.order.front().is_some_and(|(until_ms, ..)| *until_ms <= now_ms)
            || inner.order.len() > limits::ENDED_CLAIMS_MAX
        {
            let Some((_, id, fence)) = inner.order.pop_front() else { break };
            // A later one of the same key stays.
            if inner.by_id.get(&id).is_some_and(|(_, ended)| ended.grant.handle.fence == fence) {
                self.remove(&mut inner, &id);
            }
        }
    }

    /// The last claim of the key, if it ended so and nobody claimed the key since.
    #[must_use]
    pub fn get(&self, id: &ClaimId, now_ms: Millis) -> Option<EndedClaim> {
        self.lock().by_id.get(id).filter(|(until_ms, _)| *until_ms > now_ms).map(|(_, ended)| ended.clone())
    }

    /// The key is claimed again. Costs one load unless a key of its slot is remembered.
    pub fn remove_on_grant(&self, id: &ClaimId) {
        if self.slot(id).load(Ordering::Acquire) > 0 {
            self.remove(&mut self.lock(), id);
        }
    }

    fn remove(&self, inner: &mut EndedClaimIndex, id: &ClaimId) {
        if inner.by_id.remove(id).is_some() {
            self.slot(id).fetch_sub(1, Ordering::AcqRel);
        }
    }

    fn slot(&self, id: &ClaimId) -> &AtomicU32 {
        &self.filter[id.hash64() as usize % FILTER_SLOTS]
    }

    fn lock(&self) -> MutexGuard<'_, EndedClaimIndex> {
        self.inner.lock()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::{ClaimHandle, ClaimTimestamps};
    use crate::model::{ClaimState, WorkerId, WorkerRegistration, WorkerSpec};

    fn ended(fence: Fence) -> EndedClaim {
        let spec = WorkerSpec::with_id(WorkerId::new("w").unwrap());
        let grant = ClaimGrant {
            evicted: false,
            handle: ClaimHandle { claim: 0, worker: 0, fence },
            worker: std::sync::Arc::new(WorkerRegistration { spec }),
            state: ClaimState::Lost,
            timestamps: ClaimTimestamps::default(),
            term_ms: 0,
            deadline_ms: None,
            spec: None,
            gpu_mask: None,
        };
        EndedClaim { shard: ShardRef { pool: 0, shard: 0 }, pool: PoolName::new("ns", "p").unwrap(), grant }
    }

    /// A slot that is counted too low hides a key from `forget`; one counted too high costs every grant a lock for ever.
    #[test]
    fn slots_count_what_is_remembered() {
        let remembered = EndedClaims::default();
        let id = |n: u64| ClaimId::new("ns", "t", &format!("k{n}")).unwrap();
        let counted = || remembered.filter.iter().map(|slot| slot.load(Ordering::Relaxed)).sum::<u32>();
        for n in 0..100 {
            remembered.insert(id(n), ended(n), 0);
        }
        remembered.insert(id(7), ended(107), 1);
        assert_eq!(counted(), 100, "the later claim of a key replaces the earlier");
        remembered.remove_on_grant(&id(7));
        remembered.remove_on_grant(&id(7));
        remembered.remove_on_grant(&id(1_000));
        assert_eq!(counted(), 99);
        assert!(remembered.get(&id(7), 1).is_none() && remembered.get(&id(8), 1).is_some());
        remembered.insert(id(200), ended(200), limits::ENDED_CLAIMS_MS + 2);
        assert_eq!(counted(), 1, "what is too old is gone");
    }
}
