//! Catalog of all pools and quotas. Its record stream is like a shard's, with one row for each, but it needs no actor: it
//! changes rarely, and changes are serialized by a lock.

use parking_lot::{Mutex, MutexGuard};
use std::collections::BTreeMap;
use std::sync::{Arc, Weak};

use futures::future::{BoxFuture, FutureExt as _, ready};

use crate::model::{HASH_VERSION, PoolName, PoolSpec, Quota, Seq};
use crate::persist::journal::{Journal, Outbox, RowSource};
use crate::persist::row::{self, PoolRow, QuotaRow, RowKind};
use crate::persist::store::ShardKey;

/// Rows of the catalog.
#[derive(Debug, Default)]
pub struct CatalogRows {
    /// Rows of pools by uid.
    pub pools: BTreeMap<u64, PoolRow>,
    /// Quotas by name, or by row id while they are being loaded.
    pub quotas: BTreeMap<String, QuotaRow>,
}

/// Rows of the catalog, with the outbox that brings them to the store.
#[derive(Debug)]
pub struct PoolCatalog {
    rows: Mutex<CatalogRows>,
    outbox: Arc<Outbox>,
}

impl PoolCatalog {
    /// Creates a catalog whose `rows` the store has at `at`.
    #[must_use]
    pub fn new(journal: &Arc<Journal>, at: Seq, rows: CatalogRows) -> Arc<Self> {
        let outbox = Outbox::new(journal, ShardKey::CATALOG, at);
        let catalog = Arc::new(Self { rows: Mutex::new(rows), outbox });
        let source: Weak<dyn RowSource> = Arc::downgrade(&catalog) as Weak<dyn RowSource>;
        catalog.outbox.attach(source);
        catalog
    }

    /// Finds the row of the pool of that name.
    #[must_use]
    pub fn find(&self, name: &PoolName) -> Option<PoolRow> {
        self.lock().pools.values().find(|row| row.name == name.as_str()).cloned()
    }

    /// Puts a pool's row; [`Self::wait_stored`] of the result waits until the store has it.
    pub fn put(&self, row: PoolRow) -> Seq {
        self.change(|rows, out| {
            row::put_pool(out, &row);
            rows.pools.insert(row.uid, row);
        })
    }

    /// Removes a pool's row, as [`Self::put`] puts it.
    pub fn remove(&self, uid: u64) -> Seq {
        self.change(|rows, out| {
            row::put_deletion(out, RowKind::Pool, &uid.to_string());
            rows.pools.remove(&uid);
        })
    }

    /// Puts or removes the quota of that name.
    pub fn put_quota(&self, name: &str, quota: Option<&Quota>) -> Seq {
        self.change(|rows, out| match quota {
            Some(quota) => {
                let quota_json = serde_json::to_string(quota).expect("a quota is plain data");
                let row = QuotaRow { name: name.to_owned(), quota_json };
                row::put_quota(out, &row);
                rows.quotas.insert(name.to_owned(), row);
            }
            None => {
                row::put_quota_deletion(out, name);
                rows.quotas.remove(name);
            }
        })
    }

    fn change(&self, change: impl FnOnce(&mut CatalogRows, &mut Vec<u8>)) -> Seq {
        // The lock makes change and append one step; nothing in it waits.
        let mut rows = self.lock();
        let seq = self.outbox.appended_seq() + 1;
        self.outbox.append(seq, None, |out| {
            change(&mut rows, out);
            1
        });
        seq
    }

    /// Waits until the store has the change. False: it never will.
    pub async fn wait_stored(&self, seq: Seq) -> bool {
        self.outbox.wait_stored(seq).await
    }

    /// Outbox of the catalog.
    #[must_use]
    pub const fn outbox(&self) -> &Arc<Outbox> {
        &self.outbox
    }

    fn lock(&self) -> MutexGuard<'_, CatalogRows> {
        self.rows.lock()
    }
}

impl RowSource for PoolCatalog {
    // Callers wait on the outbox itself.
    fn on_progress(&self) {}

    fn snapshot_rows(&self, _from: u32, _bytes: usize) -> BoxFuture<'static, Option<(Vec<u8>, Option<u32>)>> {
        // At most `POOLS_MAX` and `QUOTAS_MAX` rows: one chunk.
        let mut out = Vec::new();
        let rows = self.lock();
        rows.pools.values().for_each(|row| row::put_pool(&mut out, row));
        rows.quotas.values().for_each(|row| row::put_quota(&mut out, row));
        drop(rows);
        ready(Some((out, None))).boxed()
    }
}

/// Row of a pool that is not being deleted.
#[must_use]
pub fn pool_row(uid: u64, version: u64, name: &PoolName, spec: &PoolSpec) -> PoolRow {
    PoolRow {
        uid,
        version,
        name: name.as_str().into(),
        spec_json: serde_json::to_string(spec).expect("a spec is plain data"),
        hash_version: HASH_VERSION,
        deleting: false,
    }
}
