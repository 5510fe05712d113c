//! Leads a shard and the oracle through the same events.

use std::collections::BTreeMap;

use hotpool::engine::{Answer, Effect, Event, Grant, NoFit, Place, Replay, Shard};
use hotpool::model::{ClaimId, ClaimState, Policy, WorkerId};
use hotpool::row::{Frames, RowKind};
use proptest::prelude::*;

use crate::asks::{self, Ask, spec};
use crate::oracle::{Ended, Oracle, Said};

#[derive(Debug, Clone)]
pub enum Op {
    /// `more`: 0 an older incarnation, if there is one; 1 the same; 2 the next.
    Register {
        id: u8,
        more: u8,
        card: u8,
    },
    Delete(u8),
    Claim {
        affinity: u8,
        reserve_ms: u64,
        ask: Option<Ask>,
    },
    Repeat {
        at: prop::sample::Index,
        satisfies: bool,
        ask: Option<Ask>,
    },
    Confirm(prop::sample::Index),
    Release(prop::sample::Index),
    Look(prop::sample::Index),
    GiveBack(prop::sample::Index),
    Departed(prop::sample::Index),
    Yield(prop::sample::Index),
    Tick(u64),
    SetPolicy(Policy),
}

/// A few affinities, each in a bucket of its own.
fn affinity(of: u8) -> u64 {
    u64::from(of) + 1
}

pub struct Run {
    shard: Shard,
    oracle: Oracle,
    now_ms: u64,
    fence: u64,
    /// Where claims were granted, ended ones too; so stale places occur.
    places: Vec<Place>,
    /// Every row that changed, as a store would be given it.
    stream: Vec<u8>,
    incarnations: BTreeMap<String, u64>,
    /// How often claims were answered how.
    pub answered: BTreeMap<&'static str, usize>,
}

impl Run {
    pub fn new(policy: Policy, now_ms: u64) -> Self {
        Self {
            shard: Shard::new(policy, now_ms),
            oracle: Oracle::new(policy),
            now_ms,
            fence: 0,
            places: Vec::new(),
            stream: Vec::new(),
            incarnations: BTreeMap::new(),
            answered: BTreeMap::new(),
        }
    }

    pub fn workers(&self) -> usize {
        self.oracle.workers.len()
    }

    /// One event for both, and then everything is compared.
    pub fn step(&mut self, op: &Op) {
        let before = self.shard.seq();
        let changed = self.event(op);
        if let Some(changed) = changed {
            assert_eq!(self.shard.seq() > before, changed, "{op:?}: a version moves only if something changed");
        }
        self.compare(op);
        self.shard.take_rows(&mut self.stream);
        assert!(!self.shard.has_rows());
        self.replicas();
    }

