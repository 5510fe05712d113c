//! Claims that wait for capacity: what wakes them, and what ends their wait.

use std::sync::Arc;

use futures::FutureExt as _;
use hotpool::model::claim_request::{ClaimConstraints, PoolChoice};
use hotpool::model::request_error::{ExhaustionReason, RequestError, UnavailableReason};
use hotpool::model::{
    AckLevel, ClaimId, ClaimRequest, ClaimStatus, PlacementPolicy, PoolSpec, QueuedClaimView, WorkerCommand, WorkerId,
    WorkerSpec,
};
use hotpool::persist::store::memory::MemoryStore;
use hotpool::scheduler::{Scheduler, SchedulerSettings};
use hotpool::shard::{ProtocolPoint, inject_into_thread};
use tokio::task::JoinHandle;

use crate::shared_pool_helpers::{gpus, request_for, shared, sized};
use crate::world::{Claimed, FULL, World, done, id, name, request, spec, until, worker};

pub const MINUTE: u64 = 60_000;

pub fn waiting(pool: &str, key: &str) -> ClaimRequest {
    ClaimRequest { wait_ms: MINUTE, reserve_ms: Some(0), ..request(pool, key) }
}

pub fn of(tenant: &str, key: &str) -> ClaimRequest {
    ClaimRequest { id: ClaimId::new("ns", tenant, key).unwrap(), ..waiting("p", key) }
}

pub fn with_priority(request: ClaimRequest, priority: u16) -> ClaimRequest {
    let mut constraints = request.constraints.unwrap_or_default();
    constraints.spec.priority = priority;
    ClaimRequest { constraints: Some(constraints), ..request }
}

pub fn labelled(selector: &str) -> Option<Box<ClaimConstraints>> {
    Some(Box::new(ClaimConstraints { selector: Some(selector.into()), ..ClaimConstraints::default() }))
}

impl World {
    /// View of the claim that is queued under a key.
    pub async fn view(&self, key: &str) -> Option<QueuedClaimView> {
        match self.s.claim_status(&id(key)).await {
            Ok(ClaimStatus::Queued(view)) => Some(view),
            _ => None,
        }
    }

    pub async fn waiters(&self, pool: &str) -> usize {
        self.s.waiting(&name(pool))
    }

    /// Begins a claim and waits until it is queued.
    pub async fn begin_queued(&self, request: ClaimRequest) -> JoinHandle<Claimed> {
        let before = self.waiters("p").await;
        let begun = self.begin_request(request).await;
        until("it waits", async || self.waiters("p").await == before + 1).await;
        begun
    }

    pub async fn full(&self, workers: usize) -> Vec<u64> {
        let mut fences = Vec::new();
        for n in 0..workers {
            fences.push(self.hold("p", &format!("held{n}")).await);
        }
        fences
    }
}

pub async fn one_full_worker() -> (World, u64) {
    let world = World::on_memory().await;
    world.pool("p", spec(1, AckLevel::Memory), &["w0"]).await;
    let fence = world.hold("p", "held0").await;
    (world, fence)
}

#[tokio::test]
async fn q02_a_release_wakes_a_queued_claim() {
    let (world, fence) = one_full_worker().await;
    let begun = world.begin_queued(waiting("p", "a")).await;
    let view = world.view("a").await.unwrap();
    assert_eq!((view.reason, view.ahead, &view.pools[..]), ("pool_exhausted", 0, &[name("p")][..]));
    world.s.release(&id("held0"), fence).await.unwrap();
    let taken = done(begun).await.unwrap();
    assert!(taken.created);
    assert_eq!(world.held().await.len(), 1);
    assert_eq!(world.waiters("p").await, 0);
    assert!(world.view("a").await.is_none());
}

