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

/// Serves the document at `GET /v1/openapi.json`.
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
        summary: "Creates a pool, or replaces the specification of an existing one. An omitted field goes back to its default. Durable when it returns.",
        query: &[], body: Some("PoolSpec"), success: &[(201, "Created.", "PoolAnswer"), (200, "Replaced.", "PoolAnswer")], errors: &[409] },
    OperationSpec { method: "patch", path: "/v1/pools/{namespace}/{pool}", id: "updatePool", tag: "pools",
        summary: "Changes single fields of the specification of an existing pool; null resets a field to its default, and labels that are not named stay. Durable when it returns.",
        query: &["version"], body: Some("PoolPatch"), success: &[(200, "Changed.", "PoolAnswer")], errors: &[404, 409] },
    OperationSpec { method: "get", path: "/v1/pools/{namespace}/{pool}", id: "getPool", tag: "pools",
        summary: "Returns a pool with its specification, its counts and its shards.",
        query: &[], body: None, success: &[(200, "The pool.", "PoolAnswer")], errors: &[404] },
    OperationSpec { method: "delete", path: "/v1/pools/{namespace}/{pool}", id: "deletePool", tag: "pools",
        summary: "Deletes a pool; one with workers only with force=true, which also deletes them and ends their claims. Durable when it returns.",
        query: &["force"], body: None, success: &[(200, "Deleted.", "Empty")], errors: &[404, 409] },
    OperationSpec { method: "get", path: "/v1/pools", id: "listPools", tag: "pools",
        summary: "Lists pools by name, page by page, without their shards.",
        query: PAGE, body: None, success: &[(200, "The page.", "PoolPage")], errors: &[] },
    OperationSpec { method: "get", path: "/v1/pools/{namespace}/{pool}/demand", id: "getDemand", tag: "pools",
        summary: "Returns the demand of a pool: its queued claims, the workers they need, and its idle workers. Intended for an autoscaler, so the totals come first.",
        query: &[], body: None, success: &[(200, "The demand.", "Demand")], errors: &[404] },
    OperationSpec { method: "get", path: "/v1/pools/{namespace}/{pool}/events", id: "watchPool", tag: "pools",
        summary: "Streams the events of a pool as server-sent events: from now on, or from a position. The first event is started, or missed if events since the position are lost: list the pool again then. A client that watches first and lists second sees everything. The stream ends when the pool is deleted or the service stops; a viewer that waits for the end shows nothing until then, so read it with curl -N.",
        query: &["from"], body: None, success: &[(200, "Events, each with its position as id, its kind as event, and this as data.", "PoolEvent")], errors: &[404, 429] },
    OperationSpec { method: "put", path: "/v1/pools/{namespace}/{pool}/workers/{id}", id: "registerWorker", tag: "workers",
        summary: "Registers a worker, or replaces the description of a registered one.",
        query: &[], body: Some("WorkerBody"), success: &[(201, "Registered.", "WorkerAnswer"), (200, "Replaced.", "WorkerAnswer")], errors: &[404, 409] },
    OperationSpec { method: "get", path: "/v1/pools/{namespace}/{pool}/workers/{id}", id: "getWorker", tag: "workers",
        summary: "Returns a worker with its claims.",
        query: &[], body: None, success: &[(200, "The worker.", "WorkerAnswer")], errors: &[404] },
    OperationSpec { method: "delete", path: "/v1/pools/{namespace}/{pool}/workers/{id}", id: "deleteWorker", tag: "workers",
        summary: "Deletes a worker: its claims are lost, and their keys are free. Its incarnation is remembered for a minute, so that a late registration does not bring it back.",
        query: &[], body: None, success: &[(200, "Deleted.", "Empty")], errors: &[404] },
    OperationSpec { method: "get", path: "/v1/pools/{namespace}/{pool}/workers", id: "listWorkers", tag: "workers",
        summary: "Lists the workers of a pool, page by page. A worker that stays is listed exactly once, even if others come and go.",
        query: PAGE, body: None, success: &[(200, "The page.", "WorkerPage")], errors: &[404] },
    OperationSpec { method: "post", path: "/v1/pools/{namespace}/{pool}/workers:batch", id: "registerWorkers", tag: "workers",
        summary: "Registers many workers. Each has its own outcome, in order: an invalid one does not affect the others.",
        query: &[], body: Some("WorkersBatch"), success: &[(200, "One outcome for each worker.", "WorkerOutcomes")], errors: &[404] },
    OperationSpec { method: "post", path: "/v1/pools/{namespace}/{pool}:clear", id: "clearPool", tag: "pools",
        summary: "Trusts every suspect worker of the pool again, as if each had reported its claims.",
        query: &[], body: Some("NoBody"), success: &[(200, "Number of claims.", "Cleared")], errors: &[404] },
    OperationSpec { method: "post", path: "/v1/pools/{namespace}/{pool}/workers/{id}:heartbeat", id: "heartbeat", tag: "workers",
        summary: "Reports that a worker is alive and which claims it runs. The response has the claims of the worker, and those that it must stop.",
        query: &[], body: Some("HeartbeatBody"), success: &[(200, "Received.", "Heard")], errors: &[404, 409] },
    OperationSpec { method: "post", path: "/v1/pools/{namespace}/{pool}/workers:heartbeat", id: "heartbeats", tag: "workers",
        summary: "Sends many heartbeats. Each has its own outcome, in order: an invalid one does not affect the others. Intended for agents of many workers: one call costs little more than a single heartbeat.",
        query: &[], body: Some("HeartbeatBatch"), success: &[(200, "One outcome for each worker.", "HeardOutcomes")], errors: &[404] },
    OperationSpec { method: "post", path: "/v1/pools/{namespace}/{pool}/workers/{id}:cordon", id: "cordonWorker", tag: "workers",
        summary: "Stops offering a worker, which keeps its claims. Survives registrations and restarts.",
        query: &[], body: Some("NoBody"), success: &[(200, "The worker.", "WorkerAnswer")], errors: &[404] },
    OperationSpec { method: "post", path: "/v1/pools/{namespace}/{pool}/workers/{id}:uncordon", id: "uncordonWorker", tag: "workers",
        summary: "Offers a cordoned worker again.",
        query: &[], body: Some("NoBody"), success: &[(200, "The worker.", "WorkerAnswer")], errors: &[404, 409] },
    OperationSpec { method: "post", path: "/v1/pools/{namespace}/{pool}/workers/{id}:drain", id: "drainWorker", tag: "workers",
        summary: "Stops offering a worker for the rest of its incarnation. It keeps its claims until they are released.",
        query: &[], body: Some("NoBody"), success: &[(200, "The worker.", "WorkerAnswer")], errors: &[404] },
    OperationSpec { method: "post", path: "/v1/pools/{namespace}/{pool}/workers/{id}:clear", id: "clearWorker", tag: "workers",
        summary: "Trusts a suspect worker again, as if it had reported its claims.",
        query: &[], body: Some("NoBody"), success: &[(200, "The worker.", "WorkerAnswer")], errors: &[404] },
    OperationSpec { method: "post", path: "/v1/claims", id: "claim", tag: "claims",
        summary: "Claims a worker for a key, or returns the claim that the key has. A repeated request with the same key returns the same claim. With wait_ms the claim is queued for capacity for that long.",
        query: &[], body: Some("ClaimBody"), success: &[(201, "Created by this request.", "ClaimAnswer"), (200, "The key had this claim.", "ClaimAnswer")], errors: &[404, 409, 429] },
    OperationSpec { method: "post", path: "/v1/claims:batch", id: "claimMany", tag: "claims",
        summary: "Makes many claims. Each has its own outcome, in order: an invalid one does not affect the others.",
        query: &[], body: Some("ClaimsBatch"), success: &[(200, "One outcome for each item.", "ClaimOutcomes")], errors: &[] },
    OperationSpec { method: "post", path: "/v1/explain", id: "explainClaim", tag: "claims",
        summary: "Explains what a claim would get now: for each pool how many workers could take it, what rules the others out, and which come nearest. Makes no claim; the key does not matter.",
        query: &[], body: Some("ClaimBody"), success: &[(200, "The explanation.", "Explanation")], errors: &[404] },
    OperationSpec { method: "get", path: "/v1/claims", id: "listClaims", tag: "claims",
        summary: "Lists claims, page by page: those that hold a worker, and with state=waiting those that wait. A page may be short or empty and still have a next_page_token: continue until there is none.",
        query: &["namespace", "pool", "worker", "tenant", "state", "older_than_ms", "page_token", "limit"], body: None, success: &[(200, "The page.", "ClaimPage")], errors: &[] },
    OperationSpec { method: "get", path: "/v1/claims/{namespace}/{key}", id: "getClaim", tag: "claims",
        summary: "Returns the claim of a key, held or queued.",
        query: &["tenant"], body: None, success: &[(200, "The claim, held or queued.", "Standing")], errors: &[404] },
    OperationSpec { method: "post", path: "/v1/claims/{namespace}/{key}:confirm", id: "confirmClaim", tag: "claims",
        summary: "Activates a claim whose holder has started.",
        query: &[], body: Some("HolderBody"), success: &[(200, "The claim.", "ClaimAnswer")], errors: &[404, 409] },
    OperationSpec { method: "post", path: "/v1/claims/{namespace}/{key}:renew", id: "renewClaim", tag: "claims",
        summary: "Renews a claim: its ttl_ms starts again.",
        query: &[], body: Some("RenewBody"), success: &[(200, "The claim.", "ClaimAnswer")], errors: &[404, 409] },
    OperationSpec { method: "post", path: "/v1/claims/{namespace}/{key}:resize", id: "resizeClaim", tag: "claims",
        summary: "Changes the resources that a claim holds on its worker, given in total. Worker and fence stay. Without enough free capacity nothing changes.",
        query: &[], body: Some("ResizeBody"), success: &[(200, "The claim.", "ClaimAnswer")], errors: &[404, 409, 429] },
    OperationSpec { method: "post", path: "/v1/claims/{namespace}/{key}:release", id: "releaseClaim", tag: "claims",
        summary: "Releases a claim. Succeeds also if the claim has ended already.",
        query: &[], body: Some("ReleaseBody"), success: &[(200, "Released, or the key had no claim.", "ReleaseAnswer")], errors: &[409] },
    OperationSpec { method: "put", path: "/v1/quotas/{namespace}/{tenant}", id: "putQuota", tag: "quotas",
        summary: "Sets the quota of a tenant, and its weight among other tenants with queued claims. Omitted resources are unlimited. Existing claims stay. Durable when it returns.",
        query: &[], body: Some("QuotaBody"), success: &[(201, "Created.", "QuotaAnswer"), (200, "Replaced.", "QuotaAnswer")], errors: &[409] },
    OperationSpec { method: "get", path: "/v1/quotas/{namespace}/{tenant}", id: "getQuota", tag: "quotas",
        summary: "Returns the quota of a tenant, its source, and its usage.",
        query: &[], body: None, success: &[(200, "The quota.", "QuotaAnswer")], errors: &[] },
    OperationSpec { method: "delete", path: "/v1/quotas/{namespace}/{tenant}", id: "deleteQuota", tag: "quotas",
        summary: "Deletes the quota of a tenant: that of its namespace applies from then on, or none. Durable when it returns.",
        query: &[], body: None, success: &[(200, "Deleted.", "Empty")], errors: &[404] },
    OperationSpec { method: "put", path: "/v1/quotas/{namespace}", id: "putNamespaceQuota", tag: "quotas",
        summary: "Sets the quota of each tenant in the namespace without its own. Durable when it returns.",
        query: &[], body: Some("QuotaBody"), success: &[(201, "Created.", "QuotaAnswer"), (200, "Replaced.", "QuotaAnswer")], errors: &[409] },
    OperationSpec { method: "get", path: "/v1/quotas/{namespace}", id: "getNamespaceQuota", tag: "quotas",
        summary: "Returns the quota of each tenant in the namespace without its own.",
        query: &[], body: None, success: &[(200, "The quota.", "QuotaAnswer")], errors: &[] },
    OperationSpec { method: "delete", path: "/v1/quotas/{namespace}", id: "deleteNamespaceQuota", tag: "quotas",
        summary: "Deletes the quota of a namespace: tenants without their own are unlimited from then on. Durable when it returns.",
        query: &[], body: None, success: &[(200, "Deleted.", "Empty")], errors: &[404] },
    OperationSpec { method: "get", path: "/v1/quotas", id: "listQuotas", tag: "quotas",
        summary: "Lists the quotas that were set, by name, page by page.",
        query: PAGE, body: None, success: &[(200, "The page.", "QuotaPage")], errors: &[] },
    OperationSpec { method: "get", path: "/healthz", id: "health", tag: "probes",
        summary: "Reports that the process is alive.",
        query: &[], body: None, success: &[(200, "Alive.", "Health")], errors: &[] },
    OperationSpec { method: "get", path: "/readyz", id: "readiness", tag: "probes",
        summary: "Reports whether every shard serves and the store accepts records. If not, 503 with the reasons as its message.",
        query: &[], body: None, success: &[(200, "Ready.", "Readiness")], errors: &[503] },
    OperationSpec { method: "get", path: "/metrics", id: "metrics", tag: "probes",
        summary: "Returns all metrics in the text format of Prometheus.",
        query: &[], body: None, success: &[(200, "The scrape.", "")], errors: &[] },
    OperationSpec { method: "get", path: "/debug/shards", id: "debugShards", tag: "probes",
        summary: "Returns every shard of every pool, and the number of keys in the directory. For people; its schema may change.",
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
            "description": "Assigns work to warm workers: a claim gives a worker of a pool to a key, until it is released. \
                Every request may be repeated: a claim with a key that has one returns the same claim, and releasing \
                an ended claim succeeds. Unknown fields and parameters are rejected, and so is null in place of a value. \
                The content type does not matter. The same calls exist over gRPC, package hotpool.v1, on the same \
                port. The examples build on each other: on a new service each works unchanged, section by section, if \
                the deletions come last. The fence of an example stands for that of the latest claim; the viewer of \
                the service fills it in.",
        },
        "servers": [{"url": "/"}],
        "tags": [
            {"name": "pools", "description": "Named sets of workers with one policy."},
            {"name": "workers", "description": "Workers belong to one pool each, and have a unique id in it."},
            {"name": "claims", "description": "Rights to use a worker, identified by namespace, tenant and key."},
            {"name": "quotas", "description": "Limits on what a tenant may hold, and its weight among others."},
            {"name": "probes", "description": "Endpoints for probes and people."},
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
