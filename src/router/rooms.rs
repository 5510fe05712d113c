//! What the shards of a shared pool say that they have left.
//!
//! Two kinds of numbers, each apart for workers without cards and with: the most that any one worker has, which proves
//! that a claim does not fit (never below the truth, as [`super`] asks); and the sum, by which a batch is portioned so that
//! each shard is asked once.

use std::sync::atomic::{AtomicU16, AtomicU64, Ordering};

use crossbeam::utils::CachePadded;
use smallvec::SmallVec;

use crate::engine::fit::{CARD_MILLI, Most, Sum, cores_per_card};
use crate::engine::{CardFilter, Wants};
use crate::model::Resources;
use crate::shard::Visited;

#[derive(Debug, Default)]
struct Part {
    cpu_milli: AtomicU64,
    memory_bytes: AtomicU64,
    slots: AtomicU64,
    card_milli: AtomicU16,
    idle_cards: AtomicU16,
    sum_cpu_milli: AtomicU64,
    sum_memory_bytes: AtomicU64,
    sum_slots: AtomicU64,
    sum_cards_milli: AtomicU64,
}

/// What all shards of a pool say.
#[derive(Debug)]
pub struct Rooms(Box<[CachePadded<[Part; 2]>]>);

impl Rooms {
    /// Of `shards` shards, without workers.
    pub fn new(shards: u16) -> Self {
        Self(std::iter::repeat_with(CachePadded::default).take(shards.into()).collect())
    }

    /// Shard `shard` says what it has, before its answers leave.
    pub fn publish(&self, shard: u16, rooms: &[(Sum, Most); 2]) {
        let put = |to: &AtomicU64, amount: u64| to.store(amount, Ordering::Relaxed);
        let sum = |to: &AtomicU64, amount: u128| put(to, u64::try_from(amount).unwrap_or(u64::MAX));
        for (part, (all, most)) in self.0[shard as usize].iter().zip(rooms) {
            put(&part.cpu_milli, most.cpu_milli);
            put(&part.memory_bytes, most.memory_bytes);
            put(&part.slots, most.slots);
            part.card_milli.store(most.card_milli, Ordering::Relaxed);
            part.idle_cards.store(most.idle_cards, Ordering::Relaxed);
            sum(&part.sum_cpu_milli, all.cpu_milli);
            sum(&part.sum_memory_bytes, all.memory_bytes);
            sum(&part.sum_slots, all.slots);
            sum(&part.sum_cards_milli, all.cards_milli);
        }
    }

    /// The parts whose workers may take the claim.
    fn parts(&self, shard: u16, wants: &Wants) -> &[Part] {
        let parts = &self.0[shard as usize];
        let gpu = wants.spec.as_ref().is_some_and(|spec| spec.resources.gpu.is_some());
        match (gpu, &wants.cards) {
            (true, _) | (_, CardFilter::Only(_)) => &parts[1..],
            (false, CardFilter::Without) => &parts[..1],
            (false, CardFilter::Any) => &parts[..],
        }
    }

    /// False only if no worker of the shard has room for the claim.
    pub fn may_fit(&self, shard: u16, wants: &Wants) -> bool {
        let Some(spec) = &wants.spec else { return true };
        self.parts(shard, wants).iter().any(|part| part.may_fit(&spec.resources))
    }

    fn cores_per_card(&self, shard: u16, wants: &Wants) -> f64 {
        let get = |amount: &AtomicU64| amount.load(Ordering::Relaxed);
        let cores =
            self.parts(shard, wants).iter().fold(0_u64, |sum, part| sum.saturating_add(get(&part.sum_cpu_milli)));
        cores_per_card(cores, get(&self.0[shard as usize][1].sum_cards_milli))
    }

    /// What these shards have left in all: cores, memory, places, thousandths of cards.
    #[must_use]
    pub fn total(&self, shards: impl Iterator<Item = u16>) -> [u64; 4] {
        shards.fold([0; 4], |sum, shard| {
            let Budget(parts) = self.budget(shard);
            std::array::from_fn(|i| parts.iter().fold(sum[i], |sum: u64, part| sum.saturating_add(part[i])))
        })
    }

