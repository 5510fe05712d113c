//! The engine against a naive oracle ([`oracle::Oracle`]): random events, and after each one the same answer, the same
//! effects, the same counts, `check()`, and three replicas made of rows (a dump, the stream of changed rows, the
//! stream folded) that would take the same workers (invariant V1).
//!
//! It caught, when broken on purpose: `idle_seq` left out of `Shard::end` (the replicas take the workers in another
//! order), `told` not set by a repeat (a give-back ends a claim that somebody was told of), and a re-registered
//! worker put first in the queue of its new shape.

#[path = "engine_oracle/asks.rs"]
mod asks;
#[path = "engine_oracle/drive.rs"]
mod drive;
#[path = "engine_oracle/kept.rs"]
mod kept;
#[path = "engine_oracle/ops.rs"]
mod ops;
#[path = "engine_oracle/oracle.rs"]
mod oracle;
#[path = "engine_oracle/selector.rs"]
mod selector;
#[path = "engine_oracle/words.rs"]
mod words;

use std::cell::RefCell;
use std::collections::BTreeMap;

use hotpool::model::{PlacementPolicy, TtlBounds, WorkerCommand};
use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};

use drive::Run;
use ops::{Names, Op, Who};
use oracle::Times;

fn reserve_ms() -> impl Strategy<Value = u64> {
    prop_oneof![1 => Just(0), 2 => 1..3_000u64]
}

fn ttl_ms() -> impl Strategy<Value = u64> {
    prop_oneof![2 => Just(0), 1 => 1..3_000u64]
}

fn op() -> impl Strategy<Value = Op> {
    let past = || any::<prop::sample::Index>();
    prop_oneof![
        6 => (worker(), prop_oneof![1 => 0..3u8, 4 => Just(1)], 0..asks::CARDS, prop::option::weighted(0.3, 0..9_000u64), prop::option::weighted(0.2, names()))
            .prop_map(|(id, more, card, ends_in, names)| Op::Register { id, more, card, ends_in, names }),
        9 => (worker(), prop_oneof![1 => 0..3u8, 9 => Just(1)], prop::option::of(0..6u64), prop::option::weighted(0.8, names()))
            .prop_map(|(id, more, seq, names)| Op::Heartbeat { who: Who::Named(id), more, seq, names }),
        9 => (past(), prop::option::weighted(0.8, names()))
            .prop_map(|(at, names)| Op::Heartbeat { who: Who::Holding(at), more: 1, seq: None, names }),
        9 => past().prop_map(|at| Op::Heartbeat { who: Who::Holding(at), more: 1, seq: None, names: Some(Names::NONE) }),
        6 => (past(), names())
            .prop_map(|(at, names)| Op::Heartbeat { who: Who::Recent(at), more: 1, seq: None, names: Some(names) }),
        4 => (worker(), verb()).prop_map(|(id, verb)| Op::Steer(id, verb)),
        1 => Just(Op::ClearAll),
        2 => (past(), prop::option::of(1..2_000u64)).prop_map(|(at, ttl_ms)| Op::Renew { at, ttl_ms }),
        4 => (past(), 1..1_000u64).prop_map(|(at, releasing_ms)| Op::BeginRelease { at, releasing_ms }),
        1 => prop::option::of(1..3_000u64).prop_map(Op::SetMemory),
        2 => (0..12u8, prop::bool::weighted(0.3)).prop_map(|(lost, revived)| Op::Reload { lost, revived }),
        1 => prop_oneof![worker(), 100..130u8].prop_map(Op::Delete),
        16 => (0..5u8, reserve_ms(), ttl_ms(), prop::option::of(asks::ask()))
            .prop_map(|(affinity, reserve_ms, ttl_ms, ask)| Op::Claim { affinity, reserve_ms, ttl_ms, ask }),
        3 => (past(), any::<bool>(), prop::option::of(prop_oneof![asks::ask(), asks::size()]))
            .prop_map(|(at, satisfies, ask)| Op::Repeat { at, satisfies, ask }),
        3 => past().prop_map(Op::Confirm),
        6 => past().prop_map(Op::Release),
        1 => past().prop_map(Op::Look),
        2 => past().prop_map(Op::GiveBack),
        4 => past().prop_map(Op::Departed),
        1 => past().prop_map(Op::Yield),
        3 => prop_oneof![3 => 0..10u64, 6 => 0..800u64, 3 => 0..3_000u64, 1 => 0..200_000u64].prop_map(Op::Tick),
        1 => prop_oneof![Just(PlacementPolicy::Lifo), Just(PlacementPolicy::Fifo), Just(PlacementPolicy::Random)].prop_map(Op::SetPolicy),
        1 => times().prop_map(Op::SetTimes),
        1 => prop_oneof![Just(0), -(1i64 << 41)..1 << 41, Just(i64::MAX), Just(i64::MIN)].prop_map(Op::SetWallClock),
    ]
}

