//! Store behind a gate, which injects the competing step of a test.

use std::collections::{BTreeSet, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, Weak};

use futures::FutureExt as _;
use futures::future::BoxFuture;
use hotpool::model::{Millis, Seq};
use hotpool::persist::row::{self, RowFrames, RowKind};
use hotpool::persist::store::{
    FenceSpan, LoadedShard, MissingRecord, OwnershipRecord, RenewalOutcome, RowSink, ShardKey, SharedStore, Store,
    StoreError, WriteBatch, WriteKind, WriteOutcome,
};
use tokio::sync::Notify;
use uuid::Uuid;

use crate::place::Place;

/// Selects the write batches that stop at the gate.
pub type BatchFilter = Box<dyn Fn(&WriteBatch) -> bool + Send>;

/// Write batch as it arrived.
#[derive(Debug, Clone, Copy)]
pub struct SentBatch {
    pub shard: ShardKey,
    pub from: Seq,
    pub to: Seq,
    pub kind: &'static str,
    /// Number of rows in the batch.
    pub bytes: usize,
}

impl SentBatch {
    fn of(step: &WriteBatch) -> Self {
        let (kind, bytes) = match &step.kind {
            WriteKind::Rows(rows) => ("rows", rows.len()),
            WriteKind::Chunk { rows, .. } => ("chunk", rows.len()),
            WriteKind::Install { rows, .. } => ("flip", rows.len()),
            WriteKind::Drop => ("drop", 0),
        };
        Self { shard: step.shard, from: step.from, to: step.to, kind, bytes }
    }
}

