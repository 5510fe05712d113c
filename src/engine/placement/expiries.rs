//! Ordered workers with their ends of life, so that the first that lives for long enough is found without visiting
//! those that do not.
//!
//! Trees are treaps (Seidel and Aragon, Algorithmica 1996) whose nodes hold the latest end and the number of workers
//! in their subtree. Several trees share one slab of nodes, by ordinal: a worker is in at most one of them.
//! Priorities are a hash of the ordinal, so a tree is the same after every replay.
//!
//! Example: keys 1 to 5 with ends `9 3 7 2 4`. The last that ends after 3 has key 5; the last after 4 has key 3,
//! found past the subtree `2 4`, whose latest end is 4.

use std::cell::Cell;

use super::idle_queue::splitmix64;
use crate::engine::NIL;
use crate::engine::invariants::InvariantViolation;
use crate::model::Millis;

/// End of life of a worker that has none.
pub const NEVER: Millis = Millis::MAX;

#[derive(Debug, Clone, Copy)]
struct ExpiryNode {
    key: u64,
    ends_ms: Millis,
    /// Latest end in the subtree of this worker.
    latest_ms: Millis,
    left: u32,
    right: u32,
    /// Number of workers in the subtree; 0: the worker is in no tree.
    size: u32,
}

impl ExpiryNode {
    /// Node of a worker that is in no tree.
    const fn outside(ends_ms: Millis) -> Self {
        Self { key: 0, ends_ms, latest_ms: 0, left: NIL, right: NIL, size: 0 }
    }
}

/// Ends of life, and the nodes of all trees.
#[derive(Debug, Default)]
pub struct ExpiryForest {
    nodes: Vec<ExpiryNode>,
    /// Nodes that searches visited.
    steps: Cell<u64>,
}

/// Order of workers, by key and then by ordinal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ExpiryTree {
    root: u32,
}

impl Default for ExpiryTree {
    fn default() -> Self {
        Self { root: NIL }
    }
}

impl ExpiryTree {
    pub const fn is_empty(self) -> bool {
        self.root == NIL
    }
}

/// Direction of a search through a tree.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SearchDirection {
    /// Ascending, from the smallest key.
    Ascending,
    /// Descending, from the largest key.
    Descending,
}

impl ExpiryForest {
    /// End of a worker, in a tree or not; [`NEVER`]: it has none.
    #[inline]
    pub fn ends_ms(&self, at: u32) -> Millis {
        self.nodes.get(at as usize).map_or(NEVER, |node| node.ends_ms)
    }

    /// Whether the end of any worker was ever set.
    pub const fn has_ends(&self) -> bool {
        !self.nodes.is_empty()
    }

    /// Whether the worker lives beyond `until_ms`.
    pub fn outlives(&self, at: u32, until_ms: Millis) -> bool {
        self.ends_ms(at) > until_ms
    }

    /// Sets the end of a worker that is in no tree.
    pub fn set_ends_ms(&mut self, at: u32, ends_ms: Millis) {
        if self.ends_ms(at) == ends_ms {
            return;
        }
        self.ensure_node(at);
        assert_eq!(self.nodes[at as usize].size, 0, "Q1: only the end of a worker outside of all trees changes");
        self.nodes[at as usize].ends_ms = ends_ms;
    }

    /// Whether the worker is in a tree.
    #[inline]
    pub fn contains(&self, at: u32) -> bool {
        self.nodes.get(at as usize).is_some_and(|node| node.size > 0)
    }

    pub fn len(&self, tree: ExpiryTree) -> usize {
        self.size(tree.root) as usize
    }

    /// Latest end in the tree; 0: it is empty.
    pub fn latest_ms(&self, tree: ExpiryTree) -> Millis {
        self.nodes.get(tree.root as usize).map_or(0, |node| node.latest_ms)
    }

    pub fn insert(&mut self, tree: &mut ExpiryTree, at: u32, key: u64) {
        self.ensure_node(at);
        let node = &mut self.nodes[at as usize];
        assert_eq!(node.size, 0, "Q1: a worker stands in one tree at most");
        *node = ExpiryNode { key, latest_ms: node.ends_ms, size: 1, ..ExpiryNode::outside(node.ends_ms) };
        let before = self.len(*tree);
        tree.root = self.insert_below(tree.root, at);
        debug_assert_eq!(self.len(*tree), before + 1, "Q1: an insertion changes the size of a tree by one");
    }

    /// Removes a worker that is in the tree.
    pub fn remove(&mut self, tree: &mut ExpiryTree, at: u32) {
        let before = self.len(*tree);
        tree.root = self.remove_below(tree.root, at);
        debug_assert_eq!(self.len(*tree) + 1, before, "Q1: a removal changes the size of a tree by one");
        self.nodes[at as usize] = ExpiryNode::outside(self.nodes[at as usize].ends_ms);
    }

