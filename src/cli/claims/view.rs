//! What a key holds or waits for, as the service shows it, and as it is printed.

use serde::Deserialize;

use super::TENANT_DEFAULT;
use crate::cli::output::{ClaimedResources, describe_resources, duration, property_list, relative_time};
use crate::clock::Clock;

/// A claim as the service shows it.
#[derive(Debug, Deserialize)]
pub(in crate::cli) struct ClaimDetails {
    pub(super) key: String,
    pub(super) tenant: String,
    pub(super) fence: u64,
    pub(super) namespace: String,
    pub(super) pool: String,
    pub(super) worker: String,
    pub(super) node: Option<String>,
    pub(super) state: String,
    #[serde(default)]
    pub(in crate::cli) resources: ClaimedResources,
    #[serde(default)]
    priority: u64,
    #[serde(default)]
    preemptible: bool,
    pub(super) expires_at_ms: Option<u64>,
    created_at_ms: Option<u64>,
    activated_at_ms: Option<u64>,
}

/// A claim that waits, as the service shows it.
#[derive(Debug, Deserialize)]
pub(super) struct QueuedClaimDetails {
    key: String,
    tenant: String,
    namespace: String,
    pools: Vec<String>,
    reason: String,
    priority: u64,
    ahead: u64,
    waited_ms: u64,
    left_ms: u64,
    estimate_ms: Option<u64>,
}

impl QueuedClaimDetails {
    pub(super) fn sheet(&self) -> String {
        property_list(&[
            ("claim", format!("{}/{}", self.namespace, self.key)),
            ("tenant", self.tenant.clone()),
            ("state", "waiting".to_owned()),
            ("for", self.reason.clone()),
            (
                "pools",
                self.pools.iter().map(|pool| format!("{}/{pool}", self.namespace)).collect::<Vec<_>>().join(", "),
            ),
            ("priority", nonzero_text(self.priority)),
            ("ahead", self.ahead.to_string()),
            ("waited", duration(self.waited_ms)),
            ("left", duration(self.left_ms)),
            ("estimate", self.estimate_ms.map(duration).unwrap_or_default()),
        ])
    }
}

/// A number that is only shown if there is something to say.
fn nonzero_text(number: u64) -> String {
    if number == 0 { String::new() } else { number.to_string() }
}

impl ClaimDetails {
    /// `key`, with the tenant in front if it is not the default one.
    pub(in crate::cli) fn name(&self) -> String {
        if self.tenant == TENANT_DEFAULT { self.key.clone() } else { format!("{}:{}", self.tenant, self.key) }
    }

    /// How long ago it was created; empty: the service does not know.
    pub(super) fn age(&self, now_ms: u64) -> String {
        self.created_at_ms.map(|at| duration(now_ms.saturating_sub(at))).unwrap_or_default()
    }

    /// On one line.
    pub(in crate::cli) fn line(&self, now_ms: u64) -> String {
        let ends = self.expires_at_ms.map(|at| format!(", ends {}", relative_time(at, now_ms))).unwrap_or_default();
        let share =
            Some(describe_resources(&self.resources)).filter(|text| !text.is_empty()).map(|text| format!(": {text}"));
        let age = Some(self.age(now_ms)).filter(|age| !age.is_empty()).map(|age| format!(", {age} old"));
        let (age, share) = (age.unwrap_or_default(), share.unwrap_or_default());
        format!("{} ({}{age}{ends}), fence {}{share}", self.name(), self.state, self.fence)
    }

    pub(super) fn sheet(&self) -> String {
        let now_ms = Clock::system().unix_ms();
        let ends = self.expires_at_ms.map(|at| relative_time(at, now_ms)).unwrap_or_default();
        let activated = self.activated_at_ms.map(|at| relative_time(at, now_ms)).unwrap_or_default();
        let name = format!("{}/{}", self.namespace, self.key);
        let tenant = if self.tenant == TENANT_DEFAULT { String::new() } else { format!(" --tenant {}", self.tenant) };
        let next = match self.state.as_str() {
            "reserved" => format!("hotpool claims confirm {name}{tenant} --fence {}", self.fence),
            "releasing" => format!("hotpool claims release {name}{tenant} --fence {} --phase finish", self.fence),
            "active" => format!("hotpool claims release {name}{tenant} --fence {}", self.fence),
            _ => String::new(),
        };
        property_list(&[
            ("claim", name),
            ("tenant", self.tenant.clone()),
            ("state", self.state.clone()),
            ("age", self.age(now_ms)),
            ("activated", activated),
            ("ends", ends),
            ("pool", format!("{}/{}", self.namespace, self.pool)),
            ("worker", self.worker.clone()),
            ("node", self.node.clone().unwrap_or_default()),
            ("holds", describe_resources(&self.resources)),
            ("priority", nonzero_text(self.priority)),
            ("preemptible", if self.preemptible { "yes" } else { "" }.to_owned()),
            ("fence", self.fence.to_string()),
            ("next", next),
        ])
    }
}

/// What a key holds, or what it waits for.
#[derive(Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum KeyStatus {
    Claim(ClaimDetails),
    Waiting(QueuedClaimDetails),
}
