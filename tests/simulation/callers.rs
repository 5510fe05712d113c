//! Callers: each makes one call after another, as the edges do: claims one by one, in batches, gangs and streams, with and
//! without waiting; some retry, hang up, or never read.

use std::sync::Arc;
use std::time::Duration;

use hotpool::model::claim_request::{ClaimConstraints, PoolChoice};
use hotpool::model::request_error::{ExhaustionReason, ObjectKind, RequestError};
use hotpool::model::{
    AckLevel, ClaimFilter, ClaimId, ClaimRequest, ClaimResult, ClaimSpec, ClaimState, ClaimView, Fence, Quota,
    QuotaResource, ResourceRequirements, RunningClaim,
};
use hotpool::scheduler::{ClaimBatchBuilder, ClaimVerb, RequestCompletion, Scheduler};
use parking_lot::Mutex;
use std::task::Poll;

use crate::agents::NODES;
use crate::checker::{Doubt, OrderedWait};
use crate::core::Core;
use crate::settings::{Feature, PoolSettings};
use crate::world::{NAMESPACE, Outcome, WorkerReport, World, pool_name};

/// Claims that a caller remembers at most.
const HELD_MAX: usize = 8;
/// Pause of a caller while nobody is to call, in milliseconds.
const QUIET_MS: u64 = 250;

/// Pace at which a caller reads its answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum ReadingPace {
    /// As soon as they arrive.
    AtOnce,
    /// Some time after they have left the service.
    Late,
}

/// Call that claims several keys.
#[derive(Debug, Clone, Copy, PartialEq, Eq, strum::IntoStaticStr)]
#[strum(serialize_all = "snake_case")]
enum JointCall {
    /// Call that is answered as a whole.
    Batch,
    /// Call for all claims or none.
    Gang,
    /// Claims gathered from the commands of a connection, each with its own reply.
    Pipeline,
}

impl JointCall {
    /// Pace at which the answers are read: those of a pipeline wait for the ones before them.
    const fn pace(self) -> ReadingPace {
        match self {
            Self::Batch | Self::Gang => ReadingPace::AtOnce,
            Self::Pipeline => ReadingPace::Late,
        }
    }
}

/// Gathers claims, decides them together, and awaits one reply after the other.
async fn claim_gathered(
    core: &Arc<Core>,
    scheduler: &Scheduler,
    requests: Vec<ClaimRequest>,
) -> Vec<Result<ClaimResult, RequestError>> {
    let mut batch = ClaimBatchBuilder::default();
    let calls: Vec<_> = requests.into_iter().map(|request| scheduler.gather(request, &mut batch)).collect();
    // Other connections of the thread gather theirs.
    core.sleep(Duration::ZERO).await;
    scheduler.decide_gathered(&mut batch);
    let mut answers = Vec::new();
    for call in calls {
        answers.push(match call {
            Ok(call) => call.await,
            Err(error) => Err(error),
        });
    }
    answers
}

/// Claim that a caller holds as far as it knows.
#[derive(Debug, Clone)]
struct HeldClaim {
    id: ClaimId,
    fence: Fence,
    has_ttl: bool,
}

pub struct Caller {
    world: Arc<World>,
    number: usize,
    held: Vec<HeldClaim>,
}

/// Resources of so many thousandths of cores.
pub fn cpu(cpu_milli: u64) -> ResourceRequirements {
    ResourceRequirements { cpu_milli, ..ResourceRequirements::default() }
}

/// Whether only some nodes will do, or some are preferred.
fn names_nodes(constraints: &ClaimConstraints) -> bool {
    !constraints.nodes_required.is_empty() || !constraints.nodes_preferred.is_empty()
}

/// Whether the error leaves open what became of the call.
pub fn leaves_doubt(error: &RequestError) -> bool {
    matches!(error, RequestError::DeadlineExceeded | RequestError::Unavailable(_))
}

impl Caller {
    pub const fn new(world: Arc<World>, number: usize) -> Self {
        Self { world, number, held: Vec::new() }
    }

    /// Makes calls until the run is done.
    pub async fn run(mut self) {
        let pause_ms = self.world.settings.pause_ms;
        loop {
            let pause_us = self.world.core.below(2_000 * pause_ms);
            self.world.core.sleep(Duration::from_micros(pause_us)).await;
            if self.world.is_done() {
                return;
            }
            if self.world.is_quiet() {
                self.held.clear();
                self.world.sleep_ms(QUIET_MS).await;
                continue;
            }
            self.world.begin_activity();
            self.call_once().await;
            self.world.end_activity();
        }
    }

