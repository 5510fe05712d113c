//! Reports for people: sections of text, tables and charts, as one page without scripts and without other files, as
//! Markdown, or as text for a terminal.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::time::SystemTime;

use comfy_table::{CellAlignment, ContentArrangement, Table, presets};
use maud::{DOCTYPE, Markup, PreEscaped, html};

use super::charts::{CHART_STYLE, standalone};
use super::report::MachineSpec;
use super::terminal::{TERMINAL_COLUMNS, fold};

/// Style sheet of a page, beside that of its charts.
const PAGE_STYLE: &str = "\
:root{--good:#00805d;--bad:#b3261e}@media screen and (prefers-color-scheme:dark){:root{--good:#2bc59a;--bad:#ff8a80}}\
*{box-sizing:border-box}body{font:15px/1.5 system-ui,sans-serif;max-width:1560px;margin:0 auto;\
padding:24px clamp(14px,3vw,48px);background:var(--paper);color:var(--ink);overflow-wrap:anywhere}\
h1{font-size:1.6rem;line-height:1.2;margin:0 0 .6em}h2{font-size:1.2rem;margin:2.2em 0 .5em}p{max-width:78ch;margin:.6em 0}\
.verdict{font-size:1.1rem;border-left:5px solid var(--good);padding:.5em .9em;margin:0 0 1em;max-width:80ch}.verdict.bad{border-color:var(--bad)}\
.charts{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,390px),1fr));gap:26px 34px;margin:1.4em 0;align-items:start}\
.charts svg{width:100%;height:auto;max-width:600px}.charts svg.large{grid-column:1/-1;max-width:940px}\
table{border-collapse:collapse;font-size:14px;font-variant-numeric:tabular-nums;overflow-wrap:normal}\
th,td{padding:5px 9px;text-align:right;border-bottom:1px solid var(--grid);white-space:nowrap}\
th{color:var(--muted);font-weight:600;vertical-align:bottom;white-space:normal}th:first-child,td:first-child{text-align:left;white-space:normal}\
td.long{white-space:normal;text-align:left;min-width:16em}td.good{color:var(--good);font-weight:600}td.bad{color:var(--bad);font-weight:700}\
details{margin:2.4em 0 0;color:var(--muted)}summary{cursor:pointer}dl{display:grid;grid-template-columns:max-content 1fr;gap:2px 18px}dd{margin:0}\
pre{white-space:pre-wrap;font-size:13px}\
@media print{h2{break-after:avoid}details::details-content{content-visibility:visible;block-size:auto}.charts svg,tr{break-inside:avoid}}";

/// Rules for a table that does not fit: each row becomes a card.
const CARD_STYLE: &str = "thead{display:none}table,tbody{display:block}tbody{display:grid;\
grid-template-columns:repeat(auto-fit,minmax(min(100%,300px),1fr));gap:14px 26px}tr{display:block;border-top:2px solid var(--grid)}\
td{display:flex;justify-content:space-between;gap:12px;padding:3px 0;border:0}td::before{content:attr(data-label);color:var(--muted);font-weight:400}\
td:first-child{font-weight:600}td:first-child::before{content:none}td.long{min-width:0}td:empty{display:none}";

/// Classes of tables, each with the width of a page in pixels up to which its rows are cards.
const TABLE_CLASSES: [(&str, u32); 3] = [("narrow", 700), ("medium", 860), ("wide", 1_440)];

/// Longest cell that is a number or a word, in characters.
const NUMBER_CHARS_MAX: usize = 20;

/// Class of a table with so many columns.
const fn table_class(columns: usize) -> &'static str {
    match columns {
        0..=7 => TABLE_CLASSES[0].0,
        8..=10 => TABLE_CLASSES[1].0,
        _ => TABLE_CLASSES[2].0,
    }
}

