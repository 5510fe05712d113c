//! State machine of one key. Plain data: no clock, lock or task; every change is checked by ticket, fence or number, and
//! anything else is stale and changes nothing.
//!
//! ```text
//! vacant -> pending(ticket) -> held -> vacant
//! any -> poisoned (its step or its shard panicked) -> held or vacant, as the shards say
//! ```
//!
//! The entry *is* the claim in flight: while a shard is asked, the claim stays here, and the shard gets a call and
//! answers with the ticket. Requests that arrive while the key is pending wait as duplicates; requests that find it
//! held are kept as repeated claims until the holder's shard has answered them. So a shard that panics loses nobody.
//!
//! A *vacant* key can be claimed at once, but its entry keeps the records about the key that the store still lacks
//! ([`PendingWrite`]). A durable reply about the key waits for all of them, whichever shard sends it, and the next
//! holder inherits the list. So a crash can never restore an older holder after a durable reply has disclosed its end.
#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

use std::collections::VecDeque;
use std::sync::Arc;

use super::{EndedClaim, PendingClaim};
use crate::admission::queue::QueuedClaim;
use crate::admission::tenant::QuotaLease;
use crate::engine::ClaimHandle;
use crate::limits;
use crate::model::request_error::ExhaustionReason;
use crate::model::{ClaimSpec, Fence, Seq};
use crate::shard::{KeyTicket, PendingWrite, PendingWrites, ProtocolRule, ShardLife, ShardRef};

/// Holder of a key: the shard and the claim in it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct KeyHolder {
    /// Shard that holds the claim.
    pub shard: ShardRef,
    /// Life of the shard that numbered the claim.
    pub life: ShardLife,
    /// Handle of the claim in that shard.
    pub handle: ClaimHandle,
}

/// State of a key, with the quota that its claim uses.
#[derive(Debug)]
pub(super) enum KeyEntry {
    /// A claim is being placed, waits, is a member of a gang, or is reported by a worker.
    Pending(PendingKey),
    /// A claim holds the key.
    Held(HeldKey),
    /// No claim holds the key. The entry is kept while the store lacks records about it, or an end is remembered.
    Vacant(VacantKey),
    /// Key named by a row of a shard that does not serve, or by a gang member whose home does not. Quota is charged
    /// all the same.
    Unreadable {
        fence: Fence,
        /// Shard of the row that names the key.
        shard: ShardRef,
        _charge: QuotaLease,
    },
    /// Key whose step panicked, or whose shard did when it may have granted it: what the entry said is not trusted.
    Poisoned(PoisonedKey),
}

/// Key that is unavailable until the shards that may hold it have answered.
#[derive(Debug, Default)]
pub(super) struct PoisonedKey {
    pub pending_writes: PendingWrites,
    /// Claim that held the key before, or holds it by the step that panicked. Replies about it may be on their way.
    pub holder: Option<KeyHolder>,
    /// Claim that ended meanwhile without its holder.
    pub ended: Option<Box<EndedClaim>>,
    /// Quota that the key used before.
    pub _charge: Option<QuotaLease>,
}

/// Key that can be claimed at once.
#[derive(Debug, Default)]
pub(super) struct VacantKey {
    pub pending_writes: PendingWrites,
    /// Last claim of the key, if it ended without its holder.
    pub ended: Option<Box<EndedClaim>>,
}

impl VacantKey {
    /// Whether nothing about the key is left to remember.
    pub fn is_forgotten(&self) -> bool {
        self.pending_writes.is_empty() && self.ended.is_none()
    }
}

/// Key that is being decided.
#[derive(Debug)]
pub(super) struct PendingKey {
    pub ticket: KeyTicket,
    pub stage: PendingStage,
    pub duplicates: WaitingDuplicates,
    /// Part that the key keeps if the claim is not granted.
    pub vacant: VacantKey,
    /// Quota of the claim; `None` while the quota is used up, the claim stands still, or it is about to be adopted.
    pub charge: Option<QuotaLease>,
    /// Entry of the claim in the wait queues, while it is in them.
    pub queued: Option<Box<QueuedKey>>,
}

