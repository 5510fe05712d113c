//! Idle workers by class, for claims with constraints.
//!
//! Workers with the same labels, node and capacity are one *class*: for such a claim they differ only in order. Each
//! class has its own idle queue, so a claim examines one worker per class instead of the fleet: the classes that fit
//! are found by a representative, and of the heads of their queues the policy's first wins. A scan of all idle
//! workers in the policy's order would find the same worker, because the numbers by which workers became idle
//! (`idle_seq`) have one order across all queues.
//!
//! Example: policy `lifo`, idle with `idle_seq`: `a1:4 a2:9 b1:7 c1:8`, one class per letter. A claim for `a` or `b`
//! compares `a2:9` with `b1:7` and takes `a2`; the next one compares `a1:4` with `b1:7` and takes `b1`.
//!
//! As in [`super::idle_queue`], a queue is an intrusive list (`lifo`, `fifo`) or a vector (`random`), beside a tree
//! for workers with an end of life or inserted into the middle of the order. The links are here and not in the
//! workers: a shard builds all this for its first claim with constraints, and pays nothing before. A worker gets its
//! class when it first becomes idle, and keeps it until its registration changes or ends.
//!
//! Caveat: a fleet may have a label that is different for every worker. Only [`limits::WORKER_CLASSES_MAX`] classes
//! are kept apart; further workers share a *mixed* class and are examined one by one. That is slower, and takes the
//! same workers.

use std::hash::{Hash as _, Hasher as _};
use std::sync::Arc;

use hashbrown::HashTable;
use smallvec::SmallVec;
use xxhash_rust::xxh3::Xxh3;

use super::constraints::{PlacementConstraints, node_hash};
use super::expiries::{ExpiryForest, ExpiryTree, NEVER, SearchDirection};
use super::idle_queue::{order_key, splitmix64};
use crate::engine::NIL;
use crate::engine::invariants::InvariantViolation;
use crate::engine::workers::Worker;
use crate::limits;
use crate::model::{Fence, Millis, PlacementPolicy, WorkerRegistration, WorkerSpec};

/// Class of workers that have no class of their own.
const MIXED_CLASS: u32 = 0;

#[derive(Debug, Clone, Copy)]
struct IdleLink {
    /// Class of a worker that became idle since its registration; else `NIL`.
    class: u32,
    /// Neighbours in its queue; with policy `random`, `prev` is the position in the vector.
    prev: u32,
    next: u32,
}

const UNLINKED: IdleLink = IdleLink { class: NIL, prev: NIL, next: NIL };

#[derive(Debug)]
struct IdleClass {
    /// Registration of one member, which represents them all. None: mixed, or unused.
    representative: Option<Arc<WorkerRegistration>>,
    /// Hash of the members' node.
    node: u64,
    /// Number of members, idle or not.
    members: u32,
    idle: u32,
    /// Newest and oldest of the queue.
    head: u32,
    tail: u32,
    /// Unordered members, with policy `random` instead of the queue.
    unordered: Vec<u32>,
    /// Idle members that are in neither queue nor vector.
    expiring: ExpiryTree,
}

impl IdleClass {
    fn new(representative: Option<Arc<WorkerRegistration>>, node: u64) -> Self {
        let expiring = ExpiryTree::default();
        Self { representative, node, members: 0, idle: 0, head: NIL, tail: NIL, unordered: Vec::new(), expiring }
    }
}

/// Idle workers of a shard, by class.
#[derive(Debug)]
pub struct IdleClasses {
    policy: PlacementPolicy,
    links: Vec<IdleLink>,
    /// Ends of life of idle workers.
    expiries: ExpiryForest,
    classes: Vec<IdleClass>,
    by_hash: HashTable<u32>,
    unused: Vec<u32>,
}

impl IdleClasses {
    pub fn new(policy: PlacementPolicy) -> Self {
        let mixed = IdleClass::new(None, 0);
        Self {
            policy,
            links: Vec::new(),
            expiries: ExpiryForest::default(),
            classes: vec![mixed],
            by_hash: HashTable::new(),
            unused: Vec::new(),
        }
    }

    /// Adds a worker that became idle, after all others.
    pub fn push(&mut self, workers: &[Worker], at: u32, ends_ms: Millis) {
        self.enter(workers, at);
        self.expiries.set_ends_ms(at, ends_ms);
        if ends_ms == NEVER { self.link(at) } else { self.enter_tree(workers, at) }
    }

