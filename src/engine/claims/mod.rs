//! Live claims in a slab, so that a claim is reached by its ordinal in one step. Freed ordinals are reused, last
//! freed first, so that the memory in use stays warm and its size is the largest number of claims at one time.

pub(in crate::engine) mod gangs;
pub(in crate::engine) mod lifecycle;
pub(in crate::engine) mod resize;
pub(in crate::engine) mod timestamps;

use std::sync::Arc;

use super::claims::timestamps::ClaimTimestamps;
use super::{ClaimHandle, NIL};
use crate::model::{ClaimId, ClaimSpec, ClaimState, ClaimTimes, Fence, Millis};

/// Live claim of a worker.
#[derive(Debug, Clone)]
pub struct Claim {
    pub id: ClaimId,
    pub fence: Fence,
    /// Creation and activation times, or the time limit of the reservation.
    pub timestamps: ClaimTimestamps,
    /// Time limit of the state once it is not reserved, in milliseconds: active without a renewal, or releasing. 0:
    /// none.
    pub term_ms: u32,
    pub worker: u32,
    /// State, of which `Lost` never occurs here: a lost claim is not live.
    pub state: ClaimState,
    /// True if its worker reported it.
    pub reported: bool,
    /// Parties that may know of the claim.
    pub disclosure: ClaimDisclosure,
    /// Parts of its request that it keeps, if any.
    pub spec: Option<Arc<ClaimSpec>>,
}

const _: () = assert!(size_of::<SlabEntry>() <= 64, "a claim is at most a cache line");

/// Disclosure of a claim: who may know of it. Packed, because a claim is a cache line: three flags, and above them the
/// number of *references*, which are the replies other than the grant that show the claim and may be read. A reply is
/// counted when it is decided, and no longer once it is certain that nobody reads it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct ClaimDisclosure(u16);

impl ClaimDisclosure {
    const CONFIRMED: u16 = 1;
    const REPLY_SENT: u16 = 2;
    const GRANT_UNREAD: u16 = 4;
    const REFERENCE: u16 = 8;
    const REFERENCES_MAX: u16 = !(Self::REFERENCE - 1);

    /// Disclosure of a claim that is read from its row: whoever may know of it does.
    pub const KNOWN: Self = Self(Self::REPLY_SENT | Self::REFERENCES_MAX);
    /// Disclosure of a claim that was confirmed before its row was written.
    pub const HELD: Self = Self(Self::KNOWN.0 | Self::CONFIRMED);

    /// Whether the holder itself confirmed the claim, so it knows of it.
    pub const fn is_confirmed(self) -> bool {
        self.0 & Self::CONFIRMED != 0
    }

    pub const fn set_confirmed(&mut self) {
        self.0 |= Self::CONFIRMED;
    }

    /// Whether the reply that grants it was sent or dropped: before that no deadline runs, and its worker neither
    /// sees it nor is judged by it.
    pub const fn is_reply_sent(self) -> bool {
        self.0 & Self::REPLY_SENT != 0
    }

    pub const fn set_reply_sent(&mut self) {
        self.0 |= Self::REPLY_SENT;
    }

    /// Counts a reference. At the maximum the count stays, and the claim is never rolled back.
    pub const fn add_reference(&mut self) {
        if self.0 < Self::REFERENCES_MAX {
            self.0 += Self::REFERENCE;
        }
    }

    /// Takes back a reference that nobody read.
    pub const fn remove_reference(&mut self) {
        if self.0 < Self::REFERENCES_MAX && self.0 >= Self::REFERENCE {
            self.0 -= Self::REFERENCE;
        }
    }

    /// Records that a party knows of the claim for good.
    pub const fn set_known(&mut self) {
        self.0 |= Self::REFERENCES_MAX;
    }

    /// Whether nobody can know of the claim but the caller to whom it was granted.
    pub const fn is_undisclosed(self) -> bool {
        self.0 & (Self::REFERENCES_MAX | Self::CONFIRMED) == 0
    }

