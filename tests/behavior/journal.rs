//! Journal between a scheduler and a store that fails it: the stored rows are exactly what was decided in the end.

use std::collections::BTreeMap;

use hotpool::model::{AckLevel, PoolSpec, WorkerId, WorkerSpec};
use hotpool::persist::store::{WriteKind, WriteOutcome};

use crate::world::{Row, Seeded, World, done, id, name, spec, until, worker};

use WriteOutcome::{Gap, Ok as Applied};

/// Builds a worker with a long row, so that a few thousand of them fill several chunks of a snapshot.
fn long(id: &str) -> WorkerSpec {
    let labels = BTreeMap::from([("l".to_owned(), "x".repeat(250))]);
    WorkerSpec { labels, ..worker(id) }
}

async fn add_long(world: &World, prefix: &str, n: usize) {
    let all = (0..n).map(|i| long(&format!("{prefix}{i}")).into()).collect();
    for registered in world.s.register_batch(&name("p"), all).await.unwrap() {
        assert!(registered.unwrap().created);
    }
}

async fn pool_of_long(ack: AckLevel, n: usize) -> World {
    let world = World::on_store().await;
    world.pool("p", spec(1, ack), &[]).await;
    add_long(&world, "w", n).await;
    world.stored("p").await;
    world
}

/// Checks that the store holds exactly the live state, row by row.
async fn store_is_exact(world: &World) {
    // As a durable pool for a moment, so that no worker is suspect after the crash.
    let pool = world.s.get_pool(&name("p")).await.unwrap().spec;
    world.s.put_pool(name("p"), PoolSpec { ack: AckLevel::Durable, ..pool.clone() }).await.unwrap();
    world.quiet().await;
    world.stored("p").await;
    let live: Vec<Row> = world.rows("p").await;
    let crashed = world.crashed().await;
    world.s.put_pool(name("p"), pool).await.unwrap();
    assert!(crashed.rows("p").await == live, "the reloaded state differs");
    assert_eq!(crashed.counts("p").await, world.counts("p").await);
    // Also in the order in which idle workers are granted.
    for i in 0..3 {
        let key = format!("order{i}");
        let (live, stored) = (world.claim("p", &key).await.unwrap(), crashed.claim("p", &key).await.unwrap());
        assert_eq!(live.claim.worker.spec.id, stored.claim.worker.spec.id);
    }
}

/// Performs `n` random changes of every kind that changes a row.
async fn random_changes(world: &World, seed: u64, n: usize) {
    println!("seed {seed}");
    let (mut random, mut held) = (Seeded(seed), Vec::new());
    for i in 0..n {
        match random.below(10) {
            0..4 => {
                let key = format!("s{seed}-{i}");
                held.extend(world.claim("p", &key).await.ok().map(|taken| (id(&key), taken.claim.fence)));
            }
            4..6 if !held.is_empty() => {
                let (key, fence) = held.swap_remove(random.below(held.len() as u64) as usize);
                world.s.release(&key, fence).await.unwrap();
            }
            6 if !held.is_empty() => {
                let (key, fence) = &held[random.below(held.len() as u64) as usize];
                // The worker of the claim may be gone.
                let _ = world.s.confirm(key, *fence).await;
            }
            7 => {
                let worker = WorkerId::new(&format!("w{}", random.below(2_000))).unwrap();
                let _ = world.s.delete_worker(&name("p"), &worker).await;
            }
            8 => drop(world.s.register(&name("p"), long(&format!("new{seed}-{i}"))).await.unwrap()),
            _ => {
                let again = WorkerSpec { incarnation: 1 + i as u64, ..long(&format!("w{}", random.below(2_000))) };
                // The previous incarnation may have been newer.
                let _ = world.s.register(&name("p"), again).await;
            }
        }
        if random.below(50) == 0 {
            // Deleted workers are forgotten, and their ordinals used again.
            world.pass(60_000).await;
        }
    }
}

