//! Naive oracle: workers and claims as lists, free resources by summation; and the shard beside it.

use std::collections::BTreeMap;
use std::sync::Arc;

use hotpool::engine::{ClaimGrant, ClaimHandle, Effect, EngineReply, Event, ResumePoint, Shard, ShardReplay};
use hotpool::model::{ClaimId, PlacementPolicy, ResourceRequirements, WorkerId, WorkerSpec};
use hotpool::persist::row::put_shard;

/// Worker of the oracle.
#[derive(Debug, Clone)]
pub struct Worker {
    pub spec: WorkerSpec,
    pub cordoned: bool,
    /// End of its life, in engine time.
    pub ends_ms: Option<u64>,
}

/// Unix time of all events.
pub const UNIX_MS: u64 = 1_000_000;

/// Claim of the oracle.
#[derive(Debug, Clone)]
pub struct OracleClaim {
    pub handle: ClaimHandle,
    pub worker: String,
    pub resources: ResourceRequirements,
    pub gpu_mask: u64,
    /// Model of the GPUs that it was granted, if any.
    pub model: Option<Arc<str>>,
    /// Gang for which it is held provisionally.
    pub gang: Option<u64>,
}

pub struct Harness {
    pub shard: Shard,
    pub policy: PlacementPolicy,
    pub now_ms: u64,
    pub fence: u64,
    pub rows: Vec<u8>,
    pub workers: BTreeMap<String, Worker>,
    pub claims: BTreeMap<String, OracleClaim>,
    /// Claims for which no fitting worker ended too soon, for which some did, and for which all did.
    pub counts: [u32; 3],
}

/// Free resources of a worker: cores, memory, slots, and each GPU.
#[derive(Debug, Clone, PartialEq)]
pub struct FreeResources {
    pub amounts: [i128; 3],
    pub gpus: Vec<i64>,
}

impl Harness {
    pub fn new(policy: PlacementPolicy) -> Self {
        Self {
            shard: Shard::new(policy, 1),
            policy,
            now_ms: 1,
            fence: 0,
            rows: Vec::new(),
            workers: BTreeMap::new(),
            claims: BTreeMap::new(),
            counts: [0; 3],
        }
    }

    pub fn on(&mut self, event: Event) -> (Option<EngineReply>, Vec<(ClaimId, u64)>) {
        let mut effects = Vec::new();
        let answer = self.shard.handle_event(event, self.now_ms, &mut effects);
        let mut ended = Vec::new();
        for effect in effects {
            match effect {
                Effect::ClaimEnded { id, fence, .. } => ended.push((id, fence)),
                Effect::RetainEnded { .. } | Effect::WorkerLost { .. } | Effect::WorkerDeleted { .. } => {}
                Effect::ClaimAdopted { .. } => panic!("no claim is readopted in a shared pool"),
                Effect::ClaimCommitted { id, handle } => {
                    let claim = self.claims.get_mut(id.key()).expect("only a live claim is committed");
                    assert_eq!(claim.handle, handle);
                    assert!(claim.gang.take().is_some(), "only a member is committed");
                }
            }
        }
        for (id, fence) in &ended {
            let ended_claim = self.claims.remove(id.key()).expect("only a live claim ends");
            assert_eq!(ended_claim.handle.fence, *fence);
        }
        self.shard.check().unwrap();
        self.compare();
        self.shard.take_rows(&mut self.rows);
        self.shard.take_header().iter().for_each(|head| put_shard(&mut self.rows, head));
        (answer, ended)
    }

    pub fn free(&self, id: &str) -> FreeResources {
        let capacity = &self.workers[id].spec.capacity;
        let mut amounts = [capacity.cpu_milli, capacity.memory_bytes, capacity.slots].map(i128::from);
        let mut gpus = vec![1_000_i64; capacity.gpu.as_ref().map_or(0, |gpu| gpu.count as usize)];
        for claim in self.claims.values().filter(|claim| claim.worker == id) {
            let ResourceRequirements { cpu_milli, memory_bytes, slots, gpu } = &claim.resources;
            for (free, amount) in amounts.iter_mut().zip([cpu_milli, memory_bytes, slots]) {
                *free -= i128::from(*amount);
            }
            let milli = gpu.as_ref().map_or(0, |gpu| i64::from(gpu.milli));
            assert_eq!(claim.gpu_mask.count_ones(), gpu.as_ref().map_or(0, |gpu| gpu.count));
            for kind in (0..64).filter(|kind| claim.gpu_mask & (1 << kind) != 0) {
                // A GPU that a later registration does not have has nothing free.
                if gpus.len() <= kind {
                    gpus.resize(kind + 1, 0);
                }
                gpus[kind] -= milli;
            }
        }
        FreeResources { amounts, gpus }
    }

