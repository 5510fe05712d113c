//! Threads of a scene: the runtime of the scheduler, and the callers.

use std::future::Future;
use std::sync::Once;
use std::sync::mpsc::channel;

use futures::future::BoxFuture;
use hotpool::shard::{ProtocolPoint, ProtocolRule};
use tokio::runtime::{Builder, Handle};

use crate::caller::Caller;
use crate::stepped_thread::{INJECTED_FAULT, Order, SteppedThread, Whereabouts};

/// Rounds of the runtime after which nothing is left to do unless somebody else wakes it.
const RUNTIME_ROUNDS: usize = 16;

/// Threads by number: 0 is the runtime, then come the callers.
pub struct SceneThreads {
    pub runtime: SteppedThread,
    pub handle: Handle,
    pub callers: Vec<Caller>,
    points: fn(ProtocolPoint) -> bool,
    broken: Option<ProtocolRule>,
}

impl SceneThreads {
    /// Starts the runtime, and returns what `set_up` has made in it. Threads pause at `points` from then on.
    pub fn start<T: Send + 'static, F: Future<Output = T>>(
        set_up: impl FnOnce() -> F + Send + 'static,
        points: fn(ProtocolPoint) -> bool,
        broken: Option<ProtocolRule>,
    ) -> (Self, T) {
        silence_injected_faults();
        let (ready, is_ready) = channel();
        let mut runtime = SteppedThread::start(move |port| {
            let runtime = Builder::new_current_thread().enable_time().build().unwrap();
            let made = runtime.block_on(set_up());
            ready.send((made, runtime.handle().clone())).unwrap();
            port.pause_at(points, broken);
            loop {
                runtime.block_on(async {
                    for _ in 0..RUNTIME_ROUNDS {
                        tokio::task::yield_now().await;
                    }
                });
                if port.pause(Whereabouts::Blocked).is_none() {
                    return;
                }
            }
        });
        runtime.step(Order::Resume);
        let (made, handle) = is_ready.recv().expect("the scheduler starts");
        (Self { runtime, handle, callers: Vec::new(), points, broken }, made)
    }

    /// Adds a caller, whose call begins with its first step.
    pub fn add_caller(&mut self, call: BoxFuture<'static, ()>) {
        self.callers.push(Caller::start(call, self.handle.clone(), self.points, self.broken));
    }

    pub fn len(&self) -> usize {
        1 + self.callers.len()
    }

    pub fn get(&mut self, number: usize) -> &mut SteppedThread {
        match number.checked_sub(1) {
            None => &mut self.runtime,
            Some(caller) => &mut self.callers[caller].thread,
        }
    }

    pub fn can_go_on(&mut self, number: usize) -> bool {
        match self.get(number).whereabouts {
            Whereabouts::At(_) => true,
            Whereabouts::Blocked if number == 0 => self.handle.metrics().global_queue_depth() > 0,
            Whereabouts::Blocked => self.callers[number - 1].is_woken(),
            Whereabouts::Finished | Whereabouts::Failed(_) => false,
        }
    }

    pub fn step(&mut self, number: usize, order: Order) {
        if let Some(caller) = number.checked_sub(1) {
            self.callers[caller].has_begun = true;
        }
        self.get(number).step(order);
    }

    /// Lets a thread do all that it can do now.
    pub fn run_out(&mut self, number: usize) {
        while self.can_go_on(number) {
            self.step(number, Order::Resume);
        }
    }

    /// Whether the call of a caller has begun and waits.
    pub fn is_waiting(&self, caller: usize) -> bool {
        let caller = &self.callers[caller];
        caller.has_begun && caller.thread.whereabouts == Whereabouts::Blocked
    }

    /// Checks that no thread has panicked.
    pub fn check(&mut self) -> Result<(), String> {
        for number in 0..self.len() {
            if let Whereabouts::Failed(text) = &self.get(number).whereabouts {
                return Err(format!("thread {number} panicked: {text}"));
            }
        }
        Ok(())
    }
}

/// Keeps panics that are injected out of the output.
fn silence_injected_faults() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let report = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |panic| {
            if panic.payload().downcast_ref::<&str>() != Some(&INJECTED_FAULT) {
                report(panic);
            }
        }));
    });
}
