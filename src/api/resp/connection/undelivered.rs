//! Clients that may leave before their reply: queued claims, and claims whose replies may not arrive.

use std::pin::{Pin, pin};

use tokio::time::{Duration, timeout};

use super::{RespConnection, reply_error};
use crate::api::half_close::{self, ClientDeparture, UndeliveredClaims};
use crate::api::resp::command_batch::ConnectionEnd;
use crate::api::resp::single_call::deadline_exceeded;
use crate::metrics::RespCommand;
use crate::model::request_error::UnavailableReason;
use crate::model::{ClaimResult, ClaimState, Millis};

/// Claims without a deadline, by the write that carried their replies: a client that leaves before it sends anything
/// more may have missed the last of them.
#[derive(Default)]
pub(super) struct WrittenClaims {
    pending: UndeliveredClaims,
    written: UndeliveredClaims,
}

impl WrittenClaims {
    fn mark_written(&mut self) {
        std::mem::swap(&mut self.written, &mut self.pending);
        self.pending.clear();
    }

    /// Forgets all claims, because the client has sent something since.
    pub(super) fn clear(&mut self) {
        self.written.clear();
    }
}

impl RespConnection<'_> {
    /// Part of `wait_ms` for which a claim may be queued.
    pub(super) fn allowed_wait(&self, wait_ms: Millis) -> Millis {
        match &self.grace {
            Some(grace) if grace.is_elapsed() => 0,
            // As in Redis nothing blocks within a transaction: its replies leave together, and would grow stale
            // meanwhile.
            _ if self.exec_end > 0 && self.consumed <= self.exec_end => 0,
            _ => wait_ms,
        }
    }

    /// Writes pending replies before waiting; those of an `EXEC` leave together.
    pub(super) async fn write_before_waiting(&mut self) -> Result<(), ConnectionEnd> {
        if self.exec_end > 0 && self.consumed <= self.exec_end { Ok(()) } else { self.write().await }
    }

    /// Waits for a call that may be queued, so long that its client may leave or the service stop. `None`: the call was
    /// abandoned, and the reason is answered.
    pub(super) async fn await_capacity<T>(
        &mut self,
        wait_ms: Millis,
        command: RespCommand,
        work: Pin<Box<impl Future<Output = T>>>,
        stop: Pin<&mut impl Future<Output = ()>>,
    ) -> Result<Option<T>, ConnectionEnd> {
        self.has_waited = true;
        self.write_before_waiting().await?;
        let limit = self.shared.bounds.timeout + Duration::from_millis(wait_ms);
        let Self { stream, grace, replies, .. } = self;
        let mut departure = pin!(half_close::departure(stream, grace));
        let failure = tokio::select! {
            biased;
            done = timeout(limit, work) => match done {
                Ok(done) => return Ok(Some(done)),
                Err(_elapsed) => deadline_exceeded(),
            },
            departed = &mut departure => match departed {
                ClientDeparture::Gone => return Err(ConnectionEnd::ClientGone),
                ClientDeparture::HalfClosed => half_close::wait_abandoned_error(),
            },
            () = stop => {
                reply_error(command, &UnavailableReason::Stopping.into(), replies);
                return Err(ConnectionEnd::ClientGone);
            }
        };
        reply_error(command, &failure, replies);
        Ok(None)
    }

    /// Records claims while it is in doubt whether their replies arrive.
    #[inline]
    pub(super) fn record_undelivered<'t>(&mut self, results: impl Iterator<Item = &'t ClaimResult>) {
        // A claim that was decided at once is answered at once, as if its client had left a moment later.
        let waited = std::mem::take(&mut self.has_waited);
        if self.undelivered.is_some() || self.grace.is_some() || (waited && half_close::is_half_closed(&self.stream)) {
            self.undelivered.get_or_insert_default().extend(half_close::shown_claims(results));
        } else {
            // A reserved claim expires by itself.
            self.written
                .pending
                .extend(half_close::shown_claims(results.filter(|result| result.claim.state == ClaimState::Active)));
        }
    }

    /// Forgets claims whose replies have been written, unless the client may be gone.
    #[inline]
    pub(super) fn forget_delivered(&mut self) {
        self.written.mark_written();
        let is_connected = || self.grace.is_none() && !half_close::is_half_closed(&self.stream);
        if self.undelivered.is_some() && self.consumed >= self.exec_end && is_connected() {
            self.undelivered = None;
        }
    }

    /// Rolls back claims whose replies could not be written.
    #[cold]
    pub(super) fn roll_back_undelivered(&mut self) {
        let mut undelivered = self.undelivered.take().unwrap_or_default();
        undelivered.append(&mut self.written.pending);
        half_close::roll_back_all(&self.shared.scheduler, undelivered);
    }

    /// Ends the connection: rolls back claims whose replies do not arrive, and those of an unfinished transaction.
    pub(super) async fn finish_undelivered(&mut self) {
        if self.consumed < self.exec_end {
            return self.roll_back_undelivered();
        }
        let mut undelivered = self.undelivered.take().unwrap_or_default();
        if !self.written.written.is_empty() && half_close::is_half_closed(&self.stream) {
            undelivered.append(&mut self.written.written);
        }
        half_close::roll_back_unacknowledged(
            &self.shared.scheduler,
            undelivered,
            &self.stream,
            self.shared.bounds.timeout,
        )
        .await;
    }
}
