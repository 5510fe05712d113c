//! A node of an [`super::free_index::Order`]: up to [`FAN`] items, each with bounds of the rooms below it.

use super::free_index::Key;
use super::free_resources::{CARD_MILLI, Need, Room};
use crate::engine::NIL;
use crate::engine::placement::expiries::NEVER;
use crate::model::Millis;

/// Items of a node: a node is looked through in one go, so few enough for that to be quick.
pub const FAN: usize = 16;

/// Bytes of memory that count as one here: amounts are kept small, so that a node is few cache lines.
const MEMORY_UNIT: u64 = 1 << 20;
/// Milliseconds of a life that count as one here.
const LIFE_UNIT: Millis = 1_000;

/// Bounds of the amounts of some rooms, rounded up; or of one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Tops {
    cpu_milli: u32,
    memory: u32,
    slots: u32,
    card_milli: u16,
    idle_cards: u16,
    /// Latest end of a life.
    latest: u32,
    /// Least and largest rank.
    light: u64,
    heavy: u64,
}

/// A need, or a bound of one, as small as bounds are.
#[derive(Debug, Clone, Copy)]
pub struct Ask {
    cpu_milli: u32,
    memory: u32,
    slots: u32,
    card_milli: u16,
    idle_cards: u16,
    latest: u32,
}

/// As `u32`, where the most stands for that much or more.
fn small(amount: u64) -> u32 {
    u32::try_from(amount).unwrap_or(u32::MAX)
}

/// The most that such a number may stand for.
const fn large(amount: u32, unit: u64) -> u64 {
    if amount == u32::MAX { u64::MAX } else { (amount as u64).saturating_mul(unit) }
}

impl Ask {
    /// Whatever has room for the need is bounded by no less than this.
    pub fn of(need: &Need) -> Self {
        let (card_milli, idle_cards) = match need.card_milli {
            CARD_MILLI => (0, need.cards),
            share => (share, 0),
        };
        Self {
            cpu_milli: small(need.cpu_milli),
            memory: small(need.memory_bytes.div_ceil(MEMORY_UNIT)),
            slots: small(need.slots),
            card_milli,
            idle_cards,
            // Of who ends one millisecond later.
            latest: small(need.until_ms / LIFE_UNIT + 1),
        }
    }
}

/// An end of life as bounds have it.
pub fn life_bound(ends_ms: Millis) -> u32 {
    if ends_ms == NEVER { u32::MAX } else { small(ends_ms.div_ceil(LIFE_UNIT)) }
}

impl Tops {
    pub const NONE: Self =
        Self { cpu_milli: 0, memory: 0, slots: 0, card_milli: 0, idle_cards: 0, latest: 0, light: u64::MAX, heavy: 0 };

    /// Of workers with this room, the last of which ends then ([`life_bound`]).
    pub fn of(room: &Room, mark: u64, latest: u32) -> Self {
        let rank = room.rank(mark);
        Self {
            cpu_milli: small(room.cpu_milli),
            memory: small(room.memory_bytes.div_ceil(MEMORY_UNIT)),
            slots: small(room.slots),
            card_milli: room.cards.first().copied().unwrap_or(0),
            idle_cards: room.idle_cards(),
            latest,
            light: rank,
            heavy: rank,
        }
    }

    pub fn raise(&mut self, other: &Self) {
        self.cpu_milli = self.cpu_milli.max(other.cpu_milli);
        self.memory = self.memory.max(other.memory);
        self.slots = self.slots.max(other.slots);
        self.card_milli = self.card_milli.max(other.card_milli);
        self.idle_cards = self.idle_cards.max(other.idle_cards);
        self.latest = self.latest.max(other.latest);
        self.light = self.light.min(other.light);
        self.heavy = self.heavy.max(other.heavy);
    }

