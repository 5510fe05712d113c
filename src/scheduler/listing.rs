//! Listings in pages that show every row exactly once while others come and go. A page starts at a cursor of (shard,
//! ordinal), not at a count, and a worker keeps its ordinal while it lives; for claims that wait the cursor is an arrival
//! number.

use std::sync::Arc;

use tokio::sync::oneshot;

use super::{Scheduler, recv_outcome};
use crate::admission::pool_registry::Pool;
use crate::admission::queue::{ListingStep, WaitingFilter, WaitingPosition};
use crate::engine::ListingSlice;
use crate::limits;
use crate::model::request_error::{ObjectKind, RequestError};
use crate::model::{
    ClaimFilter, ClaimPage, ClaimView, ListPage, PoolName, PoolStatus, QueuedClaimView, WaitingSelection, WorkerId,
    WorkerView,
};
use crate::shard::{Command, ShardClaimFilter};

/// Beginning of a token of claims that wait. No pool has such a name, with which the tokens of held claims begin.
const WAITING_TOKEN: &str = "waiting:";

impl Scheduler {
    /// Number of claims that wait for capacity in the pool; 0 if there is no such pool.
    #[must_use]
    pub fn waiting(&self, pool: &PoolName) -> usize {
        self.dispatch().pools.load().get(pool).map_or(0, |pool| pool.wait_queue.waiting())
    }

    /// Lists pools by name, after `token`.
    ///
    /// # Errors
    /// `Unavailable` while the service is loading; `Invalid` for a token of no page.
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

