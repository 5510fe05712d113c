//! Keeps the store ours: renews its lease, has every shard looked at with each renewal, and notices who took it away.

use std::sync::Arc;
use std::time::Duration;

use futures::future::BoxFuture;

use crate::admission::dispatch::ClaimDispatcher;
use crate::metrics::{RenewalResult, metrics};
use crate::model::Millis;
use crate::persist::journal::StoreFault;
use crate::persist::store::{MissingRecord, OwnershipRecord, RenewalOutcome, StoreError};

/// Renewals in one lease: two may fail.
const RENEWALS_PER_LEASE: u64 = 3;
/// Longest pause before a renewal that failed is tried again.
const RETRY_MS_MAX: Millis = 500;
/// Pause before a start that failed is tried again: at first, and at most.
const START_MS: Millis = 50;
const START_MS_MAX: Millis = 500;

/// Takes the store over under a fresh epoch.
///
/// # Errors
/// Those of the store.
pub async fn take_over(dispatch: &ClaimDispatcher) -> Result<OwnershipRecord, StoreError> {
    let store = dispatch.journal.store();
    let sent_ns = dispatch.clock.boot_ns();
    let ownership = store.take_over(uuid::Uuid::now_v7()).await?;
    if let Some(lease_ms) = store.lease_ms() {
        dispatch.journal.extend_lease(sent_ns, lease_ms);
    }
    Ok(ownership)
}

/// Renews the lease for ever, or until somebody else has the store. Returns at once if the store has no lease.
pub async fn renew_loop(dispatch: Arc<ClaimDispatcher>) {
    let journal = &dispatch.journal;
    let store = Arc::clone(journal.store());
    let Some(lease_ms) = store.lease_ms() else { return };
    let mut pause_ms = lease_ms / RENEWALS_PER_LEASE;
    // Since when the record is gone and the lease has lapsed: an owner that came meanwhile would write it again.
    let mut missing_since_ns = None;
    loop {
        tokio::time::sleep(Duration::from_millis(pause_ms)).await;
        let sent_ns = dispatch.clock.boot_ns();
        let waited = missing_since_ns.is_some_and(|since_ns| sent_ns - since_ns >= lease_ms * 1_000_000);
        let may_create = journal.lease().is_valid() || waited;
        let missing = if may_create { MissingRecord::Create } else { MissingRecord::Report };
        let renewed = store.renew(missing).await;
        journal.set_fault(StoreFault::Renewal, renewed.as_ref().err().map(|error| error.text().to_owned()));
        let result = match renewed {
            Ok(RenewalOutcome::Renewed) => {
                if journal.extend_lease(sent_ns, lease_ms) {
                    tracing::info!("the store is ours again: answers leave");
                }
                missing_since_ns = None;
                pause_ms = lease_ms / RENEWALS_PER_LEASE;
                journal.check_all();
                RenewalResult::Ok
            }
            Ok(RenewalOutcome::Missing) => {
                missing_since_ns.get_or_insert(sent_ns);
                pause_ms = (lease_ms / RENEWALS_PER_LEASE).min(RETRY_MS_MAX);
                RenewalResult::Missing
            }
            Ok(RenewalOutcome::Fenced) => {
                metrics().renewals(RenewalResult::Fenced).increment(1);
                journal.mark_fenced();
                return;
            }
            Err(error) => {
                tracing::warn!(%error, left = ?journal.lease().remaining_seconds(), "cannot renew the ownership of the store");
                pause_ms = (lease_ms / (4 * RENEWALS_PER_LEASE)).min(RETRY_MS_MAX);
                RenewalResult::Error
            }
        };
        metrics().renewals(result).increment(1);
    }
}

/// Tries until it succeeds or cannot: a store that is away, or still somebody else's, is waited for, and readiness says
/// why.
///
/// # Errors
/// Those that waiting does not mend.
pub async fn retry_until_ready<'a, T>(
    dispatch: &ClaimDispatcher,
    mut attempt: impl FnMut() -> BoxFuture<'a, Result<T, StoreError>> + Send,
) -> Result<T, StoreError> {
    let mut pause_ms = START_MS;
    let mut logged = None;
    loop {
        let result = attempt().await;
        let text = match &result {
            Err(error @ (StoreError::Unavailable(_) | StoreError::OwnedElsewhere(_))) => Some(error.text().to_owned()),
            _ => None,
        };
        let waits = text.is_some();
        dispatch.journal.set_fault(StoreFault::Startup, text);
        if let Err(error) = &result
            && waits
        {
            // That another owner holds the store is said once: how long for is different each time.
            let kind = if matches!(error, StoreError::OwnedElsewhere(_)) { String::new() } else { error.to_string() };
            if logged.as_ref() != Some(&kind) {
                tracing::warn!(%error, "waiting for the store");
                logged = Some(kind);
            }
        }
        if !waits {
            return result;
        }
        tokio::time::sleep(Duration::from_millis(pause_ms)).await;
        pause_ms = (2 * pause_ms).min(START_MS_MAX);
    }
}
