//! The ractor actor that owns a shard's life: it begins it, ends it, and runs the shard when nobody else stands there.

use std::collections::VecDeque;
use std::sync::Arc;

use ractor::{Actor, ActorProcessingErr, ActorRef};

use super::handle::{RunEnd, ShardPort};
use super::runner::Running;
use crate::admission::dispatch::Dispatch;
use crate::admission::pools::Pool;
use crate::engine::Shard;
use crate::model::{ClaimId, Seq};

/// What an actor is told.
#[derive(Debug)]
pub(crate) enum Wake {
    /// Run: something waits, and nobody else runs the shard.
    Run,
    /// Whoever ran the shard panicked in it: end as if it had happened here.
    Panicked(String),
}

/// What an actor starts from.
pub(crate) struct Spawn {
    pub dispatch: Arc<Dispatch>,
    pub pool: Arc<Pool>,
    pub port: Arc<ShardPort>,
    pub shard: Shard,
    /// Keys that recovery freed here, each with the sequence number of its record.
    pub gone: VecDeque<(Seq, ClaimId)>,
}

/// Owns one shard's life.
pub(crate) struct ShardActor;

/// A life of a shard: when the actor ends, however it does, the shard's state goes with it.
pub(crate) struct Life(Arc<ShardPort>);

impl Drop for Life {
    fn drop(&mut self) {
        self.0.end_life();
    }
}

impl Actor for ShardActor {
    type Msg = Wake;
    type State = Life;
    type Arguments = Spawn;

    async fn pre_start(&self, _me: ActorRef<Wake>, spawn: Spawn) -> Result<Life, ActorProcessingErr> {
        let port = Arc::clone(&spawn.port);
        port.begin_life(Running::new(spawn));
        Ok(Life(port))
    }

    async fn handle(&self, me: ActorRef<Wake>, wake: Wake, life: &mut Life) -> Result<(), ActorProcessingErr> {
        match wake {
            Wake::Run => {
                if life.0.combines() {
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
                    let _ = me.send_message(Wake::Run);
                }
                Ok(())
            }
            Wake::Panicked(text) => Err(text.into()),
        }
    }
}
