//! Gangs: all claims of a call or none, whatever happens in between.

use hotpool::model::claim_request::ClaimConstraints;
use hotpool::model::request_error::{ExhaustionReason, ObjectKind, Precondition, RequestError};
use hotpool::model::{
    AckLevel, ClaimRequest, ClaimResult, ClaimSpec, ClaimStatus, PoolMode, PoolSpec, RegistrationRequest,
    ResourceRequirements, WorkerCapacity, WorkerId, WorkerSpec,
};
use tokio::task::JoinHandle;

use crate::world::{FULL, STORE, World, done, id, name, request, spec, until};

type Outcomes = Vec<Result<ClaimResult, RequestError>>;

fn gang(pool: &str, keys: &[String]) -> Vec<ClaimRequest> {
    keys.iter().map(|key| request(pool, key)).collect()
}

fn keys(prefix: &str, n: usize) -> Vec<String> {
    (0..n).map(|i| format!("{prefix}{i}")).collect()
}

fn workers(n: usize) -> Vec<String> {
    (0..n).map(|i| format!("w{i}")).collect()
}

async fn pool_of(world: &World, spec: PoolSpec, n: usize) {
    let ids = workers(n);
    world.pool("p", spec, &ids.iter().map(String::as_str).collect::<Vec<_>>()).await;
}

async fn begin(world: &World, requests: Vec<ClaimRequest>) -> JoinHandle<Outcomes> {
    world.begin(|s| Box::pin(async move { s.claim_gang(requests).await })).await
}

fn granted(outcomes: &Outcomes) -> usize {
    outcomes.iter().filter(|outcome| outcome.is_ok()).count()
}

/// Reason of the one rejected member; checks that all others point to it.
fn rejected_by(outcomes: &Outcomes, culprit: usize) -> &RequestError {
    for (at, outcome) in outcomes.iter().enumerate().filter(|&(at, _)| at != culprit) {
        let said = outcome.as_ref().unwrap_err();
        assert!(
            matches!(said, RequestError::GangMemberRejected(first) if *first <= culprit)
                || said == outcomes[culprit].as_ref().unwrap_err(),
            "{at}: {said:?}"
        );
    }
    outcomes[culprit].as_ref().unwrap_err()
}

#[tokio::test]
async fn b02_all_or_none_over_shards() {
    let world = World::on_memory().await;
    pool_of(&world, spec(4, AckLevel::Durable), 8).await;
    let all = world.s.claim_gang(gang("p", &keys("a", 8))).await;
    assert_eq!(granted(&all), 8);
    let mut fences: Vec<u64> = all.iter().map(|taken| taken.as_ref().unwrap().claim.fence).collect();
    assert!(all.iter().all(|taken| taken.as_ref().unwrap().created));
    fences.sort_unstable();
    fences.dedup();
    assert_eq!((fences.len(), world.held().await.len()), (8, 8));
    // The members are ordinary claims.
    for taken in &all {
        let claim = &taken.as_ref().unwrap().claim;
        world.s.confirm(&claim.id, claim.fence).await.unwrap();
    }
    // The same call again finds its claims.
    let again = world.s.claim_gang(gang("p", &keys("a", 8))).await;
    for (one, two) in all.iter().zip(&again) {
        let (one, two) = (one.as_ref().unwrap(), two.as_ref().unwrap());
        assert_eq!((one.claim.fence, two.created), (two.claim.fence, false));
    }
    for taken in &all[..3] {
        let claim = &taken.as_ref().unwrap().claim;
        world.s.release(&claim.id, claim.fence).await.unwrap();
    }
    // Four members for three free workers: none is made, and nothing is left behind.
    let none = world.s.claim_gang(gang("p", &keys("b", 4))).await;
    let culprit = none.iter().position(|outcome| *outcome == Err(FULL)).expect("one member found no worker");
    rejected_by(&none, culprit);
    assert_eq!((world.held().await.len(), world.counts("p").await.0), (5, 3));
    assert!(keys("b", 4).iter().all(|key| world.is_vacant(key)));
    assert_eq!(granted(&world.s.claim_gang(gang("p", &keys("b", 3))).await), 3);
}

