//! OpenAPI description compared with a running service: requests that it accepts, and its responses.

use std::collections::{BTreeMap, BTreeSet};

use jsonschema::Validator;
use serde_json::{Value, json};

use crate::client::{Client, Response};
use crate::server::{fresh, until, with_pool};
use crate::watch::Watcher;

/// Closes every object of a response, so that an undescribed field is found.
fn close(schema: &mut Value) {
    match schema {
        Value::Object(fields) => {
            if fields.contains_key("properties") && !fields.contains_key("additionalProperties") {
                fields.insert("additionalProperties".to_owned(), false.into());
            }
            fields.values_mut().for_each(close);
        }
        Value::Array(items) => items.iter_mut().for_each(close),
        _ => {}
    }
}

struct Description {
    document: Value,
    /// Operation and status of every response that was checked.
    observed: BTreeSet<(String, u16)>,
    validators: BTreeMap<(String, u16), Validator>,
}

impl Description {
    fn of(client: &mut Client) -> Self {
        let document = client.get("/v1/openapi.json").expect(200);
        Self { document, observed: BTreeSet::new(), validators: BTreeMap::new() }
    }

    /// Finds the operation of a request: its id and its description.
    fn operation(&self, method: &str, path: &str) -> (String, Value) {
        let path = path.split('?').next().unwrap();
        let paths = self.document["paths"].as_object().unwrap();
        let fits = |template: &str| {
            let (ours, theirs): (Vec<_>, Vec<_>) = (path.split('/').collect(), template.split('/').collect());
            let same = |(ours, theirs): (&&str, &&str)| {
                let verb = |text: &str| text.rsplit_once(':').map(|(_, verb)| verb.to_owned());
                if theirs.starts_with('{') { verb(ours) == verb(theirs) } else { ours == theirs }
            };
            ours.len() == theirs.len() && ours.iter().zip(&theirs).all(same)
        };
        let (_, item) = paths.iter().find(|(template, _)| fits(template)).unwrap_or_else(|| panic!("{path}"));
        let operation = item[method.to_lowercase()].clone();
        (operation["operationId"].as_str().unwrap_or_else(|| panic!("{method} {path}")).to_owned(), operation)
    }

    /// Schema of a response, with references resolved and every object closed.
    fn validator(&mut self, id: &str, operation: &Value, status: u16) -> &Validator {
        self.validators.entry((id.to_owned(), status)).or_insert_with(|| {
            let mut response = operation["responses"][status.to_string()].clone();
            if let Some(reference) = response["$ref"].as_str() {
                response = self.document.pointer(reference.trim_start_matches('#')).unwrap().clone();
            }
            let content = response["content"].as_object_mut().and_then(|content| content.values_mut().next());
            let mut schema = content.map(|content| content["schema"].take()).unwrap_or_default();
            assert!(schema.is_object(), "{status} of {id} is not described");
            schema["components"] = self.document["components"].clone();
            close(&mut schema["components"]["schemas"]);
            jsonschema::draft202012::new(&schema).unwrap()
        })
    }

    /// Sends a request and checks the response.
    fn check(&mut self, client: &mut Client, method: &str, path: &str, body: &Value) -> Response {
        let sent = if body.is_null() { String::new() } else { body.to_string() };
        let answer = client.request(method, path, sent.as_bytes());
        let (id, operation) = self.operation(method, path);
        self.conforms(&id, &operation, answer.status, &answer.json());
        answer
    }

    fn conforms(&mut self, id: &str, operation: &Value, status: u16, reply: &Value) {
        self.observed.insert((id.to_owned(), status));
        let errors = self.validator(id, operation, status).iter_errors(reply);
        let wrong: Vec<_> = errors.map(|error| error.to_string()).collect();
        assert!(wrong.is_empty(), "{id}: {status} {reply}\n{wrong:#?}");
    }

    /// Checks so many events of a pool.
    fn check_events(&mut self, watcher: &mut Watcher, n: usize) {
        let (id, operation) = self.operation("GET", "/v1/pools/ns/any/events");
        for _ in 0..n {
            self.conforms(&id, &operation, 200, &watcher.event());
        }
    }
}

