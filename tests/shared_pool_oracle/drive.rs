//! Each step at the shard and at the oracle, and what both must say.

use std::collections::BTreeMap;
use std::sync::Arc;

use hotpool::engine::{
    ClaimGrant, Effect, EngineReply, Event, GangAction, GpuFilter, HeartbeatReport, PlacementConstraints,
    PlacementFailure, ReportedClaim,
};
use hotpool::model::GangRef;
use hotpool::model::{ClaimId, ClaimState, ResourceRequirements, WorkerCommand, WorkerId, WorkerSpec};

use crate::asks::{Step, ask, id, wants, worker};
use crate::oracle::{Held, UNIX_MS, Worker, World};

impl World {
    pub fn claim_for(&mut self, key: u8, asked: u8, filter: u8, needs_ms: u64, gang: Option<GangRef>) -> Option<u64> {
        let id = id(key);
        if self.claims.contains_key(id.key()) {
            return None;
        }
        self.fence += 1;
        let (resources, fence) = (ask(asked), self.fence);
        let wants = PlacementConstraints { gang, ..wants(&resources, filter) };
        let passes = |world: &Self, worker: &Worker| {
            let cards = wants.gpus != GpuFilter::NoGpus || worker.spec.capacity.gpu.is_none();
            !worker.cordoned && cards && wants.allows(&worker.spec) && {
                let id = worker.spec.id.as_str();
                world.has_room(id, &resources, None)
            }
        };
        let until_ms = self.now_ms + needs_ms;
        let passing: Vec<&Worker> = self.workers.values().filter(|worker| passes(self, worker)).collect();
        let lasting = passing.iter().filter(|worker| worker.ends_ms.is_none_or(|ends_ms| ends_ms > until_ms));
        let fits: Vec<String> = lasting.map(|worker| worker.spec.id.to_string()).collect();
        match (fits.len(), passing.len()) {
            (0, 1..) => self.seen[2] += 1,
            (some, all) if some < all => self.seen[1] += 1,
            (_, all) => self.seen[0] += u32::from(all > 0),
        }
        let event = Event::Claim {
            id: id.clone(),
            fence,
            affinity: 7,
            reserve_ms: 0,
            ttl_ms: needs_ms,
            wants: Some(Arc::new(wants.clone())),
            reservation_ticket: 0,
            to: (),
        };
        let mut effects = Vec::new();
        let version = |world: &Self, worker: &str| {
            world.shard.find_worker(&WorkerId::new(worker).unwrap()).map_or(0, |look| look.version)
        };
        self.shard.handle_event(event, self.now_ms, &mut effects);
        let Some(Effect::Reply { answer, .. }) = effects.pop() else { panic!("one answer") };
        match answer {
            EngineReply::Granted(ClaimGrant { handle: place, worker, gpu_mask: cards, state, .. }) => {
                let model = worker.spec.capacity.gpu.as_ref().map(|gpu| Arc::clone(&gpu.model));
                let model = model.filter(|_| resources.gpu.is_some());
                let worker = worker.spec.id.to_string();
                assert!(fits.contains(&worker), "{worker} of {fits:?} for {resources:?}");
                assert_eq!(state, ClaimState::Active);
                let version = version(self, &worker);
                let gang = gang.map(|gang| gang.id);
                let held = Held { place, worker, resources, cards: cards.unwrap(), model, gang };
                self.claims.insert(id.key().to_owned(), held);
                Some(version)
            }
            EngineReply::NotPlaced(why) => {
                assert!(fits.is_empty(), "N1: {why:?} for {resources:?}, and {fits:?} have room");
                if filter != 6 {
                    assert!(matches!(why, PlacementFailure::Busy | PlacementFailure::OtherNode));
                }
                None
            }
            other => panic!("{other:?}"),
        }
    }

