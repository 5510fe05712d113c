//! `redis-lock`: one lock around reading all workers, picking one and writing it. The method of a controller that must
//! not grant a worker twice and has only a lock service.
//!
//! A claim:
//! 1. lock the pool: `SET NX PX` (1 round trip, and one more every [`RETRY_INTERVAL`] while another client holds it);
//! 2. for every server: `SCAN` page by page, and the records of each page in one pipeline (2 a page);
//! 3. pick a worker with enough free slots, write its record (1) and the claim's (1);
//! 4. unlock with a script that checks the owner of the lock (1).
//!
//! A release: lock (1), read the claim's record (1) and the worker's (1), write both (2), unlock (1).
//!
//! So a claim takes 4 round trips and two a page, a release 6, and only one claim is made at a time.

use std::time::{Duration, Instant};

use super::nodes::BaselineSession;
use super::rows::{self, BaselineClaimRow, BaselineWorkerRow};
use crate::claim_input::{ClaimInput, ReceivedGrant};
use crate::grant_checker::worker_ordinal;
use crate::http_calls::target_error;
use crate::resp_pipeline::RespValue;
use crate::stats::TargetError;
use hotpool::model::{ClaimId, Fence};

/// Expiry of a lock whose holder dies, in milliseconds.
const LOCK_MS: &[u8] = b"10000";
/// Pause before a held lock is tried again. Libraries wait ten times as long.
pub(super) const RETRY_INTERVAL: Duration = Duration::from_millis(5);
/// Longest wait for a lock.
const LOCK_TIMEOUT: Duration = Duration::from_secs(30);
/// Script that deletes the lock if the caller still owns it.
const UNLOCK: &[u8] =
    b"if redis.call('GET', KEYS[1]) == ARGV[1] then return redis.call('DEL', KEYS[1]) else return 0 end";

/// Acquires the lock of this name.
pub(super) async fn lock(session: &mut BaselineSession<'_>, name: &str, token: &str) -> Result<(), TargetError> {
    let start = Instant::now();
    loop {
        let words: [&[u8]; 6] = [b"SET", name.as_bytes(), token.as_bytes(), b"NX", b"PX", LOCK_MS];
        if session.execute(name, &words).await? != RespValue::Nil {
            return Ok(());
        }
        session.count_retry();
        if start.elapsed() > LOCK_TIMEOUT {
            let message = format!("lock not acquired within {} s", LOCK_TIMEOUT.as_secs());
            return Err(target_error(message, false));
        }
        tokio::time::sleep(RETRY_INTERVAL).await;
    }
}

/// Releases the lock of this name.
pub(super) async fn unlock(session: &mut BaselineSession<'_>, name: &str, token: &str) -> Result<(), TargetError> {
    session.execute(name, &[b"EVAL", UNLOCK, b"1", name.as_bytes(), token.as_bytes()]).await.map(drop)
}

pub(super) async fn claim(session: &mut BaselineSession<'_>, input: ClaimInput) -> Result<ReceivedGrant, TargetError> {
    let (name, token) = (format!("lock:{{{}}}", session.base.tag), input.id.key().to_owned());
    lock(session, &name, &token).await?;
    let result = locked_claim(session, input).await;
    unlock(session, &name, &token).await?;
    result
}

async fn locked_claim(session: &mut BaselineSession<'_>, input: ClaimInput) -> Result<ReceivedGrant, TargetError> {
    let slots = input.params.slots.max(1);
    let workers = rows::read_all(session).await?;
    let Some((worker, row)) = rows::pick_worker(&workers, slots, input.id.key()) else {
        return Err(TargetError::NoCapacity);
    };
    let Some(row) = row.with_taken(slots) else { return Err(TargetError::NoCapacity) };
    put(session, &worker, row).await?;
    let claim_row = BaselineClaimRow { fence: row.version, worker, slots };
    let name = session.base.claim_key(input.id.key());
    session.execute(&name, &[b"SET", name.as_bytes(), claim_row.text().as_bytes()]).await?;
    Ok(ReceivedGrant { fence: claim_row.fence, worker: worker_ordinal(&claim_row.worker), id: input.id })
}

/// Writes a worker's record under the lock.
pub(super) async fn put(
    session: &mut BaselineSession<'_>,
    worker: &str,
    row: BaselineWorkerRow,
) -> Result<(), TargetError> {
    let name = session.base.worker_key(worker);
    session.execute(&name, &[b"SET", name.as_bytes(), row.text().as_bytes()]).await.map(drop)
}

/// Reads a worker's record under the lock.
pub(super) async fn get(session: &mut BaselineSession<'_>, worker: &str) -> Result<BaselineWorkerRow, TargetError> {
    let name = session.base.worker_key(worker);
    let row = session.execute(&name, &[b"GET", name.as_bytes()]).await?;
    row.text().and_then(BaselineWorkerRow::read).ok_or_else(|| target_error(format!("{worker} has no record"), false))
}

pub(super) async fn release(session: &mut BaselineSession<'_>, id: &ClaimId, fence: Fence) -> Result<(), TargetError> {
    let name = format!("lock:{{{}}}", session.base.tag);
    lock(session, &name, id.key()).await?;
    let result = locked_release(session, id, fence).await;
    unlock(session, &name, id.key()).await?;
    result
}

async fn locked_release(session: &mut BaselineSession<'_>, id: &ClaimId, fence: Fence) -> Result<(), TargetError> {
    let Some(claim_row) = rows::check_fence(rows::claim_row(session, id.key()).await?, fence)? else { return Ok(()) };
    let row = get(session, &claim_row.worker).await?;
    put(session, &claim_row.worker, row.with_returned(claim_row.slots)).await?;
    let name = session.base.claim_key(id.key());
    session.execute(&name, &[b"DEL", name.as_bytes()]).await.map(drop)
}
