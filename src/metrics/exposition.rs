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
pub enum SeriesVisibility {
    /// As soon as there is the pool.
    WithPool,
    /// When the pool is used for the first time: a claim is asked for, ends, or is there from before a restart, or a worker
    /// sends a heartbeat. The first value is what was counted until the first scrape after that.
    WithUse,
    /// When it is other than 0 for the first time.
    WhenNeeded,
}

impl SeriesVisibility {
    /// Every value.
    pub const ALL: [Self; 3] = [Self::WithPool, Self::WithUse, Self::WhenNeeded];

    /// In words, for documents.
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
    /// From when on a pool counts claims with this outcome visibly. An increase from 0 can be seen only of those that were
    /// there before, and rules ask for it.
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

/// A metric that has a series or several per pool.
pub struct PoolFamily {
    /// Its name in [`ALL`].
    pub name: &'static str,
    /// Of `hotpool_claims_total` it depends on the outcome: [`ClaimOutcome::appears`]. Of `hotpool_workers` only those that
    /// are idle and busy come with the pool.
    pub visibility: SeriesVisibility,
    write: fn(&PoolMetrics, &mut SeriesWriter<'_>),
}

macro_rules! families {
    ($($name:ident, $appears:ident, $write:expr;)*) => {
        /// Every metric of a pool, in the order of [`ALL`].
        pub const POOL_FAMILIES: &[PoolFamily] =
            &[$(PoolFamily { name: $name, visibility: SeriesVisibility::$appears, write: $write }),*];
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
        ExpiryReason::ALL.iter().for_each(|deadline| series.counter(deadline.as_str(), pool.claims_expired(*deadline)));
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
    SHARD_WORKERS, WithUse, |pool, series| {
        pool.shard_workers.gauges().for_each(|(stat, gauge)| series.gauge(stat, gauge));
    };
    SHARD_HELD, WithUse, |pool, series| {
        pool.shard_busy_workers.gauges().for_each(|(stat, gauge)| series.gauge(stat, gauge));
    };
}

/// Writes every series of these pools, and the claims that belong to none. Of a program that has a recorder of its own
/// this is the way to them; [`super::MetricsExporter`] does it by itself.
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
            let appears = family.visibility;
            (family.write)(
                pool,
                &mut SeriesWriter { definition, visibility: appears, pool: &pool.label, in_use, out: &mut text },
            );
        }
        if text.len() > heading_bytes {
            out.write_all(text.as_bytes())?;
        }
    }
    Ok(())
}

fn heading(definition: &MetricDefinition, out: &mut String) {
    let MetricDefinition { name, kind, help, .. } = definition;
    let kind = match kind {
        MetricKind::Counter => "counter",
        MetricKind::Gauge => "gauge",
        MetricKind::Histogram(_) => "histogram",
    };
    write!(out, "# HELP {name} {help}\n# TYPE {name} {kind}\n").expect("a string takes everything");
}

/// Writes the series of one family of one pool.
struct SeriesWriter<'a> {
    definition: &'a MetricDefinition,
    visibility: SeriesVisibility,
    pool: &'a str,
    in_use: bool,
    out: &'a mut String,
}

impl SeriesWriter<'_> {
    fn is_visible(&self, appears: SeriesVisibility, is_needed: bool) -> bool {
        match appears {
            SeriesVisibility::WithPool => true,
            SeriesVisibility::WithUse => self.in_use,
            SeriesVisibility::WhenNeeded => is_needed,
        }
    }

    fn claims(&mut self, claims: &ClaimCounters, appears: impl Fn(ClaimOutcome) -> SeriesVisibility) {
        for &outcome in ClaimOutcome::ALL {
            self.visibility = appears(outcome);
            self.counter(outcome.as_str(), claims.of(outcome));
        }
    }

    /// `value`: of the label beside `pool`, if the family has one.
    fn counter(&mut self, value: &str, counter: &PoolCounter) {
        let total = counter.value();
        if self.is_visible(self.visibility, total > 0) {
            self.write_series("", value, "");
            self.write_integer(total);
        }
    }

    fn gauge(&mut self, value: &str, gauge: &PoolGauge) {
        if self.is_visible(self.visibility, gauge.was_set()) {
            self.write_series("", value, "");
            self.write_float(gauge.value());
        }
    }

    fn histogram(&mut self, histogram: &PoolHistogram) {
        if !self.is_visible(self.visibility, !histogram.is_empty()) {
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

    /// Name and labels, the labels in the order of their definition.
    fn write_series(&mut self, suffix: &str, value: &str, bound: &str) {
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

    fn write_integer(&mut self, number: u64) {
        self.out.push_str(itoa::Buffer::new().format(number));
        self.out.push('\n');
    }

    fn write_float(&mut self, number: f64) {
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
