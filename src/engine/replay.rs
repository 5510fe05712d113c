//! How rows become a shard again. Rows are fed in the order in which they were written; a later one replaces an
//! earlier one of the same id. Invariant `V1`: replaying a shard's rows gives the shard, up to its deadlines, which
//! start anew in full.

use std::sync::Arc;

use super::NIL;
use super::claims::Claim;
use super::event::Place;
use super::shard::Shard;
use crate::limits;
use crate::model::{ClaimId, Millis, Policy, Seq, WorkerCard, WorkerId};
use crate::row::{self, Frames, RowKind, WorkerRow};

/// A shard in the making.
#[derive(Debug)]
pub struct Replay {
    shard: Shard,
    namespace: String,
    /// First thing that was wrong; the rest is read all the same, so that its keys are known.
    wrong: Option<String>,
}

impl Replay {
    /// Of a shard of a pool in `namespace`.
    #[must_use]
    pub fn new(policy: Policy, namespace: &str, now_ms: Millis) -> Self {
        Self { shard: Shard::new(policy, now_ms), namespace: namespace.into(), wrong: None }
    }

    /// Takes rows in. What cannot be read is remembered for [`Self::finish`].
    pub fn rows(&mut self, frames: &[u8]) {
        for frame in Frames::new(frames) {
            let taken = frame.map_err(|e| e.to_string()).and_then(|frame| match frame.kind {
                RowKind::Worker => self.worker(frame.id, frame.body),
                RowKind::Pool => Err("a pool's row among a shard's".into()),
            });
            if let Err(wrong) = taken {
                self.wrong.get_or_insert(wrong);
            }
        }
    }

    fn worker(&mut self, id: &str, body: Option<&[u8]>) -> Result<(), String> {
        let worker = WorkerId::new(id).map_err(|e| e.to_string())?;
        let known = self.shard.workers.find(&worker);
        let Some(body) = body else {
            if let Some(at) = known {
                self.clear(at);
                self.shard.workers.remove(at);
            }
            return Ok(());
        };
        let row = row::worker(id, body).map_err(|e| e.to_string())?;
        let spec = row.spec(id).map_err(|e| e.to_string())?;
        let line = self.shard.ledger.enter(&spec.capacity);
        let card = Arc::new(WorkerCard { spec });
        let at = match known {
            Some(at) => {
                self.clear(at);
                self.shard.workers.set_card(at, card);
                at
            }
            None => self.shard.workers.insert(card, line),
        };
        let hot = self.shard.workers.get_mut(at);
        hot.line = line;
        (hot.version, hot.idle_seq, hot.affinity, hot.deleted) = (row.version, row.idle_seq, row.affinity, row.deleted);
        if row.deleted {
            self.shard.ledger.leave(line);
        }
        self.claims(at, &row)
    }

    fn claims(&mut self, at: u32, row: &WorkerRow) -> Result<(), String> {
        let id = || self.shard.workers.card(at).spec.id.clone();
        if row.claims.len() > 1 || (row.deleted && !row.claims.is_empty()) {
            return Err(format!("L1: worker {} holds {} claims", id(), row.claims.len()));
        }
        let Some(claim) = row.claims.first() else { return Ok(()) };
        let key = ClaimId::new(&self.namespace, &claim.tenant, &claim.key)
            .map_err(|e| format!("worker {} holds a claim whose name is wrong: {e}", id()))?;
        if claim.fence == 0 || claim.fence > limits::FENCE_MAX {
            return Err(format!("worker {} holds a claim with fence {}", id(), claim.fence));
        }
        let line = self.shard.workers.get(at).line;
        let slot = self.shard.claims.insert(Claim {
            id: key,
            fence: claim.fence,
            reserve_ms: claim.reserve_ms,
            worker: at,
            active: claim.active,
            confirmed: claim.active,
            told: true,
            spec: claim.spec.as_ref().map(|spec| Arc::new(spec.spec())),
        });
        self.shard.workers.get_mut(at).claim = slot;
        self.shard.ledger.hold(line);
        Ok(())
    }

    /// Takes back what an earlier row of the worker said.
    fn clear(&mut self, at: u32) {
        let (claim, line, deleted) = {
            let hot = self.shard.workers.get_mut(at);
            (std::mem::replace(&mut hot.claim, NIL), hot.line, hot.deleted)
        };
        if claim != NIL {
            self.shard.claims.remove(claim);
            self.shard.ledger.free(line);
        }
        if !deleted {
            self.shard.ledger.leave(line);
        }
    }

    /// The shard at sequence number `at`, its deadlines counted from `now_ms`.
    ///
    /// # Errors
    /// What was wrong, with the shard as far as it could be read: it must not serve, but its keys are known.
    pub fn finish(mut self, at: Seq, now_ms: Millis) -> Result<Shard, (String, Box<Shard>)> {
        let shard = &mut self.shard;
        shard.seq = at;
        shard.idle.grow(shard.workers.hot_mut());
        let mut free: Vec<(Seq, u32)> = Vec::new();
        let mut dead: Vec<(Seq, u32)> = Vec::new();
        for worker in shard.workers.iter_from(0) {
            let hot = shard.workers.get(worker);
            if hot.version > at {
                self.wrong.get_or_insert(format!("V1: a row is of {}, the shard of {at}", hot.version));
            }
            if hot.deleted {
                dead.push((hot.version, worker));
            } else if hot.claim == NIL {
                free.push((hot.idle_seq, worker));
            }
        }
        free.sort_unstable();
        dead.sort_unstable();
        for (_, worker) in free {
            shard.idle.push(shard.workers.hot_mut(), worker);
        }
        shard.tombstones.extend(dead.into_iter().map(|(_, worker)| (now_ms + limits::TOMBSTONE_MS, worker)));
        let reserved: Vec<Place> = shard
            .claims
            .iter_from(0)
            .filter(|(_, claim)| !claim.active)
            .map(|(at, claim)| Place { claim: at, worker: claim.worker, fence: claim.fence })
            .collect();
        for place in reserved {
            if let Some(claim) = shard.claims.get(place) {
                shard.timers.set(place.claim, now_ms + claim.reserve_ms);
            }
        }
        match self.wrong.or_else(|| self.shard.check().err()) {
            None => Ok(self.shard),
            Some(wrong) => Err((wrong, Box::new(self.shard))),
        }
    }
}
