//! Random batches, snapshots, restarts and crashes, compared with a naive model.

use std::cell::RefCell;
use std::collections::BTreeMap;

use bytes::Bytes;
use hotpool::persist::store::file::FileStore;
use hotpool::persist::store::{ShardKey, WriteBatch, WriteKind, WriteOutcome};
use proptest::prelude::*;
use proptest::test_runner::{Config, RngAlgorithm, TestRng, TestRunner};
use tempfile::TempDir;

use super::{Applied, Duplicate, Gap, apply, copied, dir, load, opened};

const SHARDS: u16 = 3;
const SEED: &str = "HOTPOOL_TEST_SEED";

/// Rows of two bytes, id and value: a later row of the same id replaces an earlier one.
type Rows = Vec<(u8, u8)>;

#[derive(Debug, Clone)]
enum Op {
    /// Batch from `behind - 1` before (or one after) the state of the shard, over `len` changes.
    Rows {
        behind: u8,
        len: u8,
        rows: Rows,
    },
    Chunk {
        fresh: bool,
        skip: bool,
        rows: Rows,
    },
    Install {
        extra: bool,
        ahead: u8,
        rows: Rows,
    },
    Drop,
}

#[derive(Debug, Clone)]
enum Move {
    /// Call with at most one batch per shard.
    Apply(Vec<(u16, Op)>),
    /// Repetition of the last call.
    Again,
    /// Close or kill, after which the new owner loads these shards.
    Restart {
        crash: bool,
        load: Vec<u16>,
    },
    Load(u16),
}

fn some_rows() -> impl Strategy<Value = Rows> {
    prop::collection::vec((0..6_u8, any::<u8>()), 0..4)
}

fn op() -> impl Strategy<Value = Op> {
    prop_oneof![
        6 => (0..4_u8, 0..4_u8, some_rows()).prop_map(|(behind, len, rows)| Op::Rows { behind, len, rows }),
        3 => (prop::bool::weighted(0.2), prop::bool::weighted(0.1), some_rows())
            .prop_map(|(fresh, skip, rows)| Op::Chunk { fresh, skip, rows }),
        3 => (prop::bool::weighted(0.2), 0..3_u8, some_rows())
            .prop_map(|(extra, ahead, rows)| Op::Install { extra, ahead, rows }),
        1 => Just(Op::Drop),
    ]
}

fn moves() -> impl Strategy<Value = Vec<Move>> {
    let ops = prop::collection::btree_map(0..SHARDS, op(), 1..=usize::from(SHARDS));
    let some_move = prop_oneof![
        12 => ops.prop_map(|ops| Move::Apply(ops.into_iter().collect())),
        1 => Just(Move::Again),
        1 => (any::<bool>(), prop::collection::vec(0..SHARDS, 0..4))
            .prop_map(|(crash, load)| Move::Restart { crash, load }),
        2 => (0..SHARDS).prop_map(Move::Load),
    ];
    prop::collection::vec(some_move, 1..40)
}

/// State of one shard according to the contract.
#[derive(Debug, Clone, Default)]
struct Shard {
    known: bool,
    /// Whether the rows are of the present epoch.
    current: bool,
    at: u64,
    rows: BTreeMap<u8, u8>,
    generation: u64,
    chunks: BTreeMap<u32, Rows>,
}

impl Shard {
    /// Batch of an op in this state, its outcome, and the change if that is `Ok`.
    fn step(&mut self, shard: ShardKey, op: &Op) -> (WriteBatch, WriteOutcome) {
        let bytes = |rows: &Rows| Bytes::from(rows.iter().flat_map(|(id, value)| [*id, *value]).collect::<Vec<_>>());
        let (mut from, mut to) = (self.at, self.at);
        let (kind, answer) = match op {
            Op::Rows { behind, len, rows } => {
                from = (self.at + 1).saturating_sub(u64::from(*behind));
                to = from + u64::from(*len);
                let answer = match self {
                    Self { known: true, current: false, .. } => Gap,
                    Self { at, .. } if *at < from => Gap,
                    Self { at, .. } if to <= *at => Duplicate,
                    Self { .. } => Applied,
                };
                if answer == Applied {
                    (self.known, self.current, self.at) = (true, true, to);
                    self.rows.extend(rows.iter().copied());
                }
                (WriteKind::Rows(bytes(rows)), answer)
            }
            Op::Chunk { fresh, skip, rows } => {
                if *fresh || self.chunks.is_empty() {
                    self.generation += 1;
                    self.chunks.clear();
                }
                let number = self.chunks.last_key_value().map_or(0, |(last, _)| last + 1) + u32::from(*skip);
                self.chunks.insert(number, rows.clone());
                (WriteKind::Chunk { generation: self.generation, number, rows: bytes(rows) }, Applied)
            }
            Op::Install { extra, ahead, rows } => {
                if self.chunks.is_empty() {
                    self.generation += 1;
                }
                let chunks = self.chunks.last_key_value().map_or(0, |(last, _)| last + 1) + u32::from(*extra);
                let kind = WriteKind::Install { generation: self.generation, chunks, rows: bytes(rows) };
                to = self.at + u64::from(*ahead);
                let whole = self.chunks.len() == chunks as usize;
                if whole {
                    let written = std::mem::take(&mut self.chunks).into_values().flatten();
                    self.rows = written.chain(rows.iter().copied()).collect();
                    (self.known, self.current, self.at) = (true, true, to);
                }
                (kind, if whole { Applied } else { Gap })
            }
            Op::Drop => {
                let answer = if self.known || !self.chunks.is_empty() { Applied } else { Duplicate };
                *self = Self { generation: self.generation, ..Self::default() };
                (WriteKind::Drop, answer)
            }
        };
        (WriteBatch { shard, from, to, kind }, answer)
    }
}

