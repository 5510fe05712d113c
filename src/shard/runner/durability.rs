//! When an answer leaves: at once, when the store has what it speaks of, or never.
//!
//! A durable answer waits here for its shard's record and for every other that the key directory names. If it cannot
//! leave in time it becomes `store`, and a claim that only it would have told of is given back.

use super::{Outgoing, Running};
use crate::admission::keys::Unstoreds;
use crate::engine::{Event, Place};
use crate::limits;
use crate::model::rejection::{Refusal, Unavailable};
use crate::model::{ClaimId, Millis};
use crate::shard::reply::{ClaimAnswer, Outcome, Payload, Reply};

impl Running {
    pub(super) fn unstored(&self, id: &ClaimId) -> Unstoreds {
        if self.keeps_rows { self.dispatch.keys.unstored(id) } else { Unstoreds::new() }
    }

    /// An answer as durable as the pool.
    pub(super) fn answer(&mut self, reply: Reply, outcome: Outcome, unstored: Unstoreds, made: Option<Place>) {
        let durable = self.keeps_rows && self.durable;
        self.send_or_wait(reply, outcome, durable, unstored, made);
    }

    pub(super) fn send_or_wait(
        &mut self,
        reply: Reply,
        outcome: Outcome,
        durable: bool,
        unstored: Unstoreds,
        made: Option<Place>,
    ) {
        if durable && self.answers_kept() >= limits::ANSWERS_MAX {
            // Claims are refused before it comes to this; what else is asked is done, and its answer is not waited for.
            reply.send(Err(Refusal::Unavailable(Unavailable::Store)));
            self.settle_undelivered(&outcome, made);
            return;
        }
        let seq = if durable { self.shard.seq() } else { 0 };
        let unstored = if durable { unstored } else { Unstoreds::new() };
        let until_ms = self.now_ms + self.dispatch.settings.store_wait_ms;
        self.outgoing.push(Outgoing { reply, outcome, seq, unstored, made, started_ns: 0, until_ms });
    }

    /// Answers that have not left.
    pub(super) fn answers_kept(&self) -> usize {
        self.waiting.len() + self.blocked.len() + self.outgoing.len()
    }

    /// Lets a new answer go, or keeps it until the store has what it speaks of.
    pub(super) fn leave_or_wait(&mut self, answer: Outgoing) {
        if self.port.outbox.applied() < answer.seq {
            self.waiting.push_back(answer);
        } else {
            self.leave_or_block(answer);
        }
    }

    /// Lets an answer go whose own record the store has, or keeps it until it has those of other shards.
    fn leave_or_block(&mut self, answer: Outgoing) {
        if self.is_held_back(&answer.unstored) {
            self.blocked.push(answer);
        } else {
            self.leave(answer);
        }
    }

    /// Whether the store lacks one of these records. Then its shard tells this one when the store moves on there.
    fn is_held_back(&mut self, unstored: &Unstoreds) -> bool {
        if unstored.is_empty() {
            return false;
        }
        let pools = self.dispatch.pools.load();
        let missing = || unstored.iter().find(|record| !pools.is_stored(record));
        // Asked first and looked at once more then, so that nothing is missed in between.
        while let Some(record) = missing() {
            if self.awaited.contains(&record.shard) {
                return true;
            }
            self.awaited.insert(record.shard);
            if let Some(port) = pools.port(record.shard) {
                port.outbox.tell_too(&self.port.outbox);
            }
        }
        false
    }

    /// Lets answers go whose records the store has.
    pub(super) fn release_answers(&mut self) {
        self.awaited.clear();
        self.applied = self.port.outbox.applied();
        if self.keeps_rows && self.dispatch.journal.fenced() {
            let never: Vec<_> = self.waiting.drain(..).chain(self.blocked.drain(..)).collect();
            never.into_iter().for_each(|answer| self.expire(answer));
            return;
        }
        if self.keeps_rows && !self.dispatch.journal.lease().holds() {
            // They wait for the renewal, which tells every shard, or for their deadline.
            return;
        }
        let applied = self.applied;
        while let Some(answer) = self.waiting.pop_front_if(|answer| answer.seq <= applied) {
            self.leave_or_block(answer);
        }
        if !self.blocked.is_empty() {
            for answer in std::mem::take(&mut self.blocked) {
                self.leave_or_block(answer);
            }
        }
    }

