//! Idle workers by shape, for claims that ask for certain ones.
//!
//! Workers with the same labels, node and capacity have one *shape*: for such a claim they differ only in order. Each
//! shape has its own idle queue, so a claim looks at one worker a shape and not at the fleet: the shapes that fit are
//! found by their looks, and of the heads of their queues the policy's first is taken. That is the very worker that a
//! walk over all idle ones in the policy's order would find, because the numbers by which they became idle
//! (`idle_seq`) are in one order across all queues.
//!
//! Example: policy `lifo`, idle with `idle_seq`: `a1:4 a2:9 b1:7 c1:8`, a shape per letter. A claim for `a` or `b` compares
//! `a2:9` with `b1:7` and takes `a2`; the next one compares `a1:4` with `b1:7` and takes `b1`.
//!
//! The queues are an intrusive list (`lifo`, `fifo`) or a vector (`random`), and a tree beside it for workers that end or come
//! into the middle of the order, as that of [`super::idle_queue`], but their links lie here and not in the workers: a shard builds all this when the first such claim comes, and one that never sees
//! any pays nothing. Which shape a worker has is worked out when it first becomes idle and kept until its registration
//! changes or ends.
//!
//! Caveat: a fleet may have a label that tells every worker from every other. Only [`limits::WORKER_CLASSES_MAX`] shapes are kept
//! apart; what comes beyond shares one *mixed* queue, whose workers are looked at one by one. That is slower, and takes
//! the same workers.

use std::hash::{Hash as _, Hasher as _};
use std::sync::Arc;

use hashbrown::HashTable;
use smallvec::SmallVec;
use xxhash_rust::xxh3::Xxh3;

use super::constraints::{PlacementConstraints, node_hash};
use super::expiries::{ExpiryForest, ExpiryTree, NEVER, SearchDirection};
use super::idle_queue::{order_key, splitmix64};
use crate::engine::NIL;
use crate::engine::workers::Worker;
use crate::limits;
use crate::model::{Fence, Millis, PlacementPolicy, WorkerRegistration, WorkerSpec};

/// The shape of workers that have none of their own.
const MIXED_CLASS: u32 = 0;

#[derive(Debug, Clone, Copy)]
struct IdleLink {
    /// Of a worker that became idle since its registration; else `NIL`.
    class: u32,
    /// Neighbours in its queue; with policy `random`, `prev` is the position in the vector.
    prev: u32,
    next: u32,
}

const UNLINKED: IdleLink = IdleLink { class: NIL, prev: NIL, next: NIL };

#[derive(Debug)]
struct IdleClass {
    /// The registration of one that had this shape: they all look like it. None: mixed, or not in use.
    card: Option<Arc<WorkerRegistration>>,
    /// Hash of its node.
    node: u64,
    /// Workers with this shape, idle or not.
    members: u32,
    idle: u32,
    /// Newest and oldest of the queue.
    head: u32,
    tail: u32,
    /// With policy `random`, in place of the queue: in no order.
    unordered: Vec<u32>,
    /// Those that stand in neither.
    expiring: ExpiryTree,
}

impl IdleClass {
    fn new(card: Option<Arc<WorkerRegistration>>, node: u64) -> Self {
        let ending = ExpiryTree::default();
        Self { card, node, members: 0, idle: 0, head: NIL, tail: NIL, unordered: Vec::new(), expiring: ending }
    }
}

/// The idle workers of a shard by shape.
#[derive(Debug)]
pub struct IdleClasses {
    policy: PlacementPolicy,
    links: Vec<IdleLink>,
    /// Of idle workers.
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

    /// A worker became idle, after all that are.
    pub fn push(&mut self, workers: &[Worker], at: u32, ends_ms: Millis) {
        self.enter(workers, at);
        self.expiries.set_ends_ms(at, ends_ms);
        if ends_ms == NEVER { self.link(at) } else { self.enter_tree(workers, at) }
    }

