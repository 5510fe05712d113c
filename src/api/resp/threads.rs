//! Threads that serve RESP connections, one for every core, each with its own runtime: a connection stays on the thread
//! that has its memory, no thread is woken to take over another's work, and a request for an idle shard never leaves
//! its thread.
//!
//! Connections start on half of the threads. A connection that sends one command at a time costs the kernel, and its
//! peer, as much as it costs here, and all of them want the cores; half as many threads have more to do at a time,
//! which is cheaper. A connection with deep pipelines is work for this process, and moves to the thread with the fewest
//! connections.

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

/// Capacity of a thread's queue of new connections.
const HANDOFF_QUEUE_MAX: usize = 1024;

/// Connection that no thread serves yet.
pub(super) struct AcceptedConnection {
    pub(super) client: IdleConnection,
    /// Permit of the connection from the edge's limit.
    pub(super) permit: ConnectionPermit,
}

/// Connection on its way to its thread.
struct ConnectionHandoff {
    accepted: Box<AcceptedConnection>,
    /// Counts the connection as long as the thread serves it.
    load: Arc<()>,
    affinity: ThreadAffinity,
}

/// Whether a connection may move to another thread.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum ThreadAffinity {
    /// Moves once its pipelines are deep.
    Movable,
    /// Stays on its thread: it has moved already, or there is no other.
    Pinned,
}

/// Thread, as other threads see it.
struct ThreadHandle {
    queue: mpsc::Sender<ConnectionHandoff>,
    /// Reference count is the number of the thread's connections, plus one.
    load: Arc<()>,
}

impl ThreadHandle {
    fn load(&self) -> usize {
        Arc::strong_count(&self.load)
    }

    /// Moves a connection to the thread for good. Returns it if the thread's queue is full.
    fn try_move(&self, accepted: Box<AcceptedConnection>) -> Result<(), Box<AcceptedConnection>> {
        let handoff = self.handoff(accepted, ThreadAffinity::Pinned);
        self.queue.try_send(handoff).map_err(|error| match error {
            TrySendError::Full(handoff) | TrySendError::Closed(handoff) => handoff.accepted,
        })
    }

    fn handoff(&self, accepted: Box<AcceptedConnection>, affinity: ThreadAffinity) -> ConnectionHandoff {
        ConnectionHandoff { accepted, load: Arc::clone(&self.load), affinity }
    }
}

/// All threads of the edge.
pub(super) struct RespThreads {
    threads: Arc<Vec<ThreadHandle>>,
    /// Closes when the last thread has ended.
    ended: mpsc::Receiver<()>,
}

/// State of one thread.
struct ThreadContext {
    shared: Arc<RespContext>,
    stopping: watch::Receiver<()>,
    number: usize,
    /// All threads, while more connections may arrive.
    threads: Arc<OnceLock<Weak<Vec<ThreadHandle>>>>,
}

impl RespThreads {
    /// Starts the threads. Each serves until `stopping` closes and its commands in flight are answered.
    pub(super) fn start(shared: &Arc<RespContext>, stopping: &watch::Receiver<()>) -> io::Result<Self> {
        let cores = thread::available_parallelism().map_or(1, usize::from);
        let (life, ended) = mpsc::channel(1);
        let all = Arc::new(OnceLock::new());
        let start = |number: usize| {
            let runtime = Builder::new_current_thread().enable_all().build()?;
            let (queue, accepted) = mpsc::channel(HANDOFF_QUEUE_MAX);
            let (shared, stopping, all, life) = (Arc::clone(shared), stopping.clone(), Arc::clone(&all), life.clone());
            let own = Arc::new(ThreadContext { shared, stopping, number, threads: all });
            let run = move || runtime.block_on(run(own, accepted, life));
            thread::Builder::new().name(format!("resp-{number}")).spawn(run)?;
            Ok(ThreadHandle { queue, load: Arc::new(()) })
        };
        let threads = Arc::new((0..cores).map(start).collect::<io::Result<Vec<_>>>()?);
        // Set once, here.
        let _ = all.set(Arc::downgrade(&threads));
        Ok(Self { threads, ended })
    }

    /// Hands a connection to the thread with the fewest, among those for new connections, once its queue is empty:
    /// until then connections wait in the kernel's accept queue. Returns the connection if the thread has ended.
    pub(super) async fn assign(&self, accepted: Box<AcceptedConnection>) -> Result<(), Box<AcceptedConnection>> {
        let for_new = &self.threads[..self.threads.len().div_ceil(2)];
        let Some(thread) = for_new.iter().min_by_key(|thread| thread.load()) else { return Err(accepted) };
        let affinity = if self.threads.len() == 1 { ThreadAffinity::Pinned } else { ThreadAffinity::Movable };
        thread.queue.send(thread.handoff(accepted, affinity)).await.map_err(|error| error.0.accepted)
    }

    /// Waits at most `grace` until all connections are served, when no more will arrive.
    pub(super) async fn join(self, grace: Duration) -> Result<(), Elapsed> {
        let Self { threads, mut ended } = self;
        drop(threads);
        timeout(grace, async { while ended.recv().await.is_some() {} }).await
    }
}

/// Serves connections until no more arrive and all have ended. Dropping `_life` signals the end.
async fn run(own: Arc<ThreadContext>, mut accepted: mpsc::Receiver<ConnectionHandoff>, _life: mpsc::Sender<()>) {
    let (serving, mut served) = mpsc::channel::<()>(1);
    while let Some(handoff) = accepted.recv().await {
        let (own, serving) = (Arc::clone(&own), serving.clone());
        tokio::spawn(async move {
            own.serve(handoff).await;
            drop(serving);
        });
    }
    drop(serving);
    while served.recv().await.is_some() {}
}

impl ThreadContext {
    /// Serves one connection, until its end or until it moves.
    async fn serve(&self, ConnectionHandoff { accepted, load, mut affinity }: ConnectionHandoff) {
        let AcceptedConnection { client, mut permit } = *accepted;
        // The socket moves from the event loop of the previous thread to this one's.
        let mut client = match client.reregister() {
            Ok(client) => client,
            Err(error) => return tracing::warn!(%error, "cannot serve a connection"),
        };
        while let Some(returned) = serve(&self.shared, client, self.stopping.clone(), affinity).await {
            (client, affinity) = (returned, ThreadAffinity::Pinned);
            // While the service stops, connections cannot move.
            let Some(all) = self.threads.get().and_then(Weak::upgrade) else { continue };
            let Some((number, least)) = all.iter().enumerate().min_by_key(|(_, thread)| thread.load()) else {
                continue;
            };
            if number == self.number || least.load() + 1 >= Arc::strong_count(&load) {
                continue;
            }
            match least.try_move(Box::new(AcceptedConnection { client, permit })) {
                Ok(()) => return,
                Err(returned) => AcceptedConnection { client, permit } = *returned,
            }
        }
        drop(permit);
    }
}
