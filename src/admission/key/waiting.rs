//! Keys whose claims are in the wait queues. Such a claim is either *tried* (a shard is asked, or a thread decides its next
//! step) or *stands still*. One that is being tried takes no offer; a worker that it may fit is offered again once its queues know
//! that it stands still: so none is lost, and from then on it is never passed.

use std::sync::Arc;

use super::PendingClaim;
use super::directory::KeyDirectory;
use super::entry::{KeyEntry, PendingKey, PendingStage, QueuedKey};
use crate::admission::lock_order::{self, LockLevel};
use crate::admission::queue::{OfferVerdict, QueuedClaim};
use crate::model::request_error::ExhaustionReason;
use crate::model::{ClaimId, Millis};
use crate::shard::{ClaimCall, KeyTicket, ShardRef};

/// State of a claim after a search that found nothing.
#[derive(Debug)]
pub enum SettledClaim {
    /// The claim stands still in its entry, until it is offered something.
    StandsStill,
    /// The ticket is not valid any more.
    Stale(Box<PendingClaim>),
}

/// Event of time in the entry of a claim that waits.
#[derive(Debug)]
pub enum DueClaim {
    /// The wait is over.
    Expired(Box<PendingClaim>),
    /// Other nodes are acceptable from now on.
    Widened(Box<PendingClaim>),
}

impl KeyDirectory {
    /// Notes that a claim enters the wait queues. Returns the duplicates that do not wait, and the deadlines of the others;
    /// `None` if the ticket is not valid any more.
    pub fn enter_queue(
        &self,
        claim: &Arc<QueuedClaim>,
        exhausted: ExhaustionReason,
    ) -> Option<(Vec<Box<PendingClaim>>, Vec<Millis>)> {
        let _level = lock_order::acquire(LockLevel::KeyEntry);
        let mut entry = self.map.get_mut(&claim.id)?;
        let KeyEntry::Pending(pending) = &mut *entry else { return None };
        if !pending.has_ticket(claim.ticket) {
            return None;
        }
        pending.queued = Some(Box::new(QueuedKey { claim: Arc::clone(claim), exhausted }));
        let leave = pending.take_duplicates(|item| item.waits());
        let deadlines = pending.duplicates.iter().flat_map(|duplicates| duplicates.iter());
        Some((leave, deadlines.filter_map(|item| item.wait_until_ms()).collect()))
    }

    /// Charges the tenant of a claim that is about to be searched for, unless that was done; or notes in the claim that the
    /// quota is used up.
    pub fn charge_again(&self, item: &mut PendingClaim) {
        let _level = lock_order::acquire(LockLevel::KeyEntry);
        let Some(mut entry) = self.map.get_mut(&item.id) else { return };
        let KeyEntry::Pending(pending) = &mut *entry else { return };
        if pending.ticket == item.ticket && pending.charge.is_none() {
            pending.charge = self.charge(item);
        }
    }

    /// Lets a claim stand still after a search that found nothing, and releases its quota. The caller must say so in its
    /// queues afterwards.
    pub fn settle(&self, claim: Box<PendingClaim>, exhausted: ExhaustionReason) -> SettledClaim {
        let _level = lock_order::acquire(LockLevel::KeyEntry);
        match self.map.get_mut(&claim.id).as_deref_mut() {
            Some(KeyEntry::Pending(pending)) if pending.has_ticket(claim.ticket) => {
                let Some(queued) = &mut pending.queued else { return SettledClaim::Stale(claim) };
                queued.exhausted = exhausted;
                pending.stage = PendingStage::Waiting(claim);
                drop(pending.charge.take());
                SettledClaim::StandsStill
            }
            _ => SettledClaim::Stale(claim),
        }
    }

    /// Offers something of a shard to a claim. If the claim takes it, its tenant is charged, the claim is being tried from
    /// now on, and `call` makes the call to the shard. Called under the lock of the queue.
    pub fn offer(
        &self,
        claim: &QueuedClaim,
        from: ShardRef,
        now_ms: Millis,
        call: impl FnOnce(&mut PendingClaim) -> ClaimCall,
    ) -> (OfferVerdict, Option<ClaimCall>) {
        let _level = lock_order::acquire(LockLevel::KeyEntry);
        let mut entry = self.map.get_mut(&claim.id);
        let Some(KeyEntry::Pending(pending)) = entry.as_deref_mut() else { return (OfferVerdict::Gone, None) };
        if !pending.has_ticket(claim.ticket) {
            return (OfferVerdict::Gone, None);
        }
        let Some(mut item) = pending.take_waiting() else {
            return (OfferVerdict::Tried, None);
        };
        if item.reply.is_abandoned() || item.is_wait_over(now_ms) {
            // Whoever ends its wait is on the way.
            pending.stage = PendingStage::Waiting(item);
            return (OfferVerdict::Gone, None);
        }
        match self.charge(&mut item) {
            None => {
                if let (Some(queued), Some(over)) = (&mut pending.queued, item.over_quota.take()) {
                    queued.exhausted = ExhaustionReason::Quota(over);
                }
                pending.stage = PendingStage::Waiting(item);
                (OfferVerdict::NoQuota, None)
            }
            Some(lease) => {
                let call = call(&mut item);
                (pending.charge, pending.stage) = (Some(lease), PendingStage::Asking(item, from));
                (OfferVerdict::Takes, Some(call))
            }
        }
    }

