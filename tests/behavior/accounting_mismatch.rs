//! L1 while the service runs: `hotpool_accounting_mismatch` detects free resources that the claims of a worker do not
//! explain.

use std::sync::Arc;
use std::time::Duration;

use hotpool::engine::placement::bin_packing::ResourceAllocation;
use hotpool::model::{PlacementPolicy, WorkerId};

use crate::shared_pool_helpers::{gpus, shared, sized};
use crate::world::{World, name};

/// More workers than debug builds check after every event: there the fault would end the shard at once.
const WORKERS: usize = 3_000;

fn gauge(world: &World, pool: &str) -> f64 {
    let scrape = world.scrape();
    let series = format!("hotpool_accounting_mismatch{{pool=\"ns/{pool}\"}} ");
    let line = scrape.lines().find_map(|line| line.strip_prefix(&series)).expect("the gauge of the pool");
    line.parse().unwrap()
}

/// Waits for as many seconds as a full audit takes, one more for a change in between, and some spare.
async fn wait_for_audit(world: &World) {
    for _ in 0..5 * (2 * WORKERS / 1_024 + 2) {
        world.pass(200).await;
    }
}

#[tokio::test]
async fn l1_a_mismatch_of_resources_or_gpus_moves_the_gauge_until_it_is_repaired() {
    let world = World::on_memory().await;
    let workers = (0..WORKERS).map(|i| sized(&format!("w{i}"), 8_000, Some(("T4", 2)))).collect();
    world.shared(shared(1, PlacementPolicy::BestFit), workers).await;
    world.share("k", &gpus(&["T4"], 1, 500)).await.unwrap();
    wait_for_audit(&world).await;
    assert_eq!(gauge(&world, "p"), 0.0, "a claim explains its share");
    let cores = ResourceAllocation { cpu_milli: 1, ..ResourceAllocation::default() };
    let gpu = ResourceAllocation { gpu_milli: 1, gpu_mask: 0b10, ..ResourceAllocation::default() };
    for (expected, id, share) in [(1.0, "w1500", cores), (2.0, "w2999", gpu)] {
        let worker = WorkerId::new(id).unwrap();
        world.s.inject_step(&name("p"), 0, move |shard| shard.inject_mismatch(&worker, &share));
        // A shard audits as long as something has changed.
        let other = world.share(&format!("k{expected}"), &gpus(&["T4"], 1, 1_000)).await.unwrap().claim;
        world.s.release(&other.id, other.fence).await.unwrap();
        wait_for_audit(&world).await;
        assert_eq!(gauge(&world, "p"), expected, "{share:?}");
    }
    let port = Arc::clone(&world.s.inject_pool(&name("p")).unwrap().shards[0]);
    let runs = port.runs();
    for _ in 0..100 {
        world.clock.advance(Duration::from_millis(200));
        port.tick(world.clock.tick());
        tokio::task::yield_now().await;
    }
    assert_eq!(port.runs(), runs, "nothing changes any more, so no shard checks anything");
    for id in ["w1500", "w2999"] {
        world.s.delete_worker(&name("p"), &WorkerId::new(id).unwrap()).await.unwrap();
    }
    wait_for_audit(&world).await;
    assert_eq!(gauge(&world, "p"), 0.0, "the mismatched workers are deleted");
}
