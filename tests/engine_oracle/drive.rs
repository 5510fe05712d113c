//! Driver that applies the same events to a shard and to the oracle.

use std::collections::BTreeMap;

use hotpool::engine::{
    ClaimHandle, Effect, EndReason, EngineReply, Event, HeartbeatReport, PlacementFailure, PoolEligibility,
    ResumePoint, Shard, ShardConfig, ShardReplay,
};
use hotpool::model::{ClaimId, ClaimState, PlacementPolicy, WorkerId, WorkerSpec};
use hotpool::persist::row::put_shard;
use proptest::prelude::*;

use crate::ops::{Op, ReportContents, Who};
use crate::oracle::{self, ClaimTerms, Durations, Ended, Oracle, Registration, Reply};
use crate::replies::{end_name, ended_claims, to_reply, to_reported_claims};
use crate::requests::{Request, spec};

#[path = "compare.rs"]
mod compare;

/// Silence limit of the pool.
const TTL_MS: u64 = 1_000;
/// Number of events that a store may lag behind.
const BACK: usize = 14;

fn rules(policy: PlacementPolicy, times: Durations) -> ShardConfig {
    ShardConfig { unnamed_ms: times.unnamed_ms, lost_keep_ms: times.lost_keep_ms, ttl: times.ttl, ..policy.into() }
}

/// Few affinities, each in a bucket of its own.
fn affinity(of: u8) -> u64 {
    u64::from(of) + 1
}

pub struct Driver {
    policy: PlacementPolicy,
    times: Durations,
    shard: Shard,
    oracle: Oracle,
    /// State after each of the last events: oracle, length of the stream, sequence number.
    past: Vec<(Oracle, usize, u64)>,
    /// Worker, key and fence of every grant.
    granted: Vec<(String, String, u64)>,
    /// Number of occurrences of each outcome.
    pub counts: BTreeMap<&'static str, usize>,
    now_ms: u64,
    fence: u64,
    /// First fences of the last two owners.
    floors: [u64; 2],
    /// Handles of all grants, ended ones too; so stale handles occur.
    handles: Vec<ClaimHandle>,
    /// All changed rows, as a store would get them.
    stream: Vec<u8>,
    incarnations: BTreeMap<String, u64>,
}

