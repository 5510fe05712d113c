//! Free resources of a fleet: of all offered workers together, and the largest of any one.

use std::sync::Arc;

use super::fleet::FleetIndex;
use super::free_index::FreeIndex;
use super::free_resources::{FreeResources, NO_MODEL};
use super::index_node::FreeBounds;
use crate::engine::invariants::InvariantViolation;
use crate::model::{ResourceAmounts, ResourceVector, WorkerCapacity};

/// Sum of the resources of some workers.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct ResourceTotals {
    /// Number of workers in the sum.
    pub workers: u64,
    /// Sum of their resources.
    pub amounts: ResourceVector<u128>,
}

/// Free GPUs of one model on offered workers.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct FreeGpus {
    /// Number of wholly free GPUs.
    idle: u64,
    /// Free thousandths of all GPUs.
    milli: u64,
}

/// Free resources of all offered workers together.
#[derive(Debug, Default)]
pub(super) struct FleetTotals {
    /// Sums of workers without GPUs, and of those with.
    sums: [ResourceTotals; 2],
    /// Free GPUs by model; nothing of [`NO_MODEL`].
    gpus: Vec<FreeGpus>,
}

impl FleetTotals {
    /// Adds the free resources of a worker that is offered.
    pub fn add(&mut self, free: &FreeResources) {
        let model = usize::from(free.model);
        self.sums[usize::from(free.model != NO_MODEL)].add(free);
        if free.model == NO_MODEL {
            return;
        }
        if self.gpus.len() <= model {
            self.gpus.resize(model + 1, FreeGpus::default());
        }
        self.gpus[model].idle += u64::from(free.idle_gpus());
        self.gpus[model].milli += u64::from(free.free_gpu_milli());
    }

    /// Subtracts the free resources of a worker that is withdrawn.
    pub fn remove(&mut self, free: &FreeResources) {
        self.sums[usize::from(free.model != NO_MODEL)].subtract(free);
        if free.model != NO_MODEL {
            let gpus = &mut self.gpus[usize::from(free.model)];
            gpus.idle -= u64::from(free.idle_gpus());
            gpus.milli -= u64::from(free.free_gpu_milli());
        }
    }

    /// Checks the sums against the free resources of all offered workers.
    ///
    /// # Errors
    /// Both sums, if they differ.
    pub fn check<'a>(&self, workers: impl Iterator<Item = &'a FreeResources>) -> Result<(), InvariantViolation> {
        let mut fresh = Self { sums: [ResourceTotals::default(); 2], gpus: vec![FreeGpus::default(); self.gpus.len()] };
        workers.for_each(|free| fresh.add(free));
        if (fresh.sums, &fresh.gpus) == (self.sums, &self.gpus) {
            return Ok(());
        }
        Err(format!("L1: free resources sum to {fresh:?}, counted is {self:?}").into())
    }
}

/// Free thousandths of cores for each free thousandth of GPUs. Of two shards the one with more is tried first for GPU
/// fractions: so cores and GPUs run out together, and in all shards at once.
#[must_use]
pub fn cores_per_gpu(cpu_milli: u64, gpu_milli: u64) -> f64 {
    cpu_milli as f64 / (gpu_milli as f64 + 1.0)
}

impl ResourceTotals {
    /// Adds the capacity of a worker.
    pub(in crate::engine) fn add_capacity(&mut self, capacity: &WorkerCapacity) {
        self.add(&FreeResources::unallocated(capacity, NO_MODEL));
    }

    /// Subtracts the capacity that [`Self::add_capacity`] added.
    pub(in crate::engine) fn subtract_capacity(&mut self, capacity: &WorkerCapacity) {
        self.subtract(&FreeResources::unallocated(capacity, NO_MODEL));
    }

    pub(super) fn add(&mut self, free: &FreeResources) {
        self.workers += 1;
        self.amounts = self.amounts.zip_map(free.amounts(), |sum, amount| sum + u128::from(amount));
    }

    pub(super) fn subtract(&mut self, free: &FreeResources) {
        debug_assert!(self.workers > 0, "L1: a worker is subtracted from an empty sum");
        self.workers -= 1;
        self.amounts = self.amounts.zip_map(free.amounts(), |sum, amount| sum - u128::from(amount));
    }
}

impl FleetIndex {
    /// Free resources of the offered workers together: those without GPUs, and those with.
    #[must_use]
    pub const fn totals(&self) -> [ResourceTotals; 2] {
        self.totals.sums
    }

    /// Largest free amounts of the offered workers: those without GPUs, and those with.
    #[must_use]
    pub fn max_free(&self) -> [ResourceAmounts; 2] {
        let max_of = |orders: &[FreeIndex]| {
            let mut bounds = FreeBounds::NONE;
            orders.iter().filter_map(FreeIndex::bounds).for_each(|other| bounds.merge_max(&other));
            bounds.upper_amounts()
        };
        let (without, with) = self.orders.split_at(self.orders.len().min(1));
        [max_of(without), max_of(with)]
    }

    /// Free GPUs by model: the wholly free ones, and the thousandths of all.
    pub fn free_gpus(&self) -> impl Iterator<Item = (&Arc<str>, u64, u64)> {
        self.models.iter().zip(self.totals.gpus.iter().skip(1)).map(|(name, free)| (name, free.idle, free.milli))
    }
}