    fn enter_tree(&mut self, workers: &[Worker], at: u32) {
        let key = order_key(self.policy, workers[at as usize].idle_seq, self.expiries.ends_ms(at));
        let class = &mut self.classes[self.links[at as usize].class as usize];
        class.idle += 1;
        self.expiries.insert(&mut class.expiring, at, key);
    }

    /// Ensures that the worker has a class.
    fn enter(&mut self, workers: &[Worker], at: u32) {
        if self.links.len() <= at as usize {
            self.links.resize(workers.len(), UNLINKED);
        }
        if self.links[at as usize].class == NIL {
            self.links[at as usize].class = self.join(workers[at as usize].registration());
        }
    }

    /// Links a worker into the queue of its class, as the newest.
    fn link(&mut self, at: u32) {
        let links = &mut self.links;
        let class = &mut self.classes[links[at as usize].class as usize];
        class.idle += 1;
        if self.policy == PlacementPolicy::Random {
            links[at as usize].prev = class.unordered.len() as u32;
            class.unordered.push(at);
            return;
        }
        let next = std::mem::replace(&mut class.head, at);
        match next {
            NIL => class.tail = at,
            next => links[next as usize].prev = at,
        }
        (links[at as usize].prev, links[at as usize].next) = (NIL, next);
    }

    /// Moves a worker whose registration changed to another queue, if it is idle; its position is given by when it
    /// became idle.
    pub fn reindex(&mut self, workers: &[Worker], at: u32, ends_ms: Millis) {
        let idle = workers[at as usize].idle;
        if idle {
            self.remove(at);
        }
        self.forget(at);
        if idle {
            self.enter(workers, at);
            self.expiries.set_ends_ms(at, ends_ms);
            self.enter_tree(workers, at);
        }
    }

    /// Removes a worker that is no longer idle.
    pub fn remove(&mut self, at: u32) {
        let links = &mut self.links;
        let IdleLink { class, prev, next } = links[at as usize];
        let class = &mut self.classes[class as usize];
        debug_assert!(class.idle > 0, "Q1: a worker is removed from a class without idle ones");
        class.idle -= 1;
        if self.expiries.contains(at) {
            return self.expiries.remove(&mut class.expiring, at);
        }
        if self.policy == PlacementPolicy::Random {
            debug_assert_eq!(class.unordered.get(prev as usize), Some(&at), "Q1: a position names another worker");
            class.unordered.swap_remove(prev as usize);
            if let Some(&moved) = class.unordered.get(prev as usize) {
                links[moved as usize].prev = prev;
            }
            return;
        }
        debug_assert!(prev != NIL || class.head == at, "Q1: the first worker is not the head of its class");
        debug_assert!(next != NIL || class.tail == at, "Q1: the last worker is not the tail of its class");
        match prev {
            NIL => class.head = next,
            prev => links[prev as usize].next = next,
        }
        match next {
            NIL => class.tail = prev,
            next => links[next as usize].prev = prev,
        }
    }

    /// Forgets the class of a worker that is not idle and whose registration changes or ends.
    pub fn forget(&mut self, at: u32) {
        let Some(link) = self.links.get_mut(at as usize) else { return };
        let class = std::mem::replace(&mut link.class, NIL);
        if class == NIL {
            return;
        }
        let members = &mut self.classes[class as usize].members;
        assert!(*members > 0, "Q1: a worker leaves a class without members");
        *members -= 1;
        if *members > 0 || class == MIXED_CLASS {
            return;
        }
        if let Some(representative) = self.classes[class as usize].representative.take()
            && let Ok(entry) = self.by_hash.find_entry(class_hash(&representative.spec), |&found| found == class)
        {
            entry.remove();
        }
        self.unused.push(class);
        debug_assert!(self.unused.len() < self.classes.len(), "Q1: more classes are unused than exist");
    }

