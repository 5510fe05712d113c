//! Directory of claim keys and their holders: the only state that spans shards and pools.
//!
//! An entry goes `vacant -> pending(ticket) -> held -> gone -> vacant`. The claim that makes it pending gets the
//! ticket and tries shards; requests that arrive meanwhile wait as duplicates. The granting shard makes it held, in
//! the same run as its accounting; whatever ends the claim makes it gone, again in that run. A *gone* key can be
//! claimed at once, but its entry keeps the records about the key that the store still lacks ([`PendingWrite`]). A
//! durable reply about the key waits for all of them, whichever shard sends it, and the next holder inherits the list.
//! So a crash can never restore an older holder after a durable reply has disclosed its end.
//!
//! An entry carries the quota that its claim uses ([`QuotaLease`]): charged with the ticket, released with the entry.
//!
//! The directory is derived from the rows of workers and never stored. No guard of the map leaves this file and the
//! folder beside it, where `rebuild` fills the map during recovery.

pub mod adoption;
pub mod ended_claims;
mod prehashed;
mod rebuild;

use std::cell::Cell;
use std::collections::VecDeque;
use std::hash::BuildHasherDefault;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

pub use self::prehashed::PrehashedHasher;
use crate::admission::key::adoption::AdoptionWindow;
use crate::admission::queue::QueuedClaim;
use crate::admission::tenant::{QuotaLease, TenantRegistry};
use crate::engine::ClaimHandle;
use crate::limits;
use crate::model::{ClaimId, ClaimSpec, Fence, Millis, QuotaResource, Seq};
use crate::shard::{KeyTicket, PendingClaim, PendingWrite, PendingWrites, ShardRef};
use dashmap::DashMap;
use dashmap::mapref::entry::Entry as Slot;

/// Holder of a key: the shard and the claim in it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct KeyHolder {
    /// Shard that holds the claim.
    pub shard: ShardRef,
    /// Handle of the claim in that shard.
    pub handle: ClaimHandle,
}

/// Requests that wait for a pending key. Boxed, because there are almost never any and every entry of the directory
/// reserves the space.
#[allow(clippy::box_collection, reason = "8 bytes an entry instead of 32")]
type WaitingDuplicates = Option<Box<VecDeque<Box<PendingClaim>>>>;

#[derive(Debug)]
enum KeyEntry {
    Pending {
        ticket: KeyTicket,
        waiting_duplicates: WaitingDuplicates,
        pending_writes: PendingWrites,
        /// Quota of the claim; `None` while the quota is used up, the claim is queued, or it is about to be adopted.
        charge: Option<QuotaLease>,
        /// Claim that owns the ticket, while it is queued for capacity or quota.
        queued: Option<Arc<QueuedClaim>>,
    },
    Held {
        holder: KeyHolder,
        pending_writes: PendingWrites,
        charge: QuotaLease,
    },
    Gone {
        pending_writes: PendingWrites,
    },
    /// Key named by a row of a shard that does not serve, or by a gang member whose home does not. Quota is charged
    /// all the same.
    Unreadable {
        fence: Fence,
        /// Shard of the row that names the key.
        shard: ShardRef,
        _charge: QuotaLease,
    },
}

/// Result of an attempt to acquire a key.
#[derive(Debug)]
pub enum KeyAcquire {
    /// The key is acquired and the ticket is in the claim, which now needs a worker.
    Acquired(Box<PendingClaim>),
    /// The claim waits as a duplicate of the ticket's owner; with a deadline if that owner is queued.
    Joined(Option<(Millis, ClaimId)>),
    /// The ticket's owner is queued, and this request does not wait.
    HolderQueued(Box<PendingClaim>),
    /// The key is held; the holder's shard answers.
    Held(Box<PendingClaim>, KeyHolder),
    /// Too many duplicates wait for this key already.
    TooManyDuplicates(Box<PendingClaim>),
    /// The key is held by a shard that does not serve.
    Unreadable(Box<PendingClaim>),
}

/// State of a key as other requests see it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum KeyLookup {
    /// The key is vacant, and the store has all records.
    Vacant,
    /// The key is vacant or pending, but the store still lacks these records.
    PendingWrites(PendingWrites),
    /// The key is held; the holder's shard answers.
    Held(KeyHolder),
    /// The key is held by a shard that does not serve.
    Unreadable,
}

