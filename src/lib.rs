//! Hotpool assigns work to warm workers from memory, and records every decision in a store without waiting for it.
//!
//! ```text
//! cli      commands for people and scripts: clients of a running service
//! server   the process: configuration, start and stop, signals, logs
//! api      HTTP, gRPC and RESP: translate requests and answers, decide nothing
//! scheduler   the facade: claims, workers, pools, quotas, queries, recovery, ownership of the store
//! admission | shard   who may have a claim, in which order and where | runs one engine, carries out its effects
//! engine   pure: one shard's workers, claims and placement
//! persist | events   rows, journal, stores, catalog, fences | what watchers of a pool see
//! client, metrics, clock   typed client of the HTTP API, every metric, time
//! model, limits   the nouns and their checks, bounds
//! ```
//!
//! Imports point down this picture; `tests/docs.rs` holds them to it, with the exceptions that it lists. [`engine`]
//! decides, [`shard`] executes, [`persist`] remembers, [`api`] translates. The crate is a library first:
//! [`scheduler::Scheduler`] over a [`persist::store::Store`] is the whole service without its edges.
#![warn(missing_docs)]

pub mod admission;
pub mod api;
pub mod cli;
pub mod client;
pub mod clock;
pub mod engine;
pub mod events;
pub mod limits;
pub mod metrics;
pub mod model;
pub mod persist;
pub mod scheduler;
pub mod server;
pub mod shard;
