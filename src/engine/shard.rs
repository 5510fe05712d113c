//! What each event does to a shard. Every change of a worker goes through [`Shard::touch`], which counts it, moves
//! the sequence number and marks the worker's row for the journal; nothing else does.

use std::collections::{BTreeSet, VecDeque};
use std::ops::Range;
use std::sync::Arc;

use super::NIL;
use super::accounting::Ledger;
use super::claims::gangs::Gangs;
use super::claims::timestamps::ClaimStamps;
use super::claims::{Claim, Claims, Disclosed};
use super::counters::Counters;
use super::effect::{Answer, Effect, End, Grant};
use super::event::{Event, Place};
use super::placement::bin_packing::Share;
use super::placement::constraints::{NoFit, Wants};
use super::placement::idle_queue::Idle;
use super::placement::promises::Promises;
use super::placement::shared::Shares;
use super::rules::Rules;
use super::timer_wheel::Timers;
use super::workers::Workers;
use super::workers::conditions::{Barred, Lives, notes};
use crate::model::GangRef;
use crate::model::{ClaimState, Fence, Millis, Seq, WorkerId};
use crate::persist::row::ShardRow;

/// One shard of a pool.
#[derive(Debug)]
pub struct Shard {
    pub(super) rules: Rules,
    /// Wall clock less engine time, in milliseconds: what dates claims.
    pub(super) unix_ahead_ms: i64,
    pub(super) seq: Seq,
    pub(super) workers: Workers,
    pub(super) claims: Claims,
    pub(super) idle: Idle,
    /// Deadlines of claims.
    pub(super) timers: Timers,
    pub(super) ledger: Ledger,
    /// In a shared pool: shares of workers. None: claims take whole ones.
    pub(super) shares: Option<Box<Shares>>,
    pub(super) gangs: Gangs,
    pub(super) promises: Promises,
    pub(super) lives: Lives,
    /// Deadlines of workers: the next of each life.
    pub(super) beats: Timers,
    /// Workers that are not deleted.
    pub(super) present: usize,
    pub(super) barred: Barred,
    /// Changes of `barred`: it is published when this has moved.
    pub(super) bar_changes: u64,
    /// Workers that hold nothing and are not offered only because they are cordoned or draining.
    pub(super) drained: BTreeSet<u32>,
    /// Highest fence that was granted or adopted here.
    pub(super) fence_max: Fence,
    /// Fences that the shard may have granted without a record, before it was loaded.
    pub(super) lost_tail: Range<Fence>,
    /// From then on something can speak for an unvouched worker.
    pub(super) settled_ms: Millis,
    /// What the shard's own row says beside `fence_max`.
    pub(super) head: Head,
    /// As the journal has it.
    pub(super) head_taken: ShardRow,
    /// Deleted workers, oldest first, each with the time at which it is forgotten.
    pub(super) tombstones: VecDeque<(Millis, u32)>,
    /// Workers whose row changed since the journal last took it.
    pub(super) dirty: Vec<u32>,
    /// Ids of rows that are gone since then.
    pub(super) removed: Vec<WorkerId>,
    /// Where a batch of claims began: a worker that was touched since is not counted again. `Seq::MAX`: there is none.
    batch_from: Seq,
    /// How often room came that was not there before.
    pub(super) raised: u64,
    /// Workers that hold claims.
    pub(super) busy: usize,
    pub(super) counters: Counters,
}

/// What a shard remembers of itself.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Head {
    /// Claims are acknowledged from memory, so a stop that does not take this back may lose some.
    pub memory: bool,
    /// How long one that was lost may still be started.
    pub reserve_ms: Millis,
    /// How many stops may have lost claims. A worker for which something spoke since the last is vouched for.
    pub unclean: u64,
}

