//! Compares the engine with a naive oracle ([`oracle::Oracle`]): random events, and after each one the same reply,
//! the same effects, the same counts, `check()`, and three replicas made of rows (a snapshot, the stream of changed
//! rows, the compacted stream) that would grant the same workers (invariant V1).
//!
//! Faults that it found when injected: `idle_seq` not set in `Shard::end_claim` (the replicas grant workers in
//! another order), the disclosure not recorded by a reacquire (a rollback ends a disclosed claim), and a
//! re-registered worker put first in the queue of its new class.

#[path = "engine_oracle/drive.rs"]
mod drive;
#[path = "engine_oracle/ops.rs"]
mod ops;
#[path = "engine_oracle/oracle.rs"]
mod oracle;
#[path = "engine_oracle/replies.rs"]
mod replies;
#[path = "engine_oracle/requests.rs"]
mod requests;
#[path = "engine_oracle/reservations.rs"]
mod reservations;
#[path = "engine_oracle/selector.rs"]
mod selector;

use std::cell::RefCell;
use std::collections::BTreeMap;

use hotpool::engine::PoolEligibility;
use hotpool::model::{PlacementPolicy, TtlBounds, WorkerCommand};
use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};

use drive::Driver;
use ops::{Op, ReportContents, Who};
use oracle::Durations;

fn eligibility() -> impl Strategy<Value = PoolEligibility> {
    prop_oneof![Just(PoolEligibility::Eligible), Just(PoolEligibility::Ineligible)]
}

fn reserve_ms() -> impl Strategy<Value = u64> {
    prop_oneof![1 => Just(0), 2 => 1..3_000u64]
}

fn ttl_ms() -> impl Strategy<Value = u64> {
    prop_oneof![2 => Just(0), 1 => 1..3_000u64]
}

fn op() -> impl Strategy<Value = Op> {
    let past = || any::<prop::sample::Index>();
    prop_oneof![
        6 => (worker(), prop_oneof![1 => 0..3u8, 4 => Just(1)], 0..requests::KINDS, prop::option::weighted(0.3, 0..9_000u64), prop::option::weighted(0.2, contents()))
            .prop_map(|(id, incarnation_step, kind, ends_in, contents)| Op::Register { id, incarnation_step, kind, ends_in, contents }),
        9 => (worker(), prop_oneof![1 => 0..3u8, 9 => Just(1)], prop::option::of(0..6u64), prop::option::weighted(0.8, contents()))
            .prop_map(|(id, incarnation_step, seq, contents)| Op::Heartbeat { who: Who::Id(id), incarnation_step, seq, contents }),
        9 => (past(), prop::option::weighted(0.8, contents()))
            .prop_map(|(at, contents)| Op::Heartbeat { who: Who::Holding(at), incarnation_step: 1, seq: None, contents }),
        9 => past().prop_map(|at| Op::Heartbeat { who: Who::Holding(at), incarnation_step: 1, seq: None, contents: Some(ReportContents::NONE) }),
        6 => (past(), contents())
            .prop_map(|(at, contents)| Op::Heartbeat { who: Who::Recent(at), incarnation_step: 1, seq: None, contents: Some(contents) }),
        4 => (worker(), command()).prop_map(|(id, command)| Op::Command(id, command)),
        1 => Just(Op::ClearAll),
        2 => (past(), prop::option::of(1..2_000u64)).prop_map(|(at, ttl_ms)| Op::Renew { at, ttl_ms }),
        4 => (past(), 1..1_000u64).prop_map(|(at, releasing_ms)| Op::BeginRelease { at, releasing_ms }),
        1 => prop::option::of(1..3_000u64).prop_map(Op::SetMemoryAcks),
        2 => (0..12u8, prop::bool::weighted(0.3)).prop_map(|(lost, restarted)| Op::Reload { lost, restarted }),
        1 => prop_oneof![worker(), 100..130u8].prop_map(Op::Delete),
        16 => (0..5u8, reserve_ms(), ttl_ms(), prop::option::of(requests::request()))
            .prop_map(|(affinity, reserve_ms, ttl_ms, request)| Op::Claim { affinity, reserve_ms, ttl_ms, request }),
        3 => (past(), eligibility(), prop::option::of(prop_oneof![requests::request(), requests::size()]))
            .prop_map(|(at, pool, request)| Op::Reacquire { at, pool, request }),
        3 => past().prop_map(Op::Confirm),
        6 => past().prop_map(Op::Release),
        1 => past().prop_map(Op::Get),
        2 => past().prop_map(Op::Rollback),
        4 => past().prop_map(Op::ReplySent),
        1 => past().prop_map(Op::Relinquish),
        3 => prop_oneof![3 => 0..10u64, 6 => 0..800u64, 3 => 0..3_000u64, 1 => 0..200_000u64].prop_map(Op::Tick),
        1 => prop_oneof![Just(PlacementPolicy::Lifo), Just(PlacementPolicy::Fifo), Just(PlacementPolicy::Random)].prop_map(Op::SetPolicy),
        1 => times().prop_map(Op::SetDurations),
        1 => prop_oneof![Just(0), -(1i64 << 41)..1 << 41, Just(i64::MAX), Just(i64::MIN)].prop_map(Op::SetWallClock),
    ]
}

