//! Where a request goes: past the [guard](super::request_guard), then to the edge that it is for.

use std::convert::Infallible;

use hyper::body::{Body as _, Incoming};
use hyper::header::{CONNECTION, CONTENT_TYPE, HeaderValue};
use hyper::{Request, Response, Version};
use tower::Service as _;

use super::outcome::Failure;
use super::request_guard::{RequestHead, UnknownHost};
use super::{Edges, grpc, http};
use crate::metrics::metrics;

/// Body of an answer, of either edge.
type AnswerBody = axum::body::Body;

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
        if is_grpc(&request) {
            return Ok(self.grpc.call(request).await.map(AnswerBody::new));
        }
        let caching = http::Caching::of(request.uri().path());
        let mut response = self.http.call(request).await?;
        http::protect(&mut response, caching);
        Ok(response)
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
