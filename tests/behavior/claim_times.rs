//! C16: timestamps of a claim, which are those of the wall clock, whatever happens to the claim; and how long a pool
//! lets claims stay without a renewal.

use hotpool::model::claim_request::{ClaimConstraints, PoolChoice};
use hotpool::model::request_error::RequestError;
use hotpool::model::{
    AckLevel, ClaimFilter, ClaimRequest, ClaimSpec, ClaimState, ClaimTimes, ClaimView, HeartbeatRequest,
    PlacementPolicy, PoolSpec, RunningClaim, WorkerId, WorkerSpec,
};

use crate::shared_pool_helpers::{cpu, request_for, shared, sized};
use crate::world::{FULL, World, done, id, ids_on, name, request, spec, until, worker};

const HOUR: u64 = 3_600_000;
/// Tolerance with which the service follows the wall clock, in milliseconds.
const SLACK_MS: u64 = 200;

fn active(request: ClaimRequest) -> ClaimRequest {
    ClaimRequest { reserve_ms: Some(0), ..request }
}

fn bounded(default_ms: Option<u64>, max_ms: Option<u64>) -> PoolSpec {
    PoolSpec { ttl_default_ms: default_ms, ttl_max_ms: max_ms, ..spec(1, AckLevel::Memory) }
}

fn too_long(max_ms: u64) -> RequestError {
    RequestError::invalid("ttl_ms", format!("must be at most the pool's {max_ms} (ttl_max_ms)"))
}

impl World {
    /// Sets the wall clock ahead of the system clock by `ms`.
    async fn shift(&self, ms: i64) {
        self.clock.shift_unix_us(ms * 1_000);
        self.pass(1).await;
    }

    async fn times(&self, key: &str) -> ClaimTimes {
        self.s.get_claim(&id(key)).await.unwrap().times
    }

    async fn ttl_of(&self, request: ClaimRequest) -> Result<Option<u64>, RequestError> {
        let claim = self.s.claim(active(request)).await?.claim;
        Ok(self.remaining_of(&claim))
    }

    /// Time until the claim expires, in whole seconds.
    fn remaining_of(&self, claim: &ClaimView) -> Option<u64> {
        let now_ms = self.clock.unix_of(self.clock.engine_ms());
        claim.expires_at_ms.map(|at| (at.saturating_sub(now_ms) + 500) / 1_000 * 1_000)
    }
}

/// Whether the time is about this many hours after the other.
fn is_after(at_ms: Option<u64>, since_ms: Option<u64>, hours: i64) -> bool {
    let (at_ms, since_ms) = (at_ms.unwrap(), since_ms.unwrap());
    at_ms.abs_diff(since_ms.saturating_add_signed(hours * HOUR.cast_signed())) <= SLACK_MS
}

#[tokio::test]
async fn c16_a_claim_keeps_its_timestamps_whatever_happens() {
    let world = World::on_store().await;
    world.pool("p", PoolSpec { releasing_ms: 10_000, ..spec(1, AckLevel::Durable) }, &["v", "w"]).await;
    let taken = world.claim("p", "k").await.unwrap().claim;
    let created = taken.times.created_at_ms();
    assert!(is_after(created, Some(world.clock.unix_ms()), 0) && taken.times.activated_at_ms().is_none());
    assert_eq!(world.claim("p", "k").await.unwrap().claim.times, taken.times, "the same claim");
    world.shift(2 * HOUR.cast_signed()).await;
    let confirmed = world.s.confirm(&taken.id, taken.fence).await.unwrap().times;
    assert_eq!(confirmed.created_at_ms(), created);
    assert!(is_after(confirmed.activated_at_ms(), created, 2), "{confirmed:?}");
    world.shift(5 * HOUR.cast_signed()).await;
    world.s.confirm(&taken.id, taken.fence).await.unwrap();
    world.s.renew(&taken.id, taken.fence, Some(60_000)).await.unwrap();
    assert_eq!(world.times("k").await, confirmed, "it became active once");
    world.stored("p").await;
    let world = world.crashed().await;
    assert_eq!(world.times("k").await, confirmed, "a crash changes neither");
    world.s.begin_release(&taken.id, taken.fence).await.unwrap();
    assert_eq!(world.times("k").await, confirmed);
    let worker = taken.worker.spec.id.clone();
    world.s.delete_worker(&name("p"), &worker).await.unwrap();
    let lost = world.s.get_claim(&taken.id).await.unwrap();
    assert_eq!((lost.state, lost.times), (ClaimState::Lost, confirmed));
    // The next claim of the key has timestamps of its own.
    world.shift(7 * HOUR.cast_signed()).await;
    let next = world.s.claim(active(request("p", "k"))).await.unwrap().claim.times;
    assert!(is_after(next.created_at_ms(), created, 7) && next.activated_at_ms() == next.created_at_ms());
}

