//! OpenAPI 3.1 description of this API, and a viewer for it that loads nothing from other hosts.
//!
//! One table lists the operations, `schemas` the schemas; a test compares both with the behaviour of a running service.

use std::sync::LazyLock;

use axum::extract::Path;
use axum::http::{HeaderValue, header};
use axum::response::{Html, IntoResponse as _, Response};
use bytes::Bytes;
use serde::{Serialize, Serializer};
use serde_json::{Map, Value, json};

use super::HandlerResult;
use crate::api::error_table::{ApiError, ErrorStatus};

mod examples;
mod schemas;

/// Serves `GET /v1/openapi.json`.
pub(super) async fn document() -> Response {
    static DOCUMENT: LazyLock<Bytes> = LazyLock::new(|| serialize_in_order(&describe()).into());
    let json = HeaderValue::from_static("application/json");
    ([(header::CONTENT_TYPE, json)], DOCUMENT.clone()).into_response()
}

/// Serves the viewer at `GET /docs`.
pub(super) async fn viewer() -> Html<&'static str> {
    Html(include_str!("viewer.html"))
}

/// Serves `GET /docs/{file}`: the files of the viewer; its library is always compressed.
pub(super) async fn viewer_file(Path(name): Path<String>) -> HandlerResult {
    let (kind, packed): (_, &'static [u8]) = match name.as_str() {
        "viewer.js" => {
            let script = [(header::CONTENT_TYPE, HeaderValue::from_static("text/javascript"))];
            return Ok((script, include_str!("viewer.js")).into_response());
        }
        "swagger-ui-bundle.js" => {
            ("text/javascript", include_bytes!(concat!(env!("OUT_DIR"), "/swagger-ui-bundle.js.gz")))
        }
        "swagger-ui.css" => ("text/css", include_bytes!(concat!(env!("OUT_DIR"), "/swagger-ui.css.gz"))),
        _ => return Err(ApiError::new(ErrorStatus::ROUTE, "no such file of the viewer")),
    };
    let headers = [(header::CONTENT_TYPE, kind), (header::CONTENT_ENCODING, "gzip")];
    Ok((headers.map(|(name, value)| (name, HeaderValue::from_static(value))), packed).into_response())
}

/// Operation of the API, as a row of the table.
struct OperationSpec {
    method: &'static str,
    path: &'static str,
    id: &'static str,
    tag: &'static str,
    summary: &'static str,
    /// Names of the query parameters among the components.
    query: &'static [&'static str],
    /// Name of the body's schema.
    body: Option<&'static str>,
    /// Success statuses: status, meaning, and name of the response's schema.
    success: &'static [(u16, &'static str, &'static str)],
    /// Error statuses beyond those of every operation.
    errors: &'static [u16],
}

/// Error statuses of every operation under `/v1`.
const ERRORS_OF_ALL: [u16; 6] = [400, 403, 421, 500, 503, 504];
/// Error statuses of an operation with a body.
const ERRORS_OF_BODY: [u16; 2] = [413, 415];
const PAGE: &[&str] = &["page_token", "limit"];

