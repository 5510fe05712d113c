//! Actor that owns the lifetime of a shard: starts it, stops it, and runs it when no caller is running it inline.

use std::collections::VecDeque;
use std::marker::PhantomData;
use std::sync::Arc;

use ractor::{Actor, ActorProcessingErr, ActorRef};

use super::event::{ShardLife, ShardSink};
use super::handle::{RunEnd, ShardHandle};
use super::pool_context::PoolContext;
use super::runner::ShardRunner;
use super::services::ShardServices;
use crate::engine::Shard;
use crate::environment::Environment;
use crate::model::{ClaimId, Seq};

/// Message to a shard's actor.
#[derive(Debug)]
pub(crate) enum ActorMessage {
    /// Run the shard: there is work, and no caller runs it.
    Run,
    /// A caller that ran the shard panicked in it: fail as if the panic had happened here.
    Panicked(String),
}

/// Arguments from which an actor starts.
pub(crate) struct SpawnArgs<S: ShardSink> {
    pub sink: Arc<S>,
    pub services: Arc<ShardServices>,
    pub pool: Arc<PoolContext>,
    pub handle: Arc<ShardHandle<S>>,
    pub shard: Shard,
    /// Keys that recovery freed here, each with the sequence number of its record.
    pub pending_ends: VecDeque<(Seq, ClaimId)>,
}

/// Actor of one shard.
pub(crate) struct ShardActor<S>(PhantomData<fn() -> S>);

impl<S> Default for ShardActor<S> {
    fn default() -> Self {
        Self(PhantomData)
    }
}

/// Lifetime of a shard's state, which is dropped when the actor ends for any reason. That may be after the next life has
/// begun: the supervisor hears of a failure before.
pub(crate) struct ActorLifetime<S: ShardSink> {
    handle: Arc<ShardHandle<S>>,
    environment: Environment,
    life: ShardLife,
}

impl<S: ShardSink> Drop for ActorLifetime<S> {
    fn drop(&mut self) {
        self.handle.remove_runner(self.life);
    }
}

impl<S: ShardSink> Actor for ShardActor<S> {
    type Msg = ActorMessage;
    type State = ActorLifetime<S>;
    type Arguments = SpawnArgs<S>;

    async fn pre_start(
        &self,
        _me: ActorRef<ActorMessage>,
        spawn: SpawnArgs<S>,
    ) -> Result<ActorLifetime<S>, ActorProcessingErr> {
        let handle = Arc::clone(&spawn.handle);
        let life = handle.life();
        let environment = spawn.services.environment.clone();
        handle.install_runner(ShardRunner::new(spawn, life));
        Ok(ActorLifetime { handle, environment, life })
    }

    async fn handle(
        &self,
        me: ActorRef<ActorMessage>,
        message: ActorMessage,
        lifetime: &mut ActorLifetime<S>,
    ) -> Result<(), ActorProcessingErr> {
        match message {
            ActorMessage::Run => {
                lifetime.environment.scheduling_point().await;
                if lifetime.handle.should_batch() {
                    // Requests that are about to arrive can then join this run.
                    lifetime.environment.yield_now().await;
                }
                let end = lifetime.handle.run_as_actor();
                if end == RunEnd::MoreDeadlines {
                    // A slice of deadlines takes long: other tasks of this thread run before the next.
                    lifetime.environment.yield_now().await;
                }
                if end != RunEnd::Asleep {
                    // Other messages (stop) and other actors get their chance in between.
                    let _ = me.send_message(ActorMessage::Run);
                }
                Ok(())
            }
            ActorMessage::Panicked(text) => Err(text.into()),
        }
    }
}
