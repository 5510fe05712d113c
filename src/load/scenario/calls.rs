//! The calls of a phase: what is due when.

use std::path::PathBuf;
use std::time::Duration;

use super::{BurstLoad, OperationSchedule, ScenarioError, ScenarioPhase, TRACES_ENV, TraceKind, TraceSource};
use crate::claim_input::ClaimParams;
use crate::load_client::LoadOperation;
use crate::{pacing, replay, trace};

impl ScenarioPhase {
    /// Appends what is due within `duration`, counted from the start of the phase.
    pub(super) fn calls(&self, duration: Duration, calls: &mut OperationSchedule) -> Result<(), ScenarioError> {
        let hold = Duration::from_millis(self.hold_ms);
        let batch = self.batch as usize;
        // Spread evenly: 8 of one size and 2 of another are not 8 in a row.
        let total: u32 = self.sizes.iter().map(|size| size.weight).sum();
        let size = |n: usize| -> u32 {
            let step = (n as u64 * 7_919) % u64::from(total.max(1));
            let mut left = step;
            let picked = self.sizes.iter().find(|size| {
                let is_it = left < u64::from(size.weight);
                left = left.saturating_sub(size.weight.into());
                is_it
            });
            picked.map_or(0, |size| size.slots)
        };
        let call = |n: usize| {
            let want = ClaimParams { slots: size(n), wait_ms: self.wait_ms, function: None };
            LoadOperation { params: want, claims: batch, gang: self.gang, hold }
        };
        if let Some(rate) = self.rate {
            let due = pacing::steady_schedule(rate, batch, duration);
            calls.extend(due.enumerate().map(|(n, (at, ()))| (at, call(n))));
        }
        if let Some(BurstLoad { claims, every_ms }) = self.burst {
            let every = Duration::from_millis(every_ms);
            let bursts = (0_u32..).map(|n| every * n).take_while(|at| *at < duration);
            let each = claims as usize / batch;
            calls.extend(bursts.flat_map(|at| (0..each).map(move |n| (at, n))).map(|(at, n)| (at, call(n))));
        }
        if let Some(recorded) = &self.trace {
            let invocations = recorded.read()?;
            let replayed = replay::schedule(invocations, recorded.speed, Some(duration));
            calls.extend(replayed.map(|(at, call)| {
                let want = ClaimParams { slots: size(0), wait_ms: self.wait_ms, ..call.params };
                (at, LoadOperation { params: want, ..call })
            }));
        }
        Ok(())
    }
}

impl TraceSource {
    fn read(&self) -> Result<Vec<trace::TraceInvocation>, ScenarioError> {
        let dir = std::env::var_os(TRACES_ENV).map_or_else(|| PathBuf::from("../shared/traces"), PathBuf::from);
        let path = dir.join(&self.file);
        if !path.exists() {
            return Err(ScenarioError::NoTrace(path));
        }
        let read = match self.kind {
            TraceKind::Functions => trace::read(&path),
            TraceKind::Llm => trace::read_llm(&path),
        };
        read.map_err(|error| ScenarioError::Trace(format!("{}: {error}", path.display())))
    }
}
