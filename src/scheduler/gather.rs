//! Single claims of several callers on one thread, decided in one go.

use super::Scheduler;
use super::claims::ClaimCall;
use crate::model::ClaimRequest;
use crate::model::request_error::RequestError;
use crate::shard::PendingClaim;

/// Claims of several callers that are to be decided in one go, as those of a batch are.
#[derive(Debug, Default)]
pub struct ClaimBatchBuilder(
    #[allow(clippy::vec_box, reason = "claims travel boxed from ring to ring")] Vec<Box<PendingClaim>>,
);

impl Scheduler {
    /// Adds a claim to those that [`Self::decide_gathered`] decides.
    ///
    /// # Errors
    /// The service is not ready, or about to stop.
    pub fn gather(&self, request: ClaimRequest, into: &mut ClaimBatchBuilder) -> Result<ClaimCall<'_>, RequestError> {
        let (item, claiming) = self.begin_claim(request)?;
        into.0.extend(item);
        Ok(claiming)
    }

    /// Decides what was gathered in one go: each shard is visited once, unless it had less room than it said.
    pub fn decide_gathered(&self, gathered: &mut ClaimBatchBuilder) {
        if !gathered.0.is_empty() {
            let room = Vec::with_capacity(gathered.0.len());
            self.dispatch().submit_all(std::mem::replace(&mut gathered.0, room));
        }
    }
}
