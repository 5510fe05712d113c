//! The service over HTTP: one connection for each load client, reopened when it breaks.
//!
//! HTTP/1.1 where a client has one request outstanding, HTTP/2 (prior knowledge) where it has several. Raw hyper
//! connections, because a pool of connections would decide by itself how many there are.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result, anyhow};
use bytes::Bytes;
use http_body_util::{BodyExt as _, Full};
use hyper::client::conn::{http1, http2};
use hyper::header::{CONTENT_TYPE, HOST};
use hyper::{Method, Request, StatusCode, Uri};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::net::TcpStream;
use tokio::sync::Mutex;

use super::claim_input::NAMESPACE;
use super::http_calls::target_error;
use super::stats::TargetError;
use hotpool::client::Client;
use hotpool::model::PoolName;

/// Longest wait for a connection or an answer.
const RESPONSE_TIMEOUT: Duration = Duration::from_secs(30);
/// Connections beside those of the clients, and files, of this process.
const NOFILE_LIMIT: u64 = 16_384;

/// Address of the service, and the paths that this run uses.
#[derive(Debug)]
pub struct ServiceOrigin {
    authority: String,
    pool: PoolName,
    /// Client for calls of the set-up, which are not measured.
    client: Client,
    /// `/v1/claims`, requested all the time.
    claims: RequestPath,
    claims_batch: RequestPath,
}

/// A path in the two forms in which it is sent.
#[derive(Debug)]
pub(super) struct RequestPath {
    path: Uri,
    absolute: Uri,
}

impl ServiceOrigin {
    /// Creates the origin of the service at `authority` (`HOST:PORT`) and the pool `load/{pool}`.
    ///
    /// # Errors
    /// The authority is not part of an address.
    pub fn new(authority: &str, pool: &str) -> Result<Self> {
        // Thousands of connections are more than the usual 1,024 open files; if it fails, connecting will say so.
        let _ = rlimit::increase_nofile_limit(NOFILE_LIMIT);
        let place = |path: &str| -> Result<RequestPath> {
            Ok(RequestPath { path: path.parse()?, absolute: format!("http://{authority}{path}").parse()? })
        };
        Ok(Self {
            authority: authority.to_owned(),
            pool: PoolName::new(NAMESPACE, pool)?,
            client: Client::new(authority.parse()?).with_timeout(RESPONSE_TIMEOUT),
            claims: place("/v1/claims")?,
            claims_batch: place("/v1/claims:batch")?,
        })
    }

    /// The part of the pool's name after `load/`.
    pub(super) fn pool(&self) -> &str {
        self.pool.pool()
    }

    pub(super) const fn pool_name(&self) -> &PoolName {
        &self.pool
    }

    /// Client for calls that are not measured.
    pub(super) const fn client(&self) -> &Client {
        &self.client
    }

    pub(super) const fn claims(&self) -> &RequestPath {
        &self.claims
    }

    pub(super) const fn claims_batch(&self) -> &RequestPath {
        &self.claims_batch
    }

    /// A path of the service.
    pub(super) fn request_path(&self, path: &str) -> Result<RequestPath, TargetError> {
        let parse =
            |text: &str| text.parse().map_err(|error| target_error(format!("bad address {text}: {error}"), false));
        Ok(RequestPath { path: parse(path)?, absolute: parse(&format!("http://{}{path}", self.authority))? })
    }
}

enum HttpSender {
    Http1(http1::SendRequest<Full<Bytes>>),
    Http2(http2::SendRequest<Full<Bytes>>),
}

/// HTTP connection of one client.
pub struct HttpTargetClient {
    origin: Arc<ServiceOrigin>,
    multiplexed: bool,
    sender: Mutex<Option<HttpSender>>,
}

impl HttpTargetClient {
    /// Connects.
    ///
    /// # Errors
    /// Failures to connect, and peers that do not speak HTTP.
    pub async fn open(origin: Arc<ServiceOrigin>, multiplexed: bool) -> Result<Self> {
        let link = Self { origin, multiplexed, sender: Mutex::new(None) };
        let sender = link.connect().await.with_context(|| format!("cannot connect to {}", link.origin.authority))?;
        *link.sender.lock().await = Some(sender);
        Ok(link)
    }

    pub(super) fn origin(&self) -> &ServiceOrigin {
        &self.origin
    }

    async fn connect(&self) -> Result<HttpSender> {
        let connect = async {
            let stream = TcpStream::connect(&self.origin.authority).await?;
            stream.set_nodelay(true)?;
            let io = TokioIo::new(stream);
            if self.multiplexed {
                let (sender, connection) = http2::handshake(TokioExecutor::new(), io).await?;
                tokio::spawn(connection); // how it ends is seen by whoever sends next
                anyhow::Ok(HttpSender::Http2(sender))
            } else {
                let (sender, connection) = http1::handshake(io).await?;
                tokio::spawn(connection);
                Ok(HttpSender::Http1(sender))
            }
        };
        tokio::time::timeout(RESPONSE_TIMEOUT, connect).await.map_err(|_| anyhow!("no answer"))?
    }

    /// Sends one request and reads the whole answer. A broken connection fails this request and is replaced by the next.
    pub(super) async fn call(
        &self,
        method: Method,
        place: &RequestPath,
        body: Bytes,
    ) -> Result<(StatusCode, Bytes), TargetError> {
        let exchange = async {
            let mut slot = self.sender.lock().await;
            let closed = match &*slot {
                Some(HttpSender::Http1(sender)) => sender.is_closed(),
                Some(HttpSender::Http2(sender)) => sender.is_closed(),
                None => true,
            };
            if closed {
                *slot = Some(
                    self.connect().await.map_err(|error| target_error(format!("cannot connect: {error}"), false))?,
                );
            }
            let request = Request::builder().method(method).header(CONTENT_TYPE, "application/json");
            let broken = |error: hyper::Error| target_error(format!("connection: {error}"), true);
            let bad = |error: hyper::http::Error| target_error(format!("bad request: {error}"), false);
            match slot.take() {
                Some(HttpSender::Http2(sender)) => {
                    let mut mine = sender.clone();
                    *slot = Some(HttpSender::Http2(sender));
                    drop(slot);
                    let request = request.uri(place.absolute.clone()).body(Full::new(body)).map_err(bad)?;
                    mine.ready().await.map_err(broken)?;
                    read_response(mine.send_request(request).await.map_err(broken)?).await
                }
                // Not in its slot while it is used: if this future is dropped halfway, the connection goes with it.
                Some(HttpSender::Http1(mut sender)) => {
                    let request = request.header(HOST, &self.origin.authority).uri(place.path.clone());
                    let request = request.body(Full::new(body)).map_err(bad)?;
                    sender.ready().await.map_err(broken)?;
                    let answer = read_response(sender.send_request(request).await.map_err(broken)?).await?;
                    *slot = Some(HttpSender::Http1(sender));
                    Ok(answer)
                }
                None => Err(target_error("no connection".into(), false)),
            }
        };
        match tokio::time::timeout(RESPONSE_TIMEOUT, exchange).await {
            Ok(answer) => answer,
            Err(_) => Err(target_error(format!("no answer within {} s", RESPONSE_TIMEOUT.as_secs()), true)),
        }
    }
}

async fn read_response(answer: hyper::Response<hyper::body::Incoming>) -> Result<(StatusCode, Bytes), TargetError> {
    let status = answer.status();
    let body =
        answer.into_body().collect().await.map_err(|error| target_error(format!("connection: {error}"), true))?;
    Ok((status, body.to_bytes()))
}
