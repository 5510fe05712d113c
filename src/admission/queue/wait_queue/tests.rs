//! The index against a list that is sorted and searched each time.

use proptest::prelude::*;

use super::walk::ClaimRank;
use super::*;
use crate::admission::queue::request_class::RequestClass;
use crate::admission::tenant::TenantDirectory;
use crate::collections::HashMap;
use crate::engine::{GpuFilter, NodeSet, PlacementConstraints, WorkerOffer};
use crate::model::label_selector::SelectorCache;
use crate::model::{
    ClaimId, ClaimSpec, GpuCapacity, GpuRequest, PoolMode, ResourceAmounts, ResourceRequirements, ResourceUsage,
    WorkerCapacity, WorkerId, WorkerRegistration, WorkerSpec,
};

/// Distinct requests: cores, whether a GPU is needed, label, time in milliseconds.
const REQUESTS: [(u64, bool, Option<&str>, Millis); 8] = [
    (1, false, None, 0),
    (2, false, None, 0),
    (4, false, Some("kind=a"), 0),
    (1, true, None, 0),
    (3, true, Some("kind=b"), 100),
    (1, false, Some("kind=b"), 100),
    (2, true, Some("kind=a"), 0),
    (3, false, None, 1_000),
];

const TENANTS: usize = 4;

#[derive(Debug, Clone)]
enum Step {
    Insert {
        priority: u16,
        tenant: usize,
        request: usize,
    },
    Remove(usize),
    Share(usize, u64),
    /// Cores that a tenant may still hold.
    Headroom(usize, u64),
    /// A claim begins to be tried, which the queue may not know, or stands still again.
    Tried {
        which: usize,
        is_noted: bool,
    },
    Match {
        cores: u64,
        has_gpu: bool,
        kind: &'static str,
        left_ms: Option<Millis>,
    },
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        8 => (0..3_u16, 0..TENANTS, 0..REQUESTS.len())
            .prop_map(|(priority, tenant, request)| Step::Insert { priority, tenant, request }),
        2 => any::<usize>().prop_map(Step::Remove),
        2 => (0..TENANTS, 0..3_u64).prop_map(|(tenant, share)| Step::Share(tenant, share)),
        1 => (0..TENANTS, 0..5_u64).prop_map(|(tenant, cores)| Step::Headroom(tenant, cores)),
        3 => (any::<usize>(), any::<bool>()).prop_map(|(which, is_noted)| Step::Tried { which, is_noted }),
        6 => (0..5_u64, any::<bool>(), prop_oneof![Just("a"), Just("b"), Just("c")], prop_oneof![Just(None), Just(Some(50)), Just(Some(500))])
            .prop_map(|(cores, has_gpu, kind, left_ms)| Step::Match { cores, has_gpu, kind, left_ms }),
    ]
}

fn constraints(request: usize, selectors: &SelectorCache) -> Arc<PlacementConstraints> {
    let (cores, has_gpu, selector, _) = REQUESTS[request];
    let gpu = has_gpu.then(|| GpuRequest { models: Vec::new(), count: 1, milli: 1_000 });
    let resources = ResourceRequirements { cpu_milli: cores, gpu, ..ResourceRequirements::default() };
    Arc::new(PlacementConstraints {
        selector: selector.map(|text| selectors.get(text).unwrap()),
        nodes: NodeSet::default(),
        spec: Some(Arc::new(ClaimSpec { resources, ..ClaimSpec::default() })),
        gpus: GpuFilter::Any,
        ..PlacementConstraints::default()
    })
}

fn offer(worker: u32, cores: u64, has_gpu: bool, kind: &str, left_ms: Option<Millis>) -> WorkerOffer {
    let gpu = has_gpu.then(|| GpuCapacity { model: "A".into(), count: 1 });
    let spec = WorkerSpec {
        labels: [("kind".to_owned(), kind.to_owned())].into(),
        capacity: WorkerCapacity { cpu_milli: 8, gpu, ..WorkerCapacity::default() },
        ..WorkerSpec::with_id(WorkerId::new("w").unwrap())
    };
    let gpus = u64::from(has_gpu);
    let free = ResourceAmounts { cpu_milli: cores, gpu: gpus, gpu_milli: 1_000 * gpus, ..ResourceAmounts::default() };
    let (registration, mode) = (Arc::new(WorkerRegistration { spec }), PoolMode::Shared);
    WorkerOffer { worker, registration, free, mode, left_ms, reservation: None }
}