    /// Returns whether something had to change, where the oracle can tell.
    fn event(&mut self, op: &Op) -> Option<bool> {
        let now_ms = self.now_ms;
        let place = |at: &prop::sample::Index| (!self.places.is_empty()).then(|| *at.get(&self.places));
        match op {
            Op::Register { id, more, card } => {
                let id = format!("w{id}");
                let last = self.incarnations.entry(id.clone()).or_insert(1);
                let incarnation = (*last + u64::from(*more)).saturating_sub(1);
                *last = incarnation.max(*last);
                let known = self.oracle.workers.get(&id).cloned();
                let (ended, said) = self.oracle.register(&id, incarnation, *card);
                self.same(Event::Register { spec: spec(&id, incarnation, *card), to: () }, &ended, Some(said));
                Some(known != self.oracle.workers.get(&id).cloned())
            }
            Op::Delete(id) => {
                let id = format!("w{id}");
                let (ended, said) = self.oracle.delete(&id, now_ms);
                let changed = said == Said::Deleted;
                self.same(Event::Delete { id: WorkerId::new(&id).unwrap(), to: () }, &ended, Some(said));
                Some(changed)
            }
            Op::Claim { affinity: of, reserve_ms, ask } => {
                self.claim(affinity(*of), *reserve_ms, ask.as_ref());
                None
            }
            Op::Repeat { at, satisfies, ask } => {
                let place = place(at)?;
                let (ended, said) =
                    self.oracle.repeat(place.fence, *satisfies, ask.as_ref().unwrap_or(&Ask::default()));
                match said {
                    Said::Mismatch => self.count("mismatch"),
                    Said::ActiveElsewhere | Said::GivenBack if *satisfies => self.count("not allowed"),
                    _ => {}
                }
                let wants = ask.as_ref().map(Ask::wants);
                self.same(Event::Repeat { place, satisfies: *satisfies, wants, to: () }, &ended, Some(said));
                Some(!ended.is_empty())
            }
            Op::Confirm(at) => {
                let place = place(at)?;
                let reserved = self.oracle.claims.iter().any(|claim| claim.fence == place.fence && !claim.active);
                let said = self.oracle.confirm(place.fence);
                self.same(Event::Confirm { place, to: () }, &[], Some(said));
                Some(reserved)
            }
            Op::Release(at) => {
                let place = place(at)?;
                let ended = self.oracle.end(place.fence, hotpool::engine::End::Released);
                self.same(Event::Release { place, to: () }, &ended, Some(Said::Released));
                Some(!ended.is_empty())
            }
            Op::Look(at) => {
                let place = place(at)?;
                let said = self.oracle.tell(place.fence);
                self.same(Event::Look { place, to: () }, &[], Some(said));
                Some(false)
            }
            Op::GiveBack(at) => {
                let place = place(at)?;
                let ended = self.oracle.give_back(place.fence);
                self.same(Event::GiveBack { place }, &ended, None);
                Some(!ended.is_empty())
            }
            Op::Departed(at) => {
                let place = place(at)?;
                self.oracle.departed(place.fence, now_ms);
                self.same(Event::Departed { place }, &[], None);
                Some(false)
            }
            Op::Yield(at) => {
                let place = place(at)?;
                let ended = self.oracle.end(place.fence, hotpool::engine::End::GivenBack);
                self.same(Event::Yield { place }, &ended, None);
                Some(!ended.is_empty())
            }
            Op::Tick(by) => {
                self.now_ms += by;
                self.tick();
                None
            }
            Op::SetPolicy(policy) => {
                self.shard.set_policy(*policy);
                self.oracle.policy = *policy;
                Some(false)
            }
        }
    }

    fn claim(&mut self, affinity: u64, reserve_ms: u64, asked: Option<&Ask>) {
        self.fence += 1;
        let (fence, key) = (self.fence, format!("k{}", self.fence));
        let id = ClaimId::new("ns", "t", &key).unwrap();
        let mut effects = Vec::new();
        let wants = asked.map(Ask::wants);
        self.shard.on(Event::Claim { id, fence, affinity, reserve_ms, wants, to: () }, self.now_ms, &mut effects);
        let (ended, answer) = split(effects);
        assert_eq!(ended, []);
        let ask = asked.cloned().unwrap_or_default();
        let may = self.oracle.may_take(affinity, &ask);
        let Some(Answer::Granted(grant)) = answer else {
            assert_eq!((answer.map(said_by), may.len()), (Some(self.oracle.no_fit(&ask)), 0), "{ask:?}");
            match self.oracle.no_fit(&ask) {
                Said::NoFit(NoFit::Busy) => self.count("Busy"),
                Said::NoFit(NoFit::Node) => self.count("Node"),
                Said::NoFit(NoFit::Small) => self.count("Small"),
                Said::NoFit(NoFit::Unknown) => self.count("Unknown"),
                _ => {}
            }
            return;
        };
        self.count(if asked.is_some() { "granted" } else { "plain" });
        let worker = grant.worker.spec.id.to_string();
        assert!(may.contains(&worker), "took {worker}, might take {may:?} of {ask:?}");
        assert_eq!((grant.place.fence, grant.reserve_ms), (fence, reserve_ms));
        self.places.push(grant.place);
        let said = self.oracle.take(&worker, &key, fence, affinity, reserve_ms, ask.slots);
        assert_eq!(said_by(Answer::Granted(grant)), said);
    }

    fn count(&mut self, answer: &'static str) {
        *self.answered.entry(answer).or_default() += 1;
    }

