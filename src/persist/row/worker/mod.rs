//! The row of a worker, with the claim that it holds.

mod encode;

pub use self::encode::{ClaimRowRef, WorkerRowRef, put_worker};
use super::{RowError, decode_message};
use crate::limits;
use crate::model::{ClaimSpec, GpuCapacity, GpuRequest, ResourceRequirements, WorkerCapacity, WorkerId, WorkerSpec};

/// A worker as it is stored.
#[derive(Clone, PartialEq, prost::Message)]
pub struct WorkerRow {
    /// Grows when the worker starts anew.
    #[prost(uint64, tag = "1")]
    pub incarnation: u64,
    /// Thousandths of a core.
    #[prost(uint64, tag = "2")]
    pub cpu_milli: u64,
    /// Bytes of memory.
    #[prost(uint64, tag = "3")]
    pub memory_bytes: u64,
    /// Places.
    #[prost(uint64, tag = "4")]
    pub slots: u64,
    /// Model of its cards.
    #[prost(string, tag = "5")]
    pub gpu_model: String,
    /// Number of its cards; 0: none.
    #[prost(uint32, tag = "6")]
    pub gpu_count: u32,
    /// Free labels.
    #[prost(btree_map = "string, string", tag = "7")]
    pub labels: std::collections::BTreeMap<String, String>,
    /// Its machine; empty: unknown.
    #[prost(string, tag = "8")]
    pub node: String,
    /// Sequence number of its last change.
    #[prost(uint64, tag = "9")]
    pub version: u64,
    /// Sequence number of its becoming idle, for the order of the idle queue.
    #[prost(uint64, tag = "10")]
    pub idle_seq: u64,
    /// Affinity of its last claim; 0: none.
    #[prost(fixed64, tag = "11")]
    pub affinity: u64,
    /// True: deleted, and remembered for a while.
    #[prost(bool, tag = "12")]
    pub deleted: bool,
    /// What it holds.
    #[prost(message, repeated, tag = "13")]
    pub claims: Vec<ClaimRow>,
    /// Why it is not offered, one bit a reason.
    #[prost(uint32, tag = "14")]
    pub unschedulable_bits: u32,
    /// How many unclean stops of its shard had been when something last spoke for it.
    #[prost(uint64, tag = "15")]
    pub vouched: u64,
    /// How long it may be silent; 0: it never sent a heartbeat.
    #[prost(uint64, tag = "16")]
    pub heartbeat_ttl_ms: u64,
    /// Its own end of life, in unix milliseconds; 0: it said none.
    #[prost(uint64, tag = "17")]
    pub expires_at_ms: u64,
    /// What its claim was promised, if that is more than it has now.
    #[prost(message, optional, tag = "18")]
    pub promised: Option<CapacityRow>,
}

/// A capacity as it is stored, where it does not stand in the row itself.
#[derive(Clone, PartialEq, prost::Message)]
pub struct CapacityRow {
    /// Thousandths of a core.
    #[prost(uint64, tag = "1")]
    pub cpu_milli: u64,
    /// Bytes of memory.
    #[prost(uint64, tag = "2")]
    pub memory_bytes: u64,
    /// Places.
    #[prost(uint64, tag = "3")]
    pub slots: u64,
    /// Model of its cards.
    #[prost(string, tag = "4")]
    pub gpu_model: String,
    /// Number of its cards; 0: none.
    #[prost(uint32, tag = "5")]
    pub gpu_count: u32,
}

/// What a claim asked for, as it is stored.
#[derive(Clone, PartialEq, prost::Message)]
pub struct ResourcesRow {
    /// Thousandths of a core.
    #[prost(uint64, tag = "1")]
    pub cpu_milli: u64,
    /// Bytes of memory.
    #[prost(uint64, tag = "2")]
    pub memory_bytes: u64,
    /// Places.
    #[prost(uint64, tag = "3")]
    pub slots: u64,
    /// The first of the models that will do; empty: any.
    #[prost(string, tag = "4")]
    pub gpu_model: String,
    /// Number of cards; 0: none.
    #[prost(uint32, tag = "5")]
    pub gpu_count: u32,
    /// The other models that will do.
    #[prost(string, repeated, tag = "6")]
    pub gpu_models: Vec<String>,
    /// Thousandths of a card; 0: whole cards.
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

/// A claim as it is stored, inside its worker's row. Its namespace is the pool's.
#[derive(Clone, PartialEq, prost::Message)]
pub struct ClaimRow {
    /// Whose.
    #[prost(string, tag = "1")]
    pub tenant: String,
    /// Whose.
    #[prost(string, tag = "2")]
    pub key: String,
    /// Number of the grant.
    #[prost(uint64, tag = "3")]
    pub fence: u64,
    /// False: reserved. True also while it is being released.
    #[prost(bool, tag = "4")]
    pub active: bool,
    /// How long it may stay reserved, while it is; a deadline starts anew in full after a recovery.
    #[prost(uint64, tag = "5")]
    pub reserve_ms: u64,
    /// It is being released.
    #[prost(bool, tag = "6")]
    pub releasing: bool,
    /// How long it may stay active without a renewal, or releasing; 0: for ever.
    #[prost(uint64, tag = "7")]
    pub term_ms: u64,
    /// Its worker named it.
    #[prost(bool, tag = "8")]
    pub reported: bool,
    /// In a shared pool, which cards of its worker it holds: bit `i` stands for card `i`.
    #[prost(uint64, tag = "9")]
    pub gpu_mask: u64,
    /// The gang for which it is held provisionally; 0: none.
    #[prost(uint64, tag = "10")]
    pub gang: u64,
    /// Uid of the pool of the gang's home.
    #[prost(uint64, tag = "11")]
    pub gang_pool: u64,
    /// Index of the home there.
    #[prost(uint32, tag = "12")]
    pub gang_shard: u32,
    /// It is being released because another claim evicted it.
    #[prost(bool, tag = "13")]
    pub evicted: bool,
    /// Unix time in milliseconds at which its worker was given to it, if that is known: an older row does not say.
    #[prost(uint64, optional, tag = "14")]
    pub created_at_ms: Option<u64>,
    /// Unix time in milliseconds at which it became active, if it has and that is known.
    #[prost(uint64, optional, tag = "15")]
    pub activated_at_ms: Option<u64>,
    /// What it keeps of its request, if anything.
    #[prost(message, optional, tag = "16")]
    pub spec: Option<ClaimSpecRow>,
}

/// What a claim keeps of its request, as it is stored.
#[derive(Clone, PartialEq, prost::Message)]
pub struct ClaimSpecRow {
    /// Its labels.
    #[prost(btree_map = "string, string", tag = "1")]
    pub labels: std::collections::BTreeMap<String, String>,
    /// What it asked for.
    #[prost(message, optional, tag = "2")]
    pub resources: Option<ResourcesRow>,
    /// Its priority.
    #[prost(uint32, tag = "3")]
    pub priority: u32,
    /// It may be evicted.
    #[prost(bool, tag = "4")]
    pub preemptible: bool,
    /// Model of the cards that it was granted, if its worker has others by now, or none; empty: those of its worker.
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
    /// What is in it.
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

/// Reads a worker's row.
///
/// # Errors
/// An unknown version, or damage.
pub fn decode_worker(id: &str, body: &[u8]) -> Result<WorkerRow, RowError> {
    decode_message(id, body)
}

impl WorkerRow {
    /// The registration in it.
    ///
    /// # Errors
    /// `Damaged` if the id is not a worker's id.
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
            vouched: 5,
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
