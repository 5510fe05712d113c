//! A bounded queue with one wake.
//!
//! Many push, one drains. A push wakes the drainer only if nobody did since it last went to sleep, so under load a
//! wake is paid once per drain, not once per request:
//!
//! ```text
//! push:   queue.push(x); if !scheduled.swap(true) { wake }
//! drain:  take up to n; if more is left, stay scheduled and run again;
//!         else scheduled.swap(false), then look once more: work && !scheduled.swap(true) => run again
//! ```
//!
//! The second look closes the gap between "nothing to do" and "asleep": a push in it either sees `false` and wakes, or
//! was there to be seen. What is looked at must cover every reason for a wake: the ring, and how far the store is. All
//! of it is `SeqCst`, and going to sleep is a swap: it reads what the last waker wrote, so what that did before is seen.
//! `tests/loom.rs` compiles this file with loom's atomics and explores every interleaving of [`Scheduled`].

use super::atomic::{AtomicBool, Ordering};

/// Whether the drainer is awake, or will be.
#[derive(Debug)]
pub struct Scheduled(AtomicBool);

impl Default for Scheduled {
    fn default() -> Self {
        Self(AtomicBool::new(false))
    }
}

impl Scheduled {
    /// After a push: true if the caller must wake the drainer.
    pub fn wake_needed(&self) -> bool {
        !self.0.swap(true, Ordering::SeqCst)
    }

    /// After a drain that left nothing to do: true if the drainer must run again. `is_idle` looks at everything that
    /// a wake may be about.
    pub fn sleep_refused(&self, is_idle: impl FnOnce() -> bool) -> bool {
        self.0.swap(false, Ordering::SeqCst);
        !is_idle() && !self.0.swap(true, Ordering::SeqCst)
    }

    /// A new drainer takes over; whatever the last one left, it must be woken.
    pub fn reset(&self) {
        self.0.store(true, Ordering::SeqCst);
    }
}
