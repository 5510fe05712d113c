//! `redis-scan`: read every worker, pick one, write it under its version. What a scheduler does that keeps its workers in
//! Redis and has no other index of them.
//!
//! A claim:
//! 1. every server: `SCAN` page by page, and the records of each page in one pipeline (2 round trips a page);
//! 2. one of the workers with room is picked;
//! 3. its record is written under its version: `WATCH`, `GET`, `MULTI SET EXEC` (3);
//! 4. the claim's record is written the same way (3).
//!
//! If somebody else wrote the worker meanwhile, all of it begins anew. A release deletes the claim's record under its version
//! (3) and writes the worker's (3).
//!
//! So a claim takes 6 round trips and two a page, of which each server has one for a thousand names; a release 6. The more
//! workers, the more is read; the more clients, the more is read in vain.

use super::ATTEMPTS_MAX;
use super::nodes::BaselineSession;
use super::rows::{self, BaselineClaimRow, BaselineRowChange, BaselineWorkerRow};
use crate::claim_input::{ClaimInput, ReceivedGrant};
use crate::grant_checker::worker_ordinal;
use crate::http_calls::target_error;
use crate::stats::TargetError;
use hotpool::model::{ClaimId, Fence};

pub(super) async fn claim(session: &mut BaselineSession<'_>, ask: ClaimInput) -> Result<ReceivedGrant, TargetError> {
    let slots = ask.params.slots.max(1);
    for attempt in 0..ATTEMPTS_MAX {
        let workers = rows::read_all(session).await?;
        let seed = format!("{}.{attempt}", ask.id.key());
        let Some((worker, _)) = rows::pick_worker(&workers, slots, &seed) else { return Err(TargetError::NoCapacity) };
        if let Some(fence) = take_slots(session, &worker, slots).await? {
            return write_claim(session, ask, BaselineClaimRow { fence, worker, slots }).await;
        }
        session.count_retry();
    }
    Err(target_error(format!("others were faster {ATTEMPTS_MAX} times"), false))
}

/// Takes slots of a worker under its version; none if it has not that many any more, or somebody else was faster.
pub(super) async fn take_slots(
    session: &mut BaselineSession<'_>,
    worker: &str,
    slots: u32,
) -> Result<Option<Fence>, TargetError> {
    let mut fence = 0;
    let name = session.base.worker_key(worker);
    let written = rows::update_if_unchanged(session, &name, |row| {
        let Some(row) = row.and_then(BaselineWorkerRow::read).and_then(|row| row.with_taken(slots)) else {
            return BaselineRowChange::Keep;
        };
        fence = row.version;
        BaselineRowChange::Set(row.text())
    });
    Ok(written.await?.then_some(fence))
}

/// Writes the claim's record under its version.
pub(super) async fn write_claim(
    session: &mut BaselineSession<'_>,
    ask: ClaimInput,
    held: BaselineClaimRow,
) -> Result<ReceivedGrant, TargetError> {
    let name = session.base.claim_key(ask.id.key());
    let written = rows::update_if_unchanged(session, &name, |_| BaselineRowChange::Set(held.text())).await?;
    if !written {
        return Err(target_error("somebody else wrote the claim's record".into(), true));
    }
    Ok(ReceivedGrant { fence: held.fence, worker: worker_ordinal(&held.worker), id: ask.id })
}

/// Deletes the claim's record under its version; what it held, or none if it is gone already.
pub(super) async fn delete_claim(
    session: &mut BaselineSession<'_>,
    id: &ClaimId,
    fence: Fence,
) -> Result<Option<BaselineClaimRow>, TargetError> {
    let name = session.base.claim_key(id.key());
    let mut found = Ok(None);
    let deleted = rows::update_if_unchanged(session, &name, |row| {
        found = rows::check_fence(row.and_then(BaselineClaimRow::read), fence);
        if matches!(found, Ok(Some(_))) { BaselineRowChange::Delete } else { BaselineRowChange::Keep }
    });
    let deleted = deleted.await?;
    match found? {
        Some(_) if !deleted => Err(target_error("somebody else wrote the claim's record".into(), true)),
        held => Ok(held),
    }
}

/// Gives slots of a worker back under its version.
pub(super) async fn return_slots(
    session: &mut BaselineSession<'_>,
    held: &BaselineClaimRow,
) -> Result<(), TargetError> {
    let name = session.base.worker_key(&held.worker);
    for _ in 0..ATTEMPTS_MAX {
        let written = rows::update_if_unchanged(session, &name, |row| match row.and_then(BaselineWorkerRow::read) {
            Some(row) => BaselineRowChange::Set(row.with_returned(held.slots).text()),
            None => BaselineRowChange::Keep,
        });
        if written.await? {
            return Ok(());
        }
        session.count_retry();
    }
    Err(target_error(format!("others were faster {ATTEMPTS_MAX} times"), true))
}

pub(super) async fn release(session: &mut BaselineSession<'_>, id: &ClaimId, fence: Fence) -> Result<(), TargetError> {
    match delete_claim(session, id, fence).await? {
        Some(held) => return_slots(session, &held).await,
        None => Ok(()),
    }
}
