//! Response bodies for claims, held or queued.

use serde::Serialize;

use crate::api::error_table::ApiError;
use crate::model::{
    ClaimPage, ClaimResult, ClaimState, ClaimView, Fence, HeldGpus, HeldResources, Labels, ListedState, Millis,
    PoolName, QueuedClaimView, WorkerCapacity, is_zero,
};

/// `{"released":...}`: whether this request released a claim.
#[derive(Serialize)]
pub(in crate::api::http) struct ReleaseResponseBody {
    pub(in crate::api::http) released: bool,
}

/// Claim with its worker, state and resources.
#[derive(Serialize)]
pub(in crate::api::http) struct ClaimJson<'a> {
    key: &'a str,
    tenant: &'a str,
    fence: Fence,
    namespace: &'a str,
    pool: &'a str,
    worker: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    node: Option<&'a str>,
    state: ClaimState,
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<&'static str>,
    resources: HeldResourcesJson<'a>,
    #[serde(skip_serializing_if = "Option::is_none")]
    labels: Option<&'a Labels>,
    #[serde(skip_serializing_if = "is_zero")]
    priority: u64,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    preemptible: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    expires_at_ms: Option<Millis>,
    #[serde(skip_serializing_if = "Option::is_none")]
    created_at_ms: Option<Millis>,
    #[serde(skip_serializing_if = "Option::is_none")]
    activated_at_ms: Option<Millis>,
}

impl<'a> From<&'a ClaimView> for ClaimJson<'a> {
    fn from(claim: &'a ClaimView) -> Self {
        let worker = &claim.worker.spec;
        Self {
            key: claim.id.key(),
            tenant: claim.id.tenant(),
            fence: claim.fence,
            namespace: claim.id.namespace(),
            pool: claim.pool.pool(),
            worker: worker.id.as_str(),
            node: worker.node.as_deref(),
            state: claim.state,
            reason: claim.evicted.then_some("preempted"),
            resources: claim.held().into(),
            labels: claim.spec.as_ref().map(|spec| &spec.labels).filter(|labels| !labels.is_empty()),
            priority: claim.spec.as_ref().map_or(0, |spec| spec.priority.into()),
            preemptible: claim.spec.as_ref().is_some_and(|spec| spec.preemptible),
            expires_at_ms: claim.expires_at_ms,
            created_at_ms: claim.times.created_at_ms(),
            activated_at_ms: claim.times.activated_at_ms(),
        }
    }
}

/// Resources that a claim holds: a whole worker, or an allocation on a shared one.
#[derive(Serialize)]
#[serde(untagged)]
enum HeldResourcesJson<'a> {
    Whole(&'a WorkerCapacity),
    Share(Box<AllocationJson<'a>>),
}

/// Allocation of a claim on a shared worker.
#[derive(Serialize)]
struct AllocationJson<'a> {
    #[serde(skip_serializing_if = "is_zero")]
    cpu_milli: u64,
    #[serde(skip_serializing_if = "is_zero")]
    memory_bytes: u64,
    #[serde(skip_serializing_if = "is_zero")]
    slots: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    gpu: Option<GpusJson<'a>>,
}

/// GPUs that a claim holds, by index on the worker, and the share of each.
#[derive(Serialize)]
struct GpusJson<'a> {
    model: &'a str,
    count: u32,
    milli: u32,
    cards: Vec<u32>,
}

impl<'a> From<HeldResources<'a>> for HeldResourcesJson<'a> {
    fn from(resources: HeldResources<'a>) -> Self {
        match resources {
            HeldResources::Whole(capacity) => Self::Whole(capacity),
            HeldResources::Share { resources, gpu } => Self::Share(Box::new(AllocationJson {
                cpu_milli: resources.cpu_milli,
                memory_bytes: resources.memory_bytes,
                slots: resources.slots,
                gpu: gpu.map(|HeldGpus { model, count, milli, gpu_mask: cards }| GpusJson {
                    model,
                    count,
                    milli,
                    cards: (0..64).filter(|card| cards & (1 << card) != 0).collect(),
                }),
            })),
        }
    }
}

