//! `redis-batch`: many claims at once; every worker is read once, and each selected worker is locked and written once.
//! Replaces [`super::lock`] when a hundred claims arrive together.
//!
//! Claims of a batch:
//! 1. for every server: `SCAN` page by page, and the records of each page in one pipeline (2 round trips a page);
//! 2. each claim is assigned a worker with enough free slots, one worker after the other, to use as few as possible;
//! 3. for each selected worker: lock it (`SET NX PX`, 1), read its record again (1), write the record (1), write the
//!    records of its claims (1 for each server that owns any of them), unlock it (1).
//!
//! Claims whose worker has become full repeat all steps. Releases of a batch read the claims' records (1 for each
//! server) and then treat each worker in the same way, deleting instead of writing.
//!
//! Workers are handled one by one, or `concurrent` of them at a time. So a batch takes 2 round trips a page and 5 to 7
//! a worker on a cluster of three, however many claims a worker gets. If workers have capacity for one claim only,
//! batching saves nothing.

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

pub(super) async fn claim(client: &BaselineClient, inputs: Vec<ClaimInput>) -> Vec<GrantResult> {
    let mut outcomes: Vec<Option<GrantResult>> = inputs.iter().map(|_| None).collect();
    let mut pending: Vec<usize> = (0..inputs.len()).collect();
    for _ in 0..ATTEMPTS_MAX {
        let plan = match plan(client, &inputs, &pending).await {
            Ok(plan) => plan,
            Err(failure) => {
                pending.iter().for_each(|index| outcomes[*index] = Some(Err(failure.clone())));
                break;
            }
        };
        for index in &pending {
            if !plan.values().any(|planned| planned.contains(index)) {
                outcomes[*index] = Some(Err(TargetError::NoCapacity));
            }
        }
        let grants: Vec<_> =
            plan.iter().map(|(worker, planned)| grant_on_worker(client, worker, planned, &inputs).boxed()).collect();
        let granted: Vec<Vec<(usize, Option<GrantResult>)>> =
            futures::stream::iter(grants).buffer_unordered(client.base.concurrent).collect().await;
        pending.clear();
        for (index, outcome) in granted.into_iter().flatten() {
            match outcome {
                Some(outcome) => outcomes[index] = Some(outcome),
                None => pending.push(index),
            }
        }
        if pending.is_empty() {
            break;
        }
    }
    let contended = || Err(target_error(format!("gave up after {ATTEMPTS_MAX} conflicting updates"), false));
    outcomes.into_iter().map(|outcome| outcome.unwrap_or_else(contended)).collect()
}

/// Assigns claims to workers.
async fn plan(
    client: &BaselineClient,
    inputs: &[ClaimInput],
    pending: &[usize],
) -> Result<BTreeMap<String, Vec<usize>>, TargetError> {
    let connections = client.checkout();
    let mut session = BaselineSession::new(&client.base, &connections);
    let workers = rows::read_all(&mut session).await;
    session.add_round_trips(&client.base.trips.claims);
    let mut workers = workers?;
    client.checkin(connections);
    // Start at a position of its own, so that two batches do not select the same workers.
    let first = inputs.first().map_or(0, |input| xxhash_rust::xxh3::xxh3_64(input.id.key().as_bytes()));
    let offset = usize::try_from(first % workers.len().max(1) as u64).unwrap_or(0);
    workers.rotate_left(offset);
    let mut plan: BTreeMap<String, Vec<usize>> = BTreeMap::new();
    for index in pending {
        let slots = inputs[*index].params.slots.max(1);
        let Some((worker, row)) = workers.iter_mut().find(|(_, row)| row.free >= slots) else { continue };
        row.free -= slots;
        plan.entry(worker.clone()).or_default().push(*index);
    }
    Ok(plan)
}

/// Grants a worker to the claims assigned to it. `None` for a claim means that the worker has become full.
async fn grant_on_worker(
    client: &BaselineClient,
    worker: &str,
    planned: &[usize],
    inputs: &[ClaimInput],
) -> Vec<(usize, Option<GrantResult>)> {
    let connections = client.checkout();
    let mut session = BaselineSession::new(&client.base, &connections);
    let result = grant_locked(&mut session, worker, planned, inputs).await;
    session.add_round_trips(&client.base.trips.claims);
    match result {
        Ok(outcomes) => {
            client.checkin(connections);
            outcomes
        }
        Err(failure) => planned.iter().map(|index| (*index, Some(Err(failure.clone())))).collect(),
    }
}

