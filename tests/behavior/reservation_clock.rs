//! C13, C16: the times of a claim count from when its reply is sent, however it is sent or ends.

use futures::FutureExt as _;
use hotpool::model::request_error::RequestError;
use hotpool::model::{
    AckLevel, ClaimRequest, ClaimResult, ClaimState, HeartbeatRequest, PoolSpec, RunningClaim, WorkerId,
};
use hotpool::scheduler::Scheduler;
use tokio::task::JoinHandle;

use crate::world::{WAIT_MS, World, done, id, ids_on, name, request, spec, until, worker};

const RESERVE_MS: u64 = 1_000;

type Outcomes = Vec<Result<ClaimResult, RequestError>>;

fn short_reservations(shards: u16, ack: AckLevel) -> PoolSpec {
    PoolSpec { reserve_ms: RESERVE_MS, ..spec(shards, ack) }
}

fn waits(key: &str) -> ClaimRequest {
    ClaimRequest { wait_ms: 60_000, ..request("p", key) }
}

async fn begin_batch(world: &World, batch: Vec<ClaimRequest>) -> JoinHandle<Outcomes> {
    world.begin(move |s: Scheduler| async move { s.claim_batch(batch).await }.boxed()).await
}

fn workers(outcomes: &Outcomes) -> Vec<String> {
    let mut workers: Vec<String> =
        outcomes.iter().map(|taken| taken.as_ref().unwrap().claim.worker.spec.id.to_string()).collect();
    workers.sort_unstable();
    workers.dedup();
    workers
}

#[tokio::test]
async fn c13_no_item_of_a_batch_expires_while_another_waits() {
    for ack in [AckLevel::Memory, AckLevel::Durable] {
        let world = World::on_store().await;
        world.pool("p", short_reservations(1, ack), &["v", "w"]).await;
        let held = world.hold("p", "held").await;
        let begun = begin_batch(&world, vec![request("p", "e1"), waits("e2")]).await;
        until("the second waits", async || world.s.waiting(&name("p")) == 1).await;
        // A query meanwhile starts no deadline: the reply that counts is still to come.
        assert_eq!(world.s.get_claim(&id("e1")).await.unwrap().expires_at_ms, None);
        assert!(!world.claim("p", "e1").await.unwrap().created);
        world.pass(3 * RESERVE_MS).await;
        world.s.release(&id("held"), held).await.unwrap();
        let outcomes = done(begun).await;
        assert_eq!(workers(&outcomes).len(), 2, "never two items on one worker");
        let now = world.s.get_claim(&id("e1")).await.unwrap();
        let expires_at_ms = outcomes[0].as_ref().unwrap().claim.expires_at_ms;
        assert_eq!(
            (now.expires_at_ms, expires_at_ms.is_some()),
            (expires_at_ms, true),
            "every answer gives the same deadline"
        );
        // Just before its deadline each can still be confirmed.
        world.pass(RESERVE_MS - 200).await;
        for taken in outcomes.iter().flatten() {
            world.s.confirm(&taken.claim.id, taken.claim.fence).await.unwrap();
        }
    }
}

/// A process that stood still answers before its clock has caught up with the time that passed: no deadline is shorter for it.
#[tokio::test]
async fn c13_deadlines_that_are_set_after_a_standstill_are_not_shorter() {
    for ack in [AckLevel::Memory, AckLevel::Durable] {
        for kind in ["claim", "batch", "gang", "renew", "confirm", "begin_release"] {
            let world = World::on_store().await;
            let releasing_ms = RESERVE_MS;
            world.pool("p", PoolSpec { releasing_ms, ..short_reservations(2, ack) }, &["v", "w"]).await;
            let lives = |key| ClaimRequest { ttl_ms: Some(RESERVE_MS), ..request("p", key) };
            let early = match kind {
                "renew" | "confirm" | "begin_release" => Some(world.s.claim(lives("e1")).await.unwrap().claim.fence),
                _ => None,
            };
            if kind == "renew" {
                world.s.confirm(&id("e1"), early.unwrap()).await.unwrap();
            }
            world.clock.advance(std::time::Duration::from_millis(200));
            match kind {
                "claim" => drop(world.claim("p", "e1").await.unwrap()),
                "batch" => drop(world.s.claim_batch(vec![request("p", "e1"), request("p", "e2")]).await),
                "gang" => drop(world.s.claim_gang(vec![request("p", "e1"), request("p", "e2")]).await),
                "renew" => drop(world.s.renew(&id("e1"), early.unwrap(), None).await.unwrap()),
                "confirm" => drop(world.s.confirm(&id("e1"), early.unwrap()).await.unwrap()),
                _ => world.s.begin_release(&id("e1"), early.unwrap()).await.unwrap(),
            }
            world.clock.tick();
            world.pass(RESERVE_MS - 50).await;
            assert!(world.s.get_claim(&id("e1")).await.is_ok(), "{kind} with {ack:?}: it ended early");
            world.pass(100).await;
            assert!(world.s.get_claim(&id("e1")).await.is_err(), "{kind} with {ack:?}: it did not end");
        }
    }
}