    fn below(&self, end: usize) -> usize {
        self.world.core.below(end as u64) as usize
    }

    fn draw_feature(&self) -> Feature {
        let features = &self.world.settings.features;
        let total: u32 = features.iter().map(|(_, weight)| weight).sum();
        let mut at = self.world.core.below(u64::from(total)) as u32;
        for (feature, weight) in features {
            if at < *weight {
                return *feature;
            }
            at -= weight;
        }
        Feature::Claim
    }

    async fn call_once(&mut self) {
        match self.draw_feature() {
            Feature::Claim => self.claim(0).await,
            Feature::WaitingClaim => {
                let longest_ms = if self.below(2) == 0 { 50 } else { 20_000 };
                let wait_ms = 1 + self.world.core.below(longest_ms);
                self.claim(wait_ms).await;
            }
            Feature::Batch => self.batch(JointCall::Batch).await,
            Feature::Pipeline if self.below(3) == 0 => self.release_many().await,
            Feature::Pipeline => self.batch(JointCall::Pipeline).await,
            Feature::Gang => self.gang().await,
            Feature::Stream => self.stream().await,
            Feature::Release => self.release().await,
            Feature::CleanUp => self.clean_up().await,
            Feature::Confirm => self.confirm().await,
            Feature::Renew => self.renew().await,
            Feature::Resize => self.resize().await,
            Feature::Query => self.query().await,
            Feature::Quota => self.set_quota().await,
            Feature::Watch => self.watch().await,
            // Properties of the other calls.
            Feature::HangUp | Feature::Select => {}
        }
    }

    fn draw_hang_up_ms(&self, wait_ms: u64) -> Option<u64> {
        let hangs_up = self.world.settings.has(Feature::HangUp) && self.world.core.chance(100);
        hangs_up.then(|| self.world.core.below(wait_ms + 20))
    }

    fn draw_tenant(&self) -> String {
        format!("t{}", self.below(self.world.settings.tenants))
    }

    fn draw_id(&self) -> ClaimId {
        let tenant = self.draw_tenant();
        let key = format!("k{}", self.below(self.world.settings.keys));
        ClaimId::new(NAMESPACE, &tenant, &key).expect("a name")
    }

    fn draw_pool(&self) -> PoolSettings {
        let pools = &self.world.settings.pools;
        pools[self.below(pools.len())].clone()
    }

    fn draw_request(&self, id: ClaimId, wait_ms: u64) -> ClaimRequest {
        let first = self.draw_pool();
        let others = &self.world.settings.pools;
        let selects = self.world.settings.has(Feature::Select);
        let pools = match self.below(4) {
            1 if selects => PoolChoice::Selected(format!("mode={}", first.spec.labels["mode"])),
            0 if others.len() > 1 => {
                let same_mode =
                    others.iter().filter(|pool| pool.name != first.name && pool.is_shared() == first.is_shared());
                let names = std::iter::once(&first).chain(same_mode).map(|pool| pool_name(pool.name));
                PoolChoice::Listed(names.collect())
            }
            _ => PoolChoice::One(pool_name(first.name)),
        };
        let priority = if self.below(3) == 0 { self.below(3) as u16 } else { 0 };
        let preemptible = self.below(3) == 0;
        let resources = if first.is_shared() { cpu((1 + self.below(8)) as u64 * 500) } else { cpu(0) };
        let spec = ClaimSpec { resources, priority, preemptible, ..ClaimSpec::default() };
        let constraints = ClaimConstraints { spec, ..self.draw_nodes(selects) };
        let is_any = constraints.spec.is_empty() && !names_nodes(&constraints);
        let constraints = (!is_any).then(|| Box::new(constraints));
        let reserve_ms = (self.below(3) > 0).then_some(0);
        let ttl_ms = (self.below(6) == 0).then(|| 1_000 + self.world.core.below(60_000));
        ClaimRequest { constraints, reserve_ms, ttl_ms, wait_ms, ..ClaimRequest::new(id, pools) }
    }

    /// Draws which nodes a claim requires or prefers.
    fn draw_nodes(&self, selects: bool) -> ClaimConstraints {
        let node = || vec![format!("n{}", self.below(NODES)).into()];
        match self.below(6) {
            0 if selects => ClaimConstraints { nodes_required: node(), ..ClaimConstraints::default() },
            1 | 2 if selects => ClaimConstraints {
                nodes_preferred: node(),
                preferred_wait_ms: self.world.core.below(3_000),
                ..ClaimConstraints::default()
            },
            _ => ClaimConstraints::default(),
        }
    }