#[tokio::test]
async fn q02_a_registration_an_uncordon_and_a_clear_wake_queued_claims() {
    let (world, _) = one_full_worker().await;
    let begun = world.begin_queued(waiting("p", "a")).await;
    world.add("p", &["w1"]).await;
    assert_eq!(done(begun).await.unwrap().claim.worker.spec.id.as_str(), "w1");

    world.s.register(&name("p"), worker("w2")).await.unwrap();
    let w2 = WorkerId::new("w2").unwrap();
    world.s.command_worker(&name("p"), &w2, WorkerCommand::Cordon).await.unwrap();
    let begun = world.begin_queued(waiting("p", "b")).await;
    world.s.command_worker(&name("p"), &w2, WorkerCommand::Uncordon).await.unwrap();
    let b = done(begun).await.unwrap().claim;
    assert_eq!(b.worker.spec.id.as_str(), "w2");

    // A clean-up that times out leaves the worker suspect.
    world.s.begin_release(&b.id, b.fence).await.unwrap();
    let begun = world.begin_queued(ClaimRequest { wait_ms: 10 * MINUTE, ..waiting("p", "c") }).await;
    world.pass(MINUTE + 1).await;
    assert!(world.is_vacant("b") && !begun.is_finished(), "the worker is not confirmed");
    world.s.command_worker(&name("p"), &w2, WorkerCommand::Clear).await.unwrap();
    assert_eq!(done(begun).await.unwrap().claim.worker.spec.id.as_str(), "w2");
}

#[tokio::test]
async fn q02_an_expiry_wakes_a_queued_claim() {
    let world = World::on_memory().await;
    world.pool("p", spec(1, AckLevel::Memory), &["w0"]).await;
    world.claim("p", "never-confirmed").await.unwrap();
    let begun = world.begin_queued(waiting("p", "a")).await;
    world.pass(30_001).await;
    assert!(done(begun).await.is_ok());
}

#[tokio::test]
async fn q02_a_wait_ends_at_its_deadline_with_its_reason() {
    let (world, fence) = one_full_worker().await;
    let begun = world.begin_queued(ClaimRequest { wait_ms: 1_000, ..waiting("p", "a") }).await;
    world.pass(900).await;
    assert!(world.view("a").await.is_some());
    world.pass(101).await;
    assert_eq!(done(begun).await, Err(FULL));
    world.s.release(&id("held0"), fence).await.unwrap();
    world.is_clean().await;
    assert_eq!((world.waiters("p").await, world.counts("p").await), (0, (1, 0, 0)));
}

#[tokio::test]
async fn q02_a_caller_that_leaves_leaves_the_queue() {
    let (world, fence) = one_full_worker().await;
    let gone = world.begin_queued(waiting("p", "a")).await;
    let stays = world.begin_queued(waiting("p", "b")).await;
    gone.abort();
    until("it has left", async || world.waiters("p").await == 1).await;
    assert!(world.is_vacant("a"));
    world.s.release(&id("held0"), fence).await.unwrap();
    done(stays).await.unwrap();
}

/// The claim is dequeued and granted, and then its caller leaves: the next claim gets the worker.
#[tokio::test]
async fn q02_a_grant_to_a_caller_that_left_is_rolled_back_for_the_next() {
    let (world, fence) = one_full_worker().await;
    let gone = world.begin_queued(waiting("p", "a")).await;
    let stays = world.begin_queued(waiting("p", "b")).await;
    let busy = world.busy("p").await;
    let release = world.begin_alone(|s| async move { s.release(&id("held0"), fence).await });
    until("the request is in the mailbox", async || busy.depth() == 1).await;
    gone.abort();
    drop(busy);
    release.await.unwrap().unwrap();
    assert_eq!(done(stays).await.unwrap().claim.id, id("b"));
    assert!(world.is_vacant("a"));
}

#[tokio::test]
async fn q02_thousands_of_callers_that_leave_leave_nothing_behind() {
    let (world, fence) = one_full_worker().await;
    let all: Vec<_> = (0..2_000).map(|n| world.begin_request_alone(waiting("p", &format!("k{n}")))).collect();
    until("all wait", async || world.waiters("p").await == 2_000).await;
    all.iter().for_each(JoinHandle::abort);
    until("all have left", async || world.waiters("p").await == 0).await;
    assert_eq!(world.s.keys().len(), 1);
    world.s.release(&id("held0"), fence).await.unwrap();
    world.is_clean().await;
}

