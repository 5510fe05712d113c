//! Claims on the wire.

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::{TENANT_DEFAULT, Text};
use crate::api::error_table::Failure;
use crate::api::http::read::{Items, Texts};
use crate::limits;
use crate::model::claim_request::{ClaimAsk, PoolChoice};
use crate::model::{
    Ack, Capacity, ClaimId, ClaimRequest, ClaimSpec, ClaimState, ClaimView, Fence, Held, HeldCards, Labels, Millis,
    PoolName, Resources, Taken, WaitingView, WorkerId, affinity_hash, check_name, is_zero, json_object, present,
    some_object, unique_keys,
};

/// A key for a claim that brings none.
pub(in crate::api) fn fresh_key(text: &mut [u8; uuid::fmt::Hyphenated::LENGTH]) -> &str {
    Uuid::now_v7().hyphenated().encode_lower(text)
}

/// A request for one worker.
#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields)]
pub(in crate::api) struct ClaimBody<'a> {
    #[serde(borrow)]
    pub(in crate::api) namespace: Text<'a>,
    // `null` is refused: a caller that meant to send a key would get a new claim at every retry.
    #[serde(borrow, default, deserialize_with = "present")]
    pub(in crate::api) key: Option<Text<'a>>,
    #[serde(borrow, default, deserialize_with = "present")]
    pub(in crate::api) tenant: Option<Text<'a>>,
    #[serde(borrow, default, deserialize_with = "present")]
    pub(in crate::api) pool: Option<Text<'a>>,
    #[serde(borrow, default, deserialize_with = "present")]
    pub(in crate::api) pools: Option<Texts<'a, { limits::CLAIM_POOLS_MAX }>>,
    #[serde(borrow, default, deserialize_with = "present")]
    pub(in crate::api) pool_selector: Option<Text<'a>>,
    #[serde(borrow, default, deserialize_with = "present")]
    pub(in crate::api) class: Option<Text<'a>>,
    #[serde(default, deserialize_with = "some_object")]
    pub(in crate::api) resources: Option<Resources>,
    #[serde(borrow, default, deserialize_with = "present")]
    pub(in crate::api) selector: Option<Text<'a>>,
    #[serde(borrow, default, deserialize_with = "some_object")]
    pub(in crate::api) node: Option<NodeBody<'a>>,
    #[serde(borrow, default, deserialize_with = "present")]
    pub(in crate::api) worker: Option<Text<'a>>,
    #[serde(borrow, default, deserialize_with = "present")]
    pub(in crate::api) affinity: Option<Text<'a>>,
    #[serde(default, deserialize_with = "present")]
    pub(in crate::api) reserve_ms: Option<Millis>,
    #[serde(default, deserialize_with = "present")]
    pub(in crate::api) ttl_ms: Option<Millis>,
    #[serde(default, deserialize_with = "present")]
    pub(in crate::api) ack: Option<Ack>,
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
pub(in crate::api) struct NodeBody<'a> {
    #[serde(borrow, default)]
    pub(in crate::api) required: Texts<'a, { limits::CLAIM_NODES_MAX }>,
    #[serde(borrow, default)]
    pub(in crate::api) preferred: Texts<'a, { limits::CLAIM_NODES_MAX }>,
    #[serde(borrow, default, deserialize_with = "some_object")]
    pub(in crate::api) preferred_then_wait: Option<ThenWaitBody<'a>>,
}

/// Preferred nodes, and for how long only they will do.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(in crate::api) struct ThenWaitBody<'a> {
    #[serde(borrow)]
    pub(in crate::api) nodes: Texts<'a, { limits::CLAIM_NODES_MAX }>,
    pub(in crate::api) ms: Millis,
}

