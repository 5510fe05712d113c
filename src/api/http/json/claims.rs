//! Claims on the wire.

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::{BorrowedText, DEFAULT_TENANT};
use crate::api::error_table::ApiError;
use crate::api::http::extract::{BoundedTexts, RawItems};
use crate::limits;
use crate::model::claim_request::{ClaimConstraints, PoolChoice};
use crate::model::{
    AckLevel, ClaimId, ClaimRequest, ClaimResult, ClaimSpec, ClaimState, ClaimView, Fence, HeldGpus, HeldResources,
    Labels, Millis, PoolName, QueuedClaimView, ResourceRequirements, WorkerCapacity, WorkerId, affinity_hash,
    check_name, is_zero, json_object, present, some_object, unique_keys,
};

/// A key for a claim that brings none.
pub(in crate::api) fn generate_key(text: &mut [u8; uuid::fmt::Hyphenated::LENGTH]) -> &str {
    Uuid::now_v7().hyphenated().encode_lower(text)
}

/// A request for one worker.
#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields)]
pub(in crate::api) struct ClaimBody<'a> {
    #[serde(borrow)]
    pub(in crate::api) namespace: BorrowedText<'a>,
    // `null` is refused: a caller that meant to send a key would get a new claim at every retry.
    #[serde(borrow, default, deserialize_with = "present")]
    pub(in crate::api) key: Option<BorrowedText<'a>>,
    #[serde(borrow, default, deserialize_with = "present")]
    pub(in crate::api) tenant: Option<BorrowedText<'a>>,
    #[serde(borrow, default, deserialize_with = "present")]
    pub(in crate::api) pool: Option<BorrowedText<'a>>,
    #[serde(borrow, default, deserialize_with = "present")]
    pub(in crate::api) pools: Option<BoundedTexts<'a, { limits::CLAIM_POOLS_MAX }>>,
    #[serde(borrow, default, deserialize_with = "present")]
    pub(in crate::api) pool_selector: Option<BorrowedText<'a>>,
    #[serde(borrow, default, deserialize_with = "present")]
    pub(in crate::api) class: Option<BorrowedText<'a>>,
    #[serde(default, deserialize_with = "some_object")]
    pub(in crate::api) resources: Option<ResourceRequirements>,
    #[serde(borrow, default, deserialize_with = "present")]
    pub(in crate::api) selector: Option<BorrowedText<'a>>,
    #[serde(borrow, default, deserialize_with = "some_object")]
    pub(in crate::api) node: Option<NodeConstraintsBody<'a>>,
    #[serde(borrow, default, deserialize_with = "present")]
    pub(in crate::api) worker: Option<BorrowedText<'a>>,
    #[serde(borrow, default, deserialize_with = "present")]
    pub(in crate::api) affinity: Option<BorrowedText<'a>>,
    #[serde(default, deserialize_with = "present")]
    pub(in crate::api) reserve_ms: Option<Millis>,
    #[serde(default, deserialize_with = "present")]
    pub(in crate::api) ttl_ms: Option<Millis>,
    #[serde(default, deserialize_with = "present")]
    pub(in crate::api) ack: Option<AckLevel>,
    #[serde(default)]
    pub(in crate::api) must_match: bool,
    #[serde(default, deserialize_with = "unique_keys")]
    pub(in crate::api) labels: Labels,
    #[serde(default, deserialize_with = "present")]
    pub(in crate::api) wait_ms: Option<Millis>,
    #[serde(default, deserialize_with = "present")]
    pub(in crate::api) priority: Option<u64>,
    #[serde(default)]
    pub(in crate::api) preemptible: bool,
}

/// On which nodes.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(in crate::api) struct NodeConstraintsBody<'a> {
    #[serde(borrow, default)]
    pub(in crate::api) required: BoundedTexts<'a, { limits::CLAIM_NODES_MAX }>,
    #[serde(borrow, default)]
    pub(in crate::api) preferred: BoundedTexts<'a, { limits::CLAIM_NODES_MAX }>,
    #[serde(borrow, default, deserialize_with = "some_object")]
    pub(in crate::api) preferred_then_wait: Option<PreferredWaitBody<'a>>,
}

/// Preferred nodes, and for how long only they will do.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(in crate::api) struct PreferredWaitBody<'a> {
    #[serde(borrow)]
    pub(in crate::api) nodes: BoundedTexts<'a, { limits::CLAIM_NODES_MAX }>,
    pub(in crate::api) ms: Millis,
}

