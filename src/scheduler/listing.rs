//! Pages: all rows once, while others come and go. A page starts at a cursor of places (shard, ordinal), not of
//! counts, and a worker keeps its place while it lives, so what stays is seen exactly once.

use std::sync::Arc;

use super::claim_operations::claim_view;
use super::{Scheduler, recv_outcome};
use crate::admission::pool_registry::Pool;
use crate::engine::ListingSlice;
use crate::limits;
use crate::model::request_error::{ObjectKind, RequestError};
use crate::model::{ClaimFilter, ClaimView, ListPage, PoolName, PoolStatus, WorkerId, WorkerView};
use crate::shard::{ClaimSieve, Command, ReplyPayload, ReplySender};

impl Scheduler {
    /// Claims that wait for room in the pool; 0 if there is no such pool.
    #[must_use]
    pub fn waiting(&self, pool: &PoolName) -> usize {
        self.dispatch().pools.load().get(pool).map_or(0, |pool| pool.wait_queue.waiting())
    }

    /// Pools by name, from the one after `token` on.
    ///
    /// # Errors
    /// `loading`; `Invalid` for a token that is no page's.
    pub async fn list_pools(&self, token: Option<&str>, limit: usize) -> Result<ListPage<PoolStatus>, RequestError> {
        self.check_serving()?;
        let limit = limit.clamp(1, limits::PAGE_ITEMS_MAX);
        token.map_or(Ok(()), pool_name)?;
        let pools = self.sorted_pools(|name| token.is_none_or(|token| name > token));
        let more = pools.len() > limit;
        let mut items = Vec::with_capacity(pools.len().min(limit));
        for pool in pools.iter().take(limit) {
            items.push(self.status(pool).await);
        }
        let next = items.last().filter(|_| more).map(|last: &PoolStatus| last.name.to_string());
        Ok(ListPage { items, next })
    }

    /// Workers of a pool, from `token` on.
    ///
    /// # Errors
    /// `NotFound`; `Invalid` for a token that no page gave.
    pub async fn list_workers(
        &self,
        pool: &PoolName,
        token: Option<&str>,
        limit: usize,
    ) -> Result<ListPage<WorkerView>, RequestError> {
        self.check_serving()?;
        let limit = limit.clamp(1, limits::PAGE_ITEMS_MAX);
        let pool = self.pool(pool)?;
        let (mut shard, mut from) = token.map_or(Ok((0, 0)), cursor)?;
        let mut items = Vec::new();
        for _ in 0..limits::PAGE_SLICES_MAX {
            if (shard as usize) >= pool.shards.len() || items.len() == limit {
                break;
            }
            let (reply, answer) = ReplySender::oneshot();
            pool.shards[shard as usize].push_or_reject(Command::ListWorkers(from, limit - items.len(), reply));
            let ReplyPayload::Workers(ListingSlice { rows, next }) = recv_outcome(answer).await? else {
                unreachable!("workers are asked for")
            };
            items.extend(rows.into_iter().map(|(_, look)| self.worker_view(&pool, shard, look)));
            (shard, from) = next.map_or((shard + 1, 0), |next| (shard, next));
        }
        let next = ((shard as usize) < pool.shards.len()).then(|| format!("{shard}-{from}"));
        Ok(ListPage { items, next })
    }

