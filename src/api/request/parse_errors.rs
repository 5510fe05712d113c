//! Explains parse errors to the caller: path of the field, expected type, limit. Runs only for a body that did not
//! parse, and parses it again to learn the path.

use serde::Deserialize;
use serde_path_to_error::{Path, Segment};

use super::parse_failure::{FailureReporter, FailureSlot, JsonType, ParseFailure};
use crate::api::error_table::ApiError;
use crate::limits;

/// Limit on the echo of a caller's text, in bytes.
const ECHO_BYTES_MAX: usize = 100;

/// Explains why `body` is not a `T`.
#[cold]
pub(super) fn parse_error<'a, T: Deserialize<'a>>(body: &'a [u8]) -> ApiError {
    let slot = FailureSlot::default();
    let mut reader = serde_json::Deserializer::from_slice(body);
    let (path, failure) = match serde_path_to_error::deserialize::<_, T>(FailureReporter::new(&mut reader, &slot)) {
        Err(error) => (field_of(error.path()), error.into_inner()),
        Ok(_) => match reader.end() {
            Err(error) => (String::new(), ParseFailure::Syntax(error.to_string())),
            Ok(()) => return ApiError::invalid("body", "could not be parsed"),
        },
    };
    let (field, message) = describe(&path, failure);
    ApiError::invalid(truncate(if field.is_empty() { "body" } else { &field }), message)
}

/// Names the field at `path`: empty for the whole body.
fn field_of(path: &Path) -> String {
    let mut field = String::new();
    for segment in path {
        match segment {
            Segment::Seq { index } => field.push_str(&format!("[{index}]")),
            Segment::Map { key: name } | Segment::Enum { variant: name } => {
                field.push_str(if field.is_empty() { "" } else { "." });
                field.push_str(name);
            }
            // Key that could not be read.
            Segment::Unknown => {}
        }
    }
    field
}

/// Returns the field and the message for a failure at `path`.
fn describe(path: &str, failure: ParseFailure) -> (String, String) {
    let inside = |name: &str| if path.is_empty() { name.to_owned() } else { format!("{path}.{name}") };
    match failure {
        ParseFailure::MissingField(name) => (inside(name), "is required".to_owned()),
        ParseFailure::DuplicateField(name) => (inside(name), "is given twice".to_owned()),
        ParseFailure::UnknownField(name, known) => {
            let field =
                if path == name || path.ends_with(&format!(".{name}")) { path.to_owned() } else { inside(&name) };
            (field, format!("unknown field; {}", known_names(known)))
        }
        ParseFailure::UnknownVariant(name, known) => {
            (path.to_owned(), format!("unknown value {:?}; {}", truncate(&name), known_names(known)))
        }
        ParseFailure::Mismatch { got, visitor, expected } => {
            (path.to_owned(), format!("must be {}, got {}", expected_value(path, expected, visitor), truncate(&got)))
        }
        ParseFailure::Syntax(error) => (String::new(), format!("is not valid JSON: {error}")),
        ParseFailure::Check(message) => (path.to_owned(), truncate(&message)),
    }
}

fn known_names(known: &[&str]) -> String {
    if known.is_empty() { "none is known".to_owned() } else { format!("known: {}", known.join(", ")) }
}

/// Describes the values that a field takes, with the limit of a number.
fn expected_value(path: &str, expected: Option<JsonType>, visitor: String) -> String {
    let text = match expected {
        Some(JsonType::WholeNumber) => return whole_number(path),
        Some(JsonType::Text) => "a string",
        Some(JsonType::Array) => "an array",
        Some(JsonType::Object) => "an object",
        Some(JsonType::Boolean) => "true or false",
        Some(JsonType::Enumeration) => "one of its values, as a string",
        Some(JsonType::Other) | None => return visitor,
    };
    text.to_owned()
}

/// Describes the numbers that a field takes.
fn whole_number(path: &str) -> String {
    let (min, max) = match path.rsplit('.').next().unwrap_or(path) {
        "shards" => return format!("a power of two from 1 to {}", limits::SHARDS_MAX),
        "count" => (1, limits::GPUS_MAX.into()),
        "milli" => (1, limits::GPU_MILLI.into()),
        "reserve_ms" => (0, limits::RESERVE_MS_MAX),
        "lag_max_ms" | "releasing_ms" | "heartbeat_ttl_ms" | "unnamed_ms" => (1, limits::RESERVE_MS_MAX),
        "lost_keep_ms" => (0, limits::LOST_KEEP_MS_MAX),
        "hold_max_ms" => (limits::HOLD_MS_MIN, limits::HOLD_MS_MAX),
        "ttl_ms" | "ttl_default_ms" | "ttl_max_ms" => (1, limits::TTL_MS_MAX),
        "wait_ms" | "ms" => (0, limits::WAIT_MS_MAX),
        "priority" => (0, limits::PRIORITY_MAX.into()),
        "waiters_max" | "waiters_tenant_max" => (0, limits::WAITERS_MAX.into()),
        "weight" if path == "weight" => (1, limits::WEIGHT_MAX.into()),
        "weight" => (1, 1_000_000),
        "fence" => (0, limits::FENCE_MAX),
        _ => (0, limits::AMOUNT_MAX),
    };
    format!("a whole number from {min} to {max}")
}

