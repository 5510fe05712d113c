//! A claim's way: to its key, from shard to shard, to an answer. What the facade begins here, the shards' actors go
//! on with: a claim that one shard has no room for is handed to the next by the actor that said so, so the caller
//! only waits, and may leave.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::clock::Clock;
use crate::fence::Fences;
use crate::journal::Journal;
use crate::keys::{Begun, Keys};
use crate::pools::{Pool, Pools};
use crate::refusal::{Exhausted, Refusal, Unavailable, What};
use crate::shard::{ClaimItem, Command};

/// Most claims of a batch that go to one shard in one command: enough to pay its wake, few enough to spread.
const GROUP_MAX: usize = 64;

/// Bounds in time that the configuration sets.
#[derive(Debug, Clone)]
pub struct Settings {
    /// How long a durable answer waits for the store, in milliseconds; then it is `unavailable`, and a claim that was
    /// made by this very request is given back.
    pub store_wait_ms: u64,
}

impl Default for Settings {
    fn default() -> Self {
        Self { store_wait_ms: 5_000 }
    }
}

/// What all shards share.
pub struct Dispatch {
    /// Who holds a key.
    pub keys: Keys,
    /// The pools.
    pub pools: Pools,
    /// Time.
    pub clock: Clock,
    /// Numbers of grants.
    pub fences: Fences,
    /// The way to the store.
    pub journal: Arc<Journal>,
    /// Bounds.
    pub settings: Settings,
    /// The service is shutting down.
    pub stopping: AtomicBool,
}

impl std::fmt::Debug for Dispatch {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Dispatch").field("journal", &self.journal).finish_non_exhaustive()
    }
}

impl Dispatch {
    /// A claim begins, or begins anew after what it found was gone.
    pub fn submit(&self, item: Box<ClaimItem>) {
        if let Some(item) = self.begin(item) {
            self.route(item);
        }
    }

    /// The same for many: those whose keys are vacant go to the shards in groups.
    pub fn submit_all(&self, items: Vec<Box<ClaimItem>>) {
        let ours: Vec<_> = items.into_iter().filter_map(|item| self.begin(item)).collect();
        self.route_all(ours);
    }

    /// Takes the key's ticket. None: the claim waits elsewhere, or is answered.
    fn begin(&self, item: Box<ClaimItem>) -> Option<Box<ClaimItem>> {
        match self.keys.begin(item) {
            Begun::Ours(item) => return Some(item),
            Begun::Joined => {}
            Begun::Crowded(item) => answer(item, Refusal::Unavailable(Unavailable::Overloaded)),
            Begun::Unreadable(item) => answer(item, Refusal::Unavailable(Unavailable::Loading)),
            Begun::Held(item, hold) => {
                let pools = self.pools.load();
                match pools.port(hold.shard) {
                    // The pool is being deleted; its shard frees the key in a moment.
                    None => answer(item, Refusal::Unavailable(Unavailable::Loading)),
                    Some(port) => {
                        if let Err((Command::Repeat(item, _), why)) = port.push(Command::Repeat(item, hold.place)) {
                            answer(item, Refusal::Unavailable(why));
                        }
                    }
                }
            }
        }
        None
    }

    /// Sends a claim with a ticket to the next shard, or refuses it when none is left.
    pub fn route(&self, mut item: Box<ClaimItem>) {
        let pools = self.pools.load();
        // A refusal hands the ticket on to whoever joined: then that one is routed.
        loop {
            let Some(pool) = pools.at(item.pool) else {
                match self.refuse(item, Refusal::NotFound(What::Pool)) {
                    Some(next) => item = next,
                    None => return,
                }
                continue;
            };
            let turn = u64::from(item.visited.len());
            let next = match pool.board.pick(&item.visited, item.affinity, item.salt.rotate_left(turn as u32 * 7)) {
                None => {
                    let refusal = final_refusal(pool, &item);
                    self.refuse(item, refusal)
                }
                Some(shard) => {
                    item.visited.insert(shard);
                    match pool.ports[shard as usize].push(Command::Claim(item)) {
                        Err((Command::Claim(mut item), why)) => {
                            item.unasked = Some(why);
                            Some(item)
                        }
                        _ => None,
                    }
                }
            };
            match next {
                Some(next) => item = next,
                None => return,
            }
        }
    }

    /// Sends claims with tickets to shards in groups, at most as many to each as it says it has idle workers.
    pub fn route_all(&self, mut items: Vec<Box<ClaimItem>>) {
        let pools = self.pools.load();
        while items.len() > 1 {
            let last = &items[items.len() - 1];
            let picked = pools.at(last.pool).and_then(|pool| {
                let turn = u64::from(last.visited.len());
                let salt = last.salt.rotate_left(turn as u32 * 7);
                Some((pool, pool.board.pick(&last.visited, last.affinity, salt)?))
            });
            let Some((pool, shard)) = picked else { break };
            let room = (pool.board.idle(shard) as usize).clamp(1, GROUP_MAX);
            let mut group = Vec::with_capacity(room.min(items.len()));
            while group.len() < room
                && let Some(mut item) = items.pop_if(|item| {
                    item.pool == pool.number && item.visited.word(shard as usize / 64) & (1 << (shard % 64)) == 0
                })
            {
                item.visited.insert(shard);
                group.push(item);
            }
            if let Err((Command::Claims(group), why)) = pool.ports[shard as usize].push(Command::Claims(group)) {
                for mut item in group {
                    item.unasked = Some(why);
                    self.route(item);
                }
            }
        }
        for item in items {
            self.route(item);
        }
    }

    /// Gives the ticket up and answers. Whoever joined and takes over the ticket is returned, to be routed.
    fn refuse(&self, item: Box<ClaimItem>, refusal: Refusal) -> Option<Box<ClaimItem>> {
        let next = self.keys.vacate(&item.id, item.ticket);
        answer(item, refusal);
        next
    }

    /// The same, and routes whoever takes over.
    pub fn give_up(&self, item: Box<ClaimItem>, refusal: Refusal) {
        if let Some(next) = self.refuse(item, refusal) {
            self.route(next);
        }
    }

    /// A fence for `n` claims, or why there is none.
    ///
    /// # Errors
    /// `store` while the store does not hold a higher ceiling.
    pub fn draw_fences(&self, n: u64) -> Result<u64, Unavailable> {
        self.fences.draw(n, self.clock.unix_us()).ok_or(Unavailable::Store)
    }

    /// Whether the service is shutting down.
    #[must_use]
    pub fn is_stopping(&self) -> bool {
        self.stopping.load(Ordering::Acquire)
    }
}

#[allow(clippy::boxed_local, reason = "claims travel boxed; unboxing here would copy one to drop it")]
fn answer(item: Box<ClaimItem>, refusal: Refusal) {
    item.reply.send(Err(refusal));
}

/// "Full" only if every shard was asked or had nothing idle (`N1`).
fn final_refusal(pool: &Pool, item: &ClaimItem) -> Refusal {
    match item.unasked {
        Some(why) => Refusal::Unavailable(why),
        None if pool.has_silent_shard() => Refusal::Unavailable(Unavailable::Loading),
        None => Refusal::Exhausted(Exhausted::Pool),
    }
}
