//! Explanations of claims over HTTP, over gRPC and as a command.

use hotpool::api::grpc::proto;
use serde_json::{Value, json};

use crate::client::Client;
use crate::grpc::grpc_client::GrpcClient;
use crate::server::{Server, fresh, until};

fn pools(client: &mut Client) {
    client.put("/v1/pools/ns/gpu", &json!({"mode": "shared", "shards": 2, "class": "gpu"})).expect(201);
    client.put("/v1/pools/ns/cpu", &json!({"shards": 2})).expect(201);
    for (id, gpus) in [("g1", 2), ("g2", 4)] {
        let worker = json!({"capacity": {"cpu_milli": 8000, "gpu": {"model": "a100", "count": gpus}}, "node": "n1"});
        client.put(&format!("/v1/pools/ns/gpu/workers/{id}"), &worker).expect(201);
    }
    client.put("/v1/pools/ns/cpu/workers/c1", &json!({"capacity": {"cpu_milli": 4000}})).expect(201);
    client.post("/v1/pools/ns/gpu/workers/g2:cordon", &json!({})).expect(200);
    let share =
        json!({"namespace": "ns", "pool": "gpu", "key": "a", "reserve_ms": 0, "resources": {"gpu": {"milli": 250}}});
    client.post("/v1/claims", &share).expect(201);
}

fn ready() -> (tempfile::TempDir, Server, Client) {
    let (dir, server, mut client) = fresh();
    pools(&mut client);
    (dir, server, client)
}

fn explain(client: &mut Client, more: &Value) -> Value {
    let mut body = json!({"namespace": "ns"});
    body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    client.post("/v1/explain", &body).expect(200)
}

