//! The contract of `hotpool::persist::store`, held against the embedded store on a real disk.

#[path = "store/damage.rs"]
mod damage;
#[path = "store/disks.rs"]
mod disks;
#[path = "store/failed_syncs.rs"]
mod failed_syncs;
#[path = "store/model_disk.rs"]
mod model_disk;
#[path = "store/oracle.rs"]
mod oracle;
#[path = "store/power_failures.rs"]
mod power_failures;

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use hotpool::persist::store::file::FileStore;
use hotpool::persist::store::{
    FenceSpan, LoadedShard, OwnershipRecord, ShardDamage, ShardKey, Store, StoreError, WriteBatch, WriteKind,
    WriteOutcome,
};
use tempfile::TempDir;
use uuid::Uuid;

use WriteOutcome::{Duplicate, Fenced, Gap, Ok as Applied};

const A: ShardKey = ShardKey { pool: 7, shard: 0 };
const B: ShardKey = ShardKey { pool: 7, shard: 1 };
const C: ShardKey = ShardKey { pool: 8, shard: 0 };

/// Result of a load: for each shard its sequence number and its concatenated rows.
type Found = BTreeMap<ShardKey, (Result<u64, ShardDamage>, Vec<u8>)>;

fn dir() -> TempDir {
    tempfile::tempdir().expect("a directory")
}

fn span(floor: u64, ceiling: u64) -> FenceSpan {
    FenceSpan { floor, ceiling }
}

fn rows(shard: ShardKey, from: u64, to: u64, rows: &str) -> WriteBatch {
    WriteBatch { shard, from, to, kind: WriteKind::Rows(Bytes::copy_from_slice(rows.as_bytes())) }
}

fn chunk(shard: ShardKey, generation: u64, number: u32, rows: &str) -> WriteBatch {
    let rows = Bytes::copy_from_slice(rows.as_bytes());
    WriteBatch { shard, from: 0, to: 0, kind: WriteKind::Chunk { generation, number, rows } }
}

fn install(shard: ShardKey, to: u64, generation: u64, chunks: u32, rows: &str) -> WriteBatch {
    let rows = Bytes::copy_from_slice(rows.as_bytes());
    WriteBatch { shard, from: to, to, kind: WriteKind::Install { generation, chunks, rows } }
}

fn drop_of(shard: ShardKey, at: u64) -> WriteBatch {
    WriteBatch { shard, from: at, to: at, kind: WriteKind::Drop }
}

async fn apply(store: &FileStore, batches: &[WriteBatch]) -> Vec<WriteOutcome> {
    store.apply(batches.to_vec()).await.expect("apply")
}

async fn one(store: &FileStore, batch: WriteBatch) -> WriteOutcome {
    apply(store, &[batch]).await[0]
}

async fn load(store: &FileStore, shards: &[ShardKey]) -> Found {
    let read: Arc<Mutex<BTreeMap<ShardKey, Vec<u8>>>> = Arc::default();
    let sink = Arc::clone(&read);
    let sink = Box::new(move |shard, rows: &[u8]| sink.lock().unwrap().entry(shard).or_default().extend(rows));
    let loaded = store.load(shards.to_vec(), sink).await.expect("load");
    assert_eq!(loaded.iter().map(|l| l.shard).collect::<Vec<_>>(), shards, "one answer a shard, in order");
    let mut read = read.lock().unwrap();
    loaded.into_iter().map(|LoadedShard { shard, at }| (shard, (at, read.remove(&shard).unwrap_or_default()))).collect()
}

/// State of a shard, which must be readable.
async fn state(store: &FileStore, shard: ShardKey) -> (u64, String) {
    let (at, rows) = load(store, &[shard]).await.remove(&shard).unwrap();
    (at.expect("readable"), String::from_utf8(rows).unwrap())
}

/// Opens the store and takes it over as a new owner.
async fn opened(dir: &Path) -> FileStore {
    let store = FileStore::open(dir).expect("open");
    store.take_over(Uuid::now_v7()).await.expect("take over");
    store
}

