//! Admission: who may have a claim, in which order, and where the search for a worker goes.
//!
//! Shards and this layer still call each other (see the exceptions of the layer test); everything below imports neither.

pub mod adoption;
pub mod candidate_plan;
pub mod capacity_board;
pub mod dispatch;
pub mod ended_claims;
pub mod key_directory;
pub mod pool_registry;
pub mod tenants;
pub mod wait_queue;
