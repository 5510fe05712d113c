//! One client: makes claims and gives them back, counts, measures, and checks every grant.

use parking_lot::{Mutex, MutexGuard};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use super::claim_input::{ClaimInput, ClaimParams, ReceivedGrant};
use super::grant_checker::GrantChecker;
use super::pacing::StopSignal;
use super::stats::{ClientStats, TargetError, record};
use super::target_client::TargetClient;
use hotpool::model::{ClaimId, Fence};

/// Digits of a claim's number in its key: letters of names, and a power of two of them, so that a digit is a mask.
const DIGITS: &[u8; 64] = b"0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ_-";

/// A client: a way in, and what it has seen. Its lanes share it.
pub struct LoadClient {
    target: TargetClient,
    checker: Arc<GrantChecker>,
    /// First part of its keys: no other client has it, of this run or another.
    prefix: String,
    /// Number of the next claim: the rest of its key.
    next: AtomicU64,
    stats: Mutex<ClientStats>,
}

/// One request of a load, and what becomes of its claims.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LoadOperation {
    /// What each claim asks for.
    pub params: ClaimParams,
    /// Claims in the request.
    pub claims: usize,
    /// All of them or none.
    pub gang: bool,
    /// How long they are held after the answer.
    pub hold: Duration,
}

impl LoadOperation {
    /// So many claims of whole workers, given back at once.
    #[must_use]
    pub fn whole_workers(claims: usize) -> Self {
        Self { params: ClaimParams::default(), claims, gang: false, hold: Duration::ZERO }
    }
}

/// When holding ends, whatever was meant.
#[derive(Debug)]
pub struct HoldDeadline {
    /// At the end of the run.
    pub at: Instant,
    /// When it is asked to stop.
    pub stop: Arc<StopSignal>,
}

impl HoldDeadline {
    /// Waits for as long as claims are held that were answered at `answered`. Returns the time.
    async fn hold(&self, answered: Instant, hold: Duration) -> Instant {
        if hold.is_zero() {
            return answered;
        }
        let until = (answered + hold).min(self.at);
        tokio::select! {
            () = tokio::time::sleep_until(until.into()) => {}
            () = self.stop.wait() => {}
        }
        Instant::now()
    }
}

/// What one claim of a batch left to be released.
struct GrantedItem {
    number: u64,
    worker: u32,
    fence: Fence,
}

impl LoadClient {
    /// A client with nothing done.
    #[must_use]
    pub fn new(link: TargetClient, check: Arc<GrantChecker>, prefix: String) -> Self {
        Self { target: link, checker: check, prefix, next: AtomicU64::new(0), stats: Mutex::default() }
    }

