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
use std::sync::atomic::{AtomicBool, Ordering};

use crossbeam::queue::SegQueue;

pub use self::account::TenantAccount;
pub use self::directory::TenantDirectory;
pub use self::lease::QuotaLease;
use crate::admission::lock_order::{self, LockLevel};
use crate::admission::queue::WaitQueue;
use crate::model::ResourceUsage;

/// Tenant of a namespace, with its quota account.
#[derive(Debug)]
pub struct Tenant {
    /// Name in the form `namespace/tenant`.
    pub name: Arc<str>,
    /// Number in its directory; never reused.
    pub number: u64,
    account: Mutex<TenantAccount>,
    /// Claims that wait because the tenant's quota is used up.
    pub wait_queue: WaitQueue,
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

    /// Schedules a retry of the claims that wait for the quota, at the next tick at the latest.
    #[inline]
    pub fn queue_retry(self: &Arc<Self>) {
        if self.wait_queue.has_waiting() && !self.is_retry_queued.swap(true, Ordering::AcqRel) {
            self.retry_queue.push(Arc::clone(self));
        }
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