#[rustfmt::skip]
const OPERATIONS: &[OperationSpec] = &[
    OperationSpec { method: "put", path: "/v1/pools/{namespace}/{pool}", id: "putPool", tag: "pools",
        summary: "Creates a pool, or replaces the specification of one that is there. A field that is left out goes back to its default. Durable when it returns.",
        query: &[], body: Some("PoolSpec"), success: &[(201, "Created.", "PoolAnswer"), (200, "Replaced.", "PoolAnswer")], errors: &[409] },
    OperationSpec { method: "patch", path: "/v1/pools/{namespace}/{pool}", id: "updatePool", tag: "pools",
        summary: "Changes single fields of the specification of a pool that is there; null takes one back to its default, and of the labels only those change that are named. Durable when it returns.",
        query: &["version"], body: Some("PoolPatch"), success: &[(200, "Changed.", "PoolAnswer")], errors: &[404, 409] },
    OperationSpec { method: "get", path: "/v1/pools/{namespace}/{pool}", id: "getPool", tag: "pools",
        summary: "Specification, counts, figures by shard.",
        query: &[], body: None, success: &[(200, "The pool.", "PoolAnswer")], errors: &[404] },
    OperationSpec { method: "delete", path: "/v1/pools/{namespace}/{pool}", id: "deletePool", tag: "pools",
        summary: "Deletes a pool; one with workers only with force=true, which also ends them and their claims. Durable when it returns.",
        query: &["force"], body: None, success: &[(200, "Deleted.", "Empty")], errors: &[404, 409] },
    OperationSpec { method: "get", path: "/v1/pools", id: "listPools", tag: "pools",
        summary: "Pools by name, page by page, without their shards.",
        query: PAGE, body: None, success: &[(200, "A page.", "PoolPage")], errors: &[] },
    OperationSpec { method: "get", path: "/v1/pools/{namespace}/{pool}/demand", id: "getDemand", tag: "pools",
        summary: "What waits for a pool, how many workers would clear it, and which could go: for an autoscaler, which finds each figure at the top.",
        query: &[], body: None, success: &[(200, "What waits.", "Demand")], errors: &[404] },
    OperationSpec { method: "get", path: "/v1/pools/{namespace}/{pool}/events", id: "watchPool", tag: "pools",
        summary: "What happens in a pool, as server-sent events: from now on, or from a position on. The first is started, or missed where it is not known what happened since the position: then list the pool anew. Who watches first and lists then has seen everything. Ends when the pool is deleted or the service stops; until then a viewer that waits for the end shows nothing, so read it with curl -N.",
        query: &["from"], body: None, success: &[(200, "Events, each with its position as id, its kind as event, and this as data.", "PoolEvent")], errors: &[404, 429] },
    OperationSpec { method: "put", path: "/v1/pools/{namespace}/{pool}/workers/{id}", id: "registerWorker", tag: "workers",
        summary: "A worker is there. An upsert: what is said replaces what was known.",
        query: &[], body: Some("WorkerBody"), success: &[(201, "It is new.", "WorkerAnswer"), (200, "It was known.", "WorkerAnswer")], errors: &[404, 409] },
    OperationSpec { method: "get", path: "/v1/pools/{namespace}/{pool}/workers/{id}", id: "getWorker", tag: "workers",
        summary: "A worker, with what it holds.",
        query: &[], body: None, success: &[(200, "The worker.", "WorkerAnswer")], errors: &[404] },
    OperationSpec { method: "delete", path: "/v1/pools/{namespace}/{pool}/workers/{id}", id: "deleteWorker", tag: "workers",
        summary: "The worker is gone: what it held is lost, and its keys are free. It is remembered for a minute, so that a late registration does not bring it back.",
        query: &[], body: None, success: &[(200, "Deleted.", "Empty")], errors: &[404] },
    OperationSpec { method: "get", path: "/v1/pools/{namespace}/{pool}/workers", id: "listWorkers", tag: "workers",
        summary: "The workers of a pool, page by page. One that stays is seen exactly once, whoever comes and goes meanwhile.",
        query: PAGE, body: None, success: &[(200, "A page.", "WorkerPage")], errors: &[404] },
    OperationSpec { method: "post", path: "/v1/pools/{namespace}/{pool}/workers:batch", id: "registerWorkers", tag: "workers",
        summary: "Many workers in one call, each with its own outcome, in order: a bad one harms no other.",
        query: &[], body: Some("WorkersBatch"), success: &[(200, "One outcome a worker.", "WorkerOutcomes")], errors: &[404] },
    OperationSpec { method: "post", path: "/v1/pools/{namespace}/{pool}:clear", id: "clearPool", tag: "pools",
        summary: "The owner of all workers speaks for them, as they stand: those that were suspect are trusted.",
        query: &[], body: Some("NoBody"), success: &[(200, "How many.", "Cleared")], errors: &[404] },
    OperationSpec { method: "post", path: "/v1/pools/{namespace}/{pool}/workers/{id}:heartbeat", id: "heartbeat", tag: "workers",
        summary: "The worker lives, and says what it runs; the answer says what it should run, and what it should stop.",
        query: &[], body: Some("HeartbeatBody"), success: &[(200, "Heard.", "Heard")], errors: &[404, 409] },
    OperationSpec { method: "post", path: "/v1/pools/{namespace}/{pool}/workers:heartbeat", id: "heartbeats", tag: "workers",
        summary: "Many workers live, each with its own outcome, in order: a bad one harms no other. For agents that speak for many: one call costs little more than one heartbeat.",
        query: &[], body: Some("HeartbeatBatch"), success: &[(200, "One outcome a worker.", "HeardOutcomes")], errors: &[404] },
    OperationSpec { method: "post", path: "/v1/pools/{namespace}/{pool}/workers/{id}:cordon", id: "cordonWorker", tag: "workers",
        summary: "It is no longer offered; it keeps what it holds. Outlives registrations and restarts.",
        query: &[], body: Some("NoBody"), success: &[(200, "The worker.", "WorkerAnswer")], errors: &[404] },
    OperationSpec { method: "post", path: "/v1/pools/{namespace}/{pool}/workers/{id}:uncordon", id: "uncordonWorker", tag: "workers",
        summary: "It is offered again.",
        query: &[], body: Some("NoBody"), success: &[(200, "The worker.", "WorkerAnswer")], errors: &[404, 409] },
    OperationSpec { method: "post", path: "/v1/pools/{namespace}/{pool}/workers/{id}:drain", id: "drainWorker", tag: "workers",
        summary: "It is not offered any more in this incarnation; it keeps what it holds until that is released.",
        query: &[], body: Some("NoBody"), success: &[(200, "The worker.", "WorkerAnswer")], errors: &[404] },
    OperationSpec { method: "post", path: "/v1/pools/{namespace}/{pool}/workers/{id}:clear", id: "clearWorker", tag: "workers",
        summary: "Its owner speaks for it, as it stands: it is trusted again.",
        query: &[], body: Some("NoBody"), success: &[(200, "The worker.", "WorkerAnswer")], errors: &[404] },
    OperationSpec { method: "post", path: "/v1/claims", id: "claim", tag: "claims",
        summary: "Takes a worker for a key, or finds what the key holds already. Sent again with the same key, it is the same claim. With wait_ms the answer comes when there is room, or when that time is over.",
        query: &[], body: Some("ClaimBody"), success: &[(201, "Taken by this request.", "ClaimAnswer"), (200, "The key held it.", "ClaimAnswer")], errors: &[404, 409, 429] },
    OperationSpec { method: "post", path: "/v1/claims:batch", id: "claimMany", tag: "claims",
        summary: "Many claims in one call, each with its own outcome, in order: a bad one harms no other.",
        query: &[], body: Some("ClaimsBatch"), success: &[(200, "One outcome an item.", "ClaimOutcomes")], errors: &[] },
    OperationSpec { method: "post", path: "/v1/explain", id: "explainClaim", tag: "claims",
        summary: "What a claim would get at this moment, and why: of each pool how many workers would take it, what rules the others out, and who comes nearest. Takes nothing; the key does not matter.",
        query: &[], body: Some("ClaimBody"), success: &[(200, "Placed or refused, and why.", "Explanation")], errors: &[404] },
    OperationSpec { method: "get", path: "/v1/claims", id: "listClaims", tag: "claims",
        summary: "Claims, page by page. A page may be short or empty and still have a next_page_token: go on until there is none.",
        query: &["namespace", "pool", "worker", "tenant", "state", "older_than_ms", "page_token", "limit"], body: None, success: &[(200, "A page.", "ClaimPage")], errors: &[] },
    OperationSpec { method: "get", path: "/v1/claims/{namespace}/{key}", id: "getClaim", tag: "claims",
        summary: "What the key holds, or what it waits for.",
        query: &["tenant"], body: None, success: &[(200, "The claim, held or waiting.", "Standing")], errors: &[404] },
    OperationSpec { method: "post", path: "/v1/claims/{namespace}/{key}:confirm", id: "confirmClaim", tag: "claims",
        summary: "The holder has started: the claim is active.",
        query: &[], body: Some("HolderBody"), success: &[(200, "The claim.", "ClaimAnswer")], errors: &[404, 409] },
    OperationSpec { method: "post", path: "/v1/claims/{namespace}/{key}:renew", id: "renewClaim", tag: "claims",
        summary: "The holder still needs it: its time begins anew.",
        query: &[], body: Some("RenewBody"), success: &[(200, "The claim.", "ClaimAnswer")], errors: &[404, 409] },
    OperationSpec { method: "post", path: "/v1/claims/{namespace}/{key}:resize", id: "resizeClaim", tag: "claims",
        summary: "The holder needs another share of its worker than before, as much as is said here in all. Worker and fence stay. Without room for it nothing changes.",
        query: &[], body: Some("ResizeBody"), success: &[(200, "The claim.", "ClaimAnswer")], errors: &[404, 409, 429] },
    OperationSpec { method: "post", path: "/v1/claims/{namespace}/{key}:release", id: "releaseClaim", tag: "claims",
        summary: "The holder is done. Succeeds also if the claim is gone already.",
        query: &[], body: Some("ReleaseBody"), success: &[(200, "Released, or the key held no claim.", "ReleaseAnswer")], errors: &[409] },
    OperationSpec { method: "put", path: "/v1/quotas/{namespace}/{tenant}", id: "putQuota", tag: "quotas",
        summary: "Sets how much a tenant may hold, and its weight where claims wait. What is left out is not bounded. What it holds already stays. Durable when it returns.",
        query: &[], body: Some("QuotaBody"), success: &[(201, "It had none.", "QuotaAnswer"), (200, "Replaced.", "QuotaAnswer")], errors: &[409] },
    OperationSpec { method: "get", path: "/v1/quotas/{namespace}/{tenant}", id: "getQuota", tag: "quotas",
        summary: "What a tenant may hold, where that comes from, and what it holds.",
        query: &[], body: None, success: &[(200, "The quota.", "QuotaAnswer")], errors: &[] },
    OperationSpec { method: "delete", path: "/v1/quotas/{namespace}/{tenant}", id: "deleteQuota", tag: "quotas",
        summary: "Takes the quota of a tenant away: that of its namespace holds from then on, or none. Durable when it returns.",
        query: &[], body: None, success: &[(200, "Deleted.", "Empty")], errors: &[404] },
    OperationSpec { method: "put", path: "/v1/quotas/{namespace}", id: "putNamespaceQuota", tag: "quotas",
        summary: "Sets how much each tenant of the namespace may hold that has no quota of its own. Durable when it returns.",
        query: &[], body: Some("QuotaBody"), success: &[(201, "There was none.", "QuotaAnswer"), (200, "Replaced.", "QuotaAnswer")], errors: &[409] },
    OperationSpec { method: "get", path: "/v1/quotas/{namespace}", id: "getNamespaceQuota", tag: "quotas",
        summary: "How much each tenant of the namespace may hold that has no quota of its own.",
        query: &[], body: None, success: &[(200, "The quota.", "QuotaAnswer")], errors: &[] },
    OperationSpec { method: "delete", path: "/v1/quotas/{namespace}", id: "deleteNamespaceQuota", tag: "quotas",
        summary: "Takes it away: tenants without their own are not bounded any more. Durable when it returns.",
        query: &[], body: None, success: &[(200, "Deleted.", "Empty")], errors: &[404] },
    OperationSpec { method: "get", path: "/v1/quotas", id: "listQuotas", tag: "quotas",
        summary: "Quotas that were set, by name, page by page.",
        query: PAGE, body: None, success: &[(200, "A page.", "QuotaPage")], errors: &[] },
    OperationSpec { method: "get", path: "/healthz", id: "health", tag: "probes",
        summary: "Whether the process lives.",
        query: &[], body: None, success: &[(200, "It does.", "Health")], errors: &[] },
    OperationSpec { method: "get", path: "/readyz", id: "readiness", tag: "probes",
        summary: "Whether every shard serves and the store takes records. If not, 503 with the reasons as its message.",
        query: &[], body: None, success: &[(200, "They do.", "Readiness")], errors: &[503] },
    OperationSpec { method: "get", path: "/metrics", id: "metrics", tag: "probes",
        summary: "All metrics, in the text format of Prometheus.",
        query: &[], body: None, success: &[(200, "The scrape.", "")], errors: &[] },
    OperationSpec { method: "get", path: "/debug/shards", id: "debugShards", tag: "probes",
        summary: "Every shard of every pool, and the number of keys in the directory. For people; its shape may change.",
        query: &[], body: None, success: &[(200, "The shards.", "Shards")], errors: &[] },
];

