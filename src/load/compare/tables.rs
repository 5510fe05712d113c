//! Tables of a comparison: measurements against goals, as sections of a report.

use anyhow::Result;

use super::{
    ComparisonReport, ComparisonRow, DiskComparison, PerformanceGoal, RESP_DEEPEST, SPOP, STREAMS_DEEPEST,
    WorkloadComparison,
};
use crate::charts::{self, format_number};
use crate::html_report::{ReportSection, run_sections, table_row};
use crate::report::LoadReport;

impl WorkloadComparison {
    fn section(&self) -> Result<ReportSection> {
        let mut table = vec![table_row([
            "",
            "claims/s",
            "of its limit",
            "p50 us",
            "p99 us",
            "client CPU us",
            "server CPU us",
            "round trips a claim",
            "a release",
            "retries",
            "refused",
            "errors",
            "masters max/mean",
            "check",
        ])];
        for row in &self.rows {
            let last = row.turns.last();
            let trips =
                |figure: fn(&LoadReport) -> Option<f64>| last.and_then(figure).map_or_else(String::new, format_number);
            let sum = |figure: fn(&LoadReport) -> u64| row.turns.iter().map(figure).sum::<u64>().to_string();
            let violated = row.turns.iter().any(LoadReport::has_violations);
            table.push(vec![
                row.name.to_owned(),
                format_number(row.claims_per_s),
                row.of_limit.map_or_else(String::new, format_number),
                format_number(row.p50_us),
                format_number(row.p99_us),
                format_number(row.client_processor_us),
                if row.server_processor_us > 0.0 { format_number(row.server_processor_us) } else { String::new() },
                trips(|report| report.round_trips_per_claim),
                trips(|report| report.round_trips_per_release),
                sum(|report| report.retries.unwrap_or(0)),
                sum(|report| report.claims_refused),
                sum(|report| report.errors),
                if row.master_bytes.is_empty() { String::new() } else { format!("{:.2}", row.imbalance()) },
                if violated { "VIOLATED" } else { "ok" }.to_owned(),
            ]);
        }
        let bars = |figure: fn(&ComparisonRow) -> f64| {
            self.rows.iter().map(|row| (row.name.to_owned(), figure(row))).collect::<Vec<_>>()
        };
        let mut charts = vec![
            charts::bar_chart(
                "claims granted per second",
                "claims/s, median of the rounds",
                &bars(|row| row.claims_per_s),
            )?,
            charts::bar_chart("99th percentile", "us, median of the rounds", &bars(|row| row.p99_us))?,
        ];
        if self.rows.iter().any(|row| !row.master_bytes.is_empty()) {
            charts.push(charts::bar_chart(
                "load of the fullest master over the mean",
                "max/mean of bytes read",
                &bars(ComparisonRow::imbalance),
            )?);
        }
        Ok(ReportSection { title: self.name.to_owned(), text: self.about.clone(), table, charts })
    }
}