    pub fn has_capacity(&self, id: &str, number: &ResourceRequirements, without: Option<&str>) -> bool {
        let worker = &self.workers[id];
        let mut free = self.free(id);
        if let Some(claim) = without.map(|key| &self.claims[key]) {
            let back = [claim.resources.cpu_milli, claim.resources.memory_bytes, claim.resources.slots];
            free.amounts.iter_mut().zip(back).for_each(|(free, amount)| *free += i128::from(amount));
            let milli = claim.resources.gpu.as_ref().map_or(0, |gpu| i64::from(gpu.milli));
            let gpus = free.gpus.iter_mut().enumerate().filter(|(kind, _)| claim.gpu_mask & (1 << kind) != 0);
            gpus.for_each(|(_, free)| *free += milli);
        }
        let overcommitted = free.amounts.iter().any(|&free| free < 0) || free.gpus.iter().any(|&free| free < 0);
        let fits_gpus = number.gpu.as_ref().is_none_or(|gpu| {
            let model = worker.spec.capacity.gpu.as_ref().map(|gpu| &gpu.model);
            model.is_some_and(|model| gpu.models.is_empty() || gpu.models.contains(model))
                && free.gpus.iter().filter(|&&free| free >= i64::from(gpu.milli)).count() >= gpu.count as usize
        });
        let needed = [number.cpu_milli, number.memory_bytes, number.slots].map(i128::from);
        !overcommitted && fits_gpus && free.amounts.iter().zip(needed).all(|(&free, needed)| free >= needed)
    }

    /// Claims that are not provisional.
    pub fn disclosed(&self) -> impl Iterator<Item = (&String, &OracleClaim)> {
        self.claims.iter().filter(|(_, claim)| claim.gang.is_none())
    }

    pub fn compare(&self) {
        assert_eq!(self.shard.held(), self.claims.len());
        let mut members: Vec<_> =
            self.shard.provisional().map(|(gang, id, handle)| (id.key().to_owned(), gang.id, handle)).collect();
        members.sort_by(|first, second| first.0.cmp(&second.0));
        let expected = self.claims.iter().filter_map(|(key, claim)| Some((key.clone(), claim.gang?, claim.handle)));
        assert!(members.into_iter().eq(expected), "provisional claims");
        for (id, worker) in &self.workers {
            let snapshot = self.shard.find_worker(&WorkerId::new(id).unwrap()).expect("it is registered");
            let free = self.free(id);
            let overcommitted = free.amounts.iter().any(|&free| free < 0) || free.gpus.iter().any(|&free| free < 0);
            assert_eq!(snapshot.conditions.overcommitted, overcommitted, "{id}: {free:?}");
            assert_eq!(snapshot.registration.spec, worker.spec);
            let mut keys: Vec<_> = snapshot.claims.iter().map(|(id, _)| id.key().to_owned()).collect();
            keys.sort();
            let claim: Vec<_> =
                self.disclosed().filter(|(_, claim)| claim.worker == *id).map(|(key, _)| key.clone()).collect();
            assert_eq!(keys, claim, "{id}");
        }
    }

    /// Restarts the shard from its rows, and compares both.
    pub fn restart(&mut self) {
        let mut replay = ShardReplay::new(self.policy, "ns", self.now_ms);
        replay.rows(&self.rows);
        let resume = ResumePoint {
            seq: self.shard.seq(),
            now_ms: self.now_ms,
            unix_ms: UNIX_MS,
            fence_floor: self.fence,
            previous_fence_floor: 0,
            restarted: true,
        };
        let shard = replay.finish(resume).map_err(|(error, _)| error).unwrap();
        let claims = |shard: &Shard| {
            let mut all: Vec<_> = shard
                .list_claims()
                .map(|(_, id, grant)| {
                    let times = grant.times();
                    let ClaimGrant { handle, gpu_mask, spec, state, .. } = grant;
                    (id.key().to_owned(), handle.fence, gpu_mask, spec, state, times)
                })
                .collect();
            all.sort_by(|a, b| a.0.cmp(&b.0));
            all
        };
        assert_eq!(claims(&shard), claims(&self.shard));
        assert_eq!(shard.free_summary(), self.shard.free_summary());
        self.shard = shard;
        for (_, id, grant) in self.shard.list_claims() {
            self.claims.get_mut(id.key()).unwrap().handle = grant.handle;
        }
        for (_, id, handle) in self.shard.provisional() {
            self.claims.get_mut(id.key()).unwrap().handle = handle;
        }
        self.compare();
        // All rows once more, as in a snapshot.
        self.rows.clear();
        assert_eq!(self.shard.snapshot_rows(0, usize::MAX, &mut self.rows), None);
    }
}
