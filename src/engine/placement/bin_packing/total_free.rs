//! What is left of a fleet: of all offered workers together, and the most that any one of them has.

use std::sync::Arc;

use super::fleet::FleetIndex;
use super::free_index::FreeIndex;
use super::free_resources::{FreeResources, NO_MODEL};
use super::index_node::FreeBounds;
use crate::model::WorkerCapacity;

/// What some workers have left together.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct ResourceTotals {
    /// How many they are.
    pub workers: u64,
    /// Thousandths of cores.
    pub cpu_milli: u128,
    /// Bytes of memory.
    pub memory_bytes: u128,
    /// Places.
    pub slots: u128,
    /// Thousandths of cards.
    pub gpu_milli: u128,
}

/// Cards of one model that offered workers have left.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct FreeGpus {
    /// Cards of which nothing is held.
    idle: u64,
    /// Thousandths of all cards.
    milli: u64,
}

/// What all offered workers have left together.
#[derive(Debug, Default)]
pub(super) struct FleetTotals {
    /// Of those without cards, and of those with.
    sums: [ResourceTotals; 2],
    /// By model; nothing of [`NO_MODEL`].
    cards: Vec<FreeGpus>,
}

impl FleetTotals {
    /// A worker with this room is offered.
    pub fn add(&mut self, room: &FreeResources) {
        let model = usize::from(room.model);
        self.sums[usize::from(room.model != NO_MODEL)].add(room);
        if room.model == NO_MODEL {
            return;
        }
        if self.cards.len() <= model {
            self.cards.resize(model + 1, FreeGpus::default());
        }
        self.cards[model].idle += u64::from(room.idle_gpus());
        self.cards[model].milli += u64::from(room.free_gpu_milli());
    }

    /// A worker with this room is not offered any more.
    pub fn take(&mut self, room: &FreeResources) {
        self.sums[usize::from(room.model != NO_MODEL)].take(room);
        if room.model != NO_MODEL {
            let cards = &mut self.cards[usize::from(room.model)];
            cards.idle -= u64::from(room.idle_gpus());
            cards.milli -= u64::from(room.free_gpu_milli());
        }
    }

    /// Whether this is what the rooms of all offered workers sum to.
    ///
    /// # Errors
    /// What they sum to, and what was counted.
    pub fn check<'a>(&self, rooms: impl Iterator<Item = &'a FreeResources>) -> Result<(), String> {
        let mut fresh =
            Self { sums: [ResourceTotals::default(); 2], cards: vec![FreeGpus::default(); self.cards.len()] };
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
pub fn cores_per_gpu(cpu_milli: u64, cards_milli: u64) -> f64 {
    cpu_milli as f64 / (cards_milli as f64 + 1.0)
}

impl ResourceTotals {
    /// Adds what a worker has in all.
    pub(in crate::engine) fn add_capacity(&mut self, capacity: &WorkerCapacity) {
        self.add(&FreeResources::unallocated(capacity, NO_MODEL));
    }

    /// Takes away what [`Self::add_capacity`] added.
    pub(in crate::engine) fn take_capacity(&mut self, capacity: &WorkerCapacity) {
        self.take(&FreeResources::unallocated(capacity, NO_MODEL));
    }

    pub(super) fn add(&mut self, room: &FreeResources) {
        self.workers += 1;
        self.cpu_milli += u128::from(room.cpu_milli);
        self.memory_bytes += u128::from(room.memory_bytes);
        self.slots += u128::from(room.slots);
        self.gpu_milli += u128::from(room.free_gpu_milli());
    }

    pub(super) fn take(&mut self, room: &FreeResources) {
        self.workers -= 1;
        self.cpu_milli -= u128::from(room.cpu_milli);
        self.memory_bytes -= u128::from(room.memory_bytes);
        self.slots -= u128::from(room.slots);
        self.gpu_milli -= u128::from(room.free_gpu_milli());
    }
}

/// The most that any one worker of some has left, resource by resource.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct MaxFree {
    /// Thousandths of cores.
    pub cpu_milli: u64,
    /// Bytes of memory.
    pub memory_bytes: u64,
    /// Places.
    pub slots: u64,
    /// Thousandths of one card.
    pub gpu_milli: u16,
    /// Cards of which nothing is held.
    pub idle_gpus: u16,
}

impl FleetIndex {
    /// What the offered workers have left together: those without cards, and those with.
    #[must_use]
    pub const fn totals(&self) -> [ResourceTotals; 2] {
        self.totals.sums
    }

    /// The most that any one of them has left, in the same two parts.
    #[must_use]
    pub fn max_free(&self) -> [MaxFree; 2] {
        let most = |orders: &[FreeIndex]| {
            let mut tops = FreeBounds::NONE;
            orders.iter().filter_map(FreeIndex::bounds).for_each(|other| tops.merge_max(&other));
            let (cpu_milli, memory_bytes, slots, card_milli, idle_cards) = tops.upper_amounts();
            MaxFree { cpu_milli, memory_bytes, slots, gpu_milli: card_milli, idle_gpus: idle_cards }
        };
        let (without, with) = self.orders.split_at(self.orders.len().min(1));
        [most(without), most(with)]
    }

    /// The cards that can be claimed: of each model, how many of which nothing is held, and their thousandths in all.
    pub fn free_gpus(&self) -> impl Iterator<Item = (&Arc<str>, u64, u64)> {
        self.models.iter().zip(self.totals.cards.iter().skip(1)).map(|(name, left)| (name, left.idle, left.milli))
    }
}