    async fn claim(&mut self, wait_ms: u64) {
        let request = self.draw_request(self.draw_id(), wait_ms);
        self.claim_as(request, wait_ms).await;
    }

    async fn claim_as(&mut self, request: ClaimRequest, wait_ms: u64) {
        let id = request.id.clone();
        let key = id.tenant_and_key().to_owned();
        let asked_ns = self.world.core.now_ns();
        let hang_up_ms = self.draw_hang_up_ms(wait_ms);
        let has_ttl = request.ttl_ms.is_some();
        let order = self.order_of(&request, asked_ns);
        let wait_number = self.world.core.next_number();
        {
            let mut checker = self.world.checker.lock();
            checker.begin_claim(&key);
            if wait_ms > 0
                && let Some(wait) = order.clone()
            {
                checker.begin_wait(wait_number, wait);
            }
        }
        let call = |scheduler: Scheduler| async move { scheduler.claim(request).await };
        let outcome = self.world.call("claim", wait_ms, hang_up_ms, call).await;
        let now_ns = self.world.core.now_ns();
        self.world.checker.lock().end_wait(wait_number, now_ns);
        let ended = key.clone();
        match outcome {
            Outcome::Answered(answer) => {
                if let (Ok(ClaimResult { created: true, .. }), Some(order)) = (&answer, order) {
                    self.world.checker.lock().note_grant(&key, &order.pool, order.priority, asked_ns, now_ns);
                }
                self.learn(&key, answer, has_ttl, asked_ns, ReadingPace::AtOnce);
            }
            Outcome::HungUp => self.world.checker.lock().hang_up(&key),
            Outcome::Lost | Outcome::Unread => self.world.checker.lock().lose_outcome(&key),
        }
        self.world.checker.lock().end_claim(&ended, now_ns);
    }

    /// Rank that decides when the claim is granted, if it asks one exclusive pool.
    fn order_of(&self, request: &ClaimRequest, asked_ns: u64) -> Option<OrderedWait> {
        let PoolChoice::One(name) = &request.pools else { return None };
        let pool = self.world.settings.pools.iter().find(|pool| pool.name == name.pool())?;
        if pool.is_shared() {
            return None;
        }
        let priority = request.constraints.as_ref().map_or(0, |constraints| constraints.spec.priority);
        let key = request.id.tenant_and_key().to_owned();
        let is_plain = !request.constraints.as_deref().is_some_and(names_nodes);
        Some(OrderedWait { key, pool: pool.name.to_owned(), priority, asked_ns, is_plain })
    }

    /// Learns the answer to a claim.
    fn learn(
        &mut self,
        key: &str,
        answer: Result<ClaimResult, RequestError>,
        has_ttl: bool,
        asked_ns: u64,
        pace: ReadingPace,
    ) {
        let number = self.number;
        let now_ns = self.world.core.now_ns();
        self.world.line(|| match &answer {
            Ok(result) => format!("caller {number}: {key} {}", describe(&result.claim, Some(result.created))),
            Err(error) => format!("caller {number}: {key} {error}"),
        });
        let world = Arc::clone(&self.world);
        let mut checker = world.checker.lock();
        match answer {
            Ok(result) => {
                // What the claim was granted with is known to its creator alone.
                let may_have_ttl = has_ttl || !result.created;
                let doubts: &[Doubt] = if may_have_ttl { &[Doubt::TimeToLive] } else { &[] };
                checker.show(&result, doubts, world.is_durable(), asked_ns, now_ns);
                if pace == ReadingPace::AtOnce
                    && result.created
                    && result.claim.state == ClaimState::Reserved
                    && !has_ttl
                {
                    let limit_ms = world.reserve_ms(result.claim.pool.pool());
                    // Clocks of the processes may be fast.
                    checker.reserve_until(result.claim.fence, now_ns + limit_ms * 900_000);
                }
                world.tell_worker(&result.claim);
                if result.created || self.world.core.chance(300) {
                    self.remember(&result.claim, may_have_ttl);
                }
            }
            Err(RequestError::Exhausted(ExhaustionReason::Quota(QuotaResource::Claims))) => {
                checker.check_refusal(key, asked_ns, now_ns);
            }
            Err(error) if leaves_doubt(&error) => checker.lose_outcome(key),
            Err(_) => {}
        }
    }

