//! `postgres://`: claims as rows of two tables in PostgreSQL, the way of most platforms that have no scheduler.
//!
//! A worker is a row with its free slots and a version, with a partial index on those that have any; a claim is a row with its
//! key, worker and fence. Each operation is one prepared statement, a transaction of its own and one round trip:
//!
//! - a claim locks the first worker that is free and that nobody else has locked (`FOR UPDATE SKIP LOCKED`), takes the slots,
//!   and inserts the holder's row. A key that is held already returns its claim.
//! - a release deletes the holder's row if the fence is right, and returns the slots.
//!
//! The fence is the version under which the worker was written, so fences grow per worker. Each request in flight uses a
//! connection of its own. A claim that met the same key in another transaction is tried again; its round trips count.

mod url;

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use futures::{FutureExt as _, StreamExt as _};
use parking_lot::Mutex;
use tokio_postgres::error::SqlState;
use tokio_postgres::{Client, NoTls, Row, Statement};

pub use self::url::{PostgresUrl, SynchronousCommit};
use super::baseline::{RoundTripCounters, RoundTripCounts};
use super::claim_input::{ClaimInput, PoolOccupancy, ReceivedGrant};
use super::http_calls::target_error;
use super::stats::TargetError;
use hotpool::model::{ClaimId, Fence};

/// Number of attempts of an operation that conflicts with another transaction.
const ATTEMPTS_MAX: u32 = 256;
/// Number of claims or releases of one batch that are sent at a time.
const BATCH_CONCURRENCY: usize = 16;

/// State shared by all clients of a run.
#[derive(Debug)]
struct PostgresState {
    url: PostgresUrl,
    /// Names of the tables of workers and claims.
    tables: [String; 2],
    /// Slots of each worker; 0 if a claim takes a whole worker.
    slots: AtomicU32,
    trips: RoundTripCounters,
}

/// Pool of a run, kept in PostgreSQL.
pub struct PostgresTarget {
    state: Arc<PostgresState>,
    client: PostgresClient,
}

/// Client with as many connections as it has requests in flight.
pub struct PostgresClient {
    state: Arc<PostgresState>,
    idle: Mutex<Vec<PostgresSession>>,
}

/// Connection with the statements of an operation.
struct PostgresSession {
    client: Client,
    claim: Option<Statement>,
    release: Option<Statement>,
}

fn failed(error: &tokio_postgres::Error) -> TargetError {
    let message = error.as_db_error().map_or_else(|| error.to_string(), ToString::to_string);
    target_error(message, error.as_db_error().is_none())
}

/// Whether an operation failed because of another transaction, so that it may be tried again.
fn is_conflict(error: &tokio_postgres::Error) -> bool {
    let conflicts =
        [&SqlState::UNIQUE_VIOLATION, &SqlState::T_R_SERIALIZATION_FAILURE, &SqlState::T_R_DEADLOCK_DETECTED];
    error.code().is_some_and(|code| conflicts.contains(&code))
}

impl PostgresState {
    async fn connect(&self) -> Result<PostgresSession, TargetError> {
        let (client, connection) = self.url.config().connect(NoTls).await.map_err(|error| failed(&error))?;
        // It ends with its client.
        tokio::spawn(connection);
        let set = format!("SET synchronous_commit = {}", self.url.synchronous_commit.as_str());
        client.batch_execute(&set).await.map_err(|error| failed(&error))?;
        Ok(PostgresSession { client, claim: None, release: None })
    }

    /// Slots that a claim takes of a worker, and that a worker has.
    fn slots_per_worker(&self) -> i32 {
        i32::try_from(self.slots.load(Ordering::Relaxed).max(1)).unwrap_or(i32::MAX)
    }
}

