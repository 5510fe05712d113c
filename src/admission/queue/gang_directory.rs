//! Gangs that wait, by the keys of their members and by arrival, for queries: the keys themselves are vacant meanwhile.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::{ArrivalNumber, WaitingGang};
use crate::collections::HashMap;
use crate::model::ClaimId;

/// Gang that waits, with the keys of its members.
#[derive(Debug, Clone)]
pub(super) struct GangEntry {
    /// Gang as its queues know it.
    pub(super) gang: Arc<WaitingGang>,
    /// Keys of the members.
    pub(super) members: Arc<[ClaimId]>,
}

/// Directory of all gangs that wait.
#[derive(Debug, Default)]
pub(super) struct GangDirectory {
    by_member: HashMap<ClaimId, Arc<WaitingGang>>,
    by_arrival: BTreeMap<ArrivalNumber, GangEntry>,
}

impl GangDirectory {
    /// Adds a gang with the keys of its members. A key that another gang waits for counts as one of this gang.
    pub(super) fn insert(&mut self, gang: &Arc<WaitingGang>, members: &[ClaimId]) {
        self.by_member.extend(members.iter().map(|member| (member.clone(), Arc::clone(gang))));
        self.by_arrival.insert(gang.arrival, GangEntry { gang: Arc::clone(gang), members: members.into() });
    }

    /// Removes a gang with the keys of its members.
    pub(super) fn remove(&mut self, gang: &WaitingGang) {
        let Some(entry) = self.by_arrival.remove(&gang.arrival) else { return };
        for member in &*entry.members {
            // Another gang may wait for the same key by now.
            if self.get(member).is_some_and(|other| other.arrival == gang.arrival) {
                self.by_member.remove(member);
            }
        }
    }

    /// Gang that waits and has this key among its members.
    pub(super) fn get(&self, member: &ClaimId) -> Option<&Arc<WaitingGang>> {
        self.by_member.get(member)
    }

    /// Gangs that arrived at this number or later, by arrival.
    pub(super) fn gangs_from(&self, arrival: ArrivalNumber) -> impl Iterator<Item = &GangEntry> {
        self.by_arrival.range(arrival..).map(|(_, entry)| entry)
    }
}
