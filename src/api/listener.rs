//! Accepts connections, a bounded number of them: HTTP/1.1, HTTP/2 and gRPC on one port. RESP has another.

use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use hyper::body::Incoming;
use hyper::header::{CONTENT_TYPE, HeaderValue};
use hyper::service::service_fn;
use hyper::{Request, Response, Version};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use hyper_util::server::graceful::{GracefulShutdown, Watcher};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{sleep, timeout};
use tower::Service as _;

use super::Edges;
use super::half_close::{self, Client};
use super::request_id::identified;
use super::socket::Socket;
use crate::caller::ChangeSource;
use crate::metrics::metrics;

/// How long a request's head may take, and a connection may idle between requests.
const HEAD_TIMEOUT: Duration = Duration::from_secs(60);
/// Largest request head, and the most that is read ahead on one connection, in bytes.
const HEAD_BYTES_MAX: usize = 64 << 10;
/// How often an idle HTTP/2 peer is asked whether it lives.
const PING_INTERVAL: Duration = Duration::from_secs(30);
/// How long a connection may be silent before the system asks whether its peer lives.
const KEEPALIVE: Duration = Duration::from_secs(60);
/// Most requests in flight on one HTTP/2 connection.
const STREAMS_MAX: u32 = 1024;
/// Connections that wait to be accepted. Past it the system drops their first packet, and they retry a second later.
const BACKLOG: u32 = 4096;
/// Pause after the system refused to accept, which is mostly a lack of file descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// Takes an address.
///
/// # Errors
/// The port is taken, or the address is not this machine's.
pub fn bind(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
    // A restarted service takes its port back while connections of the old one linger.
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    socket.listen(BACKLOG)
}

/// Serves until `stop` resolves; then accepts no more and waits at most `grace` for the requests in flight.
pub async fn serve(
    listener: TcpListener,
    edges: Edges,
    max_connections: usize,
    grace: Duration,
    stop: impl Future<Output = ()>,
) {
    let connections = Arc::new(Semaphore::new(max_connections));
    let http = Arc::new(protocol());
    let graceful = GracefulShutdown::new();
    let take = |stream, peer| match Arc::clone(&connections).try_acquire_owned() {
        Ok(permit) => {
            let (http, edges) = (Arc::clone(&http), edges.clone());
            tokio::spawn(connection(stream, peer, http, edges, graceful.watcher(), permit));
        }
        // Closed by the drop: a queue of connections would only make the wait longer.
        Err(_) => metrics().http_connections_refused.increment(1),
    };
    accept(&listener, take, stop).await;
    drop(listener);
    if timeout(grace, graceful.shutdown()).await.is_err() {
        tracing::warn!("requests were still in flight at the deadline of the shutdown");
    }
}

/// Hands every connection to `take`, until `stop` resolves.
pub(super) async fn accept(
    listener: &TcpListener,
    take: impl Fn(TcpStream, SocketAddr),
    stop: impl Future<Output = ()>,
) {
    let mut stop = std::pin::pin!(stop);
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = &mut stop => return,
        };
        match accepted {
            Ok((stream, peer)) => take(stream, peer),
            Err(error) => {
                tracing::warn!(%error, "cannot accept a connection");
                // A peer that went away in the queue costs nothing; anything else needs time to pass.
                if error.kind() != io::ErrorKind::ConnectionAborted {
                    sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    }
}

/// A small answer would otherwise wait for the peer's acknowledgement of the one before; and a peer that vanished without
/// a word would be taken for one that is silent.
pub(super) fn prepare(stream: &TcpStream) -> io::Result<()> {
    stream.set_nodelay(true)?;
    rustix::net::sockopt::set_socket_keepalive(stream, true)?;
    rustix::net::sockopt::set_tcp_keepidle(stream, KEEPALIVE)?;
    rustix::net::sockopt::set_tcp_keepintvl(stream, KEEPALIVE / 3)?;
    Ok(())
}

/// A peer that takes nothing of what was written for so long is dropped: a stream of events would else fill its buffers, and
/// wait for ever.
fn bound_writes(stream: &TcpStream, patience: Duration) -> io::Result<()> {
    rustix::net::sockopt::set_tcp_user_timeout(stream, u32::try_from(patience.as_millis()).unwrap_or(u32::MAX))?;
    Ok(())
}

fn protocol() -> auto::Builder<TokioExecutor> {
    let mut http = auto::Builder::new(TokioExecutor::new());
    // Without it, whoever has sent all that it has to say is taken for one that is gone.
    http.http1().half_close(true);
    http.http1().timer(TokioTimer::new()).header_read_timeout(HEAD_TIMEOUT).max_buf_size(HEAD_BYTES_MAX);
    http.http2().timer(TokioTimer::new()).keep_alive_interval(PING_INTERVAL).max_concurrent_streams(STREAMS_MAX);
    http
}

/// One request, to the edge that it is for.
async fn answer(mut edges: Edges, request: Request<Incoming>) -> Result<Response<axum::body::Body>, Infallible> {
    if is_grpc(&request) {
        return Ok(edges.grpc.call(request).await.map(axum::body::Body::new));
    }
    edges.http.call(request).await
}

/// gRPC needs HTTP/2 and says so in its content type; gRPC-Web, whose type begins alike, is another protocol.
fn is_grpc(request: &Request<Incoming>) -> bool {
    if request.version() != Version::HTTP_2 {
        return false;
    }
    let kind = request.headers().get(CONTENT_TYPE).map_or(&b""[..], HeaderValue::as_bytes);
    let rest = kind.strip_prefix(b"application/grpc");
    rest.is_some_and(|rest| matches!(rest.first(), None | Some(b'+' | b';')))
}

async fn connection(
    stream: TcpStream,
    peer: SocketAddr,
    http: Arc<auto::Builder<TokioExecutor>>,
    edges: Edges,
    watcher: Watcher,
    _permit: OwnedSemaphorePermit,
) {
    if let Err(error) = prepare(&stream).and_then(|()| bound_writes(&stream, edges.patience)) {
        tracing::debug!(%error, "a connection was gone before it was served");
        return;
    }
    metrics().http_connections.increment(1.0);
    let asked = Arc::new(AtomicBool::new(false));
    let client = Arc::new(Client::new(stream));
    let service = service_fn(|mut request: Request<Incoming>| {
        asked.store(true, Ordering::Relaxed);
        // Over HTTP/2 a peer that sends nothing any more cannot keep to the protocol: it is gone.
        if request.version() != Version::HTTP_2 {
            request.extensions_mut().insert(Arc::clone(&client));
        }
        let source = if is_grpc(&request) { ChangeSource::Grpc } else { ChangeSource::Http };
        let edges = edges.clone();
        identified(source, peer, request, |request| answer(edges, request))
    });
    let serving = watcher.watch(http.serve_connection(TokioIo::new(Socket(Arc::clone(&client))), service));
    // Hyper's timeout begins when the version is known, so a peer that sends nothing would hold its place for ever.
    let silence = async {
        sleep(HEAD_TIMEOUT).await;
        if asked.load(Ordering::Relaxed) {
            std::future::pending::<()>().await;
        }
    };
    let ended = tokio::select! {
        ended = serving => ended.inspect_err(|error| tracing::debug!(%error, "a connection ended early")).is_ok(),
        () = half_close::gone(&client.stream) => false,
        () = silence => false,
    };
    match ended {
        true => half_close::settle(&edges.scheduler, client.untold(), &client.stream, edges.patience).await,
        false => half_close::give_back(&edges.scheduler, client.untold()),
    }
    metrics().http_connections.decrement(1.0);
}
