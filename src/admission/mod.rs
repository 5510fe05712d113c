//! Admission: who may have a claim, in which order, and where the search for a worker goes.
//!
//! Shards and this layer still call each other (see the exceptions of the layer test); everything below imports neither.

pub mod adoption;
pub mod choice;
pub mod dispatch;
pub mod keys;
pub mod pools;
pub mod remembered;
pub mod router;
pub mod tenants;
pub mod waiters;
