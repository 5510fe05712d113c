//! Typical mix of requests, by which FGD measures the worth of a free GPU.
//!
//! Given by the pool, or learned: of the last [`WINDOW`] requests the most frequent shapes that make up
//! [`COVERAGE_PERCENT`], each with its fraction (Weng et al., "Beware of Fragmentation: Scheduling GPU-Sharing
//! Workloads with Fragmentation Gradient Descent", USENIX ATC 2023, take 95 % of a trace). Memory and slots are left
//! out, as there.

use std::collections::VecDeque;

use hashbrown::HashMap;
use smallvec::SmallVec;
use xxhash_rust::xxh3::Xxh3DefaultBuilder;

use super::free_resources::{ModelId, ResourceRequest};

/// Number of requests from which a mix is learned.
pub const WINDOW: usize = 4_096;
/// Percentage of the requests that the shapes of a mix cover.
pub const COVERAGE_PERCENT: usize = 95;
/// Number of requests between two computations of the mix.
const RECOMPUTE_INTERVAL: usize = 512;

/// Parts of a request that FGD considers.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct RequestShape {
    /// Requested thousandths of cores.
    pub cpu_milli: u64,
    /// Requested thousandths of each GPU; 0: none.
    pub gpu_milli: u16,
    /// Requested number of GPUs.
    pub gpu_count: u16,
    /// Acceptable GPU models; empty: any.
    pub models: SmallVec<[ModelId; 4]>,
}

impl RequestShape {
    /// Shape of a request.
    #[must_use]
    pub fn of(request: &ResourceRequest) -> Self {
        Self {
            cpu_milli: request.cpu_milli,
            gpu_milli: request.gpu_milli,
            gpu_count: request.gpu_count,
            models: request.models.clone(),
        }
    }
}

/// Most frequent shapes that make up [`COVERAGE_PERCENT`], most frequent first, each with its fraction.
#[must_use]
pub fn most_frequent<'a>(counts: impl IntoIterator<Item = (&'a RequestShape, usize)>) -> Vec<(RequestShape, f64)> {
    let mut shapes: Vec<(usize, &RequestShape)> = counts.into_iter().map(|(shape, count)| (count, shape)).collect();
    shapes.sort_unstable_by(|first, second| second.cmp(first));
    let total: usize = shapes.iter().map(|(count, _)| count).sum();
    let mut covered = 0;
    let enough = shapes.iter().position(|(count, _)| {
        covered += count;
        covered * 100 >= total * COVERAGE_PERCENT
    });
    shapes.truncate(enough.map_or(0, |last| last + 1));
    shapes.into_iter().map(|(count, shape)| (shape.clone(), count as f64 / covered as f64)).collect()
}

/// Counts of the latest requests by shape.
#[derive(Debug, Default)]
pub struct LearnedMix {
    counts: HashMap<RequestShape, u32, Xxh3DefaultBuilder>,
    window: VecDeque<RequestShape>,
    since_recompute: usize,
}

impl LearnedMix {
    /// Records a request. Returns the mix whenever it is due for an update.
    pub fn record_request(&mut self, request: &ResourceRequest) -> Option<Vec<(RequestShape, f64)>> {
        let shape = RequestShape::of(request);
        if self.window.len() == WINDOW
            && let Some(oldest) = self.window.pop_front()
            && let Some(count) = self.counts.get_mut(&oldest)
        {
            *count -= 1;
            if *count == 0 {
                self.counts.remove(&oldest);
            }
        }
        *self.counts.entry(shape.clone()).or_insert(0) += 1;
        self.window.push_back(shape);
        debug_assert!(self.window.len() <= WINDOW, "the window of requests exceeds its length");
        self.since_recompute += 1;
        // Early on it is updated at every doubling: the first requests say most.
        let early = self.window.len() < RECOMPUTE_INTERVAL && self.window.len().is_power_of_two();
        if self.since_recompute < RECOMPUTE_INTERVAL && !early {
            return None;
        }
        self.since_recompute = 0;
        Some(most_frequent(self.counts.iter().map(|(shape, &count)| (shape, count as usize))))
    }
}
