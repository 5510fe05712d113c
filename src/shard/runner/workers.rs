//! Workers that say something of themselves, owners that wish, and claims that are released in two steps: how each
//! becomes an event, and its answer an outcome. Also whether this shard may acknowledge from memory.

use super::{Running, To, refusal};
use crate::admission::keys::{Found, Hold, Unstoreds};
use crate::engine::{Answer, Event, Grant, Heartbeat, Named, Place};
use crate::events::Why;
use crate::model::{Beat, ClaimId, Cleared, Fence, Registration, RunningClaim, WorkerId};
use crate::shard::command::{Command, KeyItem};
use crate::shard::reply::{ClaimAnswer, Outcome, Payload, Reply};

impl Running {
    /// Claims are acknowledged from memory only when the store knows that they are: what finds the store after a kill
    /// must know that claims may be lost.
    pub(super) fn look_at_ack(&mut self) {
        let memory = !self.pool.is_durable() && !self.sealed;
        if self.keeps_rows && (memory || self.shard.is_memory()) {
            let reserve_ms = memory.then(|| self.pool.spec.load().reserve_ms);
            if self.shard.set_memory(reserve_ms) {
                self.memory_from = self.shard.seq();
            }
        }
        self.durable = !memory || self.applied < self.memory_from;
    }

    /// The last of what is acknowledged from memory has been; this answer leaves when that is on its way to the store.
    pub(super) fn seal(&mut self, reply: Reply) {
        self.sealed = true;
        self.look_at_ack();
        self.send_or_wait(reply, Ok(Payload::Done), false, Unstoreds::new(), None);
    }

    pub(super) fn begin_release(&mut self, item: KeyItem) {
        let releasing_ms = self.pool.spec.load().releasing_ms;
        self.ask(item, |place, to| Event::BeginRelease { place, releasing_ms, to });
    }

    pub(super) fn register(&mut self, registration: Registration, reply: Reply) {
        let Registration { spec, claims } = registration;
        // Unix time is looked at once; from then on the end of life is a deadline like any other.
        let ends_ms = spec.expires_at_ms.map(|at| self.now_ms + at.saturating_sub(self.dispatch.clock.unix_ms()));
        let claims = claims.map(|claims| self.names(&spec.id, claims));
        let ttl_ms = self.pool.spec.load().heartbeat_ttl_ms;
        self.on(Event::Register { spec, ends_ms, claims, ttl_ms, to: To::Reply(reply) });
        self.return_tickets();
    }

    pub(super) fn heartbeat(&mut self, id: WorkerId, beat: Beat, reply: Reply) {
        let Beat { incarnation, seq, claims } = beat;
        let claims = claims.map(|claims| self.names(&id, claims));
        let ttl_ms = self.pool.spec.load().heartbeat_ttl_ms;
        let beat = Heartbeat { incarnation, seq, claims, ttl_ms };
        self.on(Event::Heartbeat { id, beat, to: To::Reply(reply) });
        self.return_tickets();
    }

    /// What the worker names, and which of it may be adopted. The keys of these are taken, so that nobody else claims
    /// them before the engine has decided.
    fn names(&mut self, worker: &WorkerId, claims: Vec<RunningClaim>) -> Vec<Named> {
        let unvouched = self.shard.is_unvouched(worker);
        let name = |RunningClaim { id, fence }| {
            let may = self.dispatch.keys.adoption.is_open_at(self.now_ms) && self.shard.may_adopt(worker, fence);
            let ticket = may.then(|| self.dispatch.keys.take_vacant(&id, fence)).flatten();
            if let Some(ticket) = ticket {
                self.in_hand.push((id.clone(), ticket));
                self.tickets.push((id.clone(), ticket));
            }
            let pending = may && unvouched && ticket.is_none() && self.supersedes(&id, fence);
            Named { id, fence, vacant: ticket.is_some(), pending }
        };
        claims.into_iter().map(name).collect()
    }

    /// The key is held by a claim from before this owner, with a lower fence. So that one was over when this one was
    /// granted, and only the record of its end was lost: its shard is told. The next heartbeat finds the key vacant.
    fn supersedes(&self, id: &ClaimId, fence: Fence) -> bool {
        let Found::Held(older) = self.dispatch.keys.find(id) else { return false };
        if older.place.fence >= fence {
            return false;
        }
        let pools = self.dispatch.pools.load();
        pools.port(older.shard).is_some_and(|port| port.push(Command::Yield(older.place)).is_ok())
    }

    pub(super) fn adopted(&mut self, id: &ClaimId, place: Place) {
        let Some(at) = self.tickets.iter().position(|(taken, _)| taken == id) else {
            unreachable!("K1: only a key whose ticket was taken is adopted")
        };
        let (_, ticket) = self.tickets.swap_remove(at);
        let hold = Hold { shard: self.port.shard, place };
        let grant = self.shard.grant(place);
        if let Some(grant) = &grant {
            self.tell_claimed(id, grant, Some(Why::Adopted));
        }
        let spec = grant.and_then(|grant| grant.spec);
        let (joined, _) = self.dispatch.keys.hold(id, ticket, hold, spec.as_ref());
        self.dispatch.remembered.forget(id);
        self.extra.extend(joined.into_iter().map(|joiner| Command::Repeat(joiner, place)));
    }

    fn return_tickets(&mut self) {
        for (id, ticket) in std::mem::take(&mut self.tickets) {
            if let Some(next) = self.dispatch.keys.vacate(&id, ticket) {
                self.dispatch.route(next);
            }
        }
    }

    /// What the engine says about a worker, and what a durable answer with it waits for.
    pub(super) fn about_worker(&self, answer: Answer) -> (Outcome, Unstoreds) {
        let running = |named: Vec<Named>| named.into_iter().map(|Named { id, fence, .. }| RunningClaim { id, fence });
        let mut unstored = Unstoreds::new();
        let outcome = match answer {
            Answer::Registered { created, worker, stop } => {
                unstored.extend(worker.claims.iter().flat_map(|(id, _)| self.unstored(id)));
                Ok(Payload::Worker { created, look: worker, stop: running(stop).collect() })
            }
            Answer::Steered(look) => Ok(Payload::Worker { created: false, look, stop: Vec::new() }),
            Answer::Heard { claims, stop, late_for } => {
                unstored.extend(claims.iter().flat_map(|(id, _)| self.unstored(id)));
                let shard = self.port.shard;
                let dated = |(id, grant): (_, Grant)| {
                    let expires_at_ms = grant.deadline_ms.map(|at| self.dispatch.clock.unix_of(at));
                    (id, ClaimAnswer { grant, created: false, shard, expires_at_ms })
                };
                let claims = claims.into_iter().map(dated).collect();
                Ok(Payload::Heard { claims, stop: running(stop).collect(), late_for })
            }
            Answer::Cleared { cleared, suspect } => Ok(Payload::Cleared(Cleared { cleared, suspect })),
            Answer::Deleted { claims_lost } => Ok(Payload::Deleted { claims_lost }),
            answer => Err(refusal(&answer)),
        };
        (outcome, unstored)
    }
}
