//! Total and used capacity, by distinct capacity vector.
//!
//! A fleet has few distinct vectors, so one entry per vector with its counts is the whole accounting: a claim changes
//! one counter instead of adding four amounts, and used totals are derived on demand. The total of all workers
//! changes with registrations only, and is kept.

use std::collections::BTreeMap;

use super::placement::bin_packing::ResourceTotals;
use super::workers::schedulability::UnschedulableSummary;
use crate::model::{ResourceVector, WorkerCapacity};

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

    const fn is_valid(&self) -> bool {
        self.held + self.unschedulable <= self.workers
    }
}

/// Number of entries by amount, for each resource: gives the largest amount after an entry is removed. It changes
/// with the set of entries, so neither claims nor workers with a common capacity pay for it.
#[derive(Debug, Default)]
struct AmountIndex([BTreeMap<u64, u32>; 4]);

impl AmountIndex {
    fn add(&mut self, capacity: &WorkerCapacity) {
        for (counts, amount) in self.0.iter_mut().zip(ResourceVector::from(capacity).to_array()) {
            *counts.entry(amount).or_default() += 1;
        }
    }

    fn remove(&mut self, capacity: &WorkerCapacity) {
        for (counts, amount) in self.0.iter_mut().zip(ResourceVector::from(capacity).to_array()) {
            let count = counts.get_mut(&amount).expect("an amount that is removed was added");
            *count -= 1;
            if *count == 0 {
                counts.remove(&amount);
            }
        }
    }

    fn largest(&self) -> ResourceVector {
        let [cpu_milli, memory_bytes, slots, gpu_milli] =
            self.0.each_ref().map(|counts| counts.last_key_value().map_or(0, |(&amount, _)| amount));
        ResourceVector { cpu_milli, memory_bytes, slots, gpu_milli }
    }
}

/// Use of a worker, as its capacity is accounted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WorkerUse {
    Idle,
    Busy,
    /// Neither idle nor busy: unschedulable without a claim.
    Unschedulable,
}

/// Capacity accounting of a shard: the only place that counts its workers. Each transition of a worker is one method,
/// which keeps all counts consistent (`L1`, `W11`).
#[derive(Debug, Default)]
pub struct CapacityAccounting {
    usages: Vec<CapacityUsage>,
    by_capacity: BTreeMap<WorkerCapacity, u32>,
    free_slots: Vec<u32>,
    amounts: AmountIndex,
    /// Total of all workers, GPU models aside.
    total: ResourceTotals,
    /// Version of everything but what claims change: the workers, and why they are unschedulable.
    version: u64,
    /// Version of the set of entries.
    capacity_version: u64,
    /// Number of workers that are not deleted.
    workers: usize,
    /// Number of workers with claims.
    busy: usize,
    unschedulable: UnschedulableSummary,
}

impl CapacityAccounting {
    /// Adds an idle worker and returns the index of its entry.
    pub fn add_worker(&mut self, capacity: &WorkerCapacity) -> u32 {
        self.workers += 1;
        self.enter(capacity)
    }

    /// Removes an idle worker.
    pub fn remove_idle(&mut self, at: u32) {
        assert!(self.workers > 0, "W11: a worker is removed from an empty shard");
        self.workers -= 1;
        self.leave(at);
    }

    /// Removes an unschedulable worker without claims.
    pub fn remove_unschedulable(&mut self, at: u32, reasons: u8) {
        self.change_reasons(at, WorkerUse::Unschedulable, reasons, 0);
        self.remove_idle(at);
    }

    /// Moves a worker to another capacity vector and returns the index of its new entry.
    pub fn change_capacity(&mut self, at: u32, capacity: &WorkerCapacity, usage: WorkerUse) -> u32 {
        if let Some(count) = self.count_mut(at, usage) {
            assert!(*count > 0, "L1: the worker is not counted as {usage:?}");
            *count -= 1;
        }
        self.leave(at);
        let at = self.enter(capacity);
        if let Some(count) = self.count_mut(at, usage) {
            *count += 1;
        }
        debug_assert!(self.usages[at as usize].is_valid(), "L1: more workers are used than there are");
        at
    }

    /// Counts an idle worker as busy.
    pub fn occupy_idle(&mut self, at: u32) {
        let usage = &mut self.usages[at as usize];
        debug_assert!(usage.held + usage.unschedulable < usage.workers, "L1: no worker of this capacity is idle");
        usage.held += 1;
        self.busy += 1;
        debug_assert!(self.busy <= self.workers, "W11: more workers are busy than there are");
    }

    /// Counts an unschedulable worker as busy.
    pub fn occupy_unschedulable(&mut self, at: u32, reasons: u8) {
        debug_assert!(reasons != 0, "W1: an unschedulable worker has a reason");
        let usage = &mut self.usages[at as usize];
        assert!(usage.unschedulable > 0, "L1: no worker of this capacity is unschedulable");
        usage.unschedulable -= 1;
        self.unschedulable.remove_unclaimed(reasons);
        self.version += 1;
        self.occupy_idle(at);
    }

