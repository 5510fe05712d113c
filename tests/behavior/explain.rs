//! Explanation of a claim over all shards and pools, compared with the result of the claim.

use hotpool::model::claim_request::{ClaimConstraints, PoolChoice};
use hotpool::model::request_error::{ExhaustionReason, ObjectKind, RequestError, UnavailableReason};
use hotpool::model::{
    AckLevel, ClaimRequest, ClaimSpec, FilterReason, GpuCapacity, GpuRequest, PlacementPolicy, PoolMode, PoolSpec,
    ResourceRequirements, WorkerCapacity, WorkerCommand, WorkerId, WorkerSpec, WorkerSurvey,
};

use crate::world::{FULL, Seeded, World, id, ids_on, name, request, spec, until, worker};

fn shared(shards: u16, policy: PlacementPolicy) -> PoolSpec {
    PoolSpec { mode: PoolMode::Shared, policy: Some(policy), ..spec(shards, AckLevel::Durable) }
}

fn sized(id: &str, cpu_milli: u64, gpu: Option<(&str, u32)>) -> WorkerSpec {
    let gpu = gpu.map(|(model, count)| GpuCapacity { model: model.into(), count });
    WorkerSpec { capacity: WorkerCapacity { cpu_milli, gpu, ..WorkerCapacity::default() }, ..worker(id) }
}

fn request_for(pool: &str, key: &str, cpu_milli: u64, gpu: Option<(&[&str], u32, u32)>) -> ClaimRequest {
    let gpu = gpu.map(|(models, count, milli)| GpuRequest {
        models: models.iter().map(|&model| model.into()).collect(),
        count,
        milli,
    });
    let resources = ResourceRequirements { cpu_milli, gpu, ..ResourceRequirements::default() };
    let constraints =
        ClaimConstraints { spec: ClaimSpec { resources, ..ClaimSpec::default() }, ..ClaimConstraints::default() };
    ClaimRequest { reserve_ms: Some(0), constraints: Some(Box::new(constraints)), ..request(pool, key) }
}

async fn enlist(world: &World, pool: &str, workers: Vec<WorkerSpec>) {
    let workers = workers.into_iter().map(Into::into).collect();
    for registered in world.s.register_batch(&name(pool), workers).await.unwrap() {
        registered.unwrap();
    }
}

fn counted(survey: &WorkerSurvey) -> Vec<(&'static str, u64)> {
    let all = FilterReason::ALL.iter().copied().filter(|why| survey.count(*why) > 0);
    all.map(|why| (why.as_str(), survey.count(why))).collect()
}

