//! The command line of `hotpool-load pack`.

use std::path::PathBuf;

use clap::{Args as ClapArgs, ValueEnum};
use serde::Serialize;

use hotpool::engine::placement::bin_packing::FitStrategy;
use hotpool::limits::SHARDS_MAX;

/// Options of `pack`.
#[derive(Debug, Clone, ClapArgs, Serialize)]
pub struct PackArgs {
    /// The workers: CSV `sn,cpu_milli,memory_mib,gpu,model`, plain or gzip
    #[arg(long, value_name = "FILE")]
    pub nodes: PathBuf,
    /// The requests: CSV with `cpu_milli,memory_mib,num_gpu,gpu_milli` and perhaps `gpu_spec`, plain or gzip
    #[arg(long, value_name = "FILE")]
    pub requests: PathBuf,
    /// The order of arrivals: rows of the requests as little-endian 16-bit numbers [default: each once, in order]
    #[arg(long, value_name = "FILE")]
    pub events: Option<PathBuf>,
    /// The order among equal workers: a rank for each, sorted by `sn`, as little-endian 16-bit numbers [default: by `sn`]
    #[arg(long, value_name = "FILE")]
    pub rank: Option<PathBuf>,
    /// How a worker is chosen
    #[arg(long, value_enum, default_value = "best_fit")]
    pub policy: PolicyArg,
    /// Shards over which the workers are spread: a power of two
    #[arg(long, default_value_t = 1)]
    pub shards: u16,
    /// With the scores and ties of the published runs instead of the service's own
    #[arg(long)]
    pub protocol: bool,
    /// With a typical mix that `fgd` learns on the way [default: that of the requests]
    #[arg(long)]
    pub learn: bool,
    /// Writes the report to this file, as JSON
    #[arg(long, value_name = "FILE")]
    #[serde(skip)]
    pub report_json: Option<PathBuf>,
    /// Draws what was allocated against what had arrived, under every policy
    #[arg(long, value_name = "FILE.svg")]
    #[serde(skip)]
    pub plot: Option<PathBuf>,
}

impl PackArgs {
    /// Checks what depends on more than one option.
    ///
    /// # Errors
    /// What is wrong, for the user.
    pub fn check(&self) -> Result<(), String> {
        if !self.shards.is_power_of_two() || self.shards > SHARDS_MAX {
            return Err(format!("--shards must be a power of two, 1..={SHARDS_MAX}"));
        }
        if self.protocol && self.policy == PolicyArg::Spread {
            return Err("--protocol knows best_fit and fgd: no run with spread was published".into());
        }
        if self.protocol && self.shards > 1 {
            return Err("--protocol is for one shard: the published runs had one scheduler".into());
        }
        if self.protocol && self.learn {
            return Err("--learn is not for --protocol: the published runs were given their mix".into());
        }
        if self.learn && self.policy != PolicyArg::Fgd && self.plot.is_none() {
            return Err("--learn is for --policy fgd".into());
        }
        Ok(())
    }
}

/// [`FitStrategy`] as the command line spells it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, Serialize)]
#[serde(rename_all = "snake_case")]
#[value(rename_all = "snake_case")]
pub enum PolicyArg {
    /// The worker with the least left
    BestFit,
    /// The worker with the most left
    Spread,
    /// The worker of whose idle GPUs the fewest become useless for the typical mix
    Fgd,
}

impl PolicyArg {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::BestFit, Self::Spread, Self::Fgd];

    /// As it is written.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::BestFit => "best_fit",
            Self::Spread => "spread",
            Self::Fgd => "fgd",
        }
    }
}

impl From<PolicyArg> for FitStrategy {
    fn from(policy: PolicyArg) -> Self {
        match policy {
            PolicyArg::BestFit => Self::BestFit,
            PolicyArg::Spread => Self::Spread,
            PolicyArg::Fgd => Self::Fgd,
        }
    }
}
