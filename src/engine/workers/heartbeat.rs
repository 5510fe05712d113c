//! What a worker says of itself, and what is made of it.
//!
//! A *word* about its claims (a heartbeat with `claims`, a registration with them) is compared with what it holds:
//!
//! - what it names and holds becomes active;
//! - what it holds and does not name ends after a grace, so one reordered word ends nothing: a short one if it named the
//!   claim before, the pool's `unnamed_ms` if it never did and may not have got it yet;
//! - what it names and does not hold is *adopted* if it can only be a claim whose record was lost: its fence lies in
//!   the lost tail (above all that the shard had recorded, from the first fence of the owner before to below the first
//!   of this one), nothing was granted to the worker since, and the key is vacant and was so since (`crate::admission::adoption`).
//!   Anything else it has to stop; until a later word no longer names it, the worker is not offered.
//!
//! A word also ends distrust. After a stop that may have lost claims it does so only when `settled_ms` has passed:
//! until then whoever was told of a lost claim may still come and start it. That word ends what it does not name.
//!
//! What is adopted has the pool's default for its time without a renewal, which begins then; when it was created is not known.
//!
//! In a shared pool nothing is adopted: a worker names keys and fences, not how much of it they held.
//!
//! No word makes room by itself where the ledger says that there is none, but for that last one.

use smallvec::SmallVec;

use super::conditions::notes;
use crate::engine::NIL;
use crate::engine::claims::timestamps::ClaimStamps;
use crate::engine::claims::{Claim, Disclosed};
use crate::engine::effect::{Answer, Effect, End, Grant};
use crate::engine::event::{Heartbeat, Named, Place};
use crate::engine::shard::{Shard, term};
use crate::model::unschedulable_bits;
use crate::model::{ClaimId, ClaimState, ClaimTimes, Fence, Millis, WorkerId};

impl Shard {
    pub(in crate::engine) fn heartbeat<R>(
        &mut self,
        id: &WorkerId,
        beat: Heartbeat,
        now_ms: Millis,
        effects: &mut Vec<Effect<R>>,
    ) -> Answer {
        let Some(at) = self.workers.find(id).filter(|&at| !self.workers.get(at).deleted) else {
            return Answer::UnknownWorker;
        };
        let known = self.workers.card(at).spec.incarnation;
        if beat.incarnation < known {
            return Answer::StaleIncarnation { known, deleted: false };
        }
        if beat.incarnation > known {
            return Answer::UnknownIncarnation { known };
        }
        self.counters.life.heartbeats += 1;
        let last = self.lives.get(at).beat_seq;
        let late_for = last.filter(|&last| beat.seq.is_some_and(|seq| seq < last));
        let mut stop = Vec::new();
        if late_for.is_some() {
            self.counters.life.late_heartbeats += 1;
        } else {
            self.lives.get_mut(at).beat_seq = beat.seq.or(last);
            self.heard(at, beat.ttl_ms, now_ms);
            if let Some(named) = beat.claims {
                stop = self.word(at, named, beat.ttl_ms, now_ms, effects);
            }
        }
        Answer::Heard { claims: self.announce(at), stop, late_for }
    }

    /// Claims of the worker that answers have spoken of, which are told from then on. A grant that may still be rolled back
    /// is kept from the worker.
    pub(in crate::engine) fn announce(&mut self, at: u32) -> Vec<(ClaimId, Grant)> {
        let mut claims = self.look(at).claims;
        claims.retain(|(_, grant)| self.is_answered(grant.place));
        claims.iter().for_each(|(_, grant)| self.mark_spoken_of(grant.place));
        claims
    }

