//! Constraints of a claim: labels, nodes, one worker, a class, resources; and when the holder of a key
//! satisfies another request.

use std::sync::Arc;

use hotpool::model::claim_request::{ClaimConstraints, PoolChoice};
use hotpool::model::request_error::{ExhaustionReason, ObjectKind, RequestError};
use hotpool::model::{
    AckLevel, ClaimRequest, ClaimSpec, GpuCapacity, Labels, PoolSpec, WorkerCapacity, WorkerId, WorkerSpec,
};

use crate::world::{Claimed, FULL, Seeded, World, done, id, ids_on, name, request, spec, worker};

const NODE_LOCALITY: RequestError = RequestError::Exhausted(ExhaustionReason::NodeLocality);
const NO_POOL: RequestError = RequestError::Exhausted(ExhaustionReason::NoEligiblePool);

fn labels(pairs: &[(&str, &str)]) -> Labels {
    pairs.iter().map(|&(key, value)| (key.to_owned(), value.to_owned())).collect()
}

pub fn in_zone(id: &str, zone: &str) -> WorkerSpec {
    WorkerSpec { labels: labels(&[("zone", zone)]), ..worker(id) }
}

fn on_node(id: &str, node: &str) -> WorkerSpec {
    WorkerSpec { node: Some(node.into()), ..worker(id) }
}

pub fn cpu(cpu_milli: u64) -> WorkerCapacity {
    WorkerCapacity { cpu_milli, ..WorkerCapacity::default() }
}

fn sized(id: &str, capacity: WorkerCapacity) -> WorkerSpec {
    WorkerSpec { capacity, ..worker(id) }
}

fn nodes(names: &[&str]) -> Vec<Arc<str>> {
    names.iter().map(|&name| name.into()).collect()
}

pub fn selecting(selector: &str) -> ClaimConstraints {
    ClaimConstraints { selector: Some(selector.into()), ..ClaimConstraints::default() }
}

pub fn requiring(resources: WorkerCapacity) -> ClaimConstraints {
    ClaimConstraints {
        spec: ClaimSpec { resources: resources.into(), ..ClaimSpec::default() },
        ..ClaimConstraints::default()
    }
}

pub fn listed(pools: &[&str]) -> PoolChoice {
    PoolChoice::Listed(pools.iter().map(|pool| name(pool)).collect())
}

/// Builds a claim with these candidate pools.
pub fn from_pools(pools: PoolChoice, key: &str, constraints: ClaimConstraints) -> ClaimRequest {
    ClaimRequest { pools, constraints: Some(Box::new(constraints)), ..request("unused", key) }
}

pub fn request_with(pool: &str, key: &str, constraints: ClaimConstraints) -> ClaimRequest {
    from_pools(name(pool).into(), key, constraints)
}

pub async fn add(world: &World, pool: &str, workers: Vec<WorkerSpec>) {
    for registered in world.s.register_batch(&name(pool), workers.into_iter().map(Into::into).collect()).await.unwrap()
    {
        registered.unwrap();
    }
}

pub async fn worker_of(world: &World, request: ClaimRequest) -> Result<String, RequestError> {
    world.s.claim(request).await.map(|taken| taken.claim.worker.spec.id.to_string())
}

pub fn invalid(answer: Claimed, field: &str) {
    match answer {
        Err(RequestError::Invalid { field: named, .. }) => assert_eq!(named, field),
        other => panic!("{field}: {other:?}"),
    }
}

