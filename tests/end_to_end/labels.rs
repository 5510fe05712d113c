//! Label keys of Kubernetes on every edge; a rejected label is named, with the rule.

use hotpool::api::grpc::proto::{PoolSpec, RegisterWorkerRequest, TakeClaimRequest, WorkerSpec};
use serde_json::{Value, json};
use tempfile::TempDir;
use tonic::Code;

use crate::client::Client;
use crate::grpc::grpc_client::{GrpcClient, error_of, put_pool, register, take};
use crate::resp::wire::Wire;
use crate::server::{Server, fresh};

const POOL: &str = "/v1/pools/ns/warm";
const ARCH: &str = "kubernetes.io/arch";
const ZONE: &str = "topology.kubernetes.io/zone";

/// Keys that are accepted: those of Kubernetes, and earlier ones.
fn good_keys() -> Vec<String> {
    let mut keys: Vec<String> =
        [ARCH, ZONE, "a/b", "a1.b-2/C_3.d-e", "zone", "-x", "x-", "example.com-x", "1"].map(String::from).into();
    keys.push("x".repeat(255));
    keys.push(format!("{}/{}", ["y".repeat(63).as_str(); 3].join("."), "n".repeat(63)));
    keys.push(format!("{}.{}/{}", ["y".repeat(63).as_str(); 3].join("."), "y".repeat(61), "n".repeat(63)));
    keys
}

/// Keys that are rejected.
fn bad_keys() -> Vec<String> {
    let mut keys: Vec<String> = [
        "", "/", "/a", "a/", "a/b/c", "A.b/c", "a..b/c", "-a/b", "a-/b", ".a/b", "a/-b", "a/b-", "a_b/c", "a b", "ü/a",
    ]
    .map(String::from)
    .into();
    keys.push("x".repeat(256));
    keys.push(format!("a/{}", "n".repeat(64)));
    keys.push(format!("{}/n", ["y".repeat(63).as_str(); 4].join(".")));
    keys
}

#[test]
fn label_keys_are_those_of_kubernetes_over_http() {
    let (_dir, _server, mut client) = fresh();
    client.put(POOL, &json!({"shards": 1})).expect(201);
    for (n, key) in good_keys().into_iter().enumerate() {
        let labels = json!({ &key: "v" });
        let other = client.put("/v1/pools/ns/other", &json!({"labels": labels}));
        assert_eq!(other.expect(if n == 0 { 201 } else { 200 })["pool"]["spec"]["labels"], labels, "{key}");
        client.put(&format!("{POOL}/workers/w{n}"), &json!({"labels": labels})).expect(201);
        let claim = json!({"namespace": "ns", "pool": "warm", "key": format!("k{n}"), "labels": labels, "selector": format!("{key}=v")});
        let claim = client.post("/v1/claims", &claim).expect(201)["claim"].take();
        assert_eq!((&claim["worker"], &claim["labels"]), (&json!(format!("w{n}")), &labels), "{key}");
    }
    for key in bad_keys() {
        let labels = json!({ &key: "v" });
        for (method, path, body) in [
            ("PUT", "/v1/pools/ns/other", json!({"labels": labels})),
            ("PUT", "/v1/pools/ns/warm/workers/bad", json!({"labels": labels})),
            ("POST", "/v1/claims", json!({"namespace": "ns", "pool": "warm", "labels": labels})),
        ] {
            let answer = client.request(method, path, body.to_string().as_bytes());
            answer.expect_error(400, "INVALID_ARGUMENT", None, Some("labels"));
            let message = answer.json()["error"]["message"].as_str().unwrap().to_owned();
            let shown = if key.len() > 100 { &key[..90] } else { &key };
            assert!(message.contains(shown), "{key:?} is not named: {message}");
            assert!(message.contains("[A-Za-z0-9._-]") || message.contains("bytes"), "no rule: {message}");
        }
        // As in Kubernetes, an invalid key is no selector either, unless it parses as another one.
        if !key.contains(' ') {
            let body = json!({"namespace": "ns", "pool": "warm", "selector": format!("{key}=v")});
            client.post("/v1/claims", &body).expect_error(400, "INVALID_ARGUMENT", None, Some("selector"));
        }
    }
}

