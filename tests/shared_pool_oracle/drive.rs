//! Applies each step to the shard and to the oracle, and compares the replies.

use std::collections::BTreeMap;
use std::sync::Arc;

use hotpool::engine::{
    ClaimGrant, EngineReply, Event, GangAction, GpuFilter, HeartbeatReport, PlacementConstraints, PlacementFailure,
    ReportedClaim,
};
use hotpool::model::GangRef;
use hotpool::model::{ClaimId, ClaimState, ResourceRequirements, WorkerCommand, WorkerId, WorkerSpec};

use crate::oracle::{Harness, OracleClaim, UNIX_MS, Worker};
use crate::steps::{Step, constraints, id, request, worker};

impl Harness {
    pub fn claim_for(&mut self, key: u8, number: u8, filter: u8, needs_ms: u64, gang: Option<GangRef>) -> Option<u64> {
        let id = id(key);
        if self.claims.contains_key(id.key()) {
            return None;
        }
        self.fence += 1;
        let (resources, fence) = (request(number), self.fence);
        let constraints = PlacementConstraints { gang, ..constraints(&resources, filter) };
        let passes = |harness: &Self, worker: &Worker| {
            let fits_gpus = constraints.gpus != GpuFilter::NoGpus || worker.spec.capacity.gpu.is_none();
            !worker.cordoned && fits_gpus && constraints.allows(&worker.spec) && {
                let id = worker.spec.id.as_str();
                harness.has_capacity(id, &resources, None)
            }
        };
        let until_ms = self.now_ms + needs_ms;
        let passing: Vec<&Worker> = self.workers.values().filter(|worker| passes(self, worker)).collect();
        let lasting = passing.iter().filter(|worker| worker.ends_ms.is_none_or(|ends_ms| ends_ms > until_ms));
        let fits: Vec<String> = lasting.map(|worker| worker.spec.id.to_string()).collect();
        match (fits.len(), passing.len()) {
            (0, 1..) => self.counts[2] += 1,
            (some, all) if some < all => self.counts[1] += 1,
            (_, all) => self.counts[0] += u32::from(all > 0),
        }
        let event = Event::Claim {
            id: id.clone(),
            fence,
            affinity: 7,
            reserve_ms: 0,
            ttl_ms: needs_ms,
            constraints: Some(Arc::new(constraints.clone())),
            target: None,
        };
        let version = |harness: &Self, worker: &str| {
            harness.shard.find_worker(&WorkerId::new(worker).unwrap()).map_or(0, |snapshot| snapshot.version)
        };
        let answer = self.shard.handle_event(event, self.now_ms, &mut Vec::new()).expect("a reply");
        match answer {
            EngineReply::Granted(ClaimGrant { handle, worker, gpu_mask, state, .. }) => {
                let model = worker.spec.capacity.gpu.as_ref().map(|gpu| Arc::clone(&gpu.model));
                let model = model.filter(|_| resources.gpu.is_some());
                let worker = worker.spec.id.to_string();
                assert!(fits.contains(&worker), "{worker} of {fits:?} for {resources:?}");
                assert_eq!(state, ClaimState::Active);
                let version = version(self, &worker);
                let gang = gang.map(|gang| gang.id);
                let claim = OracleClaim { handle, worker, resources, gpu_mask: gpu_mask.unwrap(), model, gang };
                self.claims.insert(id.key().to_owned(), claim);
                Some(version)
            }
            EngineReply::NotPlaced(failure) => {
                assert!(fits.is_empty(), "N1: {failure:?} for {resources:?}, but {fits:?} fit");
                if filter != 6 {
                    assert!(matches!(failure, PlacementFailure::Busy | PlacementFailure::OtherNode));
                }
                None
            }
            other => panic!("{other:?}"),
        }
    }

