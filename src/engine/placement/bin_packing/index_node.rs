//! A node of an [`super::free_index::FreeIndex`]: up to [`FANOUT`] items, each with bounds of the rooms below it.

use super::free_index::Key;
use super::free_resources::{FreeResources, GPU_MILLI, ResourceRequest};
use crate::engine::NIL;
use crate::engine::placement::expiries::NEVER;
use crate::model::Millis;

/// Items of a node: a node is looked through in one go, so few enough for that to be quick.
pub const FANOUT: usize = 16;

/// Bytes of memory that count as one here: amounts are kept small, so that a node is few cache lines.
const MEMORY_UNIT: u64 = 1 << 20;
/// Milliseconds of a life that count as one here.
const LIFE_UNIT: Millis = 1_000;

/// Bounds of the amounts of some rooms, rounded up; or of one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FreeBounds {
    cpu_milli: u32,
    memory: u32,
    slots: u32,
    card_milli: u16,
    idle_cards: u16,
    /// Latest end of a life.
    latest: u32,
    /// Least and largest rank.
    min_sort_key: u64,
    max_sort_key: u64,
}

/// A need, or a bound of one, as small as bounds are.
#[derive(Debug, Clone, Copy)]
pub struct CompactRequest {
    cpu_milli: u32,
    memory: u32,
    slots: u32,
    card_milli: u16,
    idle_cards: u16,
    latest: u32,
}

/// As `u32`, where the most stands for that much or more.
fn saturating_u32(amount: u64) -> u32 {
    u32::try_from(amount).unwrap_or(u32::MAX)
}

/// The most that such a number may stand for.
const fn upper_bound(amount: u32, unit: u64) -> u64 {
    if amount == u32::MAX { u64::MAX } else { (amount as u64).saturating_mul(unit) }
}

impl CompactRequest {
    /// Whatever has room for the need is bounded by no less than this.
    pub fn of(need: &ResourceRequest) -> Self {
        let (card_milli, idle_cards) = match need.gpu_milli {
            GPU_MILLI => (0, need.gpu_count),
            share => (share, 0),
        };
        Self {
            cpu_milli: saturating_u32(need.cpu_milli),
            memory: saturating_u32(need.memory_bytes.div_ceil(MEMORY_UNIT)),
            slots: saturating_u32(need.slots),
            card_milli,
            idle_cards,
            // Of who ends one millisecond later.
            latest: saturating_u32(need.until_ms / LIFE_UNIT + 1),
        }
    }
}

/// An end of life as bounds have it.
pub fn life_bound(ends_ms: Millis) -> u32 {
    if ends_ms == NEVER { u32::MAX } else { saturating_u32(ends_ms.div_ceil(LIFE_UNIT)) }
}

impl FreeBounds {
    pub const NONE: Self = Self {
        cpu_milli: 0,
        memory: 0,
        slots: 0,
        card_milli: 0,
        idle_cards: 0,
        latest: 0,
        min_sort_key: u64::MAX,
        max_sort_key: 0,
    };

    /// Of workers with this room, the last of which ends then ([`life_bound`]).
    pub fn of(room: &FreeResources, mark: u64, latest: u32) -> Self {
        let rank = room.sort_key(mark);
        Self {
            cpu_milli: saturating_u32(room.cpu_milli),
            memory: saturating_u32(room.memory_bytes.div_ceil(MEMORY_UNIT)),
            slots: saturating_u32(room.slots),
            card_milli: room.gpus.first().copied().unwrap_or(0),
            idle_cards: room.idle_gpus(),
            latest,
            min_sort_key: rank,
            max_sort_key: rank,
        }
    }

    pub fn merge_max(&mut self, other: &Self) {
        self.cpu_milli = self.cpu_milli.max(other.cpu_milli);
        self.memory = self.memory.max(other.memory);
        self.slots = self.slots.max(other.slots);
        self.card_milli = self.card_milli.max(other.card_milli);
        self.idle_cards = self.idle_cards.max(other.idle_cards);
        self.latest = self.latest.max(other.latest);
        self.min_sort_key = self.min_sort_key.min(other.min_sort_key);
        self.max_sort_key = self.max_sort_key.max(other.max_sort_key);
    }

    /// No room has more than this: cores, memory, places, one card, idle cards.
    pub fn upper_amounts(&self) -> (u64, u64, u64, u16, u16) {
        let (cpu, memory) = (upper_bound(self.cpu_milli, 1), upper_bound(self.memory, MEMORY_UNIT));
        (cpu, memory, upper_bound(self.slots, 1), self.card_milli, self.idle_cards)
    }
}

#[derive(Debug, Clone, Copy)]
pub struct IndexEntry {
    pub bounds: FreeBounds,
    /// Not above any key below.
    pub key: Key,
    /// A node; at a leaf, what the caller put in.
    pub child: u32,
}

