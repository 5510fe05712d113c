//! How many lines changes get: pure. The first changes of a group have a line each. When more come before it was quiet for a
//! while they are counted, and the count is written when it is quiet, or now and then while it goes on.
//!
//! Example: one client drains 100,000 workers of a pool within a minute. The first 100 have a line each, and a second after
//! the last one a line says that there were 99,900 more.

use std::collections::HashMap;
use std::net::IpAddr;

use super::{ChangeKind, ChangeResult};
use crate::limits::{CHANGE_GROUPS_MAX, CHANGE_LINES_MAX};
use crate::model::{Millis, PoolName};

/// Quiet that ends a row of changes.
const QUIET_MS: Millis = 1_000;
/// Longest time for which changes are counted without a line.
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
    /// Group for those that there are too many groups of: of each kind and result one.
    fn coarse(self) -> Self {
        Self { pool: None, peer: None, ..self }
    }
}

/// Line of a single change.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum ChangeLine {
    /// Line at info, for everybody who reads the log.
    Own,
    /// Line at debug, for whoever asks for each change.
    Detail,
}

#[derive(Debug)]
struct GroupCount {
    /// Changes that had a line of their own.
    lines: u32,
    /// Changes that were counted since the last count was written.
    more: u64,
    last_ms: Millis,
    /// When the last count was written, or the counting began.
    counted_ms: Millis,
}

/// Budget of lines. Empty when nothing was changed for a while.
#[derive(Debug, Default)]
pub(in crate::scheduler) struct ChangeBudget {
    rows: HashMap<ChangeGroup, GroupCount>,
}

impl ChangeBudget {
    /// Counts one change, and says which line it has: [`ChangeLine::Detail`] once it is only in the count.
    pub(super) fn on_change(&mut self, group: ChangeGroup, now_ms: Millis) -> ChangeLine {
        let is_known = self.rows.contains_key(&group) || self.rows.len() < CHANGE_GROUPS_MAX;
        let group = if is_known { group } else { group.coarse() };
        let row =
            self.rows.entry(group).or_insert(GroupCount { lines: 0, more: 0, last_ms: now_ms, counted_ms: now_ms });
        row.last_ms = now_ms;
        if row.lines < CHANGE_LINES_MAX {
            row.lines += 1;
            return ChangeLine::Own;
        }
        if row.more == 0 {
            row.counted_ms = now_ms;
        }
        row.more += 1;
        ChangeLine::Detail
    }

    /// Takes the counts that are to be written now, and forgets what was quiet.
    pub(super) fn take_due(&mut self, now_ms: Millis) -> Vec<(ChangeGroup, u64)> {
        let mut due = Vec::new();
        self.rows.retain(|group, row| {
            let is_quiet = now_ms.saturating_sub(row.last_ms) >= QUIET_MS;
            let is_late = now_ms.saturating_sub(row.counted_ms) >= COUNT_MS_MAX;
            if row.more > 0 && (is_quiet || is_late) {
                due.push((group.clone(), std::mem::take(&mut row.more)));
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
    fn a_long_row_is_some_lines_and_a_count() {
        let mut budget = ChangeBudget::default();
        let lines: Vec<_> = (0..100_000).map(|i| budget.on_change(drain("p"), i / 100)).collect();
        assert_eq!(lines.iter().filter(|line| **line == ChangeLine::Own).count(), CHANGE_LINES_MAX as usize);
        assert_eq!(budget.take_due(1_000), [], "it goes on");
        assert_eq!(budget.take_due(1_999), [(drain("p"), 100_000 - u64::from(CHANGE_LINES_MAX))]);
        assert!(budget.rows.is_empty());
        assert_eq!(budget.on_change(drain("p"), 3_000), ChangeLine::Own, "it was quiet");
    }

    #[test]
    fn what_does_not_end_is_counted_now_and_then() {
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
    fn groups_are_bounded_and_none_takes_the_lines_of_another() {
        let mut budget = ChangeBudget::default();
        for i in 0..10_000 {
            budget.on_change(drain(&format!("p{i}")), 0);
        }
        assert_eq!(budget.rows.len(), CHANGE_GROUPS_MAX + 1);
        assert_eq!(budget.on_change(drain("p0"), 0), ChangeLine::Own);
        let more: u64 = budget.take_due(Millis::MAX).iter().map(|(_, more)| more).sum();
        assert_eq!(more, (10_000 - CHANGE_GROUPS_MAX) as u64 - u64::from(CHANGE_LINES_MAX));
    }
}
