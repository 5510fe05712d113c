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
use super::nodes::BaselineSession;
use super::rows::{self, BaselineClaimRow};
use super::{ATTEMPTS_MAX, BaselineClient};
use crate::claim_input::{ClaimInput, ReceivedGrant};
use crate::grant_checker::worker_ordinal;
use crate::http_calls::target_error;
use crate::stats::TargetError;
use hotpool::model::{ClaimId, Fence};

type GrantResult = Result<ReceivedGrant, TargetError>;

pub(super) async fn claim(link: &BaselineClient, asks: Vec<ClaimInput>) -> Vec<GrantResult> {
    let mut outcomes: Vec<Option<GrantResult>> = asks.iter().map(|_| None).collect();
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
                outcomes[*at] = Some(Err(TargetError::NoCapacity));
            }
        }
        let fill: Vec<_> =
            plan.iter().map(|(worker, planned)| grant_on_worker(link, worker, planned, &asks).boxed()).collect();
        let filled: Vec<Vec<(usize, Option<GrantResult>)>> =
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
    let late = || Err(target_error(format!("others were faster {ATTEMPTS_MAX} times"), false));
    outcomes.into_iter().map(|outcome| outcome.unwrap_or_else(late)).collect()
}

/// Which claims go to which worker.
async fn plan(
    link: &BaselineClient,
    asks: &[ClaimInput],
    open: &[usize],
) -> Result<BTreeMap<String, Vec<usize>>, TargetError> {
    let lane = link.checkout();
    let mut session = BaselineSession::new(&link.base, &lane);
    let workers = rows::read_all(&mut session).await;
    session.add_round_trips(&link.base.trips.claims);
    let mut workers = workers?;
    link.checkin(lane);
    // From a place of its own, so that two batches do not want the same workers.
    let first = asks.first().map_or(0, |ask| xxhash_rust::xxh3::xxh3_64(ask.id.key().as_bytes()));
    let turn = usize::try_from(first % workers.len().max(1) as u64).unwrap_or(0);
    workers.rotate_left(turn);
    let mut plan: BTreeMap<String, Vec<usize>> = BTreeMap::new();
    for at in open {
        let slots = asks[*at].params.slots.max(1);
        let Some((worker, row)) = workers.iter_mut().find(|(_, row)| row.free >= slots) else { continue };
        row.free -= slots;
        plan.entry(worker.clone()).or_default().push(*at);
    }
    Ok(plan)
}

/// Gives a worker to the claims that are planned for it. None: it had no room for that claim any more.
async fn grant_on_worker(
    link: &BaselineClient,
    worker: &str,
    planned: &[usize],
    asks: &[ClaimInput],
) -> Vec<(usize, Option<GrantResult>)> {
    let lane = link.checkout();
    let mut session = BaselineSession::new(&link.base, &lane);
    let done = grant_locked(&mut session, worker, planned, asks).await;
    session.add_round_trips(&link.base.trips.claims);
    match done {
        Ok(outcomes) => {
            link.checkin(lane);
            outcomes
        }
        Err(failure) => planned.iter().map(|at| (*at, Some(Err(failure.clone())))).collect(),
    }
}

