//! Reading shards: take each, read its rows page by page, and prove that all of them came.
//!
//! A cursor of `HSCAN` follows the hash seed and the table of the server that gave it; another server, also one with
//! the very same rows, skips some. So a scan goes down one connection from its first page to its proof, and whatever
//! breaks it off (a redirection, a slot on its way, a broken connection, another role) makes it begin anew at 0. Its
//! proof is the header, which is as it was before the first page, and the number of rows, counted by Redis in the same
//! call: it must be that of the distinct fields that came. Nobody is given a row that was not proved.

use parking_lot::Mutex;
use std::collections::HashSet;
use std::time::Duration;

use futures::StreamExt as _;
use redis::{Value, cmd};
use tokio::sync::Semaphore;
use xxhash_rust::xxh3::xxh3_128;

use super::super::{LoadedShard, RowSink, ShardKey, StoreError};
use super::connect::ServerFault;
use super::keys;
use super::nodes::{Answer, RedisCall, RedisNodes};
use super::writes::{self, KeySide, OwnerEpoch, ShardProbe, text};

/// Rows asked for at a time: Redis is busy with a page for well under a millisecond.
const PAGE: usize = 1_000;
/// Scans of one shard; then the load fails, and whoever wants it waits longer than [`PAUSE`].
const SCANS: usize = 4;
/// Pause before a shard is scanned once more.
const PAUSE: Duration = Duration::from_millis(50);
/// Shards read at the same time.
const SHARDS_AT_ONCE: usize = 16;
/// Rows of all shards that are read at the same time, unless a single one has more: they are kept until they are proved.
const ROWS_AT_ONCE: u32 = 1 << 17;
/// Shards looked at in one call.
const PROBES_AT_ONCE: usize = 1_024;

/// What became of one shard.
pub(super) enum ShardRead {
    /// It is there, or nothing is; with an owner: its live side.
    Done(LoadedShard, Option<KeySide>),
    /// Somebody took it under this epoch.
    Fenced(u64),
}

/// Reads shards; with an owner, takes them first. One that cannot even be looked at (its slot is moving) fails the load
/// before a row is read: it may be tried again as long as that lasts.
pub(super) async fn load(
    nodes: &RedisNodes,
    prefix: &str,
    owner: Option<OwnerEpoch>,
    shards: Vec<ShardKey>,
    sink: RowSink,
) -> Result<Vec<ShardRead>, StoreError> {
    let looks: Vec<RedisCall> = shards.iter().map(|&shard| writes::probe(prefix, owner, shard)).collect();
    let mut found = Vec::with_capacity(shards.len());
    for looks in looks.chunks(PROBES_AT_ONCE) {
        for answer in nodes.call(looks).await? {
            found.push(writes::parse_probe(answer?).map_err(StoreError::Unusable)?);
        }
    }
    let room = Semaphore::new(ROWS_AT_ONCE as usize);
    let reader = ShardReader { nodes, prefix, owner, sink: Mutex::new(sink), row_permits: room };
    let read = futures::stream::iter(shards.into_iter().zip(found)).map(|(shard, seen)| reader.shard(shard, seen));
    read.buffered(SHARDS_AT_ONCE).collect::<Vec<_>>().await.into_iter().collect()
}

struct ShardReader<'a> {
    nodes: &'a RedisNodes,
    prefix: &'a str,
    owner: Option<OwnerEpoch>,
    sink: Mutex<RowSink>,
    /// Holds a permit for each row.
    row_permits: Semaphore,
}

