//! Batches: valid items go to the scheduler, and every item gets its outcome in order.

use super::error_table::ApiError;
use crate::model::request_error::RequestError;

/// Submits the valid items of a batch and returns every outcome at the index of its item.
pub(in crate::api) async fn submit_valid<R, T>(
    items: &str,
    requests: impl Iterator<Item = Result<R, ApiError>>,
    submit: impl AsyncFnOnce(Vec<R>) -> Result<Vec<Result<T, RequestError>>, RequestError>,
) -> Result<Vec<Result<T, ApiError>>, ApiError> {
    let mut valid = Vec::new();
    // `None` stands for a valid item.
    let errors: Vec<Option<ApiError>> =
        requests.map(|request| request.map(|request| valid.push(request)).err()).collect();
    let mut results = if valid.is_empty() { Vec::new() } else { submit(valid).await? }.into_iter();
    let mut outcome = |(index, error): (usize, Option<ApiError>)| match error {
        Some(error) => Err(error.for_item(items, index)),
        None => {
            let result = results.next().expect("one result for each request");
            result.map_err(|error| ApiError::from(error).for_item(items, index))
        }
    };
    Ok(errors.into_iter().enumerate().map(&mut outcome).collect())
}

/// Submits a batch that is all or nothing: one invalid item rejects every other.
pub(in crate::api) async fn submit_all_or_none<R, T>(
    items: &str,
    requests: impl Iterator<Item = Result<R, ApiError>>,
    submit: impl AsyncFnOnce(Vec<R>) -> Result<Vec<Result<T, RequestError>>, RequestError>,
) -> Result<Vec<Result<T, ApiError>>, ApiError> {
    let requests: Vec<Result<R, ApiError>> = requests.collect();
    let Some(first) = requests.iter().position(Result::is_err) else {
        return submit_valid(items, requests.into_iter(), submit).await;
    };
    let outcome = |(index, request): (usize, Result<R, ApiError>)| {
        let error = request.err().unwrap_or_else(|| RequestError::GangMemberRejected(first).into());
        Err(error.for_item(items, index))
    };
    Ok(requests.into_iter().enumerate().map(outcome).collect())
}
