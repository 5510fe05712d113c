//! Quotas of tenants, and the resources that each tenant holds.
//!
//! A tenant's *charge* for a claim is part of the claim's entry in the key directory
//! ([`crate::admission::key`]). It is taken when the key is found vacant, before any worker is asked, and
//! released with the entry, whatever ends that. So usage equals what the directory holds, by construction (`U1`), and
//! nothing is released twice.
//!
//! | file | what it holds |
//! |---|---|
//! | [`account`] | usage and limits of a tenant: the decision, pure |
//! | `directory` | all tenants and quotas |
//! | `lease` | the charge of one claim |
//! | `owner_hasher` | the hash of a tenant's name |

pub mod account;
mod directory;
mod lease;
mod owner_hasher;

use parking_lot::Mutex;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use crossbeam::queue::SegQueue;
use smallvec::SmallVec;

pub use self::account::{ChargeRank, ProtectedClaim, TenantAccount};
pub use self::directory::TenantDirectory;
pub use self::lease::QuotaLease;
use crate::admission::lock_order::{self, LockLevel};
use crate::admission::queue::ArrivalNumber;
use crate::model::ResourceUsage;

/// Tenants whose share of a pool has changed since its queue last looked.
#[derive(Debug, Default)]
pub struct StaleShares(SegQueue<u64>);

impl StaleShares {
    /// Takes the number of a tenant.
    #[must_use]
    pub fn pop(&self) -> Option<u64> {
        self.0.pop()
    }
}

/// Pool in whose queue claims of a tenant wait.
#[derive(Debug)]
struct WaitingIn {
    pool: u32,
    claims: u32,
    /// Whether the queue is to learn of a change of the share, and has not looked since.
    is_stale: bool,
    stale_shares: Arc<StaleShares>,
}

/// Tenant of a namespace, with its quota account.
#[derive(Debug)]
pub struct Tenant {
    /// Name in the form `namespace/tenant`.
    pub name: Arc<str>,
    /// Number in its directory; never reused.
    pub number: u64,
    account: Mutex<TenantAccount>,
    /// Number of wait queues that claims of the tenant are in, counted once for each claim.
    waiting: AtomicUsize,
    /// Pools in whose queues claims of the tenant wait.
    waiting_in: Mutex<SmallVec<[WaitingIn; 1]>>,
    /// Whether the tenant is in `retry_queue`.
    is_retry_queued: AtomicBool,
    /// Queue of the directory that the tenant belongs to.
    retry_queue: Arc<SegQueue<Arc<Self>>>,
}

impl Tenant {
    /// Reads or changes the account under its lock, the last in the order of locks: `step` takes no other.
    #[inline]
    fn with_account<T>(&self, step: impl FnOnce(&mut TenantAccount) -> T) -> T {
        let _held = lock_order::acquire(LockLevel::TenantAccount);
        step(&mut self.account.lock())
    }

    /// Schedules a search for the claims that the quota keeps back, at the next tick at the latest.
    #[cold]
    pub fn queue_retry(self: &Arc<Self>) {
        if !self.is_retry_queued.swap(true, Ordering::AcqRel) {
            self.retry_queue.push(Arc::clone(self));
        }
    }

    /// Notes that a claim of the tenant enters the queue of a pool, which is to learn of changes of the tenant's share.
    pub fn begin_waiting(&self, pool: u32, stale_shares: &Arc<StaleShares>) {
        let mut waiting_in = self.waiting_in.lock();
        match waiting_in.iter_mut().find(|entry| entry.pool == pool) {
            Some(entry) => entry.claims += 1,
            None => {
                let stale_shares = Arc::clone(stale_shares);
                waiting_in.push(WaitingIn { pool, claims: 1, is_stale: false, stale_shares });
            }
        }
        // Before the share is read: a later change of the share finds that somebody waits.
        self.waiting.fetch_add(1, Ordering::SeqCst);
    }

    /// Notes that a claim of the tenant left the queue of a pool.
    pub fn end_waiting(&self, pool: u32) {
        let mut waiting_in = self.waiting_in.lock();
        let index = waiting_in.iter().position(|entry| entry.pool == pool).expect("whoever leaves a queue was in it");
        waiting_in[index].claims -= 1;
        if waiting_in[index].claims == 0 {
            waiting_in.swap_remove(index);
        }
        self.waiting.fetch_sub(1, Ordering::SeqCst);
    }

