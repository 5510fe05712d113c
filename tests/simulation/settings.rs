//! Settings of a seed: each draws which features, rates and faults its run combines (swarm testing: Groce, Zhang, Eide, Chen
//! and Regehr, ISSTA 2012), so that a fault which one feature hides is found by a seed without it.

use std::fmt;

use hotpool::model::{AckLevel, PlacementPolicy, PoolMode, PoolSpec};
use rand::rngs::StdRng;
use rand::seq::IndexedRandom as _;
use rand::{RngExt as _, SeedableRng as _};

use crate::core::CoreRates;

/// Store of a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StoreKind {
    /// Embedded store on a disk that loses, tears and reorders.
    File,
    /// Redis of so many masters, for which two processes contend.
    Redis { masters: usize },
}

/// Fault that a run may have.
#[derive(Debug, Clone, Copy, PartialEq, Eq, strum::EnumIter, strum::IntoStaticStr, strum::EnumString)]
#[strum(serialize_all = "snake_case")]
pub enum Fault {
    /// Death of the process, which is started again.
    Kill,
    /// Power failure: what was not synced may be gone.
    Power,
    /// Orderly stop of the process, which is started again.
    Stop,
    /// Panic of a shard in its run.
    Panic,
    /// Pause of the process while time goes on.
    Pause,
    /// Step of the wall clock.
    ClockStep,
    /// Failure of a call of the store.
    Store,
    /// Damaged byte of a record, while the process is down.
    Damage,
    /// Slots move, masters fail over, answers are lost.
    Redis,
    /// Deletion of a pool, which is created again.
    DeletePool,
    /// Workers restart, report falsely, or fall silent.
    Worker,
    /// Operators cordon, drain, clear and delete workers.
    Operator,
}

/// Call that callers make.
#[derive(Debug, Clone, Copy, PartialEq, Eq, strum::EnumIter, strum::IntoStaticStr, strum::EnumString)]
#[strum(serialize_all = "snake_case")]
pub enum Feature {
    Claim,
    WaitingClaim,
    Batch,
    /// Claims gathered from pipelined commands, whose replies are read one after the other, and releases of many.
    Pipeline,
    Gang,
    Stream,
    Release,
    CleanUp,
    Confirm,
    Renew,
    Resize,
    Query,
    HangUp,
    /// Selection of pools by their labels, and preference for nodes.
    Select,
    Quota,
    Watch,
}

/// Pool of a run.
#[derive(Debug, Clone)]
pub struct PoolSettings {
    pub name: &'static str,
    pub spec: PoolSpec,
    pub workers: usize,
    pub worker_cpu_milli: u64,
}

impl PoolSettings {
    pub fn is_shared(&self) -> bool {
        self.spec.mode == PoolMode::Shared
    }
}

/// Combination that a run has.
#[derive(Debug, Clone)]
pub struct Settings {
    pub store: StoreKind,
    pub pools: Vec<PoolSettings>,
    pub callers: usize,
    pub tenants: usize,
    pub keys: usize,
    pub features: Vec<(Feature, u32)>,
    pub faults: Vec<Fault>,
    /// Mean time between two faults, in milliseconds.
    pub fault_interval_ms: u64,
    pub rates: CoreRates,
    pub panics_max: u32,
    /// Speed of the clocks of the processes, in millionths of the true time's.
    pub clock_ppm: u64,
    /// Longest wait of a durable reply for the store, in milliseconds.
    pub store_wait_ms: u64,
    /// Size of a batch of the store, in bytes at most.
    pub batch_bytes_max: usize,
    /// Mean pause of a caller between two calls, in milliseconds.
    pub pause_ms: u64,
    /// Time for which callers are active, in milliseconds.
    pub active_ms: u64,
    /// Time that passes before callers are active a second time, in milliseconds.
    pub idle_ms: u64,
}

/// Restriction of a run, by which a failing one is made smaller.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Limits {
    pub callers: Option<usize>,
    pub active_ms: Option<u64>,
    pub without_faults: Vec<Fault>,
    pub without_features: Vec<Feature>,
}

impl fmt::Display for Limits {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut parts = Vec::new();
        parts.extend(self.callers.map(|callers| format!("callers={callers}")));
        parts.extend(self.active_ms.map(|ms| format!("active_ms={ms}")));
        parts.extend(self.without_faults.iter().map(|fault| format!("no={}", <&str>::from(fault))));
        parts.extend(self.without_features.iter().map(|feature| format!("no={}", <&str>::from(feature))));
        f.write_str(&parts.join(","))
    }
}

impl Limits {
    /// Parses what [`fmt::Display`] writes.
    pub fn parse(text: &str) -> Result<Self, String> {
        let mut limits = Self::default();
        for part in text.split(',').filter(|part| !part.is_empty()) {
            let (name, value) = part.split_once('=').ok_or_else(|| format!("{part:?} has no value"))?;
            let number = || value.parse::<u64>().map_err(|error| format!("{part:?}: {error}"));
            match name {
                "callers" => limits.callers = Some(number()? as usize),
                "active_ms" => limits.active_ms = Some(number()?),
                "no" => match (value.parse(), value.parse()) {
                    (Ok(fault), _) => limits.without_faults.push(fault),
                    (_, Ok(feature)) => limits.without_features.push(feature),
                    _ => return Err(format!("{value:?} is neither a fault nor a feature")),
                },
                _ => return Err(format!("{name:?} is no limit")),
            }
        }
        Ok(limits)
    }
}

