//! S08: a panic inside one shard.

use std::cell::Cell;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::channel;

use futures::FutureExt as _;
use hotpool::model::request_error::RequestError;
use hotpool::model::{AckLevel, HeartbeatRequest, WorkerCommand, WorkerId};
use hotpool::persist::store::WriteOutcome;
use hotpool::scheduler::{DeleteMode, Scheduler};
use hotpool::shard::{ProtocolPoint, inject_into_thread};
use tokio::sync::oneshot;

use crate::world::{LOADING, Seeded, World, done, id, ids_on, name, request, spec, until};

/// Sets up pool `p` of two shards with `n` workers on each.
async fn two_shards(n: usize, ack: AckLevel) -> World {
    let world = World::on_store().await;
    world.pool("p", spec(2, ack), &[]).await;
    for shard in 0..2 {
        let ids = ids_on(shard, 2, n, "w");
        world.add("p", &ids.iter().map(String::as_str).collect::<Vec<_>>()).await;
    }
    world
}

/// Claims a key that is held on the shard.
async fn hold_on(world: &World, shard: u16, prefix: &str) -> (String, u64) {
    for i in 0.. {
        let key = format!("{prefix}{i}");
        let taken = world.claim("p", &key).await.unwrap();
        if taken.claim.worker.spec.id.shard(2) == shard {
            world.s.confirm(&id(&key), taken.claim.fence).await.unwrap();
            return (key, taken.claim.fence);
        }
        world.s.release(&id(&key), taken.claim.fence).await.unwrap();
    }
    unreachable!("every shard has an idle worker")
}

async fn wait_restarted(world: &World, shard: usize, times: u64) {
    until("the shard is back", async || {
        let status = &world.shards("p").await[shard];
        status.restarts == times && status.state == "serving"
    })
    .await;
}

#[tokio::test]
async fn s08_a_shard_that_panics_is_restarted_with_its_claims_and_keys() {
    let world = two_shards(3, AckLevel::Durable).await;
    let (on_0, fence_0) = hold_on(&world, 0, "a").await;
    let (on_1, fence_1) = hold_on(&world, 1, "b").await;
    world.stored("p").await;
    let before = world.rows("p").await;
    world.s.inject_panic(&name("p"), 0);
    wait_restarted(&world, 0, 1).await;
    assert_eq!(world.rows("p").await, before);
    assert_eq!(world.shards("p").await[1].restarts, 0);
    for (key, fence) in [(on_0, fence_0), (on_1, fence_1)] {
        let again = world.claim("p", &key).await.unwrap();
        assert!(!again.created);
        assert_eq!(again.claim.fence, fence);
        world.s.release(&id(&key), fence).await.unwrap();
    }
    world.is_clean().await;
    assert_eq!(world.counts("p").await, (6, 0, 0));
    hold_on(&world, 0, "c").await;
}

#[tokio::test]
async fn s08_while_a_shard_is_unavailable_its_keys_are_and_others_are_not() {
    let world = two_shards(2, AckLevel::Memory).await;
    let (on_0, fence_0) = hold_on(&world, 0, "a").await;
    let (on_1, fence_1) = hold_on(&world, 1, "b").await;
    // The last decision is only in the journal's tail, so the restart has to wait for the store.
    world.gate().hold_all();
    let (tail, tail_fence) = hold_on(&world, 0, "t").await;
    world.s.inject_panic(&name("p"), 0);
    until("it is away", async || world.shards("p").await[0].state == "loading").await;
    assert_eq!(world.s.get_claim(&id(&on_0)).await, Err(LOADING));
    assert_eq!(world.claim("p", &on_0).await, Err(LOADING));
    assert_eq!(world.s.release(&id(&on_0), fence_0).await, Err(LOADING));
    assert_eq!(world.s.get_claim(&id(&on_1)).await.unwrap().fence, fence_1);
    let other = world.claim("p", "other").await.unwrap();
    assert_eq!(other.claim.worker.spec.id.shard(2), 1);
    // Shard 1 is full now, but no reply may say that the pool is.
    assert_eq!(world.claim("p", "one-too-many").await, Err(LOADING));
    // Of the heartbeats in one call those of shard 1 are handled.
    let silent = || HeartbeatRequest { incarnation: 0, seq: None, claims: None };
    let workers: Vec<WorkerId> =
        (0..2).map(|shard| WorkerId::new(&ids_on(shard, 2, 1, "w").remove(0)).unwrap()).collect();
    let beats = workers.into_iter().map(|id| (id, silent())).collect();
    let responses = world.s.heartbeat_batch(&name("p"), beats).await.unwrap();
    assert_eq!((responses[0].clone().err(), responses[1].is_ok()), (Some(LOADING), true), "{responses:?}");
    assert_eq!(world.s.keys().pending_len(), 0);
    let says = |reason: &String| reason.contains("shard 0 of ns/p panicked");
    until("readiness says so", async || world.s.readiness().reasons.iter().any(says)).await;
    world.gate().open_gate();
    wait_restarted(&world, 0, 1).await;
    assert_eq!(world.s.get_claim(&id(&on_0)).await.unwrap().fence, fence_0);
    assert_eq!(world.s.get_claim(&id(&tail)).await.unwrap().fence, tail_fence, "the tail was not lost");
    assert_eq!(world.s.release(&id(&tail), tail_fence).await, Ok(()));
    until("readiness forgets", async || world.s.readiness().ready).await;
}

