//! Data types of the domain: names, amounts, specifications, and pools, workers and claims as replies show them.

mod capacity;
mod claim;
pub mod claim_request;
mod demand;
mod explain;
pub mod hash_slot;
pub mod label_selector;
mod names;
mod pool;
mod quota;
pub mod request_error;
mod resource_vector;
mod strict;
mod unschedulable;
pub mod unschedulable_bits;
mod worker;

pub use capacity::*;
pub use claim::*;
pub use claim_request::ClaimRequest;
pub use demand::*;
pub use explain::*;
pub use names::*;
pub use pool::*;
pub use quota::*;
pub use resource_vector::*;
pub use strict::*;
pub use unschedulable::*;
pub use worker::*;

/// Milliseconds: engine time (monotonic, without pauses) or unix time, as the name says.
pub type Millis = u64;

/// Sequence number in a shard's stream of rows; 0 is before the first change.
pub type Seq = u64;

/// Fencing token that increases with every grant, also across restarts; below 2^53.
pub type Fence = u64;

/// Page of a listing: some rows, and the start of the next page.
#[derive(Debug, Clone, PartialEq)]
pub struct ListPage<T> {
    /// Rows of this page.
    pub items: Vec<T>,
    /// Opaque start of the next page; none on the last.
    pub next: Option<String>,
}