#[tokio::test]
async fn b02_bad_gangs_are_rejected_and_change_nothing() {
    let world = World::on_memory().await;
    pool_of(&world, spec(4, AckLevel::Durable), 4).await;
    // More than the pool could ever hold.
    let large = world.s.claim_gang(gang("p", &keys("a", 5))).await;
    assert!(large.contains(&Err(RequestError::GangTooLarge)), "{large:?}");
    // The same key given twice.
    let twice = ["a", "b", "a"].map(str::to_owned);
    let outcomes = world.s.claim_gang(gang("p", &twice)).await;
    assert!(matches!(rejected_by(&outcomes, 2), RequestError::Invalid { field, .. } if field == "key"));
    // A key that is held, and one that cannot be claimed.
    world.hold("p", "held").await;
    let outcomes = world.s.claim_gang(gang("p", &["x".into(), "held".into()])).await;
    assert!(matches!(rejected_by(&outcomes, 1), RequestError::FailedPrecondition(_)));
    let mut requests = gang("p", &keys("a", 2));
    requests[1].pools = name("none").into();
    let outcomes = world.s.claim_gang(requests).await;
    assert!(matches!(rejected_by(&outcomes, 1), RequestError::NotFound(_)));
    assert_eq!((world.counts("p").await, world.held().await.len()), ((3, 1, 0), 1));
    assert_eq!(world.s.keys().len(), 1, "only what was held before");
    assert!(world.s.claim_gang(Vec::new()).await.is_empty());
}

/// Two gangs that together exceed the pool: at most one is placed, none is stuck, nothing is left. `HOTPOOL_RACES`
/// sets the number of rounds.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn b02_two_gangs_race() {
    let races: usize = std::env::var("HOTPOOL_RACES").map_or(500, |text| text.parse().unwrap());
    let world = World::on_memory().await;
    pool_of(&world, spec(8, AckLevel::Durable), 8).await;
    let mut placed = [0; 3];
    for race in 0..races {
        let one = world.s.clone();
        let two = world.s.clone();
        let (a, b) = (gang("p", &keys("a", 5)), gang("p", &keys("b", 5)));
        let (a, b) = (
            tokio::spawn(async move { one.claim_gang(a).await }),
            tokio::spawn(async move { two.claim_gang(b).await }),
        );
        let (a, b) = (done(a).await, done(b).await);
        let both = [granted(&a), granted(&b)];
        assert!(both.iter().all(|&n| n == 0 || n == 5) && both != [5, 5], "race {race}: {both:?}");
        assert_eq!(world.held().await.len(), both[0] + both[1], "race {race}");
        placed[both.iter().filter(|&&n| n > 0).count()] += 1;
        for taken in a.iter().chain(&b).flatten() {
            world.s.release(&taken.claim.id, taken.claim.fence).await.unwrap();
        }
        assert_eq!(world.counts("p").await, (8, 0, 0), "race {race}");
    }
    assert_eq!(placed, [0, races, 0], "one of them always fits");
    world.is_clean().await;
}

/// Every state of the store is one in which the process might have died: each recovers to all or none, and to all from
/// some point on.
#[tokio::test]
async fn g1_a_gang_is_whole_after_any_crash() {
    let world = World::on_store().await;
    pool_of(&world, spec(4, AckLevel::Durable), 8).await;
    world.hold("p", "other").await;
    world.stored("p").await;
    world.gate().keep_copies();
    let outcomes = world.s.claim_gang(gang("p", &keys("a", 6))).await;
    assert_eq!(granted(&outcomes), 6);
    world.stored("p").await;
    let copies = world.gate().take_copies();
    assert!(copies.len() >= 3, "members, the gang, the commit: {}", copies.len());
    let mut seen = Vec::new();
    for copy in copies {
        let again = World::on(copy).await;
        let held = again.held().await;
        let members = held.iter().filter(|(key, ..)| key.starts_with('a')).count();
        assert!(members == 0 || members == 6, "{members} of 6 after a crash");
        assert_eq!(again.counts("p").await.1 as usize, members + 1, "no worker is busy without a claim");
        assert_eq!(held.len(), members + 1);
        // Decisions of the start are in the store, and so is that the gang is forgotten.
        again.stored("p").await;
        let twice = World::on(again.gate().copy().await).await;
        assert_eq!(twice.held().await, held);
        seen.push(members == 6);
        if members == 0 {
            assert_eq!(granted(&twice.s.claim_gang(gang("p", &keys("a", 6))).await), 6);
        }
    }
    assert!(seen.contains(&true) && seen.contains(&false), "{seen:?}");
    assert!(seen.is_sorted(), "once whole, always whole: {seen:?}");
    let answered: Vec<u64> = outcomes.iter().map(|taken| taken.as_ref().unwrap().claim.fence).collect();
    let found = world.crashed().await.held().await;
    assert!(answered.iter().all(|fence| found.iter().any(|(.., held)| held == fence)), "what was answered stands");
}

