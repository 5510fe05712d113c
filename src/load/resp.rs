//! RESP client of the service, with one connection for claims and one for releases. The service batches consecutive
//! commands of one kind, and starts the next kind only after replying to those before.

use std::sync::Arc;

use super::claim_input::{ClaimInput, ClaimParams, NAMESPACE, ReceivedGrant};
use super::grant_checker::worker_ordinal;
use super::http::HttpTargetClient;
use super::http_calls::target_error;
use super::resp_pipeline::{RespPipeline, RespValue, WriteMode, encode_command};
use super::stats::TargetError;
use super::target::ConnectionSharing;
use hotpool::model::{ClaimId, Fence};

/// Largest number of words in a command's options, apart from its keys.
const OPTIONS_MAX: usize = 10;

/// RESP connections of one client.
pub struct RespTargetClient {
    claims: RespPipeline,
    releases: RespPipeline,
    /// Pool as the commands name it: `namespace/pool`.
    pool: String,
    /// HTTP client for calls that have no RESP command.
    http: Arc<HttpTargetClient>,
}

impl RespTargetClient {
    /// Connects to `HOST:PORT`, for the pool `load/{pool}`.
    ///
    /// # Errors
    /// Fails if nothing listens there, or if the listener does not speak RESP.
    pub async fn open(
        address: &str,
        pool: &str,
        multiplexing: ConnectionSharing,
        http: Arc<HttpTargetClient>,
    ) -> Result<Self, TargetError> {
        let mode = match multiplexing {
            ConnectionSharing::Single => WriteMode::Immediate,
            ConnectionSharing::Multiplexed => WriteMode::Coalesced,
        };
        let (claims, releases) = (RespPipeline::open(address, mode).await?, RespPipeline::open(address, mode).await?);
        claims.execute(&[b"PING"]).await?;
        Ok(Self { claims, releases, pool: format!("{NAMESPACE}/{pool}"), http })
    }

    /// Claims one worker, or slots of one.
    pub(super) async fn claim(&self, input: ClaimInput) -> Result<ReceivedGrant, TargetError> {
        let affinity = input.affinity_word();
        let encode = |out: &mut Vec<u8>| {
            let mut words: Vec<&[u8]> = Vec::with_capacity(OPTIONS_MAX);
            words.extend([&b"CLAIM"[..], self.pool.as_bytes(), b"KEY", input.id.key().as_bytes(), b"RESERVE", b"0"]);
            if let Some(affinity) = &affinity {
                words.extend([&b"AFFINITY"[..], affinity.as_bytes()]);
            }
            let mut digits = itoa::Buffer::new();
            if input.params.slots > 0 {
                words.extend([&b"SLOTS"[..], digits.format(input.params.slots).as_bytes()]);
            }
            encode_command(out, &words);
        };
        let replies = self.claims.call(1, encode).await?;
        parse_grant(&input, replies.first())
    }

    /// Sends many claims with one command; all have the same parameters.
    pub(super) async fn claim_batch(&self, inputs: Vec<ClaimInput>) -> Vec<Result<ReceivedGrant, TargetError>> {
        let count = inputs.len();
        let encode = |out: &mut Vec<u8>| {
            let mut words: Vec<&[u8]> = Vec::with_capacity(count + OPTIONS_MAX);
            let mut digits = itoa::Buffer::new();
            words.extend([&b"CLAIMS"[..], digits.format(count).as_bytes(), self.pool.as_bytes(), b"KEYS"]);
            words.extend(inputs.iter().map(|input| input.id.key().as_bytes()));
            words.extend([&b"RESERVE"[..], b"0"]);
            let mut digits = itoa::Buffer::new();
            if let Some(ClaimParams { slots: slots @ 1.., .. }) = inputs.first().map(|input| input.params) {
                words.extend([&b"SLOTS"[..], digits.format(slots).as_bytes()]);
            }
            encode_command(out, &words);
        };
        let replies = self.claims.call(1, encode).await.and_then(|mut replies| {
            let Some(reply) = replies.pop() else { return Err(target_error("no reply".into(), true)) };
            match reply {
                RespValue::Error(message) => Err(error_reply(&message)),
                RespValue::Array(items) if items.len() == count => Ok(items),
                other => Err(target_error(format!("unreadable reply: {other:?}"), true)),
            }
        });
        match replies {
            Ok(items) => inputs.iter().zip(&items).map(|(input, item)| parse_grant(input, Some(item))).collect(),
            Err(failure) => inputs.iter().map(|_| Err(failure.clone())).collect(),
        }
    }

