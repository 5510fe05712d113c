//! Scenarios: what a load looks like, in a file. One pool, one or more phases one after the other, and what happens meanwhile.
//!
//! Everything in a file is checked before anything is sent, and every problem is told at once.

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

/// Problems of one file that are told.
const PROBLEMS_MAX: usize = 100;
/// Longest phase, in seconds.
const PHASE_S_MAX: f64 = 86_400.0;
/// Most phases.
const PHASES_MAX: usize = 100;
/// Where traces are looked for.
const TRACES_ENV: &str = "HOTPOOL_TRACES";

/// A scenario as its file has it.
#[derive(Debug, Clone, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct LoadScenario {
    /// What it shows, in a sentence.
    pub about: String,
    /// The pool.
    pub pool: ScenarioPool,
    /// Who asks.
    #[serde(default)]
    pub clients: ScenarioClients,
    /// One after the other.
    pub phases: Vec<ScenarioPhase>,
    /// Workers that come and go.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub churn: Option<WorkerChurn>,
    /// A Redis server that stops answering.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub failover: Option<RedisFailover>,
}

/// The pool of a scenario.
#[derive(Debug, Clone, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct ScenarioPool {
    /// Workers.
    pub workers: u32,
    /// Slots of each; 0: a claim takes a worker whole.
    #[serde(default)]
    pub slots: u32,
    /// Shards: a power of two.
    #[serde(default = "default_shards")]
    pub shards: u16,
    /// When answers leave.
    #[serde(default)]
    pub ack: AckLevel,
}

const fn default_shards() -> u16 {
    16
}

/// The clients of a scenario.
#[derive(Debug, Clone, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct ScenarioClients {
    /// How many.
    pub count: u32,
    /// Requests that may be outstanding over all of them; what is due beyond that is an error.
    pub in_flight: u32,
}

impl Default for ScenarioClients {
    fn default() -> Self {
        Self { count: 8, in_flight: 20_000 }
    }
}

/// A part of a scenario. It has exactly one of `rate`, `burst` and `trace`.
#[derive(Debug, Clone, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct ScenarioPhase {
    /// How long it lasts, in seconds; a trace may end earlier.
    pub duration_s: f64,
    /// Claims per second, sent on time whatever the answers do.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rate: Option<f64>,
    /// Many at once, and again.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub burst: Option<BurstLoad>,
    /// As somebody's customers sent them.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub trace: Option<TraceSource>,
    /// How long a claim is held, in milliseconds; a trace says it itself.
    #[serde(default)]
    pub hold_ms: u64,
    /// Claims in one request.
    #[serde(default = "default_batch")]
    pub batch: u32,
    /// The claims of a request are granted all or none.
    #[serde(default)]
    pub gang: bool,
    /// What claims ask for, of a pool whose workers have slots: in turn, each as often as its weight says.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub sizes: Vec<WeightedSize>,
    /// How long a claim waits if there is no room, in milliseconds.
    #[serde(default)]
    pub wait_ms: u32,
}

const fn default_batch() -> u32 {
    1
}

/// Many claims at once.
#[derive(Debug, Clone, Copy, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct BurstLoad {
    /// How many.
    pub claims: u32,
    /// How long from one to the next, in milliseconds.
    pub every_ms: u64,
}

/// A recorded load.
#[derive(Debug, Clone, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct TraceSource {
    /// Its file, below `HOTPOOL_TRACES` or `../shared/traces`.
    pub file: PathBuf,
    /// What it is.
    pub kind: TraceKind,
    /// How many times faster than it happened.
    pub speed: f64,
}

/// Kinds of traces.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum TraceKind {
    /// Invocations of functions, with how long they ran.
    Functions,
    /// Requests to a language model; how long they ran follows from the tokens.
    Llm,
}

/// A size and how often it comes.
#[derive(Debug, Clone, Copy, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct WeightedSize {
    /// Slots of a worker.
    pub slots: u32,
    /// Of the sum of all weights, so many claims.
    pub weight: u32,
}

/// Workers that come and go.
#[derive(Debug, Clone, Copy, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct WorkerChurn {
    /// How long from one change to the next, in milliseconds.
    pub every_ms: u64,
    /// Workers that are deleted, the oldest first, and as many new ones registered.
    pub workers: u32,
}

