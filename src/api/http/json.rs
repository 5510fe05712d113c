//! The shapes on the wire. What comes in refuses unknown fields; what goes out borrows from the model.

use std::borrow::Cow;
use std::collections::BTreeMap;

use serde::de::IgnoredAny;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::read::{Items, List, Texts};
use crate::api::outcome::Failure;
use crate::ask::{ClaimAsk, PoolChoice};
use crate::limits;
use crate::model::{
    Ack, Beat, Capacity, ClaimId, ClaimRequest, ClaimSpec, ClaimState, ClaimView, Fence, Heard, Labels, Liveness,
    Millis, Page, PoolName, PoolSpec, PoolStatus, Registered, Registration, RunningClaim, Schedulability, Seq,
    ShardStatus, Taken, Trust, WorkerId, WorkerSpec, WorkerView, affinity_hash, check_name, json_object, present,
    some_object,
};

/// Tenant of a request that names none.
pub(in crate::api) const TENANT_DEFAULT: &str = "default";

/// A string that borrows from the body unless it holds an escape.
#[derive(Deserialize)]
#[serde(transparent)]
pub(in crate::api) struct Text<'a>(#[serde(borrow)] pub(in crate::api) Cow<'a, str>);

/// A request for one worker.
#[derive(Deserialize)]
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
    pub(in crate::api) resources: Option<Capacity>,
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
    #[serde(default)]
    pub(in crate::api) labels: Labels,
    #[serde(default, deserialize_with = "present")]
    pub(in crate::api) wait_ms: Option<Millis>,
    #[serde(default, deserialize_with = "present")]
    pub(in crate::api) priority: Option<IgnoredAny>,
    #[serde(default, deserialize_with = "present")]
    pub(in crate::api) preemptible: Option<IgnoredAny>,
}

/// On which nodes.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(in crate::api) struct NodeBody<'a> {
    #[serde(borrow, default)]
    pub(in crate::api) required: Texts<'a, { limits::CLAIM_NODES_MAX }>,
    #[serde(borrow, default)]
    pub(in crate::api) preferred: Texts<'a, { limits::CLAIM_NODES_MAX }>,
    #[serde(default, deserialize_with = "present")]
    pub(in crate::api) preferred_then_wait: Option<IgnoredAny>,
}

impl ClaimBody<'_> {
    /// Checks every name.
    pub(in crate::api) fn request(self) -> Result<ClaimRequest, Failure> {
        self.refuse_what_is_not_built()?;
        let tenant = self.tenant.as_ref().map_or(TENANT_DEFAULT, |text| &text.0);
        let mut made = [0; uuid::fmt::Hyphenated::LENGTH];
        let key = match &self.key {
            Some(text) => &*text.0,
            None => Uuid::now_v7().hyphenated().encode_lower(&mut made),
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
            ask: self.ask()?,
        })
    }

    fn refuse_what_is_not_built(&self) -> Result<(), Failure> {
        let waits = self.node.as_ref().is_some_and(|node| node.preferred_then_wait.is_some());
        let asked = [
            ("wait_ms", self.wait_ms.is_some_and(|ms| ms > 0)),
            ("priority", self.priority.is_some()),
            ("preemptible", self.preemptible.is_some()),
            ("node.preferred_then_wait", waits),
        ];
        match asked.into_iter().find(|&(_, asked)| asked) {
            Some((field, _)) => Err(Failure::invalid(field, "is not built in this version")),
            None => Ok(()),
        }
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
        let Self { class, resources, selector, node, worker, must_match, labels, .. } = self;
        let asks = class.is_some() || resources.is_some() || selector.is_some() || node.is_some() || worker.is_some();
        if !asks && !must_match && labels.is_empty() {
            return Ok(None);
        }
        let text = |text: Text<'_>| text.0.into_owned();
        let (required, preferred) = node.map_or_else(Default::default, |node| (node.required, node.preferred));
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
            spec: ClaimSpec { labels, resources: resources.unwrap_or_default() },
            must_match,
        })))
    }
}

/// How a batch of claims is carried out.
#[derive(Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum BatchMode {
    /// Each item for itself.
    Independent,
    /// All items or none. Not built yet.
    AllOrNothing,
}

/// Many claims.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct ClaimsBatch<'a> {
    pub(super) mode: BatchMode,
    #[serde(borrow)]
    pub(super) items: Items<'a>,
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
pub(super) struct RenewBody<'a> {
    pub(super) fence: Fence,
    #[serde(borrow, default, deserialize_with = "present")]
    pub(super) tenant: Option<Text<'a>>,
    #[serde(default, deserialize_with = "present")]
    pub(super) ttl_ms: Option<Millis>,
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
pub(super) struct ReleaseBody<'a> {
    pub(super) fence: Fence,
    #[serde(borrow, default, deserialize_with = "present")]
    pub(super) tenant: Option<Text<'a>>,
    #[serde(default, deserialize_with = "present")]
    pub(super) phase: Option<Phase>,
}

