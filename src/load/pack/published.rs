//! The scores of the published runs, digit for digit: best fit and FGD as the paper's own simulator has them (Weng et
//! al., "Beware of Fragmentation", USENIX ATC 2023), over rooms that the engine keeps. Only for comparison with what was
//! published; the service has its own order ([`hotpool::engine::placement::bin_packing`]).
//!
//! They are floating-point numbers cut to integers from 0 to 100, so the order of additions matters and is kept.

use std::collections::HashMap;
use std::sync::Arc;

use super::input::{PackInput, PackRequest};
use hotpool::engine::placement::bin_packing::{
    FleetIndex, GPU_MILLI, GpuMillis, GpuPacking, ModelId, ResourceAllocation, WorkerGroup, choose_gpus,
};

/// What a typical request asks for, and its share.
#[derive(Debug)]
struct WeightedDemand {
    cpu_milli: u64,
    card_milli: u16,
    cards: usize,
    /// None: any.
    models: Option<Vec<ModelId>>,
    share: f64,
}

/// How a run of the published scores decides.
#[derive(Debug)]
pub enum PublishedPolicy {
    /// Best fit.
    BestFit,
    /// FGD over this mix.
    Fgd(Box<FragmentationGradient>),
}

impl PublishedPolicy {
    /// FGD over the mix of the requests.
    #[must_use]
    pub fn fgd(input: &PackInput) -> Self {
        Self::Fgd(Box::new(FragmentationGradient {
            mix: request_mix(input),
            fragments: Vec::new(),
            scores: HashMap::new(),
        }))
    }

    /// The worker that the request takes, and what it takes there.
    pub fn decide(&mut self, fleet: &FleetIndex, request: &PackRequest) -> Option<(u32, ResourceAllocation)> {
        let need = &request.need;
        // A list of which no model is known is not the same as no list.
        if need.models.is_empty() && !request.models.is_empty() {
            return None;
        }
        match self {
            Self::BestFit => {
                let worker = fleet.pick_by(need, |_, group| best_fit(group, request))?;
                let from = GpuPacking::Fullest.free_milli_of_pick(&fleet.free(worker).gpus, need);
                Some((worker, need.allocation(choose_gpus(fleet.gpus(worker), need, from)?)))
            }
            Self::Fgd(gradient) => {
                let worker = fleet.pick_by(need, |at, group| gradient.score(at, group, request))?;
                let cards = gradient.choose(fleet, worker, request)?;
                Some((worker, need.allocation(cards)))
            }
        }
    }
}

fn best_fit(group: &WorkerGroup, request: &PackRequest) -> i64 {
    let room = &group.free;
    let mut left = (room.cpu_milli - request.need.cpu_milli) as f64 / 128_000.0 * 0.5;
    left += (u64::from(room.free_gpu_milli()) - request.gpu_milli()) as f64 / 8_000.0 * 0.5;
    ((1.0 - left) * 100.0) as i64
}

/// The mix, and what was worked out.
#[derive(Debug)]
pub struct FragmentationGradient {
    mix: Vec<WeightedDemand>,
    /// Of groups: their birth, and their fragments.
    fragments: Vec<(u64, f64)>,
    /// By cores, cards and thousandths of the request: per group its birth, and the score.
    scores: HashMap<(u64, u16, u16), Vec<(u64, i64)>>,
}

impl FragmentationGradient {
    fn score(&mut self, at: u32, group: &WorkerGroup, request: &PackRequest) -> i64 {
        let need = &request.need;
        let (at, birth) = (at as usize, group.generation());
        let row = self.scores.entry((need.cpu_milli, need.gpu_count, need.gpu_milli)).or_default();
        if row.len() <= at {
            row.resize(at + 1, (0, 0));
        }
        if row[at].0 == birth {
            return row[at].1;
        }
        if self.fragments.len() <= at {
            self.fragments.resize(at + 1, (0, 0.0));
        }
        let room = &group.free;
        if self.fragments[at].0 != birth {
            self.fragments[at] = (birth, fragments(&self.mix, room.cpu_milli, &room.gpus, room.model));
        }
        let before = self.fragments[at].1;
        let mut cards = room.gpus.clone();
        let cpu_milli = room.cpu_milli - need.cpu_milli;
        let score = if need.gpu_count == 1 && need.gpu_milli < GPU_MILLI {
            let each = 0..cards.len();
            let scores = each.filter(|&card| room.gpus[card] >= need.gpu_milli).map(|card| {
                cards[card] -= need.gpu_milli;
                let score = sigmoid_score(before - fragments(&self.mix, cpu_milli, &cards, room.model));
                cards[card] += need.gpu_milli;
                score
            });
            scores.max().unwrap_or(0)
        } else {
            cards[..need.gpu_count as usize].fill(0);
            sigmoid_score(before - fragments(&self.mix, cpu_milli, &cards, room.model))
        };
        row[at] = (birth, score);
        score
    }