/// Decisions of the run that panicked were never handed over: their callers get no result, and they did not happen.
#[tokio::test]
async fn s08_decisions_of_the_run_that_panics_are_undone() {
    let world = World::on_store().await;
    world.pool("p", spec(1, AckLevel::Durable), &["v", "w"]).await;
    let fence = world.hold("p", "held").await;
    world.stored("p").await;
    let before = world.rows("p").await;
    // The shard does not run before all of these are in its mailbox.
    let busy = world.busy("p").await;
    let claim = world.begin_alone(|s| async move { s.claim(request("p", "k")).await });
    let release = world.begin_alone(|s| async move { s.release(&id("held"), fence).await });
    let panic = world.begin_alone(|s| async move { s.inject_panic(&name("p"), 0) });
    let behind = world.begin_alone(|s| async move { s.claim(request("p", "behind")).await });
    busy.until_queued(4).await;
    assert_eq!(done(claim).await, Err(RequestError::DeadlineExceeded));
    assert_eq!(done(release).await, Err(RequestError::DeadlineExceeded));
    done(panic).await;
    assert_eq!(done(behind).await, Err(RequestError::DeadlineExceeded));
    wait_restarted(&world, 0, 1).await;
    assert_eq!(world.rows("p").await, before);
    assert!(world.is_vacant("k") && world.is_vacant("behind"));
    assert_eq!((world.s.keys().len(), world.s.keys().pending_len()), (1, 0));
    world.s.release(&id("held"), fence).await.unwrap();
    world.is_clean().await;
}

/// A release is undone by the panic, and the key is asked for elsewhere before the shard is back.
#[tokio::test]
async fn s08_a_release_that_a_panic_undoes_never_freed_the_key() {
    let world = World::on_store().await;
    world.pool("a", spec(1, AckLevel::Durable), &["wa"]).await;
    world.pool("b", spec(1, AckLevel::Durable), &["wb"]).await;
    let fence = world.hold("a", "k").await;
    world.stored("a").await;
    world.gate().hold_loads();
    let busy = world.busy("a").await;
    let release = world.begin_alone(|s| async move { s.release(&id("k"), fence).await });
    let panic = world.begin_alone(|s| async move { s.inject_panic(&name("a"), 0) });
    busy.until_queued(2).await;
    assert_eq!(done(release).await, Err(RequestError::DeadlineExceeded));
    done(panic).await;
    until("it is away", async || world.shards("a").await[0].state == "loading").await;
    // The run ended before its events were delivered, so nobody has seen the release.
    assert_eq!(world.claim("b", "k").await, Err(LOADING));
    assert_eq!(world.counts("b").await, (1, 0, 0));
    world.gate().open_gate();
    until("it is back", async || world.shards("a").await[0].state == "serving").await;
    assert_eq!(world.held().await, [("k".into(), "wa".into(), fence)]);
    world.s.release(&id("k"), fence).await.unwrap();
    let taken = world.claim("b", "k").await.unwrap();
    assert!(taken.claim.fence > fence);
    assert_eq!(world.crashed().await.held().await, [("k".into(), "wb".into(), taken.claim.fence)]);
}

