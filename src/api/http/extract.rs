//! From bytes to checked values: body, JSON, query and path, each refusal naming its field.

use std::fmt;
use std::marker::PhantomData;

use axum::body::Body;
use axum::extract::{FromRequestParts, Path, Query};
use axum::http::Uri;
use axum::http::request::Parts;
use bytes::{Bytes, BytesMut};
use http_body_util::BodyExt as _;
use hyper::body::Body as _;
use serde::de::{DeserializeOwned, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer};
use serde_json::value::RawValue;
use tokio::sync::{Semaphore, SemaphorePermit};

use super::HttpState;
use super::json::BorrowedText;
use super::parse_errors::{parse_error, truncate};
use crate::api::error_table::{ApiError, ErrorStatus};
use crate::limits;
use crate::model::request_error::RequestError;

/// Largest body that is read without asking for room, in bytes: that of any call but a batch.
pub(in crate::api) const SMALL_BODY_BYTES: u64 = 16 << 10;
/// Most that larger bodies may take together, in KiB. Past it they are refused (`overloaded`).
pub(in crate::api) const BODY_BUDGET_KIB: usize = 256 << 10;

/// A body that was read, and its place among the large ones. A handler that waits for long drops it before.
pub(super) struct RequestBody<'a> {
    bytes: Bytes,
    _permit: BodyPermit<'a>,
}

impl std::ops::Deref for RequestBody<'_> {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.bytes
    }
}

/// Room that one body takes of that for large ones.
struct BodyPermit<'a> {
    bodies: &'a Semaphore,
    permit: Option<SemaphorePermit<'a>>,
}

impl<'a> BodyPermit<'a> {
    fn new(bodies: &'a Semaphore) -> Self {
        Self { bodies, permit: None }
    }

    /// Takes as much as a body of so many bytes needs in all.
    fn grow_to(&mut self, bytes: u64) -> Result<(), ApiError> {
        if bytes <= SMALL_BODY_BYTES {
            return Ok(());
        }
        let has_kib = self.permit.as_ref().map_or(0, SemaphorePermit::num_permits) as u64;
        let more_kib = bytes.div_ceil(1 << 10).saturating_sub(has_kib);
        let more = self
            .bodies
            .try_acquire_many(u32::try_from(more_kib).unwrap_or(u32::MAX))
            .map_err(|_| body_budget_exceeded())?;
        match &mut self.permit {
            Some(permit) => permit.merge(more),
            None => self.permit = Some(more),
        }
        Ok(())
    }
}

/// Reads a body. One that announces its length has room for all of it before it is read; another as it comes, so that whoever
/// sends little keeps no room from others.
pub(super) async fn read_body(api: &HttpState, mut body: Body) -> Result<RequestBody<'_>, ApiError> {
    let max = api.bounds.body_bytes_max;
    // What announces its length is refused unread.
    let announced = body.size_hint();
    if announced.lower() > max as u64 {
        return Err(body_too_large(max));
    }
    let mut room = BodyPermit::new(&api.budgets.bodies);
    let announced_bytes = announced.upper().unwrap_or(announced.lower());
    room.grow_to(announced_bytes)?;
    // Most bodies are one piece, which is not copied.
    let (mut first, mut joined) = (Bytes::new(), BytesMut::new());
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|error| ApiError::invalid("body", format!("could not be read: {error}")))?;
        let Ok(data) = frame.into_data() else { continue };
        let bytes = first.len() + joined.len() + data.len();
        if bytes > max {
            return Err(body_too_large(max));
        }
        room.grow_to(bytes as u64)?;
        if first.is_empty() && joined.is_empty() {
            first = data;
            continue;
        }
        if joined.is_empty() {
            joined.reserve(bytes.max(announced_bytes as usize));
            joined.extend_from_slice(&std::mem::take(&mut first));
        }
        joined.extend_from_slice(&data);
    }
    let bytes = if joined.is_empty() { first } else { joined.freeze() };
    Ok(RequestBody { bytes, _permit: room })
}

/// Answer to a body that is not small and finds no room.
pub(in crate::api) fn body_budget_exceeded() -> ApiError {
    ApiError::overloaded(format!(
        "bodies over {} KiB take all of the {} MiB that they may take together, where gRPC messages count eightfold; retry \
         later, or send smaller batches",
        SMALL_BODY_BYTES >> 10,
        BODY_BUDGET_KIB >> 10
    ))
}

/// A body past the limit.
pub(in crate::api) fn body_too_large(max_bytes: usize) -> ApiError {
    ApiError::new(ErrorStatus::BODY_TOO_LARGE, format!("the body is larger than {max_bytes} bytes"))
}

/// Parses one JSON object, whatever the content type says (`curl -d` says form). Nothing at all means `{}`.
pub(super) fn parse_object<'a, T: Deserialize<'a>>(body: &'a [u8]) -> Result<T, ApiError> {
    let start = body.iter().position(|b| !b.is_ascii_whitespace());
    match start.map(|at| body[at]) {
        None => serde_json::from_slice(b"{}").map_err(|_| parse_error::<T>(b"{}")),
        Some(b'{') => serde_json::from_slice(body).map_err(|_| parse_error::<T>(body)),
        // A derived struct would take `["a", "b"]` as its fields in order.
        Some(_) => match serde_json::from_slice::<serde::de::IgnoredAny>(body) {
            Ok(_) => Err(ApiError::invalid("body", "must be a JSON object")),
            Err(_) => Err(parse_error::<serde::de::IgnoredAny>(body)),
        },
    }
}

