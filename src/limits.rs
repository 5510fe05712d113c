//! Limits that are not configurable. Relations between them are asserted at the end.

/// Longest name (namespace, pool, tenant, key, worker id, node), in bytes.
pub const NAME_BYTES_MAX: usize = 255;
/// Longest prefix of a label key, before its slash, in bytes: a DNS subdomain, as in Kubernetes.
pub const LABEL_PREFIX_BYTES_MAX: usize = 253;
/// Longest name in a label key, after its slash, in bytes, as in Kubernetes.
pub const LABEL_NAME_BYTES_MAX: usize = 63;
/// Longest label value, in bytes.
pub const LABEL_VALUE_BYTES_MAX: usize = 255;
/// Largest number of labels on one worker or pool.
pub const LABELS_MAX: usize = 64;
/// Largest number of shards of a pool.
pub const SHARDS_MAX: u16 = 1024;
/// Number of shards of a pool whose specification omits it.
pub const SHARDS_DEFAULT: u16 = 16;
/// Largest number of pools of one service.
pub const POOLS_MAX: usize = 4096;
/// Default limit of the shards of all pools together: as many as that many pools with the default number have.
pub const TOTAL_SHARDS_DEFAULT: usize = POOLS_MAX * SHARDS_DEFAULT as usize;
/// Largest possible limit of the shards of all pools together.
pub const TOTAL_SHARDS_MAX: usize = POOLS_MAX * SHARDS_MAX as usize;
/// Largest number of workers of one shard: ordinals are `u32`, and one is the null ordinal.
pub const SHARD_WORKERS_MAX: u32 = 16_000_000;
/// Largest number of items of `claims:batch`, `workers:batch` and `workers:heartbeat`.
pub const BATCH_ITEMS_MAX: usize = 10_000;
/// Largest number of items on one page of a listing.
pub const PAGE_ITEMS_MAX: usize = 1_000;
/// Number of items on a page by default.
pub const PAGE_ITEMS_DEFAULT: usize = 100;
/// Largest amount of any one resource: below 2^53, so that JSON readers keep it exact.
pub const AMOUNT_MAX: u64 = (1 << 53) - 1;
/// Largest number of GPUs on one worker.
pub const GPUS_MAX: u32 = 64;
/// Thousandths of a whole GPU.
pub const GPU_MILLI: u32 = 1_000;
/// Largest number of GPU models that a claim may list.
pub const CLAIM_MODELS_MAX: usize = 8;
/// Largest number of GPU models in one shard of a shared pool; workers with others are rejected.
pub const SHARD_MODELS_MAX: usize = 4_096;
/// Largest number of claims on one worker of a shared pool: they are part of its row.
pub const WORKER_CLAIMS_MAX: u32 = 4_096;
/// Largest number of entries in a pool's `typical_requests`.
pub const TYPICAL_REQUESTS_MAX: usize = 256;
/// Workers or claims of a shard that one command of a listing or an explanation examines.
pub const SLICE_ENTRIES: u32 = 1_024;
/// Deadlines that one run of a shard handles; the remainder is handled by the next run, which follows at once.
pub const EXPIRIES_PER_RUN_MAX: usize = 1_024;
/// Shard commands for one page of a listing; beyond it the page is short and the listing continues with the next.
pub const PAGE_SLICES_MAX: usize = 256;
/// Largest fence: below 2^53, so that JSON readers keep it exact.
pub const FENCE_MAX: u64 = (1 << 53) - 1;
/// Longest request id that a caller may supply, in bytes; a longer one is replaced.
pub const REQUEST_ID_BYTES_MAX: usize = 128;
/// Changes of one kind, pool and client that are logged one by one; further ones are counted.
pub const CHANGE_LINES_MAX: u32 = 100;
/// Number of kinds, pools and clients whose changes are counted separately at a time.
pub const CHANGE_GROUPS_MAX: usize = 64;
/// Longest text of settings in a log line, in bytes.
pub const CHANGE_TEXT_BYTES_MAX: usize = 4_096;
/// Longest `reserve_ms`, `releasing_ms`, `heartbeat_ttl_ms`, `unnamed_ms` and `lag_max_ms` of a pool: one day.
pub const RESERVE_MS_MAX: u64 = 86_400_000;
/// Longest `ttl_ms`: thirty days. Claims without a ttl may last longer.
pub const TTL_MS_MAX: u64 = 30 * 86_400_000;
/// Longest `lost_keep_ms` of a pool: thirty days.
pub const LOST_KEEP_MS_MAX: u64 = 30 * 86_400_000;
/// Largest number of claims in one heartbeat or registration.
pub const REPORTED_CLAIMS_MAX: usize = 10_000;
/// Number of claims that ended without a release and can still be queried; the oldest are forgotten.
pub const ENDED_CLAIMS_MAX: usize = 65_536;
/// Time for which such a claim is remembered, in milliseconds.
pub const ENDED_CLAIMS_MS: u64 = 600_000;
/// Keys that are remembered after a stop that may have lost claims, so that none returns to a lower fence; beyond it
/// no lost claim is readopted.
pub const ADOPTION_KEYS_MAX: usize = 1 << 20;
/// Time after a start in which lost claims are readopted, in milliseconds.
pub const ADOPTION_MS: u64 = 600_000;
/// Commands that wait in one shard's mailbox; beyond it the shard rejects (`overloaded`).
pub const MAILBOX_SLOTS: usize = 4096;
/// Commands that an actor takes from its mailbox before it yields.
pub const DRAIN_MAX: usize = 1024;
/// Completion cells that a thread keeps for its next calls.
pub const FREE_CELLS_MAX: usize = 128;
/// Requests in flight on one claim stream; later ones wait in the stream.
pub const STREAM_REQUESTS_MAX: usize = 2_048;
/// Requests in flight on one HTTP/2 connection, gRPC calls included; later ones wait in the client, behind all
/// others.
pub const CONNECTION_STREAMS_MAX: u32 = 16_384;
/// Requests on such a connection that may wait for capacity at the same time; beyond it they are rejected
/// (`overloaded`), so that releases and the like always find a stream.
pub const CONNECTION_WAITING_MAX: usize = 12_288;
/// Largest message of a claim stream, in bytes: as large as a body without a reservation of memory.
pub const STREAM_MESSAGE_BYTES_MAX: usize = 16 << 10;
/// Claim streams of one service; beyond it they are rejected (`overloaded`).
pub const STREAMS_MAX: usize = 1_024;
/// Streams of `Health/Watch` and of reflection of one service; beyond it they are rejected (`overloaded`).
pub const LASTING_STREAMS_MAX: usize = 2048;
/// Events of a pool that are kept for its watchers; the oldest are dropped first.
pub const WATCH_EVENTS_MAX: usize = 65_536;
/// Time for which events are kept after the last watcher left, in milliseconds.
pub const WATCH_LINGER_MS: u64 = 60_000;
/// Largest number of watchers of one pool.
pub const POOL_WATCHERS_MAX: usize = 64;
/// Largest number of watchers of all pools of one service.
pub const WATCHERS_MAX: usize = 256;
/// Largest number of commands between a `MULTI` and its `EXEC`.
pub const TRANSACTION_COMMANDS_MAX: usize = BATCH_ITEMS_MAX;
/// Largest size of these commands together, in bytes.
pub const TRANSACTION_BYTES_MAX: usize = 4 << 20;
/// Connections beyond `server.max_connections` at a time, each of which may make one probe.
pub const EXCESS_CONNECTIONS_MAX: usize = 64;
/// Largest number of host names in `server.hosts`.
pub const HOSTS_MAX: usize = 64;
/// Longest host name, in bytes, as in DNS.
pub const HOST_BYTES_MAX: usize = 253;
/// Longest label of a host name, in bytes.
pub const HOST_LABEL_BYTES_MAX: usize = 63;
/// Requests that may wait for one pending key.
pub const WAITING_DUPLICATES_MAX: usize = 256;
/// Keys freed in one shard whose end is not stored yet; beyond it new claims are rejected (`store`).
pub const UNSTORED_ENDS_MAX: usize = 262_144;
/// Durable replies of one shard that wait for the store; beyond it requests are rejected (`store`).
pub const PENDING_REPLIES_MAX: usize = 65_536;
/// Deleted workers that one shard remembers, so that a late registration does not restore them.
pub const TOMBSTONES_MAX: usize = 4096;
/// Time for which a deleted worker is remembered, in milliseconds.
pub const TOMBSTONE_MS: u64 = 60_000;

