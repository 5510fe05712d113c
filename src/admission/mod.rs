//! Admission: decides which claims may run, in which order, and which shards search for their workers. Imports the
//! shards, which report to it by events ([`crate::shard::ShardSink`]) and never call it.

pub mod dispatch;
pub mod effect;
mod executor;
pub mod gang;
pub mod ids;
pub mod key;
pub mod lock_order;
pub mod plan;
pub mod pool_registry;
pub mod queue;
mod shard_events;
pub mod tenant;
