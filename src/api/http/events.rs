//! Events of a pool as server-sent events (HTML standard, section 9.2): `id` is the position, `event` the kind.

use std::convert::Infallible;
use std::time::Duration;

use axum::extract::State;
use axum::http::{HeaderMap, Uri};
use axum::response::IntoResponse as _;
use axum::response::sse::{Event, KeepAlive, Sse};
use futures::stream::{self, Stream, StreamExt as _};

use super::extract::QueryParams;
use super::json::EventJson;
use super::pools::PoolPath;
use super::{HandlerResult, SharedState};
use crate::api::error_table::ApiError;
use crate::api::{event_stream, half_close, wait_for_stop};
use crate::events::{EventPosition, WatchItem};
use crate::model::PoolName;

/// Interval of comments on a quiet stream, so that no proxy in between closes the connection as dead.
const KEEP_ALIVE: Duration = Duration::from_secs(15);
/// Header with the last position that a reconnecting client has seen.
const LAST_EVENT_ID: &str = "last-event-id";

/// Streams the events of a pool, from now on or from a position.
pub(super) async fn events(
    State(api): State<SharedState>,
    uri: Uri,
    path: PoolPath,
    headers: HeaderMap,
) -> HandlerResult {
    let mut params = QueryParams::parse(&uri, &["from"])?;
    let name = PoolName::new(&path.0.0, &path.0.1)?;
    let watcher = api.scheduler.watch_pool(&name, start_position(params.take("from"), &headers)?)?;
    // The last item is the reason for the end, which the end of the stream stands for here.
    let events = event_stream::event_stream(watcher, wait_for_stop(&api.stopping))
        .take_while(|event| std::future::ready(event.is_ok()));
    let events =
        events.filter_map(async |event| event.ok()).map(|(at, item)| Ok::<_, Infallible>(sse_event(at, &item)));
    let events = Box::pin(end_with_comment(events, half_close::client_half_closed()));
    Ok(Sse::new(events).keep_alive(KeepAlive::new().interval(KEEP_ALIVE)).into_response())
}

/// Writes a comment when the client has closed its sending side: a client that is gone replies with a reset, and does
/// not remain a watcher until the next event.
fn end_with_comment(
    events: impl Stream<Item = Result<Event, Infallible>>,
    finished: impl Future<Output = ()>,
) -> impl Stream<Item = Result<Event, Infallible>> {
    let probe = stream::once(finished).map(|()| Some(Ok(Event::default().comment("")))).chain(stream::pending());
    let events = events.map(Some).chain(stream::once(std::future::ready(None)));
    stream::select(events, probe).take_while(|event| std::future::ready(event.is_some())).filter_map(std::future::ready)
}

/// Start position. A browser that reconnects repeats the address, so the header takes precedence over the parameter.
fn start_position(param: Option<String>, headers: &HeaderMap) -> Result<Option<EventPosition>, ApiError> {
    let Some(last) = headers.get(LAST_EVENT_ID) else {
        return Ok(param.map(|from| from.parse()).transpose()?);
    };
    let last = last.to_str().unwrap_or_default().parse().map_err(ApiError::from);
    last.map(Some).map_err(|failure| ApiError { field: Some("Last-Event-ID".into()), ..failure })
}

fn sse_event(at: EventPosition, item: &WatchItem) -> Event {
    let at = at.to_string();
    let body = EventJson::new(&at, item);
    let data = serde_json::to_string(&body).expect("every body is structs, strings and numbers");
    Event::default().event(body.event).data(data).id(at)
}
