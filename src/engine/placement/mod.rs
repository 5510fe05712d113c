//! Placement: the worker for a claim, by constraints, by class and by free resources.

pub mod bin_packing;
pub mod constraints;
pub(in crate::engine) mod eviction;
pub(in crate::engine) mod expiries;
pub(in crate::engine) mod idle_classes;
pub(in crate::engine) mod idle_queue;
pub mod offers;
pub(in crate::engine) mod reservations;
pub(in crate::engine) mod shared;
pub(in crate::engine) mod worker_classes;
