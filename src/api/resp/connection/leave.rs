//! Clients that may leave before they are answered: claims that wait, and claims whose answers may not arrive.

use std::pin::{Pin, pin};

use tokio::time::{Duration, timeout};

use super::{Connection, fail};
use crate::api::half_close::{self, Departure, Untold};
use crate::api::resp::call::late;
use crate::api::resp::run::End;
use crate::metrics::RespCommand;
use crate::model::rejection::Unavailable;
use crate::model::{ClaimState, Millis, Taken};

/// Claims that no deadline ends, by the write that carried their answers: a client that is gone before it sends anything more
/// may not have had the last of them.
#[derive(Default)]
pub(super) struct WrittenClaims {
    next: Untold,
    last: Untold,
}

impl WrittenClaims {
    fn written(&mut self) {
        std::mem::swap(&mut self.last, &mut self.next);
        self.next.clear();
    }

    /// Forgets them: the client has sent something since.
    pub(super) fn clear(&mut self) {
        self.last.clear();
    }
}

impl Connection<'_> {
    /// Part of `wait_ms` that a claim may wait.
    pub(super) fn may_wait(&self, wait_ms: Millis) -> Millis {
        match &self.grace {
            Some(grace) if grace.is_elapsed() => 0,
            // As in Redis nothing blocks within a transaction: its answers leave together, and those that are there would
            // grow old meanwhile.
            _ if self.exec_end > 0 && self.taken <= self.exec_end => 0,
            _ => wait_ms,
        }
    }

    /// Writes the answers that are there before something is waited for; those of an `EXEC` leave together.
    pub(super) async fn write_before_waiting(&mut self) -> Result<(), End> {
        if self.exec_end > 0 && self.taken <= self.exec_end { Ok(()) } else { self.write().await }
    }

    /// Waits for what may wait for room, so long that its client may leave meanwhile, or the service stop. None: it
    /// did not come to its end, and why not is answered.
    pub(super) async fn wait<T>(
        &mut self,
        wait_ms: Millis,
        command: RespCommand,
        work: Pin<Box<impl Future<Output = T>>>,
        stop: Pin<&mut impl Future<Output = ()>>,
    ) -> Result<Option<T>, End> {
        self.waited = true;
        self.write_before_waiting().await?;
        let limit = self.shared.bounds.timeout + Duration::from_millis(wait_ms);
        let Self { stream, grace, answers, .. } = self;
        let mut departure = pin!(half_close::departure(stream, grace));
        let failure = tokio::select! {
            biased;
            done = timeout(limit, work) => match done {
                Ok(done) => return Ok(Some(done)),
                Err(_elapsed) => late(),
            },
            why = &mut departure => match why {
                Departure::Gone => return Err(End::Gone),
                Departure::Finished => half_close::waits_no_more(),
            },
            () = stop => {
                fail(command, &Unavailable::Stopping.into(), answers);
                return Err(End::Gone);
            }
        };
        fail(command, &failure, answers);
        Ok(None)
    }

    /// Notes claims that were made while it is in doubt whether their answers arrive.
    #[inline]
    pub(super) fn note<'t>(&mut self, taken: impl Iterator<Item = &'t Taken>) {
        // What was decided at once is answered at once, as if its client had left a moment later.
        let waited = std::mem::take(&mut self.waited);
        if self.untold.is_some() || self.grace.is_some() || (waited && half_close::has_finished(&self.stream)) {
            self.untold.get_or_insert_default().extend(half_close::made(taken));
        } else {
            // One that is reserved ends by itself.
            self.written.next.extend(half_close::made(taken.filter(|taken| taken.claim.state == ClaimState::Active)));
        }
    }

    /// Forgets claims whose answers have been written, unless the client may be gone.
    #[inline]
    pub(super) fn told(&mut self) {
        self.written.written();
        let is_sure = || self.grace.is_none() && !half_close::has_finished(&self.stream);
        if self.untold.is_some() && self.taken >= self.exec_end && is_sure() {
            self.untold = None;
        }
    }

    /// Gives claims back whose answers could not be written.
    #[cold]
    pub(super) fn roll_back_undelivered(&mut self) {
        let mut untold = self.untold.take().unwrap_or_default();
        untold.append(&mut self.written.next);
        half_close::give_back(&self.shared.scheduler, untold);
    }

    /// The connection ends: claims whose answers do not arrive are given back. So are those of a transaction that did
    /// not come to its end.
    pub(super) async fn settle_untold(&mut self) {
        if self.taken < self.exec_end {
            return self.roll_back_undelivered();
        }
        let mut untold = self.untold.take().unwrap_or_default();
        if !self.written.last.is_empty() && half_close::has_finished(&self.stream) {
            untold.append(&mut self.written.last);
        }
        half_close::settle(&self.shared.scheduler, untold, &self.stream, self.shared.bounds.timeout).await;
    }
}