    /// First worker from one side that lives beyond `until_ms` and passes.
    pub fn find(
        &self,
        tree: ExpiryTree,
        from: SearchDirection,
        until_ms: Millis,
        passes: &mut impl FnMut(u32) -> bool,
    ) -> Option<u32> {
        self.find_below(tree.root, from, until_ms, passes)
    }

    /// Number of workers that live beyond `until_ms`, in a tree whose keys are the ends.
    pub fn count_outliving(&self, tree: ExpiryTree, until_ms: Millis) -> usize {
        let (mut at, mut count) = (tree.root, 0);
        while let Some(node) = self.node(at) {
            if node.ends_ms > until_ms {
                count += self.size(node.right) as usize + 1;
                at = node.left;
            } else {
                at = node.right;
            }
        }
        count
    }

    /// Worker with `nth` workers behind it.
    pub fn nth_last(&self, tree: ExpiryTree, mut nth: usize) -> Option<u32> {
        let mut at = tree.root;
        while let Some(node) = self.node(at) {
            let behind = self.size(node.right) as usize;
            at = match nth {
                n if n < behind => node.right,
                n if n == behind => return Some(at),
                _ => {
                    nth -= behind + 1;
                    node.left
                }
            };
        }
        None
    }

    /// All workers of a tree, in order.
    pub fn all(&self, tree: ExpiryTree) -> Vec<u32> {
        self.first(tree, usize::MAX)
    }

    /// First workers of a tree, in order.
    pub fn first(&self, tree: ExpiryTree, limit: usize) -> Vec<u32> {
        let mut first = Vec::with_capacity(self.len(tree).min(limit));
        if limit > 0 {
            self.find(tree, SearchDirection::Ascending, 0, &mut |at| {
                first.push(at);
                first.len() == limit
            });
        }
        first
    }

    /// Counts one step of a search.
    pub fn count_step(&self) {
        self.steps.set(self.steps.get() + 1);
    }

    /// Number of steps that searches took so far.
    pub fn steps(&self) -> u64 {
        self.steps.get()
    }

    /// Checks the order of keys and the bounds of subtrees.
    ///
    /// # Errors
    /// The first violated invariant.
    pub fn check(&self, tree: ExpiryTree) -> Result<(), InvariantViolation> {
        let all = self.all(tree);
        let key = |at: u32| (self.nodes[at as usize].key, at);
        if !all.is_sorted_by_key(|&at| key(at)) || all.len() != self.len(tree) {
            return Err(
                format!("Q1: {} of {} workers are in the order of their keys", all.len(), self.len(tree)).into()
            );
        }
        for &at in &all {
            let mut expected = self.nodes[at as usize];
            self.pull_node(&mut expected);
            let node = &self.nodes[at as usize];
            if (expected.size, expected.latest_ms) != (node.size, node.latest_ms) {
                return Err(format!("Q1: the tree node of worker {at} has wrong bounds").into());
            }
        }
        Ok(())
    }

    fn node(&self, at: u32) -> Option<&ExpiryNode> {
        let node = self.nodes.get(at as usize)?;
        self.count_step();
        Some(node)
    }

    fn ensure_node(&mut self, at: u32) {
        if self.nodes.len() <= at as usize {
            self.nodes.resize(at as usize + 1, ExpiryNode::outside(NEVER));
        }
    }

    fn size(&self, at: u32) -> u32 {
        self.nodes.get(at as usize).map_or(0, |node| node.size)
    }

    fn is_before(&self, first: u32, second: u32) -> bool {
        (self.nodes[first as usize].key, first) < (self.nodes[second as usize].key, second)
    }

    fn recompute(&mut self, at: u32) {
        let mut node = self.nodes[at as usize];
        self.pull_node(&mut node);
        self.nodes[at as usize] = node;
    }

    fn pull_node(&self, node: &mut ExpiryNode) {
        let latest = |at: u32| self.nodes.get(at as usize).map_or(0, |node| node.latest_ms);
        node.size = self.size(node.left) + self.size(node.right) + 1;
        node.latest_ms = node.ends_ms.max(latest(node.left)).max(latest(node.right));
    }

    fn insert_below(&mut self, root: u32, at: u32) -> u32 {
        if root == NIL {
            return at;
        }
        debug_assert!(root != at, "Q1: a worker is inserted into a tree twice");
        if priority(at) > priority(root) {
            let (left, right) = self.split(root, at);
            (self.nodes[at as usize].left, self.nodes[at as usize].right) = (left, right);
            self.recompute(at);
            return at;
        }
        if self.is_before(at, root) {
            self.nodes[root as usize].left = self.insert_below(self.nodes[root as usize].left, at);
        } else {
            self.nodes[root as usize].right = self.insert_below(self.nodes[root as usize].right, at);
        }
        self.recompute(root);
        root
    }

