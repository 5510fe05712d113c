//! The service over RESP: two connections a client, one for claims and one for releases, because a service takes what
//! follows each other of one kind together, and the next kind only when those before it are answered.

use std::sync::Arc;

use super::claim_input::{ClaimInput, ClaimParams, NAMESPACE, ReceivedGrant};
use super::grant_checker::worker_ordinal;
use super::http::HttpTargetClient;
use super::http_calls::target_error;
use super::resp_pipeline::{RespPipeline, RespValue, encode_command};
use super::stats::TargetError;
use hotpool::model::{ClaimId, Fence};

/// Most words of a command's options, beside its keys.
const OPTIONS_MAX: usize = 10;

/// One client's connections.
pub struct RespTargetClient {
    claims: RespPipeline,
    releases: RespPipeline,
    /// `namespace/pool`.
    pool: String,
    /// For what has no command.
    http: Arc<HttpTargetClient>,
}

impl RespTargetClient {
    /// Connects to `HOST:PORT`, for the pool `load/{pool}`. `many`: several requests may be outstanding.
    ///
    /// # Errors
    /// Nobody listens there, or what listens does not speak RESP.
    pub async fn open(address: &str, pool: &str, many: bool, http: Arc<HttpTargetClient>) -> Result<Self, TargetError> {
        let (claims, releases) = (RespPipeline::open(address, many).await?, RespPipeline::open(address, many).await?);
        claims.execute(&[b"PING"]).await?;
        Ok(Self { claims, releases, pool: format!("{NAMESPACE}/{pool}"), http })
    }

    /// Makes one claim.
    pub(super) async fn claim(&self, ask: ClaimInput) -> Result<ReceivedGrant, TargetError> {
        let word = ask.affinity_word();
        let encode = |out: &mut Vec<u8>| {
            let mut words: Vec<&[u8]> = Vec::with_capacity(OPTIONS_MAX);
            words.extend([&b"CLAIM"[..], self.pool.as_bytes(), b"KEY", ask.id.key().as_bytes(), b"RESERVE", b"0"]);
            if let Some(word) = &word {
                words.extend([&b"AFFINITY"[..], word.as_bytes()]);
            }
            let mut digits = itoa::Buffer::new();
            if ask.params.slots > 0 {
                words.extend([&b"SLOTS"[..], digits.format(ask.params.slots).as_bytes()]);
            }
            encode_command(out, &words);
        };
        let replies = self.claims.call(1, encode).await?;
        parse_grant(&ask, replies.first())
    }

    /// Makes many claims with one command; they ask for the same.
    pub(super) async fn claim_batch(&self, asks: Vec<ClaimInput>) -> Vec<Result<ReceivedGrant, TargetError>> {
        let count = asks.len();
        let encode = |out: &mut Vec<u8>| {
            let mut words: Vec<&[u8]> = Vec::with_capacity(count + OPTIONS_MAX);
            let mut digits = itoa::Buffer::new();
            words.extend([&b"CLAIMS"[..], digits.format(count).as_bytes(), self.pool.as_bytes(), b"KEYS"]);
            words.extend(asks.iter().map(|ask| ask.id.key().as_bytes()));
            words.extend([&b"RESERVE"[..], b"0"]);
            let mut digits = itoa::Buffer::new();
            if let Some(ClaimParams { slots: slots @ 1.., .. }) = asks.first().map(|ask| ask.params) {
                words.extend([&b"SLOTS"[..], digits.format(slots).as_bytes()]);
            }
            encode_command(out, &words);
        };
        let replies = self.claims.call(1, encode).await.and_then(|mut replies| {
            let Some(reply) = replies.pop() else { return Err(target_error("no answer".into(), true)) };
            match reply {
                RespValue::Error(said) => Err(error_reply(&said)),
                RespValue::Array(items) if items.len() == count => Ok(items),
                other => Err(target_error(format!("unreadable answer: {other:?}"), true)),
            }
        });
        match replies {
            Ok(items) => asks.iter().zip(&items).map(|(ask, item)| parse_grant(ask, Some(item))).collect(),
            Err(failure) => asks.iter().map(|_| Err(failure.clone())).collect(),
        }
    }

