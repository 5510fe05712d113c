//! S06, S07, S13: recovery after a restart.

use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use hotpool::model::claim_request::ClaimConstraints;
use hotpool::model::request_error::RequestError;
use hotpool::model::{AckLevel, ClaimFilter, ClaimRequest, ClaimSpec, ClaimState, ClaimTimes, PoolSpec};
use hotpool::persist::row::{ClaimRow, ShardRow, WorkerRow, put_shard};
use hotpool::persist::store::file::FileStore;
use hotpool::persist::store::{ShardKey, Store, WriteBatch, WriteKind, WriteOutcome};
use prost::Message as _;

use crate::world::{LOADING, World, id, ids_on, name, request, spec};

/// Encodes a row as a store holds it, of any version.
fn frame(id: &str, version: u8, row: &WorkerRow) -> Vec<u8> {
    let body = row.encode_to_vec();
    let mut out = vec![1, u8::try_from(id.len()).unwrap()];
    out.extend(id.as_bytes());
    out.extend(u32::try_from(body.len() + 1).unwrap().to_le_bytes());
    out.push(version);
    out.extend(body);
    out
}

/// Writes rows behind the scheduler's back.
async fn tamper(dir: &Path, shard: ShardKey, rows: Vec<u8>) {
    let store = FileStore::open(dir).unwrap();
    store.take_over(uuid::Uuid::now_v7()).await.unwrap();
    let at = store.load(vec![shard], Box::new(|_, _| ())).await.unwrap().remove(0).at.unwrap();
    let step = WriteBatch { shard, from: at, to: at + 1, kind: WriteKind::Rows(Bytes::from(rows)) };
    assert_eq!(store.apply(vec![step]).await.unwrap(), [WriteOutcome::Ok]);
}

fn claim_row(key: &str, fence: u64) -> ClaimRow {
    ClaimRow {
        tenant: "default".into(),
        key: key.into(),
        fence,
        active: true,
        reserve_ms: 1_000,
        ..ClaimRow::default()
    }
}

#[tokio::test]
async fn s06_a_damaged_shard_is_refused_by_name_and_the_others_serve() {
    let twice = WorkerRow { claims: vec![claim_row("x", 5), claim_row("y", 6)], version: 1, ..WorkerRow::default() };
    let later = WorkerRow { version: 1 << 40, ..WorkerRow::default() };
    let no_fence = WorkerRow { claims: vec![claim_row("x", 0)], version: 1, ..WorkerRow::default() };
    let mut no_header = Vec::new();
    put_shard(&mut no_header, &ShardRow { fence_max: u64::MAX, ..ShardRow::default() });
    let bad = [
        (no_header, "the row of the shard has an invalid fence: 18446744073709551615"),
        (frame("bad", 1, &twice), "L1: worker bad has 2 claims"),
        (frame("bad", 9, &WorkerRow::default()), "row bad has unknown version 9"),
        (frame("bad", 1, &later), "V1: a row has version 1099511627776"),
        (frame("bad", 1, &no_fence), "worker bad has a claim with an invalid fence: 0"),
        (vec![1, 200, b'x'], "a row ends early"),
        (vec![77, 1, b'x'], "row of unknown kind 77"),
    ];
    for (rows, why) in bad {
        let world = World::on_store().await;
        world.pool("p", spec(2, AckLevel::Durable), &[]).await;
        let ids: Vec<_> = (0..2).flat_map(|shard| ids_on(shard, 2, 2, "w")).collect();
        world.add("p", &ids.iter().map(String::as_str).collect::<Vec<_>>()).await;
        for key in ["a", "b", "c"] {
            world.hold("p", key).await;
        }
        world.stored("p").await;
        let held = world.held().await;
        let shard = |worker: &str| hotpool::model::WorkerId::new(worker).unwrap().shard(2);
        let location = world.gate().copy().await;
        tamper(location.path(), world.gate().key("ns/p", 1), rows).await;
        let again = World::on(location).await;
        let ready = again.s.readiness();
        assert!(!ready.ready);
        assert_eq!(ready.reasons.len(), 1, "{ready:?}");
        assert!(ready.reasons[0].starts_with("shard 1 of ns/p does not serve: "), "{ready:?}");
        assert!(ready.reasons[0].contains(why), "{ready:?} for {why}");
        assert!(held.iter().any(|(_, worker, _)| shard(worker) == 1));
        for (key, worker, fence) in held {
            if shard(&worker) == 1 {
                assert_eq!(again.s.get_claim(&id(&key)).await, Err(LOADING), "{why}");
                assert_eq!(again.claim("p", &key).await, Err(LOADING));
                assert_eq!(again.s.release(&id(&key), fence).await, Err(LOADING));
                assert_eq!(again.s.release_batch(vec![(id(&key), fence)]).await, [Err(LOADING)]);
            } else {
                assert_eq!(again.s.get_claim(&id(&key)).await.unwrap().fence, fence);
                again.s.release(&id(&key), fence).await.unwrap();
            }
        }
        // The other shard serves until it is full; then no reply says that the pool is.
        again.claim("p", "d").await.unwrap();
        again.claim("p", "e").await.unwrap();
        assert_eq!(again.claim("p", "f").await, Err(LOADING));
        assert_eq!(again.s.keys().pending_len(), 0);
    }
}

