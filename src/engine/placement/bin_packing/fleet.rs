//! The workers of a fleet by what they have left.
//!
//! Workers with equal rooms are one *group*: a decision looks at groups, and of the group that is chosen takes the
//! worker with the lowest ordinal. Groups stand in one [`FreeIndex`] per GPU model. So best fit and spread cost
//! the way down a tree, and FGD a look at each distinct room that fits, however many workers there are.
//!
//! A worker that may not be offered is in no group. It keeps its room all the same.
//!
//! Workers with an end of life stand apart in their group, in a tree that finds the first of them that lives for long enough;
//! and what an [`FreeIndex`] knows of a group is also the latest end in it.

use std::collections::VecDeque;
use std::sync::Arc;

use hashbrown::HashTable;

use super::free_index::{FreeIndex, Key};
use super::free_resources::{Cards, FreeResources, GPU_MILLI, ModelId, NO_MODEL, ResourceAllocation, ResourceRequest};
use super::index_node::{FreeBounds, life_bound};
use super::total_free::FleetTotals;
use crate::engine::NIL;
use crate::engine::placement::expiries::{ExpiryForest, ExpiryTree, NEVER, SearchDirection};
use crate::limits;
use crate::model::{Millis, WorkerCapacity};

/// Workers with equal rooms.
#[derive(Debug)]
pub struct WorkerGroup {
    /// What each of them has left.
    pub free: FreeResources,
    zorder_key: u32,
    /// See [`Room::mark`].
    pub fingerprint: u64,
    /// Ordinals of those that never end, highest first: the one that is taken leaves at the end, and one that registers
    /// comes to the front.
    pub(super) members: VecDeque<u32>,
    /// The others, by ordinal.
    expiring: ExpiryTree,
    /// Latest end, as the order has it.
    latest: u32,
    generation: u64,
}

impl WorkerGroup {
    /// Tells this group from every other that there was under its number.
    #[must_use]
    pub const fn generation(&self) -> u64 {
        self.generation
    }

    const fn key(&self, at: u32) -> Key {
        (self.zorder_key, at)
    }
}

#[derive(Debug)]
struct FleetEntry {
    /// `NIL`: not offered; its room is then in `aside`.
    group: u32,
    /// Free thousandths of each card, in the order of the cards.
    gpus: Box<[u16]>,
    withdrawn_free: Option<Box<FreeResources>>,
}

/// The workers of a fleet by what they have left. Whoever owns it numbers the workers, without large gaps.
#[derive(Debug, Default)]
pub struct FleetIndex {
    pub(super) models: Vec<Arc<str>>,
    slots: Vec<Option<FleetEntry>>,
    pub(super) groups: Vec<WorkerGroup>,
    unused: Vec<u32>,
    by_free: HashTable<u32>,
    /// By model.
    pub(super) orders: Vec<FreeIndex>,
    expiries: ExpiryForest,
    next_generation: u64,
    pub(super) totals: FleetTotals,
}

impl FleetIndex {
    /// The number of a model, which it is given at its first mention. None: there are [`limits::SHARD_MODELS_MAX`].
    pub fn model(&mut self, name: &str) -> Option<ModelId> {
        if let Some(known) = self.known_model(name) {
            return Some(known);
        }
        if self.models.len() >= limits::SHARD_MODELS_MAX {
            return None;
        }
        self.models.push(name.into());
        Some(self.models.len() as ModelId)
    }

    /// The number of a model that some worker had.
    #[must_use]
    pub fn known_model(&self, name: &str) -> Option<ModelId> {
        self.models.iter().position(|known| **known == *name).map(|at| at as ModelId + 1)
    }

    /// Enters a worker that holds nothing, and offers it.
    pub fn insert(&mut self, at: u32, capacity: &WorkerCapacity) {
        self.insert_with(at, capacity, 0, []);
        self.offer(at);
    }

