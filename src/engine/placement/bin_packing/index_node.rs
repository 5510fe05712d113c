//! Node of a [`super::free_index::FreeIndex`]: up to [`FANOUT`] entries, each with bounds of its subtree.

use super::free_index::Key;
use super::free_resources::{FreeResources, GPU_MILLI, ResourceRequest};
use crate::engine::NIL;
use crate::engine::placement::expiries::NEVER;
use crate::model::{Millis, ResourceAmounts};

/// Entries of a node: few enough to be compared in one pass.
pub const FANOUT: usize = 16;

/// Bytes of memory in one unit: compact amounts keep a node in few cache lines.
const MEMORY_UNIT: u64 = 1 << 20;
/// Milliseconds in one unit of an end of life.
const LIFE_UNIT: Millis = 1_000;

/// Upper bounds of the amounts of some free resources, rounded up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FreeBounds {
    cpu_milli: u32,
    memory: u32,
    slots: u32,
    gpu_milli: u16,
    idle_gpus: u16,
    /// Latest end of life, in units.
    latest: u32,
    /// Smallest and largest sort key.
    min_sort_key: u64,
    max_sort_key: u64,
}

/// Request in the units of the bounds.
#[derive(Debug, Clone, Copy)]
pub struct CompactRequest {
    cpu_milli: u32,
    memory: u32,
    slots: u32,
    gpu_milli: u16,
    idle_gpus: u16,
    latest: u32,
}

/// Saturates an amount at `u32::MAX`, which stands for any larger one.
fn saturating_u32(amount: u64) -> u32 {
    u32::try_from(amount).unwrap_or(u32::MAX)
}

/// Largest amount that a compact one may stand for.
const fn upper_bound(amount: u32, unit: u64) -> u64 {
    if amount == u32::MAX { u64::MAX } else { (amount as u64).saturating_mul(unit) }
}

impl CompactRequest {
    /// Compact form of a request: free resources that fit it are bounded by no less.
    pub fn of(request: &ResourceRequest) -> Self {
        let (gpu_milli, idle_gpus) = match request.gpu_milli {
            GPU_MILLI => (0, request.gpu_count),
            fraction => (fraction, 0),
        };
        Self {
            cpu_milli: saturating_u32(request.cpu_milli),
            memory: saturating_u32(request.memory_bytes.div_ceil(MEMORY_UNIT)),
            slots: saturating_u32(request.slots),
            gpu_milli,
            idle_gpus,
            // The bound of a worker that ends one millisecond later.
            latest: saturating_u32(request.until_ms / LIFE_UNIT + 1),
        }
    }
}

/// End of life in the units of the bounds.
pub fn life_bound(ends_ms: Millis) -> u32 {
    if ends_ms == NEVER { u32::MAX } else { saturating_u32(ends_ms.div_ceil(LIFE_UNIT)) }
}

impl FreeBounds {
    pub const NONE: Self = Self {
        cpu_milli: 0,
        memory: 0,
        slots: 0,
        gpu_milli: 0,
        idle_gpus: 0,
        latest: 0,
        min_sort_key: u64::MAX,
        max_sort_key: 0,
    };

    /// Bounds of workers with these free resources, of which the last ends at `latest` ([`life_bound`]).
    pub fn of(free: &FreeResources, fingerprint: u64, latest: u32) -> Self {
        let sort_key = free.sort_key(fingerprint);
        Self {
            cpu_milli: saturating_u32(free.cpu_milli),
            memory: saturating_u32(free.memory_bytes.div_ceil(MEMORY_UNIT)),
            slots: saturating_u32(free.slots),
            gpu_milli: free.gpus.first().copied().unwrap_or(0),
            idle_gpus: free.idle_gpus(),
            latest,
            min_sort_key: sort_key,
            max_sort_key: sort_key,
        }
    }

    pub fn merge_max(&mut self, other: &Self) {
        self.cpu_milli = self.cpu_milli.max(other.cpu_milli);
        self.memory = self.memory.max(other.memory);
        self.slots = self.slots.max(other.slots);
        self.gpu_milli = self.gpu_milli.max(other.gpu_milli);
        self.idle_gpus = self.idle_gpus.max(other.idle_gpus);
        self.latest = self.latest.max(other.latest);
        self.min_sort_key = self.min_sort_key.min(other.min_sort_key);
        self.max_sort_key = self.max_sort_key.max(other.max_sort_key);
    }

    /// Upper bounds in full units.
    pub fn upper_amounts(&self) -> ResourceAmounts {
        ResourceAmounts {
            cpu_milli: upper_bound(self.cpu_milli, 1),
            memory_bytes: upper_bound(self.memory, MEMORY_UNIT),
            slots: upper_bound(self.slots, 1),
            gpu: self.idle_gpus.into(),
            gpu_milli: self.gpu_milli.into(),
        }
    }
}

#[derive(Debug, Clone, Copy)]
pub struct IndexEntry {
    pub bounds: FreeBounds,
    /// Lower bound of the keys in the subtree.
    pub key: Key,
    /// Child node; at a leaf, the caller's number.
    pub child: u32,
}

/// Columns of a node: a search reads only the cache lines of the requested resources.
#[derive(Debug, Clone)]
#[repr(align(64))]
pub struct IndexNode {
    cpu_milli: [u32; FANOUT],
    memory: [u32; FANOUT],
    pub min_sort_key: [u64; FANOUT],
    gpu_milli: [u16; FANOUT],
    idle_gpus: [u16; FANOUT],
    slots: [u32; FANOUT],
    latest: [u32; FANOUT],
    pub children: [u32; FANOUT],
    pub max_sort_key: [u64; FANOUT],
    pub keys: [Key; FANOUT],
    pub len: usize,
}

