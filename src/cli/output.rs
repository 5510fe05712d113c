//! Output of commands: tables for people, JSON for scripts.

use std::collections::BTreeMap;
use std::io::{ErrorKind, Write as _};

use clap::ValueEnum;
use comfy_table::{CellAlignment, ContentArrangement, Table, presets};
use serde::Serialize;
use serde_json::Value;

use super::failure::{CommandExit, CommandFailure};
use crate::client::{ClaimedGpus, ClaimedResources, GpuAvailability};
use crate::limits::GPU_MILLI;
use crate::model::{Millis, WorkerCapacity};

/// Format of answers and failures.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum OutputFormat {
    /// Tables and sentences for people.
    Table,
    /// JSON text, for scripts.
    Json,
}

impl OutputFormat {
    /// Reports a failure on stderr in the format of answers.
    pub fn print_failure(self, failure: &CommandFailure) {
        let text = match self {
            Self::Table => format!("hotpool: {failure}"),
            Self::Json => serde_json::to_string(failure).expect("a failure is plain data"),
        };
        print_note(&text);
    }
}

/// Prints a line on stderr that is no answer. A closed stream is ignored.
pub fn print_note(text: &str) {
    let _ = writeln!(std::io::stderr(), "{text}");
}

/// Prints a text on stdout. A reader that closed the pipe (`| head`) ends the program with success.
///
/// # Errors
/// Every other failure to write, such as a full disk.
pub fn print(text: &str) -> Result<(), CommandFailure> {
    let mut out = std::io::stdout().lock();
    let end = if text.ends_with('\n') { "" } else { "\n" };
    match write!(out, "{text}{end}").and_then(|()| out.flush()) {
        Err(error) if error.kind() == ErrorKind::BrokenPipe => std::process::exit(i32::from(CommandExit::Ok as u8)),
        written => written.map_err(CommandFailure::from_local),
    }
}

/// Prints a value as one line of JSON.
///
/// # Errors
/// Errors are those of [`fn@print`].
pub fn print_json(value: &impl Serialize) -> Result<(), CommandFailure> {
    print(&serde_json::to_string(value).expect("answers are plain data"))
}

/// Formats a table without rules and one line for each row, so that it can be read, cut and searched. Headings are
/// separated by commas; one that begins with `>` heads a column of numbers.
pub fn table(headings: &str, rows: impl IntoIterator<Item = Vec<String>>) -> String {
    let headings: Vec<&str> = headings.split(',').collect();
    let mut table = Table::new();
    table.load_preset(presets::NOTHING).set_content_arrangement(ContentArrangement::Disabled);
    table.set_header(headings.iter().map(|heading| heading.trim_start_matches('>')));
    for row in rows {
        table.add_row(row.into_iter().map(|cell| if cell.is_empty() { "-".to_owned() } else { cell }));
    }
    render_table(&mut table, &headings)
}