/// A release after a claim found no worker and before it is queued.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn q05_no_wake_up_is_lost() {
    let s = Scheduler::new(Arc::new(MemoryStore), SchedulerSettings::default());
    s.start().await.unwrap();
    s.put_pool(name("p"), spec(4, AckLevel::Memory)).await.unwrap();
    for n in 0..3 {
        s.register(&name("p"), worker(&format!("w{n}"))).await.unwrap();
    }
    let tasks: Vec<_> = (0..12)
        .map(|task| {
            let s = s.clone();
            tokio::spawn(async move {
                for round in 0..3_000 {
                    let request = ClaimRequest { wait_ms: 20_000, ..waiting("p", &format!("{task}-{round}")) };
                    let taken = s.claim(request).await.expect("the claim is dequeued");
                    s.release(&taken.claim.id, taken.claim.fence).await.unwrap();
                }
            })
        })
        .collect();
    for task in tasks {
        task.await.unwrap();
    }
    assert!(s.keys().is_empty());
    assert_eq!(s.waiting(&name("p")), 0);
    assert!(s.stop().await);
}

#[tokio::test]
async fn p04_a_claim_for_several_pools_is_served_once_by_whichever_is_free_first() {
    let (world, _) = one_full_worker().await;
    world.pool("q", spec(2, AckLevel::Memory), &["v0"]).await;
    let other = world.hold("q", "other").await;
    let pools = PoolChoice::Listed(vec![name("p"), name("q")]);
    let begun = world.begin_queued(ClaimRequest { pools, ..waiting("p", "a") }).await;
    assert_eq!(world.view("a").await.unwrap().pools, [name("p"), name("q")]);
    assert_eq!((world.waiters("p").await, world.waiters("q").await), (1, 1));
    world.s.release(&id("other"), other).await.unwrap();
    assert_eq!(done(begun).await.unwrap().claim.pool, name("q"));
    assert_eq!((world.waiters("p").await, world.waiters("q").await), (0, 0));
}

#[tokio::test]
async fn p07_claims_that_wait_for_one_pool_do_not_block_another() {
    let (world, _) = one_full_worker().await;
    world.pool("q", spec(1, AckLevel::Memory), &["v0"]).await;
    let _waits = world.begin_queued(waiting("p", "a")).await;
    world.hold("q", "b").await;
    let pools = PoolChoice::Listed(vec![name("p"), name("q")]);
    world.add("q", &["v1"]).await;
    let taken = world.s.claim(ClaimRequest { pools, ..waiting("p", "c") }).await.unwrap();
    assert_eq!(taken.claim.pool, name("q"), "ready capacity in a fallback beats waiting for the first");
}

#[tokio::test]
async fn c03_duplicates_of_a_queued_key_wait_with_it_or_are_rejected() {
    let (world, fence) = one_full_worker().await;
    let first = world.begin_queued(waiting("p", "a")).await;
    let short = world.begin_request(ClaimRequest { wait_ms: 100, ..waiting("p", "a") }).await;
    let joins = world.begin_request(waiting("p", "a")).await;
    assert!(matches!(world.claim("p", "a").await, Err(RequestError::FailedPrecondition(_))));
    world.pass(150).await;
    assert!(matches!(done(short).await, Err(RequestError::FailedPrecondition(_))));
    world.s.release(&id("held0"), fence).await.unwrap();
    let (first, joined) = (done(first).await.unwrap(), done(joins).await.unwrap());
    assert_eq!((first.created, joined.created), (true, false));
    assert_eq!(first.claim.fence, joined.claim.fence);
}

