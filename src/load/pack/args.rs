//! Command line of `hotpool-load pack`.

use std::path::PathBuf;

use clap::{Args as ClapArgs, ValueEnum};
use serde::Serialize;
use strum::{IntoStaticStr, VariantArray};

use hotpool::engine::placement::bin_packing::FitStrategy;
use hotpool::limits::SHARDS_MAX;

/// Options of the `pack` subcommand.
#[derive(Debug, Clone, ClapArgs, Serialize)]
pub struct PackArgs {
    /// Workers: CSV `sn,cpu_milli,memory_mib,gpu,model`, plain or gzip
    #[arg(long, value_name = "FILE")]
    pub nodes: PathBuf,
    /// Requests: CSV with `cpu_milli,memory_mib,num_gpu,gpu_milli` and optionally `gpu_spec`, plain or gzip
    #[arg(long, value_name = "FILE")]
    pub requests: PathBuf,
    /// Order of arrivals: rows of the requests as little-endian 16-bit numbers [default: each once, in order]
    #[arg(long, value_name = "FILE")]
    pub events: Option<PathBuf>,
    /// Order among equal workers: a rank for each, sorted by `sn`, as little-endian 16-bit numbers [default: by `sn`]
    #[arg(long, value_name = "FILE")]
    pub rank: Option<PathBuf>,
    /// Placement policy that picks the worker
    #[arg(long, value_enum, default_value = "best_fit")]
    pub policy: PolicyArg,
    /// Shards to spread the workers over; must be a power of two
    #[arg(long, default_value_t = 1)]
    pub shards: u16,
    /// Use the scores and tie-breaking of the published runs instead of the service's
    #[arg(long)]
    pub protocol: bool,
    /// Let `fgd` learn the request mix during the run [default: the mix of the requests]
    #[arg(long)]
    pub learn: bool,
    /// Write the report to this file as JSON
    #[arg(long, value_name = "FILE")]
    #[serde(skip)]
    pub report_json: Option<PathBuf>,
    /// Draw allocation over arrivals for every policy
    #[arg(long, value_name = "FILE.svg")]
    #[serde(skip)]
    pub plot: Option<PathBuf>,
}

impl PackArgs {
    /// Checks rules that span several options.
    ///
    /// # Errors
    /// Returns a message that names the option and its limit.
    pub fn check(&self) -> Result<(), String> {
        if !self.shards.is_power_of_two() || self.shards > SHARDS_MAX {
            return Err(format!("--shards must be a power of two from 1 to {SHARDS_MAX}"));
        }
        if self.protocol && self.policy == PolicyArg::Spread {
            return Err("--protocol needs --policy best_fit or fgd: no run with spread was published".into());
        }
        if self.protocol && self.shards > 1 {
            return Err("--protocol needs --shards 1: the published runs had one scheduler".into());
        }
        if self.protocol && self.learn {
            return Err("--learn cannot be used with --protocol: the published runs had a fixed mix".into());
        }
        if self.learn && self.policy != PolicyArg::Fgd && self.plot.is_none() {
            return Err("--learn needs --policy fgd".into());
        }
        Ok(())
    }
}

/// Spelling of [`FitStrategy`] on the command line.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, Serialize, IntoStaticStr, VariantArray)]
#[serde(rename_all = "snake_case")]
#[value(rename_all = "snake_case")]
#[strum(serialize_all = "snake_case", const_into_str)]
pub enum PolicyArg {
    /// The worker with the least free resources
    BestFit,
    /// The worker with the most free resources
    Spread,
    /// The worker whose idle GPUs lose the least value for the typical request mix
    Fgd,
}

impl PolicyArg {
    /// All policies in the order of charts.
    pub const ALL: &'static [Self] = Self::VARIANTS;
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