#[tokio::test]
async fn c04_the_same_key_with_other_resources_finds_the_claim_or_is_rejected() {
    let world = World::on_store().await;
    world.pool("p", spec(2, AckLevel::Durable), &[]).await;
    add(&world, "p", (0..4).map(|i| sized(&format!("w{i}"), cpu(8_000))).collect()).await;
    let must_match = |resources| ClaimConstraints { require_same_resources: true, ..requiring(resources) };
    let first = world.s.claim(request_with("p", "k", requiring(cpu(1_000)))).await.unwrap();
    assert!(first.created);
    for confirmed in [false, true] {
        // More than any worker has: free resources do not matter.
        for constraints in
            [requiring(cpu(4_000)), requiring(cpu(1 << 40)), must_match(cpu(1_000)), ClaimConstraints::default()]
        {
            let again = world.s.claim(request_with("p", "k", constraints)).await.unwrap();
            assert_eq!((again.created, again.claim.fence), (false, first.claim.fence));
            assert_eq!(again.claim.spec.as_ref().unwrap().resources, cpu(1_000).into(), "as it was requested");
        }
        for constraints in [must_match(cpu(4_000)), must_match(WorkerCapacity::default())] {
            assert!(matches!(
                world.s.claim(request_with("p", "k", constraints)).await,
                Err(RequestError::FailedPrecondition(_))
            ));
        }
        assert_eq!(world.counts("p").await, (3, 1, u64::from(!confirmed)), "the accounting counts it once");
        world.s.confirm(&id("k"), first.claim.fence).await.unwrap();
    }
    // A claim without resources matches a request without resources.
    let plain = world.claim("p", "plain").await.unwrap();
    let again = world.s.claim(request_with("p", "plain", must_match(WorkerCapacity::default()))).await.unwrap();
    assert_eq!(again.claim.fence, plain.claim.fence);
    // Its resources survive a restart.
    let again = world.restarted().await;
    assert!(matches!(
        again.s.claim(request_with("p", "k", must_match(cpu(4_000)))).await,
        Err(RequestError::FailedPrecondition(_))
    ));
    let same = again.s.claim(request_with("p", "k", must_match(cpu(1_000)))).await.unwrap();
    assert_eq!(same.claim.fence, first.claim.fence);
}

#[tokio::test]
async fn c09_an_ineligible_claim_is_rolled_back_if_reserved_and_rejected_if_active() {
    let world = World::on_store().await;
    let class = |class: &str| PoolSpec { class: Some(class.into()), ..spec(2, AckLevel::Durable) };
    world.pool("old", class("small"), &[]).await;
    world.pool("new", class("large"), &[]).await;
    add(&world, "old", vec![in_zone("a", "a"), in_zone("b", "b"), on_node("n", "n1")]).await;
    add(&world, "new", vec![in_zone("c", "c")]).await;
    let of_class = |class: &str| ClaimConstraints { class: Some(class.into()), ..ClaimConstraints::default() };
    let both = || listed(&["old", "new"]);
    let on = |node: &str| ClaimConstraints { nodes_required: nodes(&[node]), ..ClaimConstraints::default() };
    let named = |id: &str| ClaimConstraints { worker: Some(WorkerId::new(id).unwrap()), ..ClaimConstraints::default() };
    // Each request conflicts with the claim that the one before it made.
    let steps = [
        (request_with("old", "k", selecting("zone=a")), "a"),
        (request_with("old", "k", selecting("zone=b")), "b"),
        (request_with("old", "k", on("n1")), "n"),
        (request_with("old", "k", named("a")), "a"),
        (from_pools(both(), "k", of_class("large")), "c"),
        (from_pools(both(), "k", of_class("small")), "any"),
        (request("new", "k"), "c"),
    ];
    let mut fence = 0;
    for (step, (request, wanted)) in steps.into_iter().enumerate() {
        let taken = world.s.claim(request.clone()).await.unwrap();
        assert!(taken.created && taken.claim.fence > fence, "step {step}");
        let got = taken.claim.worker.spec.id.as_str();
        assert!(wanted == "any" || got == wanted, "step {step}: {got}");
        fence = taken.claim.fence;
        // The same request again is satisfied.
        assert_eq!(world.s.claim(request).await.unwrap().claim.fence, fence, "step {step}");
        assert_eq!(world.counts("old").await.1 + world.counts("new").await.1, 1, "one holder");
    }
    world.s.confirm(&id("k"), fence).await.unwrap();
    for request in
        [request_with("new", "k", selecting("zone=a")), request("old", "k"), request_with("new", "k", on("n1"))]
    {
        assert!(matches!(world.s.claim(request).await, Err(RequestError::FailedPrecondition(_))));
    }
    // No pool is eligible: nothing was decided about the key.
    assert_eq!(world.s.claim(request_with("old", "k", of_class("large"))).await, Err(NO_POOL));
    assert_eq!(world.held().await, [("k".into(), "c".into(), fence)]);
    world.s.release(&id("k"), fence).await.unwrap();
    world.is_clean().await;
}

