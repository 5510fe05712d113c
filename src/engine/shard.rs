//! Decides what each event does to a shard. Every change of a worker is recorded by [`Shard::record_change`], which
//! counts it, advances the sequence number and marks the worker's row dirty for the journal; nothing else does.

use std::collections::{BTreeSet, VecDeque};
use std::ops::Range;
use std::sync::Arc;

use super::NIL;
use super::accounting::CapacityAccounting;
use super::claims::gangs::GangTable;
use super::claims::timestamps::ClaimTimestamps;
use super::claims::{Claim, ClaimDisclosure, ClaimSlab};
use super::counters::ShardCounters;
use super::dirty_rows::RowChanges;
use super::effect::{ClaimGrant, Effect, EndReason, EngineReply};
use super::event::{ClaimHandle, ClaimTarget, Event};
use super::placement::bin_packing::ResourceAllocation;
use super::placement::constraints::{PlacementConstraints, PlacementFailure};
use super::placement::eviction::EvictionIndex;
use super::placement::idle_queue::IdleQueue;
use super::placement::offers::FreedWorkers;
use super::placement::reservations::WorkerReservations;
use super::placement::shared::SharedCapacity;
use super::shard_config::ShardConfig;
use super::timer_wheel::TimerWheel;
use super::workers::WorkerTable;
use super::workers::liveness::{LivenessTable, lookup_flags};
use crate::model::GangRef;
use crate::model::{ClaimState, Fence, Millis};
use crate::persist::row::ShardRow;

/// Shard of a pool: the only writer of its workers and claims.
#[derive(Debug)]
pub struct Shard {
    pub(super) config: ShardConfig,
    /// Wall clock minus engine time in milliseconds: dates claims.
    pub(super) unix_ahead_ms: i64,
    pub(super) changes: RowChanges,
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
    pub(super) evictions: EvictionIndex,
    pub(super) liveness: LivenessTable,
    /// Next deadline of each worker's liveness.
    pub(super) liveness_timers: TimerWheel,
    /// Workers without a claim that are unschedulable only because they are cordoned or draining.
    pub(super) drained: BTreeSet<u32>,
    /// Fences that the shard may have granted without a record before it was loaded.
    pub(super) lost_tail: Range<Fence>,
    /// Engine time from which unverified workers can be verified.
    pub(super) quarantine_until_ms: Millis,
    /// Row of the shard itself, with the highest fence that was granted or readopted here.
    pub(super) header: ShardRow,
    /// Shard row that the journal took last.
    pub(super) header_taken: ShardRow,
    /// Deleted workers, oldest first, each with the engine time at which it is forgotten.
    pub(super) tombstones: VecDeque<(Millis, u32)>,
    /// Workers of which something came free.
    pub(super) freed: FreedWorkers,
    pub(super) counters: ShardCounters,
    /// Number of times that the lifecycle counters were changed.
    pub(super) lifecycle_version: u64,
}

impl Shard {
    /// Creates an empty shard at sequence number 0.
    #[must_use]
    pub fn new(config: impl Into<ShardConfig>, now_ms: Millis) -> Self {
        let config = config.into();
        Self {
            unix_ahead_ms: 0,
            changes: RowChanges::starting_at(0),
            workers: WorkerTable::default(),
            claims: ClaimSlab::new(),
            idle_queue: IdleQueue::new(config.policy),
            timers: TimerWheel::new(now_ms),
            accounting: CapacityAccounting::default(),
            shared: SharedCapacity::new(&config),
            gangs: GangTable::default(),
            reservations: WorkerReservations::default(),
            evictions: EvictionIndex::default(),
            liveness: LivenessTable::default(),
            liveness_timers: TimerWheel::new(now_ms),
            drained: BTreeSet::new(),
            lost_tail: 0..0,
            quarantine_until_ms: 0,
            header: ShardRow::default(),
            header_taken: ShardRow::default(),
            tombstones: VecDeque::new(),
            freed: FreedWorkers::default(),
            counters: ShardCounters::default(),
            lifecycle_version: 0,
            config,
        }
    }

    /// Decides about one event and returns the reply, if the event asks for one. `now_ms` is monotonic time; `effects` is
    /// appended to and must be executed in order, before the reply is sent.
    pub fn handle_event(&mut self, event: Event, now_ms: Millis, effects: &mut Vec<Effect>) -> Option<EngineReply> {
        let reply = self.decide(event, now_ms, effects);
        #[cfg(debug_assertions)]
        self.assert_invariants();
        reply
    }

