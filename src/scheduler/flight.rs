//! Many requests of one caller in flight, each answered as soon as it is decided: what a stream needs. What comes together
//! is sent together: claims that follow each other are routed as a batch is, releases that follow each other reach each of
//! their shards once. A request costs no task, no channel and no timer; its answer comes by an [`Inbox`]. What a shard
//! cannot answer alone (a key that is gone while the store does not know) goes the way of a single call.
//!
//! A caller that leaves, or waits no longer for one request, is treated as one that hangs up on a single call: a claim of
//! which nobody was told is given back.

use std::sync::Arc;
use std::task::{Context, Poll};

use futures::future::{BoxFuture, FutureExt as _};
use futures::stream::{FuturesUnordered, StreamExt as _};
use hashbrown::HashMap;

use super::Scheduler;
use super::claims::check_ttl;
use crate::admission::keys::{Found, Hold, ShardRef};
use crate::limits;
use crate::model::claim_request::PoolChoice;
use crate::model::rejection::{Refusal, What};
use crate::model::{ClaimId, ClaimRequest, ClaimView, Fence, Millis, Taken};
use crate::shard::{ClaimItem, Command, Inbox, KeyItem, Outcome, Payload, Reply, ShardPort};

/// What became of a request.
#[derive(Debug)]
pub enum Landed {
    /// Of a claim.
    Taken(Result<Taken, Refusal>),
    /// Of a release, or of its beginning; false: the key held nothing.
    Released(Result<bool, Refusal>),
    /// Of a confirm.
    Confirmed(Result<ClaimView, Refusal>),
    /// Of a renewal.
    Renewed(Result<ClaimView, Refusal>),
}

/// What a holder asks of its claim, on its way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verb {
    /// The holder is done.
    Release,
    /// The holder is done, but the worker has to be cleaned.
    BeginRelease,
    /// The holder has started.
    Confirm,
    /// The holder still needs it, from now on for that long without a renewal.
    Renew(Option<Millis>),
}

/// A request that was sent.
enum Asked {
    Claim { id: ClaimId, pools: PoolChoice, waits: bool },
    Held { id: ClaimId, pool: u32, verb: Verb },
}

struct Open {
    /// As the caller calls it.
    number: u64,
    asked: Asked,
    /// Engine time after which nobody waits for its answer.
    until_ms: Millis,
    /// Nobody does any more.
    given_up: bool,
}

/// Requests that go together.
enum Run {
    Nothing,
    #[allow(clippy::vec_box, reason = "claims travel boxed from ring to ring")]
    Claims(Vec<Box<ClaimItem>>),
    Releases(Vec<(ShardRef, KeyItem)>),
}

/// The requests of one caller. Dropped, it hangs up on all of them.
pub struct Flight {
    scheduler: Scheduler,
    /// How long one may take that does not wait.
    limit_ms: Millis,
    inbox: Arc<Inbox>,
    open: Vec<Option<Open>>,
    vacant: Vec<u32>,
    places: HashMap<u64, u32>,
    run: Run,
    started_ns: u64,
    /// Those that go the way of a single call.
    single: FuturesUnordered<BoxFuture<'static, (u32, Landed)>>,
    /// As taken from the inbox.
    outcomes: Vec<(u32, Outcome)>,
}

impl Scheduler {
    /// Room for requests in flight together, none of which may take longer than `limit_ms` beside the time that it waits.
    #[must_use]
    pub fn flight(&self, limit_ms: Millis) -> Flight {
        Flight {
            scheduler: self.clone(),
            limit_ms,
            inbox: Arc::default(),
            open: Vec::new(),
            vacant: Vec::new(),
            places: HashMap::new(),
            run: Run::Nothing,
            started_ns: 0,
            single: FuturesUnordered::new(),
            outcomes: Vec::new(),
        }
    }
}

impl Flight {
    /// How many more may be sent.
    #[must_use]
    pub fn room(&self) -> usize {
        limits::STREAM_REQUESTS_MAX - (self.open.len() - self.vacant.len())
    }

