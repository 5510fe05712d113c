//! Limits on open connections: for each port, and for all ports together.

use std::sync::Arc;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Fraction of the total that is reserved for each port: one in so many connections.
const RESERVED_DIVISOR: usize = 4;

/// Connection limit of one port. Cheap to clone.
///
/// Every connection takes a file descriptor, so all ports together may have fewer connections than their limits add up
/// to. Each port reserves a part that no other port can use, so that a client that fills one port does not close the
/// others.
#[derive(Debug, Clone)]
pub struct ConnectionBudget {
    port: Arc<Semaphore>,
    reserved: Arc<Semaphore>,
    shared: Arc<Semaphore>,
    max: usize,
}

/// Permit for one open connection, returned to its budget on drop.
#[derive(Debug)]
pub(super) struct ConnectionPermit {
    _port: OwnedSemaphorePermit,
    _slot: OwnedSemaphorePermit,
}

impl ConnectionBudget {
    /// Creates a budget of `max` connections for a single port.
    #[must_use]
    pub fn new(max: usize) -> Self {
        let [budget] = Self::for_ports(max, max);
        budget
    }

    /// Creates budgets for `PORTS` ports: each at most `max` connections, all together `all`, and at least one for each
    /// port.
    #[must_use]
    pub fn for_ports<const PORTS: usize>(max: usize, all: usize) -> [Self; PORTS] {
        const { assert!(PORTS <= RESERVED_DIVISOR, "the reserved parts fit into the total") };
        let reserved = (all / RESERVED_DIVISOR).max(1).min(max);
        let shared = Arc::new(Semaphore::new(all.saturating_sub(PORTS * reserved)));
        [(); PORTS].map(|()| Self {
            port: Arc::new(Semaphore::new(max)),
            reserved: Arc::new(Semaphore::new(reserved)),
            shared: Arc::clone(&shared),
            max,
        })
    }

    /// Limit on connections of the port.
    pub(super) const fn max(&self) -> usize {
        self.max
    }

    /// Number of open connections on the port.
    pub(super) fn used(&self) -> usize {
        self.max - self.port.available_permits()
    }

    /// Takes a permit for one more connection; `None` if the budget is used up.
    pub(super) fn try_acquire(&self) -> Option<ConnectionPermit> {
        let port = Arc::clone(&self.port).try_acquire_owned().ok()?;
        let slots = [&self.reserved, &self.shared].into_iter();
        let slot = slots.map(Arc::clone).find_map(|slots| slots.try_acquire_owned().ok())?;
        Some(ConnectionPermit { _port: port, _slot: slot })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fill(budget: &ConnectionBudget) -> Vec<ConnectionPermit> {
        std::iter::from_fn(|| budget.try_acquire()).collect()
    }

    #[test]
    fn h06_ports_share_the_total_and_keep_their_own_limit() {
        let [http, resp] = ConnectionBudget::for_ports(2, 3);
        let mut permits = fill(&http);
        assert_eq!(permits.len(), 2, "the port's limit");
        permits.append(&mut fill(&resp));
        assert_eq!((http.used(), resp.used()), (2, 1), "the total is used up");
        drop(permits);
        assert_eq!((http.used(), resp.used()), (0, 0));
        assert_eq!(fill(&resp).len(), 2);
    }

    #[test]
    fn h06_a_port_keeps_a_quarter_while_another_uses_the_rest() {
        let budgets: [ConnectionBudget; 2] = ConnectionBudget::for_ports(1_000, 400);
        for (greedy, other) in [(0, 1), (1, 0)] {
            let mut permits = fill(&budgets[greedy]);
            assert_eq!(permits.len(), 300);
            assert_eq!(fill(&budgets[other]).len(), 100);
            // A returned permit can be taken by any port, unless it is reserved.
            permits.truncate(250);
            let others = fill(&budgets[other]);
            assert_eq!(permits.len() + others.len(), 400);
            drop(permits);
            assert_eq!((others.len(), fill(&budgets[greedy]).len()), (150, 250));
        }
    }

    #[test]
    fn h06_every_port_has_at_least_one_connection() {
        for all in 1..8 {
            let budgets: [ConnectionBudget; 2] = ConnectionBudget::for_ports(16, all);
            let permits = fill(&budgets[0]);
            assert!(!permits.is_empty() && budgets[1].try_acquire().is_some(), "{all}");
        }
        // A single port may use all of them.
        assert_eq!(fill(&ConnectionBudget::new(7)).len(), 7);
    }
}
