//! Stream of claims and releases: many requests in flight on one connection, matched to responses by id.

use parking_lot::Mutex;
use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use futures::stream;
use tokio::sync::{mpsc, oneshot};
use tonic::transport::Channel;
use tonic::{Code, Streaming};

use super::code_error;
use crate::http_calls::target_error;
use crate::stats::TargetError;
use hotpool::api::grpc::proto;
use hotpool::api::grpc::proto::claim_service_client::ClaimServiceClient;
use hotpool::api::grpc::proto::claim_stream_request::Request;
use hotpool::api::grpc::proto::claim_stream_response::Outcome;

/// Capacity of the queue of requests to be written; callers wait while it is full.
const QUEUED_REQUESTS_MAX: usize = 1_024;

type OutcomeResult = Result<Outcome, TargetError>;

/// Reply channels of requests in flight by id; `None` once the stream has ended.
type PendingRequests = Arc<Mutex<Option<HashMap<u64, oneshot::Sender<OutcomeResult>>>>>;

/// Client stream that closes when dropped.
pub(super) struct ClaimStreamClient {
    requests: mpsc::Sender<proto::ClaimStreamRequest>,
    pending: PendingRequests,
    next: AtomicU64,
}

impl ClaimStreamClient {
    /// Opens a stream on the client's connection.
    pub(super) async fn open(mut client: ClaimServiceClient<Channel>) -> Result<Self, tonic::Status> {
        let (requests, outgoing) = mpsc::channel(QUEUED_REQUESTS_MAX);
        let outgoing = stream::unfold(outgoing, async |mut outgoing| Some((outgoing.recv().await?, outgoing)));
        let responses = client.claim_stream(outgoing).await?.into_inner();
        let pending: PendingRequests = Arc::new(Mutex::new(Some(HashMap::new())));
        tokio::spawn(dispatch_responses(responses, Arc::clone(&pending)));
        Ok(Self { requests, pending, next: AtomicU64::new(0) })
    }

    /// Sends a request and waits for its outcome.
    pub(super) async fn call(&self, request: Request) -> OutcomeResult {
        let ended = || target_error("the stream has ended".into(), true);
        let id = self.next.fetch_add(1, Ordering::Relaxed);
        let (reply, response) = oneshot::channel();
        match self.pending.lock().as_mut() {
            Some(pending) => drop(pending.insert(id, reply)),
            None => return Err(ended()),
        }
        let request = proto::ClaimStreamRequest { id, request: Some(request) };
        self.requests.send(request).await.map_err(|_| ended())?;
        response.await.unwrap_or_else(|_| Err(ended()))
    }
}

/// Passes responses to the waiting callers until the stream ends.
async fn dispatch_responses(mut responses: Streaming<proto::ClaimStreamResponse>, pending: PendingRequests) {
    let failure = loop {
        match responses.message().await {
            Ok(Some(proto::ClaimStreamResponse { id, outcome })) => {
                let mut pending = pending.lock();
                let Some(reply) = pending.as_mut().and_then(|pending| pending.remove(&id)) else { continue };
                let response = match outcome {
                    Some(Outcome::Error(error)) => Err(code_error(Code::from_i32(error.code), &error.message)),
                    Some(outcome) => Ok(outcome),
                    None => Err(target_error("a response without an outcome".into(), true)),
                };
                // The caller may have given up.
                let _ = reply.send(response);
            }
            Ok(None) => break target_error("the stream has ended".into(), true),
            Err(status) => break code_error(status.code(), status.message()),
        }
    };
    let unanswered = pending.lock().take();
    for reply in unanswered.into_iter().flat_map(HashMap::into_values) {
        let _ = reply.send(Err(failure.clone()));
    }
}