/// Claims in the order in which they came, with what a walk asks.
struct Naive {
    claims: Vec<(Arc<QueuedClaim>, usize)>,
    shares: [u64; TENANTS],
    headroom: [u64; TENANTS],
    /// Claims that are being tried.
    tried: BTreeSet<ArrivalNumber>,
    /// Claims that the queue knows to be tried.
    noted: BTreeSet<ArrivalNumber>,
    /// Workers that nobody took while a claim that they fit was being tried.
    unmatched: BTreeMap<u32, WorkerOffer>,
    numbers: HashMap<u64, usize>,
}

impl Naive {
    fn rank(&self, claim: &QueuedClaim) -> ClaimRank {
        (Reverse(claim.priority), self.shares[self.numbers[&claim.tenant.number]], claim.arrival)
    }

    /// Claims of higher priorities; earlier ones of its own tenant; and as many of each other tenant of its priority.
    fn count_ahead(&self, claim: &QueuedClaim) -> usize {
        let others = || self.claims.iter().map(|(other, _)| other);
        let level = |tenant: u64| {
            others().filter(move |other| other.priority == claim.priority && other.tenant.number == tenant)
        };
        let higher = others().filter(|other| other.priority > claim.priority).count();
        let own = level(claim.tenant.number).filter(|other| other.arrival < claim.arrival).count();
        let tenants = self.numbers.keys().filter(|tenant| **tenant != claim.tenant.number);
        higher + own + tenants.map(|tenant| level(*tenant).count().min(own)).sum::<usize>()
    }

    fn verdict(&self, claim: &QueuedClaim, request: usize) -> OfferVerdict {
        if self.headroom[self.numbers[&claim.tenant.number]] < REQUESTS[request].0 {
            OfferVerdict::NoQuota
        } else if self.tried.contains(&claim.arrival) {
            OfferVerdict::Tried
        } else {
            OfferVerdict::Takes
        }
    }

    fn forget_tried(&mut self, arrival: ArrivalNumber) {
        self.tried.remove(&arrival);
        self.noted.remove(&arrival);
        if self.noted.is_empty() {
            self.unmatched.clear();
        }
    }

    fn fits(request: usize, offer: &WorkerOffer) -> bool {
        let (cores, has_gpu, selector, needs_ms) = REQUESTS[request];
        let kind = &offer.registration.spec.labels["kind"];
        cores <= offer.free.cpu_milli
            && u64::from(has_gpu) <= offer.free.gpu
            && selector.is_none_or(|selector| selector == format!("kind={kind}"))
            && offer.left_ms.is_none_or(|left_ms| needs_ms < left_ms)
    }

    fn best(&self, offer: &WorkerOffer) -> Option<ArrivalNumber> {
        let fitting = self.claims.iter().filter(|(_, request)| Self::fits(*request, offer));
        let willing = fitting.filter(|(claim, request)| self.verdict(claim, *request) == OfferVerdict::Takes);
        willing.map(|(claim, _)| claim).min_by_key(|claim| self.rank(claim)).map(|claim| claim.arrival)
    }
}

struct NaiveOracle<'n> {
    naive: &'n Naive,
    /// Ranks of the claims that were asked.
    asked: Vec<ClaimRank>,
}

impl WalkOracle for NaiveOracle<'_> {
    fn may_charge(&mut self, tenant: &Tenant, least: &LeastDemand) -> bool {
        let cpu_milli = self.naive.headroom[self.naive.numbers[&tenant.number]];
        least.may_fit_quota(&ResourceUsage { claims: 1, cpu_milli, memory_bytes: 0, gpu_milli: 0 })
    }

    fn offer(&mut self, claim: &QueuedClaim) -> OfferVerdict {
        self.asked.push(self.naive.rank(claim));
        let (_, request) = self.naive.claims.iter().find(|(other, _)| other.arrival == claim.arrival).unwrap();
        self.naive.verdict(claim, *request)
    }
}

fn walk_to_end(queue: &mut WaitQueue, offer: &WorkerOffer, oracle: &mut NaiveOracle<'_>) -> Option<ArrivalNumber> {
    let mut walk = QueueWalk::default();
    loop {
        match queue.walk(&mut walk, offer, oracle) {
            WalkOutcome::Unfinished => {}
            WalkOutcome::Nobody => return None,
            WalkOutcome::Matched(claim) => return Some(claim.arrival),
        }
    }
}

