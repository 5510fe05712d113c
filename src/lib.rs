//! Hotpool assigns work to warm workers from memory, and records every decision in a store without waiting for it.
//!
//! ```text
//! api -> scheduler -> keys -> dispatch, router -> shard port ==bounded ring==> shard actor -> engine::Shard
//!  ^      (facade)  (who holds) (where to try)                                  (ractor)        (pure)
//!  +----------------------------- reply <-------------------------------------------+ effects, changed rows
//!                    store::{memory, redb, redis} <- journal <- outbox <--------------------+
//!                           +-> recovery: rows -> engine::Replay -> Shard, before any ring opens
//! ```
//!
//! One rule explains the tree: [`engine`] decides, [`shard`] executes, [`journal`] remembers, [`api`] translates.
//! A request goes down this picture and its answer comes back. The modules do not all import in that direction only:
//! [`choice`], [`dispatch`], [`keys`], [`pools`], [`remembered`], [`router`], [`shard`], [`tenants`], [`waiters`] and
//! [`watch`] use each other in a circle. It is a library first: [`scheduler::Scheduler`] over a [`store::Store`] is the
//! whole service without its edge.
//!
//! In the order in which a request meets them: [`api`], [`scheduler`], [`keys`], [`tenants`], [`waiters`], [`dispatch`], [`router`], [`pools`],
//! [`shard`], [`engine`]; then [`row`], [`journal`], [`store`], [`ownership`], [`catalogue`], [`recovery`], [`adoption`],
//! [`remembered`]. Around them:
//! [`model`], [`selector`] and [`refusal`] (the nouns, which of them, the ways to say no), [`limits`], [`fence`],
//! [`clock`], [`metrics`], [`config`], [`service`] and [`cli`], the client commands. The harness is a package of its own in `src/load`.
#![warn(missing_docs)]

pub mod adoption;
pub mod api;
pub mod ask;
pub mod caller;
pub mod catalogue;
pub mod choice;
pub mod cli;
pub mod clock;
pub mod config;
pub mod dispatch;
pub mod engine;
pub mod fence;
pub mod journal;
pub mod keys;
pub mod limits;
pub mod metrics;
pub mod model;
pub mod ownership;
pub mod pools;
pub mod recovery;
pub mod refusal;
pub mod remembered;
pub mod router;
pub mod row;
pub mod scheduler;
pub mod selector;
pub mod service;
pub mod shard;
pub mod shutdown;
pub mod signals;
pub mod store;
pub mod telemetry;
pub mod tenants;
pub mod waiters;
pub mod watch;