impl ShardReader<'_> {
    async fn shard(&self, shard: ShardKey, mut seen: ShardProbe) -> Result<ShardRead, StoreError> {
        for _ in 1..SCANS {
            match self.scan(shard, seen).await {
                Err(ServerFault::Unavailable(why)) => tracing::info!(?shard, why, "the shard is read anew"),
                read => return Ok(read?),
            }
            tokio::time::sleep(PAUSE).await;
            let look = self.nodes.call(&[writes::probe(self.prefix, self.owner, shard)]).await?.pop();
            let gone = || Err(ServerFault::Unavailable("a call was left without an answer".to_owned()));
            seen = writes::parse_probe(look.unwrap_or_else(gone)?).map_err(StoreError::Unusable)?;
        }
        Ok(self.scan(shard, seen).await?)
    }

    /// Scans one shard, from the first page to the proof. After `Away` a scan may be begun anew.
    async fn scan(&self, shard: ShardKey, seen: ShardProbe) -> Result<ShardRead, ServerFault> {
        let done = |at, side| Ok(ShardRead::Done(LoadedShard { shard, at }, side));
        let (side, at, header, count) = match seen {
            ShardProbe::Live { side, at, header, rows } => (side, at, header, rows),
            ShardProbe::Absent => return done(Ok(0), None),
            ShardProbe::Fenced { epoch } => return Ok(ShardRead::Fenced(epoch)),
            ShardProbe::Damaged(why) => return done(Err(why), None),
        };
        let room = u32::try_from(count).unwrap_or(u32::MAX).min(ROWS_AT_ONCE);
        let _room = self.row_permits.acquire_many(room).await.expect("the semaphore is never closed");
        let names = keys::sides(self.prefix, shard);
        let key = side.key(&names);
        let slot = keys::slot(shard);
        let connection = self.nodes.connection(slot).await?;
        let mut rows = ScannedRows::default();
        let mut cursor = "0".to_owned();
        loop {
            let scan = cmd("HSCAN").arg(key).arg(&cursor).arg("COUNT").arg(PAGE).take();
            let page = match self.nodes.call_on(&connection, &RedisCall { slot, cmd: scan, step_bytes: 0 }).await? {
                Ok(page) => page,
                Err(refused) => return done(Err(refused.text), None),
            };
            cursor = match rows.add(&page) {
                Ok(next) => next,
                Err(why) => return done(Err(format!("{key}: {why}")), None),
            };
            if cursor == "0" {
                break;
            }
        }
        let again = self.nodes.call_on(&connection, &writes::probe(self.prefix, self.owner, shard)).await?;
        self.verify_complete(key, side, &header, again, rows.fields.len())?;
        for page in rows.pages {
            (*self.sink.lock())(shard, &page);
            // A shard may have a million rows, and this thread other things to do.
            tokio::task::yield_now().await;
        }
        match rows.flaw {
            None => done(Ok(at), Some(side)),
            Some(flaw) => done(Err(format!("{key}: {flaw}")), None),
        }
    }

    /// Whether `rows` distinct rows are what stood under `header`. Who only looks meets the owner at work: rows that were
    /// there from the first page to the last all came, those that changed meanwhile as they were at some moment, and
    /// their number says nothing. Only a side that was flipped is no whole any more.
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
        match writes::parse_probe(again).map_err(ServerFault::Unavailable)? {
            ShardProbe::Live { side: now, header: then, rows: count, .. } if now == side && then == header => {
                let differs = || ServerFault::Unavailable(format!("{rows} rows of {key} were read, it has {count}"));
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
    /// Frames, a page each. A row may come more than once.
    pages: Vec<Vec<u8>>,
    /// Hashes of the fields that came.
    fields: HashSet<u128>,
    /// Says what is wrong with the first field that is none of ours.
    flaw: Option<String>,
}

impl ScannedRows {
    /// Takes one page of `HSCAN`; returns its cursor.
    fn add(&mut self, page: &Value) -> Result<String, String> {
        let odd = || "HSCAN gave an odd answer".to_owned();
        let Value::Array(parts) = page else { return Err(odd()) };
        let [cursor, Value::Array(fields)] = parts.as_slice() else { return Err(odd()) };
        let mut frames = Vec::new();
        for pair in fields.chunks(2) {
            let [Value::BulkString(field), Value::BulkString(body)] = pair else { return Err(odd()) };
            if field == b"#" {
                continue;
            }
            self.fields.insert(xxh3_128(field));
            if let Err(flaw) = writes::frame(field, body, &mut frames) {
                self.flaw.get_or_insert(flaw);
            }
        }
        self.pages.push(frames);
        Ok(text(cursor).ok_or_else(odd)?.to_owned())
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
    fn s14_a_row_that_comes_twice_counts_once_and_the_header_not_at_all() {
        let mut rows = ScannedRows::default();
        assert_eq!(rows.add(&page("7", &["#", "w:a", "w:b"])), Ok("7".to_owned()));
        assert_eq!(rows.add(&page("0", &["w:b", "w:c"])), Ok("0".to_owned()));
        assert_eq!((rows.fields.len(), rows.pages.len(), rows.flaw), (3, 2, None));
    }

    #[test]
    fn s14_a_field_that_is_none_of_ours_keeps_no_other_from_being_read() {
        let mut rows = ScannedRows::default();
        assert_eq!(rows.add(&page("0", &["w:a", "junk", "w:b"])), Ok("0".to_owned()));
        assert_eq!(rows.fields.len(), 3, "Redis counts it too");
        assert!(rows.flaw.is_some_and(|flaw| flaw.contains("junk")));
        assert!(rows.pages[0].windows(4).filter(|bytes| *bytes == b"body").count() == 2);
    }
}