/// Numbers ahead of claims, counted in parts.
fn positions(queue: &WaitQueue, arrivals: Vec<ArrivalNumber>) -> impl Iterator<Item = (ArrivalNumber, usize)> {
    let mut count = PositionCount::new(arrivals);
    while count.step(queue) == CountStep::Unfinished {}
    count.into_positions()
}

struct Fixture {
    tenants: Vec<Arc<Tenant>>,
    requests: Vec<Arc<PlacementConstraints>>,
    next_arrival: u64,
}

impl Fixture {
    fn new() -> (Self, Naive) {
        let directory = TenantDirectory::default();
        let tenant = |number| directory.get_or_insert(&ClaimId::new("ns", &format!("t{number}"), "k").unwrap());
        let tenants: Vec<Arc<Tenant>> = (0..TENANTS).map(tenant).collect();
        let numbers = tenants.iter().enumerate().map(|(index, tenant)| (tenant.number, index)).collect();
        let selectors = SelectorCache::default();
        let requests = (0..REQUESTS.len()).map(|request| constraints(request, &selectors)).collect();
        let naive = Naive {
            claims: Vec::new(),
            shares: [0; TENANTS],
            headroom: [100; TENANTS],
            tried: BTreeSet::new(),
            noted: BTreeSet::new(),
            unmatched: BTreeMap::new(),
            numbers,
        };
        (Self { tenants, requests, next_arrival: 1 }, naive)
    }

    fn insert(&mut self, queue: &mut WaitQueue, naive: &mut Naive, priority: u16, tenant: usize, request: usize) {
        let arrival = ArrivalNumber::new(self.next_arrival).unwrap();
        self.next_arrival += 1;
        let class = RequestClass {
            hash: request as u64,
            constraints: Some(Arc::clone(&self.requests[request])),
            ..RequestClass::default()
        };
        let claim = Arc::new(QueuedClaim::of_test(arrival, priority, &self.tenants[tenant], class));
        assert!(queue.insert(&claim, REQUESTS[request].3, naive.shares[tenant]));
        naive.tried.insert(arrival);
        naive.noted.insert(arrival);
        naive.claims.push((claim, request));
    }

