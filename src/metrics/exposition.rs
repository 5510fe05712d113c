//! The series of pools in Prometheus' text format.
//!
//! The exporter renders what belongs to the process. It keeps each series for ever, so what belongs to a pool is rendered
//! here, from the pools that there are at the scrape: whole families, each in one piece under one HELP and TYPE.

use std::fmt::Write as _;
use std::io;
use std::sync::Arc;

use super::values::{ClaimCounters, PoolCounter, PoolGauge, PoolHistogram};
use super::*;
use crate::model::UnschedulableReason;

/// From when on a pool shows a series. It then stays until the pool is deleted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Appears {
    /// As soon as there is the pool.
    WithPool,
    /// When the pool is used for the first time: a claim is asked for, ends, or is there from before a restart, or a worker
    /// sends a heartbeat. The first value is what was counted until the first scrape after that.
    WithUse,
    /// When it is other than 0 for the first time.
    WhenNeeded,
}

impl Appears {
    /// Every value.
    pub const ALL: [Self; 3] = [Self::WithPool, Self::WithUse, Self::WhenNeeded];

    /// In words, for documents.
    #[must_use]
    pub const fn word(self) -> &'static str {
        match self {
            Self::WithPool => "with the pool",
            Self::WithUse => "with its use",
            Self::WhenNeeded => "when needed",
        }
    }
}

impl ClaimOutcome {
    /// From when on a pool counts claims with this outcome visibly. An increase from 0 can be seen only of those that were
    /// there before, and rules ask for it.
    #[must_use]
    pub const fn appears(self) -> Appears {
        match self {
            Self::Created | Self::PoolExhausted | Self::Overloaded | Self::Store | Self::Deadline => Appears::WithUse,
            _ => Appears::WhenNeeded,
        }
    }
}

/// A metric that has a series or several per pool.
pub struct PoolFamily {
    /// Its name in [`ALL`].
    pub name: &'static str,
    /// Of `hotpool_claims_total` it depends on the outcome: [`ClaimOutcome::appears`]. Of `hotpool_workers` only those that
    /// are idle and busy come with the pool.
    pub appears: Appears,
    write: fn(&PoolMetrics, &mut SeriesWriter<'_>),
}

macro_rules! families {
    ($($name:ident, $appears:ident, $write:expr;)*) => {
        /// Every metric of a pool, in the order of [`ALL`].
        pub const POOL_FAMILIES: &[PoolFamily] =
            &[$(PoolFamily { name: $name, appears: Appears::$appears, write: $write }),*];
    };
}

families! {
    CLAIMS, WithUse, |pool, series| series.claims(&pool.claims, ClaimOutcome::appears);
    CLAIM_SECONDS, WithUse, |pool, series| series.histogram(&pool.claim_seconds);
    RING_WAIT, WhenNeeded, |pool, series| series.histogram(&pool.ring_wait_seconds);
    RELEASES, WithUse, |pool, series| series.counter("", &pool.releases);
    WORKERS, WithPool, |pool, series| {
        series.gauge("idle", &pool.workers_idle);
        series.gauge("busy", &pool.workers_busy);
        series.appears = Appears::WhenNeeded;
        UnschedulableReason::ALL.iter().for_each(|reason| series.gauge(reason.word(), pool.workers_unschedulable(*reason)));
    };
    RING_DEPTH, WithUse, |pool, series| series.gauge("", &pool.ring_depth);
    RING_REFUSALS, WhenNeeded, |pool, series| series.counter("", &pool.ring_refusals);
    CLAIM_PROBES, WhenNeeded, |pool, series| series.histogram(&pool.claim_probes);
    TOUCHES, WithPool, |pool, series| series.counter("", &pool.worker_touches);
    STORE_LAG, WithPool, |pool, series| series.gauge("", &pool.store_lag_seconds);
    EVICTIONS, WhenNeeded, |pool, series| series.counter("", &pool.evictions);
    SWEEPS, WithUse, |pool, series| {
        Sweep::ALL.iter().for_each(|deadline| series.counter(deadline.word(), pool.sweeps(*deadline)));
    };
    CLAIMS_LOST, WithUse, |pool, series| series.counter("", &pool.claims_lost);
    WORKERS_LOST, WithPool, |pool, series| series.counter("", &pool.workers_lost);
    LOST_WORKERS_DELETED, WhenNeeded, |pool, series| series.counter("", &pool.lost_workers_deleted);
    WORKERS_BARRED, WhenNeeded, |pool, series| {
        UnschedulableReason::ALL.iter().for_each(|reason| series.gauge(reason.word(), pool.workers_barred(*reason)));
    };
    HEARTBEATS, WithUse, |pool, series| series.counter("", &pool.heartbeats);
    HEARTBEATS_IGNORED, WhenNeeded, |pool, series| series.counter("", &pool.heartbeats_ignored);
    ADOPTIONS, WhenNeeded, |pool, series| series.counter("", &pool.adoptions);
    STOPS, WhenNeeded, |pool, series| series.counter("", &pool.stops);
    GIVE_BACKS, WhenNeeded, |pool, series| series.counter("", &pool.give_backs);
    WAITERS, WithPool, |pool, series| series.gauge("", &pool.waiters);
    WAIT_SECONDS, WhenNeeded, |pool, series| series.histogram(&pool.wait_seconds);
    WATCHERS, WhenNeeded, |pool, series| series.gauge("", &pool.watchers);
    WATCH_MISSED, WhenNeeded, |pool, series| series.counter("", &pool.watch_missed);
    LEDGER_DRIFT, WithPool, |pool, series| series.gauge("", &pool.ledger_drift);
    SHARD_RESTARTS, WithPool, |pool, series| series.counter("", &pool.shard_restarts);
    SHARD_WORKERS, WithUse, |pool, series| {
        pool.shard_workers.gauges().for_each(|(stat, gauge)| series.gauge(stat, gauge));
    };
    SHARD_HELD, WithUse, |pool, series| {
        pool.shard_held.gauges().for_each(|(stat, gauge)| series.gauge(stat, gauge));
    };
}

/// Writes every series of these pools, and the claims that belong to none. Of a program that has a recorder of its own
/// this is the way to them; [`super::Exporter`] does it by itself.
///
/// # Errors
/// Those of `out`.
pub fn write_pools(pools: &[Arc<PoolMetrics>], out: &mut impl io::Write) -> io::Result<()> {
    let pools: Vec<(&PoolMetrics, bool)> = pools.iter().map(|pool| (&**pool, pool.is_in_use())).collect();
    let mut text = String::new();
    for family in POOL_FAMILIES {
        let definition = ALL.iter().find(|known| known.name == family.name).expect("families are of defined metrics");
        text.clear();
        heading(definition, &mut text);
        let heading_bytes = text.len();
        if family.name == CLAIMS {
            let mut series =
                SeriesWriter { definition, appears: Appears::WithPool, pool: "none", in_use: true, out: &mut text };
            series.claims(&metrics().claims, |_| Appears::WithPool);
        }
        for &(pool, in_use) in &pools {
            let appears = family.appears;
            (family.write)(pool, &mut SeriesWriter { definition, appears, pool: &pool.label, in_use, out: &mut text });
        }
        if text.len() > heading_bytes {
            out.write_all(text.as_bytes())?;
        }
    }
    Ok(())
}

fn heading(definition: &Definition, out: &mut String) {
    let Definition { name, kind, help, .. } = definition;
    let kind = match kind {
        Kind::Counter => "counter",
        Kind::Gauge => "gauge",
        Kind::Histogram(_) => "histogram",
    };
    write!(out, "# HELP {name} {help}\n# TYPE {name} {kind}\n").expect("a string takes everything");
}

/// Writes the series of one family of one pool.
struct SeriesWriter<'a> {
    definition: &'a Definition,
    appears: Appears,
    pool: &'a str,
    in_use: bool,
    out: &'a mut String,
}

