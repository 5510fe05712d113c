//! Index of free resources, in which the lightest (or heaviest) entry that fits is found without visiting most
//! others.
//!
//! A B+ tree whose entries have, beside the smallest key of their subtree, its largest amount of each resource and
//! its smallest and largest sort key (weight and fingerprint). A search skips every subtree in which some resource is
//! nowhere large enough, or whose sort keys are no better than the best so far. Amounts are rounded up to fit into
//! few cache lines, so at a leaf the caller compares the exact amounts.
//!
//! Example of cores and GiB, two entries a leaf, weight the sum: `[1,1 2,1] [1,6 2,7] [6,1 7,2] [6,6 8,8]`. A request
//! for 4 cores and 4 GiB skips the first three leaves, because in each all have too few cores or too little memory.
//!
//! The index works if the entries of a subtree are similar: then the largest amounts are nearly those of each. So the
//! order is not that of weights, in which one with many cores is next to one with much memory, but a curve that keeps
//! neighbours in all resources together (`FreeResources::zorder_key`).

use super::free_resources::ResourceRequest;
use super::index_node::{CompactRequest, FANOUT, FreeBounds, IndexEntry, IndexNode, argmin};

/// Key of an entry: its point on the Z-order curve (`FreeResources::zorder_key`), and the caller's number for it.
pub type Key = (u32, u32);

/// Sort key (`FreeResources::sort_key`) and number of an entry that was found.
pub type FoundEntry = (u64, u32);

/// Index of free resources, in the order of the keys.
#[derive(Debug)]
pub struct FreeIndex {
    nodes: Vec<IndexNode>,
    unused: Vec<u32>,
    root: u32,
    /// Number of levels above the leaves.
    height: u32,
}

impl Default for FreeIndex {
    fn default() -> Self {
        Self { nodes: vec![IndexNode::EMPTY], unused: Vec::new(), root: 0, height: 0 }
    }
}

impl FreeIndex {
    /// Inserts an entry with a new key.
    pub fn insert(&mut self, key: Key, bounds: FreeBounds, child: u32) {
        let entry = IndexEntry { bounds, key, child };
        if let Some(right) = self.insert_below(self.root, self.height, entry) {
            let left = self.entry(self.root);
            let mut root = IndexNode::EMPTY;
            root.insert(0, left);
            root.insert(1, right);
            self.root = self.alloc_node(root);
            self.height += 1;
        }
    }

    /// Updates the amounts of the entry with this key.
    pub fn update(&mut self, key: &Key, bounds: &FreeBounds) {
        self.update_below(self.root, self.height, key, bounds);
    }

    /// Removes the entry with this key.
    pub fn remove(&mut self, key: &Key) {
        self.remove_below(self.root, self.height, key);
        while self.height > 0 && self.nodes[self.root as usize].len == 1 {
            let old = self.root;
            self.root = self.nodes[old as usize].children[0];
            debug_assert!(old != self.root, "Q1: the root is its own child");
            self.unused.push(old);
            self.height -= 1;
        }
    }

    /// Entry with the smallest sort key that passes, if that is below `best`. `passes` compares the exact amounts of
    /// entries that may fit.
    pub fn best_fit(
        &self,
        request: &ResourceRequest,
        passes: &mut impl FnMut(u32) -> bool,
        best: Option<FoundEntry>,
    ) -> Option<FoundEntry> {
        self.best_fit_below(self.root, self.height, &CompactRequest::of(request), passes, best)
    }

    /// Entry with the largest sort key that passes, if that is above `best`.
    pub fn worst_fit(
        &self,
        request: &ResourceRequest,
        passes: &mut impl FnMut(u32) -> bool,
        best: Option<FoundEntry>,
    ) -> Option<FoundEntry> {
        self.worst_fit_below(self.root, self.height, &CompactRequest::of(request), passes, best)
    }

    /// Upper bounds of all entries.
    pub fn bounds(&self) -> Option<FreeBounds> {
        let root = &self.nodes[self.root as usize];
        (root.len > 0).then(|| self.entry(self.root).bounds)
    }

