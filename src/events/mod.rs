//! What happens in a pool, for those who watch it.
//!
//! The events of a pool stand in one ring, filled by its shards at the end of each run: what befalls one worker is told in
//! order, and every event has a position. A watcher is a place in that ring and no more, so a slow one costs nothing; what
//! the ring has dropped before the watcher came to it is told as a number ([`Told::Missed`]), and it goes on with the oldest
//! that is left. Whoever comes back with the position of the last event that it saw gets what came since.
//!
//! Nobody watches most pools. So events are kept only while somebody does, and [`limits::WATCH_LINGER_MS`] longer for who
//! comes back; else a run of a shard looks at one flag, and nothing is made. Positions begin with an *epoch*, which is
//! another one whenever the thread of events was cut: the ring began anew, the process, or a shard after a panic. With
//! a position of another epoch nobody knows how many were missed, so the watcher has to look at the pool as it is.
//!
//! **A watch is for observation.** Events are told when they are decided, which may be before the store has them, and
//! before or after the answer that speaks of them. What is undone because its record could not be stored is told as well
//! (`given_back`); what a crash undoes is beyond an epoch. Who watches first and lists then has seen everything: what the
//! list does not show is told after it.

mod event;
mod position;

use parking_lot::{Mutex, MutexGuard};
use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use tokio::sync::{Notify, OwnedSemaphorePermit};

pub use self::event::{EventClaim, PoolEvent, PoolEventKind, PoolEventReason};
pub use self::position::EventPosition;
use crate::clock::Clock;
use crate::limits;
use crate::metrics::PoolMetrics;
use crate::model::Millis;
use crate::model::request_error::RequestError;

/// Most events that a watcher is handed at a time.
const READ_BATCH: usize = 256;

/// The events of one pool.
#[derive(Debug, Default)]
pub struct PoolEventLog {
    /// What shards look at.
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
    /// Engine time when the last of them left.
    idle_since_ms: Millis,
    /// The pool is gone.
    closed: bool,
}

/// What a watcher is told.
#[derive(Debug, Clone)]
pub enum WatchItem {
    /// It sees what comes from here on.
    Started,
    /// It did not see so many events; none: nobody knows how many, and the pool may be in any state.
    Dropped(Option<u64>),
    /// Something happened.
    Event(PoolEvent),
}

impl PoolEventLog {
    fn ring(&self) -> MutexGuard<'_, EventRing> {
        self.ring.lock()
    }

    /// Whether events are kept: else there is nothing to tell them to.
    #[must_use]
    pub fn is_recording(&self) -> bool {
        self.recording.load(Ordering::Relaxed)
    }

    /// How many watch.
    #[must_use]
    pub fn watchers(&self) -> usize {
        self.ring().watchers
    }

    /// Takes the events of one run of a shard.
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

    /// The thread of events is cut: a shard lost its mind, and what it had to tell.
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

    /// The pool is gone: watchers get what there is, and then the end.
    pub fn close(&self) {
        self.ring().closed = true;
        self.notify.notify_waiters();
    }

    /// Forgets events that nobody has watched for a while.
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

    /// Another watcher: of what comes from now on, or of what came after `from` as well.
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
        let here = EventPosition { epoch: ring.epoch, number: ring.next - 1 };
        let begins = match from {
            None => (here, Some(WatchItem::Started)),
            Some(from) if from.epoch != ring.epoch => (here, Some(WatchItem::Dropped(None))),
            Some(from) if from.number > here.number => {
                return Err(RequestError::invalid("from", "must be a position that was told, and this is yet to come"));
            }
            Some(from) => (from, None),
        };
        ring.watchers += 1;
        Ok(begins)
    }

    fn unsubscribe(&self, clock: &Clock) {
        let mut ring = self.ring();
        ring.watchers -= 1;
        ring.idle_since_ms = clock.engine_ms();
    }
}

impl EventRing {
    /// Nobody watches, and nobody has for so long that nobody will come back.
    fn is_expired(&self, now_ms: Millis) -> bool {
        self.watchers == 0 && now_ms >= self.idle_since_ms + limits::WATCH_LINGER_MS
    }

    /// Another epoch, and no events.
    fn start_epoch(&mut self, unix_us: u64) {
        self.epoch = unix_us.max(self.epoch + 1);
        self.next = 1;
        self.events.clear();
    }

