//! Power failures at random moments: what was acknowledged is there, and the call that was not is there as a whole or not at
//! all, shard by shard.

use std::collections::BTreeMap;
use std::sync::Arc;

use hotpool::environment::Environment;
use hotpool::persist::store::file::{FileStore, SegmentSettings, SegmentUpkeep};
use hotpool::persist::store::{ShardKey, Store, WriteBatch, WriteOutcome};
use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};
use rustix::io::Errno;
use uuid::Uuid;

use super::model_disk::{DiskCall, ModelDisk};
use super::{chunk, drop_of, install, load, rows, span};

const SEED: &str = "HOTPOOL_TEST_SEED";
const SHARDS: u16 = 4;
/// Small segments of one size, so that they are used again.
const SEGMENTS: SegmentSettings = SegmentSettings {
    first_bytes: 16 << 10,
    max_bytes: 16 << 10,
    log_bytes_free: 64 << 20,
    upkeep: SegmentUpkeep::Inline,
};

fn key(shard: u16) -> ShardKey {
    ShardKey { pool: 1, shard }
}

/// State of one shard: what it would be loaded as.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct ShardModel {
    at: u64,
    rows: String,
    /// Generation and rows of the snapshot under way, chunk by chunk.
    snapshot: Option<(u64, Vec<String>)>,
}

/// Store as its callers know it.
struct History {
    random: StdRng,
    shards: BTreeMap<u16, ShardModel>,
    generation: u64,
    names: u64,
}

impl History {
    /// Some bytes that occur nowhere else, at times enough to fill segments.
    fn content(&mut self) -> String {
        self.names += 1;
        let length = match self.random.random_range(0..20) {
            0 | 4 => self.random.random_range(10_000..40_000),
            1..=3 => self.random.random_range(500..5_000),
            _ => self.random.random_range(0..50),
        };
        format!("<{}{}>", self.names, ".".repeat(length))
    }

    /// Random batch of a shard that the store accepts, and the state to which it leads.
    fn step(&mut self, shard: u16) -> (WriteBatch, ShardModel) {
        let mut model = self.shards[&shard].clone();
        let content = self.content();
        let batch = match self.random.random_range(0..10) {
            0 | 1 => {
                if model.snapshot.is_none() {
                    self.generation += 1;
                }
                let (generation, chunks) = model.snapshot.get_or_insert((self.generation, Vec::new()));
                chunks.push(content.clone());
                chunk(key(shard), *generation, chunks.len() as u32 - 1, &content)
            }
            2..=4 => {
                self.generation += 1;
                let (generation, chunks) = model.snapshot.take().unwrap_or((self.generation, Vec::new()));
                model.rows = chunks.concat() + &content;
                install(key(shard), model.at, generation, chunks.len() as u32, &content)
            }
            5 if model.at > 0 && self.random.random_bool(0.5) => {
                let at = model.at;
                model = ShardModel::default();
                drop_of(key(shard), at)
            }
            _ => {
                let from = model.at;
                model.at += self.random.random_range(1..4);
                model.rows += &content;
                rows(key(shard), from, model.at, &content)
            }
        };
        (batch, model)
    }
}

/// Cases that the runs met.
#[derive(Debug, Default)]
struct Coverage {
    /// Calls without an answer that were stored.
    unanswered_stored: u32,
    /// Lives that began with a segment that waited to be used again, and ended without it.
    recycled: u32,
    /// Starts during which the power failed.
    failed_starts: u32,
    /// Segments that were written anew after a failed sync.
    repairs: u32,
}

