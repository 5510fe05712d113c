//! Claims: their states, and what replies show of them.

use std::num::NonZeroU64;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::{
    ClaimId, Fence, Labels, Millis, PoolName, QueuedClaimView, ResourceRequirements, WorkerCapacity,
    WorkerRegistration, check_name,
};
use crate::limits;
use crate::model::request_error::RequestError;

/// Parts of a request that its claim keeps.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ClaimSpec {
    /// User-defined labels, shown with the claim.
    pub labels: Labels,
    /// Requested resources. In a shared pool the claim holds exactly these, in an exclusive one its whole worker.
    pub resources: ResourceRequirements,
    /// Priority from 0 to 1000 in queues and for evictions, the highest first.
    pub priority: u16,
    /// True if a claim of higher priority may evict it, in a pool that allows that.
    pub preemptible: bool,
    /// GPU model that a claim of a shared pool was granted, once its worker was registered with another or none.
    pub granted_model: Option<Arc<str>>,
}

impl ClaimSpec {
    /// Whether there is nothing to keep.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.labels.is_empty() && self.resources.is_empty() && self.priority == 0 && !self.preemptible
    }
}

/// State in the lifecycle of a claim.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, strum::IntoStaticStr)]
#[serde(rename_all = "snake_case")]
#[strum(serialize_all = "snake_case")]
pub enum ClaimState {
    /// Granted and not confirmed; ends at its deadline.
    Reserved,
    /// Confirmed and used by its holder.
    Active,
    /// Being released, by its holder or after an eviction, while its worker is cleaned up.
    Releasing,
    /// Lost with its worker. Not live any more, only remembered for a while.
    Lost,
}

impl ClaimState {
    /// States of a live claim, in their order, by which a listing can be filtered.
    pub const HELD: [Self; 3] = [Self::Reserved, Self::Active, Self::Releasing];

    /// Name of the state on the wire.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        self.into()
    }
}

/// Creation and activation times of a claim, as far as known. A claim with a row older than these fields, or one that
/// was readopted from its worker's report, has none: they are not guessed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct ClaimTimes {
    created: Option<NonZeroU64>,
    activated: Option<NonZeroU64>,
}

impl ClaimTimes {
    /// Stores unix times in milliseconds, as far as known.
    #[must_use]
    #[inline]
    pub fn new(created_at_ms: Option<Millis>, activated_at_ms: Option<Millis>) -> Self {
        let known = |at_ms: Option<Millis>| at_ms.and_then(NonZeroU64::new);
        Self { created: known(created_at_ms), activated: known(activated_at_ms) }
    }

    /// Unix time in milliseconds at which it was granted.
    #[must_use]
    #[inline]
    pub fn created_at_ms(self) -> Option<Millis> {
        self.created.map(NonZeroU64::get)
    }

    /// Unix time in milliseconds at which it became active; none while it has not.
    #[must_use]
    #[inline]
    pub fn activated_at_ms(self) -> Option<Millis> {
        self.activated.map(NonZeroU64::get)
    }
}

/// Claim as replies show it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClaimView {
    /// Identity of the claim.
    pub id: ClaimId,
    /// Fence of this grant.
    pub fence: Fence,
    /// Pool that granted it.
    pub pool: PoolName,
    /// Registration of its worker: id, node, capacity.
    pub worker: Arc<WorkerRegistration>,
    /// State in the claim's lifecycle.
    pub state: ClaimState,
    /// Unix time in milliseconds at which it ends unless renewed, if it has a deadline.
    pub expires_at_ms: Option<Millis>,
    /// Parts of its request that it keeps, if any.
    pub spec: Option<Arc<ClaimSpec>>,
    /// GPUs that it holds in a shared pool: bit `i` stands for GPU `i`. None: it holds the whole worker.
    pub gpu_mask: Option<u64>,
    /// True if it is being released because a claim of higher priority evicted it.
    pub evicted: bool,
    /// Times of its creation and activation.
    pub times: ClaimTimes,
}

/// Resources that a claim holds.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum HeldResources<'a> {
    /// Whole worker with this capacity.
    Whole(&'a WorkerCapacity),
    /// Part of a shared worker.
    Share {
        /// Amounts that it holds.
        resources: &'a ResourceRequirements,
        /// GPUs, if it holds any.
        gpu: Option<HeldGpus<'a>>,
    },
}

/// GPUs that a claim holds, wholly or in part.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HeldGpus<'a> {
    /// Model of the GPUs, as granted.
    pub model: &'a str,
    /// Number of these GPUs.
    pub count: u32,
    /// Thousandths of each GPU.
    pub milli: u32,
    /// GPUs of the worker: bit `i` stands for GPU `i`.
    pub gpu_mask: u64,
}

