//! Request classes: claims of the same class fit a worker together or not at all.

use std::sync::Arc;

use super::least_demand::ClaimDemand;
use super::row_table::RowTable;
use crate::collections::HashMap;
use crate::engine::PlacementConstraints;
use crate::model::{Millis, WorkerSpec};

/// Request of a claim, as far as it decides which workers fit.
#[derive(Debug, Clone, Default)]
pub struct RequestClass {
    /// Hash of the request ([`crate::admission::key::PendingClaim::request_class`]).
    pub hash: u64,
    /// Constraints on the worker at present; none: any worker will do.
    pub constraints: Option<Arc<PlacementConstraints>>,
    /// Time to confirm, in milliseconds; none: the pool's.
    pub reserve_ms: Option<Millis>,
    /// Time to live without renewal, in milliseconds; none: the pool's.
    pub ttl_ms: Option<Millis>,
}

#[derive(Debug)]
struct ClassRow {
    constraints: Option<Arc<PlacementConstraints>>,
    hash: u64,
    demand: ClaimDemand,
    claims: usize,
    /// Query in which the class was last compared with the worker, and the result.
    compared: (u64, bool),
}

/// Request classes of the claims in a queue.
#[derive(Debug, Default)]
pub(super) struct ClassTable {
    rows: RowTable<ClassRow>,
    by_hash: HashMap<(u64, Millis), u32>,
    /// Number of the query: of the worker with which classes are compared.
    query: u64,
}

impl ClassTable {
    /// Counts a claim of the class, and returns the number of the class.
    pub(super) fn join(&mut self, class: &RequestClass, needs_ms: Millis) -> u32 {
        let number = *self.by_hash.entry((class.hash, needs_ms)).or_insert_with(|| {
            let constraints = class.constraints.clone();
            let demand = ClaimDemand::new(constraints.as_deref(), needs_ms);
            self.rows.insert(ClassRow { constraints, hash: class.hash, demand, claims: 0, compared: (0, false) })
        });
        self.rows.get_mut(number).claims += 1;
        number
    }

    /// Uncounts a claim of the class.
    pub(super) fn leave(&mut self, number: u32) {
        let row = self.rows.get_mut(number);
        row.claims -= 1;
        if row.claims == 0 {
            self.by_hash.remove(&(row.hash, row.demand.needs_ms));
            self.rows.remove(number);
        }
    }

    pub(super) fn demand(&self, number: u32) -> &ClaimDemand {
        &self.rows.get(number).demand
    }

    /// Begins to compare classes with another worker.
    pub(super) const fn begin_query(&mut self) {
        self.query += 1;
    }

    /// Whether the class allows the worker of the present query, whatever it has free.
    pub(super) fn allows(&mut self, number: u32, worker: &WorkerSpec) -> bool {
        let query = self.query;
        if self.rows.get(number).compared.0 != query {
            let allows = self.allows_any_query(number, worker);
            self.rows.get_mut(number).compared = (query, allows);
        }
        self.rows.get(number).compared.1
    }

    /// Whether the class allows a worker, whatever it has free. The result is not kept for the present query.
    pub(super) fn allows_any_query(&self, number: u32, worker: &WorkerSpec) -> bool {
        self.rows.get(number).constraints.as_ref().is_none_or(|constraints| constraints.fits(worker))
    }
}
