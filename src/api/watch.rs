//! What a watcher is told, as a stream that any edge can write: it ends when the pool is gone or the service stops.

use futures::future::BoxFuture;
use futures::stream::{self, Stream, StreamExt as _};

use crate::events::{Position, Told, Watcher};
use crate::model::rejection::{Refusal, Unavailable, What};

/// Everything with its position; the last says why there is no more. `stop` resolves when the service begins to stop.
pub(super) fn told(
    watcher: Watcher,
    stop: BoxFuture<'static, ()>,
) -> impl Stream<Item = Result<(Position, Told), Refusal>> + Send + 'static {
    let batches = stream::unfold(Some((watcher, stop)), async |watching| {
        let (mut watcher, mut stop) = watching?;
        let mut told = Vec::new();
        let end = tokio::select! {
            biased;
            () = &mut stop => Some(Refusal::Unavailable(Unavailable::Stopping)),
            more = watcher.next(&mut told) => (!more).then_some(Refusal::NotFound(What::Pool)),
        };
        Some(match end {
            Some(why) => (vec![Err(why)], None),
            None => (told.into_iter().map(Ok).collect(), Some((watcher, stop))),
        })
    });
    batches.flat_map(stream::iter)
}