/// A start takes long before the clock ticks for the first time: what is recovered has its full time all the same.
#[tokio::test]
async fn c13_deadlines_that_a_start_recovers_are_not_shorter() {
    let world = World::on_store().await;
    world.pool("p", short_reservations(1, AckLevel::Durable), &["v"]).await;
    world.claim("p", "e1").await.unwrap();
    let again = World::closed(world.gate().copy().await);
    again.clock.advance(std::time::Duration::from_millis(200));
    again.s.start().await.unwrap();
    again.clock.tick();
    again.pass(RESERVE_MS - 50).await;
    assert!(again.s.get_claim(&id("e1")).await.is_ok(), "it ended early");
    again.pass(100).await;
    assert!(again.s.get_claim(&id("e1")).await.is_err(), "it did not end");
}

#[tokio::test]
async fn c13_the_reservations_of_a_batch_start_with_its_reply() {
    let world = World::on_memory().await;
    world.pool("p", short_reservations(2, AckLevel::Memory), &["u", "v", "w"]).await;
    let held = world.hold("p", "held").await;
    let begun = begin_batch(&world, vec![request("p", "e1"), request("p", "e2"), waits("e3")]).await;
    until("the last waits", async || world.s.waiting(&name("p")) == 1).await;
    world.pass(3 * RESERVE_MS).await;
    world.s.release(&id("held"), held).await.unwrap();
    assert_eq!(done(begun).await.iter().flatten().count(), 3);
    world.pass(RESERVE_MS + 200).await;
    assert_eq!(world.counts("p").await, (3, 0, 0), "no claim was confirmed: all expired");
    world.is_clean().await;
}

/// No item waits for capacity: one shard's replies wait for the store.
#[tokio::test]
async fn c13_no_item_of_a_batch_expires_while_another_waits_for_the_store() {
    for late in 0..2 {
        let world = World::on_store().await;
        let ids: Vec<String> = (0..2).flat_map(|shard| ids_on(shard, 2, 1, "w")).collect();
        world
            .pool("p", short_reservations(2, AckLevel::Durable), &ids.iter().map(String::as_str).collect::<Vec<_>>())
            .await;
        world.stored("p").await;
        let late = world.gate().key("ns/p", late);
        world.gate().leave_unanswered(late, usize::MAX);
        let begun = begin_batch(&world, vec![request("p", "e1"), request("p", "e2")]).await;
        until("one shard is stored", async || {
            world.shards("p").await.iter().any(|shard| shard.busy > 0 && shard.applied_seq == shard.seq)
        })
        .await;
        world.pass(3 * RESERVE_MS).await;
        world.gate().open_gate();
        let outcomes = done(begun).await;
        for taken in &outcomes {
            let claim = &taken.as_ref().unwrap().claim;
            world.s.confirm(&claim.id, claim.fence).await.unwrap();
        }
        assert_eq!(workers(&outcomes).len(), 2);
    }
}