    #[inline(always)]
    fn decide(&mut self, event: Event, now_ms: Millis, effects: &mut Vec<Effect>) -> Option<EngineReply> {
        Some(match event {
            Event::Claim { id, fence, affinity, reserve_ms, ttl_ms, constraints, target } => {
                let ttl_ms = match self.effective_ttl(ttl_ms) {
                    Ok(ttl_ms) => ttl_ms,
                    Err(max_ms) => return Some(EngineReply::TtlTooLong { max_ms }),
                };
                // It may be confirmed at the last moment, and then needs its worker for that long.
                let until_ms = now_ms + reserve_ms + ttl_ms;
                match self.place_claim(affinity, fence, target.as_deref(), until_ms, constraints.as_deref()) {
                    Ok((worker, allocation)) => {
                        let gang = constraints.as_ref().and_then(|constraints| constraints.gang);
                        let (state, timestamps) = self.initial_state(reserve_ms, now_ms);
                        let claim = Claim {
                            id,
                            fence,
                            timestamps,
                            term_ms: saturating_millis(ttl_ms),
                            worker,
                            state,
                            reported: false,
                            disclosure: ClaimDisclosure::default(),
                            spec: constraints.and_then(|constraints| constraints.spec.clone()),
                        };
                        let grant = self.insert_grant(claim, affinity, allocation.as_ref(), gang);
                        if target.is_some() {
                            self.resume_reservation();
                        }
                        grant
                    }
                    Err(answer) => answer,
                }
            }
            Event::Release { handle } => self.release(handle, effects),
            Event::Reacquire { handle, pool, constraints } => {
                self.reacquire(handle, pool, constraints.as_deref(), effects)
            }
            Event::Confirm { handle } => self.confirm(handle, now_ms),
            Event::Get { handle } => self.disclose(handle),
            Event::ReplySent { handle, at_ms } => {
                self.note_reply_sent(handle, at_ms);
                return None;
            }
            Event::Rollback { handle } => {
                self.rollback(handle, effects);
                return None;
            }
            Event::Relinquish { handle } => {
                self.end_claim(handle, EndReason::RolledBack, effects);
                return None;
            }
            Event::Tick => {
                self.expire_due(now_ms, effects);
                return None;
            }
            Event::Reserve { id, constraints, evict, until_ms } => {
                self.reserve_worker(id, &constraints, evict, until_ms, now_ms)
            }
            Event::CancelReservation { id } => {
                self.cancel_reservation(id);
                return None;
            }
            Event::Renew { handle, ttl_ms } => self.renew(handle, ttl_ms, now_ms),
            Event::Resize { handle, resources } => self.resize(handle, resources),
            Event::Gang { id, action } => self.apply_gang_action(id, action, effects),
            Event::BeginRelease { handle, releasing_ms } => self.begin_release(handle, releasing_ms, now_ms),
            Event::Heartbeat { id, heartbeat } => self.heartbeat(&id, heartbeat, now_ms, effects),
            Event::WorkerCommand { id, command } => self.apply_command(&id, command, now_ms),
            Event::ClearAll => self.clear_all(now_ms),
            Event::Register { spec, ends_ms, claims, ttl_ms } => {
                self.register(spec, ends_ms, claims, ttl_ms, now_ms, effects)
            }
            Event::Delete { id } => self.delete(&id, now_ms, effects),
        })
    }

    /// Picks the worker of a claim, with the allocation on it in a shared pool, or the reply if there is none.
    #[inline(always)]
    fn place_claim(
        &mut self,
        affinity: u64,
        fence: Fence,
        target: Option<&ClaimTarget>,
        until_ms: Millis,
        constraints: Option<&PlacementConstraints>,
    ) -> Result<(u32, Option<ResourceAllocation>), EngineReply> {
        if let Some(target) = target {
            return self.place_on_target(*target, constraints, until_ms);
        }
        match self.shared {
            None => self.take_worker(affinity, fence, until_ms, constraints).map(|worker| (worker, None)),
            Some(_) => self.allocate_shared(until_ms, constraints),
        }
    }

    /// State and times of a new claim.
    #[inline(always)]
    fn initial_state(&self, reserve_ms: Millis, now_ms: Millis) -> (ClaimState, ClaimTimestamps) {
        let at_ms = self.unix_ms(now_ms);
        match saturating_millis(reserve_ms) {
            0 => (ClaimState::Active, ClaimTimestamps::active(at_ms)),
            reserve_ms => (ClaimState::Reserved, ClaimTimestamps::reserved(Some(at_ms), reserve_ms)),
        }
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
        constraints: Option<&PlacementConstraints>,
    ) -> Result<u32, EngineReply> {
        let worker = self.pick_worker(affinity, fence, until_ms, constraints)?;
        self.idle_queue.remove(self.workers.hot_mut(), worker);
        Ok(worker)
    }

    /// Picks a worker for a claim without removing it.
    pub(super) fn pick_worker(
        &mut self,
        affinity: u64,
        fence: Fence,
        until_ms: Millis,
        constraints: Option<&PlacementConstraints>,
    ) -> Result<u32, EngineReply> {
        match constraints {
            Some(constraints) if !constraints.is_unconstrained() => {
                self.select(constraints, affinity, fence, until_ms).map_err(EngineReply::NotPlaced)
            }
            _ => match self.idle_queue.pick(self.workers.all(), affinity, fence, until_ms) {
                Some(worker) => Ok(worker),
                None => Err(EngineReply::NoCapacity),
            },
        }
    }

