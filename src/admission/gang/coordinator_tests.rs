//! All gangs together against an executor that carries effects out in any order, refuses, fails, and has callers leave.

use proptest::prelude::*;

use super::super::gang_event::{GangVerdict, PreparedGang};
use super::super::transaction::tests::ServingPools;
use super::super::transaction::{TransactionEffect, TransactionEvent};
use super::*;
use crate::engine::GangAction;
use crate::model::request_error::{ExhaustionReason, RequestError, UnavailableReason};
use crate::model::{ClaimId, ClaimRequest, GangRef, PoolName};
use crate::shard::{ClaimReply, GangAnswer, GangRequestNumber, KeyTicket, ReplyAddress, ShardOutcome, ShardRef};

const POOLS: u32 = 3;

/// Time for which a gang waits for its locks, in milliseconds.
const LOCKS_WAIT_MS: Millis = 5_000;

#[derive(Debug, Clone)]
enum Step {
    Call {
        members: usize,
        pools: Vec<u32>,
        wait_ms: Millis,
    },
    /// Carry out one of the effects that are noted; `luck`: whether what it attempts succeeds.
    CarryOut {
        effect: usize,
        luck: u8,
    },
    MayFit(usize),
    Leave(usize),
    Close(usize),
    Pass(Millis),
}

fn step() -> impl Strategy<Value = Step> {
    let pools = proptest::collection::vec(0..POOLS, 1..3);
    prop_oneof![
        2 => (1..4_usize, pools, prop_oneof![Just(0), 1..9_000_u64])
            .prop_map(|(members, pools, wait_ms)| Step::Call { members, pools, wait_ms }),
        12 => (any::<usize>(), any::<u8>()).prop_map(|(effect, luck)| Step::CarryOut { effect, luck }),
        2 => any::<usize>().prop_map(Step::MayFit),
        1 => any::<usize>().prop_map(Step::Leave),
        1 => any::<usize>().prop_map(Step::Close),
        2 => (1..3_000_u64).prop_map(Step::Pass),
    ]
}

/// Gang as its caller and its pools see it.
struct NaiveGang {
    pools: Vec<u32>,
    members: usize,
    answers: Arc<CompletionQueue>,
    has_left: bool,
    is_answered: bool,
    /// Whether the gang is in the queues of its pools.
    is_queued: bool,
    /// Whether the gang has the locks of its pools.
    is_placed: bool,
    /// Whether a pool has closed, and the gang was not tried since.
    must_be_tried: bool,
}

struct Scene {
    coordinator: GangCoordinator,
    gangs: BTreeMap<GangNumber, NaiveGang>,
    effects: Vec<(GangNumber, GangEffect)>,
    now_ms: Millis,
}

impl Scene {
    fn call(&mut self, members: usize, pools: Vec<u32>, wait_ms: Millis) {
        let request = |i: usize| {
            let id = ClaimId::new("ns", "t", &format!("k{i}")).unwrap();
            ClaimRequest::new(id, PoolName::new("ns", "p").unwrap())
        };
        let requests: Vec<ClaimRequest> = (0..members).map(request).collect();
        let answers = Arc::new(CompletionQueue::collecting(members));
        let caller = (0..members as u32).map(|token| ReplyAddress::queue(Arc::clone(&answers), token)).collect();
        let wait_ms = self.now_ms..self.now_ms + wait_ms;
        let gang = self.coordinator.add(GangClaim::new(requests.into(), caller, wait_ms, LOCKS_WAIT_MS));
        let naive = NaiveGang {
            pools,
            members,
            answers,
            has_left: false,
            is_answered: false,
            is_queued: false,
            is_placed: false,
            must_be_tried: false,
        };
        self.gangs.insert(gang, naive);
        self.on(gang, GangEvent::Begin);
    }

    fn on(&mut self, gang: GangNumber, event: GangEvent) {
        let mut effects = Vec::new();
        self.coordinator.step(gang, event, self.now_ms, &ServingPools, &mut effects);
        for (gang, effect) in &effects {
            self.note(*gang, effect);
        }
        self.effects.extend(effects);
    }