/// Over many shards and requests, the explanation equals the result of the claim, including the reason.
#[tokio::test]
async fn p02_an_explanation_equals_the_result_of_the_claim() {
    for (seed, policy) in [
        (1, PlacementPolicy::BestFit),
        (2, PlacementPolicy::Spread),
        (3, PlacementPolicy::Fgd),
        (4, PlacementPolicy::Lifo),
    ] {
        let world = World::on_memory().await;
        let exclusive = policy == PlacementPolicy::Lifo;
        let spec = if exclusive { spec(8, AckLevel::Durable) } else { shared(8, policy) };
        world.pool("p", spec, &[]).await;
        let mut dice = Seeded(seed);
        let workers = (0..30_u64).map(|i| WorkerSpec {
            labels: [("zone".to_owned(), format!("z{}", i % 3))].into(),
            node: (i % 4 > 0).then(|| format!("n{}", i % 4).into()),
            ..sized(
                &format!("w{i}"),
                1_000 * (1 + i % 5),
                (i % 2 == 0).then_some((["T4", "A10"][i as usize % 4 / 2], 1 + i as u32 % 3)),
            )
        });
        enlist(&world, "p", workers.collect()).await;
        for i in [3, 8] {
            world
                .s
                .command_worker(&name("p"), &WorkerId::new(&format!("w{i}")).unwrap(), WorkerCommand::Cordon)
                .await
                .unwrap();
        }
        let (mut placed, mut refused) = (0, std::collections::BTreeSet::new());
        for n in 0..400 {
            let gpu: Option<(&[&str], u32, u32)> = match dice.below(5) {
                0 => Some((&["A10", "T4"], 1, 1 + dice.below(1_000) as u32)),
                1 => Some((&[], 1 + dice.below(3) as u32, 1_000)),
                2 => Some((&["L4"], 1, 500)),
                _ => None,
            };
            let mut claim_request = request_for("p", &format!("k{n}"), 100 + 100 * dice.below(60), gpu);
            let more = claim_request.constraints.as_mut().unwrap();
            match dice.below(6) {
                0 => more.selector = Some("zone in (z0,z9)".into()),
                1 => more.nodes_required = vec!["n1".into()],
                2 => more.nodes_required = vec!["moon".into()],
                3 => more.nodes_preferred = vec!["n2".into()],
                4 => more.worker = Some(WorkerId::new(&format!("w{}", dice.below(32))).unwrap()),
                _ => {}
            }
            let free = world.counts("p").await;
            let said = world.s.explain(claim_request.clone()).await.unwrap();
            assert_eq!((world.counts("p").await, world.is_vacant(&format!("k{n}"))), (free, true));
            assert_eq!(said.pools.len(), 1);
            let survey = &said.pools[0].survey;
            assert_eq!((survey.workers, survey.fits + survey.filtered.iter().sum::<u64>()), (30, 30));
            match (world.s.claim(claim_request.clone()).await, said.outcome) {
                (Ok(taken), Ok(would)) => {
                    placed += 1;
                    assert!(survey.fits > 0, "{survey:?}");
                    // The search may start at any shard: where only one fits, it is that.
                    let worker = &taken.claim.worker.spec.id;
                    assert!(survey.fits > 1 || would.worker == *worker, "{would:?} is not {worker}");
                    if dice.below(3) == 0 {
                        world.s.release(&id(&format!("k{n}")), taken.claim.fence).await.unwrap();
                    }
                }
                (Err(refusal), Err(would)) => {
                    assert_eq!((&would, survey.fits), (&refusal, 0), "{claim_request:?} {survey:?}");
                    refused.insert(format!("{refusal:?}"));
                }
                (taken, would) => panic!("{taken:?} is not {would:?}: {claim_request:?} {survey:?}"),
            }
        }
        assert!(placed > 30 && refused.len() >= 4, "{placed} placed, {refused:?}");
    }
}

#[tokio::test]
async fn p02_p04_each_pool_shows_what_is_missing() {
    let world = World::on_memory().await;
    world.pool("gpu", shared(4, PlacementPolicy::BestFit), &[]).await;
    world.pool("cpu", spec(2, AckLevel::Durable), &["bare"]).await;
    let gpus = (0..20).map(|i| sized(&format!("g{i}"), 8_000, Some(("T4", 2)))).collect();
    enlist(&world, "gpu", gpus).await;
    enlist(&world, "cpu", vec![sized("c", 4_000, None)]).await;
    // One GPU of each worker is held.
    let batch = (0..20).map(|i| {
        let mut claim_request = request_for("gpu", &format!("k{i}"), 0, Some((&[], 1, 1_000)));
        claim_request.constraints.as_mut().unwrap().worker = Some(WorkerId::new(&format!("g{i}")).unwrap());
        claim_request
    });
    assert!(world.s.claim_batch(batch.collect()).await.iter().all(Result::is_ok));
    let mut both = request_for("gpu", "both", 1_000, Some((&["T4"], 2, 1_000)));
    both.pools = PoolChoice::Listed(vec![name("gpu"), name("cpu")]);
    let said = world.s.explain(both).await.unwrap();
    assert_eq!(said.outcome, Err(FULL));
    let [gpu, cpu] = &said.pools[..] else { panic!("{said:?}") };
    assert_eq!((gpu.pool.pool(), cpu.pool.pool()), ("gpu", "cpu"));
    assert_eq!((counted(&gpu.survey), counted(&cpu.survey)), (vec![("gpu", 20)], vec![("gpu_model", 2)]));
    let near: Vec<_> = gpu.survey.nearest.iter().map(hotpool::model::NearMiss::describe).collect();
    assert_eq!(near, ["short by 1 GPU on g0", "short by 1 GPU on g1", "short by 1 GPU on g10"]);
    assert_eq!((gpu.survey.most_free.gpu, gpu.survey.most_free.cpu_milli, gpu.survey.too_small), (1, 8_000, 0));

    // The claim falls back, and the explanation says where.
    let mut either = request_for("gpu", "either", 9_000, None);
    either.pools = PoolChoice::Listed(vec![name("gpu"), name("cpu")]);
    assert_eq!(world.s.explain(either.clone()).await.unwrap().outcome, Err(RequestError::Unsatisfiable));
    either.constraints.as_mut().unwrap().spec.resources.cpu_milli = 4_000;
    either.constraints.as_mut().unwrap().selector = Some("!zone".into());
    let would = world.s.explain(either.clone()).await.unwrap().outcome.unwrap();
    assert_eq!(would.pool, name("gpu"));
    for i in 0..20 {
        world
            .s
            .command_worker(&name("gpu"), &WorkerId::new(&format!("g{i}")).unwrap(), WorkerCommand::Drain)
            .await
            .unwrap();
    }
    let said = world.s.explain(either).await.unwrap();
    assert_eq!(said.outcome.unwrap().worker.as_str(), "c");
    assert_eq!((counted(&said.pools[0].survey), said.pools[1].survey.fits), (vec![("draining", 20)], 1));
    assert_eq!(counted(&said.pools[1].survey), [("cpu_milli", 1)]);
}

