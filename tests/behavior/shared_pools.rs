//! Shared pools over all their shards: what a claim holds, what is free, and that no claim is
//! rejected as exhausted while its resources are free.

use std::collections::BTreeMap;

use hotpool::model::request_error::{ExhaustionReason, RequestError};
use hotpool::model::{
    AckLevel, ClaimRequest, ClaimState, ClaimView, PlacementPolicy, PoolSpec, ResourceRequirements, TrustState,
    WorkerCapacity, WorkerCommand, WorkerId, WorkerSpec,
};

use crate::shared_pool_helpers::{cpu, gpus, held, request_for, shared, sized};
use crate::world::{FULL, Seeded, World, id, ids_on, name, worker};

const WORKER_EXHAUSTED: RequestError = RequestError::Exhausted(ExhaustionReason::Worker);

#[tokio::test]
async fn c04_the_same_key_with_other_resources_finds_the_claim_or_is_rejected() {
    let world = World::on_store().await;
    world
        .shared(shared(4, PlacementPolicy::BestFit), (0..4).map(|i| sized(&format!("w{i}"), 8_000, None)).collect())
        .await;
    let first = world.share("k", &cpu(1_000)).await.unwrap().claim;
    for other in [cpu(1_000), cpu(4_000), cpu(1 << 40), gpus(&["none"], 1, 500)] {
        let again = world.share("k", &other).await.unwrap();
        assert_eq!((again.created, &again.claim), (false, &first), "unchanged, whatever is requested");
        let mut request = request_for("p", "k", &other);
        request.constraints.as_mut().unwrap().require_same_resources = true;
        let strict = world.s.claim(request).await;
        if other == cpu(1_000) {
            assert_eq!(strict.unwrap().claim, first);
        } else {
            assert!(matches!(strict, Err(RequestError::FailedPrecondition(_))), "{strict:?}");
        }
    }
    assert_eq!(world.left().await, (31_000, 0), "it is held once");
    // Once the claim holds other resources, those must match.
    world.s.resize(&id("k"), first.fence, cpu(4_000)).await.unwrap();
    let mut request = request_for("p", "k", &cpu(4_000));
    request.constraints.as_mut().unwrap().require_same_resources = true;
    assert_eq!(world.s.claim(request).await.unwrap().claim.fence, first.fence);
}