/// Compares measurements with the performance goals. `half_knee` is `None` if no rate was sustained.
pub(super) fn promises(
    durable: &DiskComparison,
    pairs: &WorkloadComparison,
    burst: &WorkloadComparison,
    half_knee: Option<&LoadReport>,
) -> Vec<PerformanceGoal> {
    let (ours, lua) = ("hotpool, RESP, 1 024", "redis-lua, 1 024");
    let rate = |report: &LoadReport| report.throughput_per_s;
    let p50 = |report: &LoadReport| report.latency_us.p50;
    let p99 = |report: &LoadReport| report.latency_us.p99;
    let at_least = |what: &str, wanted: f64, found: f64| PerformanceGoal {
        what: what.to_owned(),
        wanted: format!(">= {wanted}"),
        found,
        held: found >= wanted,
    };
    let at_most = |what: &str, wanted: f64, found: f64| PerformanceGoal {
        what: what.to_owned(),
        wanted: format!("<= {wanted}"),
        found,
        held: found > 0.0 && found <= wanted,
    };
    let beside_postgres = |ours: &str, theirs: &str, wanted: f64| {
        let found = durable.contest.ratio([ours, theirs], rate, f64::max);
        at_least(&format!("{ours}: pairs/s over {theirs}"), wanted, found)
    };
    let bare_p50_us = durable.bare_p50_us;
    let lone_p50 = |report: &LoadReport| report.latency_us.p50;
    let over_disk = durable.contest.figure("hotpool, HTTP, 1 client", lone_p50) / bare_p50_us.max(f64::MIN_POSITIVE);
    // Without a measurement the goal is missed.
    let at_half = |figure: fn(&LoadReport) -> f64| half_knee.map_or(0.0, figure);
    vec![
        beside_postgres("hotpool, HTTP, 1 client", "postgres, 1 client", 2.0),
        beside_postgres("hotpool, HTTP, 16 clients", "postgres, 16 clients", 2.5),
        beside_postgres("hotpool, HTTP, 64 clients", "postgres, 64 clients", 4.0),
        beside_postgres("hotpool, RESP, 16 clients", "postgres, 16 clients", 6.0),
        beside_postgres(STREAMS_DEEPEST, "postgres, ", 20.0),
        at_most(
            &format!("hotpool, HTTP, 1 client: claim p50 over a bare write and sync ({bare_p50_us:.0} us)"),
            1.55,
            over_disk,
        ),
        at_least(
            "durable, RESP with 1 024 in flight: claims/s over redis-spop's best",
            10.0,
            pairs.ratio([ours, SPOP], rate, f64::max),
        ),
        at_least(
            "durable, RESP: claims/s over redis-lua's at equal depth",
            3.0,
            pairs.ratio([ours, lua], rate, f64::max),
        ),
        at_most("durable, RESP: p99 over redis-spop's best", 1.0, pairs.ratio([ours, SPOP], p99, f64::min)),
        at_most("durable, RESP: p99 over redis-lua's at equal depth", 1.0, pairs.ratio([ours, lua], p99, f64::min)),
        at_least(
            "a burst of 100 on 40 workers: redis-lock's best time over RESP's",
            100.0,
            burst.ratio(["redis-lock", "hotpool, RESP"], p50, f64::min),
        ),
        at_least(
            "a burst of 100 on 40 workers: redis-batch's best time over RESP's",
            10.0,
            burst.ratio(["redis-batch", "hotpool, RESP"], p50, f64::min),
        ),
        at_most("RESP at half the knee, acknowledged from memory: p99, us", 1_000.0, at_half(p99)),
        at_most(
            "RESP at half the knee, acknowledged from memory: p99.9, us",
            5_000.0,
            at_half(|report| report.latency_us.p999),
        ),
    ]
}

impl ComparisonReport {
    /// Converts the comparison to report sections.
    ///
    /// # Errors
    /// Fails if a chart cannot be drawn.
    pub fn sections(&self) -> Result<Vec<ReportSection>> {
        let mut table = vec![table_row(["what", "goal", "measured", "met"])];
        for PerformanceGoal { what, wanted, found, held } in &self.promises {
            table.push(vec![
                what.clone(),
                wanted.clone(),
                format_number(*found),
                if *held { "yes" } else { "no" }.to_owned(),
            ]);
        }
        let text = format!("Medians of {} rounds; ratios are medians of the rounds' ratios.", self.parameters.rounds);
        let mut sections = vec![ReportSection { title: "Goals".into(), text, table, charts: Vec::new() }];
        for contest in &self.contests {
            sections.push(contest.section()?);
        }
        sections.push(self.knee.section()?);
        if let Some(report) = &self.half_knee {
            sections.extend(run_sections(&[("RESP at half the knee, acknowledged from memory".to_owned(), report)])?);
        }
        let rows = self.contests.iter().flat_map(|contest| &contest.rows);
        let deepest = rows.filter(|row| row.name == RESP_DEEPEST).find_map(|row| row.turns.last());
        if let Some(report) = deepest {
            sections
                .extend(run_sections(&[("RESP, durable, 1 024 in flight".to_owned(), report)])?.into_iter().skip(1));
        }
        Ok(sections)
    }
}
