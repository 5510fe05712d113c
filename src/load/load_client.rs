//! Client of a load: claims and releases, counts, measures, and checks every grant.

use parking_lot::{Mutex, MutexGuard};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use super::claim_input::{BatchAtomicity, ClaimInput, ClaimParams, ReceivedGrant};
use super::grant_checker::GrantChecker;
use super::pacing::StopSignal;
use super::stats::{ClientStats, TargetError, record};
use super::target_client::TargetClient;
use hotpool::model::{ClaimId, Fence};

/// Digits of a claim's number in its key. All are valid in names, and there are 64, so a digit is a mask.
const DIGITS: &[u8; 64] = b"0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ_-";

/// Load client: a connection to the target with its statistics. Its concurrent requests share it.
pub struct LoadClient {
    target: TargetClient,
    checker: Arc<GrantChecker>,
    /// Prefix of the client's keys, unique across clients and runs.
    prefix: String,
    /// Number of the next claim, which completes its key.
    next: AtomicU64,
    stats: Mutex<ClientStats>,
}

/// Request of a load: the claims that it makes and how long they are held.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LoadOperation {
    /// Parameters of each claim.
    pub params: ClaimParams,
    /// Number of claims in the request.
    pub claims: usize,
    /// Rule by which the claims of the request are granted.
    pub atomicity: BatchAtomicity,
    /// Time between the reply and the release.
    pub hold: Duration,
}

impl LoadOperation {
    /// Creates a request for that many whole workers, released at once.
    #[must_use]
    pub fn whole_workers(claims: usize) -> Self {
        let atomicity = BatchAtomicity::Independent;
        Self { params: ClaimParams::default(), claims, atomicity, hold: Duration::ZERO }
    }
}

/// Time at which claims are released at the latest.
#[derive(Debug)]
pub struct HoldDeadline {
    /// End of the run.
    pub at: Instant,
    /// Signal that ends holding early.
    pub stop: Arc<StopSignal>,
}

impl HoldDeadline {
    /// Waits until claims granted at `answered` have been held for `hold`. Returns the current time.
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

/// Granted claim of a batch that is still to be released.
struct GrantedItem {
    number: u64,
    worker: u32,
    fence: Fence,
}

impl LoadClient {
    /// Creates a client with empty statistics.
    #[must_use]
    pub fn new(target: TargetClient, checker: Arc<GrantChecker>, prefix: String) -> Self {
        Self { target, checker, prefix, next: AtomicU64::new(0), stats: Mutex::default() }
    }

    /// Locks the counts and latencies of this client.
    pub fn stats(&self) -> MutexGuard<'_, ClientStats> {
        self.stats.lock()
    }

    /// Builds claim `number`; `key_buffer` is scratch space for its key.
    fn claim_input(&self, number: u64, params: ClaimParams, key_buffer: &mut String) -> ClaimInput {
        key_buffer.clear();
        key_buffer.push_str(&self.prefix);
        push_digits(key_buffer, number);
        ClaimInput::new(key_buffer, params)
    }

    /// Sends one claim that was due at `intended`. Returns the grant with the time of its reply; counts any other
    /// outcome and returns `None`.
    async fn claim(
        &self,
        intended: Instant,
        params: ClaimParams,
        key_buffer: &mut String,
    ) -> Option<(ReceivedGrant, Instant)> {
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        let outcome = self.target.claim(self.claim_input(number, params, key_buffer)).await;
        let answered = Instant::now();
        let mut stats = self.stats();
        match outcome {
            Ok(grant) => {
                self.checker.record_grant(grant.worker, grant.fence, params.slots);
                stats.warm += u64::from(
                    params.function.is_some_and(|function| self.checker.record_function(grant.worker, function)),
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

    /// Releases one claim; `sent` is the current time. Returns the time of the reply.
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

    /// Sends the claims of an operation that was due at `intended`, holds them, and releases those that were granted.
    /// All claims of a request have the latency of their request. Returns the time of the last reply.
    pub async fn execute(
        &self,
        intended: Instant,
        operation: &LoadOperation,
        deadline: &HoldDeadline,
        key_buffer: &mut String,
    ) -> Instant {
        let LoadOperation { params, claims: batch, atomicity, hold } = *operation;
        if batch == 1 {
            return match self.claim(intended, params, key_buffer).await {
                Some((grant, answered)) => {
                    self.release(&grant, params.slots, deadline.hold(answered, hold).await).await
                }
                None => self.yield_now().await,
            };
        }
        let first = self.next.fetch_add(batch as u64, Ordering::Relaxed);
        let mut claims = Vec::with_capacity(batch);
        let mut held = Vec::with_capacity(batch);
        let mut failures = Vec::new();
        let inputs = (first..).take(batch).map(|number| self.claim_input(number, params, key_buffer));
        let mut numbers = first..;
        let outcome = |outcome| {
            let number = numbers.next().unwrap_or_default();
            match outcome {
                Ok(ReceivedGrant { id, fence, worker }) => {
                    self.checker.record_grant(worker, fence, params.slots);
                    claims.push((id, fence));
                    held.push(GrantedItem { number, worker, fence });
                }
                Err(failure) => failures.push((number, failure)),
            }
        };
        self.target.claim_batch(inputs, atomicity, outcome).await;
        let answered = Instant::now();
        let gang = atomicity == BatchAtomicity::AllOrNothing;
        if gang && failures.iter().any(|(_, failure)| *failure == TargetError::NoCapacity) {
            // The other claims report only that one of them was rejected.
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
        let sent = deadline.hold(answered, hold).await;
        self.release_held(claims, &held, params, sent, key_buffer).await
    }

    async fn release_held(
        &self,
        claims: Vec<(ClaimId, Fence)>,
        held: &[GrantedItem],
        params: ClaimParams,
        sent: Instant,
        key_buffer: &mut String,
    ) -> Instant {
        let sending = |n: usize| self.checker.record_release(held[n].worker, held[n].fence, params.slots);
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
                stats.record_doubt((self.claim_input(number, params, key_buffer).id, Some(fence)));
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

    /// Yields after a request without grants: an immediate reply must not keep other tasks from running.
    async fn yield_now(&self) -> Instant {
        tokio::task::yield_now().await;
        Instant::now()
    }

    /// Ends a claim that may still be held. Returns true once it is known to be released.
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
        TargetError::NoCapacity => "a release was rejected for lack of capacity".to_owned(),
        TargetError::Failed { message, .. } => message,
    }
}

/// Appends `number` in base 64, lowest digit first: short, and without a division.
fn push_digits(key_buffer: &mut String, mut number: u64) {
    loop {
        key_buffer.push(char::from(DIGITS[(number % 64) as usize]));
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
    fn every_number_has_unique_digits_that_form_a_valid_name() {
        let mut seen = std::collections::HashSet::new();
        for number in (0..10_000).chain([u64::MAX, u64::MAX - 1]) {
            let mut key_buffer = String::new();
            push_digits(&mut key_buffer, number);
            hotpool::model::check_name("key", &key_buffer).unwrap();
            assert!(seen.insert(key_buffer), "{number}");
        }
    }
}