#[tokio::test]
async fn p01_class_and_labels_must_both_match_and_every_selector_is_evaluated() {
    let world = World::on_memory().await;
    let pool = |class: Option<&str>, tier: &str| PoolSpec {
        class: class.map(Into::into),
        labels: labels(&[("tier", tier)]),
        ..spec(2, AckLevel::Durable)
    };
    world.pool("a-cpu", pool(Some("cpu"), "hot"), &[]).await;
    world.pool("b-gpu", pool(Some("gpu"), "hot"), &[]).await;
    world.pool("c-gpu", pool(Some("gpu"), "cold"), &[]).await;
    world.pool("d-none", pool(None, "hot"), &[]).await;
    for pool in ["a-cpu", "b-gpu", "c-gpu", "d-none"] {
        add(&world, pool, vec![in_zone(&format!("{pool}-1"), "x"), in_zone(&format!("{pool}-2"), "y")]).await;
    }
    let mut n = 0;
    let mut constraints = async |pools: PoolChoice, class: Option<&str>, selector: Option<&str>| {
        n += 1;
        let constraints = ClaimConstraints {
            class: class.map(Into::into),
            selector: selector.map(Into::into),
            ..ClaimConstraints::default()
        };
        worker_of(&world, from_pools(pools, &format!("k{n}"), constraints)).await
    };
    let hot = || PoolChoice::Selected("tier=hot".into());
    assert_eq!(constraints(hot(), Some("gpu"), Some("zone=y")).await.as_deref(), Ok("b-gpu-2"));
    assert_eq!(constraints(hot(), Some("gpu"), Some("zone=y")).await, Err(FULL), "c-gpu has one, and is not hot");
    assert_eq!(
        constraints(PoolChoice::Selected("tier".into()), Some("gpu"), Some("zone=y")).await.as_deref(),
        Ok("c-gpu-2")
    );
    assert_eq!(constraints(hot(), Some("gpu"), Some("zone=x,zone=y")).await, Err(FULL), "both are evaluated");
    assert_eq!(constraints(hot(), Some("tpu"), None).await, Err(NO_POOL));
    assert_eq!(constraints(PoolChoice::Selected("tier=warm".into()), None, None).await, Err(NO_POOL));
    // The class also restricts pools that are listed by name.
    assert_eq!(constraints(name("a-cpu").into(), Some("gpu"), None).await, Err(NO_POOL));
    assert_eq!(constraints(name("d-none").into(), Some("gpu"), None).await, Err(NO_POOL), "no class is no class");
    assert_eq!(constraints(listed(&["a-cpu", "b-gpu"]), Some("gpu"), None).await.as_deref(), Ok("b-gpu-1"));
    assert_eq!(constraints(listed(&["a-cpu", "b-gpu"]), Some("gpu"), None).await, Err(FULL), "a-cpu is not allowed");
    assert_eq!(world.counts("a-cpu").await, (2, 0, 0));
}

#[tokio::test]
async fn p01_a_pinned_worker_is_the_only_candidate() {
    let world = World::on_store().await;
    world.pool("p", spec(4, AckLevel::Durable), &["u", "v", "w"]).await;
    world.pool("q", spec(2, AckLevel::Durable), &["x"]).await;
    add(&world, "p", vec![sized("big", cpu(8_000))]).await;
    let named = |id: &str| ClaimConstraints { worker: Some(WorkerId::new(id).unwrap()), ..ClaimConstraints::default() };
    assert_eq!(worker_of(&world, request_with("p", "k1", named("v"))).await.as_deref(), Ok("v"));
    assert_eq!(worker_of(&world, request_with("p", "k2", named("v"))).await, Err(FULL), "it is busy");
    assert_eq!(
        worker_of(&world, request_with("p", "k2", named("none"))).await,
        Err(RequestError::NotFound(ObjectKind::Worker))
    );
    let large = ClaimConstraints { spec: requiring(cpu(4_000)).spec, ..named("w") };
    assert_eq!(
        worker_of(&world, request_with("p", "k2", large)).await,
        Err(RequestError::Unsatisfiable),
        "big is not the one"
    );
    let elsewhere = ClaimConstraints { nodes_required: nodes(&["n1"]), ..named("w") };
    assert_eq!(worker_of(&world, request_with("p", "k2", elsewhere)).await, Err(NODE_LOCALITY));
    // In whichever pool the worker is.
    assert_eq!(worker_of(&world, from_pools(listed(&["p", "q"]), "k3", named("x"))).await.as_deref(), Ok("x"));
    let batch = ["big", "none", "u"].map(|id| request_with("p", &format!("b-{id}"), named(id)));
    let answers = world.s.claim_batch(batch.into()).await;
    let took = |i: usize| answers[i].as_ref().map(|taken| taken.claim.worker.spec.id.as_str());
    assert_eq!((took(0), took(2)), (Ok("big"), Ok("u")));
    assert_eq!(answers[1], Err(RequestError::NotFound(ObjectKind::Worker)));
    assert_eq!(world.s.keys().pending_len(), 0);
}