impl OperationSpec {
    fn describe(&self) -> Value {
        let of_all = self.path.starts_with("/v1/").then_some(ERRORS_OF_ALL);
        let of_body = self.body.map(|_| ERRORS_OF_BODY);
        let errors = of_all.iter().flatten().chain(of_body.iter().flatten()).chain(self.errors);
        let mut responses: Map<String, Value> =
            errors.map(|status| (status.to_string(), reference("responses", &status.to_string()))).collect();
        for (status, meaning, schema) in self.success {
            let content = match *schema {
                "" => json!({"text/plain": {"schema": {"type": "string"}}}),
                "PoolEvent" => json!({"text/event-stream": {"schema": reference("schemas", schema)}}),
                schema => json!({"application/json": {"schema": reference("schemas", schema)}}),
            };
            responses.insert(status.to_string(), json!({"description": meaning, "content": content}));
        }
        let in_path = self.path.split('{').skip(1).filter_map(|rest| rest.split_once('}'));
        let parameters: Vec<_> = in_path
            .map(|(name, _)| {
                let example = examples::path(self.id, name);
                json!({"name": name, "in": "path", "required": true, "schema": reference("schemas", "Name"), "example": example})
            })
            .chain(self.query.iter().map(|name| reference("parameters", name)))
            .chain((self.id == "watchPool").then(|| reference("parameters", "Last-Event-ID")))
            .collect();
        let mut operation = json!({
            "operationId": self.id, "tags": [self.tag], "summary": self.summary, "parameters": parameters,
            "responses": responses,
        });
        if let Some(schema) = self.body {
            // An empty body means `{}`, which is enough where no field is required.
            let required = schemas::schemas()[schema]["required"] != json!([]);
            let example = examples::body(self.id);
            let content = json!({"application/json": {"schema": reference("schemas", schema), "example": example}});
            operation["requestBody"] = json!({"required": required, "content": content});
        }
        operation
    }
}

