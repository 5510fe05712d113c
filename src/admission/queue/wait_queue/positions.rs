//! Numbers of claims that are served before another: of one priority, tenants are assumed to alternate.
//!
//! A page of a listing counts for many claims of a queue at once, and in parts ([`PositionCount`]), so that the queue is
//! never locked for long: what waits of each tenant and priority is summed up once, and then the claims are counted by
//! arrival. So a page costs about as much as one claim. What changes between two parts may or may not be counted.

use std::cmp::Ordering;
use std::collections::{BTreeMap, VecDeque};
use std::ops::Bound;

use super::walk::WALK_VISITS_MAX;
use super::{TenantGroup, WaitQueue};
use crate::admission::queue::queued_claim::ArrivalNumber;
use crate::collections::HashMap;

/// Claims of one priority that wait, by tenant.
#[derive(Debug, Default)]
struct PriorityCounts {
    /// Number of claims of each tenant, in ascending order.
    waiting: Vec<usize>,
    /// Sums of the counts before each, and of all.
    sums: Vec<usize>,
}

impl PriorityCounts {
    fn new(mut waiting: Vec<usize>) -> Self {
        waiting.sort_unstable();
        let mut sums = vec![0];
        sums.extend(waiting.iter().scan(0, |sum, count| {
            *sum += count;
            Some(*sum)
        }));
        Self { waiting, sums }
    }

    /// Number of claims of all tenants together, at most `limit` of each.
    fn sum_up_to(&self, limit: usize) -> usize {
        let below = self.waiting.partition_point(|count| *count < limit);
        self.sums[below] + limit * (self.waiting.len() - below)
    }

    fn total(&self) -> usize {
        self.sums.last().copied().unwrap_or(0)
    }
}

/// Tenant and priority of a claim.
type TenantLevel = (u64, u16);

/// Count of the claims ahead of many claims of a queue, in parts that may be interrupted by changes.
#[derive(Debug)]
pub struct PositionCount {
    /// Claims in question, in the order of arrival.
    arrivals: VecDeque<ArrivalNumber>,
    /// Number of claims that wait of each tenant and priority, as far as summed up.
    waiting: BTreeMap<TenantLevel, usize>,
    is_summed_up: bool,
    /// Arrival number at which counting goes on, and number of claims of each tenant and priority before it.
    from: ArrivalNumber,
    before: HashMap<TenantLevel, usize>,
    /// Claims in question that were found, with the number of claims of their tenant and priority before them.
    found: Vec<(ArrivalNumber, TenantLevel, usize)>,
}

/// Progress of a count after a part of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CountStep {
    /// The count is complete.
    Finished,
    /// The count goes on with another part.
    Unfinished,
}

impl PositionCount {
    /// Begins to count for these claims, which are in the order of arrival.
    #[must_use]
    pub fn new(arrivals: Vec<ArrivalNumber>) -> Self {
        debug_assert!(arrivals.is_sorted(), "a page is in the order of arrival");
        Self {
            arrivals: arrivals.into(),
            waiting: BTreeMap::new(),
            is_summed_up: false,
            from: ArrivalNumber::MIN,
            before: HashMap::default(),
            found: Vec::new(),
        }
    }

    /// Visits at most [`WALK_VISITS_MAX`] groups or claims of the queue.
    pub fn step(&mut self, queue: &WaitQueue) -> CountStep {
        if !self.is_summed_up {
            let after = self.waiting.last_key_value().map_or(Bound::Unbounded, |(last, _)| Bound::Excluded(*last));
            let groups = queue.groups_by_tenant.range((after, Bound::Unbounded)).take(WALK_VISITS_MAX);
            let before = self.waiting.len();
            self.waiting.extend(groups.map(|(level, group)| (*level, queue.group_len(*group))));
            self.is_summed_up = self.waiting.len() < before + WALK_VISITS_MAX;
            return CountStep::Unfinished;
        }
        for (visits, (arrival, (_, lane))) in queue.claims.range(self.from..).enumerate() {
            // Those that have left are not found.
            while self.arrivals.pop_front_if(|wanted| *wanted < *arrival).is_some() {}
            if self.arrivals.is_empty() {
                return CountStep::Finished;
            }
            if visits == WALK_VISITS_MAX {
                return CountStep::Unfinished;
            }
            self.from = arrival.saturating_add(1);
            let group = queue.groups.get(queue.lanes.get(*lane).group);
            let level = (group.tenant.number, group.priority);
            let own = self.before.entry(level).or_default();
            if self.arrivals.pop_front_if(|wanted| *wanted == *arrival).is_some() {
                self.found.push((*arrival, level, *own));
            }
            *own += 1;
        }
        CountStep::Finished
    }