/// C08, L1: claims, resizes and releases in any order; after every step the free resources are what the claims leave.
#[tokio::test]
async fn c08_after_300_steps_nothing_is_held() {
    for (seed, policy) in [(1, PlacementPolicy::BestFit), (2, PlacementPolicy::Spread), (3, PlacementPolicy::Fgd)] {
        let world = World::on_store().await;
        let mut workers: Vec<_> = (0..6).map(|i| sized(&format!("c{i}"), 4_000 + 1_000 * i, None)).collect();
        workers.extend((0..4).map(|i| sized(&format!("g{i}"), 16_000, Some((["T4", "A10"][i % 2], 1 + i as u32)))));
        let whole: BTreeMap<String, WorkerCapacity> =
            workers.iter().map(|worker| (worker.id.to_string(), worker.capacity.clone())).collect();
        world.shared(shared(4, policy), workers).await;
        let all = world.left().await;
        assert_eq!(all, (39_000 + 64_000, 10_000));
        let mut dice = Seeded(seed);
        let mut keys: BTreeMap<String, u64> = BTreeMap::new();
        let mut seen = [0; 6];
        for step in 0..300 {
            let resources = match dice.below(5) {
                0 => cpu(100 + dice.below(6_000)),
                1 => gpus(&["T4", "A10"], 1, 1 + dice.below(1_000) as u32),
                2 => gpus(&[], 1 + dice.below(3) as u32, 1_000),
                3 => ResourceRequirements { cpu_milli: dice.below(4_000), ..gpus(&["A10"], 1, 500) },
                _ => cpu(500),
            };
            let picked = keys.iter().nth(dice.below(keys.len().max(1) as u64) as usize);
            let picked = picked.map(|(key, fence)| (key.clone(), *fence));
            match (dice.below(10), picked) {
                (0..5, _) | (_, None) => {
                    let key = format!("k{step}");
                    match world.share(&key, &resources).await {
                        Ok(taken) => {
                            seen[0] += 1;
                            assert_eq!(held(&taken.claim), &resources);
                            keys.insert(key, taken.claim.fence);
                        }
                        Err(FULL) => seen[1] += 1,
                        Err(other) => panic!("{other:?}"),
                    }
                }
                (5..8, Some((key, fence))) => match world.s.resize(&id(&key), fence, resources.clone()).await {
                    Ok(claim) => {
                        seen[2] += 1;
                        assert_eq!((held(&claim), claim.fence), (&resources, fence));
                    }
                    // More than is free there, or than the worker's capacity.
                    Err(WORKER_EXHAUSTED) => seen[3] += 1,
                    Err(RequestError::Invalid { .. }) => seen[4] += 1,
                    Err(other) => panic!("{other:?}"),
                },
                (_, Some((key, fence))) => {
                    seen[5] += 1;
                    world.s.release(&id(&key), fence).await.unwrap();
                    keys.remove(&key);
                }
            }
            // No worker grants more than it has, no GPU is granted twice, and the rest is free.
            let (mut cpu_held, mut gpus_held) = (0, 0);
            let mut on: BTreeMap<String, (u64, [u32; 8])> = BTreeMap::new();
            let claims = world.all_held().await;
            assert_eq!(claims.len(), keys.len());
            for claim in &claims {
                let (cpu, gpus_used) = on.entry(claim.worker.spec.id.to_string()).or_default();
                let resources = held(claim);
                *cpu += resources.cpu_milli;
                cpu_held += resources.cpu_milli;
                let gpu = resources.gpu.as_ref();
                assert_eq!(claim.gpu_mask.unwrap().count_ones(), gpu.map_or(0, |gpu| gpu.count));
                for at in (0..8).filter(|at| claim.gpu_mask.unwrap() & (1 << at) != 0) {
                    gpus_used[at] += gpu.unwrap().milli;
                    gpus_held += u64::from(gpu.unwrap().milli);
                }
            }
            for (worker, (cpu, gpus_used)) in on {
                let count = whole[&worker].gpu.as_ref().map_or(0, |gpu| gpu.count as usize);
                assert!(cpu <= whole[&worker].cpu_milli, "{worker} gives {cpu}");
                assert!(gpus_used.iter().enumerate().all(|(at, &milli)| milli <= if at < count { 1_000 } else { 0 }));
            }
            assert_eq!(world.left().await, (all.0 - cpu_held, all.1 - gpus_held), "L1");
        }
        assert!(seen.iter().all(|&seen| seen > 0), "each kind of step was taken: {seen:?}");
        for (key, fence) in keys {
            world.s.release(&id(&key), fence).await.unwrap();
        }
        assert_eq!((world.left().await, world.all_held().await.len()), (all, 0));
        let shards = world.shards("p").await;
        assert!(shards.iter().all(|shard| (shard.claims, shard.busy) == (0, 0)), "{shards:?}");
        world.is_clean().await;
    }
}

#[tokio::test]
async fn w05_resources_being_released_are_held() {
    let world = World::on_memory().await;
    world.shared(shared(1, PlacementPolicy::BestFit), vec![sized("w", 4_000, Some(("T4", 1)))]).await;
    let first = world.share("a", &ResourceRequirements { cpu_milli: 3_000, ..gpus(&[], 1, 600) }).await.unwrap().claim;
    let other = world.share("b", &cpu(500)).await.unwrap().claim;
    world.s.begin_release(&id("a"), first.fence).await.unwrap();
    assert_eq!(world.share("c", &cpu(1_000)).await, Err(FULL));
    assert_eq!(world.share("c", &gpus(&[], 1, 500)).await, Err(FULL));
    assert_eq!(world.s.resize(&id("a"), first.fence, cpu(1)).await, Err(RequestError::Releasing));
    assert_eq!(world.left().await, (500, 400));
    // Other claims on the worker continue meanwhile.
    world.s.resize(&id("b"), other.fence, cpu(1_000)).await.unwrap();
    world.s.release(&id("a"), first.fence).await.unwrap();
    assert_eq!(world.left().await, (3_000, 1_000));
    world.share("c", &gpus(&[], 1, 500)).await.unwrap();
}

