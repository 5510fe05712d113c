//! Request ids on HTTP and gRPC: taken from the caller or generated, available to everything that handles the request,
//! and part of every response head. This layer is the outermost, so that the rejections of all guards carry the id too.

use std::future::poll_fn;
use std::net::SocketAddr;
use std::pin::pin;

use hyper::header::{HeaderMap, HeaderName};
use hyper::{Request, Response};

use super::routing::is_grpc;
use crate::scheduler::caller::{CallerContext, ChangeSource, RequestId};

/// Name of the HTTP header and of the gRPC metadata.
const HEADER: HeaderName = HeaderName::from_static("x-request-id");

/// Runs one request of a client at `peer` under its request id.
pub(super) async fn with_request_id<B, R, E, A>(
    peer: SocketAddr,
    request: Request<B>,
    answer: impl FnOnce(Request<B>) -> A,
) -> Result<Response<R>, E>
where
    A: Future<Output = Result<Response<R>, E>>,
{
    let request_id = request_id_of(request.headers());
    let source = if is_grpc(&request) { ChangeSource::Grpc } else { ChangeSource::Http };
    let caller = CallerContext { source, request_id: Some(request_id.clone()), peer: Some(peer) };
    // Pinned in place: the future holds the state of every edge, and moving it would cost more than everything else
    // here.
    let mut answered = pin!(answer(request));
    let mut response = poll_fn(|context| caller.clone().sync_scope(|| answered.as_mut().poll(context))).await?;
    response.headers_mut().insert(HEADER, request_id.header());
    Ok(response)
}

fn request_id_of(headers: &HeaderMap) -> RequestId {
    let sent = headers.get(HEADER);
    // With two ids it is unknown which one will be searched for later.
    let is_one = sent.is_some() && headers.get_all(HEADER).iter().nth(1).is_none();
    RequestId::from_header_or_generate(sent.filter(|_| is_one))
}
