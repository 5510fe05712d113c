//! What `ack: memory` promises over a stop that may have lost claims: workers are suspect until the longest
//! reservation has passed and then something has spoken for them.

use hotpool::model::request_error::{ObjectKind, RequestError};
use hotpool::model::{
    AckLevel, ClaimState, ClearResult, PoolSpec, RegistrationRequest, WorkerCommand, WorkerId, WorkerSpec,
};
use hotpool::persist::store::WriteKind;

use crate::heartbeats::running;
use crate::world::{FULL, World, done, id, ids_on, name, request, spec, worker};

const GONE: RequestError = RequestError::NotFound(ObjectKind::Claim);
/// The reservation of these pools.
const RESERVE_MS: u64 = 5_000;

fn memory(shards: u16) -> PoolSpec {
    PoolSpec { reserve_ms: RESERVE_MS, ..spec(shards, AckLevel::Memory) }
}

/// Workers `u`, `v` and `w` that the store knows, and `kept` on one of them; then the store takes no more.
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
async fn s01_a_lost_claim_is_not_given_out_again_and_its_worker_brings_it_back() {
    let (world, kept) = about_to_crash().await;
    let lost = world.hold("p", "lost").await;
    let (of_kept, of_lost) = (holder(&world, "kept").await, holder(&world, "lost").await);
    let idle = ["u", "v", "w"].into_iter().find(|id| ![&*of_kept, &*of_lost].contains(id)).unwrap();
    let world = world.crashed().await;
    assert_eq!((world.held().await.len(), suspects(&world).await), (1, 3));
    assert_eq!(world.s.get_claim(&id("lost")).await, Err(GONE), "its record was lost");
    // Nothing is offered, whatever is said, while a lost claim may still be started.
    assert_eq!(world.claim("p", "new").await, Err(FULL));
    world.beat(idle, Some(&[])).await;
    world.s.register(&name("p"), RegistrationRequest { spec: worker(idle), claims: Some(Vec::new()) }).await.unwrap();
    let early =
        world.s.command_worker(&name("p"), &WorkerId::new(idle).unwrap(), WorkerCommand::Clear).await.unwrap_err();
    assert!(early.to_string().contains("can still start for 5000 ms"), "{early}");
    assert_eq!(world.s.clear_pool(&name("p")).await, Ok(ClearResult { cleared: 0, suspect: 3 }));
    assert_eq!(world.claim("p", "new").await, Err(FULL));
    // The lost one is taken over, with its fence, as soon as its worker names it.
    let heard = world.beat(&of_lost, Some(&[("lost", lost)])).await;
    assert_eq!((heard.claims.len(), heard.claims[0].fence, heard.stop.len()), (1, lost, 0));
    assert_eq!((world.state("lost").await, suspects(&world).await), (ClaimState::Active, 3));
    world.pass(RESERVE_MS).await;
    assert_eq!(world.claim("p", "new").await, Err(FULL), "that time has passed is not enough");
    for (worker, claims) in [(idle, vec![]), (&*of_kept, vec![("kept", kept)]), (&*of_lost, vec![("lost", lost)])] {
        world.beat(worker, Some(&claims)).await;
    }
    assert_eq!(suspects(&world).await, 0);
    let new = world.hold("p", "new").await;
    assert!(new > lost && holder(&world, "new").await == idle);
    // It is a claim like any other.
    world.s.release(&id("lost"), lost).await.unwrap();
    let heard = world.beat(&of_lost, Some(&[("lost", lost)])).await;
    assert_eq!((heard.claims.len(), heard.stop), (0, running(&[("lost", lost)])), "once over, it is not taken again");
}

#[tokio::test]
async fn s01_the_first_word_after_the_time_ends_what_it_does_not_name() {
    let (world, kept) = about_to_crash().await;
    let of_kept = holder(&world, "kept").await;
    // Its holder was told that it is over, and the store was not.
    world.s.release(&id("kept"), kept).await.unwrap();
    let world = world.crashed().await;
    assert_eq!(world.s.get_claim(&id("kept")).await.unwrap().fence, kept);
    world.beat(&of_kept, Some(&[])).await;
    assert_eq!(world.state("kept").await, ClaimState::Active, "it may have been started a moment later");
    world.pass(RESERVE_MS).await;
    world.beat(&of_kept, None).await;
    assert_eq!(world.state("kept").await, ClaimState::Active, "that says nothing about claims");
    world.beat(&of_kept, Some(&[])).await;
    assert_eq!(world.s.get_claim(&id("kept")).await, Err(GONE));
    assert_eq!((world.counts("p").await, suspects(&world).await), ((1, 0, 0), 2));
}

