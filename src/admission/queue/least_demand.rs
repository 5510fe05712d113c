//! Amounts that claims need of one worker, and the least of them over many claims.

use crate::engine::{PlacementConstraints, WorkerOffer};
use crate::limits::GPU_MILLI;
use crate::model::{Millis, ResourceAmounts, ResourceUsage};

/// Amounts that a claim needs of one worker. An amount that it does not request is 0.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct ClaimDemand {
    /// Amount in thousandths of cores.
    pub cpu_milli: u64,
    /// Amount in bytes of memory.
    pub memory_bytes: u64,
    /// Slots of the worker.
    pub slots: u64,
    /// Number of whole GPUs.
    pub gpus: u64,
    /// Thousandths of one GPU, if it needs a share of one.
    pub gpu_milli: u64,
    /// Time for which it needs the worker, in milliseconds.
    pub needs_ms: Millis,
}

/// Number of amounts in a demand.
pub const AMOUNTS: usize = 6;

impl ClaimDemand {
    /// Demand of a claim with these constraints that needs its worker for `needs_ms`.
    #[must_use]
    pub fn new(constraints: Option<&PlacementConstraints>, needs_ms: Millis) -> Self {
        let Some(spec) = constraints.and_then(|constraints| constraints.spec.as_ref()) else {
            return Self { needs_ms, ..Self::default() };
        };
        let resources = &spec.resources;
        let (gpus, gpu_milli) = match &resources.gpu {
            None => (0, 0),
            Some(gpu) if gpu.milli == GPU_MILLI => (u64::from(gpu.count), 0),
            Some(gpu) => (0, u64::from(gpu.milli)),
        };
        let (cpu_milli, memory_bytes, slots) = (resources.cpu_milli, resources.memory_bytes, resources.slots);
        Self { cpu_milli, memory_bytes, slots, gpus, gpu_milli, needs_ms }
    }

    /// Whether a GPU is needed, or a share of one.
    #[must_use]
    pub const fn needs_gpu(&self) -> bool {
        self.gpus > 0 || self.gpu_milli > 0
    }

    const fn to_array(self) -> [u64; AMOUNTS] {
        let Self { cpu_milli, memory_bytes, slots, gpus, gpu_milli, needs_ms } = self;
        [cpu_milli, memory_bytes, slots, gpus, gpu_milli, needs_ms]
    }

    /// Whether the worker has that much free.
    #[must_use]
    pub fn fits(&self, free: &FreeAmounts) -> bool {
        free.cover(&self.to_array())
    }
}

/// Amounts that a worker has free.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FreeAmounts([u64; AMOUNTS]);

impl FreeAmounts {
    /// Amounts that cover every demand.
    pub const ALL: Self = Self([u64::MAX; AMOUNTS]);

    /// Amounts of a worker that lives for another `left_ms`; none: for ever.
    #[must_use]
    pub fn new(amounts: &ResourceAmounts, left_ms: Option<Millis>) -> Self {
        let ResourceAmounts { cpu_milli, memory_bytes, slots, gpu, gpu_milli } = *amounts;
        // A claim needs to end before its worker does.
        let needs_max_ms = left_ms.map_or(Millis::MAX, |left_ms| left_ms.saturating_sub(1));
        Self([cpu_milli, memory_bytes, slots, gpu, gpu_milli, needs_max_ms])
    }

    /// Free amounts of an offered worker.
    #[must_use]
    pub fn of(offer: &WorkerOffer) -> Self {
        Self::new(&offer.free, offer.left_ms)
    }

    /// Amounts left beside a claim of this demand; none if it does not fit.
    #[must_use]
    pub fn beside(&self, demand: &ClaimDemand) -> Option<Self> {
        let [cpu_milli, memory_bytes, slots, gpus, gpu_milli, needs_max_ms] = self.0;
        let cpu_milli = cpu_milli.checked_sub(demand.cpu_milli)?;
        let memory_bytes = memory_bytes.checked_sub(demand.memory_bytes)?;
        let slots = slots.checked_sub(demand.slots)?;
        // A share may take a GPU that was wholly free, and whole ones may leave no share.
        let gpus = gpus.checked_sub(demand.gpus + u64::from(demand.gpu_milli > 0)).or((gpus == 0).then_some(0))?;
        let gpu_milli = if demand.needs_gpu() && gpus == 0 { 0 } else { gpu_milli };
        Some(Self([cpu_milli, memory_bytes, slots, gpus, gpu_milli, needs_max_ms]))
    }

    fn cover(&self, amounts: &[u64; AMOUNTS]) -> bool {
        amounts.iter().zip(&self.0).all(|(needed, free)| needed <= free)
    }
}

/// Least of each amount over many claims, apart for those that need GPUs: otherwise one claim without a GPU would hide
/// that no other fits a worker without GPUs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LeastDemand {
    without_gpus: [u64; AMOUNTS],
    with_gpus: [u64; AMOUNTS],
}

impl Default for LeastDemand {
    fn default() -> Self {
        Self { without_gpus: [u64::MAX; AMOUNTS], with_gpus: [u64::MAX; AMOUNTS] }
    }
}

impl LeastDemand {
    /// Demand that everything covers.
    pub const NOTHING: Self = Self { without_gpus: [0; AMOUNTS], with_gpus: [0; AMOUNTS] };

    /// Demand of one claim.
    #[must_use]
    pub fn of(demand: &ClaimDemand) -> Self {
        let mut least = Self::default();
        *if demand.needs_gpu() { &mut least.with_gpus } else { &mut least.without_gpus } = demand.to_array();
        least
    }

    /// Takes the lesser of each amount.
    pub fn merge(&mut self, other: &Self) {
        let lower = |least: &mut [u64; AMOUNTS], other: &[u64; AMOUNTS]| {
            least.iter_mut().zip(other).for_each(|(least, other)| *least = (*least).min(*other));
        };
        lower(&mut self.without_gpus, &other.without_gpus);
        lower(&mut self.with_gpus, &other.with_gpus);
    }

    /// Returns false only if no claim of these fits.
    #[must_use]
    pub fn may_fit(&self, free: &FreeAmounts) -> bool {
        free.cover(&self.without_gpus) || free.cover(&self.with_gpus)
    }

    /// Returns false only if no claim of these fits the headroom of a quota.
    #[must_use]
    pub fn may_fit_quota(&self, headroom: &ResourceUsage) -> bool {
        let fits = |least: &[u64; AMOUNTS]| least[0] <= headroom.cpu_milli && least[1] <= headroom.memory_bytes;
        headroom.claims > 0 && (fits(&self.without_gpus) || fits(&self.with_gpus))
    }

    /// Least demand with these amounts, of claims without and with GPUs.
    #[must_use]
    pub const fn from_halves([without_gpus, with_gpus]: [[u64; AMOUNTS]; 2]) -> Self {
        Self { without_gpus, with_gpus }
    }

    /// Amounts of both halves, one after the other.
    #[must_use]
    pub fn halves(&self) -> [&[u64; AMOUNTS]; 2] {
        [&self.without_gpus, &self.with_gpus]
    }
}
