//! Ids of requests on HTTP and gRPC: taken from the caller or made, known to all that a request runs through, and in the
//! head of every answer. Stands outside of everything else, so that an answer of whatever guard carries it too.

use std::net::SocketAddr;

use hyper::header::{HeaderMap, HeaderName};
use hyper::{Request, Response};

use crate::caller::{Caller, ChangeSource, RequestId};

/// Name of the header, and of the metadata in gRPC.
const HEADER: HeaderName = HeaderName::from_static("x-request-id");

/// Answers one request of a client at `peer`.
pub(super) async fn identified<B, R, E>(
    source: ChangeSource,
    peer: SocketAddr,
    request: Request<B>,
    answer: impl AsyncFnOnce(Request<B>) -> Result<Response<R>, E>,
) -> Result<Response<R>, E> {
    let request_id = of(request.headers());
    let caller = Caller { source, request_id: Some(request_id.clone()), peer: Some(peer) };
    let mut response = caller.carry(answer(request)).await?;
    response.headers_mut().insert(HEADER, request_id.header());
    Ok(response)
}

fn of(headers: &HeaderMap) -> RequestId {
    let mut sent = headers.get_all(HEADER).iter();
    // Of two ids nobody knows which one is looked for later.
    match (sent.next(), sent.next()) {
        (sent, None) => RequestId::sent_or_made(sent),
        _ => RequestId::made(),
    }
}
