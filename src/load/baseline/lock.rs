//! `redis-lock`: one lock a claim, around reading all workers, picking one and writing it. What a controller does that
//! must not give a worker out twice and has only a lock service.
//!
//! A claim:
//! 1. the pool's lock: `SET NX PX` (1 round trip, and one more every [`RETRY`] while somebody else has it);
//! 2. every server: `SCAN` page by page, and the records of each page in one pipeline (2 a page);
//! 3. one of the workers with room is picked, its record written (1), and the claim's (1);
//! 4. the lock is given back by a script that looks whether it is still ours (1).
//!
//! A release: the lock (1), the claim's record (1), the worker's (1), both written (2), the lock given back (1).
//!
//! So a claim takes 4 round trips and two a page, a release 6, and while one is made, no other is.

use std::time::{Duration, Instant};

use super::nodes::BaselineSession;
use super::rows::{self, BaselineClaimRow, BaselineWorkerRow};
use crate::claim_input::{ClaimInput, ReceivedGrant};
use crate::grant_checker::worker_ordinal;
use crate::http_calls::target_error;
use crate::resp_pipeline::RespValue;
use crate::stats::TargetError;
use hotpool::model::{ClaimId, Fence};

/// How long a lock lives if its holder dies, in milliseconds.
const LOCK_MS: &[u8] = b"10000";
/// Pause before a lock that somebody else has is tried again. Libraries wait ten times as long; this is kinder.
pub(super) const RETRY_INTERVAL: Duration = Duration::from_millis(5);
/// Longest wait for a lock.
const LOCK_TIMEOUT: Duration = Duration::from_secs(30);
/// Deletes the lock if it is still the caller's.
const UNLOCK: &[u8] =
    b"if redis.call('GET', KEYS[1]) == ARGV[1] then return redis.call('DEL', KEYS[1]) else return 0 end";

/// Takes the lock of this name.
pub(super) async fn lock(session: &mut BaselineSession<'_>, name: &str, token: &str) -> Result<(), TargetError> {
    let start = Instant::now();
    loop {
        let words: [&[u8]; 6] = [b"SET", name.as_bytes(), token.as_bytes(), b"NX", b"PX", LOCK_MS];
        if session.execute(name, &words).await? != RespValue::Nil {
            return Ok(());
        }
        session.count_retry();
        if start.elapsed() > LOCK_TIMEOUT {
            return Err(target_error(format!("the lock was not free within {} s", LOCK_TIMEOUT.as_secs()), false));
        }
        tokio::time::sleep(RETRY_INTERVAL).await;
    }
}

/// Gives it back.
pub(super) async fn unlock(session: &mut BaselineSession<'_>, name: &str, token: &str) -> Result<(), TargetError> {
    session.execute(name, &[b"EVAL", UNLOCK, b"1", name.as_bytes(), token.as_bytes()]).await.map(drop)
}

pub(super) async fn claim(session: &mut BaselineSession<'_>, ask: ClaimInput) -> Result<ReceivedGrant, TargetError> {
    let (name, token) = (format!("lock:{{{}}}", session.base.tag), ask.id.key().to_owned());
    lock(session, &name, &token).await?;
    let granted = locked_claim(session, ask).await;
    unlock(session, &name, &token).await?;
    granted
}

async fn locked_claim(session: &mut BaselineSession<'_>, ask: ClaimInput) -> Result<ReceivedGrant, TargetError> {
    let slots = ask.params.slots.max(1);
    let workers = rows::read_all(session).await?;
    let Some((worker, row)) = rows::pick_worker(&workers, slots, ask.id.key()) else {
        return Err(TargetError::NoCapacity);
    };
    let Some(row) = row.with_taken(slots) else { return Err(TargetError::NoCapacity) };
    put(session, &worker, row).await?;
    let held = BaselineClaimRow { fence: row.version, worker, slots };
    let name = session.base.claim_key(ask.id.key());
    session.execute(&name, &[b"SET", name.as_bytes(), held.text().as_bytes()]).await?;
    Ok(ReceivedGrant { fence: held.fence, worker: worker_ordinal(&held.worker), id: ask.id })
}

/// Writes a worker's record, under a lock.
pub(super) async fn put(
    session: &mut BaselineSession<'_>,
    worker: &str,
    row: BaselineWorkerRow,
) -> Result<(), TargetError> {
    let name = session.base.worker_key(worker);
    session.execute(&name, &[b"SET", name.as_bytes(), row.text().as_bytes()]).await.map(drop)
}

/// Reads it.
pub(super) async fn get(session: &mut BaselineSession<'_>, worker: &str) -> Result<BaselineWorkerRow, TargetError> {
    let name = session.base.worker_key(worker);
    let row = session.execute(&name, &[b"GET", name.as_bytes()]).await?;
    row.text().and_then(BaselineWorkerRow::read).ok_or_else(|| target_error(format!("{worker} has no record"), false))
}

pub(super) async fn release(session: &mut BaselineSession<'_>, id: &ClaimId, fence: Fence) -> Result<(), TargetError> {
    let name = format!("lock:{{{}}}", session.base.tag);
    lock(session, &name, id.key()).await?;
    let released = locked_release(session, id, fence).await;
    unlock(session, &name, id.key()).await?;
    released
}

async fn locked_release(session: &mut BaselineSession<'_>, id: &ClaimId, fence: Fence) -> Result<(), TargetError> {
    let Some(held) = rows::check_fence(rows::claim_row(session, id.key()).await?, fence)? else { return Ok(()) };
    let row = get(session, &held.worker).await?;
    put(session, &held.worker, row.with_returned(held.slots)).await?;
    let name = session.base.claim_key(id.key());
    session.execute(&name, &[b"DEL", name.as_bytes()]).await.map(drop)
}
