//! Shared workers: the cost of one best-fit decision (picking and recording the allocation) as the fleet grows. Mixed
//! workers in 16 shards are filled until a fifth of the requests finds no capacity; then claims and releases
//! alternate, with a random shard for each claim. Prints nanoseconds per decision, the figures in docs/BENCHMARKS.md.

use std::time::Instant;

use hdrhistogram::Histogram;
use hotpool::engine::placement::bin_packing::{
    FitStrategy, FleetIndex, FragmentationScorer, GPU_MILLI, NO_MODEL, PlacementDecision, ResourceAllocation,
    ResourceRequest,
};
use hotpool::model::{GpuCapacity, WorkerCapacity};

const SHARDS: usize = 16;
const DECISIONS: usize = 400_000;

/// Splitmix64 generator of reproducible random numbers.
struct SplitMix(u64);

impl SplitMix {
    fn below(&mut self, bound: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut x = self.0;
        x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((u128::from(x ^ (x >> 31)) * bound as u128) >> 64) as usize
    }

    fn pick_from<T: Copy>(&mut self, choices: &[T]) -> T {
        choices[self.below(choices.len())]
    }

    /// Random worker out of twelve shapes of a mixed fleet.
    fn worker(&mut self) -> WorkerCapacity {
        let (cores, gib, gpu) = self.pick_from(&[
            (16, 64, None),
            (32, 128, None),
            (48, 192, None),
            (64, 256, None),
            (64, 512, None),
            (96, 384, None),
            (96, 384, Some(("A10", 8))),
            (104, 512, Some(("T4", 2))),
            (64, 256, Some(("T4", 4))),
            (128, 786, Some(("H100", 8))),
            (32, 128, Some(("V100", 4))),
            (8, 32, Some(("V100", 1))),
        ]);
        let gpu = gpu.map(|(model, count): (&str, u32)| GpuCapacity { model: model.into(), count });
        WorkerCapacity { cpu_milli: cores * 1_000, memory_bytes: gib << 30, slots: 0, gpu }
    }

    fn need(&mut self) -> ResourceRequest {
        let cpu_milli = self.pick_from(&[250, 500, 1_000, 2_000, 3_000, 4_000, 6_000, 8_000, 12_000, 16_000]);
        let mib_per_milli = self.pick_from(&[1, 2, 4, 8]);
        let (gpu_count, gpu_milli) = match self.below(10) {
            0..6 => (0, 0),
            6..8 => (1, self.pick_from(&[100, 200, 250, 300, 500, 700])),
            8 => (1, GPU_MILLI),
            _ => (self.pick_from(&[2, 4]), GPU_MILLI),
        };
        ResourceRequest {
            cpu_milli,
            memory_bytes: (cpu_milli * mib_per_milli) << 20,
            slots: 0,
            gpu_count,
            gpu_milli,
            models: Default::default(),
            until_ms: 0,
        }
    }
}

/// Picks like the service: work without GPUs uses workers with GPUs only if no other fits.
fn pick_sparing_gpus(
    fleet: &FleetIndex,
    need: &ResourceRequest,
    fgd: &mut FragmentationScorer,
) -> Option<PlacementDecision> {
    let without_gpus = (need.gpu_count == 0).then(|| ResourceRequest { models: [NO_MODEL][..].into(), ..need.clone() });
    let decision = without_gpus.and_then(|without_gpus| fleet.pick(&without_gpus, FitStrategy::BestFit, fgd));
    decision.or_else(|| fleet.pick(need, FitStrategy::BestFit, fgd))
}

struct Bench {
    shards: Vec<FleetIndex>,
    allocations: Vec<(usize, u32, ResourceAllocation)>,
    fgd: FragmentationScorer,
    random: SplitMix,
}

impl Bench {
    fn new(workers: usize) -> Self {
        let mut bench = Self {
            shards: Vec::new(),
            allocations: Vec::new(),
            fgd: FragmentationScorer::default(),
            random: SplitMix(7),
        };
        for shard in 0..SHARDS {
            let mut fleet = FleetIndex::default();
            let count = workers * (shard + 1) / SHARDS - workers * shard / SHARDS;
            (0..count as u32).for_each(|at| fleet.insert(at, &bench.random.worker()));
            bench.shards.push(fleet);
        }
        // Full when a fifth of as many requests as there are workers found no capacity.
        while (0..workers).filter(|_| bench.claim().is_none()).count() * 5 < workers {}
        bench
    }

    /// Nanoseconds of a claim; `None` if no worker had capacity.
    fn claim(&mut self) -> Option<u64> {
        let (need, shard) = (self.random.need(), self.random.below(SHARDS));
        let fleet = &mut self.shards[shard];
        let start = Instant::now();
        let pick = pick_sparing_gpus(fleet, &need, &mut self.fgd)?;
        let allocation = fleet.allocation(&need, pick)?;
        fleet.allocate(pick.worker, &allocation);
        let nanos = start.elapsed().as_nanos() as u64;
        self.allocations.push((shard, pick.worker, allocation));
        Some(nanos)
    }

    fn release(&mut self) -> u64 {
        let (shard, worker, allocation) = self.allocations.swap_remove(self.random.below(self.allocations.len()));
        let start = Instant::now();
        self.shards[shard].release(worker, &allocation);
        start.elapsed().as_nanos() as u64
    }
}

fn main() {
    println!(
        "{:<12} {:>10} {:>10} {:>10} {:>10} {:>10} {:>10} {:>12}",
        "workers", "claim p50", "p99", "p99.9", "release p50", "p99", "held", "classes/shard"
    );
    for workers in [1_000, 10_000, 100_000, 1_000_000] {
        let mut bench = Bench::new(workers);
        let histogram = || Histogram::<u64>::new_with_bounds(1, 1_000_000_000, 3).expect("three digits");
        let (mut claims, mut releases) = (histogram(), histogram());
        for _ in 0..DECISIONS {
            releases.saturating_record(bench.release());
            if let Some(nanos) = bench.claim() {
                claims.saturating_record(nanos);
            }
        }
        let classes: usize = bench.shards.iter().map(FleetIndex::distinct_free).sum();
        let at = |histogram: &Histogram<u64>, quantile| histogram.value_at_quantile(quantile);
        println!(
            "{workers:<12} {:>10} {:>10} {:>10} {:>10} {:>10} {:>10} {:>12}",
            at(&claims, 0.5),
            at(&claims, 0.99),
            at(&claims, 0.999),
            at(&releases, 0.5),
            at(&releases, 0.99),
            bench.allocations.len(),
            classes / SHARDS
        );
    }
}