#[tokio::test]
async fn s01_the_owner_can_speak_for_all_and_keeps_what_is_known() {
    let (world, kept) = about_to_crash().await;
    let world = world.crashed().await;
    world.pass(RESERVE_MS).await;
    assert_eq!(world.s.clear_pool(&name("p")).await, Ok(ClearResult { cleared: 3, suspect: 0 }));
    assert_eq!(world.s.get_claim(&id("kept")).await.unwrap().fence, kept);
    assert_eq!(world.counts("p").await, (2, 1, 0));
    world.hold("p", "new").await;
    // That was stored: a shard that panics does not forget it, nor does a stop.
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
async fn s01_a_clean_stop_leaves_nobody_suspect_and_one_in_between_no_one_trusted() {
    let world = World::on_store().await;
    world.pool("p", memory(2), &["u", "v", "w"]).await;
    world.hold("p", "kept").await;
    let world = world.restarted().await;
    assert_eq!((suspects(&world).await, world.counts("p").await), (0, (2, 1, 0)));
    // Crash, then stop in good order before anything was said: it is still not known what runs there.
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
        "the time starts anew"
    );
    world.pass(1).await;
    // One is spoken for; after the next crash all are in doubt again.
    world.beat("u", Some(&[])).await;
    assert_eq!(suspects(&world).await, 2);
    world.stored("p").await;
    assert_eq!(suspects(&world.crashed().await).await, 3);
}

#[tokio::test]
async fn s01_durable_pools_have_no_suspects_and_a_new_life_is_none() {
    let world = World::on_store().await;
    world.pool("p", memory(1), &["u", "v"]).await;
    world.pool("d", spec(1, AckLevel::Durable), &["x"]).await;
    let world = world.crashed().await;
    assert!(world.claim("d", "k").await.unwrap().created);
    world.s.register(&name("p"), WorkerSpec { incarnation: 1, ..worker("u") }).await.unwrap();
    assert_eq!((suspects(&world).await, world.counts("p").await), (1, (1, 0, 0)));
    // One that the store never knew may have been known to the last process.
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
    world.gate().hold(move |step| step.shard == key && matches!(step.kind, WriteKind::Rows(_)));
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
    // And back: as soon as the store has all that was acknowledged, nothing can be lost any more.
    world.s.put_pool(name("p"), PoolSpec { ack: AckLevel::Durable, ..memory(1) }).await.unwrap();
    world.hold("p", "k").await;
    assert_eq!(suspects(&world.crashed().await).await, 0);
}

/// The key went from one worker to another, and the store knows only of the first. Whichever speaks first, the later
/// claim is the one that stays.
#[tokio::test]
async fn k1_of_two_claims_of_a_key_the_one_that_the_store_lost_is_the_later() {
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
            world.beat(&a, Some(&[])).await;
        }
        let heard = world.beat(&b, Some(&[("k", later)])).await;
        assert_eq!(heard.stop, [], "nothing that it runs is wrong");
        world.quiet().await;
        let heard = world.beat(&b, Some(&[("k", later)])).await;
        assert_eq!((heard.claims.len(), heard.stop.len()), (1, 0));
        assert_eq!(world.held().await, [("k".to_owned(), b.clone(), later)]);
        assert_eq!(world.s.keys().pending_len(), 0);
    }
}

/// What a worker names from before is taken over only if it can be true.
#[tokio::test]
async fn w05_an_adoption_needs_a_vacant_key_room_and_a_lost_number() {
    let (world, kept) = about_to_crash().await;
    let (lost, free) = (world.hold("p", "lost").await, world.hold("p", "free").await);
    let (of_kept, of_lost) = (holder(&world, "kept").await, holder(&world, "lost").await);
    let of_free = holder(&world, "free").await;
    let world = world.crashed().await;
    world.pool("q", spec(1, AckLevel::Durable), &["elsewhere"]).await;
    // Held elsewhere in the meantime.
    let taken = world.s.claim(request("q", "lost")).await.unwrap().claim.fence;
    assert!(taken > lost);
    assert_eq!(world.beat(&of_lost, Some(&[("lost", lost)])).await.stop, running(&[("lost", lost)]));
    world.s.release(&id("lost"), taken).await.unwrap();
    // A number that this process may have given, or that the store knew to be over.
    for fence in [taken, taken + 1, kept - 1, 1] {
        assert_eq!(world.beat(&of_lost, Some(&[("made-up", fence)])).await.stop.len(), 1, "{fence}");
    }
    assert_eq!(world.beat(&of_lost, Some(&[("lost", lost)])).await.stop.len(), 1, "it is vacant, but was not since");
    assert_eq!(world.beat(&of_free, Some(&[("free", free)])).await.claims.len(), 1);
    assert_eq!(
        world.beat(&of_free, Some(&[("more", free + 1), ("free", free)])).await.stop,
        running(&[("more", free + 1)])
    );
    assert_eq!(holder(&world, "kept").await, of_kept);
    assert_eq!(world.s.keys().pending_len(), 0);
}
