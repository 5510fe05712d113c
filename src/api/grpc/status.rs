//! gRPC statuses of errors: the code of the error table, and details of `google.rpc`.

use std::collections::HashMap;
use std::time::Duration;

use tonic::{Code as GrpcCode, Status};
use tonic_types::{ErrorDetails, StatusExt as _};

use super::proto::{self, Reason};
use crate::api::error_table::{ApiError, ErrorCode};
use crate::scheduler::caller::CallerContext;

/// Value of `ErrorInfo.domain`, the source of the reason.
const DOMAIN: &str = "hotpool";
/// Delay before a retry, like HTTP's Retry-After.
const RETRY_AFTER: Duration = Duration::from_secs(1);

impl ErrorCode {
    /// Maps the error code to gRPC's code.
    const fn grpc_code(self) -> GrpcCode {
        match self {
            Self::InvalidArgument => GrpcCode::InvalidArgument,
            Self::NotFound => GrpcCode::NotFound,
            Self::Aborted => GrpcCode::Aborted,
            Self::FailedPrecondition => GrpcCode::FailedPrecondition,
            Self::ResourceExhausted => GrpcCode::ResourceExhausted,
            Self::Unavailable => GrpcCode::Unavailable,
            Self::DeadlineExceeded => GrpcCode::DeadlineExceeded,
            Self::PermissionDenied => GrpcCode::PermissionDenied,
            Self::Internal => GrpcCode::Internal,
        }
    }
}

impl Reason {
    /// Maps a reason of the error table to the enumeration.
    pub(super) fn from_name(name: Option<&str>) -> Self {
        let Some(name) = name else { return Self::Unspecified };
        let found = Self::from_str_name(&format!("REASON_{}", name.to_ascii_uppercase()));
        debug_assert!(found.is_some(), "{name} is a reason of the error table and not of hotpool.proto");
        found.unwrap_or_default()
    }
}

impl ApiError {
    /// Status of a call that failed.
    pub(in crate::api) fn to_status(&self) -> Status {
        let mut details = ErrorDetails::new();
        let reason = Reason::from_name(self.status.reason);
        if reason != Reason::Unspecified {
            details.set_error_info(reason.as_str_name().trim_start_matches("REASON_"), DOMAIN, HashMap::new());
        }
        if let Some(field) = &self.field {
            details.add_bad_request_violation(field.as_ref(), self.message.as_ref());
        }
        if let Some(request_id) = CallerContext::with_request_id(|id| id.map(ToString::to_string)) {
            details.set_request_info(request_id, "");
        }
        if self.status.code == ErrorCode::Unavailable {
            details.set_retry_info(Some(RETRY_AFTER));
        }
        Status::with_error_details(self.status.code.grpc_code(), self.message.as_ref(), details)
    }
}

/// Adds the request id to the details of a status that was made without a caller, or by the library.
pub(super) fn with_request_id(status: Status) -> Status {
    let Some(request_id) = CallerContext::with_request_id(|id| id.map(ToString::to_string)) else { return status };
    let mut details = status.get_error_details();
    details.set_request_info(request_id, "");
    Status::with_error_details(status.code(), status.message(), details)
}

impl From<ApiError> for Status {
    fn from(failure: ApiError) -> Self {
        failure.to_status()
    }
}