impl ClaimBody<'_> {
    /// Checks every name.
    pub(in crate::api) fn request(self) -> Result<ClaimRequest, Failure> {
        let tenant = self.tenant.as_ref().map_or(TENANT_DEFAULT, |text| &text.0);
        let mut made = [0; _];
        let key = match &self.key {
            Some(text) => &*text.0,
            None => fresh_key(&mut made),
        };
        let affinity = match &self.affinity {
            Some(text) => check_name("affinity", &text.0).map(|()| &*text.0)?,
            None => key,
        };
        Ok(ClaimRequest {
            id: ClaimId::new(&self.namespace.0, tenant, key)?,
            pools: self.pools()?,
            affinity: affinity_hash(affinity),
            reserve_ms: self.reserve_ms,
            ttl_ms: self.ttl_ms,
            ack: self.ack,
            wait_ms: self.wait_ms.unwrap_or(0),
            ask: self.ask()?,
        })
    }

    /// Exactly one of the three ways to name pools.
    fn pools(&self) -> Result<PoolChoice, Failure> {
        let namespace = &self.namespace.0;
        match (&self.pool, &self.pools, &self.pool_selector) {
            (Some(pool), None, None) => Ok(PoolName::new(namespace, &pool.0)?.into()),
            (None, Some(pools), None) => {
                let name = |(i, pool): (usize, &Text<'_>)| {
                    let wrong =
                        |refusal| Failure { field: Some(format!("pools[{i}]").into()), ..Failure::from(refusal) };
                    check_name("pools", &pool.0).map_err(wrong)?;
                    Ok(PoolName::new(namespace, &pool.0)?)
                };
                Ok(PoolChoice::Listed(pools.0.iter().enumerate().map(name).collect::<Result<_, Failure>>()?))
            }
            (None, None, Some(selector)) => {
                check_name("namespace", namespace)?;
                Ok(PoolChoice::Selected(selector.0.to_string()))
            }
            (None, None, None) => Err(Failure::invalid("pool", "is required, or else pools or pool_selector")),
            (pool, _, selector) => {
                let field = if pool.is_none() || selector.is_none() { "pools" } else { "pool_selector" };
                Err(Failure::invalid(field, "only one of pool, pools and pool_selector may be given"))
            }
        }
    }

    /// What it asks beyond any worker, if anything.
    fn ask(self) -> Result<Option<Box<ClaimAsk>>, Failure> {
        let Self { class, resources, selector, node, worker, must_match, labels, priority, preemptible, .. } = self;
        let priority = u16::try_from(priority.unwrap_or(0)).unwrap_or(u16::MAX);
        let asks = class.is_some() || resources.is_some() || selector.is_some() || node.is_some() || worker.is_some();
        if !asks && !must_match && !preemptible && priority == 0 && labels.is_empty() {
            return Ok(None);
        }
        let text = |text: Text<'_>| text.0.into_owned();
        let (required, mut preferred, then_wait) =
            node.map_or_else(Default::default, |node| (node.required, node.preferred, node.preferred_then_wait));
        let mut preferred_wait_ms = 0;
        if let Some(ThenWaitBody { nodes, ms }) = then_wait {
            if !preferred.0.is_empty() || nodes.0.is_empty() || ms == 0 {
                let message = "needs nodes and ms, and no node.preferred beside it";
                return Err(Failure::invalid("node.preferred_then_wait", message));
            }
            (preferred, preferred_wait_ms) = (nodes, ms);
        }
        let worker = worker.map(|id| {
            let wrong = |refusal| Failure { field: Some("worker".into()), ..Failure::from(refusal) };
            WorkerId::new(&id.0).map_err(wrong)
        });
        Ok(Some(Box::new(ClaimAsk {
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
            must_match,
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
    pub(in crate::api::http) items: Items<'a>,
}

/// The body of `:confirm`.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(in crate::api) struct HolderBody<'a> {
    pub(in crate::api) fence: Fence,
    #[serde(borrow, default, deserialize_with = "present")]
    pub(in crate::api) tenant: Option<Text<'a>>,
}

impl HolderBody<'_> {
    /// Whose claim, and under which fence.
    pub(in crate::api) fn holder(&self, namespace: &str, key: &str) -> Result<(ClaimId, Fence), Failure> {
        holder(namespace, self.tenant.as_ref(), key, self.fence)
    }
}

/// Whose claim, and under which fence.
pub(in crate::api) fn holder(
    namespace: &str,
    tenant: Option<&Text<'_>>,
    key: &str,
    number: Fence,
) -> Result<(ClaimId, Fence), Failure> {
    let fence = fence(number)?;
    let tenant = tenant.map_or(TENANT_DEFAULT, |text| &text.0);
    Ok((ClaimId::new(namespace, tenant, key)?, fence))
}

/// The body of `:renew`.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(in crate::api::http) struct RenewBody<'a> {
    pub(in crate::api::http) fence: Fence,
    #[serde(borrow, default, deserialize_with = "present")]
    pub(in crate::api::http) tenant: Option<Text<'a>>,
    #[serde(default, deserialize_with = "present")]
    pub(in crate::api::http) ttl_ms: Option<Millis>,
}

/// The body of `:resize`.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(in crate::api::http) struct ResizeBody<'a> {
    pub(in crate::api::http) fence: Fence,
    #[serde(borrow, default, deserialize_with = "present")]
    pub(in crate::api::http) tenant: Option<Text<'a>>,
    #[serde(deserialize_with = "json_object")]
    pub(in crate::api::http) resources: Resources,
}

