//! Rooms by what they have, so that the lightest (or heaviest) that fits is found without a look at most others.
//!
//! A B+ tree whose items carry, beside the least key below them, the largest amount of each resource below them and the
//! least and largest weight. A look passes over every subtree in which some resource is nowhere large enough, or whose
//! weights are no better than what was found already. At a leaf the amounts are the room's own, so what is found there
//! does fit.
//!
//! Example, of cores and GiB, two rooms a leaf, weight the sum: `[1,1 2,1] [1,6 2,7] [6,1 7,2] [6,6 8,8]`. A need for 4 cores
//! and 4 GiB passes over the first three leaves, because in each all have too few cores or too little memory.
//!
//! That works if rooms below one node are alike: then the largest amounts are nearly those of each. So the order is not
//! that of weights, in which one with many cores stands beside one with much memory, but a curve that keeps
//! neighbours in all resources together ([`Room::place`]).

use super::room::{CARD_MILLI, Need, Room};
use crate::engine::NIL;

/// Items of a node: a node is looked through from front to back, so few enough for that to be quick.
const FAN: usize = 16;

/// Where a room stands ([`Room::place`]), its mark, and the number that the caller knows it by.
pub type Key = (u32, u64, u32);

/// Weight and mark of a room, and its number.
pub type Found = (u64, u64, u32);

/// The largest amounts of some rooms; or those of one.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Tops {
    pub cpu_milli: u64,
    pub memory_bytes: u64,
    pub slots: u64,
    pub card_milli: u16,
    pub idle_cards: u16,
    /// Least and largest weight, each with the mark of its room.
    light: (u64, u64),
    heavy: (u64, u64),
}

impl Tops {
    pub const NONE: Self =
        Self { cpu_milli: 0, memory_bytes: 0, slots: 0, card_milli: 0, idle_cards: 0, light: (0, 0), heavy: (0, 0) };

    pub fn of(room: &Room, mark: u64) -> Self {
        let weight = room.weight();
        Self {
            cpu_milli: room.cpu_milli,
            memory_bytes: room.memory_bytes,
            slots: room.slots,
            card_milli: room.cards.first().copied().unwrap_or(0),
            idle_cards: room.idle_cards(),
            light: (weight, mark),
            heavy: (weight, mark),
        }
    }

    /// False only if nothing below fits; of one room, true only if it does.
    pub const fn may_fit(&self, need: &Need) -> bool {
        let cards = match need.card_milli {
            CARD_MILLI => self.idle_cards >= need.cards,
            share => self.card_milli >= share,
        };
        cards && self.cpu_milli >= need.cpu_milli && self.memory_bytes >= need.memory_bytes && self.slots >= need.slots
    }

    pub fn raise(&mut self, other: &Self) {
        self.cpu_milli = self.cpu_milli.max(other.cpu_milli);
        self.memory_bytes = self.memory_bytes.max(other.memory_bytes);
        self.slots = self.slots.max(other.slots);
        self.card_milli = self.card_milli.max(other.card_milli);
        self.idle_cards = self.idle_cards.max(other.idle_cards);
        self.light = self.light.min(other.light);
        self.heavy = self.heavy.max(other.heavy);
    }
}

#[derive(Debug, Clone, Copy)]
struct Item {
    tops: Tops,
    /// Not above any key below.
    key: Key,
    /// A node; at a leaf, what the caller put in.
    below: u32,
}

/// Amounts, keys and what is below lie apart: a look for room reads amounts only.
#[derive(Debug, Clone)]
struct Node {
    len: usize,
    tops: [Tops; FAN],
    below: [u32; FAN],
    keys: [Key; FAN],
}

impl Node {
    const EMPTY: Self = Self { len: 0, tops: [Tops::NONE; FAN], below: [NIL; FAN], keys: [(0, 0, 0); FAN] };

    fn tops(&self) -> &[Tops] {
        &self.tops[..self.len]
    }

    /// Where a key belongs: the last item that is not above it, or the first.
    fn find(&self, key: &Key) -> usize {
        self.keys[..self.len].partition_point(|known| known <= key).saturating_sub(1)
    }

