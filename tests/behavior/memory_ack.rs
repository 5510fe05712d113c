//! Guarantees of `ack: memory` after a stop that may have lost claims: workers are suspect until the longest
//! reservation time has passed and they are confirmed after that.

use hotpool::model::request_error::{ObjectKind, RequestError};
use hotpool::model::{
    AckLevel, ClaimState, ClearResult, PoolSpec, RegistrationRequest, WorkerCommand, WorkerId, WorkerSpec,
};
use hotpool::persist::store::WriteKind;

use crate::heartbeats::running;
use crate::world::{FULL, World, done, id, ids_on, name, request, spec, worker};

const GONE: RequestError = RequestError::NotFound(ObjectKind::Claim);
/// Reservation time of these pools, in milliseconds.
const RESERVE_MS: u64 = 5_000;

fn memory(shards: u16) -> PoolSpec {
    PoolSpec { reserve_ms: RESERVE_MS, ..spec(shards, AckLevel::Memory) }
}

/// Sets up workers `u`, `v` and `w` that the store knows, and `kept` on one of them; then the store accepts no more.
async fn about_to_crash() -> (World, u64) {
    let world = World::on_store().await;
    world.pool("p", memory(1), &["u", "v", "w"]).await;
    let kept = world.hold("p", "kept").await;
    world.stored("p").await;
    world.gate().hold_all();
    (world, kept)
}

async fn suspects(world: &World) -> u64 {
    world.shards("p").await.iter().map(|shard| shard.suspect).sum()
}

async fn holder(world: &World, key: &str) -> String {
    world.s.get_claim(&id(key)).await.unwrap().worker.spec.id.to_string()
}

#[tokio::test]
async fn s01_a_lost_claim_is_not_granted_again_and_its_worker_restores_it() {
    let (world, kept) = about_to_crash().await;
    let lost = world.hold("p", "lost").await;
    let (of_kept, of_lost) = (holder(&world, "kept").await, holder(&world, "lost").await);
    let idle = ["u", "v", "w"].into_iter().find(|id| ![&*of_kept, &*of_lost].contains(id)).unwrap();
    let world = world.crashed().await;
    assert_eq!((world.held().await.len(), suspects(&world).await), (1, 3));
    assert_eq!(world.s.get_claim(&id("lost")).await, Err(GONE), "its record was lost");
    // No worker is schedulable, whatever is reported, while a lost claim may still start.
    assert_eq!(world.claim("p", "new").await, Err(FULL));
    world.heartbeat(idle, Some(&[])).await;
    world.s.register(&name("p"), RegistrationRequest { spec: worker(idle), claims: Some(Vec::new()) }).await.unwrap();
    let early =
        world.s.command_worker(&name("p"), &WorkerId::new(idle).unwrap(), WorkerCommand::Clear).await.unwrap_err();
    assert!(early.to_string().contains("can still start for 5000 ms"), "{early}");
    assert_eq!(world.s.clear_pool(&name("p")).await, Ok(ClearResult { cleared: 0, suspect: 3 }));
    assert_eq!(world.claim("p", "new").await, Err(FULL));
    // The lost claim is readopted, with its fence, as soon as its worker reports it.
    let response = world.heartbeat(&of_lost, Some(&[("lost", lost)])).await;
    assert_eq!((response.claims.len(), response.claims[0].fence, response.stop.len()), (1, lost, 0));
    assert_eq!((world.state("lost").await, suspects(&world).await), (ClaimState::Active, 3));
    world.pass(RESERVE_MS).await;
    assert_eq!(world.claim("p", "new").await, Err(FULL), "that time has passed is not enough");
    for (worker, claims) in [(idle, vec![]), (&*of_kept, vec![("kept", kept)]), (&*of_lost, vec![("lost", lost)])] {
        world.heartbeat(worker, Some(&claims)).await;
    }
    assert_eq!(suspects(&world).await, 0);
    let new = world.hold("p", "new").await;
    assert!(new > lost && holder(&world, "new").await == idle);
    // It is an ordinary claim.
    world.s.release(&id("lost"), lost).await.unwrap();
    let response = world.heartbeat(&of_lost, Some(&[("lost", lost)])).await;
    assert_eq!(
        (response.claims.len(), response.stop),
        (0, running(&[("lost", lost)])),
        "once over, it is not taken again"
    );
}

