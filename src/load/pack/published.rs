//! The scores of the published runs, digit for digit: best fit and FGD as the paper's own simulator has them (Weng et
//! al., "Beware of Fragmentation", USENIX ATC 2023), over rooms that the engine keeps. Only for comparison with what was
//! published; the service has its own order ([`hotpool::engine::placement::bin_packing`]).
//!
//! They are floating-point numbers cut to integers from 0 to 100, so the order of additions matters and is kept.

use std::collections::HashMap;
use std::sync::Arc;

use super::input::{Input, Request};
use hotpool::engine::placement::bin_packing::{
    CARD_MILLI, CardRule, Cards, Fleet, Group, ModelId, Share, choose_cards,
};

/// What a typical request asks for, and its share.
#[derive(Debug)]
struct Typical {
    cpu_milli: u64,
    card_milli: u16,
    cards: usize,
    /// None: any.
    models: Option<Vec<ModelId>>,
    share: f64,
}

/// How a run of the published scores decides.
#[derive(Debug)]
pub enum Published {
    /// Best fit.
    BestFit,
    /// FGD over this mix.
    Fgd(Box<Gradient>),
}

impl Published {
    /// FGD over the mix of the requests.
    #[must_use]
    pub fn fgd(input: &Input) -> Self {
        Self::Fgd(Box::new(Gradient { mix: mix(input), fragments: Vec::new(), scores: HashMap::new() }))
    }

    /// The worker that the request takes, and what it takes there.
    pub fn decide(&mut self, fleet: &Fleet, request: &Request) -> Option<(u32, Share)> {
        let need = &request.need;
        // A list of which no model is known is not the same as no list.
        if need.models.is_empty() && !request.models.is_empty() {
            return None;
        }
        match self {
            Self::BestFit => {
                let worker = fleet.pick_by(need, |_, group| best_fit(group, request))?;
                let from = CardRule::Fullest.from(&fleet.room(worker).cards, need);
                Some((worker, need.share(choose_cards(fleet.cards(worker), need, from)?)))
            }
            Self::Fgd(gradient) => {
                let worker = fleet.pick_by(need, |at, group| gradient.score(at, group, request))?;
                let cards = gradient.choose(fleet, worker, request)?;
                Some((worker, need.share(cards)))
            }
        }
    }
}

fn best_fit(group: &Group, request: &Request) -> i64 {
    let room = &group.room;
    let mut left = (room.cpu_milli - request.need.cpu_milli) as f64 / 128_000.0 * 0.5;
    left += (u64::from(room.cards_milli()) - request.gpu_milli()) as f64 / 8_000.0 * 0.5;
    ((1.0 - left) * 100.0) as i64
}

/// The mix, and what was worked out.
#[derive(Debug)]
pub struct Gradient {
    mix: Vec<Typical>,
    /// Of groups: their birth, and their fragments.
    fragments: Vec<(u64, f64)>,
    /// By cores, cards and thousandths of the request: per group its birth, and the score.
    scores: HashMap<(u64, u16, u16), Vec<(u64, i64)>>,
}

impl Gradient {
    fn score(&mut self, at: u32, group: &Group, request: &Request) -> i64 {
        let need = &request.need;
        let (at, birth) = (at as usize, group.birth());
        let row = self.scores.entry((need.cpu_milli, need.cards, need.card_milli)).or_default();
        if row.len() <= at {
            row.resize(at + 1, (0, 0));
        }
        if row[at].0 == birth {
            return row[at].1;
        }
        if self.fragments.len() <= at {
            self.fragments.resize(at + 1, (0, 0.0));
        }
        let room = &group.room;
        if self.fragments[at].0 != birth {
            self.fragments[at] = (birth, fragments(&self.mix, room.cpu_milli, &room.cards, room.model));
        }
        let before = self.fragments[at].1;
        let mut cards = room.cards.clone();
        let cpu_milli = room.cpu_milli - need.cpu_milli;
        let score = if need.cards == 1 && need.card_milli < CARD_MILLI {
            let each = 0..cards.len();
            let scores = each.filter(|&card| room.cards[card] >= need.card_milli).map(|card| {
                cards[card] -= need.card_milli;
                let score = growth(before - fragments(&self.mix, cpu_milli, &cards, room.model));
                cards[card] += need.card_milli;
                score
            });
            scores.max().unwrap_or(0)
        } else {
            cards[..need.cards as usize].fill(0);
            growth(before - fragments(&self.mix, cpu_milli, &cards, room.model))
        };
        row[at] = (birth, score);
        score
    }

