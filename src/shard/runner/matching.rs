//! Matching of what came free to the claims that wait.
//!
//! Three rules keep a claim that waits from being passed or forgotten. *Publish, then look*: a run publishes what came
//! free before it looks whether anybody waits. *Queue, then search*: a claim that enters the queue is searched for once
//! more afterwards. *Match, then decide*: what came free is offered to those who wait before any claim that does not
//! wait is decided. So of a release and a claim that begins to wait at the same moment one always sees the other.

use super::ShardRunner;
use crate::engine::WorkerOffer;
use crate::model::request_error::RequestError;
use crate::model::{AckLevel, Millis};
use crate::shard::command::{ClaimCall, HeldOperation, HeldVerb};
use crate::shard::event::{FreedMatch, NotGranted, ShardEvent, ShardSink};
use crate::shard::step_injection::{ProtocolPoint, ProtocolRule};

/// Time after which a run looks again at what it could not offer, because no grant could be recorded.
pub(super) const OFFER_AGAIN_MS: Millis = 100;

/// Claims that wait and are matched at the end of one run. The next run goes on.
pub(super) const MATCHES_MAX: usize = 64;

impl<S: ShardSink> ShardRunner<S> {
    /// Whether claims wait that were not offered something that came free.
    #[inline]
    pub(super) fn has_unoffered(&self) -> bool {
        (self.shard.has_freed() || !self.freed.is_empty()) && self.pool.queue_state.waiting() > 0
    }

    /// Matches what came free before a claim that does not wait is decided.
    #[inline]
    pub(super) fn match_first(&mut self, work: &mut S::Work) {
        if self.has_unoffered() && ProtocolRule::MatchBeforeDecision.holds() {
            self.settle(work, usize::MAX);
        }
        ProtocolPoint::Matched.reach();
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
            let early = if ProtocolRule::PublishBeforeMatch.holds() { None } else { self.next_match(work) };
            ProtocolPoint::Decided.reach();
            self.append_rows();
            if ProtocolRule::BoundsBeforeDelivery.holds() {
                self.publish();
            }
            if !ProtocolRule::DeliveryBeforeReplies.holds() {
                self.send_before_delivery();
            }
            ProtocolPoint::Published.reach();
            // Before their workers are offered: whoever held them must not take them for held still.
            if self.shard.has_void_reservations() {
                self.report_void_reservations();
            }
            self.deliver(work);
            ProtocolPoint::Delivered.reach();
            if !ProtocolRule::BoundsBeforeDelivery.holds() {
                self.publish();
            }
            let matched = if !ProtocolRule::PublishBeforeMatch.holds() {
                early
            } else if matches < matches_max {
                self.next_match(work)
            } else {
                self.matches_left = self.has_unoffered();
                None
            };
            let Some(call) = matched else { return };
            // Drawn only now: the claim's key may have been held elsewhere until it was matched, under a higher fence.
            match self.services.allocate_fences(1) {
                Ok(fence) => self.decide_claim(call, fence),
                Err(reason) => {
                    let reason = NotGranted::Rejected(RequestError::Unavailable(reason));
                    self.events.push(ShardEvent::NotGranted { id: call.id, ticket: call.ticket, reason });
                }
            }
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
    fn report_void_reservations(&mut self) {
        self.events.push(ShardEvent::ReservationsVoid(self.shard.take_void_reservations()));
    }

    #[cold]
    fn offer_freed(&mut self, work: &mut S::Work) -> Option<ClaimCall> {
        self.shard.take_freed(&mut self.freed);
        // While a grant could not be recorded nobody is offered anything; a later run tries again. The fence is not used.
        self.is_matching_blocked =
            self.overload_reason(AckLevel::Durable).is_some() || self.services.allocate_fences(1).is_err();
        if self.is_matching_blocked {
            return None;
        }
        while let Some(&worker) = self.freed.front() {
            let offer: Option<WorkerOffer> = self.shard.offer(worker, self.now_ms);
            // A reservation that ends frees its worker once more.
            self.shard.take_freed(&mut self.freed);
            if self.shard.has_void_reservations() {
                self.report_void_reservations();
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