#[tokio::test]
async fn s01_the_first_report_after_the_quarantine_ends_unreported_claims() {
    let (world, kept) = about_to_crash().await;
    let of_kept = holder(&world, "kept").await;
    // The holder got the reply that it had ended, and the store lacks the release.
    world.s.release(&id("kept"), kept).await.unwrap();
    let world = world.crashed().await;
    assert_eq!(world.s.get_claim(&id("kept")).await.unwrap().fence, kept);
    world.heartbeat(&of_kept, Some(&[])).await;
    assert_eq!(world.state("kept").await, ClaimState::Active, "it may have been started a moment later");
    world.pass(RESERVE_MS).await;
    world.heartbeat(&of_kept, None).await;
    assert_eq!(world.state("kept").await, ClaimState::Active, "that says nothing about claims");
    world.heartbeat(&of_kept, Some(&[])).await;
    assert_eq!(world.s.get_claim(&id("kept")).await, Err(GONE));
    assert_eq!((world.counts("p").await, suspects(&world).await), ((1, 0, 0), 2));
}

#[tokio::test]
async fn s01_the_operator_can_clear_all_workers_and_known_claims_stay() {
    let (world, kept) = about_to_crash().await;
    let world = world.crashed().await;
    world.pass(RESERVE_MS).await;
    assert_eq!(world.s.clear_pool(&name("p")).await, Ok(ClearResult { cleared: 3, suspect: 0 }));
    assert_eq!(world.s.get_claim(&id("kept")).await.unwrap().fence, kept);
    assert_eq!(world.counts("p").await, (2, 1, 0));
    world.hold("p", "new").await;
    // That was stored: neither a panic of the shard nor a stop forgets it.
    world.stored("p").await;
    world.s.inject_panic(&name("p"), 0);
    crate::world::until("the shard is back", async || {
        let shard = world.shards("p").await.remove(0);
        (shard.restarts, &*shard.state) == (1, "serving")
    })
    .await;
    assert_eq!((suspects(&world).await, world.counts("p").await), (0, (1, 2, 0)));
    assert_eq!(world.restarted().await.counts("p").await, (1, 2, 0));
}

#[tokio::test]
async fn s01_a_clean_stop_leaves_no_suspects_unless_it_follows_a_crash() {
    let world = World::on_store().await;
    world.pool("p", memory(2), &["u", "v", "w"]).await;
    world.hold("p", "kept").await;
    let world = world.restarted().await;
    assert_eq!((suspects(&world).await, world.counts("p").await), (0, (2, 1, 0)));
    // A crash, and then a clean stop before anything was reported: what runs there is still unknown.
    world.stored("p").await;
    let world = world.crashed().await;
    assert_eq!(suspects(&world).await, 3);
    let world = world.restarted().await;
    assert_eq!((suspects(&world).await, world.claim("p", "new").await), (3, Err(FULL)));
    world.stored("p").await;
    world.pass(RESERVE_MS - 1).await;
    assert_eq!(
        world.s.clear_pool(&name("p")).await,
        Ok(ClearResult { cleared: 0, suspect: 3 }),
        "the quarantine starts again"
    );
    world.pass(1).await;
    // One worker is confirmed; after the next crash all are in doubt again.
    world.heartbeat("u", Some(&[])).await;
    assert_eq!(suspects(&world).await, 2);
    world.stored("p").await;
    assert_eq!(suspects(&world.crashed().await).await, 3);
}

#[tokio::test]
async fn s01_durable_pools_and_new_incarnations_have_no_suspects() {
    let world = World::on_store().await;
    world.pool("p", memory(1), &["u", "v"]).await;
    world.pool("d", spec(1, AckLevel::Durable), &["x"]).await;
    let world = world.crashed().await;
    assert!(world.claim("d", "k").await.unwrap().created);
    world.s.register(&name("p"), WorkerSpec { incarnation: 1, ..worker("u") }).await.unwrap();
    assert_eq!((suspects(&world).await, world.counts("p").await), (1, (1, 0, 0)));
    // A worker that the store never knew may have been known to the last process.
    world.add("p", &["new"]).await;
    assert_eq!(suspects(&world).await, 2);
    world.pass(RESERVE_MS).await;
    world.add("p", &["newer"]).await;
    assert_eq!((suspects(&world).await, world.counts("p").await), (2, (2, 0, 0)));
}

