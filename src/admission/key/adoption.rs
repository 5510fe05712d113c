//! Adoption of claims that the last crash lost: how long they may be readopted, and which keys are excluded.
//!
//! A worker that reports a lost claim is believed if nobody has held its key since this process took over the store.
//! Claims granted by the owner before the last are recognised by their fences (the lost tail, see `crate::engine`). A
//! key that was granted twice within the crashed life can only be recognised by its records, and those may be lost.
//! Keys whose claims ended since the start are therefore recorded here: a hash of each key, with its fence. The memory
//! is bounded, so recording goes on only until every unconfirmed worker has reported, and for [`limits::ADOPTION_MS`]
//! at most. After that no claim is readopted. A clean stop, which can lose nothing, opens no window.

use parking_lot::{Mutex, MutexGuard};
use std::hash::BuildHasherDefault;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use hashbrown::HashMap;

use crate::admission::key::PrehashedHasher;
use crate::limits;
use crate::model::{Fence, Millis};

/// Number of maps that keys are spread over by hash.
const STRIPE_COUNT: usize = 64;

type FenceStripe = HashMap<u64, Fence, BuildHasherDefault<PrehashedHasher>>;

/// Period after a start in which lost claims are readopted, with the keys whose claims ended meanwhile.
#[derive(Debug)]
pub struct AdoptionWindow {
    /// Engine time at which the window closes; 0 while it is closed.
    until_ms: AtomicU64,
    /// Engine time until which workers unknown to the store may still register.
    late_workers_until_ms: AtomicU64,
    /// Number of further keys that may be recorded.
    free_entries: AtomicUsize,
    stripes: Box<[Mutex<FenceStripe>]>,
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
    /// Opens the window, because the last stop may have lost claims. Until `settled_ms` workers that the store never
    /// knew may register. Must be called before the first grant.
    pub fn open(&self, now_ms: Millis, settled_ms: Millis) {
        self.free_entries.store(limits::ADOPTION_KEYS_MAX, Ordering::Relaxed);
        self.late_workers_until_ms.store(settled_ms, Ordering::Relaxed);
        self.until_ms.store(now_ms + limits::ADOPTION_MS, Ordering::Release);
        let minutes = limits::ADOPTION_MS / 60_000;
        tracing::info!(minutes, "readopting lost claims that their workers report, for at most this long");
    }

    /// Whether ended keys are recorded.
    #[must_use]
    pub fn is_open(&self) -> bool {
        self.until_ms.load(Ordering::Relaxed) != 0
    }

    /// Whether lost claims are readopted at this time.
    #[must_use]
    pub fn is_open_at(&self, now_ms: Millis) -> bool {
        now_ms < self.until_ms.load(Ordering::Relaxed)
    }

    /// Records that a claim with this fence held the key and has ended. Must be called before the key can be claimed
    /// again.
    pub fn record_ended(&self, hash: u64, fence: Fence) {
        if !self.is_open() {
            return;
        }
        let mut stripe = self.stripe(hash);
        // Checked again under the lock: a stripe that `close` emptied must stay empty.
        if !self.is_open() {
            return;
        }
        if let Some(last) = stripe.get_mut(&hash) {
            *last = fence.max(*last);
            return;
        }
        if self.free_entries.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |free| free.checked_sub(1)).is_ok() {
            stripe.insert(hash, fence);
            return;
        }
        drop(stripe);
        self.close("more keys ended since the start than can be recorded");
    }

    /// Whether a lost claim with this fence may take the vacant key: no claim with the same or a later fence is known
    /// to have ended.
    #[must_use]
    pub fn allows(&self, hash: u64, fence: Fence) -> bool {
        let stripe = self.stripe(hash);
        // Checked under the lock, so that a stripe emptied by `close` is not mistaken for one without the key.
        self.is_open() && stripe.get(&hash).is_none_or(|last| *last < fence)
    }

    /// Closes the window if its time is over or every worker has reported. `all_reported`: no unconfirmed worker is
    /// left.
    pub fn close_if_due(&self, now_ms: Millis, all_reported: impl FnOnce() -> bool) {
        if !self.is_open() {
            return;
        }
        if !self.is_open_at(now_ms) {
            self.close("some workers did not report in time");
        } else if now_ms >= self.late_workers_until_ms.load(Ordering::Relaxed) && all_reported() {
            self.close("every worker has reported");
        }
    }

    fn close(&self, reason: &str) {
        if self.until_ms.swap(0, Ordering::AcqRel) == 0 {
            return;
        }
        for stripe in &self.stripes {
            *stripe.lock() = FenceStripe::default();
        }
        tracing::info!(reason, "stopped readopting lost claims");
    }

    fn stripe(&self, hash: u64) -> MutexGuard<'_, FenceStripe> {
        // Uses other bits of the hash than the map inside the stripe.
        self.stripes[(hash >> 32) as usize % STRIPE_COUNT].lock()
    }
}
