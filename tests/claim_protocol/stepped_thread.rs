//! Thread that runs one step at a time: from one point of the protocol to the next. Of all such threads one runs at a
//! time, so what they do together depends on nothing but the order of their steps.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::rc::Rc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread;

use hotpool::shard::{ProtocolPoint, ProtocolRule, inject_into_thread};

/// Payload of the panics that this test injects into runs of shards.
pub const INJECTED_FAULT: &str = "injected fault";

/// Order to a thread that is paused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Order {
    Resume,
    /// Panics at the point where it is.
    Panic,
    /// Drops the call of a caller.
    Leave,
}

/// State of a thread between two steps.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Whereabouts {
    At(ProtocolPoint),
    /// Waits until it is woken.
    Blocked,
    Finished,
    Failed(String),
}

/// End of a stepped thread inside of it.
pub struct StepPort {
    orders: Receiver<Order>,
    reports: Sender<Whereabouts>,
}

impl StepPort {
    /// Reports where the thread is and waits for the next order; none if nobody steps the thread any more.
    pub fn pause(&self, whereabouts: Whereabouts) -> Option<Order> {
        self.reports.send(whereabouts).ok()?;
        self.orders.recv().ok()
    }

    /// Makes the thread pause at these points of the protocol from now on.
    pub fn pause_at(self: &Rc<Self>, points: fn(ProtocolPoint) -> bool, broken: Option<ProtocolRule>) {
        let port = Rc::clone(self);
        let hook = move |point| {
            if points(point) && port.pause(Whereabouts::At(point)) == Some(Order::Panic) {
                std::panic::panic_any(INJECTED_FAULT);
            }
        };
        inject_into_thread(Some(Rc::new(hook)), broken);
    }
}

/// End of a stepped thread outside of it.
pub struct SteppedThread {
    orders: Sender<Order>,
    reports: Receiver<Whereabouts>,
    pub whereabouts: Whereabouts,
}

impl SteppedThread {
    /// Starts a thread, which is blocked before its first step.
    pub fn start(body: impl FnOnce(&Rc<StepPort>) + Send + 'static) -> Self {
        let (order, orders) = channel();
        let (report, reports) = channel();
        thread::spawn(move || {
            let Ok(_) = orders.recv() else { return };
            let port = Rc::new(StepPort { orders, reports: report });
            let ended = catch_unwind(AssertUnwindSafe(|| body(&port)));
            inject_into_thread(None, None);
            let text = |panic: Box<dyn std::any::Any + Send>| match panic.downcast::<String>() {
                Ok(text) => *text,
                Err(panic) => (*panic.downcast_ref::<&str>().unwrap_or(&"a panic")).to_owned(),
            };
            let last = ended.map_or_else(|panic| Whereabouts::Failed(text(panic)), |()| Whereabouts::Finished);
            let _ = port.reports.send(last);
        });
        Self { orders: order, reports, whereabouts: Whereabouts::Blocked }
    }

    /// Lets the thread make one step.
    pub fn step(&mut self, order: Order) {
        self.orders.send(order).expect("the thread waits for its next step");
        self.whereabouts = self.reports.recv().expect("the thread reports where it is");
    }

    pub fn is_at_point(&self) -> bool {
        matches!(self.whereabouts, Whereabouts::At(_))
    }

    /// Whether the thread is in a run of a shard.
    pub fn is_in_run(&self) -> bool {
        matches!(self.whereabouts, Whereabouts::At(point) if point != ProtocolPoint::Effect)
    }
}
