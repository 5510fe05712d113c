//! H07: `store inspect` reads everything that the service writes, and shows it.

use std::collections::BTreeMap;

use bytes::Bytes;
use futures::FutureExt as _;
use hotpool::model::claim_request::ClaimConstraints;
use hotpool::model::{
    AckLevel, ClaimRequest, ClaimSpec, GpuCapacity, GpuRequest, HeartbeatRequest, PoolSpec, Quota,
    ResourceRequirements, RunningClaim, WorkerCapacity, WorkerCommand, WorkerId, WorkerSpec,
};
use hotpool::persist::row::{self, PoolRow, QuotaRow, RowKind, ShardRow};
use hotpool::persist::store::inspect::{RowDetail, inspect};
use hotpool::persist::store::{FenceSpan, ShardKey, SharedStore, WriteBatch, WriteKind};
use hotpool::scheduler::Scheduler;
use serde_json::{Value, json};
use uuid::Uuid;

use crate::store_location::StoreLocation;
use crate::world::{WAIT_MS, World, id, ids_on, name, request, spec, until, worker};

const MINUTE: u64 = 60_000;

async fn contents(location: &StoreLocation) -> Value {
    let contents = inspect(&*location.open(), None, RowDetail::Workers).await.expect("a healthy store");
    let contents = serde_json::to_value(contents).unwrap();
    for shard in contents["pools"].as_array().unwrap().iter().flat_map(|pool| pool["shards"].as_array().unwrap()) {
        assert_eq!(shard["error"], Value::Null, "{shard}");
    }
    contents
}

fn all_settings() -> PoolSpec {
    serde_json::from_value(json!({
        "shards": 2, "mode": "shared", "policy": "fgd", "spare_gpu_workers": false,
        "ttl_default_ms": 60_000, "ttl_max_ms": 90_000,
        "typical_requests": [{"cpu_milli": 1_000, "gpu": {"models": ["T4"], "count": 1, "milli": 500}, "weight": 3}],
        "ack": "durable", "labels": {"a": "b"}, "class": "gpu", "reserve_ms": 1_234, "releasing_ms": 60_000,
        "heartbeat_ttl_ms": 70_000, "unnamed_ms": 5_000, "lost_keep_ms": 0, "lag_max_ms": 9_000, "preemption": true,
        "waiters_max": 5, "waiters_tenant_max": 4, "hold_max_ms": 2_000,
    }))
    .unwrap()
}

fn pool_contents<'a>(contents: &'a Value, pool: &str) -> &'a Value {
    let pools = contents["pools"].as_array().unwrap();
    pools.iter().find(|found| found["name"] == format!("ns/{pool}")).unwrap_or_else(|| panic!("{pool}"))
}

/// Rows of a pool's workers, by id.
fn workers<'a>(contents: &'a Value, pool: &str) -> BTreeMap<&'a str, &'a Value> {
    let shards = pool_contents(contents, pool)["shards"].as_array().unwrap();
    let rows = shards.iter().flat_map(|shard| shard["rows"].as_array().into_iter().flatten());
    rows.map(|row| (row["id"].as_str().unwrap(), row)).collect()
}

impl World {
    async fn spec_of_worker(&self, pool: &str, spec: WorkerSpec) {
        self.s.register(&name(pool), spec).await.unwrap();
    }
}

#[tokio::test]
async fn h07_quotas_are_read_and_shown() {
    let world = World::on_store().await;
    world.pool("p", spec(2, AckLevel::Durable), &["w1"]).await;
    let (claims, gpu_milli) = (Some(7), Some(500));
    world.s.put_quota("ns", Some("acme"), Quota { claims, ..Quota::default() }).await.unwrap();
    world.s.put_quota("ns", None, Quota { gpu_milli, ..Quota::default() }).await.unwrap();
    world.s.put_quota("ns", Some("gone"), Quota { claims, ..Quota::default() }).await.unwrap();
    world.s.delete_quota("ns", Some("gone")).await.unwrap();
    let found = contents(&world.gate().copy().await).await;
    let quotas: Vec<_> = found["quotas"].as_array().unwrap().iter().map(|quota| quota["name"].clone()).collect();
    assert_eq!(quotas, ["ns", "ns/acme"]);
    assert_eq!(found["quotas"][1]["quota"]["claims"], 7);
    assert_eq!(pool_contents(&found, "p")["name"], "ns/p");
}

