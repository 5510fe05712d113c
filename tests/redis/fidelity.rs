//! Fidelity of the simulated servers (`tests/simulation/redis/`): the same calls on them and on real servers have the same
//! outcomes and leave the same keys.

use std::collections::BTreeMap;
use std::fmt::Debug;
use std::sync::{Arc, Mutex};

use hotpool::environment::Environment;
use hotpool::persist::row::RowFrames;
use hotpool::persist::store::redis::{OwnerIdentity, RedisOptions, RedisStore};
use hotpool::persist::store::{
    FenceSpan, LoadedShard, MissingRecord, ShardDamage, ShardKey, Store, StoreError, WriteBatch, WriteOutcome,
};
use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};
use tempfile::TempDir;
use uuid::Uuid;

use crate::servers::{Cluster, Server};
use crate::simulated_redis::{
    FaultRates, SimulatedRedis, SimulatedRedisSettings, SimulatedTopology, StoredValue, key_slot,
};
use crate::stores::{chunk, drop_of, install, options, rows};

const SHARDS: u16 = 3;
const STEPS: usize = 150;
/// Lease that no test outlives.
const LONG_LEASE_MS: u64 = 3_600_000;

fn shard(number: u16) -> ShardKey {
    ShardKey { pool: 7, shard: number }
}

/// Contents of one place: keys with their fields, or the text of a key of another type.
type Contents = BTreeMap<Vec<u8>, StoredValue>;

/// Real servers with all keys.
pub fn contents_of(server: &Server) -> Contents {
    let mut connection = redis::Client::open(server.url()).unwrap().get_connection().unwrap();
    let keys: Vec<Vec<u8>> = redis::cmd("KEYS").arg("*").query(&mut connection).unwrap();
    let value = |key: &Vec<u8>| {
        let kind: String = ask(&mut connection, redis::cmd("TYPE").arg(key));
        match kind.as_str() {
            "hash" => StoredValue::Hash(ask(&mut connection, redis::cmd("HGETALL").arg(key))),
            _ => StoredValue::Text(ask(&mut connection, redis::cmd("GET").arg(key))),
        }
    };
    let values: Vec<StoredValue> = keys.iter().map(value).collect();
    keys.into_iter().zip(values).collect()
}

/// Answer to a command on a key that may be of a slot that is moving here.
fn ask<T: redis::FromRedisValue>(connection: &mut redis::Connection, command: &redis::Cmd) -> T {
    let mut pipeline = redis::pipe();
    pipeline.ignore_errors().cmd("ASKING").add_command(command.clone());
    let mut answers: Vec<redis::RedisResult<redis::Value>> = pipeline.query(connection).unwrap();
    redis::from_redis_value(answers.pop().unwrap().unwrap()).unwrap()
}

/// Contents without what names the process.
fn anonymous(mut contents: Contents) -> Contents {
    for value in contents.values_mut() {
        if let StoredValue::Hash(fields) = value {
            fields.remove(&b"node"[..]);
            fields.remove(&b"who"[..]);
        }
    }
    contents
}

/// Outcome of a call without the texts of errors, which name the servers.
fn outcome<T: Debug>(result: Result<T, StoreError>) -> String {
    match result {
        Ok(value) => format!("{value:?}"),
        Err(StoreError::Unavailable(_)) => "unavailable".to_owned(),
        Err(StoreError::OwnedElsewhere(_)) => "owned elsewhere".to_owned(),
        Err(StoreError::Superseded(_)) => "superseded".to_owned(),
        Err(StoreError::Unusable(_)) => "unusable".to_owned(),
    }
}

/// Loaded shards, without the text of a damage that names the server.
fn anonymous_load(loaded: Result<Vec<LoadedShard>, StoreError>) -> String {
    let kind = |loaded: LoadedShard| match loaded.at {
        Err(ShardDamage::Server(text)) if text.contains("WRONGTYPE") => format!("{:?}: wrong type", loaded.shard),
        at => format!("{:?}: {at:?}", loaded.shard),
    };
    outcome(loaded.map(|loaded| loaded.into_iter().map(kind).collect::<Vec<_>>()))
}

/// Rows by shard, kind and id.
type LoadedRows = BTreeMap<(ShardKey, String), Option<Vec<u8>>>;

