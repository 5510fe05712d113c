//! Encoding of a worker's row from what the engine keeps, without an allocation.

use prost::bytes::BufMut;
use prost::encoding::{WireType, encode_key, encode_varint, encoded_len_varint, key_len};

use super::{CapacityRow, ClaimSpecRow};
use crate::model::GangRef;
use crate::model::{ClaimId, ClaimSpec, ClaimState, ClaimTimes, WorkerCapacity, WorkerRegistration};
use crate::persist::row::{RowKind, put_frame};

/// A worker's state to be written, borrowed from the engine. Writing it allocates nothing.
#[derive(Debug, Clone, Copy)]
pub struct WorkerRowRef<'a> {
    /// Its registration.
    pub registration: &'a WorkerRegistration,
    /// Sequence number of its last change.
    pub version: u64,
    /// Sequence number of its becoming idle.
    pub idle_seq: u64,
    /// Affinity of its last claim.
    pub affinity: u64,
    /// Deleted and remembered.
    pub deleted: bool,
    /// The claims that it holds.
    pub claims: &'a [ClaimRowRef<'a>],
    /// Why it is not offered.
    pub unschedulable_bits: u8,
    /// Unclean stops before something last spoke for it.
    pub vouched: u64,
    /// How long it may be silent.
    pub heartbeat_ttl_ms: u64,
    /// What its claim was promised, if that is more than it has.
    pub promised: Option<&'a WorkerCapacity>,
}

/// A claim's state to be written.
#[derive(Debug, Clone, Copy)]
pub struct ClaimRowRef<'a> {
    /// Whose.
    pub id: &'a ClaimId,
    /// Number of the grant.
    pub fence: u64,
    /// Where it is in its life.
    pub state: ClaimState,
    /// How long it may stay reserved.
    pub reserve_ms: u64,
    /// What it keeps of its request, if anything.
    pub spec: Option<&'a ClaimSpec>,
    /// How long it may stay as it is once it is not reserved any more.
    pub term_ms: u64,
    /// Its worker named it.
    pub reported: bool,
    /// Which cards it holds.
    pub gpu_mask: u64,
    /// The gang for which it is held provisionally.
    pub gang: Option<GangRef>,
    /// It is being released because another claim evicted it.
    pub evicted: bool,
    /// When it was created, and when it became active.
    pub times: ClaimTimes,
}

// Hand-written because the derived encoder takes owned strings: six allocations per claim on the hottest path
// behind the engine. A test holds the bytes to the derived encoder's.
fn put_u64(out: &mut Vec<u8>, tag: u32, value: u64) {
    if value != 0 {
        encode_key(tag, WireType::Varint, out);
        encode_varint(value, out);
    }
}

fn put_str(out: &mut Vec<u8>, tag: u32, value: &str) {
    if !value.is_empty() {
        encode_key(tag, WireType::LengthDelimited, out);
        encode_varint(value.len() as u64, out);
        out.put_slice(value.as_bytes());
    }
}

fn len_u64(tag: u32, value: u64) -> usize {
    if value == 0 { 0 } else { key_len(tag) + encoded_len_varint(value) }
}

fn len_str(tag: u32, value: &str) -> usize {
    if value.is_empty() { 0 } else { key_len(tag) + encoded_len_varint(value.len() as u64) + value.len() }
}

/// Writes a worker's row.
pub fn put_worker(out: &mut Vec<u8>, state: &WorkerRowRef<'_>) {
    let spec = &state.registration.spec;
    put_frame(out, RowKind::Worker, spec.id.as_str(), |out| {
        put_u64(out, 1, spec.incarnation);
        put_u64(out, 2, spec.capacity.cpu_milli);
        put_u64(out, 3, spec.capacity.memory_bytes);
        put_u64(out, 4, spec.capacity.slots);
        if let Some(gpu) = &spec.capacity.gpu {
            put_str(out, 5, &gpu.model);
            put_u64(out, 6, gpu.count.into());
        }
        for (key, value) in &spec.labels {
            encode_key(7, WireType::LengthDelimited, out);
            encode_varint((len_str(1, key) + len_str(2, value)) as u64, out);
            put_str(out, 1, key);
            put_str(out, 2, value);
        }
        put_str(out, 8, spec.node.as_deref().unwrap_or(""));
        put_u64(out, 9, state.version);
        put_u64(out, 10, state.idle_seq);
        if state.affinity != 0 {
            encode_key(11, WireType::SixtyFourBit, out);
            out.put_u64_le(state.affinity);
        }
        put_u64(out, 12, state.deleted.into());
        for claim in state.claims {
            let (tenant, key) = (claim.id.tenant(), claim.id.key());
            // Few claims keep anything, so this part may allocate.
            let spec = claim.spec.map(ClaimSpecRow::from);
            let (active, releasing) = (claim.state != ClaimState::Reserved, claim.state == ClaimState::Releasing);
            let created_at_ms = claim.times.created_at_ms().unwrap_or(0);
            let activated_at_ms = claim.times.activated_at_ms().unwrap_or(0);
            let len = len_str(1, tenant)
                + len_str(2, key)
                + len_u64(3, claim.fence)
                + len_u64(4, active.into())
                + len_u64(5, claim.reserve_ms)
                + len_u64(6, releasing.into())
                + len_u64(7, claim.term_ms)
                + len_u64(8, claim.reported.into())
                + len_u64(9, claim.gpu_mask)
                + claim
                    .gang
                    .map_or(0, |gang| len_u64(10, gang.id) + len_u64(11, gang.pool) + len_u64(12, gang.shard.into()))
                + len_u64(13, claim.evicted.into())
                + len_u64(14, created_at_ms)
                + len_u64(15, activated_at_ms)
                + spec.as_ref().map_or(0, |spec| prost::encoding::message::encoded_len(16, spec));
            encode_key(13, WireType::LengthDelimited, out);
            encode_varint(len as u64, out);
            put_str(out, 1, tenant);
            put_str(out, 2, key);
            put_u64(out, 3, claim.fence);
            put_u64(out, 4, active.into());
            put_u64(out, 5, claim.reserve_ms);
            put_u64(out, 6, releasing.into());
            put_u64(out, 7, claim.term_ms);
            put_u64(out, 8, claim.reported.into());
            put_u64(out, 9, claim.gpu_mask);
            if let Some(gang) = claim.gang {
                put_u64(out, 10, gang.id);
                put_u64(out, 11, gang.pool);
                put_u64(out, 12, gang.shard.into());
            }
            put_u64(out, 13, claim.evicted.into());
            put_u64(out, 14, created_at_ms);
            put_u64(out, 15, activated_at_ms);
            if let Some(spec) = &spec {
                prost::encoding::message::encode(16, spec, out);
            }
        }
        put_u64(out, 14, state.unschedulable_bits.into());
        put_u64(out, 15, state.vouched);
        put_u64(out, 16, state.heartbeat_ttl_ms);
        put_u64(out, 17, spec.expires_at_ms.unwrap_or(0));
        if let Some(promised) = state.promised {
            prost::encoding::message::encode(18, &CapacityRow::from(promised), out);
        }
    });
}
