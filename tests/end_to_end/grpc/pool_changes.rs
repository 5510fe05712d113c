//! Single fields of a pool are changed over gRPC, as over HTTP.

use hotpool::api::grpc::proto::*;
use serde_json::json;
use tonic::Code;

use super::grpc_client::{GrpcClient, expect, put_pool};
use crate::server::fresh;

fn update(spec: PoolSpec, mask: &[&str], version: Option<u64>) -> UpdatePoolRequest {
    let paths = mask.iter().map(|name| (*name).to_owned()).collect();
    let update_mask = Some(prost_types::FieldMask { paths });
    UpdatePoolRequest { namespace: "ns".into(), pool: "warm".into(), spec: Some(spec), update_mask, version }
}

#[tokio::test]
async fn an_update_changes_the_fields_of_its_mask_and_nothing_else() {
    let (_dir, server, mut http) = fresh();
    let mut grpc = GrpcClient::open(server.address).await;
    let spec = PoolSpec {
        shards: Some(2),
        preemption: Some(true),
        class: Some("gold".into()),
        labels: [("a".into(), "1".into()), ("b".into(), "2".into())].into(),
        ..PoolSpec::default()
    };
    grpc.pools.put_pool(put_pool("warm", spec)).await.unwrap();
    let before = http.get("/v1/pools/ns/warm").expect(200)["pool"].take();
    let new = PoolSpec {
        reserve_ms: Some(7),
        releasing_ms: Some(8),
        policy: Policy::Fifo as i32,
        labels: [("c".into(), "3".into())].into(),
        ..PoolSpec::default()
    };
    let mask = ["reserve_ms", "policy", "labels", "class"];
    let updated = grpc.pools.update_pool(update(new, &mask, before["version"].as_u64())).await.unwrap().into_inner();
    let after = http.get("/v1/pools/ns/warm").expect(200)["pool"].take();
    let mut expected = before["spec"].clone();
    (expected["reserve_ms"], expected["policy"], expected["labels"]) = (json!(7), json!("fifo"), json!({"c": "3"}));
    expected.as_object_mut().unwrap().remove("class");
    assert_eq!(after["spec"], expected);
    let pool = updated.pool.unwrap();
    assert_eq!((Some(pool.version), pool.shards.len()), (after["version"].as_u64(), 2));
    assert_eq!(pool.spec.unwrap().reserve_ms(), 7);
    // Named in the mask and omitted from the specification: the default.
    grpc.pools.update_pool(update(PoolSpec::default(), &["reserve_ms", "policy"], None)).await.unwrap();
    let spec = http.get("/v1/pools/ns/warm").expect(200)["pool"]["spec"].take();
    assert_eq!(
        (&spec["reserve_ms"], &spec["policy"], &spec["preemption"]),
        (&json!(30_000), &json!("lifo"), &json!(true))
    );

    let rejected = grpc.pools.update_pool(update(PoolSpec::default(), &["preemption"], Some(pool.version))).await;
    expect(rejected, Code::Aborted, Some("VERSION"), None);
    let endless = "x".repeat(1 << 20);
    for (spec, mask, field) in [
        (PoolSpec::default(), &[][..], "update_mask"),
        (PoolSpec::default(), &["frobnicate"], "update_mask"),
        (PoolSpec::default(), &["labels.c"], "update_mask"),
        (PoolSpec::default(), &[endless.as_str()], "update_mask"),
        (PoolSpec { reserve_ms: Some(9), ..PoolSpec::default() }, &["reserve_ms", "reserve_ms"], "update_mask"),
        (PoolSpec { reserve_ms: Some(u64::MAX), ..PoolSpec::default() }, &["reserve_ms"], "spec.reserve_ms"),
        (PoolSpec { mode: 9, ..PoolSpec::default() }, &["mode"], "spec.mode"),
        (PoolSpec { policy: Policy::Spread as i32, ..PoolSpec::default() }, &["policy"], "spec.policy"),
    ] {
        let rejected = grpc.pools.update_pool(update(spec, mask, None)).await;
        expect(rejected, Code::InvalidArgument, None, Some(field));
    }
    // Out of range, as over HTTP, and not another version.
    for version in [1 << 53, u64::MAX] {
        let rejected = grpc.pools.update_pool(update(PoolSpec::default(), &["preemption"], Some(version))).await;
        expect(rejected, Code::InvalidArgument, None, Some("version"));
    }
    let none = UpdatePoolRequest { update_mask: None, ..update(PoolSpec::default(), &[], None) };
    expect(grpc.pools.update_pool(none).await, Code::InvalidArgument, None, Some("update_mask"));
    let other = PoolSpec { shards: Some(8), ..PoolSpec::default() };
    let rejected = grpc.pools.update_pool(update(other, &["shards"], None)).await;
    expect(rejected, Code::FailedPrecondition, Some("STATE"), None);
    let nowhere = UpdatePoolRequest { pool: "none".into(), ..update(PoolSpec::default(), &["ack"], None) };
    expect(grpc.pools.update_pool(nowhere).await, Code::NotFound, None, None);
}

#[tokio::test]
async fn a_release_reports_whether_the_key_had_a_claim() {
    let (_dir, server, _http) = crate::server::with_pool(1);
    let mut grpc = GrpcClient::open(server.address).await;
    let fence = grpc.claims.take_claim(super::grpc_client::take("a")).await.unwrap().into_inner().claim.unwrap().fence;
    let release = |phase: ReleasePhase| {
        let phase = phase as i32;
        let request = ReleaseClaimRequest { namespace: "ns".into(), key: "a".into(), tenant: None, fence, phase };
        let mut claims = grpc.claims.clone();
        async move { claims.release_claim(request).await.unwrap().into_inner().released }
    };
    assert!(release(ReleasePhase::Begin).await);
    assert!(release(ReleasePhase::Finish).await);
    assert!(!release(ReleasePhase::Unspecified).await);
}