    fn remember(&mut self, view: &ClaimView, has_ttl: bool) {
        if self.held.len() == HELD_MAX {
            self.held.remove(0);
        }
        self.held.push(HeldClaim { id: view.id.clone(), fence: view.fence, has_ttl });
    }

    /// Claims several keys, none of which depends on another.
    async fn batch(&mut self, call: JointCall) {
        let wait_ms = if self.below(2) == 0 { 0 } else { self.world.core.below(5_000) };
        let waits = |caller: &Self| if caller.below(2) == 0 { wait_ms } else { 0 };
        let requests: Vec<ClaimRequest> =
            (0..2 + self.below(4)).map(|_| self.draw_request(self.draw_id(), waits(self))).collect();
        self.claim_together(call, requests, wait_ms).await;
    }

    async fn gang(&mut self) {
        let tenant = self.draw_tenant();
        let wait_ms = if self.below(2) == 0 { 0 } else { self.world.core.below(10_000) };
        let count = 2 + self.below(2);
        let first = self.below(self.world.settings.keys);
        let keys = self.world.settings.keys;
        let id =
            |number: usize| ClaimId::new(NAMESPACE, &tenant, &format!("k{}", (first + number) % keys)).expect("a name");
        let alike = self.draw_request(id(0), wait_ms);
        let is_alike = self.below(2) == 0;
        let request = |number: usize| match is_alike {
            true => ClaimRequest { id: id(number), ..alike.clone() },
            false => self.draw_request(id(number), wait_ms),
        };
        let requests = (0..count.min(keys)).map(request).collect();
        self.claim_together(JointCall::Gang, requests, wait_ms).await;
    }

    /// Claims several keys with one call.
    async fn claim_together(&mut self, joint: JointCall, requests: Vec<ClaimRequest>, wait_ms: u64) {
        let asked_ns = self.world.core.now_ns();
        let keys: Vec<(String, bool)> =
            requests.iter().map(|request| (request.id.tenant_and_key().to_owned(), request.ttl_ms.is_some())).collect();
        keys.iter().for_each(|(key, _)| self.world.checker.lock().begin_claim(key));
        let hang_up_ms = self.draw_hang_up_ms(wait_ms);
        let number = self.number;
        self.world.line(|| format!("caller {number}: {joint:?} of {keys:?}, hangs up after {hang_up_ms:?} ms"));
        let core = Arc::clone(&self.world.core);
        let call = |scheduler: Scheduler| async move {
            match joint {
                JointCall::Batch => scheduler.claim_batch(requests).await,
                JointCall::Gang => scheduler.claim_gang(requests).await,
                JointCall::Pipeline => claim_gathered(&core, &scheduler, requests).await,
            }
        };
        let outcome = self.world.call(joint.into(), wait_ms, hang_up_ms, call).await;
        let ended = keys.clone();
        match outcome {
            Outcome::Answered(answers) => {
                if joint == JointCall::Gang {
                    self.check_gang(&keys, &answers, asked_ns);
                }
                for ((key, has_ttl), answer) in keys.into_iter().zip(answers) {
                    self.learn(&key, answer, has_ttl, asked_ns, joint.pace());
                }
            }
            Outcome::HungUp => keys.iter().for_each(|(key, _)| self.world.checker.lock().hang_up(key)),
            Outcome::Lost | Outcome::Unread => {
                keys.iter().for_each(|(key, _)| self.world.checker.lock().lose_outcome(key));
            }
        }
        let now_ns = self.world.core.now_ns();
        ended.iter().for_each(|(key, _)| self.world.checker.lock().end_claim(key, now_ns));
    }

    fn check_gang(&self, keys: &[(String, bool)], answers: &[Result<ClaimResult, RequestError>], asked_ns: u64) {
        let is_unknown = answers.iter().any(|answer| answer.as_ref().is_err_and(leaves_doubt));
        let mut checker = self.world.checker.lock();
        // Claims that were granted have ended with their pool if it was deleted before the answer left.
        let may_have_ended = checker.was_pool_deleted_since(asked_ns);
        let has_ended =
            |answer: &Result<_, _>| may_have_ended && *answer == Err(RequestError::NotFound(ObjectKind::Pool));
        let granted = answers.iter().filter(|answer| answer.is_ok() || has_ended(answer)).count();
        if is_unknown {
            keys.iter().for_each(|(key, _)| checker.lose_outcome(key));
        } else if answers.iter().any(|answer| answer.as_ref().is_ok_and(|result| result.created))
            && granted != answers.len()
        {
            // Keys that are all held are answered one by one.
            checker.fail(format!("G1: {granted} of {} members of the gang were granted: {answers:?}", answers.len()));
        }
    }

