//! Bin packing: the worker with enough free resources that a claim of a shared pool takes, and its GPUs.
//!
//! ```text
//! request -> fleet: groups of workers with equal free resources -> worker
//!            best fit: the lightest that fits   spread: the heaviest
//!            fgd: the one on which the least of the free GPUs becomes useless, by the typical mix
//!         -> GPUs                                                -> allocation
//! ```
//!
//! | file | contents |
//! |---|---|
//! | `free_resources` | free resources, requests, allocations; what fits; which GPUs |
//! | `pick` | the worker for a request |
//! | `total_free` | free resources of all workers together, and at most |
//! | `index_node` | bounds of a few vectors, in few cache lines |
//! | `free_index` | the lightest of all that fit |
//! | `fleet` | groups of workers with equal free resources; allocation and release |
//! | `request_mix` | the typical requests |
//! | `fragmentation` | GPU capacity that becomes useless |
//!
//! Every decision follows from the inputs and their order: equal weights are ordered by a hash of the free resources,
//! equal free resources by the worker's ordinal.

mod fleet;
mod fragmentation;
mod free_index;
mod free_resources;
mod index_node;
mod pick;
mod request_mix;
mod total_free;

pub use fleet::{FleetIndex, WorkerGroup};
pub use fragmentation::FragmentationScorer;
pub use free_resources::{
    FreeResources, GPU_MILLI, GpuMillis, GpuPacking, ModelId, NO_MODEL, ResourceAllocation, ResourceRequest,
    choose_gpus,
};
pub use pick::{FitStrategy, PlacementDecision};
pub use request_mix::{COVERAGE_PERCENT, RequestShape, most_frequent};
pub use total_free::{ResourceTotals, cores_per_gpu};
