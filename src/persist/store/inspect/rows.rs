//! Rows of workers and claims as they are shown.

use std::num::NonZeroU64;

use serde::Serialize;

use crate::model::unschedulable_bits;
use crate::model::{ClaimSpec, Labels, ResourceRequirements, WorkerCapacity};
use crate::persist::row::{ClaimRow, ClaimSpecRow, WorkerRow};

/// One worker, as its row has it.
#[derive(Debug, Serialize)]
pub struct WorkerContents {
    /// Id of the worker.
    pub id: String,
    /// Version, which grows with every change of the worker.
    pub version: u64,
    /// Incarnation, which grows when the worker starts anew.
    pub incarnation: u64,
    /// Whether the worker is deleted; the row refuses what still comes from it.
    pub deleted: bool,
    /// Claims as `tenant/key#fence state created_at_ms=N activated_at_ms=N`, without the times that are not known.
    pub claims: Vec<String>,
    /// Claims with all that is stored of them.
    pub held: Vec<ClaimContents>,
    /// Capacity that the worker registered.
    pub capacity: WorkerCapacity,
    /// Capacity that the claim was promised, if that is more than the worker has now.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub promised: Option<WorkerCapacity>,
    /// Labels that the worker registered.
    pub labels: Labels,
    /// Machine that the worker runs on, if that is known.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub node: Option<String>,
    /// Reasons for which the worker is not offered, as far as they follow from what is stored.
    pub unschedulable: Vec<String>,
    /// Number of unclean stops of the shard when something last spoke for the worker.
    pub vouched: u64,
    /// Longest silence of the worker, in milliseconds; none before its first heartbeat.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub heartbeat_ttl_ms: Option<NonZeroU64>,
    /// Unix time in milliseconds at which the worker ends by itself.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub expires_at_ms: Option<u64>,
    /// Sequence number at which the worker became idle.
    pub idle_seq: u64,
    /// Hash of the affinity of the last claim, if that had one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub affinity: Option<NonZeroU64>,
}

/// One claim, as the row of its worker has it.
#[derive(Debug, Serialize)]
pub struct ClaimContents {
    /// Tenant that the claim belongs to.
    pub tenant: String,
    /// Key that the claim holds.
    pub key: String,
    /// Fence, the number of the grant.
    pub fence: u64,
    /// State: `reserved`, `active` or `releasing`.
    pub state: &'static str,
    /// Longest time for which the claim stays reserved, in milliseconds.
    pub reserve_ms: u64,
    /// Longest time for which the claim stays active without a renewal, or releasing, in milliseconds; none: for ever.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub term_ms: Option<NonZeroU64>,
    /// Whether a list of the worker has named the claim.
    pub named: bool,
    /// Indices of the worker's GPUs that the claim holds, in a shared pool.
    pub gpus: Vec<u32>,
    /// Gang for which the claim is held provisionally.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub gang: Option<GangContents>,
    /// Whether the claim is being released because another one evicted it.
    pub evicted: bool,
    /// Labels of the claim's request.
    pub labels: Labels,
    /// Resources that the claim asked for.
    pub resources: ResourceRequirements,
    /// Priority of the claim; lower ones may be evicted for it.
    pub priority: u16,
    /// Whether the claim may be evicted.
    pub preemptible: bool,
    /// Model of the GPUs that were granted, if the worker has others by now, or none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub granted_model: Option<std::sync::Arc<str>>,
    /// Unix time in milliseconds at which the claim was granted, if that is known.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub created_at_ms: Option<u64>,
    /// Unix time in milliseconds at which the claim became active, if that is known.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub activated_at_ms: Option<u64>,
}

/// A gang that a claim is a provisional member of.
#[derive(Debug, Serialize)]
pub struct GangContents {
    /// Number of the gang.
    pub id: u64,
    /// Uid of the pool that the gang's home is in.
    pub pool: u64,
    /// Index of the gang's home among the shards of that pool.
    pub shard: u32,
}

