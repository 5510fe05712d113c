//! Claim stream: many requests of one call in flight, answered by id. There is no task and no timer for each request:
//! whenever the stream is polled for responses, it reads requests, submits them together, and returns completed ones.
//! So it does not read from a client that does not read, and the requests in flight are bounded twice: by this
//! backpressure, and by the slots of the [`RequestStream`].

use std::collections::VecDeque;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use futures::future::{BoxFuture, FutureExt as _};
use futures::stream::Stream;
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::{Sleep, sleep};
use tonic::{Code, Status, Streaming};

use super::from_proto;
use super::proto::claim_stream_request::Request;
use super::proto::claim_stream_response::Outcome;
use super::proto::{
    self, ClaimStreamRequest, ClaimStreamResponse, ConfirmClaimResponse, ReleaseClaimResponse, RenewClaimResponse,
};
use super::status::with_request_id;
use crate::api::body_budget::body_too_large;
use crate::api::error_table::ApiError;
use crate::api::request::ReleasePhase;
use crate::limits;
use crate::metrics::{GrpcCode, GrpcMethod, metrics};
use crate::model::ClaimView;
use crate::model::request_error::UnavailableReason;
use crate::scheduler::caller::CallerContext;
use crate::scheduler::{ClaimVerb, RequestCompletion, RequestStream};

/// Responses of one call, in the order of completion.
pub(crate) struct ClaimStreamResponses {
    input: Streaming<ClaimStreamRequest>,
    end: Option<Result<(), Status>>,
    requests: RequestStream,
    completions: Vec<(u64, RequestCompletion)>,
    responses: VecDeque<ClaimStreamResponse>,
    deadline: Option<Pin<Box<Sleep>>>,
    limit: Duration,
    stop: BoxFuture<'static, ()>,
    /// Caller for the stream's final status, which is made after the call was answered.
    caller: Option<CallerContext>,
    _permit: OwnedSemaphorePermit,
}

impl ClaimStreamResponses {
    /// Creates the stream. `stop` resolves when the service begins to stop; `limit` is the timeout of a request that is
    /// not queued.
    pub(super) fn new(
        input: Streaming<ClaimStreamRequest>,
        requests: RequestStream,
        limit: Duration,
        stop: BoxFuture<'static, ()>,
        permit: OwnedSemaphorePermit,
    ) -> Self {
        let caller = CallerContext::current();
        Self {
            input,
            end: None,
            requests,
            completions: Vec::new(),
            responses: VecDeque::new(),
            deadline: None,
            limit,
            stop,
            caller,
            _permit: permit,
        }
    }

    /// Reads requests, as far as capacity allows, and submits them together.
    fn read_requests(&mut self, context: &mut Context<'_>) {
        if self.end.is_none() && self.stop.poll_unpin(context).is_ready() {
            let status = || ApiError::from(UnavailableReason::Stopping).to_status();
            self.end = Some(Err(CallerContext::sync_scope_or_plain(self.caller.as_ref(), status)));
        }
        while self.end.is_none() && self.requests.remaining_slots() > 0 {
            match Pin::new(&mut self.input).poll_next(context) {
                Poll::Pending => break,
                Poll::Ready(None) => self.end = Some(Ok(())),
                Poll::Ready(Some(Err(status))) => {
                    self.end =
                        Some(Err(CallerContext::sync_scope_or_plain(self.caller.as_ref(), || input_error(status))));
                }
                Poll::Ready(Some(Ok(request))) => {
                    let id = request.id;
                    if let Err((method, failure)) = self.accept_request(request) {
                        self.push_response(id, method, Err(failure));
                    }
                }
            }
        }
        self.requests.send();
    }

    fn accept_request(&mut self, request: ClaimStreamRequest) -> Result<(), (GrpcMethod, ApiError)> {
        let ClaimStreamRequest { id, request } = request;
        let stream_error = |field, message| (GrpcMethod::ClaimStream, ApiError::invalid(field, message));
        let request = request.ok_or_else(|| stream_error("request", "is required"))?;
        if self.requests.contains(id) {
            return Err(stream_error("id", "is in use by a request in flight"));
        }
        let method = match request {
            Request::Take(_) => GrpcMethod::TakeClaim,
            Request::Release(_) => GrpcMethod::ReleaseClaim,
            Request::Confirm(_) => GrpcMethod::ConfirmClaim,
            Request::Renew(_) => GrpcMethod::RenewClaim,
        };
        self.submit(id, &request).map_err(|failure| (method, failure))
    }

