//! Claims and queued claims as tables show them.

use super::TENANT_DEFAULT;
use crate::cli::output::{describe_resources, duration, nonzero_text, property_list, relative_time};
use crate::client::{ClaimDetails, KeyStatus, QueuedClaimDetails};
use crate::environment::Clock;
use crate::model::ClaimState;

/// Formats the status of a key, one property a line.
pub(super) fn status_text(status: &KeyStatus) -> String {
    match status {
        KeyStatus::Claim(claim) => claim_text(claim),
        KeyStatus::Waiting(queued) => queued_text(queued),
    }
}

/// Headings of a table of held claims.
pub(super) const HELD_HEADINGS: &str = "CLAIM,TENANT,STATE,ENDS,POOL,WORKER,NODE,HOLDS,>FENCE,AGE";

/// Headings of a table of claims that wait.
pub(super) const WAITING_HEADINGS: &str = "CLAIM,TENANT,STATE,FOR,POOLS,>PRIORITY,>AHEAD,WAITED,LEFT,ESTIMATE";

/// Formats a held claim as a row of a table.
pub(super) fn held_row(claim: &ClaimDetails, now_ms: u64) -> Vec<String> {
    vec![
        format!("{}/{}", claim.namespace, claim.key),
        claim.tenant.clone(),
        claim.state.as_str().to_owned(),
        relative_time(claim.expires_at_ms, now_ms),
        claim.pool.clone(),
        claim.worker.clone(),
        claim.node.clone().unwrap_or_default(),
        describe_resources(&claim.resources),
        claim.fence.to_string(),
        age(claim, now_ms),
    ]
}

/// Formats a claim that waits as a row of a table.
pub(super) fn waiting_row(queued: &QueuedClaimDetails) -> Vec<String> {
    vec![
        format!("{}/{}", queued.namespace, queued.key),
        queued.tenant.clone(),
        "waiting".to_owned(),
        queued.reason.clone(),
        queued.pools.join(","),
        queued.priority.to_string(),
        queued.ahead.to_string(),
        duration(queued.waited_ms),
        duration(queued.left_ms),
        queued.estimate_ms.map(duration).unwrap_or_default(),
    ]
}

fn queued_text(queued: &QueuedClaimDetails) -> String {
    let pools: Vec<_> = queued.pools.iter().map(|pool| format!("{}/{pool}", queued.namespace)).collect();
    property_list(&[
        ("claim", format!("{}/{}", queued.namespace, queued.key)),
        ("tenant", queued.tenant.clone()),
        ("state", "waiting".to_owned()),
        ("for", queued.reason.clone()),
        ("pools", pools.join(", ")),
        ("priority", nonzero_text(queued.priority)),
        ("ahead", queued.ahead.to_string()),
        ("waited", duration(queued.waited_ms)),
        ("left", duration(queued.left_ms)),
        ("estimate", queued.estimate_ms.map(duration).unwrap_or_default()),
    ])
}

/// Formats the name of a claim: `key`, or `tenant:key` for another tenant than the default one.
pub(in crate::cli) fn claim_label(claim: &ClaimDetails) -> String {
    if claim.tenant == TENANT_DEFAULT { claim.key.clone() } else { format!("{}:{}", claim.tenant, claim.key) }
}

/// Formats the age of a claim; empty if it is unknown.
pub(super) fn age(claim: &ClaimDetails, now_ms: u64) -> String {
    claim.created_at_ms.map(|at| duration(now_ms.saturating_sub(at))).unwrap_or_default()
}

/// Formats a claim on one line.
pub(in crate::cli) fn claim_line(claim: &ClaimDetails, now_ms: u64) -> String {
    let with = |before: &str, text: String, after: &str| match text.is_empty() {
        true => text,
        false => format!("{before}{text}{after}"),
    };
    let age = with(", ", age(claim, now_ms), " old");
    let ends = with(", ends ", relative_time(claim.expires_at_ms, now_ms), "");
    let resources = with(": ", describe_resources(&claim.resources), "");
    let (label, state) = (claim_label(claim), claim.state.as_str());
    format!("{label} ({state}{age}{ends}), fence {}{resources}", claim.fence)
}

/// Formats a claim, one property a line, with the command that comes next.
pub(super) fn claim_text(claim: &ClaimDetails) -> String {
    let now_ms = Clock::system().unix_ms();
    let name = format!("{}/{}", claim.namespace, claim.key);
    let tenant = if claim.tenant == TENANT_DEFAULT { String::new() } else { format!(" --tenant {}", claim.tenant) };
    let target = format!("{name}{tenant} --fence {}", claim.fence);
    let next = match claim.state {
        ClaimState::Reserved => format!("hotpool claims confirm {target}"),
        ClaimState::Releasing => format!("hotpool claims release {target} --phase finish"),
        ClaimState::Active => format!("hotpool claims release {target}"),
        ClaimState::Lost => String::new(),
    };
    property_list(&[
        ("claim", name),
        ("tenant", claim.tenant.clone()),
        ("state", claim.state.as_str().to_owned()),
        ("age", age(claim, now_ms)),
        ("activated", relative_time(claim.activated_at_ms, now_ms)),
        ("ends", relative_time(claim.expires_at_ms, now_ms)),
        ("pool", format!("{}/{}", claim.namespace, claim.pool)),
        ("worker", claim.worker.clone()),
        ("node", claim.node.clone().unwrap_or_default()),
        ("holds", describe_resources(&claim.resources)),
        ("priority", nonzero_text(claim.priority)),
        ("preemptible", if claim.preemptible { "yes" } else { "" }.to_owned()),
        ("fence", claim.fence.to_string()),
        ("next", next),
    ])
}
