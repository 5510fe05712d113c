//! Encoding of a worker's row from the engine's state, without an allocation.

use prost::bytes::BufMut;
use prost::encoding::{WireType, encode_key, encode_varint, encoded_len_varint, key_len};

use super::{CapacityRow, ClaimSpecRow};
use crate::model::GangRef;
use crate::model::{ClaimId, ClaimSpec, ClaimState, ClaimTimes, WorkerCapacity, WorkerRegistration};
use crate::persist::row::{RowKind, put_frame};

/// State of a worker to be written, borrowed from the engine. Writing it allocates nothing.
#[derive(Debug, Clone, Copy)]
pub struct WorkerRowRef<'a> {
    /// Registration of the worker.
    pub registration: &'a WorkerRegistration,
    /// Sequence number of the last change.
    pub version: u64,
    /// Sequence number at which the worker became idle.
    pub idle_seq: u64,
    /// Affinity hash of the last claim.
    pub affinity: u64,
    /// Whether the worker is deleted; the row is kept for a while.
    pub deleted: bool,
    /// Claims that the worker holds.
    pub claims: &'a [ClaimRowRef<'a>],
    /// Reasons for which the worker is unschedulable, one bit each.
    pub unschedulable_bits: u8,
    /// Number of unclean stops of the shard when the worker was last known to exist.
    pub verified_at_stop: u64,
    /// Longest time between heartbeats, in milliseconds.
    pub heartbeat_ttl_ms: u64,
    /// Capacity that was granted to the claim, if that is more than the worker has.
    pub promised: Option<&'a WorkerCapacity>,
}

/// State of a claim to be written.
#[derive(Debug, Clone, Copy)]
pub struct ClaimRowRef<'a> {
    /// Identity of the claim.
    pub id: &'a ClaimId,
    /// Fence of the grant.
    pub fence: u64,
    /// State in the life of the claim.
    pub state: ClaimState,
    /// Longest time that the claim stays reserved, in milliseconds.
    pub reserve_ms: u64,
    /// Parts of the request that are kept, if any.
    pub spec: Option<&'a ClaimSpec>,
    /// Longest time active without a renewal, or releasing, in milliseconds; 0: unlimited.
    pub term_ms: u64,
    /// Whether the worker has reported the claim.
    pub reported: bool,
    /// GPUs that the claim holds: bit `i` stands for GPU `i`.
    pub gpu_mask: u64,
    /// Gang of which the claim is a provisional member.
    pub gang: Option<GangRef>,
    /// Whether the claim is being released because another evicted it.
    pub evicted: bool,
    /// Times of the grant and of the confirmation.
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

/// Writes the row of a worker.
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
        state.claims.iter().for_each(|claim| put_claim(out, claim));
        put_u64(out, 14, state.unschedulable_bits.into());
        put_u64(out, 15, state.verified_at_stop);
        put_u64(out, 16, state.heartbeat_ttl_ms);
        put_u64(out, 17, spec.expires_at_ms.unwrap_or(0));
        if let Some(promised) = state.promised {
            prost::encoding::message::encode(18, &CapacityRow::from(promised), out);
        }
    });
}

/// Writes a claim as an element of its worker's row.
fn put_claim(out: &mut Vec<u8>, claim: &ClaimRowRef<'_>) {
    let (tenant, key) = (claim.id.tenant(), claim.id.key());
    // Few claims keep parts of their request, so this may allocate.
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
        + claim.gang.map_or(0, |gang| len_u64(10, gang.id) + len_u64(11, gang.pool) + len_u64(12, gang.shard.into()))
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