impl Settings {
    /// Draws what the run of a seed combines.
    pub fn draw(seed: u64, limits: &Limits) -> Self {
        use strum::IntoEnumIterator as _;
        // Another stream than that of the run: limits do not change what else is drawn.
        let random = &mut StdRng::seed_from_u64(seed ^ 0x5e77_1265);
        let store = match random.random_range(0..10) {
            0..=5 => StoreKind::File,
            6..=7 => StoreKind::Redis { masters: 1 },
            _ => StoreKind::Redis { masters: 3 },
        };
        let pools = draw_pools(random);
        let callers = random.random_range(1..=8);
        let mut features: Vec<(Feature, u32)> = Feature::iter()
            .filter_map(|feature| {
                let weight = random.random_range(1..=10);
                let is_basic = matches!(feature, Feature::Claim | Feature::Release);
                (is_basic || random.random_bool(0.6)).then_some((feature, if is_basic { weight + 5 } else { weight }))
            })
            .collect();
        let mut faults: Vec<Fault> = Fault::iter().filter(|_| random.random_bool(0.4)).collect();
        faults.retain(|fault| match store {
            StoreKind::File => *fault != Fault::Redis,
            StoreKind::Redis { .. } => !matches!(fault, Fault::Power | Fault::Damage),
        });
        let has_faults = random.random_bool(0.9);
        if !has_faults {
            faults.clear();
        }
        let rates = CoreRates {
            interleave: *[0, 10, 100, 400].choose(random).expect("some"),
            panic_millionths: 0,
            key_panic: *[50, 500, 1_000].choose(random).expect("some"),
            leave_to_actor: *[0, 100, 500, 1_000].choose(random).expect("some"),
            full_mailbox: *[0, 0, 5, 30].choose(random).expect("some"),
            time_slip: *[0, 2, 20].choose(random).expect("some"),
            lateness_ns: *[0, 100_000, 2_000_000, 20_000_000].choose(random).expect("some"),
            blocking_ns: *[100_000, 1_000_000, 20_000_000].choose(random).expect("some"),
        };
        let panic_millionths = *[200, 2_000, 10_000].choose(random).expect("some");
        let panics_max = *[4, 12].choose(random).expect("some");
        let tenants = random.random_range(1..=3);
        let keys = *[2, 4, 8, 30].choose(random).expect("some");
        let clock_ppm = *[1_000_000, 1_000_000, 990_000, 1_020_000].choose(random).expect("some");
        let store_wait_ms = *[300, 1_000, 5_000].choose(random).expect("some");
        let pause_ms = *[1, 5, 20, 100].choose(random).expect("some");
        let active_ms = *[3_000, 10_000, 30_000].choose(random).expect("some");
        let idle_ms = random.random_range(0..720_000);
        let batch_bytes_max = *[usize::MAX, usize::MAX, 1 << 10, 512].choose(random).expect("some");
        let fault_interval_ms = *[100, 500, 2_000].choose(random).expect("some");
        features.retain(|(feature, _)| !limits.without_features.contains(feature));
        faults.retain(|fault| !limits.without_faults.contains(fault));
        let rates = if faults.contains(&Fault::Panic) { CoreRates { panic_millionths, ..rates } } else { rates };
        Self {
            store,
            pools,
            callers: limits.callers.map_or(callers, |most| callers.min(most)),
            tenants,
            keys,
            features,
            faults,
            fault_interval_ms,
            rates,
            panics_max,
            clock_ppm,
            store_wait_ms,
            batch_bytes_max,
            pause_ms,
            active_ms: limits.active_ms.map_or(active_ms, |most| active_ms.min(most)),
            idle_ms,
        }
    }

    pub fn has(&self, feature: Feature) -> bool {
        self.features.iter().any(|(had, _)| *had == feature)
    }
}

fn draw_pools(random: &mut StdRng) -> Vec<PoolSettings> {
    let names = ["a", "b", "c"];
    let count = random.random_range(1..=names.len());
    let ack = if random.random_bool(0.8) { AckLevel::Durable } else { AckLevel::Memory };
    let draw = |name: &&'static str| {
        let is_shared = random.random_bool(0.35);
        let labels = [("mode".to_owned(), (if is_shared { "shared" } else { "exclusive" }).to_owned())].into();
        let mode = if is_shared { PoolMode::Shared } else { PoolMode::default() };
        let policy = is_shared.then_some(PlacementPolicy::BestFit);
        let spec = PoolSpec {
            shards: *[1, 2, 4].choose(random).expect("some"),
            mode,
            policy,
            ack,
            preemption: random.random_bool(0.4),
            reserve_ms: *[500, 5_000, 30_000].choose(random).expect("some"),
            ttl_default_ms: None,
            releasing_ms: *[1_000, 10_000, 60_000].choose(random).expect("some"),
            heartbeat_ttl_ms: *[5_000, 20_000, 60_000].choose(random).expect("some"),
            unnamed_ms: random.random_bool(0.5).then_some(5_000),
            hold_max_ms: *[1_000, 5_000, 60_000].choose(random).expect("some"),
            labels,
            waiters_max: *[2, 100, 100_000].choose(random).expect("some"),
            ..PoolSpec::default()
        };
        PoolSettings { name, spec, workers: *[1, 1, 2, 3, 6].choose(random).expect("some"), worker_cpu_milli: 4_000 }
    };
    names[..count].iter().map(draw).collect()
}