    /// Numbers of the pools in whose queues claims of the tenant wait.
    #[must_use]
    pub fn waiting_pools(&self) -> SmallVec<[u32; 4]> {
        self.waiting_in.lock().iter().map(|entry| entry.pool).collect()
    }

    /// Notes that the tenant's share of a pool has changed.
    #[inline]
    fn note_share(&self, pool: u32) {
        if self.waiting.load(Ordering::Relaxed) > 0 {
            self.note_stale_share(pool);
        }
    }

    #[cold]
    fn note_stale_share(&self, pool: u32) {
        let mut waiting_in = self.waiting_in.lock();
        if let Some(entry) = waiting_in.iter_mut().find(|entry| entry.pool == pool)
            && !std::mem::replace(&mut entry.is_stale, true)
        {
            entry.stale_shares.0.push(self.number);
        }
    }

    /// Share of a pool with `total` resources as of now ([`TenantAccount::dominant_share`]).
    #[must_use]
    pub fn current_share(&self, pool: u32, total: &ResourceUsage) -> u64 {
        if let Some(entry) = self.waiting_in.lock().iter_mut().find(|entry| entry.pool == pool) {
            entry.is_stale = false;
        }
        self.dominant_share(pool, total)
    }

    /// Amounts that the tenant may still hold.
    #[must_use]
    pub fn headroom(&self) -> ResourceUsage {
        self.with_account(|account| account.headroom())
    }

    /// Whether a claim of these amounts is within the quota if nothing else is held.
    #[must_use]
    pub fn allows(&self, amounts: &ResourceUsage) -> bool {
        self.with_account(|account| account.allows(amounts))
    }

    /// Whether the limits allow a claim of these amounts once so much less is held.
    #[must_use]
    pub fn allows_without(&self, released: &ResourceUsage, amounts: &ResourceUsage) -> bool {
        self.with_account(|account| account.allows_without(released, amounts))
    }

    /// Protects a claim that the quota has kept back for long, or none.
    pub fn protect(self: &Arc<Self>, claim: Option<ProtectedClaim>) {
        if self.with_account(|account| account.protect(claim)) {
            self.queue_retry();
        }
    }

    /// Whether the quota allows a claim of these amounts.
    #[must_use]
    pub fn may_charge(&self, amounts: &ResourceUsage, rank: ChargeRank) -> bool {
        self.with_account(|account| account.may_charge(amounts, rank))
    }

    /// Whether the headroom is enough for a claim that waits. If not, the tenant's claims are searched for when it grows.
    #[must_use]
    pub fn has_headroom(&self, is_enough: impl FnOnce(&ResourceUsage) -> bool) -> bool {
        self.with_account(|account| {
            let is_enough = is_enough(&account.headroom());
            if !is_enough {
                account.note_refused_waiting();
            }
            is_enough
        })
    }

    /// Whether the quota allows a claim that waits and was refused before, now that its queues know of that. If not, the
    /// tenant's claims are searched for when it does.
    #[must_use]
    pub fn allows_refused(&self, amounts: &ResourceUsage, rank: ChargeRank) -> bool {
        self.with_account(|account| {
            account.note_refused_waiting();
            account.may_charge(amounts, rank)
        })
    }

    /// Notes that the claims which the quota has kept back are about to be searched for.
    pub fn begin_quota_search(&self) {
        self.with_account(TenantAccount::begin_quota_search);
    }

    /// Notes that claims are kept back still, and are to be searched for when there is more headroom. Returns whether it
    /// has not grown since the search began.
    #[must_use]
    pub fn keep_refused(&self) -> bool {
        self.with_account(TenantAccount::keep_refused)
    }

    /// Ends the protection of a claim that does not wait any more. Returns whether it was protected.
    #[must_use]
    pub fn unprotect(&self, arrival: ArrivalNumber) -> bool {
        self.with_account(|account| account.unprotect(arrival))
    }

    /// Resources that the tenant holds.
    #[must_use]
    pub fn used(&self) -> ResourceUsage {
        self.with_account(|account| account.used())
    }

    /// Dominant share of a pool with `total` resources: [`TenantAccount::dominant_share`].
    #[must_use]
    pub fn dominant_share(&self, pool: u32, total: &ResourceUsage) -> u64 {
        self.with_account(|account| account.dominant_share(pool, total))
    }
}
