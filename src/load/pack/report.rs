//! What a packing run found: as JSON for programs, as a table for people.

use std::collections::BTreeMap;

use comfy_table::{Table, presets};
use serde::Serialize;

use super::curve::{LAST_PERCENT, curve};
use super::input::PackInput;
use super::simulate::SimulationResult;
use crate::report::{LatencySummary, MachineSpec};

/// Time per decision, in microseconds.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct DecisionTime {
    /// Half lie at or below.
    pub p50: f64,
    /// 99 in 100.
    pub p99: f64,
    /// The longest.
    pub max: f64,
}

/// The report.
#[derive(Debug, Clone, Serialize)]
pub struct PackReport {
    /// `pack`.
    pub command: &'static str,
    /// Version of this harness.
    pub version: &'static str,
    /// The command line with its defaults.
    pub parameters: serde_json::Value,
    /// Where it ran.
    pub machine: MachineSpec,
    /// Allocated per cent of all cards by the time that so many per cent had arrived.
    pub alloc_at: BTreeMap<&'static str, Option<f64>>,
    /// The same at 0, 1, ... per cent arrived.
    pub curve: Vec<Option<f64>>,
    /// Requests played.
    pub requests: u64,
    /// Requests that found no room.
    pub failed: u64,
    /// Requests by the time that their decisions took.
    pub decisions_per_s: f64,
    /// Choosing a worker, and noting what it gives.
    pub decision_us: DecisionTime,
}

impl PackReport {
    /// Of a run.
    #[must_use]
    pub fn new(input: &PackInput, played: &SimulationResult, parameters: serde_json::Value) -> Self {
        let curve = curve(&played.points, input.cards());
        let LatencySummary { p50, p99, max, .. } = LatencySummary::from_histogram(&played.decisions);
        let requests = played.points.len() as u64;
        Self {
            command: "pack",
            version: env!("CARGO_PKG_VERSION"),
            parameters,
            machine: MachineSpec::detect(),
            alloc_at: BTreeMap::from([("100", curve[100]), ("130", curve[LAST_PERCENT])]),
            curve,
            requests,
            failed: played.failed,
            decisions_per_s: requests as f64 / played.took.as_secs_f64().max(f64::MIN_POSITIVE),
            decision_us: DecisionTime { p50, p99, max },
        }
    }

    /// The report for people.
    #[must_use]
    pub fn table(&self) -> String {
        let mut table = Table::new();
        table.load_preset(presets::NOTHING);
        let percent = |at: Option<f64>| at.map_or_else(|| "not reached".into(), |at| format!("{at:.2} %"));
        for (arrived, allocated) in &self.alloc_at {
            table.add_row([format!("allocated at {arrived} % arrived"), percent(*allocated)]);
        }
        let DecisionTime { p50, p99, max } = self.decision_us;
        table.add_row(["requests / without room".into(), format!("{} / {}", self.requests, self.failed)]);
        table.add_row(["decisions".into(), format!("{:.0}/s", self.decisions_per_s)]);
        table.add_row(["decision p50 / p99 / max".into(), format!("{p50:.1} / {p99:.1} / {max:.1} us")]);
        table.to_string()
    }
}
