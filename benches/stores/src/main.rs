//! Commits of embedded stores beside a bare write and sync, one client, on the same disk in alternating rounds.
//!
//! `cargo run --release -- DIR`. Each candidate stores a value of the given size per commit, durably before the next. Output: the
//! median, the 99th percentile and the ratio to the bare loop, over all rounds.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;
use std::time::{Duration, Instant};

/// Commits of one candidate in one round.
const COMMITS: usize = 300;
/// Rounds, in each of which all candidates run.
const ROUNDS: usize = 7;
/// Size of a preallocated file.
const FILE_BYTES: u64 = 64 << 20;

type Commit = Box<dyn FnMut(&[u8])>;

/// File of zeros that are on the disk, so that overwriting them changes no metadata.
fn zeros(path: &Path) -> File {
    let file = OpenOptions::new().read(true).write(true).create_new(true).open(path).unwrap();
    let block = vec![0; 1 << 20];
    for at in (0..FILE_BYTES).step_by(block.len()) {
        file.write_all_at(&block, at).unwrap();
    }
    file.sync_all().unwrap();
    file
}

fn bare(path: &Path) -> Commit {
    let file = zeros(path);
    let mut at = 0;
    Box::new(move |value| {
        file.write_all_at(value, at).unwrap();
        rustix::fs::fdatasync(&file).unwrap();
        at = (at + value.len() as u64) % (FILE_BYTES - (1 << 20));
    })
}

/// Aligned copy in whole blocks, past the page cache, with a sync in the same call.
fn direct(path: &Path) -> Commit {
    drop(zeros(path));
    let flags = (rustix::fs::OFlags::DIRECT | rustix::fs::OFlags::DSYNC).bits() as i32;
    let file = OpenOptions::new().write(true).custom_flags(flags).open(path).unwrap();
    let mut buffer = vec![0_u8; (1 << 20) + 4096];
    let mut at = 0;
    Box::new(move |value| {
        let start = buffer.as_ptr().align_offset(4096);
        let length = value.len().next_multiple_of(4096);
        buffer[start..start + value.len()].copy_from_slice(value);
        file.write_all_at(&buffer[start..start + length], at).unwrap();
        // A log would write the last block again until it is full.
        at = (at + value.len() as u64) % (FILE_BYTES - (1 << 20)) / 4096 * 4096;
    })
}

fn append(path: &Path) -> Commit {
    let file = File::create_new(path).unwrap();
    let mut at = 0;
    Box::new(move |value| {
        file.write_all_at(value, at).unwrap();
        rustix::fs::fdatasync(&file).unwrap();
        at += value.len() as u64;
    })
}

/// The store of this project: one shard, one batch a call. It never gets a snapshot, so its segments are new ones, which a thread
/// of its own prepares meanwhile.
fn file_store(path: &Path) -> Commit {
    use hotpool::persist::store::file::FileStore;
    use hotpool::persist::store::{ShardKey, Store as _, WriteBatch, WriteKind, WriteOutcome};
    std::fs::create_dir(path).unwrap();
    let store = FileStore::open(path).unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    runtime.block_on(store.take_over(uuid::Uuid::from_u128(1))).unwrap();
    let shard = ShardKey { pool: 1, shard: 0 };
    let mut position = 0;
    Box::new(move |value| {
        let kind = WriteKind::Rows(bytes::Bytes::copy_from_slice(value));
        let batch = WriteBatch { shard, from: position, to: position + 1, kind };
        let outcomes = store.apply_blocking(&[batch]).unwrap().unwrap();
        assert_eq!(outcomes, [WriteOutcome::Ok]);
        position += 1;
    })
}

fn redb(path: &Path) -> Commit {
    const LOG: redb::TableDefinition<'_, u64, &[u8]> = redb::TableDefinition::new("log");
    let db = redb::Database::create(path).unwrap();
    let mut position = 0;
    Box::new(move |value| {
        let write = db.begin_write().unwrap();
        write.open_table(LOG).unwrap().insert(position, value).unwrap();
        write.commit().unwrap();
        position += 1;
    })
}

fn raft_engine(path: &Path) -> Commit {
    use raft_engine::{Config, Engine, LogBatch, ReadableSize};
    let config = Config {
        dir: path.to_str().unwrap().to_owned(),
        enable_log_recycle: true,
        prefill_for_recycle: true,
        target_file_size: ReadableSize::mb(16),
        purge_threshold: ReadableSize::mb(64),
        ..Config::default()
    };
    let engine = Engine::open(config).unwrap();
    let mut position = 0_u64;
    Box::new(move |value| {
        let mut batch = LogBatch::default();
        batch.put(1, position.to_be_bytes().to_vec(), value.to_vec()).unwrap();
        engine.write(&mut batch, true).unwrap();
        position += 1;
    })
}

fn fjall(path: &Path) -> Commit {
    let db = fjall::Database::builder(path).open().unwrap();
    let log = db.keyspace("log", fjall::KeyspaceCreateOptions::default).unwrap();
    let mut position = 0_u64;
    Box::new(move |value| {
        let mut batch = db.batch().durability(Some(fjall::PersistMode::SyncData));
        batch.insert(&log, position.to_be_bytes(), value);
        batch.commit().unwrap();
        position += 1;
    })
}

fn okaywal(path: &Path) -> Commit {
    let log = okaywal::WriteAheadLog::recover(path, okaywal::LogVoid).unwrap();
    Box::new(move |value| {
        let mut entry = log.begin_entry().unwrap();
        entry.write_chunk(value).unwrap();
        entry.commit().unwrap();
    })
}

fn percentile(sorted: &[Duration], share: f64) -> f64 {
    sorted[((sorted.len() - 1) as f64 * share) as usize].as_secs_f64() * 1e6
}

fn main() {
    let dir = std::env::args().nth(1).expect("a directory on the disk to be measured");
    let dir = Path::new(&dir).join("embedded-stores");
    std::fs::create_dir_all(&dir).unwrap();
    for bytes in [300, 4_096, 65_536] {
        let value = vec![0x5a; bytes];
        let path = |name: &str| dir.join(format!("{name}-{bytes}"));
        let mut candidates: Vec<(&str, Commit, Vec<Duration>)> = vec![
            ("bare", bare(&path("bare")), vec![]),
            ("direct", direct(&path("direct")), vec![]),
            ("append", append(&path("append")), vec![]),
            ("hotpool", file_store(&path("hotpool")), vec![]),
            ("redb", redb(&path("redb")), vec![]),
            ("raft-engine", raft_engine(&path("raft-engine")), vec![]),
            ("fjall", fjall(&path("fjall")), vec![]),
            ("okaywal", okaywal(&path("okaywal")), vec![]),
        ];
        for _ in 0..ROUNDS {
            for (_, commit, times) in &mut candidates {
                for _ in 0..COMMITS {
                    let start = Instant::now();
                    commit(&value);
                    times.push(start.elapsed());
                }
            }
        }
        let mut bare_us = 0.0;
        for (name, _, times) in &mut candidates {
            times.sort_unstable();
            let (p50, p99) = (percentile(times, 0.5), percentile(times, 0.99));
            if *name == "bare" {
                bare_us = p50;
            }
            println!("{bytes:>6} B  {name:<12} p50 {p50:>7.0} us  p99 {p99:>7.0} us  {:.2} x bare", p50 / bare_us);
        }
    }
    std::fs::remove_dir_all(&dir).unwrap();
}
