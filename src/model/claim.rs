//! Claims: the request for one, its life, and what the service says about it.

use std::num::NonZeroU64;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::{
    AckLevel, ClaimId, Fence, Labels, Millis, PoolName, ResourceRequirements, WorkerCapacity, WorkerRegistration,
    affinity_hash, check_name,
};
use crate::limits;
use crate::model::claim_request::{ClaimConstraints, PoolChoice};
use crate::model::request_error::RequestError;

/// A request for one worker.
#[derive(Debug, Clone)]
pub struct ClaimRequest {
    /// Who asks.
    pub id: ClaimId,
    /// Where.
    pub pools: PoolChoice,
    /// Hash of the affinity word ([`affinity_hash`]); by default that of the key.
    pub affinity: u64,
    /// How long the claim may stay unconfirmed, in milliseconds: at most that of every pool that it may use; by default
    /// that of the pool that it is taken from. 0: active at once.
    pub reserve_ms: Option<u64>,
    /// How long it may stay active without a renewal, in milliseconds: at most that of every pool that it may use; by default
    /// that of the pool that it is taken from, and without one as long as its worker lives.
    pub ttl_ms: Option<u64>,
    /// A stronger acknowledgement than the pool's; a weaker one is refused.
    pub ack: Option<AckLevel>,
    /// How long it waits if there is no room, in milliseconds; 0: it does not.
    pub wait_ms: u64,
    /// What else it asks for; none: any worker will do.
    pub constraints: Option<Box<ClaimConstraints>>,
}

impl ClaimRequest {
    /// For any worker, with the defaults of the pool.
    #[must_use]
    pub fn new(id: ClaimId, pools: impl Into<PoolChoice>) -> Self {
        let affinity = affinity_hash(id.key());
        Self {
            id,
            pools: pools.into(),
            affinity,
            reserve_ms: None,
            ttl_ms: None,
            ack: None,
            wait_ms: 0,
            constraints: None,
        }
    }

    /// How long it may wait, for preferred nodes or for any, in milliseconds; 0: it does not.
    #[must_use]
    pub fn max_wait_ms(&self) -> Millis {
        self.wait_ms.max(self.constraints.as_ref().map_or(0, |ask| ask.preferred_wait_ms))
    }
}

/// What a claim keeps of its request.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ClaimSpec {
    /// Free labels, shown with the claim.
    pub labels: Labels,
    /// What it asked for. In a shared pool it holds just that, in an exclusive one its whole worker.
    pub resources: ResourceRequirements,
    /// Where it comes among those that wait, and whom it may evict: 0..=1000, the highest first.
    pub priority: u16,
    /// A claim with a higher priority may evict it, in a pool that allows that.
    pub preemptible: bool,
    /// In a shared pool, model of the cards that it was granted, once its worker was registered anew with others or none.
    pub granted_model: Option<Arc<str>>,
}

impl ClaimSpec {
    /// Whether nothing of it need be kept.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.labels.is_empty() && self.resources.is_empty() && self.priority == 0 && !self.preemptible
    }
}

/// Life of a claim.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ClaimState {
    /// Held until its deadline, unless confirmed.
    Reserved,
    /// In use.
    Active,
    /// Its holder is done; its worker is being cleaned.
    Releasing,
    /// Its worker is gone. It is not held any more, only remembered for a while.
    Lost,
}

impl ClaimState {
    /// The states of a claim that is held, in their order: what a listing may ask for.
    pub const HELD: [Self; 3] = [Self::Reserved, Self::Active, Self::Releasing];

    /// The word on the wire.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Reserved => "reserved",
            Self::Active => "active",
            Self::Releasing => "releasing",
            Self::Lost => "lost",
        }
    }
}

/// Times at which a claim was created and became active, as far as they are known. A claim whose row is older than these fields,
/// and one that was adopted because its worker named it, have none: they are not guessed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct ClaimTimes {
    created: Option<NonZeroU64>,
    activated: Option<NonZeroU64>,
}

impl ClaimTimes {
    /// Times in unix milliseconds, as far as they are known.
    #[must_use]
    #[inline]
    pub fn new(created_at_ms: Option<Millis>, activated_at_ms: Option<Millis>) -> Self {
        let known = |at_ms: Option<Millis>| at_ms.and_then(NonZeroU64::new);
        Self { created: known(created_at_ms), activated: known(activated_at_ms) }
    }

    /// Unix time in milliseconds at which its worker was given to it.
    #[must_use]
    #[inline]
    pub fn created_at_ms(self) -> Option<Millis> {
        self.created.map(NonZeroU64::get)
    }

    /// Unix time in milliseconds at which it became active; none also while it has not.
    #[must_use]
    #[inline]
    pub fn activated_at_ms(self) -> Option<Millis> {
        self.activated.map(NonZeroU64::get)
    }
}

