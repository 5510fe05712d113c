//! Request schedule of a phase.

use std::path::PathBuf;
use std::time::Duration;

use super::{BurstLoad, OperationSchedule, ScenarioError, ScenarioPhase, TRACES_ENV, TraceKind, TraceSource};
use crate::claim_input::{BatchAtomicity, ClaimParams};
use crate::load_client::LoadOperation;
use crate::{pacing, replay, trace};

impl ScenarioPhase {
    /// Appends the requests that are due within `duration`, with offsets from the start of the phase.
    pub(super) fn schedule(&self, duration: Duration, schedule: &mut OperationSchedule) -> Result<(), ScenarioError> {
        let hold = Duration::from_millis(self.hold_ms);
        let batch = self.batch as usize;
        // Interleave the sizes: 8 of one and 2 of another must not mean 8 in a row.
        let total: u32 = self.sizes.iter().map(|size| size.weight).sum();
        let size = |n: usize| -> u32 {
            let ticket = (n as u64 * 7_919) % u64::from(total.max(1));
            let mut remaining = ticket;
            let picked = self.sizes.iter().find(|size| {
                let hit = remaining < u64::from(size.weight);
                remaining = remaining.saturating_sub(size.weight.into());
                hit
            });
            picked.map_or(0, |size| size.slots)
        };
        let atomicity = if self.gang { BatchAtomicity::AllOrNothing } else { BatchAtomicity::Independent };
        let operation = |n: usize| {
            let params = ClaimParams { slots: size(n), wait_ms: self.wait_ms, function: None };
            LoadOperation { params, claims: batch, atomicity, hold }
        };
        if let Some(rate) = self.rate {
            let offsets = pacing::steady_schedule(rate, batch, duration);
            schedule.extend(offsets.enumerate().map(|(n, (at, ()))| (at, operation(n))));
        }
        if let Some(BurstLoad { claims, every_ms }) = self.burst {
            let every = Duration::from_millis(every_ms);
            let bursts = (0_u32..).map(|n| every * n).take_while(|at| *at < duration);
            let requests = claims as usize / batch;
            schedule
                .extend(bursts.flat_map(|at| (0..requests).map(move |n| (at, n))).map(|(at, n)| (at, operation(n))));
        }
        if let Some(recorded) = &self.trace {
            let invocations = recorded.read()?;
            let replayed = replay::schedule(invocations, recorded.speed, Some(duration));
            schedule.extend(replayed.map(|(at, operation)| {
                let params = ClaimParams { slots: size(0), wait_ms: self.wait_ms, ..operation.params };
                (at, LoadOperation { params, ..operation })
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