    /// Notes what an effect says about the locks and the queues, in the order in which effects are produced.
    fn note(&mut self, gang: GangNumber, effect: &GangEffect) {
        let pools = self.gangs[&gang].pools.clone();
        match effect {
            GangEffect::Place(..) => {
                let shares = |other: &NaiveGang| other.is_placed && other.pools.iter().any(|pool| pools.contains(pool));
                assert!(!self.gangs.values().any(shares), "two gangs are placed in one pool");
                self.naive(gang).is_placed = true;
            }
            GangEffect::Prepare(..) | GangEffect::Answer(..) => {
                (self.naive(gang).is_placed, self.naive(gang).must_be_tried) = (false, false);
            }
            GangEffect::Enqueue(_) | GangEffect::Postpone(..) => self.naive(gang).is_placed = false,
            GangEffect::Dequeue(_) | GangEffect::Transaction(_) | GangEffect::Discard(_) => {}
            GangEffect::RequestLocks(_) | GangEffect::ReleaseLocks => panic!("the coordinator carries these out"),
        }
    }

    fn naive(&mut self, gang: GangNumber) -> &mut NaiveGang {
        self.gangs.get_mut(&gang).unwrap()
    }

    fn carry_out(&mut self, effect: usize, luck: u8) {
        if self.effects.is_empty() {
            return;
        }
        // Those of one gang keep their order.
        let gang = self.effects[effect % self.effects.len()].0;
        let first = self.effects.iter().position(|(other, _)| *other == gang).unwrap();
        let (_, effect) = self.effects.remove(first);
        let full = RequestError::Exhausted(ExhaustionReason::Pool);
        match effect {
            GangEffect::Prepare(..) => {
                let prepared = match luck {
                    0..20 => Err(BTreeMap::from([(0, RequestError::Unsatisfiable)])),
                    _ => Ok(self.prepared(gang)),
                };
                self.on(gang, GangEvent::Prepared(prepared));
            }
            GangEffect::Place(..) => {
                let members = self.gangs[&gang].members;
                if luck < 20 {
                    return self.on(gang, GangEvent::KeysRejected(BTreeMap::from([(0, full)])));
                }
                let key = |i: usize| (ClaimId::new("ns", "t", &format!("k{i}")).unwrap(), i as KeyTicket);
                self.on(gang, GangEvent::KeysAcquired((0..members).map(key).collect()));
                let outcome = |i: usize| -> ShardOutcome {
                    if luck < 120 && i == 0 { Err(full.clone()) } else { Err(RequestError::DeadlineExceeded) }
                };
                // What is granted is up to the tests of the transaction.
                let outcomes = (0..members).map(outcome).collect();
                let candidates = self.gangs[&gang].pools.iter().map(|&pool| ShardRef { pool, shard: 0 }).collect();
                self.on(gang, GangEvent::MembersDecided(outcomes, candidates));
            }
            GangEffect::Enqueue(_) => {
                let waiting = || Arc::new(crate::admission::queue::WaitingGang::of_test(gang));
                let overloaded = RequestError::Unavailable(UnavailableReason::Overloaded);
                let queued = (luck >= 40).then(waiting).ok_or(BTreeMap::from([(0, overloaded)]));
                self.naive(gang).is_queued = queued.is_ok();
                self.on(gang, GangEvent::Queued(queued));
            }
            GangEffect::Dequeue(_) => {
                assert!(std::mem::take(&mut self.naive(gang).is_queued), "a gang leaves queues that it is not in");
            }
            GangEffect::Transaction(TransactionEffect::Send { request, action, .. }) => {
                self.answer(gang, request, action, luck);
            }
            GangEffect::Answer(caller, requests, verdict) => {
                let naive = self.naive(gang);
                assert!(!std::mem::replace(&mut naive.is_answered, true), "a gang is answered twice");
                let outcomes: Vec<ShardOutcome> = match verdict {
                    GangVerdict::Refused(rejections) => rejections.into_iter().map(Err).collect(),
                    GangVerdict::Committed(_) => panic!("nothing was granted"),
                    GangVerdict::InDoubt => requests.iter().map(|_| Err(RequestError::DeadlineExceeded)).collect(),
                };
                assert_eq!(outcomes.len(), naive.members, "one outcome for each member");
                caller.into_iter().zip(outcomes).for_each(|(address, outcome)| drop(address.send(outcome)));
            }
            GangEffect::Postpone(..) | GangEffect::Transaction(_) | GangEffect::Discard(_) => {}
            GangEffect::RequestLocks(_) | GangEffect::ReleaseLocks => unreachable!("noted before"),
        }
    }