/// A claim that a worker says it runs. Its namespace is the pool's.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(in crate::api) struct NamedBody<'a> {
    #[serde(borrow, default, deserialize_with = "present")]
    pub(in crate::api) tenant: Option<Text<'a>>,
    #[serde(borrow)]
    pub(in crate::api) key: Text<'a>,
    pub(in crate::api) fence: Fence,
}

/// What a worker says it runs.
pub(in crate::api) type NamedBodies<'a> = List<NamedBody<'a>, { limits::NAMED_CLAIMS_MAX }>;

fn running(namespace: &str, claims: &NamedBodies<'_>) -> Result<Vec<RunningClaim>, Failure> {
    let read = claims.0.iter().enumerate().map(|(index, named)| {
        let tenant = named.tenant.as_ref().map_or(TENANT_DEFAULT, |text| &text.0);
        let id = ClaimId::new(namespace, tenant, &named.key.0).map_err(Failure::from);
        let fence = fence(named.fence);
        id.and_then(|id| Ok(RunningClaim { id, fence: fence? })).map_err(|failure| failure.in_item("claims", index))
    });
    read.collect()
}

/// Checks a fence.
pub(super) fn fence(fence: Fence) -> Result<Fence, Failure> {
    if fence > limits::FENCE_MAX {
        return Err(Failure::invalid("fence", format!("must be at most {}", limits::FENCE_MAX)));
    }
    Ok(fence)
}

/// What a worker says of itself.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(in crate::api) struct HeartbeatBody<'a> {
    #[serde(default)]
    pub(in crate::api) incarnation: u64,
    #[serde(default, deserialize_with = "present")]
    pub(in crate::api) seq: Option<u64>,
    #[serde(borrow, default, deserialize_with = "present")]
    pub(in crate::api) claims: Option<NamedBodies<'a>>,
}

impl HeartbeatBody<'_> {
    /// Checks every name.
    pub(in crate::api) fn beat(&self, namespace: &str) -> Result<Beat, Failure> {
        let claims = self.claims.as_ref().map(|claims| running(namespace, claims)).transpose()?;
        Ok(Beat { incarnation: self.incarnation, seq: self.seq, claims })
    }
}

/// A registration; the id is in the path.
#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields, default)]
pub(in crate::api) struct WorkerBody<'a> {
    #[serde(deserialize_with = "json_object")]
    pub(in crate::api) capacity: Capacity,
    pub(in crate::api) labels: Labels,
    #[serde(deserialize_with = "present")]
    pub(in crate::api) node: Option<String>,
    pub(in crate::api) incarnation: u64,
    #[serde(deserialize_with = "present")]
    pub(in crate::api) expires_at_ms: Option<Millis>,
    #[serde(borrow, deserialize_with = "present")]
    pub(in crate::api) claims: Option<NamedBodies<'a>>,
}

impl WorkerBody<'_> {
    /// Checks every field.
    pub(in crate::api) fn registration(self, namespace: &str, id: &str) -> Result<Registration, Failure> {
        let Self { capacity, labels, node, incarnation, expires_at_ms, claims } = self;
        let (id, node) = (WorkerId::new(id)?, node.map(Into::into));
        let spec = WorkerSpec { id, capacity, labels, node, incarnation, expires_at_ms };
        spec.check()?;
        Ok(Registration { spec, claims: claims.map(|claims| running(namespace, &claims)).transpose()? })
    }
}

/// A registration in a batch.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct WorkerItem<'a> {
    #[serde(borrow)]
    id: Text<'a>,
    #[serde(default, deserialize_with = "json_object")]
    capacity: Capacity,
    #[serde(default)]
    labels: Labels,
    #[serde(default, deserialize_with = "present")]
    node: Option<String>,
    #[serde(default)]
    incarnation: u64,
    #[serde(default, deserialize_with = "present")]
    expires_at_ms: Option<Millis>,
    #[serde(borrow, default, deserialize_with = "present")]
    claims: Option<NamedBodies<'a>>,
}

impl WorkerItem<'_> {
    /// Checks every field.
    pub(super) fn registration(self, namespace: &str) -> Result<Registration, Failure> {
        let Self { id, capacity, labels, node, incarnation, expires_at_ms, claims } = self;
        WorkerBody { capacity, labels, node, incarnation, expires_at_ms, claims }.registration(namespace, &id.0)
    }
}

