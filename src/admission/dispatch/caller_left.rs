//! Claims of a caller that has left: exactly one party ends each. One whose answer was not read is reported to its shard
//! here, which rolls it back unless others may know of it; one that is still being placed is cancelled here; one that is
//! granted from now on meets a closed queue, and its shard rolls it back.

use super::ClaimDispatcher;
use crate::model::ClaimId;
use crate::shard::{ClaimReply, ProtocolPoint, ProtocolRule, ShardOutcome};

impl ClaimDispatcher {
    /// Ends the claims of a caller that has left. Its completions must be closed before: `unread` are those that
    /// closing returned, and `requested` are all its claims that may still be placed.
    pub(crate) fn abandon<'c>(
        &self,
        unread: impl IntoIterator<Item = (&'c ClaimId, ShardOutcome)>,
        requested: impl IntoIterator<Item = &'c ClaimId>,
    ) {
        ProtocolPoint::CallerLeft.reach();
        for (id, outcome) in unread {
            if let Some((fence, reply)) = outcome.ok().and_then(ClaimReply::into_unread)
                && ProtocolRule::RollbackOnClose.holds()
            {
                crate::reached!("caller: leaves an answer unread");
                self.discard_reply(id, fence, reply);
            }
        }
        self.with_work(|work| requested.into_iter().for_each(|id| self.cancel(id, work)));
    }
}