#[tokio::test]
async fn w07_a_worker_gets_no_claim_for_resources_that_it_did_not_report() {
    let world = World::on_memory().await;
    let memory = WorkerCapacity { memory_bytes: 1 << 30, ..WorkerCapacity::default() };
    let only_memory = WorkerSpec { capacity: memory, ..worker("memory") };
    world
        .shared(shared(4, PlacementPolicy::BestFit), vec![worker("bare"), sized("cpu", 2_000, None), only_memory])
        .await;
    let memory = |bytes| ResourceRequirements { memory_bytes: bytes, ..ResourceRequirements::default() };
    for never in [
        ResourceRequirements { slots: 1, ..ResourceRequirements::default() },
        ResourceRequirements { memory_bytes: 1, ..cpu(1) },
        gpus(&[], 1, 1),
        cpu(2_001),
    ] {
        assert_eq!(world.share("k", &never).await, Err(RequestError::Unsatisfiable), "{never:?}");
    }
    for i in 0..2 {
        assert_eq!(world.allocate(&format!("c{i}"), &cpu(1_000)).await.unwrap().0, "cpu");
        assert_eq!(world.allocate(&format!("m{i}"), &memory(1 << 29)).await.unwrap().0, "memory");
    }
    assert_eq!(world.share("k", &cpu(1)).await, Err(FULL));
    assert_eq!(world.share("k", &memory(1)).await, Err(FULL));
}

/// The order of models applies to the whole pool, not only within the shard that happens to be tried first.
#[tokio::test]
async fn p02_the_preferred_model_is_found_in_whichever_shard() {
    let world = World::on_memory().await;
    let of = |shard, prefix: &str, model: &'static str| {
        ids_on(shard, 8, 3, prefix).into_iter().map(move |id| sized(&id, 8_000, Some((model, 2)))).collect::<Vec<_>>()
    };
    let mut workers = of(5, "a", "A10");
    (0..8).for_each(|shard| workers.extend(of(shard, "t", "T4")));
    world.shared(shared(8, PlacementPolicy::BestFit), workers).await;
    let mut n = 0;
    let mut model = async |models: &[&str], milli| {
        n += 1;
        let allocated = world.allocate(&format!("k{n}"), &gpus(models, 1, milli)).await;
        allocated.map(|(worker, _)| worker[..1].to_owned())
    };
    for _ in 0..6 {
        assert_eq!(model(&["A10", "T4"], 1_000).await.as_deref(), Ok("a"));
    }
    assert_eq!(model(&["A10", "T4"], 1_000).await.as_deref(), Ok("t"), "there is none left of the other");
    assert_eq!(model(&["A10"], 1).await, Err(FULL));
    assert_eq!(model(&["L4"], 1).await, Err(RequestError::Unsatisfiable));
    assert_eq!(model(&["L4", "T4"], 300).await.as_deref(), Ok("t"));
    assert_eq!(model(&[], 300).await.as_deref(), Ok("t"));
}

