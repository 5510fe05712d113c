//! Fragmentation gradient descent: take the worker of whose idle cards the least becomes useless.
//!
//! After Weng et al., "Beware of Fragmentation: Scheduling GPU-Sharing Workloads with Fragmentation Gradient Descent",
//! USENIX ATC 2023. A request of the typical mix can use of a worker's idle cards those thousandths that lie on cards
//! with enough left for it, provided that its cores fit, its model matches and there are enough such cards; what it
//! cannot use is *fragmented* for it. A claim goes where the mean of that over the mix grows least.
//!
//! Example: a worker has 1,000 and 400 left on its cards and cores for all; the mix asks for 500 or for 300, equally often.
//! Who asks for 500 cannot use the 400, who asks for 300 can use all: 200 are fragmented on average. A claim for 300
//! that takes the smaller card leaves 1,000 and 100, of which nobody can use the 100: 100. One that takes the larger
//! leaves 700 and 400: 200 again. So it takes the smaller card, and this worker before one on which nothing becomes better.
//!
//! Three things are not in the paper. They were found on orders of arrival that are none of the published ones.
//!
//! - **Cores run short too.** The mean says what the next request cannot use. A worker with many idle cards and few cores
//!   has room for the next, and none for those after it. So what the cores left do not suffice for, at
//!   [`CORES_PART`] of the cores that the mix asks for with each thousandth of a card, counts as useless as well. This is
//!   what keeps requests with many cores away from workers with few cores a card.
//! - **Growth is told apart in steps of [`STEP`]**, rounded down. Finer differences are noise of the mix, and obeying them
//!   spreads work over more workers.
//! - **Among equals the first worker is taken**, whichever has the least left: so those that come last stay empty for
//!   requests that need much.
//!
//! What a look costs is bounded by remembering: per kind of request and room the result is kept until the room or the
//! mix is another one. A mix is compiled, for each model, into what a room must be compared with: per demand for cards and
//! number of cores the share of the mix for which so many cores are enough.

use super::fleet::Group;
use super::free_resources::{CARD_MILLI, Cards, ModelId, Need, Room, take_cards};
use super::request_mix::{Kind, Learned};

/// Results that are kept at most.
const KEPT_MAX: usize = 1 << 20;

/// Growth of what is useless is told apart by this many thousandths of a card.
const STEP: f64 = 160.0;
/// How many cores must be left for an idle card, as a part of those that the mix asks for with one.
const CORES_PART: f64 = 0.8;

/// The typical mix as it looks from a worker with cards of one model.
#[derive(Debug)]
struct View {
    /// Thousandths and number of the cards that are asked for, in order.
    demands: Vec<(u16, u16)>,
    /// The numbers of cores that are asked for, in order.
    cores: Vec<u64>,
    /// Per number of cores, and for less than the first: per demand the share of the mix that asks for at most so many.
    shares: Vec<f64>,
    /// Thousandths of cards for which one thousandth of a core suffices.
    cards_per_core: f64,
    /// The share of the mix that can use no card of this model at all.
    without: f64,
}

/// The typical mix, compiled.
#[derive(Debug, Default)]
struct Mix {
    kinds: Vec<(Kind, f64)>,
    /// By model.
    views: Vec<View>,
}

impl Mix {
    const fn new(kinds: Vec<(Kind, f64)>) -> Self {
        Self { kinds, views: Vec::new() }
    }

    fn view(&mut self, model: ModelId) -> &View {
        while self.views.len() <= model as usize {
            let view = View::new(&self.kinds, self.views.len() as ModelId);
            self.views.push(view);
        }
        &self.views[model as usize]
    }
}

