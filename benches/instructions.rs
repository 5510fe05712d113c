//! Hot paths in instructions, counted by valgrind: the counts repeat exactly, so differences of a few percent are
//! visible. A count more than 5 % above the number in this file fails. Lower the number when a path becomes cheaper by
//! as much, or the next rise hides behind the old one.
//!
//! `tests/instructions.sh` runs the gate and installs its tools.

#[path = "hot_paths/mod.rs"]
mod hot_paths;

use std::hint::black_box;

use gungraun::prelude::*;
use gungraun::{Callgrind, EventKind};
use hot_paths::{Engine, Shares};

/// Limit of this many instructions plus 5 %.
fn at_most(instructions: u64) -> LibraryBenchmarkConfig {
    let mut callgrind = Callgrind::default();
    callgrind.hard_limits([(EventKind::Ir, instructions + instructions / 20)]);
    let mut config = LibraryBenchmarkConfig::default();
    config.tool(callgrind);
    config
}

#[library_benchmark(config = at_most(34_116))]
#[bench::run_of_64(hot_paths::idle())]
fn claim(engine: Engine) -> Engine {
    hot_paths::claim(black_box(engine))
}

#[library_benchmark(config = at_most(35_373))]
#[bench::run_of_64(hot_paths::idle())]
fn batch(engine: Engine) -> Engine {
    hot_paths::batch(black_box(engine))
}

#[library_benchmark(config = at_most(35_204))]
#[bench::run_of_64(hot_paths::held())]
fn release(engine: Engine) -> Engine {
    hot_paths::release(black_box(engine))
}

#[library_benchmark(config = at_most(2_490))]
#[bench::of_1024_workers(hot_paths::shares())]
fn pick(mut shares: Shares) -> Shares {
    black_box(hot_paths::pick(black_box(&mut shares)));
    shares
}

#[library_benchmark(config = at_most(30_294))]
#[bench::pipeline_of_64(hot_paths::pipeline())]
fn parse(input: Vec<u8>) -> Vec<u8> {
    black_box(hot_paths::parse(black_box(&input)));
    input
}

library_benchmark_group!(name = instruction_counts, benchmarks = [claim, batch, release, pick, parse]);
main!(library_benchmark_groups = instruction_counts);