/// The release is requested again while the key seems to be free and the shard is unavailable.
#[tokio::test]
async fn s08_an_undone_release_is_acknowledged_only_after_it_happened() {
    for by_batch in [false, true] {
        let world = World::on_store().await;
        world.pool("p", spec(1, AckLevel::Durable), &["w"]).await;
        let fence = world.hold("p", "k").await;
        world.stored("p").await;
        world.gate().hold_loads();
        let busy = world.busy("p").await;
        let release = world.begin_alone(|s| async move { s.release(&id("k"), fence).await });
        let panic = world.begin_alone(|s| async move { s.inject_panic(&name("p"), 0) });
        busy.until_queued(2).await;
        assert_eq!(done(release).await, Err(RequestError::DeadlineExceeded));
        done(panic).await;
        let again = if by_batch {
            let call = move |s: Scheduler| async move { s.release_batch(vec![(id("k"), fence)]).await.remove(0) };
            world.begin(move |s| Box::pin(call(s))).await
        } else {
            world.begin_release("k", fence).await
        };
        let read = world.begin(|s| Box::pin(async move { s.get_claim(&id("k")).await })).await;
        world.gate().open_gate();
        wait_restarted(&world, 0, 1).await;
        // The shard continues past the sequence number that the release had.
        world.add("p", &["x", "y", "z"]).await;
        let (again, read) = (done(again).await, done(read).await);
        match &again {
            Ok(()) => assert!(!world.held().await.iter().any(|(key, ..)| key == "k"), "acknowledged, and still held"),
            Err(refusal) => assert!(matches!(refusal, RequestError::Unavailable(_)), "{refusal}"),
        }
        // The read may have come before the release or after it.
        assert!(read == Err(LOADING) || read.is_ok_and(|claim| claim.fence == fence) || again.is_ok());
        world.s.release(&id("k"), fence).await.unwrap();
        world.is_clean().await;
        assert_eq!(world.counts("p").await, (4, 0, 0));
    }
}

#[tokio::test]
async fn s08_a_shard_that_panics_repeatedly_is_refused_by_name() {
    let world = two_shards(2, AckLevel::Durable).await;
    let (on_0, _) = hold_on(&world, 0, "a").await;
    let (on_1, fence_1) = hold_on(&world, 1, "b").await;
    for times in 1..=5 {
        world.s.inject_panic(&name("p"), 0);
        wait_restarted(&world, 0, times).await;
    }
    world.s.inject_panic(&name("p"), 0);
    until("it is refused", async || world.shards("p").await[0].state == "refused").await;
    let ready = world.s.readiness();
    assert!(!ready.ready && ready.reasons.iter().any(|reason| reason.contains("shard 0 of ns/p")), "{ready:?}");
    assert_eq!(world.claim("p", &on_0).await, Err(LOADING));
    assert_eq!(world.s.get_claim(&id(&on_0)).await, Err(LOADING));
    assert_eq!(world.s.get_claim(&id(&on_1)).await.unwrap().fence, fence_1);
    world.claim("p", "more").await.unwrap();
    assert_eq!(world.claim("p", "too-many").await, Err(LOADING), "not: full");
    assert_eq!(world.s.keys().pending_len(), 0);
}

/// The run that panics has handed over the row of a grant that nobody has learned of. The key is granted to nobody else
/// before the shard has said who holds it, and never if the shard is given up: a restart would show the older grant again.
#[tokio::test]
async fn s08_a_grant_that_only_a_row_tells_of_keeps_its_key() {
    for panics_before in [0, 5] {
        let world = World::on_store().await;
        world.pool("p", spec(1, AckLevel::Durable), &["wp"]).await;
        world.pool("other", spec(1, AckLevel::Durable), &["wo"]).await;
        for times in 1..=panics_before {
            world.s.inject_panic(&name("p"), 0);
            wait_restarted(&world, 0, times).await;
        }
        world.stored("p").await;
        world.gate().hold_loads();
        let has_panicked = Cell::new(false);
        let hook =
            move |point| assert!(point != ProtocolPoint::Published || has_panicked.replace(true), "injected fault");
        inject_into_thread(Some(Rc::new(hook)), None);
        let answer = done(world.begin_request_alone(forever("k"))).await;
        inject_into_thread(None, None);
        assert_eq!(answer, Err(RequestError::DeadlineExceeded));
        let state = if panics_before == 5 { "refused" } else { "loading" };
        until("it is away", async || world.shards("p").await[0].state == state).await;
        assert_eq!(world.claim("other", "k").await, Err(LOADING), "{state}");
        assert_eq!(world.counts("other").await, (1, 0, 0));
        let crashed = world.crashed().await;
        let [(key, worker, fence)] = &crashed.held().await[..] else { panic!("one row") };
        assert_eq!((key.as_str(), worker.as_str()), ("k", "wp"));
        world.gate().open_gate();
        if state == "loading" {
            wait_restarted(&world, 0, 1).await;
            // Nobody had read it, so it may be rolled back before it is claimed again.
            let again = world.claim("p", "k").await.unwrap().claim.fence;
            assert!(again >= *fence);
            world.s.release(&id("k"), again).await.unwrap();
            world.is_clean().await;
        }
    }
}

