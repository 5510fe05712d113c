//! Comparison of a shard, its rows and the oracle.

use std::collections::BTreeMap;

use hotpool::engine::{ClaimGrant, EngineReply, Event, ResumePoint, Shard, ShardReplay, WorkerConditions};
use hotpool::model::{ClaimId, ClaimState, ClaimTimes, PlacementPolicy, UnschedulableReason};
use hotpool::persist::row::{RowFrames, RowKind};

use super::{Driver, TTL_MS};
use crate::ops::Op;
use crate::oracle::{self, ClaimTerms, Oracle, Reply};
use crate::replies::to_reply;
use crate::requests::{self, Request, spec};

impl Driver {
    pub(super) fn compare(&self, op: &Op) {
        self.shard.check().unwrap_or_else(|wrong| panic!("{op:?}: {wrong}"));
        let (shard, oracle) = (&self.shard, &self.oracle);
        let in_state = |state| oracle.claims.iter().filter(|claim| claim.state == state).count();
        let claims = (oracle.claims.len(), in_state(ClaimState::Reserved), in_state(ClaimState::Releasing));
        assert_eq!((shard.held(), shard.reserved(), shard.releasing()), claims, "{op:?}");
        assert_eq!((shard.idle(), shard.workers()), (oracle.idle.len(), oracle.workers.len()), "{op:?}");
        assert_eq!(state(shard), oracle_state(oracle), "{op:?}");
        let mut usages: BTreeMap<u8, (u32, u32)> = BTreeMap::new();
        for (id, worker) in &oracle.workers {
            let usage = usages.entry(requests::slots(worker.kind)).or_default();
            usage.0 += 1;
            usage.1 += u32::from(oracle.claims.iter().any(|claim| claim.worker == *id));
        }
        let accounting = shard.capacity_usage().map(|usage| (usage.capacity.slots as u8, (usage.workers, usage.held)));
        assert_eq!(accounting.collect::<BTreeMap<_, _>>(), usages, "{op:?}");
        self.compare_counts(op);
        self.compare_idle_longest(op);
    }

    /// W11: each worker is in one count.
    fn compare_counts(&self, op: &Op) {
        let (mut by_each, mut by_first) = (BTreeMap::new(), BTreeMap::new());
        let mut busy = 0;
        for (id, worker) in &self.oracle.workers {
            let live = self.oracle.claims.iter().any(|claim| claim.worker == *id);
            let reasons = worker.reasons();
            reasons.iter().for_each(|reason| *by_each.entry(*reason).or_insert(0) += 1);
            match reasons.first() {
                _ if live => busy += 1,
                Some(first) => *by_first.entry(*first).or_insert(0) += 1,
                None => {}
            }
        }
        let counted = self.shard.unschedulable();
        for &reason in UnschedulableReason::ALL {
            let of = |counts: &BTreeMap<&str, u64>| counts.get(reason.as_str()).copied().unwrap_or(0);
            let expected = (of(&by_each), of(&by_first));
            assert_eq!(
                (counted.by_reason.get(reason), counted.by_first_reason.get(reason)),
                expected,
                "{op:?}: {reason:?}"
            );
        }
        let sum = self.shard.idle() as u64 + busy + counted.by_first_reason.total();
        assert_eq!((self.shard.busy() as u64, sum), (busy, self.shard.workers() as u64), "{op:?}");
    }

    /// D2: workers without claims, in the order in which they should be deleted.
    fn compare_idle_longest(&self, op: &Op) {
        let (shard, oracle) = (&self.shard, &self.oracle);
        let drained = |id: &String| {
            let worker = &oracle.workers[id];
            let unschedulable = worker.lost || worker.suspect || worker.unverified || worker.stopping || worker.ended;
            !unschedulable
                && (worker.cordoned || worker.draining)
                && !oracle.claims.iter().any(|claim| claim.worker == *id)
        };
        let all = shard.list_workers().map(|(_, snapshot)| snapshot.registration.spec.id.to_string());
        let drained = all.filter(drained).map(|id| (id, true));
        let expected: Vec<_> = drained.chain(oracle.idle.iter().map(|id| (id.clone(), false))).collect();
        for limit in [0, 1, 3, usize::MAX] {
            let found = shard.idle_longest(limit).into_iter().map(|worker| (worker.id.to_string(), worker.cordoned));
            let found: Vec<_> = found.collect();
            if self.policy == PlacementPolicy::Random {
                assert_eq!(found.len(), expected.len().min(limit), "{op:?}");
                assert!(found.iter().all(|worker| expected.contains(worker)), "{op:?}: {found:?} of {expected:?}");
            } else {
                assert_eq!(found, expected[..expected.len().min(limit)], "{op:?}");
            }
        }
    }

