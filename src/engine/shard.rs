//! Decides what each event does to a shard. Every change of a worker is recorded by [`Shard::record_change`], which
//! counts it, advances the sequence number and marks the worker's row dirty for the journal; nothing else does.

use std::collections::{BTreeSet, VecDeque};
use std::ops::Range;
use std::sync::Arc;

use super::NIL;
use super::accounting::CapacityAccounting;
use super::claims::gangs::GangTable;
use super::claims::timestamps::ClaimTimestamps;
use super::claims::{Claim, ClaimSlab, DisclosureFlags};
use super::counters::ShardCounters;
use super::effect::{ClaimGrant, Effect, EndReason, EngineReply};
use super::event::{ClaimHandle, Event};
use super::placement::bin_packing::ResourceAllocation;
use super::placement::constraints::{PlacementConstraints, PlacementFailure};
use super::placement::idle_queue::IdleQueue;
use super::placement::reservations::WorkerReservations;
use super::placement::shared::SharedCapacity;
use super::shard_config::ShardConfig;
use super::timer_wheel::TimerWheel;
use super::workers::WorkerTable;
use super::workers::conditions::{LivenessTable, UnschedulableSummary, notes};
use crate::model::GangRef;
use crate::model::{ClaimState, Fence, Millis, Seq, WorkerId};
use crate::persist::row::ShardRow;

/// Shard of a pool: the only writer of its workers and claims.
#[derive(Debug)]
pub struct Shard {
    pub(super) config: ShardConfig,
    /// Wall clock minus engine time in milliseconds: dates claims.
    pub(super) unix_ahead_ms: i64,
    pub(super) seq: Seq,
    pub(super) workers: WorkerTable,
    pub(super) claims: ClaimSlab,
    pub(super) idle_queue: IdleQueue,
    /// Deadlines of claims, by ordinal.
    pub(super) timers: TimerWheel,
    pub(super) accounting: CapacityAccounting,
    /// Free resources of workers in a shared pool. None: exclusive pool, claims take whole workers.
    pub(super) shared: Option<Box<SharedCapacity>>,
    pub(super) gangs: GangTable,
    pub(super) reservations: WorkerReservations,
    pub(super) liveness: LivenessTable,
    /// Next deadline of each worker's liveness.
    pub(super) liveness_timers: TimerWheel,
    /// Number of workers that are not deleted.
    pub(super) worker_count: usize,
    pub(super) unschedulable: UnschedulableSummary,
    /// Version of `unschedulable`: it is published when this has changed.
    pub(super) unschedulable_version: u64,
    /// Workers without a claim that are unschedulable only because they are cordoned or draining.
    pub(super) drained: BTreeSet<u32>,
    /// Highest fence that was granted or readopted here.
    pub(super) fence_max: Fence,
    /// Fences that the shard may have granted without a record before it was loaded.
    pub(super) lost_tail: Range<Fence>,
    /// Engine time from which unverified workers can be verified.
    pub(super) quarantine_until_ms: Millis,
    /// Contents of the shard's own row beside `fence_max`.
    pub(super) header: ShardHeader,
    /// Shard row that the journal took last.
    pub(super) header_taken: ShardRow,
    /// Deleted workers, oldest first, each with the engine time at which it is forgotten.
    pub(super) tombstones: VecDeque<(Millis, u32)>,
    /// Workers whose row changed since the journal last took it.
    pub(super) dirty: Vec<u32>,
    /// Ids whose rows were deleted since then.
    pub(super) removed: Vec<WorkerId>,
    /// Sequence number at which a batch of claims began: a worker that changed since is not recorded again.
    /// `Seq::MAX`: no batch.
    batch_start_seq: Seq,
    /// Number of times that capacity became free.
    pub(super) capacity_epoch: u64,
    /// Number of workers with claims.
    pub(super) busy: usize,
    pub(super) counters: ShardCounters,
}

/// Facts about the shard as a whole that are stored in its own row.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct ShardHeader {
    /// True if claims are acknowledged from memory, so that an unclean stop may lose some.
    pub memory_acks: bool,
    /// Longest time for which a lost reservation may still be confirmed, in milliseconds.
    pub reserve_ms: Millis,
    /// Number of stops that may have lost claims. A worker that was verified since the last is trusted.
    pub unclean_stops: u64,
}

