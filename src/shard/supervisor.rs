//! Supervision of shards: starts them, and restarts them after a panic.

use std::collections::VecDeque;
use std::sync::{Arc, Weak};

use futures::future::BoxFuture;
use ractor::{Actor, ActorCell, ActorProcessingErr, ActorRef, SupervisionEvent};

use super::actor::{ShardActor, SpawnArgs};
use super::handle::ShardHandle;
use crate::admission::dispatch::ClaimDispatcher;
use crate::admission::pool_registry::Pool;
use crate::engine::Shard;
use crate::metrics::ShardState;
use crate::model::{ClaimId, Seq};

/// Restarts of one shard within [`WINDOW_MS`] after which it is given up as permanently broken.
const RESTARTS_MAX: usize = 5;
const WINDOW_MS: u64 = 60_000;

/// Function that rebuilds a shard after a panic and starts it.
pub type RestartShard = Box<dyn Fn(Arc<Pool>, Arc<ShardHandle>, ActorCell) -> BoxFuture<'static, ()> + Send + Sync>;

/// Supervisor of all shards of one scheduler.
pub struct ShardSupervisor {
    dispatch: Weak<ClaimDispatcher>,
    restart: RestartShard,
}

impl ShardSupervisor {
    /// Creates a supervisor that rebuilds panicked shards with `restart`.
    #[must_use]
    pub fn new(dispatch: &Arc<ClaimDispatcher>, restart: RestartShard) -> Self {
        Self { dispatch: Arc::downgrade(dispatch), restart }
    }

    fn find(&self, actor: &ActorCell) -> Option<(Arc<Pool>, Arc<ShardHandle>)> {
        let pools = Arc::clone(&self.dispatch.upgrade()?.pools.load());
        pools.iter().find_map(|pool| {
            let handle = pool.shards.iter().find(|handle| handle.is_run_by(actor.get_id()))?;
            Some((Arc::clone(pool), Arc::clone(handle)))
        })
    }
}

impl Actor for ShardSupervisor {
    type Msg = ();
    type State = ();
    type Arguments = ();

    async fn pre_start(&self, _me: ActorRef<()>, (): ()) -> Result<(), ActorProcessingErr> {
        Ok(())
    }

    async fn handle_supervisor_evt(
        &self,
        me: ActorRef<()>,
        event: SupervisionEvent,
        _state: &mut (),
    ) -> Result<(), ActorProcessingErr> {
        let SupervisionEvent::ActorFailed(actor, error) = event else { return Ok(()) };
        let (Some((pool, handle)), Some(dispatch)) = (self.find(&actor), self.dispatch.upgrade()) else {
            return Ok(());
        };
        let now_ms = dispatch.clock.engine_ms();
        let reason = format!("shard {} of {} panicked: {error}", handle.shard.shard, pool.name);
        tracing::error!("{reason}");
        handle.set_state(ShardState::Loading, Some(reason.clone()));
        // The tickets of these claims have no decider any more.
        handle.remove_runner();
        handle.outbox.mark_orphaned();
        for (id, ticket) in handle.take_undecided_tickets() {
            if let Some(next) = dispatch.keys.release_ticket(&id, ticket) {
                dispatch.route(next);
            }
        }
        if handle.count_restart(now_ms, WINDOW_MS) > RESTARTS_MAX {
            handle.set_state(
                ShardState::Refused,
                Some(format!("{reason}; given up after {} panics in a minute", RESTARTS_MAX + 1)),
            );
            handle.reject_all();
            return Ok(());
        }
        // Not awaited: the store may be slow, and other shards may fail meanwhile.
        tokio::spawn((self.restart)(pool, handle, me.get_cell()));
        Ok(())
    }
}

/// Starts a shard under `supervisor`. The shard serves when this returns.
///
/// # Errors
/// Fails with the errors of the actor runtime.
pub(crate) async fn start_shard(
    dispatch: Arc<ClaimDispatcher>,
    pool: Arc<Pool>,
    handle: Arc<ShardHandle>,
    shard: Shard,
    pending_ends: VecDeque<(Seq, ClaimId)>,
    supervisor: ActorCell,
) -> Result<(), ractor::SpawnErr> {
    let spawn = SpawnArgs { dispatch, pool, handle: Arc::clone(&handle), shard, pending_ends };
    let (actor, _) = ShardActor::spawn_linked(None, ShardActor, spawn, supervisor).await?;
    handle.serve(actor);
    Ok(())
}
