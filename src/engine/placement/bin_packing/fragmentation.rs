//! Fragmentation gradient descent: takes the worker on which a claim makes the least of the free GPUs useless.
//!
//! After Weng et al., "Beware of Fragmentation: Scheduling GPU-Sharing Workloads with Fragmentation Gradient
//! Descent", USENIX ATC 2023. Of a worker's free GPU thousandths, a request of the typical mix can use those on GPUs
//! with enough free for it, provided that its cores fit, its model matches and there are enough such GPUs; the
//! remainder is *fragmented* for it. A claim goes where the mean of that over the mix grows least.
//!
//! Example: a worker has 1,000 and 400 free on its GPUs and enough cores; the mix requests 500 or 300, equally often.
//! A request for 500 cannot use the 400, one for 300 can use all: 200 are fragmented on average. A claim for 300 on
//! the smaller GPU leaves 1,000 and 100, of which no request can use the 100: 100. On the larger GPU it leaves 700
//! and 400: 200 again. So it takes the smaller GPU, and prefers this worker to one that does not improve.
//!
//! Three rules are not in the paper. They were found on arrival orders other than the published ones.
//!
//! - **Cores run short too.** The mean covers the next request only. A worker with many free GPUs and few cores fits
//!   the next one, and none of those after it. So GPU thousandths for which the free cores do not suffice, at
//!   [`CORES_FRACTION`] of the cores that the mix requests with each thousandth, count as fragmented as well. This
//!   keeps requests with many cores away from workers with few cores a GPU.
//! - **Growth is compared in steps of [`GROWTH_STEP_MILLI`]**, rounded down. Finer differences are noise of the mix,
//!   and following them spreads claims over more workers.
//! - **Of equal workers the first is taken**, whichever has the least free: so the last ones stay empty for large
//!   requests.
//!
//! A cache bounds the cost of a search: per request shape and group the result is kept until the group or the mix
//! changes. A mix is compiled, for each model, into the terms of the comparison: per GPU demand and number of cores,
//! the fraction of the mix for which so many cores suffice.

use super::fleet::WorkerGroup;
use super::free_resources::{FreeResources, GPU_MILLI, ModelId, ResourceRequest, allocate_gpus};
use super::request_mix::{LearnedMix, RequestShape};

/// Largest number of cached scores.
const CACHED_SCORES_MAX: usize = 1 << 20;

/// Step in thousandths of a GPU by which growth of fragmentation is compared.
const GROWTH_STEP_MILLI: f64 = 160.0;
/// Cores to keep per free GPU, as a fraction of those that the mix requests with one.
const CORES_FRACTION: f64 = 0.8;

/// Typical mix, compiled for workers with GPUs of one model.
#[derive(Debug)]
struct ModelDemand {
    /// Requested thousandths and numbers of GPUs, in order.
    demands: Vec<(u16, u16)>,
    /// Requested numbers of cores, in order.
    cores: Vec<u64>,
    /// Fraction of the mix that requests at most so many cores: a row per number of cores, preceded by one for fewer
    /// than the first, with an entry per demand.
    fractions: Vec<f64>,
    /// GPU thousandths for which one thousandth of a core suffices.
    gpus_per_core: f64,
    /// Fraction of the mix that can use no GPU of this model.
    unusable_fraction: f64,
}

/// Typical mix with its compiled form for each model.
#[derive(Debug, Default)]
struct WorkloadMix {
    request_shapes: Vec<(RequestShape, f64)>,
    /// Compiled mix, by model.
    by_model: Vec<ModelDemand>,
}

impl WorkloadMix {
    const fn new(shapes: Vec<(RequestShape, f64)>) -> Self {
        Self { request_shapes: shapes, by_model: Vec::new() }
    }

    fn view(&mut self, model: ModelId) -> &ModelDemand {
        while self.by_model.len() <= model as usize {
            let demand = ModelDemand::new(&self.request_shapes, self.by_model.len() as ModelId);
            self.by_model.push(demand);
        }
        &self.by_model[model as usize]
    }
}