    fn tick(&mut self) {
        if self.shard.next_tick_ms().is_none_or(|at| at > self.now_ms) {
            // Then a tick must have nothing to do.
            let due = self.oracle.claims.iter().filter(|claim| claim.deadline.is_some_and(|at| at <= self.now_ms));
            assert_eq!(due.count(), 0);
        }
        let mut effects = Vec::new();
        self.shard.on(Event::Tick, self.now_ms, &mut effects);
        let (ended, answer) = split(effects);
        assert_eq!(answer, None);
        assert_eq!(ended, self.oracle.tick(self.now_ms, &ended));
    }

    fn same(&mut self, event: Event<()>, ended: &[Ended], said: Option<Said>) {
        let told = format!("{event:?}");
        let mut effects = Vec::new();
        self.shard.on(event, self.now_ms, &mut effects);
        let (engine_ended, answer) = split(effects);
        assert_eq!(engine_ended, ended, "{told}");
        assert_eq!(answer.map(said_by), said, "{told}");
    }

    fn compare(&self, op: &Op) {
        self.shard.check().unwrap_or_else(|wrong| panic!("{op:?}: {wrong}"));
        let (shard, oracle) = (&self.shard, &self.oracle);
        let reserved = oracle.claims.iter().filter(|claim| !claim.active).count();
        let counts = (oracle.idle.len(), oracle.claims.len(), reserved);
        assert_eq!((shard.idle(), shard.held(), shard.reserved()), counts, "{op:?}");
        assert_eq!(state(shard), known(oracle), "{op:?}");
        let mut lines: BTreeMap<u8, (u32, u32)> = BTreeMap::new();
        for (id, worker) in &oracle.workers {
            let line = lines.entry(asks::slots(worker.card)).or_default();
            line.0 += 1;
            line.1 += u32::from(oracle.claims.iter().any(|claim| claim.worker == *id));
        }
        let ledger = shard.ledger().map(|line| (line.capacity.slots as u8, (line.workers, line.held)));
        assert_eq!(ledger.collect::<BTreeMap<_, _>>(), lines, "{op:?}");
    }

    /// V1: what rows say is the shard.
    fn replicas(&self) {
        let mut dump = Vec::new();
        let mut from = 0;
        // In pieces, as a rewrite takes it.
        while let Some(next) = {
            let mut piece = Vec::new();
            let next = self.shard.dump_rows(from, 200, &mut piece);
            dump.extend(piece);
            next
        } {
            from = next;
        }
        for rows in [&dump, &self.stream, &folded(&self.stream)] {
            let mut replay = Replay::new(self.oracle.policy, "ns", self.now_ms);
            // Cut anywhere between two rows.
            let half = Frames::new(rows).count() / 2;
            let mut frames = Frames::new(rows);
            frames.by_ref().take(half).for_each(drop);
            let (first, second) = rows.split_at(rows.len() - frames.rest().len());
            replay.rows(first);
            replay.rows(second);
            let replica = replay.finish(self.shard.seq(), self.now_ms).unwrap_or_else(|(wrong, _)| panic!("{wrong}"));
            assert_eq!(state(&replica), known(&self.oracle));
            self.takes_the_same(replica);
        }
    }

    /// A replica is drained: it must take the workers that the oracle would, and refuse the dead.
    fn takes_the_same(&self, mut replica: Shard) {
        let mut oracle = self.oracle.clone();
        for (id, (incarnation, _)) in &self.oracle.dead {
            let mut effects = Vec::new();
            replica.on(Event::Register { spec: spec(id, *incarnation, 0), to: () }, self.now_ms, &mut effects);
            let stale = Said::Stale { known: *incarnation, deleted: true };
            assert_eq!(split(effects).1.map(said_by), Some(stale));
        }
        // All of a small shard, the first of a large one.
        for i in 0..oracle.idle.len().min(12) as u64 {
            let (fence, affinity) = (self.fence + 1 + i, 1 + i % 5);
            let id = ClaimId::new("ns", "t", "replica").unwrap();
            let mut effects = Vec::new();
            let ask = Ask::of_zone(i as usize);
            let wants = Some(ask.wants());
            replica.on(Event::Claim { id, fence, affinity, reserve_ms: 0, wants, to: () }, self.now_ms, &mut effects);
            let may = oracle.may_take(affinity, &ask);
            let Some(Answer::Granted(grant)) = split(effects).1 else {
                assert_eq!(may, Vec::<String>::new(), "there is room for {ask:?}");
                continue;
            };
            let worker = grant.worker.spec.id.to_string();
            assert!(may.contains(&worker), "the replica took {worker}, might take {may:?} of {ask:?}");
            oracle.take(&worker, "replica", fence, affinity, 0, 0);
        }
    }
}

