//! Who holds a key: the one thing that crosses shards and pools.
//!
//! An entry goes `vacant -> pending(ticket) -> held -> gone -> vacant`. Who turns it pending gets the ticket and tries
//! shards; requests that come meanwhile join. The shard that grants turns it held, in the same actor step as its
//! ledger; whatever ends the claim turns it gone, again in that step. *Gone* is claimable at once, but remembers
//! which shards' records the store still lacks about the key ([`PendingWrite`]): a durable answer about the key waits
//! for all of them, whoever gives it, and a successor carries the list on. So a crash can never bring an older
//! holder back after somebody was told durably that it is gone.
//!
//! An entry carries what its claim counts for with its tenant ([`QuotaLease`]): taken with the ticket, given back with the entry.
//!
//! The directory is derived from the workers' rows and never stored. No guard of the map leaves this file
//! and the directory beside it, where `rebuild` fills the map at a recovery.

mod prehashed;
mod rebuild;

use std::cell::Cell;
use std::collections::VecDeque;
use std::hash::BuildHasherDefault;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use dashmap::DashMap;
use dashmap::mapref::entry::Entry as Slot;
use smallvec::SmallVec;

pub use self::prehashed::PrehashedHasher;
use crate::admission::adoption::AdoptionWindow;
use crate::admission::tenants::{QuotaLease, TenantRegistry};
use crate::admission::wait_queue::QueuedClaim;
use crate::engine::ClaimHandle;
use crate::limits;
use crate::model::{ClaimId, ClaimSpec, Fence, Millis, QuotaResource, Seq};
use crate::shard::PendingClaim;

/// A shard in this process.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ShardRef {
    /// Number of the pool in this process.
    pub pool: u32,
    /// Index of the shard in it.
    pub shard: u16,
}

/// Where a key is held.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct KeyHolder {
    /// The shard.
    pub shard: ShardRef,
    /// The place in it.
    pub handle: ClaimHandle,
}

/// A record about a key that the store does not have yet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PendingWrite {
    /// Whose record.
    pub shard: ShardRef,
    /// The store has it when it has this.
    pub seq: Seq,
}

/// The records that a durable answer about a key waits for, besides that of its own shard. Mostly none.
pub type PendingWrites = SmallVec<[PendingWrite; 1]>;

/// The right to decide for a pending key.
pub type KeyTicket = u64;

/// Requests that wait for a key that is being decided. Boxed, because nearly always there are none and every entry
/// of the directory has room for it.
#[allow(clippy::box_collection, reason = "8 bytes an entry instead of 32")]
type WaitingDuplicates = Option<Box<VecDeque<Box<PendingClaim>>>>;

#[derive(Debug)]
enum KeyEntry {
    Pending {
        ticket: KeyTicket,
        waiting_duplicates: WaitingDuplicates,
        pending_writes: PendingWrites,
        /// None: its tenant's quota is used up, it waits, or it is about to be adopted.
        charge: Option<QuotaLease>,
        /// The claim that has the ticket, while it waits for room or for its quota.
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
    /// Named by a row of a shard that does not serve, or by a member of a gang whose home does not. It counts all the same.
    Unreadable {
        fence: Fence,
        /// Shard of the row that names the key.
        shard: ShardRef,
        _charge: QuotaLease,
    },
}

/// What a claim finds.
#[derive(Debug)]
pub enum KeyAcquire {
    /// The ticket is in the item: find it a worker.
    Acquired(Box<PendingClaim>),
    /// It waits with the ticket's holder; if that is parked, until then.
    Joined(Option<(Millis, ClaimId)>),
    /// The claim that has the ticket waits for room, and this one does not wait.
    HolderQueued(Box<PendingClaim>),
    /// Ask there.
    Held(Box<PendingClaim>, KeyHolder),
    /// Too many wait for this key already.
    TooManyDuplicates(Box<PendingClaim>),
    /// Its shard does not serve.
    Unreadable(Box<PendingClaim>),
}

/// What any other request finds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum KeyLookup {
    /// Nobody holds it, and the store knows.
    Vacant,
    /// Nobody holds it (or nobody yet), but the store still lacks these.
    PendingWrites(PendingWrites),
    /// Ask there.
    Held(KeyHolder),
    /// Its shard does not serve.
    Unreadable,
}

