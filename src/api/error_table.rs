//! The one table of outcomes: [`Refusal`] to code word, HTTP status and reason; and the error that edges send.

use std::borrow::Cow;

use serde::{Serialize, Serializer};

use crate::model::rejection::{Refusal, Unavailable};
use crate::scheduler::caller::RequestId;

/// The words for errors, on every edge.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum Code {
    /// The request is wrong, whatever the state of the service.
    InvalidArgument,
    /// The named thing does not exist.
    NotFound,
    /// The caller is not, or no longer, the holder; or what it has read is not there any more.
    Aborted,
    /// What is there does not allow it.
    FailedPrecondition,
    /// No room.
    ResourceExhausted,
    /// Cannot be answered now; retry.
    Unavailable,
    /// No answer in time; the outcome is unknown.
    DeadlineExceeded,
    /// A defect of the service.
    Internal,
    /// The caller may not ask.
    PermissionDenied,
}

/// How one outcome is said.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Outcome {
    /// The word.
    pub code: Code,
    /// HTTP status.
    pub status: u16,
    /// The finer word, where callers can act on it.
    pub reason: Option<&'static str>,
}

impl Outcome {
    /// No such route.
    pub const ROUTE: Self = Self { code: Code::NotFound, status: 404, reason: Some("route") };
    /// The route exists, the method does not.
    pub const METHOD: Self = Self { code: Code::InvalidArgument, status: 405, reason: Some("method") };
    /// The body is larger than the service takes.
    pub const BODY_TOO_LARGE: Self = Self { code: Code::InvalidArgument, status: 413, reason: Some("body_too_large") };
    /// The service is not known by the host of the request.
    pub const HOST: Self = Self { code: Code::InvalidArgument, status: 421, reason: Some("host") };
    /// The page behind the request is of another origin.
    pub const ORIGIN: Self = Self { code: Code::PermissionDenied, status: 403, reason: Some("origin") };
    /// The body is in a form that the service does not read.
    pub const CONTENT_ENCODING: Self =
        Self { code: Code::InvalidArgument, status: 415, reason: Some("content_encoding") };
    /// As many connections as may be are open.
    pub const CONNECTIONS: Self = Self { code: Code::Unavailable, status: 503, reason: Some("connections") };
    /// A handler panicked.
    pub const PANIC: Self = Self { code: Code::Internal, status: 500, reason: Some("panic") };

    /// The table.
    #[must_use]
    pub const fn of(refusal: &Refusal) -> Self {
        let (code, status, reason) = match refusal {
            Refusal::Invalid { .. } => (Code::InvalidArgument, 400, None),
            Refusal::NotFound(_) => (Code::NotFound, 404, None),
            Refusal::Fence => (Code::Aborted, 409, Some("fence")),
            Refusal::Releasing => (Code::FailedPrecondition, 409, Some("releasing")),
            Refusal::Preempted => (Code::FailedPrecondition, 409, Some("preempted")),
            Refusal::Version(_) => (Code::Aborted, 409, Some("version")),
            Refusal::State(_) => (Code::FailedPrecondition, 409, Some("state")),
            Refusal::GangTooLarge => (Code::InvalidArgument, 400, Some("unsatisfiable")),
            Refusal::Gang(_) => (Code::Aborted, 409, Some("gang")),
            Refusal::Unsatisfiable => (Code::InvalidArgument, 400, Some("unsatisfiable")),
            Refusal::Exhausted(what) => (Code::ResourceExhausted, 429, Some(what.reason())),
            Refusal::Watchers => (Code::ResourceExhausted, 429, Some("watchers")),
            Refusal::Unavailable(why) => (Code::Unavailable, 503, Some(why.reason())),
            Refusal::DeadlineExceeded => (Code::DeadlineExceeded, 504, None),
        };
        Self { code, status, reason }
    }
}

/// An answer that is not success. Serialises as `{"error":{"code","reason"?,"field"?,"message"}}`, as an item of a batch
/// has it; [`Failure::answer`] is the body of an answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    /// What it is called.
    pub outcome: Outcome,
    /// Path of the offending field, if one is to blame.
    pub field: Option<Cow<'static, str>>,
    /// For people.
    pub message: Cow<'static, str>,
}