/// A claim is acknowledged from memory only when the store knows that the pool does so.
#[tokio::test]
async fn s01_nothing_is_acknowledged_from_memory_before_the_store_knows_that_it_may_be() {
    let world = World::on_store().await;
    world.pool("p", PoolSpec { ack: AckLevel::Durable, ..memory(1) }, &["w"]).await;
    world.stored("p").await;
    let key = world.gate().key("ns/p", 0);
    world.gate().hold(move |batch| batch.shard == key && matches!(batch.kind, WriteKind::Rows(_)));
    assert!(!world.s.put_pool(name("p"), memory(1)).await.unwrap().0);
    let claim = world.begin_claim("p", "k").await;
    world.gate().stopped().await;
    world.pass(3).await;
    assert!(!claim.is_finished(), "a crash now would find no mark, and offer the worker");
    world.gate().open_gate();
    done(claim).await.unwrap();
    world.stored("p").await;
    world.gate().hold_all();
    world.s.release(&id("k"), world.s.get_claim(&id("k")).await.unwrap().fence).await.unwrap();
    assert_eq!(suspects(&world.crashed().await).await, 1, "from then on answers leave at once");
    world.gate().open_gate();
    // And back: as soon as the store has everything that was acknowledged, nothing can be lost.
    world.s.put_pool(name("p"), PoolSpec { ack: AckLevel::Durable, ..memory(1) }).await.unwrap();
    world.hold("p", "k").await;
    assert_eq!(suspects(&world.crashed().await).await, 0);
}

/// The key moved from one worker to another, and the store knows only of the first. Whichever reports first, the later
/// claim stays.
#[tokio::test]
async fn k1_of_two_claims_of_a_key_the_later_one_stays_even_if_the_store_lost_it() {
    for later_first in [true, false] {
        let world = World::on_store().await;
        world.pool("p", memory(2), &[]).await;
        let (a, b) = (ids_on(0, 2, 1, "w").remove(0), ids_on(1, 2, 1, "w").remove(0));
        world.add("p", &[&a]).await;
        let earlier = world.hold("p", "k").await;
        world.add("p", &[&b]).await;
        world.stored("p").await;
        world.gate().hold_all();
        world
            .s
            .register(&name("p"), WorkerSpec { capacity: hotpool::model::WorkerCapacity::default(), ..worker(&a) })
            .await
            .unwrap();
        world.s.command_worker(&name("p"), &WorkerId::new(&a).unwrap(), WorkerCommand::Cordon).await.unwrap();
        world.s.release(&id("k"), earlier).await.unwrap();
        let later = world.hold("p", "k").await;
        assert_eq!(holder(&world, "k").await, b);
        let world = world.crashed().await;
        assert_eq!(world.held().await, [("k".to_owned(), a.clone(), earlier)]);
        if !later_first {
            world.pass(RESERVE_MS).await;
            world.heartbeat(&a, Some(&[])).await;
        }
        let response = world.heartbeat(&b, Some(&[("k", later)])).await;
        assert_eq!(response.stop, [], "nothing that it runs is wrong");
        world.quiet().await;
        let response = world.heartbeat(&b, Some(&[("k", later)])).await;
        assert_eq!((response.claims.len(), response.stop.len()), (1, 0));
        assert_eq!(world.held().await, [("k".to_owned(), b.clone(), later)]);
        assert_eq!(world.s.keys().pending_len(), 0);
    }
}

/// A claim from before is readopted only if it can be true.
#[tokio::test]
async fn w05_an_adoption_needs_a_vacant_key_a_free_worker_and_a_lost_fence() {
    let (world, kept) = about_to_crash().await;
    let (lost, free) = (world.hold("p", "lost").await, world.hold("p", "free").await);
    let (of_kept, of_lost) = (holder(&world, "kept").await, holder(&world, "lost").await);
    let of_free = holder(&world, "free").await;
    let world = world.crashed().await;
    world.pool("q", spec(1, AckLevel::Durable), &["elsewhere"]).await;
    // The key is held elsewhere meanwhile.
    let taken = world.s.claim(request("q", "lost")).await.unwrap().claim.fence;
    assert!(taken > lost);
    assert_eq!(world.heartbeat(&of_lost, Some(&[("lost", lost)])).await.stop, running(&[("lost", lost)]));
    world.s.release(&id("lost"), taken).await.unwrap();
    // A fence that this process may have allocated, or that the store knew to have ended.
    for fence in [taken, taken + 1, kept - 1, 1] {
        assert_eq!(world.heartbeat(&of_lost, Some(&[("made-up", fence)])).await.stop.len(), 1, "{fence}");
    }
    assert_eq!(
        world.heartbeat(&of_lost, Some(&[("lost", lost)])).await.stop.len(),
        1,
        "it is vacant, but was not since"
    );
    assert_eq!(world.heartbeat(&of_free, Some(&[("free", free)])).await.claims.len(), 1);
    assert_eq!(
        world.heartbeat(&of_free, Some(&[("more", free + 1), ("free", free)])).await.stop,
        running(&[("more", free + 1)])
    );
    assert_eq!(holder(&world, "kept").await, of_kept);
    assert_eq!(world.s.keys().pending_len(), 0);
}
