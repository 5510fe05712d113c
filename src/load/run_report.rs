//! Report of runs for people: side by side, then each over time.

use std::fmt::Write as _;

use super::charts::{
    AxisUnit, BarChart, ChartAxis, ChartBar, ChartMark, ChartSeries, ChartSize, ChartTone, LineChart, LineStroke,
    MarkValue, format_count, format_number, format_us, percentile_value,
};
use super::html_report::{ReportChart, ReportPage, ReportSection, ReportVerdict, table_row};
use super::report::{LatencySummary, LoadReport};
use super::timeline::TimelineSlice;

/// Run with the name under which it is shown.
#[derive(Debug)]
pub struct NamedRun<'a> {
    /// Name of what was loaded, and over which edge.
    pub name: String,
    /// Colour of the edge.
    pub tone: ChartTone,
    /// Report of the run.
    pub report: &'a LoadReport,
}

/// Number of runs whose distributions one chart can show.
const DISTRIBUTIONS_MAX: usize = 8;
/// Number of shards up to which each has a bar.
const SHARD_BARS_MAX: usize = 4;
/// Number of shards up to which each has a point of its own.
const SHARD_POINTS_MAX: usize = 128;
/// Statement that a check found nothing.
pub const NOTHING_WRONG: &str = "Every answer was checked, and none was wrong.";