fn is(at: u64, rows: &str) -> (u64, String) {
    (at, rows.to_owned())
}

/// Copies the files as they are, as `kill -9` leaves them.
fn copied(from: &Path) -> TempDir {
    let to = dir();
    for entry in std::fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        std::fs::copy(entry.path(), to.path().join(entry.file_name())).unwrap();
    }
    to
}

fn unusable<T>(result: Result<T, StoreError>) -> String {
    match result {
        Err(StoreError::Unusable(message)) => message,
        Err(other) => panic!("not unusable: {other:?}"),
        Ok(_) => panic!("must be refused"),
    }
}

#[tokio::test]
async fn each_row_of_the_outcome_table_holds() {
    let dir = dir();
    let store = opened(dir.path()).await;
    // Unknown: at 0.
    assert_eq!(one(&store, rows(A, 1, 2, "x")).await, Gap);
    assert_eq!(one(&store, rows(A, 0, 0, "x")).await, Duplicate);
    assert_eq!(one(&store, rows(A, 0, 5, "a")).await, Applied);
    // at = 5
    assert_eq!(one(&store, rows(A, 6, 9, "x")).await, Gap, "at < from");
    assert_eq!(one(&store, rows(A, 3, 5, "x")).await, Duplicate, "to = at");
    assert_eq!(one(&store, rows(A, 1, 4, "x")).await, Duplicate, "to < at");
    assert_eq!(one(&store, rows(A, 4, 6, "b")).await, Applied, "from < at < to");
    assert_eq!(one(&store, rows(A, 6, 8, "c")).await, Applied, "from = at");
    // Each batch of a call gets its own outcome, in order.
    let mixed = [rows(B, 3, 4, "x"), rows(A, 8, 9, "d"), rows(C, 0, 2, "e")];
    assert_eq!(apply(&store, &mixed).await, [Gap, Applied, Applied]);
    assert_eq!(state(&store, A).await, is(9, "abcd"));
    assert_eq!(state(&store, B).await, is(0, ""));
    assert_eq!(state(&store, C).await, is(2, "e"));
}

#[tokio::test]
async fn a_shard_of_an_earlier_epoch_answers_gap_until_it_is_loaded_or_gets_a_snapshot() {
    let dir = dir();
    let store = opened(dir.path()).await;
    assert_eq!(apply(&store, &[rows(A, 0, 1, "a"), rows(B, 0, 1, "b")]).await, [Applied; 2]);
    store.take_over(Uuid::now_v7()).await.unwrap();
    assert_eq!(apply(&store, &[rows(A, 1, 2, "x"), rows(B, 0, 1, "x")]).await, [Gap; 2], "duplicates too");
    assert_eq!(state(&store, A).await, is(1, "a"));
    assert_eq!(apply(&store, &[rows(A, 1, 2, "c"), rows(B, 1, 2, "x")]).await, [Applied, Gap]);
    assert_eq!(one(&store, install(B, 9, 1, 0, "d")).await, Applied, "an install checks the epoch only");
    assert_eq!(one(&store, rows(B, 9, 10, "e")).await, Applied);
    assert_eq!(state(&store, B).await, is(10, "de"));
}

#[tokio::test]
async fn s03_an_owner_that_was_superseded_is_fenced() {
    let dir = dir();
    let old = opened(dir.path()).await;
    assert_eq!(one(&old, rows(A, 0, 1, "a")).await, Applied);
    let new = old.second_handle();
    assert!(unusable(new.apply(vec![rows(A, 1, 2, "x")]).await).contains("takeover"));
    let first = new.take_over(Uuid::now_v7()).await.unwrap();
    assert_eq!(state(&old, A).await, is(1, "a"), "reading is free, and adopts nothing");
    assert_eq!(one(&new, rows(A, 1, 2, "x")).await, Gap);
    let all = [rows(A, 1, 2, "x"), rows(B, 0, 1, "x"), drop_of(C, 0), chunk(ShardKey::CATALOG, 1, 0, "x")];
    assert_eq!(apply(&old, &all).await, [Fenced; 4]);
    assert_eq!(one(&old, install(A, 7, 1, 0, "x")).await, Fenced);
    assert!(unusable(old.raise_fence_ceiling(span(0, 99)).await).contains("another process owns the store"));
    assert_eq!(old.take_over(Uuid::now_v7()).await.unwrap().epoch, first.epoch + 1, "it grows with every takeover");
    assert_eq!(one(&new, rows(B, 0, 1, "x")).await, Fenced);
    assert_eq!(state(&old, A).await, is(1, "a"));
}

