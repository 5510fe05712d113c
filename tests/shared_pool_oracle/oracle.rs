//! The naive oracle: workers and claims as lists, and what is left by adding up; beside it the shard.

use std::collections::BTreeMap;
use std::sync::Arc;

use hotpool::engine::{ClaimGrant, ClaimHandle, Effect, EngineReply, Event, ResumePoint, Shard, ShardReplay};
use hotpool::model::{ClaimId, PlacementPolicy, ResourceRequirements, WorkerId, WorkerSpec};
use hotpool::persist::row::put_shard;

/// A worker as the oracle has it.
#[derive(Debug, Clone)]
pub struct Worker {
    pub spec: WorkerSpec,
    pub cordoned: bool,
    /// End of its life, in engine time.
    pub ends_ms: Option<u64>,
}

/// Unix time of the world, which stands still.
pub const UNIX_MS: u64 = 1_000_000;

/// A claim as the oracle has it.
#[derive(Debug, Clone)]
pub struct Held {
    pub place: ClaimHandle,
    pub worker: String,
    pub resources: ResourceRequirements,
    pub cards: u64,
    /// Model of the cards that it was granted, if any.
    pub model: Option<Arc<str>>,
    /// The gang for which it is held provisionally.
    pub gang: Option<u64>,
}

pub struct World {
    pub shard: Shard,
    pub policy: PlacementPolicy,
    pub now_ms: u64,
    pub fence: u64,
    pub rows: Vec<u8>,
    pub workers: BTreeMap<String, Worker>,
    pub claims: BTreeMap<String, Held>,
    /// Claims made while no worker with room ended too soon, while some did, and refused because all did.
    pub seen: [u32; 3],
}

/// What is left of a worker: cores, memory, places, and of each card.
#[derive(Debug, Clone, PartialEq)]
pub struct Left {
    pub amounts: [i128; 3],
    pub cards: Vec<i64>,
}

impl World {
    pub fn new(policy: PlacementPolicy) -> Self {
        Self {
            shard: Shard::new(policy, 1),
            policy,
            now_ms: 1,
            fence: 0,
            rows: Vec::new(),
            workers: BTreeMap::new(),
            claims: BTreeMap::new(),
            seen: [0; 3],
        }
    }

    pub fn on(&mut self, event: Event<()>) -> (Option<EngineReply>, Vec<(ClaimId, u64)>) {
        let mut effects = Vec::new();
        self.shard.handle_event(event, self.now_ms, &mut effects);
        let (mut answer, mut ended) = (None, Vec::new());
        for effect in effects {
            match effect {
                Effect::Reply { answer: said, .. } => answer = Some(said),
                Effect::ClaimEnded { id, fence, .. } => ended.push((id, fence)),
                Effect::RetainEnded { .. } | Effect::WorkerLost { .. } | Effect::WorkerDeleted { .. } => {}
                Effect::ClaimAdopted { .. } => panic!("nothing is adopted in a shared pool"),
                Effect::ClaimCommitted { id, place } => {
                    let held = self.claims.get_mut(id.key()).expect("only what is held is committed");
                    assert_eq!(held.place, place);
                    assert!(held.gang.take().is_some(), "only a member is committed");
                }
            }
        }
        for (id, fence) in &ended {
            let gone = self.claims.remove(id.key()).expect("only what is held ends");
            assert_eq!(gone.place.fence, *fence);
        }
        self.shard.check().unwrap();
        self.compare();
        self.shard.take_rows(&mut self.rows);
        self.shard.take_header().iter().for_each(|head| put_shard(&mut self.rows, head));
        (answer, ended)
    }

    pub fn left(&self, id: &str) -> Left {
        let capacity = &self.workers[id].spec.capacity;
        let mut amounts = [capacity.cpu_milli, capacity.memory_bytes, capacity.slots].map(i128::from);
        let mut cards = vec![1_000_i64; capacity.gpu.as_ref().map_or(0, |gpu| gpu.count as usize)];
        for held in self.claims.values().filter(|held| held.worker == id) {
            let ResourceRequirements { cpu_milli, memory_bytes, slots, gpu } = &held.resources;
            for (left, amount) in amounts.iter_mut().zip([cpu_milli, memory_bytes, slots]) {
                *left -= i128::from(*amount);
            }
            let milli = gpu.as_ref().map_or(0, |gpu| i64::from(gpu.milli));
            assert_eq!(held.cards.count_ones(), gpu.as_ref().map_or(0, |gpu| gpu.count));
            for card in (0..64).filter(|card| held.cards & (1 << card) != 0) {
                // A card that a later registration does not have is one that has nothing.
                if cards.len() <= card {
                    cards.resize(card + 1, 0);
                }
                cards[card] -= milli;
            }
        }
        Left { amounts, cards }
    }

