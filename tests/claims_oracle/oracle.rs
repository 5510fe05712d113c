//! Naive oracle: a map of holders, and what each is charged.

use std::collections::{BTreeMap, BTreeSet};

use hotpool::model::request_error::RequestError;
use hotpool::model::{ClaimId, ClaimResult, ClaimState, ClaimView, Fence};

/// Tenant and key of a claim, as text: claims themselves have no order.
type Key = String;

/// Answer to one call.
#[derive(Debug, Clone)]
pub enum Outcome {
    Claimed(ClaimId, Result<ClaimResult, RequestError>),
    Released(ClaimId, Fence, Result<(), RequestError>),
}

/// Claim that is held.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Holder {
    pub id: ClaimId,
    pub fence: Fence,
    pub pool: String,
    /// Thousandths of cores that its tenant is charged.
    pub cpu_milli: u64,
}

/// Usage of a tenant: claims and thousandths of cores.
pub type Usage = (u64, u64);

#[derive(Default)]
pub struct Oracle {
    /// Claims that were held at the last comparison.
    pub holders: BTreeMap<Key, Holder>,
    /// Highest fence with which each key was held.
    last_fences: BTreeMap<Key, Fence>,
    /// Fences that calls of this round were told.
    told: BTreeMap<Key, BTreeSet<Fence>>,
    created: BTreeMap<Key, BTreeSet<Fence>>,
    /// Claims that were seen held before the answers to their callers were.
    unanswered: BTreeSet<Fence>,
    released: BTreeSet<Fence>,
    /// Claims that were not active when they were last seen.
    reserved: BTreeSet<Fence>,
    /// Number of claims of each key that were under way in this round.
    calls: BTreeMap<Key, usize>,
    /// Keys of calls of this round whose outcome nobody knows, because an error says so.
    unsure: BTreeSet<Key>,
    /// Keys whose holder may have been released by a caller that left.
    maybe_released: BTreeSet<Key>,
    /// Pools that were deleted in this round.
    deleted: BTreeSet<String>,
    /// Sizes to which claims were changed.
    resized: BTreeMap<Fence, BTreeSet<u64>>,
}

impl Oracle {
    pub fn leave_release(&mut self, id: &ClaimId) {
        self.maybe_released.insert(key_of(id));
    }

    pub fn begin_claim(&mut self, id: &ClaimId) {
        *self.calls.entry(key_of(id)).or_default() += 1;
    }

    pub fn begin_resize(&mut self, fence: Fence, cpu_milli: u64) {
        self.resized.entry(fence).or_default().insert(cpu_milli);
    }

    pub fn delete_pool(&mut self, pool: &str) {
        self.deleted.insert(pool.to_owned());
    }

    pub fn learn(&mut self, outcome: Outcome) -> Result<(), String> {
        match outcome {
            Outcome::Claimed(id, Ok(ClaimResult { claim, created })) => {
                let (id, fence) = (key_of(&id), claim.fence);
                if claim.state == ClaimState::Reserved {
                    self.reserved.insert(fence);
                }
                if created {
                    let last = self.last_fences.get(&id).copied().unwrap_or(0);
                    if fence < last || (fence == last && !self.unanswered.remove(&fence)) {
                        return Err(format!("F1: {id:?} got {fence} after {last}"));
                    }
                    if !self.created.entry(id.clone()).or_default().insert(fence) {
                        return Err(format!("K1: two callers created {fence} of {id:?}"));
                    }
                }
                // A member of a gang may be lost before its gang is answered.
                if self.deleted.contains(claim.pool.pool()) || claim.state == ClaimState::Lost {
                    self.unsure.insert(id.clone());
                }
                self.told.entry(id).or_default().insert(fence);
            }
            Outcome::Claimed(id, Err(error)) if leaves_doubt(&error) => drop(self.unsure.insert(key_of(&id))),
            Outcome::Claimed(..) => {}
            Outcome::Released(_, fence, Ok(())) => drop(self.released.insert(fence)),
            Outcome::Released(id, _, Err(RequestError::FenceMismatch)) => {
                // Somebody else holds it, or held it for a moment.
                self.unsure.insert(key_of(&id));
            }
            Outcome::Released(id, _, Err(_)) => drop(self.unsure.insert(key_of(&id))),
        }
        Ok(())
    }

