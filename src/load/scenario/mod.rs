//! Scenario files: a pool, one or more phases of load in sequence, and disruptions during the run.
//!
//! A file is validated completely before anything is sent, and all problems are reported together.

mod calls;

use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_json::Value;
use serde_path_to_error::Segment;

use super::claim_input::TargetPool;
use super::load_client::LoadOperation;
use super::url::TargetUrl;
use hotpool::limits::{BATCH_ITEMS_MAX, SHARDS_MAX};
use hotpool::model::AckLevel;

/// Largest number of problems reported for one file.
const PROBLEMS_MAX: usize = 100;
/// Longest duration of a phase, in seconds.
const PHASE_S_MAX: f64 = 86_400.0;
/// Largest number of phases in a scenario.
const PHASES_MAX: usize = 100;
/// Environment variable with the directory of traces.
const TRACES_ENV: &str = "HOTPOOL_TRACES";

/// Scenario as written in its file.
#[derive(Debug, Clone, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct LoadScenario {
    /// Purpose of the scenario, in one sentence.
    pub about: String,
    /// Pool that the run creates.
    pub pool: ScenarioPool,
    /// Clients that send the load.
    #[serde(default)]
    pub clients: ScenarioClients,
    /// Phases, run one after the other.
    pub phases: Vec<ScenarioPhase>,
    /// Replacement of workers during the run.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub churn: Option<WorkerChurn>,
    /// Redis outage during the run.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub failover: Option<RedisFailover>,
}

/// Pool section of a scenario.
#[derive(Debug, Clone, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct ScenarioPool {
    /// Number of workers to register.
    pub workers: u32,
    /// Slots of each worker; 0 if a claim takes a whole worker.
    #[serde(default)]
    pub slots: u32,
    /// Number of shards; a power of two.
    #[serde(default = "default_shards")]
    pub shards: u16,
    /// Acknowledgement level of the pool.
    #[serde(default)]
    pub ack: AckLevel,
}

const fn default_shards() -> u16 {
    16
}

/// Clients section of a scenario.
#[derive(Debug, Clone, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct ScenarioClients {
    /// Number of clients that send requests.
    pub count: u32,
    /// Limit on outstanding requests over all clients; requests due beyond it count as errors.
    pub in_flight: u32,
}

impl Default for ScenarioClients {
    fn default() -> Self {
        Self { count: 8, in_flight: 20_000 }
    }
}

/// Phase of a scenario, with exactly one of `rate`, `burst` and `trace`.
#[derive(Debug, Clone, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct ScenarioPhase {
    /// Duration in seconds; a trace may end earlier.
    pub duration_s: f64,
    /// Claims per second, sent on schedule regardless of replies.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rate: Option<f64>,
    /// Bursts of simultaneous claims.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub burst: Option<BurstLoad>,
    /// Recorded arrivals to replay.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub trace: Option<TraceSource>,
    /// Time that a claim is held, in milliseconds; a trace has its own.
    #[serde(default)]
    pub hold_ms: u64,
    /// Claims in one request.
    #[serde(default = "default_batch")]
    pub batch: u32,
    /// Grant the claims of a request all together or not at all.
    #[serde(default)]
    pub gang: bool,
    /// Sizes of claims on a pool whose workers have slots, interleaved by weight.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub sizes: Vec<WeightedSize>,
    /// Longest time that a claim queues for capacity, in milliseconds.
    #[serde(default)]
    pub wait_ms: u32,
}

const fn default_batch() -> u32 {
    1
}

/// Bursts of claims at a fixed interval.
#[derive(Debug, Clone, Copy, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct BurstLoad {
    /// Number of claims per burst.
    pub claims: u32,
    /// Interval between bursts, in milliseconds.
    pub every_ms: u64,
}

/// Recorded load to replay.
#[derive(Debug, Clone, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct TraceSource {
    /// Trace file, relative to `HOTPOOL_TRACES` or `../shared/traces`.
    pub file: PathBuf,
    /// Format of the trace.
    pub kind: TraceKind,
    /// Factor by which the trace is sped up.
    pub speed: f64,
}

/// Formats of trace files.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum TraceKind {
    /// Function invocations with their run times.
    Functions,
    /// Language model requests; their run times follow from token counts.
    Llm,
}

/// Claim size with its relative frequency.
#[derive(Debug, Clone, Copy, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct WeightedSize {
    /// Slots of a worker per claim.
    pub slots: u32,
    /// Relative frequency among all sizes.
    pub weight: u32,
}

/// Periodic replacement of workers.
#[derive(Debug, Clone, Copy, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct WorkerChurn {
    /// Interval between changes, in milliseconds.
    pub every_ms: u64,
    /// Workers replaced per change, the oldest first.
    pub workers: u32,
}

/// Outage of a Redis server. Without its address on the command line, nothing fails.
#[derive(Debug, Clone, Copy, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct RedisFailover {
    /// Time of the outage, in seconds from the start.
    pub at_s: f64,
    /// Kind of outage to cause.
    pub how: OutageKind,
}