    const fn set(&mut self, at: usize, item: Item) {
        self.tops[at] = item.tops;
        self.keys[at] = item.key;
        self.below[at] = item.below;
    }

    fn put(&mut self, at: usize, item: Item) {
        self.tops.copy_within(at..self.len, at + 1);
        self.keys.copy_within(at..self.len, at + 1);
        self.below.copy_within(at..self.len, at + 1);
        self.set(at, item);
        self.len += 1;
    }

    fn cut(&mut self, at: usize) {
        self.tops.copy_within(at + 1..self.len, at);
        self.keys.copy_within(at + 1..self.len, at);
        self.below.copy_within(at + 1..self.len, at);
        self.len -= 1;
    }

    /// Moves the items of `other` from `first` on to the end.
    fn append(&mut self, other: &Self, first: usize) {
        let end = self.len + other.len - first;
        self.tops[self.len..end].copy_from_slice(&other.tops[first..other.len]);
        self.keys[self.len..end].copy_from_slice(&other.keys[first..other.len]);
        self.below[self.len..end].copy_from_slice(&other.below[first..other.len]);
        self.len = end;
    }
}

/// Rooms in order of their keys.
#[derive(Debug)]
pub struct Order {
    nodes: Vec<Node>,
    unused: Vec<u32>,
    root: u32,
    /// Levels above the leaves.
    height: u32,
}

impl Default for Order {
    fn default() -> Self {
        Self { nodes: vec![Node::EMPTY], unused: Vec::new(), root: 0, height: 0 }
    }
}

impl Order {
    /// Puts one in. No other may have this key.
    pub fn insert(&mut self, key: Key, tops: Tops, below: u32) {
        let item = Item { tops, key, below };
        if let Some(right) = self.insert_below(self.root, self.height, item) {
            let left = self.item(self.root);
            let mut root = Node::EMPTY;
            root.put(0, left);
            root.put(1, right);
            self.root = self.add(root);
            self.height += 1;
        }
    }

    /// Takes the one with this key out. It must be there.
    pub fn remove(&mut self, key: &Key) {
        self.remove_below(self.root, self.height, key);
        while self.height > 0 && self.nodes[self.root as usize].len == 1 {
            let old = self.root;
            self.root = self.nodes[old as usize].below[0];
            self.unused.push(old);
            self.height -= 1;
        }
    }

    /// The lightest that fits and passes, if it comes before `best`: weight, mark and number. Equal weights go by mark.
    pub fn lightest(&self, need: &Need, may: &mut impl FnMut(u32) -> bool, best: Option<Found>) -> Option<Found> {
        self.lightest_below(self.root, self.height, need, may, best)
    }

    /// The heaviest that fits and passes, if it comes after `best`.
    pub fn heaviest(&self, need: &Need, may: &mut impl FnMut(u32) -> bool, best: Option<Found>) -> Option<Found> {
        self.heaviest_below(self.root, self.height, need, may, best)
    }

    /// The largest amounts of all.
    pub fn tops(&self) -> Option<Tops> {
        let root = &self.nodes[self.root as usize];
        (root.len > 0).then(|| self.item(self.root).tops)
    }

    /// Every one that fits, in order.
    pub fn each(&self, need: &Need, see: &mut impl FnMut(u32)) {
        self.each_below(self.root, self.height, need, see);
    }

    fn add(&mut self, node: Node) -> u32 {
        match self.unused.pop() {
            Some(at) => {
                self.nodes[at as usize] = node;
                at
            }
            None => {
                self.nodes.push(node);
                (self.nodes.len() - 1) as u32
            }
        }
    }

    /// The item that stands for a node which is not empty.
    fn item(&self, at: u32) -> Item {
        let node = &self.nodes[at as usize];
        let mut tops = node.tops[0];
        node.tops()[1..].iter().for_each(|other| tops.raise(other));
        Item { tops, key: node.keys[0], below: at }
    }

