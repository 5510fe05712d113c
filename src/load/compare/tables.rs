//! Tables of a comparison: measurements against goals, as sections of a report.

use super::{
    ComparisonReport, ComparisonRow, DiskComparison, PerformanceGoal, RESP_DEEPEST, SPOP, STREAMS_DEEPEST,
    WorkloadComparison,
};
use crate::charts::{BarChart, ChartBar, ChartTone, format_number};
use crate::html_report::{ReportChart, ReportPage, ReportSection, ReportVerdict, table_row};
use crate::report::LoadReport;
use crate::run_report::{NOTHING_WRONG, NamedRun, check_cell, describe_problem, run_sections};

/// Name of the chart of what each master read, which servers without masters are left out of.
const MASTERS: &str = "masters";

impl WorkloadComparison {
    fn section(&self) -> ReportSection {
        let mut table = vec![table_row([
            "",
            "check",
            "claims/s",
            "of its limit",
            "p50 us",
            "p99 us",
            "client CPU us",
            "server CPU us",
            "round trips per claim",
            "per release",
            "retries",
            "refused",
            "errors",
            "masters max/mean",
        ])];
        for row in &self.rows {
            let last = row.turns.last();
            let trips =
                |figure: fn(&LoadReport) -> Option<f64>| last.and_then(figure).map_or_else(String::new, format_number);
            let sum = |figure: fn(&LoadReport) -> u64| row.turns.iter().map(figure).sum::<u64>().to_string();
            let worst = row.turns.iter().map(check_cell).find(|check| *check != "ok").unwrap_or("ok");
            table.push(vec![
                row.name.to_owned(),
                worst.to_owned(),
                format_number(row.claims_per_s),
                row.of_limit.map_or_else(String::new, format_number),
                format_number(row.p50_us),
                format_number(row.p99_us),
                format_number(row.client_processor_us),
                if row.server_processor_us > 0.0 { format_number(row.server_processor_us) } else { String::new() },
                trips(|report| report.round_trips_per_claim),
                trips(|report| report.round_trips_per_release),
                match last.and_then(|report| report.retries) {
                    Some(_) => sum(|report| report.retries.unwrap_or(0)),
                    None => String::new(),
                },
                sum(|report| report.claims_refused),
                sum(|report| report.errors),
                if row.master_bytes.is_empty() { String::new() } else { format!("{:.2}", row.imbalance()) },
            ]);
        }
        let bars = |name: &'static str, title: &str, unit: &str, figure: fn(&ComparisonRow) -> f64| {
            let measured = self.rows.iter().filter(|row| name != MASTERS || !row.master_bytes.is_empty());
            let rows = measured.map(|row| ChartBar { name: row.name.to_owned(), tone: row.tone(), value: figure(row) });
            let chart = BarChart { title: title.to_owned(), unit: unit.to_owned(), bars: rows.collect() };
            ReportChart { name, picture: chart.draw() }
        };
        let mut charts = vec![
            bars("rate", "Claims granted", "claims/s, median of the rounds", |row| row.claims_per_s),
            bars("p99", "99th percentile of claims", "microseconds, median of the rounds", |row| row.p99_us),
        ];
        if self.rows.iter().any(|row| !row.master_bytes.is_empty()) {
            let title = "Load of the fullest master over the mean";
            charts.push(bars(MASTERS, title, "max/mean of bytes read", ComparisonRow::imbalance));
        }
        let terminal_columns = Some(&["claims/s", "of its limit", "p50 us", "p99 us", "check"][..]);
        ReportSection { title: self.name.to_owned(), text: self.about.clone(), table, terminal_columns, charts }
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
        let beside = theirs.strip_suffix(", ").map_or_else(|| theirs.to_owned(), |name| format!("the best of {name}"));
        at_least(&format!("{ours}: pairs/s over {beside}"), wanted, found)
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
    /// Report for people as one page.
    #[must_use]
    pub fn page(&self) -> ReportPage {
        let held = self.promises.iter().filter(|goal| goal.held).count();
        let goals = format!("Hotpool reached {held} of {} goals.", self.promises.len());
        let problems =
            self.turns().filter_map(|(name, turn)| Some((turn.has_violations(), describe_problem(name, turn)?)));
        let text = match problems.min_by_key(|(is_violated, _)| !is_violated) {
            Some((_, problem)) => problem,
            None if self.knee.violated => "The check of the sweep failed.".to_owned(),
            None => format!("{goals} {NOTHING_WRONG}"),
        };
        let verdict = ReportVerdict { is_good: self.exit_code() == 0, text };
        let parameters = serde_json::to_value(&self.parameters).unwrap_or_default();
        ReportPage { title: "Comparison".into(), verdict, sections: self.sections(), parameters }
    }

    fn sections(&self) -> Vec<ReportSection> {
        let mut table = vec![table_row(["what", "met", "goal", "measured"])];
        for PerformanceGoal { what, wanted, found, held } in &self.promises {
            let met = if *held { "yes" } else { "no" };
            table.push(vec![what.clone(), met.to_owned(), wanted.clone(), format_number(*found)]);
        }
        let text = match self.parameters.rounds {
            1 => "Figures of one round.".to_owned(),
            rounds => format!("Medians of {rounds} rounds; ratios are medians of the rounds' ratios."),
        };
        let mut sections = vec![ReportSection { title: "Goals".into(), text, table, ..ReportSection::default() }];
        sections.extend(self.contests.iter().map(WorkloadComparison::section));
        sections.push(self.knee.section());
        let rows = self.contests.iter().flat_map(|contest| &contest.rows);
        let deepest = rows.filter(|row| row.name == RESP_DEEPEST).find_map(|row| row.turns.last());
        let runs = [
            ("RESP at half the knee, acknowledged from memory", self.half_knee.as_ref()),
            ("RESP, durable, 1 024 in flight", deepest),
        ];
        let named = |(name, report): (&str, Option<_>)| {
            Some(NamedRun { name: name.to_owned(), tone: ChartTone::Resp, report: report? })
        };
        let runs: Vec<NamedRun<'_>> = runs.into_iter().filter_map(named).collect();
        sections.extend(run_sections(&runs));
        sections
    }
}
