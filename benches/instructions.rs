//! Hot paths in instructions, counted by valgrind: the counts repeat exactly, those of whole calls within 1 % because
//! some hashers have random seeds, so differences of a few percent are visible. A count more than 5 % above the number
//! in this file fails. Lower the number when a path becomes cheaper by as much, or the next rise hides behind the old
//! one.
//!
//! `tests/instructions.sh` runs the gate and installs its tools.

#[path = "instructions/facade.rs"]
mod facade;
#[path = "hot_paths/mod.rs"]
mod hot_paths;
#[path = "instructions/resp.rs"]
mod resp;

use std::hint::black_box;

use gungraun::prelude::*;
use gungraun::{Callgrind, EventKind};

use self::facade::{ClaimPairs, UnplaceableClaims, WorkerHandovers};
use self::hot_paths::{Engine, Shares};
use self::resp::PipelinedConnection;

/// Limit of this many instructions plus 5 %.
fn at_most(instructions: u64) -> LibraryBenchmarkConfig {
    let mut callgrind = Callgrind::default();
    callgrind.hard_limits([(EventKind::Ir, instructions + instructions / 20)]);
    let mut config = LibraryBenchmarkConfig::default();
    config.tool(callgrind);
    config
}

#[library_benchmark(config = at_most(36_005))]
#[bench::run_of_64(hot_paths::idle())]
fn claim(engine: Engine) -> Engine {
    hot_paths::claim(black_box(engine))
}

#[library_benchmark(config = at_most(37_261))]
#[bench::run_of_64(hot_paths::idle())]
fn batch(engine: Engine) -> Engine {
    hot_paths::batch(black_box(engine))
}

#[library_benchmark(config = at_most(34_711))]
#[bench::run_of_64(hot_paths::held())]
fn release(engine: Engine) -> Engine {
    hot_paths::release(black_box(engine))
}

#[library_benchmark(config = at_most(2_395))]
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

#[library_benchmark(config = at_most(514_717))]
#[bench::run_of_64(facade::pairs())]
fn awaited_pair(pairs: ClaimPairs) -> ClaimPairs {
    facade::awaited_pair(black_box(pairs))
}

#[library_benchmark(config = at_most(464_939))]
#[bench::of_64(facade::batches())]
fn batch_pair(pairs: ClaimPairs) -> ClaimPairs {
    facade::batch_pair(black_box(pairs))
}

#[library_benchmark(config = at_most(1_117_710))]
#[bench::run_of_64(facade::handovers())]
fn release_one_waiting(handovers: WorkerHandovers) -> WorkerHandovers {
    facade::release_one_waiting(black_box(handovers))
}

#[library_benchmark(config = at_most(8_148))]
#[bench::of_1(facade::unplaceable(1))]
#[bench::of_1_000(facade::unplaceable(1_000))]
#[bench::of_10_000(facade::unplaceable(10_000))]
fn match_classes(unplaceable: UnplaceableClaims) -> UnplaceableClaims {
    facade::match_classes(black_box(unplaceable))
}

#[library_benchmark(config = at_most(543_653))]
#[bench::pipelines_of_16(resp::claiming())]
fn resp_claim(connection: PipelinedConnection) -> PipelinedConnection {
    resp::claim(black_box(connection))
}

#[library_benchmark(config = at_most(373_863))]
#[bench::pipelines_of_16(resp::releasing())]
fn resp_release(connection: PipelinedConnection) -> PipelinedConnection {
    resp::release(black_box(connection))
}

library_benchmark_group!(name = engine_counts, benchmarks = [claim, batch, release, pick, parse]);
library_benchmark_group!(
    name = facade_counts,
    benchmarks = [awaited_pair, batch_pair, release_one_waiting, match_classes, resp_claim, resp_release]
);
main!(library_benchmark_groups = [engine_counts, facade_counts]);
