//! The Redis store, on real servers and clusters.

#[path = "redis/bad_days.rs"]
mod bad_days;
#[allow(dead_code, reason = "shared with the tests over sockets, which use all of it")]
#[path = "it/client.rs"]
mod client;
#[path = "redis/contract.rs"]
mod contract;
#[allow(dead_code, reason = "shared with the tests over sockets, which use all of it")]
#[path = "it/server.rs"]
mod server;
#[allow(dead_code, reason = "shared with the crash campaigns, which use all of it")]
#[path = "redis/servers.rs"]
mod servers;
#[path = "redis/stores.rs"]
mod stores;