#[tokio::test]
async fn s02_a_write_whose_reply_is_lost_is_sent_again_and_applied_once() {
    let world = World::on_store().await;
    world.pool("p", spec(1, AckLevel::Durable), &["w"]).await;
    let key = world.gate().key("ns/p", 0);
    let before = world.gate().log(key).len();
    world.gate().lose_reply(1);
    let fence = world.claim("p", "k").await.unwrap().claim.fence;
    assert_eq!(world.gate().log(key)[before..], [("rows", Applied), ("rows", WriteOutcome::Duplicate)]);
    let again = world.restarted().await;
    assert_eq!(again.held().await, [("k".into(), "w".into(), fence)]);
}

#[tokio::test]
async fn s02_a_store_that_fails_some_calls_gets_everything_in_the_end() {
    let world = World::on_store().await;
    world.pool("p", spec(2, AckLevel::Durable), &["v", "w"]).await;
    world.gate().fail(2);
    let claim = world.begin_claim("p", "k").await;
    until("readiness says why", async || {
        world.s.readiness().reasons.iter().any(|reason| reason.contains("the gate fails it"))
    })
    .await;
    let fence = done(claim).await.unwrap().claim.fence;
    assert!(world.s.readiness().ready);
    assert_eq!(world.crashed().await.held().await[0].2, fence);
}

#[tokio::test]
async fn s04_a_gap_causes_a_snapshot_while_claims_continue() {
    let world = pool_of_long(AckLevel::Memory, 2_000).await;
    let key = world.gate().key("ns/p", 0);
    world.gate().gap(key, 1);
    // The second chunk stops at the gate: the first contains rows that change now.
    world.gate().hold(|batch| matches!(batch.kind, WriteKind::Chunk { number: 1, .. }));
    random_changes(&world, 1, 1).await;
    world.gate().stopped().await;
    assert!(world.gate().log(key).contains(&("rows", Gap)));
    random_changes(&world, 2, 400).await;
    world.gate().open_gate();
    store_is_exact(&world).await;
    let log = world.gate().log(key);
    assert!(log.iter().filter(|(kind, _)| *kind == "chunk").count() > 1, "several chunks: {log:?}");
    assert_eq!(log.iter().filter(|(kind, _)| *kind == "install").collect::<Vec<_>>(), [&("install", Applied)]);
    // From here on the store accepts batches again.
    random_changes(&world, 3, 50).await;
    store_is_exact(&world).await;
    assert_eq!(world.gate().log(key).last(), Some(&("rows", Applied)));
}

#[tokio::test]
async fn s04_durable_replies_wait_for_the_snapshot_after_a_gap() {
    let world = World::on_store().await;
    world.pool("p", spec(1, AckLevel::Durable), &["s", "t", "u", "v", "w"]).await;
    let key = world.gate().key("ns/p", 0);
    world.gate().hold(|batch| matches!(batch.kind, WriteKind::Install { .. }));
    world.gate().gap(key, 1);
    let claim = world.begin_claim("p", "k").await;
    let during = world.begin_claim("p", "l").await;
    world.gate().stopped().await;
    world.pass(2).await;
    assert!(!claim.is_finished() && !during.is_finished());
    assert_eq!(world.crashed().await.held().await, []);
    world.gate().open_gate();
    done(claim).await.unwrap();
    done(during).await.unwrap();
    assert_eq!(world.crashed().await.held().await.len(), 2);
    store_is_exact(&world).await;
}

/// An install that is refused starts over, and loses nothing.
#[tokio::test]
async fn s04_a_gap_during_the_install_restarts_the_snapshot() {
    let world = pool_of_long(AckLevel::Memory, 2_000).await;
    let key = world.gate().key("ns/p", 0);
    // The rows, a chunk, the restart of the chunks, an install among them: whatever they are, they are refused.
    for refused in [1, 2, 3, 5, 8] {
        world.gate().gap(key, refused);
        random_changes(&world, 100 + refused as u64, 60).await;
        store_is_exact(&world).await;
    }
    assert!(world.gate().log(key).contains(&("chunk", Gap)));
}

