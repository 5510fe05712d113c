//! Id of a request, and the caller that it came from. Both are known to the task that carries the request out, so that a line of
//! the log or the body of an error says them wherever that is made, and a claim that needs neither pays for neither.

use std::fmt;
use std::net::SocketAddr;
use std::sync::LazyLock;
use std::sync::atomic::{AtomicU64, Ordering};

use futures::future::Either;
use http::HeaderValue;
use serde::{Serialize, Serializer};
use uuid::Uuid;

use crate::limits::REQUEST_ID_BYTES_MAX;

/// Beginning of every id that this process makes: 32 bits drawn at random, as text.
static PREFIX: LazyLock<[u8; PREFIX_BYTES]> = LazyLock::new(|| {
    let mut prefix = [b'-'; PREFIX_BYTES];
    let random = Uuid::now_v7().as_u128() as u64;
    for (at, digit) in prefix[..PREFIX_BYTES - 1].iter_mut().enumerate() {
        *digit = b"0123456789abcdef"[(random >> (4 * at)) as usize & 15];
    }
    prefix
});
/// Eight digits and a dash.
const PREFIX_BYTES: usize = 9;
/// Bytes of the longest number in decimal.
const NUMBER_BYTES: usize = 20;

/// Id of a request, for people who look for it in logs.
#[derive(Debug, Clone)]
pub enum RequestId {
    /// The caller's own.
    Received(HeaderValue),
    /// Made by this process: a number, and text only where somebody reads it.
    Generated(u64),
}

impl RequestId {
    /// Id that a caller sent, if it is 1 to [`REQUEST_ID_BYTES_MAX`] bytes of visible ASCII; else one that is made.
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

    /// Id that nobody else has.
    #[must_use]
    pub fn generate() -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(1);
        Self::Generated(NEXT.fetch_add(1, Ordering::Relaxed))
    }

    /// Lends the text of the id.
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
        self.with_bytes(|text| read(std::str::from_utf8(text).expect("only visible ASCII is taken and made")))
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

/// Way in which a change came.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ChangeSource {
    /// HTTP/JSON.
    Http,
    /// gRPC.
    Grpc,
    /// The service's own configuration.
    Configuration,
}

impl ChangeSource {
    /// Word in the log.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Http => "http",
            Self::Grpc => "grpc",
            Self::Configuration => "configuration",
        }
    }
}

/// Caller of the request that a task carries out.
#[derive(Debug, Clone)]
pub struct CallerContext {
    /// Way in which the request came.
    pub source: ChangeSource,
    /// Id of the request; none: there was no request.
    pub request_id: Option<RequestId>,
    /// Address of the client's end of the connection.
    pub peer: Option<SocketAddr>,
}

tokio::task_local! {
    static CALLER: CallerContext;
}

impl CallerContext {
    /// Caller of the present task's request. None: a program that embeds the library, or RESP, which changes nothing that is
    /// an operator's.
    #[must_use]
    pub fn current() -> Option<Self> {
        CALLER.try_with(Clone::clone).ok()
    }

    /// Carries out what this caller asked for.
    pub fn scope<F: Future>(self, work: F) -> impl Future<Output = F::Output> {
        CALLER.scope(self, work)
    }

    /// Does what this caller asked for, which does not wait.
    pub fn sync_scope<T>(self, work: impl FnOnce() -> T) -> T {
        CALLER.sync_scope(self, work)
    }

    /// Carries out `work`, which does not wait, for a caller that was kept, as a stream keeps its own; none: for nobody.
    pub fn sync_scope_or_plain<T>(caller: Option<&Self>, work: impl FnOnce() -> T) -> T {
        match caller {
            Some(caller) => caller.clone().sync_scope(work),
            None => work(),
        }
    }

    /// Lends the id of the present task's request, if it has one.
    pub fn with_request_id<T>(read: impl FnOnce(Option<&RequestId>) -> T) -> T {
        let mut read = Some(read);
        let lent = CALLER.try_with(|caller| read.take().map(|read| read(caller.request_id.as_ref())));
        match (lent, read) {
            (Ok(Some(value)), _) => value,
            (_, Some(read)) => read(None),
            _ => unreachable!("it was read once"),
        }
    }
}

/// Work that another task carries out for the caller of this one.
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
    fn an_id_that_is_made_is_new_and_short() {
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
    async fn work_for_a_caller_knows_it_in_another_task_as_well() {
        let id = || CallerContext::with_request_id(|id| id.map(ToString::to_string));
        assert_eq!(id(), None);
        let request_id = Some(RequestId::Received(HeaderValue::from_static("ticket-17")));
        let caller = CallerContext { source: ChangeSource::Http, request_id, peer: None };
        let there = caller.scope(async { tokio::spawn(with_current_caller(async move { id() })).await.unwrap() }).await;
        assert_eq!(there.as_deref(), Some("ticket-17"));
        assert_eq!(tokio::spawn(with_current_caller(async move { id() })).await.unwrap(), None);
    }
}
