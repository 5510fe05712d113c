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

use super::Api;
use super::json::Text;
use super::parse_errors::{mend, short};
use crate::api::error_table::{Failure, Outcome};
use crate::limits;
use crate::model::rejection::Refusal;

/// Largest body that is read without asking for room, in bytes: that of any call but a batch.
pub(in crate::api) const BODY_SMALL_BYTES: u64 = 16 << 10;
/// Most that larger bodies may take together, in KiB. Past it they are refused (`overloaded`).
pub(in crate::api) const BODIES_KIB_MAX: usize = 256 << 10;

/// A body that was read, and its place among the large ones. A handler that waits for long drops it before.
pub(super) struct Sent<'a> {
    bytes: Bytes,
    _room: BodyRoom<'a>,
}

impl std::ops::Deref for Sent<'_> {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.bytes
    }
}

/// Room that one body takes of that for large ones.
struct BodyRoom<'a> {
    bodies: &'a Semaphore,
    permit: Option<SemaphorePermit<'a>>,
}

impl<'a> BodyRoom<'a> {
    fn of(bodies: &'a Semaphore) -> Self {
        Self { bodies, permit: None }
    }

    /// Takes as much as a body of so many bytes needs in all.
    fn hold(&mut self, bytes: u64) -> Result<(), Failure> {
        if bytes <= BODY_SMALL_BYTES {
            return Ok(());
        }
        let has_kib = self.permit.as_ref().map_or(0, SemaphorePermit::num_permits) as u64;
        let more_kib = bytes.div_ceil(1 << 10).saturating_sub(has_kib);
        let more = self.bodies.try_acquire_many(u32::try_from(more_kib).unwrap_or(u32::MAX)).map_err(|_| no_room())?;
        match &mut self.permit {
            Some(permit) => permit.merge(more),
            None => self.permit = Some(more),
        }
        Ok(())
    }
}

/// Reads a body. One that announces its length has room for all of it before it is read; another as it comes, so that whoever
/// sends little keeps no room from others.
pub(super) async fn body(api: &Api, mut body: Body) -> Result<Sent<'_>, Failure> {
    let max = api.bounds.body_bytes_max;
    // What announces its length is refused unread.
    let announced = body.size_hint();
    if announced.lower() > max as u64 {
        return Err(too_large(max));
    }
    let mut room = BodyRoom::of(&api.rooms.bodies);
    let announced_bytes = announced.upper().unwrap_or(announced.lower());
    room.hold(announced_bytes)?;
    // Most bodies are one piece, which is not copied.
    let (mut first, mut joined) = (Bytes::new(), BytesMut::new());
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|error| Failure::invalid("body", format!("could not be read: {error}")))?;
        let Ok(data) = frame.into_data() else { continue };
        let bytes = first.len() + joined.len() + data.len();
        if bytes > max {
            return Err(too_large(max));
        }
        room.hold(bytes as u64)?;
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
    Ok(Sent { bytes, _room: room })
}

/// Answer to a body that is not small and finds no room.
pub(in crate::api) fn no_room() -> Failure {
    Failure::overloaded(format!(
        "bodies over {} KiB take all of the {} MiB that they may take together, where gRPC messages count eightfold; retry \
         later, or send smaller batches",
        BODY_SMALL_BYTES >> 10,
        BODIES_KIB_MAX >> 10
    ))
}

/// A body past the limit.
pub(in crate::api) fn too_large(max_bytes: usize) -> Failure {
    Failure::new(Outcome::BODY_TOO_LARGE, format!("the body is larger than {max_bytes} bytes"))
}

/// Parses one JSON object, whatever the content type says (`curl -d` says form). Nothing at all means `{}`.
pub(super) fn object<'a, T: Deserialize<'a>>(body: &'a [u8]) -> Result<T, Failure> {
    let start = body.iter().position(|b| !b.is_ascii_whitespace());
    match start.map(|at| body[at]) {
        None => serde_json::from_slice(b"{}").map_err(|_| mend::<T>(b"{}")),
        Some(b'{') => serde_json::from_slice(body).map_err(|_| mend::<T>(body)),
        // A derived struct would take `["a", "b"]` as its fields in order.
        Some(_) => match serde_json::from_slice::<serde::de::IgnoredAny>(body) {
            Ok(_) => Err(Failure::invalid("body", "must be a JSON object")),
            Err(_) => Err(mend::<serde::de::IgnoredAny>(body)),
        },
    }
}

/// Parses one item of a batch. Its own failures have the field relative to the item.
pub(super) fn item<'a, T: Deserialize<'a>>(item: &'a RawValue) -> Result<T, Failure> {
    object(item.get().as_bytes()).map_err(|mut failure| {
        if failure.field.as_deref() == Some("body") {
            failure.field = Some("".into());
        }
        failure
    })
}

/// Sends the good items of a batch on and puts every outcome in its place.
pub(in crate::api) async fn merge<R, T>(
    items: &str,
    read: impl Iterator<Item = Result<R, Failure>>,
    send: impl AsyncFnOnce(Vec<R>) -> Result<Vec<Result<T, Refusal>>, Refusal>,
) -> Result<Vec<Result<T, Failure>>, Failure> {
    let mut good = Vec::new();
    // `None` marks the place of a good one.
    let places: Vec<Option<Failure>> = read.map(|read| read.map(|request| good.push(request)).err()).collect();
    let mut answers = if good.is_empty() { Vec::new() } else { send(good).await? }.into_iter();
    let mut fill = |(index, bad): (usize, Option<Failure>)| match bad {
        Some(failure) => Err(failure.in_item(items, index)),
        None => {
            let answer = answers.next().expect("one answer for each request that was sent");
            answer.map_err(|refusal| Failure::from(refusal).in_item(items, index))
        }
    };
    Ok(places.into_iter().enumerate().map(&mut fill).collect())
}

