//! How much there is and how much of it is held, by distinct capacity vector.
//!
//! A fleet has few distinct vectors, so a line per vector with two counts is the whole sum: a claim changes one
//! counter instead of adding four numbers, and totals of what is held are derived when somebody asks. What all workers have
//! together changes with registrations only, and is kept.

use std::collections::BTreeMap;

use super::placement::bin_packing::ResourceTotals;
use crate::model::{MaxCapacity, WorkerCapacity};

/// Workers with one capacity vector.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CapacityUsage {
    /// What each of them has.
    pub capacity: WorkerCapacity,
    /// How many there are.
    pub workers: u32,
    /// How many of them are held.
    pub held: u32,
    /// How many are neither held nor offered.
    pub unschedulable: u32,
}

impl CapacityUsage {
    /// How many of them are idle.
    #[must_use]
    pub const fn free(&self) -> u32 {
        self.workers - self.held - self.unschedulable
    }
}

/// Numbers of lines by amount, of each resource: what tells the largest when the line with it has gone. They change with
/// the lines that there are, so neither claims nor workers that are like others pay for them.
#[derive(Debug, Default)]
struct AmountIndex([BTreeMap<u64, u32>; 4]);

impl AmountIndex {
    fn of(capacity: &WorkerCapacity) -> [u64; 4] {
        let gpus = capacity.gpu.as_ref().map_or(0, |gpu| gpu.count.into());
        [capacity.cpu_milli, capacity.memory_bytes, capacity.slots, gpus]
    }

    fn add(&mut self, capacity: &WorkerCapacity) {
        for (lines, amount) in self.0.iter_mut().zip(Self::of(capacity)) {
            *lines.entry(amount).or_default() += 1;
        }
    }

    fn take(&mut self, capacity: &WorkerCapacity) {
        for (lines, amount) in self.0.iter_mut().zip(Self::of(capacity)) {
            let count = lines.get_mut(&amount).expect("what goes was added");
            *count -= 1;
            if *count == 0 {
                lines.remove(&amount);
            }
        }
    }

    fn largest(&self) -> MaxCapacity {
        let [cpu_milli, memory_bytes, slots, gpus] =
            self.0.each_ref().map(|lines| lines.last_key_value().map_or(0, |(&amount, _)| amount));
        MaxCapacity { cpu_milli, memory_bytes, slots, gpus }
    }
}

/// The ledger of a shard.
#[derive(Debug, Default)]
pub struct CapacityAccounting {
    lines: Vec<CapacityUsage>,
    by_capacity: BTreeMap<WorkerCapacity, u32>,
    unused: Vec<u32>,
    amounts: AmountIndex,
    /// What all workers have together, models of cards aside.
    total: ResourceTotals,
    /// Changes of which lines there are.
    version: u64,
    /// Workers that entered or left.
    moves: u64,
}

impl CapacityAccounting {
    /// Enters a worker and returns its line.
    pub fn add_worker(&mut self, capacity: &WorkerCapacity) -> u32 {
        let at = self.by_capacity.get(capacity).copied().unwrap_or_else(|| self.open(capacity));
        self.lines[at as usize].workers += 1;
        self.total.add_capacity(capacity);
        self.moves += 1;
        at
    }

    fn open(&mut self, capacity: &WorkerCapacity) -> u32 {
        self.version += 1;
        let line = CapacityUsage { capacity: capacity.clone(), workers: 0, held: 0, unschedulable: 0 };
        let at = self.unused.pop().unwrap_or(self.lines.len() as u32);
        match self.lines.get_mut(at as usize) {
            Some(unused) => *unused = line,
            None => self.lines.push(line),
        }
        self.by_capacity.insert(capacity.clone(), at);
        self.amounts.add(capacity);
        at
    }

    /// Takes a worker out that is not held.
    pub fn remove_worker(&mut self, at: u32) {
        let line = &mut self.lines[at as usize];
        debug_assert!(line.workers > line.held + line.unschedulable, "only a free worker leaves the ledger");
        line.workers -= 1;
        self.total.take_capacity(&line.capacity);
        self.moves += 1;
        if line.workers == 0 {
            self.version += 1;
            self.by_capacity.remove(&line.capacity);
            self.amounts.take(&line.capacity);
            self.unused.push(at);
        }
    }

    pub fn mark_held(&mut self, line: u32) {
        let line = &mut self.lines[line as usize];
        debug_assert!(line.held + line.unschedulable < line.workers, "L1: more held than there is");
        line.held += 1;
    }

    pub fn mark_free(&mut self, line: u32) {
        let line = &mut self.lines[line as usize];
        debug_assert!(line.held > 0, "L1: freed what was not held");
        line.held -= 1;
    }

    /// A free worker is not offered any more.
    pub fn mark_unschedulable(&mut self, line: u32) {
        let line = &mut self.lines[line as usize];
        debug_assert!(line.held + line.unschedulable < line.workers, "L1: more held than there is");
        line.unschedulable += 1;
    }

    /// A worker that was not offered is free.
    pub fn mark_schedulable(&mut self, line: u32) {
        let line = &mut self.lines[line as usize];
        debug_assert!(line.unschedulable > 0, "L1: freed what was not barred");
        line.unschedulable -= 1;
    }

    /// The lines in use.
    pub fn usages(&self) -> impl Iterator<Item = &CapacityUsage> {
        self.lines.iter().filter(|line| line.workers > 0)
    }

    /// What all workers have together.
    pub const fn total(&self) -> &ResourceTotals {
        &self.total
    }

    /// Largest amount of each resource that any worker has, held or not.
    pub fn max_capacity(&self) -> MaxCapacity {
        self.amounts.largest()
    }

    /// Moves whenever a capacity comes or goes.
    pub const fn version(&self) -> u64 {
        self.version
    }

    /// Moves whenever a worker enters or leaves.
    pub const fn membership_version(&self) -> u64 {
        self.moves
    }

    pub fn usage(&self, at: u32) -> &CapacityUsage {
        &self.lines[at as usize]
    }
}