impl Shard {
    /// Creates an empty shard at sequence number 0.
    #[must_use]
    pub fn new(config: impl Into<ShardConfig>, now_ms: Millis) -> Self {
        let config = config.into();
        Self {
            unix_ahead_ms: 0,
            seq: 0,
            workers: WorkerTable::default(),
            claims: ClaimSlab::new(),
            idle_queue: IdleQueue::new(config.policy),
            timers: TimerWheel::new(now_ms),
            accounting: CapacityAccounting::default(),
            shared: SharedCapacity::new(&config),
            gangs: GangTable::default(),
            reservations: WorkerReservations::default(),
            liveness: LivenessTable::default(),
            liveness_timers: TimerWheel::new(now_ms),
            worker_count: 0,
            unschedulable: UnschedulableSummary::default(),
            unschedulable_version: 0,
            drained: BTreeSet::new(),
            fence_max: 0,
            lost_tail: 0..0,
            quarantine_until_ms: 0,
            header: ShardHeader::default(),
            header_taken: ShardRow::default(),
            tombstones: VecDeque::new(),
            dirty: Vec::new(),
            removed: Vec::new(),
            batch_start_seq: Seq::MAX,
            capacity_epoch: 0,
            busy: 0,
            counters: ShardCounters::default(),
            config,
        }
    }

