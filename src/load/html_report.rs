//! Reports for people: sections of text, tables and charts, as one self-contained HTML page or as Markdown.

use std::fmt::Write as _;

use anyhow::Result;
use maud::{DOCTYPE, PreEscaped, html};

use super::charts::{self, format_number};
use super::report::{LoadReport, MachineSpec};

const STYLE: &str = "body{font:15px/1.5 sans-serif;max-width:960px;margin:2em auto;padding:0 1em;color:#222}\
    table{border-collapse:collapse;margin:1em 0}th,td{border:1px solid #ccc;padding:.2em .6em;text-align:right;white-space:nowrap}\
    th:first-child,td:first-child{text-align:left}th{background:#f3f3f3}svg{max-width:100%;height:auto}";

/// Section of a report.
#[derive(Debug, Default)]
pub struct ReportSection {
    /// Heading of the section.
    pub title: String,
    /// Introductory text; may be empty.
    pub text: String,
    /// Rows of the table, the header first.
    pub table: Vec<Vec<String>>,
    /// Charts as SVG markup.
    pub charts: Vec<String>,
}

/// Renders sections as one HTML page.
#[must_use]
pub fn to_html(title: &str, sections: &[ReportSection]) -> String {
    let page = html! {
        (DOCTYPE)
        html lang="en" {
            head {
                meta charset="utf-8";
                meta name="viewport" content="width=device-width";
                title { (title) }
                style { (PreEscaped(STYLE)) }
            }
            body {
                h1 { (title) }
                p { (machine()) }
                @for section in sections {
                    h2 { (section.title) }
                    @if !section.text.is_empty() { p { (section.text) } }
                    @if let Some((head, rows)) = section.table.split_first() {
                        table {
                            tr { @for cell in head { th { (cell) } } }
                            @for row in rows { tr { @for cell in row { td { (cell) } } } }
                        }
                    }
                    // Charts are drawn by this program, which escapes names.
                    @for chart in &section.charts { p { (PreEscaped(chart)) } }
                }
            }
        }
    };
    page.into_string()
}

/// Renders sections as Markdown, without the charts.
#[must_use]
pub fn to_markdown(title: &str, sections: &[ReportSection]) -> String {
    let mut out = format!("# {title}\n\n{}\n", machine());
    for ReportSection { title, text, table, .. } in sections {
        // Writing to a string cannot fail.
        let _ = write!(out, "\n## {title}\n\n");
        if !text.is_empty() {
            let _ = write!(out, "{text}\n\n");
        }
        for (n, row) in table.iter().enumerate() {
            let cells: Vec<String> = row.iter().map(|cell| cell.replace('|', "\\|")).collect();
            let _ = writeln!(out, "| {} |", cells.join(" | "));
            if n == 0 {
                let _ = writeln!(out, "|{}", "---|".repeat(row.len()));
            }
        }
    }
    out
}

fn machine() -> String {
    let MachineSpec { cpus, cpu, kernel, arch } = MachineSpec::detect();
    let or_unknown = |text: Option<String>| text.unwrap_or_else(|| "unknown".into());
    format!(
        "hotpool {} on {cpus} cores of {} ({arch}), Linux {}",
        env!("CARGO_PKG_VERSION"),
        or_unknown(cpu),
        or_unknown(kernel)
    )
}

/// Converts literals to the cells of a row.
pub fn table_row<const N: usize>(cells: [&str; N]) -> Vec<String> {
    cells.map(str::to_owned).to_vec()
}

