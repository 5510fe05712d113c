//! Foreign files, damage and full disks: rejected with a message, for as few shards as possible.

use std::path::Path;
use std::process::Command;

use hotpool::persist::store::file::{FileStore, StoreDisk as _};
use hotpool::persist::store::{ShardKey, Store, StoreError};
use rustix::io::Errno;
use xxhash_rust::xxh3::xxh3_64;

use super::failed_syncs::{open, try_open};
use super::model_disk::{DiskCall, ModelDisk};
use super::{
    A, Applied, B, C, Duplicate, Gap, apply, chunk, dir, install, is, load, one, opened, rows, state, unusable,
};

/// Function that changes a frame of the log.
type Change = Box<dyn FnOnce(&mut [u8])>;
const SEGMENT: &str = "log-000000000001";
/// Size of a frame's header, in bytes.
const FRAME_HEADER_BYTES: usize = 48;
/// Size of a record's header, in bytes.
const HEADER_BYTES: usize = 56;
/// Offset of the first record's body in a frame, in bytes.
const BODY: usize = FRAME_HEADER_BYTES + HEADER_BYTES;

/// Ranges of the frames in a segment, in bytes.
fn frames(segment: &[u8]) -> Vec<std::ops::Range<usize>> {
    let mut frames = Vec::new();
    let mut at = 0;
    while segment.get(at..at + 4).is_some_and(|magic| magic == b"hpl3") {
        let length = u32::from_le_bytes(segment[at + 4..at + 8].try_into().unwrap()) as usize;
        let end = at + (FRAME_HEADER_BYTES + length).next_multiple_of(8);
        frames.push(at..end);
        at = end;
    }
    frames
}

/// Changes the frame with this number.
fn alter(disk: &ModelDisk, sequence: usize, change: impl FnOnce(&mut [u8])) {
    disk.alter(SEGMENT, |segment| {
        let frame = frames(segment)[sequence - 1].clone();
        change(&mut segment[frame]);
    });
}

/// Changes the byte at an offset in a frame.
fn other_byte(at: usize) -> impl FnOnce(&mut [u8]) {
    move |frame| frame[at] ^= 0x20
}

/// Creates a log of 1 = A and B, 2 = A and C, 3 = B, 4 and 5 = base of B, 6 = B, 7 = A and B, 8 = D.
async fn three_shards(disk: &ModelDisk) {
    let store = open(disk).await;
    assert_eq!(apply(&store, &[rows(A, 0, 1, "a0"), rows(B, 0, 1, "b0")]).await, [Applied; 2]);
    assert_eq!(apply(&store, &[rows(A, 1, 2, "a1"), rows(C, 0, 1, "c0")]).await, [Applied; 2]);
    assert_eq!(one(&store, rows(B, 1, 2, "b1")).await, Applied);
    assert_eq!(one(&store, chunk(B, 1, 0, "b0")).await, Applied);
    assert_eq!(one(&store, install(B, 2, 1, 1, "b1")).await, Applied);
    assert_eq!(one(&store, rows(B, 2, 3, "b2")).await, Applied);
    assert_eq!(apply(&store, &[rows(A, 2, 3, "a2"), rows(B, 3, 4, "b3")]).await, [Applied; 2]);
    assert_eq!(one(&store, rows(ShardKey { pool: 8, shard: 1 }, 0, 1, "d0")).await, Applied);
}

