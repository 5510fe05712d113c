//! Sends the load. Closed loop: every lane sends when its last answer is there. Open loop: a schedule says when.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use hdrhistogram::Histogram;
use indicatif::{ProgressBar, ProgressStyle};

use super::load_client::{HoldDeadline, LoadClient, LoadOperation};
use super::pacing::{StopSignal, issue_on_schedule};
use super::timeline::LoadTimeline;

/// How often the driver looks whether all is done, and shows how far it is.
const POLL_INTERVAL: Duration = Duration::from_millis(50);
/// How long answers may be outstanding after the last request was due.
const DRAIN_MAX: Duration = Duration::from_secs(40);

/// Lanes and requests under way. Each holds a [`InFlightGuard`] while it is.
#[derive(Debug, Default)]
pub struct InFlightRequests {
    active: AtomicUsize,
    panicked: AtomicUsize,
}

/// One of the requests under way.
pub struct InFlightGuard(Arc<InFlightRequests>);

impl InFlightRequests {
    /// One more.
    #[must_use]
    pub fn enter(self: &Arc<Self>) -> InFlightGuard {
        self.active.fetch_add(1, Ordering::Relaxed);
        InFlightGuard(Arc::clone(self))
    }

    /// How many there are.
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

/// The clients, and what they have in common.
pub struct LoadDriver {
    /// All of them; requests go round.
    pub clients: Vec<Arc<LoadClient>>,
    /// Raised by a signal.
    pub stop: Arc<StopSignal>,
    in_flight: Arc<InFlightRequests>,
}

impl LoadDriver {
    /// With nothing under way.
    #[must_use]
    pub fn new(clients: Vec<Arc<LoadClient>>, stop: Arc<StopSignal>) -> Self {
        Self { clients, stop, in_flight: Arc::default() }
    }

    /// Keeps `in_flight` calls outstanding for `duration` from `start`, spread over the clients.
    ///
    /// # Errors
    /// Requests are left without an answer, or a lane panicked.
    pub async fn run_closed_loop(
        &self,
        (start, duration): (Instant, Duration),
        in_flight: usize,
        call: LoadOperation,
        timeline: &mut LoadTimeline,
    ) -> Result<()> {
        let end = Arc::new(HoldDeadline { at: start + duration, stop: Arc::clone(&self.stop) });
        for lane in 0..in_flight {
            let client = Arc::clone(&self.clients[lane % self.clients.len()]);
            let end = Arc::clone(&end);
            let flying = self.in_flight.enter();
            tokio::spawn(async move {
                let mut text = String::new();
                let mut now = Instant::now();
                while now < end.at && !end.stop.is_requested() {
                    now = client.execute(now, &call, &end, &mut text).await;
                    // In process an answer may be there at once: without this a lane would keep its thread, and the
                    // others' answers would look late.
                    tokio::task::yield_now().await;
                }
                drop(flying);
            });
        }
        self.wait((start, duration), || false, timeline).await
    }

    /// Starts each call of the schedule when it is due, for as long as fewer than `in_flight_max` are under way; of what is
    /// due beyond that each claim is an error. Returns how late calls were started, in nanoseconds. `duration` is that of the
    /// schedule; what is held at its end is given back then.
    ///
    /// # Errors
    /// As [`Self::closed`].
    pub async fn run_open_loop(
        &self,
        (start, duration): (Instant, Duration),
        schedule: impl Iterator<Item = (Duration, LoadOperation)> + Send + 'static,
        in_flight_max: usize,
        timeline: &mut LoadTimeline,
    ) -> Result<Histogram<u64>> {
        let clients = self.clients.clone();
        let (stop, flight) = (Arc::clone(&self.stop), Arc::clone(&self.in_flight));
        let end = Arc::new(HoldDeadline { at: start + duration, stop: Arc::clone(&stop) });
        let runtime = tokio::runtime::Handle::current();
        let dropped = format!("not sent: {in_flight_max} requests were under way already");
        let pacer = tokio::task::spawn_blocking(move || {
            let mut next = clients.iter().cycle();
            issue_on_schedule(start, schedule, &stop, |due, call| {
                let Some(client) = next.next() else { return };
                if flight.count() >= in_flight_max {
                    client.stats().record_error(&dropped, call.claims as u64);
                    return;
                }
                let flying = flight.enter();
                let (client, end) = (Arc::clone(client), Arc::clone(&end));
                runtime.spawn(async move {
                    client.execute(due, &call, &end, &mut String::new()).await;
                    drop(flying);
                });
            })
        });
        self.wait((start, duration), || !pacer.is_finished(), timeline).await?;
        pacer.await.context("the pace was lost")
    }

    /// Waits until nothing is under way and shows, on a terminal, how far it is.
    async fn wait(
        &self,
        (start, duration): (Instant, Duration),
        sending: impl Fn() -> bool,
        timeline: &mut LoadTimeline,
    ) -> Result<()> {
        let bar = ProgressBar::new(millis(duration)); // hides itself unless stderr is a terminal
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
                let left = self.in_flight.count();
                bail!("{left} requests were not answered within {} s of the last one", DRAIN_MAX.as_secs());
            }
            bar.set_position(millis(now - start).min(millis(duration)));
            if !bar.is_hidden() {
                let claims: u64 = self.clients.iter().map(|client| client.stats().claims_ok).sum();
                bar.set_message(format!("{claims} claims, {} under way", self.in_flight.count()));
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