/// Report of runs as one page.
#[must_use]
pub fn run_page(title: &str, runs: &[NamedRun<'_>], parameters: serde_json::Value) -> ReportPage {
    ReportPage { title: title.to_owned(), verdict: run_verdict(runs), sections: run_sections(runs), parameters }
}

/// Violations that a run found, in words; none if there are none.
#[must_use]
pub fn describe_violations(report: &LoadReport) -> Option<String> {
    let faults = &report.faults;
    let counts = [
        ("grants of a worker that was held", faults.double_claims),
        ("fences that did not grow", faults.old_fences),
        ("grants of unknown workers", faults.unknown_workers),
        ("workers missing or not idle at the end", report.leaked.unwrap_or(0)),
    ];
    let found: Vec<String> =
        counts.iter().filter(|(_, count)| *count > 0).map(|(what, count)| format!("{what}: {count}")).collect();
    (!found.is_empty()).then(|| found.join(", "))
}

/// Describes what is wrong with a run or missing from it; none if every answer was checked and right.
#[must_use]
pub fn describe_problem(name: &str, report: &LoadReport) -> Option<String> {
    if let Some(violations) = describe_violations(report) {
        return Some(format!("The check failed. {name}: {violations}."));
    }
    let reason = match report.failures.first() {
        Some(failure) => failure.clone(),
        None if report.interrupted => "interrupted".to_owned(),
        None if report.claims_ok == 0 => "no claim was granted".to_owned(),
        None if report.leaked.is_none() => "not every request was answered, so the check is not finished".to_owned(),
        None => return None,
    };
    Some(format!("{name} is not complete: {reason}."))
}

fn run_verdict(runs: &[NamedRun<'_>]) -> ReportVerdict {
    // Violations come before what is only missing.
    let worst =
        runs.iter().filter_map(|run| Some((run.report.has_violations(), describe_problem(&run.name, run.report)?)));
    if let Some((_, text)) = worst.min_by_key(|(is_violated, _)| !is_violated) {
        return ReportVerdict { is_good: false, text };
    }
    let rate = |run: &NamedRun<'_>| format!("{} claims/s", format_number(run.report.throughput_per_s));
    let p99 = |run: &NamedRun<'_>| format_us(run.report.latency_us.p99);
    let mut text = match runs {
        [] => "Nothing was loaded.".to_owned(),
        [run] => format!(
            "{}: {} claims in {:.1} s, which is {}, with a 99th percentile of {}.",
            run.name,
            format_count(run.report.claims_ok),
            run.report.duration_s,
            rate(run),
            p99(run)
        ),
        runs => {
            let by_rate = |one: &&NamedRun<'_>, two: &&NamedRun<'_>| {
                one.report.throughput_per_s.total_cmp(&two.report.throughput_per_s)
            };
            let by_p99 = |one: &&NamedRun<'_>, two: &&NamedRun<'_>| {
                one.report.latency_us.p99.total_cmp(&two.report.latency_us.p99)
            };
            let fastest =
                runs.iter().max_by(by_rate).map_or_else(String::new, |run| format!("{} ({})", rate(run), run.name));
            let slowest =
                runs.iter().max_by(by_p99).map_or_else(String::new, |run| format!("{} ({})", p99(run), run.name));
            format!("{} runs: at most {fastest}; the 99th percentile was at most {slowest}.", runs.len())
        }
    };
    let sum = |figure: fn(&LoadReport) -> u64| runs.iter().map(|run| figure(run.report)).sum::<u64>();
    let (refused, errors) = (sum(|report| report.claims_refused), sum(|report| report.errors));
    if refused > 0 {
        let _ = write!(text, " Refused for lack of capacity: {}.", format_count(refused));
    }
    if errors > 0 {
        let _ = write!(text, " Failed requests: {}.", format_count(errors));
    }
    // Several processes each check what they got themselves.
    let is_shared = |run: &NamedRun<'_>| run.report.parameters["processes"].as_u64() > Some(1);
    if runs.iter().any(is_shared) {
        text.push_str(" Every process checked its own grants, and none was wrong.");
    } else if !runs.is_empty() {
        let _ = write!(text, " {NOTHING_WRONG}");
    }
    ReportVerdict { is_good: !runs.is_empty(), text }
}

/// Sections that compare runs side by side, then show each over time.
#[must_use]
pub fn run_sections(runs: &[NamedRun<'_>]) -> Vec<ReportSection> {
    if runs.is_empty() {
        return Vec::new();
    }
    let mut table = vec![table_row([
        "",
        "check",
        "claims/s",
        "refused",
        "errors",
        "p50 us",
        "p99 us",
        "p99.9 us",
        "max us",
        "round trips per claim",
    ])];
    for NamedRun { name, report, .. } in runs {
        let LatencySummary { p50, p99, p999, max, .. } = report.latency_us;
        let mut cells = vec![name.clone(), check_cell(report).to_owned(), format_number(report.throughput_per_s)];
        cells.extend([report.claims_refused, report.errors].map(format_count));
        cells.extend([p50, p99, p999, max].map(format_number));
        cells.push(report.round_trips_per_claim.map_or_else(String::new, format_number));
        table.push(cells);
    }
    let mut charts = Vec::new();
    if runs.len() > 1 {
        let bars = |title: &str, unit: &str, figure: fn(&LoadReport) -> f64| {
            let bar =
                |run: &NamedRun<'_>| ChartBar { name: run.name.clone(), tone: run.tone, value: figure(run.report) };
            BarChart { title: title.into(), unit: unit.into(), bars: runs.iter().map(bar).collect() }.draw()
        };
        let rate = bars("Claims granted", "claims/s", |report| report.throughput_per_s);
        charts.push(ReportChart { name: "rate", picture: rate });
        let p99 = bars("99th percentile of claims", "microseconds", |report| report.latency_us.p99);
        charts.push(ReportChart { name: "p99", picture: p99 });
    }
    charts.extend(distribution(runs).map(|picture| ReportChart { name: "distribution", picture }));
    let title = if runs.len() > 1 { "Side by side" } else { "Summary" };
    let terminal_columns = Some(&["check", "claims/s", "errors", "p50 us", "p99 us"][..]);
    let side_by_side =
        ReportSection { title: title.into(), table, terminal_columns, charts, ..ReportSection::default() };
    let mut sections = vec![side_by_side];
    sections.extend(runs.iter().map(timeline_section));
    sections
}

/// Outcome of the check of a run as a cell of a table.
#[must_use]
pub fn check_cell(report: &LoadReport) -> &'static str {
    match report.leaked {
        _ if report.has_violations() => "VIOLATED",
        None => "not finished",
        Some(_) => "ok",
    }
}

/// Latency at each percentile.
fn distribution(runs: &[NamedRun<'_>]) -> Option<maud::Markup> {
    let measured = runs.iter().filter(|run| !run.report.latency_curve_us.is_empty());
    let series: Vec<ChartSeries> = measured
        .take(DISTRIBUTIONS_MAX)
        .map(|run| {
            let points = run.report.latency_curve_us.iter().map(|(quantile, us)| (percentile_value(*quantile), *us));
            // Names of many runs stand in the bars.
            let name = if runs.len() > 1 { shortened(&run.name) } else { String::new() };
            ChartSeries { name, tone: run.tone, stroke: LineStroke::Solid, points: points.collect() }
        })
        .collect();
    let values = series.iter().flat_map(|series| &series.points).map(|(_, us)| *us).collect::<Vec<_>>();
    (!series.is_empty()).then(|| {
        LineChart {
            title: match runs.len() {
                0..=DISTRIBUTIONS_MAX => "Distribution of latencies".into(),
                all => format!("Distribution of latencies, the first {DISTRIBUTIONS_MAX} of {all} runs"),
            },
            x: ChartAxis::percentiles("percentile of claims"),
            y: ChartAxis::logarithmic("latency", AxisUnit::Microseconds, values.into_iter()),
            series,
            marks: Vec::new(),
            size: ChartSize::SMALL,
        }
        .draw()
    })
}

/// Name beside a line, which has little space.
fn shortened(name: &str) -> String {
    match name.char_indices().nth(18) {
        Some((end, _)) => format!("{}...", &name[..end]),
        None => name.to_owned(),
    }
}

fn timeline_section(run: &NamedRun<'_>) -> ReportSection {
    let NamedRun { name, tone, report } = run;
    let mut charts = Vec::new();
    if !report.timeline.is_empty() {
        charts.push(ReportChart { name: "rate-over-time", picture: rate_over_time(report, *tone) });
        charts.push(ReportChart { name: "latency-over-time", picture: latency_over_time(report, *tone) });
    }
    let mut text: String = report.failures.iter().map(|failure| format!("{failure}. ")).collect();
    if let Some(stall) = report.longest_stall_s {
        let _ = write!(text, "Longest time without a granted claim: {stall:.2} s. ");
    }
    if report.shards.len() > 1 {
        let mean = report.shards.iter().sum::<u64>() as f64 / report.shards.len() as f64;
        let max = report.shards.iter().max().map_or(0.0, |max| *max as f64);
        let _ = write!(text, "Changes decided by shard: max/mean {:.3}.", max / mean.max(f64::MIN_POSITIVE));
        charts.push(ReportChart { name: "shards", picture: spread_over_shards(&report.shards, mean, *tone) });
    }
    ReportSection { title: name.clone(), text, charts, ..ReportSection::default() }
}

/// Points of a figure over time.
fn over_time(report: &LoadReport, figure: impl Fn(&TimelineSlice) -> f64) -> Vec<(f64, f64)> {
    report.full_slices().iter().map(|slice| (slice.t_s, figure(slice))).collect()
}

fn time_axis(report: &LoadReport) -> ChartAxis {
    ChartAxis::from_zero("seconds", AxisUnit::Number, report.timeline.iter().map(|slice| slice.t_s))
}

fn rate_over_time(report: &LoadReport, tone: ChartTone) -> maud::Markup {
    let per_s = |count: fn(&TimelineSlice) -> u64| {
        over_time(report, |slice| count(slice) as f64 / slice.length_s.max(f64::MIN_POSITIVE))
    };
    let lines = [
        ("granted", LineStroke::Solid, per_s(|slice| slice.claims_ok)),
        ("refused", LineStroke::Thin, per_s(|slice| slice.claims_refused)),
        ("failed", LineStroke::Dashed, per_s(|slice| slice.errors)),
    ];
    let series: Vec<ChartSeries> = lines
        .into_iter()
        .filter(|(name, _, points)| *name == "granted" || points.iter().any(|(_, rate)| *rate > 0.0))
        .map(|(name, stroke, points)| ChartSeries { name: name.into(), tone, stroke, points })
        .collect();
    let rates: Vec<f64> = series.iter().flat_map(|series| &series.points).map(|(_, rate)| *rate).collect();
    LineChart {
        title: "Claims over time".into(),
        x: time_axis(report),
        y: ChartAxis::from_zero("claims/s", AxisUnit::Number, rates.into_iter()),
        series,
        marks: Vec::new(),
        size: ChartSize::SMALL,
    }
    .draw()
}

fn latency_over_time(report: &LoadReport, tone: ChartTone) -> maud::Markup {
    let lines = [
        ("p50", LineStroke::Solid, over_time(report, |slice| slice.latency_us.p50)),
        ("p99", LineStroke::Thin, over_time(report, |slice| slice.latency_us.p99)),
        ("max", LineStroke::Dashed, over_time(report, |slice| slice.latency_us.max)),
    ];
    let values: Vec<f64> = lines.iter().flat_map(|(_, _, points)| points).map(|(_, us)| *us).collect();
    LineChart {
        title: "Latency over time".into(),
        x: time_axis(report),
        y: ChartAxis::logarithmic("latency of claims", AxisUnit::Microseconds, values.into_iter()),
        series: lines
            .into_iter()
            .map(|(name, stroke, points)| ChartSeries { name: name.into(), tone, stroke, points })
            .collect(),
        marks: Vec::new(),
        size: ChartSize::SMALL,
    }
    .draw()
}

fn spread_over_shards(shards: &[u64], mean: f64, tone: ChartTone) -> maud::Markup {
    if shards.len() <= SHARD_BARS_MAX {
        let bar = |(n, changes): (usize, &u64)| ChartBar { name: format!("shard {n}"), tone, value: *changes as f64 };
        let bars = shards.iter().enumerate().map(bar).collect();
        return BarChart { title: "Changes decided by each shard".into(), unit: "changes".into(), bars }.draw();
    }
    // So many circles would be most of the page.
    let stroke = if shards.len() > SHARD_POINTS_MAX { LineStroke::Thin } else { LineStroke::Hollow };
    let points: Vec<(f64, f64)> = (0..).zip(shards).map(|(n, changes)| (f64::from(n), *changes as f64)).collect();
    LineChart {
        title: "Changes decided by each shard".into(),
        x: ChartAxis::from_zero("shard", AxisUnit::Number, points.iter().map(|point| point.0)),
        y: ChartAxis::from_zero("changes", AxisUnit::Number, points.iter().map(|point| point.1)),
        series: vec![ChartSeries { name: String::new(), tone, stroke, points }],
        marks: vec![ChartMark { text: "mean".into(), value: MarkValue::Y(mean) }],
        size: ChartSize::SMALL,
    }
    .draw()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report(claims_ok: u64) -> LoadReport {
        let mut report = LoadReport::new("bench", "r", serde_json::Value::Null);
        (report.claims_ok, report.duration_s, report.throughput_per_s) = (claims_ok, 2.0, claims_ok as f64 / 2.0);
        report.latency_us.p99 = 1_234.0;
        report.leaked = Some(0);
        report
    }

    fn named<'a>(name: &str, report: &'a LoadReport) -> NamedRun<'a> {
        NamedRun { name: name.into(), tone: ChartTone::Http, report }
    }

    #[test]
    fn the_verdict_says_what_was_sustained_or_what_broke() {
        let (slow, mut fast) = (report(1_000), report(8_000));
        let text = run_verdict(&[named("steady, HTTP", &slow)]).text;
        let expected =
            "steady, HTTP: 1 000 claims in 2.0 s, which is 500 claims/s, with a 99th percentile of 1.23 ms. ";
        assert_eq!(text, format!("{expected}{NOTHING_WRONG}"));
        fast.errors = 3;
        let text = run_verdict(&[named("a", &slow), named("b", &fast)]).text;
        assert!(
            text.starts_with("2 runs: at most 4 000 claims/s (b); ") && text.contains(" Failed requests: 3."),
            "{text}"
        );
        fast.faults.double_claims = 2;
        let verdict = run_verdict(&[named("a", &slow), named("b", &fast)]);
        assert_eq!(
            (verdict.is_good, &*verdict.text),
            (false, "The check failed. b: grants of a worker that was held: 2.")
        );
        fast.faults.double_claims = 0;
        fast.leaked = None;
        let verdict = run_verdict(&[named("a", &slow), named("b", &fast)]);
        assert!(!verdict.is_good && verdict.text.starts_with("b is not complete: not every request"), "{verdict:?}");
        assert_eq!(check_cell(&fast), "not finished");
        let empty = report(0);
        let verdict = run_verdict(&[named("a", &empty)]);
        assert_eq!((verdict.is_good, &*verdict.text), (false, "a is not complete: no claim was granted."));
    }

    #[test]
    fn shards_are_shown_with_their_spread() {
        let mut report = report(10);
        report.shards = vec![1, 3];
        let sections = run_sections(&[named("x", &report)]);
        assert!(sections[1].text.contains("max/mean 1.500"), "{sections:?}");
        assert_eq!(sections[1].charts[0].name, "shards");
    }
}