/// Each amount lies apart: a look for room reads those lines only that the need asks about.
#[derive(Debug, Clone)]
#[repr(align(64))]
pub struct IndexNode {
    cpu_milli: [u32; FANOUT],
    memory: [u32; FANOUT],
    pub min_sort_key: [u64; FANOUT],
    card_milli: [u16; FANOUT],
    idle_cards: [u16; FANOUT],
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
        card_milli: [0; FANOUT],
        idle_cards: [0; FANOUT],
        slots: [0; FANOUT],
        latest: [0; FANOUT],
        children: [NIL; FANOUT],
        max_sort_key: [0; FANOUT],
        keys: [(0, 0); FANOUT],
        len: 0,
    };

    /// The items that may have room, as bits.
    pub fn may_fit(&self, ask: &CompactRequest) -> u32 {
        let mut fit = [true; FANOUT];
        fit.iter_mut().zip(self.cpu_milli).for_each(|(fit, has)| *fit = has >= ask.cpu_milli);
        fit.iter_mut().zip(self.memory).for_each(|(fit, has)| *fit &= has >= ask.memory);
        if ask.card_milli > 0 {
            fit.iter_mut().zip(self.card_milli).for_each(|(fit, has)| *fit &= has >= ask.card_milli);
        }
        if ask.idle_cards > 0 {
            fit.iter_mut().zip(self.idle_cards).for_each(|(fit, has)| *fit &= has >= ask.idle_cards);
        }
        if ask.slots > 0 {
            fit.iter_mut().zip(self.slots).for_each(|(fit, has)| *fit &= has >= ask.slots);
        }
        if ask.latest > 1 {
            fit.iter_mut().zip(self.latest).for_each(|(fit, has)| *fit &= has >= ask.latest);
        }
        let bits = fit.iter().enumerate().fold(0, |bits, (at, &fit)| bits | u32::from(fit) << at);
        bits & ((1 << self.len) - 1)
    }

    pub const fn bounds(&self, at: usize) -> FreeBounds {
        FreeBounds {
            cpu_milli: self.cpu_milli[at],
            memory: self.memory[at],
            slots: self.slots[at],
            card_milli: self.card_milli[at],
            idle_cards: self.idle_cards[at],
            latest: self.latest[at],
            min_sort_key: self.min_sort_key[at],
            max_sort_key: self.max_sort_key[at],
        }
    }

    pub const fn set_bounds(&mut self, at: usize, tops: &FreeBounds) {
        self.cpu_milli[at] = tops.cpu_milli;
        self.memory[at] = tops.memory;
        self.slots[at] = tops.slots;
        self.card_milli[at] = tops.card_milli;
        self.idle_cards[at] = tops.idle_cards;
        self.latest[at] = tops.latest;
        self.min_sort_key[at] = tops.min_sort_key;
        self.max_sort_key[at] = tops.max_sort_key;
    }

    /// Where a key belongs: the last item that is not above it, or the first.
    pub fn find(&self, key: &Key) -> usize {
        self.keys[..self.len].partition_point(|known| known <= key).saturating_sub(1)
    }

    pub const fn set(&mut self, at: usize, item: IndexEntry) {
        self.set_bounds(at, &item.bounds);
        self.keys[at] = item.key;
        self.children[at] = item.child;
    }

    /// Moves items `from..len` so that they begin at `to`.
    pub fn shift(&mut self, from: usize, to: usize) {
        let items = from..self.len;
        self.cpu_milli.copy_within(items.clone(), to);
        self.memory.copy_within(items.clone(), to);
        self.slots.copy_within(items.clone(), to);
        self.card_milli.copy_within(items.clone(), to);
        self.idle_cards.copy_within(items.clone(), to);
        self.latest.copy_within(items.clone(), to);
        self.min_sort_key.copy_within(items.clone(), to);
        self.max_sort_key.copy_within(items.clone(), to);
        self.keys.copy_within(items.clone(), to);
        self.children.copy_within(items, to);
    }

    pub fn insert(&mut self, at: usize, item: IndexEntry) {
        self.shift(at, at + 1);
        self.set(at, item);
        self.len += 1;
    }

    pub fn remove(&mut self, at: usize) {
        self.shift(at + 1, at);
        self.len -= 1;
    }

    /// Moves the items of `other` from `first` on to the end.
    pub fn append(&mut self, other: &Self, first: usize) {
        for at in first..other.len {
            self.set(self.len, IndexEntry { bounds: other.bounds(at), key: other.keys[at], child: other.children[at] });
            self.len += 1;
        }
    }
}

/// Item with the least of these amounts among those in `bits`, of which there is at least one; the first of equal ones.
#[inline]
pub fn argmin(of: &[u64; FANOUT], bits: u32) -> usize {
    debug_assert!(bits != 0 && bits >> FANOUT == 0);
    let first = |bits: u32| bits.trailing_zeros() as usize % FANOUT;
    let mut best = first(bits);
    let (mut amount, mut rest) = (of[best], bits & (bits - 1));
    while rest != 0 {
        let at = first(rest);
        if of[at] < amount {
            (best, amount) = (at, of[at]);
        }
        rest &= rest - 1;
    }
    best
}