    fn enter_tree(&mut self, workers: &[Worker], at: u32) {
        let key = order_key(self.policy, workers[at as usize].idle_seq, self.expiries.ends_ms(at));
        let shape = &mut self.classes[self.links[at as usize].class as usize];
        shape.idle += 1;
        self.expiries.insert(&mut shape.expiring, at, key);
    }

    /// Makes sure that the worker has a shape.
    fn enter(&mut self, workers: &[Worker], at: u32) {
        if self.links.len() <= at as usize {
            self.links.resize(workers.len(), UNLINKED);
        }
        if self.links[at as usize].class == NIL {
            self.links[at as usize].class = self.join(workers[at as usize].registration());
        }
    }

    /// Puts a worker into the queue of its shape, as the newest.
    fn link(&mut self, at: u32) {
        let links = &mut self.links;
        let shape = &mut self.classes[links[at as usize].class as usize];
        shape.idle += 1;
        if self.policy == PlacementPolicy::Random {
            links[at as usize].prev = shape.unordered.len() as u32;
            shape.unordered.push(at);
            return;
        }
        let next = std::mem::replace(&mut shape.head, at);
        match next {
            NIL => shape.tail = at,
            next => links[next as usize].prev = at,
        }
        (links[at as usize].prev, links[at as usize].next) = (NIL, next);
    }

    /// The registration of a worker has changed: if it is idle, it takes its place in another queue, by when it became
    /// idle.
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

    /// An idle worker is idle no more.
    pub fn remove(&mut self, at: u32) {
        let links = &mut self.links;
        let IdleLink { class: shape, prev, next } = links[at as usize];
        let shape = &mut self.classes[shape as usize];
        shape.idle -= 1;
        if self.expiries.contains(at) {
            return self.expiries.remove(&mut shape.expiring, at);
        }
        if self.policy == PlacementPolicy::Random {
            shape.unordered.swap_remove(prev as usize);
            if let Some(&moved) = shape.unordered.get(prev as usize) {
                links[moved as usize].prev = prev;
            }
            return;
        }
        match prev {
            NIL => shape.head = next,
            prev => links[prev as usize].next = next,
        }
        match next {
            NIL => shape.tail = prev,
            next => links[next as usize].prev = prev,
        }
    }

    /// The registration of a worker that is not idle changes or ends.
    pub fn forget(&mut self, at: u32) {
        let Some(link) = self.links.get_mut(at as usize) else { return };
        let shape = std::mem::replace(&mut link.class, NIL);
        if shape == NIL {
            return;
        }
        let known = &mut self.classes[shape as usize];
        known.members -= 1;
        if known.members > 0 || shape == MIXED_CLASS {
            return;
        }
        if let Some(card) = known.card.take()
            && let Ok(entry) = self.by_hash.find_entry(class_hash(&card.spec), |&found| found == shape)
        {
            entry.remove();
        }
        self.unused.push(shape);
    }

    /// The shape of a worker with this registration, one more member of which there is.
    fn join(&mut self, card: &Arc<WorkerRegistration>) -> u32 {
        let hash = class_hash(&card.spec);
        let same = |&at: &u32| {
            self.classes[at as usize].card.as_ref().is_some_and(|known| same_class(&known.spec, &card.spec))
        };
        let at = match self.by_hash.find(hash, same) {
            Some(&at) => at,
            None if self.by_hash.len() >= limits::WORKER_CLASSES_MAX => MIXED_CLASS,
            None => {
                let shape = IdleClass::new(Some(Arc::clone(card)), node_hash(card.spec.node.as_deref()));
                let at = self.unused.pop().unwrap_or(self.classes.len() as u32);
                match self.classes.get_mut(at as usize) {
                    Some(unused) => *unused = shape,
                    None => self.classes.push(shape),
                }
                let shapes = &self.classes;
                let hash_of = |&at: &u32| shapes[at as usize].card.as_ref().map_or(0, |card| class_hash(&card.spec));
                self.by_hash.insert_unique(hash, at, hash_of);
                at
            }
        };
        self.classes[at as usize].members += 1;
        at
    }