impl ModelDemand {
    fn new(shapes: &[(RequestShape, f64)], model: ModelId) -> Self {
        let requests =
            |shape: &RequestShape| shape.gpu_count > 0 && (shape.models.is_empty() || shape.models.contains(&model));
        let shapes: Vec<&(RequestShape, f64)> = shapes.iter().filter(|(shape, _)| requests(shape)).collect();
        let mut demands: Vec<(u16, u16)> = shapes.iter().map(|(shape, _)| (shape.gpu_milli, shape.gpu_count)).collect();
        let mut cores: Vec<u64> = shapes.iter().map(|(shape, _)| shape.cpu_milli).collect();
        demands.sort_unstable();
        demands.dedup();
        cores.sort_unstable();
        cores.dedup();
        let mut fractions = vec![0.0; (cores.len() + 1) * demands.len()];
        let (mut cpu, mut milli) = (0.0, 0.0);
        for (shape, fraction) in shapes.iter().copied() {
            cpu += fraction * shape.cpu_milli as f64;
            milli += fraction * f64::from(shape.gpu_count) * f64::from(shape.gpu_milli);
            let demand = demands.partition_point(|&demand| demand < (shape.gpu_milli, shape.gpu_count));
            let enough = cores.partition_point(|&cores| cores < shape.cpu_milli) + 1;
            fractions.chunks_exact_mut(demands.len()).skip(enough).for_each(|row| row[demand] += fraction);
        }
        let gpus_per_core = if cpu > 0.0 { milli / cpu / CORES_FRACTION } else { f64::INFINITY };
        let without = 1.0 - shapes.iter().map(|(_, fraction)| fraction).sum::<f64>();
        Self { demands, cores, fractions, gpus_per_core, unusable_fraction: without }
    }

    /// GPU thousandths that are of no use: those that a request of the mix cannot use on average, and those for which
    /// cores are missing. GPUs are sorted, largest first.
    fn fragmented_milli(&self, cpu_milli: u64, gpus: &[u16]) -> f64 {
        debug_assert!(gpus.is_sorted_by(|first, second| first >= second), "L1: free GPUs are out of order");
        let free: u32 = gpus.iter().map(|&milli| u32::from(milli)).sum();
        if free == 0 {
            return 0.0;
        }
        let enough = self.cores.partition_point(|&cores| cores <= cpu_milli);
        let fractions = &self.fractions[enough * self.demands.len()..];
        let mut used = 0.0;
        // Each demand needs more of a GPU than the one before: fewer suffice.
        let (mut count_usable, mut usable) = (gpus.len(), free);
        for (&(gpu_milli, gpu_count), fraction) in self.demands.iter().zip(fractions) {
            while count_usable > 0 && gpus[count_usable - 1] < gpu_milli {
                count_usable -= 1;
                usable -= u32::from(gpus[count_usable]);
            }
            if count_usable == 0 {
                break;
            }
            used += if count_usable >= gpu_count as usize { fraction * f64::from(usable) } else { 0.0 };
        }
        let free = f64::from(free);
        // Without cores no GPU is usable, however few cores the mix requests.
        let served = if cpu_milli == 0 { 0.0 } else { cpu_milli as f64 * self.gpus_per_core };
        (free - used) + (free - served).max(0.0)
    }
}

/// Cached score of a group for one request shape.
#[derive(Debug, Clone, Copy)]
struct CachedScore {
    /// Generation of the scored group; 0: empty entry.
    group_generation: u64,
    /// Growth of fragmentation, in steps.
    growth: i32,
    /// Free thousandths of the GPU to take from.
    free_milli: u16,
}

const EMPTY_SCORE: CachedScore = CachedScore { group_generation: 0, growth: 0, free_milli: 0 };

/// State of FGD over one fleet: the mix, and cached results.
#[derive(Debug, Default)]
pub struct FragmentationScorer {
    mix: WorkloadMix,
    learned: Option<LearnedMix>,
    /// Cached scores by group, for each request of cores, GPUs and thousandths.
    cached_scores: Vec<((u64, u16, u16), Vec<CachedScore>)>,
    /// Fragmentation of each group, with its generation.
    fragmented: Vec<(u64, f64)>,
}

impl FragmentationScorer {
    /// Creates a scorer with a mix that does not change.
    #[must_use]
    pub fn with_fixed_mix(shapes: Vec<(RequestShape, f64)>) -> Self {
        Self { mix: WorkloadMix::new(shapes), ..Self::default() }
    }

    /// Creates a scorer with a mix that is learned from [recorded requests](Self::record_request).
    #[must_use]
    pub fn with_learned_mix() -> Self {
        Self { learned: Some(LearnedMix::default()), ..Self::default() }
    }

    /// Records a request, from which the mix is learned.
    pub fn record_request(&mut self, request: &ResourceRequest) {
        if let Some(shapes) = self.learned.as_mut().and_then(|learned| learned.record_request(request)) {
            self.mix = WorkloadMix::new(shapes);
            self.cached_scores.clear();
            self.fragmented.clear();
        }
    }

