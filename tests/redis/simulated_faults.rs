//! Store on simulated servers with faults: nothing that was acknowledged is lost while its owner lives, and a seed determines
//! the whole run.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use hotpool::environment::Environment;
use hotpool::persist::store::redis::{OwnerIdentity, RedisOptions, RedisStore};
use hotpool::persist::store::{MissingRecord, ShardKey, Store, StoreError, WriteBatch, WriteOutcome};
use tempfile::TempDir;
use uuid::Uuid;

use crate::simulated_redis::{
    FaultRates, FormerMaster, Recovery, ServerCondition, SimulatedRedis, SimulatedRedisSettings, SimulatedTopology,
    SimulatedTransport,
};
use crate::simulated_time::SimulatedTime;
use crate::stores::{State, chunk, install, is, options, rows};

const A: ShardKey = ShardKey { pool: 7, shard: 0 };
const B: ShardKey = ShardKey { pool: 7, shard: 1 };
const SHARDS: [ShardKey; 2] = [A, B];
const SEEDS: u64 = 40;

/// Servers, and the time of everybody.
struct World {
    time: SimulatedTime,
    redis: SimulatedRedis,
    dir: TempDir,
}

/// Process with its store.
struct Process {
    store: RedisStore,
    transport: Arc<SimulatedTransport>,
    environment: Environment,
}

impl World {
    fn new(seed: u64, settings: SimulatedRedisSettings) -> Self {
        let time = SimulatedTime::new(seed);
        let redis = SimulatedRedis::new(settings, time.environment());
        Self { time, redis, dir: TempDir::new().unwrap() }
    }

    fn process(&self, node: &str) -> Process {
        let environment = self.time.environment();
        let transport = self.redis.transport(environment.clone());
        let options = RedisOptions {
            url: self.redis.url(),
            lease_ms: 10_000,
            command_ms: 500,
            standby: true,
            ..options("redis://unused", &self.dir)
        };
        let identity = OwnerIdentity { node: node.to_owned(), label: node.to_owned() };
        let store = RedisStore::open_on(options, transport.clone(), environment.clone(), identity);
        Process { store, transport, environment }
    }
}

impl Process {
    async fn sleep_ms(&self, ms: u64) {
        self.environment.sleep(Duration::from_millis(ms)).await;
    }

    /// Takes the store over, and all shards; again and again until it succeeds.
    async fn own(&self) -> Vec<State> {
        loop {
            if let Err(error) = self.store.take_over(Uuid::from_u64_pair(self.environment.random_u64(), 1)).await {
                assert!(!matches!(error, StoreError::Unusable(_)), "{error}");
                self.sleep_ms(100).await;
                continue;
            }
            let mut states = Vec::new();
            for shard in SHARDS {
                match self.try_load(shard).await {
                    Ok(state) => states.push(state),
                    Err(StoreError::Superseded(_)) => break,
                    Err(error) => panic!("{error}"),
                }
            }
            if states.len() == SHARDS.len() {
                return states;
            }
        }
    }

    async fn try_load(&self, shard: ShardKey) -> Result<State, StoreError> {
        loop {
            match crate::stores::try_load(&self.store, shard).await {
                Err(StoreError::Unavailable(_)) => self.sleep_ms(100).await,
                read => return read,
            }
        }
    }

    /// Sends a batch until its outcome is known.
    async fn apply(&self, batch: &WriteBatch) -> WriteOutcome {
        loop {
            match self.store.apply(vec![batch.clone()]).await {
                Ok(outcomes) if outcomes[0] != WriteOutcome::Unanswered => return outcomes[0],
                Ok(_) | Err(StoreError::Unavailable(_)) => self.sleep_ms(50).await,
                Err(error) => panic!("{error}"),
            }
        }
    }
}

/// Cluster of one master and its replica, without faults.
fn pair(seed: u64) -> World {
    World::new(seed, SimulatedRedisSettings::cluster(1))
}

