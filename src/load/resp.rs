//! The service over RESP: two connections a client, one for claims and one for releases, because a service takes what
//! follows each other of one kind together, and the next kind only when those before it are answered.

use std::sync::Arc;

use super::ask::{Ask, Grant, NAMESPACE, Want};
use super::check::worker_ordinal;
use super::http::HttpLink;
use super::pipe::{Pipe, Value, command};
use super::stats::Failure;
use super::wire::failed;
use hotpool::model::{ClaimId, Fence};

/// Most words of a command's options, beside its keys.
const OPTIONS_MAX: usize = 10;

/// One client's connections.
pub struct RespLink {
    claims: Pipe,
    releases: Pipe,
    /// `namespace/pool`.
    pool: String,
    /// For what has no command.
    http: Arc<HttpLink>,
}

impl RespLink {
    /// Connects to `HOST:PORT`, for the pool `load/{pool}`. `many`: several requests may be outstanding.
    ///
    /// # Errors
    /// Nobody listens there, or what listens does not speak RESP.
    pub async fn open(address: &str, pool: &str, many: bool, http: Arc<HttpLink>) -> Result<Self, Failure> {
        let (claims, releases) = (Pipe::open(address, many).await?, Pipe::open(address, many).await?);
        claims.ask(&[b"PING"]).await?;
        Ok(Self { claims, releases, pool: format!("{NAMESPACE}/{pool}"), http })
    }

    /// Makes one claim.
    pub(super) async fn claim(&self, ask: Ask) -> Result<Grant, Failure> {
        let word = ask.word();
        let encode = |out: &mut Vec<u8>| {
            let mut words: Vec<&[u8]> = Vec::with_capacity(OPTIONS_MAX);
            words.extend([&b"CLAIM"[..], self.pool.as_bytes(), b"KEY", ask.id.key().as_bytes(), b"RESERVE", b"0"]);
            if let Some(word) = &word {
                words.extend([&b"AFFINITY"[..], word.as_bytes()]);
            }
            let mut digits = itoa::Buffer::new();
            if ask.want.slots > 0 {
                words.extend([&b"SLOTS"[..], digits.format(ask.want.slots).as_bytes()]);
            }
            command(out, &words);
        };
        let replies = self.claims.call(1, encode).await?;
        verdict(&ask, replies.first())
    }

    /// Makes many claims with one command; they ask for the same.
    pub(super) async fn claim_batch(&self, asks: Vec<Ask>) -> Vec<Result<Grant, Failure>> {
        let count = asks.len();
        let encode = |out: &mut Vec<u8>| {
            let mut words: Vec<&[u8]> = Vec::with_capacity(count + OPTIONS_MAX);
            let mut digits = itoa::Buffer::new();
            words.extend([&b"CLAIMS"[..], digits.format(count).as_bytes(), self.pool.as_bytes(), b"KEYS"]);
            words.extend(asks.iter().map(|ask| ask.id.key().as_bytes()));
            words.extend([&b"RESERVE"[..], b"0"]);
            let mut digits = itoa::Buffer::new();
            if let Some(Want { slots: slots @ 1.., .. }) = asks.first().map(|ask| ask.want) {
                words.extend([&b"SLOTS"[..], digits.format(slots).as_bytes()]);
            }
            command(out, &words);
        };
        let replies = self.claims.call(1, encode).await.and_then(|mut replies| {
            let Some(reply) = replies.pop() else { return Err(failed("no answer".into(), true)) };
            match reply {
                Value::Error(said) => Err(refusal(&said)),
                Value::Array(items) if items.len() == count => Ok(items),
                other => Err(failed(format!("unreadable answer: {other:?}"), true)),
            }
        });
        match replies {
            Ok(items) => asks.iter().zip(&items).map(|(ask, item)| verdict(ask, Some(item))).collect(),
            Err(failure) => asks.iter().map(|_| Err(failure.clone())).collect(),
        }
    }