/// Claims of one task, one after the other: every call gets a reply, and retries resolve every doubt.
async fn churn(s: Scheduler, task: u64, seed: u64, stop: Arc<AtomicBool>) -> u64 {
    let mut random = Seeded(seed ^ (task << 32));
    let (mut doubts, mut nth) = (0, 0);
    while !stop.load(Ordering::Relaxed) {
        // A fresh key may go to any shard; the same one would follow its affinity to the unharmed shard.
        let request = request("p", &format!("t{task}-{nth}"));
        let key = request.id.clone();
        nth += 1;
        let taken = loop {
            match s.claim(request.clone()).await {
                Ok(taken) => break taken,
                Err(RequestError::DeadlineExceeded | RequestError::Unavailable(_)) => doubts += 1,
                Err(other) => panic!("{other}"),
            }
            tokio::task::yield_now().await;
        };
        if random.below(2) == 0 && s.confirm(&key, taken.claim.fence).await.is_err() {
            doubts += 1;
        }
        loop {
            match s.release(&key, taken.claim.fence).await {
                Ok(()) => break,
                Err(RequestError::DeadlineExceeded | RequestError::Unavailable(_)) => doubts += 1,
                Err(other) => panic!("{other}"),
            }
            tokio::task::yield_now().await;
        }
    }
    doubts
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn s08_with_claims_in_flight_from_many_tasks() {
    const SEED: u64 = 8;
    println!("seed {SEED}: change SEED to reproduce another run");
    let world = two_shards(8, AckLevel::Durable).await;
    let stop = Arc::new(AtomicBool::new(false));
    let tasks: Vec<_> =
        (0..8).map(|task| tokio::spawn(churn(world.s.clone(), task, SEED, Arc::clone(&stop)))).collect();
    for times in 1..=5 {
        let before = world.shards("p").await[0].seq;
        until("it does something", async || {
            world.pass(1).await;
            world.shards("p").await[0].seq > before + 10
        })
        .await;
        world.s.inject_panic(&name("p"), 0);
        wait_restarted(&world, 0, times).await;
    }
    stop.store(true, Ordering::Relaxed);
    until("all tasks end", async || {
        world.pass(1).await;
        tasks.iter().all(tokio::task::JoinHandle::is_finished)
    })
    .await;
    for task in tasks {
        done(task).await;
    }
    world.is_clean().await;
    assert_eq!(world.counts("p").await, (16, 0, 0));
    let live = world.rows("p").await;
    world.stored("p").await;
    assert_eq!(world.crashed().await.rows("p").await, live);
}

/// Commands that arrived while the shard panicked are decided by its next life, which assigns new ordinals: each
/// refers to the claim that it was sent for.
#[tokio::test]
async fn s16_commands_that_survive_a_panic_refer_to_the_same_claims() {
    for verb in ["release", "batch", "confirm", "renew", "get", "begin release", "repeat"] {
        let world = World::on_store().await;
        world.pool("p", spec(1, AckLevel::Memory), &["u", "v", "w"]).await;
        world.stored("p").await;
        // One run hands over the row of b's worker before that of a's, because that changed first. So the ordinals of
        // the two claims are swapped when the rows are replayed.
        let busy = world.busy("p").await;
        let command_worker = |verb| {
            let worker = WorkerId::new("v").unwrap();
            let _ = world.s.command_worker(&name("p"), &worker, verb).now_or_never();
        };
        let claim = |key| {
            let scheduler = world.s.clone();
            let mut claim = Box::pin(async move { scheduler.claim(request("p", key)).await });
            assert!(claim.as_mut().now_or_never().is_none());
            claim
        };
        command_worker(WorkerCommand::Cordon);
        let first = claim("a");
        command_worker(WorkerCommand::Uncordon);
        let second = claim("b");
        drop(busy);
        let (first, second) = (first.await.unwrap().claim, second.await.unwrap().claim);
        assert_eq!([&first, &second].map(|claim| claim.worker.spec.id.as_str()), ["w", "v"]);
        let (first, second) = (first.fence, second.fence);
        if verb == "renew" {
            world.s.confirm(&id("a"), first).await.unwrap();
        }
        world.stored("p").await;
        let (sender, outcome) = tokio::sync::oneshot::channel();
        let scheduler = world.s.clone();
        world.s.inject_panic_after(&name("p"), 0, move || {
            // Pushed within the run, so it is in the mailbox when the shard panics.
            let mut call: futures::future::BoxFuture<'static, Result<(), RequestError>> = match verb {
                "release" => Box::pin(async move { scheduler.release(&id("a"), first).await }),
                "batch" => Box::pin(async move { scheduler.release_batch(vec![(id("a"), first)]).await.remove(0) }),
                "confirm" => Box::pin(async move { scheduler.confirm(&id("a"), first).await.map(drop) }),
                "renew" => Box::pin(async move { scheduler.renew(&id("a"), first, Some(60_000)).await.map(drop) }),
                "get" => Box::pin(async move { scheduler.get_claim(&id("a")).await.map(drop) }),
                "begin release" => Box::pin(async move { scheduler.begin_release(&id("a"), first).await }),
                _ => Box::pin(async move { scheduler.claim(request("p", "a")).await.map(drop) }),
            };
            assert!((&mut call).now_or_never().is_none(), "it waits in the mailbox");
            drop(sender.send(call));
        });
        let call = outcome.await.unwrap();
        wait_restarted(&world, 0, 1).await;
        let outcome = tokio::time::timeout(std::time::Duration::from_secs(30), call).await.expect("an answer");
        assert_eq!(outcome, Ok(()), "{verb}");
        let held = world.s.get_claim(&id("a")).await;
        match verb {
            "release" | "batch" => assert!(held.is_err(), "{verb} was acknowledged, so it happened"),
            "begin release" => assert_eq!(held.unwrap().state, hotpool::model::ClaimState::Releasing),
            _ => assert_eq!(held.unwrap().fence, first, "{verb}"),
        }
        assert_eq!(world.s.get_claim(&id("b")).await.unwrap().fence, second, "the other claim is unchanged");
    }
}