    pub(super) fn leave(&mut self, answer: Outgoing) {
        let Outgoing { reply, mut outcome, made, started_ns, .. } = answer;
        if self.keeps_rows
            && let Some(why) = self.dispatch.journal.silence()
        {
            reply.send(Err(Refusal::Unavailable(why)));
            self.settle_undelivered(&outcome, made);
            return;
        }
        match &mut outcome {
            // The answers of a batch and of a gang leave together: whoever collects them says when (`Dispatch::depart`).
            Ok(Payload::Claim(answer)) if reply.is_part() => {
                if !answer.created {
                    self.shard.mark_spoken_of(answer.grant.place);
                }
                self.look_up_deadline(answer);
            }
            Ok(Payload::Claim(answer)) => self.date(answer),
            _ => {}
        }
        self.created += u64::from(made.is_some());
        // One claim of a run stands for all: timing each would cost more than deciding it.
        if started_ns > 0 && !self.timed {
            self.timed = true;
            let took = self.dispatch.clock.mono_ns().saturating_sub(started_ns);
            self.pool.metrics.claim_seconds.record(took);
        }
        if !reply.send(outcome)
            && let Some(place) = made
        {
            self.roll_back(place);
        }
    }

    /// The first deadline of a claim runs from now, when the answer that grants it leaves. Any other answer that speaks of it
    /// keeps it from being rolled back.
    pub(super) fn date(&mut self, answer: &mut ClaimAnswer) {
        let place = answer.grant.place;
        if answer.created {
            self.on(Event::Departed { place, at_ms: self.now_ms });
        } else {
            self.shard.mark_spoken_of(place);
        }
        if answer.grant.stay_ms().is_some() {
            self.look_up_deadline(answer);
        }
    }

    fn look_up_deadline(&self, answer: &mut ClaimAnswer) {
        let deadline = self.shard.deadline_ms(answer.grant.place);
        answer.grant.deadline_ms = deadline;
        answer.expires_at_ms = deadline.map(|at| self.dispatch.clock.unix_of(at));
    }

    /// Ends the wait of answers that the store kept too long.
    pub(super) fn expire_answers(&mut self) {
        let late = |answer: &Outgoing, now_ms: Millis| answer.until_ms <= now_ms;
        while self.waiting.front().is_some_and(|answer| late(answer, self.now_ms)) {
            let Some(answer) = self.waiting.pop_front() else { break };
            self.expire(answer);
        }
        if self.blocked.is_empty() {
            return;
        }
        let now_ms = self.now_ms;
        for answer in self.blocked.extract_if(.., |answer| late(answer, now_ms)).collect::<Vec<_>>() {
            self.expire(answer);
        }
    }

    pub(super) fn expire(&mut self, answer: Outgoing) {
        let why = self.dispatch.journal.silence().unwrap_or(Unavailable::Store);
        answer.reply.send(Err(Refusal::Unavailable(why)));
        self.settle_undelivered(&answer.outcome, answer.made);
    }

    /// Rolls back the claim that this answer granted; whatever else it speaks of is held on, and its deadline runs from
    /// now.
    fn settle_undelivered(&mut self, outcome: &Outcome, made: Option<Place>) {
        if let Some(place) = made {
            self.roll_back(place);
        }
        match outcome {
            Ok(Payload::Gang(members)) => {
                for (_, member) in members {
                    self.on(Event::Departed { place: member.grant.place, at_ms: self.now_ms });
                }
            }
            Ok(Payload::Claim(answer)) if made.is_none() => self.roll_back_orphan(answer.grant.place),
            _ => {}
        }
    }

    /// An answer that kept the claim from being rolled back has ended too: if it was the last, and none has left, the claim
    /// is rolled back now.
    fn roll_back_orphan(&mut self, place: Place) {
        if !self.shard.is_orphan(place) {
            return;
        }
        let speaks = |answer: &Outgoing| match &answer.outcome {
            Ok(Payload::Claim(answer)) => answer.grant.place.fence == place.fence,
            _ => false,
        };
        if !self.waiting.iter().chain(&self.blocked).chain(&self.outgoing).any(speaks) {
            self.shard.disown(place);
            self.roll_back(place);
        }
    }

    /// Ends a claim whose grant reached nobody. One that others were told of, or that was confirmed, is held on: its
    /// deadline runs from now.
    pub(super) fn roll_back(&mut self, place: Place) {
        if let Some(id) = self.shard.claim_id(place).filter(|_| self.shard.is_untold(place)) {
            self.rolled_back.push((id.clone(), place.fence));
        } else {
            self.shard.orphan(place);
        }
        self.on(Event::GiveBack { place });
        self.on(Event::Departed { place, at_ms: self.now_ms });
    }

    pub(super) fn settle_gone(&mut self) {
        let applied = self.port.outbox.applied();
        while let Some((seq, id)) = self.gone.pop_front_if(|(seq, _)| *seq <= applied) {
            self.dispatch.keys.settle(&id, self.port.shard, seq);
        }
    }
}
