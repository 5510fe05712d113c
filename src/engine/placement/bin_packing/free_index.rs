//! Rooms by what they have, so that the lightest (or heaviest) that fits is found without a look at most others.
//!
//! A B+ tree whose items carry, beside the least key below them, the largest amount of each resource below them and the
//! least and largest rank (weight and mark). A look passes over every subtree in which some resource is nowhere large
//! enough, or whose ranks are no better than what was found already. Amounts are rounded up to fit into few cache lines, so
//! at a leaf the caller looks at the room itself.
//!
//! Example, of cores and GiB, two rooms a leaf, weight the sum: `[1,1 2,1] [1,6 2,7] [6,1 7,2] [6,6 8,8]`. A need for 4 cores
//! and 4 GiB passes over the first three leaves, because in each all have too few cores or too little memory.
//!
//! That works if rooms below one node are alike: then the largest amounts are nearly those of each. So the order is not
//! that of weights, in which one with many cores stands beside one with much memory, but a curve that keeps
//! neighbours in all resources together ([`Room::place`]).

use super::free_resources::ResourceRequest;
use super::index_node::{CompactRequest, FANOUT, FreeBounds, IndexEntry, IndexNode, argmin};

/// Where a room stands ([`Room::place`]), and the number that the caller knows it by.
pub type Key = (u32, u32);

/// Rank of a room ([`Room::rank`]), and its number.
pub type Found = (u64, u32);

/// Rooms in order of their keys.
#[derive(Debug)]
pub struct FreeIndex {
    nodes: Vec<IndexNode>,
    unused: Vec<u32>,
    root: u32,
    /// Levels above the leaves.
    height: u32,
}

impl Default for FreeIndex {
    fn default() -> Self {
        Self { nodes: vec![IndexNode::EMPTY], unused: Vec::new(), root: 0, height: 0 }
    }
}

impl FreeIndex {
    /// Puts one in. No other may have this key.
    pub fn insert(&mut self, key: Key, tops: FreeBounds, below: u32) {
        let item = IndexEntry { bounds: tops, key, child: below };
        if let Some(right) = self.insert_below(self.root, self.height, item) {
            let left = self.item(self.root);
            let mut root = IndexNode::EMPTY;
            root.insert(0, left);
            root.insert(1, right);
            self.root = self.alloc_node(root);
            self.height += 1;
        }
    }

    /// The one with this key, which must be there, has other amounts now.
    pub fn update(&mut self, key: &Key, tops: &FreeBounds) {
        self.update_below(self.root, self.height, key, tops);
    }

    /// Takes the one with this key out. It must be there.
    pub fn remove(&mut self, key: &Key) {
        self.remove_below(self.root, self.height, key);
        while self.height > 0 && self.nodes[self.root as usize].len == 1 {
            let old = self.root;
            self.root = self.nodes[old as usize].children[0];
            self.unused.push(old);
            self.height -= 1;
        }
    }

    /// The one with the least rank that passes, if that is below `best`. It is for `may` to say whether it fits; those that
    /// cannot are not asked about.
    pub fn best_fit(
        &self,
        need: &ResourceRequest,
        may: &mut impl FnMut(u32) -> bool,
        best: Option<Found>,
    ) -> Option<Found> {
        self.best_fit_below(self.root, self.height, &CompactRequest::of(need), may, best)
    }

    /// The one with the largest rank that passes, if that is above `best`.
    pub fn worst_fit(
        &self,
        need: &ResourceRequest,
        may: &mut impl FnMut(u32) -> bool,
        best: Option<Found>,
    ) -> Option<Found> {
        self.worst_fit_below(self.root, self.height, &CompactRequest::of(need), may, best)
    }

    /// The largest amounts of all.
    pub fn bounds(&self) -> Option<FreeBounds> {
        let root = &self.nodes[self.root as usize];
        (root.len > 0).then(|| self.item(self.root).bounds)
    }

    /// Every one that may fit, in order.
    pub fn for_each_fit(&self, need: &ResourceRequest, see: &mut impl FnMut(u32)) {
        self.for_each_fit_below(self.root, self.height, &CompactRequest::of(need), see);
    }