impl View {
    fn new(kinds: &[(Kind, f64)], model: ModelId) -> Self {
        let asks = |kind: &Kind| kind.cards > 0 && (kind.models.is_empty() || kind.models.contains(&model));
        let kinds: Vec<&(Kind, f64)> = kinds.iter().filter(|(kind, _)| asks(kind)).collect();
        let mut demands: Vec<(u16, u16)> = kinds.iter().map(|(kind, _)| (kind.card_milli, kind.cards)).collect();
        let mut cores: Vec<u64> = kinds.iter().map(|(kind, _)| kind.cpu_milli).collect();
        demands.sort_unstable();
        demands.dedup();
        cores.sort_unstable();
        cores.dedup();
        let mut shares = vec![0.0; (cores.len() + 1) * demands.len()];
        let (mut cpu, mut milli) = (0.0, 0.0);
        for (kind, share) in kinds.iter().copied() {
            cpu += share * kind.cpu_milli as f64;
            milli += share * f64::from(kind.cards) * f64::from(kind.card_milli);
            let demand = demands.partition_point(|&demand| demand < (kind.card_milli, kind.cards));
            let enough = cores.partition_point(|&cores| cores < kind.cpu_milli) + 1;
            shares.chunks_exact_mut(demands.len()).skip(enough).for_each(|row| row[demand] += share);
        }
        let cards_per_core = if cpu > 0.0 { milli / cpu / CORES_PART } else { f64::INFINITY };
        let without = 1.0 - kinds.iter().map(|(_, share)| share).sum::<f64>();
        Self { demands, cores, shares, cards_per_core, without }
    }

    /// Thousandths of idle cards that are of no use: those that a request of the mix cannot use, on average, and those for
    /// which there are no cores. Cards in order, largest first.
    fn useless(&self, cpu_milli: u64, cards: &[u16]) -> f64 {
        let idle: u32 = cards.iter().map(|&milli| u32::from(milli)).sum();
        if idle == 0 {
            return 0.0;
        }
        let enough = self.cores.partition_point(|&cores| cores <= cpu_milli);
        let shares = &self.shares[enough * self.demands.len()..];
        let mut used = 0.0;
        // From demand to demand a card needs more left: those that suffice become fewer.
        let (mut many, mut usable) = (cards.len(), idle);
        for (&(card_milli, count), share) in self.demands.iter().zip(shares) {
            while many > 0 && cards[many - 1] < card_milli {
                many -= 1;
                usable -= u32::from(cards[many]);
            }
            if many == 0 {
                break;
            }
            used += if many >= count as usize { share * f64::from(usable) } else { 0.0 };
        }
        let idle = f64::from(idle);
        // Without cores nothing is left for cards, however few cores the mix asks for.
        let served = if cpu_milli == 0 { 0.0 } else { cpu_milli as f64 * self.cards_per_core };
        (idle - used) + (idle - served).max(0.0)
    }
}

/// How a room stands to one kind of request.
#[derive(Debug, Clone, Copy)]
struct Kept {
    /// Of the group; 0: nothing is kept.
    birth: u64,
    /// Steps by which what is useless grows.
    growth: i32,
    /// From which card.
    from: u16,
}

const NOTHING: Kept = Kept { birth: 0, growth: 0, from: 0 };

/// The state of FGD over one fleet: the mix, and what was worked out.
#[derive(Debug, Default)]
pub struct Fgd {
    mix: Mix,
    learned: Option<Learned>,
    /// Cores, cards and thousandths of requests, and what is kept for them by group.
    kept: Vec<((u64, u16, u16), Vec<Kept>)>,
    /// What is useless in groups, with their births.
    useless: Vec<(u64, f64)>,
}

impl Fgd {
    /// With a mix that does not change.
    #[must_use]
    pub fn given(kinds: Vec<(Kind, f64)>) -> Self {
        Self { mix: Mix::new(kinds), ..Self::default() }
    }

    /// With a mix that is learned from what is [noted](Self::note).
    #[must_use]
    pub fn learning() -> Self {
        Self { learned: Some(Learned::default()), ..Self::default() }
    }

    /// A request was made.
    pub fn note(&mut self, need: &Need) {
        if let Some(kinds) = self.learned.as_mut().and_then(|learned| learned.note(need)) {
            self.mix = Mix::new(kinds);
            self.kept.clear();
            self.useless.clear();
        }
    }

