//! What a claim would find: which worker it would be given, and of the others why not. Takes nothing and changes nothing.
//!
//! The worker is chosen by the very pick of the decision. The count looks at each worker by itself, at most
//! [`limits::SLICE_ENTRIES`] at a time, so that a shard of a million workers is not kept from its claims; it asks the same
//! questions as the pick ([`Wants::allows`], room, bars, end of life), only one after another and by name. A test holds both
//! together.

use std::sync::Arc;

use super::NIL;
use super::effect::Answer;
use super::placement::constraints::{CardFilter, NoFit, Wants};
use super::shard::Shard;
use crate::limits;
use crate::model::unschedulable_bits;
use crate::model::{Amounts, Millis, NearMiss, Resources, RuledOut, Survey, WorkerCard};

/// What of a worker a claim can have: all of it, or what is left of it.
#[derive(Debug, Default)]
struct Room {
    cpu_milli: u64,
    memory_bytes: u64,
    slots: u64,
    /// Free thousandths of its cards, most first.
    cards: Vec<u16>,
}

impl Room {
    fn amounts(&self) -> Amounts {
        let whole = self.cards.iter().take_while(|&&milli| u32::from(milli) == limits::CARD_MILLI).count();
        Amounts {
            cpu_milli: self.cpu_milli,
            memory_bytes: self.memory_bytes,
            slots: self.slots,
            gpu: whole as u64,
            gpu_milli: self.cards.first().copied().map_or(0, u64::from),
        }
    }

    /// What is missing for a claim, and how near that is.
    fn short(&self, asked: &Resources) -> (Amounts, (u32, u64)) {
        let mut short = Amounts {
            cpu_milli: asked.cpu_milli.saturating_sub(self.cpu_milli),
            memory_bytes: asked.memory_bytes.saturating_sub(self.memory_bytes),
            slots: asked.slots.saturating_sub(self.slots),
            ..Amounts::default()
        };
        let have = self.amounts();
        let mut of = [asked.cpu_milli, asked.memory_bytes, asked.slots, 0, 0];
        if let Some(gpu) = &asked.gpu {
            if gpu.milli == limits::CARD_MILLI {
                of[3] = gpu.count.into();
                short.gpu = of[3].saturating_sub(have.gpu);
            } else {
                of[4] = gpu.milli.into();
                short.gpu_milli = of[4].saturating_sub(have.gpu_milli);
            }
        }
        let parts = short.parts().map(|(_, amount, _)| amount).into_iter().zip(of).filter(|(amount, _)| *amount > 0);
        let millionths = |(amount, of): (u64, u64)| (u128::from(amount) * 1_000_000 / u128::from(of)) as u64;
        let rank = parts.fold((0, 0), |(kinds, sum), part| (kinds + 1, sum + millionths(part)));
        (short, rank)
    }
}

/// The first of these that is missing.
const fn lacks(short: &Amounts) -> Option<RuledOut> {
    match short {
        Amounts { cpu_milli: 1.., .. } => Some(RuledOut::CpuMilli),
        Amounts { memory_bytes: 1.., .. } => Some(RuledOut::MemoryBytes),
        Amounts { slots: 1.., .. } => Some(RuledOut::Slots),
        Amounts { gpu: 1.., .. } | Amounts { gpu_milli: 1.., .. } => Some(RuledOut::Gpu),
        _ => None,
    }
}

impl Shard {
    /// The worker that a claim would be given that needs it for `needs_ms`, or why there is none; no reason: none is free.
    /// Under policy `random` it is one of those that it may be given.
    ///
    /// # Errors
    /// As the claim would be answered.
    pub fn would_take(
        &mut self,
        wants: Option<&Wants>,
        affinity: u64,
        needs_ms: Millis,
        now_ms: Millis,
    ) -> Result<Arc<WorkerCard>, Option<NoFit>> {
        let (nothing, until_ms) = (Wants::default(), now_ms + needs_ms);
        let picked = match &self.shares {
            None => self.pick_worker(affinity, self.fence_max + 1, until_ms, wants),
            Some(_) => {
                let picked = self.select_share(wants.unwrap_or(&nothing), until_ms);
                picked.map(|(worker, _)| worker).map_err(Answer::NoFit)
            }
        };
        match picked {
            Ok(worker) => Ok(Arc::clone(self.workers.card(worker))),
            Err(Answer::NoFit(why)) => Err(Some(why)),
            Err(_) => Err(None),
        }
    }

