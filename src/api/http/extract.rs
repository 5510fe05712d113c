//! Extractors of the HTTP edge: query and path. Each error names its field.

use axum::extract::{FromRequestParts, Path, Query};
use axum::http::Uri;
use axum::http::request::Parts;
use serde::de::DeserializeOwned;

use crate::api::error_table::ApiError;
use crate::api::request::{page_limit_error, truncate};
use crate::limits;

/// Segments of a path, percent-decoded.
pub(super) struct PathSegments<T>(pub(super) T);

impl<S: Send + Sync, T: DeserializeOwned + Send> FromRequestParts<S> for PathSegments<T> {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, ApiError> {
        match Path::<T>::from_request_parts(parts, state).await {
            Ok(Path(segments)) => Ok(Self(segments)),
            Err(_) => Err(ApiError::invalid("path", "must be UTF-8 when percent-decoded")),
        }
    }
}

/// Query parameters, which a handler takes by name.
pub(super) struct QueryParams(Vec<(String, String)>);

impl QueryParams {
    /// Parses the query; unknown and repeated parameters are rejected.
    pub(super) fn parse(uri: &Uri, known: &[&str]) -> Result<Self, ApiError> {
        let Ok(Query(pairs)) = Query::<Vec<(String, String)>>::try_from_uri(uri) else {
            return Err(ApiError::invalid("query", "must be name=value pairs"));
        };
        for (i, (name, _)) in pairs.iter().enumerate() {
            if !known.contains(&name.as_str()) {
                let known =
                    if known.is_empty() { "none is known".to_owned() } else { format!("known: {}", known.join(", ")) };
                return Err(ApiError::invalid(truncate(name), format!("unknown query parameter; {known}")));
            }
            if pairs[..i].iter().any(|(earlier, _)| earlier == name) {
                return Err(ApiError::invalid(name.clone(), "is given twice"));
            }
        }
        Ok(Self(pairs))
    }

    /// Takes one parameter by its name.
    pub(super) fn take(&mut self, name: &str) -> Option<String> {
        let at = self.0.iter().position(|(known, _)| known == name)?;
        Some(self.0.swap_remove(at).1)
    }

    /// Takes `limit`, the number of items on a page.
    pub(super) fn limit(&mut self) -> Result<usize, ApiError> {
        let Some(text) = self.take("limit") else { return Ok(limits::PAGE_ITEMS_DEFAULT) };
        match text.parse() {
            Ok(limit) if (1..=limits::PAGE_ITEMS_MAX).contains(&limit) => Ok(limit),
            _ => Err(page_limit_error()),
        }
    }

    /// Takes an integer that is at most `max`.
    pub(super) fn number(&mut self, name: &'static str, max: u64) -> Result<Option<u64>, ApiError> {
        let Some(text) = self.take(name) else { return Ok(None) };
        match text.parse() {
            Ok(number) if number <= max && text.bytes().all(|byte| byte.is_ascii_digit()) => Ok(Some(number)),
            _ => Err(ApiError::invalid(
                name,
                format!("must be a whole number from 0 to {max}, got {:?}", truncate(&text)),
            )),
        }
    }

    /// Takes a parameter that is `true` or `false`.
    pub(super) fn flag(&mut self, name: &'static str) -> Result<bool, ApiError> {
        match self.take(name).as_deref() {
            None | Some("false") => Ok(false),
            Some("true") => Ok(true),
            Some(_) => Err(ApiError::invalid(name, "must be true or false")),
        }
    }
}
