//! Foreign files, damage and full disks: rejected with a message, for as few shards as possible.

use std::path::Path;
use std::process::Command;

use hotpool::persist::store::redb::RedbStore;
use hotpool::persist::store::{ShardKey, Store, StoreError};
use redb::{Database, ReadableDatabase as _, ReadableTableMetadata as _, TableDefinition};
use xxhash_rust::xxh3::xxh3_64;

use super::{
    A, Applied, B, C, Duplicate, Gap, apply, chunk, copied, dir, install, is, load, one, opened, rows, state, unusable,
};

/// Function that changes a value, or removes it.
type Change = Box<dyn FnOnce(Vec<u8>) -> Option<Vec<u8>>>;
type ChunkKey = (u64, u16, u64, u64, u32);
const META: TableDefinition<'_, &str, u128> = TableDefinition::new("meta");
const LOG: TableDefinition<'_, u64, &[u8]> = TableDefinition::new("log");
const CHUNKS: TableDefinition<'_, ChunkKey, &[u8]> = TableDefinition::new("chunks");
const BASES: TableDefinition<'_, (u64, u16), &[u8]> = TableDefinition::new("bases");
const HEADER_BYTES: usize = 56;

fn database(dir: &Path) -> Database {
    Database::open(dir.join("hotpool.redb")).unwrap()
}

pub(super) fn log_len(dir: &Path) -> u64 {
    database(dir).begin_read().unwrap().open_table(LOG).unwrap().len().unwrap()
}

pub(super) fn chunks_len(dir: &Path) -> u64 {
    database(dir).begin_read().unwrap().open_table(CHUNKS).unwrap().len().unwrap()
}

/// Changes the value of one key; `None` removes it.
fn alter<K: redb::Key + 'static>(
    dir: &Path,
    table: TableDefinition<'_, K, &'static [u8]>,
    key: impl for<'a> std::borrow::Borrow<K::SelfType<'a>> + Copy,
    change: impl FnOnce(Vec<u8>) -> Option<Vec<u8>>,
) {
    let db = database(dir);
    let write = db.begin_write().unwrap();
    {
        let mut table = write.open_table(table).unwrap();
        let old = table.remove(key).unwrap().expect("the row exists").value().to_vec();
        if let Some(new) = change(old) {
            table.insert(key, new.as_slice()).unwrap();
        }
    }
    write.commit().unwrap();
}

/// Changes the byte at an offset.
fn other_byte(at: usize) -> impl FnOnce(Vec<u8>) -> Option<Vec<u8>> {
    move |mut blob| {
        blob[at] ^= 0x20;
        Some(blob)
    }
}

/// Creates a log of 0 = A and B, 1 = A and C, 2 = B. B has a base from position 3 on, then 3 = B, 4 = A, B.
async fn three_shards(dir: &Path) {
    let store = opened(dir).await;
    assert_eq!(apply(&store, &[rows(A, 0, 1, "a0"), rows(B, 0, 1, "b0")]).await, [Applied; 2]);
    assert_eq!(apply(&store, &[rows(A, 1, 2, "a1"), rows(C, 0, 1, "c0")]).await, [Applied; 2]);
    assert_eq!(one(&store, rows(B, 1, 2, "b1")).await, Applied);
    assert_eq!(one(&store, chunk(B, 1, 0, "[b]")).await, Applied);
    assert_eq!(one(&store, install(B, 2, 1, 1, "[f]")).await, Applied);
    assert_eq!(one(&store, rows(B, 2, 3, "b2")).await, Applied);
    assert_eq!(apply(&store, &[rows(A, 2, 3, "a2"), rows(B, 3, 4, "b3")]).await, [Applied; 2]);
}

/// Results of a load: `None` for a shard as `three_shards` created it, otherwise the error.
async fn complaints(dir: &Path) -> [Option<String>; 3] {
    let store = opened(dir).await;
    let found = load(&store, &[A, B, C]).await;
    let sound = [(A, 3, "a0a1a2"), (B, 4, "[b][f]b2b3"), (C, 1, "c0")];
    sound.map(|(shard, at, rows)| match &found[&shard] {
        (Err(why), _) => Some(why.to_string()),
        (Ok(found), read) => {
            assert_eq!((*found, String::from_utf8_lossy(read)), (at, rows.into()), "{shard:?}");
            None
        }
    })
}

