//! What is usually asked of a fleet: the *typical mix* by which FGD measures how much an idle card is worth.
//!
//! Given from outside, or learned: of the last [`WINDOW`] requests the most frequent kinds that make up
//! [`COVERAGE_PERCENT`], each with its share (Weng et al., "Beware of Fragmentation: Scheduling GPU-Sharing Workloads
//! with Fragmentation Gradient Descent", USENIX ATC 2023, take 95 % of a trace). Memory and places are left out, as there.

use std::collections::VecDeque;

use hashbrown::HashMap;
use smallvec::SmallVec;
use xxhash_rust::xxh3::Xxh3DefaultBuilder;

use super::free_resources::{ModelId, ResourceRequest};

/// Requests from which a mix is learned.
pub const WINDOW: usize = 4_096;
/// The kinds that together make up less than the rest of this are left out.
pub const COVERAGE_PERCENT: usize = 95;
/// Requests from one look at what was learned to the next.
const RECOMPUTE_INTERVAL: usize = 512;

/// What FGD looks at in a request.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct RequestShape {
    /// Thousandths of a core.
    pub cpu_milli: u64,
    /// Thousandths of each card; 0: none.
    pub gpu_milli: u16,
    /// Number of cards.
    pub gpu_count: u16,
    /// Models that will do; empty: any.
    pub models: SmallVec<[ModelId; 4]>,
}

impl RequestShape {
    /// Of a need.
    #[must_use]
    pub fn of(need: &ResourceRequest) -> Self {
        Self {
            cpu_milli: need.cpu_milli,
            gpu_milli: need.gpu_milli,
            gpu_count: need.gpu_count,
            models: need.models.clone(),
        }
    }
}

/// The most frequent kinds of these that make up [`COVERAGE_PERCENT`], most frequent first, each with its share.
#[must_use]
pub fn most_frequent<'a>(kinds: impl IntoIterator<Item = (&'a RequestShape, usize)>) -> Vec<(RequestShape, f64)> {
    let mut kinds: Vec<(usize, &RequestShape)> = kinds.into_iter().map(|(kind, count)| (count, kind)).collect();
    kinds.sort_unstable_by(|one, two| two.cmp(one));
    let total: usize = kinds.iter().map(|(count, _)| count).sum();
    let mut covered = 0;
    let enough = kinds.iter().position(|(count, _)| {
        covered += count;
        covered * 100 >= total * COVERAGE_PERCENT
    });
    kinds.truncate(enough.map_or(0, |last| last + 1));
    kinds.into_iter().map(|(count, kind)| (kind.clone(), count as f64 / covered as f64)).collect()
}

/// Counts what is asked.
#[derive(Debug, Default)]
pub struct LearnedMix {
    counts: HashMap<RequestShape, u32, Xxh3DefaultBuilder>,
    window: VecDeque<RequestShape>,
    since_recompute: usize,
}

impl LearnedMix {
    /// Notes a request. What is typical, if it is time to look.
    pub fn record_request(&mut self, need: &ResourceRequest) -> Option<Vec<(RequestShape, f64)>> {
        let kind = RequestShape::of(need);
        if self.window.len() == WINDOW
            && let Some(oldest) = self.window.pop_front()
            && let Some(count) = self.counts.get_mut(&oldest)
        {
            *count -= 1;
            if *count == 0 {
                self.counts.remove(&oldest);
            }
        }
        *self.counts.entry(kind.clone()).or_insert(0) += 1;
        self.window.push_back(kind);
        self.since_recompute += 1;
        // Early on every doubling is a look: the first requests say most.
        let early = self.window.len() < RECOMPUTE_INTERVAL && self.window.len().is_power_of_two();
        if self.since_recompute < RECOMPUTE_INTERVAL && !early {
            return None;
        }
        self.since_recompute = 0;
        Some(most_frequent(self.counts.iter().map(|(kind, &count)| (kind, count as usize))))
    }
}
