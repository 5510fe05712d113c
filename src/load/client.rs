//! One client: makes claims and gives them back, counts, measures, and checks every grant.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::ask::{Ask, Grant, Want};
use super::check::Check;
use super::link::Link;
use super::pace::Stop;
use super::stats::{Failure, Stats, record};
use hotpool::model::{ClaimId, Fence};

/// Digits of a claim's number in its key: letters of names, and a power of two of them, so that a digit is a mask.
const DIGITS: &[u8; 64] = b"0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ_-";

/// A client: a way in, and what it has seen. Its lanes share it.
pub struct Client {
    link: Link,
    check: Arc<Check>,
    /// First part of its keys: no other client has it, of this run or another.
    prefix: String,
    /// Number of the next claim: the rest of its key.
    next: AtomicU64,
    stats: Mutex<Stats>,
}

/// One request of a load, and what becomes of its claims.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Call {
    /// What each claim asks for.
    pub want: Want,
    /// Claims in the request.
    pub claims: usize,
    /// All of them or none.
    pub gang: bool,
    /// How long they are held after the answer.
    pub hold: Duration,
}

impl Call {
    /// So many claims of whole workers, given back at once.
    #[must_use]
    pub fn plain(claims: usize) -> Self {
        Self { want: Want::default(), claims, gang: false, hold: Duration::ZERO }
    }
}

/// When holding ends, whatever was meant.
#[derive(Debug)]
pub struct End {
    /// At the end of the run.
    pub at: Instant,
    /// When it is asked to stop.
    pub stop: Arc<Stop>,
}

impl End {
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
struct Held {
    number: u64,
    worker: u32,
    fence: Fence,
}

impl Client {
    /// A client with nothing done.
    #[must_use]
    pub fn new(link: Link, check: Arc<Check>, prefix: String) -> Self {
        Self { link, check, prefix, next: AtomicU64::new(0), stats: Mutex::default() }
    }

    /// What it has counted.
    pub fn stats(&self) -> MutexGuard<'_, Stats> {
        // Every update is whole: a panic elsewhere leaves nothing half done.
        self.stats.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Claim `number`; `text` is room for its key.
    fn ask(&self, number: u64, want: Want, text: &mut String) -> Ask {
        text.clear();
        text.push_str(&self.prefix);
        push_digits(text, number);
        Ask::new(text, want)
    }

    /// Makes one claim that was to be sent at `intended`. Returns it with the time of its answer; on any other
    /// outcome counts it and returns none.
    async fn claim(&self, intended: Instant, want: Want, text: &mut String) -> Option<(Grant, Instant)> {
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        let outcome = self.link.claim(self.ask(number, want, text)).await;
        let answered = Instant::now();
        let mut stats = self.stats();
        match outcome {
            Ok(grant) => {
                self.check.granted(grant.worker, grant.fence, want.slots);
                stats.warm += u64::from(want.function.is_some_and(|function| self.check.meets(grant.worker, function)));
                stats.claims_ok += 1;
                record(&mut stats.claims, answered - intended, 1);
                Some((grant, answered))
            }
            Err(failure) => {
                self.count(&mut stats, failure, answered, number);
                None
            }
        }
    }

    /// Gives one claim back; `sent` is now. Returns the time of the answer.
    async fn release(&self, grant: &Grant, slots: u32, sent: Instant) -> Instant {
        self.check.releasing(grant.worker, grant.fence, slots);
        let outcome = self.link.release(&grant.id, grant.fence).await;
        let answered = Instant::now();
        let mut stats = self.stats();
        match outcome {
            Ok(()) => {
                stats.releases_ok += 1;
                record(&mut stats.releases, answered - sent, 1);
                stats.last = Some(answered);
            }
            Err(failure) => {
                stats.error(&message(failure), 1);
                stats.doubt((grant.id.clone(), Some(grant.fence)));
                stats.last = Some(answered);
            }
        }
        answered
    }

