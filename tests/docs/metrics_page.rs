//! Table of metrics: `docs/METRICS.md` follows from the code, and documents name existing metrics.

use std::collections::BTreeSet;
use std::fmt::Write as _;

use hotpool::metrics::{
    ALL, ClaimOutcome, ExcessOutcome, ExpiryReason, GrpcCode, GrpcMethod, HttpRoute, MetricKind, POOL_FAMILIES,
    RequestRefusal, RespCloseReason, RespCommand, RespOutcome, SeriesVisibility, ShardState, StoreWriteResult,
};
use hotpool::model::UnschedulableReason;

use crate::{documents, root, text};

/// Set to 1, it writes what is generated instead of comparing.
const BLESS: &str = "HOTPOOL_BLESS";

/// Returns docs/METRICS.md as it follows from the code.
fn metrics_page() -> String {
    let mut page = String::from(
        "# Metrics\n\n\
         All metrics of `GET /metrics`, in Prometheus' text format. This page is generated from `src/metrics/mod.rs`; after\n\
         a change there run `HOTPOOL_BLESS=1 cargo test --test docs`.\n\n\
         | metric | kind | labels | meaning |\n|---|---|---|---|\n",
    );
    for metric in ALL {
        let kind = match metric.kind {
            MetricKind::Counter => "counter",
            MetricKind::Gauge => "gauge",
            MetricKind::Histogram(_) => "histogram",
        };
        let labels: Vec<String> = metric.labels.iter().map(|label| format!("`{label}`")).collect();
        writeln!(page, "| `{}` | {kind} | {} | {} |", metric.name, labels.join(" "), metric.help).unwrap();
    }
    let list = |values: Vec<&str>| values.iter().map(|value| format!("`{value}`")).collect::<Vec<_>>().join(" ");
    write!(
        page,
        "\n## Labels\n\n\
         | label | metric | values |\n|---|---|---|\n\
         | `pool` | all metrics of pools | `namespace/pool`; `none` for claims that name no existing pool |\n\
         | `outcome` | `hotpool_claims_total` | {} |\n\
         | `outcome` | `hotpool_store_writes_total` | {} |\n\
         | `state` | `hotpool_workers` | `idle` `busy` {} |\n\
         | `reason` | `hotpool_workers_unschedulable` | {} |\n\
         | `reason` | `hotpool_claims_expired_total` | {} |\n\
         | `state` | `hotpool_shards` | {} |\n\
         | `route` | `hotpool_http_requests_total` | {} |\n\
         | `status` | `hotpool_http_requests_total` | the HTTP status, or `other` |\n\
         | `reason` | `hotpool_requests_refused_total` | {} |\n\
         | `outcome` | `hotpool_http_excess_connections_total` | {} |\n\
         | `method` | `hotpool_grpc_requests_total` | {} |\n\
         | `code` | `hotpool_grpc_requests_total` | {} |\n\
         | `command` | `hotpool_resp_commands_total` | {} |\n\
         | `outcome` | `hotpool_resp_commands_total` | {} |\n\
         | `reason` | `hotpool_resp_connections_ended_total` | {} |\n",
        list(ClaimOutcome::ALL.iter().map(|outcome| outcome.as_str()).collect()),
        list(StoreWriteResult::ALL.iter().map(|result| result.as_str()).collect()),
        list(UnschedulableReason::ALL.iter().map(|reason| reason.as_str()).collect()),
        list(UnschedulableReason::ALL.iter().map(|reason| reason.as_str()).collect()),
        list(ExpiryReason::ALL.iter().map(|reason| reason.as_str()).collect()),
        list(ShardState::ALL.iter().map(|state| state.as_str()).collect()),
        list(HttpRoute::ALL.iter().map(|route| route.as_str()).collect()),
        list(RequestRefusal::ALL.iter().map(|reason| reason.as_str()).collect()),
        list(ExcessOutcome::ALL.iter().map(|outcome| outcome.as_str()).collect()),
        list(GrpcMethod::ALL.iter().map(|method| method.as_str()).collect()),
        list(GrpcCode::ALL.iter().map(|code| code.as_str()).collect()),
        list(RespCommand::ALL.iter().map(|command| command.as_str()).collect()),
        list(RespOutcome::ALL.iter().map(|outcome| outcome.as_str()).collect()),
        list(RespCloseReason::ALL.iter().map(|reason| reason.as_str()).collect()),
    )
    .unwrap();
    writeln!(page, "| `version` | `hotpool_build_info` | the version of the program |").unwrap();
    page.push_str(&pool_series());
    page.push_str(
        "\n## The process\n\n\
         `process_cpu_seconds_total`, `process_resident_memory_bytes`, `process_virtual_memory_bytes`,\n\
         `process_open_fds`, `process_max_fds`, `process_threads` and `process_start_time_seconds` have the names that\n\
         Prometheus' client libraries give them.\n\n\
         ## Equivalents of metrics of other schedulers\n\n\
         | other schedulers | Hotpool |\n|---|---|\n\
         | time to acquire a lock | `hotpool_shard_queue_wait_seconds`: a shard has one writer, so no worker is locked |\n\
         | collision or conflict rate | 0 by construction; the nearest are `hotpool_fence_refusals_total`, and \
         `hotpool_store_writes_total` with `gap` and `fenced` |\n\
         | cache hit rate, staleness | 1, because every answer is from memory; `hotpool_store_lag_seconds` is the lag of the store |\n\
         | scheduling duration | `hotpool_claim_seconds` |\n\
         | distribution of workers | `hotpool_shard_workers_min` and `hotpool_shard_busy_workers_min`, each with `_mean` and `_max` |\n\
         | lock operations per batch | `hotpool_worker_updates_total` divided by `hotpool_claims_total` |\n",
    );
    page.push_str("\n## Buckets\n\n| histogram | upper bounds |\n|---|---|\n");
    for metric in ALL {
        if let MetricKind::Histogram(buckets) = metric.kind {
            let bounds: Vec<String> = buckets.iter().map(ToString::to_string).collect();
            writeln!(page, "| `{}` | {} |", metric.name, bounds.join(", ")).unwrap();
        }
    }
    page
}