    /// Starts a search for the best of `groups` groups.
    pub(super) fn search<'a>(&'a mut self, request: &'a ResourceRequest, groups: usize) -> FragmentationSearch<'a> {
        let key = (request.cpu_milli, request.gpu_count, request.gpu_milli);
        let row = match self.cached_scores.iter().position(|(cached, _)| *cached == key) {
            Some(row) => row,
            None => {
                if (self.cached_scores.len() + 1) * groups > CACHED_SCORES_MAX {
                    self.cached_scores.clear();
                }
                self.cached_scores.push((key, Vec::new()));
                self.cached_scores.len() - 1
            }
        };
        let scores = &mut self.cached_scores[row].1;
        if scores.len() < groups {
            scores.resize(groups, EMPTY_SCORE);
        }
        if self.fragmented.len() < groups {
            self.fragmented.resize(groups, (0, 0.0));
        }
        FragmentationSearch { request, mix: &mut self.mix, scores, fragmented: &mut self.fragmented, best: None }
    }
}

/// Growth of fragmentation in steps, then the worker: less is better.
type FragmentationRank = (i32, u32);

/// Search for the best group of one request.
pub(super) struct FragmentationSearch<'a> {
    request: &'a ResourceRequest,
    mix: &'a mut WorkloadMix,
    scores: &'a mut [CachedScore],
    fragmented: &'a mut [(u64, f64)],
    best: Option<(FragmentationRank, u16)>,
}

impl FragmentationSearch<'_> {
    /// Compares a group that fits, of which `worker` would be taken, with the best so far.
    pub fn consider(&mut self, at: u32, group: &WorkerGroup, worker: u32) {
        let mut score = self.scores[at as usize];
        if score.group_generation != group.generation() {
            let Some(found) = self.score(at, group, worker) else { return };
            score = found;
            self.scores[at as usize] = score;
        }
        let rank = rank(score.growth, worker);
        if self.best.is_none_or(|(best, ..)| rank < best) {
            self.best = Some((rank, score.free_milli));
        }
    }

    /// Worker on which fragmentation grows least, the first of equal ones, and the free thousandths of the GPU to
    /// take from.
    pub fn best(self) -> Option<(u32, u16)> {
        self.best.map(|((_, worker), free_milli)| (worker, free_milli))
    }

    /// Score of the group for the request; none if a cheap bound shows that it cannot be the best.
    fn score(&mut self, at: u32, group: &WorkerGroup, worker: u32) -> Option<CachedScore> {
        let (free, request) = (&group.free, self.request);
        let demand = self.mix.view(free.model);
        let fragmented = &mut self.fragmented[at as usize];
        if fragmented.0 != group.generation() {
            *fragmented = (group.generation(), demand.fragmented_milli(free.cpu_milli, &free.gpus));
        }
        let before = fragmented.1;
        if let Some((best, ..)) = self.best {
            // Whatever remains free is useless for this fraction of the mix. Sums of floats may differ by a little.
            let remaining =
                f64::from(free.free_gpu_milli()) - f64::from(request.gpu_count) * f64::from(request.gpu_milli);
            if rank(steps(demand.unusable_fraction * remaining - before - 1e-6), worker) >= best {
                return None;
            }
        }
        let (growth, free_milli) = growth(demand, free, request, before);
        Some(CachedScore { group_generation: group.generation(), growth, free_milli })
    }
}

fn rank(growth: i32, worker: u32) -> FragmentationRank {
    (growth, worker)
}

/// Growth in whole steps, rounded down.
fn steps(growth: f64) -> i32 {
    let steps = growth / GROWTH_STEP_MILLI;
    steps as i32 - i32::from(steps < f64::from(steps as i32))
}

/// Smallest growth of fragmentation in steps, and the free thousandths of the GPU that causes it.
fn growth(demand: &ModelDemand, free: &FreeResources, request: &ResourceRequest, before: f64) -> (i32, u16) {
    debug_assert!(free.fits(request), "L1: a request is scored that does not fit");
    let cpu_milli = free.cpu_milli - request.cpu_milli;
    let after = |free_milli: u16| {
        let mut gpus = free.gpus.clone();
        allocate_gpus(&mut gpus, request, free_milli);
        steps(demand.fragmented_milli(cpu_milli, &gpus) - before)
    };
    if request.gpu_count != 1 || request.gpu_milli == GPU_MILLI {
        return (after(GPU_MILLI), if request.gpu_count == 0 { 0 } else { GPU_MILLI });
    }
    let mut best = (i32::MAX, 0);
    let mut last = 0;
    // The fullest first, so that it wins among equals.
    for &free_milli in free.gpus.iter().rev().filter(|&&milli| milli >= request.gpu_milli) {
        if free_milli != last {
            last = free_milli;
            best = best.min((after(free_milli), free_milli));
        }
    }
    best
}