impl WorkerContents {
    /// Contents of a worker's row, in a shard that had so many `unclean` stops.
    ///
    /// # Errors
    /// The row does not describe a worker.
    pub(super) fn of_row(id: &str, row: WorkerRow, unclean: u64) -> Result<Self, String> {
        let spec = row.to_spec(id).map_err(|error| error.to_string())?;
        let WorkerRow {
            incarnation,
            // These make up `spec.capacity`.
            cpu_milli: _,
            memory_bytes: _,
            slots: _,
            gpu_model: _,
            gpu_count: _,
            labels,
            node,
            version,
            idle_seq,
            affinity,
            deleted,
            claims,
            unschedulable_bits: bars,
            vouched,
            heartbeat_ttl_ms,
            expires_at_ms: _,
            promised,
        } = row;
        let held: Vec<ClaimContents> = claims.into_iter().map(ClaimContents::of_row).collect();
        let claims = held.iter().map(|claim| {
            let ClaimContents { tenant, key, fence, state, created_at_ms, activated_at_ms, .. } = claim;
            let time =
                |name: &str, at_ms: &Option<u64>| at_ms.map(|at_ms| format!(" {name}={at_ms}")).unwrap_or_default();
            let (created, activated) = (time("created_at_ms", created_at_ms), time("activated_at_ms", activated_at_ms));
            format!("{tenant}/{key}#{fence} {state}{created}{activated}")
        });
        let is_unvouched = !deleted && vouched < unclean;
        Ok(Self {
            id: id.to_owned(),
            version,
            incarnation,
            deleted,
            claims: claims.collect(),
            held,
            capacity: spec.capacity,
            promised: promised.as_ref().map(WorkerCapacity::from),
            labels,
            node: Some(node).filter(|node| !node.is_empty()),
            unschedulable: unschedulable(bars, if is_unvouched { unschedulable_bits::UNVERIFIED } else { 0 }),
            vouched,
            heartbeat_ttl_ms: NonZeroU64::new(heartbeat_ttl_ms),
            expires_at_ms: spec.expires_at_ms,
            idle_seq,
            affinity: NonZeroU64::new(affinity),
        })
    }
}

impl ClaimContents {
    fn of_row(row: ClaimRow) -> Self {
        let ClaimRow {
            tenant,
            key,
            fence,
            active,
            reserve_ms,
            releasing,
            term_ms,
            reported: named,
            gpu_mask: cards,
            gang,
            gang_pool,
            gang_shard,
            evicted,
            created_at_ms,
            activated_at_ms,
            spec,
        } = row;
        let state = match (active, releasing) {
            (_, true) => "releasing",
            (true, false) => "active",
            (false, false) => "reserved",
        };
        let gang = (gang != 0).then_some(GangContents { id: gang, pool: gang_pool, shard: gang_shard });
        let spec = spec.as_ref().map(ClaimSpecRow::to_spec).unwrap_or_default();
        let ClaimSpec { labels, resources, priority, preemptible, granted_model } = spec;
        let gpus = (0..u64::BITS).filter(|card| cards >> card & 1 == 1).collect();
        Self {
            tenant,
            key,
            fence,
            state,
            reserve_ms,
            term_ms: NonZeroU64::new(term_ms),
            named,
            gpus,
            gang,
            evicted,
            labels,
            resources,
            priority,
            preemptible,
            granted_model,
            created_at_ms,
            activated_at_ms,
        }
    }
}

/// Words for reasons: for those that a row has as bits, and for the `derived` ones that follow from its other fields. A
/// bit that is not known is of a later version.
fn unschedulable(stored: u32, derived: u8) -> Vec<String> {
    let known = [
        (unschedulable_bits::CORDONED, "cordoned"),
        (unschedulable_bits::DRAINING, "draining"),
        (unschedulable_bits::LOST, "lost"),
        (unschedulable_bits::UNTRUSTED, "suspect"),
        (unschedulable_bits::STOPPING, "stopping"),
    ];
    const _: () = assert!(
        unschedulable_bits::PERSISTED
            == unschedulable_bits::CORDONED
                | unschedulable_bits::DRAINING
                | unschedulable_bits::LOST
                | unschedulable_bits::SUSPECT
                | unschedulable_bits::STOPPING,
        "every reason that is stored has a word"
    );
    let bars = stored & u32::from(unschedulable_bits::PERSISTED) | u32::from(derived);
    let has = |bar: u8| bars & u32::from(bar) != 0;
    let words = known.iter().filter(|(bar, _)| has(*bar)).map(|(_, word)| (*word).to_owned());
    let unknown = stored & !u32::from(unschedulable_bits::PERSISTED);
    words.chain((unknown != 0).then(|| format!("unknown ({unknown:#x})"))).collect()
}