#[tokio::test]
async fn s13_the_fence_ceiling_and_the_epoch_survive() {
    let dir = dir();
    let store = FileStore::open(dir.path()).unwrap();
    let owned = store.take_over(Uuid::now_v7()).await.unwrap();
    assert_eq!((owned.epoch, owned.fence_ceiling), (1, 0));
    store.raise_fence_ceiling(span(0, 1_000)).await.unwrap();
    store.raise_fence_ceiling(span(0, 10)).await.unwrap();
    let crashed = copied(dir.path());
    drop(store);
    for dir in [dir.path(), crashed.path()] {
        let owned = FileStore::open(dir).unwrap().take_over(Uuid::now_v7()).await.unwrap();
        assert_eq!((owned.epoch, owned.fence_ceiling), (2, 1_000), "it never falls");
    }
}

#[tokio::test]
async fn s19_the_floor_of_fences_is_that_of_the_last_owner_that_granted_any() {
    let dir = dir();
    let take = async |raise_to: Option<u64>| {
        let store = FileStore::open(dir.path()).unwrap();
        let OwnershipRecord { fence_floor, fence_ceiling, .. } = store.take_over(Uuid::now_v7()).await.unwrap();
        if let Some(ceiling) = raise_to {
            store.raise_fence_ceiling(span(fence_ceiling, ceiling)).await.unwrap();
        }
        (fence_floor, fence_ceiling)
    };
    assert_eq!(take(Some(100)).await, (0, 0));
    assert_eq!(take(None).await, (0, 100), "the takeover of an owner that hands out none");
    assert_eq!(take(Some(200)).await, (0, 100), "leaves it as it was");
    assert_eq!(take(Some(300)).await, (100, 200));
    assert_eq!(take(Some(400)).await, (200, 300));
}

#[tokio::test]
async fn s02_batches_sent_again_after_a_lost_answer_change_nothing() {
    let dir = dir();
    let store = opened(dir.path()).await;
    let calls = [
        vec![rows(A, 0, 3, "a"), rows(B, 0, 1, "b"), rows(C, 0, 1, "c")],
        vec![chunk(A, 1, 0, "[a0]"), rows(B, 1, 2, "d")],
        vec![chunk(A, 1, 1, "[a1]")],
        vec![install(A, 3, 1, 2, "[f]"), drop_of(C, 1)],
        vec![rows(A, 3, 4, "e")],
    ];
    for call in &calls {
        assert_eq!(apply(&store, call).await, vec![Applied; call.len()]);
        assert_eq!(apply(&store, call).await, vec![Duplicate; call.len()], "{call:?}");
    }
    assert_eq!(state(&store, A).await, is(4, "[a0][a1][f]e"));
    assert_eq!(state(&store, B).await, is(2, "bd"));
    assert_eq!(state(&store, C).await, is(0, ""));
    let message = unusable(store.apply(vec![rows(A, 4, 5, "x"), rows(A, 5, 6, "x")]).await);
    assert!(message.contains("two batches of one shard"), "{message}");
}

