//! Caller whose call is polled one step at a time.

use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, Wake, Waker};

use futures::future::BoxFuture;
use hotpool::shard::{ProtocolPoint, ProtocolRule};
use tokio::runtime::Handle;

use crate::stepped_thread::{Order, StepPort, SteppedThread, Whereabouts};

/// Flag that a waker raises.
#[derive(Default)]
pub struct WakeFlag(pub AtomicBool);

impl Wake for WakeFlag {
    fn wake(self: Arc<Self>) {
        self.0.store(true, Ordering::SeqCst);
    }
}

pub struct Caller {
    pub thread: SteppedThread,
    woken: Arc<WakeFlag>,
    pub has_begun: bool,
}

/// Lets other threads go first.
pub async fn step() {
    let mut has_paused = false;
    std::future::poll_fn(|context| {
        if std::mem::replace(&mut has_paused, true) {
            return Poll::Ready(());
        }
        context.waker().wake_by_ref();
        Poll::Pending
    })
    .await;
}

impl Caller {
    /// Whether something has happened that the caller waits for.
    pub fn is_woken(&self) -> bool {
        self.woken.0.load(Ordering::SeqCst)
    }

    pub fn start(
        call: BoxFuture<'static, ()>,
        handle: Handle,
        points: fn(ProtocolPoint) -> bool,
        broken: Option<ProtocolRule>,
    ) -> Self {
        let woken = Arc::new(WakeFlag(AtomicBool::new(true)));
        let flag = Arc::clone(&woken);
        let thread = SteppedThread::start(move |port: &Rc<StepPort>| {
            port.pause_at(points, broken);
            let _entered = handle.enter();
            let waker = Waker::from(Arc::clone(&flag));
            let mut call = call;
            loop {
                flag.0.store(false, Ordering::SeqCst);
                if call.as_mut().poll(&mut Context::from_waker(&waker)).is_ready() {
                    return;
                }
                match port.pause(Whereabouts::Blocked) {
                    Some(Order::Leave) => return drop(call),
                    Some(_) => {}
                    // Nobody steps the thread any more: what it began is abandoned with the runtime.
                    None => return std::mem::forget(call),
                }
            }
        });
        Self { thread, woken, has_begun: false }
    }
}
