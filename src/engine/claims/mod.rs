//! Which claims are held: a slab, so that a claim is reached by its ordinal in one step. Freed ordinals are used
//! again, last freed first, so that the memory in use stays warm and its size is the most that was ever held.

pub(in crate::engine) mod gangs;
pub(in crate::engine) mod lifecycle;
pub(in crate::engine) mod resize;
pub(in crate::engine) mod timestamps;

use std::sync::Arc;

use super::claims::timestamps::ClaimTimestamps;
use super::{ClaimHandle, NIL};
use crate::model::{ClaimId, ClaimSpec, ClaimState, ClaimTimes, Fence, Millis};

/// A held claim.
#[derive(Debug, Clone)]
pub struct Claim {
    pub id: ClaimId,
    pub fence: Fence,
    /// When it was created and became active, or how long it may stay reserved.
    pub timestamps: ClaimTimestamps,
    /// How long it may stay as it is once it is not reserved any more, in milliseconds: active without a renewal, or
    /// releasing. 0: for ever.
    pub term_ms: u32,
    pub worker: u32,
    /// `Lost` is a state of memory only: a lost claim is not held.
    pub state: ClaimState,
    /// The holder itself confirmed it: it knows of the claim.
    pub confirmed: bool,
    /// Its worker named it.
    pub reported: bool,
    /// Parties that know of the claim.
    pub disclosure: DisclosureFlags,
    /// What it keeps of its request, if anything.
    pub spec: Option<Arc<ClaimSpec>>,
}

const _: () = assert!(size_of::<SlabEntry>() <= 64, "a claim is at most a cache line");

/// Parties that know of a claim.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct DisclosureFlags(u8);

impl DisclosureFlags {
    /// As of a claim that is read from its row: whoever may know of it does.
    pub const ALL: Self = Self(Self::DISCLOSED | Self::REPLY_SENT | Self::REFERENCED);

    const DISCLOSED: u8 = 1;
    const REPLY_SENT: u8 = 2;
    const REFERENCED: u8 = 4;
    const ORPHAN: u8 = 8;

    /// An answer other than the one that granted it spoke of it: it must not be undone silently.
    pub const fn is_disclosed(self) -> bool {
        self.0 & Self::DISCLOSED != 0
    }

    pub const fn set_disclosed(&mut self, told: DisclosureState) {
        self.0 = match told {
            DisclosureState::Disclosed => self.0 | Self::DISCLOSED,
            DisclosureState::Undisclosed => self.0 & !(Self::DISCLOSED | Self::ORPHAN),
        }
    }

    /// The answer that grants it has left or ended: before that no clock of it runs, and its worker is not shown it, nor judged
    /// by it.
    pub const fn is_reply_sent(self) -> bool {
        self.0 & Self::REPLY_SENT != 0
    }

    pub const fn set_reply_sent(&mut self) {
        self.0 |= Self::REPLY_SENT;
    }

    /// Another answer that speaks of it has left.
    pub const fn set_referenced(&mut self) {
        self.0 |= Self::DISCLOSED | Self::REFERENCED;
    }

    /// The answer that grants it reached nobody, and others that speak of it are on their way.
    pub const fn is_orphan(self) -> bool {
        self.0 & (Self::ORPHAN | Self::REFERENCED) == Self::ORPHAN
    }

    pub const fn set_orphan(&mut self) {
        self.0 |= Self::ORPHAN;
    }
}

/// Whether others than its maker were told of a claim.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DisclosureState {
    Undisclosed,
    Disclosed,
}

impl Claim {
    /// How long it may stay in the state that it is in; 0: for ever.
    #[inline]
    pub fn state_ttl_ms(&self) -> Millis {
        stay_ms(self.state, self.reserve_ms().into(), self.term_ms.into())
    }

    /// How long it may stay reserved, in milliseconds; 0 once it is not reserved any more.
    #[inline]
    pub fn reserve_ms(&self) -> u32 {
        self.timestamps.reserve_ms(self.state)
    }

    /// When it was created, and when it became active if it did.
    #[inline]
    pub fn times(&self) -> ClaimTimes {
        self.timestamps.times(self.state)
    }

    #[inline]
    pub fn is_reserved(&self) -> bool {
        self.state == ClaimState::Reserved
    }
}

