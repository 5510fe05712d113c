//! Environment: everything that the process takes from outside its own state: time, timers, tasks, threads that may block,
//! random numbers and ids. Whoever needs one of them is handed an [`Environment`], so a test decides what time it is, which
//! task runs next, and which numbers are drawn: the same seed gives the same run.
//!
//! The edges are exempt where they wait for sockets: what a client may keep waiting is bounded by the runtime's own timers.

mod clock;
mod runtime;

pub use self::clock::{Clock, TICK_MS, TICK_STEP_MAX_MS};
pub use self::runtime::{SimulatedRuntime, SimulatedTask, TaskHandle};

use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::Duration;

use futures::future::{BoxFuture, Either, FutureExt as _, select};
use uuid::Uuid;

use crate::collections;

/// Future that resolves after a time.
pub type SleepFuture = BoxFuture<'static, ()>;

/// Source of time, timers, tasks, random numbers and ids; cheap to clone.
#[derive(Clone)]
pub struct Environment {
    clock: Clock,
    /// Runtime of a simulation; none: tokio's.
    simulated: Option<Arc<dyn SimulatedRuntime>>,
}

impl fmt::Debug for Environment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let is_simulated = self.simulated.is_some();
        f.debug_struct("Environment").field("clock", &self.clock).field("is_simulated", &is_simulated).finish()
    }
}

/// Failure of work that was to run on a thread that may block.
#[derive(Debug, Clone, thiserror::Error)]
pub enum BlockingError {
    /// Work that panicked in its thread.
    #[error("the work panicked: {0}")]
    Panicked(String),
    /// Work that was not begun, because the runtime is shutting down.
    #[error("the runtime is shutting down")]
    Cancelled,
}

/// Timer that fires again and again. After a late tick the next one is a whole period away.
#[derive(Debug)]
pub struct TickInterval {
    environment: Environment,
    period: Duration,
    /// Timer of the runtime; none in a simulation.
    system: Option<tokio::time::Interval>,
    has_ticked: bool,
}

impl TickInterval {
    /// Waits for the next tick. The first comes at once.
    #[allow(clippy::disallowed_methods, reason = "the environment's own timer")]
    pub async fn tick(&mut self) {
        if self.environment.simulated.is_none() {
            let period = self.period;
            let system = self.system.get_or_insert_with(|| {
                let mut interval = tokio::time::interval(period);
                interval.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
                interval
            });
            system.tick().await;
        } else if self.has_ticked {
            self.environment.sleep(self.period).await;
        }
        self.has_ticked = true;
    }
}

#[allow(clippy::disallowed_methods, reason = "the one place where the runtime is used directly")]
impl Environment {
    /// Environment of a process: the system's time, and the tokio runtime on which its futures are polled.
    #[must_use]
    pub fn system() -> Self {
        Self::with_clock(Clock::system())
    }

    /// Environment of a process whose time is this clock's. Timers follow the runtime.
    #[must_use]
    pub const fn with_clock(clock: Clock) -> Self {
        Self { clock, simulated: None }
    }

    /// Environment of a simulated process.
    #[must_use]
    pub fn simulated(clock: Clock, runtime: Arc<dyn SimulatedRuntime>) -> Self {
        Self { clock, simulated: Some(runtime) }
    }

    /// Clock of the process.
    #[must_use]
    pub const fn clock(&self) -> &Clock {
        &self.clock
    }

    /// Timer that resolves after `duration`.
    #[must_use]
    pub fn sleep(&self, duration: Duration) -> SleepFuture {
        match &self.simulated {
            None => tokio::time::sleep(duration).boxed(),
            Some(simulated) => simulated.sleep(duration),
        }
    }

    /// Creates a timer that fires every `period`.
    #[must_use]
    pub fn interval(&self, period: Duration) -> TickInterval {
        TickInterval { environment: self.clone(), period, system: None, has_ticked: false }
    }

    /// Output of `work`; none if it takes longer than `limit`, and it is dropped then.
    pub async fn timeout<T>(&self, limit: Duration, work: impl Future<Output = T>) -> Option<T> {
        match &self.simulated {
            None => tokio::time::timeout(limit, work).await.ok(),
            // What is ready is taken even if the time is up.
            Some(simulated) => match select(Box::pin(work), simulated.sleep(limit)).await {
                Either::Left((output, _)) => Some(output),
                Either::Right(_) => None,
            },
        }
    }

    /// Lets other tasks run first.
    pub async fn yield_now(&self) {
        match &self.simulated {
            None => tokio::task::yield_now().await,
            Some(simulated) => simulated.yield_now().await,
        }
    }

    /// Lets a simulation decide what runs next. Resolves at once in a process.
    pub async fn scheduling_point(&self) {
        if let Some(simulated) = &self.simulated {
            simulated.yield_now().await;
        }
    }

    /// Runs a task beside the caller, which need not wait for it. `name` tells people what it does.
    pub fn spawn<T: Send + 'static>(
        &self,
        name: &'static str,
        task: impl Future<Output = T> + Send + 'static,
    ) -> TaskHandle<T> {
        match &self.simulated {
            None => TaskHandle::of_tokio(tokio::spawn(task)),
            Some(simulated) => TaskHandle::spawn_simulated(&**simulated, name, task),
        }
    }

    /// Runs `work` on a thread that may block.
    ///
    /// # Errors
    /// The work panicked, or was not begun because the runtime is shutting down.
    pub async fn run_blocking<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, BlockingError> {
        let Some(simulated) = &self.simulated else {
            return tokio::task::spawn_blocking(work).await.map_err(|error| match error.is_panic() {
                true => BlockingError::Panicked(error.to_string()),
                false => BlockingError::Cancelled,
            });
        };
        simulated.blocking_delay().await;
        let done = catch_unwind(AssertUnwindSafe(work));
        simulated.blocking_delay().await;
        done.map_err(|_| BlockingError::Panicked("in a simulated thread".to_owned()))
    }

    /// Whether the thread of this task may wait for the disk: the runtime has others for everybody else.
    #[must_use]
    pub fn may_block(&self) -> bool {
        match &self.simulated {
            None => tokio::runtime::Handle::try_current().is_ok_and(|runtime| {
                runtime.runtime_flavor() == tokio::runtime::RuntimeFlavor::MultiThread
                    && runtime.metrics().num_workers() > 1
            }),
            Some(simulated) => simulated.may_block(),
        }
    }

    /// Random number that nobody need be unable to guess.
    #[must_use]
    pub fn random_u64(&self) -> u64 {
        match &self.simulated {
            None => collections::random_u64(),
            Some(simulated) => simulated.random_u64(),
        }
    }

    /// Fresh id: a UUID of version 7.
    #[must_use]
    pub fn new_uuid(&self) -> Uuid {
        match &self.simulated {
            None => Uuid::now_v7(),
            Some(simulated) => {
                let random = u128::from(simulated.random_u64()) << 64 | u128::from(simulated.random_u64());
                let random = random.to_le_bytes().first_chunk().copied().expect("ten of sixteen bytes");
                uuid::Builder::from_unix_timestamp_millis(self.clock.unix_ms(), &random).into_uuid()
            }
        }
    }
}