/// Results of a load: `None` for a shard as `three_shards` created it, otherwise the error.
async fn complaints(disk: &ModelDisk) -> [Option<String>; 3] {
    let store = open(disk).await;
    let found = load(&store, &[A, B, C]).await;
    let sound = [(A, 3, "a0a1a2"), (B, 4, "b0b1b2b3"), (C, 1, "c0")];
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
    let disk = ModelDisk::default();
    three_shards(&disk).await;
    assert_eq!(complaints(&disk).await, [None, None, None]);
    // The rows of A in the frame that A and C share.
    alter(&disk, 2, other_byte(BODY));
    let [a, b, c] = complaints(&disk).await;
    assert_eq!((b, c), (None, None));
    assert_eq!(a.unwrap(), "damaged frame 2 of the log: the checksum of the rows does not match");

    let store = open(&disk).await;
    assert!(load(&store, &[A]).await[&A].0.is_err());
    assert_eq!(one(&store, rows(A, 3, 4, "x")).await, Gap, "refused, so not ours");
    assert_eq!(one(&store, install(A, 3, 1, 0, "a0a1a2")).await, Applied);
    assert_eq!(one(&store, rows(A, 3, 4, "a3")).await, Applied);
    assert_eq!(state(&store, A).await, is(4, "a0a1a2a3"));
    drop(store);
    assert_eq!(state(&open(&disk).await, A).await, is(4, "a0a1a2a3"));
}

/// Changes the header of the first record and corrects its checksum.
fn other_header(at: usize, value: u8) -> impl FnOnce(&mut [u8]) {
    move |frame| {
        let record = &mut frame[FRAME_HEADER_BYTES..];
        record[at] = value;
        let sum = xxh3_64(&record[..HEADER_BYTES - 8]);
        record[HEADER_BYTES - 8..HEADER_BYTES].copy_from_slice(&sum.to_le_bytes());
    }
}

#[tokio::test]
async fn s06_an_unknown_version_or_a_gap_between_batches_makes_only_its_shard_unreadable() {
    let made = ModelDisk::default();
    three_shards(&made).await;
    // Offset 0 is the version, 1 the kind, 20 the `from` of the batch.
    let changes = [
        (0, 2, "record version 2 is unknown; this program reads version 1"),
        (1, 9, "record kind 9, expected 1"),
        (20, 2, "it leads from 2 to 2, the state is at 1"),
    ];
    for (at, value, expected) in changes {
        let disk = made.copy();
        alter(&disk, 2, other_header(at, value));
        let why = format!("damaged frame 2 of the log: {expected}");
        assert_eq!(complaints(&disk).await, [Some(why), None, None]);
    }
}

#[tokio::test]
async fn s06_a_damaged_header_makes_every_shard_unreadable_that_could_be_concerned() {
    let changes: [(&str, Change); 5] = [
        ("header of the frame", Box::new(other_byte(9))),
        ("length of the frame", Box::new(|frame| frame[4..8].copy_from_slice(&[0xff; 4]))),
        ("header of the first record", Box::new(other_byte(FRAME_HEADER_BYTES + 3))),
        ("zeros", Box::new(|frame| frame.fill(0))),
        ("junk", Box::new(|frame| frame.fill(0xff))),
    ];
    let made = ModelDisk::default();
    three_shards(&made).await;
    for (name, change) in changes {
        let disk = made.copy();
        alter(&disk, 2, change);
        let [a, b, c] = complaints(&disk).await;
        assert_eq!(b, None, "{name}: the base of B lies above it");
        for why in [a, c] {
            assert!(why.as_ref().is_some_and(|why| why.contains("frame 2 of the log: ")), "{name}: {why:?}");
        }
        // An unknown shard could have been in it too. A snapshot puts it above the damage.
        let store = open(&disk).await;
        let new = ShardKey { pool: 9, shard: 3 };
        assert!(load(&store, &[new]).await[&new].0.is_err(), "{name}");
        assert_eq!(one(&store, rows(new, 0, 1, "x")).await, Gap, "{name}");
        assert_eq!(one(&store, install(new, 1, 1, 0, "n")).await, Applied, "{name}");
        for (shard, at) in [(A, 3), (C, 1)] {
            assert_eq!(one(&store, install(shard, at, 1, 0, "repaired")).await, Applied, "{name}");
        }
        // The log may lose the damaged frame; that there was one is remembered.
        let large = "n".repeat(700_000);
        for n in 1..9 {
            assert_eq!(one(&store, rows(new, n, n + 1, &large)).await, Applied, "{name}");
            for (shard, at) in [(A, 3), (C, 1)] {
                assert_eq!(one(&store, install(shard, at, n + 1, 0, "repaired")).await, Applied, "{name}");
            }
        }
        for shard in [new, B, ShardKey { pool: 8, shard: 1 }] {
            assert_eq!(one(&store, install(shard, 9, 20, 0, "last")).await, Applied, "{name}");
        }
        assert_eq!(one(&store, rows(new, 9, 10, "!")).await, Applied, "{name}");
        drop(store);
        assert!(!disk.names().contains(&SEGMENT.to_owned()), "{name}: {:?}", disk.names());
        let store = open(&disk).await;
        assert_eq!(state(&store, new).await, is(10, "last!"), "{name}");
        let other = ShardKey { pool: 9, shard: 4 };
        assert!(load(&store, &[other]).await[&other].0.is_err(), "{name}: its rows may have been there");
        assert_eq!(state(&store, A).await, is(3, "repaired"), "{name}");
    }
}

