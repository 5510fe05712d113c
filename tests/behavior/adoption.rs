//! S19: a claim from before a crash that a worker reports is readopted only while no other claim can have held its key since.
//! Also run on Redis.

use hotpool::limits;
use hotpool::model::{
    AckLevel, ClaimFilter, ClaimTimes, HeartbeatRequest, HeartbeatResponse, PoolSpec, RegistrationRequest,
    RunningClaim, WorkerCommand, WorkerId,
};

use crate::store_location::StoreLocation;
use crate::world::{World, id, ids_on, name, request, spec, until, worker};

/// Reservation time of the pools that acknowledge from memory.
const RESERVE_MS: u64 = 1_000;

fn memory(shards: u16) -> PoolSpec {
    PoolSpec { reserve_ms: RESERVE_MS, ..spec(shards, AckLevel::Memory) }
}

/// Names a worker on each of the two shards of `p`.
fn worker_per_shard() -> [String; 2] {
    [0, 1].map(|shard| ids_on(shard, 2, 1, "w").remove(0))
}

fn running(claims: &[(&str, u64)]) -> Vec<RunningClaim> {
    claims.iter().map(|(key, fence)| RunningClaim { id: id(key), fence: *fence }).collect()
}

async fn report_claims(world: &World, worker: &str, claims: &[(&str, u64)]) -> HeartbeatResponse {
    let heartbeat = HeartbeatRequest { incarnation: 0, seq: None, claims: Some(running(claims)) };
    world.s.heartbeat(&name("p"), &WorkerId::new(worker).unwrap(), heartbeat).await.unwrap()
}

/// Sets up `p` with the worker `a`, and the durable pool `q` with two others. Then the store accepts nothing more, and
/// `k` is acknowledged on `a`. Returns its fence.
async fn about_to_crash(a: &str) -> (World, u64) {
    let world = World::on_store().await;
    world.pool("p", memory(2), &[a]).await;
    world.pool("q", spec(1, AckLevel::Durable), &["x", "y"]).await;
    world.stored("p").await;
    world.stored("q").await;
    world.gate().hold_all();
    let lost = world.hold("p", "k").await;
    (world, lost)
}

/// Crashes that setup. Returns what is left and the lost fence.
async fn crashed(a: &str) -> (World, u64) {
    let (world, lost) = about_to_crash(a).await;
    let world = world.crashed().await;
    assert_eq!(world.held().await, [], "its record is lost");
    (world, lost)
}

/// Claims `k` and releases it, durably.
async fn grant_again(world: &World, pool: &str) -> u64 {
    let fence = world.hold(pool, "k").await;
    world.s.release(&id("k"), fence).await.unwrap();
    world.stored(pool).await;
    fence
}

/// Checks that the worker must stop `k`, however it reports it, and that the key is free.
async fn assert_revoked(world: &World, worker_id: &str, lost: u64) {
    let response = report_claims(world, worker_id, &[("k", lost)]).await;
    assert_eq!((response.claims.len(), response.stop), (0, running(&[("k", lost)])));
    let registration = RegistrationRequest { spec: worker(worker_id), claims: Some(running(&[("k", lost)])) };
    let registered = world.s.register(&name("p"), registration).await.unwrap();
    assert_eq!(registered.stop, running(&[("k", lost)]));
    assert_eq!(world.held().await, []);
    assert_eq!(world.s.keys().pending_len(), 0);
}

async fn assert_readopted(world: &World, worker: &str, lost: u64) {
    let response = report_claims(world, worker, &[("k", lost)]).await;
    assert_eq!((response.claims.len(), response.stop), (1, vec![]));
    assert_eq!(world.held().await, [("k".to_owned(), worker.to_owned(), lost)]);
}

/// Waits until the store has everything that this shard of `p` decided.
async fn wait_stored(world: &World, shard: usize) {
    until("the shard is stored", async || {
        let shard = world.shards("p").await.remove(shard);
        shard.applied_seq == shard.seq
    })
    .await;
}

async fn wait_restarted(world: &World) {
    world.s.inject_panic(&name("p"), 0);
    until("the shard is back", async || {
        let shard = world.shards("p").await.remove(0);
        (shard.restarts, &*shard.state) == (1, "serving")
    })
    .await;
}