#[tokio::test]
async fn p05_required_nodes_restrict_and_preferred_nodes_rank() {
    let world = World::on_memory().await;
    world.pool("p", spec(8, AckLevel::Durable), &[]).await;
    let mut workers: Vec<_> = (0..40).map(|i| on_node(&format!("far{i}"), "far")).collect();
    workers.extend((0..3).map(|i| on_node(&format!("near{i}"), "near")));
    workers.push(worker("nowhere"));
    add(&world, "p", workers).await;
    let mut n = 0;
    let mut constraints = async |required: &[&str], preferred: &[&str]| {
        n += 1;
        let constraints = ClaimConstraints {
            nodes_required: nodes(required),
            nodes_preferred: nodes(preferred),
            ..ClaimConstraints::default()
        };
        worker_of(&world, request_with("p", &format!("k{n}"), constraints)).await
    };
    // There is no such node: the pool is not exhausted.
    assert_eq!(constraints(&["moon"], &[]).await, Err(NODE_LOCALITY));
    // The preferred node is found in whichever shard it has workers, and is not required.
    for _ in 0..2 {
        assert!(constraints(&[], &["near"]).await.unwrap().starts_with("near"));
    }
    assert!(
        constraints(&["near", "moon"], &["far"]).await.unwrap().starts_with("near"),
        "required comes before preferred"
    );
    assert!(constraints(&[], &["near"]).await.unwrap().starts_with("far") || world.counts("p").await.1 == 4);
    assert_eq!(constraints(&["near"], &[]).await, Err(NODE_LOCALITY), "there are others");
    // Empty lists restrict nothing, so a worker without a node qualifies.
    for _ in 0..40 {
        constraints(&[], &[]).await.unwrap();
    }
    assert_eq!(constraints(&[], &[]).await, Err(FULL));
    assert_eq!(constraints(&["near"], &[]).await, Err(FULL), "not only the node rules it out now");
    // A label rules the others out, not the node.
    add(&world, "p", vec![in_zone("z", "a")]).await;
    let both = ClaimConstraints { nodes_required: nodes(&["near"]), ..selecting("zone=b") };
    assert_eq!(worker_of(&world, request_with("p", "last", both)).await, Err(FULL));
}

#[tokio::test]
async fn p06_held_claims_stay_valid_when_capacity_changes() {
    let world = World::on_memory().await;
    world.pool("p", spec(1, AckLevel::Durable), &[]).await;
    add(&world, "p", vec![WorkerSpec { capacity: cpu(4_000), ..in_zone("w", "a") }]).await;
    let constraints = || ClaimConstraints { spec: requiring(cpu(4_000)).spec, ..selecting("zone=a") };
    let fence = world.s.claim(request_with("p", "k", constraints())).await.unwrap().claim.fence;
    let same = async || world.s.claim(request_with("p", "k", constraints())).await.map(|taken| taken.claim.fence);
    assert_eq!(same().await, Ok(fence), "no other worker is free");
    // The worker shrinks below the claim's resources.
    add(&world, "p", vec![WorkerSpec { capacity: cpu(1_000), ..in_zone("w", "a") }]).await;
    assert_eq!(same().await, Ok(fence));
    // Its labels change; the claim requested the old ones.
    add(&world, "p", vec![in_zone("w", "b")]).await;
    assert_eq!(same().await, Err(RequestError::Unsatisfiable), "rolled back, and no worker fits it");
    assert_eq!(world.counts("p").await, (1, 0, 0));
}

