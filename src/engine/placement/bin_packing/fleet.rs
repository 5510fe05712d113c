//! Index of a fleet's workers by their free resources.
//!
//! Workers with equal free resources are one *group*: a decision compares groups, and takes the member with the
//! lowest ordinal. Groups are in one [`FreeIndex`] per GPU model. So best fit and spread cost one descent of a tree,
//! and FGD one comparison for each distinct vector of free resources that fits, however many workers there are.
//!
//! A worker that is not offered is in no group, but its free resources are kept.
//!
//! Members with an end of life are in a tree of their group that finds the first of them that lives for long enough;
//! and [`FreeIndex`] has the latest end in each group as another bound.

use std::collections::VecDeque;
use std::sync::Arc;

use hashbrown::HashTable;

use super::free_index::{FreeIndex, Key};
use super::free_resources::{
    FreeResources, GPU_MILLI, GpuMillis, ModelId, NO_MODEL, ResourceAllocation, ResourceRequest,
};
use super::index_node::{FreeBounds, life_bound};
use super::total_free::FleetTotals;
use crate::engine::NIL;
use crate::engine::invariants::InvariantViolation;
use crate::engine::placement::expiries::{ExpiryForest, ExpiryTree, NEVER, SearchDirection};
use crate::limits;
use crate::model::{Millis, WorkerCapacity};

/// Workers with equal free resources.
#[derive(Debug)]
pub struct WorkerGroup {
    /// Free resources of each member.
    pub free: FreeResources,
    zorder_key: u32,
    /// Fingerprint of `free` ([`FreeResources::fingerprint`]).
    pub fingerprint: u64,
    /// Ordinals of members without an end of life, highest first: the one that is taken is at the end, and a newly
    /// registered one goes to the front.
    pub(super) members: VecDeque<u32>,
    /// Members with an end of life, by ordinal.
    expiring: ExpiryTree,
    /// Latest end of life, as the index has it.
    latest: u32,
    generation: u64,
}

impl WorkerGroup {
    /// Generation, which distinguishes this group from earlier ones with its number.
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
    /// Group of an offered worker. `NIL`: not offered, and `withdrawn_free` has its free resources.
    group: u32,
    /// Free thousandths of each GPU, in the worker's order.
    gpus: Box<[u16]>,
    withdrawn_free: Option<Box<FreeResources>>,
}

/// Index of a fleet's workers by their free resources. The owner numbers the workers, without large gaps.
#[derive(Debug, Default)]
pub struct FleetIndex {
    pub(super) models: Vec<Arc<str>>,
    slots: Vec<Option<FleetEntry>>,
    pub(super) groups: Vec<WorkerGroup>,
    unused: Vec<u32>,
    by_free: HashTable<u32>,
    /// Groups by model, in the order of the index.
    pub(super) orders: Vec<FreeIndex>,
    expiries: ExpiryForest,
    next_generation: u64,
    pub(super) totals: FleetTotals,
}

impl FleetIndex {
    /// Number of a model, assigned on first use. None: there are [`limits::SHARD_MODELS_MAX`] models.
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

    /// Number of a model that was used before.
    #[must_use]
    pub fn known_model(&self, name: &str) -> Option<ModelId> {
        self.models.iter().position(|known| **known == *name).map(|at| at as ModelId + 1)
    }

    /// Adds a worker without allocations, and offers it.
    pub fn insert(&mut self, at: u32, capacity: &WorkerCapacity) {
        self.insert_with(at, capacity, 0, []);
        self.offer(at);
    }

    /// Adds a worker with these allocations, without offering it. False: they exceed its capacity; then it must not
    /// be offered, and negative amounts are taken as 0.
    pub fn insert_with(
        &mut self,
        at: u32,
        capacity: &WorkerCapacity,
        class_id: u32,
        allocations: impl IntoIterator<Item = ResourceAllocation>,
    ) -> bool {
        debug_assert!(!self.contains(at), "L1: a worker is added to the fleet twice");
        let model = capacity.gpu.as_ref().map_or(Some(NO_MODEL), |gpu| self.model(&gpu.model));
        let model = model.expect("the model of a worker is registered before the worker");
        let mut free = FreeResources { class_id, ..FreeResources::unallocated(capacity, model) };
        let mut enough = true;
        let mut subtract = |have: &mut u64, amount: u64| {
            enough &= *have >= amount;
            *have = have.saturating_sub(amount);
        };
        let mut gpus: Box<[u16]> = free.gpus.to_vec().into();
        for allocation in allocations {
            subtract(&mut free.cpu_milli, allocation.cpu_milli);
            subtract(&mut free.memory_bytes, allocation.memory_bytes);
            subtract(&mut free.slots, allocation.slots);
            for gpu in (0..64).filter(|gpu| allocation.gpu_mask & (1 << gpu) != 0) {
                let mut remaining = gpus.get(gpu).copied().map_or(0, u64::from);
                subtract(&mut remaining, allocation.gpu_milli.into());
                if let Some(milli) = gpus.get_mut(gpu) {
                    *milli = remaining as u16;
                }
            }
        }
        free.gpus.copy_from_slice(&gpus);
        free.gpus.sort_unstable_by(|first, second| second.cmp(first));
        if self.slots.len() <= at as usize {
            self.slots.resize_with(at as usize + 1, || None);
        }
        self.slots[at as usize] = Some(FleetEntry { group: NIL, gpus, withdrawn_free: Some(Box::new(free)) });
        enough
    }