impl Driver {
    pub fn new(policy: PlacementPolicy, times: Durations, now_ms: u64) -> Self {
        Self {
            policy,
            times,
            shard: Shard::new(rules(policy, times), now_ms),
            oracle: Oracle::new(policy, times),
            past: Vec::new(),
            granted: Vec::new(),
            counts: BTreeMap::new(),
            now_ms,
            fence: 0,
            floors: [0; 2],
            handles: Vec::new(),
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

    /// Applies one event to both, and compares everything.
    pub fn step(&mut self, op: &Op) {
        let before = self.shard.seq();
        let changed = self.event(op);
        if let Some(changed) = changed {
            assert_eq!(self.shard.seq() > before, changed, "{op:?}: the version advances only with a change");
        }
        self.compare(op);
        if self.times.lost_keep_ms.is_some() && self.oracle.workers.values().any(|w| w.lost && w.cordoned) {
            self.count("kept by a cordon");
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

    /// Reloads the shard from what the store had.
    fn reload(&mut self, lost: u8, restarted: bool) {
        let keep = self.past.len().saturating_sub(if restarted { 0 } else { lost.into() }).max(1);
        self.past.truncate(keep);
        let Some((oracle, bytes, seq)) = self.past.pop() else { return };
        let unix_ahead_ms = self.oracle.unix_ahead_ms;
        self.oracle = Oracle { policy: self.policy, times: self.times, unix_ahead_ms, ..oracle };
        self.stream.truncate(bytes);
        // A restart does not change the owner.
        if !restarted {
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
            restarted,
        };
        self.shard = replay.finish(resume).unwrap_or_else(|(wrong, _)| panic!("{wrong}"));
        self.shard.set_wall_clock(unix_ahead_ms);
        self.oracle.reload(self.now_ms, floor, previous_floor, restarted);
        self.fence = self.fence.max(floor);
        self.past.clear();
        self.handles = self.shard.list_claims().map(|(_, _, grant)| grant.handle).collect();
    }

    fn reports(&self, worker: &str, contents: &ReportContents) -> Vec<oracle::Report> {
        let own = self.oracle.claims.iter().filter(|claim| contents.own && claim.worker == worker);
        let own = own.map(|claim| (claim.key.clone(), claim.fence));
        let any = |at: &prop::sample::Index| {
            // Mostly grants of this very worker, and of these the last.
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
        let reports = own.chain(contents.others.iter().filter_map(any));
        reports
            .map(|(key, fence)| {
                let vacant = !self.oracle.claims.iter().any(|claim| claim.key == key);
                (key, fence, vacant)
            })
            .collect()
    }

    fn adopted(&mut self, adopted: Option<u64>, effects: &[Effect]) {
        let adopted_handles: Vec<ClaimHandle> = effects
            .iter()
            .filter_map(|effect| match effect {
                Effect::ClaimAdopted { id, handle } => {
                    assert_eq!(id.key(), format!("k{}", handle.fence));
                    Some(*handle)
                }
                _ => None,
            })
            .collect();
        assert_eq!(adopted_handles.iter().map(|handle| handle.fence).collect::<Vec<_>>(), Vec::from_iter(adopted));
        *self.counts.entry("readopted").or_default() += adopted_handles.len();
        // An ended claim may be readopted on another worker: then only its new handle is valid.
        self.handles.retain(|handle| Some(handle.fence) != adopted);
        self.handles.extend(adopted_handles);
    }

    /// Applies an event. Returns whether a change was expected, where the oracle knows it.
    fn event(&mut self, op: &Op) -> Option<bool> {
        let now_ms = self.now_ms;
        let handle = |at: &prop::sample::Index| (!self.handles.is_empty()).then(|| *at.get(&self.handles));
        match op {
            Op::Register { id, incarnation_step, kind, ends_in, contents } => {
                let id = format!("w{id}");
                let last = self.incarnations.entry(id.clone()).or_insert(1);
                let incarnation = (*last + u64::from(*incarnation_step)).saturating_sub(1);
                *last = incarnation.max(*last);
                let expires_at = ends_in.map(|ms| (now_ms + ms).max(1));
                let claims = contents.as_ref().map(|contents| self.reports(&id, contents));
                let to = claims.clone().map(to_reported_claims);
                let registration = Registration { incarnation, kind: *kind, expires_at, claims };
                if self.oracle.workers.get(&id).is_some_and(|worker| worker.lost && worker.incarnation == incarnation) {
                    self.count("registered again");
                }
                let spec = WorkerSpec { expires_at_ms: expires_at, ..spec(&id, incarnation, registration.kind) };
                let (ended, reply, adopted) = self.oracle.register(&id, registration, TTL_MS, now_ms);
                let event = Event::Register { spec, ends_ms: expires_at, claims: to, ttl_ms: TTL_MS };
                let effects = self.same(event, &ended, Some(reply));
                self.adopted(adopted, &effects);
                None
            }
            Op::Heartbeat { who, incarnation_step, seq, contents } => {
                let id = match who {
                    Who::Id(id) => format!("w{id}"),
                    Who::Holding(_) if self.oracle.claims.is_empty() => return None,
                    Who::Holding(at) => at.get(&self.oracle.claims).worker.clone(),
                    Who::Recent(_) if self.granted.is_empty() => return None,
                    Who::Recent(at) => at.get(&self.granted[self.granted.len().saturating_sub(8)..]).0.clone(),
                };
                let known = self.oracle.workers.get(&id).map_or(1, |worker| worker.incarnation);
                let incarnation = (known + u64::from(*incarnation_step)).saturating_sub(1);
                let reports = contents.as_ref().map(|contents| self.reports(&id, contents));
                let claims = reports.clone().map(to_reported_claims);
                let never_reported = self.never_reported(|claim| claim.worker == id);
                let (ended, reply, adopted) = self.oracle.heartbeat(&id, incarnation, *seq, reports, TTL_MS, now_ms);
                if matches!(reply, Reply::HeartbeatHandled { late_for: Some(_), .. }) {
                    self.count("late heartbeat");
                }
                let is_reported_now =
                    |fence| self.oracle.claims.iter().any(|claim| claim.fence == fence && claim.reported);
                if never_reported.into_iter().any(is_reported_now) {
                    self.count("reported in time");
                }
                let heartbeat = HeartbeatReport { incarnation, seq: *seq, claims, ttl_ms: TTL_MS };
                let effects =
                    self.same(Event::Heartbeat { id: WorkerId::new(&id).unwrap(), heartbeat }, &ended, Some(reply));
                self.adopted(adopted, &effects);
                None
            }
            Op::Command(id, command) => {
                let id = format!("w{id}");
                let reply = self.oracle.apply_command(&id, *command, now_ms);
                self.same(
                    Event::WorkerCommand { id: WorkerId::new(&id).unwrap(), command: *command },
                    &[],
                    Some(reply),
                );
                None
            }
            Op::ClearAll => {
                let order: Vec<String> =
                    self.shard.list_workers().map(|(_, snapshot)| snapshot.registration.spec.id.to_string()).collect();
                let reply = self.oracle.clear_all(&order, now_ms);
                self.same(Event::ClearAll, &[], Some(reply));
                None
            }
            Op::Renew { at, ttl_ms } => {
                let handle = handle(at)?;
                self.count_holder_contact(handle.fence);
                let reply = self.oracle.renew(handle.fence, *ttl_ms, now_ms);
                self.same(Event::Renew { handle, ttl_ms: *ttl_ms }, &[], Some(reply));
                None
            }
            Op::BeginRelease { at, releasing_ms } => {
                let handle = handle(at)?;
                let changed = self.oracle.begin_release(handle.fence, *releasing_ms, now_ms);
                let event = Event::BeginRelease { handle, releasing_ms: *releasing_ms };
                let is_held = self.oracle.claims.iter().any(|claim| claim.fence == handle.fence);
                self.same(event, &[], Some(if is_held { Reply::Released } else { Reply::StaleHandle }));
                Some(changed)
            }
            Op::SetMemoryAcks(reserve_ms) => {
                let news = self.shard.set_memory_acks(*reserve_ms);
                let before = (self.oracle.memory_acks, self.oracle.reserve_ms);
                self.oracle.memory_acks = reserve_ms.is_some();
                self.oracle.reserve_ms = self.oracle.reserve_ms.max(reserve_ms.unwrap_or(0));
                assert_eq!(news, before != (self.oracle.memory_acks, self.oracle.reserve_ms));
                Some(news)
            }
            Op::Reload { lost, restarted } => {
                self.reload(*lost, *restarted);
                None
            }
            Op::Delete(id) => {
                let id = format!("w{id}");
                let (ended, reply) = self.oracle.delete(&id, now_ms);
                let changed = reply == Reply::Deleted;
                self.same(Event::Delete { id: WorkerId::new(&id).unwrap() }, &ended, Some(reply));
                Some(changed)
            }
            Op::Claim { affinity: of, reserve_ms, ttl_ms, request } => {
                self.claim(affinity(*of), *reserve_ms, *ttl_ms, request.as_ref());
                None
            }
            Op::Reacquire { at, pool, request } => {
                let handle = handle(at)?;
                let (ended, reply) =
                    self.oracle.reacquire(handle.fence, *pool, request.as_ref().unwrap_or(&Request::default()));
                match reply {
                    Reply::ResourceMismatch => self.count("resource mismatch"),
                    Reply::ActiveConflict | Reply::RolledBack if *pool == PoolEligibility::Eligible => {
                        self.count("constraints not met")
                    }
                    _ => {}
                }
                let constraints = request.as_ref().map(Request::constraints);
                self.same(Event::Reacquire { handle, pool: *pool, constraints }, &ended, Some(reply));
                Some(!ended.is_empty())
            }
            Op::Confirm(at) => {
                let handle = handle(at)?;
                let is_reserved =
                    |claim: &&oracle::Claim| claim.fence == handle.fence && claim.state == ClaimState::Reserved;
                let reserved = self.oracle.claims.iter().any(|claim| is_reserved(&claim));
                self.count_holder_contact(handle.fence);
                let reply = self.oracle.confirm(handle.fence, now_ms);
                self.same(Event::Confirm { handle }, &[], Some(reply));
                Some(reserved)
            }
            Op::Release(at) => {
                let handle = handle(at)?;
                let worker =
                    self.oracle.workers.iter().find(|(_, worker)| worker.cleanup_timed_out == Some(handle.fence));
                let worker = worker.map(|(id, _)| id.clone());
                let cleaned = worker.is_some();
                let ended = self.oracle.release(worker, handle.fence);
                *self.counts.entry("late cleanup").or_default() += usize::from(cleaned);
                let changed = !ended.is_empty() || cleaned;
                let reply = if changed { Reply::Released } else { Reply::StaleHandle };
                self.same(Event::Release { handle }, &ended, Some(reply));
                Some(changed)
            }
            Op::Get(at) => {
                let handle = handle(at)?;
                let reply = self.oracle.disclose(handle.fence);
                self.same(Event::Get { handle }, &[], Some(reply));
                Some(false)
            }
            Op::Rollback(at) => {
                let handle = handle(at)?;
                let ended = self.oracle.rollback(handle.fence);
                self.same(Event::Rollback { handle }, &ended, None);
                Some(!ended.is_empty())
            }
            Op::ReplySent(at) => {
                let handle = handle(at)?;
                self.oracle.reply_sent(handle.fence, now_ms);
                self.same(Event::ReplySent { handle, at_ms: now_ms }, &[], None);
                Some(false)
            }
            Op::Relinquish(at) => {
                let handle = handle(at)?;
                let ended = self.oracle.end(handle.fence, EndReason::RolledBack);
                self.same(Event::Relinquish { handle }, &ended, None);
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
            Op::SetDurations(times) => {
                self.times = *times;
                self.shard.set_config(&self.rules(), now_ms);
                self.oracle.set_durations(*times, now_ms);
                Some(false)
            }
            Op::SetWallClock(unix_ahead_ms) => {
                self.shard.set_wall_clock(*unix_ahead_ms);
                self.oracle.unix_ahead_ms = *unix_ahead_ms;
                Some(false)
            }
        }
    }

    fn claim(&mut self, affinity: u64, reserve_ms: u64, ttl_ms: u64, requested: Option<&Request>) {
        self.fence += 1;
        let (fence, key) = (self.fence, format!("k{}", self.fence));
        let id = ClaimId::new("ns", "t", &key).unwrap();
        let mut effects = Vec::new();
        let constraints = requested.map(Request::constraints);
        let event = Event::Claim { id, fence, affinity, reserve_ms, ttl_ms, constraints, target: None };
        let answer = self.shard.handle_event(event, self.now_ms, &mut effects);
        assert_eq!(ended_claims(&effects), []);
        let request = requested.cloned().unwrap_or_default();
        let ttl_ms = match self.oracle.effective_ttl(ttl_ms) {
            Ok(ttl_ms) => ttl_ms,
            Err(reply) => {
                self.count("ttl too long");
                return assert_eq!(answer.map(to_reply), Some(reply));
            }
        };
        let until = self.now_ms + reserve_ms + ttl_ms;
        let candidates = self.oracle.candidates(affinity, until, &request);
        if !request.is_unconstrained() && candidates != self.oracle.candidates(affinity, 0, &request) {
            self.count("candidate ends too soon");
        }
        match (candidates.is_empty(), self.oracle.count_expiring(until, &request)) {
            (_, 0) => {}
            (true, 1..3) => self.count("few end too soon, no candidate"),
            (true, _) => self.count("many end too soon, no candidate"),
            (false, 1..3) => self.count("few end too soon"),
            (false, _) => self.count("many end too soon"),
        }
        let Some(EngineReply::Granted(grant)) = answer else {
            let reply = self.oracle.placement_failure(until, &request);
            match reply {
                Reply::NotPlaced(PlacementFailure::Busy) => self.count("Busy"),
                Reply::NotPlaced(PlacementFailure::OtherNode) => self.count("OtherNode"),
                Reply::NotPlaced(PlacementFailure::TooSmall) => self.count("TooSmall"),
                Reply::NotPlaced(PlacementFailure::UnknownWorker) => self.count("UnknownWorker"),
                _ => {}
            }
            assert_eq!((answer.map(to_reply), candidates.len()), (Some(reply), 0), "{request:?}");
            return;
        };
        self.count(if request.is_unconstrained() { "granted unconstrained" } else { "granted" });
        let worker = grant.worker.spec.id.to_string();
        assert!(candidates.contains(&worker), "granted {worker}, candidates of {request:?} are {candidates:?}");
        assert_eq!((grant.handle.fence, grant.reserve_ms(), grant.term_ms), (fence, reserve_ms, ttl_ms));
        self.handles.push(grant.handle);
        self.granted.push((worker.clone(), key.clone(), fence));
        let terms = ClaimTerms { key, reserve_ms, term_ms: ttl_ms, slots: request.slots };
        let reply = self.oracle.grant(&worker, fence, affinity, terms, self.now_ms);
        let handle = grant.handle;
        assert_eq!(to_reply(EngineReply::Granted(grant)), reply);
        // As a rule the reply is sent at once; some of the others are sent later, some never.
        if !fence.is_multiple_of(4) {
            self.oracle.reply_sent(fence, self.now_ms);
            self.same(Event::ReplySent { handle, at_ms: self.now_ms }, &[], None);
        }
    }

    fn count(&mut self, what: &'static str) {
        *self.counts.entry(what).or_default() += 1;
    }

    /// Claims that reports have omitted and never contained.
    fn never_reported(&self, matches: impl Fn(&oracle::Claim) -> bool) -> Vec<u64> {
        let omitted = |claim: &&oracle::Claim| self.oracle.workers[&claim.worker].unreported_until.is_some();
        let never_reported =
            self.oracle.claims.iter().filter(omitted).filter(|claim| !claim.reported && matches(claim));
        never_reported.map(|claim| claim.fence).collect()
    }

    fn count_holder_contact(&mut self, fence: u64) {
        if !self.never_reported(|claim| claim.fence == fence).is_empty() {
            self.count("renewed or confirmed");
        }
    }

    fn tick(&mut self) {
        if self.shard.next_tick_ms().is_none_or(|at| at > self.now_ms) {
            // Then a tick must have nothing to do.
            let claims = self.oracle.claims.iter().map(|claim| claim.deadline);
            let workers = self.oracle.workers.values();
            let workers = workers.flat_map(|worker| [worker.lost_at, worker.deleted_at, worker.unreported_until]);
            assert_eq!(claims.chain(workers).flatten().filter(|at| *at <= self.now_ms).count(), 0);
        }
        let never_reported = self.never_reported(|_| true);
        let mut effects = Vec::new();
        let answer = self.shard.handle_event(Event::Tick, self.now_ms, &mut effects);
        self.check_end_times(&effects);
        let ended = ended_claims(&effects);
        assert_eq!(answer, None);
        let before = self.oracle.workers.len();
        assert_eq!(ended, self.oracle.tick(self.now_ms, &ended));
        for (_, fence, end) in &ended {
            self.count(end_name(*end));
            if *end == EndReason::NotReported && never_reported.contains(fence) {
                self.count("never reported");
            }
        }
        let deleted = before - self.oracle.workers.len();
        let reported = effects.iter().filter(|effect| matches!(effect, Effect::WorkerDeleted { .. })).count();
        assert_eq!(reported, deleted, "each deletion is reported");
        *self.counts.entry("deleted as lost").or_default() += deleted;
    }

    /// Checks the times of ended claims.
    fn check_end_times(&self, effects: &[Effect]) {
        let before = self.past.last().map_or(&[][..], |(oracle, ..)| &oracle.claims);
        for effect in effects {
            let Effect::ClaimEnded { fence, times, .. } = effect else { continue };
            let claim = before.iter().find(|claim| claim.fence == *fence);
            assert_eq!(claim.map(|claim| claim.times), Some(*times), "{fence}");
        }
    }

    fn same(&mut self, event: Event, ended: &[Ended], reply: Option<Reply>) -> Vec<Effect> {
        let description = format!("{event:?}");
        let mut effects = Vec::new();
        let answer = self.shard.handle_event(event, self.now_ms, &mut effects);
        self.check_end_times(&effects);
        assert_eq!(ended_claims(&effects), ended, "{description}");
        assert_eq!(answer.map(to_reply), reply, "{description}");
        for (_, _, end) in ended {
            self.count(end_name(*end));
        }
        effects
    }
}
