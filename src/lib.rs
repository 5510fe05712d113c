//! stub
#![warn(missing_docs)]
pub mod api;
pub mod catalogue;
pub mod clock;
pub mod config;
pub mod dispatch;
pub mod engine;
pub mod fence;
pub mod journal;
pub mod keys;
pub mod limits;
pub mod load;
pub mod metrics;
pub mod model;
pub mod pools;
pub mod recovery;
pub mod refusal;
pub mod router;
pub mod row;
pub mod scheduler;
pub mod service;
pub mod shard;
pub mod shutdown;
pub mod store;
pub mod telemetry;