    pub fn has_room(&self, id: &str, asked: &ResourceRequirements, without: Option<&str>) -> bool {
        let worker = &self.workers[id];
        let mut left = self.left(id);
        if let Some(held) = without.map(|key| &self.claims[key]) {
            let back = [held.resources.cpu_milli, held.resources.memory_bytes, held.resources.slots];
            left.amounts.iter_mut().zip(back).for_each(|(left, amount)| *left += i128::from(amount));
            let milli = held.resources.gpu.as_ref().map_or(0, |gpu| i64::from(gpu.milli));
            let cards = left.cards.iter_mut().enumerate().filter(|(card, _)| held.cards & (1 << card) != 0);
            cards.for_each(|(_, left)| *left += milli);
        }
        let over = left.amounts.iter().any(|&left| left < 0) || left.cards.iter().any(|&left| left < 0);
        let cards = asked.gpu.as_ref().is_none_or(|gpu| {
            let model = worker.spec.capacity.gpu.as_ref().map(|gpu| &gpu.model);
            model.is_some_and(|model| gpu.models.is_empty() || gpu.models.contains(model))
                && left.cards.iter().filter(|&&left| left >= i64::from(gpu.milli)).count() >= gpu.count as usize
        });
        let needed = [asked.cpu_milli, asked.memory_bytes, asked.slots].map(i128::from);
        !over && cards && left.amounts.iter().zip(needed).all(|(&left, needed)| left >= needed)
    }

    /// Claims that are nobody's but their gang's are not shown.
    pub fn told(&self) -> impl Iterator<Item = (&String, &Held)> {
        self.claims.iter().filter(|(_, held)| held.gang.is_none())
    }

    pub fn compare(&self) {
        assert_eq!(self.shard.held(), self.claims.len());
        let mut members: Vec<_> =
            self.shard.provisional().map(|(gang, id, place)| (id.key().to_owned(), gang.id, place)).collect();
        members.sort_by(|one, two| one.0.cmp(&two.0));
        let expected = self.claims.iter().filter_map(|(key, held)| Some((key.clone(), held.gang?, held.place)));
        assert!(members.into_iter().eq(expected), "provisional claims");
        for (id, worker) in &self.workers {
            let look = self.shard.find_worker(&WorkerId::new(id).unwrap()).expect("it is registered");
            let left = self.left(id);
            let over = left.amounts.iter().any(|&left| left < 0) || left.cards.iter().any(|&left| left < 0);
            assert_eq!(look.conditions.overcommitted, over, "{id}: {left:?}");
            assert_eq!(look.registration.spec, worker.spec);
            let mut keys: Vec<_> = look.claims.iter().map(|(id, _)| id.key().to_owned()).collect();
            keys.sort();
            let held: Vec<_> = self.told().filter(|(_, held)| held.worker == *id).map(|(key, _)| key.clone()).collect();
            assert_eq!(keys, held, "{id}");
        }
    }

    /// What rows make of it must be what it is.
    pub fn restart(&mut self) {
        let mut replay = ShardReplay::new(self.policy, "ns", self.now_ms);
        replay.rows(&self.rows);
        let resume = ResumePoint {
            seq: self.shard.seq(),
            now_ms: self.now_ms,
            unix_ms: UNIX_MS,
            fence_floor: self.fence,
            previous_fence_floor: 0,
            restarted: true,
        };
        let shard = replay.finish(resume).map_err(|(wrong, _)| wrong).unwrap();
        let claims = |shard: &Shard| {
            let mut all: Vec<_> = shard
                .list_claims()
                .map(|(_, id, grant)| {
                    let times = grant.times();
                    let ClaimGrant { handle: place, gpu_mask: cards, spec, state, .. } = grant;
                    (id.key().to_owned(), place.fence, cards, spec, state, times)
                })
                .collect();
            all.sort_by(|a, b| a.0.cmp(&b.0));
            all
        };
        assert_eq!(claims(&shard), claims(&self.shard));
        assert_eq!(shard.free_summary(), self.shard.free_summary());
        self.shard = shard;
        for (_, id, grant) in self.shard.list_claims() {
            self.claims.get_mut(id.key()).unwrap().place = grant.handle;
        }
        for (_, id, place) in self.shard.provisional() {
            self.claims.get_mut(id.key()).unwrap().place = place;
        }
        self.compare();
        // All rows once more, as a rewrite takes them.
        self.rows.clear();
        assert_eq!(self.shard.snapshot_rows(0, usize::MAX, &mut self.rows), None);
    }
}
