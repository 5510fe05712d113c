//! Wraps every call: deadline, panics, and counting of responses.

use std::panic::AssertUnwindSafe;
use std::time::Duration;

use bytes::Bytes;
use futures::FutureExt as _;
use hyper::header::HeaderMap;
use hyper::{Request, Response};
use tonic::body::Body;

use super::GrpcEdge;
use super::unary_body::{BodyError, MessagePermit};
use crate::api::deadline;
use crate::api::error_table::{ApiError, ErrorStatus};
use crate::metrics::{GrpcCode, GrpcMethod, metrics};
use crate::model::request_error::RequestError;
use crate::scheduler::caller::CallerContext;

/// Header with the caller's deadline.
const TIMEOUT_HEADER: &str = "grpc-timeout";
/// Limit on digits of the caller's deadline.
const TIMEOUT_DIGITS_MAX: usize = 8;

impl GrpcEdge {
    /// Runs one call, with its deadline.
    pub async fn call<B>(&self, request: Request<B>) -> Response<Body>
    where
        B: hyper::body::Body<Data = Bytes> + Send + Unpin + 'static,
        B::Error: Into<BodyError> + Send,
    {
        let method = GrpcMethod::of(request.uri().path());
        let permit = MessagePermit::default();
        let result = match timeout(request.headers()) {
            Ok(limit) => {
                // Claims are driven by the scheduler, not by this future: dropping it at the deadline leaves nothing
                // half done.
                let call = self.dispatch(request, MessagePermit::clone(&permit));
                let call = deadline::run_with_deadline(self.bounds.timeout, limit, call);
                match AssertUnwindSafe(call).catch_unwind().await {
                    Ok(Some(response)) => Ok(response),
                    Ok(None) => Err(RequestError::DeadlineExceeded.into()),
                    Err(_panic) => {
                        let request_id = CallerContext::with_request_id(|id| id.map(ToString::to_string));
                        tracing::error!(method = method.as_str(), request_id, "a handler panicked");
                        Err(ApiError::new(ErrorStatus::PANIC, "a defect of the service, which keeps running"))
                    }
                }
            }
            Err(failure) => Err(failure),
        };
        let response = result.unwrap_or_else(|failure| failure.to_status().into_http());
        metrics().grpc_requests(method, initial_code(response.headers())).increment(1);
        response
    }
}

/// Status in the head of a response. A response with a message has its status in the trailers, and counts as OK: a
/// stream that breaks later is counted by how it began.
fn initial_code(headers: &HeaderMap) -> GrpcCode {
    headers
        .get("grpc-status")
        .and_then(|status| status.to_str().ok()?.parse::<usize>().ok())
        .map_or(GrpcCode::Ok, |number| GrpcCode::ALL.get(number).copied().unwrap_or(GrpcCode::Unknown))
}

/// Parses the caller's deadline, if there is one.
fn timeout(headers: &HeaderMap) -> Result<Option<Duration>, ApiError> {
    let Some(value) = headers.get(TIMEOUT_HEADER) else { return Ok(None) };
    let parsed = value.to_str().ok().and_then(|text| {
        let (digits, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
        if digits.is_empty() || digits.len() > TIMEOUT_DIGITS_MAX || !digits.bytes().all(|b| b.is_ascii_digit()) {
            return None;
        }
        let number = digits.parse().ok()?;
        Some(match unit {
            "H" => Duration::from_secs(number * 3_600),
            "M" => Duration::from_secs(number * 60),
            "S" => Duration::from_secs(number),
            "m" => Duration::from_millis(number),
            "u" => Duration::from_micros(number),
            "n" => Duration::from_nanos(number),
            _ => return None,
        })
    });
    parsed
        .map(Some)
        .ok_or_else(|| ApiError::invalid(TIMEOUT_HEADER, "must be 1 to 8 digits and one of H, M, S, m, u, n"))
}

#[cfg(test)]
mod tests {
    use std::pin::Pin;
    use std::sync::Arc;
    use std::task::{Context, Poll};

    use hyper::body::Frame;
    use hyper::header::HeaderValue;
    use tokio::sync::{Semaphore, watch};
    use tonic::Status;
    use tonic_types::StatusExt as _;

    use super::*;
    use crate::api::{MemoryBudgets, RequestLimits, ResponseBudget};
    use crate::metrics::install;
    use crate::persist::store::memory::MemoryStore;
    use crate::scheduler::{Scheduler, SchedulerSettings};

    /// Body that panics when it is polled, or never becomes ready.
    enum Bad {
        Panics,
        Hangs,
    }

    impl hyper::body::Body for Bad {
        type Data = Bytes;
        type Error = std::convert::Infallible;

        fn poll_frame(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
            match *self {
                Self::Panics => panic!("a test's own"),
                Self::Hangs => Poll::Pending,
            }
        }
    }

    #[tokio::test]
    async fn panics_and_timeouts_are_answered_and_counted() {
        let exporter = install().unwrap();
        let scheduler = Scheduler::new(Arc::new(MemoryStore), SchedulerSettings::default());
        let bounds = RequestLimits { body_bytes_max: 1024, timeout: Duration::from_millis(10) };
        let (_running, stopping) = watch::channel(());
        let budgets = MemoryBudgets { bodies: Arc::new(Semaphore::new(1)), responses: ResponseBudget::default() };
        let grpc = GrpcEdge::new(scheduler, bounds, budgets, stopping);
        for (body, method, code, reason) in [
            (Bad::Panics, "hotpool.v1.ClaimService/RenewClaim", "INTERNAL", Some("PANIC")),
            (Bad::Hangs, "hotpool.v1.ClaimService/GetClaim", "DEADLINE_EXCEEDED", None),
        ] {
            let response = grpc.call(Request::post(format!("/{method}")).body(body).unwrap()).await;
            let status = Status::from_header_map(response.headers()).unwrap();
            assert_eq!(format!("{:?}", status.code()).to_uppercase(), code.replace('_', ""));
            assert_eq!(status.get_details_error_info().map(|info| info.reason).as_deref(), reason);
            let counted = format!(r#"hotpool_grpc_requests_total{{method="{method}",code="{code}"}} 1"#);
            let mut text = Vec::new();
            exporter.write(&[], &mut text).unwrap();
            assert!(String::from_utf8(text).unwrap().contains(&counted), "{counted}");
        }
    }

    #[test]
    fn the_callers_deadline_is_parsed_or_rejected() {
        let limit = |value: &'static [u8]| {
            timeout(&HeaderMap::from_iter([(TIMEOUT_HEADER.parse().unwrap(), HeaderValue::from_bytes(value).unwrap())]))
        };
        for (value, nanos) in [
            (&b"1H"[..], 3_600_000_000_000),
            (b"2M", 120_000_000_000),
            (b"3S", 3_000_000_000),
            (b"004m", 4_000_000),
            (b"99999999u", 99_999_999_000),
            (b"0n", 0),
        ] {
            assert_eq!(limit(value).unwrap().unwrap().as_nanos(), nanos, "{value:?}");
        }
        for value in [&b""[..], b"1", b"S", b"1s", b"-1S", b"+1S", b"1.5S", b"123456789n", b"1 S", b"1\xffS", b"\xff"] {
            assert_eq!(limit(value).unwrap_err().field.as_deref(), Some(TIMEOUT_HEADER), "{value:?}");
        }
        assert!(super::timeout(&HeaderMap::new()).unwrap().is_none());
    }
}
