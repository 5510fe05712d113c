//! The hot paths that are measured twice: in time, for people (`benches/time.rs`), and in instructions, as the gate
//! (`benches/instructions.rs`). Each is one call on something made ready before.

use hotpool::api::resp::frame::FrameParser;
use hotpool::engine::placement::bin_packing::{
    FitStrategy, FleetIndex, FragmentationScorer, PlacementDecision, ResourceRequest,
};
use hotpool::engine::{ClaimHandle, Effect, EngineReply, Event, Shard};
use hotpool::model::{ClaimId, PlacementPolicy, WorkerCapacity, WorkerId, WorkerSpec};

/// Requests of one call: as many as a pipeline or a run of a shard often has.
pub const RUN: usize = 64;

/// One shard with 1,000 idle workers, and claims to be made or given back.
pub struct Engine {
    shard: Shard,
    effects: Vec<Effect<()>>,
    ids: Vec<ClaimId>,
    held: Vec<ClaimHandle>,
}

/// With [`RUN`] claims to make.
pub fn idle() -> Engine {
    let mut shard = Shard::new(PlacementPolicy::Lifo, 1);
    let mut effects = Vec::with_capacity(4 * RUN);
    for n in 0..1_000 {
        let spec = WorkerSpec::with_id(WorkerId::new(&format!("worker-{n:07}")).expect("a name"));
        shard.handle_event(Event::Register { spec, ends_ms: None, claims: None, ttl_ms: 0, to: () }, 1, &mut effects);
        effects.clear();
    }
    shard.discard_changes();
    let id = |n| ClaimId::new("ns", "default", &format!("key-{n:012}")).expect("a name");
    Engine { shard, effects, ids: (0..RUN).map(id).collect(), held: Vec::with_capacity(RUN) }
}

/// With [`RUN`] claims to give back.
pub fn held() -> Engine {
    claim(idle())
}

/// Claims one after the other.
pub fn claim(mut engine: Engine) -> Engine {
    for (fence, id) in (1..).zip(engine.ids.drain(..)) {
        let affinity = id.hash64();
        let event =
            Event::Claim { id, fence, affinity, reserve_ms: 0, ttl_ms: 0, wants: None, reservation_ticket: 0, to: () };
        engine.shard.handle_event(event, 1, &mut engine.effects);
    }
    for effect in engine.effects.drain(..) {
        if let Effect::Reply { answer: EngineReply::Granted(grant), .. } = effect {
            engine.held.push(grant.handle);
        }
    }
    engine
}

/// The same as an actor takes them from its ring: looked at ahead, and their rows taken.
pub fn batch(engine: Engine) -> Engine {
    engine.shard.prefetch(std::iter::empty(), engine.ids.iter().map(ClaimId::hash64));
    let mut engine = claim(engine);
    engine.shard.discard_changes();
    engine
}

/// Gives all back, one after the other.
pub fn release(mut engine: Engine) -> Engine {
    for place in engine.held.drain(..) {
        engine.shard.handle_event(Event::Release { place, to: () }, 1, &mut engine.effects);
    }
    engine.effects.clear();
    engine
}

/// Workers of many shapes, and a request for a share of one.
pub struct Shares {
    fleet: FleetIndex,
    need: ResourceRequest,
    fgd: FragmentationScorer,
}

/// 1,024 workers of which no two have as much left.
pub fn shares() -> Shares {
    let mut fleet = FleetIndex::default();
    for at in 0..1_024_u32 {
        let odd = u64::from(at.wrapping_mul(0x9e37_79b9) >> 20);
        let capacity =
            WorkerCapacity { cpu_milli: 1_000 + 7 * odd, memory_bytes: (1 << 30) + (odd << 20), slots: 0, gpu: None };
        fleet.insert(at, &capacity);
    }
    let need = ResourceRequest {
        cpu_milli: 15_000,
        memory_bytes: 2 << 30,
        slots: 0,
        gpu_count: 0,
        gpu_milli: 0,
        models: Default::default(),
        until_ms: 0,
    };
    Shares { fleet, need, fgd: FragmentationScorer::default() }
}

/// The best fit of them.
pub fn pick(shares: &mut Shares) -> Option<PlacementDecision> {
    shares.fleet.pick(&shares.need, FitStrategy::BestFit, &mut shares.fgd)
}

/// A pipeline of claims as clients send it.
pub fn pipeline() -> Vec<u8> {
    let claim = |n| format!("*4\r\n$5\r\nCLAIM\r\n$7\r\nns/pool\r\n$3\r\nKEY\r\n$16\r\nkey-{n:012}\r\n");
    (0..RUN).map(claim).collect::<String>().into_bytes()
}

/// Takes it apart, word by word. Returns the number of bytes of all words.
pub fn parse(input: &[u8]) -> usize {
    let mut parser = FrameParser::new(1 << 20);
    let (mut at, mut bytes) = (0, 0);
    while let Ok(Some(length)) = parser.next(&input[at..]) {
        bytes += parser.args(&input[at..]).iter().map(<[u8]>::len).sum::<usize>();
        at += length;
    }
    bytes
}
