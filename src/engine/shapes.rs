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
//! The queues are an intrusive list (`lifo`, `fifo`) or a vector (`random`), as that of [`super::idle`], but their links
//! lie here and not in the workers: a shard builds all this when the first such claim comes, and one that never sees
//! any pays nothing. Which shape a worker has is worked out when it first becomes idle and kept until its registration
//! changes or ends.
//!
//! Caveat: a fleet may have a label that tells every worker from every other. Only [`limits::SHAPES_MAX`] shapes are kept
//! apart; what comes beyond shares one *mixed* queue, whose workers are looked at one by one. That is slower, and takes
//! the same workers.

use std::hash::{Hash as _, Hasher as _};
use std::sync::Arc;

use hashbrown::HashTable;
use smallvec::SmallVec;
use xxhash_rust::xxh3::Xxh3;

use super::NIL;
use super::idle::scatter;
use super::wants::{Wants, node_hash};
use super::workers::Worker;
use crate::limits;
use crate::model::{Fence, Policy, WorkerCard, WorkerSpec};

/// The shape of workers that have none of their own.
const MIXED: u32 = 0;

#[derive(Debug, Clone, Copy)]
struct Link {
    /// Of a worker that became idle since its registration; else `NIL`.
    shape: u32,
    /// Neighbours in its queue; with policy `random`, `prev` is the position in the vector.
    prev: u32,
    next: u32,
}

const UNLINKED: Link = Link { shape: NIL, prev: NIL, next: NIL };

#[derive(Debug)]
struct Shape {
    /// The registration of one that had this shape: they all look like it. None: mixed, or not in use.
    card: Option<Arc<WorkerCard>>,
    /// Hash of its node.
    node: u64,
    /// Workers with this shape, idle or not.
    members: u32,
    idle: u32,
    /// Newest and oldest of the queue.
    head: u32,
    tail: u32,
    /// With policy `random`: all of them, in no order.
    any: Vec<u32>,
}

impl Shape {
    const fn new(card: Option<Arc<WorkerCard>>, node: u64) -> Self {
        Self { card, node, members: 0, idle: 0, head: NIL, tail: NIL, any: Vec::new() }
    }
}

/// The idle workers of a shard by shape.
#[derive(Debug)]
pub struct Shapes {
    policy: Policy,
    links: Vec<Link>,
    shapes: Vec<Shape>,
    by_look: HashTable<u32>,
    unused: Vec<u32>,
}

impl Shapes {
    pub fn new(policy: Policy) -> Self {
        let mixed = Shape::new(None, 0);
        Self { policy, links: Vec::new(), shapes: vec![mixed], by_look: HashTable::new(), unused: Vec::new() }
    }

    /// A worker became idle, after all that are.
    pub fn push(&mut self, workers: &[Worker], at: u32) {
        self.enter(workers, at);
        self.link(at, NIL);
    }

    /// Makes sure that the worker has a shape.
    fn enter(&mut self, workers: &[Worker], at: u32) {
        if self.links.len() <= at as usize {
            self.links.resize(workers.len(), UNLINKED);
        }
        if self.links[at as usize].shape == NIL {
            self.links[at as usize].shape = self.join(workers[at as usize].card());
        }
    }

    /// Puts a worker into the queue of its shape, behind `prev`, the next newer one.
    fn link(&mut self, at: u32, prev: u32) {
        let links = &mut self.links;
        let shape = &mut self.shapes[links[at as usize].shape as usize];
        shape.idle += 1;
        if self.policy == Policy::Random {
            links[at as usize].prev = shape.any.len() as u32;
            shape.any.push(at);
            return;
        }
        let next = match prev {
            NIL => std::mem::replace(&mut shape.head, at),
            prev => std::mem::replace(&mut links[prev as usize].next, at),
        };
        match next {
            NIL => shape.tail = at,
            next => links[next as usize].prev = at,
        }
        (links[at as usize].prev, links[at as usize].next) = (prev, next);
    }

