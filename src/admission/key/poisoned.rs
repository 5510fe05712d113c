//! Keys whose step panicked. What their entries say is not trusted any more: such a key is unavailable until the shards
//! that may hold it were asked, and their claims decide. Other keys are not affected.

use parking_lot::Mutex;

use super::PendingClaim;
use super::directory::KeyDirectory;
use super::entry::{KeyEntry, PoisonedKey, VacantKey};
use crate::admission::lock_order::{self, LockLevel};
use crate::model::{ClaimId, Millis};
use crate::shard::{PendingWrite, ShardRef};

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

/// Questions to shards about poisoned keys.
#[derive(Debug, Default)]
pub(super) struct OpenQuestions(Mutex<Vec<OpenQuestion>>);

impl KeyDirectory {
    /// Makes a key unavailable whose step for this shard panicked. From the next tick on the shard is asked. Returns the
    /// requests that waited for the key.
    #[cold]
    #[allow(clippy::vec_box, reason = "claims stay boxed from entry to entry")]
    pub fn poison(&self, id: &ClaimId, from: ShardRef, now_ms: Millis) -> Vec<Box<PendingClaim>> {
        let mut shards = vec![from];
        let unanswered = self.poison_entry(id, &mut shards);
        let mut questions = self.questions.0.lock();
        for shard in shards {
            if !questions.iter().any(|question| question.shard == shard && question.id == *id) {
                questions.push(OpenQuestion { id: id.clone(), shard, due_ms: now_ms + 1 });
            }
        }
        unanswered
    }

    #[allow(clippy::vec_box, reason = "claims stay boxed from entry to entry")]
    fn poison_entry(&self, id: &ClaimId, shards: &mut Vec<ShardRef>) -> Vec<Box<PendingClaim>> {
        let _level = lock_order::acquire(LockLevel::KeyEntry);
        // An entry that is not there is made all the same: the step may have removed it before its time.
        let mut entry = self.map.entry(id.clone()).or_insert_with(|| KeyEntry::Vacant(VacantKey::default()));
        let mut unanswered = Vec::new();
        let poisoned = match std::mem::replace(&mut *entry, KeyEntry::Poisoned(PoisonedKey::default())) {
            KeyEntry::Pending(mut pending) => {
                unanswered.extend(pending.withdraw());
                unanswered.append(&mut pending.take_duplicates(|_| false));
                PoisonedKey { pending_writes: pending.vacant.pending_writes, _charge: pending.charge }
            }
            KeyEntry::Held(mut held) => {
                if !shards.contains(&held.holder.shard) {
                    shards.push(held.holder.shard);
                }
                unanswered = held.take_all_repeated();
                PoisonedKey { pending_writes: held.pending_writes, _charge: Some(held.charge) }
            }
            KeyEntry::Vacant(VacantKey { pending_writes, .. }) => PoisonedKey { pending_writes, _charge: None },
            KeyEntry::Poisoned(poisoned) => poisoned,
            unreadable @ KeyEntry::Unreadable { .. } => {
                *entry = unreadable;
                return unanswered;
            }
        };
        *entry = KeyEntry::Poisoned(poisoned);
        unanswered
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
    pub fn vacate_poisoned(&self, id: &ClaimId, shard: ShardRef, is_stored: impl Fn(&PendingWrite) -> bool) {
        if !self.note_answer(id, shard) {
            return;
        }
        let _level = lock_order::acquire(LockLevel::KeyEntry);
        if let dashmap::Entry::Occupied(mut slot) = self.map.entry(id.clone())
            && let KeyEntry::Poisoned(poisoned) = slot.get_mut()
        {
            let mut pending_writes = std::mem::take(&mut poisoned.pending_writes);
            // The step that panicked may have been that which clears the record.
            pending_writes.retain(|write| !is_stored(write));
            if pending_writes.is_empty() {
                slot.remove();
            } else {
                slot.insert(KeyEntry::Vacant(VacantKey { pending_writes, ended: None }));
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