    /// The worker that a claim with these wants takes which needs it until `until_ms`: looks only, takes nothing.
    pub fn pick(
        &self,
        workers: &[Worker],
        wants: &PlacementConstraints,
        fence: Fence,
        until_ms: Millis,
    ) -> Option<u32> {
        let idle_seq = |at: &u32| workers[*at as usize].idle_seq;
        // Those of one shape fit or not together, which was seen already.
        let fits =
            |shape: &IdleClass, at: u32| shape.card.is_some() || wants.fits(&workers[at as usize].registration().spec);
        let ending =
            |shape: &IdleClass, from| self.expiries.find(shape.expiring, from, until_ms, &mut |at| fits(shape, at));
        let fitting = self.classes.iter().filter(|shape| shape.idle > 0 && shape.may_fit(wants));
        match self.policy {
            PlacementPolicy::Fifo => {
                let listed = |shape: &IdleClass| self.oldest_first(shape).find(|&at| fits(shape, at));
                let oldest = |shape| [listed(shape), ending(shape, SearchDirection::Ascending)];
                fitting.flat_map(oldest).flatten().min_by_key(idle_seq)
            }
            PlacementPolicy::Random => self.pick_any(fitting, fits, fence, until_ms),
            _ => {
                let listed = |shape: &IdleClass| self.newest_first(shape).find(|&at| fits(shape, at));
                let newest = |shape| [listed(shape), ending(shape, SearchDirection::Descending)];
                fitting.flat_map(newest).flatten().max_by_key(idle_seq)
            }
        }
    }

