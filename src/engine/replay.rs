//! How rows become a shard again. Rows are fed in the order in which they were written; a later one replaces an
//! earlier one of the same id. Invariant `V1`: replaying a shard's rows gives the shard, up to its deadlines, which
//! start anew in full.

use std::sync::Arc;

use super::NIL;
use super::claims::timestamps::ClaimStamps;
use super::claims::{Claim, Disclosed};
use super::event::Place;
use super::rules::Rules;
use super::shard::{Head, Shard, term};
use super::workers::conditions::notes;
use crate::limits;
use crate::model::GangRef;
use crate::model::unschedulable_bits;
use crate::model::{Capacity, ClaimId, ClaimState, ClaimTimes, Fence, Millis, Seq, WorkerCard, WorkerId};
use crate::persist::row::{self, ClaimRow, Frames, RowKind, ShardRow, WorkerRow};

/// Where a shard that was loaded goes on.
#[derive(Debug, Clone, Copy)]
pub struct Resume {
    /// Sequence number of its state.
    pub at: Seq,
    /// Engine time: its deadlines are counted from here.
    pub now_ms: Millis,
    /// The same moment in unix time: ends of life are counted from here.
    pub unix_ms: Millis,
    /// No fence above this was given out before this owner took over.
    pub floor: Fence,
    /// The owner before this one gave out none up to this.
    pub previous_floor: Fence,
    /// It was this owner's already and panicked: nothing that anybody was told of is lost.
    pub revived: bool,
}

/// A shard in the making.
#[derive(Debug)]
pub struct Replay {
    shard: Shard,
    namespace: String,
    head: ShardRow,
    /// Per ordinal what its row says that is not in the shard yet.
    vouched: Vec<u64>,
    /// First thing that was wrong; the rest is read all the same, so that its keys are known.
    wrong: Option<String>,
}

impl Replay {
    /// Of a shard of a pool in `namespace`.
    #[must_use]
    pub fn new(rules: impl Into<Rules>, namespace: &str, now_ms: Millis) -> Self {
        Self {
            shard: Shard::new(rules, now_ms),
            namespace: namespace.into(),
            head: ShardRow::default(),
            vouched: Vec::new(),
            wrong: None,
        }
    }