#[test]
fn answers_conform_to_their_description() {
    let (_dir, server, mut client) = fresh();
    let mut api = Description::of(&mut client);
    let pool = "/v1/pools/ns/warm";
    let claim = |key: &str| json!({"namespace": "ns", "pool": "warm", "key": key});
    let full = json!({
        "capacity": {"cpu_milli": 1, "memory_bytes": 2, "slots": 3, "gpu": {"model": "a100", "count": 2}},
        "labels": {"zone": "a"}, "node": "n1", "incarnation": 1,
    });
    let spec = json!({"shards": 2, "labels": {"tier": "gold"}, "class": "gpu"});
    let large = json!({"capacity": {"cpu_milli": 8000, "slots": 4, "gpu": {"model": "a100", "count": 2}}});
    let more = large.clone();
    let shared = json!({
        "mode": "shared", "policy": "fgd", "spare_gpu_workers": false,
        "typical_requests": [{"cpu_milli": 1, "gpu": {"models": ["a100"], "milli": 500}, "weight": 2}],
    });
    let share = |key: &str, milli: u32| {
        let resources = json!({"cpu_milli": 1000, "slots": 1, "gpu": {"model": "a100", "milli": milli}});
        json!({"namespace": "ns", "pool": "shared", "key": key, "resources": resources})
    };
    let steps = [
        ("GET", pool.to_owned(), Value::Null, 404),
        ("PUT", pool.to_owned(), json!({"shards": 3}), 400),
        ("PUT", pool.to_owned(), spec.clone(), 201),
        ("PUT", pool.to_owned(), spec, 200),
        ("PUT", pool.to_owned(), json!({"shards": 4}), 409),
        ("PATCH", pool.to_owned(), json!({"reserve_ms": 60_000, "class": null, "labels": {"tier": null}}), 200),
        ("PATCH", pool.to_owned(), json!({"reserve_ms": "soon"}), 400),
        ("PATCH", format!("{pool}?version=1"), json!({}), 409),
        ("PATCH", "/v1/pools/ns/none".to_owned(), json!({}), 404),
        ("PUT", format!("{pool}/workers/w1"), full, 201),
        ("PUT", format!("{pool}/workers/w1"), json!({"incarnation": 2}), 200),
        ("PUT", format!("{pool}/workers/w1"), json!({"incarnation": 1}), 409),
        ("PUT", format!("{pool}/workers/w 1"), Value::Null, 400),
        ("PUT", "/v1/pools/ns/none/workers/w1".to_owned(), json!({}), 404),
        ("POST", format!("{pool}/workers:batch"), json!({"workers": [{"id": "w2"}, {"id": ""}]}), 200),
        ("POST", format!("{pool}/workers:batch"), json!({}), 400),
        ("POST", "/v1/pools/ns/none/workers:batch".to_owned(), json!({"workers": [{"id": "w"}]}), 404),
        ("POST", format!("{pool}/workers:heartbeat"), json!({"workers": [{"id": "w2"}, {"id": "none"}]}), 200),
        ("POST", format!("{pool}/workers:heartbeat"), json!({}), 400),
        ("POST", "/v1/pools/ns/none/workers:heartbeat".to_owned(), json!({"workers": [{"id": "w"}]}), 404),
        ("POST", "/v1/claims".to_owned(), claim("a"), 201),
        ("POST", "/v1/claims".to_owned(), claim("a"), 200),
        ("POST", "/v1/claims".to_owned(), claim("a b"), 400),
        ("POST", "/v1/claims".to_owned(), json!({"namespace": "ns", "pool": "none"}), 404),
        (
            "POST",
            "/v1/claims:batch".to_owned(),
            json!({"mode": "independent", "items": [claim("b"), claim("c"), {}]}),
            200,
        ),
        ("POST", "/v1/claims:batch".to_owned(), json!({"mode": "all_or_nothing", "items": []}), 200),
        ("POST", "/v1/claims:batch".to_owned(), json!({"mode": "some", "items": []}), 400),
        ("POST", "/v1/claims".to_owned(), claim("d"), 429),
        ("GET", "/v1/claims/ns/a".to_owned(), Value::Null, 200),
        ("GET", "/v1/claims/ns/none".to_owned(), Value::Null, 404),
        ("GET", "/v1/claims/ns/a?tenant=".to_owned(), Value::Null, 400),
        ("GET", "/v1/claims?limit=1".to_owned(), Value::Null, 200),
        ("GET", "/v1/claims?limit=0".to_owned(), Value::Null, 400),
        ("GET", pool.to_owned(), Value::Null, 200),
        ("GET", "/v1/pools?limit=1".to_owned(), Value::Null, 200),
        ("GET", "/v1/pools?limit=x".to_owned(), Value::Null, 400),
        ("GET", format!("{pool}/workers?limit=1"), Value::Null, 200),
        ("GET", format!("{pool}/workers?limit=x"), Value::Null, 400),
        ("GET", "/v1/pools/ns/none/workers".to_owned(), Value::Null, 404),
        ("GET", format!("{pool}/workers/w1"), Value::Null, 200),
        ("GET", format!("{pool}/workers/none"), Value::Null, 404),
        ("POST", "/v1/claims/ns/a:confirm".to_owned(), json!({"fence": 1}), 409),
        ("POST", "/v1/claims/ns/a:confirm".to_owned(), json!({}), 400),
        ("POST", "/v1/claims/ns/none:confirm".to_owned(), json!({"fence": 1}), 404),
        ("POST", "/v1/claims/ns/a:release".to_owned(), json!({"fence": 1}), 409),
        ("POST", "/v1/claims/ns/a:release".to_owned(), json!({"fence": -1}), 400),
        ("POST", "/v1/claims/ns/a:renew".to_owned(), json!({"fence": 1}), 409),
        ("POST", "/v1/claims/ns/a:renew".to_owned(), json!({"fence": 1, "ttl_ms": 0}), 400),
        ("POST", "/v1/claims/ns/none:renew".to_owned(), json!({"fence": 1}), 404),
        ("POST", format!("{pool}/workers/w2:heartbeat"), json!({"claims": [{"key": "x", "fence": 1}]}), 200),
        ("POST", format!("{pool}/workers/w2:heartbeat"), json!({"claims": 1}), 400),
        ("POST", format!("{pool}/workers/w2:heartbeat"), json!({"incarnation": 9}), 409),
        ("POST", format!("{pool}/workers/none:heartbeat"), json!({}), 404),
        ("POST", format!("{pool}/workers/w2:cordon"), json!({}), 200),
        ("POST", format!("{pool}/workers/w2:cordon"), json!({"why": 1}), 400),
        ("POST", format!("{pool}/workers/none:cordon"), json!({}), 404),
        ("POST", format!("{pool}/workers/w2:uncordon"), json!({}), 200),
        ("POST", format!("{pool}/workers/w2:uncordon"), json!({"why": 1}), 400),
        ("POST", format!("{pool}/workers/none:uncordon"), json!({}), 404),
        ("POST", format!("{pool}/workers/w2:drain"), json!({}), 200),
        ("POST", format!("{pool}/workers/w2:drain"), json!({"why": 1}), 400),
        ("POST", format!("{pool}/workers/none:drain"), json!({}), 404),
        ("POST", format!("{pool}/workers/w2:uncordon"), json!({}), 409),
        ("POST", format!("{pool}/workers/w2:clear"), json!({}), 200),
        ("POST", format!("{pool}/workers/w2:clear"), json!({"why": 1}), 400),
        ("POST", format!("{pool}/workers/none:clear"), json!({}), 404),
        ("POST", format!("{pool}:clear"), json!({}), 200),
        ("POST", format!("{pool}:clear"), json!({"why": 1}), 400),
        ("POST", "/v1/pools/ns/none:clear".to_owned(), json!({}), 404),
        ("PUT", "/v1/pools/ns/shared".to_owned(), shared.clone(), 201),
        ("PUT", "/v1/pools/ns/shared/workers/g1".to_owned(), large, 201),
        ("POST", "/v1/claims".to_owned(), share("s", 250), 201),
        ("POST", "/v1/claims".to_owned(), share("s", 250), 200),
        ("POST", "/v1/claims:batch".to_owned(), json!({"mode": "independent", "items": [share("t", 1000)]}), 200),
        ("GET", "/v1/pools/ns/shared/workers/g1".to_owned(), Value::Null, 200),
        ("GET", "/v1/pools/ns/shared".to_owned(), Value::Null, 200),
        ("POST", "/v1/explain".to_owned(), share("u", 1000), 200),
        ("POST", "/v1/explain".to_owned(), share("u", 1500), 400),
        ("POST", "/v1/explain".to_owned(), claim("u"), 200),
        ("POST", "/v1/explain".to_owned(), json!({"namespace": "ns", "pool": "none"}), 404),
        ("POST", "/v1/claims/ns/s:resize".to_owned(), json!({"fence": 1, "resources": {"slots": 1}}), 409),
        ("POST", "/v1/claims/ns/s:resize".to_owned(), json!({"fence": 1}), 400),
        ("POST", "/v1/claims/ns/none:resize".to_owned(), json!({"fence": 1, "resources": {"slots": 1}}), 404),
        ("GET", format!("{pool}/demand"), Value::Null, 200),
        ("GET", format!("{pool} /demand"), Value::Null, 400),
        ("GET", "/v1/pools/ns/none/demand".to_owned(), Value::Null, 404),
        ("GET", format!("{pool}/events?from=x"), Value::Null, 400),
        ("GET", "/v1/pools/ns/none/events".to_owned(), Value::Null, 404),
        ("GET", "/v1/quotas/ns/t".to_owned(), Value::Null, 200),
        ("GET", "/v1/quotas/ns/ t".to_owned(), Value::Null, 400),
        (
            "PUT",
            "/v1/quotas/ns/t".to_owned(),
            json!({"claims": 1, "cpu_milli": 2, "memory_bytes": 3, "gpu_milli": 4}),
            201,
        ),
        ("PUT", "/v1/quotas/ns/t".to_owned(), json!({"weight": 3}), 200),
        ("PUT", "/v1/quotas/ns/t".to_owned(), json!({"weight": 0}), 400),
        ("PUT", "/v1/quotas/ns".to_owned(), json!({"claims": 9}), 201),
        ("PUT", "/v1/quotas/ns".to_owned(), json!({}), 200),
        ("PUT", "/v1/quotas/ns".to_owned(), json!({"weight": 0}), 400),
        ("GET", "/v1/quotas/ns".to_owned(), Value::Null, 200),
        ("GET", "/v1/quotas/ ns".to_owned(), Value::Null, 400),
        ("GET", "/v1/quotas?limit=1".to_owned(), Value::Null, 200),
        ("GET", "/v1/quotas?limit=x".to_owned(), Value::Null, 400),
        ("DELETE", "/v1/quotas/ns/t".to_owned(), Value::Null, 200),
        ("DELETE", "/v1/quotas/ns/t".to_owned(), Value::Null, 404),
        ("DELETE", "/v1/quotas/ns/ t".to_owned(), Value::Null, 400),
        ("DELETE", "/v1/quotas/ns".to_owned(), Value::Null, 200),
        ("DELETE", "/v1/quotas/ns".to_owned(), Value::Null, 404),
        ("DELETE", "/v1/quotas/ ns".to_owned(), Value::Null, 400),
        ("DELETE", pool.to_owned(), Value::Null, 409),
        ("GET", "/healthz".to_owned(), Value::Null, 200),
        ("GET", "/readyz".to_owned(), Value::Null, 200),
        ("GET", "/debug/shards".to_owned(), Value::Null, 200),
    ];
    for (method, path, body, status) in steps {
        let answer = api.check(&mut client, method, &path.replace(' ', "%20"), &body);
        assert_eq!(answer.status, status, "{method} {path}: {}", answer.text());
    }
    let mut watcher = Watcher::open(server.address, "/v1/pools/ns/shared/events?from=1-1", "");
    // A queued claim, and the demand that an autoscaler sees; and a served one.
    let mut waits = server.client();
    let mut patient = share("patient", 1000);
    (patient["wait_ms"], patient["priority"], patient["preemptible"]) = (json!(60_000), json!(5), json!(true));
    let waiting = std::thread::spawn(move || waits.post("/v1/claims", &patient));
    until("the claim is queued", || api.check(&mut client, "GET", "/v1/claims/ns/patient", &Value::Null).status == 200);
    // While it is being decided it is in no queue, and so in no demand.
    let mut shape = Value::Null;
    until("the demand shows the claim", || {
        let demand = api.check(&mut client, "GET", "/v1/pools/ns/shared/demand", &Value::Null);
        shape = demand.json()["shapes"][0].clone();
        !shape.is_null()
    });
    assert_eq!(shape["resources"]["gpu"]["milli"], 1000);
    let listed = api.check(&mut client, "GET", "/v1/claims?state=active,waiting", &Value::Null).expect(200);
    assert_eq!(listed["items"].as_array().unwrap().last().unwrap()["key"], "patient");
    client.put("/v1/pools/ns/shared/workers/g2", &more).expect(201);
    waiting.join().unwrap().expect(201);
    let served = api.check(&mut client, "GET", "/v1/claims/ns/patient", &Value::Null);
    assert_eq!(served.json()["claim"]["priority"], 5);
    // Earlier events are missed; a worker was registered, and the claim took it.
    api.check_events(&mut watcher, 3);

    let fence = client.get("/v1/claims/ns/a").expect(200)["claim"]["fence"].take();
    let body = json!({"fence": fence});
    api.check(&mut client, "POST", "/v1/claims/ns/a:confirm", &body).expect(200);
    let renewed = json!({"fence": fence, "ttl_ms": 60_000});
    api.check(&mut client, "POST", "/v1/claims/ns/a:renew", &renewed).expect(200);
    let fence = client.get("/v1/claims/ns/s").expect(200)["claim"]["fence"].take();
    for (gpu, status) in [(json!({"milli": 500}), 200), (json!({"count": 2}), 429)] {
        let resized = json!({"fence": fence, "resources": {"gpu": gpu}});
        api.check(&mut client, "POST", "/v1/claims/ns/s:resize", &resized).expect(status);
    }
    client.put("/v1/pools/ns/other", &json!({})).expect(201);
    let elsewhere = json!({"namespace": "ns", "pool": "other", "key": "a"});
    api.check(&mut client, "POST", "/v1/claims", &elsewhere).expect(409);
    api.check(&mut client, "POST", "/v1/claims/ns/a:release", &body).expect(200);
    api.check(&mut client, "DELETE", &format!("{pool}/workers/w1"), &Value::Null).expect(200);
    api.check(&mut client, "DELETE", &format!("{pool}/workers/w1"), &Value::Null).expect(404);
    api.check(&mut client, "DELETE", &format!("{pool}?force=true"), &Value::Null).expect(200);
    api.check(&mut client, "DELETE", pool, &Value::Null).expect(404);

    // Every described success was seen, and every error except those that need a broken or a busy service.
    let mut unseen = Vec::new();
    for (path, item) in api.document["paths"].as_object().unwrap() {
        for operation in item.as_object().unwrap().values() {
            let id = operation["operationId"].as_str().unwrap();
            let statuses = operation["responses"].as_object().unwrap().keys().map(|status| status.parse().unwrap());
            let shown =
                statuses.filter(|status| *status < 500 && ![403, 413, 415, 421].contains(status) && id != "metrics");
            unseen.extend(
                shown
                    .filter(|status| !api.observed.contains(&(id.to_owned(), *status)))
                    .map(|status| (path.as_str(), id, status)),
            );
        }
    }
    let bad_name = [("getPool", 400), ("deletePool", 400), ("getWorker", 400), ("deleteWorker", 400)];
    let too_many = [("putQuota", 409), ("putNamespaceQuota", 409), ("watchPool", 429)];
    unseen.retain(|(_, id, status)| !bad_name.contains(&(*id, *status)) && !too_many.contains(&(*id, *status)));
    assert!(unseen.is_empty(), "described and not seen: {unseen:?}");
}