#[tokio::test]
async fn w07_a_worker_gets_no_claim_for_resources_that_it_did_not_report() {
    let world = World::on_memory().await;
    world.pool("p", spec(4, AckLevel::Durable), &["bare"]).await;
    let gpu = |count| WorkerCapacity { gpu: Some(GpuCapacity { model: "A10".into(), count }), ..cpu(1_000) };
    add(&world, "p", vec![sized("small", cpu(1_000)), sized("big", cpu(4_000)), sized("gpu", gpu(2))]).await;
    let mut n = 0;
    let mut constraints = async |resources: WorkerCapacity| {
        n += 1;
        worker_of(&world, request_with("p", &format!("k{n}"), requiring(resources))).await
    };
    let memory = WorkerCapacity { memory_bytes: 1, ..WorkerCapacity::default() };
    assert_eq!(constraints(memory.clone()).await, Err(RequestError::Unsatisfiable), "no worker reported memory");
    assert_eq!(constraints(WorkerCapacity { slots: 1, ..cpu(1) }).await, Err(RequestError::Unsatisfiable));
    let l4 = WorkerCapacity { gpu: Some(GpuCapacity { model: "L4".into(), count: 1 }), ..WorkerCapacity::default() };
    assert_eq!(constraints(l4).await, Err(RequestError::Unsatisfiable), "another model");
    assert_eq!(constraints(gpu(3)).await, Err(RequestError::Unsatisfiable));
    assert_eq!(
        constraints(WorkerCapacity { cpu_milli: 4_000, ..gpu(1) }).await,
        Err(RequestError::Unsatisfiable),
        "not both on one"
    );
    assert_eq!(constraints(cpu(4_001)).await, Err(RequestError::Unsatisfiable));
    assert_eq!(constraints(cpu(4_000)).await.as_deref(), Ok("big"));
    assert_eq!(constraints(cpu(4_000)).await, Err(FULL), "one could, and is busy");
    assert_eq!(constraints(gpu(2)).await.as_deref(), Ok("gpu"));
    assert_eq!(constraints(cpu(1)).await.as_deref(), Ok("small"));
    assert_eq!(constraints(cpu(1)).await, Err(FULL), "the bare one takes nothing that needs it...");
    assert_eq!(constraints(WorkerCapacity::default()).await.as_deref(), Ok("bare"), "...and what does not");
    // A worker that has it registers: the request is satisfiable now.
    add(&world, "p", vec![sized("roomy", WorkerCapacity { memory_bytes: 1 << 30, ..WorkerCapacity::default() })]).await;
    assert_eq!(constraints(memory.clone()).await.as_deref(), Ok("roomy"));
    world.s.delete_worker(&name("p"), &WorkerId::new("roomy").unwrap()).await.unwrap();
    assert_eq!(constraints(memory.clone()).await, Err(RequestError::Unsatisfiable));
    // Nothing is known about a pool without workers.
    world.pool("empty", spec(1, AckLevel::Durable), &[]).await;
    assert_eq!(worker_of(&world, request_with("empty", "k", requiring(memory))).await, Err(FULL));
}

/// N1 for claims with constraints: in each zone one more worker is free than is ever requested, and no reply says
/// that there is none.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn n1_a_matching_worker_that_stays_free_is_found() {
    const ZONES: u64 = 5;
    let world = World::on_memory().await;
    world.pool("p", spec(32, AckLevel::Durable), &[]).await;
    let zone = |i: u64| format!("z{}", i % ZONES);
    let workers = (0..1_000).map(|i| WorkerSpec {
        labels: labels(&[("zone", &zone(i))]),
        node: Some(format!("n{}", i % 3).into()),
        ..worker(&format!("w{i}"))
    });
    add(&world, "p", workers.collect()).await;
    // All are held, then three of each zone become free: a round claims two and releases two others.
    let requests = (0..1_000).map(|i| request("p", &format!("old{i}"))).collect();
    let taken = world.s.claim_batch(requests).await.into_iter().map(|taken| taken.unwrap().claim);
    let mut held: Vec<Vec<_>> = (0..ZONES).map(|_| Vec::new()).collect();
    let slot = |claim: &hotpool::model::ClaimView| claim.worker.spec.labels["zone"][1..].parse::<usize>().unwrap();
    for claim in taken {
        held[slot(&claim)].push((claim.id, claim.fence));
    }
    for held in &mut held {
        for (id, fence) in held.drain(..3) {
            world.s.release(&id, fence).await.unwrap();
        }
    }
    let mut dice = Seeded(5);
    for round in 0..60 {
        let mut claims = Vec::new();
        let mut releases = Vec::new();
        for pairs in 0..ZONES {
            for i in 0..2 {
                let constraints =
                    ClaimConstraints { nodes_preferred: nodes(&["n1"]), ..selecting(&format!("zone={}", zone(pairs))) };
                let constraints =
                    if dice.below(2) == 0 { constraints } else { selecting(&format!("zone in ({})", zone(pairs))) };
                let (s, request) = (world.s.clone(), request_with("p", &format!("r{round}-{pairs}-{i}"), constraints));
                claims.push(tokio::spawn(async move { s.claim(request).await }));
                let at = dice.below(held[pairs as usize].len() as u64) as usize;
                let (s, (id, fence)) = (world.s.clone(), held[pairs as usize].swap_remove(at));
                releases.push(tokio::spawn(async move { s.release(&id, fence).await }));
            }
        }
        for claim in claims {
            let claim = done(claim).await.expect("one of them was free all the time").claim;
            held[slot(&claim)].push((claim.id, claim.fence));
        }
        for release in releases {
            done(release).await.unwrap();
        }
    }
    assert_eq!(world.counts("p").await.0, 3 * ZONES);
}