struct Run {
    dir: TempDir,
    store: Option<FileStore>,
    shards: Vec<Shard>,
    last: Vec<WriteBatch>,
}

impl Run {
    async fn check(&mut self, shards: &[u16]) -> Result<(), TestCaseError> {
        let store = self.store.as_ref().expect("open");
        for &shard in shards {
            let key = ShardKey { pool: 1, shard };
            let (at, bytes) = load(store, &[key]).await.remove(&key).unwrap();
            let rows: BTreeMap<u8, u8> = bytes.chunks(2).map(|row| (row[0], row[1])).collect();
            let model = &mut self.shards[usize::from(shard)];
            model.current = model.known;
            prop_assert_eq!((at, rows), (Ok(model.at), model.rows.clone()), "shard {}", shard);
        }
        Ok(())
    }

    async fn go(&mut self, a_move: &Move, seen: &RefCell<BTreeMap<String, u32>>) -> Result<(), TestCaseError> {
        let count = |what: String| *seen.borrow_mut().entry(what).or_default() += 1;
        match a_move {
            Move::Apply(ops) => {
                let key = |shard| ShardKey { pool: 1, shard };
                let (batches, expected): (Vec<_>, Vec<_>) =
                    ops.iter().map(|(shard, op)| self.shards[usize::from(*shard)].step(key(*shard), op)).unzip();
                let answers = apply(self.store.as_ref().expect("open"), &batches).await;
                prop_assert_eq!(&answers, &expected, "{:?}", batches);
                for ((_, op), answer) in ops.iter().zip(&answers) {
                    let name = format!("{op:?}");
                    count(format!("{} {answer:?}", name.split(' ').next().unwrap_or_default()));
                }
                self.last = batches;
            }
            Move::Again => {
                let before = self.shards.clone();
                let answers = apply(self.store.as_ref().expect("open"), &self.last).await;
                prop_assert!(!answers.contains(&Applied), "{:?} for {:?}", answers, self.last);
                count("again".into());
                self.shards = before;
            }
            Move::Restart { crash, load } => {
                if *crash {
                    let copy = copied(self.dir.path());
                    self.store = None;
                    self.dir = copy;
                }
                self.store = None;
                self.store = Some(opened(self.dir.path()).await);
                for shard in &mut self.shards {
                    shard.current = false;
                    shard.chunks.clear();
                }
                self.last.clear();
                count(format!("crash {crash}"));
                self.check(load).await?;
            }
            Move::Load(shard) => {
                // A batch that was rejected before the load may be accepted after it.
                self.last.clear();
                self.check(&[*shard]).await?;
            }
        }
        Ok(())
    }
}

#[test]
fn random_histories_agree_with_the_model() {
    let seed: u64 = std::env::var(SEED).ok().map_or_else(rand::random, |seed| seed.parse().expect("a number"));
    println!("reproduce: {SEED}={seed} cargo test --test store random_histories");
    let mut bytes = [0; 32];
    bytes[..8].copy_from_slice(&seed.to_le_bytes());
    let config = Config { cases: 64, failure_persistence: None, ..Config::default() };
    let mut runner = TestRunner::new_with_rng(config, TestRng::from_seed(RngAlgorithm::ChaCha, &bytes));
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    let seen = RefCell::new(BTreeMap::new());
    let result = runner.run(&moves(), |moves| {
        runtime.block_on(async {
            let dir = dir();
            let store = Some(opened(dir.path()).await);
            let shards = vec![Shard::default(); usize::from(SHARDS)];
            let mut run = Run { dir, store, shards, last: vec![] };
            for a_move in &moves {
                run.go(a_move, &seen).await?;
            }
            let all: Vec<u16> = (0..SHARDS).collect();
            run.go(&Move::Restart { crash: false, load: all }, &seen).await
        })
    });
    if let Err(error) = result {
        panic!("{SEED}={seed}: {error}");
    }
    // The generator must reach every case.
    let seen = seen.into_inner();
    for class in [
        "Rows Ok",
        "Rows Gap",
        "Rows Duplicate",
        "Chunk Ok",
        "Install Ok",
        "Install Gap",
        "Drop Ok",
        "Drop Duplicate",
        "again",
        "crash true",
        "crash false",
    ] {
        assert!(seen.contains_key(class), "{class} never occurred with {SEED}={seed}: {seen:?}");
    }
}