impl Shard {
    /// An empty shard at sequence number 0.
    #[must_use]
    pub fn new(rules: impl Into<Rules>, now_ms: Millis) -> Self {
        let rules = rules.into();
        Self {
            unix_ahead_ms: 0,
            seq: 0,
            workers: Workers::default(),
            claims: Claims::new(),
            idle: Idle::new(rules.policy),
            timers: Timers::new(now_ms),
            ledger: Ledger::default(),
            shares: Shares::new(&rules),
            gangs: Gangs::default(),
            promises: Promises::default(),
            lives: Lives::default(),
            beats: Timers::new(now_ms),
            present: 0,
            barred: Barred::default(),
            bar_changes: 0,
            drained: BTreeSet::new(),
            fence_max: 0,
            lost_tail: 0..0,
            settled_ms: 0,
            head: Head::default(),
            head_taken: ShardRow::default(),
            tombstones: VecDeque::new(),
            dirty: Vec::new(),
            removed: Vec::new(),
            batch_from: Seq::MAX,
            raised: 0,
            busy: 0,
            counters: Counters::default(),
            rules,
        }
    }

    /// Decides. `now_ms` is monotonic time; `effects` is appended to and must be carried out in order.
    pub fn on<R>(&mut self, event: Event<R>, now_ms: Millis, effects: &mut Vec<Effect<R>>) {
        match event {
            Event::Claim { id, fence, affinity, reserve_ms, ttl_ms, wants, promise, to } => {
                let ttl_ms = match self.ttl_of(ttl_ms) {
                    Ok(ttl_ms) => ttl_ms,
                    Err(max_ms) => return effects.push(Effect::Reply { to, answer: Answer::TtlTooLong { max_ms } }),
                };
                // It may be confirmed at the last moment, and then needs its worker for that long.
                let until_ms = now_ms + reserve_ms + ttl_ms;
                let redeemed = if promise > 0 { self.redeem(promise, wants.as_deref(), until_ms) } else { None };
                let taken = match self.shares {
                    _ if redeemed.is_some() => redeemed.unwrap_or(Err(Answer::NoRoom)),
                    None => self.take_worker(affinity, fence, until_ms, wants.as_deref()).map(|worker| (worker, None)),
                    Some(_) => self.take_share(until_ms, wants.as_deref()),
                };
                let gang = wants.as_ref().and_then(|wants| wants.gang);
                let answer = match taken {
                    Ok((worker, share)) => {
                        let spec = wants.and_then(|wants| wants.spec.clone());
                        let at_ms = self.unix_ms(now_ms);
                        let (state, stamps) = match term(reserve_ms) {
                            0 => (ClaimState::Active, ClaimStamps::active(at_ms)),
                            reserve_ms => (ClaimState::Reserved, ClaimStamps::reserved(Some(at_ms), reserve_ms)),
                        };
                        let claim = Claim {
                            id,
                            fence,
                            stamps,
                            term_ms: term(ttl_ms),
                            worker,
                            state,
                            confirmed: false,
                            named: false,
                            disclosed: Disclosed::default(),
                            spec,
                        };
                        self.grant_new(claim, affinity, share.as_ref(), gang)
                    }
                    Err(answer) => answer,
                };
                effects.push(Effect::Reply { to, answer });
            }
            Event::Release { place, to } => {
                self.release(place, effects);
                effects.push(Effect::Reply { to, answer: Answer::Released });
            }
            Event::Repeat { place, satisfies, wants, to } => {
                let answer = self.repeat(place, satisfies, wants.as_deref(), effects);
                effects.push(Effect::Reply { to, answer });
            }
            Event::Confirm { place, to } => {
                let answer = self.confirm(place, now_ms);
                effects.push(Effect::Reply { to, answer });
            }
            Event::Look { place, to } => {
                let answer = self.tell(place);
                effects.push(Effect::Reply { to, answer });
            }
            Event::Departed { place, at_ms } => self.departed(place, at_ms),
            Event::GiveBack { place } => self.give_back(place, effects),
            Event::Yield { place } => {
                self.end(place, End::GivenBack, effects);
            }
            Event::Tick => self.sweep(now_ms, effects),
            Event::Promise { ticket, wants, evict, until_ms, to } => {
                let answer = self.promise(ticket, &wants, evict, until_ms, now_ms);
                effects.push(Effect::Reply { to, answer });
            }
            Event::BreakPromise { ticket } => self.break_promise(ticket),
            Event::Renew { place, ttl_ms, to } => {
                let answer = self.renew(place, ttl_ms, now_ms);
                effects.push(Effect::Reply { to, answer });
            }
            Event::Resize { place, resources, to } => {
                let answer = self.resize(place, resources);
                effects.push(Effect::Reply { to, answer });
            }
            Event::Gang { id, act, to } => {
                let answer = self.gang(id, act, effects);
                effects.push(Effect::Reply { to, answer });
            }
            Event::BeginRelease { place, releasing_ms, to } => {
                self.begin_release(place, releasing_ms, now_ms);
                effects.push(Effect::Reply { to, answer: Answer::Released });
            }
            Event::Heartbeat { id, beat, to } => {
                let answer = self.heartbeat(&id, beat, now_ms, effects);
                effects.push(Effect::Reply { to, answer });
            }
            Event::Steer { id, verb, to } => {
                let answer = self.steer(&id, verb, now_ms);
                effects.push(Effect::Reply { to, answer });
            }
            Event::ClearAll { to } => {
                let answer = self.clear_all(now_ms);
                effects.push(Effect::Reply { to, answer });
            }
            Event::Register { spec, ends_ms, claims, ttl_ms, to } => {
                let answer = self.register(spec, ends_ms, claims, ttl_ms, now_ms, effects);
                effects.push(Effect::Reply { to, answer });
            }
            Event::Delete { id, to } => {
                let answer = self.delete(&id, now_ms, effects);
                effects.push(Effect::Reply { to, answer });
            }
        }
        #[cfg(debug_assertions)]
        self.assert_invariants();
    }

