//! The engine alone: a claim and release pair, beside the raw alternative (pop, mark, push), and how the pair's cost
//! grows with the fleet. Prints nanoseconds a pair and allocations a pair; the figures in docs/BENCHMARKS.md come
//! from here. Own main, because criterion counts no allocations.

use std::alloc::{GlobalAlloc, Layout};
use std::hint::black_box;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use hotpool::engine::{ClaimHandle, Effect, EngineReply, Event, Shard};
use hotpool::model::{ClaimId, PlacementPolicy, WorkerId, WorkerSpec};

struct Counting(mimalloc::MiMalloc);

static ALLOCATIONS: AtomicU64 = AtomicU64::new(0);

// SAFETY: every call goes to mimalloc unchanged.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.fetch_add(1, Ordering::Relaxed);
        unsafe { self.0.alloc(layout) }
    }
    unsafe fn dealloc(&self, ptr: *mut u8, layout: Layout) {
        unsafe { self.0.dealloc(ptr, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting(mimalloc::MiMalloc);

/// Splitmix64: which claim is released next must not be guessable by the prefetcher.
struct Dice(u64);

impl Dice {
    fn roll(&mut self, below: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut x = self.0;
        x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((u128::from(x ^ (x >> 31)) * below as u128) >> 64) as usize
    }
}

/// Events of one run of an actor.
const RUN: usize = 64;

struct Bench {
    shard: Shard,
    effects: Vec<Effect<()>>,
    held: Vec<ClaimHandle>,
    fence: u64,
}

impl Bench {
    fn new(workers: usize, held: usize) -> Self {
        let mut shard = Shard::new(PlacementPolicy::Lifo, 1);
        let mut effects: Vec<Effect<()>> = Vec::new();
        for n in 0..workers {
            let spec = WorkerSpec::with_id(WorkerId::new(&format!("worker-{n:07}")).expect("a name"));
            shard.handle_event(
                Event::Register { spec, ends_ms: None, claims: None, ttl_ms: 0, to: () },
                1,
                &mut effects,
            );
            effects.clear();
        }
        shard.discard_changes();
        let mut bench = Self { shard, effects, held: Vec::new(), fence: 0 };
        for _ in 0..held {
            bench.claim(fresh_id(bench.fence));
            bench.collect();
        }
        bench.shard.discard_changes();
        bench
    }

    fn claim(&mut self, id: ClaimId) {
        self.fence += 1;
        let affinity = id.hash64();
        let event = Event::Claim {
            id,
            fence: self.fence,
            affinity,
            reserve_ms: 0,
            ttl_ms: 0,
            wants: None,
            reservation_ticket: 0,
            to: (),
        };
        self.shard.handle_event(event, 1, &mut self.effects);
    }

    /// Notes what was granted; frees the ids of what ended.
    fn collect(&mut self) {
        for effect in self.effects.drain(..) {
            match effect {
                Effect::Reply { answer: EngineReply::Granted(grant), .. } => self.held.push(grant.handle),
                Effect::Reply { answer: EngineReply::Released, .. } | Effect::ClaimEnded { .. } => {}
                other => panic!("{other:?}"),
            }
        }
    }

    /// Nanoseconds and allocations a pair, in runs of 64 as an actor takes them from its ring. Only the engine is
    /// timed: who is released (at random) and under which new id the worker is claimed is made up before each run.
    fn pairs(&mut self, pairs: usize, dice: &mut Dice, ahead: bool) -> (f64, f64) {
        let (mut ns, mut allocations) = (0, 0);
        let mut victims = Vec::with_capacity(RUN);
        let mut ids = Vec::with_capacity(RUN);
        for _ in 0..pairs / RUN {
            while victims.len() < RUN.min(self.held.len()) {
                victims.push(self.held.swap_remove(dice.roll(self.held.len())));
                ids.push(fresh_id(self.fence + ids.len() as u64));
                if self.held.is_empty() {
                    break;
                }
            }
            let before = ALLOCATIONS.load(Ordering::Relaxed);
            let start = Instant::now();
            if ahead {
                self.shard.prefetch(victims.iter().copied(), ids.iter().map(ClaimId::hash64));
            }
            for (place, id) in victims.drain(..).zip(ids.drain(..)) {
                self.shard.handle_event(Event::Release { place, to: () }, 1, &mut self.effects);
                self.claim(id);
            }
            self.shard.discard_changes();
            ns += start.elapsed().as_nanos();
            allocations += ALLOCATIONS.load(Ordering::Relaxed) - before;
            self.collect();
        }
        (ns as f64 / pairs as f64, allocations as f64 / pairs as f64)
    }
}

fn fresh_id(n: u64) -> ClaimId {
    ClaimId::new("ns", "default", &format!("key-{n:012}")).expect("a name")
}

fn raw(workers: usize, pairs: usize) -> f64 {
    let mut idle: Vec<u32> = (0..workers as u32).collect();
    let mut held = vec![0_u64; workers];
    let start = Instant::now();
    for n in 0..pairs {
        let at = idle.pop().expect("never empty");
        held[at as usize] = n as u64 + 1;
        black_box(&held);
        held[at as usize] = 0;
        idle.push(at);
    }
    start.elapsed().as_nanos() as f64 / pairs as f64
}

fn median(mut runs: Vec<f64>) -> f64 {
    runs.sort_by(f64::total_cmp);
    runs[runs.len() / 2]
}

fn main() {
    println!("{:<34} {:>10} {:>14}", "case", "ns/pair", "allocs/pair");
    println!("{:<34} {:>10.1} {:>14}", "raw pop, mark, push", raw(1_000, 5_000_000), 0);
    let sizes = [("1 k workers, 64 held", 1_000, 64), ("1 M workers, 64 held", 1_000_000, 64)];
    let full = [("1 k workers, 900 held", 1_000, 900), ("1 M workers, 900 k held", 1_000_000, 900_000)];
    for ahead in [true, false] {
        println!("events of a run {}", if ahead { "looked at ahead, as the actor does" } else { "one by one" });
        for cases in [sizes, full] {
            compare(&cases, ahead);
        }
    }
}

/// Both fleets in turn, round by round, so that noise hits both.
fn compare(cases: &[(&str, usize, usize); 2], ahead: bool) {
    const ROUNDS: usize = 9;
    const PAIRS: usize = 320_000;
    let mut benches: Vec<Bench> = cases.iter().map(|&(_, workers, held)| Bench::new(workers, held)).collect();
    let mut dice = Dice(7);
    let mut ns: Vec<Vec<f64>> = vec![Vec::new(); cases.len()];
    let mut allocations = vec![0.0_f64; cases.len()];
    for round in 0..=ROUNDS {
        for (case, bench) in benches.iter_mut().enumerate() {
            let (took, allocated) = bench.pairs(PAIRS, &mut dice, ahead);
            // The first round grows what grows once.
            if round > 0 {
                ns[case].push(took);
                allocations[case] = allocations[case].max(allocated);
            }
        }
    }
    let ns: Vec<f64> = ns.into_iter().map(median).collect();
    for (case, (name, ..)) in cases.iter().enumerate() {
        println!("{name:<34} {:>10.1} {:>14.4}", ns[case], allocations[case]);
    }
    println!("{:<34} {:>10.2} x", "the larger over the smaller", ns[1] / ns[0]);
}