/// Shorter and longer than the time of silence.
fn times() -> impl Strategy<Value = Times> {
    let ms = || prop_oneof![1 => Just(1), 3 => 1..3_000u64, 1 => 1..100_000u64];
    let ttl = prop_oneof![
        3 => Just((None, None)),
        1 => ms().prop_map(|default_ms| (Some(default_ms), None)),
        2 => (ms(), ms()).prop_map(|(one, two)| (Some(one.min(two)), Some(one.max(two)))),
    ];
    let ttl = ttl.prop_map(|(default_ms, max_ms)| TtlBounds { default_ms, max_ms });
    // Short ones often, or hardly any claim is left out for long enough before something else befalls it.
    let unnamed_ms = prop_oneof![2 => Just(1), 3 => 1..300u64, 2 => ms()];
    (unnamed_ms, prop::option::weighted(0.8, ms()), ttl).prop_map(|(unnamed_ms, lost_keep_ms, ttl)| Times {
        unnamed_ms,
        lost_keep_ms,
        ttl,
    })
}

fn names() -> impl Strategy<Value = Names> {
    (any::<bool>(), prop::collection::vec(any::<prop::sample::Index>(), 0..3))
        .prop_map(|(own, others)| Names { own, others })
}

/// Mostly of a few, so that much befalls each.
fn worker() -> impl Strategy<Value = u8> {
    prop_oneof![4 => 0..5u8, 1 => 0..24u8]
}

fn verb() -> impl Strategy<Value = WorkerCommand> {
    prop_oneof![3 => Just(WorkerCommand::Cordon), 1 => Just(WorkerCommand::Uncordon), 1 => Just(WorkerCommand::Drain), 1 => Just(WorkerCommand::Clear)]
}

/// Workers to begin with, so that every size occurs however the events fall.
fn size() -> impl Strategy<Value = u8> {
    prop_oneof![3 => Just(0u8), 3 => Just(1), 3 => Just(2), 3 => 3..20u8, 1 => 70..150u8]
}

#[test]
fn v1_the_engine_does_what_a_naive_oracle_does_and_so_do_its_replicas() {
    let seen = RefCell::new([0_usize; 4]);
    let happened = RefCell::new(BTreeMap::<&str, usize>::new());
    let config = Config { cases: 320, failure_persistence: None, ..Config::default() };
    // A failure prints the shortest events that show it; PROPTEST_RNG_SEED repeats a run.
    let mut runner = TestRunner::new(config);
    let policy = prop_oneof![Just(PlacementPolicy::Lifo), Just(PlacementPolicy::Fifo), Just(PlacementPolicy::Random)];
    let all = (policy, times(), size(), prop::collection::vec(op(), 1..150), 0..1u64 << 40);
    runner
        .run(&all, |(policy, times, workers, ops, now_ms)| {
            let mut run = Run::new(policy, times, now_ms);
            for i in 0..workers {
                let (id, card) = (100 + (i % 156), i % asks::CARDS);
                // Of a quarter of the fleets each worker ends soon, of another soon or late, of another some do, of the last none.
                let (near, far) = (Some(500 + u64::from(i)), Some(20_000 + u64::from(i)));
                let ends_in = match (now_ms % 4, i % 4) {
                    (0, _) | (1 | 2, 0) => near,
                    (1, _) | (2, 1) => far,
                    _ => None,
                };
                run.step(&Op::Register { id, more: 0, card, ends_in, names: None });
            }
            for op in &ops {
                run.step(op);
                let mut seen = seen.borrow_mut();
                seen[run.workers().min(3)] += 1;
            }
            for (what, times) in &run.seen {
                *happened.borrow_mut().entry(what).or_default() += times;
            }
            Ok(())
        })
        .unwrap_or_else(|failure| panic!("{failure}"));
    let (seen, happened) = (seen.into_inner(), happened.into_inner());
    let befell = ["adopted", "cleaned late", "expired", "uncleaned", "missing", "lost", "swept", "given back"];
    let answered = ["granted", "plain", "Busy", "Node", "Small", "Unknown", "mismatch", "not allowed"];
    let agents = [
        "never named",
        "named in time",
        "spoken for",
        "ignored",
        "came back",
        "deleted as lost",
        "kept",
        "ttl too long",
    ];
    let short = ["too short a life", "few end too soon", "many end too soon"];
    let none = ["few end too soon, none is left", "many end too soon, none is left"];
    for what in befell.into_iter().chain(answered).chain(agents).chain(short).chain(none) {
        assert!(happened.get(what).is_some_and(|&times| times > 2), "{what} hardly occurred: {happened:?}");
    }
    assert!(seen.iter().all(|&times| times > 50), "0, 1, 2, many workers occurred {seen:?} times");
}
