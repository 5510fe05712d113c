//! Events of a pool, for its watchers.
//!
//! The events of a pool are in one ring buffer, filled by its shards at the end of each run. Events of one worker are
//! in order, and every event has a position. A watcher is only a position in the buffer, so a slow one costs nothing.
//! Events that were overwritten before a watcher read them are reported as a count ([`WatchItem::Dropped`]), and the
//! watcher continues with the oldest one left. A watcher that reconnects with the position of its last event gets
//! everything since.
//!
//! Most pools have no watcher. So events are recorded only while there is one, and for [`limits::WATCH_LINGER_MS`]
//! longer for watchers that reconnect. Otherwise a run of a shard reads one flag and allocates nothing. Positions
//! begin with an *epoch*, which changes whenever continuity is lost: the buffer started over, the process restarted,
//! or a shard panicked. For a position of another epoch the number of missed events is unknown, so the watcher must
//! list the pool again.
//!
//! **A watch is for observation.** Events are published when they are decided, which may be before the store has them,
//! and before or after the reply. Changes that are undone because their record could not be stored are reported as
//! well (`given_back`); changes that a crash undoes lie in an earlier epoch. A client that watches first and lists
//! then misses nothing: changes that the list does not show follow as events.

mod event;
mod position;

use parking_lot::{Mutex, MutexGuard};
use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use tokio::sync::{Notify, OwnedSemaphorePermit};

pub use self::event::{EventClaim, PoolEvent, PoolEventKind, PoolEventReason};
pub use self::position::EventPosition;
use crate::environment::Clock;
use crate::limits;
use crate::metrics::PoolMetrics;
use crate::model::Millis;
use crate::model::request_error::RequestError;

/// Maximum number of events that a watcher gets in one read.
const READ_BATCH: usize = 256;

/// Events of one pool and their watchers.
#[derive(Debug, Default)]
pub struct PoolEventLog {
    /// Whether events are recorded; shards check it in every run.
    recording: AtomicBool,
    ring: Mutex<EventRing>,
    notify: Notify,
}

#[derive(Debug, Default)]
struct EventRing {
    epoch: u64,
    events: VecDeque<PoolEvent>,
    /// Number of the next event.
    next: u64,
    watchers: usize,
    /// Engine time at which the last watcher left.
    idle_since_ms: Millis,
    /// Whether the pool was deleted.
    closed: bool,
}

/// Item that a watcher receives.
#[derive(Debug, Clone)]
pub enum WatchItem {
    /// The watch starts; later events follow.
    Started,
    /// Events were dropped: how many, or `None` if the number is unknown and the pool may be in any state.
    Dropped(Option<u64>),
    /// An event of the pool.
    Event(PoolEvent),
}

impl PoolEventLog {
    fn ring(&self) -> MutexGuard<'_, EventRing> {
        self.ring.lock()
    }

    /// Whether events are recorded.
    #[must_use]
    pub fn is_recording(&self) -> bool {
        self.recording.load(Ordering::Relaxed)
    }

    /// Number of current watchers.
    #[must_use]
    pub fn watchers(&self) -> usize {
        self.ring().watchers
    }

    /// Appends the events of one run of a shard and empties `events`.
    pub fn append(&self, events: &mut Vec<PoolEvent>) {
        {
            let mut ring = self.ring();
            if !self.is_recording() {
                events.clear();
                return;
            }
            for event in events.drain(..) {
                if ring.events.len() == limits::WATCH_EVENTS_MAX {
                    ring.events.pop_front();
                }
                ring.events.push_back(event);
                ring.next += 1;
            }
        }
        self.notify.notify_waiters();
    }

    /// Starts a new epoch because a shard lost its state and its unpublished events.
    pub fn reset(&self, unix_us: u64) {
        {
            let mut ring = self.ring();
            if !self.is_recording() {
                return;
            }
            ring.start_epoch(unix_us);
        }
        self.notify.notify_waiters();
    }

    /// Closes the log of a deleted pool: watchers get the remaining events and then the end.
    pub fn close(&self) {
        self.ring().closed = true;
        self.notify.notify_waiters();
    }

    /// Drops the events if the last watcher left some time ago.
    pub fn tick(&self, now_ms: Millis) {
        if !self.is_recording() {
            return;
        }
        let mut ring = self.ring();
        if ring.is_expired(now_ms) {
            self.recording.store(false, Ordering::Relaxed);
            ring.events = VecDeque::new();
        }
    }

    /// Adds a watcher of later events, or of all events after `from`.
    fn subscribe(
        &self,
        from: Option<EventPosition>,
        clock: &Clock,
    ) -> Result<(EventPosition, Option<WatchItem>), RequestError> {
        let mut ring = self.ring();
        if ring.watchers >= limits::POOL_WATCHERS_MAX {
            return Err(RequestError::TooManyWatchers);
        }
        if !self.is_recording() || ring.is_expired(clock.engine_ms()) {
            ring.start_epoch(clock.unix_us());
            self.recording.store(true, Ordering::Relaxed);
        }
        let current = EventPosition { epoch: ring.epoch, number: ring.next - 1 };
        let start = match from {
            None => (current, Some(WatchItem::Started)),
            Some(from) if from.epoch != ring.epoch => (current, Some(WatchItem::Dropped(None))),
            Some(from) if from.number > current.number => {
                return Err(RequestError::invalid(
                    "from",
                    "must be the position of an earlier event; this one is in the future",
                ));
            }
            Some(from) => (from, None),
        };
        ring.watchers += 1;
        Ok(start)
    }

    fn unsubscribe(&self, clock: &Clock) {
        let mut ring = self.ring();
        ring.watchers -= 1;
        ring.idle_since_ms = clock.engine_ms();
    }
}