#[test]
fn a_failover_loses_what_the_replica_lacks_and_nothing_else() {
    let world = pair(1);
    world.time.run(async {
        let owner = world.process("first");
        owner.own().await;
        assert_eq!(owner.apply(&rows(A, 0, 1, &[(1, Some(1))])).await, WriteOutcome::Ok);
        world.redis.stop_replication(0);
        assert_eq!(owner.apply(&rows(A, 1, 2, &[(2, Some(1))])).await, WriteOutcome::Ok, "acknowledged by the master");
        assert_eq!(world.redis.fail_over(0, FormerMaster::Crashed), Some(1));
        assert_eq!(owner.apply(&rows(A, 2, 3, &[(3, Some(1))])).await, WriteOutcome::Gap);
        assert_eq!(owner.try_load(A).await.expect("owned"), is(1, &[(1, 1)]));
        assert_eq!(world.redis.fail_over(0, FormerMaster::Crashed), None, "the other server has ended");
        world.redis.restart(0, Recovery::Synced);
        assert_eq!(world.redis.fail_over(0, FormerMaster::Demoted), Some(0));
        assert_eq!(owner.try_load(A).await.expect("owned"), is(1, &[(1, 1)]));
    });
}

#[test]
fn a_takeover_waits_for_a_replica_that_is_connected() {
    let world = pair(2);
    world.time.run(async {
        let process = world.process("first");
        world.redis.stop_replication(0);
        let error = process.store.take_over(Uuid::from_u128(1)).await.expect_err("the replica does not have it");
        assert!(matches!(&error, StoreError::Unavailable(text) if text.contains("no replica")), "{error:?}");
        world.redis.resume_replication(0);
        assert_eq!(process.store.take_over(Uuid::from_u128(2)).await.expect("replicated").epoch, 2);
    });
}

#[test]
fn an_isolated_master_serves_those_who_are_connected_to_it_until_it_hears_of_its_successor() {
    let world = pair(3);
    world.time.run(async {
        let owner = world.process("first");
        owner.own().await;
        assert_eq!(world.redis.fail_over(0, FormerMaster::Isolated(Duration::from_secs(1))), Some(0));
        assert_eq!(owner.apply(&rows(A, 0, 1, &[(1, Some(1))])).await, WriteOutcome::Ok, "of the old master");
        owner.sleep_ms(1_000).await;
        assert_eq!(owner.apply(&rows(A, 1, 2, &[(2, Some(1))])).await, WriteOutcome::Gap, "of the new one");
    });
}

#[test]
fn what_a_process_has_sent_may_be_executed_when_it_is_dead_and_nothing_else() {
    let world = pair(4);
    world.time.run(async {
        let owner = world.process("first");
        owner.own().await;
        let latency = Duration::from_millis(10);
        let late = FaultRates { late_requests_per_million: 1_000_000, late_max: latency, ..FaultRates::default() };
        world.redis.set_rates(FaultRates { latency_max: latency, ..late });
        let sent = owner.store.apply(vec![rows(A, 0, 1, &[(1, Some(1))])]);
        assert!(owner.environment.timeout(Duration::from_nanos(1), sent).await.is_none());
        owner.transport.cut();
        let more = owner.store.apply(vec![rows(A, 0, 2, &[(2, Some(1))])]).await.expect("an outcome");
        assert_eq!(more, [WriteOutcome::Unanswered]);
        assert_eq!(world.process("second").own().await, [is(1, &[(1, 1)]), is(0, &[])]);
    });
}

#[test]
fn a_process_reaches_no_server_that_is_blocked_and_what_is_held_up_arrives_later() {
    let world = pair(5);
    world.time.run(async {
        let owner = world.process("first");
        owner.own().await;
        owner.transport.block(0);
        let sent = owner.store.apply(vec![rows(A, 0, 1, &[(1, Some(1))])]);
        assert!(owner.environment.timeout(Duration::from_millis(100), sent).await.is_none());
        assert_eq!(world.process("second").store.load(vec![A], Box::new(|_, _| {})).await.expect("load")[0].at, Ok(0));
        owner.transport.unblock_all();
        assert_eq!(owner.apply(&rows(A, 0, 1, &[(1, Some(1))])).await, WriteOutcome::Duplicate, "it has arrived");
    });
}

/// Shard in the memory of its owner: its rows, and the numbers of its state and of the last snapshot.
#[derive(Default)]
struct Memory {
    rows: BTreeMap<u64, u32>,
    at: u64,
    generation: u64,
}