#[test]
fn p02_a_claim_is_explained_without_being_created() {
    let (_dir, _server, mut client) = ready();
    let two = json!({"pool": "gpu", "key": "b", "resources": {"gpu": {"count": 2}}});
    let rejected = json!({
        "outcome": "refused",
        "error": {
            "code": "RESOURCE_EXHAUSTED", "reason": "pool_exhausted",
            "message": "no worker that the request allows is free",
        },
        "pools": [{
            "pool": "gpu", "workers": 2, "fits": 0, "ruled_out": {"cordoned": 1, "gpu": 1},
            "nearest": [{"worker": "g1", "node": "n1", "short": {"gpu": 1}, "text": "short by 1 GPU on g1"}],
            "most_free": {"cpu_milli": 8000, "gpu": 1, "gpu_milli": 1000},
        }],
    });
    assert_eq!(explain(&mut client, &two), rejected);
    client.get("/v1/claims/ns/b").expect_error(404, "NOT_FOUND", None, None);
    // Works without a key as well, and predicts what the claim gets.
    let list = json!({"pools": ["gpu", "cpu"], "resources": {"cpu_milli": 4000}, "selector": "!zone", "node": {"preferred": ["n1"]}});
    let placed = explain(&mut client, &list);
    assert_eq!(
        (&placed["outcome"], &placed["would_take"]),
        (&json!("placed"), &json!({"pool": "gpu", "worker": "g1", "node": "n1"}))
    );
    assert_eq!(
        (&placed["pools"][0]["fits"], &placed["pools"][1]["fits"], placed.get("error")),
        (&json!(1), &json!(1), None)
    );
    let unsatisfiable = explain(&mut client, &json!({"pool": "cpu", "resources": {"slots": 1}}));
    assert_eq!(
        (&unsatisfiable["error"]["reason"], &unsatisfiable["pools"][0]["too_small"]),
        (&json!("unsatisfiable"), &json!(1))
    );
    assert_eq!(explain(&mut client, &json!({"pool": "cpu", "class": "x"}))["error"]["reason"], "no_eligible_pool");
    // An invalid request is rejected like an invalid claim.
    for (body, field) in [
        (json!({}), "namespace"),
        (json!({"namespace": "ns"}), "pool"),
        (json!({"namespace": "ns", "pool": "gpu"}), "resources"),
        (json!({"namespace": "ns", "pool": "cpu", "frobnicate": 1}), "frobnicate"),
        (json!({"namespace": "ns", "pool": "cpu", "resources": {"gpu": {"milli": 1500}}}), "resources.gpu.milli"),
    ] {
        client.post("/v1/explain", &body).expect_error(400, "INVALID_ARGUMENT", None, Some(field));
    }
    client.post("/v1/explain", &json!({"namespace": "ns", "pool": "none"})).expect_error(404, "NOT_FOUND", None, None);
    let scrape = client.get("/metrics");
    assert!(scrape.text().contains(r#"route="/v1/explain""#), "{}", scrape.text());
}

/// Sets up a quota, and one claim that waits for capacity.
fn with_quota_and_waiter(server: &Server, client: &mut Client) {
    client.put("/v1/quotas/ns/default", &json!({"claims": 5, "gpu_milli": 3000})).expect(201);
    let mut waits = server.client();
    let body = json!({"namespace": "ns", "pool": "gpu", "key": "waits", "resources": {"gpu": {"count": 2}},
        "wait_ms": 60_000, "priority": 3});
    std::thread::spawn(move || waits.post("/v1/claims", &body));
    until("it waits", || client.get("/v1/claims?state=waiting").expect(200)["items"][0]["key"] == "waits");
}

#[test]
fn p02_an_explanation_shows_the_quota_and_who_is_ahead() {
    let (_dir, server, mut client) = ready();
    with_quota_and_waiter(&server, &mut client);
    let held = client.get("/v1/quotas/ns/default").expect(200)["quota"]["used"].take();
    let left = json!({"claims": 5 - held["claims"].as_u64().unwrap(), "gpu_milli": 3000 - held["gpu_milli"].as_u64().unwrap()});
    let one = |priority: u64| json!({"pool": "gpu", "priority": priority, "resources": {"gpu": {}}});
    let explained = explain(&mut client, &one(0));
    assert_eq!((&explained["quota_headroom"], &explained["pools"][0]["ahead"]), (&left, &json!(1)), "{explained}");
    assert_eq!((&explained["outcome"], explained["pools"][0].get("gangs_ahead")), (&json!("placed"), None));
    let urgent = explain(&mut client, &one(4));
    assert_eq!(urgent["pools"][0].get("ahead"), None, "{urgent}");
    let many = explain(&mut client, &json!({"pool": "gpu", "resources": {"gpu": {"count": 4}}}));
    assert_eq!((&many["outcome"], &many["error"]["reason"]), (&json!("refused"), &json!("quota")), "{many}");
    let other = explain(&mut client, &json!({"pool": "gpu", "tenant": "other", "resources": {"gpu": {}}}));
    assert_eq!(other.get("quota_headroom"), None, "{other}");
    let text = server.cli("explain ns/gpu --gpu a100:4");
    assert!(text.out.contains("(RESOURCE_EXHAUSTED, quota)"), "{text:?}");
    assert_eq!(text.row("quota")[2], "claims", "{text:?}");
    assert_eq!(text.row("ahead")[1..], ["1", "claim"], "{text:?}");
}

#[tokio::test]
async fn p02_grpc_explains_the_quota_and_who_is_ahead() {
    let (_dir, server, mut client) = ready();
    with_quota_and_waiter(&server, &mut client);
    let used = client.get("/v1/quotas/ns/default").expect(200)["quota"]["used"].take();
    let mut grpc = GrpcClient::open(server.address).await;
    let claim = |tenant: &str| proto::TakeClaimRequest {
        namespace: "ns".into(),
        tenant: Some(tenant.into()),
        candidates: Some(proto::take_claim_request::Candidates::Pool("gpu".into())),
        resources: Some(proto::Resources { gpu: Some(proto::GpuShare::default()), ..proto::Resources::default() }),
        ..proto::TakeClaimRequest::default()
    };
    let mut explain = async |tenant: &str| {
        let request = proto::ExplainClaimRequest { claim: Some(claim(tenant)) };
        grpc.claims.explain_claim(request).await.unwrap().into_inner()
    };
    let response = explain("default").await;
    let left = |name: &str, limit: u64| Some(limit - used[name].as_u64().unwrap());
    let expected = proto::QuotaHeadroom {
        claims: left("claims", 5),
        gpu_milli: left("gpu_milli", 3000),
        ..proto::QuotaHeadroom::default()
    };
    assert_eq!(
        (response.quota_headroom, response.pools[0].ahead, response.pools[0].gangs_ahead),
        (Some(expected), 1, 0)
    );
    let other = explain("other").await;
    assert_eq!((other.quota_headroom, other.pools[0].ahead), (None, 1));
}

#[tokio::test]
async fn p02_grpc_explains_the_same() {
    use proto::explain_claim_response::Outcome;
    let (_dir, server, _client) = ready();
    let mut grpc = GrpcClient::open(server.address).await;
    let explanation_request = |pool: &str, count| {
        let gpu = Some(proto::GpuShare { count: Some(count), ..proto::GpuShare::default() });
        let claim = proto::TakeClaimRequest {
            namespace: "ns".into(),
            candidates: Some(proto::take_claim_request::Candidates::Pool(pool.into())),
            resources: Some(proto::Resources { gpu, ..proto::Resources::default() }),
            ..proto::TakeClaimRequest::default()
        };
        proto::ExplainClaimRequest { claim: Some(claim) }
    };
    let response = grpc.claims.explain_claim(explanation_request("gpu", 2)).await.unwrap().into_inner();
    let Some(Outcome::Error(error)) = response.outcome else { panic!("{response:?}") };
    assert_eq!(error.reason(), proto::Reason::PoolExhausted);
    let survey = &response.pools[0];
    let counted: Vec<_> = survey.ruled_out.iter().map(|out| (out.by(), out.workers)).collect();
    assert_eq!(counted, [(proto::RuledOutBy::Cordoned, 1), (proto::RuledOutBy::Gpu, 1)]);
    assert_eq!((survey.workers, survey.fits, survey.nearest[0].text.as_str()), (2, 0, "short by 1 GPU on g1"));
    assert_eq!(survey.most_free.unwrap().gpu, 1);
    let response = grpc.claims.explain_claim(explanation_request("gpu", 1)).await.unwrap().into_inner();
    let Some(Outcome::WouldTake(would)) = response.outcome else { panic!("{response:?}") };
    assert_eq!((would.pool.as_str(), would.worker.as_str(), would.node()), ("gpu", "g1", "n1"));
    let missing = grpc.claims.explain_claim(proto::ExplainClaimRequest { claim: None }).await;
    crate::grpc::grpc_client::expect(missing, tonic::Code::InvalidArgument, None, Some("claim"));
    // The number of each reason has its name.
    for (at, why) in hotpool::model::FilterReason::ALL.iter().copied().enumerate() {
        let by = proto::RuledOutBy::try_from(at as i32 + 1).unwrap();
        assert_eq!(by.as_str_name(), format!("RULED_OUT_BY_{}", why.as_str().to_uppercase()));
    }
}

#[test]
fn the_command_explains_and_its_exit_code_is_the_outcome() {
    let (_dir, server, _client) = ready();
    let placed = server.cli("explain ns/gpu --cpu-milli 1000 --gpu a100:1:500");
    placed.stdout();
    assert_eq!(placed.row("outcome")[1..].join(" "), "placed: worker g1 of gpu on node n1");
    let rejected = server.cli("explain ns/gpu --gpu a100:2");
    assert_eq!((rejected.code, rejected.err.as_str()), (Some(3), ""), "{rejected:?}");
    assert!(rejected.out.contains("(RESOURCE_EXHAUSTED, pool_exhausted)"), "{rejected:?}");
    assert_eq!(rejected.row("ruled")[2..].join(" "), "cordoned 1, gpu 1");
    assert_eq!(rejected.row("nearest")[1..].join(" "), "short by 1 GPU on g1 (node n1)");
    assert_eq!(rejected.row("most")[2..].join(" "), "cpu 8, gpu 1");
    let json = server.cli("explain ns/gpu ns/cpu --cpu-milli 4000 -o json").json();
    assert_eq!((&json["outcome"], json["pools"].as_array().unwrap().len()), (&json!("placed"), 2));
    server.cli("explain ns/none").failed(4, &["pool not found"]);
    server.cli("explain ns/gpu").failed(64, &["resources: is required"]);
    server.cli("explain").failed(64, &["<NS/POOL>"]);
}
