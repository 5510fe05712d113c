//! Sends the load. Closed loop: every lane sends when its last answer is there. Open loop: a schedule says when.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use hdrhistogram::Histogram;
use indicatif::{ProgressBar, ProgressStyle};

use super::client::{Call, Client, End};
use super::pace::{Stop, pace};
use super::timeline::Timeline;

/// How often the driver looks whether all is done, and shows how far it is.
const LOOK_EVERY: Duration = Duration::from_millis(50);
/// How long answers may be outstanding after the last request was due.
const DRAIN_MAX: Duration = Duration::from_secs(40);

/// Lanes and requests under way. Each holds a [`Flying`] while it is.
#[derive(Debug, Default)]
pub struct Flight {
    under_way: AtomicUsize,
    panicked: AtomicUsize,
}

/// One of the requests under way.
pub struct Flying(Arc<Flight>);

impl Flight {
    /// One more.
    #[must_use]
    pub fn enter(self: &Arc<Self>) -> Flying {
        self.under_way.fetch_add(1, Ordering::Relaxed);
        Flying(Arc::clone(self))
    }

    /// How many there are.
    #[must_use]
    pub fn under_way(&self) -> usize {
        self.under_way.load(Ordering::Acquire)
    }
}

impl Drop for Flying {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.0.panicked.fetch_add(1, Ordering::Relaxed);
        }
        self.0.under_way.fetch_sub(1, Ordering::Release);
    }
}

/// The clients, and what they have in common.
pub struct Driver {
    /// All of them; requests go round.
    pub clients: Vec<Arc<Client>>,
    /// Raised by a signal.
    pub stop: Arc<Stop>,
    flight: Arc<Flight>,
}

impl Driver {
    /// With nothing under way.
    #[must_use]
    pub fn new(clients: Vec<Arc<Client>>, stop: Arc<Stop>) -> Self {
        Self { clients, stop, flight: Arc::default() }
    }

    /// Keeps `in_flight` calls outstanding for `duration` from `start`, spread over the clients.
    ///
    /// # Errors
    /// Requests are left without an answer, or a lane panicked.
    pub async fn closed(
        &self,
        (start, duration): (Instant, Duration),
        in_flight: usize,
        call: Call,
        timeline: &mut Timeline,
    ) -> Result<()> {
        let end = Arc::new(End { at: start + duration, stop: Arc::clone(&self.stop) });
        for lane in 0..in_flight {
            let client = Arc::clone(&self.clients[lane % self.clients.len()]);
            let end = Arc::clone(&end);
            let flying = self.flight.enter();
            tokio::spawn(async move {
                let mut text = String::new();
                let mut now = Instant::now();
                while now < end.at && !end.stop.asked() {
                    now = client.round(now, &call, &end, &mut text).await;
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
    pub async fn open(
        &self,
        (start, duration): (Instant, Duration),
        schedule: impl Iterator<Item = (Duration, Call)> + Send + 'static,
        in_flight_max: usize,
        timeline: &mut Timeline,
    ) -> Result<Histogram<u64>> {
        let clients = self.clients.clone();
        let (stop, flight) = (Arc::clone(&self.stop), Arc::clone(&self.flight));
        let end = Arc::new(End { at: start + duration, stop: Arc::clone(&stop) });
        let runtime = tokio::runtime::Handle::current();
        let dropped = format!("not sent: {in_flight_max} requests were under way already");
        let pacer = tokio::task::spawn_blocking(move || {
            let mut next = clients.iter().cycle();
            pace(start, schedule, &stop, |due, call| {
                let Some(client) = next.next() else { return };
                if flight.under_way() >= in_flight_max {
                    client.stats().error(&dropped, call.claims as u64);
                    return;
                }
                let flying = flight.enter();
                let (client, end) = (Arc::clone(client), Arc::clone(&end));
                runtime.spawn(async move {
                    client.round(due, &call, &end, &mut String::new()).await;
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
        timeline: &mut Timeline,
    ) -> Result<()> {
        let bar = ProgressBar::new(millis(duration)); // hides itself unless stderr is a terminal
        let style = ProgressStyle::with_template("{bar:30} {percent:>3} %  {msg}").context("progress bar")?;
        bar.set_style(style);
        let mut stopped: Option<Instant> = None;
        while sending() || self.flight.under_way() > 0 {
            tokio::time::sleep(LOOK_EVERY).await;
            let now = Instant::now();
            timeline.look(now, &self.clients);
            if self.stop.asked() && stopped.is_none() {
                stopped = Some(now);
            }
            let end = stopped.map_or(start + duration, |at| at.min(start + duration));
            if now > end + DRAIN_MAX {
                let left = self.flight.under_way();
                bail!("{left} requests were not answered within {} s of the last one", DRAIN_MAX.as_secs());
            }
            bar.set_position(millis(now - start).min(millis(duration)));
            if !bar.is_hidden() {
                let claims: u64 = self.clients.iter().map(|client| client.stats().claims_ok).sum();
                bar.set_message(format!("{claims} claims, {} under way", self.flight.under_way()));
            }
        }
        bar.finish_and_clear();
        match self.flight.panicked.load(Ordering::Relaxed) {
            0 => Ok(()),
            panics => bail!("{panics} requests panicked"),
        }
    }
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