/// Active at once, to be renewed: the time to the first renewal counts in the same way.
#[tokio::test]
async fn c13_a_ttl_starts_with_the_reply_of_the_batch() {
    let world = World::on_memory().await;
    world.pool("p", short_reservations(1, AckLevel::Memory), &["v", "w"]).await;
    let held = world.hold("p", "held").await;
    let lives = |request| ClaimRequest { reserve_ms: Some(0), ttl_ms: Some(RESERVE_MS), ..request };
    let begun = begin_batch(&world, vec![lives(request("p", "e1")), lives(waits("e2"))]).await;
    until("the second waits", async || world.s.waiting(&name("p")) == 1).await;
    world.pass(3 * RESERVE_MS).await;
    world.s.release(&id("held"), held).await.unwrap();
    let outcomes = done(begun).await;
    assert_eq!(workers(&outcomes).len(), 2);
    let claim = &outcomes[0].as_ref().unwrap().claim;
    world.s.renew(&claim.id, claim.fence, None).await.unwrap();
    world.pass(RESERVE_MS + 200).await;
    world.is_clean().await;
}

/// The commits of a gang's shards are stored at different times: no member expires before the gang is answered.
#[tokio::test]
async fn c16_the_reservations_of_a_gang_start_with_its_reply() {
    let world = World::on_store().await;
    let ids: Vec<String> = (0..2).flat_map(|shard| ids_on(shard, 2, 2, "w")).collect();
    world
        .pool("p", short_reservations(2, AckLevel::Durable), &ids.iter().map(String::as_str).collect::<Vec<_>>())
        .await;
    world.stored("p").await;
    let gang: Vec<ClaimRequest> = ["a", "b", "c", "d"].map(|key| request("p", key)).to_vec();
    world.gate().hold_gang_rows();
    let begun = world.begin(move |s: Scheduler| async move { s.claim_gang(gang).await }.boxed()).await;
    world.gate().stopped().await;
    // The gang's row passes the gate; the commits of one shard do not.
    let home = world.gate().gang_home();
    let other = world.gate().key("ns/p", 1 - home.shard);
    world.gate().open_gate();
    world.gate().leave_unanswered(other, usize::MAX);
    until("the other shard's commit waits for the store", async || {
        let shards = world.shards("p").await;
        let [home, other] = [&shards[home.shard as usize], &shards[other.shard as usize]];
        home.applied_seq == home.seq && other.applied_seq < other.seq
    })
    .await;
    world.pass(3 * RESERVE_MS).await;
    world.gate().open_gate();
    let outcomes = done(begun).await;
    for taken in &outcomes {
        let claim = &taken.as_ref().unwrap().claim;
        world.s.confirm(&claim.id, claim.fence).await.unwrap();
    }
}

/// The commit is decided, its reply is too late: the claims of the gang end by themselves.
#[tokio::test]
async fn b06_a_gang_whose_commit_is_acknowledged_late_expires() {
    let world = World::on_store().await;
    world.pool("p", short_reservations(1, AckLevel::Durable), &["u", "v", "w"]).await;
    world.stored("p").await;
    let gang: Vec<ClaimRequest> = ["a", "b", "c"].map(|key| request("p", key)).to_vec();
    world.gate().hold_gang_rows();
    let begun = world.begin(move |s: Scheduler| async move { s.claim_gang(gang).await }.boxed()).await;
    world.gate().stopped().await;
    world.gate().hold_all_but_gang_rows();
    until("the gang is recorded", async || world.gate().gang_rows() == 1).await;
    // The members are committed, and their rows wait at the gate.
    world.gate().stopped().await;
    world.pass(WAIT_MS + 200).await;
    let outcomes = done(begun).await;
    assert!(outcomes.iter().all(|outcome| *outcome == Err(RequestError::DeadlineExceeded)), "{outcomes:?}");
    world.gate().open_gate();
    world.stored("p").await;
    world.pass(RESERVE_MS + 200).await;
    assert_eq!(world.counts("p").await, (3, 0, 0), "expired without a request for the keys");
    world.is_clean().await;
    // The gang's row is no longer needed.
    until("the gang is forgotten", async || world.gate().gang_rows() == 0).await;
}

