//! Recently ended claims whose holders did not end them: claims of lost workers (`GET` says `lost`), and claims that
//! were never cleaned up (a late finish is accepted). Kept in memory, bounded in time and number.

use parking_lot::{Mutex, MutexGuard};
use std::collections::VecDeque;
use std::sync::atomic::{AtomicU32, Ordering};

use hashbrown::HashMap;

use crate::engine::ClaimGrant;
use crate::limits;
use crate::model::{ClaimId, Fence, Millis, PoolName};
use crate::shard::{ShardLife, ShardRef};

/// Claim that has ended without its holder.
#[derive(Debug, Clone)]
pub struct EndedClaim {
    /// Shard that held the claim.
    pub shard: ShardRef,
    /// Life of the shard that numbered the claim.
    pub life: ShardLife,
    /// Pool that held the claim.
    pub pool: PoolName,
    /// Last state of the grant, except that it is `lost`, or `releasing` if its clean-up timed out.
    pub grant: ClaimGrant,
}

#[derive(Debug, Default)]
struct EndedClaimIndex {
    /// Ended claims, each with the time at which it is forgotten.
    by_id: HashMap<ClaimId, (Millis, EndedClaim)>,
    /// Keys and fences in the order in which they are forgotten.
    order: VecDeque<(Millis, ClaimId, Fence)>,
}

/// Slots that keys are spread over by hash.
const FILTER_SLOTS: usize = 4096;

/// Ended claims of all pools, by key.
#[derive(Debug)]
pub struct EndedClaims {
    inner: Mutex<EndedClaimIndex>,
    /// Count of remembered keys by slot. Every grant checks its key, and almost none is remembered, so almost none may
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
        // Counted before the entry exists, so that a reader that finds the slot empty has not missed it.
        self.slot(&id).fetch_add(1, Ordering::AcqRel);
        if inner.by_id.insert(id.clone(), (until_ms, ended)).is_some() {
            self.slot(&id).fetch_sub(1, Ordering::AcqRel);
        }
        while inner.order.front().is_some_and(|(until_ms, ..)| *until_ms <= now_ms)
            || inner.order.len() > limits::ENDED_CLAIMS_MAX
        {
            let Some((_, id, fence)) = inner.order.pop_front() else { break };
            // A later claim of the same key stays.
            if inner.by_id.get(&id).is_some_and(|(_, ended)| ended.grant.handle.fence == fence) {
                self.remove(&mut inner, &id);
            }
        }
    }

    /// Last claim of the key, if it ended this way and the key was not claimed again.
    #[must_use]
    pub fn get(&self, id: &ClaimId, now_ms: Millis) -> Option<EndedClaim> {
        self.lock().by_id.get(id).filter(|(until_ms, _)| *until_ms > now_ms).map(|(_, ended)| ended.clone())
    }

    /// Forgets the ended claim of a key that is granted again. Costs one load unless the slot counts a remembered key.
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
        EndedClaim { life: 0, shard: ShardRef { pool: 0, shard: 0 }, pool: PoolName::new("ns", "p").unwrap(), grant }
    }

    /// A slot that counts too low hides a key from `remove_on_grant`; one that counts too high costs every grant a
    /// lock for ever.
    #[test]
    fn the_filter_counts_remembered_keys() {
        let ended_claims = EndedClaims::default();
        let id = |n: u64| ClaimId::new("ns", "t", &format!("k{n}")).unwrap();
        let counted = || ended_claims.filter.iter().map(|slot| slot.load(Ordering::Relaxed)).sum::<u32>();
        for n in 0..100 {
            ended_claims.insert(id(n), ended(n), 0);
        }
        ended_claims.insert(id(7), ended(107), 1);
        assert_eq!(counted(), 100, "the later claim of a key replaces the earlier");
        ended_claims.remove_on_grant(&id(7));
        ended_claims.remove_on_grant(&id(7));
        ended_claims.remove_on_grant(&id(1_000));
        assert_eq!(counted(), 99);
        assert!(ended_claims.get(&id(7), 1).is_none() && ended_claims.get(&id(8), 1).is_some());
        ended_claims.insert(id(200), ended(200), limits::ENDED_CLAIMS_MS + 2);
        assert_eq!(counted(), 1, "expired claims are forgotten");
    }
}
