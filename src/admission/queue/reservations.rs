//! Reservations of a pool: workers from which capacity is collected for claims that wait, because claims of lower
//! priority were evicted from them, or because smaller claims would take what comes free. Pure.
//!
//! A reservation has no owner. At each change the reservations are assigned anew to the claims that wait, so one that
//! its claim cannot use any more serves the next, and one that nobody can use ends at once.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::gang::WaitingGang;
use super::gang_preemption::VictimSearch;
use super::least_demand::{ClaimDemand, FreeAmounts};
use super::queued_claim::{ArrivalNumber, QueuedClaim};
use super::request_class::RequestClass;
use crate::engine::{ReservationId, ReservedWorker, WorkerOffer};
use crate::limits;
use crate::model::{Millis, PoolMode, ResourceAmounts};
use crate::shard::ShardSet;

/// Consequences of a new assignment of reservations.
#[derive(Debug, Default)]
pub struct ReservationChanges {
    /// Reservations that ended, each with its shard.
    pub ended: Vec<(ReservationId, u16)>,
    /// Workers, each with its shard, that are kept for another claim than before: they are to be offered once more.
    pub moved: Vec<(u16, u32)>,
}

/// Whether a claim that takes something of a worker leaves enough for the one that the worker is kept for.
fn leaves_enough(
    offer: &WorkerOffer,
    free: &FreeAmounts,
    demand: &ClaimDemand,
    assigned: &ReservationAssignment,
) -> bool {
    // In an exclusive pool a claim takes all of its worker.
    let left = if offer.mode == PoolMode::Shared { free.beside(demand) } else { None };
    left.is_some_and(|left| assigned.demand.fits(&left))
}

/// Way in which a reservation gets its capacity.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ReservationKind {
    /// Claims of lower priority were evicted from the worker.
    Evicted,
    /// The worker is held until enough has come free. One in a pool at a time.
    Held,
}

/// Claim that a reservation is assigned to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct ReservationAssignment {
    arrival: ArrivalNumber,
    priority: u16,
    demand: ClaimDemand,
}

impl ReservationAssignment {
    fn of(claim: &QueuedClaim, demand: &ClaimDemand) -> Self {
        Self { arrival: claim.arrival, priority: claim.priority, demand: *demand }
    }
}

/// Worker from which capacity is collected.
#[derive(Debug)]
pub struct CapacityReservation {
    /// Shard of the worker in the pool.
    pub shard: u16,
    /// The worker, and what it will have free.
    pub reserved: ReservedWorker,
    /// Way in which it gets its capacity.
    pub kind: ReservationKind,
    /// Engine time at which it ends in any case.
    pub until_ms: Millis,
    assigned: Option<ReservationAssignment>,
}

impl GangHold {
    /// Whether the worker is held, or is to be.
    fn keeps(&self, offer: &WorkerOffer) -> bool {
        match offer.reservation {
            Some(number) => self.held.values().any(|held| held.number == number),
            None => self.held.len() < self.wanted && self.wants(offer),
        }
    }

    /// Whether the worker is of use to a member: at once if others are evicted for what is missing, otherwise as soon as
    /// enough of it has come free.
    fn wants(&self, offer: &WorkerOffer) -> bool {
        let free = FreeAmounts::of(offer);
        let suits = |class: &RequestClass| {
            let constraints = class.constraints.as_ref();
            constraints.is_none_or(|constraints| constraints.fits(&offer.registration.spec))
                && (self.kind == ReservationKind::Held || ClaimDemand::new(class.constraints.as_deref(), 0).fits(&free))
        };
        self.classes.iter().any(suits)
    }
}

impl CapacityReservation {
    fn suits(&self, claim: &QueuedClaim, demand: &ClaimDemand) -> bool {
        let constraints = claim.class.constraints.as_ref();
        constraints.is_none_or(|constraints| constraints.fits(&self.reserved.registration.spec))
            && demand.fits(&FreeAmounts::new(&self.reserved.expected_free, None))
    }
}

/// Search for a shard that reserves a worker.
#[derive(Debug)]
pub struct ReservationRequest {
    /// Claim for which the search began.
    pub claim: Arc<QueuedClaim>,
    /// Way in which the worker gets its capacity.
    pub kind: ReservationKind,
    /// Shards that were asked.
    pub visited: ShardSet,
}

