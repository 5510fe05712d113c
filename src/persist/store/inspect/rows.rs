//! Rows of workers and claims, as they are shown.

use std::num::NonZeroU64;

use serde::Serialize;

use crate::model::unschedulable_bits;
use crate::model::{ClaimSpec, Labels, ResourceRequirements, WorkerCapacity};
use crate::persist::row::{ClaimRow, ClaimSpecRow, RowError, WorkerRow};

/// Worker, as stored in its row.
#[derive(Debug, Serialize)]
pub struct WorkerContents {
    /// Id of the worker.
    pub id: String,
    /// Version, which grows with every change of the worker.
    pub version: u64,
    /// Incarnation, which grows when the worker restarts.
    pub incarnation: u64,
    /// Whether the worker is deleted; its row rejects late requests of the worker.
    pub deleted: bool,
    /// Claims as `tenant/key#fence state created_at_ms=N activated_at_ms=N`, without unknown times.
    pub claims: Vec<String>,
    /// Claims with all of their stored fields.
    pub held: Vec<ClaimContents>,
    /// Capacity that the worker registered.
    pub capacity: WorkerCapacity,
    /// Capacity that was granted to the claim, if that is more than the worker has now.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub promised: Option<WorkerCapacity>,
    /// Labels that the worker registered.
    pub labels: Labels,
    /// Node that the worker runs on, if that is known.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub node: Option<String>,
    /// Reasons for which the worker is unschedulable, as far as they follow from its row.
    pub unschedulable: Vec<String>,
    /// Number of unclean stops of the shard when the worker was last known to exist.
    #[serde(rename = "vouched")]
    pub verified_at_stop: u64,
    /// Longest time between heartbeats, in milliseconds; none before the first one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub heartbeat_ttl_ms: Option<NonZeroU64>,
    /// Unix time in milliseconds at which the worker expires.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub expires_at_ms: Option<u64>,
    /// Sequence number at which the worker became idle.
    pub idle_seq: u64,
    /// Hash of the affinity of the last claim, if that had one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub affinity: Option<NonZeroU64>,
}

/// Claim, as stored in the row of its worker.
#[derive(Debug, Serialize)]
pub struct ClaimContents {
    /// Tenant that the claim belongs to.
    pub tenant: String,
    /// Key that the claim holds.
    pub key: String,
    /// Fence of the grant.
    pub fence: u64,
    /// State: `reserved`, `active` or `releasing`.
    pub state: &'static str,
    /// Longest time that the claim stays reserved, in milliseconds.
    pub reserve_ms: u64,
    /// Longest time active without a renewal, or releasing, in milliseconds; none: unlimited.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub term_ms: Option<NonZeroU64>,
    /// Whether the worker has reported the claim.
    pub named: bool,
    /// Indices of the worker's GPUs that the claim holds, in a shared pool.
    pub gpus: Vec<u32>,
    /// Gang of which the claim is a provisional member.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub gang: Option<GangContents>,
    /// Whether the claim is being released because another one evicted it.
    pub evicted: bool,
    /// Labels of the claim's request.
    pub labels: Labels,
    /// Resources that the claim requested.
    pub resources: ResourceRequirements,
    /// Priority of the claim; lower ones may be evicted for it.
    pub priority: u16,
    /// Whether the claim may be evicted.
    pub preemptible: bool,
    /// Model of the granted GPUs, if the worker has others or none by now.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub granted_model: Option<std::sync::Arc<str>>,
    /// Unix time in milliseconds at which the claim was granted, if that is known.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub created_at_ms: Option<u64>,
    /// Unix time in milliseconds at which the claim became active, if that is known.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub activated_at_ms: Option<u64>,
}

/// Gang that a claim is a provisional member of.
#[derive(Debug, Serialize)]
pub struct GangContents {
    /// Number of the gang.
    pub id: u64,
    /// Uid of the pool of the gang's home shard.
    pub pool: u64,
    /// Index of the gang's home shard in that pool.
    pub shard: u32,
}

impl WorkerContents {
    /// Contents of a worker's row, in a shard with this number of `unclean` stops.
    ///
    /// # Errors
    /// The row does not describe a worker.
    pub(super) fn of_row(id: &str, row: WorkerRow, unclean: u64) -> Result<Self, RowError> {
        let spec = row.to_spec(id)?;
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
            unschedulable_bits: stored_bits,
            verified_at_stop,
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
        let is_unverified = !deleted && verified_at_stop < unclean;
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
            unschedulable: unschedulable(stored_bits, if is_unverified { unschedulable_bits::UNVERIFIED } else { 0 }),
            verified_at_stop,
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
            gpu_mask,
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
        let gpus = (0..u64::BITS).filter(|gpu| gpu_mask >> gpu & 1 == 1).collect();
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

/// Names of the reasons that a row stores as bits and of the `derived` ones that follow from its other fields. An unknown bit
/// is of a later version.
fn unschedulable(stored: u32, derived: u8) -> Vec<String> {
    let names = [
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
        "every stored reason has a name"
    );
    let bits = stored & u32::from(unschedulable_bits::PERSISTED) | u32::from(derived);
    let is_set = |bit: u8| bits & u32::from(bit) != 0;
    let reasons = names.iter().filter(|(bit, _)| is_set(*bit)).map(|(_, name)| (*name).to_owned());
    let unknown = stored & !u32::from(unschedulable_bits::PERSISTED);
    reasons.chain((unknown != 0).then(|| format!("unknown ({unknown:#x})"))).collect()
}
