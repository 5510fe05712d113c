//! Behaviours of the case list, tested against the scheduler in process: on the memory store, and on the embedded
//! store behind a gate ([`gated_store::GatedStore`]) where a test holds back, refuses or loses writes. Those of S11, S12 and
//! S19 and of the journal also run on Redis (`tests/redis.rs`). Time is the test's own; nothing sleeps.

mod accounting_mismatch;
mod adoption;
mod agents;
mod batches;
mod candidate_pools;
mod catalog;
mod claim_batching;
mod claim_constraints;
mod claim_lifecycle;
mod claim_times;
mod claims;
mod demand;
mod disconnected_callers;
mod durable_replies;
mod exhaustion;
mod explain;
mod explain_waiting;
mod gang_crashes;
mod gang_preemption;
mod gangs;
mod gated_store;
mod heartbeats;
mod inspect;
mod journal;
mod key_directory;
#[cfg(debug_assertions)]
mod key_panics;
mod listings;
mod memory_ack;
mod pool_deletions;
mod preemption;
mod queue_order;
mod queued_claims;
mod quotas;
mod request_stream;
mod reservation_cases;
mod reservation_clock;
mod reservations;
mod restart;
mod shard_panics;
mod shard_wakeups;
mod shared_pool_helpers;
mod shared_pools;
mod store_location;
mod tenant_preemption;
mod unstored_releases;
mod waiting_lists;
mod watch;
mod worker_counts;
mod worker_lifecycle;
mod workers;
mod world;
mod writer_rounds;