impl EventRing {
    /// Whether the last watcher left so long ago that it is not expected back.
    fn is_expired(&self, now_ms: Millis) -> bool {
        self.watchers == 0 && now_ms >= self.idle_since_ms + limits::WATCH_LINGER_MS
    }

    /// Starts a new epoch without events.
    fn start_epoch(&mut self, unix_us: u64) {
        self.epoch = unix_us.max(self.epoch + 1);
        self.next = 1;
        self.events.clear();
    }

    /// Reads the items after `position`, which advances. Returns false if there are none.
    fn read_after(&self, position: &mut EventPosition, items: &mut Vec<(EventPosition, WatchItem)>) -> bool {
        let oldest = self.next - self.events.len() as u64;
        let missed = if position.epoch != self.epoch {
            *position = EventPosition { epoch: self.epoch, number: self.next - 1 };
            Some(None)
        } else if position.number + 1 < oldest {
            let missed = oldest - 1 - position.number;
            position.number = oldest - 1;
            Some(Some(missed))
        } else {
            None
        };
        items.extend(missed.map(|missed| (*position, WatchItem::Dropped(missed))));
        let skip = (position.number + 1 - oldest) as usize;
        for event in self.events.range(skip.min(self.events.len())..).take(READ_BATCH) {
            position.number += 1;
            items.push((*position, WatchItem::Event(event.clone())));
        }
        !items.is_empty()
    }
}

/// Watcher of a pool, which reads its events in order.
pub struct PoolWatcher {
    log: Arc<PoolEventLog>,
    metrics: Arc<PoolMetrics>,
    /// Position of the last item that was read.
    position: EventPosition,
    first: Option<WatchItem>,
    clock: Clock,
    _permit: OwnedSemaphorePermit,
}

impl PoolWatcher {
    /// Starts a watch after `from`, or with the next event if `from` is not given.
    ///
    /// # Errors
    /// `TooManyWatchers` if the pool has too many; `Invalid` naming `from` if it is in the future.
    pub fn new(
        log: Arc<PoolEventLog>,
        metrics: Arc<PoolMetrics>,
        from: Option<EventPosition>,
        clock: &Clock,
        permit: OwnedSemaphorePermit,
    ) -> Result<Self, RequestError> {
        let (position, first) = log.subscribe(from, clock)?;
        Ok(Self { log, metrics, position, first, clock: clock.clone(), _permit: permit })
    }

    /// Waits for the next items and adds them with their positions to `items`, which must be empty. Returns false when
    /// the pool was deleted.
    pub async fn next(&mut self, items: &mut Vec<(EventPosition, WatchItem)>) -> bool {
        debug_assert!(items.is_empty(), "items of the last read must be consumed first");
        if let Some(first) = self.first.take() {
            items.push((self.position, first));
            return true;
        }
        let log = &self.log;
        loop {
            let mut changed = std::pin::pin!(log.notify.notified());
            // Registered from here on, so that no notification is missed.
            changed.as_mut().enable();
            let closed = {
                let ring = log.ring();
                if ring.read_after(&mut self.position, items) {
                    break;
                }
                ring.closed
            };
            if closed {
                return false;
            }
            changed.await;
        }
        let missed = items.iter().filter_map(|(_, item)| match item {
            WatchItem::Dropped(missed) => *missed,
            _ => None,
        });
        self.metrics.watch_events_dropped.increment(missed.sum());
        true
    }
}

impl Drop for PoolWatcher {
    fn drop(&mut self) {
        self.log.unsubscribe(&self.clock);
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::model::{WorkerId, WorkerRegistration, WorkerSpec};

    fn event() -> PoolEvent {
        let spec = WorkerSpec::with_id(WorkerId::new("w").unwrap());
        let worker = Arc::new(WorkerRegistration { spec });
        PoolEvent { kind: PoolEventKind::Registered, reason: None, at_ms: 1, shard: 0, worker, claim: None }
    }

    #[test]
    fn unwatched_pools_keep_no_events_and_watched_ones_keep_them_for_a_minute() {
        let (log, clock) = (PoolEventLog::default(), Clock::manual());
        log.append(&mut vec![event()]);
        assert!(!log.is_recording() && log.ring().events.capacity() == 0);
        log.subscribe(None, &clock).unwrap();
        log.append(&mut vec![event()]);
        log.unsubscribe(&clock);
        log.tick(clock.engine_ms() + limits::WATCH_LINGER_MS - 1);
        assert!(log.is_recording() && log.ring().events.len() == 1);
        log.tick(clock.engine_ms() + limits::WATCH_LINGER_MS);
        assert!(!log.is_recording() && log.ring().events.capacity() == 0);
        // A watcher that comes back later finds a new epoch, even before the next tick.
        let (first, _) = log.subscribe(None, &clock).unwrap();
        log.unsubscribe(&clock);
        for _ in 0..=limits::WATCH_LINGER_MS / 200 {
            clock.advance(Duration::from_millis(200));
            clock.tick();
        }
        let (again, items) = log.subscribe(Some(first), &clock).unwrap();
        assert!(again.epoch > first.epoch && matches!(items, Some(WatchItem::Dropped(None))));
    }
}
