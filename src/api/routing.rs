//! Routing of requests: through the [guard](super::request_guard), then to their edge.

use std::convert::Infallible;

use hyper::body::{Body as _, Incoming};
use hyper::header::{CONNECTION, CONTENT_TYPE, HeaderValue};
use hyper::{Method, Request, Response, Version};
use tower::Service as _;

use super::error_table::ApiError;
use super::request_guard::{RequestHead, UnknownHost};
use super::response_body::{self, ResponseClass};
use super::{ApiEdges, grpc, http};
use crate::metrics::metrics;

type EdgeBody = axum::body::Body;

/// Content type of an event stream, which is long-lived.
const EVENT_STREAM: &str = "text/event-stream";

impl ApiEdges {
    /// Answers one request of any edge.
    pub(super) async fn route(mut self, mut request: Request<Incoming>) -> Result<Response<EdgeBody>, Infallible> {
        if let Err(rejection) = self.guard.check(&RequestHead::from(&request)) {
            metrics().requests_refused(rejection.label()).increment(1);
            tracing::debug!(?rejection, method = %request.method(), "rejected a request");
            return Ok(reject(&request, &rejection.into()));
        }
        if self.guard.is_probe_of_unknown_host(&RequestHead::from(&request)) {
            request.extensions_mut().insert(UnknownHost);
        }
        let version = request.version();
        if is_grpc(&request) {
            let class = grpc::response_class(request.uri().path());
            let (head, body) = self.grpc.call(request).await.into_parts();
            let bounded = match class {
                Some(class) => {
                    response_body::bound_response(body, version, class, &self.response_budget, self.response_timeout)
                }
                None => Ok(EdgeBody::new(body)),
            };
            return Ok(match bounded {
                Ok(body) => Response::from_parts(head, body),
                Err(failure) => failure.to_status().into_http::<EdgeBody>(),
            });
        }
        let caching = http::CachePolicy::for_path(request.uri().path());
        let class = http_response_class(&request);
        let (head, body) = self.http.call(request).await?.into_parts();
        let bounded = match head.headers.get(CONTENT_TYPE).is_some_and(|kind| kind == EVENT_STREAM) {
            false => response_body::bound_response(body, version, class, &self.response_budget, self.response_timeout),
            true => Ok(body),
        };
        let mut response = match bounded {
            Ok(body) => Response::from_parts(head, body),
            Err(failure) => http::error_response(failure),
        };
        http::add_security_headers(&mut response, caching);
        Ok(response)
    }
}

/// Treatment of a response over HTTP when the budget is used up. Monitoring is never rejected because other clients do
/// not read, and static pages and documents are part of the program.
fn http_response_class<B>(request: &Request<B>) -> ResponseClass {
    let path = request.uri().path();
    match *request.method() {
        _ if path == "/metrics" => ResponseClass::MustDeliver,
        Method::GET if path == "/v1/openapi.json" || path.starts_with("/docs") => ResponseClass::Shared,
        Method::GET => ResponseClass::Refusable,
        _ if path == "/v1/explain" => ResponseClass::Refusable,
        _ => ResponseClass::MustDeliver,
    }
}

/// Rejects a request before any edge sees it, without reading its body.
pub(super) fn reject(request: &Request<Incoming>, failure: &ApiError) -> Response<EdgeBody> {
    if is_grpc(request) {
        return grpc::reject(request.uri().path(), failure).map(EdgeBody::new);
    }
    let mut response = http::reject_unrouted(failure);
    http::add_security_headers(&mut response, http::CachePolicy::for_path(request.uri().path()));
    if request.version() < Version::HTTP_2 && !request.body().is_end_stream() {
        // An unread body cannot be told from a next request.
        response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
    }
    response
}

/// Whether the request is gRPC: HTTP/2 with its content type. gRPC-Web, whose type begins alike, is another protocol.
pub(super) fn is_grpc<B>(request: &Request<B>) -> bool {
    if request.version() != Version::HTTP_2 {
        return false;
    }
    let kind = request.headers().get(CONTENT_TYPE).map_or(&b""[..], HeaderValue::as_bytes);
    let rest = kind.strip_prefix(b"application/grpc");
    rest.is_some_and(|rest| matches!(rest.first(), None | Some(b'+' | b';')))
}