/// Kinds of Redis outage.
#[derive(Debug, Clone, Copy, Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum OutageKind {
    /// Pauses replies to all clients for this many milliseconds (`CLIENT PAUSE`), like a stalled host.
    PauseMs(u64),
    /// Terminates the server (`SHUTDOWN NOSAVE`); replicas or a supervisor must take over.
    Shutdown,
}

/// Reasons why a scenario cannot run.
#[derive(Debug, thiserror::Error)]
pub enum ScenarioError {
    /// Unreadable file, or invalid TOML.
    #[error("{0}")]
    File(String),
    /// Invalid or unknown keys, one message each.
    #[error("{}", .0.join("\n"))]
    Problems(Vec<String>),
    /// Trace file that does not exist.
    #[error("trace {0} not found: set {TRACES_ENV} to the directory of traces")]
    NoTrace(PathBuf),
    /// Trace file that cannot be used.
    #[error("{0}")]
    Trace(String),
}

/// Requests of a scenario, each with its offset from the start.
pub type OperationSchedule = Vec<(Duration, LoadOperation)>;

impl LoadScenario {
    /// Reads and validates a scenario file.
    ///
    /// # Errors
    /// Fails with `File`, or with `Problems` that lists every problem.
    pub fn read(path: &Path) -> Result<Self, ScenarioError> {
        let file_error = |error: &dyn std::fmt::Display| ScenarioError::File(format!("{}: {error}", path.display()));
        let text = std::fs::read_to_string(path).map_err(|error| file_error(&error))?;
        let document = toml::from_str(&text).map_err(|error| file_error(&error))?;
        Self::from_tree(document).map_err(|problems| {
            ScenarioError::Problems(
                problems.into_iter().map(|message| format!("{}: {message}", path.display())).collect(),
            )
        })
    }

    /// Deserializes a document. Values that cannot be read are reported and removed until the rest can.
    fn from_tree(mut document: Value) -> Result<Self, Vec<String>> {
        let mut problems = Vec::new();
        while problems.len() < PROBLEMS_MAX {
            match serde_path_to_error::deserialize::<_, Self>(&document) {
                Ok(scenario) => {
                    problems.extend(scenario.problems());
                    return if problems.is_empty() { Ok(scenario) } else { Err(problems) };
                }
                Err(error) => {
                    problems.push(format!("{}: {}", error.path(), error.inner()));
                    let path: Vec<&Segment> = error.path().iter().collect();
                    if !remove_path(&mut document, &path) {
                        break;
                    }
                }
            }
        }
        Err(problems)
    }

    /// Problems of values that could be deserialized.
    fn problems(&self) -> Vec<String> {
        let mut problems = Vec::new();
        let mut range = |key: &str, value: u64, min: u64, max: u64| {
            if !(min..=max).contains(&value) {
                problems.push(format!("{key}: must be {min} to {max}, got {value}"));
            }
        };
        range("pool.workers", self.pool.workers.into(), 1, 10_000_000);
        range("pool.slots", self.pool.slots.into(), 0, 1_000_000);
        range("clients.count", self.clients.count.into(), 1, 10_000);
        range("clients.in_flight", self.clients.in_flight.into(), 1, 10_000_000);
        range("phases", self.phases.len() as u64, 1, PHASES_MAX as u64);
        if let Some(churn) = self.churn {
            range("churn.every_ms", churn.every_ms, 1, 86_400_000);
            range("churn.workers", churn.workers.into(), 1, self.pool.workers.into());
        }
        if !self.pool.shards.is_power_of_two() || self.pool.shards > SHARDS_MAX {
            problems
                .push(format!("pool.shards: must be a power of two from 1 to {SHARDS_MAX}, got {}", self.pool.shards));
        }
        for (n, phase) in self.phases.iter().enumerate() {
            let message = phase.problems(self.pool.slots);
            problems.extend(message.into_iter().map(|message| format!("phases[{n}].{message}")));
        }
        if let Some(RedisFailover { at_s, .. }) = self.failover
            && !(0.0..self.duration_s()).contains(&at_s)
        {
            problems
                .push(format!("failover.at_s: must be within the {} s of the phases, got {at_s}", self.duration_s()));
        }
        problems
    }

    /// Total duration of all phases, in seconds.
    #[must_use]
    pub fn duration_s(&self) -> f64 {
        self.phases.iter().map(|phase| phase.duration_s).sum()
    }

    /// Shortens every phase to at most `phase_s` seconds.
    #[must_use]
    pub fn limit_phases(mut self, phase_s: f64) -> Self {
        self.phases.iter_mut().for_each(|phase| phase.duration_s = phase.duration_s.min(phase_s));
        if let Some(failover) = &mut self.failover {
            failover.at_s = failover.at_s.min(phase_s / 2.0);
        }
        self
    }

