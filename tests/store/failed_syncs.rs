//! Failing disks. Data of a failed sync is lost after a power failure, whatever the file shows until then.

use std::io;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use hotpool::persist::store::redb::{DiskOperation, DiskProbe, RedbStore};
use hotpool::persist::store::{FenceSpan, Store, StoreError};
use rustix::io::Errno;
use tempfile::TempDir;
use uuid::Uuid;

use super::{A, Applied, Duplicate, apply, dir, is, one, opened, rows, state, unusable};

/// File as stored on the disk: calls take effect once a later sync succeeded, and never if it failed.
#[derive(Default)]
struct Platter {
    durable: Vec<u8>,
    pending: Vec<Pending>,
    /// Error of the next call of this kind.
    fault: Option<(Kind, Errno)>,
}

enum Pending {
    Write(usize, Vec<u8>),
    SetLen(usize),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Write,
    SetLen,
    Sync,
    SyncNames,
}

impl Platter {
    fn call(&mut self, call: DiskOperation<'_>) -> io::Result<()> {
        let kind = match call {
            DiskOperation::Write(..) => Kind::Write,
            DiskOperation::SetLen(_) => Kind::SetLen,
            DiskOperation::Sync => Kind::Sync,
            DiskOperation::SyncNames => Kind::SyncNames,
        };
        let fault = self.fault.take_if(|(which, _)| *which == kind);
        match call {
            _ if fault.is_some() && kind != Kind::Sync => {}
            DiskOperation::Write(offset, bytes) => self.pending.push(Pending::Write(offset as usize, bytes.to_vec())),
            DiskOperation::SetLen(len) => self.pending.push(Pending::SetLen(len as usize)),
            DiskOperation::SyncNames => {}
            DiskOperation::Sync => {
                let pending = std::mem::take(&mut self.pending);
                if fault.is_none() {
                    pending.into_iter().for_each(|call| self.settle(call));
                }
            }
        }
        fault.map_or(Ok(()), |(_, errno)| Err(errno.into()))
    }

    fn settle(&mut self, call: Pending) {
        match call {
            Pending::SetLen(len) => self.durable.resize(len, 0),
            Pending::Write(offset, bytes) => {
                let end = offset + bytes.len();
                if self.durable.len() < end {
                    self.durable.resize(end, 0);
                }
                self.durable[offset..end].copy_from_slice(&bytes);
            }
        }
    }
}

/// Directory of a store on a failing disk.
struct FailingDirectory {
    dir: TempDir,
    platter: Arc<Mutex<Platter>>,
}

impl FailingDirectory {
    fn empty() -> Self {
        Self { dir: dir(), platter: Arc::default() }
    }

    fn platter(&self) -> MutexGuard<'_, Platter> {
        self.platter.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn fail(&self, kind: Kind, errno: Errno) {
        self.platter().fault = Some((kind, errno));
    }

    fn try_open(&self) -> Result<RedbStore, StoreError> {
        let platter = Arc::clone(&self.platter);
        let probe: DiskProbe = Arc::new(move |call| platter.lock().unwrap_or_else(PoisonError::into_inner).call(call));
        RedbStore::open_with_probe(self.dir.path(), probe)
    }

    /// Opens the store like a process that starts here.
    async fn open(&self) -> RedbStore {
        let store = self.try_open().expect("open");
        store.take_over(Uuid::now_v7()).await.expect("take over");
        store
    }

    /// State of a shard that a power failure leaves.
    async fn after_a_power_failure(&self) -> (u64, String) {
        let left = dir();
        std::fs::write(left.path().join("hotpool.redb"), &self.platter().durable).unwrap();
        state(&opened(left.path()).await, A).await
    }

    fn has(&self, name: &str) -> bool {
        Path::new(self.dir.path()).join(name).exists()
    }
}

const ERRNOS: [Errno; 5] = [Errno::NOSPC, Errno::DQUOT, Errno::INTR, Errno::NOMEM, Errno::IO];