    /// Any of the workers of some shapes that fit and live beyond `until_ms`.
    fn pick_any<'a>(
        &'a self,
        shapes: impl Iterator<Item = &'a IdleClass>,
        fits: impl Fn(&IdleClass, u32) -> bool,
        fence: Fence,
        until_ms: Millis,
    ) -> Option<u32> {
        let count = |shape: &'a IdleClass| match &shape.card {
            Some(_) => shape.unordered.len() + self.expiries.count_outliving(shape.expiring, until_ms),
            None => self.outliving(shape, until_ms).filter(|&at| fits(shape, at)).count(),
        };
        let counts: SmallVec<[(&IdleClass, usize); 16]> = shapes.map(|shape| (shape, count(shape))).collect();
        let total: usize = counts.iter().map(|(_, count)| count).sum();
        let mut nth = splitmix64(fence).checked_rem(total as u64)? as usize;
        let (shape, _) = counts.into_iter().find(|&(_, count)| {
            let here = nth < count;
            nth -= if here { 0 } else { count };
            here
        })?;
        match &shape.card {
            None => self.outliving(shape, until_ms).filter(|&at| fits(shape, at)).nth(nth),
            Some(_) => {
                let ending = || self.expiries.nth_last(shape.expiring, nth - shape.unordered.len());
                shape.unordered.get(nth).copied().or_else(ending)
            }
        }
    }

    /// Whether an idle worker that lives beyond `until_ms` would fit if it were on another node.
    pub fn fits_ignoring_node(&self, workers: &[Worker], wants: &PlacementConstraints, until_ms: Millis) -> bool {
        let fits = |at: u32| wants.fits_ignoring_node(&workers[at as usize].registration().spec);
        self.classes.iter().filter(|shape| shape.idle > 0).any(|shape| match &shape.card {
            Some(card) => wants.fits_ignoring_node(&card.spec) && self.has_outliving(shape, until_ms),
            None => self.outliving(shape, until_ms).any(fits),
        })
    }

    /// Nodes of trees that searches have looked at so far.
    pub fn steps(&self) -> u64 {
        self.expiries.steps()
    }

    fn has_outliving(&self, shape: &IdleClass, until_ms: Millis) -> bool {
        shape.idle as usize > self.expiries.len(shape.expiring) || self.expiries.latest_ms(shape.expiring) > until_ms
    }

    /// The idle workers of a shape that live beyond `until_ms`, in no order.
    fn outliving(&self, shape: &IdleClass, until_ms: Millis) -> impl Iterator<Item = u32> {
        self.all(shape).filter(move |&at| self.expiries.outlives(at, until_ms))
    }

    fn newest_first(&self, shape: &IdleClass) -> impl Iterator<Item = u32> {
        let next = |&at: &u32| Some(self.links[at as usize].next).filter(|&at| at != NIL);
        std::iter::successors(Some(shape.head).filter(|&at| at != NIL), next)
    }

    fn oldest_first(&self, shape: &IdleClass) -> impl Iterator<Item = u32> {
        let next = |&at: &u32| Some(self.links[at as usize].prev).filter(|&at| at != NIL);
        std::iter::successors(Some(shape.tail).filter(|&at| at != NIL), next)
    }

    /// The idle workers of a shape, in no order: list or vector, and the tree.
    fn all(&self, shape: &IdleClass) -> impl Iterator<Item = u32> {
        self.newest_first(shape).chain(shape.unordered.iter().copied()).chain(self.expiries.all(shape.expiring))
    }

    /// Whether this holds exactly the idle workers, each under the shape that its registration has, and in the order
    /// of becoming idle.
    ///
    /// # Errors
    /// The first thing that is wrong.
    pub fn check(&self, workers: &[Worker], ends: &ExpiryForest) -> Result<(), String> {
        let mut held = 0;
        for (at, shape) in self.classes.iter().enumerate() {
            let idle: Vec<u32> = self.all(shape).collect();
            held += idle.len();
            if idle.len() != shape.idle as usize {
                return Err(format!("Q1: shape {at} counts {} idle workers and holds {}", shape.idle, idle.len()));
            }
            let worker = |at: u32| &workers[at as usize];
            let strays = |&&of: &&u32| {
                let alike =
                    shape.card.as_ref().is_none_or(|card| same_class(&card.spec, &worker(of).registration().spec));
                !(alike && worker(of).idle && self.links[of as usize].class == at as u32)
            };
            if let Some(&stray) = idle.iter().find(strays) {
                return Err(format!("Q1: worker {} is not idle in shape {at}", worker(stray).registration().spec.id));
            }
            if let Some(&stray) = idle.iter().find(|&&of| self.expiries.ends_ms(of) != ends.ends_ms(of)) {
                return Err(format!("Q1: worker {} has two ends of life", worker(stray).registration().spec.id));
            }
            self.expiries.check(shape.expiring)?;
            let listed = idle[..idle.len() - self.expiries.len(shape.expiring)].windows(2);
            let ordered = listed.into_iter().all(|pair| worker(pair[0]).idle_seq >= worker(pair[1]).idle_seq);
            if self.policy != PlacementPolicy::Random && !ordered {
                return Err(format!("Q1: shape {at} is not in the order of becoming idle"));
            }
            let members = self.links.iter().filter(|link| link.class == at as u32).count();
            if members != shape.members as usize {
                return Err(format!("Q1: shape {at} counts {} members, there are {members}", shape.members));
            }
        }
        let idle = workers.iter().filter(|worker| worker.idle).count();
        if held != idle {
            return Err(format!("Q1: {idle} workers are idle, the shapes hold {held}"));
        }
        Ok(())
    }
}

impl IdleClass {
    /// False only if none of its workers fits; with a shape of its own, true only if all do.
    fn may_fit(&self, wants: &PlacementConstraints) -> bool {
        match &self.card {
            Some(card) => wants.nodes.may_allow(self.node) && wants.fits(&card.spec),
            None => true,
        }
    }
}

/// Hash of what a shape is made of.
fn class_hash(spec: &WorkerSpec) -> u64 {
    let mut hasher = Xxh3::new();
    (&spec.labels, &spec.node, &spec.capacity).hash(&mut hasher);
    hasher.finish()
}

fn same_class(one: &WorkerSpec, two: &WorkerSpec) -> bool {
    one.node == two.node && one.capacity == two.capacity && one.labels == two.labels
}
