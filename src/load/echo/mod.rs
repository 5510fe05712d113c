//! `echo`: bare servers, which show what an edge allows on this machine. They answer claims and releases with as many
//! bytes as the service, and decide nothing. With a log they write and sync a record of each before they answer, as many
//! as are waiting with one sync.

mod grpc;
mod http;
mod log;
mod resp;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result};
use clap::Args;
use hotpool::model::Fence;
use parking_lot::Mutex;
use tokio::net::{TcpListener, TcpStream};

use self::log::EchoLog;
use super::grant_checker::worker_id;
use super::pacing::StopSignal;

/// Options of the `echo` subcommand.
#[derive(Debug, Clone, Args)]
pub struct EchoArgs {
    /// Address on which HTTP and gRPC are served
    #[arg(long, default_value = "127.0.0.1:0", value_name = "HOST:PORT")]
    pub listen: String,
    /// Address on which RESP is served
    #[arg(long, default_value = "127.0.0.1:0", value_name = "HOST:PORT")]
    pub resp_listen: String,
    /// Workers that are granted; as many as the load has
    #[arg(long, default_value_t = 2_000, value_parser = clap::value_parser!(u32).range(1..=WORKERS_MAX))]
    pub workers: u32,
    /// Claims that a worker is granted to at a time; as many as the slots of the load's workers
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=1_000))]
    pub slots: u32,
    /// File to which each claim and release is written and synced before it is answered; it must not exist [default: none]
    #[arg(long, value_name = "FILE")]
    pub log: Option<PathBuf>,
}

/// Pause after a connection that could not be accepted.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);
/// Bits of a fence that name its worker.
const WORKER_BITS: u32 = 20;
/// Number of the first grant, which gives fences as many digits as those of the service.
const FIRST_GRANT: Fence = 1 << 30;
const WORKERS_MAX: i64 = (1 << WORKER_BITS) - 1;

/// Workers that can be granted.
struct EchoWorkers {
    ids: Vec<String>,
    /// Workers to be granted next, each as often as it has free slots.
    free: Vec<u32>,
    /// Number of workers in `free` at first, and at most.
    slots: usize,
    last: Fence,
}

/// State that all connections of the servers share.
struct EchoState {
    workers: Mutex<EchoWorkers>,
    log: Option<EchoLog>,
}

impl EchoState {
    fn open(args: &EchoArgs) -> Result<Self> {
        let free: Vec<u32> = (0..args.slots).flat_map(|_| 0..args.workers).collect();
        let workers =
            EchoWorkers { ids: (0..args.workers).map(worker_id).collect(), slots: free.len(), free, last: FIRST_GRANT };
        let log = args
            .log
            .as_deref()
            .map(EchoLog::create)
            .transpose()
            .context("cannot create the log, which must not exist")?;
        Ok(Self { workers: Mutex::new(workers), log })
    }

    /// Grants a worker: one that is free if there is one. `write` takes the fence and the worker's id.
    fn grant<T>(&self, write: impl FnOnce(Fence, &str) -> T) -> T {
        let mut workers = self.workers.lock();
        workers.last += 1;
        let worker = workers.free.pop().unwrap_or_default();
        write(workers.last << WORKER_BITS | Fence::from(worker), &workers.ids[worker as usize])
    }

    /// Takes a worker back.
    fn release(&self, fence: Fence) {
        let mut workers = self.workers.lock();
        let worker = (fence & ((1 << WORKER_BITS) - 1)) as u32;
        if (worker as usize) < workers.ids.len() && workers.free.len() < workers.slots {
            workers.free.push(worker);
        }
    }

    /// Writes and syncs records, if there is a log.
    async fn append(self: &Arc<Self>, records: usize) {
        if self.log.is_some() && records > 0 {
            log::append(self, records).await;
        }
    }
}

/// Accepts the next connection, after a pause whenever no more can be open.
async fn next_connection(listener: &TcpListener) -> TcpStream {
    loop {
        if let Ok((stream, _)) = listener.accept().await {
            let _ = stream.set_nodelay(true);
            return stream;
        }
        tokio::time::sleep(ACCEPT_PAUSE).await;
    }
}

/// Serves until the process is asked to stop. Prints the addresses once it is ready.
///
/// # Errors
/// Fails if an address cannot be listened on or the log cannot be created.
pub async fn serve(args: &EchoArgs, stop: &StopSignal) -> Result<()> {
    let state = Arc::new(EchoState::open(args)?);
    let bind =
        async |address: &str| TcpListener::bind(address).await.with_context(|| format!("cannot listen on {address}"));
    let (listener, resp_listener) = (bind(&args.listen).await?, bind(&args.resp_listen).await?);
    println!("echo http://{} redis://{}", listener.local_addr()?, resp_listener.local_addr()?);
    tokio::select! {
        () = http::serve(listener, Arc::clone(&state)) => {}
        () = resp::serve(resp_listener, state) => {}
        () = stop.wait() => {}
    }
    Ok(())
}