    /// The worker, which may be silent for `ttl_ms`, says which claims it runs. Returns those that it has to stop.
    pub(in crate::engine) fn word<R>(
        &mut self,
        at: u32,
        named: Vec<Named>,
        ttl_ms: Millis,
        now_ms: Millis,
        effects: &mut Vec<Effect<R>>,
    ) -> Vec<Named> {
        let mut held: SmallVec<[(Place, bool); 1]> =
            self.places_on(at).into_iter().map(|place| (place, false)).collect();
        // Few claims are looked through; many are found by their fences.
        held.sort_unstable_by_key(|(place, _)| place.fence);
        let (mut names_held, mut pending) = (false, false);
        let mut stop: Vec<Named> = Vec::new();
        for name in named {
            let found = held.binary_search_by_key(&name.fence, |(place, _)| place.fence).ok();
            let found = found.filter(|&i| self.claims.get(held[i].0).is_some_and(|claim| claim.id == name.id));
            if let Some(i) = found {
                (held[i].1, names_held) = (true, true);
            } else if name.pending {
                pending = true;
            } else {
                stop.push(name);
            }
        }
        let unvouched = self.workers.get(at).bars & unschedulable_bits::UNVOUCHED != 0;
        let settled = !pending && self.settles_in(at, now_ms).is_none();
        for (place, is_named) in held {
            if is_named {
                self.named(place, now_ms);
            } else if unvouched && settled {
                self.end(place, End::Missing, effects);
                self.counters.life.missing += 1;
            } else {
                self.misses(place, ttl_ms, now_ms);
            }
        }
        if !names_held && let Some(adopted) = self.adoptable(at, &stop) {
            let name = stop.swap_remove(adopted);
            self.adopt(at, name, now_ms, effects);
        }
        let mut clear = 0;
        if settled {
            clear |= unschedulable_bits::DISTRUST;
            self.lives.get_mut(at).uncleaned = 0;
        }
        let set = if stop.is_empty() { 0 } else { unschedulable_bits::STOPPING };
        self.counters.life.stops += stop.len() as u64;
        self.bar(at, set, clear | (unschedulable_bits::STOPPING & !set));
        if self.workers.get(at).notes & notes::OF_CLAIM != 0 {
            self.schedule(at);
        }
        stop
    }

    /// The worker runs the claim that it holds.
    fn named(&mut self, place: Place, now_ms: Millis) {
        if self.workers.get(place.worker).notes & notes::OF_CLAIM != 0 {
            self.lives.get_mut(place.worker).missing.remove(&place.fence);
        }
        let Some(claim) = self.claims.get_mut(place) else { return };
        claim.confirmed = true;
        claim.disclosed.set_answered();
        let first = !std::mem::replace(&mut claim.named, true);
        if !self.activate(place, now_ms) && first {
            self.touch(place.worker);
        }
    }

    /// The worker does not name the claim that it holds.
    fn misses(&mut self, place: Place, ttl_ms: Millis, now_ms: Millis) {
        let Some(claim) = self.claims.get(place) else { return };
        // What is being cleaned is not run any more, what is reserved has its own deadline, and nobody can run what nobody
        // was told of: an item of a batch that is not answered yet, a member of a gang that is not committed.
        if claim.state != ClaimState::Active || !claim.disclosed.is_answered() || self.is_provisional(place) {
            return;
        }
        // Of the time that it may be silent, half: long enough for a later heartbeat to say otherwise.
        let grace_ms = if claim.named { ttl_ms / 2 } else { self.rules.unnamed_ms };
        let due = now_ms + grace_ms;
        let missing = &mut self.lives.get_mut(place.worker).missing;
        // The first list that leaves it out counts, and a time of the pool that was made shorter since.
        missing.entry(place.fence).and_modify(|(_, at)| *at = due.min(*at)).or_insert((place, due));
        self.workers.get_mut(place.worker).notes |= notes::OF_CLAIM;
    }

    /// The holder has spoken for a claim: its worker, if it never named it, has all the time for that anew.
    pub(in crate::engine) fn spoken_for(&mut self, place: Place) {
        let noted = self.workers.get(place.worker).notes & notes::OF_CLAIM != 0;
        let unnamed = || self.claims.get(place).is_some_and(|claim| !claim.named);
        if noted && unnamed() && self.lives.get_mut(place.worker).missing.remove(&place.fence).is_some() {
            self.schedule(place.worker);
        }
    }

