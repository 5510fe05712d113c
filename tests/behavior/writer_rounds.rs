//! Rounds of a writer: the limits of one call, and what happens to batches that it does not answer.

use std::io::{Read as _, Write as _};
use std::sync::{Arc, Mutex, mpsc};
use std::time::Duration;

use futures::FutureExt as _;
use futures::future::{BoxFuture, ready};
use hotpool::environment::{Clock, Environment};
use hotpool::persist::journal::{Journal, Outbox, RowSource};
use hotpool::persist::row::{RowFrames, RowKind, ShardRow, decode_shard, put_deletion};
use hotpool::persist::store::{
    FenceSpan, LoadedShard, OwnershipRecord, RowSink, ShardKey, SharedStore, Store, StoreError, WriteBatch, WriteKind,
    WriteOutcome,
};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use uuid::Uuid;

use crate::gated_store::GatedStore;
use crate::store_location::StoreLocation;
use crate::world::until;

const A: ShardKey = ShardKey { pool: 7, shard: 0 };
const B: ShardKey = ShardKey { pool: 7, shard: 1 };

/// Opens a journal on a store of its own, whose writers do not run yet.
async fn journal() -> (Arc<StoreLocation>, Arc<GatedStore>, Arc<Journal>) {
    let location = Arc::new(StoreLocation::empty());
    let gate = Arc::new(GatedStore::open(&location));
    gate.take_over(Uuid::now_v7()).await.unwrap();
    let store: SharedStore = Arc::<GatedStore>::clone(&gate);
    (location, gate, Journal::new(store, Environment::with_clock(Clock::manual())))
}

fn run(journal: &Arc<Journal>) {
    for writer in 0..journal.writer_count() {
        tokio::spawn(Arc::clone(journal).run(writer));
    }
}

/// Hands over this many rows, each of about a hundred bytes.
fn hand(outbox: &Arc<Outbox>, to: u64, rows: usize) {
    outbox.append(to, None, |out| {
        (0..rows).for_each(|row| put_deletion(out, RowKind::Worker, &format!("{row:0100}")));
        rows
    });
}

async fn all_stored(outboxes: &[Arc<Outbox>], to: u64) {
    until("all is stored", async || outboxes.iter().all(|outbox| outbox.applied_seq() == to)).await;
}

#[tokio::test]
async fn b1_a_round_carries_4096_batches_at_most() {
    let (_place, gate, journal) = journal().await;
    let key = |n: u16| ShardKey { pool: 1 + u64::from(n / 1_024), shard: n % 1_024 };
    let outboxes: Vec<_> = (0..5_000).map(|n| Outbox::new(&journal, key(n), 0)).collect();
    outboxes.iter().for_each(|outbox| hand(outbox, 1, 1));
    run(&journal);
    all_stored(&outboxes, 1).await;
    let rounds: Vec<usize> = gate.rounds().iter().map(Vec::len).collect();
    assert_eq!(rounds.iter().sum::<usize>(), 5_000, "each once: {rounds:?}");
    assert!(rounds.iter().all(|steps| *steps <= 4_096), "{rounds:?}");
}

#[tokio::test]
async fn b1_a_round_takes_no_more_once_it_has_8_mib() {
    let (_place, gate, journal) = journal().await;
    let outboxes: Vec<_> = (0..40).map(|shard| Outbox::new(&journal, ShardKey { shard, ..A }, 0)).collect();
    outboxes.iter().for_each(|outbox| hand(outbox, 1, 5_000));
    run(&journal);
    all_stored(&outboxes, 1).await;
    let rounds = gate.rounds();
    let largest = rounds.iter().flatten().map(|step| step.bytes).max().unwrap();
    assert!(40 * largest > 2 * (8 << 20), "{largest} bytes: too few for this test to mean anything");
    let bytes: Vec<usize> = rounds.iter().map(|round| round.iter().map(|step| step.bytes).sum()).collect();
    assert!(bytes.iter().all(|bytes| *bytes <= (8 << 20) + largest), "{bytes:?}");
}

#[tokio::test]
async fn s02_an_unanswered_batch_is_sent_again_alone_and_unchanged() {
    let (_place, gate, journal) = journal().await;
    let (a, b) = (Outbox::new(&journal, A, 0), Outbox::new(&journal, B, 0));
    gate.leave_unanswered(A, 1);
    hand(&a, 1, 1);
    hand(&b, 1, 1);
    run(&journal);
    // The other one of the round counts at once.
    until("b's is stored", async || b.applied_seq() == 1).await;
    assert_eq!(a.applied_seq(), 0);
    // Later batches wait for it.
    hand(&a, 2, 1);
    until("a's are stored", async || a.applied_seq() == 2).await;
    let rounds: Vec<Vec<_>> =
        gate.rounds().iter().map(|round| round.iter().map(|step| (step.shard, step.from, step.to)).collect()).collect();
    assert_eq!(rounds, [vec![(A, 0, 1), (B, 0, 1)], vec![(A, 0, 1)], vec![(A, 1, 2)]]);
}

