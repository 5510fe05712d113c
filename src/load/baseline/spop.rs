//! `redis-spop`: a set of idle workers in addition to their records. Replaces [`super::scan`] when that is too slow.
//!
//! A claim:
//! 1. `SPOP` from the set of idle workers (1 round trip);
//! 2. `GET` the worker's record, to check that the worker is idle (1);
//! 3. write the record under its version: `WATCH`, `GET`, `MULTI SET EXEC` (3);
//! 4. write the claim's record in the same way (3).
//!
//! A release deletes the claim's record under its version (3), writes the worker's (3), and adds the worker to the set
//! with `SADD` (1). So a claim takes 8 round trips and a release 7. The set is one key, so all claims of a pool go
//! through one server, and set and records diverge if a client dies in between.

use super::nodes::BaselineSession;
use super::rows::{BaselineClaimRow, BaselineWorkerRow};
use super::scan;
use crate::claim_input::{ClaimInput, ReceivedGrant};
use crate::http_calls::target_error;
use crate::stats::TargetError;
use hotpool::model::{ClaimId, Fence};

pub(super) async fn claim(session: &mut BaselineSession<'_>, input: ClaimInput) -> Result<ReceivedGrant, TargetError> {
    let idle_set = session.base.idle_key();
    let popped = session.execute(&idle_set, &[b"SPOP", idle_set.as_bytes()]).await?;
    let Some(worker) = popped.text().map(str::to_owned) else { return Err(TargetError::NoCapacity) };
    let name = session.base.worker_key(&worker);
    let row = session.execute(&name, &[b"GET", name.as_bytes()]).await?;
    if row.text().and_then(BaselineWorkerRow::read).is_none_or(|row| row.free == 0) {
        return Err(target_error(format!("{worker} is in the idle set but not idle"), false));
    }
    match scan::take_slots(session, &worker, 1).await? {
        Some(fence) => scan::write_claim(session, input, BaselineClaimRow { fence, worker, slots: 1 }).await,
        None => Err(target_error(format!("{worker} was popped but another client wrote its record"), false)),
    }
}

pub(super) async fn release(session: &mut BaselineSession<'_>, id: &ClaimId, fence: Fence) -> Result<(), TargetError> {
    let Some(claim) = scan::delete_claim(session, id, fence).await? else { return Ok(()) };
    scan::return_slots(session, &claim).await?;
    let idle_set = session.base.idle_key();
    session.execute(&idle_set, &[b"SADD", idle_set.as_bytes(), claim.worker.as_bytes()]).await.map(drop)
}
