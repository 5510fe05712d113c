//! The contract of `hotpool::persist::store`, held against real Redis servers.

use WriteOutcome::{Duplicate, Fenced, Gap, Ok as Applied};
use hotpool::environment::Environment;
use hotpool::persist::store::redis::{RedisOptions, RedisStore};
use hotpool::persist::store::{
    FenceSpan, MissingRecord, OwnershipRecord, RenewalOutcome, ShardKey, Store, StoreError, WriteOutcome,
};
use tempfile::TempDir;
use uuid::Uuid;

use crate::servers::{Cluster, Server};
use crate::stores::{chunk, drop_of, install, is, load, one, options, owned, rows};

const A: ShardKey = ShardKey { pool: 7, shard: 0 };
const B: ShardKey = ShardKey { pool: 7, shard: 1 };

fn dir() -> TempDir {
    TempDir::new().expect("a directory")
}

fn span(floor: u64, ceiling: u64) -> FenceSpan {
    FenceSpan { floor, ceiling }
}

#[tokio::test]
async fn each_row_of_the_outcome_table_holds() {
    let (server, dir) = (Server::start(&[]), dir());
    let store = owned(&server.url(), &dir).await;
    assert_eq!(load(&store, A).await, is(0, &[]), "nothing there");
    assert_eq!(one(&store, rows(A, 0, 2, &[(1, Some(1)), (2, Some(1))])).await, Applied);
    assert_eq!(one(&store, rows(A, 0, 2, &[(1, Some(9))])).await, Duplicate, "to <= at");
    assert_eq!(one(&store, rows(A, 1, 3, &[(2, None), (3, Some(1))])).await, Applied, "from <= at < to");
    assert_eq!(one(&store, rows(A, 4, 5, &[(1, Some(9))])).await, Gap, "at < from");
    assert_eq!(one(&store, rows(A, 3, 3, &[])).await, Duplicate, "an empty batch reads the sequence number");
    assert_eq!(load(&store, A).await, is(3, &[(1, 1), (3, 1)]));
    assert_eq!(one(&store, drop_of(A)).await, Applied);
    assert_eq!(one(&store, drop_of(A)).await, Duplicate);
    let left: Vec<String> = server.query(&["KEYS", "*7.0*"]);
    assert_eq!(left, Vec::<String>::new(), "a drop leaves nothing");
}

#[tokio::test]
async fn a_batch_puts_and_deletes_in_order_however_many_rows_it_has() {
    let (server, dir) = (Server::start(&[]), dir());
    let store = owned(&server.url(), &dir).await;
    let mut many: Vec<(u64, Option<u32>)> = (0..10_000).map(|uid| (uid, Some(1))).collect();
    many.extend((0..9_998).map(|uid| (uid, None)));
    many.extend([(9_998, None), (5, Some(2))]);
    assert_eq!(one(&store, rows(A, 0, 1, &many)).await, Applied);
    assert_eq!(load(&store, A).await, is(1, &[(5, 2), (9_999, 1)]));
}

#[tokio::test]
async fn s03_an_owner_that_was_superseded_is_fenced_by_every_shard_and_by_the_record() {
    let (server, old_dir, new_dir) = (Server::start(&[]), dir(), dir());
    let old = owned(&server.url(), &old_dir).await;
    assert_eq!(one(&old, rows(A, 0, 1, &[(1, Some(1))])).await, Applied);
    assert_eq!(one(&old, rows(B, 0, 1, &[(1, Some(1))])).await, Applied);
    old.resign().await.expect("resign");
    let new = owned(&server.url(), &new_dir).await;
    assert_eq!(load(&new, A).await, is(1, &[(1, 1)]));
    assert_eq!(one(&old, rows(A, 1, 2, &[(1, Some(9))])).await, Fenced);
    assert_eq!(one(&old, install(A, 2, 5, 0, &[])).await, Fenced);
    assert_eq!(one(&old, chunk(A, 5, 0, &[])).await, Fenced);
    assert_eq!(one(&old, drop_of(A)).await, Fenced);
    assert_eq!(old.renew(MissingRecord::Create).await.expect("renew"), RenewalOutcome::Fenced);
    assert!(old.raise_fence_ceiling(span(0, u64::from(u32::MAX))).await.is_err());
    // The new owner has not loaded B: a late write of the old one is found when it does.
    assert_eq!(one(&old, rows(B, 1, 2, &[(2, Some(1))])).await, Applied);
    assert_eq!(load(&new, B).await, is(2, &[(1, 1), (2, 1)]));
    assert_eq!(one(&old, rows(B, 2, 3, &[(2, Some(9))])).await, Fenced);
    assert_eq!(load(&new, B).await, is(2, &[(1, 1), (2, 1)]));
}

