//! What is written: tables for people, JSON for scripts.

use std::collections::BTreeMap;
use std::io::{ErrorKind, Write as _};

use clap::ValueEnum;
use comfy_table::{CellAlignment, ContentArrangement, Table, presets};
use serde::{Deserialize, Serialize};

use super::client::{CommandExit, CommandFailure};
use crate::model::WorkerCapacity;

/// How answers are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum OutputFormat {
    /// For people.
    Table,
    /// For scripts.
    Json,
}

impl OutputFormat {
    /// Says on stderr what went wrong, in the same form as answers.
    pub fn print_failure(self, failure: &CommandFailure) {
        let text = match self {
            Self::Table => format!("hotpool: {failure}"),
            Self::Json => serde_json::to_string(failure).expect("a failure is plain data"),
        };
        print_note(&text);
    }
}

/// Says something on stderr that is no answer. Whoever closed the stream does not want to know.
pub fn print_note(text: &str) {
    let _ = writeln!(std::io::stderr(), "{text}");
}

/// Writes to stdout. A reader that has seen enough (`| head`) is no error, but there is nothing left to do.
///
/// # Errors
/// Anything else, such as a full disk.
pub fn print(text: &str) -> Result<(), CommandFailure> {
    let mut out = std::io::stdout().lock();
    let end = if text.ends_with('\n') { "" } else { "\n" };
    match write!(out, "{text}{end}").and_then(|()| out.flush()) {
        Err(error) if error.kind() == ErrorKind::BrokenPipe => std::process::exit(i32::from(CommandExit::Ok as u8)),
        written => written.map_err(CommandFailure::from_local),
    }
}

/// Writes a value as one line of JSON.
///
/// # Errors
/// Those of [`print`].
pub fn print_json(value: &impl Serialize) -> Result<(), CommandFailure> {
    print(&serde_json::to_string(value).expect("answers are plain data"))
}

/// A table without lines, one row a line however long: it can be read, cut and searched.
/// A heading that begins with `>` is a column of numbers.
pub fn table(headings: &[&str], rows: impl IntoIterator<Item = Vec<String>>) -> String {
    let mut table = Table::new();
    table.load_preset(presets::NOTHING).set_content_arrangement(ContentArrangement::Disabled);
    table.set_header(headings.iter().map(|heading| heading.trim_start_matches('>')));
    for row in rows {
        table.add_row(row.into_iter().map(|cell| if cell.is_empty() { "-".to_owned() } else { cell }));
    }
    render_table(&mut table, headings)
}

/// What one thing is, a line a property. Empty ones are left out.
pub fn property_list(lines: &[(&str, String)]) -> String {
    let mut table = Table::new();
    table.load_preset(presets::NOTHING).set_content_arrangement(ContentArrangement::Disabled);
    for (name, value) in lines.iter().filter(|(_, value)| !value.is_empty()) {
        table.add_row([*name, value]);
    }
    render_table(&mut table, &["", ""])
}

