//! What the journal takes of a shard: rows of workers that changed, all rows for a rewrite, and the shard's own row.

use smallvec::SmallVec;

use super::NIL;
use super::shard::{Head, Shard};
use crate::model::Millis;
use crate::model::unschedulable_bits;
use crate::persist::row::{self, ClaimStateRef, RowKind, ShardRow, WorkerState};

impl Shard {
    /// Writes the rows of workers and gangs that changed since the last call and returns how many there were. The
    /// shard's own row is apart ([`Self::take_head`]): it changes with every grant, and a step carries only its last state.
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
            row::put_gang(out, id, there);
        }
        rows
    }

    /// The shard's own row, if it changed since the last call.
    pub fn take_head(&mut self) -> Option<ShardRow> {
        let head = self.head_row();
        (head != self.head_taken).then(|| {
            self.head_taken = head;
            head
        })
    }

    fn head_row(&self) -> ShardRow {
        ShardRow {
            fence_max: self.fence_max,
            memory: self.head.memory,
            reserve_ms: self.head.reserve_ms,
            unclean: self.head.unclean,
        }
    }

    /// Whether its own row says that claims are acknowledged from memory.
    #[must_use]
    pub const fn is_memory(&self) -> bool {
        self.head.memory
    }

    /// Says whether claims are acknowledged from memory from now on, and how long one of them may stay reserved. True
    /// if that is news: until the store has it, they must not be.
    pub fn set_memory(&mut self, reserve_ms: Option<Millis>) -> bool {
        // Earlier claims may have been given more time, and may be lost yet.
        let head = Head {
            memory: reserve_ms.is_some(),
            reserve_ms: self.head.reserve_ms.max(reserve_ms.unwrap_or(0)),
            ..self.head
        };
        let news = self.head != head;
        if news {
            self.head = head;
            self.seq += 1;
        }
        news
    }

    /// Whether [`Self::take_rows`] or [`Self::take_head`] has any.
    #[must_use]
    pub fn has_rows(&self) -> bool {
        !self.dirty.is_empty()
            || !self.removed.is_empty()
            || self.gangs.has_changed()
            || self.head_row() != self.head_taken
    }

    /// Forgets which rows changed, where no store wants them.
    pub fn drop_rows(&mut self) {
        self.removed.clear();
        if self.gangs.has_changed() {
            self.gangs.take_changed().for_each(drop);
        }
        self.head_taken = self.head_row();
        while let Some(at) = self.dirty.pop() {
            self.workers.get_mut(at).dirty = false;
        }
    }

    /// Writes all rows from ordinal `from` on until about `bytes` are written; returns where to go on, if anywhere.
    pub fn dump_rows(&self, from: u32, bytes: usize, out: &mut Vec<u8>) -> Option<u32> {
        for at in self.workers.iter_from(from) {
            if out.len() >= bytes {
                return Some(at);
            }
            self.put_row(at, out);
        }
        self.gangs.rows().for_each(|id| row::put_gang(out, id, true));
        row::put_shard(out, &self.head_row());
        None
    }

    fn put_row(&self, at: u32, out: &mut Vec<u8>) {
        let worker = self.workers.get(at);
        let mut claims: SmallVec<[ClaimStateRef<'_>; 1]> = SmallVec::new();
        let mut next = worker.claim;
        while let Some(claim) = self.claims.at(next) {
            claims.push(ClaimStateRef {
                id: &claim.id,
                fence: claim.fence,
                state: claim.state,
                reserve_ms: claim.reserve_ms().into(),
                term_ms: claim.term_ms.into(),
                named: claim.named,
                gang: self.gangs.of(next),
                cards: self.shares.as_ref().map_or(0, |shares| shares.cards(next)),
                spec: claim.spec.as_deref(),
                evicted: self.is_evicted(next),
                times: claim.times(),
            });
            next = self.shares.as_ref().map_or(NIL, |shares| shares.next(next));
        }
        let life = self.lives.get(at);
        let unvouched = worker.bars & unschedulable_bits::UNVOUCHED != 0;
        let state = WorkerState {
            card: self.workers.card(at),
            version: worker.version,
            idle_seq: worker.idle_seq,
            affinity: worker.affinity,
            deleted: worker.deleted,
            claims: &claims,
            bars: worker.bars & unschedulable_bits::STORED,
            vouched: self.head.unclean - u64::from(unvouched),
            heartbeat_ttl_ms: life.ttl_ms,
            promised: life.promised.as_deref(),
        };
        row::put_worker(out, &state);
    }
}
