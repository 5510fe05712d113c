//! Workers that came free while only claims that are being tried may fit them.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use crate::admission::queue::least_demand::{ClaimDemand, FreeAmounts};
use crate::limits;
use crate::model::{WorkerRegistration, WorkerSpec};

/// Worker that must be offered again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct UnmatchedOffer {
    /// Shard of the worker.
    pub shard: u16,
    /// Ordinal of the worker in the shard; `None`: all of its workers.
    pub worker: Option<u32>,
}

/// Worker that nobody took, as it was when it was offered.
#[derive(Debug)]
pub(super) struct UnmatchedWorker {
    free: FreeAmounts,
    registration: Arc<WorkerRegistration>,
}

impl UnmatchedWorker {
    /// Whether a claim of this demand may fit. `allows`: whether its constraints allow the worker.
    pub fn may_fit(&self, demand: &ClaimDemand, allows: impl FnOnce(&WorkerSpec) -> bool) -> bool {
        demand.fits(&self.free) && allows(&self.registration.spec)
    }
}

/// Workers that nobody took. What becomes of one later is not noted: then it is offered again in vain.
#[derive(Debug, Default)]
pub(super) struct UnmatchedWorkers {
    workers: BTreeMap<(u16, u32), UnmatchedWorker>,
    /// Shards that had more of them than are kept.
    whole_shards: BTreeSet<u16>,
}

impl UnmatchedWorkers {
    /// Adds a worker. Beyond [`limits::UNMATCHED_WORKERS_MAX`] its shard is kept as a whole.
    pub fn insert(&mut self, (shard, at): (u16, u32), free: FreeAmounts, registration: &Arc<WorkerRegistration>) {
        if self.whole_shards.contains(&shard) {
            return;
        }
        self.workers.insert((shard, at), UnmatchedWorker { free, registration: Arc::clone(registration) });
        if self.workers.len() > limits::UNMATCHED_WORKERS_MAX {
            self.workers.extract_if((shard, 0)..=(shard, u32::MAX), |_, _| true).for_each(drop);
            self.whole_shards.insert(shard);
        }
    }

    pub fn remove(&mut self, worker: (u16, u32)) {
        self.workers.remove(&worker);
    }

    pub fn clear(&mut self) {
        self.workers.clear();
        self.whole_shards.clear();
    }

    /// Takes the workers that pass `is_taken`, and the shards that are kept as a whole.
    pub fn take(&mut self, mut is_taken: impl FnMut(&UnmatchedWorker) -> bool) -> Vec<UnmatchedOffer> {
        let shards = std::mem::take(&mut self.whole_shards).into_iter();
        let workers = self.workers.extract_if(.., |_, worker| is_taken(worker));
        let workers = workers.map(|((shard, at), _)| UnmatchedOffer { shard, worker: Some(at) });
        workers.chain(shards.map(|shard| UnmatchedOffer { shard, worker: None })).collect()
    }
}