async fn grant_locked(
    session: &mut BaselineSession<'_>,
    worker: &str,
    planned: &[usize],
    asks: &[ClaimInput],
) -> Result<Vec<(usize, Option<GrantResult>)>, TargetError> {
    let token = planned.first().map_or("", |at| asks[*at].id.key());
    let name = lock_name(session, worker);
    lock(session, &name, token).await?;
    let mut row = get(session, worker).await?;
    let version = row.version + 1;
    let mut outcomes = Vec::with_capacity(planned.len());
    let mut records = Vec::new();
    for at in planned {
        let ask = &asks[*at];
        let slots = ask.params.slots.max(1);
        if row.free < slots {
            session.count_retry();
            outcomes.push((*at, None));
            continue;
        }
        row.free -= slots;
        let held = BaselineClaimRow { fence: version, worker: worker.to_owned(), slots };
        records.push((session.base.claim_key(ask.id.key()), held.text()));
        let grant = ReceivedGrant { fence: version, worker: worker_ordinal(worker), id: ask.id.clone() };
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

fn lock_name(session: &BaselineSession<'_>, worker: &str) -> String {
    format!("lock:{{{}.{worker}}}", session.base.tag)
}

pub(super) async fn release(link: &BaselineClient, claims: &[(ClaimId, Fence)]) -> Vec<Result<(), TargetError>> {
    let found = match claim_rows(link, claims).await {
        Ok(found) => found,
        Err(failure) => return claims.iter().map(|_| Err(failure.clone())).collect(),
    };
    let mut outcomes: Vec<Result<(), TargetError>> = claims.iter().map(|_| Ok(())).collect();
    let mut of_worker: BTreeMap<String, Vec<(usize, u32)>> = BTreeMap::new();
    for (at, held) in found.into_iter().enumerate() {
        match rows::check_fence(held, claims[at].1) {
            Ok(Some(held)) => of_worker.entry(held.worker).or_default().push((at, held.slots)),
            Ok(None) => {}
            Err(failure) => outcomes[at] = Err(failure),
        }
    }
    let empty: Vec<_> =
        of_worker.iter().map(|(worker, held)| release_on_worker(link, worker, held, claims).boxed()).collect();
    let emptied: Vec<_> = futures::stream::iter(empty).buffer_unordered(link.base.concurrent).collect().await;
    for (done, held) in emptied {
        if let Err(failure) = done {
            held.iter().for_each(|(at, _)| outcomes[*at] = Err(failure.clone()));
        }
    }
    outcomes
}

/// Gives a worker's claims back. Returns which those were, too.
async fn release_on_worker<'h>(
    link: &BaselineClient,
    worker: &str,
    held: &'h [(usize, u32)],
    claims: &[(ClaimId, Fence)],
) -> (Result<(), TargetError>, &'h [(usize, u32)]) {
    let lane = link.checkout();
    let mut session = BaselineSession::new(&link.base, &lane);
    let done = release_locked(&mut session, worker, held, claims).await;
    session.add_round_trips(&link.base.trips.releases);
    if done.is_ok() {
        link.checkin(lane);
    }
    (done, held)
}

/// The records of the claims.
async fn claim_rows(
    link: &BaselineClient,
    claims: &[(ClaimId, Fence)],
) -> Result<Vec<Option<BaselineClaimRow>>, TargetError> {
    let lane = link.checkout();
    let mut session = BaselineSession::new(&link.base, &lane);
    let names: Vec<String> = claims.iter().map(|(id, _)| link.base.claim_key(id.key())).collect();
    let records = session.execute_each(names.iter().map(|name| vec!["GET", name.as_str()])).await;
    session.add_round_trips(&link.base.trips.releases);
    let records = records?;
    link.checkin(lane);
    Ok(records.iter().map(|record| record.text().and_then(BaselineClaimRow::read)).collect())
}

async fn release_locked(
    session: &mut BaselineSession<'_>,
    worker: &str,
    held: &[(usize, u32)],
    claims: &[(ClaimId, Fence)],
) -> Result<(), TargetError> {
    let token = held.first().map_or("", |(at, _)| claims[*at].0.key());
    let name = lock_name(session, worker);
    lock(session, &name, token).await?;
    let row = get(session, worker).await?;
    put(session, worker, row.with_returned(held.iter().map(|(_, slots)| slots).sum())).await?;
    let names: Vec<String> = held.iter().map(|(at, _)| session.base.claim_key(claims[*at].0.key())).collect();
    session.execute_each(names.iter().map(|name| vec!["DEL", name.as_str()])).await?;
    unlock(session, &name, token).await
}