    /// Takes a claim that stands still, to search for it once more: its tenant is charged, or the claim says that the
    /// quota is used up.
    pub fn begin_search(&self, claim: &QueuedClaim) -> Option<Box<PendingClaim>> {
        let _level = lock_order::acquire(LockLevel::KeyEntry);
        let mut entry = self.map.get_mut(&claim.id)?;
        let KeyEntry::Pending(pending) = &mut *entry else { return None };
        if !pending.has_ticket(claim.ticket) {
            return None;
        }
        let mut item = pending.take_waiting()?;
        pending.charge = self.charge(&mut item);
        Some(item)
    }

    /// Whether a claim stands still in its queues and takes what it is offered: it is neither searched for nor matched at
    /// present, its caller listens, and its wait is not over.
    #[must_use]
    pub fn stands_still(&self, claim: &QueuedClaim, now_ms: Millis) -> bool {
        let _level = lock_order::acquire(LockLevel::KeyEntry);
        match self.map.get(&claim.id).as_deref() {
            Some(KeyEntry::Pending(pending)) if pending.has_ticket(claim.ticket) => {
                let listens = |item: &PendingClaim| !item.reply.is_abandoned() && !item.is_wait_over(now_ms);
                matches!(&pending.stage, PendingStage::Waiting(item) if listens(item))
            }
            _ => false,
        }
    }

    /// Whether a claim stands still in its entry.
    #[must_use]
    pub fn is_still(&self, claim: &QueuedClaim) -> bool {
        let _level = lock_order::acquire(LockLevel::KeyEntry);
        match self.map.get(&claim.id).as_deref() {
            Some(KeyEntry::Pending(pending)) if pending.has_ticket(claim.ticket) => {
                matches!(pending.stage, PendingStage::Waiting(_))
            }
            _ => false,
        }
    }

    /// Takes a claim that stands still under this ticket, if it passes `is_taken`. The caller must end its wait.
    pub fn take_waiting(
        &self,
        id: &ClaimId,
        ticket: Option<KeyTicket>,
        is_taken: impl FnOnce(&PendingClaim) -> bool,
    ) -> Option<Box<PendingClaim>> {
        let _level = lock_order::acquire(LockLevel::KeyEntry);
        match self.map.get_mut(id).as_deref_mut() {
            Some(KeyEntry::Pending(pending)) if ticket.is_none_or(|ticket| pending.has_ticket(ticket)) => {
                let PendingStage::Waiting(claim) = &pending.stage else { return None };
                if is_taken(claim) { pending.take_waiting() } else { None }
            }
            _ => None,
        }
    }

    /// Takes a claim that stands still and for which something is due, and the duplicates whose own wait is over.
    pub fn take_due(&self, id: &ClaimId, now_ms: Millis) -> (Option<DueClaim>, Vec<Box<PendingClaim>>) {
        let _level = lock_order::acquire(LockLevel::KeyEntry);
        let mut entry = self.map.get_mut(id);
        let Some(KeyEntry::Pending(pending)) = entry.as_deref_mut() else { return (None, Vec::new()) };
        let due = match &pending.stage {
            PendingStage::Waiting(claim) if claim.wait_due_ms().is_some_and(|due_ms| due_ms <= now_ms) => {
                // A claim whose time for preferred nodes is over is searched for once more, even if it may not wait longer.
                let is_widened = claim.is_preferred_only();
                let claim = pending.take_waiting();
                claim.map(|claim| if is_widened { DueClaim::Widened(claim) } else { DueClaim::Expired(claim) })
            }
            _ => None,
        };
        let is_over = |item: &PendingClaim| item.wait_until_ms().is_some_and(|until_ms| until_ms <= now_ms);
        (due, pending.take_duplicates(|item| !is_over(item)))
    }

    /// Claim in the wait queues that owns the key's ticket, if any, and why its last search found nothing.
    #[must_use]
    pub fn queued_claim(&self, id: &ClaimId) -> Option<(Arc<QueuedClaim>, ExhaustionReason)> {
        let _level = lock_order::acquire(LockLevel::KeyEntry);
        match self.map.get(id).as_deref() {
            Some(KeyEntry::Pending(PendingKey { queued: Some(queued), .. })) => {
                Some((Arc::clone(&queued.claim), queued.exhausted))
            }
            _ => None,
        }
    }
}
