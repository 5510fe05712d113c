//! Which worker of a fleet a need takes, and which of its cards.

use smallvec::SmallVec;

use super::fleet::{Fleet, Group};
use super::fragmentation::Fgd;
use super::free_resources::{CardRule, ModelId, Need, Share, choose_cards};
use crate::engine::NIL;

/// How a worker is chosen among those that fit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Placement {
    /// The one with the least left.
    BestFit,
    /// The one with the most left.
    Spread,
    /// The one of whose idle cards the fewest become useless for what is usually asked (see [`super::fragmentation`]).
    Fgd,
}

/// What was chosen: a worker, and how much the card has left from which it gives a share.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pick {
    /// Ordinal of the worker.
    pub worker: u32,
    /// See [`choose_cards`].
    pub from: u16,
}

impl Fleet {
    /// The worker that a need takes, and from which card. Looks only.
    pub fn pick(&self, need: &Need, placement: Placement, fgd: &mut Fgd) -> Option<Pick> {
        self.pick_among(need, placement, fgd, &mut |group| self.first_lasting(group, need.until_ms, |_| true))
    }

    /// The same among the workers that pass: `member` says which member of a group is taken, if any. Looks only.
    pub fn pick_among(
        &self,
        need: &Need,
        placement: Placement,
        fgd: &mut Fgd,
        member: &mut impl FnMut(&Group) -> Option<u32>,
    ) -> Option<Pick> {
        let all: SmallVec<[ModelId; 16]>;
        let models = if need.models.is_empty() {
            all = (0..self.orders.len() as ModelId).collect();
            &all
        } else {
            &*need.models
        };
        let orders = models.iter().filter_map(|&model| self.orders.get(model as usize));
        // Of the group that is best so far.
        let mut worker = NIL;
        let mut may = |at: u32| {
            let group = &self.groups[at as usize];
            group.room.fits(need) && member(group).inspect(|&found| worker = found).is_some()
        };
        let (found, rule) = match placement {
            Placement::BestFit => {
                (orders.fold(None, |best, order| order.lightest(need, &mut may, best)), CardRule::Fullest)
            }
            Placement::Spread => {
                (orders.fold(None, |best, order| order.heaviest(need, &mut may, best)), CardRule::Emptiest)
            }
            Placement::Fgd => {
                let mut look = fgd.look(need, self.groups.len());
                for order in orders {
                    order.each(need, &mut |at| {
                        let group = &self.groups[at as usize];
                        if group.room.fits(need)
                            && let Some(worker) = member(group)
                        {
                            look.see(at, group, worker);
                        }
                    });
                }
                let (worker, from) = look.best()?;
                return Some(Pick { worker, from });
            }
        };
        let (_, group) = found?;
        Some(Pick { worker, from: rule.from(&self.groups[group as usize].room.cards, need) })
    }

    /// The worker with the highest score among those that fit; the lowest ordinal of them. For whoever has an order of
    /// its own: looks at each distinct room that fits.
    pub fn pick_by(&self, need: &Need, mut score: impl FnMut(u32, &Group) -> i64) -> Option<u32> {
        let mut best: Option<(i64, u32)> = None;
        for (model, order) in self.orders.iter().enumerate() {
            if !need.models.is_empty() && !need.models.contains(&(model as ModelId)) {
                continue;
            }
            order.each(need, &mut |at| {
                let group = &self.groups[at as usize];
                if !group.room.fits(need) {
                    return;
                }
                let Some(worker) = self.first_lasting(group, need.until_ms, |_| true) else { return };
                let score = score(at, group);
                if best.is_none_or(|(high, first)| score > high || (score == high && worker < first)) {
                    best = Some((score, worker));
                }
            });
        }
        best.map(|(_, worker)| worker)
    }

    /// Which cards a need takes of the worker that was picked.
    #[must_use]
    pub fn share(&self, need: &Need, pick: Pick) -> Option<Share> {
        choose_cards(self.cards(pick.worker), need, pick.from).map(|cards| need.share(cards))
    }
}