    /// Class of a worker with this registration, which becomes a member.
    fn join(&mut self, registration: &Arc<WorkerRegistration>) -> u32 {
        let hash = class_hash(&registration.spec);
        let same = |&at: &u32| {
            let representative = self.classes[at as usize].representative.as_ref();
            representative.is_some_and(|known| same_class(&known.spec, &registration.spec))
        };
        let at = match self.by_hash.find(hash, same) {
            Some(&at) => at,
            None if self.by_hash.len() >= limits::WORKER_CLASSES_MAX => MIXED_CLASS,
            None => {
                let node = node_hash(registration.spec.node.as_deref());
                let class = IdleClass::new(Some(Arc::clone(registration)), node);
                let at = self.unused.pop().unwrap_or(self.classes.len() as u32);
                match self.classes.get_mut(at as usize) {
                    Some(unused) => {
                        assert_eq!(unused.members, 0, "Q1: a class with members is reused");
                        *unused = class;
                    }
                    None => self.classes.push(class),
                }
                let classes = &self.classes;
                let hash_of =
                    |&at: &u32| classes[at as usize].representative.as_ref().map_or(0, |known| class_hash(&known.spec));
                self.by_hash.insert_unique(hash, at, hash_of);
                at
            }
        };
        self.classes[at as usize].members += 1;
        at
    }

    /// Picks a worker that meets the constraints and lives beyond `until_ms`. Changes nothing.
    pub fn pick(
        &self,
        workers: &[Worker],
        constraints: &PlacementConstraints,
        fence: Fence,
        until_ms: Millis,
    ) -> Option<u32> {
        let idle_seq = |at: &u32| workers[*at as usize].idle_seq;
        // Members of one class fit or not together, which was checked already.
        let fits = |class: &IdleClass, at: u32| {
            class.representative.is_some() || constraints.fits(&workers[at as usize].registration().spec)
        };
        let expiring =
            |class: &IdleClass, from| self.expiries.find(class.expiring, from, until_ms, &mut |at| fits(class, at));
        let fitting = self.classes.iter().filter(|class| class.idle > 0 && class.may_fit(constraints));
        match self.policy {
            PlacementPolicy::Fifo => {
                let listed = |class: &IdleClass| self.oldest_first(class).find(|&at| fits(class, at));
                let oldest = |class| [listed(class), expiring(class, SearchDirection::Ascending)];
                fitting.flat_map(oldest).flatten().min_by_key(idle_seq)
            }
            PlacementPolicy::Random => self.pick_any(fitting, fits, fence, until_ms),
            _ => {
                let listed = |class: &IdleClass| self.newest_first(class).find(|&at| fits(class, at));
                let newest = |class| [listed(class), expiring(class, SearchDirection::Descending)];
                fitting.flat_map(newest).flatten().max_by_key(idle_seq)
            }
        }
    }

