//! Reasons for which a worker is unschedulable, as bits of one byte: the form in the engine and in rows.

use crate::model::UnschedulableReason;

/// Cordoned by its operator; outlives registrations and restarts.
pub const CORDONED: u8 = 1;
/// Drained by its operator, for the rest of this incarnation.
pub const DRAINING: u8 = 2;
/// Silent for too long.
pub const LOST: u8 = 4;
/// Suspect: a claim ended in a way that does not prove that it stopped running.
pub const SUSPECT: u8 = 8;
/// Not verified since a stop that may have lost claims. Stored as a number (see `replay`).
pub const UNVERIFIED: u8 = 16;
/// Running claims that it was asked to stop.
pub const STOPPING: u8 = 32;
/// Past its end of life. Never stored: it follows from `expires_at_ms`.
pub const ENDED: u8 = 64;

/// Reserved for a waiting claim. Never stored: waiting claims do not outlive the process.
pub const RESERVED: u8 = 128;

/// Bits that a row stores.
pub const PERSISTED: u8 = CORDONED | DRAINING | LOST | SUSPECT | STOPPING;
/// Bits that a new incarnation clears: all except those of the operator's cordon and of the registration itself.
pub const PER_INCARNATION: u8 = DRAINING | LOST | SUSPECT | UNVERIFIED | STOPPING;
/// Both reasons to distrust a worker.
pub const UNTRUSTED: u8 = SUSPECT | UNVERIFIED;

/// Reasons in these bits, the one that counts first in front. Draining includes a cordon, and hides it.
#[must_use = "an iterator does nothing by itself"]
pub fn reasons(bits: u8) -> impl Iterator<Item = UnschedulableReason> {
    let visible = if bits & DRAINING != 0 { bits & !CORDONED } else { bits };
    UnschedulableReason::ALL.iter().copied().filter(move |reason| visible & bit(*reason) != 0)
}

const fn bit(reason: UnschedulableReason) -> u8 {
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
