//! Quotas: put, get, delete. Kept in the catalog, and as durable as a pool.

use super::Scheduler;
use super::change_log::{ChangeDetails, ChangeKind, ChangeResult, SpecDiff};
use super::listing::invalid_token;
use crate::limits;
use crate::model::request_error::{ObjectKind, Precondition, RequestError};
use crate::model::{ListPage, Quota, QuotaStatus, ResourceUsage, check_name};
use crate::persist::catalog::PoolCatalog;
use crate::scheduler::caller::with_current_caller;

impl Scheduler {
    /// Sets the quota of a tenant; without a tenant, that of all tenants of the namespace without a quota of their
    /// own. Returns true if none was set before. From then on no claim is admitted beyond it; held claims stay.
    /// Durable on return.
    ///
    /// # Errors
    /// `Invalid` naming the field; `FailedPrecondition` beyond the limit of quotas.
    pub async fn put_quota(
        &self,
        namespace: &str,
        tenant: Option<&str>,
        quota: Quota,
    ) -> Result<(bool, QuotaStatus), RequestError> {
        let name = quota_name(namespace, tenant)?;
        let created = self.set_quota(name.clone(), Some(quota)).await?.is_none();
        Ok((created, self.quota_status(&name)))
    }

    /// Quota of a tenant and its usage; without a tenant, the quota of tenants of the namespace without one of their
    /// own.
    ///
    /// # Errors
    /// `Invalid` for a malformed name.
    pub fn get_quota(&self, namespace: &str, tenant: Option<&str>) -> Result<QuotaStatus, RequestError> {
        self.check_serving()?;
        Ok(self.quota_status(&quota_name(namespace, tenant)?))
    }

    /// Removes a quota: that of the namespace applies from then on, if set. Durable on return.
    ///
    /// # Errors
    /// `NotFound` if none was set.
    pub async fn delete_quota(&self, namespace: &str, tenant: Option<&str>) -> Result<(), RequestError> {
        self.set_quota(quota_name(namespace, tenant)?, None).await.map(drop)
    }

    /// Sets or removes a quota and returns the previous one.
    async fn set_quota(&self, name: String, quota: Option<Quota>) -> Result<Option<Quota>, RequestError> {
        let scheduler = self.clone();
        // Once begun it is completed even if the caller leaves, or the store and this process would disagree.
        let task = self.environment().spawn(
            "change of a quota",
            with_current_caller(async move { scheduler.run_quota_change(&name, quota).await }),
        );
        task.await.unwrap_or(Err(RequestError::DeadlineExceeded))
    }

    async fn run_quota_change(&self, name: &str, quota: Option<Quota>) -> Result<Option<Quota>, RequestError> {
        let kind = if quota.is_some() { ChangeKind::PutQuota } else { ChangeKind::DeleteQuota };
        let mut change = self.change(kind, ChangeDetails::of_quota(name));
        let _one_at_a_time = self.shared.pool_change_lock.lock().await;
        let before = self.dispatch().keys.tenants.quota(name);
        change.details().difference = match (&before, &quota) {
            (Some(before), Some(quota)) => Some(SpecDiff::between(before, quota)),
            (None, Some(quota)) => Some(SpecDiff::from_defaults(quota)),
            (_, None) => None,
        };
        let result = match (&before, &quota) {
            (_, None) => ChangeResult::Done,
            (None, Some(_)) => ChangeResult::Created,
            (before, quota) if before == quota => ChangeResult::Unchanged,
            _ => ChangeResult::Replaced,
        };
        change.outcome(result, self.store_quota(name, quota, before).await)
    }

    /// Stores a quota, or its removal, and brings it into effect; the caller must hold the change lock.
    async fn store_quota(
        &self,
        name: &str,
        quota: Option<Quota>,
        before: Option<Quota>,
    ) -> Result<Option<Quota>, RequestError> {
        self.check_serving()?;
        quota.as_ref().map_or(Ok(()), Quota::check)?;
        let tenants = &self.dispatch().keys.tenants;
        match (&before, &quota) {
            (None, None) => return Err(RequestError::NotFound(ObjectKind::Quota)),
            (None, Some(_)) if tenants.quotas_len() >= limits::QUOTAS_MAX => {
                return Err(Precondition::QuotaLimit.into());
            }
            _ => {}
        }
        let catalog = self.catalog()?;
        let put = |rows: &PoolCatalog, quota: &Option<Quota>| rows.put_quota(name, quota.as_ref());
        self.change_catalog(catalog, |rows| put(rows, &quota), |rows| put(rows, &before)).await?;
        tenants.set_quota(name, quota);
        self.dispatch().with_work(|work| self.dispatch().search_quotas(work));
        Ok(before)
    }

    /// Lists the quotas that are set, by name, after `token`.
    ///
    /// # Errors
    /// `Unavailable` while the service is loading; `Invalid` for a token of no page.
    pub fn list_quotas(&self, token: Option<&str>, limit: usize) -> Result<ListPage<QuotaStatus>, RequestError> {
        self.check_serving()?;
        let limit = limit.clamp(1, limits::PAGE_ITEMS_MAX);
        if let Some(token) = token {
            let (namespace, tenant) = token.split_once('/').map_or((token, None), |(ns, tenant)| (ns, Some(tenant)));
            quota_name(namespace, tenant).map_err(|_| invalid_token())?;
        }
        let names = self.dispatch().keys.tenants.quotas_after(token, limit + 1);
        let more = names.len() > limit;
        let items: Vec<QuotaStatus> = names.iter().take(limit).map(|(name, _)| self.quota_status(name)).collect();
        let next = more.then(|| names[limit - 1].0.clone());
        Ok(ListPage { items, next })
    }

    fn quota_status(&self, name: &str) -> QuotaStatus {
        let tenants = &self.dispatch().keys.tenants;
        match name.split_once('/') {
            Some((namespace, tenant)) => {
                let (quota, source, used) = tenants.quota_usage(name);
                let waiting = tenants.find_by_name(name).map_or(0, |tenant| self.dispatch().waiting_for_quota(&tenant));
                let (namespace, tenant) = (namespace.to_owned(), Some(tenant.to_owned()));
                QuotaStatus { namespace, tenant, quota, source, used, waiting }
            }
            None => {
                let quota_set = tenants.quota(name);
                let source = if quota_set.is_some() {
                    crate::model::QuotaSource::Namespace
                } else {
                    crate::model::QuotaSource::None
                };
                let quota = quota_set.unwrap_or_default();
                let namespace = name.to_owned();
                QuotaStatus { namespace, tenant: None, quota, source, used: ResourceUsage::default(), waiting: 0 }
            }
        }
    }
}

fn quota_name(namespace: &str, tenant: Option<&str>) -> Result<String, RequestError> {
    check_name("namespace", namespace)?;
    match tenant {
        Some(tenant) => check_name("tenant", tenant).map(|()| format!("{namespace}/{tenant}")),
        None => Ok(namespace.to_owned()),
    }
}