#[tokio::test]
async fn s06_a_shard_whose_next_record_follows_has_lost_nothing_in_an_unreadable_frame() {
    let disk = ModelDisk::default();
    three_shards(&disk).await;
    // Frame 3 is of B alone, before its base; A goes on in frame 7 from where frame 2 ended. C does not go on.
    alter(&disk, 3, |frame| frame.fill(0));
    let [a, b, c] = complaints(&disk).await;
    assert_eq!((a, b), (None, None));
    assert_eq!(c.unwrap(), "damaged frame 3 of the log: the frame is missing");
}

#[tokio::test]
async fn s06_a_lost_segment_is_noticed() {
    let made = ModelDisk::default();
    let store = open(&made).await;
    let large = "l".repeat(700_000);
    assert_eq!(one(&store, rows(A, 0, 1, "a")).await, Applied);
    for n in 0..5 {
        assert_eq!(one(&store, rows(B, n, n + 1, &large)).await, Applied);
    }
    assert_eq!(one(&store, rows(C, 0, 1, "c")).await, Applied);
    drop(store);
    let names: Vec<_> = made.names().into_iter().filter(|name| name.starts_with("log-")).collect();
    assert_eq!(names.len(), 3, "{names:?}");
    for name in &names[..2] {
        let disk = made.copy();
        disk.lose(name);
        let store = open(&disk).await;
        let found = load(&store, &[A, B]).await;
        assert!(found[&B].0.is_err(), "{name}: {:?}", found[&B].0);
        assert!(found[&A].0.is_err(), "{name}: it may have had a second record there");
    }
    let disk = made.copy();
    made.names().iter().filter(|name| name.starts_with("log")).for_each(|name| disk.lose(name));
    let message = unusable(try_open(&disk));
    assert!(message.contains("there is no log beside it"), "{message}");
    let disk = made.copy();
    disk.lose("store");
    let message = unusable(try_open(&disk));
    assert!(message.contains("is the log of a store, but there is no file store"), "{message}");
}

#[tokio::test]
async fn s06_a_frame_that_was_swapped_for_an_older_one_is_noticed() {
    let disk = ModelDisk::default();
    let store = open(&disk).await;
    assert_eq!(one(&store, rows(A, 0, 1, "a")).await, Applied);
    let mut old = Vec::new();
    let other = disk.copy();
    assert_eq!(one(&open(&other).await, install(A, 1, 7, 0, "x")).await, Applied);
    other.alter(SEGMENT, |segment| old = segment[frames(segment)[1].clone()].to_vec());
    assert_eq!(one(&store, install(A, 1, 1, 0, "b")).await, Applied);
    assert_eq!(one(&store, rows(B, 0, 1, "c")).await, Applied);
    drop(store);
    // A valid frame of this store with the right number, which the next one does not follow.
    disk.alter(SEGMENT, |segment| {
        let frame = frames(segment)[1].clone();
        assert_eq!(frame.len(), old.len());
        segment[frame].copy_from_slice(&old);
    });
    let store = open(&disk).await;
    let why = load(&store, &[A]).await.remove(&A).unwrap().0.unwrap_err();
    assert_eq!(why.to_string(), "damaged frame 2 of the log: it is another frame");
}

