//! Gangs of which it is not known whether they are committed: a step of theirs was not answered, or their home cannot be
//! read. Their workers and keys are kept until it is known.

use parking_lot::MutexGuard;

use super::ClaimDispatcher;
use crate::admission::key_directory::{KeyTicket, ShardRef};
use crate::model::GangRef;
use crate::model::{ClaimId, Fence};

/// A gang in doubt.
#[derive(Debug)]
pub struct InDoubtGang {
    /// The gang, and where its record is, if there is one.
    pub home: GangRef,
    /// Claims that were granted for it.
    pub members: Vec<InDoubtMember>,
}

/// A member of a gang in doubt.
#[derive(Debug)]
pub struct InDoubtMember {
    /// Key of the claim.
    pub id: ClaimId,
    /// Right to decide for the key; none after a restart, which makes the key unreadable.
    pub ticket: Option<KeyTicket>,
    /// Shard that holds the claim.
    pub shard: ShardRef,
    /// Number of the grant.
    pub fence: Fence,
}

impl InDoubtGang {
    /// The shards that hold its members, each once.
    #[must_use]
    pub fn shards(&self) -> Vec<ShardRef> {
        let mut shards: Vec<ShardRef> = self.members.iter().map(|member| member.shard).collect();
        shards.sort_unstable();
        shards.dedup();
        shards
    }
}

impl ClaimDispatcher {
    /// Gangs that cannot be decided before a restart, or until the pool of their home is deleted.
    pub fn gangs_in_doubt(&self) -> MutexGuard<'_, Vec<InDoubtGang>> {
        self.gangs_in_doubt.lock()
    }
}