/// Locks of the map. Far more than threads, so that two requests seldom contend for one.
const MAP_SHARDS: usize = 1024;

/// Directory of all keys that are claimed or were until recently.
#[derive(Debug)]
pub struct KeyDirectory {
    map: DashMap<ClaimId, KeyEntry, BuildHasherDefault<PrehashedHasher>>,
    /// Quotas and usage of all tenants.
    pub tenants: TenantRegistry,
    /// Keys that a lost claim may still readopt.
    pub adoption: AdoptionWindow,
}

impl Default for KeyDirectory {
    fn default() -> Self {
        let map = DashMap::with_hasher_and_shard_amount(BuildHasherDefault::default(), MAP_SHARDS);
        Self { map, tenants: TenantRegistry::default(), adoption: AdoptionWindow::default() }
    }
}

/// Allocates a ticket that is unique in this process. Each thread has a range of its own, so that threads do not
/// contend for one counter.
fn next_ticket() -> KeyTicket {
    static RANGES: AtomicU64 = AtomicU64::new(1);
    thread_local! {
        static NEXT: Cell<KeyTicket> = Cell::new(RANGES.fetch_add(1, Ordering::Relaxed) << 40);
    }
    NEXT.with(|next| next.replace(next.get() + 1))
}

fn pending(ticket: KeyTicket, charge: Option<QuotaLease>, pending_writes: PendingWrites) -> KeyEntry {
    KeyEntry::Pending { ticket, waiting_duplicates: None, pending_writes, charge, queued: None }
}

impl KeyDirectory {
    /// Gives the claim a ticket and charges its tenant. If the quota is used up, [`PendingClaim::over_quota`] says so.
    fn grant_ticket(&self, item: &mut PendingClaim) -> (KeyTicket, Option<QuotaLease>) {
        item.ticket = next_ticket();
        (item.ticket, self.charge(item))
    }

    fn charge(&self, item: &mut PendingClaim) -> Option<QuotaLease> {
        let charge = self.tenants.try_charge(&item.id, item.spec(), item.pool);
        item.over_quota = charge.as_ref().err().copied();
        charge.ok()
    }

    /// Acquires the key of a claim.
    pub fn acquire(&self, mut item: Box<PendingClaim>) -> KeyAcquire {
        match self.map.entry(item.id.clone()) {
            Slot::Vacant(slot) => {
                let (ticket, charge) = self.grant_ticket(&mut item);
                slot.insert(pending(ticket, charge, PendingWrites::new()));
                KeyAcquire::Acquired(item)
            }
            Slot::Occupied(mut slot) => match slot.get_mut() {
                KeyEntry::Held { holder, .. } => KeyAcquire::Held(item, *holder),
                KeyEntry::Unreadable { .. } => KeyAcquire::Unreadable(item),
                KeyEntry::Gone { pending_writes } => {
                    let pending_writes = std::mem::take(pending_writes);
                    let (ticket, charge) = self.grant_ticket(&mut item);
                    slot.insert(pending(ticket, charge, pending_writes));
                    KeyAcquire::Acquired(item)
                }
                KeyEntry::Pending { queued: Some(_), .. } if !item.waits() => KeyAcquire::HolderQueued(item),
                KeyEntry::Pending { waiting_duplicates: duplicates, queued, .. } => {
                    let duplicates = duplicates.get_or_insert_default();
                    if duplicates.len() >= limits::WAITING_DUPLICATES_MAX {
                        duplicates.retain(|duplicate| !duplicate.reply.is_closed());
                    }
                    if duplicates.len() >= limits::WAITING_DUPLICATES_MAX {
                        return KeyAcquire::TooManyDuplicates(item);
                    }
                    let until = queued.as_ref().and_then(|_| Some((item.wait_until_ms()?, item.id.clone())));
                    duplicates.push_back(item);
                    KeyAcquire::Joined(until)
                }
            },
        }
    }

    /// Acquires the ticket of a vacant key for a claim with this fence that may be adopted. The caller must follow
    /// with [`KeyDirectory::set_held`] or [`KeyDirectory::release_ticket`].
    pub fn acquire_vacant(&self, id: &ClaimId, fence: Fence) -> Option<KeyTicket> {
        let ticket = next_ticket();
        // Under the entry's guard: an earlier holder of the key has been recorded by now.
        let take = || if self.adoption.allows(id.hash64(), fence) { Ok((ticket, None)) } else { Err(None) };
        self.enter_vacant(id, take).is_ok().then_some(ticket)
    }