/// Parses one item of a batch. Its own failures have the field relative to the item.
pub(super) fn parse_item<'a, T: Deserialize<'a>>(item: &'a RawValue) -> Result<T, ApiError> {
    parse_object(item.get().as_bytes()).map_err(|mut failure| {
        if failure.field.as_deref() == Some("body") {
            failure.field = Some("".into());
        }
        failure
    })
}

/// Sends the good items of a batch on and puts every outcome in its place.
pub(in crate::api) async fn submit_valid<R, T>(
    items: &str,
    read: impl Iterator<Item = Result<R, ApiError>>,
    send: impl AsyncFnOnce(Vec<R>) -> Result<Vec<Result<T, RequestError>>, RequestError>,
) -> Result<Vec<Result<T, ApiError>>, ApiError> {
    let mut good = Vec::new();
    // `None` marks the place of a good one.
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

/// The same for items that are carried out all or not at all: with a bad one none is sent on.
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

/// The items of a batch, unparsed, so that a bad one harms no other.
pub(super) type RawItems<'a> = BoundedList<&'a RawValue, { limits::BATCH_ITEMS_MAX }>;

/// A list of at most `MAX` values; what is longer is refused while it is read.
pub(in crate::api) struct BoundedList<T, const MAX: usize>(pub(in crate::api) Vec<T>);

impl<'de, T: Deserialize<'de>, const MAX: usize> Deserialize<'de> for BoundedList<T, MAX> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserialize_bounded(deserializer, MAX).map(Self)
    }
}

/// At most `MAX` texts.
#[derive(Default)]
pub(in crate::api) struct BoundedTexts<'a, const MAX: usize>(pub(in crate::api) Vec<BorrowedText<'a>>);

impl<'de: 'a, 'a, const MAX: usize> Deserialize<'de> for BoundedTexts<'a, MAX> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserialize_bounded(deserializer, MAX).map(Self)
    }
}

/// Reads an array, and counts while reading: a body of 8 MiB holds four million empty items.
fn deserialize_bounded<'de, D: Deserializer<'de>, T: Deserialize<'de>>(
    deserializer: D,
    max: usize,
) -> Result<Vec<T>, D::Error> {
    struct BoundedVisitor<T>(usize, PhantomData<T>);
    impl<'de, T: Deserialize<'de>> Visitor<'de> for BoundedVisitor<T> {
        type Value = Vec<T>;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("a sequence")
        }

        fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Self::Value, A::Error> {
            let mut items = Vec::new();
            while let Some(item) = seq.next_element()? {
                if items.len() == self.0 {
                    return Err(serde::de::Error::custom(format!("at most {} items", self.0)));
                }
                items.push(item);
            }
            Ok(items)
        }
    }
    deserializer.deserialize_seq(BoundedVisitor(max, PhantomData))
}

/// The segments of a path, percent-decoded.
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

/// The query, as pairs that a handler takes by name.
pub(super) struct QueryParams(Vec<(String, String)>);

impl QueryParams {
    /// Reads the query; a parameter that is not in `known` or comes twice is refused.
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

    /// Takes one parameter.
    pub(super) fn take(&mut self, name: &str) -> Option<String> {
        let at = self.0.iter().position(|(known, _)| known == name)?;
        Some(self.0.swap_remove(at).1)
    }

    /// Takes `limit`: items on a page.
    pub(super) fn limit(&mut self) -> Result<usize, ApiError> {
        let Some(text) = self.take("limit") else { return Ok(limits::PAGE_ITEMS_DEFAULT) };
        match text.parse() {
            Ok(limit) if (1..=limits::PAGE_ITEMS_MAX).contains(&limit) => Ok(limit),
            _ => Err(ApiError::invalid("limit", format!("must be a whole number, 1..={}", limits::PAGE_ITEMS_MAX))),
        }
    }

    /// Takes a whole number that is at most `max`.
    pub(super) fn number(&mut self, name: &'static str, max: u64) -> Result<Option<u64>, ApiError> {
        let Some(text) = self.take(name) else { return Ok(None) };
        match text.parse() {
            Ok(number) if number <= max && text.bytes().all(|byte| byte.is_ascii_digit()) => Ok(Some(number)),
            _ => Err(ApiError::invalid(name, format!("must be a whole number, 0..={max}, got {:?}", truncate(&text)))),
        }
    }

    /// Takes a yes or no.
    pub(super) fn flag(&mut self, name: &'static str) -> Result<bool, ApiError> {
        match self.take(name).as_deref() {
            None | Some("false") => Ok(false),
            Some("true") => Ok(true),
            Some(_) => Err(ApiError::invalid(name, "must be true or false")),
        }
    }
}