    /// Counts a worker whose last claim ended as idle or, with reasons, as unschedulable.
    pub fn vacate(&mut self, at: u32, reasons: u8) {
        let usage = &mut self.usages[at as usize];
        debug_assert!(usage.held > 0 && self.busy > 0, "L1: a worker is vacated that was not busy");
        usage.held -= 1;
        self.busy -= 1;
        if reasons != 0 {
            usage.unschedulable += 1;
            self.unschedulable.add_unclaimed(reasons);
            self.version += 1;
        }
        debug_assert!(usage.is_valid(), "L1: more workers are used than there are");
    }

    /// Changes the reasons why a worker is unschedulable.
    pub fn change_reasons(&mut self, at: u32, usage: WorkerUse, before: u8, after: u8) {
        debug_assert!(usage != WorkerUse::Idle || before == 0, "W1: an idle worker has no reason to be unschedulable");
        self.unschedulable.remove(before);
        self.unschedulable.add(after);
        self.version += 1;
        if usage == WorkerUse::Busy {
            return;
        }
        self.unschedulable.remove_unclaimed(before);
        self.unschedulable.add_unclaimed(after);
        let usage = &mut self.usages[at as usize];
        match (before != 0, after != 0) {
            (false, true) => usage.unschedulable += 1,
            (true, false) => {
                assert!(usage.unschedulable > 0, "L1: no worker of this capacity is unschedulable");
                usage.unschedulable -= 1;
            }
            (false, false) | (true, true) => {}
        }
        debug_assert!(usage.is_valid(), "L1: more workers are used than there are");
    }

    fn count_mut(&mut self, at: u32, usage: WorkerUse) -> Option<&mut u32> {
        match usage {
            WorkerUse::Idle => None,
            WorkerUse::Busy => Some(&mut self.usages[at as usize].held),
            WorkerUse::Unschedulable => Some(&mut self.usages[at as usize].unschedulable),
        }
    }

    fn enter(&mut self, capacity: &WorkerCapacity) -> u32 {
        let at = self.by_capacity.get(capacity).copied().unwrap_or_else(|| self.add_usage(capacity));
        let usage = &mut self.usages[at as usize];
        debug_assert!(usage.capacity == *capacity, "L1: an entry is indexed under another capacity");
        usage.workers += 1;
        self.total.add_capacity(capacity);
        self.version += 1;
        at
    }

    fn add_usage(&mut self, capacity: &WorkerCapacity) -> u32 {
        self.capacity_version += 1;
        let usage = CapacityUsage { capacity: capacity.clone(), workers: 0, held: 0, unschedulable: 0 };
        let at = self.free_slots.pop().unwrap_or(self.usages.len() as u32);
        match self.usages.get_mut(at as usize) {
            Some(slot) => {
                assert_eq!(slot.workers, 0, "L1: an entry with workers is reused");
                *slot = usage;
            }
            None => self.usages.push(usage),
        }
        self.by_capacity.insert(capacity.clone(), at);
        self.amounts.add(capacity);
        at
    }

    fn leave(&mut self, at: u32) {
        let usage = &mut self.usages[at as usize];
        assert!(usage.workers > usage.held + usage.unschedulable, "L1: only an idle worker leaves the accounting");
        usage.workers -= 1;
        self.total.subtract_capacity(&usage.capacity);
        self.version += 1;
        if usage.workers == 0 {
            self.capacity_version += 1;
            let indexed = self.by_capacity.remove(&usage.capacity);
            assert_eq!(indexed, Some(at), "L1: an entry is indexed under its capacity");
            self.amounts.remove(&usage.capacity);
            self.free_slots.push(at);
        }
        debug_assert!(self.free_slots.len() <= self.usages.len(), "L1: more entries are free than there are");
    }

    /// Entries that have workers.
    pub fn usages(&self) -> impl Iterator<Item = &CapacityUsage> {
        self.usages.iter().filter(|usage| usage.workers > 0)
    }

    /// Number of workers that are not deleted.
    pub const fn workers(&self) -> usize {
        self.workers
    }

    /// Number of workers with claims.
    pub const fn busy(&self) -> usize {
        self.busy
    }

    /// Unschedulable workers by reason.
    pub const fn unschedulable(&self) -> &UnschedulableSummary {
        &self.unschedulable
    }

    /// Total capacity of all workers.
    pub const fn total(&self) -> &ResourceTotals {
        &self.total
    }

    /// Largest amount of each resource that any worker has, used or not.
    pub fn max_capacity(&self) -> ResourceVector {
        self.amounts.largest()
    }

    /// Version that advances with every new or removed capacity vector.
    pub const fn capacity_version(&self) -> u64 {
        self.capacity_version
    }

    /// Version that advances whenever a worker is added or removed, or its reasons to be unschedulable change.
    pub const fn version(&self) -> u64 {
        self.version
    }

    /// Lets what is published with the counts be published once more.
    pub const fn publish_again(&mut self) {
        self.version += 1;
    }

    pub fn usage(&self, at: u32) -> &CapacityUsage {
        &self.usages[at as usize]
    }
}