#[tokio::test]
async fn s06_damaged_rows_make_only_their_shard_unreadable_until_a_snapshot() {
    let dir = dir();
    three_shards(dir.path()).await;
    assert_eq!(complaints(dir.path()).await, [None, None, None]);
    // The rows of A in the entry that A and C share.
    alter(dir.path(), LOG, 1, other_byte(HEADER_BYTES));
    let [a, b, c] = complaints(dir.path()).await;
    assert_eq!((b, c), (None, None));
    assert_eq!(a.unwrap(), "damaged record at log position 1: the checksum of the rows does not match");

    let store = opened(dir.path()).await;
    assert!(load(&store, &[A]).await[&A].0.is_err());
    assert_eq!(one(&store, rows(A, 3, 4, "x")).await, Gap, "refused, so not ours");
    assert_eq!(one(&store, install(A, 3, 1, 0, "a0a1a2")).await, Applied);
    assert_eq!(one(&store, rows(A, 3, 4, "a3")).await, Applied);
    assert_eq!(state(&store, A).await, is(4, "a0a1a2a3"));
    drop(store);
    assert_eq!(state(&opened(dir.path()).await, A).await, is(4, "a0a1a2a3"));
}

/// Changes the header of the first record and corrects its checksum.
fn other_header(at: usize, value: u8) -> impl FnOnce(Vec<u8>) -> Option<Vec<u8>> {
    move |mut blob| {
        blob[at] = value;
        let sum = xxh3_64(&blob[..HEADER_BYTES - 8]);
        blob[HEADER_BYTES - 8..HEADER_BYTES].copy_from_slice(&sum.to_le_bytes());
        Some(blob)
    }
}

#[tokio::test]
async fn s06_an_unknown_version_or_a_gap_between_batches_makes_only_its_shard_unreadable() {
    let made = dir();
    three_shards(made.path()).await;
    // Offset 0 is the version, 1 the kind, 20 the `from` of the batch.
    let changes = [
        (0, 2, "record version 2 is unknown; this program reads version 1"),
        (1, 9, "record kind 9, expected 1"),
        (20, 2, "it leads from 2 to 2, the state is at 1"),
    ];
    for (at, value, expected) in changes {
        let dir = copied(made.path());
        alter(dir.path(), LOG, 1, other_header(at, value));
        let why = format!("damaged record at log position 1: {expected}");
        assert_eq!(complaints(dir.path()).await, [Some(why), None, None]);
    }
}

#[tokio::test]
async fn s06_a_damaged_header_makes_every_shard_unreadable_that_could_be_concerned() {
    let changes: [(&str, Change); 6] = [
        ("header", Box::new(other_byte(3))),
        ("second header", Box::new(other_byte(HEADER_BYTES + 2 + 10))),
        ("cut short", Box::new(|blob| Some(blob[..blob.len() - 1].to_vec()))),
        ("nothing", Box::new(|_| Some(vec![]))),
        ("junk", Box::new(|_| Some(vec![0xff; 300]))),
        ("missing", Box::new(|_| None)),
    ];
    let made = dir();
    three_shards(made.path()).await;
    for (name, change) in changes {
        let dir = copied(made.path());
        alter(dir.path(), LOG, 1, change);
        let [a, b, c] = complaints(dir.path()).await;
        assert_eq!(b, None, "{name}: the base of B lies above it");
        for why in [a, c] {
            assert!(why.as_ref().is_some_and(|why| why.contains("log position 1: ")), "{name}: {why:?}");
        }
        // An unknown shard could have been in it too. A snapshot puts it above the damage.
        let store = opened(dir.path()).await;
        let new = ShardKey { pool: 9, shard: 3 };
        assert!(load(&store, &[new]).await[&new].0.is_err(), "{name}");
        assert_eq!(one(&store, rows(new, 0, 1, "x")).await, Gap, "{name}");
        assert_eq!(one(&store, install(new, 1, 1, 0, "n")).await, Applied, "{name}");
        for (shard, at) in [(A, 3), (C, 1)] {
            assert_eq!(one(&store, install(shard, at, 1, 0, "repaired")).await, Applied, "{name}");
        }
        // The other log entries are removed, the damaged one stays as long as the file.
        for n in 0..8 {
            assert_eq!(one(&store, rows(new, n + 1, n + 2, "n")).await, Applied, "{name}");
        }
        drop(store);
        let store = opened(dir.path()).await;
        assert_eq!(state(&store, new).await, is(9, "nnnnnnnnn"), "{name}");
        let other = ShardKey { pool: 9, shard: 4 };
        let still = load(&store, &[other]).await[&other].0.is_err();
        assert!(still || name == "missing", "{name}: what may have held its rows is kept");
        assert_eq!(state(&store, A).await, is(3, "repaired"), "{name}");
    }
}

