//! The two-phase commit of gangs against shards whose answers get lost, whose workers go, and whose store answers late.

use std::sync::Arc;

use proptest::prelude::*;

use super::*;
use crate::engine::{ClaimGrant, ClaimHandle, ClaimTimestamps};
use crate::model::{ClaimState, WorkerId, WorkerRegistration, WorkerSpec};

const SHARDS: usize = 3;

/// Pool of the members, and uid of the pool of the record.
const POOL: u32 = 7;

fn shard_ref(shard: usize) -> ShardRef {
    ShardRef { pool: POOL, shard: shard as u16 }
}

/// Way in which a shard treats a request.
#[derive(Debug, Clone, Copy)]
enum Treatment {
    Answers,
    /// The action is taken, and the answer is lost.
    LosesAnswer,
    /// The request is lost.
    LosesRequest,
    /// The action is taken, and the store does not answer in time.
    StoreLate,
    /// The shard does not serve.
    Loading,
}

#[derive(Debug, Clone)]
enum Step {
    /// Treat one of the open requests.
    Treat(usize, Treatment),
    LoseWorker(usize),
    Pass(Millis),
}

fn treatment() -> impl Strategy<Value = Treatment> {
    prop_oneof![
        4 => Just(Treatment::Answers),
        1 => Just(Treatment::LosesAnswer),
        1 => Just(Treatment::LosesRequest),
        1 => Just(Treatment::StoreLate),
        1 => Just(Treatment::Loading),
    ]
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        6 => (any::<usize>(), treatment()).prop_map(|(request, how)| Step::Treat(request, how)),
        1 => any::<usize>().prop_map(Step::LoseWorker),
        2 => (1..2_000_u64).prop_map(Step::Pass),
    ]
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum MemberTruth {
    Rejected,
    Provisional,
    Committed,
    Gone,
}

/// Shards as they are, whatever the transaction knows of them.
struct Shards {
    /// Shard and state of each member.
    members: Vec<(usize, MemberTruth)>,
    /// Whether the home has the record.
    recorded: bool,
}

/// Pools whose shards all serve, and that could hold any gang.
pub(in crate::admission::gang) struct ServingPools;

impl PublishedState for ServingPools {
    fn state(&self, _: ShardRef) -> Option<ShardState> {
        Some(ShardState::Serving)
    }

    fn home(&self, home: GangRef) -> Option<ShardRef> {
        Some(ShardRef { pool: u32::try_from(home.pool).unwrap(), shard: home.shard })
    }

    fn is_stopped(&self) -> bool {
        false
    }

    fn is_draining(&self) -> bool {
        false
    }

    fn could_hold(&self, _: &[u32], _: &[ClaimRequest]) -> bool {
        true
    }
}

impl Shards {
    fn take(&mut self, shard: usize, action: GangAction, tickets: &[(ClaimId, KeyTicket)]) -> GangAnswer {
        let mut answer = GangAnswer::Done;
        match action {
            GangAction::Record => self.recorded = true,
            GangAction::Retract | GangAction::Forget => self.recorded = false,
            GangAction::Count => {
                let lives = |(at, truth): &&(usize, MemberTruth)| *at == shard && *truth == MemberTruth::Provisional;
                answer = GangAnswer::Members(self.members.iter().filter(lives).count());
            }
            GangAction::Abort => {
                assert!(!self.recorded, "G1: members are rolled back while the record is there");
                assert!(self.members.iter().all(|(_, truth)| *truth != MemberTruth::Committed), "G1: half a gang");
                for (_, truth) in self.members.iter_mut().filter(|(at, _)| *at == shard) {
                    *truth = MemberTruth::Gone;
                }
            }
            GangAction::Commit => {
                assert!(self.recorded, "G1: members are committed without a record");
                let mut committed = Vec::new();
                for (index, (at, truth)) in self.members.iter_mut().enumerate() {
                    if *at == shard && *truth == MemberTruth::Provisional {
                        *truth = MemberTruth::Committed;
                        assert!(tickets.contains(&(id(index), index as u64)), "the ticket of {index} is missing");
                        committed.push((id(index), grant(shard, index)));
                    }
                }
                answer = GangAnswer::Committed(committed);
            }
        }
        answer
    }
}