    /// Acquires the key of a gang member and charges its tenant.
    ///
    /// # Errors
    /// `None` if the key is not vacant, or the resource that would exceed the tenant's quota.
    pub fn acquire_for_member(&self, item: &mut PendingClaim) -> Result<(), Option<QuotaResource>> {
        let id = item.id.clone();
        self.enter_vacant(&id, || {
            let (ticket, charge) = self.grant_ticket(item);
            item.over_quota.take().map_or(Ok((ticket, charge)), |over| Err(Some(over)))
        })
    }

    fn enter_vacant(
        &self,
        id: &ClaimId,
        take: impl FnOnce() -> Result<(KeyTicket, Option<QuotaLease>), Option<QuotaResource>>,
    ) -> Result<(), Option<QuotaResource>> {
        match self.map.entry(id.clone()) {
            Slot::Vacant(slot) => {
                let (ticket, charge) = take()?;
                slot.insert(pending(ticket, charge, PendingWrites::new()));
                Ok(())
            }
            Slot::Occupied(mut slot) => match slot.get_mut() {
                KeyEntry::Gone { pending_writes } => {
                    let (ticket, charge) = take()?;
                    let pending_writes = std::mem::take(pending_writes);
                    slot.insert(pending(ticket, charge, pending_writes));
                    Ok(())
                }
                KeyEntry::Held { .. } | KeyEntry::Unreadable { .. } | KeyEntry::Pending { .. } => Err(None),
            },
        }
    }

    /// Marks the claim with this ticket as queued and releases its quota. Returns the duplicates that do not wait, and
    /// the deadlines of the others. Returns `None` if the ticket is no longer valid.
    pub fn mark_queued(
        &self,
        id: &ClaimId,
        ticket: KeyTicket,
        claim: &Arc<QueuedClaim>,
    ) -> Option<(Vec<Box<PendingClaim>>, Vec<Millis>)> {
        let mut entry = self.map.get_mut(id)?;
        let KeyEntry::Pending { ticket: ours, waiting_duplicates: duplicates, charge, queued, .. } = &mut *entry else {
            return None;
        };
        if *ours != ticket {
            return None;
        }
        *queued = Some(Arc::clone(claim));
        drop(charge.take());
        let Some(duplicates) = duplicates else { return Some((Vec::new(), Vec::new())) };
        let (wait, leave): (Vec<_>, Vec<_>) = duplicates.drain(..).partition(|item| item.waits());
        **duplicates = wait.into();
        Some((leave, duplicates.iter().filter_map(|item| item.wait_until_ms()).collect()))
    }

    /// Marks a queued claim as active: charges its tenant again, or notes that the quota is used up.
    pub fn mark_unqueued(&self, item: &mut PendingClaim) {
        let Some(mut entry) = self.map.get_mut(&item.id) else { return };
        let KeyEntry::Pending { ticket, charge, queued, .. } = &mut *entry else { return };
        if *ticket == item.ticket {
            *queued = None;
            *charge = self.charge(item);
        }
    }

    /// Queued claim that owns the key's ticket, if any.
    #[must_use]
    pub fn queued_claim(&self, id: &ClaimId) -> Option<Arc<QueuedClaim>> {
        match self.map.get(id).as_deref() {
            Some(KeyEntry::Pending { queued, .. }) => queued.clone(),
            _ => None,
        }
    }

    /// Removes the duplicates whose own waiting time is over.
    pub fn take_expired_duplicates(&self, id: &ClaimId, now_ms: Millis) -> Vec<Box<PendingClaim>> {
        let Some(mut entry) = self.map.get_mut(id) else { return Vec::new() };
        let KeyEntry::Pending { waiting_duplicates: Some(duplicates), .. } = &mut *entry else { return Vec::new() };
        let (late, wait): (Vec<_>, Vec<_>) = duplicates.drain(..).partition(|item| item.is_wait_over(now_ms));
        **duplicates = wait.into();
        late
    }