/// Sections that compare runs side by side, then show each over time.
///
/// # Errors
/// Fails if a chart cannot be drawn.
pub fn run_sections(runs: &[(String, &LoadReport)]) -> Result<Vec<ReportSection>> {
    let mut table = vec![table_row([
        "",
        "claims/s",
        "refused",
        "errors",
        "p50 us",
        "p99 us",
        "p99.9 us",
        "max us",
        "round trips a claim",
        "check",
    ])];
    for (name, report) in runs {
        let latency = report.latency_us;
        let times = [latency.p50, latency.p99, latency.p999, latency.max].map(format_number);
        let mut cells = vec![name.clone(), format_number(report.throughput_per_s)];
        cells.extend([report.claims_refused, report.errors].map(|count| count.to_string()));
        cells.extend(times);
        cells.push(report.round_trips_per_claim.map_or_else(String::new, format_number));
        cells.push(if report.has_violations() { "VIOLATED" } else { "ok" }.to_owned());
        table.push(cells);
    }
    let bars =
        |figure: fn(&LoadReport) -> f64| runs.iter().map(|(name, run)| (name.clone(), figure(run))).collect::<Vec<_>>();
    let throughput = charts::bar_chart("claims granted per second", "claims/s", &bars(|run| run.throughput_per_s))?;
    let p99 = charts::bar_chart("99th percentile of claims", "us", &bars(|run| run.latency_us.p99))?;
    let side_by_side = ReportSection {
        title: "Side by side".into(),
        table,
        charts: vec![throughput, p99],
        ..ReportSection::default()
    };
    let mut sections = vec![side_by_side];
    for (name, report) in runs {
        sections.push(timeline_section(name, report)?);
    }
    Ok(sections)
}

fn timeline_section(name: &str, report: &LoadReport) -> Result<ReportSection> {
    let over_time = |figure: fn(&super::timeline::TimelineSlice) -> f64| -> Vec<(f64, f64)> {
        report.timeline.iter().map(|slice| (slice.t_s, figure(slice))).collect()
    };
    let rate = over_time(|slice| slice.claims_ok as f64 / slice.length_s.max(f64::MIN_POSITIVE));
    let latencies = [
        ("p50".to_owned(), over_time(|slice| slice.latency_us.p50)),
        ("p99".to_owned(), over_time(|slice| slice.latency_us.p99)),
        ("p99.9".to_owned(), over_time(|slice| slice.latency_us.p999)),
        ("max".to_owned(), over_time(|slice| slice.latency_us.max)),
    ];
    let mut charts = vec![
        charts::line_chart("claims granted per second", ["seconds", "claims/s"], &[("claims/s".into(), rate)])?,
        charts::line_chart("percentiles of claims over time", ["seconds", "us"], &latencies)?,
    ];
    let mut text = report.failures.join("; ");
    if let Some(stall) = report.longest_stall_s {
        let _ = write!(text, "Longest time without a granted claim: {stall:.2} s. ");
    }
    if !report.shards.is_empty() {
        let mean = report.shards.iter().sum::<u64>() as f64 / report.shards.len() as f64;
        let max = report.shards.iter().max().map_or(0.0, |max| *max as f64);
        let _ = write!(text, "Changes decided by shard: max/mean {:.3}.", max / mean.max(1.0));
        let shards: Vec<_> = (0..).zip(&report.shards).map(|(n, seq)| (format!("shard {n}"), *seq as f64)).collect();
        charts.push(charts::bar_chart("changes decided by each shard", "changes", &shards)?);
    }
    charts.retain(|chart| !chart.is_empty());
    Ok(ReportSection { title: name.to_owned(), text, table: Vec::new(), charts })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_is_self_contained_and_escapes_names() {
        let mut report = LoadReport::new("bench", "r", serde_json::Value::Null);
        report.shards = vec![1, 3];
        let mut sections = run_sections(&[("<b>&".to_owned(), &report)]).unwrap();
        sections.push(ReportSection {
            title: "t".into(),
            text: "a|b".into(),
            table: vec![table_row(["x"]), table_row(["1|2"])],
            ..ReportSection::default()
        });
        let page = to_html("a<b", &sections);
        assert!(page.contains("<title>a&lt;b</title>") && page.contains("&lt;b&gt;&amp;") && page.contains("<svg"));
        assert!(page.contains("max/mean 1.500"));
        for external in ["<script", "src=", "<link", "@import", "url("] {
            assert!(!page.contains(external), "{external}");
        }
        let text = to_markdown("a", &sections);
        assert!(text.contains("| x |\n|---|\n| 1\\|2 |"), "{text}");
        assert!(!text.contains("<svg"));
    }
}
