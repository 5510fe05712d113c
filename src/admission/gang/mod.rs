//! Gangs: all of a call's claims or none, over shards and pools.
//!
//! ```text
//! keys' tickets -> members granted as provisional, stored -> home records the gang, stored: it is committed
//!               -> members are claims, stored -> home forgets the gang
//! ```
//!
//! Between the first and the second arrow a gang has the locks of its pools, so that gangs of one pool go one after
//! another and never block each other half-way. A crash is up to recovery (`crate::scheduler::recovery`). Replies are
//! durable whatever the pool's ack.
//!
//! | file | what it decides |
//! |---|---|
//! | `gang_claim`, `gang_event` | the call: attempts, the wait in between, the answer |
//! | `transaction` | the two-phase commit of an attempt whose members are granted, or its abort |
//! | `pool_locks`, `coordinator` | which gang is placed in a pool; all gangs together |
//! | `effects` | carries out what they decide |

mod coordinator;
mod effects;
mod gang_claim;
mod gang_event;
mod pool_locks;
mod transaction;

use std::sync::Arc;

use parking_lot::Mutex;

pub use self::coordinator::GangCoordinator;
pub(super) use self::effects::total_request;
pub use self::gang_event::{GangEvent, GangWait};
pub use self::transaction::{MemberGrant, TransactionMember};
use crate::shard::GangInbox;

/// Gangs of this process.
#[derive(Debug, Default)]
pub struct GangSet {
    /// State machine of them all; its lock is never held together with another one.
    coordinator: Mutex<GangCoordinator>,
    /// Reports of shards to gangs.
    pub inbox: Arc<GangInbox>,
}
