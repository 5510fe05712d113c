//! Ordered tree whose nodes know the least that anything below them needs, so that a search leaves out whole subtrees
//! that what is free cannot serve. A treap (Seidel and Aragon, *Randomized Search Trees*, 1996): balanced by a hash of
//! the node's number, so equal histories give equal trees.
//!
//! Many trees share one arena, because most of them have one node: each is known by its root.

use super::least_demand::LeastDemand;

/// Index that stands for no node.
const NONE: u32 = u32::MAX;

/// Golden ratio, used as a multiplier that mixes bits.
const GOLDEN_RATIO: u64 = 0x9e37_79b9_7f4a_7c15;

/// Summary of everything in a subtree.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct SubtreeSummary {
    /// Least amounts that some claim needs.
    pub least: LeastDemand,
    /// Number of claims below.
    pub claims: u32,
}

impl SubtreeSummary {
    fn merge(&mut self, other: &Self) {
        self.least.merge(&other.least);
        self.claims += other.claims;
    }
}

/// Root of a tree in a [`TreeArena`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct TreeRoot(u32);

impl Default for TreeRoot {
    fn default() -> Self {
        Self(NONE)
    }
}

/// Node of a tree, by its index in the arena.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct TreeNode(u32);

impl TreeRoot {
    /// Node at the root; none: the tree is empty.
    #[must_use]
    pub const fn node(self) -> Option<TreeNode> {
        match self.0 {
            NONE => None,
            node => Some(TreeNode(node)),
        }
    }
}

#[derive(Debug, Clone)]
struct Node<K, V> {
    key: K,
    value: V,
    weight: u32,
    left: u32,
    right: u32,
    /// Lowest key of the subtree.
    first: K,
    /// Summary of the node's own value.
    own: SubtreeSummary,
    all: SubtreeSummary,
}

/// Nodes of many trees.
#[derive(Debug)]
pub struct TreeArena<K, V> {
    nodes: Vec<Node<K, V>>,
    unused: Vec<u32>,
    inserted: u64,
}

impl<K, V> Default for TreeArena<K, V> {
    fn default() -> Self {
        Self { nodes: Vec::new(), unused: Vec::new(), inserted: 0 }
    }
}

impl<K: Copy + Ord, V: Copy> TreeArena<K, V> {
    /// Adds a value under a key that the tree does not have.
    pub fn insert(&mut self, root: &mut TreeRoot, key: K, value: V, own: SubtreeSummary) {
        self.inserted += 1;
        let weight = (self.inserted.wrapping_mul(GOLDEN_RATIO) >> 32) as u32;
        let node = Node { key, value, weight, left: NONE, right: NONE, first: key, own, all: own };
        let at = match self.unused.pop() {
            Some(at) => {
                self.nodes[at as usize] = node;
                at
            }
            None => {
                self.nodes.push(node);
                u32::try_from(self.nodes.len() - 1).expect("fewer than 2^32 nodes")
            }
        };
        root.0 = self.insert_below(root.0, at);
    }

    fn insert_below(&mut self, at: u32, new: u32) -> u32 {
        if at == NONE {
            return new;
        }
        let (key, weight) = (self.node(new).key, self.node(new).weight);
        debug_assert!(self.node(at).key != key, "a key is inserted twice");
        if weight > self.node(at).weight {
            let (left, right) = self.split(at, key);
            (self.node_mut(new).left, self.node_mut(new).right) = (left, right);
            self.summarize(new);
            return new;
        }
        if key < self.node(at).key {
            let below = self.insert_below(self.node(at).left, new);
            self.node_mut(at).left = below;
        } else {
            let below = self.insert_below(self.node(at).right, new);
            self.node_mut(at).right = below;
        }
        self.summarize(at);
        at
    }

    /// Splits a subtree into the keys below `key` and those above.
    fn split(&mut self, at: u32, key: K) -> (u32, u32) {
        if at == NONE {
            return (NONE, NONE);
        }
        if self.node(at).key < key {
            let (middle, right) = self.split(self.node(at).right, key);
            self.node_mut(at).right = middle;
            self.summarize(at);
            (at, right)
        } else {
            let (left, middle) = self.split(self.node(at).left, key);
            self.node_mut(at).left = middle;
            self.summarize(at);
            (left, at)
        }
    }

    /// Removes the value under a key, if the tree has it.
    pub fn remove(&mut self, root: &mut TreeRoot, key: K) -> Option<V> {
        let (below, removed) = self.remove_below(root.0, key);
        root.0 = below;
        let removed = removed?;
        self.unused.push(removed);
        Some(self.node(removed).value)
    }

    fn remove_below(&mut self, at: u32, key: K) -> (u32, Option<u32>) {
        if at == NONE {
            return (NONE, None);
        }
        let Node { key: own, left, right, .. } = *self.node(at);
        if key == own {
            return (self.join(left, right), Some(at));
        }
        let removed = if key < own {
            let (below, removed) = self.remove_below(left, key);
            self.node_mut(at).left = below;
            removed
        } else {
            let (below, removed) = self.remove_below(right, key);
            self.node_mut(at).right = below;
            removed
        };
        self.summarize(at);
        (at, removed)
    }

