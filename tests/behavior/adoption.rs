//! S19: what a worker names of before a crash is taken over only while nobody can have had its key since. These run on
//! Redis too.

use hotpool::limits;
use hotpool::model::{
    AckLevel, ClaimFilter, ClaimTimes, HeartbeatRequest, HeartbeatResponse, PoolSpec, RegistrationRequest,
    RunningClaim, WorkerCommand, WorkerId,
};

use crate::place::Place;
use crate::world::{World, id, ids_on, name, request, spec, until, worker};

/// The reservation of the pools that acknowledge from memory.
const RESERVE_MS: u64 = 1_000;

fn memory(shards: u16) -> PoolSpec {
    PoolSpec { reserve_ms: RESERVE_MS, ..spec(shards, AckLevel::Memory) }
}

/// A worker on each of the two shards of `p`.
fn pair() -> [String; 2] {
    [0, 1].map(|shard| ids_on(shard, 2, 1, "w").remove(0))
}

fn running(claims: &[(&str, u64)]) -> Vec<RunningClaim> {
    claims.iter().map(|(key, fence)| RunningClaim { id: id(key), fence: *fence }).collect()
}

async fn names(world: &World, worker: &str, claims: &[(&str, u64)]) -> HeartbeatResponse {
    let beat = HeartbeatRequest { incarnation: 0, seq: None, claims: Some(running(claims)) };
    world.s.heartbeat(&name("p"), &WorkerId::new(worker).unwrap(), beat).await.unwrap()
}

/// `p` has the worker `a`, and the durable pool `q` two others. Then the store takes nothing more, and `k` is acknowledged
/// on `a`. Returns its fence.
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

/// What a crash leaves of that, and the fence that is lost.
async fn crashed(a: &str) -> (World, u64) {
    let (world, lost) = about_to_crash(a).await;
    let world = world.crashed().await;
    assert_eq!(world.held().await, [], "its record is lost");
    (world, lost)
}

/// Claims `k` and gives it back, durably.
async fn regrant(world: &World, pool: &str) -> u64 {
    let fence = world.hold(pool, "k").await;
    world.s.release(&id("k"), fence).await.unwrap();
    world.stored(pool).await;
    fence
}

/// The worker is told to stop `k`, however it names it, and nobody holds it.
async fn is_stopped(world: &World, worker_id: &str, lost: u64) {
    let heard = names(world, worker_id, &[("k", lost)]).await;
    assert_eq!((heard.claims.len(), heard.stop), (0, running(&[("k", lost)])));
    let registration = RegistrationRequest { spec: worker(worker_id), claims: Some(running(&[("k", lost)])) };
    let registered = world.s.register(&name("p"), registration).await.unwrap();
    assert_eq!(registered.stop, running(&[("k", lost)]));
    assert_eq!(world.held().await, []);
    assert_eq!(world.s.keys().pending_len(), 0);
}

async fn is_adopted(world: &World, worker: &str, lost: u64) {
    let heard = names(world, worker, &[("k", lost)]).await;
    assert_eq!((heard.claims.len(), heard.stop), (1, vec![]));
    assert_eq!(world.held().await, [("k".to_owned(), worker.to_owned(), lost)]);
}

/// The store has all that this shard of `p` decided.
async fn is_stored(world: &World, shard: usize) {
    until("the shard is stored", async || {
        let shard = world.shards("p").await.remove(shard);
        shard.applied_seq == shard.seq
    })
    .await;
}

async fn revived(world: &World) {
    world.s.inject_panic(&name("p"), 0);
    until("the shard is back", async || {
        let shard = world.shards("p").await.remove(0);
        (shard.restarts, &*shard.state) == (1, "serving")
    })
    .await;
}