#[derive(Default)]
struct State {
    held: Option<BatchFilter>,
    holds_loads: bool,
    /// Number of further batches of a shard that are answered `Gap`.
    gaps: HashMap<ShardKey, usize>,
    /// Number of further batches of a shard that are answered `Away`.
    unanswered: HashMap<ShardKey, usize>,
    /// Number of further batches of a shard that are applied and answered `Away`.
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
    wish: Option<ShardKey>,
    step_bytes_max: Option<usize>,
    /// Overrides the inner store's value.
    lease_ms: Option<Millis>,
    refuses_renewals: bool,
    is_superseded: bool,
    stopped: usize,
    keeps_copies: bool,
    copies: Vec<Place>,
    pools: HashMap<String, u64>,
    log: Vec<(ShardKey, &'static str, WriteOutcome)>,
    /// Calls that were carried out so far, with their batches.
    rounds: Vec<Vec<SentBatch>>,
}

/// Real store with a gate in front of it.
pub struct GatedStore {
    inner: SharedStore,
    /// Owned by the test: tasks that outlive it hold the store, and must not keep a server running.
    place: Weak<Place>,
    state: Mutex<State>,
    moved: Notify,
    /// Locked while the inner store works, so that a copy never shows half a commit in which nobody could have
    /// crashed.
    working: tokio::sync::Mutex<()>,
}

impl GatedStore {
    pub fn open(place: &Arc<Place>) -> Self {
        Self {
            inner: place.open(),
            place: Arc::downgrade(place),
            state: Mutex::default(),
            moved: Notify::new(),
            working: tokio::sync::Mutex::new(()),
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    fn place(&self) -> Arc<Place> {
        self.place.upgrade().expect("the test is not over")
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

    /// Answers the next `times` batches of the shard with `Gap`, of whatever kind; those of others are applied.
    pub fn gap(&self, shard: ShardKey, times: usize) {
        self.change(|state| state.gaps.extend([(shard, times)]));
    }

    /// Answers the next `times` batches of the shard with `Away` without applying them.
    pub fn leave_unanswered(&self, shard: ShardKey, times: usize) {
        self.change(|state| state.unanswered.extend([(shard, times)]));
    }

    /// Applies the next `times` batches of the shard, but answers `Away`.
    pub fn lose_answers(&self, shard: ShardKey, times: usize) {
        self.change(|state| state.lost_answers.extend([(shard, times)]));
    }

    /// Stops calls that carry the row of a committed gang.
    pub fn hold_gang_rows(&self) {
        self.hold(carries_gang_row);
    }

    /// Lets calls pass that carry the row of a committed gang, and stops all others.
    pub fn hold_all_but_gang_rows(&self) {
        self.hold(|step| !carries_gang_row(step));
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
        self.change(|state| state.step_bytes_max = Some(bytes));
    }

    /// Sets the lease of the store. Must be called before it is taken over.
    pub fn lease(&self, lease_ms: Millis) {
        self.change(|state| state.lease_ms = Some(lease_ms));
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
        self.change(|state| state.wish = Some(shard));
    }

    /// Keeps a copy of the stored rows after every commit.
    pub fn keep_copies(&self) {
        self.change(|state| state.keeps_copies = true);
    }

    /// Takes the copies and stops keeping them.
    pub fn take_copies(&self) -> Vec<Place> {
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

    /// Key of a shard, taken from the catalogue's rows that passed.
    pub fn key(&self, pool: &str, shard: u16) -> ShardKey {
        ShardKey { pool: self.state().pools[pool], shard }
    }

    /// Copies what `kill -9` would leave now.
    pub async fn copy(&self) -> Place {
        let _quiet = self.working.lock().await;
        self.place().copy()
    }

    async fn passes(&self, steps: &[WriteBatch]) {
        if let Some(step) = steps.iter().find(|step| carries_gang_row(step)) {
            self.state().gang_home = Some(step.shard);
        }
        let held = |state: &State| state.held.as_ref().is_some_and(|which| steps.iter().any(which));
        if held(&self.state()) {
            self.change(|state| state.stopped += 1);
            self.until(|state| !held(state)).await;
            self.change(|state| state.stopped -= 1);
        }
    }

    fn note(&self, step: &WriteBatch, outcome: WriteOutcome) {
        if let (WriteKind::Rows(rows), ShardKey::CATALOG) = (&step.kind, step.shard) {
            self.learn(rows);
        }
        let kind = SentBatch::of(step).kind;
        self.change(|state| {
            if matches!(outcome, WriteOutcome::Ok) {
                for (id, is_put) in gang_rows_of(step) {
                    let row = (step.shard, id);
                    if is_put {
                        state.gang_rows.insert(row);
                    } else {
                        state.gangs_forgotten += usize::from(state.gang_rows.remove(&row));
                    }
                }
            }
            state.log.push((step.shard, kind, outcome));
            if kind == "flip" && state.wish == Some(step.shard) {
                state.wish = None;
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

    async fn carry_out(&self, steps: Vec<WriteBatch>) -> Result<Vec<WriteOutcome>, StoreError> {
        self.passes(&steps).await;
        let (refused, unanswered, fails, loses) = {
            let mut state = self.state();
            let fails = std::mem::take(&mut state.fail);
            state.fail = fails.saturating_sub(1);
            let mut refused = HashMap::new();
            let mut lost = HashMap::new();
            let State { gaps, unanswered, lost_answers, .. } = &mut *state;
            for step in steps.iter().filter(|_| fails == 0) {
                if let Some(left) = lost_answers.get_mut(&step.shard).filter(|left| **left > 0) {
                    *left -= 1;
                    lost.insert(step.shard, WriteOutcome::Unanswered);
                    continue;
                }
                for (times, outcome) in [(&mut *gaps, WriteOutcome::Gap), (&mut *unanswered, WriteOutcome::Unanswered)]
                {
                    if let Some(left) = times.get_mut(&step.shard).filter(|left| **left > 0) {
                        *left -= 1;
                        refused.insert(step.shard, outcome);
                    }
                }
            }
            if fails == 0 {
                state.rounds.push(steps.iter().map(SentBatch::of).collect());
            }
            let loses = fails == 0 && state.lose_reply > 0;
            state.lose_reply -= usize::from(loses);
            (refused, lost, fails > 0, loses)
        };
        if fails {
            return Err(StoreError::Unavailable("the gate fails it".into()));
        }
        let good: Vec<WriteBatch> = steps.iter().filter(|step| !refused.contains_key(&step.shard)).cloned().collect();
        let mut outcomes = {
            let _working = self.working.lock().await;
            let outcomes = self.inner.apply(good).await?.into_iter();
            if self.state().keeps_copies {
                let copy = self.place().copy();
                self.state().copies.push(copy);
            }
            outcomes
        };
        let all: Vec<WriteOutcome> = steps
            .iter()
            .map(|step| refused.get(&step.shard).copied().unwrap_or_else(|| outcomes.next().unwrap()))
            .collect();
        for (step, outcome) in steps.iter().zip(&all) {
            self.note(step, *outcome);
        }
        let answer =
            |(step, outcome): (&WriteBatch, WriteOutcome)| unanswered.get(&step.shard).copied().unwrap_or(outcome);
        let all = steps.iter().zip(all).map(answer).collect();
        if loses { Err(StoreError::Unavailable("the gate loses the reply".into())) } else { Ok(all) }
    }
}

/// Rows of committed gangs in a batch: the gang's number, and whether the row is put or removed.
fn gang_rows_of(step: &WriteBatch) -> Vec<(String, bool)> {
    let WriteKind::Rows(rows) = &step.kind else { return Vec::new() };
    let frames = RowFrames::new(rows).map(Result::unwrap).filter(|frame| frame.kind == RowKind::Gang);
    frames.map(|frame| (frame.id.to_owned(), frame.body.is_some())).collect()
}

/// Whether a batch commits a gang.
fn carries_gang_row(step: &WriteBatch) -> bool {
    gang_rows_of(step).iter().any(|(_, is_put)| *is_put)
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
        self.state().step_bytes_max.unwrap_or_else(|| self.inner.batch_bytes_max())
    }

    fn last_fault(&self) -> String {
        self.inner.last_fault()
    }

    fn writer_partition(&self, shard: ShardKey) -> usize {
        self.inner.writer_partition(shard)
    }

    fn take_over(&self, owner: Uuid) -> BoxFuture<'_, Result<OwnershipRecord, StoreError>> {
        self.inner.take_over(owner)
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
            loaded
        }
        .boxed()
    }

    fn apply(&self, steps: Vec<WriteBatch>) -> BoxFuture<'_, Result<Vec<WriteOutcome>, StoreError>> {
        self.carry_out(steps).boxed()
    }

    fn snapshot_candidate(&self) -> Option<ShardKey> {
        self.state().wish
    }
}
