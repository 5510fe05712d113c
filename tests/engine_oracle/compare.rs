//! Whether a shard, its rows and the oracle say the same.

use std::collections::BTreeMap;

use hotpool::engine::{ClaimGrant, EngineReply, Event, ResumePoint, Shard, ShardReplay, WorkerConditions};
use hotpool::model::{ClaimId, ClaimState, ClaimTimes, PlacementPolicy, UnschedulableReason};
use hotpool::persist::row::{RowFrames, RowKind};

use super::{Run, TTL_MS};
use crate::asks::{self, Ask, spec};
use crate::ops::Op;
use crate::oracle::{self, Oracle, Said, Terms};
use crate::words::{said_by, split};

impl Run {
    pub(super) fn compare(&self, op: &Op) {
        self.shard.check().unwrap_or_else(|wrong| panic!("{op:?}: {wrong}"));
        let (shard, oracle) = (&self.shard, &self.oracle);
        let in_state = |state| oracle.claims.iter().filter(|claim| claim.state == state).count();
        let claims = (oracle.claims.len(), in_state(ClaimState::Reserved), in_state(ClaimState::Releasing));
        assert_eq!((shard.held(), shard.reserved(), shard.releasing()), claims, "{op:?}");
        assert_eq!((shard.idle(), shard.workers()), (oracle.idle.len(), oracle.workers.len()), "{op:?}");
        assert_eq!(state(shard), known(oracle), "{op:?}");
        let mut lines: BTreeMap<u8, (u32, u32)> = BTreeMap::new();
        for (id, worker) in &oracle.workers {
            let line = lines.entry(asks::slots(worker.card)).or_default();
            line.0 += 1;
            line.1 += u32::from(oracle.claims.iter().any(|claim| claim.worker == *id));
        }
        let ledger = shard.capacity_usage().map(|line| (line.capacity.slots as u8, (line.workers, line.held)));
        assert_eq!(ledger.collect::<BTreeMap<_, _>>(), lines, "{op:?}");
        self.compare_counts(op);
        self.compare_idle_longest(op);
    }