    /// Enters a worker that holds these shares, and does not offer it yet. False: it has less than they sum to; then it must
    /// not be offered, and what is short is taken as 0.
    pub fn insert_with(
        &mut self,
        at: u32,
        capacity: &WorkerCapacity,
        profile: u32,
        shares: impl IntoIterator<Item = ResourceAllocation>,
    ) -> bool {
        let model = capacity.gpu.as_ref().map_or(Some(NO_MODEL), |gpu| self.model(&gpu.model));
        let model = model.expect("whoever registers workers asks for their model first");
        let mut room = FreeResources { class_id: profile, ..FreeResources::unallocated(capacity, model) };
        let mut enough = true;
        let mut less = |have: &mut u64, amount: u64| {
            enough &= *have >= amount;
            *have = have.saturating_sub(amount);
        };
        let mut cards: Box<[u16]> = room.gpus.to_vec().into();
        for share in shares {
            less(&mut room.cpu_milli, share.cpu_milli);
            less(&mut room.memory_bytes, share.memory_bytes);
            less(&mut room.slots, share.slots);
            for card in (0..64).filter(|card| share.gpu_mask & (1 << card) != 0) {
                let mut left = cards.get(card).copied().map_or(0, u64::from);
                less(&mut left, share.gpu_milli.into());
                if let Some(milli) = cards.get_mut(card) {
                    *milli = left as u16;
                }
            }
        }
        room.gpus.copy_from_slice(&cards);
        room.gpus.sort_unstable_by(|one, two| two.cmp(one));
        if self.slots.len() <= at as usize {
            self.slots.resize_with(at as usize + 1, || None);
        }
        self.slots[at as usize] = Some(FleetEntry { group: NIL, gpus: cards, withdrawn_free: Some(Box::new(room)) });
        enough
    }

    /// Whether the worker was entered and did not leave.
    #[must_use]
    pub fn contains(&self, at: u32) -> bool {
        self.slots.get(at as usize).is_some_and(Option::is_some)
    }

    /// Tells the worker from others with equal rooms by this number from now on.
    pub fn set_class(&mut self, at: u32, profile: u32) {
        if self.slot(at).group == NIL {
            if let Some(room) = &mut self.slot_mut(at).withdrawn_free {
                room.class_id = profile;
            }
        } else if self.free(at).class_id != profile {
            let room = FreeResources { class_id: profile, ..self.leave_group(at) };
            self.join_group(at, room);
        }
    }

    /// Sets the end of a worker's life.
    pub fn set_ends_ms(&mut self, at: u32, ends_ms: Option<Millis>) {
        let ends_ms = ends_ms.unwrap_or(NEVER);
        if self.expiries.ends_ms(at) == ends_ms {
            return;
        }
        let group = if self.contains(at) { self.slot(at).group } else { NIL };
        if group != NIL {
            self.remove_member(group, at);
        }
        self.expiries.set_ends_ms(at, ends_ms);
        if group != NIL {
            self.add_member(group, at);
            self.update_bound(group);
        }
    }

    /// End of a worker's life.
    #[must_use]
    pub fn ends_ms(&self, at: u32) -> Option<Millis> {
        Some(self.expiries.ends_ms(at)).filter(|&ends_ms| ends_ms != NEVER)
    }

    /// Whether the end of any worker's life was ever set.
    #[must_use]
    pub const fn has_ends(&self) -> bool {
        self.expiries.has_ends()
    }

    /// The member of a group that is taken next by whoever needs it until `until_ms`, if one lives beyond that and passes.
    pub fn first_outliving(
        &self,
        group: &WorkerGroup,
        until_ms: Millis,
        mut passes: impl FnMut(u32) -> bool,
    ) -> Option<u32> {
        let endless = group.members.iter().rev().copied().find(|&at| passes(at));
        if group.expiring.is_empty() {
            return endless;
        }
        self.expiries.count_step();
        let ending = self.expiries.find(group.expiring, SearchDirection::Ascending, until_ms, &mut passes);
        endless.into_iter().chain(ending).min()
    }

