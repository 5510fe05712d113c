//! The assignment of reservations against rules that are checked over all claims and reservations.

use std::cmp::Reverse;

use proptest::prelude::*;

use super::*;
use crate::admission::tenant::{Tenant, TenantDirectory};
use crate::model::{ClaimId, ResourceAmounts, WorkerId, WorkerRegistration, WorkerSpec};

/// Usable workers: few, so that a hold of one worker counts as large, but not as one of half of the pool.
const USABLE: u64 = 4;

#[derive(Debug, Clone)]
enum Step {
    Arrive { priority: u16, cores: u64 },
    Leave(usize),
    Evict { cores: u64, lasts_ms: Millis },
    Hold { cores: u64, lasts_ms: Millis },
    Pass(Millis),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => (0..4_u16, 1..5_u64).prop_map(|(priority, cores)| Step::Arrive { priority, cores }),
        2 => any::<usize>().prop_map(Step::Leave),
        3 => (1..5_u64, 1..50_u64).prop_map(|(cores, lasts_ms)| Step::Evict { cores, lasts_ms }),
        2 => (1..5_u64, 1..50_u64).prop_map(|(cores, lasts_ms)| Step::Hold { cores, lasts_ms }),
        3 => (1..30_u64).prop_map(Step::Pass),
    ]
}

fn amounts(cores: u64) -> ResourceAmounts {
    ResourceAmounts { cpu_milli: cores, ..ResourceAmounts::default() }
}

/// Reservation as the rules see it.
#[derive(Debug, Clone, Copy)]
struct NaiveReservation {
    kind: ReservationKind,
    cores: u64,
    since_ms: Millis,
    until_ms: Millis,
    assigned: Option<(ArrivalNumber, u16)>,
}

struct Scene {
    tenant: Arc<Tenant>,
    list: ReservationList,
    claims: Vec<(Arc<QueuedClaim>, ClaimDemand)>,
    before: BTreeMap<ReservationId, NaiveReservation>,
    now_ms: Millis,
    /// End of the rest from large holds.
    rest_until_ms: Millis,
    numbers: u64,
}

impl Scene {
    fn new() -> Self {
        let tenant = TenantDirectory::default().get_or_insert(&ClaimId::new("ns", "t", "k").unwrap());
        let (list, claims, before) = (ReservationList::default(), Vec::new(), BTreeMap::new());
        Self { tenant, list, claims, before, now_ms: 0, rest_until_ms: 0, numbers: 0 }
    }

    fn next_number(&mut self) -> ArrivalNumber {
        self.numbers += 1;
        ArrivalNumber::new(self.numbers).unwrap()
    }

    fn arrive(&mut self, priority: u16, cores: u64) {
        let arrival = self.next_number();
        let claim = QueuedClaim::of_test(arrival, priority, &self.tenant, RequestClass::default());
        self.claims.push((Arc::new(claim), ClaimDemand { cpu_milli: cores, ..ClaimDemand::default() }));
    }

    /// Begins a reservation for the best claim that may have it, as a shard's answer does.
    fn begin(&mut self, kind: ReservationKind, cores: u64, lasts_ms: Millis) {
        let is_served = |claim: &QueuedClaim| self.list.serves(claim.arrival);
        let wants = |(claim, demand): &&(Arc<QueuedClaim>, ClaimDemand)| {
            let may = kind == ReservationKind::Held || claim.priority > 0;
            may && demand.cpu_milli <= cores && !is_served(claim)
        };
        let may_begin = match kind {
            ReservationKind::Evicted => self.list.has_capacity_for(kind),
            ReservationKind::Held => self.list.may_hold(1, USABLE, self.now_ms),
        };
        let Some((claim, demand)) = self.ranked().iter().find(wants).cloned() else { return };
        if !may_begin {
            return;
        }
        let number = self.next_number();
        let spec = WorkerSpec::with_id(WorkerId::new("w").unwrap());
        let reserved = ReservedWorker {
            worker: number.get() as u32,
            registration: Arc::new(WorkerRegistration { spec }),
            expected_free: amounts(cores),
        };
        let until_ms = self.now_ms + lasts_ms;
        self.list.begin(number, kind, 0, reserved, self.now_ms..until_ms);
        self.list.assign_to(number, &claim, &demand);
        let assigned = Some((claim.arrival, claim.priority));
        self.before.insert(number, NaiveReservation { kind, cores, since_ms: self.now_ms, until_ms, assigned });
    }

    fn ranked(&self) -> Vec<(Arc<QueuedClaim>, ClaimDemand)> {
        let mut claims = self.claims.clone();
        claims.sort_by_key(|(claim, _)| (Reverse(claim.priority), claim.arrival));
        claims
    }

