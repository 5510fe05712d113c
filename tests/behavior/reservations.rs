//! Reservations for claims and gangs that wait: from whom they keep capacity, and for how long.

use futures::FutureExt as _;
use hotpool::model::request_error::{ExhaustionReason, RequestError};
use hotpool::model::{
    AckLevel, ClaimId, ClaimRequest, PlacementPolicy, PoolSpec, Quota, QuotaResource, WorkerCommand, WorkerId,
};
use hotpool::scheduler::Scheduler;
use tokio::task::JoinHandle;

use crate::queued_claims::MINUTE;
use crate::shared_pool_helpers::{cpu, request_for, shared, sized};
use crate::world::{Claimed, FULL, World, done, name, request, spec, until};

fn waiting(request: ClaimRequest) -> ClaimRequest {
    ClaimRequest { wait_ms: 10 * MINUTE, reserve_ms: Some(0), ..request }
}

fn of_tenant(tenant: &str, request: ClaimRequest) -> ClaimRequest {
    ClaimRequest { id: ClaimId::new("ns", tenant, request.id.key()).unwrap(), ..request }
}

fn with(request: ClaimRequest, priority: u16, preemptible: bool) -> ClaimRequest {
    let mut constraints = request.constraints.unwrap_or_default();
    (constraints.spec.priority, constraints.spec.preemptible) = (priority, preemptible);
    ClaimRequest { constraints: Some(constraints), reserve_ms: Some(0), ..request }
}

fn preempting(spec: PoolSpec) -> PoolSpec {
    PoolSpec { preemption: true, releasing_ms: 10_000, ..spec }
}

impl World {
    async fn begins_to_wait(&self, request: ClaimRequest) -> JoinHandle<Claimed> {
        let before = self.s.waiting(&name("p"));
        let begun = self.begin_request(waiting(request)).await;
        until("it waits", async || self.s.waiting(&name("p")) == before + 1).await;
        self.quiet().await;
        begun
    }

    async fn release(&self, claimed: &Claimed) {
        let claim = &claimed.as_ref().unwrap().claim;
        self.s.release(&claim.id, claim.fence).await.unwrap();
        self.quiet().await;
    }

    async fn evictions(&self) -> usize {
        self.all_held().await.iter().filter(|claim| claim.evicted).count()
    }

    /// Lets a large claim wait until the only worker, part of which is `kept`, is held for it.
    async fn hold_for_large(&self) -> (Claimed, JoinHandle<Claimed>) {
        self.shared(shared(1, PlacementPolicy::BestFit), vec![sized("w", 4_000, None)]).await;
        let kept = self.share("kept", &cpu(2_000)).await;
        let large = self.begins_to_wait(request_for("p", "large", &cpu(4_000))).await;
        self.pass(5_500).await;
        self.pass(500).await;
        assert_eq!(self.share("small", &cpu(1_000)).await.unwrap_err(), FULL, "what is free is held");
        (kept, large)
    }

    async fn gang(&self, keys: &[&str]) -> JoinHandle<Vec<Claimed>> {
        let members: Vec<ClaimRequest> = keys.iter().map(|key| waiting(request("p", key))).collect();
        self.begin(move |s: Scheduler| async move { s.claim_gang(members).await }.boxed()).await
    }
}

