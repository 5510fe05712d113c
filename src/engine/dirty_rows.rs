//! What the journal takes of a shard: rows of workers that changed, all rows for a rewrite, and the shard's own row.

use smallvec::SmallVec;

use super::NIL;
use super::shard::{Shard, ShardHeader};
use crate::model::Millis;
use crate::model::unschedulable_bits;
use crate::persist::row::{self, ClaimRowRef, RowKind, ShardRow, WorkerRowRef};

impl Shard {
    /// Writes the rows of workers and gangs that changed since the last call and returns how many there were. The
    /// shard's own row is apart ([`Self::take_header`]): it changes with every grant, and a step carries only its last state.
    pub fn take_rows(&mut self, out: &mut Vec<u8>) -> usize {
        let mut dirty = std::mem::take(&mut self.dirty);
        let mut removed = std::mem::take(&mut self.removed);
        let rows = dirty.len() + removed.len();
        // Removals first: an id that was forgotten and registered again is there.
        for id in removed.drain(..) {
            row::put_deletion(out, RowKind::Worker, id.as_str());
        }
        for at in dirty.drain(..) {
            let worker = self.workers.get_mut(at);
            if std::mem::take(&mut worker.dirty) && self.workers.is_used(at) {
                self.put_row(at, out);
            }
        }
        (self.dirty, self.removed) = (dirty, removed);
        let mut rows = rows;
        for (id, there) in self.gangs.take_changed() {
            rows += 1;
            if there { row::put_gang(out, id) } else { row::put_gang_deletion(out, id) }
        }
        rows
    }

    /// The shard's own row, if it changed since the last call.
    pub fn take_header(&mut self) -> Option<ShardRow> {
        let head = self.header_row();
        (head != self.header_taken).then(|| {
            self.header_taken = head;
            head
        })
    }

    fn header_row(&self) -> ShardRow {
        ShardRow {
            fence_max: self.fence_max,
            memory_acks: self.header.memory_acks,
            reserve_ms: self.header.reserve_ms,
            unclean_stops: self.header.unclean_stops,
        }
    }

    /// Whether its own row says that claims are acknowledged from memory.
    #[must_use]
    pub const fn acks_from_memory(&self) -> bool {
        self.header.memory_acks
    }

    /// Says whether claims are acknowledged from memory from now on, and how long one of them may stay reserved. True
    /// if that is news: until the store has it, they must not be.
    pub fn set_memory_acks(&mut self, reserve_ms: Option<Millis>) -> bool {
        // Earlier claims may have been given more time, and may be lost yet.
        let head = ShardHeader {
            memory_acks: reserve_ms.is_some(),
            reserve_ms: self.header.reserve_ms.max(reserve_ms.unwrap_or(0)),
            ..self.header
        };
        let news = self.header != head;
        if news {
            self.header = head;
            self.seq += 1;
        }
        news
    }

    /// Whether [`Self::take_rows`] or [`Self::take_header`] has any.
    #[must_use]
    pub fn has_rows(&self) -> bool {
        !self.dirty.is_empty()
            || !self.removed.is_empty()
            || self.gangs.has_changed()
            || self.header_row() != self.header_taken
    }

    /// Forgets which rows changed, where no store wants them.
    pub fn discard_changes(&mut self) {
        self.removed.clear();
        if self.gangs.has_changed() {
            self.gangs.take_changed().for_each(drop);
        }
        self.header_taken = self.header_row();
        while let Some(at) = self.dirty.pop() {
            self.workers.get_mut(at).dirty = false;
        }
    }

    /// Writes all rows from ordinal `from` on until about `bytes` are written; returns where to go on, if anywhere.
    pub fn snapshot_rows(&self, from: u32, bytes: usize, out: &mut Vec<u8>) -> Option<u32> {
        for at in self.workers.iter_from(from) {
            if out.len() >= bytes {
                return Some(at);
            }
            self.put_row(at, out);
        }
        self.gangs.rows().for_each(|id| row::put_gang(out, id));
        row::put_shard(out, &self.header_row());
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
                gpu_mask: self.shared.as_ref().map_or(0, |shares| shares.gpu_mask(next)),
                spec: claim.spec.as_deref(),
                evicted: self.is_evicted(next),
                times: claim.times(),
            });
            next = self.shared.as_ref().map_or(NIL, |shares| shares.next_claim(next));
        }
        let life = self.liveness.get(at);
        let unvouched = worker.unschedulable_bits & unschedulable_bits::UNVERIFIED != 0;
        let state = WorkerRowRef {
            registration: self.workers.registration(at),
            version: worker.version,
            idle_seq: worker.idle_seq,
            affinity: worker.affinity,
            deleted: worker.deleted,
            claims: &claims,
            unschedulable_bits: worker.unschedulable_bits & unschedulable_bits::PERSISTED,
            vouched: self.header.unclean_stops - u64::from(unvouched),
            heartbeat_ttl_ms: life.ttl_ms,
            promised: life.promised_capacity.as_deref(),
        };
        row::put_worker(out, &state);
    }
}