    fn release_words(out: &mut Vec<u8>, id: &ClaimId, fence: Fence) {
        let mut digits = itoa::Buffer::new();
        let fence = digits.format(fence).as_bytes();
        command(out, &[b"RELEASE", NAMESPACE.as_bytes(), id.key().as_bytes(), fence]);
    }

    /// Gives one claim back.
    pub(super) async fn release(&self, id: &ClaimId, fence: Fence) -> Result<(), Failure> {
        let replies = self.releases.call(1, |out| Self::release_words(out, id, fence)).await?;
        released(replies.first())
    }

    /// Gives many back, in one writing.
    pub(super) async fn release_batch(&self, claims: &[(ClaimId, Fence)]) -> Vec<Result<(), Failure>> {
        let encode = |out: &mut Vec<u8>| {
            claims.iter().for_each(|(id, fence)| Self::release_words(out, id, *fence));
        };
        match self.releases.call(claims.len(), encode).await {
            Ok(replies) => replies.iter().map(|reply| released(Some(reply))).collect(),
            Err(failure) => claims.iter().map(|_| Err(failure.clone())).collect(),
        }
    }

    /// The fence under which the claim is held, if it is.
    pub(super) async fn find(&self, id: &ClaimId) -> Result<Option<Fence>, Failure> {
        self.http.find(id).await
    }
}

fn verdict(ask: &Ask, reply: Option<&Value>) -> Result<Grant, Failure> {
    match reply {
        Some(Value::Array(words)) => match &words[..] {
            [_key, fence, worker, _node] => {
                let fence = fence.number().ok_or_else(|| failed(format!("no fence: {fence:?}"), true))?;
                let worker = worker_ordinal(worker.text().unwrap_or_default());
                Ok(Grant { id: ask.id.clone(), fence, worker })
            }
            other => Err(failed(format!("not a claim: {other:?}"), true)),
        },
        Some(Value::Error(said)) => Err(refusal(said)),
        other => Err(failed(format!("unreadable answer: {other:?}"), true)),
    }
}

fn released(reply: Option<&Value>) -> Result<(), Failure> {
    match reply {
        Some(Value::Int(_)) => Ok(()),
        Some(Value::Error(said)) => Err(refusal(said)),
        other => Err(failed(format!("unreadable answer: {other:?}"), true)),
    }
}

/// What an error means.
fn refusal(said: &str) -> Failure {
    match said.split(' ').next() {
        Some("NOCAPACITY") => Failure::Refused,
        word => failed(said.to_owned(), word == Some("TIMEOUT")),
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;

    #[test]
    fn answers_are_read() {
        let ask = Ask::new("k", Want::default());
        let text = |text: &'static str| Value::Text(Bytes::from_static(text.as_bytes()));
        let claim = Value::Array(vec![text("k"), Value::Int(7), text("w0000012"), Value::Nil]);
        let granted = verdict(&ask, Some(&claim)).unwrap();
        assert_eq!((granted.fence, granted.worker), (7, 12));
        let said = |said: &str| verdict(&ask, Some(&Value::Error(said.into()))).unwrap_err();
        assert_eq!(said("NOCAPACITY pool_exhausted x"), Failure::Refused);
        assert_eq!(said("OVERLOADED x"), failed("OVERLOADED x".into(), false));
        assert!(matches!(said("TIMEOUT x"), Failure::Failed { in_doubt: true, .. }));
        for wrong in
            [Value::Nil, Value::Array(vec![]), Value::Array(vec![text("k"), Value::Nil, text("w"), Value::Nil])]
        {
            assert!(matches!(verdict(&ask, Some(&wrong)), Err(Failure::Failed { in_doubt: true, .. })), "{wrong:?}");
        }
        assert_eq!(released(Some(&Value::Int(0))), Ok(()));
        assert!(released(Some(&Value::Nil)).is_err());
    }
}
