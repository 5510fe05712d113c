//! Order of the claims that wait. Pure: no clock, no locks.
//!
//! The order is priority, then the smallest share of a tenant, then arrival. Claims that request the same form a
//! *request class*: if one of them does not fit, none does. So a scan tries each class once, and a claim that fits
//! nowhere blocks nobody behind it.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::num::NonZeroU64;

use crate::model::Millis;

/// Maximum number of request classes that one scan examines, which bounds its time.
const CLASSES_SCANNED_MAX: usize = 1_024;

/// Arrival number of a claim, unique among all that wait in this process.
pub type ArrivalNumber = NonZeroU64;

/// Claim that waits, with what determines its rank.
#[derive(Debug)]
pub struct QueueEntry<T> {
    /// Arrival number of the claim.
    pub arrival: ArrivalNumber,
    /// Priority; the highest goes first.
    pub priority: u16,
    /// Number of the tenant.
    pub tenant: u64,
    /// Hash of the request: claims of the same class are placeable or not placeable together.
    pub request_class: u64,
    /// Time at which the claim is revisited in any case: to give up, or to accept less preferred nodes.
    pub due_ms: Millis,
    /// Whether the claim does not wait: it is rejected if the scan finds nothing for it.
    pub newcomer: bool,
    /// The queued claim itself.
    pub item: T,
}

/// Rank in the queue; the lowest is next.
type QueueRank = (Reverse<u16>, u64, ArrivalNumber);

/// Claims of one request class, by tenant, priority and arrival. All claims of a tenant have the same share.
#[derive(Debug, Default)]
struct RequestClass {
    /// First claim of each tenant and priority.
    heads: BTreeSet<(QueueRank, u64)>,
    subqueues: HashMap<(u16, u64), BTreeSet<ArrivalNumber>>,
}

#[derive(Debug, Default)]
struct TenantQueue {
    share: u64,
    waiting: usize,
    /// Request class and priority of each of the tenant's subqueues.
    subqueues: BTreeSet<(u64, u16)>,
}

/// Fair queue of the claims that wait for a pool, or for a tenant's quota.
#[derive(Debug)]
pub struct FairQueue<T> {
    entries: HashMap<ArrivalNumber, QueueEntry<T>>,
    classes: HashMap<u64, RequestClass>,
    /// First claim of each request class.
    ranked: BTreeSet<(QueueRank, u64)>,
    tenants: BTreeMap<u64, TenantQueue>,
    due: BTreeSet<(Millis, ArrivalNumber)>,
    /// Request classes that did not fit when they were last tried.
    unplaceable: HashSet<u64>,
    newcomers: BTreeSet<ArrivalNumber>,
}