#[tokio::test]
async fn an_explanation_rejects_bad_requests_and_names_silent_shards() {
    let world = World::on_store().await;
    world.pool("p", spec(2, AckLevel::Durable), &[]).await;
    let ids: Vec<_> = (0..2).flat_map(|shard| ids_on(shard, 2, 3, "w")).collect();
    world.add("p", &ids.iter().map(String::as_str).collect::<Vec<_>>()).await;
    assert_eq!(world.s.explain(request("none", "k")).await, Err(RequestError::NotFound(ObjectKind::Pool)));
    let long = ClaimRequest { reserve_ms: Some(30_001), ..request("p", "k") };
    assert!(matches!(world.s.explain(long).await, Err(RequestError::Invalid { .. })));
    let classy = ClaimConstraints { class: Some("gold".into()), ..ClaimConstraints::default() };
    let nowhere = ClaimRequest { constraints: Some(Box::new(classy)), ..request("p", "k") };
    let said = world.s.explain(nowhere).await.unwrap();
    assert_eq!((said.outcome, said.pools.len()), (Err(RequestError::Exhausted(ExhaustionReason::NoEligiblePool)), 0));
    // A plain claim: held workers are busy, even for a key that holds one of them.
    world.hold("p", "held").await;
    let said = world.s.explain(request("p", "held")).await.unwrap();
    assert_eq!((said.pools[0].survey.fits, counted(&said.pools[0].survey)), (5, vec![("busy", 1)]));
    assert!(said.outcome.is_ok());
    // Nothing is known about an unavailable shard.
    world.stored("p").await;
    world.gate().hold_all();
    for key in ["b", "c", "d", "e", "f"] {
        drop(world.begin_claim("p", key).await);
    }
    world.s.inject_panic(&name("p"), 1);
    until("it is away", async || world.shards("p").await[1].state == "loading").await;
    let said = world.s.explain(request("p", "k")).await.unwrap();
    assert_eq!((said.pools[0].silent_shards, said.pools[0].survey.workers), (1, 3));
    assert_eq!(said.outcome, world.s.claim(request("p", "k")).await.map(|_| unreachable!("no worker is idle")));
    assert_eq!(said.outcome, Err(RequestError::Unavailable(UnavailableReason::Loading)));
    world.gate().open_gate();
}

/// More workers than one command surveys.
#[tokio::test]
async fn a_large_shard_is_surveyed_in_slices() {
    const WORKERS: usize = hotpool::limits::SLICE_ENTRIES as usize + 100;
    let world = World::on_memory().await;
    world.pool("p", shared(1, PlacementPolicy::BestFit), &[]).await;
    for from in (0..WORKERS).step_by(1_000) {
        let to = (from + 1_000).min(WORKERS);
        enlist(&world, "p", (from..to).map(|i| sized(&format!("w{i}"), 1_000 + (i as u64), None)).collect()).await;
    }
    let survey = world.s.explain(request_for("p", "k", 1_000, None)).await.unwrap().pools.remove(0).survey;
    assert_eq!((survey.workers, survey.fits), (WORKERS as u64, WORKERS as u64));
    let survey =
        world.s.explain(request_for("p", "k", 1_000 + WORKERS as u64, None)).await.unwrap().pools.remove(0).survey;
    assert_eq!((counted(&survey), survey.too_small), (vec![("cpu_milli", WORKERS as u64)], WORKERS as u64));
    let last = format!("short by 1 thousandths of a core on w{}", WORKERS - 1);
    assert_eq!((survey.nearest[0].describe(), survey.most_free.cpu_milli), (last, 999 + WORKERS as u64));
}