/// Locks of the map. Far more than threads: two requests seldom meet at one.
const MAP_SHARDS: usize = 1024;

/// The key directory.
#[derive(Debug)]
pub struct KeyDirectory {
    map: DashMap<ClaimId, KeyEntry, BuildHasherDefault<PrehashedHasher>>,
    /// What tenants hold, and how much they may.
    pub tenants: TenantRegistry,
    /// Keys that a lost claim may still get.
    pub adoption: AdoptionWindow,
}

impl Default for KeyDirectory {
    fn default() -> Self {
        let map = DashMap::with_hasher_and_shard_amount(BuildHasherDefault::default(), MAP_SHARDS);
        Self { map, tenants: TenantRegistry::default(), adoption: AdoptionWindow::default() }
    }
}

/// A number that no other ticket of this process has. Each thread has a range of its own, so that claims on
/// different cores do not meet at one counter.
fn next_ticket() -> KeyTicket {
    static RANGES: AtomicU64 = AtomicU64::new(1);
    thread_local! {
        static NEXT: Cell<KeyTicket> = Cell::new(RANGES.fetch_add(1, Ordering::Relaxed) << 40);
    }
    NEXT.with(|next| next.replace(next.get() + 1))
}

fn pending(ticket: KeyTicket, charge: Option<QuotaLease>, unstored: PendingWrites) -> KeyEntry {
    KeyEntry::Pending { ticket, waiting_duplicates: None, pending_writes: unstored, charge, queued: None }
}

impl KeyDirectory {
    /// Gives the claim a ticket, and charges its tenant; past its quota the claim says so ([`PendingClaim::over_quota`]).
    fn grant_ticket(&self, item: &mut PendingClaim) -> (KeyTicket, Option<QuotaLease>) {
        item.ticket = next_ticket();
        (item.ticket, self.charge(item))
    }

    fn charge(&self, item: &mut PendingClaim) -> Option<QuotaLease> {
        let charge = self.tenants.try_charge(&item.id, item.spec(), item.pool);
        item.over_quota = charge.as_ref().err().copied();
        charge.ok()
    }

    /// A claim for `item.id`.
    pub fn acquire(&self, mut item: Box<PendingClaim>) -> KeyAcquire {
        match self.map.entry(item.id.clone()) {
            Slot::Vacant(slot) => {
                let (ticket, charge) = self.grant_ticket(&mut item);
                slot.insert(pending(ticket, charge, PendingWrites::new()));
                KeyAcquire::Acquired(item)
            }
            Slot::Occupied(mut slot) => match slot.get_mut() {
                KeyEntry::Held { holder: hold, .. } => KeyAcquire::Held(item, *hold),
                KeyEntry::Unreadable { .. } => KeyAcquire::Unreadable(item),
                KeyEntry::Gone { pending_writes: unstored } => {
                    let unstored = std::mem::take(unstored);
                    let (ticket, charge) = self.grant_ticket(&mut item);
                    slot.insert(pending(ticket, charge, unstored));
                    KeyAcquire::Acquired(item)
                }
                KeyEntry::Pending { queued: Some(_), .. } if !item.waits() => KeyAcquire::HolderQueued(item),
                KeyEntry::Pending { waiting_duplicates: joiners, queued: parked, .. } => {
                    let joiners = joiners.get_or_insert_default();
                    if joiners.len() >= limits::WAITING_DUPLICATES_MAX {
                        joiners.retain(|joiner| !joiner.reply.is_closed());
                    }
                    if joiners.len() >= limits::WAITING_DUPLICATES_MAX {
                        return KeyAcquire::TooManyDuplicates(item);
                    }
                    let until = parked.as_ref().map(|_| (item.wait_until_ms(), item.id.clone()));
                    joiners.push_back(item);
                    KeyAcquire::Joined(until)
                }
            },
        }
    }

