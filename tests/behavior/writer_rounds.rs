//! Rounds of a writer: the limits of one call, and what happens to batches that it does not answer.

use std::sync::{Arc, Mutex};

use hotpool::clock::Clock;
use hotpool::persist::journal::{Journal, Outbox};
use hotpool::persist::row::{RowFrames, RowKind, ShardRow, decode_shard, put_deletion};
use hotpool::persist::store::{ShardKey, SharedStore, Store as _, WriteKind};
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
    (location, gate, Journal::new(store, Clock::manual()))
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