/// Between grant and commit no member is visible, and claims of its key wait.
#[tokio::test]
async fn b02_members_are_invisible_until_the_gang_is_committed() {
    let world = World::on_store().await;
    pool_of(&world, spec(2, AckLevel::Memory), 4).await;
    world.stored("p").await;
    world.gate().hold_all();
    let begun = begin(&world, gang("p", &keys("a", 3))).await;
    world.gate().stopped().await;
    world.quiet().await;
    assert!(world.held().await.is_empty() && !begun.is_finished(), "durable, whatever the pool guarantees");
    assert_eq!(world.counts("p").await.1, 3, "but their workers are taken");
    let joined = world.begin_claim("p", "a1").await;
    world.gate().open_gate();
    let outcomes = done(begun).await;
    let joined = done(joined).await.unwrap();
    assert_eq!(granted(&outcomes), 3);
    assert_eq!((joined.created, joined.claim.fence), (false, outcomes[1].as_ref().unwrap().claim.fence));
}

/// The store accepts the members too late: no claim is made, and the keys are free.
#[tokio::test]
async fn s11_a_gang_that_is_not_stored_in_time_is_rolled_back() {
    let world = World::on_store().await;
    pool_of(&world, spec(2, AckLevel::Durable), 4).await;
    world.stored("p").await;
    world.gate().hold_all();
    let begun = begin(&world, gang("p", &keys("a", 3))).await;
    world.gate().stopped().await;
    world.pass(crate::world::WAIT_MS + 1).await;
    let outcomes = done(begun).await;
    assert!(
        outcomes
            .iter()
            .all(|outcome| matches!(outcome, Err(refusal) if *refusal == STORE || matches!(refusal, RequestError::GangMemberRejected(_)))),
        "{outcomes:?}"
    );
    world.gate().open_gate();
    world.stored("p").await;
    world.is_clean().await;
    assert_eq!(world.counts("p").await, (4, 0, 0));
}

/// The caller has left: its members are rolled back.
#[tokio::test]
async fn b02_a_caller_that_left_leaves_nothing() {
    let world = World::on_store().await;
    pool_of(&world, spec(2, AckLevel::Durable), 4).await;
    world.stored("p").await;
    world.gate().hold_all();
    let begun = begin(&world, gang("p", &keys("a", 3))).await;
    world.gate().stopped().await;
    begun.abort();
    world.gate().open_gate();
    until("all workers are idle", async || world.counts("p").await == (4, 0, 0)).await;
    world.stored("p").await;
    world.is_clean().await;
}

/// A shard that panics between the steps comes back with its members: the gang is whole or gone.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn s08_a_gang_over_a_panic_is_whole() {
    let mut came_to = [0; 2];
    for steps in 0..6 {
        let world = World::on_store().await;
        pool_of(&world, spec(2, AckLevel::Durable), 4).await;
        world.stored("p").await;
        world.gate().hold_all();
        let begun = begin(&world, gang("p", &keys("a", 4))).await;
        for _ in 0..steps {
            world.gate().stopped().await;
            world.gate().open_gate();
            world.gate().hold_all();
        }
        world.s.inject_panic(&name("p"), 0);
        world.s.inject_panic(&name("p"), 1);
        world.gate().open_gate();
        // Requests that a panic left unanswered are repeated after a while.
        until("the gang is answered", async || {
            world.pass(1).await;
            begun.is_finished()
        })
        .await;
        let outcomes = done(begun).await;
        until("both serve", async || world.shards("p").await.iter().all(|shard| shard.state == "serving")).await;
        let made = granted(&outcomes);
        assert!(made == 0 || made == 4, "{outcomes:?}");
        until("nothing is in between", async || {
            world.pass(1).await;
            world.counts("p").await.1 as usize == world.held().await.len()
        })
        .await;
        assert_eq!(world.held().await.len(), made, "after {steps} steps");
        came_to[usize::from(made > 0)] += 1;
    }
    assert_eq!(came_to.iter().sum::<i32>(), 6, "{came_to:?}");
}