/// Returns the section about the life of the series of a pool.
fn pool_series() -> String {
    const CLAIMS: &str = "hotpool_claims_total";
    let mut section = String::from(
        "\n## The series of a pool\n\n\
         A series of a pool appears when it is first needed, stays whatever its value until the pool is deleted, and disappears\n\
         with it: no later scrape shows it, and a new pool under the same name counts from 0. An idle pool, whose workers are\n\
         registered and unused, has 8 lines, under 500 bytes if its name (`namespace/pool`) has up to 20. A pool in use has 3 to\n\
         5 kB, and up to 6 if every value has occurred and its name has up to 10 bytes. Unschedulable workers add 0.1 kB per\n\
         reason, and each further byte of the name one byte per line.\n\n\
         | appears | metric |\n|---|---|\n",
    );
    for visibility in SeriesVisibility::ALL {
        let metrics = POOL_FAMILIES.iter().filter(|family| family.visibility == visibility && family.name != CLAIMS);
        let mut names: Vec<String> = metrics.map(|family| format!("`{}`", family.name)).collect();
        let outcomes: Vec<String> = ClaimOutcome::ALL
            .iter()
            .filter(|outcome| outcome.visibility() == visibility)
            .map(|outcome| format!("`{}`", outcome.as_str()))
            .collect();
        if visibility == SeriesVisibility::WithPool {
            names[0] += " with `idle` `busy`";
        } else if visibility == SeriesVisibility::WhenNeeded {
            names.push("`hotpool_workers` with the other states".to_owned());
        }
        if !outcomes.is_empty() {
            names.push(format!("`{CLAIMS}` with {}", outcomes.join(" ")));
        }
        writeln!(section, "| {} | {} |", visibility.as_str(), names.join(", ")).unwrap();
    }
    section.push_str(
        "\nThe use of a pool begins when a claim is requested, ends or is recovered, or when a worker sends a heartbeat. A series that\n\
         appears *with the pool* or *with its use* starts with everything that was counted before the first scrape that shows it:\n\
         often 0, but the event that began the use is included. Prometheus sees no increase from an absent series to its first\n\
         value, so `increase()` and `rate()` never include that part. A series that appears *when needed* starts with its first\n\
         count, so they never include the first. A rule that must see a single event uses one of the other series, as the rules of\n\
         `config/prometheus/alerts.yml` do, and misses it only before the first scrape. An absent series of an existing pool is 0:\n\
         `sum(hotpool_claims_rolled_back_total{pool=\"demo/warm\"}) or vector(0)`.\n",
    );
    section
}

#[test]
fn the_metrics_page_follows_from_the_code() {
    let path = root().join("docs/METRICS.md");
    let page = metrics_page();
    if std::env::var_os(BLESS).is_some_and(|bless| bless == "1") {
        std::fs::write(&path, &page).unwrap();
    }
    let found = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(
        found == page,
        "docs/METRICS.md differs from src/metrics/mod.rs; run: {BLESS}=1 cargo test --test docs\n\
         first difference: {:?}",
        page.lines().zip(found.lines().chain(std::iter::repeat(""))).find(|(ours, theirs)| ours != theirs)
    );
}

#[test]
fn every_metric_that_a_document_names_exists() {
    let names: BTreeSet<_> = ALL.iter().map(|metric| metric.name).collect();
    let files = ["config/prometheus/alerts.yml", "config/grafana/hotpool.json"].map(str::to_owned);
    let is_old = |document: &String| ["docs/CHANGELOG.md", "docs/benchmark-log.md"].contains(&document.as_str());
    let mut gone = BTreeSet::new();
    for document in documents().into_iter().filter(|document| !is_old(document)).chain(files) {
        let content = text(&document);
        for word in content.split(|c: char| !c.is_ascii_alphanumeric() && c != '_') {
            let base = ["_bucket", "_sum", "_count"].iter().find_map(|end| word.strip_suffix(end)).unwrap_or(word);
            if word.starts_with("hotpool_") && !names.contains(word) && !names.contains(base) {
                gone.insert(format!("{document}: {word}"));
            }
        }
    }
    assert!(gone.is_empty(), "metrics that the code does not have: {gone:?}");
}