/// The commit finds no free slot among the replies that wait for the store: its claims end in time nevertheless.
#[tokio::test]
async fn c16_a_gang_whose_commit_finds_too_many_replies_waiting_expires() {
    let world = World::on_store().await;
    world.pool("p", short_reservations(1, AckLevel::Durable), &["u", "v", "w"]).await;
    world.hold("p", "held").await;
    world.stored("p").await;
    world.gate().hold_gang_rows();
    let gang: Vec<ClaimRequest> = ["a", "b"].map(|key| request("p", key)).to_vec();
    let begun = world.begin(move |s: Scheduler| async move { s.claim_gang(gang).await }.boxed()).await;
    world.gate().stopped().await;
    // Decided after the gang's record, so later replies wait for more than that.
    assert!(world.s.register(&name("p"), worker("x")).now_or_never().is_none());
    let read = || {
        let scheduler = world.s.clone();
        async move { scheduler.get_claim(&id("held")).await }.boxed()
    };
    let mut waiting: Vec<_> = (0..hotpool::limits::PENDING_REPLIES_MAX).map(|_| read()).collect();
    // As many at a time as the shard's mailbox holds.
    for calls in waiting.chunks_mut(1_024) {
        for call in calls {
            let _ = futures::poll!(call);
        }
        world.quiet().await;
    }
    world.gate().hold_all_but_gang_rows();
    // The reply to the record is sent and frees a slot, which the next one takes.
    until("the gang is answered", async || {
        let mut call = read();
        let _ = futures::poll!(&mut call);
        waiting.push(call);
        begun.is_finished()
    })
    .await;
    let outcomes = done(begun).await;
    assert!(outcomes.iter().all(|outcome| *outcome == Err(RequestError::DeadlineExceeded)), "{outcomes:?}");
    assert_eq!((world.gate().gang_rows(), world.counts("p").await.2), (1, 2), "the gang is committed");
    world.pass(RESERVE_MS + 200).await;
    assert_eq!(world.counts("p").await, (3, 1, 0), "expired without a request for the keys");
}

/// A worker's list says nothing about an undisclosed claim.
#[tokio::test]
async fn c13_no_item_of_a_batch_ends_by_its_workers_list_while_another_waits() {
    let world = World::on_memory().await;
    let pool = PoolSpec { unnamed_ms: Some(RESERVE_MS), ..short_reservations(1, AckLevel::Memory) };
    world.pool("p", pool, &["v", "w"]).await;
    let held = world.hold("p", "held").await;
    let now = |request| ClaimRequest { reserve_ms: Some(0), ..request };
    let begun = begin_batch(&world, vec![now(request("p", "e1")), now(waits("e2"))]).await;
    until("the second waits", async || world.s.waiting(&name("p")) == 1).await;
    let runs = async |of_w: Vec<RunningClaim>| {
        for (worker, claims) in [("v", Vec::new()), ("w", of_w)] {
            let heartbeat = HeartbeatRequest { incarnation: 0, seq: None, claims: Some(claims) };
            world.s.heartbeat(&name("p"), &WorkerId::new(worker).unwrap(), heartbeat).await.unwrap();
        }
    };
    for _ in 0..4 {
        runs(vec![RunningClaim { id: id("held"), fence: held }]).await;
        world.pass(RESERVE_MS / 2 + 200).await;
    }
    world.s.release(&id("held"), held).await.unwrap();
    let outcomes = done(begun).await;
    assert_eq!(workers(&outcomes).len(), 2, "never two items on one worker");
    // From now on the list counts.
    for _ in 0..4 {
        runs(Vec::new()).await;
        world.pass(RESERVE_MS / 2 + 200).await;
    }
    assert_eq!(world.counts("p").await, (2, 0, 0));
}

/// An item's worker is lost and comes back while another item waits for it: the first is answered as lost.
#[tokio::test]
async fn c13_an_item_that_was_lost_while_another_waited_is_answered_as_lost() {
    let world = World::on_memory().await;
    world.pool("p", short_reservations(1, AckLevel::Memory), &["v"]).await;
    let begun = begin_batch(&world, vec![request("p", "e1"), waits("e2")]).await;
    until("the second waits", async || world.s.waiting(&name("p")) == 1).await;
    world.pass(RESERVE_MS).await;
    let again = hotpool::model::WorkerSpec { incarnation: 1, ..worker("v") };
    world.s.register(&name("p"), again).await.unwrap();
    let outcomes = done(begun).await;
    let states: Vec<ClaimState> = outcomes.iter().map(|taken| taken.as_ref().unwrap().claim.state).collect();
    assert_eq!(states, [ClaimState::Lost, ClaimState::Reserved], "one claim on the worker");
}
