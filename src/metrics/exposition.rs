//! Series of pools in Prometheus' text format.
//!
//! The exporter renders the metrics of the process. It keeps each series for ever, so the metrics of pools are rendered here,
//! from the pools that exist at the scrape: whole families, each in one block under one HELP and TYPE.

use std::fmt::Write as _;
use std::io;
use std::sync::Arc;

use super::values::{ClaimCounters, PoolCounter, PoolGauge, PoolHistogram};
use super::*;
use crate::model::UnschedulableReason;

/// Moment from which a scrape shows a series of a pool. It then stays until the pool is deleted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SeriesVisibility {
    /// Creation of the pool.
    WithPool,
    /// First use of the pool: a claim is requested, ends or is recovered, or a worker sends a heartbeat. The first value
    /// includes everything counted before the first scrape after that.
    WithUse,
    /// First value other than 0.
    WhenNeeded,
}

impl SeriesVisibility {
    /// All values, from the earliest to the latest.
    pub const ALL: [Self; 3] = [Self::WithPool, Self::WithUse, Self::WhenNeeded];

    /// Name of the moment, for documents.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::WithPool => "with the pool",
            Self::WithUse => "with its use",
            Self::WhenNeeded => "when needed",
        }
    }
}

impl ClaimOutcome {
    /// Visibility of the counter of this outcome. Prometheus sees an increase from 0 only in a series that existed before, so
    /// the outcomes that alert rules use appear with the first use.
    #[must_use]
    pub const fn visibility(self) -> SeriesVisibility {
        match self {
            Self::Created | Self::PoolExhausted | Self::Overloaded | Self::Store | Self::Deadline => {
                SeriesVisibility::WithUse
            }
            _ => SeriesVisibility::WhenNeeded,
        }
    }
}