#[tokio::test]
async fn s19_a_key_that_was_granted_since_is_not_adopted_under_its_lost_fence() {
    let [a, b] = pair();
    // On another shard, in another pool, as a member of a gang.
    for way in ["shard", "pool", "gang"] {
        let (world, lost) = crashed(&a).await;
        let later = match way {
            "shard" => {
                world.add("p", &[&b]).await;
                regrant(&world, "p").await
            }
            "pool" => regrant(&world, "q").await,
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
        is_stopped(&world, &a, lost).await;
    }
}

/// A member of a gang that came to nothing was never granted.
#[tokio::test]
async fn s19_a_key_that_nobody_had_since_is_adopted() {
    let [a, _] = pair();
    let (world, lost) = crashed(&a).await;
    let gang = ["k", "l", "m"].map(|key| request("q", key));
    assert!(world.s.claim_gang(gang.into()).await.iter().all(Result::is_err), "two workers");
    regrant_of(&world, "unrelated").await;
    is_adopted(&world, &a, lost).await;
    // Once over, it is a key that somebody had.
    world.s.release(&id("k"), lost).await.unwrap();
    is_stopped(&world, &a, lost).await;
}

async fn regrant_of(world: &World, key: &str) {
    let fence = world.hold("q", key).await;
    world.s.release(&id(key), fence).await.unwrap();
}

/// Life 1 lost `k`; life 2 granted it anew, and forgets that in a crash of its own.
#[tokio::test]
async fn s19_a_lost_claim_is_not_adopted_two_restarts_later() {
    let [a, _] = pair();
    // Also where the store has nothing of life 2 from the shard that lost it.
    for silent in [false, true] {
        let (world, lost) = about_to_crash(&a).await;
        let second = World::closed(world.gate().copy().await);
        if silent {
            second.gate().leave_unanswered(world.gate().key("ns/p", 0), usize::MAX);
        }
        second.s.start().await.unwrap();
        assert!(regrant(&second, "q").await > lost);
        if !silent {
            second.stored("p").await;
        }
        is_stopped(&second.crashed().await, &a, lost).await;
    }
}

/// A start that died after it had taken the store over granted nothing: what was lost before is still adopted.
#[tokio::test]
async fn s19_a_start_that_never_served_does_not_end_what_was_lost_before() {
    let [a, _] = pair();
    let (world, lost) = about_to_crash(&a).await;
    let place: Place = world.gate().copy().await;
    place.open().take_over(uuid::Uuid::now_v7()).await.unwrap();
    is_adopted(&World::on(place.copy()).await, &a, lost).await;
}

#[tokio::test]
async fn s19_a_panic_ends_neither_what_was_lost_nor_what_was_granted_since() {
    let [a, _] = pair();
    let (world, lost) = crashed(&a).await;
    world.stored("p").await;
    revived(&world).await;
    is_adopted(&world, &a, lost).await;
    let (world, lost) = crashed(&a).await;
    world.stored("p").await;
    regrant(&world, "q").await;
    revived(&world).await;
    is_stopped(&world, &a, lost).await;
}

/// `k` went from `a` to `b`. The store knows only of the second, or of neither.
#[tokio::test]
async fn s19_of_two_claims_of_a_key_the_earlier_is_not_adopted_after_the_later() {
    let [a, b] = pair();
    for stored in [true, false] {
        let world = World::on_store().await;
        world.pool("p", memory(2), &[&a]).await;
        world.stored("p").await;
        world.gate().leave_unanswered(world.gate().key("ns/p", 0), usize::MAX);
        let earlier = world.hold("p", "k").await;
        world.s.command_worker(&name("p"), &WorkerId::new(&a).unwrap(), WorkerCommand::Cordon).await.unwrap();
        world.s.release(&id("k"), earlier).await.unwrap();
        world.add("p", &[&b]).await;
        is_stored(&world, 1).await;
        if !stored {
            world.gate().hold_all();
        }
        let later = world.hold("p", "k").await;
        if stored {
            is_stored(&world, 1).await;
        }
        let world = world.crashed().await;
        if !stored {
            is_adopted(&world, &b, later).await;
        }
        assert_eq!(world.held().await, [("k".to_owned(), b.clone(), later)]);
        assert_eq!(names(&world, &a, &[("k", earlier)]).await.stop.len(), 1, "it is held");
        world.s.release(&id("k"), later).await.unwrap();
        is_stopped(&world, &a, earlier).await;
    }
}

#[tokio::test]
async fn s19_nothing_is_adopted_when_more_keys_were_granted_than_are_remembered() {
    let [a, _] = pair();
    let (world, lost) = crashed(&a).await;
    for n in 0..limits::ADOPTION_KEYS_MAX {
        world.s.keys().adoption.record_ended((n as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15), lost);
    }
    assert!(world.s.keys().adoption.is_open());
    regrant_of(&world, "one-too-many").await;
    is_stopped(&world, &a, lost).await;
}

#[tokio::test]
async fn s19_nothing_is_adopted_after_ten_minutes() {
    let [a, _] = pair();
    let (world, lost) = crashed(&a).await;
    world.pass(limits::ADOPTION_MS - 200).await;
    is_adopted(&world, &a, lost).await;
    let (world, lost) = crashed(&a).await;
    world.pass(limits::ADOPTION_MS).await;
    is_stopped(&world, &a, lost).await;
}

/// From then on nothing is remembered either.
#[tokio::test]
async fn s19_nothing_is_adopted_when_every_suspect_worker_has_spoken() {
    let [a, b] = pair();
    let (world, lost) = crashed(&a).await;
    world.pass(RESERVE_MS).await;
    assert!(world.s.keys().adoption.is_open(), "it may still name what it runs");
    names(&world, &a, &[]).await;
    until("nobody is waited for", async || {
        world.pass(5).await;
        !world.s.keys().adoption.is_open()
    })
    .await;
    is_stopped(&world, &a, lost).await;
    world.add("p", &[&b]).await;
    assert_eq!(names(&world, &b, &[("k", lost)]).await.stop.len(), 1);
    // A stop in good order loses nothing, nor does a durable pool: nothing is waited for.
    world.stored("p").await;
    let world = world.restarted().await;
    assert!(!world.s.keys().adoption.is_open());
    let durable = World::on_store().await;
    durable.pool("d", spec(1, AckLevel::Durable), &["x"]).await;
    durable.stored("d").await;
    assert!(!durable.crashed().await.s.keys().adoption.is_open());
}

/// Nobody knows when a claim was created whose record was lost. It is bounded as the pool says from when it is taken over.
#[tokio::test]
async fn c16_an_adopted_claim_shows_no_times_and_has_the_ttl_of_its_pool() {
    let [a, _] = pair();
    let (world, lost) = crashed(&a).await;
    let bounded = PoolSpec { ttl_max_ms: Some(60_000), ..memory(2) };
    world.s.put_pool(name("p"), bounded).await.unwrap();
    is_adopted(&world, &a, lost).await;
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