#[tokio::test]
async fn s06_damaged_chunks_and_bases_make_only_their_shard_unreadable() {
    let key: ChunkKey = (B.pool, B.shard, 1, 1, 0);
    let made = dir();
    three_shards(made.path()).await;
    for number in 0..3 {
        let dir = copied(made.path());
        let expected = match number {
            0 => {
                alter(dir.path(), CHUNKS, key, other_byte(HEADER_BYTES + 1));
                "damaged chunk: number 0: the checksum of the rows does not match"
            }
            1 => {
                alter(dir.path(), CHUNKS, key, |_| None);
                "damaged chunk: number 0: it is another chunk"
            }
            _ => {
                alter(dir.path(), BASES, (B.pool, B.shard), other_byte(HEADER_BYTES));
                "damaged base: the checksum of the rows does not match"
            }
        };
        assert_eq!(complaints(dir.path()).await, [None, Some(expected.to_owned()), None]);
        let store = opened(dir.path()).await;
        assert_eq!(one(&store, rows(B, 4, 5, "x")).await, Gap);
        assert_eq!(one(&store, install(B, 9, 1, 0, "repaired")).await, Applied);
        assert_eq!(state(&store, B).await, is(9, "repaired"));
    }
}

#[tokio::test]
async fn s06_a_file_damaged_anywhere_is_rejected_or_read_and_never_panics() {
    let made = dir();
    three_shards(made.path()).await;
    let sound = std::fs::read(made.path().join("hotpool.redb")).unwrap();
    let dir = dir();
    let (mut refused, mut read) = (0, 0);
    for round in 0..200_u64 {
        let mut bytes = sound.clone();
        let random = |n: u64| xxh3_64(&[round.to_le_bytes(), n.to_le_bytes()].concat());
        // The header, then the used pages.
        let end = if round % 4 == 0 { 320 } else { bytes.iter().rposition(|b| *b != 0).unwrap() + 1 };
        for n in 0..=(round % 8) {
            let at = usize::try_from(random(n) % end as u64).unwrap();
            bytes[at] = random(n + 100).to_le_bytes()[0];
        }
        std::fs::write(dir.path().join("hotpool.redb"), &bytes).unwrap();
        match RedbStore::open(dir.path()) {
            Err(_) => refused += 1,
            Ok(store) => {
                let sink = Box::new(|_, _: &[u8]| ());
                let _ = store.load(vec![A, B, C], sink).await;
                read += 1;
            }
        }
    }
    assert!(refused > 0 && read > 0, "both occur: {refused} {read}");
}

#[tokio::test]
async fn s10_foreign_files_are_rejected_and_not_changed() {
    let dir = dir();
    std::fs::write(dir.path().join("letter.txt"), "dear").unwrap();
    let message = unusable(RedbStore::open(dir.path()));
    assert!(message.contains("holds letter.txt and no hotpool.redb"), "{message}");
    assert!(message.contains(&dir.path().display().to_string()), "{message}");
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1, "nothing is added");

    let file = dir.path().join("letter.txt");
    let message = unusable(RedbStore::open(&file));
    assert!(message.contains("cannot create the data directory"), "{message}");
    let message = unusable(RedbStore::open(Path::new("/proc/hotpool")));
    assert!(message.contains("/proc/hotpool"), "{message}");

    let dir = super::dir();
    let path = dir.path().join("hotpool.redb");
    for junk in [&b""[..], b"x", &[7; 5000]] {
        std::fs::write(&path, junk).unwrap();
        let message = unusable(RedbStore::open(dir.path()));
        assert!(message.contains("is not a hotpool store"), "{message}");
        assert_eq!(std::fs::read(&path).unwrap(), junk);
    }
    std::fs::remove_file(&path).unwrap();
    drop(Database::create(&path).unwrap());
    let message = unusable(RedbStore::open(dir.path()));
    assert!(message.contains("was not written by hotpool"), "{message}");
}

#[tokio::test]
async fn s07_another_format_is_rejected() {
    let dir = dir();
    drop(opened(dir.path()).await);
    let db = database(dir.path());
    let write = db.begin_write().unwrap();
    write.open_table(META).unwrap().insert("format", 2).unwrap();
    write.commit().unwrap();
    drop(db);
    let message = unusable(RedbStore::open(dir.path()));
    assert!(message.contains("has format 2; this program reads format 1"), "{message}");
}