/// Returns the names that a service lists when it rejects an unknown one.
fn known(answer: &Response) -> BTreeSet<String> {
    let reply = answer.json();
    let message = reply["error"]["message"].as_str().unwrap();
    let (_, names) = message.split_once("known: ").unwrap_or_else(|| panic!("{message}"));
    names.split([',', ' ']).filter(|name| !name.is_empty() && *name != "or").map(str::to_owned).collect()
}

#[test]
fn the_description_matches_accepted_requests() {
    let (_dir, _server, mut client) = with_pool(1);
    let api = Description::of(&mut client);
    let schema = |name: &str| api.document["components"]["schemas"][name].clone();
    let fields = |schema: &Value| schema["properties"].as_object().unwrap().keys().cloned().collect::<BTreeSet<_>>();
    let nothing = json!({"frobnicate": 1});
    let nested = |inside: &str| json!({inside: {"frobnicate": 1}});
    let capacity = schema("Capacity");
    for (method, path, body, described) in [
        ("PUT", "/v1/pools/ns/other", nothing.clone(), schema("PoolSpec")),
        ("PATCH", "/v1/pools/ns/warm", nothing.clone(), schema("PoolPatch")),
        ("PUT", "/v1/pools/ns/warm/workers/w", nothing.clone(), schema("WorkerBody")),
        ("PUT", "/v1/pools/ns/warm/workers/w", nested("capacity"), capacity.clone()),
        (
            "PUT",
            "/v1/pools/ns/warm/workers/w",
            json!({"capacity": {"gpu": {"frobnicate": 1}}}),
            capacity["properties"]["gpu"].clone(),
        ),
        ("POST", "/v1/pools/ns/warm/workers:batch", nothing.clone(), schema("WorkersBatch")),
        ("POST", "/v1/pools/ns/warm/workers:heartbeat", nothing.clone(), schema("HeartbeatBatch")),
        ("POST", "/v1/claims", nothing.clone(), schema("ClaimBody")),
        ("POST", "/v1/claims:batch", nothing.clone(), schema("ClaimsBatch")),
        ("POST", "/v1/claims", json!({"namespace": "ns", "resources": nothing}), schema("Resources")),
        ("POST", "/v1/claims", json!({"namespace": "ns", "resources": {"gpu": nothing}}), schema("GpuAsk")),
        ("PUT", "/v1/pools/ns/other", json!({"typical_requests": [nothing]}), schema("TypicalRequest")),
        ("POST", "/v1/claims/ns/a:resize", nothing.clone(), schema("ResizeBody")),
        ("PUT", "/v1/quotas/ns/t", nothing.clone(), schema("QuotaBody")),
        ("PUT", "/v1/quotas/ns", nothing.clone(), schema("QuotaBody")),
        (
            "POST",
            "/v1/claims",
            json!({"namespace": "ns", "node": {"preferred_then_wait": {"frobnicate": 1}}}),
            schema("ClaimBody")["properties"]["node"]["properties"]["preferred_then_wait"].clone(),
        ),
        ("POST", "/v1/explain", nothing.clone(), schema("ClaimBody")),
        ("POST", "/v1/claims/ns/a:confirm", nothing.clone(), schema("HolderBody")),
        ("POST", "/v1/claims/ns/a:renew", nothing.clone(), schema("RenewBody")),
        ("POST", "/v1/claims/ns/a:release", nothing.clone(), schema("ReleaseBody")),
        ("POST", "/v1/pools/ns/warm/workers/w:heartbeat", nothing.clone(), schema("HeartbeatBody")),
        (
            "POST",
            "/v1/claims",
            json!({"namespace": "ns", "node": {"frobnicate": 1}}),
            schema("ClaimBody")["properties"]["node"].clone(),
        ),
    ] {
        let answer = client.request(method, path, body.to_string().as_bytes());
        assert_eq!(known(&answer), fields(&described), "{method} {path}");
    }
    // A batch lists the known names for each item.
    for (verb, item) in [("batch", "WorkerItem"), ("heartbeat", "HeartbeatItem")] {
        let path = format!("/v1/pools/ns/warm/workers:{verb}");
        let answer = client.post(&path, &json!({"workers": [nothing]})).expect(200);
        let message = answer["items"][0]["error"]["message"].as_str().unwrap().to_owned();
        for field in fields(&schema(item)) {
            assert!(message.contains(&field), "{field} is not in {message}");
        }
    }
    // Enumerations, and query parameters.
    for (field, path, method) in [
        ("mode", "/v1/pools/ns/other", "PUT"),
        ("policy", "/v1/pools/ns/other", "PUT"),
        ("ack", "/v1/pools/ns/other", "PUT"),
    ] {
        let answer = client.request(method, path, json!({field: "frobnicate"}).to_string().as_bytes());
        let parts = schema("PoolSpec")["properties"][field]["enum"].clone();
        let parts: BTreeSet<_> =
            parts.as_array().unwrap().iter().map(|word| word.as_str().unwrap().to_owned()).collect();
        assert_eq!(known(&answer), parts, "{field}");
    }
    for (path, item) in api.document["paths"].as_object().unwrap() {
        let Some(operation) = item.get("get").filter(|_| path.starts_with("/v1/")) else { continue };
        let concrete = path
            .replace("{namespace}", "ns")
            .replace("{pool}", "warm")
            .replace("{id}", "w0")
            .replace("{key}", "a")
            .replace("{tenant}", "t");
        let answer = client.get(&format!("{concrete}?frobnicate=1"));
        answer.expect_error(400, "INVALID_ARGUMENT", None, Some("frobnicate"));
        let references =
            operation["parameters"].as_array().unwrap().iter().filter_map(|parameter| parameter["$ref"].as_str());
        let described = references.map(|reference| reference.rsplit('/').next().unwrap().to_owned());
        let in_query = |name: &String| api.document["components"]["parameters"][name]["in"] == "query";
        let described: BTreeSet<_> = described.filter(in_query).collect();
        if described.is_empty() {
            assert!(answer.text().contains("none is known"), "{path}: {}", answer.text());
        } else {
            assert_eq!(known(&answer), described, "{path}");
        }
    }
}