/// Workers that are held for a gang, as they come free.
#[derive(Debug)]
struct GangHold {
    kind: ReservationKind,
    arrival: ArrivalNumber,
    priority: u16,
    until_ms: Millis,
    classes: Vec<RequestClass>,
    /// Number of workers that are held at most.
    wanted: usize,
    /// Workers by shard and ordinal.
    held: BTreeMap<(u16, u32), HeldWorker>,
}

/// Worker that is held for a gang.
#[derive(Debug, Clone, Copy)]
struct HeldWorker {
    number: ReservationId,
    /// Resources that are free once the victims have gone; none when they have, or there were none.
    expected: Option<ResourceAmounts>,
}

impl HeldWorker {
    const fn is_free(&self) -> bool {
        self.expected.is_none()
    }
}

/// Rest after a large hold, during which no other large one begins.
#[derive(Debug, Clone, Copy, Default)]
struct HoldRest {
    until_ms: Millis,
}

/// Reservations of one pool, and the searches for more.
#[derive(Debug, Default)]
pub struct ReservationList {
    reservations: BTreeMap<ReservationId, CapacityReservation>,
    requests: BTreeMap<ReservationId, ReservationRequest>,
    /// Claims whose holds ran out, with how often. Forgotten with the claims.
    expired_holds: BTreeMap<ArrivalNumber, u32>,
    /// When the present hold began.
    hold_since_ms: Millis,
    gang_hold: Option<GangHold>,
    /// Requests to evict claims for gangs, with the arrivals of these.
    gang_requests: BTreeMap<ReservationId, ArrivalNumber>,
    /// Search for victims of a gang, one at a time.
    pub victim_search: Option<VictimSearch>,
    /// Claims for which no worker could be reserved, with the time from which one is sought again.
    failed: BTreeMap<ArrivalNumber, Millis>,
    /// Number of the next reservation for a gang: drawn from the end of the numbers, where no arrival comes.
    gang_numbers: u64,
    rest: HoldRest,
}

