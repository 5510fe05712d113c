//! Ownership of the store: takes it over, renews the lease, checks every shard with each renewal, and notices when
//! another process takes over.

use std::sync::Arc;
use std::time::Duration;

use futures::future::BoxFuture;

use crate::admission::dispatch::ClaimDispatcher;
use crate::metrics::{RenewalResult, metrics};
use crate::model::Millis;
use crate::persist::journal::StoreFault;
use crate::persist::store::{MissingRecord, OwnershipRecord, RenewalOutcome, StoreError};

/// Number of renewals per lease: two may fail.
const RENEWALS_PER_LEASE: u64 = 3;
/// Longest pause before a failed renewal is retried, in milliseconds.
const RETRY_MS_MAX: Millis = 500;
/// First and longest pause before a failed start is retried, in milliseconds.
const START_MS: Millis = 50;
const START_MS_MAX: Millis = 500;

/// Takes the store over under a fresh epoch.
///
/// # Errors
/// Fails with the errors of the store.
pub async fn take_over(dispatch: &ClaimDispatcher) -> Result<OwnershipRecord, StoreError> {
    let store = dispatch.journal.store();
    let sent_ns = dispatch.clock.boot_ns();
    let ownership = store.take_over(dispatch.services.environment.new_uuid()).await?;
    if let Some(lease_ms) = store.lease_ms() {
        dispatch.journal.extend_lease(sent_ns, lease_ms);
    }
    Ok(ownership)
}

/// Renews the lease until another process takes over. Returns at once if the store has no lease.
pub async fn renew_loop(dispatch: Arc<ClaimDispatcher>) {
    let journal = &dispatch.journal;
    let store = Arc::clone(journal.store());
    let Some(lease_ms) = store.lease_ms() else { return };
    let mut pause_ms = lease_ms / RENEWALS_PER_LEASE;
    // Time since which the record is gone. If another owner had taken over meanwhile, it would write the record again.
    let mut missing_since_ns = None;
    loop {
        dispatch.services.environment.sleep(Duration::from_millis(pause_ms)).await;
        let sent_ns = dispatch.clock.boot_ns();
        let waited = missing_since_ns.is_some_and(|since_ns| sent_ns - since_ns >= lease_ms * 1_000_000);
        let may_create = journal.lease().is_valid() || waited;
        let missing = if may_create { MissingRecord::Create } else { MissingRecord::Report };
        let renewed = store.renew(missing).await;
        journal.set_fault(StoreFault::Renewal, renewed.as_ref().err().map(|error| error.text().to_owned()));
        let result = match renewed {
            Ok(RenewalOutcome::Renewed) => {
                if journal.extend_lease(sent_ns, lease_ms) {
                    crate::reached!("lease: renewed after it had lapsed");
                    tracing::info!("renewed the lapsed lease of the store: calls are answered again");
                }
                missing_since_ns = None;
                pause_ms = lease_ms / RENEWALS_PER_LEASE;
                journal.check_all();
                RenewalResult::Ok
            }
            Ok(RenewalOutcome::Missing) => {
                crate::reached!("lease: the ownership record is gone");
                missing_since_ns.get_or_insert(sent_ns);
                pause_ms = (lease_ms / RENEWALS_PER_LEASE).min(RETRY_MS_MAX);
                RenewalResult::Missing
            }
            Ok(RenewalOutcome::Fenced) => {
                crate::reached!("lease: another process owns the store");
                metrics().renewals(RenewalResult::Fenced).increment(1);
                journal.mark_fenced();
                return;
            }
            Err(error) => {
                tracing::warn!(%error, left = ?journal.lease().remaining_seconds(), "cannot renew the lease of the store");
                pause_ms = (lease_ms / (4 * RENEWALS_PER_LEASE)).min(RETRY_MS_MAX);
                RenewalResult::Error
            }
        };
        metrics().renewals(result).increment(1);
    }
}

/// Retries until the attempt succeeds or fails for good. An unavailable store, or one that is owned elsewhere, is
/// waited for, and readiness names the reason.
///
/// # Errors
/// Fails with errors that waiting does not cure.
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
        let must_wait = text.is_some();
        dispatch.journal.set_fault(StoreFault::Startup, text);
        if let Err(error) = &result
            && must_wait
        {
            // Waiting for another owner is logged once, although the time left differs in each message.
            let kind = if matches!(error, StoreError::OwnedElsewhere(_)) { String::new() } else { error.to_string() };
            if logged.as_ref() != Some(&kind) {
                tracing::warn!(%error, "waiting for the store");
                logged = Some(kind);
            }
        }
        if !must_wait {
            return result;
        }
        dispatch.services.environment.sleep(Duration::from_millis(pause_ms)).await;
        pause_ms = (2 * pause_ms).min(START_MS_MAX);
    }
}
