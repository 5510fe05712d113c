//! Classes of workers with the same labels and node, so that a claim with constraints examines each class once and
//! not each worker.
//!
//! Caveat: a fleet may have a label that is different for every worker. Only [`limits::WORKER_CLASSES_MAX`] classes
//! are kept apart; further workers have the class [`MIXED_CLASS`] and are examined one by one.

use std::hash::{Hash as _, Hasher as _};
use std::sync::Arc;

use hashbrown::HashTable;
use xxhash_rust::xxh3::Xxh3;

use super::constraints::{NodeFilter, PlacementConstraints};
use crate::limits;
use crate::model::{WorkerRegistration, WorkerSpec};

/// Class of workers that have no class of their own.
pub const MIXED_CLASS: u32 = 0;

#[derive(Debug, Default)]
struct WorkerClass {
    /// Registration of one member, which represents them all. None: unused.
    representative: Option<Arc<WorkerRegistration>>,
    members: u32,
    /// Last query that examined the class, and its result.
    last_query: (u64, bool),
}

/// Classes of a shard's workers.
#[derive(Debug)]
pub struct WorkerClasses {
    all: Vec<WorkerClass>,
    by_hash: HashTable<u32>,
    unused: Vec<u32>,
    queries: u64,
}

impl Default for WorkerClasses {
    fn default() -> Self {
        Self { all: vec![WorkerClass::default()], by_hash: HashTable::new(), unused: Vec::new(), queries: 0 }
    }
}

impl WorkerClasses {
    /// Class of a worker with this registration, which becomes a member.
    pub fn join(&mut self, registration: &Arc<WorkerRegistration>) -> u32 {
        let hash = class_hash(&registration.spec);
        let same = |&at: &u32| {
            let representative = self.all[at as usize].representative.as_ref();
            representative.is_some_and(|known| same_class(&known.spec, &registration.spec))
        };
        if let Some(&at) = self.by_hash.find(hash, same) {
            self.all[at as usize].members += 1;
            return at;
        }
        if self.by_hash.len() >= limits::WORKER_CLASSES_MAX {
            return MIXED_CLASS;
        }
        let at = self.unused.pop().unwrap_or_else(|| {
            self.all.push(WorkerClass::default());
            (self.all.len() - 1) as u32
        });
        let representative = Some(Arc::clone(registration));
        assert_eq!(self.all[at as usize].members, 0, "Q1: a class with members is reused");
        self.all[at as usize] = WorkerClass { representative, members: 1, last_query: (0, false) };
        let all = &self.all;
        let hash_of = |&at: &u32| all[at as usize].representative.as_ref().map_or(0, |known| class_hash(&known.spec));
        self.by_hash.insert_unique(hash, at, hash_of);
        at
    }

    /// Removes a worker from its class.
    pub fn leave(&mut self, at: u32) {
        let class = &mut self.all[at as usize];
        if at == MIXED_CLASS {
            return;
        }
        assert!(class.members > 0, "Q1: a worker leaves a class without members");
        class.members -= 1;
        if class.members == 0
            && let Some(representative) = class.representative.take()
        {
            if let Ok(entry) = self.by_hash.find_entry(class_hash(&representative.spec), |&found| found == at) {
                entry.remove();
            }
            self.unused.push(at);
            debug_assert!(self.unused.len() < self.all.len(), "Q1: more classes are unused than exist");
        }
    }

    /// Begins the query of a claim.
    pub const fn begin_query(&mut self) {
        self.queries += 1;
    }

    /// Whether workers of this class are acceptable; none: each must be examined. Each class is examined once per
    /// query.
    pub fn passes(&mut self, at: u32, constraints: &PlacementConstraints, node_filter: NodeFilter) -> Option<bool> {
        let class = &mut self.all[at as usize];
        let representative = class.representative.as_ref()?;
        if class.last_query.0 != self.queries {
            class.last_query = (self.queries, constraints.allows_with(node_filter, &representative.spec));
        }
        Some(class.last_query.1)
    }
}

/// Hash of the fields that define a class.
fn class_hash(spec: &WorkerSpec) -> u64 {
    let mut hasher = Xxh3::new();
    (&spec.labels, &spec.node).hash(&mut hasher);
    hasher.finish()
}

fn same_class(first: &WorkerSpec, second: &WorkerSpec) -> bool {
    first.node == second.node && first.labels == second.labels
}