    fn assign(&mut self) {
        let ranked = self.ranked();
        let changes = self.list.assign(&ranked, USABLE, self.now_ms);
        let assigned = |number: &ReservationId| self.list.reservations[number].assigned;
        let ended: Vec<ReservationId> = changes.ended.iter().map(|(number, _)| *number).collect();
        let has_one = |arrival: ArrivalNumber| self.list.assigned().any(|other| other == arrival);
        let may_have = |row: &NaiveReservation, claim: &QueuedClaim, demand: &ClaimDemand| {
            let is_own = row.assigned.is_some_and(|(arrival, _)| arrival == claim.arrival);
            demand.cpu_milli <= row.cores
                && match row.kind {
                    ReservationKind::Evicted => claim.priority > 0,
                    ReservationKind::Held => {
                        is_own || row.assigned.is_none_or(|(_, priority)| claim.priority > priority)
                    }
                }
        };
        for (number, row) in &self.before {
            let is_over = row.until_ms <= self.now_ms;
            assert!(!is_over || ended.contains(number), "D5: {number} outlives its time");
            if ended.contains(number) {
                let wanted =
                    ranked.iter().any(|(claim, demand)| may_have(row, claim, demand) && !has_one(claim.arrival));
                assert!(is_over || !wanted, "D1: {number} ended, though somebody could use it");
                continue;
            }
            let owner = assigned(number).expect("D1: a reservation serves somebody");
            let (claim, demand) =
                ranked.iter().find(|(claim, _)| claim.arrival == owner.arrival).expect("D1: somebody who waits");
            assert!(may_have(row, claim, demand), "D1: {number} went to one that may not have it");
            let envious = ranked.iter().take_while(|(other, _)| other.arrival != claim.arrival);
            for (other, demand) in envious.filter(|(other, demand)| may_have(row, other, demand)) {
                assert!(has_one(other.arrival), "D1: {number} passed {demand:?} of priority {}", other.priority);
            }
            let is_new = row.assigned.map(|(arrival, _)| arrival) != Some(owner.arrival);
            let is_moved = changes.moved.contains(&(0, number.get() as u32));
            assert_eq!(is_new, is_moved, "D2: {number} is offered once more exactly if its claim is another");
        }
        let mut owners: Vec<ArrivalNumber> = self.list.assigned().collect();
        owners.sort_unstable();
        assert!(owners.windows(2).all(|pair| pair[0] != pair[1]), "D1: two reservations of one claim");
        // A hold that ran out, unlike one whose claim has left, is followed by a rest.
        let ran_out = |row: &NaiveReservation| {
            let still_waits = |(owner, _)| ranked.iter().any(|(claim, _)| claim.arrival == owner);
            row.kind == ReservationKind::Held && row.until_ms <= self.now_ms && row.assigned.is_some_and(still_waits)
        };
        for row in self.before.values().filter(|row| ran_out(row)) {
            self.rest_until_ms = self.now_ms + (self.now_ms - row.since_ms);
        }
        self.before.retain(|number, _| self.list.reservations.contains_key(number));
        for (number, row) in &mut self.before {
            row.assigned = self.list.reservations[number].assigned.map(|owner| (owner.arrival, owner.priority));
        }
        let is_held = self.before.values().any(|row| row.kind == ReservationKind::Held);
        let may_hold = !is_held && self.rest_until_ms <= self.now_ms;
        assert_eq!(self.list.may_hold(1, USABLE, self.now_ms), may_hold, "D4, D5: at {} ms", self.now_ms);
        assert_eq!(self.list.may_hold(1, 8 * USABLE, self.now_ms), !is_held, "D5: a small hold needs no rest");
        self.check_use();
    }

    /// D2: who may use a reserved worker, of what is free of it.
    fn check_use(&self) {
        for (number, row) in &self.before {
            let (owner, priority) = row.assigned.unwrap();
            let (_, need) = self.claims.iter().find(|(claim, _)| claim.arrival == owner).unwrap();
            for (mode, (claim, demand)) in [PoolMode::Shared, PoolMode::Exclusive]
                .into_iter()
                .flat_map(|mode| self.claims.iter().map(move |claim| (mode, claim)))
            {
                let reserved = &self.list.reservations[number].reserved;
                let registration = Arc::clone(&reserved.registration);
                let (worker, free) = (reserved.worker, amounts(row.cores));
                let offer = WorkerOffer { worker, registration, free, mode, left_ms: None, reservation: Some(*number) };
                if demand.cpu_milli > row.cores {
                    continue;
                }
                let leaves_need = mode == PoolMode::Shared && demand.cpu_milli + need.cpu_milli <= row.cores;
                let may = claim.arrival == owner || claim.priority > priority || leaves_need;
                assert_eq!(self.list.may_use(&offer, claim, demand, &FreeAmounts::of(&offer)), may, "D2: {number}");
                let is_listed =
                    self.list.usable(claim.priority, Some(claim.arrival)).any(|(other, _)| other == *number);
                assert_eq!(is_listed, claim.arrival == owner || claim.priority > priority, "D3: {number}");
            }
        }
        let lowest = self.before.values().filter_map(|row| Some(row.assigned?.1)).min();
        assert_eq!(self.list.lowest_priority(), lowest, "D3: the lowest priority");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(3_000))]
    #[test]
    fn q07_reservations_serve_the_best_ranked_and_end_when_nobody_can_use_them(
        steps in prop::collection::vec(step(), 1..80),
    ) {
        let mut scene = Scene::new();
        for step in steps {
            match step {
                Step::Arrive { priority, cores } => scene.arrive(priority, cores),
                Step::Leave(which) if !scene.claims.is_empty() => {
                    let left = scene.claims.remove(which % scene.claims.len());
                    scene.list.forget(left.0.arrival);
                }
                Step::Leave(_) => {}
                Step::Evict { cores, lasts_ms } => scene.begin(ReservationKind::Evicted, cores, lasts_ms),
                Step::Hold { cores, lasts_ms } => scene.begin(ReservationKind::Held, cores, lasts_ms),
                Step::Pass(ms) => scene.now_ms += ms,
            }
            scene.assign();
        }
    }
}