impl PostgresSession {
    async fn claim_statement(&mut self, [workers, claims]: &[String; 2]) -> Result<Statement, tokio_postgres::Error> {
        if let Some(statement) = &self.claim {
            return Ok(statement.clone());
        }
        let sql = format!(
            "WITH held AS (SELECT fence, worker FROM {claims} WHERE key = $1), \
             picked AS (SELECT id FROM {workers} WHERE free >= $2 AND free > 0 AND NOT EXISTS (SELECT FROM held) \
             LIMIT 1 FOR UPDATE SKIP LOCKED), \
             taken AS (UPDATE {workers} AS w SET free = w.free - $2, version = w.version + 1 FROM picked \
             WHERE w.id = picked.id RETURNING w.id, w.version), \
             made AS (INSERT INTO {claims} (key, worker, fence, slots) SELECT $1, id, version, $2 FROM taken \
             RETURNING fence, worker) \
             SELECT fence, worker FROM made UNION ALL SELECT fence, worker FROM held"
        );
        let statement = self.client.prepare(&sql).await?;
        Ok(self.claim.insert(statement).clone())
    }

    async fn release_statement(&mut self, [workers, claims]: &[String; 2]) -> Result<Statement, tokio_postgres::Error> {
        if let Some(statement) = &self.release {
            return Ok(statement.clone());
        }
        let sql = format!(
            "WITH gone AS (DELETE FROM {claims} WHERE key = $1 AND fence = $2 RETURNING worker, slots) \
             UPDATE {workers} AS w SET free = w.free + gone.slots, version = w.version + 1 FROM gone WHERE w.id = gone.worker"
        );
        let statement = self.client.prepare(&sql).await?;
        Ok(self.release.insert(statement).clone())
    }
}

fn grant(row: &Row, id: ClaimId) -> ReceivedGrant {
    let (fence, worker): (i64, i32) = (row.get(0), row.get(1));
    ReceivedGrant { id, fence: fence.unsigned_abs(), worker: worker.unsigned_abs() }
}

impl PostgresTarget {
    /// Connects to the server. Names of the run's tables contain `tag`.
    pub(super) async fn open(url: &PostgresUrl, tag: &str) -> Result<Self, TargetError> {
        let tables = ["workers", "claims"].map(|what| format!("hotpool_load_{what}_{tag}"));
        let trips = RoundTripCounters::default();
        let state = Arc::new(PostgresState { url: url.clone(), tables, slots: AtomicU32::new(0), trips });
        let client = PostgresClient { state: Arc::clone(&state), idle: Mutex::default() };
        client.checkin(state.connect().await?);
        Ok(Self { state, client })
    }

    async fn execute(&self, sql: &str) -> Result<(), TargetError> {
        let session = self.client.checkout().await?;
        session.client.batch_execute(sql).await.map_err(|error| failed(&error))?;
        self.client.checkin(session);
        Ok(())
    }

    async fn query(&self, sql: &str) -> Result<Vec<Row>, TargetError> {
        let session = self.client.checkout().await?;
        let rows = session.client.query(sql, &[]).await.map_err(|error| failed(&error))?;
        self.client.checkin(session);
        Ok(rows)
    }

    /// Creates the tables, for workers with this many slots; 0 if a claim takes a whole worker.
    pub(super) async fn create(&self, slots: u32) -> Result<(), TargetError> {
        self.state.slots.store(slots, Ordering::Relaxed);
        let [workers, claims] = &self.state.tables;
        self.execute(&format!(
            "CREATE TABLE {workers} (id int PRIMARY KEY, free int NOT NULL, version bigint NOT NULL); \
             CREATE INDEX {workers}_idle ON {workers} (id) WHERE free > 0; \
             CREATE TABLE {claims} (key text PRIMARY KEY, worker int NOT NULL, fence bigint NOT NULL, slots int NOT NULL)"
        ))
        .await
    }

    pub(super) async fn register(&self, workers: std::ops::Range<u32>) -> Result<(), TargetError> {
        let (table, free) = (&self.state.tables[0], self.state.slots_per_worker());
        let (first, last) = (workers.start, workers.end.saturating_sub(1));
        self.execute(&format!("INSERT INTO {table} SELECT id, {free}, 0 FROM generate_series({first}, {last}) AS id"))
            .await?;
        self.execute(&format!("ANALYZE {table}")).await
    }

    pub(super) fn client(&self) -> PostgresClient {
        PostgresClient { state: Arc::clone(&self.state), idle: Mutex::default() }
    }