/// One of two steps of a release.
#[derive(Deserialize, Clone, Copy, PartialEq, Eq)]
#[serde(rename_all = "snake_case")]
pub(in crate::api) enum Phase {
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
    pub(in crate::api::http) tenant: Option<Text<'a>>,
    #[serde(default, deserialize_with = "present")]
    pub(in crate::api::http) phase: Option<Phase>,
}

/// `{"released":...}`: whether the key held a claim.
#[derive(Serialize)]
pub(in crate::api::http) struct ReleaseAnswer {
    pub(in crate::api::http) released: bool,
}

/// Checks a fence.
pub(in crate::api) fn fence(fence: Fence) -> Result<Fence, Failure> {
    if fence > limits::FENCE_MAX {
        return Err(Failure::invalid("fence", format!("must be at most {}", limits::FENCE_MAX)));
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
    resources: HeldJson<'a>,
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
enum HeldJson<'a> {
    Whole(&'a Capacity),
    Share(Box<ShareJson<'a>>),
}

/// A share of a worker.
#[derive(Serialize)]
struct ShareJson<'a> {
    #[serde(skip_serializing_if = "is_zero")]
    cpu_milli: u64,
    #[serde(skip_serializing_if = "is_zero")]
    memory_bytes: u64,
    #[serde(skip_serializing_if = "is_zero")]
    slots: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    gpu: Option<CardsJson<'a>>,
}

/// Which cards of the worker, and how much of each.
#[derive(Serialize)]
struct CardsJson<'a> {
    model: &'a str,
    count: u32,
    milli: u32,
    cards: Vec<u32>,
}

impl<'a> From<Held<'a>> for HeldJson<'a> {
    fn from(held: Held<'a>) -> Self {
        match held {
            Held::Whole(capacity) => Self::Whole(capacity),
            Held::Share { resources, gpu } => Self::Share(Box::new(ShareJson {
                cpu_milli: resources.cpu_milli,
                memory_bytes: resources.memory_bytes,
                slots: resources.slots,
                gpu: gpu.map(|HeldCards { model, count, milli, cards }| CardsJson {
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
pub(in crate::api::http) struct ClaimAnswer<'a> {
    claim: ClaimJson<'a>,
}

impl<'a> From<&'a ClaimView> for ClaimAnswer<'a> {
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
pub(in crate::api::http) struct WaitingAnswer<'a> {
    waiting: WaitingJson<'a>,
}

impl<'a> From<&'a WaitingView> for WaitingAnswer<'a> {
    fn from(view: &'a WaitingView) -> Self {
        let WaitingView { id, pools, reason, priority, ahead, waited_ms, left_ms, estimate_ms } = view;
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
    Failed(&'a Failure),
}

impl<'a> From<&'a Result<Taken, Failure>> for ClaimOutcome<'a> {
    fn from(outcome: &'a Result<Taken, Failure>) -> Self {
        match outcome {
            Ok(taken) => Self::Done { claim: Box::new((&taken.claim).into()), created: taken.created },
            Err(failure) => Self::Failed(failure),
        }
    }
}