/// Metric with one or several series for each pool.
pub struct PoolFamily {
    /// Name of the metric in [`ALL`].
    pub name: &'static str,
    /// Visibility of the series. For `hotpool_claims_total` it depends on the outcome ([`ClaimOutcome::visibility`]); of
    /// `hotpool_workers` only `idle` and `busy` appear with the pool.
    pub visibility: SeriesVisibility,
    write: fn(&PoolMetrics, &mut SeriesWriter<'_>),
}

macro_rules! families {
    ($($name:ident, $visibility:ident, $write:expr;)*) => {
        /// Families of all metrics of a pool, in the order of [`ALL`].
        pub const POOL_FAMILIES: &[PoolFamily] =
            &[$(PoolFamily { name: $name, visibility: SeriesVisibility::$visibility, write: $write }),*];
    };
}

families! {
    CLAIMS, WithUse, |pool, series| series.claims(&pool.claims, ClaimOutcome::visibility);
    CLAIM_SECONDS, WithUse, |pool, series| series.histogram(&pool.claim_seconds);
    SHARD_QUEUE_WAIT, WhenNeeded, |pool, series| series.histogram(&pool.queue_wait_seconds);
    RELEASES, WithUse, |pool, series| series.counter("", &pool.releases);
    WORKERS, WithPool, |pool, series| {
        series.gauge("idle", &pool.workers_idle);
        series.gauge("busy", &pool.workers_busy);
        series.visibility = SeriesVisibility::WhenNeeded;
        UnschedulableReason::ALL.iter().for_each(|reason| series.gauge(reason.as_str(), pool.workers_unschedulable_idle(*reason)));
    };
    SHARD_QUEUE_DEPTH, WithUse, |pool, series| series.gauge("", &pool.queue_depth);
    SHARD_QUEUE_REJECTIONS, WhenNeeded, |pool, series| series.counter("", &pool.queue_rejections);
    CLAIM_SHARDS_TRIED, WhenNeeded, |pool, series| series.histogram(&pool.claim_shards_tried);
    WORKER_UPDATES, WithPool, |pool, series| series.counter("", &pool.worker_updates);
    STORE_LAG, WithPool, |pool, series| series.gauge("", &pool.store_lag_seconds);
    EVICTIONS, WhenNeeded, |pool, series| series.counter("", &pool.evictions);
    CLAIMS_EXPIRED, WithUse, |pool, series| {
        ExpiryReason::ALL.iter().for_each(|reason| series.counter(reason.as_str(), pool.claims_expired(*reason)));
    };
    CLAIMS_LOST, WithUse, |pool, series| series.counter("", &pool.claims_lost);
    WORKERS_LOST, WithPool, |pool, series| series.counter("", &pool.workers_lost);
    LOST_WORKERS_DELETED, WhenNeeded, |pool, series| series.counter("", &pool.lost_workers_deleted);
    WORKERS_UNSCHEDULABLE, WhenNeeded, |pool, series| {
        UnschedulableReason::ALL.iter().for_each(|reason| series.gauge(reason.as_str(), pool.workers_unschedulable(*reason)));
    };
    HEARTBEATS, WithUse, |pool, series| series.counter("", &pool.heartbeats);
    HEARTBEATS_IGNORED, WhenNeeded, |pool, series| series.counter("", &pool.heartbeats_ignored);
    CLAIMS_READOPTED, WhenNeeded, |pool, series| series.counter("", &pool.claims_readopted);
    CLAIM_REVOCATIONS, WhenNeeded, |pool, series| series.counter("", &pool.claim_revocations);
    CLAIMS_ROLLED_BACK, WhenNeeded, |pool, series| series.counter("", &pool.claims_rolled_back);
    CLAIMS_PENDING, WithPool, |pool, series| series.gauge("", &pool.claims_pending);
    WAIT_SECONDS, WhenNeeded, |pool, series| series.histogram(&pool.wait_seconds);
    WATCHERS, WhenNeeded, |pool, series| series.gauge("", &pool.watchers);
    WATCH_EVENTS_DROPPED, WhenNeeded, |pool, series| series.counter("", &pool.watch_events_dropped);
    ACCOUNTING_MISMATCH, WithPool, |pool, series| series.gauge("", &pool.accounting_mismatch);
    SHARD_RESTARTS, WithPool, |pool, series| series.counter("", &pool.shard_restarts);
    SHARD_WORKERS_MIN, WithUse, |pool, series| series.gauge("", &pool.shard_workers.min);
    SHARD_WORKERS_MEAN, WithUse, |pool, series| series.gauge("", &pool.shard_workers.mean);
    SHARD_WORKERS_MAX, WithUse, |pool, series| series.gauge("", &pool.shard_workers.max);
    SHARD_BUSY_WORKERS_MIN, WithUse, |pool, series| series.gauge("", &pool.shard_busy_workers.min);
    SHARD_BUSY_WORKERS_MEAN, WithUse, |pool, series| series.gauge("", &pool.shard_busy_workers.mean);
    SHARD_BUSY_WORKERS_MAX, WithUse, |pool, series| series.gauge("", &pool.shard_busy_workers.max);
}

/// Writes all series of these pools, and the claims that belong to none. [`super::MetricsExporter`] calls it; a program with a
/// recorder of its own may call it too.
///
/// # Errors
/// Errors of `out`.
pub fn write_pools(pools: &[Arc<PoolMetrics>], out: &mut impl io::Write) -> io::Result<()> {
    let pools: Vec<(&PoolMetrics, bool)> = pools.iter().map(|pool| (&**pool, pool.is_in_use())).collect();
    let mut text = String::new();
    for family in POOL_FAMILIES {
        let definition = ALL.iter().find(|metric| metric.name == family.name).expect("every family has a definition");
        text.clear();
        write_heading(definition, &mut text);
        let heading_bytes = text.len();
        if family.name == CLAIMS {
            let mut series = SeriesWriter {
                definition,
                visibility: SeriesVisibility::WithPool,
                pool: "none",
                in_use: true,
                out: &mut text,
            };
            series.claims(&metrics().claims, |_| SeriesVisibility::WithPool);
        }
        for &(pool, in_use) in &pools {
            let visibility = family.visibility;
            let mut series = SeriesWriter { definition, visibility, pool: &pool.label, in_use, out: &mut text };
            (family.write)(pool, &mut series);
        }
        if text.len() > heading_bytes {
            out.write_all(text.as_bytes())?;
        }
    }
    Ok(())
}

pub(super) fn write_heading(definition: &MetricDefinition, out: &mut String) {
    let MetricDefinition { name, kind, help, .. } = definition;
    let kind = match kind {
        MetricKind::Counter => "counter",
        MetricKind::Gauge => "gauge",
        MetricKind::Histogram(_) => "histogram",
    };
    write!(out, "# HELP {name} {help}\n# TYPE {name} {kind}\n").expect("writing to a string cannot fail");
}

/// Writer of the series of one family of one pool.
struct SeriesWriter<'a> {
    definition: &'a MetricDefinition,
    visibility: SeriesVisibility,
    pool: &'a str,
    in_use: bool,
    out: &'a mut String,
}

