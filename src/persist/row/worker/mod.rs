//! Row of a worker, with the claims that it holds.

mod encode;

pub use self::encode::{ClaimRowRef, WorkerRowRef, put_worker};
use super::{RowError, decode_message};
use crate::limits;
use crate::model::{ClaimSpec, GpuCapacity, GpuRequest, ResourceRequirements, WorkerCapacity, WorkerId, WorkerSpec};

/// Worker as it is stored.
#[derive(Clone, PartialEq, prost::Message)]
pub struct WorkerRow {
    /// Incarnation, which grows when the worker restarts.
    #[prost(uint64, tag = "1")]
    pub incarnation: u64,
    /// CPU in thousandths of a core.
    #[prost(uint64, tag = "2")]
    pub cpu_milli: u64,
    /// Amount of memory in bytes.
    #[prost(uint64, tag = "3")]
    pub memory_bytes: u64,
    /// Number of claim slots.
    #[prost(uint64, tag = "4")]
    pub slots: u64,
    /// Model of the GPUs.
    #[prost(string, tag = "5")]
    pub gpu_model: String,
    /// Number of GPUs; 0: none.
    #[prost(uint32, tag = "6")]
    pub gpu_count: u32,
    /// Labels that the worker registered.
    #[prost(btree_map = "string, string", tag = "7")]
    pub labels: std::collections::BTreeMap<String, String>,
    /// Node that the worker runs on; empty: unknown.
    #[prost(string, tag = "8")]
    pub node: String,
    /// Sequence number of the last change.
    #[prost(uint64, tag = "9")]
    pub version: u64,
    /// Sequence number at which the worker became idle, for the order of the idle queue.
    #[prost(uint64, tag = "10")]
    pub idle_seq: u64,
    /// Affinity hash of the last claim; 0: none.
    #[prost(fixed64, tag = "11")]
    pub affinity: u64,
    /// Whether the worker is deleted; the row is kept for a while.
    #[prost(bool, tag = "12")]
    pub deleted: bool,
    /// Claims that the worker holds.
    #[prost(message, repeated, tag = "13")]
    pub claims: Vec<ClaimRow>,
    /// Reasons for which the worker is unschedulable, one bit each.
    #[prost(uint32, tag = "14")]
    pub unschedulable_bits: u32,
    /// Number of unclean stops of the shard when the worker was last known to exist.
    #[prost(uint64, tag = "15")]
    pub verified_at_stop: u64,
    /// Longest time between heartbeats, in milliseconds; 0: none was ever sent.
    #[prost(uint64, tag = "16")]
    pub heartbeat_ttl_ms: u64,
    /// Unix time in milliseconds at which the worker expires; 0: never.
    #[prost(uint64, tag = "17")]
    pub expires_at_ms: u64,
    /// Capacity that was granted to the claim, if that is more than the worker has now.
    #[prost(message, optional, tag = "18")]
    pub promised: Option<CapacityRow>,
}

/// Capacity as it is stored, where it is not part of the row itself.
#[derive(Clone, PartialEq, prost::Message)]
pub struct CapacityRow {
    /// CPU in thousandths of a core.
    #[prost(uint64, tag = "1")]
    pub cpu_milli: u64,
    /// Amount of memory in bytes.
    #[prost(uint64, tag = "2")]
    pub memory_bytes: u64,
    /// Number of claim slots.
    #[prost(uint64, tag = "3")]
    pub slots: u64,
    /// Model of the GPUs.
    #[prost(string, tag = "4")]
    pub gpu_model: String,
    /// Number of GPUs; 0: none.
    #[prost(uint32, tag = "5")]
    pub gpu_count: u32,
}

/// Requested resources of a claim, as they are stored.
#[derive(Clone, PartialEq, prost::Message)]
pub struct ResourcesRow {
    /// CPU in thousandths of a core.
    #[prost(uint64, tag = "1")]
    pub cpu_milli: u64,
    /// Amount of memory in bytes.
    #[prost(uint64, tag = "2")]
    pub memory_bytes: u64,
    /// Number of claim slots.
    #[prost(uint64, tag = "3")]
    pub slots: u64,
    /// First of the acceptable GPU models; empty: any.
    #[prost(string, tag = "4")]
    pub gpu_model: String,
    /// Number of GPUs; 0: none.
    #[prost(uint32, tag = "5")]
    pub gpu_count: u32,
    /// Other acceptable GPU models.
    #[prost(string, repeated, tag = "6")]
    pub gpu_models: Vec<String>,
    /// Thousandths of a GPU; 0: whole GPUs.
    #[prost(uint32, tag = "7")]
    pub gpu_milli: u32,
}

impl From<&ResourceRequirements> for ResourcesRow {
    fn from(resources: &ResourceRequirements) -> Self {
        let gpu = resources.gpu.as_ref();
        let mut models = gpu.into_iter().flat_map(|gpu| &gpu.models).map(ToString::to_string);
        Self {
            cpu_milli: resources.cpu_milli,
            memory_bytes: resources.memory_bytes,
            slots: resources.slots,
            gpu_model: models.next().unwrap_or_default(),
            gpu_count: gpu.map_or(0, |gpu| gpu.count),
            gpu_models: models.collect(),
            gpu_milli: gpu.map(|gpu| gpu.milli).filter(|&milli| milli < limits::GPU_MILLI).unwrap_or(0),
        }
    }
}

