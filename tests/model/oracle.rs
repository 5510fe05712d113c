//! What a shard should do, said in the plainest way: lists, searched from end to end.

use std::collections::BTreeMap;

use hotpool::engine::{End, NoFit};
use hotpool::model::Policy;

use crate::asks::Ask;

/// How long a deleted worker is remembered.
const TOMBSTONE_MS: u64 = 60_000;
/// Warm workers that are looked at before the policy decides.
const WARM_LOOKS: usize = 8;

#[derive(Debug, Clone, PartialEq)]
pub struct Claim {
    pub worker: String,
    pub key: String,
    pub fence: u64,
    pub reserve_ms: u64,
    pub active: bool,
    pub confirmed: bool,
    pub told: bool,
    pub deadline: Option<u64>,
    /// Slots that it asked for.
    pub slots: u8,
}

/// Kinds of workers are told apart by a number: their card.
#[derive(Debug, Clone, PartialEq)]
pub struct Worker {
    pub incarnation: u64,
    pub card: u8,
    /// Affinity of its last claim.
    pub affinity: Option<u64>,
}

#[derive(Debug, Clone, PartialEq)]
pub enum Said {
    Registered { created: bool, busy: bool },
    Stale { known: u64, deleted: bool },
    Deleted,
    Unknown,
    Granted { worker: String, active: bool },
    NoRoom,
    NoFit(NoFit),
    Mismatch,
    Held { worker: String, active: bool, deadline: Option<u64> },
    Gone,
    GivenBack,
    ActiveElsewhere,
    Released,
}

pub type Ended = (String, u64, End);

#[derive(Debug, Clone)]
pub struct Oracle {
    pub policy: Policy,
    pub workers: BTreeMap<String, Worker>,
    /// The idle ones, in the order in which they became idle.
    pub idle: Vec<String>,
    pub claims: Vec<Claim>,
    /// Deleted workers: incarnation, and until when it is remembered.
    pub dead: BTreeMap<String, (u64, u64)>,
}

impl Oracle {
    pub fn new(policy: Policy) -> Self {
        Self { policy, workers: BTreeMap::new(), idle: Vec::new(), claims: Vec::new(), dead: BTreeMap::new() }
    }

    /// The workers that a claim with this affinity may take: one, but for the policy `random`.
    pub fn may_take(&self, affinity: u64, ask: &Ask) -> Vec<String> {
        let warm = |id: &&String| self.workers[*id].affinity == Some(affinity);
        let fits = |id: &&String| ask.fits(id, self.workers[*id].card);
        let mut fitting = self.idle.iter().filter(fits);
        // The last that became idle among those that last ran the same; only some of these are looked at.
        let warmest = self.idle.iter().rev().filter(warm).take(WARM_LOOKS).find(fits);
        match (warmest, self.policy) {
            // A named worker is that one, warm or not.
            _ if ask.worker().is_some() => fitting.cloned().collect(),
            (_, Policy::Random) => {
                let looked_at_all = self.idle.iter().filter(warm).count() <= WARM_LOOKS;
                let warm: Vec<String> = fitting.clone().filter(warm).cloned().collect();
                if warm.is_empty() || !looked_at_all { fitting.cloned().collect() } else { warm }
            }
            (Some(id), _) => vec![id.clone()],
            (None, Policy::Lifo) => fitting.next_back().cloned().into_iter().collect(),
            (None, Policy::Fifo) => fitting.next().cloned().into_iter().collect(),
        }
    }

    /// Why a claim that may take none takes none.
    pub fn no_fit(&self, ask: &Ask) -> Said {
        if ask.is_for_any() {
            return Said::NoRoom;
        }
        let but_node = |id: &String| {
            let card = self.workers[id].card;
            !ask.is_small(card) && ask.labelled(card) && ask.worker().is_none_or(|only| only == id)
        };
        let why = match ask.worker() {
            Some(id) if !self.workers.contains_key(id) => NoFit::Unknown,
            Some(id) if ask.is_small(self.workers[id].card) => NoFit::Small,
            _ if ask.has_nodes() && self.idle.iter().any(but_node) => NoFit::Node,
            _ => NoFit::Busy,
        };
        Said::NoFit(why)
    }

    /// A claim takes `worker`, one of those that it may take.
    pub fn take(&mut self, worker: &str, key: &str, fence: u64, affinity: u64, reserve_ms: u64, slots: u8) -> Said {
        self.idle.retain(|id| id != worker);
        self.workers.get_mut(worker).unwrap().affinity = Some(affinity);
        let active = reserve_ms == 0;
        self.claims.push(Claim {
            worker: worker.into(),
            key: key.into(),
            fence,
            reserve_ms,
            active,
            confirmed: false,
            told: false,
            deadline: None,
            slots,
        });
        Said::Granted { worker: worker.into(), active }
    }