/// A worker is held for a large claim when another of the same request comes that ranks before it.
#[tokio::test]
async fn q06_a_held_worker_goes_to_one_of_two_claims_at_once() {
    for second_priority in [0, 3] {
        let world = World::on_memory().await;
        let workers = vec![sized("big", 4_000, None), sized("small", 1_000, None)];
        world.shared(shared(1, PlacementPolicy::BestFit), workers).await;
        world.s.claim(of_tenant("b", request_for("p", "own", &cpu(500)))).await.unwrap();
        let blocking = world.s.claim(of_tenant("a", request_for("p", "blocking", &cpu(2_000)))).await;
        let large = |tenant, key| of_tenant(tenant, request_for("p", key, &cpu(4_000)));
        let first = world.begins_to_wait(large("b", "first")).await;
        world.pass(5_500).await;
        world.pass(500).await;
        assert_eq!(world.share("tick", &cpu(1_000)).await.unwrap_err(), FULL, "what is free of it is held");
        let second = world.begins_to_wait(with(large("c", "second"), second_priority, false)).await;
        world.release(&blocking).await;
        assert!(first.is_finished() != second.is_finished(), "one of them has the worker");
        let (served, rest) = if first.is_finished() { (first, second) } else { (second, first) };
        let served = done(served).await;
        if second_priority > 0 {
            assert_eq!(served.as_ref().unwrap().claim.id.key(), "second");
        }
        world.release(&served).await;
        assert!(done(rest).await.is_ok());
    }
}

/// A claim of priority 50 evicts, and one of priority 90 comes before the victim has left.
#[tokio::test]
async fn q06_what_was_evicted_for_one_goes_to_the_more_urgent() {
    let world = World::on_memory().await;
    world.pool("p", preempting(spec(1, AckLevel::Memory)), &["w0"]).await;
    let victim = world.s.claim(with(request("p", "victim"), 0, true)).await;
    let less = world.begins_to_wait(with(request("p", "less"), 50, false)).await;
    assert_eq!(world.evictions().await, 1);
    let more = world.begins_to_wait(with(request("p", "more"), 90, false)).await;
    world.release(&victim).await;
    let more = done(more).await;
    assert!(more.is_ok() && !less.is_finished());
    world.release(&more).await;
    assert!(done(less).await.is_ok());
}

/// QW4: a claim that does not wait uses a worker that is kept for one of a lower priority.
#[tokio::test]
async fn b07_a_higher_priority_that_does_not_wait_is_not_behind_a_held_worker() {
    let world = World::on_memory().await;
    let (kept, large) = world.hold_for_large().await;
    let urgent = world.s.claim(with(request_for("p", "urgent", &cpu(1_000)), 9, false)).await;
    assert!(urgent.is_ok(), "{urgent:?}");
    world.release(&urgent).await;
    world.release(&kept).await;
    assert!(done(large).await.is_ok());
}

/// QW4: an explanation shows what a claim would get that may use a worker which is kept for another one.
#[tokio::test]
async fn b07_an_explanation_shows_what_a_higher_priority_would_get_of_a_held_worker() {
    let world = World::on_memory().await;
    let (_kept, large) = world.hold_for_large().await;
    let share = |priority| with(request_for("p", "urgent", &cpu(1_000)), priority, false);
    assert_eq!(world.s.explain(share(0)).await.unwrap().outcome, Err(FULL));
    let urgent = world.s.explain(share(9)).await.unwrap().outcome;
    assert_eq!(urgent.unwrap().worker.as_str(), "w");
    assert!(world.s.claim(share(9)).await.is_ok());
    large.abort();
}

/// The claim that evicted another cannot be charged when the victim has left.
#[tokio::test]
async fn q07_a_worker_is_given_back_when_the_quota_is_used_up() {
    let world = World::on_memory().await;
    world.pool("p", preempting(spec(1, AckLevel::Memory)), &["w0"]).await;
    world.pool("q", spec(1, AckLevel::Memory), &["v0"]).await;
    world.s.put_quota("ns", Some("poor"), Quota { claims: Some(1), ..Quota::default() }).await.unwrap();
    let victim = world.s.claim(with(request("p", "victim"), 0, true)).await;
    let evicting = world.begins_to_wait(of_tenant("poor", with(request("p", "evicting"), 5, false))).await;
    assert_eq!(world.evictions().await, 1);
    let elsewhere = world.s.claim(of_tenant("poor", request("q", "elsewhere"))).await;
    let next = world.begins_to_wait(request("p", "next")).await;
    world.release(&victim).await;
    let next = done(next).await;
    assert!(next.is_ok() && !evicting.is_finished());
    // With its quota back it waits like anybody else.
    world.release(&elsewhere).await;
    world.release(&next).await;
    assert!(done(evicting).await.is_ok());
}

