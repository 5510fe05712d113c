//! Memory of large answers until their clients have read them. Over HTTP/2 a client decides for each answer how much of it is
//! sent, so that thousands of answers of one connection may wait at a time.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use super::error_table::Failure;

/// Largest answer that takes no part in the room, in bytes.
pub(super) const ANSWER_SMALL_BYTES: usize = 4 << 10;
/// Most that large answers may take together, in bytes.
const ANSWERS_BYTES_MAX: usize = 256 << 20;

/// The room that all large answers share. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub struct AnswerRoom(Arc<AtomicUsize>);

/// Room of one answer, given back when this is dropped.
#[derive(Debug)]
pub(super) struct AnswerCharge {
    room: AnswerRoom,
    bytes: usize,
}

impl AnswerRoom {
    /// Finds room for what may have a large answer. What changes something asks before it does: its answer is charged whatever
    /// there is, because an outcome that nobody is told of would be worse.
    ///
    /// # Errors
    /// `overloaded`: answers that are not read take all of it.
    pub(super) fn check(&self) -> Result<(), Failure> {
        if self.0.load(Ordering::Relaxed) < ANSWERS_BYTES_MAX { Ok(()) } else { Err(no_room()) }
    }

    /// Takes room for an answer of so many bytes.
    pub(super) fn charge(&self, bytes: usize) -> AnswerCharge {
        self.0.fetch_add(bytes, Ordering::Relaxed);
        AnswerCharge { room: self.clone(), bytes }
    }

    /// Takes room for an answer that may be refused, because nothing was changed.
    ///
    /// # Errors
    /// `overloaded`: there is not as much.
    pub(super) fn try_charge(&self, bytes: usize) -> Result<AnswerCharge, Failure> {
        let sum = |taken: usize| taken.checked_add(bytes).filter(|&taken| taken <= ANSWERS_BYTES_MAX);
        match self.0.fetch_update(Ordering::Relaxed, Ordering::Relaxed, sum) {
            Ok(_) => Ok(AnswerCharge { room: self.clone(), bytes }),
            Err(_) => Err(no_room()),
        }
    }
}

impl Drop for AnswerCharge {
    fn drop(&mut self) {
        self.room.0.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

fn no_room() -> Failure {
    Failure::overloaded(format!(
        "answers over {} KiB that their clients have not read take all of the {} MiB that they may take together; read \
         them, retry later, or ask for smaller pages and batches",
        ANSWER_SMALL_BYTES >> 10,
        ANSWERS_BYTES_MAX >> 20
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn h06_reads_are_refused_past_the_room_and_writes_before_they_are_carried_out() {
        let room = AnswerRoom::default();
        let half = room.try_charge(ANSWERS_BYTES_MAX / 2).unwrap();
        assert!(room.try_charge(ANSWERS_BYTES_MAX).is_err());
        room.check().unwrap();
        let more = room.charge(ANSWERS_BYTES_MAX);
        assert!(room.check().is_err() && room.try_charge(1).is_err());
        drop(half);
        assert!(room.check().is_err());
        drop(more);
        room.check().unwrap();
        assert_eq!(room.0.load(Ordering::Relaxed), 0);
    }
}
