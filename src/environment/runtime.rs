//! Runtime of a simulation, and handles of tasks of either runtime.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use futures::future::{BoxFuture, FutureExt as _};
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

/// Timers, tasks and random numbers of one simulated process.
pub trait SimulatedRuntime: Send + Sync + 'static {
    /// Next random number of the seed.
    fn random_u64(&self) -> u64;

    /// Resolves after `duration` of simulated time, or later.
    fn sleep(&self, duration: Duration) -> BoxFuture<'static, ()>;

    /// Resolves when the simulation chooses this task to run next.
    fn yield_now(&self) -> BoxFuture<'static, ()>;

    /// Whether the thread of a task may wait for the disk now.
    fn may_block(&self) -> bool;

    /// Resolves after the time that a switch to a thread that may block takes, and what the thread waits for.
    fn blocking_delay(&self) -> BoxFuture<'static, ()>;

    /// Adds a task to those that the simulation runs.
    fn spawn(&self, name: &'static str, task: BoxFuture<'static, ()>) -> Arc<dyn SimulatedTask>;
}

/// Task that a simulation runs.
pub trait SimulatedTask: Send + Sync {
    /// Drops the task before it is polled again.
    fn abort(&self);
}

enum TaskKind<T> {
    Tokio(JoinHandle<T>),
    Simulated(Arc<dyn SimulatedTask>, oneshot::Receiver<T>),
}

/// Handle of a task. Awaiting it gives the task's output; none if it panicked or was aborted. Dropping it leaves the task
/// running.
pub struct TaskHandle<T>(TaskKind<T>);

impl<T> TaskHandle<T> {
    pub(super) const fn of_tokio(handle: JoinHandle<T>) -> Self {
        Self(TaskKind::Tokio(handle))
    }

    pub(super) fn spawn_simulated(
        runtime: &dyn SimulatedRuntime,
        name: &'static str,
        task: impl Future<Output = T> + Send + 'static,
    ) -> Self
    where
        T: Send + 'static,
    {
        let (output, done) = oneshot::channel();
        let task = async move {
            // Nobody may wait for the output.
            let _ = output.send(task.await);
        };
        Self(TaskKind::Simulated(runtime.spawn(name, task.boxed()), done))
    }

    /// Drops the task at its next await.
    pub fn abort(&self) {
        match &self.0 {
            TaskKind::Tokio(handle) => handle.abort(),
            TaskKind::Simulated(task, _) => task.abort(),
        }
    }
}

impl<T> Future for TaskHandle<T> {
    type Output = Option<T>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<T>> {
        match &mut self.0 {
            TaskKind::Tokio(handle) => handle.poll_unpin(context).map(Result::ok),
            TaskKind::Simulated(_, done) => done.poll_unpin(context).map(Result::ok),
        }
    }
}