    fn claim(&mut self, fence: u64) -> Option<&mut Claim> {
        self.claims.iter_mut().find(|claim| claim.fence == fence)
    }

    pub fn end(&mut self, fence: u64, end: End) -> Vec<Ended> {
        let Some(at) = self.claims.iter().position(|claim| claim.fence == fence) else { return Vec::new() };
        let claim = self.claims.remove(at);
        self.idle.push(claim.worker);
        vec![(claim.key, fence, end)]
    }

    pub fn tell(&mut self, fence: u64) -> Said {
        let Some(claim) = self.claim(fence) else { return Said::Gone };
        claim.told = true;
        Said::Held { worker: claim.worker.clone(), active: claim.active, deadline: claim.deadline }
    }

    pub fn repeat(&mut self, fence: u64, satisfies: bool, ask: &Ask) -> (Vec<Ended>, Said) {
        let held = self.claim(fence).map(|claim| (claim.worker.clone(), claim.slots));
        if let Some((worker, slots)) = held
            && satisfies
            && ask.allows(&worker, self.workers[&worker].card)
        {
            let mismatch = ask.must_match && ask.slots != slots;
            return (Vec::new(), if mismatch { Said::Mismatch } else { self.tell(fence) });
        }
        match self.claim(fence).map(|claim| claim.active) {
            None => (Vec::new(), Said::Gone),
            Some(true) => (Vec::new(), Said::ActiveElsewhere),
            Some(false) => (self.end(fence, End::GivenBack), Said::GivenBack),
        }
    }

    pub fn confirm(&mut self, fence: u64) -> Said {
        if let Some(claim) = self.claim(fence) {
            (claim.confirmed, claim.active, claim.deadline) = (true, true, None);
        }
        self.tell(fence)
    }

    pub fn give_back(&mut self, fence: u64) -> Vec<Ended> {
        match self.claim(fence) {
            Some(claim) if !claim.confirmed && !claim.told => self.end(fence, End::GivenBack),
            _ => Vec::new(),
        }
    }

    pub fn departed(&mut self, fence: u64, now_ms: u64) {
        if let Some(claim) = self.claim(fence).filter(|claim| !claim.active && claim.deadline.is_none()) {
            claim.deadline = Some(now_ms + claim.reserve_ms);
        }
    }

    /// What is due, by deadline. Among equal deadlines the order is free, so it is taken from `as_seen`.
    pub fn tick(&mut self, now_ms: u64, as_seen: &[Ended]) -> Vec<Ended> {
        let seen = |fence| as_seen.iter().position(|(_, of, _)| *of == fence);
        let mut due: Vec<(u64, Option<usize>, u64)> = self
            .claims
            .iter()
            .filter_map(|claim| Some((claim.deadline?, seen(claim.fence), claim.fence)))
            .filter(|(deadline, ..)| *deadline <= now_ms)
            .collect();
        due.sort_unstable();
        self.dead.retain(|_, (_, until)| *until > now_ms);
        due.into_iter().flat_map(|(_, _, fence)| self.end(fence, End::Swept)).collect()
    }

    pub fn register(&mut self, id: &str, incarnation: u64, card: u8) -> (Vec<Ended>, Said) {
        if let Some(&(known, _)) = self.dead.get(id) {
            if incarnation <= known {
                return (Vec::new(), Said::Stale { known, deleted: true });
            }
            self.dead.remove(id);
        }
        let Some(worker) = self.workers.get_mut(id) else {
            self.workers.insert(id.into(), Worker { incarnation, card, affinity: None });
            self.idle.push(id.into());
            return (Vec::new(), Said::Registered { created: true, busy: false });
        };
        let known = worker.incarnation;
        if incarnation < known {
            return (Vec::new(), Said::Stale { known, deleted: false });
        }
        (worker.incarnation, worker.card) = (incarnation, card);
        let ended = if incarnation > known { self.lose(id) } else { Vec::new() };
        let busy = self.claims.iter().any(|claim| claim.worker == id);
        (ended, Said::Registered { created: false, busy })
    }

    pub fn delete(&mut self, id: &str, now_ms: u64) -> (Vec<Ended>, Said) {
        if !self.workers.contains_key(id) {
            return (Vec::new(), Said::Unknown);
        }
        let ended = self.lose(id);
        let worker = self.workers.remove(id).unwrap();
        self.idle.retain(|other| other != id);
        self.dead.insert(id.into(), (worker.incarnation, now_ms + TOMBSTONE_MS));
        (ended, Said::Deleted)
    }

    fn lose(&mut self, id: &str) -> Vec<Ended> {
        let fence = self.claims.iter().find(|claim| claim.worker == id).map(|claim| claim.fence);
        fence.map_or(Vec::new(), |fence| self.end(fence, End::Lost))
    }
}