    /// Looks for the best of some groups, of which there are `groups`.
    pub(super) fn look<'a>(&'a mut self, need: &'a Need, groups: usize) -> Look<'a> {
        let key = (need.cpu_milli, need.cards, need.card_milli);
        let row = match self.kept.iter().position(|(known, _)| *known == key) {
            Some(row) => row,
            None => {
                if (self.kept.len() + 1) * groups > KEPT_MAX {
                    self.kept.clear();
                }
                self.kept.push((key, Vec::new()));
                self.kept.len() - 1
            }
        };
        let kept = &mut self.kept[row].1;
        if kept.len() < groups {
            kept.resize(groups, NOTHING);
        }
        if self.useless.len() < groups {
            self.useless.resize(groups, (0, 0.0));
        }
        Look { need, mix: &mut self.mix, kept, useless: &mut self.useless, best: None }
    }
}

/// Steps by which what is useless grows, then the worker: less is better.
type Rank = (i32, u32);

/// One look for the best group.
pub(super) struct Look<'a> {
    need: &'a Need,
    mix: &'a mut Mix,
    kept: &'a mut [Kept],
    useless: &'a mut [(u64, f64)],
    best: Option<(Rank, u16)>,
}

impl Look<'_> {
    /// A group that fits, and the member that would be taken.
    pub fn see(&mut self, at: u32, group: &Group, worker: u32) {
        let mut kept = self.kept[at as usize];
        if kept.birth != group.birth() {
            let Some(found) = self.work_out(at, group, worker) else { return };
            kept = found;
            self.kept[at as usize] = kept;
        }
        let rank = rank(kept.growth, worker);
        if self.best.is_none_or(|(best, ..)| rank < best) {
            self.best = Some((rank, kept.from));
        }
    }

    /// The worker where the least becomes useless, the first of such; and from which card.
    pub fn best(self) -> Option<(u32, u16)> {
        self.best.map(|((_, worker), from)| (worker, from))
    }

    /// How the group stands to the need; none if it cannot be the best, which is cheaper to say.
    fn work_out(&mut self, at: u32, group: &Group, worker: u32) -> Option<Kept> {
        let (room, need) = (&group.room, self.need);
        let view = self.mix.view(room.model);
        let useless = &mut self.useless[at as usize];
        if useless.0 != group.birth() {
            *useless = (group.birth(), view.useless(room.cpu_milli, &room.cards));
        }
        let before = useless.1;
        if let Some((best, ..)) = self.best {
            // Whatever is left, for this share of the mix it is of no use. Sums of floats may differ by a little.
            let left = f64::from(room.cards_milli()) - f64::from(need.cards) * f64::from(need.card_milli);
            if rank(steps(view.without * left - before - 1e-6), worker) >= best {
                return None;
            }
        }
        let (growth, from) = growth(view, room, need, before);
        Some(Kept { birth: group.birth(), growth, from })
    }
}

fn rank(growth: i32, worker: u32) -> Rank {
    (growth, worker)
}

/// Growth in steps, rounded down.
fn steps(growth: f64) -> i32 {
    let steps = growth / STEP;
    steps as i32 - i32::from(steps < f64::from(steps as i32))
}

/// By how many steps that which is useless in a room grows at least, and from which card that is.
fn growth(view: &View, room: &Room, need: &Need, before: f64) -> (i32, u16) {
    let cpu_milli = room.cpu_milli - need.cpu_milli;
    let after = |from: u16| {
        let mut cards: Cards = room.cards.clone();
        take_cards(&mut cards, need, from);
        steps(view.useless(cpu_milli, &cards) - before)
    };
    if need.cards != 1 || need.card_milli == CARD_MILLI {
        return (after(CARD_MILLI), if need.cards == 0 { 0 } else { CARD_MILLI });
    }
    let mut best = (i32::MAX, 0);
    let mut last = 0;
    // The fullest first, so that it is taken among equals.
    for &from in room.cards.iter().rev().filter(|&&milli| milli >= need.card_milli) {
        if from != last {
            last = from;
            best = best.min((after(from), from));
        }
    }
    best
}
