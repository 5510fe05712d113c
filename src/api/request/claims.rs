//! Request forms for claims and what their holders do.

use serde::Deserialize;
use uuid::Uuid;

use super::{BorrowedText, BoundedTexts, DEFAULT_TENANT, RawItems};
use crate::api::error_table::ApiError;
use crate::limits;
use crate::model::claim_request::{ClaimConstraints, PoolChoice};
use crate::model::{
    AckLevel, ClaimId, ClaimRequest, ClaimSpec, Fence, Labels, Millis, PoolName, ResourceRequirements, WorkerId,
    affinity_hash, check_name, json_object, present, some_object, unique_keys,
};

/// Generates a key for a claim without one.
pub(in crate::api) fn generate_key(text: &mut [u8; uuid::fmt::Hyphenated::LENGTH]) -> &str {
    Uuid::now_v7().hyphenated().encode_lower(text)
}

/// Claim of one worker.
#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields)]
pub(in crate::api) struct ClaimBody<'a> {
    #[serde(borrow)]
    pub(in crate::api) namespace: BorrowedText<'a>,
    // `null` is rejected: a caller that meant to send a key would get a new claim with every retry.
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

/// Node constraints of a claim.
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

/// Preferred nodes, and the time in milliseconds for which no other node is acceptable.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(in crate::api) struct PreferredWaitBody<'a> {
    #[serde(borrow)]
    pub(in crate::api) nodes: BoundedTexts<'a, { limits::CLAIM_NODES_MAX }>,
    pub(in crate::api) ms: Millis,
}