    fn insert_still(&mut self, queue: &mut WaitQueue, naive: &mut Naive, priority: u16, tenant: usize, request: usize) {
        self.insert(queue, naive, priority, tenant, request);
        let (claim, _) = naive.claims.last().unwrap();
        let arrival = claim.arrival;
        naive.forget_tried(arrival);
        assert_eq!(queue.take_unmatched(arrival), UnmatchedOffers::default());
        queue.note_still(arrival);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1_500))]
    #[test]
    fn q04_a_worker_goes_to_the_claim_that_a_list_gives(steps in prop::collection::vec(step(), 1..150)) {
        let (mut fixture, mut naive) = Fixture::new();
        let mut queue = WaitQueue::default();
        for (number, step) in (0..).zip(steps) {
            match step {
                Step::Insert { priority, tenant, request } => {
                    fixture.insert(&mut queue, &mut naive, priority, tenant, request);
                }
                Step::Remove(which) if !naive.claims.is_empty() => {
                    let (gone, _) = naive.claims.remove(which % naive.claims.len());
                    prop_assert_eq!(queue.remove(gone.arrival).map(|claim| claim.arrival), Some(gone.arrival));
                    prop_assert!(queue.remove(gone.arrival).is_none());
                    naive.forget_tried(gone.arrival);
                }
                Step::Share(tenant, share) => {
                    naive.shares[tenant] = share;
                    queue.set_share(fixture.tenants[tenant].number, share);
                }
                Step::Headroom(tenant, cores) => naive.headroom[tenant] = cores,
                Step::Tried { which, is_noted } if !naive.claims.is_empty() => {
                    let (claim, request) = naive.claims[which % naive.claims.len()].clone();
                    if naive.tried.insert(claim.arrival) {
                        if is_noted {
                            queue.note_tried(&[claim.arrival]);
                            naive.noted.insert(claim.arrival);
                        }
                    } else {
                        let again = queue.take_unmatched(claim.arrival);
                        prop_assert!(!again.is_incomplete);
                        queue.note_still(claim.arrival);
                        let is_again = |at: &u32| again.workers.contains(&(7, *at));
                        // Whoever the queue takes for standing still was offered the worker.
                        let fits = |(_, offer): &(&u32, &WorkerOffer)| Naive::fits(request, offer);
                        let mut owed = naive.unmatched.iter().filter(fits).map(|(at, _)| at);
                        prop_assert!(!naive.noted.contains(&claim.arrival) || owed.all(is_again));
                        naive.unmatched.retain(|at, _| !is_again(at));
                        naive.forget_tried(claim.arrival);
                    }
                }
                Step::Remove(_) | Step::Tried { .. } => {}
                Step::Match { cores, has_gpu, kind, left_ms } => {
                    let offer = offer(number, cores, has_gpu, kind, left_ms);
                    let expected = naive.best(&offer);
                    let mut oracle = NaiveOracle { naive: &naive, asked: Vec::new() };
                    let matched = walk_to_end(&mut queue, &offer, &mut oracle);
                    prop_assert_eq!(matched, expected);
                    prop_assert!(oracle.asked.is_sorted(), "claims are asked in the order of rank");
                    naive.claims.retain(|(claim, _)| Some(claim.arrival) != matched);
                    if matched.is_none() {
                        let fitting = naive.claims.iter().filter(|(_, request)| Naive::fits(*request, &offer));
                        let (asked, tried): (Vec<_>, Vec<_>) = fitting
                            .map(|(claim, request)| (claim.arrival, naive.verdict(claim, *request)))
                            .filter(|(arrival, _)| naive.tried.contains(arrival))
                            .partition(|(_, verdict)| *verdict == OfferVerdict::Tried);
                        let is_wanted = !asked.is_empty() || tried.iter().any(|(arrival, _)| naive.noted.contains(arrival));
                        naive.noted.extend(asked.iter().map(|(arrival, _)| *arrival));
                        queue.note_unmatched(7, &offer);
                        if is_wanted {
                            naive.unmatched.insert(offer.worker, offer.clone());
                        }
                    }
                    let quota_free = |claim: &QueuedClaim| naive.headroom[naive.numbers[&claim.tenant.number]];
                    for tenant in 0..TENANTS {
                        let number = fixture.tenants[tenant].number;
                        let passed = naive.claims.iter().any(|(claim, request)| {
                            claim.tenant.number == number
                                && Naive::fits(*request, &offer)
                                && !naive.tried.contains(&claim.arrival)
                                && quota_free(claim) < REQUESTS[*request].0
                        });
                        // Whoever the quota kept from this worker is remembered, if the walk came that far.
                        prop_assert!(!passed || matched.is_some() || queue.has_quota_short(number));
                    }
                }
            }
            prop_assert_eq!(queue.len(), naive.claims.len());
            for (index, tenant) in fixture.tenants.iter().enumerate() {
                let waiting = naive.claims.iter().filter(|(claim, _)| claim.tenant.number == tenant.number).count();
                prop_assert_eq!(queue.waiting_of(tenant.number), waiting, "of tenant {}", index);
            }
            prop_assert_eq!(queue.lanes().map(|lane| lane.claims).sum::<usize>(), naive.claims.len());
            let mut least = LeastDemand::default();
            for (_, request) in &naive.claims {
                let demand = ClaimDemand::new(Some(&fixture.requests[*request]), REQUESTS[*request].3);
                least.merge(&LeastDemand::of(&demand));
            }
            prop_assert!(queue.least() == least || queue.least() == LeastDemand::NOTHING);
            prop_assert!(queue.tried_lanes.len() > TRIED_LANES_MAX || queue.least() == least);
            let mut arrivals: Vec<_> = naive.claims.iter().map(|(claim, _)| claim.arrival).collect();
            prop_assert!(queue.claims().map(|claim| claim.arrival).eq(arrivals.iter().copied()), "by arrival");
            let each: Vec<_> = arrivals.iter().map(|arrival| queue.count_ahead(*arrival)).collect();
            let naive_each: Vec<_> = naive.claims.iter().map(|(claim, _)| Some(naive.count_ahead(claim))).collect();
            prop_assert_eq!(&each, &naive_each);
            // One that has left is counted as such.
            arrivals.push(ArrivalNumber::MAX);
            let of_all: HashMap<_, _> = positions(&queue, arrivals.clone()).collect();
            prop_assert_eq!(arrivals.iter().map(|arrival| of_all.get(arrival).copied()).collect::<Vec<_>>(), [each, vec![None]].concat());
            let ranked = queue.ranked(usize::MAX, |_, _| true);
            prop_assert_eq!(ranked.len(), naive.claims.len());
            let order = |claim: &QueuedClaim| (naive.rank(claim).0, naive.rank(claim).1);
            prop_assert!(ranked.is_sorted_by_key(|claim| order(claim)));
            for tenant in &fixture.tenants {
                let of = |claim: &&Arc<QueuedClaim>| claim.tenant.number == tenant.number;
                let arrivals = |priority| ranked.iter().filter(of).filter(move |claim| claim.priority == priority).map(|claim| claim.arrival);
                prop_assert!((0..3).all(|priority| arrivals(priority).is_sorted()));
            }
        }
    }
}