async fn load(store: &RedisStore, shards: Vec<ShardKey>) -> (String, LoadedRows) {
    let read: Arc<Mutex<LoadedRows>> = Arc::default();
    let into = Arc::clone(&read);
    let sink = move |shard: ShardKey, frames: &[u8]| {
        for frame in RowFrames::new(frames) {
            let frame = frame.expect("a frame");
            let id = format!("{:?}:{}", frame.kind, frame.id);
            into.lock().unwrap().insert((shard, id), frame.body.map(<[u8]>::to_vec));
        }
    };
    let loaded = store.load(shards, Box::new(sink)).await;
    let rows = std::mem::take(&mut *read.lock().unwrap());
    // Of a load that fails, the rows of the shards before may have been read.
    match loaded.is_ok() {
        true => (anonymous_load(loaded), rows),
        false => (anonymous_load(loaded), LoadedRows::new()),
    }
}

/// Settings of an owner that do not change.
#[derive(Debug, Clone, Copy)]
struct OwnerSettings {
    lease_ms: u64,
    standby: bool,
}

/// Stores of one owner: one on the real servers, one on the simulated ones.
struct Twins {
    settings: OwnerSettings,
    number: usize,
    dir: TempDir,
    real: Option<RedisStore>,
    simulated: RedisStore,
}

impl Twins {
    fn open(number: usize, settings: OwnerSettings, url: &str, redis: &SimulatedRedis) -> Self {
        let dir = TempDir::new().unwrap();
        let real = RedisStore::open(real_options(url, &dir, settings), Environment::system()).expect("open");
        let simulated = open_simulated(number, settings, redis, &dir);
        Self { settings, number, dir, real: Some(real), simulated }
    }

    /// Replaces both, like a process that starts again.
    fn reopen(&mut self, url: &str, redis: &SimulatedRedis) {
        self.real = None;
        let options = real_options(url, &self.dir, self.settings);
        self.real = Some(RedisStore::open(options, Environment::system()).expect("open"));
        self.simulated = open_simulated(self.number, self.settings, redis, &self.dir);
    }

    fn both(&self) -> [&RedisStore; 2] {
        [self.real.as_ref().expect("open"), &self.simulated]
    }
}

fn real_options(url: &str, dir: &TempDir, settings: OwnerSettings) -> RedisOptions {
    RedisOptions { lease_ms: settings.lease_ms, standby: settings.standby, ..options(url, dir) }
}

fn open_simulated(number: usize, settings: OwnerSettings, redis: &SimulatedRedis, dir: &TempDir) -> RedisStore {
    let options = RedisOptions { url: redis.url(), ..real_options("redis://unused", dir, settings) };
    let identity = OwnerIdentity { node: format!("node {number}"), label: format!("owner {number}") };
    RedisStore::open_on(options, redis.transport(Environment::system()), Environment::system(), identity)
}

/// Call of a store.
#[derive(Debug, Clone)]
enum Call {
    TakeOver(Uuid),
    Renew(MissingRecord),
    RaiseFences(FenceSpan),
    Resign,
    Load(Vec<ShardKey>),
    Apply(Vec<WriteBatch>),
    Reopen,
}

/// Random calls, which mostly continue what the store has.
struct CallGenerator {
    random: StdRng,
    /// Sequence number of each shard, as far as the outcomes tell.
    at: BTreeMap<ShardKey, u64>,
    /// Generation of the snapshot of each shard, and the number of its chunks.
    snapshots: BTreeMap<ShardKey, (u64, u32)>,
    generation: u64,
}

impl CallGenerator {
    fn new(seed: u64) -> Self {
        Self { random: StdRng::seed_from_u64(seed), at: BTreeMap::new(), snapshots: BTreeMap::new(), generation: 1 }
    }

    fn below(&mut self, bound: u64) -> u64 {
        self.random.random_range(0..bound)
    }

    fn next(&mut self) -> Call {
        match self.below(30) {
            0 | 1 => Call::TakeOver(Uuid::from_u128(self.random.random())),
            2 => Call::Renew(if self.below(2) == 0 { MissingRecord::Report } else { MissingRecord::Create }),
            3 => {
                let (floor, ceiling) = (self.below(100), 1_700_000_000_000_000 + self.below(100));
                Call::RaiseFences(FenceSpan { floor, ceiling })
            }
            4 if self.below(3) == 0 => Call::Resign,
            5 if self.below(3) == 0 => Call::Reopen,
            6..9 => {
                let shards: Vec<ShardKey> = (0..SHARDS).map(shard).collect();
                Call::Load(shards.into_iter().filter(|_| self.below(2) == 0).collect())
            }
            _ => {
                let shards: Vec<ShardKey> = (0..SHARDS).map(shard).collect();
                let shards: Vec<ShardKey> = shards.into_iter().filter(|_| self.below(3) > 0).collect();
                Call::Apply(shards.into_iter().map(|shard| self.batch(shard)).collect())
            }
        }
    }

