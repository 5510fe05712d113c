//! Table that maps [`RequestError`] to error code, HTTP status and reason, and the error that every edge sends.

use std::borrow::Cow;

use serde::{Serialize, Serializer};

use crate::model::request_error::{RequestError, UnavailableReason};
use crate::scheduler::caller::RequestId;

/// Error codes, the same on every edge.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum ErrorCode {
    /// Request is invalid, whatever the state of the service.
    InvalidArgument,
    /// Named object does not exist.
    NotFound,
    /// Caller is not, or no longer, the holder, or acted on a version that has changed.
    Aborted,
    /// Current state does not allow the request.
    FailedPrecondition,
    /// Capacity, quota or a limit is exhausted.
    ResourceExhausted,
    /// Service cannot reply now; the client should retry.
    Unavailable,
    /// Deadline passed before a reply; the outcome is unknown.
    DeadlineExceeded,
    /// Defect of the service itself.
    Internal,
    /// Caller is not allowed to send the request.
    PermissionDenied,
}

/// Row of the error table: how one error appears on the wire.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ErrorStatus {
    /// Error code, shared by all edges.
    pub code: ErrorCode,
    /// HTTP status of the response.
    pub status: u16,
    /// Reason within the code, where callers can act on it.
    pub reason: Option<&'static str>,
}

impl ErrorStatus {
    /// No route has the path.
    pub const ROUTE: Self = Self { code: ErrorCode::NotFound, status: 404, reason: Some("route") };
    /// Path exists, but not with this method.
    pub const METHOD: Self = Self { code: ErrorCode::InvalidArgument, status: 405, reason: Some("method") };
    /// Body of the request exceeds `server.max_body_bytes`.
    pub const BODY_TOO_LARGE: Self =
        Self { code: ErrorCode::InvalidArgument, status: 413, reason: Some("body_too_large") };
    /// Host of the request is not one of the service's names.
    pub const HOST: Self = Self { code: ErrorCode::InvalidArgument, status: 421, reason: Some("host") };
    /// Page that sent the request has another origin.
    pub const ORIGIN: Self = Self { code: ErrorCode::PermissionDenied, status: 403, reason: Some("origin") };
    /// Body has a content encoding that the service does not support.
    pub const CONTENT_ENCODING: Self =
        Self { code: ErrorCode::InvalidArgument, status: 415, reason: Some("content_encoding") };
    /// Connection limit of the service is reached.
    pub const CONNECTIONS: Self = Self { code: ErrorCode::Unavailable, status: 503, reason: Some("connections") };
    /// Handler of the request panicked.
    pub const PANIC: Self = Self { code: ErrorCode::Internal, status: 500, reason: Some("panic") };

    /// Looks up the code, status and reason of an error.
    #[must_use]
    pub fn from_error(error: &RequestError) -> Self {
        let (code, status, reason) = match error {
            RequestError::Invalid { .. } => (ErrorCode::InvalidArgument, 400, None),
            RequestError::NotFound(_) => (ErrorCode::NotFound, 404, None),
            RequestError::FenceMismatch => (ErrorCode::Aborted, 409, Some("fence")),
            RequestError::Releasing => (ErrorCode::FailedPrecondition, 409, Some("releasing")),
            RequestError::Preempted => (ErrorCode::FailedPrecondition, 409, Some("preempted")),
            RequestError::VersionConflict(_) => (ErrorCode::Aborted, 409, Some("version")),
            RequestError::FailedPrecondition(_) => (ErrorCode::FailedPrecondition, 409, Some("state")),
            RequestError::GangTooLarge => (ErrorCode::InvalidArgument, 400, Some("unsatisfiable")),
            RequestError::GangMemberRejected(_) => (ErrorCode::Aborted, 409, Some("gang")),
            RequestError::Unsatisfiable => (ErrorCode::InvalidArgument, 400, Some("unsatisfiable")),
            RequestError::Exhausted(reason) => (ErrorCode::ResourceExhausted, 429, Some(reason.as_str())),
            RequestError::TooManyWatchers => (ErrorCode::ResourceExhausted, 429, Some("watchers")),
            RequestError::Unavailable(reason) => (ErrorCode::Unavailable, 503, Some(reason.as_str())),
            RequestError::DeadlineExceeded => (ErrorCode::DeadlineExceeded, 504, None),
        };
        Self { code, status, reason }
    }
}