/// Rows of a version without timestamps are read, and the missing values are not invented.
#[tokio::test]
async fn c16_claims_of_rows_without_times_show_none() {
    let world = World::on_store().await;
    world.pool("p", spec(1, AckLevel::Durable), &["w"]).await;
    world.stored("p").await;
    let location = world.gate().copy().await;
    let row = |key: &str, fence, active| WorkerRow {
        claims: vec![ClaimRow { active, ..claim_row(key, fence) }],
        version: 1,
        ..WorkerRow::default()
    };
    let rows = [frame("v", 1, &row("active", 5, true)), frame("x", 1, &row("reserved", 6, false))].concat();
    tamper(location.path(), world.gate().key("ns/p", 0), rows).await;
    let again = World::on(location).await;
    for (key, state) in [("active", ClaimState::Active), ("reserved", ClaimState::Reserved)] {
        let claim = again.s.get_claim(&id(key)).await.unwrap();
        assert_eq!((claim.state, claim.times), (state, ClaimTimes::default()));
        assert_eq!(claim.expires_at_ms.is_some(), state == ClaimState::Reserved, "it has its time to be confirmed");
    }
    let of_any_age = ClaimFilter { older_than_ms: Some(0), ..ClaimFilter::default() };
    assert_eq!(again.s.list_claims(&of_any_age, None, 10).await.unwrap().items, []);
    let times = again.s.confirm(&id("reserved"), 6).await.unwrap().times;
    assert_eq!((times.created_at_ms(), times.activated_at_ms().is_some()), (None, true));
    again.stored("p").await;
    let again = again.crashed().await;
    assert_eq!(again.s.get_claim(&id("reserved")).await.unwrap().times, times);
    assert_eq!(again.s.get_claim(&id("active")).await.unwrap().times, ClaimTimes::default());
}

#[tokio::test]
async fn s07_restart_after_restart() {
    let mut world = World::on_store().await;
    world.pool("p", spec(4, AckLevel::Durable), &["u", "v", "w"]).await;
    let fence = world.hold("p", "keep").await;
    let mut last = fence;
    for round in 0..6 {
        let key = format!("k{round}");
        let taken = world.claim("p", &key).await.unwrap();
        assert!(taken.claim.fence > last, "fences grow");
        last = taken.claim.fence;
        if round % 2 == 0 {
            world.s.release(&id(&key), last).await.unwrap();
        }
        let rows = world.rows("p").await;
        // With a clean stop, without one, and without having done anything.
        world = if round % 3 == 0 { world.restarted().await } else { world.crashed().await };
        assert_eq!(world.rows("p").await, rows);
        world = world.crashed().await;
        assert_eq!(world.rows("p").await, rows);
        if round % 2 == 1 {
            world.s.release(&id(&key), last).await.unwrap();
        }
    }
    assert_eq!(world.s.get_claim(&id("keep")).await.unwrap().fence, fence);
    assert_eq!(world.counts("p").await, (2, 1, 0));
}

#[tokio::test]
async fn s07_another_shard_count_is_rejected_with_advice() {
    let world = World::on_store().await;
    world.pool("p", spec(4, AckLevel::Durable), &["w"]).await;
    let fence = world.hold("p", "k").await;
    let again = world.restarted().await;
    let refusal = again.s.put_pool(name("p"), spec(8, AckLevel::Durable)).await.unwrap_err();
    assert!(matches!(&refusal, RequestError::FailedPrecondition(_)), "{refusal:?}");
    assert!(refusal.to_string().contains("it has 4, got 8; create another pool"), "{refusal}");
    assert_eq!(again.s.get_claim(&id("k")).await.unwrap().fence, fence);
    // The same count, and settings that may change.
    let changed = PoolSpec { reserve_ms: 1_234, ..spec(4, AckLevel::Memory) };
    assert!(!again.s.put_pool(name("p"), changed.clone()).await.unwrap().0);
    assert_eq!(again.restarted().await.s.get_pool(&name("p")).await.unwrap().spec, changed.with_defaults().unwrap());
}

/// Clears the workers of `p`, as soon as that is allowed.
async fn trust(world: &World) {
    world.stored("p").await;
    world.pass(30_000).await;
    assert_eq!(world.s.clear_pool(&name("p")).await.unwrap().suspect, 0);
}