    /// Splits a tree into the workers before `at` and those after it.
    fn split(&mut self, root: u32, at: u32) -> (u32, u32) {
        if root == NIL {
            return (NIL, NIL);
        }
        let halves = if self.is_before(at, root) {
            let (left, right) = self.split(self.nodes[root as usize].left, at);
            self.nodes[root as usize].left = right;
            (left, root)
        } else {
            let (left, right) = self.split(self.nodes[root as usize].right, at);
            self.nodes[root as usize].right = left;
            (root, right)
        };
        self.recompute(root);
        halves
    }

    fn remove_below(&mut self, root: u32, at: u32) -> u32 {
        assert!(root != NIL, "Q1: only a worker that is in the tree is taken out");
        if root == at {
            return self.merge(self.nodes[at as usize].left, self.nodes[at as usize].right);
        }
        if self.is_before(at, root) {
            self.nodes[root as usize].left = self.remove_below(self.nodes[root as usize].left, at);
        } else {
            self.nodes[root as usize].right = self.remove_below(self.nodes[root as usize].right, at);
        }
        self.recompute(root);
        root
    }

    /// Merges two trees, of which the first is before the second.
    fn merge(&mut self, left: u32, right: u32) -> u32 {
        if left == NIL || right == NIL {
            return if left == NIL { right } else { left };
        }
        if priority(left) > priority(right) {
            self.nodes[left as usize].right = self.merge(self.nodes[left as usize].right, right);
            self.recompute(left);
            left
        } else {
            self.nodes[right as usize].left = self.merge(left, self.nodes[right as usize].left);
            self.recompute(right);
            right
        }
    }

    fn find_below(
        &self,
        at: u32,
        from: SearchDirection,
        until_ms: Millis,
        passes: &mut impl FnMut(u32) -> bool,
    ) -> Option<u32> {
        let node = self.node(at).filter(|node| node.latest_ms > until_ms)?;
        let (near, far) = match from {
            SearchDirection::Ascending => (node.left, node.right),
            SearchDirection::Descending => (node.right, node.left),
        };
        self.find_below(near, from, until_ms, passes)
            .or_else(|| (node.ends_ms > until_ms && passes(at)).then_some(at))
            .or_else(|| self.find_below(far, from, until_ms, passes))
    }
}

fn priority(at: u32) -> u64 {
    splitmix64(at.into())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        /// Compares with lists: two trees in one slab find, count and number what a linear search would.
        #[test]
                fn c11_trees_find_what_a_linear_search_would(
            ops in prop::collection::vec((0..40_u32, 0..2_usize, 0..30_u64, 1..20_u64, any::<bool>()), 1..200),
        ) {
            let mut expiries = ExpiryForest::default();
            let mut trees = [ExpiryTree::default(); 2];
            // By tree: key, worker, end.
            let mut oracle: [Vec<(u64, u32, u64)>; 2] = Default::default();
            for (at, tree, key, ends_ms, by_end) in ops {
                match oracle.iter().position(|expected| expected.iter().any(|&(_, ordinal, _)| ordinal == at)) {
                    Some(expected) => {
                        expiries.remove(&mut trees[expected], at);
                        oracle[expected].retain(|&(_, ordinal, _)| ordinal != at);
                    }
                    None => {
                        // Keys expected the first tree are ends.
                        let ends_ms = if by_end { NEVER } else { ends_ms };
                        let key = if tree == 0 { ends_ms } else { key };
                        expiries.set_ends_ms(at, ends_ms);
                        expiries.insert(&mut trees[tree], at, key);
                        oracle[tree].push((key, at, ends_ms));
                        oracle[tree].sort_unstable();
                    }
                }
                for (tree, expected) in trees.into_iter().zip(&oracle) {
                    expiries.check(tree).unwrap();
                    prop_assert_eq!(expiries.all(tree), expected.iter().map(|&(_, at, _)| at).collect::<Vec<_>>());
                    prop_assert_eq!(expiries.latest_ms(tree), expected.iter().map(|&(.., ends_ms)| ends_ms).max().unwrap_or(0));
                    for until_ms in [0, 5, 19, 20] {
                        let passing = || expected.iter().filter(|&&(_, at, ends_ms)| ends_ms > until_ms && at % 3 > 0);
                        let find = |from| expiries.find(tree, from, until_ms, &mut |at| at % 3 > 0);
                        prop_assert_eq!(find(SearchDirection::Ascending), passing().next().map(|&(_, at, _)| at));
                        prop_assert_eq!(find(SearchDirection::Descending), passing().next_back().map(|&(_, at, _)| at));
                    }
                }
                for until_ms in [0, 5, 19, 20] {
                    let lasting: Vec<u32> =
                        oracle[0].iter().filter(|&&(.., ends_ms)| ends_ms > until_ms).map(|&(_, at, _)| at).collect();
                    prop_assert_eq!(expiries.count_outliving(trees[0], until_ms), lasting.len());
                    for (nth, at) in lasting.iter().rev().enumerate() {
                        prop_assert_eq!(expiries.nth_last(trees[0], nth), Some(*at));
                    }
                }
            }
        }
    }
}