/// A caller that has left keeps nothing, whatever was reserved for its claim.
#[tokio::test]
async fn q07_a_worker_is_given_back_when_the_caller_leaves() {
    let world = World::on_memory().await;
    let (kept, large) = world.hold_for_large().await;
    large.abort();
    until("it has left", async || world.s.waiting(&name("p")) == 0).await;
    world.quiet().await;
    assert!(world.share("small", &cpu(1_000)).await.is_ok());
    world.release(&kept).await;
}

/// A hold ends after a minute, and a rest follows; then it begins anew.
#[tokio::test]
async fn b07_a_hold_is_bounded_and_followed_by_a_rest() {
    let world = World::on_memory().await;
    world.shared(shared(1, PlacementPolicy::BestFit), vec![sized("w", 4_000, None)]).await;
    let kept = world.share("kept", &cpu(2_000)).await;
    let _large = world.begins_to_wait(request_for("p", "large", &cpu(4_000))).await;
    let mut held_s = Vec::new();
    for second in 1..260 {
        world.pass(1_000).await;
        match world.share(&format!("s{second}"), &cpu(1_000)).await {
            Ok(taken) => world.release(&Ok(taken)).await,
            Err(error) => {
                assert_eq!(error, FULL);
                held_s.push(second);
            }
        }
    }
    let first: Vec<_> = held_s.iter().copied().take_while(|second| *second < 100).collect();
    assert!((55..=62).contains(&first.len()), "held for {} s at first", first.len());
    assert!(held_s.len() > first.len(), "it begins anew");
    let again = held_s[first.len()] - first[first.len() - 1];
    assert!((100..=130).contains(&again), "a rest of {again} s: it took the whole pool");
    world.release(&kept).await;
}

/// A gang of three can never be complete while one of three workers is cordoned, and keeps nothing.
#[tokio::test]
async fn b07_a_gang_that_can_never_be_complete_keeps_nothing() {
    let world = World::on_memory().await;
    world.pool("p", spec(1, AckLevel::Memory), &["w0", "w1", "w2"]).await;
    world.s.command_worker(&name("p"), &WorkerId::new("w2").unwrap(), WorkerCommand::Cordon).await.unwrap();
    let held = [world.claim("p", "h0").await, world.claim("p", "h1").await];
    let gang = world.gang(&["a", "b", "c"]).await;
    until("it waits", async || world.s.waiting(&name("p")) == 1).await;
    world.pass(5_500).await;
    for claimed in &held {
        world.release(claimed).await;
    }
    for n in 0..20 {
        world.pass(500).await;
        let single = world.claim("p", &format!("n{n}")).await;
        assert!(single.is_ok(), "{single:?} after {n} half seconds");
        world.release(&single).await;
    }
    assert!(!gang.is_finished());
    // With the third worker it is served.
    world.s.command_worker(&name("p"), &WorkerId::new("w2").unwrap(), WorkerCommand::Uncordon).await.unwrap();
    assert!(done(gang).await.iter().all(Result::is_ok));
}