/// How long a claim may stay in a state; 0: for ever.
pub const fn stay_ms(state: ClaimState, reserve_ms: Millis, term_ms: Millis) -> Millis {
    match state {
        ClaimState::Reserved => reserve_ms,
        ClaimState::Active | ClaimState::Releasing | ClaimState::Lost => term_ms,
    }
}

#[derive(Debug)]
enum SlabEntry {
    Held(Claim),
    Free { next: u32 },
}

/// The claims of a shard.
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

    /// Number of ordinals given out so far; each is a claim or free.
    pub const fn ordinals(&self) -> u32 {
        self.entries.len() as u32
    }

    /// Claims that are not active yet.
    pub const fn reserved(&self) -> usize {
        self.reserved
    }

    /// Claims whose worker is being cleaned.
    pub const fn releasing(&self) -> usize {
        self.releasing
    }

    /// Takes a claim in and numbers it.
    pub fn insert(&mut self, claim: Claim) -> u32 {
        self.len += 1;
        self.reserved += usize::from(claim.is_reserved());
        self.releasing += usize::from(claim.state == ClaimState::Releasing);
        if self.free_head == NIL {
            self.entries.push(SlabEntry::Held(claim));
            return (self.entries.len() - 1) as u32;
        }
        let at = self.free_head;
        let SlabEntry::Free { next } = std::mem::replace(&mut self.entries[at as usize], SlabEntry::Held(claim)) else {
            unreachable!("the free list holds free entries only")
        };
        self.free_head = next;
        at
    }

    /// The claim at `place`, if it is still that one.
    pub fn get(&self, place: ClaimHandle) -> Option<&Claim> {
        match self.entries.get(place.claim as usize)? {
            SlabEntry::Held(claim) if claim.fence == place.fence => Some(claim),
            _ => None,
        }
    }

    /// The same, to be changed. Its state goes through [`Self::turn`].
    pub fn get_mut(&mut self, place: ClaimHandle) -> Option<&mut Claim> {
        match self.entries.get_mut(place.claim as usize)? {
            SlabEntry::Held(claim) if claim.fence == place.fence => Some(claim),
            _ => None,
        }
    }

    /// The claim with this ordinal, whichever it is.
    pub fn by_ordinal(&self, at: u32) -> Option<&Claim> {
        match self.entries.get(at as usize)? {
            SlabEntry::Held(claim) => Some(claim),
            SlabEntry::Free { .. } => None,
        }
    }

    /// Brings a claim into a later state. One that was reserved until then never becomes active, unless `activated_at_ms` says when
    /// it does.
    pub fn transition(&mut self, place: ClaimHandle, state: ClaimState, activated_at_ms: Option<Millis>) {
        let Some(claim) = self.get_mut(place) else { return };
        debug_assert!(state != ClaimState::Reserved, "L3: no claim becomes reserved again");
        if std::mem::replace(&mut claim.state, state) == ClaimState::Reserved {
            claim.timestamps.end_reservation(activated_at_ms);
            self.reserved -= 1;
        }
        self.releasing += usize::from(state == ClaimState::Releasing);
    }

    /// Takes the claim with this ordinal out.
    pub fn remove(&mut self, at: u32) -> Claim {
        let SlabEntry::Held(claim) =
            std::mem::replace(&mut self.entries[at as usize], SlabEntry::Free { next: self.free_head })
        else {
            unreachable!("only a held claim is removed")
        };
        self.free_head = at;
        self.len -= 1;
        self.reserved -= usize::from(claim.is_reserved());
        self.releasing -= usize::from(claim.state == ClaimState::Releasing);
        claim
    }

    /// Every held claim, to be changed. Its state goes through [`Self::turn`].
    pub fn iter_mut(&mut self) -> impl Iterator<Item = &mut Claim> {
        self.entries.iter_mut().filter_map(|entry| match entry {
            SlabEntry::Held(claim) => Some(claim),
            SlabEntry::Free { .. } => None,
        })
    }

    /// Every held claim with its ordinal, from ordinal `from` on.
    pub fn iter_from(&self, from: u32) -> impl Iterator<Item = (u32, &Claim)> {
        self.entries.iter().enumerate().skip(from as usize).filter_map(|(at, entry)| match entry {
            SlabEntry::Held(claim) => Some((at as u32, claim)),
            SlabEntry::Free { .. } => None,
        })
    }
}
