//! Which workers are there. What a claim touches is one cache line a worker; what only people and registrars look at
//! lies behind it, in the card.

pub(in crate::engine) mod conditions;
pub(in crate::engine) mod heartbeat;
pub(in crate::engine) mod registration;

use std::sync::Arc;

use hashbrown::HashTable;

use super::NIL;
use crate::limits;
use crate::model::{Seq, WorkerId, WorkerRegistration};

/// One worker, hot part.
#[derive(Debug, Clone)]
#[repr(align(64))]
pub struct Worker {
    /// Affinity of its last claim; 0: none.
    pub affinity: u64,
    /// Sequence number of its last change.
    pub version: Seq,
    /// Sequence number of its becoming idle.
    pub idle_seq: Seq,
    /// Its registration; none: the ordinal is free.
    registration: Option<Arc<WorkerRegistration>>,
    /// The claim that holds it, or `NIL`.
    pub claim: u32,
    /// Its line in the ledger.
    pub usage_index: u32,
    /// Neighbours in the idle list; with policy `random`, `idle_prev` is the position in the idle vector.
    pub idle_prev: u32,
    pub idle_next: u32,
    /// Neighbours in its warm bucket.
    pub warm_prev: u32,
    pub warm_next: u32,
    /// In the idle queue.
    pub idle: bool,
    /// Changed since the journal last took its row.
    pub dirty: bool,
    /// Deleted, and remembered for a while.
    pub deleted: bool,
    /// Why it is not offered, if it is not ([`super::workers::conditions::bars`]).
    pub unschedulable_bits: u8,
    /// What there is to look up about it elsewhere ([`super::workers::conditions::notes`]).
    pub lookup_flags: u8,
}

const _: () = assert!(size_of::<Worker>() == 64, "a worker's hot part is one cache line");

impl Worker {
    const fn new(card: Option<Arc<WorkerRegistration>>, line: u32) -> Self {
        Self {
            registration: card,
            affinity: 0,
            version: 0,
            idle_seq: 0,
            claim: NIL,
            usage_index: line,
            idle_prev: NIL,
            idle_next: NIL,
            warm_prev: NIL,
            warm_next: NIL,
            idle: false,
            dirty: false,
            deleted: false,
            unschedulable_bits: 0,
            lookup_flags: 0,
        }
    }

    /// Its registration.
    pub fn registration(&self) -> &Arc<WorkerRegistration> {
        self.registration.as_ref().expect("an ordinal in use has a card")
    }
}

/// The workers of a shard, by ordinal and by id. Ordinals of removed workers are used again.
#[derive(Debug, Default)]
pub struct WorkerTable {
    hot: Vec<Worker>,
    by_id: HashTable<u32>,
    free: Vec<u32>,
}

impl WorkerTable {
    /// Number of ordinals given out so far; each is a worker or free.
    pub fn ordinals(&self) -> u32 {
        self.hot.len() as u32
    }

    pub fn is_full(&self) -> bool {
        self.free.is_empty() && self.ordinals() >= limits::SHARD_WORKERS_MAX
    }

    /// The ordinal of `id`, of a deleted one too.
    pub fn find(&self, id: &WorkerId) -> Option<u32> {
        let hash = id.hash64();
        let is = |&at: &u32| self.hot[at as usize].registration.as_ref().is_some_and(|card| card.spec.id == *id);
        self.by_id.find(hash, is).copied()
    }

    /// Takes a worker in whose id is not there.
    pub fn insert(&mut self, card: Arc<WorkerRegistration>, line: u32) -> u32 {
        let hash = card.spec.id.hash64();
        let worker = Worker::new(Some(card), line);
        let at = match self.free.pop() {
            Some(at) => {
                self.hot[at as usize] = worker;
                at
            }
            None => {
                self.hot.push(worker);
                (self.hot.len() - 1) as u32
            }
        };
        let hot = &self.hot;
        let hash_of = |&at: &u32| hot[at as usize].registration.as_ref().map_or(0, |card| card.spec.id.hash64());
        self.by_id.insert_unique(hash, at, hash_of);
        at
    }

    /// Forgets a worker and its id.
    pub fn remove(&mut self, at: u32) -> Arc<WorkerRegistration> {
        let card = self.hot[at as usize].registration.take().expect("only a worker that is there is removed");
        if let Ok(entry) = self.by_id.find_entry(card.spec.id.hash64(), |&found| found == at) {
            entry.remove();
        }
        self.free.push(at);
        card
    }

    /// Replaces the registration of a worker; the id stays.
    pub fn set_registration(&mut self, at: u32, card: Arc<WorkerRegistration>) {
        debug_assert_eq!(self.registration(at).spec.id, card.spec.id);
        self.hot[at as usize].registration = Some(card);
    }

    pub fn registration(&self, at: u32) -> &Arc<WorkerRegistration> {
        self.hot[at as usize].registration()
    }

    pub fn get(&self, at: u32) -> &Worker {
        &self.hot[at as usize]
    }

    /// The affinity of a worker if there is one, read for the sake of the cache line.
    pub fn prefetch(&self, at: u32) -> u64 {
        self.hot.get(at as usize).map_or(0, |worker| worker.affinity)
    }

    /// The same for the line that a copy of its card writes to.
    pub fn prefetch_registration(&self, at: u32) -> usize {
        self.hot.get(at as usize).and_then(|worker| worker.registration.as_ref()).map_or(0, Arc::strong_count)
    }

    pub fn get_mut(&mut self, at: u32) -> &mut Worker {
        &mut self.hot[at as usize]
    }

    pub fn is_used(&self, at: u32) -> bool {
        self.hot[at as usize].registration.is_some()
    }

    /// Hot parts of all ordinals.
    pub fn all(&self) -> &[Worker] {
        &self.hot
    }

    /// Hot parts of all ordinals, for the lists that run through them.
    pub fn hot_mut(&mut self) -> &mut [Worker] {
        &mut self.hot
    }

    /// Ordinals in use from `from` on, deleted ones too.
    pub fn iter_from(&self, from: u32) -> impl Iterator<Item = u32> {
        let used = |(_, worker): &(usize, &Worker)| worker.registration.is_some();
        self.hot.iter().enumerate().skip(from as usize).filter(used).map(|(at, _)| at as u32)
    }
}