/// Error response. Serialises as `{"error":{"code","reason"?,"field"?,"message"}}`, the form of an item in a batch;
/// [`ApiError::body`] adds the request id.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ApiError {
    /// Code, status and reason of the error.
    pub status: ErrorStatus,
    /// Path of the invalid field, if the error is about one.
    pub field: Option<Cow<'static, str>>,
    /// Explanation for people; the text may change.
    pub message: Cow<'static, str>,
}

impl ApiError {
    /// Creates an error that names no field.
    pub fn new(status: ErrorStatus, message: impl Into<Cow<'static, str>>) -> Self {
        Self { status, field: None, message: message.into() }
    }

    /// Creates the error for an invalid field.
    pub fn invalid(field: impl Into<Cow<'static, str>>, message: impl Into<Cow<'static, str>>) -> Self {
        RequestError::invalid(field, message).into()
    }

    /// Creates an `overloaded` error for a limit of the edges. `message` names the limit and what to do.
    pub(in crate::api) fn overloaded(message: impl Into<Cow<'static, str>>) -> Self {
        Self::new(ErrorStatus::from_error(&RequestError::Unavailable(UnavailableReason::Overloaded)), message)
    }

    /// Serialises as the body of a response to the request with this id.
    pub fn body<'f>(&'f self, request_id: Option<&'f RequestId>) -> impl Serialize + 'f {
        let ErrorStatus { code, reason, .. } = self.status;
        let field = self.field.as_deref();
        ErrorEnvelope { error: ErrorBody { code, reason, field, message: &self.message, request_id } }
    }

    /// Prefixes the field, if there is one, with the path of its parent.
    #[must_use]
    pub(in crate::api) fn nested_in(mut self, field: &str) -> Self {
        if let Some(inner) = self.field.as_ref().filter(|_| !field.is_empty()) {
            self.field = Some(format!("{field}.{inner}").into());
        }
        self
    }

    /// Prefixes the field, if there is one, with `items[index]`, its position in a batch.
    #[must_use]
    pub fn for_item(mut self, items: &str, index: usize) -> Self {
        if let Some(field) = &self.field {
            let dot = if field.is_empty() { "" } else { "." };
            self.field = Some(format!("{items}[{index}]{dot}{field}").into());
        }
        self
    }
}

impl From<RequestError> for ApiError {
    fn from(error: RequestError) -> Self {
        let status = ErrorStatus::from_error(&error);
        match error {
            RequestError::Invalid { field, message } => Self { status, field: Some(field), message },
            RequestError::Unsatisfiable => {
                Self { status, field: Some("resources".into()), message: error.to_string().into() }
            }
            other => Self { status, field: None, message: other.to_string().into() },
        }
    }
}

impl From<UnavailableReason> for ApiError {
    fn from(reason: UnavailableReason) -> Self {
        RequestError::Unavailable(reason).into()
    }
}

/// Top-level object of an error response.
#[derive(Serialize)]
struct ErrorEnvelope<'f> {
    error: ErrorBody<'f>,
}

#[derive(Serialize)]
struct ErrorBody<'f> {
    code: ErrorCode,
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    field: Option<&'f str>,
    message: &'f str,
    #[serde(skip_serializing_if = "Option::is_none")]
    request_id: Option<&'f RequestId>,
}

impl Serialize for ApiError {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.body(None).serialize(serializer)
    }
}

