//! What a worker has left, what a claim needs of it, and which cards that takes.

use std::hash::{Hash as _, Hasher as _};

use smallvec::SmallVec;
use xxhash_rust::xxh3::Xxh3;

use crate::model::{Millis, WorkerCapacity};

/// A whole card, in thousandths.
pub const GPU_MILLI: u16 = 1_000;

/// Number of a GPU model within its [`super::Fleet`]; [`NO_MODEL`] stands for a worker without cards.
pub type ModelId = u16;

/// The model of workers that have no cards.
pub const NO_MODEL: ModelId = 0;

/// Free thousandths of each card.
pub type Cards = SmallVec<[u16; 8]>;

/// What a worker has left. Two workers with equal rooms are interchangeable for every decision about room.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub struct FreeResources {
    /// Whatever tells its worker from others that have as much left; 0: nothing.
    pub class_id: u32,
    /// Model of its cards.
    pub model: ModelId,
    /// Thousandths of a core.
    pub cpu_milli: u64,
    /// Bytes of memory.
    pub memory_bytes: u64,
    /// Places.
    pub slots: u64,
    /// Free thousandths of each card, largest first. Which card is which is known to the worker only.
    pub gpus: Cards,
}

/// What a claim needs of one worker. Either one share of a card, or some whole cards, or none.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub struct ResourceRequest {
    /// Thousandths of a core.
    pub cpu_milli: u64,
    /// Bytes of memory.
    pub memory_bytes: u64,
    /// Places.
    pub slots: u64,
    /// Number of cards; 0: it needs none.
    pub gpu_count: u16,
    /// Thousandths of each card: 1..=1000; 1000 if `cards` is above 1; 0 if it is 0.
    pub gpu_milli: u16,
    /// Models that will do; empty: any.
    pub models: SmallVec<[ModelId; 4]>,
    /// Engine time beyond which its worker must live.
    pub until_ms: Millis,
}

/// What one claim holds of its worker.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct ResourceAllocation {
    /// Thousandths of a core.
    pub cpu_milli: u64,
    /// Bytes of memory.
    pub memory_bytes: u64,
    /// Places.
    pub slots: u64,
    /// Thousandths of each of its cards.
    pub gpu_milli: u16,
    /// Which cards: bit `i` stands for card `i` of the worker.
    pub gpu_mask: u64,
}

impl FreeResources {
    /// All that a worker has, with nothing held.
    #[must_use]
    pub fn unallocated(capacity: &WorkerCapacity, model: ModelId) -> Self {
        let count = capacity.gpu.as_ref().map_or(0, |gpu| gpu.count as usize);
        Self {
            class_id: 0,
            model,
            cpu_milli: capacity.cpu_milli,
            memory_bytes: capacity.memory_bytes,
            slots: capacity.slots,
            gpus: SmallVec::from_elem(GPU_MILLI, count),
        }
    }

    /// Free thousandths of all cards together.
    #[must_use]
    pub fn free_gpu_milli(&self) -> u32 {
        self.gpus.iter().map(|&milli| u32::from(milli)).sum()
    }

    /// Cards of which nothing is held.
    #[must_use]
    pub fn idle_gpus(&self) -> u16 {
        self.gpus.iter().take_while(|&&milli| milli == GPU_MILLI).count() as u16
    }

    /// Whether the need fits, the model aside.
    #[must_use]
    pub fn fits(&self, need: &ResourceRequest) -> bool {
        self.cpu_milli >= need.cpu_milli
            && self.memory_bytes >= need.memory_bytes
            && self.slots >= need.slots
            && (need.gpu_count == 0
                || self.gpus.get(need.gpu_count as usize - 1).is_some_and(|&milli| milli >= need.gpu_milli))
    }

    /// How much is left in all, in one number: thousandths of a core, where 4 MiB of memory count as one, a place as
    /// 1,000 and a thousandth of a card as 16 (one card goes with 16 cores and 4 GiB with one core, as clouds sell them).
    ///
    /// A claim takes the same off the weight wherever it goes, so "what leaves the least behind" is the least weight
    /// among those that fit: an order of rooms that no request changes, which is what makes an index possible.
    #[must_use]
    pub fn weight(&self) -> u64 {
        // At most 2^53 + 2^31 + 1000 * 2^53 + 2^20: no sum overflows.
        self.cpu_milli + (self.memory_bytes >> 22) + self.slots * 1_000 + u64::from(self.free_gpu_milli()) * 16
    }

