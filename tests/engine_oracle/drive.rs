//! Leads a shard and the oracle through the same events.

use std::collections::BTreeMap;

use hotpool::engine::{
    ClaimHandle, Effect, EndReason, EngineReply, Event, HeartbeatReport, PlacementFailure, ResumePoint, Shard,
    ShardConfig, ShardReplay,
};
use hotpool::model::{ClaimId, ClaimState, PlacementPolicy, WorkerId, WorkerSpec};
use hotpool::persist::row::put_shard;
use proptest::prelude::*;

use crate::asks::{Ask, spec};
use crate::ops::{Names, Op, Who};
use crate::oracle::{self, Card, Ended, Oracle, Said, Terms, Times};
use crate::words::{end_word, engine_names, said_by, split};

#[path = "compare.rs"]
mod compare;

/// The pool's time of silence.
const TTL_MS: u64 = 1_000;
/// How many events back a store may be.
const BACK: usize = 14;

fn rules(policy: PlacementPolicy, times: Times) -> ShardConfig {
    ShardConfig { unnamed_ms: times.unnamed_ms, lost_keep_ms: times.lost_keep_ms, ttl: times.ttl, ..policy.into() }
}

/// A few affinities, each in a bucket of its own.
fn affinity(of: u8) -> u64 {
    u64::from(of) + 1
}

pub struct Run {
    policy: PlacementPolicy,
    times: Times,
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
    /// Where the last two reloads let fences begin.
    floors: [u64; 2],
    /// Where claims were granted, ended ones too; so stale places occur.
    places: Vec<ClaimHandle>,
    /// Every row that changed, as a store would be given it.
    stream: Vec<u8>,
    incarnations: BTreeMap<String, u64>,
}

impl Run {
    pub fn new(policy: PlacementPolicy, times: Times, now_ms: u64) -> Self {
        Self {
            policy,
            times,
            shard: Shard::new(rules(policy, times), now_ms),
            oracle: Oracle::new(policy, times),
            past: Vec::new(),
            granted: Vec::new(),
            seen: BTreeMap::new(),
            now_ms,
            fence: 0,
            floors: [0; 2],
            places: Vec::new(),
            stream: Vec::new(),
            incarnations: BTreeMap::new(),
        }
    }