impl From<&ResourcesRow> for ResourceRequirements {
    fn from(row: &ResourcesRow) -> Self {
        let first = Some(&row.gpu_model).filter(|model| !model.is_empty());
        let gpu = (row.gpu_count > 0).then(|| GpuRequest {
            models: first.into_iter().chain(&row.gpu_models).map(|model| model.as_str().into()).collect(),
            count: row.gpu_count,
            milli: if row.gpu_milli == 0 { limits::GPU_MILLI } else { row.gpu_milli },
        });
        Self { cpu_milli: row.cpu_milli, memory_bytes: row.memory_bytes, slots: row.slots, gpu }
    }
}

impl From<&WorkerCapacity> for CapacityRow {
    fn from(capacity: &WorkerCapacity) -> Self {
        let gpu = capacity.gpu.as_ref();
        Self {
            cpu_milli: capacity.cpu_milli,
            memory_bytes: capacity.memory_bytes,
            slots: capacity.slots,
            gpu_model: gpu.map_or_else(String::new, |gpu| gpu.model.to_string()),
            gpu_count: gpu.map_or(0, |gpu| gpu.count),
        }
    }
}

impl From<&CapacityRow> for WorkerCapacity {
    fn from(row: &CapacityRow) -> Self {
        capacity(row.cpu_milli, row.memory_bytes, row.slots, &row.gpu_model, row.gpu_count)
    }
}

/// Claim as it is stored inside its worker's row. Its namespace is the pool's.
#[derive(Clone, PartialEq, prost::Message)]
pub struct ClaimRow {
    /// Tenant that the claim belongs to.
    #[prost(string, tag = "1")]
    pub tenant: String,
    /// Key that the claim holds.
    #[prost(string, tag = "2")]
    pub key: String,
    /// Fence of the grant.
    #[prost(uint64, tag = "3")]
    pub fence: u64,
    /// Whether the claim was confirmed; stays true while it is being released.
    #[prost(bool, tag = "4")]
    pub active: bool,
    /// Longest time that a reserved claim stays so, in milliseconds; a deadline restarts in full after a recovery.
    #[prost(uint64, tag = "5")]
    pub reserve_ms: u64,
    /// Whether the claim is being released.
    #[prost(bool, tag = "6")]
    pub releasing: bool,
    /// Longest time active without a renewal, or releasing, in milliseconds; 0: unlimited.
    #[prost(uint64, tag = "7")]
    pub term_ms: u64,
    /// Whether the worker has reported the claim.
    #[prost(bool, tag = "8")]
    pub reported: bool,
    /// GPUs of the worker that the claim holds in a shared pool: bit `i` stands for GPU `i`.
    #[prost(uint64, tag = "9")]
    pub gpu_mask: u64,
    /// Gang of which the claim is a provisional member; 0: none.
    #[prost(uint64, tag = "10")]
    pub gang: u64,
    /// Uid of the pool of the gang's home shard.
    #[prost(uint64, tag = "11")]
    pub gang_pool: u64,
    /// Index of the gang's home shard in that pool.
    #[prost(uint32, tag = "12")]
    pub gang_shard: u32,
    /// Whether the claim is being released because another evicted it.
    #[prost(bool, tag = "13")]
    pub evicted: bool,
    /// Unix time in milliseconds of the grant; rows of older builds do not have it.
    #[prost(uint64, optional, tag = "14")]
    pub created_at_ms: Option<u64>,
    /// Unix time in milliseconds at which the claim became active, if it did and that is known.
    #[prost(uint64, optional, tag = "15")]
    pub activated_at_ms: Option<u64>,
    /// Parts of the request that are kept, if any.
    #[prost(message, optional, tag = "16")]
    pub spec: Option<ClaimSpecRow>,
}

/// Parts of its request that a claim keeps, as they are stored.
#[derive(Clone, PartialEq, prost::Message)]
pub struct ClaimSpecRow {
    /// Labels of the claim.
    #[prost(btree_map = "string, string", tag = "1")]
    pub labels: std::collections::BTreeMap<String, String>,
    /// Resources that were requested.
    #[prost(message, optional, tag = "2")]
    pub resources: Option<ResourcesRow>,
    /// Priority of the claim, from 0.
    #[prost(uint32, tag = "3")]
    pub priority: u32,
    /// Whether the claim may be evicted.
    #[prost(bool, tag = "4")]
    pub preemptible: bool,
    /// Model of the granted GPUs, if the worker has others or none by now; empty: the worker's model.
    #[prost(string, tag = "5")]
    pub granted_model: String,
}