    pub fn step(&mut self, step: Step) {
        match step {
            Step::Register { worker: number, kind, lifetime } => {
                let ends_ms = lifetime.in_ms().map(|ms| self.now_ms + ms);
                let expires_at_ms = lifetime.in_ms().map(|ms| UNIX_MS + ms);
                let spec = WorkerSpec { expires_at_ms, ..worker(number, kind) };
                self.workers
                    .entry(spec.id.to_string())
                    .and_modify(|worker| (worker.spec, worker.ends_ms) = (spec.clone(), ends_ms))
                    .or_insert_with(|| Worker {
                        spec: WorkerSpec { incarnation: 0, ..spec.clone() },
                        cordoned: false,
                        ends_ms,
                    });
                let deleted = self.shard.find_worker(&spec.id).is_none();
                // A tombstone requires a higher incarnation.
                let incarnation = if deleted {
                    self.fence + 1
                } else {
                    self.shard.find_worker(&spec.id).unwrap().registration.spec.incarnation
                };
                self.fence += 1;
                let spec = WorkerSpec { incarnation, ..spec };
                self.workers.get_mut(spec.id.as_str()).unwrap().spec = spec.clone();
                self.on(Event::Register { spec, ends_ms, claims: None, ttl_ms: 1_000 });
            }
            Step::Delete { worker: number } => {
                let id = WorkerId::new(&format!("w{number}")).unwrap();
                if self.workers.remove(id.as_str()).is_some() {
                    self.on(Event::Delete { id });
                }
            }
            Step::Cordon { worker: number, on } => {
                let id = WorkerId::new(&format!("w{number}")).unwrap();
                if let Some(worker) = self.workers.get_mut(id.as_str()) {
                    worker.cordoned = on;
                    let command = if on { WorkerCommand::Cordon } else { WorkerCommand::Uncordon };
                    self.on(Event::WorkerCommand { id, command });
                }
            }
            Step::Claim { key, request, filter, needs_ms } => {
                self.claim_for(key, request, filter, needs_ms, None);
                self.on(Event::Tick);
            }
            Step::Release { key } => {
                if let Some(claim) = self.claims.get(id(key).key()).filter(|claim| claim.gang.is_none()) {
                    let handle = claim.handle;
                    let (_, ended) = self.on(Event::Release { handle });
                    assert_eq!(ended.len(), 1);
                    // A late duplicate changes nothing.
                    let (_, ended) = self.on(Event::Release { handle });
                    assert!(ended.is_empty());
                }
            }
            Step::Resize { key, request: number } => self.resize(id(key).key(), &request(number)),
            Step::Heartbeat { worker: number, reported } => self.heartbeat(number, reported),
            Step::Batch { first, requests } => {
                let before = self.shard.counters().worker_updates;
                self.shard.begin_batch();
                let mut versions = BTreeMap::new();
                for (i, number) in (0..).zip(requests) {
                    let key = (first + i) % 24;
                    if let Some(version) = self.claim_for(key, number, 0, 0, None) {
                        let worker = self.claims[id(key).key()].worker.clone();
                        let first = *versions.entry(worker).or_insert(version);
                        assert_eq!(first, version, "B03: one version a worker and batch");
                    }
                }
                self.shard.end_batch();
                assert_eq!(
                    self.shard.counters().worker_updates - before,
                    versions.len() as u64,
                    "B03: one recorded change a worker"
                );
                self.on(Event::Tick);
            }
            Step::Gang { first, requests } => {
                self.fence += 1;
                let gang = GangRef { id: self.fence, pool: 7, shard: 3 };
                self.shard.begin_batch();
                for (i, number) in (0..).zip(requests) {
                    self.claim_for((first + i) % 24, number, 0, 0, Some(gang));
                }
                self.shard.end_batch();
                self.on(Event::Tick);
            }
            Step::Decide { commit } => {
                let Some(id) = self.claims.values().filter_map(|claim| claim.gang).min() else { return };
                let members = self.claims.values().filter(|claim| claim.gang == Some(id)).count();
                let action = if commit { GangAction::Commit } else { GangAction::Abort };
                let (answer, ended) = self.on(Event::Gang { id, action });
                match answer {
                    Some(EngineReply::Committed(claims)) => {
                        assert_eq!((claims.len(), ended.len(), commit), (members, 0, true))
                    }
                    _ => assert_eq!((ended.len(), commit), (members, false)),
                }
                // Decisions are idempotent.
                let (_, ended) = self.on(Event::Gang { id, action });
                assert!(ended.is_empty());
            }
            Step::Restart => self.restart(),
        }
    }

