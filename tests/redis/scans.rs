//! Loads during which rows change their server, or a server its role: every row is read, or the scan restarts.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use hotpool::environment::Environment;
use hotpool::persist::row::RowFrames;
use hotpool::persist::store::redis::RedisStore;
use hotpool::persist::store::{ShardDamage, ShardKey, Store, StoreError, WriteOutcome};
use redis::Value;
use tempfile::TempDir;
use tokio::runtime::Handle;

use crate::relay::Relay;
use crate::servers::{Cluster, Server, until};
use crate::stores::{install, is, load, one, options, owned, rows};

const A: ShardKey = ShardKey { pool: 7, shard: 0 };
/// Number of rows, slightly more than ten pages: the fifth is in the middle.
const ROWS: u64 = 10_500;
const MIDDLE: usize = 5;

fn dir() -> TempDir {
    TempDir::new().expect("a directory")
}

fn all(mark: u32) -> Vec<(u64, Option<u32>)> {
    (0..ROWS).map(|uid| (uid, Some(mark))).collect()
}

/// Creates a store with a shard of many pages at 1.
async fn filled(url: &str, dir: &TempDir) -> RedisStore {
    let store = owned(url, dir).await;
    assert_eq!(one(&store, rows(A, 0, 1, &all(1))).await, WriteOutcome::Ok);
    store
}

/// Asserts that the shard was found at `at`, with rows 0 to `count`.
fn holds(found: &(Result<u64, ShardDamage>, BTreeMap<u64, u32>), at: u64, count: u64) {
    assert_eq!(found.0, Ok(at));
    let missing: Vec<u64> = (0..count).filter(|uid| !found.1.contains_key(uid)).collect();
    assert_eq!((missing.len(), found.1.len() as u64), (0, count), "missing, and found in all");
}

/// Master that has the shard, its index, and the key of the shard.
fn place_of(cluster: &Cluster) -> (usize, String) {
    let keys = |server: &Server| server.query::<Vec<String>>(&["KEYS", "*:7.0:?"]);
    let at = cluster.masters.iter().position(|server| !keys(server).is_empty()).expect("somewhere");
    (at, keys(&cluster.masters[at]).remove(0))
}

/// Migration of the shard's slot to the next master, in two halves.
struct Move {
    ports: Vec<u16>,
    ids: [String; 2],
    slot: String,
    key: String,
}

impl Move {
    fn of(cluster: &Cluster) -> Self {
        let (at, key) = place_of(cluster);
        let mut masters: Vec<&Server> = cluster.masters.iter().collect();
        masters.rotate_left(at);
        let slot: i64 = masters[0].query(&["CLUSTER", "KEYSLOT", &key]);
        let id = |server: &Server| server.query(&["CLUSTER", "MYID"]);
        let ids = [id(masters[0]), id(masters[1])];
        Self { ports: masters.iter().map(|server| server.port).collect(), ids, slot: slot.to_string(), key }
    }

    fn query(&self, at: usize, command: &[&str]) {
        let client = redis::Client::open(format!("redis://127.0.0.1:{}", self.ports[at])).unwrap();
        let answer = redis::cmd(command[0]).arg(&command[1..]).query::<Value>(&mut client.get_connection().unwrap());
        answer.unwrap_or_else(|error| panic!("{command:?}: {error}"));
    }

    /// Moves the keys while the slot stays migrating.
    fn begin(&self) {
        self.query(1, &["CLUSTER", "SETSLOT", &self.slot, "IMPORTING", &self.ids[0]]);
        self.query(0, &["CLUSTER", "SETSLOT", &self.slot, "MIGRATING", &self.ids[1]]);
        self.query(0, &["MIGRATE", "127.0.0.1", &self.ports[1].to_string(), &self.key, "0", "10000"]);
    }

    fn end(&self) {
        for at in [1, 0, 2] {
            self.query(at, &["CLUSTER", "SETSLOT", &self.slot, "NODE", &self.ids[1]]);
        }
    }
}