#[tokio::test]
async fn h07_workers_and_claims_are_shown_with_all_stored_fields() {
    let world = World::on_store().await;
    world.s.put_pool(name("all"), all_settings()).await.unwrap();
    let gpu = Some(GpuCapacity { model: "T4".into(), count: 2 });
    let large = WorkerSpec {
        capacity: WorkerCapacity { cpu_milli: 8_000, memory_bytes: 1 << 30, slots: 4, gpu },
        labels: [("zone".to_owned(), "a".to_owned())].into(),
        node: Some("n1".into()),
        incarnation: 3,
        expires_at_ms: Some(1 << 50),
        ..worker("large")
    };
    world.spec_of_worker("all", large).await;
    let gpu = Some(GpuRequest { models: vec!["T4".into()], count: 1, milli: 500 });
    let kept = ClaimSpec {
        labels: [("job".to_owned(), "x".to_owned())].into(),
        resources: ResourceRequirements { cpu_milli: 1_000, gpu, ..ResourceRequirements::default() },
        priority: 9,
        preemptible: true,
        ..ClaimSpec::default()
    };
    let constraints = Some(Box::new(ClaimConstraints { spec: kept, ..ClaimConstraints::default() }));
    let share = ClaimRequest { ttl_ms: Some(MINUTE), reserve_ms: Some(0), constraints, ..request("all", "share") };
    world.s.claim(share).await.unwrap();

    world.pool("p", spec(2, AckLevel::Durable), &["w1", "w2", "w3", "w4", "w5"]).await;
    let held = async |key| world.s.claim(request("p", key)).await.unwrap().claim;
    let reserved = held("reserved").await;
    let active = held("active").await;
    world.s.confirm(&id("active"), active.fence).await.unwrap();
    let releasing = held("releasing").await;
    world.s.begin_release(&id("releasing"), releasing.fence).await.unwrap();
    let named = held("named").await;
    let heartbeat = HeartbeatRequest {
        claims: Some(vec![RunningClaim { id: id("named"), fence: named.fence }]),
        incarnation: 0,
        seq: None,
    };
    world.s.heartbeat(&name("p"), &named.worker.spec.id, heartbeat).await.unwrap();
    let busy = [&reserved, &active, &releasing, &named].map(|claim| claim.worker.spec.id.as_str().to_owned());
    let idle = (1..=5).map(|i| format!("w{i}")).find(|id| !busy.contains(id)).unwrap();
    world.s.command_worker(&name("p"), &WorkerId::new(&idle).unwrap(), WorkerCommand::Cordon).await.unwrap();
    world.spec_of_worker("p", worker("gone")).await;
    world.s.delete_worker(&name("p"), &WorkerId::new("gone").unwrap()).await.unwrap();
    world.stored("p").await;
    world.stored("all").await;

    let found = contents(&world.gate().copy().await).await;
    assert_eq!(pool_contents(&found, "all")["spec"]["typical_requests"][0]["weight"], 3);
    let row = workers(&found, "all")["large"];
    assert_eq!(row["capacity"]["gpu"], json!({"model": "T4", "count": 2}));
    let plain = [&row["labels"]["zone"], &row["node"], &row["incarnation"], &row["expires_at_ms"]];
    assert_eq!(plain, [&json!("a"), &json!("n1"), &json!(3), &json!(1_u64 << 50)]);
    let claim = &row["held"][0];
    assert_eq!(
        [&claim["key"], &claim["state"], &claim["term_ms"]],
        [&json!("share"), &json!("active"), &json!(MINUTE)]
    );
    assert_eq!([&claim["priority"], &claim["preemptible"]], [&json!(9), &json!(true)]);
    assert_eq!([&claim["labels"]["job"], &claim["resources"]["gpu"]["milli"]], [&json!("x"), &json!(500)]);
    assert!(claim["created_at_ms"].is_u64() && claim["activated_at_ms"].is_u64(), "{claim}");
    assert_eq!(claim["gpus"].as_array().unwrap().len(), 1, "which of its worker's GPUs");
    let beats = [&row["heartbeat_ttl_ms"], &workers(&found, "p")[named.worker.spec.id.as_str()]["heartbeat_ttl_ms"]];
    assert_eq!(beats, [&Value::Null, &json!(MINUTE)], "only one of them ever sent a heartbeat");
    let lasting = &workers(&found, "p")[active.worker.spec.id.as_str()]["held"][0];
    assert_eq!([lasting.get("term_ms"), row.get("affinity")], [None, None], "what there is not is left out");
    let rows = workers(&found, "p");
    let states: BTreeMap<&str, &str> = rows
        .values()
        .flat_map(|row| row["held"].as_array().into_iter().flatten())
        .map(|claim| (claim["key"].as_str().unwrap(), claim["state"].as_str().unwrap()))
        .collect();
    let expected = [("reserved", "reserved"), ("active", "active"), ("releasing", "releasing"), ("named", "active")];
    assert_eq!(states, expected.into());
    assert_eq!(rows[idle.as_str()]["unschedulable"], json!(["cordoned"]));
    assert_eq!(rows["gone"]["deleted"], true);
    let ceiling = found["about"]["fence_ceiling"].as_str().and_then(|ceiling| ceiling.parse::<u64>().ok());
    assert!(ceiling >= Some(named.fence), "{}", found["about"]);
}

