//! Claims that wait for room: who wakes them, in which order they go, and what ends their wait.

use std::sync::Arc;

use hotpool::ask::{ClaimAsk, PoolChoice};
use hotpool::model::{
    Ack, ClaimId, ClaimRequest, ClaimSpec, Policy, Quota, Standing, WaitingView, WorkerId, WorkerSpec, WorkerVerb,
};
use hotpool::refusal::{Exhausted, Refusal, Unavailable, What};
use hotpool::scheduler::{Scheduler, Settings};
use hotpool::store::memory::MemoryStore;
use tokio::task::JoinHandle;

use crate::sharing::{asking, cpu, shared, sized};
use crate::world::{Claimed, FULL, World, done, id, name, request, spec, until, worker};

pub const MINUTE: u64 = 60_000;

fn waiting(pool: &str, key: &str) -> ClaimRequest {
    ClaimRequest { wait_ms: MINUTE, reserve_ms: Some(0), ..request(pool, key) }
}

fn of(tenant: &str, key: &str) -> ClaimRequest {
    ClaimRequest { id: ClaimId::new("ns", tenant, key).unwrap(), ..waiting("p", key) }
}

pub fn with_priority(request: ClaimRequest, priority: u16) -> ClaimRequest {
    let mut ask = request.ask.unwrap_or_default();
    ask.spec.priority = priority;
    ClaimRequest { ask: Some(ask), ..request }
}

fn labelled(selector: &str) -> Option<Box<ClaimAsk>> {
    Some(Box::new(ClaimAsk { selector: Some(selector.into()), ..ClaimAsk::default() }))
}

impl World {
    /// What a key waits for.
    async fn view(&self, key: &str) -> Option<WaitingView> {
        match self.s.standing(&id(key)).await {
            Ok(Standing::Waiting(view)) => Some(view),
            _ => None,
        }
    }

    async fn waiters(&self, pool: &str) -> usize {
        self.s.waiting(&name(pool))
    }

    /// A claim that waits by now.
    pub async fn parked(&self, request: ClaimRequest) -> JoinHandle<Claimed> {
        let before = self.waiters("p").await;
        let begun = self.begin_request(request).await;
        until("it waits", async || self.waiters("p").await == before + 1).await;
        begun
    }

    async fn full(&self, workers: usize) -> Vec<u64> {
        let mut fences = Vec::new();
        for n in 0..workers {
            fences.push(self.hold("p", &format!("held{n}")).await);
        }
        fences
    }
}

async fn one_full_worker() -> (World, u64) {
    let world = World::on_memory().await;
    world.pool("p", spec(1, Ack::Memory), &["w0"]).await;
    let fence = world.hold("p", "held0").await;
    (world, fence)
}

