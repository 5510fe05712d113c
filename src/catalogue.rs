//! The catalogue: which pools there are. A record stream like a shard's, with one row a pool, but no actor: it
//! changes rarely, and one change waits for the other.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use futures::future::{BoxFuture, FutureExt as _, ready};

use crate::journal::{Journal, Outbox, Source};
use crate::model::{HASH_VERSION, PoolName, PoolSpec, Seq};
use crate::row::{self, PoolRow, RowKind};
use crate::store::ShardKey;

/// The rows of the catalogue and their way to the store.
#[derive(Debug)]
pub struct Catalogue {
    rows: Mutex<BTreeMap<u64, PoolRow>>,
    outbox: Arc<Outbox>,
}

impl Catalogue {
    /// As the store has it at `at`.
    #[must_use]
    pub fn new(journal: &Arc<Journal>, at: Seq, rows: BTreeMap<u64, PoolRow>) -> Arc<Self> {
        let outbox = Outbox::new(journal, ShardKey::CATALOGUE, at);
        let catalogue = Arc::new(Self { rows: Mutex::new(rows), outbox });
        let source: Weak<dyn Source> = Arc::downgrade(&catalogue) as Weak<dyn Source>;
        catalogue.outbox.attach(source);
        catalogue
    }

    /// The row of a pool of that name.
    #[must_use]
    pub fn find(&self, name: &PoolName) -> Option<PoolRow> {
        self.lock().values().find(|row| row.name == name.as_str()).cloned()
    }

    /// Puts a pool's row; [`Self::stored`] of the result waits until the store has it.
    pub fn put(&self, row: PoolRow) -> Seq {
        self.change(|rows, out| {
            row::put_pool(out, &row);
            rows.insert(row.uid, row);
        })
    }

    /// Removes a pool's row.
    pub fn remove(&self, uid: u64) -> Seq {
        self.change(|rows, out| {
            row::put_deletion(out, RowKind::Pool, &uid.to_string());
            rows.remove(&uid);
        })
    }

    fn change(&self, change: impl FnOnce(&mut BTreeMap<u64, PoolRow>, &mut Vec<u8>)) -> Seq {
        // The lock makes "change and hand over" one step; nothing in it waits.
        let mut rows = self.lock();
        let seq = self.outbox.handed() + 1;
        self.outbox.hand(seq, None, |out| {
            change(&mut rows, out);
            1
        });
        seq
    }

    /// Waits until the store has the change; false: it never will.
    pub async fn stored(&self, seq: Seq) -> bool {
        self.outbox.stored(seq).await
    }

    /// Its outbox.
    #[must_use]
    pub const fn outbox(&self) -> &Arc<Outbox> {
        &self.outbox
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<u64, PoolRow>> {
        self.rows.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Source for Catalogue {
    // Whoever waits for the catalogue waits on the outbox itself.
    fn progressed(&self) {}

    fn dump(&self, _from: u32, _bytes: usize) -> BoxFuture<'static, Option<(Vec<u8>, Option<u32>)>> {
        // At most `POOLS_MAX` rows: one piece.
        let mut out = Vec::new();
        for row in self.lock().values() {
            row::put_pool(&mut out, row);
        }
        ready(Some((out, None))).boxed()
    }
}

/// The row of a pool.
#[must_use]
pub fn row(uid: u64, name: &PoolName, spec: &PoolSpec, deleting: bool) -> PoolRow {
    PoolRow {
        uid,
        name: name.as_str().into(),
        spec_json: serde_json::to_string(spec).expect("a spec is plain data"),
        hash_version: HASH_VERSION,
        deleting,
    }
}