    fn batch(&mut self, shard: ShardKey) -> WriteBatch {
        let at = self.at.get(&shard).copied().unwrap_or(0);
        let (generation, chunks) = self.snapshots.get(&shard).copied().unwrap_or((0, 0));
        let off = self.below(10);
        match self.below(20) {
            0..12 => {
                let from = if off == 0 { at.saturating_sub(self.below(3)) } else { at + u64::from(off == 1) };
                let to = from + self.below(4);
                rows(shard, from, to, &self.some_rows())
            }
            12 => {
                self.generation += 1;
                self.snapshots.insert(shard, (self.generation, 0));
                chunk(shard, self.generation, 0, &self.some_rows())
            }
            13..16 => chunk(shard, generation, chunks.saturating_add_signed((off == 0).into()), &self.some_rows()),
            16..19 => {
                let to = at + self.below(3);
                install(shard, to, generation, chunks + u32::from(off == 0), &self.some_rows())
            }
            _ if off < 3 => drop_of(shard),
            _ => rows(shard, at, at + 1, &(0..2_000).map(|uid| (uid, Some(off as u32))).collect::<Vec<_>>()),
        }
    }

    fn some_rows(&mut self) -> Vec<(u64, Option<u32>)> {
        let count = self.below(4);
        (0..count).map(|_| (self.below(5), (self.below(3) > 0).then(|| self.below(1_000) as u32))).collect()
    }

    /// Follows the outcome of a batch.
    fn note(&mut self, batch: &WriteBatch, outcome: WriteOutcome) {
        use hotpool::persist::store::WriteKind;
        let is_stored = outcome == WriteOutcome::Ok;
        match &batch.kind {
            WriteKind::Rows(_) | WriteKind::Install { .. } if is_stored => drop(self.at.insert(batch.shard, batch.to)),
            WriteKind::Chunk { .. } if is_stored => {
                self.snapshots.entry(batch.shard).and_modify(|(_, chunks)| *chunks += 1);
            }
            WriteKind::Drop if is_stored => drop(self.at.remove(&batch.shard)),
            _ => {}
        }
    }
}

/// Change by somebody else, on both sides.
fn disturb(random: &mut StdRng, server: &Server, redis: &SimulatedRedis) -> Option<String> {
    let keys: Vec<Vec<u8>> = redis.contents().into_keys().collect();
    if keys.is_empty() {
        return None;
    }
    let key = keys[random.random_range(0..keys.len())].clone();
    let name = String::from_utf8(key.clone()).expect("printable");
    match random.random_range(0..12) {
        0 => {
            let _: () = server.query(&["FLUSHALL"]);
            redis.flush_all();
            Some("FLUSHALL".to_owned())
        }
        1 => {
            let _: i64 = server.query(&["DEL", &name]);
            redis.put(&key, None);
            Some(format!("DEL {name}"))
        }
        2 => {
            let _: () = server.query(&["SET", &name, "mine"]);
            redis.put(&key, Some(StoredValue::Text(b"mine".to_vec())));
            Some(format!("SET {name}"))
        }
        3 => {
            let _: () = server.query(&["FUNCTION", "FLUSH"]);
            redis.lose_functions(0);
            Some("FUNCTION FLUSH".to_owned())
        }
        4 | 5 => {
            let headers = ["0 somebody 2 of the future", "99 somebody 1 live 5 0", "junk", "1 x 1 new 1 7"];
            let header = headers[random.random_range(0..headers.len())];
            let Some(StoredValue::Hash(mut fields)) = redis.contents().remove(&key) else { return None };
            if name.ends_with(":owner") {
                return None;
            }
            fields.insert(b"#".to_vec(), header.as_bytes().to_vec());
            redis.put(&key, Some(StoredValue::Hash(fields)));
            let _: i64 = server.query(&["HSET", &name, "#", header]);
            Some(format!("header of {name}: {header}"))
        }
        6 => {
            let Some(StoredValue::Hash(mut fields)) = redis.contents().remove(&key) else { return None };
            fields.insert(b"junk".to_vec(), b"1".to_vec());
            redis.put(&key, Some(StoredValue::Hash(fields)));
            let _: i64 = server.query(&["HSET", &name, "junk", "1"]);
            Some(format!("a strange field of {name}"))
        }
        _ => None,
    }
}