#[tokio::test]
async fn j1_a_requested_snapshot_under_load_keeps_the_exact_state() {
    let world = pool_of_long(AckLevel::Memory, 2_000).await;
    let key = world.gate().key("ns/p", 0);
    for (seed, stop_at) in [(11, 0), (12, 1), (13, 2)] {
        let installs = world.gate().log(key).iter().filter(|(kind, _)| *kind == "install").count();
        world.gate().hold(move |batch| matches!(batch.kind, WriteKind::Chunk { number, .. } if number == stop_at));
        world.gate().request_snapshot(key);
        random_changes(&world, seed, 5).await;
        world.gate().stopped().await;
        random_changes(&world, 10 * seed, 300).await;
        world.gate().open_gate();
        until("it is rewritten", async || {
            world.gate().log(key).iter().filter(|written| **written == ("install", Applied)).count() > installs
        })
        .await;
        store_is_exact(&world).await;
    }
}

/// Checks that neither a chunk nor an install carries more than 1 MiB.
fn assert_snapshot_in_chunks(world: &World) {
    let rounds = world.gate().rounds();
    let mut sent = rounds.iter().flatten().filter(|sent| matches!(sent.kind, "chunk" | "install"));
    assert!(sent.clone().any(|sent| sent.kind == "install") && sent.all(|sent| sent.bytes <= 1 << 20), "{rounds:?}");
}

