//! Reasons for which a worker is not offered, as bits of one byte: the form in which the engine keeps them and rows store them.

use crate::model::UnschedulableReason;

/// Its owner said so; it outlives registrations and restarts.
pub const CORDONED: u8 = 1;
/// Its owner said so for the rest of this incarnation.
pub const DRAINING: u8 = 2;
/// It was silent for too long.
pub const LOST: u8 = 4;
/// Something ended on it in a way that proves nothing about what still runs there.
pub const SUSPECT: u8 = 8;
/// Nothing has spoken for it since a stop that may have lost claims. Stored as a number (see `replay`).
pub const UNVERIFIED: u8 = 16;
/// It runs what it should not, and was told to stop.
pub const STOPPING: u8 = 32;
/// Its own end of life has come. Never stored: it follows from `expires_at_ms`.
pub const ENDED: u8 = 64;

/// It is kept for a claim that waits. Never stored: who waits does not outlive the process.
pub const RESERVED: u8 = 128;

/// What a row carries as it is.
pub const PERSISTED: u8 = CORDONED | DRAINING | LOST | SUSPECT | STOPPING;
/// What a new life of the worker ends: all but what its owner wishes and what the registration itself says.
pub const PER_INCARNATION: u8 = DRAINING | LOST | SUSPECT | UNVERIFIED | STOPPING;
/// Both kinds of distrust.
pub const UNTRUSTED: u8 = SUSPECT | UNVERIFIED;

/// Reasons that these bars stand for, the one that counts first in front. A drain goes beyond a cordon, and hides it.
#[must_use = "an iterator does nothing by itself"]
pub fn reasons(bars: u8) -> impl Iterator<Item = UnschedulableReason> {
    let shown = if bars & DRAINING != 0 { bars & !CORDONED } else { bars };
    UnschedulableReason::ALL.into_iter().filter(move |reason| shown & of(*reason) != 0)
}

const fn of(reason: UnschedulableReason) -> u8 {
    match reason {
        UnschedulableReason::Draining => DRAINING,
        UnschedulableReason::Cordoned => CORDONED,
        UnschedulableReason::Lost => LOST,
        UnschedulableReason::Suspect => UNTRUSTED,
        UnschedulableReason::Ended => ENDED,
        UnschedulableReason::Stopping => STOPPING,
        UnschedulableReason::Reserved => RESERVED,
    }
}
