//! What is left of a fleet: of all offered workers together, and the most that any one of them has.

use std::sync::Arc;

use super::fleet::Fleet;
use super::free_index::Order;
use super::free_resources::{NO_MODEL, Room};
use super::index_node::Tops;
use crate::model::Capacity;

/// What some workers have left together.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Sum {
    /// How many they are.
    pub workers: u64,
    /// Thousandths of cores.
    pub cpu_milli: u128,
    /// Bytes of memory.
    pub memory_bytes: u128,
    /// Places.
    pub slots: u128,
    /// Thousandths of cards.
    pub cards_milli: u128,
}

/// Cards of one model that offered workers have left.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct CardsLeft {
    /// Cards of which nothing is held.
    idle: u64,
    /// Thousandths of all cards.
    milli: u64,
}

/// What all offered workers have left together.
#[derive(Debug, Default)]
pub(super) struct FleetLeft {
    /// Of those without cards, and of those with.
    sums: [Sum; 2],
    /// By model; nothing of [`NO_MODEL`].
    cards: Vec<CardsLeft>,
}

impl FleetLeft {
    /// A worker with this room is offered.
    pub fn add(&mut self, room: &Room) {
        let model = usize::from(room.model);
        self.sums[usize::from(room.model != NO_MODEL)].add(room);
        if room.model == NO_MODEL {
            return;
        }
        if self.cards.len() <= model {
            self.cards.resize(model + 1, CardsLeft::default());
        }
        self.cards[model].idle += u64::from(room.idle_cards());
        self.cards[model].milli += u64::from(room.cards_milli());
    }

    /// A worker with this room is not offered any more.
    pub fn take(&mut self, room: &Room) {
        self.sums[usize::from(room.model != NO_MODEL)].take(room);
        if room.model != NO_MODEL {
            let cards = &mut self.cards[usize::from(room.model)];
            cards.idle -= u64::from(room.idle_cards());
            cards.milli -= u64::from(room.cards_milli());
        }
    }

    /// Whether this is what the rooms of all offered workers sum to.
    ///
    /// # Errors
    /// What they sum to, and what was counted.
    pub fn check<'a>(&self, rooms: impl Iterator<Item = &'a Room>) -> Result<(), String> {
        let mut fresh = Self { sums: [Sum::default(); 2], cards: vec![CardsLeft::default(); self.cards.len()] };
        rooms.for_each(|room| fresh.add(room));
        if (fresh.sums, &fresh.cards) == (self.sums, &self.cards) {
            return Ok(());
        }
        Err(format!("L1: what is left sums to {fresh:?}, counted is {self:?}"))
    }
}

/// How many cores some workers have left for each card that they have left, all sums in thousandths. Of two shards the one
/// with more is asked for a share: so cores and cards run out together, and in all shards at once.
#[must_use]
pub fn cores_per_card(cpu_milli: u64, cards_milli: u64) -> f64 {
    cpu_milli as f64 / (cards_milli as f64 + 1.0)
}

impl Sum {
    /// Adds what a worker has in all.
    pub(in crate::engine) fn add_capacity(&mut self, capacity: &Capacity) {
        self.add(&Room::whole(capacity, NO_MODEL));
    }

    /// Takes away what [`Self::add_capacity`] added.
    pub(in crate::engine) fn take_capacity(&mut self, capacity: &Capacity) {
        self.take(&Room::whole(capacity, NO_MODEL));
    }

    pub(super) fn add(&mut self, room: &Room) {
        self.workers += 1;
        self.cpu_milli += u128::from(room.cpu_milli);
        self.memory_bytes += u128::from(room.memory_bytes);
        self.slots += u128::from(room.slots);
        self.cards_milli += u128::from(room.cards_milli());
    }

    pub(super) fn take(&mut self, room: &Room) {
        self.workers -= 1;
        self.cpu_milli -= u128::from(room.cpu_milli);
        self.memory_bytes -= u128::from(room.memory_bytes);
        self.slots -= u128::from(room.slots);
        self.cards_milli -= u128::from(room.cards_milli());
    }
}

/// The most that any one worker of some has left, resource by resource.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Most {
    /// Thousandths of cores.
    pub cpu_milli: u64,
    /// Bytes of memory.
    pub memory_bytes: u64,
    /// Places.
    pub slots: u64,
    /// Thousandths of one card.
    pub card_milli: u16,
    /// Cards of which nothing is held.
    pub idle_cards: u16,
}

impl Fleet {
    /// What the offered workers have left together: those without cards, and those with.
    #[must_use]
    pub const fn sums(&self) -> [Sum; 2] {
        self.left.sums
    }

    /// The most that any one of them has left, in the same two parts.
    #[must_use]
    pub fn most(&self) -> [Most; 2] {
        let most = |orders: &[Order]| {
            let mut tops = Tops::NONE;
            orders.iter().filter_map(Order::tops).for_each(|other| tops.raise(&other));
            let (cpu_milli, memory_bytes, slots, card_milli, idle_cards) = tops.most();
            Most { cpu_milli, memory_bytes, slots, card_milli, idle_cards }
        };
        let (without, with) = self.orders.split_at(self.orders.len().min(1));
        [most(without), most(with)]
    }

    /// The cards that can be claimed: of each model, how many of which nothing is held, and their thousandths in all.
    pub fn free_cards(&self) -> impl Iterator<Item = (&Arc<str>, u64, u64)> {
        self.models.iter().zip(self.left.cards.iter().skip(1)).map(|(name, left)| (name, left.idle, left.milli))
    }
}
