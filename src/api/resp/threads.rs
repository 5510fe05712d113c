//! The threads that serve RESP connections: one for every core, each with a runtime of its own, so that a connection
//! stays where its memory is and no thread is woken to take over another's work. A request that finds its shard free never
//! leaves its thread.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use tokio::net::TcpStream;
use tokio::runtime::Builder;
use tokio::sync::mpsc::{self, error::TrySendError};
use tokio::sync::{OwnedSemaphorePermit, watch};
use tokio::time::{error::Elapsed, timeout};

use super::{Shared, serve};

/// Connections that wait for their thread to take them.
const HANDED_MAX: usize = 1024;

/// A connection that nobody serves yet.
pub(super) struct Accepted {
    pub(super) stream: TcpStream,
    pub(super) peer: SocketAddr,
    /// Its place among those that there may be.
    pub(super) place: OwnedSemaphorePermit,
}

/// One thread, as whoever accepts sees it.
struct Thread {
    handed: mpsc::Sender<(Accepted, Arc<()>)>,
    /// Each connection of the thread has a copy.
    load: Arc<()>,
}

/// All of them.
pub(super) struct Threads {
    threads: Vec<Thread>,
    /// Closed when the last has ended.
    ended: mpsc::Receiver<()>,
}

impl Threads {
    /// Starts them. Each serves until `stopping` says so and its commands in flight are answered.
    pub(super) fn start(shared: &Arc<Shared>, stopping: &watch::Receiver<()>) -> io::Result<Self> {
        let cores = thread::available_parallelism().map_or(1, usize::from);
        let (lives, ended) = mpsc::channel(1);
        let start = |number: usize| {
            let runtime = Builder::new_current_thread().enable_all().build()?;
            let (handed, accepted) = mpsc::channel(HANDED_MAX);
            let (shared, stopping, lives) = (Arc::clone(shared), stopping.clone(), lives.clone());
            thread::Builder::new().name(format!("resp-{number}")).spawn(move || {
                runtime.block_on(take(accepted, &shared, &stopping));
                drop(lives);
            })?;
            Ok(Thread { handed, load: Arc::new(()) })
        };
        let threads = (0..cores).map(start).collect::<io::Result<_>>()?;
        Ok(Self { threads, ended })
    }

    /// To the thread that serves the fewest. Gives it back if that has too many that it did not take yet.
    pub(super) fn hand(&self, accepted: Accepted) -> Result<(), Accepted> {
        let Some(thread) = self.threads.iter().min_by_key(|thread| Arc::strong_count(&thread.load)) else {
            return Err(accepted);
        };
        thread.handed.try_send((accepted, Arc::clone(&thread.load))).map_err(|refused| match refused {
            TrySendError::Full((accepted, _)) | TrySendError::Closed((accepted, _)) => accepted,
        })
    }

    /// No more will come: waits until all are served, at most so long.
    pub(super) async fn end(self, grace: Duration) -> Result<(), Elapsed> {
        let Self { threads, mut ended } = self;
        drop(threads);
        timeout(grace, async { while ended.recv().await.is_some() {} }).await
    }
}

/// Serves connections until no more come and all are done.
async fn take(mut accepted: mpsc::Receiver<(Accepted, Arc<()>)>, shared: &Arc<Shared>, stopping: &watch::Receiver<()>) {
    let (lives, mut ended) = mpsc::channel::<()>(1);
    while let Some((Accepted { stream, peer, place }, load)) = accepted.recv().await {
        // From the events of the thread that accepted to this one's.
        let moved = stream.into_std().and_then(TcpStream::from_std);
        let stream = match moved {
            Ok(stream) => stream,
            Err(error) => {
                tracing::warn!(%error, "cannot serve a connection");
                continue;
            }
        };
        let (shared, stopping, lives) = (Arc::clone(shared), stopping.clone(), lives.clone());
        tokio::spawn(async move {
            serve(shared, stream, peer, stopping).await;
            drop((place, load, lives));
        });
    }
    drop(lives);
    while ended.recv().await.is_some() {}
}