impl Memory {
    /// Stores a change of a row, with a snapshot if the store lacks something.
    async fn change(&mut self, process: &Process, shard: ShardKey, uid: u64, mark: Option<u32>) {
        match mark {
            Some(mark) => drop(self.rows.insert(uid, mark)),
            None => drop(self.rows.remove(&uid)),
        }
        let batch = rows(shard, self.at, self.at + 1, &[(uid, mark)]);
        self.at += 1;
        match process.apply(&batch).await {
            WriteOutcome::Ok | WriteOutcome::Duplicate => {}
            WriteOutcome::Gap => self.snapshot(process, shard).await,
            outcome => panic!("{outcome:?}"),
        }
    }

    /// Stores all rows anew: in chunks, or with the install if there are few.
    async fn snapshot(&mut self, process: &Process, shard: ShardKey) {
        loop {
            self.generation += 1;
            let all: Vec<(u64, Option<u32>)> = self.rows.iter().map(|(uid, mark)| (*uid, Some(*mark))).collect();
            let batches = if self.generation.is_multiple_of(2) {
                vec![install(shard, self.at, self.generation, 0, &all)]
            } else {
                let (first, second) = all.split_at(all.len() / 2);
                vec![
                    chunk(shard, self.generation, 0, first),
                    chunk(shard, self.generation, 1, second),
                    install(shard, self.at, self.generation, 2, &[]),
                ]
            };
            if Self::store_in_order(process, &batches).await {
                return;
            }
        }
    }

    /// Whether the store has all batches of a snapshot.
    async fn store_in_order(process: &Process, batches: &[WriteBatch]) -> bool {
        for batch in batches {
            match process.apply(batch).await {
                WriteOutcome::Ok | WriteOutcome::Duplicate => {}
                WriteOutcome::Gap => return false,
                outcome => panic!("{outcome:?}"),
            }
        }
        true
    }

    fn state(&self) -> State {
        (Ok(self.at), self.rows.clone())
    }
}

/// Runs an owner under faults, and then a successor. Returns what happened, for comparison.
fn run(seed: u64, topology: SimulatedTopology) -> Vec<String> {
    let settings = SimulatedRedisSettings { topology, has_replicas: true, rates: FaultRates::usual() };
    let world = World::new(seed, settings);
    let mut log = Vec::new();
    let random = |below: u64| world.time.environment().random_u64() % below;
    world.time.run(async {
        let owner = world.process("first");
        let states = owner.own().await;
        assert!(states.iter().all(|state| *state == is(0, &[])));
        let mut memory = [Memory::default(), Memory::default()];
        for step in 0..60 {
            if random(3) == 0 {
                log.push(format!("step {step}: {}", world.redis.disturb().0));
            }
            let at = random(2) as usize;
            let mark = (random(4) > 0).then_some(step as u32);
            if random(8) == 0 {
                // Somebody has to start what has ended, and end the moves of slots.
                world.redis.heal();
                world.redis.set_rates(FaultRates::usual());
            }
            let has_snapshot = random(10) == 0;
            let uid = random(10);
            let changed = async {
                memory[at].change(&owner, SHARDS[at], uid, mark).await;
                if has_snapshot {
                    memory[at].snapshot(&owner, SHARDS[at]).await;
                }
            };
            let limit = Duration::from_secs(20);
            if owner.environment.timeout(limit, changed).await.is_none() {
                log.push(format!("step {step}: healed, because {}", owner.store.last_fault()));
                world.redis.heal();
                memory[at].snapshot(&owner, SHARDS[at]).await;
                world.redis.set_rates(FaultRates::usual());
            }
        }
        world.redis.heal();
        while owner.store.renew(MissingRecord::Create).await.is_err() {
            owner.sleep_ms(100).await;
        }
        for (memory, shard) in memory.iter_mut().zip(SHARDS) {
            memory.change(&owner, shard, 1, Some(1)).await;
        }
        owner.transport.cut();
        let successor = world.process("second");
        let expected: Vec<State> = memory.iter().map(Memory::state).collect();
        assert_eq!(successor.own().await, expected, "seed {seed}: {log:#?}");
        log.push(format!("{:?} {:?}", world.redis.contents(), world.time.environment().clock().mono_ns()));
    });
    log
}