#[tokio::test]
async fn s19_a_key_granted_since_is_not_readopted_under_its_lost_fence() {
    let [a, b] = worker_per_shard();
    // The key is granted on another shard, in another pool, and as a member of a gang.
    for kind in ["shard", "pool", "gang"] {
        let (world, lost) = crashed(&a).await;
        let later = match kind {
            "shard" => {
                world.add("p", &[&b]).await;
                grant_again(&world, "p").await
            }
            "pool" => grant_again(&world, "q").await,
            _ => {
                let gang = world.s.claim_gang(vec![request("q", "k"), request("q", "other")]).await;
                let members: Vec<_> = gang.into_iter().map(|member| member.unwrap().claim).collect();
                for member in &members {
                    world.s.release(&member.id, member.fence).await.unwrap();
                }
                members[0].fence
            }
        };
        assert!(later > lost);
        assert_revoked(&world, &a, lost).await;
    }
}

/// A member of an aborted gang was never granted.
#[tokio::test]
async fn s19_a_key_that_was_not_held_since_is_readopted() {
    let [a, _] = worker_per_shard();
    let (world, lost) = crashed(&a).await;
    let gang = ["k", "l", "m"].map(|key| request("q", key));
    assert!(world.s.claim_gang(gang.into()).await.iter().all(Result::is_err), "two workers");
    grant_key_again(&world, "unrelated").await;
    assert_readopted(&world, &a, lost).await;
    // Once it ended, the key counts as held since.
    world.s.release(&id("k"), lost).await.unwrap();
    assert_revoked(&world, &a, lost).await;
}

async fn grant_key_again(world: &World, key: &str) {
    let fence = world.hold("q", key).await;
    world.s.release(&id(key), fence).await.unwrap();
}

/// Life 1 loses `k`; life 2 grants it again, and loses that in a crash of its own.
#[tokio::test]
async fn s19_a_lost_claim_is_not_readopted_two_restarts_later() {
    let [a, _] = worker_per_shard();
    // Also where the store has nothing of life 2 from the shard that lost it.
    for silent in [false, true] {
        let (world, lost) = about_to_crash(&a).await;
        let second = World::closed(world.gate().copy().await);
        if silent {
            second.gate().leave_unanswered(world.gate().key("ns/p", 0), usize::MAX);
        }
        second.s.start().await.unwrap();
        assert!(grant_again(&second, "q").await > lost);
        if !silent {
            second.stored("p").await;
        }
        assert_revoked(&second.crashed().await, &a, lost).await;
    }
}

/// A start that dies right after it took the store over has granted nothing: claims lost before are still readopted.
#[tokio::test]
async fn s19_a_start_that_never_served_keeps_the_window_for_earlier_claims() {
    let [a, _] = worker_per_shard();
    let (world, lost) = about_to_crash(&a).await;
    let location: StoreLocation = world.gate().copy().await;
    location.open().take_over(uuid::Uuid::now_v7()).await.unwrap();
    assert_readopted(&World::on(location.copy()).await, &a, lost).await;
}

#[tokio::test]
async fn s19_a_panic_forgets_neither_lost_claims_nor_later_grants() {
    let [a, _] = worker_per_shard();
    let (world, lost) = crashed(&a).await;
    world.stored("p").await;
    wait_restarted(&world).await;
    assert_readopted(&world, &a, lost).await;
    let (world, lost) = crashed(&a).await;
    world.stored("p").await;
    grant_again(&world, "q").await;
    wait_restarted(&world).await;
    assert_revoked(&world, &a, lost).await;
}

