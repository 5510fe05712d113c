//! Stores of the behaviors that run on Redis too: three masters, and a key prefix for each.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};

use hotpool::environment::Environment;
use hotpool::persist::store::SharedStore;
use hotpool::persist::store::redis::{RedisOptions, RedisStore};
use tempfile::TempDir;

use crate::servers::Cluster;
use crate::stores::options;

/// Cluster of the tests of this process that run at the moment; it ends with the last of them.
static SHARED: Mutex<Weak<Cluster>> = Mutex::new(Weak::new());
static PREFIXES: AtomicU64 = AtomicU64::new(0);

/// Key prefix with the records under it.
pub struct StoreLocation {
    cluster: Arc<Cluster>,
    prefix: String,
    dir: TempDir,
}

impl StoreLocation {
    /// Creates a prefix without records.
    pub fn empty() -> Self {
        let mut shared = SHARED.lock().unwrap_or_else(PoisonError::into_inner);
        let cluster = shared.upgrade().unwrap_or_else(|| Arc::new(Cluster::start(3, 0, &[])));
        *shared = Arc::downgrade(&cluster);
        Self::on(cluster)
    }

    fn on(cluster: Arc<Cluster>) -> Self {
        let prefix = format!("location{}", PREFIXES.fetch_add(1, Ordering::Relaxed));
        Self { cluster, prefix, dir: TempDir::new().unwrap() }
    }

    pub fn open(&self) -> SharedStore {
        // The test controls its clock, but renewals use the real one: no lease may end while minutes are skipped.
        let (key_prefix, lease_ms) = (self.prefix.clone(), 3_600_000);
        let options = RedisOptions { key_prefix, lease_ms, ..options(&self.cluster.url(), &self.dir) };
        Arc::new(RedisStore::open(options, Environment::system()).expect("open"))
    }

    /// Copies all keys to another prefix, which is outside of their hash tags, so that each stays on its server. The copy of
    /// the directory has the same id, so that its owner need not wait for the lease.
    pub fn copy(&self) -> Self {
        let to = Self::on(Arc::clone(&self.cluster));
        for entry in std::fs::read_dir(self.dir.path()).unwrap() {
            let entry = entry.unwrap();
            std::fs::copy(entry.path(), to.dir.path().join(entry.file_name())).unwrap();
        }
        for master in &self.cluster.masters {
            for key in master.query::<Vec<String>>(&["KEYS", &format!("{}:*", self.prefix)]) {
                let copied: bool = master.query(&["COPY", &key, &key.replacen(&self.prefix, &to.prefix, 1)]);
                assert!(copied, "{key}");
            }
        }
        to
    }
}