#[tokio::test]
async fn j1_changes_during_a_snapshot_beyond_the_install_limit_are_written_ahead() {
    let world = pool_of_long(AckLevel::Memory, 2_000).await;
    let key = world.gate().key("ns/p", 0);
    for gap in [false, true] {
        let before = world.gate().log(key).iter().filter(|(kind, _)| *kind == "chunk").count();
        world.gate().hold(|batch| matches!(batch.kind, WriteKind::Chunk { number: 1, .. }));
        if gap {
            world.gate().gap(key, 1);
        } else {
            world.gate().request_snapshot(key);
        }
        random_changes(&world, 30, 1).await;
        world.gate().stopped().await;
        // Rows that were dumped already change, and no chunk of the snapshot can carry them any more.
        for round in 1..=2 {
            let again =
                (0..6_000).map(|i| WorkerSpec { incarnation: round, ..long(&format!("w{i}")) }.into()).collect();
            world.s.register_batch(&name("p"), again).await.unwrap();
        }
        world.gate().open_gate();
        until("it is rewritten", async || world.gate().log(key).last() == Some(&("install", Applied))).await;
        let chunks = world.gate().log(key).iter().filter(|(kind, _)| *kind == "chunk").count() - before;
        assert!(chunks > 4, "{chunks} chunks");
        assert_snapshot_in_chunks(&world);
        store_is_exact(&world).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn j1_consecutive_snapshots_under_durable_load() {
    let world = pool_of_long(AckLevel::Durable, 2_000).await;
    let key = world.gate().key("ns/p", 0);
    let tasks: Vec<_> = (0..4)
        .map(|task| {
            let s = world.s.clone();
            tokio::spawn(async move {
                for i in 0..150 {
                    let request = crate::world::request("p", &format!("t{task}-{i}"));
                    let taken = s.claim(request.clone()).await.unwrap();
                    s.confirm(&request.id, taken.claim.fence).await.unwrap();
                    if i % 3 > 0 {
                        s.release(&request.id, taken.claim.fence).await.unwrap();
                    }
                }
            })
        })
        .collect();
    let installs = || world.gate().log(key).iter().filter(|written| **written == ("install", Applied)).count();
    for round in 1..=3 {
        world.gate().request_snapshot(key);
        until("it is rewritten", async || {
            // The end of a round of the writer is when it checks for requested snapshots.
            world.claim("p", "nudge").await.is_ok() && installs() >= round
        })
        .await;
    }
    for task in tasks {
        done(task).await;
    }
    assert_eq!(world.counts("p").await.1, 4 * 50 + 1);
    store_is_exact(&world).await;
}

/// A snapshot walks over the workers by their ordinals, and a shard that panicked assigns new ones.
#[tokio::test]
async fn s08_a_panic_in_the_middle_of_a_snapshot_loses_no_row() {
    let world = pool_of_long(AckLevel::Durable, 3_000).await;
    let key = world.gate().key("ns/p", 0);
    let installs = || world.gate().log(key).iter().filter(|written| **written == ("install", Applied)).count();
    for i in 0..1_000 {
        world.s.delete_worker(&name("p"), &WorkerId::new(&format!("w{i}")).unwrap()).await.unwrap();
    }
    world.pass(60_000).await;
    world.stored("p").await;
    // The store has no trace of the deleted workers; in the shard their ordinals are free.
    world.gate().request_snapshot(key);
    world.claim("p", "nudge").await.unwrap();
    until("it is rewritten", async || installs() == 1).await;
    world.gate().hold(|batch| matches!(batch.kind, WriteKind::Chunk { number: 1, .. }));
    world.gate().request_snapshot(key);
    world.claim("p", "nudge-again").await.unwrap();
    world.gate().stopped().await;
    world.s.inject_panic(&name("p"), 0);
    until("it is back", async || {
        let shard = &world.shards("p").await[0];
        (shard.restarts, &*shard.state) == (1, "serving")
    })
    .await;
    world.gate().open_gate();
    until("it is rewritten", async || {
        world.claim("p", "nudge-once-more").await.unwrap();
        installs() == 2
    })
    .await;
    assert_eq!(world.rows("p").await.len(), 2_000);
    store_is_exact(&world).await;
}

/// The store refuses the tail and the shard that could be snapshotted is gone: it must not stay `loading` for ever.
#[tokio::test]
async fn s08_a_panic_while_a_gap_is_being_repaired_is_resolved() {
    let world = pool_of_long(AckLevel::Memory, 2_000).await;
    let key = world.gate().key("ns/p", 0);
    world.gate().gap(key, 1);
    world.gate().hold(|batch| matches!(batch.kind, WriteKind::Chunk { number: 1, .. }));
    world.claim("p", "k").await.unwrap();
    world.gate().stopped().await;
    world.s.inject_panic(&name("p"), 0);
    until("it is refused", async || world.shards("p").await[0].state == "refused").await;
    assert!(world.s.readiness().reasons[0].starts_with("shard 0 of ns/p does not serve"));
    assert_eq!(world.claim("p", "k").await, Err(crate::world::LOADING));
    // No other shard's snapshot waits behind it.
    world.gate().open_gate();
    world.pool("q", spec(1, AckLevel::Durable), &["w"]).await;
    world.gate().gap(world.gate().key("ns/q", 0), 1);
    world.claim("q", "l").await.unwrap();
}

/// Rows that accumulated while the store was unavailable are more than a batch may carry, so the shard is snapshotted and
/// panics: before the snapshot, or in the middle of it. The store has the rest of it, and the journal the tail.
#[tokio::test]
async fn s08_a_panic_during_a_long_catch_up_loses_nothing() {
    for dumped in [false, true] {
        let world = pool_of_long(AckLevel::Memory, 2_000).await;
        let key = world.gate().key("ns/p", 0);
        world.gate().limit_batches(64 << 10);
        world.gate().hold_all();
        let fence = world.claim("p", "k").await.unwrap().claim.fence;
        world.gate().stopped().await;
        // More than an install may carry, too.
        add_long(&world, "late", 4_000).await;
        world.s.release(&id("k"), fence).await.unwrap();
        for i in 0..100 {
            world.s.delete_worker(&name("p"), &WorkerId::new(&format!("w{i}")).unwrap()).await.unwrap();
        }
        if dumped {
            world.gate().hold(|batch| matches!(batch.kind, WriteKind::Chunk { number: 1, .. }));
            until("the first chunk is stored", async || world.gate().log(key).contains(&("chunk", Applied))).await;
            world.gate().stopped().await;
            world.claim("p", "l").await.unwrap();
        }
        let live = world.rows("p").await;
        world.s.inject_panic(&name("p"), 0);
        until("it is away", async || world.shards("p").await[0].state != "serving").await;
        world.gate().open_gate();
        until("it is back", async || {
            let shard = &world.shards("p").await[0];
            assert_ne!(shard.state, "refused", "{:?}", world.s.readiness());
            (shard.restarts, &*shard.state) == (1, "serving")
        })
        .await;
        assert!(world.rows("p").await == live, "rows were lost");
        store_is_exact(&world).await;
        let installs: Vec<_> = world.gate().log(key).into_iter().filter(|(kind, _)| *kind == "install").collect();
        assert_eq!(installs, [("install", Applied)]);
        assert_snapshot_in_chunks(&world);
        random_changes(&world, 20, 50).await;
        store_is_exact(&world).await;
    }
}