/// Longest label selector, in bytes.
pub const SELECTOR_BYTES_MAX: usize = 4096;
/// Largest number of terms in one selector.
pub const SELECTOR_TERMS_MAX: usize = 64;
/// Number of parsed selectors that are cached by their text.
pub const SELECTORS_CACHED_MAX: usize = 4096;
/// Largest weight of a tenant.
pub const WEIGHT_MAX: u32 = 1_000;
/// Highest priority of a claim.
pub const PRIORITY_MAX: u16 = 1_000;
/// Longest `wait_ms`: one day.
pub const WAIT_MS_MAX: u64 = 86_400_000;
/// Largest number of claims that may wait for one pool, whatever its specification says.
pub const WAITERS_MAX: u32 = 1_000_000;
/// Time for which a claim waits before it counts as starved, and capacity or quota is collected for it, in milliseconds.
pub const RESERVE_AFTER_MS: u64 = 5_000;
/// Share of a pool's usable workers that may be suspect after evictions before nobody else is evicted: one of so many.
pub const UNRELEASED_EVICTIONS_SHARE: u64 = 16;
/// Shortest `hold_max_ms` of a pool.
pub const HOLD_MS_MIN: u64 = 1_000;
/// Longest `hold_max_ms` of a pool: one hour.
pub const HOLD_MS_MAX: u64 = 3_600_000;
/// Pause before a worker is sought again for a starved claim for which none is large enough, in milliseconds.
pub const SEEK_HOLD_AGAIN_MS: u64 = 60_000;
/// Largest number of workers of one pool from which claims were evicted for others that wait.
pub const EVICTED_WORKERS_MAX: usize = 64;
/// Largest number of workers of one pool that are kept for an offer because only claims that are being tried may fit them.
pub const UNMATCHED_WORKERS_MAX: usize = 256;
/// Largest number of request shapes and idle workers in a reply about demand.
pub const DEMAND_SHAPES_MAX: usize = 100;
/// Number of quotas of one service: of tenants and of namespaces.
pub const QUOTAS_MAX: usize = 65_536;
/// Largest number of pools that a claim may list.
pub const CLAIM_POOLS_MAX: usize = 64;
/// Largest number of nodes in one list of a claim.
pub const CLAIM_NODES_MAX: usize = 256;
/// Largest size of a claim's labels, keys and values together, in bytes: they are part of its worker's row.
pub const CLAIM_LABELS_BYTES_MAX: usize = 4096;
/// Classes of idle workers (labels, node, capacity) that one shard keeps apart; further workers are examined one by
/// one.
pub const WORKER_CLASSES_MAX: usize = 4096;
/// Distinct capacities that a shard reports to the router, and that the router compares for one pool. With more, in
/// one shard or in all, only the largest of each amount is known.
pub const CAPACITIES_MAX: usize = 1024;

const _: () =
    assert!(RESERVE_MS_MAX <= TTL_MS_MAX && TTL_MS_MAX <= u32::MAX as u64, "claims store durations in 32 bits");
const _: () = assert!(DRAIN_MAX <= MAILBOX_SLOTS && MAILBOX_SLOTS < PENDING_REPLIES_MAX);
const _: () = assert!(
    CONNECTION_WAITING_MAX + STREAMS_MAX + WATCHERS_MAX + LASTING_STREAMS_MAX < CONNECTION_STREAMS_MAX as usize,
    "long-lived requests leave streams for short ones"
);
const _: () = assert!(SHARD_MODELS_MAX < u16::MAX as usize, "models are numbered in 16 bits");
const _: () = assert!(SHARDS_MAX.is_power_of_two() && SHARDS_DEFAULT.is_power_of_two());
const _: () = assert!(PAGE_ITEMS_DEFAULT <= PAGE_ITEMS_MAX);