fn id(index: usize) -> ClaimId {
    ClaimId::new("ns", "t", &format!("k{index}")).unwrap()
}

fn grant(shard: usize, index: usize) -> ClaimAnswer {
    let spec = WorkerSpec::with_id(WorkerId::new("w").unwrap());
    let grant = ClaimGrant {
        handle: ClaimHandle { claim: index as u32, worker: 0, fence: 100 + index as u64 },
        worker: Arc::new(WorkerRegistration { spec }),
        state: ClaimState::Reserved,
        term_ms: 0,
        deadline_ms: None,
        spec: None,
        gpu_mask: None,
        evicted: false,
        timestamps: ClaimTimestamps::default(),
    };
    ClaimAnswer::created(grant, shard_ref(shard))
}

/// Request that a shard has not answered.
struct SentRequest {
    number: GangRequestNumber,
    shard: ShardRef,
    action: GangAction,
    tickets: Vec<(ClaimId, KeyTicket)>,
}

/// Transaction, the shards, and what both have sent that did not arrive.
struct Scene {
    shards: Shards,
    transaction: GangTransaction,
    requests: Vec<SentRequest>,
    decisions: Vec<GangDecision>,
    released: BTreeSet<KeyTicket>,
    now_ms: Millis,
}

impl Scene {
    fn new(members: &[(usize, bool)]) -> Self {
        let truth = |granted| if granted { MemberTruth::Provisional } else { MemberTruth::Rejected };
        let shards = Shards {
            members: members.iter().map(|&(shard, granted)| (shard, truth(granted))).collect(),
            recorded: false,
        };
        let member = |(index, &(shard, granted)): (usize, &(usize, bool))| {
            let grant = granted.then(|| MemberGrant::answered(grant(shard, index)));
            TransactionMember::new(id(index), Some(index as u64), grant)
        };
        let full = RequestError::DeadlineExceeded;
        let rejected = (0..members.len()).filter(|index| !members[*index].1);
        let rejections = rejected.map(|index| (index, full.clone())).collect();
        let mut effects = Vec::new();
        let home = GangRef { id: 1, pool: POOL.into(), shard: 0 };
        let members = members.iter().enumerate().map(member).collect();
        let candidates = (0..SHARDS).map(shard_ref).collect();
        let transaction = GangTransaction::begin(home, members, rejections, candidates, &ServingPools, &mut effects);
        let (requests, decisions) = (Vec::new(), Vec::new());
        let mut scene = Self { shards, transaction, requests, decisions, released: BTreeSet::new(), now_ms: 0 };
        scene.follow(effects);
        scene
    }

    fn follow(&mut self, effects: Vec<TransactionEffect>) {
        for effect in effects {
            match effect {
                TransactionEffect::Send { request, shard, action, tickets, .. } => {
                    let is_open = self.requests.iter().any(|open| open.shard == shard);
                    assert!(!is_open, "a second request to {shard:?} is under way");
                    self.requests.push(SentRequest { number: request, shard, action, tickets });
                }
                TransactionEffect::ReleaseTickets(tickets) => {
                    for (_, ticket) in tickets {
                        let truth = self.shards.members[ticket as usize].1;
                        assert!(truth != MemberTruth::Provisional, "the key of a provisional member is released");
                        assert!(self.released.insert(ticket), "released twice");
                    }
                }
                TransactionEffect::Decided(decision) => self.decisions.push(decision),
                TransactionEffect::EndUnreadable(_) | TransactionEffect::BeginDeadlines(_) => {}
                TransactionEffect::Suspend(_) => panic!("the home is always there"),
            }
        }
    }