#[tokio::test]
async fn h07_an_unconfirmed_worker_after_an_unclean_stop_is_shown_as_suspect() {
    let world = World::on_store().await;
    world.pool("p", spec(1, AckLevel::Memory), &["spoken", "silent"]).await;
    world.stored("p").await;
    let world = world.crashed().await;
    world.spec_of_worker("p", WorkerSpec { incarnation: 1, ..worker("spoken") }).await;
    world.stored("p").await;
    let found = contents(&world.gate().copy().await).await;
    let rows = workers(&found, "p");
    assert_eq!(rows["silent"]["unschedulable"], json!(["suspect"]), "{rows:?}");
    assert_eq!(rows["spoken"]["unschedulable"], json!([]), "{rows:?}");
}

/// A gang whose row is stored while its home does not answer.
#[tokio::test]
async fn h07_gangs_and_their_provisional_members_are_shown() {
    let world = World::on_store().await;
    let ids: Vec<String> = (0..2).flat_map(|shard| ids_on(shard, 2, 1, "w")).collect();
    world.pool("p", spec(2, AckLevel::Durable), &ids.iter().map(String::as_str).collect::<Vec<_>>()).await;
    world.stored("p").await;
    world.gate().hold_gang_rows();
    let gang = ["a", "b"].map(|key| request("p", key)).to_vec();
    let begun = world.begin(move |s: Scheduler| async move { s.claim_gang(gang).await }.boxed()).await;
    world.gate().stopped().await;
    let home = world.gate().gang_home();
    world.gate().lose_answers(home, 1);
    world.gate().leave_unanswered(home, usize::MAX);
    world.gate().hold(|_| false);
    until("the gang's row is stored", async || world.gate().gang_rows() == 1).await;
    let found = contents(&world.gate().copy().await).await;
    let shards = pool_contents(&found, "p")["shards"].as_array().unwrap();
    let gangs: Vec<&Value> = shards.iter().flat_map(|shard| shard["gangs"].as_array().unwrap()).collect();
    assert_eq!(gangs.len(), 1, "{shards:?}");
    let rows = workers(&found, "p");
    let members: Vec<&Value> = rows.values().map(|row| &row["held"][0]["gang"]["id"]).collect();
    assert_eq!(members, [gangs[0], gangs[0]]);
    world.pass(WAIT_MS + 200).await;
    begun.await.unwrap();
}