/// Workers are held for a gang; a higher priority uses one, waiting or not.
#[tokio::test]
async fn b07_a_higher_priority_is_not_behind_a_gang() {
    let world = World::on_memory().await;
    world.pool("p", spec(1, AckLevel::Memory), &["w0", "w1", "w2"]).await;
    let mut held = Vec::new();
    for n in 0..3 {
        held.push(world.claim("p", &format!("h{n}")).await);
    }
    let gang = world.gang(&["a", "b", "c"]).await;
    until("it waits", async || world.s.waiting(&name("p")) == 1).await;
    world.pass(5_500).await;
    world.release(&held.remove(0)).await;
    assert_eq!(world.claim("p", "equal").await, Err(FULL), "the worker is held");
    let urgent = world.s.claim(with(request("p", "urgent"), 900, false)).await;
    assert!(urgent.is_ok(), "{urgent:?}");
    let waits = world.begins_to_wait(with(request("p", "waits"), 900, false)).await;
    world.release(&held.remove(0)).await;
    let waits = done(waits).await;
    assert!(waits.is_ok());
    for claimed in [urgent, waits, held.remove(0)] {
        world.release(&claimed).await;
    }
    assert!(done(gang).await.iter().all(Result::is_ok));
}

/// A large claim waits for its tenant's quota while small ones of the tenant come and go.
#[tokio::test]
async fn q08_a_large_claim_is_not_starved_of_quota_by_small_ones() {
    let world = World::on_memory().await;
    world.shared(shared(1, PlacementPolicy::BestFit), vec![sized("w", 64_000, None)]).await;
    world.s.put_quota("ns", Some("default"), Quota { cpu_milli: Some(4_000), ..Quota::default() }).await.unwrap();
    let mut held = Vec::new();
    for n in 0..4 {
        held.push(world.share(&format!("h{n}"), &cpu(1_000)).await);
    }
    let large = world.begins_to_wait(request_for("p", "large", &cpu(4_000))).await;
    let mut next = 0;
    for turn in 0.. {
        if large.is_finished() {
            break;
        }
        assert!(turn < 20, "it is starved");
        if !held.is_empty() {
            world.release(&held.remove(0)).await;
        }
        next += 1;
        match world.share(&format!("s{next}"), &cpu(1_000)).await {
            Ok(taken) => held.push(Ok(taken)),
            Err(error) => assert_eq!(error, RequestError::Exhausted(ExhaustionReason::Quota(QuotaResource::Cpu))),
        }
        // Those who rank before it are not kept back.
        world.pass(1_000).await;
    }
    assert!(done(large).await.is_ok());
}

/// A claim that no worker could hold keeps nothing from another that is starved.
#[tokio::test]
async fn b07_a_claim_that_can_never_be_served_ends_no_hold_of_others() {
    let world = World::on_memory().await;
    world.shared(shared(1, PlacementPolicy::BestFit), vec![sized("w", 4_000, None)]).await;
    let kept = world.share("kept", &cpu(2_000)).await;
    for n in 0..3 {
        drop(world.begins_to_wait(with(request_for("p", &format!("huge{n}"), &cpu(90_000)), 9, false)).await);
    }
    let large = world.begins_to_wait(request_for("p", "large", &cpu(4_000))).await;
    for _ in 0..8 {
        world.pass(1_000).await;
    }
    assert_eq!(world.share("small", &cpu(1_000)).await.unwrap_err(), FULL, "what is free is held");
    world.release(&kept).await;
    assert!(done(large).await.is_ok());
}

/// A claim of a higher priority has no worker that is kept for a lower one if its quota keeps it back.
#[tokio::test]
async fn q01_a_worker_that_is_kept_for_another_is_not_a_way_around_the_quota() {
    let world = World::on_memory().await;
    world.s.put_quota("ns", Some("poor"), Quota { claims: Some(0), ..Quota::default() }).await.unwrap();
    let (_kept, _large) = world.hold_for_large().await;
    let urgent = of_tenant("poor", with(request_for("p", "urgent", &cpu(1_000)), 9, false));
    let over = RequestError::Exhausted(ExhaustionReason::Quota(QuotaResource::Claims));
    assert_eq!(world.s.claim(urgent).await, Err(over));
}

