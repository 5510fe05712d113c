//! Times of a claim, in the bytes that its entry has for them.
//!
//! A claim keeps two unix times in milliseconds, of 48 bits each (until the year 10889), and the time for which it may stay reserved.
//! That one is of no use from the moment at which the claim becomes active, so both share their bytes: 12 in all, which makes the
//! entry of a claim one cache line. Which of the two is there is what the state of the claim says ([`super::Claim`]).

use crate::model::{ClaimState, ClaimTimes, Millis};

/// Most that [`CompactMillis`] holds.
const MILLIS_MAX: Millis = (1 << 48) - 1;

/// Milliseconds in six bytes; larger ones are the largest.
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

/// Time at which a claim was created, and beside it the time for which it may stay reserved or, once it is not reserved any more, the
/// time at which it became active. One that is not known is kept as 0.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct ClaimTimestamps {
    created: CompactMillis,
    reserve_or_activated: CompactMillis,
}

const _: () = assert!(size_of::<ClaimTimestamps>() == 12);

impl ClaimTimestamps {
    /// Stamps of a claim that is reserved for at most `reserve_ms`.
    #[inline]
    pub fn reserved(created_at_ms: Option<Millis>, reserve_ms: u32) -> Self {
        let created = CompactMillis::new(created_at_ms.unwrap_or(0));
        Self { created, reserve_or_activated: CompactMillis::new(reserve_ms.into()) }
    }

    /// Stamps of a claim that is not reserved, or not any more.
    #[inline]
    pub fn started(times: ClaimTimes) -> Self {
        let kept = |at_ms: Option<Millis>| CompactMillis::new(at_ms.unwrap_or(0));
        Self { created: kept(times.created_at_ms()), reserve_or_activated: kept(times.activated_at_ms()) }
    }

    /// Stamps of a claim that is active from the moment at which it is created.
    #[inline]
    pub fn active(created_at_ms: Millis) -> Self {
        let created = CompactMillis::new(created_at_ms);
        Self { created, reserve_or_activated: created }
    }

    /// Time for which a claim in this state may stay reserved, in milliseconds; 0 if it is not reserved any more.
    #[inline]
    pub fn reserve_ms(self, state: ClaimState) -> u32 {
        if state == ClaimState::Reserved { self.reserve_or_activated.low } else { 0 }
    }

    /// Times of a claim in this state.
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
        let mut stamps = ClaimTimestamps::reserved(created, u32::MAX);
        assert_eq!(
            (stamps.reserve_ms(ClaimState::Reserved), stamps.times(ClaimState::Reserved)),
            (u32::MAX, ClaimTimes::new(created, None))
        );
        stamps.end_reservation(activated);
        assert_eq!(stamps.times(ClaimState::Active), ClaimTimes::new(created, activated));
        let larger = ClaimTimes::new(created, Some(Millis::MAX));
        assert_eq!(stamps, ClaimTimestamps::started(larger), "what is larger is the largest");
        stamps.end_reservation(None);
        assert_eq!(stamps.times(ClaimState::Active), ClaimTimes::new(created, None));
        assert_eq!(
            ClaimTimestamps::started(ClaimTimes::default()).times(ClaimState::Active),
            ClaimTimes::default(),
            "not known is not 0"
        );
    }
}
