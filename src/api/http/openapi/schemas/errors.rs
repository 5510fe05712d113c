//! Schemas of error responses.

use serde_json::{Value, json};

use super::{open_object, schema};

#[rustfmt::skip]
pub(super) fn schemas() -> Value {
    json!({
        "Error": open_object("Error of a request or of an item.", &["error"], json!({
            "error": schema("ErrorBody"),
        })),
        "ErrorBody": open_object("Error of a request or of an item.", &["code", "message"], json!({
                "code": {"enum": ["INVALID_ARGUMENT", "NOT_FOUND", "ABORTED", "FAILED_PRECONDITION", "RESOURCE_EXHAUSTED", "UNAVAILABLE", "DEADLINE_EXCEEDED", "INTERNAL", "PERMISSION_DENIED"], "description": "Error code, as in gRPC."},
                "reason": {"type": "string", "description": "Reason within the code, where callers can act on it."},
                "field": {"type": "string", "description": "Path of the invalid field, if there is one."},
                "message": {"type": "string", "minLength": 1, "description": "Explanation for people; the text may change."},
                "request_id": {"type": "string", "description": "Id of the request, as in the header X-Request-Id of every response; items of a batch have none."},
        })),
    })
}

/// Error responses by status, with the reasons that each may have.
#[rustfmt::skip]
pub(in crate::api::http::openapi) fn responses() -> Value {
    let error = |description: &str| json!({"description": description, "content": {"application/json": {"schema": schema("Error")}}});
    let mut unavailable = error("Unavailable now; retry. Reason overloaded: a queue is full, or the store lags too far. Reason loading: a required shard is not serving, or the service starts or stops. Reason store: the store did not write the record in time. Reason fenced: another process owns the store. Reason connections: all connections are in use, and others are only for probes and the scrape.");
    unavailable["headers"] = json!({"Retry-After": {"schema": {"type": "integer"}, "description": "Seconds."}});
    json!({
        "400": error("The request is invalid; field says where. Reason unsatisfiable: no worker of any eligible pool has these resources; for a gang, the pools have less capacity than it requests in total."),
        "403": error("Reason origin: the request comes from a page of another site."),
        "404": error("No such pool, worker, claim or quota. Reason route: no such path."),
        "409": error("Reason fence: the caller is not, or no longer, the holder. Reason version: the pool has another version than the given one. Reason gang: another item of the gang was rejected, so no claim of it was created. Reason releasing: the key's claim is being released. Reason preempted: a claim with a higher priority evicts it. Reason state: the current state does not allow it; the message says why."),
        "413": error("Reason body_too_large: the body is larger than server.max_body_bytes."),
        "415": error("Reason content_encoding: the body has a Content-Encoding, and none is supported."),
        "421": error("Reason host: the host of the request is not localhost, an IP address, or a name in server.hosts."),
        "429": error("No capacity. Reason pool_exhausted: no eligible pool has enough free capacity; for a resize, the worker does not. Reason node_locality: no free capacity on a required node. Reason no_eligible_pool: no pool has the class and labels. Reason unsatisfiable: no worker that could hold the claim has registered while it waited. Reason quota: the quota of the tenant is used up. Reason watchers: too many watchers on the pool, or on all pools together."),
        "500": error("Reason panic: a defect of the service, which keeps running."),
        "503": unavailable,
        "504": error("No response in time; the outcome is unknown, retry with the same key to find it."),
    })
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::api::error_table::ErrorStatus;

    /// Returns the reasons that a description explains.
    fn explained(description: &str) -> BTreeSet<&str> {
        let (mut rest, mut reasons) = (description, BTreeSet::new());
        while let Some((_, from)) = rest.split_once("Reason ") {
            let (reason, behind) = from.split_once(':').expect("a colon stands behind a reason");
            reasons.insert(reason);
            rest = behind;
        }
        reasons
    }

    #[test]
    fn each_status_has_the_reasons_of_the_outcome_table() {
        let responses = responses();
        let mut wanted: BTreeSet<(String, &str)> = BTreeSet::new();
        for outcome in ErrorStatus::all() {
            // The document has no operation with a method that its path does not support.
            if outcome != ErrorStatus::METHOD {
                let status = outcome.status.to_string();
                assert!(responses.get(&status).is_some(), "{outcome:?}");
                wanted.extend(outcome.reason.map(|reason| (status, reason)));
            }
        }
        let said = responses.as_object().unwrap().iter().flat_map(|(status, response)| {
            explained(response["description"].as_str().unwrap()).into_iter().map(|reason| (status.clone(), reason))
        });
        assert_eq!(said.collect::<BTreeSet<_>>(), wanted);
    }
}
