//! Directory of claim keys. Derived from the rows of workers and never stored.
//!
//! An entry is changed under its guard in the map, and no guard leaves this file and `rebuild`, where the map is filled
//! during recovery. An entry carries the quota that its claim uses ([`QuotaLease`]): charged with the ticket, released
//! with the entry.

use parking_lot::Mutex;
use std::hash::BuildHasherDefault;
use std::sync::Arc;

use dashmap::DashMap;
use dashmap::mapref::entry::Entry as Slot;

use super::adoption::AdoptionWindow;
use super::ended::ExpiryQueue;
use super::entry::{HeldKey, KeyEntry, KeyHolder, PendingKey, PendingStage, VacantKey};
use super::poisoned::OpenQuestions;
use super::{EndedClaim, PendingClaim, PrehashedHasher};
use crate::admission::ids::Ids;
use crate::admission::lock_order::{self, LockLevel};
use crate::admission::tenant::{QuotaLease, TenantDirectory};
use crate::model::{ClaimId, ClaimSpec, Fence, Millis, QuotaResource, Seq};
use crate::shard::{
    ClaimCall, KeyReport, KeyTicket, PendingWrite, PendingWrites, ProtocolPoint, ReacquireCall, ShardLife, ShardRef,
};

/// Result of an attempt to acquire a key.
#[derive(Debug)]
pub enum KeyAcquire {
    /// The key is acquired, and the claim stays in its entry while this shard is asked.
    Asking(ShardRef, ClaimCall),
    /// The key is acquired and the ticket is in the claim, which now needs a worker.
    Acquired(Box<PendingClaim>),
    /// The claim waits as a duplicate of the ticket's owner; with a deadline if that owner is queued.
    Joined(Option<(Millis, ClaimId)>),
    /// The ticket's owner is queued, and this request does not wait.
    HolderQueued(Box<PendingClaim>),
    /// The key is held; the claim stays in its entry until the holder's shard has answered this call.
    Repeated(RepeatedCall),
    /// Key that is held in a pool which the claim excludes, asked for by a claim that is for the holder only.
    HeldElsewhere(Box<PendingClaim>),
    /// Key that nobody holds, asked for by a claim that is for the holder only.
    NotHeld(Box<PendingClaim>),
    /// Too many duplicates wait for this key already.
    TooManyDuplicates(Box<PendingClaim>),
    /// The key is held by a shard that does not serve, or its step panicked.
    Unreadable(Box<PendingClaim>),
}

/// Call to the shard that holds the key of a repeated claim.
#[derive(Debug)]
pub struct RepeatedCall {
    /// Shard that holds the key.
    pub shard: ShardRef,
    /// Call that shows the holder.
    pub call: ReacquireCall,
}

/// Locks of the map. Far more than threads, so that two requests seldom contend for one.
const MAP_SHARDS: usize = 1024;

/// Directory of all keys that are claimed or were until recently.
#[derive(Debug)]
pub struct KeyDirectory {
    pub(super) map: DashMap<ClaimId, KeyEntry, BuildHasherDefault<PrehashedHasher>>,
    /// Source of tickets, and of other numbers of admission.
    pub ids: Ids,
    /// Quotas and usage of all tenants.
    pub tenants: TenantDirectory,
    /// Keys that a lost claim may still readopt.
    pub adoption: AdoptionWindow,
    /// Claims that ended without their holders, in the order in which they are forgotten.
    expiry: Mutex<ExpiryQueue>,
    /// Questions about keys whose steps panicked.
    pub(super) questions: OpenQuestions,
}

impl Default for KeyDirectory {
    fn default() -> Self {
        let map = DashMap::with_hasher_and_shard_amount(BuildHasherDefault::default(), MAP_SHARDS);
        Self {
            map,
            ids: Ids::default(),
            tenants: TenantDirectory::default(),
            adoption: AdoptionWindow::default(),
            expiry: Mutex::default(),
            questions: OpenQuestions::default(),
        }
    }
}

impl KeyDirectory {
    /// Gives the claim a ticket and charges its tenant. If the quota is used up, [`PendingClaim::over_quota`] says so.
    fn grant_ticket(&self, item: &mut PendingClaim) -> (KeyTicket, Option<QuotaLease>) {
        item.ticket = self.ids.next_ticket();
        (item.ticket, self.charge(item))
    }