/// Shortens a caller's text for use in an error message.
pub(in crate::api) fn truncate(text: &str) -> String {
    if text.len() <= ECHO_BYTES_MAX {
        return text.to_owned();
    }
    let end = (0..=ECHO_BYTES_MAX).rev().find(|&at| text.is_char_boundary(at)).unwrap_or(0);
    format!("{}...", &text[..end])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::request::{ClaimBody, ClaimsBatch, WorkerBody, parse_object};
    use crate::model::PoolSpec;

    fn explain<'a, T: Deserialize<'a>>(body: &'a str) -> String {
        let failure = parse_object::<T>(body.as_bytes()).err().unwrap_or_else(|| panic!("{body} was accepted"));
        format!("{}: {}", failure.field.unwrap_or_default(), failure.message)
    }

    #[test]
    fn an_invalid_claim_names_its_field_and_limit() {
        let explain = |body: &str| explain::<ClaimBody<'_>>(body);
        assert_eq!(explain(""), "namespace: is required");
        assert_eq!(explain(r#"{"namespace":null,"pool":"p"}"#), "namespace: must be a string, got null");
        assert_eq!(explain(r#"{"namespace":"a","pool":"p","key":null}"#), "key: must be a string, got null");
        assert_eq!(explain(r#"{"namespace":"a","pool":7}"#), "pool: must be a string, got `7`");
        assert_eq!(
            explain(r#"{"namespace":"a","pool":"p","reserve_ms":-1}"#),
            "reserve_ms: must be a whole number from 0 to 86400000, got `-1`"
        );
        assert_eq!(
            explain(r#"{"namespace":"a","pool":"p","reserve_ms":1.5}"#),
            "reserve_ms: must be a whole number from 0 to 86400000, got `1.5`"
        );
        assert_eq!(
            explain(r#"{"namespace":"a","pool":"p","reserve_ms":18446744073709551616}"#),
            "reserve_ms: must be a whole number from 0 to 86400000, got `1.8446744073709552e19`"
        );
        assert_eq!(
            explain(r#"{"namespace":"a","pool":"p","waits":1}"#),
            "waits: unknown field; known: namespace, key, tenant, pool, pools, pool_selector, class, resources, selector, \
             node, worker, affinity, reserve_ms, ttl_ms, ack, must_match, labels, wait_ms, priority, preemptible"
        );
        assert_eq!(
            explain(r#"{"namespace":"a","pool":"p","ack":"never"}"#),
            "ack: unknown value \"never\"; known: memory, durable"
        );
        assert_eq!(explain(r#"{"namespace":"a","namespace":"b","pool":"p"}"#), "namespace: is given twice");
        assert_eq!(explain("[]"), "body: must be a JSON object");
        assert_eq!(
            explain(r#"{"namespace":"#),
            "body: is not valid JSON: EOF while parsing a value at line 1 column 13"
        );
        assert!(
            explain(r#"{"namespace":"a","pool":"p"} x"#).starts_with("body: is not valid JSON: trailing characters")
        );
        assert!(explain(&format!("{}1", "[".repeat(100_000))).starts_with("body: is not valid JSON"));
        let huge = format!(r#"{{"namespace":"a","pool":"p","{}":1}}"#, "x".repeat(1_000_000));
        assert!(explain(&huge).len() < 1_000);
        let huge = format!(r#"{{"namespace":"a","pool":"p","reserve_ms":"{}"}}"#, "x".repeat(1_000_000));
        assert!(explain(&huge).len() < 1_000);
    }

    #[test]
    fn a_value_of_another_type_than_an_enumeration_names_its_field() {
        for value in ["5", "null", "[]", "{}", "true", "1.5"] {
            let message = explain::<ClaimBody<'_>>(&format!(r#"{{"namespace":"a","pool":"p","ack":{value}}}"#));
            assert!(message.starts_with("ack: "), "{value}: {message}");
        }
        // What the first parse accepts, so does the second, which must not blame it.
        let body = r#"{"namespace":"a","pool":"p","ack":{"durable":null},"bogus":1}"#;
        assert!(explain::<ClaimBody<'_>>(body).starts_with("bogus: unknown field"));
        let body = r#"{"namespace":"a","pool":"p","ack":"\u0064urable","bogus":1}"#;
        assert!(explain::<ClaimBody<'_>>(body).starts_with("bogus: unknown field"));
    }

    #[test]
    fn a_list_of_objects_takes_no_arrays_of_their_fields() {
        assert_eq!(
            explain::<PoolSpec>(r#"{"typical_requests":[[5,{"count":1},3]]}"#),
            "typical_requests[0]: must be an object, got an array"
        );
        assert_eq!(explain::<WorkerBody>(r#"{"claims":[["t","k",5]]}"#), "claims[0]: must be an object, got an array");
        assert_eq!(
            explain::<ClaimBody<'_>>(r#"{"namespace":"a","pool":"p","ttl_ms":-1}"#),
            format!("ttl_ms: must be a whole number from 1 to {}, got `-1`", limits::TTL_MS_MAX)
        );
    }

    #[test]
    fn a_repeated_or_odd_label_key_is_named_as_it_is() {
        let labels = |labels: &str| explain::<WorkerBody>(&format!(r#"{{"labels":{{{labels}}}}}"#));
        assert_eq!(labels(r#""a":"1","a":"2""#), "labels.a: is given twice");
        assert_eq!(labels(r#""a.":"1","a.":"2""#), "labels.a.: is given twice");
        assert_eq!(labels(r#""?":1"#), "labels.?: must be a string, got `1`");
    }

    #[test]
    fn what_is_not_json_is_said_of_the_body() {
        for body in [r#"{"namespace":"a","reserve_ms":1e999}"#, r#"{"namespace":"a","pool":tru}"#, "{\"a\":1}}"] {
            let message = explain::<ClaimBody<'_>>(body);
            assert!(message.starts_with("body: is not valid JSON") || message.starts_with("a: "), "{message}");
        }
        let deep = format!(r#"{{"namespace":"a","pool":"p","x":{}1"#, "[".repeat(100_000));
        assert!(explain::<ClaimBody<'_>>(&deep).starts_with("x: unknown field"));
    }

    #[test]
    fn invalid_utf8_is_rejected() {
        for body in [&b"{\"namespace\":\"\xff\"}"[..], b"{\"\xff\":1}", b"\xff"] {
            assert_eq!(parse_object::<ClaimBody<'_>>(body).err().unwrap().field.unwrap(), "body");
        }
    }

    #[test]
    fn nested_fields_are_named_by_path() {
        assert_eq!(
            explain::<WorkerBody>(r#"{"capacity":{"gpu":{"model":"A10","count":1.5}}}"#),
            "capacity.gpu.count: must be a whole number from 1 to 64, got `1.5`"
        );
        assert_eq!(explain::<WorkerBody>(r#"{"capacity":{"gpu":{"model":"A10"}}}"#), "capacity.gpu.count: is required");
        assert_eq!(explain::<WorkerBody>(r#"{"capacity":[]}"#), "capacity: must be an object, got an array");
        assert_eq!(
            explain::<WorkerBody>(r#"{"capacity":{"disk":1}}"#),
            "capacity.disk: unknown field; known: cpu_milli, memory_bytes, slots, gpu"
        );
        assert_eq!(explain::<WorkerBody>(r#"{"labels":{"a":1}}"#), "labels.a: must be a string, got `1`");
        assert_eq!(explain::<PoolSpec>(r#"{"shards":-1}"#), "shards: must be a power of two from 1 to 1024, got `-1`");
        assert_eq!(explain::<PoolSpec>(r#"{"mode":"both"}"#), "mode: unknown value \"both\"; known: exclusive, shared");
        assert_eq!(
            explain::<ClaimBody<'_>>(r#"{"namespace":"a","pool":"p","resources":{"gpu":{"milli":-1}}}"#),
            "resources.gpu.milli: must be a whole number from 1 to 1000, got `-1`"
        );
        assert_eq!(
            explain::<ClaimBody<'_>>(
                r#"{"namespace":"a","pool":"p","resources":{"gpu":{"model":"A10","models":["T4"]}}}"#
            ),
            "resources.gpu: only one of model and models may be given"
        );
        assert_eq!(explain::<PoolSpec>(r#"{"labels":[]}"#), "labels: must be an object, got an array");
    }

    #[test]
    fn a_batch_is_bounded_and_its_items_stay_unparsed() {
        let items = |n: usize| format!(r#"{{"mode":"independent","items":[{}]}}"#, vec!["0"; n].join(","));
        assert_eq!(explain::<ClaimsBatch<'_>>(&items(10_001)), "items: at most 10000 items");
        assert_eq!(parse_object::<ClaimsBatch<'_>>(items(10_000).as_bytes()).unwrap().items.0.len(), 10_000);
        assert_eq!(explain::<ClaimsBatch<'_>>(r#"{"mode":"independent"}"#), "items: is required");
        assert_eq!(
            explain::<ClaimsBatch<'_>>(r#"{"mode":"independent","items":{}}"#),
            "items: must be an array, got an object"
        );
    }
}
