//! Which worker has room for a share, and which of those that have it gives it.
//!
//! ```text
//! need -> fleet: groups of workers with equal rooms -> worker
//!         best fit: the lightest that fits   spread: the heaviest
//!         fgd: the one of whose idle cards the fewest become useless, by the typical mix
//!      -> cards                                     -> share
//! ```
//!
//! | file | question it answers |
//! |---|---|
//! | `room` | what is left, what is needed, does it fit, which cards |
//! | `pick` | which of those workers a need takes |
//! | `left` | what is left of all workers together, and at most |
//! | `node` | bounds of a few rooms, in few cache lines |
//! | `order` | which is the lightest of all that fit |
//! | `fleet` | which workers have equal rooms; what is taken and given back |
//! | `mix` | what is usually asked |
//! | `fgd` | how much idle capacity becomes useless |
//!
//! Everything here is decided by what was put in, in which order: equal weights are told apart by a hash of the room,
//! equal rooms by the worker's ordinal.

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
    Cards, FreeResources, GPU_MILLI, GpuPacking, ModelId, NO_MODEL, ResourceAllocation, ResourceRequest, choose_gpus,
};
pub use pick::{FitStrategy, PlacementDecision};
pub use request_mix::{COVERAGE_PERCENT, RequestShape, most_frequent};
pub use total_free::{MaxFree, ResourceTotals, cores_per_gpu};
