//! RESP replies of errors: clients distinguish errors by the first word, the prefix.

use std::borrow::Cow;

use crate::api::error_table::{ApiError, ErrorCode};
use crate::metrics::RespOutcome;

impl ApiError {
    /// Label of the error in the metrics.
    pub(super) const fn resp_outcome(&self) -> RespOutcome {
        match self.status.code {
            ErrorCode::InvalidArgument => RespOutcome::BadRequest,
            ErrorCode::NotFound => RespOutcome::NotFound,
            // Of the RESP commands, only a fence can be stale.
            ErrorCode::Aborted => RespOutcome::Fenced,
            ErrorCode::FailedPrecondition => RespOutcome::Conflict,
            ErrorCode::ResourceExhausted => RespOutcome::NoCapacity,
            ErrorCode::Unavailable => match self.status.reason {
                Some(reason) if matches!(reason.as_bytes(), b"overloaded") => RespOutcome::Overloaded,
                Some(reason) if matches!(reason.as_bytes(), b"loading") => RespOutcome::Loading,
                _ => RespOutcome::Unavailable,
            },
            ErrorCode::DeadlineExceeded => RespOutcome::Timeout,
            // RESP has no command that is denied.
            ErrorCode::Internal | ErrorCode::PermissionDenied => RespOutcome::Error,
        }
    }

    /// Prefix of the error reply.
    pub(super) const fn resp_prefix(&self) -> &'static str {
        self.resp_outcome().as_str()
    }

    /// Text after the prefix: the reason unless the prefix says it, the field, the message.
    pub(super) fn resp_message(&self) -> Cow<'_, str> {
        let prefix_is_reason =
            matches!(self.resp_outcome(), RespOutcome::Fenced | RespOutcome::Overloaded | RespOutcome::Loading);
        let reason = self.status.reason.filter(|_| !prefix_is_reason);
        let words = [reason, self.field.as_deref().filter(|field| !field.is_empty())];
        let mut text = Cow::Borrowed(&*self.message);
        for word in words.into_iter().flatten().rev() {
            text = format!("{word} {text}").into();
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::request_error::{ExhaustionReason, ObjectKind, Precondition, RequestError, UnavailableReason};

    #[test]
    fn every_error_has_its_prefix() {
        let table = [
            (RequestError::invalid("key", "must be 1 to 255 bytes, got 0"), "BADREQ key must be 1 to 255 bytes, got 0"),
            (RequestError::NotFound(ObjectKind::Pool), "NOTFOUND pool not found"),
            (RequestError::FenceMismatch, "FENCED the fence is not the holder's"),
            (
                RequestError::Releasing,
                "CONFLICT releasing the key's claim is being released; try again when that is finished",
            ),
            (Precondition::ClaimNotActive.into(), "CONFLICT state the claim is not active yet; confirm it first"),
            (
                RequestError::Unsatisfiable,
                "BADREQ unsatisfiable resources no worker of any pool that the request allows has these resources",
            ),
            (
                RequestError::Exhausted(ExhaustionReason::Pool),
                "NOCAPACITY pool_exhausted no worker that the request allows is free",
            ),
            (RequestError::Unavailable(UnavailableReason::Overloaded), "OVERLOADED a queue is full; retry later"),
            (
                RequestError::Unavailable(UnavailableReason::Loading),
                "LOADING a required shard is not serving yet; retry later",
            ),
            (RequestError::Unavailable(UnavailableReason::Stopping), "LOADING the service is shutting down"),
            (
                RequestError::Unavailable(UnavailableReason::Store),
                "UNAVAILABLE store the store did not confirm the write in time",
            ),
            (RequestError::Unavailable(UnavailableReason::Fenced), "UNAVAILABLE fenced another process owns the store"),
            (
                RequestError::DeadlineExceeded,
                "TIMEOUT no answer within the deadline; the outcome is unknown, retry with the same key",
            ),
        ];
        for (error, reply) in table {
            let failure = ApiError::from(error);
            assert_eq!(format!("{} {}", failure.resp_prefix(), failure.resp_message()), reply);
        }
    }
}