#[tokio::test]
async fn s06_damaged_chunks_and_bases_make_only_their_shard_unreadable() {
    let made = ModelDisk::default();
    three_shards(&made).await;
    let changes: [(usize, Change, &str); 4] = [
        (4, Box::new(other_byte(BODY + 1)), "damaged chunk: number 0: the checksum of the rows does not match"),
        (4, Box::new(other_header(28, 5)), "damaged chunk: 1 of 2 are present"),
        (5, Box::new(other_byte(BODY + 1)), "damaged chunk: number 1: the checksum of the rows does not match"),
        (5, Box::new(other_byte(BODY + 3 + HEADER_BYTES)), "damaged base: the checksum of the rows does not match"),
    ];
    for (sequence, change, expected) in changes {
        let disk = made.copy();
        alter(&disk, sequence, change);
        assert_eq!(complaints(&disk).await, [None, Some(expected.to_owned()), None]);
        let store = open(&disk).await;
        assert_eq!(one(&store, rows(B, 4, 5, "x")).await, Gap);
        assert_eq!(one(&store, install(B, 9, 1, 0, "repaired")).await, Applied);
        assert_eq!(state(&store, B).await, is(9, "repaired"));
        drop(store);
        assert_eq!(state(&open(&disk).await, B).await, is(9, "repaired"));
    }
}

#[tokio::test]
async fn s06_frames_of_an_earlier_use_of_a_segment_are_not_the_log() {
    let disk = ModelDisk::default();
    let store = open(&disk).await;
    assert_eq!(one(&store, rows(A, 0, 1, "old")).await, Applied);
    let mut earlier = Vec::new();
    disk.alter(SEGMENT, |segment| earlier = segment[..frames(segment)[0].end].to_vec());
    let large = "l".repeat(700_000);
    for n in 0..4 {
        assert_eq!(one(&store, install(B, n, n + 1, 0, &large)).await, Applied);
        assert_eq!(one(&store, install(A, 1, n + 1, 0, "new")).await, Applied);
    }
    drop(store);
    let live = disk.names().into_iter().find(|name| name.starts_with("log-")).unwrap();
    assert_ne!(live, SEGMENT, "the first segment is not needed any more");
    // A segment that was used before holds its old frames behind the new ones, and the new ones are lost.
    disk.alter(&live, |segment| {
        segment.fill(0);
        segment[4_096..4_096 + earlier.len()].copy_from_slice(&earlier);
    });
    disk.names().into_iter().filter(|name| name.starts_with("log-") && *name != live).for_each(|name| disk.lose(&name));
    let message = unusable(try_open(&disk));
    assert!(message.contains("hold no readable frame"), "{message}");
}

#[tokio::test]
async fn s06_a_log_that_has_lost_its_end_is_refused() {
    let made = ModelDisk::default();
    three_shards(&made).await;
    let store = open(&made).await;
    load(&store, &[A, B, C]).await;
    assert_eq!(one(&store, rows(C, 1, 2, "c1")).await, Applied);
    // As a service that stops does.
    store.resign().await.unwrap();
    drop(store);
    let mut found = Vec::new();
    made.alter(SEGMENT, |segment| found = frames(segment));
    for lost in [1, 3, found.len()] {
        for cut in [false, true] {
            let disk = made.copy();
            disk.alter(SEGMENT, |segment| {
                let start = found[found.len() - lost].start;
                if cut { segment.truncate(start) } else { segment[start..].fill(0) }
            });
            let message = unusable(try_open(&disk).map(drop));
            let expected =
                format!("{SEGMENT} ends with frame {}, and frame {} was on the disk", found.len() - lost, found.len());
            assert!(message.contains(&expected), "{lost} {cut}: {message}");
        }
    }
    // After a crash the frame that was being written may be incomplete. It was not acknowledged.
    let store = open(&made).await;
    load(&store, &[A, B, C]).await;
    assert_eq!(one(&store, rows(C, 2, 3, "c2")).await, Applied);
    drop(store);
    made.alter(SEGMENT, |segment| {
        let last = frames(segment).pop().unwrap();
        segment[last.end - 9..].fill(0);
    });
    assert_eq!(state(&open(&made).await, C).await, is(2, "c0c1"));
}

