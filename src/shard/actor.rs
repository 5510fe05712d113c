//! Actor that owns the lifetime of a shard: starts it, stops it, and runs it when no caller is running it inline.

use std::collections::VecDeque;
use std::sync::Arc;

use ractor::{Actor, ActorProcessingErr, ActorRef};

use super::handle::{RunEnd, ShardHandle};
use super::runner::ShardRunner;
use crate::admission::dispatch::ClaimDispatcher;
use crate::admission::pool_registry::Pool;
use crate::engine::Shard;
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
pub(crate) struct SpawnArgs {
    pub dispatch: Arc<ClaimDispatcher>,
    pub pool: Arc<Pool>,
    pub handle: Arc<ShardHandle>,
    pub shard: Shard,
    /// Keys that recovery freed here, each with the sequence number of its record.
    pub pending_ends: VecDeque<(Seq, ClaimId)>,
}

/// Actor of one shard.
pub(crate) struct ShardActor;

/// Lifetime of a shard's state, which is dropped when the actor ends for any reason.
pub(crate) struct ActorLifetime(Arc<ShardHandle>);

impl Drop for ActorLifetime {
    fn drop(&mut self) {
        self.0.remove_runner();
    }
}

impl Actor for ShardActor {
    type Msg = ActorMessage;
    type State = ActorLifetime;
    type Arguments = SpawnArgs;

    async fn pre_start(
        &self,
        _me: ActorRef<ActorMessage>,
        spawn: SpawnArgs,
    ) -> Result<ActorLifetime, ActorProcessingErr> {
        let handle = Arc::clone(&spawn.handle);
        handle.install_runner(ShardRunner::new(spawn));
        Ok(ActorLifetime(handle))
    }

    async fn handle(
        &self,
        me: ActorRef<ActorMessage>,
        message: ActorMessage,
        lifetime: &mut ActorLifetime,
    ) -> Result<(), ActorProcessingErr> {
        match message {
            ActorMessage::Run => {
                if lifetime.0.should_batch() {
                    // Requests that are about to arrive can then join this run.
                    tokio::task::yield_now().await;
                }
                let end = lifetime.0.run(None);
                if end == RunEnd::MoreDeadlines {
                    // A slice of deadlines takes long: other tasks of this thread run before the next.
                    tokio::task::yield_now().await;
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