    /// Whether the worker is in the index.
    #[must_use]
    pub fn contains(&self, at: u32) -> bool {
        self.slots.get(at as usize).is_some_and(Option::is_some)
    }

    /// Sets the class of a worker, which separates it from others with equal free resources.
    pub fn set_class(&mut self, at: u32, class_id: u32) {
        if self.slot(at).group == NIL {
            if let Some(free) = &mut self.slot_mut(at).withdrawn_free {
                free.class_id = class_id;
            }
        } else if self.free(at).class_id != class_id {
            let free = FreeResources { class_id, ..self.leave_group(at) };
            self.join_group(at, free);
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

    /// First member of a group that lives beyond `until_ms` and passes.
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
        let expiring = self.expiries.find(group.expiring, SearchDirection::Ascending, until_ms, &mut passes);
        endless.into_iter().chain(expiring).min()
    }

    /// Number of members of a group.
    #[must_use]
    pub fn members(&self, group: &WorkerGroup) -> usize {
        group.members.len() + self.expiries.len(group.expiring)
    }

    /// Number of groups and tree nodes that searches by end of life visited so far.
    #[must_use]
    pub fn steps(&self) -> u64 {
        self.expiries.steps()
    }

    /// Removes a worker from the index.
    pub fn remove(&mut self, at: u32) {
        self.withdraw(at);
        self.slots[at as usize] = None;
    }

    /// Offers a worker, unless it is offered already.
    pub fn offer(&mut self, at: u32) {
        if let Some(free) = self.slot_mut(at).withdrawn_free.take() {
            self.join_group(at, *free);
        }
    }

    /// Withdraws a worker, if it is offered.
    pub fn withdraw(&mut self, at: u32) {
        if self.slot(at).group != NIL {
            let free = self.leave_group(at);
            self.slot_mut(at).withdrawn_free = Some(Box::new(free));
        }
    }

    /// Whether the worker is offered.
    #[must_use]
    pub fn is_offered(&self, at: u32) -> bool {
        self.slot(at).group != NIL
    }

    /// Free resources of a worker.
    #[must_use]
    pub fn free(&self, at: u32) -> &FreeResources {
        let slot = self.slot(at);
        slot.withdrawn_free.as_deref().unwrap_or_else(|| &self.groups[slot.group as usize].free)
    }

    /// Free thousandths of each GPU of a worker, in the worker's order.
    #[must_use]
    pub fn gpus(&self, at: u32) -> &[u16] {
        &self.slot(at).gpus
    }

    /// Allocates resources of a worker, which must be free.
    pub fn allocate(&mut self, at: u32, allocation: &ResourceAllocation) {
        const OVERCOMMIT_PANIC: &str = "L1: no more is allocated than is free";
        self.adjust(
            at,
            allocation,
            |have, amount| *have = have.checked_sub(amount).expect(OVERCOMMIT_PANIC),
            |milli, amount| *milli = milli.checked_sub(amount).expect(OVERCOMMIT_PANIC),
        );
    }

    /// Releases resources that [`Self::allocate`] allocated.
    pub fn release(&mut self, at: u32, allocation: &ResourceAllocation) {
        self.adjust(at, allocation, |have, amount| *have += amount, |milli, amount| *milli += amount);
    }

    fn adjust(
        &mut self,
        at: u32,
        allocation: &ResourceAllocation,
        amount: impl Fn(&mut u64, u64),
        gpu: impl Fn(&mut u16, u16),
    ) {
        let slot = self.slot_mut(at);
        let mut bits = allocation.gpu_mask;
        while bits != 0 {
            let milli = &mut slot.gpus[bits.trailing_zeros() as usize];
            gpu(milli, allocation.gpu_milli);
            debug_assert!(*milli <= GPU_MILLI, "L1: no more of a GPU is released than was allocated");
            bits &= bits - 1;
        }
        let group = slot.group;
        let mut withdrawn = slot.withdrawn_free.take();
        let mut free = match &mut withdrawn {
            Some(free) => std::mem::take(&mut **free),
            None => self.groups[group as usize].free.clone(),
        };
        amount(&mut free.cpu_milli, allocation.cpu_milli);
        amount(&mut free.memory_bytes, allocation.memory_bytes);
        amount(&mut free.slots, allocation.slots);
        if allocation.gpu_mask != 0 {
            free.gpus.copy_from_slice(&self.slot(at).gpus);
            free.gpus.sort_unstable_by(|first, second| second.cmp(first));
        }
        match withdrawn {
            Some(mut withdrawn) => {
                *withdrawn = free;
                self.slot_mut(at).withdrawn_free = Some(withdrawn);
            }
            None => self.regroup(at, group, free),
        }
    }

    /// Moves an offered worker to the group of its new free resources. If it was alone in its group and remains
    /// alone, with an unchanged index key, only the amounts change.
    fn regroup(&mut self, at: u32, index: u32, free: FreeResources) {
        let (zorder_key, fingerprint) = (free.zorder_key(), free.fingerprint());
        let group = &self.groups[index as usize];
        let stays = group.zorder_key == zorder_key && group.free.model == free.model && self.members(group) == 1;
        if !stays || self.find(&free, fingerprint).is_some() {
            self.leave_group(at);
            self.join_group(at, free);
            return;
        }
        self.totals.remove(&group.free);
        self.totals.add(&free);
        let (key, old, latest) = (group.key(index), group.fingerprint, group.latest);
        if let Ok(entry) = self.by_free.find_entry(old, |&found| found == index) {
            entry.remove();
        }
        self.orders[free.model as usize].update(&key, &FreeBounds::of(&free, fingerprint, latest));
        self.next_generation += 1;
        let group = &mut self.groups[index as usize];
        (group.free, group.fingerprint, group.generation) = (free, fingerprint, self.next_generation);
        let groups = &self.groups;
        self.by_free.insert_unique(fingerprint, index, |&group| groups[group as usize].fingerprint);
    }

    fn find(&self, free: &FreeResources, fingerprint: u64) -> Option<u32> {
        self.by_free.find(fingerprint, |&group| self.groups[group as usize].free == *free).copied()
    }

    /// Highest ordinal that was ever added, plus one.
    #[must_use]
    pub fn len(&self) -> usize {
        self.slots.len()
    }

    /// Whether no worker was ever added.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.slots.is_empty()
    }

