//! Which claims are held: a slab, so that a claim is reached by its ordinal in one step. Freed ordinals are used
//! again, last freed first, so that the memory in use stays warm and its size is the most that was ever held.

pub(in crate::engine) mod gangs;
pub(in crate::engine) mod lifecycle;
pub(in crate::engine) mod resize;
pub(in crate::engine) mod timestamps;

use std::sync::Arc;

use super::claims::timestamps::ClaimStamps;
use super::{NIL, Place};
use crate::model::{ClaimId, ClaimSpec, ClaimState, ClaimTimes, Fence, Millis};

/// A held claim.
#[derive(Debug, Clone)]
pub struct Claim {
    pub id: ClaimId,
    pub fence: Fence,
    /// When it was created and became active, or how long it may stay reserved.
    pub stamps: ClaimStamps,
    /// How long it may stay as it is once it is not reserved any more, in milliseconds: active without a renewal, or
    /// releasing. 0: for ever.
    pub term_ms: u32,
    pub worker: u32,
    /// `Lost` is a state of memory only: a lost claim is not held.
    pub state: ClaimState,
    /// The holder itself confirmed it: it knows of the claim.
    pub confirmed: bool,
    /// Its worker named it.
    pub named: bool,
    /// Parties that know of the claim.
    pub disclosed: Disclosed,
    /// What it keeps of its request, if anything.
    pub spec: Option<Arc<ClaimSpec>>,
}

const _: () = assert!(size_of::<Entry>() <= 64, "a claim is at most a cache line");

/// Parties that know of a claim.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Disclosed(u8);

impl Disclosed {
    /// As of a claim that is read from its row: whoever may know of it does.
    pub const ALL: Self = Self(Self::TOLD | Self::ANSWERED | Self::SPOKEN_OF);

    const TOLD: u8 = 1;
    const ANSWERED: u8 = 2;
    const SPOKEN_OF: u8 = 4;
    const ORPHAN: u8 = 8;

    /// An answer other than the one that granted it spoke of it: it must not be undone silently.
    pub const fn is_told(self) -> bool {
        self.0 & Self::TOLD != 0
    }

    pub const fn set_told(&mut self, told: Told) {
        self.0 = match told {
            Told::Others => self.0 | Self::TOLD,
            Told::Nobody => self.0 & !(Self::TOLD | Self::ORPHAN),
        }
    }

    /// The answer that grants it has left or ended: before that no clock of it runs, and its worker is not shown it, nor judged
    /// by it.
    pub const fn is_answered(self) -> bool {
        self.0 & Self::ANSWERED != 0
    }

    pub const fn set_answered(&mut self) {
        self.0 |= Self::ANSWERED;
    }

    /// Another answer that speaks of it has left.
    pub const fn set_spoken_of(&mut self) {
        self.0 |= Self::TOLD | Self::SPOKEN_OF;
    }

    /// The answer that grants it reached nobody, and others that speak of it are on their way.
    pub const fn is_orphan(self) -> bool {
        self.0 & (Self::ORPHAN | Self::SPOKEN_OF) == Self::ORPHAN
    }

    pub const fn set_orphan(&mut self) {
        self.0 |= Self::ORPHAN;
    }
}

/// Whether others than its maker were told of a claim.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Told {
    Nobody,
    Others,
}

impl Claim {
    /// How long it may stay in the state that it is in; 0: for ever.
    #[inline]
    pub fn stay_ms(&self) -> Millis {
        stay_ms(self.state, self.reserve_ms().into(), self.term_ms.into())
    }

    /// How long it may stay reserved, in milliseconds; 0 once it is not reserved any more.
    #[inline]
    pub fn reserve_ms(&self) -> u32 {
        self.stamps.reserve_ms(self.state)
    }

    /// When it was created, and when it became active if it did.
    #[inline]
    pub fn times(&self) -> ClaimTimes {
        self.stamps.times(self.state)
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
enum Entry {
    Held(Claim),
    Free { next: u32 },
}

/// The claims of a shard.
#[derive(Debug)]
pub struct Claims {
    entries: Vec<Entry>,
    free: u32,
    len: usize,
    reserved: usize,
    releasing: usize,
}

impl Claims {
    pub const fn new() -> Self {
        Self { entries: Vec::new(), free: NIL, len: 0, reserved: 0, releasing: 0 }
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
        if self.free == NIL {
            self.entries.push(Entry::Held(claim));
            return (self.entries.len() - 1) as u32;
        }
        let at = self.free;
        let Entry::Free { next } = std::mem::replace(&mut self.entries[at as usize], Entry::Held(claim)) else {
            unreachable!("the free list holds free entries only")
        };
        self.free = next;
        at
    }

    /// The claim at `place`, if it is still that one.
    pub fn get(&self, place: Place) -> Option<&Claim> {
        match self.entries.get(place.claim as usize)? {
            Entry::Held(claim) if claim.fence == place.fence => Some(claim),
            _ => None,
        }
    }

    /// The same, to be changed. Its state goes through [`Self::turn`].
    pub fn get_mut(&mut self, place: Place) -> Option<&mut Claim> {
        match self.entries.get_mut(place.claim as usize)? {
            Entry::Held(claim) if claim.fence == place.fence => Some(claim),
            _ => None,
        }
    }

    /// The claim with this ordinal, whichever it is.
    pub fn at(&self, at: u32) -> Option<&Claim> {
        match self.entries.get(at as usize)? {
            Entry::Held(claim) => Some(claim),
            Entry::Free { .. } => None,
        }
    }

    /// Brings a claim into a later state. One that was reserved until then never becomes active, unless `activated_at_ms` says when
    /// it does.
    pub fn turn(&mut self, place: Place, state: ClaimState, activated_at_ms: Option<Millis>) {
        let Some(claim) = self.get_mut(place) else { return };
        debug_assert!(state != ClaimState::Reserved, "L3: no claim becomes reserved again");
        if std::mem::replace(&mut claim.state, state) == ClaimState::Reserved {
            claim.stamps.end_reservation(activated_at_ms);
            self.reserved -= 1;
        }
        self.releasing += usize::from(state == ClaimState::Releasing);
    }

    /// Takes the claim with this ordinal out.
    pub fn remove(&mut self, at: u32) -> Claim {
        let Entry::Held(claim) = std::mem::replace(&mut self.entries[at as usize], Entry::Free { next: self.free })
        else {
            unreachable!("only a held claim is removed")
        };
        self.free = at;
        self.len -= 1;
        self.reserved -= usize::from(claim.is_reserved());
        self.releasing -= usize::from(claim.state == ClaimState::Releasing);
        claim
    }

    /// Every held claim, to be changed. Its state goes through [`Self::turn`].
    pub fn iter_mut(&mut self) -> impl Iterator<Item = &mut Claim> {
        self.entries.iter_mut().filter_map(|entry| match entry {
            Entry::Held(claim) => Some(claim),
            Entry::Free { .. } => None,
        })
    }

    /// Every held claim with its ordinal, from ordinal `from` on.
    pub fn iter_from(&self, from: u32) -> impl Iterator<Item = (u32, &Claim)> {
        self.entries.iter().enumerate().skip(from as usize).filter_map(|(at, entry)| match entry {
            Entry::Held(claim) => Some((at as u32, claim)),
            Entry::Free { .. } => None,
        })
    }
}