    fn draw_held(&self) -> Option<HeldClaim> {
        (!self.held.is_empty()).then(|| self.held[self.below(self.held.len())].clone())
    }

    fn forget(&mut self, fence: Fence) {
        self.held.retain(|held| held.fence != fence);
    }

    /// Releases whatever holds a key.
    async fn release_any(&self) {
        let id = self.draw_id();
        let key = id.tenant_and_key().to_owned();
        self.world.checker.lock().begin_release(&key, None);
        let call = |scheduler: Scheduler| async move { scheduler.release_held(&id, None).await };
        let released = self.world.call("release", 0, None, call).await;
        // One whose answer was lost may take effect later.
        if matches!(released, Outcome::Answered(_)) {
            let now_ns = self.world.core.now_ns();
            self.world.checker.lock().end_release(&key, now_ns);
        }
    }

    async fn release(&mut self) {
        if self.below(4) == 0 {
            return self.release_any().await;
        }
        let Some(HeldClaim { id, fence, .. }) = self.draw_held() else { return };
        let key = id.tenant_and_key().to_owned();
        self.world.checker.lock().begin_release(&key, Some(fence));
        let call = |scheduler: Scheduler| async move { scheduler.release(&id, fence).await };
        let released = self.world.call("release", 0, self.draw_hang_up_ms(0), call).await;
        let number = self.number;
        if let Outcome::Answered(released) = released {
            self.world.line(|| format!("caller {number}: release of {fence} of {key}: {released:?}"));
            if released.is_ok() {
                let now_ns = self.world.core.now_ns();
                self.world.checker.lock().end(fence, now_ns);
            }
            if !released.is_err_and(|error| leaves_doubt(&error)) {
                self.forget(fence);
            }
        }
    }

    /// Releases several claims with one call, as pipelined commands are.
    async fn release_many(&mut self) {
        let claims: Vec<(ClaimId, Fence)> = self.held.iter().map(|held| (held.id.clone(), held.fence)).collect();
        for (id, fence) in &claims {
            self.world.checker.lock().begin_release(id.tenant_and_key(), Some(*fence));
        }
        let of = claims.clone();
        let call = |scheduler: Scheduler| async move { scheduler.release_batch(of).await };
        let released = self.world.call("release_batch", 0, self.draw_hang_up_ms(0), call).await;
        let Outcome::Answered(answers) = released else { return };
        let (number, now_ns) = (self.number, self.world.core.now_ns());
        for ((id, fence), answer) in claims.iter().zip(answers) {
            self.world.line(|| format!("caller {number}: release of {fence} of {}: {answer:?}", id.tenant_and_key()));
            if answer.is_ok() {
                self.world.checker.lock().end(*fence, now_ns);
            }
            if !answer.is_err_and(|error| leaves_doubt(&error)) {
                self.forget(*fence);
            }
        }
    }

    /// Releases a claim in two calls: the worker is cleaned between them.
    async fn clean_up(&mut self) {
        let Some(HeldClaim { id, fence, .. }) = self.draw_held() else { return };
        let key = id.tenant_and_key().to_owned();
        self.world.checker.lock().begin_release(&key, Some(fence));
        let of = id.clone();
        let call = |scheduler: Scheduler| async move { scheduler.begin_release(&of, fence).await };
        let begun = self.world.call("begin_release", 0, None, call).await;
        self.forget(fence);
        let caller = self.number;
        if let Outcome::Answered(begun) = &begun {
            self.world.line(|| format!("caller {caller}: clean-up of {fence} of {key}: {begun:?}"));
        }
        if !matches!(begun, Outcome::Answered(Ok(()))) {
            return;
        }
        let cleaning_ms = self.world.core.below(2_000);
        self.world.sleep_ms(cleaning_ms).await;
        let call = |scheduler: Scheduler| async move { scheduler.release(&id, fence).await };
        if let Outcome::Answered(Ok(())) = self.world.call("release", 0, None, call).await {
            let now_ns = self.world.core.now_ns();
            self.world.checker.lock().end(fence, now_ns);
        }
    }