#[tokio::test]
async fn s15_data_of_a_failed_sync_is_not_served_until_it_was_rewritten() {
    for errno in ERRNOS {
        let directory = FailingDirectory::empty();
        let store = directory.open().await;
        assert_eq!(one(&store, rows(A, 0, 1, "a")).await, Applied);
        directory.fail(Kind::Sync, errno);
        let second = rows(A, 1, 2, "b");
        for _ in 0..3 {
            let why = unusable(store.apply(vec![second.clone()]).await);
            assert!(why.contains("a sync of") && why.contains(&io::Error::from(errno).to_string()), "{why}");
        }
        unusable(store.load(vec![A], Box::new(|_, _| {})).await);
        unusable(store.raise_fence_ceiling(FenceSpan { floor: 0, ceiling: 9 }).await);
        assert_eq!(
            directory.after_a_power_failure().await,
            is(1, "a"),
            "{errno:?}: the disk has what was acknowledged"
        );
        drop(store);
        // Without a crash the file shows data that the disk lacks. All later writes must reach the disk.
        let store = directory.open().await;
        let shown = state(&store, A).await;
        assert!([is(1, "a"), is(2, "ab")].contains(&shown), "{shown:?}");
        assert!([Applied, Duplicate].contains(&one(&store, second).await));
        assert_eq!(directory.after_a_power_failure().await, is(2, "ab"), "{errno:?}: acknowledged, so it is stored");
        assert_eq!(one(&store, rows(A, 2, 3, "c")).await, Applied);
        assert_eq!(directory.after_a_power_failure().await, is(3, "abc"), "{errno:?}");
        assert!(!directory.has("hotpool.redb.unsynced") && !directory.has("hotpool.redb.new"));
    }
}

#[tokio::test]
async fn s15_a_write_that_fails_before_a_sync_is_retried_and_stored() {
    for kind in [Kind::Write, Kind::SetLen] {
        let directory = FailingDirectory::empty();
        let store = directory.open().await;
        assert_eq!(one(&store, rows(A, 0, 1, "a")).await, Applied);
        // Large enough to make the file grow.
        let large = "b".repeat(8 << 20);
        let second = rows(A, 1, 2, &large);
        directory.fail(kind, Errno::NOSPC);
        let unavailable = store.apply(vec![second.clone()]).await;
        assert!(
            matches!(&unavailable, Err(StoreError::Unavailable(why)) if why.contains("hotpool.redb")),
            "{kind:?}: {unavailable:?}"
        );
        assert_eq!(apply(&store, &[second]).await, [Applied], "{kind:?}");
        assert_eq!(directory.after_a_power_failure().await, (2, "a".to_owned() + &large), "{kind:?}");
    }
}

#[tokio::test]
async fn s15_a_failed_sync_while_the_file_is_closed_or_copied_leaves_no_partial_state() {
    let directory = FailingDirectory::empty();
    for kind in [Kind::Sync, Kind::SyncNames] {
        directory.fail(kind, Errno::NOSPC);
        directory.try_open().expect_err("it cannot be made");
        assert!(!directory.has("hotpool.redb"), "{kind:?}");
    }
    let store = directory.open().await;
    assert_eq!(one(&store, rows(A, 0, 1, "a")).await, Applied);
    // This failure is not reported to any caller.
    directory.fail(Kind::Sync, Errno::IO);
    drop(store);
    assert!(directory.has("hotpool.redb.unsynced") && !directory.has("hotpool.redb"));
    for errno in ERRNOS {
        directory.fail(Kind::Sync, errno);
        directory.try_open().expect_err("it cannot be rewritten");
        assert!(directory.has("hotpool.redb.unsynced") && !directory.has("hotpool.redb"), "{errno:?}");
    }
    directory.fail(Kind::SyncNames, Errno::IO);
    directory.try_open().expect_err("its name may not be durable");
    assert!(directory.has("hotpool.redb.unsynced") && !directory.has("hotpool.redb"));
    let store = directory.open().await;
    assert_eq!(state(&store, A).await, is(1, "a"));
    assert_eq!(one(&store, rows(A, 1, 2, "b")).await, Applied);
    assert_eq!(directory.after_a_power_failure().await, is(2, "ab"));
}
