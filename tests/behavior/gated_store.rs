//! Store behind a gate, which injects the competing step of a test.

use std::collections::{BTreeSet, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, Weak};

use futures::future::BoxFuture;
use futures::{FutureExt as _, TryFutureExt as _};
use hotpool::model::{Millis, Seq};
use hotpool::persist::row::{self, RowFrames, RowKind};
use hotpool::persist::store::{
    FenceSpan, LoadedShard, MissingRecord, OwnershipRecord, RenewalOutcome, RowSink, ShardKey, SharedStore, Store,
    StoreError, WriteBatch, WriteKind, WriteOutcome,
};
use tokio::sync::Notify;
use uuid::Uuid;

use crate::store_location::StoreLocation;

/// Selects the write batches that stop at the gate.
pub type BatchFilter = Box<dyn Fn(&WriteBatch) -> bool + Send>;

/// Write batch as it arrived.
#[derive(Debug, Clone, Copy)]
pub struct SentBatch {
    pub shard: ShardKey,
    pub from: Seq,
    pub to: Seq,
    pub kind: &'static str,
    /// Length of the rows in the batch.
    pub bytes: usize,
}

impl SentBatch {
    fn of(batch: &WriteBatch) -> Self {
        let (kind, bytes) = match &batch.kind {
            WriteKind::Rows(rows) => ("rows", rows.len()),
            WriteKind::Chunk { rows, .. } => ("chunk", rows.len()),
            WriteKind::Install { rows, .. } => ("install", rows.len()),
            WriteKind::Drop => ("drop", 0),
        };
        Self { shard: batch.shard, from: batch.from, to: batch.to, kind, bytes }
    }
}