    pub fn step(&mut self, step: Step) {
        match step {
            Step::Register { worker: number, card, ends } => {
                let ends_ms = ends.in_ms().map(|ms| self.now_ms + ms);
                let expires_at_ms = ends.in_ms().map(|ms| UNIX_MS + ms);
                let spec = WorkerSpec { expires_at_ms, ..worker(number, card) };
                self.workers
                    .entry(spec.id.to_string())
                    .and_modify(|known| (known.spec, known.ends_ms) = (spec.clone(), ends_ms))
                    .or_insert_with(|| Worker {
                        spec: WorkerSpec { incarnation: 0, ..spec.clone() },
                        cordoned: false,
                        ends_ms,
                    });
                let deleted = self.shard.find_worker(&spec.id).is_none();
                // A tombstone wants a higher incarnation.
                let incarnation = if deleted {
                    self.fence + 1
                } else {
                    self.shard.find_worker(&spec.id).unwrap().registration.spec.incarnation
                };
                self.fence += 1;
                let spec = WorkerSpec { incarnation, ..spec };
                self.workers.get_mut(spec.id.as_str()).unwrap().spec = spec.clone();
                self.on(Event::Register { spec, ends_ms, claims: None, ttl_ms: 1_000, to: () });
            }
            Step::Delete { worker: number } => {
                let id = WorkerId::new(&format!("w{number}")).unwrap();
                if self.workers.remove(id.as_str()).is_some() {
                    self.on(Event::Delete { id, to: () });
                }
            }
            Step::Cordon { worker: number, on } => {
                let id = WorkerId::new(&format!("w{number}")).unwrap();
                if let Some(worker) = self.workers.get_mut(id.as_str()) {
                    worker.cordoned = on;
                    let verb = if on { WorkerCommand::Cordon } else { WorkerCommand::Uncordon };
                    self.on(Event::WorkerCommand { id, command: verb, to: () });
                }
            }
            Step::Claim { key, ask, filter, needs_ms } => {
                self.claim_for(key, ask, filter, needs_ms, None);
                self.on(Event::Tick);
            }
            Step::Release { key } => {
                if let Some(held) = self.claims.get(id(key).key()).filter(|held| held.gang.is_none()) {
                    let place = held.place;
                    let (_, ended) = self.on(Event::Release { place, to: () });
                    assert_eq!(ended.len(), 1);
                    // A late second one touches nobody.
                    let (_, ended) = self.on(Event::Release { place, to: () });
                    assert!(ended.is_empty());
                }
            }
            Step::Resize { key, ask: asked } => self.resize(id(key).key(), &ask(asked)),
            Step::Heartbeat { worker: number, names } => self.heartbeat(number, names),
            Step::Batch { first, asks } => {
                let before = self.shard.counters().worker_updates;
                self.shard.begin_batch();
                let mut versions = BTreeMap::new();
                for (i, asked) in (0..).zip(asks) {
                    let key = (first + i) % 24;
                    if let Some(version) = self.claim_for(key, asked, 0, 0, None) {
                        let worker = self.claims[id(key).key()].worker.clone();
                        let first = *versions.entry(worker).or_insert(version);
                        assert_eq!(first, version, "B03: one version a worker and batch");
                    }
                }
                self.shard.end_batch();
                assert_eq!(
                    self.shard.counters().worker_updates - before,
                    versions.len() as u64,
                    "B03: one touch a worker"
                );
                self.on(Event::Tick);
            }
            Step::Gang { first, asks } => {
                self.fence += 1;
                let gang = GangRef { id: self.fence, pool: 7, shard: 3 };
                self.shard.begin_batch();
                for (i, asked) in (0..).zip(asks) {
                    self.claim_for((first + i) % 24, asked, 0, 0, Some(gang));
                }
                self.shard.end_batch();
                self.on(Event::Tick);
            }
            Step::Decide { commit } => {
                let Some(id) = self.claims.values().filter_map(|held| held.gang).min() else { return };
                let members = self.claims.values().filter(|held| held.gang == Some(id)).count();
                let act = if commit { GangAction::Commit } else { GangAction::Abort };
                let (answer, ended) = self.on(Event::Gang { id, action: act, to: () });
                match answer {
                    Some(EngineReply::Committed(claims)) => {
                        assert_eq!((claims.len(), ended.len(), commit), (members, 0, true))
                    }
                    _ => assert_eq!((ended.len(), commit), (members, false)),
                }
                // It may come twice.
                let (_, ended) = self.on(Event::Gang { id, action: act, to: () });
                assert!(ended.is_empty());
            }
            Step::Restart => self.restart(),
        }
    }

