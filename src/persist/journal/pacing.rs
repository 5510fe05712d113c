//! Pacing of the rounds of a writer: whether it waits for more rows before it writes. Pure.

/// Pacing of one writer, by the number of appends that it has seen.
///
/// A round has company if it takes more than one append, or if others came while it was being written. Then the next one
/// gathers first. A single caller in a closed loop never has company, so each of its rounds leaves at once.
#[derive(Debug, Default)]
pub(super) struct RoundPacing {
    /// Appends before the round that is being written.
    begun_at: u64,
    /// Appends that the last round took.
    taken: u64,
    /// Appends while the last round was being written.
    missed: u64,
    /// Whether a snapshot is under way, or the store did not take all of the last round.
    has_other_work: bool,
}

impl RoundPacing {
    /// Notes that a round takes all appends up to now.
    pub(super) fn begin_round(&mut self, appends: u64) {
        self.taken = appends - self.begun_at;
        self.begun_at = appends;
        self.has_other_work = false;
    }

    /// Notes work of the writer that no caller waits for. A store that answers it at once, as for a gap, would otherwise keep
    /// the thread from everybody else.
    pub(super) fn note_other_work(&mut self) {
        self.has_other_work = true;
    }

    /// Notes that the round is over.
    pub(super) fn end_round(&mut self, appends: u64) {
        self.missed = appends - self.begun_at;
    }

    /// Whether the next round is to gather rows first.
    pub(super) const fn has_company(&self) -> bool {
        self.taken > 1 || self.missed > 0 || self.has_other_work
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_caller_waits_for_nobody_and_several_gather() {
        let mut pacing = RoundPacing::default();
        for round in 1..10 {
            pacing.begin_round(round);
            pacing.end_round(round);
            assert!(!pacing.has_company(), "one append a round");
        }
        pacing.begin_round(10);
        pacing.end_round(11);
        assert!(pacing.has_company(), "another came meanwhile");
        pacing.begin_round(12);
        pacing.end_round(12);
        assert!(pacing.has_company(), "two in one round");
        pacing.begin_round(13);
        pacing.end_round(13);
        assert!(!pacing.has_company(), "the other has gone");
        pacing.note_other_work();
        assert!(pacing.has_company(), "a snapshot");
        pacing.begin_round(14);
        pacing.end_round(14);
        assert!(!pacing.has_company(), "it is done");
    }
}