#[tokio::test]
async fn a_snapshot_replaces_all_rows_and_batches_are_accepted_meanwhile() {
    let dir = dir();
    let mut store = opened(dir.path()).await;
    assert_eq!(one(&store, rows(A, 0, 2, "old")).await, Applied);
    assert_eq!(one(&store, chunk(A, 1, 0, "[0]")).await, Applied);
    assert_eq!(apply(&store, &[rows(A, 2, 3, "new"), rows(B, 0, 1, "b")]).await, [Applied; 2]);
    assert_eq!(one(&store, chunk(A, 1, 2, "[2]")).await, Applied);
    assert_eq!(one(&store, install(A, 3, 1, 3, "x")).await, Gap, "number 1 is missing");
    assert_eq!(one(&store, install(A, 3, 2, 1, "x")).await, Gap, "another generation");
    assert_eq!(state(&store, A).await, is(3, "oldnew"), "until the install the old generation stays");
    assert_eq!(one(&store, chunk(A, 1, 1, "[1]")).await, Applied);
    assert_eq!(one(&store, install(A, 3, 1, 3, "[new]")).await, Applied);
    assert_eq!(apply(&store, &[rows(A, 3, 4, "t"), rows(B, 1, 2, "c")]).await, [Applied; 2]);
    for _ in 0..2 {
        assert_eq!(state(&store, A).await, is(4, "[0][1][2][new]t"));
        assert_eq!(state(&store, B).await, is(2, "bc"));
        drop(store);
        store = opened(dir.path()).await;
    }
    // The same number in another epoch is another generation, and does not change the stored one.
    assert_eq!(one(&store, chunk(A, 1, 0, "(0)")).await, Applied);
    assert_eq!(state(&store, A).await, is(4, "[0][1][2][new]t"));
    // It stays unfinished; the next attempt succeeds.
    assert_eq!(one(&store, chunk(A, 2, 0, "{0}")).await, Applied);
    assert_eq!(one(&store, install(A, 5, 2, 1, "")).await, Applied);
    assert_eq!(state(&store, A).await, is(5, "{0}"));
}

#[tokio::test]
async fn a_dropped_shard_stays_removed() {
    let dir = dir();
    let store = opened(dir.path()).await;
    assert_eq!(one(&store, rows(A, 0, 1, "a")).await, Applied);
    assert_eq!(one(&store, install(A, 1, 1, 0, "base")).await, Applied);
    assert_eq!(apply(&store, &[rows(A, 1, 2, "a"), rows(B, 0, 1, "b")]).await, [Applied; 2]);
    assert_eq!(apply(&store, &[drop_of(A, 2), drop_of(C, 0)]).await, [Applied, Duplicate]);
    assert_eq!(state(&store, A).await, is(0, ""));
    drop(store);
    let store = opened(dir.path()).await;
    assert_eq!(state(&store, A).await, is(0, ""), "neither its snapshot nor its batches come back");
    assert_eq!(state(&store, B).await, is(1, "b"));
    assert_eq!(one(&store, rows(A, 0, 1, "again")).await, Applied);
    drop(store);
    assert_eq!(state(&opened(dir.path()).await, A).await, is(1, "again"));
}

#[tokio::test]
async fn s07_all_rows_survive_a_crash_and_the_restart_after_it() {
    let first = dir();
    let store = opened(first.path()).await;
    for n in 0..200 {
        let batches = [rows(A, n, n + 1, "a"), rows(B, 2 * n, 2 * n + 2, "b")];
        assert_eq!(apply(&store, &batches).await, [Applied; 2]);
    }
    assert_eq!(one(&store, chunk(A, 1, 0, "[0]")).await, Applied);
    let crashed = copied(first.path());
    let again = opened(crashed.path()).await;
    assert_eq!(state(&again, A).await, (200, "a".repeat(200)));
    assert_eq!(state(&again, B).await, (400, "b".repeat(200)));
    assert_eq!(one(&again, install(A, 200, 1, 1, "x")).await, Gap, "the rewrite died with its owner");
    assert_eq!(one(&again, rows(A, 200, 201, "!")).await, Applied);
    let twice = copied(crashed.path());
    assert_eq!(state(&opened(twice.path()).await, A).await, (201, "a".repeat(200) + "!"));
}

