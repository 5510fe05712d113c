//! Claims that are being tried, and workers that came free while only such claims may fit them.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::{ClaimLane, TRIED_LANES_MAX, WaitQueue};
use crate::admission::queue::least_demand::{ClaimDemand, FreeAmounts};
use crate::admission::queue::queued_claim::ArrivalNumber;
use crate::engine::WorkerOffer;
use crate::limits;
use crate::model::{WorkerRegistration, WorkerSpec};

/// Workers that must be offered again.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct UnmatchedOffers {
    /// Shard of each, and its ordinal there.
    pub workers: Vec<(u16, u32)>,
    /// Whether others had to be given up, so that the claim must be searched for again.
    pub is_incomplete: bool,
}

/// Worker that nobody took, as it was when it was offered.
#[derive(Debug)]
pub(super) struct UnmatchedWorker {
    free: FreeAmounts,
    registration: Arc<WorkerRegistration>,
}

impl UnmatchedWorker {
    /// Whether a claim of this demand may fit. `allows`: whether its constraints allow the worker.
    pub fn may_fit(&self, demand: &ClaimDemand, allows: impl FnOnce(&WorkerSpec) -> bool) -> bool {
        demand.fits(&self.free) && allows(&self.registration.spec)
    }
}

/// Workers that nobody took, by shard and ordinal. What becomes of one later is not noted: then it is offered again in vain.
#[derive(Debug, Default)]
pub(super) struct UnmatchedWorkers {
    workers: BTreeMap<(u16, u32), UnmatchedWorker>,
    given_up: u64,
}

impl UnmatchedWorkers {
    /// Adds a worker, or gives it up if there are [`limits::UNMATCHED_WORKERS_MAX`]: then every claim that is being tried
    /// must be searched for once more.
    pub fn insert(&mut self, worker: (u16, u32), free: FreeAmounts, registration: &Arc<WorkerRegistration>) {
        if self.workers.len() >= limits::UNMATCHED_WORKERS_MAX && !self.workers.contains_key(&worker) {
            self.given_up += 1;
        } else {
            self.workers.insert(worker, UnmatchedWorker { free, registration: Arc::clone(registration) });
        }
    }

    pub fn remove(&mut self, worker: (u16, u32)) {
        self.workers.remove(&worker);
    }

    pub fn clear(&mut self) {
        self.workers.clear();
    }

    /// Number of workers that were given up so far.
    pub const fn given_up(&self) -> u64 {
        self.given_up
    }

    /// Takes the workers that pass `is_taken`.
    pub fn take(&mut self, mut is_taken: impl FnMut(&UnmatchedWorker) -> bool) -> Vec<(u16, u32)> {
        self.workers.extract_if(.., |_, worker| is_taken(worker)).map(|(worker, _)| worker).collect()
    }
}

impl WaitQueue {
    /// Notes that a claim stands still from now on. Take what nobody else took before ([`Self::take_unmatched`]).
    pub fn note_still(&mut self, arrival: ArrivalNumber) {
        let Some(&(_, number)) = self.claims.get(&arrival) else { return };
        self.change_lane(number, |lane| {
            if lane.tried.remove(&arrival).is_some() {
                lane.still.insert(arrival);
            }
        });
        if self.lanes.get(number).tried.is_empty() {
            self.forget_tried_lane(number);
        }
    }

    /// Notes that these claims are being tried. Each must stand still later ([`Self::note_still`]) or be removed.
    pub fn note_tried(&mut self, arrivals: &[ArrivalNumber]) {
        let given_up = self.unmatched.given_up();
        for arrival in arrivals {
            let Some(&(_, number)) = self.claims.get(arrival) else { continue };
            self.change_lane(number, |lane| {
                if lane.still.remove(arrival) {
                    lane.tried.insert(*arrival, given_up);
                }
            });
            self.tried_lanes.insert(number);
        }
    }

    /// Changes which claims of a lane are being tried. The trees change only if that decides whether any stands still.
    fn change_lane(&mut self, number: u32, change: impl FnOnce(&mut ClaimLane)) {
        let lane = self.lanes.get_mut(number);
        let (group, before) = (lane.group, lane.still.is_empty());
        change(lane);
        if before != lane.still.is_empty() {
            self.version += 1;
            self.detach_group(group);
            self.detach_lane(number);
            self.attach_lane(number);
            self.attach_group(group);
        }
    }

    /// Takes the workers that nobody took while this claim was being tried, as far as it may fit them. They must be offered
    /// again once it stands still.
    #[must_use]
    pub fn take_unmatched(&mut self, arrival: ArrivalNumber) -> UnmatchedOffers {
        let Some(&(_, lane)) = self.claims.get(&arrival) else { return UnmatchedOffers::default() };
        let ClaimLane { class, ref tried, .. } = *self.lanes.get(lane);
        let Some(given_up) = tried.get(&arrival) else { return UnmatchedOffers::default() };
        let (demand, classes) = (self.classes.demand(class), &self.classes);
        let workers =
            self.unmatched.take(|worker| worker.may_fit(demand, |spec| classes.allows_any_query(class, spec)));
        UnmatchedOffers { workers, is_incomplete: *given_up < self.unmatched.given_up() }
    }

    /// Forgets a lane of which no claim is being tried any more. Without any, no worker is unmatched.
    pub(super) fn forget_tried_lane(&mut self, lane: u32) {
        self.tried_lanes.remove(&lane);
        if self.tried_lanes.is_empty() {
            self.unmatched.clear();
        }
    }

    /// Notes that no claim that stands still took a worker. It is unmatched if one that is being tried may fit it.
    pub fn note_unmatched(&mut self, shard: u16, offer: &WorkerOffer) {
        let (worker, free) = ((shard, offer.worker), FreeAmounts::of(offer));
        let is_wanted = self.tried_lanes.len() > TRIED_LANES_MAX
            || self.tried_lanes.iter().any(|lane| {
                let class = self.lanes.get(*lane).class;
                self.classes.demand(class).fits(&free) && self.classes.allows_any_query(class, &offer.registration.spec)
            });
        if is_wanted {
            self.unmatched.insert(worker, free, &offer.registration);
        } else {
            self.unmatched.remove(worker);
        }
    }
}
