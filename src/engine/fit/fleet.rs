//! The workers of a fleet by what they have left.
//!
//! Workers with equal rooms are one *group*: a decision looks at groups, and of the group that is chosen takes the
//! worker with the lowest ordinal. Groups stand in one [`Order`] per GPU model. So best fit and spread cost
//! the way down a tree, and FGD a look at each distinct room that fits, however many workers there are.
//!
//! A worker that may not be offered is in no group. It keeps its room all the same.

use std::sync::Arc;

use hashbrown::HashTable;

use super::fgd::Fgd;
use super::order::{Key, Order, Tops};
use super::room::{CARD_MILLI, CardRule, Cards, ModelId, NO_MODEL, Need, Room, Share, choose_cards};
use crate::engine::NIL;
use crate::model::Capacity;

/// How a worker is chosen among those that fit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Placement {
    /// The one with the least left.
    BestFit,
    /// The one with the most left.
    Spread,
    /// The one of whose idle cards the fewest become useless for what is usually asked (see [`super::fgd`]).
    Fgd,
}

/// What was chosen: a worker, and how much the card has left from which it gives a share.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pick {
    /// Ordinal of the worker.
    pub worker: u32,
    /// See [`choose_cards`].
    pub from: u16,
    /// Less is better. Comparable between fleets under one placement.
    pub rank: Rank,
}

/// How good a worker is for a need. Best fit: weight and mark of its room; spread: the same from above; FGD: steps by which
/// what is useless grows, then the worker's ordinal.
pub type Rank = (i64, u64, u64);

/// Workers with equal rooms.
#[derive(Debug)]
pub struct Group {
    /// What each of them has left.
    pub room: Room,
    place: u32,
    /// See [`Room::mark`].
    pub mark: u64,
    /// Ordinals, highest first: the one that is taken leaves at the end.
    members: Vec<u32>,
    birth: u64,
}

impl Group {
    /// The member that is taken next.
    #[must_use]
    pub fn first(&self) -> u32 {
        *self.members.last().expect("a group has members")
    }

    /// Tells this group from every other that there was under its number.
    #[must_use]
    pub const fn birth(&self) -> u64 {
        self.birth
    }

    fn key(&self, at: u32) -> Key {
        (self.place, self.mark, at)
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
    models: Vec<Arc<str>>,
    slots: Vec<Option<Slot>>,
    groups: Vec<Group>,
    unused: Vec<u32>,
    by_room: HashTable<u32>,
    /// By model.
    orders: Vec<Order>,
    births: u64,
}

impl Fleet {
    /// The number of a model, which it is given at its first mention.
    pub fn model(&mut self, name: &str) -> ModelId {
        if let Some(known) = self.known_model(name) {
            return known;
        }
        self.models.push(name.into());
        self.models.len() as ModelId
    }

    /// The number of a model that some worker had.
    #[must_use]
    pub fn known_model(&self, name: &str) -> Option<ModelId> {
        self.models.iter().position(|known| **known == *name).map(|at| at as ModelId + 1)
    }

    /// Enters a worker that holds nothing, and offers it.
    pub fn enter(&mut self, at: u32, capacity: &Capacity) {
        let model = capacity.gpu.as_ref().map_or(NO_MODEL, |gpu| self.model(&gpu.model));
        let room = Room::whole(capacity, model);
        if self.slots.len() <= at as usize {
            self.slots.resize_with(at as usize + 1, || None);
        }
        let slot = Slot { group: NIL, cards: room.cards.to_vec().into(), aside: Some(Box::new(room)) };
        self.slots[at as usize] = Some(slot);
        self.offer(at);
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
        let offered = slot.group != NIL;
        let mut room = if offered { self.part(at) } else { *self.slot_mut(at).aside.take().expect("it has a room") };
        amount(&mut room.cpu_milli, share.cpu_milli);
        amount(&mut room.memory_bytes, share.memory_bytes);
        amount(&mut room.slots, share.slots);
        if share.cards != 0 {
            room.cards.copy_from_slice(&self.slot(at).cards);
            room.cards.sort_unstable_by(|one, two| two.cmp(one));
        }
        if offered {
            self.join(at, room);
        } else {
            self.slot_mut(at).aside = Some(Box::new(room));
        }
    }

    /// The worker that a need takes, and from which card. Work that needs no card takes workers without cards while one
    /// fits, if `spare_cards` says so. Looks only.
    pub fn pick(&self, need: &Need, placement: Placement, spare_cards: bool, fgd: &mut Fgd) -> Option<Pick> {
        if need.cards == 0
            && spare_cards
            && let Some(found) = self.pick_of(&[NO_MODEL], need, placement, fgd)
        {
            return Some(found);
        }
        if need.models.is_empty() {
            let all: smallvec::SmallVec<[ModelId; 16]> = (0..self.orders.len() as ModelId).collect();
            return self.pick_of(&all, need, placement, fgd);
        }
        self.pick_of(&need.models, need, placement, fgd)
    }