#[tokio::test]
async fn a_batch_has_the_shards_own_row_once_and_in_its_last_state() {
    let (_place, gate, journal) = journal().await;
    let outbox = Outbox::new(&journal, A, 0);
    let rows = Arc::new(Mutex::new(Vec::new()));
    let sent = Arc::clone(&rows);
    gate.hold(move |step| {
        if let WriteKind::Rows(rows) = &step.kind {
            sent.lock().unwrap().push(rows.clone());
        }
        false
    });
    for seq in 1..=3 {
        let own = ShardRow { fence_max: 10 * seq, ..ShardRow::default() };
        outbox.append(seq, Some(own), |out| {
            put_deletion(out, RowKind::Worker, &format!("w{seq}"));
            1
        });
    }
    run(&journal);
    all_stored(&[outbox], 3).await;
    let rows = rows.lock().unwrap();
    let frames: Vec<_> = RowFrames::new(&rows[0]).map(Result::unwrap).collect();
    let kinds: Vec<_> = frames.iter().map(|frame| frame.kind).collect();
    assert_eq!(kinds, [RowKind::Worker, RowKind::Worker, RowKind::Worker, RowKind::Shard]);
    assert_eq!(decode_shard(frames[3].body.unwrap()).unwrap().fence_max, 30);
}

/// A shard that panicked is loaded while its pool is deleted, which numbers its records anew: the deletion waits for the
/// drop and for no number, or it would wait for ever.
#[tokio::test]
async fn s17_a_shard_that_is_restarted_while_it_is_dropped_counts_as_dropped() {
    let (_place, gate, journal) = journal().await;
    let a = Outbox::new(&journal, A, 0);
    hand(&a, 6, 1);
    run(&journal);
    all_stored(std::slice::from_ref(&a), 6).await;
    gate.hold(|batch| matches!(batch.kind, WriteKind::Drop));
    a.mark_orphaned();
    journal.drop_shard(&a);
    gate.stopped().await;
    assert!(a.wait_drained().await, "all of it is stored still");
    gate.open_gate();
    until("the shard is dropped", async || a.applied_seq() == 7).await;
    a.restart(0);
    assert!(a.wait_dropped().await);
    assert!(!a.wait_drained().await, "nothing is left to be loaded");
}

/// Calls of a store: on which thread, and with how many batches.
type StoreCalls = Arc<Mutex<Vec<(&'static str, usize)>>>;

/// Store whose calls a test answers. They name the thread: `here` if the writer's own waits, otherwise `elsewhere`.
struct AnsweredStore<A> {
    answer: A,
}

impl<A: Fn(&'static str, &[WriteBatch]) -> Vec<WriteOutcome> + Send + Sync + 'static> Store for AnsweredStore<A> {
    fn kind(&self) -> &'static str {
        "answered"
    }

    fn keeps_rows(&self) -> bool {
        true
    }

    fn take_over(&self, _owner: Uuid) -> BoxFuture<'_, Result<OwnershipRecord, StoreError>> {
        unreachable!("the journal alone uses the store")
    }

    fn raise_fence_ceiling(&self, _span: FenceSpan) -> BoxFuture<'_, Result<(), StoreError>> {
        unreachable!("the journal alone uses the store")
    }

    fn load(&self, _shards: Vec<ShardKey>, _sink: RowSink) -> BoxFuture<'_, Result<Vec<LoadedShard>, StoreError>> {
        unreachable!("the journal alone uses the store")
    }

    fn apply(&self, batches: Vec<WriteBatch>) -> BoxFuture<'_, Result<Vec<WriteOutcome>, StoreError>> {
        ready(Ok((self.answer)("elsewhere", &batches))).boxed()
    }

    fn apply_blocking(&self, batches: &[WriteBatch]) -> Option<Result<Vec<WriteOutcome>, StoreError>> {
        Some(Ok((self.answer)("here", batches)))
    }

    fn snapshot_candidate(&self) -> Option<ShardKey> {
        None
    }
}

