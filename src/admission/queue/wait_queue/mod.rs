//! Wait queue of a pool: an index of the claims that wait, by rank. Pure: no clock, no lock.
//!
//! The *rank* of a claim is its priority (higher first), then its tenant's share of the pool (smaller first), then its
//! arrival. Claims of one tenant and priority are a *group*; those of a group that request the same are a *lane*. The
//! groups are a tree by rank, and the lanes of a group are a tree by the arrival of their first claims. Each node knows
//! the least that anything below it needs ([`super::rank_tree`]), so the best-ranked claim that fits a worker is found
//! without looking at those that do not fit.
//!
//! A claim either stands still or is being tried elsewhere. One that is tried keeps its rank, but nothing is offered to it,
//! and a lane of such claims only is passed over as a whole. A worker that one of them may fit and nobody else takes is
//! *unmatched*: it is offered again once such a claim stands still ([`unmatched`]).

mod positions;
mod unmatched;
mod walk;

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, BinaryHeap};
use std::ops::RangeBounds;
use std::sync::Arc;

use smallvec::SmallVec;

pub use self::positions::{CountStep, PositionCount};
pub use self::unmatched::UnmatchedOffers;
use self::unmatched::UnmatchedWorkers;
use self::walk::WALK_VISITS_MAX;
pub use self::walk::{OfferVerdict, QueueWalk, WalkOracle, WalkOutcome};
use super::least_demand::{ClaimDemand, LeastDemand};
use super::queued_claim::{ArrivalNumber, QueuedClaim};
use super::rank_tree::{SubtreeSummary, TreeArena, TreeRoot};
use super::request_class::ClassTable;
use super::reservations::ReservationList;
use super::row_table::RowTable;
use crate::admission::tenant::Tenant;
use crate::collections::HashMap;
use crate::model::Millis;

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct GroupKey {
    priority: Reverse<u16>,
    share: u64,
    first: ArrivalNumber,
    tenant: u64,
}

/// Lanes with claims that are being tried, up to which these are looked at one by one.
const TRIED_LANES_MAX: usize = 16;

/// Claims of one tenant and priority.
#[derive(Debug)]
struct TenantGroup {
    tenant: Arc<Tenant>,
    priority: u16,
    share: u64,
    lanes: TreeRoot,
    /// Mark at which lanes of it were last passed over because of the quota.
    short_mark: u64,
}

/// Claims of a group that request the same.
#[derive(Debug)]
struct ClaimLane {
    group: u32,
    class: u32,
    /// Claims that stand still.
    still: BTreeSet<ArrivalNumber>,
    /// Claims that are being tried, each with the number of workers that had been given up when that began
    /// ([`UnmatchedWorkers::given_up`]).
    tried: BTreeMap<ArrivalNumber, u64>,
    /// Mark at which the lane was last passed over because of the quota.
    short_mark: u64,
    /// Mark at which a search for a claim of it last found no capacity.
    searched_mark: u64,
    /// Claim that is being searched for because its tenant has more headroom.
    searched_for: Option<ArrivalNumber>,
}

impl ClaimLane {
    fn len(&self) -> usize {
        self.still.len() + self.tried.len()
    }

    /// First claim of those that arrived in this range.
    fn first_in(&self, range: impl RangeBounds<ArrivalNumber> + Clone) -> Option<ArrivalNumber> {
        let still = self.still.range(range.clone()).next();
        let tried = self.tried.range(range).next().map(|(arrival, _)| arrival);
        still.into_iter().chain(tried).min().copied()
    }

    fn first(&self) -> Option<ArrivalNumber> {
        self.first_in(..)
    }

    /// Number of claims that arrived before this one.
    fn count_before(&self, arrival: ArrivalNumber) -> usize {
        self.still.range(..arrival).count() + self.tried.range(..arrival).count()
    }
}