    /// A share takes the card with the best score, the first of them in the order of the cards.
    fn choose(&self, fleet: &FleetIndex, worker: u32, request: &PackRequest) -> Option<u64> {
        let need = &request.need;
        if need.gpu_count != 1 || need.gpu_milli == GPU_MILLI {
            return choose_gpus(fleet.gpus(worker), need, GPU_MILLI);
        }
        let room = fleet.free(worker);
        let before = fragments(&self.mix, room.cpu_milli, &room.gpus, room.model);
        let mut cards: GpuMillis = fleet.gpus(worker).iter().copied().collect();
        let mut best: Option<(i64, usize)> = None;
        for card in 0..cards.len() {
            if cards[card] < need.gpu_milli {
                continue;
            }
            cards[card] -= need.gpu_milli;
            let after = fragments(&self.mix, room.cpu_milli - need.cpu_milli, &cards, room.model);
            cards[card] += need.gpu_milli;
            let score = sigmoid_score(before - after);
            if best.is_none_or(|(high, _)| score > high) {
                best = Some((score, card));
            }
        }
        best.map(|(_, card)| 1 << card)
    }
}

fn sigmoid_score(less: f64) -> i64 {
    (100.0 / (1.0 + (-less / 1000.0).exp())) as i64
}

/// Idle thousandths that a typical request cannot use, summed up by why not, as the published runs do.
fn fragments(mix: &[WeightedDemand], cpu_milli: u64, cards: &[u16], model: ModelId) -> f64 {
    let idle = cards.iter().map(|&milli| u32::from(milli)).sum::<u32>();
    let mut sums = [0.0_f64; 6];
    for typical in mix {
        let cores = cpu_milli >= typical.cpu_milli;
        if typical.card_milli == 0 {
            sums[if cores { 3 } else { 4 }] += typical.share * f64::from(idle);
            continue;
        }
        if typical.models.as_ref().is_some_and(|models| !models.contains(&model)) {
            sums[5] += typical.share * f64::from(idle);
            continue;
        }
        let (mut fitting, mut small) = (0, 0_u32);
        for &milli in cards {
            if milli >= typical.card_milli {
                fitting += 1;
            } else {
                small += u32::from(milli);
            }
        }
        let (sum, lost) = match (fitting >= typical.cards, cores) {
            (true, true) => (1, small),
            (true, false) => (2, idle),
            (false, true) => (1, idle),
            (false, false) => (0, idle),
        };
        sums[sum] += typical.share * f64::from(lost);
    }
    sums[0] + sums[1] + sums[2] + sums[3] + sums[4] + sums[5]
}

/// The most frequent requests, memory aside, that make up 95 % of the rows. Equal counts go by the demand itself, the
/// words for its models included.
fn request_mix(input: &PackInput) -> Vec<WeightedDemand> {
    type Demand = (u64, u16, u16, Arc<str>);
    let mut counts: HashMap<Demand, (usize, &PackRequest)> = HashMap::new();
    for request in &input.requests {
        let need = &request.need;
        let demand = (need.cpu_milli, need.gpu_milli, need.gpu_count, Arc::clone(&request.models));
        counts.entry(demand).or_insert((0, request)).0 += 1;
    }
    let mut counts: Vec<(usize, Demand, &PackRequest)> =
        counts.into_iter().map(|(demand, (count, request))| (count, demand, request)).collect();
    counts.sort_by(|one, two| (two.0, &two.1).cmp(&(one.0, &one.1)));
    let total = input.requests.len() as f64;
    let (mut covered, mut many) = (0.0, 0);
    while covered < 95.0 * total / 100.0 {
        covered += counts[many].0 as f64;
        many += 1;
    }
    let whole = if many < counts.len() { covered / total } else { 1.0 };
    let typical = counts[..many].iter().map(|(count, _, request)| WeightedDemand {
        cpu_milli: request.need.cpu_milli,
        card_milli: request.need.gpu_milli,
        cards: request.need.gpu_count as usize,
        models: (!request.models.is_empty()).then(|| request.need.models.to_vec()),
        share: *count as f64 / total / whole,
    });
    typical.collect()
}
