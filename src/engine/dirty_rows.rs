//! Rows for the journal: those of changed workers and gangs, a snapshot of all, and the shard's own row.

use smallvec::SmallVec;

use super::NIL;
use super::shard::Shard;
use super::workers::WorkerTable;
use crate::model::unschedulable_bits;
use crate::model::{Millis, Seq, WorkerId};
use crate::persist::row::{self, ClaimRowRef, RowKind, ShardRow, WorkerRowRef};

/// Changes of a shard: the sequence number of the last, and the rows that the journal has not taken. A worker's version
/// and its dirty flag change here only.
#[derive(Debug)]
pub struct RowChanges {
    seq: Seq,
    /// Number of changes of workers.
    worker_updates: u64,
    /// Workers whose row changed since the journal last took it.
    dirty: Vec<u32>,
    /// Ids whose rows were deleted since then.
    removed: Vec<WorkerId>,
    recording: RowRecording,
    /// Sequence number at which a batch of claims began: a worker that changed since is not recorded again. `Seq::MAX`: no
    /// batch.
    batch_start_seq: Seq,
}

/// Whether changed rows are noted for a journal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum RowRecording {
    On,
    Off,
}

impl RowChanges {
    /// Starts after the change with this sequence number.
    pub const fn starting_at(seq: Seq) -> Self {
        Self {
            seq,
            worker_updates: 0,
            dirty: Vec::new(),
            removed: Vec::new(),
            recording: RowRecording::On,
            batch_start_seq: Seq::MAX,
        }
    }

    /// Sequence number of the last change.
    pub const fn seq(&self) -> Seq {
        self.seq
    }

    /// Number of changes of workers so far.
    pub const fn worker_updates(&self) -> u64 {
        self.worker_updates
    }

    /// Records a change of something other than a worker.
    pub const fn record(&mut self) {
        self.seq += 1;
    }

    /// Records a change of a worker: one sequence number, one dirty row.
    pub fn record_worker(&mut self, workers: &mut WorkerTable, at: u32) {
        self.seq += 1;
        self.worker_updates += 1;
        if workers.get_mut(at).mark_changed(self.seq) && self.recording == RowRecording::On {
            self.dirty.push(at);
        }
        debug_assert!(self.worker_updates <= self.seq, "V1: every change of a worker has its sequence number");
    }

    /// Records a change of a worker, but only the first within a batch.
    pub fn record_worker_in_batch(&mut self, workers: &mut WorkerTable, at: u32) {
        if workers.get(at).version() <= self.batch_start_seq {
            self.record_worker(workers, at);
        }
    }

    /// Records the deletion of a worker's row.
    pub fn record_removal(&mut self, id: WorkerId) {
        if self.recording == RowRecording::On {
            self.removed.push(id);
        }
    }

    /// Begins a batch, which lasts until [`Self::end_batch`].
    pub const fn begin_batch(&mut self) {
        debug_assert!(self.batch_start_seq == Seq::MAX, "B03: batches do not nest");
        self.batch_start_seq = self.seq;
    }

    /// Ends a batch of rows.
    pub const fn end_batch(&mut self) {
        self.batch_start_seq = Seq::MAX;
    }

    const fn has_rows(&self) -> bool {
        !self.dirty.is_empty() || !self.removed.is_empty()
    }
}

impl Shard {
    /// Writes the rows of workers and gangs that changed since the last call and returns their number. The shard's
    /// own row is separate ([`Self::take_header`]): it changes with every grant, and a write batch carries only its
    /// last state.
    pub fn take_rows(&mut self, out: &mut Vec<u8>) -> usize {
        let mut dirty = std::mem::take(&mut self.changes.dirty);
        let mut removed = std::mem::take(&mut self.changes.removed);
        let rows = dirty.len() + removed.len();
        // Deletions first: an id that was forgotten and registered again exists.
        for id in removed.drain(..) {
            row::put_deletion(out, RowKind::Worker, id.as_str());
        }
        for at in dirty.drain(..) {
            if self.workers.get_mut(at).take_dirty() && self.workers.is_used(at) {
                self.put_row(at, out);
            }
        }
        (self.changes.dirty, self.changes.removed) = (dirty, removed);
        debug_assert!(!self.changes.has_rows(), "V1: a taken row is still marked as changed");
        let mut rows = rows;
        for (id, there) in self.gangs.take_changed() {
            rows += 1;
            if there { row::put_gang(out, id) } else { row::put_gang_deletion(out, id) }
        }
        rows
    }