    /// Takes the ticket of a key that nobody holds, wants or is known to hold, without a claim on its way: for one with
    /// this fence that may be adopted. Whoever takes it calls [`KeyDirectory::hold`] or [`KeyDirectory::vacate`].
    pub fn acquire_vacant(&self, id: &ClaimId, fence: Fence) -> Option<KeyTicket> {
        let ticket = next_ticket();
        // Under the entry's guard: whoever held the key before has said so.
        let take = || if self.adoption.allows(id.hash64(), fence) { Ok((ticket, None)) } else { Err(None) };
        self.enter_vacant(id, take).is_ok().then_some(ticket)
    }

    /// The same for a member of a gang, which is charged.
    ///
    /// # Errors
    /// None: the key is not free. Or what would be over the tenant's quota.
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
                KeyEntry::Gone { pending_writes: unstored } => {
                    let (ticket, charge) = take()?;
                    let unstored = std::mem::take(unstored);
                    slot.insert(pending(ticket, charge, unstored));
                    Ok(())
                }
                KeyEntry::Held { .. } | KeyEntry::Unreadable { .. } | KeyEntry::Pending { .. } => Err(None),
            },
        }
    }

    /// The claim with this ticket waits, and is not charged meanwhile. Those who joined and do not wait are returned, and when the
    /// others give up. False: the ticket is not its any more.
    pub fn mark_queued(
        &self,
        id: &ClaimId,
        ticket: KeyTicket,
        claim: &Arc<QueuedClaim>,
    ) -> Option<(Vec<Box<PendingClaim>>, Vec<Millis>)> {
        let mut entry = self.map.get_mut(id)?;
        let KeyEntry::Pending { ticket: ours, waiting_duplicates: joiners, charge, queued: parked, .. } = &mut *entry
        else {
            return None;
        };
        if *ours != ticket {
            return None;
        }
        *parked = Some(Arc::clone(claim));
        drop(charge.take());
        let Some(joiners) = joiners else { return Some((Vec::new(), Vec::new())) };
        let (wait, leave): (Vec<_>, Vec<_>) = joiners.drain(..).partition(|item| item.waits());
        **joiners = wait.into();
        Some((leave, joiners.iter().map(|item| item.wait_until_ms()).collect()))
    }

    /// The claim that waited goes on its way: its tenant is charged again, or it says that its quota is used up.
    pub fn mark_unqueued(&self, item: &mut PendingClaim) {
        let Some(mut entry) = self.map.get_mut(&item.id) else { return };
        let KeyEntry::Pending { ticket, charge, queued: parked, .. } = &mut *entry else { return };
        if *ticket == item.ticket {
            *parked = None;
            *charge = self.charge(item);
        }
    }

    /// The claim that waits for this key to come free or to be given room.
    #[must_use]
    pub fn queued_claim(&self, id: &ClaimId) -> Option<Arc<QueuedClaim>> {
        match self.map.get(id).as_deref() {
            Some(KeyEntry::Pending { queued: parked, .. }) => parked.clone(),
            _ => None,
        }
    }

    /// Those who joined a key that is waited for and have waited for long enough themselves.
    pub fn take_expired_duplicates(&self, id: &ClaimId, now_ms: Millis) -> Vec<Box<PendingClaim>> {
        let Some(mut entry) = self.map.get_mut(id) else { return Vec::new() };
        let KeyEntry::Pending { waiting_duplicates: Some(joiners), .. } = &mut *entry else { return Vec::new() };
        let (late, wait): (Vec<_>, Vec<_>) = joiners.drain(..).partition(|item| item.wait_until_ms() <= now_ms);
        **joiners = wait.into();
        late
    }

    /// The claim with this fence counts for what `spec` asks for. Returns what it counted for.
    ///
    /// # Errors
    /// What would be over the tenant's quota; nothing changed.
    pub fn resize(
        &self,
        id: &ClaimId,
        fence: Fence,
        spec: Option<Arc<ClaimSpec>>,
    ) -> Result<Option<Arc<ClaimSpec>>, QuotaResource> {
        match self.map.get_mut(id).as_deref_mut() {
            Some(KeyEntry::Held { holder: hold, charge, .. }) if hold.handle.fence == fence => charge.resize(spec),
            _ => Ok(None),
        }
    }

    /// Takes [`Self::resize`] back.
    pub fn revert_resize(&self, id: &ClaimId, fence: Fence, spec: Option<Arc<ClaimSpec>>) {
        if let Some(KeyEntry::Held { holder: hold, charge, .. }) = self.map.get_mut(id).as_deref_mut()
            && hold.handle.fence == fence
        {
            charge.set(spec);
        }
    }

    /// The holder of `ticket` granted: the key is held. Returns those who joined, and what a durable answer waits for.
    ///
    /// # Panics
    /// If the ticket is not that of the entry: only its holder can take it away, so this cannot happen.
    pub fn set_held(
        &self,
        id: &ClaimId,
        ticket: KeyTicket,
        hold: KeyHolder,
        spec: Option<&Arc<ClaimSpec>>,
    ) -> (VecDeque<Box<PendingClaim>>, PendingWrites) {
        let mut entry = self.map.get_mut(id).expect("K1: a key with a ticket is in the directory");
        let KeyEntry::Pending { ticket: ours, waiting_duplicates: joiners, pending_writes: unstored, charge, .. } =
            &mut *entry
        else {
            unreachable!("K1: a key with a ticket is pending")
        };
        assert_eq!(*ours, ticket, "K1: one ticket a key");
        let (joiners, unstored) = (joiners.take(), std::mem::take(unstored));
        let mut charge = charge.take().unwrap_or_else(|| self.tenants.charge(id, spec.cloned(), hold.shard.pool));
        charge.move_to_pool(hold.shard.pool);
        *entry = KeyEntry::Held { holder: hold, pending_writes: unstored.clone(), charge };
        (joiners.map(|joiners| *joiners).unwrap_or_default(), unstored)
    }

    /// A gang with this member, whose `ticket` was taken, is committed. The same as [`KeyDirectory::hold`], but it may come again,
    /// if the shard panicked before the store had it.
    pub fn set_committed(
        &self,
        id: &ClaimId,
        ticket: KeyTicket,
        hold: KeyHolder,
        spec: Option<&Arc<ClaimSpec>>,
    ) -> (VecDeque<Box<PendingClaim>>, PendingWrites) {
        let again = match self.map.get(id).as_deref() {
            Some(KeyEntry::Held { holder: known, .. }) => known.handle.fence == hold.handle.fence,
            _ => false,
        };
        if again { (VecDeque::new(), self.pending_writes(id)) } else { self.set_held(id, ticket, hold, spec) }
    }

    /// The holder of `ticket` gives up. The oldest who joined and still listens gets a fresh ticket and is returned.
    pub fn release_ticket(&self, id: &ClaimId, ticket: KeyTicket) -> Option<Box<PendingClaim>> {
        let Slot::Occupied(mut slot) = self.map.entry(id.clone()) else { return None };
        let KeyEntry::Pending {
            ticket: ours,
            waiting_duplicates: joiners,
            pending_writes: unstored,
            charge,
            queued: parked,
        } = slot.get_mut()
        else {
            return None;
        };
        if *ours != ticket {
            return None;
        }
        let next = joiners.as_mut().and_then(|joiners| {
            while joiners.front().is_some_and(|joiner| joiner.reply.is_closed()) {
                joiners.pop_front();
            }
            joiners.pop_front()
        });
        match next {
            Some(mut next) => {
                // First given back, then taken: it may be just that.
                drop(charge.take());
                (*ours, *charge) = self.grant_ticket(&mut next);
                *parked = None;
                Some(next)
            }
            None if unstored.is_empty() => {
                slot.remove();
                None
            }
            None => {
                let unstored = std::mem::take(unstored);
                slot.insert(KeyEntry::Gone { pending_writes: unstored });
                None
            }
        }
    }

    /// The claim with this fence is over. `record`: the store lacks that yet. Returns what a durable answer waits for.
    pub fn end_claim(&self, id: &ClaimId, fence: Fence, record: Option<PendingWrite>) -> PendingWrites {
        let Slot::Occupied(mut slot) = self.map.entry(id.clone()) else { return PendingWrites::new() };
        let KeyEntry::Held { holder: hold, pending_writes: unstored, .. } = slot.get_mut() else {
            return PendingWrites::new();
        };
        if hold.handle.fence != fence {
            return PendingWrites::new();
        }
        self.adoption.record_ended(id.hash64(), fence);
        let earlier = unstored.clone();
        if let Some(record) = record {
            // One record a shard is enough: a later one covers the earlier.
            unstored.retain(|known| known.shard != record.shard);
            unstored.push(record);
        }
        if unstored.is_empty() {
            slot.remove();
        } else {
            let unstored = std::mem::take(unstored);
            slot.insert(KeyEntry::Gone { pending_writes: unstored });
        }
        earlier
    }

    /// The store lacks a record about the key, whoever holds it now: a recovered shard gave its claim back.
    pub fn add_pending_write(&self, id: &ClaimId, record: PendingWrite) {
        match self.map.entry(id.clone()) {
            Slot::Vacant(slot) => {
                drop(slot.insert(KeyEntry::Gone { pending_writes: PendingWrites::from_iter([record]) }))
            }
            Slot::Occupied(mut slot) => {
                if let KeyEntry::Pending { pending_writes: unstored, .. }
                | KeyEntry::Held { pending_writes: unstored, .. }
                | KeyEntry::Gone { pending_writes: unstored } = slot.get_mut()
                {
                    unstored.retain(|known| known.shard != record.shard);
                    unstored.push(record);
                }
            }
        }
    }

    /// The store has all of `shard` up to `seq`: nothing about this key waits for that any more.
    pub fn clear_pending_write(&self, id: &ClaimId, shard: ShardRef, seq: Seq) {
        let Slot::Occupied(mut slot) = self.map.entry(id.clone()) else { return };
        let (KeyEntry::Pending { pending_writes: unstored, .. }
        | KeyEntry::Held { pending_writes: unstored, .. }
        | KeyEntry::Gone { pending_writes: unstored }) = slot.get_mut()
        else {
            return;
        };
        unstored.retain(|known| known.shard != shard || known.seq > seq);
        if matches!(slot.get(), KeyEntry::Gone { pending_writes } if pending_writes.is_empty()) {
            slot.remove();
        }
    }

    /// Who holds the key.
    #[must_use]
    pub fn lookup(&self, id: &ClaimId) -> KeyLookup {
        match self.map.get(id).as_deref() {
            None => KeyLookup::Vacant,
            Some(KeyEntry::Held { holder: hold, .. }) => KeyLookup::Held(*hold),
            Some(KeyEntry::Unreadable { .. }) => KeyLookup::Unreadable,
            Some(KeyEntry::Pending { pending_writes: unstored, .. } | KeyEntry::Gone { pending_writes: unstored })
                if unstored.is_empty() =>
            {
                KeyLookup::Vacant
            }
            Some(KeyEntry::Pending { pending_writes: unstored, .. } | KeyEntry::Gone { pending_writes: unstored }) => {
                KeyLookup::PendingWrites(unstored.clone())
            }
        }
    }

    /// What a durable answer about the key waits for, besides its own shard's record.
    #[must_use]
    pub fn pending_writes(&self, id: &ClaimId) -> PendingWrites {
        match self.map.get(id).as_deref() {
            Some(
                KeyEntry::Pending { pending_writes: unstored, .. }
                | KeyEntry::Held { pending_writes: unstored, .. }
                | KeyEntry::Gone { pending_writes: unstored },
            ) => unstored.clone(),
            _ => PendingWrites::new(),
        }
    }

    /// Entries, of whatever kind.
    #[must_use]
    pub fn len(&self) -> usize {
        self.map.len()
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.map.is_empty()
    }

    /// Keys that somebody is about to claim. Costs a walk; for tests and `/debug/shards`.
    #[must_use]
    pub fn pending_len(&self) -> usize {
        self.map.iter().filter(|entry| matches!(entry.value(), KeyEntry::Pending { .. })).count()
    }
}