/// Starts a journal on a store that waits for its disk here. Returns what ends one sync, and the calls.
fn blocking_journal() -> (Arc<Journal>, mpsc::Sender<()>, StoreCalls) {
    let ((disk, ended), calls) = (mpsc::channel(), StoreCalls::default());
    let (ended, noted) = (Mutex::new(ended), Arc::clone(&calls));
    let answer = move |thread, batches: &[WriteBatch]| {
        noted.lock().unwrap().push((thread, batches.len()));
        if thread == "here" {
            ended.lock().unwrap().recv_timeout(Duration::from_secs(20)).expect("the disk ends its sync");
        }
        vec![WriteOutcome::Ok; batches.len()]
    };
    let journal = Journal::new(Arc::new(AnsweredStore { answer }), Environment::with_clock(Clock::manual()));
    run(&journal);
    (journal, disk, calls)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_caller_who_is_alone_has_its_round_written_at_once_and_several_share_one() {
    let (journal, disk, calls) = blocking_journal();
    let (a, b) = (Outbox::new(&journal, A, 0), Outbox::new(&journal, B, 0));
    for seq in 1..=3 {
        disk.send(()).unwrap();
        hand(&a, seq, 1);
        all_stored(std::slice::from_ref(&a), seq).await;
    }
    assert_eq!(*calls.lock().unwrap(), [("here", 1); 3], "alone");
    // Others come while a round is being written.
    hand(&a, 4, 1);
    until("the round is begun", async || calls.lock().unwrap().len() == 4).await;
    hand(&a, 5, 1);
    hand(&b, 1, 1);
    disk.send(()).unwrap();
    all_stored(std::slice::from_ref(&a), 5).await;
    all_stored(std::slice::from_ref(&b), 1).await;
    assert_eq!(calls.lock().unwrap()[4..], [("elsewhere", 2)], "in company");
}

#[tokio::test(flavor = "current_thread")]
async fn the_only_thread_of_a_runtime_waits_for_no_disk() {
    let (journal, _disk, calls) = blocking_journal();
    let a = Outbox::new(&journal, A, 0);
    hand(&a, 1, 1);
    all_stored(std::slice::from_ref(&a), 1).await;
    assert_eq!(*calls.lock().unwrap(), [("elsewhere", 1)]);
}

#[test]
fn a_disk_that_stalls_holds_up_no_connection() {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    for _ in 0..50 {
        let _entered = runtime.enter();
        let (journal, disk, calls) = blocking_journal();
        let a = Outbox::new(&journal, A, 0);
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        listener.set_nonblocking(true).unwrap();
        let listener = tokio::net::TcpListener::from_std(listener).unwrap();
        // A connection whose first byte begins a durable call, and whose others are echoed.
        let outbox = Arc::clone(&a);
        let connection = runtime.spawn(async move {
            let (mut connection, _) = listener.accept().await.unwrap();
            let mut byte = [0];
            connection.read_exact(&mut byte).await.unwrap();
            hand(&outbox, 1, 1);
            while connection.read_exact(&mut byte).await.is_ok() {
                connection.write_all(&byte).await.unwrap();
            }
        });
        let mut client = std::net::TcpStream::connect(address).unwrap();
        client.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
        client.write_all(b"!").unwrap();
        while calls.lock().unwrap().is_empty() {
            std::thread::yield_now();
        }
        assert_eq!(*calls.lock().unwrap(), [("here", 1)], "a worker waits for the disk");
        for byte in *b"ping" {
            client.write_all(&[byte]).unwrap();
            let mut echo = [0];
            client.read_exact(&mut echo).expect("an answer while the disk stalls");
            assert_eq!(echo, [byte]);
        }
        disk.send(()).unwrap();
        drop(client);
        runtime.block_on(connection).unwrap();
        runtime.block_on(all_stored(std::slice::from_ref(&a), 1));
    }
}

/// Shard whose rows are always at hand.
struct ReadySource;

impl RowSource for ReadySource {
    fn on_progress(&self) {}

    fn snapshot_rows(&self, _from: u32, _bytes: usize) -> BoxFuture<'static, Option<(Vec<u8>, Option<u32>)>> {
        ready(Some((vec![0; 100], None))).boxed()
    }
}

#[tokio::test(flavor = "current_thread")]
async fn a_store_that_takes_no_snapshot_leaves_the_thread_to_others() {
    // Calls since the test last ran.
    let calls = Arc::new(Mutex::new(0));
    let counted = Arc::clone(&calls);
    let answer = move |_, batches: &[WriteBatch]| {
        let mut calls = counted.lock().unwrap();
        *calls += 1;
        // The writer would never end otherwise, and nor would the test.
        let outcome = if *calls > 1_000 { WriteOutcome::Fenced } else { WriteOutcome::Gap };
        vec![outcome; batches.len()]
    };
    let journal = Journal::new(Arc::new(AnsweredStore { answer }), Environment::with_clock(Clock::manual()));
    run(&journal);
    let source: Arc<dyn RowSource> = Arc::new(ReadySource);
    let outbox = Outbox::new(&journal, A, 0);
    outbox.attach(Arc::downgrade(&source));
    hand(&outbox, 1, 1);
    for _ in 0..200 {
        tokio::task::yield_now().await;
        *calls.lock().unwrap() = 0;
    }
    assert!(!journal.is_fenced(), "the writer wrote a thousand rounds while nobody else ran");
    assert_eq!(outbox.applied_seq(), 0);
}
