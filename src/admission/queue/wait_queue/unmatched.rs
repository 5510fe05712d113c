//! Workers that came free while only claims that are being tried may fit them.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::admission::queue::least_demand::{ClaimDemand, FreeAmounts};
use crate::limits;
use crate::model::{WorkerRegistration, WorkerSpec};

/// Workers that must be offered again.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct UnmatchedOffers {
    /// Shard of each, and its ordinal there.
    pub workers: Vec<(u16, u32)>,
    /// Whether others had to be given up, so that the claim must be searched for again.
    pub is_incomplete: bool,
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

/// Workers that nobody took, by shard and ordinal. What becomes of one later is not noted: then it is offered again in vain.
#[derive(Debug, Default)]
pub(super) struct UnmatchedWorkers {
    workers: BTreeMap<(u16, u32), UnmatchedWorker>,
    given_up: u64,
}

impl UnmatchedWorkers {
    /// Adds a worker, or gives it up if there are [`limits::UNMATCHED_WORKERS_MAX`]: then every claim that is being tried
    /// must be searched for once more.
    pub fn insert(&mut self, worker: (u16, u32), free: FreeAmounts, registration: &Arc<WorkerRegistration>) {
        if self.workers.len() >= limits::UNMATCHED_WORKERS_MAX && !self.workers.contains_key(&worker) {
            self.given_up += 1;
        } else {
            self.workers.insert(worker, UnmatchedWorker { free, registration: Arc::clone(registration) });
        }
    }

    pub fn remove(&mut self, worker: (u16, u32)) {
        self.workers.remove(&worker);
    }

    pub fn clear(&mut self) {
        self.workers.clear();
    }

    /// Number of workers that were given up so far.
    pub const fn given_up(&self) -> u64 {
        self.given_up
    }

    /// Takes the workers that pass `is_taken`.
    pub fn take(&mut self, mut is_taken: impl FnMut(&UnmatchedWorker) -> bool) -> Vec<(u16, u32)> {
        self.workers.extract_if(.., |_, worker| is_taken(worker)).map(|(worker, _)| worker).collect()
    }
}
