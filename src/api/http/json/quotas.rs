//! Response bodies for quotas and their usage.

use serde::Serialize;

use crate::model::{Quota, QuotaSource, QuotaStatus, ResourceUsage};

/// Quota with the usage of its tenant.
#[derive(Serialize)]
pub(in crate::api::http) struct QuotaJson<'a> {
    namespace: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    tenant: Option<&'a str>,
    source: QuotaSource,
    #[serde(flatten)]
    quota: &'a Quota,
    /// Absent for a namespace, whose quota applies to each tenant separately.
    #[serde(skip_serializing_if = "Option::is_none")]
    used: Option<ResourceUsage>,
    #[serde(skip_serializing_if = "Option::is_none")]
    waiting: Option<u64>,
}

impl<'a> From<&'a QuotaStatus> for QuotaJson<'a> {
    fn from(status: &'a QuotaStatus) -> Self {
        let QuotaStatus { namespace, tenant, quota, source, used, waiting } = status;
        let of_tenant = tenant.is_some();
        Self {
            namespace,
            tenant: tenant.as_deref(),
            source: *source,
            quota,
            used: of_tenant.then_some(*used),
            waiting: of_tenant.then_some(*waiting),
        }
    }
}

/// `{"quota":{...}}`: a single quota.
#[derive(Serialize)]
pub(in crate::api::http) struct QuotaResponseBody<'a> {
    quota: QuotaJson<'a>,
}

impl<'a> From<&'a QuotaStatus> for QuotaResponseBody<'a> {
    fn from(status: &'a QuotaStatus) -> Self {
        Self { quota: status.into() }
    }
}
