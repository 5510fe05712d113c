use std::sync::Arc;

use super::*;
use crate::model::{PoolName, UnschedulableReason};

fn pool(name: &str) -> Arc<PoolMetrics> {
    Arc::new(PoolMetrics::new(&PoolName::new("ns", name).unwrap()))
}

fn page(pools: &[Arc<PoolMetrics>]) -> String {
    let mut page = Vec::new();
    write_pools(pools, &mut page).unwrap();
    String::from_utf8(page).unwrap()
}

/// Size of the series of a pool in bytes, without the headings that all pools share.
fn bytes(pool: &Arc<PoolMetrics>) -> usize {
    let label = format!("pool=\"{}\"", pool.label);
    page(std::slice::from_ref(pool)).lines().filter(|line| line.contains(&label)).map(|line| line.len() + 1).sum()
}

/// Sets every metric of a pool to numbers of seven digits.
fn fill(pool: &PoolMetrics) {
    const MANY: u64 = 1_234_567;
    ClaimOutcome::ALL.iter().for_each(|outcome| pool.claims(*outcome).increment(MANY));
    ExpiryReason::ALL.iter().for_each(|reason| pool.claims_expired(*reason).increment(MANY));
    UnschedulableReason::ALL.iter().for_each(|reason| pool.workers_unschedulable(*reason).set(1e4));
    UnschedulableReason::ALL.iter().for_each(|reason| pool.workers_unschedulable_idle(*reason).set(1e4));
    let counters = [
        &pool.releases,
        &pool.queue_rejections,
        &pool.worker_updates,
        &pool.claims_lost,
        &pool.workers_lost,
        &pool.lost_workers_deleted,
        &pool.heartbeats,
        &pool.heartbeats_ignored,
        &pool.claims_readopted,
        &pool.claim_revocations,
        &pool.claims_rolled_back,
        &pool.watch_events_dropped,
        &pool.evictions,
        &pool.shard_restarts,
    ];
    counters.into_iter().for_each(|counter| counter.increment(MANY));
    let gauges = [
        &pool.workers_idle,
        &pool.workers_busy,
        &pool.queue_depth,
        &pool.store_lag_seconds,
        &pool.claims_pending,
        &pool.watchers,
        &pool.accounting_mismatch,
    ];
    gauges.into_iter().for_each(|gauge| gauge.set(1e4));
    pool.shard_workers.set([1_000, 1_000, 1_001].into_iter());
    pool.shard_busy_workers.set([1_000, 1_000, 1_001].into_iter());
    for histogram in [&pool.claim_seconds, &pool.queue_wait_seconds, &pool.claim_shards_tried, &pool.wait_seconds] {
        (0..1_000).for_each(|_| histogram.record(1));
    }
}

#[test]
fn counts_are_scraped_with_name_and_help() {
    let exporter = install().unwrap();
    let again = install().unwrap();
    let pool = pool("scraped");
    pool.claims(ClaimOutcome::Created).increment(3);
    pool.claim_seconds.record(30_000);
    pool.claim_shards_tried.record(2);
    pool.wait_seconds.record(1_500);
    pool.workers_busy.set(7.0);
    metrics().store_writes(StoreWriteResult::Gap).increment(1);
    metrics().http_requests(HttpRoute::Release, 200).increment(2);
    metrics().http_requests(HttpRoute::Release, 418).increment(1);
    exporter.upkeep();
    let mut text = Vec::new();
    again.write(&[pool], &mut text).unwrap();
    let text = String::from_utf8(text).unwrap();
    for line in [
        r#"hotpool_claims_total{pool="ns/scraped",outcome="created"} 3"#,
        r#"hotpool_claims_total{pool="ns/scraped",outcome="deadline"} 0"#,
        r#"hotpool_claims_total{pool="none",outcome="invalid"} "#,
        r#"hotpool_claim_seconds_bucket{pool="ns/scraped",le="0.00001"} 0"#,
        r#"hotpool_claim_seconds_bucket{pool="ns/scraped",le="0.00003"} 1"#,
        r#"hotpool_claim_seconds_bucket{pool="ns/scraped",le="+Inf"} 1"#,
        r#"hotpool_claim_seconds_sum{pool="ns/scraped"} 0.00003"#,
        r#"hotpool_claim_shards_tried_bucket{pool="ns/scraped",le="256"} 1"#,
        r#"hotpool_wait_seconds_sum{pool="ns/scraped"} 1.5"#,
        r#"hotpool_workers{state="busy",pool="ns/scraped"} 7"#,
        r#"hotpool_store_writes_total{outcome="gap"} 1"#,
        r#"hotpool_http_requests_total{route="/v1/claims/{ns}/{key}:release",status="200"} 2"#,
        r#"hotpool_http_requests_total{route="/v1/claims/{ns}/{key}:release",status="other"} 1"#,
        "# HELP hotpool_claims_total Claim requests, by outcome.\n# TYPE hotpool_claims_total counter\n",
    ] {
        assert!(text.contains(line), "{line} is not in\n{text}");
    }
}