impl From<&ApiError> for proto::Error {
    fn from(failure: &ApiError) -> Self {
        Self {
            code: failure.status.code.grpc_code() as i32,
            reason: Reason::from_name(failure.status.reason) as i32,
            field: failure.field.as_deref().unwrap_or_default().to_owned(),
            message: failure.message.to_string(),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::api::error_table::ErrorStatus;
    use crate::model::request_error::{ExhaustionReason, ObjectKind, Precondition, RequestError, UnavailableReason};

    /// Code, reason, field and retry hint, checked to be the same for a call and for an item of a batch.
    fn summary(failure: &ApiError) -> (GrpcCode, Option<String>, Option<String>, bool) {
        let status = failure.to_status();
        let details = status.get_error_details();
        let reason = details.error_info().map(|info| {
            assert_eq!(info.domain, "hotpool");
            info.reason.clone()
        });
        let field = details.bad_request().map(|bad| {
            assert_eq!(bad.field_violations[0].description, failure.message);
            bad.field_violations[0].field.clone()
        });
        assert_eq!(status.message(), failure.message);
        let item = proto::Error::from(failure);
        assert_eq!(item.code, status.code() as i32);
        let name = Reason::try_from(item.reason).unwrap().as_str_name();
        assert_eq!(name, format!("REASON_{}", reason.as_deref().unwrap_or("UNSPECIFIED")));
        assert_eq!((item.field, item.message), (field.clone().unwrap_or_default(), failure.message.to_string()));
        (status.code(), reason, field, details.retry_info().is_some())
    }

    #[test]
    fn every_outcome_of_the_table_has_its_words() {
        use GrpcCode as C;
        let table = [
            (RequestError::invalid("key", "x").into(), (C::InvalidArgument, None, Some("key"), false)),
            (RequestError::NotFound(ObjectKind::Claim).into(), (C::NotFound, None, None, false)),
            (RequestError::FenceMismatch.into(), (C::Aborted, Some("FENCE"), None, false)),
            (
                RequestError::from(Precondition::PoolDeleting).into(),
                (C::FailedPrecondition, Some("STATE"), None, false),
            ),
            (
                RequestError::Exhausted(ExhaustionReason::Pool).into(),
                (C::ResourceExhausted, Some("POOL_EXHAUSTED"), None, false),
            ),
            (UnavailableReason::Overloaded.into(), (C::Unavailable, Some("OVERLOADED"), None, true)),
            (UnavailableReason::Loading.into(), (C::Unavailable, Some("LOADING"), None, true)),
            (UnavailableReason::Stopping.into(), (C::Unavailable, Some("LOADING"), None, true)),
            (UnavailableReason::Store.into(), (C::Unavailable, Some("STORE"), None, true)),
            (UnavailableReason::Fenced.into(), (C::Unavailable, Some("FENCED"), None, true)),
            (RequestError::DeadlineExceeded.into(), (C::DeadlineExceeded, None, None, false)),
            (
                ApiError::new(ErrorStatus::BODY_TOO_LARGE, "x"),
                (C::InvalidArgument, Some("BODY_TOO_LARGE"), None, false),
            ),
            (ApiError::new(ErrorStatus::PANIC, "x"), (C::Internal, Some("PANIC"), None, false)),
        ];
        for (failure, (code, reason, field, retry)) in table {
            assert_eq!(summary(&failure), (code, reason.map(Into::into), field.map(Into::into), retry), "{failure:?}");
        }
    }

    /// Parses the reasons in the header of hotpool.proto, each after its code.
    #[test]
    fn the_list_of_errors_in_the_interface_is_complete() {
        let text = include_str!("hotpool/v1/hotpool.proto");
        let (_, list) = text.split_once("//\n//   INVALID_ARGUMENT").expect("the list of errors");
        let (list, _) = list.split_once("\n//\n").expect("the end of the list");
        let list = format!("   INVALID_ARGUMENT{list}");
        let (mut code, mut documented) = ("", BTreeSet::new());
        for line in list.lines() {
            let line = line.trim_start_matches("//");
            let is_word = |word: &&str| word.len() > 3 && word.bytes().all(|byte| matches!(byte, b'A'..=b'Z' | b'_'));
            let mut words = line.split([' ', ',', ':', ';', '.']).filter(is_word);
            if line.starts_with("   ") && !line.starts_with("    ") {
                code = words.next().expect("a code begins the line");
                documented.insert((code, ""));
            }
            documented.extend(words.map(|word| (code, word)));
        }
        let mut expected: BTreeSet<_> = [("UNIMPLEMENTED", "")].into();
        let words: Vec<_> = ErrorStatus::all()
            .into_iter()
            // Rows that only HTTP has.
            .filter(|outcome| ![ErrorStatus::ROUTE, ErrorStatus::METHOD].contains(outcome))
            .map(|ErrorStatus { code, reason, .. }| {
                let code = serde_json::to_value(code).unwrap();
                (code.as_str().unwrap().to_owned(), reason.unwrap_or_default().to_ascii_uppercase())
            })
            .collect();
        for (code, reason) in &words {
            expected.extend([(code.as_str(), ""), (code.as_str(), reason.as_str())]);
        }
        assert_eq!(documented, expected);
        // A reason of the enumeration without a row would be missing above.
        let named = (1..).map_while(|number| Reason::try_from(number).ok());
        for reason in named.map(|reason| reason.as_str_name().trim_start_matches("REASON_")) {
            assert!(expected.iter().any(|(_, word)| *word == reason), "{reason} is not a reason of the error table");
        }
    }

    #[test]
    fn a_field_is_named_by_its_full_path() {
        let failure = ApiError::invalid("labels", "x").nested_in("spec");
        assert_eq!(failure.field.as_deref(), Some("spec.labels"));
        assert_eq!(ApiError::from(RequestError::FenceMismatch).nested_in("spec").field, None);
    }
}