    /// Looks at what the next events will touch: those at `places`, and claims with `affinities`. Changes nothing. On
    /// a large fleet each is a cache miss, and looking at many in a row lets the misses overlap instead of standing in
    /// line: first what is reached directly, then what lies behind it.
    pub fn look_ahead(&self, places: impl Iterator<Item = Place> + Clone, affinities: impl Iterator<Item = u64>) {
        let first = places.clone().fold(0, |sum: u64, place| {
            let claim = self.claims.at(place.claim).map_or(0, |claim| claim.fence);
            sum.wrapping_add(claim).wrapping_add(self.workers.peek(place.worker))
        });
        let first = affinities.fold(first, |sum, affinity| sum.wrapping_add(self.idle.peek(affinity).into()));
        let behind = places.fold(0, |sum: u64, place| {
            let bucket = self.idle.peek(self.workers.peek(place.worker));
            sum.wrapping_add(bucket.into()).wrapping_add(self.workers.peek_card(place.worker) as u64)
        });
        std::hint::black_box((first, behind));
    }

    /// The worker that a claim takes, or why there is none.
    fn take_worker(
        &mut self,
        affinity: u64,
        fence: Fence,
        until_ms: Millis,
        wants: Option<&Wants>,
    ) -> Result<u32, Answer> {
        let worker = self.pick_worker(affinity, fence, until_ms, wants)?;
        self.idle.remove(self.workers.hot_mut(), worker);
        Ok(worker)
    }

    /// The same, without taking it.
    pub(super) fn pick_worker(
        &mut self,
        affinity: u64,
        fence: Fence,
        until_ms: Millis,
        wants: Option<&Wants>,
    ) -> Result<u32, Answer> {
        match wants {
            Some(wants) if !wants.any_worker() => self.select(wants, affinity, fence, until_ms).map_err(Answer::NoFit),
            _ => match self.idle.pick(self.workers.all(), affinity, fence, until_ms) {
                Some(worker) => Ok(worker),
                None => Err(Answer::NoRoom),
            },
        }
    }