#[derive(Default)]
struct State {
    held: Option<BatchFilter>,
    holds_loads: bool,
    /// Number of calls so far that have read shards.
    loads: usize,
    /// Number of further batches of a shard that are answered `Gap`.
    gaps: HashMap<ShardKey, usize>,
    /// Number of further batches of a shard that are answered [`WriteOutcome::Unanswered`].
    unanswered: HashMap<ShardKey, usize>,
    /// Number of further batches of a shard that are applied and answered [`WriteOutcome::Unanswered`].
    lost_answers: HashMap<ShardKey, usize>,
    /// Home of the last gang whose row arrived at the gate.
    gang_home: Option<ShardKey>,
    /// Stored rows of committed gangs.
    gang_rows: BTreeSet<(ShardKey, String)>,
    /// Number of gang rows that were removed again.
    gangs_forgotten: usize,
    /// Calls that fail without effect, and calls that take effect and are answered with a failure.
    fail: usize,
    lose_reply: usize,
    snapshot_requested: Option<ShardKey>,
    batch_bytes_max: Option<usize>,
    /// Overrides the inner store's value.
    lease_ms: Option<Millis>,
    refuses_renewals: bool,
    has_lost_ownership: bool,
    is_superseded: bool,
    stopped: usize,
    keeps_copies: bool,
    copies: Vec<StoreLocation>,
    pools: HashMap<String, u64>,
    log: Vec<(ShardKey, &'static str, WriteOutcome)>,
    /// Calls that were carried out so far, with their batches.
    rounds: Vec<Vec<SentBatch>>,
}

/// Real store with a gate in front of it.
pub struct GatedStore {
    inner: SharedStore,
    /// Owned by the test: tasks that outlive it hold the store, and must not keep a server running.
    location: Weak<StoreLocation>,
    state: Mutex<State>,
    moved: Notify,
    /// Locked while the inner store works, so that a copy never shows half a commit in which no process could have
    /// crashed.
    working: tokio::sync::Mutex<()>,
}

impl GatedStore {
    pub fn open(location: &Arc<StoreLocation>) -> Self {
        Self {
            inner: location.open(),
            location: Arc::downgrade(location),
            state: Mutex::default(),
            moved: Notify::new(),
            working: tokio::sync::Mutex::new(()),
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    fn location(&self) -> Arc<StoreLocation> {
        self.location.upgrade().expect("the test is not over")
    }

    fn change(&self, change: impl FnOnce(&mut State)) {
        change(&mut self.state());
        self.moved.notify_waiters();
    }

    /// Stops every later call with such a batch at the gate.
    pub fn hold(&self, which: impl Fn(&WriteBatch) -> bool + Send + 'static) {
        self.change(|state| state.held = Some(Box::new(which)));
    }

    pub fn hold_all(&self) {
        self.hold(|_| true);
    }

    pub fn hold_loads(&self) {
        self.change(|state| state.holds_loads = true);
    }

    /// Lets a call pass that reads shards, and waits until it has.
    pub async fn let_load_pass(&self) {
        let loads = self.state().loads;
        self.change(|state| state.holds_loads = false);
        self.until(|state| state.loads > loads).await;
    }

    /// Answers the next `times` batches of the shard with `Gap`, of whatever kind; those of others are applied.
    pub fn gap(&self, shard: ShardKey, times: usize) {
        self.change(|state| state.gaps.extend([(shard, times)]));
    }

    /// Answers the next `times` batches of the shard with [`WriteOutcome::Unanswered`] without applying them.
    pub fn leave_unanswered(&self, shard: ShardKey, times: usize) {
        self.change(|state| state.unanswered.extend([(shard, times)]));
    }

    /// Applies the next `times` batches of the shard, but answers [`WriteOutcome::Unanswered`].
    pub fn lose_answers(&self, shard: ShardKey, times: usize) {
        self.change(|state| state.lost_answers.extend([(shard, times)]));
    }

    /// Stops calls that carry the row of a committed gang.
    pub fn hold_gang_rows(&self) {
        self.hold(carries_gang_row);
    }

    /// Lets calls pass that carry the row of a committed gang, and stops all others.
    pub fn hold_all_but_gang_rows(&self) {
        self.hold(|batch| !carries_gang_row(batch));
    }

    /// Home of the last gang whose row arrived at the gate.
    pub fn gang_home(&self) -> ShardKey {
        self.state().gang_home.expect("a gang's row has come to the gate")
    }

    /// Number of stored rows of committed gangs.
    pub fn gang_rows(&self) -> usize {
        self.state().gang_rows.len()
    }

    /// Number of rows of committed gangs that were stored and removed again.
    pub fn gangs_forgotten(&self) -> usize {
        self.state().gangs_forgotten
    }

    /// Stops holding, refusing and failing calls.
    pub fn open_gate(&self) {
        self.change(|state| {
            state.held = None;
            state.holds_loads = false;
            state.gaps.clear();
            state.unanswered.clear();
            state.lost_answers.clear();
            (state.fail, state.lose_reply) = (0, 0);
        });
    }

    pub fn fail(&self, calls: usize) {
        self.change(|state| state.fail = calls);
    }

    pub fn lose_reply(&self, calls: usize) {
        self.change(|state| state.lose_reply = calls);
    }

    /// Sets the limit above which a batch is sent in chunks.
    pub fn limit_batches(&self, bytes: usize) {
        self.change(|state| state.batch_bytes_max = Some(bytes));
    }

    /// Sets the lease of the store. Must be called before it is taken over.
    pub fn lease(&self, lease_ms: Millis) {
        self.change(|state| state.lease_ms = Some(lease_ms));
    }

    /// Forgets what the ownership record says of fences, as servers do that are flushed, or fail over while the shards' do not.
    pub fn lose_ownership_record(&self) {
        self.change(|state| state.has_lost_ownership = true);
    }

    /// Sets whether renewals fail from now on.
    pub fn refuse_renewals(&self, refuse: bool) {
        self.change(|state| state.refuses_renewals = refuse);
    }

    /// Makes the next renewal find another owner.
    pub fn supersede(&self) {
        self.change(|state| state.is_superseded = true);
    }

    /// Requests a snapshot of the shard, once.
    pub fn request_snapshot(&self, shard: ShardKey) {
        self.change(|state| state.snapshot_requested = Some(shard));
    }

    /// Keeps a copy of the stored rows after every commit.
    pub fn keep_copies(&self) {
        self.change(|state| state.keeps_copies = true);
    }

    /// Takes the copies and stops keeping them.
    pub fn take_copies(&self) -> Vec<StoreLocation> {
        let mut state = self.state();
        state.keeps_copies = false;
        std::mem::take(&mut state.copies)
    }

    /// Waits until a call is stopped at the gate.
    pub async fn stopped(&self) {
        self.until(|state| state.stopped > 0).await;
    }

    async fn until(&self, is: impl Fn(&State) -> bool) {
        loop {
            let mut moved = std::pin::pin!(self.moved.notified());
            moved.as_mut().enable();
            if is(&self.state()) {
                return;
            }
            moved.await;
        }
    }

    /// Outcomes of the batches of a shard so far, each with the kind of its batch.
    pub fn log(&self, shard: ShardKey) -> Vec<(&'static str, WriteOutcome)> {
        self.state().log.iter().filter(|(of, ..)| *of == shard).map(|&(_, kind, outcome)| (kind, outcome)).collect()
    }

    /// Batches of each call so far.
    pub fn rounds(&self) -> Vec<Vec<SentBatch>> {
        self.state().rounds.clone()
    }

    /// Key of a shard, taken from the catalog's rows that passed.
    pub fn key(&self, pool: &str, shard: u16) -> ShardKey {
        ShardKey { pool: self.state().pools[pool], shard }
    }

    /// Copies what `kill -9` would leave now.
    pub async fn copy(&self) -> StoreLocation {
        let _quiet = self.working.lock().await;
        self.location().copy()
    }

    async fn passes(&self, batches: &[WriteBatch]) {
        if let Some(batch) = batches.iter().find(|batch| carries_gang_row(batch)) {
            self.state().gang_home = Some(batch.shard);
        }
        let held = |state: &State| state.held.as_ref().is_some_and(|which| batches.iter().any(which));
        if held(&self.state()) {
            self.change(|state| state.stopped += 1);
            self.until(|state| !held(state)).await;
            self.change(|state| state.stopped -= 1);
        }
    }

    fn note(&self, batch: &WriteBatch, outcome: WriteOutcome) {
        if let (WriteKind::Rows(rows), ShardKey::CATALOG) = (&batch.kind, batch.shard) {
            self.learn(rows);
        }
        let kind = SentBatch::of(batch).kind;
        self.change(|state| {
            if matches!(outcome, WriteOutcome::Ok) {
                for (id, is_put) in gang_rows_of(batch) {
                    let row = (batch.shard, id);
                    if is_put {
                        state.gang_rows.insert(row);
                    } else {
                        state.gangs_forgotten += usize::from(state.gang_rows.remove(&row));
                    }
                }
            }
            state.log.push((batch.shard, kind, outcome));
            if kind == "install" && state.snapshot_requested == Some(batch.shard) {
                state.snapshot_requested = None;
            }
        });
    }

    fn learn(&self, rows: &[u8]) {
        for frame in RowFrames::new(rows).map(Result::unwrap) {
            if let (RowKind::Pool, Some(body)) = (frame.kind, frame.body) {
                let pool = row::decode_pool(frame.id, body).unwrap();
                self.state().pools.insert(pool.name, pool.uid);
            }
        }
    }

    async fn carry_out(&self, batches: Vec<WriteBatch>) -> Result<Vec<WriteOutcome>, StoreError> {
        self.passes(&batches).await;
        let (refused, unanswered, fails, loses) = {
            let mut state = self.state();
            let fails = std::mem::take(&mut state.fail);
            state.fail = fails.saturating_sub(1);
            let mut refused = HashMap::new();
            let mut lost = HashMap::new();
            let State { gaps, unanswered, lost_answers, .. } = &mut *state;
            for batch in batches.iter().filter(|_| fails == 0) {
                if let Some(left) = lost_answers.get_mut(&batch.shard).filter(|left| **left > 0) {
                    *left -= 1;
                    lost.insert(batch.shard, WriteOutcome::Unanswered);
                    continue;
                }
                for (times, outcome) in [(&mut *gaps, WriteOutcome::Gap), (&mut *unanswered, WriteOutcome::Unanswered)]
                {
                    if let Some(left) = times.get_mut(&batch.shard).filter(|left| **left > 0) {
                        *left -= 1;
                        refused.insert(batch.shard, outcome);
                    }
                }
            }
            if fails == 0 {
                state.rounds.push(batches.iter().map(SentBatch::of).collect());
            }
            let loses = fails == 0 && state.lose_reply > 0;
            state.lose_reply -= usize::from(loses);
            (refused, lost, fails > 0, loses)
        };
        if fails {
            return Err(StoreError::Unavailable("the gate fails it".into()));
        }
        let good: Vec<WriteBatch> =
            batches.iter().filter(|batch| !refused.contains_key(&batch.shard)).cloned().collect();
        let mut outcomes = {
            let _working = self.working.lock().await;
            let outcomes = self.inner.apply(good).await?.into_iter();
            if self.state().keeps_copies {
                let copy = self.location().copy();
                self.state().copies.push(copy);
            }
            outcomes
        };
        let all: Vec<WriteOutcome> = batches
            .iter()
            .map(|batch| refused.get(&batch.shard).copied().unwrap_or_else(|| outcomes.next().unwrap()))
            .collect();
        for (batch, outcome) in batches.iter().zip(&all) {
            self.note(batch, *outcome);
        }
        let answer =
            |(batch, outcome): (&WriteBatch, WriteOutcome)| unanswered.get(&batch.shard).copied().unwrap_or(outcome);
        let all = batches.iter().zip(all).map(answer).collect();
        if loses { Err(StoreError::Unavailable("the gate loses the reply".into())) } else { Ok(all) }
    }
}

/// Rows of committed gangs in a batch: the gang's number, and whether the row is put or removed.
fn gang_rows_of(batch: &WriteBatch) -> Vec<(String, bool)> {
    let WriteKind::Rows(rows) = &batch.kind else { return Vec::new() };
    let frames = RowFrames::new(rows).map(Result::unwrap).filter(|frame| frame.kind == RowKind::Gang);
    frames.map(|frame| (frame.id.to_owned(), frame.body.is_some())).collect()
}

/// Whether a batch commits a gang.
fn carries_gang_row(batch: &WriteBatch) -> bool {
    gang_rows_of(batch).iter().any(|(_, is_put)| *is_put)
}

impl Store for GatedStore {
    fn kind(&self) -> &'static str {
        "gated"
    }

    fn keeps_rows(&self) -> bool {
        true
    }

    fn lease_ms(&self) -> Option<Millis> {
        self.state().lease_ms.or_else(|| self.inner.lease_ms())
    }

    fn batch_bytes_max(&self) -> usize {
        self.state().batch_bytes_max.unwrap_or_else(|| self.inner.batch_bytes_max())
    }

    fn last_fault(&self) -> String {
        self.inner.last_fault()
    }

    fn writer_partition(&self, shard: ShardKey) -> usize {
        self.inner.writer_partition(shard)
    }

    fn take_over(&self, owner: Uuid) -> BoxFuture<'_, Result<OwnershipRecord, StoreError>> {
        let taken = self.inner.take_over(owner);
        if self.state().has_lost_ownership {
            return taken.map_ok(|record| OwnershipRecord { fence_ceiling: 0, fence_floor: 0, ..record }).boxed();
        }
        taken
    }