/// Numbers of the log's segments.
fn segments(dir: &Path) -> Vec<u64> {
    let names = std::fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let mut numbers: Vec<u64> = names.filter_map(|name| name.strip_prefix("log-")?.parse().ok()).collect();
    numbers.sort_unstable();
    numbers
}

#[tokio::test]
async fn s07_batches_after_the_log_was_emptied_and_reopened_are_kept() {
    let dir = dir();
    let mut store = opened(dir.path()).await;
    let large = "l".repeat(700_000);
    for n in 0..5 {
        assert_eq!(one(&store, rows(A, n, n + 1, &large)).await, Applied);
    }
    assert_eq!(one(&store, install(A, 5, 1, 0, "base")).await, Applied);
    assert_eq!(one(&store, chunk(B, 1, 0, "this call frees the log before the base")).await, Applied);
    for round in 0..2 {
        drop(store);
        assert_eq!(*segments(dir.path()).first().unwrap(), 3, "1 and 2 had only what the base replaces");
        store = opened(dir.path()).await;
        assert_eq!(state(&store, A).await, (5 + round, "base".to_owned() + &"t".repeat(round as usize)));
        assert_eq!(one(&store, rows(A, 5 + round, 6 + round, "t")).await, Applied);
    }
}

#[tokio::test]
async fn a_long_log_requests_snapshots_of_the_oldest_shards_and_gets_shorter() {
    let dir = dir();
    let store = opened(dir.path()).await;
    let mib = "m".repeat(1 << 20);
    assert_eq!(one(&store, rows(A, 0, 1, "first")).await, Applied);
    for n in 0..64 {
        assert_eq!(one(&store, rows(B, n, n + 1, &mib)).await, Applied);
        assert_eq!(store.snapshot_candidate().is_some(), n == 63, "64 MiB are free, and headers are past them");
    }
    assert_eq!(store.snapshot_candidate(), Some(A), "the oldest, not the largest");
    assert_eq!(one(&store, install(A, 1, 1, 0, "base of a")).await, Applied);
    assert_eq!(store.snapshot_candidate(), Some(B));
    assert_eq!(one(&store, chunk(B, 1, 0, &mib)).await, Applied);
    assert_eq!(one(&store, install(B, 64, 1, 1, "base of b")).await, Applied);
    assert_eq!(store.snapshot_candidate(), None, "a base may be three times the log behind");
    for n in 0..8 {
        assert_eq!(one(&store, rows(C, n, n + 1, "c")).await, Applied);
    }
    assert_eq!(state(&store, B).await, (64, mib.clone() + "base of b"));
    drop(store);
    assert!(segments(dir.path()).len() <= 2, "{:?}: from the base of A on", segments(dir.path()));
    let store = opened(dir.path()).await;
    assert_eq!(state(&store, A).await, is(1, "base of a"));
    assert_eq!(state(&store, C).await, is(8, "cccccccc"));
    // The log comes round to the bases, which are written again.
    assert_eq!(state(&store, B).await, (64, mib.clone() + "base of b"));
    for n in 64..140 {
        assert_eq!(one(&store, rows(B, n, n + 1, &mib)).await, Applied);
    }
    assert_eq!(store.snapshot_candidate(), Some(A));
    assert_eq!(one(&store, install(A, 1, 1, 0, "again")).await, Applied);
    assert_eq!(store.snapshot_candidate(), Some(B));
    assert_eq!(one(&store, install(B, 140, 1, 0, "again")).await, Applied);
    assert_eq!(store.snapshot_candidate(), Some(C));
}

#[tokio::test]
async fn a_snapshot_larger_than_the_free_log_is_installed() {
    let dir = dir();
    let store = opened(dir.path()).await;
    let mib = "m".repeat(1 << 20);
    for number in 0..70 {
        assert_eq!(one(&store, chunk(A, 1, number, &mib)).await, Applied);
        assert_eq!(one(&store, rows(B, number.into(), u64::from(number) + 1, "b")).await, Applied);
    }
    assert_eq!(one(&store, install(A, 5, 1, 70, "!")).await, Applied, "all of its chunks are there");
    assert_eq!(state(&store, A).await.1.len(), (70 << 20) + 1);
}