/// Claims that wait for a pool.
#[derive(Debug, Default)]
pub struct WaitQueue {
    /// Claims with the numbers of their lanes. Ordered, so that a listing goes on where its last page ended: most enter
    /// at the end, and a search takes as many steps as in the lanes, which are ordered as well.
    claims: BTreeMap<ArrivalNumber, (Arc<QueuedClaim>, u32)>,
    lanes: RowTable<ClaimLane>,
    lanes_by_key: HashMap<(u32, u32), u32>,
    groups: RowTable<TenantGroup>,
    groups_by_tenant: BTreeMap<(u64, u16), u32>,
    classes: ClassTable,
    group_tree: TreeArena<GroupKey, u32>,
    lane_trees: TreeArena<ArrivalNumber, u32>,
    root: TreeRoot,
    /// Lanes with a claim that is being tried.
    tried_lanes: BTreeSet<u32>,
    unmatched: UnmatchedWorkers,
    /// Number of changes of the trees, which end what a walk knows of them.
    version: u64,
    /// Number of times that something was marked: tells which of two marks is later.
    marks: u64,
    /// Capacity that is kept for claims that wait.
    pub reservations: ReservationList,
}

impl WaitQueue {
    /// Number of claims that wait.
    #[must_use]
    pub fn len(&self) -> usize {
        self.claims.len()
    }

