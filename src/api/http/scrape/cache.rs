//! Cache of renderings of the metrics. One rendering runs at a time, for all requests that arrive in the meantime.
//! Rendering occupies a blocking thread, which store commits need too, and continues when its request is dropped; one
//! rendering for each request would let a client that scrapes often delay every commit.
//!
//! No request gets a rendering that began before it arrived: a request waits for the running one, and takes the latest
//! that began after its own arrival. So of a hundred requests that arrive during a rendering, the first renders and the
//! others share its result.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use tokio::sync::{Mutex, OwnedMutexGuard};
use tokio::task::spawn_blocking;

/// Content coding of a rendering.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum ContentCoding {
    Identity,
    Gzip,
}

/// Renderings of one text, at most one running at a time.
#[derive(Debug, Default)]
pub(in crate::api::http) struct ScrapeCache {
    latest: Arc<Mutex<LatestRenderings>>,
    /// Number of requests so far.
    requests: Arc<AtomicU64>,
}

/// Latest rendering in each coding, as long as a request may need it.
#[derive(Debug, Default)]
struct LatestRenderings {
    identity: Option<ScrapeRendering>,
    gzip: Option<ScrapeRendering>,
}

#[derive(Debug, Clone)]
struct ScrapeRendering {
    /// Number of requests that had arrived when it began: those with a lower number may use it.
    requests: u64,
    text: Bytes,
}

impl LatestRenderings {
    const fn slot_mut(&mut self, coding: ContentCoding) -> &mut Option<ScrapeRendering> {
        match coding {
            ContentCoding::Identity => &mut self.identity,
            ContentCoding::Gzip => &mut self.gzip,
        }
    }
}

impl ScrapeCache {
    /// Returns the output of `render`, or of another request's rendering in this coding that began after this call.
    ///
    /// # Errors
    /// The error of `render`, or `Other` if it panicked or the runtime is shutting down.
    pub(super) async fn get_or_render(
        &self,
        coding: ContentCoding,
        render: impl FnOnce() -> io::Result<Vec<u8>> + Send + 'static,
    ) -> io::Result<Bytes> {
        let number = self.requests.fetch_add(1, Ordering::AcqRel);
        let mut turn = Arc::clone(&self.latest).lock_owned().await;
        let nobody_waits = is_uncontended(&turn);
        let latest = turn.slot_mut(coding).as_ref();
        if let Some(text) = latest.filter(|latest| number < latest.requests).map(|latest| latest.text.clone()) {
            if nobody_waits {
                *turn = LatestRenderings::default();
            }
            return Ok(text);
        }
        let requests = Arc::clone(&self.requests);
        // The guard moves into the rendering, which continues if this future is dropped.
        spawn_blocking(move || {
            let requests = requests.load(Ordering::Acquire);
            let text = Bytes::from(render()?);
            match is_uncontended(&turn) {
                true => *turn = LatestRenderings::default(),
                false => *turn.slot_mut(coding) = Some(ScrapeRendering { requests, text: text.clone() }),
            }
            Ok(text)
        })
        .await?
    }
}

/// Whether no request waits for the lock: only the cache and the current guard hold references.
fn is_uncontended(turn: &OwnedMutexGuard<LatestRenderings>) -> bool {
    Arc::strong_count(OwnedMutexGuard::mutex(turn)) <= 2
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;
    use std::time::Duration;

    use futures::future::join_all;
    use tokio::time::timeout;

    use super::*;

    #[tokio::test]
    async fn h04_many_scrapes_at_a_time_take_few_renderings() {
        let renders = Arc::new(ScrapeCache::default());
        let count = Arc::new(AtomicU64::new(0));
        let render = |begin: Option<mpsc::Receiver<()>>| {
            let count = Arc::clone(&count);
            move || {
                let number = count.fetch_add(1, Ordering::Relaxed);
                begin.into_iter().for_each(|begin| begin.recv().unwrap());
                Ok(number.to_string().into_bytes())
            }
        };
        // The first rendering is running, and the request that started it is dropped.
        let (go_on, begin) = mpsc::channel();
        let mut first = Box::pin(renders.get_or_render(ContentCoding::Identity, render(Some(begin))));
        assert!(futures::poll!(&mut first).is_pending());
        while count.load(Ordering::Relaxed) == 0 {
            tokio::task::yield_now().await;
        }
        drop(first);
        // Later requests must not get it: what happened just before them may be missing there.
        let ask = |coding| Box::pin(renders.get_or_render(coding, render(None)));
        let mut plain: Vec<_> = (0..100).map(|_| ask(ContentCoding::Identity)).collect();
        for (i, plain) in plain.iter_mut().enumerate() {
            assert!(futures::poll!(&mut *plain).is_pending());
            if i % 2 == 0 {
                *plain = ask(ContentCoding::Identity);
                assert!(futures::poll!(&mut *plain).is_pending());
            }
        }
        let mut gzip = ask(ContentCoding::Gzip);
        assert!(futures::poll!(&mut gzip).is_pending());
        assert_eq!(count.load(Ordering::Relaxed), 1, "one at a time");
        go_on.send(()).unwrap();
        let texts = timeout(Duration::from_secs(20), join_all(plain)).await.unwrap();
        assert!(texts.into_iter().all(|text| text.unwrap() == "1"));
        assert_eq!(gzip.await.unwrap(), "2", "another coding is another text");
        // Without a waiting request nothing is cached, and a later request renders anew.
        let latest = renders.latest.lock().await;
        assert!(latest.identity.is_none() && latest.gzip.is_none());
        drop(latest);
        assert_eq!(ask(ContentCoding::Identity).await.unwrap(), "3");
        // A rendering that fails does not block others.
        let failed = renders.get_or_render(ContentCoding::Identity, || panic!("a test's own")).await;
        assert!(failed.is_err());
        assert_eq!(ask(ContentCoding::Identity).await.unwrap(), "4");
    }
}