    fn on(&mut self, event: TransactionEvent) {
        let mut effects = Vec::new();
        self.transaction.on(event, self.now_ms, &ServingPools, &mut effects);
        self.follow(effects);
    }

    fn treat(&mut self, request: usize, treatment: Treatment) {
        if self.requests.is_empty() {
            return;
        }
        let SentRequest { number, shard, action, tickets } = self.requests.remove(request % self.requests.len());
        let shard = usize::from(shard.shard);
        let store = RequestError::Unavailable(UnavailableReason::Store);
        let outcome = match treatment {
            Treatment::Answers => Ok(self.shards.take(shard, action, &tickets)),
            Treatment::LosesAnswer => {
                self.shards.take(shard, action, &tickets);
                Err(RequestError::DeadlineExceeded)
            }
            Treatment::LosesRequest => Err(RequestError::DeadlineExceeded),
            Treatment::StoreLate => {
                self.shards.take(shard, action, &tickets);
                // Only what must be stored waits for the store.
                let waits = matches!(action, GangAction::Record | GangAction::Retract | GangAction::Commit);
                if waits { Err(store) } else { Ok(self.shards.take(shard, action, &tickets)) }
            }
            Treatment::Loading => Err(RequestError::Unavailable(UnavailableReason::Loading)),
        };
        self.on(TransactionEvent::Answered(number, outcome));
    }

    /// Lets everything be answered that is under way, and all that follows.
    fn finish(&mut self) {
        for _ in 0..1_000 {
            if self.transaction.is_done() {
                return;
            }
            self.treat(0, Treatment::Answers);
            self.now_ms += RETRY_PAUSE_MS[1];
            self.on(TransactionEvent::Tick);
        }
        panic!("the transaction does not end: {:?}", self.transaction);
    }

    fn check_end(&self) {
        assert!(self.requests.is_empty() && !self.shards.recorded, "the record is left");
        assert_eq!(self.decisions.len(), 1, "one answer to the caller");
        let truths: Vec<MemberTruth> = self.shards.members.iter().map(|(_, truth)| *truth).collect();
        assert!(!truths.contains(&MemberTruth::Provisional), "a member is neither committed nor gone: {truths:?}");
        for (index, truth) in truths.iter().enumerate() {
            let is_released = self.released.contains(&(index as u64));
            assert!(is_released || *truth == MemberTruth::Committed || self.was_committed(index), "{index} hangs");
        }
        match &self.decisions[0] {
            GangDecision::Committed(members) => assert_eq!(members.len(), truths.len()),
            GangDecision::Refused(_) | GangDecision::WorkerLost => {
                assert!(!truths.contains(&MemberTruth::Committed), "refused, and there: {truths:?}");
            }
            GangDecision::InDoubt => {}
        }
    }

    /// Whether a member was committed, and its worker was lost afterwards.
    fn was_committed(&self, index: usize) -> bool {
        self.transaction.members[index].fate == MemberFate::Committed
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(3_000))]

    /// B04, B05: whatever gets lost, all members end committed or vacated, and none is rolled back beside the record.
    #[test]
    fn b04_b05_every_member_ends_committed_or_vacated(
        members in proptest::collection::vec((0..SHARDS, proptest::bool::weighted(0.95)), 1..6),
        steps in proptest::collection::vec(step(), 0..40),
    ) {
        let mut scene = Scene::new(&members);
        for step in steps {
            match step {
                Step::Treat(request, treatment) => scene.treat(request, treatment),
                Step::LoseWorker(member) => {
                    let index = member % scene.shards.members.len();
                    if scene.shards.members[index].1 != MemberTruth::Rejected {
                        scene.shards.members[index].1 = MemberTruth::Gone;
                    }
                }
                Step::Pass(ms) => {
                    scene.now_ms += ms;
                    scene.on(TransactionEvent::Tick);
                }
            }
        }
        scene.finish();
        scene.check_end();
    }
}