    /// How many members a group has.
    #[must_use]
    pub fn members(&self, group: &WorkerGroup) -> usize {
        group.members.len() + self.expiries.len(group.expiring)
    }

    /// Groups and nodes of trees that searches for workers that live for long enough have looked at so far.
    #[must_use]
    pub fn steps(&self) -> u64 {
        self.expiries.steps()
    }

    /// Takes a worker out.
    pub fn remove(&mut self, at: u32) {
        self.withdraw(at);
        self.slots[at as usize] = None;
    }

    /// Offers a worker, if it is not offered already.
    pub fn offer(&mut self, at: u32) {
        if let Some(room) = self.slot_mut(at).withdrawn_free.take() {
            self.join_group(at, *room);
        }
    }

    /// Offers a worker no more, if it is offered.
    pub fn withdraw(&mut self, at: u32) {
        if self.slot(at).group != NIL {
            let room = self.leave_group(at);
            self.slot_mut(at).withdrawn_free = Some(Box::new(room));
        }
    }

    /// Whether it is offered.
    #[must_use]
    pub fn is_offered(&self, at: u32) -> bool {
        self.slot(at).group != NIL
    }

    /// What a worker has left.
    #[must_use]
    pub fn free(&self, at: u32) -> &FreeResources {
        let slot = self.slot(at);
        slot.withdrawn_free.as_deref().unwrap_or_else(|| &self.groups[slot.group as usize].free)
    }

    /// Free thousandths of each card of a worker, in the order of its cards.
    #[must_use]
    pub fn gpus(&self, at: u32) -> &[u16] {
        &self.slot(at).gpus
    }

    /// Takes a share of a worker, which must have it.
    pub fn allocate(&mut self, at: u32, share: &ResourceAllocation) {
        const OVERCOMMIT_PANIC: &str = "L1: no more is taken than there is";
        self.adjust(
            at,
            share,
            |have, amount| *have = have.checked_sub(amount).expect(OVERCOMMIT_PANIC),
            |milli, amount| *milli = milli.checked_sub(amount).expect(OVERCOMMIT_PANIC),
        );
    }

    /// Gives back what [`Self::take`] took.
    pub fn release(&mut self, at: u32, share: &ResourceAllocation) {
        self.adjust(at, share, |have, amount| *have += amount, |milli, amount| *milli += amount);
    }

    fn adjust(
        &mut self,
        at: u32,
        share: &ResourceAllocation,
        amount: impl Fn(&mut u64, u64),
        card: impl Fn(&mut u16, u16),
    ) {
        let slot = self.slot_mut(at);
        let mut bits = share.gpu_mask;
        while bits != 0 {
            let milli = &mut slot.gpus[bits.trailing_zeros() as usize];
            card(milli, share.gpu_milli);
            debug_assert!(*milli <= GPU_MILLI, "L1: no more of a card is given back than was taken");
            bits &= bits - 1;
        }
        let number = slot.group;
        let mut aside = slot.withdrawn_free.take();
        let mut room = match &mut aside {
            Some(room) => std::mem::take(&mut **room),
            None => self.groups[number as usize].free.clone(),
        };
        amount(&mut room.cpu_milli, share.cpu_milli);
        amount(&mut room.memory_bytes, share.memory_bytes);
        amount(&mut room.slots, share.slots);
        if share.gpu_mask != 0 {
            room.gpus.copy_from_slice(&self.slot(at).gpus);
            room.gpus.sort_unstable_by(|one, two| two.cmp(one));
        }
        match aside {
            Some(mut aside) => {
                *aside = room;
                self.slot_mut(at).withdrawn_free = Some(aside);
            }
            None => self.regroup(at, number, room),
        }
    }

