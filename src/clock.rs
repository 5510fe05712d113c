//! The one reader of time. Everything else is handed a [`Clock`], so a test brings its own time.
//!
//! Four times, each for its purpose:
//! - `mono_ns`: durations (metrics);
//! - `boot_ns`: the lease on the store; runs while the machine sleeps;
//! - `unix_us`: fences and times shown to people; may jump, and nothing expires by it;
//! - `engine_ms`: deadlines. It moves only in [`Clock::tick`], by at most [`TICK_STEP_MAX_MS`] a tick: a process that was
//!   paused for an hour wakes up a moment later, so nobody is swept for its pause.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use crossbeam::utils::CachePadded;

use crate::model::Millis;

/// Most that one tick moves the engine's time. Ticks come every [`TICK_MS`], so a larger gap is a pause.
pub const TICK_STEP_MAX_MS: Millis = 250;
/// How often the service ticks.
pub const TICK_MS: Millis = 5;
/// How far wall clock and engine may drift apart before times shown to people follow the wall clock again.
const DRIFT_MAX_MS: u64 = 50;

/// Cheap to clone; all clones show the same time.
#[derive(Debug, Clone)]
pub struct Clock(Arc<ClockState>);

#[derive(Debug)]
struct ClockState {
    origin: Instant,
    /// Nanoseconds since the origin, for a clock that only moves by hand; negative: the system's.
    manual_ns: AtomicI64,
    /// Added to the system's wall clock, in microseconds: tests set the clock back with it.
    unix_shift_us: AtomicI64,
    engine_ms: CachePadded<AtomicU64>,
    last_tick_ms: AtomicU64,
    /// Wall clock less engine's time.
    unix_ahead_ms: AtomicI64,
}

impl Clock {
    /// The system's time.
    #[must_use]
    pub fn system() -> Self {
        Self::starting(-1)
    }

    /// A clock that moves only by [`Clock::advance`].
    #[must_use]
    pub fn manual() -> Self {
        Self::starting(0)
    }

    fn starting(manual_ns: i64) -> Self {
        let origin = Instant::now();
        let clock = Self(Arc::new(ClockState {
            origin,
            manual_ns: AtomicI64::new(manual_ns),
            unix_shift_us: AtomicI64::new(0),
            engine_ms: CachePadded::new(AtomicU64::new(1)),
            last_tick_ms: AtomicU64::new(0),
            unix_ahead_ms: AtomicI64::new(0),
        }));
        clock.tick();
        clock
    }

    /// Monotonic nanoseconds since the clock was made.
    #[must_use]
    pub fn mono_ns(&self) -> u64 {
        match self.0.manual_ns.load(Ordering::Relaxed) {
            system if system < 0 => u64::try_from(self.0.origin.elapsed().as_nanos()).unwrap_or(u64::MAX),
            manual => manual.unsigned_abs(),
        }
    }

    /// Nanoseconds on a clock that also runs while the machine sleeps: what another machine may have counted meanwhile.
    #[must_use]
    pub fn boot_ns(&self) -> u64 {
        if self.0.manual_ns.load(Ordering::Relaxed) >= 0 {
            return self.mono_ns();
        }
        let now = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
        now.tv_sec.unsigned_abs() * 1_000_000_000 + now.tv_nsec.unsigned_abs()
    }

    /// Microseconds since 1970. May jump either way.
    #[must_use]
    pub fn unix_us(&self) -> u64 {
        let system = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO);
        let system = u64::try_from(system.as_micros()).unwrap_or(u64::MAX);
        system.saturating_add_signed(self.0.unix_shift_us.load(Ordering::Relaxed))
    }

    /// Milliseconds since 1970.
    #[must_use]
    pub fn unix_ms(&self) -> Millis {
        self.unix_us() / 1000
    }

    /// The wall clock at that moment of the engine's time. The same moment is shown as the same number, unless the wall
    /// clock was set or the process was paused meanwhile.
    #[must_use]
    pub fn unix_of(&self, engine_ms: Millis) -> Millis {
        engine_ms.saturating_add_signed(self.unix_ahead_ms())
    }

    /// How far the wall clock is ahead of the engine's time, in milliseconds: what [`Self::unix_of`] goes by.
    #[must_use]
    pub fn unix_ahead_ms(&self) -> i64 {
        self.0.unix_ahead_ms.load(Ordering::Relaxed)
    }

    /// The engine's time as of the last tick.
    #[must_use]
    pub fn engine_ms(&self) -> Millis {
        self.0.engine_ms.load(Ordering::Relaxed)
    }

    /// The engine's time as the next tick will find it, so that a deadline that is counted from now is not early by what
    /// passed since the last one.
    #[must_use]
    pub fn engine_now_ms(&self) -> Millis {
        let since = (self.mono_ns() / 1_000_000).saturating_sub(self.0.last_tick_ms.load(Ordering::Relaxed));
        self.engine_ms() + since.min(TICK_STEP_MAX_MS)
    }

    /// Moves the engine's time on and returns it.
    pub fn tick(&self) -> Millis {
        let now = self.mono_ns() / 1_000_000;
        let last = self.0.last_tick_ms.swap(now, Ordering::Relaxed);
        let step = now.saturating_sub(last).min(TICK_STEP_MAX_MS);
        let engine_ms = self.0.engine_ms.fetch_add(step, Ordering::Relaxed) + step;
        let ahead_ms = self.unix_ms().cast_signed() - engine_ms.cast_signed();
        if ahead_ms.abs_diff(self.0.unix_ahead_ms.load(Ordering::Relaxed)) > DRIFT_MAX_MS {
            self.0.unix_ahead_ms.store(ahead_ms, Ordering::Relaxed);
        }
        engine_ms
    }

    /// Moves a manual clock; the engine sees it at the next tick.
    pub fn advance(&self, by: Duration) {
        let by = i64::try_from(by.as_nanos()).unwrap_or(i64::MAX);
        if self.0.manual_ns.load(Ordering::Relaxed) >= 0 {
            self.0.manual_ns.fetch_add(by, Ordering::Relaxed);
        }
    }

    /// Sets the wall clock off by `us` microseconds from the system's.
    pub fn shift_unix_us(&self, us: i64) {
        self.0.unix_shift_us.store(us, Ordering::Relaxed);
    }
}