    /// Lists workers of a pool, from `token` on.
    ///
    /// # Errors
    /// `NotFound`; `Invalid` for a token of no page.
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
            let (reply, answer) = oneshot::channel();
            pool.shards[shard as usize].push_or_reject(Command::ListWorkers(from, limit - items.len(), reply));
            let ListingSlice { rows, next } = recv_outcome(answer).await?;
            items.extend(rows.into_iter().map(|(_, worker)| self.worker_view(&pool, shard, worker)));
            (shard, from) = next.map_or((shard + 1, 0), |next| (shard, next));
        }
        let next = ((shard as usize) < pool.shards.len()).then(|| format!("{shard}-{from}"));
        Ok(ListPage { items, next })
    }

    /// Lists claims that pass the filter, from `token` on: held ones, and if the filter selects them those that wait, which
    /// come after all held ones.
    ///
    /// # Errors
    /// `Invalid` for a filter with a pool but no namespace, or for a token of no page; the reason of a shard that does
    /// not serve.
    pub async fn list_claims(
        &self,
        filter: &ClaimFilter,
        token: Option<&str>,
        limit: usize,
    ) -> Result<ClaimPage, RequestError> {
        self.check_serving()?;
        let limit = limit.clamp(1, limits::PAGE_ITEMS_MAX);
        if filter.pool.is_some() && filter.namespace.is_none() {
            return Err(RequestError::invalid("namespace", "must be given with pool"));
        }
        let (held, from) = match (token.and_then(|token| token.strip_prefix(WAITING_TOKEN)), filter.waiting) {
            (None, WaitingSelection::Omitted) => (self.list_held(filter, token, limit).await?, None),
            (None, WaitingSelection::AfterHeld) => {
                let held = self.list_held(filter, token, limit).await?;
                let is_at_end = held.next.is_none();
                (held, is_at_end.then_some(WaitingPosition::START))
            }
            (None, WaitingSelection::Only) if token.is_none() => {
                (ListPage { items: Vec::new(), next: None }, Some(WaitingPosition::START))
            }
            (Some(position), WaitingSelection::AfterHeld | WaitingSelection::Only) => {
                (ListPage { items: Vec::new(), next: None }, Some(waiting_position(position)?))
            }
            // Tokens of held claims have the name of a pool, which has another form.
            (Some(_), WaitingSelection::Omitted) | (None, WaitingSelection::Only) => return Err(invalid_token()),
        };
        let Some(from) = from else { return Ok(ClaimPage { items: held.items, waiting: Vec::new(), next: held.next }) };
        let (waiting, next) = self.list_waiting(filter, from, limit - held.items.len()).await?;
        Ok(ClaimPage { items: held.items, waiting, next })
    }

    /// Lists claims that wait and pass the filter, at most `limit`, and the token of the next page.
    async fn list_waiting(
        &self,
        filter: &ClaimFilter,
        from: WaitingPosition,
        limit: usize,
    ) -> Result<(Vec<QueuedClaimView>, Option<String>), RequestError> {
        // Whoever waits has no worker.
        if filter.worker.is_some() {
            return Ok((Vec::new(), None));
        }
        let pool = filter.namespace.as_deref().zip(filter.pool.as_deref());
        let filter = WaitingFilter {
            pool: pool.map(|(namespace, pool)| PoolName::new(namespace, pool)).transpose()?,
            namespace: filter.namespace.clone(),
            tenant: filter.tenant.clone(),
            waited_ms: filter.older_than_ms,
        };
        let (mut views, mut next) = (Vec::new(), Some(from));
        if limit > 0 {
            let mut listing = self.dispatch().list_waiting(filter, from, limit);
            while listing.step() == ListingStep::Unfinished {
                // Many queues may be read, each in several slices.
                self.environment().yield_now().await;
            }
            (views, next) = listing.into_page();
        }
        let token = |WaitingPosition { arrival, member }: WaitingPosition| format!("{WAITING_TOKEN}{arrival}-{member}");
        Ok((views, next.map(token)))
    }

    /// Lists held claims that pass the filter, from `token` on.
    async fn list_held(
        &self,
        filter: &ClaimFilter,
        token: Option<&str>,
        limit: usize,
    ) -> Result<ListPage<ClaimView>, RequestError> {
        let worker = filter.worker.as_deref().map(WorkerId::new).transpose()?;
        // Uses the clock that dates claims, so that no claim has a negative age.
        let clock = &self.dispatch().clock;
        let created_by_ms = filter.older_than_ms.map(|ms| clock.unix_of(clock.engine_now_ms()).saturating_sub(ms));
        let shard_filter =
            ShardClaimFilter { worker, tenant: filter.tenant.clone(), states: filter.states.clone(), created_by_ms };
        let (start, (mut shard, mut from)) = token.map_or(Ok(("", (0, 0))), |token| {
            let (pool, position) = token.split_once(':').ok_or_else(invalid_token)?;
            pool_name(pool)?;
            cursor(position).map(|cursor| (pool, cursor))
        })?;
        let pools = self.sorted_pools(|name| name >= start && matches_filter(filter, name));
        let mut items = Vec::new();
        let mut slices = 0;
        for pool in &pools {
            if pool.name.as_str() != start {
                (shard, from) = (0, 0);
            }
            while (shard as usize) < pool.shards.len() {
                let holds_no_match =
                    shard_filter.worker.as_ref().is_some_and(|id| id.shard(pool.shards.len() as u16) != shard);
                if !holds_no_match {
                    if items.len() == limit || slices == limits::PAGE_SLICES_MAX {
                        return Ok(ListPage { items, next: Some(format!("{}:{shard}-{from}", pool.name)) });
                    }
                    slices += 1;
                    let (reply, answer) = oneshot::channel();
                    let remaining = limit - items.len();
                    pool.shards[shard as usize].push_or_reject(Command::ListClaims(
                        from,
                        remaining,
                        shard_filter.clone(),
                        reply,
                    ));
                    let ListingSlice { rows, next } = match recv_outcome(answer).await {
                        Ok(slice) => slice,
                        // The claims ended with the pool.
                        Err(RequestError::NotFound(ObjectKind::Pool)) => ListingSlice { rows: Vec::new(), next: None },
                        Err(error) => return Err(error),
                    };
                    items.extend(rows.into_iter().map(|(id, answer)| self.view(&id, &pool.name, answer)));
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

    /// Figures of every shard, as JSON.
    pub async fn debug_shards(&self) -> serde_json::Value {
        let mut pools = serde_json::Map::new();
        for pool in self.sorted_pools(|_| true) {
            let status = self.status(&pool).await;
            pools.insert(pool.name.to_string(), serde_json::json!(status.shards));
        }
        serde_json::json!({ "keys": self.dispatch().keys.len(), "pools": pools })
    }

    fn sorted_pools(&self, matches: impl Fn(&str) -> bool) -> Vec<Arc<Pool>> {
        let pools = self.dispatch().pools.load();
        let mut selected: Vec<Arc<Pool>> = pools.iter().filter(|pool| matches(pool.name.as_str())).cloned().collect();
        selected.sort_by(|a, b| a.name.cmp(&b.name));
        selected
    }
}

fn matches_filter(filter: &ClaimFilter, name: &str) -> bool {
    let (namespace, pool) = name.split_once('/').unwrap_or_default();
    filter.namespace.as_deref().is_none_or(|expected| expected == namespace)
        && filter.pool.as_deref().is_none_or(|expected| expected == pool)
}

/// Checks that a token continues a listing that is ordered by pool name.
fn pool_name(token: &str) -> Result<(), RequestError> {
    PoolName::parse(token).map(drop).map_err(|_| invalid_token())
}

fn cursor(token: &str) -> Result<(u16, u32), RequestError> {
    let (shard, from) = token.split_once('-').ok_or_else(invalid_token)?;
    Ok((shard.parse().map_err(|_| invalid_token())?, from.parse().map_err(|_| invalid_token())?))
}

fn waiting_position(token: &str) -> Result<WaitingPosition, RequestError> {
    let (arrival, member) = token.split_once('-').ok_or_else(invalid_token)?;
    let (arrival, member) =
        (arrival.parse().map_err(|_| invalid_token())?, member.parse().map_err(|_| invalid_token())?);
    Ok(WaitingPosition { arrival, member })
}

pub(super) fn invalid_token() -> RequestError {
    RequestError::invalid("page_token", "must be a next_page_token of this listing")
}