#[tokio::test]
async fn s06_a_lost_last_segment_is_refused() {
    let made = ModelDisk::default();
    let store = open(&made).await;
    let large = "l".repeat(700_000);
    for n in 0..6 {
        assert_eq!(one(&store, rows(A, n, n + 1, &large)).await, Applied);
    }
    drop(store);
    // A thread of the service prepares the next one once the last is more than half full.
    made.create("log-000000000004").unwrap().write_at(0, &[0; 1 << 20]).unwrap();
    assert_eq!(state(&open(&made.copy()).await, A).await.0, 6, "which is what a start expects");
    let last = "log-000000000003";
    for zeroed in [false, true] {
        let disk = made.copy();
        if zeroed {
            disk.alter(last, |segment| segment.fill(0))
        } else {
            disk.lose(last)
        }
        let message = unusable(try_open(&disk).map(drop));
        assert!(message.contains(&format!("{last} has no readable frame, and log-")), "{zeroed}: {message}");
    }
}

#[tokio::test]
async fn s06_a_file_that_cannot_be_read_is_named_and_refuses_the_store() {
    let disk = ModelDisk::default();
    three_shards(&disk).await;
    let record = disk.copy();
    record.fail(DiskCall::Read, Errno::IO);
    assert!(unusable(try_open(&record)).contains("disk/store"), "the record");
    let store = open(&disk).await;
    disk.fail(DiskCall::Read, Errno::IO);
    let sink = Box::new(|_: ShardKey, _: &[u8]| {});
    let error = store.load(vec![A, B, C], sink).await.unwrap_err();
    assert!(error.text().contains("disk/log-000000000001: "), "{}", error.text());
    assert_eq!(state(&store, A).await, is(3, "a0a1a2"), "the next read succeeds");
}

#[tokio::test]
async fn s06_a_log_damaged_anywhere_is_read_as_it_was_or_refused_and_never_panics() {
    let made = ModelDisk::default();
    three_shards(&made).await;
    let (mut refused, mut read) = (0, 0);
    for round in 0..400_u64 {
        let disk = made.copy();
        let random = |n: u64| xxh3_64(&[round.to_le_bytes(), n.to_le_bytes()].concat());
        disk.alter(SEGMENT, |segment| {
            // The last frame may count as unfinished.
            let end = frames(segment).last().unwrap().start;
            for n in 0..=(round % 8) {
                let at = usize::try_from(random(n) % end as u64).unwrap();
                segment[at] = random(n + 100).to_le_bytes()[0];
            }
        });
        for complaint in complaints(&disk).await {
            *if complaint.is_some() { &mut refused } else { &mut read } += 1;
        }
    }
    assert!(refused > 100 && read > 100, "both occur: {refused} {read}");
}

#[tokio::test]
async fn s06_a_log_that_is_lost_while_the_store_is_open_is_not_loaded_as_an_older_state() {
    for keep in [0, 2] {
        let disk = ModelDisk::default();
        let store = open(&disk).await;
        assert_eq!(one(&store, install(A, 1, 1, 0, "base")).await, Applied);
        for n in 1..5 {
            assert_eq!(apply(&store, &[rows(A, n, n + 1, "a"), rows(B, n - 1, n, "b")]).await, [Applied; 2]);
        }
        disk.alter(SEGMENT, |segment| {
            let end = frames(segment).get(keep).map_or(0, |frame| frame.start);
            // The base stays readable.
            let first = frames(segment)[0].end;
            segment[end.max(first)..].fill(0);
        });
        let found = load(&store, &[A, B]).await;
        assert!(found.values().all(|(at, _)| at.is_err()), "{keep}: {found:?}");
        assert_eq!(one(&store, rows(A, 5, 6, "x")).await, Applied, "what was loaded before is still ours");
    }
}