    /// Whether the claim may be rolled back, now or once its references were not read.
    pub const fn is_revocable(self) -> bool {
        self.0 < Self::REFERENCES_MAX && !self.is_confirmed()
    }

    /// Records that nobody reads the grant.
    pub const fn set_grant_unread(&mut self) {
        self.0 |= Self::GRANT_UNREAD;
    }

    /// Whether nobody at all can know of the claim.
    pub const fn is_orphan(self) -> bool {
        self.0 & Self::GRANT_UNREAD != 0 && self.is_undisclosed()
    }
}

impl Claim {
    /// Time limit of the present state in milliseconds; 0: none.
    #[inline]
    pub fn state_ttl_ms(&self) -> Millis {
        stay_ms(self.state, self.reserve_ms().into(), self.term_ms.into())
    }

    /// Time limit of the reservation in milliseconds; 0 once it is not reserved.
    #[inline]
    pub fn reserve_ms(&self) -> u32 {
        self.timestamps.reserve_ms(self.state)
    }

    /// Unix times of its creation and activation.
    #[inline]
    pub fn times(&self) -> ClaimTimes {
        self.timestamps.times(self.state)
    }

    #[inline]
    pub fn is_reserved(&self) -> bool {
        self.state == ClaimState::Reserved
    }
}

/// Time limit of a state in milliseconds; 0: none.
pub const fn stay_ms(state: ClaimState, reserve_ms: Millis, term_ms: Millis) -> Millis {
    match state {
        ClaimState::Reserved => reserve_ms,
        ClaimState::Active | ClaimState::Releasing | ClaimState::Lost => term_ms,
    }
}

#[derive(Debug)]
enum SlabEntry {
    Live(Claim),
    Free { next: u32 },
}

/// Live claims of a shard, by ordinal.
#[derive(Debug)]
pub struct ClaimSlab {
    entries: Vec<SlabEntry>,
    free_head: u32,
    len: usize,
    reserved: usize,
    releasing: usize,
}

impl ClaimSlab {
    pub const fn new() -> Self {
        Self { entries: Vec::new(), free_head: NIL, len: 0, reserved: 0, releasing: 0 }
    }

    pub const fn len(&self) -> usize {
        self.len
    }

    /// Number of ordinals used so far; each is live or free.
    pub const fn ordinals(&self) -> u32 {
        self.entries.len() as u32
    }

    /// Number of claims that are not active yet.
    pub const fn reserved(&self) -> usize {
        self.reserved
    }

    /// Number of claims whose worker is being cleaned up.
    pub const fn releasing(&self) -> usize {
        self.releasing
    }

    /// Adds a claim and returns its ordinal.
    pub fn insert(&mut self, claim: Claim) -> u32 {
        debug_assert!(claim.state != ClaimState::Lost, "L3: a lost claim is not live");
        self.len += 1;
        self.reserved += usize::from(claim.is_reserved());
        self.releasing += usize::from(claim.state == ClaimState::Releasing);
        if self.free_head == NIL {
            assert!(self.entries.len() < NIL as usize, "L3: the ordinals of claims are exhausted");
            self.entries.push(SlabEntry::Live(claim));
            return (self.entries.len() - 1) as u32;
        }
        let at = self.free_head;
        let SlabEntry::Free { next } = std::mem::replace(&mut self.entries[at as usize], SlabEntry::Live(claim)) else {
            unreachable!("L3: the free list contains free entries only")
        };
        self.free_head = next;
        debug_assert!(next == NIL || (next as usize) < self.entries.len(), "L3: the free list leaves the slab");
        debug_assert!(self.len <= self.entries.len(), "L2: more claims are live than have ordinals");
        at
    }

    /// Claim behind a handle, unless the handle is stale.
    pub fn get(&self, handle: ClaimHandle) -> Option<&Claim> {
        match self.entries.get(handle.claim as usize)? {
            SlabEntry::Live(claim) if claim.fence == handle.fence => Some(claim),
            _ => None,
        }
    }

