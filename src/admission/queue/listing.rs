//! Listing of claims that wait, and of members of gangs that wait, by arrival, page by page.
//!
//! A claim has the same arrival number in all of its queues and as long as it waits. So a page begins at an arrival number,
//! and whoever stays is listed once, whoever comes, goes or moves to other pools meanwhile. The queues are merged: each is
//! read in slices of at most [`SLICE_VISITS_MAX`] entries under its lock, the one with the lowest next arrival first. A page
//! reads each queue once, and beyond that at most [`limits::PAGE_SLICES_MAX`] slices; then it ends early. What is ahead is
//! counted at the end, for the claims on the page and in slices as well.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap, VecDeque};
use std::sync::Arc;

use super::gang_directory::GangEntry;
use super::wait_queue::{CountStep, PositionCount};
use super::{ArrivalNumber, QueuedClaim, WaitingGang};
use crate::admission::dispatch::ClaimDispatcher;
use crate::admission::key::KeyLookup;
use crate::admission::pool_registry::Pool;
use crate::collections::HashMap;
use crate::limits;
use crate::model::request_error::ExhaustionReason;
use crate::model::{ClaimId, Millis, PoolName, QueuedClaimView};

/// Entries that a slice visits, which bounds how long it holds a lock.
const SLICE_VISITS_MAX: usize = 512;

/// Position in a listing: its first entry that was not visited.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct WaitingPosition {
    /// Arrival number of the entry, or a lower one.
    pub arrival: ArrivalNumber,
    /// Index of the member, if the entry is a gang.
    pub member: usize,
}

impl WaitingPosition {
    /// Position before every entry.
    pub const START: Self = Self { arrival: ArrivalNumber::MIN, member: 0 };
}

/// Filter of a listing of claims that wait.
#[derive(Debug, Clone, Default)]
pub struct WaitingFilter {
    /// Only claims of this namespace.
    pub namespace: Option<String>,
    /// Only claims in the queue of this pool.
    pub pool: Option<PoolName>,
    /// Only claims of this tenant.
    pub tenant: Option<String>,
    /// Only claims that have waited for at least so many milliseconds.
    pub waited_ms: Option<Millis>,
}

impl WaitingFilter {
    fn allows_pool(&self, pool: &Pool) -> bool {
        self.pool.as_ref().is_none_or(|name| *name == pool.name)
            && self.namespace.as_deref().is_none_or(|namespace| pool.name.namespace() == namespace)
    }

    fn allows_key(&self, id: &ClaimId) -> bool {
        self.namespace.as_deref().is_none_or(|namespace| id.namespace() == namespace)
            && self.tenant.as_deref().is_none_or(|tenant| id.tenant() == tenant)
    }
}

/// Progress of a listing after a step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ListingStep {
    /// The page is complete.
    Finished,
    /// The page goes on with another step.
    Unfinished,
}

/// Entry of a queue, or of the directory of gangs.
#[derive(Debug)]
enum WaitingEntry {
    Claim(Arc<QueuedClaim>),
    Gang(GangEntry),
}

impl WaitingEntry {
    fn arrival(&self) -> ArrivalNumber {
        match self {
            Self::Claim(claim) => claim.arrival,
            Self::Gang(entry) => entry.gang.arrival,
        }
    }
}

/// Source of entries, by arrival.
#[derive(Debug)]
enum EntrySource {
    Queue(Arc<Pool>),
    Gangs,
}

/// Entries of one source as far as they were read, and where to go on.
#[derive(Debug)]
struct EntryStream {
    source: EntrySource,
    entries: VecDeque<WaitingEntry>,
    from: ArrivalNumber,
    is_at_end: bool,
    was_read: bool,
}

impl EntryStream {
    const fn new(source: EntrySource, from: ArrivalNumber) -> Self {
        Self { source, entries: VecDeque::new(), from, is_at_end: false, was_read: false }
    }

    /// Arrival of the next entry, or the lowest that it may have; none at the end.
    fn head(&self) -> Option<ArrivalNumber> {
        let unread = (!self.is_at_end).then_some(self.from);
        self.entries.front().map(WaitingEntry::arrival).or(unread)
    }

