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
//!   [`CORES_FRACTION`] of the cores that the mix asks for with each thousandth of a card, counts as useless as well. This is
//!   what keeps requests with many cores away from workers with few cores a card.
//! - **Growth is told apart in steps of [`GROWTH_STEP_MILLI`]**, rounded down. Finer differences are noise of the mix, and obeying them
//!   spreads work over more workers.
//! - **Among equals the first worker is taken**, whichever has the least left: so those that come last stay empty for
//!   requests that need much.
//!
//! What a look costs is bounded by remembering: per kind of request and room the result is kept until the room or the
//! mix is another one. A mix is compiled, for each model, into what a room must be compared with: per demand for cards and
//! number of cores the share of the mix for which so many cores are enough.

use super::fleet::WorkerGroup;
use super::free_resources::{Cards, FreeResources, GPU_MILLI, ModelId, ResourceRequest, allocate_gpus};
use super::request_mix::{LearnedMix, RequestShape};

/// Results that are kept at most.
const CACHED_SCORES_MAX: usize = 1 << 20;

/// Growth of what is useless is told apart by this many thousandths of a card.
const GROWTH_STEP_MILLI: f64 = 160.0;
/// How many cores must be left for an idle card, as a part of those that the mix asks for with one.
const CORES_FRACTION: f64 = 0.8;

/// The typical mix as it looks from a worker with cards of one model.
#[derive(Debug)]
struct ModelDemand {
    /// Thousandths and number of the cards that are asked for, in order.
    demands: Vec<(u16, u16)>,
    /// The numbers of cores that are asked for, in order.
    cores: Vec<u64>,
    /// Per number of cores, and for less than the first: per demand the share of the mix that asks for at most so many.
    shares: Vec<f64>,
    /// Thousandths of cards for which one thousandth of a core suffices.
    cards_per_core: f64,
    /// The share of the mix that can use no card of this model at all.
    unusable_share: f64,
}

/// The typical mix, compiled.
#[derive(Debug, Default)]
struct WorkloadMix {
    request_shapes: Vec<(RequestShape, f64)>,
    /// By model.
    by_model: Vec<ModelDemand>,
}

impl WorkloadMix {
    const fn new(kinds: Vec<(RequestShape, f64)>) -> Self {
        Self { request_shapes: kinds, by_model: Vec::new() }
    }

    fn view(&mut self, model: ModelId) -> &ModelDemand {
        while self.by_model.len() <= model as usize {
            let view = ModelDemand::new(&self.request_shapes, self.by_model.len() as ModelId);
            self.by_model.push(view);
        }
        &self.by_model[model as usize]
    }
}

impl ModelDemand {
    fn new(kinds: &[(RequestShape, f64)], model: ModelId) -> Self {
        let asks = |kind: &RequestShape| kind.gpu_count > 0 && (kind.models.is_empty() || kind.models.contains(&model));
        let kinds: Vec<&(RequestShape, f64)> = kinds.iter().filter(|(kind, _)| asks(kind)).collect();
        let mut demands: Vec<(u16, u16)> = kinds.iter().map(|(kind, _)| (kind.gpu_milli, kind.gpu_count)).collect();
        let mut cores: Vec<u64> = kinds.iter().map(|(kind, _)| kind.cpu_milli).collect();
        demands.sort_unstable();
        demands.dedup();
        cores.sort_unstable();
        cores.dedup();
        let mut shares = vec![0.0; (cores.len() + 1) * demands.len()];
        let (mut cpu, mut milli) = (0.0, 0.0);
        for (kind, share) in kinds.iter().copied() {
            cpu += share * kind.cpu_milli as f64;
            milli += share * f64::from(kind.gpu_count) * f64::from(kind.gpu_milli);
            let demand = demands.partition_point(|&demand| demand < (kind.gpu_milli, kind.gpu_count));
            let enough = cores.partition_point(|&cores| cores < kind.cpu_milli) + 1;
            shares.chunks_exact_mut(demands.len()).skip(enough).for_each(|row| row[demand] += share);
        }
        let cards_per_core = if cpu > 0.0 { milli / cpu / CORES_FRACTION } else { f64::INFINITY };
        let without = 1.0 - kinds.iter().map(|(_, share)| share).sum::<f64>();
        Self { demands, cores, shares, cards_per_core, unusable_share: without }
    }