/// Claims without GPUs go to workers without GPUs while they fit, in whichever shard; unless the pool says otherwise.
#[tokio::test]
async fn p02_claims_without_gpus_leave_gpus_free() {
    for policy in [PlacementPolicy::BestFit, PlacementPolicy::Spread, PlacementPolicy::Fgd] {
        let world = World::on_memory().await;
        let mut workers: Vec<_> =
            (0..8).flat_map(|shard| ids_on(shard, 8, 2, "g")).map(|id| sized(&id, 2_000, Some(("T4", 1)))).collect();
        workers.extend(ids_on(3, 8, 2, "c").iter().map(|id| sized(id, 4_000, None)));
        world.shared(shared(8, policy), workers).await;
        let cores = async |key: &str| world.allocate(key, &cpu(1_000)).await.unwrap().0;
        for i in 0..8 {
            assert!(cores(&format!("k{i}")).await.starts_with('c'), "{policy:?}");
        }
        assert!(cores("k8").await.starts_with('g'), "{policy:?}: better there than nowhere");
        // In a batch as well.
        world.s.release(&id("k0"), world.s.get_claim(&id("k0")).await.unwrap().fence).await.unwrap();
        world.s.release(&id("k1"), world.s.get_claim(&id("k1")).await.unwrap().fence).await.unwrap();
        let batch = (0..4).map(|i| request_for("p", &format!("b{i}"), &cpu(1_000))).collect();
        let taken = world.s.claim_batch(batch).await;
        let on_gpus =
            taken.into_iter().filter(|taken| taken.as_ref().unwrap().claim.worker.spec.id.as_str().starts_with('g'));
        assert_eq!(on_gpus.count(), 2, "{policy:?}");
    }
    // Switched off, best fit takes the fullest worker, which has GPUs.
    let world = World::on_memory().await;
    let workers = || vec![sized("g", 2_000, Some(("T4", 1))), sized("c", 64_000, None)];
    let spec = || shared(1, PlacementPolicy::BestFit);
    world.shared(PoolSpec { spare_gpu_workers: false, ..spec() }, workers()).await;
    assert_eq!(world.allocate("k", &cpu(1_000)).await.unwrap().0, "g");
    world.s.put_pool(name("p"), spec()).await.unwrap();
    assert_eq!(world.allocate("l", &cpu(1_000)).await.unwrap().0, "c");
}

#[tokio::test]
async fn p03_workers_are_filled_exactly() {
    let world = World::on_memory().await;
    world.shared(shared(1, PlacementPolicy::BestFit), vec![sized("w", 1_000, None)]).await;
    let equal = |n: usize, prefix: &str| (0..n).map(|i| request_for("p", &format!("{prefix}{i}"), &cpu(1))).collect();
    let taken = world.s.claim_batch(equal(1_001, "k")).await;
    assert_eq!(taken.iter().flatten().count(), 1_000);
    assert_eq!(taken.into_iter().filter_map(Result::err).collect::<Vec<_>>(), [FULL]);
    assert_eq!(world.left().await, (0, 0));

    // Three claims for the capacity of two, over shards; 70 tiny ones on one worker of each shard that is tried.
    let world = World::on_memory().await;
    let two: Vec<_> = (0..2).flat_map(|shard| ids_on(shard, 2, 1, "w")).map(|id| sized(&id, 1_000, None)).collect();
    world.shared(shared(2, PlacementPolicy::BestFit), two).await;
    let three = (0..3).map(|i| request_for("p", &format!("k{i}"), &cpu(1_000))).collect();
    assert_eq!(world.s.claim_batch(three).await.iter().flatten().count(), 2);
    let world = World::on_memory().await;
    let many = ids_on(0, 1, 20, "w").iter().map(|id| sized(id, 4_000, None)).collect();
    world.shared(shared(1, PlacementPolicy::BestFit), many).await;
    for i in 0..70 {
        world.share(&format!("t{i}"), &cpu(10)).await.unwrap();
    }
    assert_eq!(world.counts("p").await.1, 1);
}

#[tokio::test]
async fn p06_held_claims_stay_valid_when_capacity_changes() {
    let world = World::on_memory().await;
    world.shared(shared(1, PlacementPolicy::BestFit), vec![sized("w", 4_000, Some(("T4", 2)))]).await;
    let requirements = ResourceRequirements { cpu_milli: 3_000, ..gpus(&["T4"], 1, 1_000) };
    let first = world.share("k", &requirements).await.unwrap().claim;
    world.share("l", &cpu(1_000)).await.unwrap();
    assert_eq!(
        world.share("k", &requirements).await.unwrap().claim,
        first,
        "the resources do not suffice for a second"
    );
    // The worker shrinks below the sum of its claims: shown, unschedulable, and the claims stay.
    world.enlist(vec![sized("w", 3_500, Some(("T4", 2)))]).await;
    let view = world.s.get_worker(&name("p"), &WorkerId::new("w").unwrap()).await.unwrap();
    assert!(view.overcommitted && view.claims.len() == 2);
    assert_eq!(world.share("k", &requirements).await.unwrap().claim.fence, first.fence);
    assert_eq!(world.share("m", &gpus(&[], 1, 1)).await, Err(FULL), "a GPU is free, and the worker is not offered");
    assert_eq!(world.left().await, (0, 0));
    // A claim that shrinks makes it fit again, one that grows does not.
    assert_eq!(
        world.s.resize(&id("k"), first.fence, cpu(3_600)).await,
        Err(RequestError::Invalid {
            field: "resources".into(),
            message: "must fit the capacity of the claim's worker; release the claim and claim again for more".into(),
        })
    );
    let shrunk = ResourceRequirements { cpu_milli: 2_500, ..gpus(&["T4"], 1, 1_000) };
    world.s.resize(&id("k"), first.fence, shrunk).await.unwrap();
    let view = world.s.get_worker(&name("p"), &WorkerId::new("w").unwrap()).await.unwrap();
    assert!(!view.overcommitted);
    assert_eq!(world.left().await, (0, 1_000));
    world.share("m", &gpus(&[], 1, 1)).await.unwrap();
}

