//! Placement: which worker a claim is given, by constraints, by class and by free capacity.

pub mod bin_packing;
pub mod constraints;
pub(in crate::engine) mod expiries;
pub(in crate::engine) mod idle_classes;
pub(in crate::engine) mod idle_queue;
pub(in crate::engine) mod reservations;
pub(in crate::engine) mod shared;
pub(in crate::engine) mod worker_classes;