    /// Takes rows in. What cannot be read is remembered for [`Self::finish`].
    pub fn rows(&mut self, frames: &[u8]) {
        for frame in Frames::new(frames) {
            let taken = frame.map_err(|e| e.to_string()).and_then(|frame| match frame.kind {
                RowKind::Worker => self.worker(frame.id, frame.body),
                RowKind::Gang => match frame.id.parse() {
                    Ok(id) => {
                        self.shard.gangs.recover(id, frame.body.is_some());
                        Ok(())
                    }
                    Err(_) => Err(format!("a gang's row has the id {:?}", frame.id)),
                },
                RowKind::Pool | RowKind::Quota => Err("a row of the catalogue among a shard's".into()),
                RowKind::Shard => match frame.body.map(row::shard) {
                    Some(Ok(head)) => {
                        self.head = head;
                        Ok(())
                    }
                    Some(Err(wrong)) => Err(wrong.to_string()),
                    None => Err("the shard's own row is deleted".into()),
                },
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
                self.shard.lives.forget(at);
            }
            return Ok(());
        };
        let row = row::worker(id, body).map_err(|e| e.to_string())?;
        let spec = row.spec(id).map_err(|e| e.to_string())?;
        if self.shard.shares.as_mut().is_some_and(|shares| !shares.knows_model(&spec.capacity)) {
            return Err(format!("worker {id} has one of more than {} GPU models", limits::SHARD_MODELS_MAX));
        }
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
        hot.notes = 0;
        hot.bars = u8::try_from(row.bars).ok().filter(|stored| stored & !unschedulable_bits::STORED == 0).ok_or_else(
            || format!("W1: worker {id} is barred for reasons that this build does not know: {}", row.bars),
        )?;
        if row.deleted {
            self.shard.ledger.leave(line);
        }
        self.vouched.resize(self.vouched.len().max(at as usize + 1), 0);
        self.vouched[at as usize] = row.vouched;
        self.shard.lives.forget(at);
        if row.heartbeat_ttl_ms > 0 {
            self.shard.lives.get_mut(at).ttl_ms = row.heartbeat_ttl_ms;
        }
        if let Some(promised) = &row.promised {
            self.shard.lives.get_mut(at).promised = Some(Box::new(Capacity::from(promised)));
            self.shard.workers.get_mut(at).notes |= notes::OF_CLAIM;
        }
        self.claims(at, &row)
    }

    fn claims(&mut self, at: u32, row: &WorkerRow) -> Result<(), String> {
        let id = || self.shard.workers.card(at).spec.id.clone();
        let most = if self.shard.shares.is_some() { limits::WORKER_CLAIMS_MAX as usize } else { 1 };
        if row.claims.len() > most || (row.deleted && !row.claims.is_empty()) {
            return Err(format!("L1: worker {} holds {} claims", id(), row.claims.len()));
        }
        if !row.claims.is_empty() {
            self.shard.ledger.hold(self.shard.workers.get(at).line);
            self.shard.busy += 1;
        }
        // The first in the row is the head of the list: it comes last.
        row.claims.iter().rev().try_for_each(|claim| self.claim(at, claim))
    }

    fn claim(&mut self, at: u32, claim: &ClaimRow) -> Result<(), String> {
        let id = || self.shard.workers.card(at).spec.id.clone();
        let key = ClaimId::new(&self.namespace, &claim.tenant, &claim.key)
            .map_err(|e| format!("worker {} holds a claim whose name is wrong: {e}", id()))?;
        if claim.fence == 0 || claim.fence > limits::FENCE_MAX {
            return Err(format!("worker {} holds a claim with fence {}", id(), claim.fence));
        }
        let state = match (claim.active, claim.releasing) {
            (false, _) => ClaimState::Reserved,
            (true, false) => ClaimState::Active,
            (true, true) => ClaimState::Releasing,
        };
        let spec = claim.spec.as_ref().map(|spec| Arc::new(spec.spec()));
        let asked = spec.as_ref().and_then(|spec| spec.resources.gpu.as_ref()).map_or(0, |gpu| gpu.count);
        let shared = self.shard.shares.is_some();
        if shared && claim.cards.count_ones() != asked {
            return Err(format!("L2: a claim of worker {} asked for {asked} cards and holds {:b}", id(), claim.cards));
        }
        let stamps = match state {
            ClaimState::Reserved => ClaimStamps::reserved(claim.created_at_ms, term(claim.reserve_ms)),
            _ => ClaimStamps::begun(ClaimTimes::new(claim.created_at_ms, claim.activated_at_ms)),
        };
        let slot = self.shard.claims.insert(Claim {
            id: key,
            fence: claim.fence,
            stamps,
            term_ms: term(claim.term_ms),
            worker: at,
            state,
            confirmed: claim.active,
            named: claim.named,
            disclosed: Disclosed::ALL,
            spec,
        });
        if claim.evicted {
            self.shard.recall_evicted(slot);
        }
        if claim.gang > 0 {
            let shard =
                u16::try_from(claim.gang_shard).map_err(|_| format!("a gang's home is {}", claim.gang_shard))?;
            self.shard.gangs.join(slot, GangRef { id: claim.gang, pool: claim.gang_pool, shard });
        }
        if shared {
            self.shard.link_share(slot, at, claim.cards);
        } else {
            self.shard.workers.get_mut(at).claim = slot;
        }
        Ok(())
    }

    /// Takes back what an earlier row of the worker said.
    fn clear(&mut self, at: u32) {
        let (claim, line, deleted) = {
            let hot = self.shard.workers.get_mut(at);
            (std::mem::replace(&mut hot.claim, NIL), hot.line, hot.deleted)
        };
        if claim != NIL {
            self.shard.ledger.free(line);
            self.shard.busy -= 1;
        }
        let mut next = claim;
        while next != NIL {
            let claim = next;
            next = self.shard.shares.as_mut().map_or(NIL, |shares| shares.unlink(claim, at));
            self.shard.gangs.leave(claim);
            self.shard.forget_victim(claim);
            self.shard.claims.remove(claim);
        }
        if !deleted {
            self.shard.ledger.leave(line);
        }
    }

    /// What the shard remembers of itself; and whether the stop before this start may have lost claims.
    fn resume_head(&mut self, resume: Resume) {
        let (shard, head) = (&mut self.shard, &self.head);
        shard.seq = resume.at;
        shard.head_taken = *head;
        shard.fence_max = shard.claims.iter_from(0).map(|(_, claim)| claim.fence).fold(head.fence_max, Fence::max);
        // A claim in here may be one whose record was lost; later ones are of this owner. Earlier ones are of an owner
        // before the last, and what the last one granted of their keys may be lost too.
        let from = (shard.fence_max.max(resume.previous_floor) + 1).min(resume.floor + 1);
        shard.lost_tail = from..resume.floor + 1;
        shard.head = Head { memory: head.memory, reserve_ms: head.reserve_ms, unclean: head.unclean };
        if head.memory && !resume.revived {
            shard.head.unclean += 1;
            shard.seq += 1;
        }
    }

    /// What rows say of workers beside their claims. Every deadline starts anew in full.
    fn resume_lives(&mut self, resume: Resume) {
        let shard = &mut self.shard;
        let workers: Vec<u32> = shard.workers.iter_from(0).filter(|&at| !shard.workers.get(at).deleted).collect();
        for at in workers {
            let mut bars = shard.workers.get(at).bars;
            if self.vouched[at as usize] < shard.head.unclean {
                bars |= unschedulable_bits::UNVOUCHED;
                shard.settled_ms = resume.now_ms + self.head.reserve_ms;
            }
            if let Some(expires_at_ms) = shard.workers.card(at).spec.expires_at_ms {
                let left_ms = expires_at_ms.saturating_sub(resume.unix_ms);
                if left_ms == 0 {
                    bars |= unschedulable_bits::ENDED;
                } else {
                    shard.lives.get_mut(at).ends_ms = Some(resume.now_ms + left_ms);
                    shard.index_end(at);
                }
                shard.workers.get_mut(at).notes |= notes::ENDS;
            }
            shard.workers.get_mut(at).bars = bars;
            if shard.lives.get(at).ttl_ms > 0 && bars & unschedulable_bits::LOST == 0 {
                let life = shard.lives.get_mut(at);
                life.silent_at_ms = Some(resume.now_ms + life.ttl_ms);
            }
            shard.keep_lost(at, resume.now_ms);
            shard.schedule(at);
        }
    }

    /// The shard as it goes on: its deadlines start anew in full.
    ///
    /// # Errors
    /// What was wrong, with the shard as far as it could be read: it must not serve, but its keys are known.
    pub fn finish(mut self, resume: Resume) -> Result<Shard, (String, Box<Shard>)> {
        let Resume { at, now_ms, .. } = resume;
        self.resume_head(resume);
        self.resume_lives(resume);
        let shard = &mut self.shard;
        shard.idle.grow(shard.workers.hot_mut());
        let mut free: Vec<(Seq, u32)> = Vec::new();
        let mut dead: Vec<(Seq, u32)> = Vec::new();
        let mut rooms: Vec<u32> = Vec::new();
        for worker in shard.workers.iter_from(0) {
            let hot = shard.workers.get(worker);
            if hot.version > at {
                self.wrong.get_or_insert(format!("V1: a row is of {}, the shard of {at}", hot.version));
            }
            if hot.deleted {
                dead.push((hot.version, worker));
                continue;
            }
            shard.present += 1;
            rooms.push(worker);
            shard.barred.enter(hot.bars);
            shard.bar_changes += 1;
            if hot.claim == NIL {
                if hot.bars == 0 {
                    free.push((hot.idle_seq, worker));
                } else {
                    shard.ledger.bar(hot.line);
                    shard.barred.enter_free(hot.bars);
                }
            }
        }
        shard.drained = shard.workers.iter_from(0).filter(|&at| shard.is_drained(at)).collect();
        free.sort_unstable();
        dead.sort_unstable();
        for (_, worker) in free {
            shard.idle.push(shard.workers.hot_mut(), worker);
        }
        if shard.shares.is_some() {
            rooms.into_iter().for_each(|worker| shard.recount_room(worker));
        }
        shard.tombstones.extend(dead.into_iter().map(|(_, worker)| (now_ms + limits::TOMBSTONE_MS, worker)));
        let place = |(at, claim): (u32, &Claim)| Place { claim: at, worker: claim.worker, fence: claim.fence };
        let held: Vec<Place> = shard.claims.iter_from(0).map(place).collect();
        for place in held {
            shard.index_victim(place.claim);
            if !shard.is_provisional(place) {
                shard.start_stay(place, now_ms);
            }
        }
        match self.wrong.or_else(|| self.shard.check().err()) {
            None => Ok(self.shard),
            Some(wrong) => Err((wrong, Box::new(self.shard))),
        }
    }
}
