//! Services that all shards of a process share: time, fences, the journal, and the outboxes of the others.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use parking_lot::RwLock;

use super::address::{PendingWrite, ShardRef};
use crate::collections::HashMap;
use crate::environment::{Clock, Environment};
use crate::model::Millis;
use crate::model::request_error::UnavailableReason;
use crate::persist::fencing::FenceGenerator;
use crate::persist::journal::{Journal, Outbox};

/// Services of the process that every shard uses.
#[derive(Debug)]
pub struct ShardServices {
    /// Source of engine and wall-clock time.
    pub clock: Clock,
    /// Source of everything else that is not state of the process; its clock is the one above.
    pub environment: Environment,
    /// Generator of fences for grants.
    pub fences: FenceGenerator,
    /// Journal that writes records to the store.
    pub journal: Arc<Journal>,
    /// Longest wait of a durable reply for the store, in milliseconds.
    pub store_wait_ms: Millis,
    /// Set before a shutdown: calls are answered, but claims no longer wait.
    draining: AtomicBool,
    /// Outboxes of all shards, for replies that wait for a record of another shard.
    outboxes: RwLock<HashMap<ShardRef, Arc<Outbox>>>,
}

impl ShardServices {
    /// Creates the services of a process without shards.
    #[must_use]
    pub fn new(environment: Environment, journal: Arc<Journal>, store_wait_ms: Millis) -> Self {
        let fences = FenceGenerator::new_closed();
        let clock = environment.clock().clone();
        Self {
            clock,
            environment,
            fences,
            journal,
            store_wait_ms,
            draining: AtomicBool::new(false),
            outboxes: RwLock::default(),
        }
    }

    /// Whether claims may no longer wait, because a shutdown is near.
    #[must_use]
    pub fn is_draining(&self) -> bool {
        self.draining.load(Ordering::Acquire)
    }

    /// Notes that a shutdown is near.
    pub fn drain(&self) {
        self.draining.store(true, Ordering::Release);
    }

    /// Allocates fences for `n` claims and returns the first. They follow the time of the last tick: fences grow by a
    /// counter, and the time in them is for people.
    ///
    /// # Errors
    /// `Store` while the store does not confirm a higher ceiling.
    pub fn allocate_fences(&self, n: u64) -> Result<u64, UnavailableReason> {
        self.fences.allocate(n, self.clock.unix_of(self.clock.engine_ms()) * 1_000).ok_or(UnavailableReason::Store)
    }

    /// Outbox of a shard; `None` once its pool was deleted.
    #[must_use]
    pub fn outbox(&self, shard: ShardRef) -> Option<Arc<Outbox>> {
        self.outboxes.read().get(&shard).cloned()
    }

    /// Whether the store has the record. Records of a deleted pool have gone with it.
    #[must_use]
    pub fn is_stored(&self, record: &PendingWrite) -> bool {
        self.outboxes.read().get(&record.shard).is_none_or(|outbox| outbox.applied_seq() >= record.seq)
    }

    pub(super) fn add_outbox(&self, shard: ShardRef, outbox: &Arc<Outbox>) {
        self.outboxes.write().insert(shard, Arc::clone(outbox));
    }

    /// Forgets the shards of a deleted pool. Replies that wait for their records do so no longer.
    pub fn forget_pool(&self, pool: u32) {
        let is_forgotten = |shard: &ShardRef| shard.pool == pool;
        let forgotten: Vec<_> = self.outboxes.write().extract_if(|shard, _| is_forgotten(shard)).collect();
        // Afterwards: whoever checks earlier finds the records missing, and waits for this.
        forgotten.iter().for_each(|(_, outbox)| outbox.notify_subscribers());
    }
}