impl SeriesWriter<'_> {
    fn shows(&self, appears: Appears, is_needed: bool) -> bool {
        match appears {
            Appears::WithPool => true,
            Appears::WithUse => self.in_use,
            Appears::WhenNeeded => is_needed,
        }
    }

    fn claims(&mut self, claims: &ClaimCounters, appears: impl Fn(ClaimOutcome) -> Appears) {
        for &outcome in ClaimOutcome::ALL {
            self.appears = appears(outcome);
            self.counter(outcome.word(), claims.of(outcome));
        }
    }

    /// `value`: of the label beside `pool`, if the family has one.
    fn counter(&mut self, value: &str, counter: &PoolCounter) {
        let total = counter.value();
        if self.shows(self.appears, total > 0) {
            self.head("", value, "");
            self.whole(total);
        }
    }

    fn gauge(&mut self, value: &str, gauge: &PoolGauge) {
        if self.shows(self.appears, gauge.was_set()) {
            self.head("", value, "");
            self.number(gauge.value());
        }
    }

    fn histogram(&mut self, histogram: &PoolHistogram) {
        if !self.shows(self.appears, !histogram.is_empty()) {
            return;
        }
        let mut count = 0;
        for (bound, total) in histogram.cumulative() {
            let bound = bound.map_or_else(|| "+Inf".to_owned(), |bound| bound.to_string());
            self.head("_bucket", "", &bound);
            self.whole(total);
            count = total;
        }
        self.head("_sum", "", "");
        self.number(histogram.sum());
        self.head("_count", "", "");
        self.whole(count);
    }

    /// Name and labels, the labels in the order of their definition.
    fn head(&mut self, suffix: &str, value: &str, bound: &str) {
        let Self { definition, pool, out, .. } = self;
        out.push_str(definition.name);
        out.push_str(suffix);
        let mut separator = '{';
        for label in definition.labels {
            let value = if *label == "pool" { *pool } else { value };
            label_pair(out, separator, label, value);
            separator = ',';
        }
        if !bound.is_empty() {
            label_pair(out, separator, "le", bound);
        }
        out.push_str("} ");
    }

    fn whole(&mut self, number: u64) {
        self.out.push_str(itoa::Buffer::new().format(number));
        self.out.push('\n');
    }

    fn number(&mut self, number: f64) {
        writeln!(self.out, "{number}").expect("a string takes everything");
    }
}

fn label_pair(out: &mut String, separator: char, name: &str, value: &str) {
    out.push(separator);
    out.push_str(name);
    out.push_str("=\"");
    out.push_str(value);
    out.push('"');
}
