//! Hot paths that are measured twice: in time, for people (`benches/time.rs`), and in instructions, for the gate
//! (`benches/instructions.rs`). Each is one call on a prepared value.

use hotpool::api::resp::frame::FrameParser;
use hotpool::engine::placement::bin_packing::{
    FitStrategy, FleetIndex, FragmentationScorer, PlacementDecision, ResourceRequest,
};
use hotpool::engine::{ClaimHandle, Effect, EngineReply, Event, Shard};
use hotpool::model::{ClaimId, PlacementPolicy, WorkerCapacity, WorkerId, WorkerSpec};

/// Requests per call: a typical pipeline or batch of a shard.
pub const RUN: usize = 64;

/// Shard with 1,000 idle workers, and claims to make or release.
pub struct Engine {
    shard: Shard,
    effects: Vec<Effect>,
    ids: Vec<ClaimId>,
    held: Vec<ClaimHandle>,
}

/// Prepares a shard with [`RUN`] claims to make.
pub fn idle() -> Engine {
    let mut shard = Shard::new(PlacementPolicy::Lifo, 1);
    let mut effects = Vec::with_capacity(4 * RUN);
    for n in 0..1_000 {
        let spec = WorkerSpec::with_id(WorkerId::new(&format!("worker-{n:07}")).expect("a name"));
        shard.handle_event(Event::Register { spec, ends_ms: None, claims: None, ttl_ms: 0 }, 1, &mut effects);
        effects.clear();
    }
    shard.discard_changes();
    let id = |n| ClaimId::new("ns", "default", &format!("key-{n:012}")).expect("a name");
    Engine { shard, effects, ids: (0..RUN).map(id).collect(), held: Vec::with_capacity(RUN) }
}

/// Prepares a shard with [`RUN`] claims to release.
pub fn held() -> Engine {
    let mut engine = claim(idle());
    // As a run does when nobody waits.
    engine.shard.clear_freed();
    engine
}

/// Makes the claims one after the other.
pub fn claim(mut engine: Engine) -> Engine {
    for (fence, id) in (1..).zip(engine.ids.drain(..)) {
        let affinity = id.hash64();
        let event = Event::Claim { id, fence, affinity, reserve_ms: 0, ttl_ms: 0, constraints: None, target: None };
        if let Some(EngineReply::Granted(grant)) = engine.shard.handle_event(event, 1, &mut engine.effects) {
            engine.held.push(grant.handle);
        }
    }
    engine
}

/// Makes the claims as an actor does with a batch: prefetched, and with their rows taken.
pub fn batch(engine: Engine) -> Engine {
    engine.shard.prefetch(std::iter::empty(), engine.ids.iter().map(ClaimId::hash64));
    let mut engine = claim(engine);
    engine.shard.discard_changes();
    engine
}

/// Releases the claims one after the other.
pub fn release(mut engine: Engine) -> Engine {
    for handle in engine.held.drain(..) {
        engine.shard.handle_event(Event::Release { handle }, 1, &mut engine.effects);
    }
    engine.effects.clear();
    engine
}

/// Fleet of different workers, and a request for a share of one.
pub struct Shares {
    fleet: FleetIndex,
    request: ResourceRequest,
    scorer: FragmentationScorer,
}

/// Prepares 1,024 workers with different free resources.
pub fn shares() -> Shares {
    let mut fleet = FleetIndex::default();
    for at in 0..1_024_u32 {
        let variation = u64::from(at.wrapping_mul(0x9e37_79b9) >> 20);
        let capacity = WorkerCapacity {
            cpu_milli: 1_000 + 7 * variation,
            memory_bytes: (1 << 30) + (variation << 20),
            slots: 0,
            gpu: None,
        };
        fleet.insert(at, &capacity);
    }
    let request = ResourceRequest {
        cpu_milli: 15_000,
        memory_bytes: 2 << 30,
        slots: 0,
        gpu_count: 0,
        gpu_milli: 0,
        models: Default::default(),
        until_ms: 0,
    };
    Shares { fleet, request, scorer: FragmentationScorer::default() }
}

/// Picks the best fit among the workers.
pub fn pick(shares: &mut Shares) -> Option<PlacementDecision> {
    shares.fleet.pick(&shares.request, FitStrategy::BestFit, &mut shares.scorer)
}

/// Pipeline of claims as clients send it.
pub fn pipeline() -> Vec<u8> {
    let claim = |n| format!("*4\r\n$5\r\nCLAIM\r\n$7\r\nns/pool\r\n$3\r\nKEY\r\n$16\r\nkey-{n:012}\r\n");
    (0..RUN).map(claim).collect::<String>().into_bytes()
}

/// Parses the pipeline. Returns the total length of its words in bytes.
pub fn parse(input: &[u8]) -> usize {
    let mut parser = FrameParser::new(1 << 20);
    let (mut at, mut bytes) = (0, 0);
    while let Ok(Some(length)) = parser.next(&input[at..]) {
        bytes += parser.args(&input[at..]).iter().map(<[u8]>::len).sum::<usize>();
        at += length;
    }
    bytes
}