    fn alloc_node(&mut self, node: IndexNode) -> u32 {
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
    fn item(&self, at: u32) -> IndexEntry {
        let node = &self.nodes[at as usize];
        let mut tops = FreeBounds::NONE;
        (0..node.len).for_each(|at| tops.merge_max(&node.bounds(at)));
        IndexEntry { bounds: tops, key: node.keys[0], child: at }
    }

    /// What had to be split off, to stand right of this node.
    fn insert_below(&mut self, at: u32, height: u32, item: IndexEntry) -> Option<IndexEntry> {
        let node = &mut self.nodes[at as usize];
        let mut place = node.find(&item.key);
        let mut put = item;
        if height > 0 {
            node.keys[place] = node.keys[place].min(item.key);
            let mut tops = node.bounds(place);
            tops.merge_max(&item.bounds);
            node.set_bounds(place, &tops);
            let child = node.children[place];
            let right = self.insert_below(child, height - 1, item)?;
            let left = self.item(child);
            self.nodes[at as usize].set(place, left);
            put = right;
            place += 1;
        } else if place < node.len && node.keys[place] < item.key {
            place += 1;
        }
        let node = &mut self.nodes[at as usize];
        if node.len < FANOUT {
            node.insert(place, put);
            return None;
        }
        let mut right = IndexNode::EMPTY;
        right.append(node, FANOUT / 2);
        node.len = FANOUT / 2;
        if place <= FANOUT / 2 {
            node.insert(place, put)
        } else {
            right.insert(place - FANOUT / 2, put)
        }
        let right = self.alloc_node(right);
        Some(self.item(right))
    }

    /// False: nothing changes above.
    fn update_below(&mut self, at: u32, height: u32, key: &Key, tops: &FreeBounds) -> bool {
        let node = &self.nodes[at as usize];
        let (place, child) = (node.find(key), node.children[node.find(key)]);
        let now = if height == 0 {
            assert!(node.len > 0 && node.keys[place] == *key, "only what is there changes");
            *tops
        } else if self.update_below(child, height - 1, key, tops) {
            self.item(child).bounds
        } else {
            return false;
        };
        let node = &mut self.nodes[at as usize];
        let changed = node.bounds(place) != now;
        node.set_bounds(place, &now);
        changed
    }

    fn remove_below(&mut self, at: u32, height: u32, key: &Key) {
        let node = &mut self.nodes[at as usize];
        let place = node.find(key);
        if height == 0 {
            assert!(node.len > 0 && node.keys[place] == *key, "only what is there is taken out");
            node.remove(place);
            return;
        }
        let child = node.children[place];
        self.remove_below(child, height - 1, key);
        if self.nodes[child as usize].len == 0 {
            self.nodes[at as usize].remove(place);
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
        let (one, two) = (node.children[left], node.children[left + 1]);
        // Only then is it worth a look at the neighbour.
        if self.nodes[node.children[place] as usize].len > FANOUT / 4 {
            return;
        }
        let (many, more) = (self.nodes[one as usize].len, self.nodes[two as usize].len);
        if many + more > FANOUT / 2 {
            return;
        }
        let moved = std::mem::replace(&mut self.nodes[two as usize], IndexNode::EMPTY);
        self.nodes[one as usize].append(&moved, 0);
        let item = self.item(one);
        let node = &mut self.nodes[at as usize];
        node.set(left, item);
        node.remove(left + 1);
        self.unused.push(two);
    }

    fn best_fit_below(
        &self,
        at: u32,
        height: u32,
        ask: &CompactRequest,
        may: &mut impl FnMut(u32) -> bool,
        mut best: Option<Found>,
    ) -> Option<Found> {
        let node = &self.nodes[at as usize];
        let mut left = node.may_fit(ask);
        while left != 0 {
            // The most promising first: what it finds spares the looks at most others.
            let at = argmin(&node.min_sort_key, left);
            left &= !(1 << at);
            if best.is_some_and(|(rank, _)| node.min_sort_key[at] >= rank) {
                break;
            }
            if height > 0 {
                best = self.best_fit_below(node.children[at], height - 1, ask, may, best);
            } else if may(node.children[at]) {
                return Some((node.min_sort_key[at], node.children[at]));
            }
        }
        best
    }

    fn worst_fit_below(
        &self,
        at: u32,
        height: u32,
        ask: &CompactRequest,
        may: &mut impl FnMut(u32) -> bool,
        mut best: Option<Found>,
    ) -> Option<Found> {
        let node = &self.nodes[at as usize];
        let from_above = node.max_sort_key.map(|rank| !rank);
        let mut left = node.may_fit(ask);
        while left != 0 {
            let at = argmin(&from_above, left);
            left &= !(1 << at);
            if best.is_some_and(|(rank, _)| node.max_sort_key[at] <= rank) {
                break;
            }
            if height > 0 {
                best = self.worst_fit_below(node.children[at], height - 1, ask, may, best);
            } else if may(node.children[at]) {
                return Some((node.max_sort_key[at], node.children[at]));
            }
        }
        best
    }

    fn for_each_fit_below(&self, at: u32, height: u32, ask: &CompactRequest, see: &mut impl FnMut(u32)) {
        let node = &self.nodes[at as usize];
        let mut left = node.may_fit(ask);
        while left != 0 {
            let at = left.trailing_zeros() as usize;
            left &= left - 1;
            match height {
                0 => see(node.children[at]),
                _ => self.for_each_fit_below(node.children[at], height - 1, ask, see),
            }
        }
    }
}