/// What the service says about a claim.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClaimView {
    /// Whose it is.
    pub id: ClaimId,
    /// Number of this grant.
    pub fence: Fence,
    /// The pool it was taken from.
    pub pool: PoolName,
    /// The worker: id, node, capacity.
    pub worker: Arc<WorkerRegistration>,
    /// Where it is in its life.
    pub state: ClaimState,
    /// Unix time in milliseconds at which it ends if nothing is heard, if it has one.
    pub expires_at_ms: Option<Millis>,
    /// What it keeps of its request, if anything.
    pub spec: Option<Arc<ClaimSpec>>,
    /// In a shared pool, which cards of its worker it holds: bit `i` stands for card `i`. None: it holds the whole worker.
    pub gpu_mask: Option<u64>,
    /// It is being released because a claim with a higher priority evicted it.
    pub evicted: bool,
    /// When it was created, and when it became active.
    pub times: ClaimTimes,
}

/// What a claim holds.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum HeldResources<'a> {
    /// All of a worker with this capacity.
    Whole(&'a WorkerCapacity),
    /// A share of one.
    Share {
        /// How much.
        resources: &'a ResourceRequirements,
        /// Cards, if it holds any.
        gpu: Option<HeldGpus<'a>>,
    },
}

/// Cards that a claim holds a share of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HeldGpus<'a> {
    /// Model of the cards, as it was granted.
    pub model: &'a str,
    /// Number of cards.
    pub count: u32,
    /// Thousandths of each card.
    pub milli: u32,
    /// Which of its worker's cards: bit `i` stands for card `i`.
    pub gpu_mask: u64,
}

impl ClaimView {
    /// What it holds.
    #[must_use]
    pub fn held(&self) -> HeldResources<'_> {
        let capacity = &self.worker.spec.capacity;
        match (self.gpu_mask, &self.spec) {
            (Some(cards), Some(spec)) => {
                // Without a model, which rows of an older version may lack, nothing can be said of them.
                let model = spec.granted_model.as_ref().or_else(|| Some(&capacity.gpu.as_ref()?.model));
                let gpu = spec.resources.gpu.as_ref().zip(model).map(|(gpu, model)| HeldGpus {
                    model,
                    count: gpu.count,
                    milli: gpu.milli,
                    gpu_mask: cards,
                });
                HeldResources::Share { resources: &spec.resources, gpu }
            }
            _ => HeldResources::Whole(capacity),
        }
    }
}

/// A claim that was taken, or found to be held already.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClaimResult {
    /// The claim.
    pub claim: ClaimView,
    /// False if the key held it before this request.
    pub created: bool,
}

/// Which claims a listing shows.
#[derive(Debug, Clone, Default)]
pub struct ClaimFilter {
    /// Only of this namespace.
    pub namespace: Option<String>,
    /// Only of this pool (needs `namespace`).
    pub pool: Option<String>,
    /// Only on this worker.
    pub worker: Option<String>,
    /// Only of this tenant.
    pub tenant: Option<String>,
    /// Only in one of these states; empty: in any.
    pub states: Vec<ClaimState>,
    /// Only those that were created at least so many milliseconds ago. One whose age is not known is left out.
    pub older_than_ms: Option<Millis>,
}

impl ClaimFilter {
    /// Checks every name, that a pool comes with its namespace, and that only states of held claims are asked for.
    ///
    /// # Errors
    /// `Invalid` naming the field.
    pub fn checked(mut self) -> Result<Self, RequestError> {
        let names =
            [("namespace", &self.namespace), ("pool", &self.pool), ("worker", &self.worker), ("tenant", &self.tenant)];
        for (field, name) in names {
            name.as_deref().map_or(Ok(()), |name| check_name(field, name))?;
        }
        if self.pool.is_some() && self.namespace.is_none() {
            return Err(RequestError::invalid("namespace", "is required with pool"));
        }
        if self.states.contains(&ClaimState::Lost) {
            return Err(RequestError::invalid(
                "state",
                "must be of reserved, active, releasing: a lost claim is not held",
            ));
        }
        if self.older_than_ms.is_some_and(|ms| ms > limits::AMOUNT_MAX) {
            return Err(RequestError::invalid("older_than_ms", format!("must be at most {}", limits::AMOUNT_MAX)));
        }
        // Each once, however often it was said: every claim is compared with all of them.
        self.states = ClaimState::HELD.into_iter().filter(|state| self.states.contains(state)).collect();
        Ok(self)
    }
}

/// A gang, and where its row is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct GangRef {
    /// Number; a fence, so never used twice.
    pub id: Fence,
    /// Uid of its home's pool.
    pub pool: u64,
    /// Index of its home there.
    pub shard: u16,
}