    /// A share takes the card with the best score, the first of them in the order of the cards.
    fn choose(&self, fleet: &Fleet, worker: u32, request: &Request) -> Option<u64> {
        let need = &request.need;
        if need.cards != 1 || need.card_milli == CARD_MILLI {
            return choose_cards(fleet.cards(worker), need, CARD_MILLI);
        }
        let room = fleet.room(worker);
        let before = fragments(&self.mix, room.cpu_milli, &room.cards, room.model);
        let mut cards: Cards = fleet.cards(worker).iter().copied().collect();
        let mut best: Option<(i64, usize)> = None;
        for card in 0..cards.len() {
            if cards[card] < need.card_milli {
                continue;
            }
            cards[card] -= need.card_milli;
            let after = fragments(&self.mix, room.cpu_milli - need.cpu_milli, &cards, room.model);
            cards[card] += need.card_milli;
            let score = growth(before - after);
            if best.is_none_or(|(high, _)| score > high) {
                best = Some((score, card));
            }
        }
        best.map(|(_, card)| 1 << card)
    }
}

fn growth(less: f64) -> i64 {
    (100.0 / (1.0 + (-less / 1000.0).exp())) as i64
}

/// Idle thousandths that a typical request cannot use, summed up by why not, as the published runs do.
fn fragments(mix: &[Typical], cpu_milli: u64, cards: &[u16], model: ModelId) -> f64 {
    let idle = cards.iter().map(|&milli| u32::from(milli)).sum::<u32>();
    let mut sums = [0.0_f64; 6];
    for typical in mix {
        let cores = cpu_milli >= typical.cpu_milli;
        if typical.card_milli == 0 {
            sums[if cores { 3 } else { 4 }] += typical.share * f64::from(idle);
            continue;
        }
        if typical.models.as_ref().is_some_and(|models| !models.contains(&model)) {
            sums[5] += typical.share * f64::from(idle);
            continue;
        }
        let (mut fitting, mut small) = (0, 0_u32);
        for &milli in cards {
            if milli >= typical.card_milli {
                fitting += 1;
            } else {
                small += u32::from(milli);
            }
        }
        let (sum, lost) = match (fitting >= typical.cards, cores) {
            (true, true) => (1, small),
            (true, false) => (2, idle),
            (false, true) => (1, idle),
            (false, false) => (0, idle),
        };
        sums[sum] += typical.share * f64::from(lost);
    }
    sums[0] + sums[1] + sums[2] + sums[3] + sums[4] + sums[5]
}

/// The most frequent requests, memory aside, that make up 95 % of the rows. Equal counts go by the demand itself, the
/// words for its models included.
fn mix(input: &Input) -> Vec<Typical> {
    type Demand = (u64, u16, u16, Arc<str>);
    let mut counts: HashMap<Demand, (usize, &Request)> = HashMap::new();
    for request in &input.requests {
        let need = &request.need;
        let demand = (need.cpu_milli, need.card_milli, need.cards, Arc::clone(&request.models));
        counts.entry(demand).or_insert((0, request)).0 += 1;
    }
    let mut counts: Vec<(usize, Demand, &Request)> =
        counts.into_iter().map(|(demand, (count, request))| (count, demand, request)).collect();
    counts.sort_by(|one, two| (two.0, &two.1).cmp(&(one.0, &one.1)));
    let total = input.requests.len() as f64;
    let (mut covered, mut many) = (0.0, 0);
    while covered < 95.0 * total / 100.0 {
        covered += counts[many].0 as f64;
        many += 1;
    }
    let whole = if many < counts.len() { covered / total } else { 1.0 };
    let typical = counts[..many].iter().map(|(count, _, request)| Typical {
        cpu_milli: request.need.cpu_milli,
        card_milli: request.need.card_milli,
        cards: request.need.cards as usize,
        models: (!request.models.is_empty()).then(|| request.need.models.to_vec()),
        share: *count as f64 / total / whole,
    });
    typical.collect()
}
