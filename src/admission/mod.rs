//! Admission: decides which claims may run, in which order, and which shards search for their workers.
//!
//! Shards and this layer still call each other (see the exceptions of the layer test). Everything below imports
//! neither.

pub mod adoption;
pub mod candidate_plan;
pub mod capacity_board;
pub mod dispatch;
pub mod ended_claims;
pub mod key_directory;
pub mod pool_registry;
pub mod quota_accounting;
pub mod wait_queue;