#[tokio::test]
async fn a_shard_of_which_no_snapshot_can_be_had_does_not_keep_others_from_one() {
    let dir = dir();
    let store = opened(dir.path()).await;
    let mib = "m".repeat(1 << 20);
    assert_eq!(apply(&store, &[rows(A, 0, 1, "a"), rows(B, 0, 1, "b")]).await, [Applied; 2]);
    for n in 0..66 {
        assert_eq!(one(&store, rows(C, n, n + 1, &mib)).await, Applied);
    }
    assert_eq!(store.snapshot_candidate(), Some(A));
    store.skip_snapshot(A);
    assert_eq!(store.snapshot_candidate(), Some(B));
    assert_eq!(one(&store, rows(A, 1, 2, "a")).await, Applied);
    assert_eq!(store.snapshot_candidate(), Some(A), "it writes again");
}

#[tokio::test]
async fn a_snapshot_that_was_given_up_does_not_hold_the_log_back() {
    let dir = dir();
    let store = opened(dir.path()).await;
    let mib = "m".repeat(1 << 20);
    assert_eq!(one(&store, chunk(A, 1, 0, "its source is gone")).await, Applied);
    for n in 0..66 {
        assert_eq!(one(&store, rows(B, n, n + 1, &mib)).await, Applied);
        assert_eq!(one(&store, install(B, n + 1, n, 0, "base")).await, Applied);
    }
    assert_eq!(one(&store, rows(C, 0, 1, "c")).await, Applied);
    assert_eq!(one(&store, install(A, 1, 1, 1, "")).await, Gap, "the chunk is forgotten");
    assert_eq!(one(&store, install(A, 1, 2, 0, "a")).await, Applied);
    drop(store);
    assert!(segments(dir.path()).len() <= 2, "{:?}", segments(dir.path()));
    let store = opened(dir.path()).await;
    assert_eq!((state(&store, A).await, state(&store, B).await), (is(1, "a"), is(66, "base")));
}

#[tokio::test]
async fn a_load_is_consistent_while_others_write() {
    let dir = dir();
    let store = Arc::new(opened(dir.path()).await);
    // More than one segment holds.
    let large = "a".repeat(60_000);
    for n in 0..50 {
        assert_eq!(one(&store, rows(A, n, n + 1, &large)).await, Applied);
    }
    // The competing batches run inside the load, between two rows: an install, and enough calls to free the log.
    let (writer, runtime) = (Arc::clone(&store), tokio::runtime::Handle::current());
    let seen = Arc::new(Mutex::new(0));
    let count = Arc::clone(&seen);
    let sink = Box::new(move |_, read: &[u8]| {
        assert!(read.len() == 60_000 && read.iter().all(|byte| *byte == b'a'));
        let mut count = count.lock().unwrap();
        *count += 1;
        if *count == 10 {
            assert_eq!(runtime.block_on(one(&writer, install(A, 50, 1, 0, "base"))), Applied);
            for n in 0..20 {
                let large = rows(B, n, n + 1, &"b".repeat(1 << 20));
                assert_eq!(runtime.block_on(one(&writer, large)), Applied);
                assert_eq!(runtime.block_on(one(&writer, install(B, n + 1, n, 0, "base"))), Applied);
            }
            assert_eq!(runtime.block_on(one(&writer, install(A, 50, 2, 0, "base"))), Applied);
            for n in 0..2 {
                assert_eq!(runtime.block_on(one(&writer, rows(C, n, n + 1, "c"))), Applied);
            }
        }
    });
    let loaded = store.load(vec![A], sink).await.unwrap();
    assert_eq!(loaded, [LoadedShard { shard: A, at: Ok(50) }]);
    assert_eq!(*seen.lock().unwrap(), 50);
    assert_eq!(state(&store, A).await, is(50, "base"));
    // What the load needed is freed after it.
    drop(store);
    assert!(segments(dir.path())[0] > 1, "{:?}", segments(dir.path()));
}