    /// Where the room stands in the index: near those that have about as much of everything. It is a point of a Z-order
    /// curve (Morton, 1966) through cores, memory, places and cards, each by its logarithm in quarters.
    #[must_use]
    pub(super) fn zorder_key(&self) -> u32 {
        // Eight bits, spread to every fourth.
        let spread = |amount: u64| {
            let x = quarter_log2(amount);
            let x = (x | x << 12) & 0x000f_000f;
            let x = (x | x << 6) & 0x0303_0303;
            (x | x << 3) & 0x1111_1111
        };
        spread(self.cpu_milli)
            | spread(self.memory_bytes >> 20) << 1
            | spread(u64::from(self.free_gpu_milli())) << 2
            | spread(self.slots) << 3
    }

    /// The same number for equal rooms, on every machine: orders those of equal weight.
    #[must_use]
    pub fn fingerprint(&self) -> u64 {
        let mut hasher = Xxh3::new();
        (self.model, self.cpu_milli, self.memory_bytes, self.slots).hash(&mut hasher);
        self.gpus.hash(&mut hasher);
        if self.class_id != 0 {
            self.class_id.hash(&mut hasher);
        }
        hasher.finish()
    }

    /// Weight and mark in one number, which orders rooms: the weight as long as it is below 2^34, beyond that its first 34
    /// bits; then the first 24 bits of the mark.
    #[must_use]
    pub fn sort_key(&self, mark: u64) -> u64 {
        const BITS: u32 = 34;
        let weight = self.weight();
        let short = match weight.checked_ilog2() {
            Some(log) if log >= BITS => {
                let beyond = log - BITS + 1;
                (u64::from(beyond) << (BITS - 1)) + (weight >> beyond)
            }
            _ => weight,
        };
        short << 24 | mark >> 40
    }

    /// What is left after the need is taken, with a share coming from a card that has `from` left. It must fit.
    #[must_use]
    pub fn after_allocating(&self, need: &ResourceRequest, from: u16) -> Self {
        let mut room = self.clone();
        room.cpu_milli -= need.cpu_milli;
        room.memory_bytes -= need.memory_bytes;
        room.slots -= need.slots;
        allocate_gpus(&mut room.gpus, need, from);
        room
    }
}

/// Logarithm to base two, in quarters: the exponent and the two bits after the leading one. At most 255.
const fn quarter_log2(amount: u64) -> u32 {
    match amount {
        0..4 => amount as u32,
        _ => {
            let exponent = amount.ilog2();
            exponent * 4 - 4 + (amount >> (exponent - 2)) as u32 - 4
        }
    }
}

/// Takes a need from cards in order, largest first, and keeps them so.
pub(super) fn allocate_gpus(cards: &mut Cards, need: &ResourceRequest, from: u16) {
    match need.gpu_count {
        0 => {}
        1 => {
            let at = cards.iter().position(|&milli| milli == from).expect("a card with this much left");
            cards[at] -= need.gpu_milli;
            let left = cards[at];
            let end = cards[at..].iter().position(|&milli| milli < left).map_or(cards.len(), |beyond| at + beyond);
            cards[at..end].rotate_left(1);
        }
        count => {
            // Whole cards are the first ones.
            cards[..count as usize].fill(0);
            cards.rotate_left(count as usize);
        }
    }
}

/// How a share chooses among the cards of its worker that fit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum GpuPacking {
    /// The fullest.
    Fullest,
    /// The emptiest.
    Emptiest,
}

impl GpuPacking {
    /// How much the card has left from which a need is taken, among cards in order, largest first. The need must fit.
    #[must_use]
    pub fn free_milli_of_pick(self, cards: &[u16], need: &ResourceRequest) -> u16 {
        let fitting = || cards.iter().copied().take_while(|&milli| milli >= need.gpu_milli);
        match (need.gpu_count, self) {
            (1, Self::Fullest) => fitting().last().unwrap_or(0),
            (1, Self::Emptiest) => fitting().next().unwrap_or(0),
            (0, _) => 0,
            _ => GPU_MILLI,
        }
    }
}

/// Which cards of a worker, whose cards stand in their own order, a need takes: those with the lowest numbers among
/// them that have `from` left. None: there are too few.
#[must_use]
pub fn choose_gpus(cards: &[u16], need: &ResourceRequest, from: u16) -> Option<u64> {
    let mut chosen = 0_u64;
    let mut missing = need.gpu_count;
    for (at, &milli) in cards.iter().enumerate() {
        if missing > 0 && milli == from {
            chosen |= 1 << at;
            missing -= 1;
        }
    }
    (missing == 0).then_some(chosen)
}

impl ResourceRequest {
    /// What it holds once it has these cards.
    #[must_use]
    pub const fn allocation(&self, cards: u64) -> ResourceAllocation {
        ResourceAllocation {
            cpu_milli: self.cpu_milli,
            memory_bytes: self.memory_bytes,
            slots: self.slots,
            gpu_milli: self.gpu_milli,
            gpu_mask: cards,
        }
    }
}