    fn rules(&self) -> ShardConfig {
        rules(self.policy, self.times)
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
        if self.times.lost_keep_ms.is_some() && self.oracle.workers.values().any(|w| w.lost && w.cordoned) {
            self.count("kept");
        }
        self.shard.take_rows(&mut self.stream);
        self.shard.take_header().iter().for_each(|head| put_shard(&mut self.stream, head));
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
        let unix_ahead_ms = self.oracle.unix_ahead_ms;
        self.oracle = Oracle { policy: self.policy, times: self.times, unix_ahead_ms, ..oracle };
        self.stream.truncate(bytes);
        // A revival is no new owner.
        if !revived {
            self.floors = [self.floors[1], self.fence + 3];
        }
        let [previous_floor, floor] = self.floors;
        let mut replay = ShardReplay::new(self.rules(), "ns", self.now_ms);
        replay.rows(&self.stream);
        let resume = ResumePoint {
            seq,
            now_ms: self.now_ms,
            unix_ms: self.now_ms,
            fence_floor: floor,
            previous_fence_floor: previous_floor,
            restarted: revived,
        };
        self.shard = replay.finish(resume).unwrap_or_else(|(wrong, _)| panic!("{wrong}"));
        self.shard.set_wall_clock(unix_ahead_ms);
        self.oracle.reload(self.now_ms, floor, previous_floor, revived);
        self.fence = self.fence.max(floor);
        self.past.clear();
        self.places = self.shard.list_claims().map(|(_, _, grant)| grant.handle).collect();
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
        let seen: Vec<ClaimHandle> = effects
            .iter()
            .filter_map(|effect| match effect {
                Effect::ClaimAdopted { id, place } => {
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
                if self.oracle.workers.get(&id).is_some_and(|worker| worker.lost && worker.incarnation == incarnation) {
                    self.count("came back");
                }
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
                let unnamed = self.unnamed(|claim| claim.worker == id);
                let (ended, said, adopted) = self.oracle.heartbeat(&id, incarnation, *seq, named, TTL_MS, now_ms);
                if matches!(said, Said::Heard { late_for: Some(_), .. }) {
                    self.count("ignored");
                }
                let now_named = |fence| self.oracle.claims.iter().any(|claim| claim.fence == fence && claim.named);
                if unnamed.into_iter().any(now_named) {
                    self.count("named in time");
                }
                let beat = HeartbeatReport { incarnation, seq: *seq, claims, ttl_ms: TTL_MS };
                let effects =
                    self.same(Event::Heartbeat { id: WorkerId::new(&id).unwrap(), beat, to: () }, &ended, Some(said));
                self.adopted(adopted, &effects);
                None
            }
            Op::Steer(id, verb) => {
                let id = format!("w{id}");
                let said = self.oracle.steer(&id, *verb, now_ms);
                self.same(
                    Event::WorkerCommand { id: WorkerId::new(&id).unwrap(), command: *verb, to: () },
                    &[],
                    Some(said),
                );
                None
            }
            Op::ClearAll => {
                let order: Vec<String> =
                    self.shard.list_workers().map(|(_, look)| look.registration.spec.id.to_string()).collect();
                let said = self.oracle.clear_all(&order, now_ms);
                self.same(Event::ClearAll { to: () }, &[], Some(said));
                None
            }
            Op::Renew { at, ttl_ms } => {
                let place = place(at)?;
                self.count_spoken_for(place.fence);
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
                let news = self.shard.set_memory_acks(*reserve_ms);
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
                self.same(Event::Reacquire { place, satisfies: *satisfies, wants, to: () }, &ended, Some(said));
                Some(!ended.is_empty())
            }
            Op::Confirm(at) => {
                let place = place(at)?;
                let is = |claim: &&oracle::Claim| claim.fence == place.fence && claim.state == ClaimState::Reserved;
                let reserved = self.oracle.claims.iter().any(|claim| is(&claim));
                self.count_spoken_for(place.fence);
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
                self.same(Event::Get { place, to: () }, &[], Some(said));
                Some(false)
            }
            Op::GiveBack(at) => {
                let place = place(at)?;
                let ended = self.oracle.give_back(place.fence);
                self.same(Event::Rollback { place }, &ended, None);
                Some(!ended.is_empty())
            }
            Op::Departed(at) => {
                let place = place(at)?;
                self.oracle.departed(place.fence, now_ms);
                self.same(Event::ReplySent { place, at_ms: now_ms }, &[], None);
                Some(false)
            }
            Op::Yield(at) => {
                let place = place(at)?;
                let ended = self.oracle.end(place.fence, EndReason::RolledBack);
                self.same(Event::Relinquish { place }, &ended, None);
                Some(!ended.is_empty())
            }
            Op::Tick(by) => {
                self.now_ms += by;
                self.tick();
                None
            }
            Op::SetPolicy(policy) => {
                (self.policy, self.oracle.policy) = (*policy, *policy);
                self.shard.set_config(&self.rules(), now_ms);
                Some(false)
            }
            Op::SetTimes(times) => {
                self.times = *times;
                self.shard.set_config(&self.rules(), now_ms);
                self.oracle.set_times(*times, now_ms);
                Some(false)
            }
            Op::SetWallClock(unix_ahead_ms) => {
                self.shard.set_wall_clock(*unix_ahead_ms);
                self.oracle.unix_ahead_ms = *unix_ahead_ms;
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
        let event = Event::Claim { id, fence, affinity, reserve_ms, ttl_ms, wants, reservation_ticket: 0, to: () };
        self.shard.handle_event(event, self.now_ms, &mut effects);
        let (ended, answer) = split(&effects);
        assert_eq!(ended, []);
        let ask = asked.cloned().unwrap_or_default();
        let ttl_ms = match self.oracle.ttl_of(ttl_ms) {
            Ok(ttl_ms) => ttl_ms,
            Err(said) => {
                self.count("ttl too long");
                return assert_eq!(answer.map(said_by), Some(said));
            }
        };
        let until = self.now_ms + reserve_ms + ttl_ms;
        let may = self.oracle.may_take(affinity, until, &ask);
        if !ask.is_for_any() && may != self.oracle.may_take(affinity, 0, &ask) {
            self.count("too short a life");
        }
        match (may.is_empty(), self.oracle.too_short(until, &ask)) {
            (_, 0) => {}
            (true, 1..3) => self.count("few end too soon, none is left"),
            (true, _) => self.count("many end too soon, none is left"),
            (false, 1..3) => self.count("few end too soon"),
            (false, _) => self.count("many end too soon"),
        }
        let Some(EngineReply::Granted(grant)) = answer else {
            let said = self.oracle.no_fit(until, &ask);
            match said {
                Said::NoFit(PlacementFailure::Busy) => self.count("Busy"),
                Said::NoFit(PlacementFailure::OtherNode) => self.count("Node"),
                Said::NoFit(PlacementFailure::TooSmall) => self.count("Small"),
                Said::NoFit(PlacementFailure::UnknownWorker) => self.count("Unknown"),
                _ => {}
            }
            assert_eq!((answer.map(said_by), may.len()), (Some(said), 0), "{ask:?}");
            return;
        };
        self.count(if ask.is_for_any() { "plain" } else { "granted" });
        let worker = grant.worker.spec.id.to_string();
        assert!(may.contains(&worker), "took {worker}, might take {may:?} of {ask:?}");
        assert_eq!((grant.handle.fence, grant.reserve_ms(), grant.term_ms), (fence, reserve_ms, ttl_ms));
        self.places.push(grant.handle);
        self.granted.push((worker.clone(), key.clone(), fence));
        let terms = Terms { key, reserve_ms, term_ms: ttl_ms, slots: ask.slots };
        let said = self.oracle.take(&worker, fence, affinity, terms, self.now_ms);
        let place = grant.handle;
        assert_eq!(said_by(EngineReply::Granted(grant)), said);
        // As a rule the answer leaves at once; of the others some leave later, and some never.
        if !fence.is_multiple_of(4) {
            self.oracle.departed(fence, self.now_ms);
            self.same(Event::ReplySent { place, at_ms: self.now_ms }, &[], None);
        }
    }

    fn count(&mut self, what: &'static str) {
        *self.seen.entry(what).or_default() += 1;
    }

    /// Claims that lists have left out and that were never named.
    fn unnamed(&self, of: impl Fn(&oracle::Claim) -> bool) -> Vec<u64> {
        let left_out = |claim: &&oracle::Claim| self.oracle.workers[&claim.worker].missing_at.is_some();
        let unnamed = self.oracle.claims.iter().filter(left_out).filter(|claim| !claim.named && of(claim));
        unnamed.map(|claim| claim.fence).collect()
    }

    fn count_spoken_for(&mut self, fence: u64) {
        if !self.unnamed(|claim| claim.fence == fence).is_empty() {
            self.count("spoken for");
        }
    }

    fn tick(&mut self) {
        if self.shard.next_tick_ms().is_none_or(|at| at > self.now_ms) {
            // Then a tick must have nothing to do.
            let claims = self.oracle.claims.iter().map(|claim| claim.deadline);
            let workers = self.oracle.workers.values();
            let workers = workers.flat_map(|worker| [worker.silent_at, worker.deleted_at, worker.missing_at]);
            assert_eq!(claims.chain(workers).flatten().filter(|at| *at <= self.now_ms).count(), 0);
        }
        let unnamed = self.unnamed(|_| true);
        let mut effects = Vec::new();
        self.shard.handle_event(Event::Tick, self.now_ms, &mut effects);
        self.ended_with_their_times(&effects);
        let (ended, answer) = split(&effects);
        assert_eq!(answer, None);
        let before = self.oracle.workers.len();
        assert_eq!(ended, self.oracle.tick(self.now_ms, &ended));
        for (_, fence, end) in &ended {
            self.count(end_word(*end));
            if *end == EndReason::NotReported && unnamed.contains(fence) {
                self.count("never named");
            }
        }
        let deleted = before - self.oracle.workers.len();
        let told = effects.iter().filter(|effect| matches!(effect, Effect::WorkerDeleted { .. })).count();
        assert_eq!(told, deleted, "whoever watches is told of each");
        *self.seen.entry("deleted as lost").or_default() += deleted;
    }

    /// What ends is said to be as old as it was.
    fn ended_with_their_times(&self, effects: &[Effect<()>]) {
        let before = self.past.last().map_or(&[][..], |(oracle, ..)| &oracle.claims);
        for effect in effects {
            let Effect::ClaimEnded { fence, times, .. } = effect else { continue };
            let claim = before.iter().find(|claim| claim.fence == *fence);
            assert_eq!(claim.map(|claim| claim.times), Some(*times), "{fence}");
        }
    }

    fn same(&mut self, event: Event<()>, ended: &[Ended], said: Option<Said>) -> Vec<Effect<()>> {
        let told = format!("{event:?}");
        let mut effects = Vec::new();
        self.shard.handle_event(event, self.now_ms, &mut effects);
        self.ended_with_their_times(&effects);
        let (engine_ended, answer) = split(&effects);
        assert_eq!(engine_ended, ended, "{told}");
        assert_eq!(answer.map(said_by), said, "{told}");
        for (_, _, end) in ended {
            self.count(end_word(*end));
        }
        effects
    }
}