/// The owner of the ticket leaves: the duplicate waits on in its own right.
#[tokio::test]
async fn q02_a_duplicate_waits_on_when_the_first_leaves() {
    let (world, fence) = one_full_worker().await;
    let first = world.begin_queued(waiting("p", "a")).await;
    let joins = world.begin_request(waiting("p", "a")).await;
    first.abort();
    until("it has left", async || first.is_finished()).await;
    until("the other waits", async || world.waiters("p").await == 1 && world.view("a").await.is_some()).await;
    world.s.release(&id("held0"), fence).await.unwrap();
    assert!(done(joins).await.unwrap().created);
}

/// A release refers to a grant; a queued claim has none, so it waits on.
#[tokio::test]
async fn c05_a_release_of_a_queued_key_changes_nothing() {
    let (world, fence) = one_full_worker().await;
    let begun = world.begin_queued(waiting("p", "a")).await;
    world.s.release(&id("a"), 7).await.unwrap();
    assert!(world.view("a").await.is_some());
    world.s.release(&id("held0"), fence).await.unwrap();
    done(begun).await.unwrap();
}

#[tokio::test]
async fn a_stop_answers_all_queued_claims() {
    let (world, _) = one_full_worker().await;
    let begun = world.begin_queued(waiting("p", "a")).await;
    assert!(world.s.stop().await);
    assert_eq!(done(begun).await, Err(RequestError::Unavailable(UnavailableReason::Stopping)));
}

#[tokio::test]
async fn a_queue_is_bounded_by_pool_and_by_tenant() {
    let world = World::on_memory().await;
    let spec = hotpool::model::PoolSpec { waiters_max: 3, waiters_tenant_max: 2, ..spec(1, AckLevel::Memory) };
    world.pool("p", spec, &["w0"]).await;
    world.hold("p", "held0").await;
    let overloaded = Err(RequestError::Unavailable(UnavailableReason::Overloaded));
    let _a = world.begin_queued(of("t", "a")).await;
    let _b = world.begin_queued(of("t", "b")).await;
    assert_eq!(world.s.claim(of("t", "c")).await, overloaded);
    let _c = world.begin_queued(of("u", "c")).await;
    assert_eq!(world.s.claim(of("v", "d")).await, overloaded);
    assert!(
        world.s.keys().lookup(&ClaimId::new("ns", "v", "d").unwrap()) == hotpool::admission::key::KeyLookup::Vacant
    );
    let year = ClaimRequest { wait_ms: 365 * 86_400_000, ..waiting("p", "e") };
    assert!(matches!(world.s.claim(year).await, Err(RequestError::Invalid { field, .. }) if field == "wait_ms"));
    let high = with_priority(waiting("p", "e"), 5_000);
    assert!(matches!(world.s.claim(high).await, Err(RequestError::Invalid { field, .. }) if field == "priority"));
}

fn preferring(key: &str, node: &str, wait_ms: u64, ms: u64) -> ClaimRequest {
    let constraints =
        ClaimConstraints { nodes_preferred: vec![node.into()], preferred_wait_ms: ms, ..ClaimConstraints::default() };
    ClaimRequest { wait_ms, reserve_ms: Some(0), constraints: Some(Box::new(constraints)), ..request("p", key) }
}

#[tokio::test]
async fn p05_preferred_wait_ms_waits_for_the_preferred_node_first() {
    let world = World::on_memory().await;
    world.pool("p", spec(2, AckLevel::Memory), &["far0", "far1"]).await;
    let on = |id: &str, node: &str| WorkerSpec { node: Some(node.into()), ..worker(id) };
    world.s.register(&name("p"), on("near0", "n1")).await.unwrap();
    let first = world.s.claim(preferring("a", "n1", 0, 1_000)).await.unwrap();
    assert_eq!(first.claim.worker.spec.id.as_str(), "near0");
    // The preferred node has no free worker: it waits, though others are free, and then takes one of those.
    let settles = world.begin_queued(preferring("b", "n1", 0, 1_000)).await;
    world.pass(900).await;
    assert!(!settles.is_finished());
    world.pass(101).await;
    assert!(done(settles).await.unwrap().claim.worker.spec.id.as_str().starts_with("far"));
    // If it becomes free in time, the claim gets it.
    let lucky = world.begin_queued(preferring("c", "n1", 0, 1_000)).await;
    world.s.release(&first.claim.id, first.claim.fence).await.unwrap();
    assert_eq!(done(lucky).await.unwrap().claim.worker.spec.id.as_str(), "near0");
    // With wait_ms in addition it continues to wait for any node.
    world.hold("p", "last").await;
    let both = world.begin_queued(preferring("d", "n1", 5_000, 1_000)).await;
    world.pass(1_500).await;
    assert!(!both.is_finished());
    world.s.register(&name("p"), on("far2", "n2")).await.unwrap();
    assert_eq!(done(both).await.unwrap().claim.worker.spec.id.as_str(), "far2");
}