impl<T> Default for FairQueue<T> {
    fn default() -> Self {
        Self {
            entries: HashMap::new(),
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
    /// Number of entries, newcomers included.
    #[must_use]
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether the queue has no entries.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Entry with this arrival number, whether it may fit or not.
    #[must_use]
    pub fn get(&self, arrival: ArrivalNumber) -> Option<&QueueEntry<T>> {
        self.entries.get(&arrival)
    }

    /// Number of entries of a tenant.
    #[must_use]
    pub fn waiting_of(&self, tenant: u64) -> usize {
        self.tenants.get(&tenant).map_or(0, |tenant_queue| tenant_queue.waiting)
    }

    /// Adds an entry to the queue.
    pub fn insert(&mut self, entry: QueueEntry<T>) {
        let QueueEntry { arrival, priority, tenant, request_class, due_ms, newcomer, .. } = entry;
        let tenant_queue = self.tenants.entry(tenant).or_default();
        tenant_queue.waiting += 1;
        tenant_queue.subqueues.insert((request_class, priority));
        self.unrank(request_class);
        let class = self.classes.entry(request_class).or_default();
        let subqueue = class.subqueues.entry((priority, tenant)).or_default();
        let first = subqueue.first().copied();
        subqueue.insert(arrival);
        let share = self.tenants[&tenant].share;
        if first.is_none_or(|first| arrival < first) {
            if let Some(first) = first {
                class.heads.remove(&((Reverse(priority), share, first), tenant));
            }
            class.heads.insert(((Reverse(priority), share, arrival), tenant));
        }
        self.rank(request_class);
        self.due.insert((due_ms, arrival));
        if newcomer {
            self.newcomers.insert(arrival);
        }
        self.entries.insert(arrival, entry);
    }

    /// Removes the entry with this arrival number.
    pub fn remove(&mut self, arrival: ArrivalNumber) -> Option<QueueEntry<T>> {
        let entry = self.entries.remove(&arrival)?;
        let QueueEntry { priority, tenant, request_class, due_ms, newcomer, .. } = entry;
        self.unrank(request_class);
        let tenant_queue = self.tenants.get_mut(&tenant).expect("a queued claim has a tenant");
        tenant_queue.waiting -= 1;
        let class = self.classes.get_mut(&request_class).expect("a queued claim has a class");
        let subqueue = class.subqueues.get_mut(&(priority, tenant)).expect("a queued claim has a subqueue");
        let was_first = subqueue.first() == Some(&arrival);
        subqueue.remove(&arrival);
        let next = subqueue.first().copied();
        if was_first {
            class.heads.remove(&((Reverse(priority), tenant_queue.share, arrival), tenant));
            if let Some(next) = next {
                class.heads.insert(((Reverse(priority), tenant_queue.share, next), tenant));
            }
        }
        if next.is_none() {
            class.subqueues.remove(&(priority, tenant));
            tenant_queue.subqueues.remove(&(request_class, priority));
        }
        if class.subqueues.is_empty() {
            self.classes.remove(&request_class);
            self.unplaceable.remove(&request_class);
        } else {
            self.rank(request_class);
        }
        if self.tenants[&tenant].waiting == 0 {
            self.tenants.remove(&tenant);
        }
        self.due.remove(&(due_ms, arrival));
        if newcomer {
            self.newcomers.remove(&arrival);
        }
        Some(entry)
    }

    fn unrank(&mut self, request_class: u64) {
        if let Some(&(rank, _)) = self.classes.get(&request_class).and_then(|class| class.heads.first()) {
            self.ranked.remove(&(rank, request_class));
        }
    }

    fn rank(&mut self, request_class: u64) {
        if let Some(&(rank, _)) = self.classes.get(&request_class).and_then(|class| class.heads.first()) {
            self.ranked.insert((rank, request_class));
        }
    }

    /// Updates the share of a tenant.
    pub fn set_share(&mut self, tenant: u64, share: u64) {
        let Some(tenant_queue) = self.tenants.get_mut(&tenant) else { return };
        let before = std::mem::replace(&mut tenant_queue.share, share);
        if before == share {
            return;
        }
        for (request_class, priority) in tenant_queue.subqueues.clone() {
            self.unrank(request_class);
            if let Some(class) = self.classes.get_mut(&request_class)
                && let Some(&first) = class.subqueues.get(&(priority, tenant)).and_then(BTreeSet::first)
            {
                class.heads.remove(&((Reverse(priority), before, first), tenant));
                class.heads.insert(((Reverse(priority), share, first), tenant));
            }
            self.rank(request_class);
        }
    }

    /// Up to `limit` tenants with entries, beginning after `from` and wrapping around.
    #[must_use]
    pub fn tenants_after(&self, from: u64, limit: usize) -> Vec<u64> {
        let (after, before) = (self.tenants.range(from + 1..), self.tenants.range(..=from));
        after.chain(before).take(limit).map(|(tenant, _)| *tenant).collect()
    }

    /// First entry whose request class may fit. Does not remove it.
    #[must_use]
    pub fn peek(&self) -> Option<&QueueEntry<T>> {
        let may_fit = |(_, request_class): &&(QueueRank, u64)| !self.unplaceable.contains(request_class);
        let (_, request_class) = self.ranked.iter().take(CLASSES_SCANNED_MAX).find(may_fit)?;
        let ((.., arrival), _) = self.classes.get(request_class)?.heads.first()?;
        self.entries.get(arrival)
    }

    /// Arrival number of the first entry of all, whether it may fit or not.
    #[must_use]
    pub fn first(&self) -> Option<ArrivalNumber> {
        let ((.., arrival), _) = self.ranked.first()?;
        Some(*arrival)
    }

    /// Entry with this arrival number, if its request class may fit.
    #[must_use]
    pub fn peek_arrival(&self, arrival: ArrivalNumber) -> Option<&QueueEntry<T>> {
        self.entries.get(&arrival).filter(|entry| !self.unplaceable.contains(&entry.request_class))
    }

    /// Marks a request class as not fitting at present.
    pub fn mark_unplaceable(&mut self, request_class: u64) {
        if self.classes.contains_key(&request_class) {
            self.unplaceable.insert(request_class);
        }
    }

    /// Forgets which request classes did not fit.
    pub fn clear_unplaceable(&mut self) {
        self.unplaceable.clear();
    }

    /// Up to `limit` entries that are due for a visit.
    pub fn due(&self, now_ms: Millis, limit: usize) -> impl Iterator<Item = &T> {
        let due = self.due.iter().take_while(move |(due_ms, _)| *due_ms <= now_ms).take(limit);
        due.filter_map(|(_, arrival)| self.entries.get(arrival)).map(|entry| &entry.item)
    }

    /// Entries that do not wait.
    pub fn newcomers(&self) -> impl Iterator<Item = &T> {
        self.newcomers.iter().filter_map(|arrival| self.entries.get(arrival)).map(|entry| &entry.item)
    }

    /// Number of claims ahead of this one at present: those with a higher priority, and of its own priority those that
    /// are served earlier if tenants alternate.
    #[must_use]
    pub fn count_ahead(&self, arrival: ArrivalNumber) -> Option<usize> {
        let entry = self.entries.get(&arrival)?;
        let (mut higher, mut own) = (0, 0);
        let mut level: HashMap<u64, usize> = HashMap::new();
        for class in self.classes.values() {
            for (&(priority, tenant), subqueue) in &class.subqueues {
                match priority.cmp(&entry.priority) {
                    std::cmp::Ordering::Greater => higher += subqueue.len(),
                    std::cmp::Ordering::Equal if tenant == entry.tenant => own += subqueue.range(..arrival).count(),
                    std::cmp::Ordering::Equal => *level.entry(tenant).or_default() += subqueue.len(),
                    std::cmp::Ordering::Less => {}
                }
            }
        }
        Some(higher + own + level.into_values().map(|waiting| waiting.min(own)).sum::<usize>())
    }

    /// All entries, in no particular order.
    pub fn iter(&self) -> impl Iterator<Item = &QueueEntry<T>> {
        self.entries.values()
    }

    /// Removes and returns all entries.
    pub fn drain(&mut self) -> Vec<QueueEntry<T>> {
        let all = std::mem::take(self);
        all.entries.into_values().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[derive(Debug, Clone)]
    enum Step {
        Insert { priority: u16, tenant: u64, request_class: u64, due_ms: Millis, newcomer: bool },
        Remove(usize),
        Share(u64, u64),
        Fail(u64),
        Retry,
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            6 => (0..3_u16, 0..4_u64, 0..4_u64, 0..50_u64, proptest::bool::weighted(0.2)).prop_map(
                |(priority, tenant, request_class, due_ms, newcomer)| Step::Insert { priority, tenant, request_class, due_ms, newcomer }
            ),
            4 => any::<usize>().prop_map(Step::Remove),
            2 => (0..4_u64, 0..3_u64).prop_map(|(tenant, share)| Step::Share(tenant, share)),
            2 => (0..4_u64).prop_map(Step::Fail),
            1 => Just(Step::Retry),
        ]
    }

    /// Reference model: all entries in a list that is scanned each time.
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
            let may_fit = self.all.iter().filter(|(_, _, request_class, ..)| !self.failed.contains(request_class));
            may_fit
                .min_by_key(|(priority, tenant, .., arrival)| (Reverse(*priority), self.share(*tenant), *arrival))
                .map(|(.., arrival)| *arrival)
        }

        /// Marks and shares are forgotten with the last entry that has them.
        fn forget(&mut self) {
            let all = &self.all;
            self.failed.retain(|failed| all.iter().any(|(_, _, request_class, ..)| request_class == failed));
            self.shares.retain(|existing, _| all.iter().any(|(_, tenant, ..)| tenant == existing));
        }
    }

