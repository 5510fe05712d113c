//! The claim stream: many requests of one call in flight, answered by id. No task and no timer per request: the stream reads
//! what has come, sends it to the scheduler together, and says what has been decided, whenever it is asked for more to
//! write. So a client that does not read is not read from, and what it may have in flight is bounded twice.

use std::collections::VecDeque;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use futures::future::{BoxFuture, FutureExt as _};
use futures::stream::Stream;
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::{Sleep, sleep};
use tonic::{Code, Status, Streaming};

use super::proto::claim_stream_request::Request;
use super::proto::claim_stream_response::Outcome;
use super::proto::{
    self, ClaimStreamRequest, ClaimStreamResponse, ConfirmClaimResponse, ReleaseClaimResponse, RenewClaimResponse,
};
use super::read;
use super::status::with_request_id;
use crate::api::error_table::Failure;
use crate::api::http::json::Phase;
use crate::api::http::read::too_large;
use crate::limits;
use crate::metrics::{GrpcCode, GrpcMethod, metrics};
use crate::model::ClaimView;
use crate::model::rejection::Unavailable;
use crate::scheduler::caller::Caller;
use crate::scheduler::{Flight, Landed, Verb};

/// The answers of one call, in the order in which they are decided.
pub(crate) struct Answers {
    input: Streaming<ClaimStreamRequest>,
    /// How the input ended: no more is read.
    end: Option<Result<(), Status>>,
    flight: Flight,
    landed: Vec<(u64, Landed)>,
    ready: VecDeque<ClaimStreamResponse>,
    /// Runs while something is in flight.
    late: Option<Pin<Box<Sleep>>>,
    limit: Duration,
    stop: BoxFuture<'static, ()>,
    /// Caller of the stream, for the status that ends it, which is made after the call was answered.
    caller: Option<Caller>,
    _place: OwnedSemaphorePermit,
}

impl Answers {
    /// `stop` resolves when the service begins to stop; `limit` is how long a request may take that does not wait.
    pub(super) fn new(
        input: Streaming<ClaimStreamRequest>,
        flight: Flight,
        limit: Duration,
        stop: BoxFuture<'static, ()>,
        place: OwnedSemaphorePermit,
    ) -> Self {
        let (landed, ready) = (Vec::new(), VecDeque::new());
        let caller = Caller::current();
        Self { input, end: None, flight, landed, ready, late: None, limit, stop, caller, _place: place }
    }

    /// Takes what has come, as far as there is room for it, and sends it together.
    fn read(&mut self, context: &mut Context<'_>) {
        if self.end.is_none() && self.stop.poll_unpin(context).is_ready() {
            let status = || Failure::from(Unavailable::Stopping).status();
            self.end = Some(Err(Caller::lend_kept(self.caller.as_ref(), status)));
        }
        while self.end.is_none() && self.flight.room() > 0 {
            match Pin::new(&mut self.input).poll_next(context) {
                Poll::Pending => break,
                Poll::Ready(None) => self.end = Some(Ok(())),
                Poll::Ready(Some(Err(status))) => {
                    self.end = Some(Err(Caller::lend_kept(self.caller.as_ref(), || broken(status))));
                }
                Poll::Ready(Some(Ok(request))) => {
                    let id = request.id;
                    if let Err((method, failure)) = self.take(request) {
                        self.say(id, method, Err(failure));
                    }
                }
            }
        }
        self.flight.send();
    }

    fn take(&mut self, request: ClaimStreamRequest) -> Result<(), (GrpcMethod, Failure)> {
        let ClaimStreamRequest { id, request } = request;
        let unnamed = |field, message| (GrpcMethod::ClaimStream, Failure::invalid(field, message));
        let request = request.ok_or_else(|| unnamed("request", "is required"))?;
        if self.flight.has(id) {
            return Err(unnamed("id", "is that of a request in flight"));
        }
        let method = match request {
            Request::Take(_) => GrpcMethod::TakeClaim,
            Request::Release(_) => GrpcMethod::ReleaseClaim,
            Request::Confirm(_) => GrpcMethod::ConfirmClaim,
            Request::Renew(_) => GrpcMethod::RenewClaim,
        };
        self.begin(id, &request).map_err(|failure| (method, failure))
    }