    /// Picks one of the fitting workers of some classes that live beyond `until_ms`.
    fn pick_any<'a>(
        &'a self,
        classes: impl Iterator<Item = &'a IdleClass>,
        fits: impl Fn(&IdleClass, u32) -> bool,
        fence: Fence,
        until_ms: Millis,
    ) -> Option<u32> {
        let count = |class: &'a IdleClass| match &class.representative {
            Some(_) => class.unordered.len() + self.expiries.count_outliving(class.expiring, until_ms),
            None => self.outliving(class, until_ms).filter(|&at| fits(class, at)).count(),
        };
        let counts: SmallVec<[(&IdleClass, usize); 16]> = classes.map(|class| (class, count(class))).collect();
        let total: usize = counts.iter().map(|(_, count)| count).sum();
        let mut nth = splitmix64(fence).checked_rem(total as u64)? as usize;
        let (class, _) = counts.into_iter().find(|&(_, count)| {
            let is_here = nth < count;
            nth -= if is_here { 0 } else { count };
            is_here
        })?;
        match &class.representative {
            None => self.outliving(class, until_ms).filter(|&at| fits(class, at)).nth(nth),
            Some(_) => {
                let expiring = || self.expiries.nth_last(class.expiring, nth - class.unordered.len());
                class.unordered.get(nth).copied().or_else(expiring)
            }
        }
    }

    /// Whether an idle worker that lives beyond `until_ms` would fit if it were on another node.
    pub fn fits_ignoring_node(&self, workers: &[Worker], constraints: &PlacementConstraints, until_ms: Millis) -> bool {
        let fits = |at: u32| constraints.fits_ignoring_node(&workers[at as usize].registration().spec);
        self.classes.iter().filter(|class| class.idle > 0).any(|class| match &class.representative {
            Some(representative) => {
                constraints.fits_ignoring_node(&representative.spec) && self.has_outliving(class, until_ms)
            }
            None => self.outliving(class, until_ms).any(fits),
        })
    }

    /// Number of tree nodes that searches visited so far.
    pub fn steps(&self) -> u64 {
        self.expiries.steps()
    }

    fn has_outliving(&self, class: &IdleClass, until_ms: Millis) -> bool {
        class.idle as usize > self.expiries.len(class.expiring) || self.expiries.latest_ms(class.expiring) > until_ms
    }

    /// Idle members that live beyond `until_ms`, in no order.
    fn outliving(&self, class: &IdleClass, until_ms: Millis) -> impl Iterator<Item = u32> {
        self.all(class).filter(move |&at| self.expiries.outlives(at, until_ms))
    }

    fn newest_first(&self, class: &IdleClass) -> impl Iterator<Item = u32> {
        let next = |&at: &u32| Some(self.links[at as usize].next).filter(|&at| at != NIL);
        std::iter::successors(Some(class.head).filter(|&at| at != NIL), next)
    }

    fn oldest_first(&self, class: &IdleClass) -> impl Iterator<Item = u32> {
        let next = |&at: &u32| Some(self.links[at as usize].prev).filter(|&at| at != NIL);
        std::iter::successors(Some(class.tail).filter(|&at| at != NIL), next)
    }

    /// Idle members in no order: list or vector, and the tree.
    fn all(&self, class: &IdleClass) -> impl Iterator<Item = u32> {
        self.newest_first(class).chain(class.unordered.iter().copied()).chain(self.expiries.all(class.expiring))
    }

    /// Checks that this holds exactly the idle workers, each in the class of its registration and in the order of
    /// becoming idle.
    ///
    /// # Errors
    /// The first violated invariant.
    pub fn check(&self, workers: &[Worker], ends: &ExpiryForest) -> Result<(), InvariantViolation> {
        let mut total = 0;
        for (at, class) in self.classes.iter().enumerate() {
            let idle: Vec<u32> = self.all(class).collect();
            total += idle.len();
            if idle.len() != class.idle as usize {
                return Err(
                    format!("Q1: class {at} counts {} idle workers and holds {}", class.idle, idle.len()).into()
                );
            }
            let worker = |at: u32| &workers[at as usize];
            let is_stray = |&&member: &&u32| {
                let same = class
                    .representative
                    .as_ref()
                    .is_none_or(|representative| same_class(&representative.spec, &worker(member).registration().spec));
                !(same && worker(member).idle && self.links[member as usize].class == at as u32)
            };
            if let Some(&stray) = idle.iter().find(is_stray) {
                return Err(
                    format!("Q1: worker {} is not idle in class {at}", worker(stray).registration().spec.id).into()
                );
            }
            if let Some(&stray) = idle.iter().find(|&&member| self.expiries.ends_ms(member) != ends.ends_ms(member)) {
                return Err(format!("Q1: worker {} has two ends of life", worker(stray).registration().spec.id).into());
            }
            self.expiries.check(class.expiring)?;
            let listed = idle[..idle.len() - self.expiries.len(class.expiring)].windows(2);
            let ordered = listed.into_iter().all(|pair| worker(pair[0]).idle_seq >= worker(pair[1]).idle_seq);
            if self.policy != PlacementPolicy::Random && !ordered {
                return Err(format!("Q1: class {at} is not in the order of becoming idle").into());
            }
            let members = self.links.iter().filter(|link| link.class == at as u32).count();
            if members != class.members as usize {
                return Err(format!("Q1: class {at} counts {} members and has {members}", class.members).into());
            }
        }
        let idle = workers.iter().filter(|worker| worker.idle).count();
        if total != idle {
            return Err(format!("Q1: {idle} workers are idle, the classes hold {total}").into());
        }
        Ok(())
    }
}

impl IdleClass {
    /// Whether a member may fit; with a representative, whether all do.
    fn may_fit(&self, constraints: &PlacementConstraints) -> bool {
        match &self.representative {
            Some(representative) => constraints.nodes.may_allow(self.node) && constraints.fits(&representative.spec),
            None => true,
        }
    }
}

/// Hash of the fields that define a class.
fn class_hash(spec: &WorkerSpec) -> u64 {
    let mut hasher = Xxh3::new();
    (&spec.labels, &spec.node, &spec.capacity).hash(&mut hasher);
    hasher.finish()
}

fn same_class(first: &WorkerSpec, second: &WorkerSpec) -> bool {
    first.node == second.node && first.capacity == second.capacity && first.labels == second.labels
}
