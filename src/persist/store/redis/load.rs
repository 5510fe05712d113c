//! Loading of shards: take each, read its rows page by page, and verify that all of them were read.
//!
//! A cursor of `HSCAN` depends on the hash seed and the table of the server that returned it; another server, even one with
//! the same rows, skips some. So a scan uses one connection from its first page to its verification, and any interruption
//! (a redirection, a migrating slot, a broken connection, another role) restarts it at 0. A scan is complete if the header
//! is that of before the first page and the number of rows, which Redis counts in the same call, is that of the distinct
//! fields that were read. No row leaves this file before that check.

use parking_lot::Mutex;
use std::time::Duration;

use futures::StreamExt as _;
use redis::{Value, cmd};
use tokio::sync::Semaphore;
use xxhash_rust::xxh3::xxh3_128;

use super::super::{DamagedRecord, LoadedShard, RowSink, ShardDamage, ShardKey, StoreError};
use super::connect::ServerFault;
use super::keys;
use super::nodes::{Answer, RedisCall, RedisNodes};
use super::writes::{self, KeySide, OwnerEpoch, ShardProbe, text};
use crate::collections::HashSet;

/// Rows in one page: Redis is busy with a page for well under a millisecond.
const PAGE: usize = 1_000;
/// Scans of one shard before the load fails; the caller retries after more than [`PAUSE`].
const SCANS: usize = 4;
/// Pause before a shard is scanned again.
const PAUSE: Duration = Duration::from_millis(50);
/// Shards that are read at the same time.
const SHARDS_AT_ONCE: usize = 16;
/// Rows of all shards that are read at the same time (unless one shard has more), because they are kept until verified.
const ROWS_AT_ONCE: u32 = 1 << 17;
/// Shards that are probed in one call.
const PROBES_AT_ONCE: usize = 1_024;

/// Result of loading one shard.
pub(super) enum ShardRead {
    /// Loaded shard, which may be empty, and its live side.
    Done(LoadedShard, Option<KeySide>),
    /// Shard that a newer owner took under this epoch.
    Fenced(u64),
}

/// Reads shards, after taking them for `owner` if there is one. A shard that cannot be probed (its slot is migrating) fails the
/// load before a row is read, so that it may be retried.
pub(super) async fn load(
    nodes: &RedisNodes,
    prefix: &str,
    owner: Option<OwnerEpoch>,
    shards: Vec<ShardKey>,
    sink: RowSink,
) -> Result<Vec<ShardRead>, StoreError> {
    let probes: Vec<RedisCall> = shards.iter().map(|&shard| writes::probe(prefix, owner, shard)).collect();
    let mut results = Vec::with_capacity(shards.len());
    for probes in probes.chunks(PROBES_AT_ONCE) {
        for answer in nodes.call(probes).await? {
            results.push(writes::parse_probe(answer?)?);
        }
    }
    let row_permits = Semaphore::new(ROWS_AT_ONCE as usize);
    let reader = ShardReader { nodes, prefix, owner, sink: Mutex::new(sink), row_permits };
    let read = futures::stream::iter(shards.into_iter().zip(results)).map(|(shard, probe)| reader.shard(shard, probe));
    read.buffered(SHARDS_AT_ONCE).collect::<Vec<_>>().await.into_iter().collect()
}

struct ShardReader<'a> {
    nodes: &'a RedisNodes,
    prefix: &'a str,
    owner: Option<OwnerEpoch>,
    sink: Mutex<RowSink>,
    /// Permits, one for each row.
    row_permits: Semaphore,
}