    /// Picks a worker with enough free resources and removes it from the idle queue.
    #[cold]
    pub(super) fn allocate_shared(
        &mut self,
        until_ms: Millis,
        constraints: Option<&PlacementConstraints>,
    ) -> Result<(u32, Option<ResourceAllocation>), EngineReply> {
        let unconstrained = PlacementConstraints::default();
        let constraints = constraints.unwrap_or(&unconstrained);
        let (worker, allocation) = self.select_allocation(constraints, until_ms).map_err(EngineReply::NotPlaced)?;
        self.record_request(constraints);
        if self.workers.get(worker).idle {
            self.idle_queue.remove(self.workers.hot_mut(), worker);
        }
        Ok((worker, Some(allocation)))
    }

    fn insert_grant(
        &mut self,
        claim: Claim,
        affinity: u64,
        allocation: Option<&ResourceAllocation>,
        gang: Option<GangRef>,
    ) -> EngineReply {
        let Claim { fence, worker, state, term_ms, .. } = claim;
        let (timestamps, spec) = (claim.timestamps, claim.spec.clone());
        let claim = self.claims.insert(claim);
        let hot = self.workers.get_mut(worker);
        debug_assert!(!hot.idle && !hot.deleted, "Q1: a worker is granted that is still idle, or deleted");
        debug_assert!(allocation.is_some() || hot.claim == NIL, "L1: an exclusive worker is granted twice");
        hot.lookup_flags |= lookup_flags::GRANTED;
        let (is_first, usage_index) = (hot.claim == NIL, hot.usage_index);
        match allocation {
            None => {
                hot.claim = claim;
                hot.affinity = affinity;
            }
            Some(allocation) => self.attach_claim(claim, worker, allocation),
        }
        if is_first {
            self.accounting.occupy_idle(usage_index);
        }
        self.header.fence_max = self.header.fence_max.max(fence);
        if let Some(gang) = gang {
            self.gangs.add_member(claim, gang);
        }
        self.index_evictable(claim);
        self.record_change_in_batch(worker);
        EngineReply::Granted(ClaimGrant {
            handle: ClaimHandle { claim, worker, fence },
            worker: Arc::clone(self.workers.registration(worker)),
            state,
            term_ms: term_ms.into(),
            deadline_ms: None,
            spec,
            gpu_mask: allocation.map(|allocation| allocation.gpu_mask),
            evicted: false,
            timestamps,
        })
    }

    /// Selects a worker for a claim with constraints.
    #[cold]
    fn select(
        &mut self,
        constraints: &PlacementConstraints,
        affinity: u64,
        fence: Fence,
        until_ms: Millis,
    ) -> Result<u32, PlacementFailure> {
        if let Some(id) = &constraints.worker {
            let at = self
                .workers
                .find(id)
                .filter(|&at| !self.workers.get(at).deleted)
                .ok_or(PlacementFailure::UnknownWorker)?;
            let (worker, spec) = (self.workers.get(at), &self.workers.registration(at).spec);
            let offered = worker.idle && self.outlives(at, until_ms);
            return match (constraints.is_large_enough(&spec.capacity), constraints.allows(spec), offered) {
                (false, ..) => Err(PlacementFailure::TooSmall),
                (true, true, true) => Ok(at),
                (true, false, true) if constraints.fits_ignoring_node(spec) => Err(PlacementFailure::OtherNode),
                _ => Err(PlacementFailure::Busy),
            };
        }
        match self.idle_queue.select(self.workers.all(), constraints, affinity, fence, until_ms) {
            Some(worker) => Ok(worker),
            None if constraints.nodes.is_empty() => Err(PlacementFailure::Busy),
            None if self.idle_queue.fits_ignoring_node(self.workers.all(), constraints, until_ms) => {
                Err(PlacementFailure::OtherNode)
            }
            None => Err(PlacementFailure::Busy),
        }
    }

    /// Records a change of a worker, but only the first within a batch.
    pub(super) fn record_change_in_batch(&mut self, at: u32) {
        self.changes.record_worker_in_batch(&mut self.workers, at);
    }

    /// Records a change of a worker: one sequence number, one dirty row.
    pub(super) fn record_change(&mut self, at: u32) {
        self.changes.record_worker(&mut self.workers, at);
    }

    /// Begins a batch of claims, which lasts until [`Self::end_batch`]: each worker is recorded once.
    pub const fn begin_batch(&mut self) {
        self.changes.begin_batch();
    }

    /// Ends the batch that [`Self::begin_batch`] began.
    pub const fn end_batch(&mut self) {
        self.changes.end_batch();
    }
}

/// Duration as a claim stores it. The edges limit durations to what fits.
pub(super) fn saturating_millis(ms: Millis) -> u32 {
    u32::try_from(ms).unwrap_or(u32::MAX)
}