    /// No room has more than this: cores, memory, places, one card, idle cards.
    pub fn most(&self) -> (u64, u64, u64, u16, u16) {
        let (cpu, memory) = (large(self.cpu_milli, 1), large(self.memory, MEMORY_UNIT));
        (cpu, memory, large(self.slots, 1), self.card_milli, self.idle_cards)
    }
}

#[derive(Debug, Clone, Copy)]
pub struct Item {
    pub tops: Tops,
    /// Not above any key below.
    pub key: Key,
    /// A node; at a leaf, what the caller put in.
    pub below: u32,
}

/// Each amount lies apart: a look for room reads those lines only that the need asks about.
#[derive(Debug, Clone)]
#[repr(align(64))]
pub struct Node {
    cpu_milli: [u32; FAN],
    memory: [u32; FAN],
    pub light: [u64; FAN],
    card_milli: [u16; FAN],
    idle_cards: [u16; FAN],
    slots: [u32; FAN],
    latest: [u32; FAN],
    pub below: [u32; FAN],
    pub heavy: [u64; FAN],
    pub keys: [Key; FAN],
    pub len: usize,
}

impl Node {
    pub const EMPTY: Self = Self {
        cpu_milli: [0; FAN],
        memory: [0; FAN],
        light: [u64::MAX; FAN],
        card_milli: [0; FAN],
        idle_cards: [0; FAN],
        slots: [0; FAN],
        latest: [0; FAN],
        below: [NIL; FAN],
        heavy: [0; FAN],
        keys: [(0, 0); FAN],
        len: 0,
    };

    /// The items that may have room, as bits.
    pub fn may_fit(&self, ask: &Ask) -> u32 {
        let mut fit = [true; FAN];
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

    pub const fn tops(&self, at: usize) -> Tops {
        Tops {
            cpu_milli: self.cpu_milli[at],
            memory: self.memory[at],
            slots: self.slots[at],
            card_milli: self.card_milli[at],
            idle_cards: self.idle_cards[at],
            latest: self.latest[at],
            light: self.light[at],
            heavy: self.heavy[at],
        }
    }

    pub const fn set_tops(&mut self, at: usize, tops: &Tops) {
        self.cpu_milli[at] = tops.cpu_milli;
        self.memory[at] = tops.memory;
        self.slots[at] = tops.slots;
        self.card_milli[at] = tops.card_milli;
        self.idle_cards[at] = tops.idle_cards;
        self.latest[at] = tops.latest;
        self.light[at] = tops.light;
        self.heavy[at] = tops.heavy;
    }

    /// Where a key belongs: the last item that is not above it, or the first.
    pub fn find(&self, key: &Key) -> usize {
        self.keys[..self.len].partition_point(|known| known <= key).saturating_sub(1)
    }

    pub const fn set(&mut self, at: usize, item: Item) {
        self.set_tops(at, &item.tops);
        self.keys[at] = item.key;
        self.below[at] = item.below;
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
        self.light.copy_within(items.clone(), to);
        self.heavy.copy_within(items.clone(), to);
        self.keys.copy_within(items.clone(), to);
        self.below.copy_within(items, to);
    }

    pub fn put(&mut self, at: usize, item: Item) {
        self.shift(at, at + 1);
        self.set(at, item);
        self.len += 1;
    }

    pub fn cut(&mut self, at: usize) {
        self.shift(at + 1, at);
        self.len -= 1;
    }

    /// Moves the items of `other` from `first` on to the end.
    pub fn append(&mut self, other: &Self, first: usize) {
        for at in first..other.len {
            self.set(self.len, Item { tops: other.tops(at), key: other.keys[at], below: other.below[at] });
            self.len += 1;
        }
    }
}

/// Item with the least of these amounts among those in `bits`, of which there is at least one; the first of equal ones.
#[inline]
pub fn least(of: &[u64; FAN], bits: u32) -> usize {
    debug_assert!(bits != 0 && bits >> FAN == 0);
    let first = |bits: u32| bits.trailing_zeros() as usize % FAN;
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