#[test]
fn the_viewer_loads_nothing_from_other_hosts() {
    let (_dir, _server, mut client) = fresh();
    let page = client.get("/docs");
    assert_eq!((page.status, page.header("content-type")), (200, Some("text/html; charset=utf-8")));
    assert!(!page.text().contains("http"), "{}", page.text());
    let files: Vec<_> = page.text().split('"').filter(|word| word.starts_with("/docs/")).collect();
    assert_eq!(files, ["/docs/swagger-ui.css", "/docs/swagger-ui-bundle.js", "/docs/viewer.js"]);
    let script = client.get("/docs/viewer.js");
    assert_eq!((script.status, script.header("content-type")), (200, Some("text/javascript")));
    assert!(script.text().contains("/v1/openapi.json") && !script.text().contains("http"), "{}", script.text());
    // The page has no inline scripts or styles, so that a policy may forbid them.
    assert!(!page.text().contains("<script>") && !page.text().contains("<style"), "{}", page.text());
    for file in &files[..2] {
        let answer = client.get(file);
        assert_eq!((answer.status, answer.header("content-encoding")), (200, Some("gzip")), "{file}");
        let mut text = String::new();
        std::io::Read::read_to_string(&mut flate2::read::GzDecoder::new(&answer.body[..]), &mut text).unwrap();
        assert!(text.len() > 100_000, "{file}");
    }
    client.get("/docs/nothing.js").expect_error(404, "NOT_FOUND", Some("route"), None);
}