/// A claim whose caller leaves while its shard panics is rolled back by the next life.
#[tokio::test]
async fn s16_a_roll_back_survives_a_panic() {
    let world = World::on_store().await;
    world.pool("p", spec(1, AckLevel::Memory), &["u", "v", "w"]).await;
    let other = world.s.claim(forever("other")).await.unwrap().claim.fence;
    let mut gathered = hotpool::scheduler::ClaimBatchBuilder::default();
    // Leaked: the injected step outlives the test.
    let scheduler: &'static Scheduler = Box::leak(Box::new(world.s.clone()));
    let claiming = scheduler.gather(forever("k"), &mut gathered).unwrap();
    world.s.decide_gathered(&mut gathered);
    world.s.release(&id("other"), other).await.unwrap();
    let disclosed = world.s.claim(forever("disclosed")).await.unwrap().claim.fence;
    assert!(!world.s.claim(forever("disclosed")).await.unwrap().created);
    world.stored("p").await;
    world.s.inject_panic_after(&name("p"), 0, move || drop(claiming));
    wait_restarted(&world, 0, 1).await;
    until("it is rolled back", async || world.counts("p").await == (2, 1, 0)).await;
    until("its key is free", async || world.is_vacant("k")).await;
    assert_eq!(world.s.get_claim(&id("disclosed")).await.unwrap().fence, disclosed);
}

/// Builds a claim that is active at once, which no deadline would ever end.
fn forever(key: &str) -> hotpool::model::ClaimRequest {
    hotpool::model::ClaimRequest { reserve_ms: Some(0), ..request("p", key) }
}