impl ClaimBody<'_> {
    /// Checks every name.
    pub(in crate::api) fn into_request(self) -> Result<ClaimRequest, ApiError> {
        let tenant = self.tenant.as_ref().map_or(DEFAULT_TENANT, |text| &text.0);
        let mut made = [0; _];
        let key = match &self.key {
            Some(text) => &*text.0,
            None => generate_key(&mut made),
        };
        let affinity = match &self.affinity {
            Some(text) => check_name("affinity", &text.0).map(|()| &*text.0)?,
            None => key,
        };
        Ok(ClaimRequest {
            id: ClaimId::new(&self.namespace.0, tenant, key)?,
            pools: self.pool_choice()?,
            affinity: affinity_hash(affinity),
            reserve_ms: self.reserve_ms,
            ttl_ms: self.ttl_ms,
            ack: self.ack,
            wait_ms: self.wait_ms.unwrap_or(0),
            constraints: self.into_constraints()?,
        })
    }

    /// Exactly one of the three ways to name pools.
    fn pool_choice(&self) -> Result<PoolChoice, ApiError> {
        let namespace = &self.namespace.0;
        match (&self.pool, &self.pools, &self.pool_selector) {
            (Some(pool), None, None) => Ok(PoolName::new(namespace, &pool.0)?.into()),
            (None, Some(pools), None) => {
                let name = |(i, pool): (usize, &BorrowedText<'_>)| {
                    let wrong =
                        |refusal| ApiError { field: Some(format!("pools[{i}]").into()), ..ApiError::from(refusal) };
                    check_name("pools", &pool.0).map_err(wrong)?;
                    Ok(PoolName::new(namespace, &pool.0)?)
                };
                Ok(PoolChoice::Listed(pools.0.iter().enumerate().map(name).collect::<Result<_, ApiError>>()?))
            }
            (None, None, Some(selector)) => {
                check_name("namespace", namespace)?;
                Ok(PoolChoice::Selected(selector.0.to_string()))
            }
            (None, None, None) => Err(ApiError::invalid("pool", "is required, or else pools or pool_selector")),
            (pool, _, selector) => {
                let field = if pool.is_none() || selector.is_none() { "pools" } else { "pool_selector" };
                Err(ApiError::invalid(field, "only one of pool, pools and pool_selector may be given"))
            }
        }
    }

    /// What it asks beyond any worker, if anything.
    fn into_constraints(self) -> Result<Option<Box<ClaimConstraints>>, ApiError> {
        let Self { class, resources, selector, node, worker, must_match, labels, priority, preemptible, .. } = self;
        let priority = u16::try_from(priority.unwrap_or(0)).unwrap_or(u16::MAX);
        let asks = class.is_some() || resources.is_some() || selector.is_some() || node.is_some() || worker.is_some();
        if !asks && !must_match && !preemptible && priority == 0 && labels.is_empty() {
            return Ok(None);
        }
        let text = |text: BorrowedText<'_>| text.0.into_owned();
        let (required, mut preferred, then_wait) =
            node.map_or_else(Default::default, |node| (node.required, node.preferred, node.preferred_then_wait));
        let mut preferred_wait_ms = 0;
        if let Some(PreferredWaitBody { nodes, ms }) = then_wait {
            if !preferred.0.is_empty() || nodes.0.is_empty() || ms == 0 {
                let message = "needs nodes and ms, and no node.preferred beside it";
                return Err(ApiError::invalid("node.preferred_then_wait", message));
            }
            (preferred, preferred_wait_ms) = (nodes, ms);
        }
        let worker = worker.map(|id| {
            let wrong = |refusal| ApiError { field: Some("worker".into()), ..ApiError::from(refusal) };
            WorkerId::new(&id.0).map_err(wrong)
        });
        Ok(Some(Box::new(ClaimConstraints {
            selector: selector.map(text),
            nodes_required: required.0.into_iter().map(|node| node.0.into()).collect(),
            nodes_preferred: preferred.0.into_iter().map(|node| node.0.into()).collect(),
            worker: worker.transpose()?,
            class: class.map(text),
            preferred_wait_ms,
            spec: ClaimSpec {
                labels,
                resources: resources.unwrap_or_default(),
                priority,
                preemptible,
                ..ClaimSpec::default()
            },
            require_same_resources: must_match,
        })))
    }
}

/// How a batch of claims is carried out.
#[derive(Deserialize)]
#[serde(rename_all = "snake_case")]
pub(in crate::api::http) enum BatchMode {
    /// Each item for itself.
    Independent,
    /// All items or none.
    AllOrNothing,
}

/// Many claims.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(in crate::api::http) struct ClaimsBatch<'a> {
    pub(in crate::api::http) mode: BatchMode,
    #[serde(borrow)]
    pub(in crate::api::http) items: RawItems<'a>,
}

/// The body of `:confirm`.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(in crate::api) struct HolderBody<'a> {
    pub(in crate::api) fence: Fence,
    #[serde(borrow, default, deserialize_with = "present")]
    pub(in crate::api) tenant: Option<BorrowedText<'a>>,
}

impl HolderBody<'_> {
    /// Whose claim, and under which fence.
    pub(in crate::api) fn claim_and_fence(&self, namespace: &str, key: &str) -> Result<(ClaimId, Fence), ApiError> {
        holder(namespace, self.tenant.as_ref(), key, self.fence)
    }
}