impl ShardReader<'_> {
    async fn shard(&self, shard: ShardKey, mut probe: ShardProbe) -> Result<ShardRead, StoreError> {
        for _ in 1..SCANS {
            match self.scan(shard, probe).await {
                Err(ServerFault::Unavailable(error)) => tracing::info!(?shard, error, "reading the shard again"),
                read => return Ok(read?),
            }
            self.nodes.environment().sleep(PAUSE).await;
            let answer = self.nodes.call(&[writes::probe(self.prefix, self.owner, shard)]).await?.pop();
            let missing = || Err(ServerFault::Unavailable("a call got no answer".to_owned()));
            probe = writes::parse_probe(answer.unwrap_or_else(missing)?)?;
        }
        Ok(self.scan(shard, probe).await?)
    }

    /// Scans one shard, from the first page to the verification. After [`ServerFault::Unavailable`] a scan may be retried.
    async fn scan(&self, shard: ShardKey, probe: ShardProbe) -> Result<ShardRead, ServerFault> {
        let done = |at, side| Ok(ShardRead::Done(LoadedShard { shard, at }, side));
        let (side, at, header, count) = match probe {
            ShardProbe::Live { side, at, header, rows } => (side, at, header, rows),
            ShardProbe::Absent => return done(Ok(0), None),
            ShardProbe::Fenced { epoch } => return Ok(ShardRead::Fenced(epoch)),
            ShardProbe::Damaged(damage) => return done(Err(damage), None),
        };
        let permits = u32::try_from(count).unwrap_or(u32::MAX).min(ROWS_AT_ONCE);
        let _permits = self.row_permits.acquire_many(permits).await.expect("the semaphore is never closed");
        let names = keys::sides(self.prefix, shard);
        let key = side.key(&names);
        let slot = keys::slot(shard);
        let connection = self.nodes.connection(slot).await?;
        let mut rows = ScannedRows::default();
        let mut cursor = "0".to_owned();
        loop {
            let scan = cmd("HSCAN").arg(key).arg(&cursor).arg("COUNT").arg(PAGE).take();
            let page = match self.nodes.call_on(&connection, &RedisCall { slot, cmd: scan, batch_bytes: None }).await? {
                Ok(page) => page,
                Err(error) => return done(Err(ShardDamage::Server(error.text)), None),
            };
            cursor = match rows.add(&page) {
                Ok(next) => next,
                Err(flaw) => return done(Err(ShardDamage::Key(key.to_owned(), flaw)), None),
            };
            if cursor == "0" {
                break;
            }
        }
        let again = self.nodes.call_on(&connection, &writes::probe(self.prefix, self.owner, shard)).await?;
        self.verify_complete(key, side, &header, again, rows.fields.len())?;
        for page in rows.pages {
            (*self.sink.lock())(shard, &page);
            // A shard may have a million rows: let other tasks run.
            self.nodes.environment().yield_now().await;
        }
        match rows.flaw {
            None => done(Ok(at), Some(side)),
            Some(flaw) => done(Err(ShardDamage::Key(key.to_owned(), flaw)), None),
        }
    }

    /// Verifies that `rows` distinct rows are all that the key had under `header`. A reader that is not the owner sees the owner's
    /// changes: rows that existed during the whole scan were all read, those that changed were read in some state, and their
    /// number proves nothing. Only an install during the scan makes the result incomplete.
    fn verify_complete(
        &self,
        key: &str,
        side: KeySide,
        header: &str,
        again: Answer,
        rows: usize,
    ) -> Result<(), ServerFault> {
        let changed = || ServerFault::Unavailable(format!("{key} changed while it was read"));
        let generation = |header: &str| header.rsplit(' ').next().map(ToOwned::to_owned);
        match writes::parse_probe(again).map_err(|error| ServerFault::Unavailable(error.to_string()))? {
            ShardProbe::Live { side: now, header: then, rows: count, .. } if now == side && then == header => {
                let differs =
                    || ServerFault::Unavailable(format!("{rows} rows of {key} were read, but it has {count}"));
                if count == rows as u64 { Ok(()) } else { Err(differs()) }
            }
            ShardProbe::Live { side: now, header: then, .. }
                if self.owner.is_none() && now == side && generation(&then) == generation(header) =>
            {
                Ok(())
            }
            _ => Err(changed()),
        }
    }
}

/// Rows that a scan has brought so far.
#[derive(Default)]
struct ScannedRows {
    /// Frames of each page. A row may occur more than once.
    pages: Vec<Vec<u8>>,
    /// Hashes of the fields that were read.
    fields: HashSet<u128>,
    /// Error of the first field that is not a row.
    flaw: Option<DamagedRecord>,
}

impl ScannedRows {
    /// Adds one page of `HSCAN` and returns its cursor.
    fn add(&mut self, page: &Value) -> Result<String, DamagedRecord> {
        let Value::Array(parts) = page else { return Err(DamagedRecord::Page) };
        let [cursor, Value::Array(fields)] = parts.as_slice() else { return Err(DamagedRecord::Page) };
        let mut frames = Vec::new();
        for pair in fields.chunks(2) {
            let [Value::BulkString(field), Value::BulkString(body)] = pair else { return Err(DamagedRecord::Page) };
            if field == b"#" {
                continue;
            }
            self.fields.insert(xxh3_128(field));
            if let Err(flaw) = writes::frame(field, body, &mut frames) {
                self.flaw.get_or_insert(flaw);
            }
        }
        self.pages.push(frames);
        Ok(text(cursor).ok_or(DamagedRecord::Page)?.to_owned())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn page(cursor: &str, fields: &[&str]) -> Value {
        let bytes = |text: &str| Value::BulkString(text.into());
        let fields = fields.iter().flat_map(|field| [bytes(field), bytes("body")]).collect();
        Value::Array(vec![bytes(cursor), Value::Array(fields)])
    }

    #[test]
    fn s14_a_row_that_is_read_twice_counts_once_and_the_header_not_at_all() {
        let mut rows = ScannedRows::default();
        assert_eq!(rows.add(&page("7", &["#", "w:a", "w:b"])), Ok("7".to_owned()));
        assert_eq!(rows.add(&page("0", &["w:b", "w:c"])), Ok("0".to_owned()));
        assert_eq!((rows.fields.len(), rows.pages.len(), rows.flaw), (3, 2, None));
    }

    #[test]
    fn s14_a_field_that_is_not_a_row_does_not_keep_others_from_being_read() {
        let mut rows = ScannedRows::default();
        assert_eq!(rows.add(&page("0", &["w:a", "junk", "w:b"])), Ok("0".to_owned()));
        assert_eq!(rows.fields.len(), 3, "Redis counts it too");
        assert_eq!(rows.flaw, Some(DamagedRecord::Field("junk".to_owned())));
        assert!(rows.pages[0].windows(4).filter(|bytes| *bytes == b"body").count() == 2);
    }
}