#[tokio::test]
async fn a_snapshot_replaces_all_rows_at_once_and_is_rejected_unless_every_chunk_is_stored() {
    let (server, dir) = (Server::start(&[]), dir());
    let store = owned(&server.url(), &dir).await;
    assert_eq!(one(&store, rows(A, 0, 1, &[(1, Some(1)), (2, Some(1))])).await, Applied);
    assert_eq!(one(&store, chunk(A, 10, 0, &[(2, Some(2))])).await, Applied);
    assert_eq!(one(&store, chunk(A, 10, 0, &[(2, Some(2))])).await, Duplicate, "the reply was lost");
    assert_eq!(one(&store, chunk(A, 10, 2, &[(4, Some(2))])).await, Gap, "number 1 is missing");
    assert_eq!(one(&store, install(A, 9, 10, 2, &[])).await, Gap, "an install too");
    assert_eq!(load(&store, A).await, is(1, &[(1, 1), (2, 1)]), "until the install nothing has changed");
    assert_eq!(one(&store, rows(A, 1, 2, &[(1, None)])).await, Applied, "and batches continue");
    assert_eq!(
        one(&store, chunk(A, 11, 0, &[(3, Some(3))])).await,
        Applied,
        "another attempt starts from its first chunk"
    );
    assert_eq!(one(&store, chunk(A, 11, 1, &[(4, Some(3)), (3, Some(4))])).await, Applied);
    assert_eq!(one(&store, install(A, 9, 11, 2, &[(4, None)])).await, Applied);
    assert_eq!(load(&store, A).await, is(9, &[(3, 4)]));
    assert_eq!(one(&store, rows(A, 9, 10, &[(5, Some(1))])).await, Applied);
    let sides: Vec<String> = server.query(&["KEYS", "*7.0*"]);
    assert_eq!(sides.len(), 1, "the old generation is gone: {sides:?}");
    // Back to the first side.
    assert_eq!(one(&store, chunk(A, 12, 0, &[(6, Some(1))])).await, Applied);
    assert_eq!(one(&store, install(A, 11, 12, 1, &[])).await, Applied);
    assert_eq!(load(&store, A).await, is(11, &[(6, 1)]));
}

#[tokio::test]
async fn a_late_copy_of_an_earlier_attempt_does_not_change_the_live_side() {
    let (server, dir) = (Server::start(&[]), dir());
    let store = owned(&server.url(), &dir).await;
    assert_eq!(one(&store, rows(A, 0, 1, &[(1, Some(1))])).await, Applied);
    assert_eq!(one(&store, chunk(A, 11, 0, &[(2, Some(1))])).await, Applied);
    assert_eq!(one(&store, install(A, 2, 11, 1, &[])).await, Applied);
    let record: Vec<String> = server.query(&["HMGET", owner_key(&server).as_str(), "owner", "epoch"]);
    let live = &server.query::<Vec<String>>(&["KEYS", "*7.0:b"])[0];
    let other = format!("{}a", live.trim_end_matches('b'));
    let libraries: Vec<Vec<redis::Value>> = server.query(&["FUNCTION", "LIST"]);
    let name: String = redis::from_redis_value(libraries[0][1].clone()).unwrap();
    // Chunk 0 of generation 10, as sent when `b` was the side to fill.
    let late =
        [&format!("{name}_write_chunk"), "2", &other, live, &record[1], &record[0], "10", "0", "P", "2", "p:9", "x"];
    let answer: String = server.query(&[&["FCALL"], late.as_slice()].concat());
    assert_eq!(answer, "gap");
    assert_eq!(load(&store, A).await, is(2, &[(2, 1)]));
}