/// `k` moved from `a` to `b`. The store knows only the second claim, or neither.
#[tokio::test]
async fn s19_the_earlier_claim_of_a_key_is_not_readopted_after_the_later() {
    let [a, b] = worker_per_shard();
    for stored in [true, false] {
        let world = World::on_store().await;
        world.pool("p", memory(2), &[&a]).await;
        world.stored("p").await;
        world.gate().leave_unanswered(world.gate().key("ns/p", 0), usize::MAX);
        let earlier = world.hold("p", "k").await;
        world.s.command_worker(&name("p"), &WorkerId::new(&a).unwrap(), WorkerCommand::Cordon).await.unwrap();
        world.s.release(&id("k"), earlier).await.unwrap();
        world.add("p", &[&b]).await;
        wait_stored(&world, 1).await;
        if !stored {
            world.gate().hold_all();
        }
        let later = world.hold("p", "k").await;
        if stored {
            wait_stored(&world, 1).await;
        }
        let world = world.crashed().await;
        if !stored {
            assert_readopted(&world, &b, later).await;
        }
        assert_eq!(world.held().await, [("k".to_owned(), b.clone(), later)]);
        assert_eq!(report_claims(&world, &a, &[("k", earlier)]).await.stop.len(), 1, "it is held");
        world.s.release(&id("k"), later).await.unwrap();
        assert_revoked(&world, &a, earlier).await;
    }
}

#[tokio::test]
async fn s19_nothing_is_readopted_when_more_keys_ended_than_can_be_recorded() {
    let [a, _] = worker_per_shard();
    let (world, lost) = crashed(&a).await;
    for n in 0..limits::ADOPTION_KEYS_MAX {
        world.s.keys().adoption.record_ended((n as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15), lost);
    }
    assert!(world.s.keys().adoption.is_open());
    grant_key_again(&world, "one-too-many").await;
    assert_revoked(&world, &a, lost).await;
}

#[tokio::test]
async fn s19_nothing_is_readopted_after_ten_minutes() {
    let [a, _] = worker_per_shard();
    let (world, lost) = crashed(&a).await;
    world.pass(limits::ADOPTION_MS - 200).await;
    assert_readopted(&world, &a, lost).await;
    let (world, lost) = crashed(&a).await;
    world.pass(limits::ADOPTION_MS).await;
    assert_revoked(&world, &a, lost).await;
}

/// From then on no ended keys are recorded either.
#[tokio::test]
async fn s19_nothing_is_readopted_after_every_suspect_worker_has_reported() {
    let [a, b] = worker_per_shard();
    let (world, lost) = crashed(&a).await;
    world.pass(RESERVE_MS).await;
    assert!(world.s.keys().adoption.is_open(), "it may still name what it runs");
    report_claims(&world, &a, &[]).await;
    until("no worker is waited for", async || {
        world.pass(5).await;
        !world.s.keys().adoption.is_open()
    })
    .await;
    assert_revoked(&world, &a, lost).await;
    world.add("p", &[&b]).await;
    assert_eq!(report_claims(&world, &b, &[("k", lost)]).await.stop.len(), 1);
    // A clean stop loses nothing, nor does a durable pool: the window is not opened.
    world.stored("p").await;
    let world = world.restarted().await;
    assert!(!world.s.keys().adoption.is_open());
    let durable = World::on_store().await;
    durable.pool("d", spec(1, AckLevel::Durable), &["x"]).await;
    durable.stored("d").await;
    assert!(!durable.crashed().await.s.keys().adoption.is_open());
}

/// The creation time of a claim whose record was lost is unknown. Its time to live is the pool's, from the adoption
/// on.
#[tokio::test]
async fn c16_an_adopted_claim_shows_no_times_and_has_the_ttl_of_its_pool() {
    let [a, _] = worker_per_shard();
    let (world, lost) = crashed(&a).await;
    let bounded = PoolSpec { ttl_max_ms: Some(60_000), ..memory(2) };
    world.s.put_pool(name("p"), bounded).await.unwrap();
    assert_readopted(&world, &a, lost).await;
    let claim = world.s.get_claim(&id("k")).await.unwrap();
    assert_eq!(claim.times, ClaimTimes::default());
    assert!(claim.expires_at_ms.is_some(), "{claim:?}");
    let of_any_age = ClaimFilter { older_than_ms: Some(0), ..ClaimFilter::default() };
    assert_eq!(world.s.list_claims(&of_any_age, None, 10).await.unwrap().items, []);
    world.pass(59_000).await;
    assert!(!world.is_vacant("k"));
    world.pass(1_000).await;
    until("it has expired", async || world.is_vacant("k")).await;
}