    #[inline]
    pub(super) fn charge(&self, item: &mut PendingClaim) -> Option<QuotaLease> {
        let charge = self.tenants.try_charge(&item.id, item.spec(), item.pool, item.charge_rank());
        item.over_quota = charge.as_ref().err().copied();
        charge.ok()
    }

    /// Acquires the key of a claim. If it is vacant and the quota allows the claim, `pick` may name the shard to ask.
    #[inline]
    pub fn acquire(&self, item: Box<PendingClaim>, pick: impl FnOnce(&PendingClaim) -> Option<ShardRef>) -> KeyAcquire {
        let _level = lock_order::acquire(LockLevel::KeyEntry);
        match self.map.entry(item.id.clone()) {
            Slot::Vacant(_) if item.is_for_holder => KeyAcquire::NotHeld(item),
            Slot::Vacant(slot) => {
                let (entry, acquired) = self.begin(item, VacantKey::default(), pick);
                slot.insert(entry);
                acquired
            }
            Slot::Occupied(mut slot) => match slot.get_mut() {
                KeyEntry::Held(held) if item.is_for_holder && !item.may_use(held.holder.shard.pool) => {
                    KeyAcquire::HeldElsewhere(item)
                }
                KeyEntry::Held(held) => KeyAcquire::Repeated(repeat(held, item, self.ids.next_ticket())),
                KeyEntry::Unreadable { .. } | KeyEntry::Poisoned(_) => KeyAcquire::Unreadable(item),
                KeyEntry::Vacant(_) | KeyEntry::Pending(_) if item.is_for_holder => KeyAcquire::NotHeld(item),
                KeyEntry::Vacant(vacant) => {
                    let vacant = std::mem::take(vacant);
                    let (entry, acquired) = self.begin(item, vacant, pick);
                    slot.insert(entry);
                    acquired
                }
                KeyEntry::Pending(pending) => join(pending, item),
            },
        }
    }

    /// Begins to decide a vacant key: gives the claim a ticket, charges its tenant, and picks a shard.
    #[inline(always)]
    fn begin(
        &self,
        mut item: Box<PendingClaim>,
        vacant: VacantKey,
        pick: impl FnOnce(&PendingClaim) -> Option<ShardRef>,
    ) -> (KeyEntry, KeyAcquire) {
        let (ticket, charge) = self.grant_ticket(&mut item);
        let mut pending = PendingKey::in_transit(ticket, charge, vacant);
        let shard = if item.over_quota.is_none() { pick(&item) } else { None };
        let acquired = match shard {
            Some(shard) => {
                item.tried_shards.insert(shard.shard);
                let call = item.call();
                pending.stage = PendingStage::Asking(item, shard);
                KeyAcquire::Asking(shard, call)
            }
            None => KeyAcquire::Acquired(item),
        };
        (KeyEntry::Pending(pending), acquired)
    }

    /// Leaves a claim in its entry while a shard is asked.
    ///
    /// # Errors
    /// Returns the claim if its ticket is not valid any more.
    pub fn deposit(&self, claim: Box<PendingClaim>, shard: ShardRef) -> Result<(), Box<PendingClaim>> {
        let _level = lock_order::acquire(LockLevel::KeyEntry);
        match self.map.get_mut(&claim.id).as_deref_mut() {
            Some(KeyEntry::Pending(pending)) if pending.ticket == claim.ticket => {
                pending.stage = PendingStage::Asking(claim, shard);
                Ok(())
            }
            _ => Err(claim),
        }
    }

    /// Takes the claim that a shard was asked for; `None` if the ticket is not valid any more.
    pub fn withdraw(&self, id: &ClaimId, ticket: KeyTicket) -> Option<Box<PendingClaim>> {
        let _level = lock_order::acquire(LockLevel::KeyEntry);
        match self.map.get_mut(id).as_deref_mut() {
            Some(KeyEntry::Pending(pending)) if pending.has_ticket(ticket) => pending.withdraw(),
            _ => None,
        }
    }

    /// Ticket of the claim that a shard is being asked for, and the shard, if the claim's caller has gone. The ticket
    /// stays valid until the shard has answered: a grant that comes after another claim of the key would have a higher
    /// fence than that.
    #[must_use]
    pub fn abandoned_call(&self, id: &ClaimId) -> Option<(KeyTicket, ShardRef)> {
        let _level = lock_order::acquire(LockLevel::KeyEntry);
        match self.map.get(id).as_deref() {
            Some(KeyEntry::Pending(PendingKey { ticket, stage: PendingStage::Asking(claim, shard), .. })) => {
                claim.reply.is_abandoned().then_some((*ticket, *shard))
            }
            _ => None,
        }
    }