/// Durable claims wait like any other; a crash finds only granted claims.
#[tokio::test]
async fn s01_queued_claims_leave_no_trace_in_the_store() {
    let world = World::on_store().await;
    world.pool("p", spec(2, AckLevel::Durable), &["w0"]).await;
    let fence = world.hold("p", "held0").await;
    let waits = world.begin_queued(waiting("p", "a")).await;
    world.stored("p").await;
    let after = world.crashed().await;
    assert_eq!(after.held().await.len(), 1);
    assert!(after.is_vacant("a"));
    world.s.release(&id("held0"), fence).await.unwrap();
    done(waits).await.unwrap();
    let after = world.crashed().await;
    assert_eq!(after.held().await.iter().map(|(key, ..)| key.as_str()).collect::<Vec<_>>(), ["a"]);
}

#[tokio::test]
async fn q02_claims_of_a_batch_wait_each_for_itself() {
    let (world, fence) = one_full_worker().await;
    let requests = vec![waiting("p", "a"), ClaimRequest { wait_ms: 0, ..waiting("p", "b") }];
    let begun = world.begin_alone(|s| async move { s.claim_batch(requests).await });
    until("one waits", async || world.waiters("p").await == 1).await;
    world.s.release(&id("held0"), fence).await.unwrap();
    let outcomes = done(begun).await;
    assert!(outcomes[0].is_ok());
    assert_eq!(outcomes[1], Err(FULL));
    // A batch whose caller leaves takes its queued claims with it.
    let begun = world.begin_alone(|s| async move { s.claim_batch(vec![waiting("p", "c"), waiting("p", "d")]).await });
    until("both wait", async || world.waiters("p").await == 2).await;
    begun.abort();
    until("both have left", async || world.waiters("p").await == 0).await;
}

/// Claims that wait for either of two pools are taken from one queue while they enter the other.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn q02_claims_that_wait_for_two_pools_leave_both_queues() {
    let world = World::on_memory().await;
    for pool in ["p", "q"] {
        world.pool(pool, spec(1, AckLevel::Memory), &[]).await;
        for n in 0..2 {
            world.s.register(&name(pool), worker(&format!("{pool}{n}"))).await.unwrap();
        }
    }
    let client = |client: usize| {
        let s = world.s.clone();
        tokio::spawn(async move {
            let (first, second) = if client.is_multiple_of(2) { ("p", "q") } else { ("q", "p") };
            for _ in 0..300 {
                let key = format!("k{client}");
                let pools = PoolChoice::Listed(vec![name(first), name(second)]);
                let held = s.claim(ClaimRequest { pools, ..waiting(first, &key) }).await.unwrap();
                s.release(&id(&key), held.claim.fence).await.unwrap();
            }
        })
    };
    for joined in (0..12).map(client).collect::<Vec<_>>() {
        joined.await.unwrap();
    }
    assert_eq!([world.waiters("p").await, world.waiters("q").await], [0, 0]);
}

