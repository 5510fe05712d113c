//! The threads that serve RESP connections, one for every core, each with a runtime of its own: a connection stays where its
//! memory is, no thread is woken to take over another's work, and a request that finds its shard free never leaves its
//! thread.
//!
//! Connections begin on half of the threads. One that sends one command at a time costs the kernel, and its peer, as much as
//! it costs here, and all of them want the cores; with half of the threads each of those has more to do at a time, which
//! is cheaper. One that sends deep pipelines is work for this process, and moves to whichever of all threads has the fewest.

use std::io;
use std::sync::{Arc, OnceLock, Weak};
use std::thread;
use std::time::Duration;

use tokio::runtime::Builder;
use tokio::sync::mpsc::{self, error::TrySendError};
use tokio::sync::watch;
use tokio::time::{error::Elapsed, timeout};

use super::connection::IdleConnection;
use super::{RespContext, serve};
use crate::api::connection_budget::ConnectionPermit;

/// Connections that wait for their thread to take them.
const HANDOFF_QUEUE_MAX: usize = 1024;

/// A connection that nobody serves yet.
pub(super) struct AcceptedConnection {
    pub(super) client: IdleConnection,
    /// Counts it among those that there may be.
    pub(super) permit: ConnectionPermit,
}

/// A connection on its way to its thread.
struct ConnectionHandoff {
    accepted: Box<AcceptedConnection>,
    /// As long as the thread serves it.
    load: Arc<()>,
    /// It stays there.
    is_pinned: bool,
}

/// One thread, as others see it.
struct ThreadHandle {
    handed: mpsc::Sender<ConnectionHandoff>,
    /// Each connection of the thread has a copy.
    load: Arc<()>,
}

impl ThreadHandle {
    fn load(&self) -> usize {
        Arc::strong_count(&self.load)
    }

    /// Gives it back if too many wait for the thread already.
    fn try_assign(&self, accepted: Box<AcceptedConnection>, stays: bool) -> Result<(), Box<AcceptedConnection>> {
        let handed = ConnectionHandoff { accepted, load: Arc::clone(&self.load), is_pinned: stays };
        self.handed.try_send(handed).map_err(|refused| match refused {
            TrySendError::Full(handed) | TrySendError::Closed(handed) => handed.accepted,
        })
    }
}

/// All of them.
pub(super) struct RespThreads {
    threads: Arc<Vec<ThreadHandle>>,
    /// Closed when the last has ended.
    ended: mpsc::Receiver<()>,
}

/// What a thread knows.
struct ThreadContext {
    shared: Arc<RespContext>,
    stopping: watch::Receiver<()>,
    number: usize,
    /// All threads, while more connections may come.
    threads: Arc<OnceLock<Weak<Vec<ThreadHandle>>>>,
}

impl RespThreads {
    /// Starts them. Each serves until `stopping` says so and its commands in flight are answered.
    pub(super) fn start(shared: &Arc<RespContext>, stopping: &watch::Receiver<()>) -> io::Result<Self> {
        let cores = thread::available_parallelism().map_or(1, usize::from);
        let (life, ended) = mpsc::channel(1);
        let all = Arc::new(OnceLock::new());
        let start = |number: usize| {
            let runtime = Builder::new_current_thread().enable_all().build()?;
            let (handed, accepted) = mpsc::channel(HANDOFF_QUEUE_MAX);
            let (shared, stopping, all, life) = (Arc::clone(shared), stopping.clone(), Arc::clone(&all), life.clone());
            let own = Arc::new(ThreadContext { shared, stopping, number, threads: all });
            let run = move || runtime.block_on(run(own, accepted, life));
            thread::Builder::new().name(format!("resp-{number}")).spawn(run)?;
            Ok(ThreadHandle { handed, load: Arc::new(()) })
        };
        let threads = Arc::new((0..cores).map(start).collect::<io::Result<Vec<_>>>()?);
        // Set once, here.
        let _ = all.set(Arc::downgrade(&threads));
        Ok(Self { threads, ended })
    }

    /// To the thread that serves the fewest, of those that serve new ones, once that has taken of what it was handed before:
    /// until then more wait in the system's queue. Gives it back if the thread has ended.
    pub(super) async fn assign(&self, accepted: Box<AcceptedConnection>) -> Result<(), Box<AcceptedConnection>> {
        let first = &self.threads[..self.threads.len().div_ceil(2)];
        let Some(thread) = first.iter().min_by_key(|thread| thread.load()) else { return Err(accepted) };
        let handed = ConnectionHandoff { accepted, load: Arc::clone(&thread.load), is_pinned: self.threads.len() == 1 };
        thread.handed.send(handed).await.map_err(|refused| refused.0.accepted)
    }

    /// No more will come: waits until all are served, at most so long.
    pub(super) async fn join(self, grace: Duration) -> Result<(), Elapsed> {
        let Self { threads, mut ended } = self;
        drop(threads);
        timeout(grace, async { while ended.recv().await.is_some() {} }).await
    }
}

/// A thread: serves connections until no more come and all are done. Its end is seen by the end of `_life`.
async fn run(own: Arc<ThreadContext>, mut accepted: mpsc::Receiver<ConnectionHandoff>, _life: mpsc::Sender<()>) {
    let (serving, mut served) = mpsc::channel::<()>(1);
    while let Some(handed) = accepted.recv().await {
        let (own, serving) = (Arc::clone(&own), serving.clone());
        tokio::spawn(async move {
            own.serve(handed).await;
            drop(serving);
        });
    }
    drop(serving);
    while served.recv().await.is_some() {}
}

impl ThreadContext {
    /// Serves one, here until its end, or until it moves.
    async fn serve(&self, ConnectionHandoff { accepted, load, is_pinned: mut stays }: ConnectionHandoff) {
        let AcceptedConnection { client, mut permit } = *accepted;
        // From the events of the thread that it comes from to this one's.
        let mut client = match client.reregister() {
            Ok(client) => client,
            Err(error) => return tracing::warn!(%error, "cannot serve a connection"),
        };
        while let Some(back) = serve(&self.shared, client, self.stopping.clone(), !stays).await {
            (client, stays) = (back, true);
            // While the service stops there is nowhere to go.
            let Some(all) = self.threads.get().and_then(Weak::upgrade) else { continue };
            let Some((number, least)) = all.iter().enumerate().min_by_key(|(_, thread)| thread.load()) else {
                continue;
            };
            if number == self.number || least.load() + 1 >= Arc::strong_count(&load) {
                continue;
            }
            match least.try_assign(Box::new(AcceptedConnection { client, permit }), true) {
                Ok(()) => return,
                Err(refused) => AcceptedConnection { client, permit } = *refused,
            }
        }
        drop(permit);
    }
}
