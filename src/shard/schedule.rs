//! Schedule of a shard's runs: one wake-up per drain, and a reason for each.
//!
//! Many threads push, one drains. A push wakes the drainer only if nobody did since it last went to sleep, so under
//! load a wake-up is paid once per drain instead of once per request:
//!
//! ```text
//! push:   queue.push(x);  if !awake.swap(true) { wake }
//! change: changed = true; if !awake.swap(true) { wake }
//! drain:  changed = false; take up to n requests and do what can be done; if more are left, stay awake and run again;
//!         else awake.swap(false), then check again: (changed || queued) && !awake.swap(true) => run again
//! ```
//!
//! The second check closes the gap between "nothing to do" and "asleep": a push in that gap either reads `false` and
//! wakes, or is seen by the check. The check must cover every reason for a wake-up and nothing else: the content of
//! the queue, which a run removes, and *changes*, a flag that a run clears whether it can act on it or not. It must
//! not test a state (such as the store's progress): a drainer that cannot act on the state would run for ever. Whoever
//! changes a state sets the flag, and so does whoever removes what kept the drainer from acting. All operations are
//! `SeqCst`, and going to sleep is a swap: it reads what the last waker wrote, so everything the waker did before is
//! visible. `tests/loom.rs` compiles this file with loom's atomics and explores every interleaving.

use super::atomic::{AtomicBool, AtomicUsize, Ordering};

/// Whether the drainer is awake or about to wake, and whether there is a change that it has not handled.
#[derive(Debug)]
pub struct RunSchedule {
    awake: AtomicBool,
    changed: AtomicBool,
}

impl Default for RunSchedule {
    fn default() -> Self {
        Self { awake: AtomicBool::new(false), changed: AtomicBool::new(false) }
    }
}

impl RunSchedule {
    /// Must be called after a push. Returns true if the caller must wake the drainer.
    pub fn wake_needed(&self) -> bool {
        !self.awake.swap(true, Ordering::SeqCst)
    }

    /// Must be called after a change other than a push. Returns true if the caller must wake the drainer.
    pub fn wake_needed_for_change(&self) -> bool {
        self.changed.store(true, Ordering::SeqCst);
        self.wake_needed()
    }

    /// Begins a run, which handles all changes up to now.
    pub fn begin_run(&self) {
        // Most runs have only pushed requests to handle.
        if self.changed.load(Ordering::SeqCst) {
            self.changed.swap(false, Ordering::SeqCst);
        }
    }

    /// Must be called after a drain that left nothing to do. Returns true if the drainer must run again. `is_idle`
    /// checks everything that may have been pushed.
    pub fn must_run_again(&self, is_idle: impl FnOnce() -> bool) -> bool {
        self.awake.swap(false, Ordering::SeqCst);
        let is_done = is_idle() && !self.changed.load(Ordering::SeqCst);
        !is_done && !self.awake.swap(true, Ordering::SeqCst)
    }

    /// Hands over to a new drainer, which must be woken whatever the last one left.
    pub fn reset(&self) {
        self.awake.store(true, Ordering::SeqCst);
    }
}

/// Number of entries in a queue, kept below a bound. The queue itself is unbounded, so that it allocates only for its
/// content.
#[derive(Debug)]
pub struct QueueBound(AtomicUsize);

impl Default for QueueBound {
    fn default() -> Self {
        Self(AtomicUsize::new(0))
    }
}

impl QueueBound {
    /// Reserves one of `slots` before a push. Returns false if none is free.
    pub fn try_acquire(&self, slots: usize) -> bool {
        let entered = self.0.fetch_add(1, Ordering::Relaxed) < slots;
        if !entered {
            self.release(1);
        }
        entered
    }

    /// Frees as many slots as entries were popped.
    pub fn release(&self, popped: usize) {
        self.0.fetch_sub(popped, Ordering::Relaxed);
    }

    /// Slots in use; briefly includes those that are being refused.
    pub fn in_use(&self) -> usize {
        self.0.load(Ordering::Relaxed)
    }
}
