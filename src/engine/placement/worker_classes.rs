//! Which workers have the same labels and node, so that a claim which asks for certain ones looks at each such *profile*
//! once and not at each worker.
//!
//! Caveat: a fleet may have a label that tells every worker from every other. Only [`limits::WORKER_CLASSES_MAX`] profiles are kept
//! apart; workers beyond have the profile [`MIXED_CLASS`] and are looked at one by one.

use std::hash::{Hash as _, Hasher as _};
use std::sync::Arc;

use hashbrown::HashTable;
use xxhash_rust::xxh3::Xxh3;

use super::constraints::PlacementConstraints;
use crate::limits;
use crate::model::{WorkerRegistration, WorkerSpec};

/// The profile of workers that have none of their own.
pub const MIXED_CLASS: u32 = 0;

#[derive(Debug, Default)]
struct WorkerClass {
    /// One that has it. None: not in use.
    card: Option<Arc<WorkerRegistration>>,
    members: u32,
    /// The look at which it was asked last, and what came of it.
    last_query: (u64, bool),
}

/// The profiles of a shard.
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
    /// The profile of a worker with this registration, one more of which there is.
    pub fn join(&mut self, card: &Arc<WorkerRegistration>) -> u32 {
        let hash = class_hash(&card.spec);
        let same =
            |&at: &u32| self.all[at as usize].card.as_ref().is_some_and(|known| same_class(&known.spec, &card.spec));
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
        self.all[at as usize] = WorkerClass { card: Some(Arc::clone(card)), members: 1, last_query: (0, false) };
        let all = &self.all;
        let hash_of = |&at: &u32| all[at as usize].card.as_ref().map_or(0, |card| class_hash(&card.spec));
        self.by_hash.insert_unique(hash, at, hash_of);
        at
    }

    /// A worker has this profile no more.
    pub fn leave(&mut self, at: u32) {
        let profile = &mut self.all[at as usize];
        if at == MIXED_CLASS {
            return;
        }
        profile.members -= 1;
        if profile.members == 0
            && let Some(card) = profile.card.take()
        {
            if let Ok(entry) = self.by_hash.find_entry(class_hash(&card.spec), |&found| found == at) {
                entry.remove();
            }
            self.unused.push(at);
        }
    }

    /// A claim begins to ask.
    pub const fn begin_query(&mut self) {
        self.queries += 1;
    }

    /// Whether workers with this profile may hold the claim, node aside if `anywhere`; none: each for itself. Each profile
    /// is looked at once a claim.
    pub fn passes(&mut self, at: u32, wants: &PlacementConstraints, anywhere: bool) -> Option<bool> {
        let profile = &mut self.all[at as usize];
        let card = profile.card.as_ref()?;
        if profile.last_query.0 != self.queries {
            let passes = if anywhere { wants.allows_ignoring_node(&card.spec) } else { wants.allows(&card.spec) };
            profile.last_query = (self.queries, passes);
        }
        Some(profile.last_query.1)
    }
}

/// Hash of what a profile is made of.
fn class_hash(spec: &WorkerSpec) -> u64 {
    let mut hasher = Xxh3::new();
    (&spec.labels, &spec.node).hash(&mut hasher);
    hasher.finish()
}

fn same_class(one: &WorkerSpec, two: &WorkerSpec) -> bool {
    one.node == two.node && one.labels == two.labels
}