/// Per worker: incarnation, card, and its claim's key, fence, whether it is active, and the slots that it asked for.
type State = BTreeMap<String, (u64, u8, Option<(String, u64, bool, u8)>)>;

fn state(shard: &Shard) -> State {
    let claim = |(id, grant): &(ClaimId, Grant)| {
        let slots = grant.spec.as_ref().map_or(0, |spec| {
            assert_eq!(spec.labels["slots"], spec.resources.slots.to_string());
            spec.resources.slots as u8
        });
        (id.key().to_owned(), grant.place.fence, grant.state == ClaimState::Active, slots)
    };
    let workers = shard.list_workers(0, usize::MAX).map(|(_, look)| {
        let spec = &look.card.spec;
        (spec.id.to_string(), (spec.incarnation, asks::card(spec), look.claims.first().map(claim)))
    });
    let workers: State = workers.collect();
    let listed = shard.list_claims(0).map(|(_, id, grant)| (grant.worker.spec.id.to_string(), claim(&(id, grant))));
    let held = workers.iter().filter_map(|(id, (.., claim))| Some((id.clone(), claim.clone()?)));
    assert_eq!(listed.collect::<BTreeMap<_, _>>(), held.collect(), "both listings say the same");
    workers
}

fn known(oracle: &Oracle) -> State {
    let claim = |id: &String| {
        let claim = oracle.claims.iter().find(|claim| claim.worker == *id)?;
        Some((claim.key.clone(), claim.fence, claim.active, claim.slots))
    };
    oracle.workers.iter().map(|(id, worker)| (id.clone(), (worker.incarnation, worker.card, claim(id)))).collect()
}

/// The last row of each id, in the order of these.
fn folded(stream: &[u8]) -> Vec<u8> {
    let mut kept: Vec<((RowKind, &str), &[u8])> = Vec::new();
    let mut walk = Frames::new(stream);
    loop {
        let start = stream.len() - walk.rest().len();
        let Some(frame) = walk.next() else { break };
        let frame = frame.unwrap();
        kept.retain(|(of, _)| *of != (frame.kind, frame.id));
        kept.push(((frame.kind, frame.id), &stream[start..stream.len() - walk.rest().len()]));
    }
    kept.into_iter().flat_map(|(_, bytes)| bytes).copied().collect()
}

/// What ended, and the one answer, which comes last.
fn split(effects: Vec<Effect<()>>) -> (Vec<Ended>, Option<Answer>) {
    let (mut ended, mut answer) = (Vec::new(), None);
    for effect in effects {
        assert!(answer.is_none(), "the answer is the last effect");
        match effect {
            Effect::Reply { answer: said, .. } => answer = Some(said),
            Effect::Ended { id, fence, end } => ended.push((id.key().to_owned(), fence, end)),
        }
    }
    (ended, answer)
}

fn said_by(answer: Answer) -> Said {
    let held = |grant: &Grant| (grant.worker.spec.id.to_string(), grant.state == ClaimState::Active);
    match answer {
        Answer::Granted(grant) => {
            assert_eq!(grant.deadline_ms, None, "it runs from when the answer leaves");
            let (worker, active) = held(&grant);
            Said::Granted { worker, active }
        }
        Answer::Held(grant) => {
            let (worker, active) = held(&grant);
            Said::Held { worker, active, deadline: grant.deadline_ms }
        }
        Answer::NoRoom => Said::NoRoom,
        Answer::Gone => Said::Gone,
        Answer::GivenBack => Said::GivenBack,
        Answer::ActiveElsewhere => Said::ActiveElsewhere,
        Answer::Released => Said::Released,
        Answer::Registered { created, worker } => Said::Registered { created, busy: !worker.claims.is_empty() },
        Answer::Deleted => Said::Deleted,
        Answer::UnknownWorker => Said::Unknown,
        Answer::StaleIncarnation { known, deleted } => Said::Stale { known, deleted },
        Answer::NoFit(why) => Said::NoFit(why),
        Answer::Mismatch => Said::Mismatch,
        Answer::ShardFull => panic!("not that many"),
    }
}