#[tokio::test]
async fn c16_a_claim_lost_while_reserved_was_never_active() {
    let world = World::on_memory().await;
    world.pool("p", spec(1, AckLevel::Memory), &["w"]).await;
    let taken = world.claim("p", "k").await.unwrap().claim;
    world.s.delete_worker(&name("p"), &taken.worker.spec.id).await.unwrap();
    let lost = world.s.get_claim(&taken.id).await.unwrap();
    assert_eq!((lost.state, lost.times), (ClaimState::Lost, taken.times));
    assert_eq!(lost.times.activated_at_ms(), None);
}

/// Timestamps are reported as taken, even if the clock was wrong.
#[tokio::test]
async fn c16_a_clock_set_back_changes_no_earlier_timestamp() {
    let world = World::on_memory().await;
    world.pool("p", spec(1, AckLevel::Memory), &["w", "v"]).await;
    let taken = world.claim("p", "k").await.unwrap().claim;
    world.shift(-24 * HOUR.cast_signed()).await;
    let times = world.s.confirm(&taken.id, taken.fence).await.unwrap().times;
    assert_eq!(times.created_at_ms(), taken.times.created_at_ms());
    assert!(is_after(times.activated_at_ms(), times.created_at_ms(), -24), "{times:?}");
    // A release that begins before the confirm: the claim was never active.
    let other = world.claim("p", "other").await.unwrap().claim;
    world.s.begin_release(&other.id, other.fence).await.unwrap();
    assert_eq!(world.times("other").await, other.times);
}

#[tokio::test]
async fn c16_a_worker_that_reports_a_reserved_claim_activates_it() {
    let world = World::on_memory().await;
    world.pool("p", spec(1, AckLevel::Memory), &["w"]).await;
    let taken = world.claim("p", "k").await.unwrap().claim;
    world.shift(HOUR.cast_signed()).await;
    let named = vec![RunningClaim { id: taken.id.clone(), fence: taken.fence }];
    let heartbeat = HeartbeatRequest { incarnation: 0, seq: None, claims: Some(named) };
    let response = world.s.heartbeat(&name("p"), &WorkerId::new("w").unwrap(), heartbeat).await.unwrap();
    let times = response.claims[0].times;
    assert!(
        times.created_at_ms() == taken.times.created_at_ms()
            && is_after(times.activated_at_ms(), times.created_at_ms(), 1)
    );
    let shown = world.s.get_worker(&name("p"), &WorkerId::new("w").unwrap()).await.unwrap();
    assert_eq!(shown.claims[0].times, times);
}

#[tokio::test]
async fn c16_resized_evicted_and_gang_claims_keep_their_timestamps() {
    let world = World::on_store().await;
    let pool = PoolSpec { preemption: true, ..shared(2, PlacementPolicy::BestFit) };
    let workers = ids_on(0, 2, 1, "w").into_iter().chain(ids_on(1, 2, 1, "w"));
    world.shared(pool, workers.map(|id| sized(&id, 4_000, None)).collect()).await;
    let member = |key: &str| {
        let mut request = ClaimRequest { reserve_ms: None, ..request_for("p", key, &cpu(3_000)) };
        request.constraints.as_mut().unwrap().spec.preemptible = true;
        request
    };
    let outcomes = world.s.claim_gang(vec![member("a"), member("b")]).await;
    let claims: Vec<ClaimView> = outcomes.into_iter().map(|taken| taken.unwrap().claim).collect();
    for claim in &claims {
        assert!(is_after(claim.times.created_at_ms(), Some(world.clock.unix_ms()), 0));
        assert_eq!(claim.times.activated_at_ms(), None);
    }
    world.shift(HOUR.cast_signed()).await;
    let resized = world.s.resize(&claims[0].id, claims[0].fence, cpu(4_000)).await.unwrap();
    assert_eq!(resized.times, claims[0].times);
    let confirmed = world.s.confirm(&claims[1].id, claims[1].fence).await.unwrap().times;
    let mut urgent = ClaimRequest { wait_ms: 60_000, ..request_for("p", "urgent", &cpu(4_000)) };
    urgent.constraints.as_mut().unwrap().spec.priority = 9;
    let begun = world.begin_request(urgent).await;
    until("one is evicted", async || world.all_held().await.iter().any(|claim| claim.evicted)).await;
    let evicted = world.all_held().await.into_iter().find(|claim| claim.evicted).unwrap();
    let expected = if evicted.id == id("a") { resized.times } else { confirmed };
    assert_eq!(evicted.times, expected);
    world.s.release(&evicted.id, evicted.fence).await.unwrap();
    let times = done(begun).await.unwrap().claim.times;
    assert!(is_after(times.created_at_ms(), claims[0].times.created_at_ms(), 1), "it waited, and was created then");
}

