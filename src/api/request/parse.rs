//! Parses JSON into a request form, or into an error that names the field.

use serde::Deserialize;
use serde_json::value::RawValue;

use super::parse_errors::parse_error;
use crate::api::error_table::ApiError;

/// Parses one JSON object, whatever the content type (`curl -d` sends a form's). An empty body means `{}`.
pub(in crate::api) fn parse_object<'a, T: Deserialize<'a>>(body: &'a [u8]) -> Result<T, ApiError> {
    let start = body.iter().position(|b| !b.is_ascii_whitespace());
    match start.map(|at| body[at]) {
        None => serde_json::from_slice(b"{}").map_err(|_| parse_error::<T>(b"{}")),
        Some(b'{') => serde_json::from_slice(body).map_err(|_| parse_error::<T>(body)),
        // A derived struct would accept `["a", "b"]` as its fields in order.
        Some(_) => match serde_json::from_slice::<serde::de::IgnoredAny>(body) {
            Ok(_) => Err(ApiError::invalid("body", "must be a JSON object")),
            Err(_) => Err(parse_error::<serde::de::IgnoredAny>(body)),
        },
    }
}

/// Parses one item of a batch. Errors name the field relative to the item.
pub(in crate::api) fn parse_item<'a, T: Deserialize<'a>>(item: &'a RawValue) -> Result<T, ApiError> {
    parse_object(item.get().as_bytes()).map_err(|mut failure| {
        if failure.field.as_deref() == Some("body") {
            failure.field = Some("".into());
        }
        failure
    })
}
