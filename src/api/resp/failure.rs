//! The outcome table in RESP: the first word of an error is what clients tell errors apart by.

use std::borrow::Cow;

use crate::api::error_table::{Code, Failure};
use crate::metrics::RespOutcome;

impl Failure {
    /// What it is counted as.
    pub(super) const fn resp(&self) -> RespOutcome {
        match self.outcome.code {
            Code::InvalidArgument => RespOutcome::BadRequest,
            Code::NotFound => RespOutcome::NotFound,
            // Of what RESP has, only a fence can be wrong so.
            Code::Aborted => RespOutcome::Fenced,
            Code::FailedPrecondition => RespOutcome::Conflict,
            Code::ResourceExhausted => RespOutcome::NoCapacity,
            Code::Unavailable => match self.outcome.reason {
                Some(reason) if matches!(reason.as_bytes(), b"overloaded") => RespOutcome::Overloaded,
                Some(reason) if matches!(reason.as_bytes(), b"loading") => RespOutcome::Loading,
                _ => RespOutcome::Unavailable,
            },
            Code::DeadlineExceeded => RespOutcome::Timeout,
            // Nothing that RESP carries is denied to anybody.
            Code::Internal | Code::PermissionDenied => RespOutcome::Error,
        }
    }

    /// The error's first word.
    pub(super) const fn resp_word(&self) -> &'static str {
        self.resp().word()
    }

    /// What follows it: the reason unless the word says it, the field, the message.
    pub(super) fn resp_text(&self) -> Cow<'_, str> {
        let says_it = matches!(self.resp(), RespOutcome::Fenced | RespOutcome::Overloaded | RespOutcome::Loading);
        let reason = self.outcome.reason.filter(|_| !says_it);
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
    use crate::model::rejection::{Exhausted, Refusal, Unavailable, What};

    #[test]
    fn every_refusal_has_its_word() {
        let table = [
            (Refusal::invalid("key", "must be 1..=255 bytes, got 0"), "BADREQ key must be 1..=255 bytes, got 0"),
            (Refusal::NotFound(What::Pool), "NOTFOUND pool not found"),
            (Refusal::Fence, "FENCED the fence is not the holder's"),
            (
                Refusal::Releasing,
                "CONFLICT releasing the key's claim is being released; try again when that is finished",
            ),
            (Refusal::State("it is so".into()), "CONFLICT state it is so"),
            (
                Refusal::Unsatisfiable,
                "BADREQ unsatisfiable resources no worker of any pool that the request allows has these resources",
            ),
            (
                Refusal::Exhausted(Exhausted::Pool),
                "NOCAPACITY pool_exhausted no worker that the request allows is free",
            ),
            (Refusal::Unavailable(Unavailable::Overloaded), "OVERLOADED a queue is full; retry later"),
            (Refusal::Unavailable(Unavailable::Loading), "LOADING a shard that must be asked is not serving yet"),
            (Refusal::Unavailable(Unavailable::Stopping), "LOADING the service is shutting down"),
            (Refusal::Unavailable(Unavailable::Store), "UNAVAILABLE store the store did not take the record in time"),
            (Refusal::Unavailable(Unavailable::Fenced), "UNAVAILABLE fenced another process owns the store"),
            (
                Refusal::DeadlineExceeded,
                "TIMEOUT no answer within the deadline; the outcome is unknown, retry with the same key",
            ),
        ];
        for (refusal, said) in table {
            let failure = Failure::from(refusal);
            assert_eq!(format!("{} {}", failure.resp_word(), failure.resp_text()), said);
        }
    }
}