#[tokio::test]
async fn c16_lists_filter_by_age_and_state() {
    let world = World::on_memory().await;
    world.pool("p", spec(2, AckLevel::Memory), &["u", "v", "w", "x"]).await;
    let listed = async |filter: ClaimFilter| {
        let page = world.s.list_claims(&filter.checked().unwrap(), None, 100).await.unwrap();
        let mut keys: Vec<String> = page.items.iter().map(|claim| claim.id.key().to_owned()).collect();
        keys.sort_unstable();
        keys
    };
    world.hold("p", "old").await;
    world.claim("p", "reserved").await.unwrap();
    world.shift(2 * HOUR.cast_signed()).await;
    world.hold("p", "young").await;
    let older = |ms| ClaimFilter { older_than_ms: Some(ms), ..ClaimFilter::default() };
    assert_eq!(listed(older(HOUR)).await, ["old", "reserved"]);
    assert_eq!(listed(older(3 * HOUR)).await, [""; 0]);
    let states = vec![ClaimState::Active, ClaimState::Active];
    assert_eq!(listed(ClaimFilter { states: states.clone(), ..older(HOUR) }).await, ["old"]);
    assert_eq!(listed(ClaimFilter { states, ..ClaimFilter::default() }).await, ["old", "young"]);
    let lost = ClaimFilter { states: vec![ClaimState::Lost], ..ClaimFilter::default() };
    assert!(matches!(lost.checked(), Err(RequestError::Invalid { field, .. }) if field == "state"));
}

#[tokio::test]
async fn c16_a_claim_has_the_ttl_of_the_pool_that_grants_it() {
    let world = World::on_memory().await;
    world.pool("p", bounded(Some(10_000), None), &["p1"]).await;
    world.pool("q", bounded(None, Some(20_000)), &["q1"]).await;
    world.pool("r", bounded(Some(30_000), Some(40_000)), &["r1", "r2"]).await;
    let pools = || PoolChoice::Listed(["p", "q", "r"].map(name).to_vec());
    let from = |key: &str, ttl_ms| ClaimRequest { pools: pools(), ttl_ms, ..request("unused", key) };
    assert_eq!(world.ttl_of(from("a", Some(20_001))).await, Err(too_long(20_000)), "within the bounds of all");
    for (key, ttl_ms, left) in
        [("a", None, 10_000), ("b", None, 20_000), ("c", None, 30_000), ("d", Some(15_000), 15_000)]
    {
        assert_eq!(world.ttl_of(from(key, ttl_ms)).await, Ok(Some(left)), "{key}");
    }
    assert_eq!(
        world.ttl_of(ClaimRequest { ttl_ms: Some(HOUR), ..request("p", "e") }).await,
        Err(FULL),
        "p bounds nothing"
    );
    let explained = world.s.explain(ClaimRequest { ttl_ms: Some(HOUR), ..request("q", "e") }).await;
    assert_eq!(explained, Err(too_long(20_000)));
    // The claim ends when it is not renewed.
    world.pass(10_000).await;
    assert!(world.is_vacant("a") && !world.is_vacant("b"));
}