    /// Thousandths of idle cards that are of no use: those that a request of the mix cannot use, on average, and those for
    /// which there are no cores. Cards in order, largest first.
    fn fragmented_milli(&self, cpu_milli: u64, cards: &[u16]) -> f64 {
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
struct CachedScore {
    /// Of the group; 0: nothing is kept.
    group_generation: u64,
    /// Steps by which what is useless grows.
    growth: i32,
    /// From which card.
    from: u16,
}

const EMPTY_SCORE: CachedScore = CachedScore { group_generation: 0, growth: 0, from: 0 };

/// The state of FGD over one fleet: the mix, and what was worked out.
#[derive(Debug, Default)]
pub struct FragmentationScorer {
    mix: WorkloadMix,
    learned: Option<LearnedMix>,
    /// Cores, cards and thousandths of requests, and what is kept for them by group.
    cached_scores: Vec<((u64, u16, u16), Vec<CachedScore>)>,
    /// What is useless in groups, with their births.
    fragmented: Vec<(u64, f64)>,
}

impl FragmentationScorer {
    /// With a mix that does not change.
    #[must_use]
    pub fn with_fixed_mix(kinds: Vec<(RequestShape, f64)>) -> Self {
        Self { mix: WorkloadMix::new(kinds), ..Self::default() }
    }

    /// With a mix that is learned from what is [noted](Self::note).
    #[must_use]
    pub fn with_learned_mix() -> Self {
        Self { learned: Some(LearnedMix::default()), ..Self::default() }
    }

    /// A request was made.
    pub fn record_request(&mut self, need: &ResourceRequest) {
        if let Some(kinds) = self.learned.as_mut().and_then(|learned| learned.record_request(need)) {
            self.mix = WorkloadMix::new(kinds);
            self.cached_scores.clear();
            self.fragmented.clear();
        }
    }

    /// Looks for the best of some groups, of which there are `groups`.
    pub(super) fn search<'a>(&'a mut self, need: &'a ResourceRequest, groups: usize) -> FragmentationSearch<'a> {
        let key = (need.cpu_milli, need.gpu_count, need.gpu_milli);
        let row = match self.cached_scores.iter().position(|(known, _)| *known == key) {
            Some(row) => row,
            None => {
                if (self.cached_scores.len() + 1) * groups > CACHED_SCORES_MAX {
                    self.cached_scores.clear();
                }
                self.cached_scores.push((key, Vec::new()));
                self.cached_scores.len() - 1
            }
        };
        let kept = &mut self.cached_scores[row].1;
        if kept.len() < groups {
            kept.resize(groups, EMPTY_SCORE);
        }
        if self.fragmented.len() < groups {
            self.fragmented.resize(groups, (0, 0.0));
        }
        FragmentationSearch { need, mix: &mut self.mix, kept, useless: &mut self.fragmented, best: None }
    }
}

/// Steps by which what is useless grows, then the worker: less is better.
type Rank = (i32, u32);

/// One look for the best group.
pub(super) struct FragmentationSearch<'a> {
    need: &'a ResourceRequest,
    mix: &'a mut WorkloadMix,
    kept: &'a mut [CachedScore],
    useless: &'a mut [(u64, f64)],
    best: Option<(Rank, u16)>,
}

impl FragmentationSearch<'_> {
    /// A group that fits, and the member that would be taken.
    pub fn consider(&mut self, at: u32, group: &WorkerGroup, worker: u32) {
        let mut kept = self.kept[at as usize];
        if kept.group_generation != group.generation() {
            let Some(found) = self.score(at, group, worker) else { return };
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
    fn score(&mut self, at: u32, group: &WorkerGroup, worker: u32) -> Option<CachedScore> {
        let (room, need) = (&group.free, self.need);
        let view = self.mix.view(room.model);
        let useless = &mut self.useless[at as usize];
        if useless.0 != group.generation() {
            *useless = (group.generation(), view.fragmented_milli(room.cpu_milli, &room.gpus));
        }
        let before = useless.1;
        if let Some((best, ..)) = self.best {
            // Whatever is left, for this share of the mix it is of no use. Sums of floats may differ by a little.
            let left = f64::from(room.free_gpu_milli()) - f64::from(need.gpu_count) * f64::from(need.gpu_milli);
            if rank(steps(view.unusable_share * left - before - 1e-6), worker) >= best {
                return None;
            }
        }
        let (growth, from) = growth(view, room, need, before);
        Some(CachedScore { group_generation: group.generation(), growth, from })
    }
}

fn rank(growth: i32, worker: u32) -> Rank {
    (growth, worker)
}

/// Growth in steps, rounded down.
fn steps(growth: f64) -> i32 {
    let steps = growth / GROWTH_STEP_MILLI;
    steps as i32 - i32::from(steps < f64::from(steps as i32))
}

/// By how many steps that which is useless in a room grows at least, and from which card that is.
fn growth(view: &ModelDemand, room: &FreeResources, need: &ResourceRequest, before: f64) -> (i32, u16) {
    let cpu_milli = room.cpu_milli - need.cpu_milli;
    let after = |from: u16| {
        let mut cards: Cards = room.gpus.clone();
        allocate_gpus(&mut cards, need, from);
        steps(view.fragmented_milli(cpu_milli, &cards) - before)
    };
    if need.gpu_count != 1 || need.gpu_milli == GPU_MILLI {
        return (after(GPU_MILLI), if need.gpu_count == 0 { 0 } else { GPU_MILLI });
    }
    let mut best = (i32::MAX, 0);
    let mut last = 0;
    // The fullest first, so that it is taken among equals.
    for &from in room.gpus.iter().rev().filter(|&&milli| milli >= need.gpu_milli) {
        if from != last {
            last = from;
            best = best.min((after(from), from));
        }
    }
    best
}
