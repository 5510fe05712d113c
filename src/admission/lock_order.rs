//! Order of the locks of admission: `wait queue > key entry > tenant account`, asserted in debug builds.
//!
//! A thread takes them from left to right, and holds one of each kind at most. Otherwise two threads could wait for each
//! other for ever; in tests they hardly ever meet at the right moment, so each thread is checked on its own instead. The
//! order follows from who asks whom: a queue asks the entry of a claim whether it accepts, and an entry charges the
//! account. Whoever holds an entry or an account therefore never takes a queue, but leaves an effect behind. Two key
//! entries are excluded because a lock of the key directory covers many keys: a second entry may need the lock that the
//! thread already holds.
//!
//! In release builds nothing of this is left.

use std::marker::PhantomData;

/// Kind of lock, from the one that is taken first to the one that is taken last.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum LockLevel {
    /// Wait queue of a pool.
    WaitQueue,
    /// Entry of the key directory.
    KeyEntry,
    /// Quota account of a tenant.
    TenantAccount,
}

/// Note that this thread holds, or is about to take, a lock of some level. Dropped after the lock's own guard.
#[must_use = "the level counts as held only until this is dropped"]
#[derive(Debug)]
pub struct HeldLock {
    #[cfg(debug_assertions)]
    level: LockLevel,
    /// Keeps the note on the thread that holds the lock.
    thread_bound: PhantomData<*const ()>,
}

/// Notes that this thread takes a lock of `level`. Called before the lock itself, so that a deadlock shows as a panic.
///
/// # Panics
/// In debug builds, if the thread holds a lock of this level or of one that is taken later.
#[cfg_attr(debug_assertions, track_caller)]
pub fn acquire(level: LockLevel) -> HeldLock {
    #[cfg(debug_assertions)]
    held_levels::add(level);
    #[cfg(not(debug_assertions))]
    let _ = level;
    HeldLock {
        #[cfg(debug_assertions)]
        level,
        thread_bound: PhantomData,
    }
}

/// Notes that this thread is about to take a lock that is never held together with one of these.
///
/// # Panics
/// In debug builds, if the thread holds one.
#[cfg_attr(debug_assertions, track_caller)]
pub fn assert_none_held() {
    #[cfg(debug_assertions)]
    held_levels::assert_none();
}

#[cfg(debug_assertions)]
impl Drop for HeldLock {
    fn drop(&mut self) {
        held_levels::remove(self.level);
    }
}

#[cfg(debug_assertions)]
mod held_levels {
    use super::LockLevel;
    use std::cell::Cell;

    thread_local! {
        /// Levels that this thread holds, in the order of [`LockLevel`].
        static HELD: Cell<[Option<LockLevel>; 3]> = const { Cell::new([None; 3]) };
    }

    #[track_caller]
    pub(super) fn add(level: LockLevel) {
        let mut held = HELD.get();
        if let Some(other) = held.iter().flatten().find(|other| **other >= level) {
            panic!("lock order: {level:?} is taken while this thread holds {other:?}");
        }
        held[level as usize] = Some(level);
        HELD.set(held);
    }

    #[track_caller]
    pub(super) fn assert_none() {
        if let Some(held) = HELD.get().into_iter().flatten().next() {
            panic!("lock order: a gang is stepped while this thread holds {held:?}");
        }
    }

    pub(super) fn remove(level: LockLevel) {
        let mut held = HELD.get();
        assert_eq!(held[level as usize].take(), Some(level), "a level that ends was held");
        HELD.set(held);
    }
}

#[cfg(not(debug_assertions))]
const _: () = assert!(size_of::<HeldLock>() == 0, "the order costs nothing in release builds");

#[cfg(all(test, debug_assertions))]
mod tests {
    use super::LockLevel::{KeyEntry, TenantAccount, WaitQueue};
    use super::*;

    const LEVELS: [LockLevel; 3] = [WaitQueue, KeyEntry, TenantAccount];

    #[test]
    fn levels_are_taken_in_order_with_or_without_those_between() {
        for first in LEVELS {
            for second in LEVELS.into_iter().filter(|second| *second > first) {
                let (_first, _second) = (acquire(first), acquire(second));
            }
        }
        let (_queue, _entry, _account) = (acquire(WaitQueue), acquire(KeyEntry), acquire(TenantAccount));
    }

    #[test]
    fn an_equal_or_earlier_level_is_refused_and_leaves_what_is_held() {
        for first in LEVELS {
            for second in LEVELS.into_iter().filter(|second| *second <= first) {
                let held = acquire(first);
                let refused = std::panic::catch_unwind(|| drop(acquire(second)));
                let message = *refused.expect_err("out of order").downcast::<String>().unwrap();
                assert_eq!(message, format!("lock order: {second:?} is taken while this thread holds {first:?}"));
                drop(held);
                drop(acquire(second));
            }
        }
    }

    #[test]
    fn a_level_may_end_before_those_that_were_taken_later() {
        let (queue, entry) = (acquire(WaitQueue), acquire(KeyEntry));
        drop(queue);
        drop(acquire(TenantAccount));
        let queue = std::panic::catch_unwind(|| drop(acquire(WaitQueue)));
        assert!(queue.is_err(), "the entry is still held");
        drop(entry);
        drop(acquire(WaitQueue));
    }

    #[test]
    fn a_panic_while_a_lock_is_held_ends_the_level() {
        let panicked = std::panic::catch_unwind(|| {
            let _held = acquire(TenantAccount);
            panic!("while the account is held");
        });
        assert!(panicked.is_err());
        drop(acquire(WaitQueue));
    }

    #[test]
    fn threads_do_not_see_what_others_hold() {
        let _account = acquire(TenantAccount);
        std::thread::scope(|scope| scope.spawn(|| drop(acquire(WaitQueue))).join().unwrap());
    }
}
