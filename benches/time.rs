//! Hot paths in time, for people: those that `benches/instructions.rs` counts, with an alternative where there is one.
//! `cargo bench --bench time`; criterion compares with the previous run.

#[path = "hot_paths/mod.rs"]
mod hot_paths;

use std::hint::black_box;

use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};
use redis_protocol::resp2::decode::decode;

fn engine(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("engine");
    group.throughput(Throughput::Elements(hot_paths::RUN as u64));
    group.bench_function("claim", |bench| bench.iter_batched(hot_paths::idle, hot_paths::claim, BatchSize::LargeInput));
    group.bench_function("batch", |bench| bench.iter_batched(hot_paths::idle, hot_paths::batch, BatchSize::LargeInput));
    group.bench_function("release", |bench| {
        bench.iter_batched(hot_paths::held, hot_paths::release, BatchSize::LargeInput)
    });
    group.finish();
    let mut shares = hot_paths::shares();
    criterion.bench_function("pick, best fit of 1,024", |bench| bench.iter(|| hot_paths::pick(black_box(&mut shares))));
}

fn resp(criterion: &mut Criterion) {
    let input = hot_paths::pipeline();
    let mut group = criterion.benchmark_group("resp");
    group.throughput(Throughput::Elements(hot_paths::RUN as u64));
    group.bench_function("parse", |bench| bench.iter(|| hot_paths::parse(black_box(&input))));
    group.bench_function("parse, by the redis-protocol crate", |bench| {
        bench.iter(|| {
            let (mut at, mut frames) = (0, 0);
            while let Ok(Some((frame, length))) = decode(black_box(&input[at..])) {
                black_box(frame);
                at += length;
                frames += 1;
            }
            frames
        });
    });
    group.finish();
}

criterion_group!(hot_paths, engine, resp);
criterion_main!(hot_paths);
