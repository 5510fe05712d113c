//! Batches: valid items go to the scheduler, and every item gets its outcome in order.

use super::error_table::ApiError;
use crate::model::request_error::RequestError;

/// Submits the valid items of a batch and returns every outcome at the index of its item.
pub(in crate::api) async fn submit_valid<R, T>(
    items: &str,
    read: impl Iterator<Item = Result<R, ApiError>>,
    send: impl AsyncFnOnce(Vec<R>) -> Result<Vec<Result<T, RequestError>>, RequestError>,
) -> Result<Vec<Result<T, ApiError>>, ApiError> {
    let mut good = Vec::new();
    // `None` stands for a valid item.
    let places: Vec<Option<ApiError>> = read.map(|read| read.map(|request| good.push(request)).err()).collect();
    let mut answers = if good.is_empty() { Vec::new() } else { send(good).await? }.into_iter();
    let mut fill = |(index, bad): (usize, Option<ApiError>)| match bad {
        Some(failure) => Err(failure.for_item(items, index)),
        None => {
            let answer = answers.next().expect("one answer for each request that was sent");
            answer.map_err(|refusal| ApiError::from(refusal).for_item(items, index))
        }
    };
    Ok(places.into_iter().enumerate().map(&mut fill).collect())
}

/// Submits a batch that is all or nothing: one invalid item rejects every other.
pub(in crate::api) async fn submit_all_or_none<R, T>(
    items: &str,
    read: impl Iterator<Item = Result<R, ApiError>>,
    send: impl AsyncFnOnce(Vec<R>) -> Result<Vec<Result<T, RequestError>>, RequestError>,
) -> Result<Vec<Result<T, ApiError>>, ApiError> {
    let read: Vec<Result<R, ApiError>> = read.collect();
    let Some(first) = read.iter().position(Result::is_err) else {
        return submit_valid(items, read.into_iter(), send).await;
    };
    let outcome = |(index, read): (usize, Result<R, ApiError>)| {
        let failure = read.err().unwrap_or_else(|| RequestError::GangMemberRejected(first).into());
        Err(failure.for_item(items, index))
    };
    Ok(read.into_iter().enumerate().map(outcome).collect())
}
