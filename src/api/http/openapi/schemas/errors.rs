//! Schemas of error responses.

use serde_json::{Value, json};

use super::{open_object, schema};

#[rustfmt::skip]
pub(super) fn schemas() -> Value {
    json!({
        "Error": open_object("What went wrong.", &["error"], json!({
            "error": schema("ErrorBody"),
        })),
        "ErrorBody": open_object("What went wrong.", &["code", "message"], json!({
                "code": {"enum": ["INVALID_ARGUMENT", "NOT_FOUND", "ABORTED", "FAILED_PRECONDITION", "RESOURCE_EXHAUSTED", "UNAVAILABLE", "DEADLINE_EXCEEDED", "INTERNAL", "PERMISSION_DENIED"], "description": "As in gRPC."},
                "reason": {"type": "string", "description": "The finer word, where callers can act on it."},
                "field": {"type": "string", "description": "Path of the field that is to blame, if one is."},
                "message": {"type": "string", "minLength": 1, "description": "For people."},
                "request_id": {"type": "string", "description": "That of the request, as the header X-Request-Id of every answer has it; items of a batch have none of their own."},
        })),
    })
}

/// Error responses by status, with the reasons that each may have.
#[rustfmt::skip]
pub(in crate::api::http::openapi) fn responses() -> Value {
    let error = |description: &str| json!({"description": description, "content": {"application/json": {"schema": schema("Error")}}});
    let mut unavailable = error("Cannot be answered now; retry. Reason overloaded: a queue is full, or the store lags too far. Reason loading: a shard that must be asked does not serve, or the service starts or stops. Reason store: the store did not take the record in time. Reason fenced: another process owns the store. Reason connections: as many connections as may be are open, and on others only probes and the scrape are answered.");
    unavailable["headers"] = json!({"Retry-After": {"schema": {"type": "integer"}, "description": "Seconds."}});
    json!({
        "400": error("The request is wrong; field says where. Reason unsatisfiable: no worker of any pool that the request allows has such resources; of a gang, its pools are smaller than what it asks for in all."),
        "403": error("Reason origin: a page of another site is behind the request."),
        "404": error("No such pool, worker, claim or quota. Reason route: no such path."),
        "409": error("Reason fence: the caller is not, or no longer, the holder. Reason version: the pool is at another version than the one that was said. Reason gang: another item of the gang was refused, so nothing of it was made. Reason releasing: the key's claim is being released. Reason preempted: a claim with a higher priority takes its place. Reason state: what is there does not allow it; the message says what."),
        "413": error("Reason body_too_large: the body is larger than server.max_body_bytes."),
        "415": error("Reason content_encoding: the body has a Content-Encoding, and none is understood."),
        "421": error("Reason host: the service is not known by the host of the request, which is none of localhost, an address, and the names in server.hosts."),
        "429": error("No room. Reason pool_exhausted: every shard that could have such a worker said no; of a resize, its worker has not as much left. Reason node_locality: none on a required node. Reason no_eligible_pool: no pool has the class and labels. Reason quota: the tenant would hold more than its quota allows. Reason watchers: too many watch the pool, or all pools together."),
        "500": error("Reason panic: a defect of the service; the process goes on."),
        "503": unavailable,
        "504": error("No answer in time; the outcome is unknown, a retry with the same key finds it."),
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