/// Serialises the document with its paths in the order of the table, as viewers show them; a map would sort them.
fn serialize_in_order(document: &Value) -> String {
    struct OrderedPaths<'a>(&'a Value);
    impl Serialize for OrderedPaths<'_> {
        fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
            let mut paths: Vec<&str> = Vec::new();
            for OperationSpec { path, .. } in OPERATIONS {
                if !paths.contains(path) {
                    paths.push(path);
                }
            }
            serializer.collect_map(paths.into_iter().map(|path| (path, OrderedMethods(&self.0[path], path))))
        }
    }
    struct OrderedMethods<'a>(&'a Value, &'a str);
    impl Serialize for OrderedMethods<'_> {
        fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
            let of_path = OPERATIONS.iter().filter(|operation| operation.path == self.1);
            serializer.collect_map(of_path.map(|OperationSpec { method, .. }| (method, &self.0[method])))
        }
    }
    #[derive(Serialize)]
    struct OpenApiDocument<'a> {
        openapi: &'a Value,
        info: &'a Value,
        servers: &'a Value,
        tags: &'a Value,
        paths: OrderedPaths<'a>,
        components: &'a Value,
    }
    let part = |name: &str| &document[name];
    let document = OpenApiDocument {
        openapi: part("openapi"),
        info: part("info"),
        servers: part("servers"),
        tags: part("tags"),
        paths: OrderedPaths(part("paths")),
        components: part("components"),
    };
    serde_json::to_string(&document).expect("values are JSON")
}

