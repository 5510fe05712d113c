//! Clock: the only reader of system time, except that tokio has timers of its own and ids are UUIDs of version 7. All
//! other code gets a [`Clock`], so a test controls its time.
//!
//! Four times, each for its purpose:
//! - `mono_ns`: durations (metrics);
//! - `boot_ns`: the lease on the store; advances while the machine sleeps;
//! - `unix_us`: fences and times shown to people; may jump, and nothing expires by it;
//! - `engine_ms`: deadlines. Advances only in [`Clock::tick`], by at most [`TICK_STEP_MAX_MS`] a tick: a process that
//!   was paused for an hour continues a moment later, so its pause expires nothing.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use crossbeam::utils::CachePadded;

use crate::model::Millis;

/// Largest step of engine time in one tick. Ticks come every [`TICK_MS`], so a larger gap is a pause.
pub const TICK_STEP_MAX_MS: Millis = 250;
/// Interval between two ticks, in milliseconds.
pub const TICK_MS: Millis = 5;
/// Drift between wall clock and engine time at which times shown to people follow the wall clock again.
const DRIFT_MAX_MS: u64 = 50;

/// Shared clock, cheap to clone; all clones show the same time.
#[derive(Debug, Clone)]
pub struct Clock(Arc<ClockState>);

#[derive(Debug)]
struct ClockState {
    origin: Instant,
    /// Time of a manual clock; none: the system's clock.
    manual: Option<ManualTime>,
    /// Offset in microseconds that is added to the wall clock: tests set the clock back with it.
    unix_shift_us: AtomicI64,
    engine_ms: CachePadded<AtomicU64>,
    last_tick_ms: AtomicU64,
    /// Wall clock minus engine time, in milliseconds.
    unix_ahead_ms: AtomicI64,
}

/// Time of a manual clock.
#[derive(Debug)]
struct ManualTime {
    /// Wall clock when the clock was created, in microseconds since 1970.
    start_unix_us: u64,
    /// Nanoseconds since the clock was created.
    mono_ns: AtomicU64,
}

#[allow(clippy::disallowed_methods, reason = "the one reader of the wall clock")]
fn system_unix_us() -> u64 {
    let system = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO);
    u64::try_from(system.as_micros()).unwrap_or(u64::MAX)
}

impl Clock {
    /// Clock that follows the system's time.
    #[must_use]
    pub fn system() -> Self {
        Self::starting(None)
    }

    /// Clock that advances only by [`Clock::advance`]. Its wall clock starts at the system's.
    #[must_use]
    pub fn manual() -> Self {
        Self::manual_from(system_unix_us())
    }

    /// Clock that advances only by [`Clock::advance`]. Its wall clock starts at `unix_us` microseconds since 1970.
    #[must_use]
    pub fn manual_from(unix_us: u64) -> Self {
        Self::starting(Some(ManualTime { start_unix_us: unix_us, mono_ns: AtomicU64::new(0) }))
    }

    #[allow(clippy::disallowed_methods, reason = "the one reader of the monotonic clock")]
    fn starting(manual: Option<ManualTime>) -> Self {
        let origin = Instant::now();
        let clock = Self(Arc::new(ClockState {
            origin,
            manual,
            unix_shift_us: AtomicI64::new(0),
            engine_ms: CachePadded::new(AtomicU64::new(1)),
            last_tick_ms: AtomicU64::new(0),
            unix_ahead_ms: AtomicI64::new(0),
        }));
        clock.tick();
        clock
    }

    /// Monotonic nanoseconds since the clock was created.
    #[must_use]
    pub fn mono_ns(&self) -> u64 {
        match &self.0.manual {
            None => u64::try_from(self.0.origin.elapsed().as_nanos()).unwrap_or(u64::MAX),
            Some(manual) => manual.mono_ns.load(Ordering::Relaxed),
        }
    }

    /// Nanoseconds on a clock that also advances while the machine sleeps, as other machines do.
    #[must_use]
    pub fn boot_ns(&self) -> u64 {
        if self.0.manual.is_some() {
            return self.mono_ns();
        }
        let now = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
        now.tv_sec.unsigned_abs() * 1_000_000_000 + now.tv_nsec.unsigned_abs()
    }

    /// Microseconds since 1970, which may jump either way.
    #[must_use]
    pub fn unix_us(&self) -> u64 {
        let unshifted = match &self.0.manual {
            None => system_unix_us(),
            Some(manual) => manual.start_unix_us.saturating_add(manual.mono_ns.load(Ordering::Relaxed) / 1000),
        };
        unshifted.saturating_add_signed(self.0.unix_shift_us.load(Ordering::Relaxed))
    }

    /// Milliseconds since 1970, which may jump.
    #[must_use]
    pub fn unix_ms(&self) -> Millis {
        self.unix_us() / 1000
    }

    /// Wall clock at a moment of engine time. Equal for equal moments, unless the wall clock was set or the process
    /// was paused in between.
    #[must_use]
    pub fn unix_of(&self, engine_ms: Millis) -> Millis {
        engine_ms.saturating_add_signed(self.unix_ahead_ms())
    }

    /// Offset of the wall clock from engine time in milliseconds, as [`Self::unix_of`] uses it.
    #[must_use]
    pub fn unix_ahead_ms(&self) -> i64 {
        self.0.unix_ahead_ms.load(Ordering::Relaxed)
    }

    /// Engine time as of the last tick.
    #[must_use]
    pub fn engine_ms(&self) -> Millis {
        self.0.engine_ms.load(Ordering::Relaxed)
    }

    /// Engine time that the next tick will show, so that a deadline set now does not fire early by the time since the
    /// last tick.
    #[must_use]
    pub fn engine_now_ms(&self) -> Millis {
        self.engine_at_ms(self.mono_ns())
    }

    /// [`Self::engine_now_ms`] at a time since the start that was just read, in nanoseconds.
    #[must_use]
    pub fn engine_at_ms(&self, mono_ns: u64) -> Millis {
        let last_tick_ms = self.0.last_tick_ms.load(Ordering::Acquire);
        let since = (mono_ns / 1_000_000).saturating_sub(last_tick_ms);
        self.engine_ms() + since.min(TICK_STEP_MAX_MS)
    }

    /// Advances engine time and returns it.
    pub fn tick(&self) -> Millis {
        let now = self.mono_ns() / 1_000_000;
        let last = self.0.last_tick_ms.load(Ordering::Relaxed);
        let step = now.saturating_sub(last).min(TICK_STEP_MAX_MS);
        // In this order, so that whoever reads both in between counts the step twice, not never: a deadline is late, not early.
        let engine_ms = self.0.engine_ms.fetch_add(step, Ordering::Relaxed) + step;
        self.0.last_tick_ms.store(now, Ordering::Release);
        let ahead_ms = self.unix_ms().cast_signed() - engine_ms.cast_signed();
        if ahead_ms.abs_diff(self.0.unix_ahead_ms.load(Ordering::Relaxed)) > DRIFT_MAX_MS {
            self.0.unix_ahead_ms.store(ahead_ms, Ordering::Relaxed);
        }
        engine_ms
    }

    /// Advances a manual clock; the engine sees it at the next tick.
    pub fn advance(&self, by: Duration) {
        let by = u64::try_from(by.as_nanos()).unwrap_or(u64::MAX);
        if let Some(manual) = &self.0.manual {
            manual.mono_ns.fetch_add(by, Ordering::Relaxed);
        }
    }

    /// Shifts the wall clock by `us` microseconds from where it would be.
    pub fn shift_unix_us(&self, us: i64) {
        self.0.unix_shift_us.store(us, Ordering::Relaxed);
    }
}