/// A Redis server that stops answering. Its address is given on the command line; without it nothing is done to anybody.
#[derive(Debug, Clone, Copy, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct RedisFailover {
    /// When, in seconds from the start.
    pub at_s: f64,
    /// How.
    pub how: OutageKind,
}

/// How a server stops answering.
#[derive(Debug, Clone, Copy, Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum OutageKind {
    /// For so many milliseconds it answers nobody (`CLIENT PAUSE`), as when its host stalls; then it goes on.
    PauseMs(u64),
    /// It ends (`SHUTDOWN NOSAVE`); what goes on then is up to its replicas, or to whoever starts it again.
    Shutdown,
}

/// Why a scenario cannot be run.
#[derive(Debug, thiserror::Error)]
pub enum ScenarioError {
    /// The file cannot be read, or is not TOML.
    #[error("{0}")]
    File(String),
    /// What it says is wrong.
    #[error("{}", .0.join("\n"))]
    Problems(Vec<String>),
    /// A trace that it needs is not on this machine.
    #[error("the trace {0} is absent ({TRACES_ENV} says where traces are)")]
    NoTrace(PathBuf),
    /// A trace that is there is no good.
    #[error("{0}")]
    Trace(String),
}

/// The calls of a scenario, each with the time from the start.
pub type OperationSchedule = Vec<(Duration, LoadOperation)>;

impl LoadScenario {
    /// Reads and checks a file.
    ///
    /// # Errors
    /// `File`, or `Problems` with all that is wrong.
    pub fn read(path: &Path) -> Result<Self, ScenarioError> {
        let file = |error: &dyn std::fmt::Display| ScenarioError::File(format!("{}: {error}", path.display()));
        let text = std::fs::read_to_string(path).map_err(|error| file(&error))?;
        let tree = toml::from_str(&text).map_err(|error| file(&error))?;
        Self::from_tree(tree).map_err(|problems| {
            ScenarioError::Problems(problems.into_iter().map(|said| format!("{}: {said}", path.display())).collect())
        })
    }

    /// Of a tree; what cannot be read is told and taken out, until the rest can.
    fn from_tree(mut tree: Value) -> Result<Self, Vec<String>> {
        let mut problems = Vec::new();
        while problems.len() < PROBLEMS_MAX {
            match serde_path_to_error::deserialize::<_, Self>(&tree) {
                Ok(scenario) => {
                    problems.extend(scenario.problems());
                    return if problems.is_empty() { Ok(scenario) } else { Err(problems) };
                }
                Err(error) => {
                    problems.push(format!("{}: {}", error.path(), error.inner()));
                    let path: Vec<&Segment> = error.path().iter().collect();
                    if !remove_path(&mut tree, &path) {
                        break;
                    }
                }
            }
        }
        Err(problems)
    }