    /// Held claims that pass the filter, from `token` on.
    ///
    /// # Errors
    /// `Invalid` for a filter that names a pool without a namespace, or a token that no page gave; the reason of a
    /// shard that does not serve.
    pub async fn list_claims(
        &self,
        filter: &ClaimFilter,
        token: Option<&str>,
        limit: usize,
    ) -> Result<ListPage<ClaimView>, RequestError> {
        self.check_serving()?;
        let limit = limit.clamp(1, limits::PAGE_ITEMS_MAX);
        if filter.pool.is_some() && filter.namespace.is_none() {
            return Err(RequestError::invalid("namespace", "must be given with pool"));
        }
        let worker = filter.worker.as_deref().map(WorkerId::new).transpose()?;
        // By the clock that claims are dated by, so that no claim is younger than 0.
        let clock = &self.dispatch().clock;
        let created_by_ms = filter.older_than_ms.map(|ms| clock.unix_of(clock.engine_now_ms()).saturating_sub(ms));
        let sieve = ClaimSieve { worker, tenant: filter.tenant.clone(), states: filter.states.clone(), created_by_ms };
        let (start, (mut shard, mut from)) = token.map_or(Ok(("", (0, 0))), |token| {
            let (pool, rest) = token.split_once(':').ok_or_else(invalid_token)?;
            pool_name(pool)?;
            cursor(rest).map(|cursor| (pool, cursor))
        })?;
        let pools = self.sorted_pools(|name| name >= start && matches_filter(filter, name));
        let mut items = Vec::new();
        let mut slices = 0;
        for pool in &pools {
            if pool.name.as_str() != start {
                (shard, from) = (0, 0);
            }
            while (shard as usize) < pool.shards.len() {
                let elsewhere = sieve.worker.as_ref().is_some_and(|id| id.shard(pool.shards.len() as u16) != shard);
                if !elsewhere {
                    if items.len() == limit || slices == limits::PAGE_SLICES_MAX {
                        return Ok(ListPage { items, next: Some(format!("{}:{shard}-{from}", pool.name)) });
                    }
                    slices += 1;
                    let (reply, answer) = ReplySender::oneshot();
                    let want = limit - items.len();
                    pool.shards[shard as usize].push_or_reject(Command::ListClaims(from, want, sieve.clone(), reply));
                    let ListingSlice { rows, next } = match recv_outcome(answer).await {
                        Ok(ReplyPayload::Claims(slice)) => slice,
                        // Its claims are gone with it.
                        Err(RequestError::NotFound(ObjectKind::Pool)) => ListingSlice { rows: Vec::new(), next: None },
                        Err(refusal) => return Err(refusal),
                        Ok(_) => unreachable!("claims are asked for"),
                    };
                    items.extend(rows.into_iter().map(|(id, answer)| claim_view(&id, &pool.name, answer)));
                    if let Some(next) = next {
                        from = next;
                        continue;
                    }
                }
                (shard, from) = (shard + 1, 0);
            }
        }
        Ok(ListPage { items, next: None })
    }

    /// The figures of every shard.
    pub async fn debug_shards(&self) -> serde_json::Value {
        let mut pools = serde_json::Map::new();
        for pool in self.sorted_pools(|_| true) {
            let status = self.status(&pool).await;
            pools.insert(pool.name.to_string(), serde_json::json!(status.shards));
        }
        serde_json::json!({ "keys": self.dispatch().keys.len(), "pools": pools })
    }

    fn sorted_pools(&self, keep: impl Fn(&str) -> bool) -> Vec<Arc<Pool>> {
        let pools = self.dispatch().pools.load();
        let mut kept: Vec<Arc<Pool>> = pools.iter().filter(|pool| keep(pool.name.as_str())).cloned().collect();
        kept.sort_by(|a, b| a.name.cmp(&b.name));
        kept
    }
}

fn matches_filter(filter: &ClaimFilter, name: &str) -> bool {
    let (namespace, pool) = name.split_once('/').unwrap_or_default();
    filter.namespace.as_deref().is_none_or(|wanted| wanted == namespace)
        && filter.pool.as_deref().is_none_or(|wanted| wanted == pool)
}

/// Pages of pools, and of claims by pool, go on from a name.
fn pool_name(token: &str) -> Result<(), RequestError> {
    PoolName::parse(token).map(drop).map_err(|_| invalid_token())
}

fn cursor(token: &str) -> Result<(u16, u32), RequestError> {
    let (shard, from) = token.split_once('-').ok_or_else(invalid_token)?;
    Ok((shard.parse().map_err(|_| invalid_token())?, from.parse().map_err(|_| invalid_token())?))
}

pub(super) fn invalid_token() -> RequestError {
    RequestError::invalid("page_token", "must be a next_page_token of this listing")
}