impl SeriesWriter<'_> {
    /// Whether the series is shown; `is_needed` says whether it ever had a value other than 0.
    fn is_visible(&self, is_needed: impl FnOnce() -> bool) -> bool {
        match self.visibility {
            SeriesVisibility::WithPool => true,
            SeriesVisibility::WithUse => self.in_use,
            SeriesVisibility::WhenNeeded => is_needed(),
        }
    }

    fn claims(&mut self, claims: &ClaimCounters, visibility: impl Fn(ClaimOutcome) -> SeriesVisibility) {
        for &outcome in ClaimOutcome::ALL {
            self.visibility = visibility(outcome);
            self.counter(outcome.as_str(), claims.of(outcome));
        }
    }

    /// Writes a counter. `value` is that of the label beside `pool`, or empty if the family has none.
    fn counter(&mut self, value: &str, counter: &PoolCounter) {
        let total = counter.value();
        if self.is_visible(|| total > 0) {
            self.write_series("", value, "");
            self.write_integer(total);
        }
    }

    fn gauge(&mut self, value: &str, gauge: &PoolGauge) {
        if self.is_visible(|| gauge.was_set()) {
            self.write_series("", value, "");
            self.write_float(gauge.value());
        }
    }

    fn histogram(&mut self, histogram: &PoolHistogram) {
        if !self.is_visible(|| !histogram.is_empty()) {
            return;
        }
        let mut count = 0;
        for (bound, total) in histogram.cumulative() {
            let bound = bound.map_or_else(|| "+Inf".to_owned(), |bound| bound.to_string());
            self.write_series("_bucket", "", &bound);
            self.write_integer(total);
            count = total;
        }
        self.write_series("_sum", "", "");
        self.write_float(histogram.sum());
        self.write_series("_count", "", "");
        self.write_integer(count);
    }

    /// Writes name and labels, the labels in the order of their definition.
    fn write_series(&mut self, suffix: &str, value: &str, bound: &str) {
        let Self { definition, pool, out, .. } = self;
        out.push_str(definition.name);
        out.push_str(suffix);
        let mut separator = '{';
        for label in definition.labels {
            let value = if *label == "pool" { *pool } else { value };
            write_label(out, separator, label, value);
            separator = ',';
        }
        if !bound.is_empty() {
            write_label(out, separator, "le", bound);
        }
        out.push_str("} ");
    }

    fn write_integer(&mut self, number: u64) {
        self.out.push_str(itoa::Buffer::new().format(number));
        self.out.push('\n');
    }

    fn write_float(&mut self, number: f64) {
        writeln!(self.out, "{number}").expect("writing to a string cannot fail");
    }
}

fn write_label(out: &mut String, separator: char, name: &str, value: &str) {
    out.push(separator);
    out.push_str(name);
    out.push_str("=\"");
    out.push_str(value);
    out.push('"');
}