    /// Reads a slice of at most `wanted` entries.
    fn read(&mut self, dispatch: &ClaimDispatcher, filter: &WaitingFilter, now_ms: Millis, wanted: usize) {
        self.was_read = true;
        let has_waited =
            |since_ms: Millis| filter.waited_ms.is_none_or(|waited_ms| now_ms.saturating_sub(since_ms) >= waited_ms);
        let (mut visits, mut from, entries) = (0, self.from, &mut self.entries);
        let mut visit = |arrival: ArrivalNumber, entry: Option<WaitingEntry>| {
            visits += 1;
            from = arrival.saturating_add(1);
            entries.extend(entry);
            // Another one is not visited any more.
            visits < SLICE_VISITS_MAX && entries.len() < wanted
        };
        self.is_at_end = match &self.source {
            EntrySource::Queue(pool) => {
                let queue = pool.wait_queue.lock();
                queue.queue.claims_from(self.from).all(|claim| {
                    let is_listed = filter.allows_key(&claim.id) && has_waited(claim.since_ms);
                    visit(claim.arrival, is_listed.then(|| WaitingEntry::Claim(Arc::clone(claim))))
                })
            }
            EntrySource::Gangs => {
                let gangs = dispatch.wait_queues.gangs.lock();
                gangs.gangs_from(self.from).all(|entry| {
                    let gang = &entry.gang;
                    let is_listed = gang.pools.iter().any(|pool| filter.allows_pool(pool)) && has_waited(gang.since_ms);
                    visit(gang.arrival, is_listed.then(|| WaitingEntry::Gang(entry.clone())))
                })
            }
        };
        self.from = from;
    }
}

/// Claim on the page.
#[derive(Debug)]
enum ShownClaim {
    Claim(Arc<QueuedClaim>, ExhaustionReason),
    Member(Arc<WaitingGang>, ClaimId),
}

/// Page of a listing that is being put together.
#[derive(Debug)]
pub struct WaitingListing<'d> {
    dispatch: &'d ClaimDispatcher,
    filter: WaitingFilter,
    now_ms: Millis,
    from: WaitingPosition,
    limit: usize,
    streams: Vec<EntryStream>,
    /// Streams by the arrival of their next entries.
    heads: BinaryHeap<Reverse<(ArrivalNumber, usize)>>,
    slices_left: usize,
    /// Gang whose members are being visited, and the next one.
    gang: Option<(GangEntry, usize)>,
    /// Arrival of the last entry that was visited to its end.
    last: Option<ArrivalNumber>,
    shown: Vec<ShownClaim>,
    next: Option<WaitingPosition>,
    /// Counts to be made of what is ahead, by queue, once the claims are selected.
    counts: Option<Vec<(Arc<Pool>, PositionCount)>>,
    /// Number ahead of each claim in its best queue, and number served there lately.
    positions: HashMap<ArrivalNumber, (usize, u64)>,
}

impl ClaimDispatcher {
    /// Begins a page of at most `limit` claims that wait and pass the filter, from a position on.
    #[must_use]
    pub fn list_waiting(&self, filter: WaitingFilter, from: WaitingPosition, limit: usize) -> WaitingListing<'_> {
        let pools = self.pools.load();
        let queues = pools.iter().filter(|pool| filter.allows_pool(pool) && pool.wait_queue.waiting() > 0);
        let sources = queues.map(|pool| EntrySource::Queue(Arc::clone(pool))).chain([EntrySource::Gangs]);
        let streams: Vec<_> = sources.map(|source| EntryStream::new(source, from.arrival)).collect();
        let heads = (0..streams.len()).map(|stream| Reverse((from.arrival, stream))).collect();
        WaitingListing {
            dispatch: self,
            filter,
            now_ms: self.clock.engine_now_ms(),
            from,
            limit,
            streams,
            heads,
            slices_left: limits::PAGE_SLICES_MAX,
            gang: None,
            last: None,
            shown: Vec::new(),
            next: None,
            counts: None,
            positions: HashMap::default(),
        }
    }
}

