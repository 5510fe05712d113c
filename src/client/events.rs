//! Events of a pool as a stream.

use futures::stream::{BoxStream, StreamExt as _, try_unfold};
use http_body_util::BodyExt as _;
use hyper::Method;
use hyper::body::{Bytes, Incoming};
use serde::Deserialize;

use super::{Client, ClientError, RawJson, pool_path, query};
use crate::model::{Fence, Millis, PoolName};

/// Largest event that is read, in bytes.
pub const EVENT_BYTES_MAX: usize = 1 << 20;

/// Events of a pool. The stream ends when the service stops or the pool is deleted; after an error it yields no more.
pub type EventStream = BoxStream<'static, Result<RawJson<WatchedEvent>, ClientError>>;

/// Event of a pool. `docs/API.md` lists the kinds and the fields that each has.
#[derive(Debug, Clone, Deserialize)]
pub struct WatchedEvent {
    /// Kind of the event, such as `claimed`; `started` opens the stream, `missed` marks a gap in it.
    pub event: String,
    /// Position of the event, from which a later stream resumes.
    pub position: String,
    /// Worker that the event concerns.
    pub worker: Option<String>,
    /// Tenant of the claim.
    pub tenant: Option<String>,
    /// Key of the claim.
    pub key: Option<String>,
    /// Fence of the claim.
    pub fence: Option<Fence>,
    /// Reason for the event, if it was not asked for.
    pub reason: Option<String>,
    /// Number of missed events; `None` if it is unknown.
    pub count: Option<u64>,
    /// Unix time of the event, in milliseconds.
    pub at_ms: Option<Millis>,
    /// Unix time at which the claim was created, in milliseconds.
    pub created_at_ms: Option<Millis>,
    /// Unix time at which the claim became active, in milliseconds.
    pub activated_at_ms: Option<Millis>,
}

impl Client {
    /// Watches a pool, after the event at position `from` or from now on. The deadline of the client ends with the first
    /// byte of the answer.
    ///
    /// # Errors
    /// `NOT_FOUND` for a missing pool, `INVALID_ARGUMENT` for a malformed position, `RESOURCE_EXHAUSTED` for too many
    /// watchers. Items of the stream fail with [`ClientError::StreamBroken`] or [`ClientError::InvalidResponse`].
    pub async fn watch_pool(&self, pool: &PoolName, from: Option<&str>) -> Result<EventStream, ClientError> {
        let path = format!("{}/events?{}", pool_path(pool), query(&[("from", from)]));
        let sent = tokio::time::timeout(self.timeout, self.send(Method::GET, &path, Bytes::new()));
        let response = sent.await.map_err(|_| self.timed_out(self.timeout))??;
        let status = response.status();
        if !status.is_success() {
            return Err(self.error_from_response(status, &self.read_body(response).await?));
        }
        let reader = EventReader { client: self.clone(), body: response.into_body(), buffer: Vec::new() };
        Ok(try_unfold(reader, |mut reader| async { Ok(reader.next().await?.map(|event| (event, reader))) }).boxed())
    }
}

struct EventReader {
    client: Client,
    body: Incoming,
    buffer: Vec<u8>,
}

impl EventReader {
    /// Reads the data of the next server-sent event. The service repeats all other fields in the data.
    async fn next(&mut self) -> Result<Option<RawJson<WatchedEvent>>, ClientError> {
        loop {
            while let Some(end) = self.buffer.iter().position(|byte| *byte == b'\n') {
                let line: Vec<u8> = self.buffer.drain(..=end).collect();
                if let Some(data) = line.strip_prefix(b"data:") {
                    return serde_json::from_slice(data).map(Some).map_err(|error| self.client.invalid_response(error));
                }
            }
            if self.buffer.len() > EVENT_BYTES_MAX {
                return Err(self.client.invalid_response(format_args!("an event of over {EVENT_BYTES_MAX} bytes")));
            }
            match self.body.frame().await {
                None => return Ok(None),
                Some(Ok(frame)) => self.buffer.extend(frame.into_data().unwrap_or_default()),
                Some(Err(error)) => {
                    let (address, cause) = (self.client.address.clone(), error.to_string());
                    return Err(ClientError::StreamBroken { address, cause });
                }
            }
        }
    }
}
