//! Request ids and callers. Both are stored in the task that carries out the request, so that log lines and error
//! bodies can name them wherever they are made, and a claim that needs neither pays for neither.

use std::fmt;
use std::net::SocketAddr;
use std::sync::LazyLock;
use std::sync::atomic::{AtomicU64, Ordering};

use futures::future::Either;
use http::HeaderValue;
use serde::{Serialize, Serializer};
use uuid::Uuid;

use crate::limits::REQUEST_ID_BYTES_MAX;

/// Prefix of every id that this process generates: 32 random bits as text.
#[allow(clippy::disallowed_methods, reason = "names the process in logs; nothing is decided by it")]
static PREFIX: LazyLock<[u8; PREFIX_BYTES]> = LazyLock::new(|| {
    let mut prefix = [b'-'; PREFIX_BYTES];
    let random = Uuid::now_v7().as_u128() as u64;
    for (index, digit) in prefix[..PREFIX_BYTES - 1].iter_mut().enumerate() {
        *digit = b"0123456789abcdef"[(random >> (4 * index)) as usize & 15];
    }
    prefix
});
/// Length of the prefix: eight digits and a dash.
const PREFIX_BYTES: usize = 9;
/// Digits of the longest number in decimal.
const NUMBER_BYTES: usize = 20;

/// Request id, by which people find a request in the logs.
#[derive(Debug, Clone)]
pub enum RequestId {
    /// Id that the caller sent.
    Received(HeaderValue),
    /// Id that this process generated: a number, formatted only when it is read.
    Generated(u64),
}

impl RequestId {
    /// Takes the id that a caller sent, if it is 1 to [`REQUEST_ID_BYTES_MAX`] bytes of visible ASCII, or generates
    /// one.
    #[must_use]
    pub fn from_header_or_generate(sent: Option<&HeaderValue>) -> Self {
        let is_good = |id: &&HeaderValue| {
            (1..=REQUEST_ID_BYTES_MAX).contains(&id.len()) && id.as_bytes().iter().all(u8::is_ascii_graphic)
        };
        match sent.filter(is_good) {
            Some(sent) => Self::Received(sent.clone()),
            None => Self::generate(),
        }
    }

    /// Generates an id that is unique in this process.
    #[must_use]
    pub fn generate() -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(1);
        Self::Generated(NEXT.fetch_add(1, Ordering::Relaxed))
    }

    /// Passes the text of the id to `read`.
    fn with_bytes<T>(&self, read: impl FnOnce(&[u8]) -> T) -> T {
        match self {
            Self::Received(sent) => read(sent.as_bytes()),
            Self::Generated(number) => {
                let mut text = [0; PREFIX_BYTES + NUMBER_BYTES];
                let mut digits = itoa::Buffer::new();
                let digits = digits.format(*number).as_bytes();
                let len = PREFIX_BYTES + digits.len();
                text[..PREFIX_BYTES].copy_from_slice(&*PREFIX);
                text[PREFIX_BYTES..len].copy_from_slice(digits);
                read(&text[..len])
            }
        }
    }

    fn with_text<T>(&self, read: impl FnOnce(&str) -> T) -> T {
        self.with_bytes(|text| read(std::str::from_utf8(text).expect("ids are visible ASCII")))
    }

    /// Value of the header that carries the id.
    #[must_use]
    pub fn header(&self) -> HeaderValue {
        match self {
            Self::Received(sent) => sent.clone(),
            Self::Generated(_) => self.with_bytes(|text| HeaderValue::from_bytes(text).expect("digits and a dash")),
        }
    }
}

impl fmt::Display for RequestId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.with_text(|text| f.write_str(text))
    }
}

impl Serialize for RequestId {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.with_text(|text| serializer.serialize_str(text))
    }
}

/// Interface through which a change was requested.
#[derive(Debug, Clone, Copy, PartialEq, Eq, strum::IntoStaticStr)]
#[strum(serialize_all = "snake_case")]
pub enum ChangeSource {
    /// HTTP with JSON bodies.
    Http,
    /// gRPC, unary or streaming.
    Grpc,
    /// Configuration of the service itself.
    Configuration,
}

impl ChangeSource {
    /// Name of the source in the log.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        self.into()
    }
}

/// Caller of the request that a task carries out.
#[derive(Debug, Clone)]
pub struct CallerContext {
    /// Interface through which the request arrived.
    pub source: ChangeSource,
    /// Id of the request; `None` if there was no request.
    pub request_id: Option<RequestId>,
    /// Address of the client's end of the connection.
    pub peer: Option<SocketAddr>,
}

tokio::task_local! {
    static CALLER: CallerContext;
}

impl CallerContext {
    /// Caller of the current task's request. `None` in a program that embeds the library, and for RESP, which makes no
    /// operator changes.
    #[must_use]
    pub fn current() -> Option<Self> {
        CALLER.try_with(Clone::clone).ok()
    }

    /// Runs a future on behalf of this caller.
    pub fn scope<F: Future>(self, work: F) -> impl Future<Output = F::Output> {
        CALLER.scope(self, work)
    }

    /// Runs a closure on behalf of this caller.
    pub fn sync_scope<T>(self, work: impl FnOnce() -> T) -> T {
        CALLER.sync_scope(self, work)
    }

    /// Runs a closure on behalf of a stored caller, such as that of a stream, if there is one.
    pub fn sync_scope_or_plain<T>(caller: Option<&Self>, work: impl FnOnce() -> T) -> T {
        match caller {
            Some(caller) => caller.clone().sync_scope(work),
            None => work(),
        }
    }

    /// Passes the id of the current task's request to `read`, if there is one.
    pub fn with_request_id<T>(read: impl FnOnce(Option<&RequestId>) -> T) -> T {
        let mut read = Some(read);
        let result = CALLER.try_with(|caller| read.take().map(|read| read(caller.request_id.as_ref())));
        match (result, read) {
            (Ok(Some(value)), _) => value,
            (_, Some(read)) => read(None),
            _ => unreachable!("`read` is called once"),
        }
    }
}

/// Carries the current caller over to a future that another task runs.
pub fn with_current_caller<F: Future>(work: F) -> impl Future<Output = F::Output> {
    match CallerContext::current() {
        Some(caller) => Either::Left(caller.scope(work)),
        None => Either::Right(work),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn generated_ids_are_unique_and_short() {
        let ids = [RequestId::generate(), RequestId::generate()].map(|id| id.to_string());
        assert_ne!(ids[0], ids[1]);
        for id in ids {
            assert!(id.len() > PREFIX_BYTES && id.len() <= PREFIX_BYTES + NUMBER_BYTES);
            assert!(id.bytes().all(|byte| byte.is_ascii_hexdigit() || byte == b'-'), "{id}");
        }
        let largest = RequestId::Generated(u64::MAX);
        assert!(largest.to_string().ends_with("-18446744073709551615"));
        assert_eq!(largest.header().to_str().unwrap(), largest.to_string());
    }

    #[tokio::test]
    async fn the_caller_is_carried_over_to_another_task() {
        let id = || CallerContext::with_request_id(|id| id.map(ToString::to_string));
        assert_eq!(id(), None);
        let request_id = Some(RequestId::Received(HeaderValue::from_static("ticket-17")));
        let caller = CallerContext { source: ChangeSource::Http, request_id, peer: None };
        let remote =
            caller.scope(async { tokio::spawn(with_current_caller(async move { id() })).await.unwrap() }).await;
        assert_eq!(remote.as_deref(), Some("ticket-17"));
        assert_eq!(tokio::spawn(with_current_caller(async move { id() })).await.unwrap(), None);
    }
}
