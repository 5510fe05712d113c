//! Matching of what came free to the claims that wait.
//!
//! Three rules keep a claim that waits from being passed or forgotten. *Publish, then look*: a run publishes what came
//! free before it looks whether anybody waits. *Queue, then search*: a claim that enters the queue is searched for once
//! more afterwards. *Match, then decide*: what came free is offered to those who wait before any claim that does not
//! wait is decided. So of a release and a claim that begins to wait at the same moment one always sees the other.

use super::ShardRunner;
use crate::engine::WorkerOffer;
use crate::model::AckLevel;
use crate::shard::command::{ClaimCall, HeldOperation, HeldVerb};
use crate::shard::event::{FreedMatch, ShardEvent, ShardSink};
use crate::shard::step_injection::{ProtocolPoint, ProtocolRule};

/// Claims that wait and are matched at the end of one run. The next run goes on.
pub(super) const MATCHES_MAX: usize = 64;

impl<S: ShardSink> ShardRunner<S> {
    /// Whether claims wait that were not offered something that came free.
    #[inline]
    pub(super) fn has_unmatched(&self) -> bool {
        (self.shard.has_freed() || !self.freed.is_empty()) && self.pool.queue_state.waiting() > 0
    }

    /// Matches what came free before a claim that does not wait is decided.
    #[inline]
    pub(super) fn match_first(&mut self, work: &mut S::Work) {
        if self.has_unmatched() && ProtocolRule::MatchBeforeDecision.holds() {
            self.settle(work, usize::MAX);
        }
    }

    /// Carries out an operation; what came free is matched before it may take capacity.
    pub(super) fn operate_after_match(&mut self, operation: HeldOperation, work: &mut S::Work) {
        if matches!(operation.verb, HeldVerb::Resize(_)) {
            self.match_first(work);
        }
        self.operate(operation);
    }

    /// Settles what was decided: hands rows over, publishes bounds, delivers events, and matches what came free, in this
    /// order, again until nothing more is matched, or `matches_max` times.
    pub(super) fn settle(&mut self, work: &mut S::Work, matches_max: usize) {
        for matches in 0.. {
            ProtocolPoint::Decided.reach();
            self.append_rows();
            if ProtocolRule::BoundsBeforeDelivery.holds() {
                self.publish();
            }
            if !ProtocolRule::DeliveryBeforeReplies.holds() {
                self.send_before_delivery();
            }
            let matched_early = if ProtocolRule::PublishBeforeMatch.holds() { None } else { self.next_match(work) };
            ProtocolPoint::Published.reach();
            self.deliver(work);
            ProtocolPoint::Delivered.reach();
            if !ProtocolRule::BoundsBeforeDelivery.holds() {
                self.publish();
            }
            let matched = match ProtocolRule::PublishBeforeMatch.holds() {
                true if matches >= matches_max => {
                    self.matches_left = self.has_unmatched();
                    None
                }
                true => self.next_match(work),
                false => matched_early,
            };
            let Some(call) = matched else { return };
            let fence = self.spare_fence.take().expect("allocated before the match");
            self.decide_claim(call, fence);
        }
    }

    /// Offers what came free to the claims that wait, until one takes something.
    #[inline]
    fn next_match(&mut self, work: &mut S::Work) -> Option<ClaimCall> {
        if !self.shard.has_freed() && self.freed.is_empty() {
            return None;
        }
        if !self.pool.queue_state.has_waiting() {
            self.shard.clear_freed();
            self.freed.clear();
            return None;
        }
        self.offer_freed(work)
    }

    #[cold]
    fn offer_freed(&mut self, work: &mut S::Work) -> Option<ClaimCall> {
        self.shard.take_freed(&mut self.freed);
        // While a grant could not be recorded nobody is offered anything; the next run tries again.
        if self.overload_reason(AckLevel::Durable).is_some() {
            return None;
        }
        if self.spare_fence.is_none() {
            self.spare_fence = self.environment.allocate_fences(1).ok();
        }
        self.spare_fence?;
        while let Some(&worker) = self.freed.front() {
            let offer: Option<WorkerOffer> = self.shard.offer(worker, self.now_ms);
            let void = self.shard.take_void_reservations();
            if !void.is_empty() {
                self.events.push(ShardEvent::ReservationsVoid(void));
            }
            match offer.and_then(|offer| self.sink.match_freed(self.origin(), &offer)) {
                // What is left of the worker is offered once more after the grant.
                Some(FreedMatch::Claim(call)) => {
                    self.undecided_tickets.push(call.ticket);
                    return Some(call);
                }
                Some(FreedMatch::Reserve(id)) => {
                    self.shard.reserve_freed(worker, id);
                    self.freed.pop_front();
                }
                None => drop(self.freed.pop_front()),
            }
        }
        // Reservations that ended just now are reported at once.
        self.append_rows();
        self.deliver(work);
        None
    }
}