    /// What had to be split off, to stand right of this node.
    fn insert_below(&mut self, at: u32, height: u32, item: Item) -> Option<Item> {
        let node = &mut self.nodes[at as usize];
        let mut place = node.find(&item.key);
        let mut put = item;
        if height > 0 {
            node.keys[place] = node.keys[place].min(item.key);
            node.tops[place].raise(&item.tops);
            let child = node.below[place];
            let right = self.insert_below(child, height - 1, item)?;
            let left = self.item(child);
            self.nodes[at as usize].set(place, left);
            put = right;
            place += 1;
        } else if place < node.len && node.keys[place] < item.key {
            place += 1;
        }
        let node = &mut self.nodes[at as usize];
        if node.len < FAN {
            node.put(place, put);
            return None;
        }
        let mut right = Node::EMPTY;
        right.append(node, FAN / 2);
        node.len = FAN / 2;
        if place <= FAN / 2 {
            node.put(place, put)
        } else {
            right.put(place - FAN / 2, put)
        }
        let right = self.add(right);
        Some(self.item(right))
    }

    fn remove_below(&mut self, at: u32, height: u32, key: &Key) {
        let node = &mut self.nodes[at as usize];
        let place = node.find(key);
        if height == 0 {
            assert!(node.len > 0 && node.keys[place] == *key, "only what is there is taken out");
            node.cut(place);
            return;
        }
        let child = node.below[place];
        self.remove_below(child, height - 1, key);
        if self.nodes[child as usize].len == 0 {
            self.nodes[at as usize].cut(place);
            self.unused.push(child);
            return;
        }
        let item = self.item(child);
        self.nodes[at as usize].set(place, item);
        self.merge(at, place);
    }

    /// Two neighbours that are both nearly empty become one, so that a tree that shrinks grows no taller than it must.
    fn merge(&mut self, at: u32, place: usize) {
        let node = &self.nodes[at as usize];
        if node.len < 2 {
            return;
        }
        let left = place.min(node.len - 2);
        let (one, two) = (node.below[left], node.below[left + 1]);
        let (many, more) = (self.nodes[one as usize].len, self.nodes[two as usize].len);
        if many + more > FAN / 2 {
            return;
        }
        let moved = std::mem::replace(&mut self.nodes[two as usize], Node::EMPTY);
        self.nodes[one as usize].append(&moved, 0);
        let item = self.item(one);
        let node = &mut self.nodes[at as usize];
        node.set(left, item);
        node.cut(left + 1);
        self.unused.push(two);
    }

    fn lightest_below(
        &self,
        at: u32,
        height: u32,
        need: &Need,
        may: &mut impl FnMut(u32) -> bool,
        mut best: Option<Found>,
    ) -> Option<Found> {
        let node = &self.nodes[at as usize];
        for at in 0..node.len {
            let tops = &node.tops[at];
            if best.is_some_and(|(weight, mark, _)| tops.light >= (weight, mark)) || !tops.may_fit(need) {
                continue;
            }
            if height > 0 {
                best = self.lightest_below(node.below[at], height - 1, need, may, best);
            } else if may(node.below[at]) {
                best = Some((tops.light.0, tops.light.1, node.below[at]));
            }
        }
        best
    }

    fn heaviest_below(
        &self,
        at: u32,
        height: u32,
        need: &Need,
        may: &mut impl FnMut(u32) -> bool,
        mut best: Option<Found>,
    ) -> Option<Found> {
        let node = &self.nodes[at as usize];
        // From the end, where there is most.
        for at in (0..node.len).rev() {
            let tops = &node.tops[at];
            if best.is_some_and(|(weight, mark, _)| tops.heavy <= (weight, mark)) || !tops.may_fit(need) {
                continue;
            }
            if height > 0 {
                best = self.heaviest_below(node.below[at], height - 1, need, may, best);
            } else if may(node.below[at]) {
                best = Some((tops.heavy.0, tops.heavy.1, node.below[at]));
            }
        }
        best
    }

    fn each_below(&self, at: u32, height: u32, need: &Need, see: &mut impl FnMut(u32)) {
        let node = &self.nodes[at as usize];
        for at in (0..node.len).filter(|&at| node.tops[at].may_fit(need)) {
            match height {
                0 => see(node.below[at]),
                _ => self.each_below(node.below[at], height - 1, need, see),
            }
        }
    }
}