/// Section of a report.
#[derive(Debug, Default)]
pub struct ReportSection {
    /// Heading of the section.
    pub title: String,
    /// Introductory text; may be empty.
    pub text: String,
    /// Rows of the table, the header first.
    pub table: Vec<Vec<String>>,
    /// Columns that a terminal shows, if it does not show all.
    pub terminal_columns: Option<&'static [&'static str]>,
    /// Charts of the section.
    pub charts: Vec<ReportChart>,
}

/// Chart of a section.
#[derive(Debug)]
pub struct ReportChart {
    /// Name of its file, after that of the section.
    pub name: &'static str,
    /// Picture of the chart, as SVG.
    pub picture: Markup,
}

/// Report in one sentence.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ReportVerdict {
    /// Whether every answer was right and the run complete.
    pub is_good: bool,
    /// Sentence: what was loaded, what it sustained, and whether the check found anything.
    pub text: String,
}

/// Report of one command.
#[derive(Debug)]
pub struct ReportPage {
    /// Title of the page.
    pub title: String,
    /// Verdict at the top.
    pub verdict: ReportVerdict,
    /// Sections below the verdict, in order.
    pub sections: Vec<ReportSection>,
    /// Options of the command with their defaults.
    pub parameters: serde_json::Value,
}

impl ReportSection {
    /// Table without columns that are empty in every row.
    fn filled_table(&self) -> Vec<Vec<&str>> {
        let columns = self.table.first().map_or(0, Vec::len);
        let is_filled = |column: &usize| {
            let mut cells = self.table.iter().skip(1).filter_map(|row| row.get(*column));
            *column == 0 || cells.any(|cell| !cell.is_empty())
        };
        let filled: Vec<usize> = (0..columns).filter(is_filled).collect();
        self.table.iter().map(|row| filled.iter().map(|&column| row[column].as_str()).collect()).collect()
    }
}

impl ReportPage {
    /// Renders the report as one HTML page.
    #[must_use]
    pub fn to_html(&self) -> String {
        let scoped_cards = |(class, max_px): &(&str, u32)| {
            format!("@media(max-width:{max_px}px){{{}}}", scoped(CARD_STYLE, &format!(".{class} ")))
        };
        let narrow: String = TABLE_CLASSES.iter().map(scoped_cards).collect();
        let verdict_class = if self.verdict.is_good { "verdict" } else { "verdict bad" };
        let page = html! {
            (DOCTYPE)
            html lang="en" {
                head {
                    meta charset="utf-8";
                    meta name="viewport" content="width=device-width,initial-scale=1";
                    // Browsers ask for an icon otherwise.
                    link rel="icon" href="data:,";
                    title { (self.title) }
                    style { (PreEscaped(CHART_STYLE)) (PreEscaped(PAGE_STYLE)) (PreEscaped(narrow)) }
                }
                body {
                    h1 { (self.title) }
                    p class=(verdict_class) { (with_whole_numbers(&self.verdict.text)) }
                    @for section in &self.sections { (draw_section(section)) }
                    (self.details())
                }
            }
        };
        page.into_string()
    }

    /// Parameters, machine, versions and date, folded.
    fn details(&self) -> Markup {
        let parameters = serde_json::to_string_pretty(&self.parameters).unwrap_or_default();
        html! {
            details {
                summary { "Machine, versions, date and parameters" }
                dl {
                    @for (name, value) in machine_rows() { dt { (name) } dd { (value) } }
                }
                pre { (parameters) }
            }
        }
    }

    /// Charts as files of their own, each with its name.
    #[must_use]
    pub fn to_files(&self) -> Vec<(String, String)> {
        let of = |section: &ReportSection| {
            let word = |c: char| if c.is_ascii_alphanumeric() { c.to_ascii_lowercase() } else { '-' };
            let title: String = section.title.chars().map(word).collect();
            let words: Vec<&str> = title.split('-').filter(|word| !word.is_empty()).collect();
            let title = words.join("-");
            let file = |chart: &ReportChart| (format!("{title}-{}", chart.name), standalone(&chart.picture));
            section.charts.iter().map(file).collect::<Vec<_>>()
        };
        // Titles may differ in what a file name leaves out.
        let mut seen: BTreeMap<String, usize> = BTreeMap::new();
        let numbered = |(name, svg): (String, String)| {
            let count = seen.entry(name.clone()).or_default();
            *count += 1;
            (if *count == 1 { format!("{name}.svg") } else { format!("{name}-{count}.svg") }, svg)
        };
        self.sections.iter().flat_map(of).map(numbered).collect()
    }