    /// What comes after `at`, which moves on. False: there is nothing.
    fn read_after(&self, at: &mut EventPosition, told: &mut Vec<(EventPosition, WatchItem)>) -> bool {
        let oldest = self.next - self.events.len() as u64;
        let missed = if at.epoch != self.epoch {
            *at = EventPosition { epoch: self.epoch, number: self.next - 1 };
            Some(None)
        } else if at.number + 1 < oldest {
            let missed = oldest - 1 - at.number;
            at.number = oldest - 1;
            Some(Some(missed))
        } else {
            None
        };
        told.extend(missed.map(|missed| (*at, WatchItem::Dropped(missed))));
        let seen = (at.number + 1 - oldest) as usize;
        for event in self.events.range(seen.min(self.events.len())..).take(READ_BATCH) {
            at.number += 1;
            told.push((*at, WatchItem::Event(event.clone())));
        }
        !told.is_empty()
    }
}

/// One who watches a pool.
pub struct PoolWatcher {
    watch: Arc<PoolEventLog>,
    metrics: Arc<PoolMetrics>,
    /// The last that it was told.
    position: EventPosition,
    first: Option<WatchItem>,
    clock: Clock,
    _permit: OwnedSemaphorePermit,
}

impl PoolWatcher {
    /// `from`: what it was told last; none: it wants what comes from now on.
    ///
    /// # Errors
    /// `TooManyWatchers` if too many watch the pool; `Invalid` naming `from`, which is yet to come.
    pub fn new(
        watch: Arc<PoolEventLog>,
        metrics: Arc<PoolMetrics>,
        from: Option<EventPosition>,
        clock: &Clock,
        place: OwnedSemaphorePermit,
    ) -> Result<Self, RequestError> {
        let (at, first) = watch.subscribe(from, clock)?;
        Ok(Self { watch, metrics, position: at, first, clock: clock.clone(), _permit: place })
    }

    /// Waits for what comes next, and puts it with its position into `told`, which is empty. False: the pool is gone.
    pub async fn next(&mut self, told: &mut Vec<(EventPosition, WatchItem)>) -> bool {
        debug_assert!(told.is_empty(), "what was told before is dealt with");
        if let Some(first) = self.first.take() {
            told.push((self.position, first));
            return true;
        }
        let watch = &self.watch;
        loop {
            let mut news = std::pin::pin!(watch.notify.notified());
            // From here on none is overheard.
            news.as_mut().enable();
            let closed = {
                let ring = watch.ring();
                if ring.read_after(&mut self.position, told) {
                    break;
                }
                ring.closed
            };
            if closed {
                return false;
            }
            news.await;
        }
        let missed = told.iter().filter_map(|(_, told)| match told {
            WatchItem::Dropped(missed) => *missed,
            _ => None,
        });
        self.metrics.watch_events_dropped.increment(missed.sum());
        true
    }
}

impl Drop for PoolWatcher {
    fn drop(&mut self) {
        self.watch.unsubscribe(&self.clock);
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
    fn without_a_watcher_nothing_is_kept_and_no_room_is() {
        let (watch, clock) = (PoolEventLog::default(), Clock::manual());
        watch.append(&mut vec![event()]);
        assert!(!watch.is_recording() && watch.ring().events.capacity() == 0);
        watch.subscribe(None, &clock).unwrap();
        watch.append(&mut vec![event()]);
        watch.unsubscribe(&clock);
        watch.tick(clock.engine_ms() + limits::WATCH_LINGER_MS - 1);
        assert!(watch.is_recording() && watch.ring().events.len() == 1);
        watch.tick(clock.engine_ms() + limits::WATCH_LINGER_MS);
        assert!(!watch.is_recording() && watch.ring().events.capacity() == 0);
        // Who comes back later finds another epoch, also where the tick has not been yet.
        let (first, _) = watch.subscribe(None, &clock).unwrap();
        watch.unsubscribe(&clock);
        for _ in 0..=limits::WATCH_LINGER_MS / 200 {
            clock.advance(Duration::from_millis(200));
            clock.tick();
        }
        let (again, told) = watch.subscribe(Some(first), &clock).unwrap();
        assert!(again.epoch > first.epoch && matches!(told, Some(WatchItem::Dropped(None))));
    }
}