/// Resources of shared workers over shards, and in two pools; each worker is updated once to grant and once to commit.
#[tokio::test]
async fn b02_a_gang_of_shares() {
    let world = World::on_memory().await;
    let shared = PoolSpec { mode: PoolMode::Shared, ..spec(4, AckLevel::Durable) };
    for pool in ["p", "q"] {
        world.s.put_pool(name(pool), shared.clone()).await.unwrap();
        let workers = (0..4).map(|i| {
            let capacity = WorkerCapacity { cpu_milli: 4_000, ..WorkerCapacity::default() };
            RegistrationRequest::from(WorkerSpec {
                capacity,
                ..WorkerSpec::with_id(WorkerId::new(&format!("w{i}")).unwrap())
            })
        });
        world.s.register_batch(&name(pool), workers.collect()).await.unwrap();
    }
    let share = |pool: &str, key: String, cpu_milli: u64| {
        let resources = ResourceRequirements { cpu_milli, ..ResourceRequirements::default() };
        let constraints =
            ClaimConstraints { spec: ClaimSpec { resources, ..ClaimSpec::default() }, ..ClaimConstraints::default() };
        ClaimRequest { constraints: Some(Box::new(constraints)), ..ClaimRequest::new(id(&key), name(pool)) }
    };
    let both = |prefix: &str, n: usize| -> Vec<ClaimRequest> {
        (0..n).map(|i| share(["p", "q"][i % 2], format!("{prefix}{i}"), 1_000)).collect()
    };
    let all = world.s.claim_gang(both("a", 32)).await;
    assert_eq!(granted(&all), 32, "{:?}", all.iter().find(|outcome| outcome.is_err()));
    // Full: one more does not fit, and of two of which one would fit none is made.
    let first = &all[0].as_ref().unwrap().claim;
    world.s.release(&first.id, first.fence).await.unwrap();
    let none = world.s.claim_gang(vec![share("p", "b0".into(), 1_000), share("q", "b1".into(), 1_000)]).await;
    assert_eq!(rejected_by(&none, 1), &RequestError::Exhausted(ExhaustionReason::Pool));
    assert_eq!(world.held().await.len(), 31);
    assert_eq!(world.s.get_pool(&name("p")).await.unwrap().free.cpu_milli, 1_000);
    let large = world.s.claim_gang(both("c", 40)).await;
    assert!(large.contains(&Err(RequestError::GangTooLarge)));
    assert_eq!(granted(&world.s.claim_gang(vec![share("p", "b0".into(), 1_000)]).await), 1);
}

/// A shard that does not come back blocks no gang: the gang is rejected, the pool's lock for gangs is free again, nothing is
/// left.
#[tokio::test]
async fn w06_a_refused_shard_blocks_no_gang() {
    let world = World::on_store().await;
    pool_of(&world, spec(2, AckLevel::Durable), 8).await;
    world.stored("p").await;
    while world.shards("p").await[0].state != "refused" {
        world.s.inject_panic(&name("p"), 0);
        until("it serves again, or is refused", async || world.shards("p").await[0].state != "loading").await;
    }
    let there = world.shards("p").await[1].workers as usize;
    for round in 0..2 {
        let outcomes = done(begin(&world, gang("p", &keys(&format!("r{round}-"), there + 1))).await).await;
        assert_eq!(granted(&outcomes), 0, "{outcomes:?}");
        assert!(outcomes.contains(&Err(crate::world::LOADING)), "not full: {outcomes:?}");
    }
    assert_eq!(world.shards("p").await[1].busy, 0);
    assert_eq!(granted(&done(begin(&world, gang("p", &keys("b", there))).await).await), there);
}

fn waits(members: Vec<ClaimRequest>, wait_ms: u64) -> Vec<ClaimRequest> {
    members.into_iter().map(|request| ClaimRequest { wait_ms, ..request }).collect()
}