/// The tail of the records is lost, and the clock is an hour back: the next fence is still higher.
#[tokio::test]
async fn s13_fences_grow_despite_a_lost_tail_and_a_clock_set_back() {
    let world = World::on_store().await;
    world.pool("p", spec(1, AckLevel::Memory), &["v", "w"]).await;
    let old = world.hold("p", "old").await;
    world.stored("p").await;
    world.gate().hold_all();
    let mut last = old;
    for i in 0..1_000 {
        let taken = world.claim("p", &format!("k{i}")).await.unwrap();
        world.s.release(&taken.claim.id, taken.claim.fence).await.unwrap();
        last = taken.claim.fence;
    }
    let again = World::closed(world.gate().copy().await);
    again.clock.shift_unix_us(-3_600_000_000);
    again.s.start().await.unwrap();
    assert_eq!(again.held().await.len(), 1, "the tail is lost");
    trust(&again).await;
    let next = again.claim("p", "k0").await.unwrap().claim.fence;
    assert!(next > last, "{next} after {last}");
    // And once more, further back.
    again.stored("p").await;
    let third = World::closed(again.gate().copy().await);
    third.clock.shift_unix_us(-7_200_000_000);
    third.s.start().await.unwrap();
    trust(&third).await;
    third.s.release(&id("old"), old).await.unwrap();
    assert!(third.claim("p", "old").await.unwrap().claim.fence > next);
}

/// The ownership record is lost or older than the rows, and the clock is an hour back: fences grow all the same.
#[tokio::test]
async fn s13_fences_grow_despite_a_lost_ownership_record() {
    let world = World::on_store().await;
    world.pool("p", spec(2, AckLevel::Durable), &["v", "w", "x"]).await;
    let held = world.hold("p", "held").await;
    let last = world.hold("p", "last").await;
    world.s.release(&id("last"), last).await.unwrap();
    world.stored("p").await;
    let again = World::closed(world.gate().copy().await);
    again.clock.shift_unix_us(-3_600_000_000);
    again.gate().lose_ownership_record();
    again.s.start().await.unwrap();
    let next = again.hold("p", "last").await;
    assert!(next > last.max(held), "{next} after {last} and {held}");
    let uid = again.gate().key("ns/p", 0).pool;
    again.pool("q", spec(1, AckLevel::Durable), &["v"]).await;
    assert!(again.gate().key("ns/q", 0).pool > uid.max(last), "ids of pools are drawn from the same numbers");
}

/// The service that is about to stop is unready, and still answers.
#[tokio::test]
async fn w06_a_draining_service_is_unready_and_still_answers() {
    let world = World::on_memory().await;
    world.pool("p", spec(1, AckLevel::Durable), &["w"]).await;
    assert!(world.s.readiness().ready);
    world.s.drain();
    assert_eq!(world.s.readiness().reasons, ["the service is shutting down"]);
    world.hold("p", "k").await;
}

#[tokio::test]
async fn s07_the_directory_itself_is_opened_again() {
    let dir = tempfile::TempDir::new().unwrap();
    for round in 0..3_u64 {
        let store = open_when_free(dir.path()).await;
        let s = hotpool::scheduler::Scheduler::new(Arc::new(store), hotpool::scheduler::SchedulerSettings::default());
        s.start().await.unwrap();
        s.put_pool(name("p"), spec(2, AckLevel::Durable)).await.unwrap();
        let registered = s.register(&name("p"), crate::world::worker(&format!("w{round}"))).await.unwrap();
        assert!(registered.created);
        let workers: u64 = s.get_pool(&name("p")).await.unwrap().shards.iter().map(|shard| shard.workers).sum();
        assert_eq!(workers, round + 1);
        assert!(s.stop().await);
    }
}

/// Opens the store once the tasks of the last scheduler have ended, and with them the lock.
async fn open_when_free(dir: &Path) -> FileStore {
    let mut opened = None;
    crate::world::until("the lock is free", async || {
        opened = FileStore::open(dir).ok();
        opened.is_some()
    })
    .await;
    opened.unwrap()
}

#[tokio::test]
async fn a_held_claim_keeps_its_priority_over_a_crash() {
    let world = World::on_store().await;
    world.pool("p", spec(1, AckLevel::Durable), &["w0"]).await;
    let constraints = ClaimConstraints {
        spec: ClaimSpec { priority: 7, preemptible: true, ..ClaimSpec::default() },
        ..ClaimConstraints::default()
    };
    let request = ClaimRequest { constraints: Some(Box::new(constraints)), reserve_ms: Some(0), ..request("p", "a") };
    world.s.claim(request).await.unwrap();
    let after = world.crashed().await;
    let held = after.s.get_claim(&id("a")).await.unwrap().spec.unwrap();
    assert_eq!((held.priority, held.preemptible), (7, true));
}
