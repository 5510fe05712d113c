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

use super::connection::Client;
use super::{Shared, serve};
use crate::api::connection_budget::ConnectionPermit;

/// Connections that wait for their thread to take them.
const HANDED_MAX: usize = 1024;

/// A connection that nobody serves yet.
pub(super) struct Accepted {
    pub(super) client: Client,
    /// Counts it among those that there may be.
    pub(super) permit: ConnectionPermit,
}

/// A connection on its way to its thread.
struct Handed {
    accepted: Box<Accepted>,
    /// As long as the thread serves it.
    load: Arc<()>,
    /// It stays there.
    stays: bool,
}

/// One thread, as others see it.
struct Thread {
    handed: mpsc::Sender<Handed>,
    /// Each connection of the thread has a copy.
    load: Arc<()>,
}

impl Thread {
    fn load(&self) -> usize {
        Arc::strong_count(&self.load)
    }

    /// Gives it back if too many wait for the thread already.
    fn hand(&self, accepted: Box<Accepted>, stays: bool) -> Result<(), Box<Accepted>> {
        let handed = Handed { accepted, load: Arc::clone(&self.load), stays };
        self.handed.try_send(handed).map_err(|refused| match refused {
            TrySendError::Full(handed) | TrySendError::Closed(handed) => handed.accepted,
        })
    }
}

/// All of them.
pub(super) struct Threads {
    threads: Arc<Vec<Thread>>,
    /// Closed when the last has ended.
    ended: mpsc::Receiver<()>,
}

/// What a thread knows.
struct Own {
    shared: Arc<Shared>,
    stopping: watch::Receiver<()>,
    number: usize,
    /// All threads, while more connections may come.
    all: Arc<OnceLock<Weak<Vec<Thread>>>>,
}

impl Threads {
    /// Starts them. Each serves until `stopping` says so and its commands in flight are answered.
    pub(super) fn start(shared: &Arc<Shared>, stopping: &watch::Receiver<()>) -> io::Result<Self> {
        let cores = thread::available_parallelism().map_or(1, usize::from);
        let (life, ended) = mpsc::channel(1);
        let all = Arc::new(OnceLock::new());
        let start = |number: usize| {
            let runtime = Builder::new_current_thread().enable_all().build()?;
            let (handed, accepted) = mpsc::channel(HANDED_MAX);
            let (shared, stopping, all, life) = (Arc::clone(shared), stopping.clone(), Arc::clone(&all), life.clone());
            let own = Arc::new(Own { shared, stopping, number, all });
            let run = move || runtime.block_on(run(own, accepted, life));
            thread::Builder::new().name(format!("resp-{number}")).spawn(run)?;
            Ok(Thread { handed, load: Arc::new(()) })
        };
        let threads = Arc::new((0..cores).map(start).collect::<io::Result<Vec<_>>>()?);
        // Set once, here.
        let _ = all.set(Arc::downgrade(&threads));
        Ok(Self { threads, ended })
    }

    /// To the thread that serves the fewest, of those that serve new ones, once that has taken of what it was handed before:
    /// until then more wait in the system's queue. Gives it back if the thread has ended.
    pub(super) async fn hand(&self, accepted: Box<Accepted>) -> Result<(), Box<Accepted>> {
        let first = &self.threads[..self.threads.len().div_ceil(2)];
        let Some(thread) = first.iter().min_by_key(|thread| thread.load()) else { return Err(accepted) };
        let handed = Handed { accepted, load: Arc::clone(&thread.load), stays: self.threads.len() == 1 };
        thread.handed.send(handed).await.map_err(|refused| refused.0.accepted)
    }

    /// No more will come: waits until all are served, at most so long.
    pub(super) async fn end(self, grace: Duration) -> Result<(), Elapsed> {
        let Self { threads, mut ended } = self;
        drop(threads);
        timeout(grace, async { while ended.recv().await.is_some() {} }).await
    }
}

/// A thread: serves connections until no more come and all are done. Its end is seen by the end of `_life`.
async fn run(own: Arc<Own>, mut accepted: mpsc::Receiver<Handed>, _life: mpsc::Sender<()>) {
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

impl Own {
    /// Serves one, here until its end, or until it moves.
    async fn serve(&self, Handed { accepted, load, mut stays }: Handed) {
        let Accepted { client, mut permit } = *accepted;
        // From the events of the thread that it comes from to this one's.
        let mut client = match client.moved() {
            Ok(client) => client,
            Err(error) => return tracing::warn!(%error, "cannot serve a connection"),
        };
        while let Some(back) = serve(&self.shared, client, self.stopping.clone(), !stays).await {
            (client, stays) = (back, true);
            // While the service stops there is nowhere to go.
            let Some(all) = self.all.get().and_then(Weak::upgrade) else { continue };
            let Some((number, least)) = all.iter().enumerate().min_by_key(|(_, thread)| thread.load()) else {
                continue;
            };
            if number == self.number || least.load() + 1 >= Arc::strong_count(&load) {
                continue;
            }
            match least.hand(Box::new(Accepted { client, permit }), true) {
                Ok(()) => return,
                Err(refused) => Accepted { client, permit } = *refused,
            }
        }
        drop(permit);
    }
}