/// Whereabouts of the claim of a pending key.
#[derive(Debug)]
pub(super) enum PendingStage {
    /// In the hands of the thread that decides its next step, or of the gang that it belongs to.
    InTransit,
    /// In the entry, while this shard is asked.
    Asking(Box<PendingClaim>, ShardRef),
    /// In the entry, while it stands still: nobody tries it until it is offered something.
    Waiting(Box<PendingClaim>),
}

/// Entry of a pending claim in the wait queues.
#[derive(Debug)]
pub(super) struct QueuedKey {
    pub claim: Arc<QueuedClaim>,
    /// Why the last search found nothing.
    pub exhausted: ExhaustionReason,
}

/// Requests that wait for a pending key. Boxed, because there are almost never any and every entry of the directory
/// reserves the space.
#[allow(clippy::box_collection, reason = "8 bytes an entry instead of 32")]
pub(super) type WaitingDuplicates = Option<Box<VecDeque<Box<PendingClaim>>>>;

/// Repeated claims that wait for an answer of the holder's shard, by number. Boxed like [`WaitingDuplicates`].
#[allow(clippy::box_collection, reason = "8 bytes an entry instead of 32")]
pub(super) type RepeatedClaims = Option<Box<VecDeque<(u64, Box<PendingClaim>)>>>;

/// Key that a claim holds.
#[derive(Debug)]
pub(super) struct HeldKey {
    pub holder: KeyHolder,
    pub pending_writes: PendingWrites,
    pub charge: QuotaLease,
    /// Repeated claims that the holder's shard has not answered, each with its number.
    pub repeated: RepeatedClaims,
}

impl PendingKey {
    /// Key whose claim is in the hands of the caller.
    pub fn in_transit(ticket: KeyTicket, charge: Option<QuotaLease>, vacant: VacantKey) -> Self {
        Self { ticket, stage: PendingStage::InTransit, duplicates: None, vacant, charge, queued: None }
    }

    /// Whether the ticket is that of the present attempt: an answer to any other is stale.
    pub fn has_ticket(&self, ticket: KeyTicket) -> bool {
        self.ticket == ticket || !ProtocolRule::TicketCheck.holds()
    }

    /// Adds a request that waits for the decision.
    ///
    /// # Errors
    /// Returns the request if as many wait already as may.
    pub fn add_duplicate(&mut self, claim: Box<PendingClaim>) -> Result<(), Box<PendingClaim>> {
        let duplicates = self.duplicates.get_or_insert_default();
        if duplicates.len() >= limits::WAITING_DUPLICATES_MAX {
            duplicates.retain(|duplicate| !duplicate.reply.is_abandoned());
        }
        if duplicates.len() >= limits::WAITING_DUPLICATES_MAX {
            return Err(claim);
        }
        duplicates.push_back(claim);
        Ok(())
    }

    /// Takes the oldest duplicate that still listens.
    pub fn next_duplicate(&mut self) -> Option<Box<PendingClaim>> {
        let duplicates = self.duplicates.as_mut()?;
        while duplicates.front().is_some_and(|duplicate| duplicate.reply.is_abandoned()) {
            duplicates.pop_front();
        }
        duplicates.pop_front()
    }

    /// Takes the duplicates that fail `keep`.
    #[allow(clippy::vec_box, reason = "claims stay boxed from entry to entry")]
    pub fn take_duplicates(&mut self, keep: impl FnMut(&Box<PendingClaim>) -> bool) -> Vec<Box<PendingClaim>> {
        let Some(duplicates) = &mut self.duplicates else { return Vec::new() };
        let (kept, taken): (Vec<_>, Vec<_>) = duplicates.drain(..).partition(keep);
        **duplicates = kept.into();
        taken
    }