fn render_table(table: &mut Table, headings: &[&str]) -> String {
    for (column, heading) in table.column_iter_mut().zip(headings) {
        column.set_padding((0, 2));
        if heading.starts_with('>') {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    table.trim_fmt()
}

/// `250ms`, `23s`, `5m10s`, `3h05m`, `2d04h`.
pub fn duration(ms: u64) -> String {
    let seconds = ms / 1_000;
    match seconds {
        0 => format!("{ms}ms"),
        1..60 => format!("{seconds}s"),
        60..3_600 => format!("{}m{:02}s", seconds / 60, seconds % 60),
        3_600..86_400 => format!("{}h{:02}m", seconds / 3_600, seconds / 60 % 60),
        _ => format!("{}d{:02}h", seconds / 86_400, seconds / 3_600 % 24),
    }
}

/// A moment, seen from now: `in 23s`, `5s ago`.
pub fn relative_time(at_ms: u64, now_ms: u64) -> String {
    match at_ms.checked_sub(now_ms) {
        Some(left) => format!("in {}", duration(left)),
        None => format!("{} ago", duration(now_ms - at_ms)),
    }
}

/// `zone=a,tier=b`.
pub fn labels(labels: &BTreeMap<String, String>) -> String {
    labels.iter().map(|(key, value)| format!("{key}={value}")).collect::<Vec<_>>().join(",")
}

/// Cards of one model: in all, free.
#[derive(Debug, Clone, Copy, Default, Deserialize)]
pub struct GpuAvailability {
    /// In all.
    pub total: u64,
    /// Those of which nothing is held and that can be claimed.
    pub free: u64,
    /// Thousandths of cards that can be claimed.
    #[serde(default)]
    pub free_milli: u64,
}

impl GpuAvailability {
    /// What can be claimed: `gpu 2 a100`, and `gpu 2 a100 (2.7 in all)` where parts of others are left too.
    pub fn describe_free(self, model: &str) -> String {
        let whole = format!("gpu {} {model}", self.free);
        let more = self.free_milli > self.free * 1_000;
        if more { format!("{whole} ({} in all)", self.free_milli as f64 / 1e3) } else { whole }
    }
}

/// What a claim holds.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub struct ClaimedResources {
    cpu_milli: u64,
    memory_bytes: u64,
    slots: u64,
    gpu: Option<ClaimedGpus>,
}

/// Cards that a claim holds.
#[derive(Debug, Clone, Deserialize)]
struct ClaimedGpus {
    model: String,
    count: u32,
    /// Thousandths of each, if it is a share of a worker.
    milli: Option<u32>,
    /// Which ones.
    #[serde(default)]
    indices: Vec<u32>,
}

/// `cpu 2, memory 4Gi, gpu 0.5 a100 (card 3)`.
pub fn describe_resources(held: &ClaimedResources) -> String {
    let ClaimedResources { cpu_milli, memory_bytes, slots, ref gpu } = *held;
    let sum = describe_capacity(&WorkerCapacity { cpu_milli, memory_bytes, slots, gpu: None });
    let cards = gpu.as_ref().map(|ClaimedGpus { model, count, milli, indices: cards }| {
        let amount = f64::from(*count) * f64::from(milli.unwrap_or(1_000)) / 1e3;
        let numbers = cards.iter().map(u32::to_string).collect::<Vec<_>>().join(",");
        match cards.len() {
            0 => format!("gpu {amount} {model}"),
            1 => format!("gpu {amount} {model} (card {numbers})"),
            _ => format!("gpu {amount} {model} (cards {numbers})"),
        }
    });
    Some(sum).filter(|sum| !sum.is_empty()).into_iter().chain(cards).collect::<Vec<_>>().join(", ")
}

/// Amounts by their names, as explanations have them: `cpu 4, memory 2Gi, gpu 0.7 of one card`.
pub fn describe_amounts(amounts: &BTreeMap<String, u64>) -> String {
    let get = |name: &str| amounts.get(name).copied().unwrap_or_default();
    let (cpu_milli, memory_bytes, slots) = (get("cpu_milli"), get("memory_bytes"), get("slots"));
    let sum = describe_capacity(&WorkerCapacity { cpu_milli, memory_bytes, slots, gpu: None });
    let cards = match (get("gpu"), get("gpu_milli")) {
        (0, 0) => String::new(),
        (0, milli) => format!("gpu {} of one card", milli as f64 / 1e3),
        (whole, _) => format!("gpu {whole}"),
    };
    [sum, cards].into_iter().filter(|text| !text.is_empty()).collect::<Vec<_>>().join(", ")
}

/// What claims leave of a worker that holds any.
pub fn left<'a>(capacity: &WorkerCapacity, claims: impl Iterator<Item = &'a ClaimedResources> + Clone) -> String {
    // In an exclusive pool a claim holds all, and no card by its number.
    let takes_all = |held: &ClaimedResources| held.gpu.as_ref().is_some_and(|gpu| gpu.milli.is_none());
    if claims.clone().next().is_none() || claims.clone().any(takes_all) {
        return String::new();
    }
    let sum = |amount: fn(&ClaimedResources) -> u64| claims.clone().map(amount).sum::<u64>();
    let left = ClaimedResources {
        cpu_milli: capacity.cpu_milli.saturating_sub(sum(|held| held.cpu_milli)),
        memory_bytes: capacity.memory_bytes.saturating_sub(sum(|held| held.memory_bytes)),
        slots: capacity.slots.saturating_sub(sum(|held| held.slots)),
        gpu: None,
    };
    let cards = capacity.gpu.as_ref().map(|gpu| {
        let mut milli = vec![1_000_u64; gpu.count as usize];
        for share in claims.clone().filter_map(|held| held.gpu.as_ref()) {
            for &card in &share.indices {
                if let Some(left) = milli.get_mut(card as usize) {
                    *left = left.saturating_sub(share.milli.map_or(1_000, u64::from));
                }
            }
        }
        let free = milli.iter().filter(|&&left| left == 1_000).count() as u64;
        GpuAvailability { total: gpu.count.into(), free, free_milli: milli.iter().sum() }.describe_free(&gpu.model)
    });
    let amounts = self::describe_resources(&left);
    Some(amounts).filter(|text| !text.is_empty()).into_iter().chain(cards).collect::<Vec<_>>().join(", ")
}