/// `{"claim":{...}}`: a single claim.
#[derive(Serialize)]
pub(in crate::api::http) struct ClaimResponseBody<'a> {
    claim: ClaimJson<'a>,
}

impl<'a> From<&'a ClaimView> for ClaimResponseBody<'a> {
    fn from(claim: &'a ClaimView) -> Self {
        Self { claim: claim.into() }
    }
}

/// Claim that is queued for capacity or quota.
#[derive(Serialize)]
struct WaitingJson<'a> {
    key: &'a str,
    tenant: &'a str,
    namespace: &'a str,
    pools: Vec<&'a str>,
    reason: &'static str,
    priority: u16,
    ahead: u64,
    waited_ms: Millis,
    left_ms: Millis,
    #[serde(skip_serializing_if = "Option::is_none")]
    estimate_ms: Option<Millis>,
}

impl<'a> From<&'a QueuedClaimView> for WaitingJson<'a> {
    fn from(view: &'a QueuedClaimView) -> Self {
        let QueuedClaimView { id, pools, reason, priority, ahead, queued_at_ms: _, waited_ms, left_ms, estimate_ms } =
            view;
        Self {
            key: id.key(),
            tenant: id.tenant(),
            namespace: id.namespace(),
            pools: pools.iter().map(PoolName::pool).collect(),
            reason,
            priority: *priority,
            ahead: *ahead,
            waited_ms: *waited_ms,
            left_ms: *left_ms,
            estimate_ms: *estimate_ms,
        }
    }
}

/// `{"waiting":{...}}`: a single queued claim.
#[derive(Serialize)]
pub(in crate::api::http) struct WaitingResponseBody<'a> {
    waiting: WaitingJson<'a>,
}

impl<'a> From<&'a QueuedClaimView> for WaitingResponseBody<'a> {
    fn from(view: &'a QueuedClaimView) -> Self {
        Self { waiting: view.into() }
    }
}

/// Queued claim in a list: what a query of its key shows, its state, and when the wait began.
#[derive(Serialize)]
pub(in crate::api::http) struct WaitingItem<'a> {
    state: &'static str,
    #[serde(flatten)]
    waiting: WaitingJson<'a>,
    queued_at_ms: Millis,
}

/// Claim in a list, held or queued. The state tells them apart, and a queued one has neither fence nor worker.
#[derive(Serialize)]
#[serde(untagged)]
enum ClaimItem<'a> {
    Held(Box<ClaimJson<'a>>),
    Waiting(WaitingItem<'a>),
}

/// `{"items":[...], "next_page_token"?}`: a page of claims, held ones first.
#[derive(Serialize)]
pub(in crate::api::http) struct ClaimPageBody<'a> {
    items: Vec<ClaimItem<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    next_page_token: Option<&'a str>,
}

impl<'a> From<&'a ClaimPage> for ClaimPageBody<'a> {
    fn from(page: &'a ClaimPage) -> Self {
        let ClaimPage { items: held, waiting, next } = page;
        let held = held.iter().map(|claim| ClaimItem::Held(Box::new(claim.into())));
        let waiting = waiting.iter().map(|view| {
            let state = ListedState::Waiting.as_str();
            ClaimItem::Waiting(WaitingItem { state, waiting: view.into(), queued_at_ms: view.queued_at_ms })
        });
        Self { items: held.chain(waiting).collect(), next_page_token: next.as_deref() }
    }
}

/// `{"claim","created"}` or `{"error"}`: outcome of one claim of a batch.
#[derive(Serialize)]
#[serde(untagged)]
pub(in crate::api::http) enum ClaimOutcome<'a> {
    Done { claim: Box<ClaimJson<'a>>, created: bool },
    Failed(&'a ApiError),
}

impl<'a> From<&'a Result<ClaimResult, ApiError>> for ClaimOutcome<'a> {
    fn from(outcome: &'a Result<ClaimResult, ApiError>) -> Self {
        match outcome {
            Ok(result) => Self::Done { claim: Box::new((&result.claim).into()), created: result.created },
            Err(failure) => Self::Failed(failure),
        }
    }
}
