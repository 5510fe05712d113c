//! Failures of calls, and errors that the service answers.

use serde::{Deserialize, Serialize};
use thiserror::Error;

use super::ServiceUrl;

/// Failure of a call to the service.
#[derive(Debug, Clone, Error)]
pub enum ClientError {
    /// Error that the service answered.
    #[error("{0}")]
    Service(Box<ServiceError>),
    /// Failure to connect; the request was not sent.
    #[error("cannot reach the service at {address}: {cause}")]
    Unreachable {
        /// Address of the service.
        address: ServiceUrl,
        /// Innermost cause, such as "Connection refused".
        cause: String,
    },
    /// Deadline without a complete answer. The request may have taken effect.
    #[error("no answer from {address} within {timeout_ms} ms; the outcome is unknown")]
    TimedOut {
        /// Address of the service.
        address: ServiceUrl,
        /// Deadline of the call, in milliseconds.
        timeout_ms: u128,
    },
    /// Answer that is no answer of this API, or a connection that broke during it. The request may have taken effect.
    #[error("{address} does not answer as this version of hotpool does: {cause}")]
    InvalidResponse {
        /// Address of the service.
        address: ServiceUrl,
        /// Description of the defect.
        cause: String,
    },
    /// Connection of an event stream that broke.
    #[error("the connection to {address} broke: {cause}")]
    StreamBroken {
        /// Address of the service.
        address: ServiceUrl,
        /// Cause as the transport reports it.
        cause: String,
    },
    /// Request that cannot be sent, such as a body that is no JSON.
    #[error("the request cannot be sent: {cause}")]
    InvalidRequest {
        /// Description of the defect.
        cause: String,
    },
}

impl ClientError {
    /// Returns the error that the service answered, if it answered one.
    #[must_use]
    pub fn service_error(&self) -> Option<&ServiceError> {
        match self {
            Self::Service(error) => Some(error),
            _ => None,
        }
    }

    /// Reports whether the object of the call is missing. The route itself is not meant.
    #[must_use]
    pub fn is_not_found(&self) -> bool {
        self.service_error().is_some_and(|error| error.code == "NOT_FOUND" && error.reason.is_none())
    }

    /// Reports whether the service answered this code, such as `UNAVAILABLE`.
    #[must_use]
    pub fn has_code(&self, code: &str) -> bool {
        self.service_error().is_some_and(|error| error.code == code)
    }
}

/// Error of the service: the content of `{"error":{...}}`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServiceError {
    /// HTTP status of the answer; `None` for an item of a batch.
    #[serde(skip)]
    pub status: Option<u16>,
    /// Error code of the table in `docs/API.md`, such as `RESOURCE_EXHAUSTED`.
    pub code: String,
    /// Finer reason under the code, such as `pool_exhausted`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// Path of the field that caused the error.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub field: Option<String>,
    /// Explanation for people; its wording may change at any time.
    #[serde(default)]
    pub message: String,
    /// Request id, which the service's log names beside the change; `None` for an item of a batch.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub request_id: Option<String>,
}

impl std::fmt::Display for ServiceError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { code, reason, field, message, .. } = self;
        if let Some(field) = field {
            write!(f, "{field}: ")?;
        }
        match reason {
            Some(reason) => write!(f, "{message} ({code}, {reason})"),
            None => write!(f, "{message} ({code})"),
        }
    }
}

impl std::error::Error for ServiceError {}

/// Body of an answer that is not success.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct ErrorReply {
    /// Error that the service answered.
    pub error: ServiceError,
}