    fn release_words(out: &mut Vec<u8>, id: &ClaimId, fence: Fence) {
        let mut digits = itoa::Buffer::new();
        let fence = digits.format(fence).as_bytes();
        encode_command(out, &[b"RELEASE", NAMESPACE.as_bytes(), id.key().as_bytes(), fence]);
    }

    /// Gives one claim back.
    pub(super) async fn release(&self, id: &ClaimId, fence: Fence) -> Result<(), TargetError> {
        let replies = self.releases.call(1, |out| Self::release_words(out, id, fence)).await?;
        parse_released(replies.first())
    }

    /// Gives many back, in one writing.
    pub(super) async fn release_batch(&self, claims: &[(ClaimId, Fence)]) -> Vec<Result<(), TargetError>> {
        let encode = |out: &mut Vec<u8>| {
            claims.iter().for_each(|(id, fence)| Self::release_words(out, id, *fence));
        };
        match self.releases.call(claims.len(), encode).await {
            Ok(replies) => replies.iter().map(|reply| parse_released(Some(reply))).collect(),
            Err(failure) => claims.iter().map(|_| Err(failure.clone())).collect(),
        }
    }

    /// The fence under which the claim is held, if it is.
    pub(super) async fn find(&self, id: &ClaimId) -> Result<Option<Fence>, TargetError> {
        self.http.find(id).await
    }
}

fn parse_grant(ask: &ClaimInput, reply: Option<&RespValue>) -> Result<ReceivedGrant, TargetError> {
    match reply {
        Some(RespValue::Array(words)) => match &words[..] {
            [_key, fence, worker, _node] => {
                let fence = fence.number().ok_or_else(|| target_error(format!("no fence: {fence:?}"), true))?;
                let worker = worker_ordinal(worker.text().unwrap_or_default());
                Ok(ReceivedGrant { id: ask.id.clone(), fence, worker })
            }
            other => Err(target_error(format!("not a claim: {other:?}"), true)),
        },
        Some(RespValue::Error(said)) => Err(error_reply(said)),
        other => Err(target_error(format!("unreadable answer: {other:?}"), true)),
    }
}

fn parse_released(reply: Option<&RespValue>) -> Result<(), TargetError> {
    match reply {
        Some(RespValue::Int(_)) => Ok(()),
        Some(RespValue::Error(said)) => Err(error_reply(said)),
        other => Err(target_error(format!("unreadable answer: {other:?}"), true)),
    }
}

/// What an error means.
fn error_reply(said: &str) -> TargetError {
    match said.split(' ').next() {
        Some("NOCAPACITY") => TargetError::NoCapacity,
        word => target_error(said.to_owned(), word == Some("TIMEOUT")),
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;

    #[test]
    fn answers_are_read() {
        let ask = ClaimInput::new("k", ClaimParams::default());
        let text = |text: &'static str| RespValue::Text(Bytes::from_static(text.as_bytes()));
        let claim = RespValue::Array(vec![text("k"), RespValue::Int(7), text("w0000012"), RespValue::Nil]);
        let granted = parse_grant(&ask, Some(&claim)).unwrap();
        assert_eq!((granted.fence, granted.worker), (7, 12));
        let said = |said: &str| parse_grant(&ask, Some(&RespValue::Error(said.into()))).unwrap_err();
        assert_eq!(said("NOCAPACITY pool_exhausted x"), TargetError::NoCapacity);
        assert_eq!(said("OVERLOADED x"), target_error("OVERLOADED x".into(), false));
        assert!(matches!(said("TIMEOUT x"), TargetError::Failed { in_doubt: true, .. }));
        for wrong in [
            RespValue::Nil,
            RespValue::Array(vec![]),
            RespValue::Array(vec![text("k"), RespValue::Nil, text("w"), RespValue::Nil]),
        ] {
            assert!(
                matches!(parse_grant(&ask, Some(&wrong)), Err(TargetError::Failed { in_doubt: true, .. })),
                "{wrong:?}"
            );
        }
        assert_eq!(parse_released(Some(&RespValue::Int(0))), Ok(()));
        assert!(parse_released(Some(&RespValue::Nil)).is_err());
    }
}