    fn prepared(&self, gang: GangNumber) -> PreparedGang {
        let NaiveGang { pools, members, .. } = &self.gangs[&gang];
        PreparedGang {
            home: GangRef { id: gang, pool: pools[0].into(), shard: 0 },
            items: Vec::new(),
            pools: pools.clone(),
            grants: Arc::new(CompletionQueue::collecting(*members)),
        }
    }

    fn answer(&mut self, gang: GangNumber, request: GangRequestNumber, action: GangAction, luck: u8) {
        assert_eq!(action, GangAction::Abort, "nothing was granted");
        let outcome = match luck {
            0..60 => Err(RequestError::DeadlineExceeded),
            60..90 => Err(RequestError::Unavailable(UnavailableReason::Loading)),
            _ => Ok(GangAnswer::Done),
        };
        self.on(gang, GangEvent::Transaction(TransactionEvent::Answered(request, outcome)));
    }

    fn pass(&mut self, ms: Millis) {
        self.now_ms += ms;
        while let Some(gang) = self.coordinator.take_due(self.now_ms) {
            self.on(gang, GangEvent::Tick);
        }
    }

    fn number(&self, index: usize) -> Option<GangNumber> {
        self.gangs.keys().nth(index % self.gangs.len().max(1)).copied()
    }

    fn leave(&mut self, gang: GangNumber) {
        self.naive(gang).has_left = true;
        let _ = self.gangs[&gang].answers.close();
        self.on(gang, GangEvent::CallerLeft);
    }

    /// Notes that a pool of a gang has closed.
    fn close(&mut self, gang: GangNumber) {
        let is_answered = self.gangs[&gang].is_answered || self.gangs[&gang].has_left;
        self.naive(gang).must_be_tried = !is_answered;
        self.on(gang, GangEvent::Closing);
    }

    fn finish(&mut self) {
        for _ in 0..10_000 {
            // At first each gang is queued again.
            while !self.effects.is_empty() {
                self.carry_out(0, 100);
            }
            for (gang, naive) in &self.gangs {
                let rests = self.coordinator.gangs.get(gang).is_some_and(GangClaim::is_waiting);
                assert!(!(rests && naive.must_be_tried), "{gang} rests although its pool has closed");
            }
            if self.coordinator.is_empty() {
                break;
            }
            self.pass(1_000);
        }
        assert!(self.coordinator.is_empty() && self.coordinator.due.is_empty(), "{:?}", self.coordinator);
        for (gang, naive) in &self.gangs {
            assert!(!naive.is_queued, "{gang} is left in the queues");
            assert!(naive.has_left || naive.is_answered, "{gang} was not answered");
            if !naive.has_left {
                let answers = naive.answers.close();
                assert_eq!(answers.len(), naive.members);
                assert!(!answers.iter().any(|answer| matches!(answer.outcome, Ok(ClaimReply::Released))));
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(3_000))]

    /// B02, B07: every caller is answered once, one gang at a time is placed in a pool, and nothing is left.
    #[test]
    fn b02_b07_every_gang_is_answered_once_and_leaves_nothing(steps in proptest::collection::vec(step(), 0..80)) {
        let (coordinator, gangs) = (GangCoordinator::default(), BTreeMap::new());
        let mut scene = Scene { coordinator, gangs, effects: Vec::new(), now_ms: 0 };
        for step in steps {
            match step {
                Step::Call { members, pools, wait_ms } => scene.call(members, pools, wait_ms),
                Step::CarryOut { effect, luck } => scene.carry_out(effect, luck),
                Step::MayFit(index) => {
                    scene.number(index).into_iter().for_each(|gang| scene.on(gang, GangEvent::MayFit));
                }
                Step::Leave(index) => scene.number(index).into_iter().for_each(|gang| scene.leave(gang)),
                Step::Close(index) => {
                    scene.number(index).into_iter().for_each(|gang| scene.close(gang));
                }
                Step::Pass(ms) => scene.pass(ms),
            }
        }
        scene.finish();
    }
}
