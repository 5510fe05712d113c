//! Bare hyper server, which leaves gRPC to tonic.

use std::convert::Infallible;
use std::fmt::Write as _;
use std::sync::Arc;

use bytes::Bytes;
use http_body_util::{BodyExt as _, Either, Full, Limited};
use hyper::body::Incoming;
use hyper::header::{CACHE_CONTROL, CONTENT_TYPE, HeaderValue};
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto::Builder;
use tokio::net::TcpListener;

use super::{EchoState, grpc, next_connection};

/// Longest body of a request that is read, in bytes.
const BODY_BYTES_MAX: usize = 16 << 20;

type EchoBody = Either<Full<Bytes>, tonic::body::Body>;

/// Accepts connections for ever.
pub(super) async fn serve(listener: TcpListener, state: Arc<EchoState>) {
    loop {
        let stream = next_connection(&listener).await;
        let state = Arc::clone(&state);
        tokio::spawn(async move {
            let service = hyper::service::service_fn(move |request| answer(request, Arc::clone(&state)));
            // The peer may break the connection.
            let _ = Builder::new(TokioExecutor::new()).serve_connection(TokioIo::new(stream), service).await;
        });
    }
}

async fn answer(request: Request<Incoming>, state: Arc<EchoState>) -> Result<Response<EchoBody>, Infallible> {
    if request.headers().get(CONTENT_TYPE).is_some_and(|value| value.as_bytes().starts_with(b"application/grpc")) {
        return Ok(grpc::answer(request, state).await.map(Either::Right));
    }
    let (parts, body) = request.into_parts();
    let body = Limited::new(body, BODY_BYTES_MAX).collect().await;
    let body = body.map(http_body_util::Collected::to_bytes).unwrap_or_default();
    let (status, records, answer) = match parts.uri.path() {
        "/v1/claims" => (StatusCode::CREATED, 1, claim(&state)),
        "/v1/claims:batch" => {
            let claims = count(&body, b"\"key\":");
            (StatusCode::OK, claims, batch(&state, claims))
        }
        path if path.ends_with(":release") => {
            state.release(number_after(&body, b"\"fence\":"));
            (StatusCode::NO_CONTENT, 1, String::new())
        }
        _ => (StatusCode::NOT_FOUND, 0, String::new()),
    };
    state.append(records).await;
    let response = Response::builder()
        .status(status)
        .header(CONTENT_TYPE, HeaderValue::from_static("application/json"))
        .header("x-content-type-options", HeaderValue::from_static("nosniff"))
        .header(CACHE_CONTROL, HeaderValue::from_static("no-store"))
        .header("x-request-id", HeaderValue::from_static("017c274a-3f2"))
        .body(Either::Left(Full::new(Bytes::from(answer))));
    Ok(response.expect("the headers are valid"))
}

/// Answer to one claim: as long as that of the service. The harness reads the fence and the worker.
fn claim(state: &EchoState) -> String {
    let mut answer = String::with_capacity(256);
    state.grant(|fence, worker| {
        let written = write!(
            answer,
            "{{\"claim\":{{\"key\":\"0123456789ab.00\",\"tenant\":\"default\",\"fence\":{fence},\"namespace\":\"load\",\
             \"pool\":\"0123456789abcdef0123456789abcdef\",\"worker\":\"{worker}\",\"state\":\"active\",\"resources\":{{}},\
             \"created_at_ms\":1700000000000,\"activated_at_ms\":1700000000000}}}}"
        );
        written.expect("a string takes everything");
    });
    answer
}

fn batch(state: &EchoState, claims: usize) -> String {
    let items: Vec<String> = (0..claims).map(|_| claim(state)).collect();
    format!("{{\"items\":[{}]}}", items.join(","))
}

fn count(text: &[u8], word: &[u8]) -> usize {
    text.windows(word.len()).filter(|window| *window == word).count()
}

/// Number that follows a word; 0 if there is none.
fn number_after(text: &[u8], word: &[u8]) -> u64 {
    let found = text.windows(word.len()).position(|window| window == word);
    let digits = found.map_or(&[][..], |start| &text[start + word.len()..]);
    let digits = digits.iter().take_while(|digit| digit.is_ascii_digit());
    digits.fold(0_u64, |number, digit| number.wrapping_mul(10).wrapping_add(u64::from(digit - b'0')))
}