fn reference(kind: &str, name: &str) -> Value {
    json!({"$ref": format!("#/components/{kind}/{name}")})
}

fn describe() -> Value {
    let mut paths = Map::new();
    for operation in OPERATIONS {
        let path = paths.entry(operation.path).or_insert_with(|| json!({}));
        path[operation.method] = operation.describe();
    }
    json!({
        "openapi": "3.1.0",
        "info": {
            "title": "Hotpool",
            "version": env!("CARGO_PKG_VERSION"),
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
            "description": "Assigns work to warm workers: a claim takes a worker of a pool for a key, and gives it \
                back. Everything may be sent again: a claim with a key that is held returns the same claim, releasing \
                what is gone succeeds. Unknown fields and parameters are refused, and so is null where a value belongs. \
                The content type does not matter. The same calls exist over gRPC, package hotpool.v1, on the same port. The examples follow each other: on a \
                new service each works as it stands, section by section, if the deletions are left for last. The fence \
                of an example stands for that of the claim that was taken last; the viewer of the service puts it in.",
        },
        "servers": [{"url": "/"}],
        "tags": [
            {"name": "pools", "description": "Named sets of workers with one policy."},
            {"name": "workers", "description": "Each belongs to one pool; its id is unique there."},
            {"name": "claims", "description": "The right to use a worker. Identity is namespace, tenant and key."},
            {"name": "quotas", "description": "How much a tenant may hold, and its weight beside others."},
            {"name": "probes", "description": "For probes and people."},
        ],
        "paths": paths,
        "components": {
            "schemas": schemas::schemas(),
            "parameters": schemas::parameters(),
            "responses": schemas::responses(),
        },
    })
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::metrics::HttpRoute;

    #[test]
    fn every_reference_leads_somewhere_and_every_component_is_used() {
        fn references(value: &Value, found: &mut BTreeSet<String>) {
            match value {
                Value::Object(fields) => {
                    found.extend(fields.get("$ref").and_then(Value::as_str).map(str::to_owned));
                    fields.values().for_each(|field| references(field, found));
                }
                Value::Array(items) => items.iter().for_each(|item| references(item, found)),
                _ => {}
            }
        }
        let document = describe();
        let mut found = BTreeSet::new();
        references(&document, &mut found);
        let known: BTreeSet<String> = ["schemas", "parameters", "responses"]
            .iter()
            .flat_map(|kind| {
                let names = document["components"][kind].as_object().unwrap().keys();
                names.map(move |name| format!("#/components/{kind}/{name}"))
            })
            .collect();
        assert_eq!(found, known);
    }

    #[test]
    fn every_route_is_described() {
        let template = |path: &str| path.replace("{ns}", "{namespace}");
        let described: BTreeSet<_> = OPERATIONS.iter().map(|operation| operation.path.to_owned()).collect();
        let beside = [HttpRoute::Root, HttpRoute::OpenApi, HttpRoute::Docs, HttpRoute::DocsFile, HttpRoute::Unmatched];
        let routes =
            HttpRoute::ALL.iter().filter(|route| !beside.contains(route)).map(|route| template(route.as_str()));
        // One route serves four verbs.
        let verbs = |path: String| match path.strip_suffix(":verb") {
            Some(path) => ["cordon", "uncordon", "drain", "clear"].map(|verb| format!("{path}:{verb}")).to_vec(),
            None => vec![path],
        };
        assert_eq!(described, routes.flat_map(verbs).collect());
    }
}