#[tokio::test]
async fn the_busy_time_of_the_runtime_is_a_counter_of_seconds() {
    let mut text = Vec::new();
    install().unwrap().write(&[], &mut text).unwrap();
    let text = String::from_utf8(text).unwrap();
    assert!(text.contains("# TYPE hotpool_runtime_busy_seconds_total counter\n"), "{text}");
    let seconds = text.lines().find_map(|line| line.strip_prefix("hotpool_runtime_busy_seconds_total ")).unwrap();
    assert!(seconds.parse::<f64>().is_ok_and(|seconds| seconds >= 0.0), "{seconds}");
}

#[test]
fn names_are_unique_and_buckets_grow() {
    for (i, metric) in ALL.iter().enumerate() {
        assert!(ALL[..i].iter().all(|other| other.name != metric.name), "{}", metric.name);
        assert!(metric.help.ends_with('.') && !metric.help.contains(['\\', '\n']), "{}", metric.name);
        assert!(!metric.help.contains("  "), "double blanks in the help text of {}", metric.name);
        if let MetricKind::Histogram(buckets) = metric.kind {
            assert!(buckets.windows(2).all(|pair| pair[0] < pair[1]), "{}", metric.name);
        }
    }
}

#[test]
fn h04_each_metric_of_pools_is_written_once_in_one_block() {
    let of_pools: Vec<_> =
        ALL.iter().filter(|metric| metric.labels.contains(&"pool")).map(|metric| metric.name).collect();
    let written: Vec<_> = POOL_FAMILIES.iter().map(|family| family.name).collect();
    assert_eq!(written, of_pools);
    let pools = ["a", "b", "c"].map(pool);
    pools.iter().for_each(|pool| fill(pool));
    let page = page(&pools);
    let mut families = Vec::new();
    for line in page.lines() {
        match line.strip_prefix("# HELP ") {
            Some(help) => families.push((help.split(' ').next().unwrap(), Vec::new())),
            None if line.starts_with("# TYPE ") => {}
            None => {
                let (name, series) = families.last_mut().unwrap();
                assert!(line.starts_with(*name), "{line} is among the series of {name}");
                series.push(line.rsplit_once(' ').unwrap().0);
            }
        }
    }
    assert_eq!(families.iter().map(|(name, _)| *name).collect::<Vec<_>>(), of_pools, "each family has one heading");
    for (name, mut series) in families {
        let all = series.len();
        series.sort_unstable();
        series.dedup();
        assert_eq!(series.len(), all, "{name} has a series twice");
        for pool in ["a", "b", "c"] {
            assert!(series.iter().any(|series| series.contains(&format!("pool=\"ns/{pool}\""))), "{name} of {pool}");
        }
    }
}

#[test]
fn h04_the_series_of_a_pool_grow_with_its_use() {
    let (idle, used) = (pool("idle-pool"), pool("used-01"));
    fill(&used);
    assert!(bytes(&idle) <= 410, "{}", bytes(&idle));
    // More than any pool shows: every outcome, every defect, and unschedulable workers for every reason, which are a tenth of
    // it. The name has ten bytes.
    assert!(bytes(&used) <= 6_800, "{}", bytes(&used));
    let reasons = page(std::slice::from_ref(&used));
    let reasons = reasons
        .lines()
        .filter(|line| line.starts_with("hotpool_workers") && line.ends_with(" 10000"))
        .filter(|line| !line.contains("\"idle\"") && !line.contains("\"busy\""));
    let reasons: usize = reasons.map(|line| line.len() + 1).sum();
    assert!(bytes(&used) - reasons <= 6_000, "{}", bytes(&used) - reasons);
    // Registered workers alone are not use.
    idle.workers_idle.set(100.0);
    idle.worker_updates.increment(100);
    idle.shard_workers.set([25, 25, 25, 25].into_iter());
    assert!(bytes(&idle) <= 410, "{}", bytes(&idle));
    // The first use shows the series that rules need, even at 0, and everything that was shown stays.
    idle.heartbeats.increment(1);
    let after = page(std::slice::from_ref(&idle));
    for series in [
        r#"claims_total{pool="ns/idle-pool",outcome="overloaded"} 0"#,
        r#"claims_expired_total{pool="ns/idle-pool",reason="ttl"} 0"#,
    ] {
        assert!(after.contains(series), "{series} is not in\n{after}");
    }
    assert!(after.contains(r#"hotpool_claim_seconds_count{pool="ns/idle-pool"} 0"#));
    assert!(!after.contains("hotpool_wait_seconds"), "the others appear with their first amount");
    idle.workers_unschedulable(UnschedulableReason::Lost).set(1.0);
    idle.workers_unschedulable(UnschedulableReason::Lost).set(0.0);
    let series = r#"hotpool_workers_unschedulable{reason="lost",pool="ns/idle-pool"} 0"#;
    assert!(page(&[idle]).contains(series), "a gauge that was shown stays");
}

#[test]
fn h04_a_scrape_of_four_thousand_pools_has_at_most_five_megabytes() {
    let pools: Vec<_> = (0..crate::limits::POOLS_MAX).map(|i| pool(&format!("pool-{i:04}"))).collect();
    pools.iter().take(100).for_each(|pool| fill(pool));
    let page = page(&pools);
    assert!(page.len() <= 5_000_000, "{}", page.len());
    assert!(page.contains(&format!("pool=\"ns/pool-{:04}\"", pools.len() - 1)), "the last pool is included");
}
