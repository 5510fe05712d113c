//! What is left of a fleet: of all offered workers together, and the most that any one of them has.

use std::sync::Arc;

use super::fleet::Fleet;
use super::node::Tops;
use super::order::Order;
use super::room::{Need, Room};

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

/// How many cores some workers have left for each card that they have left, all sums in thousandths. Of two shards the one
/// with more is asked for a share: so cores and cards run out together, and in all shards at once.
#[must_use]
pub fn cores_per_card(cpu_milli: u64, cards_milli: u64) -> f64 {
    cpu_milli as f64 / (cards_milli as f64 + 1.0)
}

impl Sum {
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
        self.sums
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

    /// The cards that can be claimed: of each model, how many of which nothing is held, and their thousandths in all. Costs
    /// a look at every distinct room.
    pub fn free_cards(&self) -> impl Iterator<Item = (&Arc<str>, u64, u64)> {
        self.models.iter().zip(self.orders.iter().skip(1)).map(|(name, order)| {
            let (mut idle, mut milli) = (0, 0);
            order.each(&Need::default(), &mut |at| {
                let group = &self.groups[at as usize];
                idle += u64::from(group.room.idle_cards()) * group.members.len() as u64;
                milli += u64::from(group.room.cards_milli()) * group.members.len() as u64;
            });
            (name, idle, milli)
        })
    }
}