impl IndexNode {
    pub const EMPTY: Self = Self {
        cpu_milli: [0; FANOUT],
        memory: [0; FANOUT],
        min_sort_key: [u64::MAX; FANOUT],
        gpu_milli: [0; FANOUT],
        idle_gpus: [0; FANOUT],
        slots: [0; FANOUT],
        latest: [0; FANOUT],
        children: [NIL; FANOUT],
        max_sort_key: [0; FANOUT],
        keys: [(0, 0); FANOUT],
        len: 0,
    };

    /// Entries that may fit, as bits.
    pub fn may_fit(&self, request: &CompactRequest) -> u32 {
        let mut fit = [true; FANOUT];
        fit.iter_mut().zip(self.cpu_milli).for_each(|(fit, has)| *fit = has >= request.cpu_milli);
        fit.iter_mut().zip(self.memory).for_each(|(fit, has)| *fit &= has >= request.memory);
        if request.gpu_milli > 0 {
            fit.iter_mut().zip(self.gpu_milli).for_each(|(fit, has)| *fit &= has >= request.gpu_milli);
        }
        if request.idle_gpus > 0 {
            fit.iter_mut().zip(self.idle_gpus).for_each(|(fit, has)| *fit &= has >= request.idle_gpus);
        }
        if request.slots > 0 {
            fit.iter_mut().zip(self.slots).for_each(|(fit, has)| *fit &= has >= request.slots);
        }
        if request.latest > 1 {
            fit.iter_mut().zip(self.latest).for_each(|(fit, has)| *fit &= has >= request.latest);
        }
        let bits = fit.iter().enumerate().fold(0, |bits, (at, &fit)| bits | u32::from(fit) << at);
        bits & ((1 << self.len) - 1)
    }

    pub const fn bounds(&self, at: usize) -> FreeBounds {
        FreeBounds {
            cpu_milli: self.cpu_milli[at],
            memory: self.memory[at],
            slots: self.slots[at],
            gpu_milli: self.gpu_milli[at],
            idle_gpus: self.idle_gpus[at],
            latest: self.latest[at],
            min_sort_key: self.min_sort_key[at],
            max_sort_key: self.max_sort_key[at],
        }
    }

    pub const fn set_bounds(&mut self, at: usize, bounds: &FreeBounds) {
        self.cpu_milli[at] = bounds.cpu_milli;
        self.memory[at] = bounds.memory;
        self.slots[at] = bounds.slots;
        self.gpu_milli[at] = bounds.gpu_milli;
        self.idle_gpus[at] = bounds.idle_gpus;
        self.latest[at] = bounds.latest;
        self.min_sort_key[at] = bounds.min_sort_key;
        self.max_sort_key[at] = bounds.max_sort_key;
    }

    /// Position of a key: the last entry that is not above it, or the first.
    pub fn find(&self, key: &Key) -> usize {
        self.keys[..self.len].partition_point(|entry_key| entry_key <= key).saturating_sub(1)
    }

    pub const fn set(&mut self, at: usize, entry: IndexEntry) {
        self.set_bounds(at, &entry.bounds);
        self.keys[at] = entry.key;
        self.children[at] = entry.child;
    }

    /// Moves entries `from..len` so that they begin at `to`.
    pub fn shift(&mut self, from: usize, to: usize) {
        let entries = from..self.len;
        self.cpu_milli.copy_within(entries.clone(), to);
        self.memory.copy_within(entries.clone(), to);
        self.slots.copy_within(entries.clone(), to);
        self.gpu_milli.copy_within(entries.clone(), to);
        self.idle_gpus.copy_within(entries.clone(), to);
        self.latest.copy_within(entries.clone(), to);
        self.min_sort_key.copy_within(entries.clone(), to);
        self.max_sort_key.copy_within(entries.clone(), to);
        self.keys.copy_within(entries.clone(), to);
        self.children.copy_within(entries, to);
    }

    pub fn insert(&mut self, at: usize, entry: IndexEntry) {
        debug_assert!(at <= self.len && self.len < FANOUT, "Q1: an entry is inserted outside of the node");
        self.shift(at, at + 1);
        self.set(at, entry);
        self.len += 1;
        debug_assert!(self.keys[..self.len].is_sorted(), "Q1: the keys of a node are out of order");
    }

    pub fn remove(&mut self, at: usize) {
        debug_assert!(at < self.len, "Q1: an entry is removed that does not exist");
        self.shift(at + 1, at);
        self.len -= 1;
    }

    /// Appends the entries of `other` from `first` on.
    pub fn append(&mut self, other: &Self, first: usize) {
        debug_assert!(self.len + other.len - first <= FANOUT, "Q1: the entries of two nodes do not fit into one");
        for at in first..other.len {
            self.set(self.len, IndexEntry { bounds: other.bounds(at), key: other.keys[at], child: other.children[at] });
            self.len += 1;
        }
    }
}

/// Entry with the smallest key among those in `bits`, which is not empty; the first of equal ones.
#[inline]
pub fn argmin(keys: &[u64; FANOUT], bits: u32) -> usize {
    debug_assert!(bits != 0 && bits >> FANOUT == 0, "Q1: the set of candidates is empty or too large");
    let first = |bits: u32| bits.trailing_zeros() as usize % FANOUT;
    let mut best = first(bits);
    let (mut least, mut remaining) = (keys[best], bits & (bits - 1));
    while remaining != 0 {
        let at = first(remaining);
        if keys[at] < least {
            (best, least) = (at, keys[at]);
        }
        remaining &= remaining - 1;
    }
    best
}
