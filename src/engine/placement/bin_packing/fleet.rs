//! The workers of a fleet by what they have left.
//!
//! Workers with equal rooms are one *group*: a decision looks at groups, and of the group that is chosen takes the
//! worker with the lowest ordinal. Groups stand in one [`Order`] per GPU model. So best fit and spread cost
//! the way down a tree, and FGD a look at each distinct room that fits, however many workers there are.
//!
//! A worker that may not be offered is in no group. It keeps its room all the same.
//!
//! Workers with an end of life stand apart in their group, in a tree that finds the first of them that lives for long enough;
//! and what an [`Order`] knows of a group is also the latest end in it.

use std::collections::VecDeque;
use std::sync::Arc;

use hashbrown::HashTable;

use super::free_index::{Key, Order};
use super::free_resources::{CARD_MILLI, Cards, ModelId, NO_MODEL, Need, Room, Share};
use super::index_node::{Tops, life_bound};
use super::total_free::FleetLeft;
use crate::engine::NIL;
use crate::engine::placement::expiries::{Expiries, ExpiryTree, NEVER, SearchFrom};
use crate::limits;
use crate::model::{Capacity, Millis};

/// Workers with equal rooms.
#[derive(Debug)]
pub struct Group {
    /// What each of them has left.
    pub room: Room,
    place: u32,
    /// See [`Room::mark`].
    pub mark: u64,
    /// Ordinals of those that never end, highest first: the one that is taken leaves at the end, and one that registers
    /// comes to the front.
    pub(super) members: VecDeque<u32>,
    /// The others, by ordinal.
    ending: ExpiryTree,
    /// Latest end, as the order has it.
    latest: u32,
    birth: u64,
}

impl Group {
    /// Tells this group from every other that there was under its number.
    #[must_use]
    pub const fn birth(&self) -> u64 {
        self.birth
    }

    const fn key(&self, at: u32) -> Key {
        (self.place, at)
    }
}

#[derive(Debug)]
struct Slot {
    /// `NIL`: not offered; its room is then in `aside`.
    group: u32,
    /// Free thousandths of each card, in the order of the cards.
    cards: Box<[u16]>,
    aside: Option<Box<Room>>,
}

/// The workers of a fleet by what they have left. Whoever owns it numbers the workers, without large gaps.
#[derive(Debug, Default)]
pub struct Fleet {
    pub(super) models: Vec<Arc<str>>,
    slots: Vec<Option<Slot>>,
    pub(super) groups: Vec<Group>,
    unused: Vec<u32>,
    by_room: HashTable<u32>,
    /// By model.
    pub(super) orders: Vec<Order>,
    expiries: Expiries,
    births: u64,
    pub(super) left: FleetLeft,
}

impl Fleet {
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
    pub fn enter(&mut self, at: u32, capacity: &Capacity) {
        self.enter_with(at, capacity, 0, []);
        self.offer(at);
    }

    /// Enters a worker that holds these shares, and does not offer it yet. False: it has less than they sum to; then it must
    /// not be offered, and what is short is taken as 0.
    pub fn enter_with(
        &mut self,
        at: u32,
        capacity: &Capacity,
        profile: u32,
        shares: impl IntoIterator<Item = Share>,
    ) -> bool {
        let model = capacity.gpu.as_ref().map_or(Some(NO_MODEL), |gpu| self.model(&gpu.model));
        let model = model.expect("whoever registers workers asks for their model first");
        let mut room = Room { profile, ..Room::whole(capacity, model) };
        let mut enough = true;
        let mut less = |have: &mut u64, amount: u64| {
            enough &= *have >= amount;
            *have = have.saturating_sub(amount);
        };
        let mut cards: Box<[u16]> = room.cards.to_vec().into();
        for share in shares {
            less(&mut room.cpu_milli, share.cpu_milli);
            less(&mut room.memory_bytes, share.memory_bytes);
            less(&mut room.slots, share.slots);
            for card in (0..64).filter(|card| share.cards & (1 << card) != 0) {
                let mut left = cards.get(card).copied().map_or(0, u64::from);
                less(&mut left, share.card_milli.into());
                if let Some(milli) = cards.get_mut(card) {
                    *milli = left as u16;
                }
            }
        }
        room.cards.copy_from_slice(&cards);
        room.cards.sort_unstable_by(|one, two| two.cmp(one));
        if self.slots.len() <= at as usize {
            self.slots.resize_with(at as usize + 1, || None);
        }
        self.slots[at as usize] = Some(Slot { group: NIL, cards, aside: Some(Box::new(room)) });
        enough
    }

