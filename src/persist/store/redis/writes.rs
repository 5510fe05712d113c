//! Encoding of batches as calls of the library, and parsing of its answers. Pure.

use redis::{Cmd, Value};

use super::super::{WriteKind, WriteOutcome};
use super::connect::ServerFault;
use super::keys;
use super::library;
use super::nodes::{Answer, RedisCall};
use crate::limits;
use crate::model::Seq;
use crate::persist::row::{RowFrame, RowFrames, RowKind};
use crate::persist::store::{DamagedRecord, ShardDamage, ShardKey, StoreError, WriteBatch};

/// Maximum number of values in one run: Lua unpacks at most some 8,000.
const FIELDS_PER_RUN_MAX: usize = 4_000;
/// Longest name of a field: a letter, a colon, an id.
const FIELD_BYTES: usize = 2 + limits::NAME_BYTES_MAX;

/// Owner that sends a call, and its epoch.
#[derive(Debug, Clone, Copy)]
pub(super) struct OwnerEpoch {
    pub id: uuid::Uuid,
    pub epoch: u64,
}

/// Key of a shard: one of the two is live.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum KeySide {
    A,
    B,
}

impl KeySide {
    pub const fn other(self) -> Self {
        match self {
            Self::A => Self::B,
            Self::B => Self::A,
        }
    }

    /// Both keys of a shard, the live one first.
    fn keys(self, [a, b]: &[String; 2]) -> [&str; 2] {
        match self {
            Self::A => [a, b],
            Self::B => [b, a],
        }
    }

    pub fn key(self, keys: &[String; 2]) -> &str {
        self.keys(keys)[0]
    }
}

/// Call that applies a batch to a shard whose live side is known.
pub(super) fn call(prefix: &str, owner: OwnerEpoch, batch: &WriteBatch, live: KeySide) -> RedisCall {
    let names = keys::sides(prefix, batch.shard);
    let [live, other] = live.keys(&names);
    let rows = match &batch.kind {
        WriteKind::Rows(rows) | WriteKind::Chunk { rows, .. } | WriteKind::Install { rows, .. } => rows,
        WriteKind::Drop => &[][..],
    };
    let frames: Vec<RowFrame> =
        RowFrames::new(rows).map(|frame| frame.expect("frames of this process are whole")).collect();
    let call = |function, keys: &[&str]| {
        let mut cmd = library::call_with_capacity(function, keys, 2 * frames.len(), rows.len());
        push_owner(&mut cmd, owner);
        cmd
    };
    let mut cmd = match &batch.kind {
        WriteKind::Rows(_) => call("write_rows", &[live]).arg(batch.from).arg(batch.to).take(),
        WriteKind::Chunk { generation, number, .. } => {
            call("write_chunk", &[live, other]).arg(*generation).arg(*number).take()
        }
        WriteKind::Install { generation, chunks, .. } => {
            call("install", &[live, other]).arg(*generation).arg(*chunks).arg(batch.to).take()
        }
        WriteKind::Drop => call("drop", &[&names[0], &names[1]]),
    };
    put_rows(&mut cmd, &frames);
    RedisCall { slot: keys::slot(batch.shard), cmd, batch_bytes: Some(rows.len()) }
}

/// Call that finds the live side of a shard. With an owner, the shard is taken by it.
pub(super) fn probe(prefix: &str, owner: Option<OwnerEpoch>, shard: ShardKey) -> RedisCall {
    let [a, b] = keys::sides(prefix, shard);
    let mut cmd = library::call("probe", &[&a, &b]);
    push_owner(&mut cmd, owner.unwrap_or(OwnerEpoch { id: uuid::Uuid::nil(), epoch: 0 }));
    RedisCall { slot: keys::slot(shard), cmd, batch_bytes: None }
}

fn push_owner(cmd: &mut Cmd, owner: OwnerEpoch) -> &mut Cmd {
    let mut text = [0; uuid::fmt::Simple::LENGTH];
    let id: &str = owner.id.simple().encode_lower(&mut text);
    cmd.arg(owner.epoch).arg(id)
}

/// Appends frames as runs of fields: the field is the row's kind and id, the value its body.
fn put_rows(cmd: &mut Cmd, mut frames: &[RowFrame]) {
    let mut field = Vec::with_capacity(FIELD_BYTES);
    while let Some(first) = frames.first() {
        let is_put = first.body.is_some();
        let width = if is_put { 2 } else { 1 };
        let run_length =
            frames.iter().take(FIELDS_PER_RUN_MAX / width).take_while(|frame| frame.body.is_some() == is_put).count();
        let (run, after) = frames.split_at(run_length);
        cmd.arg(if is_put { "P" } else { "D" }).arg(run.len() * width);
        for frame in run {
            field.clear();
            field.extend_from_slice(&[frame.kind.letter(), b':']);
            field.extend_from_slice(frame.id.as_bytes());
            cmd.arg(field.as_slice());
            if let Some(body) = frame.body {
                cmd.arg(body);
            }
        }
        frames = after;
    }
}

