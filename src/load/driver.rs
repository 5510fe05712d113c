//! Load driver. Closed loop: every slot sends when its previous reply arrives. Open loop: a schedule says when to send.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use hdrhistogram::Histogram;
use indicatif::{ProgressBar, ProgressStyle};

use super::load_client::{HoldDeadline, LoadClient, LoadOperation};
use super::pacing::{StopSignal, issue_on_schedule};
use super::timeline::LoadTimeline;

/// Interval at which the driver checks for completion and updates the progress bar.
const POLL_INTERVAL: Duration = Duration::from_millis(50);
/// Longest wait for replies after the last request was due.
const DRAIN_MAX: Duration = Duration::from_secs(40);

/// Number of outstanding requests. Each one holds an [`InFlightGuard`].
#[derive(Debug, Default)]
pub struct InFlightRequests {
    active: AtomicUsize,
    panicked: AtomicUsize,
}

/// Token of one outstanding request, which counts until it is dropped.
pub struct InFlightGuard(Arc<InFlightRequests>);

impl InFlightRequests {
    /// Counts one more outstanding request until the guard is dropped.
    #[must_use]
    pub fn enter(self: &Arc<Self>) -> InFlightGuard {
        self.active.fetch_add(1, Ordering::Relaxed);
        InFlightGuard(Arc::clone(self))
    }

    /// Number of guards alive.
    #[must_use]
    pub fn count(&self) -> usize {
        self.active.load(Ordering::Acquire)
    }
}

impl Drop for InFlightGuard {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.0.panicked.fetch_add(1, Ordering::Relaxed);
        }
        self.0.active.fetch_sub(1, Ordering::Release);
    }
}

/// Clients of a run, with the state that they share.
pub struct LoadDriver {
    /// Clients, used round robin.
    pub clients: Vec<Arc<LoadClient>>,
    /// Stop signal, raised by SIGINT or SIGTERM.
    pub stop: Arc<StopSignal>,
    in_flight: Arc<InFlightRequests>,
}

impl LoadDriver {
    /// Creates a driver with no outstanding requests.
    #[must_use]
    pub fn new(clients: Vec<Arc<LoadClient>>, stop: Arc<StopSignal>) -> Self {
        Self { clients, stop, in_flight: Arc::default() }
    }

    /// Keeps `in_flight` requests outstanding for `duration` from `start`, spread over the clients.
    ///
    /// # Errors
    /// Fails if requests are left unanswered, or a task panicked.
    pub async fn run_closed_loop(
        &self,
        (start, duration): (Instant, Duration),
        in_flight: usize,
        operation: LoadOperation,
        timeline: &mut LoadTimeline,
    ) -> Result<()> {
        let end = Arc::new(HoldDeadline { at: start + duration, stop: Arc::clone(&self.stop) });
        for slot in 0..in_flight {
            let client = Arc::clone(&self.clients[slot % self.clients.len()]);
            let end = Arc::clone(&end);
            let guard = self.in_flight.enter();
            tokio::spawn(async move {
                let mut text = String::new();
                let mut now = Instant::now();
                while now < end.at && !end.stop.is_requested() {
                    now = client.execute(now, &operation, &end, &mut text).await;
                    // In process a reply may be ready at once. Without a yield this task would keep its thread, and
                    // replies to other tasks would look late.
                    tokio::task::yield_now().await;
                }
                drop(guard);
            });
        }
        self.wait((start, duration), || false, timeline).await
    }

    /// Starts each request of the schedule when it is due, while fewer than `in_flight_max` are outstanding. Beyond
    /// that limit every claim that is due counts as an error. Returns how late requests were started, in nanoseconds.
    /// `duration` is that of the schedule; claims still held at its end are released then.
    ///
    /// # Errors
    /// Fails like [`Self::run_closed_loop`].
    pub async fn run_open_loop(
        &self,
        (start, duration): (Instant, Duration),
        schedule: impl Iterator<Item = (Duration, LoadOperation)> + Send + 'static,
        in_flight_max: usize,
        timeline: &mut LoadTimeline,
    ) -> Result<Histogram<u64>> {
        let clients = self.clients.clone();
        let (stop, in_flight) = (Arc::clone(&self.stop), Arc::clone(&self.in_flight));
        let end = Arc::new(HoldDeadline { at: start + duration, stop: Arc::clone(&stop) });
        let runtime = tokio::runtime::Handle::current();
        let dropped = format!("not sent: limit of {in_flight_max} outstanding requests reached");
        let pacer = tokio::task::spawn_blocking(move || {
            let mut next = clients.iter().cycle();
            issue_on_schedule(start, schedule, &stop, |due, operation| {
                let Some(client) = next.next() else { return };
                if in_flight.count() >= in_flight_max {
                    client.stats().record_error(&dropped, operation.claims as u64);
                    return;
                }
                let guard = in_flight.enter();
                let (client, end) = (Arc::clone(client), Arc::clone(&end));
                runtime.spawn(async move {
                    client.execute(due, &operation, &end, &mut String::new()).await;
                    drop(guard);
                });
            })
        });
        self.wait((start, duration), || !pacer.is_finished(), timeline).await?;
        pacer.await.context("the pacing thread panicked")
    }

    /// Waits until no request is outstanding, and shows progress on a terminal.
    async fn wait(
        &self,
        (start, duration): (Instant, Duration),
        sending: impl Fn() -> bool,
        timeline: &mut LoadTimeline,
    ) -> Result<()> {
        let bar = ProgressBar::new(millis(duration)); // hidden unless stderr is a terminal
        let style = ProgressStyle::with_template("{bar:30} {percent:>3} %  {msg}").context("progress bar")?;
        bar.set_style(style);
        let mut stopped: Option<Instant> = None;
        while sending() || self.in_flight.count() > 0 {
            tokio::time::sleep(POLL_INTERVAL).await;
            let now = Instant::now();
            timeline.tick(now, &self.clients);
            if self.stop.is_requested() && stopped.is_none() {
                stopped = Some(now);
            }
            let end = stopped.map_or(start + duration, |at| at.min(start + duration));
            if now > end + DRAIN_MAX {
                let unanswered = self.in_flight.count();
                bail!("{unanswered} requests were not answered within {} s of the last one", DRAIN_MAX.as_secs());
            }
            bar.set_position(millis(now - start).min(millis(duration)));
            if !bar.is_hidden() {
                let claims: u64 = self.clients.iter().map(|client| client.stats().claims_ok).sum();
                bar.set_message(format!("{claims} claims, {} in flight", self.in_flight.count()));
            }
        }
        bar.finish_and_clear();
        match self.in_flight.panicked.load(Ordering::Relaxed) {
            0 => Ok(()),
            panics => bail!("{panics} requests panicked"),
        }
    }
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