#[test]
fn a_repeated_label_is_rejected_on_every_edge() {
    let dir = TempDir::new().unwrap();
    let server = Server::start_with(dir.path(), &["--resp-listen", "127.0.0.1:0"], &[]);
    let mut client = server.client();
    client.put(POOL, &json!({"shards": 1, "labels": {"a": "0"}})).expect(201);
    let worker = format!("{POOL}/workers/w");
    let batch = format!("{POOL}/workers:batch");
    for (method, path, body) in [
        ("PUT", POOL, r#"{"shards":1,"labels":{"a":"1","b":"","a":"2"}}"#),
        ("PATCH", POOL, r#"{"labels":{"a":"1","b":"","a":"2"}}"#),
        ("PATCH", POOL, r#"{"labels":{"a":null,"a":null}}"#),
        ("PUT", &worker, r#"{"labels":{"a":"1","a":"1"}}"#),
        ("POST", "/v1/claims", r#"{"namespace":"ns","pool":"warm","labels":{"a":"1","a":"2"}}"#),
    ] {
        let rejected = client.request(method, path, body.as_bytes());
        rejected.expect_error(400, "INVALID_ARGUMENT", None, Some("labels.a"));
        assert_eq!(rejected.json()["error"]["message"], "is given twice", "{method} {path}");
    }
    let items = client.request("POST", &batch, br#"{"workers":[{"id":"w","labels":{"a":"1","a":"2"}}]}"#).expect(200);
    assert_eq!(items["items"][0]["error"]["field"], "workers[0].labels.a", "{items}");
    // Duplicates in other fields of a patch are rejected too.
    let twice = br#"{"typical_requests":[{"weight":1,"weight":2}]}"#;
    client.request("PATCH", POOL, twice).expect_error(
        400,
        "INVALID_ARGUMENT",
        None,
        Some("typical_requests[0].weight"),
    );
    let mut wire = Wire::connect(server.resp.unwrap());
    assert!(
        wire.reply_text("REGISTER ns/warm w LABEL a 1 LABEL a 2").starts_with("-BADREQ labels a label is given twice")
    );
    let pool = client.get(POOL).expect(200)["pool"].take();
    assert_eq!((&pool["spec"]["labels"], &pool["workers"]["total"]), (&json!({"a": "0"}), &json!(0)));
}

#[test]
fn an_invalid_value_is_rejected_with_its_key_and_its_limit() {
    let (_dir, _server, mut client) = fresh();
    client.put(POOL, &json!({"shards": 1})).expect(201);
    for value in ["", "a/b:c d", &"x".repeat(255), "é"] {
        client.put(&format!("{POOL}/workers/w"), &json!({"labels": {ARCH: value}})).json()["worker"]["id"]
            .as_str()
            .unwrap_or_else(|| panic!("{value:?} is refused"));
    }
    for value in ["a\nb", &"x".repeat(256)] {
        let answer = client.put(&format!("{POOL}/workers/w"), &json!({"labels": {ARCH: value}}));
        answer.expect_error(400, "INVALID_ARGUMENT", None, Some("labels"));
        assert!(answer.text().contains(ARCH) && answer.text().contains("255 bytes"), "{}", answer.text());
    }
}

/// Claims with each of these selectors get the worker that is `arm64` in `z1`.
fn finds(client: &mut Client) {
    for selector in [
        format!("{ARCH}=arm64"),
        format!("{ARCH} in (arm64, x), {ZONE}=z1"),
        format!("{ZONE}!=z2,{ARCH}"),
        format!("!example.com/none, {ZONE} notin (z2)"),
    ] {
        let claim = json!({"namespace": "ns", "pool": "warm", "key": "k", "selector": selector});
        let claim = client.post("/v1/claims", &claim).expect(201)["claim"].take();
        assert_eq!(claim["worker"], "arm", "{selector}");
        client.post("/v1/claims/ns/k:release", &json!({"fence": claim["fence"]})).expect(200);
    }
    let none = json!({"namespace": "ns", "pool_selector": format!("{ARCH}=riscv")});
    client.post("/v1/claims", &none).expect_error(429, "RESOURCE_EXHAUSTED", Some("no_eligible_pool"), None);
    let by_pool = json!({"namespace": "ns", "key": "p", "pool_selector": format!("{ARCH}=any")});
    let claim = client.post("/v1/claims", &by_pool).expect(201)["claim"].take();
    client.post("/v1/claims/ns/p:release", &json!({"fence": claim["fence"]})).expect(200);
}

#[test]
fn the_same_keys_are_accepted_on_every_edge_and_read_back_from_the_store() {
    let dir = TempDir::new().unwrap();
    let server = Server::start_with(dir.path(), &["--resp-listen", "127.0.0.1:0"], &[]);
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let labels = [(ARCH.to_owned(), "arm64".to_owned()), (ZONE.to_owned(), "z1".to_owned())];
    // A pool over gRPC, a worker over each edge and from the command line.
    runtime.block_on(async {
        let mut grpc = GrpcClient::open(server.address).await;
        let of_pool = PoolSpec { shards: Some(1), labels: [(ARCH.into(), "any".into())].into(), ..PoolSpec::default() };
        grpc.pools.put_pool(put_pool("warm", of_pool)).await.unwrap();
        let worker = WorkerSpec { id: "arm".into(), labels: labels.clone().into(), ..WorkerSpec::default() };
        let register = |worker| RegisterWorkerRequest { worker: Some(worker), ..register("") };
        grpc.workers.register_worker(register(worker.clone())).await.unwrap();
        let bad = WorkerSpec { labels: [("a/b/c".to_owned(), String::new())].into(), ..worker };
        let status = grpc.workers.register_worker(register(bad)).await.unwrap_err();
        assert_eq!(error_of(&status), (Code::InvalidArgument, None, Some("worker.labels".to_owned())));
        assert!(status.message().contains("a/b/c"), "{status:?}");
        let take = TakeClaimRequest { selector: Some(format!("{ARCH}=arm64")), ..take("g") };
        let created = grpc.claims.take_claim(take).await.unwrap().into_inner().claim.unwrap();
        assert_eq!(created.worker, "arm");
    });
    let mut client = server.client();
    let fence = client.get("/v1/claims/ns/g").expect(200)["claim"]["fence"].take();
    client.post("/v1/claims/ns/g:release", &json!({"fence": fence})).expect(200);
    let mut wire = Wire::connect(server.resp.unwrap());
    assert_eq!(wire.reply_text(&format!("REGISTER ns/warm intel LABEL {ARCH} amd64 LABEL {ZONE} z2")), "1");
    let rejected = wire.reply_text("REGISTER ns/warm bad LABEL a/b/c x");
    assert!(rejected.starts_with("-BADREQ labels") && rejected.contains("a/b/c"), "{rejected}");
    server.cli(&format!("workers add ns/warm cli --label {ARCH}=amd64 --label {ZONE}=z2")).stdout();
    server.cli("workers add ns/warm bad --label a/b/c=x").failed(64, &["a/b/c", "after the slash"]);
    let shown = server.cli(&format!("claims take ns/warm --selector {ARCH}=arm64 --key c"));
    assert_eq!(shown.row("worker"), ["worker", "arm"]);
    server.cli("claims release ns/c --current").stdout();
    finds(&mut client);
    let worker = |client: &mut Client, id: &str| -> Value {
        client.get(&format!("{POOL}/workers/{id}")).expect(200)["worker"]["labels"].take()
    };
    let before = ["arm", "intel", "cli"].map(|id| worker(&mut client, id));
    assert_eq!(before[1], json!({ARCH: "amd64", ZONE: "z2"}));
    server.kill();
    let server = Server::start(dir.path());
    let mut client = server.client();
    assert_eq!(["arm", "intel", "cli"].map(|id| worker(&mut client, id)), before);
    finds(&mut client);
}

#[test]
fn a_declared_pool_has_labels_with_such_keys() {
    let dir = TempDir::new().unwrap();
    let file = dir.path().join("hotpool.toml");
    std::fs::write(&file, format!("[[pools]]\nname = \"ns/warm\"\nlabels = {{ \"{ARCH}\" = \"arm64\" }}\n")).unwrap();
    let server = Server::start_with(dir.path(), &["--config", file.to_str().unwrap()], &[]);
    let spec = server.client().get(POOL).expect(200)["pool"]["spec"].take();
    assert_eq!(spec["labels"], json!({ARCH: "arm64"}));
}