/// Every field of a resize counts: one that names another GPU model than the claim holds is rejected, and says so.
#[tokio::test]
async fn c08_a_resize_to_another_gpu_model_is_rejected() {
    for policy in [PlacementPolicy::BestFit, PlacementPolicy::Lifo] {
        let world = World::on_memory().await;
        let shared = PoolSpec { mode: policy_mode(policy), ..shared(1, policy) };
        world.shared(shared, vec![sized("w", 4_000, Some(("T4", 2)))]).await;
        let requirements = ResourceRequirements { cpu_milli: 1_000, ..gpus(&["A10", "T4"], 1, 1_000) };
        let claim = world.share("k", &requirements).await.unwrap().claim;
        let other = |models: &[&str], milli| ResourceRequirements { cpu_milli: 1_000, ..gpus(models, 1, milli) };
        for (models, milli) in [(&["A10"][..], 1_000), (&["A10"][..], 500), (&["H100", "A10"][..], 1_000)] {
            let refused = world.s.resize(&id("k"), claim.fence, other(models, milli)).await;
            let Err(RequestError::Invalid { field, message }) = &refused else { panic!("{models:?}: {refused:?}") };
            assert!(field == "resources.gpu.models" && message.contains("T4"), "{refused:?}");
            assert_eq!(world.s.get_claim(&id("k")).await.unwrap(), claim, "nothing changed");
        }
        for models in [&["T4"][..], &[], &["A10", "T4"]] {
            let resized = world.s.resize(&id("k"), claim.fence, other(models, 1_000)).await.unwrap();
            assert_eq!(resized.spec.unwrap().resources, other(models, 1_000));
        }
    }
}

fn policy_mode(policy: PlacementPolicy) -> hotpool::model::PoolMode {
    if policy == PlacementPolicy::Lifo { hotpool::model::PoolMode::Exclusive } else { hotpool::model::PoolMode::Shared }
}