impl Failure {
    /// A failure that names no field.
    pub fn new(outcome: Outcome, message: impl Into<Cow<'static, str>>) -> Self {
        Self { outcome, field: None, message: message.into() }
    }

    /// A wrong field.
    pub fn invalid(field: impl Into<Cow<'static, str>>, message: impl Into<Cow<'static, str>>) -> Self {
        Refusal::invalid(field, message).into()
    }

    /// A limit of the edges that is reached: `message` names it and says what helps.
    pub(in crate::api) fn overloaded(message: impl Into<Cow<'static, str>>) -> Self {
        Self::new(Outcome::of(&Refusal::Unavailable(Unavailable::Overloaded)), message)
    }

    /// Body of the answer to the request with this id.
    pub fn answer<'f>(&'f self, request_id: Option<&'f RequestId>) -> impl Serialize + 'f {
        let Outcome { code, reason, .. } = self.outcome;
        let field = self.field.as_deref();
        Envelope { error: ErrorBody { code, reason, field, message: &self.message, request_id } }
    }

    /// The same field, which the caller has inside of `field`, if that is one.
    #[must_use]
    pub(in crate::api) fn inside(mut self, field: &str) -> Self {
        if let Some(inner) = self.field.as_ref().filter(|_| !field.is_empty()) {
            self.field = Some(format!("{field}.{inner}").into());
        }
        self
    }

    /// The same, said of one item of a batch: the field is under `items[index]`.
    #[must_use]
    pub fn in_item(mut self, items: &str, index: usize) -> Self {
        if let Some(field) = &self.field {
            let dot = if field.is_empty() { "" } else { "." };
            self.field = Some(format!("{items}[{index}]{dot}{field}").into());
        }
        self
    }
}

impl From<Refusal> for Failure {
    fn from(refusal: Refusal) -> Self {
        let outcome = Outcome::of(&refusal);
        match refusal {
            Refusal::Invalid { field, message } => Self { outcome, field: Some(field), message },
            Refusal::State(message) => Self { outcome, field: None, message },
            Refusal::Unsatisfiable => {
                Self { outcome, field: Some("resources".into()), message: refusal.to_string().into() }
            }
            other => Self { outcome, field: None, message: other.to_string().into() },
        }
    }
}

impl From<Unavailable> for Failure {
    fn from(why: Unavailable) -> Self {
        Refusal::Unavailable(why).into()
    }
}

/// Body of an answer that is not success.
#[derive(Serialize)]
struct Envelope<'f> {
    error: ErrorBody<'f>,
}

#[derive(Serialize)]
struct ErrorBody<'f> {
    code: Code,
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    field: Option<&'f str>,
    message: &'f str,
    #[serde(skip_serializing_if = "Option::is_none")]
    request_id: Option<&'f RequestId>,
}

impl Serialize for Failure {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.answer(None).serialize(serializer)
    }
}

