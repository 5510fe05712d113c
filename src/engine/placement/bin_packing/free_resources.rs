//! Free resources of a worker, requests, allocations, and the choice of GPUs.

use std::hash::{Hash as _, Hasher as _};

use smallvec::SmallVec;
use xxhash_rust::xxh3::Xxh3;

use crate::model::{Millis, ResourceVector, WorkerCapacity};

/// Thousandths of a whole GPU.
pub const GPU_MILLI: u16 = 1_000;

/// Number of a GPU model within its [`super::FleetIndex`]; [`NO_MODEL`] for a worker without GPUs.
pub type ModelId = u16;

/// Model number of workers without GPUs.
pub const NO_MODEL: ModelId = 0;

/// Free thousandths of each GPU.
pub type GpuMillis = SmallVec<[u16; 8]>;

/// Free resources of a worker. Workers with equal ones are interchangeable in every placement decision.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub struct FreeResources {
    /// Class that separates its worker from others with equal amounts; 0: none.
    pub class_id: u32,
    /// Model of its GPUs.
    pub model: ModelId,
    /// Free thousandths of cores.
    pub cpu_milli: u64,
    /// Free bytes of memory.
    pub memory_bytes: u64,
    /// Free slots of the worker.
    pub slots: u64,
    /// Free thousandths of each GPU, largest first. Their numbers are known to the worker only.
    pub gpus: GpuMillis,
}

/// Resources that a claim needs of one worker: a fraction of one GPU, or some whole GPUs, or none.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub struct ResourceRequest {
    /// Requested thousandths of cores.
    pub cpu_milli: u64,
    /// Requested bytes of memory.
    pub memory_bytes: u64,
    /// Requested slots of the worker.
    pub slots: u64,
    /// Number of GPUs; 0: none needed.
    pub gpu_count: u16,
    /// Thousandths of each GPU: 1 to 1000; 1000 if `gpu_count` is above 1; 0 if it is 0.
    pub gpu_milli: u16,
    /// Acceptable GPU models; empty: any.
    pub models: SmallVec<[ModelId; 4]>,
    /// Engine time beyond which the worker must live.
    pub until_ms: Millis,
}

/// Resources that one claim holds of its worker.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct ResourceAllocation {
    /// Allocated thousandths of cores.
    pub cpu_milli: u64,
    /// Allocated bytes of memory.
    pub memory_bytes: u64,
    /// Allocated slots of the worker.
    pub slots: u64,
    /// Allocated thousandths of each of its GPUs.
    pub gpu_milli: u16,
    /// Allocated GPUs: bit `i` stands for GPU `i` of the worker.
    pub gpu_mask: u64,
}

impl FreeResources {
    /// Capacity of a worker without allocations.
    #[must_use]
    pub fn unallocated(capacity: &WorkerCapacity, model: ModelId) -> Self {
        let count = capacity.gpu.as_ref().map_or(0, |gpu| gpu.count as usize);
        Self {
            class_id: 0,
            model,
            cpu_milli: capacity.cpu_milli,
            memory_bytes: capacity.memory_bytes,
            slots: capacity.slots,
            gpus: SmallVec::from_elem(GPU_MILLI, count),
        }
    }

    /// Free thousandths of all GPUs together.
    #[must_use]
    pub fn free_gpu_milli(&self) -> u32 {
        self.gpus.iter().map(|&milli| u32::from(milli)).sum()
    }

    /// Number of wholly free GPUs.
    #[must_use]
    pub fn idle_gpus(&self) -> u16 {
        self.gpus.iter().take_while(|&&milli| milli == GPU_MILLI).count() as u16
    }

    /// Whether the request fits, its models aside.
    #[must_use]
    pub fn fits(&self, request: &ResourceRequest) -> bool {
        self.cpu_milli >= request.cpu_milli
            && self.memory_bytes >= request.memory_bytes
            && self.slots >= request.slots
            && (request.gpu_count == 0
                || self.gpus.get(request.gpu_count as usize - 1).is_some_and(|&milli| milli >= request.gpu_milli))
    }

    /// Free amounts, the GPUs together.
    #[must_use]
    pub fn amounts(&self) -> ResourceVector {
        let Self { cpu_milli, memory_bytes, slots, .. } = *self;
        ResourceVector { cpu_milli, memory_bytes, slots, gpu_milli: self.free_gpu_milli().into() }
    }

    /// Free amounts in one number ([`ResourceVector::weight`]).
    ///
    /// A claim takes the same off the weight on every worker, so "leaves the least behind" is the smallest weight
    /// among those that fit: an order that does not depend on the request, which makes an index possible.
    #[must_use]
    pub fn weight(&self) -> u64 {
        // At most 2^53 + 2^31 + 1000 * 2^53 + 2^20: no sum overflows.
        self.amounts().weight()
    }

    /// Position in the index, near vectors with similar amounts of everything. A point of a Z-order curve (Morton,
    /// 1966) through cores, memory, slots and GPUs, each by its logarithm in quarters.
    #[must_use]
    pub(super) fn zorder_key(&self) -> u32 {
        // Eight bits, spread to every fourth.
        let spread = |amount: u64| {
            let x = quarter_log2(amount);
            let x = (x | x << 12) & 0x000f_000f;
            let x = (x | x << 6) & 0x0303_0303;
            (x | x << 3) & 0x1111_1111
        };
        spread(self.cpu_milli)
            | spread(self.memory_bytes >> 20) << 1
            | spread(u64::from(self.free_gpu_milli())) << 2
            | spread(self.slots) << 3
    }