    pub fn resize(&mut self, key: &str, to: &ResourceRequirements) {
        let Some(claim) = self.claims.get(key).filter(|claim| claim.gang.is_none()).cloned() else { return };
        let fits =
            self.has_capacity(&claim.worker, to, Some(key)) && to.fits_in(&self.workers[&claim.worker].spec.capacity);
        let from = &claim.resources;
        let current = self.workers[&claim.worker].spec.capacity.gpu.as_ref().map(|gpu| Arc::clone(&gpu.model));
        let allows = |model: &Option<Arc<str>>| {
            let named = to.gpu.as_ref().map_or(&[][..], |gpu| &gpu.models);
            named.is_empty() || model.as_ref().is_some_and(|model| named.contains(model))
        };
        let same_gpus = match (&from.gpu, &to.gpu) {
            (_, None) => true,
            (None, Some(_)) => false,
            (Some(from), Some(to)) => allows(&claim.model) && to.count <= from.count && to.milli <= from.milli,
        };
        let amounts = |of: &ResourceRequirements| [of.cpu_milli, of.memory_bytes, of.slots];
        let shrinks = same_gpus && amounts(to).iter().zip(amounts(from)).all(|(to, from)| *to <= from);
        let event = Event::Resize { handle: claim.handle, resources: to.clone() };
        let answer = self.shard.handle_event(event, self.now_ms, &mut Vec::new()).expect("a reply");
        match answer {
            EngineReply::Held(grant) => {
                assert!(fits || shrinks, "{from:?} to {to:?}");
                assert_eq!(grant.handle, claim.handle, "the fence stays");
                let model = if shrinks { claim.model.clone() } else { current }.filter(|_| to.gpu.is_some());
                let shown = grant.spec.as_ref().and_then(|spec| spec.granted_model.clone());
                let of_worker = grant.worker.spec.capacity.gpu.as_ref().map(|gpu| Arc::clone(&gpu.model));
                assert_eq!(shown.or(of_worker).filter(|_| to.gpu.is_some()), model, "as it was granted");
                let now = OracleClaim { resources: to.clone(), gpu_mask: grant.gpu_mask.unwrap(), model, ..claim };
                self.claims.insert(key.to_owned(), now);
            }
            EngineReply::GpuModelMismatch { .. } => {
                assert!(!shrinks && !allows(&claim.model) && !allows(&current), "{to:?}")
            }
            EngineReply::NotPlaced(_) => assert!(!fits && !shrinks, "{from:?} to {to:?} fits"),
            other => panic!("{other:?}"),
        }
        self.on(Event::Tick);
    }

    /// Reports half of the worker's claims: these are confirmed, and nothing is freed at once.
    pub fn heartbeat(&mut self, number: u8, reported: u8) {
        let id = WorkerId::new(&format!("w{number}")).unwrap();
        // A worker is shown claims whose replies were sent.
        let handles: Vec<_> = self.disclosed().map(|(_, claim)| claim.handle).collect();
        for handle in handles {
            self.on(Event::ReplySent { handle, at_ms: self.now_ms });
        }
        let Some(worker) = self.workers.get(id.as_str()) else { return };
        let of: Vec<_> = self.disclosed().filter(|(_, claim)| claim.worker == id.as_str()).collect();
        let named = of.iter().enumerate().filter(|(i, _)| reported & (1 << (i % 8)) != 0).map(|(_, (key, claim))| {
            ReportedClaim {
                id: ClaimId::new("ns", "default", key).unwrap(),
                fence: claim.handle.fence,
                key_vacant: false,
                predecessor_pending: false,
            }
        });
        let count = of.len();
        let heartbeat = HeartbeatReport {
            incarnation: worker.spec.incarnation,
            seq: None,
            claims: Some(named.collect()),
            ttl_ms: 0,
        };
        let (answer, ended) = self.on(Event::Heartbeat { id, heartbeat });
        let Some(EngineReply::HeartbeatHandled { claims, stop, superseded_by: None }) = answer else {
            panic!("{answer:?}")
        };
        assert_eq!((claims.len(), stop.len(), ended.len()), (count, 0, 0));
    }
}
