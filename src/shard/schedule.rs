//! Who runs a shard, and when: one wake per drain, and a reason for each.
//!
//! Many push, one drains. A push wakes the drainer only if nobody did since it last went to sleep, so under load a
//! wake is paid once per drain, not once per request:
//!
//! ```text
//! push:   queue.push(x); if !scheduled.swap(true) { wake }
//! tell:   news = true;   if !scheduled.swap(true) { wake }
//! drain:  news = false; take up to n, and do what may be done; if more is left, stay scheduled and run again;
//!         else scheduled.swap(false), then look once more: (news || work) && !scheduled.swap(true) => run again
//! ```
//!
//! The second look closes the gap between "nothing to do" and "asleep": a push in it either sees `false` and wakes, or
//! was there to be seen. What is looked at must cover every reason for a wake, and nothing else: what is in the queue,
//! which a run takes out, and *news*, which a run takes whether it can use them or not. A state must not be looked at
//! (how far the store is, say): a drainer that may not act on it would run for ever. Whoever changes a state brings
//! news, and so does whoever ends what kept the drainer from acting. All of it is `SeqCst`, and going to sleep is a swap:
//! it reads what the last waker wrote, so what that did before is seen.
//! `tests/loom.rs` compiles this file with loom's atomics and explores every interleaving.

use super::atomic::{AtomicBool, AtomicUsize, Ordering};

/// Whether the drainer is awake or will be, and whether there is something that it has not looked at.
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
    /// After a push: true if the caller must wake the drainer.
    pub fn wake_needed(&self) -> bool {
        !self.awake.swap(true, Ordering::SeqCst)
    }

    /// After a change of what the drainer looks at, beside what is pushed: true if the caller must wake it.
    pub fn wake_needed_for_change(&self) -> bool {
        self.changed.store(true, Ordering::SeqCst);
        self.wake_needed()
    }

    /// Begins a run: what changed until now is looked at in it.
    pub fn begin_run(&self) {
        // Most runs are about what was pushed.
        if self.changed.load(Ordering::SeqCst) {
            self.changed.swap(false, Ordering::SeqCst);
        }
    }

    /// After a drain that left nothing to do: true if the drainer must run again. `is_idle` looks at everything that
    /// may have been pushed.
    pub fn must_run_again(&self, is_idle: impl FnOnce() -> bool) -> bool {
        self.awake.swap(false, Ordering::SeqCst);
        let is_done = is_idle() && !self.changed.load(Ordering::SeqCst);
        !is_done && !self.awake.swap(true, Ordering::SeqCst)
    }

    /// A new drainer takes over; whatever the last one left, it must be woken.
    pub fn reset(&self) {
        self.awake.store(true, Ordering::SeqCst);
    }
}

/// Count of what waits in a queue, which keeps it below a bound: the queue itself has none, so that it is as small as what is
/// in it.
#[derive(Debug)]
pub struct QueueBound(AtomicUsize);

impl Default for QueueBound {
    fn default() -> Self {
        Self(AtomicUsize::new(0))
    }
}

impl QueueBound {
    /// Takes one of so many slots before something is pushed; false: none is left.
    pub fn try_acquire(&self, slots: usize) -> bool {
        let entered = self.0.fetch_add(1, Ordering::Relaxed) < slots;
        if !entered {
            self.release(1);
        }
        entered
    }

    /// Gives as many slots back as were popped.
    pub fn release(&self, popped: usize) {
        self.0.fetch_sub(popped, Ordering::Relaxed);
    }

    /// Slots that are taken; for a moment more by those that are being refused.
    pub fn in_use(&self) -> usize {
        self.0.load(Ordering::Relaxed)
    }
}