    /// V1: replaying the rows gives the shard.
    pub(super) fn replicas(&self) {
        let mut snapshot = Vec::new();
        let mut from = 0;
        // In slices, as a snapshot is taken.
        while let Some(next) = {
            let mut slice = Vec::new();
            let next = self.shard.snapshot_rows(from, 200, &mut slice);
            snapshot.extend(slice);
            next
        } {
            from = next;
        }
        let mut expected = self.oracle.clone();
        expected.reload(self.now_ms, self.fence, 0, true);
        for rows in [&snapshot, &self.stream, &compacted(&self.stream)] {
            let mut replay = ShardReplay::new(self.rules(), "ns", self.now_ms);
            // Split anywhere between two rows.
            let half = RowFrames::new(rows).count() / 2;
            let mut frames = RowFrames::new(rows);
            frames.by_ref().take(half).for_each(drop);
            let (first, second) = rows.split_at(rows.len() - frames.rest().len());
            replay.rows(first);
            replay.rows(second);
            let (at, now_ms) = (self.shard.seq(), self.now_ms);
            let resume = ResumePoint {
                seq: at,
                now_ms,
                unix_ms: now_ms,
                fence_floor: self.fence,
                previous_fence_floor: 0,
                restarted: true,
            };
            let replica = replay.finish(resume).unwrap_or_else(|(wrong, _)| panic!("{wrong}"));
            assert_eq!(state(&replica), oracle_state(&self.oracle));
            assert_eq!(replica.idle(), expected.idle.len());
            self.grants_the_same(replica, expected.clone());
        }
    }

    /// Drains a replica: it must grant the workers that the oracle would, and reject deleted ones.
    fn grants_the_same(&self, mut replica: Shard, mut oracle: Oracle) {
        for (id, (incarnation, _)) in &self.oracle.tombstones {
            let spec = spec(id, *incarnation, 0);
            let event = Event::Register { spec, ends_ms: None, claims: None, ttl_ms: TTL_MS };
            let answer = replica.handle_event(event, self.now_ms, &mut Vec::new());
            let stale = Reply::StaleIncarnation { known: *incarnation, deleted: true };
            assert_eq!(answer.map(to_reply), Some(stale));
        }
        // All of a small shard, the first of a large one.
        for i in 0..oracle.idle.len().min(12) as u64 {
            let (fence, affinity) = (self.fence + 1 + i, 1 + i % 5);
            let id = ClaimId::new("ns", "t", "replica").unwrap();
            let request = Request::for_zone(i as usize);
            let constraints = Some(request.constraints());
            let event = Event::Claim { id, fence, affinity, reserve_ms: 0, ttl_ms: 0, constraints, target: None };
            let answer = replica.handle_event(event, self.now_ms, &mut Vec::new());
            let term_ms = oracle.effective_ttl(0).unwrap();
            let candidates = oracle.candidates(affinity, self.now_ms + term_ms, &request);
            let Some(EngineReply::Granted(grant)) = answer else {
                assert_eq!(candidates, Vec::<String>::new(), "a worker fits {request:?}");
                continue;
            };
            let worker = grant.worker.spec.id.to_string();
            assert!(
                candidates.contains(&worker),
                "the replica granted {worker}, candidates of {request:?} are {candidates:?}"
            );
            let terms = ClaimTerms { key: "replica".into(), reserve_ms: 0, term_ms, slots: 0 };
            oracle.grant(&worker, fence, affinity, terms, self.now_ms);
        }
    }
}

/// Key, fence, state, requested slots and times of a claim.
type ClaimSummary = (String, u64, ClaimState, u8, ClaimTimes);

/// Incarnation, kind, conditions and claim of each worker.
type State = BTreeMap<String, (u64, u8, WorkerConditions, Option<ClaimSummary>)>;

fn state(shard: &Shard) -> State {
    let claim = |(id, grant): &(ClaimId, ClaimGrant)| {
        let slots = grant.spec.as_ref().map_or(0, |spec| {
            assert_eq!(spec.labels["slots"], spec.resources.slots.to_string());
            spec.resources.slots as u8
        });
        (id.key().to_owned(), grant.handle.fence, grant.state, slots, grant.times())
    };
    let workers = shard.list_workers().map(|(_, snapshot)| {
        let spec = &snapshot.registration.spec;
        let live = snapshot.claims.first().map(claim);
        (spec.id.to_string(), (spec.incarnation, requests::kind(spec), snapshot.conditions, live))
    });
    let workers: State = workers.collect();
    let listed = shard.list_claims().map(|(_, id, grant)| (grant.worker.spec.id.to_string(), claim(&(id, grant))));
    let live = workers.iter().filter_map(|(id, (.., claim))| Some((id.clone(), claim.clone()?)));
    assert_eq!(listed.collect::<BTreeMap<_, _>>(), live.collect(), "both listings agree");
    workers
}

fn oracle_state(oracle: &Oracle) -> State {
    let claim = |id: &String| {
        let claim = oracle.claims.iter().find(|claim| claim.worker == *id)?;
        Some((claim.key.clone(), claim.fence, claim.state, claim.slots, claim.times))
    };
    let row = |(id, worker): (&String, &oracle::Worker)| {
        (id.clone(), (worker.incarnation, worker.kind, oracle.conditions(id), claim(id)))
    };
    oracle.workers.iter().map(row).collect()
}

/// Last row of each id, in the order of these.
fn compacted(stream: &[u8]) -> Vec<u8> {
    let mut kept: Vec<((RowKind, &str), &[u8])> = Vec::new();
    let mut walk = RowFrames::new(stream);
    loop {
        let start = stream.len() - walk.rest().len();
        let Some(frame) = walk.next() else { break };
        let frame = frame.unwrap();
        kept.retain(|(of, _)| *of != (frame.kind, frame.id));
        kept.push(((frame.kind, frame.id), &stream[start..stream.len() - walk.rest().len()]));
    }
    kept.into_iter().flat_map(|(_, bytes)| bytes).copied().collect()
}
