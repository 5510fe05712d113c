//! HTTP and gRPC have the same outcome for the same steps.

use hotpool::api::grpc::proto::batch_take_claims_response::item::Outcome;
use hotpool::api::grpc::proto::*;
use serde_json::{Value, json};
use tonic::{Code, Response, Status};

use super::grpc_client::{GrpcClient, claim_of, error_of, put_pool, register, take};
use crate::client::{Client, Response as HttpResponse};
use crate::server::fresh;

/// Outcome of one step: the code, reason and field of an error, or the comparable part of a response.
type End = Value;

fn http_end(answer: &HttpResponse) -> End {
    let body = answer.json();
    if body["error"].is_object() { error_end(&body["error"]) } else { plain(body) }
}

fn error_end(error: &Value) -> End {
    json!({"code": error["code"], "reason": error["reason"], "field": error["field"]})
}

/// Removes what differs between two services: fences and times.
fn plain(mut value: Value) -> Value {
    match &mut value {
        Value::Object(fields) => {
            let differs = ["fence", "expires_at_ms", "created_at_ms", "activated_at_ms", "created", "labels"];
            fields.retain(|name, _| !differs.contains(&name.as_str()));
            fields.values_mut().for_each(|field| *field = plain(field.take()));
        }
        Value::Array(items) => items.iter_mut().for_each(|item| *item = plain(item.take())),
        _ => {}
    }
    value
}

fn word(name: &str, prefix: &str) -> String {
    name.trim_start_matches(prefix).to_lowercase()
}

fn code_word(code: Code) -> &'static str {
    match code {
        Code::InvalidArgument => "INVALID_ARGUMENT",
        Code::NotFound => "NOT_FOUND",
        Code::Aborted => "ABORTED",
        Code::FailedPrecondition => "FAILED_PRECONDITION",
        Code::ResourceExhausted => "RESOURCE_EXHAUSTED",
        Code::Unavailable => "UNAVAILABLE",
        other => panic!("{other:?}"),
    }
}

fn grpc_end<T>(answer: Result<Response<T>, Status>, shown: impl FnOnce(T) -> Value) -> End {
    match answer {
        Ok(answer) => shown(answer.into_inner()),
        Err(status) => {
            let (code, reason, field) = error_of(&status);
            // A path parameter or the body of HTTP is a message within the request of gRPC.
            let field = field.map(|field| field.trim_start_matches("spec.").trim_start_matches("worker.").to_owned());
            json!({"code": code_word(code), "reason": reason.map(|reason| reason.to_lowercase()), "field": field})
        }
    }
}

fn claim_shown(claim: &Claim) -> Value {
    let mut shown = json!({
        "key": claim.key, "tenant": claim.tenant, "namespace": claim.namespace, "pool": claim.pool,
        "worker": claim.worker, "state": word(claim.state().as_str_name(), "CLAIM_STATE_"),
        "resources": held_shown(claim.resources.as_ref()),
    });
    if let Some(node) = &claim.node {
        shown["node"] = json!(node);
    }
    if claim.priority > 0 {
        shown["priority"] = json!(claim.priority);
    }
    if claim.preemptible {
        shown["preemptible"] = json!(true);
    }
    shown
}

fn held_shown(held: Option<&Resources>) -> Value {
    let Resources { cpu_milli, memory_bytes, slots, gpu } = held.unwrap().clone();
    let mut shown = capacity_shown(Some(&Capacity { cpu_milli, memory_bytes, slots, gpu: None }));
    if let Some(gpu) = gpu {
        shown["gpu"] = json!({"model": gpu.model(), "count": gpu.count()});
        if let Some(milli) = gpu.milli {
            (shown["gpu"]["milli"], shown["gpu"]["cards"]) = (json!(milli), json!(gpu.cards));
        }
    }
    shown
}