    /// Decides about one event. `now_ms` is monotonic time; `effects` is appended to and must be executed in order.
    pub fn handle_event<R>(&mut self, event: Event<R>, now_ms: Millis, effects: &mut Vec<Effect<R>>) {
        match event {
            Event::Claim { id, fence, affinity, reserve_ms, ttl_ms, wants, reservation_ticket: promise, to } => {
                let ttl_ms = match self.effective_ttl(ttl_ms) {
                    Ok(ttl_ms) => ttl_ms,
                    Err(max_ms) => {
                        return effects.push(Effect::Reply { to, answer: EngineReply::TtlTooLong { max_ms } });
                    }
                };
                // It may be confirmed at the last moment, and then needs its worker for that long.
                let until_ms = now_ms + reserve_ms + ttl_ms;
                let redeemed =
                    if promise > 0 { self.redeem_reservation(promise, wants.as_deref(), until_ms) } else { None };
                let taken = match self.shared {
                    _ if redeemed.is_some() => redeemed.unwrap_or(Err(EngineReply::NoCapacity)),
                    None => self.take_worker(affinity, fence, until_ms, wants.as_deref()).map(|worker| (worker, None)),
                    Some(_) => self.allocate_share(until_ms, wants.as_deref()),
                };
                let gang = wants.as_ref().and_then(|wants| wants.gang);
                let answer = match taken {
                    Ok((worker, share)) => {
                        let spec = wants.and_then(|wants| wants.spec.clone());
                        let at_ms = self.unix_ms(now_ms);
                        let (state, stamps) = match saturating_millis(reserve_ms) {
                            0 => (ClaimState::Active, ClaimTimestamps::active(at_ms)),
                            reserve_ms => (ClaimState::Reserved, ClaimTimestamps::reserved(Some(at_ms), reserve_ms)),
                        };
                        let claim = Claim {
                            id,
                            fence,
                            timestamps: stamps,
                            term_ms: saturating_millis(ttl_ms),
                            worker,
                            state,
                            confirmed: false,
                            reported: false,
                            disclosure: DisclosureFlags::default(),
                            spec,
                        };
                        self.insert_grant(claim, affinity, share.as_ref(), gang)
                    }
                    Err(answer) => answer,
                };
                effects.push(Effect::Reply { to, answer });
            }
            Event::Release { place, to } => {
                self.release(place, effects);
                effects.push(Effect::Reply { to, answer: EngineReply::Released });
            }
            Event::Reacquire { place, satisfies, wants, to } => {
                let answer = self.reacquire(place, satisfies, wants.as_deref(), effects);
                effects.push(Effect::Reply { to, answer });
            }
            Event::Confirm { place, to } => {
                let answer = self.confirm(place, now_ms);
                effects.push(Effect::Reply { to, answer });
            }
            Event::Get { place, to } => {
                let answer = self.disclose(place);
                effects.push(Effect::Reply { to, answer });
            }
            Event::ReplySent { place, at_ms } => self.reply_sent(place, at_ms),
            Event::Rollback { place } => self.rollback(place, effects),
            Event::Relinquish { place } => {
                self.end_claim(place, EndReason::RolledBack, effects);
            }
            Event::Tick => self.expire_due(now_ms, effects),
            Event::Reserve { ticket, wants, evict, until_ms, to } => {
                let answer = self.reserve_worker(ticket, &wants, evict, until_ms, now_ms);
                effects.push(Effect::Reply { to, answer });
            }
            Event::CancelReservation { ticket } => self.cancel_reservation(ticket),
            Event::Renew { place, ttl_ms, to } => {
                let answer = self.renew(place, ttl_ms, now_ms);
                effects.push(Effect::Reply { to, answer });
            }
            Event::Resize { place, resources, to } => {
                let answer = self.resize(place, resources);
                effects.push(Effect::Reply { to, answer });
            }
            Event::Gang { id, action: act, to } => {
                let answer = self.apply_gang_action(id, act, effects);
                effects.push(Effect::Reply { to, answer });
            }
            Event::BeginRelease { place, releasing_ms, to } => {
                self.begin_release(place, releasing_ms, now_ms);
                effects.push(Effect::Reply { to, answer: EngineReply::Released });
            }
            Event::Heartbeat { id, beat, to } => {
                let answer = self.heartbeat(&id, beat, now_ms, effects);
                effects.push(Effect::Reply { to, answer });
            }
            Event::WorkerCommand { id, command: verb, to } => {
                let answer = self.apply_command(&id, verb, now_ms);
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

    /// Prefetches what the next events will read: the claims at `handles`, and workers warm for `affinities`. Changes
    /// nothing. On a large fleet each read is a cache miss, and reading many in a row lets the misses overlap: first
    /// what is reached directly, then what lies behind it.
    pub fn prefetch(&self, handles: impl Iterator<Item = ClaimHandle> + Clone, affinities: impl Iterator<Item = u64>) {
        let first = handles.clone().fold(0, |sum: u64, handle| {
            let claim = self.claims.by_ordinal(handle.claim).map_or(0, |claim| claim.fence);
            sum.wrapping_add(claim).wrapping_add(self.workers.prefetch(handle.worker))
        });
        let first =
            affinities.fold(first, |sum, affinity| sum.wrapping_add(self.idle_queue.warm_head(affinity).into()));
        let behind = handles.fold(0, |sum: u64, handle| {
            let bucket = self.idle_queue.warm_head(self.workers.prefetch(handle.worker));
            sum.wrapping_add(bucket.into()).wrapping_add(self.workers.prefetch_registration(handle.worker) as u64)
        });
        std::hint::black_box((first, behind));
    }

    /// Picks a worker for a claim and removes it from the idle queue.
    fn take_worker(
        &mut self,
        affinity: u64,
        fence: Fence,
        until_ms: Millis,
        wants: Option<&PlacementConstraints>,
    ) -> Result<u32, EngineReply> {
        let worker = self.pick_worker(affinity, fence, until_ms, wants)?;
        self.idle_queue.remove(self.workers.hot_mut(), worker);
        Ok(worker)
    }

    /// Picks a worker for a claim without removing it.
    pub(super) fn pick_worker(
        &mut self,
        affinity: u64,
        fence: Fence,
        until_ms: Millis,
        wants: Option<&PlacementConstraints>,
    ) -> Result<u32, EngineReply> {
        match wants {
            Some(wants) if !wants.is_unconstrained() => {
                self.select(wants, affinity, fence, until_ms).map_err(EngineReply::NotPlaced)
            }
            _ => match self.idle_queue.pick(self.workers.all(), affinity, fence, until_ms) {
                Some(worker) => Ok(worker),
                None => Err(EngineReply::NoCapacity),
            },
        }
    }

    /// Picks a worker with enough free resources and removes it from the idle queue.
    #[cold]
    pub(super) fn allocate_share(
        &mut self,
        until_ms: Millis,
        wants: Option<&PlacementConstraints>,
    ) -> Result<(u32, Option<ResourceAllocation>), EngineReply> {
        let nothing = PlacementConstraints::default();
        let wants = wants.unwrap_or(&nothing);
        let (worker, share) = self.select_share(wants, until_ms).map_err(EngineReply::NotPlaced)?;
        self.record_request(wants);
        if self.workers.get(worker).idle {
            self.idle_queue.remove(self.workers.hot_mut(), worker);
        }
        Ok((worker, Some(share)))
    }

    fn insert_grant(
        &mut self,
        claim: Claim,
        affinity: u64,
        share: Option<&ResourceAllocation>,
        gang: Option<GangRef>,
    ) -> EngineReply {
        let Claim { fence, worker, state, term_ms, .. } = claim;
        let (stamps, spec) = (claim.timestamps, claim.spec.clone());
        let claim = self.claims.insert(claim);
        let hot = self.workers.get_mut(worker);
        hot.lookup_flags |= notes::GRANTED;
        let (free, line) = (hot.claim == NIL, hot.usage_index);
        match share {
            None => {
                hot.claim = claim;
                hot.affinity = affinity;
            }
            Some(share) => self.attach_claim(claim, worker, share),
        }
        if free {
            self.accounting.mark_held(line);
            self.busy += 1;
        }
        self.fence_max = self.fence_max.max(fence);
        if let Some(gang) = gang {
            self.gangs.add_member(claim, gang);
        }
        self.index_evictable(claim);
        self.record_change_in_batch(worker);
        let card = Arc::clone(self.workers.registration(worker));
        EngineReply::Granted(ClaimGrant {
            handle: ClaimHandle { claim, worker, fence },
            worker: card,
            state,
            term_ms: term_ms.into(),
            deadline_ms: None,
            spec,
            gpu_mask: share.map(|share| share.gpu_mask),
            evicted: false,
            timestamps: stamps,
        })
    }

    /// Selects a worker for a claim with constraints.
    #[cold]
    fn select(
        &mut self,
        wants: &PlacementConstraints,
        affinity: u64,
        fence: Fence,
        until_ms: Millis,
    ) -> Result<u32, PlacementFailure> {
        if let Some(id) = &wants.worker {
            let at = self
                .workers
                .find(id)
                .filter(|&at| !self.workers.get(at).deleted)
                .ok_or(PlacementFailure::UnknownWorker)?;
            let (worker, spec) = (self.workers.get(at), &self.workers.registration(at).spec);
            let offered = worker.idle && self.outlives(at, until_ms);
            return match (wants.is_large_enough(&spec.capacity), wants.allows(spec), offered) {
                (false, ..) => Err(PlacementFailure::TooSmall),
                (true, true, true) => Ok(at),
                (true, false, true) if wants.fits_ignoring_node(spec) => Err(PlacementFailure::OtherNode),
                _ => Err(PlacementFailure::Busy),
            };
        }
        match self.idle_queue.select(self.workers.all(), wants, affinity, fence, until_ms) {
            Some(worker) => Ok(worker),
            None if wants.nodes.is_empty() => Err(PlacementFailure::Busy),
            None if self.idle_queue.fits_ignoring_node(self.workers.all(), wants, until_ms) => {
                Err(PlacementFailure::OtherNode)
            }
            None => Err(PlacementFailure::Busy),
        }
    }

    /// Records a change of a worker, but only the first within a batch.
    pub(super) fn record_change_in_batch(&mut self, at: u32) {
        if self.workers.get(at).version <= self.batch_start_seq {
            self.record_change(at);
        }
    }

    /// Records a change of a worker: one sequence number, one dirty row.
    pub(super) fn record_change(&mut self, at: u32) {
        self.seq += 1;
        self.counters.worker_updates += 1;
        let worker = self.workers.get_mut(at);
        worker.version = self.seq;
        if !worker.dirty {
            worker.dirty = true;
            self.dirty.push(at);
        }
    }

    /// Begins a batch of claims, which lasts until [`Self::end_batch`]: each worker is recorded once.
    pub const fn begin_batch(&mut self) {
        self.batch_start_seq = self.seq;
    }

    /// Number of times that capacity became free: claims that found none before may find some now.
    #[must_use]
    pub const fn capacity_epoch(&self) -> u64 {
        self.capacity_epoch
    }

    /// Ends the batch that [`Self::begin_batch`] began.
    pub const fn end_batch(&mut self) {
        self.batch_start_seq = Seq::MAX;
    }
}

/// Duration as a claim stores it. The edges limit durations to what fits.
pub(super) fn saturating_millis(ms: Millis) -> u32 {
    u32::try_from(ms).unwrap_or(u32::MAX)
}
