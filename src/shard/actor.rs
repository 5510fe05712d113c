//! The ractor actor that owns a shard's life: it begins it, ends it, and runs the shard when nobody else stands there.

use std::collections::VecDeque;
use std::sync::Arc;

use ractor::{Actor, ActorProcessingErr, ActorRef};

use super::handle::{RunEnd, ShardHandle};
use super::runner::ShardRunner;
use crate::admission::dispatch::ClaimDispatcher;
use crate::admission::pool_registry::Pool;
use crate::engine::Shard;
use crate::model::{ClaimId, Seq};

/// What an actor is told.
#[derive(Debug)]
pub(crate) enum ActorMessage {
    /// Run: something waits, and nobody else runs the shard.
    Run,
    /// Whoever ran the shard panicked in it: end as if it had happened here.
    Panicked(String),
}

/// What an actor starts from.
pub(crate) struct SpawnArgs {
    pub dispatch: Arc<ClaimDispatcher>,
    pub pool: Arc<Pool>,
    pub handle: Arc<ShardHandle>,
    pub shard: Shard,
    /// Keys that recovery freed here, each with the sequence number of its record.
    pub pending_ends: VecDeque<(Seq, ClaimId)>,
}

/// Owns one shard's life.
pub(crate) struct ShardActor;

/// A life of a shard: when the actor ends, however it does, the shard's state goes with it.
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
        let port = Arc::clone(&spawn.handle);
        port.install_runner(ShardRunner::new(spawn));
        Ok(ActorLifetime(port))
    }

    async fn handle(
        &self,
        me: ActorRef<ActorMessage>,
        wake: ActorMessage,
        life: &mut ActorLifetime,
    ) -> Result<(), ActorProcessingErr> {
        match wake {
            ActorMessage::Run => {
                if life.0.should_batch() {
                    // Whoever is about to ask asks first.
                    tokio::task::yield_now().await;
                }
                let end = life.0.run(None);
                if end == RunEnd::MoreDeadlines {
                    // A slice of deadlines takes long: other tasks of this thread, and what they ask, go before the next.
                    tokio::task::yield_now().await;
                }
                if end != RunEnd::Asleep {
                    // Other messages (stop) and other actors have their turn in between.
                    let _ = me.send_message(ActorMessage::Run);
                }
                Ok(())
            }
            ActorMessage::Panicked(text) => Err(text.into()),
        }
    }
}