    /// What is wrong with values that could be read.
    fn problems(&self) -> Vec<String> {
        let mut problems = Vec::new();
        let mut range = |key: &str, value: u64, min: u64, max: u64| {
            if !(min..=max).contains(&value) {
                problems.push(format!("{key}: must be {min}..={max}, got {value}"));
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
            problems.push(format!("pool.shards: must be a power of two, 1..={SHARDS_MAX}, got {}", self.pool.shards));
        }
        for (n, phase) in self.phases.iter().enumerate() {
            let said = phase.problems(self.pool.slots);
            problems.extend(said.into_iter().map(|said| format!("phases[{n}].{said}")));
        }
        if let Some(RedisFailover { at_s, .. }) = self.failover
            && !(0.0..self.duration_s()).contains(&at_s)
        {
            problems
                .push(format!("failover.at_s: must be within the {} s of the phases, got {at_s}", self.duration_s()));
        }
        problems
    }

    /// How long all phases last, in seconds.
    #[must_use]
    pub fn duration_s(&self) -> f64 {
        self.phases.iter().map(|phase| phase.duration_s).sum()
    }

    /// The same with phases of at most so many seconds.
    #[must_use]
    pub fn limit_phases(mut self, phase_s: f64) -> Self {
        self.phases.iter_mut().for_each(|phase| phase.duration_s = phase.duration_s.min(phase_s));
        if let Some(failover) = &mut self.failover {
            failover.at_s = failover.at_s.min(phase_s / 2.0);
        }
        self
    }

    /// The pool.
    #[must_use]
    pub const fn target_pool(&self) -> TargetPool {
        let ScenarioPool { workers, slots, shards, ack } = self.pool;
        TargetPool { workers, slots, shards, ack }
    }

    /// Why this target cannot carry it out, if it cannot.
    #[must_use]
    pub fn unsupported_by(&self, url: &TargetUrl) -> Option<String> {
        let (gang, waits) =
            (self.phases.iter().any(|phase| phase.gang), self.phases.iter().any(|phase| phase.wait_ms > 0));
        let what = match url {
            TargetUrl::Resp { .. } if gang => "has no gangs",
            TargetUrl::Resp { .. } if waits => "answers in order, so a claim that waits would hold up all behind it",
            TargetUrl::Baseline(_) if gang => "has no gangs",
            TargetUrl::Baseline(_) if waits => "has no claims that wait",
            TargetUrl::Baseline(_) if self.churn.is_some() => "has no workers that come and go",
            TargetUrl::Baseline(url) if self.pool.slots > 0 && url.whole_workers() => "gives whole workers only",
            _ => return None,
        };
        Some(format!("{url} {what}"))
    }

    /// What is to be sent, in order.
    ///
    /// # Errors
    /// A trace is absent or no good.
    pub fn calls(&self) -> Result<OperationSchedule, ScenarioError> {
        let mut calls = Vec::new();
        let mut start = Duration::ZERO;
        for phase in &self.phases {
            let duration = Duration::from_secs_f64(phase.duration_s);
            let first = calls.len();
            phase.calls(duration, &mut calls)?;
            calls[first..].iter_mut().for_each(|(at, _)| *at += start);
            start += duration;
        }
        Ok(calls)
    }
}

impl ScenarioPhase {
    fn problems(&self, slots: u32) -> Vec<String> {
        let mut problems = Vec::new();
        let mut say = |wrong: bool, what: String| problems.extend(wrong.then_some(what));
        let positive = |number: f64| number > 0.0 && number.is_finite();
        let in_time = positive(self.duration_s) && self.duration_s <= PHASE_S_MAX;
        say(!in_time, format!("duration_s: must be above 0 and at most {PHASE_S_MAX}, got {}", self.duration_s));
        let kinds = [self.rate.is_some(), self.burst.is_some(), self.trace.is_some()];
        let one_kind = kinds.iter().filter(|given| **given).count() == 1;
        say(!one_kind, "rate, burst, trace: exactly one of them must be given".into());
        if let Some(rate) = self.rate {
            say(!(positive(rate) && rate <= 1e8), format!("rate: must be above 0 and at most 1e8, got {rate}"));
        }
        if let Some(burst) = self.burst {
            say(burst.claims == 0, "burst.claims: must be at least 1, got 0".into());
            say(burst.every_ms == 0, "burst.every_ms: must be at least 1, got 0".into());
            let even = self.batch > 0 && burst.claims.is_multiple_of(self.batch);
            say(!even, format!("burst.claims: must be a multiple of batch, {}, got {}", self.batch, burst.claims));
        }
        if let Some(trace) = &self.trace {
            say(!positive(trace.speed), format!("trace.speed: must be above 0, got {}", trace.speed));
            say(self.batch != 1 || self.gang, "trace: its claims come one by one".into());
        }
        let fits = (1..=BATCH_ITEMS_MAX as u32).contains(&self.batch);
        say(!fits, format!("batch: must be 1..={BATCH_ITEMS_MAX}, got {}", self.batch));
        say(self.gang && self.batch == 1, "gang: needs a batch of at least 2".into());
        let shared = slots > 0;
        say(shared == self.sizes.is_empty(), "sizes: are for pools with slots, and only for those".into());
        for (n, size) in self.sizes.iter().enumerate() {
            let fits = (1..=slots.max(1)).contains(&size.slots);
            say(!fits, format!("sizes[{n}].slots: must be 1..={slots}, got {}", size.slots));
            say(size.weight == 0 || size.weight > 1_000, format!("sizes[{n}].weight: must be 1..=1000"));
        }
        problems
    }
}

/// Takes the value at this path out of the tree; false if there is none.
fn remove_path(tree: &mut Value, path: &[&Segment]) -> bool {
    let Some((last, before)) = path.split_last() else { return false };
    let inner = before.iter().try_fold(tree, |tree, step| match step {
        Segment::Map { key } => tree.get_mut(key),
        Segment::Seq { index } => tree.get_mut(*index),
        _ => None,
    });
    match (inner, last) {
        (Some(Value::Object(table)), Segment::Map { key }) => table.remove(key).is_some(),
        _ => false,
    }
}

#[cfg(test)]
mod tests;
