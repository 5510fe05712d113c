//! Simulation of a packing run: requests one by one, without releases or retries; each decision is timed.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use hdrhistogram::Histogram;
use smallvec::SmallVec;

use super::curve::CurvePoint;
use super::input::{PackInput, PackRequest};
use super::published::PublishedPolicy;
use crate::stats;
use hotpool::engine::placement::bin_packing::{
    FitStrategy, FleetIndex, FragmentationScorer, NO_MODEL, ResourceRequest, cores_per_gpu,
};
use hotpool::model::WorkerId;

/// Multiplier of Fibonacci hashing: 2^64 over the golden ratio.
const FIBONACCI_MULTIPLIER: u64 = 0x9e37_79b9_7f4a_7c15;

/// Result of a packing simulation.
#[derive(Debug)]
pub struct SimulationResult {
    /// Arrivals and allocation after each request.
    pub points: Vec<CurvePoint>,
    /// Number of requests that no worker could hold.
    pub failed: u64,
    /// Total time of all decisions.
    pub took: Duration,
    /// Nanoseconds of each decision: picking a worker and recording the allocation.
    pub decisions: Histogram<u64>,
}

/// Rule that places requests.
#[derive(Debug)]
pub enum PlacementDecider {
    /// Placement as the service does it, over shards.
    Service(Box<ShardedPlacement>),
    /// Scores of the published runs on one fleet.
    Published(PublishedPolicy, Box<FleetIndex>),
}

/// Origin of the request mix that FGD scores against.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MixSource {
    /// Computed from the input's requests.
    Given,
    /// Learned from the requests as they arrive.
    Learned,
}

/// Fleet shards with the service's placement.
#[derive(Debug)]
pub struct ShardedPlacement {
    shards: Vec<(FleetIndex, FragmentationScorer)>,
    strategy: FitStrategy,
    /// Number of requests so far, which varies the choice of shards.
    requests: u64,
}

impl PlacementDecider {
    /// Creates the service's placement over `shards` shards.
    ///
    /// # Errors
    /// Fails if the name of a node is not a valid worker id.
    pub fn service(input: &PackInput, strategy: FitStrategy, shards: u16, mix: MixSource) -> Result<Self> {
        let scorer = || match mix {
            MixSource::Learned => FragmentationScorer::with_learned_mix(),
            MixSource::Given => FragmentationScorer::with_fixed_mix(input.request_mix()),
        };
        let mut shards: Vec<(FleetIndex, FragmentationScorer)> =
            (0..shards).map(|_| (input.fleet(), scorer())).collect();
        let count = shards.len() as u16;
        for (name, capacity) in &input.nodes {
            let id = WorkerId::new(name).with_context(|| format!("node {name}"))?;
            let (fleet, _) = &mut shards[id.shard(count) as usize];
            fleet.insert(fleet.len() as u32, capacity);
        }
        Ok(Self::Service(Box::new(ShardedPlacement { shards, strategy, requests: 0 })))
    }

    /// Creates the placement of the published runs.
    #[must_use]
    pub fn published(input: &PackInput, published: PublishedPolicy) -> Self {
        let mut fleet = input.fleet();
        (0..).zip(&input.nodes).for_each(|(worker, (_, capacity))| fleet.insert(worker, capacity));
        Self::Published(published, Box::new(fleet))
    }

    /// Places the request. Returns false if no worker can hold it.
    fn place_request(&mut self, request: &PackRequest) -> bool {
        match self {
            Self::Published(published, fleet) => {
                let decision = published.decide(fleet, request);
                decision.inspect(|(worker, allocation)| fleet.allocate(*worker, allocation)).is_some()
            }
            Self::Service(service) => service.place_request(request),
        }
    }
}

impl ShardedPlacement {
    /// Places the request as the service does. Of two random shards the one with more free cores per GPU is tried, and
    /// so on until one can hold the request; work without GPUs first tries workers without GPUs.
    fn place_request(&mut self, request: &PackRequest) -> bool {
        let need = &request.need;
        self.shards.iter_mut().for_each(|(_, fgd)| fgd.record_request(need));
        self.requests += 1;
        // Fibonacci hashing gives an order unrelated to that of the requests.
        let tie_break = self.requests.wrapping_mul(FIBONACCI_MULTIPLIER);
        let without_gpus = ResourceRequest { models: SmallVec::from_slice(&[NO_MODEL]), ..need.clone() };
        let stages: &[&ResourceRequest] = if need.gpu_count == 0 { &[&without_gpus, need] } else { &[need] };
        stages.iter().any(|need| {
            let mut remaining: SmallVec<[usize; 16]> = (0..self.shards.len()).collect();
            while !remaining.is_empty() {
                let tie_break = tie_break.rotate_left(7 * (self.shards.len() - remaining.len()) as u32);
                let nth = |hash: u64| ((u128::from(hash) * remaining.len() as u128) >> 64) as usize;
                let (first, second) =
                    (nth(tie_break), nth(tie_break.rotate_left(32).wrapping_mul(FIBONACCI_MULTIPLIER)));
                let second_is_better =
                    self.free_cores_per_gpu(remaining[second], need) > self.free_cores_per_gpu(remaining[first], need);
                let shard = remaining.swap_remove(if second_is_better { second } else { first });
                let (fleet, fgd) = &mut self.shards[shard];
                let pick = fleet.pick(need, self.strategy, fgd);
                let allocation = pick.and_then(|pick| Some((pick.worker, fleet.allocation(need, pick)?)));
                if let Some((worker, allocation)) = allocation {
                    fleet.allocate(worker, &allocation);
                    return true;
                }
            }
            false
        })
    }

    fn free_cores_per_gpu(&self, shard: usize, need: &ResourceRequest) -> f64 {
        let [without_gpus, with] = self.shards[shard].0.totals();
        let cores = with.amounts.cpu_milli + if need.gpu_count == 0 { without_gpus.amounts.cpu_milli } else { 0 };
        cores_per_gpu(cores as u64, with.amounts.gpu_milli as u64)
    }
}

/// Simulates all arrivals. `progress` receives the number of completed requests.
#[must_use]
pub fn simulate(input: &PackInput, decider: &mut PlacementDecider, mut progress: impl FnMut(u64)) -> SimulationResult {
    let mut result = SimulationResult {
        points: Vec::with_capacity(input.events.len()),
        failed: 0,
        took: Duration::ZERO,
        decisions: stats::histogram(),
    };
    let (mut arrived, mut allocated) = (0, 0);
    for (done, &event) in (1..).zip(&input.events) {
        let request = &input.requests[event as usize];
        arrived += request.gpu_milli();
        let start = Instant::now();
        let placed = decider.place_request(request);
        let took = start.elapsed();
        result.took += took;
        stats::record(&mut result.decisions, took, 1);
        if placed {
            allocated += request.gpu_milli();
        } else {
            result.failed += 1;
        }
        result.points.push((arrived, allocated));
        if done % 256 == 0 {
            progress(done);
        }
    }
    result
}
