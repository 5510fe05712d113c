//! Total and used capacity, by distinct capacity vector.
//!
//! A fleet has few distinct vectors, so one entry per vector with its counts is the whole accounting: a claim changes
//! one counter instead of adding four amounts, and used totals are derived on demand. The total of all workers
//! changes with registrations only, and is kept.

use std::collections::BTreeMap;

use super::placement::bin_packing::ResourceTotals;
use crate::model::{MaxCapacity, WorkerCapacity};

/// Workers with one capacity vector.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CapacityUsage {
    /// Capacity of each of them.
    pub capacity: WorkerCapacity,
    /// Number of workers in all.
    pub workers: u32,
    /// Number of workers with claims.
    pub held: u32,
    /// Number of unschedulable workers without claims.
    pub unschedulable: u32,
}

impl CapacityUsage {
    /// Number of idle workers.
    #[must_use]
    pub const fn free(&self) -> u32 {
        self.workers - self.held - self.unschedulable
    }
}

/// Number of entries by amount, for each resource: gives the largest amount after an entry is removed. It changes
/// with the set of entries, so neither claims nor workers with a common capacity pay for it.
#[derive(Debug, Default)]
struct AmountIndex([BTreeMap<u64, u32>; 4]);

impl AmountIndex {
    fn of(capacity: &WorkerCapacity) -> [u64; 4] {
        let gpus = capacity.gpu.as_ref().map_or(0, |gpu| gpu.count.into());
        [capacity.cpu_milli, capacity.memory_bytes, capacity.slots, gpus]
    }

    fn add(&mut self, capacity: &WorkerCapacity) {
        for (counts, amount) in self.0.iter_mut().zip(Self::of(capacity)) {
            *counts.entry(amount).or_default() += 1;
        }
    }

    fn remove(&mut self, capacity: &WorkerCapacity) {
        for (counts, amount) in self.0.iter_mut().zip(Self::of(capacity)) {
            let count = counts.get_mut(&amount).expect("an amount that is removed was added");
            *count -= 1;
            if *count == 0 {
                counts.remove(&amount);
            }
        }
    }

    fn largest(&self) -> MaxCapacity {
        let [cpu_milli, memory_bytes, slots, gpus] =
            self.0.each_ref().map(|counts| counts.last_key_value().map_or(0, |(&amount, _)| amount));
        MaxCapacity { cpu_milli, memory_bytes, slots, gpus }
    }
}

/// Capacity accounting of a shard.
#[derive(Debug, Default)]
pub struct CapacityAccounting {
    usages: Vec<CapacityUsage>,
    by_capacity: BTreeMap<WorkerCapacity, u32>,
    free_slots: Vec<u32>,
    amounts: AmountIndex,
    /// Total of all workers, GPU models aside.
    total: ResourceTotals,
    /// Version of the set of entries.
    version: u64,
    /// Number of workers that were added or removed.
    membership_version: u64,
}

impl CapacityAccounting {
    /// Adds a worker and returns the index of its entry.
    pub fn add_worker(&mut self, capacity: &WorkerCapacity) -> u32 {
        let at = self.by_capacity.get(capacity).copied().unwrap_or_else(|| self.add_usage(capacity));
        self.usages[at as usize].workers += 1;
        self.total.add_capacity(capacity);
        self.membership_version += 1;
        at
    }

    fn add_usage(&mut self, capacity: &WorkerCapacity) -> u32 {
        self.version += 1;
        let usage = CapacityUsage { capacity: capacity.clone(), workers: 0, held: 0, unschedulable: 0 };
        let at = self.free_slots.pop().unwrap_or(self.usages.len() as u32);
        match self.usages.get_mut(at as usize) {
            Some(slot) => *slot = usage,
            None => self.usages.push(usage),
        }
        self.by_capacity.insert(capacity.clone(), at);
        self.amounts.add(capacity);
        at
    }

    /// Removes a worker that is idle.
    pub fn remove_worker(&mut self, at: u32) {
        let usage = &mut self.usages[at as usize];
        debug_assert!(usage.workers > usage.held + usage.unschedulable, "only a free worker leaves the ledger");
        usage.workers -= 1;
        self.total.subtract_capacity(&usage.capacity);
        self.membership_version += 1;
        if usage.workers == 0 {
            self.version += 1;
            self.by_capacity.remove(&usage.capacity);
            self.amounts.remove(&usage.capacity);
            self.free_slots.push(at);
        }
    }

    pub fn mark_held(&mut self, usage: u32) {
        let usage = &mut self.usages[usage as usize];
        debug_assert!(usage.held + usage.unschedulable < usage.workers, "L1: more held than there is");
        usage.held += 1;
    }

    pub fn mark_free(&mut self, usage: u32) {
        let usage = &mut self.usages[usage as usize];
        debug_assert!(usage.held > 0, "L1: freed what was not held");
        usage.held -= 1;
    }

    /// Counts an idle worker as unschedulable.
    pub fn mark_unschedulable(&mut self, usage: u32) {
        let usage = &mut self.usages[usage as usize];
        debug_assert!(usage.held + usage.unschedulable < usage.workers, "L1: more held than there is");
        usage.unschedulable += 1;
    }

    /// Counts an unschedulable worker as idle.
    pub fn mark_schedulable(&mut self, usage: u32) {
        let usage = &mut self.usages[usage as usize];
        debug_assert!(usage.unschedulable > 0, "L1: freed what was not barred");
        usage.unschedulable -= 1;
    }

    /// Entries that have workers.
    pub fn usages(&self) -> impl Iterator<Item = &CapacityUsage> {
        self.usages.iter().filter(|usage| usage.workers > 0)
    }

    /// Total capacity of all workers.
    pub const fn total(&self) -> &ResourceTotals {
        &self.total
    }

    /// Largest amount of each resource that any worker has, used or not.
    pub fn max_capacity(&self) -> MaxCapacity {
        self.amounts.largest()
    }

    /// Version that advances with every new or removed capacity vector.
    pub const fn version(&self) -> u64 {
        self.version
    }

    /// Version that advances whenever a worker is added or removed.
    pub const fn membership_version(&self) -> u64 {
        self.membership_version
    }

    pub fn usage(&self, at: u32) -> &CapacityUsage {
        &self.usages[at as usize]
    }
}