    /// An offered worker has this left now. Often it was alone with what it had and is alone with what it has, and stands
    /// where it stood: then only amounts change.
    fn regroup(&mut self, at: u32, number: u32, room: FreeResources) {
        let (place, mark) = (room.zorder_key(), room.fingerprint());
        let group = &self.groups[number as usize];
        let stays = group.zorder_key == place && group.free.model == room.model && self.members(group) == 1;
        if !stays || self.find(&room, mark).is_some() {
            self.leave_group(at);
            self.join_group(at, room);
            return;
        }
        self.totals.take(&group.free);
        self.totals.add(&room);
        let (key, old, latest) = (group.key(number), group.fingerprint, group.latest);
        if let Ok(entry) = self.by_free.find_entry(old, |&found| found == number) {
            entry.remove();
        }
        self.orders[room.model as usize].update(&key, &FreeBounds::of(&room, mark, latest));
        self.next_generation += 1;
        let group = &mut self.groups[number as usize];
        (group.free, group.fingerprint, group.generation) = (room, mark, self.next_generation);
        let groups = &self.groups;
        self.by_free.insert_unique(mark, number, |&group| groups[group as usize].fingerprint);
    }

    fn find(&self, room: &FreeResources, mark: u64) -> Option<u32> {
        self.by_free.find(mark, |&group| self.groups[group as usize].free == *room).copied()
    }

    /// One more than the highest ordinal that was ever entered.
    #[must_use]
    pub fn len(&self) -> usize {
        self.slots.len()
    }

