//! `redis-lua`: one script that pops an idle worker and writes both records. The best that Redis alone can do: the
//! script is atomic, and takes one round trip. The price: all keys of a script must lie in one slot, so a pool is
//! limited to one core of one server, however many servers there are.
//!
//! A claim is one `EVALSHA` (1 round trip): `SPOP`, `GET` and `SET` of the worker's record, `SET` of the claim's. A
//! release is one `EVALSHA` (1): `GET` of the claim's record and a check of its fence, `DEL`, `GET` and `SET` of the
//! worker's record, `SADD`.
//!
//! Claims of one batch, and of many clients of this process, are written together. A batch takes one round trip.

use super::BaselineState;
use super::nodes::BaselineConnections;
use crate::claim_input::{ClaimInput, ReceivedGrant};
use crate::grant_checker::worker_ordinal;
use crate::http_calls::target_error;
use crate::resp_pipeline::{RespPipeline, RespValue, WriteMode, encode_command};
use crate::stats::TargetError;
use hotpool::model::{ClaimId, Fence};
use std::sync::OnceLock;
use std::sync::atomic::Ordering;

/// Claim script. KEYS: the idle set, the claim's record. ARGV: the prefix of workers' keys.
const CLAIM: &str = "\
local worker = redis.call('SPOP', KEYS[1])
if not worker then return false end
local name = ARGV[1] .. worker
local fence = tonumber(string.match(redis.call('GET', name), '^%d+')) + 1
redis.call('SET', name, string.format('%d 0', fence))
redis.call('SET', KEYS[2], string.format('%d %s 1', fence, worker))
return {fence, worker}";

/// Release script. KEYS and ARGV as for a claim, then the fence.
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

/// SHA-1 hashes of the scripts, the same on every server.
static HASHES: OnceLock<[String; 2]> = OnceLock::new();

/// Loads the scripts into the server that owns the pool.
pub(super) async fn load(base: &BaselineState) -> Result<(), TargetError> {
    let connections = BaselineConnections::new(&base.nodes, WriteMode::Immediate);
    let pipe = connections.connection(&base.nodes, base.nodes.node_of(&base.idle_key())).await?;
    let mut names = Vec::new();
    for script in [CLAIM, RELEASE] {
        let name = pipe.execute(&[b"SCRIPT", b"LOAD", script.as_bytes()]).await?;
        names.push(name.text().unwrap_or_default().to_owned());
    }
    let [claim, release] = [names.remove(0), names.remove(0)];
    HASHES.get_or_init(|| [claim, release]);
    Ok(())
}

fn script_hash(index: usize) -> &'static str {
    HASHES.get().map_or("", |hashes| &hashes[index])
}

async fn pipe<'a>(base: &BaselineState, connections: &'a BaselineConnections) -> Result<&'a RespPipeline, TargetError> {
    connections.connection(&base.nodes, base.nodes.node_of(&base.idle_key())).await
}

pub(super) async fn claim(
    base: &BaselineState,
    connections: &BaselineConnections,
    inputs: &[ClaimInput],
) -> Vec<Result<ReceivedGrant, TargetError>> {
    base.trips.claims.fetch_add(1, Ordering::Relaxed);
    let (idle_set, worker_prefix) = (base.idle_key(), base.worker_key(""));
    let encode = |out: &mut Vec<u8>| {
        for input in inputs {
            let claim_key = base.claim_key(input.id.key());
            let items: [&[u8]; 6] = [
                b"EVALSHA",
                script_hash(0).as_bytes(),
                b"2",
                idle_set.as_bytes(),
                claim_key.as_bytes(),
                worker_prefix.as_bytes(),
            ];
            encode_command(out, &items);
        }
    };
    let replies = match pipe(base, connections).await {
        Ok(pipe) => pipe.call(inputs.len(), encode).await,
        Err(failure) => Err(failure),
    };
    match replies {
        Ok(replies) => inputs.iter().zip(replies).map(|(input, reply)| granted(input, reply)).collect(),
        Err(failure) => inputs.iter().map(|_| Err(failure.clone())).collect(),
    }
}

fn granted(input: &ClaimInput, reply: RespValue) -> Result<ReceivedGrant, TargetError> {
    match reply.into_result()? {
        RespValue::Nil => Err(TargetError::NoCapacity),
        RespValue::Array(items) => {
            let (fence, worker) = (items.first().and_then(RespValue::number), items.get(1).and_then(RespValue::text));
            let (fence, worker) = fence.zip(worker).ok_or_else(|| target_error("unreadable reply".into(), true))?;
            Ok(ReceivedGrant { id: input.id.clone(), fence, worker: worker_ordinal(worker) })
        }
        other => Err(target_error(format!("unreadable reply: {other:?}"), true)),
    }
}

pub(super) async fn release(
    base: &BaselineState,
    connections: &BaselineConnections,
    claims: &[(ClaimId, Fence)],
) -> Vec<Result<(), TargetError>> {
    base.trips.releases.fetch_add(1, Ordering::Relaxed);
    let (idle_set, worker_prefix) = (base.idle_key(), base.worker_key(""));
    let encode = |out: &mut Vec<u8>| {
        let mut digits = itoa::Buffer::new();
        for (id, fence) in claims {
            let claim_key = base.claim_key(id.key());
            let items: [&[u8]; 7] = [
                b"EVALSHA",
                script_hash(1).as_bytes(),
                b"2",
                idle_set.as_bytes(),
                claim_key.as_bytes(),
                worker_prefix.as_bytes(),
                digits.format(*fence).as_bytes(),
            ];
            encode_command(out, &items);
        }
    };
    let replies = match pipe(base, connections).await {
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
    fn the_scripts_write_records_that_the_harness_reads() {
        assert_eq!(
            BaselineClaimRow::read("7 w0000001 1"),
            Some(BaselineClaimRow { fence: 7, worker: "w0000001".into(), slots: 1 })
        );
        assert!(CLAIM.contains("'%d %s 1'") && RELEASE.contains("'^(%d+) (%S+)'"));
    }
}
