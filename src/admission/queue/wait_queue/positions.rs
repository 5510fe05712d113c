//! Numbers of claims that are served before another: of one priority, tenants are assumed to alternate.
//!
//! A page of a listing counts for many claims of a queue at once. What waits of each tenant and priority is summed up once,
//! and the claims of a group are counted once over all of its claims on the page. So a page costs as much as one claim.

use std::cmp::Ordering;
use std::collections::{BTreeMap, HashMap};

use super::{TenantGroup, WaitQueue};
use crate::admission::queue::queued_claim::ArrivalNumber;

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

impl WaitQueue {
    /// Number of claims ahead of this one at present: those with a higher priority, and of its own priority those that
    /// are served earlier if tenants alternate.
    #[must_use]
    pub fn count_ahead(&self, arrival: ArrivalNumber) -> Option<usize> {
        let (claim, _) = self.claims.get(&arrival)?;
        let group = self.groups.get(self.groups_by_tenant[&(claim.tenant.number, claim.priority)]);
        let own = self.count_own(group, &[arrival])[0];
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

    /// Numbers of claims ahead of each of these, which are in ascending order; none for one that is not in the queue.
    #[must_use]
    pub fn count_ahead_of_all(&self, arrivals: &[ArrivalNumber]) -> Vec<Option<usize>> {
        debug_assert!(arrivals.is_sorted(), "a page is in the order of arrival");
        let mut by_group: HashMap<u32, Vec<ArrivalNumber>> = HashMap::new();
        for arrival in arrivals {
            if let Some((_, lane)) = self.claims.get(arrival) {
                by_group.entry(self.lanes.get(*lane).group).or_default().push(*arrival);
            }
        }
        let mut waiting: BTreeMap<u16, Vec<usize>> = BTreeMap::new();
        for ((_, priority), group) in &self.groups_by_tenant {
            waiting.entry(*priority).or_default().push(self.group_len(*group));
        }
        let mut above = 0;
        let counts: HashMap<u16, (usize, PriorityCounts)> = waiting
            .into_iter()
            .rev()
            .map(|(priority, waiting)| {
                let counts = PriorityCounts::new(waiting);
                let higher = above;
                above += counts.total();
                (priority, (higher, counts))
            })
            .collect();
        let mut ahead: HashMap<ArrivalNumber, usize> = HashMap::new();
        for (number, shown) in by_group {
            let group = self.groups.get(number);
            let (higher, counts) = &counts[&group.priority];
            let all_own = self.group_len(number);
            for (arrival, own) in shown.iter().zip(self.count_own(group, &shown)) {
                ahead.insert(*arrival, higher + own + counts.sum_up_to(own) - own.min(all_own));
            }
        }
        arrivals.iter().map(|arrival| ahead.get(arrival).copied()).collect()
    }

    /// Number of claims of a group that arrived before each of these, which are in ascending order.
    fn count_own(&self, group: &TenantGroup, arrivals: &[ArrivalNumber]) -> Vec<usize> {
        let mut before = vec![0; arrivals.len()];
        let Some(&last) = arrivals.last() else { return before };
        for (_, lane) in self.lane_trees.iter(group.lanes).take_while(|(first, _)| *first < last) {
            let mut next = 0;
            for arrival in self.lanes.get(lane).arrivals.range(..last) {
                while arrivals[next] <= *arrival {
                    next += 1;
                }
                before[next] += 1;
            }
        }
        let mut sum = 0;
        for count in &mut before {
            sum += *count;
            *count = sum;
        }
        before
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