    pub fn resize(&mut self, key: &str, to: &ResourceRequirements) {
        let Some(held) = self.claims.get(key).filter(|held| held.gang.is_none()).cloned() else { return };
        let fits = self.has_room(&held.worker, to, Some(key)) && to.fits_in(&self.workers[&held.worker].spec.capacity);
        let from = &held.resources;
        let present = self.workers[&held.worker].spec.capacity.gpu.as_ref().map(|gpu| Arc::clone(&gpu.model));
        let allows = |model: &Option<Arc<str>>| {
            let named = to.gpu.as_ref().map_or(&[][..], |gpu| &gpu.models);
            named.is_empty() || model.as_ref().is_some_and(|model| named.contains(model))
        };
        let cards = match (&from.gpu, &to.gpu) {
            (_, None) => true,
            (None, Some(_)) => false,
            (Some(from), Some(to)) => allows(&held.model) && to.count <= from.count && to.milli <= from.milli,
        };
        let amounts = |of: &ResourceRequirements| [of.cpu_milli, of.memory_bytes, of.slots];
        let shrinks = cards && amounts(to).iter().zip(amounts(from)).all(|(to, from)| *to <= from);
        let (answer, _) = {
            let mut effects = Vec::new();
            let event = Event::Resize { place: held.place, resources: to.clone(), to: () };
            self.shard.handle_event(event, self.now_ms, &mut effects);
            let Some(Effect::Reply { answer, .. }) = effects.pop() else { panic!("one answer") };
            (answer, ())
        };
        match answer {
            EngineReply::Held(grant) => {
                assert!(fits || shrinks, "{from:?} to {to:?}");
                assert_eq!(grant.handle, held.place, "the fence stays");
                let model = if shrinks { held.model.clone() } else { present }.filter(|_| to.gpu.is_some());
                let shown = grant.spec.as_ref().and_then(|spec| spec.granted_model.clone());
                let of_worker = grant.worker.spec.capacity.gpu.as_ref().map(|gpu| Arc::clone(&gpu.model));
                assert_eq!(shown.or(of_worker).filter(|_| to.gpu.is_some()), model, "as it was granted");
                let now = Held { resources: to.clone(), cards: grant.gpu_mask.unwrap(), model, ..held };
                self.claims.insert(key.to_owned(), now);
            }
            EngineReply::GpuModelMismatch { .. } => {
                assert!(!shrinks && !allows(&held.model) && !allows(&present), "{to:?}")
            }
            EngineReply::NotPlaced(_) => assert!(!fits && !shrinks, "{from:?} to {to:?} has room"),
            other => panic!("{other:?}"),
        }
        self.on(Event::Tick);
    }

    /// Names half of what the worker holds: that is confirmed, and nothing is freed at once.
    pub fn heartbeat(&mut self, number: u8, names: u8) {
        let id = WorkerId::new(&format!("w{number}")).unwrap();
        // A worker is shown what answers have spoken of.
        let places: Vec<_> = self.told().map(|(_, held)| held.place).collect();
        for place in places {
            self.on(Event::ReplySent { place, at_ms: self.now_ms });
        }
        let Some(worker) = self.workers.get(id.as_str()) else { return };
        let of: Vec<_> = self.told().filter(|(_, held)| held.worker == id.as_str()).collect();
        let named =
            of.iter().enumerate().filter(|(i, _)| names & (1 << (i % 8)) != 0).map(|(_, (key, held))| ReportedClaim {
                id: ClaimId::new("ns", "default", key).unwrap(),
                fence: held.place.fence,
                key_vacant: false,
                predecessor_pending: false,
            });
        let count = of.len();
        let beat = HeartbeatReport {
            incarnation: worker.spec.incarnation,
            seq: None,
            claims: Some(named.collect()),
            ttl_ms: 0,
        };
        let (answer, ended) = self.on(Event::Heartbeat { id, beat, to: () });
        let Some(EngineReply::HeartbeatHandled { claims, stop, superseded_by: None }) = answer else {
            panic!("{answer:?}")
        };
        assert_eq!((claims.len(), stop.len(), ended.len()), (count, 0, 0));
    }
}