    /// Takes a repeated claim that the holder's shard has answered, or cannot answer, and the records that a durable
    /// reply waits for.
    pub fn take_repeated(&self, id: &ClaimId, number: u64) -> Option<(Box<PendingClaim>, PendingWrites)> {
        let _level = lock_order::acquire(LockLevel::KeyEntry);
        match self.map.get_mut(id).as_deref_mut() {
            Some(KeyEntry::Held(held)) => Some((held.take_repeated(number)?, held.pending_writes.clone())),
            _ => None,
        }
    }

    /// State of the key of a claim with this fence that a worker reports. A vacant key is reserved if the claim may be
    /// adopted; the caller must follow with [`KeyDirectory::set_held`] or [`KeyDirectory::release_ticket`].
    pub fn report(&self, id: &ClaimId, fence: Fence) -> KeyReport {
        let ticket = self.ids.next_ticket();
        // Under the entry's guard: an earlier holder of the key has been recorded by now.
        let take = || if self.adoption.allows(id.hash64(), fence) { Ok((ticket, None)) } else { Err(None) };
        match self.enter_vacant(id, take) {
            Ok(()) => KeyReport::Reserved(ticket),
            Err(_) => match self.holder(id) {
                Some(older) if older.handle.fence < fence => KeyReport::OlderHolder,
                _ => KeyReport::NotAdoptable,
            },
        }
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
        let _level = lock_order::acquire(LockLevel::KeyEntry);
        match self.map.entry(id.clone()) {
            Slot::Vacant(slot) => {
                let (ticket, charge) = take()?;
                slot.insert(KeyEntry::Pending(PendingKey::in_transit(ticket, charge, VacantKey::default())));
                Ok(())
            }
            Slot::Occupied(mut slot) => match slot.get_mut() {
                KeyEntry::Vacant(vacant) => {
                    let (ticket, charge) = take()?;
                    let vacant = std::mem::take(vacant);
                    slot.insert(KeyEntry::Pending(PendingKey::in_transit(ticket, charge, vacant)));
                    Ok(())
                }
                _ => Err(None),
            },
        }
    }

    /// Charges the claim with this fence as if it had grown to `spec`, while its shard decides whether it does. Must be
    /// followed by [`Self::end_resize`]. Charges nothing for a life of the shard that is over: the request will be resolved
    /// anew, and charged then.
    ///
    /// # Errors
    /// The resource that would exceed the tenant's quota; nothing changed.
    pub fn begin_resize(
        &self,
        id: &ClaimId,
        fence: Fence,
        life: ShardLife,
        spec: &ClaimSpec,
    ) -> Result<(), QuotaResource> {
        let _level = lock_order::acquire(LockLevel::KeyEntry);
        match self.map.get_mut(id).as_deref_mut() {
            Some(KeyEntry::Held(held)) if held.holder.handle.fence == fence && held.holder.life == life => {
                held.begin_resize(spec)
            }
            _ => Ok(()),
        }
    }

    /// Charges for what the claim holds after the decision; `None` if that did not change.
    pub fn end_resize(&self, id: &ClaimId, fence: Fence, life: ShardLife, spec: Option<Option<Arc<ClaimSpec>>>) {
        let _level = lock_order::acquire(LockLevel::KeyEntry);
        if let Some(KeyEntry::Held(held)) = self.map.get_mut(id).as_deref_mut()
            && held.holder.handle.fence == fence
            // A charge of an earlier life was replaced when the shard was loaded.
            && held.holder.life == life
        {
            held.end_resize(spec);
        }
    }

