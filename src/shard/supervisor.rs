//! Supervision of shards: starts them, and restarts them after a panic.

use std::sync::Arc;

use futures::future::BoxFuture;
use ractor::{Actor, ActorCell, ActorId, ActorProcessingErr, ActorRef, SupervisionEvent};

use super::actor::{ShardActor, SpawnArgs};
use super::event::ShardSink;
use super::handle::ShardHandle;
use super::pool_context::PoolContext;
use super::services::ShardServices;
use crate::metrics::ShardState;

/// Restarts of one shard within [`WINDOW_MS`] after which it is given up as permanently broken.
const RESTARTS_MAX: usize = 5;
const WINDOW_MS: u64 = 60_000;

/// Shard with the facts of its pool.
pub type ServedShard<S> = (Arc<PoolContext>, Arc<ShardHandle<S>>);

/// Function that finds the shard that an actor runs.
pub type FindShard<S> = Box<dyn Fn(ActorId) -> Option<ServedShard<S>> + Send + Sync>;

/// Function that rebuilds a shard after a panic and starts it.
pub type RestartShard<S> = Box<dyn Fn(ServedShard<S>, ActorCell) -> BoxFuture<'static, ()> + Send + Sync>;

/// Supervisor of all shards of one scheduler.
pub struct ShardSupervisor<S: ShardSink> {
    services: Arc<ShardServices>,
    find: FindShard<S>,
    restart: RestartShard<S>,
}

impl<S: ShardSink> ShardSupervisor<S> {
    /// Creates a supervisor that finds shards with `find`, and rebuilds panicked ones with `restart`.
    #[must_use]
    pub fn new(services: Arc<ShardServices>, find: FindShard<S>, restart: RestartShard<S>) -> Self {
        Self { services, find, restart }
    }
}

impl<S: ShardSink> Actor for ShardSupervisor<S> {
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
        self.services.environment.scheduling_point().await;
        let Some((pool, handle)) = (self.find)(actor.get_id()) else { return Ok(()) };
        let now_ms = self.services.clock.engine_ms();
        let reason = format!("shard {} of {} panicked: {error}", handle.shard.shard, pool.name);
        tracing::error!("{reason}");
        handle.set_state(ShardState::Loading, Some(reason.clone()));
        handle.remove_runner(handle.life());
        // Handles of the life that ended mean nothing from here on.
        handle.begin_life();
        handle.outbox.mark_orphaned();
        handle.hand_back_after_panic();
        crate::reached!("panic: a shard begins its next life");
        if handle.count_restart(now_ms, WINDOW_MS) > RESTARTS_MAX {
            handle.set_state(
                ShardState::Refused,
                Some(format!("{reason}; given up after {} panics in a minute", RESTARTS_MAX + 1)),
            );
            crate::reached!("panic: a shard is given up");
            handle.reject_all();
            return Ok(());
        }
        // Not awaited: the store may be slow, and other shards may fail meanwhile.
        let restart = (self.restart)((pool, handle), me.get_cell());
        self.services.environment.spawn("restart of a shard", restart);
        Ok(())
    }
}

/// Starts a shard under `supervisor`. The shard serves when this returns.
///
/// # Errors
/// Fails with the errors of the actor runtime.
pub(crate) async fn start_shard<S: ShardSink>(
    spawn: SpawnArgs<S>,
    supervisor: ActorCell,
) -> Result<(), ractor::SpawnErr> {
    let handle = Arc::clone(&spawn.handle);
    let (actor, _) = ShardActor::spawn_linked(None, ShardActor::default(), spawn, supervisor).await?;
    handle.serve(actor);
    Ok(())
}