async fn run(seed: u64, coverage: &mut Coverage) {
    let mut random = StdRng::seed_from_u64(seed);
    let mut disk = ModelDisk::default();
    let shards = (0..SHARDS).map(|shard| (shard, ShardModel::default())).collect();
    let mut history = History { random: StdRng::seed_from_u64(seed ^ 1), shards, generation: 0, names: 0 };
    let (mut epoch, mut ceiling) = (0, 0);
    let mut in_flight: BTreeMap<u16, ShardModel> = BTreeMap::new();
    for life in 0..8 {
        // The power may fail while the store is being opened, several times.
        let store = loop {
            coverage.repairs += u32::from(disk.names().iter().any(|name| name.ends_with(".unsynced")));
            if random.random_bool(0.3) {
                disk.fail_power_after(random.random_range(0..8), random.random());
            }
            match FileStore::open_on(Arc::new(disk.clone()), SEGMENTS, Environment::system()) {
                Ok(store) => break store,
                Err(_) => coverage.failed_starts += 1,
            }
            disk = if random.random_bool(0.2) { disk.revive() } else { disk.after_power_failure(random.random()) };
        };
        disk = disk.revive();
        let owned = store.take_over(Uuid::now_v7()).await.expect("take over");
        assert!(owned.epoch > epoch, "epoch {} after {epoch}", owned.epoch);
        assert!(owned.fence_ceiling >= ceiling, "ceiling {} after {ceiling}", owned.fence_ceiling);
        epoch = owned.epoch;
        let all: Vec<_> = (0..SHARDS).map(key).collect();
        let found = load(&store, &all).await;
        for (shard, model) in &mut history.shards {
            let (at, read) = &found[&key(*shard)];
            let at = at.clone().unwrap_or_else(|why| panic!("life {life}, shard {shard}: {why}"));
            let read = (at, String::from_utf8(read.clone()).unwrap());
            if let Some(next) = in_flight.remove(shard)
                && read != (model.at, model.rows.clone())
            {
                *model = next;
                coverage.unanswered_stored += 1;
            }
            assert_eq!(
                read,
                (model.at, model.rows.clone()),
                "life {life}, shard {shard}: not before or after the last call"
            );
            // A snapshot under way dies with its owner.
            model.snapshot = None;
        }
        let had_free = disk.names().iter().any(|name| name == "log.free");
        let survives = random.random();
        if random.random_bool(0.3) {
            disk.fail(DiskCall::Sync, Errno::IO);
        } else {
            disk.fail_power_after(random.random_range(0..80), survives);
        }
        in_flight = loop {
            if history.random.random_bool(0.05) {
                let raised = ceiling + 10;
                match store.raise_fence_ceiling(span(0, raised)).await {
                    Ok(()) => ceiling = raised,
                    Err(_) => break BTreeMap::new(),
                }
            }
            let called: Vec<u16> = (0..SHARDS).filter(|_| history.random.random_bool(0.5)).collect();
            let (batches, models): (Vec<_>, Vec<_>) = called.iter().map(|&shard| history.step(shard)).unzip();
            let after: BTreeMap<u16, ShardModel> = called.into_iter().zip(models).collect();
            match store.apply(batches).await {
                Ok(outcomes) => {
                    assert!(outcomes.iter().all(|outcome| *outcome == WriteOutcome::Ok), "{outcomes:?}");
                    history.shards.extend(after);
                }
                Err(_) => break after,
            }
        };
        drop(store);
        coverage.recycled += u32::from(had_free && !disk.names().iter().any(|name| name == "log.free"));
        disk = if random.random_bool(0.2) { disk.revive() } else { disk.after_power_failure(survives) };
    }
}

#[tokio::test]
async fn s07_power_failures_lose_nothing_that_was_acknowledged() {
    let only = std::env::var(SEED).ok().map(|seed| seed.parse().expect("a number"));
    let first: u64 = u64::from(rand::random::<u32>());
    let mut coverage = Coverage::default();
    for seed in only.map_or(first..first + 250, |seed| seed..seed + 1) {
        println!("reproduce: {SEED}={seed} cargo test --test store power_failures");
        run(seed, &mut coverage).await;
    }
    let Coverage { unanswered_stored, recycled, failed_starts, repairs } = coverage;
    let met = [unanswered_stored, recycled, failed_starts, repairs].iter().all(|&count| count > 0);
    assert!(only.is_some() || met, "the runs must meet every case: {coverage:?}");
}
