//! The Redis store, on real servers and clusters.

#[path = "redis/contract.rs"]
mod contract;
#[allow(dead_code, reason = "shared with the crash campaigns, which use all of it")]
#[path = "redis/servers.rs"]
mod servers;
#[path = "redis/stores.rs"]
mod stores;
