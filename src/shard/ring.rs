//! A bounded queue with one wake.
//!
//! Many push, one drains. A push wakes the drainer only if nobody did since it last went to sleep, so under load a
//! wake is paid once per drain, not once per request:
//!
//! ```text
//! push:   queue.push(x); if !scheduled.swap(true) { wake }
//! drain:  take up to n; if more is left, stay scheduled and run again;
//!         else scheduled.store(false), then look once more: !is_empty && !scheduled.swap(true) => run again
//! ```
//!
//! The second look closes the gap between "empty" and "asleep": a push in it either sees `false` and wakes, or was
//! there to be seen. All of it is `SeqCst`: the argument is about the order of a push and a store to two different
//! places. `cargo test --test loom` with `--cfg loom` explores every interleaving of this file's [`Scheduled`].

#[cfg(loom)]
use loom::sync::atomic::{AtomicBool, Ordering};
#[cfg(not(loom))]
use std::sync::atomic::{AtomicBool, Ordering};

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

    /// After a drain that found the queue empty: true if the drainer must run again. `is_empty` looks at the queue.
    pub fn sleep_refused(&self, is_empty: impl FnOnce() -> bool) -> bool {
        self.0.store(false, Ordering::SeqCst);
        !is_empty() && !self.0.swap(true, Ordering::SeqCst)
    }

    /// A new drainer takes over; whatever the last one left, it must be woken.
    pub fn reset(&self) {
        self.0.store(true, Ordering::SeqCst);
    }
}