    async fn confirm(&mut self) {
        let Some(HeldClaim { id, fence, has_ttl }) = self.draw_held() else { return };
        let asked_ns = self.world.core.now_ns();
        let call = |scheduler: Scheduler| async move { scheduler.confirm(&id, fence).await };
        let confirmed = self.world.call("confirm", 0, None, call).await;
        let now_ns = self.world.core.now_ns();
        let mut checker = self.world.checker.lock();
        match confirmed {
            Outcome::Answered(Ok(view)) => {
                let caller = self.number;
                self.world.line(|| format!("caller {caller}: confirm {}", describe(&view, None)));
                checker.accept_operation(&view, asked_ns, now_ns);
                if !has_ttl && self.world.is_durable() {
                    checker.confirm(&view);
                }
            }
            Outcome::Answered(Err(RequestError::NotFound(_) | RequestError::FenceMismatch)) => {
                checker.miss(fence, now_ns)
            }
            _ => {}
        }
    }

    async fn renew(&mut self) {
        let Some(HeldClaim { id, fence, .. }) = self.draw_held() else { return };
        let asked_ns = self.world.core.now_ns();
        let ttl_ms = (self.below(2) == 0).then(|| 1_000 + self.world.core.below(60_000));
        if ttl_ms.is_some() {
            self.world.checker.lock().limit_time(fence);
        }
        let call = |scheduler: Scheduler| async move { scheduler.renew(&id, fence, ttl_ms).await };
        let renewed = self.world.call("renew", 0, None, call).await;
        self.learn_operation(fence, &renewed, asked_ns);
    }

    async fn resize(&mut self) {
        let Some(HeldClaim { id, fence, .. }) = self.draw_held() else { return };
        let asked_ns = self.world.core.now_ns();
        let cpu_milli = (1 + self.below(8)) as u64 * 500;
        self.world.checker.lock().resize(fence, cpu_milli);
        let call = |scheduler: Scheduler| async move { scheduler.resize(&id, fence, cpu(cpu_milli)).await };
        let resized = self.world.call("resize", 0, None, call).await;
        self.learn_operation(fence, &resized, asked_ns);
    }

    /// Learns the answer to an operation on a claim.
    fn learn_operation(&self, fence: Fence, outcome: &Outcome<Result<ClaimView, RequestError>>, asked_ns: u64) {
        let now_ns = self.world.core.now_ns();
        let mut checker = self.world.checker.lock();
        match outcome {
            Outcome::Answered(Ok(view)) => checker.accept_operation(view, asked_ns, now_ns),
            Outcome::Answered(Err(RequestError::NotFound(ObjectKind::Claim) | RequestError::FenceMismatch)) => {
                checker.miss(fence, now_ns);
            }
            _ => {}
        }
    }

    async fn query(&mut self) {
        let id = self.draw_id();
        let pool = pool_name(self.draw_pool().name);
        let request = self.draw_request(id.clone(), 0);
        match self.below(5) {
            0 => drop(
                self.world
                    .call("get_claim", 0, None, |scheduler| async move { scheduler.claim_status(&id).await })
                    .await,
            ),
            1 => {
                let call = |scheduler: Scheduler| async move {
                    scheduler.list_claims(&ClaimFilter::default(), None, 10).await.map(drop)
                };
                drop(self.world.call("list_claims", 0, None, call).await);
            }
            2 => drop(
                self.world.call("explain", 0, None, |scheduler| async move { scheduler.explain(request).await }).await,
            ),
            3 => {
                drop(self.world.call("demand", 0, None, |scheduler| async move { scheduler.demand(&pool).await }).await)
            }
            _ => drop(
                self.world.call("get_pool", 0, None, |scheduler| async move { scheduler.get_pool(&pool).await }).await,
            ),
        }
    }

    async fn set_quota(&mut self) {
        let tenant = self.draw_tenant();
        let claims = (self.below(3) > 0).then(|| self.below(6) as u64);
        let cpu_milli = (self.below(3) == 0).then(|| self.world.core.below(12_000));
        let quota = Quota { claims, cpu_milli, ..Quota::default() };
        self.world.checker.lock().begin_quota(&tenant);
        self.world.line(|| format!("quota of {tenant}: {claims:?} claims, {cpu_milli:?} cpu"));
        let of = tenant.clone();
        let call =
            |scheduler: Scheduler| async move { scheduler.put_quota(NAMESPACE, Some(&of), quota).await.map(drop) };
        let put = self.world.call("put_quota", 0, None, call).await;
        let limit = claims.filter(|_| matches!(put, Outcome::Answered(Ok(()))));
        let now_ns = self.world.core.now_ns();
        self.world.checker.lock().end_quota(&tenant, limit, now_ns);
    }

