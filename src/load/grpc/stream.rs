//! One stream of claims and releases: many in flight on one connection, each answered by its id.

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

/// Requests that wait to be written; what is beyond waits for its place.
const WRITTEN_MAX: usize = 1_024;

type OutcomeResult = Result<Outcome, TargetError>;

/// Who waits for which answer; none: the stream has ended.
type PendingRequests = Arc<Mutex<Option<HashMap<u64, oneshot::Sender<OutcomeResult>>>>>;

/// A stream, open until it is dropped.
pub(super) struct ClaimStreamClient {
    requests: mpsc::Sender<proto::ClaimStreamRequest>,
    waiting: PendingRequests,
    next: AtomicU64,
}

impl ClaimStreamClient {
    /// Opens it.
    pub(super) async fn open(mut client: ClaimServiceClient<Channel>) -> Result<Self, tonic::Status> {
        let (requests, outgoing) = mpsc::channel(WRITTEN_MAX);
        let outgoing = stream::unfold(outgoing, async |mut outgoing| Some((outgoing.recv().await?, outgoing)));
        let answers = client.claim_stream(outgoing).await?.into_inner();
        let waiting: PendingRequests = Arc::new(Mutex::new(Some(HashMap::new())));
        tokio::spawn(dispatch_responses(answers, Arc::clone(&waiting)));
        Ok(Self { requests, waiting, next: AtomicU64::new(0) })
    }

    /// Asks, and waits for the answer.
    pub(super) async fn call(&self, request: Request) -> OutcomeResult {
        let ended = || target_error("the stream has ended".into(), true);
        let id = self.next.fetch_add(1, Ordering::Relaxed);
        let (to, answer) = oneshot::channel();
        match self.waiting.lock().as_mut() {
            Some(waiting) => drop(waiting.insert(id, to)),
            None => return Err(ended()),
        }
        let request = proto::ClaimStreamRequest { id, request: Some(request) };
        self.requests.send(request).await.map_err(|_| ended())?;
        answer.await.unwrap_or_else(|_| Err(ended()))
    }
}

/// Hands answers to those who wait for them, until the stream ends.
async fn dispatch_responses(mut answers: Streaming<proto::ClaimStreamResponse>, waiting: PendingRequests) {
    let why = loop {
        match answers.message().await {
            Ok(Some(proto::ClaimStreamResponse { id, outcome })) => {
                let mut waiting = waiting.lock();
                let Some(to) = waiting.as_mut().and_then(|waiting| waiting.remove(&id)) else { continue };
                let answer = match outcome {
                    Some(Outcome::Error(error)) => Err(code_error(Code::from_i32(error.code), &error.message)),
                    Some(outcome) => Ok(outcome),
                    None => Err(target_error("an answer without an outcome".into(), true)),
                };
                // Whoever waited may be gone.
                let _ = to.send(answer);
            }
            Ok(None) => break target_error("the stream has ended".into(), true),
            Err(status) => break code_error(status.code(), status.message()),
        }
    };
    let left = waiting.lock().take();
    for to in left.into_iter().flat_map(HashMap::into_values) {
        let _ = to.send(Err(why.clone()));
    }
}
