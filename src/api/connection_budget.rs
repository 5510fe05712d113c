//! How many connections there may be at a time: on one port, and on all ports together.

use std::sync::Arc;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// The connections of one port. Cheap to clone.
#[derive(Debug, Clone)]
pub struct ConnectionBudget {
    port: Arc<Semaphore>,
    /// Connections of all ports, each of which takes an open file.
    all: Arc<Semaphore>,
    max: usize,
}

/// Place of a connection within the budget; dropping it gives the place back.
#[derive(Debug)]
pub(super) struct ConnectionPermit {
    _port: OwnedSemaphorePermit,
    _all: OwnedSemaphorePermit,
}

impl ConnectionBudget {
    /// At most `max` connections.
    #[must_use]
    pub fn new(max: usize) -> Self {
        Self::sharing(max, &Arc::new(Semaphore::new(max)))
    }

    /// At most `max` connections, and no more than `all` has left for several ports.
    #[must_use]
    pub fn sharing(max: usize, all: &Arc<Semaphore>) -> Self {
        Self { port: Arc::new(Semaphore::new(max)), all: Arc::clone(all), max }
    }

    /// Most connections of the port.
    pub(super) const fn max(&self) -> usize {
        self.max
    }

    /// Connections of the port at present.
    pub(super) fn used(&self) -> usize {
        self.max - self.port.available_permits()
    }

    /// Takes a place for one more connection; none: the budget is used up.
    pub(super) fn try_acquire(&self) -> Option<ConnectionPermit> {
        let port = Arc::clone(&self.port).try_acquire_owned().ok()?;
        let all = Arc::clone(&self.all).try_acquire_owned().ok()?;
        Some(ConnectionPermit { _port: port, _all: all })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn h06_ports_share_what_there_is_and_keep_their_own_bound() {
        let all = Arc::new(Semaphore::new(3));
        let (http, resp) = (ConnectionBudget::sharing(2, &all), ConnectionBudget::sharing(2, &all));
        let mut held: Vec<_> = (0..2).map(|_| http.try_acquire().unwrap()).collect();
        assert!(http.try_acquire().is_none(), "its own bound");
        held.push(resp.try_acquire().unwrap());
        assert!(resp.try_acquire().is_none(), "nothing is left");
        assert_eq!((http.used(), resp.used()), (2, 1));
        held.remove(0);
        assert!(resp.try_acquire().is_some() && http.try_acquire().is_some());
    }
}
