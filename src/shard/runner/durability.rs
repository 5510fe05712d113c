//! When an answer leaves: at once, when the store has what it speaks of, or never.
//!
//! A durable answer waits here for its shard's record and for every other that the key directory names. If it cannot
//! leave in time it becomes `store`, and a claim that only it would have told of is given back.

use super::{PendingReply, ShardRunner};
use crate::admission::key_directory::PendingWrites;
use crate::engine::{ClaimHandle, Event};
use crate::limits;
use crate::model::request_error::{RequestError, UnavailableReason};
use crate::model::{ClaimId, Millis};
use crate::shard::reply::{ClaimAnswer, ReplyPayload, ReplySender, ShardOutcome};

impl ShardRunner {
    pub(super) fn pending_writes(&self, id: &ClaimId) -> PendingWrites {
        if self.keeps_rows { self.dispatch.keys.pending_writes(id) } else { PendingWrites::new() }
    }

    /// An answer as durable as the pool.
    pub(super) fn answer(
        &mut self,
        reply: ReplySender,
        outcome: ShardOutcome,
        unstored: PendingWrites,
        made: Option<ClaimHandle>,
    ) {
        let durable = self.keeps_rows && self.durable;
        self.send_when_stored(reply, outcome, durable, unstored, made);
    }

    pub(super) fn send_when_stored(
        &mut self,
        reply: ReplySender,
        outcome: ShardOutcome,
        durable: bool,
        unstored: PendingWrites,
        made: Option<ClaimHandle>,
    ) {
        if durable && self.pending_replies_len() >= limits::PENDING_REPLIES_MAX {
            // Claims are refused before it comes to this; what else is asked is done, and its answer is not waited for.
            reply.send(Err(RequestError::Unavailable(UnavailableReason::Store)));
            self.on_undelivered(&outcome, made);
            return;
        }
        let seq = if durable { self.shard.seq() } else { 0 };
        let unstored = if durable { unstored } else { PendingWrites::new() };
        let until_ms = self.now_ms + self.dispatch.settings.store_wait_ms;
        self.new_replies.push(PendingReply {
            reply,
            outcome,
            seq,
            pending_writes: unstored,
            granted: made,
            started_ns: 0,
            until_ms,
        });
    }

    /// Answers that have not left.
    pub(super) fn pending_replies_len(&self) -> usize {
        self.awaiting_store.len() + self.awaiting_other_shards.len() + self.new_replies.len()
    }

    /// Lets a new answer go, or keeps it until the store has what it speaks of.
    pub(super) fn send_or_await_store(&mut self, answer: PendingReply) {
        if self.handle.outbox.applied_seq() < answer.seq {
            self.awaiting_store.push_back(answer);
        } else {
            self.send_or_await_shards(answer);
        }
    }

    /// Lets an answer go whose own record the store has, or keeps it until it has those of other shards.
    fn send_or_await_shards(&mut self, answer: PendingReply) {
        if self.awaits_other_shards(&answer.pending_writes) {
            self.awaiting_other_shards.push(answer);
        } else {
            self.send_reply(answer);
        }
    }

    /// Whether the store lacks one of these records. Then its shard tells this one when the store moves on there.
    fn awaits_other_shards(&mut self, unstored: &PendingWrites) -> bool {
        if unstored.is_empty() {
            return false;
        }
        let pools = self.dispatch.pools.load();
        let missing = || unstored.iter().find(|record| !pools.is_stored(record));
        // Asked first and looked at once more then, so that nothing is missed in between.
        while let Some(record) = missing() {
            if self.subscribed_shards.contains(&record.shard) {
                return true;
            }
            self.subscribed_shards.insert(record.shard);
            if let Some(port) = pools.shard(record.shard) {
                port.outbox.notify_also(&self.handle.outbox);
            }
        }
        false
    }

    /// Lets answers go whose records the store has.
    pub(super) fn send_stored_replies(&mut self) {
        self.subscribed_shards.clear();
        self.applied_seq = self.handle.outbox.applied_seq();
        if self.keeps_rows && self.dispatch.journal.is_fenced() {
            let never: Vec<_> = self.awaiting_store.drain(..).chain(self.awaiting_other_shards.drain(..)).collect();
            never.into_iter().for_each(|answer| self.expire_reply(answer));
            return;
        }
        if self.keeps_rows && !self.dispatch.journal.lease().is_valid() {
            // They wait for the renewal, which tells every shard, or for their deadline.
            return;
        }
        let applied = self.applied_seq;
        while let Some(answer) = self.awaiting_store.pop_front_if(|answer| answer.seq <= applied) {
            self.send_or_await_shards(answer);
        }
        if !self.awaiting_other_shards.is_empty() {
            for answer in std::mem::take(&mut self.awaiting_other_shards) {
                self.send_or_await_shards(answer);
            }
        }
    }