    /// Makes the claims of a call that was to be sent at `intended`, holds them, and gives back what was granted. All claims
    /// of a request have the latency of their request. Returns the time of the last answer.
    pub async fn round(&self, intended: Instant, call: &Call, end: &End, text: &mut String) -> Instant {
        let Call { want, claims: batch, gang, hold } = *call;
        if batch == 1 {
            return match self.claim(intended, want, text).await {
                Some((grant, answered)) => self.release(&grant, want.slots, end.hold(answered, hold).await).await,
                None => self.yielded().await,
            };
        }
        let first = self.next.fetch_add(batch as u64, Ordering::Relaxed);
        let mut claims = Vec::with_capacity(batch);
        let mut held = Vec::with_capacity(batch);
        let mut failures = Vec::new();
        let asks = (first..).take(batch).map(|number| self.ask(number, want, text));
        let mut numbers = first..;
        let outcome = |outcome| {
            let number = numbers.next().unwrap_or_default();
            match outcome {
                Ok(Grant { id, fence, worker }) => {
                    self.check.granted(worker, fence, want.slots);
                    claims.push((id, fence));
                    held.push(Held { number, worker, fence });
                }
                Err(failure) => failures.push((number, failure)),
            }
        };
        self.link.claim_batch(asks, gang, outcome).await;
        let answered = Instant::now();
        if gang && failures.iter().any(|(_, failure)| *failure == Failure::Refused) {
            // The others are told that one of them was refused.
            failures.iter_mut().for_each(|(_, failure)| *failure = Failure::Refused);
        }
        {
            let mut stats = self.stats();
            stats.claims_ok += held.len() as u64;
            record(&mut stats.claims, answered - intended, held.len() as u64);
            for (number, failure) in failures {
                self.count(&mut stats, failure, answered, number);
            }
        }
        if held.is_empty() {
            return self.yielded().await;
        }
        let sent = end.hold(answered, hold).await;
        self.release_held(claims, &held, want, sent, text).await
    }

    async fn release_held(
        &self,
        claims: Vec<(ClaimId, Fence)>,
        held: &[Held],
        want: Want,
        sent: Instant,
        text: &mut String,
    ) -> Instant {
        let sending = |n: usize| self.check.releasing(held[n].worker, held[n].fence, want.slots);
        let mut released = 0;
        let mut failures = Vec::new();
        let mut number = held.iter().map(|held| (held.number, held.fence));
        let outcome = |outcome| match (outcome, number.next()) {
            (Ok(()), _) => released += 1,
            (Err(failure), claim) => failures.push((failure, claim)),
        };
        self.link.release_batch(claims, sending, outcome).await;
        let answered = Instant::now();
        let mut stats = self.stats();
        for (failure, claim) in failures {
            stats.error(&message(failure), 1);
            if let Some((number, fence)) = claim {
                stats.doubt((self.ask(number, want, text).id, Some(fence)));
            }
        }
        stats.releases_ok += released;
        record(&mut stats.releases, answered - sent, released);
        stats.last = Some(answered);
        answered
    }

    /// Counts a claim that was not granted.
    fn count(&self, stats: &mut Stats, failure: Failure, answered: Instant, number: u64) {
        stats.last = Some(answered);
        match failure {
            Failure::Refused => stats.claims_refused += 1,
            Failure::Failed { message, in_doubt } => {
                stats.error(&message, 1);
                if in_doubt {
                    stats.doubt((self.ask(number, Want::default(), &mut String::new()).id, None));
                }
            }
        }
    }

    /// After a round that got nothing: an answer that is there at once must not keep others from running.
    async fn yielded(&self) -> Instant {
        tokio::task::yield_now().await;
        Instant::now()
    }

    /// Ends a claim that may still be held. True once nothing is.
    pub async fn settle(&self, id: &ClaimId, fence: Option<Fence>) -> bool {
        let fence = match fence {
            Some(fence) => Ok(Some(fence)),
            None => self.link.find(id).await,
        };
        match fence {
            Ok(Some(fence)) => self.link.release(id, fence).await.is_ok(),
            Ok(None) => true,
            Err(_) => false,
        }
    }
}

fn message(failure: Failure) -> String {
    match failure {
        Failure::Refused => "a release was refused for want of a worker".to_owned(),
        Failure::Failed { message, .. } => message,
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
