//! Scores of the published runs, digit for digit: best fit and FGD as in the paper's simulator (Weng et al., "Beware
//! of Fragmentation", USENIX ATC 2023), on the free resources that the engine tracks. For comparison with published
//! figures only; the service has its own order ([`hotpool::engine::placement::bin_packing`]).
//!
//! Scores are floating-point numbers truncated to integers from 0 to 100, so the order of additions matters and is
//! kept.

use std::collections::HashMap;
use std::sync::Arc;

use super::input::{PackInput, PackRequest};
use hotpool::engine::placement::bin_packing::{
    FleetIndex, GPU_MILLI, GpuMillis, GpuPacking, ModelId, ResourceAllocation, WorkerGroup, choose_gpus,
};

/// Demand of a typical request, with its share of all requests.
#[derive(Debug)]
struct WeightedDemand {
    cpu_milli: u64,
    gpu_milli: u16,
    gpus: usize,
    /// Models that the request accepts; `None` accepts any.
    models: Option<Vec<ModelId>>,
    share: f64,
}

/// Placement policy of the published runs.
#[derive(Debug)]
pub enum PublishedPolicy {
    /// Best fit by free cores and GPUs.
    BestFit,
    /// Fragmentation gradient descent over a request mix.
    Fgd(Box<FragmentationGradient>),
}

impl PublishedPolicy {
    /// Creates FGD over the mix of the input's requests.
    #[must_use]
    pub fn fgd(input: &PackInput) -> Self {
        Self::Fgd(Box::new(FragmentationGradient {
            mix: request_mix(input),
            fragments: Vec::new(),
            scores: HashMap::new(),
        }))
    }

    /// Picks a worker for the request and computes the allocation there.
    pub fn decide(&mut self, fleet: &FleetIndex, request: &PackRequest) -> Option<(u32, ResourceAllocation)> {
        let need = &request.need;
        // A list whose models are all unknown matches nothing; an empty list matches everything.
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
                let gpus = gradient.choose(fleet, worker, request)?;
                Some((worker, need.allocation(gpus)))
            }
        }
    }
}

fn best_fit(group: &WorkerGroup, request: &PackRequest) -> i64 {
    let free = &group.free;
    let mut score = (free.cpu_milli - request.need.cpu_milli) as f64 / 128_000.0 * 0.5;
    score += (u64::from(free.free_gpu_milli()) - request.gpu_milli()) as f64 / 8_000.0 * 0.5;
    ((1.0 - score) * 100.0) as i64
}

/// Fragmentation gradient with its request mix and cached scores.
#[derive(Debug)]
pub struct FragmentationGradient {
    mix: Vec<WeightedDemand>,
    /// Generation and fragmentation of each worker group.
    fragments: Vec<(u64, f64)>,
    /// Generation and score of each worker group, by cores, GPUs and thousandths of the request.
    scores: HashMap<(u64, u16, u16), Vec<(u64, i64)>>,
}

impl FragmentationGradient {
    fn score(&mut self, at: u32, group: &WorkerGroup, request: &PackRequest) -> i64 {
        let need = &request.need;
        let (at, generation) = (at as usize, group.generation());
        let scores_of_shape = self.scores.entry((need.cpu_milli, need.gpu_count, need.gpu_milli)).or_default();
        if scores_of_shape.len() <= at {
            scores_of_shape.resize(at + 1, (0, 0));
        }
        if scores_of_shape[at].0 == generation {
            return scores_of_shape[at].1;
        }
        if self.fragments.len() <= at {
            self.fragments.resize(at + 1, (0, 0.0));
        }
        let free = &group.free;
        if self.fragments[at].0 != generation {
            self.fragments[at] = (generation, fragments(&self.mix, free.cpu_milli, &free.gpus, free.model));
        }
        let before = self.fragments[at].1;
        let mut gpus = free.gpus.clone();
        let cpu_milli = free.cpu_milli - need.cpu_milli;
        let score = if need.gpu_count == 1 && need.gpu_milli < GPU_MILLI {
            let each = 0..gpus.len();
            let scores = each.filter(|&gpu| free.gpus[gpu] >= need.gpu_milli).map(|gpu| {
                gpus[gpu] -= need.gpu_milli;
                let score = sigmoid_score(before - fragments(&self.mix, cpu_milli, &gpus, free.model));
                gpus[gpu] += need.gpu_milli;
                score
            });
            scores.max().unwrap_or(0)
        } else {
            gpus[..need.gpu_count as usize].fill(0);
            sigmoid_score(before - fragments(&self.mix, cpu_milli, &gpus, free.model))
        };
        scores_of_shape[at] = (generation, score);
        score
    }

