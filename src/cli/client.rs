//! One call to the service, and what can come of it.

use std::error::Error as _;
use std::pin::Pin;
use std::time::Duration;

use bytes::Bytes;
use futures::io::AsyncBufReadExt as _;
use futures::stream::{Stream, StreamExt as _, TryStreamExt as _};
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::body::Incoming;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use serde_json::value::RawValue;

use super::ConnectionArgs;
use super::args::ServiceUrl;
use crate::limits::PAGE_ITEMS_MAX;

/// Largest answer that is read, in bytes: whatever answers, this process stays small.
const ANSWER_BYTES_MAX: usize = 256 << 20;

/// The reason when nobody answers.
const UNREACHABLE: &str = "unreachable";

/// How the program ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub enum CommandExit {
    /// Done.
    Ok = 0,
    /// It could not be done or is not known to be done: the service is away, not ready, or answered in no known way.
    Error = 1,
    /// The service decided against it: no room, another holder, a state that does not allow it.
    Refused = 3,
    /// There is no such pool, worker or claim.
    NotFound = 4,
    /// The request is wrong, whatever the state of the service; as in `sysexits.h`.
    Usage = 64,
}

/// Why a call brought nothing, as the service says it. What goes wrong on the way is said in the same words.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct ServiceError {
    /// The word of the table in `docs/API.md`.
    pub code: String,
    /// The finer word.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// The field to blame.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub field: Option<String>,
    /// For people.
    pub message: String,
    /// Id of the request, by which its lines in the log of the service are found.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub request_id: Option<String>,
}

/// `{"error":{...}}`.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct CommandFailure {
    /// Which of several things it is about.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub id: Option<String>,
    /// What was said.
    pub error: Box<ServiceError>,
    /// How the program should end for it.
    #[serde(skip, default = "CommandFailure::default_exit")]
    pub exit: CommandExit,
}

impl CommandFailure {
    /// Until [`Self::with_exit`] has looked at it.
    const fn default_exit() -> CommandExit {
        CommandExit::Error
    }

    fn new(code: &str, reason: Option<&str>, message: String) -> Self {
        let (code, reason) = (code.to_owned(), reason.map(str::to_owned));
        let error = ServiceError { code, reason, field: None, message, request_id: None };
        Self { id: None, error: Box::new(error), exit: CommandExit::Error }
    }

    /// Something on this machine failed.
    pub fn from_local(error: impl std::fmt::Display) -> Self {
        Self::new("INTERNAL", Some("client"), error.to_string())
    }

    /// What there is does not allow it.
    pub fn state(message: String) -> Self {
        Self { exit: CommandExit::Refused, ..Self::new("FAILED_PRECONDITION", Some("state"), message) }
    }

    /// What was to go on has come to its end.
    pub fn ended(message: String) -> Self {
        Self::new("UNAVAILABLE", Some("ended"), message)
    }

    /// What was asked for is not there.
    pub fn not_found(message: String) -> Self {
        Self { exit: CommandExit::NotFound, ..Self::new("NOT_FOUND", None, message) }
    }

    /// What was asked for cannot be meant.
    pub fn usage(field: &str, message: impl Into<String>) -> Self {
        let Self { id, mut error, .. } = Self::new("INVALID_ARGUMENT", None, message.into());
        error.field = Some(field.into());
        Self { id, error, exit: CommandExit::Usage }
    }

    /// The same, said of one of several things.
    #[must_use]
    pub fn with_id(self, id: &str) -> Self {
        Self { id: Some(id.to_owned()), ..self }
    }

    /// Whether the service answered, and says that it cannot now.
    #[must_use]
    pub fn is_unavailable(&self) -> bool {
        self.error.code == "UNAVAILABLE" && self.error.reason.as_deref() != Some(UNREACHABLE)
    }

