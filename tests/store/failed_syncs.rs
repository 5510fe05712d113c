//! Failing disks. Data of a failed sync is lost after a power failure, whatever the file shows until then.

use std::io;
use std::sync::Arc;

use hotpool::environment::Environment;
use hotpool::persist::store::file::{FileStore, SegmentSettings, SegmentUpkeep};
use hotpool::persist::store::{FenceSpan, Store, StoreError};
use rustix::io::Errno;
use uuid::Uuid;

use super::model_disk::{DiskCall, ModelDisk};
use super::{A, Applied, Duplicate, apply, is, one, rows, state, unusable};

const SEGMENT: &str = "log-000000000001";
const UNSYNCED: &str = "log-000000000001.unsynced";
const ERRNOS: [Errno; 5] = [Errno::NOSPC, Errno::DQUOT, Errno::INTR, Errno::NOMEM, Errno::IO];

pub(super) fn try_open(disk: &ModelDisk) -> Result<FileStore, StoreError> {
    let settings = SegmentSettings { upkeep: SegmentUpkeep::Inline, ..SegmentSettings::default() };
    FileStore::open_on(Arc::new(disk.clone()), settings, Environment::system())
}

/// Opens the store like a process that starts here.
pub(super) async fn open(disk: &ModelDisk) -> FileStore {
    let store = try_open(disk).expect("open");
    store.take_over(Uuid::now_v7()).await.expect("take over");
    store
}

/// State of a shard that a power failure leaves.
async fn after_a_power_failure(disk: &ModelDisk) -> (u64, String) {
    state(&open(&disk.after_power_failure(0)).await, A).await
}

fn has(disk: &ModelDisk, name: &str) -> bool {
    disk.names().iter().any(|found| found == name)
}

#[tokio::test]
async fn s15_data_of_a_failed_sync_is_not_served_until_it_was_rewritten() {
    for errno in ERRNOS {
        let disk = ModelDisk::default();
        let store = open(&disk).await;
        assert_eq!(one(&store, rows(A, 0, 1, "a")).await, Applied);
        disk.fail(DiskCall::Sync, errno);
        let second = rows(A, 1, 2, "b");
        for _ in 0..3 {
            let why = unusable(store.apply(vec![second.clone()]).await);
            assert!(why.contains("a sync of") && why.contains(&io::Error::from(errno).to_string()), "{why}");
        }
        unusable(store.load(vec![A], Box::new(|_, _| {})).await);
        unusable(store.raise_fence_ceiling(FenceSpan { floor: 0, ceiling: 9 }).await);
        assert!(has(&disk, UNSYNCED) && !has(&disk, SEGMENT));
        assert_eq!(after_a_power_failure(&disk).await, is(1, "a"), "{errno:?}: the disk has what was acknowledged");
        drop(store);
        // Without a power failure the file shows data that the disk lacks. All later writes must reach the disk.
        let store = open(&disk).await;
        assert_eq!(state(&store, A).await, is(2, "ab"), "as the file shows it");
        assert_eq!(after_a_power_failure(&disk).await, is(2, "ab"), "{errno:?}: shown, so it is stored");
        assert!([Applied, Duplicate].contains(&one(&store, second).await));
        assert_eq!(one(&store, rows(A, 2, 3, "c")).await, Applied);
        assert_eq!(after_a_power_failure(&disk).await, is(3, "abc"), "{errno:?}");
        assert!(!has(&disk, UNSYNCED) && has(&disk, SEGMENT));
    }
}