    /// Charges the claim with this fence for `spec`. Returns the specification charged before.
    ///
    /// # Errors
    /// The resource that would exceed the tenant's quota; nothing changed.
    pub fn resize(
        &self,
        id: &ClaimId,
        fence: Fence,
        spec: Option<Arc<ClaimSpec>>,
    ) -> Result<Option<Arc<ClaimSpec>>, QuotaResource> {
        match self.map.get_mut(id).as_deref_mut() {
            Some(KeyEntry::Held { holder, charge, .. }) if holder.handle.fence == fence => charge.resize(spec),
            _ => Ok(None),
        }
    }

    /// Reverts [`Self::resize`] to `spec`.
    pub fn revert_resize(&self, id: &ClaimId, fence: Fence, spec: Option<Arc<ClaimSpec>>) {
        if let Some(KeyEntry::Held { holder, charge, .. }) = self.map.get_mut(id).as_deref_mut()
            && holder.handle.fence == fence
        {
            charge.set(spec);
        }
    }

    /// Makes the key held after the owner of `ticket` was granted a worker. Returns the waiting duplicates, and the
    /// records that a durable reply waits for.
    ///
    /// # Panics
    /// If the ticket is not that of the entry. Only its owner can release it, so this cannot happen.
    pub fn set_held(
        &self,
        id: &ClaimId,
        ticket: KeyTicket,
        holder: KeyHolder,
        spec: Option<&Arc<ClaimSpec>>,
    ) -> (VecDeque<Box<PendingClaim>>, PendingWrites) {
        let mut entry = self.map.get_mut(id).expect("K1: a key with a ticket is in the directory");
        let KeyEntry::Pending { ticket: ours, waiting_duplicates: duplicates, pending_writes, charge, .. } =
            &mut *entry
        else {
            unreachable!("K1: a key with a ticket is pending")
        };
        assert_eq!(*ours, ticket, "K1: one ticket a key");
        let (duplicates, pending_writes) = (duplicates.take(), std::mem::take(pending_writes));
        let mut charge = charge.take().unwrap_or_else(|| self.tenants.charge(id, spec.cloned(), holder.shard.pool));
        charge.move_to_pool(holder.shard.pool);
        *entry = KeyEntry::Held { holder, pending_writes: pending_writes.clone(), charge };
        (duplicates.map(|duplicates| *duplicates).unwrap_or_default(), pending_writes)
    }

    /// Makes the key of a committed gang member held, like [`KeyDirectory::set_held`]. May be repeated if the shard
    /// panicked before the record was stored.
    pub fn set_committed(
        &self,
        id: &ClaimId,
        ticket: KeyTicket,
        holder: KeyHolder,
        spec: Option<&Arc<ClaimSpec>>,
    ) -> (VecDeque<Box<PendingClaim>>, PendingWrites) {
        let again = match self.map.get(id).as_deref() {
            Some(KeyEntry::Held { holder: earlier, .. }) => earlier.handle.fence == holder.handle.fence,
            _ => false,
        };
        if again { (VecDeque::new(), self.pending_writes(id)) } else { self.set_held(id, ticket, holder, spec) }
    }

    /// Releases the ticket. The oldest duplicate that still listens gets a fresh ticket and is returned.
    pub fn release_ticket(&self, id: &ClaimId, ticket: KeyTicket) -> Option<Box<PendingClaim>> {
        let Slot::Occupied(mut slot) = self.map.entry(id.clone()) else { return None };
        let KeyEntry::Pending { ticket: ours, waiting_duplicates: duplicates, pending_writes, charge, queued } =
            slot.get_mut()
        else {
            return None;
        };
        if *ours != ticket {
            return None;
        }
        let next = duplicates.as_mut().and_then(|duplicates| {
            while duplicates.front().is_some_and(|duplicate| duplicate.reply.is_closed()) {
                duplicates.pop_front();
            }
            duplicates.pop_front()
        });
        match next {
            Some(mut next) => {
                // Released before it is charged again: the next claim may need exactly this quota.
                drop(charge.take());
                (*ours, *charge) = self.grant_ticket(&mut next);
                *queued = None;
                Some(next)
            }
            None if pending_writes.is_empty() => {
                slot.remove();
                None
            }
            None => {
                let pending_writes = std::mem::take(pending_writes);
                slot.insert(KeyEntry::Gone { pending_writes });
                None
            }
        }
    }