    /// The registration of a worker has changed: if it is idle, it takes its place in another queue, by when it became
    /// idle. Costs a walk to that place from the nearer end.
    pub fn renew(&mut self, workers: &[Worker], at: u32) {
        let worker = &workers[at as usize];
        if worker.idle {
            self.remove(at);
        }
        self.forget(at);
        if !worker.idle {
            return;
        }
        self.enter(workers, at);
        let shape = &self.shapes[self.links[at as usize].shape as usize];
        let idle_seq = |at: u32| workers[at as usize].idle_seq;
        let (mut newer, mut older) = (NIL, shape.tail);
        let mut ahead = shape.head;
        // `newer` stands before `ahead`, and `older` comes from the other end.
        let prev = loop {
            if ahead == NIL || idle_seq(ahead) < worker.idle_seq {
                break newer;
            }
            if idle_seq(older) > worker.idle_seq {
                break older;
            }
            (newer, ahead) = (ahead, self.links[ahead as usize].next);
            older = self.links[older as usize].prev;
        };
        self.link(at, prev);
    }

    /// An idle worker is idle no more.
    pub fn remove(&mut self, at: u32) {
        let links = &mut self.links;
        let Link { shape, prev, next } = links[at as usize];
        let shape = &mut self.shapes[shape as usize];
        shape.idle -= 1;
        if self.policy == Policy::Random {
            shape.any.swap_remove(prev as usize);
            if let Some(&moved) = shape.any.get(prev as usize) {
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
        let shape = std::mem::replace(&mut link.shape, NIL);
        if shape == NIL {
            return;
        }
        let known = &mut self.shapes[shape as usize];
        known.members -= 1;
        if known.members > 0 || shape == MIXED {
            return;
        }
        if let Some(card) = known.card.take()
            && let Ok(entry) = self.by_look.find_entry(look(&card.spec), |&found| found == shape)
        {
            entry.remove();
        }
        self.unused.push(shape);
    }

    /// The shape of a worker with this registration, one more member of which there is.
    fn join(&mut self, card: &Arc<WorkerCard>) -> u32 {
        let hash = look(&card.spec);
        let same =
            |&at: &u32| self.shapes[at as usize].card.as_ref().is_some_and(|known| alike(&known.spec, &card.spec));
        let at = match self.by_look.find(hash, same) {
            Some(&at) => at,
            None if self.by_look.len() >= limits::SHAPES_MAX => MIXED,
            None => {
                let shape = Shape::new(Some(Arc::clone(card)), node_hash(card.spec.node.as_deref()));
                let at = self.unused.pop().unwrap_or(self.shapes.len() as u32);
                match self.shapes.get_mut(at as usize) {
                    Some(unused) => *unused = shape,
                    None => self.shapes.push(shape),
                }
                let shapes = &self.shapes;
                let hash_of = |&at: &u32| shapes[at as usize].card.as_ref().map_or(0, |card| look(&card.spec));
                self.by_look.insert_unique(hash, at, hash_of);
                at
            }
        };
        self.shapes[at as usize].members += 1;
        at
    }

    /// The worker that a claim with these wants takes: looks only, takes nothing.
    pub fn pick(&self, workers: &[Worker], wants: &Wants, fence: Fence) -> Option<u32> {
        let idle_seq = |at: &u32| workers[*at as usize].idle_seq;
        // Those of one shape fit or not together, which was seen already.
        let fits = |shape: &Shape, at: u32| shape.card.is_some() || wants.fits(&workers[at as usize].card().spec);
        let fitting = self.shapes.iter().filter(|shape| shape.idle > 0 && shape.may_fit(wants));
        match self.policy {
            Policy::Fifo => {
                fitting.filter_map(|shape| self.oldest_first(shape).find(|&at| fits(shape, at))).min_by_key(idle_seq)
            }
            Policy::Random => {
                let all = |shape: &'_ Shape| match &shape.card {
                    Some(_) => shape.any.len(),
                    None => shape.any.iter().filter(|&&at| fits(shape, at)).count(),
                };
                let counts: SmallVec<[(&Shape, usize); 16]> = fitting.map(|shape| (shape, all(shape))).collect();
                let total: usize = counts.iter().map(|(_, count)| count).sum();
                let mut nth = (scatter(fence) % (total as u64).max(1)) as usize;
                let (shape, _) = counts.into_iter().find(|&(_, count)| {
                    let here = nth < count;
                    nth -= if here { 0 } else { count };
                    here
                })?;
                shape.any.iter().filter(|&&at| fits(shape, at)).nth(nth).copied()
            }
            _ => fitting.filter_map(|shape| self.newest_first(shape).find(|&at| fits(shape, at))).max_by_key(idle_seq),
        }
    }

    /// Whether an idle worker would fit if it were on another node.
    pub fn fits_but_node(&self, workers: &[Worker], wants: &Wants) -> bool {
        self.shapes.iter().filter(|shape| shape.idle > 0).any(|shape| match &shape.card {
            Some(card) => wants.fits_but_node(&card.spec),
            None => self.all(shape).any(|at| wants.fits_but_node(&workers[at as usize].card().spec)),
        })
    }

    fn newest_first(&self, shape: &Shape) -> impl Iterator<Item = u32> {
        let next = |&at: &u32| Some(self.links[at as usize].next).filter(|&at| at != NIL);
        std::iter::successors(Some(shape.head).filter(|&at| at != NIL), next)
    }

    fn oldest_first(&self, shape: &Shape) -> impl Iterator<Item = u32> {
        let next = |&at: &u32| Some(self.links[at as usize].prev).filter(|&at| at != NIL);
        std::iter::successors(Some(shape.tail).filter(|&at| at != NIL), next)
    }

    /// The idle workers of a shape, in no order: one of the two holds them.
    fn all(&self, shape: &Shape) -> impl Iterator<Item = u32> {
        self.newest_first(shape).chain(shape.any.iter().copied())
    }

    /// Whether this holds exactly the idle workers, each under the shape that its registration has, and in the order
    /// of becoming idle.
    ///
    /// # Errors
    /// The first thing that is wrong.
    pub fn check(&self, workers: &[Worker]) -> Result<(), String> {
        let mut held = 0;
        for (at, shape) in self.shapes.iter().enumerate() {
            let idle: Vec<u32> = self.all(shape).collect();
            held += idle.len();
            if idle.len() != shape.idle as usize {
                return Err(format!("Q1: shape {at} counts {} idle workers and holds {}", shape.idle, idle.len()));
            }
            let worker = |at: u32| &workers[at as usize];
            let strays = |&&of: &&u32| {
                let alike = shape.card.as_ref().is_none_or(|card| alike(&card.spec, &worker(of).card().spec));
                !(alike && worker(of).idle && self.links[of as usize].shape == at as u32)
            };
            if let Some(&stray) = idle.iter().find(strays) {
                return Err(format!("Q1: worker {} is not idle in shape {at}", worker(stray).card().spec.id));
            }
            let ordered = idle.windows(2).all(|pair| worker(pair[0]).idle_seq >= worker(pair[1]).idle_seq);
            if self.policy != Policy::Random && !ordered {
                return Err(format!("Q1: shape {at} is not in the order of becoming idle"));
            }
            let members = self.links.iter().filter(|link| link.shape == at as u32).count();
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

impl Shape {
    /// False only if none of its workers fits; with a shape of its own, true only if all do.
    fn may_fit(&self, wants: &Wants) -> bool {
        match &self.card {
            Some(card) => wants.nodes.may_allow(self.node) && wants.fits(&card.spec),
            None => true,
        }
    }
}

/// Hash of what a shape is made of.
fn look(spec: &WorkerSpec) -> u64 {
    let mut hasher = Xxh3::new();
    (&spec.labels, &spec.node, &spec.capacity).hash(&mut hasher);
    hasher.finish()
}

fn alike(one: &WorkerSpec, two: &WorkerSpec) -> bool {
    one.node == two.node && one.capacity == two.capacity && one.labels == two.labels
}
