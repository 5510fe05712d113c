//! Text for terminals: the report of a run, at most 80 columns wide.

use std::fmt::Write as _;
use std::io::IsTerminal as _;

use comfy_table::{CellAlignment, Table, presets};

use super::report::{LatencySummary, LoadReport};
use super::timeline::TimelineSlice;

/// Number of columns of a terminal.
pub const TERMINAL_COLUMNS: u16 = 80;
/// Number of slices in a sparkline at most.
const SPARKLINE_MAX: usize = 44;

/// Characters that a terminal shows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TerminalText {
    /// No terminal, or one of which nothing more is known.
    Ascii,
    /// Terminal with a Unicode locale.
    Unicode,
}

impl TerminalText {
    /// Finds out what the standard output shows.
    #[must_use]
    pub fn detect() -> Self {
        let locale = ["LC_ALL", "LC_CTYPE", "LANG"].into_iter().filter_map(|name| std::env::var(name).ok());
        let locale = locale.filter(|value| !value.is_empty()).map(|value| value.to_ascii_lowercase()).next();
        let is_unicode = locale.is_some_and(|value| value.contains("utf-8") || value.contains("utf8"));
        if is_unicode && std::io::stdout().is_terminal() { Self::Unicode } else { Self::Ascii }
    }
}

impl LoadReport {
    /// Claims granted over time in one row of a terminal, as bars of block characters; none without a timeline.
    fn sparkline(&self) -> Option<String> {
        const BLOCKS: [char; 8] = ['▁', '▂', '▃', '▄', '▅', '▆', '▇', '█'];
        let slices = self.full_slices();
        let rate = |slices: &[TimelineSlice]| {
            let length_s: f64 = slices.iter().map(|slice| slice.length_s).sum();
            slices.iter().map(|slice| slice.claims_ok).sum::<u64>() as f64 / length_s.max(f64::MIN_POSITIVE)
        };
        let rates: Vec<f64> = slices.chunks(slices.len().div_ceil(SPARKLINE_MAX).max(1)).map(rate).collect();
        let max = rates.iter().copied().fold(0.0, f64::max);
        let block = |rate: &f64| BLOCKS[((rate / max * 7.0).round() as usize).min(7)];
        (max > 0.0).then(|| rates.iter().map(block).collect())
    }

    /// Formats the report as a table for people, which fits a terminal.
    #[must_use]
    pub fn table(&self, terminal: TerminalText) -> String {
        let mut counts = Table::new();
        counts.load_preset(presets::NOTHING);
        let faults = &self.faults;
        let checked = if self.has_violations() {
            "VIOLATED"
        } else if self.leaked.is_none() {
            "not finished"
        } else {
            "ok"
        };
        let text = |value: Option<String>| value.unwrap_or_else(|| "unknown".into());
        counts.add_row(["duration", &format!("{:.3} s", self.duration_s)]);
        if self.interrupted {
            counts.add_row(["interrupted", "yes: the run is not complete"]);
        }
        counts.add_row(["claims ok / refused", &format!("{} / {}", self.claims_ok, self.claims_refused)]);
        counts.add_row(["errors", &self.errors.to_string()]);
        counts.add_row(["throughput", &format!("{:.0} claims/s", self.throughput_per_s)]);
        if let Some(sparkline) = self.sparkline().filter(|_| terminal == TerminalText::Unicode) {
            counts.add_row(["over time", &sparkline]);
        }
        if let Some(warm) = self.warm_ratio {
            counts.add_row(["warm", &format!("{:.2} %", warm * 100.0)]);
        }
        if let (Some(claim), Some(release)) = (self.round_trips_per_claim, self.round_trips_per_release) {
            counts.add_row(["round trips a claim / release", &format!("{claim:.2} / {release:.2}")]);
            counts.add_row(["retries", &self.retries.unwrap_or(0).to_string()]);
        }
        if let Some(client) = self.client_processor_us_per_claim {
            let server = self.server_processor_us_per_claim.map_or_else(|| "unknown".into(), |us| format!("{us:.1}"));
            counts.add_row(["processor us a claim and release", &format!("client {client:.1}, server {server}")]);
        }
        counts.add_row(["check", checked]);
        counts.add_row(["  double claims", &faults.double_claims.to_string()]);
        counts.add_row([
            "  old fences / unknown workers",
            &format!("{} / {}", faults.old_fences, faults.unknown_workers),
        ]);
        counts.add_row(["  leaked", &text(self.leaked.map(|leaked| leaked.to_string()))]);

        let mut latencies = Table::new();
        latencies.load_preset(presets::NOTHING).set_header(["us", "p50", "p90", "p99", "p99.9", "max"]);
        let rows = [
            ("claim", Some(self.latency_us)),
            ("release", Some(self.release_latency_us)),
            ("sent late", self.pacing_us),
        ];
        for (name, latency) in rows.into_iter().filter_map(|(name, latency)| Some((name, latency?))) {
            let LatencySummary { p50, p90, p99, p999, max } = latency;
            let figures = [p50, p90, p99, p999, max].map(|us| format!("{us:.1}"));
            latencies.add_row(std::iter::once(name.to_owned()).chain(figures));
        }
        for column in latencies.column_iter_mut().skip(1) {
            column.set_cell_alignment(CellAlignment::Right);
        }
        let (counts, latencies) = (counts.trim_fmt(), latencies.trim_fmt());
        let mut out = format!("{} of load/{}\n{counts}\n\n{latencies}\n", self.command, self.run);
        for (message, count) in &self.error_messages {
            // A string takes everything.
            let _ = write!(out, "\n{}", fold(&format!("error x {count}: {message}")));
        }
        for failure in &self.failures {
            let _ = write!(out, "\n{}", fold(&format!("failed: {failure}")));
        }
        out.trim_end().to_owned()
    }
}

/// Folds text into rows that fit a terminal.
#[must_use]
pub fn fold(text: &str) -> String {
    let mut out = String::new();
    let mut length = 0;
    for word in text.split_whitespace() {
        let word_length = word.chars().count();
        if length > 0 && length + 1 + word_length > TERMINAL_COLUMNS as usize {
            out.push('\n');
            length = 0;
        } else if length > 0 {
            out.push(' ');
            length += 1;
        }
        out.push_str(word);
        length += word_length;
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report() -> LoadReport {
        let mut report = LoadReport::new("bench", "r1", serde_json::json!({"clients": 1}));
        (report.claims_ok, report.leaked) = (100, Some(0));
        report
    }

    #[test]
    fn the_table_fits_a_terminal_and_draws_the_rate_where_it_can() {
        let mut report = report();
        let slice = |claims_ok| TimelineSlice {
            t_s: 1.0,
            length_s: 1.0,
            claims_ok,
            claims_refused: 0,
            errors: 0,
            latency_us: LatencySummary::default(),
        };
        report.timeline = (0..70).map(slice).collect();
        report.failures.push("a reason of many words, ".repeat(9));
        let text = report.table(TerminalText::Unicode);
        assert!(text.lines().all(|row| row.chars().count() <= 80), "{text}");
        assert!(text.contains("▁▁▁▂▂▂▂") && !report.table(TerminalText::Ascii).contains('▁'), "{text}");
    }

    #[test]
    fn the_table_names_violations() {
        let mut report = report();
        let text = |report: &LoadReport| report.table(TerminalText::Ascii);
        assert!(text(&report).contains("ok"));
        report.faults.double_claims = 3;
        report.error_messages.insert("slow down".into(), 7);
        let table = text(&report);
        assert!(table.contains("VIOLATED") && table.contains("error x 7: slow down"), "{table}");
    }
}