/// Formats the properties of one object, one a line, without empty ones.
pub fn property_list(properties: &[(&str, String)]) -> String {
    let mut table = Table::new();
    table.load_preset(presets::NOTHING).set_content_arrangement(ContentArrangement::Disabled);
    for (name, value) in properties.iter().filter(|(_, value)| !value.is_empty()) {
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

/// Formats a value without the quotes of JSON, and a map as `key=value,...`.
pub fn plain_text(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        Value::Object(map) => labels_text(&map.iter().map(|(key, value)| (key.clone(), plain_text(value))).collect()),
        other => other.to_string(),
    }
}

/// Formats the word by which the API names a state.
pub fn state_text(state: impl Serialize) -> String {
    plain_text(&serde_json::to_value(state).expect("states are words"))
}

/// Formats a duration: `250ms`, `23s`, `5m10s`, `3h05m`, `2d04h`.
pub fn duration(ms: Millis) -> String {
    let seconds = ms / 1_000;
    match seconds {
        0 => format!("{ms}ms"),
        1..60 => format!("{seconds}s"),
        60..3_600 => format!("{}m{:02}s", seconds / 60, seconds % 60),
        3_600..86_400 => format!("{}h{:02}m", seconds / 3_600, seconds / 60 % 60),
        _ => format!("{}d{:02}h", seconds / 86_400, seconds / 3_600 % 24),
    }
}

/// Formats a time relative to now: `in 23s`, `5s ago`; empty for none.
pub fn relative_time(at_ms: Option<Millis>, now_ms: Millis) -> String {
    at_ms.map_or_else(String::new, |at_ms| match at_ms.checked_sub(now_ms) {
        Some(ahead_ms) => format!("in {}", duration(ahead_ms)),
        None => format!("{} ago", duration(now_ms - at_ms)),
    })
}

/// Formats labels for tables: `zone=a,tier=b`.
pub fn labels_text(labels: &BTreeMap<String, String>) -> String {
    labels.iter().map(|(key, value)| format!("{key}={value}")).collect::<Vec<_>>().join(",")
}

/// Joins the parts that are not empty by `", "`.
pub fn join_nonempty(parts: impl IntoIterator<Item = String>) -> String {
    parts.into_iter().filter(|part| !part.is_empty()).collect::<Vec<_>>().join(", ")
}

/// Formats a number; 0 is left out.
pub fn nonzero_text(number: u64) -> String {
    if number == 0 { String::new() } else { number.to_string() }
}

/// Formats claimable GPUs: `gpu 2 a100`, or `gpu 2 a100 (2.7 in all)` if parts of others are free too.
pub fn describe_free_gpus(gpus: GpuAvailability, model: &str) -> String {
    let whole = format!("gpu {} {model}", gpus.free);
    let has_parts = gpus.free_milli > gpus.free * u64::from(GPU_MILLI);
    if has_parts { format!("{whole} ({} in all)", gpus.free_milli as f64 / 1e3) } else { whole }
}

/// Formats what a claim holds: `cpu 2, memory 4Gi, gpu 0.5 a100 (card 3)`.
pub fn describe_resources(resources: &ClaimedResources) -> String {
    let ClaimedResources { cpu_milli, memory_bytes, slots, ref gpu } = *resources;
    let gpus = gpu.as_ref().map(|ClaimedGpus { model, count, milli, indices }| {
        let amount = *count as f64 * f64::from(milli.unwrap_or(GPU_MILLI)) / 1e3;
        let numbers = indices.iter().map(u32::to_string).collect::<Vec<_>>().join(",");
        match indices.len() {
            0 => format!("gpu {amount} {model}"),
            1 => format!("gpu {amount} {model} (card {numbers})"),
            _ => format!("gpu {amount} {model} (cards {numbers})"),
        }
    });
    join_nonempty(
        [describe_capacity(&WorkerCapacity { cpu_milli, memory_bytes, slots, gpu: None })].into_iter().chain(gpus),
    )
}

/// Formats amounts by their names, as explanations have them: `cpu 4, memory 2Gi, gpu 0.7 of one card`.
pub fn describe_amounts(amounts: &BTreeMap<String, u64>) -> String {
    let get = |name: &str| amounts.get(name).copied().unwrap_or_default();
    let (cpu_milli, memory_bytes, slots) = (get("cpu_milli"), get("memory_bytes"), get("slots"));
    let gpus = match (get("gpu"), get("gpu_milli")) {
        (0, 0) => String::new(),
        (0, milli) => format!("gpu {} of one card", milli as f64 / 1e3),
        (whole, _) => format!("gpu {whole}"),
    };
    join_nonempty([describe_capacity(&WorkerCapacity { cpu_milli, memory_bytes, slots, gpu: None }), gpus])
}

/// Formats the free resources of a worker that holds claims; empty for one that holds none or is taken as a whole.
pub fn describe_free<'a>(
    capacity: &WorkerCapacity,
    claims: impl Iterator<Item = &'a ClaimedResources> + Clone,
) -> String {
    // In an exclusive pool a claim holds the whole worker, and its GPUs without their numbers.
    let takes_whole = |claimed: &ClaimedResources| claimed.gpu.as_ref().is_some_and(|gpu| gpu.milli.is_none());
    if claims.clone().next().is_none() || claims.clone().any(takes_whole) {
        return String::new();
    }
    let free = |total: u64, amount: fn(&ClaimedResources) -> u64| {
        total.saturating_sub(claims.clone().map(amount).sum::<u64>())
    };
    let sums = WorkerCapacity {
        cpu_milli: free(capacity.cpu_milli, |claimed| claimed.cpu_milli),
        memory_bytes: free(capacity.memory_bytes, |claimed| claimed.memory_bytes),
        slots: free(capacity.slots, |claimed| claimed.slots),
        gpu: None,
    };
    let gpus = capacity.gpu.as_ref().map(|gpu| {
        let whole = u64::from(GPU_MILLI);
        let mut free_milli = vec![whole; gpu.count as usize];
        for claimed in claims.clone().filter_map(|claimed| claimed.gpu.as_ref()) {
            for &index in &claimed.indices {
                if let Some(milli) = free_milli.get_mut(index as usize) {
                    *milli = milli.saturating_sub(claimed.milli.unwrap_or(GPU_MILLI).into());
                }
            }
        }
        let free = free_milli.iter().filter(|&&milli| milli == whole).count() as u64;
        let free_milli = free_milli.iter().sum();
        describe_free_gpus(GpuAvailability { total: gpu.count.into(), free, free_milli }, &gpu.model)
    });
    join_nonempty([describe_capacity(&sums)].into_iter().chain(gpus))
}