    pub(super) fn send_reply(&mut self, answer: PendingReply) {
        let PendingReply { reply, mut outcome, granted: made, started_ns, .. } = answer;
        if self.keeps_rows
            && let Some(why) = self.dispatch.journal.reply_blocker()
        {
            reply.send(Err(RequestError::Unavailable(why)));
            self.on_undelivered(&outcome, made);
            return;
        }
        match &mut outcome {
            // The answers of a batch and of a gang leave together: whoever collects them says when (`ClaimDispatcher::notify_reply_sent`).
            Ok(ReplyPayload::Claim(answer)) if reply.is_part() => {
                if !answer.created {
                    self.shard.mark_referenced(answer.grant.handle);
                }
                self.fill_deadline(answer);
            }
            Ok(ReplyPayload::Claim(answer)) => self.start_deadline(answer),
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
    pub(super) fn start_deadline(&mut self, answer: &mut ClaimAnswer) {
        let place = answer.grant.handle;
        if answer.created {
            self.apply(Event::ReplySent { place, at_ms: self.now_ms });
        } else {
            self.shard.mark_referenced(place);
        }
        if answer.grant.state_ttl_ms().is_some() {
            self.fill_deadline(answer);
        }
    }

    fn fill_deadline(&self, answer: &mut ClaimAnswer) {
        let deadline = self.shard.deadline_ms(answer.grant.handle);
        answer.grant.deadline_ms = deadline;
        answer.expires_at_ms = deadline.map(|at| self.dispatch.clock.unix_of(at));
    }

    /// Ends the wait of answers that the store kept too long.
    pub(super) fn expire_replies(&mut self) {
        let late = |answer: &PendingReply, now_ms: Millis| answer.until_ms <= now_ms;
        while self.awaiting_store.front().is_some_and(|answer| late(answer, self.now_ms)) {
            let Some(answer) = self.awaiting_store.pop_front() else { break };
            self.expire_reply(answer);
        }
        if self.awaiting_other_shards.is_empty() {
            return;
        }
        let now_ms = self.now_ms;
        for answer in self.awaiting_other_shards.extract_if(.., |answer| late(answer, now_ms)).collect::<Vec<_>>() {
            self.expire_reply(answer);
        }
    }

    pub(super) fn expire_reply(&mut self, answer: PendingReply) {
        let why = self.dispatch.journal.reply_blocker().unwrap_or(UnavailableReason::Store);
        answer.reply.send(Err(RequestError::Unavailable(why)));
        self.on_undelivered(&answer.outcome, answer.granted);
    }

    /// Rolls back the claim that this answer granted; whatever else it speaks of is held on, and its deadline runs from
    /// now.
    fn on_undelivered(&mut self, outcome: &ShardOutcome, made: Option<ClaimHandle>) {
        if let Some(place) = made {
            self.roll_back(place);
        }
        match outcome {
            Ok(ReplyPayload::Gang(members)) => {
                for (_, member) in members {
                    self.apply(Event::ReplySent { place: member.grant.handle, at_ms: self.now_ms });
                }
            }
            Ok(ReplyPayload::Claim(answer)) if made.is_none() => self.roll_back_orphan(answer.grant.handle),
            _ => {}
        }
    }

    /// An answer that kept the claim from being rolled back has ended too: if it was the last, and none has left, the claim
    /// is rolled back now.
    fn roll_back_orphan(&mut self, place: ClaimHandle) {
        if !self.shard.is_orphan(place) {
            return;
        }
        let speaks = |answer: &PendingReply| match &answer.outcome {
            Ok(ReplyPayload::Claim(answer)) => answer.grant.handle.fence == place.fence,
            _ => false,
        };
        if !self.awaiting_store.iter().chain(&self.awaiting_other_shards).chain(&self.new_replies).any(speaks) {
            self.shard.end_orphan(place);
            self.roll_back(place);
        }
    }

    /// Ends a claim whose grant reached nobody. One that others were told of, or that was confirmed, is held on: its
    /// deadline runs from now.
    pub(super) fn roll_back(&mut self, place: ClaimHandle) {
        if let Some(id) = self.shard.claim_id(place).filter(|_| self.shard.is_undisclosed(place)) {
            self.rolled_back.push((id.clone(), place.fence));
        } else {
            self.shard.mark_orphan(place);
        }
        self.apply(Event::Rollback { place });
        self.apply(Event::ReplySent { place, at_ms: self.now_ms });
    }

    pub(super) fn clear_stored_ends(&mut self) {
        let applied = self.handle.outbox.applied_seq();
        while let Some((seq, id)) = self.pending_ends.pop_front_if(|(seq, _)| *seq <= applied) {
            self.dispatch.keys.clear_pending_write(&id, self.handle.shard, seq);
        }
    }
}