    /// Whether nothing is in flight.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.places.is_empty()
    }

    /// Whether a request with this number is in flight.
    #[must_use]
    pub fn has(&self, number: u64) -> bool {
        self.places.contains_key(&number)
    }

    /// Adds a claim; [`Self::send`] sends it. That there is room, and that the number is not in flight, is for the caller to
    /// see to.
    pub fn claim(&mut self, number: u64, request: ClaimRequest) {
        if !matches!(self.run, Run::Claims(_)) {
            self.begin_run();
        }
        let waits_ms = request.waits_ms();
        let asked = Asked::Claim { id: request.id.clone(), pools: request.pools.clone(), waits: waits_ms > 0 };
        let reply = self.enter(number, asked, waits_ms.min(limits::WAIT_MS_MAX));
        if let Err(refusal) = self.scheduler.open() {
            reply.send(Err(refusal));
            return;
        }
        // One that is refused was answered.
        let Ok(item) = self.scheduler.item(request, self.started_ns, reply) else { return };
        match &mut self.run {
            Run::Claims(items) => items.push(item),
            run => *run = Run::Claims(vec![item]),
        }
    }

    /// Adds what a holder asks of its claim, in the same way.
    pub fn held(&mut self, number: u64, id: ClaimId, fence: Fence, verb: Verb) {
        if verb != Verb::Release || !matches!(self.run, Run::Releases(_)) {
            self.begin_run();
        }
        let Some((hold, port)) = self.find(&id, fence, verb) else { return self.call(number, id, fence, verb) };
        let Hold { shard, place } = hold;
        let reply = self.enter(number, Asked::Held { id: id.clone(), pool: shard.pool, verb }, 0);
        let item = KeyItem { id, place, started_ns: self.started_ns, reply };
        match verb {
            Verb::Release => match &mut self.run {
                Run::Releases(items) => items.push((shard, item)),
                run => *run = Run::Releases(vec![(shard, item)]),
            },
            Verb::BeginRelease => port.ask(Command::BeginRelease(item)),
            Verb::Confirm => port.ask(Command::Confirm(item)),
            Verb::Renew(ttl_ms) => port.ask(Command::Renew(item, ttl_ms)),
        }
    }

    /// Sends what was added.
    pub fn send(&mut self) {
        let dispatch = self.scheduler.dispatch();
        match std::mem::replace(&mut self.run, Run::Nothing) {
            Run::Nothing => {}
            Run::Claims(items) => dispatch.submit_all(items),
            Run::Releases(items) => self.scheduler.send_releases(items),
        }
    }

    /// Takes what has landed since the last time, with the numbers that the caller gave. The next to land wakes the task,
    /// unless there is something in `landed`: then there may be more.
    pub fn poll_landed(&mut self, context: &mut Context<'_>, landed: &mut Vec<(u64, Landed)>) {
        let mut outcomes = std::mem::take(&mut self.outcomes);
        while landed.is_empty() && self.inbox.poll_take(context, &mut outcomes).is_ready() {
            landed.extend(outcomes.drain(..).filter_map(|(place, outcome)| self.land(place, outcome)));
        }
        self.outcomes = outcomes;
        while let Poll::Ready(Some((place, said))) = self.single.poll_next_unpin(context) {
            landed.extend(self.leave(place).map(|open| (open.number, said)));
        }
    }

    /// Gives up waiting for those whose time is over. Returns in how many milliseconds to look again, if others are in
    /// flight.
    pub fn expire(&mut self, landed: &mut Vec<(u64, Landed)>) -> Option<Millis> {
        let now_ms = self.scheduler.dispatch().clock.engine_ms();
        let mut next_ms: Option<Millis> = None;
        for open in self.open.iter_mut().flatten().filter(|open| !open.given_up) {
            if open.until_ms > now_ms {
                next_ms = Some(next_ms.map_or(open.until_ms, |next_ms| next_ms.min(open.until_ms)));
                continue;
            }
            // Its place stays taken until its answer is there.
            open.given_up = true;
            self.places.remove(&open.number);
            landed.push((open.number, open.asked.late()));
        }
        next_ms.map(|next_ms| next_ms - now_ms)
    }

    fn begin_run(&mut self) {
        self.send();
        self.started_ns = self.scheduler.dispatch().stopwatch();
    }

    /// Where the claim is held under this fence, if its shard can say all that there is to say.
    fn find(&self, id: &ClaimId, fence: Fence, verb: Verb) -> Option<(Hold, Arc<ShardPort>)> {
        let dispatch = self.scheduler.dispatch();
        let Found::Held(hold) = dispatch.keys.find(id) else { return None };
        let sound = hold.place.fence == fence && verb.is_valid() && self.scheduler.open().is_ok();
        let port = if sound { dispatch.pools.load().port(hold.shard).cloned() } else { None };
        port.map(|port| (hold, port))
    }

    /// A call of its own.
    fn call(&mut self, number: u64, id: ClaimId, fence: Fence, verb: Verb) {
        let place = self.take_place(number, Asked::Held { id: id.clone(), pool: 0, verb }, 0);
        let scheduler = self.scheduler.clone();
        let call = async move {
            match verb {
                Verb::Release => Landed::Released(scheduler.release_held(&id, Some(fence)).await),
                Verb::BeginRelease => Landed::Released(scheduler.begin_release_held(&id, Some(fence)).await),
                Verb::Confirm => Landed::Confirmed(scheduler.confirm(&id, fence).await),
                Verb::Renew(ttl_ms) => Landed::Renewed(scheduler.renew(&id, fence, ttl_ms).await),
            }
        };
        self.single.push(call.map(move |said| (place, said)).boxed());
    }

    fn enter(&mut self, number: u64, asked: Asked, waits_ms: Millis) -> Reply {
        Reply::to(Arc::clone(&self.inbox), self.take_place(number, asked, waits_ms))
    }

    fn take_place(&mut self, number: u64, asked: Asked, waits_ms: Millis) -> u32 {
        let until_ms = self.scheduler.dispatch().clock.engine_ms() + self.limit_ms + waits_ms;
        let open = Some(Open { number, asked, until_ms, given_up: false });
        let place = if let Some(place) = self.vacant.pop() {
            self.open[place as usize] = open;
            place
        } else {
            self.open.push(open);
            (self.open.len() - 1) as u32
        };
        let before = self.places.insert(number, place);
        debug_assert!(before.is_none(), "R1: the numbers in flight are told apart");
        place
    }

    /// The answer to a request is there. None: nobody waits for it any more.
    fn leave(&mut self, place: u32) -> Option<Open> {
        let open = self.open[place as usize].take().expect("R1: a request is answered once");
        self.vacant.push(place);
        if open.given_up {
            return None;
        }
        self.places.remove(&open.number);
        Some(open)
    }

    fn land(&mut self, place: u32, outcome: Outcome) -> Option<(u64, Landed)> {
        if self.open[place as usize].as_ref().is_some_and(|open| open.given_up) {
            self.discard(place, &outcome);
            self.leave(place);
            return None;
        }
        let Open { number, asked, .. } = self.leave(place)?;
        let said = match asked {
            Asked::Claim { id, pools, .. } => {
                let taken = outcome.and_then(|payload| self.scheduler.taken(&id, &pools, payload));
                self.scheduler.count_claim(&pools, &taken);
                Landed::Taken(taken)
            }
            Asked::Held { id, pool, verb } => {
                let seen = |outcome: Outcome| match outcome? {
                    Payload::Claim(answer) => self.scheduler.view_in(&id, pool, answer),
                    _ => Err(Refusal::NotFound(What::Claim)),
                };
                match verb {
                    Verb::Release | Verb::BeginRelease => Landed::Released(match outcome {
                        Ok(_) => Ok(true),
                        Err(Refusal::NotFound(_)) => Ok(false),
                        Err(refusal) => Err(refusal),
                    }),
                    Verb::Confirm => Landed::Confirmed(seen(outcome)),
                    Verb::Renew(_) => Landed::Renewed(seen(outcome)),
                }
            }
        };
        Some((number, said))
    }

    /// Nobody will be told of this. A claim that it made is given back, unless others were told.
    fn discard(&self, place: u32, outcome: &Outcome) {
        let Some(Open { asked: Asked::Claim { id, .. }, .. }) = &self.open[place as usize] else { return };
        self.scheduler.dispatch().roll_back_unread(id, outcome);
    }
}

impl Drop for Flight {
    fn drop(&mut self) {
        for (place, outcome) in self.inbox.close() {
            self.discard(place, &outcome);
        }
        for open in self.open.iter().flatten() {
            if let Asked::Claim { id, waits: true, .. } = &open.asked {
                self.scheduler.dispatch().cancel(id);
            }
        }
    }
}

impl Verb {
    fn is_valid(self) -> bool {
        match self {
            Self::Renew(ttl_ms) => check_ttl(ttl_ms).is_ok(),
            _ => true,
        }
    }
}

impl Asked {
    /// That no answer came in time.
    const fn late(&self) -> Landed {
        const LATE: Refusal = Refusal::DeadlineExceeded;
        match self {
            Self::Claim { .. } => Landed::Taken(Err(LATE)),
            Self::Held { verb: Verb::Release | Verb::BeginRelease, .. } => Landed::Released(Err(LATE)),
            Self::Held { verb: Verb::Confirm, .. } => Landed::Confirmed(Err(LATE)),
            Self::Held { verb: Verb::Renew(_), .. } => Landed::Renewed(Err(LATE)),
        }
    }
}
