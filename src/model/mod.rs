//! The nouns: names, amounts, specs, and what the service says about pools, workers and claims.

mod capacity;
mod claim;
pub mod claim_request;
mod demand;
mod explain;
pub mod label_selector;
mod names;
mod pool;
mod quota;
pub mod request_error;
mod strict;
mod unschedulable;
pub mod unschedulable_bits;
mod worker;

pub use capacity::*;
pub use claim::*;
pub use demand::*;
pub use explain::*;
pub use names::*;
pub use pool::*;
pub use quota::*;
pub use strict::*;
pub use unschedulable::*;
pub use worker::*;

/// Milliseconds: engine time (monotonic, pauses taken out) or unix time, as the name says.
pub type Millis = u64;

/// Position in a shard's record stream; 0 is before the first change.
pub type Seq = u64;

/// Grows with every grant of the process, also across restarts; below 2^53.
pub type Fence = u64;

/// Page of a listing: some rows, and where the next page begins.
#[derive(Debug, Clone, PartialEq)]
pub struct ListPage<T> {
    /// The rows.
    pub items: Vec<T>,
    /// Opaque start of the next page; none on the last.
    pub next: Option<String>,
}