    /// Mutable claim behind a handle. Its state is changed by [`Self::transition`] only.
    pub fn get_mut(&mut self, handle: ClaimHandle) -> Option<&mut Claim> {
        match self.entries.get_mut(handle.claim as usize)? {
            SlabEntry::Live(claim) if claim.fence == handle.fence => Some(claim),
            _ => None,
        }
    }

    /// Claim with this ordinal, regardless of its fence.
    pub fn by_ordinal(&self, at: u32) -> Option<&Claim> {
        match self.entries.get(at as usize)? {
            SlabEntry::Live(claim) => Some(claim),
            SlabEntry::Free { .. } => None,
        }
    }

    /// Moves a claim to a later state. A claim that leaves its reservation became active at `activated_at_ms`, or
    /// never does.
    pub fn transition(&mut self, handle: ClaimHandle, state: ClaimState, activated_at_ms: Option<Millis>) {
        let Some(claim) = self.get_mut(handle) else { return };
        debug_assert!(state != ClaimState::Reserved, "L3: no claim becomes reserved again");
        debug_assert!(state != ClaimState::Lost, "L3: a lost claim is removed and not kept");
        debug_assert!(claim.state != ClaimState::Releasing, "L3: a claim in release changes its state");
        if std::mem::replace(&mut claim.state, state) == ClaimState::Reserved {
            claim.timestamps.end_reservation(activated_at_ms);
            self.reserved -= 1;
        }
        self.releasing += usize::from(state == ClaimState::Releasing);
        debug_assert!(self.reserved + self.releasing <= self.len, "L2: a claim is counted in two states");
    }

    /// Removes the claim with this ordinal.
    pub fn remove(&mut self, at: u32) -> Claim {
        let SlabEntry::Live(claim) =
            std::mem::replace(&mut self.entries[at as usize], SlabEntry::Free { next: self.free_head })
        else {
            unreachable!("L3: only a live claim is removed")
        };
        self.free_head = at;
        self.len -= 1;
        self.reserved -= usize::from(claim.is_reserved());
        self.releasing -= usize::from(claim.state == ClaimState::Releasing);
        debug_assert!(self.reserved + self.releasing <= self.len, "L2: a claim is counted in two states");
        claim
    }

    /// Mutable live claims. Their state is changed by [`Self::transition`] only.
    pub fn iter_mut(&mut self) -> impl Iterator<Item = &mut Claim> {
        self.entries.iter_mut().filter_map(|entry| match entry {
            SlabEntry::Live(claim) => Some(claim),
            SlabEntry::Free { .. } => None,
        })
    }

    /// Live claims with their ordinals, from ordinal `from` on.
    pub fn iter_from(&self, from: u32) -> impl Iterator<Item = (u32, &Claim)> {
        self.entries.iter().enumerate().skip(from as usize).filter_map(|(at, entry)| match entry {
            SlabEntry::Live(claim) => Some((at as u32, claim)),
            SlabEntry::Free { .. } => None,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn c12_references_are_counted_up_to_a_maximum_that_stays() {
        let mut disclosure = ClaimDisclosure::default();
        disclosure.set_grant_unread();
        for references in [1, 2, 1_000] {
            (0..references).for_each(|_| disclosure.add_reference());
            (1..references).for_each(|_| disclosure.remove_reference());
            assert!(!disclosure.is_undisclosed() && !disclosure.is_orphan());
            disclosure.remove_reference();
            assert!(disclosure.is_orphan());
        }
        (0..=u16::MAX).for_each(|_| disclosure.add_reference());
        (0..=u16::MAX).for_each(|_| disclosure.remove_reference());
        assert!(!disclosure.is_undisclosed() && !disclosure.is_revocable());
        let flags = [disclosure.is_reply_sent(), disclosure.is_confirmed()];
        assert_eq!(flags, [false; 2], "the count does not reach the flags");
    }
}
