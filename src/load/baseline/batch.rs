//! `redis-batch`: many claims at once; every worker is read once, and each that is used is locked and written once. What
//! replaces [`super::lock`] when a hundred claims come together.
//!
//! Claims of one batch:
//! 1. every server: `SCAN` page by page, and the records of each page in one pipeline (2 round trips a page);
//! 2. each claim gets a worker with room, worker after worker, so that as few as possible are used;
//! 3. for each worker that is used: its lock (`SET NX PX`, 1), its record once more (1), the record written (1), the records of
//!    its claims (1 for each server that has one of them), the lock given back (1).
//!
//! Claims whose worker had no room any more go through all of it again. Releases of one batch read the claims' records (1 for
//! each server), and then for each worker do as above, deleting instead of writing.
//!
//! Workers are handled one after the other, or `concurrent` of them at the same time. So a batch takes 2 round trips a page
//! and 5 to 7 a worker on a cluster of three, however many claims a worker gets; where a worker has room for one claim only, a
//! claim costs as much as it did.

use std::collections::BTreeMap;

use futures::{FutureExt as _, StreamExt as _};

use super::lock::{get, lock, put, unlock};
use super::nodes::Session;
use super::rows::{self, Held};
use super::{ATTEMPTS_MAX, BaselineLink};
use crate::ask::{Ask, Grant};
use crate::check::worker_ordinal;
use crate::stats::Failure;
use crate::wire::failed;
use hotpool::model::{ClaimId, Fence};

type Outcome = Result<Grant, Failure>;

pub(super) async fn claim(link: &BaselineLink, asks: Vec<Ask>) -> Vec<Outcome> {
    let mut outcomes: Vec<Option<Outcome>> = asks.iter().map(|_| None).collect();
    let mut open: Vec<usize> = (0..asks.len()).collect();
    for _ in 0..ATTEMPTS_MAX {
        let plan = match plan(link, &asks, &open).await {
            Ok(plan) => plan,
            Err(failure) => {
                open.iter().for_each(|at| outcomes[*at] = Some(Err(failure.clone())));
                break;
            }
        };
        for at in &open {
            if !plan.values().any(|planned| planned.contains(at)) {
                outcomes[*at] = Some(Err(Failure::Refused));
            }
        }
        let fill: Vec<_> = plan.iter().map(|(worker, planned)| fill(link, worker, planned, &asks).boxed()).collect();
        let filled: Vec<Vec<(usize, Option<Outcome>)>> =
            futures::stream::iter(fill).buffer_unordered(link.base.concurrent).collect().await;
        open.clear();
        for (at, outcome) in filled.into_iter().flatten() {
            match outcome {
                Some(outcome) => outcomes[at] = Some(outcome),
                None => open.push(at),
            }
        }
        if open.is_empty() {
            break;
        }
    }
    let late = || Err(failed(format!("others were faster {ATTEMPTS_MAX} times"), false));
    outcomes.into_iter().map(|outcome| outcome.unwrap_or_else(late)).collect()
}

/// Which claims go to which worker.
async fn plan(link: &BaselineLink, asks: &[Ask], open: &[usize]) -> Result<BTreeMap<String, Vec<usize>>, Failure> {
    let lane = link.lane();
    let mut session = Session::new(&link.base, &lane);
    let workers = rows::read_all(&mut session).await;
    session.count(&link.base.trips.claims);
    let mut workers = workers?;
    link.back(lane);
    // From a place of its own, so that two batches do not want the same workers.
    let first = asks.first().map_or(0, |ask| xxhash_rust::xxh3::xxh3_64(ask.id.key().as_bytes()));
    let turn = usize::try_from(first % workers.len().max(1) as u64).unwrap_or(0);
    workers.rotate_left(turn);
    let mut plan: BTreeMap<String, Vec<usize>> = BTreeMap::new();
    for at in open {
        let slots = asks[*at].want.slots.max(1);
        let Some((worker, row)) = workers.iter_mut().find(|(_, row)| row.free >= slots) else { continue };
        row.free -= slots;
        plan.entry(worker.clone()).or_default().push(*at);
    }
    Ok(plan)
}

/// Gives a worker to the claims that are planned for it. None: it had no room for that claim any more.
async fn fill(link: &BaselineLink, worker: &str, planned: &[usize], asks: &[Ask]) -> Vec<(usize, Option<Outcome>)> {
    let lane = link.lane();
    let mut session = Session::new(&link.base, &lane);
    let done = locked_fill(&mut session, worker, planned, asks).await;
    session.count(&link.base.trips.claims);
    match done {
        Ok(outcomes) => {
            link.back(lane);
            outcomes
        }
        Err(failure) => planned.iter().map(|at| (*at, Some(Err(failure.clone())))).collect(),
    }
}

