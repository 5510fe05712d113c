//! Matching: whatever came free at a shard is offered to the claims that wait.

use super::least_demand::{FreeAmounts, LeastDemand};
use super::queued_claim::QueuedClaim;
use super::wait_queue::{OfferVerdict, QueueWalk, WalkOracle, WalkOutcome};
use crate::admission::dispatch::ClaimDispatcher;
use crate::admission::pool_registry::Pool;
use crate::admission::tenant::Tenant;
use crate::engine::{ClaimTarget, ReservationFate, WorkerOffer};
use crate::shard::{ClaimCall, FreedMatch, RunOrigin};

/// Claims as a walk for one worker of a shard asks them.
struct OfferOracle<'d> {
    dispatch: &'d ClaimDispatcher,
    pool: &'d Pool,
    from: RunOrigin,
    offer: &'d WorkerOffer,
    /// Call of the claim that took the worker.
    call: Option<ClaimCall>,
}

impl WalkOracle for OfferOracle<'_> {
    fn may_charge(&mut self, tenant: &Tenant, least: &LeastDemand) -> bool {
        tenant.has_headroom(|headroom| least.may_fit_quota(headroom))
    }

    fn offer(&mut self, claim: &QueuedClaim) -> OfferVerdict {
        let target = Some(ClaimTarget::Worker(self.offer.worker, ReservationFate::Ends));
        let (verdict, call) = self.dispatch.keys.offer(claim, self.from.shard, self.from.now_ms, |item| {
            item.enter_pool(self.pool);
            item.tried_shards.insert(self.from.shard.shard);
            item.call_for(claim.class.constraints.as_ref(), target)
        });
        self.call = call;
        verdict
    }
}

impl ClaimDispatcher {
    /// Finds the claim that takes something of a worker, or the reservation under which it is kept.
    pub(crate) fn match_offer(&self, from: RunOrigin, offer: &WorkerOffer) -> Option<FreedMatch> {
        let pools = self.pools.load();
        let pool = pools.by_number(from.shard.pool)?;
        let free = FreeAmounts::of(offer);
        // Whether anything is reserved at all is known without the lock, too.
        let may_reserve = pool.wait_queue.lowest_reserved_priority().is_some();
        if !may_reserve && !pool.wait_queue.may_serve(&free) {
            return None;
        }
        let mut oracle = OfferOracle { dispatch: self, pool, from, offer, call: None };
        let mut walk = QueueWalk::default();
        loop {
            // Taken anew for each part of a walk: it must not hold up others for long.
            let mut queue = pool.wait_queue.lock();
            queue.refresh_shares(&pool.board.total());
            match queue.queue.walk(&mut walk, offer, &mut oracle) {
                // A claim may stand still before the walk goes on, and what it was passed over for is not visited again.
                WalkOutcome::Unfinished => queue.queue.note_unmatched(from.shard.shard, offer),
                WalkOutcome::Nobody => {
                    let reservations = &mut queue.queue.reservations;
                    reservations.note_held_free(from.shard.shard, offer);
                    let number = reservations.hold_for_gang(from.shard.shard, offer);
                    let useless = reservations.end_if_too_short(offer, from.now_ms);
                    // One that is not known here keeps the worker from everybody for nobody.
                    let unknown = offer.reservation.filter(|number| !reservations.knows(*number));
                    if number.is_none() {
                        queue.queue.note_unmatched(from.shard.shard, offer);
                    }
                    drop(queue);
                    if let Some(number) = useless.or(unknown) {
                        pool.shards[from.shard.shard as usize].cancel_reservation(number);
                    }
                    return number.map(FreedMatch::Reserve);
                }
                WalkOutcome::Matched(claim) => {
                    claim.tenant.end_waiting(pool.number);
                    let mut call = oracle.call.take()?;
                    let shard = from.shard.shard;
                    if queue.queue.reservations.stays_beside(shard, offer, &claim) {
                        call.target = Some(Box::new(ClaimTarget::Worker(offer.worker, ReservationFate::Stays)));
                    } else {
                        queue.queue.reservations.end_of(shard, offer.worker);
                    }
                    return Some(FreedMatch::Claim(call));
                }
            }
        }
    }
}
