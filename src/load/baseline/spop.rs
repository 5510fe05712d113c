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

use super::nodes::Session;
use super::rows::{Held, Row};
use super::scan;
use crate::ask::{Ask, Grant};
use crate::stats::Failure;
use crate::wire::failed;
use hotpool::model::{ClaimId, Fence};

pub(super) async fn claim(session: &mut Session<'_>, ask: Ask) -> Result<Grant, Failure> {
    let set = session.base.idle();
    let popped = session.ask(&set, &[b"SPOP", set.as_bytes()]).await?;
    let Some(worker) = popped.text().map(str::to_owned) else { return Err(Failure::Refused) };
    let name = session.base.worker(&worker);
    let row = session.ask(&name, &[b"GET", name.as_bytes()]).await?;
    if row.text().and_then(Row::read).is_none_or(|row| row.free == 0) {
        return Err(failed(format!("{worker} is in the set of idle workers and is not idle"), false));
    }
    match scan::take(session, &worker, 1).await? {
        Some(fence) => scan::record(session, ask, Held { fence, worker, slots: 1 }).await,
        None => Err(failed(format!("{worker} was popped here and taken by somebody else"), false)),
    }
}

pub(super) async fn release(session: &mut Session<'_>, id: &ClaimId, fence: Fence) -> Result<(), Failure> {
    let Some(held) = scan::forget(session, id, fence).await? else { return Ok(()) };
    scan::give(session, &held).await?;
    let set = session.base.idle();
    session.ask(&set, &[b"SADD", set.as_bytes(), held.worker.as_bytes()]).await.map(drop)
}
