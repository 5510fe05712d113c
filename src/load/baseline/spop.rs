//! `redis-spop`: a set of idle workers beside their records. What replaces [`super::scan`] when that has become too slow.
//!
//! A claim:
//! 1. `SPOP` from the set of idle workers (1 round trip);
//! 2. `GET` of the worker's record, to see that it is what the set says (1);
//! 3. the record is written under its version: `WATCH`, `GET`, `MULTI SET EXEC` (3);
//! 4. the claim's record is written the same way (3).
//!
//! A release deletes the claim's record under its version (3), writes the worker's (3), and puts the worker back with `SADD`
//! (1). So a claim takes 8 round trips and a release 7. The set is one name, so all claims of a pool go through one server,
//! and nothing but good luck keeps set and records in step when a client dies in between.

use super::nodes::BaselineSession;
use super::rows::{BaselineClaimRow, BaselineWorkerRow};
use super::scan;
use crate::claim_input::{ClaimInput, ReceivedGrant};
use crate::http_calls::target_error;
use crate::stats::TargetError;
use hotpool::model::{ClaimId, Fence};

pub(super) async fn claim(session: &mut BaselineSession<'_>, ask: ClaimInput) -> Result<ReceivedGrant, TargetError> {
    let set = session.base.idle_key();
    let popped = session.execute(&set, &[b"SPOP", set.as_bytes()]).await?;
    let Some(worker) = popped.text().map(str::to_owned) else { return Err(TargetError::NoCapacity) };
    let name = session.base.worker_key(&worker);
    let row = session.execute(&name, &[b"GET", name.as_bytes()]).await?;
    if row.text().and_then(BaselineWorkerRow::read).is_none_or(|row| row.free == 0) {
        return Err(target_error(format!("{worker} is in the set of idle workers and is not idle"), false));
    }
    match scan::take_slots(session, &worker, 1).await? {
        Some(fence) => scan::write_claim(session, ask, BaselineClaimRow { fence, worker, slots: 1 }).await,
        None => Err(target_error(format!("{worker} was popped here and taken by somebody else"), false)),
    }
}

pub(super) async fn release(session: &mut BaselineSession<'_>, id: &ClaimId, fence: Fence) -> Result<(), TargetError> {
    let Some(held) = scan::delete_claim(session, id, fence).await? else { return Ok(()) };
    scan::return_slots(session, &held).await?;
    let set = session.base.idle_key();
    session.execute(&set, &[b"SADD", set.as_bytes(), held.worker.as_bytes()]).await.map(drop)
}
