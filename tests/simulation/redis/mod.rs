//! Redis servers in memory, at the level of the calls of the store, for tests and simulations without sockets or threads.
//!
//! A [`SimulatedRedis`] is one server, one behind a sentinel, or a cluster, with or without replicas. It knows the commands
//! that the store sends and the functions of its library, and panics on any other. `RedisStore::open_on` runs on a
//! [`SimulatedTransport`], one for each process:
//!
//! ```ignore
//! let redis = SimulatedRedis::new(SimulatedRedisSettings::cluster(3), environment_of_the_servers);
//! let transport = redis.transport(environment_of_the_process.clone());
//! let options = RedisOptions { url: redis.url(), .. };
//! let store = RedisStore::open_on(options, transport.clone(), environment_of_the_process, identity);
//! redis.set_rates(FaultRates::usual()); // from now on commands are late, lost and executed after their connection ended
//! redis.fail_over(0, FormerMaster::Isolated(Duration::from_secs(2)));
//! transport.cut(); // the process is killed
//! redis.heal(); // all faults end
//! ```
//!
//! What happens follows from the calls, the clock and the random numbers of the servers' environment: a command has a time
//! at which its server executes it, and whatever is due is executed in that order before anything else is looked at. So nothing
//! runs in the background, and a command whose sender is dead is executed at its time nevertheless. Commands of one connection
//! are executed in order, as over TCP; a command arrives at most once, and what is sent again over another connection may
//! overtake it.
//!
//! Not simulated: passwords, TLS, databases, expiry of keys, and reading from a replica.

mod commands;
mod faults;
mod functions;
mod keyspace;
mod scan;
mod servers;
mod transport;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use hotpool::environment::Environment;
use hotpool::persist::store::redis::RedisUrl;
use parking_lot::Mutex;

pub use self::faults::{FaultRates, FormerMaster, Recovery, ServerCondition, StoreLoss};
pub use self::keyspace::StoredValue;
pub use self::servers::key_slot;
use self::servers::{SENTINEL_MASTER, SENTINEL_PORT, Servers};
pub use self::transport::SimulatedTransport;

/// Deployment of the servers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SimulatedTopology {
    /// Single server under one name, which leads to the replica after a failover.
    Standalone,
    /// Single server, which a sentinel names.
    Sentinel,
    /// Cluster whose masters share the slots.
    Cluster {
        /// Number of masters of the deployment.
        masters: usize,
    },
}

impl SimulatedTopology {
    /// Number of masters of the deployment.
    pub const fn masters(self) -> usize {
        match self {
            Self::Standalone | Self::Sentinel => 1,
            Self::Cluster { masters } => masters,
        }
    }
}

/// Settings of simulated servers.
#[derive(Debug, Clone, Copy)]
pub struct SimulatedRedisSettings {
    /// Deployment of the servers.
    pub topology: SimulatedTopology,
    /// Whether each master has a replica.
    pub has_replicas: bool,
    /// Faults that are drawn at random.
    pub rates: FaultRates,
}

impl SimulatedRedisSettings {
    /// Single server without a replica, and no faults.
    pub fn standalone() -> Self {
        Self { topology: SimulatedTopology::Standalone, has_replicas: false, rates: FaultRates::default() }
    }

    /// Cluster with a replica of each master, and no faults.
    pub fn cluster(masters: usize) -> Self {
        Self { topology: SimulatedTopology::Cluster { masters }, has_replicas: true, rates: FaultRates::default() }
    }
}

/// Redis servers in memory; cheap to clone.
#[derive(Clone)]
pub struct SimulatedRedis {
    servers: Arc<Mutex<Servers>>,
    environment: Environment,
}

impl SimulatedRedis {
    /// Creates the servers. `environment` is theirs: its clock and its random numbers decide what happens when.
    pub fn new(settings: SimulatedRedisSettings, environment: Environment) -> Self {
        let servers = Servers::new(settings, environment.clone());
        Self { servers: Arc::new(Mutex::new(servers)), environment }
    }

    /// URL under which a store finds the servers.
    pub fn url(&self) -> RedisUrl {
        let (topology, addresses) = self.at_present(|servers, _| {
            let addresses = servers.servers.iter().map(|server| server.address.to_string());
            (servers.topology, addresses.collect::<Vec<_>>())
        });
        let url = match topology {
            SimulatedTopology::Standalone => format!("redis://{}", addresses[0]),
            SimulatedTopology::Sentinel => format!("redis-sentinel://sentinel:{SENTINEL_PORT}/{SENTINEL_MASTER}"),
            SimulatedTopology::Cluster { .. } => format!("redis-cluster://{}", addresses.join(",")),
        };
        url.parse().expect("a URL")
    }

    /// Creates the way of another process to the servers. Its own environment has the timers that it waits for.
    pub fn transport(&self, environment: Environment) -> Arc<SimulatedTransport> {
        Arc::new(SimulatedTransport::new(self.clone(), environment))
    }

    /// Number of shards, which is that of masters.
    pub fn shard_count(&self) -> usize {
        self.at_present(|servers, _| servers.truth.masters.len())
    }

    /// Shard that has a slot at present.
    pub fn shard_of(&self, slot: u16) -> usize {
        self.at_present(|servers, _| servers.truth.shards[usize::from(slot)])
    }

    /// Slots of the keys that exist.
    pub fn slots_in_use(&self) -> Vec<u16> {
        let slots: BTreeSet<u16> = self.contents().keys().map(|key| key_slot(key)).collect();
        slots.into_iter().collect()
    }

    /// Keys of all masters with their values. Of a slot that moves both masters count.
    pub fn contents(&self) -> BTreeMap<Vec<u8>, StoredValue> {
        (0..self.shard_count()).flat_map(|shard| self.contents_of(shard)).collect()
    }

    /// Keys of the master of a shard with their values.
    pub fn contents_of(&self, shard: usize) -> BTreeMap<Vec<u8>, StoredValue> {
        self.at_present(|servers, _| servers.servers[servers.master(shard)].keyspace.keys().clone())
    }

    /// Replaces or removes a key, as somebody else would.
    pub fn put(&self, key: &[u8], value: Option<StoredValue>) {
        self.at_present(|servers, now_ns| {
            let shard = servers.truth.shards[usize::from(key_slot(key))];
            let _ = servers.write(servers.master(shard), now_ns, |keyspace| keyspace.replace(key, value));
        });
    }

    /// Does something with the servers after everything that is due has happened.
    fn at_present<T>(&self, action: impl FnOnce(&mut Servers, u64) -> T) -> T {
        let mut servers = self.servers.lock();
        let now_ns = self.environment.clock().mono_ns();
        servers.advance(now_ns);
        action(&mut servers, now_ns)
    }
}
