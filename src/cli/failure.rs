//! Failure of a command: the error, its form on stderr, and the exit code.

use serde::Serialize;

use crate::client::{ClientError, ServiceError};

/// Exit code of the program.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub enum CommandExit {
    /// Success of the whole command.
    Ok = 0,
    /// Failure, or an unknown outcome: the service is unreachable or not ready, or its answer makes no sense.
    Error = 1,
    /// Rejection by the service: no capacity, another holder, or a state that does not allow the request.
    Refused = 3,
    /// Missing pool, worker, claim or quota.
    NotFound = 4,
    /// Request that is wrong whatever the state of the service; the code is that of `sysexits.h`.
    Usage = 64,
}

/// Failure of a command, or of one item of it. Serializes like an error of the service, for scripts.
#[derive(Debug, Clone, Serialize)]
pub struct CommandFailure {
    /// Id of the item that failed, where a command has several.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub id: Option<String>,
    /// Error of the service, or one of this program in the same form.
    pub error: Box<ServiceError>,
    /// Exit code that the failure asks for.
    #[serde(skip)]
    pub exit: CommandExit,
}

impl CommandFailure {
    fn new(exit: CommandExit, code: &str, reason: Option<&str>, message: String) -> Self {
        let (code, reason) = (code.to_owned(), reason.map(str::to_owned));
        let error = ServiceError { status: None, code, reason, field: None, message, request_id: None };
        Self { id: None, error: Box::new(error), exit }
    }

    /// Reports a failure of this machine.
    pub fn from_local(error: impl std::fmt::Display) -> Self {
        Self::new(CommandExit::Error, "INTERNAL", Some("client"), error.to_string())
    }

    /// Reports a state that does not allow the request.
    pub fn state(message: impl Into<String>) -> Self {
        Self::new(CommandExit::Refused, "FAILED_PRECONDITION", Some("state"), message.into())
    }

    /// Reports the end of something that should have gone on.
    pub fn ended(message: String) -> Self {
        Self::new(CommandExit::Error, "UNAVAILABLE", Some("ended"), message)
    }

    /// Reports a missing object.
    pub fn not_found(message: String) -> Self {
        Self::new(CommandExit::NotFound, "NOT_FOUND", None, message)
    }

    /// Reports an argument that can never be right.
    pub fn usage(field: &str, message: impl Into<String>) -> Self {
        let mut failure = Self::new(CommandExit::Usage, "INVALID_ARGUMENT", None, message.into());
        failure.error.field = Some(field.into());
        failure
    }

    /// Reports an answer with the right form and wrong content.
    pub fn unexpected_answer(message: &str) -> Self {
        Self::new(CommandExit::Error, "INTERNAL", Some("unexpected_answer"), message.to_owned())
    }

    /// Names the item that failed.
    #[must_use]
    pub fn with_id(self, id: &str) -> Self {
        Self { id: Some(id.to_owned()), ..self }
    }
}

impl From<ServiceError> for CommandFailure {
    /// Takes the exit code from the error code. A rejection that a retry may end is no decision, so it is an error.
    fn from(error: ServiceError) -> Self {
        let exit = match (&*error.code, error.reason.as_deref()) {
            ("NOT_FOUND", None) => CommandExit::NotFound,
            ("INVALID_ARGUMENT", None) => CommandExit::Usage,
            ("INVALID_ARGUMENT", Some("unsatisfiable"))
            | ("ABORTED" | "FAILED_PRECONDITION" | "RESOURCE_EXHAUSTED", _) => CommandExit::Refused,
            _ => CommandExit::Error,
        };
        Self { id: None, error: Box::new(error), exit }
    }
}

impl From<ClientError> for CommandFailure {
    fn from(error: ClientError) -> Self {
        let message = error.to_string();
        match error {
            ClientError::Service(error) => (*error).into(),
            ClientError::Unreachable { .. } => {
                let hint = "is it running (hotpool serve)? --addr or HOTPOOL_ADDR names another address";
                Self::new(CommandExit::Error, "UNAVAILABLE", Some("unreachable"), format!("{message}; {hint}"))
            }
            ClientError::TimedOut { .. } => Self::new(CommandExit::Error, "DEADLINE_EXCEEDED", Some("client"), message),
            ClientError::InvalidResponse { .. } => Self::unexpected_answer(&message),
            ClientError::StreamBroken { .. } => Self::ended(message),
            ClientError::InvalidRequest { .. } => Self::new(CommandExit::Usage, "INVALID_ARGUMENT", None, message),
        }
    }
}

impl std::fmt::Display for CommandFailure {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let mut error = self.error.clone();
        if let Some(id) = &self.id {
            write!(f, "{id}: ")?;
            // Beside the id, the index in the batch says nothing more.
            let inner = error.field.as_ref().and_then(|field| Some(field.split_once("].")?.1.to_owned()));
            error.field = inner.or(error.field);
        }
        error.fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api;
    use crate::client::ErrorReply;
    use crate::model::request_error::{ExhaustionReason, ObjectKind, Precondition, RequestError, UnavailableReason};

    #[test]
    fn every_error_code_has_its_exit_code() {
        let exit = |json: &str| {
            let ErrorReply { error } = serde_json::from_str(json).unwrap();
            CommandFailure::from(error).exit
        };
        let table = [
            (RequestError::invalid("key", "too long"), CommandExit::Usage),
            (RequestError::NotFound(ObjectKind::Claim), CommandExit::NotFound),
            (RequestError::FenceMismatch, CommandExit::Refused),
            (RequestError::FailedPrecondition(Precondition::PoolNotEmpty { workers: 1 }), CommandExit::Refused),
            (RequestError::Exhausted(ExhaustionReason::Pool), CommandExit::Refused),
            (RequestError::Unavailable(UnavailableReason::Overloaded), CommandExit::Error),
            (RequestError::DeadlineExceeded, CommandExit::Error),
        ];
        for (error, expected) in table {
            let json = serde_json::to_string(&api::error_table::ApiError::from(error)).unwrap();
            assert_eq!(exit(&json), expected, "{json}");
        }
        // A path that another version lacks is not a missing worker.
        let json = r#"{"error":{"code":"NOT_FOUND","reason":"route","message":"no such route"}}"#;
        assert_eq!(exit(json), CommandExit::Error);
    }
}
