//! Typed asynchronous client of the HTTP API that `docs/API.md` describes.
//!
//! [`Client`] keeps connections open and makes one call for each method. Answers are typed and keep the JSON text that the
//! service sent ([`RawJson`]); fields that this version does not know are ignored. Every call has a deadline, every body a
//! bound, and every failure is a [`ClientError`]. Any call may be repeated: claiming a key that is held returns the same
//! claim, and releasing a key that is not held succeeds.
//!
//! ```no_run
//! use hotpool::client::{Client, NewClaim, NewWorker};
//! use hotpool::model::{ClaimId, PoolName, WorkerId};
//! use serde_json::json;
//!
//! # async fn example() -> Result<(), Box<dyn std::error::Error>> {
//! let client = Client::new("http://127.0.0.1:7070".parse()?);
//! let pool = PoolName::new("demo", "warm")?;
//! client.put_pool(&pool, &json!({"reserve_ms": 60_000})).await?;
//! client.register_worker(&pool, &WorkerId::new("w1")?, &NewWorker::default()).await?;
//!
//! let job = ClaimId::new("demo", "default", "job-1")?;
//! let claim = client.claim(&NewClaim::new(&job, &pool)).await?.claim.clone();
//! client.confirm(&job, claim.fence).await?;
//! println!("run the job on {}", claim.worker);
//! client.release(&job, claim.fence).await?;
//! # Ok(())
//! # }
//! ```
#![allow(clippy::disallowed_methods, reason = "what waits for sockets uses the timers and tasks of the runtime")]

mod claim_replies;
mod claim_requests;
mod claims;
mod error;
mod events;
mod explain;
mod json;
mod pools;
mod quotas;
mod url;
mod workers;

use std::error::Error as _;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::body::Incoming;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use serde::Serialize;
use serde::de::{DeserializeOwned, IgnoredAny};

pub use claim_replies::*;
pub use claim_requests::*;
pub use claims::*;
pub use error::*;
pub use events::*;
pub use explain::*;
pub use json::*;
pub use pools::*;
pub use quotas::*;
pub use url::*;
pub use workers::*;

use crate::limits::PAGE_ITEMS_MAX;

/// Largest body of an answer that is read, in bytes.
pub const RESPONSE_BYTES_MAX: usize = 256 << 20;

/// Deadline of a call unless [`Client::with_timeout`] sets another.
pub const TIMEOUT_DEFAULT: Duration = Duration::from_secs(15);

/// Client of one service. Clones share its connections.
#[derive(Debug, Clone)]
pub struct Client {
    http: hyper_util::client::legacy::Client<HttpConnector, Full<Bytes>>,
    address: ServiceUrl,
    timeout: Duration,
}

/// Part of a listing to read. The default is all of it.
#[derive(Debug, Clone, Default)]
pub struct ListRange {
    /// Largest number of items to return; `None` for no limit.
    pub limit: Option<usize>,
    /// Start of the range: [`ItemList::next_page_token`] of the part before it.
    pub page_token: Option<String>,
}

impl Client {
    /// Creates a client with [`TIMEOUT_DEFAULT`]; the first call connects.
    #[must_use]
    pub fn new(address: ServiceUrl) -> Self {
        let http = hyper_util::client::legacy::Client::builder(TokioExecutor::new()).build_http();
        Self { http, address, timeout: TIMEOUT_DEFAULT }
    }

    /// Returns a client with another deadline for each call. Connections stay shared.
    #[must_use]
    pub fn with_timeout(&self, timeout: Duration) -> Self {
        Self { timeout, ..self.clone() }
    }

    /// Returns the address of the service.
    #[must_use]
    pub const fn address(&self) -> &ServiceUrl {
        &self.address
    }

    async fn get<T: DeserializeOwned>(&self, path: &str) -> Result<RawJson<T>, ClientError> {
        Ok(self.call(Method::GET, path, Bytes::new()).await?.reply)
    }

    async fn delete(&self, path: &str) -> Result<RawJson<IgnoredAny>, ClientError> {
        Ok(self.call(Method::DELETE, path, Bytes::new()).await?.reply)
    }

    async fn post<T: DeserializeOwned>(&self, path: &str, body: &impl Serialize) -> Result<RawJson<T>, ClientError> {
        Ok(self.call(Method::POST, path, encode(body)?).await?.reply)
    }

    async fn put<T: DeserializeOwned>(&self, path: &str, body: &impl Serialize) -> Result<CreateReply<T>, ClientError> {
        self.call(Method::PUT, path, encode(body)?).await
    }