    /// What it has counted.
    pub fn stats(&self) -> MutexGuard<'_, ClientStats> {
        // Every update is whole: a panic elsewhere leaves nothing half done.
        self.stats.lock()
    }

    /// Claim `number`; `text` is room for its key.
    fn claim_input(&self, number: u64, want: ClaimParams, text: &mut String) -> ClaimInput {
        text.clear();
        text.push_str(&self.prefix);
        push_digits(text, number);
        ClaimInput::new(text, want)
    }

    /// Makes one claim that was to be sent at `intended`. Returns it with the time of its answer; on any other
    /// outcome counts it and returns none.
    async fn claim(&self, intended: Instant, want: ClaimParams, text: &mut String) -> Option<(ReceivedGrant, Instant)> {
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        let outcome = self.target.claim(self.claim_input(number, want, text)).await;
        let answered = Instant::now();
        let mut stats = self.stats();
        match outcome {
            Ok(grant) => {
                self.checker.record_grant(grant.worker, grant.fence, want.slots);
                stats.warm += u64::from(
                    want.function.is_some_and(|function| self.checker.record_function(grant.worker, function)),
                );
                stats.claims_ok += 1;
                record(&mut stats.claims, answered - intended, 1);
                Some((grant, answered))
            }
            Err(failure) => {
                self.record_failure(&mut stats, failure, answered, number);
                None
            }
        }
    }

    /// Gives one claim back; `sent` is now. Returns the time of the answer.
    async fn release(&self, grant: &ReceivedGrant, slots: u32, sent: Instant) -> Instant {
        self.checker.record_release(grant.worker, grant.fence, slots);
        let outcome = self.target.release(&grant.id, grant.fence).await;
        let answered = Instant::now();
        let mut stats = self.stats();
        match outcome {
            Ok(()) => {
                stats.releases_ok += 1;
                record(&mut stats.releases, answered - sent, 1);
                stats.last = Some(answered);
            }
            Err(failure) => {
                stats.record_error(&error_message(failure), 1);
                stats.record_doubt((grant.id.clone(), Some(grant.fence)));
                stats.last = Some(answered);
            }
        }
        answered
    }

    /// Makes the claims of a call that was to be sent at `intended`, holds them, and gives back what was granted. All claims
    /// of a request have the latency of their request. Returns the time of the last answer.
    pub async fn execute(
        &self,
        intended: Instant,
        call: &LoadOperation,
        end: &HoldDeadline,
        text: &mut String,
    ) -> Instant {
        let LoadOperation { params: want, claims: batch, gang, hold } = *call;
        if batch == 1 {
            return match self.claim(intended, want, text).await {
                Some((grant, answered)) => self.release(&grant, want.slots, end.hold(answered, hold).await).await,
                None => self.yield_now().await,
            };
        }
        let first = self.next.fetch_add(batch as u64, Ordering::Relaxed);
        let mut claims = Vec::with_capacity(batch);
        let mut held = Vec::with_capacity(batch);
        let mut failures = Vec::new();
        let asks = (first..).take(batch).map(|number| self.claim_input(number, want, text));
        let mut numbers = first..;
        let outcome = |outcome| {
            let number = numbers.next().unwrap_or_default();
            match outcome {
                Ok(ReceivedGrant { id, fence, worker }) => {
                    self.checker.record_grant(worker, fence, want.slots);
                    claims.push((id, fence));
                    held.push(GrantedItem { number, worker, fence });
                }
                Err(failure) => failures.push((number, failure)),
            }
        };
        self.target.claim_batch(asks, gang, outcome).await;
        let answered = Instant::now();
        if gang && failures.iter().any(|(_, failure)| *failure == TargetError::NoCapacity) {
            // The others are told that one of them was refused.
            failures.iter_mut().for_each(|(_, failure)| *failure = TargetError::NoCapacity);
        }
        {
            let mut stats = self.stats();
            stats.claims_ok += held.len() as u64;
            record(&mut stats.claims, answered - intended, held.len() as u64);
            for (number, failure) in failures {
                self.record_failure(&mut stats, failure, answered, number);
            }
        }
        if held.is_empty() {
            return self.yield_now().await;
        }
        let sent = end.hold(answered, hold).await;
        self.release_held(claims, &held, want, sent, text).await
    }

    async fn release_held(
        &self,
        claims: Vec<(ClaimId, Fence)>,
        held: &[GrantedItem],
        want: ClaimParams,
        sent: Instant,
        text: &mut String,
    ) -> Instant {
        let sending = |n: usize| self.checker.record_release(held[n].worker, held[n].fence, want.slots);
        let mut released = 0;
        let mut failures = Vec::new();
        let mut number = held.iter().map(|held| (held.number, held.fence));
        let outcome = |outcome| match (outcome, number.next()) {
            (Ok(()), _) => released += 1,
            (Err(failure), claim) => failures.push((failure, claim)),
        };
        self.target.release_batch(claims, sending, outcome).await;
        let answered = Instant::now();
        let mut stats = self.stats();
        for (failure, claim) in failures {
            stats.record_error(&error_message(failure), 1);
            if let Some((number, fence)) = claim {
                stats.record_doubt((self.claim_input(number, want, text).id, Some(fence)));
            }
        }
        stats.releases_ok += released;
        record(&mut stats.releases, answered - sent, released);
        stats.last = Some(answered);
        answered
    }

    /// Counts a claim that was not granted.
    fn record_failure(&self, stats: &mut ClientStats, failure: TargetError, answered: Instant, number: u64) {
        stats.last = Some(answered);
        match failure {
            TargetError::NoCapacity => stats.claims_refused += 1,
            TargetError::Failed { message, in_doubt } => {
                stats.record_error(&message, 1);
                if in_doubt {
                    stats.record_doubt((self.claim_input(number, ClaimParams::default(), &mut String::new()).id, None));
                }
            }
        }
    }

    /// After a round that got nothing: an answer that is there at once must not keep others from running.
    async fn yield_now(&self) -> Instant {
        tokio::task::yield_now().await;
        Instant::now()
    }

    /// Ends a claim that may still be held. True once nothing is.
    pub async fn resolve(&self, id: &ClaimId, fence: Option<Fence>) -> bool {
        let fence = match fence {
            Some(fence) => Ok(Some(fence)),
            None => self.target.find(id).await,
        };
        match fence {
            Ok(Some(fence)) => self.target.release(id, fence).await.is_ok(),
            Ok(None) => true,
            Err(_) => false,
        }
    }
}

fn error_message(failure: TargetError) -> String {
    match failure {
        TargetError::NoCapacity => "a release was refused for want of a worker".to_owned(),
        TargetError::Failed { message, .. } => message,
    }
}

/// Appends `number` in base 64, lowest digit first: short and without a division.
fn push_digits(text: &mut String, mut number: u64) {
    loop {
        text.push(char::from(DIGITS[(number % 64) as usize]));
        number /= 64;
        if number == 0 {
            break;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_number_has_digits_of_its_own_and_makes_a_name() {
        let mut seen = std::collections::HashSet::new();
        for number in (0..10_000).chain([u64::MAX, u64::MAX - 1]) {
            let mut text = String::new();
            push_digits(&mut text, number);
            hotpool::model::check_name("key", &text).unwrap();
            assert!(seen.insert(text), "{number}");
        }
    }
}