/// Q09: a walk over more claims than one part may visit goes on, and starts over if the queue changed meanwhile.
#[test]
fn q09_a_long_walk_is_divided_and_gives_nothing_up() {
    let (mut fixture, mut naive) = Fixture::new();
    let mut queue = WaitQueue::default();
    for n in 0..4_000 {
        fixture.insert_still(&mut queue, &mut naive, 0, n % TENANTS, 0);
    }
    naive.tried = naive.claims.iter().map(|(claim, _)| claim.arrival).collect();
    let last = naive.claims[3_990].0.arrival;
    naive.tried.remove(&last);
    let (mut walk, offer) = (QueueWalk::default(), offer(0, 4, false, "c", None));
    let mut parts = 0;
    let matched = loop {
        let mut oracle = NaiveOracle { naive: &naive, asked: Vec::new() };
        match queue.walk(&mut walk, &offer, &mut oracle) {
            WalkOutcome::Unfinished => parts += 1,
            WalkOutcome::Nobody => panic!("one of them takes it"),
            WalkOutcome::Matched(claim) => break claim.arrival,
        }
        if parts == 2 {
            let (gone, _) = naive.claims.remove(0);
            queue.remove(gone.arrival);
        }
    };
    assert_eq!(matched, last);
    assert!(parts >= 3, "{parts} parts");
}

#[test]
fn tenants_alternate_in_the_number_ahead() {
    let (mut fixture, mut naive) = Fixture::new();
    let mut queue = WaitQueue::default();
    for (tenant, priority) in [(1, 0), (1, 0), (1, 0), (2, 0), (2, 0), (3, 9)] {
        fixture.insert(&mut queue, &mut naive, priority, tenant, 0);
    }
    let ahead = |arrival| queue.count_ahead(ArrivalNumber::new(arrival).unwrap());
    assert_eq!(ahead(1), Some(1), "the urgent one");
    assert_eq!(ahead(2), Some(3), "the urgent one, the first, and one of the other tenant");
    assert_eq!(ahead(5), Some(3), "the urgent one, one of its own, one of the other");
    assert_eq!(ahead(7), None);
    let newcomer =
        |tenant: usize, priority| queue.count_ahead_of_newcomer(Some(fixture.tenants[tenant].number), priority);
    assert_eq!((newcomer(1, 0), newcomer(2, 0)), (6, 5), "its own, as many of the other, and the urgent one");
    assert_eq!((newcomer(3, 9), newcomer(1, 9), newcomer(0, 10)), (1, 0, 0));
    assert_eq!((queue.count_ahead_of_newcomer(None, 0), queue.count_ahead_of_newcomer(None, 10)), (1, 0));
}

/// Q09: more claims and tenants than a part of a count may visit; and changes between two parts.
#[test]
fn q09_a_long_count_is_divided() {
    let (mut fixture, mut naive) = Fixture::new();
    let mut queue = WaitQueue::default();
    for n in 0..2_000_usize {
        fixture.insert(&mut queue, &mut naive, (n % 700) as u16, n % TENANTS, n % REQUESTS.len());
    }
    let arrivals: Vec<_> = naive.claims.iter().map(|(claim, _)| claim.arrival).step_by(37).collect();
    for (arrival, ahead) in positions(&queue, arrivals.clone()) {
        assert_eq!(Some(ahead), queue.count_ahead(arrival));
    }
    let mut count = PositionCount::new(arrivals.clone());
    let mut parts = 1;
    while count.step(&queue) == CountStep::Unfinished {
        parts += 1;
        let (gone, _) = naive.claims.remove(0);
        queue.remove(gone.arrival);
        fixture.insert(&mut queue, &mut naive, 0, parts % TENANTS, 0);
    }
    assert!(parts >= 6, "{parts} parts: two for the groups, four for the claims");
    let found: Vec<_> = count.into_positions().map(|(arrival, _)| arrival).collect();
    assert_eq!(found, arrivals[1..], "the first has left before it was counted");
}