#[tokio::test]
async fn s06_a_damaged_record_of_the_store_is_refused() {
    let made = ModelDisk::default();
    three_shards(&made).await;
    let mut length = 0;
    made.alter("store", |bytes| length = bytes.len());
    for at in 0..length - 1 {
        let disk = made.copy();
        disk.alter("store", |bytes| bytes[at] ^= 1);
        let message = unusable(try_open(&disk));
        assert!(message.starts_with("disk/store "), "{message}");
    }
}

#[tokio::test]
async fn s10_foreign_files_are_rejected_and_not_changed() {
    let dir = dir();
    std::fs::write(dir.path().join("letter.txt"), "dear").unwrap();
    let message = unusable(FileStore::open(dir.path()));
    assert!(message.contains("holds letter.txt and no file store"), "{message}");
    assert!(message.contains(&dir.path().display().to_string()), "{message}");
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1, "nothing is added");

    let file = dir.path().join("letter.txt");
    let message = unusable(FileStore::open(&file));
    assert!(message.contains("cannot create the data directory"), "{message}");
    let message = unusable(FileStore::open(Path::new("/proc/hotpool")));
    assert!(message.contains("/proc/hotpool"), "{message}");

    let dir = super::dir();
    let path = dir.path().join("store");
    for junk in [&b""[..], b"x", &[7; 5000]] {
        std::fs::write(&path, junk).unwrap();
        let message = unusable(FileStore::open(dir.path()));
        assert!(message.contains("was not written by hotpool"), "{message}");
        assert_eq!(std::fs::read(&path).unwrap(), junk);
    }
}

#[tokio::test]
async fn s07_another_format_is_rejected() {
    let dir = dir();
    drop(opened(dir.path()).await);
    std::fs::write(dir.path().join("store"), "{\"format\":4,\"news\":1}\n0\n").unwrap();
    let message = unusable(FileStore::open(dir.path()));
    assert!(message.contains("has format 4; this program reads format 3"), "{message}");

    let old = super::dir();
    for name in ["hotpool.redb", "hotpool.redb.unsynced"] {
        std::fs::write(old.path().join(name), "redb").unwrap();
        let message = unusable(FileStore::open(old.path()));
        assert!(message.contains(&format!("holds {name}, a store in the format of an earlier version")), "{message}");
        assert_eq!(std::fs::read_dir(old.path()).unwrap().count(), 1, "nothing is added");
        std::fs::remove_file(old.path().join(name)).unwrap();
    }
}

#[tokio::test]
async fn a_crash_during_the_creation_does_not_block_the_next_one() {
    let dir = dir();
    for name in ["store.new", "log.new", "log-000000000001"] {
        std::fs::write(dir.path().join(name), [0; 100]).unwrap();
    }
    std::fs::write(dir.path().join("lock"), "4711").unwrap();
    let store = opened(&dir.path().join(".")).await;
    assert_eq!(one(&store, rows(A, 0, 1, "a")).await, Applied);
    assert!(!dir.path().join("store.new").exists() && !dir.path().join("log.new").exists());
}

#[tokio::test]
async fn a_second_open_fails_while_the_first_is_open() {
    let dir = dir();
    let store = opened(dir.path()).await;
    let message = unusable(FileStore::open(dir.path()));
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
    rlimit::setrlimit(rlimit::Resource::FSIZE, 3 << 20, unlimited.1).unwrap();
    let unavailable = loop {
        match store.apply(vec![rows(A, at, at + 1, &rows_a)]).await {
            Ok(outcomes) => assert_eq!(outcomes, [Applied]),
            Err(error) => break error,
        }
        at += 1;
    };
    assert!(
        matches!(&unavailable, StoreError::Unavailable(message) if message.contains("cannot write the log")),
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
