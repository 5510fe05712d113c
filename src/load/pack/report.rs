//! Report of a packing run: JSON for programs, a table for people.

use std::collections::BTreeMap;

use comfy_table::{Table, presets};
use serde::Serialize;

use super::curve::{LAST_PERCENT, curve};
use super::input::PackInput;
use super::simulate::SimulationResult;
use crate::report::{LatencySummary, MachineSpec};

/// Time per placement decision, in microseconds.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct DecisionTime {
    /// Median of all decisions, in microseconds.
    pub p50: f64,
    /// 99th percentile in microseconds.
    pub p99: f64,
    /// Maximum of all decisions, in microseconds.
    pub max: f64,
}

/// Report of a packing run.
#[derive(Debug, Clone, Serialize)]
pub struct PackReport {
    /// Name of the subcommand: always `pack`.
    pub command: &'static str,
    /// Version of the harness.
    pub version: &'static str,
    /// Command-line options, defaults included.
    pub parameters: serde_json::Value,
    /// Machine that ran the harness.
    pub machine: MachineSpec,
    /// Per cent of all GPUs allocated once 100 and 130 per cent have been requested.
    pub alloc_at: BTreeMap<&'static str, Option<f64>>,
    /// Per cent allocated at 0, 1, ... per cent requested.
    pub curve: Vec<Option<f64>>,
    /// Number of requests simulated.
    pub requests: u64,
    /// Number of requests that no worker could hold.
    pub failed: u64,
    /// Number of decisions per second of decision time.
    pub decisions_per_s: f64,
    /// Time to pick a worker and record the allocation.
    pub decision_us: DecisionTime,
}

impl PackReport {
    /// Creates the report of a simulation.
    #[must_use]
    pub fn new(input: &PackInput, result: &SimulationResult, parameters: serde_json::Value) -> Self {
        let curve = curve(&result.points, input.gpus());
        let LatencySummary { p50, p99, max, .. } = LatencySummary::from_histogram(&result.decisions);
        let requests = result.points.len() as u64;
        Self {
            command: "pack",
            version: env!("CARGO_PKG_VERSION"),
            parameters,
            machine: MachineSpec::detect(),
            alloc_at: BTreeMap::from([("100", curve[100]), ("130", curve[LAST_PERCENT])]),
            curve,
            requests,
            failed: result.failed,
            decisions_per_s: requests as f64 / result.took.as_secs_f64().max(f64::MIN_POSITIVE),
            decision_us: DecisionTime { p50, p99, max },
        }
    }

    /// Formats the report as a table for people.
    #[must_use]
    pub fn table(&self) -> String {
        let mut table = Table::new();
        table.load_preset(presets::NOTHING);
        let percent = |at: Option<f64>| at.map_or_else(|| "not reached".into(), |at| format!("{at:.2} %"));
        for (arrived, allocated) in &self.alloc_at {
            table.add_row([format!("allocated at {arrived} % arrived"), percent(*allocated)]);
        }
        let DecisionTime { p50, p99, max } = self.decision_us;
        table.add_row(["requests / not placed".into(), format!("{} / {}", self.requests, self.failed)]);
        table.add_row(["decisions".into(), format!("{:.0}/s", self.decisions_per_s)]);
        table.add_row(["decision p50 / p99 / max".into(), format!("{p50:.1} / {p99:.1} / {max:.1} us")]);
        table.to_string()
    }
}
