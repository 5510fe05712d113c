//! Where a request goes: past the [guard](super::request_guard), then to the edge that it is for.

use std::convert::Infallible;

use hyper::body::{Body as _, Incoming};
use hyper::header::{CONNECTION, CONTENT_TYPE, HeaderValue};
use hyper::{Method, Request, Response, Version};
use tower::Service as _;

use super::answer_body::{self, AnswerClass};
use super::error_table::Failure;
use super::request_guard::{RequestHead, UnknownHost};
use super::{Edges, grpc, http};
use crate::metrics::metrics;

/// Body of an answer, of either edge.
type AnswerBody = axum::body::Body;

/// Type of a stream of events, which lasts.
const EVENT_STREAM: &str = "text/event-stream";

impl Edges {
    /// Answers one request.
    pub(super) async fn answer(mut self, mut request: Request<Incoming>) -> Result<Response<AnswerBody>, Infallible> {
        if let Err(rejection) = self.guard.check(&RequestHead::from(&request)) {
            metrics().requests_refused(rejection.label()).increment(1);
            tracing::debug!(?rejection, method = %request.method(), "a request was refused");
            return Ok(refuse(&request, &rejection.into()));
        }
        if self.guard.is_probe_of_unknown_host(&RequestHead::from(&request)) {
            request.extensions_mut().insert(UnknownHost);
        }
        let version = request.version();
        if is_grpc(&request) {
            let class = grpc::answer_class(request.uri().path());
            let (head, body) = self.grpc.call(request).await.into_parts();
            let bounded = match class {
                Some(class) => answer_body::bounded(body, version, class, &self.answers, self.answer_patience),
                None => Ok(AnswerBody::new(body)),
            };
            return Ok(match bounded {
                Ok(body) => Response::from_parts(head, body),
                Err(failure) => failure.status().into_http::<AnswerBody>(),
            });
        }
        let caching = http::Caching::of(request.uri().path());
        let class = http_class(&request);
        let (head, body) = self.http.call(request).await?.into_parts();
        let bounded = match head.headers.get(CONTENT_TYPE).is_some_and(|kind| kind == EVENT_STREAM) {
            false => answer_body::bounded(body, version, class, &self.answers, self.answer_patience),
            true => Ok(body),
        };
        let mut response = match bounded {
            Ok(body) => Response::from_parts(head, body),
            Err(failure) => http::answer(failure),
        };
        http::protect(&mut response, caching);
        Ok(response)
    }
}

/// What the answer to a request over HTTP does where there is no room for it. Monitoring is not refused because others do not
/// read, and pages and documents are part of the program.
fn http_class<B>(request: &Request<B>) -> AnswerClass {
    let path = request.uri().path();
    match *request.method() {
        _ if path == "/metrics" => AnswerClass::Owed,
        Method::GET if path == "/v1/openapi.json" || path.starts_with("/docs") => AnswerClass::Shared,
        Method::GET => AnswerClass::Refusable,
        _ if path == "/v1/explain" => AnswerClass::Refusable,
        _ => AnswerClass::Owed,
    }
}

/// Answer to a request that no edge sees: its body is not read.
pub(super) fn refuse(request: &Request<Incoming>, failure: &Failure) -> Response<AnswerBody> {
    if is_grpc(request) {
        return grpc::refuse(request.uri().path(), failure).map(AnswerBody::new);
    }
    let mut response = http::refuse(failure);
    http::protect(&mut response, http::Caching::of(request.uri().path()));
    if request.version() < Version::HTTP_2 && !request.body().is_end_stream() {
        // What nobody reads of the body cannot be told from a next request.
        response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
    }
    response
}

/// gRPC needs HTTP/2 and says so in its content type; gRPC-Web, whose type begins alike, is another protocol.
pub(super) fn is_grpc<B>(request: &Request<B>) -> bool {
    if request.version() != Version::HTTP_2 {
        return false;
    }
    let kind = request.headers().get(CONTENT_TYPE).map_or(&b""[..], HeaderValue::as_bytes);
    let rest = kind.strip_prefix(b"application/grpc");
    rest.is_some_and(|rest| matches!(rest.first(), None | Some(b'+' | b';')))
}