    pub(super) async fn counts(&self) -> Result<PoolOccupancy, TargetError> {
        let (table, free) = (&self.state.tables[0], self.state.slots_per_worker());
        let rows = self.query(&format!("SELECT count(*), count(*) FILTER (WHERE free = {free}) FROM {table}")).await?;
        let count = |index| rows.first().map_or(0, |row| row.get::<_, i64>(index).unsigned_abs());
        let (total, idle) = (count(0), count(1));
        Ok(PoolOccupancy { total, idle, busy: total.saturating_sub(idle) })
    }

    pub(super) async fn claims(&self) -> Result<u64, TargetError> {
        let rows = self.query(&format!("SELECT count(*) FROM {}", self.state.tables[1])).await?;
        Ok(rows.first().map_or(0, |row| row.get::<_, i64>(0).unsigned_abs()))
    }

    pub(super) async fn remove(&self) -> Result<(), TargetError> {
        let [workers, claims] = &self.state.tables;
        self.execute(&format!("DROP TABLE IF EXISTS {workers}, {claims}")).await
    }

    pub(super) fn round_trips(&self) -> RoundTripCounts {
        self.state.trips.counts()
    }
}

impl PostgresClient {
    async fn checkout(&self) -> Result<PostgresSession, TargetError> {
        let idle = self.idle.lock().pop();
        match idle {
            Some(session) => Ok(session),
            None => self.state.connect().await,
        }
    }

    fn checkin(&self, session: PostgresSession) {
        self.idle.lock().push(session);
    }

    pub(super) async fn claim(&self, input: ClaimInput) -> Result<ReceivedGrant, TargetError> {
        let mut session = self.checkout().await?;
        let slots = i32::try_from(input.params.slots.max(1)).unwrap_or(i32::MAX);
        for _ in 0..ATTEMPTS_MAX {
            let statement = session.claim_statement(&self.state.tables).await.map_err(|error| failed(&error))?;
            self.state.trips.claims.fetch_add(1, Ordering::Relaxed);
            match session.client.query_opt(&statement, &[&input.id.key(), &slots]).await {
                Ok(row) => {
                    self.checkin(session);
                    return row.map(|row| grant(&row, input.id)).ok_or(TargetError::NoCapacity);
                }
                Err(error) if is_conflict(&error) => {
                    self.state.trips.retries.fetch_add(1, Ordering::Relaxed);
                }
                Err(error) => return Err(failed(&error)),
            }
        }
        Err(target_error(format!("a conflict with other transactions in {ATTEMPTS_MAX} attempts"), false))
    }

    pub(super) async fn claim_batch(&self, inputs: Vec<ClaimInput>) -> Vec<Result<ReceivedGrant, TargetError>> {
        let claims: Vec<_> = inputs.into_iter().map(|input| self.claim(input).boxed()).collect();
        futures::stream::iter(claims).buffered(BATCH_CONCURRENCY).collect().await
    }

    pub(super) async fn release(&self, id: &ClaimId, fence: Fence) -> Result<(), TargetError> {
        let mut session = self.checkout().await?;
        let statement = session.release_statement(&self.state.tables).await.map_err(|error| failed(&error))?;
        let fence = i64::try_from(fence).map_err(|_| target_error("a fence beyond 63 bits".to_owned(), false))?;
        self.state.trips.releases.fetch_add(1, Ordering::Relaxed);
        session.client.execute(&statement, &[&id.key(), &fence]).await.map_err(|error| failed(&error))?;
        self.checkin(session);
        Ok(())
    }

    pub(super) async fn release_batch(&self, claims: &[(ClaimId, Fence)]) -> Vec<Result<(), TargetError>> {
        let releases: Vec<_> = claims.iter().map(|(id, fence)| self.release(id, *fence).boxed()).collect();
        futures::stream::iter(releases).buffered(BATCH_CONCURRENCY).collect().await
    }

    pub(super) async fn find(&self, id: &ClaimId) -> Result<Option<Fence>, TargetError> {
        let session = self.checkout().await?;
        let sql = format!("SELECT fence FROM {} WHERE key = $1", self.state.tables[1]);
        let row = session.client.query_opt(&sql, &[&id.key()]).await.map_err(|error| failed(&error))?;
        self.checkin(session);
        Ok(row.map(|row| row.get::<_, i64>(0).unsigned_abs()))
    }
}