#[cfg(test)]
impl Outcome {
    /// Every outcome that is not success, some of them twice.
    pub(in crate::api) fn every() -> Vec<Self> {
        use crate::model::Counted;
        use crate::model::rejection::{Exhausted, What};

        let refusals = [
            Refusal::invalid("key", "x"),
            Refusal::NotFound(What::Pool),
            Refusal::Fence,
            Refusal::Releasing,
            Refusal::Preempted,
            Refusal::Version(1),
            Refusal::State("x".into()),
            Refusal::Unsatisfiable,
            Refusal::GangTooLarge,
            Refusal::Gang(0),
            Refusal::Watchers,
            Refusal::DeadlineExceeded,
        ];
        let exhausted = [
            Exhausted::Pool,
            Exhausted::Worker,
            Exhausted::NodeLocality,
            Exhausted::NoEligiblePool,
            Exhausted::Quota(Counted::Cpu),
        ];
        let unavailable = [
            Unavailable::Overloaded,
            Unavailable::Loading,
            Unavailable::Store,
            Unavailable::Fenced,
            Unavailable::Stopping,
        ];
        let more = exhausted.map(Refusal::Exhausted).into_iter().chain(unavailable.map(Refusal::Unavailable));
        let of_edges = [
            Self::ROUTE,
            Self::METHOD,
            Self::BODY_TOO_LARGE,
            Self::HOST,
            Self::ORIGIN,
            Self::CONTENT_ENCODING,
            Self::CONNECTIONS,
            Self::PANIC,
        ];
        refusals.into_iter().chain(more).map(|refusal| Self::of(&refusal)).chain(of_edges).collect()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::model::rejection::{Exhausted, What};

    #[test]
    fn the_table_in_the_docs_has_every_outcome() {
        let (_, table) = include_str!("../../docs/API.md").split_once("| status | code | reason |").expect("the table");
        let rows = table.lines().skip(2).take_while(|line| line.starts_with('|'));
        let said: BTreeSet<String> = rows
            .map(|row| row.split('|').skip(1).take(3).map(|cell| cell.trim_matches(['`', ' '])))
            .map(|cells| cells.collect::<Vec<_>>().join(" ").trim_end().to_owned())
            .collect();
        let wanted = Outcome::every().into_iter().map(|Outcome { code, status, reason }| {
            let code = serde_json::to_value(code).unwrap();
            format!("{status} {} {}", code.as_str().unwrap(), reason.unwrap_or_default()).trim_end().to_owned()
        });
        assert_eq!(said, wanted.collect());
    }

    #[test]
    fn every_refusal_has_its_words() {
        let said = |refusal: Refusal| {
            let status = Outcome::of(&refusal).status;
            format!("{status} {}", serde_json::to_string(&Failure::from(refusal)).unwrap())
        };
        let table = [
            (
                Refusal::invalid("key", "must be 1..=255 bytes, got 0"),
                r#"400 {"error":{"code":"INVALID_ARGUMENT","field":"key","message":"must be 1..=255 bytes, got 0"}}"#,
            ),
            (Refusal::NotFound(What::Claim), r#"404 {"error":{"code":"NOT_FOUND","message":"claim not found"}}"#),
            (
                Refusal::Fence,
                r#"409 {"error":{"code":"ABORTED","reason":"fence","message":"the fence is not the holder's"}}"#,
            ),
            (
                Refusal::Version(7),
                r#"409 {"error":{"code":"ABORTED","reason":"version","message":"it is at version 7 now; read it again, and decide anew"}}"#,
            ),
            (
                Refusal::State("it has workers".into()),
                r#"409 {"error":{"code":"FAILED_PRECONDITION","reason":"state","message":"it has workers"}}"#,
            ),
            (
                Refusal::Exhausted(Exhausted::Pool),
                r#"429 {"error":{"code":"RESOURCE_EXHAUSTED","reason":"pool_exhausted","message":"no worker that the request allows is free"}}"#,
            ),
            (
                Refusal::Exhausted(Exhausted::NodeLocality),
                r#"429 {"error":{"code":"RESOURCE_EXHAUSTED","reason":"node_locality","message":"a worker is free, but none on a node that the request requires"}}"#,
            ),
            (
                Refusal::Exhausted(Exhausted::NoEligiblePool),
                r#"429 {"error":{"code":"RESOURCE_EXHAUSTED","reason":"no_eligible_pool","message":"no pool has the class and the labels that the request asks for"}}"#,
            ),
            (
                Refusal::Unsatisfiable,
                r#"400 {"error":{"code":"INVALID_ARGUMENT","reason":"unsatisfiable","field":"resources","message":"no worker of any pool that the request allows has these resources"}}"#,
            ),
            (
                Refusal::Unavailable(Unavailable::Overloaded),
                r#"503 {"error":{"code":"UNAVAILABLE","reason":"overloaded","message":"a queue is full; retry later"}}"#,
            ),
            (
                Refusal::DeadlineExceeded,
                r#"504 {"error":{"code":"DEADLINE_EXCEEDED","message":"no answer within the deadline; the outcome is unknown, retry with the same key"}}"#,
            ),
        ];
        for (refusal, words) in table {
            assert_eq!(said(refusal), words);
        }
    }

    #[test]
    fn an_item_is_named_by_its_index() {
        let field = |f: Failure| f.in_item("items", 3).field.unwrap();
        assert_eq!(field(Failure::invalid("pool", "is required")), "items[3].pool");
        assert_eq!(field(Failure::invalid("", "must be an object")), "items[3]");
    }
}