    /// Makes the key held after the owner of `ticket` was granted a worker. Returns the claim if it was here, the calls
    /// for the duplicates that waited, and the records that a durable reply waits for. Returns `None` if the ticket is
    /// not valid any more: the grant must be rolled back.
    #[inline]
    pub fn set_held(
        &self,
        id: &ClaimId,
        ticket: KeyTicket,
        holder: KeyHolder,
        spec: Option<&Arc<ClaimSpec>>,
    ) -> Option<HeldTransition> {
        let _level = lock_order::acquire(LockLevel::KeyEntry);
        let mut entry = self.map.get_mut(id)?;
        let KeyEntry::Pending(pending) = &mut *entry else { return None };
        if !pending.has_ticket(ticket) {
            return None;
        }
        ProtocolPoint::KeyStep.reach();
        let claim = pending.withdraw();
        crate::reached!("key: granted with a valid ticket");
        let duplicates = pending.duplicates.take();
        let pending_writes = pending.vacant.pending_writes.clone();
        let mut charge =
            pending.charge.take().unwrap_or_else(|| self.tenants.charge(id, spec.cloned(), holder.shard.pool));
        charge.move_to_pool(holder.shard.pool);
        let mut held = HeldKey { holder, pending_writes: pending_writes.clone(), charge, repeated: None };
        // One whose caller has left must not take the place of the claim, which another request for the key may.
        let duplicates = duplicates.into_iter().flat_map(|duplicates| *duplicates);
        let duplicates = duplicates.filter(|duplicate| !duplicate.reply.is_abandoned());
        let repeated = duplicates.map(|duplicate| repeat(&mut held, duplicate, self.ids.next_ticket())).collect();
        *entry = KeyEntry::Held(held);
        Some(HeldTransition { claim, repeated, pending_writes })
    }

    /// Releases the ticket. The oldest duplicate that still listens gets a fresh ticket and is returned.
    pub fn release_ticket(&self, id: &ClaimId, ticket: KeyTicket) -> Option<Box<PendingClaim>> {
        let _level = lock_order::acquire(LockLevel::KeyEntry);
        let Slot::Occupied(mut slot) = self.map.entry(id.clone()) else { return None };
        let KeyEntry::Pending(pending) = slot.get_mut() else { return None };
        if !pending.has_ticket(ticket) {
            return None;
        }
        match pending.next_duplicate() {
            Some(mut next) => {
                crate::reached!("key: a duplicate takes over");
                // Released before it is charged again: the next claim may need exactly this quota.
                drop(pending.charge.take());
                (pending.ticket, pending.charge) = self.grant_ticket(&mut next);
                (pending.stage, pending.queued) = (PendingStage::InTransit, None);
                Some(next)
            }
            None if pending.vacant.is_forgotten() => {
                slot.remove();
                None
            }
            None => {
                let vacant = std::mem::take(&mut pending.vacant);
                slot.insert(KeyEntry::Vacant(vacant));
                None
            }
        }
    }

    /// Ends the claim with this fence. `write`: the record of the end that the store still lacks; `ended`: the claim, if
    /// its end is remembered. Returns the earlier records that a durable reply waits for, and the repeated claims that
    /// its shard will not answer any more.
    pub fn end_claim(
        &self,
        id: &ClaimId,
        fence: Fence,
        write: Option<PendingWrite>,
        ended: Option<Box<EndedClaim>>,
        now_ms: Millis,
    ) -> Option<EndTransition> {
        let remembers = ended.is_some();
        let end = self.end_entry(id, fence, write, ended)?;
        if remembers {
            let forgotten = self.expiry.lock().push(id.clone(), fence, now_ms);
            forgotten.into_iter().for_each(|(id, fence)| self.forget_ended(&id, fence));
        }
        Some(end)
    }

    #[inline]
    fn end_entry(
        &self,
        id: &ClaimId,
        fence: Fence,
        write: Option<PendingWrite>,
        ended: Option<Box<EndedClaim>>,
    ) -> Option<EndTransition> {
        let level = lock_order::acquire(LockLevel::KeyEntry);
        let mut slot = match self.map.entry(id.clone()) {
            Slot::Occupied(slot) if matches!(slot.get(), KeyEntry::Held(held) if held.has_fence(fence)) => slot,
            Slot::Occupied(mut slot) if matches!(slot.get(), KeyEntry::Poisoned(_)) => {
                let KeyEntry::Poisoned(poisoned) = slot.get_mut() else { unreachable!("matched above") };
                crate::reached!("key: a claim ends while its key is poisoned");
                self.adoption.record_ended(id.hash64(), fence);
                let earlier = poisoned.pending_writes.clone();
                poisoned.pending_writes.extend(write);
                poisoned.ended = ended;
                return Some(EndTransition { repeated: Vec::new(), earlier });
            }
            slot => {
                drop((slot, level));
                crate::reached!("key: a claim ends that does not hold its key");
                // It never held its key. A crash could still let its row win over a later holder's.
                write.into_iter().for_each(|write| self.add_pending_write(id, write));
                return None;
            }
        };
        let KeyEntry::Held(held) = slot.get_mut() else { unreachable!("matched above") };
        ProtocolPoint::KeyStep.reach();
        self.adoption.record_ended(id.hash64(), fence);
        let repeated = held.take_all_repeated();
        if held.pending_writes.is_empty() && write.is_none() && ended.is_none() {
            slot.remove();
            return Some(EndTransition { repeated, earlier: PendingWrites::new() });
        }
        let earlier = held.pending_writes.clone();
        let mut vacant = VacantKey { pending_writes: earlier.clone(), ended };
        vacant.pending_writes.extend(write);
        slot.insert(KeyEntry::Vacant(vacant));
        Some(EndTransition { repeated, earlier })
    }