#[tokio::test]
async fn a_late_copy_of_an_install_does_not_take_the_shard_back() {
    let (server, dir) = (Server::start(&[]), dir());
    let store = owned(&server.url(), &dir).await;
    assert_eq!(one(&store, rows(A, 0, 1, &[(1, Some(1))])).await, Applied);
    let live = server.query::<Vec<String>>(&["KEYS", "*7.0:a"]).remove(0);
    let other = format!("{}b", live.trim_end_matches('a'));
    // An empty snapshot goes to the other side, a second one back.
    assert_eq!(one(&store, install(A, 2, 10, 0, &[(2, Some(1))])).await, Applied);
    assert_eq!(one(&store, install(A, 3, 11, 0, &[(3, Some(1))])).await, Applied);
    let record: Vec<String> = server.query(&["HMGET", owner_key(&server).as_str(), "owner", "epoch"]);
    let libraries: Vec<Vec<redis::Value>> = server.query(&["FUNCTION", "LIST"]);
    let name: String = redis::from_redis_value(libraries[0][1].clone()).unwrap();
    let function = format!("{name}_install");
    let late = ["FCALL", &function, "2", &live, &other, &record[1], &record[0], "10", "0", "2", "P", "2", "p:2", "x"];
    let answer: String = server.query(&late);
    assert_eq!(answer, "gap");
    assert_eq!(load(&store, A).await, is(3, &[(3, 1)]));
}

#[tokio::test]
async fn s02_an_install_whose_answer_was_lost_is_a_duplicate() {
    let (server, dir) = (Server::start(&[]), dir());
    let store = owned(&server.url(), &dir).await;
    assert_eq!(one(&store, rows(A, 0, 1, &[(1, Some(1))])).await, Applied);
    assert_eq!(one(&store, chunk(A, 3, 0, &[(2, Some(1))])).await, Applied);
    // The server applies it, but the answer is lost.
    let twin = twin_of(&store, &server, &dir).await;
    assert_eq!(one(&twin, install(A, 2, 3, 1, &[])).await, Applied);
    assert_eq!(one(&store, install(A, 2, 3, 1, &[])).await, Duplicate);
    assert_eq!(one(&store, rows(A, 2, 3, &[(3, Some(1))])).await, Applied, "it knows the live side");
    assert_eq!(load(&store, A).await, is(3, &[(2, 1), (3, 1)]));
}

/// Creates another handle of the same owner and epoch, like the same process after a broken connection.
async fn twin_of(store: &RedisStore, server: &Server, dir: &TempDir) -> RedisStore {
    let record: Vec<String> = server.query(&["HMGET", owner_key(server).as_str(), "owner", "epoch"]);
    let epoch: u64 = record[1].parse().unwrap();
    let _: i64 = server.query(&["HSET", &owner_key(server), "epoch", &(epoch - 1).to_string()]);
    let twin = RedisStore::open_read_only(options(&server.url(), dir), Environment::system()).expect("open");
    let _: i64 = server.query(&["HSET", &owner_key(server), "node", ""]);
    twin.take_over(record[0].parse::<Uuid>().unwrap()).await.expect("take over");
    assert_eq!(store.renew(MissingRecord::Report).await.expect("renew"), RenewalOutcome::Renewed, "the same owner");
    twin
}

fn owner_key(server: &Server) -> String {
    let keys: Vec<String> = server.query(&["KEYS", "hotpool:*:owner"]);
    keys[0].clone()
}

#[tokio::test]
async fn s04_lost_rows_are_a_gap_and_a_snapshot_closes_it() {
    let (server, dir) = (Server::start(&[]), dir());
    let store = owned(&server.url(), &dir).await;
    assert_eq!(one(&store, rows(A, 0, 1, &[(1, Some(1))])).await, Applied);
    let _: () = server.query(&["FLUSHALL"]);
    assert_eq!(one(&store, rows(A, 1, 1, &[])).await, Gap, "an empty batch detects it");
    assert_eq!(one(&store, rows(A, 1, 2, &[(2, Some(1))])).await, Gap);
    assert_eq!(one(&store, chunk(A, 1, 0, &[(1, Some(1))])).await, Applied);
    assert_eq!(one(&store, install(A, 2, 1, 1, &[(2, Some(1))])).await, Applied);
    assert_eq!(load(&store, A).await, is(2, &[(1, 1), (2, 1)]));
    assert_eq!(
        store.renew(MissingRecord::Report).await.expect("renew"),
        RenewalOutcome::Missing,
        "the record was lost too"
    );
    assert_eq!(store.renew(MissingRecord::Create).await.expect("renew"), RenewalOutcome::Renewed);
    assert_eq!(store.renew(MissingRecord::Report).await.expect("renew"), RenewalOutcome::Renewed);
}