    /// Renders the report as Markdown, without the charts.
    #[must_use]
    pub fn to_markdown(&self) -> String {
        let mut out = format!("# {}\n\n{}\n\n", self.title, self.verdict.text);
        let rows = machine_rows().into_iter().map(|(name, value)| format!("{name}: {value}")).collect::<Vec<_>>();
        out.push_str(&rows.join("; "));
        out.push('\n');
        for section in &self.sections {
            // Writing to a string cannot fail.
            let _ = write!(out, "\n## {}\n\n", section.title);
            if !section.text.is_empty() {
                let _ = write!(out, "{}\n\n", section.text);
            }
            for (n, row) in section.filled_table().iter().enumerate() {
                let cells: Vec<String> = row.iter().map(|cell| cell.replace('|', "\\|")).collect();
                let _ = writeln!(out, "| {} |", cells.join(" | "));
                if n == 0 {
                    let _ = writeln!(out, "|{}", "---|".repeat(row.len()));
                }
            }
        }
        out
    }

    /// Renders the report as text that fits a terminal, without the charts.
    #[must_use]
    pub fn to_terminal(&self) -> String {
        let mut out = format!("{}\n", fold(&self.verdict.text));
        for section in &self.sections {
            let table = section.filled_table();
            if table.is_empty() {
                continue;
            }
            let _ = write!(out, "\n{}\n", section.title);
            let shown = |column: &usize| {
                section.terminal_columns.is_none_or(|columns| *column == 0 || columns.contains(&table[0][*column]))
            };
            let columns: Vec<usize> = (0..table[0].len()).filter(shown).collect();
            let mut text = Table::new();
            text.load_preset(presets::NOTHING).set_content_arrangement(ContentArrangement::Dynamic);
            text.set_width(TERMINAL_COLUMNS);
            for (n, row) in table.iter().enumerate() {
                let cells = columns.iter().map(|&column| row[column]);
                if n == 0 {
                    text.set_header(cells)
                } else {
                    text.add_row(cells)
                };
            }
            for column in text.column_iter_mut().skip(1) {
                column.set_cell_alignment(CellAlignment::Right);
            }
            let _ = writeln!(out, "{}", text.trim_fmt());
        }
        out
    }
}

fn draw_section(section: &ReportSection) -> Markup {
    let table = section.filled_table();
    let class = |cell: &str| match cell {
        "ok" | "yes" => "good",
        "VIOLATED" | "not finished" | "no" => "bad",
        sentence if sentence.chars().count() > NUMBER_CHARS_MAX => "long",
        _ => "",
    };
    html! {
        h2 { (section.title) }
        @if !section.text.is_empty() { p { (with_whole_numbers(&section.text)) } }
        @if let Some((head, rows)) = table.split_first() {
            div class=(table_class(head.len())) {
                // Roles, because rows that are cards lose those of their elements.
                table role="table" {
                    thead { tr role="row" { @for cell in head { th role="columnheader" scope="col" { (cell) } } } }
                    tbody role="rowgroup" {
                        @for row in rows {
                            tr role="row" {
                                @for (label, cell) in head.iter().zip(row) {
                                    td role="cell" class=(class(cell)) data-label=(label) { (cell) }
                                }
                            }
                        }
                    }
                }
            }
        }
        @if !section.charts.is_empty() {
            div class="charts" { @for chart in &section.charts { (chart.picture) } }
        }
    }
}

