//! Wait queues: claims that wait for capacity of a pool, or for their tenant's quota.
//!
//! A claim without a worker enters the queue of each candidate pool. It stays in the entry of its key
//! ([`crate::admission::key`]); a queue is an index of such claims ([`WaitQueue`]), under a lock ([`PoolQueue`]). Whoever
//! frees something of a worker asks the queue in the same run, before it decides anybody else's claim: the best-ranked
//! claim that fits is tried on that worker at once. Three rules make that exact (`Q05`):
//!
//! 1. *Publish, then look*: a run publishes what came free before it looks whether anybody waits.
//! 2. *Queue, then search*: a claim that enters the queues is searched for once more afterwards. A worker that comes free
//!    meanwhile and that nobody else takes is offered again once the claim stands still.
//! 3. *Match, then decide*: what came free is offered to those who wait before any other claim is decided.
//!
//! So a claim that stands still is never passed by one of a lower rank, and never forgotten. One that is being tried may
//! be passed, for microseconds.
//!
//! | file | what it holds |
//! |---|---|
//! | `wait_queue`, `queued_claim`, `rank_tree`, `least_demand`, `request_class` | the index: pure |
//! | `reservations` | capacity that is kept for claims that wait: pure |
//! | `pool_queue` | the lock of a queue, and what it publishes |
//! | `claim_wait`, `entry`, `matching`, `search` | a claim enters, is offered something, is searched for once more |
//! | `deadlines`, `closing` | the end of a wait without a worker |
//! | `preemption`, `gang`, `gang_preemption` | who gets reservations; gangs that wait |
//! | `own_eviction` | evictions within a tenant, under its quota |
//! | `demand`, `views`, `listing`, `gang_directory` | what others see of it |

mod claim_wait;
mod closing;
mod deadlines;
mod demand;
mod entry;
mod gang;
mod gang_directory;
mod gang_preemption;
mod least_demand;
mod listing;
mod matching;
mod own_eviction;
mod pool_queue;
mod preemption;
mod queued_claim;
mod rank_tree;
mod request_class;
mod reservations;
mod row_table;
mod search;
mod views;
mod wait_queue;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use crossbeam::queue::SegQueue;
use parking_lot::Mutex;

pub use self::claim_wait::WaitState;
use self::deadlines::WaitDeadlines;
pub use self::gang::{LastAttempt, WaitingGang};
use self::gang_directory::GangDirectory;
pub use self::listing::{ListingStep, WaitingFilter, WaitingListing, WaitingPosition};
use self::own_eviction::OwnEvictions;
pub use self::pool_queue::{PoolQueue, QueueAhead};
pub use self::queued_claim::{ArrivalNumber, QueuedClaim};
pub use self::request_class::RequestClass;
pub use self::wait_queue::{OfferVerdict, WaitQueue};
use crate::admission::pool_registry::Pool;
use crate::admission::tenant::Tenant;

/// State common to all wait queues.
#[derive(Debug, Default)]
pub struct WaitQueues {
    /// Times at which claims that wait, and duplicates of such claims, are looked at.
    deadlines: WaitDeadlines,
    /// Gangs that wait, for queries.
    gangs: Mutex<GangDirectory>,
    /// Claims that are searched for on later ticks, the earliest first: a shard could not be asked, or the specification of
    /// their pool has changed.
    rechecks: Mutex<BTreeMap<ArrivalNumber, Arc<QueuedClaim>>>,
    /// Evictions for claims that the quotas of their tenants keep back.
    own_evictions: Mutex<OwnEvictions>,
    /// Tenants with a claim that is protected from others of its tenant.
    protected: Mutex<Vec<Arc<Tenant>>>,
    /// Engine time at which starved claims are sought next.
    starved_check_ms: AtomicU64,
    /// Pools with reservations whose claims have left.
    unassigned: SegQueue<Arc<Pool>>,
}
