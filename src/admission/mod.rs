//! Admission: decides which claims may run, in which order, and which shards search for their workers.
//!
//! Shards and this layer still call each other (see the exceptions of the layer test). Everything below imports
//! neither.

pub mod dispatch;
pub mod key;
pub mod plan;
pub mod pool_registry;
pub mod queue;
pub mod tenant;