    /// Whether nothing that may has spoken for the worker yet, since a stop that may have lost claims.
    #[must_use]
    pub fn is_unvouched(&self, id: &WorkerId) -> bool {
        self.workers.find(id).is_some_and(|at| self.workers.get(at).bars & unschedulable_bits::UNVOUCHED != 0)
    }

    /// Workers that may name lost claims and for which nothing that may has spoken yet.
    #[must_use]
    pub const fn unvouched(&self) -> usize {
        if self.shares.is_some() { 0 } else { self.barred.unvouched as usize }
    }

    /// Whether the stop before the start may have lost claims that can be adopted; then how long one may still be started.
    #[must_use]
    pub fn may_have_lost(&self) -> Option<Millis> {
        (self.shares.is_none() && self.head.memory).then_some(self.head.reserve_ms)
    }

    /// Whether a claim with this fence, named by the worker, may be one whose record was lost. In a shared pool none may:
    /// nobody knows how much of the worker it held.
    #[must_use]
    pub fn may_adopt(&self, id: &WorkerId, fence: Fence) -> bool {
        self.shares.is_none()
            && self.lost_tail.contains(&fence)
            && self.workers.find(id).is_none_or(|at| self.has_room_for(at, fence))
    }

    fn has_room_for(&self, at: u32, fence: Fence) -> bool {
        let worker = self.workers.get(at);
        // A claim that it got later than what it holds proves that this is over: in the lost tail it was released.
        let over = || {
            let held = self.claims.at(worker.claim);
            worker.bars & unschedulable_bits::UNVOUCHED != 0 && held.is_none_or(|held| held.fence < fence)
        };
        !worker.deleted
            && worker.notes & notes::GRANTED == 0
            && self.lives.get(at).settled < fence
            && (worker.claim == NIL || over())
    }

    /// Which of these is adopted: the youngest that may.
    fn adoptable(&self, at: u32, named: &[Named]) -> Option<usize> {
        if self.lost_tail.is_empty() || self.shares.is_some() {
            return None;
        }
        let may =
            |name: &Named| name.vacant && self.lost_tail.contains(&name.fence) && self.has_room_for(at, name.fence);
        let youngest = named.iter().enumerate().filter(|(_, name)| may(name)).max_by_key(|(_, name)| name.fence);
        youngest.map(|(index, _)| index)
    }

    fn adopt<R>(&mut self, at: u32, name: Named, now_ms: Millis, effects: &mut Vec<Effect<R>>) {
        for place in self.places_on(at) {
            self.end(place, End::Missing, effects);
            self.counters.life.missing += 1;
        }
        let fence = name.fence;
        let claim = self.claims.insert(Claim {
            id: name.id.clone(),
            fence,
            stamps: ClaimStamps::begun(ClaimTimes::default()),
            term_ms: term(self.rules.ttl.default_ms.unwrap_or(0)),
            worker: at,
            state: ClaimState::Active,
            confirmed: true,
            disclosed: Disclosed::ALL,
            named: true,
            spec: None,
        });
        self.take(at, claim);
        self.start_stay(Place { claim, worker: at, fence }, now_ms);
        self.fence_max = self.fence_max.max(fence);
        self.counters.life.adopted += 1;
        self.touch(at);
        effects.push(Effect::Adopted { id: name.id, place: Place { claim, worker: at, fence } });
    }

    /// A claim takes a worker that is free, offered or not.
    fn take(&mut self, at: u32, claim: u32) {
        let worker = self.workers.get_mut(at);
        worker.claim = claim;
        let (line, bars) = (worker.line, worker.bars);
        if bars == 0 {
            self.idle.remove(self.workers.hot_mut(), at);
        } else {
            self.ledger.unbar(line);
            self.barred.leave_free(bars);
            self.bar_changes += 1;
            self.note_drained(at);
        }
        self.ledger.hold(line);
        self.busy += 1;
    }
}
