//! Workers of a shard. The part that claims read is one cache line a worker; what only people and registrars read is
//! behind a pointer, in the registration.

pub(in crate::engine) mod heartbeat;
pub(in crate::engine) mod liveness;
pub(in crate::engine) mod registration;
pub(in crate::engine) mod schedulability;

use std::sync::Arc;

use hashbrown::HashTable;

use super::NIL;
use super::accounting::WorkerUse;
use crate::limits;
use crate::model::{Seq, WorkerId, WorkerRegistration};

/// Hot part of a worker.
#[derive(Debug, Clone)]
#[repr(align(64))]
pub struct Worker {
    /// Affinity of its last claim; 0: none.
    pub affinity: u64,
    /// Sequence number of its last change.
    version: Seq,
    /// Sequence number at which it became idle.
    pub idle_seq: Seq,
    /// Registration; none: the ordinal is free.
    registration: Option<Arc<WorkerRegistration>>,
    /// Ordinal of its claim, or of the first of several; `NIL`: none.
    pub claim: u32,
    /// Index of its capacity vector in the accounting.
    pub usage_index: u32,
    /// Neighbours in the idle list; with policy `random`, `idle_prev` is the position in the idle vector.
    pub idle_prev: u32,
    pub idle_next: u32,
    /// Neighbours in the bucket of its affinity.
    pub warm_prev: u32,
    pub warm_next: u32,
    /// True if it is in the idle queue.
    pub idle: bool,
    /// True if its row changed since the journal last took it.
    dirty: bool,
    /// True if it was deleted and its tombstone is kept.
    pub deleted: bool,
    /// Reasons why it is unschedulable ([`unschedulable_bits`](crate::model::unschedulable_bits)).
    pub unschedulable_bits: u8,
    /// Bits that point to entries elsewhere ([`super::workers::liveness::lookup_flags`]).
    pub lookup_flags: u8,
}

const _: () = assert!(size_of::<Worker>() == 64, "a worker's hot part is one cache line");

impl Worker {
    const fn new(registration: Option<Arc<WorkerRegistration>>, usage_index: u32) -> Self {
        Self {
            registration,
            affinity: 0,
            version: 0,
            idle_seq: 0,
            claim: NIL,
            usage_index,
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

    /// Sequence number of its last change.
    pub const fn version(&self) -> Seq {
        self.version
    }

    /// Sets the version that the worker's row has.
    pub const fn restore_version(&mut self, version: Seq) {
        self.version = version;
    }

    /// Sets the version of a change. True if the worker's row was not dirty before.
    pub fn mark_changed(&mut self, version: Seq) -> bool {
        debug_assert!(version > self.version, "V1: a worker's version only grows");
        self.version = version;
        !std::mem::replace(&mut self.dirty, true)
    }

    /// Clears the dirty flag and returns whether it was set.
    pub const fn take_dirty(&mut self) -> bool {
        std::mem::replace(&mut self.dirty, false)
    }

    /// Use of the worker, as its capacity is accounted.
    pub const fn usage(&self) -> WorkerUse {
        match (self.claim, self.unschedulable_bits) {
            (NIL, 0) => WorkerUse::Idle,
            (NIL, _) => WorkerUse::Unschedulable,
            _ => WorkerUse::Busy,
        }
    }

    /// Registration of a worker in use.
    pub fn registration(&self) -> &Arc<WorkerRegistration> {
        self.registration.as_ref().expect("an ordinal in use has a registration")
    }
}

/// Workers of a shard, by ordinal and by id. Ordinals of removed workers are reused.
#[derive(Debug, Default)]
pub struct WorkerTable {
    hot: Vec<Worker>,
    by_id: HashTable<u32>,
    free: Vec<u32>,
}

impl WorkerTable {
    /// Number of ordinals used so far; each is a worker or free.
    pub fn ordinals(&self) -> u32 {
        self.hot.len() as u32
    }

    pub fn is_full(&self) -> bool {
        self.free.is_empty() && self.ordinals() >= limits::SHARD_WORKERS_MAX
    }

    /// Ordinal of `id`, also of a deleted worker.
    pub fn find(&self, id: &WorkerId) -> Option<u32> {
        let hash = id.hash64();
        let is = |&at: &u32| {
            self.hot[at as usize].registration.as_ref().is_some_and(|registration| registration.spec.id == *id)
        };
        self.by_id.find(hash, is).copied()
    }

    /// Adds a worker whose id is not in the table.
    pub fn insert(&mut self, registration: Arc<WorkerRegistration>, usage_index: u32) -> u32 {
        debug_assert!(self.find(&registration.spec.id).is_none(), "W1: two workers have one id");
        let hash = registration.spec.id.hash64();
        let worker = Worker::new(Some(registration), usage_index);
        let at = match self.free.pop() {
            Some(at) => {
                assert!(!self.is_used(at), "W1: an ordinal in use is assigned again");
                self.hot[at as usize] = worker;
                at
            }
            None => {
                assert!(self.ordinals() < NIL, "W1: the ordinals of workers are exhausted");
                self.hot.push(worker);
                (self.hot.len() - 1) as u32
            }
        };
        let hot = &self.hot;
        let hash_of =
            |&at: &u32| hot[at as usize].registration.as_ref().map_or(0, |registration| registration.spec.id.hash64());
        self.by_id.insert_unique(hash, at, hash_of);
        at
    }

    /// Removes a worker and its id.
    pub fn remove(&mut self, at: u32) -> Arc<WorkerRegistration> {
        let registration = self.hot[at as usize].registration.take().expect("only a worker in the table is removed");
        let entry = self.by_id.find_entry(registration.spec.id.hash64(), |&found| found == at);
        assert!(entry.map(|entry| entry.remove()).is_ok(), "W1: a worker is not indexed by its id");
        self.free.push(at);
        debug_assert!(self.free.len() <= self.hot.len(), "W1: more ordinals are free than exist");
        registration
    }

    /// Replaces the registration of a worker; the id stays.
    pub fn set_registration(&mut self, at: u32, registration: Arc<WorkerRegistration>) {
        assert!(self.registration(at).spec.id == registration.spec.id, "W1: a registration moves to another worker");
        self.hot[at as usize].registration = Some(registration);
    }

    pub fn registration(&self, at: u32) -> &Arc<WorkerRegistration> {
        self.hot[at as usize].registration()
    }

    pub fn get(&self, at: u32) -> &Worker {
        &self.hot[at as usize]
    }

    /// Reads the affinity of a worker to load its cache line.
    pub fn prefetch(&self, at: u32) -> u64 {
        self.hot.get(at as usize).map_or(0, |worker| worker.affinity)
    }

    /// Reads the reference count of a registration to load the line that a clone writes to.
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

    /// Hot parts of all ordinals, for the lists that link them.
    pub fn hot_mut(&mut self) -> &mut [Worker] {
        &mut self.hot
    }

    /// Ordinals in use from `from` on, deleted workers included.
    pub fn iter_from(&self, from: u32) -> impl Iterator<Item = u32> {
        let used = |(_, worker): &(usize, &Worker)| worker.registration.is_some();
        self.hot.iter().enumerate().skip(from as usize).filter(used).map(|(at, _)| at as u32)
    }
}