/// Shorter and longer than the silence limit.
fn times() -> impl Strategy<Value = Durations> {
    let ms = || prop_oneof![1 => Just(1), 3 => 1..3_000u64, 1 => 1..100_000u64];
    let ttl = prop_oneof![
        3 => Just((None, None)),
        1 => ms().prop_map(|default_ms| (Some(default_ms), None)),
        2 => (ms(), ms()).prop_map(|(one, two)| (Some(one.min(two)), Some(one.max(two)))),
    ];
    let ttl = ttl.prop_map(|(default_ms, max_ms)| TtlBounds { default_ms, max_ms });
    // Mostly short, or hardly any claim is omitted for long enough before something else happens to it.
    let unnamed_ms = prop_oneof![2 => Just(1), 3 => 1..300u64, 2 => ms()];
    (unnamed_ms, prop::option::weighted(0.8, ms()), ttl).prop_map(|(unnamed_ms, lost_keep_ms, ttl)| Durations {
        unnamed_ms,
        lost_keep_ms,
        ttl,
    })
}

fn contents() -> impl Strategy<Value = ReportContents> {
    (any::<bool>(), prop::collection::vec(any::<prop::sample::Index>(), 0..3))
        .prop_map(|(own, others)| ReportContents { own, others })
}

/// Few workers in most cases, so that each gets many events.
fn worker() -> impl Strategy<Value = u8> {
    prop_oneof![4 => 0..5u8, 1 => 0..24u8]
}

fn command() -> impl Strategy<Value = WorkerCommand> {
    prop_oneof![3 => Just(WorkerCommand::Cordon), 1 => Just(WorkerCommand::Uncordon), 1 => Just(WorkerCommand::Drain), 1 => Just(WorkerCommand::Clear)]
}

/// Initial number of workers, so that every fleet size occurs.
fn size() -> impl Strategy<Value = u8> {
    prop_oneof![3 => Just(0u8), 3 => Just(1), 3 => Just(2), 3 => 3..20u8, 1 => 70..150u8]
}

#[test]
fn v1_the_engine_does_what_a_naive_oracle_does_and_so_do_its_replicas() {
    let counts = RefCell::new([0_usize; 4]);
    let occurred = RefCell::new(BTreeMap::<&str, usize>::new());
    let config = Config { cases: 320, failure_persistence: None, ..Config::default() };
    // A failure prints the shortest sequence that shows it; PROPTEST_RNG_SEED repeats a run.
    let mut runner = TestRunner::new(config);
    let policy = prop_oneof![Just(PlacementPolicy::Lifo), Just(PlacementPolicy::Fifo), Just(PlacementPolicy::Random)];
    let all = (policy, times(), size(), prop::collection::vec(op(), 1..150), 0..1u64 << 40);
    runner
        .run(&all, |(policy, times, workers, ops, now_ms)| {
            let mut run = Driver::new(policy, times, now_ms);
            for i in 0..workers {
                let (id, kind) = (100 + (i % 156), i % requests::KINDS);
                // In a quarter of the fleets each worker ends soon, in another soon or late, in another some do, in
                // the last none.
                let (near, far) = (Some(500 + u64::from(i)), Some(20_000 + u64::from(i)));
                let ends_in = match (now_ms % 4, i % 4) {
                    (0, _) | (1 | 2, 0) => near,
                    (1, _) | (2, 1) => far,
                    _ => None,
                };
                run.step(&Op::Register { id, incarnation_step: 0, kind, ends_in, contents: None });
            }
            for op in &ops {
                run.step(op);
                let mut counts = counts.borrow_mut();
                counts[run.workers().min(3)] += 1;
            }
            for (what, times) in &run.counts {
                *occurred.borrow_mut().entry(what).or_default() += times;
            }
            Ok(())
        })
        .unwrap_or_else(|failure| panic!("{failure}"));
    let (counts, occurred) = (counts.into_inner(), occurred.into_inner());
    let lifecycle = [
        "readopted",
        "late cleanup",
        "expired",
        "cleanup timed out",
        "not reported",
        "lost",
        "reservation expired",
        "rolled back",
    ];
    let answered = [
        "granted",
        "granted unconstrained",
        "Busy",
        "OtherNode",
        "TooSmall",
        "UnknownWorker",
        "resource mismatch",
        "constraints not met",
    ];
    let agents = [
        "never reported",
        "reported in time",
        "renewed or confirmed",
        "late heartbeat",
        "registered again",
        "deleted as lost",
        "kept by a cordon",
        "ttl too long",
    ];
    let short = ["candidate ends too soon", "few end too soon", "many end too soon"];
    let none = ["few end too soon, no candidate", "many end too soon, no candidate"];
    for what in lifecycle.into_iter().chain(answered).chain(agents).chain(short).chain(none) {
        assert!(occurred.get(what).is_some_and(|&times| times > 2), "{what} hardly occurred: {occurred:?}");
    }
    assert!(counts.iter().all(|&times| times > 50), "0, 1, 2, many workers occurred {counts:?} times");
}