    async fn call<T: DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
        body: Bytes,
    ) -> Result<CreateReply<T>, ClientError> {
        self.call_with_wait(Duration::ZERO, method, path, body).await
    }

    /// Makes a call that the service may hold back for `wait` before it answers.
    async fn call_with_wait<T: DeserializeOwned>(
        &self,
        wait: Duration,
        method: Method,
        path: &str,
        body: Bytes,
    ) -> Result<CreateReply<T>, ClientError> {
        let timeout = self.timeout.saturating_add(wait);
        let exchange = async {
            let response = self.send(method, path, body).await?;
            Ok((response.status(), self.read_body(response).await?))
        };
        let (status, body) = tokio::time::timeout(timeout, exchange).await.map_err(|_| self.timed_out(timeout))??;
        if !status.is_success() {
            return Err(self.error_from_response(status, &body));
        }
        let reply = serde_json::from_slice(&body).map_err(|error| self.invalid_response(error))?;
        Ok(CreateReply { created: status == StatusCode::CREATED, reply })
    }

    /// Reads a listing page by page, to its end or to the limit. What was read before an error is dropped, because half
    /// a listing would look like a whole one.
    async fn list<T: DeserializeOwned>(
        &self,
        path: &str,
        filter: &[(&str, Option<&str>)],
        range: ListRange,
    ) -> Result<ItemList<T>, ClientError> {
        let mut all = ItemList { items: Vec::new(), next_page_token: range.page_token };
        loop {
            let limit = range.limit.map_or(PAGE_ITEMS_MAX, |limit| limit - all.items.len()).min(PAGE_ITEMS_MAX);
            let page = self.page(path, filter, limit, all.next_page_token.as_deref()).await?;
            all.items.extend(page.items);
            all.next_page_token = page.next_page_token;
            if all.next_page_token.is_none() || range.limit.is_some_and(|limit| all.items.len() >= limit) {
                return Ok(all);
            }
        }
    }

    /// Reads one page of a listing, which may be shorter than the limit and not the last.
    async fn page<T: DeserializeOwned>(
        &self,
        path: &str,
        filter: &[(&str, Option<&str>)],
        limit: usize,
        page_token: Option<&str>,
    ) -> Result<ItemList<T>, ClientError> {
        let limit = limit.to_string();
        let paging = [("limit", Some(&*limit)), ("page_token", page_token)];
        let page =
            self.get::<ItemList<T>>(&format!("{path}?{}", query(&[filter, &paging].concat()))).await?.into_value();
        if page.next_page_token.is_some() && page.next_page_token.as_deref() == page_token {
            return Err(self.invalid_response("a page of a listing names itself as the next page"));
        }
        Ok(page)
    }

    async fn send(&self, method: Method, path: &str, body: Bytes) -> Result<Response<Incoming>, ClientError> {
        let request = Request::builder()
            .method(method)
            .uri(format!("{}{path}", self.address))
            .header(hyper::header::CONTENT_TYPE, "application/json")
            .body(Full::new(body))
            .map_err(|error| ClientError::InvalidRequest { cause: error.to_string() })?;
        self.http.request(request).await.map_err(|error| {
            // The innermost cause says most: "connection refused", "invalid HTTP version parsed".
            let mut cause = error.source();
            while let Some(deeper) = cause.and_then(std::error::Error::source) {
                cause = Some(deeper);
            }
            let cause = cause.map_or_else(|| error.to_string(), ToString::to_string);
            if error.is_connect() {
                ClientError::Unreachable { address: self.address.clone(), cause }
            } else {
                self.invalid_response(cause)
            }
        })
    }

    async fn read_body(&self, response: Response<Incoming>) -> Result<Bytes, ClientError> {
        let body = Limited::new(response.into_body(), RESPONSE_BYTES_MAX).collect().await;
        Ok(body.map_err(|error| self.invalid_response(error))?.to_bytes())
    }

    fn error_from_response(&self, status: StatusCode, body: &[u8]) -> ClientError {
        match serde_json::from_slice::<ErrorReply>(body) {
            Ok(ErrorReply { error }) => {
                ClientError::Service(Box::new(ServiceError { status: Some(status.as_u16()), ..error }))
            }
            Err(_) => self.invalid_response(format_args!("HTTP {status} without an error body")),
        }
    }

    fn timed_out(&self, timeout: Duration) -> ClientError {
        ClientError::TimedOut { address: self.address.clone(), timeout_ms: timeout.as_millis() }
    }

    fn invalid_response(&self, cause: impl std::fmt::Display) -> ClientError {
        ClientError::InvalidResponse { address: self.address.clone(), cause: cause.to_string() }
    }
}

fn encode(body: &impl Serialize) -> Result<Bytes, ClientError> {
    let body = serde_json::to_vec(body).map_err(|error| ClientError::InvalidRequest { cause: error.to_string() })?;
    Ok(body.into())
}

fn query(pairs: &[(&str, Option<&str>)]) -> String {
    let mut query = form_urlencoded::Serializer::new(String::new());
    query.extend_pairs(pairs.iter().filter_map(|(name, value)| Some((name, (*value)?))));
    query.finish()
}
