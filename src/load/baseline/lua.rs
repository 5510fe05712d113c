//! `redis-lua`: one script that pops an idle worker, writes its record and the claim's. The best that a Redis server alone can
//! do: nothing comes in between, and it takes one round trip. Its price: all names that a script touches must lie in one slot,
//! so a pool is as fast as one core of one server, however many servers there are.
//!
//! A claim: `EVALSHA` (1 round trip): `SPOP`, `GET` and `SET` of the worker's record, `SET` of the claim's. A release: `EVALSHA` (1):
//! `GET` of the claim's record and a look at its fence, `DEL`, `GET` and `SET` of the worker's record, `SADD`.
//!
//! Claims of one batch, and of many clients of this process, go in one writing. A batch is one round trip.

use super::BaselineState;
use super::nodes::BaselineConnections;
use crate::claim_input::{ClaimInput, ReceivedGrant};
use crate::grant_checker::worker_ordinal;
use crate::http_calls::target_error;
use crate::resp_pipeline::{RespPipeline, RespValue, encode_command};
use crate::stats::TargetError;
use hotpool::model::{ClaimId, Fence};
use std::sync::OnceLock;
use std::sync::atomic::Ordering;

/// KEYS: the idle set, the claim's record. ARGV: what the names of workers' records begin with.
const CLAIM: &str = "\
local worker = redis.call('SPOP', KEYS[1])
if not worker then return false end
local name = ARGV[1] .. worker
local fence = tonumber(string.match(redis.call('GET', name), '^%d+')) + 1
redis.call('SET', name, string.format('%d 0', fence))
redis.call('SET', KEYS[2], string.format('%d %s 1', fence, worker))
return {fence, worker}";

/// KEYS and ARGV as above, then the fence.
const RELEASE: &str = "\
local held = redis.call('GET', KEYS[2])
if not held then return 0 end
local fence, worker = string.match(held, '^(%d+) (%S+)')
if fence ~= ARGV[2] then return redis.error_reply('FENCED the fence is not the holder\\'s') end
redis.call('DEL', KEYS[2])
local name = ARGV[1] .. worker
local version = tonumber(string.match(redis.call('GET', name), '^%d+')) + 1
redis.call('SET', name, string.format('%d 1', version))
redis.call('SADD', KEYS[1], worker)
return 1";

/// Names of the scripts, which every server gives them alike.
static NAMES: OnceLock<[String; 2]> = OnceLock::new();

/// Makes the scripts known to the server that has the pool.
pub(super) async fn load(base: &BaselineState) -> Result<(), TargetError> {
    let lane = BaselineConnections::new(&base.nodes, false);
    let pipe = lane.connection(&base.nodes, base.nodes.node_of(&base.idle_key())).await?;
    let mut names = Vec::new();
    for script in [CLAIM, RELEASE] {
        let name = pipe.execute(&[b"SCRIPT", b"LOAD", script.as_bytes()]).await?;
        names.push(name.text().unwrap_or_default().to_owned());
    }
    let [claim, release] = [names.remove(0), names.remove(0)];
    NAMES.get_or_init(|| [claim, release]);
    Ok(())
}

fn name(at: usize) -> &'static str {
    NAMES.get().map_or("", |names| &names[at])
}

async fn pipe<'a>(base: &BaselineState, lane: &'a BaselineConnections) -> Result<&'a RespPipeline, TargetError> {
    lane.connection(&base.nodes, base.nodes.node_of(&base.idle_key())).await
}

pub(super) async fn claim(
    base: &BaselineState,
    lane: &BaselineConnections,
    asks: &[ClaimInput],
) -> Vec<Result<ReceivedGrant, TargetError>> {
    base.trips.claims.fetch_add(1, Ordering::Relaxed);
    let (set, workers) = (base.idle_key(), base.worker_key(""));
    let encode = |out: &mut Vec<u8>| {
        for ask in asks {
            let record = base.claim_key(ask.id.key());
            let words: [&[u8]; 6] =
                [b"EVALSHA", name(0).as_bytes(), b"2", set.as_bytes(), record.as_bytes(), workers.as_bytes()];
            encode_command(out, &words);
        }
    };
    let replies = match pipe(base, lane).await {
        Ok(pipe) => pipe.call(asks.len(), encode).await,
        Err(failure) => Err(failure),
    };
    match replies {
        Ok(replies) => asks.iter().zip(replies).map(|(ask, reply)| granted(ask, reply)).collect(),
        Err(failure) => asks.iter().map(|_| Err(failure.clone())).collect(),
    }
}

fn granted(ask: &ClaimInput, reply: RespValue) -> Result<ReceivedGrant, TargetError> {
    match reply.into_result()? {
        RespValue::Nil => Err(TargetError::NoCapacity),
        RespValue::Array(words) => {
            let (fence, worker) = (words.first().and_then(RespValue::number), words.get(1).and_then(RespValue::text));
            let (fence, worker) = fence.zip(worker).ok_or_else(|| target_error("unreadable answer".into(), true))?;
            Ok(ReceivedGrant { id: ask.id.clone(), fence, worker: worker_ordinal(worker) })
        }
        other => Err(target_error(format!("unreadable answer: {other:?}"), true)),
    }
}

pub(super) async fn release(
    base: &BaselineState,
    lane: &BaselineConnections,
    claims: &[(ClaimId, Fence)],
) -> Vec<Result<(), TargetError>> {
    base.trips.releases.fetch_add(1, Ordering::Relaxed);
    let (set, workers) = (base.idle_key(), base.worker_key(""));
    let encode = |out: &mut Vec<u8>| {
        let mut digits = itoa::Buffer::new();
        for (id, fence) in claims {
            let record = base.claim_key(id.key());
            let words: [&[u8]; 7] = [
                b"EVALSHA",
                name(1).as_bytes(),
                b"2",
                set.as_bytes(),
                record.as_bytes(),
                workers.as_bytes(),
                digits.format(*fence).as_bytes(),
            ];
            encode_command(out, &words);
        }
    };
    let replies = match pipe(base, lane).await {
        Ok(pipe) => pipe.call(claims.len(), encode).await,
        Err(failure) => Err(failure),
    };
    match replies {
        Ok(replies) => replies.into_iter().map(|reply| reply.into_result().map(drop)).collect(),
        Err(failure) => claims.iter().map(|_| Err(failure.clone())).collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::super::rows::BaselineClaimRow;
    use super::*;

    #[test]
    fn the_scripts_write_records_that_the_rest_reads() {
        assert_eq!(
            BaselineClaimRow::read("7 w0000001 1"),
            Some(BaselineClaimRow { fence: 7, worker: "w0000001".into(), slots: 1 })
        );
        assert!(CLAIM.contains("'%d %s 1'") && RELEASE.contains("'^(%d+) (%S+)'"));
    }
}