    /// Whether no claim waits.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.claims.is_empty()
    }

    /// Number of claims of a tenant.
    #[must_use]
    pub fn waiting_of(&self, tenant: u64) -> usize {
        self.groups_of(tenant).map(|group| self.lane_trees.summary(self.groups.get(group).lanes).claims as usize).sum()
    }

    /// Number of changes of what the queue contains and of which requests stand still; [`Self::least`] changes only with it.
    #[must_use]
    pub const fn version(&self) -> u64 {
        self.version
    }

    /// Least that some claim needs, whether it stands still or is being tried.
    #[must_use]
    pub fn least(&self) -> LeastDemand {
        let mut least = self.group_tree.summary(self.root).least;
        if self.tried_lanes.len() > TRIED_LANES_MAX {
            return LeastDemand::NOTHING;
        }
        self.tried_lanes.iter().for_each(|lane| least.merge(&self.lane_least(self.lanes.get(*lane))));
        least
    }

    /// Claim with this arrival number.
    #[must_use]
    pub fn get(&self, arrival: ArrivalNumber) -> Option<&Arc<QueuedClaim>> {
        self.claims.get(&arrival).map(|(claim, _)| claim)
    }

    /// First claim of the lane in which this one is, if it is another one and the quota does not keep it back.
    #[must_use]
    pub fn first_of_lane(&self, arrival: ArrivalNumber) -> Option<&Arc<QueuedClaim>> {
        let (_, lane) = self.claims.get(&arrival)?;
        let lane = self.lanes.get(*lane);
        let first = lane.first().filter(|first| *first < arrival && !self.is_short(lane))?;
        self.get(first)
    }

    /// Demand of the claim with this arrival number.
    #[must_use]
    pub fn demand_of(&self, arrival: ArrivalNumber) -> Option<&ClaimDemand> {
        let (_, lane) = self.claims.get(&arrival)?;
        Some(self.classes.demand(self.lanes.get(*lane).class))
    }

    /// All claims, by arrival.
    pub fn claims(&self) -> impl Iterator<Item = &Arc<QueuedClaim>> {
        self.claims.values().map(|(claim, _)| claim)
    }

    /// Claims that arrived at this number or later, by arrival.
    pub fn claims_from(&self, arrival: ArrivalNumber) -> impl Iterator<Item = &Arc<QueuedClaim>> {
        self.claims.range(arrival..).map(|(_, (claim, _))| claim)
    }

    fn groups_of(&self, tenant: u64) -> impl Iterator<Item = u32> + '_ {
        self.groups_by_tenant.range((tenant, 0)..=(tenant, u16::MAX)).map(|(_, group)| *group)
    }

    /// Adds a claim that is being tried, unless it is in the queue. `needs_ms`: time for which it needs a worker of this pool. `share`: its
    /// tenant's share of the pool. Returns whether it was added.
    pub fn insert(&mut self, claim: &Arc<QueuedClaim>, needs_ms: Millis, share: u64) -> bool {
        if self.claims.contains_key(&claim.arrival) {
            return false;
        }
        self.version += 1;
        let (tenant, priority) = (claim.tenant.number, claim.priority);
        self.set_share(tenant, share);
        let group = *self.groups_by_tenant.entry((tenant, priority)).or_insert_with(|| {
            let (tenant, lanes) = (Arc::clone(&claim.tenant), TreeRoot::default());
            self.groups.insert(TenantGroup { tenant, priority, share, lanes, short_mark: 0 })
        });
        self.detach_group(group);
        let class = self.classes.join(&claim.class, needs_ms);
        let lane = *self.lanes_by_key.entry((group, class)).or_insert_with(|| {
            // It may fit the capacity that the quota keeps others from.
            let (short_mark, searched_mark, searched_for) = (0, self.marks, None);
            let (still, tried) = (BTreeSet::new(), BTreeMap::new());
            self.lanes.insert(ClaimLane { group, class, still, tried, short_mark, searched_mark, searched_for })
        });
        self.detach_lane(lane);
        let row = self.lanes.get_mut(lane);
        row.tried.insert(claim.arrival, self.unmatched.given_up());
        self.tried_lanes.insert(lane);
        self.attach_lane(lane);
        self.attach_group(group);
        self.claims.insert(claim.arrival, (Arc::clone(claim), lane));
        true
    }

    /// Removes the claim with this arrival number, if it is in the queue.
    pub fn remove(&mut self, arrival: ArrivalNumber) -> Option<Arc<QueuedClaim>> {
        let (claim, lane) = self.claims.remove(&arrival)?;
        self.version += 1;
        let ClaimLane { group, class, .. } = *self.lanes.get(lane);
        self.detach_group(group);
        self.detach_lane(lane);
        let row = self.lanes.get_mut(lane);
        row.still.remove(&arrival);
        if row.tried.remove(&arrival).is_some() && row.tried.is_empty() {
            self.forget_tried_lane(lane);
        }
        self.attach_lane(lane);
        self.attach_group(group);
        self.classes.leave(class);
        if self.lanes.get(lane).len() == 0 {
            self.lanes.remove(lane);
            self.lanes_by_key.remove(&(group, class));
        }
        if self.groups.get(group).lanes == TreeRoot::default() {
            self.groups.remove(group);
            self.groups_by_tenant.remove(&(claim.tenant.number, claim.priority));
        }
        Some(claim)
    }

    /// Enters a claim anew that needs its worker for another time, in milliseconds.
    pub fn renew(&mut self, arrival: ArrivalNumber, needs_ms: Millis) {
        let Some((_, lane)) = self.claims.get(&arrival) else { return };
        let lane = self.lanes.get(*lane);
        let (is_still, share) = (lane.still.contains(&arrival), self.groups.get(lane.group).share);
        // Kept, also if it is the only claim that is being tried.
        let unmatched = std::mem::take(&mut self.unmatched);
        let claim = self.remove(arrival).expect("the claim is in the queue");
        self.insert(&claim, needs_ms, share);
        self.unmatched = unmatched;
        if is_still {
            self.note_still(arrival);
        }
    }

    fn lane_least(&self, lane: &ClaimLane) -> LeastDemand {
        LeastDemand::of(self.classes.demand(lane.class))
    }

    fn lane_summary(&self, lane: &ClaimLane) -> SubtreeSummary {
        let claims = u32::try_from(lane.len()).expect("fewer than 2^32 claims wait");
        let least = if lane.still.is_empty() { LeastDemand::default() } else { self.lane_least(lane) };
        SubtreeSummary { least, claims }
    }

    fn attach_lane(&mut self, number: u32) {
        let lane = self.lanes.get(number);
        let Some(first) = lane.first() else { return };
        let summary = self.lane_summary(lane);
        self.lane_trees.insert(&mut self.groups.get_mut(lane.group).lanes, first, number, summary);
    }

    fn detach_lane(&mut self, number: u32) {
        let lane = self.lanes.get(number);
        if let Some(first) = lane.first() {
            self.lane_trees.remove(&mut self.groups.get_mut(lane.group).lanes, first);
        }
    }

    fn group_key(&self, group: &TenantGroup) -> Option<GroupKey> {
        let first = self.lane_trees.first(group.lanes)?;
        Some(GroupKey { priority: Reverse(group.priority), share: group.share, first, tenant: group.tenant.number })
    }

    fn attach_group(&mut self, number: u32) {
        let group = self.groups.get(number);
        if let Some(key) = self.group_key(group) {
            self.group_tree.insert(&mut self.root, key, number, self.lane_trees.summary(group.lanes));
        }
    }

    fn detach_group(&mut self, number: u32) {
        if let Some(key) = self.group_key(self.groups.get(number)) {
            self.group_tree.remove(&mut self.root, key);
        }
    }

    /// Updates the share of a tenant.
    pub fn set_share(&mut self, tenant: u64, share: u64) {
        let groups: SmallVec<[u32; 4]> = self.groups_of(tenant).collect();
        for group in groups {
            if self.groups.get(group).share != share {
                self.version += 1;
                self.detach_group(group);
                self.groups.get_mut(group).share = share;
                self.attach_group(group);
            }
        }
    }

    /// Tenant with this number, if a claim of it waits.
    #[must_use]
    pub fn tenant(&self, number: u64) -> Option<&Arc<Tenant>> {
        self.groups_of(number).next().map(|group| &self.groups.get(group).tenant)
    }

    /// Tenants of the claims, each once.
    pub fn tenants(&self) -> impl Iterator<Item = &Arc<Tenant>> {
        let mut last = None;
        self.groups_by_tenant.iter().filter_map(move |((tenant, _), group)| {
            let is_new = last.replace(*tenant) != Some(*tenant);
            is_new.then(|| &self.groups.get(*group).tenant)
        })
    }

    /// Notes that the quota keeps a claim back, which is to be searched for when its tenant has more headroom.
    pub fn note_quota_short(&mut self, arrival: ArrivalNumber) {
        if let Some(&(_, lane)) = self.claims.get(&arrival) {
            self.mark_short(lane);
        }
    }

    fn mark_short(&mut self, number: u32) {
        self.marks += 1;
        let lane = self.lanes.get_mut(number);
        (lane.short_mark, lane.searched_for) = (self.marks, None);
        let group = self.groups.get_mut(lane.group);
        // The group as a whole was not passed over: its mark only says that some lane of it was.
        group.short_mark = group.short_mark.max(1);
    }

    /// Notes that a search for a claim found no capacity: none of its lane would find any.
    pub fn note_searched(&mut self, arrival: ArrivalNumber) {
        if let Some(&(_, lane)) = self.claims.get(&arrival) {
            let marks = self.marks;
            let lane = self.lanes.get_mut(lane);
            (lane.searched_mark, lane.searched_for) = (marks, None);
        }
    }

    fn is_short(&self, lane: &ClaimLane) -> bool {
        self.groups.get(lane.group).short_mark.max(lane.short_mark) > lane.searched_mark
    }

    /// Best-ranked claim of a tenant among those that its quota has kept back and allows now, which is to be searched for.
    /// No other claim of its lane is until that has ended. `allows`: whether the quota allows a claim.
    pub fn take_quota_short(
        &mut self,
        tenant: u64,
        mut allows: impl FnMut(&QueuedClaim) -> bool,
    ) -> Option<Arc<QueuedClaim>> {
        let groups: SmallVec<[u32; 4]> = self.groups_of(tenant).collect();
        for &group in groups.iter().rev() {
            if self.groups.get(group).short_mark == 0 {
                continue;
            }
            let mut is_any_short = false;
            let found = self.lane_trees.iter(self.groups.get(group).lanes).find(|(head, number)| {
                let lane = self.lanes.get(*number);
                let is_short = self.is_short(lane);
                is_any_short |= is_short;
                is_short && lane.searched_for != Some(*head) && allows(&self.claims[head].0)
            });
            if let Some((head, number)) = found {
                self.lanes.get_mut(number).searched_for = Some(head);
                return Some(Arc::clone(&self.claims[&head].0));
            }
            if !is_any_short {
                self.groups.get_mut(group).short_mark = 0;
            }
        }
        None
    }

    /// Whether the quota may keep claims of a tenant back.
    #[must_use]
    pub fn has_quota_short(&self, tenant: u64) -> bool {
        self.groups_of(tenant).any(|group| self.groups.get(group).short_mark > 0)
    }

    /// Best-ranked claim of a tenant that passes `accept`.
    #[must_use]
    pub fn first_of_tenant(
        &self,
        tenant: u64,
        mut accept: impl FnMut(&QueuedClaim) -> bool,
    ) -> Option<&Arc<QueuedClaim>> {
        let groups = self.groups_by_tenant.range((tenant, 0)..=(tenant, u16::MAX)).rev();
        let heads = groups.flat_map(|(_, group)| self.lane_trees.iter(self.groups.get(*group).lanes));
        heads.map(|(head, _)| &self.claims[&head].0).find(|claim| accept(claim))
    }

    /// Best-ranked claims of those lanes that pass `accept`, which is given the first claim of each: at most `limit`, from
    /// at most [`WALK_VISITS_MAX`] lanes.
    pub fn ranked(
        &self,
        limit: usize,
        mut accept: impl FnMut(&QueuedClaim, &ClaimDemand) -> bool,
    ) -> Vec<Arc<QueuedClaim>> {
        let mut found = Vec::new();
        let mut visits = 0;
        for (_, group) in self.group_tree.iter(self.root) {
            // Claims of a group, by arrival over all of its lanes.
            let mut next: BinaryHeap<Reverse<(ArrivalNumber, u32)>> = BinaryHeap::new();
            let mut lanes = self.lane_trees.iter(self.groups.get(group).lanes).peekable();
            while found.len() < limit {
                let first = next.peek().map(|Reverse((arrival, _))| *arrival);
                if let Some((head, lane)) = lanes.next_if(|(head, _)| first.is_none_or(|first| *head < first)) {
                    visits += 1;
                    let (claim, _) = &self.claims[&head];
                    if visits <= WALK_VISITS_MAX && accept(claim, self.classes.demand(self.lanes.get(lane).class)) {
                        next.push(Reverse((head, lane)));
                    }
                    continue;
                }
                let Some(Reverse((arrival, lane))) = next.pop() else { break };
                found.push(Arc::clone(&self.claims[&arrival].0));
                let after = (std::ops::Bound::Excluded(arrival), std::ops::Bound::Unbounded);
                next.extend(self.lanes.get(lane).first_in(after).map(|next| Reverse((next, lane))));
            }
            if found.len() >= limit || visits > WALK_VISITS_MAX {
                break;
            }
        }
        found
    }

    /// Lanes of the queue.
    pub fn lanes(&self) -> impl Iterator<Item = LaneView<'_>> {
        self.lanes.iter().map(|lane| {
            let first = lane.first().expect("a lane has claims");
            let (head, _) = &self.claims[&first];
            LaneView { head, demand: self.classes.demand(lane.class), claims: lane.len() }
        })
    }

    /// Removes and returns all claims, by arrival.
    pub fn drain(&mut self) -> Vec<Arc<QueuedClaim>> {
        let all = std::mem::take(self);
        self.version = all.version + 1;
        all.claims.into_values().map(|(claim, _)| claim).collect()
    }
}

/// Claims of one tenant and priority that request the same.
#[derive(Debug)]
pub struct LaneView<'q> {
    /// First claim of the lane.
    pub head: &'q Arc<QueuedClaim>,
    /// Demand of each claim.
    pub demand: &'q ClaimDemand,
    /// Number of claims in the lane.
    pub claims: usize,
}

#[cfg(test)]
mod tests;
