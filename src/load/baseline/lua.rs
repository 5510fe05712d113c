//! `redis-lua`: one script that pops an idle worker, writes its record and the claim's. The best that a Redis server alone can
//! do: nothing comes in between, and it takes one round trip. Its price: all names that a script touches must lie in one slot,
//! so a pool is as fast as one core of one server, however many servers there are.
//!
//! A claim: `EVALSHA` (1 round trip): `SPOP`, `GET` and `SET` of the worker's record, `SET` of the claim's. A release: `EVALSHA` (1):
//! `GET` of the claim's record and a look at its fence, `DEL`, `GET` and `SET` of the worker's record, `SADD`.
//!
//! Claims of one batch, and of many clients of this process, go in one writing. A batch is one round trip.

use super::Base;
use super::nodes::Lane;
use crate::ask::{Ask, Grant};
use crate::check::worker_ordinal;
use crate::pipe::{Pipe, Value, command};
use crate::stats::Failure;
use crate::wire::failed;
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
pub(super) async fn load(base: &Base) -> Result<(), Failure> {
    let lane = Lane::new(&base.nodes, false);
    let pipe = lane.at(&base.nodes, base.nodes.of(&base.idle())).await?;
    let mut names = Vec::new();
    for script in [CLAIM, RELEASE] {
        let name = pipe.ask(&[b"SCRIPT", b"LOAD", script.as_bytes()]).await?;
        names.push(name.text().unwrap_or_default().to_owned());
    }
    let [claim, release] = [names.remove(0), names.remove(0)];
    NAMES.get_or_init(|| [claim, release]);
    Ok(())
}

fn name(at: usize) -> &'static str {
    NAMES.get().map_or("", |names| &names[at])
}

async fn pipe<'a>(base: &Base, lane: &'a Lane) -> Result<&'a Pipe, Failure> {
    lane.at(&base.nodes, base.nodes.of(&base.idle())).await
}

pub(super) async fn claim(base: &Base, lane: &Lane, asks: &[Ask]) -> Vec<Result<Grant, Failure>> {
    base.trips.claims.fetch_add(1, Ordering::Relaxed);
    let (set, workers) = (base.idle(), base.worker(""));
    let encode = |out: &mut Vec<u8>| {
        for ask in asks {
            let record = base.claim(ask.id.key());
            let words: [&[u8]; 6] =
                [b"EVALSHA", name(0).as_bytes(), b"2", set.as_bytes(), record.as_bytes(), workers.as_bytes()];
            command(out, &words);
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

fn granted(ask: &Ask, reply: Value) -> Result<Grant, Failure> {
    match reply.accepted()? {
        Value::Nil => Err(Failure::Refused),
        Value::Array(words) => {
            let (fence, worker) = (words.first().and_then(Value::number), words.get(1).and_then(Value::text));
            let (fence, worker) = fence.zip(worker).ok_or_else(|| failed("unreadable answer".into(), true))?;
            Ok(Grant { id: ask.id.clone(), fence, worker: worker_ordinal(worker) })
        }
        other => Err(failed(format!("unreadable answer: {other:?}"), true)),
    }
}

pub(super) async fn release(base: &Base, lane: &Lane, claims: &[(ClaimId, Fence)]) -> Vec<Result<(), Failure>> {
    base.trips.releases.fetch_add(1, Ordering::Relaxed);
    let (set, workers) = (base.idle(), base.worker(""));
    let encode = |out: &mut Vec<u8>| {
        let mut digits = itoa::Buffer::new();
        for (id, fence) in claims {
            let record = base.claim(id.key());
            let words: [&[u8]; 7] = [
                b"EVALSHA",
                name(1).as_bytes(),
                b"2",
                set.as_bytes(),
                record.as_bytes(),
                workers.as_bytes(),
                digits.format(*fence).as_bytes(),
            ];
            command(out, &words);
        }
    };
    let replies = match pipe(base, lane).await {
        Ok(pipe) => pipe.call(claims.len(), encode).await,
        Err(failure) => Err(failure),
    };
    match replies {
        Ok(replies) => replies.into_iter().map(|reply| reply.accepted().map(drop)).collect(),
        Err(failure) => claims.iter().map(|_| Err(failure.clone())).collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::super::rows::Held;
    use super::*;

    #[test]
    fn the_scripts_write_records_that_the_rest_reads() {
        assert_eq!(Held::read("7 w0000001 1"), Some(Held { fence: 7, worker: "w0000001".into(), slots: 1 }));
        assert!(CLAIM.contains("'%d %s 1'") && RELEASE.contains("'^(%d+) (%S+)'"));
    }
}