impl ReservationList {
    /// Whether there is neither a reservation nor a search for one.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.reservations.is_empty() && self.requests.is_empty() && self.gang_hold.is_none()
    }

    /// Reservations by their numbers.
    pub fn iter(&self) -> impl Iterator<Item = (ReservationId, &CapacityReservation)> {
        self.reservations.iter().map(|(number, reservation)| (*number, reservation))
    }

    /// Lowest priority of a claim that a reservation is assigned to.
    #[must_use]
    pub fn lowest_priority(&self) -> Option<u16> {
        let of_claims = self.reservations.values().filter_map(|reservation| Some(reservation.assigned?.priority));
        of_claims.chain(self.gang_hold.as_ref().map(|hold| hold.priority)).min()
    }

    /// Whether a claim may have what it needs of an offered worker. Of a reserved worker it may if the reservation is
    /// assigned to it, if its priority is higher than that of the claim to which it is assigned, or if that claim's need
    /// stays open.
    #[must_use]
    pub fn may_use(&self, offer: &WorkerOffer, claim: &QueuedClaim, demand: &ClaimDemand, free: &FreeAmounts) -> bool {
        if let Some(hold) = self.gang_hold.as_ref().filter(|hold| hold.keeps(offer)) {
            return claim.priority > hold.priority;
        }
        let reservation = offer.reservation.and_then(|number| self.reservations.get(&number));
        let Some(assigned) = reservation.and_then(|reservation| reservation.assigned) else { return true };
        assigned.arrival == claim.arrival
            || claim.priority > assigned.priority
            || leaves_enough(offer, free, demand, &assigned)
    }

    /// Claim that an offered worker is kept for.
    #[must_use]
    pub fn assigned_of(&self, offer: &WorkerOffer) -> Option<ArrivalNumber> {
        let reservation = self.reservations.get(&offer.reservation?)?;
        reservation.assigned.map(|assigned| assigned.arrival)
    }

    /// Claims that reservations are assigned to.
    pub fn assigned(&self) -> impl Iterator<Item = ArrivalNumber> + '_ {
        self.reservations.values().filter_map(|reservation| Some(reservation.assigned?.arrival))
    }

    /// Reservations that a claim in no queue, or one that is being tried, may use: those that are assigned to it or to
    /// claims of a lower priority.
    pub fn usable(
        &self,
        priority: u16,
        arrival: Option<ArrivalNumber>,
    ) -> impl Iterator<Item = (ReservationId, u16)> + '_ {
        self.reservations
            .iter()
            .filter_map(move |(number, reservation)| {
                let assigned = reservation.assigned?;
                let is_usable = assigned.priority < priority || Some(assigned.arrival) == arrival;
                is_usable.then_some((*number, reservation.shard))
            })
            .chain(
                self.gang_hold
                    .iter()
                    .filter(move |hold| hold.priority < priority)
                    .flat_map(|hold| hold.held.iter().map(|((shard, _), held)| (held.number, *shard))),
            )
    }

    /// Whether a reservation is assigned to the claim, or is being sought for it.
    #[must_use]
    pub fn serves(&self, arrival: ArrivalNumber) -> bool {
        self.requests.values().any(|request| request.claim.arrival == arrival)
            || self.reservations.values().any(|held| held.assigned.is_some_and(|claim| claim.arrival == arrival))
    }

    /// Whether another worker may be reserved in this way.
    #[must_use]
    pub fn has_capacity_for(&self, kind: ReservationKind) -> bool {
        match kind {
            ReservationKind::Evicted => self.evicted_workers() < limits::EVICTED_WORKERS_MAX,
            ReservationKind::Held => {
                let existing = self.reservations.values().map(|reservation| reservation.kind);
                let mut kinds = existing.chain(self.requests.values().map(|request| request.kind));
                self.gang_hold.is_none() && !kinds.any(|other| other == ReservationKind::Held)
            }
        }
    }

    /// Notes that shards are asked to reserve a worker.
    pub fn seek(&mut self, number: ReservationId, request: ReservationRequest) {
        self.requests.insert(number, request);
    }

    /// Takes a search whose shard has answered.
    pub fn take_request(&mut self, number: ReservationId) -> Option<ReservationRequest> {
        self.requests.remove(&number)
    }

    /// Adds a worker that a shard has reserved.
    pub fn begin(
        &mut self,
        number: ReservationId,
        kind: ReservationKind,
        shard: u16,
        reserved: ReservedWorker,
        range_ms: std::ops::Range<Millis>,
    ) {
        if kind == ReservationKind::Held {
            self.hold_since_ms = range_ms.start;
        }
        let until_ms = range_ms.end;
        self.reservations.insert(number, CapacityReservation { shard, reserved, kind, until_ms, assigned: None });
    }

    /// Ends a reservation that its shard does not have any more.
    pub fn end(&mut self, number: ReservationId) {
        self.reservations.remove(&number);
        if let Some(hold) = &mut self.gang_hold {
            hold.held.retain(|_, held| held.number != number);
        }
    }

    /// Assigns a reservation to the claim for which it began.
    pub fn assign_to(&mut self, number: ReservationId, claim: &QueuedClaim, demand: &ClaimDemand) {
        if let Some(reservation) = self.reservations.get_mut(&number) {
            reservation.assigned = Some(ReservationAssignment::of(claim, demand));
        }
    }

    /// Whether a worker may be sought for the claim: not soon after none was found.
    #[must_use]
    pub fn may_seek(&self, arrival: ArrivalNumber, now_ms: Millis) -> bool {
        self.failed.get(&arrival).is_none_or(|until_ms| *until_ms <= now_ms)
    }

    /// Notes that no worker was found for the claim.
    pub fn note_failed(&mut self, arrival: ArrivalNumber, until_ms: Millis) {
        self.failed.insert(arrival, until_ms);
    }

    /// Whether the claim to which a worker's reservation is assigned still fits beside another that takes something.
    #[must_use]
    pub fn stays_beside(&self, shard: u16, offer: &WorkerOffer, claim: &QueuedClaim) -> bool {
        let Some(reservation) = self.of_worker(shard, offer.worker).and_then(|number| self.reservations.get(&number))
        else {
            return false;
        };
        let demand = ClaimDemand::new(claim.class.constraints.as_deref(), 0);
        reservation.assigned.is_some_and(|assigned| {
            assigned.arrival != claim.arrival && leaves_enough(offer, &FreeAmounts::of(offer), &demand, &assigned)
        })
    }

    fn of_worker(&self, shard: u16, worker: u32) -> Option<ReservationId> {
        let mut rows = self.iter();
        rows.find(|(_, row)| row.shard == shard && row.reserved.worker == worker).map(|(number, _)| number)
    }

    /// Ends the reservation of a worker that a claim takes.
    pub fn end_of(&mut self, shard: u16, worker: u32) {
        if let Some(number) = self.of_worker(shard, worker) {
            self.reservations.remove(&number);
        }
        if let Some(hold) = &mut self.gang_hold {
            hold.held.remove(&(shard, worker));
        }
    }

    /// Ends the reservation of an offered worker that will not live for as long as its claim needs it.
    pub fn end_if_too_short(&mut self, offer: &WorkerOffer, now_ms: Millis) -> Option<ReservationId> {
        let number = offer.reservation?;
        let assigned = self.reservations.get(&number)?.assigned?;
        if offer.left_ms.is_none_or(|left_ms| assigned.demand.needs_ms < left_ms) {
            return None;
        }
        self.reservations.remove(&number);
        self.note_failed(assigned.arrival, now_ms + limits::RESERVE_AFTER_MS);
        Some(number)
    }

    /// Voids all reservations of a shard.
    pub fn void_shard(&mut self, shard: u16) {
        self.reservations.retain(|_, reservation| reservation.shard != shard);
        if let Some(hold) = &mut self.gang_hold {
            hold.held.retain(|(other, _), _| *other != shard);
        }
    }

    /// Whether a hold may begin that takes `held` of the pool's `usable` workers: not while another is there, and a large
    /// one not during a rest.
    #[must_use]
    pub fn may_hold(&self, held: u64, usable: u64, now_ms: Millis) -> bool {
        self.has_capacity_for(ReservationKind::Held)
            && (held.saturating_mul(8) <= usable || self.rest.until_ms <= now_ms)
    }

    /// Number of holds for the claim that ran out.
    #[must_use]
    pub fn expired_holds(&self, arrival: ArrivalNumber) -> u32 {
        self.expired_holds.get(&arrival).copied().unwrap_or(0)
    }

    /// Forgets a claim that does not wait any more.
    pub fn forget(&mut self, arrival: ArrivalNumber) {
        self.expired_holds.remove(&arrival);
        self.failed.remove(&arrival);
        if self.victim_search.as_ref().is_some_and(|search| search.gang.arrival == arrival) {
            self.victim_search = None;
        }
    }

    /// Gang for which workers are held, and the end of the hold.
    #[must_use]
    pub fn gang_hold(&self) -> Option<(ArrivalNumber, Millis)> {
        self.gang_hold.as_ref().map(|hold| (hold.arrival, hold.until_ms))
    }

    /// Begins to hold workers of this pool for a gang. `kind`: whether others are evicted for what it lacks.
    pub fn begin_gang_hold(
        &mut self,
        gang: &WaitingGang,
        pool: u32,
        kind: ReservationKind,
        wanted: usize,
        range_ms: std::ops::Range<Millis>,
    ) {
        self.hold_since_ms = range_ms.start;
        self.gang_hold = Some(GangHold {
            kind,
            arrival: gang.arrival,
            priority: gang.priority,
            until_ms: range_ms.end,
            classes: gang.classes_in(pool).cloned().collect(),
            wanted,
            held: BTreeMap::new(),
        });
    }

    /// Ends the hold for a gang that ran out. Returns its workers' reservations, each with its shard.
    pub fn end_gang_hold(&mut self, usable: u64, now_ms: Millis) -> Vec<(u16, ReservationId)> {
        if let Some(hold) = &self.gang_hold {
            let arrival = hold.arrival;
            let held = hold.wanted as u64;
            self.end_hold(Some(arrival), held, usable, now_ms);
        }
        self.drop_gang_hold(usable, now_ms)
    }

    /// Ends the hold for a gang that is served or has left. Returns its workers' reservations, each with its shard.
    pub fn drop_gang_hold(&mut self, usable: u64, now_ms: Millis) -> Vec<(u16, ReservationId)> {
        let Some(hold) = self.gang_hold.take() else { return Vec::new() };
        self.end_hold(None, hold.wanted as u64, usable, now_ms);
        hold.held.into_iter().map(|((shard, _), held)| (shard, held.number)).collect()
    }

    /// Reservation under which a worker that came free is held for a gang, if one needs it.
    pub fn hold_for_gang(&mut self, shard: u16, offer: &WorkerOffer) -> Option<ReservationId> {
        let hold = self.gang_hold.as_mut().filter(|hold| offer.reservation.is_none() && hold.wants(offer))?;
        let worker = (shard, offer.worker);
        if !hold.held.contains_key(&worker) && hold.held.len() >= hold.wanted {
            return None;
        }
        let held = hold.held.entry(worker).or_insert_with(|| {
            self.gang_numbers += 1;
            let number = ReservationId::new(u64::MAX - self.gang_numbers).expect("2^64 workers are not held");
            HeldWorker { number, expected: None }
        });
        Some(held.number)
    }

    /// Holds a worker for a gang for which claims were evicted from it. Returns false if nothing is held for the gang any
    /// more.
    pub fn hold_evicted(
        &mut self,
        arrival: ArrivalNumber,
        shard: u16,
        reserved: &ReservedWorker,
        number: ReservationId,
    ) -> bool {
        let Some(hold) = self.gang_hold.as_mut().filter(|hold| hold.arrival == arrival) else { return false };
        hold.held.insert((shard, reserved.worker), HeldWorker { number, expected: Some(reserved.expected_free) });
        true
    }

    /// Notes what is free of a worker that is held for a gang.
    pub fn note_held_free(&mut self, shard: u16, offer: &WorkerOffer) {
        let Some(hold) = &mut self.gang_hold else { return };
        if let Some(held) = hold.held.get_mut(&(shard, offer.worker)) {
            held.expected = held.expected.filter(|expected| !offer.free.covers(expected));
        }
    }

    /// Whether victims of the gang have not gone yet, or shards are asked to evict some.
    #[must_use]
    pub fn has_pending_victims(&self, arrival: ArrivalNumber) -> bool {
        let hold = self.gang_hold.iter().filter(|hold| hold.arrival == arrival);
        self.gang_requests.values().any(|other| *other == arrival)
            || hold.flat_map(|hold| hold.held.values()).any(|held| !held.is_free())
    }

    /// Whether a reservation is there, or a shard is asked for it.
    #[must_use]
    pub fn knows(&self, number: ReservationId) -> bool {
        self.reservations.contains_key(&number)
            || self.requests.contains_key(&number)
            || self.gang_requests.contains_key(&number)
            || self.gang_hold.iter().flat_map(|hold| hold.held.values()).any(|held| held.number == number)
    }

    /// Notes that a shard is asked to evict claims for a gang.
    pub fn request_for_gang(&mut self, number: ReservationId, arrival: ArrivalNumber) {
        self.gang_requests.insert(number, arrival);
    }

    /// Takes a request to evict claims for a gang, which its shard has answered.
    pub fn take_gang_request(&mut self, number: ReservationId) -> Option<ArrivalNumber> {
        self.gang_requests.remove(&number)
    }

    /// Number of workers from which claims were evicted, or are to be.
    #[must_use]
    pub fn evicted_workers(&self) -> usize {
        let is_evicted = |kind: ReservationKind| kind == ReservationKind::Evicted;
        let single = self.reservations.values().filter(|row| is_evicted(row.kind)).count()
            + self.requests.values().filter(|request| is_evicted(request.kind)).count();
        let of_gang = self.gang_hold.iter().flat_map(|hold| hold.held.values()).filter(|held| !held.is_free()).count();
        single + of_gang + self.gang_requests.len()
    }

    /// Number of workers that are held for a gang and whose victims have gone.
    #[must_use]
    pub fn held_for(&self, arrival: ArrivalNumber) -> usize {
        let held = self.gang_hold.iter().filter(|hold| hold.arrival == arrival).flat_map(|hold| hold.held.values());
        held.filter(|held| held.is_free()).count()
    }

    /// Workers that are held for a gang and whose victims have gone, each with its shard.
    pub fn held_workers(&self, arrival: ArrivalNumber) -> impl Iterator<Item = (u16, ReservationId)> + '_ {
        let hold = self.gang_hold.iter().filter(move |hold| hold.arrival == arrival);
        let free = hold.flat_map(|hold| hold.held.iter().filter(|(_, held)| held.is_free()));
        free.map(|((shard, _), held)| (*shard, held.number))
    }

    /// Assigns the reservations anew to `candidates`, the best first, each with what it needs, and returns those that end:
    /// nobody can use them, or their time is over. `usable`: number of usable workers in the pool.
    pub fn assign(
        &mut self,
        candidates: &[(Arc<QueuedClaim>, ClaimDemand)],
        usable: u64,
        now_ms: Millis,
    ) -> ReservationChanges {
        let mut over = self.end_overdue(candidates, usable, now_ms);
        let before: BTreeMap<ReservationId, Option<ReservationAssignment>> =
            self.reservations.iter_mut().map(|(number, reservation)| (*number, reservation.assigned.take())).collect();
        for (claim, demand) in candidates {
            let is_free = |number: &ReservationId, reservation: &CapacityReservation| {
                let own = before[number].is_some_and(|assigned| assigned.arrival == claim.arrival);
                let may_have = match reservation.kind {
                    ReservationKind::Evicted => claim.priority > 0,
                    // A claim of a higher priority takes a hold over.
                    ReservationKind::Held => {
                        own || before[number].is_none_or(|assigned| claim.priority > assigned.priority)
                    }
                };
                (reservation.assigned.is_none() && may_have && reservation.suits(claim, demand)).then_some(!own)
            };
            let free = self.reservations.iter().filter_map(|(number, row)| Some((is_free(number, row)?, *number)));
            if let Some((_, number)) = free.min()
                && let Some(reservation) = self.reservations.get_mut(&number)
            {
                reservation.assigned = Some(ReservationAssignment::of(claim, demand));
            }
        }
        let unassigned = self.reservations.extract_if(.., |_, row| row.assigned.is_none());
        over.extend(unassigned.map(|(number, row)| (number, row.shard)));
        let is_new = |(number, row): &(&ReservationId, &CapacityReservation)| {
            let arrival = |assigned: ReservationAssignment| assigned.arrival;
            row.assigned.map(arrival) != before[*number].map(arrival)
        };
        let moved = self.reservations.iter().filter(is_new).map(|(_, row)| (row.shard, row.reserved.worker)).collect();
        ReservationChanges { ended: over, moved }
    }

    /// Ends the reservations whose time is over, each with its shard, so that their claims may have others.
    fn end_overdue(
        &mut self,
        candidates: &[(Arc<QueuedClaim>, ClaimDemand)],
        usable: u64,
        now_ms: Millis,
    ) -> Vec<(ReservationId, u16)> {
        let overdue: Vec<_> = self.reservations.extract_if(.., |_, row| row.until_ms <= now_ms).collect();
        for (_, row) in overdue.iter().filter(|(_, row)| row.kind == ReservationKind::Held) {
            let owner = row.assigned.map(|assigned| assigned.arrival);
            let still_waits = |owner: &ArrivalNumber| candidates.iter().any(|(claim, _)| claim.arrival == *owner);
            self.end_hold(owner.filter(still_waits), 1, usable, now_ms);
        }
        overdue.into_iter().map(|(number, row)| (number, row.shard)).collect()
    }

    /// Notes that a hold ran out: others come first next, and the pool rests from large holds for as long as it lasted.
    fn end_hold(&mut self, ran_out_for: Option<ArrivalNumber>, held: u64, usable: u64, now_ms: Millis) {
        let Some(arrival) = ran_out_for else { return };
        *self.expired_holds.entry(arrival).or_default() += 1;
        if held * 8 > usable {
            let lasted_ms = now_ms.saturating_sub(self.hold_since_ms);
            // Twice as long if it took more than half of the pool.
            self.rest.until_ms = now_ms + if held * 2 > usable { 2 * lasted_ms } else { lasted_ms };
        }
    }
}

#[cfg(test)]
#[path = "reservations_tests.rs"]
mod tests;