#[cfg(test)]
impl ErrorStatus {
    /// Every row of the table, some of them twice.
    pub(in crate::api) fn all() -> Vec<Self> {
        use crate::model::QuotaResource;
        use crate::model::request_error::{ExhaustionReason, ObjectKind, Precondition};

        let of_requests = [
            RequestError::invalid("key", "x"),
            RequestError::NotFound(ObjectKind::Pool),
            RequestError::FenceMismatch,
            RequestError::Releasing,
            RequestError::Preempted,
            RequestError::VersionConflict(1),
            Precondition::PoolDeleting.into(),
            RequestError::Unsatisfiable,
            RequestError::GangTooLarge,
            RequestError::GangMemberRejected(0),
            RequestError::TooManyWatchers,
            RequestError::DeadlineExceeded,
        ];
        let exhausted = [
            ExhaustionReason::Pool,
            ExhaustionReason::Worker,
            ExhaustionReason::NodeLocality,
            ExhaustionReason::NoEligiblePool,
            ExhaustionReason::Unsatisfiable,
            ExhaustionReason::Quota(QuotaResource::Cpu),
        ];
        let unavailable = [
            UnavailableReason::Overloaded,
            UnavailableReason::Loading,
            UnavailableReason::Store,
            UnavailableReason::Fenced,
            UnavailableReason::Stopping,
        ];
        let more = exhausted.map(RequestError::Exhausted).into_iter().chain(unavailable.map(RequestError::Unavailable));
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
        of_requests.into_iter().chain(more).map(|error| Self::from_error(&error)).chain(of_edges).collect()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::model::request_error::{ExhaustionReason, ObjectKind, Precondition};

    #[test]
    fn the_table_in_the_docs_has_every_error() {
        let (_, table) = include_str!("../../docs/API.md").split_once("| status | code | reason |").expect("the table");
        let rows = table.lines().skip(2).take_while(|line| line.starts_with('|'));
        let documented: BTreeSet<String> = rows
            .map(|row| row.split('|').skip(1).take(3).map(|cell| cell.trim_matches(['`', ' '])))
            .map(|cells| cells.collect::<Vec<_>>().join(" ").trim_end().to_owned())
            .collect();
        let expected = ErrorStatus::all().into_iter().map(|ErrorStatus { code, status, reason }| {
            let code = serde_json::to_value(code).unwrap();
            format!("{status} {} {}", code.as_str().unwrap(), reason.unwrap_or_default()).trim_end().to_owned()
        });
        assert_eq!(documented, expected.collect());
    }

    #[test]
    fn every_error_has_its_status_and_body() {
        let response = |error: RequestError| {
            let status = ErrorStatus::from_error(&error).status;
            format!("{status} {}", serde_json::to_string(&ApiError::from(error)).unwrap())
        };
        let table = [
            (
                RequestError::invalid("key", "must be 1 to 255 bytes, got 0"),
                r#"400 {"error":{"code":"INVALID_ARGUMENT","field":"key","message":"must be 1 to 255 bytes, got 0"}}"#,
            ),
            (
                RequestError::NotFound(ObjectKind::Claim),
                r#"404 {"error":{"code":"NOT_FOUND","message":"claim not found"}}"#,
            ),
            (
                RequestError::FenceMismatch,
                r#"409 {"error":{"code":"ABORTED","reason":"fence","message":"the fence is not the holder's"}}"#,
            ),
            (
                RequestError::VersionConflict(7),
                r#"409 {"error":{"code":"ABORTED","reason":"version","message":"the version is 7 now; read it again and retry"}}"#,
            ),
            (
                Precondition::PoolNotEmpty { workers: 1 }.into(),
                r#"409 {"error":{"code":"FAILED_PRECONDITION","reason":"state","message":"the pool has 1 workers; delete them first, or set force=true to end them"}}"#,
            ),
            (
                RequestError::Exhausted(ExhaustionReason::Pool),
                r#"429 {"error":{"code":"RESOURCE_EXHAUSTED","reason":"pool_exhausted","message":"no worker that the request allows is free"}}"#,
            ),
            (
                RequestError::Exhausted(ExhaustionReason::NodeLocality),
                r#"429 {"error":{"code":"RESOURCE_EXHAUSTED","reason":"node_locality","message":"a worker is free, but none on a required node"}}"#,
            ),
            (
                RequestError::Exhausted(ExhaustionReason::NoEligiblePool),
                r#"429 {"error":{"code":"RESOURCE_EXHAUSTED","reason":"no_eligible_pool","message":"no pool has the requested class and labels"}}"#,
            ),
            (
                RequestError::Unsatisfiable,
                r#"400 {"error":{"code":"INVALID_ARGUMENT","reason":"unsatisfiable","field":"resources","message":"no worker of any pool that the request allows has these resources"}}"#,
            ),
            (
                RequestError::Unavailable(UnavailableReason::Overloaded),
                r#"503 {"error":{"code":"UNAVAILABLE","reason":"overloaded","message":"a queue is full; retry later"}}"#,
            ),
            (
                RequestError::DeadlineExceeded,
                r#"504 {"error":{"code":"DEADLINE_EXCEEDED","message":"no answer within the deadline; the outcome is unknown, retry with the same key"}}"#,
            ),
        ];
        for (error, expected) in table {
            assert_eq!(response(error), expected);
        }
    }

    #[test]
    fn errors_of_items_name_the_index() {
        let field = |f: ApiError| f.for_item("items", 3).field.unwrap();
        assert_eq!(field(ApiError::invalid("pool", "is required")), "items[3].pool");
        assert_eq!(field(ApiError::invalid("", "must be an object")), "items[3]");
    }
}
