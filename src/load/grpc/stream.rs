//! One stream of claims and releases: many in flight on one connection, each answered by its id.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use futures::stream;
use tokio::sync::{mpsc, oneshot};
use tonic::transport::Channel;
use tonic::{Code, Streaming};

use super::refusal;
use crate::stats::Failure;
use crate::wire::failed;
use hotpool::api::grpc::proto;
use hotpool::api::grpc::proto::claim_service_client::ClaimServiceClient;
use hotpool::api::grpc::proto::claim_stream_request::Request;
use hotpool::api::grpc::proto::claim_stream_response::Outcome;

/// Requests that wait to be written; what is beyond waits for its place.
const WRITTEN_MAX: usize = 1_024;

type Answer = Result<Outcome, Failure>;

/// Who waits for which answer; none: the stream has ended.
type Waiting = Arc<Mutex<Option<HashMap<u64, oneshot::Sender<Answer>>>>>;

/// A stream, open until it is dropped.
pub(super) struct ClaimStream {
    requests: mpsc::Sender<proto::ClaimStreamRequest>,
    waiting: Waiting,
    next: AtomicU64,
}

impl ClaimStream {
    /// Opens it.
    pub(super) async fn open(mut client: ClaimServiceClient<Channel>) -> Result<Self, tonic::Status> {
        let (requests, outgoing) = mpsc::channel(WRITTEN_MAX);
        let outgoing = stream::unfold(outgoing, async |mut outgoing| Some((outgoing.recv().await?, outgoing)));
        let answers = client.claim_stream(outgoing).await?.into_inner();
        let waiting: Waiting = Arc::new(Mutex::new(Some(HashMap::new())));
        tokio::spawn(hear(answers, Arc::clone(&waiting)));
        Ok(Self { requests, waiting, next: AtomicU64::new(0) })
    }

    /// Asks, and waits for the answer.
    pub(super) async fn ask(&self, request: Request) -> Answer {
        let ended = || failed("the stream has ended".into(), true);
        let id = self.next.fetch_add(1, Ordering::Relaxed);
        let (to, answer) = oneshot::channel();
        match self.waiting.lock().unwrap_or_else(PoisonError::into_inner).as_mut() {
            Some(waiting) => drop(waiting.insert(id, to)),
            None => return Err(ended()),
        }
        let request = proto::ClaimStreamRequest { id, request: Some(request) };
        self.requests.send(request).await.map_err(|_| ended())?;
        answer.await.unwrap_or_else(|_| Err(ended()))
    }
}

/// Hands answers to those who wait for them, until the stream ends.
async fn hear(mut answers: Streaming<proto::ClaimStreamResponse>, waiting: Waiting) {
    let why = loop {
        match answers.message().await {
            Ok(Some(proto::ClaimStreamResponse { id, outcome })) => {
                let mut waiting = waiting.lock().unwrap_or_else(PoisonError::into_inner);
                let Some(to) = waiting.as_mut().and_then(|waiting| waiting.remove(&id)) else { continue };
                let answer = match outcome {
                    Some(Outcome::Error(error)) => Err(refusal(Code::from_i32(error.code), &error.message)),
                    Some(outcome) => Ok(outcome),
                    None => Err(failed("an answer without an outcome".into(), true)),
                };
                // Whoever waited may be gone.
                let _ = to.send(answer);
            }
            Ok(None) => break failed("the stream has ended".into(), true),
            Err(status) => break refusal(status.code(), status.message()),
        }
    };
    let left = waiting.lock().unwrap_or_else(PoisonError::into_inner).take();
    for to in left.into_iter().flat_map(HashMap::into_values) {
        let _ = to.send(Err(why.clone()));
    }
}
