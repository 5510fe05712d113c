//! Redis store on real servers and clusters. The behaviors about the contents of a store (S11, S12, S19, G1, and those of
//! the journal) run here as well as on the embedded store, with another [`store_location`].

#[path = "behavior/adoption.rs"]
mod adoption;
#[allow(dead_code, reason = "shared with the tests over sockets, which use all of it")]
#[path = "end_to_end/client.rs"]
mod client;
#[path = "redis/contract.rs"]
mod contract;
#[path = "behavior/durable_replies.rs"]
mod durable_replies;
#[path = "redis/fidelity.rs"]
mod fidelity;
#[path = "redis/fidelity_of_commands.rs"]
mod fidelity_of_commands;
#[path = "behavior/gangs.rs"]
mod gangs;
#[allow(dead_code, reason = "shared with the cases, which use all of it")]
#[path = "behavior/gated_store.rs"]
mod gated_store;
#[path = "redis/hash_slots.rs"]
mod hash_slots;
#[path = "behavior/inspect.rs"]
mod inspect;
#[path = "behavior/journal.rs"]
mod journal;
#[path = "redis/operational_failures.rs"]
mod operational_failures;
#[path = "redis/relay.rs"]
mod relay;
#[path = "redis/scans.rs"]
mod scans;
#[allow(dead_code, reason = "shared with the tests over sockets, which use all of it")]
#[path = "end_to_end/server.rs"]
mod server;
#[allow(dead_code, reason = "shared with the crash campaigns, which use all of it")]
#[path = "redis/servers.rs"]
mod servers;
#[path = "redis/simulated_faults.rs"]
mod simulated_faults;
#[allow(dead_code, unused_imports, reason = "shared with the simulation of the whole scheduler")]
#[path = "simulation/redis/mod.rs"]
mod simulated_redis;
#[path = "redis/simulated_time.rs"]
mod simulated_time;
#[path = "redis/store_location.rs"]
mod store_location;
#[path = "redis/stores.rs"]
mod stores;
#[path = "behavior/unstored_releases.rs"]
mod unstored_releases;
#[allow(dead_code, reason = "shared with the cases, which use all of it")]
#[path = "behavior/world.rs"]
mod world;