/// The end of a claim for which headroom was collected gives that back, and serves those who waited behind it.
#[tokio::test]
async fn q08_headroom_is_not_kept_for_a_claim_that_has_left() {
    let world = World::on_memory().await;
    world.shared(shared(1, PlacementPolicy::BestFit), vec![sized("w", 64_000, None)]).await;
    world.s.put_quota("ns", Some("default"), Quota { cpu_milli: Some(4_000), ..Quota::default() }).await.unwrap();
    let held = world.share("held", &cpu(1_000)).await;
    let large = ClaimRequest { wait_ms: 20_000, ..request_for("p", "large", &cpu(4_000)) };
    let large = world.begin_request(large).await;
    world.pass(5_500).await;
    world.pass(500).await;
    let over = RequestError::Exhausted(ExhaustionReason::Quota(QuotaResource::Cpu));
    assert_eq!(world.share("small", &cpu(1_000)).await, Err(over.clone()), "it would take what is collected");
    let behind = world.begins_to_wait(request_for("p", "behind", &cpu(1_000))).await;
    world.pass(15_000).await;
    assert_eq!(done(large).await, Err(over));
    assert!(done(behind).await.is_ok());
    world.release(&held).await;
    assert!(world.share("small", &cpu(3_000)).await.is_ok());
}

/// Q02: quota that comes back in parts is found when there is enough of it, in whichever pool the claim waits.
#[tokio::test]
async fn q02_quota_that_comes_back_in_parts_serves_those_who_wait_in_other_pools() {
    let world = World::on_memory().await;
    world.shared(shared(1, PlacementPolicy::BestFit), vec![sized("w", 64_000, None)]).await;
    for pool in ["q", "r"] {
        world.pool(pool, spec(1, AckLevel::Memory), &[]).await;
        let worker = hotpool::model::WorkerSpec { ..sized("x", 8_000, None) };
        world.s.register(&name(pool), worker).await.unwrap();
    }
    world.s.put_quota("ns", Some("default"), Quota { cpu_milli: Some(4_000), ..Quota::default() }).await.unwrap();
    let (one, three) = (world.share("one", &cpu(1_000)).await, world.share("three", &cpu(3_000)).await);
    let waits = |pool, key, amount| waiting(request_for(pool, key, &cpu(amount)));
    let first = world.begin_request(waits("q", "first", 4_000)).await;
    let second = world.begin_request(waits("r", "second", 4_000)).await;
    until("both wait", async || world.s.waiting(&name("q")) + world.s.waiting(&name("r")) == 2).await;
    world.release(&one).await;
    assert!(!first.is_finished() && !second.is_finished());
    world.release(&three).await;
    let first = done(first).await;
    assert!(first.is_ok() && !second.is_finished());
    // Both are served when the quota is raised.
    let third = world.begin_request(waits("q", "third", 500)).await;
    until("it waits", async || world.s.waiting(&name("q")) == 1).await;
    world.release(&first).await;
    world.s.put_quota("ns", Some("default"), Quota { cpu_milli: Some(9_000), ..Quota::default() }).await.unwrap();
    assert!(done(second).await.is_ok());
    assert!(done(third).await.is_ok());
}

/// Q02: a grant whose caller has left is rolled back, and the next in the queue is answered in the same run.
#[tokio::test]
async fn q02_what_a_roll_back_frees_is_answered_at_once() {
    let world = World::on_memory().await;
    world.pool("p", spec(1, AckLevel::Memory), &["w0"]).await;
    let held = world.claim("p", "held").await;
    let first = world.begins_to_wait(request("p", "first")).await;
    let second = world.begins_to_wait(request("p", "second")).await;
    let busy = world.busy("p").await;
    let claim = &held.as_ref().unwrap().claim;
    let (id, fence) = (claim.id.clone(), claim.fence);
    let release = world.begin_alone(move |s| async move { s.release(&id, fence).await });
    until("the request is in the mailbox", async || busy.depth() == 1).await;
    first.abort();
    drop(busy);
    release.await.unwrap().unwrap();
    assert!(done(second).await.is_ok());
}