#[tokio::test]
async fn a_key_of_another_type_is_rejected_at_load_and_replaced_under_a_running_owner() {
    let (server, first) = (Server::start(&[]), dir());
    let store = owned(&server.url(), &first).await;
    for shard in [A, B] {
        assert_eq!(one(&store, rows(shard, 0, 1, &[(1, Some(1))])).await, Applied);
    }
    let keys: Vec<String> = server.query(&["KEYS", "*7.?:a"]);
    assert_eq!(keys.len(), 2);
    for key in &keys {
        let _: () = server.query(&["SET", key, "mine"]);
    }
    assert_eq!(one(&store, rows(A, 1, 2, &[(2, Some(1))])).await, Gap);
    assert_eq!(one(&store, chunk(A, 1, 0, &[(1, Some(1))])).await, Applied);
    assert_eq!(one(&store, install(A, 2, 1, 1, &[])).await, Applied);
    assert_eq!(load(&store, A).await, is(2, &[(1, 1)]));
    let (at, _) = load(&store, B).await;
    assert!(at.as_ref().is_err_and(|why| why.to_string().contains("is a string")), "{at:?}");
}

#[tokio::test]
async fn s06_a_header_of_a_later_version_is_rejected_and_one_of_a_later_epoch_fences() {
    let (server, dir) = (Server::start(&[]), dir());
    let store = owned(&server.url(), &dir).await;
    assert_eq!(one(&store, rows(A, 0, 1, &[(1, Some(1))])).await, Applied);
    let key = &server.query::<Vec<String>>(&["KEYS", "*7.0:a"])[0];
    let _: i64 = server.query(&["HSET", key, "#", "1 somebody 2 of the future"]);
    // The epoch of another owner.
    assert_eq!(one(&store, rows(A, 1, 2, &[])).await, Fenced);
    let _: i64 = server.query(&["HSET", key, "#", "0 somebody 2 of the future"]);
    let (at, _) = load(&store, A).await;
    assert!(at.as_ref().is_err_and(|why| why.to_string().contains("another version")), "{at:?}");
    let _: i64 = server.query(&["HSET", key, "#", "99 somebody 1 live 5 0"]);
    let sink = Box::new(|_: ShardKey, _: &[u8]| {});
    let error = store.load(vec![A], sink).await.expect_err("not ours");
    assert!(matches!(error, StoreError::Superseded(_)), "{error}");
    let taken = store.take_over(Uuid::now_v7()).await.expect("once more");
    assert_eq!(taken.epoch, 100, "above every epoch that a shard has seen");
    assert_eq!(load(&store, A).await, is(5, &[(1, 1)]));
}

#[tokio::test]
async fn s13_the_fence_ceiling_and_the_epoch_survive() {
    let (server, dir) = (Server::start(&["--appendonly", "yes", "--appendfsync", "always"]), dir());
    let store = owned(&server.url(), &dir).await;
    store.raise_fence_ceiling(span(0, 77)).await.expect("raise");
    store.raise_fence_ceiling(span(0, 50)).await.expect("a lower one changes nothing");
    drop(store);
    let store = RedisStore::open(options(&server.url(), &dir), Environment::system()).expect("open");
    let taken = store.take_over(Uuid::now_v7()).await.expect("take over");
    assert_eq!((taken.epoch, taken.fence_ceiling), (2, 77));
}

#[tokio::test]
async fn s19_the_floor_of_fences_is_that_of_the_last_owner_that_granted_any() {
    let (server, dir) = (Server::start(&[]), dir());
    let take = async |raise_to: Option<u64>| {
        let store = RedisStore::open(options(&server.url(), &dir), Environment::system()).expect("open");
        let OwnershipRecord { fence_floor, fence_ceiling, .. } =
            store.take_over(Uuid::now_v7()).await.expect("take over");
        assert_eq!(
            store.renew(MissingRecord::Create).await.expect("renew"),
            RenewalOutcome::Renewed,
            "that alone says nothing of fences"
        );
        if let Some(ceiling) = raise_to {
            store.raise_fence_ceiling(span(fence_ceiling, ceiling)).await.expect("raise");
        }
        (fence_floor, fence_ceiling)
    };
    assert_eq!(take(Some(100)).await, (0, 0));
    assert_eq!(take(None).await, (0, 100), "the takeover of an owner that hands out none");
    assert_eq!(take(Some(200)).await, (0, 100), "leaves it as it was");
    assert_eq!(take(Some(300)).await, (100, 200));
    assert_eq!(take(Some(400)).await, (200, 300));
}