#[tokio::test]
async fn c16_new_limits_apply_to_later_claims() {
    let world = World::on_memory().await;
    let put = async |default_ms, max_ms| drop(world.s.put_pool(name("p"), bounded(default_ms, max_ms)).await.unwrap());
    world.pool("p", bounded(None, None), &["w"]).await;
    let held = world.s.claim(active(request("p", "held"))).await.unwrap().claim;
    assert_eq!(held.expires_at_ms, None);
    let waits = |key: &str, ttl_ms| active(ClaimRequest { wait_ms: HOUR, ttl_ms, ..request("p", key) });
    let requested = world.begin_request(waits("requested", Some(50_000))).await;
    until("it waits", async || world.s.waiting(&name("p")) == 1).await;
    let says_none = world.begin_request(waits("none", None)).await;
    until("both wait", async || world.s.waiting(&name("p")) == 2).await;
    put(Some(10_000), Some(20_000)).await;
    // A held claim keeps its time to live until it is renewed.
    assert_eq!(world.s.get_claim(&held.id).await.unwrap().expires_at_ms, None);
    assert_eq!(world.s.renew(&held.id, held.fence, Some(20_001)).await, Err(too_long(20_000)));
    let left = async |ttl_ms| world.remaining_of(&world.s.renew(&held.id, held.fence, ttl_ms).await.unwrap());
    assert_eq!(left(None).await, Some(10_000), "it had none");
    assert_eq!(left(Some(20_000)).await, Some(20_000));
    assert_eq!(left(None).await, Some(20_000), "as long as before");
    put(None, Some(15_000)).await;
    assert_eq!(left(None).await, Some(15_000), "but no longer than it may");
    world.s.release(&held.id, held.fence).await.unwrap();
    assert_eq!(done(requested).await, Err(too_long(15_000)), "it was requested when more was allowed");
    let taken = done(says_none).await.unwrap().claim;
    assert_eq!(world.remaining_of(&taken), Some(15_000));
    assert_eq!(world.s.keys().pending_len(), 0);
}

/// A worker that ends before the pool's time to live is not granted to a claim without a time of its own.
#[tokio::test]
async fn c16_a_claim_needs_its_worker_for_the_ttl_of_the_pool() {
    let world = World::on_memory().await;
    let pool = PoolSpec { reserve_ms: 1_000, ..bounded(Some(60_000), None) };
    world.pool("p", pool, &[]).await;
    let short = WorkerSpec { expires_at_ms: Some(world.clock.unix_ms() + 30_000), ..worker("short") };
    world.s.register(&name("p"), short).await.unwrap();
    assert_eq!(world.claim("p", "k").await, Err(FULL));
    assert!(world.s.explain(request("p", "k")).await.unwrap().outcome.is_err());
    let brief = ClaimRequest { ttl_ms: Some(10_000), ..request("p", "k") };
    assert!(world.s.explain(brief.clone()).await.unwrap().outcome.is_ok());
    assert!(world.s.claim(brief).await.unwrap().created);
}

/// A gang is rejected like any claim.
#[tokio::test]
async fn c16_a_gang_member_may_not_exceed_the_limits_of_its_pool() {
    let world = World::on_store().await;
    world.pool("p", PoolSpec { ack: AckLevel::Durable, ..bounded(None, Some(20_000)) }, &["v", "w"]).await;
    let member = |key: &str, ttl_ms| active(ClaimRequest { ttl_ms, ..request("p", key) });
    let outcomes = world.s.claim_gang(vec![member("a", None), member("b", Some(20_001))]).await;
    assert_eq!(outcomes, [Err(RequestError::GangMemberRejected(1)), Err(too_long(20_000))]);
    world.is_clean().await;
    let outcomes = world.s.claim_gang(vec![member("a", None), member("b", Some(5_000))]).await;
    let left: Vec<_> = outcomes.iter().map(|taken| world.remaining_of(&taken.as_ref().unwrap().claim)).collect();
    assert_eq!(left, [Some(20_000), Some(5_000)]);
    let spec = ClaimSpec::default();
    let constraints =
        Some(Box::new(ClaimConstraints { spec, require_same_resources: true, ..ClaimConstraints::default() }));
    let again = ClaimRequest { constraints, ..member("a", Some(20_001)) };
    assert_eq!(world.s.claim(again).await, Err(too_long(20_000)), "also of a key that is held");
}