    proptest! {
        #[test]
        fn q04_the_next_claim_is_the_one_that_a_list_gives(steps in prop::collection::vec(step(), 1..200)) {
            let (mut queue, mut naive) = (FairQueue::default(), Naive::default());
            for (step, arrival) in steps.into_iter().zip((1..).filter_map(ArrivalNumber::new)) {
                match step {
                    Step::Insert { priority, tenant, request_class, due_ms, newcomer } => {
                        queue.insert(QueueEntry { arrival, priority, tenant, request_class, due_ms, newcomer, item: arrival });
                        naive.all.push((priority, tenant, request_class, due_ms, newcomer, arrival));
                    }
                    Step::Remove(which) => {
                        if !naive.all.is_empty() {
                            let (.., gone) = naive.all.remove(which % naive.all.len());
                            prop_assert_eq!(queue.remove(gone).map(|entry| entry.item), Some(gone));
                            prop_assert!(queue.remove(gone).is_none());
                            naive.forget();
                        }
                    }
                    Step::Share(tenant, share) => {
                        queue.set_share(tenant, share);
                        if naive.all.iter().any(|(_, existing, ..)| *existing == tenant) {
                            naive.shares.insert(tenant, share);
                        }
                    }
                    Step::Fail(request_class) => {
                        queue.mark_unplaceable(request_class);
                        if naive.all.iter().any(|(_, _, existing, ..)| *existing == request_class) {
                            naive.failed.insert(request_class);
                        }
                    }
                    Step::Retry => {
                        queue.clear_unplaceable();
                        naive.failed.clear();
                    }
                }
                prop_assert_eq!(queue.len(), naive.all.len());
                prop_assert_eq!(queue.peek().map(|entry| entry.arrival), naive.next());
                for tenant in 0..4 {
                    let waiting = naive.all.iter().filter(|(_, existing, ..)| *existing == tenant).count();
                    prop_assert_eq!(queue.waiting_of(tenant), waiting);
                }
                let mut due: Vec<ArrivalNumber> = queue.due(25, 1_000).copied().collect();
                due.sort_unstable();
                let late: Vec<ArrivalNumber> =
                    naive.all.iter().filter(|(_, _, _, due_ms, ..)| *due_ms <= 25).map(|(.., arrival)| *arrival).collect();
                prop_assert_eq!(due, late);
                prop_assert_eq!(queue.newcomers().count(), naive.all.iter().filter(|(.., newcomer, _)| *newcomer).count());
            }
        }
    }

    #[test]
    fn tenants_alternate_in_the_number_ahead() {
        let mut queue = FairQueue::default();
        for (arrival, tenant, priority) in [(1, 1, 0), (2, 1, 0), (3, 1, 0), (4, 2, 0), (5, 2, 0), (6, 3, 9)] {
            queue.insert(QueueEntry {
                arrival: ArrivalNumber::new(arrival).unwrap(),
                priority,
                tenant,
                request_class: 0,
                due_ms: 0,
                newcomer: false,
                item: (),
            });
        }
        // Ahead are the urgent claim, earlier claims of the same tenant, and as many of the other tenant.
        let ahead = |arrival| queue.count_ahead(ArrivalNumber::new(arrival).unwrap());
        assert_eq!([ahead(1), ahead(2), ahead(3)], [Some(1), Some(3), Some(5)]);
        assert_eq!([ahead(4), ahead(5), ahead(6), ahead(7)], [Some(1), Some(3), Some(0), None]);
    }
}
