//! Times of a claim in compact form.
//!
//! A claim has two unix times in milliseconds of 48 bits each (until the year 10889), and a time limit of its
//! reservation. The limit is useless once the claim is active, so it shares its bytes with the activation time: 12
//! bytes in all, which makes the slab entry of a claim one cache line. The state of the claim says which of the two
//! is present ([`super::Claim`]).

use crate::model::{ClaimState, ClaimTimes, Millis};

/// Largest value that [`CompactMillis`] holds.
const MILLIS_MAX: Millis = (1 << 48) - 1;

/// Milliseconds in six bytes; larger values saturate.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[repr(Rust, packed(2))]
struct CompactMillis {
    low: u32,
    high: u16,
}

impl CompactMillis {
    #[inline]
    fn new(ms: Millis) -> Self {
        let ms = ms.min(MILLIS_MAX);
        Self { low: ms as u32, high: (ms >> 32) as u16 }
    }

    #[inline]
    fn get(self) -> Millis {
        Millis::from(self.low) | Millis::from(self.high) << 32
    }
}

/// Creation time of a claim, and either the time limit of its reservation or its activation time. An unknown time is
/// 0.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct ClaimTimestamps {
    created: CompactMillis,
    reserve_or_activated: CompactMillis,
}

const _: () = assert!(size_of::<ClaimTimestamps>() == 12);

impl ClaimTimestamps {
    /// Times of a claim that is reserved for at most `reserve_ms`.
    #[inline]
    pub fn reserved(created_at_ms: Option<Millis>, reserve_ms: u32) -> Self {
        let created = CompactMillis::new(created_at_ms.unwrap_or(0));
        Self { created, reserve_or_activated: CompactMillis::new(reserve_ms.into()) }
    }

    /// Times of a claim that is not reserved (any more).
    #[inline]
    pub fn started(times: ClaimTimes) -> Self {
        let compact = |at_ms: Option<Millis>| CompactMillis::new(at_ms.unwrap_or(0));
        Self { created: compact(times.created_at_ms()), reserve_or_activated: compact(times.activated_at_ms()) }
    }

    /// Times of a claim that is active from its creation on.
    #[inline]
    pub fn active(created_at_ms: Millis) -> Self {
        let created = CompactMillis::new(created_at_ms);
        Self { created, reserve_or_activated: created }
    }

    /// Time limit of the reservation in milliseconds; 0 in every other state.
    #[inline]
    pub fn reserve_ms(self, state: ClaimState) -> u32 {
        if state == ClaimState::Reserved { self.reserve_or_activated.low } else { 0 }
    }

    /// Unix times of a claim in this state.
    #[inline]
    pub fn times(self, state: ClaimState) -> ClaimTimes {
        let activated_at_ms = (state != ClaimState::Reserved).then(|| self.reserve_or_activated.get());
        ClaimTimes::new(Some(self.created.get()), activated_at_ms)
    }

    /// Ends the reservation: the claim became active at `activated_at_ms`, or never does.
    #[inline]
    pub fn end_reservation(&mut self, activated_at_ms: Option<Millis>) {
        self.reserve_or_activated = CompactMillis::new(activated_at_ms.unwrap_or(0));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn c16_times_of_a_claim_are_kept_to_the_millisecond() {
        let (created, activated) = (Some(1_795_367_775_325), Some(MILLIS_MAX));
        let mut timestamps = ClaimTimestamps::reserved(created, u32::MAX);
        assert_eq!(
            (timestamps.reserve_ms(ClaimState::Reserved), timestamps.times(ClaimState::Reserved)),
            (u32::MAX, ClaimTimes::new(created, None))
        );
        timestamps.end_reservation(activated);
        assert_eq!(timestamps.times(ClaimState::Active), ClaimTimes::new(created, activated));
        let larger = ClaimTimes::new(created, Some(Millis::MAX));
        assert_eq!(timestamps, ClaimTimestamps::started(larger), "larger values saturate");
        timestamps.end_reservation(None);
        assert_eq!(timestamps.times(ClaimState::Active), ClaimTimes::new(created, None));
        assert_eq!(
            ClaimTimestamps::started(ClaimTimes::default()).times(ClaimState::Active),
            ClaimTimes::default(),
            "an unknown time is not 0"
        );
    }
}