    /// Sends several requests on a stream at once, and reads the answers late or never.
    async fn stream(&mut self) {
        let asked_ns = self.world.core.now_ns();
        let mut claims = Vec::new();
        let mut operations = Vec::new();
        for number in 0..1 + self.below(6) as u64 {
            match (self.below(3), self.draw_held()) {
                (0, Some(HeldClaim { id, fence, .. })) => {
                    let verb = if self.below(2) == 0 { ClaimVerb::Release } else { ClaimVerb::Confirm };
                    if verb == ClaimVerb::Release {
                        self.forget(fence);
                        self.world.checker.lock().begin_release(id.tenant_and_key(), Some(fence));
                    }
                    operations.push((number, id, fence, verb));
                }
                _ => {
                    let wait_ms = if self.below(4) == 0 { self.world.core.below(5_000) } else { 0 };
                    let request = self.draw_request(self.draw_id(), wait_ms);
                    self.world.checker.lock().begin_claim(request.id.tenant_and_key());
                    claims.push((number, request));
                }
            }
        }
        let keys: Vec<(u64, String, bool)> = claims
            .iter()
            .map(|(number, request)| (*number, request.id.tenant_and_key().to_owned(), request.ttl_ms.is_some()))
            .collect();
        let operated: Vec<(u64, Fence)> = operations.iter().map(|(number, _, fence, _)| (*number, *fence)).collect();
        let unread_ms = if self.below(3) == 0 { self.world.core.below(2_000) } else { 0 };
        let core = Arc::clone(&self.world.core);
        // Answers that have left the stream: on their way to a caller who may have gone.
        let sent: Arc<Mutex<Vec<u64>>> = Arc::default();
        let has_left = Arc::clone(&sent);
        let call = |scheduler: Scheduler| async move {
            let mut stream = scheduler.request_stream(10_000);
            for (number, request) in claims {
                stream.add_claim(number, request);
            }
            for (number, id, fence, verb) in operations {
                stream.add_held_operation(number, id, fence, verb);
            }
            stream.send();
            core.sleep(Duration::from_millis(unread_ms)).await;
            let mut completed = Vec::new();
            while !stream.is_empty() {
                let mut more = Vec::new();
                let mut timer = core.sleep(Duration::from_millis(50));
                std::future::poll_fn(|context| {
                    stream.poll_completions(context, &mut more);
                    if more.is_empty() { timer.as_mut().poll(context) } else { Poll::Ready(()) }
                })
                .await;
                stream.expire(&mut more);
                has_left.lock().extend(more.iter().map(|(number, _)| *number));
                completed.append(&mut more);
            }
            completed
        };
        let hang_up_ms = self.draw_hang_up_ms(unread_ms + 10);
        let outcome = self.world.call("stream", 5_000 + unread_ms + 10_000, hang_up_ms, call).await;
        let ended = keys.clone();
        match outcome {
            Outcome::Answered(completed) => {
                for (number, completion) in completed {
                    self.learn_completion(number, completion, &keys, &operated, asked_ns);
                }
            }
            Outcome::HungUp => {
                let sent = sent.lock();
                let mut checker = self.world.checker.lock();
                for (number, key, _) in &keys {
                    if sent.contains(number) { checker.lose_outcome(key) } else { checker.hang_up(key) }
                }
            }
            Outcome::Lost | Outcome::Unread => {
                keys.iter().for_each(|(_, key, _)| self.world.checker.lock().lose_outcome(key));
            }
        }
        let now_ns = self.world.core.now_ns();
        ended.iter().for_each(|(_, key, _)| self.world.checker.lock().end_claim(key, now_ns));
    }

    fn learn_completion(
        &mut self,
        number: u64,
        completion: RequestCompletion,
        keys: &[(u64, String, bool)],
        operated: &[(u64, Fence)],
        asked_ns: u64,
    ) {
        let now_ns = self.world.core.now_ns();
        let caller = self.number;
        self.world.line(|| format!("caller {caller}: stream {number}: {}", describe_completion(&completion)));
        match completion {
            RequestCompletion::Claimed(answer) => {
                if let Some((_, key, has_ttl)) = keys.iter().find(|(other, ..)| *other == number) {
                    self.learn(key, answer, *has_ttl, asked_ns, ReadingPace::Late);
                }
            }
            RequestCompletion::Released(Ok(_)) => {
                if let Some((_, fence)) = operated.iter().find(|(other, _)| *other == number) {
                    self.world.line(|| format!("caller {caller}: {fence} is released"));
                    self.world.checker.lock().end(*fence, now_ns);
                }
            }
            RequestCompletion::Confirmed(Ok(view)) => {
                self.world.checker.lock().accept_operation(&view, asked_ns, now_ns);
            }
            RequestCompletion::Confirmed(Err(
                RequestError::NotFound(ObjectKind::Claim) | RequestError::FenceMismatch,
            )) => {
                if let Some((_, fence)) = operated.iter().find(|(other, _)| *other == number) {
                    self.world.checker.lock().miss(*fence, now_ns);
                }
            }
            RequestCompletion::Released(Err(_))
            | RequestCompletion::Confirmed(Err(_))
            | RequestCompletion::Renewed(_) => {}
        }
    }