impl ClaimBody<'_> {
    /// Checks every name and converts the body.
    pub(in crate::api) fn into_request(self) -> Result<ClaimRequest, ApiError> {
        let tenant = self.tenant.as_ref().map_or(DEFAULT_TENANT, |text| &text.0);
        let mut key_buffer = [0; _];
        let key = match &self.key {
            Some(text) => &*text.0,
            None => generate_key(&mut key_buffer),
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

    /// Chooses exactly one of the three fields that name pools.
    fn pool_choice(&self) -> Result<PoolChoice, ApiError> {
        let namespace = &self.namespace.0;
        match (&self.pool, &self.pools, &self.pool_selector) {
            (Some(pool), None, None) => Ok(PoolName::new(namespace, &pool.0)?.into()),
            (None, Some(pools), None) => {
                let name = |(i, pool): (usize, &BorrowedText<'_>)| {
                    let invalid =
                        |error| ApiError { field: Some(format!("pools[{i}]").into()), ..ApiError::from(error) };
                    check_name("pools", &pool.0).map_err(invalid)?;
                    Ok(PoolName::new(namespace, &pool.0)?)
                };
                Ok(PoolChoice::Listed(pools.0.iter().enumerate().map(name).collect::<Result<_, ApiError>>()?))
            }
            (None, None, Some(selector)) => {
                check_name("namespace", namespace)?;
                Ok(PoolChoice::Selected(selector.0.to_string()))
            }
            (None, None, None) => Err(ApiError::invalid("pool", "is required, unless pools or pool_selector is given")),
            (pool, _, selector) => {
                let field = if pool.is_none() || selector.is_none() { "pools" } else { "pool_selector" };
                Err(ApiError::invalid(field, "only one of pool, pools and pool_selector may be given"))
            }
        }
    }

    /// Collects constraints beyond any worker; `None` if the claim has none.
    fn into_constraints(self) -> Result<Option<Box<ClaimConstraints>>, ApiError> {
        let Self { class, resources, selector, node, worker, must_match, labels, priority, preemptible, .. } = self;
        let priority = u16::try_from(priority.unwrap_or(0)).unwrap_or(u16::MAX);
        let is_constrained =
            class.is_some() || resources.is_some() || selector.is_some() || node.is_some() || worker.is_some();
        if !is_constrained && !must_match && !preemptible && priority == 0 && labels.is_empty() {
            return Ok(None);
        }
        let text = |text: BorrowedText<'_>| text.0.into_owned();
        let (required, mut preferred, then_wait) =
            node.map_or_else(Default::default, |node| (node.required, node.preferred, node.preferred_then_wait));
        let mut preferred_wait_ms = 0;
        if let Some(PreferredWaitBody { nodes, ms }) = then_wait {
            if !preferred.0.is_empty() || nodes.0.is_empty() || ms == 0 {
                let message = "needs nodes and ms, and excludes node.preferred";
                return Err(ApiError::invalid("node.preferred_then_wait", message));
            }
            (preferred, preferred_wait_ms) = (nodes, ms);
        }
        let worker = worker.map(|id| {
            let invalid = |error| ApiError { field: Some("worker".into()), ..ApiError::from(error) };
            WorkerId::new(&id.0).map_err(invalid)
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

/// Execution mode of a batch of claims.
#[derive(Deserialize)]
#[serde(rename_all = "snake_case")]
pub(in crate::api) enum BatchMode {
    /// Each item succeeds or fails separately.
    Independent,
    /// Either all items succeed, or none.
    AllOrNothing,
}

/// Batch of claims with their mode.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(in crate::api) struct ClaimsBatch<'a> {
    pub(in crate::api) mode: BatchMode,
    #[serde(borrow)]
    pub(in crate::api) items: RawItems<'a>,
}

/// Body of `:confirm`: the fence that identifies the holder.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(in crate::api) struct HolderBody<'a> {
    pub(in crate::api) fence: Fence,
    #[serde(borrow, default, deserialize_with = "present")]
    pub(in crate::api) tenant: Option<BorrowedText<'a>>,
}

impl HolderBody<'_> {
    /// Returns the claim's identity and its fence, both checked.
    pub(in crate::api) fn claim_and_fence(&self, namespace: &str, key: &str) -> Result<(ClaimId, Fence), ApiError> {
        holder(namespace, self.tenant.as_ref(), key, self.fence)
    }
}

/// Returns a claim's identity and its fence, both checked.
pub(in crate::api) fn holder(
    namespace: &str,
    tenant: Option<&BorrowedText<'_>>,
    key: &str,
    fence: Fence,
) -> Result<(ClaimId, Fence), ApiError> {
    let fence = check_fence(fence)?;
    let tenant = tenant.map_or(DEFAULT_TENANT, |text| &text.0);
    Ok((ClaimId::new(namespace, tenant, key)?, fence))
}

/// Body of `:renew`, with a new lifetime.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(in crate::api) struct RenewBody<'a> {
    pub(in crate::api) fence: Fence,
    #[serde(borrow, default, deserialize_with = "present")]
    pub(in crate::api) tenant: Option<BorrowedText<'a>>,
    #[serde(default, deserialize_with = "present")]
    pub(in crate::api) ttl_ms: Option<Millis>,
}

/// Body of `:resize`, with the new resources.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(in crate::api) struct ResizeBody<'a> {
    pub(in crate::api) fence: Fence,
    #[serde(borrow, default, deserialize_with = "present")]
    pub(in crate::api) tenant: Option<BorrowedText<'a>>,
    #[serde(deserialize_with = "json_object")]
    pub(in crate::api) resources: ResourceRequirements,
}

/// Phase of a release in two calls.
#[derive(Deserialize, Clone, Copy, PartialEq, Eq)]
#[serde(rename_all = "snake_case")]
pub(in crate::api) enum ReleasePhase {
    /// Holder is done; the worker needs cleaning.
    Begin,
    /// Worker is clean and can be claimed again.
    Finish,
}

/// Body of `:release`, with the phase.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(in crate::api) struct ReleaseBody<'a> {
    pub(in crate::api) fence: Fence,
    #[serde(borrow, default, deserialize_with = "present")]
    pub(in crate::api) tenant: Option<BorrowedText<'a>>,
    #[serde(default, deserialize_with = "present")]
    pub(in crate::api) phase: Option<ReleasePhase>,
}

/// Checks that a fence is within its limit.
pub(in crate::api) fn check_fence(fence: Fence) -> Result<Fence, ApiError> {
    if fence > limits::FENCE_MAX {
        return Err(ApiError::invalid("fence", format!("must be at most {}", limits::FENCE_MAX)));
    }
    Ok(fence)
}
