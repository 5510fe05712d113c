//! Random calls through the facade against a naive oracle, a map of holders with what each is charged: claims of
//! several keys, tenants, priorities and pools, with and without waiting, one by one, in batches and in gangs; releases,
//! confirmations, resizes; callers that leave; evictions, panics, pools that are deleted and created again, quotas that
//! change. Whenever nothing is under way a key has one holder, who was told so, tenants are charged for exactly what is
//! held, fences have grown (K1, U1, F1), and no claim waits while a worker fits it (Q05); at the end nothing is left.
//!
//! `HOTPOOL_SEED` runs one seed again.

#[path = "claims_oracle/driver.rs"]
mod driver;
#[allow(dead_code, reason = "the tests of the protocol use the rest")]
#[path = "claim_protocol/late_store.rs"]
mod late_store;
#[path = "claims_oracle/oracle.rs"]
mod oracle;

use std::time::{Duration, Instant};

use driver::{Driver, Faults};
use tokio::runtime::Builder;

const SEEDS: u64 = 2_000;
/// Seeds that run however long they take: of so many some evict claims within a tenant, unless pools are deleted all the
/// time.
const SEEDS_MIN: u64 = 300;
const TIME_MAX: Duration = Duration::from_secs(30);
/// Time after which a seed hangs.
const SEED_MAX: Duration = Duration::from_secs(30);
const ROUNDS: usize = 5;

/// Keeps panics that are injected out of the output.
fn silence_injected_faults() {
    let report = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        if panic.payload().downcast_ref::<&str>() != Some(&"injected fault") {
            report(panic);
        }
    }));
}

/// Runs seeds on a runtime with so many threads beside that of the test. With any, a seed fixes the calls but not their
/// order.
fn run(faults: Faults, threads: usize) {
    silence_injected_faults();
    let only = std::env::var("HOTPOOL_SEED").ok().map(|seed| seed.parse().expect("HOTPOOL_SEED is a number"));
    let seeds = only.map_or(0..SEEDS, |seed: u64| seed..seed + 1);
    let (begun, mut done, mut own_evictions) = (Instant::now(), 0, 0);
    for seed in seeds {
        let mut runtime = match threads {
            0 => Builder::new_current_thread(),
            _ => Builder::new_multi_thread(),
        };
        let runtime = runtime.worker_threads(threads.max(1)).enable_time().build().unwrap();
        let task = async {
            let mut driver = Driver::new(seed, faults).await;
            for _ in 0..ROUNDS {
                driver.round().await;
            }
            driver.end().await
        };
        let task = async { tokio::time::timeout(SEED_MAX, task).await.expect("every call is answered") };
        let ran = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| runtime.block_on(task)));
        own_evictions += ran.unwrap_or_else(|panic| {
            println!("HOTPOOL_SEED={seed}");
            std::panic::resume_unwind(panic);
        });
        done += 1;
        if begun.elapsed() > TIME_MAX && done >= SEEDS_MIN {
            break;
        }
    }
    println!("{done} seeds, {own_evictions} evictions within a tenant seen");
    let covers = done >= SEEDS_MIN && faults != Faults::PanicsAndDeletions;
    assert!(own_evictions > 0 || !covers, "no claim was evicted for another one of its tenant");
}

#[test]
fn k1_u1_random_calls_agree_with_a_map_of_holders() {
    run(Faults::None, 0);
}

#[test]
fn s16_k1_u1_random_calls_with_panics_and_a_late_store_agree_with_a_map_of_holders() {
    run(Faults::PanicsAndLateStore, 0);
}

#[test]
fn s16_k1_u1_random_calls_on_two_threads_agree_with_a_map_of_holders() {
    run(Faults::PanicsAndLateStore, 2);
}

#[test]
fn s17_k1_random_panics_and_deletions_on_two_threads_agree_with_a_map_of_holders() {
    run(Faults::PanicsAndDeletions, 2);
}