/// Covers a row of every kind: a new kind does not compile here until it is written and read.
#[tokio::test]
async fn h07_no_kind_of_row_is_unknown_to_inspect() {
    let location = StoreLocation::empty();
    let store: SharedStore = location.open();
    store.take_over(Uuid::now_v7()).await.unwrap();
    store.raise_fence_ceiling(FenceSpan { floor: 5, ceiling: 9 }).await.unwrap();
    let (mut catalog, mut shard) = (Vec::new(), Vec::new());
    for kind in RowKind::ALL {
        match kind {
            RowKind::Pool => {
                let spec = PoolSpec { shards: 1, ..PoolSpec::default() };
                let spec_json = serde_json::to_string(&spec).unwrap();
                let row =
                    PoolRow { uid: 7, spec_json, hash_version: 1, deleting: true, name: "ns/p".into(), version: 9 };
                row::put_pool(&mut catalog, &row);
            }
            RowKind::Quota => {
                let quota_json = serde_json::to_string(&Quota { claims: Some(1), ..Quota::default() }).unwrap();
                row::put_quota(&mut catalog, &QuotaRow { name: "ns/acme".into(), quota_json });
            }
            RowKind::Worker => row::put_deletion(&mut shard, RowKind::Worker, "gone"),
            RowKind::Shard => {
                row::put_shard(
                    &mut shard,
                    &ShardRow { fence_max: 4, memory_acks: true, reserve_ms: 30, unclean_stops: 2 },
                );
            }
            RowKind::Gang => row::put_gang(&mut shard, 77),
        }
    }
    let batch = |shard, rows: Vec<u8>| WriteBatch { shard, from: 0, to: 1, kind: WriteKind::Rows(Bytes::from(rows)) };
    let of_pool = ShardKey { pool: 7, shard: 0 };
    store.apply(vec![batch(ShardKey::CATALOG, catalog), batch(of_pool, shard)]).await.unwrap();
    let contents = serde_json::to_value(inspect(&*store, None, RowDetail::Workers).await.unwrap()).unwrap();
    assert_eq!(contents["quotas"][0]["name"], "ns/acme");
    let pool = &contents["pools"][0];
    assert_eq!([&pool["name"], &pool["deleting"], &pool["version"]], [&json!("ns/p"), &json!(true), &json!(9)]);
    let shard = &pool["shards"][0];
    assert_eq!([&shard["error"], &shard["fence_max"], &shard["gangs"]], [&Value::Null, &json!(4), &json!([77])]);
    assert_eq!([&shard["memory"], &shard["reserve_ms"], &shard["unclean"]], [&json!(true), &json!(30), &json!(2)]);
    assert_eq!([&contents["about"]["fence_floor"], &contents["about"]["fence_ceiling"]], [&json!("5"), &json!("9")]);
}

/// Rows of a later version, or in the wrong location, are reported instead of skipped.
#[tokio::test]
async fn h07_an_unreadable_row_is_reported() {
    let location = StoreLocation::empty();
    let store: SharedStore = location.open();
    store.take_over(Uuid::now_v7()).await.unwrap();
    let (mut catalog, mut stray) = (Vec::new(), Vec::new());
    let spec_json = serde_json::to_string(&PoolSpec { shards: 1, ..PoolSpec::default() }).unwrap();
    let row = PoolRow { uid: 7, spec_json, hash_version: 1, name: "ns/p".into(), ..PoolRow::default() };
    row::put_pool(&mut catalog, &row);
    row::put_quota(&mut stray, &QuotaRow { name: "ns".into(), quota_json: "{}".into() });
    let batch = |shard, rows: Vec<u8>| WriteBatch { shard, from: 0, to: 1, kind: WriteKind::Rows(Bytes::from(rows)) };
    let of_pool = ShardKey { pool: 7, shard: 0 };
    store.apply(vec![batch(ShardKey::CATALOG, catalog), batch(of_pool, stray)]).await.unwrap();
    let contents = serde_json::to_value(inspect(&*store, None, RowDetail::Workers).await.unwrap()).unwrap();
    let error = contents["pools"][0]["shards"][0]["error"].as_str().unwrap_or_default();
    assert!(error.contains("catalog"), "{contents}");
}