/// More classes of workers than a shard distinguishes: slower, with the same result.
#[tokio::test]
async fn p01_workers_of_many_classes_are_found_too() {
    const WORKERS: usize = hotpool::limits::WORKER_CLASSES_MAX + 200;
    let world = World::on_memory().await;
    world.pool("p", spec(1, AckLevel::Durable), &[]).await;
    let own = |i: usize| WorkerSpec { labels: labels(&[("own", &i.to_string())]), ..worker(&format!("w{i}")) };
    for from_pools in (0..WORKERS).step_by(500) {
        add(&world, "p", (from_pools..(from_pools + 500).min(WORKERS)).map(own).collect()).await;
    }
    for i in (0..WORKERS).step_by(97).chain(WORKERS - 20..WORKERS) {
        let found = worker_of(&world, request_with("p", &format!("k{i}"), selecting(&format!("own={i}")))).await;
        assert_eq!(found, Ok(format!("w{i}")));
        let again = worker_of(&world, request_with("p", &format!("again{i}"), selecting(&format!("own={i}")))).await;
        assert_eq!(again, Err(FULL));
    }
    // The policy is lifo over both kinds: the newest one left.
    let newest = worker_of(&world, request_with("p", "newest", selecting("own"))).await;
    assert_eq!(newest, Ok(format!("w{}", WORKERS - 21)));
}

#[tokio::test]
async fn a_claim_keeps_its_labels_and_shows_them() {
    let world = World::on_store().await;
    world.pool("p", spec(2, AckLevel::Durable), &["v", "w"]).await;
    let kept = labels(&[("job", "42"), ("note", "a b,c")]);
    let constraints = ClaimConstraints {
        spec: ClaimSpec { labels: kept.clone(), ..ClaimSpec::default() },
        ..ClaimConstraints::default()
    };
    let taken = world.s.claim(request_with("p", "k", constraints)).await.unwrap();
    let shown = |spec: &Option<Arc<ClaimSpec>>| spec.as_ref().unwrap().labels.clone();
    assert_eq!(shown(&taken.claim.spec), kept);
    let big = labels(&[("a", &"x".repeat(200))]).into_iter().chain((0..20).map(|i| (format!("k{i}"), "y".repeat(200))));
    let constraints = ClaimConstraints {
        spec: ClaimSpec { labels: big.collect(), ..ClaimSpec::default() },
        ..ClaimConstraints::default()
    };
    invalid(world.s.claim(request_with("p", "big", constraints)).await, "labels");
    let again = world.crashed().await;
    assert_eq!(shown(&again.s.get_claim(&id("k")).await.unwrap().spec), kept);
    // A repeated claim without labels changes nothing.
    assert_eq!(shown(&again.claim("p", "k").await.unwrap().claim.spec), kept);
    again.s.release(&id("k"), taken.claim.fence).await.unwrap();
    assert_eq!(again.claim("p", "k").await.unwrap().claim.spec, None);
}

#[tokio::test]
async fn a_pinned_worker_is_requested_from_its_shard_only() {
    let world = World::on_memory().await;
    world.pool("p", spec(4, AckLevel::Durable), &[]).await;
    let ids = ids_on(2, 4, 2, "w");
    world.add("p", &ids.iter().map(String::as_str).collect::<Vec<_>>()).await;
    world.hold("p", "k").await;
    world.hold("p", "l").await;
    // No shard has an idle worker, and yet this one is known to exist and to be busy.
    let named = ClaimConstraints { worker: Some(WorkerId::new(&ids[0]).unwrap()), ..ClaimConstraints::default() };
    assert_eq!(worker_of(&world, request_with("p", "m", named)).await, Err(FULL));
}