/// Whose claim, and under which fence.
pub(in crate::api) fn holder(
    namespace: &str,
    tenant: Option<&BorrowedText<'_>>,
    key: &str,
    number: Fence,
) -> Result<(ClaimId, Fence), ApiError> {
    let fence = check_fence(number)?;
    let tenant = tenant.map_or(DEFAULT_TENANT, |text| &text.0);
    Ok((ClaimId::new(namespace, tenant, key)?, fence))
}

/// The body of `:renew`.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(in crate::api::http) struct RenewBody<'a> {
    pub(in crate::api::http) fence: Fence,
    #[serde(borrow, default, deserialize_with = "present")]
    pub(in crate::api::http) tenant: Option<BorrowedText<'a>>,
    #[serde(default, deserialize_with = "present")]
    pub(in crate::api::http) ttl_ms: Option<Millis>,
}

/// The body of `:resize`.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(in crate::api::http) struct ResizeBody<'a> {
    pub(in crate::api::http) fence: Fence,
    #[serde(borrow, default, deserialize_with = "present")]
    pub(in crate::api::http) tenant: Option<BorrowedText<'a>>,
    #[serde(deserialize_with = "json_object")]
    pub(in crate::api::http) resources: ResourceRequirements,
}

/// One of two steps of a release.
#[derive(Deserialize, Clone, Copy, PartialEq, Eq)]
#[serde(rename_all = "snake_case")]
pub(in crate::api) enum ReleasePhase {
    /// The holder is done; the worker has to be cleaned.
    Begin,
    /// The worker is clean.
    Finish,
}

/// The body of `:release`.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(in crate::api::http) struct ReleaseBody<'a> {
    pub(in crate::api::http) fence: Fence,
    #[serde(borrow, default, deserialize_with = "present")]
    pub(in crate::api::http) tenant: Option<BorrowedText<'a>>,
    #[serde(default, deserialize_with = "present")]
    pub(in crate::api::http) phase: Option<ReleasePhase>,
}

/// `{"released":...}`: whether the key held a claim.
#[derive(Serialize)]
pub(in crate::api::http) struct ReleaseResponseBody {
    pub(in crate::api::http) released: bool,
}

/// Checks a fence.
pub(in crate::api) fn check_fence(fence: Fence) -> Result<Fence, ApiError> {
    if fence > limits::FENCE_MAX {
        return Err(ApiError::invalid("fence", format!("must be at most {}", limits::FENCE_MAX)));
    }
    Ok(fence)
}

/// A claim.
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

/// What a claim holds.
#[derive(Serialize)]
#[serde(untagged)]
enum HeldResourcesJson<'a> {
    Whole(&'a WorkerCapacity),
    Share(Box<AllocationJson<'a>>),
}

/// A share of a worker.
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

/// Which cards of the worker, and how much of each.
#[derive(Serialize)]
struct GpusJson<'a> {
    model: &'a str,
    count: u32,
    milli: u32,
    cards: Vec<u32>,
}

impl<'a> From<HeldResources<'a>> for HeldResourcesJson<'a> {
    fn from(held: HeldResources<'a>) -> Self {
        match held {
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

/// `{"claim":{...}}`.
#[derive(Serialize)]
pub(in crate::api::http) struct ClaimResponseBody<'a> {
    claim: ClaimJson<'a>,
}

impl<'a> From<&'a ClaimView> for ClaimResponseBody<'a> {
    fn from(claim: &'a ClaimView) -> Self {
        Self { claim: claim.into() }
    }
}

/// A claim that waits.
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

/// `{"waiting":{...}}`.
#[derive(Serialize)]
pub(in crate::api::http) struct WaitingResponseBody<'a> {
    waiting: WaitingJson<'a>,
}

impl<'a> From<&'a QueuedClaimView> for WaitingResponseBody<'a> {
    fn from(view: &'a QueuedClaimView) -> Self {
        let QueuedClaimView { id, pools, reason, priority, ahead, waited_ms, left_ms, estimate_ms } = view;
        Self {
            waiting: WaitingJson {
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
            },
        }
    }
}

/// `{"claim","created"}` or `{"error"}`.
#[derive(Serialize)]
#[serde(untagged)]
pub(in crate::api::http) enum ClaimOutcome<'a> {
    Done { claim: Box<ClaimJson<'a>>, created: bool },
    Failed(&'a ApiError),
}

impl<'a> From<&'a Result<ClaimResult, ApiError>> for ClaimOutcome<'a> {
    fn from(outcome: &'a Result<ClaimResult, ApiError>) -> Self {
        match outcome {
            Ok(taken) => Self::Done { claim: Box::new((&taken.claim).into()), created: taken.created },
            Err(failure) => Self::Failed(failure),
        }
    }
}