/// The same for items that are carried out all or not at all: with a bad one none is sent on.
pub(in crate::api) async fn merge_all<R, T>(
    items: &str,
    read: impl Iterator<Item = Result<R, Failure>>,
    send: impl AsyncFnOnce(Vec<R>) -> Result<Vec<Result<T, Refusal>>, Refusal>,
) -> Result<Vec<Result<T, Failure>>, Failure> {
    let read: Vec<Result<R, Failure>> = read.collect();
    let Some(first) = read.iter().position(Result::is_err) else {
        return merge(items, read.into_iter(), send).await;
    };
    let outcome = |(index, read): (usize, Result<R, Failure>)| {
        let failure = read.err().unwrap_or_else(|| Refusal::Gang(first).into());
        Err(failure.in_item(items, index))
    };
    Ok(read.into_iter().enumerate().map(outcome).collect())
}

/// The items of a batch, unparsed, so that a bad one harms no other.
pub(super) type Items<'a> = List<&'a RawValue, { limits::BATCH_ITEMS_MAX }>;

/// A list of at most `MAX` values; what is longer is refused while it is read.
pub(in crate::api) struct List<T, const MAX: usize>(pub(in crate::api) Vec<T>);

impl<'de, T: Deserialize<'de>, const MAX: usize> Deserialize<'de> for List<T, MAX> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        at_most(deserializer, MAX).map(Self)
    }
}

/// At most `MAX` texts.
#[derive(Default)]
pub(in crate::api) struct Texts<'a, const MAX: usize>(pub(in crate::api) Vec<Text<'a>>);

impl<'de: 'a, 'a, const MAX: usize> Deserialize<'de> for Texts<'a, MAX> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        at_most(deserializer, MAX).map(Self)
    }
}

/// Reads an array, and counts while reading: a body of 8 MiB holds four million empty items.
fn at_most<'de, D: Deserializer<'de>, T: Deserialize<'de>>(deserializer: D, max: usize) -> Result<Vec<T>, D::Error> {
    struct Bounded<T>(usize, PhantomData<T>);
    impl<'de, T: Deserialize<'de>> Visitor<'de> for Bounded<T> {
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
    deserializer.deserialize_seq(Bounded(max, PhantomData))
}

/// The segments of a path, percent-decoded.
pub(super) struct Segments<T>(pub(super) T);

impl<S: Send + Sync, T: DeserializeOwned + Send> FromRequestParts<S> for Segments<T> {
    type Rejection = Failure;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Failure> {
        match Path::<T>::from_request_parts(parts, state).await {
            Ok(Path(segments)) => Ok(Self(segments)),
            Err(_) => Err(Failure::invalid("path", "must be UTF-8 when percent-decoded")),
        }
    }
}

/// The query, as pairs that a handler takes by name.
pub(super) struct Params(Vec<(String, String)>);

impl Params {
    /// Reads the query; a parameter that is not in `known` or comes twice is refused.
    pub(super) fn read(uri: &Uri, known: &[&str]) -> Result<Self, Failure> {
        let Ok(Query(pairs)) = Query::<Vec<(String, String)>>::try_from_uri(uri) else {
            return Err(Failure::invalid("query", "must be name=value pairs"));
        };
        for (i, (name, _)) in pairs.iter().enumerate() {
            if !known.contains(&name.as_str()) {
                let known =
                    if known.is_empty() { "none is known".to_owned() } else { format!("known: {}", known.join(", ")) };
                return Err(Failure::invalid(short(name), format!("unknown query parameter; {known}")));
            }
            if pairs[..i].iter().any(|(earlier, _)| earlier == name) {
                return Err(Failure::invalid(name.clone(), "is given twice"));
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
    pub(super) fn limit(&mut self) -> Result<usize, Failure> {
        let Some(text) = self.take("limit") else { return Ok(limits::PAGE_ITEMS_DEFAULT) };
        match text.parse() {
            Ok(limit) if (1..=limits::PAGE_ITEMS_MAX).contains(&limit) => Ok(limit),
            _ => Err(Failure::invalid("limit", format!("must be a whole number, 1..={}", limits::PAGE_ITEMS_MAX))),
        }
    }

    /// Takes a whole number that is at most `max`.
    pub(super) fn number(&mut self, name: &'static str, max: u64) -> Result<Option<u64>, Failure> {
        let Some(text) = self.take(name) else { return Ok(None) };
        match text.parse() {
            Ok(number) if number <= max && text.bytes().all(|byte| byte.is_ascii_digit()) => Ok(Some(number)),
            _ => Err(Failure::invalid(name, format!("must be a whole number, 0..={max}, got {:?}", short(&text)))),
        }
    }

    /// Takes a yes or no.
    pub(super) fn flag(&mut self, name: &'static str) -> Result<bool, Failure> {
        match self.take(name).as_deref() {
            None | Some("false") => Ok(false),
            Some("true") => Ok(true),
            Some(_) => Err(Failure::invalid(name, "must be true or false")),
        }
    }
}
