//! Quotas of tenants and namespaces.

use std::fmt;
use std::str::FromStr;

use serde::de::IgnoredAny;
use serde::{Deserialize, Serialize};

use super::{Client, ClientError, CreateReply, ItemList, ListRange, RawJson};
use crate::model::request_error::RequestError;
use crate::model::{Quota, QuotaSource, ResourceUsage, check_name};

/// Owner of a quota: `NS/TENANT`, or `NS` for each tenant of the namespace that has no quota of its own.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct QuotaTarget(String);

impl FromStr for QuotaTarget {
    type Err = RequestError;

    fn from_str(text: &str) -> Result<Self, RequestError> {
        let (namespace, tenant) = text.split_once('/').map_or((text, None), |(ns, tenant)| (ns, Some(tenant)));
        check_name("namespace", namespace)?;
        tenant.map_or(Ok(()), |tenant| check_name("tenant", tenant))?;
        Ok(Self(text.to_owned()))
    }
}

impl fmt::Display for QuotaTarget {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl QuotaTarget {
    fn path(&self) -> String {
        format!("/v1/quotas/{self}")
    }
}

/// Quota in effect for a tenant, and its use.
#[derive(Debug, Clone, Deserialize)]
pub struct QuotaDetails {
    /// Namespace of the tenant.
    pub namespace: String,
    /// Tenant; `None` for the quota of a namespace.
    pub tenant: Option<String>,
    /// Origin of the quota.
    pub source: QuotaSource,
    /// Bounds and weight of the quota.
    #[serde(flatten)]
    pub quota: Quota,
    /// Amounts that the tenant's claims hold; `None` for the quota of a namespace.
    pub used: Option<ResourceUsage>,
    /// Number of claims that wait because of the quota; `None` for the quota of a namespace.
    pub waiting: Option<u64>,
}

/// Answer that holds one quota.
#[derive(Debug, Clone, Deserialize)]
pub struct QuotaReply {
    /// Quota after the call.
    pub quota: QuotaDetails,
}

impl Client {
    /// Sets a quota: a [`Quota`], or a JSON object with some of its fields. Bounds that are left out do not apply. Claims
    /// that are held already stay.
    ///
    /// # Errors
    /// `INVALID_ARGUMENT` for an amount out of its limit.
    pub async fn put_quota(
        &self,
        target: &QuotaTarget,
        quota: &impl Serialize,
    ) -> Result<CreateReply<QuotaReply>, ClientError> {
        self.put(&target.path(), quota).await
    }

    /// Reads the quota in effect for a tenant or a namespace.
    ///
    /// # Errors
    /// Failures to reach the service; a target without a quota is answered with [`QuotaSource::None`].
    pub async fn get_quota(&self, target: &QuotaTarget) -> Result<RawJson<QuotaReply>, ClientError> {
        self.get(&target.path()).await
    }

    /// Lists the quotas that were set.
    ///
    /// # Errors
    /// `INVALID_ARGUMENT` for a page token of another listing.
    pub async fn list_quotas(&self, range: ListRange) -> Result<ItemList<QuotaDetails>, ClientError> {
        self.list("/v1/quotas", &[], range).await
    }

    /// Removes a quota that was set.
    ///
    /// # Errors
    /// `NOT_FOUND` for a target that has no quota of its own.
    pub async fn delete_quota(&self, target: &QuotaTarget) -> Result<RawJson<IgnoredAny>, ClientError> {
        self.delete(&target.path()).await
    }
}
