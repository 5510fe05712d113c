//! `redis-scan`: read every worker, pick one, write it under its version. The method of a scheduler that keeps its
//! workers in Redis without an index.
//!
//! A claim:
//! 1. for every server: `SCAN` page by page, and the records of each page in one pipeline (2 round trips a page);
//! 2. pick a worker with enough free slots;
//! 3. write its record under its version: `WATCH`, `GET`, `MULTI SET EXEC` (3);
//! 4. write the claim's record in the same way (3).
//!
//! If another client writes the worker meanwhile, all steps are repeated. A release deletes the claim's record under
//! its version (3) and writes the worker's (3).
//!
//! So a claim takes 6 round trips and two a page, where a page of a server has a thousand keys; a release takes 6.
//! More workers mean more to read; more clients mean more reads that are wasted.

use super::ATTEMPTS_MAX;
use super::nodes::BaselineSession;
use super::rows::{self, BaselineClaimRow, BaselineRowChange, BaselineWorkerRow};
use crate::claim_input::{ClaimInput, ReceivedGrant};
use crate::grant_checker::worker_ordinal;
use crate::http_calls::target_error;
use crate::stats::TargetError;
use hotpool::model::{ClaimId, Fence};

pub(super) async fn claim(session: &mut BaselineSession<'_>, input: ClaimInput) -> Result<ReceivedGrant, TargetError> {
    let slots = input.params.slots.max(1);
    for attempt in 0..ATTEMPTS_MAX {
        let workers = rows::read_all(session).await?;
        let seed = format!("{}.{attempt}", input.id.key());
        let Some((worker, _)) = rows::pick_worker(&workers, slots, &seed) else { return Err(TargetError::NoCapacity) };
        if let Some(fence) = take_slots(session, &worker, slots).await? {
            return write_claim(session, input, BaselineClaimRow { fence, worker, slots }).await;
        }
        session.count_retry();
    }
    Err(target_error(format!("gave up after {ATTEMPTS_MAX} conflicting updates"), false))
}

/// Takes slots of a worker under its version; `None` if too few are free or another client was faster.
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
    input: ClaimInput,
    claim: BaselineClaimRow,
) -> Result<ReceivedGrant, TargetError> {
    let name = session.base.claim_key(input.id.key());
    let written = rows::update_if_unchanged(session, &name, |_| BaselineRowChange::Set(claim.text())).await?;
    if !written {
        return Err(target_error("another client wrote the claim's record".into(), true));
    }
    Ok(ReceivedGrant { fence: claim.fence, worker: worker_ordinal(&claim.worker), id: input.id })
}

/// Deletes the claim's record under its version. Returns the record, or `None` if it was gone.
pub(super) async fn delete_claim(
    session: &mut BaselineSession<'_>,
    id: &ClaimId,
    fence: Fence,
) -> Result<Option<BaselineClaimRow>, TargetError> {
    let name = session.base.claim_key(id.key());
    let mut checked = Ok(None);
    let deleted = rows::update_if_unchanged(session, &name, |row| {
        checked = rows::check_fence(row.and_then(BaselineClaimRow::read), fence);
        if matches!(checked, Ok(Some(_))) { BaselineRowChange::Delete } else { BaselineRowChange::Keep }
    });
    let deleted = deleted.await?;
    match checked? {
        Some(_) if !deleted => Err(target_error("another client wrote the claim's record".into(), true)),
        claim => Ok(claim),
    }
}

/// Adds released slots to a worker's record under its version.
pub(super) async fn return_slots(
    session: &mut BaselineSession<'_>,
    claim: &BaselineClaimRow,
) -> Result<(), TargetError> {
    let name = session.base.worker_key(&claim.worker);
    for _ in 0..ATTEMPTS_MAX {
        let written = rows::update_if_unchanged(session, &name, |row| match row.and_then(BaselineWorkerRow::read) {
            Some(row) => BaselineRowChange::Set(row.with_returned(claim.slots).text()),
            None => BaselineRowChange::Keep,
        });
        if written.await? {
            return Ok(());
        }
        session.count_retry();
    }
    Err(target_error(format!("gave up after {ATTEMPTS_MAX} conflicting updates"), true))
}

pub(super) async fn release(session: &mut BaselineSession<'_>, id: &ClaimId, fence: Fence) -> Result<(), TargetError> {
    match delete_claim(session, id, fence).await? {
        Some(claim) => return_slots(session, &claim).await,
        None => Ok(()),
    }
}
