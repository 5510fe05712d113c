//! Who is next, of those that wait. Pure: no clock, no locks.
//!
//! Order: priority; then the tenant with the smallest share; then arrival. Claims that ask for the same are one *shape*: if there is no
//! room for one of them there is none for the others, so a look at the queue tries each shape once, and what fits nothing holds up
//! nobody behind it.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};

use crate::model::Millis;

/// Shapes that one look goes past before it gives up until the next: what bounds its time.
const CLASSES_SCANNED_MAX: usize = 1_024;

/// When it came, among all that wait in this process; never used again.
pub type ArrivalNumber = u64;

/// A claim that waits.
#[derive(Debug)]
pub struct QueueEntry<T> {
    /// When it came.
    pub arrival: ArrivalNumber,
    /// The highest goes first.
    pub priority: u16,
    /// Number of its tenant.
    pub tenant: u64,
    /// What it asks for, as a hash: equal ones fit, or do not, alike.
    pub request_class: u64,
    /// When it is looked at in any case: it gives up, or settles for less.
    pub due_ms: Millis,
    /// It does not wait: if a look finds nothing for it, it is refused.
    pub newcomer: bool,
    /// It.
    pub item: T,
}

/// Place in the order: the lowest is next.
type QueueRank = (Reverse<u16>, u64, ArrivalNumber);

/// Those of one tenant, priority and shape, by arrival. The tenant's share is the same for all.
#[derive(Debug, Default)]
struct RequestClass {
    /// First of each tenant and priority.
    heads: BTreeSet<(QueueRank, u64)>,
    subqueues: HashMap<(u16, u64), BTreeSet<ArrivalNumber>>,
}

#[derive(Debug, Default)]
struct TenantQueue {
    share: u64,
    waiting: usize,
    /// Shape and priority of each of its lanes.
    subqueues: BTreeSet<(u64, u16)>,
}

/// Claims that wait for the same thing: a pool, or a tenant's quota.
#[derive(Debug)]
pub struct FairQueue<T> {
    waiters: HashMap<ArrivalNumber, QueueEntry<T>>,
    classes: HashMap<u64, RequestClass>,
    /// The first of each shape.
    ranked: BTreeSet<(QueueRank, u64)>,
    tenants: BTreeMap<u64, TenantQueue>,
    due: BTreeSet<(Millis, ArrivalNumber)>,
    /// Shapes for which there was no room when they were last tried.
    unplaceable: HashSet<u64>,
    newcomers: BTreeSet<ArrivalNumber>,
}

impl<T> Default for FairQueue<T> {
    fn default() -> Self {
        Self {
            waiters: HashMap::new(),
            classes: HashMap::new(),
            ranked: BTreeSet::new(),
            tenants: BTreeMap::new(),
            due: BTreeSet::new(),
            unplaceable: HashSet::new(),
            newcomers: BTreeSet::new(),
        }
    }
}

impl<T> FairQueue<T> {
    /// How many wait.
    #[must_use]
    pub fn len(&self) -> usize {
        self.waiters.len()
    }