/// `cpu 2, memory 4Gi, slots 8, gpu 2 a100`; cores with a fraction only where there is one.
pub fn describe_capacity(capacity: &WorkerCapacity) -> String {
    let mut parts = Vec::new();
    if capacity.cpu_milli > 0 {
        parts.push(format!("cpu {}", capacity.cpu_milli as f64 / 1e3));
    }
    if capacity.memory_bytes > 0 {
        parts.push(format!("memory {}", bytes(capacity.memory_bytes)));
    }
    if capacity.slots > 0 {
        parts.push(format!("slots {}", capacity.slots));
    }
    if let Some(gpu) = &capacity.gpu {
        parts.push(format!("gpu {} {}", gpu.count, gpu.model));
    }
    parts.join(", ")
}

/// In the largest binary unit that leaves at least one, with one digit behind the point where it is not whole.
pub fn bytes(bytes: u64) -> String {
    let units = ["", "Ki", "Mi", "Gi", "Ti"];
    let unit = (1..units.len()).rev().find(|unit| bytes >> (10 * unit) > 0).unwrap_or(0);
    let (size, whole) = (1_u64 << (10 * unit), bytes >> (10 * unit));
    if bytes.is_multiple_of(size) {
        format!("{whole}{}", units[unit])
    } else {
        format!("{:.1}{}", bytes as f64 / size as f64, units[unit])
    }
}

/// `3 total, 2 busy, 1 idle`: the whole first, then the parts.
pub fn counts(counts: &BTreeMap<String, u64>) -> String {
    let whole = counts.get_key_value("total");
    let parts = counts.iter().filter(|(name, _)| *name != "total");
    whole.into_iter().chain(parts).map(|(name, count)| format!("{count} {name}")).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_can_be_read() {
        let durations = [
            (0, "0ms"),
            (999, "999ms"),
            (59_999, "59s"),
            (61_000, "1m01s"),
            (7_260_000, "2h01m"),
            (90_000_000, "1d01h"),
        ];
        for (ms, text) in durations {
            assert_eq!(duration(ms), text);
        }
        assert_eq!(
            (relative_time(5_000, 2_000), relative_time(2_000, 5_000)),
            ("in 3s".to_owned(), "3s ago".to_owned())
        );
        let sizes = [(0, "0"), (1023, "1023"), (1024, "1Ki"), (1536, "1.5Ki"), (4 << 30, "4Gi"), (3 << 50, "3072Ti")];
        for (size, text) in sizes {
            assert_eq!(bytes(size), text);
        }
    }

    #[test]
    fn a_row_is_a_line_however_long() {
        let text = table(&["ID", ">N"], [vec!["w".repeat(300), "7".into()], vec![String::new(), "1000".into()]]);
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines.len(), 3, "{text}");
        assert_eq!(lines[0], format!("{:300}  {:>4}", "ID", "N"));
        assert_eq!(lines[2], format!("{:300}  1000", "-"));
    }
}