/// Calls for an event in which no server loses anything.
fn disturb_without_loss(world: &World, draw: impl Fn(u64) -> u64) -> String {
    let redis = &world.redis;
    let shard = draw(redis.shard_count() as u64) as usize;
    let duration = Duration::from_millis(draw(2_000));
    match draw(8) {
        0 => redis.break_connections(shard),
        1 => redis.impose(shard, ServerCondition::Loading, duration),
        2 => redis.impose(shard, ServerCondition::Full, duration),
        3 => redis.lose_functions(shard),
        4 => drop(redis.fail_over(shard, FormerMaster::Demoted)),
        5 => {
            let slots = redis.slots_in_use();
            let slot = slots[draw(slots.len() as u64) as usize];
            if redis.begin_slot_move(slot, shard) {
                redis.move_keys(slot, draw(3) as usize);
            }
        }
        6 => redis.end_slot_moves(),
        _ => redis.stall(shard, duration),
    }
    format!("shard {shard}, {duration:?}")
}

/// Runs owners that are killed one after the other while commands are late and connections break, and no server loses what it
/// has.
fn run_without_loss(seed: u64, topology: SimulatedTopology) {
    let rates = FaultRates {
        slow_requests_per_million: 100_000,
        slow_max: Duration::from_millis(1_500),
        late_max: Duration::from_secs(8),
        ..FaultRates::usual()
    };
    let world = World::new(seed, SimulatedRedisSettings { topology, has_replicas: true, rates });
    let draw = |below: u64| world.time.environment().random_u64() % below;
    world.time.run(async {
        let mut memory = [Memory::default(), Memory::default()];
        for number in 0..3 {
            let owner = world.process(&format!("process {number}"));
            let found = owner.own().await;
            let expected: Vec<State> = memory.iter().map(Memory::state).collect();
            assert_eq!(found, expected, "seed {seed}: found by process {number}");
            for step in 0..30 {
                if draw(4) == 0 {
                    let what = disturb_without_loss(&world, draw);
                    println!("seed {seed}, process {number}, step {step}: {what}");
                }
                let (at, uid, mark) = (draw(2) as usize, draw(10), (draw(4) > 0).then_some(step));
                let changes = async {
                    memory[at].change(&owner, SHARDS[at], uid, mark).await;
                    if draw(3) == 0 {
                        memory[at].snapshot(&owner, SHARDS[at]).await;
                    }
                };
                let limit = Duration::from_secs(60);
                if owner.environment.timeout(limit, changes).await.is_none() {
                    world.redis.end_slot_moves();
                    memory[at].snapshot(&owner, SHARDS[at]).await;
                }
            }
            // The next process may begin while commands of this one are on their way.
            owner.transport.cut();
            world.redis.end_slot_moves();
        }
    });
}

/// Seeds of a test: `HOTPOOL_SEED` runs one again.
fn seeds() -> Vec<u64> {
    match std::env::var("HOTPOOL_SEED") {
        Ok(seed) => vec![seed.parse().expect("a number")],
        Err(_) => (0..SEEDS).collect(),
    }
}

#[test]
fn a_living_owner_loses_nothing_whatever_the_servers_do() {
    for seed in seeds() {
        let topologies = [
            SimulatedTopology::Standalone,
            SimulatedTopology::Sentinel,
            SimulatedTopology::Cluster { masters: 1 },
            SimulatedTopology::Cluster { masters: 3 },
        ];
        let topology = topologies[seed as usize % 4];
        println!("seed {seed}: {topology:?}");
        run(seed, topology);
    }
}

#[test]
fn an_owner_that_is_killed_leaves_everything_that_was_acknowledged() {
    let topologies = [SimulatedTopology::Standalone, SimulatedTopology::Cluster { masters: 3 }];
    for seed in seeds() {
        run_without_loss(seed, topologies[seed as usize % topologies.len()]);
    }
}

#[test]
fn a_seed_determines_the_run() {
    let topology = SimulatedTopology::Cluster { masters: 3 };
    let [first, again, other] = [1, 1, 2].map(|seed| run(seed, topology));
    assert_eq!(first, again);
    assert_ne!(first, other);
}
