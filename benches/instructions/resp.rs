//! Pipelines of one RESP client, served in the benchmark's own thread: reads, parses, decides and writes as the service
//! does, over a socket of the loopback interface. What the kernel does is not counted.

use std::future::poll_fn;
use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::task::Poll;
use std::time::Duration;

use futures::FutureExt as _;
use futures::future::BoxFuture;
use hotpool::api::resp::ConnectionLimits;
use hotpool::api::{ApiEdges, ConnectionBudget, RequestLimits};
use tokio::runtime::{Builder, Runtime};
use tokio::sync::watch;

use crate::facade::BenchScheduler;
use crate::hot_paths::RUN;

/// Commands of a pipeline.
const PIPELINE_COMMANDS: usize = 16;
/// Workers of the pool, many more than claims that are held at once: no shard is ever full.
const WORKERS: usize = 1_024;
/// Rounds of claims and releases before the measured ones.
const WARM_UP_ROUNDS: usize = 8;

/// Connection of a client, with pipelines to send. Fields are dropped in this order: the client leaves first.
pub struct PipelinedConnection {
    client: TcpStream,
    served: BoxFuture<'static, ()>,
    pipelines: Vec<Vec<u8>>,
    replies: Vec<u8>,
    io: Runtime,
    _stopping: watch::Sender<()>,
    _facade: BenchScheduler,
}

impl PipelinedConnection {
    /// Connects a client to a scheduler with idle workers.
    fn open() -> Self {
        // Before the first metric is used, as in the service.
        let exporter = hotpool::metrics::install().expect("no other recorder");
        let facade = BenchScheduler::with_idle_workers(WORKERS);
        let io = Builder::new_current_thread().enable_all().build().expect("a runtime");
        let (stopping, stop) = watch::channel(());
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let client = TcpStream::connect(listener.local_addr().expect("it is bound")).expect("it listens");
        client.set_nodelay(true).and_then(|()| client.set_nonblocking(true)).expect("socket options");
        let (stream, _) = listener.accept().expect("the client has connected");
        stream.set_nonblocking(true).expect("a socket option");
        // Registers the socket with the runtime.
        let entered = io.enter();
        let stream = tokio::net::TcpStream::from_std(stream).expect("a socket");
        let bounds = RequestLimits { body_bytes_max: 1 << 20, timeout: Duration::from_secs(30) };
        let edges = ApiEdges::new(facade.scheduler.clone(), exporter, bounds, stop.clone());
        let limits = ConnectionLimits { budget: ConnectionBudget::new(1), idle: None };
        let served = edges.resp.serve_connection(stream, limits, stop).boxed();
        drop(entered);
        let (pipelines, replies) = (Vec::new(), vec![0; 64 << 10]);
        Self { client, served, pipelines, replies, io, _stopping: stopping, _facade: facade }
    }

    /// Sends each pipeline once the one before is answered. Returns the lines of all replies.
    fn exchange(&mut self) -> usize {
        let Self { client, served, pipelines, replies, io, .. } = self;
        let mut lines = 0;
        for pipeline in pipelines.drain(..) {
            client.write_all(&pipeline).expect("room in the socket's buffer");
            let bytes = io.block_on(poll_fn(|context| {
                assert!(served.poll_unpin(context).is_pending(), "the connection stays open");
                // The replies to a pipeline leave in one write.
                client.read(replies).map_or(Poll::Pending, Poll::Ready)
            }));
            lines += replies[..bytes].iter().filter(|&&byte| byte == b'\n').count();
        }
        lines
    }
}

/// Pipelines of [`PIPELINE_COMMANDS`] commands each, one command for each of [`RUN`] keys.
fn pipelines(command: impl Fn(&str) -> String) -> Vec<Vec<u8>> {
    let keys: Vec<String> = (0..RUN).map(|n| format!("key-{n:012}")).collect();
    keys.chunks(PIPELINE_COMMANDS)
        .map(|keys| keys.iter().map(|key| command(key)).collect::<String>().into_bytes())
        .collect()
}

fn claims() -> Vec<Vec<u8>> {
    pipelines(|key| format!("*4\r\n$5\r\nCLAIM\r\n$10\r\nbench/pool\r\n$3\r\nKEY\r\n$16\r\n{key}\r\n"))
}

fn releases() -> Vec<Vec<u8>> {
    pipelines(|key| format!("*4\r\n$7\r\nRELEASE\r\n$5\r\nbench\r\n$16\r\n{key}\r\n$1\r\n*\r\n"))
}

/// Prepares a connection with claims to send.
pub fn claiming() -> PipelinedConnection {
    let mut connection = PipelinedConnection::open();
    for _ in 0..WARM_UP_ROUNDS {
        connection.pipelines = claims();
        connection = claim(connection);
        connection.pipelines = releases();
        connection = release(connection);
    }
    connection.pipelines = claims();
    connection
}

/// Prepares a connection with releases of claims to send.
pub fn releasing() -> PipelinedConnection {
    let mut connection = claim(claiming());
    connection.pipelines = releases();
    connection
}

/// Claims in pipelines.
pub fn claim(mut connection: PipelinedConnection) -> PipelinedConnection {
    // An array of a key, a fence, a worker and no node, of which the key and the worker have a line for their lengths.
    assert_eq!(connection.exchange(), 7 * RUN);
    connection
}

/// Releases in pipelines.
pub fn release(mut connection: PipelinedConnection) -> PipelinedConnection {
    assert_eq!(connection.exchange(), RUN);
    connection
}