/// The panic drops the reply that would have disclosed a claim, whose record is stored nevertheless.
#[tokio::test]
async fn s16_a_claim_whose_reply_a_panic_dropped_is_rolled_back() {
    let world = World::on_store().await;
    world.pool("p", spec(1, AckLevel::Durable), &["w"]).await;
    world.stored("p").await;
    world.gate().hold_all();
    let claim = world.begin_request(forever("k")).await;
    world.gate().stopped().await;
    world.s.inject_panic(&name("p"), 0);
    assert_eq!(done(claim).await, Err(RequestError::DeadlineExceeded));
    world.gate().open_gate();
    wait_restarted(&world, 0, 1).await;
    until("it is rolled back", async || world.counts("p").await == (1, 0, 0)).await;
    world.is_clean().await;
}

/// The run that rolled a claim back panics before it has handed that over.
#[tokio::test]
async fn s16_a_roll_back_that_a_panic_undid_is_repeated() {
    let world = World::on_store().await;
    world.pool("p", spec(1, AckLevel::Memory), &["w"]).await;
    let mut gathered = hotpool::scheduler::ClaimBatchBuilder::default();
    let claiming = world.s.gather(forever("k"), &mut gathered).unwrap();
    world.s.decide_gathered(&mut gathered);
    world.stored("p").await;
    let busy = world.busy("p").await;
    drop(claiming);
    world.s.inject_panic(&name("p"), 0);
    drop(busy);
    wait_restarted(&world, 0, 1).await;
    until("it is rolled back", async || world.counts("p").await == (1, 0, 0)).await;
    world.is_clean().await;
}

/// The pool is deleted after the run of a caller has panicked, and before what the run left undecided is taken from it.
#[tokio::test]
async fn s17_a_claim_whose_decision_panics_while_its_pool_is_deleted_is_answered() {
    let world = World::on_memory().await;
    world.pool("p", spec(1, AckLevel::Memory), &["v"]).await;
    let scheduler = world.s.clone();
    let (panicked, has_panicked) = oneshot::channel();
    let (deleted, is_deleted) = channel();
    let caller = std::thread::spawn(move || {
        let panicked = Cell::new(Some(panicked));
        let hook = move |point| match point {
            ProtocolPoint::Decided => panic!("injected fault"),
            ProtocolPoint::PanicCaught => {
                panicked.take().expect("one panic").send(()).expect("the test waits");
                is_deleted.recv().expect("the pool is deleted");
            }
            _ => {}
        };
        inject_into_thread(Some(Rc::new(hook)), None);
        scheduler.claim(request("p", "k")).now_or_never().expect("the claim is decided at once")
    });
    has_panicked.await.unwrap();
    world.s.delete_pool(&name("p"), DeleteMode::Force).await.unwrap();
    deleted.send(()).unwrap();
    let answer = tokio::task::spawn_blocking(|| caller.join()).await.unwrap().expect("the caller does not panic");
    assert_eq!(answer, Err(RequestError::DeadlineExceeded));
    assert!(world.s.keys().is_empty());
}

/// A shard of a pool is gone, and is being loaded again, while another is not gone yet.
#[tokio::test]
async fn s17_a_reply_does_not_wait_for_a_shard_that_is_gone() {
    let world = World::on_store().await;
    world.pool("a", spec(1, AckLevel::Durable), &["wa"]).await;
    let ids = [ids_on(0, 2, 1, "w").remove(0), ids_on(1, 2, 1, "w").remove(0)];
    world.pool("b", spec(2, AckLevel::Durable), &[&ids[0]]).await;
    let fence = world.hold("b", "k").await;
    world.stored("b").await;
    let (first, second) = (world.gate().key("ns/b", 0), world.gate().key("ns/b", 1));
    world.gate().leave_unanswered(first, usize::MAX);
    world.gate().leave_unanswered(second, usize::MAX);
    let release = world.begin_release("k", fence).await;
    let claim = world.begin_claim("a", "k").await;
    until("it is decided", async || world.counts("a").await == (0, 1, 1)).await;
    let busy = world.busy("a").await;
    world.gate().hold_loads();
    world.s.inject_panic(&name("b"), 0);
    until("it is being loaded", async || world.shards("b").await[0].state == "loading").await;
    let deletion = world.begin_alone(|s| async move { s.delete_pool(&name("b"), DeleteMode::Force).await });
    world.gate().leave_unanswered(first, 0);
    until("the first shard is gone", async || world.gate().log(first).contains(&("drop", WriteOutcome::Ok))).await;
    world.gate().let_load_pass().await;
    drop(busy);
    assert!(done(claim).await.unwrap().created);
    assert!(!deletion.is_finished());
    world.gate().open_gate();
    done(deletion).await.unwrap();
    drop(release);
}
