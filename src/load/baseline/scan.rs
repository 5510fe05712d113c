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
use super::nodes::Session;
use super::rows::{self, Change, Held, Row};
use crate::ask::{Ask, Grant};
use crate::check::worker_ordinal;
use crate::stats::Failure;
use crate::wire::failed;
use hotpool::model::{ClaimId, Fence};

pub(super) async fn claim(session: &mut Session<'_>, ask: Ask) -> Result<Grant, Failure> {
    let slots = ask.want.slots.max(1);
    for attempt in 0..ATTEMPTS_MAX {
        let workers = rows::read_all(session).await?;
        let seed = format!("{}.{attempt}", ask.id.key());
        let Some((worker, _)) = rows::pick(&workers, slots, &seed) else { return Err(Failure::Refused) };
        if let Some(fence) = take(session, &worker, slots).await? {
            return record(session, ask, Held { fence, worker, slots }).await;
        }
        session.retry();
    }
    Err(failed(format!("others were faster {ATTEMPTS_MAX} times"), false))
}

/// Takes slots of a worker under its version; none if it has not that many any more, or somebody else was faster.
pub(super) async fn take(session: &mut Session<'_>, worker: &str, slots: u32) -> Result<Option<Fence>, Failure> {
    let mut fence = 0;
    let name = session.base.worker(worker);
    let written = rows::versioned(session, &name, |row| {
        let Some(row) = row.and_then(Row::read).and_then(|row| row.taken(slots)) else { return Change::Leave };
        fence = row.version;
        Change::Set(row.text())
    });
    Ok(written.await?.then_some(fence))
}

/// Writes the claim's record under its version.
pub(super) async fn record(session: &mut Session<'_>, ask: Ask, held: Held) -> Result<Grant, Failure> {
    let name = session.base.claim(ask.id.key());
    let written = rows::versioned(session, &name, |_| Change::Set(held.text())).await?;
    if !written {
        return Err(failed("somebody else wrote the claim's record".into(), true));
    }
    Ok(Grant { fence: held.fence, worker: worker_ordinal(&held.worker), id: ask.id })
}

/// Deletes the claim's record under its version; what it held, or none if it is gone already.
pub(super) async fn forget(session: &mut Session<'_>, id: &ClaimId, fence: Fence) -> Result<Option<Held>, Failure> {
    let name = session.base.claim(id.key());
    let mut found = Ok(None);
    let deleted = rows::versioned(session, &name, |row| {
        found = rows::checked(row.and_then(Held::read), fence);
        if matches!(found, Ok(Some(_))) { Change::Delete } else { Change::Leave }
    });
    let deleted = deleted.await?;
    match found? {
        Some(_) if !deleted => Err(failed("somebody else wrote the claim's record".into(), true)),
        held => Ok(held),
    }
}

/// Gives slots of a worker back under its version.
pub(super) async fn give(session: &mut Session<'_>, held: &Held) -> Result<(), Failure> {
    let name = session.base.worker(&held.worker);
    for _ in 0..ATTEMPTS_MAX {
        let written = rows::versioned(session, &name, |row| match row.and_then(Row::read) {
            Some(row) => Change::Set(row.given(held.slots).text()),
            None => Change::Leave,
        });
        if written.await? {
            return Ok(());
        }
        session.retry();
    }
    Err(failed(format!("others were faster {ATTEMPTS_MAX} times"), true))
}

pub(super) async fn release(session: &mut Session<'_>, id: &ClaimId, fence: Fence) -> Result<(), Failure> {
    match forget(session, id, fence).await? {
        Some(held) => give(session, &held).await,
        None => Ok(()),
    }
}