/// N1: claims of all sizes until nothing fits. At no time is one rejected that a worker has capacity for, or granted
/// without it.
#[tokio::test]
async fn n1_no_claim_is_rejected_while_a_worker_has_capacity() {
    for (seed, shards, policy) in
        [(1, 4, PlacementPolicy::BestFit), (2, 16, PlacementPolicy::Spread), (3, 8, PlacementPolicy::Fgd)]
    {
        let world = World::on_memory().await;
        let mut left: BTreeMap<String, (u64, Vec<u32>)> = BTreeMap::new();
        let mut workers = Vec::new();
        for i in 0..24_u32 {
            let gpu = (i % 3 > 0).then_some(("T4", 1 + i % 4));
            workers.push(sized(&format!("w{i}"), 4_000, gpu));
            left.insert(format!("w{i}"), (4_000, vec![1_000; gpu.map_or(0, |gpu| gpu.1 as usize)]));
        }
        world.shared(shared(shards, policy), workers).await;
        let mut dice = Seeded(seed);
        let (mut granted, mut refused, mut n) = (0, 0, 0);
        while world.left().await.0 > 0 && n < 2_000 {
            n += 1;
            let resources = match dice.below(4) {
                0 => ResourceRequirements {
                    cpu_milli: dice.below(500),
                    ..gpus(&["T4"], 1, 1 + dice.below(1_000) as u32)
                },
                1 => ResourceRequirements { cpu_milli: 100, ..gpus(&[], 1 + dice.below(4) as u32, 1_000) },
                2 => cpu(100 + 100 * dice.below(38)),
                _ => cpu(100),
            };
            let fits = |(cpu, gpus): &(u64, Vec<u32>)| {
                *cpu >= resources.cpu_milli
                    && resources.gpu.as_ref().is_none_or(|gpu| {
                        gpus.iter().filter(|&&milli| milli >= gpu.milli).count() >= gpu.count as usize
                    })
            };
            match world.allocate(&format!("k{n}"), &resources).await {
                Ok((worker, gpus_used)) => {
                    granted += 1;
                    let free = left.get_mut(&worker).unwrap();
                    assert!(fits(free), "{worker} had too little free for {resources:?}");
                    free.0 -= resources.cpu_milli;
                    for at in (0..64).filter(|at| gpus_used & (1 << at) != 0) {
                        free.1[at] -= resources.gpu.as_ref().unwrap().milli;
                    }
                }
                Err(FULL) => {
                    refused += 1;
                    assert!(!left.values().any(fits), "N1: {resources:?} fits");
                }
                Err(other) => panic!("{other:?}"),
            }
        }
        assert!(left.values().all(|(cpu, _)| *cpu < 100 || *cpu % 100 > 0), "full to the brim: {left:?}");
        assert!(granted > 100 && refused > 20, "{granted} granted, {refused} refused");
    }
}

#[tokio::test]
async fn s01_a_restart_restores_the_same_gpus_and_free_resources() {
    let world = World::on_store().await;
    let workers = (0..6).map(|i| sized(&format!("g{i}"), 16_000, Some((["T4", "A10"][i % 2], 4)))).collect();
    world.shared(shared(4, PlacementPolicy::Fgd), workers).await;
    for i in 0..20 {
        let resources = match i % 4 {
            0 => gpus(&["T4"], 1, 300),
            1 => ResourceRequirements { cpu_milli: 2_000, ..gpus(&["A10", "T4"], 2, 1_000) },
            2 => cpu(1_500),
            _ => gpus(&[], 1, 700),
        };
        if let Ok(taken) = world.share(&format!("k{i}"), &resources).await {
            if i % 5 == 0 {
                // There may be too little capacity for it.
                let _ = world.s.resize(&id(&format!("k{i}")), taken.claim.fence, gpus(&[], 1, 1_000)).await;
            }
            if i % 7 == 0 {
                world.s.release(&id(&format!("k{i}")), taken.claim.fence).await.unwrap();
            }
        }
    }
    let sorted = |mut claims: Vec<ClaimView>| {
        claims.sort_by(|one, two| one.id.key().cmp(two.id.key()));
        claims
    };
    let (claims, left) = (sorted(world.all_held().await), world.left().await);
    assert!(claims.len() > 10 && claims.iter().any(|claim| claim.gpu_mask.unwrap().count_ones() == 2));
    world.stored("p").await;
    let again = world.crashed().await;
    assert_eq!((sorted(again.all_held().await), again.left().await), (claims.clone(), left));
    let again = again.restarted().await;
    assert_eq!((sorted(again.all_held().await), again.left().await), (claims.clone(), left));
    for claim in claims {
        again.s.release(&claim.id, claim.fence).await.unwrap();
    }
    assert_eq!(again.left().await, (96_000, 24_000));
}