/// Many registrations.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct WorkersBatch<'a> {
    #[serde(borrow)]
    pub(super) workers: Items<'a>,
}

/// A body that says nothing: `{}`, or none at all.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct NoBody {}

/// `{}`.
#[derive(Serialize)]
pub(super) struct Empty {}

/// A claim.
#[derive(Serialize)]
pub(super) struct ClaimJson<'a> {
    key: &'a str,
    tenant: &'a str,
    fence: Fence,
    namespace: &'a str,
    pool: &'a str,
    worker: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    node: Option<&'a str>,
    state: ClaimState,
    resources: &'a Capacity,
    #[serde(skip_serializing_if = "Option::is_none")]
    labels: Option<&'a Labels>,
    #[serde(skip_serializing_if = "Option::is_none")]
    expires_at_ms: Option<Millis>,
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
            // A claim of an exclusive pool takes the whole worker.
            resources: &worker.capacity,
            labels: claim.spec.as_ref().map(|spec| &spec.labels).filter(|labels| !labels.is_empty()),
            expires_at_ms: claim.expires_at_ms,
        }
    }
}

/// `{"claim":{...}}`.
#[derive(Serialize)]
pub(super) struct ClaimAnswer<'a> {
    claim: ClaimJson<'a>,
}

impl<'a> From<&'a ClaimView> for ClaimAnswer<'a> {
    fn from(claim: &'a ClaimView) -> Self {
        Self { claim: claim.into() }
    }
}

/// A worker.
#[derive(Serialize)]
pub(super) struct WorkerJson<'a> {
    id: &'a str,
    capacity: &'a Capacity,
    labels: &'a Labels,
    #[serde(skip_serializing_if = "Option::is_none")]
    node: Option<&'a str>,
    incarnation: u64,
    occupancy: &'static str,
    schedulability: Schedulability,
    liveness: Liveness,
    trust: Trust,
    overcommitted: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    expires_at_ms: Option<Millis>,
    version: Seq,
    shard: u16,
    claims: Vec<ClaimJson<'a>>,
}

impl<'a> From<&'a WorkerView> for WorkerJson<'a> {
    fn from(worker: &'a WorkerView) -> Self {
        let spec = &worker.card.spec;
        Self {
            id: spec.id.as_str(),
            capacity: &spec.capacity,
            labels: &spec.labels,
            node: spec.node.as_deref(),
            incarnation: spec.incarnation,
            occupancy: if worker.busy { "busy" } else { "idle" },
            schedulability: worker.schedulability,
            liveness: worker.liveness,
            trust: worker.trust,
            overcommitted: worker.overcommitted,
            expires_at_ms: spec.expires_at_ms,
            version: worker.version,
            shard: worker.shard,
            claims: worker.claims.iter().map(Into::into).collect(),
        }
    }
}

/// `{"worker":{...}}`; after a registration that named claims also those that the worker should not run.
#[derive(Serialize)]
pub(super) struct WorkerAnswer<'a> {
    worker: WorkerJson<'a>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    stop: Vec<NamedJson<'a>>,
}

impl<'a> From<&'a WorkerView> for WorkerAnswer<'a> {
    fn from(worker: &'a WorkerView) -> Self {
        Self { worker: worker.into(), stop: Vec::new() }
    }
}

impl<'a> From<&'a Registered> for WorkerAnswer<'a> {
    fn from(registered: &'a Registered) -> Self {
        let stop = registered.stop.iter().map(Into::into).collect();
        Self { worker: (&registered.worker).into(), stop }
    }
}

/// A claim by its name and number.
#[derive(Serialize)]
pub(super) struct NamedJson<'a> {
    key: &'a str,
    tenant: &'a str,
    fence: Fence,
}

impl<'a> From<&'a RunningClaim> for NamedJson<'a> {
    fn from(claim: &'a RunningClaim) -> Self {
        Self { key: claim.id.key(), tenant: claim.id.tenant(), fence: claim.fence }
    }
}

/// `{"claims":[...],"stop":[...]}`.
#[derive(Serialize)]
pub(super) struct HeartbeatAnswer<'a> {
    claims: Vec<ClaimJson<'a>>,
    stop: Vec<NamedJson<'a>>,
}

impl<'a> From<&'a Heard> for HeartbeatAnswer<'a> {
    fn from(heard: &'a Heard) -> Self {
        Self {
            claims: heard.claims.iter().map(Into::into).collect(),
            stop: heard.stop.iter().map(Into::into).collect(),
        }
    }
}