    /// Numbers of claims ahead of those that were found.
    pub fn into_positions(self) -> impl Iterator<Item = (ArrivalNumber, usize)> {
        let mut by_priority: BTreeMap<u16, Vec<usize>> = BTreeMap::new();
        for ((_, priority), waiting) in &self.waiting {
            by_priority.entry(*priority).or_default().push(*waiting);
        }
        let mut higher = 0;
        let mut counts: HashMap<u16, (usize, PriorityCounts)> = HashMap::default();
        for (priority, waiting) in by_priority.into_iter().rev() {
            let of_priority = PriorityCounts::new(waiting);
            let total = of_priority.total();
            counts.insert(priority, (higher, of_priority));
            higher += total;
        }
        self.found.into_iter().map(move |(arrival, level, own)| {
            let of_group = self.waiting.get(&level).copied().unwrap_or(0);
            let (higher, all) =
                counts.get(&level.1).map_or((0, 0), |(higher, counts)| (*higher, counts.sum_up_to(own)));
            (arrival, higher + own + all.saturating_sub(own.min(of_group)))
        })
    }
}

impl WaitQueue {
    /// Number of claims ahead of this one at present: those with a higher priority, and of its own priority those that
    /// are served earlier if tenants alternate.
    #[must_use]
    pub fn count_ahead(&self, arrival: ArrivalNumber) -> Option<usize> {
        let (claim, _) = self.claims.get(&arrival)?;
        let group = self.groups.get(self.groups_by_tenant[&(claim.tenant.number, claim.priority)]);
        let own = self.count_own(group, arrival);
        Some(own + self.count_others(claim.tenant.number, claim.priority, own))
    }

    /// Number of claims that would be ahead of another one of this tenant and priority if it came now. No tenant number:
    /// none of its tenant waits.
    #[must_use]
    pub fn count_ahead_of_newcomer(&self, tenant: Option<u64>, priority: u16) -> usize {
        let Some(tenant) = tenant else { return self.count_above(priority) };
        let own = self.groups_by_tenant.get(&(tenant, priority)).map_or(0, |group| self.group_len(*group));
        own + self.count_others(tenant, priority, own)
    }

    /// Number of claims of a group that arrived before this one.
    fn count_own(&self, group: &TenantGroup, arrival: ArrivalNumber) -> usize {
        let lanes = self.lane_trees.iter(group.lanes).take_while(|(first, _)| *first < arrival);
        lanes.map(|(_, lane)| self.lanes.get(lane).count_before(arrival)).sum()
    }

    /// Number of claims of higher priorities, and of other tenants of the same priority, ahead of one with `own` claims of
    /// its tenant before it.
    fn count_others(&self, tenant: u64, priority: u16, own: usize) -> usize {
        let ahead = self.groups_by_tenant.iter().map(|((other, level), group)| match level.cmp(&priority) {
            Ordering::Greater => self.group_len(*group),
            Ordering::Equal if *other != tenant => self.group_len(*group).min(own),
            _ => 0,
        });
        ahead.sum()
    }

    fn count_above(&self, priority: u16) -> usize {
        let above = self.groups_by_tenant.iter().filter(|((_, level), _)| *level > priority);
        above.map(|(_, group)| self.group_len(*group)).sum()
    }

    fn group_len(&self, group: u32) -> usize {
        self.lane_trees.summary(self.groups.get(group).lanes).claims as usize
    }
}
