//! Walk through a wait queue in the order of rank, for one worker that has something free.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::ops::{Bound, RangeBounds};
use std::sync::Arc;

use smallvec::SmallVec;

use super::{GroupKey, TenantGroup, WaitQueue};
use crate::admission::queue::least_demand::{FreeAmounts, LeastDemand};
use crate::admission::queue::queued_claim::{ArrivalNumber, QueuedClaim};
use crate::admission::queue::rank_tree::TreeNode;
use crate::admission::tenant::Tenant;
use crate::engine::WorkerOffer;

/// Answer of a claim that is offered a worker.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OfferVerdict {
    /// The claim takes the worker, and leaves this queue.
    Takes,
    /// The claim is being tried elsewhere, and will stand still or leave afterwards.
    Tried,
    /// The tenant's quota does not allow it.
    NoQuota,
    /// The claim does not wait any more.
    Gone,
}

/// Claims and tenants as a walk through the queue asks them.
pub trait WalkOracle {
    /// Returns false only if the tenant's quota allows no claim of these. Then the tenant is to learn of it when it has
    /// more headroom.
    fn may_charge(&mut self, tenant: &Tenant, least: &LeastDemand) -> bool;

    /// Offers the worker to a claim.
    fn offer(&mut self, claim: &QueuedClaim) -> OfferVerdict;
}

/// End of a walk, or of a part of it.
#[derive(Debug)]
pub enum WalkOutcome {
    /// The claim takes the worker, and has left the queue.
    Matched(Arc<QueuedClaim>),
    /// No claim takes it.
    Nobody,
    /// As many nodes were visited as may be at a time: the walk goes on when it is called again.
    Unfinished,
}

/// Nodes that one part of a walk visits, which bounds how long it holds the queue's lock.
pub(super) const WALK_VISITS_MAX: usize = 512;

/// Walk through a queue in the order of rank, for one worker.
#[derive(Debug)]
pub struct QueueWalk {
    pub(super) frontier: BinaryHeap<Reverse<(ClaimRank, FrontierItem)>>,
    /// Version of the queue that the frontier belongs to; none: the walk has not begun.
    version: Option<u64>,
    visits_max: usize,
}

impl Default for QueueWalk {
    fn default() -> Self {
        Self { frontier: BinaryHeap::new(), version: None, visits_max: WALK_VISITS_MAX }
    }
}

/// Claims that a walk found being tried.
type TriedClaims = SmallVec<[ArrivalNumber; 16]>;

/// Rank of a claim, or the lowest below a node.
pub(super) type ClaimRank = (Reverse<u16>, u64, ArrivalNumber);

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum FrontierItem {
    /// All groups of a subtree.
    Groups(TreeNode),
    /// Subtree of the lanes of a group.
    Lanes(u32, TreeNode),
    /// Claims of a lane, from this arrival on.
    Lane(u32, ArrivalNumber),
}

impl WaitQueue {
    /// Offers a worker to the claims that fit it, in the order of rank, until one takes it. Claims that are being tried are
    /// passed over.
    pub fn walk(&mut self, walk: &mut QueueWalk, offer: &WorkerOffer, oracle: &mut impl WalkOracle) -> WalkOutcome {
        let mut tried = TriedClaims::new();
        let outcome = self.walk_part(walk, offer, oracle, &mut tried);
        // Only now: that changes the trees.
        self.note_tried(&tried);
        outcome
    }