    /// Whether no worker was ever entered.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.slots.is_empty()
    }

    /// How many distinct rooms are offered.
    #[must_use]
    pub fn distinct_free(&self) -> usize {
        self.by_free.len()
    }

    fn slot(&self, at: u32) -> &FleetEntry {
        self.slots[at as usize].as_ref().expect("a worker that was entered")
    }

    fn slot_mut(&mut self, at: u32) -> &mut FleetEntry {
        self.slots[at as usize].as_mut().expect("a worker that was entered")
    }

    /// Puts a worker into the group of its room.
    fn join_group(&mut self, at: u32, room: FreeResources) {
        self.totals.add(&room);
        let mark = room.fingerprint();
        let known = self.find(&room, mark);
        let latest = life_bound(self.expiries.ends_ms(at));
        let group = known.unwrap_or_else(|| self.create_group(room, mark, latest));
        self.add_member(group, at);
        self.slot_mut(at).group = group;
        if latest > self.groups[group as usize].latest {
            self.update_bound(group);
        }
    }

    /// Puts a worker among the members of a group.
    fn add_member(&mut self, group: u32, at: u32) {
        let group = &mut self.groups[group as usize];
        if self.expiries.ends_ms(at) != NEVER {
            return self.expiries.insert(&mut group.expiring, at, at.into());
        }
        let place = group.members.partition_point(|&member| member > at);
        group.members.insert(place, at);
    }

    fn remove_member(&mut self, group: u32, at: u32) {
        let group = &mut self.groups[group as usize];
        if self.expiries.contains(at) {
            return self.expiries.remove(&mut group.expiring, at);
        }
        let place = group.members.binary_search_by(|member| at.cmp(member)).expect("it is in its group");
        group.members.remove(place);
    }

    /// Latest end among the members of a group.
    fn latest(&self, group: &WorkerGroup) -> u32 {
        let ending = || life_bound(self.expiries.latest_ms(group.expiring));
        if group.members.is_empty() { ending() } else { life_bound(NEVER) }
    }

    /// Tells the order how long the members of a group live, if that is another time than before.
    fn update_bound(&mut self, number: u32) {
        let group = &self.groups[number as usize];
        let latest = self.latest(group);
        if latest == group.latest {
            return;
        }
        let (key, tops) = (group.key(number), FreeBounds::of(&group.free, group.fingerprint, latest));
        self.orders[group.free.model as usize].update(&key, &tops);
        self.groups[number as usize].latest = latest;
    }

    fn create_group(&mut self, room: FreeResources, mark: u64, latest: u32) -> u32 {
        self.next_generation += 1;
        let at = self.unused.pop().unwrap_or(self.groups.len() as u32);
        let (place, tops, model) = (room.zorder_key(), FreeBounds::of(&room, mark, latest), room.model as usize);
        let (ending, birth) = (ExpiryTree::default(), self.next_generation);
        match self.groups.get_mut(at as usize) {
            Some(group) => {
                (group.free, group.zorder_key, group.fingerprint, group.latest, group.generation) =
                    (room, place, mark, latest, birth);
            }
            None => self.groups.push(WorkerGroup {
                free: room,
                zorder_key: place,
                fingerprint: mark,
                members: VecDeque::new(),
                expiring: ending,
                latest,
                generation: birth,
            }),
        }
        if self.orders.len() <= model {
            self.orders.resize_with(model + 1, FreeIndex::default);
        }
        self.orders[model].insert((place, at), tops, at);
        let groups = &self.groups;
        self.by_free.insert_unique(mark, at, |&group| groups[group as usize].fingerprint);
        at
    }

    /// Takes a worker out of its group, and says what it has left.
    fn leave_group(&mut self, at: u32) -> FreeResources {
        let number = std::mem::replace(&mut self.slot_mut(at).group, NIL);
        self.totals.take(&self.groups[number as usize].free);
        self.remove_member(number, at);
        let group = &mut self.groups[number as usize];
        if !group.members.is_empty() || !group.expiring.is_empty() {
            let room = group.free.clone();
            self.update_bound(number);
            return room;
        }
        let (key, mark) = (group.key(number), group.fingerprint);
        let room = std::mem::take(&mut group.free);
        self.orders[room.model as usize].remove(&key);
        if let Ok(entry) = self.by_free.find_entry(mark, |&found| found == number) {
            entry.remove();
        }
        self.unused.push(number);
        room
    }

    /// Whether groups, orders and workers agree.
    ///
    /// # Errors
    /// The first thing that is wrong.
    pub fn check(&self) -> Result<(), String> {
        let offered = self.slots.iter().flatten().filter(|slot| slot.group != NIL).count();
        let mut grouped = 0;
        for (at, slot) in self.slots.iter().enumerate() {
            let Some(slot) = slot else { continue };
            let mut cards: Cards = slot.gpus.iter().copied().collect();
            cards.sort_unstable_by(|one, two| two.cmp(one));
            if cards != self.free(at as u32).gpus {
                return Err(format!("L1: worker {at} has cards {:?} and is told by {cards:?}", slot.gpus));
            }
        }
        for order in &self.orders {
            let mut last = None;
            let mut wrong = None;
            order.for_each_fit(&ResourceRequest::default(), &mut |at| {
                let group = &self.groups[at as usize];
                let key = group.key(at);
                let mut members = group.members.iter().copied().chain(self.expiries.all(group.expiring));
                let strays = members.any(|member| self.slot(member).group != at);
                if last.is_some_and(|last| last >= key) || strays || self.members(group) == 0 {
                    wrong = Some(format!("Q1: group {at} of {:?} is not in its place", group.free));
                }
                if group.latest != self.latest(group) {
                    wrong = Some(format!("Q1: group {at} of {:?} ends at another time", group.free));
                }
                if let Err(other) = self.expiries.check(group.expiring) {
                    wrong = Some(other);
                }
                (last, grouped) = (Some(key), grouped + self.members(group));
            });
            wrong.map_or(Ok(()), Err)?;
        }
        let rooms = (0..).zip(&self.slots).filter(|(_, slot)| slot.as_ref().is_some_and(|slot| slot.group != NIL));
        self.totals.check(rooms.map(|(at, _)| self.free(at)))?;
        if grouped != offered {
            return Err(format!("Q1: {offered} workers are offered, {grouped} stand in groups"));
        }
        Ok(())
    }
}
