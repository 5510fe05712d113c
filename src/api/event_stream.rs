//! Event stream of a pool, in a form that every edge can write. It ends when the pool is deleted or the service stops.

use futures::future::BoxFuture;
use futures::stream::{self, Stream, StreamExt as _};

use crate::events::{EventPosition, PoolWatcher, WatchItem};
use crate::model::request_error::{ObjectKind, RequestError, UnavailableReason};

/// Yields every event with its position; the last item is the reason for the end. `stop` resolves when the service
/// begins to stop.
pub(super) fn event_stream(
    watcher: PoolWatcher,
    stop: BoxFuture<'static, ()>,
) -> impl Stream<Item = Result<(EventPosition, WatchItem), RequestError>> + Send + 'static {
    let batches = stream::unfold(Some((watcher, stop)), async |state| {
        let (mut watcher, mut stop) = state?;
        let mut events = Vec::new();
        let end = tokio::select! {
            biased;
            () = &mut stop => Some(RequestError::Unavailable(UnavailableReason::Stopping)),
            more = watcher.next(&mut events) => (!more).then_some(RequestError::NotFound(ObjectKind::Pool)),
        };
        Some(match end {
            Some(end) => (vec![Err(end)], None),
            None => (events.into_iter().map(Ok).collect(), Some((watcher, stop))),
        })
    });
    batches.flat_map(stream::iter)
}