    /// By what the service said: a refusal that a retry may end is no decision, so it is an error.
    pub fn with_exit(mut self) -> Self {
        let ServiceError { code, reason, .. } = &*self.error;
        self.exit = match (code.as_str(), reason.as_deref()) {
            ("NOT_FOUND", None) => CommandExit::NotFound,
            ("INVALID_ARGUMENT", None) => CommandExit::Usage,
            ("INVALID_ARGUMENT", Some("unsatisfiable"))
            | ("ABORTED" | "FAILED_PRECONDITION" | "RESOURCE_EXHAUSTED", _) => CommandExit::Refused,
            _ => CommandExit::Error,
        };
        self
    }
}

impl std::fmt::Display for CommandFailure {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let ServiceError { code, reason, field, message, request_id: _ } = &*self.error;
        if let Some(id) = &self.id {
            write!(f, "{id}: ")?;
        }
        if let Some(field) = field {
            // Where there is an id, the place in the batch says nothing more.
            let field = field.split_once("].").filter(|_| self.id.is_some()).map_or(field.as_str(), |(_, rest)| rest);
            write!(f, "{field}: ")?;
        }
        match reason {
            Some(reason) => write!(f, "{message} ({code}, {reason})"),
            None => write!(f, "{message} ({code})"),
        }
    }
}

/// A good answer: JSON, as it came.
pub struct ServiceResponse {
    /// The text.
    pub json: Box<RawValue>,
    /// Whether it says that something was made: 201.
    pub created: bool,
}

/// The items of one answer, as they came: outcomes of a batch, or a listing with its pages put together.
#[derive(Serialize, Deserialize)]
pub struct ItemList {
    /// In order.
    pub items: Vec<Box<RawValue>>,
    /// Where the rest begins, if this is not all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next_page_token: Option<String>,
}

/// Server-sent events that carry JSON.
pub struct SseStream<'a> {
    client: &'a ApiClient,
    lines: Pin<Box<dyn Stream<Item = std::io::Result<String>> + 'a>>,
}

impl SseStream<'_> {
    /// The data of the next one; none: there are no more. Of the other fields, the service has all in the data.
    ///
    /// # Errors
    /// The connection breaks, or what comes is not JSON.
    pub async fn next(&mut self) -> Result<Option<Box<RawValue>>, CommandFailure> {
        while let Some(line) = self.lines.next().await {
            let line = line.map_err(|error| CommandFailure::ended(format!("the connection broke: {error}")))?;
            if let Some(data) = line.strip_prefix("data:") {
                let json = serde_json::from_str(data)
                    .map_err(|_| self.client.invalid_response("an event that is not JSON"))?;
                return Ok(Some(json));
            }
        }
        Ok(None)
    }
}

/// A way to one service. Connections are kept open between calls.
pub struct ApiClient {
    http: hyper_util::client::legacy::Client<HttpConnector, Full<Bytes>>,
    address: ServiceUrl,
    timeout: Duration,
}

impl ApiClient {
    pub(super) fn new(connection: &ConnectionArgs) -> Self {
        Self {
            http: hyper_util::client::legacy::Client::builder(TokioExecutor::new()).build_http(),
            address: connection.addr.clone(),
            timeout: Duration::from_millis(connection.timeout_ms),
        }
    }

    /// The service's address.
    pub const fn address(&self) -> &ServiceUrl {
        &self.address
    }

    /// Makes a call without a body.
    ///
    /// # Errors
    /// Every answer that is not success, and every way not to get one.
    pub async fn get(&self, path: &str) -> Result<ServiceResponse, CommandFailure> {
        self.call(Method::GET, path, None).await
    }

    /// Makes a call. `path` begins with a slash and is encoded.
    ///
    /// # Errors
    /// Every answer that is not success, and every way not to get one.
    pub async fn call(
        &self,
        method: Method,
        path: &str,
        body: Option<&Value>,
    ) -> Result<ServiceResponse, CommandFailure> {
        self.call_with_wait(Duration::ZERO, method, path, body).await
    }