/// Makes one call on both stores of an owner and returns its outcome, which must be the same.
async fn call_both(twins: &mut Twins, call: &Call, url: &str, redis: &SimulatedRedis) -> (String, Vec<WriteOutcome>) {
    if matches!(call, Call::Reopen) {
        twins.reopen(url, redis);
    }
    let mut outcomes = Vec::new();
    let mut written = Vec::new();
    for store in twins.both() {
        outcomes.push(match call {
            Call::TakeOver(id) => outcome(store.take_over(*id).await),
            Call::Renew(missing) => outcome(store.renew(*missing).await),
            Call::RaiseFences(span) => outcome(store.raise_fence_ceiling(*span).await),
            Call::Resign => outcome(store.resign().await),
            Call::Load(shards) => {
                let (loaded, rows) = load(store, shards.clone()).await;
                format!("{loaded} {rows:?}")
            }
            Call::Apply(batches) => {
                let applied = store.apply(batches.clone()).await;
                written = applied.clone().unwrap_or_default();
                outcome(applied)
            }
            Call::Reopen => String::new(),
        });
    }
    assert_eq!(outcomes[0], outcomes[1], "on the real server and on the simulated one, of {call:?}");
    (outcomes.remove(0), written)
}

/// Runs a random sequence of calls of two owners.
async fn run_sequence(seed: u64, server: &Server, seen: &mut BTreeMap<String, usize>) {
    let _: () = server.query(&["FLUSHALL"]);
    let _: () = server.query(&["FUNCTION", "FLUSH"]);
    let redis = SimulatedRedis::new(SimulatedRedisSettings::standalone(), Environment::system());
    let mut calls = CallGenerator::new(seed);
    let mut random = StdRng::seed_from_u64(!seed);
    let url = server.url();
    let mut owners: Vec<Twins> = (0..2)
        .map(|number| {
            let lease_ms = if calls.below(2) == 0 { 0 } else { LONG_LEASE_MS };
            let settings = OwnerSettings { lease_ms, standby: calls.below(2) == 0 };
            Twins::open(number, settings, &url, &redis)
        })
        .collect();
    let mut active = 0;
    for step in 0..STEPS {
        let context = format!("seed {seed}, step {step}");
        if calls.below(12) == 0 {
            active = 1 - active;
        }
        let call = calls.next();
        println!("{context}, owner {active}: {call:?}");
        let (outcome, written) = call_both(&mut owners[active], &call, &url, &redis).await;
        if let Call::Apply(batches) = &call {
            for (batch, outcome) in batches.iter().zip(written) {
                calls.note(batch, outcome);
                *seen.entry(format!("{outcome:?}")).or_default() += 1;
            }
        } else {
            let kind = outcome.split([' ', '(']).next().unwrap_or_default().to_owned();
            *seen.entry(kind).or_default() += 1;
        }
        if let Some(what) = disturb(&mut random, server, &redis) {
            println!("{context}: {what}");
        }
        assert_eq!(anonymous(redis.contents()), anonymous(contents_of(server)), "{context}: keys, simulated and real");
    }
}

#[tokio::test]
async fn random_calls_of_two_owners_have_the_outcomes_that_they_have_on_a_real_server() {
    let server = Server::start(&[]);
    let mut seen = BTreeMap::new();
    // A failure prints the seed and the step.
    let seeds: Vec<u64> = match std::env::var("HOTPOOL_SEED") {
        Ok(seed) => vec![seed.parse().expect("a number")],
        Err(_) => (0..12).collect(),
    };
    let is_whole = seeds.len() > 1;
    for seed in seeds {
        run_sequence(seed, &server, &mut seen).await;
    }
    if is_whole {
        for kind in ["Ok", "Duplicate", "Gap", "Fenced", "owned", "superseded", "OwnershipRecord", "Renewed", "Missing"]
        {
            assert!(seen.get(kind).is_some_and(|count| *count > 2), "{kind} does not occur: {seen:?}");
        }
    }
}

/// Compares the keys of each master.
fn assert_same_masters(cluster: &Cluster, redis: &SimulatedRedis, phase: &str) {
    for (at, master) in cluster.masters.iter().enumerate() {
        assert_eq!(anonymous(redis.contents_of(at)), anonymous(contents_of(master)), "{phase}: master {at}");
    }
}

/// Move of the slot of a shard to the next master, on both sides.
struct SlotMove<'a> {
    slot: u16,
    keys: Vec<Vec<u8>>,
    source: usize,
    target: usize,
    cluster: &'a Cluster,
    redis: &'a SimulatedRedis,
}

impl<'a> SlotMove<'a> {
    fn begin(shard: ShardKey, cluster: &'a Cluster, redis: &'a SimulatedRedis) -> Self {
        let name = format!(":{}.{}:", shard.pool, shard.shard);
        let keys: Vec<Vec<u8>> = redis.contents().into_keys().collect();
        let is_of_shard = |key: &Vec<u8>| String::from_utf8_lossy(key).contains(&name);
        let keys: Vec<Vec<u8>> = keys.into_iter().filter(is_of_shard).collect();
        let slot = key_slot(&keys[0]);
        let source = redis.shard_of(slot);
        let target = (source + 1) % 3;
        let this = Self { slot, keys, source, target, cluster, redis };
        this.set_slot(target, "IMPORTING", source);
        this.set_slot(source, "MIGRATING", target);
        assert!(redis.begin_slot_move(slot, target));
        this
    }

