//! How much there is and how much of it is held, by distinct capacity vector.
//!
//! A fleet has few distinct vectors, so a line per vector with two counts is the whole sum: a claim changes one
//! counter instead of adding four numbers, and totals of what is held are derived when somebody asks. What all workers have
//! together changes with registrations only, and is kept.

use std::collections::BTreeMap;

use super::placement::bin_packing::Sum;
use crate::model::{Capacity, LargestAmounts};

/// Workers with one capacity vector.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LedgerLine {
    /// What each of them has.
    pub capacity: Capacity,
    /// How many there are.
    pub workers: u32,
    /// How many of them are held.
    pub held: u32,
    /// How many are neither held nor offered.
    pub barred: u32,
}

impl LedgerLine {
    /// How many of them are idle.
    #[must_use]
    pub const fn free(&self) -> u32 {
        self.workers - self.held - self.barred
    }
}

/// Numbers of lines by amount, of each resource: what tells the largest when the line with it has gone. They change with
/// the lines that there are, so neither claims nor workers that are like others pay for them.
#[derive(Debug, Default)]
struct LineAmounts([BTreeMap<u64, u32>; 4]);

impl LineAmounts {
    fn of(capacity: &Capacity) -> [u64; 4] {
        let gpus = capacity.gpu.as_ref().map_or(0, |gpu| gpu.count.into());
        [capacity.cpu_milli, capacity.memory_bytes, capacity.slots, gpus]
    }

    fn add(&mut self, capacity: &Capacity) {
        for (lines, amount) in self.0.iter_mut().zip(Self::of(capacity)) {
            *lines.entry(amount).or_default() += 1;
        }
    }

    fn take(&mut self, capacity: &Capacity) {
        for (lines, amount) in self.0.iter_mut().zip(Self::of(capacity)) {
            let count = lines.get_mut(&amount).expect("what goes was added");
            *count -= 1;
            if *count == 0 {
                lines.remove(&amount);
            }
        }
    }

    fn largest(&self) -> LargestAmounts {
        let [cpu_milli, memory_bytes, slots, gpus] =
            self.0.each_ref().map(|lines| lines.last_key_value().map_or(0, |(&amount, _)| amount));
        LargestAmounts { cpu_milli, memory_bytes, slots, gpus }
    }
}

/// The ledger of a shard.
#[derive(Debug, Default)]
pub struct Ledger {
    lines: Vec<LedgerLine>,
    by_capacity: BTreeMap<Capacity, u32>,
    unused: Vec<u32>,
    amounts: LineAmounts,
    /// What all workers have together, models of cards aside.
    total: Sum,
    /// Changes of which lines there are.
    version: u64,
    /// Workers that entered or left.
    moves: u64,
}

impl Ledger {
    /// Enters a worker and returns its line.
    pub fn enter(&mut self, capacity: &Capacity) -> u32 {
        let at = self.by_capacity.get(capacity).copied().unwrap_or_else(|| self.open(capacity));
        self.lines[at as usize].workers += 1;
        self.total.add_capacity(capacity);
        self.moves += 1;
        at
    }

    fn open(&mut self, capacity: &Capacity) -> u32 {
        self.version += 1;
        let line = LedgerLine { capacity: capacity.clone(), workers: 0, held: 0, barred: 0 };
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
    pub fn leave(&mut self, at: u32) {
        let line = &mut self.lines[at as usize];
        debug_assert!(line.workers > line.held + line.barred, "only a free worker leaves the ledger");
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

    pub fn hold(&mut self, line: u32) {
        let line = &mut self.lines[line as usize];
        debug_assert!(line.held + line.barred < line.workers, "L1: more held than there is");
        line.held += 1;
    }

    pub fn free(&mut self, line: u32) {
        let line = &mut self.lines[line as usize];
        debug_assert!(line.held > 0, "L1: freed what was not held");
        line.held -= 1;
    }

    /// A free worker is not offered any more.
    pub fn bar(&mut self, line: u32) {
        let line = &mut self.lines[line as usize];
        debug_assert!(line.held + line.barred < line.workers, "L1: more held than there is");
        line.barred += 1;
    }

    /// A worker that was not offered is free.
    pub fn unbar(&mut self, line: u32) {
        let line = &mut self.lines[line as usize];
        debug_assert!(line.barred > 0, "L1: freed what was not barred");
        line.barred -= 1;
    }

    /// The lines in use.
    pub fn lines(&self) -> impl Iterator<Item = &LedgerLine> {
        self.lines.iter().filter(|line| line.workers > 0)
    }

    /// What all workers have together.
    pub const fn total(&self) -> &Sum {
        &self.total
    }

    /// Largest amount of each resource that any worker has, held or not.
    pub fn largest(&self) -> LargestAmounts {
        self.amounts.largest()
    }

    /// Moves whenever a capacity comes or goes.
    pub const fn version(&self) -> u64 {
        self.version
    }

    /// Moves whenever a worker enters or leaves.
    pub const fn moves(&self) -> u64 {
        self.moves
    }

    pub fn line(&self, at: u32) -> &LedgerLine {
        &self.lines[at as usize]
    }
}