impl WaitingListing<'_> {
    /// Goes on with the page. No lock is held for more than a slice of entries.
    pub fn step(&mut self) -> ListingStep {
        match &self.counts {
            Some(_) => self.count(),
            None => {
                if self.select() == ListingStep::Finished {
                    self.counts = Some(self.position_counts());
                }
                ListingStep::Unfinished
            }
        }
    }

    /// Selects claims for the page: reads one slice, or visits as many members of a gang.
    fn select(&mut self) -> ListingStep {
        loop {
            if let Some((entry, member)) = self.gang.take() {
                return self.visit_members(&entry, member);
            }
            let Some(&Reverse((arrival, number))) = self.heads.peek() else { return ListingStep::Finished };
            if self.shown.len() == self.limit {
                return self.end_at(arrival, 0);
            }
            let stream = &mut self.streams[number];
            if let Some(entry) = stream.entries.pop_front() {
                self.move_head(number);
                self.visit(entry);
                continue;
            }
            if stream.was_read {
                if self.slices_left == 0 {
                    return self.end_at(arrival, 0);
                }
                self.slices_left -= 1;
            }
            stream.read(self.dispatch, &self.filter, self.now_ms, self.limit - self.shown.len());
            self.move_head(number);
            return ListingStep::Unfinished;
        }
    }

    /// Ends the page before this entry, unless that was visited: it may be in other queues too.
    fn end_at(&mut self, arrival: ArrivalNumber, member: usize) -> ListingStep {
        let after = self.last.map(|last| WaitingPosition { arrival: last.saturating_add(1), member: 0 });
        self.next = Some(WaitingPosition { arrival, member }).max(after);
        ListingStep::Finished
    }

    /// Puts the stream that comes first where its next entry belongs.
    fn move_head(&mut self, number: usize) {
        self.heads.pop();
        self.heads.extend(self.streams[number].head().map(|head| Reverse((head, number))));
    }

    fn visit(&mut self, entry: WaitingEntry) {
        // A claim that waits in several pools is in as many queues.
        if self.last == Some(entry.arrival()) {
            return;
        }
        match entry {
            WaitingEntry::Claim(claim) => {
                self.last = Some(claim.arrival);
                // It may have been served since, and its key may wait once more.
                if let Some((queued, exhausted)) = self.dispatch.keys.queued_claim(&claim.id)
                    && queued.arrival == claim.arrival
                {
                    self.shown.push(ShownClaim::Claim(queued, exhausted));
                }
            }
            WaitingEntry::Gang(entry) => {
                let member = if entry.gang.arrival == self.from.arrival { self.from.member } else { 0 };
                self.gang = Some((entry, member));
            }
        }
    }

    fn visit_members(&mut self, entry: &GangEntry, from: usize) -> ListingStep {
        let arrival = entry.gang.arrival;
        let slice = entry.members.iter().enumerate().skip(from).take(SLICE_VISITS_MAX);
        for (index, id) in slice {
            if self.shown.len() == self.limit {
                return self.end_at(arrival, index);
            }
            if self.filter.allows_key(id) && self.waits_in(&entry.gang, id) {
                self.shown.push(ShownClaim::Member(Arc::clone(&entry.gang), id.clone()));
            }
        }
        let next = from.saturating_add(SLICE_VISITS_MAX);
        if next >= entry.members.len() {
            self.last = Some(arrival);
        } else if self.slices_left == 0 {
            return self.end_at(arrival, next);
        } else {
            self.slices_left -= 1;
            self.gang = Some((entry.clone(), next));
        }
        ListingStep::Unfinished
    }

    /// Whether a query of the key shows that it waits in this gang: nobody holds the key or waits for it alone.
    fn waits_in(&self, gang: &WaitingGang, id: &ClaimId) -> bool {
        let is_latest = self.dispatch.wait_queues.gangs.lock().get(id).is_some_and(|last| last.arrival == gang.arrival);
        let keys = &self.dispatch.keys;
        is_latest
            && keys.queued_claim(id).is_none()
            && matches!(keys.lookup(id), KeyLookup::Vacant | KeyLookup::PendingWrites(_))
    }

    /// Counts to make: the claims of the page by the queues that they are in.
    fn position_counts(&self) -> Vec<(Arc<Pool>, PositionCount)> {
        let mut by_pool: BTreeMap<u32, Vec<ArrivalNumber>> = BTreeMap::new();
        for shown in &self.shown {
            if let ShownClaim::Claim(queued, _) = shown {
                queued.pools.iter().for_each(|pool| by_pool.entry(*pool).or_default().push(queued.arrival));
            }
        }
        let pools = self.dispatch.pools.load();
        let counts = by_pool.into_iter().filter_map(|(number, arrivals)| {
            Some((Arc::clone(pools.by_number(number)?), PositionCount::new(arrivals)))
        });
        counts.collect()
    }

    /// Counts a part of what is ahead of the claims on the page.
    fn count(&mut self) -> ListingStep {
        let counts = self.counts.as_mut();
        let Some((pool, mut count)) = counts.and_then(Vec::pop) else { return ListingStep::Finished };
        let mut queue = pool.wait_queue.lock();
        if count.step(&queue.queue) == CountStep::Unfinished {
            drop(queue);
            self.counts.get_or_insert_default().push((pool, count));
            return ListingStep::Unfinished;
        }
        let served = queue.served_lately(self.now_ms);
        drop(queue);
        for (arrival, ahead) in count.into_positions() {
            let position = self.positions.entry(arrival).or_insert((ahead, served));
            *position = (*position).min((ahead, served));
        }
        ListingStep::Unfinished
    }

    /// Views of the claims on the page, by arrival, and the position of the next page, if there is one.
    #[must_use]
    pub fn into_page(self) -> (Vec<QueuedClaimView>, Option<WaitingPosition>) {
        let mut gangs_ahead: Option<(ArrivalNumber, u64)> = None;
        let views = self.shown.iter().map(|shown| match shown {
            ShownClaim::Claim(queued, exhausted) => {
                self.dispatch.view_waiting(queued, *exhausted, self.positions.get(&queued.arrival).copied())
            }
            ShownClaim::Member(gang, id) => {
                // Members of a gang follow each other.
                let ahead = match gangs_ahead {
                    Some((arrival, ahead)) if arrival == gang.arrival => ahead,
                    _ => self.dispatch.gangs_ahead(gang),
                };
                gangs_ahead = Some((gang.arrival, ahead));
                self.dispatch.view_gang(id, gang, ahead)
            }
        });
        (views.collect(), self.next)
    }
}