/// `{"cleared":n,"suspect":n}`.
#[derive(Serialize)]
pub(super) struct ClearedAnswer {
    pub(super) cleared: u64,
    pub(super) suspect: u64,
}

#[derive(Serialize)]
struct WorkerCounts {
    total: u64,
    idle: u64,
    busy: u64,
    cordoned: u64,
    draining: u64,
    lost: u64,
    suspect: u64,
}

#[derive(Serialize)]
struct ClaimCounts {
    reserved: u64,
    active: u64,
    releasing: u64,
}

#[derive(Serialize)]
struct GpuCounts {
    total: u64,
    free: u64,
}

/// A pool with its figures.
#[derive(Serialize)]
pub(super) struct PoolJson<'a> {
    namespace: &'a str,
    name: &'a str,
    spec: &'a PoolSpec,
    workers: WorkerCounts,
    claims: ClaimCounts,
    capacity: &'a Capacity,
    free: &'a Capacity,
    gpus: BTreeMap<&'a str, GpuCounts>,
    /// Not in listings: a page of them could be hundreds of megabytes.
    #[serde(skip_serializing_if = "Option::is_none")]
    shards: Option<&'a [ShardStatus]>,
}

impl<'a> From<&'a PoolStatus> for PoolJson<'a> {
    fn from(pool: &'a PoolStatus) -> Self {
        let counts = pool.counts();
        Self {
            namespace: pool.name.namespace(),
            name: pool.name.pool(),
            spec: &pool.spec,
            workers: WorkerCounts {
                total: counts.total,
                idle: counts.idle,
                busy: counts.busy,
                cordoned: counts.cordoned,
                draining: counts.draining,
                lost: counts.lost,
                suspect: counts.suspect,
            },
            claims: ClaimCounts { reserved: counts.reserved, active: counts.active, releasing: counts.releasing },
            capacity: &pool.capacity,
            free: &pool.free,
            gpus: pool.gpus.iter().map(|(model, &(total, free))| (model.as_str(), GpuCounts { total, free })).collect(),
            shards: None,
        }
    }
}

/// `{"pool":{...}}`.
#[derive(Serialize)]
pub(super) struct PoolAnswer<'a> {
    pool: PoolJson<'a>,
}

impl<'a> From<&'a PoolStatus> for PoolAnswer<'a> {
    fn from(pool: &'a PoolStatus) -> Self {
        Self { pool: PoolJson { shards: Some(&pool.shards), ..pool.into() } }
    }
}

/// `{"items":[...], "next_page_token"?}`.
#[derive(Serialize)]
pub(super) struct PageJson<'a, J> {
    items: Vec<J>,
    #[serde(skip_serializing_if = "Option::is_none")]
    next_page_token: Option<&'a str>,
}

impl<'a, T, J: From<&'a T>> From<&'a Page<T>> for PageJson<'a, J> {
    fn from(page: &'a Page<T>) -> Self {
        Self { items: page.items.iter().map(Into::into).collect(), next_page_token: page.next.as_deref() }
    }
}

/// `{"items":[...]}`: one outcome an item, in order.
#[derive(Serialize)]
pub(super) struct Outcomes<J> {
    pub(super) items: Vec<J>,
}

/// `{"claim","created"}` or `{"error"}`.
#[derive(Serialize)]
#[serde(untagged)]
pub(super) enum ClaimOutcome<'a> {
    Done { claim: ClaimJson<'a>, created: bool },
    Failed(&'a Failure),
}

impl<'a> From<&'a Result<Taken, Failure>> for ClaimOutcome<'a> {
    fn from(outcome: &'a Result<Taken, Failure>) -> Self {
        match outcome {
            Ok(taken) => Self::Done { claim: (&taken.claim).into(), created: taken.created },
            Err(failure) => Self::Failed(failure),
        }
    }
}

/// `{"worker","created"}` or `{"error"}`.
#[derive(Serialize)]
#[serde(untagged)]
pub(super) enum WorkerOutcome<'a> {
    Done {
        worker: WorkerJson<'a>,
        #[serde(skip_serializing_if = "Vec::is_empty")]
        stop: Vec<NamedJson<'a>>,
        created: bool,
    },
    Failed(&'a Failure),
}

impl<'a> From<&'a Result<Registered, Failure>> for WorkerOutcome<'a> {
    fn from(outcome: &'a Result<Registered, Failure>) -> Self {
        match outcome {
            Ok(registered) => {
                let WorkerAnswer { worker, stop } = registered.into();
                Self::Done { worker, stop, created: registered.created }
            }
            Err(failure) => Self::Failed(failure),
        }
    }
}
