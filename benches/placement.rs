//! Shares of workers: what one best-fit decision costs (choosing, and noting what is taken) as the fleet grows. Mixed
//! workers in 16 shards, filled until about four fifths of the requests found room, then claims and releases in turn; the
//! shard of each claim is drawn. Prints nanoseconds a decision; the figures in docs/BENCHMARKS.md come from here.

use std::time::Instant;

use hdrhistogram::Histogram;
use hotpool::engine::placement::bin_packing::{
    FitStrategy, FleetIndex, FragmentationScorer, GPU_MILLI, NO_MODEL, PlacementDecision, ResourceAllocation,
    ResourceRequest,
};
use hotpool::model::{GpuCapacity, WorkerCapacity};

const SHARDS: usize = 16;
const DECISIONS: usize = 400_000;

/// Splitmix64.
struct Dice(u64);

impl Dice {
    fn roll(&mut self, below: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut x = self.0;
        x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((u128::from(x ^ (x >> 31)) * below as u128) >> 64) as usize
    }

    fn one<T: Copy>(&mut self, of: &[T]) -> T {
        of[self.roll(of.len())]
    }

    /// Twelve shapes, as a mixed fleet has them.
    fn worker(&mut self) -> WorkerCapacity {
        let (cores, gib, gpu) = self.one(&[
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
        let cpu_milli = self.one(&[250, 500, 1_000, 2_000, 3_000, 4_000, 6_000, 8_000, 12_000, 16_000]);
        let mib_per_milli = self.one(&[1, 2, 4, 8]);
        let (cards, card_milli) = match self.roll(10) {
            0..6 => (0, 0),
            6..8 => (1, self.one(&[100, 200, 250, 300, 500, 700])),
            8 => (1, GPU_MILLI),
            _ => (self.one(&[2, 4]), GPU_MILLI),
        };
        ResourceRequest {
            cpu_milli,
            memory_bytes: (cpu_milli * mib_per_milli) << 20,
            slots: 0,
            gpu_count: cards,
            gpu_milli: card_milli,
            models: Default::default(),
            until_ms: 0,
        }
    }
}

/// As the service: work without cards takes workers with cards only when no other fits.
fn sparing(fleet: &FleetIndex, need: &ResourceRequest, fgd: &mut FragmentationScorer) -> Option<PlacementDecision> {
    let without = (need.gpu_count == 0).then(|| ResourceRequest { models: [NO_MODEL][..].into(), ..need.clone() });
    let spared = without.and_then(|without| fleet.pick(&without, FitStrategy::BestFit, fgd));
    spared.or_else(|| fleet.pick(need, FitStrategy::BestFit, fgd))
}

struct Bench {
    shards: Vec<FleetIndex>,
    held: Vec<(usize, u32, ResourceAllocation)>,
    fgd: FragmentationScorer,
    dice: Dice,
}

impl Bench {
    fn new(workers: usize) -> Self {
        let mut bench =
            Self { shards: Vec::new(), held: Vec::new(), fgd: FragmentationScorer::default(), dice: Dice(7) };
        for shard in 0..SHARDS {
            let mut fleet = FleetIndex::default();
            let here = workers * (shard + 1) / SHARDS - workers * shard / SHARDS;
            (0..here as u32).for_each(|at| fleet.insert(at, &bench.dice.worker()));
            bench.shards.push(fleet);
        }
        // Full when a fifth of as many requests as there are workers found no room.
        while (0..workers).filter(|_| bench.claim().is_none()).count() * 5 < workers {}
        bench
    }

    /// Nanoseconds, if there was room.
    fn claim(&mut self) -> Option<u64> {
        let (need, shard) = (self.dice.need(), self.dice.roll(SHARDS));
        let fleet = &mut self.shards[shard];
        let start = Instant::now();
        let pick = sparing(fleet, &need, &mut self.fgd)?;
        let share = fleet.allocation(&need, pick)?;
        fleet.allocate(pick.worker, &share);
        let took = start.elapsed().as_nanos() as u64;
        self.held.push((shard, pick.worker, share));
        Some(took)
    }

    fn release(&mut self) -> u64 {
        let (shard, worker, share) = self.held.swap_remove(self.dice.roll(self.held.len()));
        let start = Instant::now();
        self.shards[shard].release(worker, &share);
        start.elapsed().as_nanos() as u64
    }
}

fn main() {
    println!(
        "{:<12} {:>10} {:>10} {:>10} {:>10} {:>10} {:>10} {:>12}",
        "workers", "claim p50", "p99", "p99.9", "release p50", "p99", "held", "rooms/shard"
    );
    for workers in [1_000, 10_000, 100_000, 1_000_000] {
        let mut bench = Bench::new(workers);
        let histogram = || Histogram::<u64>::new_with_bounds(1, 1_000_000_000, 3).expect("three digits");
        let (mut claims, mut releases) = (histogram(), histogram());
        for _ in 0..DECISIONS {
            releases.saturating_record(bench.release());
            if let Some(took) = bench.claim() {
                claims.saturating_record(took);
            }
        }
        let rooms: usize = bench.shards.iter().map(FleetIndex::distinct_free).sum();
        let at = |histogram: &Histogram<u64>, quantile| histogram.value_at_quantile(quantile);
        println!(
            "{workers:<12} {:>10} {:>10} {:>10} {:>10} {:>10} {:>10} {:>12}",
            at(&claims, 0.5),
            at(&claims, 0.99),
            at(&claims, 0.999),
            at(&releases, 0.5),
            at(&releases, 0.99),
            bench.held.len(),
            rooms / SHARDS
        );
    }
}