    /// Makes a call that the service may let wait for so long before it answers.
    ///
    /// # Errors
    /// Every answer that is not success, and every way not to get one.
    pub async fn call_with_wait(
        &self,
        wait: Duration,
        method: Method,
        path: &str,
        body: Option<&Value>,
    ) -> Result<ServiceResponse, CommandFailure> {
        let exchange = self.exchange(method, path, body.map(ToString::to_string).unwrap_or_default());
        let limit = self.timeout.saturating_add(wait);
        let (status, body) = tokio::time::timeout(limit, exchange).await.map_err(|_| self.timeout_failure(limit))??;
        if !status.is_success() {
            return Err(self.failure_from_response(status, &body));
        }
        let json = serde_json::from_slice(&body).map_err(|_| self.invalid_response("success, but not JSON"))?;
        Ok(ServiceResponse { json, created: status == StatusCode::CREATED })
    }

    /// Asks for server-sent events.
    ///
    /// # Errors
    /// Every answer that is not success, and every way not to get one.
    pub async fn events(&self, path: &str) -> Result<SseStream<'_>, CommandFailure> {
        let asked = tokio::time::timeout(self.timeout, self.send(Method::GET, path, String::new()));
        let answer = asked.await.map_err(|_| self.timeout_failure(self.timeout))??;
        let status = answer.status();
        if !status.is_success() {
            return Err(self.failure_from_response(status, &self.read_body(answer).await?));
        }
        let lines = answer.into_body().into_data_stream().map_err(std::io::Error::other).into_async_read().lines();
        Ok(SseStream { client: self, lines: Box::pin(lines) })
    }

    fn timeout_failure(&self, limit: Duration) -> CommandFailure {
        let message =
            format!("no answer from {} within {} ms; the outcome is unknown", self.address, limit.as_millis());
        CommandFailure::new("DEADLINE_EXCEEDED", Some("client"), message)
    }

    fn failure_from_response(&self, status: StatusCode, body: &[u8]) -> CommandFailure {
        let said: Result<CommandFailure, _> = serde_json::from_slice(body);
        said.map_or_else(
            |_| self.invalid_response(&format!("HTTP {status}, without an error")),
            CommandFailure::with_exit,
        )
    }

    async fn exchange(&self, method: Method, path: &str, body: String) -> Result<(StatusCode, Bytes), CommandFailure> {
        let answer = self.send(method, path, body).await?;
        Ok((answer.status(), self.read_body(answer).await?))
    }

    async fn read_body(&self, answer: Response<Incoming>) -> Result<Bytes, CommandFailure> {
        let body = Limited::new(answer.into_body(), ANSWER_BYTES_MAX).collect().await;
        Ok(body.map_err(|error| self.invalid_response(&error.to_string()))?.to_bytes())
    }

    async fn send(&self, method: Method, path: &str, body: String) -> Result<Response<Incoming>, CommandFailure> {
        let request = Request::builder()
            .method(method)
            .uri(format!("{}{path}", self.address))
            .header(hyper::header::CONTENT_TYPE, "application/json")
            .body(Full::new(Bytes::from(body)))
            .map_err(|error| CommandFailure::usage("path", error.to_string()))?;
        self.http.request(request).await.map_err(|error| {
            // The innermost says most: "connection refused", "invalid HTTP version parsed".
            let mut cause = error.source();
            while let Some(deeper) = cause.and_then(std::error::Error::source) {
                cause = Some(deeper);
            }
            let cause = cause.map_or_else(|| error.to_string(), ToString::to_string);
            if error.is_connect() {
                let message = format!(
                    "cannot reach the service at {}: {cause}; is it running (hotpool serve)? --addr or HOTPOOL_ADDR \
                     names another address",
                    self.address
                );
                CommandFailure::new("UNAVAILABLE", Some(UNREACHABLE), message)
            } else {
                self.invalid_response(&cause)
            }
        })
    }

    /// What answers is no Hotpool, or one of another age.
    pub fn invalid_response(&self, what: &str) -> CommandFailure {
        let message = format!("{} does not answer as this version of hotpool does: {what}", self.address);
        CommandFailure::new("INTERNAL", Some("unexpected_answer"), message)
    }

    /// Reads an answer.
    ///
    /// # Errors
    /// It has not the shape that it should have.
    pub fn read<T: DeserializeOwned>(&self, json: &RawValue) -> Result<T, CommandFailure> {
        serde_json::from_str(json.get()).map_err(|error| self.invalid_response(&error.to_string()))
    }

    /// Reads the items of an answer.
    ///
    /// # Errors
    /// One has not the shape that it should have.
    pub fn read_items<T: DeserializeOwned>(&self, all: &ItemList) -> Result<Vec<T>, CommandFailure> {
        all.items.iter().map(|item| self.read(item)).collect()
    }

    /// Follows a listing page by page to its end, or to `limit` items.
    ///
    /// # Errors
    /// Those of the calls. What was read before is dropped: half a listing would look like a whole one.
    pub async fn list(
        &self,
        path: &str,
        filter: &[(&str, &str)],
        limit: Option<usize>,
    ) -> Result<ItemList, CommandFailure> {
        let mut all = ItemList { items: Vec::new(), next_page_token: None };
        loop {
            let room = limit.map_or(PAGE_ITEMS_MAX, |limit| limit - all.items.len()).min(PAGE_ITEMS_MAX);
            let page = self.page(path, filter, room, all.next_page_token.as_deref()).await?;
            all.items.extend(page.items);
            all.next_page_token = page.next_page_token;
            if all.next_page_token.is_none() || limit.is_some_and(|limit| all.items.len() >= limit) {
                return Ok(all);
            }
        }
    }

    /// Asks for a page of a listing, from `token` on. At most `room` items.
    ///
    /// # Errors
    /// Those of the call.
    pub async fn page(
        &self,
        path: &str,
        filter: &[(&str, &str)],
        room: usize,
        token: Option<&str>,
    ) -> Result<ItemList, CommandFailure> {
        let mut query = form_urlencoded::Serializer::new(String::new());
        query.extend_pairs(filter).append_pair("limit", &room.to_string());
        if let Some(token) = token {
            query.append_pair("page_token", token);
        }
        let page: ItemList = self.read(&self.get(&format!("{path}?{}", query.finish())).await?.json)?;
        if page.next_page_token.is_some() && page.next_page_token.as_deref() == token {
            return Err(self.invalid_response("the same page again and again"));
        }
        Ok(page)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api;
    use crate::model::request_error::{ExhaustionReason, ObjectKind, Precondition, RequestError, UnavailableReason};

    #[test]
    fn every_refusal_has_its_exit_code() {
        let table = [
            (RequestError::invalid("key", "too long"), CommandExit::Usage),
            (RequestError::NotFound(ObjectKind::Claim), CommandExit::NotFound),
            (RequestError::FenceMismatch, CommandExit::Refused),
            (Precondition::PoolNotEmpty { workers: 1 }.into(), CommandExit::Refused),
            (RequestError::Exhausted(ExhaustionReason::Pool), CommandExit::Refused),
            (RequestError::Unavailable(UnavailableReason::Overloaded), CommandExit::Error),
            (RequestError::DeadlineExceeded, CommandExit::Error),
        ];
        for (refusal, exit) in table {
            let json = serde_json::to_string(&api::error_table::ApiError::from(refusal)).unwrap();
            let failure: CommandFailure = serde_json::from_str(&json).unwrap();
            assert_eq!(failure.with_exit().exit, exit, "{json}");
        }
        // Another version's path is not a missing worker.
        let json = r#"{"error":{"code":"NOT_FOUND","reason":"route","message":"no such route"}}"#;
        assert_eq!(serde_json::from_str::<CommandFailure>(json).unwrap().with_exit().exit, CommandExit::Error);
    }
}
