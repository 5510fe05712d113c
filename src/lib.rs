//! Hotpool assigns work to warm workers from memory, and records every decision in a store, by default before the answer leaves.
//!
//! ```text
//! cli      commands for people and scripts: clients of a running service
//! server   the process: configuration, start and stop, signals, logs
//! api      HTTP, gRPC and RESP: translate requests and answers, decide nothing
//! scheduler   the facade: claims, workers, pools, quotas, queries, recovery, ownership of the store
//! admission | shard   who may have a claim, in which order and where | runs one engine, carries out its effects
//! engine   pure: one shard's workers, claims and placement
//! persist | events   rows, journal, stores, catalog, fences | what watchers of a pool see
//! client, metrics, environment   typed client of the HTTP API, every metric, what is handed in
//! model, limits, collections   the nouns and their checks, bounds, hash maps
//! ```
//!
//! Imports point down this picture; `tests/docs.rs` holds them to it, with the exceptions that it lists. [`engine`]
//! decides, [`shard`] executes, [`persist`] remembers, [`api`] translates. The crate is a library first:
//! [`scheduler::Scheduler`] over a [`persist::store::Store`] is the whole service without its edges.
//!
//! # Embedding
//!
//! With `default-features = false` the crate is the scheduler on the embedded store ([`persist::store::file`]) or the
//! memory store. The feature `redis` adds the Redis store, `client` the typed client of the HTTP API, `server` the edges
//! and the service, `cli` the program. What `internals` opens is for the tests and benches of this repository and may
//! change at any time.
//!
#![doc = concat!("```\n", include_str!("../docs/examples/embed.rs"), "```")]
#![warn(missing_docs)]
// What is taken from outside the state of the process is handed in ([`environment::Environment`]).
#![cfg_attr(not(test), deny(clippy::disallowed_methods))]
// What only tests, benches and the harness use is reached through the feature `internals`.
#![cfg_attr(not(all(feature = "internals", feature = "cli")), allow(dead_code, unused_imports))]

#[cfg(feature = "internals")]
#[doc(hidden)]
pub mod admission;
#[cfg(not(feature = "internals"))]
mod admission;
#[cfg(all(feature = "server", feature = "internals"))]
#[doc(hidden)]
pub mod api;
#[cfg(all(feature = "server", not(feature = "internals")))]
mod api;
#[cfg(feature = "cli")]
pub mod cli;
#[cfg(feature = "client")]
pub mod client;
pub mod collections;
#[doc(hidden)]
pub mod coverage;
#[cfg(feature = "internals")]
#[doc(hidden)]
pub mod engine;
#[cfg(not(feature = "internals"))]
mod engine;
pub mod environment;
pub mod events;
pub mod limits;
pub mod metrics;
pub mod model;
pub mod persist;
pub mod scheduler;
#[cfg(feature = "server")]
pub mod server;
#[cfg(feature = "internals")]
#[doc(hidden)]
pub mod shard;
#[cfg(not(feature = "internals"))]
mod shard;