async fn locked_fill(
    session: &mut Session<'_>,
    worker: &str,
    planned: &[usize],
    asks: &[Ask],
) -> Result<Vec<(usize, Option<Outcome>)>, Failure> {
    let token = planned.first().map_or("", |at| asks[*at].id.key());
    let name = lock_name(session, worker);
    lock(session, &name, token).await?;
    let mut row = get(session, worker).await?;
    let version = row.version + 1;
    let mut outcomes = Vec::with_capacity(planned.len());
    let mut records = Vec::new();
    for at in planned {
        let ask = &asks[*at];
        let slots = ask.want.slots.max(1);
        if row.free < slots {
            session.retry();
            outcomes.push((*at, None));
            continue;
        }
        row.free -= slots;
        let held = Held { fence: version, worker: worker.to_owned(), slots };
        records.push((session.base.claim(ask.id.key()), held.text()));
        let grant = Grant { fence: version, worker: worker_ordinal(worker), id: ask.id.clone() };
        outcomes.push((*at, Some(Ok(grant))));
    }
    if !records.is_empty() {
        row.version = version;
        put(session, worker, row).await?;
        session.set_all(records.iter().map(|(name, value)| (name.as_str(), value.as_str()))).await?;
    }
    unlock(session, &name, token).await?;
    Ok(outcomes)
}

fn lock_name(session: &Session<'_>, worker: &str) -> String {
    format!("lock:{{{}.{worker}}}", session.base.tag)
}

pub(super) async fn release(link: &BaselineLink, claims: &[(ClaimId, Fence)]) -> Vec<Result<(), Failure>> {
    let found = match find(link, claims).await {
        Ok(found) => found,
        Err(failure) => return claims.iter().map(|_| Err(failure.clone())).collect(),
    };
    let mut outcomes: Vec<Result<(), Failure>> = claims.iter().map(|_| Ok(())).collect();
    let mut of_worker: BTreeMap<String, Vec<(usize, u32)>> = BTreeMap::new();
    for (at, held) in found.into_iter().enumerate() {
        match rows::checked(held, claims[at].1) {
            Ok(Some(held)) => of_worker.entry(held.worker).or_default().push((at, held.slots)),
            Ok(None) => {}
            Err(failure) => outcomes[at] = Err(failure),
        }
    }
    let empty: Vec<_> = of_worker.iter().map(|(worker, held)| empty(link, worker, held, claims).boxed()).collect();
    let emptied: Vec<_> = futures::stream::iter(empty).buffer_unordered(link.base.concurrent).collect().await;
    for (done, held) in emptied {
        if let Err(failure) = done {
            held.iter().for_each(|(at, _)| outcomes[*at] = Err(failure.clone()));
        }
    }
    outcomes
}

/// Gives a worker's claims back. Returns which those were, too.
async fn empty<'h>(
    link: &BaselineLink,
    worker: &str,
    held: &'h [(usize, u32)],
    claims: &[(ClaimId, Fence)],
) -> (Result<(), Failure>, &'h [(usize, u32)]) {
    let lane = link.lane();
    let mut session = Session::new(&link.base, &lane);
    let done = locked_empty(&mut session, worker, held, claims).await;
    session.count(&link.base.trips.releases);
    if done.is_ok() {
        link.back(lane);
    }
    (done, held)
}

/// The records of the claims.
async fn find(link: &BaselineLink, claims: &[(ClaimId, Fence)]) -> Result<Vec<Option<Held>>, Failure> {
    let lane = link.lane();
    let mut session = Session::new(&link.base, &lane);
    let names: Vec<String> = claims.iter().map(|(id, _)| link.base.claim(id.key())).collect();
    let records = session.ask_each(names.iter().map(|name| vec!["GET", name.as_str()])).await;
    session.count(&link.base.trips.releases);
    let records = records?;
    link.back(lane);
    Ok(records.iter().map(|record| record.text().and_then(Held::read)).collect())
}

async fn locked_empty(
    session: &mut Session<'_>,
    worker: &str,
    held: &[(usize, u32)],
    claims: &[(ClaimId, Fence)],
) -> Result<(), Failure> {
    let token = held.first().map_or("", |(at, _)| claims[*at].0.key());
    let name = lock_name(session, worker);
    lock(session, &name, token).await?;
    let row = get(session, worker).await?;
    put(session, worker, row.given(held.iter().map(|(_, slots)| slots).sum())).await?;
    let names: Vec<String> = held.iter().map(|(at, _)| session.base.claim(claims[*at].0.key())).collect();
    session.ask_each(names.iter().map(|name| vec!["DEL", name.as_str()])).await?;
    unlock(session, &name, token).await
}