    /// The share of a worker that a claim takes, or why there is none.
    #[cold]
    pub(super) fn take_share(
        &mut self,
        until_ms: Millis,
        wants: Option<&Wants>,
    ) -> Result<(u32, Option<Share>), Answer> {
        let nothing = Wants::default();
        let wants = wants.unwrap_or(&nothing);
        let (worker, share) = self.select_share(wants, until_ms).map_err(Answer::NoFit)?;
        self.note_share(wants);
        if self.workers.get(worker).idle {
            self.idle.remove(self.workers.hot_mut(), worker);
        }
        Ok((worker, Some(share)))
    }

    fn grant_new(&mut self, claim: Claim, affinity: u64, share: Option<&Share>, gang: Option<GangRef>) -> Answer {
        let Claim { fence, worker, state, term_ms, .. } = claim;
        let (stamps, spec) = (claim.stamps, claim.spec.clone());
        let claim = self.claims.insert(claim);
        let hot = self.workers.get_mut(worker);
        hot.notes |= notes::GRANTED;
        let (free, line) = (hot.claim == NIL, hot.line);
        match share {
            None => {
                hot.claim = claim;
                hot.affinity = affinity;
            }
            Some(share) => self.attach_share(claim, worker, share),
        }
        if free {
            self.ledger.hold(line);
            self.busy += 1;
        }
        self.fence_max = self.fence_max.max(fence);
        if let Some(gang) = gang {
            self.gangs.join(claim, gang);
        }
        self.index_victim(claim);
        self.touch_in_batch(worker);
        let card = Arc::clone(self.workers.card(worker));
        Answer::Granted(Grant {
            place: Place { claim, worker, fence },
            worker: card,
            state,
            term_ms: term_ms.into(),
            deadline_ms: None,
            spec,
            cards: share.map(|share| share.cards),
            evicted: false,
            stamps,
        })
    }

    /// The worker that a claim takes which asks for certain ones, or why there is none.
    #[cold]
    fn select(&mut self, wants: &Wants, affinity: u64, fence: Fence, until_ms: Millis) -> Result<u32, NoFit> {
        if let Some(id) = &wants.worker {
            let at = self.workers.find(id).filter(|&at| !self.workers.get(at).deleted).ok_or(NoFit::Unknown)?;
            let (worker, spec) = (self.workers.get(at), &self.workers.card(at).spec);
            let offered = worker.idle && self.lasts(at, until_ms);
            return match (wants.is_large(&spec.capacity), wants.allows(spec), offered) {
                (false, ..) => Err(NoFit::Small),
                (true, true, true) => Ok(at),
                (true, false, true) if wants.fits_but_node(spec) => Err(NoFit::Node),
                _ => Err(NoFit::Busy),
            };
        }
        match self.idle.select(self.workers.all(), wants, affinity, fence, until_ms) {
            Some(worker) => Ok(worker),
            None if wants.nodes.is_empty() => Err(NoFit::Busy),
            None if self.idle.fits_but_node(self.workers.all(), wants, until_ms) => Err(NoFit::Node),
            None => Err(NoFit::Busy),
        }
    }

    /// The same as [`Self::touch`], but once a worker and batch.
    pub(super) fn touch_in_batch(&mut self, at: u32) {
        if self.workers.get(at).version <= self.batch_from {
            self.touch(at);
        }
    }

    /// Counts one change of a worker: one version, one row.
    pub(super) fn touch(&mut self, at: u32) {
        self.seq += 1;
        self.counters.touches += 1;
        let worker = self.workers.get_mut(at);
        worker.version = self.seq;
        if !worker.dirty {
            worker.dirty = true;
            self.dirty.push(at);
        }
    }

    /// Claims that come until [`Self::end_batch`] came together: each worker that they use is touched once.
    pub const fn begin_batch(&mut self) {
        self.batch_from = self.seq;
    }

    /// How often room came that was not there before: claims that found none may find some now.
    #[must_use]
    pub const fn raised(&self) -> u64 {
        self.raised
    }

    /// The batch is through.
    pub const fn end_batch(&mut self) {
        self.batch_from = Seq::MAX;
    }
}

/// A time of a claim, as it is kept. The rim bounds them to what fits.
pub(super) fn term(ms: Millis) -> u32 {
    u32::try_from(ms).unwrap_or(u32::MAX)
}
