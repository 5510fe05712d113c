//! Until when a claim that the last stop lost is adopted, and which keys must not be any more.
//!
//! A worker that names a lost claim is believed while nobody had its key since this process owned the store. What the owner before
//! last gave out is told apart by fences (the lost tail, see `crate::engine`); of what was granted twice within the life that
//! crashed only records can tell, and those may be among what was lost. What ended since is remembered
//! here: a hash of each key, with its fence. That takes memory and has a bound, so it goes on only until every worker that
//! nothing has spoken for has spoken, and for [`limits::ADOPTION_MS`] at most; from then on nothing is adopted. A stop
//! that can have lost nothing begins none of it.

use parking_lot::{Mutex, MutexGuard};
use std::hash::BuildHasherDefault;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use hashbrown::HashMap;

use crate::admission::key_directory::PrehashedHasher;
use crate::limits;
use crate::model::{Fence, Millis};

/// Maps that keys fall into by their hash.
const STRIPE_COUNT: usize = 64;

type Stripe = HashMap<u64, Fence, BuildHasherDefault<PrehashedHasher>>;

/// Keys whose claim ended since the start.
#[derive(Debug)]
pub struct AdoptionWindow {
    /// Engine time at which nothing is adopted any more; 0: nothing is.
    until_ms: AtomicU64,
    /// Until then a worker may come that the store never knew.
    late_workers_until_ms: AtomicU64,
    /// Keys that may still be remembered.
    free_entries: AtomicUsize,
    stripes: Box<[Mutex<Stripe>]>,
}

impl Default for AdoptionWindow {
    fn default() -> Self {
        Self {
            until_ms: AtomicU64::new(0),
            late_workers_until_ms: AtomicU64::new(0),
            free_entries: AtomicUsize::new(0),
            stripes: std::iter::repeat_with(Mutex::default).take(STRIPE_COUNT).collect(),
        }
    }
}

impl AdoptionWindow {
    /// The last stop may have lost claims: they are adopted from now on. Before `settled_ms` a worker may come that the
    /// store never knew. Called before anything is granted.
    pub fn open(&self, now_ms: Millis, settled_ms: Millis) {
        self.free_entries.store(limits::ADOPTION_KEYS_MAX, Ordering::Relaxed);
        self.late_workers_until_ms.store(settled_ms, Ordering::Relaxed);
        self.until_ms.store(now_ms + limits::ADOPTION_MS, Ordering::Release);
        let minutes = limits::ADOPTION_MS / 60_000;
        tracing::info!(minutes, "lost claims are adopted when their workers name them, for so long at most");
    }

    /// Whether ended keys are remembered.
    #[must_use]
    pub fn is_open(&self) -> bool {
        self.until_ms.load(Ordering::Relaxed) != 0
    }

    /// Whether lost claims are adopted at this time.
    #[must_use]
    pub fn is_open_at(&self, now_ms: Millis) -> bool {
        now_ms < self.until_ms.load(Ordering::Relaxed)
    }

    /// A claim with this fence held the key, and does no more. Called before anybody else can have the key.
    pub fn record_ended(&self, hash: u64, fence: Fence) {
        if !self.is_open() {
            return;
        }
        let mut stripe = self.stripe(hash);
        // Under the lock: what `close` has emptied stays so.
        if !self.is_open() {
            return;
        }
        if let Some(last) = stripe.get_mut(&hash) {
            *last = fence.max(*last);
            return;
        }
        if self.free_entries.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |room| room.checked_sub(1)).is_ok() {
            stripe.insert(hash, fence);
            return;
        }
        drop(stripe);
        self.close("more keys were held since the start than are remembered");
    }

    /// Whether a lost claim with this fence may get the key, which nobody holds: no claim of that fence or a later one is
    /// known to be over.
    #[must_use]
    pub fn allows(&self, hash: u64, fence: Fence) -> bool {
        let stripe = self.stripe(hash);
        // Under the lock, so that what `close` has emptied is not taken for what never was.
        self.is_open() && stripe.get(&hash).is_none_or(|last| *last < fence)
    }

    /// Looks whether it is time to end this. `all_spoke`: no worker is left that nothing has spoken for.
    pub fn close_if_due(&self, now_ms: Millis, all_spoke: impl FnOnce() -> bool) {
        if !self.is_open() {
            return;
        }
        if !self.is_open_at(now_ms) {
            self.close("some workers have not spoken in all the time that they had");
        } else if now_ms >= self.late_workers_until_ms.load(Ordering::Relaxed) && all_spoke() {
            self.close("every worker has spoken");
        }
    }

    fn close(&self, why: &str) {
        if self.until_ms.swap(0, Ordering::AcqRel) == 0 {
            return;
        }
        for stripe in &self.stripes {
            *locked(stripe) = Stripe::default();
        }
        tracing::info!("lost claims are not adopted any more: {why}");
    }

    fn stripe(&self, hash: u64) -> MutexGuard<'_, Stripe> {
        // Other bits than those by which a map finds its place.
        locked(&self.stripes[(hash >> 32) as usize % STRIPE_COUNT])
    }
}

/// Nothing here is left half changed by a panic.
fn locked(stripe: &Mutex<Stripe>) -> MutexGuard<'_, Stripe> {
    stripe.lock()
}