    fn begin(&mut self, id: u64, request: &Request) -> Result<(), Failure> {
        let ((claim, fence), verb) = match request {
            Request::Take(take) => {
                self.flight.claim(id, read::claim(take)?);
                return Ok(());
            }
            Request::Release(of) => {
                let verb = match read::phase(of.phase)? {
                    Some(Phase::Begin) => Verb::BeginRelease,
                    Some(Phase::Finish) | None => Verb::Release,
                };
                (read::holder(&of.namespace, of.tenant.as_deref(), &of.key, of.fence)?, verb)
            }
            Request::Confirm(of) => {
                (read::holder(&of.namespace, of.tenant.as_deref(), &of.key, of.fence)?, Verb::Confirm)
            }
            Request::Renew(of) => {
                (read::holder(&of.namespace, of.tenant.as_deref(), &of.key, of.fence)?, Verb::Renew(of.ttl_ms))
            }
        };
        self.flight.held(id, claim, fence, verb);
        Ok(())
    }

    /// Makes answers of what has been decided, and of what nobody waits for any more.
    fn collect(&mut self, context: &mut Context<'_>) {
        let mut landed = std::mem::take(&mut self.landed);
        self.flight.poll_landed(context, &mut landed);
        self.expire(context, &mut landed);
        for (id, said) in landed.drain(..) {
            self.land(id, said);
        }
        self.landed = landed;
    }

    fn expire(&mut self, context: &mut Context<'_>, landed: &mut Vec<(u64, Landed)>) {
        if self.flight.is_empty() {
            self.late = None;
            return;
        }
        // None is due before the first could be.
        let late = self.late.get_or_insert_with(|| Box::pin(sleep(self.limit)));
        while late.poll_unpin(context).is_ready() {
            let next_ms = self.flight.expire(landed);
            // The time that deadlines are counted in may be a tick behind the timer's.
            let next = next_ms.map_or(self.limit, Duration::from_millis).max(Duration::from_millis(1));
            let until = late.deadline() + next;
            late.as_mut().reset(until);
        }
    }

    fn land(&mut self, id: u64, said: Landed) {
        let (method, outcome) = match said {
            Landed::Taken(taken) => (GrpcMethod::TakeClaim, taken.map(|taken| Outcome::Taken((&taken).into()))),
            Landed::Released(released) => {
                let said = released.map(|released| Outcome::Released(ReleaseClaimResponse { released }));
                (GrpcMethod::ReleaseClaim, said)
            }
            Landed::Confirmed(claim) => {
                let confirmed =
                    |claim: ClaimView| Outcome::Confirmed(ConfirmClaimResponse { claim: Some((&claim).into()) });
                (GrpcMethod::ConfirmClaim, claim.map(confirmed))
            }
            Landed::Renewed(claim) => {
                let renewed = |claim: ClaimView| Outcome::Renewed(RenewClaimResponse { claim: Some((&claim).into()) });
                (GrpcMethod::RenewClaim, claim.map(renewed))
            }
        };
        self.say(id, method, outcome.map_err(Failure::from));
    }

    /// Each is counted as the call of its own that it could be.
    fn say(&mut self, id: u64, method: GrpcMethod, outcome: Result<Outcome, Failure>) {
        let (code, outcome) = match outcome {
            Ok(outcome) => (GrpcCode::Ok, outcome),
            Err(failure) => {
                let error = proto::Error::from(&failure.inside(field(method)));
                (GrpcCode::ALL.get(error.code as usize).copied().unwrap_or(GrpcCode::Unknown), Outcome::Error(error))
            }
        };
        metrics().grpc_requests(method, code).increment(1);
        self.ready.push_back(ClaimStreamResponse { id, outcome: Some(outcome) });
    }
}

impl Stream for Answers {
    type Item = Result<ClaimStreamResponse, Status>;

    fn poll_next(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let this = self.get_mut();
        loop {
            if let Some(answer) = this.ready.pop_front() {
                return Poll::Ready(Some(Ok(answer)));
            }
            let full = this.flight.room() == 0;
            this.read(context);
            this.collect(context);
            // Places may come free without an answer, and then nobody has looked at the input.
            let more = full && this.flight.room() > 0;
            if this.ready.is_empty() && !more {
                return match &mut this.end {
                    Some(end) if this.flight.is_empty() => Poll::Ready(std::mem::replace(end, Ok(())).err().map(Err)),
                    _ => Poll::Pending,
                };
            }
        }
    }
}

/// Where a request stands in its message.
const fn field(method: GrpcMethod) -> &'static str {
    match method {
        GrpcMethod::TakeClaim => "take",
        GrpcMethod::ReleaseClaim => "release",
        GrpcMethod::ConfirmClaim => "confirm",
        GrpcMethod::RenewClaim => "renew",
        _ => "",
    }
}

/// What ended the input: mostly a message that is none, or too large.
fn broken(status: Status) -> Status {
    match status.code() {
        Code::OutOfRange => too_large(limits::STREAM_MESSAGE_BYTES_MAX).status(),
        _ => with_request_id(status),
    }
}
