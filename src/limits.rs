//! Every bound that is not configuration. Relations between them are asserted here.

/// Longest name (namespace, pool, tenant, key, worker id, node), in bytes.
pub const NAME_BYTES_MAX: usize = 255;
/// Longest part of a label key before its slash, in bytes: a DNS subdomain, as Kubernetes has it.
pub const LABEL_PREFIX_BYTES_MAX: usize = 253;
/// Longest part of a label key behind its slash, in bytes, as Kubernetes has it.
pub const LABEL_NAME_BYTES_MAX: usize = 63;
/// Longest label value, in bytes.
pub const LABEL_VALUE_BYTES_MAX: usize = 255;
/// Most labels on one worker or pool.
pub const LABELS_MAX: usize = 64;
/// Most shards of a pool.
pub const SHARDS_MAX: u16 = 1024;
/// Shards of a pool that does not say.
pub const SHARDS_DEFAULT: u16 = 16;
/// Most pools of one service.
pub const POOLS_MAX: usize = 4096;
/// Shards of all pools together unless the configuration says: as many as that many pools have which do not say.
pub const TOTAL_SHARDS_DEFAULT: usize = POOLS_MAX * SHARDS_DEFAULT as usize;
/// Most shards of all pools together, whatever the configuration says.
pub const TOTAL_SHARDS_MAX: usize = POOLS_MAX * SHARDS_MAX as usize;
/// Most workers of one shard: ordinals are `u32`, and one is the nil.
pub const SHARD_WORKERS_MAX: u32 = 16_000_000;
/// Most items of `claims:batch`, `workers:batch` and `workers:heartbeat`.
pub const BATCH_ITEMS_MAX: usize = 10_000;
/// Most items on one page of a listing.
pub const PAGE_ITEMS_MAX: usize = 1_000;
/// Items on a page when the caller does not say.
pub const PAGE_ITEMS_DEFAULT: usize = 100;
/// Largest amount of any one resource: below 2^53, so that JSON readers keep it exact.
pub const AMOUNT_MAX: u64 = (1 << 53) - 1;
/// Most GPUs on one worker.
pub const GPUS_MAX: u32 = 64;
/// A whole GPU card, in thousandths.
pub const GPU_MILLI: u32 = 1_000;
/// Most GPU models that a claim may list.
pub const CLAIM_MODELS_MAX: usize = 8;
/// Most GPU models that one shard of a shared pool tells apart; workers with others are refused.
pub const SHARD_MODELS_MAX: usize = 4_096;
/// Most claims that one worker of a shared pool holds: they are part of its row.
pub const WORKER_CLAIMS_MAX: u32 = 4_096;
/// Most kinds of requests in a pool's `typical_requests`.
pub const TYPICAL_REQUESTS_MAX: usize = 256;
/// Workers or claims of a shard that one command of a listing or an explanation looks at.
pub const SLICE_ENTRIES: u32 = 1_024;
/// Deadlines that one run of a shard carries out; what is due beyond is left to the next, which follows at once.
pub const EXPIRIES_PER_RUN_MAX: usize = 1_024;
/// Commands that one page of a listing gives to shards; past it the page is short, and goes on with the next.
pub const PAGE_SLICES_MAX: usize = 256;
/// Largest fence, for the same reason.
pub const FENCE_MAX: u64 = (1 << 53) - 1;
/// Largest id of a request that a caller may bring, in bytes; one that is longer is replaced.
pub const REQUEST_ID_BYTES_MAX: usize = 128;
/// Changes of one kind, pool and client that have a line of the log each before the rest of the row is counted.
pub const CHANGE_LINES_MAX: u32 = 100;
/// Kinds, pools and clients whose changes are told apart at a time, where they are counted.
pub const CHANGE_GROUPS_MAX: usize = 64;
/// Longest text of settings in a line of the log, in bytes.
pub const CHANGE_TEXT_BYTES_MAX: usize = 4_096;
/// Longest `reserve_ms`, `releasing_ms`, `heartbeat_ttl_ms`, `unnamed_ms` and `lag_max_ms` a pool may set: one day.
pub const RESERVE_MS_MAX: u64 = 86_400_000;
/// Longest `ttl_ms`: thirty days. Who needs a worker for longer takes it without one.
pub const TTL_MS_MAX: u64 = 30 * 86_400_000;
/// Longest `lost_keep_ms` a pool may set: thirty days.
pub const LOST_KEEP_MS_MAX: u64 = 30 * 86_400_000;
/// Most claims that one heartbeat or registration names.
pub const REPORTED_CLAIMS_MAX: usize = 10_000;
/// Claims that ended without their holder's doing and that callers may still ask about; the oldest are forgotten.
pub const ENDED_CLAIMS_MAX: usize = 65_536;
/// How long such a claim is remembered, in milliseconds.
pub const ENDED_CLAIMS_MS: u64 = 600_000;
/// Keys that are remembered after a stop that may have lost claims, so that none goes back to a lower fence; past it no
/// lost claim is adopted any more.
pub const ADOPTION_KEYS_MAX: usize = 1 << 20;
/// How long lost claims are adopted after a start, in milliseconds.
pub const ADOPTION_MS: u64 = 600_000;
/// Commands that wait in one shard's ring; past it the shard refuses (`overloaded`).
pub const MAILBOX_SLOTS: usize = 4096;
/// Commands that an actor takes from its ring before it lets others run.
pub const DRAIN_MAX: usize = 1024;
/// Requests in flight on one claim stream; what is sent beyond waits in the stream.
pub const STREAM_REQUESTS_MAX: usize = 2_048;
/// Requests in flight on one HTTP/2 connection, calls of gRPC among them: what is begun beyond waits in the client, behind
/// all others.
pub const CONNECTION_STREAMS_MAX: u32 = 16_384;
/// Of these requests those that may wait for room at the same time; past it they are refused (`overloaded`), so that
/// releases and the like always find a stream.
pub const CONNECTION_WAITING_MAX: usize = 12_288;
/// Largest message of a claim stream, in bytes: as large as any body may be without asking for room.
pub const STREAM_MESSAGE_BYTES_MAX: usize = 16 << 10;
/// Claim streams of one service; past it they are refused (`overloaded`).
pub const STREAMS_MAX: usize = 1_024;
/// Streams over gRPC of `Health/Watch` and of reflection of one service; past it they are refused (`overloaded`).
pub const LASTING_STREAMS_MAX: usize = 2048;
/// Events of a pool that are kept for those who watch it; the oldest go first.
pub const WATCH_EVENTS_MAX: usize = 65_536;
/// How long they are kept when nobody watches any more, in milliseconds.
pub const WATCH_LINGER_MS: u64 = 60_000;
/// Most who watch one pool.
pub const POOL_WATCHERS_MAX: usize = 64;
/// Most who watch, over all pools of one service.
pub const WATCHERS_MAX: usize = 256;
/// Most commands between a `MULTI` and its `EXEC`.
pub const TRANSACTION_COMMANDS_MAX: usize = BATCH_ITEMS_MAX;
/// Most bytes of such commands together.
pub const TRANSACTION_BYTES_MAX: usize = 4 << 20;
/// Connections beyond `server.max_connections` at a time, each of which is answered one probe.
pub const EXCESS_CONNECTIONS_MAX: usize = 64;
/// Most host names of `server.hosts`.
pub const HOSTS_MAX: usize = 64;
/// Longest host name, in bytes, as in DNS.
pub const HOST_BYTES_MAX: usize = 253;
/// Longest label of a host name, in bytes.
pub const HOST_LABEL_BYTES_MAX: usize = 63;
/// Requests that may wait behind one pending key.
pub const WAITING_DUPLICATES_MAX: usize = 256;
/// Keys freed in one shard whose end the store does not have yet; past it new claims are refused (`store`).
pub const UNSTORED_ENDS_MAX: usize = 262_144;
/// Durable answers of one shard that wait for the store; past it requests are refused (`store`).
pub const PENDING_REPLIES_MAX: usize = 65_536;
/// Deleted workers that one shard remembers, so that a late register does not resurrect them.
pub const TOMBSTONES_MAX: usize = 4096;
/// How long a deleted worker is remembered, in milliseconds.
pub const TOMBSTONE_MS: u64 = 60_000;