    /// Joins two subtrees, all keys of the first below those of the second.
    fn join(&mut self, left: u32, right: u32) -> u32 {
        match (left, right) {
            (NONE, other) | (other, NONE) => other,
            _ if self.node(left).weight > self.node(right).weight => {
                let below = self.join(self.node(left).right, right);
                self.node_mut(left).right = below;
                self.summarize(left);
                left
            }
            _ => {
                let below = self.join(left, self.node(right).left);
                self.node_mut(right).left = below;
                self.summarize(right);
                right
            }
        }
    }

    fn summarize(&mut self, at: u32) {
        let Node { left, right, key, own, .. } = *self.node(at);
        let (mut all, mut first) = (own, key);
        if left != NONE {
            all.merge(&self.node(left).all);
            first = self.node(left).first;
        }
        if right != NONE {
            all.merge(&self.node(right).all);
        }
        let node = self.node_mut(at);
        (node.all, node.first) = (all, first);
    }

    #[inline]
    fn node(&self, at: u32) -> &Node<K, V> {
        &self.nodes[at as usize]
    }

    #[inline]
    fn node_mut(&mut self, at: u32) -> &mut Node<K, V> {
        &mut self.nodes[at as usize]
    }

    /// Summary of a whole tree.
    #[must_use]
    pub fn summary(&self, root: TreeRoot) -> SubtreeSummary {
        root.node().map_or_else(SubtreeSummary::default, |node| self.node(node.0).all)
    }

    /// Lowest key of a tree; none if it is empty.
    #[must_use]
    pub fn first(&self, root: TreeRoot) -> Option<K> {
        root.node().map(|node| self.node(node.0).first)
    }

    /// Lowest key of the subtree below a node.
    #[must_use]
    pub fn first_below(&self, node: TreeNode) -> K {
        self.node(node.0).first
    }

    /// Summary of the subtree below a node.
    #[must_use]
    pub fn below(&self, node: TreeNode) -> &SubtreeSummary {
        &self.node(node.0).all
    }

    /// Key and value of a node.
    #[must_use]
    pub fn get(&self, node: TreeNode) -> (K, V) {
        let Node { key, value, .. } = *self.node(node.0);
        (key, value)
    }

    /// Children of a node.
    #[must_use]
    pub fn children(&self, node: TreeNode) -> [Option<TreeNode>; 2] {
        let Node { left, right, .. } = *self.node(node.0);
        [TreeRoot(left).node(), TreeRoot(right).node()]
    }

    /// Values of a tree in the order of their keys.
    pub fn iter(&self, root: TreeRoot) -> impl Iterator<Item = (K, V)> + '_ {
        let mut stack = Vec::new();
        let mut next = root.node();
        std::iter::from_fn(move || {
            while let Some(node) = next {
                stack.push(node);
                [next, _] = self.children(node);
            }
            let node = stack.pop()?;
            [_, next] = self.children(node);
            Some(self.get(node))
        })
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::admission::queue::least_demand::ClaimDemand;
    use proptest::prelude::*;

    fn own(cpu_milli: u64, claims: u32) -> SubtreeSummary {
        let demand = ClaimDemand { cpu_milli, ..ClaimDemand::default() };
        SubtreeSummary { least: LeastDemand::of(&demand), claims }
    }

    /// Depth of a subtree, having checked that each node knows what is below it.
    fn check(arena: &TreeArena<u16, u16>, node: Option<TreeNode>) -> usize {
        let Some(node) = node else { return 0 };
        let ((key, _), [left, right]) = (arena.get(node), arena.children(node));
        let (mut all, mut first) = (arena.node(node.0).own, key);
        if let Some(left) = left {
            assert!(arena.get(left).0 < key);
            all.merge(arena.below(left));
            first = arena.first_below(left);
        }
        if let Some(right) = right {
            assert!(arena.get(right).0 > key);
            all.merge(arena.below(right));
        }
        assert_eq!((arena.below(node), arena.first_below(node)), (&all, first));
        1 + check(arena, left).max(check(arena, right))
    }

    proptest! {
        #[test]
        fn trees_of_one_arena_hold_what_maps_hold(steps in prop::collection::vec((0..3_usize, 0..60_u16, 0..3_u8, 0..9_u64), 1..300)) {
            let mut arena = TreeArena::default();
            let (mut roots, mut maps) = ([TreeRoot::default(); 3], [const { BTreeMap::new() }; 3]);
            for (tree, key, action, cpu) in steps {
                let (root, map) = (&mut roots[tree], &mut maps[tree]);
                let summary = own(cpu, 1 + u32::from(key % 3));
                match (action, map.contains_key(&key)) {
                    (0 | 1, false) => {
                        arena.insert(root, key, key * 2, summary);
                        map.insert(key, summary);
                    }
                    _ => prop_assert_eq!(arena.remove(root, key), map.remove(&key).map(|_| key * 2)),
                }
                check(&arena, root.node());
                prop_assert!(arena.iter(*root).map(|(key, _)| key).eq(map.keys().copied()));
                let mut all = SubtreeSummary::default();
                map.values().for_each(|own| all.merge(own));
                prop_assert_eq!(arena.summary(*root), all);
                prop_assert_eq!(arena.first(*root), map.keys().next().copied());
            }
        }
    }

    #[test]
    fn a_tree_of_rising_keys_is_balanced() {
        let (mut arena, mut root) = (TreeArena::default(), TreeRoot::default());
        (0..20_000).for_each(|key| arena.insert(&mut root, key, key, own(1, 1)));
        let depth = check(&arena, root.node());
        assert!(depth < 60, "{depth} levels");
    }
}