/// A claim that does not wait is refused only if its own request was, whatever happens to others like it.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn c02_claims_that_wait_for_a_worker_leave_the_rest_of_the_pool_to_others() {
    let world = World::on_memory().await;
    world.pool("p", spec(1, AckLevel::Memory), &[]).await;
    for n in 0..200 {
        world.s.register(&name("p"), worker(&format!("w{n}"))).await.unwrap();
    }
    let client = |client: usize| {
        let s = world.s.clone();
        tokio::spawn(async move {
            let key = format!("k{client}");
            let pinned = ClaimConstraints {
                worker: Some(WorkerId::new(&format!("w{}", client / 4)).unwrap()),
                ..ClaimConstraints::default()
            };
            let claim = if client.is_multiple_of(2) {
                ClaimRequest { constraints: Some(Box::new(pinned)), ..waiting("p", &key) }
            } else {
                ClaimRequest { reserve_ms: Some(0), ..request("p", &key) }
            };
            for _ in 0..300 {
                let held = s.claim(claim.clone()).await.unwrap();
                for _ in 0..20 {
                    tokio::task::yield_now().await;
                }
                s.release(&id(&key), held.claim.fence).await.unwrap();
            }
        })
    };
    for joined in (0..120).map(client).collect::<Vec<_>>() {
        joined.await.unwrap();
    }
    assert_eq!(world.waiters("p").await, 0);
}

/// P08: a claim that no present worker could hold waits for one that could.
#[tokio::test]
async fn p08_a_claim_waits_for_a_kind_of_worker_that_is_absent() {
    let world = World::on_memory().await;
    world.shared(shared(1, PlacementPolicy::BestFit), vec![sized("w0", 4_000, None)]).await;
    let gpu = |key: &str, wait_ms| ClaimRequest { wait_ms, ..request_for("p", key, &gpus(&["A"], 1, 1_000)) };
    assert_eq!(world.s.claim(gpu("now", 0)).await, Err(RequestError::Unsatisfiable));
    let served = world.begin_queued(gpu("served", MINUTE)).await;
    let late = world.begin_queued(gpu("late", 1_000)).await;
    assert_eq!(world.view("served").await.unwrap().reason, "unsatisfiable");
    world.pass(1_001).await;
    let unsatisfiable = RequestError::Exhausted(ExhaustionReason::Unsatisfiable);
    assert_eq!(done(late).await, Err(unsatisfiable));
    world.enlist(vec![sized("g0", 4_000, Some(("A", 1)))]).await;
    assert_eq!(done(served).await.unwrap().claim.worker.spec.id.as_str(), "g0");
}

/// Q11: preemption that is switched on serves those who wait.
#[tokio::test]
async fn q11_preemption_that_is_switched_on_counts_for_those_who_wait() {
    let (world, fence) = {
        let world = World::on_memory().await;
        world.pool("p", spec(1, AckLevel::Memory), &["w0"]).await;
        let mut victim = request("p", "victim");
        let mut constraints = ClaimConstraints::default();
        constraints.spec.preemptible = true;
        (victim.constraints, victim.reserve_ms) = (Some(Box::new(constraints)), Some(0));
        let fence = world.s.claim(victim).await.unwrap().claim.fence;
        (world, fence)
    };
    let urgent = world.begin_queued(with_priority(waiting("p", "urgent"), 5)).await;
    world.quiet().await;
    assert!(!world.s.get_claim(&id("victim")).await.unwrap().evicted);
    let preempting = PoolSpec { preemption: true, ..spec(1, AckLevel::Memory) };
    world.s.put_pool(name("p"), preempting).await.unwrap();
    until("it is evicted", async || world.s.get_claim(&id("victim")).await.unwrap().evicted).await;
    world.s.release(&id("victim"), fence).await.unwrap();
    assert!(done(urgent).await.is_ok());
}

/// Q11: times that a pool gets decide for those who wait, too, which worker lives for long enough.
#[tokio::test]
async fn q11_new_times_of_a_pool_count_for_those_who_wait() {
    let world = World::on_memory().await;
    world.pool("p", PoolSpec { ttl_default_ms: Some(60_000), ..spec(1, AckLevel::Memory) }, &[]).await;
    let waits = world.begin_queued(waiting("p", "waits")).await;
    world.s.put_pool(name("p"), PoolSpec { ttl_default_ms: Some(10_000), ..spec(1, AckLevel::Memory) }).await.unwrap();
    world.pass(100).await;
    let short = WorkerSpec { expires_at_ms: Some(world.clock.unix_ms() + 30_000), ..worker("short") };
    world.s.register(&name("p"), short).await.unwrap();
    assert_eq!(done(waits).await.unwrap().claim.worker.spec.id.as_str(), "short");
}