    /// W11: each worker is in one count.
    fn compare_counts(&self, op: &Op) {
        let (mut by_each, mut by_first) = (BTreeMap::new(), BTreeMap::new());
        let mut busy = 0;
        for (id, worker) in &self.oracle.workers {
            let held = self.oracle.claims.iter().any(|claim| claim.worker == *id);
            let reasons = worker.reasons();
            reasons.iter().for_each(|reason| *by_each.entry(*reason).or_insert(0) += 1);
            match reasons.first() {
                _ if held => busy += 1,
                Some(first) => *by_first.entry(*first).or_insert(0) += 1,
                None => {}
            }
        }
        let counted = self.shard.unschedulable();
        for reason in UnschedulableReason::ALL {
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

    /// D2: who holds nothing, in the order in which they should go.
    fn compare_idle_longest(&self, op: &Op) {
        let (shard, oracle) = (&self.shard, &self.oracle);
        let drained = |id: &String| {
            let worker = &oracle.workers[id];
            let barred = worker.lost || worker.suspect || worker.unvouched || worker.stopping || worker.ended;
            !barred && (worker.cordoned || worker.draining) && !oracle.claims.iter().any(|claim| claim.worker == *id)
        };
        let all = shard.list_workers().map(|(_, look)| look.registration.spec.id.to_string());
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

    /// V1: what rows say is the shard.
    pub(super) fn replicas(&self) {
        let mut dump = Vec::new();
        let mut from = 0;
        // In pieces, as a rewrite takes it.
        while let Some(next) = {
            let mut piece = Vec::new();
            let next = self.shard.snapshot_rows(from, 200, &mut piece);
            dump.extend(piece);
            next
        } {
            from = next;
        }
        let mut expected = self.oracle.clone();
        expected.reload(self.now_ms, self.fence, 0, true);
        for rows in [&dump, &self.stream, &folded(&self.stream)] {
            let mut replay = ShardReplay::new(self.rules(), "ns", self.now_ms);
            // Cut anywhere between two rows.
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
            assert_eq!(state(&replica), known(&self.oracle));
            assert_eq!(replica.idle(), expected.idle.len());
            self.takes_the_same(replica, expected.clone());
        }
    }

    /// A replica is drained: it must take the workers that the oracle would, and refuse the dead.
    fn takes_the_same(&self, mut replica: Shard, mut oracle: Oracle) {
        for (id, (incarnation, _)) in &self.oracle.dead {
            let mut effects = Vec::new();
            let spec = spec(id, *incarnation, 0);
            let event = Event::Register { spec, ends_ms: None, claims: None, ttl_ms: TTL_MS, to: () };
            replica.handle_event(event, self.now_ms, &mut effects);
            let stale = Said::Stale { known: *incarnation, deleted: true };
            assert_eq!(split(&effects).1.map(said_by), Some(stale));
        }
        // All of a small shard, the first of a large one.
        for i in 0..oracle.idle.len().min(12) as u64 {
            let (fence, affinity) = (self.fence + 1 + i, 1 + i % 5);
            let id = ClaimId::new("ns", "t", "replica").unwrap();
            let mut effects = Vec::new();
            let ask = Ask::of_zone(i as usize);
            let wants = Some(ask.wants());
            let event =
                Event::Claim { id, fence, affinity, reserve_ms: 0, ttl_ms: 0, wants, reservation_ticket: 0, to: () };
            replica.handle_event(event, self.now_ms, &mut effects);
            let term_ms = oracle.ttl_of(0).unwrap();
            let may = oracle.may_take(affinity, self.now_ms + term_ms, &ask);
            let Some(EngineReply::Granted(grant)) = split(&effects).1 else {
                assert_eq!(may, Vec::<String>::new(), "there is room for {ask:?}");
                continue;
            };
            let worker = grant.worker.spec.id.to_string();
            assert!(may.contains(&worker), "the replica took {worker}, might take {may:?} of {ask:?}");
            let terms = Terms { key: "replica".into(), reserve_ms: 0, term_ms, slots: 0 };
            oracle.take(&worker, fence, affinity, terms, self.now_ms);
        }
    }
}

/// A claim: key, fence, state, the slots that it asked for, and its times.
type Held = (String, u64, ClaimState, u8, ClaimTimes);

/// Per worker: incarnation, card, where it stands, and its claim.
type State = BTreeMap<String, (u64, u8, WorkerConditions, Option<Held>)>;

fn state(shard: &Shard) -> State {
    let claim = |(id, grant): &(ClaimId, ClaimGrant)| {
        let slots = grant.spec.as_ref().map_or(0, |spec| {
            assert_eq!(spec.labels["slots"], spec.resources.slots.to_string());
            spec.resources.slots as u8
        });
        (id.key().to_owned(), grant.handle.fence, grant.state, slots, grant.times())
    };
    let workers = shard.list_workers().map(|(_, look)| {
        let spec = &look.registration.spec;
        let held = look.claims.first().map(claim);
        (spec.id.to_string(), (spec.incarnation, asks::card(spec), look.conditions, held))
    });
    let workers: State = workers.collect();
    let listed = shard.list_claims().map(|(_, id, grant)| (grant.worker.spec.id.to_string(), claim(&(id, grant))));
    let held = workers.iter().filter_map(|(id, (.., claim))| Some((id.clone(), claim.clone()?)));
    assert_eq!(listed.collect::<BTreeMap<_, _>>(), held.collect(), "both listings say the same");
    workers
}

fn known(oracle: &Oracle) -> State {
    let claim = |id: &String| {
        let claim = oracle.claims.iter().find(|claim| claim.worker == *id)?;
        Some((claim.key.clone(), claim.fence, claim.state, claim.slots, claim.times))
    };
    let row = |(id, worker): (&String, &oracle::Worker)| {
        (id.clone(), (worker.incarnation, worker.card, oracle.axes(id), claim(id)))
    };
    oracle.workers.iter().map(row).collect()
}

/// The last row of each id, in the order of these.
fn folded(stream: &[u8]) -> Vec<u8> {
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
