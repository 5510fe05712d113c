//! Values of the series of a pool: plain atomics that the pool owns. A handle of a recorder would stay in the recorder for the
//! life of the process, and cost an indirect call.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use super::ClaimOutcome;

/// Counter of a pool, which only grows.
#[derive(Debug, Default)]
pub struct PoolCounter(AtomicU64);

impl PoolCounter {
    /// Adds `by` to the count.
    pub fn increment(&self, by: u64) {
        // Most increments are 0, and other cores use this cache line too.
        if by > 0 {
            self.0.fetch_add(by, Ordering::Relaxed);
        }
    }

    /// Raises the count to a total that is counted elsewhere. Of two concurrent scrapes the higher total stays.
    pub fn raise_to(&self, total: u64) {
        self.0.fetch_max(total, Ordering::Relaxed);
    }

    /// Total of all increments.
    #[must_use]
    pub fn value(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// Gauge of a pool, which each scrape sets.
#[derive(Debug, Default)]
pub struct PoolGauge {
    bits: AtomicU64,
    was_set: AtomicBool,
}

impl PoolGauge {
    /// Sets the present value.
    pub fn set(&self, value: f64) {
        self.bits.store(value.to_bits(), Ordering::Relaxed);
        if value != 0.0 {
            self.was_set.store(true, Ordering::Relaxed);
        }
    }

    pub(super) fn value(&self) -> f64 {
        f64::from_bits(self.bits.load(Ordering::Relaxed))
    }

    /// Whether the value was ever other than 0. From then on the series is shown, also as 0.
    pub(super) fn was_set(&self) -> bool {
        self.was_set.load(Ordering::Relaxed)
    }
}

/// Minimum, mean and maximum of a number over the shards of a pool. A series for each shard would be thousands.
#[derive(Debug, Default)]
pub struct ShardDistribution {
    pub(super) min: PoolGauge,
    pub(super) mean: PoolGauge,
    pub(super) max: PoolGauge,
}

impl ShardDistribution {
    /// Sets the gauges from the numbers of all shards.
    pub fn set(&self, shards: impl Iterator<Item = u32> + Clone) {
        let count = shards.clone().count().max(1);
        let sum: f64 = shards.clone().map(f64::from).sum();
        self.min.set(f64::from(shards.clone().min().unwrap_or(0)));
        self.mean.set(sum / count as f64);
        self.max.set(f64::from(shards.max().unwrap_or(0)));
    }
}

/// Histogram of a pool with fixed buckets. Amounts are whole numbers of a unit, so that the sum is one addition.
#[derive(Debug)]
pub struct PoolHistogram {
    bounds: &'static [f64],
    units_per_one: f64,
    /// Counts below each bound, and above the last one.
    buckets: Box<[AtomicU64]>,
    sum_units: AtomicU64,
}

impl PoolHistogram {
    /// Creates an empty histogram with these upper bounds. `units_per_one` recorded units are shown as 1.
    pub(super) fn new(bounds: &'static [f64], units_per_one: f64) -> Self {
        let buckets = std::iter::repeat_with(AtomicU64::default).take(bounds.len() + 1).collect();
        Self { bounds, units_per_one, buckets, sum_units: AtomicU64::default() }
    }

    /// Records one amount, in the recorded unit.
    pub fn record(&self, units: u64) {
        let amount = units as f64 / self.units_per_one;
        let bucket = self.bounds.partition_point(|&bound| bound < amount);
        self.buckets[bucket].fetch_add(1, Ordering::Relaxed);
        self.sum_units.fetch_add(units, Ordering::Relaxed);
    }

    pub(super) fn is_empty(&self) -> bool {
        self.buckets.iter().all(|bucket| bucket.load(Ordering::Relaxed) == 0)
    }

    pub(super) fn sum(&self) -> f64 {
        self.sum_units.load(Ordering::Relaxed) as f64 / self.units_per_one
    }

    /// Upper bounds with the number of amounts not above each; the last entry has no bound and counts all.
    pub(super) fn cumulative(&self) -> impl Iterator<Item = (Option<f64>, u64)> {
        let bounds = self.bounds.iter().copied().map(Some).chain([None]);
        bounds.zip(&self.buckets).scan(0, |total, (bound, bucket)| {
            *total += bucket.load(Ordering::Relaxed);
            Some((bound, *total))
        })
    }
}

/// Counters of claims, by outcome.
#[derive(Debug, Default)]
pub struct ClaimCounters([PoolCounter; ClaimOutcome::ALL.len()]);

impl ClaimCounters {
    /// Counter of this outcome.
    #[must_use]
    pub fn of(&self, outcome: ClaimOutcome) -> &PoolCounter {
        &self.0[outcome as usize]
    }

    /// Whether any claim was counted.
    pub(super) fn any(&self) -> bool {
        self.0.iter().any(|counter| counter.value() > 0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_amount_is_in_the_bucket_of_the_first_bound_that_is_not_below_it() {
        let histogram = PoolHistogram::new(&[0.001, 0.01], 1e3);
        assert!(histogram.is_empty());
        for ms in [0, 1, 2, 10, 11] {
            histogram.record(ms);
        }
        let buckets: Vec<_> = histogram.cumulative().collect();
        assert_eq!(buckets, [(Some(0.001), 2), (Some(0.01), 4), (None, 5)]);
        assert!(!histogram.is_empty() && histogram.sum() == 0.024);
    }

    #[test]
    fn a_total_from_an_earlier_scrape_does_not_lower_the_counter() {
        let counter = PoolCounter::default();
        counter.raise_to(7);
        counter.raise_to(5);
        assert_eq!(counter.value(), 7);
    }
}