    /// What a claim finds among the workers with ordinals `from..from + limit`, and where to go on.
    #[must_use]
    pub fn survey(
        &self,
        wants: Option<&Wants>,
        needs_ms: Millis,
        now_ms: Millis,
        from: u32,
        limit: u32,
    ) -> (Survey, Option<u32>) {
        let nothing = Wants::default();
        let wants = wants.unwrap_or(&nothing);
        let end = from.saturating_add(limit);
        let mut survey = Survey::default();
        for at in from..end.min(self.workers.ordinals()) {
            if self.workers.is_used(at) && !self.workers.get(at).deleted {
                self.look_at(at, wants, now_ms + needs_ms, &mut survey);
            }
        }
        (survey, (end < self.workers.ordinals()).then_some(end))
    }

    fn look_at(&self, at: u32, wants: &Wants, until_ms: Millis, survey: &mut Survey) {
        survey.workers += 1;
        let nothing = Resources::default();
        let asked = wants.spec.as_ref().map_or(&nothing, |spec| &spec.resources);
        if let Some(why) = self.barred_for(at, wants, asked) {
            survey.ruled_out[why as usize] += 1;
            return;
        }
        let room = self.room_of(at);
        let (short, rank) = room.short(asked);
        let last = self.last_reason(at, until_ms);
        if last.is_none() {
            survey.most_free.raise(&room.amounts());
        }
        match (lacks(&short), last) {
            (None, None) => survey.fits += 1,
            (None, Some(why)) => survey.ruled_out[why as usize] += 1,
            (Some(why), last) => {
                survey.ruled_out[why as usize] += 1;
                let card = self.workers.card(at);
                let small = !asked.fit_in(&card.spec.capacity);
                survey.too_small += u64::from(small);
                if last.is_none() {
                    let rank = (small, rank.0, rank.1);
                    let (worker, node) = (card.spec.id.clone(), card.spec.node.as_deref().map(Into::into));
                    survey.near(NearMiss { worker, node, short, rank });
                }
            }
        }
    }

    /// What room has nothing to do with, and comes before it.
    fn barred_for(&self, at: u32, wants: &Wants, asked: &Resources) -> Option<RuledOut> {
        let (worker, spec) = (self.workers.get(at), &self.workers.card(at).spec);
        // One that is kept for another claim may still be too small for this one, or busy: that comes before.
        if let Some(reason) = unschedulable_bits::reasons(worker.bars & !unschedulable_bits::PROMISED).next() {
            return Some(reason.into());
        }
        if wants.selector.as_ref().is_some_and(|selector| !selector.matches(&spec.labels)) {
            return Some(RuledOut::Selector);
        }
        if !wants.nodes.allows(spec.node.as_deref()) {
            return Some(RuledOut::Node);
        }
        if wants.worker.as_ref().is_some_and(|id| *id != spec.id) {
            return Some(RuledOut::Worker);
        }
        let model = spec.capacity.gpu.as_ref().map(|gpu| &gpu.model);
        let models = asked.gpu.as_ref().map_or(&[][..], |gpu| &gpu.models);
        let other = !models.is_empty() && !model.is_some_and(|model| models.contains(model));
        let kept_out = match &wants.cards {
            CardFilter::Any => false,
            CardFilter::Without => model.is_some(),
            CardFilter::Only(only) => model != Some(only),
        };
        (other || kept_out).then_some(RuledOut::GpuModel)
    }

    /// What room has nothing to do with, and comes after it.
    fn last_reason(&self, at: u32, until_ms: Millis) -> Option<RuledOut> {
        let why = match &self.shares {
            None => (self.workers.get(at).claim != NIL).then_some(RuledOut::Busy),
            Some(shares) if shares.is_over(at) => Some(RuledOut::Overcommitted),
            Some(shares) => shares.is_crowded(at).then_some(RuledOut::Claims),
        };
        let reserved = self.workers.get(at).bars & unschedulable_bits::PROMISED != 0;
        why.or_else(|| (!self.lasts(at, until_ms)).then_some(RuledOut::Expires))
            .or_else(|| reserved.then_some(RuledOut::Reserved))
    }

    fn room_of(&self, at: u32) -> Room {
        if let Some(shares) = &self.shares {
            let room = shares.fleet.room(at);
            let cards = room.cards.to_vec();
            return Room { cpu_milli: room.cpu_milli, memory_bytes: room.memory_bytes, slots: room.slots, cards };
        }
        let capacity = &self.workers.card(at).spec.capacity;
        let count = capacity.gpu.as_ref().map_or(0, |gpu| gpu.count as usize);
        Room {
            cpu_milli: capacity.cpu_milli,
            memory_bytes: capacity.memory_bytes,
            slots: capacity.slots,
            cards: vec![limits::CARD_MILLI as u16; count],
        }
    }
}
