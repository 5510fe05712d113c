//! Claims, and what is asked about held ones: how each becomes an event, and what the engine says an outcome.

use std::sync::Arc;

use super::{Running, To, refusal};
use crate::admission::keys::{Hold, Unstoreds};
use crate::admission::waiters::Seek;
use crate::engine::{Answer, Event, Grant, Place};
use crate::limits;
use crate::model::rejection::{Exhausted, Refusal, Unavailable};
use crate::model::{ClaimSpec, Resources};
use crate::shard::command::{ClaimItem, Command, KeyItem};
use crate::shard::reply::{ClaimAnswer, Payload};

impl Running {
    pub(super) fn claim(&mut self, item: Box<ClaimItem>) {
        if item.reply.is_closed() {
            return self.dispatch.give_up(item, Refusal::DeadlineExceeded);
        }
        if self.must_queue(&item) {
            return self.bounced.push(item);
        }
        if let Some(why) = self.overload(item.durable) {
            return self.dispatch.give_up(item, Refusal::Unavailable(why));
        }
        let fence = match self.fences.next() {
            Some(fence) => fence,
            None => match self.dispatch.draw_fences(1) {
                Ok(fence) => fence,
                Err(why) => return self.dispatch.give_up(item, Refusal::Unavailable(why)),
            },
        };
        let (id, affinity, wants) = (item.id.clone(), item.affinity, item.wants().cloned());
        let (reserve_ms, ttl_ms) = (item.reserve_ms, item.ttl_ms.unwrap_or(0));
        let promise = item.promise_at(self.port.shard).filter(|&ticket| self.shard.has_promised(ticket)).unwrap_or(0);
        self.on(Event::Claim { id, fence, affinity, reserve_ms, ttl_ms, wants, promise, to: To::Claim(item) });
    }

    /// Whether others wait who may have a better right to what is there.
    fn must_queue(&self, item: &ClaimItem) -> bool {
        let line = &self.pool.line;
        line.waiting() > 0 && !item.may_pass() && (self.shard.raised() != self.raised || line.is_unsettled())
    }

    /// The claim holds as much as is said now, if its worker has that and its tenant's quota allows it.
    pub(super) fn resize(&mut self, mut item: KeyItem, resources: Resources) {
        self.resolve(&item.id, &mut item.place);
        let KeyItem { id, place, .. } = &item;
        let (id, place) = (id.clone(), *place);
        let asked = Arc::new(ClaimSpec { resources: resources.clone(), ..ClaimSpec::default() });
        let before = match self.dispatch.keys.resize(&id, place.fence, Some(Arc::clone(&asked))) {
            Ok(before) => before,
            Err(over) => {
                let unstored = self.unstored(&id);
                return self.answer(item.reply, Err(Refusal::Exhausted(Exhausted::Quota(over))), unstored, None);
            }
        };
        self.on(Event::Resize { place, resources, to: To::Key(item) });
        let holds = self.shard.grant(place).and_then(|grant| grant.spec);
        if holds.is_none_or(|spec| spec.resources != asked.resources) {
            self.dispatch.keys.unresize(&id, place.fence, before);
        }
    }

    /// A promise of this shard that it could not keep, or has forgotten, is none.
    fn look_at_promise(&self, item: &mut ClaimItem) {
        if item.promise_at(self.port.shard).is_some_and(|ticket| !self.shard.has_promised(ticket)) {
            item.lose_promise();
        }
    }

    /// Keeps a worker for a claim that waits.
    pub(super) fn promise(&mut self, seek: Box<Seek>) {
        let until_ms = self.now_ms + seek.needs_ms;
        let (ticket, wants, evict) = (seek.ticket(), Arc::clone(&seek.wants), seek.evict);
        self.on(Event::Promise { ticket, wants, evict, until_ms, to: To::Seek(seek) });
    }

