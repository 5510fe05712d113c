//! Budget of log lines for changes. Pure: no clock, no I/O. The first changes of a group get a line each. Further
//! changes before a quiet period are counted, and the count is logged when it is quiet, or at intervals while they
//! continue.
//!
//! Example: one client drains 100,000 workers of a pool within a minute. The first 100 get a line each, and a second
//! after the last one a line says that there were 99,900 more.

use std::net::IpAddr;

use super::{ChangeKind, ChangeResult};
use crate::collections::HashMap;
use crate::limits::{CHANGE_GROUPS_MAX, CHANGE_LINES_MAX};
use crate::model::{Millis, PoolName};

/// Quiet period that ends a series of changes, in milliseconds.
const QUIET_MS: Millis = 1_000;
/// Longest time for which changes are counted without a line, in milliseconds.
const COUNT_MS_MAX: Millis = 60_000;

/// Changes that are counted together.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(in crate::scheduler) struct ChangeGroup {
    pub(super) kind: ChangeKind,
    pub(super) result: ChangeResult,
    pub(super) pool: Option<PoolName>,
    pub(super) peer: Option<IpAddr>,
}

impl ChangeGroup {
    /// Coarser group, one per kind and result, used when there are too many groups.
    fn coarse(self) -> Self {
        Self { pool: None, peer: None, ..self }
    }
}

/// Log level of a single change.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum ChangeLine {
    /// Line at info, for all readers of the log.
    Own,
    /// Line at debug, for readers who want every change.
    Detail,
}

#[derive(Debug)]
struct GroupCount {
    /// Changes that got a line of their own.
    lines: u32,
    /// Changes counted since the last count was logged.
    more: u64,
    last_ms: Millis,
    /// Time at which the last count was logged, or counting began.
    counted_ms: Millis,
}

/// Budget of all groups. Empty after a quiet period.
#[derive(Debug, Default)]
pub(in crate::scheduler) struct ChangeBudget {
    counts: HashMap<ChangeGroup, GroupCount>,
}

impl ChangeBudget {
    /// Counts a change and returns its level: [`ChangeLine::Detail`] once it is only counted.
    pub(super) fn on_change(&mut self, group: ChangeGroup, now_ms: Millis) -> ChangeLine {
        let has_own_group = self.counts.contains_key(&group) || self.counts.len() < CHANGE_GROUPS_MAX;
        let group = if has_own_group { group } else { group.coarse() };
        let count =
            self.counts.entry(group).or_insert(GroupCount { lines: 0, more: 0, last_ms: now_ms, counted_ms: now_ms });
        count.last_ms = now_ms;
        if count.lines < CHANGE_LINES_MAX {
            count.lines += 1;
            return ChangeLine::Own;
        }
        if count.more == 0 {
            count.counted_ms = now_ms;
        }
        count.more += 1;
        ChangeLine::Detail
    }

    /// Takes the counts that are due, and forgets quiet groups.
    pub(super) fn take_due(&mut self, now_ms: Millis) -> Vec<(ChangeGroup, u64)> {
        let mut due = Vec::new();
        self.counts.retain(|group, count| {
            let is_quiet = now_ms.saturating_sub(count.last_ms) >= QUIET_MS;
            let is_late = now_ms.saturating_sub(count.counted_ms) >= COUNT_MS_MAX;
            if count.more > 0 && (is_quiet || is_late) {
                due.push((group.clone(), std::mem::take(&mut count.more)));
            }
            !is_quiet
        });
        due
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::WorkerCommand;

    fn drain(pool: &str) -> ChangeGroup {
        let pool = Some(PoolName::new("ns", pool).unwrap());
        let peer = Some(IpAddr::from([127, 0, 0, 1]));
        ChangeGroup { kind: ChangeKind::CommandWorker(WorkerCommand::Drain), result: ChangeResult::Done, pool, peer }
    }

    #[test]
    fn a_long_series_is_some_lines_and_a_count() {
        let mut budget = ChangeBudget::default();
        let lines: Vec<_> = (0..100_000).map(|i| budget.on_change(drain("p"), i / 100)).collect();
        assert_eq!(lines.iter().filter(|line| **line == ChangeLine::Own).count(), CHANGE_LINES_MAX as usize);
        assert_eq!(budget.take_due(1_000), [], "the series continues");
        assert_eq!(budget.take_due(1_999), [(drain("p"), 100_000 - u64::from(CHANGE_LINES_MAX))]);
        assert!(budget.counts.is_empty());
        assert_eq!(budget.on_change(drain("p"), 3_000), ChangeLine::Own, "after a quiet period");
    }

    #[test]
    fn an_endless_series_is_counted_at_intervals() {
        let mut budget = ChangeBudget::default();
        let (mut counted, mut counts) = (0, 0);
        for now_ms in (0..180_000).step_by(100) {
            budget.on_change(drain("p"), now_ms);
            for (_, more) in budget.take_due(now_ms) {
                (counted, counts) = (counted + more, counts + 1);
            }
        }
        assert!((2..=3).contains(&counts), "{counts}");
        counted += budget.take_due(Millis::MAX).iter().map(|(_, more)| more).sum::<u64>();
        assert_eq!(counted, 1_800 - u64::from(CHANGE_LINES_MAX));
    }

    #[test]
    fn groups_are_bounded_and_have_separate_budgets() {
        let mut budget = ChangeBudget::default();
        for i in 0..10_000 {
            budget.on_change(drain(&format!("p{i}")), 0);
        }
        assert_eq!(budget.counts.len(), CHANGE_GROUPS_MAX + 1);
        assert_eq!(budget.on_change(drain("p0"), 0), ChangeLine::Own);
        let more: u64 = budget.take_due(Millis::MAX).iter().map(|(_, more)| more).sum();
        assert_eq!(more, (10_000 - CHANGE_GROUPS_MAX) as u64 - u64::from(CHANGE_LINES_MAX));
    }
}