    fn submit(&mut self, id: u64, request: &Request) -> Result<(), ApiError> {
        let ((claim, fence), verb) = match request {
            Request::Take(take) => {
                self.requests.add_claim(id, from_proto::claim(take)?);
                return Ok(());
            }
            Request::Release(of) => {
                let verb = match from_proto::phase(of.phase)? {
                    Some(ReleasePhase::Begin) => ClaimVerb::BeginRelease,
                    Some(ReleasePhase::Finish) | None => ClaimVerb::Release,
                };
                (from_proto::claim_and_fence(&of.namespace, of.tenant.as_deref(), &of.key, of.fence)?, verb)
            }
            Request::Confirm(of) => (
                from_proto::claim_and_fence(&of.namespace, of.tenant.as_deref(), &of.key, of.fence)?,
                ClaimVerb::Confirm,
            ),
            Request::Renew(of) => (
                from_proto::claim_and_fence(&of.namespace, of.tenant.as_deref(), &of.key, of.fence)?,
                ClaimVerb::Renew(of.ttl_ms),
            ),
        };
        self.requests.add_held_operation(id, claim, fence, verb);
        Ok(())
    }

    /// Turns completed and timed out requests into responses.
    fn collect_completions(&mut self, context: &mut Context<'_>) {
        let mut completions = std::mem::take(&mut self.completions);
        self.requests.poll_completions(context, &mut completions);
        self.expire(context, &mut completions);
        for (id, completion) in completions.drain(..) {
            self.complete(id, completion);
        }
        self.completions = completions;
    }

    fn expire(&mut self, context: &mut Context<'_>, completions: &mut Vec<(u64, RequestCompletion)>) {
        if self.requests.is_empty() {
            self.deadline = None;
            return;
        }
        // The first request arrived in this poll, so none is due until about `limit` from now.
        let timer = self.deadline.get_or_insert_with(|| Box::pin(sleep(self.limit)));
        while timer.poll_unpin(context).is_ready() {
            let next_ms = self.requests.expire(completions);
            // The clock of the deadlines may be a tick behind the timer's.
            let next = next_ms.map_or(self.limit, Duration::from_millis).max(Duration::from_millis(1));
            let until = timer.deadline() + next;
            timer.as_mut().reset(until);
        }
    }

    fn complete(&mut self, id: u64, completion: RequestCompletion) {
        let (method, outcome) = match completion {
            RequestCompletion::Claimed(result) => {
                (GrpcMethod::TakeClaim, result.map(|result| Outcome::Taken((&result).into())))
            }
            RequestCompletion::Released(released) => {
                let outcome = released.map(|released| Outcome::Released(ReleaseClaimResponse { released }));
                (GrpcMethod::ReleaseClaim, outcome)
            }
            RequestCompletion::Confirmed(claim) => {
                let confirmed =
                    |claim: ClaimView| Outcome::Confirmed(ConfirmClaimResponse { claim: Some((&claim).into()) });
                (GrpcMethod::ConfirmClaim, claim.map(confirmed))
            }
            RequestCompletion::Renewed(claim) => {
                let renewed = |claim: ClaimView| Outcome::Renewed(RenewClaimResponse { claim: Some((&claim).into()) });
                (GrpcMethod::RenewClaim, claim.map(renewed))
            }
        };
        self.push_response(id, method, outcome.map_err(ApiError::from));
    }

    /// Queues a response, counted as that of the unary call that the request could be.
    fn push_response(&mut self, id: u64, method: GrpcMethod, outcome: Result<Outcome, ApiError>) {
        let (code, outcome) = match outcome {
            Ok(outcome) => (GrpcCode::Ok, outcome),
            Err(failure) => {
                let error = proto::Error::from(&failure.nested_in(request_field(method)));
                (GrpcCode::ALL.get(error.code as usize).copied().unwrap_or(GrpcCode::Unknown), Outcome::Error(error))
            }
        };
        metrics().grpc_requests(method, code).increment(1);
        self.responses.push_back(ClaimStreamResponse { id, outcome: Some(outcome) });
    }
}

impl Stream for ClaimStreamResponses {
    type Item = Result<ClaimStreamResponse, Status>;

    fn poll_next(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let this = self.get_mut();
        loop {
            if let Some(response) = this.responses.pop_front() {
                return Poll::Ready(Some(Ok(response)));
            }
            let was_full = this.requests.remaining_slots() == 0;
            this.read_requests(context);
            this.collect_completions(context);
            // Capacity may become free without a response, and then nothing has read the input.
            let can_read_more = was_full && this.requests.remaining_slots() > 0;
            if this.responses.is_empty() && !can_read_more {
                return match &mut this.end {
                    Some(end) if this.requests.is_empty() => Poll::Ready(std::mem::replace(end, Ok(())).err().map(Err)),
                    _ => Poll::Pending,
                };
            }
        }
    }
}

/// Field of a request's message that its errors are about.
const fn request_field(method: GrpcMethod) -> &'static str {
    match method {
        GrpcMethod::TakeClaim => "take",
        GrpcMethod::ReleaseClaim => "release",
        GrpcMethod::ConfirmClaim => "confirm",
        GrpcMethod::RenewClaim => "renew",
        _ => "",
    }
}

/// Status for a failed input, mostly a message that is invalid or too large.
fn input_error(status: Status) -> Status {
    match status.code() {
        Code::OutOfRange => body_too_large(limits::STREAM_MESSAGE_BYTES_MAX).to_status(),
        _ => with_request_id(status),
    }
}