    /// Watches a pool for a while: positions grow within an epoch.
    async fn watch(&mut self) {
        let pool = pool_name(self.draw_pool().name);
        let core = Arc::clone(&self.world.core);
        let for_ms = self.world.core.below(500);
        let is_slow = self.below(2) == 0;
        let call = |scheduler: Scheduler| async move {
            let Ok(mut watcher) = scheduler.watch_pool(&pool, None) else { return Ok(()) };
            let end_ms = core.now_ms() + for_ms;
            let mut last: Option<hotpool::events::EventPosition> = None;
            while core.now_ms() < end_ms {
                let mut items = Vec::new();
                let timer = core.sleep(Duration::from_millis(20));
                let read = watcher.next(&mut items);
                let is_open = matches!(
                    futures::future::select(std::pin::pin!(read), timer).await,
                    futures::future::Either::Left((true, _)) | futures::future::Either::Right(_)
                );
                if !is_open {
                    break;
                }
                for (position, _) in items {
                    if last.is_some_and(|last| last.epoch == position.epoch && last.number > position.number) {
                        return Err(format!("{position:?} of {pool} follows {last:?}"));
                    }
                    last = Some(position);
                }
                if is_slow {
                    core.sleep(Duration::from_millis(30)).await;
                }
            }
            Ok(())
        };
        if let Outcome::Answered(Err(problem)) = self.world.call("watch", 1_000, None, call).await {
            self.world.checker.lock().fail(format!("watch: {problem}"));
        }
    }
}

/// Result of a request of a stream, for the trace.
fn describe_completion(completion: &RequestCompletion) -> String {
    match completion {
        RequestCompletion::Claimed(Ok(result)) => format!("claim {}", describe(&result.claim, Some(result.created))),
        RequestCompletion::Claimed(Err(error)) => format!("claim: {error}"),
        RequestCompletion::Released(released) => format!("release: {released:?}"),
        RequestCompletion::Confirmed(Ok(view)) => format!("confirm {}", describe(view, None)),
        RequestCompletion::Renewed(Ok(view)) => format!("renew {}", describe(view, None)),
        RequestCompletion::Confirmed(Err(error)) | RequestCompletion::Renewed(Err(error)) => {
            format!("operation: {error}")
        }
    }
}

/// State of a claim, for the trace.
pub fn describe(view: &ClaimView, created: Option<bool>) -> String {
    let how = match created {
        Some(true) => "created",
        Some(false) => "found",
        None => "is",
    };
    format!(
        "{how} {} on {}/{}, {:?}{}",
        view.fence,
        view.pool.pool(),
        view.worker.spec.id.as_str(),
        view.state,
        if view.evicted { ", evicted" } else { "" }
    )
}

impl World {
    /// Time for which a claim of the pool may stay unconfirmed, in milliseconds.
    fn reserve_ms(&self, pool: &str) -> u64 {
        self.settings.pools.iter().find(|other| other.name == pool).map_or(0, |pool| pool.spec.reserve_ms)
    }

    /// Tells the agent of its worker what it is to run, as callers do that start the work themselves.
    fn tell_worker(&self, view: &ClaimView) {
        let Some(pool) = self.settings.pools.iter().find(|pool| pool.name == view.pool.pool()) else { return };
        let number: usize = view.worker.spec.id.as_str()[1..].parse().expect("a number");
        let mut workers = self.workers.lock();
        let state = workers.entry((pool.name, number)).or_default();
        if state.report == WorkerReport::Running && !state.running.iter().any(|running| running.fence == view.fence) {
            state.running.push(RunningClaim { id: view.id.clone(), fence: view.fence });
        }
    }

    /// Whether what pools of this run acknowledge is stored.
    pub fn is_durable(&self) -> bool {
        self.settings.pools.iter().all(|pool| pool.spec.ack == AckLevel::Durable)
    }
}
