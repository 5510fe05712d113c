//! Keys whose step panicked, or whose shard did when it may have granted them. What their entries say is not trusted any
//! more: such a key is unavailable until the shards that may hold it were asked, and their claims decide. Other keys are
//! not affected.

use std::sync::Arc;

use parking_lot::Mutex;

use super::PendingClaim;
use super::directory::KeyDirectory;
use super::entry::{HeldKey, KeyEntry, KeyHolder, PoisonedKey, VacantKey};
use crate::admission::lock_order::{self, LockLevel};
use crate::admission::queue::QueuedClaim;
use crate::model::{ClaimId, Millis};
use crate::shard::{KeyTicket, PendingWrite, ShardRef};

/// Time after which a shard that has not answered is asked again, in milliseconds: it may have panicked since.
const ASK_AGAIN_MS: Millis = 1_000;

/// Shard that may hold a poisoned key, and has not answered.
#[derive(Debug)]
struct OpenQuestion {
    id: ClaimId,
    shard: ShardRef,
    /// Engine time from which it may be asked.
    due_ms: Millis,
}

/// Requests that waited for a key which has become unavailable.
#[derive(Debug)]
pub struct WithdrawnRequests {
    /// Claims that must be answered.
    #[allow(clippy::vec_box, reason = "claims stay boxed from entry to entry")]
    pub unanswered: Vec<Box<PendingClaim>>,
    /// Claim that was in the wait queues.
    pub queued: Option<Arc<QueuedClaim>>,
}

/// Questions to shards about poisoned keys.
#[derive(Debug, Default)]
pub(super) struct OpenQuestions(Mutex<Vec<OpenQuestion>>);

impl KeyDirectory {
    /// Makes a key unavailable whose step for this shard panicked. From the next tick on the shard is asked. `holder`: the
    /// claim that holds the key by that step, if it is such a step. Records that the store has are forgotten: the step may
    /// have been that which clears one. Returns the requests that waited for the key.
    #[cold]
    pub fn poison(
        &self,
        id: &ClaimId,
        from: ShardRef,
        holder: Option<KeyHolder>,
        now_ms: Millis,
        is_stored: impl Fn(&PendingWrite) -> bool,
    ) -> WithdrawnRequests {
        let _level = lock_order::acquire(LockLevel::KeyEntry);
        // An entry that is not there is made all the same: the step may have removed it before its time.
        let mut entry = self.map.entry(id.clone()).or_insert_with(|| KeyEntry::Vacant(VacantKey::default()));
        if let Some(pending_writes) = entry.pending_writes_mut() {
            pending_writes.retain(|write| !is_stored(write));
        }
        self.poison_entry(id, &mut entry, from, holder, now_ms)
    }

    /// Makes a key unavailable that is pending with this ticket, because the shard that decides about it panicked and may
    /// hold it. From the next tick on the shard is asked. Returns the requests that waited for the key; none if the ticket
    /// is not valid any more.
    #[cold]
    pub fn poison_pending(
        &self,
        id: &ClaimId,
        ticket: KeyTicket,
        from: ShardRef,
        now_ms: Millis,
    ) -> Option<WithdrawnRequests> {
        let _level = lock_order::acquire(LockLevel::KeyEntry);
        let mut entry = self.map.get_mut(id)?;
        match &*entry {
            KeyEntry::Pending(pending) if pending.has_ticket(ticket) => {}
            _ => return None,
        }
        Some(self.poison_entry(id, &mut entry, from, None, now_ms))
    }

    fn poison_entry(
        &self,
        id: &ClaimId,
        entry: &mut KeyEntry,
        from: ShardRef,
        holder: Option<KeyHolder>,
        now_ms: Millis,
    ) -> WithdrawnRequests {
        let (mut shards, mut unanswered, mut queued) = (vec![from], Vec::new(), None);
        let mut poisoned = match std::mem::replace(entry, KeyEntry::Poisoned(PoisonedKey::default())) {
            KeyEntry::Pending(mut pending) => {
                queued = pending.queued.take().map(|queued| queued.claim);
                unanswered.extend(pending.withdraw().or_else(|| pending.take_waiting()));
                unanswered.append(&mut pending.take_duplicates(|_| false));
                let VacantKey { pending_writes, ended } = pending.vacant;
                PoisonedKey { pending_writes, ended, holder: None, _charge: pending.charge }
            }
            KeyEntry::Held(mut held) => {
                if held.holder.shard != from {
                    shards.push(held.holder.shard);
                }
                unanswered = held.take_all_repeated();
                let HeldKey { holder, pending_writes, charge, .. } = held;
                PoisonedKey { pending_writes, ended: None, holder: Some(holder), _charge: Some(charge) }
            }
            KeyEntry::Vacant(VacantKey { pending_writes, ended }) => {
                PoisonedKey { pending_writes, ended, holder: None, _charge: None }
            }
            KeyEntry::Poisoned(poisoned) => poisoned,
            unreadable @ KeyEntry::Unreadable { .. } => {
                *entry = unreadable;
                return WithdrawnRequests { unanswered, queued };
            }
        };
        poisoned.holder = holder.or(poisoned.holder);
        *entry = KeyEntry::Poisoned(poisoned);
        // Under the entry's guard: an answer to another question must not make the key vacant in between.
        let mut questions = self.questions.0.lock();
        for shard in shards {
            if !questions.iter().any(|question| question.shard == shard && question.id == *id) {
                questions.push(OpenQuestion { id: id.clone(), shard, due_ms: now_ms + 1 });
            }
        }
        WithdrawnRequests { unanswered, queued }
    }

    /// Questions to shards that are due: each whether it holds the key.
    pub fn due_questions(&self, now_ms: Millis) -> Vec<(ShardRef, ClaimId)> {
        let mut questions = self.questions.0.lock();
        let due = questions.iter_mut().filter(|question| question.due_ms <= now_ms);
        let ask = |question: &mut OpenQuestion| {
            question.due_ms = now_ms + ASK_AGAIN_MS;
            (question.shard, question.id.clone())
        };
        due.map(ask).collect()
    }

    /// Notes that a shard does not hold a poisoned key. If no other shard may hold it, the key is vacant.
    pub fn vacate_poisoned(&self, id: &ClaimId, shard: ShardRef) {
        let _level = lock_order::acquire(LockLevel::KeyEntry);
        let entry = self.map.entry(id.clone());
        if !self.note_answer(id, shard) {
            return;
        }
        if let dashmap::Entry::Occupied(mut slot) = entry
            && let KeyEntry::Poisoned(poisoned) = slot.get_mut()
        {
            let (pending_writes, ended) = (std::mem::take(&mut poisoned.pending_writes), poisoned.ended.take());
            let vacant = VacantKey { pending_writes, ended };
            if vacant.is_forgotten() {
                slot.remove();
            } else {
                slot.insert(KeyEntry::Vacant(vacant));
            }
        }
    }

    /// Notes the answer of a shard about a poisoned key. Returns whether it was asked and no other shard is.
    pub fn note_answer(&self, id: &ClaimId, shard: ShardRef) -> bool {
        let mut questions = self.questions.0.lock();
        let before = questions.len();
        questions.retain(|question| question.shard != shard || question.id != *id);
        questions.len() < before && !questions.iter().any(|question| question.id == *id)
    }
}
