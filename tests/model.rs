//! The engine against a naive oracle ([`oracle::Oracle`]): random events, and after each one the same answer, the same
//! effects, the same counts, `check()`, and three replicas made of rows (a dump, the stream of changed rows, the
//! stream folded) that would take the same workers (invariant V1).
//!
//! It caught, when broken on purpose: `idle_seq` left out of `Shard::end` (the replicas take the workers in another
//! order), `told` not set by a repeat (a give-back ends a claim that somebody was told of), and a re-registered
//! worker put first in the queue of its new shape.

#[path = "model/asks.rs"]
mod asks;
#[path = "model/drive.rs"]
mod drive;
#[path = "model/oracle.rs"]
mod oracle;
#[path = "model/selector.rs"]
mod selector;

use std::cell::RefCell;
use std::collections::BTreeMap;

use hotpool::model::Policy;
use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};

use drive::{Op, Run};

fn reserve_ms() -> impl Strategy<Value = u64> {
    prop_oneof![1 => Just(0), 4 => 1..4_000u64]
}

fn op() -> impl Strategy<Value = Op> {
    let past = || any::<prop::sample::Index>();
    prop_oneof![
        6 => (0..24u8, 0..3u8, 0..asks::CARDS).prop_map(|(id, more, card)| Op::Register { id, more, card }),
        2 => prop_oneof![0..24u8, 100..130u8].prop_map(Op::Delete),
        10 => (0..5u8, reserve_ms(), prop::option::of(asks::ask()))
            .prop_map(|(affinity, reserve_ms, ask)| Op::Claim { affinity, reserve_ms, ask }),
        4 => (past(), any::<bool>(), prop::option::of(prop_oneof![asks::ask(), asks::size()]))
            .prop_map(|(at, satisfies, ask)| Op::Repeat { at, satisfies, ask }),
        3 => past().prop_map(Op::Confirm),
        6 => past().prop_map(Op::Release),
        1 => past().prop_map(Op::Look),
        2 => past().prop_map(Op::GiveBack),
        4 => past().prop_map(Op::Departed),
        1 => past().prop_map(Op::Yield),
        3 => prop_oneof![0..10u64, 0..3_000u64, 0..200_000u64].prop_map(Op::Tick),
        1 => prop_oneof![Just(Policy::Lifo), Just(Policy::Fifo), Just(Policy::Random)].prop_map(Op::SetPolicy),
    ]
}

/// Workers to begin with, so that every size occurs however the events fall.
fn size() -> impl Strategy<Value = u8> {
    prop_oneof![Just(0u8), Just(1), Just(2), 3..20u8, 70..150u8]
}

#[test]
fn v1_the_engine_does_what_a_naive_oracle_does_and_so_do_its_replicas() {
    let seen = RefCell::new([0_usize; 4]);
    let answered: RefCell<BTreeMap<&str, usize>> = RefCell::default();
    let config = Config { cases: 96, failure_persistence: None, ..Config::default() };
    // A failure prints the shortest events that show it; PROPTEST_RNG_SEED repeats a run.
    let mut runner = TestRunner::new(config);
    let policy = prop_oneof![Just(Policy::Lifo), Just(Policy::Fifo), Just(Policy::Random)];
    let all = (policy, size(), prop::collection::vec(op(), 1..150), 0..1u64 << 40);
    runner
        .run(&all, |(policy, workers, ops, now_ms)| {
            let mut run = Run::new(policy, now_ms);
            for i in 0..workers {
                run.step(&Op::Register { id: 100 + (i % 156), more: 0, card: i % asks::CARDS });
            }
            for op in &ops {
                run.step(op);
                let mut seen = seen.borrow_mut();
                seen[run.workers().min(3)] += 1;
            }
            for (answer, times) in run.answered {
                *answered.borrow_mut().entry(answer).or_default() += times;
            }
            Ok(())
        })
        .unwrap_or_else(|failure| panic!("{failure}"));
    let answered = answered.into_inner();
    for answer in ["granted", "Busy", "Node", "Small", "Unknown", "mismatch", "not allowed", "plain"] {
        assert!(answered.get(answer).is_some_and(|&times| times > 5), "{answer} did not occur: {answered:?}");
    }
    let seen = seen.into_inner();
    assert!(seen.iter().all(|&times| times > 50), "0, 1, 2, many workers occurred {seen:?} times");
}