    /// Number of distinct vectors of free resources on offer.
    #[must_use]
    pub fn distinct_free(&self) -> usize {
        self.by_free.len()
    }

    fn slot(&self, at: u32) -> &FleetEntry {
        self.slots[at as usize].as_ref().expect("L1: the worker is in the index")
    }

    fn slot_mut(&mut self, at: u32) -> &mut FleetEntry {
        self.slots[at as usize].as_mut().expect("L1: the worker is in the index")
    }

    /// Adds a worker to the group of its free resources.
    fn join_group(&mut self, at: u32, free: FreeResources) {
        debug_assert_eq!(self.slot(at).group, NIL, "Q1: a worker joins a second group");
        self.totals.add(&free);
        let fingerprint = free.fingerprint();
        let known = self.find(&free, fingerprint);
        let latest = life_bound(self.expiries.ends_ms(at));
        let group = known.unwrap_or_else(|| self.create_group(free, fingerprint, latest));
        self.add_member(group, at);
        self.slot_mut(at).group = group;
        if latest > self.groups[group as usize].latest {
            self.update_bound(group);
        }
    }

    /// Adds a worker to the members of a group.
    fn add_member(&mut self, group: u32, at: u32) {
        let group = &mut self.groups[group as usize];
        if self.expiries.ends_ms(at) != NEVER {
            return self.expiries.insert(&mut group.expiring, at, at.into());
        }
        let position = group.members.partition_point(|&member| member > at);
        debug_assert!(group.members.get(position) != Some(&at), "Q1: a worker is a member twice");
        group.members.insert(position, at);
    }

    fn remove_member(&mut self, group: u32, at: u32) {
        let group = &mut self.groups[group as usize];
        if self.expiries.contains(at) {
            return self.expiries.remove(&mut group.expiring, at);
        }
        let position = group.members.binary_search_by(|member| at.cmp(member)).expect("Q1: a member is in its group");
        group.members.remove(position);
    }

    /// Latest end of life among the members of a group.
    fn latest(&self, group: &WorkerGroup) -> u32 {
        let expiring = || life_bound(self.expiries.latest_ms(group.expiring));
        if group.members.is_empty() { expiring() } else { life_bound(NEVER) }
    }