/// A heartbeat reports all claims of a worker: it confirms them, and a claim no longer reported ends after the
/// grace, alone.
#[tokio::test]
async fn w04_a_heartbeat_covers_each_claim_of_its_worker() {
    let world = World::on_memory().await;
    world.shared(shared(1, PlacementPolicy::BestFit), vec![sized("w", 4_000, Some(("T4", 1)))]).await;
    let mut fences = Vec::new();
    for key in ["a", "b", "c"] {
        let request = ClaimRequest { reserve_ms: None, ..request_for("p", key, &gpus(&[], 1, 200)) };
        fences.push(world.s.claim(request).await.unwrap().claim.fence);
    }
    let named = |keys: &[usize]| keys.iter().map(|&at| (["a", "b", "c"][at], fences[at])).collect::<Vec<_>>();
    let response = world.heartbeat("w", Some(&named(&[0, 1]))).await;
    assert_eq!((response.claims.len(), response.stop.len()), (3, 0));
    let states = async |world: &World| {
        let mut states = Vec::new();
        for key in ["a", "b", "c"] {
            states.push(world.state(key).await);
        }
        states
    };
    assert_eq!(states(&world).await, [ClaimState::Active, ClaimState::Active, ClaimState::Reserved]);
    assert_eq!(world.left().await, (4_000, 400), "no heartbeat ends a claim");
    // It reports one less, and later still the other two.
    world.heartbeat("w", Some(&named(&[0, 2]))).await;
    for _ in 0..4 {
        world.pass(10_000).await;
        world.heartbeat("w", Some(&named(&[0, 2]))).await;
    }
    assert_eq!(
        world.s.get_claim(&id("b")).await.map(|claim| claim.id),
        Err(RequestError::NotFound(hotpool::model::request_error::ObjectKind::Claim))
    );
    assert_eq!((world.state("a").await, world.state("c").await), (ClaimState::Active, ClaimState::Active));
    assert_eq!(world.left().await, (4_000, 600));
    // It must stop a claim that it should not run; until then it is unschedulable.
    let response = world.heartbeat("w", Some(&[("a", fences[0]), ("b", fences[1]), ("c", fences[2])])).await;
    assert_eq!((response.claims.len(), response.stop.len()), (2, 1));
    assert_eq!(world.share("d", &cpu(1)).await, Err(FULL));
    world.heartbeat("w", Some(&named(&[0, 2]))).await;
    world.share("d", &cpu(1)).await.unwrap();
}

#[tokio::test]
async fn s01_an_unconfirmed_worker_grants_no_resources() {
    let world = World::on_store().await;
    let spec = PoolSpec { ack: AckLevel::Memory, reserve_ms: 2_000, ..shared(1, PlacementPolicy::BestFit) };
    world.shared(spec, vec![sized("w", 4_000, None)]).await;
    let kept = world.share("kept", &cpu(1_000)).await.unwrap().claim.fence;
    let gone = world.share("gone", &cpu(1_000)).await.unwrap().claim.fence;
    world.stored("p").await;
    let world = world.crashed().await;
    let view = world.view_worker("w").await;
    assert_eq!((view.trust, view.claims.len()), (TrustState::Suspect, 2));
    assert_eq!((world.share("new", &cpu(1)).await, world.left().await), (Err(FULL), (0, 0)));
    // Not before claims that may have been lost can no longer start.
    world.heartbeat("w", Some(&[("kept", kept)])).await;
    assert_eq!(world.share("new", &cpu(1)).await, Err(FULL));
    world.pass(2_000).await;
    // A claim without a record is not readopted in a shared pool: its resources are unknown.
    let unknown = gone + 1;
    let response = world.heartbeat("w", Some(&[("kept", kept), ("unknown", unknown)])).await;
    assert_eq!((response.claims.len(), response.stop.len()), (1, 1), "{response:?}");
    assert_eq!(world.share("new", &cpu(1)).await, Err(FULL), "it still runs something");
    world.heartbeat("w", Some(&[("kept", kept)])).await;
    assert_eq!(world.left().await, (3_000, 0));
    world.share("new", &cpu(3_000)).await.unwrap();
    // A cordon keeps new claims away, and no others.
    let w = WorkerId::new("w").unwrap();
    world.s.command_worker(&name("p"), &w, WorkerCommand::Cordon).await.unwrap();
    world.s.resize(&id("kept"), kept, cpu(500)).await.unwrap();
    assert_eq!((world.left().await, world.share("more", &cpu(1)).await), ((0, 0), Err(FULL)));
    world.s.command_worker(&name("p"), &w, WorkerCommand::Uncordon).await.unwrap();
    assert_eq!(world.left().await, (500, 0));
}