    /// Whether the worker was entered and did not leave.
    #[must_use]
    pub fn is_in(&self, at: u32) -> bool {
        self.slots.get(at as usize).is_some_and(Option::is_some)
    }

    /// Tells the worker from others with equal rooms by this number from now on.
    pub fn set_profile(&mut self, at: u32, profile: u32) {
        if self.slot(at).group == NIL {
            if let Some(room) = &mut self.slot_mut(at).aside {
                room.profile = profile;
            }
        } else if self.room(at).profile != profile {
            let room = Room { profile, ..self.part(at) };
            self.join(at, room);
        }
    }

    /// Sets the end of a worker's life.
    pub fn set_ends_ms(&mut self, at: u32, ends_ms: Option<Millis>) {
        let ends_ms = ends_ms.unwrap_or(NEVER);
        if self.expiries.ends_ms(at) == ends_ms {
            return;
        }
        let group = if self.is_in(at) { self.slot(at).group } else { NIL };
        if group != NIL {
            self.unseat(group, at);
        }
        self.expiries.set_ends_ms(at, ends_ms);
        if group != NIL {
            self.seat(group, at);
            self.bound(group);
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
    pub fn first_lasting(&self, group: &Group, until_ms: Millis, mut passes: impl FnMut(u32) -> bool) -> Option<u32> {
        let endless = group.members.iter().rev().copied().find(|&at| passes(at));
        if group.ending.is_empty() {
            return endless;
        }
        self.expiries.count_step();
        let ending = self.expiries.find(group.ending, SearchFrom::First, until_ms, &mut passes);
        endless.into_iter().chain(ending).min()
    }

    /// How many members a group has.
    #[must_use]
    pub fn members(&self, group: &Group) -> usize {
        group.members.len() + self.expiries.len(group.ending)
    }

    /// Groups and nodes of trees that searches for workers that live for long enough have looked at so far.
    #[must_use]
    pub fn steps(&self) -> u64 {
        self.expiries.steps()
    }

    /// Takes a worker out.
    pub fn leave(&mut self, at: u32) {
        self.withdraw(at);
        self.slots[at as usize] = None;
    }

    /// Offers a worker, if it is not offered already.
    pub fn offer(&mut self, at: u32) {
        if let Some(room) = self.slot_mut(at).aside.take() {
            self.join(at, *room);
        }
    }

    /// Offers a worker no more, if it is offered.
    pub fn withdraw(&mut self, at: u32) {
        if self.slot(at).group != NIL {
            let room = self.part(at);
            self.slot_mut(at).aside = Some(Box::new(room));
        }
    }

    /// Whether it is offered.
    #[must_use]
    pub fn is_offered(&self, at: u32) -> bool {
        self.slot(at).group != NIL
    }

    /// What a worker has left.
    #[must_use]
    pub fn room(&self, at: u32) -> &Room {
        let slot = self.slot(at);
        slot.aside.as_deref().unwrap_or_else(|| &self.groups[slot.group as usize].room)
    }

    /// Free thousandths of each card of a worker, in the order of its cards.
    #[must_use]
    pub fn cards(&self, at: u32) -> &[u16] {
        &self.slot(at).cards
    }

    /// Takes a share of a worker, which must have it.
    pub fn take(&mut self, at: u32, share: &Share) {
        const SHORT: &str = "L1: no more is taken than there is";
        self.change(
            at,
            share,
            |have, amount| *have = have.checked_sub(amount).expect(SHORT),
            |milli, amount| *milli = milli.checked_sub(amount).expect(SHORT),
        );
    }

    /// Gives back what [`Self::take`] took.
    pub fn give(&mut self, at: u32, share: &Share) {
        self.change(at, share, |have, amount| *have += amount, |milli, amount| *milli += amount);
    }

    fn change(&mut self, at: u32, share: &Share, amount: impl Fn(&mut u64, u64), card: impl Fn(&mut u16, u16)) {
        let slot = self.slot_mut(at);
        let mut bits = share.cards;
        while bits != 0 {
            let milli = &mut slot.cards[bits.trailing_zeros() as usize];
            card(milli, share.card_milli);
            debug_assert!(*milli <= CARD_MILLI, "L1: no more of a card is given back than was taken");
            bits &= bits - 1;
        }
        let number = slot.group;
        let mut aside = slot.aside.take();
        let mut room = match &mut aside {
            Some(room) => std::mem::take(&mut **room),
            None => self.groups[number as usize].room.clone(),
        };
        amount(&mut room.cpu_milli, share.cpu_milli);
        amount(&mut room.memory_bytes, share.memory_bytes);
        amount(&mut room.slots, share.slots);
        if share.cards != 0 {
            room.cards.copy_from_slice(&self.slot(at).cards);
            room.cards.sort_unstable_by(|one, two| two.cmp(one));
        }
        match aside {
            Some(mut aside) => {
                *aside = room;
                self.slot_mut(at).aside = Some(aside);
            }
            None => self.change_room(at, number, room),
        }
    }

    /// An offered worker has this left now. Often it was alone with what it had and is alone with what it has, and stands
    /// where it stood: then only amounts change.
    fn change_room(&mut self, at: u32, number: u32, room: Room) {
        let (place, mark) = (room.place(), room.mark());
        let group = &self.groups[number as usize];
        let stays = group.place == place && group.room.model == room.model && self.members(group) == 1;
        if !stays || self.find(&room, mark).is_some() {
            self.part(at);
            self.join(at, room);
            return;
        }
        self.left.take(&group.room);
        self.left.add(&room);
        let (key, old, latest) = (group.key(number), group.mark, group.latest);
        if let Ok(entry) = self.by_room.find_entry(old, |&found| found == number) {
            entry.remove();
        }
        self.orders[room.model as usize].update(&key, &Tops::of(&room, mark, latest));
        self.births += 1;
        let group = &mut self.groups[number as usize];
        (group.room, group.mark, group.birth) = (room, mark, self.births);
        let groups = &self.groups;
        self.by_room.insert_unique(mark, number, |&group| groups[group as usize].mark);
    }

    fn find(&self, room: &Room, mark: u64) -> Option<u32> {
        self.by_room.find(mark, |&group| self.groups[group as usize].room == *room).copied()
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
    pub fn rooms(&self) -> usize {
        self.by_room.len()
    }

    fn slot(&self, at: u32) -> &Slot {
        self.slots[at as usize].as_ref().expect("a worker that was entered")
    }

    fn slot_mut(&mut self, at: u32) -> &mut Slot {
        self.slots[at as usize].as_mut().expect("a worker that was entered")
    }

    /// Puts a worker into the group of its room.
    fn join(&mut self, at: u32, room: Room) {
        self.left.add(&room);
        let mark = room.mark();
        let known = self.find(&room, mark);
        let latest = life_bound(self.expiries.ends_ms(at));
        let group = known.unwrap_or_else(|| self.open(room, mark, latest));
        self.seat(group, at);
        self.slot_mut(at).group = group;
        if latest > self.groups[group as usize].latest {
            self.bound(group);
        }
    }

    /// Puts a worker among the members of a group.
    fn seat(&mut self, group: u32, at: u32) {
        let group = &mut self.groups[group as usize];
        if self.expiries.ends_ms(at) != NEVER {
            return self.expiries.insert(&mut group.ending, at, at.into());
        }
        let place = group.members.partition_point(|&member| member > at);
        group.members.insert(place, at);
    }

    fn unseat(&mut self, group: u32, at: u32) {
        let group = &mut self.groups[group as usize];
        if self.expiries.contains(at) {
            return self.expiries.remove(&mut group.ending, at);
        }
        let place = group.members.binary_search_by(|member| at.cmp(member)).expect("it is in its group");
        group.members.remove(place);
    }

    /// Latest end among the members of a group.
    fn latest(&self, group: &Group) -> u32 {
        let ending = || life_bound(self.expiries.latest_ms(group.ending));
        if group.members.is_empty() { ending() } else { life_bound(NEVER) }
    }

    /// Tells the order how long the members of a group live, if that is another time than before.
    fn bound(&mut self, number: u32) {
        let group = &self.groups[number as usize];
        let latest = self.latest(group);
        if latest == group.latest {
            return;
        }
        let (key, tops) = (group.key(number), Tops::of(&group.room, group.mark, latest));
        self.orders[group.room.model as usize].update(&key, &tops);
        self.groups[number as usize].latest = latest;
    }

    fn open(&mut self, room: Room, mark: u64, latest: u32) -> u32 {
        self.births += 1;
        let at = self.unused.pop().unwrap_or(self.groups.len() as u32);
        let (place, tops, model) = (room.place(), Tops::of(&room, mark, latest), room.model as usize);
        let (ending, birth) = (ExpiryTree::default(), self.births);
        match self.groups.get_mut(at as usize) {
            Some(group) => {
                (group.room, group.place, group.mark, group.latest, group.birth) = (room, place, mark, latest, birth);
            }
            None => self.groups.push(Group { room, place, mark, members: VecDeque::new(), ending, latest, birth }),
        }
        if self.orders.len() <= model {
            self.orders.resize_with(model + 1, Order::default);
        }
        self.orders[model].insert((place, at), tops, at);
        let groups = &self.groups;
        self.by_room.insert_unique(mark, at, |&group| groups[group as usize].mark);
        at
    }

    /// Takes a worker out of its group, and says what it has left.
    fn part(&mut self, at: u32) -> Room {
        let number = std::mem::replace(&mut self.slot_mut(at).group, NIL);
        self.left.take(&self.groups[number as usize].room);
        self.unseat(number, at);
        let group = &mut self.groups[number as usize];
        if !group.members.is_empty() || !group.ending.is_empty() {
            let room = group.room.clone();
            self.bound(number);
            return room;
        }
        let (key, mark) = (group.key(number), group.mark);
        let room = std::mem::take(&mut group.room);
        self.orders[room.model as usize].remove(&key);
        if let Ok(entry) = self.by_room.find_entry(mark, |&found| found == number) {
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
            let mut cards: Cards = slot.cards.iter().copied().collect();
            cards.sort_unstable_by(|one, two| two.cmp(one));
            if cards != self.room(at as u32).cards {
                return Err(format!("L1: worker {at} has cards {:?} and is told by {cards:?}", slot.cards));
            }
        }
        for order in &self.orders {
            let mut last = None;
            let mut wrong = None;
            order.each(&Need::default(), &mut |at| {
                let group = &self.groups[at as usize];
                let key = group.key(at);
                let mut members = group.members.iter().copied().chain(self.expiries.all(group.ending));
                let strays = members.any(|member| self.slot(member).group != at);
                if last.is_some_and(|last| last >= key) || strays || self.members(group) == 0 {
                    wrong = Some(format!("Q1: group {at} of {:?} is not in its place", group.room));
                }
                if group.latest != self.latest(group) {
                    wrong = Some(format!("Q1: group {at} of {:?} ends at another time", group.room));
                }
                if let Err(other) = self.expiries.check(group.ending) {
                    wrong = Some(other);
                }
                (last, grouped) = (Some(key), grouped + self.members(group));
            });
            wrong.map_or(Ok(()), Err)?;
        }
        let rooms = (0..).zip(&self.slots).filter(|(_, slot)| slot.as_ref().is_some_and(|slot| slot.group != NIL));
        self.left.check(rooms.map(|(at, _)| self.room(at)))?;
        if grouped != offered {
            return Err(format!("Q1: {offered} workers are offered, {grouped} stand in groups"));
        }
        Ok(())
    }
}