/// Q11: labels that a worker gets with a new registration serve those who wait for them.
#[tokio::test]
async fn q11_new_labels_of_a_worker_count_for_those_who_wait() {
    let world = World::on_memory().await;
    world.pool("p", spec(1, AckLevel::Memory), &["w0"]).await;
    let waits = world.begin_queued(ClaimRequest { constraints: labelled("kind=odd"), ..waiting("p", "odd") }).await;
    let labels = [("kind".to_owned(), "odd".to_owned())].into();
    world.s.register(&name("p"), WorkerSpec { labels, ..worker("w0") }).await.unwrap();
    assert_eq!(done(waits).await.unwrap().claim.worker.spec.id.as_str(), "w0");
}

/// Q10: requests that wait along for one key are bounded, whatever comes free meanwhile.
#[tokio::test]
async fn q10_duplicates_of_a_key_that_waits_are_bounded() {
    let (world, fence) = one_full_worker().await;
    let odd = ClaimRequest { constraints: labelled("kind=odd"), ..waiting("p", "odd") };
    let first = world.begin_queued(odd.clone()).await;
    let mut more = Vec::new();
    for _ in 0..300 {
        more.push(world.begin_request(odd.clone()).await);
    }
    let overloaded = || more.iter().filter(|begun| begun.is_finished()).count();
    until("some are refused", async || overloaded() == 300 - hotpool::limits::WAITING_DUPLICATES_MAX).await;
    let mut fence = fence;
    for _ in 0..50 {
        world.s.release(&id("held0"), fence).await.unwrap();
        fence = world.hold("p", "held0").await;
    }
    assert_eq!(overloaded(), 300 - hotpool::limits::WAITING_DUPLICATES_MAX, "nothing has changed for them");
    first.abort();
    more.into_iter().for_each(|begun| begun.abort());
}

/// A claim begins to wait between the match of what came free and the decision of a claim that does not wait.
#[tokio::test]
async fn q02_a_claim_that_begins_to_wait_refuses_nobody() {
    let world = World::on_memory().await;
    world.pool("p", spec(1, AckLevel::Memory), &["v"]).await;
    let other = world.hold("p", "other").await;
    let busy = world.busy("p").await;
    let release = world.begin_alone(|s| async move { s.release(&id("other"), other).await });
    until("it is in the mailbox", async || busy.depth() == 1).await;
    // It names its worker, so its shard is asked although nothing is published as free.
    let worker = Some(WorkerId::new("v").unwrap());
    let constraints = Some(Box::new(ClaimConstraints { worker, ..ClaimConstraints::default() }));
    let newcomer = world.begin_request_alone(ClaimRequest { constraints, ..request("p", "n") });
    let begins = world.s.clone();
    let (kept, keeps) = std::sync::mpsc::channel();
    let hook = move |point| {
        if point == ProtocolPoint::Matched {
            inject_into_thread(None, None);
            let (s, kept) = (begins.clone(), kept.clone());
            let begin = move || {
                let mut call = async move { s.claim(waiting("p", "w")).await }.boxed();
                assert!((&mut call).now_or_never().is_none(), "it waits");
                kept.send(call).unwrap();
            };
            std::thread::spawn(begin).join().unwrap();
        }
    };
    inject_into_thread(Some(std::rc::Rc::new(hook)), None);
    busy.until_queued(2).await;
    assert_eq!(done(release).await, Ok(()));
    assert!(done(newcomer).await.unwrap().created);
    let waits = keeps.recv().unwrap();
    assert_eq!(world.s.waiting(&name("p")), 1);
    world.s.release(&id("n"), world.s.get_claim(&id("n")).await.unwrap().fence).await.unwrap();
    assert!(waits.await.unwrap().created);
}