    /// Compares what is held, and what tenants are charged, at a moment when nothing is under way.
    pub fn compare(&self, views: &[ClaimView], charged: &BTreeMap<String, Usage>) -> Result<(), String> {
        let mut by_key: BTreeMap<Key, &ClaimView> = BTreeMap::new();
        for view in views {
            if let Some(other) = by_key.insert(key_of(&view.id), view) {
                return Err(format!("K1: {:?} has the holders {} and {}", view.id, other.fence, view.fence));
            }
            self.check_view(view)?;
        }
        for (id, fence) in self.certain() {
            if by_key.get(&id).map(|view| view.fence) != Some(fence) {
                return Err(format!("K1: {id:?} must be held with {fence}, is {:?}", by_key.get(&id)));
            }
        }
        let mut sums: BTreeMap<String, Usage> = BTreeMap::new();
        for view in views {
            let (claims, cpu_milli) = sums.entry(view.id.owner().to_string()).or_default();
            *claims += 1;
            *cpu_milli += cpu_of(view);
        }
        if sums != *charged {
            return Err(format!("U1: charged {charged:?}, held {sums:?}"));
        }
        Ok(())
    }

    fn check_view(&self, view: &ClaimView) -> Result<(), String> {
        let (id, fence) = (&key_of(&view.id), view.fence);
        let before = self.holders.get(id).filter(|holder| holder.fence == fence);
        let is_told = self.told.get(id).is_some_and(|told| told.contains(&fence));
        // An evicted claim counts as known, and ends by its own deadline.
        if before.is_none() && !is_told && !view.evicted && !self.unsure.contains(id) {
            return Err(format!("C12: {id:?} is held with {fence}, of which nobody knows"));
        }
        if self.released.contains(&fence) {
            return Err(format!("{id:?} is held with {fence}, which was released"));
        }
        if fence < self.last_fences.get(id).copied().unwrap_or(0) {
            return Err(format!("F1: {id:?} is held with {fence}, an earlier fence"));
        }
        if let Some(before) = before
            && cpu_of(view) != before.cpu_milli
            && !self.resized.get(&fence).is_some_and(|sizes| sizes.contains(&cpu_of(view)))
        {
            return Err(format!("{id:?} has {} cores, had {before:?}", cpu_of(view)));
        }
        Ok(())
    }

    /// Claims that must be held: those that were, or were created, and nobody ended.
    fn certain(&self) -> BTreeMap<Key, Fence> {
        let before = self.holders.iter().filter(|(_, holder)| !self.deleted.contains(&holder.pool));
        let before = before.map(|(id, holder)| (id.clone(), holder.fence));
        let created = self.created.iter().flat_map(|(id, fences)| fences.iter().map(|fence| (id.clone(), *fence)));
        // A claim with other pools or resources takes the place of one that is reserved.
        let is_replaced = |id: &Key, fence: &Fence| {
            let own_calls = usize::from(self.created.get(id).is_some_and(|fences| fences.contains(fence)));
            self.reserved.contains(fence) && self.calls.get(id).copied().unwrap_or(0) > own_calls
        };
        before
            .chain(created)
            .filter(|(id, fence)| !self.unsure.contains(id) && !self.released.contains(fence))
            .filter(|(id, _)| !self.maybe_released.contains(id))
            .filter(|(id, fence)| !is_replaced(id, fence))
            .collect()
    }

    /// Begins the next round with what is held now.
    pub fn adopt(&mut self, views: &[ClaimView]) {
        for (id, fences) in self.told.iter().chain(&self.created) {
            let last = self.last_fences.entry(id.clone()).or_default();
            *last = fences.iter().copied().fold(*last, Fence::max);
        }
        self.holders.clear();
        self.reserved.clear();
        for view in views {
            if self.last_fences.get(&key_of(&view.id)).is_none_or(|last| *last < view.fence) {
                self.unanswered.insert(view.fence);
            }
            if view.state == ClaimState::Reserved {
                self.reserved.insert(view.fence);
            }
            let holder = Holder {
                id: view.id.clone(),
                fence: view.fence,
                pool: view.pool.pool().to_owned(),
                cpu_milli: cpu_of(view),
            };
            self.holders.insert(key_of(&view.id), holder);
            self.last_fences.insert(key_of(&view.id), view.fence);
        }
        let holders = std::mem::take(&mut self.holders);
        let last_fences = std::mem::take(&mut self.last_fences);
        let reserved = std::mem::take(&mut self.reserved);
        let unanswered = std::mem::take(&mut self.unanswered);
        *self = Self { holders, last_fences, reserved, unanswered, ..Self::default() };
    }
}

/// Whether the error leaves open what became of the call.
pub fn leaves_doubt(error: &RequestError) -> bool {
    matches!(error, RequestError::DeadlineExceeded | RequestError::Unavailable(_))
}

fn key_of(id: &ClaimId) -> Key {
    id.tenant_and_key().to_owned()
}

pub fn cpu_of(view: &ClaimView) -> u64 {
    view.spec.as_ref().map_or(0, |spec| spec.resources.cpu_milli)
}

pub fn priority_of(view: &ClaimView) -> u16 {
    view.spec.as_ref().map_or(0, |spec| spec.priority)
}