    /// Forgets a claim that ended without its holder.
    fn forget_ended(&self, id: &ClaimId, fence: Fence) {
        let _level = lock_order::acquire(LockLevel::KeyEntry);
        let Slot::Occupied(mut slot) = self.map.entry(id.clone()) else { return };
        let ended = match slot.get_mut() {
            KeyEntry::Vacant(vacant) | KeyEntry::Pending(PendingKey { vacant, .. }) => &mut vacant.ended,
            KeyEntry::Poisoned(poisoned) => &mut poisoned.ended,
            KeyEntry::Held(_) | KeyEntry::Unreadable { .. } => return,
        };
        ended.take_if(|ended| ended.grant.handle.fence == fence);
        if matches!(slot.get(), KeyEntry::Vacant(vacant) if vacant.is_forgotten()) {
            slot.remove();
        }
    }

    /// Adds a record that the store lacks about the key, whoever holds it now: a recovered shard relinquished its
    /// claim.
    pub fn add_pending_write(&self, id: &ClaimId, record: PendingWrite) {
        let _level = lock_order::acquire(LockLevel::KeyEntry);
        match self.map.entry(id.clone()) {
            Slot::Vacant(slot) => {
                let pending_writes = PendingWrites::from_iter([record]);
                slot.insert(KeyEntry::Vacant(VacantKey { pending_writes, ended: None }));
            }
            Slot::Occupied(mut slot) => slot.get_mut().add_pending_write(record),
        }
    }

    /// Clears records of `shard` up to `seq`, which the store now has.
    pub fn clear_pending_write(&self, id: &ClaimId, shard: ShardRef, seq: Seq) {
        let _level = lock_order::acquire(LockLevel::KeyEntry);
        let Slot::Occupied(mut slot) = self.map.entry(id.clone()) else { return };
        ProtocolPoint::KeyStep.reach();
        if slot.get_mut().clear_pending_write(shard, seq) {
            slot.remove();
        }
    }
}

/// Consequences of a grant for the key that is held now.
#[derive(Debug)]
pub struct HeldTransition {
    /// Claim that was granted; `None` for a member of a gang and for an adopted claim.
    pub claim: Option<Box<PendingClaim>>,
    /// Calls for the duplicates that waited for the decision.
    pub repeated: Vec<RepeatedCall>,
    /// Records about the key that the store lacks.
    pub pending_writes: PendingWrites,
}

/// Consequences of the end of a claim for its key.
#[derive(Debug)]
pub struct EndTransition {
    /// Repeated claims that were not answered: they must be submitted again.
    #[allow(clippy::vec_box, reason = "claims stay boxed from entry to entry")]
    pub repeated: Vec<Box<PendingClaim>>,
    /// Earlier records about the key that the store lacks.
    pub earlier: PendingWrites,
}

/// Lets a claim wait for the decision about a pending key, unless its owner is queued and the claim does not wait.
fn join(pending: &mut PendingKey, item: Box<PendingClaim>) -> KeyAcquire {
    let queued = pending.queued.is_some();
    if queued && !item.waits() {
        crate::reached!("key: a claim meets one that is queued");
        return KeyAcquire::HolderQueued(item);
    }
    let until = if queued { item.wait_until_ms().map(|until_ms| (until_ms, item.id.clone())) } else { None };
    match pending.add_duplicate(item) {
        Ok(()) => KeyAcquire::Joined(until),
        Err(item) => KeyAcquire::TooManyDuplicates(item),
    }
}

/// Keeps a repeated claim with the holder, and makes the call that answers it.
fn repeat(held: &mut HeldKey, claim: Box<PendingClaim>, number: u64) -> RepeatedCall {
    let call = claim.reacquire_call(number, &held.holder);
    held.add_repeated(number, claim);
    RepeatedCall { shard: held.holder.shard, call }
}