    /// Hash that is equal for equal vectors on every machine: orders those of equal weight.
    #[must_use]
    pub fn fingerprint(&self) -> u64 {
        let mut hasher = Xxh3::new();
        (self.model, self.cpu_milli, self.memory_bytes, self.slots).hash(&mut hasher);
        self.gpus.hash(&mut hasher);
        if self.class_id != 0 {
            self.class_id.hash(&mut hasher);
        }
        hasher.finish()
    }

    /// Weight and fingerprint in one number: the weight if it is below 2^34, else its first 34 bits; then the first
    /// 24 bits of the fingerprint.
    #[must_use]
    pub fn sort_key(&self, fingerprint: u64) -> u64 {
        const BITS: u32 = 34;
        let weight = self.weight();
        let short = match weight.checked_ilog2() {
            Some(log) if log >= BITS => {
                let beyond = log - BITS + 1;
                (u64::from(beyond) << (BITS - 1)) + (weight >> beyond)
            }
            _ => weight,
        };
        short << 24 | fingerprint >> 40
    }

    /// Free resources after a request that fits is allocated, with a GPU fraction taken from one with `gpu_free_milli`
    /// free.
    #[must_use]
    pub fn after_allocating(&self, request: &ResourceRequest, gpu_free_milli: u16) -> Self {
        debug_assert!(self.fits(request), "L1: a request is allocated that does not fit");
        let mut free = self.clone();
        free.cpu_milli -= request.cpu_milli;
        free.memory_bytes -= request.memory_bytes;
        free.slots -= request.slots;
        allocate_gpus(&mut free.gpus, request, gpu_free_milli);
        free
    }
}

/// Logarithm to base two in quarters: the exponent and the two bits after the leading one. At most 255.
const fn quarter_log2(amount: u64) -> u32 {
    match amount {
        0..4 => amount as u32,
        _ => {
            let exponent = amount.ilog2();
            exponent * 4 - 4 + (amount >> (exponent - 2)) as u32 - 4
        }
    }
}

/// Allocates a request from GPUs that are sorted, largest first, and keeps them sorted.
pub(super) fn allocate_gpus(gpus: &mut GpuMillis, request: &ResourceRequest, free_milli: u16) {
    debug_assert!(gpus.is_sorted_by(|first, second| first >= second), "L1: free GPUs are out of order");
    match request.gpu_count {
        0 => {}
        1 => {
            let at = gpus.iter().position(|&milli| milli == free_milli).expect("L1: a GPU with this much free");
            gpus[at] -= request.gpu_milli;
            let remaining = gpus[at];
            let end = gpus[at..].iter().position(|&milli| milli < remaining).map_or(gpus.len(), |beyond| at + beyond);
            gpus[at..end].rotate_left(1);
        }
        count => {
            // Wholly free GPUs are the first ones.
            gpus[..count as usize].fill(0);
            gpus.rotate_left(count as usize);
        }
    }
}

/// Choice among the GPUs of a worker on which a fraction fits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum GpuPacking {
    /// Fullest GPU that fits.
    Fullest,
    /// Emptiest GPU that fits.
    Emptiest,
}

impl GpuPacking {
    /// Free thousandths of the GPU to take from, among GPUs sorted largest first. The request must fit.
    #[must_use]
    pub fn free_milli_of_pick(self, gpus: &[u16], request: &ResourceRequest) -> u16 {
        let fitting = || gpus.iter().copied().take_while(|&milli| milli >= request.gpu_milli);
        match (request.gpu_count, self) {
            (1, Self::Fullest) => fitting().last().unwrap_or(0),
            (1, Self::Emptiest) => fitting().next().unwrap_or(0),
            (0, _) => 0,
            _ => GPU_MILLI,
        }
    }
}

/// GPUs that a request takes, in the worker's order: those with the lowest numbers that have `free_milli` free. None:
/// there are too few.
#[must_use]
pub fn choose_gpus(gpus: &[u16], request: &ResourceRequest, free_milli: u16) -> Option<u64> {
    debug_assert!(gpus.len() <= u64::BITS as usize, "L1: a mask has a bit for each GPU");
    let mut chosen = 0_u64;
    let mut missing = request.gpu_count;
    for (at, &milli) in gpus.iter().enumerate() {
        if missing > 0 && milli == free_milli {
            chosen |= 1 << at;
            missing -= 1;
        }
    }
    (missing == 0).then_some(chosen)
}

impl ResourceRequest {
    /// Allocation of the request with these GPUs.
    #[must_use]
    pub const fn allocation(&self, gpu_mask: u64) -> ResourceAllocation {
        ResourceAllocation {
            cpu_milli: self.cpu_milli,
            memory_bytes: self.memory_bytes,
            slots: self.slots,
            gpu_milli: self.gpu_milli,
            gpu_mask,
        }
    }
}
