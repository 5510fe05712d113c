//! Leads a shard and the oracle through the same events.

use std::collections::BTreeMap;

use hotpool::engine::{Answer, Axes, Effect, End, Event, Grant, Heartbeat, Named, NoFit, Place, Replay, Resume, Shard};
use hotpool::model::{ClaimId, ClaimState, Policy, WorkerId, WorkerSpec, WorkerVerb};
use hotpool::row::{Frames, RowKind};
use proptest::prelude::*;

use crate::asks::{self, Ask, spec};
use crate::oracle::{self, Card, Ended, Oracle, Said, Terms};

#[derive(Debug, Clone)]
pub enum Op {
    /// `more`: 0 an older incarnation, if there is one; 1 the same; 2 the next.
    Register {
        id: u8,
        more: u8,
        card: u8,
        /// It says when its life ends: so long after now.
        ends_in: Option<u64>,
        names: Option<Names>,
    },
    /// `more` as above.
    Heartbeat {
        who: Who,
        more: u8,
        seq: Option<u64>,
        names: Option<Names>,
    },
    Steer(u8, WorkerVerb),
    ClearAll,
    Delete(u8),
    Claim {
        affinity: u8,
        reserve_ms: u64,
        ttl_ms: u64,
        ask: Option<Ask>,
    },
    Renew {
        at: prop::sample::Index,
        ttl_ms: Option<u64>,
    },
    BeginRelease {
        at: prop::sample::Index,
        releasing_ms: u64,
    },
    SetMemory(Option<u64>),
    /// The shard is loaded again from what the store had so many events ago.
    Reload {
        lost: u8,
        revived: bool,
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

/// Which worker.
#[derive(Debug, Clone)]
pub enum Who {
    Named(u8),
    /// One that holds a claim, if any does.
    Holding(prop::sample::Index),
    /// One that was granted something a moment ago, whether or not the shard still knows.
    Recent(prop::sample::Index),
}

/// What a worker names: what it holds, and any that were ever granted.
#[derive(Debug, Clone)]
pub struct Names {
    pub own: bool,
    pub others: Vec<prop::sample::Index>,
}

/// The pool's time of silence.
const TTL_MS: u64 = 1_000;
/// How many events back a store may be.
const BACK: usize = 14;

/// A few affinities, each in a bucket of its own.
fn affinity(of: u8) -> u64 {
    u64::from(of) + 1
}

pub struct Run {
    policy: Policy,
    shard: Shard,
    oracle: Oracle,
    /// Everything as it was after each of the last events: oracle, bytes of the stream, sequence number.
    past: Vec<(Oracle, usize, u64)>,
    /// Every claim that was granted, by worker, key and fence.
    granted: Vec<(String, String, u64)>,
    /// How often something befell a worker or a claim, and how often claims were answered how.
    pub seen: BTreeMap<&'static str, usize>,
    now_ms: u64,
    fence: u64,
    /// Where claims were granted, ended ones too; so stale places occur.
    places: Vec<Place>,
    /// Every row that changed, as a store would be given it.
    stream: Vec<u8>,
    incarnations: BTreeMap<String, u64>,
}

impl Run {
    pub fn new(policy: Policy, now_ms: u64) -> Self {
        Self {
            policy,
            shard: Shard::new(policy, now_ms),
            oracle: Oracle::new(policy),
            past: Vec::new(),
            granted: Vec::new(),
            seen: BTreeMap::new(),
            now_ms,
            fence: 0,
            places: Vec::new(),
            stream: Vec::new(),
            incarnations: BTreeMap::new(),
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
        self.past.push((self.oracle.clone(), self.stream.len(), self.shard.seq()));
        if self.past.len() > BACK {
            self.past.remove(0);
        }
    }

    /// What the store had is all that is left.
    fn reload(&mut self, lost: u8, revived: bool) {
        let keep = self.past.len().saturating_sub(if revived { 0 } else { lost.into() }).max(1);
        self.past.truncate(keep);
        let Some((oracle, bytes, seq)) = self.past.pop() else { return };
        (self.oracle, self.oracle.policy) = (oracle, self.policy);
        self.stream.truncate(bytes);
        let floor = self.fence + 3;
        let mut replay = Replay::new(self.policy, "ns", self.now_ms);
        replay.rows(&self.stream);
        let resume = Resume { at: seq, now_ms: self.now_ms, unix_ms: self.now_ms, floor, revived };
        self.shard = replay.finish(resume).unwrap_or_else(|(wrong, _)| panic!("{wrong}"));
        self.oracle.reload(self.now_ms, floor, revived);
        self.fence = floor;
        self.past.clear();
        self.places = self.shard.list_claims(0).map(|(_, _, grant)| grant.place).collect();
    }

    fn named(&self, worker: &str, names: &Names) -> Vec<oracle::Named> {
        let own = self.oracle.claims.iter().filter(|claim| names.own && claim.worker == worker);
        let own = own.map(|claim| (claim.key.clone(), claim.fence));
        let any = |at: &prop::sample::Index| {
            // Mostly what was once granted to this very worker, and of that the last.
            let mine: Vec<_> = self.granted.iter().filter(|(of, ..)| of == worker).collect();
            let all: Vec<_> = self.granted.iter().collect();
            let from = match at.index(4) {
                _ if mine.is_empty() => all,
                0 => all,
                1 => mine,
                _ => mine[mine.len() - 1..].to_vec(),
            };
            (!from.is_empty()).then(|| (at.get(&from).1.clone(), at.get(&from).2))
        };
        let named = own.chain(names.others.iter().filter_map(any));
        named
            .map(|(key, fence)| {
                let vacant = !self.oracle.claims.iter().any(|claim| claim.key == key);
                (key, fence, vacant)
            })
            .collect()
    }

    fn adopted(&mut self, adopted: Option<u64>, effects: &[Effect<()>]) {
        let seen: Vec<Place> = effects
            .iter()
            .filter_map(|effect| match effect {
                Effect::Adopted { id, place } => {
                    assert_eq!(id.key(), format!("k{}", place.fence));
                    Some(*place)
                }
                _ => None,
            })
            .collect();
        assert_eq!(seen.iter().map(|place| place.fence).collect::<Vec<_>>(), Vec::from_iter(adopted));
        *self.seen.entry("adopted").or_default() += seen.len();
        // One that ended may be adopted again on another worker: then it is there and nowhere else.
        self.places.retain(|place| Some(place.fence) != adopted);
        self.places.extend(seen);
    }

    /// Returns whether something had to change, where the oracle can tell.
    fn event(&mut self, op: &Op) -> Option<bool> {
        let now_ms = self.now_ms;
        let place = |at: &prop::sample::Index| (!self.places.is_empty()).then(|| *at.get(&self.places));
        match op {
            Op::Register { id, more, card, ends_in, names } => {
                let id = format!("w{id}");
                let last = self.incarnations.entry(id.clone()).or_insert(1);
                let incarnation = (*last + u64::from(*more)).saturating_sub(1);
                *last = incarnation.max(*last);
                let expires_at = ends_in.map(|ms| (now_ms + ms).max(1));
                let claims = names.as_ref().map(|names| self.named(&id, names));
                let to = claims.clone().map(engine_names);
                let card = Card { incarnation, card: *card, expires_at, claims };
                let spec = WorkerSpec { expires_at_ms: expires_at, ..spec(&id, incarnation, card.card) };
                let (ended, said, adopted) = self.oracle.register(&id, card, TTL_MS, now_ms);
                let event = Event::Register { spec, ends_ms: expires_at, claims: to, ttl_ms: TTL_MS, to: () };
                let effects = self.same(event, &ended, Some(said));
                self.adopted(adopted, &effects);
                None
            }
            Op::Heartbeat { who, more, seq, names } => {
                let id = match who {
                    Who::Named(id) => format!("w{id}"),
                    Who::Holding(_) if self.oracle.claims.is_empty() => return None,
                    Who::Holding(at) => at.get(&self.oracle.claims).worker.clone(),
                    Who::Recent(_) if self.granted.is_empty() => return None,
                    Who::Recent(at) => at.get(&self.granted[self.granted.len().saturating_sub(8)..]).0.clone(),
                };
                let known = self.oracle.workers.get(&id).map_or(1, |worker| worker.incarnation);
                let incarnation = (known + u64::from(*more)).saturating_sub(1);
                let named = names.as_ref().map(|names| self.named(&id, names));
                let claims = named.clone().map(engine_names);
                let (ended, said, adopted) = self.oracle.heartbeat(&id, incarnation, *seq, named, TTL_MS, now_ms);
                let beat = Heartbeat { incarnation, seq: *seq, claims, ttl_ms: TTL_MS };
                let effects =
                    self.same(Event::Heartbeat { id: WorkerId::new(&id).unwrap(), beat, to: () }, &ended, Some(said));
                self.adopted(adopted, &effects);
                None
            }
            Op::Steer(id, verb) => {
                let id = format!("w{id}");
                let said = self.oracle.steer(&id, *verb, now_ms);
                self.same(Event::Steer { id: WorkerId::new(&id).unwrap(), verb: *verb, to: () }, &[], Some(said));
                None
            }
            Op::ClearAll => {
                let order: Vec<String> =
                    self.shard.list_workers(0, usize::MAX).map(|(_, look)| look.card.spec.id.to_string()).collect();
                let said = self.oracle.clear_all(&order, now_ms);
                self.same(Event::ClearAll { to: () }, &[], Some(said));
                None
            }
            Op::Renew { at, ttl_ms } => {
                let place = place(at)?;
                let said = self.oracle.renew(place.fence, *ttl_ms, now_ms);
                self.same(Event::Renew { place, ttl_ms: *ttl_ms, to: () }, &[], Some(said));
                None
            }
            Op::BeginRelease { at, releasing_ms } => {
                let place = place(at)?;
                let begun = self.oracle.begin_release(place.fence, *releasing_ms, now_ms);
                let event = Event::BeginRelease { place, releasing_ms: *releasing_ms, to: () };
                self.same(event, &[], Some(Said::Released));
                Some(begun)
            }
            Op::SetMemory(reserve_ms) => {
                let news = self.shard.set_memory(*reserve_ms);
                let before = (self.oracle.memory, self.oracle.reserve_ms);
                self.oracle.memory = reserve_ms.is_some();
                self.oracle.reserve_ms = self.oracle.reserve_ms.max(reserve_ms.unwrap_or(0));
                assert_eq!(news, before != (self.oracle.memory, self.oracle.reserve_ms));
                Some(news)
            }
            Op::Reload { lost, revived } => {
                self.reload(*lost, *revived);
                None
            }
            Op::Delete(id) => {
                let id = format!("w{id}");
                let (ended, said) = self.oracle.delete(&id, now_ms);
                let changed = said == Said::Deleted;
                self.same(Event::Delete { id: WorkerId::new(&id).unwrap(), to: () }, &ended, Some(said));
                Some(changed)
            }
            Op::Claim { affinity: of, reserve_ms, ttl_ms, ask } => {
                self.claim(affinity(*of), *reserve_ms, *ttl_ms, ask.as_ref());
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
                let is = |claim: &&oracle::Claim| claim.fence == place.fence && claim.state == ClaimState::Reserved;
                let reserved = self.oracle.claims.iter().any(|claim| is(&claim));
                let said = self.oracle.confirm(place.fence, now_ms);
                self.same(Event::Confirm { place, to: () }, &[], Some(said));
                Some(reserved)
            }
            Op::Release(at) => {
                let place = place(at)?;
                let worker = self.oracle.workers.iter().find(|(_, worker)| worker.uncleaned == Some(place.fence));
                let worker = worker.map(|(id, _)| id.clone());
                let cleaned = worker.is_some();
                let ended = self.oracle.release(worker, place.fence);
                *self.seen.entry("cleaned late").or_default() += usize::from(cleaned);
                self.same(Event::Release { place, to: () }, &ended, Some(Said::Released));
                Some(!ended.is_empty() || cleaned)
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
                (self.policy, self.oracle.policy) = (*policy, *policy);
                Some(false)
            }
        }
    }

    fn claim(&mut self, affinity: u64, reserve_ms: u64, ttl_ms: u64, asked: Option<&Ask>) {
        self.fence += 1;
        let (fence, key) = (self.fence, format!("k{}", self.fence));
        let id = ClaimId::new("ns", "t", &key).unwrap();
        let mut effects = Vec::new();
        let wants = asked.map(Ask::wants);
        let event = Event::Claim { id, fence, affinity, reserve_ms, ttl_ms, wants, to: () };
        self.shard.on(event, self.now_ms, &mut effects);
        let (ended, answer) = split(&effects);
        assert_eq!(ended, []);
        let ask = asked.cloned().unwrap_or_default();
        let until = self.now_ms + reserve_ms + ttl_ms;
        let may = self.oracle.may_take(affinity, until, &ask);
        if !ask.is_for_any() && may != self.oracle.may_take(affinity, 0, &ask) {
            self.count("too short a life");
        }
        let Some(Answer::Granted(grant)) = answer else {
            let said = self.oracle.no_fit(until, &ask);
            match said {
                Said::NoFit(NoFit::Busy) => self.count("Busy"),
                Said::NoFit(NoFit::Node) => self.count("Node"),
                Said::NoFit(NoFit::Small) => self.count("Small"),
                Said::NoFit(NoFit::Unknown) => self.count("Unknown"),
                _ => {}
            }
            assert_eq!((answer.map(said_by), may.len()), (Some(said), 0), "{ask:?}");
            return;
        };
        self.count(if ask.is_for_any() { "plain" } else { "granted" });
        let worker = grant.worker.spec.id.to_string();
        assert!(may.contains(&worker), "took {worker}, might take {may:?} of {ask:?}");
        assert_eq!((grant.place.fence, grant.reserve_ms, grant.term_ms), (fence, reserve_ms, ttl_ms));
        self.places.push(grant.place);
        self.granted.push((worker.clone(), key.clone(), fence));
        let terms = Terms { key, reserve_ms, term_ms: ttl_ms, slots: ask.slots };
        let said = self.oracle.take(&worker, fence, affinity, terms);
        assert_eq!(said_by(Answer::Granted(grant)), said);
    }

    fn count(&mut self, what: &'static str) {
        *self.seen.entry(what).or_default() += 1;
    }

    fn tick(&mut self) {
        if self.shard.next_tick_ms().is_none_or(|at| at > self.now_ms) {
            // Then a tick must have nothing to do.
            let due = self.oracle.claims.iter().filter(|claim| claim.deadline.is_some_and(|at| at <= self.now_ms));
            assert_eq!(due.count(), 0);
        }
        let mut effects = Vec::new();
        self.shard.on(Event::Tick, self.now_ms, &mut effects);
        let (ended, answer) = split(&effects);
        assert_eq!(answer, None);
        assert_eq!(ended, self.oracle.tick(self.now_ms, &ended));
        for (_, _, end) in &ended {
            self.count(end_word(*end));
        }
    }

    fn same(&mut self, event: Event<()>, ended: &[Ended], said: Option<Said>) -> Vec<Effect<()>> {
        let told = format!("{event:?}");
        let mut effects = Vec::new();
        self.shard.on(event, self.now_ms, &mut effects);
        let (engine_ended, answer) = split(&effects);
        assert_eq!(engine_ended, ended, "{told}");
        assert_eq!(answer.map(said_by), said, "{told}");
        for (_, _, end) in ended {
            self.count(end_word(*end));
        }
        effects
    }

    fn compare(&self, op: &Op) {
        self.shard.check().unwrap_or_else(|wrong| panic!("{op:?}: {wrong}"));
        let (shard, oracle) = (&self.shard, &self.oracle);
        let in_state = |state| oracle.claims.iter().filter(|claim| claim.state == state).count();
        let claims = (oracle.claims.len(), in_state(ClaimState::Reserved), in_state(ClaimState::Releasing));
        assert_eq!((shard.held(), shard.reserved(), shard.releasing()), claims, "{op:?}");
        assert_eq!((shard.idle(), shard.workers()), (oracle.idle.len(), oracle.workers.len()), "{op:?}");
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
        let mut expected = self.oracle.clone();
        expected.reload(self.now_ms, self.fence, true);
        for rows in [&dump, &self.stream, &folded(&self.stream)] {
            let mut replay = Replay::new(self.oracle.policy, "ns", self.now_ms);
            // Cut anywhere between two rows.
            let half = Frames::new(rows).count() / 2;
            let mut frames = Frames::new(rows);
            frames.by_ref().take(half).for_each(drop);
            let (first, second) = rows.split_at(rows.len() - frames.rest().len());
            replay.rows(first);
            replay.rows(second);
            let (at, now_ms) = (self.shard.seq(), self.now_ms);
            let resume = Resume { at, now_ms, unix_ms: now_ms, floor: self.fence, revived: true };
            let replica = replay.finish(resume).unwrap_or_else(|(wrong, _)| panic!("{wrong}"));
            assert_eq!(state(&replica), known(&self.oracle));
            assert_eq!(replica.idle(), expected.idle.len());
            self.takes_the_same(replica, expected.clone());
        }
    }

    /// A replica is drained: it must take the workers that the oracle would, and refuse the dead.
    fn takes_the_same(&self, mut replica: Shard, mut oracle: Oracle) {
        for (id, (incarnation, _)) in &self.oracle.dead {
            let mut effects = Vec::new();
            let spec = spec(id, *incarnation, 0);
            let event = Event::Register { spec, ends_ms: None, claims: None, ttl_ms: TTL_MS, to: () };
            replica.on(event, self.now_ms, &mut effects);
            let stale = Said::Stale { known: *incarnation, deleted: true };
            assert_eq!(split(&effects).1.map(said_by), Some(stale));
        }
        // All of a small shard, the first of a large one.
        for i in 0..oracle.idle.len().min(12) as u64 {
            let (fence, affinity) = (self.fence + 1 + i, 1 + i % 5);
            let id = ClaimId::new("ns", "t", "replica").unwrap();
            let mut effects = Vec::new();
            let ask = Ask::of_zone(i as usize);
            let wants = Some(ask.wants());
            let event = Event::Claim { id, fence, affinity, reserve_ms: 0, ttl_ms: 0, wants, to: () };
            replica.on(event, self.now_ms, &mut effects);
            let may = oracle.may_take(affinity, self.now_ms, &ask);
            let Some(Answer::Granted(grant)) = split(&effects).1 else {
                assert_eq!(may, Vec::<String>::new(), "there is room for {ask:?}");
                continue;
            };
            let worker = grant.worker.spec.id.to_string();
            assert!(may.contains(&worker), "the replica took {worker}, might take {may:?} of {ask:?}");
            let terms = Terms { key: "replica".into(), reserve_ms: 0, term_ms: 0, slots: 0 };
            oracle.take(&worker, fence, affinity, terms);
        }
    }
}

/// A claim: key, fence, state, and the slots that it asked for.
type Held = (String, u64, ClaimState, u8);

/// Per worker: incarnation, card, where it stands, and its claim.
type State = BTreeMap<String, (u64, u8, Axes, Option<Held>)>;

fn state(shard: &Shard) -> State {
    let claim = |(id, grant): &(ClaimId, Grant)| {
        let slots = grant.spec.as_ref().map_or(0, |spec| {
            assert_eq!(spec.labels["slots"], spec.resources.slots.to_string());
            spec.resources.slots as u8
        });
        (id.key().to_owned(), grant.place.fence, grant.state, slots)
    };
    let workers = shard.list_workers(0, usize::MAX).map(|(_, look)| {
        let spec = &look.card.spec;
        let held = look.claims.first().map(claim);
        (spec.id.to_string(), (spec.incarnation, asks::card(spec), look.axes, held))
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
        Some((claim.key.clone(), claim.fence, claim.state, claim.slots))
    };
    let row = |(id, worker): (&String, &oracle::Worker)| {
        (id.clone(), (worker.incarnation, worker.card, oracle.axes(id), claim(id)))
    };
    oracle.workers.iter().map(row).collect()
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
fn split(effects: &[Effect<()>]) -> (Vec<Ended>, Option<Answer>) {
    let (mut ended, mut answer, mut remembered) = (Vec::new(), None, None);
    for effect in effects {
        assert!(answer.is_none(), "the answer is the last effect");
        match effect {
            Effect::Reply { answer: said, .. } => answer = Some(said.clone()),
            Effect::Ended { id, fence, end } => {
                let state = match end {
                    End::Lost => Some(ClaimState::Lost),
                    End::Uncleaned => Some(ClaimState::Releasing),
                    _ => None,
                };
                let expected = state.map(|state| (id.clone(), *fence, state));
                assert_eq!(remembered.take(), expected, "what is remembered is what ends next");
                ended.push((id.key().to_owned(), *fence, *end));
            }
            Effect::Remember { id, grant } => remembered = Some((id.clone(), grant.place.fence, grant.state)),
            Effect::Adopted { .. } => {}
        }
    }
    (ended, answer)
}

fn end_word(end: End) -> &'static str {
    match end {
        End::Released => "released",
        End::Swept => "swept",
        End::Expired => "expired",
        End::Uncleaned => "uncleaned",
        End::Missing => "missing",
        End::Lost => "lost",
        End::GivenBack => "given back",
    }
}

fn engine_names(named: Vec<oracle::Named>) -> Vec<Named> {
    let id = |key: &str| ClaimId::new("ns", "t", key).unwrap();
    let name = |(key, fence, vacant): oracle::Named| Named { id: id(&key), fence, vacant, pending: false };
    named.into_iter().map(name).collect()
}

fn fences(named: &[Named]) -> Vec<u64> {
    let mut fences: Vec<u64> = named.iter().map(|name| name.fence).collect();
    fences.sort_unstable();
    fences
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
            let (worker, _) = held(&grant);
            Said::Held { worker, state: grant.state, deadline: grant.deadline_ms }
        }
        Answer::NoRoom => Said::NoRoom,
        Answer::Gone => Said::Gone,
        Answer::GivenBack => Said::GivenBack,
        Answer::ActiveElsewhere => Said::ActiveElsewhere,
        Answer::Released => Said::Released,
        Answer::Registered { created, worker, stop } => {
            Said::Registered { created, busy: worker.axes.busy, stop: fences(&stop) }
        }
        Answer::Heard { claims, stop } => {
            Said::Heard { claims: claims.iter().map(|(_, grant)| grant.place.fence).collect(), stop: fences(&stop) }
        }
        Answer::Steered(look) => Said::Steered(look.axes),
        Answer::Draining => Said::Draining,
        Answer::Settling { left_ms } => Said::Settling(left_ms),
        Answer::Cleared { cleared, suspect } => Said::Cleared { cleared, suspect },
        Answer::UnknownIncarnation { known } => Said::Newer { known },
        Answer::Releasing => Said::Releasing,
        Answer::NotActive => Said::NotActive,
        Answer::Deleted => Said::Deleted,
        Answer::UnknownWorker => Said::Unknown,
        Answer::StaleIncarnation { known, deleted } => Said::Stale { known, deleted },
        Answer::NoFit(why) => Said::NoFit(why),
        Answer::Mismatch => Said::Mismatch,
        Answer::ShardFull => panic!("not that many"),
    }
}