    fn pick_of(&self, models: &[ModelId], need: &Need, placement: Placement, fgd: &mut Fgd) -> Option<Pick> {
        let orders = models.iter().filter_map(|&model| self.orders.get(model as usize));
        let (found, rule) = match placement {
            Placement::BestFit => (orders.fold(None, |best, order| order.lightest(need, best)), CardRule::Fullest),
            Placement::Spread => (orders.fold(None, |best, order| order.heaviest(need, best)), CardRule::Emptiest),
            Placement::Fgd => {
                let mut look = fgd.look(need, self.groups.len());
                for order in orders {
                    order.each(need, &mut |at| look.see(at, &self.groups[at as usize]));
                }
                let (rank, group, from) = look.best()?;
                return Some(Pick { worker: self.groups[group as usize].first(), from, rank });
            }
        };
        let (weight, mark, group) = found?;
        let group = &self.groups[group as usize];
        let rank = if placement == Placement::Spread { (0, !weight, !mark) } else { (0, weight, mark) };
        Some(Pick { worker: group.first(), from: rule.from(&group.room.cards, need), rank })
    }

    /// The worker with the highest score among those that fit; the lowest ordinal of them. For whoever has an order of
    /// its own: looks at each distinct room that fits.
    pub fn pick_by(&self, need: &Need, mut score: impl FnMut(u32, &Group) -> i64) -> Option<u32> {
        let mut best: Option<(i64, u32)> = None;
        for (model, order) in self.orders.iter().enumerate() {
            if !need.models.is_empty() && !need.models.contains(&(model as ModelId)) {
                continue;
            }
            order.each(need, &mut |at| {
                let group = &self.groups[at as usize];
                let (score, worker) = (score(at, group), group.first());
                if best.is_none_or(|(high, first)| score > high || (score == high && worker < first)) {
                    best = Some((score, worker));
                }
            });
        }
        best.map(|(_, worker)| worker)
    }

    /// Which cards a need takes of the worker that was picked.
    #[must_use]
    pub fn share(&self, need: &Need, pick: Pick) -> Option<Share> {
        choose_cards(self.cards(pick.worker), need, pick.from).map(|cards| need.share(cards))
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
        let mark = room.mark();
        let found = self.by_room.find(mark, |&group| self.groups[group as usize].room == room).copied();
        let group = found.unwrap_or_else(|| self.open(room, mark));
        let members = &mut self.groups[group as usize].members;
        let place = members.partition_point(|&member| member > at);
        members.insert(place, at);
        self.slot_mut(at).group = group;
    }

    fn open(&mut self, room: Room, mark: u64) -> u32 {
        self.births += 1;
        let at = self.unused.pop().unwrap_or(self.groups.len() as u32);
        let (place, tops, model) = (room.place(), Tops::of(&room), room.model as usize);
        match self.groups.get_mut(at as usize) {
            Some(group) => (group.room, group.place, group.mark, group.birth) = (room, place, mark, self.births),
            None => self.groups.push(Group { room, place, mark, members: Vec::new(), birth: self.births }),
        }
        if self.orders.len() <= model {
            self.orders.resize_with(model + 1, Order::default);
        }
        self.orders[model].insert((place, mark, at), tops, at);
        let groups = &self.groups;
        self.by_room.insert_unique(mark, at, |&group| groups[group as usize].mark);
        at
    }

    /// Takes a worker out of its group, and says what it has left.
    fn part(&mut self, at: u32) -> Room {
        let number = std::mem::replace(&mut self.slot_mut(at).group, NIL);
        let group = &mut self.groups[number as usize];
        let place = group.members.binary_search_by(|member| at.cmp(member)).expect("it is in its group");
        group.members.remove(place);
        if !group.members.is_empty() {
            return group.room.clone();
        }
        let key = group.key(number);
        let room = std::mem::take(&mut group.room);
        self.orders[room.model as usize].remove(&key);
        if let Ok(entry) = self.by_room.find_entry(key.1, |&found| found == number) {
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
                let strays = group.members.iter().any(|&member| self.slot(member).group != at);
                if last.is_some_and(|last| last >= key) || strays || group.members.is_empty() {
                    wrong = Some(format!("Q1: group {at} of {:?} is not in its place", group.room));
                }
                (last, grouped) = (Some(key), grouped + group.members.len());
            });
            wrong.map_or(Ok(()), Err)?;
        }
        if grouped != offered {
            return Err(format!("Q1: {offered} workers are offered, {grouped} stand in groups"));
        }
        Ok(())
    }
}