/// Formats a capacity: `cpu 2, memory 4Gi, slots 8, gpu 2 a100`. Fractions of cores appear only where there are any.
pub fn describe_capacity(capacity: &WorkerCapacity) -> String {
    let WorkerCapacity { cpu_milli, memory_bytes, slots, gpu } = capacity;
    let amount = |amount: u64, text: String| if amount > 0 { text } else { String::new() };
    join_nonempty([
        amount(*cpu_milli, format!("cpu {}", *cpu_milli as f64 / 1e3)),
        amount(*memory_bytes, format!("memory {}", bytes(*memory_bytes))),
        amount(*slots, format!("slots {slots}")),
        gpu.as_ref().map_or_else(String::new, |gpu| format!("gpu {} {}", gpu.count, gpu.model)),
    ])
}

/// Formats bytes in the largest binary unit of which there is at least one, with a fraction only where there is one.
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

/// Formats counts with the total first: `3 total, 2 busy, 1 idle`.
pub fn counts(counts: &BTreeMap<String, u64>) -> String {
    let total = counts.get_key_value("total");
    let parts = counts.iter().filter(|(name, _)| *name != "total");
    join_nonempty(total.into_iter().chain(parts).map(|(name, count)| format!("{count} {name}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_times_and_sizes_are_readable() {
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
            [(Some(5_000), 2_000), (Some(2_000), 5_000), (None, 1)].map(|(at, now)| relative_time(at, now)),
            ["in 3s", "3s ago", ""]
        );
        let sizes = [(0, "0"), (1023, "1023"), (1024, "1Ki"), (1536, "1.5Ki"), (4 << 30, "4Gi"), (3 << 50, "3072Ti")];
        for (size, text) in sizes {
            assert_eq!(bytes(size), text);
        }
    }

    #[test]
    fn a_row_is_one_line_however_long() {
        let text = table("ID,>N", [vec!["w".repeat(300), "7".into()], vec![String::new(), "1000".into()]]);
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines.len(), 3, "{text}");
        assert_eq!(lines[0], format!("{:300}  {:>4}", "ID", "N"));
        assert_eq!(lines[2], format!("{:300}  1000", "-"));
    }
}