/// Longest label selector, in bytes.
pub const SELECTOR_BYTES_MAX: usize = 4096;
/// Most terms of one selector.
pub const SELECTOR_TERMS_MAX: usize = 64;
/// Selectors that are kept as read, by their text.
pub const SELECTORS_CACHED_MAX: usize = 4096;
/// Largest weight of a tenant.
pub const WEIGHT_MAX: u32 = 1_000;
/// Highest priority of a claim.
pub const PRIORITY_MAX: u16 = 1_000;
/// Longest `wait_ms`: one day.
pub const WAIT_MS_MAX: u64 = 86_400_000;
/// Most claims that may wait for one pool, whatever it says.
pub const WAITERS_MAX: u32 = 1_000_000;
/// How long the first of a line waits before what comes free is kept for it, in milliseconds.
pub const RESERVE_AFTER_MS: u64 = 5_000;
/// Most claims of one tenant that may wait for its quota.
pub const QUOTA_WAITERS_MAX: usize = 10_000;
/// Most shapes and idle workers that an answer about demand lists.
pub const DEMAND_SHAPES_MAX: usize = 100;
/// Quotas that one service keeps: of tenants and of namespaces.
pub const QUOTAS_MAX: usize = 65_536;
/// Most pools that a claim may list.
pub const CLAIM_POOLS_MAX: usize = 64;
/// Most nodes in one list of a claim.
pub const CLAIM_NODES_MAX: usize = 256;
/// Most bytes of a claim's labels, keys and values together: they are part of its worker's row.
pub const CLAIM_LABELS_BYTES_MAX: usize = 4096;
/// Distinct shapes of idle workers (labels, node, capacity) that one shard keeps apart; the rest is looked at one by one.
pub const WORKER_CLASSES_MAX: usize = 4096;
/// Distinct capacities that a shard tells the router, and that the router looks at for one pool. With more, in a shard or in
/// all, only the largest of each amount is known.
pub const CAPACITIES_MAX: usize = 1024;

const _: () = assert!(RESERVE_MS_MAX <= TTL_MS_MAX && TTL_MS_MAX <= u32::MAX as u64, "claims keep them in 32 bits");
const _: () = assert!(DRAIN_MAX <= MAILBOX_SLOTS && MAILBOX_SLOTS < PENDING_REPLIES_MAX);
const _: () = assert!(
    CONNECTION_WAITING_MAX + STREAMS_MAX + WATCHERS_MAX + LASTING_STREAMS_MAX < CONNECTION_STREAMS_MAX as usize,
    "what may stay on one connection for long leaves streams for calls that do not"
);
const _: () = assert!(QUOTA_WAITERS_MAX < CONNECTION_WAITING_MAX, "a tenant may wait on one connection");
const _: () = assert!(SHARD_MODELS_MAX < u16::MAX as usize, "models are numbered in 16 bits");
const _: () = assert!(SHARDS_MAX.is_power_of_two() && SHARDS_DEFAULT.is_power_of_two());
const _: () = assert!(PAGE_ITEMS_DEFAULT <= PAGE_ITEMS_MAX);
