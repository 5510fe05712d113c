//! Batches of single claims from several callers on one thread.

use super::Scheduler;
use super::claims::ClaimCall;
use crate::admission::key::PendingClaim;
use crate::model::ClaimRequest;
use crate::model::request_error::RequestError;

/// Claims of several callers that are submitted together, like those of a batch.
#[derive(Debug, Default)]
pub struct ClaimBatchBuilder(
    #[allow(clippy::vec_box, reason = "claims stay boxed from mailbox to mailbox")] Vec<Box<PendingClaim>>,
);

impl Scheduler {
    /// Adds a claim to the batch that [`Self::decide_gathered`] submits.
    ///
    /// # Errors
    /// Fails if the service is not ready or about to stop.
    pub fn gather(&self, request: ClaimRequest, into: &mut ClaimBatchBuilder) -> Result<ClaimCall<'_>, RequestError> {
        let (item, call) = self.begin_claim(&self.dispatch().pools.load(), request)?;
        into.0.extend(item);
        Ok(call)
    }

    /// Submits the batch: each shard is visited once, unless it had less free capacity than it published.
    pub fn decide_gathered(&self, batch: &mut ClaimBatchBuilder) {
        if !batch.0.is_empty() {
            let empty = Vec::with_capacity(batch.0.len());
            let items = std::mem::replace(&mut batch.0, empty);
            self.dispatch().with_work(|work| self.dispatch().submit_all(items, work));
        }
    }
}
