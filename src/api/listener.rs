//! Accepts a bounded number of connections: HTTP/1.1, HTTP/2 and gRPC on one port. RESP has its own.

use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper::{Request, Version};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use hyper_util::server::graceful::{GracefulShutdown, Watcher};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::time::{sleep, timeout};

use super::ApiEdges;
use super::connection_budget::{ConnectionBudget, ConnectionPermit};
use super::deadline::{self, WaitPermits};
use super::excess_connections::ExcessConnections;
use super::half_close::{self, HttpPeer};
use super::request_id::with_request_id;
use super::socket::{ClientSocket, linger};
use super::write_timeout::{WriteTimeoutExecutor, WriteTimeoutSocket};
use crate::limits;
use crate::metrics::metrics;

/// Time limit for a request's head, and for idle time between requests.
const HEAD_TIMEOUT: Duration = Duration::from_secs(60);
/// Largest request head, and limit of read-ahead on one connection, in bytes.
const HEAD_BYTES_MAX: usize = 64 << 10;
/// Interval of HTTP/2 pings on an idle connection.
const PING_INTERVAL: Duration = Duration::from_secs(30);
/// Size of the kernel's send buffer of a connection, in bytes; Linux allocates twice as much.
const SEND_BUFFER_BYTES: usize = 256 << 10;
/// Idle time of a connection before the kernel sends the first keepalive probe.
const KEEPALIVE: Duration = Duration::from_secs(60);
/// Pause between two keepalive probes.
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(20);
/// Number of unanswered probes after which the peer is gone.
const KEEPALIVE_PROBES: u32 = 3;
/// Time after which a silent peer is gone: where the kernel has a limit for unacknowledged data it ignores the number
/// of probes, and a shorter limit would close a connection over one lost probe.
const USER_TIMEOUT: Duration = Duration::from_secs(60 + 3 * 20);
/// Length of the accept queue. Beyond it the kernel drops the first packet of a connection, and the client retries a
/// second later.
const BACKLOG: u32 = 4096;
/// Time for which remaining input is read and discarded at the end of a connection, so that its client sees the
/// response and not a reset.
pub(super) const LINGER: Duration = Duration::from_millis(500);
/// Pause after a failed accept, which is mostly a lack of file descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// Binds an address; `[::]` means all interfaces, also where there is no IPv6.
///
/// # Errors
/// The port is in use, or the address does not belong to this machine.
pub fn bind(address: SocketAddr) -> io::Result<TcpListener> {
    let no_ipv6 = |error: &io::Error| {
        let unsupported = error.raw_os_error() == Some(rustix::io::Errno::AFNOSUPPORT.raw_os_error());
        unsupported || error.kind() == io::ErrorKind::AddrNotAvailable
    };
    match open(address) {
        Err(error) if address.is_ipv6() && address.ip().is_unspecified() && no_ipv6(&error) => {
            open(SocketAddr::from((Ipv4Addr::UNSPECIFIED, address.port())))
        }
        opened => opened,
    }
}

fn open(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
    if address.is_ipv6() && address.ip().is_unspecified() {
        rustix::net::sockopt::set_ipv6_v6only(&socket, false)?;
    }
    // A restarted service binds its port again while connections of the previous process linger.
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    socket.listen(BACKLOG)
}

/// Serves until `stop` resolves; then accepts no more and waits at most `grace` for the requests in flight. Connections
/// beyond the budget may [send one probe](super::excess_connections).
pub async fn serve(
    listener: TcpListener,
    edges: ApiEdges,
    budget: ConnectionBudget,
    grace: Duration,
    stop: impl Future<Output = ()>,
) {
    let excess = ExcessConnections::new(budget.max());
    let http = Arc::new(http_builder_with(WriteTimeoutExecutor { write_timeout: edges.response_timeout }));
    let graceful = GracefulShutdown::new();
    let mut stop = pin!(stop);
    while let Some((stream, peer)) = next_connection(&listener, stop.as_mut()).await {
        match budget.try_acquire() {
            Some(permit) => {
                let (http, edges) = (Arc::clone(&http), edges.clone());
                tokio::spawn(connection(stream, peer, http, edges, graceful.watcher(), permit));
            }
            // A queue of connections would only make the wait longer.
            None => excess.accept(stream, peer, edges.clone()).await,
        }
    }
    drop(listener);
    if timeout(grace, graceful.shutdown()).await.is_err() {
        tracing::warn!("requests were still in flight at the shutdown deadline");
    }
}