async fn grant_locked(
    session: &mut BaselineSession<'_>,
    worker: &str,
    planned: &[usize],
    inputs: &[ClaimInput],
) -> Result<Vec<(usize, Option<GrantResult>)>, TargetError> {
    let token = planned.first().map_or("", |index| inputs[*index].id.key());
    let name = lock_name(session, worker);
    lock(session, &name, token).await?;
    let mut row = get(session, worker).await?;
    let version = row.version + 1;
    let mut outcomes = Vec::with_capacity(planned.len());
    let mut records = Vec::new();
    for index in planned {
        let input = &inputs[*index];
        let slots = input.params.slots.max(1);
        if row.free < slots {
            session.count_retry();
            outcomes.push((*index, None));
            continue;
        }
        row.free -= slots;
        let held = BaselineClaimRow { fence: version, worker: worker.to_owned(), slots };
        records.push((session.base.claim_key(input.id.key()), held.text()));
        let grant = ReceivedGrant { fence: version, worker: worker_ordinal(worker), id: input.id.clone() };
        outcomes.push((*index, Some(Ok(grant))));
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

pub(super) async fn release(client: &BaselineClient, claims: &[(ClaimId, Fence)]) -> Vec<Result<(), TargetError>> {
    let rows_read = match claim_rows(client, claims).await {
        Ok(rows_read) => rows_read,
        Err(failure) => return claims.iter().map(|_| Err(failure.clone())).collect(),
    };
    let mut outcomes: Vec<Result<(), TargetError>> = claims.iter().map(|_| Ok(())).collect();
    let mut by_worker: BTreeMap<String, Vec<(usize, u32)>> = BTreeMap::new();
    for (index, held) in rows_read.into_iter().enumerate() {
        match rows::check_fence(held, claims[index].1) {
            Ok(Some(held)) => by_worker.entry(held.worker).or_default().push((index, held.slots)),
            Ok(None) => {}
            Err(failure) => outcomes[index] = Err(failure),
        }
    }
    let releases: Vec<_> =
        by_worker.iter().map(|(worker, held)| release_on_worker(client, worker, held, claims).boxed()).collect();
    let released: Vec<_> = futures::stream::iter(releases).buffer_unordered(client.base.concurrent).collect().await;
    for (result, held) in released {
        if let Err(failure) = result {
            held.iter().for_each(|(index, _)| outcomes[*index] = Err(failure.clone()));
        }
    }
    outcomes
}

/// Releases the claims of one worker. Also returns which ones.
async fn release_on_worker<'h>(
    client: &BaselineClient,
    worker: &str,
    held: &'h [(usize, u32)],
    claims: &[(ClaimId, Fence)],
) -> (Result<(), TargetError>, &'h [(usize, u32)]) {
    let connections = client.checkout();
    let mut session = BaselineSession::new(&client.base, &connections);
    let result = release_locked(&mut session, worker, held, claims).await;
    session.add_round_trips(&client.base.trips.releases);
    if result.is_ok() {
        client.checkin(connections);
    }
    (result, held)
}

/// Reads the records of the claims.
async fn claim_rows(
    client: &BaselineClient,
    claims: &[(ClaimId, Fence)],
) -> Result<Vec<Option<BaselineClaimRow>>, TargetError> {
    let connections = client.checkout();
    let mut session = BaselineSession::new(&client.base, &connections);
    let names: Vec<String> = claims.iter().map(|(id, _)| client.base.claim_key(id.key())).collect();
    let records = session.execute_each(names.iter().map(|name| vec!["GET", name.as_str()])).await;
    session.add_round_trips(&client.base.trips.releases);
    let records = records?;
    client.checkin(connections);
    Ok(records.iter().map(|record| record.text().and_then(BaselineClaimRow::read)).collect())
}

async fn release_locked(
    session: &mut BaselineSession<'_>,
    worker: &str,
    held: &[(usize, u32)],
    claims: &[(ClaimId, Fence)],
) -> Result<(), TargetError> {
    let token = held.first().map_or("", |(index, _)| claims[*index].0.key());
    let name = lock_name(session, worker);
    lock(session, &name, token).await?;
    let row = get(session, worker).await?;
    put(session, worker, row.with_returned(held.iter().map(|(_, slots)| slots).sum())).await?;
    let names: Vec<String> = held.iter().map(|(index, _)| session.base.claim_key(claims[*index].0.key())).collect();
    session.execute_each(names.iter().map(|name| vec!["DEL", name.as_str()])).await?;
    unlock(session, &name, token).await
}
