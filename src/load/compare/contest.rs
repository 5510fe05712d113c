//! Contest of a comparison: its entries run in turn under one workload, and each is related to the others.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result};
use serde::Serialize;

use super::CompareArgs;
use crate::charts::ChartTone;
use crate::claim_input::TargetPool;
use crate::load_client::LoadOperation;
use crate::pacing::StopSignal;
use crate::report::LoadReport;
use crate::run::{ArrivalModel, RunPlan, run};
use crate::servers::bytes_read;
use crate::url::TargetUrl;

/// Entry of a contest: a target and its load.
pub(super) struct ComparedTarget {
    name: &'static str,
    url: TargetUrl,
    clients: usize,
    in_flight: usize,
    operation: LoadOperation,
    /// Entry that shows what the edge and the disk allow, if there is one.
    limit: Option<&'static str>,
}

impl ComparedTarget {
    pub(super) fn limited_by(self, limit: &'static str) -> Self {
        Self { limit: Some(limit), ..self }
    }
}

/// Results of one entry over all rounds.
#[derive(Debug, Serialize)]
pub struct ComparisonRow {
    /// Name of the entry in the tables.
    pub name: &'static str,
    /// URL of the target.
    pub target: String,
    /// Number of outstanding requests.
    pub in_flight: usize,
    /// Number of claims in one request.
    pub batch: usize,
    /// Claims granted per second, median of the rounds.
    pub claims_per_s: f64,
    /// Median latency in microseconds, median of the rounds.
    pub p50_us: f64,
    /// Processor time of the harness per claim and release in microseconds, median of the rounds.
    pub client_processor_us: f64,
    /// Processor time of the servers per claim and release in microseconds, median of the rounds; 0 if unknown.
    pub server_processor_us: f64,
    /// 99th percentile in microseconds, median of the rounds.
    pub p99_us: f64,
    /// Name of the entry with a bare server that shows what the edge and the disk allow, if there is one.
    pub limit: Option<&'static str>,
    /// Claims granted per second over those of the limit, median of the rounds.
    pub of_limit: Option<f64>,
    /// Bytes that each master has read from its clients, over all rounds.
    pub master_bytes: Vec<u64>,
    /// Report of each round in order.
    pub turns: Vec<LoadReport>,
}

/// Results of all entries under one workload.
#[derive(Debug, Serialize)]
pub struct WorkloadComparison {
    /// Name of the workload.
    pub name: &'static str,
    /// Description of the workload.
    pub about: String,
    /// Results in the order of the entries.
    pub rows: Vec<ComparisonRow>,
}

pub(super) const fn entry(
    name: &'static str,
    url: TargetUrl,
    (clients, in_flight): (usize, usize),
    operation: LoadOperation,
) -> ComparedTarget {
    ComparedTarget { name, url, clients, in_flight, operation, limit: None }
}

/// Runs all entries, once in each round.
pub(super) async fn compare_targets(
    name: &'static str,
    about: &str,
    entries: &[ComparedTarget],
    fleet: TargetPool,
    args: &CompareArgs,
    hosts: &[String],
    stop: &Arc<StopSignal>,
) -> Result<WorkloadComparison> {
    let mut rows: Vec<ComparisonRow> = entries.iter().map(ComparisonRow::new).collect();
    for round in 0..args.rounds {
        let mut order: Vec<usize> = (0..entries.len()).collect();
        if round % 2 == 1 {
            order.reverse();
        }
        for index in order {
            if stop.is_requested() {
                anyhow::bail!("interrupted");
            }
            let ComparedTarget { name, url, clients, in_flight, operation, .. } = &entries[index];
            // Bare servers do not use the cluster.
            let hosts = if matches!(url, TargetUrl::Echo(_)) { &[] } else { hosts };
            let bytes_before = bytes_read(hosts).await?;
            let plan = RunPlan {
                command: "compare",
                parameters: serde_json::json!({"target": url, "in_flight": in_flight, "batch": operation.claims}),
                fleet,
                clients: *clients,
                duration: Duration::from_secs_f64(args.turn_s),
                processes: 1,
                churn: None,
                failover: None,
            };
            let report =
                run(url, None, plan, ArrivalModel::ClosedLoop(*in_flight, *operation), stop).await.context(*name)?;
            rows[index].add(report, &bytes_before, &bytes_read(hosts).await?);
        }
    }
    rows.iter_mut().for_each(ComparisonRow::summarize);
    let mut contest = WorkloadComparison { name, about: about.to_owned(), rows };
    contest.relate_to_limits();
    Ok(contest)
}

impl ComparisonRow {
    fn new(entry: &ComparedTarget) -> Self {
        Self {
            name: entry.name,
            target: entry.url.to_string(),
            in_flight: entry.in_flight,
            batch: entry.operation.claims,
            claims_per_s: 0.0,
            p50_us: 0.0,
            p99_us: 0.0,
            client_processor_us: 0.0,
            server_processor_us: 0.0,
            limit: entry.limit,
            of_limit: None,
            master_bytes: Vec::new(),
            turns: Vec::new(),
        }
    }

    fn add(&mut self, report: LoadReport, bytes_before: &[u64], bytes_after: &[u64]) {
        self.master_bytes.resize(bytes_after.len(), 0);
        for (sum, (before, after)) in self.master_bytes.iter_mut().zip(bytes_before.iter().zip(bytes_after)) {
            *sum += after.saturating_sub(*before);
        }
        self.turns.push(report);
    }