#[tokio::test]
async fn s15_a_call_that_fails_before_a_sync_is_repeated_and_stored() {
    // Large enough for a new segment.
    let large = "b".repeat(3 << 20);
    for call in [DiskCall::Create, DiskCall::Write, DiskCall::Sync, DiskCall::Rename, DiskCall::SyncNames] {
        let disk = ModelDisk::default();
        let store = open(&disk).await;
        assert_eq!(one(&store, rows(A, 0, 1, "a")).await, Applied);
        let second = rows(A, 1, 2, &large);
        // The first sync is that of the new segment, whose name nobody knows yet.
        disk.fail(call, Errno::NOSPC);
        let unavailable = store.apply(vec![second.clone()]).await;
        assert!(
            matches!(&unavailable, Err(StoreError::Unavailable(why)) if why.contains("cannot write the log")),
            "{call:?}: {unavailable:?}"
        );
        assert!(!disk.has_fault(), "{call:?}");
        assert_eq!(after_a_power_failure(&disk).await, is(1, "a"), "{call:?}");
        assert_eq!(apply(&store, &[second]).await, [Applied], "{call:?}");
        assert_eq!(after_a_power_failure(&disk).await, (2, "a".to_owned() + &large), "{call:?}");
        drop(store);
        assert_eq!(state(&open(&disk).await, A).await, (2, "a".to_owned() + &large), "{call:?}");
    }
}

#[tokio::test]
async fn s15_a_frame_written_by_halves_is_written_again() {
    let disk = ModelDisk::default();
    let store = open(&disk).await;
    assert_eq!(one(&store, rows(A, 0, 1, "a")).await, Applied);
    disk.fail(DiskCall::Write, Errno::NOSPC);
    assert!(store.apply(vec![rows(A, 1, 2, &"x".repeat(10_000))]).await.is_err());
    // A shorter frame over the remains of the longer one.
    assert_eq!(one(&store, rows(A, 1, 3, "b")).await, Applied);
    assert_eq!(one(&store, rows(A, 3, 4, "c")).await, Applied);
    assert_eq!(after_a_power_failure(&disk).await, is(4, "abc"));
}

#[tokio::test]
async fn s15_a_failure_during_the_creation_or_the_repair_leaves_no_partial_state() {
    let calls = [DiskCall::Create, DiskCall::Write, DiskCall::Sync, DiskCall::Rename, DiskCall::SyncNames];
    let disk = ModelDisk::default();
    for call in calls {
        disk.fail(call, Errno::NOSPC);
        try_open(&disk).expect_err("it cannot be made");
        assert!(!has(&disk, "store"), "{call:?}");
    }
    let store = open(&disk).await;
    assert_eq!(one(&store, rows(A, 0, 1, "a")).await, Applied);
    disk.fail(DiskCall::Sync, Errno::IO);
    unusable(store.apply(vec![rows(A, 1, 2, "b")]).await);
    drop(store);
    for call in calls {
        let broken = disk.copy();
        broken.fail(call, Errno::IO);
        try_open(&broken).expect_err("it cannot be rewritten");
        // Again, now without a failure.
        let store = open(&broken).await;
        let (at, read) = state(&store, A).await;
        assert_eq!((at as usize, read.as_str()), (read.len(), &"ab"[..read.len()]), "{call:?}");
        assert_eq!(one(&store, rows(A, at, at + 1, "c")).await, Applied, "{call:?}");
        assert_eq!(after_a_power_failure(&broken).await, (at + 1, read + "c"), "{call:?}");
        assert!(!has(&broken, UNSYNCED), "{call:?}");
    }
}

#[tokio::test]
async fn s15_what_a_killed_process_wrote_is_synced_before_it_is_shown() {
    let disk = ModelDisk::default();
    let store = open(&disk).await;
    assert_eq!(one(&store, rows(A, 0, 1, "a")).await, Applied);
    // Killed between the write and the sync of the second frame: the sync never takes place.
    disk.fail_power_after(1, 0);
    store.apply(vec![rows(A, 1, 2, "b")]).await.expect_err("the process is gone");
    drop(store);
    let disk = disk.revive();
    let store = open(&disk).await;
    assert_eq!(state(&store, A).await, is(2, "ab"), "the page cache has it");
    for seed in 0..8 {
        assert_eq!(state(&open(&disk.after_power_failure(seed)).await, A).await, is(2, "ab"), "so the disk must");
    }
}