    fn raise_fence_ceiling(&self, span: FenceSpan) -> BoxFuture<'_, Result<(), StoreError>> {
        self.inner.raise_fence_ceiling(span)
    }

    fn renew(&self, missing: MissingRecord) -> BoxFuture<'_, Result<RenewalOutcome, StoreError>> {
        if self.state().is_superseded {
            return std::future::ready(Ok(RenewalOutcome::Fenced)).boxed();
        }
        if self.state().refuses_renewals {
            let refused = Err(StoreError::Unavailable("the gate refuses renewals".into()));
            return std::future::ready(refused).boxed();
        }
        self.inner.renew(missing)
    }

    fn resign(&self) -> BoxFuture<'_, Result<(), StoreError>> {
        self.inner.resign()
    }

    fn load(&self, shards: Vec<ShardKey>, mut sink: RowSink) -> BoxFuture<'_, Result<Vec<LoadedShard>, StoreError>> {
        async move {
            self.until(|state| !state.holds_loads).await;
            let learn = shards == [ShardKey::CATALOG];
            let (sender, rows) = std::sync::mpsc::channel();
            let tee = move |key, frames: &[u8]| {
                if learn {
                    sender.send(frames.to_vec()).unwrap();
                }
                sink(key, frames);
            };
            let loaded = self.inner.load(shards, Box::new(tee)).await;
            rows.try_iter().for_each(|rows| self.learn(&rows));
            self.change(|state| state.loads += 1);
            loaded
        }
        .boxed()
    }

    fn apply(&self, batches: Vec<WriteBatch>) -> BoxFuture<'_, Result<Vec<WriteOutcome>, StoreError>> {
        self.carry_out(batches).boxed()
    }

    fn snapshot_candidate(&self) -> Option<ShardKey> {
        self.state().snapshot_requested
    }
}