    fn release_words(out: &mut Vec<u8>, id: &ClaimId, fence: Fence) {
        let mut digits = itoa::Buffer::new();
        let fence = digits.format(fence).as_bytes();
        encode_command(out, &[b"RELEASE", NAMESPACE.as_bytes(), id.key().as_bytes(), fence]);
    }

    /// Releases the claim with this id and fence.
    pub(super) async fn release(&self, id: &ClaimId, fence: Fence) -> Result<(), TargetError> {
        let replies = self.releases.call(1, |out| Self::release_words(out, id, fence)).await?;
        parse_released(replies.first())
    }

    /// Releases many claims with one write.
    pub(super) async fn release_batch(&self, claims: &[(ClaimId, Fence)]) -> Vec<Result<(), TargetError>> {
        let encode = |out: &mut Vec<u8>| {
            claims.iter().for_each(|(id, fence)| Self::release_words(out, id, *fence));
        };
        match self.releases.call(claims.len(), encode).await {
            Ok(replies) => replies.iter().map(|reply| parse_released(Some(reply))).collect(),
            Err(failure) => claims.iter().map(|_| Err(failure.clone())).collect(),
        }
    }

    /// Looks up the fence of a claim; `None` if it is not held.
    pub(super) async fn find(&self, id: &ClaimId) -> Result<Option<Fence>, TargetError> {
        self.http.find(id).await
    }
}

fn parse_grant(input: &ClaimInput, reply: Option<&RespValue>) -> Result<ReceivedGrant, TargetError> {
    match reply {
        Some(RespValue::Array(words)) => match &words[..] {
            [_key, fence, worker, _node] => {
                let fence = fence.number().ok_or_else(|| target_error(format!("invalid fence: {fence:?}"), true))?;
                let worker = worker_ordinal(worker.text().unwrap_or_default());
                Ok(ReceivedGrant { id: input.id.clone(), fence, worker })
            }
            other => Err(target_error(format!("invalid grant: {other:?}"), true)),
        },
        Some(RespValue::Error(message)) => Err(error_reply(message)),
        other => Err(target_error(format!("unreadable reply: {other:?}"), true)),
    }
}

fn parse_released(reply: Option<&RespValue>) -> Result<(), TargetError> {
    match reply {
        Some(RespValue::Int(_)) => Ok(()),
        Some(RespValue::Error(message)) => Err(error_reply(message)),
        other => Err(target_error(format!("unreadable reply: {other:?}"), true)),
    }
}

/// Classifies an error reply by its code.
fn error_reply(message: &str) -> TargetError {
    match message.split(' ').next() {
        Some("NOCAPACITY") => TargetError::NoCapacity,
        code => target_error(message.to_owned(), code == Some("TIMEOUT")),
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;

    #[test]
    fn replies_are_parsed() {
        let input = ClaimInput::new("k", ClaimParams::default());
        let text = |text: &'static str| RespValue::Text(Bytes::from_static(text.as_bytes()));
        let claim = RespValue::Array(vec![text("k"), RespValue::Int(7), text("w0000012"), RespValue::Nil]);
        let granted = parse_grant(&input, Some(&claim)).unwrap();
        assert_eq!((granted.fence, granted.worker), (7, 12));
        let message = |message: &str| parse_grant(&input, Some(&RespValue::Error(message.into()))).unwrap_err();
        assert_eq!(message("NOCAPACITY pool_exhausted x"), TargetError::NoCapacity);
        assert_eq!(message("OVERLOADED x"), target_error("OVERLOADED x".into(), false));
        assert!(matches!(message("TIMEOUT x"), TargetError::Failed { in_doubt: true, .. }));
        for malformed in [
            RespValue::Nil,
            RespValue::Array(vec![]),
            RespValue::Array(vec![text("k"), RespValue::Nil, text("w"), RespValue::Nil]),
        ] {
            assert!(
                matches!(parse_grant(&input, Some(&malformed)), Err(TargetError::Failed { in_doubt: true, .. })),
                "{malformed:?}"
            );
        }
        assert_eq!(parse_released(Some(&RespValue::Int(0))), Ok(()));
        assert!(parse_released(Some(&RespValue::Nil)).is_err());
    }
}