    pub(super) fn reply_seek(&self, seek: Box<Seek>, answer: &Answer) {
        match answer {
            Answer::Promised => seek.found(&self.port),
            _ => self.dispatch.seek_on(seek),
        }
    }

    /// Why this shard takes no claim at present: the store is too far behind.
    pub(super) fn overload(&self, durable: bool) -> Option<Unavailable> {
        if !self.keeps_rows {
            return None;
        }
        let answers = self.answers_kept();
        if self.gone.len() >= limits::GONE_MAX || (durable && answers + limits::DRAIN_MAX >= limits::ANSWERS_MAX) {
            return Some(Unavailable::Store);
        }
        let lags = !durable && self.port.outbox.lag_ms() > self.pool.spec.load().lag_max_ms;
        lags.then_some(Unavailable::Overloaded)
    }

    pub(super) fn reply_claim(&mut self, mut item: Box<ClaimItem>, answer: Answer) {
        if let Answer::Granted(grant) = &answer {
            self.tell_claimed(&item.id, grant, None);
        }
        match answer {
            Answer::Granted(grant) if item.is_member() => {
                // Its key stays pending until the gang is committed.
                self.answer_claim(*item, grant, true, Unstoreds::new(), None);
            }
            Answer::Granted(grant) => {
                let hold = Hold { shard: self.port.shard, place: grant.place };
                let (joined, unstored) = self.dispatch.keys.hold(&item.id, item.ticket, hold, grant.spec.as_ref());
                self.dispatch.remembered.forget(&item.id);
                self.extra.extend(joined.into_iter().map(|joiner| Command::Repeat(joiner, grant.place)));
                if grant.cards.is_none() {
                    self.pool.board.remember(item.affinity, self.port.shard.shard);
                }
                if item.started_ns > 0 {
                    self.pool.metrics.claim_probes.record(u64::from(item.visited.len()));
                }
                if item.has_waited() {
                    self.pool.line.served(self.now_ms);
                    let waited_ms = self.now_ms.saturating_sub(item.waited().1);
                    self.pool.metrics.wait_seconds.record(waited_ms);
                }
                let made = Some(grant.place);
                self.answer_claim(*item, grant, true, unstored, made);
            }
            Answer::NoRoom => {
                self.look_at_promise(&mut item);
                self.refused.push(item);
            }
            Answer::NoFit(why) => {
                self.look_at_promise(&mut item);
                item.note(why);
                self.refused.push(item);
            }
            Answer::Held(grant) => {
                let unstored = self.unstored(&item.id);
                self.answer_claim(*item, grant, false, unstored, None);
            }
            Answer::Gone | Answer::GivenBack => self.dispatch.submit(item),
            // The pool allowed more when the request came.
            Answer::TtlTooLong { .. } => self.dispatch.give_up(item, refusal(&answer)),
            answer => {
                let unstored = self.unstored(&item.id);
                self.answer(item.reply, Err(refusal(&answer)), unstored, None);
            }
        }
    }

    fn answer_claim(&mut self, item: ClaimItem, grant: Grant, created: bool, unstored: Unstoreds, made: Option<Place>) {
        let outcome = Ok(Payload::Claim(ClaimAnswer { grant, created, shard: self.port.shard, expires_at_ms: None }));
        let durable = (item.durable || self.durable) && self.keeps_rows;
        self.send_or_wait(item.reply, outcome, durable, unstored, made);
        if let Some(answer) = self.outgoing.last_mut() {
            answer.started_ns = item.started_ns;
        }
    }

    pub(super) fn reply_key(&mut self, item: KeyItem, answer: Answer) {
        let unstored = self.unstored(&item.id);
        let outcome = match answer {
            Answer::Held(grant) => {
                let shard = self.port.shard;
                Ok(Payload::Claim(ClaimAnswer { grant, created: false, shard, expires_at_ms: None }))
            }
            Answer::Released => Ok(Payload::Done),
            answer => Err(refusal(&answer)),
        };
        self.answer(item.reply, outcome, unstored, None);
    }
}