    fn summarize(&mut self) {
        let of = |figure: fn(&LoadReport) -> f64| median(self.turns.iter().map(figure).collect());
        self.claims_per_s = of(|report| report.throughput_per_s);
        self.p50_us = of(|report| report.latency_us.p50);
        self.p99_us = of(|report| report.latency_us.p99);
        self.client_processor_us = of(|report| report.client_processor_us_per_claim.unwrap_or(0.0));
        self.server_processor_us = of(|report| report.server_processor_us_per_claim.unwrap_or(0.0));
    }

    /// Colour of the target's edge.
    pub(super) fn tone(&self) -> ChartTone {
        self.target.parse().map_or(ChartTone::Ink, |url: TargetUrl| url.tone())
    }

    /// Ratio of the busiest master's bytes to the mean.
    pub(super) fn imbalance(&self) -> f64 {
        let mean = self.master_bytes.iter().sum::<u64>() as f64 / self.master_bytes.len().max(1) as f64;
        self.master_bytes.iter().max().map_or(0.0, |max| *max as f64 / mean.max(1.0))
    }
}

pub(super) fn median(mut values: Vec<f64>) -> f64 {
    values.sort_unstable_by(f64::total_cmp);
    let middle = values.len() / 2;
    match values.len() {
        0 => 0.0,
        even if even % 2 == 0 => f64::midpoint(values[middle - 1], values[middle]),
        _ => values[middle],
    }
}

impl WorkloadComparison {
    /// Rows whose names begin with `name`.
    fn rows_named<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a ComparisonRow> {
        self.rows.iter().filter(move |row| row.name.starts_with(name))
    }

    /// Relates each row that has a limit to it.
    fn relate_to_limits(&mut self) {
        let rate = |report: &LoadReport| report.throughput_per_s;
        let names: Vec<&str> = self.rows.iter().map(|row| row.name).collect();
        let is_known = |row: &ComparisonRow| row.limit.is_none_or(|limit| names.contains(&limit));
        assert!(self.rows.iter().all(is_known), "each limit is a row: {names:?}");
        let relate = |row: &ComparisonRow| {
            let limit = self.rows.iter().find(|limit| Some(limit.name) == row.limit)?;
            let pairs = row.turns.iter().zip(&limit.turns);
            let ratios: Vec<f64> = pairs.map(|(own, limit)| rate(own) / rate(limit)).collect();
            // A bare server that grants nothing limits nothing.
            ratios.iter().all(|ratio| ratio.is_finite()).then(|| median(ratios))
        };
        let related: Vec<Option<f64>> = self.rows.iter().map(relate).collect();
        self.rows.iter_mut().zip(related).for_each(|(row, of_limit)| row.of_limit = of_limit);
    }

    /// Median over the rounds of a figure of the row with this name; 0 without such a row.
    pub(super) fn figure(&self, name: &str, figure: fn(&LoadReport) -> f64) -> f64 {
        median(self.rows.iter().filter(|row| row.name == name).flat_map(|row| row.turns.iter().map(figure)).collect())
    }

    /// Median over the rounds of the ratio between two groups of rows, each represented by its best row.
    pub(super) fn ratio(
        &self,
        [above, below]: [&str; 2],
        figure: fn(&LoadReport) -> f64,
        best: fn(f64, f64) -> f64,
    ) -> f64 {
        let rounds = self.rows.first().map_or(0, |row| row.turns.len());
        let of = |name: &str, round: usize| {
            self.rows_named(name).map(|row| figure(&row.turns[round])).reduce(best).unwrap_or(0.0)
        };
        let ratio = |round| match of(below, round) {
            nothing if nothing <= 0.0 => 0.0,
            below => of(above, round) / below,
        };
        median((0..rounds).map(ratio).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn medians() {
        assert_eq!([vec![], vec![3.0], vec![9.0, 1.0], vec![5.0, 1.0, 2.0]].map(median), [0.0, 3.0, 5.0, 2.0]);
    }

    #[test]
    fn ratios_are_those_of_the_rounds() {
        let row = |name, rates: [f64; 3]| {
            let report = |rate| LoadReport {
                throughput_per_s: rate,
                ..LoadReport::new("compare", "r", serde_json::Value::Null)
            };
            let entry = ComparedTarget {
                name,
                url: TargetUrl::Inproc,
                clients: 1,
                in_flight: 1,
                operation: LoadOperation::whole_workers(1),
                limit: (name == "a").then_some("b, 2"),
            };
            ComparisonRow { turns: rates.map(report).to_vec(), ..ComparisonRow::new(&entry) }
        };
        let rows = vec![row("a", [10.0, 30.0, 8.0]), row("b, 1", [1.0, 1.0, 1.0]), row("b, 2", [0.5, 2.0, 4.0])];
        let mut contest = WorkloadComparison { name: "x", about: String::new(), rows };
        assert_eq!(contest.ratio(["a", "b"], |report| report.throughput_per_s, f64::max), 10.0);
        contest.relate_to_limits();
        let of_limit: Vec<_> = contest.rows.iter().map(|row| row.of_limit).collect();
        assert_eq!(of_limit, [Some(15.0), None, None]);
        assert_eq!(contest.ratio(["a", "c"], |report| report.throughput_per_s, f64::max), 0.0, "no row is named c");
    }
}
