//! Durability of replies: each is sent at once, when the store has its records, or never.
//!
//! A durable reply waits here for the record of its shard and for every other record that the key directory names. If
//! it cannot be sent in time it becomes `store`, and a claim that no other reply shows is rolled back.

use super::unsent_reply::UnsentReply;
use super::{PendingReply, ReplyIndex, ReplyOverflow, ShardEvent, ShardRunner, UnreadGrant};
use crate::engine::{ClaimHandle, Event};
use crate::limits;
use crate::model::request_error::{RequestError, UnavailableReason};
use crate::model::{AckLevel, Millis};
use crate::shard::address::PendingWrites;
use crate::shard::command::UnstoredRejection;
use crate::shard::event::ShardSink;
use crate::shard::reply::{ClaimAnswer, ClaimReply, CommandReply};

impl<S: ShardSink> ShardRunner<S> {
    /// Replies to a command that is not about one claim, with the durability of the pool.
    pub(super) fn answer_command<T: Send + 'static>(
        &mut self,
        reply: CommandReply<T>,
        outcome: Result<T, RequestError>,
    ) -> ReplyIndex {
        let ack = if self.keeps_rows { self.ack } else { AckLevel::Memory };
        self.prepare_reply(UnsentReply::command(reply, outcome), ack)
    }

    /// Prepares a reply, which leaves at the end of the run at the earliest.
    #[inline(always)]
    pub(super) fn prepare_reply(&mut self, content: UnsentReply, ack: AckLevel) -> ReplyIndex {
        let durable = ack == AckLevel::Durable;
        // Claims are rejected before it comes to this. Other requests are carried out, but their replies do not wait.
        let too_many = durable && self.pending_replies_len() >= limits::PENDING_REPLIES_MAX;
        let index = ReplyIndex(self.new_replies.len() as u32);
        self.new_replies.push(PendingReply {
            content,
            ack,
            seq: if durable { self.shard.seq() } else { 0 },
            pending_writes: PendingWrites::new(),
            unread_grant: UnreadGrant::Keep,
            overflow: if too_many { ReplyOverflow::TooMany } else { ReplyOverflow::MayWait },
            started_ns: None,
            until_ms: self.now_ms + self.services.store_wait_ms,
        });
        index
    }

    /// Whether replies wait for the store.
    pub(super) fn has_waiting_replies(&self) -> bool {
        !self.awaiting_store.is_empty() || !self.awaiting_other_shards.is_empty()
    }

    /// Prepares the rejection of a request about a key, which waits for the records that it follows from.
    pub(super) fn reject_when_stored(&mut self, unstored: UnstoredRejection) {
        let UnstoredRejection { rejection, pending_writes, reply } = unstored;
        let ack = if self.keeps_rows { AckLevel::Durable } else { AckLevel::Memory };
        let index = self.prepare_reply(UnsentReply::Claim(Some(reply), Err(rejection)), ack);
        self.new_replies[index.0 as usize].wait_for(pending_writes);
    }

    /// Number of replies that have not been sent.
    pub(super) fn pending_replies_len(&self) -> usize {
        self.awaiting_store.len() + self.awaiting_other_shards.len() + self.new_replies.len()
    }

    /// Sends the new replies, or keeps them until the store has their records. One that is not sent stays in the list: if
    /// a panic ends this life, it is taken back.
    pub(super) fn send_new_replies(&mut self) {
        let mut index = 0;
        while let Some(reply) = self.new_replies.get_mut(index) {
            let mut reply = reply.take();
            self.send_or_await_store(&mut reply);
            index += 1;
        }
        // What `take` leaves owns nothing. To drop it would cost more instructions than to send some replies.
        while let Some(taken) = self.new_replies.pop() {
            debug_assert!(taken.is_taken(), "a reply was neither sent nor kept");
            std::mem::forget(taken);
        }
    }

    /// Sends a new reply, or keeps it until the store has its records. What is left of it is to be dropped.
    #[inline(always)]
    fn send_or_await_store(&mut self, reply: &mut PendingReply) {
        if reply.content.is_unwanted() || reply.overflow == ReplyOverflow::TooMany {
            crate::reached!("reply: nobody wants it, or too many wait");
            self.reject_reply(reply.take(), UnavailableReason::Store);
        } else if self.handle.outbox.applied_seq() < reply.seq {
            self.awaiting_store.push_back(reply.take());
        } else {
            self.send_or_await_shards(reply);
        }
    }

    /// Sends the replies whose callers are known, which breaks the rule that delivery comes first. The indexes of
    /// the others stay valid.
    #[cold]
    pub(super) fn send_before_delivery(&mut self) {
        for index in 0..self.new_replies.len() {
            if !self.new_replies[index].content.is_unwanted() {
                let nobody = UnsentReply::Claim(None, Err(RequestError::DeadlineExceeded));
                let placeholder = self.prepare_reply(nobody, AckLevel::Memory);
                assert_eq!(placeholder.0 as usize + 1, self.new_replies.len());
                let mut reply = self.new_replies.swap_remove(index);
                self.send_or_await_store(&mut reply);
            }
        }
    }

    /// Sends a reply whose own record is stored, or keeps it until those of other shards are.
    #[inline(always)]
    fn send_or_await_shards(&mut self, reply: &mut PendingReply) {
        if !reply.pending_writes.is_empty() && self.awaits_other_shards(&reply.pending_writes) {
            crate::reached!("reply: waits for the record of another shard");
            self.awaiting_other_shards.push(reply.take());
        } else {
            self.send_reply(reply);
        }
    }

    /// Whether the store lacks one of these records. If so, the record's shard notifies this one when the store makes
    /// progress.
    fn awaits_other_shards(&mut self, pending_writes: &PendingWrites) -> bool {
        if pending_writes.is_empty() {
            return false;
        }
        let services = &self.services;
        let missing = || pending_writes.iter().find(|record| !services.is_stored(record));
        // Subscribed first and checked again afterwards, so that no progress is missed in between.
        while let Some(record) = missing() {
            if !self.subscribed_shards.insert(record.shard) {
                return true;
            }
            if let Some(outbox) = services.outbox(record.shard) {
                outbox.notify_also(&self.handle.outbox);
            }
        }
        false
    }

    /// Sends the replies whose records the store has.
    pub(super) fn send_stored_replies(&mut self) {
        self.subscribed_shards.clear();
        self.applied_seq = self.handle.outbox.applied_seq();
        if self.keeps_rows && self.services.journal.is_fenced() {
            let undeliverable: Vec<_> =
                self.awaiting_store.drain(..).chain(self.awaiting_other_shards.drain(..)).collect();
            crate::reached!("reply: rejected because the process is fenced");
            undeliverable.into_iter().for_each(|reply| self.expire_reply(reply));
            return;
        }
        if self.keeps_rows && !self.services.journal.lease().is_valid() {
            crate::reached!("lease: lapsed while replies wait");
            // The replies wait for the renewal, which wakes every shard, or for their deadline.
            return;
        }
        let applied = self.applied_seq;
        while let Some(mut reply) = self.awaiting_store.pop_front_if(|reply| reply.seq <= applied) {
            self.send_or_await_shards(&mut reply);
        }
        if !self.awaiting_other_shards.is_empty() {
            for mut reply in std::mem::take(&mut self.awaiting_other_shards) {
                self.send_or_await_shards(&mut reply);
            }
        }
    }

    #[inline(always)]
    fn send_reply(&mut self, reply: &mut PendingReply) {
        if self.keeps_rows
            && let Some(reason) = self.services.journal.reply_blocker()
        {
            crate::reached!("lease: lapsed when a reply was about to leave");
            return self.reject_reply(reply.take(), reason);
        }
        let UnsentReply::Claim(caller, outcome) = &mut reply.content else {
            return match reply.take().content {
                UnsentReply::Claim(..) => unreachable!("matched above"),
                UnsentReply::Gang(reply) => reply.send(),
                UnsentReply::Command(reply) => reply.send(),
            };
        };
        let Some(caller) = caller.take() else { return };
        match outcome {
            // Replies of a batch or gang are delivered together; their deadlines start then
            // (`ClaimDispatcher::notify_reply_sent`).
            Ok(ClaimReply::Claim(answer)) if caller.is_collected() => self.fill_deadline(answer),
            Ok(ClaimReply::Claim(answer)) => self.start_deadline(answer),
            Ok(ClaimReply::Released) | Err(_) => {}
        }
        self.created += u64::from(reply.unread_grant == UnreadGrant::RollBack);
        // One claim of a run is timed for all: timing each would cost more than deciding it.
        if let Some(started_ns) = reply.started_ns.filter(|_| !self.timed) {
            self.timed = true;
            let elapsed_ns = self.services.clock.mono_ns().saturating_sub(started_ns.get());
            self.pool.metrics.claim_seconds.record(elapsed_ns);
        }
        if caller.send_from(outcome).is_err() {
            crate::reached!("reply: its caller has left");
            self.drop_claim_reply(reply.granted(), reply.reference());
        }
    }

    /// Handles a reply about a claim that nobody will read.
    fn drop_claim_reply(&mut self, granted: Option<ClaimHandle>, reference: Option<ClaimHandle>) {
        if let Some(handle) = granted {
            self.roll_back(handle);
        }
        if let Some(handle) = reference {
            self.drop_reference(handle);
        }
    }

    /// Starts the first deadline of a claim, as the reply that grants it is sent.
    #[inline(always)]
    fn start_deadline(&mut self, answer: &mut ClaimAnswer) {
        if answer.grant.state_ttl_ms().is_some() {
            self.start_limited_deadline(answer);
        } else if answer.created {
            self.shard.note_reply_sent(answer.grant.handle, self.now_ms);
        }
    }

    /// Apart from [`Self::start_deadline`], because most claims have no deadline: it reads the clock.
    #[inline(never)]
    fn start_limited_deadline(&mut self, answer: &mut ClaimAnswer) {
        if answer.created {
            let at_ms = self.deadline_start_ms();
            self.shard.note_reply_sent(answer.grant.handle, at_ms);
        }
        self.fill_deadline(answer);
    }

    fn fill_deadline(&self, answer: &mut ClaimAnswer) {
        answer.grant.deadline_ms = self.shard.deadline_ms(answer.grant.handle);
    }

    /// Expires replies that the store kept waiting for too long.
    pub(super) fn expire_replies(&mut self) {
        let is_late = |reply: &PendingReply, now_ms: Millis| reply.until_ms <= now_ms;
        while self.awaiting_store.front().is_some_and(|reply| is_late(reply, self.now_ms)) {
            let Some(reply) = self.awaiting_store.pop_front() else { break };
            self.expire_reply(reply);
        }
        if self.awaiting_other_shards.is_empty() {
            return;
        }
        let now_ms = self.now_ms;
        for reply in self.awaiting_other_shards.extract_if(.., |reply| is_late(reply, now_ms)).collect::<Vec<_>>() {
            self.expire_reply(reply);
        }
    }

    pub(super) fn expire_reply(&mut self, reply: PendingReply) {
        let reason = self.services.journal.reply_blocker().unwrap_or(UnavailableReason::Store);
        self.reject_reply(reply, reason);
    }

    /// Sends an error instead of a reply, and rolls back the claim that the reply granted. Members of a committed gang
    /// stay held, and their deadlines start now.
    #[cold]
    fn reject_reply(&mut self, reply: PendingReply, reason: UnavailableReason) {
        crate::reached!("reply: waited too long for the store");
        let error = RequestError::Unavailable(reason);
        let (granted, reference) = (reply.granted(), reply.reference());
        match reply.content {
            UnsentReply::Claim(caller, _) => {
                if let Some(caller) = caller {
                    caller.reject(error);
                }
                self.drop_claim_reply(granted, reference);
            }
            UnsentReply::Gang(reply) => {
                let at_ms = self.deadline_start_ms();
                for (_, member) in reply.reject(error) {
                    self.apply(Event::ReplySent { handle: member.grant.handle, at_ms });
                }
            }
            UnsentReply::Command(reply) => reply.reject(error),
        }
    }

    /// Ends a claim whose grant reached nobody. A claim that was confirmed, or that other replies show, stays held, and
    /// its deadline starts now.
    pub(super) fn roll_back(&mut self, handle: ClaimHandle) {
        if let Some(id) = self.shard.claim_id(handle).filter(|_| self.shard.is_undisclosed(handle)) {
            self.rolled_back.push((id.clone(), handle.fence));
        }
        crate::reached!("grant: rolled back");
        self.apply(Event::Rollback { handle });
        let at_ms = self.deadline_start_ms();
        self.apply(Event::ReplySent { handle, at_ms });
    }

    /// Takes back a reply that showed a claim to nobody, and rolls the claim back if it was kept for this reply only.
    pub(super) fn drop_reference(&mut self, handle: ClaimHandle) {
        if self.shard.remove_reference(handle) {
            self.roll_back(handle);
        }
    }

    /// Reports the ends of claims whose records the store has.
    pub(super) fn note_stored_ends(&mut self) {
        let applied = self.handle.outbox.applied_seq();
        while let Some((seq, id)) = self.pending_ends.pop_front_if(|(seq, _)| *seq <= applied) {
            self.events.push(ShardEvent::EndStored { id, seq });
        }
    }
}