    fn set_slot(&self, at: usize, state: &str, other: usize) {
        let id: String = self.cluster.masters[other].query(&["CLUSTER", "MYID"]);
        let () = self.cluster.masters[at].query(&["CLUSTER", "SETSLOT", &self.slot.to_string(), state, &id]);
    }

    fn move_one_key(&self) {
        let present = self.redis.contents_of(self.source);
        let Some(key) = self.keys.iter().find(|key| present.contains_key(*key)) else { return };
        let (port, name) = (self.cluster.masters[self.target].port.to_string(), String::from_utf8_lossy(key));
        let migrate = ["MIGRATE", "127.0.0.1", &port, &name, "0", "10000"];
        let _: redis::Value = self.cluster.masters[self.source].query(&migrate);
        assert_eq!(self.redis.move_keys(self.slot, 1), 1);
    }

    fn end(&self) {
        for at in [self.target, self.source, (self.source + 2) % 3] {
            self.set_slot(at, "NODE", self.target);
        }
        self.redis.end_slot_move(self.slot);
    }
}

#[tokio::test]
async fn calls_during_the_move_of_a_slot_have_the_outcomes_that_they_have_on_a_real_cluster() {
    let cluster = Cluster::start(3, 0, &[]);
    let settings = SimulatedRedisSettings {
        topology: SimulatedTopology::Cluster { masters: 3 },
        has_replicas: false,
        rates: FaultRates::default(),
    };
    let redis = SimulatedRedis::new(settings, Environment::system());
    let url = cluster.url();
    let settings = OwnerSettings { lease_ms: LONG_LEASE_MS, standby: false };
    let mut owner = Twins::open(0, settings, &url, &redis);
    let shards: Vec<ShardKey> = (0..SHARDS).map(shard).collect();
    let all = |from: u64| {
        let batches = shards.iter().map(|shard| rows(*shard, from, from + 1, &[(from, Some(1))]));
        Call::Apply(batches.collect())
    };
    // A snapshot of the first shard is under way, so both of its sides exist. The second has one.
    let begin = chunk(shards[0], 3, 0, &[(9, Some(9))]);
    for call in [Call::TakeOver(Uuid::from_u128(1)), Call::Load(shards.clone()), all(0), Call::Apply(vec![begin])] {
        call_both(&mut owner, &call, &url, &redis).await;
    }
    assert_same_masters(&cluster, &redis, "before the move");
    let moves = [shards[0], shards[1]].map(|shard| SlotMove::begin(shard, &cluster, &redis));
    assert_eq!(moves.each_ref().map(|moved| moved.keys.len()), [2, 1]);
    let mut outcomes = BTreeMap::new();
    for (at, phase) in ["begun", "one key of each moved", "all keys moved"].into_iter().enumerate() {
        let [first, second] = [chunk(shards[0], 3, 1, &[(8, Some(8))]), chunk(shards[1], 4, 0, &[])];
        let calls = [
            all(1 + at as u64),
            Call::Load(vec![shards[0]]),
            Call::Load(vec![shards[1]]),
            Call::Renew(MissingRecord::Report),
            Call::Apply(vec![first]),
        ];
        for call in &calls {
            let (outcome, _) = call_both(&mut owner, call, &url, &redis).await;
            *outcomes.entry(outcome).or_insert(0) += 1;
        }
        if phase != "begun" {
            // Its other side is on neither server.
            let (outcome, _) = call_both(&mut owner, &Call::Apply(vec![second]), &url, &redis).await;
            assert_eq!(outcome, "[Unanswered]", "{phase}");
        }
        assert_same_masters(&cluster, &redis, phase);
        for moved in &moves {
            moved.move_one_key();
        }
    }
    assert!(outcomes.contains_key("[Ok, Ok, Ok]") && outcomes.contains_key("unavailable {}"), "{outcomes:?}");
    for moved in &moves {
        moved.end();
    }
    let second = chunk(shards[1], 4, 0, &[(1, Some(2))]);
    for call in [all(4), Call::Apply(vec![second]), Call::Load(shards.clone())] {
        call_both(&mut owner, &call, &url, &redis).await;
    }
    assert_same_masters(&cluster, &redis, "after the move");
}