    /// Updates the latest end of a group in the index, if it changed.
    fn update_bound(&mut self, index: u32) {
        let group = &self.groups[index as usize];
        let latest = self.latest(group);
        if latest == group.latest {
            return;
        }
        let (key, bounds) = (group.key(index), FreeBounds::of(&group.free, group.fingerprint, latest));
        self.orders[group.free.model as usize].update(&key, &bounds);
        self.groups[index as usize].latest = latest;
    }

    fn create_group(&mut self, free: FreeResources, fingerprint: u64, latest: u32) -> u32 {
        self.next_generation += 1;
        let at = self.unused.pop().unwrap_or(self.groups.len() as u32);
        let (zorder_key, bounds, model) =
            (free.zorder_key(), FreeBounds::of(&free, fingerprint, latest), free.model as usize);
        let generation = self.next_generation;
        match self.groups.get_mut(at as usize) {
            Some(group) => {
                debug_assert!(group.members.is_empty() && group.expiring.is_empty(), "Q1: a group in use is reused");
                (group.free, group.zorder_key, group.fingerprint, group.latest, group.generation) =
                    (free, zorder_key, fingerprint, latest, generation);
            }
            None => self.groups.push(WorkerGroup {
                free,
                zorder_key,
                fingerprint,
                members: VecDeque::new(),
                expiring: ExpiryTree::default(),
                latest,
                generation,
            }),
        }
        if self.orders.len() <= model {
            self.orders.resize_with(model + 1, FreeIndex::default);
        }
        self.orders[model].insert((zorder_key, at), bounds, at);
        let groups = &self.groups;
        self.by_free.insert_unique(fingerprint, at, |&group| groups[group as usize].fingerprint);
        at
    }

    /// Removes a worker from its group, and returns its free resources.
    fn leave_group(&mut self, at: u32) -> FreeResources {
        let index = std::mem::replace(&mut self.slot_mut(at).group, NIL);
        self.totals.remove(&self.groups[index as usize].free);
        self.remove_member(index, at);
        let group = &mut self.groups[index as usize];
        if !group.members.is_empty() || !group.expiring.is_empty() {
            let free = group.free.clone();
            self.update_bound(index);
            return free;
        }
        let (key, fingerprint) = (group.key(index), group.fingerprint);
        let free = std::mem::take(&mut group.free);
        self.orders[free.model as usize].remove(&key);
        if let Ok(entry) = self.by_free.find_entry(fingerprint, |&found| found == index) {
            entry.remove();
        }
        self.unused.push(index);
        debug_assert!(self.unused.len() <= self.groups.len(), "Q1: more groups are unused than exist");
        free
    }

    /// Checks that groups, indexes and workers agree.
    ///
    /// # Errors
    /// The first violated invariant.
    pub fn check(&self) -> Result<(), InvariantViolation> {
        let offered = self.slots.iter().flatten().filter(|slot| slot.group != NIL).count();
        let mut grouped = 0;
        for (at, slot) in self.slots.iter().enumerate() {
            let Some(slot) = slot else { continue };
            let mut gpus: GpuMillis = slot.gpus.iter().copied().collect();
            gpus.sort_unstable_by(|first, second| second.cmp(first));
            if gpus != self.free(at as u32).gpus {
                return Err(format!("L1: worker {at} has free GPUs {:?} and is indexed by {gpus:?}", slot.gpus).into());
            }
        }
        for order in &self.orders {
            let mut last = None;
            let mut violation = None;
            order.for_each_fit(&ResourceRequest::default(), &mut |at| {
                let group = &self.groups[at as usize];
                let key = group.key(at);
                let mut members = group.members.iter().copied().chain(self.expiries.all(group.expiring));
                let has_stray = members.any(|member| self.slot(member).group != at);
                if last.is_some_and(|last| last >= key) || has_stray || self.members(group) == 0 {
                    violation = Some(format!("Q1: group {at} of {:?} is out of order", group.free).into());
                }
                if group.latest != self.latest(group) {
                    violation = Some(format!("Q1: group {at} of {:?} has a wrong latest end", group.free).into());
                }
                if let Err(error) = self.expiries.check(group.expiring) {
                    violation = Some(error);
                }
                (last, grouped) = (Some(key), grouped + self.members(group));
            });
            violation.map_or(Ok(()), Err)?;
        }
        let workers = (0..).zip(&self.slots).filter(|(_, slot)| slot.as_ref().is_some_and(|slot| slot.group != NIL));
        self.totals.check(workers.map(|(at, _)| self.free(at)))?;
        if grouped != offered {
            return Err(format!("Q1: {offered} workers are offered, {grouped} are in groups").into());
        }
        Ok(())
    }
}