    /// Takes the shard's own row, if it changed since the last call.
    pub fn take_header(&mut self) -> Option<ShardRow> {
        (self.header != self.header_taken).then(|| {
            self.header_taken = self.header;
            self.header
        })
    }

    /// Whether the shard's row says that claims are acknowledged from memory.
    #[must_use]
    pub const fn acks_from_memory(&self) -> bool {
        self.header.memory_acks
    }

    /// Sets whether claims are acknowledged from memory, and for how long one of them may stay reserved. True if the
    /// row changed: until it is stored, they must not be.
    pub fn set_memory_acks(&mut self, reserve_ms: Option<Millis>) -> bool {
        // Earlier claims may have longer reservations, and may still be lost.
        let header = ShardRow {
            memory_acks: reserve_ms.is_some(),
            reserve_ms: self.header.reserve_ms.max(reserve_ms.unwrap_or(0)),
            ..self.header
        };
        let changed = self.header != header;
        if changed {
            self.header = header;
            self.changes.record();
        }
        changed
    }

    /// Whether [`Self::take_rows`] or [`Self::take_header`] has something to write.
    #[must_use]
    pub fn has_rows(&self) -> bool {
        self.changes.has_rows() || self.gangs.has_changed() || self.header != self.header_taken
    }

    /// Stops noting which rows changed, for shards without a store.
    pub fn stop_recording_rows(&mut self) {
        self.changes.recording = RowRecording::Off;
        self.discard_changes();
    }

    /// Whether rows of gangs changed, which are noted in any case.
    #[must_use]
    pub fn has_changed_gangs(&self) -> bool {
        self.gangs.has_changed()
    }

    /// Discards the record of changed rows.
    pub fn discard_changes(&mut self) {
        self.changes.removed.clear();
        if self.gangs.has_changed() {
            self.gangs.take_changed().for_each(drop);
        }
        self.header_taken = self.header;
        while let Some(at) = self.changes.dirty.pop() {
            self.workers.get_mut(at).take_dirty();
        }
    }

    /// Writes rows from ordinal `from` on until about `bytes` are written; returns the ordinal to continue at, if
    /// any.
    pub fn snapshot_rows(&self, from: u32, bytes: usize, out: &mut Vec<u8>) -> Option<u32> {
        for at in self.workers.iter_from(from) {
            if out.len() >= bytes {
                return Some(at);
            }
            self.put_row(at, out);
        }
        self.gangs.rows().for_each(|id| row::put_gang(out, id));
        row::put_shard(out, &self.header);
        None
    }

    fn put_row(&self, at: u32, out: &mut Vec<u8>) {
        let worker = self.workers.get(at);
        let mut claims: SmallVec<[ClaimRowRef<'_>; 1]> = SmallVec::new();
        let mut next = worker.claim;
        while let Some(claim) = self.claims.by_ordinal(next) {
            claims.push(ClaimRowRef {
                id: &claim.id,
                fence: claim.fence,
                state: claim.state,
                reserve_ms: claim.reserve_ms().into(),
                term_ms: claim.term_ms.into(),
                reported: claim.reported,
                gang: self.gangs.gang_of(next),
                gpu_mask: self.shared.as_ref().map_or(0, |shared| shared.gpu_mask(next)),
                spec: claim.spec.as_deref(),
                evicted: self.is_evicted(next),
                times: claim.times(),
            });
            next = self.shared.as_ref().map_or(NIL, |shared| shared.next_claim(next));
        }
        let life = self.liveness.get(at);
        assert!(claims.len() <= crate::limits::WORKER_CLAIMS_MAX as usize, "L2: a row has more claims than the limit");
        let unverified = worker.unschedulable_bits & unschedulable_bits::UNVERIFIED != 0;
        debug_assert!(self.header.unclean_stops >= u64::from(unverified), "V1: a worker is unverified without a stop");
        let state = WorkerRowRef {
            registration: self.workers.registration(at),
            version: worker.version(),
            idle_seq: worker.idle_seq,
            affinity: worker.affinity,
            deleted: worker.deleted,
            claims: &claims,
            unschedulable_bits: worker.unschedulable_bits & unschedulable_bits::PERSISTED,
            verified_at_stop: self.header.unclean_stops - u64::from(unverified),
            heartbeat_ttl_ms: life.ttl_ms,
            promised: life.promised_capacity.as_deref(),
        };
        row::put_worker(out, &state);
    }
}