/// Q09: a worker that fits nobody is offered to nobody.
#[test]
fn q09_what_fits_nobody_costs_one_look() {
    let (mut fixture, mut naive) = Fixture::new();
    let mut queue = WaitQueue::default();
    (0..10_000).for_each(|n| fixture.insert_still(&mut queue, &mut naive, 0, n % TENANTS, 3));
    let mut oracle = NaiveOracle { naive: &naive, asked: Vec::new() };
    let mut walk = QueueWalk::default();
    let without_gpu = offer(0, 8, false, "a", None);
    assert!(matches!(queue.walk(&mut walk, &without_gpu, &mut oracle), WalkOutcome::Nobody));
    assert!(walk.frontier.capacity() == 0 && oracle.asked.is_empty(), "nothing was looked at");
}

/// Q05: a claim that was passed over in one part of a walk stands still before the next, and is owed the worker.
#[test]
fn q05_a_walk_in_parts_forgets_no_claim_that_is_being_tried() {
    let (mut fixture, mut naive) = Fixture::new();
    let mut queue = WaitQueue::default();
    (0..2_000).for_each(|_| fixture.insert_still(&mut queue, &mut naive, 0, 0, 0));
    naive.tried = naive.claims.iter().map(|(claim, _)| claim.arrival).collect();
    fixture.insert(&mut queue, &mut naive, 1, 1, 1);
    let passed = naive.claims.last().unwrap().0.arrival;
    let (mut walk, offer) = (QueueWalk::default(), offer(3, 4, false, "c", None));
    let mut oracle = NaiveOracle { naive: &naive, asked: Vec::new() };
    assert!(matches!(queue.walk(&mut walk, &offer, &mut oracle), WalkOutcome::Unfinished));
    queue.note_unmatched(7, &offer);
    assert_eq!(queue.take_unmatched(passed).workers, [(7, 3)]);
    queue.note_still(passed);
}

/// B1: beyond a bound workers are given up, and every claim that is being tried then is to be searched for again.
#[test]
fn b1_more_unmatched_workers_than_are_kept_make_claims_search_again() {
    let (mut fixture, mut naive) = Fixture::new();
    let mut queue = WaitQueue::default();
    fixture.insert(&mut queue, &mut naive, 0, 0, 0);
    fixture.insert(&mut queue, &mut naive, 0, 0, 3);
    let max = u32::try_from(crate::limits::UNMATCHED_WORKERS_MAX).unwrap();
    (0..max).for_each(|worker| queue.note_unmatched(7, &offer(worker, 4, false, "c", None)));
    queue.note_unmatched(7, &offer(0, 4, false, "c", None));
    let [first, second] = [0, 1].map(|index: usize| naive.claims[index].0.arrival);
    assert_eq!(queue.take_unmatched(second), UnmatchedOffers::default(), "none has a GPU");
    queue.note_unmatched(7, &offer(max, 4, false, "c", None));
    assert_eq!(queue.take_unmatched(second), UnmatchedOffers { workers: Vec::new(), is_incomplete: true });
    queue.note_still(second);
    queue.note_tried(&[second]);
    assert_eq!(queue.take_unmatched(second), UnmatchedOffers::default(), "it began after that");
    let offers = queue.take_unmatched(first);
    assert_eq!((offers.workers.len(), offers.is_incomplete), (crate::limits::UNMATCHED_WORKERS_MAX, true));
}

/// Q11: a claim that needs its worker for another time keeps what is owed to it.
#[test]
fn q11_a_claim_that_is_renewed_stays_as_it_was() {
    let (mut fixture, mut naive) = Fixture::new();
    let mut queue = WaitQueue::default();
    fixture.insert(&mut queue, &mut naive, 0, 0, 0);
    let arrival = naive.claims[0].0.arrival;
    queue.note_unmatched(7, &offer(1, 4, false, "c", None));
    queue.renew(arrival, 50);
    assert_eq!(queue.demand_of(arrival).unwrap().needs_ms, 50);
    assert_eq!(queue.take_unmatched(arrival).workers, [(7, 1)]);
    queue.note_still(arrival);
    queue.renew(arrival, 60);
    assert!(queue.tried_lanes.is_empty());
}