/// Text in which numbers are not broken where their thousands are separated.
fn with_whole_numbers(text: &str) -> String {
    let bytes = text.as_bytes();
    let is_digit = |at: usize| bytes.get(at).is_some_and(u8::is_ascii_digit);
    let kept = |(at, c)| if c == ' ' && at > 0 && is_digit(at - 1) && is_digit(at + 1) { '\u{a0}' } else { c };
    text.char_indices().map(kept).collect()
}

/// Rules of a style sheet for what is inside another element.
fn scoped(rules: &str, scope: &str) -> String {
    let rules = rules.split_inclusive('}').map(|rule| {
        let (selectors, body) = rule.split_once('{').unwrap_or((rule, ""));
        let selectors: Vec<String> = selectors.split(',').map(|selector| format!("{scope}{selector}")).collect();
        format!("{}{{{body}", selectors.join(","))
    });
    rules.collect()
}

fn machine_rows() -> Vec<(&'static str, String)> {
    let MachineSpec { cpus, cpu, kernel, arch } = MachineSpec::detect();
    let or_unknown = |text: Option<String>| text.unwrap_or_else(|| "unknown".into());
    let commit = option_env!("HOTPOOL_COMMIT").unwrap_or("unknown");
    vec![
        ("Machine", format!("{cpus} cores of {} ({arch}), Linux {}", or_unknown(cpu), or_unknown(kernel))),
        ("Harness", format!("hotpool-load {}, commit {commit}", env!("CARGO_PKG_VERSION"))),
        ("Date", httpdate::fmt_http_date(SystemTime::now())),
    ]
}

/// Converts literals to the cells of a row.
pub fn table_row<const N: usize>(cells: [&str; N]) -> Vec<String> {
    cells.map(str::to_owned).to_vec()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn page() -> ReportPage {
        let section = ReportSection {
            title: "<b>&".into(),
            text: "a|b".into(),
            table: vec![table_row(["", "rate", "empty", "check"]), table_row(["1|2", "12", "", "ok"])],
            terminal_columns: Some(&["check"]),
            ..ReportSection::default()
        };
        let verdict = ReportVerdict { is_good: false, text: "word ".repeat(40) };
        ReportPage {
            title: "a<b".into(),
            verdict,
            sections: vec![section],
            parameters: serde_json::json!({"x": "<y>"}),
        }
    }

    #[test]
    fn a_page_is_self_contained_and_escapes_names() {
        let html = page().to_html();
        assert!(
            html.contains("<title>a&lt;b</title>") && html.contains("&lt;b&gt;&amp;") && html.contains("&lt;y&gt;")
        );
        assert!(html.contains("class=\"verdict bad\"") && html.contains("class=\"good\" data-label=\"check\">ok"));
        assert!(!html.contains(">empty<"), "columns without a value are left out");
        for external in ["<script", "src=", "@import", "url(", "http://", "https://"] {
            assert!(!html.contains(external), "{external}");
        }
    }

    #[test]
    fn markdown_escapes_cells() {
        let text = page().to_markdown();
        assert!(text.contains("|  | rate | check |\n|---|---|---|\n| 1\\|2 | 12 | ok |"), "{text}");
    }

    #[test]
    fn text_for_a_terminal_fits_it() {
        let mut page = page();
        page.sections[0].table.push(table_row([
            "a name that is rather long, of many words, and goes on and on until it wraps",
            "1",
            "",
            "ok",
        ]));
        let text = page.to_terminal();
        assert!(text.lines().all(|row| row.chars().count() <= TERMINAL_COLUMNS as usize), "{text}");
        assert!(text.contains("check") && !text.contains("rate"), "{text}");
    }

    #[test]
    fn numbers_are_not_broken() {
        assert_eq!(with_whole_numbers("2 338 of 4 goals, 10 ms"), "2\u{a0}338 of 4 goals, 10 ms");
    }

    #[test]
    fn rules_are_scoped_selector_by_selector() {
        assert_eq!(scoped("a,b{c:d}e{f:g}", ".x "), ".x a,.x b{c:d}.x e{f:g}");
    }
}