/// Checks that an owner whose record was deleted writes it again unchanged.
#[tokio::test]
async fn s19_a_record_that_is_written_again_keeps_its_floor() {
    let (server, dir) = (Server::start(&[]), dir());
    let store = owned(&server.url(), &dir).await;
    store.raise_fence_ceiling(span(50, 77)).await.expect("raise");
    let _: () = server.query(&["FLUSHALL"]);
    assert_eq!(store.renew(MissingRecord::Create).await.expect("renew"), RenewalOutcome::Renewed);
    drop(store);
    let store = RedisStore::open(options(&server.url(), &dir), Environment::system()).expect("open");
    let taken = store.take_over(Uuid::now_v7()).await.expect("take over");
    assert_eq!((taken.fence_floor, taken.fence_ceiling), (50, 77));
}

#[tokio::test]
async fn batches_of_all_shards_reach_their_masters_in_a_cluster() {
    let (cluster, dir) = (Cluster::start(3, 0, &[]), dir());
    let store = owned(&cluster.url(), &dir).await;
    let shards: Vec<ShardKey> = (0..64).map(|shard| ShardKey { pool: 42, shard }).collect();
    let batches = |from, mark| shards.iter().map(|&s| rows(s, from, from + 1, &[(1, Some(mark))])).collect::<Vec<_>>();
    assert_eq!(store.apply(batches(0, 1)).await.expect("apply"), vec![Applied; 64]);
    assert_eq!(store.apply(batches(1, 2)).await.expect("apply"), vec![Applied; 64]);
    for &shard in &shards {
        assert_eq!(load(&store, shard).await, is(2, &[(1, 2)]));
    }
    let sizes: Vec<i64> = cluster.masters.iter().map(|server| server.query(&["DBSIZE"])).collect();
    // The ownership record, beside the shards.
    assert_eq!(sizes.iter().sum::<i64>(), 65);
    assert!(sizes.iter().all(|size| (21..=23).contains(size)), "{sizes:?}");
    let lanes: std::collections::BTreeSet<usize> = shards.iter().map(|&shard| store.writer_partition(shard)).collect();
    assert_eq!(lanes, [0, 1, 2].into());
}

#[tokio::test]
async fn s03_a_takeover_whose_answer_was_lost_blocks_others_and_not_its_sender() {
    let (server, first, second, third) = (Server::start(&[]), dir(), dir(), dir());
    owned(&server.url(), &first).await.resign().await.expect("resign");
    // For this owner the takeover has failed.
    drop(owned(&server.url(), &second).await);
    let other = RedisStore::open(options(&server.url(), &third), Environment::system()).expect("open");
    let held = other.take_over(Uuid::now_v7()).await.expect_err("it is not free any more");
    assert!(matches!(held, StoreError::OwnedElsewhere(_)), "{held}");
    let again = RedisStore::open(options(&server.url(), &second), Environment::system()).expect("open");
    assert_eq!(again.take_over(Uuid::now_v7()).await.expect("its own").epoch, 3);
}

#[tokio::test]
async fn silent_sentinels_and_other_servers_delay_nothing() {
    let (master, dir) = (Server::start(&[]), dir());
    let sentinel = Server::sentinel("main", master.port);
    // They accept connections and never answer.
    let silent: Vec<_> = (0..2).map(|_| std::net::TcpListener::bind("127.0.0.1:0").expect("a port")).collect();
    let ports: Vec<u16> = silent.iter().map(|one| one.local_addr().expect("bound").port()).collect();
    let [a, b] = ports[..] else { unreachable!("two") };
    let list = format!("127.0.0.1:{a},127.0.0.1:{b},127.0.0.1:{},127.0.0.1:{}", master.port, sentinel.port);
    let url = format!("redis-sentinel://{list}/main");
    let store = RedisStore::open(RedisOptions { command_ms: 60_000, ..options(&url, &dir) }, Environment::system())
        .expect("open");
    let taken = tokio::time::timeout(std::time::Duration::from_secs(30), store.take_over(Uuid::now_v7())).await;
    assert_eq!(taken.expect("the one that answers is enough").expect("take over").epoch, 1);
}