    /// Whether nobody waits.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.waiters.is_empty()
    }

    /// How many of a tenant wait.
    #[must_use]
    pub fn waiting_of(&self, tenant: u64) -> usize {
        self.tenants.get(&tenant).map_or(0, |member| member.waiting)
    }

    /// Somebody begins to wait, or goes on.
    pub fn insert(&mut self, waiter: QueueEntry<T>) {
        let QueueEntry { arrival, priority, tenant, request_class: shape, due_ms, newcomer: once, .. } = waiter;
        let member = self.tenants.entry(tenant).or_default();
        member.waiting += 1;
        member.subqueues.insert((shape, priority));
        self.unrank(shape);
        let of = self.classes.entry(shape).or_default();
        let lane = of.subqueues.entry((priority, tenant)).or_default();
        let first = lane.first().copied();
        lane.insert(arrival);
        let share = self.tenants[&tenant].share;
        if first.is_none_or(|first| arrival < first) {
            if let Some(first) = first {
                of.heads.remove(&((Reverse(priority), share, first), tenant));
            }
            of.heads.insert(((Reverse(priority), share, arrival), tenant));
        }
        self.rank(shape);
        self.due.insert((due_ms, arrival));
        if once {
            self.newcomers.insert(arrival);
        }
        self.waiters.insert(arrival, waiter);
    }

    /// It waits no longer.
    pub fn remove(&mut self, arrival: ArrivalNumber) -> Option<QueueEntry<T>> {
        let waiter = self.waiters.remove(&arrival)?;
        let QueueEntry { priority, tenant, request_class: shape, due_ms, newcomer: once, .. } = waiter;
        self.unrank(shape);
        let member = self.tenants.get_mut(&tenant).expect("a waiter has a tenant");
        member.waiting -= 1;
        let of = self.classes.get_mut(&shape).expect("a waiter has a shape");
        let lane = of.subqueues.get_mut(&(priority, tenant)).expect("a waiter has a lane");
        let was_first = lane.first() == Some(&arrival);
        lane.remove(&arrival);
        let next = lane.first().copied();
        if was_first {
            of.heads.remove(&((Reverse(priority), member.share, arrival), tenant));
            if let Some(next) = next {
                of.heads.insert(((Reverse(priority), member.share, next), tenant));
            }
        }
        if next.is_none() {
            of.subqueues.remove(&(priority, tenant));
            member.subqueues.remove(&(shape, priority));
        }
        if of.subqueues.is_empty() {
            self.classes.remove(&shape);
            self.unplaceable.remove(&shape);
        } else {
            self.rank(shape);
        }
        if self.tenants[&tenant].waiting == 0 {
            self.tenants.remove(&tenant);
        }
        self.due.remove(&(due_ms, arrival));
        if once {
            self.newcomers.remove(&arrival);
        }
        Some(waiter)
    }

    fn unrank(&mut self, shape: u64) {
        if let Some(&(rank, _)) = self.classes.get(&shape).and_then(|of| of.heads.first()) {
            self.ranked.remove(&(rank, shape));
        }
    }

    fn rank(&mut self, shape: u64) {
        if let Some(&(rank, _)) = self.classes.get(&shape).and_then(|of| of.heads.first()) {
            self.ranked.insert((rank, shape));
        }
    }

    /// A tenant holds this share from now on.
    pub fn set_share(&mut self, tenant: u64, share: u64) {
        let Some(member) = self.tenants.get_mut(&tenant) else { return };
        let before = std::mem::replace(&mut member.share, share);
        if before == share {
            return;
        }
        for (shape, priority) in member.subqueues.clone() {
            self.unrank(shape);
            if let Some(of) = self.classes.get_mut(&shape)
                && let Some(&first) = of.subqueues.get(&(priority, tenant)).and_then(BTreeSet::first)
            {
                of.heads.remove(&((Reverse(priority), before, first), tenant));
                of.heads.insert(((Reverse(priority), share, first), tenant));
            }
            self.rank(shape);
        }
    }

    /// Up to `limit` tenants of which some wait, from the one after `from` on, and around.
    #[must_use]
    pub fn tenants_after(&self, from: u64, limit: usize) -> Vec<u64> {
        let (after, before) = (self.tenants.range(from + 1..), self.tenants.range(..=from));
        after.chain(before).take(limit).map(|(tenant, _)| *tenant).collect()
    }

    /// The next whose shape was not tried in vain. It stays where it is.
    #[must_use]
    pub fn peek(&self) -> Option<&QueueEntry<T>> {
        let untried = |(_, shape): &&(QueueRank, u64)| !self.unplaceable.contains(shape);
        let (_, shape) = self.ranked.iter().take(CLASSES_SCANNED_MAX).find(untried)?;
        let ((.., arrival), _) = self.classes.get(shape)?.heads.first()?;
        self.waiters.get(arrival)
    }

    /// The first of all, whether it was tried or not.
    #[must_use]
    pub fn first(&self) -> Option<ArrivalNumber> {
        let ((.., arrival), _) = self.ranked.first()?;
        Some(*arrival)
    }

    /// This one, unless its shape was tried in vain.
    #[must_use]
    pub fn peek_arrival(&self, arrival: ArrivalNumber) -> Option<&QueueEntry<T>> {
        self.waiters.get(&arrival).filter(|waiter| !self.unplaceable.contains(&waiter.request_class))
    }

    /// There is no room for this shape at present.
    pub fn mark_unplaceable(&mut self, shape: u64) {
        if self.classes.contains_key(&shape) {
            self.unplaceable.insert(shape);
        }
    }

    /// There may be room for whatever there was none before.
    pub fn clear_unplaceable(&mut self) {
        self.unplaceable.clear();
    }

    /// Those that must be looked at by now, at most so many.
    pub fn due(&self, now_ms: Millis, limit: usize) -> impl Iterator<Item = &T> {
        let due = self.due.iter().take_while(move |(due_ms, _)| *due_ms <= now_ms).take(limit);
        due.filter_map(|(_, arrival)| self.waiters.get(arrival)).map(|waiter| &waiter.item)
    }

    /// Those that do not wait.
    pub fn newcomers(&self) -> impl Iterator<Item = &T> {
        self.newcomers.iter().filter_map(|arrival| self.waiters.get(arrival)).map(|waiter| &waiter.item)
    }

    /// How many go before this one as things stand: those with a higher priority, and of its own those whose turn comes earlier if
    /// tenants take turns.
    #[must_use]
    pub fn count_ahead(&self, arrival: ArrivalNumber) -> Option<usize> {
        let waiter = self.waiters.get(&arrival)?;
        let (mut higher, mut own) = (0, 0);
        let mut level: HashMap<u64, usize> = HashMap::new();
        for of in self.classes.values() {
            for (&(priority, tenant), lane) in &of.subqueues {
                match priority.cmp(&waiter.priority) {
                    std::cmp::Ordering::Greater => higher += lane.len(),
                    std::cmp::Ordering::Equal if tenant == waiter.tenant => own += lane.range(..arrival).count(),
                    std::cmp::Ordering::Equal => *level.entry(tenant).or_default() += lane.len(),
                    std::cmp::Ordering::Less => {}
                }
            }
        }
        Some(higher + own + level.into_values().map(|waiting| waiting.min(own)).sum::<usize>())
    }

    /// All that wait, in no order.
    pub fn iter(&self) -> impl Iterator<Item = &QueueEntry<T>> {
        self.waiters.values()
    }

    /// Everybody leaves.
    pub fn drain(&mut self) -> Vec<QueueEntry<T>> {
        let all = std::mem::take(self);
        all.waiters.into_values().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[derive(Debug, Clone)]
    enum Step {
        Insert { priority: u16, tenant: u64, shape: u64, due_ms: Millis, once: bool },
        Remove(usize),
        Share(u64, u64),
        Fail(u64),
        Retry,
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            6 => (0..3_u16, 0..4_u64, 0..4_u64, 0..50_u64, proptest::bool::weighted(0.2)).prop_map(
                |(priority, tenant, shape, due_ms, once)| Step::Insert { priority, tenant, shape, due_ms, once }
            ),
            4 => any::<usize>().prop_map(Step::Remove),
            2 => (0..4_u64, 0..3_u64).prop_map(|(tenant, share)| Step::Share(tenant, share)),
            2 => (0..4_u64).prop_map(Step::Fail),
            1 => Just(Step::Retry),
        ]
    }

    /// All of them in a list, looked through each time.
    #[derive(Default)]
    struct Naive {
        all: Vec<(u16, u64, u64, Millis, bool, ArrivalNumber)>,
        shares: HashMap<u64, u64>,
        failed: HashSet<u64>,
    }

    impl Naive {
        fn share(&self, tenant: u64) -> u64 {
            self.shares.get(&tenant).copied().unwrap_or(0)
        }

        fn next(&self) -> Option<ArrivalNumber> {
            let untried = self.all.iter().filter(|(_, _, shape, ..)| !self.failed.contains(shape));
            untried
                .min_by_key(|(priority, tenant, .., arrival)| (Reverse(*priority), self.share(*tenant), *arrival))
                .map(|(.., arrival)| *arrival)
        }

        /// What is known of a shape or a tenant is forgotten with the last that has it.
        fn forget(&mut self) {
            let all = &self.all;
            self.failed.retain(|failed| all.iter().any(|(_, _, shape, ..)| shape == failed));
            self.shares.retain(|known, _| all.iter().any(|(_, tenant, ..)| tenant == known));
        }
    }

    proptest! {
        #[test]
        fn q04_the_next_is_the_one_that_a_list_gives(steps in prop::collection::vec(step(), 1..200)) {
            let (mut queue, mut naive) = (FairQueue::default(), Naive::default());
            for (step, arrival) in steps.into_iter().zip(1..) {
                match step {
                    Step::Insert { priority, tenant, shape, due_ms, once } => {
                        queue.insert(QueueEntry { arrival, priority, tenant, request_class: shape, due_ms, newcomer: once, item: arrival });
                        naive.all.push((priority, tenant, shape, due_ms, once, arrival));
                    }
                    Step::Remove(which) => {
                        if !naive.all.is_empty() {
                            let (.., gone) = naive.all.remove(which % naive.all.len());
                            prop_assert_eq!(queue.remove(gone).map(|waiter| waiter.item), Some(gone));
                            prop_assert!(queue.remove(gone).is_none());
                            naive.forget();
                        }
                    }
                    Step::Share(tenant, share) => {
                        queue.set_share(tenant, share);
                        if naive.all.iter().any(|(_, known, ..)| *known == tenant) {
                            naive.shares.insert(tenant, share);
                        }
                    }
                    Step::Fail(shape) => {
                        queue.mark_unplaceable(shape);
                        if naive.all.iter().any(|(_, _, known, ..)| *known == shape) {
                            naive.failed.insert(shape);
                        }
                    }
                    Step::Retry => {
                        queue.clear_unplaceable();
                        naive.failed.clear();
                    }
                }
                prop_assert_eq!(queue.len(), naive.all.len());
                prop_assert_eq!(queue.peek().map(|waiter| waiter.arrival), naive.next());
                for tenant in 0..4 {
                    let waiting = naive.all.iter().filter(|(_, known, ..)| *known == tenant).count();
                    prop_assert_eq!(queue.waiting_of(tenant), waiting);
                }
                let mut due: Vec<ArrivalNumber> = queue.due(25, 1_000).copied().collect();
                due.sort_unstable();
                let late: Vec<ArrivalNumber> =
                    naive.all.iter().filter(|(_, _, _, due_ms, ..)| *due_ms <= 25).map(|(.., arrival)| *arrival).collect();
                prop_assert_eq!(due, late);
                prop_assert_eq!(queue.newcomers().count(), naive.all.iter().filter(|(.., once, _)| *once).count());
            }
        }
    }

    #[test]
    fn tenants_take_turns_in_what_is_ahead() {
        let mut queue = FairQueue::default();
        for (arrival, tenant, priority) in [(1, 1, 0), (2, 1, 0), (3, 1, 0), (4, 2, 0), (5, 2, 0), (6, 3, 9)] {
            queue.insert(QueueEntry {
                arrival,
                priority,
                tenant,
                request_class: 0,
                due_ms: 0,
                newcomer: false,
                item: (),
            });
        }
        // The urgent one; of its own tenant those before it; of the other as many.
        let ahead = |arrival| queue.count_ahead(arrival);
        assert_eq!([ahead(1), ahead(2), ahead(3)], [Some(1), Some(3), Some(5)]);
        assert_eq!([ahead(4), ahead(5), ahead(6), ahead(7)], [Some(1), Some(3), Some(0), None]);
    }
}
