//! Starts shards, and starts them again when they panic.

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

/// Restarts of one shard within [`WINDOW_MS`] after which it is left alone: something in it is broken for good.
const RESTARTS_MAX: usize = 5;
const WINDOW_MS: u64 = 60_000;

/// Rebuilds a shard that panicked and starts it anew.
pub type RestartShard = Box<dyn Fn(Arc<Pool>, Arc<ShardHandle>, ActorCell) -> BoxFuture<'static, ()> + Send + Sync>;

/// The supervisor of all shards of one scheduler.
pub struct ShardSupervisor {
    dispatch: Weak<ClaimDispatcher>,
    restart: RestartShard,
}

impl ShardSupervisor {
    /// Rebuilds with `revive` what panics.
    #[must_use]
    pub fn new(dispatch: &Arc<ClaimDispatcher>, revive: RestartShard) -> Self {
        Self { dispatch: Arc::downgrade(dispatch), restart: revive }
    }

    fn find(&self, actor: &ActorCell) -> Option<(Arc<Pool>, Arc<ShardHandle>)> {
        let pools = Arc::clone(&self.dispatch.upgrade()?.pools.load());
        pools.iter().find_map(|pool| {
            let port = pool.shards.iter().find(|port| port.is_run_by(actor.get_id()))?;
            Some((Arc::clone(pool), Arc::clone(port)))
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
        let (Some((pool, port)), Some(dispatch)) = (self.find(&actor), self.dispatch.upgrade()) else { return Ok(()) };
        let now_ms = dispatch.clock.engine_ms();
        let reason = format!("shard {} of {} panicked: {error}", port.shard.shard, pool.name);
        tracing::error!("{reason}");
        port.set_state(ShardState::Loading, Some(reason.clone()));
        // Nobody decides for these keys any more.
        port.remove_runner();
        port.outbox.mark_orphaned();
        for (id, ticket) in port.empty_hand() {
            if let Some(next) = dispatch.keys.release_ticket(&id, ticket) {
                dispatch.route(next);
            }
        }
        if port.count_restart(now_ms, WINDOW_MS) > RESTARTS_MAX {
            port.set_state(
                ShardState::Refused,
                Some(format!("{reason}; it did so {} times in a minute", RESTARTS_MAX + 1)),
            );
            port.reject_all();
            return Ok(());
        }
        // The store may take its time; other shards may need help meanwhile.
        tokio::spawn((self.restart)(pool, port, me.get_cell()));
        Ok(())
    }
}

/// Starts a shard under `supervisor`. It serves when this returns.
///
/// # Errors
/// Those of the actor runtime.
pub(crate) async fn start_shard(
    dispatch: Arc<ClaimDispatcher>,
    pool: Arc<Pool>,
    port: Arc<ShardHandle>,
    shard: Shard,
    gone: VecDeque<(Seq, ClaimId)>,
    supervisor: ActorCell,
) -> Result<(), ractor::SpawnErr> {
    let spawn = SpawnArgs { dispatch, pool, handle: Arc::clone(&port), shard, pending_ends: gone };
    let (actor, _) = ShardActor::spawn_linked(None, ShardActor, spawn, supervisor).await?;
    port.serve(actor);
    Ok(())
}