#[tokio::test]
async fn q02_a_release_wakes_who_waits() {
    let (world, fence) = one_full_worker().await;
    let begun = world.parked(waiting("p", "a")).await;
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
async fn q02_a_registration_an_uncordon_and_a_clear_wake_who_waits() {
    let (world, _) = one_full_worker().await;
    let begun = world.parked(waiting("p", "a")).await;
    world.add("p", &["w1"]).await;
    assert_eq!(done(begun).await.unwrap().claim.worker.spec.id.as_str(), "w1");

    world.s.register(&name("p"), worker("w2")).await.unwrap();
    let w2 = WorkerId::new("w2").unwrap();
    world.s.steer(&name("p"), &w2, WorkerVerb::Cordon).await.unwrap();
    let begun = world.parked(waiting("p", "b")).await;
    world.s.steer(&name("p"), &w2, WorkerVerb::Uncordon).await.unwrap();
    assert_eq!(done(begun).await.unwrap().claim.worker.spec.id.as_str(), "w2");
}

#[tokio::test]
async fn q02_a_sweep_wakes_who_waits() {
    let world = World::on_memory().await;
    world.pool("p", spec(1, Ack::Memory), &["w0"]).await;
    world.claim("p", "never-confirmed").await.unwrap();
    let begun = world.parked(waiting("p", "a")).await;
    world.pass(30_001).await;
    assert!(done(begun).await.is_ok());
}

#[tokio::test]
async fn q02_a_wait_ends_at_its_deadline_with_what_it_waited_for() {
    let (world, fence) = one_full_worker().await;
    let begun = world.parked(ClaimRequest { wait_ms: 1_000, ..waiting("p", "a") }).await;
    world.pass(900).await;
    assert!(world.view("a").await.is_some());
    world.pass(101).await;
    assert_eq!(done(begun).await, Err(FULL));
    world.s.release(&id("held0"), fence).await.unwrap();
    world.is_clean().await;
    assert_eq!((world.waiters("p").await, world.counts("p").await), (0, (1, 0, 0)));
}

#[tokio::test]
async fn q02_a_caller_that_leaves_leaves_the_line() {
    let (world, fence) = one_full_worker().await;
    let gone = world.parked(waiting("p", "a")).await;
    let stays = world.parked(waiting("p", "b")).await;
    gone.abort();
    until("it has left", async || world.waiters("p").await == 1).await;
    assert!(world.is_vacant("a"));
    world.s.release(&id("held0"), fence).await.unwrap();
    done(stays).await.unwrap();
}

/// Its turn has come, its claim is made, and then nobody is there: the next gets the worker.
#[tokio::test]
async fn q02_a_claim_made_for_a_caller_that_left_is_given_back_to_the_next() {
    let (world, fence) = one_full_worker().await;
    let gone = world.parked(waiting("p", "a")).await;
    let stays = world.parked(waiting("p", "b")).await;
    let busy = world.busy("p").await;
    let s = world.s.clone();
    let release = tokio::spawn(async move { s.release(&id("held0"), fence).await });
    until("it stands in the ring", async || busy.depth() == 1).await;
    gone.abort();
    drop(busy);
    release.await.unwrap().unwrap();
    assert_eq!(done(stays).await.unwrap().claim.id, id("b"));
    assert!(world.is_vacant("a"));
}

#[tokio::test]
async fn q02_thousands_that_leave_leave_nothing_behind() {
    let (world, fence) = one_full_worker().await;
    let all: Vec<_> = (0..2_000).map(|n| world.begin_request_alone(waiting("p", &format!("k{n}")))).collect();
    until("all wait", async || world.waiters("p").await == 2_000).await;
    all.iter().for_each(JoinHandle::abort);
    until("all have left", async || world.waiters("p").await == 0).await;
    assert_eq!(world.s.keys().len(), 1);
    world.s.release(&id("held0"), fence).await.unwrap();
    world.is_clean().await;
}

/// A release that comes after a claim found nothing and before it stands in line.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn q05_no_wake_up_is_lost() {
    let s = Scheduler::new(Arc::new(MemoryStore), Settings::default());
    s.start().await.unwrap();
    s.put_pool(name("p"), spec(4, Ack::Memory)).await.unwrap();
    for n in 0..3 {
        s.register(&name("p"), worker(&format!("w{n}"))).await.unwrap();
    }
    let tasks: Vec<_> = (0..12)
        .map(|task| {
            let s = s.clone();
            tokio::spawn(async move {
                for round in 0..3_000 {
                    let request = ClaimRequest { wait_ms: 20_000, ..waiting("p", &format!("{task}-{round}")) };
                    let taken = s.claim(request).await.expect("its turn comes");
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

/// Who wants what nobody has holds nobody up; and gets it when it is there.
#[tokio::test]
async fn q03_what_fits_nothing_does_not_block_those_behind_it() {
    let (world, fence) = one_full_worker().await;
    let odd = world.parked(ClaimRequest { ask: labelled("kind=odd"), ..waiting("p", "odd") }).await;
    let plain = world.parked(waiting("p", "plain")).await;
    world.s.release(&id("held0"), fence).await.unwrap();
    assert_eq!(done(plain).await.unwrap().claim.worker.spec.id.as_str(), "w0");
    assert!(world.view("odd").await.is_some());
    // A newcomer takes what the one who waits has no use for.
    world.add("p", &["w1"]).await;
    world.hold("p", "newcomer").await;
    let labels = [("kind".to_owned(), "odd".to_owned())].into();
    world.s.register(&name("p"), WorkerSpec { labels, ..worker("w2") }).await.unwrap();
    assert_eq!(done(odd).await.unwrap().claim.worker.spec.id.as_str(), "w2");
}

/// The order in which claims that wait are served, as one worker after another comes free.
async fn served(world: &World, mut fence: u64, waits: Vec<(&str, JoinHandle<Claimed>)>) -> Vec<String> {
    let mut held = id("held0");
    let mut order = Vec::new();
    let mut waits = waits;
    while !waits.is_empty() {
        world.s.release(&held, fence).await.unwrap();
        until("one is served", async || waits.iter().any(|(_, begun)| begun.is_finished())).await;
        let at = waits.iter().position(|(_, begun)| begun.is_finished()).unwrap();
        let (key, begun) = waits.remove(at);
        let taken = done(begun).await.unwrap();
        (held, fence) = (taken.claim.id, taken.claim.fence);
        order.push(key.to_owned());
    }
    order
}

#[tokio::test]
async fn q04_priority_goes_before_arrival() {
    let (world, fence) = one_full_worker().await;
    let mut waits = Vec::new();
    for (key, priority) in [("a", 0), ("b", 5), ("c", 1_000), ("d", 5)] {
        waits.push((key, world.parked(with_priority(waiting("p", key), priority)).await));
    }
    let ahead = world.view("d").await.unwrap().ahead;
    assert_eq!(ahead, 2, "c and b");
    assert_eq!(served(&world, fence, waits).await, ["c", "b", "d", "a"]);
}

#[tokio::test]
async fn q04_a_burst_of_one_tenant_does_not_keep_another_waiting() {
    let world = World::on_memory().await;
    world.pool("p", spec(1, Ack::Memory), &["w0", "w1", "w2", "w3"]).await;
    let mut fences = world.full(4).await;
    let mut burst = Vec::new();
    for n in 0..8 {
        burst.push(world.parked(of("burst", &format!("b{n}"))).await);
    }
    let mut calm = Vec::new();
    for n in 0..2 {
        calm.push(world.parked(of("calm", &format!("c{n}"))).await);
    }
    // Four come free: they take turns, although all of the burst came first.
    for n in 0..4 {
        world.s.release(&id(&format!("held{n}")), fences.remove(0)).await.unwrap();
        world.quiet().await;
    }
    for begun in calm {
        done(begun).await.unwrap();
    }
    until("two of the burst", async || burst.iter().filter(|begun| begun.is_finished()).count() == 2).await;
}

#[tokio::test]
async fn q04_a_weight_is_a_larger_share() {
    let world = World::on_memory().await;
    let workers: Vec<String> = (0..8).map(|n| format!("w{n}")).collect();
    let workers: Vec<&str> = workers.iter().map(String::as_str).collect();
    world.pool("p", spec(1, Ack::Memory), &workers).await;
    world.s.put_quota("ns", Some("heavy"), Quota { weight: 3, ..Quota::default() }).await.unwrap();
    let fences = world.full(8).await;
    let (mut light, mut heavy) = (Vec::new(), Vec::new());
    for n in 0..8 {
        light.push(world.parked(of("light", &format!("l{n}"))).await);
        heavy.push(world.parked(of("heavy", &format!("h{n}"))).await);
    }
    for (n, fence) in fences.into_iter().enumerate() {
        world.s.release(&id(&format!("held{n}")), fence).await.unwrap();
        world.quiet().await;
    }
    let finished = |all: &[JoinHandle<Claimed>]| all.iter().filter(|begun| begun.is_finished()).count();
    until("all eight are taken", async || finished(&light) + finished(&heavy) == 8).await;
    assert_eq!((finished(&light), finished(&heavy)), (2, 6));
}

/// What comes free in a run is not for a claim that stands behind it in the same ring.
#[tokio::test]
async fn q02_a_newcomer_does_not_pass_who_waits() {
    let (world, fence) = one_full_worker().await;
    let waits = world.parked(waiting("p", "waits")).await;
    let busy = world.busy("p").await;
    let s = world.s.clone();
    let release = tokio::spawn(async move { s.release(&id("held0"), fence).await });
    until("it stands in the ring", async || busy.depth() == 1).await;
    // It goes to the very shard, whatever that says of itself.
    let ask = ClaimAsk { worker: Some(WorkerId::new("w0").unwrap()), ..ClaimAsk::default() };
    let newcomer = world.begin_request_alone(ClaimRequest { ask: Some(Box::new(ask)), ..request("p", "newcomer") });
    until("it stands behind it", async || busy.depth() == 2).await;
    drop(busy);
    release.await.unwrap().unwrap();
    assert_eq!(done(waits).await.unwrap().claim.id, id("waits"));
    assert_eq!(done(newcomer).await, Err(FULL));
}

#[tokio::test]
async fn p04_one_that_may_use_several_pools_is_served_once_by_whichever_comes_free() {
    let (world, _) = one_full_worker().await;
    world.pool("q", spec(2, Ack::Memory), &["v0"]).await;
    let other = world.hold("q", "other").await;
    let pools = PoolChoice::Listed(vec![name("p"), name("q")]);
    let begun = world.parked(ClaimRequest { pools, ..waiting("p", "a") }).await;
    assert_eq!(world.view("a").await.unwrap().pools, [name("p"), name("q")]);
    assert_eq!((world.waiters("p").await, world.waiters("q").await), (1, 1));
    world.s.release(&id("other"), other).await.unwrap();
    assert_eq!(done(begun).await.unwrap().claim.pool, name("q"));
    assert_eq!((world.waiters("p").await, world.waiters("q").await), (0, 0));
}

#[tokio::test]
async fn p07_who_waits_for_one_pool_does_not_hold_up_another() {
    let (world, _) = one_full_worker().await;
    world.pool("q", spec(1, Ack::Memory), &["v0"]).await;
    let _waits = world.parked(waiting("p", "a")).await;
    world.hold("q", "b").await;
    let pools = PoolChoice::Listed(vec![name("p"), name("q")]);
    world.add("q", &["v1"]).await;
    let taken = world.s.claim(ClaimRequest { pools, ..waiting("p", "c") }).await.unwrap();
    assert_eq!(taken.claim.pool, name("q"), "ready capacity in a fallback beats waiting for the first");
}

#[tokio::test]
async fn c03_requests_for_a_key_that_waits_wait_with_it_or_are_told() {
    let (world, fence) = one_full_worker().await;
    let first = world.parked(waiting("p", "a")).await;
    let short = world.begin_request(ClaimRequest { wait_ms: 100, ..waiting("p", "a") }).await;
    let joins = world.begin_request(waiting("p", "a")).await;
    assert!(matches!(world.claim("p", "a").await, Err(Refusal::State(_))));
    world.pass(150).await;
    assert!(matches!(done(short).await, Err(Refusal::State(_))));
    world.s.release(&id("held0"), fence).await.unwrap();
    let (first, joined) = (done(first).await.unwrap(), done(joins).await.unwrap());
    assert_eq!((first.created, joined.created), (true, false));
    assert_eq!(first.claim.fence, joined.claim.fence);
}

/// The one whose ticket it was leaves: who joined waits on in its own right.
#[tokio::test]
async fn q02_who_joined_waits_on_when_the_first_leaves() {
    let (world, fence) = one_full_worker().await;
    let first = world.parked(waiting("p", "a")).await;
    let joins = world.begin_request(waiting("p", "a")).await;
    first.abort();
    until("it has left", async || first.is_finished()).await;
    until("the other waits", async || world.waiters("p").await == 1 && world.view("a").await.is_some()).await;
    world.s.release(&id("held0"), fence).await.unwrap();
    assert!(done(joins).await.unwrap().created);
}

/// A release speaks of a grant; one that waits has none, so it waits on.
#[tokio::test]
async fn c05_a_release_of_a_key_that_waits_changes_nothing() {
    let (world, fence) = one_full_worker().await;
    let begun = world.parked(waiting("p", "a")).await;
    world.s.release(&id("a"), 7).await.unwrap();
    assert!(world.view("a").await.is_some());
    world.s.release(&id("held0"), fence).await.unwrap();
    done(begun).await.unwrap();
}

#[tokio::test]
async fn w02_a_deleted_pool_refuses_those_who_wait_for_it_alone() {
    let (world, _) = one_full_worker().await;
    world.pool("q", spec(1, Ack::Memory), &["v0"]).await;
    let other = world.hold("q", "other").await;
    let alone = world.parked(waiting("p", "a")).await;
    let pools = PoolChoice::Listed(vec![name("p"), name("q")]);
    let both = world.parked(ClaimRequest { pools, ..waiting("p", "b") }).await;
    world.s.delete_pool(&name("p"), true).await.unwrap();
    assert_eq!(done(alone).await, Err(Refusal::NotFound(What::Pool)));
    world.s.release(&id("other"), other).await.unwrap();
    assert_eq!(done(both).await.unwrap().claim.pool, name("q"));
}

#[tokio::test]
async fn a_stop_answers_all_who_wait() {
    let (world, _) = one_full_worker().await;
    let begun = world.parked(waiting("p", "a")).await;
    assert!(world.s.stop().await);
    assert_eq!(done(begun).await, Err(Refusal::Unavailable(Unavailable::Stopping)));
}

#[tokio::test]
async fn a_line_is_bounded_by_pool_and_by_tenant() {
    let world = World::on_memory().await;
    let spec = hotpool::model::PoolSpec { waiters_max: 3, waiters_tenant_max: 2, ..spec(1, Ack::Memory) };
    world.pool("p", spec, &["w0"]).await;
    world.hold("p", "held0").await;
    let overloaded = Err(Refusal::Unavailable(Unavailable::Overloaded));
    let _a = world.parked(of("t", "a")).await;
    let _b = world.parked(of("t", "b")).await;
    assert_eq!(world.s.claim(of("t", "c")).await, overloaded);
    let _c = world.parked(of("u", "c")).await;
    assert_eq!(world.s.claim(of("v", "d")).await, overloaded);
    assert!(world.s.keys().find(&ClaimId::new("ns", "v", "d").unwrap()) == hotpool::keys::Found::Vacant);
    let year = ClaimRequest { wait_ms: 365 * 86_400_000, ..waiting("p", "e") };
    assert!(matches!(world.s.claim(year).await, Err(Refusal::Invalid { field, .. }) if field == "wait_ms"));
    let high = with_priority(waiting("p", "e"), 5_000);
    assert!(matches!(world.s.claim(high).await, Err(Refusal::Invalid { field, .. }) if field == "priority"));
}

fn near(key: &str, node: &str, wait_ms: u64, ms: u64) -> ClaimRequest {
    let ask = ClaimAsk { nodes_preferred: vec![node.into()], preferred_wait_ms: ms, ..ClaimAsk::default() };
    ClaimRequest { wait_ms, reserve_ms: Some(0), ask: Some(Box::new(ask)), ..request("p", key) }
}

#[tokio::test]
async fn p05_preferred_then_wait_waits_its_time_first() {
    let world = World::on_memory().await;
    world.pool("p", spec(2, Ack::Memory), &["far0", "far1"]).await;
    let on = |id: &str, node: &str| WorkerSpec { node: Some(node.into()), ..worker(id) };
    world.s.register(&name("p"), on("near0", "n1")).await.unwrap();
    let first = world.s.claim(near("a", "n1", 0, 1_000)).await.unwrap();
    assert_eq!(first.claim.worker.spec.id.as_str(), "near0");
    // The preferred node has none left: it waits, though others are free, and then takes one of those.
    let settles = world.parked(near("b", "n1", 0, 1_000)).await;
    world.pass(900).await;
    assert!(!settles.is_finished());
    world.pass(101).await;
    assert!(done(settles).await.unwrap().claim.worker.spec.id.as_str().starts_with("far"));
    // If it comes free in time, it is that.
    let lucky = world.parked(near("c", "n1", 0, 1_000)).await;
    world.s.release(&first.claim.id, first.claim.fence).await.unwrap();
    assert_eq!(done(lucky).await.unwrap().claim.worker.spec.id.as_str(), "near0");
    // With wait_ms on top it goes on to wait for any.
    world.hold("p", "last").await;
    let both = world.parked(near("d", "n1", 5_000, 1_000)).await;
    world.pass(1_500).await;
    assert!(!both.is_finished());
    world.s.register(&name("p"), on("far2", "n2")).await.unwrap();
    assert_eq!(done(both).await.unwrap().claim.worker.spec.id.as_str(), "far2");
}

/// A share that fits goes before a larger one that does not yet; what comes free for the larger one is its.
#[tokio::test]
async fn q03_shares_wait_for_room_of_their_size() {
    let world = World::on_memory().await;
    world.shared(shared(1, Policy::BestFit), vec![sized("w0", 4_000, None)]).await;
    let mut held = Vec::new();
    for n in 0..4 {
        held.push(world.share(&format!("h{n}"), &cpu(1_000)).await.unwrap());
    }
    let wait = |key: &str, amount| ClaimRequest { wait_ms: MINUTE, ..asking("p", key, &cpu(amount)) };
    let large = world.parked(wait("large", 2_000)).await;
    let small = world.parked(wait("small", 1_000)).await;
    world.s.release(&held[0].claim.id, held[0].claim.fence).await.unwrap();
    done(small).await.unwrap();
    world.s.release(&held[1].claim.id, held[1].claim.fence).await.unwrap();
    world.quiet().await;
    assert!(!large.is_finished());
    world.s.release(&held[2].claim.id, held[2].claim.fence).await.unwrap();
    done(large).await.unwrap();
    // What a claim gives back by a resize counts too.
    let last = world.parked(wait("last", 500)).await;
    world.s.resize(&held[3].claim.id, held[3].claim.fence, cpu(500)).await.unwrap();
    done(last).await.unwrap();
}

/// Durable claims wait like any other; what a crash finds is what was granted.
#[tokio::test]
async fn s01_who_waits_leaves_no_trace_in_the_store() {
    let world = World::on_store().await;
    world.pool("p", spec(2, Ack::Durable), &["w0"]).await;
    let fence = world.hold("p", "held0").await;
    let waits = world.parked(waiting("p", "a")).await;
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
    let s = world.s.clone();
    let begun = tokio::spawn(async move { s.claim_batch(requests).await });
    until("one waits", async || world.waiters("p").await == 1).await;
    world.s.release(&id("held0"), fence).await.unwrap();
    let outcomes = done(begun).await;
    assert!(outcomes[0].is_ok());
    assert_eq!(outcomes[1], Err(FULL));
    // A batch whose caller leaves takes what waits with it.
    let s = world.s.clone();
    let begun = tokio::spawn(async move { s.claim_batch(vec![waiting("p", "c"), waiting("p", "d")]).await });
    until("both wait", async || world.waiters("p").await == 2).await;
    begun.abort();
    until("both have left", async || world.waiters("p").await == 0).await;
}

#[tokio::test]
async fn q02_a_wait_for_quota_is_a_wait_too() {
    let world = World::on_memory().await;
    world.pool("p", spec(2, Ack::Memory), &["w0", "w1", "w2"]).await;
    world.s.put_quota("ns", Some("default"), Quota { claims: Some(1), ..Quota::default() }).await.unwrap();
    let fence = world.hold("p", "held0").await;
    let a = world.begin_request(waiting("p", "a")).await;
    until("it waits", async || world.view("a").await.is_some()).await;
    assert_eq!(world.view("a").await.unwrap().reason, "quota");
    let b = world.begin_request(ClaimRequest { wait_ms: 500, ..waiting("p", "b") }).await;
    world.pass(501).await;
    let quota = Refusal::Exhausted(Exhausted::Quota(hotpool::model::Counted::Claims));
    assert_eq!(done(b).await, Err(quota));
    world.s.release(&id("held0"), fence).await.unwrap();
    done(a).await.unwrap();
    let c = world.begin_request(waiting("p", "c")).await;
    until("it waits", async || world.view("c").await.is_some()).await;
    world.s.put_quota("ns", Some("default"), Quota { claims: Some(2), ..Quota::default() }).await.unwrap();
    done(c).await.unwrap();
    assert_eq!(world.s.get_quota("ns", Some("default")).unwrap().waiting, 0);
}

#[tokio::test]
async fn the_keeper_of_a_spec_keeps_its_priority() {
    let world = World::on_store().await;
    world.pool("p", spec(1, Ack::Durable), &["w0"]).await;
    let ask =
        ClaimAsk { spec: ClaimSpec { priority: 7, preemptible: true, ..ClaimSpec::default() }, ..ClaimAsk::default() };
    let request = ClaimRequest { ask: Some(Box::new(ask)), reserve_ms: Some(0), ..request("p", "a") };
    world.s.claim(request).await.unwrap();
    let after = world.crashed().await;
    let held = after.s.get_claim(&id("a")).await.unwrap().spec.unwrap();
    assert_eq!((held.priority, held.preemptible), (7, true));
}