    fn walk_part(
        &mut self,
        walk: &mut QueueWalk,
        offer: &WorkerOffer,
        oracle: &mut impl WalkOracle,
        tried: &mut TriedClaims,
    ) -> WalkOutcome {
        let free = FreeAmounts::of(offer);
        if walk.version != Some(self.version) {
            walk.visits_max = if walk.version.is_none() { WALK_VISITS_MAX } else { walk.visits_max.saturating_mul(2) };
            walk.version = Some(self.version);
            walk.frontier.clear();
            if let Some(node) = self.root.node() {
                self.push_groups(walk, node, &free);
            }
        }
        self.classes.begin_query();
        let mut visits = 0;
        while let Some(Reverse((rank, item))) = walk.frontier.pop() {
            visits += 1;
            if visits > walk.visits_max {
                walk.frontier.push(Reverse((rank, item)));
                return WalkOutcome::Unfinished;
            }
            match item {
                FrontierItem::Groups(node) => {
                    for child in self.group_tree.children(node).into_iter().flatten() {
                        self.push_groups(walk, child, &free);
                    }
                    let (_, group) = self.group_tree.get(node);
                    if let Some(root) = self.groups.get(group).lanes.node() {
                        self.push_lanes(walk, group, root, &free, oracle);
                    }
                }
                FrontierItem::Lanes(group, node) => {
                    for child in self.lane_trees.children(node).into_iter().flatten() {
                        self.push_lanes(walk, group, child, &free, oracle);
                    }
                    let (first, lane) = self.lane_trees.get(node);
                    let class = self.lanes.get(lane).class;
                    if self.classes.demand(class).fits(&free) && self.classes.allows(class, &offer.registration.spec) {
                        self.push_claim(walk, group, lane, first..);
                    }
                }
                FrontierItem::Lane(number, arrival) => {
                    let lane = self.lanes.get(number);
                    let (claim, _) = &self.claims[&arrival];
                    let demand = self.classes.demand(lane.class);
                    if !self.reservations.may_use(offer, claim, demand, &free) {
                        // Nor may the others of the lane, but for the one that the worker is kept for.
                        let kept_for = self.reservations.assigned_of(offer).filter(|kept_for| *kept_for > arrival);
                        if let Some(next) = kept_for {
                            self.push_claim(walk, lane.group, number, next..=next);
                        }
                        continue;
                    }
                    let verdict = oracle.offer(claim);
                    match verdict {
                        OfferVerdict::Takes => {
                            return WalkOutcome::Matched(self.remove(arrival).expect("the claim is in the queue"));
                        }
                        OfferVerdict::NoQuota => self.mark_short(number),
                        OfferVerdict::Tried | OfferVerdict::Gone => {
                            if verdict == OfferVerdict::Tried {
                                tried.push(arrival);
                            }
                            self.push_claim(walk, lane.group, number, (Bound::Excluded(arrival), Bound::Unbounded));
                        }
                    }
                }
            }
        }
        WalkOutcome::Nobody
    }

    fn rank(&self, group: u32, arrival: ArrivalNumber) -> ClaimRank {
        let TenantGroup { priority, share, .. } = self.groups.get(group);
        (Reverse(*priority), *share, arrival)
    }

    /// Pushes the first claim of a lane that stands still, of those that arrived in this range.
    fn push_claim(&self, walk: &mut QueueWalk, group: u32, lane: u32, range: impl RangeBounds<ArrivalNumber>) {
        if let Some(&next) = self.lanes.get(lane).still.range(range).next() {
            walk.frontier.push(Reverse((self.rank(group, next), FrontierItem::Lane(lane, next))));
        }
    }

    fn push_groups(&self, walk: &mut QueueWalk, node: TreeNode, free: &FreeAmounts) {
        if self.group_tree.below(node).least.may_fit(free) {
            let GroupKey { priority, share, first, .. } = self.group_tree.first_below(node);
            walk.frontier.push(Reverse(((priority, share, first), FrontierItem::Groups(node))));
        }
    }

    fn push_lanes(
        &mut self,
        walk: &mut QueueWalk,
        group: u32,
        node: TreeNode,
        free: &FreeAmounts,
        oracle: &mut impl WalkOracle,
    ) {
        let least = self.lane_trees.below(node).least;
        if !least.may_fit(free) {
            return;
        }
        if !oracle.may_charge(&self.groups.get(group).tenant, &least) {
            self.marks += 1;
            self.groups.get_mut(group).short_mark = self.marks;
            return;
        }
        let rank = self.rank(group, self.lane_trees.first_below(node));
        walk.frontier.push(Reverse((rank, FrontierItem::Lanes(group, node))));
    }
}