/// Accepts the next connection; `None` once `stop` has resolved.
pub(super) async fn next_connection(
    listener: &TcpListener,
    mut stop: Pin<&mut impl Future<Output = ()>>,
) -> Option<(TcpStream, SocketAddr)> {
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = &mut stop => return None,
        };
        match accepted {
            Ok(accepted) => return Some(accepted),
            Err(error) => {
                tracing::warn!(%error, "cannot accept a connection");
                // A peer that left the accept queue costs nothing; any other error needs a pause.
                if error.kind() != io::ErrorKind::ConnectionAborted {
                    sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    }
}

/// Configures a connection: small responses do not wait for the acknowledgement of the previous one, and keepalive
/// finds peers that vanished. The send buffer is bounded because the kernel reports it as writable only when a third is
/// free, which a slow reader must reach in time.
pub(super) fn configure_socket(stream: &TcpStream) -> io::Result<()> {
    stream.set_nodelay(true)?;
    rustix::net::sockopt::set_socket_send_buffer_size(stream, SEND_BUFFER_BYTES)?;
    rustix::net::sockopt::set_socket_keepalive(stream, true)?;
    rustix::net::sockopt::set_tcp_keepidle(stream, KEEPALIVE)?;
    rustix::net::sockopt::set_tcp_keepintvl(stream, KEEPALIVE_INTERVAL)?;
    rustix::net::sockopt::set_tcp_keepcnt(stream, KEEPALIVE_PROBES)?;
    Ok(())
}

/// Closes the connection when the peer's kernel acknowledges nothing for `limit`. A peer whose kernel acknowledges
/// but which reads nothing is closed by [`WriteTimeoutSocket`].
fn set_write_timeout(stream: &TcpStream, limit: Duration) -> io::Result<()> {
    let limit_ms = limit.max(USER_TIMEOUT).as_millis();
    rustix::net::sockopt::set_tcp_user_timeout(stream, u32::try_from(limit_ms).unwrap_or(u32::MAX))?;
    Ok(())
}

/// HTTP server settings of this service.
pub(super) fn http_builder() -> auto::Builder<TokioExecutor> {
    http_builder_with(TokioExecutor::new())
}

/// HTTP server settings of this service, with an executor for the streams of HTTP/2.
fn http_builder_with<E>(executor: E) -> auto::Builder<E> {
    let mut http = auto::Builder::new(executor);
    // Otherwise a client that has sent everything would be treated as gone.
    http.http1().half_close(true);
    http.http1().timer(TokioTimer::new()).header_read_timeout(HEAD_TIMEOUT).max_buf_size(HEAD_BYTES_MAX);
    http.http2()
        .timer(TokioTimer::new())
        .keep_alive_interval(PING_INTERVAL)
        .max_concurrent_streams(limits::CONNECTION_STREAMS_MAX);
    http
}

async fn connection(
    stream: TcpStream,
    peer: SocketAddr,
    http: Arc<auto::Builder<WriteTimeoutExecutor>>,
    edges: ApiEdges,
    watcher: Watcher,
    _permit: ConnectionPermit,
) {
    if let Err(error) = configure_socket(&stream).and_then(|()| set_write_timeout(&stream, edges.write_timeout)) {
        tracing::debug!(%error, "connection closed before it was served");
        return;
    }
    let open = OpenConnection::count();
    let has_requested = Arc::new(AtomicBool::new(false));
    let client = Arc::new(HttpPeer::new(stream));
    let waiting = WaitPermits::default();
    let service = service_fn(|mut request: Request<Incoming>| {
        has_requested.store(true, Ordering::Relaxed);
        // An HTTP/2 client that closes its sending side cannot follow the protocol any more: it is gone.
        if request.version() != Version::HTTP_2 {
            request.extensions_mut().insert(Arc::clone(&client));
        }
        let edges = edges.clone();
        deadline::with_connection(&waiting, with_request_id(peer, request, |request| edges.route(request)))
    });
    let socket = WriteTimeoutSocket::new(ClientSocket(Arc::clone(&client)), edges.response_timeout);
    let serving = watcher.watch(http.serve_connection(TokioIo::new(socket), service));
    // Hyper's timeout starts when the version is known, so a peer that sends nothing would hold its connection forever.
    let silence = async {
        sleep(HEAD_TIMEOUT).await;
        if has_requested.load(Ordering::Relaxed) {
            std::future::pending::<()>().await;
        }
    };
    let ended = tokio::select! {
        ended = serving => ended.inspect_err(|error| tracing::debug!(%error, "connection ended early")).is_ok(),
        () = half_close::reset_by_peer(&client.stream) => false,
        () = silence => false,
    };
    match ended {
        true => {
            half_close::roll_back_unacknowledged(
                &edges.scheduler,
                client.take_undelivered(),
                &client.stream,
                edges.write_timeout,
            )
            .await;
            linger(&client.stream, LINGER).await;
        }
        false => half_close::roll_back_all(&edges.scheduler, client.take_undelivered()),
    }
    drop(open);
}

/// Counts one connection in the gauge until it is dropped, even when its task panics.
struct OpenConnection;

impl OpenConnection {
    fn count() -> Self {
        metrics().http_connections.increment(1.0);
        Self
    }
}

impl Drop for OpenConnection {
    fn drop(&mut self) {
        metrics().http_connections.decrement(1.0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn h06_a_lost_probe_does_not_close_a_connection() {
        assert_eq!(USER_TIMEOUT, KEEPALIVE + KEEPALIVE_INTERVAL * KEEPALIVE_PROBES);
    }

    #[tokio::test]
    async fn h06_a_connection_leaves_the_gauge_when_its_task_panics() {
        let exporter = crate::metrics::install().unwrap();
        let connections = || {
            let mut text = Vec::new();
            exporter.write(&[], &mut text).unwrap();
            let text = String::from_utf8(text).unwrap();
            text.lines().find_map(|line| line.strip_prefix("hotpool_http_connections ").map(str::to_owned))
        };
        drop(OpenConnection::count());
        let before = connections();
        let task = tokio::spawn(async {
            let _open = OpenConnection::count();
            panic!("a test's own")
        });
        assert!(task.await.unwrap_err().is_panic());
        assert!(before.is_some(), "the gauge has another name");
        assert_eq!(connections(), before);
    }
}