    /// What the shard can be asked for in one batch.
    pub fn budget(&self, shard: u16) -> Budget {
        Budget(std::array::from_fn(|i| {
            let part = &self.0[shard as usize][i];
            let get = |amount: &AtomicU64| amount.load(Ordering::Relaxed);
            let [cpu, memory] = [get(&part.sum_cpu_milli), get(&part.sum_memory_bytes)];
            [cpu, memory, get(&part.sum_slots), get(&part.sum_cards_milli)]
        }))
    }

    /// Which of the shards in `open` that were not visited is asked next: of two by `salt` that may have room and that
    /// `portion` has something left for, the one with more cores left for each card ([`cores_per_card`]); with `spread`, the
    /// one with more of everything.
    pub fn pick(
        &self,
        open: impl Iterator<Item = u16>,
        visited: &Visited,
        wants: &Wants,
        salt: u64,
        spread: bool,
        portion: impl Fn(u16) -> bool,
    ) -> Option<u16> {
        let fits = |&shard: &u16| !visited.contains(shard) && self.may_fit(shard, wants) && portion(shard);
        let shards: SmallVec<[u16; 64]> = open.filter(fits).collect();
        let nth = |hash: u64| ((u128::from(hash) * shards.len() as u128) >> 64) as usize;
        let one = *shards.get(nth(salt))?;
        let two = shards[nth(salt.rotate_left(32).wrapping_mul(0x9e37_79b9_7f4a_7c15))];
        let more = if spread {
            self.budget(two).weight() > self.budget(one).weight()
        } else {
            self.cores_per_card(two, wants) > self.cores_per_card(one, wants)
        };
        Some(if more { two } else { one })
    }
}

impl Part {
    fn may_fit(&self, asked: &Resources) -> bool {
        let has = |most: &AtomicU64, amount: u64| most.load(Ordering::Relaxed) >= amount;
        let cards = asked.gpu.as_ref().is_none_or(|gpu| match gpu.milli as u16 {
            CARD_MILLI => u32::from(self.idle_cards.load(Ordering::Relaxed)) >= gpu.count,
            share => self.card_milli.load(Ordering::Relaxed) >= share,
        });
        cards
            && has(&self.cpu_milli, asked.cpu_milli)
            && has(&self.memory_bytes, asked.memory_bytes)
            && has(&self.slots, asked.slots)
    }
}

/// What is left of a shard while a batch is portioned: cores, memory, places, cards; in the two parts.
#[derive(Debug, Clone, Copy)]
pub struct Budget([[u64; 4]; 2]);

impl Budget {
    /// Takes what the claim asks for out of the part that it would come from. False: there is not enough.
    pub fn take(&mut self, wants: &Wants) -> bool {
        let Some(spec) = &wants.spec else { return true };
        let asked = &spec.resources;
        let cards = asked.gpu.as_ref().map_or(0, |gpu| u64::from(gpu.count) * u64::from(gpu.milli));
        let amounts = [asked.cpu_milli, asked.memory_bytes, asked.slots, cards];
        let parts = match (&asked.gpu, &wants.cards) {
            (Some(_), _) | (_, CardFilter::Only(_)) => &mut self.0[1..],
            (None, CardFilter::Without) => &mut self.0[..1],
            (None, CardFilter::Any) => &mut self.0[..],
        };
        let enough = |part: &&mut [u64; 4]| part.iter().zip(amounts).all(|(left, amount)| *left >= amount);
        let Some(part) = parts.iter_mut().find(enough) else { return false };
        part.iter_mut().zip(amounts).for_each(|(left, amount)| *left -= amount);
        true
    }

    /// How much it is in one number, as [`crate::engine::fit::Room::weight`] counts.
    fn weight(&self) -> u128 {
        let of = |[cpu, memory, slots, cards]: [u64; 4]| {
            u128::from(cpu) + u128::from(memory >> 22) + u128::from(slots) * 1_000 + u128::from(cards) * 16
        };
        self.0.into_iter().map(of).sum()
    }
}