/// Turns a field (the letter of a row's kind, a colon, the row's id) and its value back into a frame. The error names a field
/// that is not a row.
pub(super) fn frame(field: &[u8], body: &[u8], out: &mut Vec<u8>) -> Result<(), DamagedRecord> {
    let unknown = || DamagedRecord::Field(String::from_utf8_lossy(field).into_owned());
    let [letter, b':', id @ ..] = field else { return Err(unknown()) };
    let kind = RowKind::of_letter(*letter).ok_or_else(unknown)?;
    let id_len = u8::try_from(id.len()).map_err(|_| unknown())?;
    out.extend_from_slice(&[kind as u8, id_len]);
    out.extend_from_slice(id);
    let body_len = u32::try_from(body.len()).map_err(|_| unknown())?;
    out.extend_from_slice(&body_len.to_le_bytes());
    out.extend_from_slice(body);
    Ok(())
}

/// Parses the answer of the library to a batch.
pub(super) fn parse_outcome(answer: Answer) -> Result<WriteOutcome, ServerFault> {
    let value = match answer {
        Ok(value) => value,
        // A key of another type has our name, so the rows are missing.
        Err(error) if error.code == "WRONGTYPE" => return Ok(WriteOutcome::Gap),
        Err(error) => return Err(ServerFault::Unavailable(error.text)),
    };
    match text(&value) {
        Some("ok") => Ok(WriteOutcome::Ok),
        Some("duplicate") => Ok(WriteOutcome::Duplicate),
        Some("gap") => Ok(WriteOutcome::Gap),
        Some("fenced") => Ok(WriteOutcome::Fenced),
        _ => Err(ServerFault::Unavailable(format!("unexpected answer to a batch: {value:?}"))),
    }
}

/// Result of [`probe`] for one shard.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum ShardProbe {
    Live {
        side: KeySide,
        at: Seq,
        header: String,
        /// Number of fields beside the header, counted in the call that read it.
        rows: u64,
    },
    Absent,
    /// Shard of a newer owner, with its epoch.
    Fenced {
        epoch: u64,
    },
    Damaged(ShardDamage),
}

pub(super) fn parse_probe(answer: Answer) -> Result<ShardProbe, StoreError> {
    let value = match answer {
        Ok(value) => value,
        Err(error) if error.code == "WRONGTYPE" => return Ok(ShardProbe::Damaged(ShardDamage::Server(error.text))),
        Err(error) => return Err(StoreError::Unusable(error.text)),
    };
    let unexpected = || StoreError::Unusable(format!("unexpected answer to a probe: {value:?}"));
    let redis::Value::Array(parts) = &value else { return Err(unexpected()) };
    let [kind, detail, count @ ..] = parts.as_slice() else { return Err(unexpected()) };
    let (kind, detail) = (text(kind).ok_or_else(unexpected)?, text(detail).ok_or_else(unexpected)?);
    let live = |side| {
        let at = detail.split(' ').nth(4).and_then(|at| at.parse().ok()).ok_or_else(unexpected)?;
        let [Value::Int(fields)] = count else { return Err(unexpected()) };
        let rows = u64::try_from(fields - 1).map_err(|_| unexpected())?;
        Ok(ShardProbe::Live { side, at, header: detail.to_owned(), rows })
    };
    match kind {
        "1" => live(KeySide::A),
        "2" => live(KeySide::B),
        "none" => Ok(ShardProbe::Absent),
        "fenced" => {
            let epoch = detail.split(' ').next().and_then(|epoch| epoch.parse().ok()).ok_or_else(unexpected)?;
            Ok(ShardProbe::Fenced { epoch })
        }
        "bad" => Ok(ShardProbe::Damaged(ShardDamage::Server(detail.to_owned()))),
        _ => Err(unexpected()),
    }
}

/// Text of an answer, if it is one.
pub(super) fn text(value: &Value) -> Option<&str> {
    match value {
        Value::BulkString(bytes) => std::str::from_utf8(bytes).ok(),
        Value::SimpleString(text) => Some(text),
        Value::Okay => Some("OK"),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::persist::row::{PoolRow, RowKind, put_deletion, put_pool};

    #[test]
    fn rows_are_encoded_as_fields_in_order_and_decoded_to_the_same_frames() {
        let mut rows = Vec::new();
        for uid in [1, 2] {
            put_pool(&mut rows, &PoolRow { uid, ..PoolRow::default() });
        }
        put_deletion(&mut rows, RowKind::Worker, "w1");
        put_pool(&mut rows, &PoolRow { uid: 1, deleting: true, ..PoolRow::default() });
        let mut cmd = redis::cmd("X");
        let frames: Vec<_> = RowFrames::new(&rows).map(|frame| frame.expect("whole")).collect();
        put_rows(&mut cmd, &frames);
        let args: Vec<Vec<u8>> = cmd
            .args_iter()
            .map(|arg| match arg {
                redis::Arg::Simple(arg) => arg.to_vec(),
                _ => panic!("no cursors here"),
            })
            .collect();
        let shape: Vec<_> = args.iter().map(|arg| String::from_utf8_lossy(arg).into_owned()).collect();
        assert_eq!([&shape[1], &shape[2], &shape[3], &shape[5]], ["P", "4", "p:1", "p:2"]);
        assert_eq!([&shape[7], &shape[8], &shape[9]], ["D", "1", "w:w1"]);
        assert_eq!([&shape[10], &shape[11], &shape[12]], ["P", "2", "p:1"]);
        let mut again = Vec::new();
        frame(&args[3], &args[4], &mut again).expect("a row");
        assert_eq!(again, rows[..again.len()]);
        assert!(frame(b"x:1", b"", &mut again).is_err() && frame(b"", b"", &mut again).is_err());
    }
}