    /// Ends the claim with this fence. `record`: the record of the end that the store still lacks. Returns the earlier
    /// records that a durable reply waits for.
    pub fn end_claim(&self, id: &ClaimId, fence: Fence, record: Option<PendingWrite>) -> PendingWrites {
        let Slot::Occupied(mut slot) = self.map.entry(id.clone()) else { return PendingWrites::new() };
        let KeyEntry::Held { holder, pending_writes, .. } = slot.get_mut() else {
            return PendingWrites::new();
        };
        if holder.handle.fence != fence {
            return PendingWrites::new();
        }
        self.adoption.record_ended(id.hash64(), fence);
        let earlier = pending_writes.clone();
        if let Some(record) = record {
            // One record per shard is enough: a later one covers the earlier.
            pending_writes.retain(|write| write.shard != record.shard);
            pending_writes.push(record);
        }
        if pending_writes.is_empty() {
            slot.remove();
        } else {
            let pending_writes = std::mem::take(pending_writes);
            slot.insert(KeyEntry::Gone { pending_writes });
        }
        earlier
    }

    /// Adds a record that the store lacks about the key, whoever holds it now: a recovered shard relinquished its
    /// claim.
    pub fn add_pending_write(&self, id: &ClaimId, record: PendingWrite) {
        match self.map.entry(id.clone()) {
            Slot::Vacant(slot) => {
                drop(slot.insert(KeyEntry::Gone { pending_writes: PendingWrites::from_iter([record]) }))
            }
            Slot::Occupied(mut slot) => {
                if let KeyEntry::Pending { pending_writes, .. }
                | KeyEntry::Held { pending_writes, .. }
                | KeyEntry::Gone { pending_writes } = slot.get_mut()
                {
                    pending_writes.retain(|write| write.shard != record.shard);
                    pending_writes.push(record);
                }
            }
        }
    }

    /// Clears records of `shard` up to `seq`, which the store now has.
    pub fn clear_pending_write(&self, id: &ClaimId, shard: ShardRef, seq: Seq) {
        let Slot::Occupied(mut slot) = self.map.entry(id.clone()) else { return };
        let (KeyEntry::Pending { pending_writes, .. }
        | KeyEntry::Held { pending_writes, .. }
        | KeyEntry::Gone { pending_writes }) = slot.get_mut()
        else {
            return;
        };
        pending_writes.retain(|write| write.shard != shard || write.seq > seq);
        if matches!(slot.get(), KeyEntry::Gone { pending_writes } if pending_writes.is_empty()) {
            slot.remove();
        }
    }

    /// State of the key and its holder.
    #[must_use]
    pub fn lookup(&self, id: &ClaimId) -> KeyLookup {
        match self.map.get(id).as_deref() {
            None => KeyLookup::Vacant,
            Some(KeyEntry::Held { holder, .. }) => KeyLookup::Held(*holder),
            Some(KeyEntry::Unreadable { .. }) => KeyLookup::Unreadable,
            Some(KeyEntry::Pending { pending_writes, .. } | KeyEntry::Gone { pending_writes })
                if pending_writes.is_empty() =>
            {
                KeyLookup::Vacant
            }
            Some(KeyEntry::Pending { pending_writes, .. } | KeyEntry::Gone { pending_writes }) => {
                KeyLookup::PendingWrites(pending_writes.clone())
            }
        }
    }

    /// Records that a durable reply about the key waits for, besides that of its own shard.
    #[must_use]
    pub fn pending_writes(&self, id: &ClaimId) -> PendingWrites {
        match self.map.get(id).as_deref() {
            Some(
                KeyEntry::Pending { pending_writes, .. }
                | KeyEntry::Held { pending_writes, .. }
                | KeyEntry::Gone { pending_writes },
            ) => pending_writes.clone(),
            _ => PendingWrites::new(),
        }
    }

    /// Number of entries in any state.
    #[must_use]
    pub fn len(&self) -> usize {
        self.map.len()
    }

    /// Whether the directory has no entries.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.map.is_empty()
    }

    /// Number of keys that are being claimed. Walks the directory; for tests and `/debug/shards`.
    #[must_use]
    pub fn pending_len(&self) -> usize {
        self.map.iter().filter(|entry| matches!(entry.value(), KeyEntry::Pending { .. })).count()
    }
}
