//! Time and random numbers of a seed, for one future on one thread.

use std::collections::BTreeMap;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, Wake, Waker};
use std::time::Duration;

use futures::FutureExt as _;
use futures::future::BoxFuture;
use hotpool::environment::{Clock, Environment, SimulatedRuntime, SimulatedTask};
use parking_lot::Mutex;

/// Time that goes on whenever everybody waits, and random numbers of a seed.
#[derive(Clone)]
pub struct SimulatedTime {
    clock: Clock,
    timers: Arc<Mutex<Timers>>,
}

struct Timers {
    random_state: u64,
    /// Wakers by the time at which they are due, and the number of the timer.
    waiting: BTreeMap<(u64, u64), Waker>,
    count: u64,
}

/// Timer that removes itself if nobody waits for it any more.
struct Timer {
    time: SimulatedTime,
    at: (u64, u64),
}

#[derive(Default)]
struct WakeFlag(AtomicBool);

impl Wake for WakeFlag {
    fn wake(self: Arc<Self>) {
        self.0.store(true, Ordering::Relaxed);
    }
}

impl SimulatedTime {
    pub fn new(seed: u64) -> Self {
        let timers = Timers { random_state: seed, waiting: BTreeMap::new(), count: 0 };
        Self { clock: Clock::manual(), timers: Arc::new(Mutex::new(timers)) }
    }

    pub fn environment(&self) -> Environment {
        Environment::simulated(self.clock.clone(), Arc::new(self.clone()))
    }

    /// Polls a future to its end.
    pub fn run<T>(&self, future: impl Future<Output = T>) -> T {
        let mut future = pin!(future);
        let flag = Arc::new(WakeFlag::default());
        let waker = Waker::from(Arc::clone(&flag));
        loop {
            if let Poll::Ready(output) = future.as_mut().poll(&mut Context::from_waker(&waker)) {
                return output;
            }
            if flag.0.swap(false, Ordering::Relaxed) {
                continue;
            }
            let next = self.timers.lock().waiting.pop_first();
            let ((at_ns, _), timer) = next.expect("the future waits for something that never happens");
            self.clock.advance(Duration::from_nanos(at_ns.saturating_sub(self.clock.mono_ns())));
            timer.wake();
        }
    }
}

impl Future for Timer {
    type Output = ();

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        if self.time.clock.mono_ns() >= self.at.0 {
            return Poll::Ready(());
        }
        self.time.timers.lock().waiting.insert(self.at, context.waker().clone());
        Poll::Pending
    }
}

impl Drop for Timer {
    fn drop(&mut self) {
        self.time.timers.lock().waiting.remove(&self.at);
    }
}

impl SimulatedRuntime for SimulatedTime {
    fn random_u64(&self) -> u64 {
        // splitmix64
        let mut timers = self.timers.lock();
        timers.random_state = timers.random_state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = timers.random_state;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    fn sleep(&self, duration: Duration) -> BoxFuture<'static, ()> {
        let at_ns = self.clock.mono_ns() + u64::try_from(duration.as_nanos()).expect("years");
        let mut timers = self.timers.lock();
        timers.count += 1;
        Timer { time: self.clone(), at: (at_ns, timers.count) }.boxed()
    }

    fn yield_now(&self) -> BoxFuture<'static, ()> {
        let mut has_yielded = false;
        futures::future::poll_fn(move |context| {
            if std::mem::replace(&mut has_yielded, true) {
                return Poll::Ready(());
            }
            context.waker().wake_by_ref();
            Poll::Pending
        })
        .boxed()
    }

    fn blocking_delay(&self) -> BoxFuture<'static, ()> {
        futures::future::ready(()).boxed()
    }

    fn may_block(&self) -> bool {
        false
    }

    fn spawn(&self, name: &'static str, _task: BoxFuture<'static, ()>) -> Arc<dyn SimulatedTask> {
        panic!("a store spawns no task, but {name} was spawned");
    }
}
