//! Which claims are held: a slab, so that a claim is reached by its ordinal in one step. Freed ordinals are used
//! again, last freed first, so that the memory in use stays warm and its size is the most that was ever held.

use std::sync::Arc;

use super::{NIL, Place};
use crate::model::{ClaimId, ClaimSpec, Fence, Millis};

/// A held claim.
#[derive(Debug, Clone)]
pub struct Claim {
    pub id: ClaimId,
    pub fence: Fence,
    pub reserve_ms: Millis,
    pub worker: u32,
    /// Not `reserved` any more (or never was, with `reserve_ms: 0`).
    pub active: bool,
    /// The holder itself confirmed it: it knows of the claim.
    pub confirmed: bool,
    /// An answer other than the one that granted it spoke of it: it must not be undone silently.
    pub told: bool,
    /// What it keeps of its request, if anything.
    pub spec: Option<Arc<ClaimSpec>>,
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
}

impl Claims {
    pub const fn new() -> Self {
        Self { entries: Vec::new(), free: NIL, len: 0, reserved: 0 }
    }

    pub const fn len(&self) -> usize {
        self.len
    }

    /// Claims that are not active yet.
    pub const fn reserved(&self) -> usize {
        self.reserved
    }

    /// Takes a claim in and numbers it.
    pub fn insert(&mut self, claim: Claim) -> u32 {
        self.len += 1;
        self.reserved += usize::from(!claim.active);
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

    /// The same, to be changed. Activation goes through [`Self::activate`].
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

    /// Makes a reserved claim active.
    pub fn activate(&mut self, place: Place) {
        let Some(claim) = self.get_mut(place) else { return };
        if !std::mem::replace(&mut claim.active, true) {
            self.reserved -= 1;
        }
    }

    /// Takes the claim with this ordinal out.
    pub fn remove(&mut self, at: u32) -> Claim {
        let Entry::Held(claim) = std::mem::replace(&mut self.entries[at as usize], Entry::Free { next: self.free })
        else {
            unreachable!("only a held claim is removed")
        };
        self.free = at;
        self.len -= 1;
        self.reserved -= usize::from(!claim.active);
        claim
    }

    /// Every held claim with its ordinal, from ordinal `from` on.
    pub fn iter_from(&self, from: u32) -> impl Iterator<Item = (u32, &Claim)> {
        self.entries.iter().enumerate().skip(from as usize).filter_map(|(at, entry)| match entry {
            Entry::Held(claim) => Some((at as u32, claim)),
            Entry::Free { .. } => None,
        })
    }
}