impl From<&ClaimSpec> for ClaimSpecRow {
    fn from(spec: &ClaimSpec) -> Self {
        let resources = (!spec.resources.is_empty()).then(|| (&spec.resources).into());
        let (priority, preemptible) = (spec.priority.into(), spec.preemptible);
        let granted_model = spec.granted_model.as_deref().unwrap_or_default().to_owned();
        Self { labels: spec.labels.clone(), resources, priority, preemptible, granted_model }
    }
}

impl ClaimSpecRow {
    /// Specification that the row encodes.
    #[must_use]
    pub fn to_spec(&self) -> ClaimSpec {
        let resources = self.resources.as_ref().map(ResourceRequirements::from).unwrap_or_default();
        let priority = u16::try_from(self.priority).unwrap_or(limits::PRIORITY_MAX).min(limits::PRIORITY_MAX);
        let granted_model = Some(self.granted_model.as_str()).filter(|model| !model.is_empty()).map(Into::into);
        ClaimSpec { labels: self.labels.clone(), resources, priority, preemptible: self.preemptible, granted_model }
    }
}

fn capacity(cpu_milli: u64, memory_bytes: u64, slots: u64, gpu_model: &str, gpu_count: u32) -> WorkerCapacity {
    let gpu = (gpu_count > 0).then(|| GpuCapacity { model: gpu_model.into(), count: gpu_count });
    WorkerCapacity { cpu_milli, memory_bytes, slots, gpu }
}

/// Reads the row of a worker.
///
/// # Errors
/// Unknown version of the body, or damage.
pub fn decode_worker(id: &str, body: &[u8]) -> Result<WorkerRow, RowError> {
    decode_message(id, body)
}

impl WorkerRow {
    /// Registration that the row encodes.
    ///
    /// # Errors
    /// [`RowError::Damaged`] if the id is not a worker's id.
    pub fn to_spec(&self, id: &str) -> Result<WorkerSpec, RowError> {
        let id = WorkerId::new(id).map_err(|e| RowError::Damaged { id: id.into(), cause: e.to_string() })?;
        let capacity = capacity(self.cpu_milli, self.memory_bytes, self.slots, &self.gpu_model, self.gpu_count);
        let node = (!self.node.is_empty()).then(|| self.node.as_str().into());
        let expires_at_ms = (self.expires_at_ms > 0).then_some(self.expires_at_ms);
        let labels = self.labels.clone();
        Ok(WorkerSpec { id, capacity, labels, node, incarnation: self.incarnation, expires_at_ms })
    }
}

#[cfg(test)]
mod tests {
    use prost::Message as _;

    use super::*;
    use crate::model::GangRef;
    use crate::model::{ClaimId, ClaimState, ClaimTimes, Labels, WorkerRegistration};
    use crate::persist::row::RowFrames;

    #[test]
    fn c16_a_row_is_the_bytes_that_the_derived_encoder_writes() {
        let id = ClaimId::new("ns", "acme", "job-1").unwrap();
        let spec = ClaimSpec { labels: Labels::from([("job".into(), "42".into())]), ..ClaimSpec::default() };
        let claim = ClaimRowRef {
            id: &id,
            fence: 1_795_367_775_325_381,
            state: ClaimState::Active,
            reserve_ms: 0,
            spec: Some(&spec),
            term_ms: 60_000,
            reported: true,
            gpu_mask: 5,
            gang: Some(GangRef { id: 7, pool: 8, shard: 9 }),
            evicted: true,
            times: ClaimTimes::new(Some(1_795_367_775_325), Some(1_795_367_775_327)),
        };
        let reserved = ClaimRowRef {
            state: ClaimState::Reserved,
            reserve_ms: 30_000,
            spec: None,
            gang: None,
            times: ClaimTimes::default(),
            ..claim
        };
        let promised = WorkerCapacity { slots: 3, ..WorkerCapacity::default() };
        let spec = WorkerSpec {
            labels: Labels::from([("zone".into(), "a".into())]),
            node: Some("n1".into()),
            expires_at_ms: Some(1_795_367_999_999),
            ..WorkerSpec::with_id(WorkerId::new("w").unwrap())
        };
        let state = WorkerRowRef {
            registration: &WorkerRegistration { spec },
            version: 11,
            idle_seq: 12,
            affinity: 13,
            deleted: false,
            claims: &[claim, reserved],
            unschedulable_bits: 4,
            verified_at_stop: 5,
            heartbeat_ttl_ms: 60_000,
            promised: Some(&promised),
        };
        let mut bytes = Vec::new();
        put_worker(&mut bytes, &state);
        let frame = RowFrames::new(&bytes).next().unwrap().unwrap();
        let row = decode_worker(frame.id, frame.body.unwrap()).unwrap();
        assert_eq!(row.encode_to_vec(), frame.body.unwrap()[1..], "field by field, in their order");
        let times = row.claims.iter().map(|claim| (claim.created_at_ms, claim.activated_at_ms));
        let known = (Some(1_795_367_775_325), Some(1_795_367_775_327));
        assert_eq!(times.collect::<Vec<_>>(), [known, (None, None)], "a time that is not known is not written");
    }
}