/// Runs an action once, before the page in the middle.
fn once(mut step: impl FnMut() + Send + 'static) -> impl FnMut(usize) + Send + 'static {
    let mut done = false;
    move |page| {
        if page >= MIDDLE && !std::mem::replace(&mut done, page >= MIDDLE) {
            step();
        }
    }
}

#[tokio::test]
async fn s14_a_load_during_a_slot_migration_has_every_row() {
    let (cluster, dir) = (Cluster::start(3, 0, &[]), dir());
    drop(filled(&cluster.url(), &dir).await);
    let moving = Move::of(&cluster);
    let relay = Relay::before_node(&cluster, &cluster.masters[place_of(&cluster).0]);
    let store = owned(&cluster.url(), &dir).await;
    relay.on_page(once(move || {
        moving.begin();
        moving.end();
    }));
    holds(&load(&store, A).await, 1, ROWS);
    assert_eq!(one(&store, rows(A, 1, 2, &[(1, Some(2))])).await, WriteOutcome::Ok, "and is the owner's");
}

#[tokio::test]
async fn s14_a_slot_that_keeps_migrating_is_unavailable_after_a_bounded_number_of_pages_and_later_has_every_row() {
    let (cluster, dir) = (Cluster::start(3, 0, &[]), dir());
    drop(filled(&cluster.url(), &dir).await);
    let (moving, pages) = (Arc::new(Move::of(&cluster)), Arc::new(AtomicUsize::new(0)));
    let relay = Relay::before_node(&cluster, &cluster.masters[place_of(&cluster).0]);
    let store = owned(&cluster.url(), &dir).await;
    let (begun, seen) = (Arc::clone(&moving), Arc::clone(&pages));
    let mut begin = once(move || begun.begin());
    relay.on_page(move |page| {
        seen.store(page, Ordering::SeqCst);
        begin(page);
    });
    for _ in 0..3 {
        let error = store
            .load(vec![A], Box::new(|_, _| panic!("a row of half a scan")))
            .await
            .expect_err("the slot is migrating");
        assert!(matches!(&error, StoreError::Unavailable(why) if why.contains("slot is migrating")), "{error:?}");
    }
    assert_eq!(pages.load(Ordering::SeqCst), MIDDLE, "no page is read after the one that cannot be checked");
    moving.end();
    holds(&load(&store, A).await, 1, ROWS);
}

#[tokio::test]
async fn s14_a_load_during_a_planned_failover_has_every_row() {
    let (cluster, dir) = (Cluster::start(3, 1, &[]), dir());
    drop(filled(&cluster.url(), &dir).await);
    cluster.settle();
    let (at, _) = place_of(&cluster);
    let relay = Relay::before_node(&cluster, &cluster.masters[at]);
    // The replica now knows the address of the relay, and replicates through it.
    until("it follows again", || {
        let about: String = cluster.replicas[at].query(&["INFO", "replication"]);
        about.contains(&format!("master_port:{}", relay.port)) && about.contains("master_link_status:up")
    });
    let store = owned(&cluster.url(), &dir).await;
    let replica = cluster.replicas[at].port;
    relay.on_page(once(move || {
        let mut replica =
            redis::Client::open(format!("redis://127.0.0.1:{replica}")).unwrap().get_connection().unwrap();
        // Nodes may still be reconnecting to the one that changed its address.
        until("it takes over", || redis::cmd("CLUSTER").arg("FAILOVER").query::<()>(&mut replica).is_ok());
        until("it is promoted", || {
            let about: String = redis::cmd("INFO").arg("replication").query(&mut replica).unwrap();
            about.contains("role:master")
        });
    }));
    holds(&load(&store, A).await, 1, ROWS);
    let about: String = cluster.masters[at].query(&["INFO", "replication"]);
    assert!(about.contains("role:slave"), "it was in the middle");
}

/// Starts one server, a store filled directly, and a relay for readers.
async fn single() -> (Server, TempDir, RedisStore, Relay) {
    let (server, dir) = (Server::start(&[]), dir());
    let store = filled(&server.url(), &dir).await;
    let relay = Relay::before(&server);
    (server, dir, store, relay)
}

fn reader(relay: &Relay, dir: &TempDir) -> RedisStore {
    RedisStore::open_read_only(options(&format!("redis://127.0.0.1:{}", relay.port), dir), Environment::system())
        .expect("open")
}

#[tokio::test]
async fn s14_a_connection_that_breaks_during_a_scan_restarts_it() {
    let (server, dir, _owner, relay) = single().await;
    let (client, port) = (reader(&relay, &dir), server.port);
    relay.on_page(once(move || {
        let server = redis::Client::open(format!("redis://127.0.0.1:{port}")).unwrap();
        let mut connection = server.get_connection().unwrap();
        redis::cmd("CLIENT").arg(&["KILL", "TYPE", "normal"]).query::<i64>(&mut connection).unwrap();
    }));
    holds(&load(&client, A).await, 1, ROWS);
}

#[tokio::test]
async fn s14_rows_added_without_a_new_header_are_missed_by_no_load() {
    let (server, dir, _owner, relay) = single().await;
    let key = server.query::<Vec<String>>(&["KEYS", "*:7.0:a"]).remove(0);
    let (client, port) = (reader(&relay, &dir), server.port);
    // Most of them are in parts that the scan has passed; only the count reveals them.
    relay.on_page(once(move || {
        let server = redis::Client::open(format!("redis://127.0.0.1:{port}")).unwrap();
        let mut connection = server.get_connection().unwrap();
        for uid in ROWS..ROWS + 500 {
            let body: Vec<u8> = redis::cmd("HGET").arg(&key).arg("p:1").query(&mut connection).unwrap();
            redis::cmd("HSET").arg(&key).arg(format!("p:{uid}")).arg(body).query::<i64>(&mut connection).unwrap();
        }
    }));
    let read: Arc<Mutex<Vec<u8>>> = Arc::default();
    let into = Arc::clone(&read);
    let sink = Box::new(move |_, page: &[u8]| into.lock().unwrap().extend(page));
    assert_eq!(client.load(vec![A], sink).await.expect("load")[0].at, Ok(1));
    let read = read.lock().unwrap();
    let ids: BTreeSet<&str> = RowFrames::new(&read).map(|frame| frame.expect("whole").id).collect();
    assert_eq!(ids.len() as u64, ROWS + 500);
}

#[tokio::test(flavor = "multi_thread")]
async fn s14_a_reader_gets_no_row_of_a_side_that_was_replaced_meanwhile() {
    let (_server, dir, owner, relay) = single().await;
    let (client, runtime, owner) = (reader(&relay, &dir), Handle::current(), Arc::new(owner));
    let installing = Arc::clone(&owner);
    relay.on_page(once(move || {
        assert_eq!(runtime.block_on(one(&installing, install(A, 2, 9, 0, &[(3, Some(2))]))), WriteOutcome::Ok);
    }));
    assert_eq!(load(&client, A).await, is(2, &[(3, 2)]));
}

#[tokio::test(flavor = "multi_thread")]
async fn s14_a_reader_sees_a_shard_that_is_written_all_the_time() {
    let (_server, dir, owner, relay) = single().await;
    let (client, runtime) = (reader(&relay, &dir), Handle::current());
    let mut at = 1;
    relay.on_page(move |_| {
        assert_eq!(runtime.block_on(one(&owner, rows(A, at, at + 1, &[(ROWS, Some(7))]))), WriteOutcome::Ok);
        at += 1;
    });
    let (at, found) = load(&client, A).await;
    assert_eq!(at, Ok(1));
    assert!((0..ROWS).all(|uid| found.get(&uid) == Some(&1)), "rows that were not changed are read");
}
