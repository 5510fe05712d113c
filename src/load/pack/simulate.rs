//! Plays a packing run: requests one by one, none released, none retried; each decision timed.

use std::time::{Duration, Instant};

use hdrhistogram::Histogram;
use smallvec::SmallVec;

use super::curve::Point;
use super::input::{PackInput, PackRequest};
use super::published::PublishedPolicy;
use crate::stats;
use hotpool::engine::placement::bin_packing::{
    FitStrategy, FleetIndex, FragmentationScorer, NO_MODEL, ResourceRequest, cores_per_gpu,
};
use hotpool::model::WorkerId;

/// 2^64 over the golden ratio.
const FIBONACCI_MULTIPLIER: u64 = 0x9e37_79b9_7f4a_7c15;

/// What a run did.
#[derive(Debug)]
pub struct SimulationResult {
    /// After each request.
    pub points: Vec<Point>,
    /// Requests that found no room.
    pub failed: u64,
    /// All decisions together.
    pub took: Duration,
    /// Nanoseconds of each decision: choosing, and noting what was taken.
    pub decisions: Histogram<u64>,
}

/// Who decides.
#[derive(Debug)]
pub enum PlacementDecider {
    /// The service's own order, over shards.
    Service(Box<ShardedPlacement>),
    /// The published scores.
    Published(PublishedPolicy, Box<FleetIndex>),
}

/// Shards with the service's own order.
#[derive(Debug)]
pub struct ShardedPlacement {
    shards: Vec<(FleetIndex, FragmentationScorer)>,
    placement: FitStrategy,
    /// Requests so far.
    requests: u64,
}

impl PlacementDecider {
    /// The service's own order. `learn`: the mix is learned instead of given.
    ///
    /// # Errors
    /// The name of a node that cannot be a worker's.
    pub fn service(input: &PackInput, placement: FitStrategy, shards: u16, learn: bool) -> Result<Self, String> {
        let fgd = || {
            if learn {
                FragmentationScorer::with_learned_mix()
            } else {
                FragmentationScorer::with_fixed_mix(input.request_mix())
            }
        };
        let mut shards: Vec<(FleetIndex, FragmentationScorer)> = (0..shards).map(|_| (input.fleet(), fgd())).collect();
        let count = shards.len() as u16;
        for (name, capacity) in &input.nodes {
            let id = WorkerId::new(name).map_err(|refusal| format!("node {name}: {refusal}"))?;
            let (fleet, _) = &mut shards[id.shard(count) as usize];
            fleet.insert(fleet.len() as u32, capacity);
        }
        Ok(Self::Service(Box::new(ShardedPlacement { shards, placement, requests: 0 })))
    }

    /// The published scores.
    #[must_use]
    pub fn published(input: &PackInput, published: PublishedPolicy) -> Self {
        let mut fleet = input.fleet();
        (0..).zip(&input.nodes).for_each(|(at, (_, capacity))| fleet.insert(at, capacity));
        Self::Published(published, Box::new(fleet))
    }

    /// Takes what the request asks for. False: there is no room.
    fn place_request(&mut self, request: &PackRequest) -> bool {
        match self {
            Self::Published(published, fleet) => {
                let found = published.decide(fleet, request);
                found.inspect(|(worker, share)| fleet.allocate(*worker, share)).is_some()
            }
            Self::Service(own) => own.place_request(request),
        }
    }
}

impl ShardedPlacement {
    /// As the service does: of two shards the one with more cores left for each card is asked, and so on until one has room;
    /// for work without GPUs first for workers without them.
    fn place_request(&mut self, request: &PackRequest) -> bool {
        let need = &request.need;
        self.shards.iter_mut().for_each(|(_, fgd)| fgd.record_request(need));
        self.requests += 1;
        // Fibonacci hashing: in no order that the requests could have.
        let salt = self.requests.wrapping_mul(FIBONACCI_MULTIPLIER);
        let without = ResourceRequest { models: SmallVec::from_slice(&[NO_MODEL]), ..need.clone() };
        let stages: &[&ResourceRequest] = if need.gpu_count == 0 { &[&without, need] } else { &[need] };
        stages.iter().any(|need| {
            let mut left: SmallVec<[usize; 16]> = (0..self.shards.len()).collect();
            while !left.is_empty() {
                let salt = salt.rotate_left(7 * (self.shards.len() - left.len()) as u32);
                let nth = |hash: u64| ((u128::from(hash) * left.len() as u128) >> 64) as usize;
                let (one, two) = (nth(salt), nth(salt.rotate_left(32).wrapping_mul(FIBONACCI_MULTIPLIER)));
                let more = self.cores_per_card(left[two], need) > self.cores_per_card(left[one], need);
                let at = left.swap_remove(if more { two } else { one });
                let (fleet, fgd) = &mut self.shards[at];
                let pick = fleet.pick(need, self.placement, fgd);
                let share = pick.and_then(|pick| Some((pick.worker, fleet.allocation(need, pick)?)));
                if let Some((worker, share)) = share {
                    fleet.allocate(worker, &share);
                    return true;
                }
            }
            false
        })
    }

    fn cores_per_card(&self, shard: usize, need: &ResourceRequest) -> f64 {
        let [without, with] = self.shards[shard].0.totals();
        let cores = with.cpu_milli + if need.gpu_count == 0 { without.cpu_milli } else { 0 };
        cores_per_gpu(cores as u64, with.gpu_milli as u64)
    }
}

/// Plays all arrivals. `shown` is told how many are done.
#[must_use]
pub fn simulate(input: &PackInput, decider: &mut PlacementDecider, mut shown: impl FnMut(u64)) -> SimulationResult {
    let mut played = SimulationResult {
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
        let taken = decider.place_request(request);
        let took = start.elapsed();
        played.took += took;
        stats::record(&mut played.decisions, took, 1);
        if taken {
            allocated += request.gpu_milli();
        } else {
            played.failed += 1;
        }
        played.points.push((arrived, allocated));
        if done % 256 == 0 {
            shown(done);
        }
    }
    played
}