/// Two gangs that together exceed the pool: one is placed, the other waits for all of its capacity, and is placed
/// then.
#[tokio::test]
async fn b02_a_gang_waits_until_there_is_capacity_for_all_of_it() {
    let world = World::on_store().await;
    pool_of(&world, spec(2, AckLevel::Durable), 4).await;
    let first = done(begin(&world, gang("p", &keys("a", 3))).await).await;
    assert_eq!(granted(&first), 3);
    let second = begin(&world, waits(gang("p", &keys("b", 3)), 60_000)).await;
    until("it waits", async || world.s.waiting(&name("p")) == 1).await;
    let standing = async |key| world.s.claim_status(&id(key)).await;
    let Ok(ClaimStatus::Queued(waiting)) = standing("b1").await else { panic!("a member waits with its gang") };
    assert_eq!((waiting.ahead, waiting.reason), (0, "pool_exhausted"));
    assert!(matches!(standing("a1").await, Ok(ClaimStatus::Held(_))));
    // One worker at a time is not enough.
    let taken = first[0].as_ref().unwrap();
    world.s.release(&taken.claim.id, taken.claim.fence).await.unwrap();
    world.quiet().await;
    assert!(!second.is_finished());
    assert_eq!(world.held().await.len(), 2, "nothing of it is held meanwhile");
    let taken = first[1].as_ref().unwrap();
    world.s.release(&taken.claim.id, taken.claim.fence).await.unwrap();
    assert_eq!(granted(&done(second).await), 3);
    assert_eq!(world.s.waiting(&name("p")), 0);
    assert!(matches!(standing("b1").await, Ok(ClaimStatus::Held(_))));
    let after = world.crashed().await;
    assert_eq!(after.held().await.len(), 4);
}

#[tokio::test]
async fn b02_a_gang_that_gave_up_waiting_leaves_nothing() {
    let world = World::on_memory().await;
    pool_of(&world, spec(2, AckLevel::Memory), 2).await;
    let fence = world.hold("p", "held").await;
    let expires = begin(&world, waits(gang("p", &keys("a", 2)), 1_000)).await;
    let leaves = begin(&world, waits(gang("p", &keys("b", 2)), 60_000)).await;
    until("both wait", async || world.s.waiting(&name("p")) == 2).await;
    world.pass(1_001).await;
    assert!(done(expires).await.contains(&Err(crate::world::FULL)));
    leaves.abort();
    until("it has left", async || world.s.waiting(&name("p")) == 0).await;
    let gone = world.s.claim_status(&id("b0")).await;
    assert_eq!(gone.err(), Some(RequestError::NotFound(ObjectKind::Claim)));
    world.s.release(&crate::world::id("held"), fence).await.unwrap();
    world.is_clean().await;
}

/// Small claims come and go; after a while the capacity that they release is reserved for the gang that waited
/// longest.
#[tokio::test]
async fn q03_a_gang_is_not_starved_by_small_claims() {
    let world = World::on_memory().await;
    pool_of(&world, spec(2, AckLevel::Memory), 3).await;
    let mut held: Vec<(String, u64)> = Vec::new();
    for n in 0..3 {
        held.push((format!("s{n}"), world.hold("p", &format!("s{n}")).await));
    }
    let waiting = begin(&world, waits(gang("p", &keys("g", 3)), 600_000)).await;
    until("it waits", async || world.s.waiting(&name("p")) == 1).await;
    let (mut turns, mut next) = (0, 3);
    while !waiting.is_finished() {
        turns += 1;
        assert!(turns < 40, "it is starved");
        if !held.is_empty() {
            let (key, fence) = held.remove(0);
            world.s.release(&crate::world::id(&key), fence).await.unwrap();
        }
        let key = format!("s{next}");
        next += 1;
        if let Ok(taken) = world.claim("p", &key).await {
            held.push((key, taken.claim.fence));
        }
        world.pass(1_000).await;
    }
    assert_eq!(granted(&done(waiting).await), 3);
}

/// A request for one of the keys alone would take the place of its claim. Of a gang one key could find a worker and another not.
#[tokio::test]
async fn g1_a_gang_of_held_keys_replaces_no_claim() {
    let world = World::on_memory().await;
    world.pool("p", spec(1, AckLevel::Memory), &["u", "v"]).await;
    world.pool("q", spec(1, AckLevel::Memory), &["w"]).await;
    let held = [world.claim("p", "a").await.unwrap(), world.claim("p", "b").await.unwrap()];
    let conflict = RequestError::FailedPrecondition(Precondition::ClaimConflict);
    let elsewhere = vec![request("q", "a"), request("q", "b")];
    assert_eq!(world.s.claim_gang(elsewhere).await, [Err(conflict.clone()), Err(conflict)]);
    assert_eq!((world.counts("p").await, world.counts("q").await), ((0, 2, 2), (1, 0, 0)));
    let again = world.s.claim_gang(vec![request("p", "a"), request("p", "b")]).await;
    for (again, held) in again.into_iter().zip(held) {
        let again = again.unwrap();
        assert_eq!((again.created, again.claim.fence), (false, held.claim.fence));
    }
}