    /// Configuration of the pool to create.
    #[must_use]
    pub const fn target_pool(&self) -> TargetPool {
        let ScenarioPool { workers, slots, shards, ack } = self.pool;
        TargetPool { workers, slots, shards, ack }
    }

    /// Reason why the target cannot run the scenario, if there is one.
    #[must_use]
    pub fn unsupported_by(&self, url: &TargetUrl) -> Option<String> {
        let (gang, queues) =
            (self.phases.iter().any(|phase| phase.gang), self.phases.iter().any(|phase| phase.wait_ms > 0));
        let what = match url {
            TargetUrl::Resp { .. } if gang => "does not support gangs",
            TargetUrl::Resp { .. } if queues => "replies in order, so a queued claim would block those behind it",
            TargetUrl::Baseline(_) | TargetUrl::Postgres(_) | TargetUrl::Echo(_) if gang => "does not support gangs",
            TargetUrl::Baseline(_) | TargetUrl::Postgres(_) | TargetUrl::Echo(_) if queues => {
                "does not support wait_ms"
            }
            TargetUrl::Baseline(_) | TargetUrl::Postgres(_) | TargetUrl::Echo(_) if self.churn.is_some() => {
                "does not support churn"
            }
            TargetUrl::Baseline(url) if self.pool.slots > 0 && url.whole_workers() => "grants whole workers only",
            _ => return None,
        };
        Some(format!("{url} {what}"))
    }

    /// Builds the schedule of requests.
    ///
    /// # Errors
    /// Fails if a trace is missing or unusable.
    pub fn schedule(&self) -> Result<OperationSchedule, ScenarioError> {
        let mut schedule = Vec::new();
        let mut phase_start = Duration::ZERO;
        for phase in &self.phases {
            let duration = Duration::from_secs_f64(phase.duration_s);
            let first = schedule.len();
            phase.schedule(duration, &mut schedule)?;
            schedule[first..].iter_mut().for_each(|(at, _)| *at += phase_start);
            phase_start += duration;
        }
        Ok(schedule)
    }
}

impl ScenarioPhase {
    fn problems(&self, slots: u32) -> Vec<String> {
        let mut problems = Vec::new();
        let mut report = |wrong: bool, what: String| problems.extend(wrong.then_some(what));
        let positive = |number: f64| number > 0.0 && number.is_finite();
        let in_time = positive(self.duration_s) && self.duration_s <= PHASE_S_MAX;
        report(!in_time, format!("duration_s: must be above 0 and at most {PHASE_S_MAX}, got {}", self.duration_s));
        let kinds = [self.rate.is_some(), self.burst.is_some(), self.trace.is_some()];
        let one_kind = kinds.iter().filter(|given| **given).count() == 1;
        report(!one_kind, "rate, burst, trace: exactly one of them must be given".into());
        if let Some(rate) = self.rate {
            report(!(positive(rate) && rate <= 1e8), format!("rate: must be above 0 and at most 1e8, got {rate}"));
        }
        if let Some(burst) = self.burst {
            report(burst.claims == 0, "burst.claims: must be at least 1, got 0".into());
            report(burst.every_ms == 0, "burst.every_ms: must be at least 1, got 0".into());
            let even = self.batch > 0 && burst.claims.is_multiple_of(self.batch);
            report(!even, format!("burst.claims: must be a multiple of batch, {}, got {}", self.batch, burst.claims));
        }
        if let Some(trace) = &self.trace {
            report(!positive(trace.speed), format!("trace.speed: must be above 0, got {}", trace.speed));
            report(self.batch != 1 || self.gang, "trace: requires batch = 1 and no gang".into());
        }
        let fits = (1..=BATCH_ITEMS_MAX as u32).contains(&self.batch);
        report(!fits, format!("batch: must be 1 to {BATCH_ITEMS_MAX}, got {}", self.batch));
        report(self.gang && self.batch == 1, "gang: requires a batch of at least 2".into());
        let shared = slots > 0;
        report(shared == self.sizes.is_empty(), "sizes: required for pools with slots, not allowed otherwise".into());
        for (n, size) in self.sizes.iter().enumerate() {
            let fits = (1..=slots.max(1)).contains(&size.slots);
            report(!fits, format!("sizes[{n}].slots: must be 1 to {slots}, got {}", size.slots));
            report(size.weight == 0 || size.weight > 1_000, format!("sizes[{n}].weight: must be 1 to 1000"));
        }
        problems
    }
}

/// Removes the value at a path from the document. Returns false if the path does not exist.
fn remove_path(document: &mut Value, path: &[&Segment]) -> bool {
    let Some((last, before)) = path.split_last() else { return false };
    let inner = before.iter().try_fold(document, |document, step| match step {
        Segment::Map { key } => document.get_mut(key),
        Segment::Seq { index } => document.get_mut(*index),
        _ => None,
    });
    match (inner, last) {
        (Some(Value::Object(table)), Segment::Map { key }) => table.remove(key).is_some(),
        _ => false,
    }
}

#[cfg(test)]
mod tests;
