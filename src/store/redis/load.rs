//! Reading shards: take each, read its rows page by page, look again whether it is still as it was taken.

use std::sync::Mutex;

use futures::StreamExt as _;
use redis::{Value, cmd};

use super::super::{Loaded, RowSink, ShardKey, StoreError};
use super::connect::Fault;
use super::keys;
use super::nodes::{Answer, Call, Nodes};
use super::steps::{self, Owner, Seen, Side, text};

/// Rows asked for at a time: Redis is busy with a page for well under a millisecond.
const PAGE: usize = 1_000;
/// Times that one who only looks tries again.
const LOOKS: usize = 3;
/// Shards read at the same time.
const AT_ONCE: usize = 16;

/// What became of one shard.
pub(super) enum Read {
    /// It is there, or nothing is; with an owner: its live side.
    Done(Loaded, Option<Side>),
    /// Somebody took it under this epoch.
    Fenced(u64),
}

/// Reads shards; with an owner, takes them first.
pub(super) async fn load(
    nodes: &Nodes,
    prefix: &str,
    owner: Option<Owner>,
    shards: Vec<ShardKey>,
    sink: RowSink,
) -> Result<Vec<Read>, StoreError> {
    let sink = Mutex::new(sink);
    futures::stream::iter(shards)
        .map(|shard| patiently(nodes, prefix, owner, shard, &sink))
        .buffered(AT_ONCE)
        .collect::<Vec<_>>()
        .await
        .into_iter()
        .collect()
}

/// Somebody who only looks meets the owner at work: a side that was flipped meanwhile is looked for again.
async fn patiently(
    nodes: &Nodes,
    prefix: &str,
    owner: Option<Owner>,
    shard: ShardKey,
    sink: &Mutex<RowSink>,
) -> Result<Read, StoreError> {
    for _ in 0..LOOKS {
        match one(nodes, prefix, owner, shard, sink).await {
            Err(StoreError::Away(_)) if owner.is_none() => {}
            read => return read,
        }
    }
    one(nodes, prefix, owner, shard, sink).await
}

async fn one(
    nodes: &Nodes,
    prefix: &str,
    owner: Option<Owner>,
    shard: ShardKey,
    sink: &Mutex<RowSink>,
) -> Result<Read, StoreError> {
    let done = |at, side| Ok(Read::Done(Loaded { shard, at }, side));
    let answer = single(nodes, steps::look(prefix, owner, shard)).await?;
    let (side, at, header) = match steps::seen(answer).map_err(StoreError::Unusable)? {
        Seen::Live { side, at, header } => (side, at, header),
        Seen::Nothing => return done(Ok(0), None),
        Seen::Fenced { epoch } => return Ok(Read::Fenced(epoch)),
        Seen::Bad(why) => return done(Err(why), None),
    };
    let names = keys::sides(prefix, shard);
    let key = side.key(&names);
    let slot = keys::slot(shard);
    let mut cursor = "0".to_owned();
    loop {
        let scan = cmd("HSCAN").arg(key).arg(&cursor).arg("COUNT").arg(PAGE).take();
        let page = match single(nodes, Call { slot, cmd: scan, step_bytes: 0 }).await? {
            Ok(page) => page,
            Err(refused) => return done(Err(refused.text), None),
        };
        let (next, frames) = match page_of(&page) {
            Ok(page) => page,
            Err(why) => return done(Err(format!("{key}: {why}")), None),
        };
        (*sink.lock().unwrap_or_else(std::sync::PoisonError::into_inner))(shard, &frames);
        if next == "0" {
            break;
        }
        cursor = next;
    }
    let again = cmd("HGET").arg(key).arg("#").take();
    match single(nodes, Call { slot, cmd: again, step_bytes: 0 }).await? {
        Ok(now) if text(&now) == Some(&header) => done(Ok(at), Some(side)),
        Ok(now) if owner.is_none() && text(&now).is_some() => done(Ok(at), None),
        _ => Err(StoreError::Away(format!("{key} changed while it was read; it is read again"))),
    }
}

async fn single(nodes: &Nodes, call: Call) -> Result<Answer, Fault> {
    let mut answers = nodes.call(&[call]).await?;
    answers.pop().unwrap_or_else(|| Err(Fault::Away("a call was left without an answer".to_owned())))
}

/// Cursor and frames of one page of `HSCAN`.
fn page_of(page: &Value) -> Result<(String, Vec<u8>), String> {
    let odd = || "HSCAN gave an odd answer".to_owned();
    let Value::Array(parts) = page else { return Err(odd()) };
    let [cursor, Value::Array(fields)] = parts.as_slice() else { return Err(odd()) };
    let cursor = text(cursor).ok_or_else(odd)?.to_owned();
    let mut frames = Vec::new();
    for pair in fields.chunks(2) {
        let [Value::BulkString(field), Value::BulkString(body)] = pair else { return Err(odd()) };
        if field != b"#" {
            steps::frame(field, body, &mut frames)?;
        }
    }
    Ok((cursor, frames))
}