fn capacity_shown(capacity: Option<&Capacity>) -> Value {
    let capacity = capacity.unwrap();
    let mut shown = json!({});
    for (name, amount) in
        [("cpu_milli", capacity.cpu_milli), ("memory_bytes", capacity.memory_bytes), ("slots", capacity.slots)]
    {
        if amount > 0 {
            shown[name] = json!(amount);
        }
    }
    if let Some(gpu) = &capacity.gpu {
        shown["gpu"] = json!({"model": gpu.model, "count": gpu.count});
    }
    shown
}

/// Step of a scenario; `fence` is that of the last claim.
#[allow(clippy::large_enum_variant, reason = "a handful of steps")]
enum Step {
    Put(Value, PoolSpec),
    Delete,
    Register(&'static str, Value, WorkerSpec),
    DeleteWorker(&'static str),
    Claim(Value, TakeClaimRequest),
    Batch(Vec<(Value, TakeClaimRequest)>),
    Get(&'static str),
    Confirm(&'static str, i64),
    Release(&'static str, i64),
    Resize(&'static str, Value, Resources),
    PutQuota(Value, QuotaSpec),
    GetQuota(Option<&'static str>),
    DeleteQuota,
}

fn quota_shown(quota: Option<Quota>) -> Value {
    let Quota { namespace, tenant, spec, used, waiting, .. } = quota.clone().unwrap();
    let mut shown =
        json!({"namespace": namespace, "source": word(quota.unwrap().source().as_str_name(), "QUOTA_SOURCE_")});
    let QuotaSpec { claims, cpu_milli, memory_bytes, gpu_milli, weight } = spec.unwrap();
    let amounts =
        [("claims", claims), ("cpu_milli", cpu_milli), ("memory_bytes", memory_bytes), ("gpu_milli", gpu_milli)];
    for (name, amount) in amounts {
        if let Some(amount) = amount {
            shown[name] = json!(amount);
        }
    }
    shown["weight"] = json!(weight.unwrap());
    if let Some(tenant) = tenant {
        let QuotaUse { claims, cpu_milli, memory_bytes, gpu_milli } = used.unwrap();
        shown["tenant"] = json!(tenant);
        shown["waiting"] = json!(waiting);
        shown["used"] =
            json!({"claims": claims, "cpu_milli": cpu_milli, "memory_bytes": memory_bytes, "gpu_milli": gpu_milli});
    }
    json!({"quota": shown})
}

fn body_of(request: &Value) -> Value {
    let mut body = json!({"namespace": "ns", "pool": "warm"});
    body.as_object_mut().unwrap().extend(request.as_object().unwrap().clone());
    body
}

fn over_http(client: &mut Client, step: &Step, fence: &mut u64) -> End {
    let mut remember = |answer: HttpResponse| {
        if let Some(new) = answer.json()["claim"]["fence"].as_u64() {
            *fence = new;
        }
        answer
    };
    let answer = match step {
        Step::Put(spec, _) => client.put("/v1/pools/ns/warm", spec),
        Step::Delete => client.delete("/v1/pools/ns/warm"),
        Step::Register(id, spec, _) => client.put(&format!("/v1/pools/ns/warm/workers/{id}"), spec),
        Step::DeleteWorker(id) => client.delete(&format!("/v1/pools/ns/warm/workers/{id}")),
        Step::Claim(request, _) => remember(client.post("/v1/claims", &body_of(request))),
        Step::Batch(items) => {
            let items: Vec<_> = items.iter().map(|(item, _)| body_of(item)).collect();
            let answer = client.post("/v1/claims:batch", &json!({"mode": "independent", "items": items}));
            let items = answer.expect(200)["items"].take();
            let end = |item: &Value| match &item["error"] {
                Value::Null => plain(item["claim"].clone()),
                error => error_end(error),
            };
            return items.as_array().unwrap().iter().map(end).collect();
        }
        Step::Get(key) => client.get(&format!("/v1/claims/ns/{key}")),
        Step::PutQuota(quota, _) => client.put("/v1/quotas/ns/default", quota),
        Step::GetQuota(None) => client.get("/v1/quotas/ns"),
        Step::GetQuota(Some(tenant)) => client.get(&format!("/v1/quotas/ns/{}", tenant.replace(' ', "%20"))),
        Step::DeleteQuota => client.delete("/v1/quotas/ns/default"),
        Step::Resize(key, resources, _) => {
            client.post(&format!("/v1/claims/ns/{key}:resize"), &json!({"fence": *fence, "resources": resources}))
        }
        Step::Confirm(key, off) | Step::Release(key, off) => {
            let verb = if matches!(step, Step::Confirm(..)) { "confirm" } else { "release" };
            let body = json!({"fence": fence.saturating_add_signed(*off)});
            client.post(&format!("/v1/claims/ns/{key}:{verb}"), &body)
        }
    };
    let end = http_end(&answer);
    // For pools and workers it is enough that the request succeeded.
    if end["pool"].is_object() || end["worker"].is_object() { json!({}) } else { end }
}

async fn over_grpc(grpc: &mut GrpcClient, step: &Step, fence: &mut u64) -> End {
    let claimed = |claim: Option<Claim>| json!({"claim": claim_shown(&claim.unwrap())});
    match step {
        Step::Put(_, spec) => grpc_end(grpc.pools.put_pool(put_pool("warm", spec.clone())).await, |_| json!({})),
        Step::Delete => {
            let request = DeletePoolRequest { namespace: "ns".into(), pool: "warm".into(), force: false };
            grpc_end(grpc.pools.delete_pool(request).await, |_| json!({}))
        }
        Step::Register(id, _, spec) => {
            let worker = Some(WorkerSpec { id: (*id).into(), ..spec.clone() });
            let request = RegisterWorkerRequest { worker, ..register("") };
            grpc_end(grpc.workers.register_worker(request).await, |_| json!({}))
        }
        Step::DeleteWorker(id) => {
            let request = DeleteWorkerRequest { namespace: "ns".into(), pool: "warm".into(), id: (*id).into() };
            grpc_end(grpc.workers.delete_worker(request).await, |_| json!({}))
        }
        Step::Claim(_, request) => grpc_end(grpc.claims.take_claim(request.clone()).await, |created| {
            *fence = created.claim.as_ref().unwrap().fence;
            claimed(created.claim)
        }),
        Step::Batch(items) => {
            let items = items.iter().map(|(_, item)| item.clone()).collect();
            let request = BatchTakeClaimsRequest { mode: BatchMode::Independent as i32, items };
            let items = grpc.claims.batch_take_claims(request).await.unwrap().into_inner().items;
            let end = |item: batch_take_claims_response::Item| match item.outcome.unwrap() {
                Outcome::Taken(created) => claim_shown(&created.claim.unwrap()),
                Outcome::Error(error) => {
                    let reason =
                        Some(word(error.reason().as_str_name(), "REASON_")).filter(|word| word != "unspecified");
                    let field = Some(error.field).filter(|field| !field.is_empty());
                    json!({"code": code_word(Code::from_i32(error.code)), "reason": reason, "field": field})
                }
            };
            items.into_iter().map(end).collect()
        }
        Step::Get(key) => {
            let request = GetClaimRequest { namespace: "ns".into(), key: (*key).into(), tenant: None };
            grpc_end(grpc.claims.get_claim(request).await, |answer| claimed(Some(claim_of(answer))))
        }
        Step::PutQuota(_, spec) => {
            let request = PutQuotaRequest { namespace: "ns".into(), tenant: Some("default".into()), spec: Some(*spec) };
            grpc_end(grpc.quotas.put_quota(request).await, |put| quota_shown(put.quota))
        }
        Step::GetQuota(tenant) => {
            let request = GetQuotaRequest { namespace: "ns".into(), tenant: tenant.map(Into::into) };
            grpc_end(grpc.quotas.get_quota(request).await, |got| quota_shown(got.quota))
        }
        Step::DeleteQuota => {
            let request = DeleteQuotaRequest { namespace: "ns".into(), tenant: Some("default".into()) };
            grpc_end(grpc.quotas.delete_quota(request).await, |_| json!({}))
        }
        Step::Resize(key, _, resources) => {
            let (namespace, resources) = ("ns".into(), Some(resources.clone()));
            let request = ResizeClaimRequest { namespace, key: (*key).into(), tenant: None, fence: *fence, resources };
            grpc_end(grpc.claims.resize_claim(request).await, |answer| claimed(answer.claim))
        }
        Step::Confirm(key, off) => {
            let fence = fence.saturating_add_signed(*off);
            let request = ConfirmClaimRequest { namespace: "ns".into(), key: (*key).into(), tenant: None, fence };
            grpc_end(grpc.claims.confirm_claim(request).await, |answer| claimed(answer.claim))
        }
        Step::Release(key, off) => {
            let fence = fence.saturating_add_signed(*off);
            let (namespace, key) = ("ns".into(), (*key).into());
            let request = ReleaseClaimRequest { namespace, key, tenant: None, fence, phase: 0 };
            grpc_end(grpc.claims.release_claim(request).await, |answer| json!({"released": answer.released}))
        }
    }
}

#[tokio::test]
async fn both_edges_have_the_same_outcomes() {
    // With a single shard both services choose the same worker.
    let one = || PoolSpec { shards: Some(1), ..PoolSpec::default() };
    let worker = |cpu_milli, node: &str| WorkerSpec {
        capacity: Some(Capacity { cpu_milli, ..Capacity::default() }),
        node: Some(node.into()),
        ..WorkerSpec::default()
    };
    let steps = [
        Step::Claim(json!({"key": "a"}), take("a")),
        Step::Put(json!({"shards": 5}), PoolSpec { shards: Some(5), ..PoolSpec::default() }),
        Step::Put(json!({"shards": 1}), one()),
        Step::Put(json!({"shards": 2}), PoolSpec { shards: Some(2), ..PoolSpec::default() }),
        Step::Register("w1", json!({"capacity": {"cpu_milli": 1}, "node": "n1"}), worker(1, "n1")),
        Step::Register("w2", json!({"capacity": {"cpu_milli": 2}, "node": "n2"}), worker(2, "n2")),
        Step::Register("w3", json!({"node": ""}), WorkerSpec { node: Some(String::new()), ..WorkerSpec::default() }),
        Step::Get("a"),
        Step::Claim(json!({"key": "a"}), take("a")),
        Step::Claim(json!({"key": "a"}), take("a")),
        Step::Get("a"),
        Step::Confirm("a", 1),
        Step::Confirm("a", 0),
        Step::Claim(json!({"key": "bad key"}), take("bad key")),
        Step::Claim(
            json!({"key": "b", "reserve_ms": 30_001}),
            TakeClaimRequest { reserve_ms: Some(30_001), ..take("b") },
        ),
        Step::Claim(json!({"key": "b", "ack": "memory"}), TakeClaimRequest { ack: Ack::Memory as i32, ..take("b") }),
        Step::Batch(vec![
            (json!({"key": ""}), take("")),
            (json!({"key": "a"}), take("a")),
            (
                json!({"key": "c", "reserve_ms": 0, "priority": 7, "preemptible": true}),
                TakeClaimRequest { reserve_ms: Some(0), priority: Some(7), preemptible: Some(true), ..take("c") },
            ),
        ]),
        Step::Get("c"),
        Step::Claim(json!({"key": "d"}), take("d")),
        Step::Claim(json!({"key": "d", "wait_ms": 1}), TakeClaimRequest { wait_ms: Some(1), ..take("d") }),
        Step::Claim(
            json!({"key": "d", "wait_ms": 86_400_001}),
            TakeClaimRequest { wait_ms: Some(86_400_001), ..take("d") },
        ),
        Step::Claim(json!({"key": "d", "priority": 1001}), TakeClaimRequest { priority: Some(1_001), ..take("d") }),
        Step::PutQuota(
            json!({"claims": 2, "weight": 0}),
            QuotaSpec { claims: Some(2), weight: Some(0), ..QuotaSpec::default() },
        ),
        Step::PutQuota(
            json!({"claims": 2, "cpu_milli": 9}),
            QuotaSpec { claims: Some(2), cpu_milli: Some(9), ..QuotaSpec::default() },
        ),
        Step::Claim(json!({"key": "d"}), take("d")),
        Step::GetQuota(Some("default")),
        Step::GetQuota(Some("none such")),
        Step::GetQuota(None),
        Step::DeleteQuota,
        Step::DeleteQuota,
        Step::GetQuota(Some("default")),
        Step::Delete,
        Step::Release("a", -1),
        Step::Release("a", 0),
        Step::Release("a", 0),
        Step::Get("a"),
        Step::Confirm("a", 0),
        Step::DeleteWorker("w1"),
        Step::DeleteWorker("w1"),
        Step::Register("w1", json!({}), WorkerSpec::default()),
        Step::DeleteWorker("w2"),
        Step::Get("c"),
        Step::Delete,
        Step::Delete,
    ];
    let observed = end_the_same(&steps).await;
    assert_eq!(observed, ["ABORTED", "FAILED_PRECONDITION", "INVALID_ARGUMENT", "NOT_FOUND", "RESOURCE_EXHAUSTED"]);
}

#[tokio::test]
async fn both_edges_have_the_same_outcomes_in_shared_pools() {
    let shared = || PoolSpec { shards: Some(1), mode: Mode::Shared as i32, ..PoolSpec::default() };
    let cards = |model: Option<&str>, count, milli| GpuShare {
        model: model.map(Into::into),
        count,
        milli,
        ..GpuShare::default()
    };
    let requirements = |cpu_milli, gpu| Resources { cpu_milli, gpu, ..Resources::default() };
    let claim = |key: &str, more: Value, resources: Resources| {
        let mut body = json!({"key": key, "reserve_ms": 0});
        body["resources"] = more;
        Step::Claim(body, TakeClaimRequest { resources: Some(resources), reserve_ms: Some(0), ..take(key) })
    };
    let large = WorkerSpec {
        capacity: Some(Capacity {
            cpu_milli: 8_000,
            memory_bytes: 1 << 30,
            slots: 0,
            gpu: Some(Gpu { model: "A10".into(), count: 2 }),
        }),
        ..WorkerSpec::default()
    };
    let capacity = json!({"cpu_milli": 8000, "memory_bytes": 1 << 30, "gpu": {"model": "A10", "count": 2}});
    let either = GpuShare { models: vec!["T4".into(), "A10".into()], milli: Some(250), ..GpuShare::default() };
    let twice = GpuShare { models: vec!["T4".into(), "T4".into()], ..GpuShare::default() };
    let both = GpuShare { models: vec!["T4".into()], ..cards(Some("A10"), None, None) };
    let fgd = |kinds| PoolSpec { policy: Policy::Fgd as i32, typical_requests: kinds, ..shared() };
    let kind = |weight, gpu| TypicalRequest { cpu_milli: 1, gpu, weight };
    let steps = [
        Step::Put(
            json!({"shards": 1, "mode": "shared", "policy": "lifo"}),
            PoolSpec { policy: Policy::Lifo as i32, ..shared() },
        ),
        Step::Put(
            json!({"shards": 1, "policy": "spread"}),
            PoolSpec { mode: Mode::Exclusive as i32, policy: Policy::Spread as i32, ..shared() },
        ),
        Step::Put(
            json!({"shards": 1, "mode": "shared", "policy": "fgd", "typical_requests": [{"cpu_milli": 1, "weight": 0}]}),
            fgd(vec![kind(0, None)]),
        ),
        Step::Put(
            json!({"shards": 1, "mode": "shared", "policy": "fgd",
                "typical_requests": [{"cpu_milli": 1, "gpu": {"count": 2, "milli": 5}, "weight": 1}]}),
            fgd(vec![kind(1, Some(cards(None, Some(2), Some(5))))]),
        ),
        Step::Put(json!({"shards": 1, "mode": "shared"}), shared()),
        Step::Put(json!({"shards": 1}), PoolSpec { shards: Some(1), ..PoolSpec::default() }),
        Step::Register("g1", json!({"capacity": capacity}), large),
        Step::Claim(json!({"key": "a"}), take("a")),
        claim("a", json!({}), requirements(0, None)),
        claim("a", json!({"gpu": {"milli": 1500}}), requirements(0, Some(cards(None, None, Some(1500))))),
        claim("a", json!({"gpu": {"count": 2, "milli": 500}}), requirements(0, Some(cards(None, Some(2), Some(500))))),
        claim("a", json!({"gpu": {"models": ["T4", "T4"]}}), requirements(0, Some(twice))),
        claim("a", json!({"gpu": {"model": "A10", "models": ["T4"]}}), requirements(0, Some(both))),
        claim("a", json!({"slots": 1}), Resources { slots: 1, ..Resources::default() }),
        claim("a", json!({"cpu_milli": 9000}), requirements(9_000, None)),
        claim(
            "a",
            json!({"cpu_milli": 1000, "gpu": {"models": ["T4", "A10"], "milli": 250}}),
            requirements(1_000, Some(either)),
        ),
        claim("a", json!({"cpu_milli": 5}), requirements(5, None)),
        claim(
            "b",
            json!({"gpu": {"model": "A10", "count": 2}}),
            requirements(0, Some(cards(Some("A10"), Some(2), None))),
        ),
        Step::Get("a"),
        Step::Resize("a", json!({}), Resources::default()),
        Step::Resize(
            "a",
            json!({"cpu_milli": 2000, "gpu": {"count": 2}}),
            requirements(2_000, Some(cards(None, Some(2), None))),
        ),
        Step::Resize("a", json!({"cpu_milli": 9000}), requirements(9_000, None)),
        Step::Resize("none", json!({"cpu_milli": 9000}), requirements(9_000, None)),
        Step::Batch(vec![
            (
                json!({"key": "c", "resources": {"cpu_milli": 6000}}),
                TakeClaimRequest { resources: Some(requirements(6_000, None)), ..take("c") },
            ),
            (json!({"key": "d"}), take("d")),
            (
                json!({"key": "e", "resources": {"gpu": {"milli": 1}}}),
                TakeClaimRequest { resources: Some(requirements(0, Some(cards(None, None, Some(1))))), ..take("e") },
            ),
        ]),
        Step::Resize(
            "a",
            json!({"cpu_milli": 2000, "gpu": {"milli": 1000}}),
            requirements(2_000, Some(cards(None, None, None))),
        ),
        Step::Release("a", 0),
        Step::Delete,
    ];
    let observed = end_the_same(&steps).await;
    assert_eq!(observed, ["FAILED_PRECONDITION", "INVALID_ARGUMENT", "NOT_FOUND", "RESOURCE_EXHAUSTED"]);
}

/// Runs the steps over both edges, each on its own service, and returns the codes of all errors.
async fn end_the_same(steps: &[Step]) -> Vec<String> {
    let (_dir, _http_server, mut client) = fresh();
    let (_other_dir, grpc_server, _client) = fresh();
    let mut grpc = GrpcClient::open(grpc_server.address).await;
    let (mut http_fence, mut grpc_fence) = (0, 0);
    let mut codes = std::collections::BTreeSet::new();
    for (at, step) in steps.iter().enumerate() {
        let http = over_http(&mut client, step, &mut http_fence);
        let grpc = over_grpc(&mut grpc, step, &mut grpc_fence).await;
        assert_eq!(http, grpc, "step {at}");
        codes.extend(http["code"].as_str().map(str::to_owned));
    }
    codes.into_iter().collect()
}