#[tokio::test]
async fn a_crash_during_the_creation_does_not_block_the_next_one() {
    let dir = dir();
    std::fs::write(dir.path().join("hotpool.redb.new"), "half").unwrap();
    std::fs::write(dir.path().join("lock"), "4711").unwrap();
    let store = opened(&dir.path().join(".")).await;
    assert_eq!(one(&store, rows(A, 0, 1, "a")).await, Applied);
    assert!(!dir.path().join("hotpool.redb.new").exists());
}

#[tokio::test]
async fn a_second_open_fails_while_the_first_is_open() {
    let dir = dir();
    let store = opened(dir.path()).await;
    let message = unusable(RedbStore::open(dir.path()));
    let pid = std::process::id();
    assert_eq!(
        message,
        format!(
            "{} is in use by another process (pid {pid}); stop it, or choose another directory",
            dir.path().display()
        )
    );
    assert_eq!(one(&store, rows(A, 0, 1, "a")).await, Applied, "the first goes on");
    drop(store);
    assert_eq!(state(&opened(dir.path()).await, A).await, is(1, "a"));
}

const FULL_DISK_DIR: &str = "HOTPOOL_TEST_FULL_DISK_DIR";

/// Runs this test again in a process with a file size limit, whose signal is ignored, to get a real write error.
#[tokio::test]
async fn s10_a_full_disk_is_unavailable_and_recovers_without_a_restart() {
    if let Some(dir) = std::env::var_os(FULL_DISK_DIR) {
        return on_a_full_disk(Path::new(&dir)).await;
    }
    let dir = dir();
    let output = Command::new("sh")
        .args([
            "-c",
            r#"trap '' XFSZ; exec "$0" --exact damage::s10_a_full_disk_is_unavailable_and_recovers_without_a_restart"#,
        ])
        .arg(std::env::current_exe().unwrap())
        .env(FULL_DISK_DIR, dir.path())
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success() && said.contains("1 passed"), "{said}{}", String::from_utf8_lossy(&output.stderr));
    // Another process finds every acknowledged batch.
    let store = opened(dir.path()).await;
    let (at, read) = state(&store, A).await;
    assert_eq!(read.len() as u64, 100_000 * at);
    assert_eq!(state(&store, B).await, is(5, "b!"));
}

async fn on_a_full_disk(dir: &Path) {
    let unlimited = rlimit::getrlimit(rlimit::Resource::FSIZE).unwrap();
    let store = opened(dir).await;
    assert_eq!(one(&store, rows(C, 0, 1, "c")).await, Applied);
    store.take_over(uuid::Uuid::now_v7()).await.unwrap();
    assert_eq!(state(&store, C).await, is(1, "c"));
    assert_eq!(one(&store, chunk(B, 1, 0, "b")).await, Applied);
    let rows_a = "a".repeat(100_000);
    let mut at = 0;
    rlimit::setrlimit(rlimit::Resource::FSIZE, 4 << 20, unlimited.1).unwrap();
    let unavailable = loop {
        match store.apply(vec![rows(A, at, at + 1, &rows_a)]).await {
            Ok(outcomes) => assert_eq!(outcomes, [Applied]),
            Err(error) => break error,
        }
        at += 1;
    };
    assert!(
        matches!(&unavailable, StoreError::Unavailable(message) if message.contains("hotpool.redb")),
        "{unavailable:?}"
    );
    assert!(at > 5, "some batches were stored before");
    // Retries fail until space is available.
    for _ in 0..3 {
        let again = store.apply(vec![rows(A, at, at + 1, &rows_a)]).await;
        assert!(matches!(again, Err(StoreError::Unavailable(_))), "{again:?}");
    }
    rlimit::setrlimit(rlimit::Resource::FSIZE, unlimited.0, unlimited.1).unwrap();
    let outcome = one(&store, rows(A, at, at + 1, &rows_a)).await;
    assert!([Applied, Duplicate].contains(&outcome), "the same batch: {outcome:?}");
    assert_eq!(one(&store, rows(A, 0, at + 1, "x")).await, Duplicate);
    assert_eq!(one(&store, install(B, 5, 1, 1, "!")).await, Applied, "an acknowledged chunk still counts");
    assert_eq!(state(&store, B).await, is(5, "b!"));
    assert_eq!(one(&store, rows(A, at + 1, at + 2, &rows_a)).await, Applied);
    assert_eq!(one(&store, rows(C, 1, 2, "c")).await, Applied, "what was loaded is still ours");
}