    /// Takes the claim if it stands still.
    pub fn take_waiting(&mut self) -> Option<Box<PendingClaim>> {
        match std::mem::replace(&mut self.stage, PendingStage::InTransit) {
            PendingStage::Waiting(claim) => Some(claim),
            other => {
                self.stage = other;
                None
            }
        }
    }

    /// Takes the claim that a shard was asked for.
    pub fn withdraw(&mut self) -> Option<Box<PendingClaim>> {
        match std::mem::replace(&mut self.stage, PendingStage::InTransit) {
            PendingStage::Asking(claim, _) => Some(claim),
            other => {
                self.stage = other;
                None
            }
        }
    }
}

impl HeldKey {
    /// Whether the claim with this fence holds the key.
    pub fn has_fence(&self, fence: Fence) -> bool {
        self.holder.handle.fence == fence || !ProtocolRule::FenceCheck.holds()
    }

    /// Keeps a repeated claim until the holder's shard has answered it.
    pub fn add_repeated(&mut self, number: u64, claim: Box<PendingClaim>) {
        self.repeated.get_or_insert_default().push_back((number, claim));
    }

    /// Takes a repeated claim that was answered.
    pub fn take_repeated(&mut self, number: u64) -> Option<Box<PendingClaim>> {
        let repeated = self.repeated.as_mut()?;
        let index = repeated.iter().position(|(other, _)| *other == number)?;
        let (_, claim) = repeated.remove(index)?;
        if repeated.is_empty() {
            self.repeated = None;
        }
        Some(claim)
    }

    /// Takes all repeated claims, because the holder is gone.
    #[allow(clippy::vec_box, reason = "claims stay boxed from entry to entry")]
    pub fn take_all_repeated(&mut self) -> Vec<Box<PendingClaim>> {
        self.repeated.take().map_or_else(Vec::new, |repeated| repeated.into_iter().map(|(_, claim)| claim).collect())
    }

    /// Charges as if the claim had grown to `spec`, while a shard decides whether it does.
    ///
    /// # Errors
    /// The resource that would exceed the tenant's quota; nothing changed.
    pub fn begin_resize(&mut self, spec: &ClaimSpec) -> Result<(), crate::model::QuotaResource> {
        self.charge.begin_resize(spec)
    }

    /// Charges for what the claim holds after the decision; `None` if it did not change.
    pub fn end_resize(&mut self, spec: Option<Option<Arc<ClaimSpec>>>) {
        self.charge.end_resize(spec);
    }
}

impl KeyEntry {
    /// Records that the store lacks, in any state that has them.
    pub fn pending_writes_mut(&mut self) -> Option<&mut PendingWrites> {
        match self {
            Self::Pending(PendingKey { vacant, .. }) | Self::Vacant(vacant) => Some(&mut vacant.pending_writes),
            Self::Held(held) => Some(&mut held.pending_writes),
            Self::Poisoned(poisoned) => Some(&mut poisoned.pending_writes),
            Self::Unreadable { .. } => None,
        }
    }

    /// Records that the store lacks.
    pub fn pending_writes(&self) -> PendingWrites {
        match self {
            Self::Pending(PendingKey { vacant, .. }) | Self::Vacant(vacant) => vacant.pending_writes.clone(),
            Self::Held(held) => held.pending_writes.clone(),
            Self::Poisoned(poisoned) => poisoned.pending_writes.clone(),
            Self::Unreadable { .. } => PendingWrites::new(),
        }
    }

    /// Adds a record that the store lacks.
    pub fn add_pending_write(&mut self, write: PendingWrite) {
        if let Some(writes) = self.pending_writes_mut() {
            writes.add(write);
        }
    }

    /// Clears records of `shard` up to `seq`, which the store now has. Returns whether nothing is left to remember.
    pub fn clear_pending_write(&mut self, shard: ShardRef, seq: Seq) -> bool {
        if let Some(writes) = self.pending_writes_mut() {
            writes.retain(|write| write.shard != shard || write.seq > seq);
        }
        matches!(self, Self::Vacant(vacant) if vacant.is_forgotten())
    }
}
