//! Engine alone: a claim with its release, compared with the bare alternative (pop, mark, push), and the growth of the
//! cost with the fleet. Prints nanoseconds and allocations per pair, the figures in docs/BENCHMARKS.md. Has its own
//! main, because criterion counts no allocations.

use std::alloc::{GlobalAlloc, Layout};
use std::hint::black_box;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use hotpool::engine::{ClaimHandle, Effect, EngineReply, Event, Shard};
use hotpool::model::{ClaimId, PlacementPolicy, WorkerId, WorkerSpec};

struct CountingAllocator(mimalloc::MiMalloc);

static ALLOCATIONS: AtomicU64 = AtomicU64::new(0);

// SAFETY: every call goes to mimalloc unchanged.
unsafe impl GlobalAlloc for CountingAllocator {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.fetch_add(1, Ordering::Relaxed);
        unsafe { self.0.alloc(layout) }
    }
    unsafe fn dealloc(&self, ptr: *mut u8, layout: Layout) {
        unsafe { self.0.dealloc(ptr, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: CountingAllocator = CountingAllocator(mimalloc::MiMalloc);

/// Splitmix64 generator: the prefetcher must not guess which claim is released next.
struct SplitMix(u64);

impl SplitMix {
    fn below(&mut self, bound: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut x = self.0;
        x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((u128::from(x ^ (x >> 31)) * bound as u128) >> 64) as usize
    }
}

/// Events per batch of an actor.
const BATCH_EVENTS: usize = 64;

/// Whether the engine prefetches the claims of a batch.
#[derive(Clone, Copy, PartialEq, Eq)]
enum PrefetchMode {
    Off,
    On,
}

struct Bench {
    shard: Shard,
    effects: Vec<Effect>,
    held: Vec<ClaimHandle>,
    fence: u64,
}

impl Bench {
    fn new(workers: usize, held: usize) -> Self {
        let mut shard = Shard::new(PlacementPolicy::Lifo, 1);
        let mut effects: Vec<Effect> = Vec::new();
        for n in 0..workers {
            let spec = WorkerSpec::with_id(WorkerId::new(&format!("worker-{n:07}")).expect("a name"));
            shard.handle_event(Event::Register { spec, ends_ms: None, claims: None, ttl_ms: 0 }, 1, &mut effects);
            effects.clear();
        }
        shard.discard_changes();
        let mut bench = Self { shard, effects, held: Vec::new(), fence: 0 };
        for _ in 0..held {
            bench.claim(fresh_id(bench.fence));
        }
        bench.shard.discard_changes();
        bench
    }

    fn claim(&mut self, id: ClaimId) {
        self.fence += 1;
        let affinity = id.hash64();
        let event =
            Event::Claim { id, fence: self.fence, affinity, reserve_ms: 0, ttl_ms: 0, constraints: None, target: None };
        match self.shard.handle_event(event, 1, &mut self.effects) {
            Some(EngineReply::Granted(grant)) => self.held.push(grant.handle),
            other => panic!("{other:?}"),
        }
    }

    /// Nanoseconds and allocations per pair, in batches of 64 as an actor takes them from its queue. Only the engine
    /// is timed: the claims to release (at random) and the new ids are prepared before each batch.
    fn pairs(&mut self, pairs: usize, random: &mut SplitMix, prefetch: PrefetchMode) -> (f64, f64) {
        let (mut ns, mut allocations) = (0, 0);
        let mut victims = Vec::with_capacity(BATCH_EVENTS);
        let mut ids = Vec::with_capacity(BATCH_EVENTS);
        for _ in 0..pairs / BATCH_EVENTS {
            while victims.len() < BATCH_EVENTS.min(self.held.len()) {
                victims.push(self.held.swap_remove(random.below(self.held.len())));
                ids.push(fresh_id(self.fence + ids.len() as u64));
                if self.held.is_empty() {
                    break;
                }
            }
            let before = ALLOCATIONS.load(Ordering::Relaxed);
            let start = Instant::now();
            if prefetch == PrefetchMode::On {
                self.shard.prefetch(victims.iter().copied(), ids.iter().map(ClaimId::hash64));
            }
            for (handle, id) in victims.drain(..).zip(ids.drain(..)) {
                self.shard.handle_event(Event::Release { handle }, 1, &mut self.effects);
                self.claim(id);
            }
            self.shard.discard_changes();
            ns += start.elapsed().as_nanos();
            allocations += ALLOCATIONS.load(Ordering::Relaxed) - before;
            self.effects.clear();
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
    for prefetch in [PrefetchMode::On, PrefetchMode::Off] {
        match prefetch {
            PrefetchMode::On => println!("batches prefetched, as the actor does"),
            PrefetchMode::Off => println!("no prefetching"),
        }
        for cases in [sizes, full] {
            compare(&cases, prefetch);
        }
    }
}

/// Measures both fleets alternately, so that noise affects both.
fn compare(cases: &[(&str, usize, usize); 2], prefetch: PrefetchMode) {
    const ROUNDS: usize = 9;
    const PAIRS: usize = 320_000;
    let mut benches: Vec<Bench> = cases.iter().map(|&(_, workers, held)| Bench::new(workers, held)).collect();
    let mut random = SplitMix(7);
    let mut ns: Vec<Vec<f64>> = vec![Vec::new(); cases.len()];
    let mut allocations = vec![0.0_f64; cases.len()];
    for round in 0..=ROUNDS {
        for (case, bench) in benches.iter_mut().enumerate() {
            let (nanos, allocated) = bench.pairs(PAIRS, &mut random, prefetch);
            // The first round is a warm-up for growing collections.
            if round > 0 {
                ns[case].push(nanos);
                allocations[case] = allocations[case].max(allocated);
            }
        }
    }
    let ns: Vec<f64> = ns.into_iter().map(median).collect();
    for (case, (name, ..)) in cases.iter().enumerate() {
        println!("{name:<34} {:>10.1} {:>14.4}", ns[case], allocations[case]);
    }
    println!("{:<34} {:>10.2} x", "ratio of the larger to the smaller", ns[1] / ns[0]);
}
