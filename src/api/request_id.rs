//! Ids of requests on HTTP and gRPC: taken from the caller or made, known to all that a request runs through, and in the
//! head of every answer. Stands outside of everything else, so that an answer of whatever guard carries it too.

use std::future::poll_fn;
use std::net::SocketAddr;
use std::pin::pin;

use hyper::header::{HeaderMap, HeaderName};
use hyper::{Request, Response};

use super::routing::is_grpc;
use crate::scheduler::caller::{CallerContext, ChangeSource, RequestId};

/// Name of the header, and of the metadata in gRPC.
const HEADER: HeaderName = HeaderName::from_static("x-request-id");

/// Answers one request of a client at `peer`.
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
    // Stays where it is made: it has room for every state of every edge, and moving that costs more than all else here.
    let mut answered = pin!(answer(request));
    let mut response = poll_fn(|context| caller.clone().sync_scope(|| answered.as_mut().poll(context))).await?;
    response.headers_mut().insert(HEADER, request_id.header());
    Ok(response)
}

fn request_id_of(headers: &HeaderMap) -> RequestId {
    let sent = headers.get(HEADER);
    // Of two ids nobody knows which one is looked for later.
    let is_one = sent.is_some() && headers.get_all(HEADER).iter().nth(1).is_none();
    RequestId::from_header_or_generate(sent.filter(|_| is_one))
}