impl ClaimView {
    /// Resources that the claim holds.
    #[must_use]
    pub fn held(&self) -> HeldResources<'_> {
        let capacity = &self.worker.spec.capacity;
        match (self.gpu_mask, &self.spec) {
            (Some(gpu_mask), Some(spec)) => {
                // Rows of an older version may lack the model: then the GPUs are not shown.
                let model = spec.granted_model.as_ref().or_else(|| Some(&capacity.gpu.as_ref()?.model));
                let gpu = spec.resources.gpu.as_ref().zip(model).map(|(gpu, model)| HeldGpus {
                    model,
                    count: gpu.count,
                    milli: gpu.milli,
                    gpu_mask,
                });
                HeldResources::Share { resources: &spec.resources, gpu }
            }
            _ => HeldResources::Whole(capacity),
        }
    }
}

/// Claim that was granted, or that held the key already.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClaimResult {
    /// Claim as replies show it.
    pub claim: ClaimView,
    /// True if the claim is new, false if it held the key before this request.
    pub created: bool,
}

impl ClaimResult {
    /// Kind of the reply with this result, for a reply that nobody reads.
    #[must_use]
    pub const fn as_unread(&self) -> UnreadReply {
        if self.created { UnreadReply::Grant } else { UnreadReply::Reference }
    }
}

/// Kind of a reply that shows a claim and that nobody reads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum UnreadReply {
    /// Reply that granted the claim, which is rolled back unless other replies show it.
    Grant,
    /// Reply to another request. If the grant was not read either, the last of them rolls the claim back.
    Reference,
}

/// State by which a listing of claims can be filtered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ListedState {
    /// State of a claim that holds its worker.
    Held(ClaimState),
    /// Queued for capacity or quota: the claim holds nothing yet.
    Waiting,
}

impl ListedState {
    /// All states in their order.
    pub const ALL: [Self; 4] = [
        Self::Held(ClaimState::Reserved),
        Self::Held(ClaimState::Active),
        Self::Held(ClaimState::Releasing),
        Self::Waiting,
    ];

    /// Name of the state on the wire.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Held(state) => state.as_str(),
            Self::Waiting => "waiting",
        }
    }
}

/// Part of the claims that wait in a listing of claims.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum WaitingSelection {
    /// Held claims are listed, and none that waits.
    #[default]
    Omitted,
    /// Claims that wait are listed after those that are held.
    AfterHeld,
    /// Claims that wait are listed, and none that is held.
    Only,
}

/// Filter of a claim listing.
#[derive(Debug, Clone, Default)]
pub struct ClaimFilter {
    /// Restricts to this namespace.
    pub namespace: Option<String>,
    /// Restricts to this pool (needs `namespace`).
    pub pool: Option<String>,
    /// Restricts to this worker.
    pub worker: Option<String>,
    /// Restricts to this tenant.
    pub tenant: Option<String>,
    /// Restricts held claims to these states; empty: any.
    pub states: Vec<ClaimState>,
    /// Whether claims that wait are listed too, or alone. They have no worker: with one in the filter none of them is.
    pub waiting: WaitingSelection,
    /// Restricts to claims created, or waiting, for at least so many milliseconds. Claims of unknown age are omitted.
    pub older_than_ms: Option<Millis>,
}

/// Page of a listing of claims: held ones first, then those that wait.
#[derive(Debug, Clone, PartialEq)]
pub struct ClaimPage {
    /// Held claims of this page.
    pub items: Vec<ClaimView>,
    /// Claims of this page that wait, by arrival.
    pub waiting: Vec<QueuedClaimView>,
    /// Opaque start of the next page; none on the last.
    pub next: Option<String>,
}

impl ClaimFilter {
    /// Restricts the listing to claims in these states; none: to those that are held.
    #[must_use]
    pub fn in_states(mut self, states: &[ListedState]) -> Self {
        let held = |state: &ListedState| match state {
            ListedState::Held(state) => Some(*state),
            ListedState::Waiting => None,
        };
        self.states = states.iter().filter_map(held).collect();
        self.waiting = match (states.contains(&ListedState::Waiting), self.states.is_empty()) {
            (false, _) => WaitingSelection::Omitted,
            (true, false) => WaitingSelection::AfterHeld,
            (true, true) => WaitingSelection::Only,
        };
        self
    }

    /// Checks every name, that a pool comes with its namespace, and that all states are those of live claims.
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
                "must be reserved, active, releasing or waiting: lost claims are not listed",
            ));
        }
        if self.older_than_ms.is_some_and(|ms| ms > limits::AMOUNT_MAX) {
            return Err(RequestError::invalid("older_than_ms", format!("must be at most {}", limits::AMOUNT_MAX)));
        }
        // Each state once: every claim is compared with all of them.
        self.states = ClaimState::HELD.into_iter().filter(|state| self.states.contains(state)).collect();
        Ok(self)
    }
}

/// Gang, and the shard that has its row.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct GangRef {
    /// Id of the gang: a fence, so never reused.
    pub id: Fence,
    /// Uid of its home's pool.
    pub pool: u64,
    /// Index of its home in that pool.
    pub shard: u16,
}
