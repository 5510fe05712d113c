//! Gangs whose commit is in doubt: a write was not answered, or their home cannot be read. Their workers and keys are
//! kept until the outcome is known.

use parking_lot::MutexGuard;

use super::ClaimDispatcher;
use crate::model::GangRef;
use crate::model::{ClaimId, Fence};
use crate::shard::{KeyTicket, ShardRef};

/// Gang whose outcome is unknown.
#[derive(Debug)]
pub struct InDoubtGang {
    /// Identity of the gang, and the shard of its record, if it has one.
    pub home: GangRef,
    /// Claims that were granted for the gang.
    pub members: Vec<InDoubtMember>,
}

/// Member of a gang in doubt.
#[derive(Debug)]
pub struct InDoubtMember {
    /// Key of the member's claim.
    pub id: ClaimId,
    /// Ticket of the pending key; `None` after a restart, which makes the key unreadable.
    pub ticket: Option<KeyTicket>,
    /// Shard that holds the claim.
    pub shard: ShardRef,
    /// Fence of the provisional grant.
    pub fence: Fence,
}

impl InDoubtGang {
    /// Shards that hold members, each listed once.
    #[must_use]
    pub fn shards(&self) -> Vec<ShardRef> {
        let mut shards: Vec<ShardRef> = self.members.iter().map(|member| member.shard).collect();
        shards.sort_unstable();
        shards.dedup();
        shards
    }
}

impl ClaimDispatcher {
    /// Gangs that stay undecided until a restart, or until the pool of their home is deleted.
    pub fn gangs_in_doubt(&self) -> MutexGuard<'_, Vec<InDoubtGang>> {
        self.gangs_in_doubt.lock()
    }
}