    /// Visits every entry that may fit, in order.
    pub fn for_each_fit(&self, request: &ResourceRequest, visit: &mut impl FnMut(u32)) {
        self.for_each_fit_below(self.root, self.height, &CompactRequest::of(request), visit);
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

    /// Entry for a node, which is not empty.
    fn entry(&self, at: u32) -> IndexEntry {
        let node = &self.nodes[at as usize];
        let mut bounds = FreeBounds::NONE;
        (0..node.len).for_each(|at| bounds.merge_max(&node.bounds(at)));
        IndexEntry { bounds, key: node.keys[0], child: at }
    }

    /// Inserts below a node. If the node is split, returns the entry for its right half.
    fn insert_below(&mut self, at: u32, height: u32, entry: IndexEntry) -> Option<IndexEntry> {
        let node = &mut self.nodes[at as usize];
        let mut position = node.find(&entry.key);
        let mut inserted = entry;
        if height > 0 {
            node.keys[position] = node.keys[position].min(entry.key);
            let mut bounds = node.bounds(position);
            bounds.merge_max(&entry.bounds);
            node.set_bounds(position, &bounds);
            let child = node.children[position];
            let right = self.insert_below(child, height - 1, entry)?;
            let left = self.entry(child);
            self.nodes[at as usize].set(position, left);
            inserted = right;
            position += 1;
        } else if position < node.len && node.keys[position] < entry.key {
            position += 1;
        }
        let node = &mut self.nodes[at as usize];
        debug_assert!(!node.keys[..node.len].contains(&inserted.key), "Q1: two entries have one key");
        if node.len < FANOUT {
            node.insert(position, inserted);
            return None;
        }
        let mut right = IndexNode::EMPTY;
        right.append(node, FANOUT / 2);
        node.len = FANOUT / 2;
        if position <= FANOUT / 2 {
            node.insert(position, inserted)
        } else {
            right.insert(position - FANOUT / 2, inserted)
        }
        let right = self.alloc_node(right);
        Some(self.entry(right))
    }

    /// Updates the bounds of a node's entry. False: nothing changes above.
    fn update_below(&mut self, at: u32, height: u32, key: &Key, bounds: &FreeBounds) -> bool {
        let node = &self.nodes[at as usize];
        let (position, child) = (node.find(key), node.children[node.find(key)]);
        let updated = if height == 0 {
            assert!(node.len > 0 && node.keys[position] == *key, "Q1: only an existing entry is updated");
            *bounds
        } else if self.update_below(child, height - 1, key, bounds) {
            self.entry(child).bounds
        } else {
            return false;
        };
        let node = &mut self.nodes[at as usize];
        let changed = node.bounds(position) != updated;
        node.set_bounds(position, &updated);
        changed
    }

    fn remove_below(&mut self, at: u32, height: u32, key: &Key) {
        let node = &mut self.nodes[at as usize];
        let position = node.find(key);
        if height == 0 {
            assert!(node.len > 0 && node.keys[position] == *key, "Q1: only an existing entry is removed");
            node.remove(position);
            return;
        }
        let child = node.children[position];
        self.remove_below(child, height - 1, key);
        if self.nodes[child as usize].len == 0 {
            self.nodes[at as usize].remove(position);
            self.unused.push(child);
            return;
        }
        let entry = self.entry(child);
        self.nodes[at as usize].set(position, entry);
        self.merge(at, position);
    }

    /// Merges two neighbours that are both nearly empty, so that a shrinking tree is no taller than necessary.
    fn merge(&mut self, at: u32, position: usize) {
        let node = &self.nodes[at as usize];
        if node.len < 2 {
            return;
        }
        let left = position.min(node.len - 2);
        let (first, second) = (node.children[left], node.children[left + 1]);
        // The neighbour is read only if this node is nearly empty.
        if self.nodes[node.children[position] as usize].len > FANOUT / 4 {
            return;
        }
        let (first_len, second_len) = (self.nodes[first as usize].len, self.nodes[second as usize].len);
        if first_len + second_len > FANOUT / 2 {
            return;
        }
        let moved = std::mem::replace(&mut self.nodes[second as usize], IndexNode::EMPTY);
        self.nodes[first as usize].append(&moved, 0);
        let entry = self.entry(first);
        let node = &mut self.nodes[at as usize];
        node.set(left, entry);
        node.remove(left + 1);
        self.unused.push(second);
        debug_assert!(self.unused.len() < self.nodes.len(), "Q1: more nodes are unused than exist");
    }

    fn best_fit_below(
        &self,
        at: u32,
        height: u32,
        request: &CompactRequest,
        passes: &mut impl FnMut(u32) -> bool,
        mut best: Option<FoundEntry>,
    ) -> Option<FoundEntry> {
        let node = &self.nodes[at as usize];
        let mut candidates = node.may_fit(request);
        while candidates != 0 {
            // The most promising first: its result excludes most others.
            let at = argmin(&node.min_sort_key, candidates);
            candidates &= !(1 << at);
            if best.is_some_and(|(sort_key, _)| node.min_sort_key[at] >= sort_key) {
                break;
            }
            if height > 0 {
                best = self.best_fit_below(node.children[at], height - 1, request, passes, best);
            } else if passes(node.children[at]) {
                return Some((node.min_sort_key[at], node.children[at]));
            }
        }
        best
    }

    fn worst_fit_below(
        &self,
        at: u32,
        height: u32,
        request: &CompactRequest,
        passes: &mut impl FnMut(u32) -> bool,
        mut best: Option<FoundEntry>,
    ) -> Option<FoundEntry> {
        let node = &self.nodes[at as usize];
        let inverted = node.max_sort_key.map(|sort_key| !sort_key);
        let mut candidates = node.may_fit(request);
        while candidates != 0 {
            let at = argmin(&inverted, candidates);
            candidates &= !(1 << at);
            if best.is_some_and(|(sort_key, _)| node.max_sort_key[at] <= sort_key) {
                break;
            }
            if height > 0 {
                best = self.worst_fit_below(node.children[at], height - 1, request, passes, best);
            } else if passes(node.children[at]) {
                return Some((node.max_sort_key[at], node.children[at]));
            }
        }
        best
    }

    fn for_each_fit_below(&self, at: u32, height: u32, request: &CompactRequest, visit: &mut impl FnMut(u32)) {
        let node = &self.nodes[at as usize];
        let mut candidates = node.may_fit(request);
        while candidates != 0 {
            let at = candidates.trailing_zeros() as usize;
            candidates &= candidates - 1;
            match height {
                0 => visit(node.children[at]),
                _ => self.for_each_fit_below(node.children[at], height - 1, request, visit),
            }
        }
    }
}