    /// Chooses the GPUs of a worker. A fraction goes to the GPU with the best score, the first in order among equals.
    fn choose(&self, fleet: &FleetIndex, worker: u32, request: &PackRequest) -> Option<u64> {
        let need = &request.need;
        if need.gpu_count != 1 || need.gpu_milli == GPU_MILLI {
            return choose_gpus(fleet.gpus(worker), need, GPU_MILLI);
        }
        let free = fleet.free(worker);
        let before = fragments(&self.mix, free.cpu_milli, &free.gpus, free.model);
        let mut gpus: GpuMillis = fleet.gpus(worker).iter().copied().collect();
        let mut best: Option<(i64, usize)> = None;
        for gpu in 0..gpus.len() {
            if gpus[gpu] < need.gpu_milli {
                continue;
            }
            gpus[gpu] -= need.gpu_milli;
            let after = fragments(&self.mix, free.cpu_milli - need.cpu_milli, &gpus, free.model);
            gpus[gpu] += need.gpu_milli;
            let score = sigmoid_score(before - after);
            if best.is_none_or(|(high, _)| score > high) {
                best = Some((score, gpu));
            }
        }
        best.map(|(_, gpu)| 1 << gpu)
    }
}

fn sigmoid_score(improvement: f64) -> i64 {
    (100.0 / (1.0 + (-improvement / 1000.0).exp())) as i64
}

/// Idle thousandths that typical requests cannot use, summed by reason as in the published runs.
fn fragments(mix: &[WeightedDemand], cpu_milli: u64, gpus: &[u16], model: ModelId) -> f64 {
    let idle_milli = gpus.iter().map(|&milli| u32::from(milli)).sum::<u32>();
    let mut sums = [0.0_f64; 6];
    for demand in mix {
        let enough_cores = cpu_milli >= demand.cpu_milli;
        if demand.gpu_milli == 0 {
            sums[if enough_cores { 3 } else { 4 }] += demand.share * f64::from(idle_milli);
            continue;
        }
        if demand.models.as_ref().is_some_and(|models| !models.contains(&model)) {
            sums[5] += demand.share * f64::from(idle_milli);
            continue;
        }
        let (mut fitting, mut small) = (0, 0_u32);
        for &milli in gpus {
            if milli >= demand.gpu_milli {
                fitting += 1;
            } else {
                small += u32::from(milli);
            }
        }
        let (sum, lost) = match (fitting >= demand.gpus, enough_cores) {
            (true, true) => (1, small),
            (true, false) => (2, idle_milli),
            (false, true) => (1, idle_milli),
            (false, false) => (0, idle_milli),
        };
        sums[sum] += demand.share * f64::from(lost);
    }
    sums[0] + sums[1] + sums[2] + sums[3] + sums[4] + sums[5]
}

/// Most frequent demands, memory aside, that make up 95 % of the rows. Ties are broken by the demand itself, model
/// names included.
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
    counts.sort_by(|a, b| (b.0, &b.1).cmp(&(a.0, &a.1)));
    let total = input.requests.len() as f64;
    let (mut covered_rows, mut length) = (0.0, 0);
    while covered_rows < 95.0 * total / 100.0 {
        covered_rows += counts[length].0 as f64;
        length += 1;
    }
    let covered_share = if length < counts.len() { covered_rows / total } else { 1.0 };
    let demand = counts[..length].iter().map(|(count, _, request)| WeightedDemand {
        cpu_milli: request.need.cpu_milli,
        gpu_milli: request.need.gpu_milli,
        gpus: request.need.gpu_count as usize,
        models: (!request.models.is_empty()).then(|| request.need.models.to_vec()),
        share: *count as f64 / total / covered_share,
    });
    demand.collect()
}
