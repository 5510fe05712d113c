//! Which workers have the same labels and node, so that a claim which asks for certain ones looks at each such *profile*
//! once and not at each worker.
//!
//! Caveat: a fleet may have a label that tells every worker from every other. Only [`limits::SHAPES_MAX`] profiles are kept
//! apart; workers beyond have the profile [`MIXED`] and are looked at one by one.

use std::hash::{Hash as _, Hasher as _};
use std::sync::Arc;

use hashbrown::HashTable;
use xxhash_rust::xxh3::Xxh3;

use super::constraints::Wants;
use crate::limits;
use crate::model::{WorkerCard, WorkerSpec};

/// The profile of workers that have none of their own.
pub const MIXED: u32 = 0;

#[derive(Debug, Default)]
struct Profile {
    /// One that has it. None: not in use.
    card: Option<Arc<WorkerCard>>,
    members: u32,
    /// The look at which it was asked last, and what came of it.
    asked: (u64, bool),
}

/// The profiles of a shard.
#[derive(Debug)]
pub struct Profiles {
    all: Vec<Profile>,
    by_look: HashTable<u32>,
    unused: Vec<u32>,
    looks: u64,
}

impl Default for Profiles {
    fn default() -> Self {
        Self { all: vec![Profile::default()], by_look: HashTable::new(), unused: Vec::new(), looks: 0 }
    }
}

impl Profiles {
    /// The profile of a worker with this registration, one more of which there is.
    pub fn join(&mut self, card: &Arc<WorkerCard>) -> u32 {
        let hash = look(&card.spec);
        let same = |&at: &u32| self.all[at as usize].card.as_ref().is_some_and(|known| alike(&known.spec, &card.spec));
        if let Some(&at) = self.by_look.find(hash, same) {
            self.all[at as usize].members += 1;
            return at;
        }
        if self.by_look.len() >= limits::SHAPES_MAX {
            return MIXED;
        }
        let at = self.unused.pop().unwrap_or_else(|| {
            self.all.push(Profile::default());
            (self.all.len() - 1) as u32
        });
        self.all[at as usize] = Profile { card: Some(Arc::clone(card)), members: 1, asked: (0, false) };
        let all = &self.all;
        let hash_of = |&at: &u32| all[at as usize].card.as_ref().map_or(0, |card| look(&card.spec));
        self.by_look.insert_unique(hash, at, hash_of);
        at
    }

    /// A worker has this profile no more.
    pub fn leave(&mut self, at: u32) {
        let profile = &mut self.all[at as usize];
        if at == MIXED {
            return;
        }
        profile.members -= 1;
        if profile.members == 0
            && let Some(card) = profile.card.take()
        {
            if let Ok(entry) = self.by_look.find_entry(look(&card.spec), |&found| found == at) {
                entry.remove();
            }
            self.unused.push(at);
        }
    }

    /// A claim begins to ask.
    pub const fn begin_look(&mut self) {
        self.looks += 1;
    }

    /// Whether workers with this profile may hold the claim, node aside if `anywhere`; none: each for itself. Each profile
    /// is looked at once a claim.
    pub fn passes(&mut self, at: u32, wants: &Wants, anywhere: bool) -> Option<bool> {
        let profile = &mut self.all[at as usize];
        let card = profile.card.as_ref()?;
        if profile.asked.0 != self.looks {
            let passes = if anywhere { wants.allows_but_node(&card.spec) } else { wants.allows(&card.spec) };
            profile.asked = (self.looks, passes);
        }
        Some(profile.asked.1)
    }
}

/// Hash of what a profile is made of.
fn look(spec: &WorkerSpec) -> u64 {
    let mut hasher = Xxh3::new();
    (&spec.labels, &spec.node).hash(&mut hasher);
    hasher.finish()
}

fn alike(one: &WorkerSpec, two: &WorkerSpec) -> bool {
    one.node == two.node && one.labels == two.labels
}
